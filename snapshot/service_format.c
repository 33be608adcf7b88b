/* Making and destroying datastores: datastore.create, datastore.destroy. */
#include "snapshot/service_creation.h"
#include <string.h>
#include <sys/stat.h>

/* ---- create ---- */
static int format_devices(struct snap_op *op, const char *name, struct snap_creation *c)
{
    bool force = false, preallocate = false, data_crc = false;
    int r = gr_json_opt_bool(op->params, "force", &force, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "preallocate", &preallocate, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "one-host", &c->one_host, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "data-crc", &data_crc, op->err);
    for (unsigned i = 0; i < c->n && r == 0 && c->one_host; i++)
        if (!gr_device_is_lun(c->paths[i]))
            r = gr_fail(op->err, -GR_EUSAGE, "%s: --one-host is for LUNs that cannot keep a lost host out; on files and block devices hosts are told apart by locks",
                        c->paths[i]);
    for (unsigned i = 0; i < c->n && r == 0; i++)
        r = snap_creation_prepare(c, i, op->err);
    for (unsigned i = 0; i < c->n && r == 0; i++)
        r = snap_creation_check(c, i, force, NULL, op->err);
    if (r < 0)
        return r;
    struct vmfs_format_opts fo = {.name = name, .force = force, .preallocate = preallocate, .timing = c->timing, .one_host = c->one_host,
                                  .data_crc = data_crc, .tested = c->tested};
    return vmfs_format(c->loop, c->bdevs, c->n, &fo, op->err);
}

int snap_op_datastore_create(struct snap_op *op)
{
    const char *name = NULL;
    json_t *devices = NULL;
    struct snap_creation c = {0};
    struct gr_device_login login;
    int r = snap_login_get(json_object_get(op->params, "login"), &login, op->err);
    if (r == 0)
        r = snap_creation_open(&c, op->s, &login, op->err);
    if (r == 0)
        r = gr_json_str(op->params, "name", &name, op->err);
    if (r == 0)
        r = snap_datastore_name_check(name, op->err);
    if (r == 0)
        r = snap_op_devices(op, &devices, c.paths, &c.n);
    c.has_size = json_object_get(op->params, "size") != NULL;
    const char *timing = "default";
    if (r == 0)
        r = gr_json_opt_str(op->params, "timing", &timing, op->err);
    if (r == 0 && strcmp(timing, "fast") != 0 && strcmp(timing, "default") != 0)
        r = gr_fail(op->err, -GR_EUSAGE, "datastore '%s': timing '%s': it is default or fast", name, timing);
    c.timing = r == 0 && strcmp(timing, "fast") == 0 ? VMFS_TIMING_FAST : VMFS_TIMING_DEFAULT;
    if (r == 0)
        r = gr_json_opt_u64(op->params, "size", &c.size, op->err);
    if (r < 0)
        return r;
    if (c.has_size && (c.size == 0 || c.size > INT64_MAX || c.size % 4096))
        return gr_fail(op->err, -GR_EUSAGE, "datastore '%s': size %llu is not possible: it must be a multiple of 4096 above 0 and below 2^63",
                       name, (unsigned long long)c.size);
    gr_fmutex_lock(&op->s->lock);
    struct snap_ds *ds = NULL;
    if (snap_ds_find(op->s, name))
        r = gr_fail(op->err, -EEXIST, "datastore '%s' is registered here already", name);
    else
        r = snap_creation_free_of(op->s, &c, NULL, op->err);
    if (r == 0)
        r = format_devices(op, name, &c);
    snap_creation_close(&c);
    if (r == 0)
        r = snap_op_register(op, name, devices, &ds);
    if (r < 0)
        snap_creation_undo(&c);
    else
        ds->users++;
    gr_fmutex_unlock(&op->s->lock);
    if (r < 0)
        return r;
    r = snap_op_datastore(op, ds);
    snap_ds_put(ds);
    return r;
}


/* ---- destroy ---- */
struct others {
    unsigned n;
    char host[64];
};

