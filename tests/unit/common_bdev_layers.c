/* Layers over memory: fault, delay, record; null; events; running out of memory. */
#include "common/bdev.h"
#include "common/fiber.h"
#include <stdlib.h>
#include <string.h>
#include "tests/lib/test.h"

enum { SIZE = 1 << 20 };
struct ctx {
    struct gr_loop *loop;
    struct gr_mem *mem;
    struct gr_bdev *lower, *layer;
    struct gr_chan *ch;
    uint8_t a[4096], b[4096];
    int step, events;
};

static int setup(void **state)
{
    struct ctx *c = calloc(1, sizeof(*c));

    assert_int_equal(gr_loop_new(NULL, &c->loop, NULL), 0);
    c->mem = gr_mem_new(SIZE);
    assert_int_equal(gr_bdev_mem_open(c->loop, c->mem, &c->lower), 0);
    memset(c->a, 0xaa, sizeof(c->a));
    *state = c;
    return 0;
}

static int teardown(void **state)
{
    struct ctx *c = *state;

    gr_chan_close(c->ch);
    gr_bdev_put(c->layer);
    gr_bdev_put(c->lower);
    gr_loop_free(c->loop);
    gr_mem_free(c->mem);
    free(c);
    return 0;
}

/* ---- fault ---- */
static int run_fault(void *arg)
{
    struct ctx *c = arg;
    struct gr_bdev *f = c->layer;

    assert_int_equal(gr_bdev_fault_add(f, &(struct gr_fault_rule){.op = GR_OP_WRITE}), -EINVAL);
    assert_int_equal(gr_bdev_fault_add(f, &(struct gr_fault_rule){.op = GR_OP_WRITE, .code = -EIO, .torn_bytes = 100}), -EINVAL);
    /* the second and third write near 8 KiB fail */
    assert_int_equal(gr_bdev_fault_add(f, &(struct gr_fault_rule){.op = GR_OP_WRITE, .off = 8192, .len = 512, .after = 1, .count = 2, .code = -EIO}), 0);
    assert_int_equal(gr_pwrite(c->ch, c->a, 4096, 4096, 0), 0);  /* before it */
    assert_int_equal(gr_pwrite(c->ch, c->a, 4096, 8704, 0), 0);  /* behind it */
    assert_int_equal(gr_pwrite(c->ch, c->a, 1024, 7680, 0), 0);  /* let pass */
    assert_int_equal(gr_pwrite(c->ch, c->a, 512, 8192, 0), -EIO);
    assert_int_equal(gr_pread(c->ch, c->b, 512, 8192), 0);       /* reads are not meant */
    assert_int_equal(gr_pwrite(c->ch, c->a, 512, 8192, 0), -EIO);
    assert_int_equal(gr_pwrite(c->ch, c->a, 512, 8192, 0), 0);
    gr_bdev_fault_clear(f);
    /* torn in the second vector */
    assert_int_equal(gr_bdev_fault_add(f, &(struct gr_fault_rule){.op = GR_OP_WRITE, .code = -EIO, .torn_bytes = 1024, .count = 1}), 0);
    struct iovec iov[2] = {{c->a, 512}, {c->a, 1536}};
    assert_int_equal(gr_pwritev(c->ch, iov, 2, 65536, 0), -EIO);
    assert_int_equal(gr_pread(c->ch, c->b, 2048, 65536), 0);
    assert_memory_equal(c->b, c->a, 1024);
    assert_int_equal(c->b[1024], 0);
    /* swallowed */
    assert_int_equal(gr_bdev_fault_add(f, &(struct gr_fault_rule){.op = GR_OP_WRITE, .swallow = true}), 0);
    assert_int_equal(gr_pwrite(c->ch, c->a, 512, 131072, GR_BIO_FUA), 0);
    assert_int_equal(gr_pread(c->ch, c->b, 512, 131072), 0);
    assert_int_equal(c->b[0], 0);
    assert_int_equal(gr_bdev_fault_add(f, &(struct gr_fault_rule){.op = GR_OP_FLUSH, .code = -GR_EMEDIUM}), 0);
    assert_int_equal(gr_flush(c->ch), -GR_EMEDIUM);
    return 0;
}

