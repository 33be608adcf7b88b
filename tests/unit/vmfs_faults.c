/* Devices that are full or fail: who gets the error, and what goes on. */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "snapshot/snapshot.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct site {
    struct gr_loop *loop;
    struct gr_mem *mem;
    struct gr_bdev *dev, *fault;
    struct vmfs *v;
    struct vmfs_disk *d[2];
    struct gr_chan *ch[2];
    uint8_t *buf;
};

static void say(void *arg, const char *text)
{
    (void)arg;
    print_message("check: %s\n", text);
}

static void attach(struct site *s)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "faults" };
    OK(vmfs_join(s->loop, &s->fault, 1, &o, &s->v, &err));
    for (unsigned i = 0; i < 2; i++) {
        OK(vmfs_open(s->v, i ? "b" : "a", &s->d[i], NULL, &err));
        assert_int_equal(gr_chan_open(vmfs_bdev(s->d[i]), s->loop, &s->ch[i]), 0);
    }
}

static void detach(struct site *s)
{
    for (unsigned i = 0; i < 2; i++) {
        gr_chan_close(s->ch[i]);
        vmfs_close(s->d[i]);
    }
}

static void make(struct site *s, uint64_t size)
{
    struct vmfs_format_opts f = { .name = "ds1", .journal_units = 128 };
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "faults" };
    s->loop = gr_fiber_loop();
    s->mem = gr_mem_new(size);
    s->buf = aligned_alloc(4096, 1 << 20);
    assert_int_equal(gr_bdev_mem_open(s->loop, s->mem, &s->dev), 0);
    assert_int_equal(gr_bdev_fault_open(s->loop, s->dev, &s->fault), 0);
    OK(vmfs_format(s->loop, &s->fault, 1, &f, &err));
    OK(vmfs_join(s->loop, &s->fault, 1, &o, &s->v, &err));
    OK(vmfs_create(s->v, "a", VMFS_DISK, 1 << 30, VMFS_THIN, &err));
    OK(vmfs_create(s->v, "b", VMFS_DISK, 1 << 30, VMFS_THIN, &err));
    OK(vmfs_leave(s->v, &err));
    attach(s);
}

static void unmake(struct site *s)
{
    gr_bdev_put(s->fault);
    gr_bdev_put(s->dev);
    gr_mem_free(s->mem);
    free(s->buf);
}

static int put(struct site *s, unsigned disk, uint64_t off, size_t len, int byte)
{
    memset(s->buf, byte, len);
    return gr_pwrite(s->ch[disk], s->buf, len, off, 0);
}
static void is(struct site *s, unsigned disk, uint64_t off, size_t len, int byte)
{
    memset(s->buf, ~byte, len);
    assert_int_equal(gr_pread(s->ch[disk], s->buf, len, off), 0);
    for (size_t i = 0; i < len; i++)
        if (s->buf[i] != (uint8_t)byte)
            fail_msg("disk %u byte %llu: %02x, wanted %02x", disk, (unsigned long long)(off + i), s->buf[i], (uint8_t)byte);
}

static void clean(struct site *s)
{
    struct vmfs_check_report rep;
    OK(vmfs_check(s->v, say, NULL, &rep, &err));
}

/* The end of most: nothing of it is broken, and it can be left. */
static void end_clean(struct site *s)
{
    clean(s);
    detach(s);
    OK(vmfs_leave(s->v, &err));
    unmake(s);
}

/* ---- full ---- */
static uint64_t fill_up(struct site *s, unsigned disk, uint64_t from)
{
    for (uint64_t off = from;; off += 65536) {
        int r = put(s, disk, off, 65536, 7);
        if (r == -GR_ENOSPACE)
            return off;
        if (r < 0)
            fail_msg("filling at %llu: %s", (unsigned long long)off, gr_code_text(r));
    }
}

