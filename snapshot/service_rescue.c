/* Method datastore.rescued {"name"}: what is left of a datastore that lost a device for good, and was joined for reading that. */
#include "common/seam.h"
#include "snapshot/service_int.h"

struct left {
    json_t *objects, *hosts;
    const struct snap_ds *ds;
    unsigned whole, behind, damaged, refused;
};

static const char *state_of(const struct vmfs_rescued *w)
{
    if (w->unreadable)
        return "lost";
    return !w->whole ? "damaged" : w->behind ? "behind" : "whole";
}

static int add_object(void *arg, const struct vmfs_rescued *w)
{
    static const char *const types[] = {[VMFS_DIR] = "folder", [VMFS_FILE] = "file", [VMFS_DISK] = "disk"};
    struct left *l = arg;
    gr_auto_free char *path = gr_asprintf("%s%s%s%s%s", l->ds->name, *w->path ? "/" : "", w->path, w->snapshot ? "@" : "", w->snapshot ? w->snapshot : "");
    json_t *row = path ? json_pack("{s:s,s:s,s:s,s:I,s:I,s:I,s:b,s:b,s:b}", "path", path, "type", w->snapshot ? "snapshot" : types[w->type], "state", state_of(w), "size",
                                   (json_int_t)w->size, "lost-data", (json_int_t)w->lost_data, "lost-map", (json_int_t)w->lost_map, "changes-lost", w->skipped, "refused", w->refused, "accepted", w->accepted)
                       : NULL;
    if (row && w->behind)
        json_object_set_new(row, "behind", json_string(w->behind));
    if (!row || json_array_append_new(l->objects, row) < 0)
        return -ENOMEM;
    l->whole += w->whole && !w->behind;
    l->behind += w->whole && w->behind;
    l->damaged += !w->whole;
    l->refused += w->refused;
    return 0;
}

static void add_host(void *arg, const char *host)
{
    json_array_append_new(arg, json_string(host));
}

static json_t *missing_row(const struct snap_ds *ds)
{
    struct vmfs_info info;
    json_t *a = json_array();
    vmfs_info(ds->v, &info);
    for (unsigned i = 0; a && i < VMFS_DEVICES_MAX; i++)
        if (info.missing >> i & 1)
            json_array_append_new(a, json_integer(i));
    return a;
}

int snap_op_rescued(struct snap_op *op)
{
    const char *name = NULL;
    struct snap_ds *ds = NULL;
    int r = gr_json_str(op->params, "name", &name, op->err);
    if (r == 0)
        r = snap_ds_get(op->s, name, &ds, op->err);
    if (r < 0)
        return r;
    struct left l = {.objects = json_array(), .hosts = json_array(), .ds = ds};
    r = l.objects && l.hosts ? vmfs_rescued(ds->v, add_object, &l, op->err) : -ENOMEM;
    if (r == -ENOMEM)
        gr_fail(op->err, r, "datastore '%s': out of memory", name);
    vmfs_rescued_hosts(ds->v, add_host, l.hosts);
    json_t *missing = r == 0 ? missing_row(ds) : NULL;
    snap_ds_put(ds);
    if (r < 0) {
        json_decref(l.objects);
        json_decref(l.hosts);
        return r;
    }
    return snap_op_result(op, json_pack("{s:s,s:o,s:o,s:i,s:i,s:i,s:i,s:o}", "name", name, "missing", missing, "hosts", l.hosts, "whole", (int)l.whole, "behind",
                                        (int)l.behind, "damaged", (int)l.damaged, "refused", (int)l.refused, "objects", l.objects));
}
