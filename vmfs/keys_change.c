/* Changing the keys of encrypted disks: wrapped with another key, a new data key, the old data written anew, destroyed.
 *
 * A new data key begins with an epoch: the block of keys names it before the epoch begins, with no write under way. A cut in between leaves a
 * key that the next epoch, whatever begins it, uses. */
#include "common/seam.h"
#include "vmfs/internal.h"
#include "vmfs/keys.h"
#include <assert.h>

#define REWRITE_PIECES 64u /* looked at, and written, at once */

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

/* Nothing is overwritten where it lies any more: a thick disk must have room for that, as with a snapshot. */
static int has_room(struct vobj *o, struct gr_err *err)
{
    struct vmfs *v = o->v;
    uint64_t all = vobj_overwrite_units(o), more = all - GR_MIN(all, o->reserved_units);
    uint64_t need = space_meta_reserve(v) + v->reserved_units + more, have = space_free_units(v);
    int r = more ? quota_room(o, (int64_t)more, o->epoch) : 0;
    if (r < 0)
        return gr_fail(err, r, "a new data key of a thick disk needs %llu bytes to overwrite, which the quota of a folder above it does not leave: %s",
                       (unsigned long long)more * VMFS_UNIT, gr_code_text(r));
    return more && have < need ? gr_fail(err, -GR_ENOSPACE, "a new data key of a %s disk needs %llu bytes to overwrite, %llu bytes are missing",
                                         o->ino.provision == VMFS_EAGER ? "eager" : "thick", (unsigned long long)more * VMFS_UNIT,
                                         (unsigned long long)(need - have) * VMFS_UNIT) : 0;
}

/* No write is under way. The block of keys, and then the epoch. */
static int rotate_frozen(struct vmfs_disk *d, uint64_t kek_id, struct gr_err *err)
{
    struct vkeys k;
    struct vobj *o = d->o;
    int r = has_room(o, err);
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
    journal_room(v);
    disk_freeze(o);
    r = usable(d, err);
    if (r == 0)
        r = rotate_frozen(d, kek_id, err);
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
struct rewrite {
    struct vmfs_disk *d;
    struct vobj *o;
    uint64_t from; /* epoch of the newest key */
    uint64_t done; /* pieces */
    int (*progress)(void *arg, uint64_t pieces, struct gr_err *err);
    void *arg;
};

static bool is_old(const struct mnode *leaf, uint64_t piece, uint64_t from)
{
    struct mpiece m = ment_piece(&leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES], (unsigned)(piece % VMFS_BLOCK_PIECES));
    return m.state == VMFS_P_DATA && m.birth < from;
}

/* The first run of old pieces in [*piece, end) of one leaf: its length, and *piece where it begins. 0: none. */
static uint32_t old_run(const struct mnode *leaf, uint64_t *piece, uint64_t end, uint64_t from)
{
    uint32_t n = 0;
    while (*piece < end && !is_old(leaf, *piece, from))
        (*piece)++;
    while (*piece + n < end && n < REWRITE_PIECES && is_old(leaf, *piece + n, from))
        n++;
    return n;
}

struct pass { /* one admitted operation */
    struct gr_fiber *fiber;
    bool ended, waits;
};
static void pass_granted(struct vrange *r)
{
    struct pass *p = ((struct dop *)r->arg)->bio->arg;
    if (p->waits)
        gr_fiber_wake(p->fiber);
}
static void pass_ended(struct gr_bio *bio)
{
    ((struct pass *)bio->arg)->ended = true;
}

/* Admitted: what is old in [first, end) of one leaf is read and written. */
static int rewrite_range(struct rewrite *w, struct dop *op, uint64_t first, uint64_t end)
{
    struct vobj *o = w->o;
    uint8_t *buf = vunits_alloc(REWRITE_PIECES);
    int r = buf ? 0 : -ENOMEM;
    while (r == 0 && first < end) {
        struct mnode *leaf;
        journal_room_for(op);
        r = o->v->fenced ? -GR_EFENCED : mtree_load(o, &o->live, first, NULL);
        if (r < 0 || mtree_peek(&o->live, first, &leaf) < 0)
            continue;
        uint32_t n = leaf ? old_run(leaf, &first, end, w->from) : 0;
        if (!n)
            break;
        struct iovec iov = { buf, (size_t)n * VMFS_PIECE };
        r = tree_read_wait(o, &o->live, buf, iov.iov_len, first * VMFS_PIECE);
        if (r == 0)
            r = disk_write_pieces(op, first * VMFS_PIECE, iov.iov_len, &iov, 1, false);
        w->done += n;
        first += n;
    }
    free(buf);
    return r;
}

