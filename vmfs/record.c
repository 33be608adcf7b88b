/* Records: the only way durable state changes. A record is added to the journal and applied; on replay it is applied again,
 * in the same order, to the state of the last checkpoint, by the same code. */
#include "common/seam.h"
#include "vmfs/broken.h"
#include "vmfs/loss.h"
#include "vmfs/rescue.h"

bool held_by_ancestors(struct vobj *o, uint64_t parent_snap, uint64_t birth, uint64_t piece_end)
{
    for (struct vsnap *s = vobj_snap(o, parent_snap); s; s = vobj_snap(o, s->parent))
        if (!(s->flags & VMFS_SNAP_DELETING) || piece_end > s->cursor)
            return birth <= s->epoch;
    return o->origin_object && birth <= o->origin_epoch;
}

uint64_t reserve_leaves(const struct vobj *o, uint64_t units)
{
    return GR_MIN(units, (o->ino.size + VMFS_LEAF_PIECES * VMFS_PIECE - 1) / (VMFS_LEAF_PIECES * VMFS_PIECE));
}

void reserve_set(struct vobj *o, uint64_t units)
{
    uint64_t leaves = reserve_leaves(o, units);
    o->v->reserved_units += units - o->reserved_units;
    o->v->reserved_leaves += leaves - o->reserved_leaves;
    o->reserved_units = units;
    o->reserved_leaves = leaves;
}

struct drop {
    struct vobj *o;
    uint64_t prev_snap; /* the snapshot before the tree (the oldest one changed) */
    uint64_t seq;
    uint32_t dropped;
    uint32_t given_up; /* SPACE_GIVEN_UP or 0 */
};

static void drop_piece(void *arg, uint64_t piece, const struct mpiece *old)
{
    struct drop *d = arg;
    if ((held_by_ancestors(d->o, d->prev_snap, old->birth, piece + 1) && !VMFS_BROKEN(OVERWRITTEN)) || VMFS_BROKEN(LEFT))
        return;
    struct vmfs *v = d->o->v;
    if (d->o->ino.type == VMFS_FILE) /* hosts that do not own a file read it by its home state: until that has changed, its units stay */
        space_freed(v, old->addr, 1, 1 | d->given_up, v->ckpt_started + 1);
    else
        space_freed(v, old->addr, 1, d->given_up, d->seq);
    d->o->ino.used_units -= d->o->ino.used_units > 0;
    d->dropped++;
}

static int set_in(struct vmfs *v, struct mnode *leaf, const struct map_change *c, struct drop *d)
{
    return leaf ? mleaf_set(v, leaf, c, d ? drop_piece : NULL, d) : -ENOMEM;
}

static struct mpiece piece_of(const struct mnode *leaf, uint64_t piece)
{
    unsigned at = (unsigned)(piece % VMFS_LEAF_PIECES);
    return ment_piece(&leaf->ent[at / VMFS_BLOCK_PIECES], at % VMFS_BLOCK_PIECES);
}

/* What the change replaces in any of the trees goes, once. Newer ones may have at its place what the oldest has not: units that a
 * later write reserved for its whole block. */
static void late_drops(struct mnode *const *leaf, unsigned n, const struct map_change *c, struct drop *d)
{
    for (uint64_t p = c->piece; p < c->piece + c->count; p++)
        for (unsigned i = 0; i < n; i++) {
            struct mpiece old = leaf[i] ? piece_of(leaf[i], p) : (struct mpiece){ .state = VMFS_P_HOLE };
            bool stays = old.state == VMFS_P_HOLE || (c->state != VMFS_P_HOLE && old.addr == c->addr + (p - c->piece));
            for (unsigned k = 0; k < i && !stays; k++) {
                struct mpiece before = leaf[k] ? piece_of(leaf[k], p) : (struct mpiece){ .state = VMFS_P_HOLE };
                stays = before.state != VMFS_P_HOLE && before.addr == old.addr && before.birth == old.birth; /* dropped already */
            }
            if (!stays)
                drop_piece(d, p, &old);
        }
}

