/* What changed on a large disk whose map is not in memory: many nodes are read at the same time and none are kept, a damaged or unreadable one in the
 * middle is named, and whoever asks may stop, run out of memory, or have the disk written meanwhile.
 * timeout: 120 */
#include "tests/lib/test.h"
#include "common/bdev_layer.h"
#include "common/seam.h"
#include "snapshot/snapshot.h"
#include "tests/lib/crash_world.h"
#include "tests/lib/volfix.h"
#include <stdio.h>
#include <stdlib.h>

#define LEAF (8ull << 20)
#define LEAVES 2000u
#define DISK (LEAVES * LEAF)

/* ---- a device that takes a millisecond for each read, and how many there were at the same time ---- */
struct watch {
    struct gr_layer l;
    unsigned reads, running, most;
};

static void watched(struct gr_bio *low)
{
    struct gr_layer_req *req = gr_container_of(low, struct gr_layer_req, low);
    ((struct watch *)gr_layer_of(req->ch))->running--;
    gr_layer_end(req, low->status);
}

static void watch_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    struct watch *w = (struct watch *)gr_layer_of(ch);
    struct gr_layer_req *req = gr_layer_req_get(ch, bio);
    if (!req) {
        gr_bio_end(bio, -ENOMEM);
        return;
    }
    if (bio->op == GR_OP_READ) {
        req->low.done = watched;
        w->reads++;
        w->running++;
        w->most = GR_MAX(w->most, w->running);
    }
    gr_layer_send(req);
}

static void watch_close(struct gr_bdev *b) { gr_layer_done((struct gr_layer *)b); }

struct site {
    struct volfix f; /* its dev is the uppermost layer */
    struct gr_bdev *mem, *slow, *fault;
    struct watch watch;
};

static const struct vmfs_join_opts as_host = { .role = VMFS_HOST, .host_name = "changed" };

static void site_make(struct site *s, uint64_t disk)
{
    static const struct gr_bdev_ops ops = { .type = "watch", GR_LAYER_OPS, .submit = watch_submit, .close = watch_close, .chan_close = gr_layer_chan_close };
    struct volfix *f = &s->f;
    volfix_make(f, 4ull << 30, "disk", disk, false, &as_host);
    volfix_close(f);
    OK(vmfs_leave(f->v, &err));
    s->mem = f->dev;
    assert_int_equal(gr_bdev_fault_open(f->loop, s->mem, &s->fault), 0);
    assert_int_equal(gr_bdev_delay_open(f->loop, s->fault, 1000000, 0, 0, &s->slow), 0);
    gr_layer_init(&s->watch.l, &ops, s->slow);
    f->dev = &s->watch.l.base;
    volfix_join(f, &as_host);
    volfix_open(f);
}

/* Map and data come from the device again. */
static void cold(struct site *s)
{
    volfix_again(&s->f, &as_host);
    s->watch.reads = s->watch.most = 0;
}

static void site_unmake(struct site *s)
{
    gr_bdev_fault_clear(s->fault);
    struct vmfs_check_report rep;
    volfix_close(&s->f);
    OK(vmfs_check(s->f.v, NULL, NULL, &rep, &err));
    OK(vmfs_leave(s->f.v, &err));
    gr_chan_close(s->f.raw);
    gr_bdev_put(s->f.dev);
    gr_bdev_put(s->slow);
    gr_bdev_put(s->fault);
    gr_bdev_put(s->mem);
    gr_mem_free(s->f.mem);
}

static void put(struct site *s, uint64_t off, size_t len)
{
    static uint8_t buf[65536] __attribute__((aligned(4096)));
    memset(buf, (int)(off >> 20 | 1), len);
    assert_int_equal(gr_pwrite(s->f.ch, buf, len, off, 0), 0);
}

/* Where the third piece in each leaf's change lies. */
static uint64_t change_at(unsigned leaf) { return leaf * LEAF + (leaf * 37ull % 1000 + 3) * 4096; }

