/* The storage service: requests, forwarding, and what the daemons ask for. Datastores: service_ds.c. */
#include "snapshot/service_int.h"
#include <stdio.h>
#include <string.h>

void snap_note(struct snap_svc *s, enum gr_log_level level, const char *fmt, ...)
{
    char text[GR_ERR_TEXT];
    va_list ap;
    if (!s->o.hooks.note)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    s->o.hooks.note(s->o.hooks.arg, level, text);
}

int snap_svc_new(const struct snap_svc_opts *opts, struct snap_svc **ret, struct gr_err *err)
{
    struct snap_svc *s = gr_zalloc(sizeof(*s));
    if (!s)
        return gr_fail(err, -ENOMEM, "storage service: out of memory");
    s->o = *opts;
    s->address = gr_strdup(opts->address ? opts->address : "");
    s->o.address = s->address;
    int r = s->address ? snap_registry_load(s, err) : gr_fail(err, -ENOMEM, "storage service: out of memory");
    if (r < 0) {
        while (s->list)
            snap_ds_remove(s, s->list);
        free(s->address);
        free(s);
        return r;
    }
    *ret = s;
    return 0;
}

void snap_svc_free(struct snap_svc *s)
{
    if (!s)
        return;
    mnt_end_all(s);
    s->ending = true;
    gr_fqueue_wake_all(&s->wake);
    while (s->rejoining || s->parts)
        gr_fqueue_wait(&s->wake);
    gr_fmutex_lock(&s->lock);
    while (s->list) {
        struct gr_err err = {0};
        if (s->list->v && !s->address[0])
            (void)vmfs_settle(s->list->v, SNAP_TIDY_MS);
        if (s->list->v && snap_ds_leave(s, s->list, false, &err) < 0)
            snap_warn(s, "datastore '%s': not left in order: %s", s->list->name, err.text);
        snap_ds_remove(s, s->list);
    }
    gr_fmutex_unlock(&s->lock);
    snap_link_end(s);
    free(s->address);
    free(s);
}

/* ---- requests ---- */
static int owner_connect(struct snap_op *op, struct gr_rpc_client **ret)
{
    int r = snap_peer_connect(op->s, op->owner.address, ret, op->err);
    return r < 0 ? gr_fail(op->err, -GR_ELOCKED, "owned by host '%s', whose storage service does not answer at %s: %s", op->owner.host, op->owner.address,
                           gr_code_text(r)) : 0;
}

int snap_op_forward(struct snap_op *op, const char *method)
{
    struct gr_rpc_client *peer = NULL;
    int r = owner_connect(op, &peer);
    if (r < 0)
        return r;
    json_t *params = json_copy(op->params);
    if (!params || json_object_set_new(params, "forwarded", json_true()) < 0) {
        json_decref(params);
        gr_rpc_client_free(peer);
        return gr_fail(op->err, -ENOMEM, "%s: out of memory", method);
    }
    r = gr_rpc_pass_on(peer, op->call, method, params, op->ret, op->err);
    gr_rpc_client_free(peer);
    return r;
}

int snap_op_run(void *arg, struct gr_rpc_call *call, const char *method, snap_op_fn fn, json_t *params, json_t **ret, struct gr_err *err)
{
    struct gr_err scratch = {0};
    struct snap_op op = {.s = arg, .call = call, .method = method, .params = params, .ret = ret, .err = err ? err : &scratch};
    if (!json_is_object(params))
        return gr_fail(op.err, -EINVAL, "%s: its parameters must be one object", method);
    int r = fn(&op);
    if (r != -GR_ELOCKED || !op.forward || json_is_true(json_object_get(params, "forwarded")))
        return r;
    r = snap_op_forward(&op, op.forward_as ? op.forward_as : method);
    if (op.forward_as && (r == -EOPNOTSUPP || r == -GR_EAUTH))
        r = gr_fail(op.err, -GR_EVERSION, "host '%s' runs a release of Granary that does not know %s, and would do more than is asked for: upgrade it", op.owner.host, op.forward_as);
    return r;
}

