/* Who has joined a volume on shared logical units, on a virtual clock: hosts that are silent are asked all at once. */
#include "common/cleanup.h"
#include "tests/lib/sim.h"
#include "tests/lib/test.h"
#include "vmfs/vmfs.h"
#include <string.h>

#define HOSTS 6u
#define S 1000000000ull
struct site {
    struct sim *sim;
    struct gr_mem *mem;
    struct host {
        struct site *site;
        unsigned number;
        struct sim_host *sim;
        struct gr_bdev *path;
        struct vmfs *v;
        bool joined, leave, over;
    } hosts[HOSTS];
    uint64_t took_ns;
    unsigned alive, silent;
    bool asked;
};

static bool all_joined(void *arg)
{
    const struct site *t = arg;
    for (unsigned i = 0; i < HOSTS; i++)
        if (!t->hosts[i].joined)
            return false;
    return true;
}

static void host_fiber(void *arg)
{
    struct host *h = arg;
    struct gr_err err = {0};
    const struct vmfs_format_opts f = {.name = "ds"};
    char name[8];
    snprintf(name, sizeof(name), "h%u", h->number);
    if (h->number == 0 && vmfs_format(sim_host_loop(h->sim), &h->path, 1, &f, &err) < 0)
        fail_msg("%s", err.text);
    while (h->number && !h->site->hosts[h->number - 1].joined)
        gr_fiber_sleep_ms(10);
    struct vmfs_join_opts o = {.role = VMFS_HOST, .host_name = name};
    o.host_uuid[0] = (uint8_t)h->number;
    if (vmfs_join(sim_host_loop(h->sim), &h->path, 1, &o, &h->v, &err) < 0)
        fail_msg("%s", err.text);
    h->joined = true;
    while (!h->leave)
        gr_fiber_sleep_ms(100);
    if (vmfs_leave(gr_take(h->v), &err) < 0)
        fail_msg("%s", err.text);
    gr_bdev_put(h->path);
    h->over = true;
}

static void count(void *arg, const struct vmfs_slot_info *i)
{
    struct site *t = arg;
    t->alive += i->alive;
    t->silent += strcmp(i->state, "free") != 0 && !i->alive;
}

static void roll_call(void *arg)
{
    struct site *t = arg;
    struct gr_err err = {0};
    uint64_t begin = sim_now_ns(t->sim);
    if (vmfs_slots(t->hosts[0].v, count, t, &err) < 0)
        fail_msg("%s", err.text);
    t->took_ns = sim_now_ns(t->sim) - begin;
    t->asked = true;
}

static bool was_asked(void *arg)
{
    return ((struct site *)arg)->asked;
}

static bool all_over(void *arg)
{
    const struct site *t = arg;
    for (unsigned i = 0; i < HOSTS; i++)
        if (!t->hosts[i].over)
            return false;
    return true;
}

static void call(struct site *t)
{
    t->asked = false;
    t->alive = t->silent = 0;
    assert_int_equal(gr_fiber_start(sim_host_loop(t->hosts[0].sim), roll_call, t), 0);
    assert_int_equal(sim_run(t->sim, was_asked, t, 60 * S), 0);
}

static void silent_ones(void **state)
{
    struct site t = {.sim = sim_new(1), .mem = gr_mem_new(256u << 20)};
    for (unsigned i = 0; i < HOSTS; i++) {
        struct gr_bdev *nexus = NULL;
        t.hosts[i] = (struct host){.site = &t, .number = i, .sim = sim_host_new(t.sim)};
        assert_int_equal(gr_bdev_mem_open_shared(sim_net(t.sim), t.mem, &nexus), 0);
        assert_int_equal(sim_path_open(t.hosts[i].sim, nexus, 20000, 400000, &t.hosts[i].path), 0);
        gr_bdev_put(nexus);
        assert_int_equal(gr_fiber_start(sim_host_loop(t.hosts[i].sim), host_fiber, &t.hosts[i]), 0);
    }
    assert_int_equal(sim_run(t.sim, all_joined, &t, 600 * S), 0);
    call(&t);
    assert_int_equal(t.alive, HOSTS);
    for (unsigned i = 1; i < HOSTS; i++)
        sim_stop(t.hosts[i].sim, true);
    sim_run(t.sim, was_asked, &(struct site){0}, 2 * S); /* until no earlier sign of life counts any more */
    call(&t);
    print_message("# %u of %u do not answer: known after %.2f s\n", t.silent, HOSTS, (double)t.took_ns / 1e9);
    assert_int_equal(t.silent, HOSTS - 1);
    assert_true(t.took_ns < 3 * S); /* one after the other it would be twice as many seconds as there are of them */
    for (unsigned i = 0; i < HOSTS; i++) {
        sim_stop(t.hosts[i].sim, false);
        t.hosts[i].leave = true;
    }
    assert_int_equal(sim_run(t.sim, all_over, &t, 600 * S), 0);
    for (unsigned i = 0; i < HOSTS; i++)
        sim_host_free(t.hosts[i].sim);
    gr_mem_free(t.mem);
    sim_free(t.sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(silent_ones)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
