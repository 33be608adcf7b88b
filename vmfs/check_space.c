/* What was reached, unit by unit, and whether the bitmaps say the same. */
#include "common/seam.h"
#include "vmfs/check.h"

/* Mark of a unit: 0 not reached; else a fingerprint of what it is, and two flags. Two namings of one unit must agree in the
 * fingerprint: same logical piece (or node), same birth, and the same tree in whose time it was born. */
#define MARK_OWNED 0x80000000u /* that tree names it itself */
#define MARK_FULL 0x40000000u  /* node: everything below is walked */
#define MARK_PRINT 0x3fffffffu
/* In a region whose tables are stale: wider, for two owners that were taken for one would overwrite each other's data. */
#define WIDE_OWNED (1ull << 63)
#define WIDE_FULL (1ull << 62)
#define WIDE_DATA (1ull << 61)   /* it may have several owners */
#define WIDE_LISTED (1ull << 60) /* it has: they are in the list */
#define WIDE_PRINT (WIDE_LISTED - 1)

const char *chk_unit(uint64_t addr, char out[40])
{
    snprintf(out, 40, "device %u unit %llu", vmfs_addr_dev(addr), (unsigned long long)vmfs_addr_unit(addr));
    return out;
}

static uint64_t mix(uint64_t h, uint64_t x)
{
    h ^= x + 0x9e3779b97f4a7c15ull + (h << 6) + (h >> 2);
    h ^= h >> 31;
    h *= 0xbf58476d1ce4e5b9ull;
    return h ^ h >> 29;
}

uint64_t chk_print(uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    return mix(mix(mix(mix(0, a), b), c), d) >> 4;
}

static uint32_t narrow(uint64_t print)
{
    uint32_t p = (uint32_t)(print >> 13) & MARK_PRINT;
    return p ? p : 1;
}

struct chk_region *chk_region_of(struct chk *c, uint64_t addr, uint32_t units)
{
    const struct vsuper *sb = &c->v->sb;
    unsigned d = vmfs_addr_dev(addr);
    uint64_t u = vmfs_addr_unit(addr);
    if (d >= sb->n_devices || u < sb->dev[d].first_unit || u >= sb->dev[d].units)
        return NULL;
    uint32_t index = space_region_index(c->v, addr);
    if (index >= sb->dev[d].first_region + sb->dev[d].regions || index >= c->n_regions)
        return NULL;
    struct chk_region *r = &c->regions[index];
    return units <= r->units && addr - r->first <= r->units - units ? r : NULL;
}

static const struct vshare *share_of(const struct chk_region *r, uint32_t unit)
{
    size_t lo = 0, hi = r->n_shares;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (r->shares[mid].at + r->shares[mid].units > unit)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo < r->n_shares && r->shares[lo].at <= unit ? &r->shares[lo] : NULL;
}

static int by_unit(const void *a, const void *b)
{
    const struct chk_owned *x = a, *y = b;
    return x->unit != y->unit ? (x->unit < y->unit ? -1 : 1) : x->print != y->print ? (x->print < y->print ? -1 : 1) : 0;
}

/* Ascending, each owner once. */
static void owned_sort(struct chk_region *r)
{
    size_t n = 0;
    if (r->n_owned)
        qsort(r->owned, r->n_owned, sizeof *r->owned, by_unit);
    for (size_t i = 0; i < r->n_owned; i++)
        if (n && by_unit(&r->owned[n - 1], &r->owned[i]) == 0)
            r->owned[n - 1].owned |= r->owned[i].owned;
        else
            r->owned[n++] = r->owned[i];
    r->n_owned = n;
}

static size_t memory_limit(const struct chk *c)
{
    return c->v->opts.check_memory ? c->v->opts.check_memory : (size_t)256 << 20;
}

