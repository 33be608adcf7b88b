/* The loop under both engines. */
#include "common/loop.h"
#include "common/cleanup.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include "tests/lib/test.h"

struct ctx {
    struct gr_loop *loop;
    int count;
    char log[64];
    struct gr_defer d[3];
    struct gr_timer t[3];
    struct gr_watch w[4];
};

static int setup_engine(void **state, enum gr_engine engine)
{
    struct ctx *c = calloc(1, sizeof(*c));
    struct gr_loop_opts opts = {.engine = engine, .ring_entries = 8}; /* small: the queue overflows in the tests */
    struct gr_err err = {0};

    int r = gr_loop_new(&opts, &c->loop, &err);
    if (r < 0)
        print_message("%s\n", err.text);
    assert_int_equal(r, 0);
    assert_int_equal(gr_loop_engine(c->loop), engine);
    *state = c;
    return 0;
}

static int setup_uring(void **state)
{
    struct gr_loop *probe = NULL;

    if (gr_loop_new(&(struct gr_loop_opts){.engine = GR_ENGINE_URING}, &probe, NULL) < 0)
        return setup_engine(state, GR_ENGINE_SYNC); /* not allowed here: the other engine twice */
    gr_loop_free(probe);
    return setup_engine(state, GR_ENGINE_URING);
}

static int setup_sync(void **state)
{
    return setup_engine(state, GR_ENGINE_SYNC);
}

static int teardown(void **state)
{
    struct ctx *c = *state;

    gr_loop_free(c->loop);
    free(c);
    return 0;
}

static void mark(struct ctx *c, char what)
{
    if ((size_t)c->count < sizeof(c->log) - 1)
        c->log[c->count] = what;
    c->count++;
}

static void mark_a(void *arg) { mark(arg, 'a'); }
static void mark_b(void *arg) { mark(arg, 'b'); }
static void mark_c(void *arg) { mark(arg, 'c'); }

static void cancel_c(void *arg)
{
    struct ctx *c = arg;

    gr_loop_defer_cancel(c->loop, &c->d[2]);
    mark(c, 'x');
}

static void test_defer(void **state)
{
    struct ctx *c = *state;

    c->d[0] = (struct gr_defer){.fn = mark_a, .arg = c};
    c->d[1] = (struct gr_defer){.fn = mark_b, .arg = c};
    gr_loop_defer(c->loop, &c->d[0]);
    gr_loop_defer(c->loop, &c->d[1]);
    gr_loop_defer(c->loop, &c->d[0]); /* armed already */
    gr_loop_turn(c->loop, -1 * (c->count != 0));
    assert_string_equal(c->log, "ab");
    c->d[1] = (struct gr_defer){.fn = cancel_c, .arg = c};
    c->d[2] = (struct gr_defer){.fn = mark_c, .arg = c};
    gr_loop_defer(c->loop, &c->d[1]);
    gr_loop_defer(c->loop, &c->d[2]);
    gr_loop_turn(c->loop, 0);
    assert_string_equal(c->log, "abx");
}

static void test_timers(void **state)
{
    struct ctx *c = *state;
    uint64_t t0 = gr_loop_now_ns(c->loop);

    c->t[0] = (struct gr_timer){.fn = mark_a, .arg = c};
    c->t[1] = (struct gr_timer){.fn = mark_b, .arg = c};
    c->t[2] = (struct gr_timer){.fn = mark_c, .arg = c};
    assert_int_equal(gr_timer_arm(c->loop, &c->t[0], 30000000), 0);
    assert_int_equal(gr_timer_arm(c->loop, &c->t[1], 10000000), 0);
    assert_int_equal(gr_timer_arm(c->loop, &c->t[2], 1000000), 0);
    assert_int_equal(gr_timer_arm(c->loop, &c->t[2], 20000000), 0); /* moved */
    while (c->count < 3)
        gr_loop_turn(c->loop, -1);
    assert_string_equal(c->log, "bca");
    assert_in_range(gr_loop_now_ns(c->loop) - t0, 30000000, 3000000000u);
    gr_timer_arm(c->loop, &c->t[0], 1000);
    gr_timer_cancel(c->loop, &c->t[0]);
    gr_timer_cancel(c->loop, &c->t[0]);
    gr_loop_turn(c->loop, 5);
    assert_int_equal(c->count, 3);
}

