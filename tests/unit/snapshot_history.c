/* Random histories of one disk against an oracle that remembers every byte: contents of snapshots, of clones, after crashes, and
 * what changed between any two points. */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PIECES 4096u /* 16 MiB: two leaves */
#define MAX_SNAPS 12

struct image {
    uint32_t stamp[PIECES];   /* what the piece reads as: 0 zeros, else a pattern */
    uint32_t version[PIECES]; /* grows with every change of the piece */
    bool ever[PIECES];
};
struct snap {
    char name[16];
    struct image img;
    bool gone; /* bookmark only */
};
struct history {
    struct gr_loop *loop;
    struct gr_mem *mem;
    struct gr_bdev *dev;
    struct vmfs *v;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    struct image now;
    struct snap *snap[MAX_SNAPS];
    unsigned n_snaps, next_name;
    uint32_t clock;
    uint8_t *buf;
    unsigned crashes, diffs, reverts;
    uint64_t rng;
};

static void warn(void *arg, const char *text)
{
    (void)arg;
    (void)text;
}

static void attach(struct history *h)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "history", .warn = warn };
    assert_int_equal(gr_bdev_mem_open(h->loop, h->mem, &h->dev), 0);
    OK(vmfs_join(h->loop, &h->dev, 1, &o, &h->v, &err));
    OK(vmfs_open(h->v, "disk", &h->d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(h->d), h->loop, &h->ch), 0);
}

static void pattern(uint8_t *p, uint32_t piece, uint32_t stamp)
{
    for (unsigned i = 0; i < 4096; i += 8) {
        uint32_t v[2] = { stamp ? stamp ^ (piece * 2654435761u) : 0, stamp ? stamp + i : 0 };
        memcpy(p + i, v, 8);
    }
}

static void compare(struct history *h, struct gr_chan *ch, const struct image *img, const char *what)
{
    static uint8_t want[4096];
    for (uint32_t p = 0; p < PIECES; p += 256) {
        assert_int_equal(gr_pread(ch, h->buf, 256 * 4096, (uint64_t)p * 4096), 0);
        for (uint32_t i = 0; i < 256; i++) {
            pattern(want, p + i, img->stamp[p + i]);
            if (memcmp(want, h->buf + i * 4096, 4096) != 0)
                fail_msg("%s: piece %u differs (stamp %u)", what, p + i, img->stamp[p + i]);
        }
    }
}

static void compare_snap(struct history *h, const struct snap *s)
{
    struct gr_bdev *b;
    struct gr_chan *ch;
    OK(snap_open(h->d, s->name, &b, &err));
    assert_int_equal(gr_chan_open(b, h->loop, &ch), 0);
    compare(h, ch, &s->img, s->name);
    gr_chan_close(ch);
    gr_bdev_put(b);
}

static void do_write(struct history *h)
{
    uint32_t n = (uint32_t)test_rand(&h->rng) % 4 ? 1 + (uint32_t)test_rand(&h->rng) % 3 : 1 + (uint32_t)test_rand(&h->rng) % 64, p = (uint32_t)test_rand(&h->rng) % (PIECES - n);
    uint32_t stamp = ++h->clock;
    if ((uint32_t)test_rand(&h->rng) % 3 == 0) {
        p -= p % 16;
        n = GR_MIN(16u, PIECES - p);
    }
    for (uint32_t i = 0; i < n; i++) {
        pattern(h->buf + i * 4096, p + i, stamp);
        h->now.stamp[p + i] = stamp;
        h->now.version[p + i] = ++h->clock;
        h->now.ever[p + i] = true;
    }
    int r = gr_pwrite(h->ch, h->buf, n * 4096, (uint64_t)p * 4096, (uint32_t)test_rand(&h->rng) % 10 == 0 ? GR_BIO_FUA : 0);
    if (r < 0)
        fail_msg("write: %s", gr_code_text(r));
}

static void do_unmap(struct history *h)
{
    uint32_t n = 1 + (uint32_t)test_rand(&h->rng) % 100, p = (uint32_t)test_rand(&h->rng) % (PIECES - n);
    for (uint32_t i = 0; i < n; i++)
        if (h->now.stamp[p + i]) { /* unmapping zeros is no change */
            h->now.stamp[p + i] = 0;
            h->now.version[p + i] = ++h->clock;
        }
    assert_int_equal(gr_unmap(h->ch, (uint64_t)p * 4096, n * 4096ull, 0), 0);
}

static void do_snap(struct history *h)
{
    if (h->n_snaps == MAX_SNAPS)
        return;
    struct snap *s = calloc(1, sizeof *s);
    snprintf(s->name, sizeof s->name, "s%u", h->next_name++);
    s->img = h->now;
    OK(snap_create(&h->d, 1, s->name, &err));
    h->snap[h->n_snaps++] = s;
}

static void do_delete(struct history *h)
{
    if (!h->n_snaps)
        return;
    unsigned i = (uint32_t)test_rand(&h->rng) % h->n_snaps;
    bool keep = (uint32_t)test_rand(&h->rng) % 2 && !h->snap[i]->gone;
    OK(snap_delete(h->d, h->snap[i]->name, keep, &err));
    if (keep) {
        h->snap[i]->gone = true;
        return;
    }
    free(h->snap[i]);
    h->snap[i] = h->snap[--h->n_snaps];
}

