/* Methods datastore.devices, add-device, open-device, remove-device: the devices of a datastore in use. */
#include "common/buf.h"
#include "snapshot/service_creation.h"
#include <string.h>

static int named(struct snap_op *op, const char **ret_name, const char **ret_device)
{
    int r = gr_json_str(op->params, "name", ret_name, op->err);
    if (r == 0)
        r = snap_datastore_name_check(*ret_name, op->err);
    if (r == 0 && ret_device && (r = gr_json_str(op->params, "device", ret_device, op->err)) == 0)
        r = gr_device_name_check(*ret_device, op->err);
    if (r == 0 && ret_device)
        r = snap_refuse_mounted(*ret_device, op->err);
    return r;
}

/* ---- list ---- */
struct rows {
    struct snap_ds *ds;
    json_t *a;
};

/* One that is missing is told apart from others that are only by what is on it. */
const char *snap_member_name(const struct snap_ds *ds, unsigned number)
{
    const char *missing = NULL;
    unsigned n = 0;
    struct vmfs_info info;
    vmfs_info(ds->v, &info);
    for (unsigned i = 0; i < ds->n_devices; i++) {
        int is = vmfs_device_number(ds->v, ds->bdevs[i]);
        if (is == (int)number)
            return ds->devices[i];
        n += is < 0;
        missing = is < 0 ? ds->devices[i] : missing;
    }
    return n == 1 && info.missing >> number & 1 ? missing : NULL;
}

static void add_row(void *arg, const struct vmfs_device_info *d)
{
    struct rows *r = arg;
    const char *name = snap_member_name(r->ds, d->number);
    char uuid[37];
    gr_uuid_format(d->uuid, uuid);
    name = name ? name : d->name;
    json_t *row = json_pack("{s:i,s:s,s:s,s:I,s:I,s:I,s:I,s:i,s:b,s:b}", "number", (int)d->number, "device", name, "uuid", uuid, "size",
                                          (json_int_t)d->size, "free", (json_int_t)d->free, "used",
                                          (json_int_t)(d->size - GR_MIN(d->size, d->free + d->metadata)), "metadata", (json_int_t)d->metadata,
                                          "regions", (int)d->regions, "added", d->added, "leaving", d->leaving);
    json_object_set_new(row, "missing", json_boolean(d->missing));
    json_object_set_new(row, "stale", json_boolean(d->stale));
    json_object_set_new(row, "tested", snap_tested_row(d->tested));
    if (d->tested_s)
        json_object_set_new(row, "tested-at", json_integer(d->tested_s));
    json_array_append_new(r->a, row);
}

json_t *snap_member_rows(struct snap_ds *ds, struct gr_err *err)
{
    struct rows rows = {ds, json_array()};
    if (rows.a && vmfs_devices(ds->v, add_row, &rows, err) < 0) {
        json_decref(rows.a);
        rows.a = NULL;
    }
    return rows.a;
}

int snap_op_devices_list(struct snap_op *op)
{
    const char *name = NULL;
    struct snap_ds *ds = NULL;
    int r = named(op, &name, NULL);
    if (r == 0)
        r = snap_ds_get(op->s, name, &ds, op->err);
    if (r < 0)
        return r;
    json_t *a = snap_member_rows(ds, op->err);
    snap_ds_put(ds);
    return a || op->err->code == 0 ? snap_op_result(op, a) : op->err->code;
}

/* ---- the registry ---- */
static int find_device(const struct snap_ds *ds, const char *device)
{
    for (unsigned i = 0; i < ds->n_devices; i++)
        if (snap_same_device(ds->devices[i], device))
            return (int)i;
    return -ENOENT;
}

