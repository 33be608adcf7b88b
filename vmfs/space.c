/* Free space: regions leased from the volume, allocation private to this host, frees that wait until nobody can need the
 * bytes any more, and frees in regions others lease. */
#include "common/seam.h"
#include "vmfs/loss.h"
#include "vmfs/pool.h"

#define WORD_BITS 64u

uint32_t space_region_index(const struct vmfs *v, uint64_t addr)
{
    const struct vdevinfo *d = &v->sb.dev[vmfs_addr_dev(addr)];
    return d->first_region + (uint32_t)((vmfs_addr_unit(addr) - d->first_unit) / v->sb.region_units);
}

static uint32_t regions_of(const struct vsuper *s)
{
    const struct vdevinfo *last = &s->dev[s->n_devices - 1];
    return last->first_region + last->regions;
}

static unsigned device_of(const struct vmfs *v, uint32_t index)
{
    unsigned dev = 0;
    while (dev + 1 < v->sb.n_devices && index >= v->sb.dev[dev + 1].first_region && v->sb.dev[dev + 1].regions)
        dev++;
    return dev;
}

const struct vtable *space_table(const struct vmfs *v, uint32_t *index)
{
    const struct vdevinfo *d = &v->sb.dev[device_of(v, *index)];
    if (!d->table.entries)
        return &v->sb.regions;
    *index -= d->first_region;
    return &d->table;
}

/* The first unit of region @index, which lies on @d. */
static uint64_t region_unit(const struct vmfs *v, const struct vdevinfo *d, uint32_t index, uint32_t *ret_units)
{
    uint64_t unit = d->first_unit + (uint64_t)(index - d->first_region) * v->sb.region_units;
    *ret_units = (uint32_t)GR_MIN((uint64_t)v->sb.region_units, d->units - unit);
    *ret_units -= *ret_units % VMFS_BLOCK_PIECES;
    return unit;
}

uint64_t space_region_first(const struct vmfs *v, uint32_t index, uint32_t *ret_units)
{
    unsigned dev = device_of(v, index);
    return vmfs_addr(dev, region_unit(v, &v->sb.dev[dev], index, ret_units));
}

uint32_t space_n_regions(const struct vmfs *v)
{
    return regions_of(&v->sb);
}

bool space_addr_ok(const struct vmfs *v, uint64_t addr, uint64_t units)
{
    unsigned dev = vmfs_addr_dev(addr);
    uint64_t unit = vmfs_addr_unit(addr);
    const struct vdevinfo *d = &v->sb.dev[dev < v->sb.n_devices ? dev : 0];
    if (dev >= v->sb.n_devices || unit < d->first_unit || !d->regions || !units)
        return false;
    uint32_t last;
    uint64_t end = region_unit(v, d, d->first_region + d->regions - 1, &last);
    end += last;
    return unit < end && units <= end - unit;
}

struct vregion *space_region(struct vmfs *v, uint64_t addr)
{
    return v->sp.by_index[space_region_index(v, addr)];
}

static void busy_change(struct vmfs *v, struct vregion *r, uint32_t at, uint32_t units, bool taken)
{
    uint32_t blocks = r->busy.free_blocks, n = busy_set(&r->busy, at, units, taken);
    if (r->closed || r->giving)
        return;
    v->sp.free_busy = taken ? v->sp.free_busy - n : v->sp.free_busy + n;
    v->sp.free_blocks += (uint64_t)r->busy.free_blocks - blocks;
}
static void used_change(struct vmfs *v, struct vregion *r, int64_t n)
{
    r->free_used = (uint32_t)(r->free_used + n);
    if (!r->closed)
        v->sp.free_used = (uint64_t)((int64_t)v->sp.free_used + n);
}

/* Units from @at on have changed: the region's header and the bitmap blocks that hold them differ from home. */
void space_touch(struct vmfs *v, struct vregion *r, uint32_t at, uint32_t units)
{
    v->sp.images += !r->dirty;
    r->dirty = true;
    for (uint32_t k = at / VMFS_BITMAP_BITS; units && k <= (at + units - 1) / VMFS_BITMAP_BITS; k++)
        if (!bits_get(r->dirty_blocks, k))
            v->sp.images += bits_set(r->dirty_blocks, k, 1, true);
}

