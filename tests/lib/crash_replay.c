#include "tests/lib/crash_replay.h"
#include "common/cleanup.h"
#include "tests/lib/test.h"
#include <stdlib.h>
#include <string.h>

struct crash_replay {
    struct crash_image *durable;
    struct gr_record *record;
    size_t next;          /* first entry not looked at yet */
    uint64_t flushed;     /* submission of the newest flush completed by now */
    size_t *open, n_open, cap; /* entries submitted and not durable, in order of submission */
    size_t *flush, n_flush, cap_flush; /* flushes not completed yet */
};

struct crash_replay *crash_replay_new(const struct crash_image *base, struct gr_record *record)
{
    struct crash_replay *r = calloc(1, sizeof *r);
    assert_non_null(r);
    r->durable = crash_image_copy(base);
    r->record = record;
    return r;
}

void crash_replay_free(struct crash_replay *r)
{
    crash_image_free(r->durable);
    free(r->open);
    free(r->flush);
    free(r);
}

uint64_t crash_record_ticks(struct gr_record *record)
{
    uint64_t t = 0;
    for (size_t i = 0; i < gr_record_count(record); i++) {
        const struct gr_record_entry *e = gr_record_at(record, i);
        t = GR_MAX(t, GR_MAX(e->submitted, e->completed));
    }
    return t;
}

static bool changes(const struct gr_record_entry *e)
{
    return e->op == GR_OP_WRITE || e->op == GR_OP_UNMAP || e->op == GR_OP_WRITE_ZEROES;
}

static void apply(struct crash_image *img, const struct gr_record_entry *e, uint64_t from, uint64_t to)
{
    if (e->op == GR_OP_WRITE)
        crash_image_write(img, e->off + from, e->data + from, to - from);
    else
        crash_image_zero(img, e->off + from, to - from);
}

static void list_add(size_t **list, size_t *n, size_t *cap, size_t x)
{
    if (*n == *cap) {
        *cap = *cap ? *cap * 2 : 256;
        *list = realloc(*list, *cap * sizeof **list);
        assert_non_null(*list);
    }
    (*list)[(*n)++] = x;
}

static bool overlap(const struct gr_record_entry *a, const struct gr_record_entry *b)
{
    return a->off < b->off + b->len && b->off < a->off + a->len;
}

/* Durable by now: a flush began after it was completed and is done; it had FUA and is done; or it lies under one that is. */
static bool is_durable(const struct crash_replay *r, const struct gr_record_entry *e, uint64_t tick)
{
    if (!e->completed || e->completed > tick)
        return false;
    return e->completed < r->flushed || (e->flags & GR_BIO_FUA);
}

static void advance(struct crash_replay *r, uint64_t tick)
{
    const struct gr_record_entry *e;
    for (; (e = gr_record_at(r->record, r->next)) && e->submitted <= tick; r->next++) {
        if (changes(e))
            list_add(&r->open, &r->n_open, &r->cap, r->next);
        else if (e->op == GR_OP_FLUSH)
            list_add(&r->flush, &r->n_flush, &r->cap_flush, r->next);
    }
    size_t n = 0;
    for (size_t i = 0; i < r->n_flush; i++) {
        e = gr_record_at(r->record, r->flush[i]);
        if (e->completed && e->completed <= tick)
            r->flushed = GR_MAX(r->flushed, e->submitted);
        else
            r->flush[n++] = r->flush[i];
    }
    r->n_flush = n;
    n = 0;
    for (size_t i = 0; i < r->n_open; i++) {
        struct gr_record_entry x = *gr_record_at(r->record, r->open[i]);
        bool durable = is_durable(r, &x, tick);
        for (size_t k = i + 1; k < r->n_open && !durable; k++) { /* written over by a durable one: gone either way */
            const struct gr_record_entry *later = gr_record_at(r->record, r->open[k]);
            durable = is_durable(r, later, tick) && overlap(&x, later);
        }
        if (durable)
            apply(r->durable, &x, 0, x.len);
        else
            r->open[n++] = r->open[i];
    }
    r->n_open = n;
}

static void apply_torn(struct crash_image *img, const struct gr_record_entry *e, uint64_t *rng)
{
    uint64_t sectors = e->len / 512, how = test_rand(rng) % 3;
    if ((e->flags & GR_BIO_ATOMIC) || sectors < 2) {
        if (how)
            apply(img, e, 0, e->len);
        return;
    }
    uint64_t cut = 1 + test_rand(rng) % (sectors - 1);
    if (how == 0)
        apply(img, e, 0, cut * 512);
    else if (how == 1)
        apply(img, e, cut * 512, e->len);
    for (uint64_t i = 0; how == 2 && i < sectors; i++)
        if (test_rand(rng) % 2)
            apply(img, e, i * 512, (i + 1) * 512);
}

struct crash_image *crash_replay_cut(struct crash_replay *r, uint64_t tick, enum crash_kind kind, uint64_t *rng)
{
    advance(r, tick);
    struct crash_image *img = crash_image_copy(r->durable);
    size_t pick = r->n_open ? (size_t)(test_rand(rng) % r->n_open) : 0;
    for (size_t i = 0; i < r->n_open && kind != CRASH_NOTHING; i++) {
        const struct gr_record_entry *e = gr_record_at(r->record, r->open[i]);
        if ((kind == CRASH_PREFIX || kind == CRASH_TORN) && i > pick)
            break;
        if (kind == CRASH_ONE_LOST && i == pick)
            continue;
        if ((kind == CRASH_SUBSET || kind == CRASH_TORN_SUBSET) && test_rand(rng) % 2)
            continue;
        if ((kind == CRASH_TORN && i == pick) || (kind == CRASH_TORN_SUBSET && test_rand(rng) % 2))
            apply_torn(img, e, rng);
        else
            apply(img, e, 0, e->len);
    }
    return img;
}
