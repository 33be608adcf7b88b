/* Changing the keys of encrypted disks: wrapped with another key, a new data key, the old data written anew, destroyed.
 *
 * A new data key begins with an epoch: the block of keys names it before the epoch begins, with no write under way. A cut in between leaves a
 * key that the next epoch, whatever begins it, uses. */
#include "common/seam.h"
#include "vmfs/internal.h"
#include "vmfs/keys.h"


uint64_t vmfs_kek_id(const uint8_t kek[32]) { return vcipher_kek_id(kek); }

static int usable(const struct vmfs_disk *d, struct gr_err *err)
{
    if (!d->o || d->gone || d->o->v->fenced)
        return gr_fail(err, -GR_EFENCED, "'%s' is no longer ours", d->bdev.name);
    if (!d->o->ino.key_id)
        return gr_fail(err, -EINVAL, "'%s' is not encrypted", d->bdev.name);
    return 0;
}

int vmfs_keys_rewrap(struct vmfs_disk *d, uint64_t kek_id, struct gr_err *err)
{
    struct vkeys k;
    struct vobj *o = d->o;
    int r = usable(d, err);
    if (r < 0)
        return r;
    struct vmfs *v = o->v;
    gr_fmutex_lock(&o->keys_lock);
    r = vkeys_read(o, &k, err);
    if (r == 0)
        r = vkeys_rewrap(v, &k, kek_id, err);
    if (r == 0)
        r = vkeys_write(o, &k, err);
    gr_fmutex_unlock(&o->keys_lock);
    if (r < 0)
        return gr_prefix(err, r, "'%s'", d->bdev.name);
    return vmfs_checkpoint(v, err); /* what listings say */
}

/* Nothing is overwritten where it lies any more: so much must be promised to a thick disk for that, as with a snapshot; *ret_need: with leaves of its map. */
static uint64_t to_promise(const struct vobj *o, uint64_t *ret_need)
{
    uint64_t all = vobj_overwrite_units(o), more = all - GR_MIN(all, o->reserved_units);
    *ret_need = more ? more + (reserve_leaves(o, o->reserved_units + more) - o->reserved_leaves) * leaf_units_max(o->v) : 0;
    return more;
}

/* It is leased here, or others give it back; if they cannot, may_promise() says so. */
static int lease_room(struct vobj *o, struct gr_err *err)
{
    uint64_t need, more = to_promise(o, &need);
    int r = more ? quota_room(o, (int64_t)more, o->epoch) : 0;
    if (r < 0)
        return gr_fail(err, r, "a new data key of a thick disk needs %llu bytes to overwrite, which the quota of a folder above it does not leave: %s",
                       (unsigned long long)more * VMFS_UNIT, gr_code_text(r));
    r = need ? space_back(o->v, need) : 0;
    return r == -GR_ENOSPACE || r == 0 ? 0 : gr_fail(err, r, "no room can be promised for a new data key: %s", gr_code_text(r));
}

/* [sync] What other hosts lease is not ours to promise. */
static int may_promise(const struct vobj *o, struct gr_err *err)
{
    uint64_t need, more = to_promise(o, &need), room = space_promised_room(o->v);
    return need > room ? gr_fail(err, -GR_ENOSPACE, "a new data key of a %s disk needs %llu bytes to overwrite, %llu bytes are missing",
                                 o->ino.provision == VMFS_EAGER ? "eager" : "thick", (unsigned long long)more * VMFS_UNIT,
                                 (unsigned long long)(need - room) * VMFS_UNIT) : 0;
}