struct ordered {
    struct gr_timer t;
    struct ctx *c;
    uint64_t *last_ns;
};

static void in_order(void *arg)
{
    struct ordered *o = arg;

    assert_true(o->t.due_ns >= *o->last_ns);
    *o->last_ns = o->t.due_ns;
    o->c->count++;
}

static void test_timer_heap(void **state)
{
    struct ctx *c = *state;
    enum { N = 2000 };
    struct ordered *o = calloc(N, sizeof(*o));
    unsigned seed = 7;
    uint64_t last_ns = 0;

    for (int i = 0; i < N; i++) {
        o[i] = (struct ordered){.t = {.fn = in_order, .arg = &o[i]}, .c = c, .last_ns = &last_ns};
        gr_timer_arm(c->loop, &o[i].t, (uint64_t)rand_r(&seed) % 20000000);
    }
    for (int i = 0; i < N; i += 3)
        gr_timer_arm(c->loop, &o[i].t, (uint64_t)rand_r(&seed) % 20000000);
    int left = N;
    for (int i = 0; i < N; i += 2, left--)
        gr_timer_cancel(c->loop, &o[i].t);
    while (c->count < left)
        gr_loop_turn(c->loop, -1);
    for (int i = 0; i < N; i++)
        assert_int_equal(o[i].t.heap_pos, 0);
    free(o);
}

static void timer_rearm(void *arg)
{
    struct ctx *c = arg;

    mark(c, 't');
    gr_timer_arm(c->loop, &c->t[0], 0);
}

static void test_timer_rearm(void **state)
{
    struct ctx *c = *state;

    c->t[0] = (struct gr_timer){.fn = timer_rearm, .arg = c};
    gr_timer_arm(c->loop, &c->t[0], 0);
    gr_loop_turn(c->loop, -1); /* comes back */
    gr_loop_turn(c->loop, -1);
    assert_int_equal(c->count, 2);
    gr_timer_cancel(c->loop, &c->t[0]);
}

/* ---- watches ---- */
static void on_ready(void *arg, int events)
{
    mark(arg, events & POLLIN ? 'i' : events & POLLOUT ? 'o' : 'h');
}

static void test_watch_level(void **state)
{
    struct ctx *c = *state;
    int fds[2];
    char b[8];

    assert_int_equal(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
    c->w[0] = (struct gr_watch){.fn = on_ready, .arg = c, .fd = fds[0], .events = POLLIN};
    assert_int_equal(gr_watch_add(c->loop, &c->w[0]), 0);
    gr_loop_turn(c->loop, 5);
    assert_int_equal(c->count, 0);
    assert_int_equal(write(fds[1], "xy", 2), 2);
    for (int i = 0; i < 3; i++) /* nobody reads: told again and again */
        gr_loop_turn(c->loop, 1000);
    assert_int_equal(c->count, 3);
    gr_watch_set(c->loop, &c->w[0], 0);
    gr_loop_turn(c->loop, 5);
    gr_loop_turn(c->loop, 5);
    assert_int_equal(c->count, 3);
    gr_watch_set(c->loop, &c->w[0], POLLIN);
    while (c->count < 4)
        gr_loop_turn(c->loop, 1000);
    assert_int_equal(read(fds[0], b, sizeof(b)), 2);
    int before = c->count;
    gr_loop_turn(c->loop, 5); /* at most one that was under way */
    gr_loop_turn(c->loop, 5);
    gr_loop_turn(c->loop, 5);
    assert_in_range(c->count, before, before + 1);
    gr_watch_del(c->loop, &c->w[0]);
    gr_watch_del(c->loop, &c->w[0]);
    assert_int_equal(write(fds[1], "z", 1), 1);
    before = c->count;
    gr_loop_turn(c->loop, 5);
    assert_int_equal(c->count, before);
    close(fds[0]);
    close(fds[1]);
}

static void test_watch_grow(void **state)
{
    struct ctx *c = *state;
    int sv[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sv), 0);
    c->w[0] = (struct gr_watch){.fn = on_ready, .arg = c, .fd = sv[0], .events = POLLIN};
    assert_int_equal(gr_watch_add(c->loop, &c->w[0]), 0);
    gr_loop_turn(c->loop, 2);
    gr_watch_set(c->loop, &c->w[0], POLLIN | POLLOUT);
    for (int i = 0; i < 10 && !c->count; i++)
        gr_loop_turn(c->loop, 100);
    assert_int_equal(c->log[0], 'o');
    gr_watch_set(c->loop, &c->w[0], POLLIN);
    c->count = 0;
    gr_loop_turn(c->loop, 2);
    gr_loop_turn(c->loop, 2);
    assert_int_equal(c->count, 0);
    close(sv[1]); /* hang-up is told though nobody asked */
    while (!c->count)
        gr_loop_turn(c->loop, 1000);
    gr_watch_del(c->loop, &c->w[0]);
    close(sv[0]);
}

