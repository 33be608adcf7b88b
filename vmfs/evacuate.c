/* A device leaves: its content moves to the others while it is in use, by a host that is alone in the volume.
 *
 *   1. the superblock says that it leaves: from here on nothing is put on it, and nothing on it is overwritten where it lies
 *   2. when what was under way has ended, everything on it can be copied at leisure: it does not change, units only go free
 *   3. once in a while a checkpoint takes over what was copied (evac_capture): the copies' units become used, the originals free, and the
 *      list of what lies where grows, all with one set of images. When they are durable, the addresses in memory are looked up anew
 *   4. when nothing is left on it, the superblock says that it is gone
 *
 * Cut anywhere, what the last checkpoint took over stays moved; the rest is copied again by the next attempt. */
#include "common/seam.h"
#include "vmfs/evacuate.h"
#include "vmfs/loss.h"
#include "vmfs/pool.h"
#include "vmfs/region.h"
#include "vmfs/rescue.h"

#define PUBLISH_UNITS 262144u     /* 1 GiB: so much is copied before a checkpoint takes it over */
#define PUBLISH_ENTRIES 65536u
#define PUBLISH_IMAGES 8u         /* … or as many home blocks are changed as fill this part of the journal */
const struct vmoved *evac_pending(const struct evac *e, unsigned dev)
{
    return e->captured && dev == e->dev ? &e->taken : NULL;
}

/* ---- capture ---- */
/* Owners of [at, at + units) of the region beside the first go with the units. */
static int shares_move(struct vmfs *v, struct vregion *r, uint32_t at, uint32_t units, uint64_t to)
{
    int rc = 0;
    for (uint32_t n; units; at += n, to += n, units -= n) {
        bool shared = share_at(r, at, units, &n);
        size_t i = 0;
        while (shared && r->shares[i].at + r->shares[i].units <= at)
            i++;
        for (uint32_t k = 0; shared && rc == 0 && k < r->shares[i].more; k++)
            rc = space_share(v, to, n);
    }
    return rc;
}

/* One entry of what was copied: units that are still in use are taken over, those that went free meanwhile are not needed. */
static int take_over(struct evac *e, const struct vmove *m)
{
    struct vmfs *v = e->v;
    int rc = 0;
    for (uint32_t i = 0, n; rc == 0 && i < m->units; i += n) {
        uint64_t addr = vmfs_addr(e->dev, m->from + i);
        struct vregion *r = space_region(v, addr); /* entries go on across regions that are neighbours */
        uint32_t at = (uint32_t)(addr - r->first);
        bool used = bits_get(r->used, at);
        for (n = 1; i + n < m->units && at + n < r->units && bits_get(r->used, at + n) == used;)
            n++;
        if (!used) {
            space_unreserve(v, m->to + i, n);
            continue;
        }
        space_used(v, m->to + i, n);
        rc = moved_add(&e->taken, (struct vmove){ m->from + i, m->to + i, n });
        if (rc == 0)
            rc = shares_move(v, r, at, n, m->to + i);
        if (rc == 0)
            rc = space_left(v, r, at, n);
    }
    return rc;
}

static int by_unit(const void *a, const void *b)
{
    const struct vmove *x = a, *y = b;
    return x->from < y->from ? -1 : x->from > y->from;
}

static void list_encode(const struct evac *e, uint8_t *units)
{
    struct vmfs_moved_disk *d = (struct vmfs_moved_disk *)(units + sizeof(struct vmfs_hdr_disk));
    for (size_t i = 0; i < e->taken.n; i++)
        d[i] = (struct vmfs_moved_disk){ gr_le64_of(e->taken.e[i].from), gr_le64_of(e->taken.e[i].to), gr_le32_of(e->taken.e[i].units), gr_le32_of(0) };
}

