/* Copies that share: the list of shared units against an array, and random histories of disks that copy from each other and from
 * themselves, with snapshots, clones, reverts, deletes and crashes, against an oracle that remembers every piece. */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the list ---- */
#define UNITS 2000u

static void compare_list(const struct vregion *r, const unsigned *more)
{
    uint32_t n;
    for (uint32_t at = 0; at < UNITS; at += n) {
        bool shared = share_at(r, at, UNITS - at, &n);
        assert_true(n > 0 && at + n <= UNITS);
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(more[at + i] > 0, shared);
    }
    uint64_t end = 0;
    for (size_t i = 0; i < r->n_shares; i++) {
        const struct vshare *s = &r->shares[i];
        assert_true(s->units && s->more && s->at >= end);
        if (i && s->at == end)
            assert_int_not_equal(s->more, r->shares[i - 1].more); /* else they would be one */
        for (uint32_t k = 0; k < s->units; k++)
            assert_int_equal(more[s->at + k], s->more);
        end = s->at + s->units;
    }
}

static void list(void **state)
{
    uint64_t rng = test_seed();
    unsigned more[UNITS] = { 0 };
    struct vregion r = { .units = UNITS };
    for (unsigned i = 0; i < 20000; i++) {
        uint32_t at = (uint32_t)(test_rand(&rng) % UNITS), n = 1 + (uint32_t)(test_rand(&rng) % GR_MIN(UNITS - at, i % 3 ? 8u : 300u));
        bool up = test_rand(&rng) % 5 < (i / 2000 % 2 ? 1 : 3);
        assert_int_equal(share_change(&r, at, n, up), 0);
        for (uint32_t k = at; k < at + n; k++)
            more[k] += up ? 1 : more[k] ? -1u : 0;
        if (i % 50 == 0)
            compare_list(&r, more);
    }
    compare_list(&r, more);
    free(r.shares);
}

/* ---- histories ---- */
#define PIECES 4096u /* 16 MiB: two leaves; the upper quarter belongs to the fiber that writes all the time */
#define OWN (PIECES * 3 / 4)
#define DISKS 3u
#define SNAPS 5u

struct disk {
    struct vmfs_disk *d;
    struct gr_chan *ch;
    uint32_t now[PIECES];
    struct {
        char name[16];
        uint32_t img[PIECES];
    } snap[SNAPS];
    unsigned n_snaps;
};
struct history {
    struct gr_loop *loop;
    struct gr_mem *mem;
    struct gr_bdev *dev;
    struct vmfs *v;
    struct disk disk[DISKS];
    uint8_t *buf;
    uint64_t rng;
    unsigned names, copies, shared, crashes, reverts, clones;
    bool stop, stopped;
};

static uint32_t rnd(struct history *h, uint32_t n) { return (uint32_t)(test_rand(&h->rng) % n); }

static void attach(struct history *h)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "copy" };
    assert_int_equal(gr_bdev_mem_open(h->loop, h->mem, &h->dev), 0);
    OK(vmfs_join(h->loop, &h->dev, 1, &o, &h->v, &err));
    for (unsigned i = 0; i < DISKS; i++) {
        char name[8];
        snprintf(name, sizeof name, "d%u", i);
        OK(vmfs_open(h->v, name, &h->disk[i].d, NULL, &err));
        assert_int_equal(gr_chan_open(vmfs_bdev(h->disk[i].d), h->loop, &h->disk[i].ch), 0);
    }
}

static void fill(uint8_t *p, uint32_t stamp)
{
    for (unsigned i = 0; i < 4096; i += 4)
        memcpy(p + i, &(uint32_t){ stamp ? stamp + i : 0 }, 4);
}

