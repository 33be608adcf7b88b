/* Devices that join a volume while it is in use, and what there is to say of those it has.
 *
 *   1. the device is opened, behind the fence, and gets its table and superblocks that list it: on other devices nothing says so yet
 *   2. every other host that is joined opens it, too (@confirm)
 *   3. the superblocks of the other devices list it, device 0 first: from here on it is a member
 *
 * Cut anywhere before 3 it is no member and can be added again. A host that joins between 2 and 3 without it meets a list longer than the
 * devices it has open (vmfs_refresh): it locks nothing and takes nobody over until it has opened it. */
#include "common/seam.h"
#include "vmfs/rescue.h"

int vmember_open(struct vmfs *v, struct gr_bdev *bdev, struct gr_err *err)
{
    unsigned n = v->n_dev;
    struct vdev *d = &v->dev[n];
    if (n == VMFS_DEVICES_MAX)
        return gr_fail(err, -GR_ENOSPACE, "datastore '%s' has had %u devices: more are not possible", v->sb.name, n);
    int r = gr_chan_open(bdev, v->loop, &d->ch);
    if (r < 0)
        return gr_fail(err, r, "'%s' cannot be used: %s", bdev->name, gr_code_text(r));
    d->bdev = bdev;
    r = vlife_enter_device(v, bdev, err);
    if (r < 0) {
        gr_chan_close(gr_take(d->ch));
        return r;
    }
    v->n_dev++;
    return (int)n;
}

void vmember_close(struct vmfs *v)
{
    struct vdev *d = &v->dev[--v->n_dev];
    vlife_leave_device(v, d->bdev);
    gr_chan_close(d->ch);
    *d = (struct vdev){ 0 };
}

/* One that was opened for an attempt which came to nothing. */
static void close_stale(struct vmfs *v)
{
    vmfs_refresh(v, NULL); /* it may be a member by now */
    while (v->n_dev > v->sb.n_devices)
        vmember_close(v);
}

static bool is_member(const struct vmfs *v, const uint8_t uuid[16])
{
    for (unsigned i = 0; i < v->sb.n_devices; i++)
        if (v->sb.dev[i].state != VMFS_DEVICE_GONE && memcmp(v->sb.dev[i].uuid, uuid, 16) == 0)
            return true;
    return false;
}

/* ---- on the other hosts ---- */
static int same_volume(struct vmfs *v, unsigned n, struct gr_err *err)
{
    struct vsuper s;
    struct gr_geometry g;
    struct gr_bdev *d = v->dev[n].bdev;
    int r = vsuper_read(v, n, &s, err);
    if (r == 0 && (memcmp(s.uuid, v->sb.uuid, 16) != 0 || s.this_device != n))
        r = gr_fail(err, -EINVAL, "'%s' is device %u of datastore '%s', not device %u of datastore '%s'", d->name, s.this_device, s.name, n, v->sb.name);
    if (r == 0 && (gr_bdev_geometry(d, &g) < 0 || g.size / VMFS_UNIT < s.dev[n].units))
        r = gr_fail(err, -GR_ECORRUPT, "'%s' is cut short: the datastore has %llu bytes of it", d->name, (unsigned long long)s.dev[n].units * VMFS_UNIT);
    if (r == 0)
        memcpy(v->dev[n].uuid, s.dev[n].uuid, 16);
    return r;
}

int vmfs_device_open(struct vmfs *v, struct gr_bdev *bdev, struct gr_err *err)
{
    gr_fmutex_lock(&v->member_lock);
    close_stale(v);
    int n = vmember_open(v, bdev, err), r = n;
    if (n >= 0 && (r = same_volume(v, (unsigned)n, err)) < 0)
        vmember_close(v);
    if (r == 0)
        r = vmfs_refresh(v, err);
    gr_fmutex_unlock(&v->member_lock);
    return r;
}

