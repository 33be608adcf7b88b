/* Home blocks, copied while the checkpoint lock is held. A block of which one copy is damaged is repaired from the other. */
#include "common/seam.h"
#include "vmfs/check.h"
#include "vmfs/keys.h"

#define CHUNK_UNITS 64u

/* ---- reading a table ---- */
struct scan {
    struct chk *c;
    const struct vtable *t;
    const char *what;
    unsigned type, sub_type; /* of the first unit of an entry, of the others */
    uint32_t first, end;     /* entries */
    /* A good block (NULL: never written) of an entry. */
    void (*fn)(struct chk *c, uint32_t index, uint32_t sub, const uint8_t *block);
    uint8_t *a, *b;
    uint32_t base; /* index in the volume of entry 0 */
};

static bool all_zero(const uint8_t *b)
{
    return b[0] == 0 && memcmp(b, b + 1, VMFS_UNIT - 1) == 0;
}

static uint64_t generation(const uint8_t *b)
{
    return gr_le64_get(((const struct vmfs_hdr_disk *)b)->generation);
}

/* Compare-and-write: whoever wrote the block meanwhile wins. */
static void repair(struct chk *c, uint64_t addr, const uint8_t *bad, const uint8_t *good, const struct gr_err *why)
{
    struct vmfs *v = c->v;
    uint8_t *now = vunits_alloc(1);
    int r = now ? 0 : -ENOMEM;
    if (r == 0) {
        memcpy(now, good, VMFS_UNIT);
        vhdr_move(now, 1, addr);
        r = vdev_swap(v, addr, bad, now);
    }
    free(now);
    if (r == 0)
        c->repaired++;
    if (r == 0)
        chk_note(c, "%s: repaired from its other copy", why->text);
    else if (r != -GR_EMISCOMPARE)
        chk_error(c, "%s: cannot be repaired from its other copy: %s", why->text, gr_code_text(r));
}

static void damaged_add(struct chk *c, uint32_t inode)
{
    if (c->n_damaged == c->cap_damaged) {
        size_t cap = c->cap_damaged ? c->cap_damaged * 2 : 64;
        uint32_t *a = gr_realloc(c->damaged, cap * sizeof *a);
        if (!a) {
            chk_nomem(c);
            return;
        }
        c->damaged = a;
        c->cap_damaged = cap;
    }
    c->damaged[c->n_damaged++] = inode;
    c->blind = true;
}

static void one_block(struct scan *s, uint32_t at, uint32_t k)
{
    struct chk *c = s->c;
    uint32_t index = s->base + at / s->t->stride, sub = at % s->t->stride;
    uint8_t *a = s->a + (size_t)k * VMFS_UNIT, *b = s->b + (size_t)k * VMFS_UNIT, *good;
    uint64_t addr_a = s->t->addr_a + at, addr_b = s->t->addr_b + at;
    unsigned type = sub ? s->sub_type : s->type;
    if (sub == 2 && s->type == VMFS_T_SLOT)
        return; /* an alarm: one copy, and whatever is there that is none counts as quiet */
    struct gr_err ea = { 0 }, eb = { 0 };
    bool za = all_zero(a), zb = all_zero(b);
    int ra = za ? 1 : vhdr_check(c->v->sb.uuid, a, type, 1, addr_a, &ea), rb = zb ? 1 : vhdr_check(c->v->sb.uuid, b, type, 1, addr_b, &eb);
    if (ra == 1 && rb == 1) {
        s->fn(c, index, sub, NULL);
        return;
    }
    if (ra != 0 && rb != 0) {
        chk_error(c, "%s %u: both copies are damaged: %s; %s", s->what, index, ra < 0 ? ea.text : "the first was never written",
                  rb < 0 ? eb.text : "the second was never written");
        c->blind = true;
        if (s->type == VMFS_T_INODE)
            damaged_add(c, index);
        return;
    }
    if (ra < 0)
        repair(s->c, addr_a, a, b, &ea);
    if (rb < 0)
        repair(s->c, addr_b, b, a, &eb);
    good = ra != 0 || (rb == 0 && generation(b) > generation(a)) ? b : a;
    if (good == b)
        vhdr_move(good, 1, addr_a);
    s->fn(c, index, sub, good);
}

