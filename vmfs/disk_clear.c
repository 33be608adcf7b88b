/* Unmaps and zeroes: sequential code in a fiber, range already granted. */
#include "common/seam.h"
#include "vmfs/internal.h"

static int zero_range(struct dop *op, uint64_t off, uint64_t len)
{
    size_t chunk = GR_MIN(len, (uint64_t)1 << 20);
    uint8_t *zero = gr_zalloc(chunk);
    int r = zero ? 0 : -ENOMEM;
    while (r == 0 && len) {
        struct iovec iov = { zero, GR_MIN(len, (uint64_t)chunk) };
        journal_room_for(op);
        r = disk_write_pieces(op, off, iov.iov_len, &iov, 1, false);
        off += iov.iov_len;
        len -= iov.iov_len;
    }
    free(zero);
    return r;
}

/* Thick disks keep their space: a written piece becomes ZEROED, in its own unit when that is private, else in a new one. */
static int zero_keep(struct dop *op, uint64_t piece, const struct mpiece *m)
{
    struct vmfs *v = op->o->v;
    bool own = m->state == VMFS_P_DATA && m->birth == op->range.epoch && !space_leaving(v, m->addr);
    uint64_t addr = own ? m->addr : space_take_piece(v);
    if (!addr)
        return -EAGAIN;
    return record_map(op->o, piece, 1, addr, op->range.epoch, VMFS_P_ZEROED, NULL);
}

/* [sync] One leaf's part of a range becomes holes (thin) or zeroed (thick). */
static int leaf_clear(struct dop *op, uint64_t piece, uint64_t end, bool keep)
{
    struct vobj *o = op->o;
    struct mnode *leaf;
    uint64_t run = 0;
    int r = 0;
    if (mtree_peek(&o->live, piece, &leaf) < 0)
        return -EAGAIN;
    for (; leaf && r == 0 && piece < end; piece++) {
        if (mtree_peek(&o->live, piece, &leaf) < 0)
            return -EAGAIN;
        struct mpiece m = ment_piece(&leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES], (unsigned)(piece % VMFS_BLOCK_PIECES));
        if (keep) {
            if (m.state == VMFS_P_DATA)
                r = zero_keep(op, piece, &m);
        } else if (m.state != VMFS_P_HOLE) {
            run++;
        } else if (run) {
            r = record_map(o, piece - run, (uint32_t)run, 0, op->range.epoch, VMFS_P_HOLE, NULL);
            run = 0;
        }
    }
    if (r == 0 && run)
        r = record_map(o, end - run, (uint32_t)run, 0, op->range.epoch, VMFS_P_HOLE, NULL);
    return r;
}

static int clear_pieces(struct dop *op, uint64_t piece, uint64_t end, bool keep)
{
    struct vobj *o = op->o;
    while (piece < end) {
        uint64_t next;
        journal_room_for(op);
        int r = mtree_next(o, &o->live, piece, 0, &next, NULL);
        if (r < 0)
            return r;
        if (next >= end)
            return 0;
        piece = next;
        uint64_t stop = GR_MIN(end, (piece / VMFS_LEAF_PIECES + 1) * VMFS_LEAF_PIECES);
        r = keep ? disk_room(o, stop - piece + VMFS_BLOCK_PIECES, op->range.epoch) : disk_room_nodes(o, op->range.epoch);
        if (r < 0)
            return r;
        r = map_load_for(o, piece, 1, op->range.epoch, NULL);
        if (r == 0 && !o->v->fenced && ((!dop_late(op) && !journal_has_room(o->v)) || !disk_nodes_fit(o)))
            continue; /* others took it while we slept, and a leaf in splinters is a record for each piece */
        if (r == 0)
            r = o->v->fenced ? -GR_EFENCED : leaf_clear(op, piece, stop, keep);
        if (r == -EAGAIN)
            continue;
        if (r < 0)
            return r;
        piece = stop;
        gr_fiber_yield();
    }
    return 0;
}

int disk_clear_pieces(struct dop *op, uint64_t first, uint64_t end)
{
    return clear_pieces(op, first, end, false);
}

/* Whole pieces become holes (thin) or zeroed; what is less than a piece at the edges is written as zeros. */
int disk_clear(struct dop *op)
{
    struct gr_bio *bio = op->bio;
    bool keep = op->o->ino.provision != VMFS_THIN;
    uint64_t end = bio->off + bio->len;
    uint64_t first = (bio->off + VMFS_PIECE - 1) / VMFS_PIECE, last = end / VMFS_PIECE;
    if (end == op->o->ino.size)
        last = (end + VMFS_PIECE - 1) / VMFS_PIECE;
    op->o->v->stats.unmaps++;
    if (first >= last)
        return zero_range(op, bio->off, bio->len);
    int r = clear_pieces(op, first, last, keep);
    if (r == 0 && bio->off < first * VMFS_PIECE)
        r = zero_range(op, bio->off, first * VMFS_PIECE - bio->off);
    if (r == 0 && last * VMFS_PIECE < end)
        r = zero_range(op, last * VMFS_PIECE, end - last * VMFS_PIECE);
    return r;
}
