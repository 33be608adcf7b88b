/* Writes that cannot go in place, compare-and-write: sequential code in a fiber, range already granted. */
#include "common/seam.h"
#include "vmfs/broken.h"
#include "vmfs/loss.h"
#include "vmfs/pool.h"

/* What becomes of a run of pieces. */
struct part {
    uint64_t piece, addr;
    uint32_t count;
    bool in_place; /* data only: no record */
    bool reserve;  /* the rest of a new block: record RESERVED, no data */
    bool own_unit; /* the piece's own reserved unit: nothing was taken for it */
};
struct plan {
    struct dop *op;
    struct part *parts;
    size_t n, cap;
    uint64_t growth; /* of what the disk holds, while it is under way */
};

static int part_add(struct plan *p, struct part x)
{
    struct part *last = p->n ? &p->parts[p->n - 1] : NULL;
    struct vmfs *v = p->op->o->v;
    if (last && space_region_index(v, last->addr) != space_region_index(v, x.addr))
        last = NULL; /* one record changes the bits of one region */
    if (last && !x.reserve && !last->reserve && last->in_place == x.in_place && last->own_unit == x.own_unit && last->addr + last->count == x.addr &&
        last->piece + last->count == x.piece && x.piece % VMFS_LEAF_PIECES) {
        last->count += x.count;
        return 0;
    }
    if (p->n == p->cap) {
        size_t cap = p->cap ? p->cap * 2 : 16;
        struct part *a = gr_realloc(p->parts, cap * sizeof *a);
        if (!a)
            return -ENOMEM;
        p->parts = a;
        p->cap = cap;
    }
    p->parts[p->n++] = x;
    return 0;
}

static void plan_drop(struct plan *p)
{
    for (size_t i = 0; i < p->n; i++)
        if (!p->parts[i].in_place && !p->parts[i].own_unit && !p->parts[i].reserve)
            space_unreserve(p->op->o->v, p->parts[i].addr, p->parts[i].count);
        else if (p->parts[i].reserve)
            space_unreserve(p->op->o->v, p->parts[i].addr, VMFS_BLOCK_PIECES);
}

/* Kept back from @o: what was promised to others, and what metadata needs. */
static uint64_t kept_back(const struct vobj *o, bool replaces)
{
    const struct vmfs *v = o->v;
    uint64_t base = space_meta_base(v);
    if (o->reserved_units || replaces)
        base /= 2; /* what was promised is kept, though the units asked for are rounded up */
    return base + (v->reserved_leaves - o->reserved_leaves) * leaf_units_max(v);
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

/* Does the piece lie where the write may overwrite it, or has a reserved unit of its own? */
static bool keeps_place(const struct dop *op, const struct mentry *e, const struct mpiece *m, bool atomic)
{
    if ((m->birth != op->range.epoch && !VMFS_BROKEN(IN_PLACE)) || (m->state != VMFS_P_HOLE && space_leaving(op->o->v, m->addr)))
        return false;
    return m->state == VMFS_P_RESERVED || (m->state == VMFS_P_DATA && !atomic && (!vcrc_kept(op->o->v) || VMFS_BROKEN(IN_PLACE)) && e->seq <= op->o->v->j.sealed_seq);
}

/* New place for pieces [piece, piece+n) of one block. */
static int plan_new(struct plan *p, const struct mentry *e, uint64_t piece, uint32_t n)
{
    struct vmfs *v = p->op->o->v;
    bool never_written = !e || (!e->px && !e->addr);
    if (n == VMFS_BLOCK_PIECES || never_written) {
        uint64_t a = space_take_block(v);
        if (a) {
            uint64_t block = piece - piece % VMFS_BLOCK_PIECES;
            if (n < VMFS_BLOCK_PIECES) {
                int r = part_add(p, (struct part){ .piece = block, .addr = a, .count = VMFS_BLOCK_PIECES, .reserve = true });
                if (r < 0) {
                    space_unreserve(v, a, VMFS_BLOCK_PIECES);
                    return r;
                }
            }
            return part_add(p, (struct part){ .piece = piece, .addr = a + (piece - block), .count = n, .own_unit = n < VMFS_BLOCK_PIECES });
        }
    }
    v->stats.splits += !never_written;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t a = space_take_piece(v);
        int r = a ? part_add(p, (struct part){ .piece = piece + i, .addr = a, .count = 1 }) : -EAGAIN;
        if (r < 0) {
            if (a)
                space_unreserve(v, a, 1);
            return r;
        }
    }
    return 0;
}

