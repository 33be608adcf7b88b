/* What guests unmap and what is deleted is given back to the device, too: a datastore on files with holes gets smaller, an array's LUN is told.
 *
 * Units that have become reusable stay busy until the device has answered, so nothing is discarded behind a write to its next owner. What
 * an overwrite left behind is not told: it is used again soon. Nor is anything while space is short, or on a preallocated datastore. */
#include "common/seam.h"
#include "vmfs/internal.h"

#define RUNS_MAX 4096u  /* waiting; more are reused without a word */
#define AT_ONCE 16u

/* The device's granule in units; 0: it cannot be told. */
static uint32_t granule(const struct vmfs *v, unsigned dev)
{
    struct gr_geometry g;
    if (v->dev[dev].no_discard || gr_bdev_geometry(v->dev[dev].bdev, &g) < 0 || !g.unmap_granule)
        return 0;
    return g.unmap_granule <= VMFS_UNIT ? 1 : g.unmap_granule % VMFS_UNIT ? 0 : g.unmap_granule / VMFS_UNIT;
}

bool discard_wanted(const struct vmfs *v, uint64_t addr, uint32_t units)
{
    const struct vdiscard *d = &v->sp.discard;
    if (v->leaving || v->fenced || v->replaying || (v->sb.compat & VMFS_COMPAT_PREALLOCATED) || d->n == RUNS_MAX || space_closed(v, addr))
        return false;
    return granule(v, vmfs_addr_dev(addr)) && space_free_units(v) > 4 * (d->units + units) + 2 * space_meta_reserve(v);
}

struct telling {
    struct vmfs *v;
    struct gr_fiber *fiber;
    struct vmfs_run run[AT_ONCE];
    struct gr_bio bio[AT_ONCE];
    unsigned n, left;
    bool waiting;
};

static void told(struct gr_bio *bio)
{
    struct telling *t = bio->arg;
    size_t i = (size_t)(bio - t->bio);
    if (bio->status == -EOPNOTSUPP)
        t->v->dev[vmfs_addr_dev(t->run[i].addr)].no_discard = true;
    if (--t->left == 0 && t->waiting)
        gr_fiber_wake(t->fiber);
}

/* Whole granules of the run. */
static void tell(struct telling *t, unsigned i)
{
    struct vmfs *v = t->v;
    const struct vmfs_run *run = &t->run[i];
    unsigned dev = vmfs_addr_dev(run->addr);
    uint32_t g = granule(v, dev);
    uint64_t from = vmfs_addr_unit(run->addr), to = from + run->units;
    if (!g)
        return;
    from = (from + g - 1) / g * g;
    to = to / g * g;
    if (from >= to)
        return;
    t->bio[i] = (struct gr_bio){ .op = GR_OP_UNMAP, .off = from * VMFS_UNIT, .len = (to - from) * VMFS_UNIT, .done = told, .arg = t };
    t->left++;
    v->stats.discarded += (to - from) * VMFS_UNIT;
    gr_submit(v->dev[dev].ch, &t->bio[i]);
}

static void tell_some(struct vmfs *v)
{
    struct vdiscard *d = &v->sp.discard;
    struct telling t = { .v = v, .fiber = gr_fiber_self(), .left = 1 };
    for (; t.n < AT_ONCE && d->n; d->n--) {
        t.run[t.n] = d->run[d->n - 1];
        v->dev[vmfs_addr_dev(t.run[t.n++].addr)].users++;
    }
    for (unsigned i = 0; i < t.n && !v->fenced; i++)
        tell(&t, i);
    t.left--;
    t.waiting = true;
    while (t.left)
        gr_fiber_suspend();
    for (unsigned i = 0; i < t.n; i++) {
        v->dev[vmfs_addr_dev(t.run[i].addr)].users--;
        space_unreserve(v, t.run[i].addr, (uint32_t)t.run[i].units);
        d->units -= t.run[i].units;
    }
    gr_fqueue_wake_all(&v->j.room_q);
}

static void discard_work(void *arg)
{
    struct vmfs *v = arg;
    while (v->sp.discard.n) {
        tell_some(v);
        gr_fiber_yield(); /* a device that answers at once never suspends us, and thousands of runs may wait */
    }
    v->sp.discard.running = false;
    if (--v->background == 0)
        gr_fqueue_wake_all(&v->background_q);
}

bool discard_take(struct vmfs *v, uint64_t addr, uint32_t units)
{
    struct vdiscard *d = &v->sp.discard;
    struct vmfs_run *last = d->n ? &d->run[d->n - 1] : NULL;
    if (!d->run && !(d->run = gr_alloc(RUNS_MAX * sizeof *d->run)))
        return false;
    if (!d->running) {
        if (gr_fiber_start(v->loop, discard_work, v) < 0)
            return false;
        d->running = true;
        v->background++;
    }
    if (last && last->addr + last->units == addr && space_region_index(v, last->addr) == space_region_index(v, addr))
        last->units += units;
    else
        d->run[d->n++] = (struct vmfs_run){ addr, units };
    d->units += units;
    return true;
}
