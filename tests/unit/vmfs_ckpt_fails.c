/* A checkpoint that fails, and is tried again: what it had begun costs nobody what he was told is durable, and nobody waits for ever.
 * timeout: 60 */
#include "tests/lib/test.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "vmfs/internal.h"
#include "vmfs/pool.h"
#include <stdlib.h>

#define LEAVES 200u /* more than the capture writes alone */
#define STEP (VMFS_LEAF_PIECES * (uint64_t)VMFS_PIECE)

struct site {
    struct gr_mem *mem;
    struct gr_bdev *dev, *fault;
    struct vmfs *v;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    uint8_t *buf;
};

static void attach(struct site *s)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "fails", .map_cache_bytes = 1 }; /* nothing stays that may go */
    OK(vmfs_join(gr_fiber_loop(), &s->fault, 1, &o, &s->v, &err));
    OK(vmfs_open(s->v, "a", &s->d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(s->d), gr_fiber_loop(), &s->ch), 0);
}

static void detach(struct site *s)
{
    gr_chan_close(s->ch);
    vmfs_close(s->d);
}

static void make(struct site *s)
{
    struct vmfs_format_opts f = { .name = "ds1", .journal_units = 2048 };
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "fails" };
    *s = (struct site){ .mem = gr_mem_new(512ull << 20), .buf = aligned_alloc(4096, 4096) };
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), s->mem, &s->dev), 0);
    assert_int_equal(gr_bdev_fault_open(gr_fiber_loop(), s->dev, &s->fault), 0);
    OK(vmfs_format(gr_fiber_loop(), &s->fault, 1, &f, &err));
    OK(vmfs_join(gr_fiber_loop(), &s->fault, 1, &o, &s->v, &err));
    OK(vmfs_create(s->v, "a", VMFS_DISK, LEAVES * STEP, VMFS_THIN, &err));
    OK(vmfs_leave(s->v, &err));
    attach(s);
}

static void unmake(struct site *s)
{
    struct vmfs_check_report rep;
    OK(vmfs_check(s->v, NULL, NULL, &rep, &err));
    detach(s);
    OK(vmfs_leave(s->v, &err));
    gr_bdev_put(s->fault);
    gr_bdev_put(s->dev);
    gr_mem_free(s->mem);
    free(s->buf);
}

/* A piece of each leaf. */
static void put_all(struct site *s, int byte)
{
    memset(s->buf, byte, 4096);
    for (unsigned i = 0; i < LEAVES; i++)
        assert_int_equal(gr_pwrite(s->ch, s->buf, 4096, i * STEP, 0), 0);
}

/* So that a checkpoint would like to have another region. */
static void put_some(struct site *s)
{
    memset(s->buf, 9, 4096);
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(gr_pwrite(s->ch, s->buf, 4096, i * STEP, 0), 0);
}

static void are(struct site *s, int byte, int n)
{
    for (unsigned i = 0; i < LEAVES; i++) {
        assert_int_equal(gr_pread(s->ch, s->buf, 4096, i * STEP), 0);
        if (s->buf[0] != byte || s->buf[4095] != byte)
            fail_msg("%d: leaf %u: %u, not %d, which was flushed", n, i, s->buf[0], byte);
    }
}

/* So many units are free here, beside those kept for checkpoints: the next batch of leaves needs another region. */
static void leave_free(struct vmfs *v, uint64_t units)
{
    while (space_free_here(v) < units)
        assert_int_equal(space_lease_any(v, NULL), 0);
    while (space_free_here(v) > units) {
        uint32_t got;
        assert_true(space_take_run(v, (uint32_t)GR_MIN(space_free_here(v) - units, (uint64_t)4096), &got) != 0);
    }
}

/* ---- leaves that are written count as clean; their records are not sealed before the checkpoint is ---- */
/* The @n-th that asks for memory gets none. True: so often it was asked for. */
static bool without_memory(int n, unsigned *again)
{
    struct site s;
    make(&s);
    put_all(&s, 1);
    space_pool_fill(s.v);
    leave_free(s.v, 64 * leaf_units_max(s.v) + 512 + 30);
    gr_timer_cancel(s.v->loop, &s.v->j.timer); /* nothing is sealed in between */
    s.v->map_loads += 64; /* so many others came since: none is kept for being new */
    gr_alloc_fail_after(n, 0);
    int r = vmfs_checkpoint(s.v, NULL);
    bool reached = test_alloc_failed(n), fenced = s.v->fenced;
    if (!fenced) {
        *again += r < 0;
        put_all(&s, 2);
    }
    int f = gr_flush(s.ch);
    assert_int_equal(f, fenced ? -GR_EFENCED : 0);
    detach(&s);
    vmfs_abandon(s.v);
    attach(&s);
    are(&s, fenced ? 1 : 2, n);
    unmake(&s);
    return reached;
}

static int memory_fn(void *arg)
{
    unsigned again = 0;
    int n = 0;
    (void)arg;
    while (without_memory(n, &again))
        n += 5; /* leasing a region asks more often */
    print_message("memory failed at one of %d places, %u checkpoints were to be tried again\n", n, again);
    assert_true(again > 1);
    return 0;
}

