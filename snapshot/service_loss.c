/* Method datastore.accept-loss {"path"}: a disk or file that lost writes with a device is used again; on a datastore that is being rescued: it is shown. */
#include "common/seam.h"
#include "snapshot/service_int.h"

/* Here, or the owner is asked; one that is gone is recovered. */
static int open_here(struct snap_op *op, struct snap_ds *ds, const char *path, struct vmfs_disk **ret)
{
    int r = -EAGAIN;
    for (unsigned tries = 0; r == -EAGAIN && tries < 10; tries++) {
        int slot = -1;
        r = vmfs_open(ds->v, path, ret, &slot, op->err);
        if (r != -GR_ELOCKED || slot < 0)
            return r;
        int living = snap_owner_of(ds, path, &op->owner, op->err);
        if (living == 1) {
            op->forward = op->owner.address[0];
            return gr_fail(op->err, -GR_ELOCKED, "'%s/%s' is in use by host '%s'", ds->name, path, op->owner.host);
        }
        living = living < 0 ? living : vmfs_recover_slot(ds->v, (unsigned)slot, op->err);
        r = living < 0 ? living : -EAGAIN;
    }
    return r == -EAGAIN ? gr_fail(op->err, -GR_ELOCKED, "'%s/%s' changes hands all the time", ds->name, path) : r;
}

/* Nothing is written to what is rescued, so this home remembers it. */
static int remember(struct snap_op *op, struct snap_ds *ds, uint64_t id)
{
    if (!ds->rescue)
        return 0;
    gr_fmutex_lock(&op->s->lock);
    int r = snap_ds_accept(ds, id);
    r = r < 0 ? gr_fail(op->err, r, "out of memory") : snap_registry_save(op->s, op->err);
    gr_fmutex_unlock(&op->s->lock);
    return r;
}

int snap_op_accept_loss(struct snap_op *op)
{
    struct snap_path p;
    struct snap_ds *ds = NULL;
    struct vmfs_disk *d = NULL;
    struct vmfs_stat st;
    int r = snap_op_path_ds(op, "path", SNAP_PATH_DISK, &p, &ds);
    if (r < 0)
        return r;
    r = open_here(op, ds, p.path, &d);
    if (r == 0) {
        r = vmfs_accept_loss(d, op->err);
        vmfs_disk_stat(d, &st);
        if (r == 0)
            r = remember(op, ds, st.id);
        vmfs_close(d);
        (void)vmfs_release(ds->v, p.path, NULL); /* unless it is in use here */
    }
    bool rescued = ds->rescue;
    snap_ds_put(ds);
    return r < 0 ? r : snap_op_result(op, json_pack("{s:s++,s:s,s:b,s:b}", "path", p.ds, "/", p.path, "type", st.type == VMFS_DISK ? "disk" : "file", "lost-writes", 0, "rescued", rescued));
}
