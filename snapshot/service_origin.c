/* What was cloned from what, by name: rows of disks and snapshots get "parent" and "clones". The volume knows it by numbers, and only clones know
 * their origin, so one walk over all disks of the datastore finds out. Of a single disk it ends when all is found: that it has none is known at once, and
 * where its origin is folders alone tell. */
#include "common/buf.h"
#include "snapshot/service_int.h"
#include <stdio.h>
#include <string.h>

struct snap_origins {
    struct snap_ds *ds;
    json_t *paths;  /* {id: path} */
    json_t *clones; /* {"id/snapshot": [names]}, and {"id": the same of all its snapshots} */
    json_t *parents; /* {"id/snapshot": {"parent","parent-deleted"}}, as they were needed */
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

struct snap_kin snap_kin_of(const struct vmfs_stat *st)
{
    return (struct snap_kin){st->id, st->origin_id, st->origin_snapshot, st->clones};
}

static int note_path(struct snap_origins *o, uint64_t id, const char *path)
{
    return json_object_set_new(o->paths, key_of(id, 0).s, json_string(path)) < 0 ? -ENOMEM : 0;
}

static int note_origin(struct snap_origins *o, const char *path, const struct vmfs_stat *st)
{
    gr_auto_free char *name = gr_asprintf("%s/%s", o->ds->name, path);
    int r = name ? note_clone(o->clones, key_of(st->origin_id, 0), name) : -ENOMEM;
    return r < 0 ? r : note_clone(o->clones, key_of(st->origin_id, st->origin_snapshot), name);
}

int snap_origins_note(struct snap_origins *o, const char *path, const struct vmfs_stat *st)
{
    int r = note_path(o, st->id, path);
    return r < 0 || !st->origin_id ? r : note_origin(o, path, st);
}

static int note_disk(void *arg, const char *path, const struct vmfs_stat *st)
{
    return st->type == VMFS_DISK ? snap_origins_note(arg, path, st) : SNAP_WALK_INTO;
}

void snap_origins_free(struct snap_origins *o)
{
    if (o) {
        json_decref(o->paths);
        json_decref(o->clones);
        json_decref(o->parents);
        free(o);
    }
}

int snap_origins_new(struct snap_ds *ds, struct snap_origins **ret, struct gr_err *err)
{
    struct snap_origins *o = gr_zalloc(sizeof(*o));
    if (o)
        *o = (struct snap_origins){.ds = ds, .paths = json_object(), .clones = json_object(), .parents = json_object()};
    if (!o || !o->paths || !o->clones || !o->parents) {
        snap_origins_free(o);
        return gr_fail(err, -ENOMEM, "out of memory");
    }
    *ret = o;
    return 0;
}

/* What walks found, or why not. */
static int found(struct snap_origins *o, int r, struct snap_origins **ret, struct gr_err *err)
{
    if (r == 0) {
        *ret = o;
        return 0;
    }
    const char *ds = o->ds->name;
    snap_origins_free(o);
    return err && err->code ? r : gr_fail(err, r, "datastore '%s': %s", ds, gr_code_text(r));
}

int snap_origins_find(struct snap_ds *ds, struct snap_origins **ret, struct gr_err *err)
{
    struct snap_origins *o = NULL;
    int r = snap_origins_new(ds, &o, err);
    return r < 0 ? r : found(o, snap_walk(ds, "", note_disk, o, err), ret, err);
}

struct seeking { /* clones of one disk */
    struct snap_origins *o;
    uint64_t id, left;
};

static int note_own(void *arg, const char *path, const struct vmfs_stat *st)
{
    struct seeking *k = arg;
    if (st->type != VMFS_DISK)
        return SNAP_WALK_INTO;
    int r = st->origin_id == k->id ? note_origin(k->o, path, st) : 0;
    if (r == 0 && st->origin_id == k->id)
        k->left--;
    return r < 0 ? r : k->left ? 0 : -ECANCELED;
}

int snap_origins_of(struct snap_ds *ds, const struct snap_kin *kin, struct snap_origins **ret, struct gr_err *err)
{
    struct snap_origins *o = NULL;
    char *path = NULL;
    int r = snap_origins_new(ds, &o, err);
    if (r < 0)
        return r;
    struct seeking k = {o, kin->id, kin->clones};
    if (kin->origin_id && vmfs_path_of(ds->v, kin->origin_id, &path, NULL) == 0)
        r = note_path(o, kin->origin_id, path);
    free(path);
    if (r == 0 && k.left && (r = snap_walk(ds, "", note_own, &k, err)) == -ECANCELED && !k.left)
        r = 0;
    return found(o, r, ret, err);
}

json_t *snap_origins_clones(const struct snap_origins *o, uint64_t id, uint64_t snapshot)
{
    json_t *a = json_object_get(o->clones, key_of(id, snapshot).s);
    return a ? json_incref(a) : json_array();
}

/* "DS/PATH@SNAPSHOT", also of what was deleted since. NULL: it cannot be told. */
static json_t *parent_of(const struct snap_origins *o, uint64_t id, uint64_t snapshot)
{
    struct key k = key_of(id, snapshot);
    json_t *known = json_object_get(o->parents, k.s);
    struct vmfs_origin *from = known ? NULL : gr_alloc(sizeof(*from));
    const char *path = json_string_value(json_object_get(o->paths, key_of(id, 0).s));
    if (from && vmfs_origin(o->ds->v, id, snapshot, from, NULL) == 0) {
        gr_auto_free char *text = gr_asprintf("%s/%s@%s", o->ds->name, path ? path : from->name, from->snapshot);
        known = text ? json_pack("{s:s,s:b}", "parent", text, "parent-deleted", from->removed || from->snapshot_removed) : NULL;
        if (json_object_set_new(o->parents, k.s, known) < 0)
            known = NULL;
    }
    free(from);
    return known;
}

void snap_origins_row(const struct snap_origins *o, const struct snap_kin *kin, json_t *row)
{
    json_object_set_new(row, "clones", snap_origins_clones(o, kin->id, 0));
    json_t *parent = kin->origin_id ? parent_of(o, kin->origin_id, kin->origin_snapshot) : NULL;
    if (parent)
        json_object_update(row, parent);
}

/* ---- disks that were deleted and are kept ---- */
struct hidden {
    const struct snap_origins *o;
    const char *below;
    json_t *a;
};

static int add_hidden(void *arg, const char *name, const struct vmfs_stat *st)
{
    struct hidden *h = arg;
    struct snap_kin kin = snap_kin_of(st);
    if (!snap_is_below(name, h->below))
        return 0;
    gr_auto_free char *disk = gr_asprintf("%s/%s", h->o->ds->name, name);
    json_t *row = disk ? json_pack("{s:s,s:I,s:I,s:I,s:b}", "disk", disk, "id", (json_int_t)st->id, "size", (json_int_t)st->size, "held",
                                   (json_int_t)st->used, "deleted", 1)
                       : NULL;
    if (row)
        snap_origins_row(h->o, &kin, row);
    return row && json_array_append_new(h->a, row) == 0 ? 0 : -ENOMEM;
}

int snap_list_deleted(struct snap_ds *ds, const char *below, json_t *a, struct gr_err *err)
{
    struct snap_origins *o = NULL;
    int r = snap_origins_find(ds, &o, err);
    struct hidden h = {o, below, a};
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
        if (ds->leaving) /* and its volume is taken away */
            break;
        r = snap_place_of_slot(ds, (int)slot, &p, &err);
        if (r == 0) { /* it has left, or is being recovered: then what it had can be had */
            gr_fiber_sleep_ms(1000);
            if (!ds->leaving)
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