static int read_chunk(struct scan *s, uint64_t addr, uint32_t n, uint8_t *buf)
{
    struct chk *c = s->c;
    int r = chk_read(c, addr, n, buf);
    for (uint32_t i = 0; r < 0 && i < n; i++) { /* unit by unit: one that cannot be read counts as damaged */
        uint8_t *u = buf + (size_t)i * VMFS_UNIT;
        if (chk_read(c, addr + i, 1, u) < 0)
            memset(u, 0xff, VMFS_UNIT);
    }
    return 0;
}

static int table_scan(struct scan *s)
{
    uint32_t at = s->first * s->t->stride, end = s->end * s->t->stride;
    s->a = vunits_alloc(CHUNK_UNITS);
    s->b = vunits_alloc(CHUNK_UNITS);
    int r = s->a && s->b ? 0 : chk_nomem(s->c);
    while (r == 0 && at < end) {
        uint32_t n = GR_MIN(CHUNK_UNITS, end - at);
        read_chunk(s, s->t->addr_a + at, n, s->a);
        read_chunk(s, s->t->addr_b + at, n, s->b);
        for (uint32_t k = 0; k < n; k++)
            one_block(s, at + k, k);
        at += n;
        r = s->c->failed;
    }
    free(s->a);
    free(s->b);
    return r;
}

/* ---- slots and their lists of foreign frees ---- */
static void foreign_put(struct chk *c, uint64_t addr, uint64_t units)
{
    if (c->n_foreign == c->cap_foreign) {
        size_t cap = c->cap_foreign ? c->cap_foreign * 2 : 64;
        struct vmfs_run *f = gr_realloc(c->foreign, cap * sizeof *f);
        if (!f) {
            chk_nomem(c);
            return;
        }
        c->foreign = f;
        c->cap_foreign = cap;
    }
    c->foreign[c->n_foreign++] = (struct vmfs_run){ addr, units };
}

/* Where its units lie now. */
static void foreign_one(struct chk *c, uint64_t addr, uint64_t units)
{
    if (!c->v->sp.any_moved || !units || units > UINT32_MAX || vmfs_addr_dev(addr) >= c->v->sb.n_devices) {
        foreign_put(c, addr, units); /* whatever is wrong with it is found later */
        return;
    }
    for (uint32_t n; units; addr += n, units -= n) {
        uint64_t now = moved_addr(c->v, addr, (uint32_t)units, &n);
        foreign_put(c, now ? now : addr, n);
    }
}

static void foreign_add(struct chk *c, const struct vmfs_run_disk *runs, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        foreign_one(c, gr_le64_get(runs[i].addr), gr_le64_get(runs[i].units));
}

static void aux_blob(struct chk *c, uint32_t slot, const struct vmfs_aux_disk *a, uint32_t more)
{
    uint32_t units = gr_le32_get(a->blob_units);
    uint64_t addr = moved_addr(c->v, gr_le64_get(a->blob_addr), units, NULL);
    struct gr_err err = { 0 };
    if (units == 0 || units > 65536 || (uint64_t)units * VMFS_UNIT - sizeof(struct vmfs_hdr_disk) < more * sizeof(struct vmfs_run_disk)) {
        chk_error(c, "slot %u: rule 7: list of foreign frees", slot);
        return;
    }
    chk_early(c, addr, units, chk_print(slot, UINT64_MAX, 1, addr), "slot %u: its list of foreign frees", slot);
    uint8_t *b = vunits_alloc(units);
    int r = b ? chk_read(c, addr, units, b) : chk_nomem(c);
    if (r == 0)
        r = vblock_check(c->v, b, VMFS_T_BLOB, units, addr, &err);
    if (r == 0)
        foreign_add(c, (const struct vmfs_run_disk *)(b + sizeof(struct vmfs_hdr_disk)), more);
    else
        chk_unread(c, addr, "slot %u: its list of foreign frees: %s", slot, gr_err_text(&err, r));
    c->blind |= r < 0;
    free(b);
}

