/* How much space each disk and snapshot is said to use, and to have for itself, against a walk over every piece of every tree, after each
 * step of random histories (writes that are under way while a snapshot is taken, unmaps, deletes, reverts, clones, crashes); that deleting
 * a snapshot gives back what was said; that numbers lost are found again; and that telling them reads no maps. */
#include "tests/lib/test.h"
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include "tests/lib/crash_world.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>

#define SIZE (40ull << 20)
#define PIECES (SIZE / VMFS_PIECE)
#define PLACE 600u /* so many pieces at each of four places are used */
#define SNAPS 8u
#define TREES 40u

struct history {
    uint64_t rng;
    struct gr_mem *mem;
    struct gr_bdev *base, *dev;
    struct vmfs *v;
    struct vmfs_disk *d, *clone;
    struct gr_chan *ch, *clone_ch;
    char snap[SNAPS][16];
    unsigned n_snaps, names;
    uint8_t *buf;
    unsigned compared, deletes, reverts, clones, crashes, late, half;
};

static uint32_t rnd(struct history *h, uint32_t n) { return (uint32_t)(test_rand(&h->rng) % n); }

static void attach(struct history *h)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "space", .map_cache_bytes = 1 };
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), h->mem, &h->base), 0);
    assert_int_equal(gr_bdev_delay_open(gr_fiber_loop(), h->base, 4000000, 1000000, 2000000, &h->dev), 0);
    OK(vmfs_join(gr_fiber_loop(), &h->dev, 1, &o, &h->v, &err));
    OK(vmfs_open(h->v, "disk", &h->d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(h->d), gr_fiber_loop(), &h->ch), 0);
    struct vmfs_stat st;
    if (vmfs_stat(h->v, "clone", &st, NULL) == 0) {
        OK(vmfs_open(h->v, "clone", &h->clone, NULL, &err));
        assert_int_equal(gr_chan_open(vmfs_bdev(h->clone), gr_fiber_loop(), &h->clone_ch), 0);
    }
}

static void close_clone(struct history *h)
{
    if (!h->clone)
        return;
    gr_chan_close(h->clone_ch);
    vmfs_close(h->clone);
    h->clone = NULL;
}

static void detach(struct history *h, bool crash)
{
    gr_chan_close(h->ch);
    close_clone(h);
    vmfs_close(h->d);
    if (crash)
        vmfs_abandon(h->v);
    else
        OK(vmfs_leave(h->v, &err));
    gr_bdev_put(h->dev);
    gr_bdev_put(h->base);
}

/* ---- the walk ---- */
struct tree {
    struct vobj *o;
    struct vsnap *s; /* NULL: live head */
    uint64_t *unit;  /* of each piece; 0: none */
    uint64_t used, unique;
};
struct named {
    uint64_t unit;
    unsigned tree;
};

static void tree_walk(struct tree *t)
{
    struct mtree *m = t->s ? &t->s->tree : &t->o->live;
    struct mnode *leaf = NULL;
    t->unit = calloc(PIECES, sizeof *t->unit);
    for (uint64_t p = 0; p < PIECES; p++) {
        while (mtree_peek(m, p, &leaf) < 0)
            OK(mtree_load(t->o, m, p, &err));
        if (!leaf)
            continue;
        struct mpiece x = ment_piece(&leaf->ent[p % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES], (unsigned)(p % VMFS_BLOCK_PIECES));
        t->unit[p] = x.state == VMFS_P_HOLE ? 0 : x.addr;
        t->used += x.state != VMFS_P_HOLE;
    }
}

static int by_unit(const void *a, const void *b)
{
    const struct named *x = a, *y = b;
    return x->unit < y->unit ? -1 : x->unit > y->unit;
}

/* A unit is unique to a tree when no other one names it. */
static void unique_find(struct tree *t, unsigned n)
{
    struct named *a = malloc(n * PIECES * sizeof *a);
    size_t k = 0;
    for (unsigned i = 0; i < n; i++)
        for (uint64_t p = 0; p < PIECES; p++)
            if (t[i].unit[p])
                a[k++] = (struct named){ t[i].unit[p], i };
    qsort(a, k, sizeof *a, by_unit);
    for (size_t i = 0; i < k; i++)
        if ((i == 0 || a[i - 1].unit != a[i].unit) && (i + 1 == k || a[i + 1].unit != a[i].unit))
            t[a[i].tree].unique++;
    free(a);
}

