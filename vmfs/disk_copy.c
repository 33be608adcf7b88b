/* Copying within a volume without moving a byte: the pieces of one disk become further owners of another's units.
 *
 * Nobody may overwrite such a unit in place any more. That is what births decide: a disk overwrites only what was born in its
 * current epoch, so an epoch ends, without a snapshot, before the source's pieces are shared, and behind the record that shares them
 * with the destination. Data must be durable, its record sealed, and no write of an earlier epoch under way, or bytes could still
 * change, or turn out to be missing after a power cut.
 *
 * What cannot be shared now is refused with -EOPNOTSUPP, and the caller reads and writes: pieces that are written all the time, odd
 * offsets, thick disks (their space is their own), units in a region that another host leases. */
#include "common/seam.h"
#include "vmfs/internal.h"

#define TRIES 4u

struct copy {
    struct vobj *src, *dst;
    uint64_t from, to, count; /* pieces */
};

static bool suits(const struct vmfs_disk *s, const struct vmfs_disk *d, const struct gr_bio *bio)
{
    uint64_t from = bio->copy_src_off, to = bio->off, len = bio->len;
    if (s->gone || d->gone || !s->o || !d->o || s->o->v != d->o->v || !(d->o->v->sb.incompat & VMFS_INCOMPAT_SHARES))
        return false;
    if (s->o->ino.key_id || d->o->ino.key_id)
        return false; /* what is encrypted belongs to its place in its disk */
    if (s->o->ino.provision != VMFS_THIN || d->o->ino.provision != VMFS_THIN)
        return false;
    if (from % VMFS_PIECE || to % VMFS_PIECE || len % VMFS_PIECE || from > s->o->ino.size || len > s->o->ino.size - from)
        return false;
    return s->o != d->o || from >= to + len || to >= from + len;
}

/* ---- pieces ---- */
static const struct mentry *entry_of(const struct mnode *leaf, uint64_t piece)
{
    return &leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES];
}

static struct mpiece piece_at(const struct mnode *leaf, uint64_t piece)
{
    return leaf ? ment_piece(entry_of(leaf, piece), (unsigned)(piece % VMFS_BLOCK_PIECES)) : (struct mpiece){ .state = VMFS_P_HOLE };
}

/* How many pieces from @piece on, before @end, lie behind each other without looking at each: a whole block of one run, or nothing. */
static uint32_t alike(const struct mnode *leaf, uint64_t piece, uint64_t end)
{
    const struct mentry *e = leaf ? entry_of(leaf, piece) : NULL;
    uint32_t n = (uint32_t)GR_MIN(end - piece, VMFS_BLOCK_PIECES - piece % VMFS_BLOCK_PIECES);
    if (!leaf)
        return (uint32_t)(end - piece);
    bool whole = !e->px && (e->addr ? e->written == 0xffff && !e->zero : !e->written && !e->zero);
    return whole ? n : 1;
}

/* ---- before it is admitted: the source ---- */

/* [sync] May the piece be shared as it is? Else its epoch must end, or its data and record be made durable. */
static bool shareable(const struct vobj *src, const struct mentry *e, const struct mpiece *m)
{
    if (src->frozen) /* a cut writes without being admitted, so its last piece in place */
        return false;
    return m->birth < src->epoch && !space_leaving(src->v, m->addr) && e->seq <= src->v->j.sealed_seq && !src->late && src->data_written <= src->v->j.data_flushed && src->copied;
}

/* Is the source ready? Regions of what is to be shared are leased, as far as they can be. 1; 0: not yet; negative. */
static int look(const struct copy *c)
{
    struct vobj *o = c->src;
    bool ready = true;
    for (uint64_t p = c->from, end = c->from + c->count; p < end;) {
        struct mnode *leaf;
        int r = mtree_load(o, &o->live, p, NULL);
        if (r < 0)
            return r;
        if (mtree_peek(&o->live, p, &leaf) < 0)
            continue;
        uint64_t stop = GR_MIN(end, (p / VMFS_LEAF_PIECES + 1) * VMFS_LEAF_PIECES);
        for (; leaf && p < stop; p += alike(leaf, p, stop)) {
            struct mpiece m = piece_at(leaf, p);
            if (m.state != VMFS_P_DATA)
                continue;
            ready &= shareable(o, entry_of(leaf, p), &m);
            if (!space_region(o->v, m.addr)) {
                if (space_lease(o->v, space_region_index(o->v, m.addr), NULL) != 0)
                    return -EOPNOTSUPP;
                break; /* that may have suspended: look at the leaf anew */
            }
        }
        p = leaf ? p : stop;
    }
    return ready;
}

/* End the source's epoch, wait for its writes, and make all of it durable. */
static int settle(struct vobj *src)
{
    struct vmfs *v = src->v;
    journal_room(v);
    while (src->frozen && !v->fenced)
        gr_fqueue_wait(&src->drained);
    int r = v->fenced ? -GR_EFENCED : record_epoch(src);
    if (r == 0) {
        disk_wait_late(src);
        r = journal_seal(v);
    }
    return r;
}

