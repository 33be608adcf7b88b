/* Allocation asks nobody: two hosts write to new blocks of two disks at once, far past the regions that each began with. What a device sees of it is
 * counted: alarms that one host raises for another, compare-and-writes that another was quicker at, slots of others that are read. There is none of it
 * while each finds room where it begins to look, its share of the volume; beyond, it meets regions of others, sees whose they are, and goes on: still nobody is asked for anything. */
#include "tests/lib/sim.h"
#include "tests/lib/test.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define S 1000000000ull
#define HOSTS 2u
#define VOLUME (768ull << 20)
#define SHARE (VOLUME / 8) /* of a host: the volume has 8 slots; journals and tables lie in the first one, too */
#define WARM (1u << 20) /* written before it counts */
#define CHUNK 65536u

struct site;
struct host {
    struct site *site;
    unsigned n;
    struct sim_host *sim;
    struct gr_bdev *path;
    struct vmfs *v;
    bool warm, written, over;
};
struct site {
    struct sim *sim;
    struct gr_mem *mem;
    struct host host[HOSTS];
    struct vsuper sb;
    uint64_t disk, bytes, swaps, beaten, alarms, foreign_slots;
    bool counting;
};

static const struct host *host_of(const struct site *t, const struct sim_host *h)
{
    for (unsigned i = 0; i < HOSTS; i++)
        if (t->host[i].sim == h)
            return &t->host[i];
    return NULL;
}

static void request(void *arg, struct sim_host *sim, struct gr_bdev *path, const struct gr_bio *bio, int status)
{
    struct site *t = arg;
    const struct host *h = host_of(t, sim);
    const struct vtable *s = &t->sb.slots;
    uint64_t unit = vmfs_addr(0, bio->off / VMFS_UNIT);
    (void)path;
    if (!t->counting || !h)
        return;
    t->swaps += bio->op == GR_OP_COMPARE_WRITE;
    t->beaten += bio->op == GR_OP_COMPARE_WRITE && status == -GR_EMISCOMPARE;
    if (unit < s->addr_a || unit >= s->addr_a + (uint64_t)s->entries * s->stride)
        return;
    bool own = (unit - s->addr_a) / s->stride == h->v->slot;
    t->alarms += !own && bio->op == GR_OP_COMPARE_WRITE;
    t->foreign_slots += !own && bio->op == GR_OP_READ;
}

static void fence(void *arg, struct sim_host *h, struct gr_bdev *path, enum sim_fence what, uint64_t key)
{
    (void)arg;
    (void)h;
    (void)path;
    (void)what;
    (void)key;
}

static void join(struct host *h)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = h->n ? "one" : "zero" };
    struct gr_err err = { 0 };
    o.host_uuid[0] = (uint8_t)(h->n + 1);
    if (vmfs_join(sim_host_loop(h->sim), &h->path, 1, &o, &h->v, &err) < 0)
        fail_msg("%s", err.text);
}

static void write_all(struct host *h, struct gr_chan *ch, uint64_t from, uint64_t to)
{
    uint8_t *b = aligned_alloc(4096, CHUNK);
    memset(b, 0x5a, CHUNK);
    for (uint64_t off = from; off < to; off += CHUNK) {
        assert_int_equal(gr_pwrite(ch, b, CHUNK, off, 0), 0);
        h->site->bytes += h->site->counting ? CHUNK : 0;
        if (off % (16u << 20) == 0)
            assert_int_equal(gr_flush(ch), 0);
    }
    free(b);
}

static void wait_for_all(struct host *h, bool *mine)
{
    *mine = true;
    size_t at = (size_t)((char *)mine - (char *)h);
    for (unsigned i = 0; i < HOSTS; i++)
        while (!*(bool *)((char *)&h->site->host[i] + at))
            gr_fiber_sleep_ms(1);
}