/* A write admitted before snapshots that were taken while it was in flight belongs to them, too. */
static int map_late(struct vobj *o, const struct map_change *c, struct drop *d)
{
    struct mtree **tree = gr_alloc((o->n_snaps + 1) * sizeof *tree);
    struct mnode **leaf = gr_alloc((o->n_snaps + 1) * sizeof *leaf);
    uint64_t *epoch = gr_alloc((o->n_snaps + 1) * sizeof *epoch);
    struct vusage **use = gr_alloc((o->n_snaps + 1) * sizeof *use);
    struct usage_change usage = { c->piece, c->birth, c->count, c->state != VMFS_P_HOLE };
    unsigned n = (unsigned)o->n_snaps, first = n;
    struct vsnap *s = vobj_snap(o, o->parent_snap);
    int r = tree && leaf && epoch && use ? 0 : -ENOMEM;
    for (; r == 0 && s && s->epoch >= c->birth && first; s = vobj_snap(o, s->parent)) {
        tree[--first] = &s->tree;
        epoch[first] = s->epoch;
        use[first] = &s->use;
        d->prev_snap = s->parent;
    }
    if (r == 0) {
        struct vsnap *before = vobj_snap(o, d->prev_snap);
        tree[n] = &o->live;
        use[n] = &o->use;
        epoch[n] = o->epoch;
        r = usage_map_late(o, tree + first, use + first, n + 1 - first, d->prev_snap, &usage);
        struct late l = { tree + first, epoch + first, n + 1 - first, c->piece, c->birth, before ? before->epoch : o->origin_epoch };
        r = r < 0 ? r : mtree_own_late(o, &l, leaf);
    }
    if (r == 0)
        late_drops(leaf, n + 1 - first, c, d);
    for (unsigned i = 0; r == 0 && i < n + 1 - first; i++)
        if (leaf[i])
            r = set_in(o->v, leaf[i], c, NULL);
    free(tree);
    free(leaf);
    free(epoch);
    free(use);
    return r;
}

static int map_live(struct vobj *o, const struct map_change *c, struct drop *d)
{
    struct mnode *leaf = mtree_own(o, &o->live, c->piece, c->birth);
    if (leaf)
        usage_map(o, leaf, &(struct usage_change){ c->piece, c->birth, c->count, c->state != VMFS_P_HOLE });
    struct map_change as = *c;
    as.birth -= VMFS_BROKEN(BIRTH);
    return set_in(o->v, leaf, &as, d);
}

bool frozen_since(struct vobj *o, uint64_t birth)
{
    const struct vsnap *s = vobj_snap(o, o->parent_snap);
    return s && s->epoch >= birth;
}

/* Units of the change that the object does not hold yet, when no bitmap tells: recovery without their device, or after it was lost. */
static uint32_t units_new(struct vobj *o, const struct map_change *c)
{
    unsigned dev = vmfs_addr_dev(c->addr);
    uint32_t n = 0;
    if (c->state == VMFS_P_HOLE || dev >= o->v->sb.n_devices || !(vdev_missing(o->v, dev) || vdev_stale(o->v, dev)))
        return 0;
    for (uint32_t i = 0; i < c->count; i++) {
        bool held = false;
        for (size_t k = 0; k <= o->n_snaps && !held; k++) {
            struct mnode *leaf;
            if (mtree_peek(k < o->n_snaps ? &o->snaps[k]->tree : &o->live, c->piece + i, &leaf) < 0 || !leaf)
                continue;
            struct mpiece p = piece_of(leaf, c->piece + i);
            held = p.state != VMFS_P_HOLE && p.addr == c->addr + i;
        }
        n += !held;
    }
    return n;
}