int snap_op_sub(struct snap_op *op, snap_op_fn fn, const char *method, json_t *params, json_t **ret, struct gr_err *err)
{
    struct snap_op one = {.s = op->s, .call = op->call, .method = method, .params = params, .ret = ret, .err = err};
    int r = params ? fn(&one) : gr_fail(err, -ENOMEM, "out of memory");
    struct gr_rpc_client *peer = NULL;
    if (r == -GR_ELOCKED && one.forward && (r = owner_connect(&one, &peer)) == 0)
        r = gr_rpc_call(peer, method, json_incref(params), NULL, NULL, SNAP_SUB_MS, ret, err);
    gr_rpc_client_free(peer);
    json_decref(params);
    return r;
}

int snap_op_path(struct snap_op *op, const char *key, enum snap_path_kind kind, struct snap_path *ret)
{
    const char *text = NULL;
    int r = gr_json_str(op->params, key, &text, op->err);
    return r < 0 ? r : snap_path_parse(text, kind, ret, op->err);
}

int snap_op_path_ds(struct snap_op *op, const char *key, enum snap_path_kind kind, struct snap_path *ret, struct snap_ds **ret_ds)
{
    int r = snap_op_path(op, key, kind, ret);
    return r < 0 ? r : snap_ds_get(op->s, ret->ds, ret_ds, op->err);
}

int snap_op_name(struct snap_op *op, const char *key, const char **ret)
{
    const char *text = NULL;
    int r = gr_json_str(op->params, key, &text, op->err);
    if (r == 0)
        r = snap_name_check(text, op->err);
    if (r == 0)
        *ret = text;
    return r;
}

int snap_op_result(struct snap_op *op, json_t *o)
{
    if (!o)
        return gr_fail(op->err, -ENOMEM, "out of memory for the answer");
    *op->ret = o;
    return 0;
}

int snap_svc_serve(struct snap_svc *s, struct gr_rpc_server *server)
{
    const struct gr_rpc_method *const tables[] = {snap_datastore_methods, snap_disk_methods, snap_snapshot_methods, snap_file_methods,
                                                  snap_stream_methods, snap_move_methods, snap_group_methods, snap_key_methods, snap_fs_methods, snap_quota_methods,
                                                  snap_region_methods,
                                                  snap_origin_methods, snap_clone_methods, snap_policy_methods, snap_prune_methods, snap_defragment_methods};
    int r = 0;
    for (size_t i = 0; i < GR_ARRAY_LEN(tables) && r == 0; i++)
        r = gr_rpc_server_add(server, tables[i], s);
    if (r == 0)
        snap_link_serve(s, server);
    return r;
}

/* ---- what daemons ask ---- */
int snap_svc_join_all(struct snap_svc *s, struct gr_err *err)
{
    int failed = 0;
    for (struct snap_ds *ds = s->list; ds; ds = ds->next) {
        struct gr_err e = {0};
        struct snap_ds *got = NULL;
        if (snap_ds_get(s, ds->name, &got, &e) < 0) {
            snap_warn(s, "datastore '%s' is not joined: %s", ds->name, e.text);
            failed++;
        } else {
            snap_ds_put(got);
        }
    }
    return failed;
}

int snap_svc_set_portal(struct snap_svc *s, const char *portal, struct gr_err *err)
{
    int first = 0;
    snprintf(s->portal, sizeof(s->portal), "%s", portal);
    for (struct snap_ds *ds = s->list; ds; ds = ds->next) {
        if (!ds->v || ds->leaving)
            continue;
        char address[VMFS_ADDRESS_MAX + 1];
        struct gr_err why = {0};
        snap_own_address(s, ds, address);
        ds->users++;
        int r = vmfs_set_address(ds->v, address, s->portal, &why);
        snap_ds_put(ds);
        if (r < 0 && first == 0)
            first = gr_fail(err, r, "datastore '%s': %s", ds->name, why.text);
        else if (r < 0)
            snap_warn(s, "datastore '%s': others are not told of this host's portal: %s", ds->name, why.text);
    }
    return first;
}

int snap_svc_checkpoint(struct snap_svc *s, struct gr_err *err)
{
    int r = 0;
    for (struct snap_ds *ds = s->list; ds && r == 0; ds = ds->next) {
        if (!ds->v || ds->leaving)
            continue;
        ds->users++;
        r = vmfs_checkpoint(ds->v, err);
        snap_ds_put(ds);
    }
    return r;
}