static void slot_block(struct chk *c, uint32_t index, uint32_t sub, const uint8_t *block)
{
    struct gr_err err = { 0 };
    struct vslot s;
    if (sub) {
        const struct vmfs_aux_disk *a = (const struct vmfs_aux_disk *)block;
        uint32_t n = a ? gr_le32_get(a->n_runs) : 0;
        if (a)
            foreign_add(c, a->runs, GR_MIN(n, VMFS_AUX_RUNS));
        if (n > VMFS_AUX_RUNS)
            aux_blob(c, index, a, n - VMFS_AUX_RUNS);
        return;
    }
    if (!block) {
        chk_error(c, "slot %u: was never written", index);
        return;
    }
    if (vslot_decode(&c->v->sb, block, vhome_addr(&c->v->sb.slots, index, 0, 0), &s, &err) < 0) {
        chk_error(c, "slot %u: %s", index, err.text);
        return;
    }
    if (index != c->v->slot && (s.state == VMFS_SLOT_HOST || s.state == VMFS_SLOT_REPLAYING))
        c->others = true;
}

/* ---- regions ---- */
static void region_block(struct chk *c, uint32_t index, uint32_t sub, const uint8_t *block)
{
    struct chk_region *r = &c->regions[index];
    uint32_t bytes = (r->units + 7) / 8, per = VMFS_BITMAP_BITS / 8;
    char at[40];
    if (r->stale)
        return;
    if (sub == 0) {
        struct vlock l = { 0 };
        const struct vmfs_region_disk *d = (const struct vmfs_region_disk *)block;
        r->fresh = !d;
        if (d)
            vlock_get(&d->lock, &l);
        r->free_units = d ? gr_le32_get(d->free_units) : r->units;
        uint32_t units = d && gr_le32_get(d->units) ? gr_le32_get(d->units) : r->units;
        if (units < r->units && units >= VMFS_REGION_MIN)
            r->units = units; /* the volume grew since it was leased */
        else if (units != r->units)
            chk_error(c, "region at %s: rule 7: %u units where %u belong", chk_unit(r->first, at), units, r->units);
        if (d && gr_le32_get(d->units) == 0)
            r->fresh = true; /* leased, never checkpointed */
        r->shares_addr = d ? gr_le64_get(d->shares_addr) : 0;
        r->shares_bytes = d ? gr_le32_get(d->shares_bytes) : 0;
        r->shares_units = d ? gr_le32_get(d->shares_units) : 0;
        r->stable = vlock_mine(c->v, &l) || vlock_counts(c->v, &l, NULL) == 0;
        if (l.holder > c->v->sb.slots.entries) {
            chk_error(c, "region at %s: rule 7: its lock names slot %u of %u", chk_unit(r->first, at), l.holder - 1, c->v->sb.slots.entries);
            chk_fix(c, (struct chk_fix){ .kind = CHK_FIX_LOCK, .n = index });
        }
        c->skipped_regions += !r->stable;
        return;
    }
    uint32_t from = (sub - 1) * per, n = from < bytes ? GR_MIN(per, bytes - from) : 0;
    if (!block || !n)
        return;
    if (!r->bits && !(r->bits = gr_zalloc(bytes))) {
        chk_nomem(c);
        return;
    }
    memcpy(r->bits + from, ((const struct vmfs_bitmap_disk *)block)->bits, n);
}