/* A naming of a unit that has several owners: they are counted in the end. */
static void owned_add(struct chk *c, struct chk_region *r, uint32_t unit, uint64_t print, bool owned)
{
    bool full = r->n_owned == r->cap_owned;
    if (full)
        owned_sort(r);
    if (full && r->n_owned >= r->cap_owned - r->cap_owned / 4) {
        size_t cap = r->cap_owned ? r->cap_owned * 2 : 256;
        struct chk_owned *a = gr_realloc(r->owned, cap * sizeof *a);
        if (!a) {
            chk_nomem(c);
            return;
        }
        c->owned_bytes += (cap - r->cap_owned) * sizeof *a;
        c->crowded |= c->owned_bytes > memory_limit(c) && c->to - c->from > 1;
        r->owned = a;
        r->cap_owned = cap;
    }
    r->owned[r->n_owned++] = (struct chk_owned){ unit, owned, print };
}

static enum chk_reached shared_reach(struct chk *c, struct chk_region *r, uint32_t unit, const struct chk_use *use)
{
    bool again = r->mark[unit] != 0;
    owned_add(c, r, unit, use->print, use->owned);
    r->mark[unit] |= MARK_OWNED | 1;
    return again ? CHK_AGAIN : CHK_NEW;
}

/* Which units have several owners is found out here: those that are named as two things. */
static enum chk_reached stale_data(struct chk *c, struct chk_region *r, uint32_t unit, const struct chk_use *use)
{
    uint64_t *m = &r->wide[unit], print = use->print & WIDE_PRINT;
    if (!*m) {
        *m = print | WIDE_DATA | (use->owned ? WIDE_OWNED : 0);
        return CHK_NEW;
    }
    if (!(*m & WIDE_DATA))
        return CHK_CONFLICT;
    if (!(*m & WIDE_LISTED) && (*m & WIDE_PRINT) == print) {
        *m |= use->owned ? WIDE_OWNED : 0;
        return CHK_AGAIN;
    }
    if (!(*m & WIDE_LISTED))
        owned_add(c, r, unit, *m & WIDE_PRINT, *m & WIDE_OWNED);
    owned_add(c, r, unit, print, use->owned);
    *m |= WIDE_LISTED;
    return CHK_AGAIN;
}

static enum chk_reached stale_reach(struct chk *c, struct chk_region *r, uint32_t at, uint32_t units, const struct chk_use *use)
{
    bool again = false, was_full = true;
    if (!r->wide && !(r->wide = gr_zalloc(r->units * sizeof *r->wide))) {
        chk_nomem(c);
        return CHK_CONFLICT;
    }
    if (use->data)
        return stale_data(c, r, at, use);
    for (uint32_t i = 0; i < units; i++) {
        uint64_t *m = &r->wide[at + i], print = (use->print + i) & WIDE_PRINT;
        if (*m && (*m & (WIDE_DATA | WIDE_PRINT)) != print)
            return CHK_CONFLICT;
        again |= *m != 0;
        was_full &= (*m & WIDE_FULL) != 0;
        *m |= print | WIDE_OWNED | (use->full ? WIDE_FULL : 0);
    }
    return !again ? CHK_NEW : was_full ? CHK_FULL : CHK_AGAIN;
}

enum chk_reached chk_reach(struct chk *c, uint64_t addr, uint32_t units, const struct chk_use *use)
{
    struct chk_region *r = chk_region_of(c, addr, units);
    char at[40];
    if (!r) {
        chk_error_once(c, "%s: %u units are named that lie in no region", chk_unit(addr, at), units);
        return CHK_NOWHERE;
    }
    if (r - c->regions < c->from || r - c->regions >= c->to || c->crowded)
        return CHK_OUTSIDE;
    if (r->stale)
        return stale_reach(c, r, (uint32_t)(addr - r->first), units, use);
    if (!r->mark && !(r->mark = gr_zalloc(r->units * sizeof *r->mark))) {
        chk_nomem(c);
        return CHK_CONFLICT;
    }
    if (units == 1 && share_of(r, (uint32_t)(addr - r->first)))
        return shared_reach(c, r, (uint32_t)(addr - r->first), use);
    uint32_t flags = (use->owned ? MARK_OWNED : 0) | (use->full ? MARK_FULL : 0);
    bool again = false, was_full = true;
    for (uint32_t i = 0; i < units; i++) {
        uint32_t *m = &r->mark[addr - r->first + i], print = (narrow(use->print) + i) & MARK_PRINT;
        print = print ? print : 1;
        if (*m && (*m & MARK_PRINT) != print)
            return CHK_CONFLICT;
        again |= *m != 0;
        was_full &= (*m & MARK_FULL) != 0;
        *m |= print | flags;
    }
    return !again ? CHK_NEW : was_full ? CHK_FULL : CHK_AGAIN;
}

