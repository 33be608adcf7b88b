/* What changed between any two points of a random history of writes, unmaps, zeroes, growing and shrinking over every boundary of the tree,
 * snapshots, deletes, bookmarks, reverts, clones, crashes and moves to another host: exact to the piece, nothing missed, nothing too much. The
 * oracle gives every change of a piece a number of its own. GRANARY_OPERATIONS=N does so many (100,000, under a sanitizer 40,000; in a soak
 * 10,000,000, which takes a quarter of an hour).
 * timeout: 240 */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include "tests/lib/crash_world.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OPERATIONS 40000u /* four histories, one of them of a thick disk */
#else
#define OPERATIONS 100000u
#endif
#define PIECES 1024u /* are used: 256 at each of four places */
#define PLACES 4u
#define LIVE_MAX 10u

/* At the front, and across the ends of a leaf, of a tree of one level, and of two. */
static const uint64_t place_at[PLACES] = { 0, 2048 - 128, 262144 - 128, 33554432 - 128 };
static const uint64_t sizes[] = { 200, 2048, 2048 + 128, 262144, 262144 + 128, 33554432, 33554432 + 128 }; /* pieces */
#define THICK_SIZES 3u

struct point { /* a snapshot, or what is left of it */
    char name[16];
    uint32_t change[PIECES];
    bool zero[PIECES];
    uint64_t size;
    int parent; /* point it grew from; -1: none */
    bool there, bookmark;
};
struct history {
    uint64_t rng, ops;
    struct gr_mem *mem;
    struct gr_bdev *dev;
    struct vmfs *v;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    struct point *point[4096];
    unsigned n_points, live;
    uint32_t change[PIECES], clock;
    bool zero[PIECES];
    uint64_t size; /* pieces */
    bool thick;
    int parent;
    unsigned host;
    uint8_t *buf;
    uint64_t resizes, moves, diffs, pairs, unknown, extents, clones, crashes, reverts, deletes;
};

static uint32_t rnd(struct history *h, uint32_t n) { return (uint32_t)(test_rand(&h->rng) % n); }
static uint64_t disk_piece(uint32_t p) { return place_at[p / 256] + p % 256; }

static void join(struct history *h)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = h->host++ % 2 ? "one" : "other" };
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), h->mem, &h->dev), 0);
    OK(vmfs_join(gr_fiber_loop(), &h->dev, 1, &o, &h->v, &err));
}

static void attach(struct history *h)
{
    OK(vmfs_open(h->v, "disk", &h->d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(h->d), gr_fiber_loop(), &h->ch), 0);
}

static void detach(struct history *h)
{
    gr_chan_close(h->ch);
    vmfs_close(h->d);
}

/* A run of pieces within one of the places that the disk has. */
static uint32_t run_of(struct history *h, uint32_t max, uint32_t *ret_n)
{
    uint32_t places = 0;
    while (places < PLACES && place_at[places] < h->size)
        places++;
    uint32_t w = rnd(h, places), room = (uint32_t)GR_MIN(h->size - place_at[w], (uint64_t)256), at = rnd(h, room), n = 1 + rnd(h, max);
    *ret_n = GR_MIN(n, room - at);
    return w * 256 + at;
}

static void write_some(struct history *h)
{
    uint32_t n, p = run_of(h, rnd(h, 4) ? 4 : 40, &n);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t c = ++h->clock;
        memset(h->buf + i * 4096, 0, 4096);
        memcpy(h->buf + i * 4096, &c, 4);
        memcpy(h->buf + i * 4096 + 4092, &c, 4);
        h->change[p + i] = c;
        h->zero[p + i] = false;
    }
    assert_int_equal(gr_pwrite(h->ch, h->buf, n * 4096, disk_piece(p) * 4096, 0), 0);
}

static void unmap_some(struct history *h)
{
    uint32_t n, p = run_of(h, 30, &n);
    for (uint32_t i = 0; i < n; i++)
        if (!h->zero[p + i]) { /* unmapping zeros changes nothing */
            h->change[p + i] = ++h->clock;
            h->zero[p + i] = true;
        }
    if (rnd(h, 2))
        assert_int_equal(gr_unmap(h->ch, disk_piece(p) * 4096, n * 4096ull, 0), 0);
    else
        assert_int_equal(gr_write_zeroes(h->ch, disk_piece(p) * 4096, n * 4096ull, rnd(h, 2) ? GR_BIO_MAY_UNMAP : 0), 0);
}

