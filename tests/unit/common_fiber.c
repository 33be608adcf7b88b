/* Fibers: switching, waiting, locks. */
#include "tests/lib/test.h"
#include "common/fiber.h"
#include "common/cleanup.h"
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/wait.h>

struct ctx {
    struct gr_loop *loop;
    char log[128];
    size_t len;
    struct gr_fmutex m;
    struct gr_frwlock rw;
    struct gr_fqueue q;
    struct gr_fiber *f;
    int running, fd[2];
};

static int setup_engine(void **state, enum gr_engine engine)
{
    struct ctx *c = calloc(1, sizeof(*c));

    assert_int_equal(gr_loop_new(&(struct gr_loop_opts){.engine = engine}, &c->loop, NULL), 0);
    *state = c;
    return 0;
}
static int setup_auto(void **state) { return setup_engine(state, GR_ENGINE_AUTO); }
static int setup_sync(void **state) { return setup_engine(state, GR_ENGINE_SYNC); }

static int teardown(void **state)
{
    struct ctx *c = *state;

    gr_loop_free(c->loop);
    free(c);
    return 0;
}

static void mark(struct ctx *c, char what)
{
    if (c->len < sizeof(c->log) - 1)
        c->log[c->len++] = what;
}

static void start(struct ctx *c, void (*fn)(void *))
{
    c->running++;
    assert_int_equal(gr_fiber_start(c->loop, fn, c), 0);
}

static void run_all(struct ctx *c)
{
    while (c->running)
        gr_loop_turn(c->loop, 1000);
}

/* ---- basics ---- */
static int sum_deep(int n)
{
    volatile char pad[512];

    pad[0] = (char)n;
    gr_fiber_yield();
    return n == 0 ? 0 : (pad[0] == (char)n ? n : 0) + sum_deep(n - 1);
}

static int run_deep(void *arg)
{
    double x = *(double *)arg;

    assert_non_null(gr_fiber_self());
    int r = sum_deep(100);
    assert_true(x == *(double *)arg); /* floating point registers come back */
    return r;
}

static void test_run(void **state)
{
    struct ctx *c = *state;
    double x = 1.5;

    assert_null(gr_fiber_self());
    assert_int_equal(gr_fiber_run(c->loop, run_deep, &x), 5050);
    assert_null(gr_fiber_self());
}

static void yielder(void *arg)
{
    struct ctx *c = arg;
    char me = (char)('a' + c->running);

    for (int i = 0; i < 3; i++) {
        mark(c, me);
        gr_fiber_yield();
    }
    c->running--;
}

static void test_yield_many(void **state)
{
    struct ctx *c = *state;

    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 200; i++) /* more than the pool keeps */
            start(c, yielder);
        run_all(c);
    }
    assert_int_equal(c->len, sizeof(c->log) - 1);
}

static void waker(void *arg)
{
    struct ctx *c = arg;

    mark(c, 'w');
    gr_fiber_wake(c->f);
    gr_fiber_wake(c->f);
    c->running--;
}

static void sleeper(void *arg)
{
    struct ctx *c = arg;

    c->f = gr_fiber_self();
    gr_fiber_wake(c->f); /* remembered */
    gr_fiber_suspend();
    mark(c, '1');
    start(c, waker);
    gr_fiber_suspend();
    mark(c, '2');
    uint64_t t0 = gr_loop_now_ns(c->loop);
    gr_fiber_sleep_ms(20);
    assert_true(gr_loop_now_ns(c->loop) - t0 >= 20000000);
    c->running--;
}

static void test_wake_sleep(void **state)
{
    struct ctx *c = *state;

    start(c, sleeper);
    run_all(c);
    assert_string_equal(c->log, "1w2");
}

/* ---- the outside ---- */
static int add_one(void *arg)
{
    return *(int *)arg + 1;
}

static void pipe_writer(void *arg)
{
    struct ctx *c = arg;

    gr_fiber_sleep_ms(5);
    if (write(c->fd[1], "x", 1) == 1)
        mark(c, 'w');
    c->running--;
}

