/* The pool: runs that data never takes, so that a checkpoint finds room for its nodes though free space is in splinters. A leaf of splits is a run of up
 * to VMFS_LEAF_UNITS_MAX units, and a checkpoint that finds none is the end of the volume on this host: so nothing gets dirty that there is no run for.
 *
 * There is room enough while whole blocks are free. When there are hardly any, the pool takes all that is left of them, up to its target, and what nodes
 * leave behind goes back to it, not to data: single units would be eaten at once. What was promised to thick disks has its leaves in the target: each of
 * theirs is written anew once, for the snapshot keeps the old one; later copies of it come and go. */
#include "vmfs/internal.h"
#include "vmfs/pool.h"

#define FILL_MIN 64ull   /* units that a run is looked for with, */
#define FILL_MAX 4096ull

/* Of what one more write makes dirty. What was promised is kept, though its leaves, smaller and larger, have cut the runs into pieces. */
static uint64_t spare_units(const struct vmfs *v, bool promised)
{
    uint64_t spare = GR_MIN(space_all_units(v) / 1024, 512u);
    return promised ? GR_MIN(spare, GR_MAX(spare / 4, 2ull * leaf_units_max(v))) : spare;
}

uint64_t pool_due(const struct vmfs *v)
{
    return v->dirty_nodes * 2 + v->dirty_hanging / (VMFS_UNIT - 64);
}

/* Nodes may be of any size up to a leaf of splits: in a run of so many units all but the last few surely find place. */
static uint64_t sure_units(const struct vmfs *v, uint64_t run)
{
    return run < leaf_units_max(v) ? 0 : run - (leaf_units_max(v) - 1);
}

/* Counted by units, or, where all are large, by nodes. */
static bool enough(const struct vmfs *v, uint64_t leaves, bool promised)
{
    const struct vspace *s = &v->sp;
    uint64_t block = sure_units(v, VMFS_BLOCK_PIECES), leaf = leaf_units_max(v), spare = spare_units(v, promised);
    return s->free_blocks * block + s->pool_sure >= pool_due(v) + spare + leaves * leaf ||
           s->free_blocks + s->pool_leaves >= v->dirty_nodes + spare / leaf + leaves;
}

/* More units in runs are wanted: leaves that are kept, and what is due when whole blocks are short. */
static uint64_t wanted(const struct vmfs *v, uint64_t leaves)
{
    uint64_t target = GR_MIN(space_all_units(v) / 128, 4096u), leaf = leaf_units_max(v);
    if (!enough(v, leaves, false))
        target += pool_due(v) + spare_units(v, false) + leaves * leaf;
    return target - GR_MIN(target, v->sp.pool_leaves * leaf);
}

/* ---- runs ---- */
static void count(struct vmfs *v, const struct vmfs_run *run, bool more)
{
    struct vspace *s = &v->sp;
    uint64_t sign = more ? 1 : UINT64_MAX, leaf = leaf_units_max(v);
    s->pool_units += sign * run->units;
    s->pool_sure += sign * sure_units(v, run->units);
    s->pool_leaves += sign * (run->units / leaf);
}

static bool run_add(struct vmfs *v, uint64_t addr, uint64_t units)
{
    struct vspace *s = &v->sp;
    if (s->n_pool == VSPACE_POOL)
        return false;
    s->pool[s->n_pool] = (struct vmfs_run){ addr, units };
    count(v, &s->pool[s->n_pool++], true);
    return true;
}

static struct vmfs_run run_remove(struct vmfs *v, unsigned i)
{
    struct vspace *s = &v->sp;
    struct vmfs_run run = s->pool[i];
    count(v, &run, false);
    s->pool[i] = s->pool[--s->n_pool];
    return run;
}

static void fill(struct vmfs *v, uint64_t leaves)
{
    uint64_t more;
    while ((more = wanted(v, leaves)) && v->sp.n_pool < VSPACE_POOL) {
        uint32_t got = 0;
        uint64_t a = space_take_steady(v, SPACE_ANYWHERE, (uint32_t)GR_MAX(GR_MIN(more, FILL_MAX), FILL_MIN), leaf_units_max(v), &got);
        if (a)
            (void)run_add(v, a, got);
        else if (space_lease_any(v, NULL) < 0)
            return;
    }
}

