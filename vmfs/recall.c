/* Regions go to whoever needs them. docs/vmfs.md says why it is done so.
 *
 * A region is given back when all that this host knows of it is home: its images are where they belong, nothing in the journal behind the last
 * checkpoint names it, and of its units none is taken, or free but not yet reusable. From that instant on it is not leased here; then its header
 * says that it is nobody's. What is freed in it later goes on the list of foreign frees, as with any region that is not leased here. */
#include "common/seam.h"
#include "vmfs/internal.h"
#include "vmfs/pool.h"

#define ASK_AGAIN_NS 1000000000ull  /* who was told that nobody has anything does not ask again for so long */
#define LOOK_AGAIN_NS 30000000000ull
#define RECOVER_AGAIN_NS 5000000000ull /* who cannot be recovered is not tried again for so long */
#define DISCARD_MS 2000u            /* what is free is given back when its device was told; so long that is waited for */
#define IDLE_REGIONS 4u             /* kept beyond what was used lately, by who gives back without being asked */

/* Regions that others have freed something in. */
struct wanted {
    uint32_t n; /* regions that there were: the volume may grow meanwhile */
    uint8_t region[];
};

static bool is_wanted(const struct wanted *w, uint32_t index)
{
    return w && index < w->n && w->region[index];
}

/* ---- how much is free elsewhere ---- */
struct looking {
    struct vmfs *v;
    uint64_t free_units; /* nobody's */
    uint64_t *held;      /* [slots] free units of its host's regions */
    uint64_t *generation; /* [slots] of the locks that count; 0: not known yet, UINT64_MAX: none does */
    uint8_t *chunk;
};
#define LOOK_UNITS 256u

static uint64_t base_reserve(const struct vmfs *v) /* what every host keeps, at least */
{
    return GR_MIN(space_all_units(v) / 64, 16384u);
}

static int lock_look(struct looking *k, const struct vlock *l, uint64_t units, struct gr_err *err)
{
    struct vmfs *v = k->v;
    unsigned slot = l->holder - 1;
    struct vslot s;
    if (!l->holder || slot >= v->sb.slots.entries) {
        k->free_units += units;
        return 0;
    }
    if (!k->generation[slot]) {
        int r = vslot_read(v, slot, &s, err);
        if (r < 0)
            return r;
        k->generation[slot] = s.state == VMFS_SLOT_HOST || s.state == VMFS_SLOT_REPLAYING ? s.generation : UINT64_MAX;
    }
    *(k->generation[slot] == l->generation ? &k->held[slot] : &k->free_units) += units;
    return 0;
}

/* Headers of regions [@first, @first + @n) of the volume, which are entries of @t from @at on and lie in one chunk. */
static int chunk_look(struct looking *k, const struct vtable *t, uint32_t at, uint32_t first, uint32_t n, struct gr_err *err)
{
    struct vmfs *v = k->v;
    uint64_t a = vhome_addr(t, at, 0, 0);
    int r = vdev_read(v, a, (n - 1) * t->stride + 1, k->chunk);
    if (r < 0)
        return gr_fail(err, r, "datastore '%s': headers of regions cannot be read: %s", v->sb.name, gr_code_text(r));
    for (uint32_t i = 0; r >= 0 && i < n; i++) {
        const struct vmfs_region_disk *h = (const struct vmfs_region_disk *)(k->chunk + (size_t)i * t->stride * VMFS_UNIT);
        struct vlock l = { 0 };
        uint32_t units;
        space_region_first(v, first + i, &units);
        if (v->sp.by_index[first + i])
            continue;
        if (vhdr_check(v->sb.uuid, h, VMFS_T_REGION, 1, a + (uint64_t)i * t->stride, NULL) < 0) { /* never written, or damaged */
            struct vmfs_region_disk *b = (struct vmfs_region_disk *)(k->chunk + (size_t)i * t->stride * VMFS_UNIT);
            r = vhome_read(v, t, at + i, 0, VMFS_T_REGION, b, err);
        }
        if (r >= 0) {
            vlock_get(&h->lock, &l);
            r = lock_look(k, &l, space_listed_free(h, units), err);
        }
    }
    return r < 0 ? r : 0;
}

