/* Writes that cannot go in place, compare-and-write: sequential code in a fiber, range already granted. */
#include "common/seam.h"
#include "vmfs/keys.h"
#include "vmfs/loss.h"
#include "vmfs/pool.h"

/* Kept back from @o: what was promised to others, and what metadata needs. */
static uint64_t kept_back(const struct vobj *o, bool replaces)
{
    const struct vmfs *v = o->v;
    uint64_t base = space_meta_base(v);
    if (o->reserved_units || replaces)
        base /= 2; /* what was promised is kept, though the units asked for are rounded up */
    return base + (v->reserved_leaves - o->reserved_leaves) * leaf_units_max(v);
}

bool disk_room_at_once(const struct vobj *o, uint64_t units)
{
    const struct vmfs *v = o->v;
    uint64_t keep = kept_back(o, false), others = v->reserved_units - o->reserved_units;
    return !space_low(v) && space_nodes_fit_now(v, v->reserved_leaves - o->reserved_leaves, false) && space_free_units(v) >= units + keep + others &&
           space_free_here(v) >= units + others + keep - GR_MIN(keep, v->sp.pool_units);
}

static int room_now(struct vobj *o, uint64_t units, bool replaces)
{
    struct vmfs *v = o->v;
    uint64_t keep = kept_back(o, replaces), others = v->reserved_units - o->reserved_units;
    /* what checkpoints need, and what was promised, must be free in regions leased here: others' free space is of no use to them */
    return space_free_units(v) < units + keep + others ? -GR_ENOSPACE : space_ensure(v, units + others + keep - GR_MIN(keep, v->sp.pool_units));
}

/* With what this host has leased, can lease, and is about to be reusable. */
static int room_here(struct vobj *o, uint64_t units, uint64_t epoch, bool replaces)
{
    struct vmfs *v = o->v;
    for (int tries = 0; tries < 3; tries++) {
        bool runs = space_nodes_fit(v, v->reserved_leaves - o->reserved_leaves, o->reserved_units || replaces);
        int r = !runs ? -GR_ENOSPACE : units ? room_now(o, units, replaces) : 0;
        if (r != -GR_ENOSPACE)
            return r;
        bool telling = v->sp.discard.units; /* a device, of what is free then */
        while (v->sp.discard.units && !v->fenced && epoch >= o->epoch)
            gr_fqueue_wait(&v->j.room_q);
        if (!telling && !space_pending(v) && (runs || !v->dirty_nodes))
            break;
        uint64_t until = v->ckpt_rounds + (v->ckpt_running_auto ? 2 : 1); /* one that begins from now on */
        while (v->ckpt_rounds < until && !v->fenced && epoch >= o->epoch) {
            if ((r = ckpt_background(v)) < 0)
                return r;
            gr_fqueue_wait(&v->j.room_q);
        }
        if (v->fenced || epoch < o->epoch)
            break;
    }
    return v->fenced ? -GR_EFENCED : -GR_ENOSPACE;
}

static int room(struct vobj *o, uint64_t units, uint64_t epoch, bool replaces)
{
    int r = room_here(o, units, epoch, replaces);
    for (int tries = 0; r == -GR_ENOSPACE && tries < 3 && space_ask(o->v, o, epoch); tries++)
        r = room_here(o, units, epoch, replaces);
    return r;
}

int disk_room(struct vobj *o, uint64_t units, uint64_t epoch)
{
    return room(o, units, epoch, false);
}

int disk_room_for(struct vobj *o, uint64_t units, uint64_t epoch, bool replaces)
{
    return room(o, units, epoch, replaces);
}

int disk_room_nodes(struct vobj *o, uint64_t epoch)
{
    return room(o, 0, epoch, true);
}

bool disk_nodes_fit(const struct vobj *o)
{
    return space_nodes_fit_now(o->v, o->v->reserved_leaves - o->reserved_leaves, true);
}