static void compare(struct history *h, struct gr_chan *ch, const uint32_t *img, const char *what)
{
    static uint8_t want[4096];
    for (uint32_t p = 0; p < OWN; p += 256) {
        assert_int_equal(gr_pread(ch, h->buf, 256 * 4096, (uint64_t)p * 4096), 0);
        for (uint32_t i = 0; i < 256; i++) {
            fill(want, img[p + i]);
            if (memcmp(want, h->buf + i * 4096, 4096) != 0)
                fail_msg("%s: piece %u differs (stamp %u)", what, p + i, img[p + i]);
        }
    }
}

static void compare_all(struct history *h)
{
    for (unsigned i = 0; i < DISKS; i++) {
        struct disk *d = &h->disk[i];
        compare(h, d->ch, d->now, "live");
        for (unsigned s = 0; s < d->n_snaps; s++) {
            struct gr_bdev *b;
            struct gr_chan *ch;
            OK(snap_open(d->d, d->snap[s].name, &b, &err));
            assert_int_equal(gr_chan_open(b, h->loop, &ch), 0);
            compare(h, ch, d->snap[s].img, d->snap[s].name);
            gr_chan_close(ch);
            gr_bdev_put(b);
        }
    }
}

static void say(void *arg, const char *text)
{
    (void)arg;
    print_message("check: %s\n", text);
}

static void checked(struct history *h)
{
    struct vmfs_check_report rep;
    for (unsigned i = 0; i < DISKS; i++)
        OK(snap_settle(h->disk[i].d, &err));
    OK(vmfs_settle(h->v, 60000));
    OK(vmfs_check(h->v, say, NULL, &rep, &err));
}

/* Ranges that begin and end anywhere, or with blocks. */
static void range(struct history *h, uint32_t *ret_first, uint32_t *ret_n, uint32_t max)
{
    uint32_t unit = rnd(h, 3) ? 16 : 1;
    uint32_t n = (1 + rnd(h, max / unit)) * unit;
    *ret_first = rnd(h, OWN / unit) * unit;
    *ret_n = GR_MIN(n, OWN - *ret_first);
}

static void do_write(struct history *h, struct disk *d)
{
    uint32_t first, n;
    range(h, &first, &n, 256);
    for (uint32_t i = 0; i < n; i++)
        fill(h->buf + i * 4096, d->now[first + i] = (uint32_t)test_rand(&h->rng) | 1);
    assert_int_equal(gr_pwrite(d->ch, h->buf, n * 4096ull, first * 4096ull, 0), 0);
}

static void do_unmap(struct history *h, struct disk *d)
{
    uint32_t first, n;
    range(h, &first, &n, 512);
    assert_int_equal(gr_unmap(d->ch, first * 4096ull, n * 4096ull, 0), 0);
    memset(d->now + first, 0, n * 4);
}

static void by_hand(struct history *h, struct disk *s, struct disk *d, uint32_t from, uint32_t to, uint32_t n)
{
    for (uint32_t at = 0; at < n; at += 256) {
        uint64_t len = GR_MIN(n - at, 256u) * 4096ull;
        assert_int_equal(gr_pread(s->ch, h->buf, len, (from + at) * 4096ull), 0);
        assert_int_equal(gr_pwrite(d->ch, h->buf, len, (to + at) * 4096ull, 0), 0);
    }
}

static void do_copy(struct history *h, struct disk *s, struct disk *d)
{
    uint32_t from, to, n, m;
    range(h, &from, &n, 1500);
    range(h, &to, &m, 1500);
    if (rnd(h, 3) == 0)
        to = from;
    n = GR_MIN(n, OWN - to);
    struct gr_bio bio = { .op = GR_OP_COPY, .off = to * 4096ull, .len = n * 4096ull, .copy_src = s->ch, .copy_src_off = from * 4096ull };
    int r = gr_submit_wait(d->ch, &bio);
    if (r == -EOPNOTSUPP && s == d && from < to + n && to < from + n)
        return; /* it overlaps */
    h->copies++;
    h->shared += r == 0;
    if (r == -EOPNOTSUPP)
        by_hand(h, s, d, from, to, n);
    else
        assert_int_equal(r, 0);
    memmove(d->now + to, s->now + from, n * 4);
}