/* ---- comparing ---- */
static bool bit(const struct chk_region *r, uint32_t i)
{
    return r->bits && (r->bits[i / 8] >> (i % 8) & 1);
}

/* Lists of foreign frees: units given up by hosts that did not lease their region. */
static uint8_t *foreign_bits(struct chk *c, struct chk_region *r)
{
    uint8_t *f = NULL;
    char at[40];
    for (size_t i = 0; i < c->n_foreign; i++) {
        const struct vmfs_run *x = &c->foreign[i];
        if (x->addr < r->first || x->addr >= r->first + r->units)
            continue;
        if (!f && !(f = gr_zalloc((r->units + 7) / 8))) {
            chk_nomem(c);
            return NULL;
        }
        for (uint64_t k = 0; k < x->units; k++) {
            uint32_t u = (uint32_t)(x->addr - r->first + k);
            if (share_of(r, u))
                continue; /* one owner less: counted already */
            if (f[u / 8] >> (u % 8) & 1)
                chk_error(c, "%s: it is on the lists of foreign frees twice", chk_unit(r->first + u, at));
            f[u / 8] |= (uint8_t)(1u << (u % 8));
        }
    }
    return f;
}

enum fault { FAULT_NONE, FAULT_LEAK, FAULT_NOT_ALLOCATED, FAULT_FREED_IN_USE, FAULT_FREED_TWICE, FAULT_UNBORN };
static const char *const fault_text[] = {
    "", "allocated, but nothing uses it", "in use, but free in the bitmap", "in use, and on a list of foreign frees",
    "on a list of foreign frees, but free in the bitmap", "born in the time of a tree that does not name it",
};

static enum fault fault_of(const struct chk *c, const struct chk_region *r, uint32_t i, const uint8_t *foreign)
{
    bool reached = r->mark && r->mark[i], freed = foreign && (foreign[i / 8] >> (i % 8) & 1);
    if (reached && freed)
        return FAULT_FREED_IN_USE;
    if (reached && !(r->mark[i] & MARK_OWNED) && !c->blind)
        return FAULT_UNBORN;
    if (!r->stable)
        return FAULT_NONE;
    if (reached && !bit(r, i))
        return FAULT_NOT_ALLOCATED;
    if (freed && !bit(r, i))
        return FAULT_FREED_TWICE;
    if (!reached && !freed && bit(r, i) && !c->blind && !c->stale)
        return FAULT_LEAK;
    return FAULT_NONE;
}

/* Owners of the unit at owned[i]: each must name it itself. *ret_next: the unit behind. */
static uint32_t owners_of(struct chk *c, const struct chk_region *r, size_t i, size_t *ret_next)
{
    char at[40];
    uint32_t n = 0, unit = r->owned[i].unit;
    for (; i < r->n_owned && r->owned[i].unit == unit; i++, n++)
        if (!r->owned[i].owned && !c->blind)
            chk_error(c, "%s: %s", chk_unit(r->first + unit, at), fault_text[FAULT_UNBORN]);
    *ret_next = i;
    return n;
}

/* A free that has not reached its region yet: one owner of a shared unit, until it does. */
static void foreign_shared(struct chk *c)
{
    for (size_t i = 0; i < c->n_foreign; i++)
        for (uint64_t k = 0; k < c->foreign[i].units; k++) {
            struct chk_region *r = chk_region_of(c, c->foreign[i].addr + k, 1);
            struct chk_use u = { .print = chk_print(i, k, 2, c->foreign[i].addr), .owned = true, .data = true };
            if (r && (r->stale || share_of(r, (uint32_t)(c->foreign[i].addr + k - r->first))))
                chk_reach(c, c->foreign[i].addr + k, 1, &u);
        }
}

