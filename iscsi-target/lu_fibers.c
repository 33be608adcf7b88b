/* Commands that may suspend, in fibers. How many run at once is bounded; but each unit has some to itself, for what holds the others may end late: a device
 * that does not answer, the owner of a disk that is silent. */
#include "common/cleanup.h"
#include "iscsi-target/scsi.h"

static bool may_begin(const struct tgt_lu *lu)
{
    return lu->server->n_fibers < TGT_FIBERS_MAX || lu->fibers.running < TGT_FIBERS_OWN;
}

static void ended(struct tgt_lu *lu)
{
    lu->fibers.running--;
    lu->server->n_fibers--;
    lu->server->busy_fibers--;
}

/* The next unit behind @lu, or this one at last, one of whose commands waits and may begin. */
static struct tgt_lu *next_waiting(struct tgt_lu *lu)
{
    struct tgt_server *s = lu->server;
    struct tgt_lu *o = lu;
    if (!s->n_fiber_waiters)
        return NULL;
    do
        o = o->next ? o->next : s->lus;
    while (o != lu && !(o->fibers.waiters && may_begin(o)));
    return o->fibers.waiters && may_begin(o) ? o : NULL;
}

void tgt_fiber_leave(struct tgt_task *t)
{
    tgt_queue_remove(&t->lu->fibers.waiters, &t->lu->fibers.waiters_last, t);
    t->lu->server->n_fiber_waiters--;
    t->waiting_fiber = false;
}

static void in_fiber(void *arg)
{
    struct tgt_task *t = arg;
    struct tgt_lu *lu = t->lu;
    t->in_fiber = true;
    t->cmd->run(t);
    ended(lu);
    gr_fqueue_wake_all(&lu->server->changed);
    while ((lu = next_waiting(lu))) {
        t = lu->fibers.waiters;
        tgt_fiber_leave(t);
        tgt_scsi_resume(t);
    }
}

void tgt_scsi_fiber(struct tgt_task *t)
{
    struct tgt_lu *lu = t->lu;
    struct tgt_server *s = lu->server;
    if (!may_begin(lu)) {
        t->sess->running--;
        t->state = TASK_WAIT;
        t->waiting_fiber = true;
        s->n_fiber_waiters++;
        tgt_queue_add(&lu->fibers.waiters, &lu->fibers.waiters_last, t);
        return;
    }
    lu->fibers.running++;
    s->n_fibers++;
    s->busy_fibers++;
    if (gr_fiber_start(s->loop, in_fiber, t) < 0) {
        ended(lu);
        tgt_status(t, TGT_BUSY);
    }
}