static struct { struct history *h; const struct image *a, *b; uint64_t at; } diff;
static int diff_fn(void *arg, uint64_t off, uint64_t len, bool zero)
{
    (void)arg;
    uint64_t p = off / 4096, n = len / 4096;
    assert_true(p >= diff.at);
    for (; diff.at < p; diff.at++)
        if (diff.a->version[diff.at] != diff.b->version[diff.at])
            fail_msg("diff missed piece %lu", (unsigned long)diff.at);
    for (; diff.at < p + n; diff.at++) {
        if (diff.a->version[diff.at] == diff.b->version[diff.at])
            fail_msg("diff has piece %lu, which did not change", (unsigned long)diff.at);
        assert_int_equal(zero, diff.b->stamp[diff.at] == 0);
    }
    return 0;
}

static void do_diff(struct history *h)
{
    if (!h->n_snaps)
        return;
    struct snap *base = h->snap[(uint32_t)test_rand(&h->rng) % h->n_snaps], *to = (uint32_t)test_rand(&h->rng) % 2 ? NULL : h->snap[(uint32_t)test_rand(&h->rng) % h->n_snaps];
    if (to && to->gone)
        to = NULL;
    struct gr_err err = { 0 };
    diff.h = h;
    diff.a = &base->img;
    diff.b = to ? &to->img : &h->now;
    diff.at = 0;
    if (to == base || (to && strtol(to->name + 1, NULL, 10) < strtol(base->name + 1, NULL, 10)))
        return; /* backwards: births differ though versions agree; the pair walk has its own test */
    if (h->reverts)
        return;
    int r = snap_diff(h->d, base->name, to ? to->name : NULL, diff_fn, NULL, &err);
    if (r < 0)
        fail_msg("diff: %s", err.text);
    for (; diff.at < PIECES; diff.at++)
        if (diff.a->version[diff.at] != diff.b->version[diff.at])
            fail_msg("diff missed piece %lu at the end", (unsigned long)diff.at);
    h->diffs++;
}

static void do_revert(struct history *h)
{
    struct snap *s = h->n_snaps ? h->snap[(uint32_t)test_rand(&h->rng) % h->n_snaps] : NULL;
    if (!s || s->gone)
        return;
    OK(snap_revert(h->d, s->name, &err));
    h->now = s->img;
    h->reverts++;
}

static void do_crash(struct history *h)
{
    if ((uint32_t)test_rand(&h->rng) % 2) {
        assert_int_equal(gr_flush(h->ch), 0);
        gr_chan_close(h->ch);
        vmfs_close(h->d);
        vmfs_abandon(h->v);
    } else {
        gr_chan_close(h->ch);
        vmfs_close(h->d);
        OK(vmfs_leave(h->v, &err));
    }
    gr_bdev_put(h->dev);
    attach(h);
    h->crashes++;
    compare(h, h->ch, &h->now, "after a crash");
}

static void say(void *arg, const char *text)
{
    (void)arg;
    print_message("check: %s\n", text);
}

static void checked(struct history *h)
{
    struct vmfs_check_report rep;
    OK(snap_settle(h->d, &err));
    struct gr_err err = { 0 };
    int r = vmfs_check(h->v, say, NULL, &rep, &err);
    if (r == -EOPNOTSUPP)
        return;
    if (r < 0)
        fail_msg("check: %s", err.text);
}

static void one_history(struct history *h, unsigned ops)
{
    for (unsigned i = 0; i < ops; i++) {
        unsigned k = (uint32_t)test_rand(&h->rng) % 100;
        if (k < 60)
            do_write(h);
        else if (k < 70)
            do_unmap(h);
        else if (k < 78)
            do_snap(h);
        else if (k < 84)
            do_delete(h);
        else if (k < 92)
            do_diff(h);
        else if (k < 93)
            do_revert(h);
        else if (k < 94)
            do_crash(h);
        else if (k < 96)
            assert_int_equal(gr_flush(h->ch), 0);
        else if (k < 97)
            OK(vmfs_checkpoint(h->v, &err));
        else
            gr_fiber_sleep_ms((uint32_t)test_rand(&h->rng) % 30);
        if (i % 200 == 199) {
            compare(h, h->ch, &h->now, "live");
            for (unsigned s = 0; s < h->n_snaps; s++)
                if (!h->snap[s]->gone)
                    compare_snap(h, h->snap[s]);
            checked(h);
        }
    }
}

static int history_fn(void *arg)
{
    struct history *h = arg;
    struct vmfs_format_opts f = { .name = "ds1" };
    h->loop = gr_fiber_loop();
    h->mem = gr_mem_new(512 << 20);
    h->buf = calloc(256, 4096);
    assert_int_equal(gr_bdev_mem_open(h->loop, h->mem, &h->dev), 0);
    OK(vmfs_format(h->loop, &h->dev, 1, &f, &err));
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "history" };
    OK(vmfs_join(h->loop, &h->dev, 1, &o, &h->v, &err));
    OK(vmfs_create(h->v, "disk", VMFS_DISK, PIECES * 4096ull, VMFS_THIN, &err));
    OK(vmfs_leave(h->v, &err));
    gr_bdev_put(h->dev);
    attach(h);
    one_history(h, test_cases(2000));
    gr_chan_close(h->ch);
    vmfs_close(h->d);
    OK(vmfs_leave(h->v, &err));
    gr_bdev_put(h->dev);
    gr_mem_free(h->mem);
    free(h->buf);
    for (unsigned i = 0; i < h->n_snaps; i++)
        free(h->snap[i]);
    print_message("diffs %u, crashes %u, reverts %u\n", h->diffs, h->crashes, h->reverts);
    free(h);
    return 0;
}

static void histories(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        struct history *h = calloc(1, sizeof *h);
        h->rng = test_seed() + i;
        test_in_fiber(history_fn, h);
    }
}

TEST_MAIN(TEST(histories))
