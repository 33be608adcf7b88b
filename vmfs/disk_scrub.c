/* What a disk holds, overwritten where it lies: before it is given back or written anew, so that nothing of it is left on the device. */
#include "vmfs/internal.h"

#define SCRUB_PIECES 256u /* looked at, and written, at once */

/* Only its own: what a snapshot or the origin of a clone needs too must not change. */
static int alone(const struct dop *op)
{
    return dop_late(op) || op->o->n_snaps || op->o->origin_object ? -EBUSY : op->o->v->fenced ? -GR_EFENCED : 0;
}

/* [sync] Where pieces [piece, end) of one leaf lie, whatever their state. -EAGAIN: written after the seal, too new to be overwritten
 * there: recovery would take it for torn. */
static int places(const struct dop *op, uint64_t piece, uint64_t end, struct vmfs_run *runs, unsigned *ret_n)
{
    struct mnode *leaf;
    unsigned n = 0;
    for (; piece < end; piece++) {
        if (mtree_peek(&op->o->live, piece, &leaf) < 0)
            return -EAGAIN;
        if (!leaf)
            continue;
        const struct mentry *e = &leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES];
        struct mpiece m = ment_piece(e, (unsigned)(piece % VMFS_BLOCK_PIECES));
        if (m.state == VMFS_P_HOLE)
            continue;
        if (e->seq > op->o->v->j.sealed_seq)
            return -EAGAIN;
        if (space_leaving(op->o->v, m.addr))
            return -EBUSY; /* it is being copied to another device */
        if (op->o->copied && space_shared(op->o->v, m.addr) != 0)
            return -EBUSY;
        if (n && runs[n - 1].addr + runs[n - 1].units == m.addr)
            runs[n - 1].units++;
        else
            runs[n++] = (struct vmfs_run){ m.addr, 1 };
    }
    *ret_n = n;
    return 0;
}

static uint32_t runs_devs(const struct vmfs_run *runs, unsigned n)
{
    uint32_t devs = 0;
    for (unsigned i = 0; i < n; i++)
        devs |= (uint32_t)1 << vmfs_addr_dev(runs[i].addr);
    return devs;
}

int disk_scrub(struct dop *op)
{
    struct vmfs *v = op->o->v;
    uint64_t piece = op->range.first;
    struct vmfs_run *runs = gr_alloc(SCRUB_PIECES * sizeof *runs);
    uint8_t *zero = vunits_alloc(SCRUB_PIECES);
    int r = runs && zero ? 0 : -ENOMEM;
    while (r == 0 && piece < op->range.end) {
        uint64_t end = GR_MIN(op->range.end, piece - piece % SCRUB_PIECES + SCRUB_PIECES);
        unsigned n = 0;
        r = mtree_load(op->o, &op->o->live, piece, NULL);
        if (r == 0)
            r = alone(op);
        if (r == 0)
            r = places(op, piece, end, runs, &n);
        for (unsigned i = 0; r == 0 && i < n; i++)
            r = vdev_write(v, runs[i].addr, (uint32_t)runs[i].units, zero, 0);
        if (n)
            journal_data_written(op->o, runs_devs(runs, n));
        piece = end;
    }
    /* Before the map may let go of them: or a power cut keeps the records and loses the zeros, and nobody knows these units any more. */
    if (r == 0)
        r = journal_flush(v, 0);
    free(runs);
    free(zero);
    return r;
}
