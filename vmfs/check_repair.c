/* Mending what a look found. Each repair is a change like any other, of regions and objects held here, and goes home with the next checkpoint; what
 * is there now is looked at before it is changed, for the volume went on since the look.
 *
 * What may take something away (space that nothing seems to use, owners of a unit), or counts what is in trees, is done only when all that is broken can be mended: what is
 * left broken might be what uses it. */
#include "common/seam.h"
#include "vmfs/check.h"

static void done(struct chk *c, int64_t *n, const char *what)
{
    chk_note(c, "repaired: %s", what);
    ++*n;
}

/* ---- regions ---- */
/* Leased here, or NULL. */
static struct vregion *region_at(struct vmfs *v, uint64_t addr)
{
    if (!space_region(v, addr) && space_lease(v, space_region_index(v, addr), NULL) != 0)
        return NULL;
    return space_region(v, addr);
}

static bool all_used(const struct vregion *r, uint32_t at, uint32_t n, bool used)
{
    for (uint32_t i = at; i < at + n; i++)
        if (bits_get(r->used, i) != used || (!used && bits_get(r->busy.units, i)))
            return false;
    return true;
}

/* No other host lives. */
static int64_t lock_mend(struct chk *c, const struct chk_fix *f)
{
    struct vmfs_region_disk *h = vunits_alloc(1);
    uint32_t index = (uint32_t)f->n;
    const struct vtable *t = space_table(c->v, &index);
    struct vlock l = { 0 };
    char at[40], text[120];
    int64_t n = 0;
    int r = h ? vhome_read(c->v, t, index, 0, VMFS_T_REGION, h, NULL) : -ENOMEM;
    if (r >= 0) {
        vlock_get(&h->lock, &l);
        r = l.holder > c->v->sb.slots.entries ? vhome_lock(c->v, t, index, h, &(struct vlock){ .token = l.token + 1 }, NULL, NULL) : 0;
        snprintf(text, sizeof text, "region at %s: its lock, which named a slot that there is not, is free", chk_unit(c->regions[f->n].first, at));
        if (r == 0 && l.holder > c->v->sb.slots.entries)
            done(c, &n, text);
    }
    free(h);
    return r == -GR_EMISCOMPARE || r == -GR_ECORRUPT ? 0 : r < 0 ? r : n;
}

static int64_t region_mend(struct chk *c, const struct chk_fix *f)
{
    struct vmfs *v = c->v;
    char at[40], text[120];
    int64_t n = 0;
    uint64_t addr = f->kind == CHK_FIX_COUNT ? c->regions[f->n].first : f->addr;
    struct vregion *r = region_at(v, addr);
    uint32_t unit = r ? (uint32_t)(addr - r->first) : 0, units = (uint32_t)f->n;
    chk_unit(addr, at);
    if (!r)
        return 0;
    if (f->kind == CHK_FIX_COUNT) {
        space_touch(v, r, 0, 0);
        snprintf(text, sizeof text, "region at %s: its free units are counted anew: %u", at, r->free_used);
        done(c, &n, text);
    } else if (f->kind == CHK_FIX_LEAK && all_used(r, unit, units, true)) {
        space_freed(v, addr, units, 1, v->ckpt_started + 1);
        snprintf(text, sizeof text, "%s, %u units: given back", at, units);
        done(c, &n, text);
    } else if (f->kind == CHK_FIX_USE && all_used(r, unit, units, false)) {
        space_used(v, addr, units);
        snprintf(text, sizeof text, "%s, %u units: allocated", at, units);
        done(c, &n, text);
    } else if (f->kind != CHK_FIX_COUNT && all_used(r, unit, units, f->kind == CHK_FIX_USE)) {
        space_touch(v, r, unit, units); /* in memory it is right: what is home was changed behind our back */
        snprintf(text, sizeof text, "%s, %u units: the bitmap is written anew", at, units);
        done(c, &n, text);
    }
    return n;
}

static int64_t owners_mend(struct chk *c, const struct chk_fix *f)
{
    struct vregion *r = region_at(c->v, f->addr);
    char at[40], text[120];
    int64_t n = 0;
    int rc = 0;
    if (!r)
        return 0;
    uint32_t unit = (uint32_t)(f->addr - r->first);
    if (f->n == 0)
        rc = share_cut(r, unit, 1);
    for (uint64_t have = f->value + 1; f->n && rc == 0 && have != f->n; have += have < f->n ? 1 : -1ull)
        rc = share_change(r, unit, 1, have < f->n);
    space_touch(c->v, r, 0, 0);
    snprintf(text, sizeof text, "%s: its region's list of shared units says %llu owners", chk_unit(f->addr, at), (unsigned long long)f->n);
    if (rc == 0)
        done(c, &n, text);
    return rc < 0 ? rc : n;
}

/* ---- objects ---- */
static bool of_counters(const struct chk_fix *f)
{
    return f->kind == CHK_FIX_SNAPSHOTS || f->kind == CHK_FIX_CLONES || f->kind == CHK_FIX_USAGE;
}

