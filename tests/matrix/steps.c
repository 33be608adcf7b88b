/* Loaded into a host's daemon (LD_PRELOAD) whose datastore lies in a file, it looks at what is asked of the file and of its locks, and kills the process
 * at the moment that the plan in the file GRANARY_STEPS_FILE names (tests/lib/take_steps.h). GRANARY_STEPS_HOST is the host's number. Mapped once, at
 * the start, as clock.c does it. It sees what goes through a ring (liburing), not GRANARY_ENGINE=sync. */
#include "tests/lib/take_steps.h"
#include "vmfs/format.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <liburing.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#define KEY_BASE (1ull << 61) /* life locks: bytes from here on to twice as far (common/bdev_file_int.h) */

static struct take_plan *plan; /* set once, before main(), as is the next */
static unsigned host;

__attribute__((constructor)) static void map_plan(void)
{
    const char *number = getenv("GRANARY_STEPS_HOST");
    host = number ? (unsigned)strtoul(number, NULL, 10) : TAKE_HOSTS;
    plan = take_map(getenv("GRANARY_STEPS_FILE"));
}

static void *real(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

/* True: the process ends as soon as this has been asked of the kernel. */
static bool heed(enum take_verdict v)
{
    if (v == TAKE_KILL_HOLD)
        kill(getpid(), SIGKILL);
    return v == TAKE_KILL;
}

static bool look(const struct io_uring_sqe *s)
{
    bool one = s->opcode == IORING_OP_READ || s->opcode == IORING_OP_WRITE, many = s->opcode == IORING_OP_READV || s->opcode == IORING_OP_WRITEV;
    if (!one && !many)
        return false;
    const struct iovec *iov = (const struct iovec *)(uintptr_t)s->addr;
    uint64_t len = one ? s->len : 0;
    for (unsigned i = 0; many && i < s->len; i++)
        len += iov[i].iov_len;
    if (s->opcode == IORING_OP_READ || s->opcode == IORING_OP_READV)
        return heed(take_read(plan, host, 0, s->off / VMFS_UNIT, len / VMFS_UNIT));
    const void *data = one ? (const void *)(uintptr_t)s->addr : iov[0].iov_base;
    return (one ? len : iov[0].iov_len) >= VMFS_UNIT && heed(take_write(plan, host, data));
}

/* All that is about to be submitted. */
static bool look_all(const struct io_uring *ring)
{
    const struct io_uring_sq *q = &ring->sq;
    bool end = false;
    for (unsigned i = q->sqe_head; plan && plan->armed && i != q->sqe_tail; i++)
        end |= look(&q->sqes[i & *q->kring_mask]);
    return end;
}

static int submitted(bool end, int r)
{
    if (end)
        kill(getpid(), SIGKILL);
    return r;
}

int io_uring_submit(struct io_uring *ring)
{
    int (*fn)(struct io_uring *);
    *(void **)&fn = real("io_uring_submit");
    bool end = look_all(ring);
    return submitted(end, fn(ring));
}

int io_uring_submit_and_get_events(struct io_uring *ring)
{
    int (*fn)(struct io_uring *);
    *(void **)&fn = real("io_uring_submit_and_get_events");
    bool end = look_all(ring);
    return submitted(end, fn(ring));
}

int io_uring_submit_and_wait(struct io_uring *ring, unsigned n)
{
    int (*fn)(struct io_uring *, unsigned);
    *(void **)&fn = real("io_uring_submit_and_wait");
    bool end = look_all(ring);
    return submitted(end, fn(ring, n));
}

int io_uring_submit_and_wait_timeout(struct io_uring *ring, struct io_uring_cqe **cqe, unsigned n, struct __kernel_timespec *ts, sigset_t *mask)
{
    int (*fn)(struct io_uring *, struct io_uring_cqe **, unsigned, struct __kernel_timespec *, sigset_t *);
    *(void **)&fn = real("io_uring_submit_and_wait_timeout");
    bool end = look_all(ring);
    return submitted(end, fn(ring, cqe, n, ts, mask));
}

int fcntl(int fd, int cmd, ...)
{
    static int (*fn)(int, int, void *); /* the same whoever finds it */
    va_list ap;
    va_start(ap, cmd);
    void *arg = va_arg(ap, void *);
    va_end(ap);
    if (!fn)
        *(void **)&fn = real("fcntl");
    int r = fn(fd, cmd, arg);
    const struct flock *l = arg;
    if (r == 0 && plan && cmd == F_OFD_SETLK && l->l_type == F_WRLCK && (uint64_t)l->l_start >= KEY_BASE && (uint64_t)l->l_start < 2 * KEY_BASE &&
        take_other(plan, host, TAKE_CLAIM) != TAKE_GO)
        kill(getpid(), SIGKILL);
    return r;
}