static void count_other(void *arg, const struct vmfs_slot_info *s)
{
    struct others *o = arg;
    if (!s->alive || s->self || strcmp(s->state, "free") == 0)
        return;
    o->n++;
    memcpy(o->host, s->host_name, sizeof(o->host));
}

/* Nobody is joined any more: an empty volume is written over it, which is refused, even forced, when a host joined in the
 * meantime; then the traces go: a file is removed, a block device's ends are zeroed. */
static int wipe(struct snap_op *op, struct snap_ds *ds, bool one_host)
{
    struct snap_creation c = {.n = ds->n_devices, .one_host = one_host};
    int r = snap_creation_open(&c, op->s, &ds->login, op->err);
    for (unsigned i = 0; i < c.n && r == 0; i++) {
        c.paths[i] = ds->devices[i];
        r = gr_device_open(c.loop, c.paths[i], &c.device, &c.bdevs[i], op->err);
    }
    struct vmfs_format_opts fo = {.name = ds->name, .force = true, .one_host = one_host};
    if (r == 0)
        r = vmfs_format(c.loop, c.bdevs, c.n, &fo, op->err);
    for (unsigned i = 0; i < c.n && r == 0; i++) {
        struct stat st;
        if (!gr_device_is_lun(c.paths[i]) && stat(c.paths[i], &st) == 0 && S_ISREG(st.st_mode)) {
            if (unlink(c.paths[i]) < 0)
                r = gr_fail(op->err, -errno, "%s: cannot be removed: %s", c.paths[i], strerror(errno));
            continue;
        }
        struct gr_geometry g;
        struct gr_chan *ch = NULL;
        r = snap_creation_enter(&c, c.bdevs[i], op->err);
        if (r == 0)
            r = gr_bdev_geometry(c.bdevs[i], &g);
        if (r == 0)
            r = gr_chan_open(c.bdevs[i], c.loop, &ch);
        uint64_t end = GR_MIN(g.size / 2, 64ull << 20) / 4096 * 4096;
        if (r == 0)
            r = gr_write_zeroes(ch, 0, end, 0);
        if (r == 0)
            r = gr_write_zeroes(ch, (g.size - end) / 4096 * 4096, end, 0);
        if (r == 0)
            r = gr_flush(ch);
        gr_chan_close(ch);
        if (r == 0 && c.bdevs[i]->fence && !one_host)
            c.bdevs[i]->fence->clear(c.bdevs[i], NULL);
        if (r < 0)
            gr_fail(op->err, r, "%s: cannot be wiped: %s", c.paths[i], gr_code_text(r));
    }
    snap_creation_close(&c);
    return r;
}

int snap_op_datastore_destroy(struct snap_op *op)
{
    struct snap_ds *ds = NULL;
    bool yes = false;
    int r = gr_json_opt_bool(op->params, "yes", &yes, op->err);
    if (r < 0)
        return r;
    gr_fmutex_lock(&op->s->lock);
    r = snap_op_named(op, &ds);
    if (r == 0 && !yes)
        r = gr_fail(op->err, -GR_EUSAGE, "datastore '%s': destroying it removes all its disks for ever: add --yes", ds->name);
    if (r == 0 && !ds->v)
        r = snap_ds_join(op->s, ds, op->err);
    struct others o = {0};
    struct vmfs_info info = {0};
    if (r == 0)
        vmfs_info(ds->v, &info);
    if (r == 0)
        r = vmfs_slots(ds->v, count_other, &o, op->err);
    if (r >= 0 && o.n > 0)
        r = gr_fail(op->err, -GR_ELOCKED, "datastore '%s' is in use by host '%s'%s: it has to leave first", ds->name, o.host,
                    o.n > 1 ? " and others" : "");
    if (r >= 0)
        r = snap_ds_leave(op->s, ds, true, op->err);
    if (r == 0)
        r = wipe(op, ds, info.one_host);
    if (r == 0) {
        snap_ds_remove(op->s, ds);
        r = snap_registry_save(op->s, op->err);
    }
    gr_fmutex_unlock(&op->s->lock);
    return r;
}
