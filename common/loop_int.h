/* Inside of the loop: shared by loop*.c and fiber*.c only. */
#ifndef GR_LOOP_INT_H
#define GR_LOOP_INT_H
#include "common/loop.h"
#include <pthread.h>
#include <stdatomic.h>

/* The loop's side of a watch. It outlives the watch while the kernel still knows it (an armed io_uring poll). */
struct gr_wslot {
    struct gr_watch *w;     /* NULL: deleted */
    int fd;
    int wanted;             /* events asked for */
    int armed_events;       /* io_uring: mask of the poll in flight */
    bool armed;             /* io_uring: a poll is in flight */
    bool canceling;         /* io_uring: its removal is under way */
    bool dirty;             /* io_uring: on the list of slots to look at before the next submit */
    bool busy;              /* its callback runs right now */
    unsigned turn;          /* sync: last turn that called it */
    struct gr_wslot *next;  /* dirty list, or the other slots of the same fd (sync) */
};

/* A call to make on the loop, sent from another thread. */
struct gr_post {
    void (*fn)(void *arg);
    void *arg;
    struct gr_post *next;
    bool owned; /* free after the call */
};

struct gr_engine_ops {
    enum gr_engine id;
    int (*open)(struct gr_loop *loop, unsigned entries, struct gr_err *err);
    void (*close)(struct gr_loop *loop);
    void (*file_io)(struct gr_loop *loop, struct gr_fio *fio);
    int (*watch_add)(struct gr_loop *loop, struct gr_wslot *slot);
    void (*watch_set)(struct gr_loop *loop, struct gr_wslot *slot);
    void (*watch_del)(struct gr_loop *loop, struct gr_wslot *slot); /* owns the slot from here on */
    /* Submit, wait up to @wait_ns (-1: for ever) for something to be ready, deliver it. */
    void (*turn)(struct gr_loop *loop, int64_t wait_ns);
};
extern const struct gr_engine_ops gr_engine_uring, gr_engine_sync;

struct gr_defer_list {
    struct gr_defer *head, *tail;
};
struct gr_pool;
struct gr_signals;
struct gr_fiber;
struct gr_loop {
    const struct gr_engine_ops *engine;
    void *engine_priv;
    const struct gr_world *world;
    bool in_turn, closing;
    struct gr_defer_list ready, running, later; /* this turn, the batch being run, next turn */
    struct gr_timer **heap;                     /* 1-based */
    size_t heap_len, heap_cap, heap_reserved;
    pthread_mutex_t post_lock; /* guards post_head, post_tail */
    struct gr_post *post_head, *post_tail;
    atomic_bool stopping;
    uint64_t turns;
    struct gr_gang *gang;                    /* NULL: by itself */
    struct gr_loop *outer;                   /* whose turn this one is nested in */
    bool asleep;                             /* in a gang: waits without the lock, and wants to be roused */
    struct gr_fio *plain_head, *plain_tail;  /* in a gang: to be done by plain system calls, without the lock */
    int event_fd;
    struct gr_watch event_watch;
    struct gr_pool *pool;
    struct gr_signals *signals;
    struct gr_child *children;
    struct gr_fiber *idle_fibers;
    unsigned n_idle_fibers;
};

/* ---- gangs (gang.c): what a loop does about its lock; nothing when it has no gang ---- */
void gr_gang_begin(struct gr_loop *loop); /* around a turn: takes the lock, and this thread is the loop's */
void gr_gang_end(struct gr_loop *loop);
void gr_gang_sleep(struct gr_loop *loop); /* around a wait */
void gr_gang_wake(struct gr_loop *loop);
void gr_gang_rouse(struct gr_loop *loop); /* something was put into it: it must look, if it waits */
struct gr_loop *gr_gang_here(struct gr_loop *loop); /* the loop of @loop's gang whose thread this is, else @loop */
void gr_gang_plain(struct gr_loop *loop, struct gr_fio *fio); /* do it without the lock, soon */
bool gr_gang_run_plain(struct gr_loop *loop);
void gr_loop_kick(struct gr_loop *loop); /* any thread: it looks */

/* Like gr_loop_post(), with the caller's memory. Any thread. */
void gr_loop_post_node(struct gr_loop *loop, struct gr_post *p);
/* Reserve room for one more timer (0 or -ENOMEM), so that arming it cannot fail; arm such a one; give it back. */
int gr_timer_reserve(struct gr_loop *loop);
void gr_timer_arm_reserved(struct gr_loop *loop, struct gr_timer *t, uint64_t after_ns);
void gr_timer_unreserve(struct gr_loop *loop);
void gr_timers_run(struct gr_loop *loop);
uint64_t gr_timers_next_ns(const struct gr_loop *loop); /* UINT64_MAX: none */
void gr_pool_free(struct gr_pool *pool);
void gr_signals_free(struct gr_loop *loop);
void gr_fibers_free(struct gr_loop *loop);
/* Do @fio by plain system calls, now; sets res. */
void gr_fio_exec(struct gr_fio *fio);
#endif