static int device_look(struct looking *k, unsigned dev, struct gr_err *err)
{
    struct vmfs *v = k->v;
    const struct vdevinfo *d = &v->sb.dev[dev];
    uint32_t end = d->first_region + d->regions;
    int r = 0;
    for (uint32_t i = d->first_region, n; r == 0 && i < end; i += n) {
        uint32_t at = i;
        const struct vtable *t = space_table(v, &at);
        n = GR_MIN(end - i, GR_MAX(LOOK_UNITS / t->stride, 1u));
        r = chunk_look(k, t, at, i, n, err);
    }
    return r;
}

/* What each host keeps for metadata and deletes, at least: less than what is kept otherwise when there is one that has next to none. */
static uint64_t base_shared(const struct looking *k)
{
    struct vmfs *v = k->v;
    uint64_t base = base_reserve(v), least = base;
    struct vslot s;
    for (unsigned i = 0; i < v->sb.slots.entries; i++)
        if (i != v->slot && vslot_read(v, i, &s, NULL) == 0 && s.state == VMFS_SLOT_HOST)
            least = GR_MIN(least, k->generation[i] == s.generation ? k->held[i] : 0);
    return least < base / 4 ? base / 2 : base;
}

/* @ret_base: may be NULL, base_shared(). */
static int look(struct vmfs *v, uint64_t *ret_base, struct gr_err *err)
{
    struct looking k = { .v = v, .held = gr_zalloc(v->sb.slots.entries * sizeof *k.held), .generation = gr_zalloc(v->sb.slots.entries * sizeof *k.generation),
                         .chunk = vunits_alloc(LOOK_UNITS) };
    int r = k.held && k.generation && k.chunk ? 0 : gr_fail(err, -ENOMEM, "out of memory");
    gr_fmutex_lock(&v->sp.lease_lock);
    for (unsigned i = 0; r == 0 && i < v->sb.n_devices; i++)
        if (v->sb.dev[i].regions && v->sb.dev[i].state == VMFS_DEVICE_IN_USE && !vdev_missing(v, i) && !vdev_stale(v, i))
            r = device_look(&k, i, err);
    if (r == 0) {
        uint64_t keeps = base_reserve(v);
        for (uint32_t i = 0; i < v->sb.slots.entries; i++)
            k.free_units += k.held[i] - GR_MIN(k.held[i], keeps);
        v->sp.free_elsewhere = k.free_units;
        v->sp.looked_ns = gr_loop_now_ns(v->loop);
        if (ret_base)
            *ret_base = base_shared(&k);
    }
    gr_fmutex_unlock(&v->sp.lease_lock);
    free(k.held);
    free(k.generation);
    free(k.chunk);
    return r;
}

int space_look(struct vmfs *v, struct gr_err *err)
{
    return look(v, NULL, err);
}

int vmfs_free_look(struct vmfs *v, struct gr_err *err)
{
    int r = space_look(v, err);
    if (r == 0)
        space_watch(v);
    return r;
}

/* ---- giving back ---- */
static bool may_ask(const struct vmfs *v)
{
    return v->joined && v->role == VMFS_HOST && !v->fenced && !v->leaving && !v->replaying && !v->rescue && !v->sp.evac && !v->sp.recounting;
}

static bool may_give(const struct vmfs *v)
{
    return may_ask(v) && !v->sp.stay;
}

/* All that is known of it is home, and none of its units is on the way anywhere. */
static bool is_settled(const struct vregion *r)
{
    return !r->dirty && !r->shares_dirty && r->busy.free == r->free_used;
}

/* Free units leased here, with those kept ready. */
static uint64_t have(const struct vmfs *v)
{
    return v->sp.free_busy + v->sp.pool_units + v->sp.frag_left;
}

/* What this host cannot do without: for metadata and deletes, and what it has promised. */
static uint64_t must_keep(const struct vmfs *v)
{
    return space_meta_reserve(v) + v->reserved_units;
}

