/* Defragmenting against a model: content, births, what counts as changed and whose space is whose stay as they were, whatever its users do meanwhile;
 * runs become few; what snapshots and clones have, too, and what has rotted, stays where it is. */
#include "tests/lib/test.h"
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include "tests/lib/crash_replay.h"
#include "tests/lib/crash_world.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>

#define DEVICE (192ull << 20)
#define DISK (24ull << 20)
#define PIECES (DISK / VMFS_PIECE)

struct rig {
    uint64_t rng;
    struct gr_mem *mem;
    struct gr_bdev *base, *dev;
    struct vmfs *v;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    uint32_t stamp[PIECES]; /* 0: zeros */
    uint64_t birth[PIECES];
    uint8_t state[PIECES];
    uint32_t stamps;
    bool crc, encrypted;
    enum vmfs_provision provision;
    unsigned users, writes, hits;
    struct gr_fqueue ended;
};

static const uint8_t secret[32] = "the key of the defragment tests";
static int kek(void *arg, uint64_t id, uint8_t ret[32])
{
    (void)arg;
    memcpy(ret, secret, 32);
    return id == vmfs_kek_id(secret) ? 0 : -ENOKEY;
}

static uint32_t rnd(struct rig *g, uint64_t n) { return (uint32_t)(test_rand(&g->rng) % n); }

/* ---- the volume ---- */
static void attach(struct rig *g)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "defrag", .kek = kek };
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), g->mem, &g->base), 0);
    assert_int_equal(gr_bdev_delay_open(gr_fiber_loop(), g->base, 200000, 200000, 400000, &g->dev), 0);
    OK(vmfs_join(gr_fiber_loop(), &g->dev, 1, &o, &g->v, &err));
    OK(vmfs_open(g->v, "disk", &g->d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(g->d), gr_fiber_loop(), &g->ch), 0);
}

static void detach(struct rig *g, bool crash)
{
    gr_chan_close(g->ch);
    vmfs_close(g->d);
    if (crash)
        vmfs_abandon(g->v);
    else
        OK(vmfs_leave(g->v, &err));
    gr_bdev_put(g->dev);
    gr_bdev_put(g->base);
}

static void make(struct rig *g, uint64_t size)
{
    struct vmfs_format_opts f = { .name = "ds1", .data_crc = g->crc };
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "make", .kek = kek };
    g->mem = gr_mem_new(size);
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), g->mem, &g->base), 0);
    OK(vmfs_format(gr_fiber_loop(), &g->base, 1, &f, &err));
    OK(vmfs_join(gr_fiber_loop(), &g->base, 1, &o, &g->v, &err));
    if (g->encrypted)
        OK(vmfs_create_encrypted(g->v, "disk", DISK, g->provision, 4096, vmfs_kek_id(secret), &err));
    else
        OK(vmfs_create(g->v, "disk", VMFS_DISK, DISK, g->provision, &err));
    OK(vmfs_leave(g->v, &err));
    gr_bdev_put(g->base);
    attach(g);
}

static void sound(struct rig *g)
{
    struct vmfs_check_report rep;
    OK(vmfs_check(g->v, NULL, NULL, &rep, &err));
}

static void unmake(struct rig *g)
{
    sound(g);
    detach(g, false);
    gr_mem_free(g->mem);
}

/* ---- content ---- */
static void fill(uint8_t *b, uint64_t piece, uint32_t stamp)
{
    for (unsigned i = 0; i < VMFS_PIECE / 8; i++)
        gr_put_le64(b + 8 * i, stamp ? (uint64_t)stamp << 32 | (piece * 512 + i) : 0);
}

static void write_at(struct rig *g, uint64_t piece, unsigned n)
{
    uint8_t *b = aligned_alloc(4096, (size_t)n * VMFS_PIECE);
    for (unsigned i = 0; i < n; i++)
        fill(b + (size_t)i * VMFS_PIECE, piece + i, g->stamp[piece + i] = ++g->stamps);
    assert_int_equal(gr_pwrite(g->ch, b, (size_t)n * VMFS_PIECE, piece * VMFS_PIECE, 0), 0);
    free(b);
}