static int plan_room(struct plan *p, uint64_t first, uint64_t end, bool atomic)
{
    struct vobj *o = p->op->o;
    uint64_t need = (end - first) + 2 * VMFS_BLOCK_PIECES;
    bool sealed = false;
    for (int tries = 0; tries < 8; tries++) {
        bool own = false, data = false;
        int r = map_load_for(o, first, (uint32_t)(end - first), p->op->range.epoch, NULL);
        bool keeps = r == 0 && plan_keeps_all(p->op, first, end, atomic, &own, &data);
        if (r == 0 && !keeps && own && !atomic && !vcrc_kept(o->v) && !sealed) {
            r = room_here(o, need, p->op->range.epoch, false);
            sealed = r == -GR_ENOSPACE;
            if (sealed) { /* what is there can perhaps be overwritten where it lies: before others are asked for space */
                (void)journal_try_seal(o->v);
                continue;
            }
        } else if (r == 0 && !keeps)
            r = disk_room_for(o, need, p->op->range.epoch, own && vcrc_kept(o->v));
        else if (r == 0 && !data)
            r = disk_room_nodes(o, p->op->range.epoch);
        if (r == -GR_ENOSPACE && own && !atomic && !vcrc_kept(o->v) && journal_try_seal(o->v) == 0)
            continue; /* on a full volume what is there can still be overwritten */
        if (r < 0)
            return r;
        r = plan_make(p, first, end, atomic);
        int64_t growth = r == 0 ? plan_growth(p) : 0;
        if (r == 0 && quota_fits(o, growth)) {
            p->growth = growth > 0 ? (uint64_t)growth : 0;
            o->quota_pending += p->growth;
            return 0;
        }
        plan_drop(p);
        if (r == 0)
            r = quota_room(o, growth, p->op->range.epoch);
        if (r == -GR_ENOSPACE && own && !atomic && !vcrc_kept(o->v) && journal_try_seal(o->v) == 0)
            continue;
        if (r < 0 && r != -EAGAIN)
            return r;
    }
    return -GR_ENOSPACE;
}

/* ---- data ---- */
struct batch {
    struct gr_fiber *fiber;
    unsigned left;
    int status;
    bool waiting;
};
static void batch_done(struct gr_bio *bio)
{
    struct batch *b = bio->arg;
    if (bio->status < 0 && b->status == 0)
        b->status = bio->status;
    if (--b->left == 0 && b->waiting)
        gr_fiber_wake(b->fiber);
}

/* The data of all parts at once; @iov holds whole pieces from piece @first. */
static int plan_write(struct plan *p, uint64_t first, const struct iovec *iov, int iovcnt)
{
    struct vmfs *v = p->op->o->v;
    if (v->fenced) /* while room was made, perhaps: what was ours may be another host's by now */
        return -GR_EFENCED;
    struct gr_bio *bios = gr_zalloc((p->n + 1) * sizeof *bios);
    struct iovec *vec = gr_alloc((p->n + 1) * (size_t)(iovcnt + 1) * sizeof *vec);
    struct batch b = { .fiber = gr_fiber_self(), .left = 1 };
    if (!bios || !vec) {
        free(bios);
        free(vec);
        return -ENOMEM;
    }
    for (size_t i = 0; i < p->n; i++) {
        const struct part *x = &p->parts[i];
        struct gr_bio *k = &bios[i];
        if (x->reserve)
            continue;
        k->op = GR_OP_WRITE;
        k->flags = GR_BIO_ALONE; /* its record goes into a frame with those of others that end now: later it would be one of fewer */
        k->off = vmfs_addr_unit(x->addr) * VMFS_UNIT;
        k->len = (uint64_t)x->count * VMFS_UNIT;
        k->iov = vec + i * (size_t)(iovcnt + 1);
        k->iovcnt = gr_iov_slice(iov, iovcnt, (x->piece - first) * VMFS_PIECE, k->len, vec + i * (size_t)(iovcnt + 1));
        k->done = batch_done;
        k->arg = &b;
        b.left++;
        gr_submit(v->dev[vmfs_addr_dev(x->addr)].ch, k);
    }
    b.left--;
    while (b.left) {
        b.waiting = true;
        gr_fiber_suspend();
    }
    free(bios);
    free(vec);
    journal_data_written(p->op->o, b.status == 0 ? plan_devs(p) : 0);
    return b.status < 0 ? vloss_look(v, plan_devs(p), b.status) : 0; /* of one that is lost nothing is to be told to whoever had nothing there */
}