static void super_capture(struct ckpt *c, struct vmfs *v)
{
    uint8_t block[VMFS_UNIT] __attribute__((aligned(8)));
    struct vsuper s = v->sb;
    for (unsigned i = 0; i < s.n_devices; i++) {
        if (s.dev[i].state == VMFS_DEVICE_GONE)
            continue;
        s.this_device = i;
        vsuper_encode(&s, vmfs_addr(i, VMFS_SUPER_A), block);
        ckpt_image(c, vmfs_addr(i, VMFS_SUPER_A), vmfs_addr(i, VMFS_SUPER_B), block);
    }
}

void evac_capture(struct ckpt *c)
{
    struct vmfs *v = ckpt_volume(c);
    struct evac *e = v->sp.evac;
    struct vdevinfo *d = &v->sb.dev[e->dev];
    int r = 0;
    if (!e->blob_units)
        return; /* this checkpoint is not the one */
    for (size_t i = 0; r == 0 && i < v->sp.moved[e->dev].n; i++)
        r = moved_add(&e->taken, v->sp.moved[e->dev].e[i]);
    for (size_t i = 0; r == 0 && i < e->copied.n; i++)
        r = take_over(e, &e->copied.e[i]);
    if (e->taken.n)
        qsort(e->taken.e, e->taken.n, sizeof *e->taken.e, by_unit);
    size_t bytes = e->taken.n * sizeof(struct vmfs_moved_disk);
    uint8_t *b = r == 0 ? ckpt_take(c, e->blob_addr, e->blob_units) : NULL;
    if (!b || bytes > (uint64_t)e->blob_units * VMFS_UNIT - sizeof(struct vmfs_hdr_disk)) { /* it was made large enough for all that can be */
        ckpt_fail(c, r < 0 ? r : -ENOMEM);
        return;
    }
    list_encode(e, b);
    vhdr_seal(v, b, VMFS_T_BLOB, e->blob_units, e->blob_addr, v->sb.generation + 1, v->slot);
    if (d->moved_addr)
        space_freed(v, d->moved_addr, d->moved_units, 1, ckpt_number(c));
    d->moved_addr = bytes ? e->blob_addr : 0;
    d->moved_bytes = (uint32_t)bytes;
    d->moved_units = bytes ? e->blob_units : 0;
    if (!bytes)
        space_freed(v, e->blob_addr, e->blob_units, 1, ckpt_number(c));
    e->blob_units = 0;
    v->sb.generation++;
    super_capture(c, v);
    e->captured = true;
}

/* ---- taking over ---- */
static void copied_drop(struct evac *e)
{
    for (size_t i = 0; i < e->copied.n; i++)
        space_unreserve(e->v, e->copied.e[i].to, e->copied.e[i].units);
    e->copied.n = 0;
}

/* Room for a list of all there is, and of as many parts more as units that went free meanwhile may cut it into. */
static int list_room(struct evac *e, struct gr_err *err)
{
    uint64_t entries = e->v->sp.moved[e->dev].n + e->copied.n;
    uint64_t most = entries + GR_MIN(e->pending, entries + 4096); /* frees do not cut as fast as that: what does not fit fails below */
    uint32_t want = (uint32_t)((most * sizeof(struct vmfs_moved_disk) + sizeof(struct vmfs_hdr_disk) + VMFS_UNIT - 1) / VMFS_UNIT), got = 0;
    uint64_t addr = 0;
    int r = want > VMFS_BLOB_UNITS_MAX ? gr_fail(err, -GR_ENOSPACE, "datastore '%s': too many pieces lie on the device to be listed", e->v->sb.name)
                                       : 0;
    if (r == 0) { /* where it is needed as long as the volume lives: not on a device that could be lost without it */
        space_steady(e->v, want);
        addr = space_take_steady(e->v, SPACE_ANYWHERE, want, want, &got);
    }
    if (r == 0 && !addr && e->v->sp.pool_units >= 4ull * want) /* long runs are kept for checkpoints, of which this is a part */
        addr = space_pool_take(e->v, want);
    else if (addr && got > want)
        space_unreserve(e->v, addr + want, got - want);
    if (r == 0 && !addr)
        r = evac_room(e, want, want, &addr, &got, err);
    e->blob_addr = addr;
    e->blob_units = r == 0 ? want : 0;
    return r;
}

