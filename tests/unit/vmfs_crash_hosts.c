/* Power cuts and dying hosts on one device that two or three hosts use at once: each has disks of its own at work, one dies in the middle of it (what
 * it had sent still lands), another takes over from it and finds what was acknowledged, and it starts again. Then the recorded whole is cut at many
 * instants, for all at once; those who come back, one or two, recover, see what was promised, and `check` finds nothing.
 *
 * GRANARY_CUTS: how many cuts (default 600); GRANARY_SOAK: 100,000 of them (make soak); GRANARY_SEED repeats a run exactly, GRANARY_CUT=N tries only
 * the N-th cut of each history.
 * timeout: 240 */
#include "tests/lib/test.h"
#include "common/cleanup.h"
#include "tests/lib/crash_ports.h"
#include "tests/lib/crash_replay.h"
#include "tests/lib/crash_work.h"
#include "tests/lib/crash_world.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEVICE_SIZE (192ull << 20)
#define HOSTS 3u
#define WORKS (HOSTS + 1) /* the one that died starts again */
#define CUTS_SOAK 100000u
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CUTS 100u
#else
#define CUTS 600u
#endif

static struct totals {
    uint64_t cuts, second_cuts, histories, hosts, deaths, entries, writes, snapshots, takeovers, replayed, dropped, repaired, unsure, both, given_back;
} total;

struct history;
struct host {
    struct history *h;
    char name[16];
    struct crash_work w;
    struct gr_bdev *port;
    bool runs, dead;
};
struct history {
    uint64_t seed, rng;
    unsigned number, cuts, hosts, works;
    struct crash_image *base, *disk;
    struct gr_bdev *device, *recorder;
    struct crash_ports *ports;
    struct host host[WORKS];
    struct gr_fqueue over;
    bool dying; /* a death is under way */
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

static struct vmfs *join(struct gr_bdev *dev, const char *who)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = who, .warn = quiet };
    struct gr_err err = { 0 };
    struct vmfs *v = NULL;
    snprintf((char *)o.host_uuid, sizeof o.host_uuid, "%s", who);
    if (vmfs_join(gr_fiber_loop(), &dev, 1, &o, &v, &err) < 0)
        fail_msg("%s joins: %s", who, err.text);
    return v;
}

static void check_volume(struct vmfs *v, struct history *h, const char *what)
{
    struct vmfs_check_report rep;
    struct gr_err err = { 0 };
    if (vmfs_check(v, say, NULL, &rep, &err) < 0) {
        vmfs_check(v, say, h, &rep, NULL);
        fail_msg("%s: check: %s", what, err.text);
    }
    total.repaired += rep.repaired;
}

/* ---- while it is recorded ---- */
static void work_fiber(void *arg)
{
    struct host *x = arg;
    crash_work_run(&x->w);
    x->runs = false;
    gr_fqueue_wake_all(&x->h->over);
}

static void host_start(struct history *h, unsigned i)
{
    struct host *x = &h->host[i];
    x->h = h;
    snprintf(x->name, sizeof x->name, "%c-", "abcx"[i]);
    x->w = (struct crash_work){ .rng = h->seed * 7 + i, .data_fibers = 3, .admin_fibers = 1, .ops = i == HOSTS ? 40 : 120 };
    x->w.orc.record = gr_bdev_record(h->recorder);
    x->w.orc.prefix = x->name;
    x->w.orc.stamps = i << 24;
    assert_int_equal(crash_port_open(h->ports, &x->port), 0);
    x->w.v = join(x->port, i == HOSTS ? "a-" : x->name);
    x->runs = true;
    h->works = GR_MAX(h->works, i + 1);
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), work_fiber, x), 0);
}

/* Who took a disk over goes on with what was begun on it, and keeps it until it is asked for. */
static void give_up(const struct orc *o, struct vmfs *v)
{
    for (size_t i = 0; i < o->n_disks; i++) {
        vmfs_release(v, o->disk[i]->name, NULL);
        vmfs_release(v, o->disk[i]->name2, NULL);
    }
}

