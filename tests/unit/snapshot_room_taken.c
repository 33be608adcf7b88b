/* Others take the room that somebody was told there is, while he waits for something else: defragmenting, detaching and a thick disk that grows look again, and
 * make nothing dirty that there is no run for. Nor does defragmenting take what was promised to thick disks.
 * timeout: 60 */
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

/* So many pieces behind a snapshot lie as they were written. */
static void make(struct rig *g, enum vmfs_provision provision, unsigned splinters)
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
    for (unsigned i = 0; i < splinters; i++)
        put(g, test_rand(&g->rng) % PIECES);
    OK(vmfs_checkpoint(g->v, &err));
}

static void unmake(struct rig *g)
{
    struct vmfs_check_report rep;
    for (uint64_t p = 0; p < PIECES; p++) {
        const uint8_t *b = g->buf + p % 256 * VMFS_PIECE;
        if (p % 256 == 0)
            assert_int_equal(gr_pread(g->ch, g->buf, 1 << 20, p * VMFS_PIECE), 0);
        if (b[0] != g->last[p] || b[VMFS_PIECE - 1] != g->last[p])
            fail_msg("piece %llu has %u, not %u", (unsigned long long)p, b[0], g->last[p]);
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
    struct vobj *o;
    unsigned n, rounds, moved; /* runs taken; windows copied without any; of those moved */
    struct vmfs_run run[4096];
    bool over;
};

static void take_all(struct squeeze *k)
{
    struct vmfs *v = k->o->v;
    uint32_t got;
    for (uint64_t a; k->n < 2000 && (a = space_take_run(v, 4096, &got));)
        k->run[k->n++] = (struct vmfs_run){ a, got };
    for (uint64_t a; k->n < 4096 && (a = space_pool_take(v, leaf_units_max(v)));)
        k->run[k->n++] = (struct vmfs_run){ a, leaf_units_max(v) };
    assert_false(disk_nodes_fit(k->o));
}

static void give_all(struct squeeze *k)
{
    for (; k->n; k->n--)
        space_unreserve(k->o->v, k->run[k->n - 1].addr, (uint32_t)k->run[k->n - 1].units);
    gr_fqueue_wake_all(&k->o->v->j.room_q);
}

/* The leaf with @piece of the live head is on the device alone. */
static void forget_leaf(struct vobj *o, uint64_t piece)
{
    struct vmfs *v = o->v;
    struct mnode *leaf;
    size_t limit = v->map_limit;
    v->map_limit = 0;
    v->map_loads += 64; /* so many others came since: none is kept for being new */
    map_evict(v);
    v->map_limit = limit;
    assert_int_equal(mtree_peek(&o->live, piece, &leaf), -EAGAIN);
}

/* Whoever is at work reads the map, and when he has it all runs are gone, but for @singles units far apart. */
static void take_while_read(struct squeeze *k, unsigned singles)
{
    struct vmfs *v = k->o->v;
    while (!v->dev[0].users)
        gr_fiber_yield();
    size_t dirty = v->dirty_nodes;
    take_all(k);
    struct vmfs_run first = k->run[0];
    assert_true(first.units >= 2ull * singles);
    for (unsigned i = 0; i < singles; i++)
        space_unreserve(v, first.addr + 2 * i, 1);
    while (v->dev[0].users)
        gr_fiber_yield();
    for (unsigned i = 0; i < 3; i++)
        gr_fiber_yield();
    assert_true(v->dirty_nodes <= dirty);
    give_all(k); /* the single ones are free already */
}

struct work {
    struct vmfs_disk *d;
    uint64_t size; /* 0: it is detached */
    int r;
    bool ended;
};

static void work_fiber(void *arg)
{
    struct work *w = arg;
    w->r = w->size ? vmfs_resize(w->d, w->size, false, NULL) : vmfs_detach(w->d, &(struct vmfs_detach){ 0 }, NULL, NULL);
    w->ended = true;
}

/* Others take all runs while a window is copied, three times. */
static void squeeze_fiber(void *arg)
{
    struct squeeze *k = arg;
    struct vobj *o = k->o;
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
    make(&g, VMFS_THIN, PIECES / 2);
    k.o = g.d->o;
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

/* A leaf of a clone of which nothing is left but that it was unmapped is copied. */
static int detached_fn(void *arg)
{
    struct rig g;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    (void)arg;
    make(&g, VMFS_THIN, 0);
    assert_int_equal(gr_pwrite(g.other_ch, g.buf, VMFS_BLOCK, 0, 0), 0); /* nothing of it stays reserved */
    assert_int_equal(gr_unmap(g.other_ch, 0, VMFS_BLOCK, 0), 0);
    OK(snap_create(&g.other, 1, "s", &err));
    OK(snap_clone(g.other, "s", "clone", &err));
    open_one(&g, "clone", &d, &ch);
    struct squeeze k = { .g = &g, .o = d->o };
    struct work w = { .d = d };
    g.v->ckpt_cleaning = true; /* it waits for a turn there */
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), work_fiber, &w), 0);
    while (!g.v->j.room_q.head)
        gr_fiber_yield();
    forget_leaf(d->o, 0);
    g.v->ckpt_cleaning = false;
    gr_fqueue_wake_all(&g.v->j.room_q);
    take_while_read(&k, 0);
    while (!w.ended)
        gr_fiber_sleep_ms(1);
    assert_true(w.r == 0 || w.r == -GR_ENOSPACE);
    OK(vmfs_detach(d, &(struct vmfs_detach){ 0 }, NULL, &err));
    gr_chan_close(ch);
    vmfs_close(d);
    unmake(&g);
    return 0;
}
static void detached(void **state) { (void)state; test_in_fiber(detached_fn, NULL); }

