/* Devices before they are part of a datastore: made, looked at, tried, and what was made undone. */
#include "snapshot/service_creation.h"
#include "common/bdev_probe.h"
#include "vmfs/format.h"
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

int snap_creation_open(struct snap_creation *c, struct snap_svc *s, const struct gr_device_login *login, struct gr_err *err)
{
    c->loop = s->o.loop;
    c->device = (struct gr_device_opts){.host_uuid = c->host_uuid, .login = *login};
    return gr_home_host_uuid(s->o.home, c->host_uuid, err);
}

void snap_creation_close(struct snap_creation *c)
{
    for (unsigned i = 0; i < c->n; i++) {
        gr_bdev_put(c->bdevs[i]);
        c->bdevs[i] = NULL;
    }
}

void snap_creation_undo(struct snap_creation *c)
{
    snap_creation_close(c);
    for (unsigned i = 0; i < c->n; i++) {
        if (c->made[i])
            unlink(c->paths[i]);
        else if (c->was_empty[i] && truncate(c->paths[i], 0) < 0)
            continue; /* an empty file stays longer than it was: nothing is lost */
    }
}

/* A missing file is made; an empty one gets its length; anything else is taken as it is. */
int snap_creation_prepare(struct snap_creation *c, unsigned i, struct gr_err *err)
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
int snap_creation_enter(const struct snap_creation *c, struct gr_bdev *bdev, struct gr_err *err)
{
    const struct gr_world *w = gr_loop_world(c->loop);
    uint64_t key = 0;
    while (key == 0)
        w->random(w->arg, &key, sizeof(key));
    return bdev->fence && !c->one_host ? bdev->fence->enter(bdev, key, err) : 0;
}

static const char *const tested_names[] = {"fence", "shuts-out-writes", "shuts-out-reads", "joint", "swaps", "miscompares", "one-winner", "ejects",
                                           "drains", "outlasts-session", "outlasts-power", "flushes"};

json_t *snap_tested_row(uint32_t tested)
{
    json_t *a = json_array();
    for (size_t i = 0; a && i < GR_ARRAY_LEN(tested_names); i++)
        if (tested >> i & 1)
            json_array_append_new(a, json_string(tested_names[i]));
    return a;
}

static uint32_t tested_bits(const struct gr_probe *p)
{
    const bool seen[] = {p->fence, p->shuts_out_writes, p->shuts_out_reads, p->joint, p->swaps, p->miscompares, p->one_winner, p->ejects,
                         p->drains, p->outlasts_session, p->outlasts_power, p->flushes};
    uint32_t bits = 0;
    for (size_t i = 0; i < GR_ARRAY_LEN(seen); i++)
        bits |= (uint32_t)seen[i] << i;
    return bits;
}

/* What several hosts on a LUN rely on is tried, with a second nexus, before they do. Unit 0 is nobody's in a datastore. */
static int device_try(struct snap_creation *c, unsigned i, struct gr_err *err)
{
    struct gr_probe_opts o = {.off = 0};
    struct gr_device_opts other_host = {.host_uuid = c->host_uuid, .stranger = true, .login = c->device.login};
    struct gr_probe seen;
    struct gr_bdev *other = NULL;
    int r = gr_device_open(c->loop, c->paths[i], &other_host, &other, err);
    if (r == 0)
        r = gr_bdev_probe(c->bdevs[i], other, &o, &seen, err);
    gr_bdev_put(other);
    c->tested[i] = r == 0 ? tested_bits(&seen) : 0;
    return r;
}

int snap_creation_check(struct snap_creation *c, unsigned i, bool force, const char *own, struct gr_err *err)
{
    char what[160] = "", mine[160] = "";
    int r = gr_device_open(c->loop, c->paths[i], &c->device, &c->bdevs[i], err);
    if (r < 0)
        return r;
    const char *hint = own ? "" : " (with --one-host it may be used by one at a time)";
    r = snap_creation_enter(c, c->bdevs[i], err);
    if (r < 0)
        return gr_prefix(err, r, "%s cannot be shared by hosts%s", c->paths[i], hint);
    r = vmfs_probe(c->loop, c->bdevs[i], what, err);
    if (c->bdevs[i]->fence && !c->one_host)
        c->bdevs[i]->fence->leave(c->bdevs[i], NULL);
    if (r < 0)
        return gr_prefix(err, r, "%s", c->paths[i]);
    if (own)
        snprintf(mine, sizeof(mine), "Granary datastore '%s'", own); /* what an attempt that was broken off left: who adds it looks closer */
    if (what[0] && !force && strcmp(what, mine) != 0)
        return gr_fail(err, -EEXIST, "%s: holds a %s already; nothing was changed (--force formats over it)", c->paths[i], what);
    r = gr_device_is_lun(c->paths[i]) && !c->one_host ? device_try(c, i, err) : 0;
    return r < 0 ? gr_prefix(err, r, "%s cannot be shared by hosts%s", c->paths[i], hint) : 0;
}

bool snap_same_device(const char *one, const char *other)
{
    struct stat a, b;
    if (gr_device_is_lun(one) || gr_device_is_lun(other))
        return strcmp(one, other) == 0;
    return stat(one, &a) == 0 && stat(other, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* Even --force does not format over a datastore that is registered here, joined or not. */
int snap_creation_free_of(struct snap_svc *s, const struct snap_creation *c, const struct snap_ds *but, struct gr_err *err)
{
    for (struct snap_ds *ds = s->list; ds; ds = ds->next)
        for (unsigned i = 0; ds != but && i < ds->n_devices; i++)
            for (unsigned k = 0; k < c->n; k++)
                if (snap_same_device(ds->devices[i], c->paths[k]))
                    return gr_fail(err, -GR_ELOCKED, "%s: holds datastore '%s', which is registered here; leave or destroy it first", c->paths[k],
                                   ds->name);
    return 0;
}

