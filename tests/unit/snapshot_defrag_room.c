/* Defragmenting on a datastore that has hardly any room: nothing becomes dirty that there is no run for, and what was promised to thick disks stays free. */
#include "snapshot/snapshot.h"
#include "tests/lib/test.h"
#include "vmfs/internal.h"
#include "vmfs/pool.h"
#include <stdlib.h>

#define DEVICE (192ull << 20)
#define DISK (24ull << 20)
#define PIECES (DISK / VMFS_PIECE)

struct rig {
    uint64_t rng;
    struct gr_mem *mem;
    struct gr_bdev *base, *dev;
    struct vmfs *v;
    struct vmfs_disk *d, *other;
    struct gr_chan *ch, *other_ch;
    uint8_t last[PIECES], *buf;
};

static void open_one(struct rig *g, const char *path, struct vmfs_disk **ret, struct gr_chan **ret_ch)
{
    OK(vmfs_open(g->v, path, ret, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(*ret), gr_fiber_loop(), ret_ch), 0);
}

static void put(struct rig *g, uint64_t piece)
{
    memset(g->buf, g->last[piece] = (uint8_t)(test_rand(&g->rng) % 255 + 1), VMFS_PIECE);
    assert_int_equal(gr_pwrite(g->ch, g->buf, VMFS_PIECE, piece * VMFS_PIECE, 0), 0);
}

/* Pieces behind a snapshot lie as they were written. */
static void make(struct rig *g, enum vmfs_provision provision)
{
    struct vmfs_format_opts f = { .name = "ds1" };
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "defrag" };
    *g = (struct rig){ .rng = test_seed(), .mem = gr_mem_new(DEVICE), .buf = aligned_alloc(4096, 1 << 20) };
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), g->mem, &g->base), 0);
    assert_int_equal(gr_bdev_delay_open(gr_fiber_loop(), g->base, 200000, 200000, 0, &g->dev), 0);
    OK(vmfs_format(gr_fiber_loop(), &g->base, 1, &f, &err));
    OK(vmfs_join(gr_fiber_loop(), &g->dev, 1, &o, &g->v, &err));
    OK(vmfs_create(g->v, "disk", VMFS_DISK, DISK, provision, &err));
    OK(vmfs_create(g->v, "other", VMFS_DISK, DEVICE, VMFS_THIN, &err));
    open_one(g, "disk", &g->d, &g->ch);
    open_one(g, "other", &g->other, &g->other_ch);
    memset(g->buf, 1, 1 << 20);
    memset(g->last, 1, sizeof g->last);
    for (uint64_t off = 0; off < DISK; off += 1 << 20)
        assert_int_equal(gr_pwrite(g->ch, g->buf, 1 << 20, off, 0), 0);
    OK(snap_create(&g->d, 1, "x", &err));
    for (unsigned i = 0; i < PIECES / 2; i++)
        put(g, test_rand(&g->rng) % PIECES);
    OK(vmfs_checkpoint(g->v, &err));
}

static void unmake(struct rig *g)
{
    struct vmfs_check_report rep;
    for (uint64_t p = 0; p < PIECES; p++) {
        assert_int_equal(gr_pread(g->ch, g->buf, VMFS_PIECE, p * VMFS_PIECE), 0);
        if (g->buf[0] != g->last[p] || g->buf[VMFS_PIECE - 1] != g->last[p])
            fail_msg("piece %llu has %u, not %u", (unsigned long long)p, g->buf[0], g->last[p]);
    }
    OK(vmfs_check(g->v, NULL, NULL, &rep, &err));
    gr_chan_close(g->ch);
    gr_chan_close(g->other_ch);
    vmfs_close(g->d);
    vmfs_close(g->other);
    OK(vmfs_leave(g->v, &err));
    gr_bdev_put(g->dev);
    gr_bdev_put(g->base);
    gr_mem_free(g->mem);
    free(g->buf);
}

/* ---- runs for the map ---- */
struct squeeze {
    struct rig *g;
    unsigned n, rounds, moved; /* runs taken; windows copied without any; of those moved */
    struct vmfs_run run[4096];
    bool over;
};

