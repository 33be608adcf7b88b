/* Promote: a clone and the disk it was cloned from change places. The snapshot it starts at, and those before it, become the clone's, and the disk
 * they were of becomes a clone that starts there. No data and no map is touched: what is where, and when it was born, stays as it is.
 *
 * Both disks change in one checkpoint, so a cut leaves the one or the other. No record is made of either meanwhile (they are frozen, and who deletes
 * or notes something waits for that), as it could not be replayed on what was before. */
#include "common/seam.h"
#include "snapshot/snapshot.h"
#include "vmfs/internal.h"
#include "vmfs/notes.h"
#include <ctype.h>

struct place {
    uint64_t id; /* of a snapshot of the origin */
    size_t at;   /* in its table */
    bool goes;
};
struct promote {
    struct vmfs_disk *d;
    struct vobj *c, *a; /* the clone, its origin */
    struct vsnap *s;    /* where it starts */
    uint64_t lost;      /* units of the snapshot's own that the clone names no more */
    struct place *place; /* the snapshots of @a, by id */
    size_t n;
    struct usage_notes notes; /* what was counted while both went on */
    uint64_t noted, leaves_noted; /* checkpoint, and movement of leaves, behind which they may mean something else */
};

static int by_id(const void *x, const void *y)
{
    uint64_t a = *(const uint64_t *)x, b = *(const uint64_t *)y;
    return (a > b) - (a < b);
}

static struct place *place_of(const struct promote *p, uint64_t id)
{
    return p->n ? bsearch(&id, p->place, p->n, sizeof *p->place, by_id) : NULL;
}

static bool moves(const struct promote *p, uint64_t id)
{
    const struct place *at = place_of(p, id);
    return at && at->goes;
}

