/* Making and destroying datastores: datastore.create, datastore.destroy. */
#include "common/bdev_probe.h"
#include "snapshot/service_int.h"
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

/* ---- create ---- */
struct creation {
    struct gr_loop *loop;
    const char *paths[VMFS_DEVICES_MAX];
    bool made[VMFS_DEVICES_MAX]; /* made or lengthened here, to be undone */
    bool was_empty[VMFS_DEVICES_MAX];
    struct gr_bdev *bdevs[VMFS_DEVICES_MAX];
    unsigned n;
    uint64_t size;
    bool has_size;
    enum vmfs_timing timing;
    uint8_t host_uuid[16];
    struct gr_device_opts device;
};

static int creation_open(struct creation *c, struct snap_svc *s, const struct gr_device_login *login, struct gr_err *err)
{
    c->loop = s->o.loop;
    c->device = (struct gr_device_opts){.host_uuid = c->host_uuid, .login = *login};
    return gr_home_host_uuid(s->o.home, c->host_uuid, err);
}

static void creation_close(struct creation *c)
{
    for (unsigned i = 0; i < c->n; i++) {
        gr_bdev_put(c->bdevs[i]);
        c->bdevs[i] = NULL;
    }
}

static void creation_undo(struct creation *c)
{
    creation_close(c);
    for (unsigned i = 0; i < c->n; i++) {
        if (c->made[i])
            unlink(c->paths[i]);
        else if (c->was_empty[i] && truncate(c->paths[i], 0) < 0)
            continue; /* an empty file stays longer than it was: nothing is lost */
    }
}

/* A missing file is made; an empty one gets its length; anything else is taken as it is. */
static int device_prepare(struct creation *c, unsigned i, struct gr_err *err)
{
    const char *path = c->paths[i];
    struct stat st;
    if (gr_device_is_lun(path))
        return 0;
    bool missing = stat(path, &st) < 0;
    if (missing && errno != ENOENT)
        return gr_fail(err, -errno, "%s: %s", path, strerror(errno));
    if (!missing && !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return gr_fail(err, -EINVAL, "%s: neither a regular file nor a block device", path);
    if (missing && !c->has_size)
        return gr_fail(err, -ENOENT, "%s: no such device or file; give --size to make a file", path);
    if (!missing && (S_ISBLK(st.st_mode) || st.st_size > 0)) {
        if (c->has_size && S_ISREG(st.st_mode) && (uint64_t)st.st_size != c->size)
            return gr_fail(err, -EEXIST, "%s: is there already and is %llu bytes long, not %llu: leave --size away or remove the file", path,
                           (unsigned long long)st.st_size, (unsigned long long)c->size);
        return 0;
    }
    if (!c->has_size)
        return gr_fail(err, -GR_EUSAGE, "%s: an empty file; give --size", path);
    gr_auto_close int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | (missing ? O_EXCL : 0), 0600);
    if (fd < 0)
        return gr_fail(err, -errno, "%s: cannot make the file: %s", path, strerror(errno));
    c->made[i] = missing;
    c->was_empty[i] = !missing;
    if (ftruncate(fd, (off_t)c->size) < 0)
        return gr_fail(err, -errno, "%s: cannot make it %llu bytes long: %s", path, (unsigned long long)c->size, strerror(errno));
    return 0;
}

/* Shared LUNs are closed to whoever is not registered, also to a reader. */
static int fence_enter(const struct creation *c, struct gr_bdev *bdev, struct gr_err *err)
{
    const struct gr_world *w = gr_loop_world(c->loop);
    uint64_t key = 0;
    while (key == 0)
        w->random(w->arg, &key, sizeof(key));
    return bdev->fence ? bdev->fence->enter(bdev, key, err) : 0;
}

/* What several hosts on a LUN rely on is tried, with a second nexus, before they do. Unit 0 is nobody's in a datastore. */
static int device_try(struct creation *c, unsigned i, struct gr_err *err)
{
    struct gr_probe_opts o = {.off = 0};
    struct gr_device_opts other_host = {.login = c->device.login};
    struct gr_probe seen;
    struct gr_bdev *other = NULL;
    int r = gr_device_open(c->loop, c->paths[i], &other_host, &other, err);
    if (r == 0)
        r = gr_bdev_probe(c->bdevs[i], other, &o, &seen, err);
    gr_bdev_put(other);
    return r < 0 ? gr_prefix(err, r, "%s cannot be shared by hosts", c->paths[i]) : 0;
}

