/* Flushes that are begun before they are asked for: whose, and when, that no more of them reach the device than are asked for while the habit is kept,
 * and that none stands for a write that ended after it had begun. */
#include "common/cleanup.h"
#include "tests/lib/test.h"
#include "vmfs/dop.h"
#include <stdlib.h>

#define FLUSH_NS 2000000ull
#define TRUSTED 9u /* times that it takes to be trusted: the first tells how many writes there are, eight confirm it */

struct rig {
    struct gr_mem *mem;
    struct gr_bdev *lower, *slow, *dev;
    struct gr_record *rec;
    struct vmfs *v;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    uint8_t *buf;
    uint64_t at;
};

static void rig_open(struct rig *r)
{
    struct vmfs_format_opts f = { .name = "ahead" };
    struct vmfs_join_opts j = { .role = VMFS_HOST, .host_name = "ahead" };
    struct gr_loop *loop = gr_fiber_loop();
    *r = (struct rig){ 0 };
    assert_non_null(r->mem = gr_mem_new(96ull << 20));
    assert_int_equal(gr_bdev_mem_open(loop, r->mem, &r->lower), 0);
    assert_int_equal(gr_bdev_delay_open(loop, r->lower, 0, 0, FLUSH_NS, &r->slow), 0);
    assert_int_equal(gr_bdev_record_open(loop, r->slow, &r->dev), 0);
    r->rec = gr_bdev_record(r->dev);
    OK(vmfs_format(loop, &r->dev, 1, &f, &err));
    OK(vmfs_join(loop, &r->dev, 1, &j, &r->v, &err));
    OK(vmfs_create(r->v, "d", VMFS_DISK, 8 << 20, VMFS_EAGER, &err));
    OK(vmfs_open(r->v, "d", &r->d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(r->d), loop, &r->ch), 0);
    assert_non_null(r->buf = gr_zalloc(VMFS_PIECE));
    for (; r->at < 64; r->at++) /* so that later ones go where these are */
        assert_int_equal(gr_pwrite(r->ch, r->buf, VMFS_PIECE, r->at * VMFS_PIECE, 0), 0);
    assert_int_equal(gr_flush(r->ch), 0);
    assert_int_equal(journal_seal(r->v), 0);
}

static void rig_close(struct rig *r)
{
    gr_chan_close(r->ch);
    vmfs_close(r->d);
    OK(vmfs_leave(r->v, &err));
    gr_bdev_put(r->dev);
    gr_bdev_put(r->slow);
    gr_bdev_put(r->lower);
    gr_mem_free(r->mem);
    free(r->buf);
}

static void write_one(struct rig *r, uint32_t flags)
{
    memset(r->buf, (int)++r->at, VMFS_PIECE);
    assert_int_equal(gr_pwrite(r->ch, r->buf, VMFS_PIECE, r->at % 64 * VMFS_PIECE, flags), 0);
}

/* Flushes that the device was asked for. */
static unsigned flushes(const struct rig *r)
{
    unsigned n = 0;
    for (size_t i = 0; i < gr_record_count(r->rec); i++)
        n += gr_record_at(r->rec, i)->op == GR_OP_FLUSH;
    return n;
}

/* After a flush: one that is over began when the last write had ended. */
static void assert_durable(const struct rig *r)
{
    uint64_t ended = 0, began = 0;
    for (size_t i = 0; i < gr_record_count(r->rec); i++) {
        const struct gr_record_entry *e = gr_record_at(r->rec, i);
        if (e->op == GR_OP_WRITE)
            ended = GR_MAX(ended, e->completed);
        else if (e->op == GR_OP_FLUSH && e->completed)
            began = GR_MAX(began, e->submitted);
    }
    assert_true(began > ended);
}

/* @writes and a flush, @times. Each is one flush of the device, whoever began it. */
static void habit(struct rig *r, unsigned writes, unsigned times)
{
    for (unsigned i = 0; i < times; i++) {
        unsigned before = flushes(r);
        for (unsigned k = 0; k < writes; k++)
            write_one(r, 0);
        assert_int_equal(gr_flush(r->ch), 0);
        assert_int_equal(flushes(r) - before, 1);
        assert_durable(r);
    }
}