static int full_fn(void *arg)
{
    struct site s = { 0 };
    struct vmfs_info info;
    (void)arg;
    make(&s, 64 << 20);
    assert_int_equal(put(&s, 1, 0, 1 << 20, 5), 0);
    assert_int_equal(put(&s, 0, 0, 1 << 20, 6), 0);
    assert_int_equal(gr_flush(s.ch[0]), 0);
    uint64_t end = fill_up(&s, 0, 1 << 20);
    assert_true(end > 16 << 20);
    assert_int_equal(gr_flush(s.ch[0]), 0);
    gr_fiber_sleep_ms(60); /* sealed: what is private is overwritten in place */
    for (unsigned round = 0; round < 20; round++) {
        assert_int_equal(put(&s, 0, (round * 65536) % (1 << 20), 65536, 8), 0);
        assert_int_equal(put(&s, 1, (round * 65536) % (1 << 20), 65536, 9), 0);
        assert_int_equal(gr_flush(s.ch[0]), 0);
    }
    assert_int_equal(put(&s, 1, 600 << 20, 65536, 1), -GR_ENOSPACE);
    is(&s, 0, 0, 1 << 20, 8);
    is(&s, 1, 0, 1 << 20, 9);
    vmfs_info(s.v, &info);
    assert_false(info.fenced);
    clean(&s);
    assert_int_equal(gr_unmap(s.ch[0], 4 << 20, 8 << 20, 0), 0); /* giving back goes on, and helps */
    assert_int_equal(gr_flush(s.ch[0]), 0);
    OK(vmfs_checkpoint(s.v, &err));
    assert_int_equal(put(&s, 1, 600 << 20, 1 << 20, 1), 0);
    is(&s, 1, 600 << 20, 1 << 20, 1);
    is(&s, 0, 4 << 20, 1 << 20, 0);
    clean(&s);
    detach(&s);
    OK(vmfs_remove(s.v, "a", &err)); /* deleting needs no space that is not there */
    OK(vmfs_leave(s.v, &err));
    unmake(&s);
    return 0;
}

/* Full while a snapshot pins everything: overwrites need new blocks and fail, deleting the snapshot helps. */
static int full_snapshot_fn(void *arg)
{
    struct site s = { 0 };
    (void)arg;
    make(&s, 64 << 20);
    assert_int_equal(put(&s, 0, 0, 1 << 20, 6), 0);
    OK(snap_create(&s.d[0], 1, "s", &err));
    uint64_t end = fill_up(&s, 0, 1 << 20);
    assert_true(end > 16 << 20);
    assert_int_equal(put(&s, 0, 0, 1 << 20, 8), -GR_ENOSPACE);
    is(&s, 0, 65536 * 15, 65536, 6);
    assert_int_equal(gr_unmap(s.ch[0], 2 << 20, 8 << 20, 0), 0);
    OK(snap_delete(s.d[0], "s", false, &err));
    OK(snap_settle(s.d[0], &err));
    assert_int_equal(put(&s, 0, 0, 1 << 20, 8), 0);
    is(&s, 0, 0, 1 << 20, 8);
    end_clean(&s);
    return 0;
}

/* ---- failing ---- */
static int flush_fn(void *arg)
{
    struct site s = { 0 };
    struct vmfs_info info;
    struct gr_fault_rule rule = { .op = GR_OP_FLUSH, .count = 1, .code = -EIO };
    (void)arg;
    make(&s, 128 << 20);
    assert_int_equal(put(&s, 0, 0, 65536, 3), 0);
    assert_int_equal(gr_flush(s.ch[0]), 0);
    assert_int_equal(put(&s, 0, 65536, 65536, 4), 0);
    gr_bdev_fault_add(s.fault, &rule);
    assert_true(gr_flush(s.ch[0]) < 0);
    gr_bdev_fault_clear(s.fault);
    assert_int_equal(gr_flush(s.ch[0]), -GR_EFENCED); /* final, though the device would work again */
    assert_int_equal(gr_flush(s.ch[1]), -GR_EFENCED);
    assert_int_equal(put(&s, 0, 0, 4096, 5), -GR_EFENCED);
    assert_int_equal(put(&s, 1, 0, 4096, 5), -GR_EFENCED);
    assert_int_equal(snap_create(&s.d[0], 1, "s", NULL), -GR_EFENCED);
    vmfs_info(s.v, &info);
    assert_true(info.fenced && strstr(info.fence_reason, "flush"));
    detach(&s);
    vmfs_abandon(s.v);
    attach(&s);
    is(&s, 0, 0, 65536, 3);
    end_clean(&s);
    return 0;
}

