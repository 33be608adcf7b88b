/* Method datastore.recall-regions: a host that finds no space asks the others for what they lease and do not need. */
#include "snapshot/service_int.h"

int snap_regions_recall(void *arg, struct gr_err *err)
{
    struct snap_ds *ds = arg;
    int r = snap_ds_tell(ds, "datastore.recall-regions", json_pack("{s:s}", "name", ds->name), err);
    return r > 0 ? -GR_ELOCKED : r;
}

static int op_recall(struct snap_op *op)
{
    struct snap_ds *ds = NULL;
    int r = snap_op_ds(op, &ds);
    if (r < 0)
        return r;
    r = vmfs_regions_recall(ds->v, op->err);
    snap_ds_put(ds);
    return r;
}
SNAP_METHOD(op_recall, "datastore.recall-regions")

const struct gr_rpc_method snap_region_methods[] = {
    {"datastore.recall-regions", rpc_op_recall, true},
    {NULL, NULL},
};