/* The list of shared units, read by the code that leases the region. */
static void shares_take(struct chk *c, uint32_t index)
{
    struct chk_region *r = &c->regions[index];
    struct vregion read = { .index = index, .units = r->units };
    struct vmfs_region_disk h = { .shares_addr = gr_le64_of(r->shares_addr), .shares_bytes = gr_le32_of(r->shares_bytes),
                                  .shares_units = gr_le32_of(r->shares_units) };
    struct gr_err err = { 0 };
    int rc = share_load(c->v, &read, &h, &err);
    c->rep.read += (uint64_t)read.shares_units * VMFS_UNIT;
    r->shares_addr = read.shares_addr;
    r->shares = read.shares;
    r->n_shares = (uint32_t)read.n_shares;
    if (rc < 0) {
        chk_unread(c, r->shares_addr, "%s", gr_err_text(&err, rc));
        c->blind = true;
        return;
    }
    chk_early(c, r->shares_addr, r->shares_units, chk_print(index, UINT64_MAX, 1, r->shares_addr), "region %u: its list of shared units", index);
}

/* The lists of what lay on devices that leave. */
static void moved_reach(struct chk *c)
{
    for (unsigned i = 0; i < c->v->sb.n_devices; i++) {
        const struct vdevinfo *d = &c->v->sb.dev[i];
        uint64_t addr = moved_addr(c->v, d->moved_addr, d->moved_units, NULL);
        if (addr)
            chk_early(c, addr, d->moved_units, chk_print(i, UINT64_MAX, 3, addr), "device %u: the list of what lay on it", i);
    }
}

int chk_shares(struct chk *c)
{
    moved_reach(c);
    for (uint32_t i = 0; i < c->n_regions && !c->failed; i++)
        if (c->regions[i].shares_addr)
            shares_take(c, i);
    return c->failed;
}

/* ---- inodes ---- */
static int content_take(struct chk_obj *c, const struct vobj *o)
{
    c->epoch = o->epoch;
    c->parent_snap = o->parent_snap;
    c->origin_object = o->origin_object;
    c->origin_snap = o->origin_snap;
    c->origin_epoch = o->origin_epoch;
    c->root = o->live.root.ptr;
    c->level = o->live.level;
    for (unsigned i = 0; i < 2; i++)
        if (!vkeys_where(o, i, &c->keys_at[i]))
            c->keys_at[i] = 0;
    c->snaps = o->n_snaps ? gr_zalloc(o->n_snaps * sizeof *c->snaps) : NULL;
    if (o->n_snaps && !c->snaps)
        return -ENOMEM;
    c->n_snaps = o->n_snaps;
    for (size_t i = 0; i < o->n_snaps; i++) {
        const struct vsnap *s = o->snaps[i];
        c->snaps[i] = (struct chk_snap){ .id = s->id, .parent = s->parent, .epoch = s->epoch, .cursor = s->cursor, .size = s->size,
                                         .flags = s->flags, .clones = s->clones, .root = s->tree.root.ptr, .level = s->tree.level, .use = s->use };
    }
    c->counted = o->counted;
    c->use = o->use;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct vdirent *)a)->name, ((const struct vdirent *)b)->name);
}

static int entries_take(struct chk *k, struct chk_obj *c, struct vobj *o)
{
    c->ents = o->n_ents ? gr_alloc(o->n_ents * sizeof *c->ents) : NULL;
    if (o->n_ents && !c->ents)
        return -ENOMEM;
    if (o->n_ents)
        qsort(o->ents, o->n_ents, sizeof *o->ents, by_name);
    for (size_t i = 0; i < o->n_ents; i++) {
        struct gr_err err = { 0 };
        if (i && strcmp(o->ents[i].name, o->ents[i - 1].name) == 0)
            chk_error(k, "directory %llu: the name '%s' is there twice", (unsigned long long)c->id, o->ents[i].name);
        if (vmfs_name_check(o->ents[i].name, &err) < 0)
            chk_error(k, "directory %llu: %s", (unsigned long long)c->id, err.text);
        c->ents[c->n_ents++] = (struct chk_ent){ o->ents[i].id, o->ents[i].type };
    }
    return 0;
}

