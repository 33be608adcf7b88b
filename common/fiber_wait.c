/* What a fiber can wait for: time, descriptors, threads, children, and other fibers (queue, mutex, reader/writer lock). */
#include "common/fiber_int.h"
#include "common/loop_int.h"
#include <assert.h>

void gr_fdone_wait(struct gr_fdone *d)
{
    d->waiting = true;
    while (!d->set)
        gr_fiber_suspend();
    d->waiting = false;
}

static void done_timer(void *arg)
{
    gr_fdone_set(arg);
}

static void arm(struct gr_fdone *d, uint64_t ms)
{
    struct gr_timer *t = gr_fiber_timer(d->fiber);

    t->fn = done_timer;
    t->arg = d;
    gr_timer_arm_reserved(gr_fiber_loop(), t, ms > UINT64_MAX / 1000000 ? UINT64_MAX : ms * 1000000);
}

static void disarm(struct gr_fdone *d)
{
    gr_timer_cancel(gr_fiber_loop(), gr_fiber_timer(d->fiber));
}

void gr_fiber_sleep_ms(uint64_t ms)
{
    struct gr_fdone d = {.fiber = gr_fiber_self()};

    arm(&d, ms);
    gr_fdone_wait(&d);
}

/* ---- descriptors ---- */
struct fd_wait {
    struct gr_fdone d;
    int events;
};

static void fd_ready(void *arg, int events)
{
    struct fd_wait *w = arg;

    w->events |= events;
    gr_fdone_set(&w->d);
}

int gr_fiber_wait_fd(int fd, int events, int64_t timeout_ms)
{
    struct gr_loop *loop = gr_fiber_loop();
    struct fd_wait w = {.d.fiber = gr_fiber_self()};
    struct gr_watch watch = {.fn = fd_ready, .arg = &w, .fd = fd, .events = events};

    int r = gr_watch_add(loop, &watch);
    if (r < 0)
        return r;
    if (timeout_ms >= 0)
        arm(&w.d, (uint64_t)timeout_ms);
    gr_fdone_wait(&w.d);
    disarm(&w.d);
    gr_watch_del(loop, &watch);
    return w.events ? w.events : -ETIMEDOUT;
}

/* ---- threads and children ---- */
struct result_wait {
    struct gr_fdone d;
    int (*work)(void *arg);
    void *arg;
    int result;
};

static int do_work(void *arg)
{
    struct result_wait *w = arg;

    return w->work(w->arg);
}

static void work_done(void *arg, int result)
{
    struct result_wait *w = arg;

    w->result = result;
    gr_fdone_set(&w->d);
}

int gr_fiber_work(int (*work)(void *arg), void *arg)
{
    struct result_wait w = {.d.fiber = gr_fiber_self(), .work = work, .arg = arg};

    int r = gr_loop_work(gr_fiber_loop(), do_work, work_done, &w);
    if (r < 0)
        return r;
    gr_fdone_wait(&w.d);
    return w.result;
}

static void child_ended(void *arg, int pid, int status)
{
    (void)pid;
    work_done(arg, status);
}

int gr_fiber_wait_child(int pid)
{
    struct result_wait w = {.d.fiber = gr_fiber_self()};

    int r = gr_loop_child(gr_fiber_loop(), pid, child_ended, &w);
    if (r < 0)
        return r;
    gr_fdone_wait(&w.d);
    return w.result;
}

/* ---- queues ---- */
struct gr_fwait {
    struct gr_fdone d;
    struct gr_fqueue *queue; /* NULL: woken */
    struct gr_fwait *next;
    bool writer;
};

/* Not inlined: gcc takes the queue's hold on the waiter's stack for a dangling pointer; it ends before the wait does. */
__attribute__((noinline)) static void enqueue(struct gr_fqueue *q, struct gr_fwait *w)
{
    w->d.fiber = gr_fiber_self();
    w->queue = q;
    w->next = NULL;
    if (q->tail)
        q->tail->next = w;
    else
        q->head = w;
    q->tail = w;
}

static struct gr_fwait *dequeue(struct gr_fqueue *q)
{
    struct gr_fwait *w = q->head;

    if (!w)
        return NULL;
    q->head = w->next;
    if (!q->head)
        q->tail = NULL;
    w->queue = NULL;
    return w;
}

static void unqueue(struct gr_fqueue *q, struct gr_fwait *w)
{
    struct gr_fwait *prev = NULL;

    for (struct gr_fwait *p = q->head; p != w; p = p->next)
        prev = p;
    if (prev)
        prev->next = w->next;
    else
        q->head = w->next;
    if (q->tail == w)
        q->tail = prev;
    w->queue = NULL;
}

void gr_fqueue_wait(struct gr_fqueue *q)
{
    struct gr_fwait w = {0};

    enqueue(q, &w);
    gr_fdone_wait(&w.d);
}

int gr_fqueue_wait_ms(struct gr_fqueue *q, uint64_t timeout_ms)
{
    struct gr_fwait w = {0};

    enqueue(q, &w);
    arm(&w.d, timeout_ms);
    gr_fdone_wait(&w.d);
    disarm(&w.d);
    if (!w.queue)
        return 0;
    unqueue(q, &w);
    return -ETIMEDOUT;
}

bool gr_fqueue_wake_one(struct gr_fqueue *q)
{
    struct gr_fwait *w = dequeue(q);

    if (w)
        gr_fdone_set(&w->d);
    return w != NULL;
}

void gr_fqueue_wake_all(struct gr_fqueue *q)
{
    while (gr_fqueue_wake_one(q))
        ;
}

/* ---- locks: handed over in FIFO order, so that a waiter is never overtaken ---- */
void gr_fmutex_lock(struct gr_fmutex *m)
{
    if (!m->held)
        m->held = true;
    else
        gr_fqueue_wait(&m->q);
}

bool gr_fmutex_trylock(struct gr_fmutex *m)
{
    if (m->held)
        return false;
    m->held = true;
    return true;
}

void gr_fmutex_unlock(struct gr_fmutex *m)
{
    assert(m->held);
    if (!gr_fqueue_wake_one(&m->q))
        m->held = false;
}

static void rw_wait(struct gr_frwlock *l, bool writer)
{
    struct gr_fwait w = {.writer = writer};

    enqueue(&l->q, &w);
    gr_fdone_wait(&w.d);
}

void gr_frwlock_read(struct gr_frwlock *l)
{
    if (l->state >= 0 && !l->q.head)
        l->state++;
    else
        rw_wait(l, false);
}

void gr_frwlock_write(struct gr_frwlock *l)
{
    if (l->state == 0 && !l->q.head) {
        l->state = -1;
        return;
    }
    l->writers_waiting++;
    rw_wait(l, true);
}

void gr_frwlock_unlock(struct gr_frwlock *l)
{
    assert(l->state != 0);
    l->state = l->state < 0 ? 0 : l->state - 1;
    while (l->q.head && (l->q.head->writer ? l->state == 0 : l->state >= 0)) {
        struct gr_fwait *w = dequeue(&l->q);
        if (w->writer) {
            l->state = -1;
            l->writers_waiting--;
        } else {
            l->state++;
        }
        gr_fdone_set(&w->d);
    }
}
