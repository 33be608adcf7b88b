/* Methods datastore.*: join, leave, list, info, grow. Create and destroy: service_format.c; check and scrub: service_check.c. */
#include "common/buf.h"
#include "snapshot/service_int.h"
#include "vmfs/rescue.h"
#include <string.h>
#include <sys/stat.h>

/* ---- rows ---- */
static json_t *devices_row(const struct snap_ds *ds)
{
    json_t *a = json_array();
    for (unsigned i = 0; a && i < ds->n_devices; i++)
        json_array_append_new(a, json_string(ds->devices[i]));
    return a;
}

static void add_host(void *arg, const struct vmfs_slot_info *s)
{
    char uuid[37];
    if (strcmp(s->state, "free") == 0)
        return;
    gr_uuid_format(s->host_uuid, uuid);
    json_array_append_new(arg, json_pack("{s:i,s:I,s:s,s:b,s:b,s:s,s:s,s:s,s:s}", "slot", (int)s->slot, "generation",
                                         (json_int_t)s->generation, "state", s->state, "alive", s->alive, "self", s->self, "uuid", uuid,
                                         "host", s->host_name, "portal", s->portal, "address", s->address));
}

static json_t *stats_row(struct vmfs *v)
{
    struct vmfs_stats st;
    vmfs_stats(v, &st);
    const struct {
        const char *key;
        uint64_t value;
    } rows[] = {
        {"reads", st.reads},
        {"writes-in-place", st.writes_in_place},
        {"writes-redirected", st.writes_redirected},
        {"splits", st.splits},
        {"merges", st.merges},
        {"unmaps", st.unmaps},
        {"flushes", st.flushes},
        {"journal-frames", st.journal_frames},
        {"journal-bytes", st.journal_bytes},
        {"checkpoints", st.checkpoints},
        {"node-bytes", st.node_bytes},
        {"device-flushes", st.device_flushes},
        {"replays", st.replays},
        {"replayed-records", st.replayed_records},
        {"dropped-pieces", st.dropped_pieces},
        {"regions-given-back", st.regions_given_back},
        {"takeovers", st.takeovers},
        {"rotten-reads", st.rotten},
    };
    json_t *o = json_object();
    for (size_t i = 0; o && i < GR_ARRAY_LEN(rows); i++)
        json_object_set_new(o, rows[i].key, json_integer((json_int_t)rows[i].value));
    return o;
}

static const char *state_of(const struct vmfs_info *i)
{
    return i->fenced ? "fenced" : i->rescue ? "rescue" : i->n_missing || i->n_stale ? "degraded" : "joined";
}

static int say_device(struct gr_buf *b, const struct snap_ds *ds, const struct vmfs_info *i, unsigned d)
{
    const char *name = snap_member_name(ds, d), *q = name ? "'" : "";
    bool missing = i->missing >> d & 1;
    if (!missing && !(i->stale >> d & 1))
        return 0;
    int r = gr_buf_printf(b, "%sdevice %u%s%s%s%s ", b->len ? "; " : "", d, name ? " (" : "", q, name ? name : "", name ? "')" : "");
    if (r < 0 || !missing)
        return r < 0 ? r : gr_buf_printf(b, "was lost and is back, and gets no new data: 'granary datastore check %s --repair' counts what lies there and puts it to use again", ds->name);
    return gr_buf_printf(b, "is missing, and what lies there cannot be read: bring it back, then 'granary datastore add-device %s %s'", ds->name, name ? name : "DEVICE");
}

/* What is to be done about devices. */
static void add_warning(json_t *o, const struct snap_ds *ds, const struct vmfs_info *i)
{
    struct gr_buf b = {0};
    int r = 0;
    if (i->rescue)
        r = gr_buf_printf(&b, "a device is lost for good, and nothing is written to the others: copy what is whole ('granary datastore rescued %s') to another datastore", ds->name);
    for (unsigned d = 0; r == 0 && !i->rescue && d < VMFS_DEVICES_MAX; d++)
        r = say_device(&b, ds, i, d);
    if (o && r == 0 && b.len)
        json_object_set_new(o, "warning", json_stringn((const char *)b.data, b.len));
    gr_buf_done(&b);
}