static int run_outside(void *arg)
{
    struct ctx *c = arg;
    int v = 41;

    assert_int_equal(gr_fiber_work(add_one, &v), 42);
    int pid = fork();
    if (pid == 0)
        _exit(3);
    int status = gr_fiber_wait_child(pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 3);
    assert_int_equal(pipe2(c->fd, O_CLOEXEC), 0);
    assert_int_equal(gr_fiber_wait_fd(c->fd[0], POLLIN, 5), -ETIMEDOUT);
    assert_int_equal(gr_fiber_wait_fd(c->fd[1], POLLOUT, -1), POLLOUT);
    start(c, pipe_writer);
    assert_int_equal(gr_fiber_wait_fd(c->fd[0], POLLIN, 5000), POLLIN);
    assert_int_equal(gr_fiber_wait_fd(-1, POLLIN, 5), -EBADF);
    close(c->fd[0]);
    close(c->fd[1]);
    return 0;
}

static void test_outside(void **state)
{
    struct ctx *c = *state;

    assert_int_equal(gr_fiber_run(c->loop, run_outside, c), 0);
    run_all(c);
}

/* ---- locks ---- */
static void locker(void *arg)
{
    struct ctx *c = arg;
    char me = (char)('0' + c->running);

    gr_fmutex_lock(&c->m);
    mark(c, me);
    gr_fiber_yield();
    gr_fiber_sleep_ms(1);
    mark(c, me);
    gr_fmutex_unlock(&c->m);
    c->running--;
}

static int run_mutex(void *arg)
{
    struct ctx *c = arg;

    assert_true(gr_fmutex_trylock(&c->m));
    assert_false(gr_fmutex_trylock(&c->m));
    for (int i = 0; i < 4; i++) {
        start(c, locker);
        gr_fiber_yield();
    }
    gr_fmutex_unlock(&c->m);
    assert_false(gr_fmutex_trylock(&c->m)); /* handed over: no overtaking */
    return 0;
}

static void test_mutex(void **state)
{
    struct ctx *c = *state;

    assert_int_equal(gr_fiber_run(c->loop, run_mutex, c), 0);
    run_all(c);
    assert_string_equal(c->log, "11223344");
    assert_false(c->m.held);
}

static void reader(void *arg)
{
    struct ctx *c = arg;

    gr_frwlock_read(&c->rw);
    mark(c, 'r');
    gr_fiber_sleep_ms(2);
    mark(c, 'R');
    gr_frwlock_unlock(&c->rw);
    c->running--;
}

static void writer(void *arg)
{
    struct ctx *c = arg;

    gr_frwlock_write(&c->rw);
    mark(c, 'w');
    gr_fiber_sleep_ms(2);
    mark(c, 'W');
    gr_frwlock_unlock(&c->rw);
    c->running--;
}

static void test_rwlock(void **state)
{
    struct ctx *c = *state;

    start(c, reader);
    start(c, reader);
    start(c, writer);
    start(c, reader); /* behind the writer */
    start(c, writer);
    run_all(c);
    assert_string_equal(c->log, "rrRRwWrRwW");
    assert_int_equal(c->rw.state, 0);
    assert_int_equal(c->rw.writers_waiting, 0);
}

static void queue_waiter(void *arg)
{
    struct ctx *c = arg;

    mark(c, gr_fqueue_wait_ms(&c->q, 3) == 0 ? 'k' : 't');
    c->running--;
}

static int run_queue(void *arg)
{
    struct ctx *c = arg;

    assert_false(gr_fqueue_wake_one(&c->q));
    for (int i = 0; i < 3; i++)
        start(c, queue_waiter);
    gr_fiber_yield();
    assert_true(gr_fqueue_wake_one(&c->q));
    gr_fiber_sleep_ms(20);
    assert_null(c->q.head); /* the others gave up and left */
    for (int i = 0; i < 2; i++)
        start(c, queue_waiter);
    gr_fiber_yield();
    gr_fqueue_wake_all(&c->q);
    return 0;
}

static void test_queue(void **state)
{
    struct ctx *c = *state;

    assert_int_equal(gr_fiber_run(c->loop, run_queue, c), 0);
    run_all(c);
    assert_string_equal(c->log, "kttkk");
}

static void test_no_memory(void **state)
{
    struct ctx *c = *state;

    for (int n = 0; n < 2; n++) {
        gr_alloc_fail_after(n, 1);
        int r = gr_fiber_start(c->loop, yielder, c);
        gr_alloc_fail_after(-1, 0);
        assert_int_equal(r, -ENOMEM);
    }
}

#define BOTH(f) {#f " (auto)", f, setup_auto, teardown, NULL}, {#f " (sync)", f, setup_sync, teardown, NULL}
TEST_MAIN(BOTH(test_run), BOTH(test_yield_many), BOTH(test_wake_sleep), BOTH(test_outside), BOTH(test_mutex), BOTH(test_rwlock), BOTH(test_queue),
          BOTH(test_no_memory))