/* The entry of @device, made when there is none; @bdev (may be NULL) is the datastore's from here on, in place of what it had there. */
static int keep(struct snap_svc *s, struct snap_ds *ds, const char *device, struct gr_bdev *bdev, struct gr_err *err)
{
    gr_fmutex_lock(&s->lock);
    int i = find_device(ds, device), r = 0;
    if (i < 0 && ds->n_devices == VMFS_DEVICES_MAX)
        r = gr_fail(err, -GR_ENOSPACE, "datastore '%s' has %u devices: more are not possible", ds->name, ds->n_devices);
    if (i < 0 && r == 0) {
        i = (int)ds->n_devices;
        if (!(ds->devices[i] = gr_strdup(device)))
            r = gr_fail(err, -ENOMEM, "datastore '%s': out of memory", ds->name);
        ds->n_devices += r == 0;
        if (r == 0 && (r = snap_registry_save(s, err)) < 0)
            free(gr_take(ds->devices[--ds->n_devices]));
    }
    if (r == 0 && bdev) {
        gr_bdev_put(ds->bdevs[i]);
        ds->bdevs[i] = gr_bdev_get(bdev);
    }
    gr_fmutex_unlock(&s->lock);
    return r;
}

void snap_ds_prune(struct snap_svc *s, struct snap_ds *ds)
{
    unsigned n = 0;
    memset(ds->lost, 0, sizeof(ds->lost));
    for (unsigned i = 0; i < ds->n_devices; i++) {
        if (vmfs_device_number(ds->v, ds->bdevs[i]) < 0) {
            gr_bdev_put(ds->bdevs[i]);
            free(ds->devices[i]);
            continue;
        }
        ds->bdevs[n] = ds->bdevs[i];
        ds->devices[n++] = ds->devices[i];
    }
    bool changed = n < ds->n_devices;
    for (unsigned i = n; i < ds->n_devices; i++) {
        ds->bdevs[i] = NULL;
        ds->devices[i] = NULL;
    }
    ds->n_devices = n;
    struct gr_err err = {0};
    if (changed && snap_registry_save(s, &err) < 0)
        snap_warn(s, "datastore '%s': %s", ds->name, err.text);
}

/* ---- add ---- */
struct adding {
    struct snap_op *op;
    struct snap_ds *ds;
    const char *device;
    struct gr_bdev *bdev;
    json_t *unaware; /* hosts that have joined and serve nothing */
};

static void note_unaware(void *arg, const struct vmfs_slot_info *i)
{
    struct adding *a = arg;
    if (i->alive && !i->self && !i->address[0] && strcmp(i->state, "host") == 0)
        json_array_append_new(a->unaware, json_string(i->host_name));
}

/* Between preparing the device and making it a member: we shall find it at the next start, and the others have it open. */
static int confirm(void *arg, struct gr_err *err)
{
    struct adding *a = arg;
    int r = keep(a->op->s, a->ds, a->device, a->bdev, err);
    if (r == 0)
        r = vmfs_slots(a->ds->v, note_unaware, a, err);
    if (r < 0)
        return r;
    r = snap_ds_tell(a->ds, "datastore.open-device", json_pack("{s:s,s:s}", "name", a->ds->name, "device", a->device), err);
    return r > 0 ? gr_prefix(err, -GR_ELOCKED, "datastore '%s': every host that has joined must have %s, too", a->ds->name, a->device) : r;
}

static int add_to(struct snap_op *op, struct adding *a, struct snap_creation *c, bool force)
{
    struct vmfs_info info;
    vmfs_info(a->ds->v, &info);
    c->one_host = info.one_host;
    int r = snap_creation_free_of(op->s, c, a->ds, op->err);
    int known = find_device(a->ds, a->device);
    if (r == 0 && known >= 0 && vmfs_device_number(a->ds->v, a->ds->bdevs[known]) >= 0)
        r = gr_fail(op->err, -EEXIST, "%s is a device of datastore '%s' already", a->device, a->ds->name);
    if (r == 0)
        r = snap_creation_prepare(c, 0, op->err);
    if (r == 0)
        r = snap_creation_check(c, 0, force, a->ds->name, op->err);
    if (r < 0)
        return r;
    a->bdev = c->bdevs[0];
    struct vmfs_device_add add = {.force = force, .tested = c->tested[0], .confirm = confirm, .arg = a};
    r = vmfs_device_add(a->ds->v, a->bdev, &add, op->err);
    if (r == 0)
        r = keep(op->s, a->ds, a->device, a->bdev, op->err); /* one that was a member already was not confirmed */
    return r;
}