static void del_all(void *arg, int events)
{
    struct ctx *c = arg;

    (void)events;
    for (int i = 0; i < 4; i++)
        gr_watch_del(c->loop, &c->w[i]);
    mark(c, 'd');
}

static void test_watch_delete_inside(void **state)
{
    struct ctx *c = *state;
    int fds[4][2];

    for (int i = 0; i < 4; i++) {
        assert_int_equal(pipe2(fds[i], O_CLOEXEC), 0);
        assert_int_equal(write(fds[i][1], "x", 1), 1);
        c->w[i] = (struct gr_watch){.fn = del_all, .arg = c, .fd = fds[i][0], .events = POLLIN};
        assert_int_equal(gr_watch_add(c->loop, &c->w[i]), 0);
    }
    while (!c->count)
        gr_loop_turn(c->loop, 1000);
    gr_loop_turn(c->loop, 2);
    gr_loop_turn(c->loop, 2);
    assert_string_equal(c->log, "d");
    for (int i = 0; i < 4; i++) {
        close(fds[i][0]);
        close(fds[i][1]);
    }
}

/* Two watches of one descriptor, one for each direction. */
static void test_watch_twice(void **state)
{
    struct ctx *c = *state;
    int sv[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sv), 0);
    c->w[0] = (struct gr_watch){.fn = on_ready, .arg = c, .fd = sv[0], .events = POLLIN};
    c->w[1] = (struct gr_watch){.fn = on_ready, .arg = c, .fd = sv[0], .events = POLLOUT};
    assert_int_equal(gr_watch_add(c->loop, &c->w[0]), 0);
    assert_int_equal(gr_watch_add(c->loop, &c->w[1]), 0);
    while (!c->count)
        gr_loop_turn(c->loop, 1000);
    assert_int_equal(c->log[0], 'o');
    gr_watch_del(c->loop, &c->w[1]);
    c->count = 0;
    assert_int_equal(write(sv[1], "x", 1), 1);
    while (!c->count)
        gr_loop_turn(c->loop, 1000);
    assert_int_equal(c->log[0], 'i');
    gr_watch_del(c->loop, &c->w[0]);
    close(sv[0]);
    close(sv[1]);
}

/* After watch_del and close, the peer sees the end at once: nothing of the loop holds the file. */
static void test_watch_close(void **state)
{
    struct ctx *c = *state;
    int sv[2];
    char b;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sv), 0);
    c->w[0] = (struct gr_watch){.fn = on_ready, .arg = c, .fd = sv[0], .events = POLLIN};
    assert_int_equal(gr_watch_add(c->loop, &c->w[0]), 0);
    gr_loop_turn(c->loop, 2);
    gr_watch_del(c->loop, &c->w[0]);
    close(sv[0]);
    assert_int_equal(read(sv[1], &b, 1), 0);
    close(sv[1]);
}

/* Watches added, changed, deleted, their descriptors closed and made anew, at random, from callbacks. No call comes for a
 * deleted one; in the end everything that is ready is told. */
enum { PAIRS = 16 };
struct churn {
    struct gr_loop *loop;
    struct peer {
        struct churn *all;
        struct gr_watch w;
        bool on;
        int told;
    } p[2 * PAIRS];
    unsigned seed;
    bool quiet;
};

static void peer_ready(void *arg, int events);

static void peer_on(struct peer *p, int fd, int events)
{
    p->w = (struct gr_watch){.fn = peer_ready, .arg = p, .fd = fd, .events = events};
    p->on = true;
    assert_int_equal(gr_watch_add(p->all->loop, &p->w), 0);
}

