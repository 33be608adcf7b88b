/* What guests unmap, 4 KiB at a time, and what is deleted goes back to the device, and nothing else does. */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/fiber.h"
#include "vmfs/internal.h"
#include <stdlib.h>
#include <string.h>

#define DEVICE (256ull << 20)
#define SIZE (64ull << 20)

struct fix {
    struct gr_mem *mem;
    struct gr_bdev *dev;
    struct vmfs *v;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    uint8_t *buf;
};

static uint64_t pages(struct fix *f)
{
    uint64_t n = 0;
    for (uint64_t off = 0; off < DEVICE; off += 4096)
        n += gr_mem_page(f->mem, off, false) != NULL;
    return n;
}

static void begin(struct fix *f, bool preallocate)
{
    struct vmfs_format_opts fo = { .name = "ds1" };
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "discard" };
    f->mem = gr_mem_new(DEVICE);
    f->buf = malloc(8 << 20);
    memset(f->buf, 7, 8 << 20);
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), f->mem, &f->dev), 0);
    fo.preallocate = preallocate;
    OK(vmfs_format(gr_fiber_loop(), &f->dev, 1, &fo, &err));
    OK(vmfs_join(gr_fiber_loop(), &f->dev, 1, &o, &f->v, &err));
    OK(vmfs_create(f->v, "disk", VMFS_DISK, SIZE, VMFS_THIN, &err));
    OK(vmfs_open(f->v, "disk", &f->d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(f->d), gr_fiber_loop(), &f->ch), 0);
}

static void close_disk(struct fix *f)
{
    gr_chan_close(f->ch);
    vmfs_close(f->d);
}

static void end(struct fix *f)
{
    struct vmfs_check_report rep;
    OK(vmfs_check(f->v, NULL, NULL, &rep, &err));
    OK(vmfs_leave(f->v, &err));
    gr_bdev_put(f->dev);
    gr_mem_free(f->mem);
    free(f->buf);
}

static uint64_t discarded(struct fix *f)
{
    struct vmfs_stats st;
    assert_int_equal(gr_flush(f->ch), 0);
    gr_fiber_sleep_ms(700); /* the journal seals what is left within half a second */
    vmfs_stats(f->v, &st);
    return st.discarded;
}

/* The most that was told between two turns of others. */
struct turns {
    struct vmfs *v;
    bool stop, ended;
    uint64_t last, most;
};
static void turns_work(void *arg)
{
    struct turns *t = arg;
    struct vmfs_stats st;
    while (!t->stop) {
        vmfs_stats(t->v, &st);
        t->most = st.discarded - t->last > t->most ? st.discarded - t->last : t->most;
        t->last = st.discarded;
        gr_fiber_yield();
    }
    t->ended = true;
}

static int small_fn(void *arg)
{
    struct fix f;
    struct turns t = { 0 };
    (void)arg;
    begin(&f, false);
    assert_int_equal(gr_pwrite(f.ch, f.buf, 8 << 20, 0, 0), 0);
    assert_int_equal(gr_flush(f.ch), 0);
    OK(vmfs_checkpoint(f.v, &err));
    uint64_t all = pages(&f);
    assert_int_equal(gr_pwrite(f.ch, f.buf, 1 << 20, 0, 0), 0); /* what is replaced is used again soon */
    assert_int_equal(discarded(&f), 0);
    for (unsigned i = 0; i < 100; i++) /* every other piece, and what begins and ends inside of one */
        assert_int_equal(gr_unmap(f.ch, (512 + 2 * i) * 4096ull, 4096, 0), 0);
    t.v = f.v;
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), turns_work, &t), 0);
    assert_int_equal(discarded(&f), 100 * 4096);
    for (t.stop = true; !t.ended;)
        gr_fiber_yield();
    assert_in_range(t.most, 4096, 16 * 4096); /* the device answers at once, but others have their turn */
    assert_int_equal(gr_unmap(f.ch, (1024 * 4096) + 512, 3 * 4096, 0), 0);
    assert_int_equal(discarded(&f), 102 * 4096);
    assert_int_equal(gr_unmap(f.ch, 1536 * 4096, 512 * 4096, 0), 0);
    assert_int_equal(discarded(&f), (102 + 512) * 4096);
    assert_in_range(all - pages(&f), 400, 102 + 512); /* the journal has taken one for each of the hundred, perhaps */
    uint8_t *now = malloc(8 << 20);
    assert_int_equal(gr_pread(f.ch, now, 8 << 20, 0), 0);
    for (unsigned p = 0; p < 1000; p++)
        assert_int_equal(now[p * 4096], p >= 512 && p < 712 && p % 2 == 0 ? 0 : 7);
    free(now);
    close_disk(&f);
    end(&f);
    return 0;
}

