/* Joining and leaving a volume. */
#include "common/seam.h"
#include "vmfs/internal.h"

/* ---- superblocks ---- */
static int super_read_copy(struct vmfs *v, unsigned dev, uint64_t unit, struct vsuper *ret, struct gr_err *err)
{
    struct vmfs_super_disk *d = vunits_alloc(1);
    uint64_t self = vmfs_addr(dev, unit);
    int r = d ? gr_pread(v->dev[dev].ch, d, VMFS_UNIT, unit * VMFS_UNIT) : -ENOMEM;
    if (r < 0)
        gr_fail(err, r, "'%s': cannot read the superblock at unit %llu: %s", v->dev[dev].bdev->name, (unsigned long long)unit, gr_code_text(r));
    if (r == 0 && (gr_le32_get(d->hdr.magic) != VMFS_MAGIC || gr_le16_get(d->hdr.type) != VMFS_T_SUPER))
        r = gr_fail(err, -GR_EFORMAT, "'%s': no Granary superblock at unit %llu", v->dev[dev].bdev->name, (unsigned long long)unit);
    if (r == 0) { /* a device may sit at another place in the list than its superblock says: that is found out later */
        uint64_t says = gr_le64_get(d->hdr.self);
        if (vmfs_addr_unit(says) == unit)
            self = says;
        r = vhdr_check(NULL, d, VMFS_T_SUPER, 1, self, err);
    }
    if (r == 0)
        r = vsuper_decode(d, ret, err);
    if (r == 0 && vmfs_addr_dev(self) != ret->this_device)
        r = gr_fail(err, -GR_ECORRUPT, "'%s': rule 4: superblock of another device", v->dev[dev].bdev->name);
    free(d);
    return r;
}

int vsuper_read(struct vmfs *v, unsigned dev, struct vsuper *ret, struct gr_err *err)
{
    struct gr_err ea = { 0 }, eb = { 0 };
    struct vsuper a, b;
    int ra = super_read_copy(v, dev, VMFS_SUPER_A, &a, &ea), rb = super_read_copy(v, dev, VMFS_SUPER_B, &b, &eb);
    if (ra == 0 && rb == 0) {
        *ret = b.generation > a.generation ? b : a;
        return 0;
    }
    if (ra == -GR_EVERSION || rb == -GR_EVERSION) /* even one: a newer Granary has begun to change the volume */
        return gr_fail(err, -GR_EVERSION, "'%s': %s", v->dev[dev].bdev->name, ra == -GR_EVERSION ? ea.text : eb.text);
    if (ra == 0 || rb == 0) {
        vmfs_warn(v, "%s; the %s copy of the superblock is used", ra < 0 ? ea.text : eb.text, ra < 0 ? "second" : "first");
        *ret = ra == 0 ? a : b;
        return 0;
    }
    if ((ra == -GR_EFORMAT || ra == -GR_ERANGE) && (rb == -GR_EFORMAT || rb == -GR_ERANGE)) /* range: too small to have one there */
        return gr_fail(err, -GR_EFORMAT, "'%s' is not a Granary datastore", v->dev[dev].bdev->name);
    return gr_fail(err, ra == -GR_EFORMAT ? rb : ra, "'%s': both superblocks are damaged: %s; %s", v->dev[dev].bdev->name, ea.text, eb.text);
}

static int devices_open(struct vmfs *v, struct gr_bdev *const *devices, unsigned n, struct gr_err *err)
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

