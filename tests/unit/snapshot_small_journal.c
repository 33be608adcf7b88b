/* A volume that was made small and has grown: its journal holds the images of few regions, and what one change gives back lies in many. */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/fiber.h"
#include "snapshot/snapshot.h"
#include "vmfs/internal.h"

#define MIB ((uint64_t)1 << 20)
#define LEAVES 136u /* of a disk */
#define DISKS 2u
#define LEAF_BYTES (2 * MIB)

struct world {
    struct gr_mem *mem[2];
    struct gr_bdev *dev[2];
    struct vmfs *v;
    struct vmfs_disk *disk[DISKS];
    struct gr_chan *ch[DISKS];
};

static void say(void *arg, const char *text)
{
    (void)arg;
    print_message("# %s\n", text);
}

static void join(struct world *w)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "one", .warn = say };
    OK(vmfs_join(gr_fiber_loop(), w->dev, 2, &o, &w->v, &err));
}

static void fill(struct world *w)
{
    uint8_t *buf = vunits_alloc(256);
    for (unsigned i = 0; i < DISKS; i++)
        for (uint64_t at = 0; at < LEAVES * LEAF_BYTES; at += MIB)
            OK(gr_pwrite(w->ch[i], buf, MIB, at, 0));
    free(buf);
}

/* Pieces of each leaf get places far from each other, those of each disk in regions of its own. */
static void scatter(struct world *w)
{
    uint8_t *buf = vunits_alloc(4);
    for (unsigned i = 0; i < DISKS; i++)
        for (uint64_t at = 0; at < LEAF_BYTES; at += 16384)
            for (unsigned leaf = 0; leaf < LEAVES; leaf++)
                OK(gr_pwrite(w->ch[i], buf, 16384, leaf * LEAF_BYTES + at, 0));
    free(buf);
}

static void start(struct world *w)
{
    struct vmfs_format_opts f = { .name = "ds1", .region_units = 1024 };
    const uint64_t size[] = { 40 * MIB, 1300 * MIB };
    struct vmfs_device_add a = { 0 };
    for (unsigned i = 0; i < 2; i++) {
        w->mem[i] = gr_mem_new(size[i]);
        assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), w->mem[i], &w->dev[i]), 0);
    }
    OK(vmfs_format(gr_fiber_loop(), w->dev, 1, &f, &err));
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "one", .warn = say };
    OK(vmfs_join(gr_fiber_loop(), w->dev, 1, &o, &w->v, &err));
    OK(vmfs_device_add(w->v, w->dev[1], &a, &err));
    for (unsigned i = 0; i < DISKS; i++) {
        OK(vmfs_create(w->v, i ? "b" : "a", VMFS_DISK, LEAVES * LEAF_BYTES, VMFS_THIN, &err));
        OK(vmfs_open(w->v, i ? "b" : "a", &w->disk[i], NULL, &err));
        assert_int_equal(gr_chan_open(vmfs_bdev(w->disk[i]), gr_fiber_loop(), &w->ch[i]), 0);
    }
    fill(w);
    OK(snap_create(w->disk, DISKS, "s", &err));
    scatter(w);
    OK(vmfs_checkpoint(w->v, &err));
    OK(vmfs_checkpoint(w->v, &err)); /* the journal is empty */
    assert_int_equal(w->v->j.units, 256);
}

static void let_go(struct world *w)
{
    for (unsigned i = 0; i < DISKS; i++) {
        gr_chan_close(w->ch[i]);
        vmfs_close(w->disk[i]);
    }
}

static void end(struct world *w)
{
    struct vmfs_check_report rep;
    OK(vmfs_check(w->v, say, NULL, &rep, &err));
    assert_int_equal(rep.leaked_units, 0);
    for (unsigned i = 0; i < 16 && w->v->sp.n_foreign; i++) {
        OK(vmfs_file_write(w->v, "note", NULL, &i, sizeof i, &err));
        OK(vmfs_checkpoint(w->v, &err));
    }
    assert_int_equal(w->v->sp.n_foreign, 0); /* nothing waits for ever */
    OK(vmfs_leave(w->v, &err));
    for (unsigned i = 0; i < 2; i++) {
        gr_bdev_put(w->dev[i]);
        gr_mem_free(w->mem[i]);
    }
}

static void checkpoint(void *arg)
{
    struct vmfs *v = arg;
    OK(vmfs_checkpoint(v, &err));
}

/* While the images of what one unmap gave back are on their way another gives back as much: together they are more than the journal holds. */
static int meanwhile_fn(void *arg)
{
    struct world w = { 0 };
    (void)arg;
    start(&w);
    OK(gr_unmap(w.ch[0], 0, LEAF_BYTES, 0));
    assert_true(w.v->sp.images > 128);
    uint64_t before = w.v->ckpt_started;
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), checkpoint, w.v), 0);
    while (w.v->ckpt_started == before)
        gr_fiber_yield();
    OK(gr_unmap(w.ch[0], LEAF_BYTES, LEAF_BYTES, 0));
    OK(vmfs_checkpoint(w.v, &err));
    let_go(&w);
    end(&w);
    return 0;
}
static void meanwhile(void **state)
{
    (void)state;
    test_in_fiber(meanwhile_fn, NULL);
}

/* Two give back so much, and neither is too much when it begins. With a cut a recovery has what is left of the journal. */
static void together(bool cut)
{
    struct world w = { 0 };
    start(&w);
    for (unsigned i = 0; i < DISKS; i++)
        OK(gr_unmap(w.ch[i], 0, LEAF_BYTES, 0));
    OK(gr_flush(w.ch[0]));
    if (!cut)
        OK(vmfs_checkpoint(w.v, &err));
    let_go(&w);
    if (cut) {
        vmfs_abandon(w.v);
        join(&w);
    }
    end(&w);
}
static int together_fn(void *arg)
{
    together(*(bool *)arg);
    return 0;
}
static void two_at_once(void **state)
{
    bool cut = false;
    (void)state;
    test_in_fiber(together_fn, &cut);
}
static void recovered(void **state)
{
    bool cut = true;
    (void)state;
    test_in_fiber(together_fn, &cut);
}

TEST_MAIN(TEST(meanwhile), TEST(two_at_once), TEST(recovered))