/* What it gets now lies in a leaf that it has: units for it there are, far apart. */
static int grown_fn(void *arg)
{
    struct rig g;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    uint64_t size = (28ull << 20) + VMFS_BLOCK;
    (void)arg;
    make(&g, VMFS_THIN, 0);
    OK(vmfs_create(g.v, "thick", VMFS_DISK, size, VMFS_THICK, &err));
    open_one(&g, "thick", &d, &ch);
    struct squeeze k = { .g = &g, .o = d->o };
    struct work w = { .d = d, .size = size + (1 << 20) };
    OK(vmfs_checkpoint(g.v, &err));
    OK(mtree_load(d->o, &d->o->live, size / VMFS_PIECE, &err));
    forget_leaf(d->o, size / VMFS_PIECE);
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), work_fiber, &w), 0);
    take_while_read(&k, 40);
    while (!w.ended)
        gr_fiber_sleep_ms(1);
    assert_true(w.r == 0 || w.r == -GR_ENOSPACE);
    OK(vmfs_resize(d, size + (1 << 20), false, &err));
    gr_chan_close(ch);
    vmfs_close(d);
    unmake(&g);
    return 0;
}
static void grown(void **state) { (void)state; test_in_fiber(grown_fn, NULL); }

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
    make(&g, VMFS_THICK, PIECES / 2);
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

/* As a thick disk it is promised that all of it can be. */
static void overwrite_all(struct rig *g)
{
    memset(g->buf, 7, 1 << 20);
    memset(g->last, 7, sizeof g->last);
    for (uint64_t off = 0; off < DISK; off += 1 << 20)
        assert_int_equal(gr_pwrite(g->ch, g->buf, 1 << 20, off, 0), 0);
}

/* What a thick disk had used of its promise it is promised again when it goes back: that lies elsewhere, and is given back. */
static int reverted_fn(void *arg)
{
    struct rig g;
    uint64_t off = 0;
    (void)arg;
    make(&g, VMFS_THICK, PIECES / 2);
    uint64_t before = g.v->reserved_units;
    OK(snap_revert(g.d, "x", &err));
    memset(g.last, 1, sizeof g.last);
    OK(snap_settle(g.d, &err));
    print_message("%llu units were promised, %llu are\n", (unsigned long long)before, (unsigned long long)g.v->reserved_units);
    while (gr_pwrite(g.other_ch, g.buf, 65536, off, 0) == 0)
        off += 65536;
    overwrite_all(&g);
    unmake(&g);
    return 0;
}
static void reverted(void **state) { (void)state; test_in_fiber(reverted_fn, NULL); }

/* What it was before it was cut is more than there is room for by now: it stays what it is until there is. */
static int longer_then_fn(void *arg)
{
    struct rig g;
    uint64_t off = 0;
    (void)arg;
    make(&g, VMFS_THICK, PIECES);
    OK(vmfs_resize(g.d, 1 << 20, true, &err));
    for (unsigned i = 0; i < 2; i++) { /* what that let go of may be used again */
        OK(vmfs_checkpoint(g.v, &err));
        gr_fiber_sleep_ms(50);
    }
    while (gr_pwrite(g.other_ch, g.buf, 65536, off, 0) == 0)
        off += 65536;
    FAILS(-GR_ENOSPACE, "bytes are missing", snap_revert(g.d, "x", &err));
    assert_int_equal(g.d->o->ino.size, 1 << 20);
    assert_true(space_free_here(g.v) + g.v->sp.pool_units >= g.v->reserved_units);
    assert_int_equal(gr_unmap(g.other_ch, 0, DISK, 0), 0);
    assert_int_equal(gr_flush(g.other_ch), 0);
    for (unsigned i = 0; i < 2; i++) {
        OK(vmfs_checkpoint(g.v, &err));
        gr_fiber_sleep_ms(50);
    }
    OK(snap_revert(g.d, "x", &err));
    OK(snap_settle(g.d, &err));
    assert_int_equal(g.d->o->reserved_units, PIECES);
    for (off = 0; gr_pwrite(g.other_ch, g.buf, 65536, off, 0) == 0;)
        off += 65536;
    overwrite_all(&g);
    unmake(&g);
    return 0;
}
static void longer_then(void **state) { (void)state; test_in_fiber(longer_then_fn, NULL); }

TEST_MAIN(TEST(squeezed), TEST(detached), TEST(grown), TEST(promised), TEST(reverted), TEST(longer_then))