/* A checkpoint takes over what was copied; then it is what addresses in memory mean. */
static int publish(struct evac *e, struct gr_err *err)
{
    struct vmfs *v = e->v;
    int r = list_room(e, err);
    if (r < 0)
        return r;
    gr_fmutex_lock(&v->settle_lock);
    r = vmfs_checkpoint(v, err);
    if (r < 0 || !e->captured) {
        gr_fmutex_unlock(&v->settle_lock);
        return r < 0 ? r : gr_fail(err, -EAGAIN, "datastore '%s': the checkpoint did not come to it", v->sb.name);
    }
    free(v->sp.moved[e->dev].e);
    v->sp.moved[e->dev] = e->taken;
    e->taken = (struct vmoved){ 0 };
    e->captured = false;
    e->copied.n = 0;
    moved_settle(v);
    gr_fmutex_unlock(&v->settle_lock);
    e->done += e->pending;
    e->pending = 0;
    e->n_touched = 0;
    memset(e->touched, 0, (space_n_regions(v) / 64 + 1) * sizeof *e->touched);
    return 0;
}

/* Its images must fit the journal, and what a cut would undo is bounded. */
static bool enough(const struct evac *e)
{
    const struct vmfs *v = e->v;
    uint64_t step = e->opts->step ? GR_MAX(e->opts->step / VMFS_UNIT, (uint64_t)1) : PUBLISH_UNITS;
    return e->pending >= step || e->copied.n >= PUBLISH_ENTRIES || e->n_touched * (1ull + v->sb.bitmap_blocks) >= v->j.units / PUBLISH_IMAGES;
}

static int region_move(struct evac *e, struct vregion *r, struct gr_err *err)
{
    int rc = 0;
    for (uint32_t at = 0; rc == 0 && at < r->units && !e->v->fenced;) {
        uint32_t run = 0, n = 0;
        if (!bits_get(r->used, at)) {
            at++;
            continue;
        }
        while (at + run < r->units && bits_get(r->used, at + run))
            run++;
        if (e->v->leaving)
            return gr_fail(err, -ECANCELED, "datastore '%s' is being left", e->v->sb.name);
        rc = evac_copy(e, r, at, run, &n, err);
        at += n;
        if (rc == 0 && e->opts->progress)
            rc = e->opts->progress(e->opts->arg, (e->done + e->pending) * VMFS_UNIT, GR_MAX(e->units, e->done + e->pending) * VMFS_UNIT, err);
        if (rc == 0 && enough(e))
            rc = publish(e, err);
        gr_fiber_yield();
    }
    return rc;
}

/* ---- the steps ---- */
/* Nobody but us, dead or alive. */
static int refuse_others(struct vmfs *v, struct gr_err *err)
{
    int r = vmfs_recover(v, err);
    for (unsigned i = 0; r >= 0 && i < v->sb.slots.entries; i++) {
        struct vslot s;
        r = vslot_read(v, i, &s, err);
        if (r == 0 && i != v->slot && s.state != VMFS_SLOT_FREE)
            r = gr_fail(err, -GR_ELOCKED, "datastore '%s': host '%s' has joined: a device can be emptied only while no other host has; 'granary down' or leave there, meanwhile",
                        v->sb.name, s.host_name);
    }
    return r < 0 ? r : 0;
}

static int state_write(struct vmfs *v, unsigned dev, uint32_t state, uint32_t mover, struct gr_err *err)
{
    struct vobj *root;
    int r = ns_begin_bare(v, &root, err);
    if (r < 0)
        return r;
    gr_fmutex_lock(&v->ckpt_lock); /* the other writer of superblocks */
    r = vmfs_refresh(v, err);
    if (r == 0) {
        struct vsuper s = v->sb;
        s.generation++;
        s.incompat |= VMFS_INCOMPAT_MOVED;
        s.dev[dev].state = state;
        s.dev[dev].mover = mover;
        r = vsuper_write_all(v, &s, err);
        if (r < 0 && r != -EAGAIN)
            vmfs_fence(v, "a superblock could not be written: nobody knows what it says");
        else if (r == 0)
            v->sb = s;
        space_close(v);
    }
    gr_fmutex_unlock(&v->ckpt_lock);
    return ns_end(v, r, err);
}