static unsigned trees_of(struct vobj *o, struct tree *ret, unsigned n)
{
    for (size_t i = 0; i < o->n_snaps; i++) {
        assert_true(n < TREES);
        ret[n++] = (struct tree){ .o = o, .s = o->snaps[i] };
    }
    ret[n++] = (struct tree){ .o = o };
    return n;
}

/* Deleted alone it gives nothing back while clones or several lines start there: it stays. */
static bool pinned(const struct tree *t)
{
    unsigned lines = t->o->parent_snap == t->s->id;
    for (size_t i = 0; i < t->o->n_snaps; i++)
        lines += t->o->snaps[i]->parent == t->s->id;
    return t->s->clones || lines > 1;
}

static int number_of(void *arg, const struct snap_info *info)
{
    struct tree *t = arg;
    if (info->id != t->s->id)
        return 0;
    assert_true(info->counted);
    assert_int_equal(info->used, t->used * VMFS_PIECE);
    assert_int_equal(info->unique, pinned(t) ? 0 : t->unique * VMFS_PIECE);
    return 0;
}

static void compare(struct history *h)
{
    struct tree t[TREES + 1] = { 0 };
    struct vmfs_stat st;
    OK(snap_settle(h->d, &err));
    if (h->clone)
        OK(snap_settle(h->clone, &err));
    unsigned n = trees_of(h->d->o, t, 0);
    if (h->clone)
        n = trees_of(h->clone->o, t, n);
    for (unsigned i = 0; i < n; i++)
        tree_walk(&t[i]);
    unique_find(t, n);
    for (unsigned i = 0; i < n; i++) {
        struct vmfs_disk *d = t[i].o->handle;
        vmfs_disk_stat(d, &st);
        assert_true(st.counted);
        if (t[i].s) {
            OK(snap_list(d, number_of, &t[i], &err));
        } else {
            assert_int_equal(st.reachable, t[i].used * VMFS_PIECE);
            assert_int_equal(st.unique, t[i].unique * VMFS_PIECE);
        }
        free(t[i].unit);
    }
    h->compared++;
}

static void checked(struct history *h)
{
    struct vmfs_check_report rep;
    OK(vmfs_settle(h->v, 60000));
    OK(vmfs_check(h->v, NULL, NULL, &rep, &err));
}

/* ---- steps ---- */
static uint32_t range(struct history *h, uint32_t max, uint32_t *ret_n)
{
    uint32_t at = rnd(h, PLACE), n = 1 + rnd(h, max);
    *ret_n = GR_MIN(n, PLACE - at);
    return rnd(h, 4) * 2500 + at;
}

static struct gr_chan *some_disk(struct history *h)
{
    return h->clone && rnd(h, 3) == 0 ? h->clone_ch : h->ch;
}

static void do_write(struct history *h)
{
    uint32_t n, p = range(h, rnd(h, 4) ? 5 : 100, &n);
    memset(h->buf, (int)rnd(h, 256), n * VMFS_PIECE);
    assert_int_equal(gr_pwrite(some_disk(h), h->buf, n * VMFS_PIECE, (uint64_t)p * VMFS_PIECE, 0), 0);
}

static void do_unmap(struct history *h)
{
    uint32_t n, p = range(h, 200, &n);
    assert_int_equal(gr_unmap(some_disk(h), (uint64_t)p * VMFS_PIECE, (uint64_t)n * VMFS_PIECE, 0), 0);
}

#define WRITES 12u
struct under_way {
    struct gr_bio bio[WRITES];
    struct iovec iov[WRITES];
    unsigned left;
    struct gr_fiber *fiber;
};

static void write_done(struct gr_bio *bio)
{
    struct under_way *u = bio->arg;
    assert_int_equal(bio->status, 0);
    if (--u->left == 0)
        gr_fiber_wake(u->fiber);
}

/* A snapshot, or several, while writes are under way: they belong to the snapshots, too. */
static void do_snap(struct history *h)
{
    struct under_way u = { .left = 1, .fiber = gr_fiber_self() };
    for (unsigned i = 0; i < WRITES && rnd(h, 8); i++) {
        uint32_t n, p = range(h, 20, &n);
        u.iov[i] = (struct iovec){ h->buf, n * VMFS_PIECE };
        u.bio[i] = (struct gr_bio){ .op = GR_OP_WRITE, .off = (uint64_t)p * VMFS_PIECE, .len = u.iov[i].iov_len, .iov = &u.iov[i], .iovcnt = 1,
                                    .done = write_done, .arg = &u };
        u.left++;
        gr_submit(h->ch, &u.bio[i]);
    }
    for (unsigned n = 1 + rnd(h, 2); n && h->n_snaps < SNAPS; n--) {
        snprintf(h->snap[h->n_snaps], sizeof h->snap[0], "s%u", h->names++);
        h->late += h->d->o->in_flight > 0; /* it is frozen at once, and waits for the device afterwards */
        OK(snap_create(&h->d, 1, h->snap[h->n_snaps++], &err));
    }
    if (--u.left)
        while (u.left)
            gr_fiber_suspend();
}

