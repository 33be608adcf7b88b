#include "backup-proxy/walk.h"
#include <string.h>

void bp_walk_init(struct bp_walk *w, struct gr_chan *ch, uint64_t size, const struct gr_bookmark *base)
{
    *w = (struct bp_walk){.ch = ch, .size = size, .base = base};
}

static int walk_fill(struct bp_walk *w)
{
    unsigned n = 0;
    int r = w->blind ? -EOPNOTSUPP : gr_extents(w->ch, w->off, w->size - w->off, w->base, w->batch, BP_WALK_BATCH, &n);
    if (r == -EOPNOTSUPP && !w->base) {
        w->blind = true;
        w->batch[0] = (struct gr_extent){.off = w->off, .len = w->size - w->off, .flags = GR_EXTENT_DATA, .changed = true};
        n = 1;
        r = 0;
    }
    if (r < 0)
        return r;
    if (n == 0 || n > BP_WALK_BATCH)
        return -GR_EPROTO;
    w->i = 0;
    w->n = n;
    return 0;
}

/* One extent as the source gave it, checked: contiguous, not empty, inside the device. */
static int walk_raw(struct bp_walk *w, struct gr_extent *ret)
{
    if (w->off >= w->size)
        return 0;
    if (w->i == w->n) {
        int r = walk_fill(w);
        if (r < 0)
            return r;
    }
    struct gr_extent e = w->batch[w->i++];
    if (e.off != w->off || e.len == 0)
        return -GR_EPROTO;
    if (e.len > w->size - w->off)
        e.len = w->size - w->off;
    if (!w->base)
        e.changed = true;
    e.flags = e.flags ? GR_EXTENT_ZERO : GR_EXTENT_DATA;
    w->off += e.len;
    *ret = e;
    return 1;
}

int bp_walk_next(struct bp_walk *w, struct gr_extent *ret)
{
    struct gr_extent cur;
    if (w->have_held) {
        cur = w->held;
        w->have_held = false;
    } else {
        int r = walk_raw(w, &cur);
        if (r <= 0)
            return r;
    }
    for (;;) {
        struct gr_extent e;
        int r = walk_raw(w, &e);
        if (r < 0)
            return r;
        if (r == 0)
            break;
        if (e.flags != cur.flags || e.changed != cur.changed) {
            w->held = e;
            w->have_held = true;
            break;
        }
        cur.len += e.len;
    }
    *ret = cur;
    return 1;
}

int bp_is_zero(const void *p, size_t len)
{
    const char *b = p;
    if (len < 16)
        return !memcmp(b, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", len);
    return !memcmp(b, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16) && !memcmp(b, b + 16, len - 16);
}
