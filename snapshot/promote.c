/* Promote: a clone and the disk it was cloned from change places. The snapshot it starts at, and those before it, become the clone's, and the disk
 * they were of becomes a clone that starts there. No data and no map is touched: what is where, and when it was born, stays as it is.
 *
 * Both disks change in one checkpoint, so a cut leaves the one or the other. No record is made of either meanwhile (they are frozen, and who deletes
 * or notes something waits for that), as it could not be replayed on what was before. */
#include "common/seam.h"
#include "snapshot/snapshot.h"
#include "vmfs/internal.h"
#include "vmfs/notes.h"

struct promote {
    struct vmfs_disk *d;
    struct vobj *c, *a; /* the clone, its origin */
    struct vsnap *s;    /* where it starts */
    uint64_t lost;      /* units of the snapshot's own that the clone names no more */
};

static bool moves(const struct promote *p, uint64_t id)
{
    for (struct vsnap *s = p->s; s; s = vobj_snap(p->a, s->parent))
        if (s->id == id)
            return true;
    return false;
}

/* [sync] */
static int snapshot_may_move(const struct promote *p, const struct vsnap *s, struct gr_err *err)
{
    if (s->clones != (s == p->s))
        return gr_fail(err, -EBUSY, "other clones start at the snapshot '%s', or at this one", s->name);
    if (s->open)
        return gr_fail(err, -EBUSY, "its snapshot '%s' is being read", s->name);
    const struct vattr *part = vobj_note(p->a, VMFS_NOTE_PART, s->id);
    if (part)
        return gr_fail(err, -EBUSY, "the snapshot '%s' is part of one of the virtual machine '%.*s', which would lose it: delete that first (granary vm delete-snapshot)",
                       s->name, (int)part->len, (const char *)part->val);
    if (s->flags & VMFS_SNAP_DELETING && s->cursor)
        return gr_fail(err, -EAGAIN, "a deleted snapshot is being given back");
    return 0;
}

/* [sync] What stays with the origin must grow from the snapshot, or it would have two origins. */
static int may_promote(const struct promote *p, struct gr_err *err)
{
    const struct vobj *a = p->a, *c = p->c;
    int r = 0;
    if (!p->s || a->dying || c->dying)
        return gr_fail(err, -EINVAL, "the disk it was cloned from was deleted: what is needed of it is kept as long as that is so");
    if (c->n_snaps)
        return gr_fail(err, -EBUSY, "it has snapshots of its own: delete them first");
    if (a->ino.provision != VMFS_THIN || c->ino.provision != VMFS_THIN)
        return gr_fail(err, -EOPNOTSUPP, "only thin disks change places: a thick one's space is its own");
    if (!a->counted || !c->counted)
        return gr_fail(err, -EAGAIN, "its space is not counted yet");
    int64_t moved = 0;
    for (size_t i = 0; r == 0 && i < a->n_snaps; i++) {
        const struct vsnap *s = a->snaps[i];
        bool goes = moves(p, s->id);
        moved += goes ? (int64_t)s->use.own : 0;
        if (goes)
            r = snapshot_may_move(p, s, err);
        else if (s->parent != p->s->id && (!s->parent || moves(p, s->parent)))
            r = gr_fail(err, -EBUSY, "'%s' grew from a snapshot before the one it starts at (the disk was reverted)", s->name[0] ? s->name : "what was before a revert");
    }
    if (r == 0 && !quota_fits(c, moved))
        r = gr_fail(err, -EDQUOT, "what it would take over (%lld bytes) is more than the quota of its folder leaves", (long long)moved * (long long)VMFS_UNIT);
    if (r == 0 && a->parent_snap != p->s->id && (!a->parent_snap || moves(p, a->parent_snap)))
        r = gr_fail(err, -EBUSY, "the disk it was cloned from was reverted to before the snapshot");
    return r;
}

/* Both stand still: no write, nothing given back. */
static void stop(struct promote *p)
{
    struct vobj *c = p->c, *a = p->a;
    while (c->frozen || a->frozen || c->walker || a->walker) /* both or none: others stop several disks, too */
        gr_fqueue_wait(c->frozen ? &c->drained : a->frozen ? &a->drained : c->walker ? &c->settled : &a->settled);
    c->frozen = a->frozen = c->walker = a->walker = true;
    while (c->in_flight)
        gr_fqueue_wait(&c->drained);
    while (a->in_flight)
        gr_fqueue_wait(&a->drained);
}

static void go_on(struct promote *p)
{
    struct vobj *both[] = { p->c, p->a };
    for (unsigned i = 0; i < 2; i++) {
        both[i]->walker = false;
        gr_fqueue_wake_all(&both[i]->settled);
        disk_thaw(both[i]);
        reap_kick(both[i]);
    }
}

static void take_snapshot(struct promote *p, struct vsnap *s)
{
    struct vobj *a = p->a, *c = p->c;
    bool listed = !(s->flags & VMFS_SNAP_HIDDEN);
    size_t i = 0;
    while (a->snaps[i] != s)
        i++;
    memmove(a->snaps + i, a->snaps + i + 1, (a->n_snaps - i - 1) * sizeof *a->snaps);
    a->n_snaps--;
    c->n_snaps++;
    a->ino.n_snapshots -= listed;
    c->ino.n_snapshots += listed;
    a->ino.used_units -= s->use.own;
    c->ino.used_units += s->use.own;
}