/* As many owners as the list of shared units says. */
static void shares_compare(struct chk *c, struct chk_region *r)
{
    char at[40];
    size_t next = 0;
    owned_sort(r);
    for (uint32_t s = 0; s < r->n_shares; s++)
        for (uint32_t u = r->shares[s].at; u < r->shares[s].at + r->shares[s].units; u++) {
            uint32_t n = next < r->n_owned && r->owned[next].unit == u ? owners_of(c, r, next, &next) : 0;
            if (!r->stable || n == r->shares[s].more + 1 || c->blind)
                continue;
            chk_error(c, "%s: it has %u owners, its region's list of shared units says %u", chk_unit(r->first + u, at), n, r->shares[s].more + 1);
            chk_fix(c, (struct chk_fix){ .kind = CHK_FIX_OWNERS, .addr = r->first + u, .n = n, .value = r->shares[s].more });
        }
}

static void region_compare(struct chk *c, struct chk_region *r)
{
    shares_compare(c, r);
    uint8_t *foreign = foreign_bits(c, r);
    char at[40];
    uint32_t free_units = 0;
    for (uint32_t i = 0; i < r->units;) {
        enum fault f = fault_of(c, r, i, foreign);
        uint32_t n = 0;
        do {
            free_units += !bit(r, i + n);
            n++;
        } while (i + n < r->units && fault_of(c, r, i + n, foreign) == f);
        if (f)
            chk_error(c, "%s, %u units: %s", chk_unit(r->first + i, at), n, fault_text[f]);
        if (f == FAULT_LEAK) {
            c->rep.leaked_units += n;
            chk_fix(c, (struct chk_fix){ .kind = CHK_FIX_LEAK, .addr = r->first + i, .n = n });
        }
        if (f == FAULT_NOT_ALLOCATED)
            chk_fix(c, (struct chk_fix){ .kind = CHK_FIX_USE, .addr = r->first + i, .n = n });
        i += n;
    }
    bool miscounted = r->stable && !r->fresh && free_units != r->free_units;
    if (miscounted)
        chk_error(c, "region at %s: its header says %u free units, its bitmap %u", chk_unit(r->first, at), r->free_units, free_units);
    if (miscounted)
        chk_fix(c, (struct chk_fix){ .kind = CHK_FIX_COUNT, .n = (uint64_t)(r - c->regions) });
    free(foreign);
}

/* What a region of a device that was lost holds: nobody may believe its tables. Units on lists of foreign frees are used until they are given back. */
static void region_recount(struct chk *c, struct chk_region *r)
{
    if (!c->repair || (!r->used && !(r->used = gr_zalloc((r->units + 63) / 64 * 8)))) {
        c->failed = c->repair ? -ENOMEM : c->failed;
        return;
    }
    char at[40];
    for (uint32_t i = 0; r->wide && i < r->units; i++) {
        if (r->wide[i])
            bits_set(r->used, i, 1, true);
        if (r->wide[i] & WIDE_DATA && !(r->wide[i] & (WIDE_LISTED | WIDE_OWNED)) && !c->blind)
            chk_error(c, "%s: %s", chk_unit(r->first + i, at), fault_text[FAULT_UNBORN]);
    }
    owned_sort(r);
    for (size_t i = 0, next; i < r->n_owned; i = next) {
        uint32_t unit = r->owned[i].unit, n = owners_of(c, r, i, &next);
        if (n > 1 && recount_share(r, (struct vshare){ unit, 1, n - 1 }) < 0)
            chk_nomem(c);
    }
}

/* ---- passes ---- */
void chk_early(struct chk *c, uint64_t addr, uint32_t units, uint64_t print, const char *fmt, ...)
{
    if (c->n_early == c->cap_early) {
        size_t cap = c->cap_early ? c->cap_early * 2 : 64;
        struct chk_early *a = gr_realloc(c->early, cap * sizeof *a);
        if (!a) {
            chk_nomem(c);
            return;
        }
        c->early = a;
        c->cap_early = cap;
    }
    struct chk_early *e = &c->early[c->n_early++];
    va_list ap;
    *e = (struct chk_early){ .addr = addr, .units = units, .print = print };
    va_start(ap, fmt);
    vsnprintf(e->what, sizeof e->what, fmt, ap);
    va_end(ap);
}

