/* Joining and leaving a volume. */
#include "common/seam.h"
#include "vmfs/evacuate.h"
#include "vmfs/loss.h"
#include "vmfs/rescue.h"

int vdevs_open(struct vmfs *v, struct gr_bdev *const *devices, unsigned n, struct gr_err *err)
{
    if (n == 0 || n > VMFS_DEVICES_MAX)
        return gr_fail(err, -EINVAL, "a datastore has 1 to %u devices, not %u", VMFS_DEVICES_MAX, n);
    for (unsigned i = 0; i < n; i++) {
        int r = gr_chan_open(devices[i], v->loop, &v->dev[i].ch);
        if (r < 0)
            return gr_fail(err, r, "'%s': cannot be used: %s", devices[i]->name, gr_code_text(r));
        v->dev[i].bdev = devices[i];
        v->n_dev = i + 1;
    }
    return 0;
}

/* A device that was given and is none of the volume's. */
static void leave_alone(struct vmfs *v, struct vdev *d, const char *why)
{
    vmfs_warn(v, "'%s' is no device of datastore '%s' and is left alone: %s", d->bdev->name, v->sb.name, why);
    vlife_leave_device(v, d->bdev);
    gr_chan_close(d->ch);
    *d = (struct vdev){ 0 };
}

/* Device 0's superblock counts: it is the first to be written when anything changes. */
static int super_choose(struct vmfs *v, const struct vsuper *s, unsigned first, struct gr_err *err)
{
    bool found = false;
    for (unsigned i = 0; i < v->n_dev; i++) {
        if (!s[i].n_devices)
            continue; /* nothing of ours is on it */
        memcpy(v->dev[i].uuid, s[i].dev[s[i].this_device].uuid, 16);
        if (memcmp(s[i].uuid, s[first].uuid, 16) != 0)
            return gr_fail(err, -EINVAL, "'%s' belongs to datastore '%s', not to '%s'", v->dev[i].bdev->name, s[i].name, s[first].name);
        if (s[i].this_device == 0 && !vsuper_replaced(&s[i], s, v->n_dev)) {
            v->sb = s[i];
            found = true;
        }
    }
    return found ? 0 : gr_fail(err, -ENODEV, "datastore '%s': the device is missing that has its tables, number 0", s[first].name);
}

static const char *no_member(const struct vmfs *v, const struct vsuper *s, const uint8_t uuid[16])
{
    unsigned at = s->this_device;
    if (!s->n_devices)
        return "it holds no datastore";
    if (at >= v->sb.n_devices || memcmp(uuid, v->sb.dev[at].uuid, 16) != 0)
        return at < v->sb.n_devices && v->sb.dev[at].emptied ? "another has taken its place" : "it was about to be added when that ended; it can be added again";
    return v->sb.dev[at].state == VMFS_DEVICE_GONE ? "it was removed" : NULL;
}

/* Asked for, and the device holds nothing that all depends on. */
static bool do_without(struct vmfs *v, unsigned dev)
{
    if (vdev_needed(v, dev) || !(v->opts.degraded || v->sb.dev[dev].stale)) /* stale: it was lost, and that is known */
        return false;
    vmfs_warn(v, "datastore '%s' is joined without its device %u: what lies there cannot be read until it is joined with it again", v->sb.name, dev);
    return true;
}

/* The devices in the volume's order; their superblocks are in @s, that of @first is one. */
static int devices_sort(struct vmfs *v, const struct vsuper *s, unsigned first, struct gr_err *err)
{
    struct vdev sorted[VMFS_DEVICES_MAX] = { 0 };
    unsigned given = 0;
    int r = super_choose(v, s, first, err);
    for (unsigned i = 0; r == 0 && i < v->n_dev; i++) {
        const char *why = no_member(v, &s[i], v->dev[i].uuid);
        struct vdev *at = &sorted[s[i].this_device];
        if (why)
            leave_alone(v, &v->dev[i], why);
        else if (at->bdev)
            r = gr_fail(err, -EINVAL, "'%s' and '%s' are the same device of datastore '%s'", v->dev[i].bdev->name, at->bdev->name, v->sb.name);
        else
            *at = v->dev[i];
        given += !why;
    }
    if (r < 0)
        return r;
    memcpy(v->dev, sorted, sizeof sorted);
    v->n_dev = v->sb.n_devices;
    for (unsigned i = 0; i < v->sb.n_devices; i++)
        if (!sorted[i].bdev && v->sb.dev[i].state != VMFS_DEVICE_GONE && !do_without(v, i))
            return gr_fail(err, -ENODEV, "datastore '%s': %u devices were given, number %u of %u is missing", v->sb.name, given, i, v->sb.n_devices);
    return 0;
}