/* Who waits is looked at first: asking who is silent may take longer than the waiting. */
static int info_parts(struct snap_ds *ds, bool owners, json_t **ret_waits, json_t **ret_hosts, struct gr_err *err)
{
    json_t *hosts = json_array(), *waits = snap_waits_rows(ds, err);
    int r = !waits ? err->code : hosts ? vmfs_slots(ds->v, add_host, hosts, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r == 0 && owners)
        r = snap_owners_count(ds, hosts, err);
    if (r < 0) {
        json_decref(hosts);
        json_decref(waits);
        return r;
    }
    *ret_waits = waits;
    *ret_hosts = hosts;
    return 0;
}

/* null: there was none */
static json_t *scrub_row(const struct vmfs_scrubbed *c)
{
    if (!c->started_s)
        return json_null();
    return json_pack("{s:I,s:o,s:I,s:I,s:I}", "started", (json_int_t)c->started_s, "ended", c->ended_s ? json_integer(c->ended_s) : json_null(), "bytes",
                     (json_int_t)c->bytes, "bad-pieces", (json_int_t)c->bad_pieces, "errors", (json_int_t)c->errors);
}

static json_t *info_row(struct snap_ds *ds, bool owners, struct gr_err *err)
{
    struct vmfs_info i;
    char uuid[37];
    json_t *waits = NULL, *hosts = NULL;
    if (info_parts(ds, owners, &waits, &hosts, err) < 0)
        return NULL;
    (void)vmfs_free_look(ds->v, NULL); /* else it is what was known last */
    vmfs_info(ds->v, &i);
    gr_uuid_format(i.uuid, uuid);
    json_t *members = snap_member_rows(ds, err);
    if (!members) {
        json_decref(hosts);
        json_decref(waits);
        return NULL;
    }
    json_t *o = json_pack("{s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:o,s:o,s:o,s:i,s:I,s:I,s:i,s:i,s:o}", "name", ds->name, "state",
                          state_of(&i), "uuid", uuid, "size", (json_int_t)i.size, "free", (json_int_t)i.free, "used",
                          (json_int_t)(i.size - GR_MIN(i.free, i.size)), "metadata", (json_int_t)i.metadata, "reserved",
                          (json_int_t)i.reserved, "devices", devices_row(ds), "hosts", hosts, "waits", waits, "regions", (int)i.n_regions, "region-size",
                          (json_int_t)i.region_bytes, "journal-size", (json_int_t)i.journal_bytes, "version", (int)i.version, "slots",
                          (int)i.n_slots, "stats", stats_row(ds->v));
    if (!o)
        json_decref(members);
    if (o) {
        json_object_set_new(o, "members", members);
        if (ds->login_row)
            json_object_set(o, "login", ds->login_row);
        json_object_set_new(o, "shared-luns", json_boolean(i.shared_luns));
        json_object_set_new(o, "one-host", json_boolean(i.one_host));
        json_object_set_new(o, "data-crc", json_boolean(i.data_crc));
        json_object_set_new(o, "scrub", scrub_row(&i.scrubbed));
        json_object_set_new(o, "timing", json_string(i.timing == VMFS_TIMING_FAST ? "fast" : "default"));
    }
    if (o && i.fenced)
        json_object_set_new(o, "fence-reason", json_string(i.fence_reason));
    add_warning(o, ds, &i);
    return o;
}

static int op_info(struct snap_op *op)
{
    const char *name = NULL;
    struct snap_ds *ds = NULL;
    bool owners = false;
    int r = gr_json_str(op->params, "name", &name, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "owners", &owners, op->err);
    if (r == 0)
        r = snap_datastore_name_check(name, op->err);
    if (r == 0)
        r = snap_ds_get(op->s, name, &ds, op->err);
    if (r < 0)
        return r;
    json_t *o = info_row(ds, owners, op->err);
    snap_ds_put(ds);
    return o || op->err->code == 0 ? snap_op_result(op, o) : op->err->code;
}
SNAP_METHOD(op_info, "datastore.info")

