/* Journals that are kept twice: frames that are whole in one area only, in the one or in the other, and recoveries that end at any step. What was
 * flushed is there; what a recovery has seen is in both areas before it does anything.
 * timeout: 60 */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/fiber.h"
#include "vmfs/internal.h"
#include <stdio.h>

#define MIB ((uint64_t)1 << 20)
#define DEVICES 2u
#define DEVICE_BYTES (48 * MIB)
#define PIECES 256u
#define NONE 2u

struct site {
    struct gr_mem *mem[DEVICES];
    struct gr_bdev *low[DEVICES], *dev[DEVICES]; /* dev: with faults */
    struct vmfs *v;
    uint64_t rng;
    uint64_t area[2]; /* where the journal lies, and its mirror */
    uint32_t units;
    uint32_t says[PIECES], unflushed[PIECES];
};

static unsigned rnd(struct site *s, unsigned n) { return (unsigned)(test_rand(&s->rng) % n); }

static int join(struct site *s, struct gr_err *err)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "a", .host_uuid = "a" };
    return vmfs_join(gr_fiber_loop(), s->dev, DEVICES, &o, &s->v, err);
}

/* Writes in many frames, each of them flushed; then one that nobody flushed; and the host is gone. */
static void make(struct site *s)
{
    struct vmfs_format_opts f = { .name = "ds1" };
    struct vmfs_disk *d;
    struct gr_chan *ch;
    uint32_t buf[VMFS_PIECE / 4];
    for (unsigned i = 0; i < DEVICES; i++) {
        s->mem[i] = gr_mem_new(DEVICE_BYTES);
        assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), s->mem[i], &s->low[i]), 0);
        assert_int_equal(gr_bdev_fault_open(gr_fiber_loop(), s->low[i], &s->dev[i]), 0);
    }
    OK(vmfs_format(gr_fiber_loop(), s->dev, DEVICES, &f, &err));
    OK(join(s, &err));
    OK(vmfs_create(s->v, "d", VMFS_DISK, PIECES * VMFS_PIECE, VMFS_THIN, &err));
    OK(vmfs_open(s->v, "d", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    OK(vmfs_checkpoint(s->v, &err));
    s->area[0] = s->v->me.journal_addr;
    s->area[1] = s->v->me.journal_mirror;
    s->units = s->v->me.journal_units;
    assert_true(vmfs_addr_dev(s->area[0]) == 0 && vmfs_addr_dev(s->area[1]) == 1);
    memset(s->says, 0, sizeof s->says);
    memset(s->unflushed, 0, sizeof s->unflushed);
    unsigned n = 20 + rnd(s, 60);
    for (unsigned i = 0; i <= n; i++) {
        unsigned at = rnd(s, PIECES);
        uint32_t what = (uint32_t)test_rand(&s->rng) | 1;
        for (size_t k = 0; k < VMFS_PIECE / 4; k++)
            buf[k] = what;
        OK(gr_pwrite(ch, buf, sizeof buf, at * VMFS_PIECE, 0));
        if (i < n) {
            s->says[at] = what;
            OK(gr_flush(ch));
        } else {
            s->unflushed[at] = what;
        }
    }
    gr_chan_close(ch);
    vmfs_close(d);
    vmfs_abandon(s->v);
}

static void unmake(struct site *s)
{
    for (unsigned i = 0; i < DEVICES; i++) {
        gr_bdev_put(s->dev[i]);
        gr_bdev_put(s->low[i]);
        gr_mem_free(s->mem[i]);
    }
}

static uint8_t *unit(struct site *s, unsigned area, uint64_t at)
{
    return gr_mem_page(s->mem[vmfs_addr_dev(s->area[area])], (vmfs_addr_unit(s->area[area]) + at) * VMFS_UNIT, true);
}

/* @unflushed: the last write must be there, too. */
static void verify(struct site *s, bool unflushed)
{
    struct vmfs_disk *d;
    struct gr_chan *ch;
    struct vmfs_check_report rep;
    uint32_t buf[VMFS_PIECE / 4];
    OK(vmfs_open(s->v, "d", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    for (unsigned i = 0; i < PIECES; i++) {
        OK(gr_pread(ch, buf, sizeof buf, i * VMFS_PIECE));
        bool new = s->unflushed[i] && buf[0] == s->unflushed[i];
        if (!new && (buf[0] != s->says[i] || (s->unflushed[i] && unflushed)))
            fail_msg("piece %u: %#x where %#x was flushed, %#x written", i, buf[0], s->says[i], s->unflushed[i]);
        assert_int_equal(buf[0], buf[VMFS_PIECE / 4 - 1]);
    }
    gr_chan_close(ch);
    vmfs_close(d);
    OK(vmfs_check(s->v, NULL, NULL, &rep, &err));
    OK(vmfs_leave(s->v, &err));
}

/* Each frame is damaged in one area, at random: torn, gone, or an old one. */
static unsigned tear(struct site *s)
{
    unsigned torn = 0;
    for (uint32_t at = 0; at < s->units; at++) {
        unsigned area = rnd(s, 3);
        struct vmfs_hdr_disk *h = (struct vmfs_hdr_disk *)unit(s, 0, at);
        if (gr_le32_get(h->magic) != VMFS_MAGIC || area == NONE)
            continue;
        if (rnd(s, 2))
            memset(unit(s, area, at), 0, VMFS_UNIT);
        else
            memset(unit(s, area, at) + 512 * rnd(s, 8), (int)rnd(s, 256), 512);
        torn++;
    }
    return torn;
}

static void forget(struct site *s, unsigned area)
{
    for (uint32_t at = 0; at < s->units; at++)
        memset(unit(s, area, at), 0, VMFS_UNIT);
}

/* ---- one area is gone, or cannot be read, or each has lost something ---- */
static int one_fn(void *arg)
{
    struct site s = { .rng = *(uint64_t *)arg };
    for (unsigned lost = 0; lost <= NONE; lost++) {
        make(&s);
        if (lost < NONE)
            forget(&s, lost);
        else
            assert_true(tear(&s) > 10);
        OK(join(&s, &err));
        verify(&s, true);
        unmake(&s);
    }
    for (unsigned bad = 0; bad < 2; bad++) {
        make(&s);
        struct gr_fault_rule rule = { .op = GR_OP_READ, .off = vmfs_addr_unit(s.area[bad]) * VMFS_UNIT, .len = (uint64_t)s.units * VMFS_UNIT, .code = -EIO };
        assert_int_equal(gr_bdev_fault_add(s.dev[bad], &rule), 0);
        OK(join(&s, &err));
        gr_bdev_fault_clear(s.dev[bad]);
        verify(&s, true);
        unmake(&s);
    }
    make(&s); /* neither can be read: what was flushed may be there */
    for (unsigned bad = 0; bad < 2; bad++) {
        struct gr_fault_rule rule = { .op = GR_OP_READ, .off = vmfs_addr_unit(s.area[bad]) * VMFS_UNIT, .len = (uint64_t)s.units * VMFS_UNIT, .code = -EIO };
        assert_int_equal(gr_bdev_fault_add(s.dev[bad], &rule), 0);
    }
    FAILS(-EIO, "journal cannot be read", join(&s, &err));
    for (unsigned bad = 0; bad < 2; bad++)
        gr_bdev_fault_clear(s.dev[bad]);
    OK(join(&s, &err));
    verify(&s, true);
    unmake(&s);
    return 0;
}

/* ---- a recovery that ends while it brings home what it has found has made both areas whole before: the next one may lose either ---- */
static int mended_fn(void *arg)
{
    struct site s = { .rng = *(uint64_t *)arg };
    for (unsigned lost = 0; lost < 2; lost++) {
        struct gr_err e = { 0 };
        make(&s);
        tear(&s);
        const struct gr_fault_rule rule = { .op = GR_OP_WRITE, .off = (VMFS_SUPER_A + 1) * VMFS_UNIT, .len = vmfs_addr_unit(s.area[0]) * VMFS_UNIT,
                                            .after = 2, .code = -EIO }; /* tables; the slot itself is written once before */
        assert_int_equal(gr_bdev_fault_add(s.dev[0], &rule), 0);
        int r = join(&s, &e);
        if (r == 0)
            vmfs_abandon(s.v);
        assert_true(r < 0);
        gr_bdev_fault_clear(s.dev[0]);
        forget(&s, lost);
        OK(join(&s, &err));
        verify(&s, true);
        unmake(&s);
    }
    return 0;
}

/* ---- recoveries that end at any write or flush ---- */
static int half_fn(void *arg)
{
    struct site s = { .rng = *(uint64_t *)arg };
    unsigned ended = 0;
    for (unsigned k = 0; k < 12; k++) {
        make(&s);
        tear(&s);
        for (unsigned n = 1 + rnd(&s, 3); n > 0; n--) {
            unsigned dev = rnd(&s, 2);
            struct gr_fault_rule rules[] = { { .op = GR_OP_WRITE, .after = rnd(&s, 30), .code = -EIO }, { .op = GR_OP_FLUSH, .after = rnd(&s, 6), .code = -EIO } };
            struct gr_err e = { 0 };
            assert_int_equal(gr_bdev_fault_add(s.dev[dev], &rules[rnd(&s, 2)]), 0);
            int r = join(&s, &e);
            gr_bdev_fault_clear(s.dev[dev]);
            ended += r < 0;
            if (r == 0)
                vmfs_abandon(s.v);
        }
        OK(join(&s, &err));
        verify(&s, true);
        unmake(&s);
    }
    print_message("# %u recoveries ended early\n", ended);
    assert_true(ended);
    return 0;
}

/* ---- made before, or for older releases ---- */
static int older_fn(void *arg)
{
    struct vmfs_format_opts f = { .name = "ds1", .features = VMFS_INCOMPAT_KNOWN & ~VMFS_INCOMPAT_MIRRORED };
    struct site s = { .rng = *(uint64_t *)arg };
    make(&s);
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "a", .host_uuid = "a", .features = f.features };
    FAILS(-GR_EVERSION, "does not know", vmfs_join(gr_fiber_loop(), s.dev, DEVICES, &o, &s.v, &err));
    f.force = true;
    OK(vmfs_format(gr_fiber_loop(), s.dev, DEVICES, &f, &err));
    OK(vmfs_join(gr_fiber_loop(), s.dev, DEVICES, &o, &s.v, &err));
    assert_true(s.v->me.journal_mirror == 0 && vmfs_addr_dev(s.v->me.journal_addr) == 1);
    OK(vmfs_leave(s.v, &err));
    unmake(&s);
    return 0;
}

static void in_fiber(int (*fn)(void *arg))
{
    uint64_t seed = test_seed();
    test_in_fiber(fn, &seed);
}
static void one_area(void **state)
{
    (void)state;
    in_fiber(one_fn);
}
static void mended(void **state)
{
    (void)state;
    in_fiber(mended_fn);
}
static void half_recoveries(void **state)
{
    (void)state;
    in_fiber(half_fn);
}
static void older(void **state)
{
    (void)state;
    in_fiber(older_fn);
}

TEST_MAIN(TEST(one_area), TEST(mended), TEST(half_recoveries), TEST(older))