/* No write is under way. The block of keys, and then the epoch. */
static int rotate_frozen(struct vmfs_disk *d, uint64_t kek_id, struct gr_err *err)
{
    struct vkeys k;
    struct vobj *o = d->o;
    int r = may_promise(o, err);
    if (r == 0)
        r = vkeys_read(o, &k, err);
    if (r == 0 && k.key[k.n - 1].from <= o->epoch) { /* else one is there that was never used: a cut came between */
        r = vkeys_rewrap(o->v, &k, kek_id, err); /* one key opens all of them */
        if (r == 0)
            r = vkeys_add(o->v, &k, kek_id, o->epoch + 1, err);
        if (r == 0)
            r = vkeys_write(o, &k, err);
    }
    if (r == 0)
        r = vkeys_unlock(o, &k, err);
    if (r == 0)
        r = usable(d, err);
    if (r == 0)
        r = may_promise(o, err); /* others were at work while the keys were written */
    if (r == 0)
        r = record_promise(o, err);
    if (r == 0 && (r = record_epoch(o)) < 0)
        gr_fail(err, r, "the new key cannot be begun: %s", gr_code_text(r));
    return r;
}

int vmfs_keys_rotate(struct vmfs_disk *d, uint64_t kek_id, struct gr_err *err)
{
    struct vobj *o = d->o;
    int r = usable(d, err);
    if (r < 0)
        return r;
    struct vmfs *v = o->v;
    gr_fmutex_lock(&o->keys_lock);
    v->sp.stay++; /* what is leased for it is not given back */
    r = lease_room(o, err);
    journal_room(v);
    disk_freeze(o);
    if (r == 0)
        r = usable(d, err);
    if (r == 0)
        r = rotate_frozen(d, kek_id, err);
    v->sp.stay--;
    if (d->o) {
        disk_thaw(o);
        gr_fmutex_unlock(&o->keys_lock);
    }
    if (r == 0 && (r = journal_commit(v)) < 0)
        gr_fail(err, r, "it is not durable: %s", v->fence_reason);
    if (r < 0)
        return gr_prefix(err, r, "'%s'", d->bdev.name);
    return vmfs_checkpoint(v, err);
}

/* ---- writing anew ---- */

/* Which of the keys the data of a tree needs: bits in *need. */
static int tree_needs(struct vobj *o, struct mtree *t, const struct vkeys *k, uint32_t *need, struct gr_err *err)
{
    for (uint64_t piece = 0;;) {
        struct mnode *leaf;
        int r = mtree_next(o, t, piece, 0, &piece, err);
        if (r < 0 || piece == UINT64_MAX)
            return r;
        r = mtree_load(o, t, piece, err);
        if (r < 0)
            return r;
        if (mtree_peek(t, piece, &leaf) < 0)
            continue;
        uint64_t end = (piece / VMFS_LEAF_PIECES + 1) * VMFS_LEAF_PIECES;
        for (; leaf && piece < end; piece++) {
            struct mpiece m = ment_piece(&leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES], (unsigned)(piece % VMFS_BLOCK_PIECES));
            unsigned i = k->n - 1;
            while (i && k->key[i].from > m.birth)
                i--;
            if (m.state == VMFS_P_DATA)
                *need |= 1u << i;
        }
        piece = end;
        gr_fiber_yield();
    }
}

/* What all trees need. Snapshots stay open while they are walked; one that comes meanwhile needs no more than the live head did, unless
 * that went back to an older one. 0; 1: it changed too much, another time. */
static int all_need(struct vobj *o, const struct vkeys *k, uint32_t *need, struct gr_err *err)
{
    uint64_t lineage = o->lineage, last = 0;
    int r = tree_needs(o, &o->live, k, need, err);
    while (r == 0) {
        struct vsnap *s = NULL;
        for (size_t i = 0; i < o->n_snaps; i++)
            if (o->snaps[i]->id > last && (!s || o->snaps[i]->id < s->id))
                s = o->snaps[i];
        if (!s)
            return o->lineage != lineage;
        if (s->flags & VMFS_SNAP_DELETING)
            return 1;
        last = s->id;
        s->open++;
        r = tree_needs(o, &s->tree, k, need, err);
        s->open--;
        reap_kick(o);
    }
    return r;
}