static void do_snap(struct history *h, struct disk *d)
{
    if (d->n_snaps == SNAPS)
        return;
    snprintf(d->snap[d->n_snaps].name, sizeof d->snap[0].name, "s%u", h->names++);
    memcpy(d->snap[d->n_snaps].img, d->now, sizeof d->now);
    OK(snap_create(&d->d, 1, d->snap[d->n_snaps].name, &err));
    d->n_snaps++;
}

static void do_delete(struct history *h, struct disk *d)
{
    if (!d->n_snaps)
        return;
    unsigned i = rnd(h, d->n_snaps);
    OK(snap_delete(d->d, d->snap[i].name, false, &err));
    memmove(d->snap + i, d->snap + i + 1, (--d->n_snaps - i) * sizeof d->snap[0]);
}

static void do_revert(struct history *h, struct disk *d)
{
    if (!d->n_snaps)
        return;
    unsigned i = rnd(h, d->n_snaps);
    OK(snap_revert(d->d, d->snap[i].name, &err));
    memcpy(d->now, d->snap[i].img, sizeof d->now);
    h->reverts++;
}

/* A clone of a snapshot takes the disk's place; the disk goes when nothing hangs on it. */
static void do_clone(struct history *h, struct disk *d)
{
    if (!d->n_snaps)
        return;
    unsigned i = rnd(h, d->n_snaps);
    struct vmfs_disk *c;
    struct gr_chan *ch;
    OK(snap_clone(d->d, d->snap[i].name, "clone", &err));
    OK(vmfs_open(h->v, "clone", &c, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(c), h->loop, &ch), 0);
    struct disk *with = &h->disk[rnd(h, DISKS)];
    uint32_t from = rnd(h, OWN - 64), to = rnd(h, OWN - 64); /* what it inherits is copied on, and it is copied to */
    struct gr_bio out = { .op = GR_OP_COPY, .off = to * 4096ull, .len = 64 * 4096ull, .copy_src = ch, .copy_src_off = from * 4096ull };
    struct gr_bio in = { .op = GR_OP_COPY, .off = from * 4096ull, .len = 64 * 4096ull, .copy_src = with->ch, .copy_src_off = to * 4096ull };
    if (gr_submit_wait(with->ch, &out) == 0)
        memcpy(with->now + to, d->snap[i].img + from, 64 * 4);
    gr_submit_wait(ch, &in);
    gr_chan_close(ch);
    vmfs_close(c);
    OK(vmfs_remove(h->v, "clone", &err));
    OK(vmfs_settle(h->v, 60000));
    h->clones++;
}

static void stop_writer(struct history *h)
{
    h->stop = true;
    while (!h->stopped)
        gr_fiber_sleep_ms(1);
}

/* Writes all the time, where nobody copies: what is in flight on a disk must not disturb, nor be disturbed. */
static void writer(void *arg)
{
    struct history *h = arg;
    uint8_t *buf = aligned_alloc(4096, 65536);
    uint64_t rng = 1;
    memset(buf, 7, 65536);
    while (!h->stop) {
        struct disk *d = &h->disk[test_rand(&rng) % DISKS];
        uint64_t piece = OWN + test_rand(&rng) % (PIECES - OWN - 16);
        if (gr_pwrite(d->ch, buf, 4096 * (1 + test_rand(&rng) % 16), piece * 4096, 0) < 0)
            break;
        gr_fiber_sleep_ms(test_rand(&rng) % 2);
    }
    free(buf);
    h->stopped = true;
}

static void start_writer(struct history *h)
{
    h->stop = h->stopped = false;
    assert_int_equal(gr_fiber_start(h->loop, writer, h), 0);
}