/* ---- admitted ---- */

/* [sync] Source pieces from @piece on, before @end, of one leaf, that lie behind each other in one region, or are all without data. */
static uint32_t run_of(const struct vmfs *v, const struct mnode *leaf, uint64_t piece, uint64_t end, struct mpiece *ret)
{
    uint32_t n = 0;
    *ret = piece_at(leaf, piece);
    while (piece + n < end) {
        struct mpiece m = piece_at(leaf, piece + n);
        if ((m.state == VMFS_P_DATA) != (ret->state == VMFS_P_DATA))
            break;
        if (m.state == VMFS_P_DATA && (m.addr != ret->addr + n || space_region_index(v, m.addr) != space_region_index(v, ret->addr)))
            break;
        n += alike(leaf, piece + n, end);
    }
    return n;
}

/* [sync] Has the destination this already: the same unit, or nothing where there is nothing? */
static bool has_already(const struct mpiece *now, const struct mpiece *m, uint32_t k)
{
    return m->state == VMFS_P_DATA ? now->state == VMFS_P_DATA && now->addr == m->addr + k : now->state == VMFS_P_HOLE;
}

/* [sync] Pieces [to, to+n) of one leaf become what the source has, run @m with @crc of each (or NULL); what is so already stays. */
static int run_share(struct dop *op, uint64_t to, uint32_t n, const struct mpiece *m, const uint32_t *crc, bool *shared)
{
    struct vobj *o = op->o;
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < n;) {
        struct mnode *leaf;
        uint32_t k = i;
        if (mtree_peek(&o->live, to + i, &leaf) < 0)
            return -GR_ECORRUPT; /* it was loaded, and nothing suspends here */
        for (struct mpiece now; k < n; k += alike(leaf, to + k, to + n)) {
            now = piece_at(leaf, to + k);
            if (has_already(&now, m, k))
                break;
        }
        if (k > i && m->state == VMFS_P_DATA)
            r = record_share(o, to + i, k - i, m->addr + i, op->range.epoch, crc ? crc + i : NULL);
        else if (k > i)
            r = record_map(o, to + i, k - i, 0, op->range.epoch, VMFS_P_HOLE, NULL);
        *shared |= k > i && m->state == VMFS_P_DATA;
        i = k + 1;
    }
    return r;
}

/* [sync] Every piece with data is ready. */
static bool all_ready(struct vmfs *v, const struct copy *c, const struct mnode *leaf, uint64_t first, uint64_t end)
{
    for (uint64_t p = first; p < end; p += alike(leaf, p, end)) {
        struct mpiece m = piece_at(leaf, p);
        if (m.state == VMFS_P_DATA && (!shareable(c->src, entry_of(leaf, p), &m) || !space_region(v, m.addr)))
            return false;
    }
    return true;
}

/* [sync] The part of the copy that touches one leaf on either side; both paths are in memory. All of it is looked at before any of
 * it is done. */
static int leaves_share(struct dop *op, const struct copy *c, uint64_t at, uint64_t n)
{
    struct vmfs *v = op->v;
    struct mnode *leaf;
    bool shared = false;
    uint64_t end = c->from + at + n;
    uint32_t crc[VMFS_LEAF_PIECES]; /* of a run: it may be the source's own leaf that changes */
    int r = mtree_peek(&c->src->live, c->from + at, &leaf);
    if (r == 0 && !all_ready(v, c, leaf, c->from + at, end))
        r = -EOPNOTSUPP;
    for (uint64_t i = 0; r == 0 && i < n;) {
        struct mpiece m;
        r = mtree_peek(&c->src->live, c->from + at + i, &leaf); /* anew: it may be the tree that changes */
        uint32_t run = r == 0 ? run_of(v, leaf, c->from + at + i, end, &m) : 0;
        for (uint32_t k = 0; vcrc_kept(v) && k < run; k++)
            crc[k] = piece_at(leaf, c->from + at + i + k).crc;
        if (r == 0)
            r = run_share(op, c->to + at + i, run, &m, vcrc_kept(v) ? crc : NULL, &shared);
        i += run;
    }
    int e = shared && !v->fenced ? record_epoch(c->dst) : 0;
    return r < 0 ? r : e;
}

