/* The end of an object: what its trees hold is given back, then its inode is free. Whoever joins goes on with what was begun. */
#include "common/seam.h"
#include "vmfs/internal.h"
#include "vmfs/keys.h"

/* All its trees become deleted snapshots; the walker gives them back, then the object is buried. */
void ns_destroy(struct vobj *o)
{
    uint32_t gone = VMFS_SNAP_HIDDEN | VMFS_SNAP_DELETING;
    struct vmfs_rec_snap_disk d = { .value = gr_le32_of(gone) };
    o->dying = true;
    if (o->v->fenced)
        return;
    d.r.type = gr_le16_of(VMFS_R_SNAP_FLAGS);
    for (size_t i = 0; i < o->n_snaps; i++)
        if (o->snaps[i]->flags != gone) {
            d.id = gr_le64_of(o->snaps[i]->id);
            record_do(o, &d, sizeof d, NULL);
        }
    if (o->live.root.mem || o->live.root.ptr.addr) {
        memset(&d, 0, sizeof d);
        d.r.type = gr_le16_of(VMFS_R_SNAP_ADD);
        d.value = gr_le32_of(gone);
        record_do(o, &d, sizeof d, NULL);
    }
    reap_kick(o);
}

/* Does a daemon run there, or a command that ends soon? */
static bool stays(struct vmfs *v, int slot)
{
    struct vslot s;
    return slot >= 0 && vslot_read(v, (unsigned)slot, &s, NULL) == 0 && s.address[0];
}

/* A clone's origin, held: its counter goes home together with the clone's inode. Another host may have it: a command ends soon, but a daemon does
 * not, and then -GR_ELOCKED and whose it is. */
#define ORIGIN_TRIES 6
static int hold_origin(struct vobj *o, struct vobj **ret, int *ret_slot)
{
    struct vmfs *v = o->v;
    int r = -GR_ELOCKED;
    *ret = NULL;
    *ret_slot = -1;
    for (unsigned i = 0; o->origin_object && r == -GR_ELOCKED && i < ORIGIN_TRIES && !v->fenced && !v->leaving && !stays(v, *ret_slot); i++) {
        struct gr_err err = { 0 };
        if (i)
            gr_fiber_sleep_ms(500);
        r = vobj_hold(v, o->origin_object, 0, ret, ret_slot, &err);
        if (r < 0 && r != -GR_ELOCKED)
            vmfs_warn(v, "object %llu cannot be removed: its origin: %s", (unsigned long long)o->id, gr_err_text(&err, r));
    }
    return o->origin_object ? r : 0;
}

void origin_done(struct vobj *origin)
{
    if (!origin)
        return;
    struct vmfs *v = origin->v;
    uint64_t id = origin->id;
    origin->users--;
    gr_fqueue_wake_all(&origin->settled);
    reap_kick(origin);
    if (reap_parked(origin))
        (void)vobj_release_idle(v, id, NULL); /* deleted, and kept for other clones: whoever has those may need it */
}

/* One clone less hangs on it [sync]. @dying: the directory of those. */
void origin_let_go(struct vobj *origin, uint64_t snap, const struct vobj *dying)
{
    struct vsnap *s = vobj_snap(origin, snap);
    if (s && s->clones) {
        s->clones--;
        vobj_touch(origin);
    }
    for (size_t i = 0; i < dying->n_ents; i++)
        origin->dying |= dying->ents[i].id == origin->id; /* it was deleted before */
}

/* Nothing is left of @o but the inode, and the host that has its origin must go on: it gets it. Only that one is told, or hosts would give it to each
 * other that can do no more than we can. */
static int hand_over(struct vobj *o, int slot)
{
    struct vmfs *v = o->v;
    uint64_t id = o->id;
    if (!v->opts.resume || slot < 0)
        return -GR_ELOCKED;
    int r = ckpt_run(v);
    if (r < 0)
        return r;
    gr_fqueue_wake_all(&o->settled);
    if (vobj_release(v, o, NULL) == 0) /* gone from memory in any case; when the write failed, it is ours until we leave */
        v->opts.resume(v->opts.warn_arg, id, (unsigned)slot);
    return 0;
}

/* Nothing is left of it but the inode. The names, the counter and the inode change without a suspension in between, so they go home
 * in one checkpoint. */
int ns_bury(struct vobj *o)
{
    struct vmfs *v = o->v;
    struct vobj *root, *dying, *origin;
    struct gr_err err = { 0 };
    int slot, r = hold_origin(o, &origin, &slot);
    if (r == -GR_ELOCKED && !o->n_snaps && slot_empty(&o->live.root))
        return hand_over(o, slot);
    if (r < 0)
        return r;
    if (origin)
        origin->users++; /* nobody gives it up meanwhile */
    r = ns_begin(v, &root, &err);
    if (r < 0) {
        origin_done(origin);
        return r;
    }
    r = dir_load(v, VMFS_INODE_DYING, &dying, &err);
    if (r == 0 && (o->n_snaps || !slot_empty(&o->live.root)))
        r = -EAGAIN; /* it was marked as dying, but what it holds was not yet: once more */
    if (r == 0) {
        dir_remove(dying, o->id);
        if (origin)
            origin_let_go(origin, o->origin_snap, dying);
        inode_clear(v, o);
    }
    r = ns_end(v, r, &err);
    if (r == 0) {
        gr_fqueue_wake_all(&o->settled);
        vobj_release(v, o, &err);
    }
    origin_done(origin);
    return r;
}

