/* A volume whose last device grew: new regions behind the old ones. The namespace lock keeps two hosts from doing it at once;
 * others learn of it when they next take a lock (vmfs_refresh). */
#include "vmfs/loss.h"

/* The superblock as it would be with the last device of @units. 0: nothing to gain. */
static int grown(const struct vmfs *v, uint64_t units, struct vsuper *s, struct gr_err *err)
{
    *s = v->sb;
    struct vdevinfo *d = &s->dev[s->n_devices - 1];
    if (d->state != VMFS_DEVICE_IN_USE)
        return gr_fail(err, -EBUSY, "datastore '%s': the device it would grow on leaves or has left: add another device", s->name);
    uint64_t regions = (units - d->first_unit) / s->region_units, rest = (units - d->first_unit) % s->region_units;
    regions += rest >= VMFS_REGION_MIN;
    if (units > VMFS_MAX_UNITS)
        return gr_fail(err, -EINVAL, "datastore '%s': %llu bytes on one device: at most %llu", s->name, (unsigned long long)units * VMFS_UNIT,
                       (unsigned long long)VMFS_MAX_UNITS * VMFS_UNIT);
    uint32_t room = d->table.entries ? d->table.entries : s->regions.entries - d->first_region;
    if (regions > room)
        return gr_fail(err, -GR_ENOSPACE, "datastore '%s': its last device can grow to %llu bytes at most: its table has room for %u regions; "
                       "add another device", s->name, (unsigned long long)room * s->region_units * VMFS_UNIT, room);
    /* a last region that was short becomes a whole one when it is leased next: its bitmap has the bits already */
    d->units = units;
    d->regions = (uint32_t)regions;
    s->generation++;
    return regions > v->sb.dev[s->n_devices - 1].regions;
}

static int grow(struct vmfs *v, struct gr_err *err)
{
    struct gr_geometry g;
    struct vsuper s;
    struct vobj *root;
    int here = vdev_all_here(v, "it cannot grow", err);
    if (here < 0)
        return here;
    struct gr_bdev *last = v->dev[v->sb.n_devices - 1].bdev;
    int r = last ? gr_bdev_geometry(last, &g) : vmfs_refresh(v, err);
    if (!last)
        return r; /* it has left */
    if (r < 0)
        return gr_fail(err, r, "datastore '%s': its device cannot be used: %s", v->sb.name, gr_code_text(r));
    if (g.size / VMFS_UNIT <= v->sb.dev[v->sb.n_devices - 1].units)
        return vmfs_refresh(v, err); /* another host may have made it grow, or added a device */
    r = ns_begin_bare(v, &root, err);
    if (r < 0)
        return r;
    r = vmfs_refresh(v, err);
    if (r == 0)
        r = grown(v, g.size / VMFS_UNIT, &s, err);
    if (r == 1) {
        r = vsuper_write_all(v, &s, err);
        if (r == 0 && (r = space_regions_added(v, &s)) < 0)
            gr_fail(err, r, "out of memory");
    }
    return ns_end(v, r, err);
}

int vmfs_grow(struct vmfs *v, struct gr_err *err)
{
    gr_fmutex_lock(&v->member_lock);
    int r = grow(v, err);
    gr_fmutex_unlock(&v->member_lock);
    return r;
}

/* Devices that became members since: they must be open here, or nothing is done with what may lie on them. */
static int devices_known(struct vmfs *v, const struct vsuper *s, struct gr_err *err)
{
    for (unsigned i = v->sb.n_devices; i < s->n_devices; i++)
        if (i >= v->n_dev || memcmp(v->dev[i].uuid, s->dev[i].uuid, 16) != 0)
            return gr_fail(err, -ENODEV, "datastore '%s' has got a device, number %u, that is not open on this host: "
                           "'granary datastore add-device' it here, too", s->name, i);
    return 0;
}

/* What is free elsewhere on a device that was lost is of no use any more (*ret_less); or of use again. */
static void stale_count(struct vmfs *v, const struct vsuper *s, uint64_t *ret_less, uint64_t *ret_more)
{
    *ret_less = *ret_more = 0;
    for (unsigned i = 0; i < v->sb.n_devices; i++) {
        const struct vdevinfo d = v->sb.dev[i];
        bool stale = s->dev[i].stale;
        if (d.stale == stale || d.state != VMFS_DEVICE_IN_USE || !v->sp.by_index)
            continue;
        for (uint32_t k = d.first_region; k < d.first_region + d.regions; k++) {
            uint64_t units = 0;
            if (!v->sp.by_index[k] && space_region_free(v, k, &units, NULL) < 0)
                units = stale ? v->sb.region_units : 0;
            *(stale ? ret_less : ret_more) += units;
        }
    }
}

/* Other fibers learn of superblocks meanwhile, or write one: the newest stays. */
static int adopt(struct vmfs *v, const struct vsuper *s, struct gr_err *err)
{
    uint64_t less, more;
    int r = vloss_shut_out(v, s, err);
    if (r < 0)
        return r;
    stale_count(v, s, &less, &more);
    if (s->generation <= v->sb.generation)
        return 0;
    v->sp.free_elsewhere = v->sp.free_elsewhere - GR_MIN(less, v->sp.free_elsewhere) + more;
    r = space_regions_added(v, s);
    if (r < 0)
        return gr_fail(err, r, "out of memory");
    space_close(v);
    return moved_load(v, err);
}

int vmfs_refresh(struct vmfs *v, struct gr_err *err)
{
    struct vsuper s;
    struct gr_err newer = { 0 };
    uint8_t *b = vunits_alloc(1);
    int r = b ? vdev_read(v, vmfs_addr(0, VMFS_SUPER_A), 1, b) : -ENOMEM;
    if (r < 0)
        gr_fail(err, r, "datastore '%s': the superblock cannot be read: %s", v->sb.name, gr_code_text(r));
    if (r == 0 && vhdr_check(v->sb.uuid, b, VMFS_T_SUPER, 1, vmfs_addr(0, VMFS_SUPER_A), NULL) == 0) {
        int known = vsuper_decode(b, &s, &newer);
        if (known == -GR_EVERSION) /* a newer release has begun to change the volume: nothing more is locked, nobody taken over */
            r = gr_fail(err, known, "%s", newer.text);
        else if (known == 0 && s.generation > v->sb.generation && (r = vfeature_check(v, &s, err)) == 0 && (r = devices_known(v, &s, err)) == 0) {
            gr_fmutex_lock(&v->adopt_lock);
            r = s.generation > v->sb.generation ? adopt(v, &s, err) : 0;
            gr_fmutex_unlock(&v->adopt_lock);
        }
    }
    free(b);
    return r;
}