static int map_apply(struct vobj *o, const struct map_change *c)
{
    struct drop d = { o, o->parent_snap, c->seq, 0, c->state == VMFS_P_HOLE ? SPACE_GIVEN_UP : 0 };
    struct mnode *leaf;
    if (c->piece / VMFS_LEAF_PIECES != (c->piece + c->count - 1) / VMFS_LEAF_PIECES || c->piece + c->count > mnode_span(o->live.level))
        return -GR_ECORRUPT;
    if (c->piece >= mnode_span(o->live.level) || (c->state != VMFS_P_HOLE && !space_addr_ok(o->v, c->addr, c->count)))
        return -GR_ECORRUPT;
    if (c->state == VMFS_P_DATA && vcrc_kept(o->v) && !c->crc)
        return -GR_ECORRUPT;
    if (mtree_peek(&o->live, c->piece, &leaf) < 0)
        return -EAGAIN;
    uint32_t unseen = units_new(o, c);
    int r = frozen_since(o, c->birth) ? map_late(o, c, &d) : map_live(o, c, &d);
    if (r < 0)
        return r;
    if (c->shared) {
        r = space_share(o->v, c->addr, c->count);
        o->ino.used_units += c->count;
    } else if (c->state != VMFS_P_HOLE) {
        uint32_t n = space_used(o->v, c->addr, c->count);
        n = space_region(o->v, c->addr) ? n : n + unseen;
        o->ino.used_units += n;
        n -= GR_MIN(n, d.dropped); /* what gives back a unit for the one it takes uses nothing of the promise up */
        reserve_set(o, o->reserved_units - GR_MIN((uint64_t)n, o->reserved_units));
    }
    vobj_touch(o);
    return r;
}

static int map_record(struct vobj *o, const struct map_change *c)
{
    struct vmfs *v = o->v;
    size_t ncrc = c->state == VMFS_P_DATA && c->crc ? c->count : 0, len = sizeof(struct vmfs_rec_map_disk) + ncrc * 4;
    uint8_t small[sizeof(struct vmfs_rec_map_disk) + VMFS_LEAF_PIECES * 4];
    struct vmfs_rec_map_disk *d = (struct vmfs_rec_map_disk *)small;
    memset(d, 0, sizeof *d);
    d->r.type = gr_le16_of(VMFS_R_MAP);
    d->r.flags = gr_le16_of((uint16_t)((ncrc && !c->durable ? 0 : VMFS_RF_TRUSTED) | (c->shared ? VMFS_RF_SHARED : 0)));
    d->r.len = gr_le32_of((uint32_t)len);
    d->r.object = gr_le64_of(o->id);
    d->r.token = gr_le64_of(o->ino.lock.token);
    d->piece = gr_le64_of(c->piece);
    d->birth = gr_le64_of(c->birth);
    d->addr = gr_le64_of(c->addr);
    d->count = gr_le32_of(c->count);
    d->state = gr_le32_of(c->state);
    for (size_t i = 0; i < ncrc; i++)
        d->crc[i] = gr_le32_of(c->crc[i]);
    int r = journal_add(v, small, len);
    if (c->state == VMFS_P_DATA && !c->durable)
        o->record_on[vmfs_addr_dev(c->addr)] = c->seq;
    if (r == 0)
        r = map_apply(o, c);
    if (r < 0)
        vmfs_fence(v, "a map change could not be applied: %s", gr_code_text(r));
    return r;
}

int record_share(struct vobj *o, uint64_t piece, uint32_t count, uint64_t addr, uint64_t birth, const uint32_t *crc)
{
    struct map_change c = { piece, addr, birth, journal_seq(o->v), count, VMFS_P_DATA, crc, true, true };
    return map_record(o, &c);
}

int record_durable(struct vobj *o, uint64_t piece, uint32_t count, uint64_t addr, uint64_t birth, const uint32_t *crc)
{
    struct map_change c = { piece, addr, birth, journal_seq(o->v), count, VMFS_P_DATA, crc, true, false };
    return map_record(o, &c);
}

int record_epoch(struct vobj *o)
{
    struct vmfs_rec_value_disk d = { .value = gr_le64_of(o->epoch + 1) };
    d.r.type = gr_le16_of(VMFS_R_EPOCH);
    return record_do(o, &d, sizeof d, NULL);
}