static int data_error_fn(void *arg)
{
    struct site s = { 0 };
    struct vmfs_info info;
    struct gr_fault_rule rd = { .op = GR_OP_READ, .count = 1, .code = -EIO }, wr = { .op = GR_OP_WRITE, .count = 1, .code = -EIO };
    (void)arg;
    make(&s, 128 << 20);
    assert_int_equal(put(&s, 0, 0, 65536, 3), 0);
    assert_int_equal(put(&s, 1, 0, 65536, 4), 0);
    assert_int_equal(gr_flush(s.ch[0]), 0);
    gr_bdev_fault_add(s.fault, &rd);
    assert_int_equal(gr_pread(s.ch[0], s.buf, 4096, 0), -EIO);
    is(&s, 0, 0, 65536, 3);
    is(&s, 1, 0, 65536, 4);
    gr_bdev_fault_clear(s.fault);
    gr_bdev_fault_add(s.fault, &wr);
    assert_int_equal(put(&s, 0, 1 << 20, 65536, 5), -EIO);
    gr_bdev_fault_clear(s.fault);
    is(&s, 0, 1 << 20, 65536, 0);
    assert_int_equal(put(&s, 0, 1 << 20, 65536, 6), 0);
    assert_int_equal(gr_flush(s.ch[0]), 0);
    vmfs_info(s.v, &info);
    assert_false(info.fenced);
    end_clean(&s);
    return 0;
}

/* Writes fail from the n-th on, for every n of a small history: nothing that was flushed is lost, the rest is old or new. */
static int sweep_fn(void *arg)
{
    (void)arg;
    for (unsigned n = 0; n < 120; n += 3) {
        struct site s = { 0 };
        struct gr_fault_rule rule = { .op = GR_OP_WRITE, .after = n, .code = -EIO };
        int flushed = 1, r = 0, last = 1;
        make(&s, 64 << 20);
        assert_int_equal(put(&s, 0, 0, 65536, 1), 0);
        assert_int_equal(gr_flush(s.ch[0]), 0);
        gr_bdev_fault_add(s.fault, &rule);
        for (int round = 2; round < 30 && r == 0; round++) {
            last = round;
            r = put(&s, 0, 0, 65536, round);
            if (r == 0 && (r = gr_flush(s.ch[0])) == 0)
                flushed = round;
            if (r == 0 && round % 7 == 0)
                r = snap_create(&s.d[0], 1, round % 2 ? "odd" : "even", NULL) == -EEXIST ? 0 : r;
            if (r == 0 && round % 5 == 0)
                r = vmfs_checkpoint(s.v, NULL);
        }
        gr_bdev_fault_clear(s.fault);
        detach(&s);
        vmfs_abandon(s.v);
        attach(&s);
        assert_int_equal(gr_pread(s.ch[0], s.buf, 65536, 0), 0);
        for (unsigned i = 0; i < 65536; i++)
            if (s.buf[i] != (uint8_t)flushed && s.buf[i] != (uint8_t)last)
                fail_msg("writes fail from %u on: byte %u is %u, flushed was %d, last written %d", n, i, s.buf[i], flushed, last);
        clean(&s);
        detach(&s);
        OK(vmfs_leave(s.v, &err));
        unmake(&s);
    }
    return 0;
}

/* ---- given up while something waits ---- */
struct waiter {
    struct site *s;
    bool grows, done;
    int r;
};

static void wait_fiber(void *arg)
{
    struct waiter *w = arg;
    w->r = w->grows ? vmfs_resize(w->s->d[0], 70 << 20, false, NULL) : put(w->s, 0, 0, 65536, 9);
    w->done = true;
}

