/* BLOCK_STATUS: extents of the export, clipped to the request, equal neighbours merged, for each selected context. */
#include "common/cleanup.h"
#include "iscsi-target/mover_int.h"
#include <string.h>

#define BATCH 1024 /* extents asked for at once: a map that is not in memory is read for all of them together */
#define ROUNDS 32  /* calls of the device per context and request: a map of tiny pieces cannot keep the loop busy */

struct list {
    uint8_t *wire;
    uint32_t n, cap;
    uint32_t last_len, last_flags;
};

static int list_add(struct list *l, uint32_t len, uint32_t flags, uint32_t max)
{
    if (l->n && l->last_flags == flags) {
        l->last_len += len; /* sums stay within the request's 32-bit length */
        gr_put_be32(l->wire + 4 + 8 * (size_t)(l->n - 1), l->last_len);
        return 0;
    }
    if (l->n == max)
        return 1;
    if (l->n == l->cap) {
        uint32_t cap = l->cap ? l->cap * 2 : 16;
        uint8_t *w = gr_realloc(l->wire, 4 + 8 * (size_t)cap);
        if (!w)
            return -ENOMEM;
        l->wire = w;
        l->cap = cap;
    }
    uint8_t *p = l->wire + 4 + 8 * (size_t)l->n++;
    gr_put_be32(p, len);
    gr_put_be32(p + 4, flags);
    l->last_len = len;
    l->last_flags = flags;
    return 0;
}

static uint32_t wire_flags(const struct mover_context *ctx, const struct gr_extent *e)
{
    bool hole = e->flags & GR_EXTENT_HOLE, zero = hole || (e->flags & GR_EXTENT_ZERO);
    if (!ctx->changed)
        return (hole ? NBD_STATE_HOLE : 0) | (zero ? NBD_STATE_ZERO : 0);
    if (!e->changed)
        return 0;
    return MOVER_CHANGED | (zero ? MOVER_CHANGED_ZERO : 0) | (hole ? MOVER_CHANGED_HOLE : 0);
}

/* Extents of one context into @l; stops early at @max extents or after ROUNDS calls. */
static int walk(struct mover_req *r, const struct mover_context *ctx, struct list *l, uint32_t max)
{
    struct mover_conn *c = r->conn;
    uint64_t at = r->rq.off, end = r->rq.off + r->rq.len, block = c->geo.logical_block;
    gr_auto_free struct gr_extent *e = gr_alloc(BATCH * sizeof(*e));
    if (!e)
        return -ENOMEM;
    for (int round = 0; at < end && round < ROUNDS; round++) {
        uint64_t from = at - at % block, to = GR_MIN((end + block - 1) / block * block, c->geo.size);
        unsigned n = 0;
        if (c->io.error)
            return c->io.error;
        int s = gr_extents(c->chan, from, to - from, ctx->changed ? &ctx->base : NULL, e, BATCH, &n);
        if (s < 0)
            return s;
        uint64_t before = at;
        for (unsigned i = 0; i < n && at < end; i++) {
            uint64_t stop = GR_MIN(e[i].off + e[i].len, end);
            if (e[i].off > at || stop <= at)
                continue;
            s = list_add(l, (uint32_t)(stop - at), wire_flags(ctx, &e[i]), max);
            if (s)
                return s < 0 ? s : 0;
            at = stop;
        }
        if (at == before)
            return -EIO; /* the device described nothing: never loop on it */
    }
    return 0;
}

void mover_status_run(void *arg)
{
    struct mover_req *r = arg;
    struct mover_conn *c = r->conn;
    struct list lists[MOVER_MAX_CONTEXTS];
    struct mover_status_part parts[MOVER_MAX_CONTEXTS];
    memset(lists, 0, sizeof(lists));
    uint32_t max = r->rq.flags & NBD_CMD_FLAG_REQ_ONE ? 1 : MOVER_MAX_EXTENTS;
    unsigned n = c->n_ctx;
    int status = 0;
    for (unsigned i = 0; i < n && status >= 0; i++) {
        status = walk(r, &c->ctx[i], &lists[i], max);
        if (status < 0)
            break;
        gr_put_be32(lists[i].wire, c->ctx[i].id);
        parts[i] = (struct mover_status_part){.n = lists[i].n, .wire = lists[i].wire};
    }
    if (status < 0)
        mover_reply_code(r, status, "block status");
    else
        mover_reply_status(r, parts, n);
    for (unsigned i = 0; i < n; i++)
        free(lists[i].wire);
}
