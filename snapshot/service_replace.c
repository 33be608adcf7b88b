/* Method datastore.replace-device {"name","lost","device","size"?,"yes":true}: an empty device takes the place of one that the datastore cannot do without and that is
 * lost for good; then it is joined. */
#include "common/cleanup.h"
#include "common/seam.h"
#include "snapshot/service_creation.h"
#include <string.h>

struct replacing {
    struct snap_op *op;
    struct snap_ds *ds;
    struct snap_creation new;
    uint64_t lost;
    struct gr_bdev *open[VMFS_DEVICES_MAX]; /* the others, */
    char *names[VMFS_DEVICES_MAX];          /* of ds->devices */
    unsigned n;
};

static void warn(void *arg, const char *text)
{
    const struct replacing *k = arg;
    snap_warn(k->op->s, "%s", text);
}

/* Nobody here is at work on it: it cannot be joined, is only being rescued, or was given up. */
static int let_go(struct replacing *k)
{
    struct snap_ds *ds = k->ds;
    if (ds->leaving || ds->ejected)
        return gr_fail(k->op->err, -EBUSY, "datastore '%s' is being left or joined just now: try again", ds->name);
    if (!ds->v)
        return 0;
    if (!ds->rescue && !snap_fenced(ds))
        return gr_fail(k->op->err, -EINVAL, "datastore '%s' is joined, so no device is missing that it cannot do without", ds->name);
    int r = snap_ds_leave(k->op->s, ds, ds->rescue, k->op->err);
    return ds->v ? r : 0; /* one that was given up cannot be left in order */
}

/* All that are there, but for the new one: that may have the lost one's name. */
static int others_open(struct replacing *k)
{
    struct snap_ds *ds = k->ds;
    for (unsigned i = 0; i < ds->n_devices; i++) {
        struct gr_err why = {0};
        if (snap_same_device(ds->devices[i], k->new.paths[0]))
            continue;
        if (gr_device_open(k->op->s->o.loop, ds->devices[i], &k->new.device, &k->open[k->n], &why) < 0) {
            snap_warn(k->op->s, "datastore '%s': %s", ds->name, why.text);
            continue;
        }
        k->names[k->n++] = ds->devices[i];
    }
    return k->n ? 0 : gr_fail(k->op->err, -ENODEV, "datastore '%s': none of its devices is there", ds->name);
}

static int replace(struct replacing *k)
{
    struct snap_op *op = k->op;
    int r = snap_creation_prepare(&k->new, 0, op->err);
    if (r == 0)
        r = snap_creation_check(&k->new, 0, false, k->ds->name, op->err);
    if (r == -EEXIST && k->new.bdevs[0]) /* what an attempt that was broken off left, perhaps: that is looked at more closely */
        r = 0;
    struct vmfs_replacing how = {.lost = (unsigned)k->lost, .tested = k->new.tested[0], .warn = warn, .warn_arg = k};
    if (r == 0)
        r = vmfs_replace_device(op->s->o.loop, k->open, k->n, k->new.bdevs[0], &how, op->err);
    bool untouched = r == -EINVAL || r == -EEXIST || r == -ENODEV || r == -EBUSY || r == -GR_ELOCKED || r == -GR_EUSAGE;
    if (r < 0 && untouched)
        snap_creation_undo(&k->new);
    else
        snap_creation_close(&k->new);
    return r;
}

/* The registry has the new device in place of what is not there. */
static int keep(struct replacing *k)
{
    struct snap_ds *ds = k->ds;
    char *devices[VMFS_DEVICES_MAX] = {0}, *with = gr_strdup(k->new.paths[0]);
    if (!with)
        return gr_fail(k->op->err, -ENOMEM, "out of memory");
    memcpy(devices, k->names, k->n * sizeof(devices[0]));
    devices[k->n] = with;
    for (unsigned i = 0, at = 0; i < ds->n_devices; i++) {
        if (at < k->n && ds->devices[i] == k->names[at])
            at++;
        else
            free(ds->devices[i]);
    }
    memcpy(ds->devices, devices, sizeof(devices));
    ds->n_devices = k->n + 1;
    ds->rescue = false;
    free(gr_take(ds->accepted));
    ds->n_accepted = 0;
    memset(ds->lost, 0, sizeof(ds->lost));
    return snap_registry_save(k->op->s, k->op->err);
}

static int replace_locked(struct replacing *k, const char *name)
{
    struct snap_op *op = k->op;
    struct gr_err ignored = {0};
    k->ds = snap_ds_find(op->s, name);
    if (!k->ds)
        return gr_fail(op->err, -ENOENT, "datastore '%s' is not registered here: register it with 'granary datastore join --rescue'", name);
    int r = snap_creation_free_of(op->s, &k->new, k->ds, op->err);
    if (r == 0)
        r = snap_creation_open(&k->new, op->s, &k->ds->login, op->err);
    if (r == 0)
        r = let_go(k);
    if (r < 0)
        return r;
    r = others_open(k);
    if (r == 0)
        r = replace(k);
    for (unsigned i = 0; i < k->n; i++)
        gr_bdev_put(k->open[i]);
    if (r == 0)
        r = keep(k);
    if (r == 0)
        r = snap_ds_join(op->s, k->ds, op->err);
    else
        snap_ds_join(op->s, k->ds, &ignored); /* as it was */
    return r;
}

int snap_op_device_replace(struct snap_op *op)
{
    struct replacing k = {.op = op, .new = {.n = 1}};
    const char *name = NULL;
    bool yes = false;
    int r = gr_json_str(op->params, "name", &name, op->err);
    if (r == 0)
        r = gr_json_str(op->params, "device", &k.new.paths[0], op->err);
    if (r == 0)
        r = gr_device_name_check(k.new.paths[0], op->err);
    if (r == 0)
        r = gr_json_u64(op->params, "lost", &k.lost, op->err);
    if (r == 0)
        r = gr_json_opt_u64(op->params, "size", &k.new.size, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "yes", &yes, op->err);
    if (r == 0 && !yes)
        r = gr_fail(op->err, -GR_EUSAGE, "datastore '%s': what lay on the lost device stays lost, and the datastore never takes that device back: see to it that it is lost for good and that no "
                    "other host uses the datastore, and add --yes", name);
    if (r < 0)
        return r;
    k.new.has_size = json_object_get(op->params, "size") != NULL;
    if (k.lost >= VMFS_DEVICES_MAX || (k.new.has_size && (k.new.size == 0 || k.new.size > INT64_MAX || k.new.size % 4096)))
        return gr_fail(op->err, -GR_EUSAGE, "%s: device number %llu or size %llu is not possible", k.new.paths[0], (unsigned long long)k.lost, (unsigned long long)k.new.size);
    gr_fmutex_lock(&op->s->lock);
    r = replace_locked(&k, name);
    if (r == 0)
        k.ds->users++;
    gr_fmutex_unlock(&op->s->lock);
    if (r < 0)
        return r;
    snap_svc_open_all(op->s);
    r = snap_op_datastore(op, k.ds);
    snap_ds_put(k.ds);
    return r;
}
