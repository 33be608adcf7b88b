/* Free space: how much there is, and units that are taken: allocation is private to this host. */
#include "vmfs/internal.h"
#include "vmfs/loss.h"
#include "vmfs/pool.h"
#include "vmfs/region.h"

uint64_t space_free_here(const struct vmfs *v)
{
    return v->sp.free_busy;
}

uint64_t space_free_units(const struct vmfs *v)
{
    return v->sp.free_elsewhere + v->sp.free_used + v->sp.foreign_units;
}

uint64_t space_promised_room(const struct vmfs *v)
{
    uint64_t here = 0, kept = space_meta_reserve(v) + v->reserved_units;
    for (const struct vregion *r = v->sp.regions; r; r = r->next)
        here += r->closed || r->giving ? 0 : r->free_used;
    return here - GR_MIN(here, kept);
}

uint64_t space_all_units(const struct vmfs *v)
{
    uint64_t units = 0;
    for (unsigned i = 0; i < v->sb.n_devices; i++)
        units += v->sb.dev[i].state == VMFS_DEVICE_IN_USE ? v->sb.dev[i].units : 0;
    return units;
}

uint64_t space_meta_reserve(const struct vmfs *v)
{
    return space_meta_base(v) + v->reserved_leaves * leaf_units_max(v);
}

uint64_t space_meta_base(const struct vmfs *v)
{
    return GR_MIN(space_all_units(v) / 64, 16384u) + pool_due(v) + v->sp.share_units; /* a checkpoint writes the lists anew before the old ones go */
}

bool space_low(const struct vmfs *v)
{
    return v->low || space_free_units(v) < space_all_units(v) / 100 * VMFS_LOW_PERCENT;
}

void space_watch(struct vmfs *v)
{
    uint64_t all = space_all_units(v), free_units = space_free_units(v);
    if (v->low && free_units > all / 100 * (VMFS_LOW_PERCENT + 2))
        v->low = false; /* from now on it is told again */
    if (v->low || free_units >= all / 100 * VMFS_LOW_PERCENT)
        return;
    v->low = true;
    vmfs_warn(v, "datastore '%s' has %llu MiB free, less than %u %% of it: make room, or 'granary datastore grow' it", v->sb.name,
              (unsigned long long)(free_units * VMFS_UNIT >> 20), VMFS_LOW_PERCENT);
    vmfs_tell_all(v, GR_EVENT_THRESHOLD);
}

/* Who waited for the lock looks again: one region serves many. */
int space_ensure(struct vmfs *v, uint64_t units)
{
    int r = 0;
    space_watch(v);
    if (space_free_here(v) >= units)
        return 0;
    gr_fmutex_lock(&v->sp.lease_lock);
    while (r == 0 && space_free_here(v) < units)
        r = space_lease_more(v, NULL);
    gr_fmutex_unlock(&v->sp.lease_lock);
    return r;
}

/* ---- taking ---- */
static bool take_block_of(struct vmfs *v, struct vregion *r, uint64_t *ret)
{
    uint32_t at;
    if (r->closed || r->giving || !busy_take_block(&r->busy, &at))
        return false;
    v->sp.free_busy -= VMFS_BLOCK_PIECES;
    v->sp.free_blocks--;
    v->sp.taken += VMFS_BLOCK_PIECES;
    *ret = r->first + at;
    return true;
}

uint64_t space_take_block(struct vmfs *v)
{
    uint64_t a;
    if (v->sp.current && take_block_of(v, v->sp.current, &a))
        return a;
    for (struct vregion *r = v->sp.regions; r; r = r->next)
        if (take_block_of(v, r, &a)) {
            v->sp.current = r;
            return a;
        }
    return 0;
}

/* A region that may hold a run of @want units, or else the one whose longest may be the longest. */
static struct vregion *most_promising(const struct vmfs *v, uint32_t want, bool steady, unsigned near)
{
    struct vregion *pick = NULL;
    for (struct vregion *r = v->sp.regions; r && (!pick || pick->busy.run_bound < want); r = r->next)
        if (!r->closed && !r->giving && r->busy.run_bound > (pick ? pick->busy.run_bound : 0) && (!steady || vdev_has_tables(v, vmfs_addr_dev(r->first))) &&
            (near == SPACE_ANYWHERE || vmfs_addr_dev(r->first) == near))
            pick = r;
    return pick;
}

static uint64_t take_run(struct vmfs *v, uint32_t want, bool steady, unsigned near, uint32_t *ret_got)
{
    struct vregion *r;
    while ((r = most_promising(v, want, steady, near))) {
        uint32_t at, units = GR_MIN(want, r->busy.run_bound);
        if (!busy_find_run(&r->busy, units, &at)) /* now its bound is lower */
            continue;
        space_busy_change(v, r, at, units, true);
        v->sp.taken += units;
        *ret_got = units;
        return r->first + at;
    }
    return 0;
}

/* A run of @want units, or else the longest. */
uint64_t space_take_run(struct vmfs *v, uint32_t want, uint32_t *ret_got)
{
    return take_run(v, want, false, SPACE_ANYWHERE, ret_got);
}

uint64_t space_take_steady(struct vmfs *v, unsigned near, uint32_t want, uint32_t least, uint32_t *ret_got)
{
    for (int steady = near == SPACE_ANYWHERE ? 1 : 2; steady >= 0; steady--) {
        uint64_t a = take_run(v, want, steady, steady == 2 ? near : SPACE_ANYWHERE, ret_got);
        if (a && *ret_got >= least)
            return a;
        if (a)
            space_unreserve(v, a, *ret_got);
    }
    return 0;
}

/* Is there a device that could be lost without the volume? Then metadata of disks keeps away from it. */
static bool any_unsteady(const struct vmfs *v)
{
    for (unsigned i = 0; i < v->sb.n_devices; i++)
        if (v->sb.dev[i].state == VMFS_DEVICE_IN_USE && !vdev_has_tables(v, i))
            return true;
    return false;
}

void space_steady(struct vmfs *v, uint32_t want)
{
    const struct vregion *r = any_unsteady(v) ? most_promising(v, want, true, SPACE_ANYWHERE) : NULL;
    if ((r && r->busy.run_bound >= want) || !any_unsteady(v))
        return;
    gr_fmutex_lock(&v->sp.lease_lock);
    (void)space_lease_steady(v, NULL); /* there is none: it goes where there is room */
    gr_fmutex_unlock(&v->sp.lease_lock);
}

uint64_t space_take_piece(struct vmfs *v)
{
    if (!v->sp.frag_left) {
        v->sp.frag_addr = space_take_block(v);
        v->sp.frag_left = v->sp.frag_addr ? VMFS_BLOCK_PIECES : 0;
    }
    if (!v->sp.frag_left) {
        uint32_t got;
        return space_take_run(v, 1, &got); /* no whole block left: odd units */
    }
    v->sp.frag_left--;
    return v->sp.frag_addr++;
}

void space_unreserve(struct vmfs *v, uint64_t addr, uint32_t units)
{
    while (units) {
        struct vregion *r = space_region(v, addr);
        uint32_t n = space_in_region(v, addr, units);
        if (r)
            space_busy_change(v, r, (uint32_t)(addr - r->first), n, false);
        addr += n;
        units -= n;
    }
}
