/* Many hosts on one volume of shared logical units, on a virtual clock (tests/lib/sim.h): hosts stop for longer than every timeout with
 * writes on their way, never come back, are cut off from one device, lose answers; the storage stands still for everybody. Every write
 * carries (disk, piece, number), and an oracle says what may be read. GRANARY_SEED=N runs one seed, GRANARY_TRIALS=N so many. */
#include "tests/lib/cluster.h"
#include "tests/model/order.h"
#include "tests/lib/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define S 1000000000ull
#define MS 1000000ull

/* What struck a host, and how far it was in taking another's slot over: each of these must have led to take-overs. */
enum { STOPPED, KILLED, CUT, KINDS };
enum { AT_WORK, JOINING, ASKING, EJECTING, EJECTED, REPLAYING, PLACES };
static const char *const kind_names[KINDS] = { "stopped", "killed", "cut off" };
static const char *const place_names[PLACES] = { "at work", "joining", "asking", "ejecting", "having ejected", "replaying" };
static struct cl_host *any(struct cl_site *t)
{
    return cl_host_of(t, (unsigned)sim_below(t->sim, t->hosts));
}

static void strike(struct cl_host *h, unsigned kind)
{
    static const unsigned char places[] = { [MT_ASKED] = ASKING, [MT_SILENT] = EJECTING, [MT_ENDED] = EJECTED, [MT_SECOND] = EJECTED, [MT_MARKED] = REPLAYING,
                                            [MT_REPLAY] = REPLAYING };
    unsigned phase = h->t->conform ? conform_phase(h->t->conform, h->sim) : MT_NONE;
    h->disturbed = true;
    h->struck = kind * PLACES + (phase >= MT_ASKED ? places[phase] : h->v ? AT_WORK : JOINING) + 1;
}

static void on_victim(void *arg, struct sim_host *victim)
{
    struct cl_site *t = arg;
    for (struct cl_host *h = t->incs; h; h = h->next)
        if (h->sim == victim && h->struck)
            t->cells[h->struck - 1]++;
}

static void stopped_for_a_while(void *arg)
{
    struct cl_host *h = arg;
    if (h->t->stopping || h->over)
        return;
    strike(h, STOPPED);
    h->t->stops++;
    cl_loud(h, "is stopped");
    sim_stop(h->sim, true);
    cl_nap(h->t, 60000);
    if (!h->dead)
        sim_stop(h->sim, false);
    cl_loud(h, "may go on");
}

static void killed(void *arg) /* or stopped for so long that another takes its name, and goes on when nobody expects it */
{
    struct cl_host *h = arg;
    if (h->t->stopping || h->over)
        return;
    strike(h, KILLED);
    h->dead = true;
    h->t->deaths++;
    cl_loud(h, "dies");
    h->corpse = sim_below(h->t->sim, 2);
    h->t->corpses += h->corpse;
    h->t->homes[h->host] += !h->corpse;
    sim_stop(h->sim, true);
    cl_nap(h->t, 20000);
    if (!h->t->stopping)
        cl_host_start(h->t, h->host);
    cl_nap(h->t, 60000);
    if (!h->corpse)
        sim_stop(h->sim, false);
}

static void cut_off(void *arg)
{
    struct cl_host *h = arg;
    if (h->t->stopping || h->over)
        return;
    struct gr_bdev *path = gr_bdev_get(h->path[sim_below(h->t->sim, h->t->n_devices)]);
    strike(h, CUT);
    h->t->cuts++;
    cl_loud(h, "is cut off");
    sim_path_cut(path, true);
    cl_nap(h->t, 20000);
    sim_path_cut(path, h->t->stalled); /* not before everybody's is */
    gr_bdev_put(path);
}
/* Whoever takes over is stopped, or dies, at any step of it. */
struct blow {
    struct cl_host *h;
    unsigned kind;
    uint64_t after_ms;
};
static void half_way(void *arg)
{
    struct blow b = *(struct blow *)arg;
    free(arg);
    if (b.after_ms)
        gr_fiber_sleep_ms(b.after_ms);
    if (b.h->over || b.h->dead || sim_stopped(b.h->sim))
        return;
    b.h->t->halves++;
    if (b.kind == KILLED)
        killed(b.h);
    else if (b.kind == CUT)
        cut_off(b.h);
    else
        stopped_for_a_while(b.h);
}

static void on_eject(void *arg, struct sim_host *sim)
{
    struct cl_site *t = arg;
    for (struct cl_host *h = t->incs; h; h = h->next)
        if (h->sim == sim && sim_below(t->sim, 3) == 0) {
            struct blow *b = calloc(1, sizeof *b);
            *b = (struct blow){ h, (unsigned)sim_below(t->sim, KINDS), sim_below(t->sim, 40) };
            assert_int_equal(gr_fiber_start(sim_net(t->sim), half_way, b), 0);
        }
}