/* What the blob says, in a form without names and caches. */
static void blob_take(struct chk *k, struct chk_obj *c, const void *blob)
{
    struct gr_err err = { 0 };
    struct vobj *o = gr_zalloc(sizeof *o);
    int r = o ? 0 : -ENOMEM;
    if (o) {
        o->v = k->v;
        o->id = c->id;
        o->ino.type = c->type;
        r = vobj_blob_decode(o, blob, c->blob_bytes, &err);
    }
    if (r == 0)
        r = c->type == VMFS_DIR ? entries_take(k, c, o) : content_take(c, o);
    if (r == -ENOMEM)
        chk_nomem(k);
    else if (r < 0)
        chk_error(k, "%s", gr_err_text(&err, r));
    c->decoded = true;
    c->bad = r < 0;
    c->lost = r == 0 && o->lost;
    k->blind |= r < 0;
    if (o)
        o->reserved_units = 0; /* it was only read: what it was promised is counted with who holds it */
    vobj_free(o);
}

static void inode_block(struct chk *c, uint32_t index, uint32_t sub, const uint8_t *block)
{
    struct gr_err err = { 0 };
    struct vinode i;
    if (!block)
        return;
    if (vinode_decode(&c->v->sb, block, vhome_addr(&c->v->sb.inodes, index, 0, 0), &i, &err) < 0) {
        chk_error(c, "inode %u: %s", index, err.text);
        damaged_add(c, index);
        return;
    }
    if (i.type == 0) {
        if (i.blob_addr)
            chk_error(c, "inode %u: rule 7: free, but it has a blob", index);
        return;
    }
    if ((uint32_t)i.id != index) {
        chk_error(c, "inode %u: rule 7: it says that it is number %u", index, (uint32_t)i.id);
        damaged_add(c, index);
        return;
    }
    if (c->n_objs == c->cap_objs) {
        size_t cap = c->cap_objs ? c->cap_objs * 2 : 64;
        struct chk_obj *o = gr_realloc(c->objs, cap * sizeof *o);
        if (!o) {
            chk_nomem(c);
            return;
        }
        c->objs = o;
        c->cap_objs = cap;
    }
    struct chk_obj *o = &c->objs[c->n_objs++];
    *o = (struct chk_obj){ .id = i.id, .type = i.type, .n_snapshots = i.n_snapshots, .size = i.size, .used_units = i.used_units, .blob_addr = moved_addr(c->v, i.blob_addr, i.blob_units, NULL),
                           .blob_bytes = i.blob_bytes, .blob_units = i.blob_units, .key_id = i.key_id };
    if (!i.blob_addr)
        blob_take(c, o, i.inline_blob);
}

/* Those of the devices that share a table, then each other device's own. */
static int regions_scan(struct chk *c)
{
    const struct vsuper *sb = &c->v->sb;
    uint32_t common = 0;
    int r = 0;
    for (unsigned d = 0; d < sb->n_devices; d++)
        common += sb->dev[d].table.entries ? 0 : sb->dev[d].regions;
    struct scan s = { c, &sb->regions, "region", VMFS_T_REGION, VMFS_T_BITMAP, 0, common, region_block, NULL, NULL, 0 };
    r = table_scan(&s);
    for (unsigned d = 0; r == 0 && d < sb->n_devices; d++) {
        if (!sb->dev[d].table.entries || sb->dev[d].state == VMFS_DEVICE_GONE || vdev_missing(c->v, d) || vdev_stale(c->v, d))
            continue;
        s.t = &sb->dev[d].table;
        s.end = sb->dev[d].regions;
        s.base = sb->dev[d].first_region;
        r = table_scan(&s);
    }
    return r;
}