/* Units taken behind the end of the volume on this host, by what waited for the map then. */
static uint64_t given_up(bool grows, bool in_place)
{
    struct site s = { 0 };
    struct gr_bdev *dev, *record;
    struct waiter w = { &s, grows, false, 0 };
    make(&s, 128 << 20);
    detach(&s);
    OK(vmfs_remove(s.v, "a", &err));
    OK(vmfs_create(s.v, "a", VMFS_DISK, (30 << 20) + 65536, grows ? VMFS_THICK : VMFS_THIN, &err));
    OK(vmfs_leave(s.v, &err));
    attach(&s);
    if (in_place)
        assert_int_equal(put(&s, 0, 0, 65536, 8), 0);
    else
        assert_int_equal(put(&s, 0, 1 << 20, 65536, 8), 0);
    detach(&s);
    OK(vmfs_leave(s.v, &err));
    gr_bdev_put(s.fault);
    dev = s.dev; /* slow, so that it can be given up under who waits, and what it is told is known */
    assert_int_equal(gr_bdev_record_open(s.loop, dev, &record), 0);
    assert_int_equal(gr_bdev_delay_open(s.loop, record, 5000000, 0, 0, &s.fault), 0);
    attach(&s);
    assert_int_equal(put(&s, 1, 0, 65536, 7), 0);
    while (grows && space_lease_any(s.v, NULL) == 0) /* room for all of it */
        ;
    const struct gr_record *rec = gr_bdev_record(record);
    assert_int_equal(gr_fiber_start(s.loop, wait_fiber, &w), 0);
    gr_fiber_yield();
    assert_false(w.done);
    size_t before = gr_record_count(rec);
    uint64_t here = space_free_here(s.v), writes = 0;
    vmfs_fence(s.v, "the test says so");
    while (!w.done)
        gr_fiber_sleep_ms(1);
    assert_int_equal(w.r, -GR_EFENCED);
    for (size_t i = before; i < gr_record_count(rec); i++)
        writes += gr_record_at(rec, i)->op == GR_OP_WRITE;
    assert_int_equal(writes, 0); /* it may be another host's by now */
    uint64_t taken = here - space_free_here(s.v);
    detach(&s);
    vmfs_abandon(s.v);
    gr_bdev_put(s.fault);
    gr_bdev_put(record);
    assert_int_equal(gr_bdev_fault_open(s.loop, s.dev, &s.fault), 0);
    attach(&s);
    clean(&s);
    detach(&s);
    OK(vmfs_leave(s.v, &err));
    unmake(&s);
    return taken;
}

/* Whoever waited for the map writes nothing when the volume has been given up meanwhile, nor goes on in memory for all of a large disk. */
static int given_up_fn(void *arg)
{
    (void)arg;
    given_up(false, false);
    given_up(false, true);
    uint64_t taken = given_up(true, false);
    print_message("%llu units were taken behind the end\n", (unsigned long long)taken);
    assert_true(taken <= VMFS_BLOCK_PIECES);
    return 0;
}

/* ---- giving regions back ---- */
/* Regions that are free, all of which is home. */
static void have_regions(struct site *s)
{
    for (uint64_t off = 0; off < 64 << 20; off += 1 << 20)
        assert_int_equal(put(s, 0, off, 1 << 20, 3), 0);
    assert_int_equal(gr_unmap(s->ch[0], 1 << 20, 63 << 20, 0), 0);
    assert_int_equal(gr_flush(s->ch[0]), 0);
    s->v->sp.tending = true; /* none goes unasked */
    for (unsigned i = 0; i < 3; i++) {
        OK(vmfs_checkpoint(s->v, &err));
        gr_fiber_sleep_ms(30);
    }
}