/* It cannot be joined for want of this very device, perhaps: another host added it. */
static int add_missing(struct snap_op *op, const char *name, const char *device, struct snap_ds **ret)
{
    gr_fmutex_lock(&op->s->lock);
    struct snap_ds *ds = snap_ds_find(op->s, name);
    int r = -ENOENT;
    if (ds && !ds->v && !ds->leaving && ds->n_devices < VMFS_DEVICES_MAX && find_device(ds, device) < 0 && (ds->devices[ds->n_devices] = gr_strdup(device))) {
        ds->n_devices++;
        r = snap_ds_join(op->s, ds, op->err);
        if (r == 0 && find_device(ds, device) < 0) /* it was no member, and is forgotten */
            r = gr_fail(op->err, -EINVAL, "%s is no device of datastore '%s'", device, name);
        else if (r < 0 && r != -ENODEV)
            free(gr_take(ds->devices[--ds->n_devices]));
        else if (snap_registry_save(op->s, NULL) < 0) /* also when yet another is missing: that one is next */
            snap_warn(op->s, "datastore '%s': the registry cannot be written", name);
    }
    if (r == 0) {
        ds->users++;
        *ret = ds;
    }
    gr_fmutex_unlock(&op->s->lock);
    return r;
}

/* A device that was lost, or that it was joined without, is there again: join anew, with it. 1; 0: it is none. *@pds is given back with 1. */
static int bring_back(struct snap_op *op, struct snap_ds **pds, const char *name, const char *device)
{
    uint8_t host_uuid[16];
    struct snap_ds *ds = *pds;
    struct gr_device_opts o = {.host_uuid = host_uuid, .login = ds->login};
    struct gr_bdev *bdev = NULL;
    struct vmfs_info info;
    int i = find_device(ds, device);
    vmfs_info(ds->v, &info);
    if (i < 0 || !info.n_missing || vmfs_device_number(ds->v, ds->bdevs[i]) >= 0)
        return 0;
    int r = gr_home_host_uuid(op->s->o.home, host_uuid, op->err);
    if (r == 0)
        r = gr_device_open(op->s->o.loop, device, &o, &bdev, op->err);
    if (r < 0)
        return r;
    gr_bdev_put(bdev);
    ds->back = (unsigned)i + 1;
    snap_ds_rejoin(ds);
    snap_ds_put(gr_take(*pds)); /* leaving it waits for requests at work; from here on it may be left for good */
    while ((ds = snap_ds_find(op->s, name)) && (ds->ejected || ds->leaving) && !op->s->ending)
        gr_fiber_sleep_ms(20);
    if ((r = snap_ds_get(op->s, name, &ds, op->err)) < 0)
        return r;
    i = find_device(ds, device);
    if (i < 0 || vmfs_device_number(ds->v, ds->bdevs[i]) < 0)
        r = gr_fail(op->err, -ENODEV, "%s cannot be used yet: the log of the storage daemon says why", device);
    else
        r = snap_op_datastore(op, ds);
    snap_ds_put(ds);
    return r < 0 ? r : 1;
}