/* What is cut off reads as zeros when the disk is as long again. */
static void resize(struct history *h)
{
    unsigned n = h->thick ? THICK_SIZES : GR_ARRAY_LEN(sizes), i = rnd(h, n);
    for (unsigned k = 0; rnd(h, 4) && k < n; k++)
        if (sizes[k] > h->size) {
            i = k;
            break;
        }
    h->size = sizes[i];
    for (uint32_t p = 0; p < PIECES; p++)
        if (disk_piece(p) >= h->size && !h->zero[p]) {
            h->change[p] = ++h->clock;
            h->zero[p] = true;
        }
    OK(vmfs_resize(h->d, h->size * 4096, true, &err));
    h->resizes++;
}

static void compare(struct history *h, struct gr_chan *ch, const uint32_t *change, const bool *zero, uint64_t size, const char *what)
{
    for (uint32_t p = 0; p < PIECES && disk_piece(p) < size; p += 256) {
        uint32_t n = (uint32_t)GR_MIN(size - disk_piece(p), (uint64_t)256);
        assert_int_equal(gr_pread(ch, h->buf, n * 4096, disk_piece(p) * 4096), 0);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t got[2], want = zero[p + i] ? 0 : change[p + i];
            memcpy(&got[0], h->buf + i * 4096, 4);
            memcpy(&got[1], h->buf + i * 4096 + 4092, 4);
            if (got[0] != want || got[1] != want)
                fail_msg("%s: piece %u shows change %u, not %u", what, p + i, got[0], want);
        }
    }
}

static void compare_snap(struct history *h, const struct point *s)
{
    struct gr_bdev *b;
    struct gr_chan *ch;
    OK(snap_open(h->d, s->name, &b, &err));
    assert_int_equal(gr_chan_open(b, gr_fiber_loop(), &ch), 0);
    compare(h, ch, s->change, s->zero, s->size, s->name);
    gr_chan_close(ch);
    gr_bdev_put(b);
}

static void snap(struct history *h)
{
    if (h->live == LIVE_MAX || h->n_points == GR_ARRAY_LEN(h->point))
        return;
    struct point *s = calloc(1, sizeof *s);
    snprintf(s->name, sizeof s->name, "s%u", h->n_points);
    memcpy(s->change, h->change, sizeof s->change);
    memcpy(s->zero, h->zero, sizeof s->zero);
    s->size = h->size;
    s->parent = h->parent;
    s->there = true;
    OK(snap_create(&h->d, 1, s->name, &err));
    h->parent = (int)h->n_points;
    h->point[h->n_points++] = s;
    h->live++;
}

static struct point *pick(struct history *h, bool there, int *ret_index)
{
    for (unsigned tries = 0; h->n_points && tries < 40; tries++) {
        unsigned i = h->n_points > 30 ? h->n_points - 1 - rnd(h, 30) : rnd(h, h->n_points);
        struct point *s = h->point[i];
        if (s->there || (!there && s->bookmark)) {
            *ret_index = (int)i;
            return s;
        }
    }
    return NULL;
}

static void delete_one(struct history *h)
{
    int i;
    struct point *s = pick(h, true, &i);
    if (!s)
        return;
    s->bookmark = rnd(h, 2);
    s->there = false;
    OK(snap_delete(h->d, s->name, s->bookmark, &err));
    h->live--;
    h->deletes++;
}

static void revert(struct history *h)
{
    int i;
    struct point *s = pick(h, true, &i);
    if (!s)
        return;
    OK(snap_revert(h->d, s->name, &err));
    memcpy(h->change, s->change, sizeof h->change);
    memcpy(h->zero, s->zero, sizeof h->zero);
    h->size = s->size;
    h->parent = i;
    h->reverts++;
}

/* ---- the difference ---- */
struct expect {
    const uint32_t *a, *b;
    const bool *za, *zb;
    bool pair; /* two lines: zeros are alike whenever they were made */
    bool said[PIECES];
};
/* Pieces of [off, off+len) that are used, each of which nothing was said of before. */
static void say_changed(struct expect *e, uint64_t off, uint64_t len, int zero)
{
    uint64_t first = off / 4096, end = (off + len) / 4096, n = 0;
    assert_true(off % 4096 == 0 && len % 4096 == 0 && len);
    for (uint32_t w = 0; w < PLACES; w++)
        for (uint64_t p = GR_MAX(first, place_at[w]); p < GR_MIN(end, place_at[w] + 256); p++, n++) {
            uint32_t i = w * 256 + (uint32_t)(p - place_at[w]);
            assert_false(e->said[i]);
            e->said[i] = true;
            if (zero >= 0 && zero != e->zb[i])
                fail_msg("piece %u: said to be %s", i, zero ? "zeros" : "data");
        }
    if (n != end - first)
        fail_msg("pieces %llu to %llu: %llu of them were ever written", (unsigned long long)first, (unsigned long long)end, (unsigned long long)n);
}
static int changed(void *arg, uint64_t off, uint64_t len, bool zero)
{
    say_changed(arg, off, len, zero);
    return 0;
}