/* Nothing that was acknowledged is missing for @v, who took over from a host whose storage was never without power. */
static void all_there(struct history *h, struct host *x, struct vmfs *v)
{
    char why[256] = "";
    uint64_t tick = orc_tick(&x->w.orc);
    int r = -1;
    for (unsigned i = 0; i < 100 && r < 0 && (i == 0 || strstr(why, "is in use by host")); i++) { /* until its last write has landed */
        gr_fiber_sleep_ms(i > 0);
        if (i > 0 && h->hosts == HOSTS)
            give_up(&x->w.orc, h->host[HOSTS - 1].w.v); /* that one was quicker */
        why[0] = 0;
        r = orc_verify(&x->w.orc, v, tick, why);
    }
    if (r < 0)
        fail_msg("history %u (seed %llu): taken over from %s: %s", h->number, (unsigned long long)h->seed, x->name, why);
    uint32_t *now = malloc(ORC_SLOTS * sizeof *now);
    for (size_t i = 0; i < x->w.orc.n_disks; i++) {
        struct orc_disk *m = x->w.orc.disk[i];
        struct vmfs_disk *d;
        struct vmfs_stat st;
        if (!m->made.ack || m->removed.submit || vmfs_open(v, m->renamed.ack ? m->name2 : m->name, &d, NULL, NULL) < 0)
            continue;
        vmfs_disk_stat(d, &st);
        if (orc_read(vmfs_bdev(d), st.size, now, why) < 0)
            fail_msg("%s", why);
        for (unsigned k = 0; k < ORC_SLOTS; k++)
            if (orc_window_off(k / ORC_WINDOW_SECTORS) + k % ORC_WINDOW_SECTORS * 512 < st.size && !orc_visible(m, k, now[k], tick, tick))
                fail_msg("history %u (seed %llu): taken over from %s, disk %u: slot %u shows stamp %u, and another was acknowledged", h->number,
                         (unsigned long long)h->seed, x->name, m->number, k, now[k]);
        vmfs_close(d);
    }
    free(now);
}

/* The first host dies in the middle of its work; another takes over, and it starts again. */
static void death(void *arg)
{
    struct history *h = arg;
    struct host *x = &h->host[0];
    uint64_t when = 50 + test_rand(&h->rng) % 400;
    while (x->w.writes < when && x->runs)
        gr_fiber_sleep_ms(1);
    crash_port_kill(x->port);
    x->dead = true;
    snprintf(x->w.why, sizeof x->w.why, "killed");
    gr_fiber_sleep_ms(test_rand(&h->rng) % 2 * (test_rand(&h->rng) % 20));
    all_there(h, x, h->host[1].w.v);
    host_start(h, HOSTS);
    total.deaths++;
    h->dying = false;
    gr_fqueue_wake_all(&h->over);
}

static bool anybody(const struct history *h)
{
    bool any = h->dying;
    for (unsigned i = 0; i < h->works; i++)
        any |= h->host[i].runs && !h->host[i].dead;
    return any;
}

static void leave(struct vmfs *v, uint64_t choice)
{
    struct gr_err err = { 0 };
    struct vmfs_stats st;
    vmfs_stats(v, &st);
    total.given_back += st.regions_given_back;
    if (choice % 2)
        vmfs_abandon(v);
    else if (vmfs_leave(v, &err) < 0)
        fail_msg("leave: %s", err.text);
}

