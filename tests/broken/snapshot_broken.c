/* The sharing of data between snapshots, clones and disks rests on a few rules. This build breaks them, one at a time, on purpose (vmfs/broken.h): the
 * check must find what comes of it, each time, and nothing when no rule is broken. */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include "vmfs/broken.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum vmfs_rule vmfs_broken; /* changed by this test only */

struct site {
    struct gr_mem *mem;
    struct gr_bdev *dev;
    struct vmfs *v;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    char found[8192];
};

static void collect(void *arg, const char *text)
{
    struct site *s = arg;
    size_t n = strlen(s->found);
    snprintf(s->found + n, sizeof s->found - n, "%s\n", text);
}

static void put(struct site *s, unsigned block, unsigned piece, unsigned n)
{
    static uint8_t b[65536];
    memset(b, (int)(block + piece + 1), sizeof b);
    assert_int_equal(gr_pwrite(s->ch, b, n * 4096, block * 65536ull + piece * 4096, 0), 0);
}

static void begin(struct site *s, enum vmfs_provision provision, bool data_crc)
{
    struct vmfs_format_opts f = { .name = "ds", .data_crc = data_crc };
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "broken" };
    *s = (struct site){ .mem = gr_mem_new(128 << 20) };
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), s->mem, &s->dev), 0);
    OK(vmfs_format(gr_fiber_loop(), &s->dev, 1, &f, &err));
    OK(vmfs_join(gr_fiber_loop(), &s->dev, 1, &o, &s->v, &err));
    OK(vmfs_create(s->v, "disk", VMFS_DISK, 4 << 20, provision, &err));
    OK(vmfs_open(s->v, "disk", &s->d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(s->d), gr_fiber_loop(), &s->ch), 0);
}

static void end(struct site *s)
{
    gr_chan_close(s->ch);
    vmfs_close(s->d);
    vmfs_abandon(s->v);
    gr_bdev_put(s->dev);
    gr_mem_free(s->mem);
}

/* Each of these does, right at @hour, what the rule is about. */
static void overwrite(struct site *s, enum vmfs_rule hour)
{
    for (unsigned i = 0; i < 4; i++)
        put(s, i, 0, 16);
    OK(snap_create(&s->d, 1, "one", &err));
    OK(vmfs_checkpoint(s->v, &err));
    vmfs_broken = hour;
    put(s, 1, 3, 2);
    put(s, 2, 0, 16);
    put(s, 3, 5, 1);
    put(s, 9, 1, 1); /* where nothing was */
}

/* Units that the snapshot holds reserved, too. */
static void fill_reserved(struct site *s, enum vmfs_rule hour)
{
    put(s, 1, 0, 4);
    OK(snap_create(&s->d, 1, "one", &err));
    OK(vmfs_checkpoint(s->v, &err));
    vmfs_broken = hour;
    put(s, 1, 8, 2);
}

/* What no snapshot has any more. */
static void replace_own(struct site *s, enum vmfs_rule hour)
{
    overwrite(s, VMFS_RULE_NONE);
    OK(vmfs_checkpoint(s->v, &err));
    vmfs_broken = hour;
    assert_int_equal(gr_unmap(s->ch, 2 * 65536, 65536, 0), 0);
}

static void unmap_shared(struct site *s, enum vmfs_rule hour)
{
    overwrite(s, VMFS_RULE_NONE);
    OK(vmfs_checkpoint(s->v, &err));
    vmfs_broken = hour;
    assert_int_equal(gr_unmap(s->ch, 0, 65536, 0), 0);
}

static void clone_writes(struct site *s, enum vmfs_rule hour)
{
    overwrite(s, VMFS_RULE_NONE);
    OK(snap_clone(s->d, "one", "clone", &err));
    gr_chan_close(s->ch);
    vmfs_close(s->d);
    OK(vmfs_open(s->v, "clone", &s->d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(s->d), gr_fiber_loop(), &s->ch), 0);
    vmfs_broken = hour;
    put(s, 1, 0, 3);
    put(s, 2, 0, 16);
}