static void peer_off(struct peer *p)
{
    if (p->on)
        gr_watch_del(p->all->loop, &p->w);
    p->on = false;
}

static void pair_open(struct churn *ch, int i)
{
    int sv[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sv), 0);
    peer_on(&ch->p[2 * i], sv[0], POLLIN);
    peer_on(&ch->p[2 * i + 1], sv[1], POLLIN | POLLOUT);
}

static void pair_close(struct churn *ch, int i)
{
    for (int k = 2 * i; k <= 2 * i + 1; k++) {
        peer_off(&ch->p[k]);
        close(ch->p[k].w.fd);
    }
}

static void churn_some(struct churn *ch)
{
    struct peer *o;
    char b[16] = "x";

    for (int n = 2; n; n--) {
        unsigned who = (unsigned)rand_r(&ch->seed) % (2 * PAIRS);
        o = &ch->p[who];
        ssize_t got = 0;
        switch (rand_r(&ch->seed) % 7) {
        case 0:
            got = read(o->w.fd, b, sizeof(b));
            break;
        case 1:
            got = write(o->w.fd, b, 1);
            break;
        case 2:
            if (o->on)
                gr_watch_set(ch->loop, &o->w, rand_r(&ch->seed) % 4 ? POLLIN : 0);
            break;
        case 3:
            if (o->on)
                gr_watch_set(ch->loop, &o->w, POLLIN | POLLOUT);
            break;
        case 4:
            peer_off(o);
            break;
        case 5:
            if (!o->on)
                peer_on(o, o->w.fd, POLLIN | POLLOUT);
            break;
        case 6:
            pair_close(ch, (int)who / 2);
            pair_open(ch, (int)who / 2);
            break;
        }
        (void)got;
    }
}

static void peer_ready(void *arg, int events)
{
    struct peer *p = arg;
    struct churn *ch = p->all;

    assert_true(p->on);
    assert_true(events & (p->w.events | POLLHUP | POLLERR));
    p->told++;
    if (!ch->quiet)
        churn_some(ch);
}

static void test_watch_churn(void **state)
{
    struct ctx *c = *state;
    struct churn *ch = calloc(1, sizeof(*ch));

    ch->loop = c->loop;
    ch->seed = (unsigned)test_seed();
    for (int i = 0; i < 2 * PAIRS; i++)
        ch->p[i].all = ch;
    for (int i = 0; i < PAIRS; i++)
        pair_open(ch, i);
    for (int i = (int)test_cases(2000); i; i--) {
        gr_loop_turn(c->loop, 1);
        churn_some(ch);
    }
    ch->quiet = true;
    for (int i = 0; i < 2 * PAIRS; i++) {
        peer_off(&ch->p[i]);
        peer_on(&ch->p[i], ch->p[i].w.fd, i % 2 ? POLLOUT : 0);
        if (!(i % 2))
            gr_watch_set(c->loop, &ch->p[i].w, POLLOUT);
        ch->p[i].told = 0;
    }
    for (int i = 0; i < 5; i++)
        gr_loop_turn(c->loop, 10);
    for (int i = 0; i < 2 * PAIRS; i++)
        assert_in_range(ch->p[i].told, 1, 5);
    for (int i = 0; i < PAIRS; i++)
        pair_close(ch, i);
    free(ch);
}

/* ---- file I/O ---- */
static void io_done(struct gr_fio *fio)
{
    mark(fio->arg, 'f');
}

