/* flock() and POSIX locks. Each host keeps the locks of its own processes. Whoever wants one has the lease of the file from when he asks the others
 * whether they have a lock that conflicts until he has his: so of two hosts one is the first. An unlock is nobody else's business; who waits asks
 * again. A host that dies takes its locks along. There is no detection of dead locks (EDEADLK). */
#include "common/seam.h"
#include "snapshot/mnt_int.h"
#include <fcntl.h>

#define ASK_AGAIN_MS 30u

static bool overlap(const struct mnt_lock *a, const struct mnt_lock *b)
{
    return a->start <= b->end && b->start <= a->end;
}

static bool same_owner(const struct mnt_lock *a, const struct mnt_lock *b)
{
    return a->mount == b->mount && a->owner == b->owner && a->flock == b->flock;
}

const struct mnt_lock *mnt_lock_conflict(const struct mnt_obj *o, const struct mnt_lock *want)
{
    for (const struct mnt_lock *l = o->locks; l; l = l->next)
        if (l->flock == want->flock && overlap(l, want) && (l->exclusive || want->exclusive) && !same_owner(l, want))
            return l;
    return NULL;
}

/* Take [start, end] of @range away from the locks of its owner; what sticks out stays. */
static int cut(struct mnt_obj *o, const struct mnt_lock *range)
{
    struct mnt_lock *spare = gr_alloc(sizeof(*spare)); /* for the one that is cut in two */
    if (!spare)
        return -ENOMEM;
    for (struct mnt_lock **p = &o->locks; *p;) {
        struct mnt_lock *l = *p;
        if (!same_owner(l, range) || !overlap(l, range)) {
            p = &l->next;
            continue;
        }
        bool head = l->start < range->start, tail = l->end > range->end;
        if (head && tail) { /* nothing else of it overlaps */
            *spare = *l;
            spare->start = range->end + 1;
            l->end = range->start - 1;
            l->next = spare;
            gr_fqueue_wake_all(&o->lock_wake);
            return 0;
        }
        if (head) {
            l->end = range->start - 1;
            p = &l->next;
        } else if (tail) {
            l->start = range->end + 1;
            p = &l->next;
        } else {
            *p = l->next;
            free(l);
        }
    }
    free(spare);
    gr_fqueue_wake_all(&o->lock_wake);
    return 0;
}

/* Those that @is_theirs says end; how many. */
static unsigned remove_locks(struct mnt_obj *o, bool (*is_theirs)(const struct mnt_lock *l, const struct mnt_lock *whose), const struct mnt_lock *whose)
{
    unsigned n = 0;
    for (struct mnt_lock **p = &o->locks; *p;) {
        struct mnt_lock *l = *p;
        if (is_theirs(l, whose)) {
            *p = l->next;
            free(l);
            n++;
        } else {
            p = &l->next;
        }
    }
    gr_fqueue_wake_all(&o->lock_wake);
    return n;
}

static bool same_mount(const struct mnt_lock *l, const struct mnt_lock *whose)
{
    return l->mount == whose->mount;
}

void mnt_locks_drop(struct mnt_obj *o, struct mnt_mount *m, uint64_t owner, bool flock)
{
    if (remove_locks(o, same_owner, &(struct mnt_lock){.mount = m, .owner = owner, .flock = flock}))
        (void)mnt_locks_keep(o, m); /* at worst the next daemon brings back what nobody has: it ends with the descriptor */
}

void mnt_locks_free(struct mnt_obj *o, const struct mnt_mount *m)
{
    remove_locks(o, same_mount, &(struct mnt_lock){.mount = m});
}

/* A conflict, here or elsewhere: 1 and *ret. */
static int conflict(struct mnt_obj *o, const struct mnt_lock *want, struct mnt_lock *ret)
{
    const struct mnt_lock *l = mnt_lock_conflict(o, want);
    bool any = false;
    if (l) {
        *ret = *l;
        return 1;
    }
    if (o->disk && o->alone)
        return 0;
    int r = mnt_peer_locks(o->vol->ds, o->id, want, ret, &any, NULL);
    if (r == 0 && !any && o->disk && o->busy && !o->handle)
        o->alone = true;
    return r;
}