int record_map(struct vobj *o, uint64_t piece, uint32_t count, uint64_t addr, uint64_t birth, enum vmfs_piece_state state, const uint32_t *crc)
{
    struct map_change c = { piece, addr, birth, journal_seq(o->v), count, state, crc, false, false };
    return map_record(o, &c);
}

uint64_t vobj_overwrite_units(const struct vobj *o)
{
    return o->ino.provision == VMFS_THIN ? 0 : (o->ino.size + VMFS_PIECE - 1) / VMFS_PIECE;
}

int record_promise(struct vobj *o, struct gr_err *err)
{
    struct vmfs_rec_value_disk d = { .value = gr_le64_of(vobj_overwrite_units(o)) };
    d.r.type = gr_le16_of(VMFS_R_RESERVE);
    return vobj_overwrite_units(o) ? record_do(o, &d, sizeof d, err) : 0;
}

int record_do(struct vobj *o, void *rec, size_t len, struct gr_err *err)
{
    struct vmfs_rec_disk *d = rec;
    struct vmfs *v = o->v;
    if (v->rescue && !v->replaying && gr_le16_get(d->type) != VMFS_R_ATTR) /* those are the target's own, and end with the process */
        return vrescue_refuse(v, err);
    d->len = gr_le32_of((uint32_t)len);
    d->object = gr_le64_of(o->id);
    d->token = gr_le64_of(o->ino.lock.token);
    if (v->fenced)
        return gr_fail(err, -GR_EFENCED, "datastore '%s': %s", v->sb.name, v->fence_reason);
    uint64_t seq = journal_seq(v);
    int r = journal_add(v, rec, len);
    if (r < 0)
        return gr_fail(err, r, "out of memory for the journal");
    r = record_apply(o, rec, seq, err);
    if (r < 0)
        vmfs_fence(v, "a record could not be applied: %s", gr_code_text(r));
    return r;
}

/* ---- snapshots ---- */
static struct vsnap *snap_append(struct vobj *o, const char *name, size_t name_len)
{
    struct vsnap **a = gr_realloc(o->snaps, (o->n_snaps + 1) * sizeof *a);
    if (!a)
        return NULL;
    o->snaps = a;
    struct vsnap *s = gr_zalloc(sizeof *s);
    char *n = gr_alloc(name_len + 1);
    if (!s || !n) {
        free(s);
        free(n);
        return NULL;
    }
    memcpy(n, name, name_len);
    n[name_len] = 0;
    s->name = n;
    o->snaps[o->n_snaps++] = s;
    o->shape++;
    return s;
}

/* What is in flight belongs to an epoch that is over. */
static void all_late(struct vobj *o)
{
    o->late = o->in_flight;
    if (o->late) { /* they wait for no checkpoint any more */
        gr_fqueue_wake_all(&o->v->j.room_q);
        gr_fqueue_wake_all(&o->v->j.commit_q);
    }
}

/* The live head as it is becomes snapshot @s; what is in flight belongs to it. */
static void snap_freeze(struct vobj *o, struct vsnap *s)
{
    s->id = o->next_snap++;
    s->parent = o->parent_snap;
    s->epoch = o->epoch;
    s->lineage = o->lineage;
    s->size = o->ino.size;
    mtree_share(&s->tree, &o->live);
    o->epoch++;
    o->parent_snap = s->id;
    o->shape++;
    all_late(o);
}

static int apply_epoch(struct vobj *o, uint64_t epoch)
{
    if (epoch != o->epoch + 1)
        return -GR_ECORRUPT;
    o->epoch = epoch;
    o->copied = true;
    all_late(o);
    for (struct vrange *r = o->ranges; r; r = r->next)
        if (r->granted && r->renews && r->epoch + 1 == epoch) { /* not one that a snapshot made late before */
            r->epoch = epoch;
            o->late--;
        }
    return 0;
}