static void plan_undo(struct plan *p)
{
    plan_drop(p);
    p->op->o->quota_pending -= p->growth;
    p->growth = 0;
}

/* A plan, and for an encrypted disk a buffer of its bytes as they go to the device, from piece @first on: *ret (NULL: not encrypted). */
static int plan_sealed(struct plan *p, uint64_t first, uint64_t end, const struct iovec *iov, int iovcnt, bool atomic, uint8_t **ret)
{
    size_t len = (end - first) * VMFS_PIECE;
    int r = plan_room(p, first, end, atomic);
    *ret = NULL;
    while (r == 0 && p->op->o->cipher && !(*ret = vbounce_get(p->op->o->v, len))) {
        plan_undo(p); /* a plan is of one instant: what it does begins there */
        r = vbounce_wait(p->op->o->v, len, ret);
        if (r == 0) {
            vbounce_put(p->op->o->v, *ret, len);
            *ret = NULL;
            r = plan_room(p, first, end, atomic);
        }
    }
    const struct vcipher *c = p->op->o->cipher; /* as it is now: it may have got another key while we waited for room */
    int key = vkeys_locked(p->op->o) ? -ENOKEY : c ? vcipher_key(c, p->op->range.epoch) : 0;
    if (r == 0 && key < 0) {
        plan_undo(p);
        return key;
    }
    if (r < 0 || !*ret)
        return r;
    gr_iov_get(iov, iovcnt, 0, *ret, len);
    vcipher_encrypt_range(c, key, first * VMFS_PIECE, *ret, len);
    return 0;
}

/* The map is in memory, and there are still runs for what becomes dirty. */
static int map_and_runs(struct dop *op, uint64_t first, uint32_t n)
{
    struct vobj *o = op->o;
    struct vmfs *v = o->v;
    int r;
    while ((r = map_load_for(o, first, n, op->range.epoch, NULL)) == 0 && !v->fenced && !disk_nodes_fit(o))
        if ((r = disk_room_nodes(o, op->range.epoch)) < 0)
            break;
    return r;
}

int disk_planned(struct plan *p, uint64_t first, uint64_t end, const uint32_t *crc, bool atomic, int r)
{
    struct dop *op = p->op;
    if (r == 0)
        r = map_and_runs(op, first, (uint32_t)(end - first));
    if (r == 0 && op->o->v->fenced)
        r = -GR_EFENCED;
    if (r == 0)
        r = plan_record(p, first, crc, atomic);
    else
        plan_drop(p);
    op->o->quota_pending -= p->growth;
    return r;
}

/* Whole pieces. */
static int write_whole(struct dop *op, uint64_t first, uint64_t end, const struct iovec *iov, int iovcnt, bool atomic)
{
    struct plan p;
    struct vmfs *v = op->o->v;
    bool crcs = !atomic || vcrc_kept(v);
    struct iovec sealed = { NULL, (end - first) * VMFS_PIECE };
    uint8_t *buf = NULL;
    plan_begin(&p, op);
    int r = plan_sealed(&p, first, end, iov, iovcnt, atomic, &buf);
    if (buf) {
        sealed.iov_base = buf;
        iov = &sealed;
        iovcnt = 1;
    }
    bool planned = r == 0;
    uint32_t *crc = planned && crcs ? gr_alloc((end - first) * sizeof *crc) : NULL;
    if (planned && crcs && !crc)
        r = -ENOMEM;
    if (crc)
        vcrc_of(iov, iovcnt, end - first, crc);
    if (r == 0)
        r = plan_write(&p, first, iov, iovcnt);
    if (buf)
        vbounce_put(v, buf, sealed.iov_len);
    if (r == 0 && atomic) /* the data is durable before the record: nothing to doubt, so all of it or none */
        r = journal_flush(v, v->j.durable_seq);
    if (planned)
        r = disk_planned(&p, first, end, crc, atomic, r);
    plan_end(&p);
    free(crc);
    return r;
}