static void host_fiber(void *arg)
{
    struct host *h = arg;
    struct vmfs_disk *d = NULL;
    struct gr_chan *ch;
    struct gr_err err = { 0 };
    char path[8];
    join(h);
    snprintf(path, sizeof path, "d%u", h->n);
    if (vmfs_create(h->v, path, VMFS_DISK, h->site->disk, VMFS_THIN, &err) < 0 || vmfs_open(h->v, path, &d, NULL, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(gr_chan_open(vmfs_bdev(d), sim_host_loop(h->sim), &ch), 0);
    write_all(h, ch, 0, WARM);
    wait_for_all(h, &h->warm);
    h->site->counting = true;
    write_all(h, ch, WARM, h->site->disk);
    wait_for_all(h, &h->written);
    h->site->counting = false;
    gr_chan_close(ch);
    vmfs_close(d);
    if (vmfs_leave(h->v, &err) < 0)
        fail_msg("%s", err.text);
    gr_bdev_put(h->path);
    h->over = true;
}

static bool all_over(void *arg)
{
    const struct site *t = arg;
    return t->host[0].over && t->host[1].over;
}

static void format_fiber(void *arg)
{
    struct host *h = arg;
    struct vmfs_format_opts f = { .name = "ds", .region_units = 1024 };
    struct gr_err err = { 0 };
    if (vmfs_format(sim_host_loop(h->sim), &h->path, 1, &f, &err) < 0)
        fail_msg("%s", err.text);
    h->over = true;
}

static bool first_is_over(void *arg)
{
    return ((const struct site *)arg)->host[0].over;
}

static void write_on_both(struct site *ret, uint64_t disk)
{
    struct site t = { .sim = sim_new((uint64_t)test_seed()), .mem = gr_mem_new(VOLUME), .disk = disk };
    for (unsigned i = 0; i < HOSTS; i++) {
        struct host *h = &t.host[i];
        struct gr_bdev *nexus;
        *h = (struct host){ .site = &t, .n = i, .sim = sim_host_new(t.sim) };
        assert_int_equal(gr_bdev_mem_open_shared(sim_net(t.sim), t.mem, &nexus), 0);
        assert_int_equal(sim_path_open(h->sim, nexus, 20000, 60000, &h->path), 0);
        gr_bdev_put(nexus);
    }
    assert_int_equal(gr_fiber_start(sim_host_loop(t.host[0].sim), format_fiber, &t.host[0]), 0);
    assert_int_equal(sim_run(t.sim, first_is_over, &t, 600 * S), 0);
    t.host[0].over = false;
    assert_int_equal(vsuper_decode(gr_mem_page(t.mem, vmfs_addr_unit(vmfs_addr(0, VMFS_SUPER_A)) * VMFS_UNIT, false), &t.sb, NULL), 0);
    sim_watch(t.sim, &(struct sim_watcher){ request, fence, &t });
    for (unsigned i = 0; i < HOSTS; i++)
        assert_int_equal(gr_fiber_start(sim_host_loop(t.host[i].sim), host_fiber, &t.host[i]), 0);
    assert_int_equal(sim_run(t.sim, all_over, &t, 3600 * S), 0);
    double gib = (double)t.bytes / (1 << 30);
    print_message("%.2f GiB written by %u hosts: per GiB %.0f regions leased, %.0f alarms raised, %.0f compare-and-writes lost to another, %.0f slots of others read\n", gib, HOSTS,
                  (double)t.swaps / gib, (double)t.alarms / gib, (double)t.beaten / gib, (double)t.foreign_slots / gib);
    assert_true(t.swaps > 10); /* regions were leased, or nothing was shown */
    assert_int_equal(t.alarms, 0);
    for (unsigned i = 0; i < HOSTS; i++)
        sim_host_free(t.host[i].sim);
    gr_mem_free(t.mem);
    sim_free(t.sim);
    *ret = t;
}

static void within_its_share(void **state)
{
    struct site t;
    (void)state;
    write_on_both(&t, SHARE / 2);
    assert_int_equal(t.beaten, 0);
    assert_int_equal(t.foreign_slots, 0);
}

static void beyond_its_share(void **state)
{
    struct site t;
    (void)state;
    write_on_both(&t, SHARE + (64u << 20));
    assert_true(t.foreign_slots > 0);
}

TEST_MAIN(TEST(within_its_share), TEST(beyond_its_share))