static void region_free(struct vregion *r)
{
    if (r) {
        free(r->used);
        busy_done(&r->busy);
        free(r->dirty_blocks);
        free(r->shares);
        free(r);
    }
}

static int bitmap_load(struct vmfs *v, struct vregion *r, struct gr_err *err)
{
    struct vmfs_bitmap_disk *b = vunits_alloc(1);
    uint32_t index = r->index;
    const struct vtable *t = space_table(v, &index);
    int rc = b ? 0 : -ENOMEM;
    for (uint32_t k = 0; rc == 0 && k < v->sb.bitmap_blocks; k++) {
        rc = vhome_read(v, t, index, 1 + k, VMFS_T_BITMAP, b, err);
        if (rc < 0)
            break;
        rc = 0;
        r->bm_generation = GR_MAX(r->bm_generation, gr_le64_get(b->hdr.generation));
        for (uint32_t i = 0; i < VMFS_BITMAP_BITS && k * VMFS_BITMAP_BITS + i < r->units; i++)
            if (b->bits[i / 8] >> (i % 8) & 1)
                bits_set(r->used, k * VMFS_BITMAP_BITS + i, 1, true);
    }
    free(b);
    if (rc < 0)
        return rc;
    busy_load(&r->busy, r->used);
    r->free_used = r->busy.free;
    return 0;
}

static struct vregion *region_new(struct vmfs *v, uint32_t index)
{
    struct vregion *r = gr_zalloc(sizeof *r);
    if (!r)
        return NULL;
    r->index = index;
    r->first = space_region_first(v, index, &r->units);
    r->closed = space_closed(v, r->first);
    r->used = gr_zalloc((r->units + WORD_BITS - 1) / WORD_BITS * 8);
    r->dirty_blocks = gr_zalloc((v->sb.bitmap_blocks + WORD_BITS - 1) / WORD_BITS * 8);
    if (!r->used || busy_init(&r->busy, r->units) < 0 || !r->dirty_blocks) {
        region_free(r);
        return NULL;
    }
    return r;
}

/* Its free units count, or no more. */
static void count_free(struct vmfs *v, const struct vregion *r, bool open)
{
    if (r->closed)
        return;
    if (!r->giving) {
        v->sp.free_busy = open ? v->sp.free_busy + r->busy.free : v->sp.free_busy - r->busy.free;
        v->sp.free_blocks = open ? v->sp.free_blocks + r->busy.free_blocks : v->sp.free_blocks - r->busy.free_blocks;
    }
    v->sp.free_used = open ? v->sp.free_used + r->free_used : v->sp.free_used - r->free_used;
}

static void region_add(struct vmfs *v, struct vregion *r)
{
    r->next = v->sp.regions;
    v->sp.regions = r;
    count_free(v, r, true);
    v->sp.images_max += 1 + v->sb.bitmap_blocks;
    v->sp.share_units += share_blob_units(r);
    v->sp.by_index[r->index] = r;
}

/* Give foreign frees of a region just leased back to it. */
static void foreign_return(struct vmfs *v, struct vregion *r)
{
    struct vspace *s = &v->sp;
    for (size_t i = 0; i < s->n_foreign;) {
        struct vmfs_run f = s->foreign[i];
        if (space_region(v, f.addr) != r) {
            i++;
            continue;
        }
        s->foreign[i] = s->foreign[--s->n_foreign];
        s->foreign_dirty = true;
        s->foreign_units -= f.units;
        space_freed(v, f.addr, (uint32_t)f.units, 1 | SPACE_RETURNED, v->ckpt_started + 1);
    }
}

/* Free units a region's header tells. One that was locked but never went through a checkpoint tells nothing: all are free. */
uint32_t space_listed_free(const struct vmfs_region_disk *h, uint32_t units)
{
    return gr_le32_get(h->units) ? gr_le32_get(h->free_units) : units;
}

int space_region_free(struct vmfs *v, uint32_t index, uint64_t *ret, struct gr_err *err)
{
    if (v->sp.by_index[index]) {
        *ret = v->sp.by_index[index]->free_used;
        return 0;
    }
    struct vmfs_region_disk *h = vunits_alloc(1);
    uint32_t at = index, units;
    const struct vtable *t = space_table(v, &at);
    int r = h ? vhome_read(v, t, at, 0, VMFS_T_REGION, h, err) : gr_fail(err, -ENOMEM, "out of memory");
    space_region_first(v, index, &units);
    if (r >= 0)
        *ret = space_listed_free(h, units);
    free(h);
    return r < 0 ? r : 0;
}