/* A write that begins or ends inside a piece is merged with what is there. */
int disk_write_pieces(struct dop *op, uint64_t off, uint64_t len, const struct iovec *iov, int iovcnt, bool atomic)
{
    uint64_t first = off / VMFS_PIECE, end = (off + len + VMFS_PIECE - 1) / VMFS_PIECE;
    size_t head = off % VMFS_PIECE, tail = end * VMFS_PIECE - (off + len);
    if (!head && !tail)
        return write_whole(op, first, end, iov, iovcnt, atomic);
    uint8_t *edge = vunits_alloc(2);
    struct iovec *vec = gr_alloc((size_t)(iovcnt + 2) * sizeof *vec);
    int n = 0, r = edge && vec ? 0 : -ENOMEM;
    uint8_t *tail_piece = end - first == 1 ? edge : edge + VMFS_UNIT;
    op->o->v->stats.merges++;
    if (r == 0 && (head || end - first == 1))
        r = tree_read_wait(op->o, &op->o->live, edge, VMFS_PIECE, first * VMFS_PIECE);
    if (r == 0 && tail && end - first > 1)
        r = tree_read_wait(op->o, &op->o->live, tail_piece, VMFS_PIECE, (end - 1) * VMFS_PIECE);
    if (r == 0) {
        if (head)
            vec[n++] = (struct iovec){ edge, head };
        n += gr_iov_slice(iov, iovcnt, 0, len, vec + n);
        if (tail)
            vec[n++] = (struct iovec){ tail_piece + VMFS_PIECE - tail, tail };
        r = write_whole(op, first, end, vec, n, atomic);
    }
    free(edge);
    free(vec);
    return r;
}

/* ---- compare and write ---- */
static int compare_write(struct dop *op)
{
    struct gr_bio *bio = op->bio;
    uint64_t first = op->range.first, n = op->range.end - first;
    uint8_t *now = vunits_alloc((uint32_t)n);
    int r = now ? 0 : -ENOMEM;
    if (r == 0)
        r = tree_read_wait(op->o, &op->o->live, now, n * VMFS_PIECE, first * VMFS_PIECE);
    if (r == 0) {
        size_t same = gr_iov_diff(bio->iov, bio->iovcnt, 0, now + bio->off % VMFS_PIECE, bio->len);
        if (same < bio->len) {
            bio->miscompare_off = same;
            r = -GR_EMISCOMPARE;
        }
    }
    free(now);
    if (r == 0)
        r = disk_write_pieces(op, bio->off, bio->len, bio->iov2, bio->iovcnt2, true);
    return r;
}

static void change_work(void *arg)
{
    struct dop *op = arg;
    struct gr_bio *bio = op->bio;
    int r = 0;
    journal_room_for(op);
    switch (bio->op) {
    case GR_OP_WRITE:
        r = disk_write_pieces(op, bio->off, bio->len, bio->iov, bio->iovcnt, bio->flags & GR_BIO_ATOMIC);
        break;
    case GR_OP_UNMAP:
    case GR_OP_WRITE_ZEROES:
        r = disk_clear(op);
        break;
    case GR_OP_COMPARE_WRITE:
        r = compare_write(op);
        break;
    case GR_OP_SCRUB:
        r = disk_scrub(op);
        break;
    case GR_OP_READ:
    case GR_OP_FLUSH:
    case GR_OP_EXTENTS:
    case GR_OP_COPY:
        r = -EOPNOTSUPP;
        break;
    }
    disk_op_finish(op, r, (bio->flags & GR_BIO_FUA) || bio->op == GR_OP_COMPARE_WRITE);
}