static int64_t counters_mend(struct chk *c, const struct chk_fix *f, struct gr_err *err)
{
    struct vobj *o = vobj_find(c->v, f->id);
    struct vsnap *s;
    char text[120];
    int64_t n = 0;
    int r = o ? 0 : vobj_hold(c->v, f->id, 0, &o, NULL, err);
    if (r < 0)
        return r;
    s = f->n ? vobj_snap(o, f->n) : NULL;
    if (f->kind == CHK_FIX_USAGE) {
        if ((r = usage_recount(o, err)) < 0)
            return r == -EBUSY ? 0 : r;
        snprintf(text, sizeof text, "object %llu: its space is counted anew", (unsigned long long)f->id);
        done(c, &n, text);
    } else if (f->kind == CHK_FIX_SNAPSHOTS) {
        uint32_t listed = 0;
        for (size_t i = 0; i < o->n_snaps; i++)
            listed += !(o->snaps[i]->flags & VMFS_SNAP_HIDDEN);
        o->ino.n_snapshots = listed;
        vobj_touch(o);
        snprintf(text, sizeof text, "object %llu: its snapshots are counted anew: %u", (unsigned long long)f->id, listed);
        done(c, &n, text);
    } else if (s) {
        s->clones = (uint32_t)f->value;
        vobj_touch(o);
        snprintf(text, sizeof text, "object %llu, snapshot %llu: it counts %u clones", (unsigned long long)f->id, (unsigned long long)f->n, s->clones);
        done(c, &n, text);
    }
    return n;
}

/* ---- names; the namespace is locked ---- */
static int64_t entry_mend(struct chk *c, const struct chk_fix *f, struct gr_err *err)
{
    struct vobj *dir;
    char text[GR_ERR_TEXT];
    int64_t n = 0;
    int r = dir_load(c->v, f->id, &dir, err);
    for (size_t i = 0; r == 0 && i < dir->n_ents; i++) {
        struct vdirent *e = &dir->ents[i];
        if (e->id != f->value)
            continue;
        if (f->kind == CHK_FIX_TYPE) {
            e->type = (uint16_t)f->n;
            vobj_touch(dir);
            snprintf(text, sizeof text, "directory %llu: its entry '%.200s' says what it leads to", (unsigned long long)f->id, e->name);
        } else {
            snprintf(text, sizeof text, "directory %llu: its entry '%.200s', which led nowhere, is gone", (unsigned long long)f->id, e->name);
            dir_remove(dir, f->value);
        }
        done(c, &n, text);
        break;
    }
    return r < 0 ? r : n;
}

static int64_t name_mend(struct chk *c, const struct chk_fix *f, uint64_t lost, struct gr_err *err)
{
    struct vobj *dir;
    char name[40], text[120];
    int64_t n = 0;
    snprintf(name, sizeof name, "object-%llu", (unsigned long long)f->id);
    int r = dir_load(c->v, lost, &dir, err);
    if (r == 0 && (r = dir_add(dir, name, strlen(name), f->id, (uint16_t)f->n)) < 0)
        gr_fail(err, r, "out of memory");
    snprintf(text, sizeof text, "object %llu, which had no name, is '%s/%s' now", (unsigned long long)f->id, VMFS_LOST, name);
    if (r == 0)
        done(c, &n, text);
    return r < 0 ? r : n;
}

static bool of_names(const struct chk_fix *f)
{
    return f->kind == CHK_FIX_ENTRY || f->kind == CHK_FIX_TYPE || f->kind == CHK_FIX_UNNAMED;
}

static int64_t names_mend(struct chk *c, struct gr_err *err)
{
    bool any = false, unnamed = false;
    struct vobj *root;
    struct vmfs_stat st = { .id = 0 };
    int64_t n = 0, m = 0;
    for (size_t i = 0; i < c->n_fixes; i++) {
        any |= of_names(&c->fixes[i]);
        unnamed |= c->fixes[i].kind == CHK_FIX_UNNAMED;
    }
    if (!any)
        return 0;
    int r = unnamed ? vmfs_mkdir(c->v, VMFS_LOST, true, err) : 0;
    if (r == -EEXIST)
        r = 0;
    if (r == 0 && unnamed)
        r = vmfs_stat(c->v, VMFS_LOST, &st, err);
    if (r == 0)
        r = ns_begin(c->v, &root, err);
    if (r < 0)
        return r;
    for (size_t i = 0; m >= 0 && i < c->n_fixes; i++) {
        const struct chk_fix *f = &c->fixes[i];
        m = !of_names(f) ? 0 : f->kind == CHK_FIX_UNNAMED ? name_mend(c, f, st.id, err) : entry_mend(c, f, err);
        n += m > 0 ? m : 0;
    }
    r = ns_end(c->v, m < 0 ? (int)m : 0, err);
    return r < 0 ? r : n;
}

/* ---- all of it ---- */
static bool takes_away(const struct chk_fix *f)
{
    return f->kind == CHK_FIX_LEAK || f->kind == CHK_FIX_USAGE || (f->kind == CHK_FIX_OWNERS && f->n < f->value + 1);
}

int64_t chk_mend(struct chk *c, struct gr_err *err)
{
    bool all = c->rep.errors == c->n_fixes && !c->blind;
    int64_t n = names_mend(c, err), m = 0;
    for (size_t i = 0; n >= 0 && m >= 0 && i < c->n_fixes; i++) {
        const struct chk_fix *f = &c->fixes[i];
        if (of_names(f) || (takes_away(f) && !all))
            continue;
        m = f->kind == CHK_FIX_LOCK ? lock_mend(c, f) : f->kind == CHK_FIX_OWNERS ? owners_mend(c, f) : of_counters(f) ? counters_mend(c, f, err) : region_mend(c, f);
        n += m > 0 ? m : 0;
    }
    if (n < 0 || m < 0)
        return n < 0 ? n : gr_fail(err, (int)m, "datastore '%s' cannot be repaired: %s", c->v->sb.name, gr_code_text((int)m));
    int r = n ? ckpt_run(c->v) : 0;
    for (size_t i = 0; r == 0 && i < c->n_fixes; i++)
        if (of_counters(&c->fixes[i]))
            r = GR_MIN(vobj_release_idle(c->v, c->fixes[i].id, err), 0);
    return r < 0 ? gr_fail(err, r, "datastore '%s': what was repaired cannot be written: %s", c->v->sb.name,
                           c->v->fenced ? c->v->fence_reason : gr_code_text(r)) : n;
}