static int apply_snap_add(struct vobj *o, const struct vmfs_rec_snap_disk *d)
{
    struct vsnap *s = snap_append(o, d->name, gr_le16_get(d->name_len));
    if (!s)
        return -ENOMEM;
    snap_freeze(o, s);
    s->created_s = (int64_t)gr_le64_get(d->created_s);
    memcpy(s->group, d->group, 16);
    if (gr_le32_get(d->value) & VMFS_SNAP_DELETING) { /* the end of the object: the live head goes, too */
        s->flags = gr_le32_get(d->value);
        mtree_done(o->v, &o->live);
        o->live.root = (struct mchild){ 0 };
    } else {
        o->ino.n_snapshots++;
    }
    usage_frozen(o, s, s->flags & VMFS_SNAP_DELETING);
    return 0;
}

static int apply_snap_flags(struct vobj *o, const struct vmfs_rec_snap_disk *d)
{
    struct vsnap *s = vobj_snap(o, gr_le64_get(d->id));
    uint32_t flags = gr_le32_get(d->value);
    if (!s)
        return -GR_ECORRUPT;
    if ((flags & VMFS_SNAP_HIDDEN) && !(s->flags & VMFS_SNAP_HIDDEN) && o->ino.n_snapshots)
        o->ino.n_snapshots--;
    s->flags = flags;
    return 0;
}

static int apply_snap_free(struct vobj *o, const struct vmfs_rec_free_disk *d)
{
    struct vsnap *s = vobj_snap(o, gr_le64_get(d->id));
    uint64_t all = 0;
    if (!s)
        return -GR_ECORRUPT;
    for (uint32_t i = 0; i < gr_le32_get(d->n_runs); i++) {
        uint32_t units = (uint32_t)gr_le64_get(d->runs[i].units);
        if (!space_addr_ok(o->v, gr_le64_get(d->runs[i].addr), gr_le64_get(d->runs[i].units)))
            return -GR_ECORRUPT;
        /* a checkpoint under way may still name these units in what is home now: wait for the next one */
        space_freed(o->v, gr_le64_get(d->runs[i].addr), units, 1 | SPACE_GIVEN_UP, o->v->ckpt_started + 1);
        all += units;
    }
    if (gr_le16_get(d->r.flags) & VMFS_RF_COUNTED) {
        const struct vmfs_rec_counts_disk *n = (const void *)(d->runs + gr_le32_get(d->n_runs));
        all = gr_le64_get(n->units);
        usage_freed(o, s, n);
    } else {
        usage_unknown(o);
    }
    o->ino.used_units -= GR_MIN(all, o->ino.used_units);
    s->cursor = gr_le64_get(d->cursor);
    return 0;
}

static int apply_snap_drop(struct vobj *o, const struct vmfs_rec_snap_disk *d)
{
    struct vsnap *s = vobj_snap(o, gr_le64_get(d->id));
    if (!s)
        return -GR_ECORRUPT;
    usage_dropped(o, s);
    o->shape++;
    for (size_t i = 0; i < o->n_snaps; i++)
        if (o->snaps[i]->parent == s->id)
            o->snaps[i]->parent = s->parent;
    if (o->parent_snap == s->id)
        o->parent_snap = s->parent;
    for (size_t i = 0; i < o->n_snaps; i++)
        if (o->snaps[i] == s) {
            memmove(o->snaps + i, o->snaps + i + 1, (o->n_snaps - i - 1) * sizeof *o->snaps);
            o->n_snaps--;
            break;
        }
    mtree_drop(o->v, &s->tree);
    free(s->name);
    free(s);
    if (!o->n_snaps)
        reserve_set(o, 0);
    return 0;
}

static int apply_revert(struct vobj *o, const struct vmfs_rec_snap_disk *d)
{
    struct vsnap *old = snap_append(o, "", 0);
    struct vlineage *l = gr_realloc(o->lineages, (o->n_lineages + 1) * sizeof *l);
    if (l)
        o->lineages = l;
    struct vsnap *s = vobj_snap(o, gr_le64_get(d->id));
    if (!old || !l || !s)
        return s ? -ENOMEM : -GR_ECORRUPT;
    snap_freeze(o, old);
    old->flags = VMFS_SNAP_HIDDEN | VMFS_SNAP_DELETING;
    usage_frozen(o, old, false);
    usage_reverted(o, s);
    mtree_done(o->v, &o->live);
    mtree_share(&o->live, &s->tree);
    o->ino.size = s->size;
    o->parent_snap = s->id;
    o->lineages[o->n_lineages++] = (struct vlineage){ gr_le64_get(d->lineage), s->lineage, s->epoch };
    o->lineage = gr_le64_get(d->lineage);
    return 0;
}