void inode_clear(struct vmfs *v, struct vobj *o)
{
    o->ino.type = 0;
    o->ino.size = o->ino.used_units = 0;
    o->ino.n_snapshots = 0;
    if (o->ino.blob_addr)
        space_freed(v, o->ino.blob_addr, o->ino.blob_units, 1, v->ckpt_started + 1);
    o->ino.blob_addr = 0;
    o->ino.blob_units = o->ino.blob_bytes = 0;
    vkeys_free(o);
    vobj_touch(o);
}

/* An object made in an operation that failed. */
void ns_undo(struct vmfs *v, struct vobj *o)
{
    for (unsigned h = 0; h < VOBJ_HASH; h++)
        for (struct vobj *d = v->objs[h], *next; d; d = next) {
            next = d->hash_next;
            if (d->ino.type == VMFS_DIR && d->id != VMFS_INODE_ROOT && d->ino.block_generation == 0 && d != o)
                vobj_clean(d);
        }
    if (o && o->ino.type != VMFS_DIR) {
        o->ino.type = 0;
        vobj_clean(o);
        vobj_release(v, o, NULL);
    }
}

static bool parked_at_home(struct vmfs *v, uint64_t id)
{
    struct vobj *o;
    if (vobj_peek(v, id, &o, NULL) < 0)
        return false;
    o->dying = true;
    bool parked = reap_parked(o);
    vobj_free(o);
    return parked;
}

/* Whoever had it lost its name, or was making it, and came no further. */
static int keys_end(struct vobj *o)
{
    struct vmfs *v = o->v;
    struct gr_err err = { 0 };
    uint64_t id = o->id;
    o->users++; /* nobody gives it up meanwhile */
    int r = vkeys_destroy(o, &err);
    o->users--;
    gr_fqueue_wake_all(&o->settled);
    if (r < 0 && !v->fenced) {
        vmfs_warn(v, "object %llu cannot be removed: %s", (unsigned long long)id, gr_err_text(&err, r));
        o->dying = false;
        (void)vobj_release_idle(v, id, NULL); /* whoever resumes next tries it again */
    }
    return r;
}

/* One of the dying, if it still is: a new disk is among them while it is being filled, and then it is not. */
static void resume_one(struct vmfs *v, uint64_t id)
{
    struct vobj *root, *dying, *o = NULL;
    bool listed = false;
    if (vobj_find(v, id) || parked_at_home(v, id) || (v->opts.in_use && v->opts.in_use(v->opts.warn_arg, id)) || ns_begin(v, &root, NULL) < 0)
        return; /* one of ours, under way; or a file that somebody has open */
    int r = dir_load(v, VMFS_INODE_DYING, &dying, NULL);
    for (size_t i = 0; r == 0 && i < dying->n_ents; i++)
        listed |= dying->ents[i].id == id;
    if (listed && !vobj_find(v, id) && vobj_hold(v, id, 0, &o, NULL, NULL) == 0)
        o->dying = true;
    ns_end(v, -ECANCELED, NULL); /* no name changed */
    if (o && keys_end(o) == 0)
        ns_destroy(o);
}

static void resume_all(struct vmfs *v)
{
    struct vobj *dying;
    if (vobj_peek(v, VMFS_INODE_DYING, &dying, NULL) < 0)
        return;
    for (size_t i = 0; i < dying->n_ents && !v->fenced && !v->leaving; i++)
        resume_one(v, dying->ents[i].id);
    vobj_free(dying);
}

static void resume_work(void *arg)
{
    struct vmfs *v = arg;
    do {
        v->resume_again = false;
        resume_all(v);
    } while (v->resume_again && !v->fenced && !v->leaving);
    v->resuming = false;
    if (--v->background == 0)
        gr_fqueue_wake_all(&v->background_q);
}

void ns_resume(struct vmfs *v)
{
    if (v->role != VMFS_HOST || v->rescue)
        return;
    if (v->resuming) {
        v->resume_again = true;
        return;
    }
    v->background++;
    v->resuming = true;
    if (gr_fiber_start(v->loop, resume_work, v) < 0) {
        v->background--;
        v->resuming = false;
    }
}

struct resuming {
    struct vmfs *v;
    uint64_t id;
};
static void resume_object(void *arg)
{
    struct resuming *k = arg;
    struct vmfs *v = k->v;
    if (!v->fenced && !v->leaving)
        resume_one(v, k->id);
    free(k);
    if (--v->background == 0)
        gr_fqueue_wake_all(&v->background_q);
}

void vmfs_resume_object(struct vmfs *v, uint64_t id)
{
    struct resuming *k = v->role == VMFS_HOST && !v->leaving && !v->rescue ? gr_alloc(sizeof *k) : NULL;
    if (!k)
        return;
    *k = (struct resuming){ v, id };
    v->background++;
    if (gr_fiber_start(v->loop, resume_object, k) < 0) {
        v->background--;
        free(k);
    }
}

void vmfs_resume(struct vmfs *v)
{
    ns_resume(v);
}