/* [sync] Decide for every piece of [first, end); the live tree is in memory there. -EAGAIN: space ran out under us. */
static int plan_make(struct plan *p, uint64_t first, uint64_t end, bool atomic)
{
    struct vobj *o = p->op->o;
    for (uint64_t piece = first; piece < end;) {
        struct mnode *leaf;
        if (mtree_peek(&o->live, piece, &leaf) < 0)
            return -EAGAIN;
        const struct mentry *e = leaf ? &leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES] : NULL;
        uint64_t block_end = GR_MIN(end, piece - piece % VMFS_BLOCK_PIECES + VMFS_BLOCK_PIECES);
        uint32_t n = 0;
        while (e && piece + n < block_end) { /* a leading stretch that keeps its place */
            struct mpiece m = ment_piece(e, (unsigned)((piece + n) % VMFS_BLOCK_PIECES));
            if (!keeps_place(p->op, e, &m, atomic))
                break;
            bool data = m.state == VMFS_P_DATA;
            int r = part_add(p, (struct part){ .piece = piece + n, .addr = m.addr, .count = 1, .in_place = data, .own_unit = !data });
            if (r < 0)
                return r;
            n++;
        }
        uint32_t from = n;
        while (piece + n < block_end) {
            struct mpiece m = { 0 };
            if (e)
                m = ment_piece(e, (unsigned)((piece + n) % VMFS_BLOCK_PIECES));
            if (e && keeps_place(p->op, e, &m, atomic))
                break;
            n++;
        }
        if (n > from) {
            int r = plan_new(p, e, piece + from, n - from);
            if (r < 0)
                return r;
        }
        piece += n;
    }
    return 0;
}

/* [sync] Does every piece keep its place? Then no space is taken. *ret_own: the others have data that is this epoch's own. *ret_data: all are data,
 * and the map stays as it is. */
static bool keeps_all(const struct dop *op, uint64_t first, uint64_t end, bool atomic, bool *ret_own, bool *ret_data)
{
    bool all = true;
    *ret_own = *ret_data = true;
    for (uint64_t piece = first; piece < end && *ret_own; piece++) {
        struct mnode *leaf;
        const struct mentry *e = NULL;
        struct mpiece m = { 0 };
        if (mtree_peek(&op->o->live, piece, &leaf) == 0 && leaf) {
            e = &leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES];
            m = ment_piece(e, (unsigned)(piece % VMFS_BLOCK_PIECES));
        }
        *ret_data &= m.state == VMFS_P_DATA;
        if (e && keeps_place(op, e, &m, atomic))
            continue;
        all = false;
        *ret_own = e && m.state == VMFS_P_DATA && m.birth == op->range.epoch;
    }
    return all;
}

/* [sync] So many units more than now will the disk hold. */
static int64_t plan_growth(const struct plan *p)
{
    struct vobj *o = p->op->o;
    int64_t taken = 0, replaced = 0;
    for (size_t i = 0; i < p->n; i++) {
        const struct part *x = &p->parts[i];
        if (x->in_place || x->own_unit)
            continue;
        taken += x->count;
        for (uint32_t k = 0; k < x->count && !x->reserve; k++) {
            struct mnode *leaf;
            uint64_t piece = x->piece + k;
            if (mtree_peek(&o->live, piece, &leaf) < 0 || !leaf)
                continue;
            struct mpiece m = ment_piece(&leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES], (unsigned)(piece % VMFS_BLOCK_PIECES));
            replaced += m.state != VMFS_P_HOLE && !held_by_ancestors(o, o->parent_snap, m.birth, piece + 1);
        }
    }
    int64_t more = taken - replaced;
    return more > 0 ? more - (int64_t)GR_MIN((uint64_t)more, o->reserved_units) : more;
}

