/* The self-test of a shared device: an honest one passes, through a delay too, and is left as it was; each lie is found, and named. */
#include "common/bdev_probe.h"
#include "common/bdev_layer.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "common/iov.h"
#include "tests/lib/test.h"
#include <stdlib.h>
#include <string.h>

enum { SIZE = 1 << 20, OFF = 8 * 4096, LATE_MS = 60 };
enum lie { HONEST, WRITES_PASS, READS_PASS, NOT_JOINT, NOT_SEEN, NO_CAW, CAW_BLIND, CAW_IDLE, CAW_ALWAYS, CAW_ANYWAY, CAW_SLOPPY,
           EJECT_IDLE, EJECT_EARLY, FORGETS };
struct liar { /* a layer over a handle, with a way around the fence */
    struct gr_layer layer;
    struct gr_chan *back;
    enum lie lie;
    bool second;
    uint64_t key;
};

static struct liar *liar_of(const struct gr_chan *ch)
{
    return (struct liar *)ch->bdev;
}

static void around(struct gr_layer_req *req)
{
    gr_submit(liar_of(req->ch)->back, &req->low);
}

/* It was fenced, and is done all the same. */
static void pass_done(struct gr_bio *low)
{
    struct gr_layer_req *req = low->arg;
    if (low->status != -GR_EFENCED) {
        gr_layer_end(req, low->status);
        return;
    }
    low->done = gr_layer_done_up;
    around(req);
}

static void ignore(struct gr_bio *bio)
{
    assert_int_equal(bio->status, 0);
}

static void caw_done(struct gr_bio *low)
{
    struct gr_layer_req *req = low->arg;
    enum lie lie = liar_of(req->ch)->lie;
    bool equal = low->status == 0;
    if (low->status < 0 && low->status != -GR_EMISCOMPARE) {
        gr_layer_end(req, low->status);
        return;
    }
    if (!equal) { /* written anyway */
        struct gr_bio w = {.op = GR_OP_WRITE, .off = low->off, .len = low->len, .iov = low->iov2, .iovcnt = low->iovcnt2, .done = ignore};
        gr_submit(liar_of(req->ch)->back, &w); /* memory: done at once */
    }
    gr_layer_end(req, equal || lie == CAW_ALWAYS ? 0 : -GR_EMISCOMPARE);
}

static void late(void *arg)
{
    around(arg);
}

/* Compares now, writes later. */
static void sloppy_done(struct gr_bio *low)
{
    struct gr_layer_req *req = low->arg;
    const struct gr_bio *up = req->up;
    uint8_t *p = low->iov->iov_base;
    size_t same = gr_iov_diff(up->iov, up->iovcnt, 0, p, up->len);
    low->op = GR_OP_WRITE;
    low->iov = up->iov2;
    low->iovcnt = up->iovcnt2;
    low->done = gr_layer_done_up;
    free(p);
    if (same < up->len)
        gr_layer_end(req, -GR_EMISCOMPARE);
    else
        assert_int_equal(gr_timer_arm(req->ch->loop, &req->timer, 1000000), 0);
}

static struct iovec sloppy_iov[2]; /* one of each handle at a time */
static void sloppy(struct gr_layer_req *req)
{
    struct iovec *v = &sloppy_iov[liar_of(req->ch)->second];
    *v = (struct iovec){malloc(req->up->len), req->up->len};
    assert_non_null(v->iov_base);
    req->low.op = GR_OP_READ;
    req->low.iov = v;
    req->low.iovcnt = 1;
    req->low.done = sloppy_done;
    around(req);
}

static void liar_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    struct liar *l = liar_of(ch);
    struct gr_layer_req *req = gr_layer_req_get(ch, bio);
    bool caw = bio->op == GR_OP_COMPARE_WRITE;
    assert_non_null(req);
    req->timer = (struct gr_timer){.fn = late, .arg = req};
    if ((l->lie == WRITES_PASS && bio->op == GR_OP_WRITE) || (l->lie == READS_PASS && bio->op == GR_OP_READ)) {
        req->low.done = pass_done;
    } else if (l->lie == NOT_JOINT && l->second && l->key && bio->op == GR_OP_READ) {
        gr_layer_end(req, -GR_EFENCED);
        return;
    } else if (l->lie == NOT_SEEN && bio->op == GR_OP_WRITE && l->key) {
        gr_layer_end(req, 0);
        return;
    } else if (l->lie == EJECT_EARLY && bio->op == GR_OP_WRITE && !l->second && !(bio->flags & GR_BIO_FUA) && l->key) {
        assert_int_equal(gr_timer_arm(ch->loop, &req->timer, LATE_MS * UINT64_C(1000000)), 0);
        return;
    } else if (caw && (l->lie == NO_CAW || l->lie == CAW_IDLE || l->lie == CAW_BLIND)) {
        gr_layer_end(req, l->lie == NO_CAW ? -EOPNOTSUPP : l->lie == CAW_BLIND ? -GR_EMISCOMPARE : 0);
        return;
    } else if (caw && (l->lie == CAW_ALWAYS || l->lie == CAW_ANYWAY)) {
        req->low.done = caw_done;
    } else if (caw && l->lie == CAW_SLOPPY) {
        sloppy(req);
        return;
    }
    gr_layer_send(req);
}

