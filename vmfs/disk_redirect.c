/* The usual write that cannot go in place: whole pieces of one block, whose map is in memory and for which there is room at once. It needs no fiber and no
 * memory of its own: its data is on its way when this returns, its record is made when that has arrived, and one fiber writes the frame of all that
 * wait for it (journal_append_later). Whatever has to wait for something goes the long way (disk_write.c). */
#include "common/seam.h"
#include "vmfs/loss.h"

static bool usual(const struct dop *op)
{
    const struct gr_bio *bio = op->bio;
    const struct vmfs *v = op->v;
    return !(bio->flags & (GR_BIO_ATOMIC | GR_BIO_FUA)) && (bio->off | bio->len) % VMFS_PIECE == 0 && bio->iovcnt <= DOP_IOV / DOP_KIDS && !op->o->cipher &&
           op->range.first / VMFS_BLOCK_PIECES == (op->range.end - 1) / VMFS_BLOCK_PIECES && !v->ckpt_cleaning && journal_has_room(v);
}

/* Where its pieces go, if that can be said at once. */
static bool planned(struct dop *op)
{
    struct plan *p = &op->plan;
    struct vobj *o = op->o;
    uint64_t first = op->range.first, end = op->range.end;
    struct mnode *leaf;
    if (mtree_peek(&o->live, first, &leaf) < 0 || !disk_room_at_once(o, end - first + 2 * VMFS_BLOCK_PIECES))
        return false;
    plan_begin(p, op);
    if (plan_make(p, first, end, false) == 0 && p->n <= DOP_KIDS) {
        int64_t growth = plan_growth(p);
        if (quota_fits(o, growth)) {
            p->growth = growth > 0 ? (uint64_t)growth : 0;
            o->quota_pending += p->growth;
            return true;
        }
    }
    plan_drop(p);
    plan_end(p);
    return false;
}

static void appended(struct vappend *a, int status)
{
    disk_op_end(gr_container_of(a, struct dop, append), status);
}

/* (fiber) Data did not arrive, or the record has to wait for something. */
static void finish_work(void *arg)
{
    struct dop *op = arg;
    struct plan *p = &op->plan;
    int r = op->status < 0 ? vloss_look(op->v, op->devs, op->status) : 0; /* of a device that is lost nothing is to be told to whoever had nothing there */
    r = disk_planned(p, op->range.first, op->range.end, op->crc, false, r);
    plan_end(p);
    disk_op_finish(op, r, false);
}

/* The map is still in memory, and nothing has come that changes what has to be done. */
static bool record_at_once(const struct dop *op)
{
    struct mnode *leaf;
    return op->status == 0 && !op->v->fenced && !dop_late(op) && mtree_peek(&op->o->live, op->range.first, &leaf) == 0 && disk_nodes_fit(op->o);
}

static void data_put(struct dop *op)
{
    struct plan *p = &op->plan;
    int r;
    if (--op->kids)
        return;
    journal_data_written(op->o, op->status == 0 ? op->devs : 0);
    if (record_at_once(op)) {
        r = plan_record(p, op->range.first, op->crc, false);
    } else {
        if ((r = gr_fiber_start(op->v->loop, finish_work, op)) == 0)
            return;
        plan_drop(p);
    }
    op->o->quota_pending -= p->growth;
    plan_end(p);
    disk_op_leave(op);
    if (r < 0)
        disk_op_end(op, r);
    else
        journal_append_later(op->v, &op->append);
}

static void data_done(struct gr_bio *kid)
{
    struct dop *op = kid->arg;
    if (kid->status < 0 && op->status == 0)
        op->status = kid->status;
    data_put(op);
}

bool disk_redirect(struct dop *op)
{
    struct plan *p = &op->plan;
    const struct gr_bio *bio = op->bio;
    struct iovec *iov = op->iov_inline;
    if (!usual(op) || !planned(op))
        return false;
    ckpt_kick(op->v);
    op->append.done = appended;
    op->devs = plan_devs(p);
    op->kids = 1;
    vcrc_of(bio->iov, bio->iovcnt, op->range.end - op->range.first, op->crc);
    for (size_t i = 0, n = p->n; i < n; i++) {
        const struct part *x = &p->parts[i];
        struct gr_bio *k = &op->kid_inline[i];
        if (x->reserve)
            continue;
        uint64_t len = (uint64_t)x->count * VMFS_UNIT;
        *k = (struct gr_bio){ .op = GR_OP_WRITE, .flags = GR_BIO_ALONE, .off = vmfs_addr_unit(x->addr) * VMFS_UNIT, .len = len, .iov = iov, .done = data_done, .arg = op };
        k->iovcnt = gr_iov_slice(bio->iov, bio->iovcnt, (x->piece - op->range.first) * VMFS_PIECE, len, iov);
        iov += k->iovcnt;
        op->kids++;
        gr_submit(op->v->dev[vmfs_addr_dev(x->addr)].ch, k);
    }
    data_put(op);
    return true;
}