static void unmap_at(struct rig *g, uint64_t piece, unsigned n)
{
    memset(g->stamp + piece, 0, n * sizeof g->stamp[0]);
    assert_int_equal(gr_unmap(g->ch, piece * VMFS_PIECE, (uint64_t)n * VMFS_PIECE, 0), 0);
}

static void compare(struct rig *g, struct gr_chan *ch, const uint32_t *stamp)
{
    uint8_t *b = aligned_alloc(4096, 1 << 20), want[VMFS_PIECE];
    for (uint64_t p = 0; p < PIECES; p += 256) {
        assert_int_equal(gr_pread(ch, b, 1 << 20, p * VMFS_PIECE), 0);
        for (unsigned i = 0; i < 256; i++) {
            fill(want, p + i, stamp[p + i]);
            if (memcmp(b + (size_t)i * VMFS_PIECE, want, VMFS_PIECE) != 0)
                fail_msg("piece %llu is not as it was written", (unsigned long long)(p + i));
        }
    }
    free(b);
    (void)g;
}

static void compare_snapshot(struct rig *g, const char *name, const uint32_t *stamp)
{
    struct gr_bdev *b;
    struct gr_chan *ch;
    OK(snap_open(g->d, name, &b, &err));
    assert_int_equal(gr_chan_open(b, gr_fiber_loop(), &ch), 0);
    compare(g, ch, stamp);
    gr_chan_close(ch);
    gr_bdev_put(b);
}

/* ---- the map ---- */
static struct mpiece piece_of(struct rig *g, uint64_t p)
{
    struct mnode *leaf = NULL;
    while (mtree_peek(&g->d->o->live, p, &leaf) < 0)
        OK(mtree_load(g->d->o, &g->d->o->live, p, &err));
    if (!leaf)
        return (struct mpiece){ .state = VMFS_P_HOLE };
    return ment_piece(&leaf->ent[p % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES], (unsigned)(p % VMFS_BLOCK_PIECES));
}

static void remember_births(struct rig *g)
{
    for (uint64_t p = 0; p < PIECES; p++) {
        struct mpiece m = piece_of(g, p);
        g->birth[p] = m.birth;
        g->state[p] = (uint8_t)m.state;
    }
}

static void same_births(struct rig *g)
{
    for (uint64_t p = 0; p < PIECES; p++) {
        struct mpiece m = piece_of(g, p);
        if (m.birth != g->birth[p] || m.state != g->state[p])
            fail_msg("piece %llu was born in %llu, and now in %llu", (unsigned long long)p, (unsigned long long)g->birth[p], (unsigned long long)m.birth);
    }
}

static uint64_t digest_of_change(struct rig *g, const char *base)
{
    struct gr_bookmark b;
    struct gr_extent x[64];
    uint64_t sum = 1469598103934665603ull, off = 0;
    OK(snap_resolve_base(g->d, base, &b, &err));
    while (off < DISK) {
        struct gr_bio bio = { .op = GR_OP_EXTENTS, .off = off, .len = DISK - off, .extents = x, .max_extents = 64, .base = &b };
        assert_int_equal(gr_submit_wait(g->ch, &bio), 0);
        for (unsigned i = 0; i < bio.n_extents; i++) {
            for (uint64_t p = x[i].off / VMFS_PIECE; p < (x[i].off + x[i].len) / VMFS_PIECE; p++)
                sum = (sum ^ (x[i].changed ? p * 4 + x[i].flags + 1 : 0)) * 1099511628211ull;
            off = x[i].off + x[i].len;
        }
    }
    return sum;
}

/* ---- ageing ---- */
static void filled(struct rig *g)
{
    for (uint64_t p = 0; p < PIECES; p += 64)
        write_at(g, p, 64);
}

static void overwrites(struct rig *g, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        unsigned len = rnd(g, 8) ? 1 : 1 + rnd(g, 30);
        uint64_t p = rnd(g, PIECES - 32);
        if (rnd(g, 40) == 0)
            unmap_at(g, p, len);
        else
            write_at(g, p, len);
    }
}

static void take(struct rig *g, const char *name) { OK(snap_create(&g->d, 1, name, &err)); }

static void drop(struct rig *g, const char *name)
{
    OK(snap_delete(g->d, name, false, &err));
    OK(snap_settle(g->d, &err));
}