/* Two pieces and one further on are changed in each of @n leaves, and one is cut out. */
static void change(struct site *s, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        put(s, i * LEAF + 16 * 4096, 65536);
    OK(snap_create(&s->f.d, 1, "base", &err));
    for (unsigned i = 0; i < n; i++) {
        put(s, i * LEAF + 17 * 4096, 8192);
        assert_int_equal(gr_unmap(s->f.ch, i * LEAF + 20 * 4096, 4096, 0), 0);
        put(s, change_at(i) + 40 * 4096, 4096);
    }
}

/* ---- what is said ---- */
struct heard {
    uint64_t n, stop_after; /* ranges; stop: 0 never */
    bool wrong;
};

static int hear(void *arg, uint64_t off, uint64_t len, bool zero)
{
    struct heard *h = arg;
    unsigned i = (unsigned)(h->n / 3), k = h->n % 3;
    uint64_t want[3][2] = { { i * LEAF + 17 * 4096, 8192 }, { i * LEAF + 20 * 4096, 4096 }, { change_at(i) + 40 * 4096, 4096 } };
    h->wrong |= off != want[k][0] || len != want[k][1] || zero != (k == 1);
    h->n++;
    return h->n == h->stop_after ? -ECANCELED : 0;
}

static void hears(struct site *s, unsigned leaves)
{
    struct heard h = { 0 };
    OK(snap_diff(s->f.d, "base", NULL, hear, &h, &err));
    assert_false(h.wrong);
    assert_int_equal(h.n, 3 * leaves);
    assert_int_equal(s->watch.running, 0);
}

static uint64_t now_ms(void) { return gr_loop_now_ns(gr_fiber_loop()) / 1000000; }

/* ---- many at the same time, none kept ---- */
static int cold_fn(void *arg)
{
    struct site *s = calloc(1, sizeof *s);
    struct heard h = { 0 };
    site_make(s, DISK);
    change(s, LEAVES);
    cold(s);
    uint64_t before = now_ms(), map = s->f.v->map_bytes;
    hears(s, LEAVES);
    print_message("%u leaves: %u reads, %u at the same time, %u ms\n", LEAVES, s->watch.reads, s->watch.most, (unsigned)(now_ms() - before));
    assert_true(now_ms() - before < 60); /* one at a time it would be 2 s */
    assert_true(s->watch.reads < LEAVES / 8);
    assert_int_equal(s->f.v->map_bytes, map);

    static struct gr_extent x[2048];
    struct snap_info info;
    OK(snap_find(s->f.d, "base", &info, &err));
    before = now_ms();
    s->watch.reads = 0;
    for (uint64_t off = 0; off < DISK;) {
        unsigned n = 0;
        assert_int_equal(gr_extents(s->f.ch, off, DISK - off, &info.bookmark, x, GR_ARRAY_LEN(x), &n), 0);
        assert_int_equal(x[0].off, off);
        for (unsigned i = 0; i < n; off += x[i++].len)
            if (x[i].changed)
                hear(&h, x[i].off, x[i].len, (x[i].flags & GR_EXTENT_ZERO) != 0);
    }
    print_message("as extents: %u reads, %u ms, map %zu KiB\n", s->watch.reads, (unsigned)(now_ms() - before), s->f.v->map_bytes / 1024);
    assert_false(h.wrong);
    assert_int_equal(h.n, 3 * LEAVES);
    assert_true(now_ms() - before < 200);
    assert_true(s->f.v->map_bytes < map + (1 << 20)); /* what is above the leaves, and the last ones of each answer */
    site_unmake(s);
    free(s);
    return 0;
}
static void cold_map(void **state) { crash_world_run(1, cold_fn, NULL); }

/* ---- a node in the middle ---- */
static uint64_t node_at(struct site *s, unsigned leaf, unsigned level)
{
    struct mtree *t = &s->f.d->o->live;
    bool absent;
    OK(mtree_load(s->f.d->o, t, leaf * LEAF / 4096, &err));
    struct mchild *c = mtree_slot(t, level, leaf * LEAF / 4096, &absent);
    return slot_addr(c);
}