/* ---- whose the regions are that it would like to have, nobody can read ---- */
static int unread_fn(void *arg)
{
    struct site s;
    (void)arg;
    make(&s);
    put_all(&s, 1);
    space_pool_fill(s.v);
    leave_free(s.v, 400);
    const struct vtable *t = &s.v->sb.regions;
    for (unsigned copy = 0; copy < 2; copy++) {
        struct gr_fault_rule rule = { .op = GR_OP_READ, .off = vmfs_addr_unit(vhome_addr(t, 0, 0, (int)copy)) * VMFS_UNIT, .len = (uint64_t)t->entries * t->stride * VMFS_UNIT, .code = -EIO };
        assert_int_equal(gr_bdev_fault_add(s.fault, &rule), 0);
    }
    for (unsigned i = 0; i < 5; i++) { /* runs are kept for what is dirty */
        OK(vmfs_checkpoint(s.v, &err));
        put_all(&s, (int)i + 2);
    }
    assert_int_equal(gr_flush(s.ch), 0);
    gr_bdev_fault_clear(s.fault);
    detach(&s);
    vmfs_abandon(s.v);
    attach(&s);
    are(&s, 6, 0);
    unmake(&s);
    return 0;
}

/* ---- names that are changed go home, or are what they were ---- */
enum change { MAKE, REMOVE, RENAME, FOLDER, N_CHANGES };
static int change(struct vmfs *v, enum change c)
{
    switch (c) {
    case MAKE: return vmfs_create(v, "b", VMFS_DISK, 1 << 20, VMFS_THIN, NULL);
    case REMOVE: return vmfs_remove(v, "b", NULL);
    case RENAME: return vmfs_rename(v, "b", "x/y/b", NULL);
    case FOLDER: return vmfs_remove(v, "z", NULL);
    case N_CHANGES: break;
    }
    return -EINVAL;
}

/* Is it there, and of use? */
static bool there(struct vmfs *v, const char *path)
{
    struct vmfs_stat st;
    struct vmfs_disk *d;
    if (vmfs_stat(v, path, &st, NULL) < 0)
        return false;
    if (st.type == VMFS_DISK) {
        OK(vmfs_open(v, path, &d, NULL, &err));
        vmfs_close(d);
    }
    return true;
}

static bool done(struct vmfs *v, enum change c)
{
    if (c == RENAME && there(v, "b") == there(v, "x/y/b"))
        fail_msg("it has two names, or none");
    return c == MAKE ? there(v, "b") : c == FOLDER ? !there(v, "z") : !there(v, "b");
}

/* True: it was the last one. */
static bool changed(enum change c, int n, bool for_ever, unsigned *failed)
{
    struct site s;
    struct vmfs_check_report rep;
    make(&s);
    if (c != MAKE)
        OK(vmfs_create(s.v, "b", VMFS_DISK, 1 << 20, VMFS_THIN, &err));
    OK(vmfs_create(s.v, "z", VMFS_DIR, 0, VMFS_THIN, &err));
    detach(&s);
    OK(vmfs_leave(s.v, &err));
    attach(&s);
    put_some(&s);
    space_pool_fill(s.v);
    leave_free(s.v, 200);
    gr_alloc_fail_after(n, for_ever);
    int r = change(s.v, c);
    bool last = for_ever ? r == 0 : !test_alloc_failed(n);
    gr_alloc_fail_after(-1, 0);
    *failed += r < 0;
    if (s.v->fenced) {
        detach(&s);
        vmfs_abandon(s.v);
        attach(&s);
    } else {
        struct vobj *root;
        OK(vobj_peek(s.v, VMFS_INODE_ROOT, &root, &err));
        if (root->ino.lock.holder && r == 0 && !for_ever)
            fail_msg("change %d, without memory at the %dth place: nobody else can change a name", c, n);
        vobj_free(root);
        OK(vmfs_checkpoint(s.v, &err));
        if (done(s.v, c) != (r == 0))
            fail_msg("change %d, without memory at the %dth place: %d, but it is the other", c, n, r);
    }
    assert_int_equal(vmfs_settle(s.v, 10000), 0);
    (void)done(s.v, c);
    struct gr_err err = { 0 };
    r = vmfs_check(s.v, NULL, NULL, &rep, &err);
    if (r < 0)
        fail_msg("change %d, without memory at the %dth place: %s", c, n, err.text);
    unmake(&s);
    return last;
}

static int names_fn(void *arg)
{
    (void)arg;
    for (enum change c = MAKE; c < N_CHANGES; c++)
        for (int for_ever = 0; for_ever < 2; for_ever++) {
            unsigned failed = 0;
            int n = (int)c;
            while (!changed(c, n, for_ever, &failed))
                n += for_ever ? 30 : c == MAKE ? 1 : 4;
            print_message("change %d%s: %d places, %u failed\n", c, for_ever ? ", for ever" : "", n, failed);
            assert_true(failed);
        }
    return 0;
}

static void memory(void **state) { (void)state; test_in_fiber(memory_fn, NULL); }
static void unread(void **state) { (void)state; test_in_fiber(unread_fn, NULL); }
static void names(void **state) { (void)state; test_in_fiber(names_fn, NULL); }

TEST_MAIN(TEST(memory), TEST(unread), TEST(names))