/* Keys that no tree needs go. 0; 1: they stay, for it changed too much meanwhile, or its keys did. */
static int forget(struct vmfs_disk *d, struct vkeys *k, struct gr_err *err)
{
    struct vobj *o = d->o;
    struct vticket ticket;
    uint32_t need = 1u << (k->n - 1);
    ticket_open(o->v, &ticket); /* nodes that are let go of meanwhile stay readable */
    int r = all_need(o, k, &need, err);
    ticket_close(o->v, &ticket);
    struct vkeys left = { .generation = k->generation };
    for (unsigned i = 0; r == 0 && i < k->n; i++)
        if (need >> i & 1)
            left.key[left.n++] = k->key[i];
    if (r != 0 || left.n == k->n)
        return r;
    gr_fmutex_lock(&o->keys_lock);
    struct vkeys now;
    r = usable(d, err);
    if (r == 0)
        r = vkeys_read(o, &now, err);
    bool same = r == 0 && now.generation == k->generation;
    if (same)
        r = vkeys_write(o, &left, err);
    if (same && r == 0)
        r = vkeys_unlock(o, &left, err);
    gr_fmutex_unlock(&o->keys_lock);
    if (r == 0)
        *k = same ? left : now;
    return r < 0 ? r : !same;
}

int vkeys_forget_unneeded(struct vmfs_disk *d, struct gr_err *err)
{
    struct vkeys k;
    if (!d->o->ino.key_id)
        return 0;
    int r = vkeys_read(d->o, &k, err);
    if (r == 0 && k.n > 1)
        r = forget(d, &k, err);
    return r == 1 ? gr_fail(err, -EAGAIN, "which of its data keys are needed cannot be told, as the disk or its keys change all the time: try again") : r;
}

int vmfs_keys_rewrite(struct vmfs_disk *d, int (*progress)(void *arg, uint64_t pieces, struct gr_err *err), void *arg, unsigned *ret_keys,
                      struct gr_err *err)
{
    struct vkeys k;
    struct vrenew w = { .d = d, .progress = progress, .arg = arg };
    int r = usable(d, err);
    if (r < 0)
        return r;
    struct vobj *o = d->o;
    struct vmfs *v = o->v;
    v->background++; /* nobody leaves the volume meanwhile */
    r = vkeys_read(o, &k, err);
    w.from = r == 0 ? k.key[k.n - 1].from : 0;
    if (r == 0 && k.n > 1)
        r = disk_renew(&w, err);
    if (r == 0 && (r = journal_commit(v)) < 0) /* what replaces the old data is there before its key goes */
        gr_fail(err, r, "it is not durable: %s", v->fence_reason);
    if (r == 0 && k.n > 1 && (r = forget(d, &k, err)) == 1)
        r = 0; /* they stay until the next time */
    if (--v->background == 0)
        gr_fqueue_wake_all(&v->background_q);
    if (r < 0)
        return gr_prefix(err, r, "'%s'", d->bdev.name);
    *ret_keys = k.n;
    return 0;
}

/* ---- the end ---- */
int vmfs_keys_erase(struct vmfs *v, uint64_t id, const char *path, struct gr_err *err)
{
    struct vmfs_stat st;
    struct vobj *o;
    int r = vmfs_stat_object(v, id, &st, err);
    if (r == 0 && (st.type != VMFS_DISK || !st.key_id))
        r = gr_fail(err, -EINVAL, "'%s/%s' is no encrypted disk: it has no key to destroy", v->sb.name, path);
    if (r == 0 && (r = vobj_hold(v, st.id, 0, &o, NULL, err)) < 0)
        gr_prefix(err, r, "'%s/%s'", v->sb.name, path);
    if (r == 0 && (o->opens || o->handle || o->users || o->dying))
        r = gr_fail(err, -EBUSY, "'%s/%s' is in use", v->sb.name, path);
    if (r == 0)
        r = ns_keepsake(o, path, err);
    for (size_t i = 0; r == 0 && i < o->n_snaps; i++)
        if (o->snaps[i]->clones)
            r = gr_fail(err, -EBUSY, "'%s/%s': %u clones start at its snapshot '%s' and have its key, too: delete them first", v->sb.name, path,
                        o->snaps[i]->clones, o->snaps[i]->name);
    if (r == 0) {
        o->users++; /* nobody gives it up meanwhile */
        r = vkeys_destroy(o, err);
        o->users--;
        gr_fqueue_wake_all(&o->settled);
    }
    return r == 0 ? vmfs_checkpoint(v, err) : r;
}