static void fails_at(struct site *s, uint64_t addr, int code, unsigned leaf, const char *said)
{
    struct heard h = { 0 };
    char name[64];
    snprintf(name, sizeof name, "device 0 unit %llu", (unsigned long long)vmfs_addr_unit(addr));
    FAILS(code, name, snap_diff(s->f.d, "base", NULL, hear, &h, &err));
    FAILS(code, said, snap_diff(s->f.d, "base", NULL, hear, &(struct heard){ 0 }, &err));
    assert_false(h.wrong);
    assert_true(h.n <= 3 * leaf); /* nothing behind it */
    assert_int_equal(s->watch.running, 0);

    struct snap_info info;
    struct gr_extent x[16];
    unsigned n = 0;
    OK(snap_find(s->f.d, "base", &info, &err));
    assert_int_equal(gr_extents(s->f.ch, leaf * LEAF, LEAF, &info.bookmark, x, 16, &n), code);
    assert_int_equal(gr_extents(s->f.ch, 0, LEAF, &info.bookmark, x, 16, &n), 0);
}

static int damage_fn(void *arg)
{
    struct site *s = calloc(1, sizeof *s);
    site_make(s, DISK);
    change(s, LEAVES);
    OK(vmfs_checkpoint(s->f.v, &err));
    const struct { unsigned leaf, level; } at[] = { { 1100, 0 }, { 1999, 0 }, { 640, 1 } };
    for (unsigned i = 0; i < GR_ARRAY_LEN(at); i++) {
        uint64_t addr = node_at(s, at[i].leaf, at[i].level);
        cold(s);
        volfix_flip(&s->f, addr, 700);
        fails_at(s, addr, -GR_ECORRUPT, at[i].leaf, "checksum is wrong");
        volfix_flip(&s->f, addr, 700);
        cold(s);
        hears(s, LEAVES);
        const struct gr_fault_rule broken = { .op = GR_OP_READ, .off = vmfs_addr_unit(addr) * 4096, .len = 4096, .code = -EIO };
        struct gr_fault_rule once = broken;
        cold(s);
        assert_int_equal(gr_bdev_fault_add(s->fault, &broken), 0);
        fails_at(s, addr, -EIO, at[i].leaf, "cannot read a map node");
        gr_bdev_fault_clear(s->fault);
        once.count = 1; /* of those read together: each is tried alone */
        assert_int_equal(gr_bdev_fault_add(s->fault, &once), 0);
        hears(s, LEAVES);
        gr_bdev_fault_clear(s->fault);
    }
    site_unmake(s);
    free(s);
    return 0;
}
static void damaged_node(void **state) { crash_world_run(2, damage_fn, NULL); }

/* ---- stopped, and out of memory, at every place ---- */
static int stop_fn(void *arg)
{
    struct site *s = calloc(1, sizeof *s);
    unsigned leaves = 300; /* three nodes above them */
    site_make(s, DISK);
    change(s, leaves);
    for (uint64_t after = 1; after < 3 * leaves; after = after * 2 + 1) {
        struct heard h = { .stop_after = after };
        cold(s);
        assert_int_equal(snap_diff(s->f.d, "base", NULL, hear, &h, NULL), -ECANCELED);
        assert_int_equal(h.n, after);
        assert_int_equal(s->watch.running, 0);
    }
    int r = -ENOMEM;
    unsigned failed = 0;
    for (int n = 0; r < 0; n += n < 100 ? 1 : 17) {
        struct heard h = { 0 };
        struct gr_err err = { 0 };
        cold(s);
        gr_alloc_fail_after(n, 1);
        r = snap_diff(s->f.d, "base", NULL, hear, &h, &err);
        gr_alloc_fail_after(-1, 0);
        assert_false(h.wrong);
        assert_int_equal(s->watch.running, 0);
        if (r == 0)
            assert_int_equal(h.n, 3 * leaves);
        else
            assert_true(r == -ENOMEM && strstr(err.text, "memory"));
        failed += r < 0;
    }
    print_message("out of memory %u times\n", failed);
    assert_true(failed > 100);
    hears(s, leaves);
    site_unmake(s);
    free(s);
    return 0;
}
static void stopped(void **state) { crash_world_run(3, stop_fn, NULL); }