static void nemesis(void *arg)
{
    struct cl_site *t = arg;
    uint64_t end = sim_now_ns(t->sim) + t->span_s * S, pause_ms = t->hosts > CL_HOSTS ? 6000 * CL_HOSTS / t->hosts : 6000;
    while (sim_now_ns(t->sim) < end) {
        gr_fiber_sleep_ms(pause_ms / 30 + sim_below(t->sim, pause_ms));
        struct cl_host *h = any(t);
        unsigned what = (unsigned)sim_below(t->sim, 10);
        if (h && !sim_stopped(h->sim) && what < 8)
            assert_int_equal(gr_fiber_start(sim_net(t->sim), what < 4 ? stopped_for_a_while : what < 6 ? killed : cut_off, h), 0);
        if (what == 9 && sim_below(t->sim, 4) == 0) {
            t->stalls++;
            if (h)
                cl_loud(h, "(and everybody) waits for the storage");
            cl_cut_all(t, true);
            gr_fiber_sleep_ms(60000);
            cl_cut_all(t, false);
        }
    }
    cl_finish(t);
}
/* @hosts, @disks: of a large site; 0: a small one, whose steps are held to the order. */
static void trial(uint64_t seed, unsigned hosts, unsigned disks, struct cl_site *ret)
{
    struct cl_site t = { .sim = sim_new(seed) };
    t.n_devices = 1 + (unsigned)sim_below(t.sim, CL_MAY_GO); /* none that may be lost: vmfs_matrix */
    t.hosts = hosts ? hosts : 2 + (unsigned)sim_below(t.sim, CL_HOSTS - 1);
    t.n_disks = disks ? disks : CL_DISKS;
    t.fast = sim_below(t.sim, 2);
    t.slowest_ns = sim_below(t.sim, 4) || hosts ? 400000 : 30 * MS; /* slow enough that a recovery lasts longer than anybody's patience */
    t.span_s = hosts ? 60 : 40 + (unsigned)sim_below(t.sim, 120);
    t.burst = hosts ? 20 : 200;
    sim_on_eject(t.sim, on_eject, &t);
    cl_open(&t, !hosts);
    if (!hosts)
        conform_on_eject(t.conform, on_victim, &t);
    cl_run(&t, nemesis, seed);
    cl_close(&t);
    cl_add(ret, &t);
}

static void print_sum(const struct cl_site *sum)
{
    print_message("%llu writes (%llu acknowledged), %llu reads, %llu take-overs, %llu hosts ejected; %llu stops, %llu deaths, %llu of them in mid-recovery, %llu cuts, %llu stalls of all\n",
                  (unsigned long long)sum->numbers, (unsigned long long)sum->acked, (unsigned long long)sum->reads, (unsigned long long)sum->takeovers,
                  (unsigned long long)sum->ejected, (unsigned long long)sum->stops, (unsigned long long)sum->deaths, (unsigned long long)sum->halves,
                  (unsigned long long)sum->cuts, (unsigned long long)sum->stalls);
}

/* Every fault at every place, and what came of it; so many trials must have seen them all. */
static void print_cells(const struct cl_site *sum, unsigned trials)
{
    for (unsigned k = 0; k < KINDS; k++)
        for (unsigned p = 0; p < PLACES; p++) {
            unsigned long long n = sum->cells[k * PLACES + p];
            print_message("%llu take-overs from hosts that were %s while %s\n", n, kind_names[k], place_names[p]);
            if (n == 0 && trials >= 1000)
                fail_msg("no take-over from a host that was %s while %s in %u trials", kind_names[k], place_names[p], trials);
        }
}

static void site(void **state)
{
    const char *one = getenv("GRANARY_SEED"), *n = getenv("GRANARY_TRIALS");
    uint64_t seed = one ? strtoull(one, NULL, 10) : (uint64_t)test_seed();
    unsigned trials = n ? (unsigned)strtoul(n, NULL, 10) : 12;
    struct cl_site sum = { 0 };
    (void)state;
    print_message("seed %llu, %u trials\n", (unsigned long long)seed, trials);
    for (unsigned i = 0; i < trials; i++) {
        if (getenv("GRANARY_LOUD"))
            print_message("trial %llu\n", (unsigned long long)(seed + i));
        trial(seed + i, 0, 0, &sum);
    }
    print_sum(&sum);
    print_message("%llu regions were given back\n", (unsigned long long)sum.given_back);
    assert_true(trials < 10 || sum.given_back);
    print_message("%llu steps, all of them allowed by the order; %llu hosts read from memory a disk that was another's, not yet knowing that they were ejected\n",
                  (unsigned long long)sum.steps, (unsigned long long)sum.unaware);
    print_cells(&sum, trials);
}

static unsigned number(const char *name, unsigned usual, unsigned most)
{
    const char *v = getenv(name);
    unsigned n = v ? (unsigned)strtoul(v, NULL, 10) : usual;
    return n < most ? n : most;
}

static void large_site(void **state)
{
    unsigned hosts = number("GRANARY_HOSTS", 24, CL_HOSTS_MAX), disks = number("GRANARY_DISKS", 96, CL_DISKS_MAX);
    uint64_t seed = test_seed();
    struct cl_site sum = { 0 };
    (void)state;
    print_message("seed %llu, %u hosts, %u disks\n", (unsigned long long)seed, hosts, disks);
    trial(seed, hosts, disks, &sum);
    print_sum(&sum);
}

TEST_MAIN(TEST(site), TEST(large_site))
