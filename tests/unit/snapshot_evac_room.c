/* A device leaves, and the others' free space is in splinters, but for some whole blocks: those are left to the maps that guests' writes have changed meanwhile.
 * timeout: 60 */
#include "common/cleanup.h"
#include "tests/lib/test.h"
#include "vmfs/internal.h"
#include "vmfs/pool.h"
#include <stdlib.h>

#define LEAVES 900u
#define STEP (VMFS_LEAF_PIECES * (uint64_t)VMFS_PIECE)
#define BLOCKS 60u   /* whole ones that are left on the other device */
#define SINGLE 9000u  /* units far apart */
#define MOVES 2048u   /* units on the device that leaves */

struct rig {
    struct gr_mem *mem[2];
    struct gr_bdev *dev[2];
    struct vmfs *v;
    struct vmfs_disk *d, *maps;
    struct gr_chan *ch, *maps_ch;
    uint8_t *buf;
    unsigned piece, leaf;  /* that is written next */
    unsigned written, full;
};

static void make(struct rig *g)
{
    const uint64_t size[] = { 384ull << 20, 64ull << 20 };
    struct vmfs_format_opts f = { .name = "ds1", .slots = 2, .journal_units = 4096 };
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "room" };
    struct vmfs_device_add a = { 0 };
    *g = (struct rig){ .buf = aligned_alloc(4096, 1 << 20) };
    for (unsigned i = 0; i < 2; i++) {
        g->mem[i] = gr_mem_new(size[i]);
        assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), g->mem[i], &g->dev[i]), 0);
    }
    OK(vmfs_format(gr_fiber_loop(), g->dev, 1, &f, &err));
    OK(vmfs_join(gr_fiber_loop(), g->dev, 1, &o, &g->v, &err));
    OK(vmfs_create(g->v, "maps", VMFS_DISK, LEAVES * STEP, VMFS_THIN, &err));
    OK(vmfs_open(g->v, "maps", &g->maps, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(g->maps), gr_fiber_loop(), &g->maps_ch), 0);
    memset(g->buf, 1, 1 << 20);
    for (unsigned i = 0; i < LEAVES; i++) /* the other pieces of its block are reserved: to write those changes the map alone */
        assert_int_equal(gr_pwrite(g->maps_ch, g->buf, VMFS_PIECE, i * STEP, 0), 0);
    OK(vmfs_device_add(g->v, g->dev[1], &a, &err));
    OK(vmfs_create(g->v, "disk", VMFS_DISK, 64 << 20, VMFS_THIN, &err));
    OK(vmfs_open(g->v, "disk", &g->d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(g->d), gr_fiber_loop(), &g->ch), 0);
}

/* A disk on the device that leaves. */
static void fill(struct rig *g)
{
    struct vmfs *v = g->v;
    for (uint32_t i = v->sb.dev[1].first_region; i < v->sb.dev[1].first_region + v->sb.dev[1].regions; i++)
        OK(space_lease(v, i, &err));
    for (uint64_t n = 0; n < MOVES / VMFS_BLOCK_PIECES; n++) {
        struct vregion *r = v->sp.regions;
        while (vmfs_addr_dev(r->first) != 1 || !r->busy.free_blocks)
            r = r->next;
        v->sp.current = r;
        assert_int_equal(gr_pwrite(g->ch, g->buf, VMFS_BLOCK, n * VMFS_BLOCK, 0), 0);
    }
    assert_int_equal(gr_flush(g->ch), 0);
    OK(vmfs_checkpoint(v, &err));
}

/* What is free on the other device are some whole blocks, and units far apart. */
static void splinter(struct rig *g)
{
    struct vmfs *v = g->v;
    struct vmfs_run *run = calloc(65536, sizeof *run);
    uint32_t got, n = 0, blocks = BLOCKS, left = SINGLE;
    space_pool_fill(v);
    while (space_lease_any(v, NULL) == 0)
        ;
    for (uint64_t a; n < 65536 && (a = space_take_run(v, 4096, &got)); n++)
        run[n] = (struct vmfs_run){ a, got };
    for (uint32_t i = 0; i < n; i++) {
        uint32_t units = (uint32_t)run[i].units, whole = GR_MIN(blocks, units / VMFS_BLOCK_PIECES) * VMFS_BLOCK_PIECES;
        if (vmfs_addr_dev(run[i].addr) == 1) {
            space_unreserve(v, run[i].addr, units);
            continue;
        }
        blocks -= whole / VMFS_BLOCK_PIECES;
        space_unreserve(v, run[i].addr, whole);
        if (whole < units) /* as if somebody held them */
            space_used(v, run[i].addr + whole, units - whole);
        for (uint32_t k = whole + 1; k < units && left; k += 2, left--)
            space_freed(v, run[i].addr + k, 1, 0, v->j.durable_seq);
    }
    assert_true(!blocks && !left);
    space_reclaim(v);
    free(run);
    OK(vmfs_checkpoint(v, &err));
}

/* Whoever may change the map does, as long as it can go home. */
static int changes(void *arg, uint64_t done, uint64_t all, struct gr_err *err)
{
    struct rig *g = arg;
    struct vmfs *v = g->v;
    (void)done;
    (void)all;
    if (!space_nodes_fit_now(v, v->reserved_leaves, true))
        return gr_fail(err, -EPROTO, "%zu nodes are dirty, and what was copied took their runs", v->dirty_nodes);
    int r = 0;
    bool more = true;
    v->ckpt_running_auto = true; /* no checkpoint comes in between */
    for (unsigned i = 0; r == 0 && i < LEAVES && (more = space_nodes_fit_now(v, v->reserved_leaves + 1, true)); i++) {
        r = gr_pwrite(g->maps_ch, g->buf, VMFS_PIECE, g->leaf * STEP + g->piece * (uint64_t)VMFS_PIECE, 0);
        g->leaf = (g->leaf + 1) % LEAVES;
        g->piece = g->leaf ? g->piece : 1 + g->piece % (VMFS_BLOCK_PIECES - 1);
        g->written++;
    }
    v->ckpt_running_auto = false;
    g->full += !more;
    return r;
}

static int left_alone_fn(void *arg)
{
    struct rig g;
    (void)arg;
    make(&g);
    fill(&g);
    splinter(&g);
    g.piece = 1;
    struct vmfs_device_remove how = { .progress = changes, .arg = &g };
    OK(vmfs_device_remove(g.v, 1, &how, &err));
    print_message("%u pieces were written meanwhile, and %u times hardly a node more fitted\n", g.written, g.full);
    assert_false(g.v->fenced);
    assert_true(g.full > 0);
    for (uint64_t n = 0; n < MOVES / VMFS_BLOCK_PIECES; n++) {
        assert_int_equal(gr_pread(g.ch, g.buf, VMFS_BLOCK, n * VMFS_BLOCK), 0);
        assert_true(g.buf[0] == 1 && memcmp(g.buf, g.buf + 1, VMFS_BLOCK - 1) == 0);
    }
    gr_chan_close(g.ch);
    gr_chan_close(g.maps_ch);
    vmfs_close(g.d);
    vmfs_close(g.maps);
    vmfs_abandon(g.v); /* of what was said to be held nobody knows */
    for (unsigned i = 0; i < 2; i++) {
        gr_bdev_put(g.dev[i]);
        gr_mem_free(g.mem[i]);
    }
    free(g.buf);
    return 0;
}
static void left_alone(void **state) { (void)state; test_in_fiber(left_alone_fn, NULL); }

TEST_MAIN(TEST(left_alone))