static void aged(struct rig *g, unsigned snapshots, unsigned writes)
{
    char name[16];
    filled(g);
    for (unsigned i = 0; i < snapshots; i++) {
        snprintf(name, sizeof name, "s%u", i);
        take(g, name);
        overwrites(g, writes);
    }
    for (unsigned i = 0; i < snapshots; i++) {
        snprintf(name, sizeof name, "s%u", i);
        drop(g, name);
    }
    assert_int_equal(gr_flush(g->ch), 0);
}

static struct vmfs_defrag_report defragment(struct rig *g)
{
    struct vmfs_defrag_report rep;
    OK(vmfs_defragment(g->d, &(struct vmfs_defrag_opts){ 0 }, &rep, &err));
    return rep;
}

static void run(int (*fn)(void *arg), struct rig *g)
{
    g->rng = test_seed();
    crash_world_run(g->rng, fn, g);
    free(g);
}

/* ---- the tests ---- */
static int aged_disk(void *arg)
{
    struct rig *g = arg;
    struct vmfs_defrag_report rep, dry;
    struct vmfs_stat before, after;
    make(g, DEVICE);
    filled(g);
    take(g, "old");
    OK(snap_bookmark(g->d, "old", "mark", &err));
    overwrites(g, 50);
    take(g, "young");
    OK(snap_bookmark(g->d, "young", "later", &err));
    drop(g, "old");
    drop(g, "young");
    aged(g, 12, 300);
    remember_births(g);
    uint64_t mark = digest_of_change(g, "mark"), later = digest_of_change(g, "later");
    vmfs_disk_stat(g->d, &before);
    OK(vmfs_defragment(g->d, &(struct vmfs_defrag_opts){ .dry_run = true }, &dry, &err));
    same_births(g);
    assert_true(dry.moved > DISK / 2 && dry.runs < dry.runs_before / 10);
    rep = defragment(g);
    assert_true(rep.runs_before == dry.runs_before && rep.runs_before > 2000);
    assert_true(rep.moved == dry.moved && !rep.busy && !rep.splinters && !rep.bad && !rep.shared);
    assert_true(rep.runs <= DISK >> 20);
    same_births(g);
    assert_int_equal(digest_of_change(g, "mark"), mark);
    assert_int_equal(digest_of_change(g, "later"), later);
    vmfs_disk_stat(g->d, &after);
    assert_true(before.reachable == after.reachable && before.unique == after.unique && after.n_snapshots == 0);
    compare(g, g->ch, g->stamp);
    sound(g);
    rep = defragment(g); /* once is enough */
    assert_int_equal(rep.moved, 0);
    unsigned extents = 0;
    for (uint64_t p = 0; p < PIECES; p += 16) { /* what is alike needs no splits any more */
        struct mnode *leaf = NULL;
        piece_of(g, p);
        assert_int_equal(mtree_peek(&g->d->o->live, p, &leaf), 0);
        extents += !leaf->ent[p % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES].px;
    }
    assert_true(extents > 0);
    overwrites(g, 100); /* in place, and elsewhere */
    assert_int_equal(gr_flush(g->ch), 0);
    detach(g, true); /* replayed */
    attach(g);
    compare(g, g->ch, g->stamp);
    unmake(g);
    return 0;
}

static void an_aged_disk(void **state)
{
    (void)state;
    run(aged_disk, calloc(1, sizeof(struct rig)));
}

/* What a snapshot has, or a clone, stays shared, and costs no more than before. */
static int shared_disk(void *arg)
{
    struct rig *g = arg;
    static uint32_t kept[PIECES];
    struct vmfs_stat before, after;
    make(g, DEVICE);
    filled(g);
    for (unsigned i = 0; i < 4; i++) {
        take(g, "x");
        overwrites(g, 200);
        drop(g, "x");
    }
    take(g, "keep");
    memcpy(kept, g->stamp, sizeof kept);
    for (unsigned i = 0; i < 4; i++) {
        take(g, "x");
        overwrites(g, 400);
        drop(g, "x");
    }
    remember_births(g);
    vmfs_disk_stat(g->d, &before);
    struct vmfs_defrag_report rep = defragment(g);
    assert_true(rep.shared > 0 && rep.moved > 0 && rep.runs < rep.runs_before);
    vmfs_disk_stat(g->d, &after);
    assert_true(before.reachable == after.reachable && before.unique == after.unique);
    same_births(g);
    compare(g, g->ch, g->stamp);
    compare_snapshot(g, "keep", kept);
    sound(g);
    OK(snap_clone(g->d, "keep", "clone", &err));
    struct vmfs_disk *clone;
    OK(vmfs_open(g->v, "clone", &clone, NULL, &err));
    OK(vmfs_defragment(clone, &(struct vmfs_defrag_opts){ 0 }, &rep, &err));
    assert_true(rep.moved == 0 && rep.shared == rep.bytes && rep.bytes > 0);
    vmfs_close(clone);
    OK(vmfs_remove(g->v, "clone", &err));
    assert_int_equal(vmfs_settle(g->v, 60000), 0);
    OK(snap_revert(g->d, "keep", &err)); /* and it goes back where it was */
    memcpy(g->stamp, kept, sizeof kept);
    compare(g, g->ch, g->stamp);
    unmake(g);
    return 0;
}