static json_t *list_row(struct snap_ds *ds)
{
    struct vmfs_info i;
    vmfs_info(ds->v, &i);
    json_t *o = json_pack("{s:s,s:s,s:I,s:I,s:I,s:o}", "name", ds->name, "state", state_of(&i), "size", (json_int_t)i.size,
                          "free", (json_int_t)i.free, "used", (json_int_t)(i.size - GR_MIN(i.free, i.size)), "devices", devices_row(ds));
    if (o && i.fenced)
        json_object_set_new(o, "error", json_string(i.fence_reason));
    add_warning(o, ds, &i);
    return o;
}

static int op_list(struct snap_op *op)
{
    snap_auto_json json_t *names = json_array();
    json_t *rows = json_array();
    size_t i;
    json_t *n;
    for (struct snap_ds *ds = op->s->list; ds; ds = ds->next)
        json_array_append_new(names, json_string(ds->name));
    json_array_foreach(names, i, n) /* joining suspends: the list may change meanwhile */
    {
        struct snap_ds *ds = NULL;
        struct gr_err e = {0};
        if (snap_ds_get(op->s, json_string_value(n), &ds, &e) == 0) {
            json_array_append_new(rows, list_row(ds));
            snap_ds_put(ds);
        } else if ((ds = snap_ds_find(op->s, json_string_value(n)))) {
            json_array_append_new(rows, json_pack("{s:s,s:s,s:o,s:s}", "name", ds->name, "state", "failed", "devices", devices_row(ds),
                                                  "error", e.text));
        }
    }
    return snap_op_result(op, rows);
}
SNAP_METHOD(op_list, "datastore.list")

/* ---- what requests have in common; join ---- */
int snap_op_devices(struct snap_op *op, json_t **ret, const char *paths[VMFS_DEVICES_MAX], unsigned *ret_n)
{
    json_t *devices = NULL;
    int r = gr_json_array(op->params, "devices", &devices, op->err);
    if (r < 0)
        return r;
    size_t n = json_array_size(devices);
    if (n == 0 || n > VMFS_DEVICES_MAX)
        return gr_fail(op->err, -GR_EUSAGE, "%zu devices given; 1 to %d are possible", n, VMFS_DEVICES_MAX);
    for (size_t i = 0; i < n; i++) {
        paths[i] = json_string_value(json_array_get(devices, i));
        if ((r = gr_device_name_check(paths[i] ? paths[i] : "", op->err)) < 0 || (r = snap_refuse_mounted(paths[i], op->err)) < 0)
            return r;
        for (size_t k = 0; k < i; k++)
            if (strcmp(paths[i], paths[k]) == 0)
                return gr_fail(op->err, -GR_EUSAGE, "%s: given twice", paths[i]);
    }
    *ret = devices;
    *ret_n = (unsigned)n;
    return 0;
}

/* With the lock held: put the datastore into the registry and join it; a failure leaves the registry as it was. */
int snap_op_register(struct snap_op *op, const char *name, json_t *devices, struct snap_ds **ret)
{
    struct snap_svc *s = op->s;
    struct snap_ds *ds = NULL;
    bool degraded = false, rescue = false, yes = false;
    int r = gr_json_opt_bool(op->params, "degraded", &degraded, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "rescue", &rescue, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "yes", &yes, op->err);
    if (r == 0 && rescue && !yes)
        r = gr_fail(op->err, -GR_EUSAGE, "datastore '%s': what a lost device has left is read as if no other host used it: see to it that none does, and that the device is lost for good, "
                    "and add --yes", name);
    if (r == 0)
        r = snap_ds_add(s, name, devices, json_object_get(op->params, "login"), &ds, op->err);
    if (r < 0)
        return r;
    ds->degraded = degraded;
    ds->rescue = rescue;
    r = snap_ds_join(s, ds, op->err);
    if (r == 0)
        r = snap_registry_save(s, op->err);
    if (r < 0) {
        if (ds->v)
            snap_ds_leave(s, ds, false, NULL);
        snap_ds_remove(s, ds);
        return r;
    }
    *ret = ds;
    return 0;
}

int snap_op_datastore(struct snap_op *op, struct snap_ds *ds)
{
    json_t *o = info_row(ds, false, op->err);
    return o || op->err->code == 0 ? snap_op_result(op, o) : op->err->code;
}