static int devices_check(struct vmfs *v, struct gr_err *err)
{
    struct vsuper *s = gr_zalloc(v->n_dev * sizeof *s);
    int r = s ? 0 : gr_fail(err, -ENOMEM, "out of memory");
    unsigned first = v->n_dev;
    for (unsigned i = 0; r == 0 && i < v->n_dev; i++) {
        r = vsuper_read(v, i, &s[i], err);
        if (r == 0 && first == v->n_dev)
            first = i;
        if (i + 1 == v->n_dev && first == v->n_dev)
            break; /* on none of them is a datastore */
        bool unread = r < 0 && r != -GR_EFORMAT && r != -GR_EFENCED && r != -GR_EVERSION && r != -ENOMEM;
        if (unread) /* it was about to be added when its first superblock was torn; or it cannot be read; or it will be missed */
            vmfs_warn(v, "%s", err ? err->text : gr_code_text(r));
        if (unread || r == -GR_EFORMAT) /* removed, perhaps */
            r = 0;
    }
    if (r == 0)
        r = devices_sort(v, s, first, err);
    for (unsigned i = 0; r == 0 && i < v->n_dev; i++) {
        struct gr_geometry g;
        if (!v->dev[i].bdev)
            continue;
        r = gr_bdev_geometry(v->dev[i].bdev, &g);
        if (r < 0 || g.size / VMFS_UNIT < v->sb.dev[i].units)
            r = gr_fail(err, -GR_ECORRUPT, "'%s' is cut short: %llu bytes where the datastore has %llu", v->dev[i].bdev->name,
                        (unsigned long long)(r < 0 ? 0 : g.size), (unsigned long long)v->sb.dev[i].units * VMFS_UNIT);
    }
    free(s);
    return r;
}

/* ---- join ---- */
static int opts_copy(struct vmfs *v, const struct vmfs_join_opts *o, struct gr_err *err)
{
    v->opts = *o;
    v->role = o->role;
    v->features = o->features ? o->features : vmfs_features_known();
    v->host_name = gr_strdup(o->host_name ? o->host_name : "");
    v->address = gr_strdup(o->address ? o->address : "");
    v->portal = gr_strdup(o->portal ? o->portal : "");
    if (o->link_key)
        memcpy(v->link_key, o->link_key, sizeof v->link_key);
    if (!v->host_name || !v->address || !v->portal)
        return gr_fail(err, -ENOMEM, "out of memory");
    if (strlen(v->address) > VMFS_ADDRESS_MAX || strlen(v->portal) > 127 || strlen(v->host_name) > 63)
        return gr_fail(err, -EINVAL, "host name, address or portal is too long");
    v->map_limit = o->map_cache_bytes ? o->map_cache_bytes : (size_t)256 << 20;
    return 0;
}

static void set_limits(struct vmfs *v)
{
    uint64_t units = 0;
    for (unsigned i = 0; i < v->sb.n_devices; i++)
        units += v->sb.dev[i].state == VMFS_DEVICE_IN_USE ? v->sb.dev[i].units : 0;
    v->max_dirty_nodes = (size_t)GR_MAX(16u, GR_MIN(16384u, units / 256));
}

/* A device is emptied by a host that is alone. */
static int refuse_mover(struct vmfs *v, struct gr_err *err)
{
    for (unsigned i = 0; i < v->sb.n_devices; i++) {
        unsigned mover = v->sb.dev[i].mover;
        struct vslot s;
        int r = mover && mover - 1 != v->slot ? vslot_read(v, mover - 1, &s, err) : 1;
        if (r == 0 && s.state != VMFS_SLOT_HOST && s.state != VMFS_SLOT_REPLAYING)
            r = 1;
        if (r == 0)
            r = vmfs_recover_slot(v, mover - 1, err);
        if (r == 0)
            r = gr_fail(err, -GR_ELOCKED, "datastore '%s': host '%s' is moving the content of a device to the others, alone: join when that is done",
                        v->sb.name, s.host_name);
        if (r < 0) {
            vslot_free_mine(v, NULL);
            return r;
        }
    }
    return 0;
}