static void forget(struct history *h, unsigned i)
{
    memmove(h->snap[i], h->snap[i + 1], (SNAPS - 1 - i) * sizeof h->snap[0]);
    h->n_snaps--;
}

static bool half_given_back(const struct vobj *o)
{
    for (size_t i = 0; i < o->n_snaps; i++)
        if ((o->snaps[i]->flags & VMFS_SNAP_DELETING) && o->snaps[i]->cursor)
            return true;
    return false;
}

static void do_delete(struct history *h)
{
    if (!h->n_snaps)
        return;
    unsigned i = rnd(h, h->n_snaps);
    struct snap_info info;
    struct vmfs_stat before, after;
    bool alone = rnd(h, 2), hidden = false;
    if (alone)
        OK(snap_settle(h->d, &err));
    OK(snap_find(h->d, h->snap[i], &info, &err));
    vmfs_disk_stat(h->d, &before);
    for (size_t k = 0; k < h->d->o->n_snaps; k++)
        hidden |= h->d->o->snaps[k]->flags & VMFS_SNAP_HIDDEN;
    OK(snap_delete(h->d, h->snap[i], false, &err));
    forget(h, i);
    h->deletes++;
    if (!alone) { /* … or things go on meanwhile */
        for (unsigned n = 0; n < 400 && !half_given_back(h->d->o); n++)
            gr_fiber_sleep_ms(1);
        for (unsigned n = rnd(h, 20); n; n--) {
            h->half += half_given_back(h->d->o);
            do_write(h);
        }
        return;
    }
    OK(snap_settle(h->d, &err));
    vmfs_disk_stat(h->d, &after);
    if (after.used > before.used || before.used - after.used < info.unique)
        fail_msg("%s was to give back %llu bytes; it is %lld", info.name, (unsigned long long)info.unique, (long long)(before.used - after.used));
    assert_true(hidden || before.used - after.used == info.unique); /* one that stayed for its sake may go, too */
}

static void do_revert(struct history *h)
{
    if (!h->n_snaps)
        return;
    OK(snap_revert(h->d, h->snap[rnd(h, h->n_snaps)], &err));
    h->reverts++;
}

static void do_clone(struct history *h)
{
    if (h->clone && rnd(h, 2)) {
        close_clone(h);
        OK(vmfs_remove(h->v, "clone", &err));
        OK(vmfs_settle(h->v, 60000));
        return;
    }
    if (h->clone || !h->n_snaps)
        return;
    OK(snap_clone(h->d, h->snap[rnd(h, h->n_snaps)], "clone", &err));
    OK(vmfs_open(h->v, "clone", &h->clone, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(h->clone), gr_fiber_loop(), &h->clone_ch), 0);
    h->clones++;
}

/* The numbers are gone, as with a volume that an earlier release wrote. */
static void lose_numbers(struct vmfs_disk *d)
{
    if (!d)
        return;
    memset(&d->o->use, 0x5a, sizeof d->o->use);
    for (size_t i = 0; i < d->o->n_snaps; i++)
        memset(&d->o->snaps[i]->use, 0x5a, sizeof d->o->snaps[i]->use);
    usage_unknown(d->o);
    vobj_touch(d->o);
}

static void do_crash(struct history *h)
{
    bool crash = rnd(h, 3);
    if (crash && rnd(h, 2))
        assert_int_equal(gr_flush(h->ch), 0);
    if (!crash && rnd(h, 2)) {
        OK(snap_settle(h->d, &err));
        lose_numbers(h->d);
        lose_numbers(h->clone);
    }
    detach(h, crash);
    attach(h);
    h->crashes++;
}

static void step(struct history *h)
{
    unsigned k = rnd(h, 100);
    if (k < 50)
        do_write(h);
    else if (k < 60)
        do_unmap(h);
    else if (k < 72)
        do_snap(h);
    else if (k < 82)
        do_delete(h);
    else if (k < 86)
        do_revert(h);
    else if (k < 91)
        do_clone(h);
    else if (k < 93)
        do_crash(h);
    else if (k < 97)
        OK(vmfs_checkpoint(h->v, &err));
    else
        gr_fiber_sleep_ms(30);
}