int vmfs_device_number(struct vmfs *v, const struct gr_bdev *bdev)
{
    if (v->rescue)
        return vrescue_device(v, bdev);
    for (unsigned i = 0; i < v->sb.n_devices; i++)
        if (bdev && v->dev[i].bdev == bdev)
            return (int)i;
    return -ENOENT;
}

/* ---- adding ---- */
/* Nothing that anybody would miss: blank, or what an attempt to add it here left. 1: it is a member, which this host had not noticed. */
static int refuse_used(struct vmfs *v, unsigned n, bool force, struct gr_err *err)
{
    struct gr_bdev *d = v->dev[n].bdev;
    struct vsuper s;
    char what[160];
    int r = vmfs_probe(v->loop, d, what, err);
    if (r < 0 || !what[0])
        return r;
    if (vsuper_read(v, n, &s, NULL) == 0) {
        const uint8_t *uuid = s.dev[s.this_device].uuid;
        if (memcmp(s.uuid, v->sb.uuid, 16) != 0)
            return gr_fail(err, -EEXIST, "'%s' holds a %s: destroy that first, nothing was changed", d->name, what);
        if (is_member(v, uuid))
            return gr_fail(err, -EEXIST, "'%s' is a device of datastore '%s' already", d->name, v->sb.name);
        memcpy(v->dev[n].uuid, uuid, 16);
        r = vmfs_refresh(v, err);
        return r < 0 ? r : is_member(v, uuid);
    }
    return force ? 0 : gr_fail(err, -EEXIST, "'%s' already holds a %s: nothing was changed", d->name, what);
}

/* The superblock as it will be with device @n. */
static int with_member(struct vmfs *v, unsigned n, uint32_t tested, struct vsuper *s, struct gr_err *err)
{
    const struct gr_world *w = gr_loop_world(v->loop);
    struct gr_geometry g;
    int r = gr_bdev_geometry(v->dev[n].bdev, &g);
    uint64_t units = r < 0 ? 0 : g.size / VMFS_UNIT;
    if (r < 0)
        return gr_fail(err, r, "'%s' cannot be used: %s", v->dev[n].bdev->name, gr_code_text(r));
    if (units < VMFS_MIN_UNITS || units > VMFS_MAX_UNITS)
        return gr_fail(err, -EINVAL, "'%s' has %llu bytes: a device of a datastore has at least %llu (32 MiB)", v->dev[n].bdev->name,
                       (unsigned long long)g.size, (unsigned long long)VMFS_MIN_UNITS * VMFS_UNIT);
    *s = v->sb;
    s->n_devices = n + 1;
    s->incompat |= VMFS_INCOMPAT_MEMBERS;
    s->generation++;
    mkfs_uuid(v, s->dev[n].uuid);
    s->dev[n].tested = tested;
    s->dev[n].tested_s = tested ? (uint64_t)w->wall_s(w->arg) : 0;
    return mkfs_member(s, n, units, err);
}

/* The namespace is locked: nobody else changes the list. */
static int add_locked(struct vmfs *v, unsigned n, const struct vmfs_device_add *add, struct gr_err *err)
{
    struct vsuper s;
    int r = vmfs_refresh(v, err);
    if (r == 0 && v->sb.n_devices != n)
        r = gr_fail(err, -EAGAIN, "datastore '%s': another host added a device meanwhile: try again", v->sb.name);
    if (r == 0)
        r = with_member(v, n, add->tested, &s, err);
    if (r == 0)
        r = vsuper_write(v, &s, n, err);
    if (r == 0)
        memcpy(v->dev[n].uuid, s.dev[n].uuid, 16);
    if (r == 0 && add->confirm)
        r = add->confirm(add->arg, err);
    for (unsigned i = 0; r == 0 && i < n; i++)
        if ((r = vsuper_write(v, &s, i, err)) < 0 && r != -EAGAIN)
            vmfs_fence(v, "a superblock could not be written: nobody knows whether '%s' is a device of it", v->dev[n].bdev->name);
    if (r == 0 && (r = space_regions_added(v, &s)) < 0)
        gr_fail(err, r, "out of memory");
    return r;
}

