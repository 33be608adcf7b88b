/* What changed between two points: a walk that skips subtrees born before the base when the base lies in the past; else two
 * trees side by side, skipping what is the same node. */
#include "common/seam.h"
#include "snapshot/snapshot.h"
#include "vmfs/internal.h"

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

static int out_add(struct out *o, uint64_t piece, bool zero)
{
    uint64_t off = piece * VMFS_PIECE;
    int r = 0;
    if (o->len && (o->off + o->len != off || o->zero != zero))
        r = out_flush(o);
    if (!o->len) {
        o->off = off;
        o->zero = zero;
    }
    o->len += VMFS_PIECE;
    return r < 0 ? r : 0;
}

static struct mpiece piece_of(const struct mnode *leaf, uint64_t piece)
{
    struct mpiece p = { 0 };
    return leaf ? ment_piece(&leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES], (unsigned)(piece % VMFS_BLOCK_PIECES)) : p;
}

/* ---- base in the past: births tell ---- */
static int leaf_since(const struct mnode *leaf, uint64_t first, uint64_t since, struct out *out)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < VMFS_LEAF_PIECES; i++) {
        struct mpiece p = piece_of(leaf, first + i);
        if (p.state != VMFS_P_RESERVED && p.birth > since)
            r = out_add(out, first + i, p.state != VMFS_P_DATA);
    }
    return r;
}

static int walk_since(struct vobj *o, struct mtree *t, uint64_t since, struct out *out, struct gr_err *err)
{
    uint64_t piece = 0;
    for (;;) {
        struct mnode *leaf;
        int r = mtree_next(o, t, piece, since, &piece, err);
        if (r < 0 || piece == UINT64_MAX)
            return r;
        piece -= piece % VMFS_LEAF_PIECES;
        if ((r = mtree_load(o, t, piece, err)) < 0)
            return r;
        if (mtree_peek(t, piece, &leaf) < 0)
            continue;
        if (leaf && (r = leaf_since(leaf, piece, since, out)) < 0)
            return r;
        piece += VMFS_LEAF_PIECES;
    }
}

/* ---- two lines: side by side ---- */
static int leaf_pair(const struct mnode *a, const struct mnode *b, uint64_t first, struct out *out)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < VMFS_LEAF_PIECES; i++) {
        struct mpiece p = piece_of(a, first + i), q = piece_of(b, first + i);
        bool pz = p.state != VMFS_P_DATA, qz = q.state != VMFS_P_DATA;
        if (pz != qz || (!pz && p.addr != q.addr))
            r = out_add(out, first + i, qz);
    }
    return r;
}

/* The leaf position at or behind @piece where the trees may differ [sync]; -EAGAIN: load *ret_missing there. */
static int pair_next(struct mtree *a, struct mtree *b, uint64_t piece, uint64_t *ret, struct mtree **ret_missing)
{
    unsigned top = GR_MAX(a->level, b->level);
    uint64_t end = mnode_span(top);
    for (unsigned level = top; piece < end;) {
        bool no_a, no_b;
        struct mchild *ca = mtree_slot(a, level, piece, &no_a), *cb = mtree_slot(b, level, piece, &no_b);
        bool above = level > a->level || level > b->level; /* one tree is lower: go down to where both have nodes */
        *ret = piece;
        if (!above && ((!ca && !no_a) || (!cb && !no_b))) {
            *ret_missing = !ca && !no_a ? a : b;
            return -EAGAIN;
        }
        bool empty = (!ca || slot_empty(ca)) && (!cb || slot_empty(cb));
        if (!above && (empty || (ca && cb && slot_same(ca, cb)))) {
            piece = (piece / mnode_span(level) + 1) * mnode_span(level);
            level = top;
        } else if (level == 0) {
            return 0;
        } else {
            level--;
        }
    }
    *ret = UINT64_MAX;
    return 0;
}

static int walk_pair(struct vobj *o, struct mtree *a, struct mtree *b, struct out *out, struct gr_err *err)
{
    uint64_t piece = 0;
    for (;;) {
        struct mtree *missing;
        struct mnode *la, *lb;
        int r = pair_next(a, b, piece, &piece, &missing);
        if (r == -EAGAIN) {
            if ((r = mtree_load(o, missing, piece, err)) < 0)
                return r;
            continue;
        }
        if (piece == UINT64_MAX)
            return 0;
        piece -= piece % VMFS_LEAF_PIECES;
        if ((r = mtree_load(o, a, piece, err)) < 0 || (r = mtree_load(o, b, piece, err)) < 0)
            return r;
        if (mtree_peek(a, piece, &la) < 0 || mtree_peek(b, piece, &lb) < 0)
            continue;
        if ((r = leaf_pair(la, lb, piece, out)) < 0)
            return r;
        piece += VMFS_LEAF_PIECES;
    }
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
    uint64_t since;
    if (!o || d->gone)
        return gr_fail(err, -GR_EFENCED, "'%s' is no longer ours", d->bdev.name);
    int r = snap_resolve_base(d, base, &b, err);
    if (r == 0)
        r = head_of(d, to, &h, err);
    if (r < 0)
        return r;
    ticket_open(o->v, &ticket); /* nodes freed from now on keep their bytes */
    struct out out = { .fn = fn, .arg = arg, .limit = h.size };
    struct vsnap *s = snap_at(o, &b);
    if (lineage_since(o, h.lineage, h.epoch, &b, &since, err) == 0) {
        r = walk_since(o, &h.tree, since, &out, err);
    } else if (s) {
        struct mtree from;
        mtree_share(&from, &s->tree);
        r = walk_pair(o, &from, &h.tree, &out, err);
        mtree_done(o->v, &from);
    } else {
        r = gr_fail(err, -ENOENT, "'%s': '%s' is not in the past of %s%s and its snapshot is gone: nothing tells what changed", d->bdev.name,
                    base, to ? "snapshot " : "the live disk", to ? to : "");
    }
    if (r >= 0)
        r = out_flush(&out);
    ticket_close(o->v, &ticket);
    mtree_done(o->v, &h.tree);
    return r < 0 ? r : 0;
}
