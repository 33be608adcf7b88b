/* Where snapshots could cost too much: a group of sixteen disks at work is one frame of the journal and one flush; a guest that flushes
 * is not joined by flushes of ours; snapshots that are deleted together are not a checkpoint each, and those that are deleted one after another while
 * the guest is at work take a tenth of the time at most; nothing holds the loop for long; the map in memory keeps to its limit with all that belongs to
 * it; and a datastore that is filled by what snapshots keep, data and map, until it is full, refuses writes then and is never given up, though its free
 * space is in splinters no leaf fits into. */
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include "tests/lib/test.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>

struct rig {
    struct gr_mem *mem;
    struct gr_bdev *dev;
    struct vmfs *v;
};

/* Writes and flushes of the device take so long. */
static void rig_open_slow(struct rig *r, uint64_t size, uint64_t ns)
{
    struct vmfs_format_opts f = { .name = "limits" };
    struct vmfs_join_opts j = { .role = VMFS_HOST, .host_name = "limits" };
    struct gr_bdev *mem;
    assert_non_null(r->mem = gr_mem_new(size));
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), r->mem, &mem), 0);
    assert_int_equal(gr_bdev_delay_open(gr_fiber_loop(), mem, 0, ns, ns, &r->dev), 0);
    gr_bdev_put(mem);
    OK(vmfs_format(gr_fiber_loop(), &r->dev, 1, &f, &err));
    OK(vmfs_join(gr_fiber_loop(), &r->dev, 1, &j, &r->v, &err));
}

static void rig_open(struct rig *r, uint64_t size)
{
    rig_open_slow(r, size, 0);
}

static void rig_close(struct rig *r)
{
    OK(vmfs_leave(r->v, &err));
    gr_bdev_put(r->dev);
    gr_mem_free(r->mem);
}

/* ---- a group ---- */
#define GROUP 16u
static int group_body(void *arg)
{
    struct rig r;
    struct vmfs_disk *d[GROUP];
    struct gr_chan *ch[GROUP];
    uint8_t *buf = aligned_alloc(4096, 4096);
    struct vmfs_stats s0, s1;
    char name[16];
    memset(buf, 7, 4096);
    rig_open(&r, 96ull << 20);
    for (unsigned i = 0; i < GROUP; i++) {
        snprintf(name, sizeof name, "d%u", i);
        OK(vmfs_create(r.v, name, VMFS_DISK, 8 << 20, VMFS_THIN, &err));
        OK(vmfs_open(r.v, name, &d[i], NULL, &err));
        assert_int_equal(gr_chan_open(vmfs_bdev(d[i]), gr_fiber_loop(), &ch[i]), 0);
        assert_int_equal(gr_pwrite(ch[i], buf, 4096, i * 4096, 0), 0);
    }
    for (unsigned round = 0; round < 3; round++) {
        OK(vmfs_checkpoint(r.v, &err));
        gr_fiber_sleep_ms(100); /* nothing is owed any more */
        vmfs_stats(r.v, &s0);
        snprintf(name, sizeof name, "s%u", round);
        OK(snap_create(d, GROUP, name, &err));
        vmfs_stats(r.v, &s1);
        assert_int_equal(s1.journal_frames - s0.journal_frames, 1);
        assert_int_equal(s1.flushes - s0.flushes, 1);
    }
    for (unsigned i = 0; i < GROUP; i++) {
        struct snap_info a, b;
        OK(snap_find(d[0], "s1", &a, &err));
        OK(snap_find(d[i], "s1", &b, &err));
        assert_string_equal(a.group, b.group);
    }
    for (unsigned i = 0; i < GROUP; i++) {
        gr_chan_close(ch[i]);
        vmfs_close(d[i]);
    }
    free(buf);
    rig_close(&r);
    return 0;
}

static void test_group_is_one_record(void **state)
{
    test_in_fiber(group_body, NULL);
}

/* ---- flushes, memory ---- */
#define WIDE (4ull << 30) /* 512 leaves */
/* Bytes of the nodes at and below @n that are in memory, with all that belongs to them. */
static uint64_t bytes_of(const struct mnode *n)
{
    uint64_t sum = n->level ? offsetof(struct mnode, child) + sizeof(struct mchild) * VMFS_FANOUT : sizeof *n;
    for (unsigned i = 0; i < VMFS_FANOUT; i++)
        sum += n->level ? (n->child[i].mem ? bytes_of(n->child[i].mem) : 0) : n->ent[i].px ? sizeof *n->ent[i].px : 0;
    return sum;
}