static void what_others_have_stays(void **state)
{
    (void)state;
    run(shared_disk, calloc(1, sizeof(struct rig)));
}

/* A copy that shares units keeps its share. */
static int copied_disk(void *arg)
{
    struct rig *g = arg;
    make(g, DEVICE);
    aged(g, 3, 600);
    OK(vmfs_create(g->v, "copy", VMFS_DISK, DISK, VMFS_THIN, &err));
    struct vmfs_disk *copy;
    struct gr_chan *ch;
    OK(vmfs_open(g->v, "copy", &copy, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(copy), gr_fiber_loop(), &ch), 0);
    struct gr_bio bio = { .op = GR_OP_COPY, .len = DISK / 2, .copy_src = g->ch };
    assert_int_equal(gr_submit_wait(ch, &bio), 0);
    uint64_t free_before = space_free_units(g->v);
    struct vmfs_defrag_report rep = defragment(g);
    assert_true(rep.shared > DISK / 3 && rep.moved > 0);
    assert_true(space_free_units(g->v) + 64 > free_before); /* but for nodes of the map */
    compare(g, g->ch, g->stamp);
    OK(vmfs_defragment(copy, &(struct vmfs_defrag_opts){ 0 }, &rep, &err));
    assert_int_equal(rep.moved, 0);
    gr_chan_close(ch);
    vmfs_close(copy);
    unmake(g);
    return 0;
}

static void a_copy_keeps_its_share(void **state)
{
    (void)state;
    run(copied_disk, calloc(1, sizeof(struct rig)));
}

/* ---- while it is used ---- */
struct user {
    struct rig *g;
    uint64_t first, end; /* nobody else's pieces */
    bool snapshots;
};

static void user_fiber(void *arg)
{
    struct user *u = arg;
    struct rig *g = u->g;
    for (unsigned i = 0; i < 250; i++) {
        unsigned n = 1 + rnd(g, 12);
        uint64_t p = u->first + rnd(g, u->end - u->first - n);
        uint32_t k = rnd(g, 20);
        if (k < 12) {
            write_at(g, p, n);
        } else if (k < 14) {
            unmap_at(g, p, n);
        } else if (k < 15) {
            assert_int_equal(gr_flush(g->ch), 0);
        } else if (k < 18) {
            uint8_t b[VMFS_PIECE], want[VMFS_PIECE];
            fill(want, p, g->stamp[p]);
            assert_int_equal(gr_pread(g->ch, b, sizeof b, p * VMFS_PIECE), 0);
            if (memcmp(b, want, sizeof b) != 0)
                fail_msg("piece %llu is not as it was written", (unsigned long long)p);
        } else {
            gr_fiber_sleep_ms(rnd(g, 30)); /* long enough for what was written to be sealed */
        }
        g->writes++;
    }
    if (--g->users == 0)
        gr_fqueue_wake_all(&g->ended);
    free(u);
}

static void snapshot_fiber(void *arg)
{
    struct rig *g = arg;
    for (unsigned i = 0; i < 12; i++) {
        take(g, "meanwhile");
        gr_fiber_sleep_ms(rnd(g, 20));
        OK(snap_delete(g->d, "meanwhile", false, &err));
        gr_fiber_sleep_ms(rnd(g, 40));
    }
    if (--g->users == 0)
        gr_fqueue_wake_all(&g->ended);
}

