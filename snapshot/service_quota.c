/* Methods datastore.quota, set-quota, recall-quota: how much the folders of a datastore may hold. */
#include "common/cleanup.h"
#include "snapshot/service_int.h"
#include <string.h>

struct unaware {
    char host[64];
};

static void note_unaware(void *arg, const struct vmfs_slot_info *i)
{
    struct unaware *u = arg;
    if (i->alive && !i->self && !i->address[0] && strcmp(i->state, "host") == 0)
        snprintf(u->host, sizeof(u->host), "%s", i->host_name);
}

int snap_quota_recall(void *arg, struct gr_err *err)
{
    struct snap_ds *ds = arg;
    struct unaware u = {0};
    int r = ds->v ? vmfs_slots(ds->v, note_unaware, &u, err) : gr_fail(err, -GR_ELOCKED, "datastore '%s' is being left", ds->name);
    if (r == 0)
        r = snap_ds_tell(ds, "datastore.recall-quota", json_pack("{s:s}", "name", ds->name), err);
    if (r > 0)
        return gr_prefix(err, -GR_ELOCKED, "datastore '%s': every host that has joined must know what folders may hold", ds->name);
    if (r == 0 && u.host[0])
        return gr_fail(err, -GR_ELOCKED, "datastore '%s': a command on host '%s' is at work there: try again when it has ended", ds->name, u.host);
    return r;
}

/* Another host needs what was granted to disks here and is not used, or sets a quota. */
static int op_recall(struct snap_op *op)
{
    struct snap_ds *ds = NULL;
    const char *name = NULL;
    int r = gr_json_str(op->params, "name", &name, op->err);
    if (r == 0)
        r = snap_ds_get(op->s, name, &ds, op->err);
    if (r < 0)
        return r;
    r = vmfs_quota_recall(ds->v, op->err);
    snap_ds_put(ds);
    return r;
}
SNAP_METHOD(op_recall, "datastore.recall-quota")

struct rows {
    const struct snap_ds *ds;
    const char *below; /* "": all */
    json_t *a;
};

static int add_row(void *arg, const struct vmfs_quota *q)
{
    struct rows *l = arg;
    size_t n = strlen(l->below);
    if (n && (strncmp(q->path, l->below, n) != 0 || (q->path[n] && q->path[n] != '/')))
        return 0;
    gr_auto_free char *folder = gr_asprintf("%s/%s", l->ds->name, q->path);
    json_t *row = folder ? json_pack("{s:s,s:I,s:I,s:I,s:I}", "folder", folder, "limit", (json_int_t)q->limit, "used", (json_int_t)q->used, "free",
                                     (json_int_t)(q->limit - GR_MIN(q->limit, q->used)), "granted", (json_int_t)q->granted)
                         : NULL;
    return row && json_array_append_new(l->a, row) == 0 ? 0 : -ENOMEM;
}

static int list(struct snap_op *op, struct snap_ds *ds, const char *below)
{
    snap_auto_json json_t *a = json_array();
    struct rows l = {ds, below, a};
    int r = a ? vmfs_quotas(ds->v, add_row, &l, op->err) : -ENOMEM;
    if (r == -ENOMEM)
        return gr_fail(op->err, r, "out of memory");
    return r < 0 ? r : snap_op_result(op, gr_take(a));
}

static int op_quota(struct snap_op *op)
{
    struct snap_path p;
    struct snap_ds *ds = NULL;
    int r = snap_op_path_ds(op, "path", SNAP_PATH_DIR, &p, &ds);
    if (r < 0)
        return r;
    r = list(op, ds, p.path);
    snap_ds_put(ds);
    return r;
}
SNAP_METHOD(op_quota, "datastore.quota")

static int op_set_quota(struct snap_op *op)
{
    struct snap_path p;
    struct snap_ds *ds = NULL;
    uint64_t size = 0;
    int r = snap_op_path(op, "path", SNAP_PATH_DIR, &p);
    if (r == 0)
        r = gr_json_u64(op->params, "size", &size, op->err);
    if (r == 0)
        r = snap_ds_get(op->s, p.ds, &ds, op->err);
    if (r < 0)
        return r;
    r = vmfs_quota_set(ds->v, p.path, size, op->err);
    if (r == 0)
        r = list(op, ds, p.path);
    snap_ds_put(ds);
    return r;
}
SNAP_METHOD(op_set_quota, "datastore.set-quota")

const struct gr_rpc_method snap_quota_methods[] = {
    {"datastore.quota", rpc_op_quota, true},
    {"datastore.set-quota", rpc_op_set_quota},
    {"datastore.recall-quota", rpc_op_recall},
    {NULL, NULL},
};