int snap_svc_known_to(struct snap_svc *s, uint64_t features, struct gr_err *err)
{
    int r = 0;
    for (const struct snap_ds *ds = s->list; ds && r == 0; ds = ds->next)
        if (ds->v && !ds->leaving)
            r = vmfs_known_to(ds->v, features, err);
    return r;
}

struct each {
    struct snap_ds *ds;
    int (*fn)(void *arg, const char *disk);
    void *arg;
};

static int each_entry(void *arg, const char *path, const struct vmfs_stat *st)
{
    struct each *e = arg;
    if (st->type != VMFS_DISK)
        return SNAP_WALK_INTO;
    gr_auto_free char *disk = gr_asprintf("%s/%s", e->ds->name, path);
    return disk ? GR_MIN(e->fn(e->arg, disk), 0) : -ENOMEM;
}

int snap_svc_each_disk(struct snap_svc *s, int (*fn)(void *arg, const char *disk), void *arg, struct gr_err *err)
{
    int r = 0;
    for (struct snap_ds *ds = s->list; ds && r >= 0; ds = ds->next) {
        if (!ds->v || ds->leaving)
            continue;
        struct each e = {.ds = ds, .fn = fn, .arg = arg};
        ds->users++;
        r = snap_walk(ds, "", each_entry, &e, err);
        snap_ds_put(ds);
    }
    return r < 0 ? r : 0;
}

struct open_all {
    struct snap_svc *s;
    int count;
};

static int open_one(void *arg, const char *disk)
{
    struct open_all *o = arg;
    struct snap_place place = {0};
    struct gr_err err = {0};
    int r = snap_svc_find(o->s, disk, "opening", 0, &place, &err);
    if (r == 0 && place.bdev)
        o->count++;
    else if (r < 0 && r != -GR_ELOCKED)
        snap_warn(o->s, "disk %s cannot be opened: %s", disk, err.text);
    gr_bdev_put(place.bdev);
    return 0;
}

int snap_svc_open_all(struct snap_svc *s)
{
    struct open_all o = {.s = s};
    struct gr_err err = {0};
    if (snap_svc_each_disk(s, open_one, &o, &err) < 0)
        snap_warn(s, "not every disk could be looked at: %s", err.text);
    return o.count;
}

/* Open the disk (and snapshot) of @p here. */
static int find_here(struct snap_svc *s, struct snap_ds *ds, const struct snap_path *p, const char *what, uint64_t wait_ms, struct snap_place *place,
                     struct gr_err *err)
{
    struct snap_handle *h = NULL;
    int r = snap_handle_get(s, ds, p->path, what, wait_ms, &h, place, err);
    if (r < 0)
        return r;
    struct vmfs_stat st;
    vmfs_disk_stat(h->disk, &st);
    if (st.type != VMFS_DISK)
        r = gr_fail(err, -ENOENT, "%s/%s is not a disk", ds->name, p->path);
    else if (h->mounted && !p->snap[0])
        r = gr_fail(err, -GR_ELOCKED, "%s/%s is open for writing on '%s'", ds->name, p->path, mnt_mounted_on(ds));
    else if (p->snap[0])
        r = snap_open(h->disk, p->snap, &place->bdev, err);
    else if ((r = vmfs_shown(h->disk, err)) == 0)
        place->bdev = gr_bdev_get(vmfs_bdev(h->disk));
    h->users--;
    return r;
}

int snap_svc_find(struct snap_svc *s, const char *name, const char *what, uint64_t wait_ms, struct snap_place *ret, struct gr_err *err)
{
    struct snap_path p;
    struct snap_ds *ds = NULL;
    int r = snap_path_parse(name, SNAP_PATH_EITHER, &p, err);
    if (r == 0)
        r = snap_ds_get(s, p.ds, &ds, err);
    if (r < 0)
        return r == -GR_EUSAGE ? gr_prefix(err, -ENOENT, "no such disk") : r;
    struct snap_place place = {0};
    r = find_here(s, ds, &p, what, wait_ms, &place, err);
    if (r == -GR_ELOCKED && (place.portal[0] || place.address[0])) { /* told where it is */
        struct vmfs_stat st;
        r = vmfs_stat(ds->v, p.path, &st, err);
        if (r == 0)
            vmfs_stat_geometry(&st, &place.geometry);
    }
    snap_ds_put(ds);
    if (r == 0)
        *ret = place;
    return r;
}