static void early_reach(struct chk *c)
{
    char at[40];
    for (size_t i = 0; i < c->n_early; i++) {
        const struct chk_early *e = &c->early[i];
        struct chk_use u = { .print = e->print, .owned = true, .full = true };
        enum chk_reached r = chk_reach(c, e->addr, e->units, &u);
        if (r == CHK_AGAIN || r == CHK_FULL || r == CHK_CONFLICT)
            chk_error(c, "%s: %s, where it lies, is also in use for something else", e->what, chk_unit(e->addr, at));
    }
}

static size_t marks_of(const struct chk_region *r)
{
    return r->units * (r->stale ? sizeof *r->wide : sizeof *r->mark);
}

bool chk_pass_begin(struct chk *c)
{
    size_t bytes = 0;
    c->pass += c->to > 0 && !c->narrow;
    c->from = c->to;
    while (c->to < c->n_regions && (c->to == c->from || bytes + marks_of(&c->regions[c->to]) <= memory_limit(c)) && (!c->narrow || c->to - c->from < c->narrow))
        bytes += marks_of(&c->regions[c->to++]);
    c->narrow = 0;
    c->before = (struct chk_pass){ c->rep, c->lines.len, c->n_fixes, c->n_lines, c->blind };
    if (c->from < c->to && !c->failed)
        early_reach(c);
    return c->from < c->to && !c->failed;
}

static void pass_free(struct chk *c)
{
    for (uint32_t i = c->from; i < c->to; i++) {
        struct chk_region *r = &c->regions[i];
        free(r->mark);
        free(r->wide);
        free(r->owned);
        r->mark = NULL;
        r->wide = NULL;
        r->owned = NULL;
        r->n_owned = r->cap_owned = 0;
    }
    c->owned_bytes = 0;
}

/* As if it had not been. */
static void pass_undo(struct chk *c)
{
    c->memory = GR_MAX(c->memory, chk_memory(c));
    pass_free(c);
    c->rep = c->before.rep;
    c->lines.len = c->before.lines;
    c->n_lines = c->before.n_lines;
    c->n_fixes = c->before.n_fixes;
    c->blind = c->before.blind;
    for (size_t i = 0; c->pass == 0 && i < c->n_objs; i++) {
        c->objs[i].own_found = 0;
        for (size_t k = 0; k < c->objs[i].n_snaps; k++)
            c->objs[i].snaps[k].own_found = 0;
    }
    c->narrow = (c->to - c->from) / 2;
    c->to = c->from;
    c->crowded = false;
}

void chk_foreign(struct chk *c)
{
    char at[40];
    for (size_t i = 0; i < c->n_foreign; i++)
        if (c->foreign[i].units == 0 || c->foreign[i].units > UINT32_MAX || !chk_region_of(c, c->foreign[i].addr, (uint32_t)c->foreign[i].units)) {
            chk_error(c, "%s: a list of foreign frees names %llu units that lie in no region", chk_unit(c->foreign[i].addr, at),
                      (unsigned long long)c->foreign[i].units);
            c->foreign[i] = c->foreign[--c->n_foreign];
            i--;
        }
}

void chk_pass_end(struct chk *c)
{
    if (!c->crowded)
        foreign_shared(c);
    if (c->crowded) {
        pass_undo(c);
        return;
    }
    for (uint32_t i = c->from; i < c->to && !c->failed; i++) {
        if (c->regions[i].stale)
            region_recount(c, &c->regions[i]);
        else
            region_compare(c, &c->regions[i]);
        c->rep.regions++;
        gr_fiber_yield();
    }
    c->memory = GR_MAX(c->memory, chk_memory(c));
    pass_free(c);
    if (c->to < c->n_regions)
        return;
    if (c->blind)
        chk_note(c, "what the unreadable parts use is not known: allocated space that nothing uses was not looked for");
    if (c->skipped_regions)
        chk_note(c, "%llu regions are leased by other hosts that live: their free space was not compared", (unsigned long long)c->skipped_regions);
}