/* What its header says cannot be read, or there is no memory for it: nothing has been written, so the region stays, and so does the volume. */
static int give_fn(void *arg)
{
    struct site s = { 0 };
    (void)arg;
    make(&s, 256 << 20);
    have_regions(&s);
    const struct vtable *t = &s.v->sb.regions;
    for (int copy = 0; copy < 2; copy++) {
        struct gr_fault_rule rule = { .op = GR_OP_READ, .off = vmfs_addr_unit(vhome_addr(t, 0, 0, copy)) * VMFS_UNIT, .len = (uint64_t)t->entries * t->stride * VMFS_UNIT, .code = -EIO };
        assert_int_equal(gr_bdev_fault_add(s.fault, &rule), 0);
    }
    assert_int_equal(vmfs_regions_recall(s.v, NULL), -EIO); /* it looks at those of others, too */
    gr_bdev_fault_clear(s.fault);
    assert_false(s.v->fenced);
    assert_int_equal(s.v->stats.regions_given_back, 0);
    for (int n = 0, r = -ENOMEM; r < 0 || n < 40; n++) { /* the n-th that asks for memory gets none */
        gr_alloc_fail_after(n, 0);
        r = vmfs_regions_recall(s.v, NULL);
        gr_alloc_fail_after(-1, 0);
        if (s.v->fenced)
            fail_msg("without memory at the %dth place: %s", n, s.v->fence_reason);
    }
    assert_true(s.v->stats.regions_given_back > 0);
    is(&s, 0, 0, 1 << 20, 3);
    assert_int_equal(put(&s, 0, 1 << 20, 1 << 20, 4), 0);
    clean(&s);
    s.v->sp.tending = false;
    detach(&s);
    OK(vmfs_leave(s.v, &err));
    unmake(&s);
    return 0;
}

/* ---- one region that cannot be read ---- */
/* The header of the region that is leased next; of each copy. */
static uint32_t hide_next(struct site *s)
{
    struct vmfs *v = s->v;
    uint32_t n = space_n_regions(v), start = (uint32_t)((uint64_t)v->slot * n / v->sb.slots.entries), i = start;
    while (v->sp.by_index[i])
        i = (i + 1) % n;
    uint32_t at = i;
    const struct vtable *t = space_table(v, &at);
    for (int copy = 0; copy < 2; copy++) {
        struct gr_fault_rule rule = { .op = GR_OP_READ, .off = vmfs_addr_unit(vhome_addr(t, at, 0, copy)) * VMFS_UNIT, .len = VMFS_UNIT, .code = -EIO };
        assert_int_equal(gr_bdev_fault_add(s->fault, &rule), 0);
    }
    return i;
}

/* Nobody who writes is told of it while there are others, and when it can be read again it is used. */
static int unread_fn(void *arg)
{
    struct site s = { 0 };
    (void)arg;
    make(&s, 64 << 20);
    uint32_t hidden = hide_next(&s);
    uint64_t end = fill_up(&s, 0, 0);
    assert_null(s.v->sp.by_index[hidden]);
    gr_bdev_fault_clear(s.fault);
    gr_fiber_sleep_ms(1100); /* who was told that nothing is left is told so for a second */
    assert_true(fill_up(&s, 0, end) - end > 65536);
    assert_non_null(s.v->sp.by_index[hidden]);
    end_clean(&s);
    return 0;
}

/* ---- no memory ---- */
/* Units that are taken, and neither used, nor kept ready, nor about to be free. */
static uint64_t astray(const struct vmfs *v)
{
    return space_unsettled(v, 0) - v->sp.pool_units - v->sp.frag_left - v->sp.discard.units;
}

/* New blocks between such as stay where they are: more parts than a plan has of its own. */
static int plan_fn(void *arg)
{
    struct site s = { 0 };
    unsigned failed = 0;
    (void)arg;
    make(&s, 64 << 20);
    for (unsigned k = 1; k < 10; k += 2)
        assert_int_equal(put(&s, 0, k * VMFS_BLOCK, VMFS_BLOCK, 1), 0);
    assert_int_equal(journal_seal(s.v), 0);
    uint64_t before = astray(s.v);
    bool reached = true;
    for (int n = 0; reached && n < 200; n++) {
        gr_alloc_fail_after(n, 0);
        int r = put(&s, 0, 0, 10 * VMFS_BLOCK, 2);
        reached = test_alloc_failed(n);
        failed += r < 0;
        assert_true(r == 0 || r == -ENOMEM);
        if (s.v->fenced) { /* half of its records were made */
            detach(&s);
            vmfs_abandon(s.v);
            attach(&s);
            before = astray(s.v);
        }
        if (astray(s.v) != before)
            fail_msg("without memory at the %dth place: %d, %llu units are nobody's", n, r, (unsigned long long)(astray(s.v) - before));
        for (unsigned k = 0; r == 0 && k < 10; k += 2)
            assert_int_equal(gr_unmap(s.ch[0], k * VMFS_BLOCK, VMFS_BLOCK, 0), 0);
        assert_int_equal(journal_seal(s.v), 0);
    }
    print_message("%u writes failed\n", failed);
    assert_true(failed > 2 && !reached);
    end_clean(&s);
    return 0;
}