/* Before the namespace is locked: it may take a while. */
static int clear_tables(struct vmfs *v, unsigned n, uint64_t end, struct gr_err *err)
{
    int r = mkfs_clear(v, n, 0, end);
    if (r == 0)
        r = gr_flush(v->dev[n].ch);
    return r < 0 ? gr_fail(err, r, "'%s': its tables cannot be cleared: %s", v->dev[n].bdev->name, gr_code_text(r)) : 0;
}

int vmfs_device_add(struct vmfs *v, struct gr_bdev *bdev, const struct vmfs_device_add *add, struct gr_err *err)
{
    struct vobj *root;
    struct vsuper s;
    if (v->role != VMFS_HOST)
        return gr_fail(err, -GR_EREADONLY, "this host joined datastore '%s' for reading only", v->sb.name);
    int r = vrescue_refuse(v, err);
    if (r == 0)
        r = vdev_all_here(v, "no device can be added", err);
    if (r < 0)
        return r;
    gr_fmutex_lock(&v->member_lock);
    close_stale(v);
    int n = vmember_open(v, bdev, err);
    r = n;
    if (n >= 0) {
        r = refuse_used(v, (unsigned)n, add->force, err);
        if (r == 0)
            r = with_member(v, (unsigned)n, add->tested, &s, err);
        if (r == 0)
            r = clear_tables(v, (unsigned)n, s.dev[n].first_unit, err);
        if (r == 0 && (r = ns_begin_bare(v, &root, err)) == 0)
            r = ns_end(v, add_locked(v, (unsigned)n, add, err), err);
        if (v->sb.n_devices == (unsigned)n && !v->fenced)
            vmember_close(v);
        r = r == 1 ? 0 : r;
    }
    gr_fmutex_unlock(&v->member_lock);
    return r;
}

/* ---- what there is ---- */
/* Free units of its regions: of those leased here as it is, of others as of their last checkpoint. */
static int free_of(struct vmfs *v, unsigned dev, uint64_t *ret, struct gr_err *err)
{
    const struct vdevinfo *d = &v->sb.dev[dev];
    int r = 0;
    *ret = 0;
    for (uint32_t i = d->first_region; r == 0 && i < d->first_region + d->regions; i++) {
        uint64_t units = 0;
        r = space_region_free(v, i, &units, err);
        *ret += units;
    }
    return r;
}

int vmfs_devices(struct vmfs *v, void (*fn)(void *arg, const struct vmfs_device_info *d), void *arg, struct gr_err *err)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < v->sb.n_devices; i++) {
        const struct vdevinfo *d = &v->sb.dev[i];
        if (d->state == VMFS_DEVICE_GONE)
            continue;
        struct vmfs_device_info info = { .number = i, .size = d->units * VMFS_UNIT, .metadata = d->first_unit * VMFS_UNIT, .regions = d->regions,
                                         .added = d->table.entries != 0, .leaving = d->state == VMFS_DEVICE_LEAVING, .tested = d->tested, .tested_s = (int64_t)d->tested_s };
        uint64_t free_units = 0;
        memcpy(info.uuid, d->uuid, 16);
        info.missing = vdev_missing(v, i) || vrescue_lost(v, i);
        info.stale = vdev_stale(v, i);
        info.lost = v->lost.devices >> i & 1;
        if (!info.missing)
            snprintf(info.name, sizeof info.name, "%s", v->dev[i].bdev->name);
        r = d->state == VMFS_DEVICE_IN_USE && !info.missing && !info.stale ? free_of(v, i, &free_units, err) : 0;
        info.free = free_units * VMFS_UNIT;
        if (r == 0)
            fn(arg, &info);
    }
    return r;
}
