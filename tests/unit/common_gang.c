/* Loops that share objects under one lock (common/gang.h). */
#include "common/gang.h"
#include "common/bdev.h"
#include "common/fiber.h"
#include "tests/lib/test.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOOPS 4u
static struct gr_err err;

/* Run @body as a fiber of a loop that is the home of a gang. */
struct run {
    struct gr_loop *home;
    struct gr_gang *gang;
    void (*body)(struct run *r);
};

static int in_gang(void *arg)
{
    struct run *r = arg;
    assert_int_equal(gr_gang_start(r->home, LOOPS - 1, &r->gang, &err), 0);
    assert_int_equal(gr_gang_size(r->gang), LOOPS);
    assert_ptr_equal(gr_gang_loop(r->gang, 0), r->home);
    r->body(r);
    gr_gang_stop(r->gang);
    return 0;
}

static void with_gang(void (*body)(struct run *r))
{
    static const enum gr_engine engines[] = {GR_ENGINE_URING, GR_ENGINE_SYNC};
    for (unsigned i = 0; i < 2; i++) {
        struct gr_loop_opts o = {.engine = engines[i]};
        struct run r = {.body = body};
        assert_int_equal(gr_loop_new(&o, &r.home, &err), 0);
        assert_int_equal(gr_fiber_run(r.home, in_gang, &r), 0);
        gr_loop_free(r.home);
    }
}

/* ---- calls and timers on each other's loops; what they touch has no lock of its own ---- */
#define HOPPERS 16u
#define HOPS 4000u
struct hopper {
    struct hop *all;
    struct gr_defer defer;
    struct gr_timer timer;
    unsigned left;
    uint64_t seed;
};
struct hop {
    struct run *r;
    struct gr_fiber *waits;
    struct hopper hoppers[HOPPERS];
    unsigned sum, running, on[LOOPS];
    pthread_t threads[LOOPS];
};

static void hop(void *arg)
{
    struct hopper *h = arg;
    struct hop *a = h->all;
    for (unsigned i = 0; i < LOOPS; i++)
        a->on[i] += pthread_equal(pthread_self(), a->threads[i]);
    a->sum++;
    if (!--h->left) {
        if (!--a->running)
            gr_fiber_wake(a->waits);
        return;
    }
    struct gr_loop *to = gr_gang_loop(a->r->gang, (unsigned)(test_rand(&h->seed) % LOOPS));
    switch (test_rand(&h->seed) % 4) {
    case 0:
        gr_timer_arm(to, &h->timer, test_rand(&h->seed) % 20000);
        break;
    case 1:
        gr_loop_defer_later(to, &h->defer);
        break;
    default:
        gr_loop_defer(to, &h->defer);
        break;
    }
}

static void learn_thread(void *arg)
{
    *(pthread_t *)arg = pthread_self();
}

static void hops(struct run *r)
{
    struct hop *a = calloc(1, sizeof *a);
    uint64_t seed = test_seed();
    a->r = r;
    a->waits = gr_fiber_self();
    for (unsigned i = 0; i < LOOPS; i++)
        assert_int_equal(gr_loop_post(gr_gang_loop(r->gang, i), learn_thread, &a->threads[i]), 0);
    gr_fiber_sleep_ms(50);
    a->running = HOPPERS;
    for (unsigned i = 0; i < HOPPERS; i++) {
        struct hopper *h = &a->hoppers[i];
        *h = (struct hopper){.all = a, .left = HOPS, .seed = test_rand(&seed), .defer = {.fn = hop, .arg = h}, .timer = {.fn = hop, .arg = h}};
        gr_loop_defer(gr_gang_loop(r->gang, i % LOOPS), &h->defer);
    }
    while (a->running)
        gr_fiber_suspend();
    assert_int_equal(a->sum, HOPPERS * HOPS);
    unsigned all = 0;
    for (unsigned i = 0; i < LOOPS; i++) {
        assert_in_range(a->on[i], HOPPERS * HOPS / LOOPS / 2, HOPPERS * HOPS / LOOPS * 2);
        all += a->on[i];
    }
    assert_int_equal(all, HOPPERS * HOPS); /* each on its loop's thread */
    free(a);
}

static void calls_and_timers(void **state)
{
    with_gang(hops);
}

/* ---- opened, others run ---- */
struct opened {
    int pipe[2];
    bool closed_again;
    struct gr_fiber *waits;
};