/* Units that were taken lately: each checkpoint counts half of what came before. */
static uint64_t lately(const struct vmfs *v)
{
    return GR_MAX(v->sp.taken, v->sp.taken_before);
}

/* The header says that nobody leases it. As with objects, the last write is copy A's: nothing of ours may land behind the next holder's. */
static int header_free(struct vmfs *v, const struct vtable *t, uint32_t index, struct vmfs_region_disk *h)
{
    struct vlock l;
    int r = 0;
    vlock_get(&h->lock, &l);
    for (int copy = 1; r == 0 && copy >= 0; copy--) {
        uint64_t addr = vhome_addr(t, index, 0, copy), generation = gr_le64_get(h->hdr.generation) + 1;
        if (copy == 0) {
            l = (struct vlock){ 0, 0, l.token, l.nonce + 1 };
            vlock_put(&l, &h->lock);
        }
        vhdr_seal(v, h, VMFS_T_REGION, 1, addr, generation, v->slot);
        r = vdev_write(v, addr, 1, h, GR_BIO_FUA);
    }
    return r;
}

/* It leaves memory, and then its header @h, as it is at home, is written. */
static int region_let_go(struct vmfs *v, struct vregion *g, const struct vtable *t, uint32_t at, struct vmfs_region_disk *h)
{
    struct vlock l;
    vlock_get(&h->lock, &l);
    bool ours = vlock_mine(v, &l) && l.token == g->lock.token;
    space_detach(v, g);
    return ours ? header_free(v, t, at, h) : -GR_ECORRUPT;
}

/* 0: it is given back; 1: it stays for now. */
static int region_release(struct vmfs *v, uint32_t index)
{
    struct vmfs_region_disk *h = vunits_alloc(1);
    uint32_t at = index;
    const struct vtable *t = space_table(v, &at);
    int r = 1;
    gr_fmutex_lock(&v->ckpt_lock); /* no image of it is on its way home */
    gr_fmutex_lock(&v->sp.lease_lock);
    bool read = h && vhome_read(v, t, at, 0, VMFS_T_REGION, h, NULL) == 0; /* if not, it is ours as before */
    struct vregion *g = v->sp.by_index[index];
    if (read && may_give(v) && g && g->giving && is_settled(g)) {
        r = region_let_go(v, g, t, at, h);
        v->stats.regions_given_back += r == 0;
        if (r < 0) /* nobody knows what the header says, or will say */
            vmfs_fence(v, "region %u could not be given back: %s", index, gr_code_text(r));
    }
    gr_fmutex_unlock(&v->sp.lease_lock);
    gr_fmutex_unlock(&v->ckpt_lock);
    free(h);
    return r;
}

struct spare {
    uint32_t index;
    uint64_t units;
};

static int more_first(const void *a, const void *b)
{
    const struct spare *x = a, *y = b;
    return x->units != y->units ? (x->units < y->units ? 1 : -1) : x->index < y->index ? -1 : x->index > y->index;
}

/* What is given back, and what for. */
struct giving {
    uint64_t keep;  /* so many units stay, and what this host cannot do without, */
    uint64_t less;  /* but for so many of that: somebody has none */
    const struct wanted *wanted; /* worth part of what is kept back, and also without free units; NULL: none is */
    bool asked;
};