/* What is said of a snapshot goes with it. */
#define NOTES 3u
static void note_key(unsigned i, uint64_t id, char ret[33])
{
    if (i == 2)
        snap_text_key(id, ret);
    else
        vobj_note_key(i ? VMFS_NOTE_EXPIRES : VMFS_NOTE_PROTECTED, id, ret);
}

static int take_notes(struct promote *p, uint64_t id)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < NOTES; i++) {
        char key[33];
        note_key(i, id, key);
        for (size_t k = 0; r == 0 && k < p->a->n_attrs; k++)
            if (strcmp(p->a->attrs[k].key, key) == 0)
                r = vobj_attr_put(p->c, key, strlen(key), p->a->attrs[k].val, p->a->attrs[k].len);
    }
    return r;
}

static void drop_notes(struct promote *p, uint64_t id)
{
    for (unsigned i = 0; i < NOTES; i++) {
        char key[33];
        note_key(i, id, key);
        (void)vobj_attr_put(p->a, key, strlen(key), NULL, 0);
    }
}

/* [sync] What can fail comes first. */
static int change_places(struct promote *p, struct gr_err *err)
{
    struct vobj *a = p->a, *c = p->c;
    struct vsnap *top = p->s;
    struct vsnap **room = gr_realloc(c->snaps, (a->n_snaps + 1) * sizeof *room);
    int r = room ? 0 : -ENOMEM;
    c->snaps = room ? room : c->snaps;
    for (struct vsnap *s = top; r == 0 && s; s = vobj_snap(a, s->parent))
        r = take_notes(p, s->id);
    if (r == 0)
        r = vobj_heir_of(c, a);
    if (r < 0)
        return gr_fail(err, r, "out of memory");
    size_t n = 0;
    for (size_t i = 0; i < a->n_snaps; i++) /* older ones first, as they are */
        if (moves(p, a->snaps[i]->id))
            c->snaps[n++] = a->snaps[i];
    for (size_t i = 0; i < n; i++) {
        drop_notes(p, c->snaps[i]->id);
        take_snapshot(p, c->snaps[i]);
    }
    for (size_t i = 0; i < a->n_snaps; i++)
        if (a->snaps[i]->parent == top->id) {
            a->snaps[i]->parent = 0;
            a->snaps[i]->use.lost = 0;
            a->snaps[i]->passed = 0;
        }
    if (a->parent_snap == top->id) {
        a->parent_snap = 0;
        a->use.lost = 0;
    }
    struct vobj above = { .origin_object = a->origin_object, .origin_snap = a->origin_snap, .origin_epoch = a->origin_epoch };
    a->origin_object = c->id;
    a->origin_snap = top->id;
    a->origin_epoch = top->epoch;
    c->origin_object = above.origin_object; /* the origin may be a clone itself */
    c->origin_snap = above.origin_snap;
    c->origin_epoch = above.origin_epoch;
    c->parent_snap = top->id;
    c->next_snap = GR_MAX(c->next_snap, a->next_snap);
    c->use.lost = p->lost;
    vobj_touch(a);
    vobj_touch(c);
    return 0;
}

static int stopped(struct promote *p, struct gr_err *err)
{
    struct vobj *c = p->c;
    p->s = vobj_snap(p->a, c->origin_snap);
    int r = may_promote(p, err);
    if (r == 0)
        r = usage_lost(c, &c->live, p->a, p->s, &p->lost, err);
    if (r == 0)
        r = may_promote(p, err); /* since then others had their turn */
    return r < 0 ? r : change_places(p, err);
}

int snap_promote(struct vmfs_disk *d, struct gr_err *err)
{
    struct promote p = { .d = d, .c = d->o };
    struct vobj *root;
    if (!d->o || d->gone || d->o->v->fenced)
        return gr_fail(err, -GR_EFENCED, "'%s' is no longer ours", d->bdev.name);
    struct vmfs *v = d->o->v;
    if (!d->o->origin_object)
        return gr_fail(err, -EINVAL, "'%s' is no clone: there is nothing to change places with", d->bdev.name);
    int r = vobj_hold(v, d->o->origin_object, 2000, &p.a, NULL, err);
    if (r < 0)
        return gr_prefix(err, r, "'%s': the disk it was cloned from", d->bdev.name);
    p.a->users++; /* nobody gives it up meanwhile */
    r = vmfs_checkpoint(v, err);
    if (r == 0)
        r = ns_begin(v, &root, err);
    if (r == 0) {
        stop(&p);
        r = d->o && !v->fenced && p.c->origin_object == p.a->id ? stopped(&p, err) : gr_fail(err, -EAGAIN, "it changed meanwhile");
        r = ns_end(v, r, err);
        go_on(&p);
    }
    p.a->users--;
    gr_fqueue_wake_all(&p.a->settled);
    return r < 0 ? gr_prefix(err, r, "'%s'", d->bdev.name) : 0;
}
