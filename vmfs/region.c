/* Regions: where they lie, how they are leased from the volume and read, and what becomes of them when a device leaves or another host needs them. */
#include "common/seam.h"
#include "vmfs/internal.h"
#include "vmfs/loss.h"
#include "vmfs/pool.h"
#include "vmfs/region.h"

#define WORD_BITS 64u

/* ---- where they lie ---- */
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

uint32_t space_in_region(const struct vmfs *v, uint64_t addr, uint32_t units)
{
    uint32_t len;
    uint64_t first = space_region_first(v, space_region_index(v, addr), &len);
    return (uint32_t)GR_MIN((uint64_t)units, first + v->sb.region_units - addr);
}

/* ---- what of them is free ---- */
void space_busy_change(struct vmfs *v, struct vregion *r, uint32_t at, uint32_t units, bool taken)
{
    uint32_t blocks = r->busy.free_blocks, n = busy_set(&r->busy, at, units, taken);
    if (r->closed || r->giving)
        return;
    v->sp.free_busy = taken ? v->sp.free_busy - n : v->sp.free_busy + n;
    v->sp.free_blocks += (uint64_t)r->busy.free_blocks - blocks;
}
void space_used_change(struct vmfs *v, struct vregion *r, int64_t n)
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

/* ---- leasing ---- */
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
    if (rc == -EIO && v->rescue && r->shares_addr) {
        r->closed = true; /* nobody knows what of it is whose: nothing is taken there */
        r->shares_addr = 0;
        rc = 0;
    } else if (rc == -EIO && r->shares_addr && vdev_emptied(v, vmfs_addr_dev(r->shares_addr))) { /* nor here: it is counted anew */
        rc = vloss_mark(v, dev, false, err);
        rc = rc < 0 ? rc : 1;
    }
    if (rc == 0) {
        v->sp.free_elsewhere -= r->closed ? 0 : GR_MIN(v->sp.free_elsewhere, listed);
        region_add(v, r);
        if (n)
            space_touch(v, r, 0, r->units);
        space_foreign_return(v, r);
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

#define REGION_TRIED 1u
#define REGION_DAMAGED 2u /* what is said once is not tried again */
#define REGION_UNREAD 4u  /* it is, for the device may be better then; but said once */
/* The others are as good as before. @bit: what is the matter with it. */
static void lease_failed(struct vmfs *v, uint32_t index, uint8_t bit, const char *what, int code, const struct gr_err *err)
{
    bool said = v->sp.tried[index] & bit;
    v->sp.tried[index] |= bit;
    if (!said)
        vmfs_warn(v, "datastore '%s': its region %u %s and not used (granary datastore check tells more): %s", v->sb.name, index, what,
                  err && err->text[0] ? err->text : gr_code_text(code));
}

/* @steady: only on devices that hold tables. */
static int lease_any(struct vmfs *v, bool steady, struct gr_err *err)
{
    uint32_t n = space_n_regions(v), start = (uint32_t)((uint64_t)v->slot * n / v->sb.slots.entries);
    for (uint32_t k = 0; k < n && !v->fenced; k++) {
        uint32_t i = (start + k) % n;
        uint32_t units;
        uint64_t first = space_region_first(v, i, &units);
        if (v->sp.by_index[i] || v->sp.tried[i] & (REGION_TRIED | REGION_DAMAGED) || space_closed(v, first) || (steady && !vdev_has_tables(v, vmfs_addr_dev(first))))
            continue;
        v->sp.tried[i] |= REGION_TRIED;
        int r = lease(v, i, NULL, err);
        if (r == -GR_ECORRUPT)
            lease_failed(v, i, REGION_DAMAGED, "is damaged", r, err);
        else if (r == -EIO)
            lease_failed(v, i, REGION_UNREAD, "cannot be read", r, err);
        else if (r < 0)
            return r;
        else if (r == 0 && v->sp.by_index[i]->busy.free) {
            v->sp.asked_ns = 0; /* there was something: others may have more */
            return 0;
        }
    }
    return v->fenced ? -GR_EFENCED : -GR_ENOSPACE;
}

int space_lease_more(struct vmfs *v, struct gr_err *err)
{
    int r = lease_any(v, false, err);
    if (r == -GR_ENOSPACE) { /* another host may have left meanwhile */
        for (uint32_t i = 0; i < space_n_regions(v); i++)
            v->sp.tried[i] &= REGION_DAMAGED | REGION_UNREAD;
        r = lease_any(v, false, err);
    }
    return r;
}

int space_lease_steady(struct vmfs *v, struct gr_err *err)
{
    return lease_any(v, true, err);
}

int space_lease_any(struct vmfs *v, struct gr_err *err)
{
    gr_fmutex_lock(&v->sp.lease_lock);
    int r = space_lease_more(v, err);
    gr_fmutex_unlock(&v->sp.lease_lock);
    return r;
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
    space_used_change(v, r, bits_set(r->used, at, units, false));
    space_busy_change(v, r, at, units, false);
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