static void delete(struct site *s, enum vmfs_rule hour)
{
    overwrite(s, VMFS_RULE_NONE);
    OK(snap_create(&s->d, 1, "two", &err));
    put(s, 1, 9, 1);
    OK(vmfs_checkpoint(s->v, &err));
    vmfs_broken = hour;
    OK(snap_delete(s->d, "two", false, &err));
    OK(snap_settle(s->d, &err));
    vmfs_broken = hour;
    OK(snap_delete(s->d, "one", false, &err));
    OK(snap_settle(s->d, &err));
}

static const struct breach {
    const char *name;
    enum vmfs_rule rule;
    void (*work)(struct site *s, enum vmfs_rule hour);
    enum vmfs_provision provision;
    const char *expect;
    bool data_crc;
} breaches[] = {
    { "a thick disk's unit that a snapshot has, too, is written where it lies", VMFS_RULE_IN_PLACE, fill_reserved, VMFS_THICK, "also in use for something else" },
    { "data that a snapshot has is written over where it lies", VMFS_RULE_IN_PLACE, overwrite, VMFS_THIN, "snapshot number 1, at byte 77824: device 0 ('mem') does not return what was written", true },
    { "new data that says it is old", VMFS_RULE_BIRTH, overwrite, VMFS_THIN, "born in the time of a tree that does not name it" },
    { "the same of a clone", VMFS_RULE_BIRTH, clone_writes, VMFS_THIN, "born in the time of a tree that does not name it" },
    { "an overwrite frees what the snapshot has", VMFS_RULE_OVERWRITTEN, overwrite, VMFS_THIN, "free in the bitmap" },
    { "an unmap does", VMFS_RULE_OVERWRITTEN, unmap_shared, VMFS_THIN, "free in the bitmap" },
    { "a clone's write does", VMFS_RULE_OVERWRITTEN, clone_writes, VMFS_THIN, "free in the bitmap" },
    { "an unmap leaves what nobody has", VMFS_RULE_LEFT, replace_own, VMFS_THIN, "nothing uses it" },
    { "a delete frees what is still shared", VMFS_RULE_DELETED, delete, VMFS_THIN, "free in the bitmap" },
    { "a delete leaves what nobody has", VMFS_RULE_LEAKED, delete, VMFS_THIN, "nothing uses it" },
};

static int check(const struct breach *b, enum vmfs_rule rule, char found[8192])
{
    struct site s;
    struct vmfs_check_report rep;
    begin(&s, b->provision, b->data_crc);
    b->work(&s, rule);
    OK(vmfs_checkpoint(s.v, &err));
    vmfs_broken = VMFS_RULE_NONE;
    int r = vmfs_check(s.v, collect, &s, &rep, NULL);
    if (r == 0 && rep.leaked_units)
        r = 1;
    if (b->data_crc) { /* nothing but its checksum tells */
        struct vmfs_scrub_opts o = { .line = collect, .arg = &s };
        struct vmfs_scrub_report scrubbed;
        assert_int_equal(r, 0);
        r = vmfs_scrub(s.v, &o, &scrubbed, NULL);
    }
    memcpy(found, s.found, sizeof s.found);
    end(&s);
    return r;
}

static int breaches_fn(void *arg)
{
    char found[8192];
    for (size_t i = 0; i < GR_ARRAY_LEN(breaches); i++) {
        const struct breach *b = &breaches[i];
        print_message("%s\n", b->name);
        if (check(b, VMFS_RULE_NONE, found) != 0)
            fail_msg("%s: no rule is broken, and the check says: %s", b->name, found);
        if (check(b, b->rule, found) == 0)
            fail_msg("%s: the check finds nothing", b->name);
        if (!strstr(found, b->expect))
            fail_msg("%s: the check should say '%s', and says: %s", b->name, b->expect, found);
    }
    return 0;
}

static void check_finds_them(void **state)
{
    test_in_fiber(breaches_fn, NULL);
}

TEST_MAIN(TEST(check_finds_them))