int snap_svc_owner(struct snap_svc *s, const char *disk, struct snap_place *ret, struct gr_err *err)
{
    struct snap_path p;
    struct snap_ds *ds = NULL;
    struct snap_place place = {0};
    int r = snap_path_parse(disk, SNAP_PATH_EITHER, &p, err);
    if (r == 0)
        r = snap_ds_get(s, p.ds, &ds, err);
    if (r < 0)
        return r;
    r = snap_handle_find(ds, p.path) ? 0 : snap_owner_of(ds, p.path, &place, err);
    snap_ds_put(ds);
    if (r >= 0)
        *ret = place;
    return r;
}

static struct snap_ds *joined(struct snap_svc *s, const struct snap_path *p)
{
    struct snap_ds *ds = s->list;
    while (ds && strcmp(ds->name, p->ds) != 0)
        ds = ds->next;
    return ds && ds->v ? ds : NULL;
}

unsigned snap_svc_host_number(struct snap_svc *s, const char *disk)
{
    struct snap_path p;
    const struct snap_ds *ds = snap_path_parse(disk, SNAP_PATH_EITHER, &p, NULL) == 0 ? joined(s, &p) : NULL;
    return ds ? vmfs_own_slot(ds->v) + 1 : 0;
}

struct each_host {
    void (*fn)(void *arg, unsigned number, bool owner);
    void *arg;
    int owner;
};

static void each_slot(void *arg, const struct vmfs_slot_info *info)
{
    const struct each_host *e = arg;
    if (info->alive && info->portal[0] && strcmp(info->state, "host") == 0)
        e->fn(e->arg, info->slot + 1, (int)info->slot == e->owner);
}

int snap_svc_each_host(struct snap_svc *s, const char *disk, void (*fn)(void *arg, unsigned number, bool owner), void *arg, struct gr_err *err)
{
    struct snap_path p;
    struct snap_ds *ds = NULL;
    struct vmfs_stat st;
    int r = snap_path_parse(disk, SNAP_PATH_EITHER, &p, err);
    if (r == 0)
        r = snap_ds_get(s, p.ds, &ds, err);
    if (r < 0)
        return r;
    bool ours = snap_handle_find(ds, p.path) != NULL;
    r = ours ? 0 : vmfs_stat(ds->v, p.path, &st, err);
    if (r == 0) {
        struct each_host e = {.fn = fn, .arg = arg, .owner = ours ? (int)vmfs_own_slot(ds->v) : st.owner_slot};
        r = vmfs_slots(ds->v, each_slot, &e, err);
    }
    snap_ds_put(ds);
    return r;
}

/* The disk @name open here, or an error. */
static int here(struct snap_svc *s, const char *name, struct snap_disk *d, struct gr_err *err)
{
    struct snap_path p;
    int r = snap_path_parse(name, SNAP_PATH_EITHER, &p, err);
    if (r == 0)
        r = snap_ds_get(s, p.ds, &d->ds, err);
    if (r < 0)
        return r;
    r = snap_handle_get(s, d->ds, p.path, "listing", 0, &d->h, NULL, err);
    if (r < 0)
        snap_ds_put(d->ds);
    return r;
}

int snap_svc_each_snapshot(struct snap_svc *s, const char *disk, int (*fn)(void *arg, const struct snap_info *info), void *arg,
                           struct gr_err *err)
{
    struct snap_disk d = {0};
    int r = here(s, disk, &d, err);
    if (r < 0)
        return r;
    r = snap_list(d.h->disk, fn, arg, err);
    snap_disk_put(&d);
    return r;
}

int snap_svc_resolve_base(struct snap_svc *s, const char *disk, const char *base, struct gr_bookmark *ret, struct gr_err *err)
{
    struct snap_disk d = {0};
    int r = here(s, disk, &d, err);
    if (r < 0)
        return r;
    r = snap_resolve_base(d.h->disk, base, ret, err);
    snap_disk_put(&d);
    return r;
}