static bool in_the_past(const struct history *h, int from, int base)
{
    for (; from >= 0; from = h->point[from]->parent)
        if (from == base)
            return true;
    return false;
}

static void diff(struct history *h)
{
    static struct expect e;
    int bi, ti = -1;
    struct point *base = pick(h, false, &bi), *to = rnd(h, 2) ? NULL : pick(h, true, &ti);
    if (!base)
        return;
    struct gr_err err = { 0 };
    bool past = in_the_past(h, to ? ti : h->parent, bi);
    e = (struct expect){ base->change, to ? to->change : h->change, base->zero, to ? to->zero : h->zero, !past, { false } };
    int r = snap_diff(h->d, base->name, to ? to->name : NULL, changed, &e, &err);
    if (r == -ENOENT && !past && !base->there) {
        h->unknown++;
        return;
    }
    if (r < 0)
        fail_msg("diff of %s and %s: %s", base->name, to ? to->name : "the live disk", err.text);
    for (uint32_t i = 0; i < PIECES; i++) {
        bool want = e.a[i] != e.b[i] && disk_piece(i) < (to ? to->size : h->size);
        if (e.pair)
            want = want && (e.za[i] != e.zb[i] || !e.za[i]);
        if (e.said[i] != want)
            fail_msg("diff of %s and %s (%s): piece %u %s", base->name, to ? to->name : "the live disk", past ? "its past" : "another line", i,
                     want ? "is missed" : "did not change");
    }
    h->diffs += past;
    h->pairs += !past;
}

/* The same question through EXTENTS with a base. */
static void extents(struct history *h)
{
    static struct expect e;
    int bi;
    struct point *base = pick(h, false, &bi);
    struct snap_info info;
    struct gr_extent x[64];
    uint64_t size = h->size * 4096;
    unsigned max = rnd(h, 4) ? 64 : 1 + rnd(h, 3);
    if (!base || !in_the_past(h, h->parent, bi))
        return;
    OK(snap_find(h->d, base->name, &info, &err));
    e = (struct expect){ .zb = h->zero };
    for (uint64_t off = 0; off < size;) {
        unsigned n = 0;
        assert_int_equal(gr_extents(h->ch, off, size - off, &info.bookmark, x, max, &n), 0);
        assert_true(n > 0 && n <= max && x[0].off == off);
        for (unsigned k = 0; k < n; off += x[k++].len) {
            assert_true(x[k].off == off && x[k].len && x[k].len <= size - off);
            if (x[k].changed)
                say_changed(&e, x[k].off, x[k].len, (x[k].flags & GR_EXTENT_ZERO) != 0);
        }
    }
    for (uint32_t i = 0; i < PIECES; i++)
        if (e.said[i] != (base->change[i] != h->change[i] && disk_piece(i) < h->size))
            fail_msg("extents since %s: piece %u is %schanged", base->name, i, e.said[i] ? "" : "un");
    h->extents++;
}

static void clone(struct history *h)
{
    int i;
    struct point *s = pick(h, true, &i);
    struct vmfs_disk *c;
    struct gr_chan *ch;
    if (!s)
        return;
    OK(snap_clone(h->d, s->name, "clone", &err));
    OK(vmfs_open(h->v, "clone", &c, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(c), gr_fiber_loop(), &ch), 0);
    memset(h->buf, 0xee, 65536);
    assert_int_equal(gr_pwrite(ch, h->buf, 65536, 0, 0), 0); /* the clone's own: neither disk nor snapshot see it */
    gr_chan_close(ch);
    vmfs_close(c);
    compare_snap(h, s);
    OK(vmfs_remove(h->v, "clone", &err));
    h->clones++;
}

static void crash(struct history *h)
{
    assert_int_equal(gr_flush(h->ch), 0);
    detach(h);
    vmfs_abandon(h->v);
    gr_bdev_put(h->dev);
    h->host++;
    join(h);
    attach(h);
    h->crashes++;
}