static void hung_done(struct gr_bio *bio)
{
    ((struct ctx *)bio->arg)->events++;
    assert_int_equal(bio->status, -GR_ECANCELED);
}

static void test_fault(void **state)
{
    struct ctx *c = *state;

    assert_int_equal(gr_bdev_fault_open(c->loop, c->lower, &c->layer), 0);
    assert_int_equal(gr_chan_open(c->layer, c->loop, &c->ch), 0);
    assert_int_equal(gr_fiber_run(c->loop, run_fault, c), 0);
    assert_int_equal(gr_bdev_fault_add(c->layer, &(struct gr_fault_rule){.op = GR_OP_READ, .hang = true}), 0);
    struct iovec iov = {c->b, 512};
    struct gr_bio bio = {.op = GR_OP_READ, .len = 512, .iov = &iov, .iovcnt = 1, .done = hung_done, .arg = c};
    gr_submit(c->ch, &bio);
    for (int i = 0; i < 3; i++)
        gr_loop_turn(c->loop, 1);
    assert_int_equal(c->events, 0);
    gr_chan_close(c->ch);
    c->ch = NULL;
    assert_int_equal(c->events, 1);
}

/* ---- delay ---- */
static int run_delay(void *arg)
{
    struct ctx *c = arg;
    uint64_t t0 = gr_loop_now_ns(c->loop);

    assert_int_equal(gr_pread(c->ch, c->b, 512, 0), 0);
    uint64_t t1 = gr_loop_now_ns(c->loop);
    assert_int_equal(gr_pwrite(c->ch, c->a, 512, 0, 0), 0);
    uint64_t t2 = gr_loop_now_ns(c->loop);
    assert_int_equal(gr_flush(c->ch), 0);
    assert_true(t1 - t0 >= 3000000 && t2 - t1 >= 6000000);
    return 0;
}

static void test_delay(void **state)
{
    struct ctx *c = *state;

    assert_int_equal(gr_bdev_delay_open(c->loop, c->lower, 3000000, 6000000, 0, &c->layer), 0);
    assert_int_equal(gr_chan_open(c->layer, c->loop, &c->ch), 0);
    assert_int_equal(gr_fiber_run(c->loop, run_delay, c), 0);
}

/* ---- record, over a slow device, so that requests overlap ---- */
static void flusher(void *arg)
{
    struct ctx *c = arg;

    assert_int_equal(gr_flush(c->ch), 0);
    c->step++;
}

static int run_record(void *arg)
{
    struct ctx *c = arg;
    struct gr_record *r = gr_bdev_record(c->layer);

    assert_int_equal(gr_pwrite(c->ch, c->a, 1024, 512, GR_BIO_FUA), 0);
    assert_int_equal(gr_record_note(r, "here", c), 0);
    assert_int_equal(gr_fiber_start(c->loop, flusher, c), 0);
    gr_fiber_yield(); /* the flush is under way */
    assert_int_equal(gr_unmap(c->ch, 4096, 4096, 0), 0);
    assert_int_equal(gr_compare_write(c->ch, 512, c->a, c->b, 512, NULL), 0);
    assert_int_equal(gr_compare_write(c->ch, 512, c->a, c->b, 512, NULL), -GR_EMISCOMPARE);
    assert_int_equal(gr_pread(c->ch, c->b, 512, 0), 0);
    while (!c->step)
        gr_fiber_sleep_ms(1);
    assert_int_equal(gr_pwrite(c->ch, c->a, 512, SIZE, 0), -GR_ERANGE); /* never reached the device */
    return 0;
}