static int rewrite_pass(struct rewrite *w, uint64_t first, uint64_t end)
{
    struct pass p = { gr_fiber_self(), false, false };
    struct gr_bio bio = { .op = GR_OP_WRITE, .off = first * VMFS_PIECE, .len = (end - first) * VMFS_PIECE, .done = pass_ended, .arg = &p };
    struct dop *op = disk_op_new(w->o, &bio);
    if (!op)
        return -ENOMEM;
    op->range.first = first;
    op->range.end = end;
    op->range.grant = pass_granted;
    op->range.arg = op;
    range_enter(w->o, &op->range);
    p.waits = true;
    while (!op->range.granted)
        gr_fiber_suspend();
    disk_op_finish(op, op->v->fenced ? -GR_EFENCED : rewrite_range(w, op, first, end), false);
    assert(p.ended);
    return bio.status;
}

/* All of the live head. */
static int rewrite_live(struct rewrite *w, struct gr_err *err)
{
    struct vobj *o = w->o;
    int r = 0;
    for (uint64_t piece = 0; r == 0;) {
        struct mnode *leaf;
        r = mtree_next(o, &o->live, piece, 0, &piece, err);
        if (r < 0 || piece == UINT64_MAX)
            break;
        r = mtree_load(o, &o->live, piece, err);
        if (r < 0 || mtree_peek(&o->live, piece, &leaf) < 0)
            continue;
        uint64_t end = (piece / VMFS_LEAF_PIECES + 1) * VMFS_LEAF_PIECES;
        uint32_t n = leaf ? old_run(leaf, &piece, end, w->from) : 0;
        if (!n) {
            piece = end;
            gr_fiber_yield();
        } else if ((r = rewrite_pass(w, piece, piece + n)) < 0) {
            gr_fail(err, r, "it cannot be written anew: %s", gr_code_text(r));
        } else {
            piece += n;
            r = w->progress ? w->progress(w->arg, w->done, err) : 0;
        }
        if (r == 0)
            r = usable(w->d, err);
    }
    return r;
}

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

/* Keys that no tree needs go, unless others came meanwhile. */
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
        return r < 0 ? r : 0;
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
    return r;
}

int vmfs_keys_rewrite(struct vmfs_disk *d, int (*progress)(void *arg, uint64_t pieces, struct gr_err *err), void *arg, unsigned *ret_keys,
                      struct gr_err *err)
{
    struct vkeys k;
    struct rewrite w = { .d = d, .o = d->o, .progress = progress, .arg = arg };
    int r = usable(d, err);
    if (r < 0)
        return r;
    struct vmfs *v = w.o->v;
    v->background++; /* nobody leaves the volume meanwhile */
    r = vkeys_read(w.o, &k, err);
    w.from = r == 0 ? k.key[k.n - 1].from : 0;
    if (r == 0 && k.n > 1)
        r = rewrite_live(&w, err);
    if (r == 0 && (r = journal_commit(v)) < 0) /* what replaces the old data is there before its key goes */
        gr_fail(err, r, "it is not durable: %s", v->fence_reason);
    if (r == 0 && k.n > 1)
        r = forget(d, &k, err);
    if (--v->background == 0)
        gr_fqueue_wake_all(&v->background_q);
    if (r < 0)
        return gr_prefix(err, r, "'%s'", d->bdev.name);
    *ret_keys = k.n;
    return 0;
}

/* ---- the end ---- */
int vmfs_keys_erase(struct vmfs *v, const char *path, struct gr_err *err)
{
    struct vmfs_stat st;
    struct vobj *o;
    int r = vmfs_stat(v, path, &st, err);
    if (r == 0 && (st.type != VMFS_DISK || !st.key_id))
        r = gr_fail(err, -EINVAL, "'%s/%s' is no encrypted disk: it has no key to destroy", v->sb.name, path);
    if (r == 0 && (r = vobj_hold(v, st.id, 0, &o, NULL, err)) < 0)
        gr_prefix(err, r, "'%s/%s'", v->sb.name, path);
    if (r == 0 && (o->opens || o->handle || o->users || o->dying))
        r = gr_fail(err, -EBUSY, "'%s/%s' is in use", v->sb.name, path);
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
