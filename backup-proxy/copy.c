/* Copy the extents of one bdev to another: import, export to raw, restore. */
#include "backup-proxy/pipe.h"
#include "backup-proxy/vmdk.h"
#include "backup-proxy/walk.h"
#include "common/cleanup.h"
#include <string.h>

#define RUN (1u << 20)
#define UNIT 65536u
#define ALIGN 4096u
#define LANES 8
struct copy_slot {
    uint64_t off, len;
    bool zero;
    uint8_t *buf;
};
struct copy_run {
    struct gr_chan *src, *dst;
    bool dst_zero;
    uint64_t size, done, taken;
    uint32_t block; /* of the target */
    uint32_t src_block;
    struct bp_walk walk;
    struct gr_extent cur;
    int (*progress)(void *arg, uint64_t done, uint64_t total);
    void *arg;
};

static int copy_next(void *arg, void *slot, struct gr_err *err)
{
    struct copy_run *c = arg;
    struct copy_slot *s = slot;
    while (c->cur.off + c->cur.len <= c->taken || (c->cur.flags && c->dst_zero)) {
        int r = bp_walk_next(&c->walk, &c->cur);
        if (r < 0)
            return gr_fail(err, r, "%s: cannot list its extents: %s", c->src->bdev->name, gr_code_text(r));
        if (r == 0)
            return 0;
    }
    /* whole ALIGN pieces: a piece that two extents share goes with the first of them */
    uint64_t from = GR_MAX(c->cur.off & ~(uint64_t)(ALIGN - 1), c->taken), end = c->cur.off + c->cur.len;
    s->zero = c->cur.flags && !(from % ALIGN) && end - from >= ALIGN;
    if (s->zero && end < c->size)
        end &= ~(uint64_t)(ALIGN - 1);
    else if (end < c->size)
        end = GR_MIN((end + ALIGN - 1) & ~(uint64_t)(ALIGN - 1), c->size);
    s->off = from;
    s->len = GR_MIN(end - from, s->zero ? (uint64_t)1 << 30 : RUN - from % RUN);
    c->taken = s->off + s->len;
    return 1;
}

/* Write the units of the slot that are not zero, as long runs. */
static int write_runs(struct copy_run *c, struct copy_slot *s, size_t len)
{
    size_t i = 0;
    while (i < len) {
        size_t n = GR_MIN(UNIT - (s->off + i) % UNIT, len - i), from = i;
        bool zero = bp_is_zero(s->buf + i, n);
        for (i += n; i < len; i += n) {
            n = GR_MIN((size_t)UNIT, len - i);
            if (bp_is_zero(s->buf + i, n) != zero)
                break;
        }
        int r = 0;
        if (!zero)
            r = gr_pwrite(c->dst, s->buf + from, i - from, s->off + from, 0);
        else if (!c->dst_zero)
            r = gr_write_zeroes(c->dst, s->off + from, i - from, GR_BIO_MAY_UNMAP);
        if (r < 0)
            return r;
    }
    return 0;
}
static int copy_load(void *arg, void *slot, struct gr_err *err)
{
    struct copy_run *c = arg;
    struct copy_slot *s = slot;
    uint64_t pad = (s->len + c->block - 1) / c->block * c->block;
    int r;
    if (s->zero) {
        r = gr_write_zeroes(c->dst, s->off, pad, GR_BIO_MAY_UNMAP);
    } else {
        r = gr_pread(c->src, s->buf, s->len, s->off);
        if (r < 0)
            return gr_fail(err, r, "%s: cannot read %llu bytes at %llu: %s", c->src->bdev->name, (unsigned long long)s->len,
                           (unsigned long long)s->off, gr_code_text(r));
        memset(s->buf + s->len, 0, pad - s->len);
        r = write_runs(c, s, pad);
    }
    if (r < 0)
        return gr_fail(err, r, "%s: cannot write %llu bytes at %llu: %s", c->dst->bdev->name, (unsigned long long)s->len,
                       (unsigned long long)s->off, gr_code_text(r));
    return 0;
}
static int copy_commit(void *arg, void *slot, struct gr_err *err)
{
    struct copy_run *c = arg;
    const struct copy_slot *s = slot;
    c->done = s->off + s->len;
    int r = c->progress ? c->progress(c->arg, c->done, c->size) : 0;
    return r < 0 ? gr_fail(err, r, "%s: copying was given up: %s", c->src->bdev->name, gr_code_text(r)) : 0;
}

static int copy_slots(struct copy_run *c, struct gr_err *err)
{
    static const struct bp_pipe_ops ops = {copy_next, copy_load, NULL, copy_commit};
    struct copy_slot slots[LANES] = {0};
    int r = 0;
    for (unsigned i = 0; i < LANES && r == 0; i++) {
        slots[i].buf = gr_alloc_aligned(4096, RUN + ALIGN);
        if (!slots[i].buf)
            r = gr_fail(err, -ENOMEM, "out of memory for copying");
    }
    if (r == 0)
        r = bp_pipe_run(&ops, c, slots, sizeof slots[0], LANES, err);
    for (unsigned i = 0; i < LANES; i++)
        free(slots[i].buf);
    return r;
}

int bp_copy(struct gr_chan *src, struct gr_chan *dst, bool dst_zero, int (*progress)(void *arg, uint64_t done, uint64_t total), void *arg,
            struct gr_err *err)
{
    struct gr_geometry gs, gd;
    int r = gr_bdev_geometry(src->bdev, &gs);
    if (r == 0)
        r = gr_bdev_geometry(dst->bdev, &gd);
    if (r < 0)
        return gr_fail(err, r, "cannot read the sizes of %s and %s", src->bdev->name, dst->bdev->name);
    if (gs.size > gd.size)
        return gr_fail(err, -GR_ERANGE, "%s has %llu bytes, %s only %llu", src->bdev->name, (unsigned long long)gs.size, dst->bdev->name,
                       (unsigned long long)gd.size);
    gr_auto_free struct copy_run *c = gr_zalloc(sizeof *c);
    if (!c)
        return gr_fail(err, -ENOMEM, "out of memory");
    *c = (struct copy_run){.src = src, .dst = dst, .dst_zero = dst_zero, .size = gs.size, .block = gd.logical_block, .progress = progress, .arg = arg};
    bp_walk_init(&c->walk, src, gs.size, NULL);
    r = copy_slots(c, err);
    if (r < 0)
        return r;
    r = gr_flush(dst);
    return r < 0 ? gr_fail(err, r, "%s: cannot flush: %s", dst->bdev->name, gr_code_text(r)) : 0;
}
