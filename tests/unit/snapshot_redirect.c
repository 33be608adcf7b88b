/* Writes after a snapshot: the usual one is on its way to the device, and recorded, without a turn of the loop, and many share a frame of the journal;
 * what happens while its data is under way (a snapshot, a device that fails) gets what it would have got otherwise. */
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include "tests/lib/test.h"
#include "vmfs/internal.h"
#include <stdlib.h>

#define DISK (16ull << 20)
#define MANY 32u

struct rig {
    struct gr_mem *mem;
    struct gr_bdev *low, *dev;
    struct vmfs *v;
    struct vmfs_disk *d;
    struct gr_chan *ch;
};
struct io {
    struct gr_bio bio;
    struct iovec iov;
    struct gr_fiber *fiber;
    unsigned *left;
};

static void rig_open(struct rig *r, uint64_t write_ns)
{
    struct gr_loop *loop = gr_fiber_loop();
    struct vmfs_format_opts f = { .name = "redirect" };
    struct vmfs_join_opts j = { .role = VMFS_HOST, .host_name = "redirect" };
    assert_non_null(r->mem = gr_mem_new(256ull << 20));
    assert_int_equal(gr_bdev_mem_open(loop, r->mem, &r->low), 0);
    assert_int_equal(write_ns ? gr_bdev_delay_open(loop, r->low, 0, write_ns, 0, &r->dev) : gr_bdev_fault_open(loop, r->low, &r->dev), 0);
    OK(vmfs_format(loop, &r->dev, 1, &f, &err));
    OK(vmfs_join(loop, &r->dev, 1, &j, &r->v, &err));
    OK(vmfs_create(r->v, "d", VMFS_DISK, DISK, VMFS_THIN, &err));
    OK(vmfs_open(r->v, "d", &r->d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(r->d), loop, &r->ch), 0);
    gr_auto_free uint8_t *buf = gr_alloc_aligned(4096, DISK);
    memset(buf, 1, DISK);
    assert_int_equal(gr_pwrite(r->ch, buf, DISK, 0, 0), 0);
    OK(vmfs_checkpoint(r->v, &err));
    OK(snap_create(&r->d, 1, "s", &err));
}

/* The check must find it sound, that is without a unit that nobody has. */
static void rig_close(struct rig *r)
{
    struct vmfs_check_report rep;
    gr_chan_close(r->ch);
    vmfs_close(r->d);
    OK(vmfs_check(r->v, NULL, NULL, &rep, &err));
    assert_int_equal(rep.errors, 0);
    OK(vmfs_leave(r->v, &err));
    gr_bdev_put(r->dev);
    gr_bdev_put(r->low);
    gr_mem_free(r->mem);
}

static void ended(struct gr_bio *bio)
{
    struct io *io = bio->arg;
    if (--*io->left == 0)
        gr_fiber_wake(io->fiber);
}

static void io_start(struct rig *r, struct io *io, unsigned *left, uint64_t off, uint8_t byte)
{
    *io = (struct io){ .iov = { gr_alloc_aligned(4096, 4096), 4096 }, .fiber = gr_fiber_self(), .left = left };
    memset(io->iov.iov_base, byte, 4096);
    io->bio = (struct gr_bio){ .op = GR_OP_WRITE, .off = off, .len = 4096, .iov = &io->iov, .iovcnt = 1, .done = ended, .arg = io };
    gr_submit(r->ch, &io->bio);
}

static uint8_t byte_at(struct gr_chan *ch, uint64_t off)
{
    gr_auto_free uint8_t *buf = gr_alloc_aligned(4096, 4096);
    assert_int_equal(gr_pread(ch, buf, 4096, off), 0);
    assert_int_equal(buf[0], buf[4095]);
    return buf[0];
}

static uint8_t snap_byte(struct rig *r, const char *name, uint64_t off)
{
    struct gr_bdev *b;
    struct gr_chan *ch;
    OK(snap_open(r->d, name, &b, &err));
    assert_int_equal(gr_chan_open(b, gr_fiber_loop(), &ch), 0);
    uint8_t byte = byte_at(ch, off);
    gr_chan_close(ch);
    gr_bdev_put(b);
    return byte;
}

/* ---- at once ---- */
static int at_once_body(void *arg)
{
    struct rig r;
    struct io io[MANY];
    struct vmfs_stats s0, s1;
    unsigned left = MANY;
    rig_open(&r, 0);
    vmfs_stats(r.v, &s0);
    for (unsigned i = 0; i < MANY; i++)
        io_start(&r, &io[i], &left, i * 3ull * VMFS_BLOCK, (uint8_t)(2 + i));
    vmfs_stats(r.v, &s1);
    assert_int_equal(s1.writes_redirected - s0.writes_redirected, MANY);
    assert_int_equal(left, MANY); /* none is acknowledged before its record is with the device */
    assert_int_equal(s1.journal_frames, s0.journal_frames);
    while (left)
        gr_fiber_suspend();
    vmfs_stats(r.v, &s1);
    assert_int_equal(s1.journal_frames - s0.journal_frames, 1);
    for (unsigned i = 0; i < MANY; i++) {
        assert_int_equal(io[i].bio.status, 0);
        assert_int_equal(byte_at(r.ch, i * 3ull * VMFS_BLOCK), 2 + i);
        assert_int_equal(snap_byte(&r, "s", i * 3ull * VMFS_BLOCK), 1);
        free(io[i].iov.iov_base);
    }
    rig_close(&r);
    return 0;
}

static void test_at_once(void **state)
{
    test_in_fiber(at_once_body, NULL);
}

/* ---- a snapshot comes ---- */
static int late_body(void *arg)
{
    struct rig r;
    struct io io;
    unsigned left = 1;
    rig_open(&r, 2000000);
    io_start(&r, &io, &left, 5 * VMFS_BLOCK, 9);
    OK(snap_create(&r.d, 1, "later", &err)); /* the write was admitted before it */
    while (left)
        gr_fiber_suspend();
    assert_int_equal(io.bio.status, 0);
    free(io.iov.iov_base);
    assert_int_equal(byte_at(r.ch, 5 * VMFS_BLOCK), 9);
    assert_int_equal(snap_byte(&r, "later", 5 * VMFS_BLOCK), 9);
    assert_int_equal(snap_byte(&r, "s", 5 * VMFS_BLOCK), 1);
    rig_close(&r);
    return 0;
}

static void test_snapshot_meanwhile(void **state)
{
    test_in_fiber(late_body, NULL);
}

/* ---- the device fails ---- */
static int fails_body(void *arg)
{
    struct rig r;
    struct io io;
    unsigned left = 1;
    struct gr_fault_rule rule = { .op = GR_OP_WRITE, .count = 1, .code = -EIO };
    rig_open(&r, 0);
    uint64_t free_units = space_free_here(r.v);
    gr_bdev_fault_add(r.dev, &rule);
    io_start(&r, &io, &left, 5 * VMFS_BLOCK, 9);
    while (left)
        gr_fiber_suspend();
    assert_int_equal(io.bio.status, -EIO);
    free(io.iov.iov_base);
    assert_int_equal(byte_at(r.ch, 5 * VMFS_BLOCK), 1);
    assert_in_range(space_free_here(r.v), free_units - VMFS_BLOCK_PIECES + 1, free_units); /* of a block for splinters all but those is kept */
    rig_close(&r);
    return 0;
}

static void test_device_fails(void **state)
{
    test_in_fiber(fails_body, NULL);
}

TEST_MAIN(TEST(test_at_once), TEST(test_snapshot_meanwhile), TEST(test_device_fails))