static int plan_room(struct plan *p, uint64_t first, uint64_t end, bool atomic)
{
    struct vobj *o = p->op->o;
    uint64_t need = (end - first) + 2 * VMFS_BLOCK_PIECES;
    bool sealed = false;
    for (int tries = 0; tries < 8; tries++) {
        bool own = false, data = false;
        int r = map_load_for(o, first, (uint32_t)(end - first), p->op->range.epoch, NULL);
        bool keeps = r == 0 && keeps_all(p->op, first, end, atomic, &own, &data);
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
        p->n = 0;
        r = plan_make(p, first, end, atomic);
        int64_t growth = r == 0 ? plan_growth(p) : 0;
        if (r == 0 && quota_fits(o, growth)) {
            p->growth = growth > 0 ? (uint64_t)growth : 0;
            o->quota_pending += p->growth;
            return 0;
        }
        plan_drop(p);
        p->n = 0;
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

/* Devices that data of the plan goes to, a bit each. */
static uint32_t plan_devs(const struct plan *p)
{
    uint32_t devs = 0;
    for (size_t i = 0; i < p->n; i++)
        devs |= p->parts[i].reserve ? 0 : (uint32_t)1 << vmfs_addr_dev(p->parts[i].addr);
    return devs;
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

/* ---- records ---- */
static bool block_empty(struct vobj *o, uint64_t piece)
{
    struct mnode *leaf;
    if (mtree_peek(&o->live, piece, &leaf) < 0 || !leaf)
        return true;
    const struct mentry *e = &leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES];
    return !e->px && !e->addr;
}

static int plan_record(struct plan *p, uint64_t first, const uint32_t *crc, bool durable)
{
    struct dop *op = p->op;
    int r = 0;
    for (size_t i = 0; r == 0 && i < p->n; i++) {
        const struct part *x = &p->parts[i];
        if (x->in_place)
            continue;
        op->o->v->stats.writes_redirected++;
        if (x->reserve && !block_empty(op->o, x->piece)) {
            space_unreserve(op->o->v, x->addr, x->count); /* a neighbour gave the block its run meanwhile: our pieces stand alone */
            continue;
        }
        const uint32_t *its = crc && !x->reserve ? crc + (x->piece - first) : NULL;
        if (x->reserve)
            r = record_map(op->o, x->piece, x->count, x->addr, op->range.epoch, VMFS_P_RESERVED, NULL);
        else if (durable)
            r = record_durable(op->o, x->piece, x->count, x->addr, op->range.epoch, its);
        else
            r = record_map(op->o, x->piece, x->count, x->addr, op->range.epoch, VMFS_P_DATA, its);
    }
    return r;
}

/* A plan, and for an encrypted disk a buffer of its bytes as they go to the device, from piece @first on: *ret (NULL: not encrypted). */
static int plan_sealed(struct plan *p, uint64_t first, uint64_t end, const struct iovec *iov, int iovcnt, bool atomic, uint8_t **ret)
{
    const struct vcipher *c = p->op->o->cipher;
    size_t len = (end - first) * VMFS_PIECE;
    int r = plan_room(p, first, end, atomic);
    *ret = NULL;
    while (r == 0 && c && !(*ret = vbounce_get(p->op->o->v, len))) {
        plan_drop(p); /* a plan is of one instant: what it does begins there */
        p->n = 0;
        r = vbounce_wait(p->op->o->v, len, ret);
        if (r == 0) {
            vbounce_put(p->op->o->v, *ret, len);
            *ret = NULL;
            r = plan_room(p, first, end, atomic);
        }
    }
    if (*ret) {
        gr_iov_get(iov, iovcnt, 0, *ret, len);
        vcipher_encrypt_range(c, vcipher_key(c, p->op->range.epoch), first * VMFS_PIECE, *ret, len);
    }
    return r;
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

/* Whole pieces. */
static int write_whole(struct dop *op, uint64_t first, uint64_t end, const struct iovec *iov, int iovcnt, bool atomic)
{
    struct plan p = { .op = op };
    struct vmfs *v = op->o->v;
    bool crcs = !atomic || vcrc_kept(v);
    struct iovec sealed = { NULL, (end - first) * VMFS_PIECE };
    uint8_t *buf = NULL;
    int r = plan_sealed(&p, first, end, iov, iovcnt, atomic, &buf);
    if (buf) {
        sealed.iov_base = buf;
        iov = &sealed;
        iovcnt = 1;
    }
    uint32_t *crc = r == 0 && crcs ? vcrc_of(iov, iovcnt, end - first) : NULL;
    if (r == 0 && crcs && !crc) {
        plan_drop(&p);
        r = -ENOMEM;
    }
    bool planned = r == 0;
    if (planned)
        r = plan_write(&p, first, iov, iovcnt);
    if (buf)
        vbounce_put(v, buf, sealed.iov_len);
    if (planned) {
        if (r == 0 && atomic) /* the data is durable before the record: nothing to doubt, so all of it or none */
            r = journal_flush(v, v->j.durable_seq);
        if (r == 0)
            r = map_and_runs(op, first, (uint32_t)(end - first));
        if (r == 0 && v->fenced)
            r = -GR_EFENCED;
        if (r == 0)
            r = plan_record(&p, first, crc, atomic);
        else
            plan_drop(&p);
        op->o->quota_pending -= p.growth;
    }
    free(p.parts);
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
    if (e && (e->px || e->addr))
        return 0;
    uint64_t a = space_take_block(v);
    if (a)
        return record_map(o, piece, VMFS_BLOCK_PIECES, a, epoch, VMFS_P_RESERVED, NULL);
    for (unsigned i = 0; r == 0 && i < VMFS_BLOCK_PIECES; i++) {
        a = space_take_piece(v);
        r = a ? record_map(o, piece + i, 1, a, epoch, VMFS_P_RESERVED, NULL) : -GR_ENOSPACE;
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