static int wide_body(void *arg)
{
    struct rig r;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    struct vmfs_stats s0, s1;
    uint8_t *buf = aligned_alloc(4096, 4096);
    memset(buf, 3, 4096);
    rig_open(&r, 768ull << 20);
    OK(vmfs_create(r.v, "wide", VMFS_DISK, WIDE, VMFS_THIN, &err));
    OK(vmfs_open(r.v, "wide", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    for (uint64_t block = 0; block < WIDE / VMFS_BLOCK; block += 16)
        assert_int_equal(gr_pwrite(ch, buf, 4096, block * VMFS_BLOCK, 0), 0);
    OK(snap_create(&d, 1, "s", &err));

    /* a guest at work flushes for everybody: none of ours come between */
    vmfs_stats(r.v, &s0);
    for (unsigned round = 0; round < 15; round++) {
        for (unsigned i = 0; i < 4; i++) {
            assert_int_equal(gr_pwrite(ch, buf, 4096, (round * 4 + i) * 16 * VMFS_BLOCK, 0), 0);
            gr_fiber_sleep_ms(9);
        }
        assert_int_equal(gr_flush(ch), 0);
    }
    vmfs_stats(r.v, &s1);
    assert_in_range(s1.device_flushes - s0.device_flushes, 15, 16);

    /* what hangs on leaves of splits is within the limit, too */
    for (uint64_t block = 0; block < WIDE / VMFS_BLOCK; block += 16)
        assert_int_equal(gr_pwrite(ch, buf, 4096, block * VMFS_BLOCK, 0), 0);
    OK(vmfs_checkpoint(r.v, &err));
    vmfs_stats(r.v, &s1);
    assert_int_equal(s1.map_bytes, bytes_of(d->o->live.root.mem)); /* the snapshot's tree is not in memory any more */
    assert_int_equal(r.v->dirty_hanging, 0);
    assert_int_equal(gr_pwrite(ch, buf, 4096, 0, 0), 0);
    r.v->map_limit = 1 << 20;
    r.v->map_loads = 64; /* others came since */
    OK(vmfs_checkpoint(r.v, &err));
    vmfs_stats(r.v, &s1);
    assert_in_range(s1.map_bytes, 1, 1 << 20);
    for (uint64_t block = 0; block < WIDE / VMFS_BLOCK; block += 64)
        assert_int_equal(gr_pread(ch, buf, 4096, block * VMFS_BLOCK), 0);
    OK(vmfs_checkpoint(r.v, &err));
    gr_chan_close(ch);
    vmfs_close(d);
    free(buf);
    rig_close(&r);
    return 0;
}

static void test_flushes_and_memory(void **state)
{
    test_in_fiber(wide_body, NULL);
}

/* ---- a leaf that the newest snapshot shares is in memory once ---- */
#define LEAVES 32u
#define LEAF_BYTES ((uint64_t)VMFS_LEAF_PIECES * VMFS_PIECE)
static void write_each(struct gr_chan *ch, uint64_t at, uint8_t value)
{
    uint8_t *buf = aligned_alloc(4096, 4096);
    memset(buf, value, 4096);
    for (unsigned i = 0; i < LEAVES; i++)
        assert_int_equal(gr_pwrite(ch, buf, 4096, i * LEAF_BYTES + at, 0), 0);
    free(buf);
}

static void read_each(struct gr_bdev *b, uint64_t at, uint8_t value)
{
    struct gr_chan *ch;
    uint8_t *buf = aligned_alloc(4096, 4096);
    assert_int_equal(gr_chan_open(b, gr_fiber_loop(), &ch), 0);
    for (unsigned i = 0; i < LEAVES; i++) {
        assert_int_equal(gr_pread(ch, buf, 4096, i * LEAF_BYTES + at), 0);
        for (unsigned k = 0; k < 4096; k += 4095)
            assert_int_equal(buf[k], value);
    }
    gr_chan_close(ch);
    free(buf);
}

/* Is it in the memory of the snapshot's tree? */
static bool in_memory(struct vmfs_disk *d, size_t snap, unsigned leaf)
{
    bool absent;
    const struct mchild *c = mtree_slot(&d->o->snaps[snap]->tree, 0, (uint64_t)leaf * VMFS_LEAF_PIECES, &absent);
    return c && c->mem;
}

static int sound(struct rig *r)
{
    struct vmfs_check_report rep;
    struct gr_err err = { 0 };
    return vmfs_check(r->v, NULL, NULL, &rep, &err);
}

static int once_body(void *arg)
{
    struct rig r;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    struct gr_bdev *s[3];
    struct vmfs_stats s0, s1;
    rig_open(&r, 256ull << 20);
    OK(vmfs_create(r.v, "d", VMFS_DISK, LEAVES * LEAF_BYTES, VMFS_THIN, &err));
    OK(vmfs_open(r.v, "d", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    write_each(ch, 0, 3);
    OK(vmfs_checkpoint(r.v, &err));

    OK(snap_create(&d, 1, "a", &err));
    OK(snap_open(d, "a", &s[0], &err));
    vmfs_stats(r.v, &s0);
    write_each(ch, 0, 4);
    write_each(ch, 4096, 4);
    vmfs_stats(r.v, &s1);
    assert_in_range(s1.map_bytes - s0.map_bytes, 1, LEAVES * sizeof(struct mnode) / 4);
    assert_false(in_memory(d, 0, 7));
    read_each(s[0], 0, 3);
    read_each(s[0], 4096, 0);
    read_each(&d->bdev, 4096, 4);

    /* not written yet: the snapshot's own is in memory alone */
    OK(snap_create(&d, 1, "b", &err));
    write_each(ch, 0, 5);
    assert_true(in_memory(d, 1, 7));
    OK(snap_open(d, "b", &s[1], &err));
    read_each(s[1], 0, 4);
    OK(vmfs_checkpoint(r.v, &err));

    /* clean, but perhaps not on the device yet */
    OK(snap_create(&d, 1, "c", &err));
    OK(snap_open(d, "c", &s[2], &err));
    r.v->ckpt_writing = true;
    write_each(ch, 0, 6);
    assert_true(in_memory(d, 2, 7));
    r.v->ckpt_writing = false;
    for (unsigned again = 0; again < 2; again++) {
        for (unsigned i = 0; i < 3; i++)
            read_each(s[i], 0, (uint8_t)(3 + i));
        read_each(&d->bdev, 0, 6);
        read_each(&d->bdev, 4096, 4);
        assert_int_equal(sound(&r), 0);
        OK(vmfs_checkpoint(r.v, &err));
    }
    for (unsigned i = 0; i < 3; i++)
        gr_bdev_put(s[i]);
    OK(snap_delete(d, "b", false, &err));
    OK(snap_settle(d, &err));
    read_each(&d->bdev, 0, 6);
    assert_int_equal(sound(&r), 0);
    gr_chan_close(ch);
    vmfs_close(d);
    rig_close(&r);
    return 0;
}

static void test_map_is_in_memory_once(void **state)
{
    test_in_fiber(once_body, NULL);
}

/* ---- neither a checkpoint nor a deleted snapshot holds the loop ---- */
/* What others see of it who have their turn whenever it lets them. */
struct turns {
    struct vmfs *v;
    bool stop, ended;
    size_t dirty, bytes, due, most_dirty, most_bytes, most_due; /* the last time; the most that went between two */
};
static size_t due_now(const struct vmfs *v)
{
    size_t n = 0;
    for (uint32_t i = 0; i < v->dues.n; i++)
        n += v->dues.due[i].n != NULL;
    return n;
}


static void turns_work(void *arg)
{
    struct turns *t = arg;
    while (!t->stop) {
        if (t->v->ckpt_cleaning && t->dirty > t->v->dirty_nodes)
            t->most_dirty = GR_MAX(t->most_dirty, t->dirty - t->v->dirty_nodes);
        if (t->bytes > t->v->map_bytes)
            t->most_bytes = GR_MAX(t->most_bytes, t->bytes - t->v->map_bytes);
        if (t->due > due_now(t->v))
            t->most_due = GR_MAX(t->most_due, t->due - due_now(t->v));
        t->due = due_now(t->v);
        t->dirty = t->v->dirty_nodes;
        t->bytes = t->v->map_bytes;
        gr_fiber_yield();
    }
    t->ended = true;
}

static void turns_begin(struct turns *t, struct vmfs *v)
{
    *t = (struct turns){ .v = v };
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), turns_work, t), 0);
}

static void turns_end(struct turns *t)
{
    for (t->stop = true; !t->ended;)
        gr_fiber_yield();
    assert_in_range(t->most_bytes, 1, 17 * (sizeof(struct mnode) + 16 * sizeof(struct mpieces))); /* memory is freed a few leaves at a time */
}

static int turns_body(void *arg)
{
    struct rig r;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    struct turns t;
    rig_open(&r, 4ull << 30); /* with a journal that has room for all of it */
    OK(vmfs_create(r.v, "d", VMFS_DISK, 8 * LEAVES * LEAF_BYTES, VMFS_THIN, &err));
    OK(vmfs_open(r.v, "d", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    for (unsigned i = 0; i < 8; i++)
        write_each(ch, i * LEAVES * LEAF_BYTES, 3);
    OK(snap_create(&d, 1, "s", &err));
    for (unsigned i = 0; i < 8; i++)
        write_each(ch, i * LEAVES * LEAF_BYTES, 4);
    assert_in_range(r.v->dirty_nodes, 16 * LEAVES, SIZE_MAX);
    turns_begin(&t, r.v);
    OK(vmfs_checkpoint(r.v, &err));
    turns_end(&t);
    assert_in_range(t.most_dirty, 1, 4); /* leaves are encoded a few at a time, too: ahead of the capture */
    assert_in_range(t.most_due, 1, 4);   /* and behind it */
    turns_begin(&t, r.v);
    OK(snap_delete(d, "s", false, &err));
    OK(snap_settle(d, &err));
    while (r.v->background) /* what the walk had read of the snapshot is thrown away */
        gr_fiber_yield();
    turns_end(&t);
    gr_chan_close(ch);
    vmfs_close(d);
    rig_close(&r);
    return 0;
}

static void test_checkpoint_lets_others_go_on(void **state)
{
    test_in_fiber(turns_body, NULL);
}

/* ---- full ---- */
#define DISK (32ull << 20)
#define SNAPS_MAX 4000u
/* Snapshots with scattered writes between them, until one is refused: how many there are. */
static unsigned fill_up(struct rig *r, struct vmfs_disk *d, struct gr_chan *ch, uint64_t *rng, uint8_t *buf)
{
    char name[16];
    for (unsigned n = 0; n < SNAPS_MAX; n++) {
        struct gr_err err = { 0 };
        snprintf(name, sizeof name, "s%u", n);
        int rc = snap_create(&d, 1, name, &err);
        if (rc == -GR_ENOSPACE)
            return n;
        if (rc < 0)
            fail_msg("snapshot %u: %s", n, gr_err_text(&err, rc));
        for (unsigned i = 0; i < 100; i++) {
            memset(buf, (int)(n + i), 4096);
            rc = gr_pwrite(ch, buf, 4096, test_rand(rng) % (DISK / 4096) * 4096, 0);
            if (rc == -GR_ENOSPACE)
                return n + 1;
            if (rc < 0)
                fail_msg("write %u after snapshot %u: %s; the volume was given up: %s", i, n, gr_code_text(rc), r->v->fence_reason);
        }
    }
    fail_msg("%u snapshots, and it is not full", SNAPS_MAX);
    return 0;
}

static int full_body(void *arg)
{
    struct rig r;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    uint64_t rng = test_seed();
    size_t len = 1 << 20;
    uint8_t *buf = aligned_alloc(4096, len);
    char name[16];
    memset(buf, 1, len);
    rig_open(&r, 96ull << 20);
    OK(vmfs_create(r.v, "disk", VMFS_DISK, DISK, VMFS_THIN, &err));
    OK(vmfs_open(r.v, "disk", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    for (uint64_t off = 0; off < DISK; off += len)
        assert_int_equal(gr_pwrite(ch, buf, len, off, 0), 0);
    unsigned n = fill_up(&r, d, ch, &rng, buf);
    assert_false(r.v->fenced);
    struct vmfs_info i;
    vmfs_info(r.v, &i);
    printf("# full after %u snapshots, with %llu KiB free in splinters\n", n, (unsigned long long)(i.free >> 10));
    OK(vmfs_checkpoint(r.v, &err));
    assert_int_equal(sound(&r), 0);
    assert_int_equal(gr_pread(ch, buf, len, 0), 0);
    for (unsigned k = 0; k < n; k++) { /* a snapshot that was refused is not there */
        struct gr_err err = { 0 };
        snprintf(name, sizeof name, "s%u", k);
        int rc = snap_delete(d, name, false, &err);
        if (rc < 0 && rc != -ENOENT)
            fail_msg("delete of %s: %s", name, gr_err_text(&err, rc));
    }
    OK(snap_settle(d, &err));
    for (unsigned k = 0; k < 1000; k++)
        assert_int_equal(gr_pwrite(ch, buf, 4096, test_rand(&rng) % (DISK / 4096) * 4096, 0), 0);
    assert_int_equal(sound(&r), 0);
    gr_chan_close(ch);
    vmfs_close(d);
    free(buf);
    rig_close(&r);
    return 0;
}

static void test_full_is_refused_not_given_up(void **state)
{
    test_in_fiber(full_body, NULL);
}

/* ---- many deleted together ---- */
#define TOGETHER 40u
static int together_body(void *arg)
{
    struct rig r;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    struct gr_bdev *held[TOGETHER];
    struct vmfs_stats s0, s1;
    char name[16];
    uint8_t *buf = aligned_alloc(4096, 4096);
    memset(buf, 3, 4096);
    rig_open(&r, 96ull << 20);
    OK(vmfs_create(r.v, "d", VMFS_DISK, 8 << 20, VMFS_THIN, &err));
    OK(vmfs_open(r.v, "d", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    for (unsigned i = 0; i < TOGETHER; i++) {
        assert_int_equal(gr_pwrite(ch, buf, 4096, i * 4096, 0), 0);
        snprintf(name, sizeof name, "s%u", i);
        OK(snap_create(&d, 1, name, &err));
        OK(snap_open(d, name, &held[i], &err)); /* it is not given back before all are deleted */
    }
    for (unsigned i = 0; i < TOGETHER; i++) {
        snprintf(name, sizeof name, "s%u", i);
        OK(snap_delete(d, name, false, &err));
    }
    OK(vmfs_checkpoint(r.v, &err));
    assert_int_equal(gr_pwrite(ch, buf, 4096, 0, 0), 0); /* there is always something that a checkpoint could write */
    vmfs_stats(r.v, &s0);
    for (unsigned i = 0; i < TOGETHER; i++)
        gr_bdev_put(held[i]);
    OK(snap_settle(d, &err));
    vmfs_stats(r.v, &s1);
    assert_in_range(s1.checkpoints - s0.checkpoints, 1, 4);
    gr_chan_close(ch);
    vmfs_close(d);
    rig_close(&r);
    free(buf);
    return 0;
}
static void together(void **state)
{
    test_in_fiber(together_body, NULL);
}

/* ---- many deleted one after another, while the guest is at work ---- */
#define PACED 30u
#define PACED_NS 1000000ull /* of a write or flush of the device: a checkpoint has eight of them or more, one behind the other */
struct guest {
    struct gr_chan *ch;
    bool stop, ended;
};
static void guest_work(void *arg)
{
    struct guest *g = arg;
    uint8_t *buf = aligned_alloc(4096, 4096);
    memset(buf, 9, 4096);
    for (unsigned n = 0; !g->stop; n++) {
        assert_int_equal(gr_pwrite(g->ch, buf, 4096, n % 500 * 4096, 0), 0);
        gr_fiber_sleep_ms(2);
    }
    free(buf);
    g->ended = true;
}

static int paced_body(void *arg)
{
    struct rig r;
    struct vmfs_disk *d;
    struct guest g = { 0 };
    struct vmfs_stats s0, s1;
    char name[16];
    rig_open_slow(&r, 1ull << 30, PACED_NS);
    OK(vmfs_create(r.v, "d", VMFS_DISK, 8 << 20, VMFS_THIN, &err));
    OK(vmfs_open(r.v, "d", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &g.ch), 0);
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), guest_work, &g), 0);
    for (unsigned i = 0; i < PACED; i++) {
        snprintf(name, sizeof name, "s%u", i);
        OK(snap_create(&d, 1, name, &err));
        gr_fiber_sleep_ms(5);
    }
    uint64_t began = gr_loop_now_ns(gr_fiber_loop());
    vmfs_stats(r.v, &s0);
    for (unsigned i = 0; i < PACED; i++) {
        snprintf(name, sizeof name, "s%u", i);
        OK(snap_delete(d, name, false, &err));
        gr_fiber_sleep_ms(10);
    }
    vmfs_stats(r.v, &s1);
    uint64_t took = gr_loop_now_ns(gr_fiber_loop()) - began, n = s1.checkpoints - s0.checkpoints;
    print_message("%llu checkpoints in %llu ms\n", (unsigned long long)n, (unsigned long long)(took / 1000000));
    assert_in_range(n, 1, 2 + took / (5 * 8 * PACED_NS)); /* they are a tenth of the time at most, not all of it */
    OK(snap_settle(d, &err));
    g.stop = true;
    while (!g.ended)
        gr_fiber_sleep_ms(1);
    gr_chan_close(g.ch);
    vmfs_close(d);
    rig_close(&r);
    return 0;
}

static void test_deletes_leave_the_guest_its_time(void **state)
{
    test_in_fiber(paced_body, NULL);
}

TEST_MAIN(TEST(together), TEST(test_deletes_leave_the_guest_its_time), TEST(test_group_is_one_record), TEST(test_flushes_and_memory), TEST(test_map_is_in_memory_once), TEST(test_checkpoint_lets_others_go_on), TEST(test_full_is_refused_not_given_up))
