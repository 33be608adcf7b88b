/* Free space that lies in single units, as much of it as you like: no leaf of the map fits there. What was promised to a thick disk can be written
 * nevertheless, to the last piece, in any order, or the snapshot was refused; unmaps and writes work or are refused; and the volume goes on.
 * timeout: 180 */
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include "tests/lib/test.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>

#define DISK (64ull << 20)
#define PIECES (DISK / VMFS_PIECE)
#define LARGE (8 * DISK)
struct rig {
    struct gr_mem *mem;
    struct gr_bdev *dev;
    struct vmfs *v;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    uint64_t rng;
    uint8_t *buf;
    uint8_t *last; /* what each piece was last written with */
};

static void rig_open_with(struct rig *r, uint64_t size, uint64_t disk, uint64_t delay_ns, enum vmfs_provision provision)
{
    struct vmfs_format_opts f = { .name = "splinters" };
    struct vmfs_join_opts j = { .role = VMFS_HOST, .host_name = "splinters" };
    struct gr_bdev *memory;
    *r = (struct rig){ .rng = test_seed(), .buf = aligned_alloc(4096, 1 << 20), .last = calloc(disk / VMFS_PIECE, 1) };
    assert_non_null(r->mem = gr_mem_new(size));
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), r->mem, &memory), 0);
    assert_int_equal(gr_bdev_delay_open(gr_fiber_loop(), memory, delay_ns, delay_ns, 0, &r->dev), 0);
    gr_bdev_put(memory);
    OK(vmfs_format(gr_fiber_loop(), &r->dev, 1, &f, &err));
    OK(vmfs_join(gr_fiber_loop(), &r->dev, 1, &j, &r->v, &err));
    OK(vmfs_create(r->v, "disk", VMFS_DISK, disk, provision, &err));
    OK(vmfs_open(r->v, "disk", &r->d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(r->d), gr_fiber_loop(), &r->ch), 0);
    memset(r->buf, 1, 1 << 20);
    for (uint64_t off = 0; off < disk; off += 1 << 20)
        assert_int_equal(gr_pwrite(r->ch, r->buf, 1 << 20, off, 0), 0);
    memset(r->last, 1, disk / VMFS_PIECE);
    OK(vmfs_checkpoint(r->v, &err));
}

static void rig_open(struct rig *r, uint64_t size, enum vmfs_provision provision)
{
    rig_open_with(r, size, DISK, 0, provision);
}

/* Every run that is free and that nobody keeps loses each second unit: @keep units stay free. */
static void splinter(struct rig *r, uint64_t keep)
{
    struct vmfs *v = r->v;
    uint32_t got, n = 0;
    uint64_t a, *runs = NULL, all = 0;
    while (space_lease_any(v, NULL) == 0)
        ;
    while ((a = space_take_run(v, 4096, &got))) {
        runs = realloc(runs, (n + 2) * sizeof *runs);
        runs[n++] = a;
        runs[n++] = got;
    }
    for (uint32_t i = 0; i < n; i += 2) /* as if somebody held them */
        space_used(v, runs[i], (uint32_t)runs[i + 1]);
    for (uint32_t i = 0; i < n; i += 2)
        for (uint32_t k = 0; k < runs[i + 1] && all < keep; k += 2, all++)
            space_freed(v, runs[i] + k, 1, 0, v->j.durable_seq);
    free(runs);
    space_reclaim(v);
    assert_int_equal(all, keep);
    assert_true(space_free_here(v) >= keep);
    uint64_t run = space_take_run(v, 2, &got);
    assert_true(run && got == 1);
    space_unreserve(v, run, got);
}

static int put(struct rig *r, uint64_t piece)
{
    memset(r->buf, (int)(test_rand(&r->rng) % 255 + 1), 4096);
    int rc = gr_pwrite(r->ch, r->buf, 4096, piece * 4096, 0);
    if (rc == 0)
        r->last[piece] = r->buf[0];
    return rc;
}

static void compare(struct rig *r)
{
    assert_false(r->v->fenced);
    for (uint64_t p = 0; p < PIECES; p++) {
        assert_int_equal(gr_pread(r->ch, r->buf, 4096, p * 4096), 0);
        if (r->buf[0] != r->last[p] || r->buf[4095] != r->last[p])
            fail_msg("piece %llu has %u, not %u", (unsigned long long)p, r->buf[0], r->last[p]);
    }
}