/* Much was dirty; or what was in splinters is not any more. */
static void trim(struct vmfs *v)
{
    uint64_t leaf = leaf_units_max(v), most = 2 * GR_MIN(space_all_units(v) / 128, 4096u);
    bool roomy = v->sp.free_blocks > most / leaf + v->dirty_nodes + v->reserved_leaves;
    for (unsigned i = v->sp.n_pool; roomy && i-- > 0;)
        if (v->sp.pool[i].units < leaf || v->sp.pool_units > most) {
            struct vmfs_run run = run_remove(v, i);
            space_unreserve(v, run.addr, (uint32_t)run.units);
        }
}

void space_pool_fill(struct vmfs *v)
{
    trim(v);
    fill(v, v->reserved_leaves);
}

bool space_nodes_fit(struct vmfs *v, uint64_t leaves, bool promised)
{
    while (!enough(v, leaves, promised) && space_lease_any(v, NULL) == 0)
        ; /* whole blocks are rather used than kept */
    if (!enough(v, leaves, promised))
        fill(v, leaves);
    return enough(v, leaves, promised);
}

bool space_nodes_fit_now(const struct vmfs *v, uint64_t leaves, bool promised)
{
    return enough(v, leaves, promised);
}

bool space_nodes_fit_without(struct vmfs *v, const struct vregion *r, uint64_t leaves)
{
    struct vspace *s = &v->sp;
    uint64_t blocks = s->free_blocks, units = s->pool_units, sure = s->pool_sure, kept = s->pool_leaves;
    s->free_blocks -= r->busy.free_blocks;
    for (unsigned i = 0; i < s->n_pool; i++)
        if (space_region_index(v, s->pool[i].addr) == r->index)
            count(v, &s->pool[i], false);
    bool fit = enough(v, leaves, false);
    s->free_blocks = blocks, s->pool_units = units, s->pool_sure = sure, s->pool_leaves = kept;
    return fit;
}

/* Of the shortest that is long enough. */
uint64_t space_pool_take(struct vmfs *v, uint32_t units)
{
    struct vspace *s = &v->sp;
    unsigned best = VSPACE_POOL;
    for (unsigned i = 0; i < s->n_pool; i++)
        if (s->pool[i].units >= units && (best == VSPACE_POOL || s->pool[i].units < s->pool[best].units))
            best = i;
    if (best == VSPACE_POOL)
        return 0;
    struct vmfs_run run = run_remove(v, best);
    if (run.units > units)
        (void)run_add(v, run.addr + units, run.units - units);
    return run.addr;
}

/* What it is beside of becomes longer; a splinter is kept, too, for its neighbours will come (but a single unit was hardly ever of a run). */
bool pool_keep(struct vmfs *v, uint64_t addr, uint64_t units)
{
    struct vspace *s = &v->sp;
    if (!wanted(v, v->reserved_leaves) || space_nothing_kept(v, addr))
        return false;
    uint32_t region = space_region_index(v, addr);
    for (unsigned i = 0; i < s->n_pool;)
        if ((s->pool[i].addr + s->pool[i].units == addr || addr + units == s->pool[i].addr) && space_region_index(v, s->pool[i].addr) == region) {
            struct vmfs_run run = run_remove(v, i);
            addr = GR_MIN(addr, run.addr);
            units += run.units;
            i = 0;
        } else {
            i++;
        }
    if (units == 1 || (units < leaf_units_max(v) && s->n_pool >= VSPACE_POOL / 2)) {
        space_unreserve(v, addr, (uint32_t)units);
        return true;
    }
    return run_add(v, addr, units); /* it was beside others, or there is none to be added to */
}

void pool_leave_closed(struct vmfs *v)
{
    for (unsigned i = 0; i < v->sp.n_pool;)
        if (space_nothing_kept(v, v->sp.pool[i].addr)) {
            struct vmfs_run run = run_remove(v, i);
            space_unreserve(v, run.addr, (uint32_t)run.units);
        } else {
            i++;
        }
}
