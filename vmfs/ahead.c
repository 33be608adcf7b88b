/* A database writes to its log and asks for a flush when it has heard of the write, over and over: the device would have nothing to do while the answer
 * goes there and the request comes back. So who has done the same some times in a row gets his flush when the last of his writes has ended: his request
 * finds it under way (journal_commit() waits for it, and finds nothing left to be done), or over. Only a habit that is kept counts: one who does
 * something else must do it as often before he is trusted again, so that one flush in as many is for nothing at worst. What is acknowledged, and when,
 * stays as it is: nobody is told that something is durable because of a flush that was begun before it had ended. */
#include "vmfs/ahead.h"
#include "vmfs/internal.h"

#define TRUSTED_AFTER 8u

void ahead_write(struct vobj *o)
{
    o->ahead.writes++;
}

void ahead_flush(struct vobj *o)
{
    struct vahead *a = &o->ahead;
    if (a->writes == a->usual)
        a->times += a->times < TRUSTED_AFTER;
    else
        a->times = 0;
    a->usual = a->writes;
    a->writes = 0;
    a->begun = false;
}

static void flush_work(void *arg)
{
    struct vmfs *v = arg;
    (void)journal_commit(v); /* a failure has given the volume up */
    if (--v->background == 0)
        gr_fqueue_wake_all(&v->background_q);
}

void ahead_settled(struct vobj *o)
{
    struct vmfs *v = o->v;
    struct vahead *a = &o->ahead;
    if (a->begun || a->times < TRUSTED_AFTER || !a->writes || a->writes != a->usual || o->in_flight)
        return;
    if (v->fenced || v->j.stopping || v->j.committing) /* committing: his own will be one with the next of others */
        return;
    a->begun = true;
    v->background++;
    if (gr_fiber_start(v->loop, flush_work, v) < 0)
        v->background--;
}