static void rig_close(struct rig *r)
{
    assert_false(r->v->fenced);
    gr_chan_close(r->ch);
    vmfs_close(r->d);
    vmfs_abandon(r->v); /* of what was said to be held nobody knows */
    gr_bdev_put(r->dev);
    gr_mem_free(r->mem);
    free(r->buf);
    free(r->last);
}

static int snapshot(struct rig *r, unsigned k)
{
    struct gr_err err = { 0 };
    char name[16];
    snprintf(name, sizeof name, "s%u", k);
    int rc = snap_create(&r->d, 1, name, &err);
    if (rc < 0 && rc != -GR_ENOSPACE)
        fail_msg("%s: %s; %s", name, err.text, r->v->fence_reason);
    return rc;
}

static void put_promised(struct rig *r, uint64_t piece, unsigned snapshots)
{
    int w = put(r, piece);
    if (w < 0)
        fail_msg("snapshot %u was taken, and piece %llu cannot be written: %s; %s", snapshots, (unsigned long long)piece, gr_code_text(w), r->v->fence_reason);
}

/* ---- what was promised ---- */
/* A piece of each block after each snapshot: that is what takes the most of the map for the least of data. */
static int promised_body(void *arg)
{
    struct rig r;
    unsigned n = 0;
    rig_open(&r, 384ull << 20, VMFS_EAGER);
    splinter(&r, 35000);
    for (; snapshot(&r, n) == 0; n++) {
        assert_true(n < 100);
        uint64_t step = 2 * (test_rand(&r.rng) % 512) + 1, at = 0;
        for (uint64_t i = 0; i < PIECES / 16; i++, at = (at + step) % (PIECES / 16)) {
            put_promised(&r, at * 16 + test_rand(&r.rng) % 16, n);
            if (test_rand(&r.rng) % 400 == 0) /* others find no space, either */
                OK(vmfs_regions_recall(r.v, &err));
        }
    }
    printf("# %u snapshots\n", n);
    assert_true(n > 6); /* runs that leaves leave behind are not lost */
    uint64_t step = 2 * (test_rand(&r.rng) % (PIECES / 2)) + 1, at = 0;
    for (uint64_t i = 0; i < PIECES; i++, at = (at + step) % PIECES) /* the last promise, to the end; and again, in place or not */
        put_promised(&r, at, n);
    for (uint64_t i = 0; i < PIECES / 4; i++)
        put_promised(&r, test_rand(&r.rng) % PIECES, n);
    compare(&r);
    OK(vmfs_checkpoint(r.v, &err));
    rig_close(&r);
    return 0;
}

static void promised(void **state)
{
    test_in_fiber(promised_body, NULL);
}

