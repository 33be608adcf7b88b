/* What was cloned from what, by name: rows of disks and snapshots get "parent" and "clones". The volume knows it by numbers, and only clones know
 * their origin, so one walk over all disks of the datastore finds out. */
#include "common/buf.h"
#include "snapshot/service_int.h"
#include <stdio.h>
#include <string.h>

struct snap_origins {
    struct snap_ds *ds;
    json_t *paths;  /* {id: path} */
    json_t *clones; /* {"id/snapshot": [names]}, and {"id": the same of all its snapshots} */
};

struct key {
    char s[48];
};
static struct key key_of(uint64_t id, uint64_t snapshot)
{
    struct key k;
    snprintf(k.s, sizeof(k.s), snapshot ? "%llx/%llx" : "%llx", (unsigned long long)id, (unsigned long long)snapshot);
    return k;
}

static int note_clone(json_t *clones, struct key k, const char *name)
{
    json_t *a = json_object_get(clones, k.s);
    if (!a && json_object_set_new(clones, k.s, a = json_array()) < 0)
        return -ENOMEM;
    return json_array_append_new(a, json_string(name)) < 0 ? -ENOMEM : 0;
}

static int note_disk(void *arg, const char *path, const struct vmfs_stat *st)
{
    struct snap_origins *o = arg;
    if (st->type != VMFS_DISK)
        return SNAP_WALK_INTO;
    gr_auto_free char *name = gr_asprintf("%s/%s", o->ds->name, path);
    int r = name && json_object_set_new(o->paths, key_of(st->id, 0).s, json_string(path)) == 0 ? 0 : -ENOMEM;
    if (r == 0 && st->origin_id)
        r = note_clone(o->clones, key_of(st->origin_id, 0), name);
    if (r == 0 && st->origin_id)
        r = note_clone(o->clones, key_of(st->origin_id, st->origin_snapshot), name);
    return r;
}

void snap_origins_free(struct snap_origins *o)
{
    if (o) {
        json_decref(o->paths);
        json_decref(o->clones);
        free(o);
    }
}

int snap_origins_find(struct snap_ds *ds, struct snap_origins **ret, struct gr_err *err)
{
    struct snap_origins *o = gr_zalloc(sizeof(*o));
    if (!o)
        return gr_fail(err, -ENOMEM, "out of memory");
    *o = (struct snap_origins){.ds = ds, .paths = json_object(), .clones = json_object()};
    int r = snap_walk(ds, "", note_disk, o, err);
    if (r < 0) {
        snap_origins_free(o);
        return err && err->code ? r : gr_fail(err, r, "datastore '%s': %s", ds->name, gr_code_text(r));
    }
    *ret = o;
    return 0;
}

json_t *snap_origins_clones(const struct snap_origins *o, uint64_t id, uint64_t snapshot)
{
    json_t *a = json_object_get(o->clones, key_of(id, snapshot).s);
    return a ? json_incref(a) : json_array();
}

/* "DS/PATH@SNAPSHOT", also of what was deleted since. */
static void parent_set(const struct snap_origins *o, uint64_t id, uint64_t snapshot, json_t *row)
{
    struct vmfs_origin *from = gr_alloc(sizeof(*from));
    const char *path = json_string_value(json_object_get(o->paths, key_of(id, 0).s));
    if (from && vmfs_origin(o->ds->v, id, snapshot, from, NULL) == 0) {
        gr_auto_free char *text = gr_asprintf("%s/%s@%s", o->ds->name, path ? path : from->name, from->snapshot);
        if (text)
            json_object_set_new(row, "parent", json_string(text));
        json_object_set_new(row, "parent-deleted", json_boolean(from->removed || from->snapshot_removed));
    }
    free(from);
}

void snap_origins_row(const struct snap_origins *o, const struct vmfs_stat *st, json_t *row)
{
    json_object_set_new(row, "clones", snap_origins_clones(o, st->id, 0));
    if (st->origin_id)
        parent_set(o, st->origin_id, st->origin_snapshot, row);
}

/* ---- disks that were deleted and are kept ---- */
struct hidden {
    const struct snap_origins *o;
    json_t *a;
};

static int add_hidden(void *arg, const char *name, const struct vmfs_stat *st)
{
    struct hidden *h = arg;
    gr_auto_free char *disk = gr_asprintf("%s/%s", h->o->ds->name, name);
    json_t *row = disk ? json_pack("{s:s,s:I,s:I,s:I,s:b}", "disk", disk, "id", (json_int_t)st->id, "size", (json_int_t)st->size, "held",
                                   (json_int_t)st->used, "deleted", 1)
                       : NULL;
    if (row)
        snap_origins_row(h->o, st, row);
    return row && json_array_append_new(h->a, row) == 0 ? 0 : -ENOMEM;
}

int snap_list_deleted(struct snap_ds *ds, json_t *a, struct gr_err *err)
{
    struct snap_origins *o = NULL;
    int r = snap_origins_find(ds, &o, err);
    struct hidden h = {o, a};
    if (r == 0)
        r = vmfs_hidden(ds->v, add_hidden, &h, err);
    snap_origins_free(o);
    return r < 0 && err && !err->code ? gr_fail(err, r, "datastore '%s': %s", ds->name, gr_code_text(r)) : r;
}

/* Another host cannot finish the removal of an object, because what that needs is ours. */
static int op_resume(struct snap_op *op)
{
    struct snap_ds *ds = NULL;
    const char *name = NULL;
    uint64_t id = 0;
    int r = gr_json_str(op->params, "name", &name, op->err);
    if (r == 0)
        r = gr_json_opt_u64(op->params, "id", &id, op->err);
    if (r == 0)
        r = snap_ds_get(op->s, name, &ds, op->err);
    if (r < 0)
        return r;
    if (id)
        vmfs_resume_object(ds->v, id);
    else
        vmfs_resume(ds->v); /* asked by a host of an earlier release */
    snap_ds_put(ds);
    return 0;
}
SNAP_METHOD(op_resume, "datastore.resume")

#define TELL_TRIES 3u
void snap_tell_resume(void *arg, uint64_t id, unsigned slot)
{
    struct snap_ds *ds = arg;
    struct snap_place p = {0};
    struct gr_err err = {0};
    int r = -1;
    for (unsigned i = 0; r < 0 && i < TELL_TRIES && !ds->leaving; i++) {
        if (i)
            gr_fiber_sleep_ms(1000);
        r = snap_place_of_slot(ds, (int)slot, &p, &err);
        if (r == 0) { /* it has left, or is being recovered: then what it had can be had */
            gr_fiber_sleep_ms(1000);
            vmfs_resume_object(ds->v, id);
            return;
        }
        if (r == 1)
            r = snap_peer_ask(ds->svc, p.address, "datastore.resume", json_pack("{s:s,s:I}", "name", ds->name, "id", (json_int_t)id), SNAP_TELL_MS, NULL, &err);
    }
    if (r < 0)
        snap_warn(ds->svc, "datastore '%s': what was deleted is finished at the next start of host '%s': %s", ds->name, p.host, gr_err_text(&err, r));
}

const struct gr_rpc_method snap_origin_methods[] = {{"datastore.resume", rpc_op_resume}, {NULL, NULL}};
