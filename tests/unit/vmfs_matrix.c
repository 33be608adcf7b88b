/* The fault matrix on a virtual clock (tests/lib/cluster.h): one fault a trial, as in tests/matrix, a row per cell with the take-overs that were seen.
 * One that was due and does not come fails, and so does anything that the oracle, the order or the final check finds. In the last cells the third of
 * three devices is lost, by one host or by all, for a while or for good: who had nothing there sees no error. GRANARY_SEED=N repeats,
 * GRANARY_TRIALS=N says how many (default: one of each cell). */
#include "tests/lib/cluster.h"
#include "tests/lib/test.h"
#include "tests/model/order.h"
#include "common/cleanup.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MS 1000000ull
#define PATIENCE_S 300u /* for a take-over that is due */

enum fault { KILL, STOP, CUT_FIRST, CUT_SECOND, CAW, CLOCK, STALL, CPU, RECOVERER_ASKS, RECOVERER_EJECTS, RECOVERER_HAS_EJECTED, RECOVERER_REPLAYS,
             LOST_ERRORS, LOST_SILENT, LOST_BY_ALL_ERRORS, LOST_BY_ALL_SILENT, FAULTS };
static const char *const names[FAULTS] = { "kill",        "stop",        "cut_first",          "cut_second",       "caw",                   "clock",
                                           "stall",       "cpu",         "recoverer (asking)", "recoverer (eject)", "recoverer (has ejected)", "recoverer (replay)",
                                           "lost_errors", "lost_silent", "lost_by_all_errors", "lost_by_all_silent" };
#define CELLS (2u * FAULTS) /* with the one timing and the other */
_Static_assert(CELLS <= CL_CELLS_MAX, "a row for each");

struct matrix { /* one trial */
    struct cl_site site;
    enum fault fault;
    struct cl_host *victim;
    bool due, struck_recoverer;
};
struct cell {
    unsigned trials, due;
    uint64_t takeovers;
};

/* Somebody who has a disk of its own in use. */
static struct cl_host *at_work(struct cl_site *t)
{
    for (;;) {
        struct cl_host *h = cl_host_of(t, (unsigned)sim_below(t->sim, t->hosts));
        if (h && h->v && h->at_work)
            return h;
        gr_fiber_sleep_ms(1 + sim_below(t->sim, 20));
    }
}

static void die(struct cl_host *h)
{
    cl_loud(h, "dies");
    h->disturbed = h->dead = h->corpse = true;
    h->t->corpses++;
    h->t->deaths++;
    sim_stop(h->sim, true);
}

/* Until its slot was given back by another. */
static void taken_over(struct matrix *m, uint64_t before)
{
    struct cl_site *t = &m->site;
    uint64_t end = sim_now_ns(t->sim) + PATIENCE_S * 1000 * MS;
    m->due = true;
    while (t->recovered == before) {
        if (sim_now_ns(t->sim) > end)
            fail_msg("nobody has taken over in %u s (%s)", PATIENCE_S, names[m->fault]);
        gr_fiber_sleep_ms(20);
    }
}

static void sleep_between(struct cl_site *t, uint64_t least_ms, uint64_t most_ms)
{
    gr_fiber_sleep_ms(least_ms + sim_below(t->sim, most_ms - least_ms));
}

/* It computes for a tenth of the time. */
static void starve(struct cl_host *h)
{
    for (unsigned i = 0; i < 100; i++) {
        sim_stop(h->sim, true);
        gr_fiber_sleep_ms(90);
        sim_stop(h->sim, false);
        gr_fiber_sleep_ms(10);
    }
}

static void kill_recoverer(struct matrix *m, uint64_t before)
{
    static const enum m_take_phase first[] = { MT_ASKED, MT_SILENT, MT_ENDED, MT_MARKED }, last[] = { MT_ASKED, MT_SILENT, MT_SECOND, MT_REPLAY };
    unsigned place = m->fault - RECOVERER_ASKS;
    struct cl_site *t = &m->site;
    while (!m->struck_recoverer && t->recovered == before) {
        for (unsigned i = 0; i < t->hosts && !m->struck_recoverer; i++) {
            struct cl_host *h = cl_host_of(t, i);
            unsigned phase = h && h->v ? conform_phase(t->conform, h->sim) : MT_NONE;
            if (phase < first[place] || phase > last[place] || sim_below(t->sim, 4))
                continue;
            die(h);
            m->struck_recoverer = true;
        }
        gr_fiber_sleep_ms(1);
    }
}

/* ---- the third device is lost, by one host or by all ---- */
static void spoil(struct matrix *m, struct cl_host *h)
{
    cl_loud(h, "has a device fail");
    h->loses = true;
    if (m->fault == LOST_SILENT || m->fault == LOST_BY_ALL_SILENT)
        sim_path_cut(h->path[CL_MAY_GO], true);
    else
        sim_path_fail(h->path[CL_MAY_GO], -EIO);
}