/* Regions to be given back: those with most free units first. How many [sync]. */
static unsigned choose(struct vmfs *v, const struct giving *g)
{
    unsigned n = 0, chosen = 0;
    for (const struct vregion *r = v->sp.regions; r; r = r->next)
        n += !r->closed;
    struct spare *all = gr_alloc((n + 1) * sizeof *all);
    n = 0;
    for (struct vregion *r = v->sp.regions; all && r; r = r->next)
        if (!r->closed && !r->giving && (g->asked || r != v->sp.current)) /* the one that is being written to: only for somebody who needs it */
            all[n++] = (struct spare){ r->index, space_can_spare(v, r) };
    if (all)
        qsort(all, n, sizeof *all, more_first);
    for (unsigned i = 0; all && i < n; i++) {
        bool want = is_wanted(g->wanted, all[i].index); /* somebody has freed something there */
        uint64_t left = have(v), least = !want ? GR_MAX(g->keep, must_keep(v)) - g->less : all[i].units ? must_keep(v) - space_meta_base(v) / 2 : 0;
        if ((!want && !all[i].units) || left < all[i].units || left - all[i].units < least)
            continue;
        if (!space_nodes_fit_without(v, v->sp.by_index[all[i].index], v->reserved_leaves)) /* what is left would be in splinters */
            continue;
        space_giving(v, v->sp.by_index[all[i].index], true);
        chosen++;
    }
    free(all);
    return chosen;
}

/* Those still on their way stay after all. True: there were any [sync]. */
static bool keep_all(struct vmfs *v)
{
    bool any = false;
    for (struct vregion *r = v->sp.regions; r; r = r->next) {
        any |= r->giving;
        space_giving(v, r, false);
    }
    return any;
}

/* Bring what is known of them home, and wait until what is free may be used again, or at least not for ever. */
static int settle(struct vmfs *v)
{
    bool settled = true;
    for (const struct vregion *r = v->sp.regions; r; r = r->next)
        settled &= !r->giving || is_settled(r);
    int rc = settled ? 0 : ckpt_run(v);
    for (unsigned ms = 0; rc == 0 && !settled && v->sp.discard.units && ms < DISCARD_MS && !v->fenced; ms += 10)
        gr_fiber_sleep_ms(10);
    return rc;
}

static void release_chosen(struct vmfs *v)
{
    uint32_t n = space_n_regions(v);
    for (uint32_t i = 0; i < n && !v->fenced; i++)
        if (v->sp.by_index[i] && v->sp.by_index[i]->giving)
            region_release(v, i);
}

static int give(struct vmfs *v, const struct giving *g)
{
    int r = 0;
    gr_fmutex_lock(&v->sp.give_lock);
    v->sp.taken = v->sp.taken_before = 0;
    unsigned chosen = may_give(v) ? choose(v, g) : 0;
    for (unsigned round = 0; chosen && r == 0 && round < 2; round++) { /* something may be freed in them again meanwhile */
        r = settle(v);
        if (r == 0)
            release_chosen(v);
    }
    keep_all(v);
    gr_fmutex_unlock(&v->sp.give_lock);
    return r;
}

/* ---- what others have freed in regions leased here ---- */
struct wants {
    struct vmfs *v;
    struct wanted *set;
};

static int want(void *arg, uint64_t addr, uint64_t units)
{
    struct wants *w = arg;
    if (space_addr_ok(w->v, addr, units) && space_region_index(w->v, addr) < w->set->n)
        w->set->region[space_region_index(w->v, addr)] = 1;
    return 0;
}

/* Regions on the lists of foreign frees of hosts that have joined, as they are at home. NULL: out of memory. Lists that change meanwhile are left out. */
static struct wanted *wanted_by_others(struct vmfs *v)
{
    struct wants w = { v, gr_zalloc(sizeof *w.set + space_n_regions(v)) };
    if (w.set)
        w.set->n = space_n_regions(v);
    for (unsigned i = 0; w.set && i < v->sb.slots.entries; i++) {
        struct vslot s;
        if (i != v->slot && vslot_read(v, i, &s, NULL) == 0 && s.state == VMFS_SLOT_HOST)
            foreign_read(v, i, want, &w, NULL);
    }
    return w.set;
}

/* One of the regions that others have freed something in is leased here. */
static bool any_here(const struct vmfs *v, const struct wanted *wanted)
{
    for (const struct vregion *r = v->sp.regions; r; r = r->next)
        if (is_wanted(wanted, r->index))
            return true;
    return false;
}