static int used_disk(void *arg)
{
    struct rig *g = arg;
    struct vmfs_defrag_report rep;
    make(g, DEVICE);
    aged(g, 6, 400);
    for (unsigned i = 0; i < 6; i++) {
        struct user *u = malloc(sizeof *u);
        *u = (struct user){ .g = g, .first = i * PIECES / 6, .end = (i + 1) * PIECES / 6 };
        gr_fiber_start(gr_fiber_loop(), user_fiber, u);
    }
    gr_fiber_start(gr_fiber_loop(), snapshot_fiber, g);
    g->users = 7;
    uint64_t moved = 0, passes = 0;
    for (; g->users; passes++) {
        OK(vmfs_defragment(g->d, &(struct vmfs_defrag_opts){ 0 }, &rep, &err));
        moved += rep.moved;
        assert_int_equal(rep.bad, 0);
        g->hits += rep.busy > 0;
        gr_fiber_sleep_ms(1);
    }
    assert_true(moved > DISK / 8 && passes > 1);
    compare(g, g->ch, g->stamp);
    OK(snap_settle(g->d, &err));
    sound(g);
    rep = defragment(g);
    assert_true(rep.runs <= DISK >> 18);
    compare(g, g->ch, g->stamp);
    assert_int_equal(gr_flush(g->ch), 0);
    detach(g, true);
    attach(g);
    compare(g, g->ch, g->stamp);
    unmake(g);
    return 0;
}

static void while_it_is_used(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        struct rig *g = calloc(1, sizeof *g);
        g->crc = i == 1;
        g->encrypted = i == 2;
        run(used_disk, g);
    }
}

/* A snapshot with a clone, or a revert, comes between copying a window and moving it: then it is not moved. */
#define CLONES 6u
static uint32_t cloned[CLONES][PIECES];

/* All pieces of a window, in any order: splinters that are the live head's alone. */
static void splinter(struct rig *g, uint64_t first)
{
    for (uint64_t i = 0, k = 2 * rnd(g, 120) + 5; i < 256; i++)
        write_at(g, first + i * k % 256, 1);
}

static void pass_fiber(void *arg)
{
    struct rig *g = arg;
    struct vmfs_defrag_report rep = defragment(g);
    assert_int_equal(rep.bad, 0);
    g->users--;
}