static void test_file_io(void **state)
{
    struct ctx *c = *state;
    enum { N = 100 };
    static struct gr_fio fio[N];
    static struct iovec iov[N][2];
    static uint32_t out[N][2], in[N][2];
    char path[] = "/tmp/granary-loop-XXXXXX";
    int fd = mkostemp(path, O_CLOEXEC);

    assert_true(fd >= 0);
    unlink(path);
    for (int pass = 0; pass < 2; pass++) {
        c->count = 0;
        for (uint32_t i = 0; i < N; i++) {
            uint32_t *p = pass ? in[i] : out[i];
            if (!pass)
                p[0] = i, p[1] = ~i;
            iov[i][0] = (struct iovec){p, i % 2 ? 4 : 8};
            iov[i][1] = (struct iovec){p + 1, 4};
            fio[i] = (struct gr_fio){.op = pass ? GR_FOP_READ : GR_FOP_WRITE, .fd = fd, .off = i * 8, .iov = iov[i],
                                     .iovcnt = i % 2 ? 2 : 1, .rw_flags = !pass && i == 7 ? RWF_DSYNC : 0, .done = io_done, .arg = c};
            gr_loop_file_io(c->loop, &fio[i]);
            assert_int_equal(c->count, 0); /* never inside the call */
        }
        while (c->count < N)
            gr_loop_turn(c->loop, 1000);
        for (int i = 0; i < N; i++)
            assert_int_equal(fio[i].res, 8);
    }
    assert_memory_equal(in, out, sizeof(in));
    fio[0] = (struct gr_fio){.op = GR_FOP_FALLOCATE, .fd = fd, .rw_flags = FALLOC_FL_KEEP_SIZE, .off = 1 << 20, .len = 4096, .done = io_done, .arg = c};
    fio[1] = (struct gr_fio){.op = GR_FOP_FDATASYNC, .fd = fd, .done = io_done, .arg = c};
    fio[2] = (struct gr_fio){.op = GR_FOP_READ, .fd = fd, .off = N * 8 - 4, .iov = iov[0], .iovcnt = 1, .done = io_done, .arg = c};
    fio[3] = (struct gr_fio){.op = GR_FOP_READ, .fd = -1, .iov = iov[0], .iovcnt = 1, .done = io_done, .arg = c};
    for (int i = 0; i < 4; i++)
        gr_loop_file_io(c->loop, &fio[i]);
    while (c->count < N + 4)
        gr_loop_turn(c->loop, 1000);
    assert_int_equal(fio[0].res, 0);
    assert_int_equal(fio[1].res, 0);
    assert_int_equal(fio[2].res, 4); /* short: the end of the file */
    assert_int_equal(fio[3].res, -EBADF);
    close(fd);
}

/* How many of 40 bytes that are written to a pipe one by one are there while nobody turns the loop. */
static void pipe_filled(struct ctx *c, bool soon, int *ret_there)
{
    enum { N = 40 };
    static struct gr_fio fio[N];
    static uint8_t byte;
    static const struct iovec iov = {&byte, 1};
    int fds[2];

    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    for (int i = 0; i < N; i++) {
        fio[i] = (struct gr_fio){.op = GR_FOP_WRITE, .fd = fds[1], .iov = &iov, .iovcnt = 1, .soon = soon, .done = io_done, .arg = c};
        gr_loop_file_io(c->loop, &fio[i]);
        assert_int_equal(ioctl(fds[0], FIONREAD, &ret_there[i]), 0);
    }
    while (c->count < N)
        gr_loop_turn(c->loop, 1000);
    c->count = 0;
    close(fds[0]);
    close(fds[1]);
}

static void test_file_io_soon(void **state)
{
    struct ctx wide = {0}, *c = &wide;
    struct gr_loop_opts opts = {.engine = GR_ENGINE_URING};
    int there[40];

    (void)state;
    assert_int_equal(gr_loop_new(&opts, &c->loop, NULL), 0);
    gr_loop_turn(c->loop, 0); /* the ring belongs to a thread from now on */
    pipe_filled(c, true, there); /* two for who has none, then as many as it has and one more; never one alone, which the wait takes along */
    for (int i = 0; i < 40; i++)
        assert_int_equal(there[i], i < 1 ? 0 : i < 4 ? 2 : i < 10 ? 5 : i < 22 ? 11 : i < 38 ? 23 : 39);
    pipe_filled(c, false, there);
    for (int i = 0; i < 40; i++)
        assert_int_equal(there[i], (i + 1) / 16 * 16);
    gr_loop_free(c->loop);
}

/* ---- threads ---- */
static void *poster(void *arg)
{
    struct ctx *c = arg;

    for (int i = 0; i < 1000; i++)
        if (gr_loop_post(c->loop, mark_a, c) < 0)
            break;
    return NULL;
}

static void test_post(void **state)
{
    struct ctx *c = *state;
    pthread_t t[2];

    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&t[i], NULL, poster, c), 0);
    while (c->count < 2000)
        gr_loop_turn(c->loop, 1000);
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], NULL);
    assert_int_equal(c->count, 2000);
}