static void heal(struct gr_bdev *path)
{
    sim_path_fail(path, 0);
    sim_path_cut(path, false);
    gr_bdev_put(path);
}

/* The newest start of @host has it, or does without, and is at work. */
static void wait_at_work(struct matrix *m, unsigned host, bool without)
{
    struct cl_site *t = &m->site;
    uint64_t end = sim_now_ns(t->sim) + PATIENCE_S * 1000 * MS;
    for (;;) {
        struct cl_host *h = cl_host_of(t, host);
        if (h && h->v && h->at_work && h->without == without)
            return;
        if (conform_error(t->conform))
            fail_msg("%s", conform_error(t->conform));
        if (sim_now_ns(t->sim) > end)
            fail_msg("host %u does not work %s the device in %u s (%s)", host, without ? "without" : "with", PATIENCE_S, names[m->fault]);
        gr_fiber_sleep_ms(20);
    }
}

/* Others have all devices, and can take over. */
static void one_more_dies(struct matrix *m)
{
    struct cl_site *t = &m->site;
    uint64_t before = t->recovered;
    die(at_work(t));
    taken_over(m, before);
}

static void lose(struct matrix *m)
{
    struct cl_site *t = &m->site;
    bool all = m->fault == LOST_BY_ALL_ERRORS || m->fault == LOST_BY_ALL_SILENT;
    struct gr_bdev *path[CL_HOSTS] = { NULL };
    for (unsigned i = 0; i < t->hosts; i++) {
        struct cl_host *h = cl_host_of(t, i);
        if (!all && h != m->victim)
            continue;
        path[i] = gr_bdev_get(h->path[CL_MAY_GO]);
        spoil(m, h);
    }
    for (unsigned i = 0; i < t->hosts; i++)
        if (path[i])
            wait_at_work(m, i, true);
    gr_fiber_sleep_ms(sim_below(t->sim, 20000));
    if (!all && sim_below(t->sim, 2))
        one_more_dies(m);
    t->gone_for_good = all && sim_below(t->sim, 2);
    for (unsigned i = 0; i < t->hosts; i++) {
        struct cl_host *h = path[i] ? cl_host_of(t, i) : NULL;
        if (path[i])
            heal(path[i]); /* what was under way arrives */
        t->without[i] &= t->gone_for_good;
        if (h && !t->gone_for_good)
            h->again = true;
    }
    for (unsigned i = 0; i < t->hosts && !t->gone_for_good; i++)
        if (path[i] && cl_host_of(t, i))
            wait_at_work(m, i, false);
    gr_fiber_sleep_ms(sim_below(t->sim, 5000));
    if (!m->due && !t->gone_for_good)
        one_more_dies(m);
}

static void strike(struct matrix *m)
{
    struct cl_site *t = &m->site;
    struct cl_host *h = m->victim;
    uint64_t before = t->recovered;
    cl_loud(h, names[m->fault]);
    switch (m->fault) {
    case STOP:
        h->disturbed = true;
        sim_stop(h->sim, true);
        taken_over(m, before);
        cl_nap(t, 60000);
        sim_stop(h->sim, false);
        return;
    case CUT_FIRST:
        h->disturbed = true;
        sim_path_cut(h->path[0], true);
        taken_over(m, before);
        cl_nap(t, 20000);
        if (!h->over)
            sim_path_cut(h->path[0], false);
        return;
    case CUT_SECOND: { /* it answers: nobody may shut it out */
        struct gr_bdev *path = gr_bdev_get(h->path[1]);
        sim_path_cut(path, true);
        sleep_between(t, 5000, 20000);
        sim_path_cut(path, false);
        gr_bdev_put(path);
        return;
    }
    case STALL:
        cl_cut_all(t, true);
        gr_fiber_sleep_ms(60000);
        cl_cut_all(t, false);
        return;
    case CAW:
        for (unsigned i = 0; i < t->hosts; i++) {
            struct cl_host *o = cl_host_of(t, i);
            for (unsigned k = 0; o && k < t->n_devices; k++)
                sim_path_lose(o->path[k], 2);
        }
        break;
    case CLOCK:
        for (struct cl_host *o = t->incs; o; o = o->next)
            sim_wall_jump(o->sim, (int64_t)sim_below(t->sim, 200000) - 100000);
        sleep_between(t, 2000, 10000);
        break;
    case CPU:
        starve(h);
        break;
    case LOST_ERRORS:
    case LOST_SILENT:
    case LOST_BY_ALL_ERRORS:
    case LOST_BY_ALL_SILENT:
        lose(m);
        return;
    case KILL:
    case RECOVERER_ASKS:
    case RECOVERER_EJECTS:
    case RECOVERER_HAS_EJECTED:
    case RECOVERER_REPLAYS:
    case FAULTS:
        break;
    }
    h = at_work(t); /* the one of before may have nothing in hand now */
    before = t->recovered;
    die(h);
    if (m->fault >= RECOVERER_ASKS && m->fault <= RECOVERER_REPLAYS)
        kill_recoverer(m, before);
    taken_over(m, before);
}