/* What its tables say; or, of a device that was lost, what was counted. */
static int tables_load(struct vmfs *v, struct vregion *r, const struct vmfs_region_disk *h, struct recount *n, struct gr_err *err)
{
    if (!n) {
        int rc = bitmap_load(v, r, err);
        return rc == 0 ? share_load(v, r, h, err) : rc;
    }
    (void)bitmap_load(v, r, NULL); /* for the generation of its blocks: those that cannot be read have none */
    busy_done(&r->busy);
    memcpy(r->used, n->used, (r->units + WORD_BITS - 1) / WORD_BITS * 8);
    if (busy_init(&r->busy, r->units) < 0)
        return -ENOMEM;
    busy_load(&r->busy, r->used);
    r->free_used = r->busy.free;
    r->shares = gr_take(n->shares);
    r->n_shares = r->cap_shares = n->n_shares;
    r->shares_dirty = r->n_shares > 0;
    return 0;
}

/* 0 leased (or was already), 1 held by another, negative error. */
static int lease(struct vmfs *v, uint32_t index, struct recount *n, struct gr_err *err)
{
    uint32_t len;
    if (v->sp.by_index[index])
        return 0;
    unsigned dev = vmfs_addr_dev(space_region_first(v, index, &len));
    if (vdev_missing(v, dev) || (vdev_stale(v, dev) && !n))
        return 1; /* what is freed there waits until it is back, or until its tables are good again */
    struct vmfs_region_disk *h = vunits_alloc(1), *h2 = vunits_alloc(1);
    struct vregion *r = region_new(v, index);
    uint32_t at = index;
    const struct vtable *t = space_table(v, &at);
    int rc = h && h2 && r ? vhome_read(v, t, at, 0, VMFS_T_REGION, h, err) : -ENOMEM;
    if (rc == -GR_ECORRUPT && n) {
        memset(h, 0, VMFS_UNIT);
        rc = 1;
    }
    uint32_t listed = rc >= 0 ? space_listed_free(h, r->units) : 0;
    if (rc >= 0) {
        rc = 0;
        vlock_get(&h->lock, &r->lock);
        int held = vlock_mine(v, &r->lock) ? 0 : vlock_counts(v, &r->lock, err);
        if (held == 0 && r->lock.holder && !vlock_mine(v, &r->lock) && (held = vmfs_refresh(v, err)) == 0)
            held = vdev_stale(v, dev) && !n; /* whoever had it may have lost the device */
        if (held < 0) {
            rc = held;
        } else if (held) {
            rc = 1;
        } else if (!vlock_mine(v, &r->lock)) {
            struct vlock l = { v->slot + 1, v->me.generation, r->lock.token + 1, 0 };
            rc = vhome_lock(v, t, at, h, &l, h2, err);
            r->lock = l;
            if (rc == 0)
                r->hdr_generation = gr_le64_get(h2->hdr.generation);
            if (rc == -GR_EMISCOMPARE)
                rc = 1;
        } else {
            r->hdr_generation = gr_le64_get(h->hdr.generation);
        }
    }
    if (rc == 0 && (rc = tables_load(v, r, h, n, err)) == -EIO && !v->replaying && vdev_missing(v, vmfs_addr_dev(r->shares_addr)))
        rc = 1; /* its list of shared units lies on a device that is missing */
    if (rc == 0) {
        v->sp.free_elsewhere -= r->closed ? 0 : GR_MIN(v->sp.free_elsewhere, listed);
        region_add(v, r);
        if (n)
            space_touch(v, r, 0, r->units);
        foreign_return(v, r);
    } else {
        region_free(r);
    }
    free(h);
    free(h2);
    return rc;
}

int space_lease(struct vmfs *v, uint32_t index, struct gr_err *err)
{
    gr_fmutex_lock(&v->sp.lease_lock);
    int r = lease(v, index, NULL, err);
    gr_fmutex_unlock(&v->sp.lease_lock);
    return r;
}

