/* What is used, and what is freed: frees that wait until nobody can need the bytes any more, and frees in regions others lease. */
#include "common/seam.h"
#include "vmfs/internal.h"
#include "vmfs/pool.h"
#include "vmfs/region.h"

/* ---- applying ---- */
uint32_t space_used(struct vmfs *v, uint64_t addr, uint32_t units)
{
    uint32_t changed = 0;
    while (units) {
        struct vregion *r = space_region(v, addr); /* NULL: replay, and the region went on to another host, who wrote it home */
        uint32_t n = space_in_region(v, addr, units);
        if (r && addr - r->first + n <= r->units) {
            space_busy_change(v, r, (uint32_t)(addr - r->first), n, true);
            uint32_t c = bits_set(r->used, (uint32_t)(addr - r->first), n, true);
            space_used_change(v, r, -(int64_t)c);
            changed += c;
            space_touch(v, r, (uint32_t)(addr - r->first), n);
        }
        addr += n;
        units -= n;
    }
    return changed;
}

static int foreign_put(struct vspace *s, uint64_t addr, uint64_t units, bool given_up)
{
    if (s->n_foreign == s->cap_foreign) {
        size_t cap = s->cap_foreign ? s->cap_foreign * 2 : 64;
        struct vforeign *f = gr_realloc(s->foreign, cap * sizeof *f);
        if (!f)
            return -ENOMEM;
        s->foreign = f;
        s->cap_foreign = cap;
    }
    s->foreign[s->n_foreign++] = (struct vforeign){ addr, units, given_up };
    s->foreign_units += units;
    return 0;
}

int space_foreign_take(struct vmfs *v, uint64_t addr, uint64_t units)
{
    int r = 0;
    while (r == 0 && units) {
        uint32_t n = (uint32_t)GR_MIN(units, (uint64_t)UINT32_MAX);
        uint64_t now = moved_addr(v, addr, n, &n);
        r = now ? foreign_put(&v->sp, now, n, true) : -GR_ECORRUPT; /* nobody knows, and it is not used again soon */
        addr += n;
        units -= n;
    }
    return r;
}

static void foreign_add(struct vmfs *v, uint64_t addr, uint32_t units, bool given_up)
{
    struct vspace *s = &v->sp;
    struct vforeign *last = s->n_foreign ? &s->foreign[s->n_foreign - 1] : NULL;
    s->foreign_dirty = true;
    s->foreign_ticket = s->next_ticket;
    if (last && last->addr + last->units == addr && last->given_up == given_up && space_region_index(v, addr) == space_region_index(v, last->addr)) {
        last->units += units;
        s->foreign_units += units;
        return;
    }
    if (foreign_put(s, addr, units, given_up) < 0)
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
        uint32_t n = space_in_region(v, addr, units);
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
    space_used_change(v, r, bits_set(r->used, (uint32_t)(addr - r->first), units, false));
    space_touch(v, r, (uint32_t)(addr - r->first), units);
    if (v->replaying && (kind & 1)) /* still named by what is home: another recovery may need it until this one's checkpoint is */
        return;
    bool returned = kind & SPACE_RETURNED; /* who waits for space may have begun behind it, and must not wait for himself */
    if (v->replaying)
        space_busy_change(v, r, (uint32_t)(addr - r->first), units, false);
    else if (!freeq_add(&v->sp.freeq[returned ? 2 : kind & 1],
                        (struct vfree){ addr, units, seq, returned ? v->sp.foreign_ticket : v->sp.next_ticket, kind & SPACE_GIVEN_UP }))
        vmfs_fence(v, "out of memory for freed space"); /* busy bits stay set: never reused by mistake */
}

/* One change may give back units in any number of regions, and a journal that was made for a small volume may not hold the images of all of them, nor
 * a recovery have room for them in what is left of it: then the units wait on the list, as if their region were another's. */
static bool waits(const struct vmfs *v, const struct vregion *r, uint32_t at, uint32_t kind)
{
    return !(kind & SPACE_RETURNED) && !r->closed && !(r->dirty && bits_get(r->dirty_blocks, at / VMFS_BITMAP_BITS)) && !journal_holds_images(v, 2);
}

static void free_in_region(struct vmfs *v, uint64_t addr, uint32_t units, uint32_t kind, uint64_t seq)
{
    struct vregion *r = space_region(v, addr);
    if (!r || (addr - r->first + units <= r->units && waits(v, r, (uint32_t)(addr - r->first), kind))) {
        if (r || !vdev_stale(v, vmfs_addr_dev(addr)) || v->sp.recounting)
            foreign_add(v, addr, units, kind & SPACE_GIVEN_UP); /* else it is found to be nobody's when the device is counted anew */
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
        n = space_in_region(v, now, n);
        free_in_region(v, now, n, kind, seq);
        addr += n;
        units -= n;
    }
}

bool space_waiting(const struct vmfs *v)
{
    bool any = false;
    for (size_t i = 0; i < v->sp.n_foreign && !any; i++)
        any = v->sp.by_index[space_region_index(v, v->sp.foreign[i].addr)];
    return any;
}

bool space_pending(const struct vmfs *v)
{
    return v->sp.freeq[0].n || v->sp.freeq[1].n || v->sp.freeq[2].n || space_waiting(v);
}

static void reuse(struct vmfs *v, uint64_t addr, uint64_t units, bool tell)
{
    if (units && (!tell || !discard_take(v, addr, (uint32_t)units)))
        space_unreserve(v, addr, (uint32_t)units);
}

/* What the pool does not want of them may be used again. Frees that lie behind each other are one, whatever regions they are in; runs of the pool are
 * of one region each, for regions go one by one. */
static void reuse_or_keep(struct vmfs *v, const struct vfree *f, bool tell)
{
    uint64_t end = f->addr + f->units, at = f->addr, from = at;
    while (at < end) {
        uint32_t n = space_in_region(v, at, (uint32_t)(end - at));
        if (pool_keep(v, at, n)) {
            reuse(v, from, at - from, tell);
            from = at + n;
        }
        at += n;
    }
    reuse(v, from, end - from, tell);
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
            if (kind)
                reuse_or_keep(v, f, tell);
            else
                reuse(v, f->addr, f->units, tell);
            q->first++;
            q->n--;
        }
    }
}

void space_foreign_return(struct vmfs *v, struct vregion *r)
{
    struct vspace *s = &v->sp;
    for (size_t i = 0; i < s->n_foreign;) {
        struct vforeign f = s->foreign[i];
        if (space_region(v, f.addr) != r) {
            i++;
            continue;
        }
        s->foreign[i] = s->foreign[--s->n_foreign];
        s->foreign_dirty = true;
        s->foreign_units -= f.units;
        space_freed(v, f.addr, (uint32_t)f.units, 1 | SPACE_RETURNED | (f.given_up ? SPACE_GIVEN_UP : 0), v->ckpt_started + 1);
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