static void nemesis(void *arg)
{
    struct matrix *m = arg; /* its first member is the site */
    struct cl_site *t = &m->site;
    gr_fiber_sleep_ms(1000 + sim_below(t->sim, 3000));
    m->victim = at_work(t);
    strike(m);
    gr_fiber_sleep_ms(1000 + sim_below(t->sim, 3000));
    for (struct cl_host *h = t->incs, *next; h; h = next) { /* the dead machines start again */
        next = h->next;
        if (h->dead && !cl_host_of(t, h->host))
            cl_host_start(t, h->host);
    }
    gr_fiber_sleep_ms(2000 + sim_below(t->sim, 3000));
    cl_finish(t);
}

static void trial(uint64_t seed, unsigned cell, struct cell *ret, struct cl_site *sum)
{
    struct matrix m = { .fault = cell % FAULTS, .site = { .sim = sim_new(seed), .n_disks = CL_DISKS, .burst = 60 } };
    struct cl_site *t = &m.site;
    bool recoverer = m.fault >= RECOVERER_ASKS && m.fault <= RECOVERER_REPLAYS;
    t->n_devices = m.fault >= LOST_ERRORS ? CL_DEVICES_MAX : CL_MAY_GO;
    t->fast = cell >= FAULTS;
    t->hosts = 3 + recoverer + (unsigned)sim_below(t->sim, 2);
    t->slowest_ns = recoverer ? 30 * MS : sim_below(t->sim, 4) ? 400000 : 5 * MS; /* slow enough to be struck at any step */
    cl_open(t, true);
    cl_run(t, nemesis, seed);
    cl_close(t);
    cl_add(sum, t);
    ret->trials++;
    ret->due += m.due;
    ret->takeovers += t->recovered;
    if (recoverer && !m.struck_recoverer) { /* it was quicker: no trial of this cell */
        ret->trials--;
        ret->due--;
    }
}

static void matrix(void **state)
{
    const char *n = getenv("GRANARY_TRIALS");
    unsigned trials = n ? (unsigned)strtoul(n, NULL, 10) : CELLS, done = 0;
    struct cell cells[CELLS] = { 0 };
    struct cl_site sum = { 0 };
    uint64_t seed = (uint64_t)test_seed();
    (void)state;
    print_message("seed %llu, %u trials\n", (unsigned long long)seed, trials);
    for (unsigned i = 0; done < trials; i++) {
        unsigned cell = (unsigned)((seed + i) % CELLS), before = cells[cell].trials; /* so that a seed alone repeats a trial */
        if (getenv("GRANARY_LOUD"))
            print_message("trial %llu\n", (unsigned long long)(seed + i));
        trial(seed + i, cell, &cells[cell], &sum);
        done += cells[cell].trials - before;
    }
    print_message("%-24s %-8s %6s %6s %10s %6s %6s %9s %5s\n", "fault", "timing", "trials", "due", "take-overs", "stale", "double", "shut out", "lost");
    for (unsigned i = 0; i < CELLS; i++) { /* zeros: the first of them would have been the last */
        print_message("%-24s %-8s %6u %6u %10llu %6u %6u %9u %5u\n", names[i % FAULTS], i < FAULTS ? "default" : "fast", cells[i].trials, cells[i].due,
                      (unsigned long long)cells[i].takeovers, 0, 0, 0, 0);
        if (cells[i].takeovers < cells[i].due)
            fail_msg("%s: %u take-overs were due, %llu seen", names[i % FAULTS], cells[i].due, (unsigned long long)cells[i].takeovers);
    }
    print_message("%llu losses of a device: %llu disks have lost writes and said so, %llu of their pieces are older than what was acknowledged, %llu requests for what lay there failed\n",
                  (unsigned long long)sum.losses, (unsigned long long)sum.poisoned, (unsigned long long)sum.gone, (unsigned long long)sum.unread);
    print_message("%llu writes (%llu acknowledged), %llu reads, %llu take-overs of slots, %llu of disks; %llu steps, all of them allowed by the order\n",
                  (unsigned long long)sum.numbers, (unsigned long long)sum.acked, (unsigned long long)sum.reads, (unsigned long long)sum.recovered,
                  (unsigned long long)sum.takeovers, (unsigned long long)sum.steps);
}

TEST_MAIN(TEST(matrix))