static void liar_close(struct gr_bdev *bdev)
{
    struct liar *l = (struct liar *)bdev;
    gr_chan_close(l->back);
    gr_layer_done(&l->layer);
    free(l);
}

static const struct gr_bdev_ops liar_ops = {
    .type = "liar", .submit = liar_submit, .close = liar_close, .chan_close = gr_layer_chan_close, GR_LAYER_OPS};

/* ---- its fence ---- */
static struct gr_bdev *low_of(struct gr_bdev *b)
{
    return ((struct liar *)b)->layer.lower;
}
static int liar_enter(struct gr_bdev *b, uint64_t key, struct gr_err *err)
{
    ((struct liar *)b)->key = key;
    return low_of(b)->fence->enter(low_of(b), key, err);
}
static int liar_leave(struct gr_bdev *b, struct gr_err *err)
{
    ((struct liar *)b)->key = 0;
    return low_of(b)->fence->leave(low_of(b), err);
}
static int liar_eject(struct gr_bdev *b, uint64_t key, struct gr_err *err)
{
    return ((struct liar *)b)->lie == EJECT_IDLE ? 0 : low_of(b)->fence->eject(low_of(b), key, err);
}
static int liar_keys(struct gr_bdev *b, uint64_t *keys, unsigned max, unsigned *ret_n, struct gr_err *err)
{
    return low_of(b)->fence->keys(low_of(b), keys, max, ret_n, err);
}
static int liar_clear(struct gr_bdev *b, struct gr_err *err)
{
    return low_of(b)->fence->clear(low_of(b), err);
}
static int liar_persists(struct gr_bdev *b, struct gr_err *err)
{
    return ((struct liar *)b)->lie == FORGETS ? gr_fail(err, -EOPNOTSUPP, "it forgets") : 0;
}
static const struct gr_fence_ops liar_fence = {
    .enter = liar_enter, .leave = liar_leave, .eject = liar_eject, .keys = liar_keys, .clear = liar_clear, .persists = liar_persists};

static struct gr_bdev *handle(struct gr_mem *m, enum lie lie, bool second, uint64_t delay_ns)
{
    struct gr_loop *loop = gr_fiber_loop();
    struct gr_bdev *low = NULL, *plain = NULL, *slow = NULL;
    struct liar *l = gr_zalloc(sizeof(*l));
    assert_non_null(l);
    assert_int_equal(gr_bdev_mem_open_shared(loop, m, &low), 0);
    assert_int_equal(gr_bdev_mem_open(loop, m, &plain), 0);
    assert_int_equal(gr_chan_open(plain, loop, &l->back), 0);
    if (delay_ns)
        assert_int_equal(gr_bdev_delay_open(loop, low, 0, delay_ns, 0, &slow), 0);
    gr_layer_init(&l->layer, &liar_ops, slow ? slow : low);
    l->layer.base.fence = &liar_fence;
    l->lie = lie;
    l->second = second;
    gr_bdev_put(slow);
    gr_bdev_put(low);
    gr_bdev_put(plain);
    return &l->layer.base;
}

static int outside(void *arg, struct gr_bdev **ret, struct gr_err *err)
{
    uint8_t unit[4096]; /* in the middle of it: who is cut off here leaves that */
    memcpy(unit, gr_mem_page(arg, OFF, false), sizeof unit);
    assert_true(gr_bdev_probe_left(unit));
    unit[4000] ^= 1;
    assert_false(gr_bdev_probe_left(unit));
    memset(unit, 0, sizeof unit);
    assert_false(gr_bdev_probe_left(unit));
    return gr_bdev_mem_open_shared(gr_fiber_loop(), arg, ret);
}
static int inside(void *arg, struct gr_bdev **ret, struct gr_err *err)
{
    return gr_bdev_mem_open(gr_fiber_loop(), arg, ret);
}