/* ---- one instant of a disk that is written, with a map that does not fit ---- */
struct writer {
    struct site *s;
    bool end, ended;
    unsigned done;
};
static void writes(void *arg)
{
    struct writer *w = arg;
    uint64_t rng = 5;
    while (!w->end) {
        put(w->s, test_rand(&rng) % (DISK / 4096) * 4096, 4096);
        if (++w->done % 50 == 0)
            OK(vmfs_checkpoint(w->s->f.v, &err));
        gr_fiber_sleep_ms(1);
    }
    w->ended = true;
}

static int slow_hear(void *arg, uint64_t off, uint64_t len, bool zero)
{
    if (off % (LEAF * 16) < LEAF)
        gr_fiber_sleep_ms(2);
    return hear(arg, off, len, zero);
}

static int written_fn(void *arg)
{
    struct site *s = calloc(1, sizeof *s);
    struct writer w = { .s = s };
    struct heard h = { 0 };
    site_make(s, DISK);
    change(s, LEAVES);
    cold(s);
    s->f.v->map_limit = 1 << 20;
    for (unsigned i = 0; i < LEAVES; i += 7) /* some are in memory */
        node_at(s, i, 0);
    assert_int_equal(gr_fiber_start(s->f.loop, writes, &w), 0);
    OK(snap_diff(s->f.d, "base", NULL, slow_hear, &h, &err));
    assert_false(h.wrong);
    assert_int_equal(h.n, 3 * LEAVES);
    assert_true(w.done > 100);
    w.end = true;
    while (!w.ended)
        gr_fiber_sleep_ms(1);
    h = (struct heard){ .stop_after = 3 * LEAVES };
    (void)snap_diff(s->f.d, "base", NULL, hear, &h, NULL);
    assert_true(h.wrong); /* and now it shows */
    site_unmake(s);
    free(s);
    return 0;
}
static void one_instant(void **state) { crash_world_run(4, written_fn, NULL); }

/* ---- lines that part: a clone since the snapshot it grew from, trees of different height, a reader elsewhere ---- */
struct ranges {
    uint64_t off[8], len[8];
    bool zero[8];
    unsigned n;
};
static int note(void *arg, uint64_t off, uint64_t len, bool zero)
{
    struct ranges *x = arg;
    assert_true(x->n < 8);
    x->off[x->n] = off;
    x->len[x->n] = len;
    x->zero[x->n++] = zero;
    return 0;
}
static void is(const struct ranges *x, unsigned i, uint64_t off, uint64_t len, bool zero)
{
    if (i >= x->n || x->off[i] != off || x->len[i] != len || x->zero[i] != zero)
        fail_msg("range %u of %u is %llu+%llu", i, x->n, (unsigned long long)x->off[i], (unsigned long long)x->len[i]);
}

static void seen_elsewhere(struct site *s)
{
    struct vmfs_join_opts o = { .role = VMFS_READER, .host_name = "reader" };
    struct gr_bdev *dev, *b;
    struct gr_chan *ch;
    struct vmfs *v;
    struct snap_info info;
    static struct gr_extent x[64];
    unsigned n = 0, changed = 0;
    OK(snap_create(&s->f.d, 1, "end", &err));
    OK(vmfs_checkpoint(s->f.v, &err));
    OK(snap_find(s->f.d, "small", &info, &err));
    assert_int_equal(gr_bdev_mem_open(s->f.loop, s->f.mem, &dev), 0);
    OK(vmfs_join(s->f.loop, &dev, 1, &o, &v, &err));
    OK(snap_open_reader(v, "disk", "end", &b, &err));
    assert_int_equal(gr_chan_open(b, s->f.loop, &ch), 0);
    assert_int_equal(gr_extents(ch, 0, (1ull << 30) + LEAF, &info.bookmark, x, 64, &n), 0);
    for (unsigned i = 0; i < n; i++)
        changed += x[i].changed;
    assert_int_equal(changed, 1);
    gr_chan_close(ch);
    gr_bdev_put(b);
    OK(vmfs_leave(v, &err));
    gr_bdev_put(dev);
}