/* ---- the rest ---- */
static int apply_bookmark(struct vobj *o, const struct vmfs_rec_bookmark_disk *d)
{
    char name[VMFS_NAME_MAX + 1];
    size_t n = gr_le16_get(d->name_len);
    memcpy(name, d->name, n);
    name[n] = 0;
    struct vbookmark *old = vobj_bookmark_named(o, name);
    if (gr_le64_get(d->epoch) == 0) {
        if (!old)
            return 0;
        free(old->name);
        *old = o->bookmarks[--o->n_bookmarks];
        return 0;
    }
    if (!old) {
        struct vbookmark *a = gr_realloc(o->bookmarks, (o->n_bookmarks + 1) * sizeof *a);
        char *copy = gr_strdup(name);
        if (a)
            o->bookmarks = a;
        if (!a || !copy) {
            free(copy);
            return -ENOMEM;
        }
        old = &o->bookmarks[o->n_bookmarks++];
        old->name = copy;
    }
    old->lineage = gr_le64_get(d->lineage);
    old->epoch = gr_le64_get(d->epoch);
    old->created_s = (int64_t)gr_le64_get(d->created_s);
    return 0;
}

static int apply_attr(struct vobj *o, const struct vmfs_rec_attr_disk *d)
{
    size_t kl = gr_le16_get(d->key_len);
    return vobj_attr_put(o, d->bytes, kl, d->bytes + kl, gr_le32_get(d->val_len));
}

static int apply_resize(struct vobj *o, uint64_t size)
{
    if ((size == 0 && o->ino.type == VMFS_DISK) || size > VMFS_DISK_MAX)
        return -GR_ECORRUPT;
    unsigned level = mtree_level_for((size + VMFS_PIECE - 1) / VMFS_PIECE);
    mtree_grow(o->v, &o->live, level, o->epoch);
    if (o->live.level < level)
        return -ENOMEM;
    o->ino.size = size;
    return 0;
}

/* Lengths of variable parts against the record's (rule 7). */
static bool record_fits(const struct vmfs_rec_disk *r)
{
    uint32_t len = gr_le32_get(r->len);
    switch ((enum vmfs_record_type)gr_le16_get(r->type)) {
    case VMFS_R_MAP: {
        const struct vmfs_rec_map_disk *d = (const void *)r;
        if (len < sizeof *d || gr_le32_get(d->count) == 0 || gr_le32_get(d->count) > VMFS_LEAF_PIECES || gr_le32_get(d->state) > VMFS_P_ZEROED)
            return false;
        if ((gr_le16_get(r->flags) & VMFS_RF_SHARED) && (!(gr_le16_get(r->flags) & VMFS_RF_TRUSTED) || gr_le32_get(d->state) != VMFS_P_DATA))
            return false;
        return (gr_le16_get(r->flags) & VMFS_RF_TRUSTED) || (len - sizeof *d) / 4 >= gr_le32_get(d->count);
    }
    case VMFS_R_SNAP_ADD: case VMFS_R_SNAP_FLAGS: case VMFS_R_SNAP_DROP: case VMFS_R_REVERT: {
        const struct vmfs_rec_snap_disk *d = (const void *)r;
        return len >= sizeof *d && gr_le16_get(d->name_len) <= len - sizeof *d && gr_le16_get(d->name_len) <= VMFS_NAME_MAX;
    }
    case VMFS_R_SNAP_FREE: {
        const struct vmfs_rec_free_disk *d = (const void *)r;
        if (len < sizeof *d || gr_le32_get(d->n_runs) > (len - sizeof *d) / sizeof d->runs[0])
            return false;
        const struct vmfs_rec_counts_disk *n = (const void *)(d->runs + gr_le32_get(d->n_runs));
        size_t left = len - sizeof *d - gr_le32_get(d->n_runs) * sizeof d->runs[0];
        return !(gr_le16_get(r->flags) & VMFS_RF_COUNTED) || (left >= sizeof *n && gr_le32_get(n->n_lost) <= (left - sizeof *n) / sizeof n->lost[0]);
    }
    case VMFS_R_BOOKMARK: {
        const struct vmfs_rec_bookmark_disk *d = (const void *)r;
        return len >= sizeof *d && gr_le16_get(d->name_len) <= len - sizeof *d && gr_le16_get(d->name_len) <= VMFS_NAME_MAX;
    }
    case VMFS_R_ATTR: {
        const struct vmfs_rec_attr_disk *d = (const void *)r;
        return len >= sizeof *d && gr_le16_get(d->key_len) <= len - sizeof *d &&
               gr_le32_get(d->val_len) <= len - sizeof *d - gr_le16_get(d->key_len);
    }
    case VMFS_R_RESIZE: case VMFS_R_RESERVE: case VMFS_R_EPOCH:
        return len >= sizeof(struct vmfs_rec_value_disk);
    }
    return false;
}