int chk_home(struct chk *c)
{
    const struct vsuper *sb = &c->v->sb;
    c->n_regions = space_n_regions(c->v);
    c->regions = gr_zalloc(c->n_regions * sizeof *c->regions);
    if (!c->regions)
        return chk_nomem(c);
    for (uint32_t i = 0; i < c->n_regions; i++) {
        struct chk_region *r = &c->regions[i];
        r->first = space_region_first(c->v, i, &r->units);
        r->stale = vdev_stale(c->v, vmfs_addr_dev(r->first));
        c->stale |= r->stale;
    }
    struct scan inodes = { c, &sb->inodes, "inode", VMFS_T_INODE, 0, 1, sb->inodes.entries, inode_block, NULL, NULL, 0 };
    struct scan slots = { c, &sb->slots, "slot", VMFS_T_SLOT, VMFS_T_AUX, 0, sb->slots.entries, slot_block, NULL, NULL, 0 };
    int r = regions_scan(c);
    if (r == 0)
        r = table_scan(&slots);
    return r == 0 ? table_scan(&inodes) : r;
}

int chk_blobs(struct chk *c)
{
    for (size_t i = 0; i < c->n_objs && !c->failed; i++) {
        struct chk_obj *o = &c->objs[i];
        struct gr_err err = { 0 };
        if (o->blob_addr)
            chk_early(c, o->blob_addr, o->blob_units, chk_print(o->id, UINT64_MAX, 0, o->blob_addr), "object %llu: its blob", (unsigned long long)o->id);
        if (o->decoded)
            continue;
        uint8_t *b = chk_region_of(c, o->blob_addr, o->blob_units) ? vunits_alloc(o->blob_units) : NULL;
        int r = b ? chk_read(c, o->blob_addr, o->blob_units, b) : -GR_ECORRUPT;
        if (r == 0)
            r = vblock_check(c->v, b, VMFS_T_BLOB, o->blob_units, o->blob_addr, &err);
        if (r == 0) {
            blob_take(c, o, b + sizeof(struct vmfs_hdr_disk));
        } else {
            chk_unread(c, o->blob_addr, "object %llu: its blob: %s", (unsigned long long)o->id, gr_err_text(&err, r));
            o->bad = c->blind = true;
        }
        free(b);
    }
    return c->failed;
}

/* ---- superblocks, and that nothing of the tables overlaps ---- */
struct area {
    uint64_t addr, units;
    char what[24];
};

static int super_read(struct chk *c, uint64_t addr, uint8_t *b, struct gr_err *err)
{
    unsigned dev = vmfs_addr_dev(addr);
    struct vsuper s;
    int r = chk_read(c, addr, 1, b);
    if (r < 0)
        gr_fail(err, r, "device %u unit %llu: %s", dev, (unsigned long long)vmfs_addr_unit(addr), gr_code_text(r));
    else
        r = vhdr_check(c->v->sb.uuid, b, VMFS_T_SUPER, 1, addr, err);
    if (r == 0)
        r = vsuper_decode(b, &s, err);
    if (r == 0 && s.this_device != dev)
        r = gr_fail(err, -GR_ECORRUPT, "device %u unit %llu: rule 7: superblock of device %u", dev, (unsigned long long)vmfs_addr_unit(addr), s.this_device);
    return r;
}

/* A copy that was torn, or has rotted, is written from the other. */
static void super_copy(struct chk *c, unsigned dev, uint64_t unit, uint8_t *b)
{
    uint64_t other = vmfs_addr(dev, unit == VMFS_SUPER_A ? VMFS_SUPER_B : VMFS_SUPER_A);
    struct gr_err err = { 0 }, why;
    if (super_read(c, vmfs_addr(dev, unit), b, &err) == 0)
        return;
    uint8_t *good = vunits_alloc(1);
    gr_fail(&why, err.code, "superblock %s: %s", unit == VMFS_SUPER_A ? "A" : "B", err.text);
    if (good && err.code == -GR_ECORRUPT && super_read(c, other, good, &err) == 0)
        repair(c, vmfs_addr(dev, unit), b, good, &why);
    else
        chk_error(c, "%s", why.text);
    free(good);
}

