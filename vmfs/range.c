/* Admission: operations that change overlapping pieces go one after the other, in order of arrival. */
#include "vmfs/internal.h"

static bool overlaps(const struct vrange *a, const struct vrange *b)
{
    return a->first < b->end && b->first < a->end;
}

static void grant(struct vobj *o, struct vrange *r)
{
    r->granted = true;
    r->epoch = o->epoch;
    if (o->watch && !r->moves && r->first < o->watch->end && o->watch->first < r->end)
        o->watch->hit = true;
    o->in_flight++;
    r->grant(r);
}

static bool blocked(const struct vrange *r)
{
    for (const struct vrange *p = r->prev; p; p = p->prev)
        if (overlaps(p, r))
            return true;
    return false;
}

void range_enter(struct vobj *o, struct vrange *r)
{
    r->granted = false;
    r->next = NULL;
    r->prev = o->last_range;
    if (r->prev)
        r->prev->next = r;
    else
        o->ranges = r;
    o->last_range = r;
    if (o->frozen || blocked(r))
        o->waiting++;
    else
        grant(o, r);
}

static void grant_waiting(struct vobj *o)
{
    if (o->granting)
        return; /* called from below: the loop further up looks again */
    o->granting = true;
    for (bool again = true; again && o->waiting && !o->frozen;) {
        again = false;
        for (struct vrange *r = o->ranges; r; r = r->next)
            if (!r->granted && !blocked(r)) {
                o->waiting--;
                grant(o, r); /* may change the list: start over */
                again = true;
                break;
            }
    }
    o->granting = false;
}

void range_leave(struct vobj *o, struct vrange *r)
{
    if (r->prev)
        r->prev->next = r->next;
    else
        o->ranges = r->next;
    if (r->next)
        r->next->prev = r->prev;
    else
        o->last_range = r->prev;
    o->in_flight--;
    if (r->epoch < o->epoch && --o->late == 0)
        gr_fqueue_wake_all(&o->drained);
    if (o->in_flight == 0)
        gr_fqueue_wake_all(&o->drained);
    if (o->waiting)
        grant_waiting(o);
}

void disk_freeze(struct vobj *o)
{
    while (o->frozen)
        gr_fqueue_wait(&o->drained);
    o->frozen = true;
    while (o->in_flight)
        gr_fqueue_wait(&o->drained);
}

void disk_thaw(struct vobj *o)
{
    o->frozen = false;
    gr_fqueue_wake_all(&o->drained);
    grant_waiting(o);
}

void disk_wait_late(struct vobj *o)
{
    while (o->late)
        gr_fqueue_wait(&o->drained);
}
