/* A clone gets its own copies of all that it shares with its origin, and is a clone no more.
 *
 * Data is copied by writing it anew (renew.c), nodes of the map by changing nothing in them. When no unit and no node of the live head is as old as
 * the origin's snapshot, and all of that is home, the clone forgets its origin, and the snapshot counts one clone less: both in one checkpoint.
 * Until then it is a clone like any other, so a cut leaves one, and whoever begins again has less to copy. */
#include "common/seam.h"
#include "vmfs/internal.h"
#include "vmfs/keys.h"

struct detach {
    struct vmfs_disk *d;
    const struct vmfs_detach *opts;
    uint64_t copied; /* pieces by passes before this one */
};

static int usable(const struct vmfs_disk *d, struct gr_err *err)
{
    return !d->o || d->gone || d->o->v->fenced ? gr_fail(err, -GR_EFENCED, "it is no longer ours") : 0;
}

static int progress(void *arg, uint64_t pieces, struct gr_err *err)
{
    struct detach *t = arg;
    return t->opts->progress ? t->opts->progress(t->opts->arg, (t->copied + pieces) * VMFS_PIECE, err) : 0;
}

/* A leaf of which nothing is the origin's any more, but perhaps it is itself, or a node above it. */
static int leaf_own(struct vrenew *w, uint64_t piece, struct mnode *leaf, struct gr_err *err)
{
    struct vobj *o = w->d->o;
    if (leaf->birth >= w->from)
        return 0;
    journal_room(o->v);
    int r = 0;
    for (bool ready = false; r == 0 && !ready;) {
        r = disk_room(o, leaf_units_max(o->v), o->epoch);
        if (r == 0)
            r = mtree_load(o, &o->live, piece, err);
        ready = r == 0 && mtree_peek(&o->live, piece, &leaf) == 0 && (o->v->fenced || disk_nodes_fit(o));
    }
    if (r == 0 && !mtree_own(o, &o->live, piece, o->epoch))
        r = -ENOMEM;
    if (r < 0)
        return gr_fail(err, r, "its map cannot be copied: %s", gr_code_text(r));
    vobj_touch(o);
    ckpt_kick(o->v);
    return 0;
}

/* Snapshots of the clone share with the origin, too. */
static int no_snapshots(struct vmfs_disk *d, struct gr_err *err)
{
    const struct vobj *o = d->o;
    for (size_t i = 0; i < o->n_snaps; i++)
        if (!(o->snaps[i]->flags & VMFS_SNAP_HIDDEN))
            return gr_fail(err, -EBUSY, "its snapshot '%s' shares blocks with the origin, too: delete it first (what was copied stays copied)",
                           o->snaps[i]->name);
    return o->n_snaps ? gr_fail(err, -EBUSY, "a deleted snapshot of it is kept, for clones of it or while its space is given back: try again later") : 0;
}

/* 1: nothing of the tree is older than @from; 0: something is. */
static int all_young(struct vobj *o, uint64_t from, struct gr_err *err)
{
    for (uint64_t piece = 0;; piece = (piece / VMFS_LEAF_PIECES + 1) * VMFS_LEAF_PIECES) {
        int r = mtree_next(o, &o->live, piece, 0, &piece, err);
        if (r < 0)
            return r;
        if (piece == UINT64_MAX)
            return 1;
        for (unsigned level = 0; level <= o->live.level; level++) {
            bool absent;
            const struct mchild *c = mtree_slot(&o->live, level, piece, &absent);
            if (!c || slot_birth(c) < from)
                return 0;
        }
    }
}

/* Whoever began to read units of the origin before they were replaced has ended. */
static void wait_readers(struct vmfs *v)
{
    uint64_t now = v->sp.next_ticket;
    while (v->sp.oldest && v->sp.oldest->number < now && !v->fenced)
        gr_fiber_sleep_ms(2);
}

/* [sync] Within the namespace's lock; all is home. */
static int forget_origin(struct vmfs_disk *d, uint64_t lineage, struct vobj *origin, const struct vobj *dying, struct gr_err *err)
{
    struct vobj *o = d->o;
    int r = usable(d, err);
    if (r == 0)
        r = no_snapshots(d, err);
    if (r == 0 && o->lineage != lineage)
        r = gr_fail(err, -EAGAIN, "it was reverted meanwhile");
    if (r < 0)
        return r;
    origin_let_go(origin, o->origin_snap, dying);
    o->origin_object = o->origin_snap = o->origin_epoch = 0;
    vobj_touch(o);
    return 0;
}

static int finish(struct vmfs_disk *d, uint64_t lineage, struct gr_err *err)
{
    struct vmfs *v = d->o->v;
    struct vobj *root, *dying, *origin = NULL;
    int r = vmfs_checkpoint(v, err);
    if (r == 0 && (r = all_young(d->o, d->o->origin_epoch + 1, err)) == 0)
        return -EAGAIN; /* what was late, perhaps */
    if (r == 1)
        wait_readers(v);
    if (r == 1 && (r = usable(d, err)) == 0)
        r = vkeys_forget_unneeded(d, err); /* those of the origin: when it is erased, nobody may have them */
    if (r == 0)
        r = vobj_hold(v, d->o->origin_object, 2000, &origin, NULL, err);
    if (r < 0)
        return r == -GR_ELOCKED ? gr_prefix(err, r, "all of it is copied, but the disk it was cloned from must be told") : r;
    origin->users++; /* nobody gives it up meanwhile */
    r = ns_begin(v, &root, err);
    if (r == 0) {
        r = dir_load(v, VMFS_INODE_DYING, &dying, err);
        if (r == 0)
            r = forget_origin(d, lineage, origin, dying, err);
        r = ns_end(v, r, err);
    }
    origin_done(origin);
    return r;
}

static int copy(struct detach *t, struct gr_err *err)
{
    struct vmfs_disk *d = t->d;
    int r = -EAGAIN;
    for (unsigned tries = 0; r == -EAGAIN && tries < 8; tries++) {
        *err = (struct gr_err){ 0 };
        r = usable(d, err);
        if (r < 0 || !d->o->origin_object)
            break;
        uint64_t lineage = d->o->lineage;
        struct vrenew w = { .d = d, .from = d->o->origin_epoch + 1, .all = true, .progress = progress, .arg = t, .leaf = leaf_own };
        r = disk_renew(&w, err);
        t->copied += w.done;
        if (r == 0)
            r = no_snapshots(d, err);
        if (r == 0)
            r = finish(d, lineage, err);
    }
    return r == -EAGAIN && !err->code ? gr_fail(err, r, "it changes all the time: try again") : r;
}

int vmfs_detach(struct vmfs_disk *d, const struct vmfs_detach *opts, uint64_t *ret_copied, struct gr_err *err)
{
    struct detach t = { .d = d, .opts = opts };
    struct gr_err scratch = { 0 };
    int r = usable(d, err);
    if (r < 0)
        return gr_prefix(err, r, "'%s'", d->bdev.name);
    struct vmfs *v = d->o->v;
    v->background++; /* nobody leaves the volume meanwhile */
    r = copy(&t, err ? err : &scratch);
    if (--v->background == 0)
        gr_fqueue_wake_all(&v->background_q);
    if (ret_copied)
        *ret_copied = t.copied * VMFS_PIECE;
    return r < 0 ? gr_prefix(err, r, "'%s'", d->bdev.name) : 0;
}