static void do_crash(struct history *h)
{
    bool hard = rnd(h, 2);
    stop_writer(h);
    assert_int_equal(gr_flush(h->disk[0].ch), 0);
    for (unsigned i = 0; i < DISKS; i++) {
        gr_chan_close(h->disk[i].ch);
        vmfs_close(h->disk[i].d);
    }
    if (hard)
        vmfs_abandon(h->v);
    else
        OK(vmfs_leave(h->v, &err));
    gr_bdev_put(h->dev);
    attach(h);
    h->crashes++;
    compare_all(h);
    start_writer(h);
}

static void one_history(struct history *h, unsigned ops)
{
    for (unsigned i = 0; i < ops; i++) {
        struct disk *d = &h->disk[rnd(h, DISKS)];
        unsigned k = rnd(h, 100);
        if (k < 30)
            do_write(h, d);
        else if (k < 36)
            do_unmap(h, d);
        else if (k < 70)
            do_copy(h, &h->disk[rnd(h, DISKS)], d);
        else if (k < 78)
            do_snap(h, d);
        else if (k < 85)
            do_delete(h, d);
        else if (k < 87)
            do_revert(h, d);
        else if (k < 89)
            do_clone(h, d);
        else if (k < 91)
            do_crash(h);
        else if (k < 94)
            assert_int_equal(gr_flush(d->ch), 0);
        else if (k < 96)
            OK(vmfs_checkpoint(h->v, &err));
        else
            gr_fiber_sleep_ms(rnd(h, 30));
        if (i % 150 == 149) {
            compare_all(h);
            checked(h);
        }
    }
}

static int history_fn(void *arg)
{
    struct history *h = arg;
    struct vmfs_format_opts f = { .name = "ds1" };
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "copy" };
    struct vmfs_info before, after;
    h->loop = gr_fiber_loop();
    h->mem = gr_mem_new(512 << 20);
    h->buf = aligned_alloc(4096, 2048 * 4096);
    assert_int_equal(gr_bdev_mem_open(h->loop, h->mem, &h->dev), 0);
    OK(vmfs_format(h->loop, &h->dev, 1, &f, &err));
    OK(vmfs_join(h->loop, &h->dev, 1, &o, &h->v, &err));
    vmfs_info(h->v, &before);
    for (unsigned i = 0; i < DISKS; i++) {
        char name[8];
        snprintf(name, sizeof name, "d%u", i);
        OK(vmfs_create(h->v, name, VMFS_DISK, PIECES * 4096ull, VMFS_THIN, &err));
    }
    OK(vmfs_leave(h->v, &err));
    gr_bdev_put(h->dev);
    attach(h);
    start_writer(h);
    one_history(h, test_cases(1500));
    stop_writer(h);
    compare_all(h);
    checked(h);
    /* all goes: nothing stays allocated */
    for (unsigned i = 0; i < DISKS; i++) {
        char name[8];
        gr_chan_close(h->disk[i].ch);
        vmfs_close(h->disk[i].d);
        snprintf(name, sizeof name, "d%u", i);
        OK(vmfs_remove(h->v, name, &err));
        OK(vmfs_settle(h->v, 60000));
    }
    struct vmfs_check_report rep;
    OK(vmfs_check(h->v, say, NULL, &rep, &err));
    OK(vmfs_checkpoint(h->v, &err));
    vmfs_info(h->v, &after);
    assert_true(before.free - after.free < 8 << 20);
    assert_int_equal(rep.pieces + rep.shared_pieces, 0);
    OK(vmfs_leave(h->v, &err));
    gr_bdev_put(h->dev);
    gr_mem_free(h->mem);
    free(h->buf);
    print_message("copies %u, %u of them shared, crashes %u, reverts %u, clones %u\n", h->copies, h->shared, h->crashes, h->reverts, h->clones);
    assert_true(h->shared > h->copies / 2);
    free(h);
    return 0;
}

