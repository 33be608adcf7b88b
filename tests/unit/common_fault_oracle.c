/* The oracle of the fault matrix finds what it is there to find. */
#include "tests/lib/fault_oracle.h"
#include "tests/lib/test.h"
#include <stdlib.h>
#include <string.h>

#define RUN 77u

struct disk { /* what the disk holds */
    struct fo *o;
    uint8_t *data;
};

static struct disk disk_new(void)
{
    struct disk d = { fo_new(0, RUN), calloc(FO_PIECES, FO_PIECE) };
    assert_non_null(d.data);
    memset(d.data + 5 * FO_PIECE, 0x55, FO_PIECE); /* it was used before */
    assert_true(fo_settle(d.o, 0, fo_looks(d.o), d.data));
    return d;
}

static void disk_free(struct disk *d)
{
    fo_free(d->o);
    free(d->data);
}

/* A write of piece @piece that is under way; its bytes land if @lands. */
static uint64_t begin(struct disk *d, unsigned host, unsigned piece, bool lands)
{
    uint8_t b[FO_PIECE];
    uint64_t number;
    assert_int_equal(fo_begin(d->o, host, piece, true, b, &number), piece);
    if (lands)
        memcpy(d->data + (size_t)piece * FO_PIECE, b, FO_PIECE);
    return number;
}

static struct fo_tally settle(struct disk *d, unsigned host)
{
    struct fo_tally t;
    assert_true(fo_settle(d->o, host, fo_looks(d->o), d->data));
    fo_tally(d->o, &t);
    return t;
}

static void sound(void **state)
{
    struct disk d = disk_new();
    uint8_t b[FO_PIECE];
    uint64_t n, landed, not_landed;
    (void)state;
    fo_wrote(d.o, 3, begin(&d, 0, 3, true));
    landed = begin(&d, 0, 8, true);
    not_landed = begin(&d, 0, 9, false);
    assert_int_equal(fo_begin(d.o, 0, 5, false, b, &n), 5);
    fo_read(d.o, 0, 5, d.data + 5 * FO_PIECE);
    assert_int_equal(fo_begin(d.o, 1, 4, true, b, &n), -1); /* not the owner */
    struct fo_tally t = settle(&d, 1);
    assert_true(!t.stale && !t.lost && !t.garbage && t.changes == 1 && t.from[0] == 1 && t.from[1] == 0 && t.owner == 1 && t.reads == 1);
    fo_wrote(d.o, 8, landed); /* the answer of before comes late, and says what the next owner found */
    fo_wrote(d.o, 9, begin(&d, 1, 9, true));
    t = settle(&d, 1);
    assert_true(!t.stale && !t.lost && !t.garbage && t.changes == 1);
    assert_int_not_equal(not_landed, 0);
    disk_free(&d);
}

static void answered_and_lost(void **state)
{
    struct disk d = disk_new();
    (void)state;
    fo_wrote(d.o, 3, begin(&d, 0, 3, false));
    struct fo_tally t = settle(&d, 1);
    assert_true(t.older == 1 && t.lost == 0);
    uint64_t n = begin(&d, 1, 4, false); /* the next owner does not find it, and then it is answered after all */
    settle(&d, 0);
    fo_wrote(d.o, 4, n);
    t = settle(&d, 0);
    assert_true(t.older == 2 && t.lost == 0);
    disk_free(&d);
}

static void flushed_and_lost(void **state)
{
    struct disk d = disk_new();
    (void)state;
    fo_wrote(d.o, 3, begin(&d, 0, 3, true));
    uint64_t covers = fo_flush_begin(d.o);
    fo_wrote(d.o, 4, begin(&d, 0, 4, false)); /* not one of these that it covers */
    fo_flushed(d.o, covers);
    fo_wrote(d.o, 3, begin(&d, 0, 3, false));
    struct fo_tally t = settle(&d, 1);
    assert_true(t.older == 2 && t.lost == 0);
    memset(d.data + 3 * FO_PIECE, 0, FO_PIECE);
    assert_int_equal(settle(&d, 1).lost, 1);
    disk_free(&d);
}

/* What was not there when somebody looked turns up. */
static void older_and_back(void **state)
{
    struct disk d = disk_new();
    uint8_t late[FO_PIECE];
    (void)state;
    fo_wrote(d.o, 3, begin(&d, 0, 3, true));
    fo_wrote(d.o, 3, begin(&d, 0, 3, true));
    memcpy(late, d.data + 3 * FO_PIECE, FO_PIECE);
    memset(d.data + 3 * FO_PIECE, 0, FO_PIECE);
    struct fo_tally t = settle(&d, 1);
    assert_true(t.older == 1 && t.stale == 0);
    fo_flushed(d.o, fo_flush_begin(d.o)); /* of what it is now */
    fo_wrote(d.o, 3, begin(&d, 1, 3, false));
    t = settle(&d, 1);
    assert_true(t.older == 2 && t.lost == 0);
    memcpy(d.data + 3 * FO_PIECE, late, FO_PIECE);
    assert_int_equal(settle(&d, 1).stale, 1);
    disk_free(&d);
}

static void lands_later(void **state)
{
    struct disk d = disk_new();
    uint8_t late[FO_PIECE];
    (void)state;
    begin(&d, 0, 7, true);
    memcpy(late, d.data + 7 * FO_PIECE, FO_PIECE);
    memset(d.data + 7 * FO_PIECE, 0, FO_PIECE);
    assert_int_equal(settle(&d, 1).stale, 0);
    memcpy(d.data + 7 * FO_PIECE, late, FO_PIECE);
    assert_int_equal(settle(&d, 1).stale, 1);
    disk_free(&d);
}

static void garbage(void **state)
{
    struct disk d = disk_new();
    (void)state;
    fo_wrote(d.o, 1, begin(&d, 0, 1, true));
    memcpy(d.data + 2 * FO_PIECE, d.data + FO_PIECE, FO_PIECE); /* a write of another place */
    assert_int_equal(settle(&d, 0).garbage, 1);
    d.data[FO_PIECE + 100] ^= 1; /* a piece of which only some is there */
    assert_int_equal(settle(&d, 0).garbage, 3);
    disk_free(&d);
}

static void two_look_at_once(void **state)
{
    struct disk d = disk_new();
    uint64_t looks = fo_looks(d.o);
    (void)state;
    assert_true(fo_settle(d.o, 1, looks, d.data));
    assert_false(fo_settle(d.o, 0, looks, d.data));
    disk_free(&d);
}

TEST_MAIN(TEST(sound), TEST(answered_and_lost), TEST(flushed_and_lost), TEST(older_and_back), TEST(lands_later), TEST(garbage), TEST(two_look_at_once))