static void compare_clone(struct rig *g, const char *name, const uint32_t *stamp)
{
    struct vmfs_disk *d;
    struct gr_chan *ch;
    OK(vmfs_open(g->v, name, &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    compare(g, ch, stamp);
    gr_chan_close(ch);
    vmfs_close(d);
}

/* Admitted behind those who are, it keeps others waiting until it is told, or a snapshot is taken. */
struct holder {
    struct vobj *o;
    uint64_t first, end;
    bool held, let_go, ended;
};
static void holder_fiber(void *arg)
{
    struct holder *h = arg;
    struct dpass p;
    struct dop *op = disk_pass_begin(&p, h->o, h->first, h->end, true);
    h->held = true;
    while (!h->let_go && !dop_late(op))
        gr_fiber_sleep_ms(1);
    disk_op_end(op, 0);
    h->ended = true;
}

/* What is copied is moved behind the clone only: the first holder is admitted before the snapshot, and ends with it, the second
 * behind it. */
static void clone_between(struct rig *g, const char *name)
{
    struct vobj *o = g->d->o;
    struct holder h[2] = { { .o = o, .first = o->watch->first, .end = o->watch->end } };
    h[1] = h[0];
    for (unsigned i = 0; i < 2; i++)
        gr_fiber_start(gr_fiber_loop(), holder_fiber, &h[i]);
    while (!h[0].held)
        gr_fiber_sleep_ms(1);
    take(g, "now");
    while (!h[1].held)
        gr_fiber_sleep_ms(1);
    OK(snap_clone(g->d, "now", name, &err));
    assert_non_null(o->watch);
    h[1].let_go = true;
    while (!h[1].ended)
        gr_fiber_sleep_ms(1);
}

static int changed_disk(void *arg)
{
    struct rig *g = arg;
    uint32_t *then = malloc(sizeof g->stamp);
    char name[16];
    make(g, 3 * DEVICE);
    filled(g);
    struct vobj *o = g->d->o;
    for (unsigned i = 0; i < 2 * CLONES; i++) {
        take(g, "then");
        memcpy(then, g->stamp, sizeof g->stamp);
        splinter(g, rnd(g, PIECES / 256) * 256ull);
        g->users = 1;
        gr_fiber_start(gr_fiber_loop(), pass_fiber, g);
        for (unsigned ms = 0; !o->watch && ms < 20000; ms++)
            gr_fiber_yield();
        assert_non_null(o->watch);
        if (i % 2) {
            OK(snap_revert(g->d, "then", &err));
            memcpy(g->stamp, then, sizeof g->stamp);
        } else {
            snprintf(name, sizeof name, "clone%u", i / 2);
            memcpy(cloned[i / 2], g->stamp, sizeof g->stamp);
            clone_between(g, name);
        }
        while (g->users)
            gr_fiber_sleep_ms(1);
        compare(g, g->ch, g->stamp);
        if (i % 2 == 0) {
            compare_snapshot(g, "now", g->stamp);
            OK(snap_delete(g->d, "now", false, &err));
        }
        OK(snap_delete(g->d, "then", false, &err));
        sound(g);
    }
    free(then);
    for (unsigned i = 0; i < CLONES; i++) {
        snprintf(name, sizeof name, "clone%u", i);
        compare_clone(g, name, cloned[i]);
    }
    detach(g, true);
    attach(g);
    compare(g, g->ch, g->stamp);
    unmake(g);
    return 0;
}

static void changed_under_it(void **state)
{
    (void)state;
    run(changed_disk, calloc(1, sizeof(struct rig)));
}

/* ---- encrypted, with several keys; thick ---- */
static int keyed_disk(void *arg)
{
    struct rig *g = arg;
    make(g, DEVICE);
    filled(g);
    for (unsigned i = 0; i < 3; i++) {
        take(g, "x");
        overwrites(g, 300);
        drop(g, "x");
        OK(vmfs_keys_rotate(g->d, vmfs_kek_id(secret), &err));
        overwrites(g, 100);
    }
    remember_births(g);
    struct vmfs_defrag_report rep = defragment(g);
    assert_true(rep.moved > DISK / 2 && rep.runs <= DISK >> 20);
    same_births(g);
    compare(g, g->ch, g->stamp);
    detach(g, true);
    attach(g);
    compare(g, g->ch, g->stamp);
    unmake(g);
    return 0;
}

static void with_several_keys(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        struct rig *g = calloc(1, sizeof *g);
        g->encrypted = true;
        g->crc = i;
        run(keyed_disk, g);
    }
}

static int thick_disk(void *arg)
{
    struct rig *g = arg;
    make(g, DEVICE);
    for (unsigned i = 0; i < 3; i++) {
        overwrites(g, 300);
        take(g, "x");
        overwrites(g, 300);
        drop(g, "x");
    }
    struct vmfs_stat before, after;
    remember_births(g);
    vmfs_disk_stat(g->d, &before);
    struct vmfs_defrag_report rep = defragment(g);
    assert_true(rep.moved > 0 && rep.bytes == DISK && rep.runs <= DISK >> 18);
    same_births(g);
    vmfs_disk_stat(g->d, &after);
    assert_true(before.reachable == after.reachable && before.unique == after.unique);
    compare(g, g->ch, g->stamp);
    unmake(g);
    return 0;
}

static void a_thick_disk(void **state)
{
    struct rig *g = calloc(1, sizeof *g);
    (void)state;
    g->provision = VMFS_THICK;
    run(thick_disk, g);
}

/* ---- what has rotted is not made good ---- */
static int rotten_disk(void *arg)
{
    struct rig *g = arg;
    make(g, DEVICE);
    aged(g, 3, 600);
    uint64_t bad = 1000;
    while (!g->stamp[bad])
        bad++;
    uint64_t at = piece_of(g, bad).addr;
    uint8_t b[VMFS_PIECE];
    struct gr_chan *raw;
    assert_int_equal(gr_chan_open(g->dev, gr_fiber_loop(), &raw), 0);
    assert_int_equal(gr_pread(raw, b, sizeof b, vmfs_addr_unit(at) * VMFS_UNIT), 0);
    b[77] ^= 4;
    assert_int_equal(gr_pwrite(raw, b, sizeof b, vmfs_addr_unit(at) * VMFS_UNIT, 0), 0);
    gr_chan_close(raw);
    struct vmfs_defrag_report rep = defragment(g);
    assert_true(rep.bad == VMFS_PIECE && rep.moved > 0);
    assert_int_equal(piece_of(g, bad).addr, at);
    assert_int_equal(gr_pread(g->ch, b, sizeof b, bad * VMFS_PIECE), -EIO);
    write_at(g, bad, 1);
    compare(g, g->ch, g->stamp);
    unmake(g);
    return 0;
}

static void what_has_rotted_stays(void **state)
{
    struct rig *g = calloc(1, sizeof *g);
    (void)state;
    g->crc = true;
    run(rotten_disk, g);
}

/* ---- power cuts ---- */
/* All of it was flushed before: whatever a cut keeps of the pass, it is there, born when it was. */
static void cut_verify(struct rig *g, struct crash_image *img)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "after", .kek = kek };
    struct rig *x = calloc(1, sizeof *x);
    memcpy(x->birth, g->birth, sizeof x->birth);
    memcpy(x->state, g->state, sizeof x->state);
    assert_int_equal(crash_image_open(gr_fiber_loop(), img, 0, &x->dev), 0);
    OK(vmfs_join(gr_fiber_loop(), &x->dev, 1, &o, &x->v, &err));
    sound(x);
    OK(vmfs_open(x->v, "disk", &x->d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(x->d), gr_fiber_loop(), &x->ch), 0);
    same_births(x);
    compare(x, x->ch, g->stamp);
    gr_chan_close(x->ch);
    vmfs_close(x->d);
    vmfs_abandon(x->v);
    gr_bdev_put(x->dev);
    free(x);
}