int space_lease_recounted(struct vmfs *v, uint32_t index, struct recount *n, struct gr_err *err)
{
    gr_fmutex_lock(&v->sp.lease_lock);
    int r = lease(v, index, n, err);
    gr_fmutex_unlock(&v->sp.lease_lock);
    return r;
}

#define REGION_DAMAGED 2u /* what is said once is not tried again */
/* @steady: only on devices that hold tables. */
static int lease_any(struct vmfs *v, bool steady, struct gr_err *err)
{
    uint32_t n = space_n_regions(v), start = (uint32_t)((uint64_t)v->slot * n / v->sb.slots.entries);
    for (uint32_t k = 0; k < n; k++) {
        uint32_t i = (start + k) % n;
        uint32_t units;
        uint64_t first = space_region_first(v, i, &units);
        if (v->sp.by_index[i] || v->sp.tried[i] || space_closed(v, first) || (steady && !vdev_has_tables(v, vmfs_addr_dev(first))))
            continue;
        v->sp.tried[i] = 1;
        int r = lease(v, i, NULL, err);
        if (r == -GR_ECORRUPT) { /* the others are as good as before */
            vmfs_warn(v, "datastore '%s': its region %u is damaged and not used (granary datastore check tells more): %s", v->sb.name, i, err && err->text[0] ? err->text : gr_code_text(r));
            v->sp.tried[i] = REGION_DAMAGED;
            continue;
        }
        if (r < 0)
            return r;
        if (r == 0 && v->sp.by_index[i]->busy.free) {
            v->sp.asked_ns = 0; /* there was something: others may have more */
            return 0;
        }
    }
    return -GR_ENOSPACE;
}

static int lease_more(struct vmfs *v, struct gr_err *err)
{
    int r = lease_any(v, false, err);
    if (r == -GR_ENOSPACE) { /* another host may have left meanwhile */
        for (uint32_t i = 0; i < space_n_regions(v); i++)
            v->sp.tried[i] &= REGION_DAMAGED;
        r = lease_any(v, false, err);
    }
    return r;
}

int space_lease_any(struct vmfs *v, struct gr_err *err)
{
    gr_fmutex_lock(&v->sp.lease_lock);
    int r = lease_more(v, err);
    gr_fmutex_unlock(&v->sp.lease_lock);
    return r;
}

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
        r = lease_more(v, NULL);
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
static struct vregion *most_promising(const struct vmfs *v, uint32_t want, bool steady)
{
    struct vregion *pick = NULL;
    for (struct vregion *r = v->sp.regions; r && (!pick || pick->busy.run_bound < want); r = r->next)
        if (!r->closed && !r->giving && r->busy.run_bound > (pick ? pick->busy.run_bound : 0) && (!steady || vdev_has_tables(v, vmfs_addr_dev(r->first))))
            pick = r;
    return pick;
}

static uint64_t take_run(struct vmfs *v, uint32_t want, bool steady, uint32_t *ret_got)
{
    struct vregion *r;
    while ((r = most_promising(v, want, steady))) {
        uint32_t at, units = GR_MIN(want, r->busy.run_bound);
        if (!busy_find_run(&r->busy, units, &at)) /* now its bound is lower */
            continue;
        busy_change(v, r, at, units, true);
        v->sp.taken += units;
        *ret_got = units;
        return r->first + at;
    }
    return 0;
}

/* A run of @want units, or else the longest. */
uint64_t space_take_run(struct vmfs *v, uint32_t want, uint32_t *ret_got)
{
    return take_run(v, want, false, ret_got);
}