/* [sync] Which snapshots go: the one it starts at, and those before it. */
static int look_at_snapshots(struct promote *p, struct gr_err *err)
{
    const struct vobj *a = p->a;
    struct place *place = gr_realloc(p->place, (a->n_snaps + 1) * sizeof *place);
    if (!place)
        return gr_fail(err, -ENOMEM, "out of memory");
    p->place = place;
    p->n = a->n_snaps;
    for (size_t i = 0; i < p->n; i++)
        place[i] = (struct place){ a->snaps[i]->id, i, false };
    if (p->n)
        qsort(place, p->n, sizeof *place, by_id);
    for (struct place *at = place_of(p, p->c->origin_snap); at && !at->goes; at = place_of(p, a->snaps[at->at]->parent))
        at->goes = true;
    return 0;
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
static int may_promote(struct promote *p, struct gr_err *err)
{
    const struct vobj *a = p->a, *c = p->c;
    p->s = vobj_snap(p->a, c->origin_snap);
    int r = look_at_snapshots(p, err);
    if (r < 0)
        return r;
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
    c->snaps[c->n_snaps++] = s;
    a->ino.n_snapshots -= listed;
    c->ino.n_snapshots += listed;
    a->ino.used_units -= s->use.own;
    c->ino.used_units += s->use.own;
}

/* Is the attribute about a snapshot that goes? */
static bool note_goes(const struct promote *p, const struct vattr *n)
{
    static const char *const kinds[] = { VMFS_NOTE_PROTECTED "-", VMFS_NOTE_EXPIRES "-", SNAP_TEXT_ATTR };
    for (size_t i = 0; i < GR_ARRAY_LEN(kinds); i++) {
        size_t len = strlen(kinds[i]);
        char *end = NULL;
        if (strncmp(n->key, kinds[i], len) == 0 && isxdigit((unsigned char)n->key[len])) {
            uint64_t id = strtoull(n->key + len, &end, 16);
            return !*end && moves(p, id);
        }
    }
    return false;
}

static int take_notes(struct promote *p)
{
    int r = 0;
    for (size_t i = 0; r >= 0 && i < p->a->n_attrs; i++) {
        const struct vattr *n = &p->a->attrs[i];
        r = note_goes(p, n) ? vobj_attr_put(p->c, n->key, strlen(n->key), n->val, n->len) : 0;
    }
    return r;
}

static void drop_notes(struct promote *p)
{
    for (size_t i = p->a->n_attrs; i-- > 0;)
        if (note_goes(p, &p->a->attrs[i]))
            (void)vobj_attr_put(p->a, p->a->attrs[i].key, strlen(p->a->attrs[i].key), NULL, 0);
}

/* [sync] What can fail comes first. */
static int change_places(struct promote *p, struct gr_err *err)
{
    struct vobj *a = p->a, *c = p->c;
    struct vsnap *top = p->s;
    struct vsnap **room = gr_realloc(c->snaps, (a->n_snaps + 1) * sizeof *room);
    int r = room ? 0 : -ENOMEM;
    c->snaps = room ? room : c->snaps;
    if (r == 0)
        r = take_notes(p);
    if (r == 0)
        r = vobj_heir_of(c, a);
    if (r < 0)
        return gr_fail(err, r, "out of memory");
    drop_notes(p);
    size_t left = 0;
    for (size_t i = 0; i < a->n_snaps; i++) /* older ones first, as they are */
        if (moves(p, a->snaps[i]->id))
            take_snapshot(p, a->snaps[i]);
        else
            a->snaps[left++] = a->snaps[i];
    a->n_snaps = left;
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
    c->copied |= a->copied; /* what its snapshots have may be a copy's, too */
    c->use.lost = p->lost;
    vobj_touch(a);
    vobj_touch(c);
    return 0;
}

static int stopped(struct promote *p, struct gr_err *err)
{
    struct vmfs *v = p->c->v;
    bool good = v->ckpt_started == p->noted && v->leaves_moved == p->leaves_noted && !v->ckpt_writing; /* no leaf has got a new place since */
    int r = may_promote(p, err);
    if (r == 0)
        r = usage_lost(p->c, &p->c->live, p->a, p->s, good ? &p->notes : NULL, &p->lost, err);
    if (r == 0)
        r = may_promote(p, err); /* since then others had their turn */
    return r < 0 ? r : change_places(p, err);
}

/* What takes long, with both at work: most leaves are counted, and what is dirty goes home. The ticket is open: nothing that is freed from now on
 * is used again. */
static int ahead(struct promote *p, struct gr_err *err)
{
    int r = vmfs_checkpoint(p->c->v, err);
    if (r == 0)
        r = may_promote(p, err);
    if (r < 0)
        return r;
    struct vsnap *s = p->s;
    s->open++; /* it stays in its table */
    r = usage_lost_ahead(p->c, &p->c->live, p->a, s, &p->notes, err);
    s->open--;
    reap_kick(p->a);
    return r == 0 ? vmfs_checkpoint(p->c->v, err) : r;
}

static int change(struct promote *p, struct gr_err *err)
{
    struct vmfs *v = p->c->v;
    struct vticket ticket;
    struct vobj *root;
    ticket_open(v, &ticket);
    int r = ahead(p, err);
    if (r == 0)
        r = ns_begin(v, &root, err);
    p->noted = v->ckpt_started;
    p->leaves_noted = v->leaves_moved;
    ticket_close(v, &ticket); /* writes may wait for it, and we are about to wait for them */
    if (r < 0)
        return r;
    stop(p);
    r = p->d->o && !v->fenced && p->c->origin_object == p->a->id ? stopped(p, err) : gr_fail(err, -EAGAIN, "it changed meanwhile");
    r = ns_end(v, r, err);
    go_on(p);
    return r;
}

int snap_promote(struct vmfs_disk *d, struct gr_err *err)
{
    struct promote p = { .d = d, .c = d->o };
    if (!d->o || d->gone || d->o->v->fenced)
        return gr_fail(err, -GR_EFENCED, "'%s' is no longer ours", d->bdev.name);
    struct vmfs *v = d->o->v;
    if (!d->o->origin_object)
        return gr_fail(err, -EINVAL, "'%s' is no clone: there is nothing to change places with", d->bdev.name);
    int r = vobj_hold(v, d->o->origin_object, 2000, &p.a, NULL, err);
    if (r < 0)
        return gr_prefix(err, r, "'%s': the disk it was cloned from", d->bdev.name);
    p.a->users++; /* nobody gives it up meanwhile, */
    v->background++; /* nor leaves the volume */
    r = change(&p, err);
    if (--v->background == 0)
        gr_fqueue_wake_all(&v->background_q);
    p.a->users--;
    gr_fqueue_wake_all(&p.a->settled);
    usage_notes_done(&p.notes);
    free(p.place);
    return r < 0 ? gr_prefix(err, r, "'%s'", d->bdev.name) : 0;
}