/* ---- when a source is ready ---- */
struct pair {
    struct gr_loop *loop;
    struct gr_mem *mem;
    struct gr_bdev *low, *dev;
    struct vmfs *v;
    struct vmfs_disk *d[2];
    struct gr_chan *ch[2];
    uint8_t *buf;
    bool cut;
};

static void put(struct pair *p, uint64_t off, uint8_t byte)
{
    memset(p->buf, byte, 65536);
    assert_int_equal(gr_pwrite(p->ch[0], p->buf, 65536, off, 0), 0);
}

static int share(struct pair *p, uint64_t off)
{
    struct gr_bio bio = { .op = GR_OP_COPY, .off = off, .len = 65536, .copy_src = p->ch[0], .copy_src_off = off };
    return gr_submit_wait(p->ch[1], &bio);
}

static void ended(struct gr_bio *bio) { *(bool *)bio->arg = true; }

static void cut(void *arg)
{
    struct pair *p = arg;
    OK(vmfs_resize(p->d[0], 5 * 65536 - 512, true, &err));
    p->cut = true;
}

/* A source that is ready is shared as it is. Where its data, its records or its writes could still change what was shared, its epoch
 * ends first and all of it is made durable: seen by the epoch. */
static int ready_fn(void *arg)
{
    struct pair *p = arg;
    struct vmfs_format_opts f = { .name = "ds1" };
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "ready" };
    p->loop = gr_fiber_loop();
    p->mem = gr_mem_new(256 << 20);
    p->buf = aligned_alloc(4096, 65536);
    assert_int_equal(gr_bdev_mem_open(p->loop, p->mem, &p->low), 0);
    assert_int_equal(gr_bdev_delay_open(p->loop, p->low, 0, 2000000, 0, &p->dev), 0);
    OK(vmfs_format(p->loop, &p->dev, 1, &f, &err));
    OK(vmfs_join(p->loop, &p->dev, 1, &o, &p->v, &err));
    for (unsigned i = 0; i < 2; i++) {
        OK(vmfs_create(p->v, i ? "to" : "from", VMFS_DISK, 8 << 20, VMFS_THIN, &err));
        OK(vmfs_open(p->v, i ? "to" : "from", &p->d[i], NULL, &err));
        assert_int_equal(gr_chan_open(vmfs_bdev(p->d[i]), p->loop, &p->ch[i]), 0);
    }
    struct vobj *src = p->d[0]->o;
    struct vmfs *v = p->v;
    put(p, 0, 1);
    uint64_t epoch = src->epoch;
    assert_int_equal(share(p, 0), 0); /* private: its epoch ends */
    assert_int_equal(src->epoch, epoch + 1);
    assert_int_equal(share(p, 0), 0); /* ready */
    assert_int_equal(src->epoch, epoch + 1);

    /* the record is not sealed, though the data is flushed and of an older epoch */
    put(p, 65536, 2);
    assert_int_equal(journal_flush(v, v->j.durable_seq), 0);
    assert_int_equal(record_epoch(src), 0);
    epoch = src->epoch;
    assert_int_equal(share(p, 65536), 0);
    assert_int_equal(src->epoch, epoch + 1);

    /* the data is not flushed, though the record is sealed: it was overwritten in place */
    put(p, 131072, 3);
    assert_int_equal(journal_seal(v), 0);
    uint64_t in_place = v->stats.writes_in_place;
    put(p, 131072, 4);
    assert_int_equal(v->stats.writes_in_place, in_place + 1);
    assert_int_equal(record_epoch(src), 0);
    epoch = src->epoch;
    assert_int_equal(share(p, 131072), 0);
    assert_int_equal(src->epoch, epoch + 1);

    /* a write of the epoch that ended is still under way, in place, to what is shared */
    put(p, 196608, 5);
    assert_int_equal(journal_seal(v), 0);
    bool done = false;
    memset(p->buf, 6, 65536);
    struct iovec iov = { p->buf, 65536 };
    struct gr_bio late = { .op = GR_OP_WRITE, .off = 196608, .len = 65536, .iov = &iov, .iovcnt = 1, .done = ended, .arg = &done };
    gr_submit(p->ch[0], &late);
    assert_false(done);
    assert_int_equal(record_epoch(src), 0);
    assert_int_equal(src->late, 1);
    epoch = src->epoch;
    assert_int_equal(share(p, 196608), 0);
    assert_true(done);
    assert_int_equal(src->epoch, epoch + 1);
    assert_int_equal(gr_pread(p->ch[1], p->buf, 65536, 196608), 0);
    assert_int_equal(p->buf[0] + p->buf[65535], 12);
    assert_true(v->sp.share_units > 0); /* kept free for the next checkpoint */

    /* it is being cut: the end of its last piece is overwritten in place, late, and no epoch's end waits for that */
    struct gr_bdev *slow;
    struct gr_chan *usual = v->dev[0].ch;
    put(p, 262144, 7);
    assert_int_equal(journal_seal(v), 0);
    uint64_t written = v->j.data_written;
    assert_int_equal(gr_bdev_delay_open(p->loop, p->low, 0, 50000000, 0, &slow), 0);
    assert_int_equal(gr_chan_open(slow, p->loop, &v->dev[0].ch), 0);
    assert_int_equal(gr_fiber_start(p->loop, cut, p), 0);
    while (!src->frozen)
        gr_fiber_yield();
    struct gr_chan *late_ch = v->dev[0].ch;
    v->dev[0].ch = usual;
    assert_int_equal(record_epoch(src), 0);
    int refused = share(p, 262144);
    uint8_t was[2];
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(gr_pread(p->ch[1], p->buf, 65536, 262144), 0);
        was[i] = p->buf[65535];
        while (!p->cut)
            gr_fiber_yield();
    }
    assert_int_equal(was[0], was[1]);
    assert_int_equal(refused, -EOPNOTSUPP); /* it waited, and then there was not so much of it any more */
    assert_int_equal(v->j.data_written, written + 1);
    gr_chan_close(late_ch);
    gr_bdev_put(slow);
    OK(vmfs_resize(p->d[0], 8 << 20, false, &err));

    /* another's overwrites stay his: the destination shows what was copied */
    for (unsigned i = 0; i < 4; i++)
        put(p, i * 65536u, 9);
    static const uint8_t want[] = { 1, 2, 4, 6 };
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(gr_pread(p->ch[1], p->buf, 65536, i * 65536u), 0);
        assert_int_equal(p->buf[77], want[i]);
    }
    assert_int_equal(v->sp.share_units, 0); /* one owner each */

    /* refused, for the caller to copy by value: odd places, and volumes from before there were lists of shared units */
    struct gr_bio odd = { .op = GR_OP_COPY, .off = 512, .len = 65536, .copy_src = p->ch[0] };
    assert_int_equal(gr_submit_wait(p->ch[1], &odd), -EOPNOTSUPP);
    v->sb.incompat = 0;
    assert_int_equal(share(p, 0), -EOPNOTSUPP);
    v->sb.incompat = VMFS_INCOMPAT_SHARES;
    struct vmfs_check_report rep;
    OK(vmfs_check(v, say, NULL, &rep, &err));
    for (unsigned i = 0; i < 2; i++) {
        gr_chan_close(p->ch[i]);
        vmfs_close(p->d[i]);
    }
    OK(vmfs_leave(v, &err));
    gr_bdev_put(p->dev);
    gr_bdev_put(p->low);
    gr_mem_free(p->mem);
    free(p->buf);
    return 0;
}

static void ready(void **state)
{
    struct pair p = { 0 };
    (void)state;
    test_in_fiber(ready_fn, &p);
}

static void histories(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        struct history *h = calloc(1, sizeof *h);
        h->rng = test_seed() + i;
        test_in_fiber(history_fn, h);
    }
}

TEST_MAIN(TEST(list), TEST(ready), TEST(histories))