/* ---- a disk that is cut ---- */
#define CUT_SIZE (1ull << 20)
static void new_disk(struct site *s, enum vmfs_provision provision)
{
    gr_chan_close(s->ch[0]);
    vmfs_close(s->d[0]);
    OK(vmfs_remove(s->v, "a", &err));
    OK(vmfs_create(s->v, "a", VMFS_DISK, CUT_SIZE, provision, &err));
    OK(vmfs_open(s->v, "a", &s->d[0], NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(s->d[0]), s->loop, &s->ch[0]), 0);
    assert_int_equal(put(s, 0, 0, CUT_SIZE, 5), 0);
    OK(vmfs_checkpoint(s->v, &err));
}

/* All of a thick disk has its place, whatever became of a cut. */
static void has_all(struct site *s)
{
    assert_int_equal(s->d[0]->o->ino.size, CUT_SIZE);
    assert_int_equal(s->d[0]->o->ino.used_units, CUT_SIZE / VMFS_PIECE);
}

static int cut_fn(void *arg)
{
    struct site s = { 0 };
    struct gr_fault_rule rd = { .op = GR_OP_READ, .count = 1, .code = -EIO };
    (void)arg;
    make(&s, 64 << 20);
    new_disk(&s, VMFS_THICK);
    assert_int_equal(gr_bdev_fault_add(s.fault, &rd), 0);
    FAILS(-EIO, "cannot be cut", vmfs_resize(s.d[0], 512 << 10 | 512, true, &err)); /* its last piece cannot be read: nothing has become of the rest */
    gr_bdev_fault_clear(s.fault);
    is(&s, 0, 0, CUT_SIZE, 5);
    has_all(&s);
    OK(vmfs_resize(s.d[0], 68 << 10 | 512, true, &err)); /* in the midst of a block, of a piece */
    OK(vmfs_resize(s.d[0], CUT_SIZE, false, &err));
    has_all(&s);
    is(&s, 0, 0, 68 << 10 | 512, 5);
    is(&s, 0, 68 << 10 | 512, CUT_SIZE - (68 << 10 | 512), 0);
    bool reached = true;
    unsigned failed = 0;
    for (int n = 0; reached && n < 200; n++) { /* the n-th that asks for memory gets none */
        assert_int_equal(put(&s, 0, 0, CUT_SIZE, 6), 0);
        assert_int_equal(gr_flush(s.ch[0]), 0);
        gr_alloc_fail_after(n, 0);
        int r = vmfs_resize(s.d[0], 68 << 10 | 512, true, NULL);
        reached = test_alloc_failed(n);
        if (s.v->fenced) { /* half a record cannot be taken back */
            assert_true(r < 0);
            detach(&s);
            vmfs_abandon(s.v);
            attach(&s);
            OK(vmfs_resize(s.d[0], 68 << 10 | 512, true, &err)); /* as when it is killed half-way: the next one goes on */
        }
        failed += r < 0;
        if (s.d[0]->o->ino.size != CUT_SIZE)
            OK(vmfs_resize(s.d[0], CUT_SIZE, false, &err));
        else
            assert_true(r < 0);
        has_all(&s);
        is(&s, 0, 0, 68 << 10, 6);
    }
    print_message("%u cuts failed\n", failed);
    assert_true(failed > 2 && !reached);
    end_clean(&s);
    return 0;
}