/* What was freed here in regions that somebody has given back is theirs again, and home; a checkpoint takes as much as its images fit the journal. */
static int foreign_home(struct vmfs *v)
{
    int r = 0;
    for (size_t before = SIZE_MAX; r == 0 && v->sp.n_foreign && v->sp.n_foreign < before && !v->fenced;) {
        before = v->sp.n_foreign;
        ckpt_lease_foreign(v);
        r = ckpt_run(v);
    }
    return r;
}

int vmfs_regions_recall(struct vmfs *v, struct gr_err *err)
{
    if (!may_give(v))
        return 0;
    int r = foreign_home(v);
    struct wanted *wanted = r == 0 ? wanted_by_others(v) : NULL;
    uint64_t must = must_keep(v), more = have(v) - GR_MIN(have(v), must), base = base_reserve(v);
    if (r == 0) /* who is at work keeps as much as he has used since he was asked last, but half of what he has at most */
        r = give(v, &(struct giving){ .keep = must + GR_MIN(lately(v), more / 2), .wanted = wanted, .asked = true });
    int looked = r == 0 ? look(v, &base, err) : 0;
    if (r == 0 && looked == 0 && base < base_reserve(v)) {
        r = give(v, &(struct giving){ .less = base_reserve(v) - base, .wanted = wanted, .asked = true });
        looked = r == 0 ? look(v, NULL, err) : 0;
    }
    free(wanted);
    if (r < 0)
        return gr_fail(err, r, "datastore '%s': %s", v->sb.name, v->fenced ? v->fence_reason : gr_code_text(r));
    if (looked == 0)
        space_watch(v);
    return looked;
}

/* ---- asking ---- */
static void ended(struct vmfs *v)
{
    gr_fqueue_wake_all(&v->j.room_q);
    if (--v->background == 0)
        gr_fqueue_wake_all(&v->background_q);
}

/* Lease what there is now, until it was worth it. */
static void lease_some(struct vmfs *v, uint64_t enough)
{
    while (space_free_here(v) < enough && !v->fenced && space_lease_any(v, NULL) == 0)
        ;
}

/* Everybody is asked, and what they gave back is leased. True: others have freed something here, or somebody did not answer, who may be gone: that is
 * worth another round. */
static bool ask_once(struct vmfs *v, uint64_t enough)
{
    bool heard = true;
    (void)foreign_home(v); /* others see what of theirs was freed here */
    struct wanted *wanted = wanted_by_others(v);
    (void)give(v, &(struct giving){ .wanted = wanted, .asked = true }); /* it is free when they have taken it home */
    free(wanted);
    if (v->opts.recall_regions)
        heard = v->opts.recall_regions(v->opts.warn_arg, NULL) == 0; /* who lives and does not answer keeps what he has */
    if (!heard)
        vlife_doubt(v);
    (void)foreign_home(v);
    (void)space_look(v, NULL);
    lease_some(v, enough);
    wanted = wanted_by_others(v); /* their lists are home now */
    bool again = any_here(v, wanted) || !heard;
    free(wanted);
    return again;
}

/* What hosts that are gone have held is nobody's when they are recovered. True: one was, by us. */
static bool any_recovered(struct vmfs *v)
{
    if (v->sp.unrecovered_ns && gr_loop_now_ns(v->loop) - v->sp.unrecovered_ns < RECOVER_AGAIN_NS)
        return false;
    int r = vmfs_recover(v, NULL);
    v->sp.unrecovered_ns = r < 0 ? gr_loop_now_ns(v->loop) : 0;
    return r > 0;
}

static void ask_work(void *arg)
{
    struct vmfs *v = arg;
    uint64_t before = space_free_here(v), enough = before + v->sb.region_units / 8;
    bool again = may_ask(v) && ask_once(v, enough);
    if (may_ask(v) && space_free_here(v) < enough) {
        again |= any_recovered(v);
        lease_some(v, enough); /* somebody else may have been faster */
        if (again && may_ask(v) && space_free_here(v) < enough)
            (void)ask_once(v, enough);
    }
    uint64_t now = space_free_here(v);
    v->sp.asked_got = now > before;
    v->sp.asked_well = now >= enough;
    v->sp.asked_ns = gr_loop_now_ns(v->loop);
    v->sp.asking = false;
    space_watch(v);
    ended(v);
}