static int lease_all(struct vmfs *v, unsigned dev, uint64_t *ret_used, struct gr_err *err)
{
    const struct vdevinfo *d = &v->sb.dev[dev];
    int r = 0;
    *ret_used = 0;
    if (vdev_stale(v, dev))
        return gr_fail(err, -EBUSY, "datastore '%s': '%s' was lost, and what lies there must be counted first: granary datastore check %s --repair", v->sb.name,
                       v->dev[dev].bdev->name, v->sb.name);
    for (uint32_t i = d->first_region; r == 0 && i < d->first_region + d->regions; i++) {
        r = space_lease(v, i, err);
        if (r == 1)
            r = gr_fail(err, -GR_ELOCKED, "datastore '%s': another host holds space on '%s'", v->sb.name, v->dev[dev].bdev->name);
        if (r == 0)
            *ret_used += v->sp.by_index[i]->units - v->sp.by_index[i]->free_used;
    }
    return r;
}

int evac_clear(struct vmfs *v, struct gr_err *err)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < v->sb.n_devices; i++)
        if (v->sb.dev[i].mover)
            r = state_write(v, i, v->sb.dev[i].state, 0, err);
    return r;
}

/* All that is under way on it ends; then nothing there changes any more. */
static int quiesce(struct vmfs *v, unsigned dev, struct gr_err *err)
{
    const struct vdevinfo d = v->sb.dev[dev];
    for (uint32_t i = d.first_region; i < d.first_region + d.regions && !v->fenced; i++) {
        while (!journal_holds_images(v, 2) && ckpt_run(v) == 0) {}
        space_foreign_return(v, v->sp.by_index[i]);
    }
    uint64_t began = v->sp.next_ticket;
    while (!v->fenced && ((v->sp.oldest && v->sp.oldest->number < began) || space_unsettled(v, dev)))
        gr_fiber_sleep_ms(2);
    int r = vmfs_checkpoint(v, err); /* no record of the journal has data there that a replay might doubt */
    return r;
}

static int move_all(struct evac *e, struct gr_err *err)
{
    struct vmfs *v = e->v;
    const struct vdevinfo d = v->sb.dev[e->dev];
    int r = (e->touched = gr_zalloc((space_n_regions(v) / 64 + 1) * sizeof *e->touched)) ? 0 : gr_fail(err, -ENOMEM, "out of memory");
    for (uint32_t i = d.first_region; r == 0 && i < d.first_region + d.regions; i++)
        r = region_move(e, v->sp.by_index[i], err);
    if (r == 0 && e->copied.n)
        r = publish(e, err);
    return v->fenced && r == 0 ? gr_fail(err, -GR_EFENCED, "datastore '%s': %s", v->sb.name, v->fence_reason) : r;
}

/* Everything is elsewhere: nobody reads it any more, and it is let go of. */
static int let_go(struct vmfs *v, unsigned dev, struct gr_err *err)
{
    struct vdev *d = &v->dev[dev];
    uint64_t all = v->sp.next_ticket;
    while (!v->fenced && v->sp.oldest && v->sp.oldest->number < all) /* scans have trees that name what went free meanwhile, and is on no list */
        gr_fiber_sleep_ms(2);
    int r = vmfs_checkpoint(v, err);
    if (r == 0)
        r = state_write(v, dev, VMFS_DEVICE_GONE, 0, err);
    if (r < 0)
        return r;
    space_forget(v, dev);
    uint64_t began = v->sp.next_ticket;
    struct gr_chan *ch = gr_take(d->ch); /* nothing new begins */
    while (d->users || (v->sp.oldest && v->sp.oldest->number < began))
        gr_fiber_sleep_ms(2);
    static const uint64_t at[] = { VMFS_SUPER_A, VMFS_SUPER_B };
    for (unsigned i = 0; i < 2; i++) /* it is free for something else */
        if (gr_write_zeroes(ch, at[i] * VMFS_UNIT, VMFS_UNIT, GR_BIO_FUA) < 0)
            vmfs_warn(v, "'%s' is no device of datastore '%s' any more, but still says so", d->bdev->name, v->sb.name);
    vlife_leave_device(v, d->bdev);
    gr_chan_close(ch);
    *d = (struct vdev){ 0 };
    return 0;
}