static void record(struct history *h)
{
    struct vmfs_format_opts f = { .name = "crash", .journal_units = h->seed % 2 ? 128 : 256, .region_units = 1024 };
    struct gr_err err = { 0 };
    h->disk = crash_image_new(DEVICE_SIZE);
    assert_int_equal(crash_image_open(gr_fiber_loop(), h->disk, 0, &h->device), 0);
    if (vmfs_format(gr_fiber_loop(), &h->device, 1, &f, &err) < 0)
        fail_msg("format: %s", err.text);
    gr_bdev_put(h->device);
    h->base = crash_image_copy(h->disk);
    assert_int_equal(crash_image_open(gr_fiber_loop(), h->disk, h->seed | 1, &h->device), 0);
    assert_int_equal(gr_bdev_record_open(gr_fiber_loop(), h->device, &h->recorder), 0);
    h->ports = crash_ports_new(h->recorder);
    h->hosts = 2 + h->number % 2;
    h->dying = h->number % 3 != 2;
    for (unsigned i = 0; i < h->hosts; i++)
        host_start(h, i);
    if (h->dying)
        assert_int_equal(gr_fiber_start(gr_fiber_loop(), death, h), 0);
    while (anybody(h))
        gr_fqueue_wait(&h->over);
    for (unsigned i = 0; i < h->works; i++)
        if (h->host[i].h && !h->host[i].dead && h->host[i].w.why[0])
            fail_msg("history %u (seed %llu): host %s: %s", h->number, (unsigned long long)h->seed, h->host[i].name, h->host[i].w.why);
    for (unsigned i = 0; i < h->works; i++)
        if (h->host[i].h && i != 1 && !h->host[i].dead)
            leave(h->host[i].w.v, h->seed >> i);
    check_volume(h->host[1].w.v, h, "the running volume");
    leave(h->host[1].w.v, h->seed >> 4);
    if (h->host[0].dead) {
        crash_port_bury(h->host[0].port);
        while (h->host[0].runs)
            gr_fqueue_wait(&h->over);
        vmfs_abandon(h->host[0].w.v);
    }
    for (unsigned i = 0; i < h->works; i++)
        gr_bdev_put(h->host[i].port);
    assert_int_equal(crash_image_races(h->disk), 0);
}

/* ---- cuts ---- */
static int verify_one(struct orc *o, struct vmfs *v, struct vmfs *other, uint64_t tick, char why[256])
{
    int r = orc_verify(o, v, tick, why);
    for (unsigned i = 0; r < 0 && other && strstr(why, "is in use by host") && i < 100; i++) {
        give_up(o, other);
        gr_fiber_sleep_ms(10);
        why[0] = 0;
        r = orc_verify(o, v, tick, why);
    }
    return r;
}

static void verify_works(struct history *h, struct vmfs *const *v, unsigned n, uint64_t tick, const char *what)
{
    char why[256] = "";
    for (unsigned i = 0; i < h->works; i++)
        if (h->host[i].h && verify_one(&h->host[i].w.orc, v[i % n], n > 1 ? v[1 - i % n] : NULL, tick, why) < 0)
            fail_msg("%s: host %s: %s", what, h->host[i].name, why);
}

static void verify(struct history *h, struct crash_image *img, uint64_t tick, const char *what)
{
    struct gr_bdev *dev, *port[2];
    struct vmfs *v[2];
    struct vmfs_stats st;
    unsigned n = 1 + (unsigned)(test_rand(&h->rng) % 2);
    assert_int_equal(crash_image_open(gr_fiber_loop(), img, 0, &dev), 0);
    struct crash_ports *ports = crash_ports_new(dev);
    for (unsigned i = 0; i < n; i++) {
        assert_int_equal(crash_port_open(ports, &port[i]), 0);
        v[i] = join(port[i], i ? "b-" : "a-");
    }
    verify_works(h, v, n, tick, what);
    for (unsigned i = 0; i < n; i++) {
        vmfs_stats(v[i], &st);
        total.takeovers += st.takeovers;
        total.replayed += st.replayed_records;
        total.dropped += st.dropped_pieces;
    }
    if (n == 2)
        leave(v[1], test_rand(&h->rng));
    check_volume(v[0], h, what);
    leave(v[0], test_rand(&h->rng));
    total.both += n == 2;
    for (unsigned i = 0; i < n; i++)
        gr_bdev_put(port[i]);
    crash_ports_free(ports);
    gr_bdev_put(dev);
}