static int cut_disk(void *arg)
{
    struct rig *g = arg;
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "before", .kek = kek };
    struct vmfs_format_opts f = { .name = "ds1", .data_crc = g->crc, .journal_units = 512 };
    struct crash_image *disk = crash_image_new(DEVICE);
    struct gr_bdev *rec;
    assert_int_equal(crash_image_open(gr_fiber_loop(), disk, g->rng | 1, &g->dev), 0);
    OK(vmfs_format(gr_fiber_loop(), &g->dev, 1, &f, &err));
    OK(vmfs_join(gr_fiber_loop(), &g->dev, 1, &o, &g->v, &err));
    OK(vmfs_create_encrypted(g->v, "disk", DISK, VMFS_THIN, 4096, vmfs_kek_id(secret), &err));
    OK(vmfs_open(g->v, "disk", &g->d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(g->d), gr_fiber_loop(), &g->ch), 0);
    aged(g, 4, 400);
    OK(vmfs_checkpoint(g->v, &err));
    remember_births(g);
    gr_chan_close(g->ch);
    vmfs_close(g->d);
    OK(vmfs_leave(g->v, &err));
    struct crash_image *base = crash_image_copy(disk);
    assert_int_equal(gr_bdev_record_open(gr_fiber_loop(), g->dev, &rec), 0);
    OK(vmfs_join(gr_fiber_loop(), &rec, 1, &o, &g->v, &err));
    OK(vmfs_open(g->v, "disk", &g->d, NULL, &err));
    struct vmfs_defrag_report rep = defragment(g);
    assert_true(rep.moved > DISK / 2);
    vmfs_close(g->d);
    vmfs_abandon(g->v);
    struct crash_replay *p = crash_replay_new(base, gr_bdev_record(rec));
    uint64_t ticks = crash_record_ticks(gr_bdev_record(rec)), cuts = test_cases(60);
    for (uint64_t i = 0; i < cuts; i++) {
        struct crash_image *img = crash_replay_cut(p, 1 + (ticks - 1) * i / cuts, (enum crash_kind)(i % CRASH_KINDS), &g->rng);
        cut_verify(g, img);
        crash_image_free(img);
    }
    crash_replay_free(p);
    gr_bdev_put(rec);
    gr_bdev_put(g->dev);
    crash_image_free(base);
    crash_image_free(disk);
    return 0;
}

static void power_cuts(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        struct rig *g = calloc(1, sizeof *g);
        g->crc = i;
        run(cut_disk, g);
    }
}