/* The volume moves something, as when it defragments. */
static void pass(struct rig *r)
{
    struct dpass p;
    struct dop *op = disk_pass_begin(&p, r->d->o, 0, 1, true);
    struct iovec iov = { r->buf, VMFS_PIECE };
    assert_non_null(op);
    disk_op_finish(op, disk_write_pieces(op, 0, VMFS_PIECE, &iov, 1, false), false);
    assert_int_equal(p.bio.status, 0);
}

static void wait_flushed(void)
{
    gr_fiber_sleep_ms(3 * FLUSH_NS / 1000000);
}

static int trusted_body(void *arg)
{
    struct rig r;
    (void)arg;
    rig_open(&r);
    habit(&r, 1, TRUSTED - 1);
    unsigned n = flushes(&r);
    write_one(&r, 0);
    wait_flushed();
    assert_int_equal(flushes(&r), n); /* not yet */
    assert_int_equal(gr_flush(r.ch), 0);

    n = flushes(&r);
    write_one(&r, 0);
    gr_fiber_yield();
    assert_int_equal(flushes(&r), n + 1); /* under way when it is asked for */
    assert_int_equal(gr_flush(r.ch), 0);
    assert_int_equal(flushes(&r), n + 1);
    assert_durable(&r);

    write_one(&r, 0);
    wait_flushed();
    assert_int_equal(flushes(&r), n + 2); /* over when it is asked for */
    assert_int_equal(gr_flush(r.ch), 0);
    assert_int_equal(flushes(&r), n + 2);
    assert_durable(&r);
    habit(&r, 1, 20);

    n = flushes(&r); /* what is made durable as it is written needs none */
    write_one(&r, GR_BIO_FUA);
    write_one(&r, GR_BIO_FUA);
    assert_int_equal(flushes(&r), n + 2);
    write_one(&r, 0); /* they change no habit */
    gr_fiber_yield();
    assert_int_equal(flushes(&r), n + 3);
    wait_flushed();
    pass(&r); /* and neither does what nobody asked for */
    wait_flushed();
    assert_int_equal(flushes(&r), n + 3);
    assert_int_equal(gr_flush(r.ch), 0);
    assert_int_equal(flushes(&r), n + 4);
    assert_durable(&r);
    habit(&r, 1, 5);
    write_one(&r, 0); /* its flush is still under way when the datastore is left */
    rig_close(&r);
    return 0;
}

static void test_trusted(void **state)
{
    (void)state;
    test_in_fiber(trusted_body, NULL);
}

static int broken_body(void *arg)
{
    struct rig r;
    (void)arg;
    rig_open(&r);
    habit(&r, 1, TRUSTED);
    unsigned n = flushes(&r);
    write_one(&r, 0);
    gr_fiber_yield();
    assert_int_equal(flushes(&r), n + 1);
    write_one(&r, 0); /* while it is under way: it does not stand for this */
    assert_int_equal(gr_flush(r.ch), 0);
    assert_int_equal(flushes(&r), n + 2);
    assert_durable(&r);

    n = flushes(&r); /* that was once: from now on nobody guesses */
    for (unsigned i = 0; i < 5; i++) {
        write_one(&r, 0);
        wait_flushed();
    }
    assert_int_equal(flushes(&r), n);
    assert_int_equal(gr_flush(r.ch), 0);

    habit(&r, 3, TRUSTED); /* any number that comes again and again */
    n = flushes(&r);
    write_one(&r, 0);
    write_one(&r, 0);
    wait_flushed();
    assert_int_equal(flushes(&r), n);
    write_one(&r, 0);
    gr_fiber_yield();
    assert_int_equal(flushes(&r), n + 1);
    assert_int_equal(gr_flush(r.ch), 0);
    assert_int_equal(flushes(&r), n + 1);
    assert_durable(&r);
    rig_close(&r);
    return 0;
}

static void test_broken(void **state)
{
    (void)state;
    test_in_fiber(broken_body, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_trusted), cmocka_unit_test(test_broken) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
