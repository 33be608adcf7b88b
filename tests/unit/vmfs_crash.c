/* Power cuts: a recorded workload is cut at many instants, each with another idea of what the device kept; every image must be
 * recovered, prove sound, and show what was promised. Some are cut a second time while they are recovered.
 *
 * GRANARY_CUTS: how many cuts (default 2000); GRANARY_SOAK: go on for so many seconds; GRANARY_SEED repeats a run exactly (the
 * clock and all random are the test's own), with GRANARY_CUT=N only the N-th cut of each history. */
#include "tests/lib/test.h"
#include "common/cleanup.h"
#include "tests/lib/crash_replay.h"
#include "tests/lib/crash_work.h"
#include "tests/lib/crash_world.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEVICE_SIZE (96ull << 20)
#define ROOMY_SIZE (1024ull << 20) /* for thick disks, and what their snapshots are promised */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CUTS 250u
#else
#define CUTS 2000u
#endif

static struct totals {
    uint64_t cuts, second_cuts, histories, entries;
    uint64_t replays, replayed_records, dropped, takeovers, redirected, in_place, splits, merges, checkpoints, frames, unsure, durable;
    uint64_t snapshots, clones, reverts, deletes, removes, renames, resizes, compares, copies, repaired, no_space, thick, eager, roomy_cuts;
} total;

struct history {
    uint64_t seed, rng;
    unsigned number, cuts;
    struct crash_image *base, *disk;
    struct gr_bdev *device, *recorder;
    struct crash_work w;
};

static void quiet(void *arg, const char *text)
{
    (void)arg;
    (void)text;
}

static void say(void *arg, const char *text)
{
    if (arg)
        printf("# check: %s\n", text);
}

static void join(struct gr_bdev *dev, const char *who, struct vmfs **ret, uint64_t seed)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = who, .warn = quiet, .map_cache_bytes = seed % 3 ? 0 : 1 };
    struct gr_err err = { 0 };
    int r = vmfs_join(gr_fiber_loop(), &dev, 1, &o, ret, &err);
    if (r < 0)
        fail_msg("join: %s", gr_err_text(&err, r));
}

static void record(struct history *h)
{
    static const unsigned journals[] = { 96, 128, 256 };
    bool roomy = h->seed % 4 == 2; /* there the images of all regions are as many as the journal has units: the worst that format makes */
    struct vmfs_format_opts f = { .name = "crash", .journal_units = journals[h->seed % 3] * (roomy ? 4 : 1), .region_units = 1024 };
    struct gr_err err = { 0 };
    struct vmfs_stats st;
    h->disk = crash_image_new(roomy ? ROOMY_SIZE : DEVICE_SIZE);
    assert_int_equal(crash_image_open(gr_fiber_loop(), h->disk, 0, &h->device), 0);
    int r = vmfs_format(gr_fiber_loop(), &h->device, 1, &f, &err);
    if (r < 0)
        fail_msg("format: %s", gr_err_text(&err, r));
    gr_bdev_put(h->device);
    h->base = crash_image_copy(h->disk);
    assert_int_equal(crash_image_open(gr_fiber_loop(), h->disk, h->seed | 1, &h->device), 0);
    assert_int_equal(gr_bdev_record_open(gr_fiber_loop(), h->device, &h->recorder), 0);
    h->w = (struct crash_work){ .rng = h->seed ^ 0x5bd1e995, .data_fibers = 5, .admin_fibers = 2, .ops = 260, .reserved = roomy };
    h->w.orc.record = gr_bdev_record(h->recorder);
    join(h->recorder, "worker", &h->w.v, h->seed);
    r = crash_work_run(&h->w);
    vmfs_stats(h->w.v, &st);
    struct vmfs_info info;
    vmfs_info(h->w.v, &info);
    struct vmfs_check_report rep;
    if (r < 0 || info.fenced) {
        vmfs_check(h->w.v, say, h, &rep, NULL);
        fail_msg("history %u (seed %llu): %s %s", h->number, (unsigned long long)h->seed, h->w.why, info.fence_reason);
    }
    if (vmfs_check(h->w.v, say, h, &rep, &err) < 0)
        fail_msg("history %u (seed %llu): the running volume: %s", h->number, (unsigned long long)h->seed, err.text);
    if (h->seed % 2)
        vmfs_abandon(h->w.v);
    else if (vmfs_leave(h->w.v, &err) < 0)
        fail_msg("leave: %s", err.text);
    assert_int_equal(crash_image_races(h->disk), 0);
    total.redirected += st.writes_redirected;
    total.in_place += st.writes_in_place;
    total.splits += st.splits;
    total.merges += st.merges;
    total.checkpoints += st.checkpoints;
    total.frames += st.journal_frames;
}