static int removed_fn(void *arg)
{
    struct fix f;
    (void)arg;
    begin(&f, false);
    uint64_t before = pages(&f);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(gr_pwrite(f.ch, f.buf, 8 << 20, i * (8 << 20), 0), 0);
    assert_int_equal(gr_flush(f.ch), 0);
    assert_true(pages(&f) - before > 8000);
    close_disk(&f);
    OK(vmfs_remove(f.v, "disk", &err));
    OK(vmfs_settle(f.v, 60000));
    OK(vmfs_checkpoint(f.v, &err));
    gr_fiber_sleep_ms(50);
    assert_in_range(pages(&f) - before, 0, 200);
    end(&f);
    return 0;
}

static int preallocated_fn(void *arg)
{
    struct fix f;
    (void)arg;
    begin(&f, true);
    uint64_t all = pages(&f);
    assert_int_equal(gr_pwrite(f.ch, f.buf, 8 << 20, 0, 0), 0);
    assert_int_equal(gr_unmap(f.ch, 0, 8 << 20, 0), 0);
    assert_int_equal(discarded(&f), 0);
    assert_true(pages(&f) >= all);
    close_disk(&f);
    end(&f);
    return 0;
}

/* What waited for room in the journal is told as well, when it was given up; not what was replaced. */
static int waited_fn(void *arg)
{
    struct fix f;
    (void)arg;
    begin(&f, false);
    struct vobj *o = f.d->o;
    assert_int_equal(gr_pwrite(f.ch, f.buf, 8 << 20, 0, 0), 0);
    assert_int_equal(gr_pwrite(f.ch, f.buf, 8 << 20, 8 << 20, 0), 0);
    assert_int_equal(discarded(&f), 0);
    OK(vmfs_checkpoint(f.v, &err));
    uint64_t to = space_take_block(f.v);
    journal_expect_images(f.v, f.v->j.units);
    assert_int_equal(record_map(o, 0, VMFS_LEAF_PIECES, 0, o->epoch, VMFS_P_HOLE, NULL), 0);
    assert_int_equal(record_map(o, VMFS_LEAF_PIECES, VMFS_BLOCK_PIECES, to, o->epoch, VMFS_P_ZEROED, NULL), 0);
    f.v->j.coming = 0;
    assert_int_equal(f.v->sp.foreign_units, VMFS_LEAF_PIECES + VMFS_BLOCK_PIECES);
    OK(vmfs_checkpoint(f.v, &err));
    assert_int_equal(f.v->sp.foreign_units, 0);
    assert_int_equal(discarded(&f), VMFS_LEAF_PIECES * (uint64_t)VMFS_PIECE);
    close_disk(&f);
    end(&f);
    return 0;
}

static void small(void **state)
{
    (void)state;
    test_in_fiber(small_fn, NULL);
}
static void removed(void **state)
{
    (void)state;
    test_in_fiber(removed_fn, NULL);
}
static void preallocated(void **state)
{
    (void)state;
    test_in_fiber(preallocated_fn, NULL);
}
static void waited(void **state)
{
    (void)state;
    test_in_fiber(waited_fn, NULL);
}

TEST_MAIN(TEST(small), TEST(removed), TEST(preallocated), TEST(waited))