bool space_ask(struct vmfs *v, const struct vobj *o, uint64_t epoch)
{
    struct vspace *s = &v->sp;
    if (!v->joined || v->role != VMFS_HOST || v->leaving || v->fenced || v->replaying || (o && epoch < o->epoch))
        return false;
    if (keep_all(v)) /* what was on its way to others is needed here */
        return true;
    if (!s->asking && s->asked_ns && !s->asked_well && gr_loop_now_ns(v->loop) - s->asked_ns < ASK_AGAIN_NS)
        return false;
    if (!s->asking) {
        s->asking = true;
        v->background++;
        if (gr_fiber_start(v->loop, ask_work, v) < 0) {
            s->asking = false;
            v->background--;
            return false;
        }
    }
    while (s->asking && !v->fenced && !(o && epoch < o->epoch)) /* what is late must not wait for others' checkpoints: they may wait for ours */
        gr_fqueue_wait(&v->j.room_q);
    return !s->asking && !v->fenced && s->asked_got;
}

/* @more units are leased here, @kept: beyond what this host cannot do without. */
static int lease_back(struct vmfs *v, bool kept, uint64_t more)
{
    int r = -GR_ENOSPACE;
    for (unsigned tries = 0; tries < 3 && r == -GR_ENOSPACE; tries++) {
        uint64_t need = (kept ? must_keep(v) : 0) + more;
        r = space_ensure(v, need - GR_MIN(need, v->sp.pool_units));
        if (r == -GR_ENOSPACE && space_pending(v) && ckpt_run(v) == 0)
            continue;
        if (r == -GR_ENOSPACE && !space_ask(v, NULL, 0))
            break;
    }
    return r;
}

int space_back(struct vmfs *v, uint64_t more)
{
    return lease_back(v, true, more);
}

bool space_has(const struct vmfs *v, uint64_t units)
{
    return have(v) >= units;
}

int space_some(struct vmfs *v, uint64_t units)
{
    return space_has(v, units) ? 0 : lease_back(v, false, units);
}

static void promised_work(void *arg)
{
    struct vmfs *v = arg;
    (void)space_back(v, 0);
    ended(v);
}

void space_promised(struct vmfs *v)
{
    if (!may_give(v) || have(v) >= must_keep(v))
        return;
    v->background++;
    if (gr_fiber_start(v->loop, promised_work, v) < 0)
        v->background--;
}

/* ---- unasked ---- */
static uint64_t idle_keep(const struct vmfs *v)
{
    return must_keep(v) + lately(v) + (uint64_t)IDLE_REGIONS * v->sb.region_units;
}

static bool is_idle(const struct vmfs *v)
{
    return have(v) > 2 * idle_keep(v);
}

static bool look_due(const struct vmfs *v)
{
    return gr_loop_now_ns(v->loop) - v->sp.looked_ns > LOOK_AGAIN_NS;
}

static void tend_work(void *arg)
{
    struct vmfs *v = arg;
    struct wanted *wanted = look_due(v) ? wanted_by_others(v) : NULL;
    if (is_idle(v) || any_here(v, wanted))
        (void)give(v, &(struct giving){ .keep = is_idle(v) ? idle_keep(v) : UINT64_MAX, .wanted = wanted });
    free(wanted);
    if (may_give(v))
        (void)space_look(v, NULL);
    v->sp.tending = false;
    space_watch(v);
    ended(v);
}

void space_tend(struct vmfs *v)
{
    v->sp.taken_before = GR_MAX(v->sp.taken, v->sp.taken_before / 2);
    v->sp.taken = 0;
    if (v->sp.tending || v->sp.asking || !may_give(v) || !(is_idle(v) || look_due(v)))
        return;
    v->sp.tending = true;
    v->background++;
    if (gr_fiber_start(v->loop, tend_work, v) < 0) {
        v->sp.tending = false;
        v->background--;
    }
}