static int remove_locked(struct evac *e, struct gr_err *err)
{
    struct vmfs *v = e->v;
    uint32_t was = v->sb.dev[e->dev].state;
    int r = refuse_others(v, err);
    if (r == 0)
        r = lease_all(v, e->dev, &e->units, err);
    if (r == 0)
        r = state_write(v, e->dev, VMFS_DEVICE_LEAVING, v->slot + 1, err);
    if (r < 0)
        return r;
    r = refuse_others(v, err); /* who joins from here on sees that we are at it */
    if (r == 0 && was == VMFS_DEVICE_IN_USE) {
        uint64_t free_units = space_free_units(v), keep = space_meta_reserve(v) + v->reserved_units;
        if (free_units < e->units + keep)
            r = gr_fail(err, -GR_ENOSPACE, "datastore '%s': %llu MiB lie on '%s', and the other devices have %llu MiB free, of which %llu MiB are kept back: make room, or add a device first",
                        v->sb.name, (unsigned long long)(e->units * VMFS_UNIT >> 20), v->dev[e->dev].bdev->name,
                        (unsigned long long)(free_units * VMFS_UNIT >> 20), (unsigned long long)(keep * VMFS_UNIT >> 20));
    }
    if (r == 0)
        r = quiesce(v, e->dev, err);
    v->sp.evac = e;
    if (r == 0)
        r = move_all(e, err);
    v->sp.evac = NULL;
    if (r == 0)
        return let_go(v, e->dev, err);
    copied_drop(e);
    if (e->blob_units)
        space_unreserve(v, e->blob_addr, e->blob_units);
    if (!v->fenced) /* what has moved stays moved; a device that nothing was moved from is in use again */
        state_write(v, e->dev, v->sb.dev[e->dev].moved_addr ? VMFS_DEVICE_LEAVING : VMFS_DEVICE_IN_USE, 0, NULL);
    return r;
}

int vmfs_device_remove(struct vmfs *v, unsigned number, const struct vmfs_device_remove *opts, struct gr_err *err)
{
    struct evac e = { .v = v, .dev = number, .opts = opts };
    if (v->role != VMFS_HOST)
        return gr_fail(err, -GR_EREADONLY, "this host joined datastore '%s' for reading only", v->sb.name);
    if (v->rescue)
        return vrescue_refuse(v, err);
    int r = vdev_all_here(v, "no device can be emptied", err);
    if (r < 0)
        return r;
    gr_fmutex_lock(&v->member_lock);
    if (number >= v->sb.n_devices || v->sb.dev[number].state == VMFS_DEVICE_GONE)
        r = gr_fail(err, -ENOENT, "datastore '%s' has no device %u", v->sb.name, number);
    else if (vdev_has_tables(v, number))
        r = gr_fail(err, -EBUSY, "'%s' holds tables and journals of datastore '%s' from when it was made, which hosts use all the time and which cannot be moved: only devices that hold none can be removed",
                    v->dev[number].bdev->name, v->sb.name);
    if (r == 0) {
        v->sp.stay++;
        r = remove_locked(&e, err);
        v->sp.stay--;
    }
    free(e.copied.e);
    free(e.taken.e);
    free(e.buf);
    free(e.touched);
    gr_fmutex_unlock(&v->member_lock);
    return r;
}