static void take_all(struct squeeze *k)
{
    struct vmfs *v = k->g->v;
    uint32_t got;
    for (uint64_t a; k->n < 2000 && (a = space_take_run(v, 4096, &got));)
        k->run[k->n++] = (struct vmfs_run){ a, got };
    for (uint64_t a; k->n < 4096 && (a = space_pool_take(v, leaf_units_max(v)));)
        k->run[k->n++] = (struct vmfs_run){ a, leaf_units_max(v) };
    assert_false(disk_nodes_fit(k->g->d->o));
}

static void give_all(struct squeeze *k)
{
    while (k->n)
        space_unreserve(k->g->v, k->run[k->n - 1].addr, (uint32_t)k->run[k->n - 1].units), k->n--;
}

/* Others take all runs while a window is copied, three times. */
static void squeeze_fiber(void *arg)
{
    struct squeeze *k = arg;
    struct vobj *o = k->g->d->o;
    while (k->rounds < 3 && !k->over) {
        while (!o->watch && !k->over)
            gr_fiber_yield();
        if (k->over)
            break;
        size_t dirty = k->g->v->dirty_nodes;
        take_all(k);
        k->rounds++;
        while (o->watch)
            gr_fiber_yield();
        k->moved += k->g->v->dirty_nodes > dirty;
        give_all(k);
    }
    k->over = true;
}

static int squeezed_fn(void *arg)
{
    struct rig g;
    struct squeeze k = { .g = &g };
    struct vmfs_defrag_report rep;
    (void)arg;
    make(&g, VMFS_THIN);
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), squeeze_fiber, &k), 0);
    OK(vmfs_defragment(g.d, &(struct vmfs_defrag_opts){ 0 }, &rep, &err));
    assert_true(k.over);
    print_message("%llu KiB were moved; without a run %u windows were copied, %u moved\n", (unsigned long long)rep.moved >> 10, k.rounds, k.moved);
    assert_int_equal(k.rounds, 3);
    assert_int_equal(k.moved, 0);
    assert_true(rep.moved > DISK / 8); /* the others, and the same once more */
    unmake(&g);
    return 0;
}
static void squeezed(void **state) { (void)state; test_in_fiber(squeezed_fn, NULL); }

/* ---- promises ---- */
static int promise_kept(void *arg, uint64_t done, uint64_t all, struct gr_err *err)
{
    const struct vmfs *v = arg;
    uint64_t here = space_free_here(v) + v->sp.pool_units;
    (void)done;
    (void)all;
    return here >= v->reserved_units ? 0 : gr_fail(err, -EPROTO, "%llu units are free, %llu were promised", (unsigned long long)here, (unsigned long long)v->reserved_units);
}

/* What was moved lets go of its place, but that can be used again only later. */
static int promised_fn(void *arg)
{
    struct rig g;
    struct vmfs_defrag_report rep;
    uint64_t off = 0;
    (void)arg;
    make(&g, VMFS_THICK);
    while (gr_pwrite(g.other_ch, g.buf, 65536, off, 0) == 0)
        off += 65536;
    assert_int_equal(gr_unmap(g.other_ch, 0, 3 << 20, 0), 0);
    assert_int_equal(gr_flush(g.other_ch), 0);
    for (unsigned i = 0; i < 2; i++) {
        OK(vmfs_checkpoint(g.v, &err));
        gr_fiber_sleep_ms(50);
    }
    print_message("%llu units are free here, %llu promised, %llu kept back\n", (unsigned long long)(space_free_here(g.v) + g.v->sp.pool_units),
                  (unsigned long long)g.v->reserved_units, (unsigned long long)space_meta_reserve(g.v));
    assert_true(g.v->reserved_units > 1000);
    struct vmfs_defrag_opts x = { .progress = promise_kept, .arg = g.v };
    OK(vmfs_defragment(g.d, &x, &rep, &err));
    print_message("%llu KiB were moved, %llu stayed in splinters\n", (unsigned long long)rep.moved >> 10, (unsigned long long)rep.splinters >> 10);
    assert_true(rep.moved > DISK / 8);
    unmake(&g);
    return 0;
}
static void promised(void **state) { (void)state; test_in_fiber(promised_fn, NULL); }

TEST_MAIN(TEST(squeezed), TEST(promised))