/* To another host, while this one lives. */
static void move(struct history *h)
{
    struct vmfs *from = h->v;
    struct gr_bdev *dev = h->dev;
    join(h);
    detach(h);
    OK(vmfs_release(from, "disk", &err));
    attach(h);
    OK(vmfs_leave(from, &err));
    gr_bdev_put(dev);
    h->moves++;
}

static void say(void *arg, const char *text)
{
    (void)arg;
    printf("# check: %s\n", text);
}

static void look(struct history *h)
{
    struct vmfs_check_report rep;
    compare(h, h->ch, h->change, h->zero, h->size, "live");
    for (unsigned i = 0; i < h->n_points; i++)
        if (h->point[i]->there)
            compare_snap(h, h->point[i]);
    OK(vmfs_check(h->v, say, NULL, &rep, &err));
}

static void step(struct history *h)
{
    uint32_t k = rnd(h, 1000);
    if (k < 780)
        write_some(h);
    else if (k < 880)
        unmap_some(h);
    else if (k < 910)
        snap(h);
    else if (k < 934)
        delete_one(h);
    else if (k < 965)
        diff(h);
    else if (k < 975)
        extents(h);
    else if (k < 979)
        revert(h);
    else if (k < 981)
        clone(h);
    else if (k < 982)
        crash(h);
    else if (k < 984)
        resize(h);
    else if (k < 985)
        move(h);
    else if (k < 992)
        assert_int_equal(gr_flush(h->ch), 0);
    else
        gr_fiber_sleep_ms(rnd(h, 40));
}

static int history_fn(void *arg)
{
    struct history *h = arg;
    struct vmfs_format_opts f = { .name = "births" };
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "births" };
    h->mem = gr_mem_new(256 << 20);
    h->buf = calloc(256, 4096);
    h->parent = -1;
    memset(h->zero, 1, sizeof h->zero);
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), h->mem, &h->dev), 0);
    OK(vmfs_format(gr_fiber_loop(), &h->dev, 1, &f, &err));
    OK(vmfs_join(gr_fiber_loop(), &h->dev, 1, &o, &h->v, &err));
    h->size = sizes[0];
    OK(vmfs_create(h->v, "disk", VMFS_DISK, h->size * 4096, h->thick ? VMFS_THICK : VMFS_THIN, &err));
    OK(vmfs_leave(h->v, &err));
    gr_bdev_put(h->dev);
    join(h);
    attach(h);
    for (uint64_t i = 1; i <= h->ops; i++) {
        step(h);
        if (i % 2000 == 0)
            look(h);
    }
    look(h);
    detach(h);
    OK(vmfs_leave(h->v, &err));
    gr_bdev_put(h->dev);
    gr_mem_free(h->mem);
    for (unsigned i = 0; i < h->n_points; i++)
        free(h->point[i]);
    free(h->buf);
    return 0;
}

static void differences(void **state)
{
    (void)state;
    const char *many = getenv("GRANARY_OPERATIONS");
    uint64_t total = many ? strtoull(many, NULL, 10) : getenv("GRANARY_SOAK") ? 10000000 : OPERATIONS, each = 10000, done = 0;
    struct history sum = { 0 };
    for (unsigned i = 0; done < total; i++, done += each) {
        struct history *h = calloc(1, sizeof *h);
        h->rng = test_seed() * 7919 + i;
        h->ops = each;
        h->thick = i % 4 == 3;
        crash_world_run(h->rng, history_fn, h);
        sum.diffs += h->diffs, sum.pairs += h->pairs, sum.unknown += h->unknown, sum.extents += h->extents, sum.clones += h->clones;
        sum.crashes += h->crashes, sum.reverts += h->reverts, sum.deletes += h->deletes, sum.n_points += h->n_points;
        sum.resizes += h->resizes, sum.moves += h->moves;
        free(h);
    }
    printf("# %llu operations: snapshots %u, deletes %llu, reverts %llu, clones %llu, crashes %llu, resizes %llu, moves %llu; exact differences %llu, of two lines %llu, "
           "by extents %llu; not to be told %llu\n",
           (unsigned long long)done, sum.n_points, (unsigned long long)sum.deletes, (unsigned long long)sum.reverts, (unsigned long long)sum.clones,
           (unsigned long long)sum.crashes, (unsigned long long)sum.resizes, (unsigned long long)sum.moves, (unsigned long long)sum.diffs, (unsigned long long)sum.pairs, (unsigned long long)sum.extents,
           (unsigned long long)sum.unknown);
    assert_true(sum.diffs && sum.pairs && sum.extents && sum.clones && sum.crashes && sum.reverts && sum.deletes && sum.resizes && sum.moves);
}

TEST_MAIN(TEST(differences))
