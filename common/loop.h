/* The event loop: one thread, one loop; a loop owns its objects and everything runs to completion on it.
 *
 * Two engines: GR_ENGINE_URING submits file I/O and polls sockets through one io_uring and enters the kernel once per
 * turn; GR_ENGINE_SYNC uses epoll and plain preadv/pwritev/fdatasync system calls (needed where system-call fault
 * injection must see each I/O, or where io_uring is not allowed). Both give the same semantics; completions are
 * always delivered from the loop, never inside the submit call.
 *
 * Thread rule: every function is for the loop's own thread, except gr_loop_post() and gr_loop_stop(). In a gang (common/gang.h) any of
 * its threads will do. */
#ifndef GR_LOOP_H
#define GR_LOOP_H
#include "common/err.h"
#include "common/seam.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct gr_loop;
enum gr_engine { GR_ENGINE_AUTO, GR_ENGINE_URING, GR_ENGINE_SYNC };
struct gr_loop_opts {
    enum gr_engine engine;        /* AUTO: io_uring where it works, unless GRANARY_ENGINE=sync is in the environment */
    unsigned ring_entries;        /* 0: 1024 */
    const struct gr_world *world; /* NULL: the real one */
};
/* Make a loop. @opts may be NULL. Errors: -ENOMEM, -ENOSYS (URING demanded but not there). Free with gr_loop_free. */
int gr_loop_new(const struct gr_loop_opts *opts, struct gr_loop **ret, struct gr_err *err);
void gr_loop_free(struct gr_loop *loop); /* NULL allowed; nothing may be pending */
enum gr_engine gr_loop_engine(const struct gr_loop *loop);
const struct gr_world *gr_loop_world(const struct gr_loop *loop);
uint64_t gr_loop_now_ns(struct gr_loop *loop); /* monotonic now */
/* Run until gr_loop_stop(). Returns 0. */
int gr_loop_run(struct gr_loop *loop);
/* One turn: deliver what is ready; wait for at most @timeout_ms (-1: until something happens) when nothing is. */
void gr_loop_turn(struct gr_loop *loop, int timeout_ms);
void gr_loop_stop(struct gr_loop *loop); /* any thread, async-signal-safe */

/* Deferred call: runs once, on the loop, later in this turn (before the loop waits). Memory is the caller's; arming an
 * armed one is a no-op. */
struct gr_defer {
    void (*fn)(void *arg);
    void *arg;
    struct gr_defer *next;
    bool armed;
};
void gr_loop_defer(struct gr_loop *loop, struct gr_defer *d);
/* In the next turn, after I/O has been looked at. */
void gr_loop_defer_later(struct gr_loop *loop, struct gr_defer *d);
void gr_loop_defer_cancel(struct gr_loop *loop, struct gr_defer *d);
/* Counts the turns: looks at I/O, and the calls that follow from what was seen. */
uint64_t gr_loop_turns(const struct gr_loop *loop);
/* Run fn(arg) on the loop, from any thread. Returns 0 or -ENOMEM. */
int gr_loop_post(struct gr_loop *loop, void (*fn)(void *arg), void *arg);

/* Timer: one-shot. Memory is the caller's; zero it before first use. */
struct gr_timer {
    void (*fn)(void *arg);
    void *arg;
    uint64_t due_ns;
    size_t heap_pos; /* 1-based; 0 = not armed */
};
int gr_timer_arm(struct gr_loop *loop, struct gr_timer *t, uint64_t after_ns); /* re-arming moves it; 0 or -ENOMEM */
void gr_timer_cancel(struct gr_loop *loop, struct gr_timer *t);

/* Readiness of a descriptor, level-triggered. @events and the reported ones are POLLIN/POLLOUT/POLLHUP/POLLERR. */
struct gr_watch {
    void (*fn)(void *arg, int events);
    void *arg;
    int fd;
    int events;
    void *priv; /* the loop's own */
};
int gr_watch_add(struct gr_loop *loop, struct gr_watch *w);      /* fd, events, fn, arg set by the caller */
int gr_watch_set(struct gr_loop *loop, struct gr_watch *w, int events); /* 0 events: dormant */
void gr_watch_del(struct gr_loop *loop, struct gr_watch *w);     /* before closing the fd; no call comes after it */

/* File I/O. The caller fills op..iovcnt and done; memory is the caller's until done() ran.
 * res: bytes transferred (may be short) or -errno. */
enum gr_fop { GR_FOP_READ, GR_FOP_WRITE, GR_FOP_FDATASYNC, GR_FOP_FALLOCATE };
struct gr_fio {
    enum gr_fop op;
    int fd;
    int rw_flags;            /* RWF_DSYNC or 0 (READ, WRITE); mode for FALLOCATE */
    uint64_t off;            /* bytes */
    uint64_t len;            /* bytes, FALLOCATE only */
    const struct iovec *iov; /* READ, WRITE */
    int iovcnt;
    bool aside;              /* READ, WRITE: on another core, where the engine has such (a ring's workers) */
    bool soon;               /* a device may be idle until it gets this: not at the end of the turn, where the engine can */
    int64_t res;
    void (*done)(struct gr_fio *fio);
    void *arg;
    struct gr_fio *next; /* the loop's own */
    unsigned seq;        /* the loop's own */
};
void gr_loop_file_io(struct gr_loop *loop, struct gr_fio *fio);
/* The same by a plain system call at once, done() within this call; in a gang, in the next turn. For files in memory. */
void gr_loop_file_io_now(struct gr_loop *loop, struct gr_fio *fio);

/* Run work(arg) on a bounded pool of threads (blocking calls: DNS, SQLite, compression), then done(arg, result) on
 * the loop. Returns 0 or -ENOMEM. */
int gr_loop_work(struct gr_loop *loop, int (*work)(void *arg), void (*done)(void *arg, int result), void *arg);

/* Deliver signal @signo (blocked by the call) as fn(arg, signo) on the loop. Once per signal and process. */
int gr_loop_signal(struct gr_loop *loop, int signo, void (*fn)(void *arg, int signo), void *arg);
/* Call fn(arg, wait status) on the loop when child @pid ends (pidfd); reaps it. */
int gr_loop_child(struct gr_loop *loop, int pid, void (*fn)(void *arg, int pid, int status), void *arg);
/* Nobody waits for it any more: fn is not called. */
void gr_loop_child_forget(struct gr_loop *loop, int pid);
#endif