static int lines_fn(void *arg)
{
    struct site *s = calloc(1, sizeof *s);
    struct volfix *f = &s->f;
    struct ranges x = { 0 };
    const uint64_t gib = 1ull << 30;
    site_make(s, 64 << 20);
    put(s, 0, 4096);
    OK(snap_create(&f->d, 1, "small", &err));
    OK(vmfs_resize(f->d, gib, false, &err)); /* the last leaf of a tree of one level */
    put(s, gib - 4096, 4096);
    OK(snap_create(&f->d, 1, "one", &err));
    OK(vmfs_resize(f->d, gib + LEAF, false, &err));
    put(s, gib, 8192);
    OK(snap_create(&f->d, 1, "two", &err));
    OK(vmfs_resize(f->d, 200 * gib, false, &err));
    put(s, 128 * gib - 4096, 8192);
    cold(s);
    OK(snap_diff(f->d, "small", NULL, note, &x, &err));
    assert_int_equal(x.n, 2);
    is(&x, 0, gib - 4096, 3 * 4096, false);
    is(&x, 1, 128 * gib - 4096, 8192, false);
    x.n = 0;
    OK(snap_diff(f->d, "one", "two", note, &x, &err));
    assert_int_equal(x.n, 1);
    is(&x, 0, gib, 8192, false);

    OK(snap_create(&f->d, 1, "three", &err)); /* a tree of three levels beside one of one level that a revert began */
    OK(snap_revert(f->d, "small", &err));
    put(s, 8192, 4096);
    cold(s);
    for (unsigned warm = 0; warm < 2; warm++) {
        x.n = 0;
        OK(snap_diff(f->d, "three", NULL, note, &x, &err)); /* up to the end of the disk as it is */
        assert_int_equal(x.n, 1);
        is(&x, 0, 8192, 4096, false);
    }
    OK(vmfs_resize(f->d, gib + LEAF, false, &err));
    cold(s);
    x.n = 0;
    OK(snap_diff(f->d, "three", NULL, note, &x, &err));
    assert_int_equal(x.n, 2);
    is(&x, 0, 8192, 4096, false);
    is(&x, 1, gib - 4096, 3 * 4096, true);
    seen_elsewhere(s);

    struct vmfs_disk *c;
    struct gr_chan *ch;
    struct snap_info info;
    char token[GR_BOOKMARK_TEXT];
    static uint8_t buf[8192] __attribute__((aligned(4096)));
    OK(snap_find(f->d, "two", &info, &err));
    gr_bookmark_format(&info.bookmark, token);
    OK(snap_clone(f->d, "two", "clone", &err));
    OK(vmfs_open(f->v, "clone", &c, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(c), f->loop, &ch), 0);
    assert_int_equal(gr_pwrite(ch, buf, 8192, 3 * LEAF, 0), 0);
    assert_int_equal(gr_unmap(ch, gib + 4096, 4096, 0), 0);
    x.n = 0;
    OK(snap_diff(c, token, NULL, note, &x, &err));
    assert_int_equal(x.n, 2);
    is(&x, 0, 3 * LEAF, 8192, false);
    is(&x, 1, gib + 4096, 4096, true);
    gr_chan_close(ch);
    vmfs_close(c);
    OK(vmfs_remove(f->v, "clone", &err));
    site_unmake(s);
    free(s);
    return 0;
}
static void lines_that_part(void **state) { crash_world_run(5, lines_fn, NULL); }

TEST_MAIN(TEST(cold_map), TEST(damaged_node), TEST(stopped), TEST(one_instant), TEST(lines_that_part))
