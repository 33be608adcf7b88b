/* Volumes on logical units that fence nobody, on a virtual clock: hosts that join at the same moment, with and without a compare-and-write of
 * the device; hosts that die, sleep, are declared gone and go on; a home that was copied. */
#include "common/cleanup.h"
#include "tests/lib/sim.h"
#include "tests/lib/test.h"
#include "vmfs/vmfs.h"
#include <stdio.h>
#include <string.h>

#define HOSTS 4u
#define S 1000000000ull
struct site {
    struct sim *sim;
    struct gr_mem *mem;
    uint64_t seed;
    struct host {
        struct site *site;
        unsigned number;
        struct sim_host *sim;
        struct gr_bdev *path;
        struct vmfs *v;
        int (*body)(struct host *h);
        bool over;
    } hosts[HOSTS];
    unsigned joins, refused, given_up;
    bool formatted;
};

/* As if another start of the home: what a host is for the others. */
static int join(struct host *h, unsigned as, const char *gone, struct vmfs **ret, struct gr_err *err)
{
    char name[8], address[16];
    snprintf(name, sizeof(name), "h%u", as);
    snprintf(address, sizeof(address), "/h%u.sock", as);
    struct vmfs_join_opts o = {.role = VMFS_HOST, .host_name = name, .address = address, .gone = gone};
    o.host_uuid[0] = (uint8_t)(as + 1);
    return vmfs_join(sim_host_loop(h->sim), &h->path, 1, &o, ret, err);
}

/* Its home's copy on another machine, which has another name. */
static int join_copy(struct host *h, unsigned of, struct gr_err *err)
{
    struct vmfs *v = NULL;
    struct vmfs_join_opts o = {.role = VMFS_HOST, .host_name = "copy", .address = "/h0.sock"};
    o.host_uuid[0] = (uint8_t)(of + 1);
    return vmfs_join(sim_host_loop(h->sim), &h->path, 1, &o, &v, err);
}

static bool given_up(struct vmfs *v)
{
    struct vmfs_info i;
    vmfs_info(v, &i);
    assert_true(i.one_host);
    return i.fenced;
}

static void wait_formatted(struct host *h)
{
    struct gr_err err = {0};
    const struct vmfs_format_opts f = {.name = "ds", .timing = VMFS_TIMING_FAST, .one_host = true};
    if (h->number == 0) {
        if (vmfs_format(sim_host_loop(h->sim), &h->path, 1, &f, &err) < 0)
            fail_msg("%s", err.text);
        h->site->formatted = true;
    }
    while (!h->site->formatted)
        gr_fiber_sleep_ms(10);
}

static void host_fiber(void *arg)
{
    struct host *h = arg;
    wait_formatted(h);
    h->body(h);
    gr_bdev_put(h->path);
    h->over = true;
}

static bool all_over(void *arg)
{
    const struct site *t = arg;
    for (unsigned i = 0; i < HOSTS; i++)
        if (!t->hosts[i].over)
            return false;
    return true;
}

static void run_site(struct site *t, int (*const bodies[HOSTS])(struct host *h), bool can_swap)
{
    t->sim = sim_new(t->seed);
    t->mem = gr_mem_new(64u << 20);
    for (unsigned i = 0; i < HOSTS; i++) {
        struct gr_bdev *nexus = NULL, *low = NULL;
        struct host *h = &t->hosts[i];
        *h = (struct host){.site = t, .number = i, .sim = sim_host_new(t->sim), .body = bodies[i]};
        assert_int_equal(gr_bdev_mem_open_shared(sim_net(t->sim), t->mem, &nexus), 0);
        assert_int_equal(gr_bdev_fault_open(sim_net(t->sim), nexus, &low), 0);
        if (!can_swap)
            assert_int_equal(gr_bdev_fault_add(low, &(struct gr_fault_rule){.op = GR_OP_COMPARE_WRITE, .code = -EOPNOTSUPP}), 0);
        assert_int_equal(sim_path_open(h->sim, low, 20000, 400000, &h->path), 0);
        gr_bdev_put(low);
        gr_bdev_put(nexus);
        assert_int_equal(gr_fiber_start(sim_host_loop(h->sim), host_fiber, h), 0);
    }
    int r = sim_run(t->sim, all_over, t, 3600 * S);
    if (r < 0)
        fail_msg("GRANARY_SEED=%llu: the site comes to no end: %d", (unsigned long long)t->seed, r);
    for (unsigned i = 0; i < HOSTS; i++)
        sim_host_free(t->hosts[i].sim);
    gr_mem_free(t->mem);
    sim_free(t->sim);
}

/* ---- all at once ---- */
static int rush(struct host *h)
{
    struct site *t = h->site;
    for (unsigned round = 0; round < 5;) {
        struct gr_err err = {0};
        int r = join(h, h->number, NULL, &h->v, &err);
        if (r == -GR_ELOCKED) {
            t->refused++;
            gr_fiber_sleep_ms(sim_below(t->sim, 40));
            continue;
        }
        if (r < 0)
            fail_msg("GRANARY_SEED=%llu: h%u: %s", (unsigned long long)t->seed, h->number, err.text);
        for (unsigned i = 0; i < HOSTS; i++)
            if (i != h->number && t->hosts[i].v && !given_up(t->hosts[i].v))
                fail_msg("GRANARY_SEED=%llu: h%u and h%u are both in", (unsigned long long)t->seed, i, h->number);
        t->joins++;
        round++;
        gr_fiber_sleep_ms(sim_below(t->sim, 3000));
        struct vmfs *v = gr_take(h->v);
        if (given_up(v)) {
            t->given_up++;
            vmfs_abandon(v);
        } else if (vmfs_leave(v, &err) < 0) {
            fail_msg("GRANARY_SEED=%llu: h%u: %s", (unsigned long long)t->seed, h->number, err.text);
        }
    }
    return 0;
}