/* ---- it makes way for its users ---- */
static void reader_fiber(void *arg)
{
    struct rig *g = arg;
    uint8_t b[VMFS_PIECE];
    for (; g->users; g->writes++) {
        assert_int_equal(gr_pread(g->ch, b, sizeof b, rnd(g, PIECES) * (uint64_t)VMFS_PIECE), 0);
        gr_fiber_sleep_ms(10);
    }
    g->hits = 1;
}

static uint64_t pass_ns[2]; /* alone; beside a reader */

static int timed_pass(void *arg)
{
    struct rig *g = arg;
    bool busy = g->users;
    make(g, DEVICE);
    aged(g, 3, 500);
    gr_fiber_sleep_ms(300);
    if (busy)
        gr_fiber_start(gr_fiber_loop(), reader_fiber, g);
    uint64_t began = gr_loop_now_ns(gr_fiber_loop());
    struct vmfs_defrag_report rep = defragment(g);
    pass_ns[busy] = gr_loop_now_ns(gr_fiber_loop()) - began;
    assert_true(rep.moved > DISK / 2);
    g->users = 0;
    while (busy && !g->hits)
        gr_fiber_sleep_ms(1);
    unmake(g);
    return 0;
}

static void it_makes_way(void **state)
{
    (void)state;
    for (unsigned busy = 0; busy < 2; busy++) {
        struct rig *g = calloc(1, sizeof *g);
        g->users = busy;
        run(timed_pass, g);
    }
    assert_true(pass_ns[1] > 3 * pass_ns[0]);
}

/* ---- refused, stopped ---- */
static int stop_soon(void *arg, uint64_t done, uint64_t all, struct gr_err *err)
{
    assert_true(done <= all);
    return done > *(uint64_t *)arg ? gr_fail(err, -GR_ECANCELED, "enough") : 0;
}

static void second_pass(void *arg)
{
    struct rig *g = arg;
    struct vmfs_defrag_report rep;
    FAILS(-EBUSY, "already", vmfs_defragment(g->d, &(struct vmfs_defrag_opts){ 0 }, &rep, &err));
    g->users--;
}

static int refused(void *arg)
{
    struct rig *g = arg;
    struct vmfs_defrag_report rep;
    uint64_t limit = 4 << 20;
    make(g, 96ull << 20);
    aged(g, 4, 500);
    g->users = 1;
    gr_fiber_start(gr_fiber_loop(), second_pass, g);
    FAILS(-GR_ECANCELED, "enough", vmfs_defragment(g->d, &(struct vmfs_defrag_opts){ .progress = stop_soon, .arg = &limit }, &rep, &err));
    assert_true(rep.moved > 0 && rep.moved < DISK / 2 && !g->users);
    uint64_t began = gr_loop_now_ns(gr_fiber_loop());
    uint64_t before = rep.moved;
    OK(vmfs_defragment(g->d, &(struct vmfs_defrag_opts){ .rate = 4 << 20 }, &rep, &err));
    assert_true(rep.moved > 0 && before + rep.moved <= DISK);
    assert_true(gr_loop_now_ns(gr_fiber_loop()) - began >= rep.moved * 1000000000 / (4 << 20) - 1000000000);
    compare(g, g->ch, g->stamp);
    /* what is kept back is not taken from */
    overwrites(g, 10);
    aged(g, 2, 500);
    struct vmfs_info info;
    vmfs_info(g->v, &info);
    uint64_t room = info.free - space_meta_reserve(g->v) * VMFS_UNIT;
    OK(vmfs_create(g->v, "filler", VMFS_DISK, (room - (256u << 10)) & ~65535ull, VMFS_THICK, &err));
    FAILS(-GR_ENOSPACE, "kept back", vmfs_defragment(g->d, &(struct vmfs_defrag_opts){ 0 }, &rep, &err));
    compare(g, g->ch, g->stamp);
    unmake(g);
    return 0;
}

static void refused_and_stopped(void **state)
{
    (void)state;
    run(refused, calloc(1, sizeof(struct rig)));
}

TEST_MAIN(TEST(an_aged_disk), TEST(what_others_have_stays), TEST(a_copy_keeps_its_share), TEST(while_it_is_used), TEST(changed_under_it), TEST(with_several_keys), TEST(a_thick_disk),
          TEST(what_has_rotted_stays), TEST(power_cuts), TEST(it_makes_way), TEST(refused_and_stopped))