static void *stopper(void *arg)
{
    struct ctx *c = arg;

    gr_loop_stop(c->loop);
    return NULL;
}

static void test_stop(void **state)
{
    struct ctx *c = *state;
    pthread_t t;

    assert_int_equal(pthread_create(&t, NULL, stopper, c), 0);
    assert_int_equal(gr_loop_run(c->loop), 0);
    pthread_join(t, NULL);
    gr_loop_stop(c->loop); /* before the run: not lost */
    assert_int_equal(gr_loop_run(c->loop), 0);
}

static int add_one(void *arg)
{
    return *(int *)arg + 1;
}

static void work_done(void *arg, int result)
{
    *(int *)arg = -result;
}

static void test_work(void **state)
{
    struct ctx *c = *state;
    int v[32], left;

    for (int i = 0; i < 32; i++) {
        v[i] = i;
        assert_int_equal(gr_loop_work(c->loop, add_one, work_done, &v[i]), 0);
    }
    do {
        gr_loop_turn(c->loop, 1000);
        left = 0;
        for (int i = 0; i < 32; i++)
            left += v[i] >= 0;
    } while (left);
    for (int i = 0; i < 32; i++)
        assert_int_equal(v[i], -(i + 1));
}

/* A loop may be made by one thread and turned by another. */
static void *turner(void *arg)
{
    struct ctx *c = arg;

    gr_timer_arm(c->loop, &c->t[0], 1000000);
    while (!c->count)
        gr_loop_turn(c->loop, -1);
    return NULL;
}

static void test_other_thread(void **state)
{
    struct ctx *c = *state;
    pthread_t t;

    c->t[0] = (struct gr_timer){.fn = mark_a, .arg = c};
    assert_int_equal(pthread_create(&t, NULL, turner, c), 0);
    pthread_join(t, NULL);
    assert_int_equal(c->count, 1);
}

/* ---- processes ---- */
static void on_signal(void *arg, int signo)
{
    assert_int_equal(signo, SIGUSR1);
    mark(arg, 's');
}

static void on_child(void *arg, int pid, int status)
{
    assert_true(pid > 0);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 7);
    mark(arg, 'k');
}

static void test_signal_child(void **state)
{
    struct ctx *c = *state;

    assert_int_equal(gr_loop_signal(c->loop, SIGUSR1, on_signal, c), 0);
    kill(getpid(), SIGUSR1);
    while (c->count < 1)
        gr_loop_turn(c->loop, 1000);
    int pid = fork();
    if (pid == 0)
        _exit(7);
    assert_int_equal(gr_loop_child(c->loop, pid, on_child, c), 0);
    while (c->count < 2)
        gr_loop_turn(c->loop, 1000);
    assert_string_equal(c->log, "sk");
    assert_int_equal(waitpid(pid, NULL, WNOHANG), -1); /* reaped */
}

static void test_idle(void **state)
{
    struct ctx *c = *state;
    struct rusage a, b;

    gr_loop_turn(c->loop, 0);
    getrusage(RUSAGE_THREAD, &a);
    gr_loop_turn(c->loop, 200);
    getrusage(RUSAGE_THREAD, &b);
    long us = (b.ru_utime.tv_sec - a.ru_utime.tv_sec + b.ru_stime.tv_sec - a.ru_stime.tv_sec) * 1000000 + b.ru_utime.tv_usec -
              a.ru_utime.tv_usec + b.ru_stime.tv_usec - a.ru_stime.tv_usec;
    assert_true(us < 50000);
}

#define BOTH(f) {#f " (io_uring)", f, setup_uring, teardown, NULL}, {#f " (sync)", f, setup_sync, teardown, NULL}
int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(test_defer), BOTH(test_timers), BOTH(test_timer_heap), BOTH(test_timer_rearm), BOTH(test_watch_level),
        BOTH(test_watch_grow), BOTH(test_watch_delete_inside), BOTH(test_watch_twice), BOTH(test_watch_close), BOTH(test_watch_churn), BOTH(test_file_io), cmocka_unit_test(test_file_io_soon),
        BOTH(test_post), BOTH(test_stop), BOTH(test_work), BOTH(test_other_thread), BOTH(test_signal_child), BOTH(test_idle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