static void format(struct history *h)
{
    struct vmfs_format_opts f = { .name = "ds1" };
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "space" };
    h->mem = gr_mem_new(512 << 20);
    h->buf = calloc(1024, VMFS_PIECE);
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), h->mem, &h->base), 0);
    OK(vmfs_format(gr_fiber_loop(), &h->base, 1, &f, &err));
    OK(vmfs_join(gr_fiber_loop(), &h->base, 1, &o, &h->v, &err));
    OK(vmfs_create(h->v, "disk", VMFS_DISK, SIZE, VMFS_THIN, &err));
    OK(vmfs_leave(h->v, &err));
    gr_bdev_put(h->base);
    attach(h);
}

static void end(struct history *h)
{
    detach(h, false);
    gr_mem_free(h->mem);
    free(h->buf);
}

static int history_fn(void *arg)
{
    struct history *h = arg;
    format(h);
    for (unsigned i = 0, n = test_cases(500); i < n; i++) {
        step(h);
        if (rnd(h, 3) == 0)
            compare(h);
        if (i % 200 == 199)
            checked(h);
    }
    compare(h);
    checked(h);
    end(h);
    return 0;
}

static void histories(void **state)
{
    struct history all = { 0 };
    uint64_t seed = test_seed();
    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        struct history h = { .rng = seed + i };
        crash_world_run(seed + i, history_fn, &h);
        all.compared += h.compared, all.deletes += h.deletes, all.reverts += h.reverts, all.clones += h.clones;
        all.crashes += h.crashes, all.late += h.late, all.half += h.half;
    }
    print_message("compared %u, deletes %u, reverts %u, clones %u, crashes %u, snapshots with writes under way %u, writes beside a delete %u\n",
                  all.compared, all.deletes, all.reverts, all.clones, all.crashes, all.late, all.half);
    assert_true(all.deletes && all.reverts && all.clones && all.crashes && all.late && all.half);
}

/* ---- a thousand snapshots ---- */
static int add_unique(void *arg, const struct snap_info *info)
{
    uint64_t *sum = arg;
    sum[0]++;
    sum[1] += info->unique;
    return 0;
}

static int thousand_fn(void *arg)
{
    struct history *h = arg;
    uint64_t sum[2] = { 0 };
    struct vmfs_stat st;
    char name[16];
    format(h);
    for (unsigned i = 0; i < 1000; i++) {
        assert_int_equal(gr_pwrite(h->ch, h->buf, 3 * VMFS_PIECE, (uint64_t)rnd(h, 4) * 2500 * VMFS_PIECE, 0), 0);
        snprintf(name, sizeof name, "s%u", i);
        OK(snap_create(&h->d, 1, name, &err));
    }
    detach(h, false);
    attach(h);
    vmfs_disk_stat(h->d, &st);
    OK(snap_list(h->d, add_unique, sum, &err));
    assert_int_equal(sum[0], 1000);
    assert_true(sum[1] > 0 && st.counted && st.reachable > 0);
    assert_null(h->d->o->live.root.mem); /* not even the root of the map was read since it was opened */
    end(h);
    return 0;
}

static void thousand(void **state)
{
    struct history h = { .rng = test_seed() };
    (void)state;
    crash_world_run(h.rng, thousand_fn, &h);
}

/* ---- numbers that are wrong ---- */
static int wrong_fn(void *arg)
{
    struct history *h = arg;
    struct vmfs_check_report rep;
    format(h);
    do_write(h);
    do_snap(h);
    do_write(h);
    h->d->o->use.own += 3;
    h->d->o->snaps[0]->use.used--;
    h->d->o->ino.used_units++;
    vobj_touch(h->d->o);
    assert_int_equal(vmfs_check(h->v, NULL, NULL, &rep, NULL), -GR_ECORRUPT);
    assert_in_range(rep.errors, 3, 4);
    OK(vmfs_repair(h->v, NULL, NULL, &rep, &err));
    compare(h);
    checked(h);
    end(h);
    return 0;
}

static void wrong(void **state)
{
    struct history h = { .rng = test_seed() };
    (void)state;
    crash_world_run(h.rng, wrong_fn, &h);
}

TEST_MAIN(TEST(histories), TEST(thousand), TEST(wrong))