static int device_check(struct creation *c, unsigned i, bool force, struct gr_err *err)
{
    char what[160] = "";
    int r = gr_device_open(c->loop, c->paths[i], &c->device, &c->bdevs[i], err);
    if (r < 0)
        return r;
    r = fence_enter(c, c->bdevs[i], err);
    if (r < 0)
        return gr_prefix(err, r, "%s cannot be shared by hosts", c->paths[i]);
    r = vmfs_probe(c->loop, c->bdevs[i], what, err);
    if (c->bdevs[i]->fence)
        c->bdevs[i]->fence->leave(c->bdevs[i], NULL);
    if (r < 0)
        return gr_prefix(err, r, "%s", c->paths[i]);
    if (what[0] && !force)
        return gr_fail(err, -EEXIST, "%s: holds a %s already; nothing was changed (--force formats over it)", c->paths[i], what);
    return gr_device_is_lun(c->paths[i]) ? device_try(c, i, err) : 0;
}

static bool same_device(const char *one, const char *other)
{
    struct stat a, b;
    if (gr_device_is_lun(one) || gr_device_is_lun(other))
        return strcmp(one, other) == 0;
    return stat(one, &a) == 0 && stat(other, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* Even --force does not format over a datastore that is registered here, joined or not. */
static int refuse_registered(struct snap_svc *s, const struct creation *c, struct gr_err *err)
{
    for (struct snap_ds *ds = s->list; ds; ds = ds->next)
        for (unsigned i = 0; i < ds->n_devices; i++)
            for (unsigned k = 0; k < c->n; k++)
                if (same_device(ds->devices[i], c->paths[k]))
                    return gr_fail(err, -GR_ELOCKED, "%s: holds datastore '%s', which is registered here; leave or destroy it first", c->paths[k],
                                   ds->name);
    return 0;
}

static int format_devices(struct snap_op *op, const char *name, struct creation *c)
{
    bool force = false, preallocate = false;
    int r = gr_json_opt_bool(op->params, "force", &force, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "preallocate", &preallocate, op->err);
    for (unsigned i = 0; i < c->n && r == 0; i++)
        r = device_prepare(c, i, op->err);
    for (unsigned i = 0; i < c->n && r == 0; i++)
        r = device_check(c, i, force, op->err);
    if (r < 0)
        return r;
    struct vmfs_format_opts fo = {.name = name, .force = force, .preallocate = preallocate, .timing = c->timing};
    return vmfs_format(c->loop, c->bdevs, c->n, &fo, op->err);
}

int snap_op_datastore_create(struct snap_op *op)
{
    const char *name = NULL;
    json_t *devices = NULL;
    struct creation c = {0};
    struct gr_device_login login;
    int r = snap_login_get(json_object_get(op->params, "login"), &login, op->err);
    if (r == 0)
        r = creation_open(&c, op->s, &login, op->err);
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
        r = refuse_registered(op->s, &c, op->err);
    if (r == 0)
        r = format_devices(op, name, &c);
    creation_close(&c);
    if (r == 0)
        r = snap_op_register(op, name, devices, &ds);
    if (r < 0)
        creation_undo(&c);
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
static int wipe(struct snap_op *op, struct snap_ds *ds)
{
    struct creation c = {.n = ds->n_devices};
    int r = creation_open(&c, op->s, &ds->login, op->err);
    for (unsigned i = 0; i < c.n && r == 0; i++) {
        c.paths[i] = ds->devices[i];
        r = gr_device_open(c.loop, c.paths[i], &c.device, &c.bdevs[i], op->err);
    }
    struct vmfs_format_opts fo = {.name = ds->name, .force = true};
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
        r = fence_enter(&c, c.bdevs[i], op->err);
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
        if (r == 0 && c.bdevs[i]->fence)
            c.bdevs[i]->fence->clear(c.bdevs[i], NULL);
        if (r < 0)
            gr_fail(op->err, r, "%s: cannot be wiped: %s", c.paths[i], gr_code_text(r));
    }
    creation_close(&c);
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
    if (r == 0)
        r = vmfs_slots(ds->v, count_other, &o, op->err);
    if (r >= 0 && o.n > 0)
        r = gr_fail(op->err, -GR_ELOCKED, "datastore '%s' is in use by host '%s'%s: it has to leave first", ds->name, o.host,
                    o.n > 1 ? " and others" : "");
    if (r >= 0)
        r = snap_ds_leave(op->s, ds, true, op->err);
    if (r == 0)
        r = wipe(op, ds);
    if (r == 0) {
        snap_ds_remove(op->s, ds);
        r = snap_registry_save(op->s, op->err);
    }
    gr_fmutex_unlock(&op->s->lock);
    return r;
}