static void rushes(bool can_swap)
{
    static int (*const bodies[HOSTS])(struct host *h) = {rush, rush, rush, rush};
    uint64_t seed = test_seed();
    struct site sum = {0};
    for (unsigned n = test_cases(8); n > 0; n--) {
        struct site t = {.seed = seed++};
        run_site(&t, bodies, can_swap);
        sum.joins += t.joins;
        sum.refused += t.refused;
        sum.given_up += t.given_up;
    }
    print_message("# %s compare-and-write: %u joins, %u refused, %u given up\n", can_swap ? "with" : "without", sum.joins, sum.refused, sum.given_up);
    assert_true(sum.refused > sum.joins);
}

static void rush_with_swap(void **state)
{
    rushes(true);
}

static void rush_without_swap(void **state)
{
    rushes(false);
}

/* ---- who is gone, who is not ---- */
static int idle(struct host *h)
{
    return 0;
}

static int stays(struct host *h) /* until somebody has taken its place, or ends it */
{
    struct gr_err err = {0};
    if (join(h, h->number, NULL, &h->v, &err) < 0)
        fail_msg("%s", err.text);
    while (!h->over && !given_up(h->v))
        gr_fiber_sleep_ms(50);
    vmfs_abandon(gr_take(h->v));
    return 0;
}

static void refused(struct host *h, unsigned as, const char *gone, int code, const char *why)
{
    struct gr_err err = {0};
    struct vmfs *v = NULL;
    int r = join(h, as, gone, &v, &err);
    if (r != code || !strstr(err.text, why))
        fail_msg("%d, not %d, and '%s' does not say '%s'", r, code, err.text, why);
}

static int judge(struct host *h)
{
    struct site *t = h->site;
    struct host *other = &t->hosts[0];
    struct gr_err err = {0};
    while (!other->v)
        gr_fiber_sleep_ms(10);
    /* it lives */
    refused(h, 1, NULL, -GR_ELOCKED, "host 'h0' is at work");
    refused(h, 1, "h0", -GR_ELOCKED, "has just answered");
    refused(h, 0, NULL, -GR_ELOCKED, "at work"); /* a copy of its home */
    /* it sleeps */
    sim_stop(other->sim, true);
    gr_fiber_sleep_ms(3000);
    refused(h, 1, NULL, -GR_ELOCKED, "nothing can prove");
    assert_int_equal(join_copy(h, 0, &err), -GR_ELOCKED);
    refused(h, 1, "h", -ENOENT, "no host 'h'");
    refused(h, 1, "h00", -ENOENT, "no host 'h00'");
    refused(h, 1, NULL, -GR_ELOCKED, "recover ds --host h0");
    sim_stop(other->sim, false);
    gr_fiber_sleep_ms(3000);
    assert_false(given_up(other->v)); /* nobody has done it any harm */
    /* it is declared gone, and goes on */
    sim_stop(other->sim, true);
    gr_fiber_sleep_ms(3000);
    if (join(h, 1, "h0", &h->v, &err) < 0)
        fail_msg("%s", err.text);
    sim_stop(other->sim, false);
    gr_fiber_sleep_ms(2000);
    assert_true(other->over); /* it has given up */
    assert_false(given_up(h->v));
    refused(h, 0, NULL, -GR_ELOCKED, "host 'h1' is at work");
    /* this one dies; its home comes back by itself */
    vmfs_abandon(gr_take(h->v));
    refused(h, 2, NULL, -GR_ELOCKED, "nothing can prove");
    if (join(h, 1, NULL, &h->v, &err) < 0)
        fail_msg("%s", err.text);
    if (vmfs_leave(gr_take(h->v), &err) < 0)
        fail_msg("%s", err.text);
    refused(h, 2, "h1", -ENOENT, "nothing is to be recovered");
    return 0;
}

static void who_is_gone(void **state)
{
    static int (*const bodies[HOSTS])(struct host *h) = {stays, judge, idle, idle};
    struct site t = {.seed = 7};
    run_site(&t, bodies, true);
    t = (struct site){.seed = 8};
    run_site(&t, bodies, false);
}

/* ---- format, readers ---- */
static int formats(struct host *h)
{
    struct gr_err err = {0};
    struct vmfs *v = NULL;
    const struct vmfs_format_opts f = {.name = "other", .force = true, .one_host = true};
    struct vmfs_join_opts reader = {.role = VMFS_READER, .host_name = "reader", .address = ""};
    assert_int_equal(vmfs_join(sim_host_loop(h->sim), &h->path, 1, &reader, &v, &err), -EOPNOTSUPP);
    assert_non_null(strstr(err.text, "one host at a time"));
    if (join(h, 0, NULL, &v, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(vmfs_format(sim_host_loop(h->sim), &h->path, 1, &f, &err), -GR_ELOCKED);
    if (vmfs_leave(v, &err) < 0 || vmfs_format(sim_host_loop(h->sim), &h->path, 1, &f, &err) < 0)
        fail_msg("%s", err.text);
    return 0;
}

static void format_and_readers(void **state)
{
    static int (*const bodies[HOSTS])(struct host *h) = {formats, idle, idle, idle};
    struct site t = {.seed = 9};
    run_site(&t, bodies, true);
}

TEST_MAIN(TEST(rush_with_swap), TEST(rush_without_swap), TEST(who_is_gone), TEST(format_and_readers))
