/* Power cuts: a recorded workload is cut at many instants, each with another idea of what the device kept; every image must be
 * recovered, prove sound, and show what was promised. Some are cut a second time while they are recovered.
 *
 * GRANARY_CUTS: how many cuts (default 2000); GRANARY_SOAK: go on for so many seconds; GRANARY_SEED repeats a run exactly (the
 * clock and all random are the test's own), with GRANARY_CUT=N only the N-th cut of each history.
 * timeout: 240 */
#include "tests/lib/test.h"
#include "common/cleanup.h"
#include "tests/lib/crash_replay.h"
#include "tests/lib/crash_work.h"
#include "tests/lib/crash_world.h"
#include "tests/lib/slice.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEVICE_SIZE (96ull << 20)
#define SLICES 3u /* of the image, in histories with several devices: one at first, one comes and goes, one comes */
static const uint64_t slice_end[SLICES + 1] = { 0, 36ull << 20, 100ull << 20, 196ull << 20 };
#define ROOMY_SIZE (1024ull << 20) /* for thick disks, and what their snapshots are promised */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CUTS 250u
#else
#define CUTS 2000u
#endif

static struct totals {
    uint64_t cuts, second_cuts, histories, entries;
    uint64_t replays, replayed_records, dropped, takeovers, redirected, in_place, splits, merges, checkpoints, frames, unsure, durable;
    uint64_t snapshots, clones, owned, reverts, deletes, removes, renames, resizes, compares, copies, repaired, no_space, thick, eager, roomy_cuts;
    uint64_t mirrored_cuts;
    uint64_t devices_added, devices_removed, devices_kept, device_cuts, moved_kib, encrypted, rekeys, rewrites, key_cuts, defragments, defragmented, given_back;
} total;

struct history {
    uint64_t seed, rng;
    unsigned number, cuts;
    struct crash_image *base, *disk;
    struct gr_bdev *device, *recorder;
    struct crash_work w;
    bool several; /* devices come and go */
    unsigned made_of; /* so many: two have mirrored journals */
    bool changing;
    uint64_t moved; /* bytes */
    struct gr_fqueue changed;
    struct gr_bdev *slice[SLICES];
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

static const uint8_t secret[32] = "the key of the power cut tests";
static int kek(void *arg, uint64_t id, uint8_t ret[32])
{
    memcpy(ret, secret, 32);
    return id == vmfs_kek_id(secret) ? 0 : -ENOKEY;
}

static void join(const struct history *h, struct gr_bdev *dev, const char *who, struct vmfs **ret, uint64_t seed)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = who, .warn = quiet, .map_cache_bytes = seed % 3 ? 0 : 1,
                                .check_memory = seed % 2 ? (size_t)256 << 10 : 0, .kek = kek };
    struct gr_err err = { 0 };
    struct gr_bdev *part[SLICES];
    for (unsigned i = 0; i < SLICES && h->several; i++)
        assert_int_equal(slice_open(dev, slice_end[i], slice_end[i + 1] - slice_end[i], &part[i]), 0);
    int r = vmfs_join(gr_fiber_loop(), h->several ? part : &dev, h->several ? SLICES : 1, &o, ret, &err);
    for (unsigned i = 0; i < SLICES && h->several; i++)
        gr_bdev_put(part[i]);
    if (r < 0)
        fail_msg("join: %s", gr_err_text(&err, r));
}

static int pause_a_little(void *arg, uint64_t done, uint64_t all, struct gr_err *err)
{
    struct history *h = arg;
    (void)all;
    (void)err;
    h->moved = done;
    if (done / 65536 % 3 == 0)
        gr_fiber_sleep_ms(h->seed % 3);
    return 0;
}

/* Most of the first device is taken, so that the workload lies on the others. */
static void fill_first(struct history *h)
{
    struct vmfs_info info;
    struct gr_err err = { 0 };
    vmfs_info(h->w.v, &info);
    if (vmfs_create(h->w.v, "granary.tmp/filler", VMFS_DISK, (info.free - (3u << 20)) & ~65535ull, VMFS_THICK, &err) < 0)
        fail_msg("filler: %s", err.text);
}

/* Beside the workload: a device comes, another one, the first of them leaves. */
static void devices_change(void *arg)
{
    struct history *h = arg;
    struct vmfs_device_add add = { 0 };
    struct vmfs_device_remove rem = { .progress = pause_a_little, .arg = h, .step = 1 + h->seed % 3 * (1ull << 20) };
    struct gr_err err = { 0 };
    for (unsigned i = h->made_of; i < SLICES; i++) {
        int r = vmfs_device_add(h->w.v, h->slice[i], &add, &err);
        if (r < 0)
            fail_msg("history %u (seed %llu): add: %s", h->number, (unsigned long long)h->seed, err.text);
        total.devices_added++;
        for (unsigned ms = 0; ms < 500 && h->w.writes < i * 250; ms += 5) /* the workload has its turn */
            gr_fiber_sleep_ms(5);
    }
    int r = vmfs_device_remove(h->w.v, h->made_of, &rem, &err);
    if (r < 0 && r != -GR_ENOSPACE)
        fail_msg("history %u (seed %llu): remove: %s", h->number, (unsigned long long)h->seed, err.text);
    total.devices_removed += r == 0;
    total.devices_kept += r < 0;
    total.moved_kib += h->moved >> 10;
    h->changing = false;
    gr_fqueue_wake_all(&h->changed);
}