static int take_slot(struct vmfs *v, struct gr_err *err)
{
    if (v->life.alone)
        return valone_join(v, err);
    /* Whether others that share logical units live takes seconds to find out: that waits until somebody needs what they hold. */
    int r = v->life.fences ? vslot_recover_own(v, err) : vmfs_recover(v, err);
    if (r >= 0)
        r = vslot_claim(v, err);
    for (int tries = 0; r == -GR_ELOCKED && v->life.fences && tries < 10; tries++) { /* whose of them live must be found out after all */
        if (tries)
            gr_fiber_sleep_ms(1000); /* others recover some of them, perhaps */
        r = vmfs_recover(v, err);
        if (r >= 0)
            r = vslot_claim(v, err);
    }
    return r;
}

static int join_host(struct vmfs *v, struct gr_err *err)
{
    int r = take_slot(v, err);
    /* Behind our own recovery; and from here on who empties a device, or switches a feature on, sees us, or we see what he did. */
    if (r == 0 && (r = vmfs_refresh(v, err)) < 0)
        vslot_free_mine(v, NULL);
    if (r == 0)
        r = refuse_mover(v, err);
    if (r == 0 && (r = vhonour_check(v, err)) < 0)
        vslot_free_mine(v, NULL);
    if (r == 0) {
        journal_start(v);
        r = space_init(v, err);
    }
    if (r == 0)
        r = foreign_load(v, err);
    return r == 0 ? evac_clear(v, err) : r;
}

int vmfs_join(struct gr_loop *loop, struct gr_bdev *const *devices, unsigned n, const struct vmfs_join_opts *opts, struct vmfs **ret,
              struct gr_err *err)
{
    struct vmfs *v = gr_zalloc(sizeof *v);
    if (!v)
        return gr_fail(err, -ENOMEM, "out of memory");
    v->loop = loop;
    int r = opts_copy(v, opts, err);
    if (r == 0)
        r = vdevs_open(v, devices, n, err);
    if (r == 0 && opts->rescue)
        r = vrescue_begin(v, err);
    if (r == 0) {
        v->life.alone = valone_found(v);
        r = vlife_enter(v, err);
    }
    if (r == 0)
        r = devices_check(v, err);
    if (r == 0)
        r = vfeature_check(v, &v->sb, err);
    if (r == 0 && v->rescue)
        r = vrescue_slots(v, err);
    if (r == 0)
        r = vloss_shut_out(v, &v->sb, err);
    if (r == 0)
        r = vlife_watch(v, err);
    if (r == 0) {
        set_limits(v);
        r = join_host(v, err);
    }
    if (r < 0) {
        v->opts.warn = NULL; /* nothing is given up: it was never joined */
        vlife_stop(v, !v->joined);
        vmfs_abandon(v);
        return r;
    }
    v->opts.gone = NULL;
    ns_resume(v);
    *ret = v;
    return 0;
}

/* ---- leave ---- */
static void wait_background(struct vmfs *v)
{
    while (v->background)
        gr_fqueue_wait(&v->background_q);
}

void vmfs_abandon_state(struct vmfs *v)
{
    due_done(v);
    for (unsigned h = 0; h < VOBJ_HASH; h++)
        while (v->objs[h]) {
            if (v->objs[h]->handle) {
                v->objs[h]->handle->gone = true;
                v->objs[h]->handle->o = NULL;
            }
            vobj_free(v->objs[h]);
        }
    space_done(v);
    gr_buf_done(&v->j.pending);
    while (v->free_rops) {
        struct rop *r = v->free_rops;
        v->free_rops = *(struct rop **)r;
        free(r);
    }
    while (v->free_dops) {
        struct dop *d = v->free_dops;
        v->free_dops = d->next;
        free(d);
    }
    vbounce_done(v);
}

void vmfs_abandon(struct vmfs *v)
{
    if (!v)
        return;
    vmfs_fence(v, "left at once");
    journal_stop(v);
    v->leaving = true;
    while (gr_fiber_self() && (v->background || v->sp.oldest)) /* the life lock says that nothing of ours is in flight */
        gr_fqueue_wait(&v->background_q);
    vslot_forget(v);
    vlife_stop(v, false);
    vmfs_abandon_state(v);
    for (unsigned i = 0; i < v->n_dev; i++)
        gr_chan_close(v->dev[i].ch);
    free(v->host_name);
    free(v->address);
    free(v->portal);
    vrescue_end(v);
    free(v);
}