static void test_record(void **state)
{
    struct ctx *c = *state;
    struct gr_bdev *delay = NULL;
    static const enum gr_op ops[] = {GR_OP_WRITE, GR_OP_EXTENTS, GR_OP_FLUSH, GR_OP_UNMAP, GR_OP_WRITE, GR_OP_READ};

    assert_int_equal(gr_bdev_delay_open(c->loop, c->lower, 0, 1000000, 30000000, &delay), 0);
    assert_int_equal(gr_bdev_record_open(c->loop, delay, &c->layer), 0);
    gr_bdev_put(delay);
    assert_int_equal(gr_chan_open(c->layer, c->loop, &c->ch), 0);
    assert_int_equal(gr_fiber_run(c->loop, run_record, c), 0);
    const struct gr_record *r = gr_bdev_record(c->layer);
    assert_int_equal(gr_record_count(r), 6);
    assert_null(gr_record_at(r, 6));
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(gr_record_at(r, i)->op, ops[i]);
    const struct gr_record_entry *w = gr_record_at(r, 0), *n = gr_record_at(r, 1), *f = gr_record_at(r, 2), *u = gr_record_at(r, 3),
                                 *cw = gr_record_at(r, 4), *no = gr_record_at(r, 5);
    assert_true(w->off == 512 && w->len == 1024 && (w->flags & GR_BIO_FUA) && w->completed == w->submitted + 1);
    assert_memory_equal(w->data, c->a, 1024);
    assert_string_equal(n->note, "here");
    assert_ptr_equal(n->note_arg, c);
    assert_true(f->submitted < u->submitted && u->completed && u->completed < f->completed); /* they overlapped */
    assert_true((cw->flags & GR_BIO_FUA) && cw->completed && cw->data[0] == 0);
    assert_true(no->len == 0 && !no->data && !no->completed);
}

static int run_record_failed(void *arg)
{
    struct ctx *c = arg;

    assert_int_equal(gr_pwrite(c->ch, c->a, 512, 0, 0), -EIO);
    return 0;
}

static void test_record_failed(void **state)
{
    struct ctx *c = *state;
    struct gr_bdev *fault = NULL;

    assert_int_equal(gr_bdev_fault_open(c->loop, c->lower, &fault), 0);
    assert_int_equal(gr_bdev_fault_add(fault, &(struct gr_fault_rule){.op = GR_OP_WRITE, .code = -EIO}), 0);
    assert_int_equal(gr_bdev_record_open(c->loop, fault, &c->layer), 0);
    gr_bdev_put(fault);
    assert_int_equal(gr_chan_open(c->layer, c->loop, &c->ch), 0);
    assert_int_equal(gr_fiber_run(c->loop, run_record_failed, c), 0);
    const struct gr_record_entry *w = gr_record_at(gr_bdev_record(c->layer), 0);
    assert_int_equal(w->completed, 0);
    assert_non_null(w->data);
}

/* ---- events, locks through layers, null ---- */
static void on_event(void *arg, enum gr_event ev)
{
    struct ctx *c = arg;

    c->events += ev == GR_EVENT_REVERTED;
}

static void test_passed_through(void **state)
{
    struct ctx *c = *state;
    struct gr_listener l = {.fn = on_event, .arg = c};
    struct gr_geometry g;

    assert_int_equal(gr_bdev_delay_open(c->loop, c->lower, 0, 0, 0, &c->layer), 0);
    gr_bdev_listen(c->layer, &l);
    gr_bdev_event(c->lower, GR_EVENT_REVERTED);
    assert_int_equal(c->events, 1);
    gr_bdev_unlisten(c->layer, &l);
    gr_bdev_event(c->lower, GR_EVENT_REVERTED);
    assert_int_equal(c->events, 1);
    assert_int_equal(c->layer->ops->trylock(c->layer, 9), 0);
    assert_int_equal(c->lower->ops->trylock(c->lower, 9), -EBUSY);
    c->layer->ops->unlock(c->layer, 9);
    assert_int_equal(gr_bdev_geometry(c->layer, &g), 0);
    assert_int_equal(g.size, SIZE);
    assert_int_equal(c->layer->ops->attr_get(c->layer, "x", (void *[]){NULL}, NULL), -EOPNOTSUPP);
}