uint64_t space_take_steady(struct vmfs *v, uint32_t want, uint32_t least, uint32_t *ret_got)
{
    for (int steady = 1; steady >= 0; steady--) {
        uint64_t a = take_run(v, want, steady, ret_got);
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
    const struct vregion *r = any_unsteady(v) ? most_promising(v, want, true) : NULL;
    if ((r && r->busy.run_bound >= want) || !any_unsteady(v))
        return;
    gr_fmutex_lock(&v->sp.lease_lock);
    (void)lease_any(v, true, NULL); /* there is none: it goes where there is room */
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

/* Units of [addr, addr+units) that lie in the region of @addr: runs go on across regions that are neighbours. */
static uint32_t in_region(const struct vmfs *v, uint64_t addr, uint32_t units)
{
    uint32_t len;
    uint64_t first = space_region_first(v, space_region_index(v, addr), &len);
    return (uint32_t)GR_MIN((uint64_t)units, first + v->sb.region_units - addr);
}

void space_unreserve(struct vmfs *v, uint64_t addr, uint32_t units)
{
    while (units) {
        struct vregion *r = space_region(v, addr);
        uint32_t n = in_region(v, addr, units);
        if (r)
            busy_change(v, r, (uint32_t)(addr - r->first), n, false);
        addr += n;
        units -= n;
    }
}

/* ---- applying ---- */
uint32_t space_used(struct vmfs *v, uint64_t addr, uint32_t units)
{
    uint32_t changed = 0;
    while (units) {
        struct vregion *r = space_region(v, addr); /* NULL: replay, and the region went on to another host, who wrote it home */
        uint32_t n = in_region(v, addr, units);
        if (r && addr - r->first + n <= r->units) {
            busy_change(v, r, (uint32_t)(addr - r->first), n, true);
            uint32_t c = bits_set(r->used, (uint32_t)(addr - r->first), n, true);
            used_change(v, r, -(int64_t)c);
            changed += c;
            space_touch(v, r, (uint32_t)(addr - r->first), n);
        }
        addr += n;
        units -= n;
    }
    return changed;
}

static int foreign_put(struct vspace *s, uint64_t addr, uint64_t units)
{
    if (s->n_foreign == s->cap_foreign) {
        size_t cap = s->cap_foreign ? s->cap_foreign * 2 : 64;
        struct vmfs_run *f = gr_realloc(s->foreign, cap * sizeof *f);
        if (!f)
            return -ENOMEM;
        s->foreign = f;
        s->cap_foreign = cap;
    }
    s->foreign[s->n_foreign++] = (struct vmfs_run){ addr, units };
    s->foreign_units += units;
    return 0;
}

int space_foreign_take(struct vmfs *v, uint64_t addr, uint64_t units)
{
    int r = 0;
    while (r == 0 && units) {
        uint32_t n = (uint32_t)GR_MIN(units, (uint64_t)UINT32_MAX);
        uint64_t now = moved_addr(v, addr, n, &n);
        r = now ? foreign_put(&v->sp, now, n) : -GR_ECORRUPT;
        addr += n;
        units -= n;
    }
    return r;
}

static void foreign_add(struct vmfs *v, uint64_t addr, uint32_t units)
{
    struct vspace *s = &v->sp;
    s->foreign_dirty = true;
    s->foreign_ticket = s->next_ticket;
    if (s->n_foreign && s->foreign[s->n_foreign - 1].addr + s->foreign[s->n_foreign - 1].units == addr &&
        space_region_index(v, addr) == space_region_index(v, s->foreign[s->n_foreign - 1].addr)) {
        s->foreign[s->n_foreign - 1].units += units;
        s->foreign_units += units;
        return;
    }
    if (foreign_put(s, addr, units) < 0)
        vmfs_fence(v, "out of memory for freed space");
}

static bool freeq_add(struct vfreeq *q, struct vfree f)
{
    if (q->n) {
        struct vfree *last = &q->e[q->first + q->n - 1];
        if (last->addr + last->units == f.addr && last->seq == f.seq && last->ticket == f.ticket && last->given_up == f.given_up) {
            last->units += f.units;
            return true;
        }
    }
    if (q->first + q->n == q->cap) {
        if (q->first > q->cap / 2) {
            memmove(q->e, q->e + q->first, q->n * sizeof *q->e);
        } else {
            size_t cap = q->cap ? q->cap * 2 : 256;
            struct vfree *e = gr_alloc(cap * sizeof *e);
            if (!e)
                return false;
            if (q->n)
                memcpy(e, q->e + q->first, q->n * sizeof *e);
            free(q->e);
            q->e = e;
            q->cap = cap;
        }
        q->first = 0;
    }
    q->e[q->first + q->n++] = f;
    return true;
}

static int owners_change(struct vmfs *v, struct vregion *r, uint32_t at, uint32_t units, bool more)
{
    uint32_t before = share_blob_units(r);
    int rc = share_change(r, at, units, more);
    v->sp.share_units = v->sp.share_units - before + share_blob_units(r);
    space_touch(v, r, 0, 0);
    return rc;
}

int space_share(struct vmfs *v, uint64_t addr, uint32_t units)
{
    int rc = 0;
    while (rc == 0 && units) {
        struct vregion *r = space_region(v, addr); /* NULL: replay, and the region went on to another host, who wrote it home */
        uint32_t n = in_region(v, addr, units);
        if (r && addr - r->first + n <= r->units)
            rc = owners_change(v, r, (uint32_t)(addr - r->first), n, true);
        addr += n;
        units -= n;
    }
    return rc;
}

int space_shared(struct vmfs *v, uint64_t addr)
{
    uint32_t n;
    addr = moved_owned(v, addr, 1, NULL);
    struct vregion *r = space_region(v, addr);
    return r ? share_at(r, (uint32_t)(addr - r->first), 1, &n) : -EAGAIN;
}

/* Units without an owner. */
static void free_last(struct vmfs *v, struct vregion *r, uint64_t addr, uint32_t units, uint32_t kind, uint64_t seq)
{
    used_change(v, r, bits_set(r->used, (uint32_t)(addr - r->first), units, false));
    space_touch(v, r, (uint32_t)(addr - r->first), units);
    if (v->replaying && (kind & 1)) /* still named by what is home: another recovery may need it until this one's checkpoint is */
        return;
    bool returned = kind & SPACE_RETURNED; /* who waits for space may have begun behind it, and must not wait for himself */
    if (v->replaying)
        busy_change(v, r, (uint32_t)(addr - r->first), units, false);
    else if (!freeq_add(&v->sp.freeq[returned ? 2 : kind & 1],
                        (struct vfree){ addr, units, seq, returned ? v->sp.foreign_ticket : v->sp.next_ticket, kind & SPACE_GIVEN_UP }))
        vmfs_fence(v, "out of memory for freed space"); /* busy bits stay set: never reused by mistake */
}

static void free_in_region(struct vmfs *v, uint64_t addr, uint32_t units, uint32_t kind, uint64_t seq)
{
    struct vregion *r = space_region(v, addr);
    if (!r) {
        if (!vdev_stale(v, vmfs_addr_dev(addr)) || v->sp.recounting)
            foreign_add(v, addr, units); /* else it is found to be nobody's when the device is counted anew */
        return;
    }
    if (addr - r->first + units > r->units) {
        vmfs_fence(v, "device %u unit %llu: freed, but in no region", vmfs_addr_dev(addr), (unsigned long long)vmfs_addr_unit(addr));
        return;
    }
    while (units) {
        uint32_t n, at = (uint32_t)(addr - r->first);
        if (!share_at(r, at, units, &n))
            free_last(v, r, addr, n, kind, seq);
        else if (owners_change(v, r, at, n, false) < 0)
            vmfs_fence(v, "out of memory for shared space");
        addr += n;
        units -= n;
    }
}

void space_freed(struct vmfs *v, uint64_t addr, uint32_t units, uint32_t kind, uint64_t seq)
{
    while (units) {
        uint32_t n;
        uint64_t now = moved_owned(v, addr, units, &n);
        if (!now) {
            vmfs_fence(v, "device %u unit %llu: freed, but it left with its device", vmfs_addr_dev(addr), (unsigned long long)vmfs_addr_unit(addr));
            return;
        }
        n = in_region(v, now, n);
        free_in_region(v, now, n, kind, seq);
        addr += n;
        units -= n;
    }
}

bool space_pending(const struct vmfs *v)
{
    return v->sp.freeq[0].n || v->sp.freeq[1].n || v->sp.freeq[2].n;
}

void space_reclaim(struct vmfs *v)
{
    uint64_t oldest = v->sp.oldest ? v->sp.oldest->number : UINT64_MAX;
    for (unsigned kind = 0; kind < GR_ARRAY_LEN(v->sp.freeq); kind++) {
        struct vfreeq *q = &v->sp.freeq[kind];
        uint64_t reached = kind ? v->ckpt_done : v->j.durable_seq;
        while (q->n && q->e[q->first].seq <= reached && q->e[q->first].ticket <= oldest) {
            const struct vfree *f = &q->e[q->first];
            bool tell = f->given_up && discard_wanted(v, f->addr, f->units);
            if (tell && !kind && f->seq > v->j.sealed_seq)
                break; /* a replay would doubt the record that wrote there, and miss that the piece was ever written */
            if (!(kind && pool_keep(v, f->addr, f->units)) && (!tell || !discard_take(v, f->addr, f->units)))
                space_unreserve(v, f->addr, f->units);
            q->first++;
            q->n--;
        }
    }
}

/* ---- regions that go ---- */
bool space_nothing_kept(const struct vmfs *v, uint64_t addr)
{
    const struct vregion *r = v->sp.by_index[space_region_index(v, addr)];
    return space_closed(v, addr) || (r && r->giving);
}

/* Nothing kept ready for later is kept there. */
static void drop_kept(struct vmfs *v)
{
    struct vspace *s = &v->sp;
    if (s->frag_left && space_nothing_kept(v, s->frag_addr)) {
        space_unreserve(v, s->frag_addr, s->frag_left);
        s->frag_left = 0;
    }
    pool_leave_closed(v);
    if (s->current && space_nothing_kept(v, s->current->first))
        s->current = NULL;
}

void space_giving(struct vmfs *v, struct vregion *r, bool on)
{
    if (r->giving == on)
        return;
    r->giving = on;
    if (!r->closed) {
        v->sp.free_busy = on ? v->sp.free_busy - r->busy.free : v->sp.free_busy + r->busy.free;
        v->sp.free_blocks = on ? v->sp.free_blocks - r->busy.free_blocks : v->sp.free_blocks + r->busy.free_blocks;
    }
    if (on)
        drop_kept(v);
}

uint64_t space_can_spare(const struct vmfs *v, const struct vregion *r)
{
    const struct vspace *s = &v->sp;
    uint64_t units = r->busy.free;
    if (s->frag_left && space_region_index(v, s->frag_addr) == r->index)
        units += s->frag_left;
    for (unsigned i = 0; i < s->n_pool; i++)
        units += space_region_index(v, s->pool[i].addr) == r->index ? s->pool[i].units : 0;
    return units;
}

/* Out of what is kept by region; its free units do not count any more. */
static void region_drop(struct vmfs *v, struct vregion *r)
{
    struct vregion **p = &v->sp.regions;
    while (*p != r)
        p = &(*p)->next;
    *p = r->next;
    if (v->sp.current == r)
        v->sp.current = NULL;
    count_free(v, r, false);
    v->sp.by_index[r->index] = NULL;
    v->sp.images_max -= 1 + v->sb.bitmap_blocks;
    v->sp.share_units -= share_blob_units(r);
    region_free(r);
}

void space_detach(struct vmfs *v, struct vregion *r)
{
    v->sp.free_elsewhere += r->closed ? 0 : r->free_used;
    v->sp.tried[r->index] = 0;
    region_drop(v, r);
}

/* ---- devices that leave ---- */
void space_close(struct vmfs *v)
{
    drop_kept(v);
    for (struct vregion *r = v->sp.regions; r; r = r->next) {
        bool leaving = space_closed(v, r->first);
        if (leaving && !r->closed)
            count_free(v, r, false);
        bool opens = !leaving && r->closed;
        r->closed = leaving;
        if (opens)
            count_free(v, r, true);
    }
}

int space_left(struct vmfs *v, struct vregion *r, uint32_t at, uint32_t units)
{
    int rc = 0;
    used_change(v, r, bits_set(r->used, at, units, false));
    busy_change(v, r, at, units, false);
    space_touch(v, r, at, units);
    if (r->n_shares) { /* went with their units */
        v->sp.share_units -= share_blob_units(r);
        rc = share_cut(r, at, units);
        v->sp.share_units += share_blob_units(r);
    }
    return rc;
}

void space_forget(struct vmfs *v, unsigned dev)
{
    for (struct vregion *r = v->sp.regions, *next; r; r = next) {
        next = r->next;
        if (vmfs_addr_dev(r->first) == dev)
            region_drop(v, r);
    }
}

uint64_t space_unsettled(const struct vmfs *v, unsigned dev)
{
    uint64_t taken = 0, known = 0;
    for (const struct vregion *r = v->sp.regions; r; r = r->next)
        if (vmfs_addr_dev(r->first) == dev)
            taken += r->free_used - r->busy.free;
    for (unsigned kind = 0; kind < GR_ARRAY_LEN(v->sp.freeq); kind++)
        for (size_t i = 0; i < v->sp.freeq[kind].n; i++) {
            const struct vfree *f = &v->sp.freeq[kind].e[v->sp.freeq[kind].first + i];
            known += vmfs_addr_dev(f->addr) == dev ? f->units : 0;
        }
    return taken - known;
}

/* ---- tickets: whoever may still read units that are freed from now on ---- */
void ticket_open(struct vmfs *v, struct vticket *t)
{
    t->number = v->sp.next_ticket++;
    t->next = NULL;
    t->prev = v->sp.newest;
    if (t->prev)
        t->prev->next = t;
    else
        v->sp.oldest = t;
    v->sp.newest = t;
}

void ticket_close(struct vmfs *v, struct vticket *t)
{
    if (t->prev)
        t->prev->next = t->next;
    else
        v->sp.oldest = t->next;
    if (t->next)
        t->next->prev = t->prev;
    else
        v->sp.newest = t->prev;
    if (v->leaving && !v->sp.oldest)
        gr_fqueue_wake_all(&v->background_q);
}

/* ---- start, end ---- */
/* Look at every region: what is free elsewhere, and (recovery) what this slot already holds. */
static int scan_regions(struct vmfs *v, struct gr_err *err)
{
    struct vmfs_region_disk *h = vunits_alloc(1);
    int r = h ? 0 : -ENOMEM;
    for (uint32_t i = 0; r == 0 && i < space_n_regions(v); i++) {
        struct vlock l;
        uint32_t at = i, units;
        unsigned dev = vmfs_addr_dev(space_region_first(v, i, &units)), state = v->sb.dev[dev].state;
        if (state == VMFS_DEVICE_GONE || vdev_missing(v, dev) || vdev_stale(v, dev))
            continue;
        const struct vtable *t = space_table(v, &at);
        r = vhome_read(v, t, at, 0, VMFS_T_REGION, h, err);
        if (r < 0)
            break;
        v->sp.free_elsewhere += state == VMFS_DEVICE_IN_USE ? space_listed_free(h, units) : 0;
        r = 0;
        vlock_get(&h->lock, &l);
        if (v->role == VMFS_HOST && vlock_mine(v, &l))
            r = lease(v, i, NULL, err);
    }
    free(h);
    return r;
}

/* Room for @n regions in what is kept by index. */
static int index_room(struct vspace *s, uint32_t n)
{
    if (n <= s->n_indexed)
        return 0;
    struct vregion **by_index = gr_realloc(s->by_index, n * sizeof *by_index);
    if (by_index)
        s->by_index = by_index;
    uint8_t *tried = by_index ? gr_realloc(s->tried, n) : NULL;
    if (!tried)
        return -ENOMEM;
    s->tried = tried;
    memset(s->by_index + s->n_indexed, 0, (n - s->n_indexed) * sizeof *by_index);
    memset(s->tried + s->n_indexed, 0, n - s->n_indexed);
    s->n_indexed = n;
    return 0;
}

int space_regions_added(struct vmfs *v, const struct vsuper *s)
{
    uint32_t before = space_n_regions(v);
    if (index_room(&v->sp, regions_of(s)) < 0)
        return -ENOMEM;
    vsuper_ours(v, s);
    for (uint32_t i = before; i < space_n_regions(v); i++) {
        uint32_t units;
        space_region_first(v, i, &units);
        v->sp.free_elsewhere += units;
    }
    return 0;
}

int space_init(struct vmfs *v, struct gr_err *err)
{
    if (index_room(&v->sp, space_n_regions(v)) < 0)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = moved_load(v, err);
    v->sp.free_elsewhere = 0; /* the superblock may have been read again meanwhile */
    return r < 0 ? r : scan_regions(v, err);
}

void space_done(struct vmfs *v)
{
    struct vregion *r = v->sp.regions;
    while (r) {
        struct vregion *next = r->next;
        region_free(r);
        r = next;
    }
    moved_done(v);
    free(v->sp.by_index);
    free(v->sp.tried);
    free(v->sp.discard.run);
    free(v->sp.freeq[0].e);
    free(v->sp.freeq[1].e);
    free(v->sp.freeq[2].e);
    free(v->sp.foreign);
    memset(&v->sp, 0, sizeof v->sp);
}