static void expect(enum lie lie, const char *sentence, int (*again)(void *, struct gr_bdev **, struct gr_err *), uint64_t delay_ns)
{
    struct gr_mem *m = gr_mem_new(SIZE);
    struct gr_bdev *a = handle(m, lie, false, delay_ns), *b = handle(m, lie, true, delay_ns);
    const struct gr_probe_opts o = {.off = OFF, .races = 20, .watch_ms = 2 * LATE_MS, .again = again, .arg = m};
    struct gr_probe seen;
    struct gr_err err = {0};
    memset(gr_mem_page(m, OFF, true), 0x77, 4096);
    int r = gr_bdev_probe(a, b, &o, &seen, &err);
    if (r != (sentence ? -EOPNOTSUPP : 0) || (sentence && !strstr(err.text, sentence)))
        fail_msg("lie %d: %d, '%s'", lie, r, err.text);
    if (!sentence)
        assert_true(seen.fence && seen.shuts_out_writes && seen.joint && seen.shuts_out_reads && seen.swaps && seen.miscompares && seen.one_winner &&
                    seen.ejects && seen.drains && seen.flushes && seen.outlasts_power && seen.outlasts_session == (again == outside));
    unsigned n = 1;
    assert_int_equal(a->fence->keys(a, NULL, 0, &n, NULL), 0);
    assert_int_equal(n, 0);
    const uint8_t *p = gr_mem_page(m, OFF, false);
    for (int i = 0; lie != NOT_SEEN && i < 4096; i++)
        assert_int_equal(p[i], 0x77);
    gr_bdev_put(a);
    gr_bdev_put(b);
    gr_mem_free(m);
}

/* A device that a host, registered as @key, has in use. */
static void expect_member(enum lie lie, const char *sentence)
{
    struct gr_mem *m = gr_mem_new(SIZE);
    struct gr_bdev *a = handle(m, lie, false, 0), *b = handle(m, lie, true, 0);
    const uint64_t key = 4711;
    uint64_t keys[4];
    unsigned n = 0;
    struct gr_probe seen;
    struct gr_err err = {0};
    memset(gr_mem_page(m, OFF, true), 0x77, 4096);
    assert_int_equal(a->fence->enter(a, key, NULL), 0);
    int r = gr_bdev_probe_member(a, b, OFF, &seen, &err);
    if (r != (sentence ? -EOPNOTSUPP : 0) || (sentence && !strstr(err.text, sentence)))
        fail_msg("lie %d: %d, '%s'", lie, r, err.text);
    if (!sentence)
        assert_true(seen.fence && seen.shuts_out_reads && seen.shuts_out_writes && seen.joint && seen.miscompares && seen.ejects && seen.flushes);
    assert_int_equal(a->fence->keys(a, keys, 4, &n, NULL), 0);
    assert_int_equal(n, 1);
    assert_int_equal(keys[0], key);
    for (int i = 0; i < 4096; i++)
        assert_int_equal(((const uint8_t *)gr_mem_page(m, OFF, false))[i], 0x77);
    gr_bdev_put(a);
    gr_bdev_put(b);
    gr_mem_free(m);
}

/* One that was cut off left its nexus registered: nobody is accused of that, it goes, and nobody else does. */
static void after_a_crash(bool member, bool holds)
{
    struct gr_mem *m = gr_mem_new(SIZE);
    struct gr_bdev *a = handle(m, HONEST, false, 0), *b = handle(m, HONEST, true, 0), *c = NULL;
    uint64_t keys[4];
    unsigned n = 0;
    struct gr_probe seen;
    struct gr_err err = {0};
    assert_int_equal(gr_bdev_mem_open_shared(gr_fiber_loop(), m, &c), 0);
    if (holds)
        assert_int_equal(b->fence->enter(b, 99, &err), 0); /* the first: it holds the reservation */
    assert_int_equal(c->fence->enter(c, 5, &err), 0);
    if (!holds)
        assert_int_equal(b->fence->enter(b, 99, &err), 0);
    if (member)
        assert_int_equal(a->fence->enter(a, 4711, &err), 0);
    for (uint64_t i = 0, v = 77; i < 512; i++, v += UINT64_C(0x9e3779b97f4a7c15))
        memcpy((uint8_t *)gr_mem_page(m, OFF, true) + i * 8, &v, 8);
    int r = member ? gr_bdev_probe_member(a, b, OFF, &seen, &err) : gr_bdev_probe(a, b, &(struct gr_probe_opts){.off = OFF, .races = 5, .watch_ms = 10}, &seen, &err);
    if (r < 0)
        fail_msg("%s", err.text);
    assert_int_equal(a->fence->keys(a, keys, 4, &n, NULL), 0);
    assert_int_equal(n, member || holds ? 2 : 1); /* of two who leave, the one that holds the reservation stays: the host itself */
    bool in = false;
    for (unsigned i = 0; i < n; i++) {
        in |= keys[i] == 5;
        assert_int_not_equal(keys[i], 99);
    }
    assert_true(in);
    assert_int_equal(gr_bdev_probe_left(gr_mem_page(m, OFF, false)), member); /* it goes with the next whole one */
    uint8_t p[512];
    struct gr_chan *ch = NULL;
    assert_int_equal(gr_chan_open(b, gr_fiber_loop(), &ch), 0);
    assert_int_equal(gr_pread(ch, p, sizeof(p), 0), -GR_EFENCED);
    gr_chan_close(ch);
    gr_bdev_put(a);
    gr_bdev_put(b);
    gr_bdev_put(c);
    gr_mem_free(m);
}