int snap_op_device_add(struct snap_op *op)
{
    struct adding a = {.op = op};
    struct snap_creation c = {.n = 1};
    const char *name = NULL;
    bool force = false;
    int r = named(op, &name, &a.device);
    if (r == 0)
        r = gr_json_opt_u64(op->params, "size", &c.size, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "force", &force, op->err);
    if (r < 0)
        return r;
    c.has_size = json_object_get(op->params, "size") != NULL;
    c.paths[0] = a.device;
    if (c.has_size && (c.size == 0 || c.size > INT64_MAX || c.size % 4096))
        return gr_fail(op->err, -GR_EUSAGE, "%s: size %llu is not possible: it must be a multiple of 4096 above 0 and below 2^63", a.device,
                       (unsigned long long)c.size);
    r = snap_ds_get(op->s, name, &a.ds, op->err);
    bool joined = r == 0;
    if (r == -ENODEV && add_missing(op, name, a.device, &a.ds) == 0)
        r = 0;
    if (r < 0)
        return r;
    if (joined && (r = bring_back(op, &a.ds, name, a.device)) != 0) {
        if (a.ds)
            snap_ds_put(a.ds);
        return r < 0 ? r : 0;
    }
    a.unaware = json_array();
    if (joined) {
        r = snap_creation_open(&c, op->s, &a.ds->login, op->err);
        if (r == 0)
            r = add_to(op, &a, &c, force);
        if (r < 0 && (vmfs_device_number(a.ds->v, a.bdev) >= 0 || snap_fenced(a.ds)))
            c.made[0] = c.was_empty[0] = false; /* it may be a member */
        if (r < 0)
            snap_creation_undo(&c);
        else
            snap_creation_close(&c);
    }
    if (r == 0)
        snap_tell_grown(a.ds);
    if (r == 0 && (r = snap_op_datastore(op, a.ds)) == 0)
        json_object_set(*op->ret, "unaware-hosts", a.unaware);
    json_decref(a.unaware);
    snap_ds_put(a.ds);
    return r;
}

/* ---- remove ---- */
struct removing {
    struct snap_op *op;
    uint64_t told_ns;
};

static int tell_progress(void *arg, uint64_t done, uint64_t all, struct gr_err *err)
{
    struct removing *r = arg;
    struct gr_loop *loop = r->op->s->o.loop;
    if (r->op->s->ending)
        return gr_fail(err, -ECANCELED, "the service ends; the same command goes on with it");
    if (gr_loop_now_ns(loop) - r->told_ns < SNAP_PROGRESS_NS)
        return 0;
    r->told_ns = gr_loop_now_ns(loop);
    (void)gr_rpc_part(r->op->call, json_pack("{s:I,s:I}", "done", (json_int_t)done, "total", (json_int_t)all)); /* it goes on, heard or not */
    return 0;
}

int snap_op_device_remove(struct snap_op *op)
{
    struct removing rem = {op, 0};
    struct vmfs_device_remove o = {.progress = tell_progress, .arg = &rem};
    const char *name = NULL, *device = NULL;
    struct snap_ds *ds = NULL;
    int r = named(op, &name, &device);
    if (r == 0)
        r = snap_ds_get(op->s, name, &ds, op->err);
    if (r < 0)
        return r;
    int known = find_device(ds, device), number = known >= 0 ? vmfs_device_number(ds->v, ds->bdevs[known]) : -ENOENT;
    if (number < 0)
        r = gr_fail(op->err, -ENOENT, "%s is no device of datastore '%s': granary datastore devices %s lists them", device, name, name);
    else
        r = vmfs_device_remove(ds->v, (unsigned)number, &o, op->err);
    if (r == 0) {
        gr_fmutex_lock(&op->s->lock);
        snap_ds_prune(op->s, ds);
        gr_fmutex_unlock(&op->s->lock);
        r = snap_op_datastore(op, ds);
    }
    snap_ds_put(ds);
    return r;
}

/* ---- another host adds one ---- */
int snap_op_device_open(struct snap_op *op)
{
    const char *name = NULL, *device = NULL;
    struct snap_ds *ds = NULL;
    struct gr_bdev *bdev = NULL;
    uint8_t uuid[16];
    int r = named(op, &name, &device);
    if (r == 0)
        r = gr_home_host_uuid(op->s->o.home, uuid, op->err);
    if (r == 0)
        r = snap_ds_get(op->s, name, &ds, op->err);
    if (r < 0)
        return r;
    struct gr_device_opts o = {.host_uuid = uuid, .login = ds->login};
    r = gr_device_open(op->s->o.loop, device, &o, &bdev, op->err);
    if (r == 0)
        r = vmfs_device_open(ds->v, bdev, op->err);
    if (r == 0)
        r = keep(op->s, ds, device, bdev, op->err);
    gr_bdev_put(bdev);
    snap_ds_put(ds);
    return r;
}
