/* What hosts that have nothing to do ask of their devices, on a virtual clock: one read of one unit per interval, and nothing else. */
#include "common/cleanup.h"
#include "tests/lib/sim.h"
#include "tests/lib/test.h"
#include "vmfs/vmfs.h"
#include <stdio.h>
#include <string.h>

#define HOSTS 3u
#define DEVICES 2u
#define S 1000000000ull
#define CALM_S 5u   /* until what the work before left behind is done */
#define IDLE_S 60u

struct site {
    struct sim *sim;
    enum vmfs_timing timing;
    struct gr_mem *mem[DEVICES];
    struct host {
        struct site *site;
        unsigned number;
        struct sim_host *sim;
        struct gr_bdev *path[DEVICES];
        uint64_t reads, largest, others;
        bool over;
    } hosts[HOSTS];
    bool formatted, counting;
    unsigned ready;
};

static void seen(void *arg, struct sim_host *sim, struct gr_bdev *path, const struct gr_bio *bio, int status)
{
    struct site *t = arg;
    (void)path;
    (void)status;
    for (unsigned i = 0; i < HOSTS && t->counting; i++) {
        struct host *h = &t->hosts[i];
        if (h->sim != sim)
            continue;
        h->reads += bio->op == GR_OP_READ;
        h->others += bio->op != GR_OP_READ;
        h->largest = GR_MAX(h->largest, bio->len);
    }
}

static void no_fence(void *arg, struct sim_host *sim, struct gr_bdev *path, enum sim_fence what, uint64_t key)
{
    struct site *t = arg;
    (void)sim;
    (void)path;
    (void)key;
    if (t->counting)
        fail_msg("the fence is asked for something (%d) by a host with nothing to do", (int)what);
}

/* A disk of its own, written, and left open with some of it not flushed. */
static struct vmfs_disk *work(struct host *h, struct vmfs *v)
{
    struct vmfs_disk *d;
    struct gr_chan *ch;
    char path[16];
    uint8_t *b = gr_zalloc(VMFS_PIECE);
    snprintf(path, sizeof path, "d%u", h->number);
    OK(vmfs_create(v, path, VMFS_DISK, 64 << 20, VMFS_THIN, &err));
    OK(vmfs_open(v, path, &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), sim_host_loop(h->sim), &ch), 0);
    for (unsigned i = 0; i < 200; i++) {
        assert_int_equal(gr_pwrite(ch, b, VMFS_PIECE, (uint64_t)i * 5 * VMFS_PIECE, 0), 0);
        if (i == 150)
            assert_int_equal(gr_flush(ch), 0);
    }
    gr_chan_close(ch);
    free(b);
    return d;
}

static void host_fiber(void *arg)
{
    struct host *h = arg;
    struct site *t = h->site;
    struct vmfs *v = NULL;
    char name[8], address[16];
    snprintf(name, sizeof name, "h%u", h->number);
    snprintf(address, sizeof address, "/h%u.sock", h->number);
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = name, .address = address, .host_uuid = { (uint8_t)(h->number + 1) } };
    const struct vmfs_format_opts f = { .name = "ds", .timing = t->timing };
    if (h->number == 0) {
        OK(vmfs_format(sim_host_loop(h->sim), h->path, DEVICES, &f, &err));
        t->formatted = true;
    }
    while (!t->formatted)
        gr_fiber_sleep_ms(10);
    OK(vmfs_join(sim_host_loop(h->sim), h->path, DEVICES, &o, &v, &err));
    struct vmfs_disk *d = work(h, v);
    if (++t->ready == HOSTS) {
        gr_fiber_sleep_ms(CALM_S * 1000);
        t->counting = true;
        gr_fiber_sleep_ms(IDLE_S * 1000);
        t->counting = false;
        t->ready = 0;
    }
    while (t->ready)
        gr_fiber_sleep_ms(10);
    vmfs_close(d);
    OK(vmfs_leave(v, &err));
    for (unsigned i = 0; i < DEVICES; i++)
        gr_bdev_put(h->path[i]);
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

static void idle(enum vmfs_timing timing, unsigned look_ms)
{
    struct site t = { .sim = sim_new((uint64_t)test_seed()), .timing = timing };
    const struct sim_watcher w = { .request = seen, .fence = no_fence, .arg = &t };
    for (unsigned k = 0; k < DEVICES; k++)
        t.mem[k] = gr_mem_new(192u << 20);
    for (unsigned i = 0; i < HOSTS; i++) {
        struct host *h = &t.hosts[i];
        *h = (struct host){ .site = &t, .number = i, .sim = sim_host_new(t.sim) };
        for (unsigned k = 0; k < DEVICES; k++) {
            struct gr_bdev *nexus;
            assert_int_equal(gr_bdev_mem_open_shared(sim_net(t.sim), t.mem[k], &nexus), 0);
            assert_int_equal(sim_path_open(h->sim, nexus, 20000, 400000, &h->path[k]), 0);
            gr_bdev_put(nexus);
        }
        assert_int_equal(gr_fiber_start(sim_host_loop(h->sim), host_fiber, h), 0);
    }
    sim_watch(t.sim, &w);
    assert_int_equal(sim_run(t.sim, all_over, &t, 3600 * S), 0);
    for (unsigned i = 0; i < HOSTS; i++) {
        const struct host *h = &t.hosts[i];
        print_message("host %u: %llu reads in %u s, of %llu bytes at most, and %llu other requests\n", i, (unsigned long long)h->reads, IDLE_S,
                      (unsigned long long)h->largest, (unsigned long long)h->others);
        assert_int_equal(h->others, 0);
        assert_true(h->reads <= IDLE_S * 1000 / look_ms + 1 && h->largest <= VMFS_PIECE);
        assert_true(h->reads >= IDLE_S * 1000 / (look_ms + 1) - 1); /* it does look, or nobody would know that it lives */
        sim_host_free(t.hosts[i].sim);
    }
    for (unsigned k = 0; k < DEVICES; k++)
        gr_mem_free(t.mem[k]);
    sim_free(t.sim);
}

static void by_default(void **state)
{
    (void)state;
    idle(VMFS_TIMING_DEFAULT, 1000);
}

static void fast(void **state)
{
    (void)state;
    idle(VMFS_TIMING_FAST, 250);
}

TEST_MAIN(TEST(by_default), TEST(fast))