static int try(struct mnt_mount *m, struct mnt_obj *o, const struct mnt_lock *want, struct mnt_lock *ret_conflict)
{
    int r = o->disk ? 0 : conflict(o, want, ret_conflict); /* before the lease is asked for: it is needed elsewhere, perhaps */
    if (r != 0)
        return r < 0 ? r : -EAGAIN;
    r = mnt_hold(o, MNT_PLAIN, NULL);
    if (r < 0)
        return r;
    r = conflict(o, want, ret_conflict);
    if (r == 0 && mnt_lock_conflict(o, want)) /* somebody here was quicker, while others were asked */
        r = 1;
    struct mnt_lock *l = r == 0 ? gr_alloc(sizeof(*l)) : NULL;
    if (r == 0)
        r = l ? cut(o, want) : -ENOMEM;
    if (r == 0) {
        *l = *want;
        l->next = o->locks;
        o->locks = l;
    } else {
        free(l);
    }
    mnt_drop(o);
    if (r == 0 && (r = mnt_locks_keep(o, m)) < 0) /* it would be lost with this process */
        (void)cut(o, want);
    return r == 1 ? -EAGAIN : r;
}

static struct mnt_lock wanted(const struct mnt_req *r, const struct fuse_lk_in *in)
{
    bool flock = in->lk_flags & FUSE_LK_FLOCK;
    return (struct mnt_lock){.mount = r->m, .owner = in->owner, .start = flock ? 0 : in->lk.start, .end = flock ? UINT64_MAX : in->lk.end,
                            .exclusive = in->lk.type == F_WRLCK, .flock = flock, .pid = in->lk.pid};
}

static struct mnt_obj *locked_obj(struct mnt_req *r, int *ret)
{
    struct vmfs_node n;
    uint64_t id = mnt_id(r->m, r->h.nodeid);
    struct mnt_obj *o = mnt_obj_find(r->m->ds, id);
    *ret = o ? 0 : vmfs_look(r->m->ds->v, id, "", &n, NULL);
    if (*ret == 0 && !o && n.type == VMFS_DIR)
        *ret = -ENOLCK;
    o = *ret == 0 ? mnt_obj_get(r->m->ds, id, o ? o->type : n.type) : NULL;
    if (*ret == 0 && !o)
        *ret = -ENOMEM;
    return o;
}

void mnt_op_getlk(struct mnt_req *r)
{
    const struct fuse_lk_in *in = r->body;
    struct mnt_lock want = wanted(r, in), c;
    int rc;
    struct mnt_obj *o = locked_obj(r, &rc);
    if (o) {
        rc = conflict(o, &want, &c);
        mnt_obj_put(o);
    }
    struct fuse_lk_out out = {.lk = in->lk};
    out.lk.type = F_UNLCK;
    if (rc == 1)
        out.lk = (struct fuse_file_lock){c.start, c.end, c.exclusive ? F_WRLCK : F_RDLCK, c.pid};
    if (rc < 0)
        mnt_fail(r, rc);
    else
        mnt_reply(r, &out, sizeof(out));
}

static int unlock(struct mnt_mount *m, struct mnt_obj *o, const struct mnt_lock *range)
{
    int r = o->locks ? cut(o, range) : 0;
    return r < 0 ? r : mnt_locks_keep(o, m);
}

static void set_lock(struct mnt_req *r, bool wait)
{
    const struct fuse_lk_in *in = r->body;
    struct mnt_lock want = wanted(r, in), c;
    int rc;
    struct mnt_obj *o = locked_obj(r, &rc);
    if (o && in->lk.type == F_UNLCK)
        rc = unlock(r->m, o, &want);
    else if (o)
        while ((rc = try(r->m, o, &want, &c)) == -EAGAIN && wait && !r->interrupted && !r->m->ending) {
            mnt_end(r); /* others may want to leave the datastore */
            r->waits = &o->lock_wake;
            (void)gr_fqueue_wait_ms(&o->lock_wake, ASK_AGAIN_MS);
            r->waits = NULL;
            if (r->m->ending || (rc = mnt_begin(r, NULL)) < 0)
                break;
        }
    if (o)
        mnt_obj_put(o);
    if (rc == -EAGAIN && wait && r->m->ending)
        return; /* the next process of the service is asked again */
    mnt_fail(r, rc == -EAGAIN && wait ? -EINTR : rc);
}

void mnt_op_setlk(struct mnt_req *r)
{
    set_lock(r, false);
}

void mnt_op_setlkw(struct mnt_req *r)
{
    set_lock(r, true);
}
