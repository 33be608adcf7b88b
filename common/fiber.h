/* Fibers: stackful coroutines on a loop, for sequential logic (log-ins, metadata, jobs) without callback chains.
 * A fiber runs until it suspends; another never runs in between, so state needs no lock unless it must hold across a
 * suspension (then: gr_fmutex & co). Stacks are 256 KiB with a guard page, pooled. Known to ASan and TSan. */
#ifndef GR_FIBER_H
#define GR_FIBER_H
#include "common/loop.h"

struct gr_fiber;
/* Start fn(arg) as a fiber: runs from the loop, soon. Returns 0 or -ENOMEM. */
int gr_fiber_start(struct gr_loop *loop, void (*fn)(void *arg), void *arg);
/* For main() and tests, outside any fiber: run fn(arg) as a fiber and turn the loop until it has returned; its result. */
int gr_fiber_run(struct gr_loop *loop, int (*fn)(void *arg), void *arg);
struct gr_fiber *gr_fiber_self(void); /* NULL outside a fiber */
struct gr_loop *gr_fiber_loop(void);  /* loop of the running fiber */
/* Suspend the running fiber until gr_fiber_wake(). A wake that came first makes it return at once (one is remembered). */
void gr_fiber_suspend(void);
void gr_fiber_wake(struct gr_fiber *f); /* resumes from the loop, later this turn; same thread */
/* Let everything else that is ready run first. */
void gr_fiber_yield(void);
void gr_fiber_sleep_ms(uint64_t ms);
/* Wait until @fd is ready for @events (POLLIN/POLLOUT). Returns the ready events, or -ETIMEDOUT. @timeout_ms -1: for ever. */
int gr_fiber_wait_fd(int fd, int events, int64_t timeout_ms);
/* Run work(arg) on the thread pool and suspend until it is done; its result. */
int gr_fiber_work(int (*work)(void *arg), void *arg);
/* Wait for a child process to end; its wait status. */
int gr_fiber_wait_child(int pid);

/* Queue of waiting fibers, FIFO; zero-initialised. */
struct gr_fwait;
struct gr_fqueue {
    struct gr_fwait *head, *tail;
};
void gr_fqueue_wait(struct gr_fqueue *q);                            /* suspend until woken */
int gr_fqueue_wait_ms(struct gr_fqueue *q, uint64_t timeout_ms);     /* 0 woken, -ETIMEDOUT */
bool gr_fqueue_wake_one(struct gr_fqueue *q);                        /* false: nobody waits */
void gr_fqueue_wake_all(struct gr_fqueue *q);

/* Mutex and reader/writer lock between fibers of one loop; zero-initialised, fair (FIFO), not recursive. */
struct gr_fmutex {
    bool held;
    struct gr_fqueue q;
};
void gr_fmutex_lock(struct gr_fmutex *m);
bool gr_fmutex_trylock(struct gr_fmutex *m);
void gr_fmutex_unlock(struct gr_fmutex *m);
struct gr_frwlock {
    int state; /* -1 writer, n readers */
    unsigned writers_waiting;
    struct gr_fqueue q;
};
void gr_frwlock_read(struct gr_frwlock *l);
void gr_frwlock_write(struct gr_frwlock *l);
void gr_frwlock_unlock(struct gr_frwlock *l);
#endif