static void verify(struct history *h, struct crash_image *img, uint64_t tick, const char *what)
{
    struct gr_bdev *dev;
    struct vmfs *v;
    struct gr_err err = { 0 };
    struct vmfs_check_report rep;
    struct vmfs_stats st;
    char why[256] = "";
    assert_int_equal(crash_image_open(gr_fiber_loop(), img, 0, &dev), 0);
    join(dev, "after", &v, test_rand(&h->rng));
    vmfs_stats(v, &st);
    total.replays += st.replays;
    total.replayed_records += st.replayed_records;
    total.dropped += st.dropped_pieces;
    total.takeovers += st.takeovers;
    int r = vmfs_check(v, say, NULL, &rep, &err);
    if (r < 0) {
        vmfs_check(v, say, h, &rep, NULL);
        fail_msg("%s: check: %s", what, err.text);
    }
    total.repaired += rep.repaired;
    if (orc_verify(&h->w.orc, v, tick, why) < 0)
        fail_msg("%s: %s", what, why);
    if (test_rand(&h->rng) % 4 == 0) { /* and after it all was given back */
        if (vmfs_check(v, say, h, &rep, &err) < 0)
            fail_msg("%s: check after reading: %s", what, err.text);
        if (vmfs_leave(v, &err) < 0)
            fail_msg("%s: leave: %s", what, err.text);
    } else {
        vmfs_abandon(v);
    }
    gr_bdev_put(dev);
}