static int op_join(struct snap_op *op)
{
    const char *name = NULL;
    json_t *devices = NULL;
    const char *paths[VMFS_DEVICES_MAX];
    unsigned n;
    int r = gr_json_str(op->params, "name", &name, op->err);
    if (r == 0)
        r = snap_op_devices(op, &devices, paths, &n);
    if (r < 0)
        return r;
    struct snap_ds *ds = NULL;
    gr_fmutex_lock(&op->s->lock);
    r = snap_op_register(op, name, devices, &ds);
    if (r == 0)
        ds->users++;
    gr_fmutex_unlock(&op->s->lock);
    if (r < 0)
        return r;
    snap_svc_open_all(op->s);
    r = snap_op_datastore(op, ds);
    snap_ds_put(ds);
    return r;
}
SNAP_METHOD(op_join, "datastore.join")

/* ---- leave ---- */
int snap_op_named(struct snap_op *op, struct snap_ds **ret)
{
    const char *name = NULL;
    int r = gr_json_str(op->params, "name", &name, op->err);
    if (r == 0)
        r = snap_datastore_name_check(name, op->err);
    if (r < 0)
        return r;
    struct snap_ds *ds = snap_ds_find(op->s, name);
    if (!ds)
        return gr_fail(op->err, -ENOENT, "no datastore '%s' here: granary datastore list shows those registered", name);
    if (ds->leaving)
        return gr_fail(op->err, -GR_ELOCKED, "datastore '%s' is being left", name);
    *ret = ds;
    return 0;
}

static int op_leave(struct snap_op *op)
{
    struct snap_ds *ds = NULL;
    gr_fmutex_lock(&op->s->lock);
    int r = snap_op_named(op, &ds);
    if (r == 0 && ds->v)
        r = snap_ds_leave(op->s, ds, true, op->err);
    if (r == 0) {
        snap_ds_remove(op->s, ds);
        r = snap_registry_save(op->s, op->err);
    }
    gr_fmutex_unlock(&op->s->lock);
    return r;
}
SNAP_METHOD(op_leave, "datastore.leave")

/* ---- grow, recover ---- */
int snap_op_ds(struct snap_op *op, struct snap_ds **ret)
{
    const char *name = NULL;
    int r = gr_json_str(op->params, "name", &name, op->err);
    if (r == 0)
        r = snap_datastore_name_check(name, op->err);
    return r < 0 ? r : snap_ds_get(op->s, name, ret, op->err);
}

void snap_tell_grown(struct snap_ds *ds)
{
    struct gr_err err = {0};
    if (snap_ds_tell(ds, "datastore.rescan", json_pack("{s:s}", "name", ds->name), &err) != 0)
        snap_warn(ds->svc, "datastore '%s': another host cannot be told that it grew: %s", ds->name, err.text);
}

/* The one that grows: with the highest number, wherever it stands in the registry. */
static unsigned last_device(const struct snap_ds *ds)
{
    unsigned last = 0;
    for (unsigned i = 1; i < ds->n_devices; i++)
        if (vmfs_device_number(ds->v, ds->bdevs[i]) > vmfs_device_number(ds->v, ds->bdevs[last]))
            last = i;
    return last;
}

static int op_grow(struct snap_op *op)
{
    struct snap_ds *ds = NULL;
    uint64_t size = 0, now = 0;
    struct gr_geometry g = {0};
    int r = gr_json_u64(op->params, "size", &size, op->err);
    if (r == 0)
        r = snap_op_ds(op, &ds);
    if (r == 0 && ((r = vrescue_refuse(ds->v, op->err)) < 0 || (r = vdev_all_here(ds->v, "it cannot grow", op->err)) < 0))
        snap_ds_put(ds);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < ds->n_devices && r == 0; i++) {
        if (vmfs_device_number(ds->v, ds->bdevs[i]) < 0)
            continue; /* it could not be opened, or is left alone: it was removed on another host */
        r = gr_bdev_geometry(ds->bdevs[i], &g);
        now += g.size;
    }
    unsigned last = last_device(ds);
    if (r == 0)
        r = gr_bdev_geometry(ds->bdevs[last], &g);
    if (r == 0 && gr_device_is_lun(ds->devices[last]) && size > now)
        r = gr_fail(op->err, -GR_EUSAGE, "datastore '%s': %s is a LUN of %llu bytes: make it larger where it is served, then say its new size", ds->name,
                    ds->devices[last], (unsigned long long)g.size);
    else if (r < 0)
        gr_fail(op->err, r, "datastore '%s': %s", ds->name, gr_code_text(r));
    else if (size < now || size > INT64_MAX || size % 4096)
        r = gr_fail(op->err, -GR_EUSAGE, "datastore '%s' has %llu bytes; %llu is no larger size in multiples of 4096", ds->name,
                    (unsigned long long)now, (unsigned long long)size);
    if (r == 0 && size > now)
        r = gr_bdev_file_resize(ds->bdevs[last], g.size + (size - now), op->err);
    if (r == 0)
        r = vmfs_grow(ds->v, op->err);
    if (r == 0)
        snap_tell_grown(ds);
    if (r == 0)
        r = snap_op_datastore(op, ds);
    snap_ds_put(ds);
    return r;
}
SNAP_METHOD(op_grow, "datastore.grow")