static void record(struct history *h)
{
    static const unsigned journals[] = { 96, 128, 256 };
    bool roomy = h->seed % 4 == 2; /* there the images of all regions are as many as the journal has units: the worst that format makes */
    struct vmfs_format_opts f = { .name = "crash", .journal_units = journals[h->seed % 3] * (roomy ? 4 : 1), .region_units = 1024,
                                  .data_crc = h->number % 3 == 2 };
    struct gr_err err = { 0 };
    struct vmfs_stats st;
    h->several = !roomy && h->number % 2 == 1;
    h->disk = crash_image_new(h->several ? slice_end[SLICES] : roomy ? ROOMY_SIZE : DEVICE_SIZE);
    assert_int_equal(crash_image_open(gr_fiber_loop(), h->disk, 0, &h->device), 0);
    h->made_of = h->several && h->number % 8 >= 4 ? 2 : 1;
    struct gr_bdev *first[2] = { h->several ? NULL : gr_bdev_get(h->device) };
    for (unsigned i = 0; i < h->made_of && h->several; i++)
        assert_int_equal(slice_open(h->device, slice_end[i], slice_end[i + 1] - slice_end[i], &first[i]), 0);
    int r = vmfs_format(gr_fiber_loop(), first, h->made_of, &f, &err);
    if (r < 0)
        fail_msg("format: %s", gr_err_text(&err, r));
    for (unsigned i = 0; i < h->made_of; i++)
        gr_bdev_put(first[i]);
    gr_bdev_put(h->device);
    h->base = crash_image_copy(h->disk);
    assert_int_equal(crash_image_open(gr_fiber_loop(), h->disk, h->seed | 1, &h->device), 0);
    assert_int_equal(gr_bdev_record_open(gr_fiber_loop(), h->device, &h->recorder), 0);
    h->w = (struct crash_work){ .rng = h->seed ^ 0x5bd1e995, .data_fibers = 5, .admin_fibers = 2, .ops = 260, .reserved = roomy };
    if (h->number % 4 > 1)
        h->w.kek = vmfs_kek_id(secret);
    h->w.orc.record = gr_bdev_record(h->recorder);
    join(h, h->recorder, "worker", &h->w.v, h->seed);
    for (unsigned i = h->made_of; i < SLICES && h->several; i++)
        assert_int_equal(slice_open(h->recorder, slice_end[i], slice_end[i + 1] - slice_end[i], &h->slice[i]), 0);
    h->changing = h->several;
    if (h->several)
        fill_first(h);
    if (h->several)
        assert_int_equal(gr_fiber_start(gr_fiber_loop(), devices_change, h), 0);
    r = crash_work_run(&h->w);
    while (h->changing)
        gr_fqueue_wait(&h->changed);
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
    for (unsigned i = 1; i < SLICES; i++)
        gr_bdev_put(h->slice[i]);
    assert_int_equal(crash_image_races(h->disk), 0);
    total.redirected += st.writes_redirected;
    total.in_place += st.writes_in_place;
    total.splits += st.splits;
    total.merges += st.merges;
    total.checkpoints += st.checkpoints;
    total.frames += st.journal_frames;
    total.given_back += st.regions_given_back;
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
    join(h, dev, "after", &v, test_rand(&h->rng));
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
    join(h, rec, "second", &v, h->seed);
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
    total.owned += h->w.owned;
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
    total.encrypted += h->w.encrypted;
    total.rekeys += h->w.rekeys;
    total.rewrites += h->w.rewrites;
    total.key_cuts += h->w.kek ? h->cuts : 0;
    total.defragments += h->w.defragments;
    total.defragmented += h->w.defragmented;
    total.device_cuts += h->several ? h->cuts : 0;
    total.mirrored_cuts += h->made_of > 1 ? h->cuts : 0;
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
    printf("# snapshots %llu, deletes %llu, clones %llu (%llu detached), reverts %llu, removes %llu, renames %llu, resizes %llu, compares %llu, copies %llu\n", N(snapshots),
           N(deletes), N(clones), N(owned), N(reverts), N(removes), N(renames), N(resizes), N(compares), N(copies));
    printf("# thick disks %llu, eager disks %llu, in histories of %llu cuts\n", N(thick), N(eager), N(roomy_cuts));
    printf("# devices added %llu, removed %llu, kept for want of room %llu, %llu KiB moved, in histories of %llu cuts; journals mirrored in %llu\n", N(devices_added),
           N(devices_removed), N(devices_kept), N(moved_kib), N(device_cuts), N(mirrored_cuts));
    printf("# encrypted disks %llu, new keys %llu, rewritten %llu, in histories of %llu cuts\n", N(encrypted), N(rekeys), N(rewrites), N(key_cuts));
    printf("# defragmented %llu times, %llu KiB moved\n", N(defragments), N(defragmented));
    printf("# regions given back %llu\n", N(given_back));
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
        assert_true(total.snapshots && total.deletes && total.clones && total.owned && total.reverts && total.removes && total.renames && total.resizes);
        assert_true(total.encrypted && total.rekeys && total.rewrites && total.key_cuts);
        assert_true(total.thick && total.eager && total.roomy_cuts);
        assert_true(total.defragments && total.defragmented);
        assert_true(total.devices_added && total.devices_removed && total.moved_kib && total.device_cuts && total.mirrored_cuts);
        assert_true(total.compares && total.durable && total.unsure && total.second_cuts && total.checkpoints > total.histories && total.given_back);
    }
}

TEST_MAIN(TEST(power_cuts))