/* Recover @img, cut that at a random instant. */
static struct crash_image *second_cut(struct history *h, struct crash_image *img, uint64_t tick, const char *what)
{
    struct crash_image *work = crash_image_copy(img);
    struct gr_bdev *dev, *rec;
    assert_int_equal(crash_image_open(gr_fiber_loop(), work, 0, &dev), 0);
    assert_int_equal(gr_bdev_record_open(gr_fiber_loop(), dev, &rec), 0);
    struct vmfs *v = join(rec, "b-");
    verify_works(h, &v, 1, tick, what);
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

static void cut_all(struct history *h)
{
    struct gr_record *rec = gr_bdev_record(h->recorder);
    struct crash_replay *p = crash_replay_new(h->base, rec);
    uint64_t ticks = crash_record_ticks(rec), *at = calloc(h->cuts, sizeof *at);
    const char *only = getenv("GRANARY_CUT");
    for (unsigned i = 0; i < h->cuts; i++)
        at[i] = 1 + test_rand(&h->rng) % ticks;
    qsort(at, h->cuts, sizeof *at, by_value);
    for (unsigned i = 0; i < h->cuts; i++) {
        char what[160];
        if (only && (unsigned)strtoul(only, NULL, 10) != i)
            continue;
        snprintf(what, sizeof what, "GRANARY_SEED=%llu history %u cut %u at tick %llu of %llu", (unsigned long long)test_seed(), h->number, i,
                 (unsigned long long)at[i], (unsigned long long)ticks);
        h->rng = h->seed * 1000003u + i; /* each cut has a generator of its own, so that one can be repeated alone */
        struct crash_image *img = crash_replay_cut(p, at[i], (enum crash_kind)(i % CRASH_KINDS), &h->rng);
        if (i % 4 == 3) {
            struct crash_image *again = second_cut(h, img, at[i], what);
            crash_image_free(img);
            img = again;
        }
        verify(h, img, at[i], what);
        crash_image_free(img);
        total.cuts++;
    }
    total.entries += gr_record_count(rec);
    free(at);
    crash_replay_free(p);
}

static int history_fn(void *arg)
{
    struct history *h = arg;
    record(h);
    cut_all(h);
    total.histories++;
    total.hosts += h->hosts;
    for (unsigned i = 0; i < h->works; i++) {
        total.writes += h->host[i].w.writes;
        total.snapshots += h->host[i].w.snapshots;
        total.unsure += h->host[i].w.orc.unsure;
        orc_free(&h->host[i].w.orc);
    }
    crash_ports_free(h->ports);
    gr_bdev_put(h->recorder);
    gr_bdev_put(h->device);
    crash_image_free(h->base);
    crash_image_free(h->disk);
    free(h);
    return 0;
}

static void power_cuts_of_several_hosts(void **state)
{
    const char *env = getenv("GRANARY_CUTS");
    unsigned cuts = env ? (unsigned)strtoul(env, NULL, 0) : test_soak_s(0) ? CUTS_SOAK : CUTS, per = 100;
    (void)state;
    for (unsigned i = 0; i * per < cuts; i++) {
        struct history *h = calloc(1, sizeof *h);
        assert_non_null(h);
        h->number = i;
        h->seed = test_seed() * 131 + i;
        h->rng = h->seed;
        h->cuts = GR_MIN(per, cuts - i * per);
        crash_world_run(h->seed, history_fn, h);
    }
#define N(x) (unsigned long long)total.x
    printf("# %llu cuts (%llu of them twice, %llu with two hosts that came back) in %llu histories of %llu hosts, %llu of which died; %llu device requests\n", N(cuts),
           N(second_cuts), N(both), N(histories), N(hosts), N(deaths), N(entries));
    printf("# regions given back %llu\n", N(given_back));
    printf("# %llu writes, %llu snapshots; take-overs %llu, replayed records %llu, dropped pieces %llu, repaired blocks %llu, sectors with several allowed values %llu\n",
           N(writes), N(snapshots), N(takeovers), N(replayed), N(dropped), N(repaired), N(unsure));
#undef N
    if (cuts >= 500) /* what never happened was not tested */
        assert_true(total.deaths && total.takeovers && total.replayed && total.dropped && total.second_cuts && total.both && total.snapshots && total.unsure && total.given_back);
}

TEST_MAIN(TEST(power_cuts_of_several_hosts))