#define LONG_SIZE (24ull << 20)
/* Its map cannot be read half-way: what was given back before is reserved again. */
static int half_cut_fn(void *arg)
{
    struct site s = { 0 };
    struct vmfs_disk *d;
    bool absent;
    (void)arg;
    make(&s, 128 << 20);
    OK(vmfs_create(s.v, "long", VMFS_DISK, LONG_SIZE, VMFS_THICK, &err));
    detach(&s);
    OK(vmfs_leave(s.v, &err));
    attach(&s);
    OK(vmfs_open(s.v, "long", &d, NULL, &err));
    OK(mtree_load_root(d->o, &d->o->live, &err));
    const struct mchild *c = mtree_slot(&d->o->live, 0, LONG_SIZE / VMFS_PIECE - 1, &absent);
    assert_true(c && !c->mem);
    struct gr_fault_rule rule = { .op = GR_OP_READ, .off = vmfs_addr_unit(c->ptr.addr) * VMFS_UNIT, .len = VMFS_UNIT, .code = -EIO };
    assert_int_equal(gr_bdev_fault_add(s.fault, &rule), 0);
    FAILS(-EIO, "may have become zeros", vmfs_resize(d, 68 << 10, true, &err));
    gr_bdev_fault_clear(s.fault);
    assert_int_equal(d->o->ino.size, LONG_SIZE);
    assert_int_equal(d->o->ino.used_units, LONG_SIZE / VMFS_PIECE);
    OK(vmfs_resize(d, 68 << 10, true, &err));
    assert_int_equal(d->o->ino.used_units, 17);
    vmfs_close(d);
    end_clean(&s);
    return 0;
}

/* ---- a whole file that cannot be written ---- */
static int count_names(void *arg, const char *name, const struct vmfs_stat *st)
{
    (void)name;
    (void)st;
    ++*(unsigned *)arg;
    return 0;
}

/* No name is left behind but those there were. */
static int file_fn(void *arg)
{
    struct site s = { 0 };
    bool reached = true;
    unsigned failed = 0, before = 3;
    static const uint8_t bytes[9000] = { 1 };
    (void)arg;
    make(&s, 64 << 20);
    OK(vmfs_file_write(s.v, "note", NULL, bytes, sizeof bytes, &err));
    for (int n = 0; reached && n < 2000; n++) {
        gr_alloc_fail_after(n, 0);
        int r = vmfs_file_write(s.v, "note", NULL, bytes, sizeof bytes, NULL);
        reached = test_alloc_failed(n);
        failed += r < 0;
        if (s.v->fenced) {
            detach(&s);
            vmfs_abandon(s.v);
            attach(&s);
            before = 0; /* as when it is killed */
        }
        unsigned names = 0;
        OK(vmfs_readdir(s.v, "", count_names, &names, &err));
        if (before && names != before)
            fail_msg("without memory at the %dth place: %u names", n, names);
        before = names;
    }
    print_message("%u of them failed\n", failed);
    assert_true(failed > 2 && !reached);
    end_clean(&s);
    return 0;
}

static void full(void **state) { (void)state; test_in_fiber(full_fn, NULL); }
static void full_with_snapshot(void **state) { (void)state; test_in_fiber(full_snapshot_fn, NULL); }
static void failed_flush(void **state) { (void)state; test_in_fiber(flush_fn, NULL); }
static void failed_data(void **state) { (void)state; test_in_fiber(data_error_fn, NULL); }
static void given_up_meanwhile(void **state) { (void)state; test_in_fiber(given_up_fn, NULL); }
static void failed_giving(void **state) { (void)state; test_in_fiber(give_fn, NULL); }
static void unread_region(void **state) { (void)state; test_in_fiber(unread_fn, NULL); }
static void no_memory_for_plan(void **state) { (void)state; test_in_fiber(plan_fn, NULL); }
static void failed_cut(void **state) { (void)state; test_in_fiber(cut_fn, NULL); }
static void half_cut(void **state) { (void)state; test_in_fiber(half_cut_fn, NULL); }
static void failed_file(void **state) { (void)state; test_in_fiber(file_fn, NULL); }
static void failed_writes_swept(void **state) { (void)state; test_in_fiber(sweep_fn, NULL); }

TEST_MAIN(TEST(full), TEST(full_with_snapshot), TEST(failed_flush), TEST(failed_data), TEST(given_up_meanwhile), TEST(failed_giving), TEST(unread_region), TEST(no_memory_for_plan),
          TEST(failed_cut), TEST(half_cut), TEST(failed_file), TEST(failed_writes_swept))