/* Read all superblocks and put the devices into the volume's order. */
static int devices_check(struct vmfs *v, struct gr_err *err)
{
    struct vdev sorted[VMFS_DEVICES_MAX] = { 0 };
    struct vsuper s;
    for (unsigned i = 0; i < v->n_dev; i++) {
        struct gr_geometry g;
        int r = vsuper_read(v, i, &s, err);
        if (r < 0)
            return r;
        if (i == 0)
            v->sb = s;
        if (memcmp(s.uuid, v->sb.uuid, 16) != 0)
            return gr_fail(err, -EINVAL, "'%s' belongs to datastore '%s', not to '%s'", v->dev[i].bdev->name, s.name, v->sb.name);
        if (sorted[s.this_device].bdev)
            return gr_fail(err, -EINVAL, "'%s' and '%s' are the same device of datastore '%s'", v->dev[i].bdev->name,
                           sorted[s.this_device].bdev->name, s.name);
        r = gr_bdev_geometry(v->dev[i].bdev, &g);
        if (r < 0 || g.size / VMFS_UNIT < s.dev[s.this_device].units)
            return gr_fail(err, -GR_ECORRUPT, "'%s' is cut short: %llu bytes where the datastore has %llu", v->dev[i].bdev->name,
                           (unsigned long long)(r < 0 ? 0 : g.size), (unsigned long long)s.dev[s.this_device].units * VMFS_UNIT);
        if (s.generation > v->sb.generation)
            v->sb = s;
        sorted[s.this_device] = v->dev[i];
    }
    if (v->n_dev != v->sb.n_devices)
        return gr_fail(err, -ENODEV, "datastore '%s' has %u devices, %u were given", v->sb.name, v->sb.n_devices, v->n_dev);
    for (unsigned i = 0; i < v->n_dev; i++)
        if (!sorted[i].bdev)
            return gr_fail(err, -GR_ECORRUPT, "datastore '%s': its devices do not agree on how many they are", v->sb.name);
    memcpy(v->dev, sorted, sizeof sorted);
    return 0;
}

/* ---- join ---- */
static int opts_copy(struct vmfs *v, const struct vmfs_join_opts *o, struct gr_err *err)
{
    v->opts = *o;
    v->role = o->role;
    v->host_name = gr_strdup(o->host_name ? o->host_name : "");
    v->address = gr_strdup(o->address ? o->address : "");
    v->portal = gr_strdup(o->portal ? o->portal : "");
    if (o->link_key)
        memcpy(v->link_key, o->link_key, sizeof v->link_key);
    if (!v->host_name || !v->address || !v->portal)
        return gr_fail(err, -ENOMEM, "out of memory");
    if (strlen(v->address) > VMFS_ADDRESS_MAX || strlen(v->portal) > 127 || strlen(v->host_name) > 63)
        return gr_fail(err, -EINVAL, "host name, address or portal is too long");
    v->max_leaves = (o->map_cache_bytes ? o->map_cache_bytes : (size_t)256 << 20) / sizeof(struct mnode);
    v->max_leaves = GR_MAX(v->max_leaves, (size_t)64); /* fewer, and operations would throw out each other's leaves for ever */
    return 0;
}

static void set_limits(struct vmfs *v)
{
    uint64_t units = 0;
    for (unsigned i = 0; i < v->sb.n_devices; i++)
        units += v->sb.dev[i].units;
    v->max_dirty_nodes = (size_t)GR_MAX(16u, GR_MIN(2048u, units / 512));
}

static int join_host(struct vmfs *v, struct gr_err *err)
{
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
    if (r == 0) {
        journal_start(v);
        r = space_init(v, err);
    }
    if (r == 0)
        r = foreign_load(v, err);
    return r;
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
        r = devices_open(v, devices, n, err);
    if (r == 0)
        r = vlife_enter(v, err);
    if (r == 0)
        r = devices_check(v, err);
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
    if (r == 0 && v->role == VMFS_HOST)
        r = vmfs_checkpoint(v, err);
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
    struct vmfs_info i = { .n_devices = v->sb.n_devices, .n_slots = v->sb.slots.entries, .version = v->sb.version,
                           .timing = (enum vmfs_timing)v->sb.timing, .shared_luns = v->life.fences, .fenced = v->fenced };
    uint64_t in_regions = 0;
    snprintf(i.name, sizeof i.name, "%s", v->sb.name);
    memcpy(i.uuid, v->sb.uuid, 16);
    for (unsigned d = 0; d < v->sb.n_devices; d++) {
        i.size += v->sb.dev[d].units * VMFS_UNIT;
        i.n_regions += v->sb.dev[d].regions;
        in_regions += (v->sb.dev[d].units - v->sb.dev[d].first_unit) * VMFS_UNIT;
    }
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
}