int vmfs_leave(struct vmfs *v, struct gr_err *err)
{
    int r = 0;
    v->leaving = true;
    journal_stop(v);
    wait_background(v);
    for (unsigned h = 0; h < VOBJ_HASH && r == 0; h++)
        for (struct vobj *o = v->objs[h]; o; o = o->hash_next)
            if (o->opens)
                r = gr_fail(err, -EBUSY, "'%s' is still open", o->handle ? o->handle->path : "an object");
    if (r == 0 && v->role == VMFS_HOST && !v->rescue)
        r = vmfs_checkpoint(v, err);
    int told = v->lost.devices ? vloss_write(v) : 0;
    if (told < 0)
        vmfs_warn(v, told == -GR_EFENCED ? "datastore '%s': another host takes this one's place before it could write down what was lost"
                                         : "datastore '%s': what was lost cannot be written down: it can be joined again with all its devices only", v->sb.name);
    if (r == 0)
        r = vslot_free_mine(v, err);
    if (r == 0)
        vlife_stop(v, true);
    v->opts.warn = NULL; /* the rest is taking down memory */
    vmfs_abandon(v);
    return r;
}

int vmfs_set_address(struct vmfs *v, const char *address, const char *portal, struct gr_err *err)
{
    if (strlen(address) > VMFS_ADDRESS_MAX || strlen(portal) > 127)
        return gr_fail(err, -EINVAL, "address or portal is too long");
    gr_fmutex_lock(&v->ckpt_lock); /* the other writer of our slot */
    snprintf(v->me.address, sizeof v->me.address, "%s", address);
    snprintf(v->me.portal, sizeof v->me.portal, "%s", portal);
    int r = vslot_write_mine(v, err);
    gr_fmutex_unlock(&v->ckpt_lock);
    return r;
}

/* ---- information ---- */
void vmfs_info(struct vmfs *v, struct vmfs_info *ret)
{
    unsigned n_devices = 0;
    struct vmfs_info i = { .n_slots = v->sb.slots.entries, .version = v->sb.version,
                           .timing = (enum vmfs_timing)v->sb.timing, .data_crc = vcrc_kept(v), .shared_luns = v->life.fences, .one_host = v->life.alone, .fenced = v->fenced, .rescue = v->rescue };
    i.scrubbed = (struct vmfs_scrubbed){ (int64_t)v->sb.scrub.started_s, (int64_t)v->sb.scrub.ended_s, v->sb.scrub.bytes, v->sb.scrub.bad_pieces,
                                         v->sb.scrub.errors };
    uint64_t in_regions = 0;
    snprintf(i.name, sizeof i.name, "%s", v->sb.name);
    memcpy(i.uuid, v->sb.uuid, 16);
    for (unsigned d = 0; d < v->sb.n_devices; d++) {
        if (v->sb.dev[d].state == VMFS_DEVICE_GONE)
            continue;
        n_devices++;
        i.n_missing += vdev_missing(v, d) || vrescue_lost(v, d);
        i.n_stale += vdev_stale(v, d);
        i.missing |= (uint32_t)(vdev_missing(v, d) || vrescue_lost(v, d)) << d;
        i.stale |= (uint32_t)vdev_stale(v, d) << d;
        i.size += v->sb.dev[d].units * VMFS_UNIT;
        i.n_regions += v->sb.dev[d].regions;
        in_regions += (v->sb.dev[d].units - v->sb.dev[d].first_unit) * VMFS_UNIT;
    }
    i.n_devices = n_devices;
    i.lost = v->lost.devices;
    i.free = space_free_units(v) * VMFS_UNIT;
    i.metadata = i.size - in_regions;
    for (unsigned h = 0; h < VOBJ_HASH; h++)
        for (struct vobj *o = v->objs[h]; o; o = o->hash_next)
            i.reserved += o->reserved_units * VMFS_UNIT;
    i.region_bytes = (uint64_t)v->sb.region_units * VMFS_UNIT;
    i.journal_bytes = (uint64_t)v->sb.journal_units * VMFS_UNIT;
    memcpy(i.fence_reason, v->fence_reason, sizeof i.fence_reason);
    *ret = i;
}

void vmfs_stats(const struct vmfs *v, struct vmfs_stats *ret)
{
    *ret = v->stats;
    ret->map_bytes = v->map_bytes;
}