/* Another disk takes what it can get, of data and of map. */
static int beside_body(void *arg)
{
    struct rig r;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    unsigned written = 0, n = 0;
    rig_open(&r, 512ull << 20, VMFS_EAGER);
    OK(vmfs_create(r.v, "beside", VMFS_DISK, DISK, VMFS_THIN, &err));
    OK(vmfs_open(r.v, "beside", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    memset(r.buf, 1, 1 << 20);
    for (uint64_t off = 0; off < DISK; off += 1 << 20)
        assert_int_equal(gr_pwrite(ch, r.buf, 1 << 20, off, 0), 0);
    splinter(&r, 40000);
    assert_int_equal(snapshot(&r, 0), 0);
    for (unsigned full = 0; full < PIECES / 16; n++) {
        struct gr_err err = { 0 };
        char name[16];
        snprintf(name, sizeof name, "b%u", n);
        assert_true(n < 100);
        (void)snap_create(&d, 1, name, &err);
        for (uint64_t block = full = 0; block < PIECES / 16; block++) {
            int w = gr_pwrite(ch, r.buf, 4096, (block * 16 + n % 16) * 4096, 0);
            if (w < 0 && w != -GR_ENOSPACE)
                fail_msg("round %u, block %llu: %s; %s", n, (unsigned long long)block, gr_code_text(w), r.v->fence_reason);
            *(w ? &full : &written) += 1;
        }
    }
    printf("# beside it %u pieces of %u snapshots were written\n", written, n);
    assert_true(written > 2000);
    uint64_t step = 2 * (test_rand(&r.rng) % (PIECES / 2)) + 1, at = 0;
    for (uint64_t i = 0; i < PIECES; i++, at = (at + step) % PIECES)
        put_promised(&r, at, 0);
    compare(&r);
    gr_chan_close(ch);
    vmfs_close(d);
    rig_close(&r);
    return 0;
}

static void beside(void **state)
{
    test_in_fiber(beside_body, NULL);
}

/* ---- writes and unmaps ---- */
static int unmaps_body(void *arg)
{
    struct rig r;
    unsigned written = 0, unmapped = 0, full = 0, refused = 0;
    rig_open(&r, 384ull << 20, VMFS_THIN);
    splinter(&r, 35000);
    for (unsigned k = 0; k < 15; k++) {
        (void)snapshot(&r, k);
        for (uint64_t block = 0; block < PIECES / 16; block++) {
            int w = put(&r, block * 16 + 15), u = gr_unmap(r.ch, (block * 16 + k) * 4096, 4096, 0);
            if ((w < 0 && w != -GR_ENOSPACE) || (u < 0 && u != -GR_ENOSPACE))
                fail_msg("round %u, block %llu: %s, %s; %s", k, (unsigned long long)block, gr_code_text(w), gr_code_text(u), r.v->fence_reason);
            if (u == 0)
                r.last[block * 16 + k] = 0;
            *(w ? &full : &written) += 1;
            *(u ? &refused : &unmapped) += 1;
        }
    }
    OK(vmfs_checkpoint(r.v, &err));
    printf("# %u pieces written, %u refused; %u unmapped, %u refused\n", written, full, unmapped, refused);
    assert_true(written > 2000 && unmapped > 2000);
    compare(&r);
    for (unsigned k = 0; k < 15; k++) { /* and then there is room again */
        struct gr_err err = { 0 };
        char name[16];
        snprintf(name, sizeof name, "s%u", k);
        int rc = snap_delete(r.d, name, false, &err);
        if (rc < 0 && rc != -ENOENT)
            fail_msg("%s: %s", name, err.text);
    }
    OK(snap_settle(r.d, &err));
    for (uint64_t block = 0; block < PIECES / 16; block++)
        assert_int_equal(put(&r, block * 16 + 7), 0);
    compare(&r);
    rig_close(&r);
    return 0;
}

static void unmaps(void **state)
{
    test_in_fiber(unmaps_body, NULL);
}

/* ---- many at a time ---- */
struct many {
    struct rig *r;
    uint64_t next, block_piece;
    struct gr_chan *src; /* of what is copied */
    unsigned running, written, refused;
    int bad;
    struct gr_fqueue ended;
};

static void many_did(struct many *m, int rc)
{
    m->written += rc == 0;
    m->refused += rc == -GR_ENOSPACE;
    if (rc < 0 && rc != -GR_ENOSPACE)
        m->bad = rc;
}

static void many_ended(struct many *m)
{
    m->running--;
    gr_fqueue_wake_all(&m->ended);
}

static void many_write(void *arg)
{
    struct many *m = arg;
    uint64_t leaves = LARGE / VMFS_PIECE / VMFS_LEAF_PIECES;
    gr_auto_free uint8_t *b = aligned_alloc(4096, 4096);
    memset(b, 7, 4096);
    for (uint64_t i; !m->bad && (i = m->next++) < LARGE / VMFS_PIECE / VMFS_BLOCK_PIECES;) { /* another leaf than all others' at work */
        uint64_t block = i % leaves * VMFS_FANOUT + i / leaves;
        many_did(m, gr_pwrite(m->r->ch, b, 4096, (block * VMFS_BLOCK_PIECES + m->block_piece) * 4096, 0));
    }
    many_ended(m);
}

/* A piece of each leaf is unmapped, or becomes a copy. */
static void many_change(void *arg)
{
    struct many *m = arg;
    for (uint64_t i; !m->bad && (i = m->next++) < LARGE / VMFS_PIECE / VMFS_LEAF_PIECES;) {
        struct gr_bio bio = { .op = m->src ? GR_OP_COPY : GR_OP_UNMAP, .off = (i * VMFS_LEAF_PIECES + m->block_piece) * 4096, .len = 4096, .copy_src = m->src };
        many_did(m, gr_submit_wait(m->r->ch, &bio));
    }
    many_ended(m);
}

static void many_at_once(struct rig *r, struct many *m, void (*fn)(void *arg), unsigned round)
{
    m->r = r;
    for (unsigned i = 0; i < 64; i++, m->running++)
        assert_int_equal(gr_fiber_start(gr_fiber_loop(), fn, m), 0);
    while (m->running)
        gr_fqueue_wait(&m->ended);
    if (m->bad || r->v->fenced)
        fail_msg("round %u: %s: %s", round, gr_code_text(m->bad), r->v->fence_reason);
}

/* Each was told that there is a run for its leaf: there are for all of them. */
static int many_body(void *arg)
{
    struct rig r;
    unsigned written = 0, refused = 0;
    (void)arg;
    rig_open_with(&r, 1536ull << 20, LARGE, 500000, VMFS_THIN);
    splinter(&r, 80000);
    for (unsigned k = 0; k < 6; k++) {
        struct many m = { .block_piece = k };
        (void)snapshot(&r, k);
        many_at_once(&r, &m, many_write, k);
        written += m.written;
        refused += m.refused;
    }
    print_message("# %u written, %u refused\n", written, refused);
    assert_true(written && refused);
    OK(vmfs_checkpoint(r.v, &err));
    rig_close(&r);
    return 0;
}
static void many(void **state)
{
    (void)state;
    test_in_fiber(many_body, NULL);
}

/* Leaves are written anew, and the snapshot keeps the old ones, until so many units in runs are left. */
static void squeeze(struct rig *r, uint64_t left, unsigned *snapshots)
{
    for (uint64_t sure; (sure = r->v->sp.pool_sure) > left;) {
        struct many m = { .next = 64 - GR_MIN(64u, (sure - left) / VMFS_LEAF_UNITS_MAX + 1), .block_piece = *snapshots * VMFS_BLOCK_PIECES + 9 };
        assert_int_equal(snapshot(r, (*snapshots)++), 0);
        many_at_once(r, &m, many_change, *snapshots);
        assert_true(m.written);
        OK(vmfs_checkpoint(r->v, &err));
    }
}

/* The same of what needs hardly any data units: all were told so before the first had its leaf in memory. */
static int changes_body(void *arg)
{
    struct rig r;
    struct vmfs_disk *d;
    struct gr_chan *src;
    unsigned snapshots = 0;
    bool copy = arg;
    rig_open_with(&r, 1536ull << 20, LARGE, 500000, VMFS_THIN);
    OK(vmfs_create(r.v, "source", VMFS_DISK, 1 << 20, VMFS_THIN, &err));
    OK(vmfs_open(r.v, "source", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &src), 0);
    assert_int_equal(gr_pwrite(src, r.buf, 4096, 0, 0), 0);
    assert_int_equal(snapshot(&r, snapshots++), 0);
    many_at_once(&r, &(struct many){ .block_piece = 8 }, many_write, 0);
    OK(vmfs_checkpoint(r.v, &err));
    splinter(&r, 60000);
    squeeze(&r, copy ? 450 : 300, &snapshots); /* enough for some of the leaves, not for all */
    (void)snapshot(&r, snapshots++);
    OK(vmfs_checkpoint(r.v, &err));
    struct many m = { .block_piece = 10, .src = copy ? src : NULL };
    size_t limit = r.v->map_limit;
    r.v->map_limit = 0;
    r.v->map_loads += 64; /* so many others came since: none is kept for being new */
    map_evict(r.v);
    many_at_once(&r, &m, many_change, 1);
    r.v->map_limit = limit;
    OK(vmfs_checkpoint(r.v, &err));
    print_message("# %u changed, %u refused\n", m.written, m.refused);
    assert_true(m.written && m.refused);
    gr_chan_close(src);
    vmfs_close(d);
    rig_close(&r);
    return 0;
}
static void many_unmaps(void **state)
{
    (void)state;
    test_in_fiber(changes_body, NULL);
}
static void many_copies(void **state)
{
    test_in_fiber(changes_body, state);
}

TEST_MAIN(TEST(promised), TEST(beside), TEST(unmaps), TEST(many), TEST(many_unmaps), TEST(many_copies))