static int share_all(struct dop *op, const struct copy *c)
{
    struct vmfs *v = op->v;
    for (uint64_t at = 0; at < c->count;) {
        uint64_t n = GR_MIN(c->count - at, VMFS_LEAF_PIECES - (c->from + at) % VMFS_LEAF_PIECES);
        n = GR_MIN(n, VMFS_LEAF_PIECES - (c->to + at) % VMFS_LEAF_PIECES);
        journal_room_for(op);
        int r = disk_room(op->o, leaf_units_max(v), op->range.epoch);
        if (r == 0)
            r = quota_room(op->o, (int64_t)n, op->range.epoch);
        if (r == 0)
            r = map_load_for(op->o, c->to + at, 1, op->range.epoch, NULL);
        if (r == 0)
            r = mtree_load(c->src, &c->src->live, c->from + at, NULL);
        struct mnode *leaf;
        if (r == 0 && mtree_peek(&op->o->live, c->to + at, &leaf) < 0)
            continue; /* evicted meanwhile */
        if (r == 0 && v->fenced)
            r = -GR_EFENCED;
        if (r == 0 && dop_late(op))
            r = -EOPNOTSUPP; /* a snapshot of the destination was taken meanwhile */
        if (r == 0 && (!journal_has_room(v) || !disk_nodes_fit(op->o) || !quota_fits(op->o, (int64_t)n)))
            continue;
        if (r == 0)
            r = leaves_share(op, c, at, n);
        if (r == -EAGAIN)
            continue;
        if (r < 0)
            return r;
        at += n;
    }
    return 0;
}

static void admitted(struct vrange *r)
{
    struct gr_fiber *waiting = ((struct dop *)r->arg)->bio->layer[1];
    if (waiting)
        gr_fiber_wake(waiting);
}

/* Wait for the range, share, leave. */
static void copy_admitted(struct dop *op, const struct copy *c)
{
    op->range.first = c->to;
    op->range.end = c->to + c->count;
    op->range.renews = true;
    op->range.grant = admitted;
    op->range.arg = op;
    op->bio->layer[1] = NULL;
    range_enter(op->o, &op->range);
    op->bio->layer[1] = gr_fiber_self();
    while (!op->range.granted)
        gr_fiber_suspend();
    int r = op->v->fenced ? -GR_EFENCED : share_all(op, c);
    op->v->stats.copies_shared += r == 0;
    disk_op_finish(op, r, op->bio->flags & GR_BIO_FUA);
}

/* 1: the source is ready; 0: it never is, it is written all the time. */
static int make_ready(const struct vmfs_disk *s, const struct vmfs_disk *d, const struct gr_bio *bio, const struct copy *c)
{
    for (unsigned i = 0; i < TRIES; i++) {
        int r = look(c);
        if (r == 0)
            r = settle(c->src);
        else if (r == 1 && suits(s, d, bio))
            return 1;
        if (r < 0 || !suits(s, d, bio)) /* closed, or cut, while we waited */
            return r;
    }
    return 0;
}

static void copy_work(void *arg)
{
    struct gr_bio *bio = arg;
    struct vmfs_disk *d = disk_of(bio->layer[0]), *s = disk_of(bio->copy_src);
    struct copy c = { s->o, d->o, bio->copy_src_off / VMFS_PIECE, bio->off / VMFS_PIECE, bio->len / VMFS_PIECE };
    struct vticket ticket;
    if (!suits(s, d, bio)) {
        gr_bio_end(bio, -EOPNOTSUPP);
        return;
    }
    struct vmfs *v = c.dst->v;
    ticket_open(v, &ticket); /* nobody leaves the volume meanwhile */
    int r = make_ready(s, d, bio, &c);
    struct dop *op = r == 1 ? disk_op_new(c.dst, bio) : NULL;
    ticket_close(v, &ticket);
    if (op)
        copy_admitted(op, &c);
    else
        gr_bio_end(bio, r < 0 ? r : -EOPNOTSUPP);
}

void disk_copy(struct gr_chan *ch, struct gr_bio *bio)
{
    if (bio->copy_src->bdev->ops != &vmfs_disk_ops || !suits(disk_of(bio->copy_src), disk_of(ch), bio) || !bio->len) {
        gr_bio_end(bio, bio->len ? -EOPNOTSUPP : 0);
        return;
    }
    bio->layer[0] = ch;
    int r = gr_fiber_start(ch->loop, copy_work, bio);
    if (r < 0)
        gr_bio_end(bio, r);
}

/* ---- who asks whether anything is shared ---- */
int disk_unshared(struct vobj *o, struct gr_err *err)
{
    uint64_t piece = 0;
    for (;;) {
        struct mnode *leaf;
        int r = mtree_next(o, &o->live, piece, 0, &piece, err);
        if (r == 0 && piece == UINT64_MAX)
            return 0;
        if (r == 0)
            r = mtree_load(o, &o->live, piece, err);
        if (r < 0)
            return r;
        if (mtree_peek(&o->live, piece, &leaf) < 0)
            continue;
        uint64_t end = (piece / VMFS_LEAF_PIECES + 1) * VMFS_LEAF_PIECES;
        for (; leaf && piece < end; piece++) {
            struct mpiece m = piece_at(leaf, piece);
            int shared = m.state == VMFS_P_HOLE ? 0 : space_shared(o->v, m.addr);
            if (shared == -EAGAIN && space_lease(o->v, space_region_index(o->v, m.addr), NULL) == 0) {
                end = piece; /* it may have suspended: look at the leaf anew */
                break;
            }
            if (shared)
                return gr_fail(err, -EBUSY, "it shares blocks with a copy of it, or with what it was copied from");
        }
        piece = end;
        gr_fiber_yield();
    }
}
