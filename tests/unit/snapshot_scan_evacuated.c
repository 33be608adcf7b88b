/* A device is removed while somebody compares trees that name leaves on it which were rewritten since: their old places are on no list of what was moved,
 * and are good for as long as he may read them. */
#include "common/bdev.h"
#include "common/fiber.h"
#include "snapshot/snapshot.h"
#include "tests/lib/test.h"
#include "vmfs/internal.h"
#include <stdlib.h>

#define MIB ((uint64_t)1 << 20)
#define LEAF (8 * MIB)
#define LEAVES 1500u
#define PATIENCE 300u /* looks of a millisecond */

struct site {
    struct gr_bdev *dev[3];
    struct vmfs *v;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    bool compares, goes_on, over, gone;
    int result;
    struct gr_err err;
    uint64_t bytes;
};

static void rewrite(struct site *s, uint64_t at, int byte)
{
    static uint8_t p[VMFS_PIECE];
    memset(p, byte, sizeof p);
    for (unsigned i = 0; i < LEAVES; i++)
        OK(gr_pwrite(s->ch, p, sizeof p, i * LEAF + at, 0));
    OK(gr_flush(s->ch));
}

static int changed(void *arg, uint64_t off, uint64_t len, bool zero)
{
    struct site *s = arg;
    (void)off, (void)zero;
    s->bytes += len;
    s->compares = true;
    while (!s->goes_on)
        gr_fiber_sleep_ms(1);
    return 0;
}

static void compare(void *arg)
{
    struct site *s = arg;
    s->result = snap_diff(s->d, "base", NULL, changed, s, &s->err);
    s->over = true;
}

/* He is slow, but not for ever. */
static void release(void *arg)
{
    struct site *s = arg;
    for (unsigned i = 0; i < PATIENCE && !s->gone; i++) {
        gr_fiber_sleep_ms(1);
        s->gone = s->v->sb.dev[1].state == VMFS_DEVICE_GONE;
    }
    s->goes_on = true;
}

static int moving(void *arg, uint64_t done, uint64_t all, struct gr_err *why)
{
    struct site *s = arg;
    (void)done, (void)all, (void)why;
    if (s->compares)
        return 0;
    assert_int_equal(gr_fiber_start(s->v->loop, compare, s), 0);
    while (!s->compares)
        gr_fiber_sleep_ms(1);
    rewrite(s, VMFS_PIECE, 2);
    OK(vmfs_checkpoint(s->v, &err));
    assert_int_equal(gr_fiber_start(s->v->loop, release, s), 0);
    return 0;
}

static void add(struct site *s, unsigned i, struct gr_mem *m)
{
    struct vmfs_device_add a = {0};
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), m, &s->dev[i]), 0);
    OK(vmfs_device_add(s->v, s->dev[i], &a, &err));
}

static int evacuated(void *arg)
{
    struct gr_mem *mem[] = {gr_mem_new(64 * MIB), gr_mem_new(256 * MIB), gr_mem_new(300 * MIB)};
    const struct vmfs_format_opts f = {.name = "ds"};
    const struct vmfs_join_opts o = {.role = VMFS_HOST, .host_name = "one"};
    struct vmfs_check_report rep;
    struct site s = {0};
    (void)arg;
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), mem[0], &s.dev[0]), 0);
    OK(vmfs_format(gr_fiber_loop(), s.dev, 1, &f, &err));
    OK(vmfs_join(gr_fiber_loop(), s.dev, 1, &o, &s.v, &err));
    OK(vmfs_create(s.v, "filler", VMFS_DISK, 32 * MIB, VMFS_EAGER, &err)); /* so that what comes now lies on the next device */
    add(&s, 1, mem[1]);
    OK(vmfs_create(s.v, "disk", VMFS_DISK, LEAVES * LEAF, VMFS_THIN, &err));
    OK(vmfs_open(s.v, "disk", &s.d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(s.d), gr_fiber_loop(), &s.ch), 0);
    OK(snap_create(&s.d, 1, "base", &err));
    rewrite(&s, 0, 1);
    gr_chan_close(s.ch);
    vmfs_close(s.d);
    OK(vmfs_leave(s.v, &err)); /* the map is not in memory */
    OK(vmfs_join(gr_fiber_loop(), s.dev, 2, &o, &s.v, &err));
    add(&s, 2, mem[2]);
    OK(vmfs_open(s.v, "disk", &s.d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(s.d), gr_fiber_loop(), &s.ch), 0);
    struct vmfs_device_remove r = {.progress = moving, .arg = &s};
    OK(vmfs_device_remove(s.v, 1, &r, &err));
    while (!s.over)
        gr_fiber_sleep_ms(1);
    if (s.result < 0)
        fail_msg("%s", s.err.text);
    assert_false(s.gone);
    assert_true(s.bytes >= LEAVES * VMFS_PIECE);
    gr_chan_close(s.ch);
    vmfs_close(s.d);
    OK(vmfs_check(s.v, NULL, NULL, &rep, &err));
    OK(vmfs_leave(s.v, &err));
    for (unsigned i = 0; i < 3; i++) {
        gr_bdev_put(s.dev[i]);
        gr_mem_free(mem[i]);
    }
    return 0;
}

static void while_compared(void **state)
{
    (void)state;
    test_in_fiber(evacuated, NULL);
}

TEST_MAIN(TEST(while_compared))
