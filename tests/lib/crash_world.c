#include "tests/lib/crash_world.h"
#include "common/fiber.h"
#include "tests/lib/test.h"
#include <string.h>

#define TURN_NS 50000u

struct clock {
    uint64_t now_ns, rng;
};
static uint64_t mono_ns(void *arg) { return ((struct clock *)arg)->now_ns; }
static int64_t wall_s(void *arg) { return 1700000000 + (int64_t)(((struct clock *)arg)->now_ns / 1000000000u); }
static void random_bytes(void *arg, void *buf, size_t len)
{
    uint8_t *p = buf;
    for (size_t i = 0; i < len; i++)
        p[i] = (uint8_t)test_rand(&((struct clock *)arg)->rng);
}

struct body {
    int (*fn)(void *arg);
    void *arg;
    int result;
    bool done;
};
static void run(void *arg)
{
    struct body *b = arg;
    b->result = b->fn(b->arg);
    b->done = true;
}

void crash_world_run(uint64_t seed, int (*fn)(void *arg), void *arg)
{
    struct clock clock = { .now_ns = 1000000000u, .rng = seed ^ 0x2545f4914f6cdd1dull };
    struct gr_world world = { &clock, mono_ns, wall_s, random_bytes };
    struct gr_loop_opts opts = { .engine = GR_ENGINE_SYNC, .world = &world };
    struct body b = { fn, arg, -1, false };
    struct gr_loop *loop = NULL;
    assert_int_equal(gr_loop_new(&opts, &loop, NULL), 0);
    assert_int_equal(gr_fiber_start(loop, run, &b), 0);
    while (!b.done) {
        gr_loop_turn(loop, 0);
        clock.now_ns += TURN_NS;
    }
    for (int i = 0; i < 100; i++) /* fibers that only have to end */
        gr_loop_turn(loop, 0);
    gr_loop_free(loop);
    assert_int_equal(b.result, 0);
}