/* Another host lengthened the last device: take notice. */
static int op_rescan(struct snap_op *op)
{
    struct snap_ds *ds = NULL;
    struct gr_geometry g;
    struct stat st;
    int r = snap_op_ds(op, &ds);
    if (r < 0)
        return r;
    unsigned last = last_device(ds);
    r = gr_bdev_geometry(ds->bdevs[last], &g);
    if (r == 0 && stat(ds->devices[last], &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size > g.size)
        r = gr_bdev_file_resize(ds->bdevs[last], (uint64_t)st.st_size, op->err);
    if (r == 0)
        r = vmfs_grow(ds->v, op->err);
    if (r == 0)
        r = snap_op_datastore(op, ds);
    snap_ds_put(ds);
    return r;
}
SNAP_METHOD(op_rescan, "datastore.rescan")

SNAP_METHOD(snap_op_datastore_recover, "datastore.recover")
SNAP_METHOD(snap_op_datastore_create, "datastore.create")
SNAP_METHOD(snap_op_datastore_destroy, "datastore.destroy")
SNAP_METHOD(snap_op_check, "datastore.check")
SNAP_METHOD(snap_op_repair, "datastore.repair")
SNAP_METHOD(snap_op_scrub, "datastore.scrub")
SNAP_METHOD(snap_op_accept_loss, "datastore.accept-loss")
SNAP_METHOD(snap_op_rescued, "datastore.rescued")
SNAP_METHOD(snap_op_devices_list, "datastore.devices")
SNAP_METHOD(snap_op_device_add, "datastore.add-device")
SNAP_METHOD(snap_op_device_open, "datastore.open-device")
SNAP_METHOD(snap_op_device_remove, "datastore.remove-device")
SNAP_METHOD(snap_op_device_replace, "datastore.replace-device")

const struct gr_rpc_method snap_datastore_methods[] = {
    {"datastore.create", rpc_snap_op_datastore_create, .destroys = true},   {"datastore.join", rpc_op_join},   {"datastore.leave", rpc_op_leave},
    {"datastore.destroy", rpc_snap_op_datastore_destroy, .destroys = true}, {"datastore.list", rpc_op_list, true},   {"datastore.info", rpc_op_info, true},
    {"datastore.check", rpc_snap_op_check, true}, {"datastore.repair", rpc_snap_op_repair, .destroys = true},
    {"datastore.scrub", rpc_snap_op_scrub}, {"datastore.accept-loss", rpc_snap_op_accept_loss, .destroys = true}, {"datastore.rescued", rpc_snap_op_rescued, true}, {"datastore.grow", rpc_op_grow},   {"datastore.rescan", rpc_op_rescan},
    {"datastore.recover", rpc_snap_op_datastore_recover, .destroys = true}, {"datastore.devices", rpc_snap_op_devices_list, true},
    {"datastore.add-device", rpc_snap_op_device_add, .destroys = true}, {"datastore.open-device", rpc_snap_op_device_open},
    {"datastore.remove-device", rpc_snap_op_device_remove, .destroys = true}, {"datastore.replace-device", rpc_snap_op_device_replace, .destroys = true},
    {NULL, NULL},
};