static void blocks(void *arg)
{
    struct opened *o = arg;
    char c;
    gr_gang_open();
    assert_int_equal(read(o->pipe[0], &c, 1), 1); /* comes only if the home can run */
    gr_gang_close();
    o->closed_again = true;
    gr_fiber_wake(o->waits);
}

static void opens(struct run *r)
{
    struct opened o = {.waits = gr_fiber_self()};
    assert_int_equal(pipe(o.pipe), 0);
    assert_int_equal(gr_loop_post(gr_gang_loop(r->gang, 1), blocks, &o), 0);
    gr_fiber_sleep_ms(20);
    assert_false(o.closed_again);
    assert_int_equal(write(o.pipe[1], "x", 1), 1);
    while (!o.closed_again)
        gr_fiber_suspend();
    close(o.pipe[0]);
    close(o.pipe[1]);
}

static void open_lets_others_run(void **state)
{
    with_gang(opens);
}

/* ---- a channel of the home, used by all; watches that others set and delete ---- */
#define BLOCK 4096u
#define BLOCKS 64u /* of one user */
struct user {
    struct files *all;
    struct gr_loop *loop;
    pthread_t thread;
    struct gr_bio bio;
    struct iovec iov;
    uint8_t *buf;
    unsigned first, done;
};
struct files {
    struct gr_chan *ch;
    struct gr_fiber *waits;
    unsigned running;
    struct user users[LOOPS];
};

static void next_io(struct user *u);

static void io_done(struct gr_bio *bio)
{
    struct user *u = bio->arg;
    assert_int_equal(bio->status, 0);
    assert_true(pthread_equal(pthread_self(), u->thread));
    if (u->done >= BLOCKS)
        for (unsigned i = 0; i < BLOCK; i++)
            assert_int_equal(u->buf[i], (uint8_t)(u->first + u->done % BLOCKS + i));
    u->done++;
    if (u->done < 2 * BLOCKS)
        next_io(u);
    else if (!--u->all->running)
        gr_fiber_wake(u->all->waits);
}

/* Its blocks are written, then read. */
static void next_io(struct user *u)
{
    unsigned block = u->first + u->done % BLOCKS;
    bool writes = u->done < BLOCKS;
    for (unsigned i = 0; i < BLOCK; i++)
        u->buf[i] = writes ? (uint8_t)(block + i) : 0;
    u->iov = (struct iovec){u->buf, BLOCK};
    u->bio = (struct gr_bio){.op = writes ? GR_OP_WRITE : GR_OP_READ, .off = (uint64_t)block * BLOCK, .len = BLOCK, .iov = &u->iov, .iovcnt = 1,
                             .done = io_done, .arg = u};
    gr_submit(u->all->ch, &u->bio);
}

static void use(void *arg)
{
    struct user *u = arg;
    u->thread = pthread_self();
    next_io(u);
}

static void files_under(struct run *r, const char *dir)
{
    struct files f = {.running = LOOPS, .waits = gr_fiber_self()};
    char path[64];
    snprintf(path, sizeof path, "%s/gang.XXXXXX", dir);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)LOOPS * BLOCKS * BLOCK), 0);
    close(fd);
    struct gr_bdev *dev;
    assert_int_equal(gr_bdev_file_open(r->home, path, NULL, &dev, &err), 0);
    assert_int_equal(gr_chan_open(dev, r->home, &f.ch), 0);
    for (unsigned i = 0; i < LOOPS; i++) {
        struct user *u = &f.users[i];
        *u = (struct user){.all = &f, .loop = gr_gang_loop(r->gang, i), .first = i * BLOCKS, .buf = aligned_alloc(BLOCK, BLOCK)};
        assert_int_equal(gr_loop_post(u->loop, use, u), 0);
    }
    while (f.running)
        gr_fiber_suspend();
    for (unsigned i = 0; i < LOOPS; i++)
        free(f.users[i].buf);
    gr_chan_close(f.ch);
    gr_bdev_put(dev);
    unlink(path);
}

static void files(struct run *r)
{
    files_under(r, "/dev/shm");
    files_under(r, "/var/tmp");
}

static void files_from_all_threads(void **state)
{
    with_gang(files);
}

TEST_MAIN(TEST(calls_and_timers), TEST(open_lets_others_run), TEST(files_from_all_threads))