static void areas_apart(struct chk *c, const struct area *a, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned d = vmfs_addr_dev(a[i].addr);
        uint64_t u = vmfs_addr_unit(a[i].addr);
        if (d >= c->v->sb.n_devices || u + a[i].units > c->v->sb.dev[d].first_unit)
            chk_error(c, "rule 7: %s lies among the regions", a[i].what);
        for (size_t k = 0; k < i; k++)
            if (a[i].addr < a[k].addr + a[k].units && a[k].addr < a[i].addr + a[i].units)
                chk_error(c, "rule 7: %s and %s overlap", a[i].what, a[k].what);
    }
}

static void note_missing(struct chk *c)
{
    for (unsigned d = 0; d < c->v->sb.n_devices; d++)
        if (vdev_missing(c->v, d))
            chk_note(c, "device %u is missing: what lies there was not looked at; bring it back, then 'granary datastore add-device'", d);
        else if (vdev_stale(c->v, d))
            chk_note(c, "device %u ('%s') was lost: what is free there has to be counted anew: 'granary datastore check %s --repair'", d, c->v->dev[d].bdev->name,
                     c->v->sb.name);
}

int chk_supers(struct chk *c)
{
    struct vmfs *v = c->v;
    note_missing(c);
    const struct vtable *t[] = { &v->sb.slots, &v->sb.regions, &v->sb.inodes };
    static const char *const names[] = { "slot table", "region table", "inode table" };
    struct area *a = gr_zalloc((6 + 4u * VMFS_DEVICES_MAX + 2u * v->sb.slots.entries) * sizeof *a);
    uint8_t *b = vunits_alloc(1);
    size_t n = 0;
    if (!a || !b) {
        free(a);
        free(b);
        return chk_nomem(c);
    }
    for (unsigned i = 0; i < 6; i++) {
        struct area x = { i & 1 ? t[i / 2]->addr_b : t[i / 2]->addr_a, (uint64_t)t[i / 2]->entries * t[i / 2]->stride, "" };
        snprintf(x.what, sizeof x.what, "%s %s", names[i / 2], i & 1 ? "B" : "A");
        a[n++] = x;
    }
    for (unsigned d = 0; d < v->sb.n_devices; d++)
        for (unsigned copy = 0; v->dev[d].ch && copy < 2; copy++) {
            struct area x = { vmfs_addr(d, copy ? VMFS_SUPER_B : VMFS_SUPER_A), 1, "" };
            snprintf(x.what, sizeof x.what, "superblock %c", copy ? 'B' : 'A');
            a[n++] = x;
            super_copy(c, d, copy ? VMFS_SUPER_B : VMFS_SUPER_A, b);
            const struct vtable *own = &v->sb.dev[d].table;
            x = (struct area){ copy ? own->addr_b : own->addr_a, (uint64_t)own->entries * own->stride, "" };
            snprintf(x.what, sizeof x.what, "region table %u%c", d, copy ? 'B' : 'A');
            if (own->entries)
                a[n++] = x;
        }
    for (unsigned i = 0; i < v->sb.slots.entries; i++) {
        struct vslot s;
        if (vslot_read(v, i, &s, NULL) < 0)
            continue; /* told by chk_home() */
        for (unsigned copy = 0; copy < (s.journal_mirror ? 2u : 1u); copy++) {
            a[n] = (struct area){ copy ? s.journal_mirror : s.journal_addr, s.journal_units, "" };
            snprintf(a[n++].what, sizeof a->what, "journal of slot %u%s", i, copy ? ", mirror" : "");
        }
    }
    areas_apart(c, a, n);
    free(a);
    free(b);
    return 0;
}