static int apply_map(struct vobj *o, const struct vmfs_rec_map_disk *d, uint64_t seq)
{
    uint32_t crc[VMFS_LEAF_PIECES], n = gr_le32_get(d->count);
    bool has_crc = vcrc_kept(o->v) && gr_le32_get(d->state) == VMFS_P_DATA && (gr_le32_get(d->r.len) - sizeof *d) / 4 >= n;
    for (uint32_t i = 0; has_crc && i < n; i++)
        crc[i] = gr_le32_get(d->crc[i]);
    struct map_change c = { gr_le64_get(d->piece), gr_le64_get(d->addr), gr_le64_get(d->birth), seq, n, (enum vmfs_piece_state)gr_le32_get(d->state),
                            has_crc ? crc : NULL, gr_le16_get(d->r.flags) & VMFS_RF_TRUSTED, gr_le16_get(d->r.flags) & VMFS_RF_SHARED };
    return map_apply(o, &c);
}

int record_apply(struct vobj *o, const void *rec, uint64_t seq, struct gr_err *err)
{
    const struct vmfs_rec_disk *r = rec;
    int rc = -GR_ECORRUPT;
    if (!record_fits(r))
        return gr_fail(err, -GR_ECORRUPT, "object %llu: rule 7: a journal record of type %u", (unsigned long long)o->id, gr_le16_get(r->type));
    switch ((enum vmfs_record_type)gr_le16_get(r->type)) {
    case VMFS_R_MAP: rc = apply_map(o, rec, seq); break;
    case VMFS_R_SNAP_ADD: rc = apply_snap_add(o, rec); break;
    case VMFS_R_SNAP_FLAGS: rc = apply_snap_flags(o, rec); break;
    case VMFS_R_SNAP_FREE: rc = apply_snap_free(o, rec); break;
    case VMFS_R_SNAP_DROP: rc = apply_snap_drop(o, rec); break;
    case VMFS_R_REVERT: rc = apply_revert(o, rec); break;
    case VMFS_R_BOOKMARK: rc = apply_bookmark(o, rec); break;
    case VMFS_R_ATTR: rc = apply_attr(o, rec); break;
    case VMFS_R_RESIZE: rc = apply_resize(o, gr_le64_get(((const struct vmfs_rec_value_disk *)rec)->value)); break;
    case VMFS_R_EPOCH: rc = apply_epoch(o, gr_le64_get(((const struct vmfs_rec_value_disk *)rec)->value)); break;
    case VMFS_R_RESERVE:
        reserve_set(o, gr_le64_get(((const struct vmfs_rec_value_disk *)rec)->value));
        rc = 0;
        break;
    }
    vobj_touch(o);
    if (rc < 0)
        gr_fail(err, rc, "object %llu: a journal record of type %u does not apply: %s", (unsigned long long)o->id, gr_le16_get(r->type),
                gr_code_text(rc));
    return rc;
}