static int in_use(void *arg)
{
    (void)arg;
    for (int i = 0; i < 4; i++)
        after_a_crash(i & 1, i & 2);
    expect_member(HONEST, NULL);
    expect_member(READS_PASS, "lets who is not registered read");
    expect_member(WRITES_PASS, "still writes");
    expect_member(NOT_JOINT, "does not let all who are registered");
    expect_member(CAW_ALWAYS, "finds equal what is not");
    expect_member(EJECT_IDLE, "still writes");
    return 0;
}

static int honest(void *arg)
{
    expect(HONEST, NULL, outside, 0);
    expect(HONEST, NULL, NULL, 3000000);
    return 0;
}

static int lying(void *arg)
{
    expect(WRITES_PASS, "lets who is not registered write", NULL, 0);
    expect(READS_PASS, "lets who is not registered read", NULL, 0);
    expect(NOT_JOINT, "does not let all who are registered", NULL, 0);
    expect(NOT_SEEN, "the other does not read", NULL, 0);
    expect(NO_CAW, "no COMPARE AND WRITE", NULL, 0);
    expect(CAW_BLIND, "does not find equal what is", NULL, 0);
    expect(CAW_IDLE, "does not write", NULL, 0);
    expect(CAW_ALWAYS, "finds equal what is not", NULL, 0);
    expect(CAW_ANYWAY, "writes though", NULL, 0);
    expect(CAW_SLOPPY, "both win", NULL, 0);
    expect(EJECT_IDLE, "still writes", NULL, 0);
    expect(EJECT_EARLY, "lands after", NULL, 0);
    expect(FORGETS, "loss of power", NULL, 0);
    expect(HONEST, "over a new session", inside, 0);
    return 0;
}

/* A host that works there meanwhile notices nothing, and what it holds stays. */
static int others(void *arg)
{
    struct gr_mem *m = gr_mem_new(SIZE);
    struct gr_bdev *a = handle(m, HONEST, false, 0), *b = handle(m, HONEST, true, 0), *c = NULL, *plain = NULL;
    struct gr_chan *ch = NULL;
    struct gr_probe seen;
    struct gr_err err = {0};
    uint8_t p[512] = {1};
    assert_int_equal(gr_bdev_mem_open_shared(gr_fiber_loop(), m, &c), 0);
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), m, &plain), 0);
    assert_int_equal(c->fence->enter(c, 5, &err), 0);
    assert_int_equal(gr_chan_open(c, gr_fiber_loop(), &ch), 0);
    assert_int_equal(gr_bdev_probe(a, b, &(struct gr_probe_opts){.off = OFF, .races = 5, .watch_ms = 10}, &seen, &err), 0);
    assert_int_equal(gr_pwrite(ch, p, 512, 0, 0), 0);
    uint64_t key = 0;
    unsigned n = 0;
    assert_int_equal(c->fence->keys(c, &key, 1, &n, &err), 0);
    assert_true(n == 1 && key == 5);
    assert_int_equal(gr_bdev_probe(plain, plain, &(struct gr_probe_opts){.off = OFF}, &seen, &err), -EOPNOTSUPP);
    assert_non_null(strstr(err.text, "no fence"));
    gr_chan_close(ch);
    gr_bdev_put(plain);
    gr_bdev_put(a);
    gr_bdev_put(b);
    gr_bdev_put(c);
    gr_mem_free(m);
    return 0;
}

static void t_honest(void **state) { test_in_fiber(honest, NULL); }
static void t_lying(void **state) { test_in_fiber(lying, NULL); }
static void t_in_use(void **state) { test_in_fiber(in_use, NULL); }
static void t_others(void **state) { test_in_fiber(others, NULL); }
TEST_MAIN(TEST(t_honest), TEST(t_lying), TEST(t_others), TEST(t_in_use))