/* Recover @img, cut that at a random instant. */
static struct crash_image *second_cut(struct history *h, struct crash_image *img)
{
    struct crash_image *work = crash_image_copy(img);
    struct gr_bdev *dev, *rec;
    struct vmfs *v;
    assert_int_equal(crash_image_open(gr_fiber_loop(), work, 0, &dev), 0);
    assert_int_equal(gr_bdev_record_open(gr_fiber_loop(), dev, &rec), 0);
    join(rec, "second", &v, h->seed);
    vmfs_abandon(v);
    struct gr_record *r = gr_bdev_record(rec);
    struct crash_replay *p = crash_replay_new(img, r);
    uint64_t ticks = crash_record_ticks(r);
    struct crash_image *cut = crash_replay_cut(p, ticks ? test_rand(&h->rng) % (ticks + 1) : 0, (enum crash_kind)(test_rand(&h->rng) % CRASH_KINDS), &h->rng);
    crash_replay_free(p);
    gr_bdev_put(rec);
    gr_bdev_put(dev);
    crash_image_free(work);
    total.second_cuts++;
    return cut;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static int history_fn(void *arg)
{
    struct history *h = arg;
    record(h);
    struct gr_record *rec = gr_bdev_record(h->recorder);
    struct crash_replay *p = crash_replay_new(h->base, rec);
    uint64_t ticks = crash_record_ticks(rec), *at = calloc(h->cuts, sizeof *at);
    const char *only = getenv("GRANARY_CUT");
    for (unsigned i = 0; i < h->cuts; i++)
        at[i] = 1 + test_rand(&h->rng) % ticks;
    qsort(at, h->cuts, sizeof *at, by_value);
    for (unsigned i = 0; i < h->cuts; i++) {
        char what[160];
        uint64_t own = h->seed * 1000003u + i; /* each cut has a generator of its own, so that one can be repeated alone */
        enum crash_kind kind = (enum crash_kind)(i % CRASH_KINDS);
        if (only && (unsigned)strtoul(only, NULL, 10) != i)
            continue;
        snprintf(what, sizeof what, "GRANARY_SEED=%llu history %u cut %u at tick %llu of %llu, kind %d", (unsigned long long)test_seed(), h->number, i,
                 (unsigned long long)at[i], (unsigned long long)ticks, (int)kind);
        h->rng = own;
        struct crash_image *img = crash_replay_cut(p, at[i], kind, &h->rng);
        if (i % 4 == 3) {
            struct crash_image *again = second_cut(h, img);
            crash_image_free(img);
            img = again;
        }
        verify(h, img, at[i], what);
        crash_image_free(img);
        total.cuts++;
    }
    free(at);
    total.entries += gr_record_count(rec);
    total.histories++;
    crash_replay_free(p);
    gr_bdev_put(h->recorder);
    gr_bdev_put(h->device);
    crash_image_free(h->base);
    crash_image_free(h->disk);
    total.unsure += h->w.orc.unsure;
    total.durable += h->w.orc.durable_ops;
    total.snapshots += h->w.snapshots;
    total.clones += h->w.clones;
    total.reverts += h->w.reverts;
    total.deletes += h->w.deletes;
    total.removes += h->w.removes;
    total.renames += h->w.renames;
    total.resizes += h->w.resizes;
    total.copies += h->w.copies;
    total.compares += h->w.compares;
    total.no_space += h->w.no_space;
    total.thick += h->w.thick;
    total.eager += h->w.eager;
    total.roomy_cuts += h->w.reserved ? h->cuts : 0;
    orc_free(&h->w.orc);
    free(h);
    return 0;
}

static void report(void)
{
#define N(x) (unsigned long long)total.x
    printf("# %llu cuts (%llu of them twice) in %llu histories of %llu device requests\n", N(cuts), N(second_cuts), N(histories), N(entries));
    printf("# take-overs %llu, replays %llu, replayed records %llu, dropped pieces %llu, repaired blocks %llu\n", N(takeovers), N(replays),
           N(replayed_records), N(dropped), N(repaired));
    printf("# writes: redirected %llu, in place %llu, splits %llu, merges %llu; frames %llu, checkpoints %llu, out of space %llu\n", N(redirected),
           N(in_place), N(splits), N(merges), N(frames), N(checkpoints), N(no_space));
    printf("# snapshots %llu, deletes %llu, clones %llu, reverts %llu, removes %llu, renames %llu, resizes %llu, compares %llu, copies %llu\n", N(snapshots),
           N(deletes), N(clones), N(reverts), N(removes), N(renames), N(resizes), N(compares), N(copies));
    printf("# thick disks %llu, eager disks %llu, in histories of %llu cuts\n", N(thick), N(eager), N(roomy_cuts));
    printf("# operations flushed %llu; sectors with several allowed values %llu\n", N(durable), N(unsure));
#undef N
}

static void power_cuts(void **state)
{
    (void)state;
    const char *env = getenv("GRANARY_CUTS");
    unsigned cuts = env ? (unsigned)strtoul(env, NULL, 0) : CUTS, per = 250;
    time_t end = time(NULL) + (time_t)test_soak_s(0);
    for (unsigned i = 0; i * per < cuts || time(NULL) < end; i++) {
        struct history *h = calloc(1, sizeof *h);
        h->number = i;
        h->seed = test_seed() * 31 + i;
        h->rng = h->seed;
        h->cuts = i * per < cuts ? GR_MIN(per, cuts - i * per) : per;
        crash_world_run(h->seed, history_fn, h);
    }
    report();
    if (cuts >= 1000) { /* what never happened was not tested */
        assert_true(total.takeovers && total.replayed_records && total.dropped && total.redirected && total.in_place && total.splits);
        assert_true(total.snapshots && total.deletes && total.clones && total.reverts && total.removes && total.renames && total.resizes);
        assert_true(total.thick && total.eager && total.roomy_cuts);
        assert_true(total.compares && total.durable && total.unsure && total.second_cuts && total.checkpoints > total.histories);
    }
}

TEST_MAIN(TEST(power_cuts))