static int run_null(void *arg)
{
    struct ctx *c = arg;

    memset(c->b, 1, sizeof(c->b));
    assert_int_equal(gr_pwrite(c->ch, c->a, 4096, 0, GR_BIO_FUA), 0);
    assert_int_equal(gr_pread(c->ch, c->b, 4096, 0), 0);
    for (size_t i = 0; i < 4096; i++)
        assert_int_equal(c->b[i], 0);
    uint64_t miss = 0;
    c->b[700] = 1;
    assert_int_equal(gr_compare_write(c->ch, 0, c->b, c->a, 1024, &miss), -GR_EMISCOMPARE);
    assert_int_equal(miss, 700);
    return 0;
}

static void test_null(void **state)
{
    struct ctx *c = *state;

    assert_int_equal(gr_bdev_null_open(c->loop, UINT64_C(1) << 62, &c->layer), 0);
    assert_int_equal(gr_chan_open(c->layer, c->loop, &c->ch), 0);
    assert_int_equal(gr_fiber_run(c->loop, run_null, c), 0);
}

/* Huge sparse memory: zeroing and describing it does not walk each page. */
static int run_sparse(void *arg)
{
    struct ctx *c = arg;
    struct gr_extent e[4];
    unsigned n = 0;
    const uint64_t huge = (UINT64_C(1) << 62), mid = UINT64_C(1) << 61;

    assert_int_equal(gr_pwrite(c->ch, c->a, 512, mid, 0), 0);
    assert_int_equal(gr_extents(c->ch, 0, huge, NULL, e, 4, &n), 0);
    assert_int_equal(n, 3);
    assert_true(e[1].off == mid && e[1].len == 4096 && e[1].flags == GR_EXTENT_DATA);
    assert_true(e[2].off + e[2].len == huge);
    assert_int_equal(gr_unmap(c->ch, 0, huge, 0), 0);
    assert_int_equal(gr_extents(c->ch, 0, huge, NULL, e, 4, &n), 0);
    assert_int_equal(n, 1);
    return 0;
}

static void test_sparse(void **state)
{
    struct ctx *c = *state;
    struct gr_mem *m = gr_mem_new(UINT64_C(1) << 62);

    assert_int_equal(gr_bdev_mem_open(c->loop, m, &c->layer), 0);
    assert_int_equal(gr_chan_open(c->layer, c->loop, &c->ch), 0);
    assert_int_equal(gr_fiber_run(c->loop, run_sparse, c), 0);
    gr_chan_close(c->ch);
    gr_bdev_put(c->layer);
    c->ch = NULL;
    c->layer = NULL;
    gr_mem_free(m);
}

/* Each allocation of one request fails once: the request fails cleanly, or works; afterwards it works. */
static int run_no_memory(void *arg)
{
    struct ctx *c = arg;
    int failed = 0;

    for (int n = 0; n < 12; n++) {
        gr_alloc_fail_after(n, 0);
        int r = gr_pwrite(c->ch, c->a, 4096, 65536 + 8192 * (uint64_t)n, 0);
        gr_alloc_fail_after(-1, 0);
        assert_true(r == 0 || r == -ENOMEM);
        failed += r < 0;
    }
    assert_true(failed > 0);
    assert_int_equal(gr_pwrite(c->ch, c->a, 4096, 0, 0), 0);
    return 0;
}

static void test_no_memory(void **state)
{
    struct ctx *c = *state;

    assert_int_equal(gr_bdev_record_open(c->loop, c->lower, &c->layer), 0);
    assert_int_equal(gr_chan_open(c->layer, c->loop, &c->ch), 0);
    assert_int_equal(gr_fiber_run(c->loop, run_no_memory, c), 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
TEST_MAIN(T(test_fault), T(test_delay), T(test_record), T(test_record_failed), T(test_passed_through), T(test_null), T(test_sparse),
          T(test_no_memory))
