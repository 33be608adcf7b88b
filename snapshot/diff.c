/* What changed between two points: a walk that skips subtrees born before the base when the base lies in the past; else two
 * trees side by side, skipping what is the same node. */
#include "common/seam.h"
#include "snapshot/snapshot.h"
#include "vmfs/tree_scan.h"

struct out { /* merges neighbours */
    int (*fn)(void *arg, uint64_t off, uint64_t len, bool zero);
    void *arg;
    uint64_t off, len, limit;
    bool zero;
};

static int out_flush(struct out *o)
{
    uint64_t len = o->off < o->limit ? GR_MIN(o->len, o->limit - o->off) : 0;
    o->len = 0;
    return len ? o->fn(o->arg, o->off, len, o->zero) : 0;
}

static int out_add(struct out *o, uint64_t piece, unsigned n, bool zero)
{
    uint64_t off = piece * VMFS_PIECE;
    int r = 0;
    if (o->len && (o->off + o->len != off || o->zero != zero))
        r = out_flush(o);
    if (!o->len) {
        o->off = off;
        o->zero = zero;
    }
    o->len += (uint64_t)n * VMFS_PIECE;
    return r < 0 ? r : 0;
}

/* Pieces of the block at @piece: a bit each for those that changed, and for those that read as zeros now. */
static int out_block(struct out *o, uint64_t piece, unsigned changed, unsigned zero)
{
    int r = 0;
    while (r == 0 && changed) {
        unsigned i = (unsigned)__builtin_ctz(changed);
        bool z = zero >> i & 1;
        unsigned n = (unsigned)__builtin_ctz(~((changed & (z ? zero : ~zero)) >> i));
        r = out_add(o, piece + i, n, z);
        changed &= ~(((1u << n) - 1u) << i);
    }
    return r;
}

static unsigned data_of(const struct mentry *e)
{
    return e ? e->written & ~(unsigned)e->zero : 0;
}

/* ---- base in the past: births tell ---- */
static unsigned born_since(const struct mentry *e, uint64_t since)
{
    unsigned m = 0, reserved = e->zero & ~(unsigned)e->written;
    if (!e->px)
        return e->birth > since ? e->written : 0;
    for (unsigned i = 0; i < VMFS_BLOCK_PIECES; i++)
        m |= (unsigned)(e->px->birth[i] > since) << i;
    return m & ~reserved;
}

/* ---- two lines: side by side ---- */
static unsigned differ(const struct vmfs *v, const struct mentry *a, const struct mentry *b)
{
    unsigned da = data_of(a), db = data_of(b), m = da ^ db, both = da & db;
    if (both && !a->px && !b->px && a->addr == b->addr)
        return m;
    for (; both; both &= both - 1) {
        unsigned i = (unsigned)__builtin_ctz(both);
        uint64_t x = ment_piece(a, i).addr, y = ment_piece(b, i).addr;
        if (x != y && moved_addr(v, x, 1, NULL) != moved_addr(v, y, 1, NULL)) /* trees that nobody else knows are not settled */
            m |= 1u << i;
    }
    return m;
}

struct walk {
    struct tscan scan;
    struct out out;
};

static int leaf_diff(void *arg, uint64_t piece, const struct mnode *leaf, const struct mnode *base)
{
    struct walk *w = arg;
    int r = 0;
    for (unsigned i = 0; r == 0 && i < VMFS_FANOUT; i++, piece += VMFS_BLOCK_PIECES) {
        const struct mentry *e = leaf ? &leaf->ent[i] : NULL, *was = base ? &base->ent[i] : NULL;
        unsigned changed = w->scan.base ? differ(w->scan.o->v, was, e) : e ? born_since(e, w->scan.since) : 0;
        r = out_block(&w->out, piece, changed, 0xffff & ~data_of(e));
    }
    return r;
}

/* ---- the question ---- */
int snap_resolve_base(struct vmfs_disk *d, const char *base, struct gr_bookmark *ret, struct gr_err *err)
{
    struct snap_info info;
    if (snap_find(d, base, &info, NULL) == 0)
        *ret = info.bookmark;
    else if (gr_bookmark_parse(base, ret) < 0)
        return gr_fail(err, -ENOENT, "'%s' has no snapshot or bookmark '%s'", d->bdev.name, base);
    return 0;
}

/* A snapshot that is still there at exactly this point. */
static struct vsnap *snap_at(struct vobj *o, const struct gr_bookmark *b)
{
    for (size_t i = 0; i < o->n_snaps; i++)
        if (o->snaps[i]->lineage == b->lineage && o->snaps[i]->epoch == b->epoch && !(o->snaps[i]->flags & VMFS_SNAP_DELETING))
            return o->snaps[i];
    return NULL;
}

struct head {
    struct mtree tree; /* a share of the nodes: stays as it is */
    uint64_t lineage, epoch, size;
};

static int head_of(struct vmfs_disk *d, const char *to, struct head *h, struct gr_err *err)
{
    struct vobj *o = d->o;
    if (!to) {
        mtree_share(&h->tree, &o->live);
        h->lineage = o->lineage;
        h->epoch = o->epoch;
        h->size = o->ino.size;
        return 0;
    }
    disk_wait_late(o);
    struct vsnap *s = d->o ? vobj_snap_named(o, to) : NULL;
    if (!s)
        return gr_fail(err, -ENOENT, "'%s' has no snapshot '%s'", d->bdev.name, to);
    mtree_share(&h->tree, &s->tree);
    h->lineage = s->lineage;
    h->epoch = s->epoch;
    h->size = s->size;
    return 0;
}

int snap_diff(struct vmfs_disk *d, const char *base, const char *to, int (*fn)(void *arg, uint64_t off, uint64_t len, bool zero), void *arg,
              struct gr_err *err)
{
    struct vobj *o = d->o;
    struct gr_bookmark b;
    struct head h;
    struct vticket ticket;
    if (!o || d->gone)
        return gr_fail(err, -GR_EFENCED, "'%s' is no longer ours", d->bdev.name);
    int r = snap_resolve_base(d, base, &b, err);
    if (r == 0)
        r = head_of(d, to, &h, err);
    if (r < 0)
        return r;
    struct vmfs *v = o->v;
    struct mtree from = { 0 };
    struct walk w = { .scan = { .o = o, .tree = &h.tree, .end = UINT64_MAX, .leaf = leaf_diff, .ahead = TSCAN_AHEAD }, .out = { .fn = fn, .arg = arg, .limit = h.size } };
    w.scan.arg = &w;
    ticket_open(v, &ticket); /* nodes freed from now on keep their bytes */
    struct vsnap *s = snap_at(o, &b);
    r = lineage_since(o, h.lineage, h.epoch, &b, &w.scan.since, NULL);
    if (r < 0 && s) {
        mtree_share(&from, &s->tree);
        w.scan.base = &from;
        r = 0;
    } else if (r < 0) {
        gr_fail(err, r, "'%s': '%s' is not in the past of %s%s and its snapshot is gone: nothing tells what changed", d->bdev.name, base,
                to ? "snapshot " : "the live disk", to ? to : "");
    }
    if (r == 0)
        r = tscan_run(&w.scan, err);
    if (r >= 0)
        r = out_flush(&w.out);
    ticket_close(v, &ticket);
    mtree_done(v, &from);
    mtree_done(v, &h.tree);
    return r < 0 ? r : 0;
}