void disk_change_start(struct dop *op)
{
    int r = gr_fiber_start(op->o->v->loop, change_work, op);
    if (r < 0)
        disk_op_end(op, r);
}

/* ---- thick and eager ---- */
/* What a piece that has no unit becomes when it gets one. One that has become a hole tells by its birth that it changed then, which one that is reserved
 * does not: in the epoch of then it is zeroed, which tells the same; later it stays what it is (HOLE), as one that has a unit does. */
static enum vmfs_piece_state lacks(const struct mentry *e, unsigned i, uint64_t epoch)
{
    struct mpiece p = e ? ment_piece(e, i) : (struct mpiece){ .state = VMFS_P_HOLE };
    if (p.state != VMFS_P_HOLE || (p.birth && p.birth != epoch))
        return VMFS_P_HOLE;
    return p.birth ? VMFS_P_ZEROED : VMFS_P_RESERVED;
}

/* All of a block's pieces lack the same. */
static bool lacks_whole(const struct mentry *e, uint64_t epoch)
{
    enum vmfs_piece_state first = lacks(e, 0, epoch);
    bool whole = first != VMFS_P_HOLE;
    for (unsigned i = 1; whole && i < VMFS_BLOCK_PIECES; i++)
        whole = lacks(e, i, epoch) == first;
    return whole;
}

static int reserve_block(struct vobj *o, uint64_t piece, uint64_t epoch)
{
    struct vmfs *v = o->v;
    struct mnode *leaf;
    int r = disk_room(o, 2 * VMFS_BLOCK_PIECES, epoch);
    if (r == 0)
        r = quota_room(o, VMFS_BLOCK_PIECES, epoch);
    if (r == 0)
        r = map_load_for(o, piece, 1, epoch, NULL);
    if (r < 0)
        return r;
    if (v->fenced)
        return -GR_EFENCED;
    if (mtree_peek(&o->live, piece, &leaf) < 0 || !disk_nodes_fit(o))
        return -EAGAIN;
    const struct mentry *e = leaf ? &leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES] : NULL;
    uint64_t a = lacks_whole(e, epoch) ? space_take_block(v) : 0;
    if (a)
        return record_map(o, piece, VMFS_BLOCK_PIECES, a, epoch, lacks(e, 0, epoch), NULL);
    enum vmfs_piece_state state[VMFS_BLOCK_PIECES]; /* before the entry changes */
    for (unsigned i = 0; i < VMFS_BLOCK_PIECES; i++)
        state[i] = lacks(e, i, epoch);
    for (unsigned i = 0; r == 0 && i < VMFS_BLOCK_PIECES; i++) {
        if (state[i] == VMFS_P_HOLE)
            continue;
        a = space_take_piece(v);
        r = a ? record_map(o, piece + i, 1, a, epoch, state[i], NULL) : -GR_ENOSPACE;
    }
    return r;
}

int disk_reserve(struct vobj *o, uint64_t first, uint64_t end, uint64_t epoch)
{
    first -= first % VMFS_BLOCK_PIECES;
    end = (end + VMFS_BLOCK_PIECES - 1) / VMFS_BLOCK_PIECES * VMFS_BLOCK_PIECES;
    for (uint64_t piece = first; piece < end;) {
        if (piece % (64 * VMFS_BLOCK_PIECES) == 0)
            journal_room(o->v);
        int r = reserve_block(o, piece, epoch);
        if (r == -EAGAIN)
            continue;
        if (r < 0)
            return r;
        piece += VMFS_BLOCK_PIECES;
    }
    return 0;
}
