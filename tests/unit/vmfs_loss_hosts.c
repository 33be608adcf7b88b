/* A device is lost to one of several hosts: what that had under way to it arrives late and must not count; what others do meanwhile. */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/fiber.h"
#include "snapshot/snapshot.h"
#include "vmfs/internal.h"
#include "vmfs/loss.h"
#include <stdio.h>

#ifndef SLOW
#define SLOW 600
#endif
#define MIB ((uint64_t)1 << 20)
#define DEVICES 3u
#define GOES 2u /* number of the device that is lost */

struct host {
    const char *name;
    struct gr_bdev *low[DEVICES], *fault[DEVICES], *dev[DEVICES];
    uint64_t slow_ns; /* each of its reads takes so long */
    struct vmfs *v;
    unsigned told, warnings;
    char warned[256];
};
struct site {
    struct gr_mem *mem[DEVICES];
    bool shared;
    size_t check_memory;
    struct host a, b;
};

static void warn(void *arg, const char *text)
{
    struct host *h = arg;
    print_message("# %s: %s\n", h->name, text);
    snprintf(h->warned, sizeof h->warned, "%s", text);
    h->warnings++;
}

static void device_lost(void *arg)
{
    ((struct host *)arg)->told++;
}

static struct gr_bdev *nexus(const struct site *s, unsigned dev)
{
    struct gr_bdev *b = NULL;
    assert_int_equal((s->shared ? gr_bdev_mem_open_shared : gr_bdev_mem_open)(gr_fiber_loop(), s->mem[dev], &b), 0);
    return b;
}

static int try_join(struct site *s, struct host *h, const char *name, bool with, uint64_t features, struct gr_err *err)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = name, .address = name, .warn = warn, .warn_arg = h, .device_lost = device_lost, .degraded = !with, .features = features,
                                .check_memory = s->check_memory };
    snprintf((char *)o.host_uuid, sizeof o.host_uuid, "%s", name);
    h->name = name;
    for (unsigned i = 0; i < DEVICES; i++) {
        h->low[i] = nexus(s, i);
        assert_int_equal(gr_bdev_fault_open(gr_fiber_loop(), h->low[i], &h->fault[i]), 0);
        assert_int_equal(gr_bdev_delay_open(gr_fiber_loop(), h->fault[i], h->slow_ns, 0, 0, &h->dev[i]), 0);
    }
    return vmfs_join(gr_fiber_loop(), h->dev, with ? DEVICES : GOES, &o, &h->v, err);
}

static void join(struct site *s, struct host *h, const char *name, bool with)
{
    OK(try_join(s, h, name, with, 0, &err));
}

static void put(struct host *h)
{
    for (unsigned i = 0; i < DEVICES; i++) {
        gr_bdev_put(h->dev[i]);
        gr_bdev_put(h->fault[i]);
        gr_bdev_put(h->low[i]);
    }
}

static void leave(struct host *h)
{
    OK(vmfs_leave(h->v, &err));
    put(h);
}

static struct site *make(bool shared)
{
    struct site *s = calloc(1, sizeof *s);
    struct vmfs_format_opts f = { .name = "ds1", .timing = VMFS_TIMING_FAST };
    struct gr_bdev *dev[DEVICES];
    assert_non_null(s);
    s->shared = shared;
    for (unsigned i = 0; i < DEVICES; i++) {
        s->mem[i] = gr_mem_new(64 * MIB);
        dev[i] = nexus(s, i);
    }
    OK(vmfs_format(gr_fiber_loop(), dev, DEVICES, &f, &err));
    for (unsigned i = 0; i < DEVICES; i++)
        gr_bdev_put(dev[i]);
    return s;
}

static void unmake(struct site *s)
{
    for (unsigned i = 0; i < DEVICES; i++)
        gr_mem_free(s->mem[i]);
    free(s);
}

/* New data goes there. */
static void go_to(struct vmfs *v, unsigned dev)
{
    for (uint32_t i = v->sb.dev[dev].first_region; i < v->sb.dev[dev].first_region + v->sb.dev[dev].regions; i++)
        OK(space_lease(v, i, &err));
    for (struct vregion *r = v->sp.regions; r; r = r->next)
        if (vmfs_addr_dev(r->first) == dev)
            v->sp.current = r;
}

static void rw_mib(struct host *h, const char *path, uint8_t byte, bool write)
{
    static uint8_t buf[MIB];
    struct vmfs_disk *d;
    struct gr_chan *ch;
    OK(vmfs_open(h->v, path, &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    memset(buf, byte, sizeof buf);
    if (write)
        OK(gr_pwrite(ch, buf, MIB, 0, 0));
    if (write)
        OK(gr_flush(ch));
    if (!write)
        OK(gr_pread(ch, buf, MIB, 0));
    for (size_t i = 0; i < MIB; i++)
        assert_int_equal(buf[i], byte);
    gr_chan_close(ch);
    vmfs_close(d);
}

/* The device fails for this host: its flushes do. */
static void lose(struct host *h, const char *path)
{
    struct gr_fault_rule rule = { .op = GR_OP_FLUSH, .code = -EIO };
    static uint8_t buf[4096];
    struct vmfs_disk *d;
    struct gr_chan *ch;
    assert_int_equal(gr_bdev_fault_add(h->fault[GOES], &rule), 0);
    OK(vmfs_open(h->v, path, &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    OK(gr_pwrite(ch, buf, sizeof buf, 2 * MIB, 0));
    assert_true(gr_flush(ch) < 0);
    gr_chan_close(ch);
    vmfs_close(d);
    for (unsigned i = 0; i < 100 && !h->told; i++)
        gr_fiber_sleep_ms(10);
}

static void lost(struct host *h, const char *path)
{
    h->told = 0;
    OK(vmfs_create(h->v, path, VMFS_DISK, 8 * MIB, VMFS_THIN, &err));
    lose(h, path);
    assert_true(h->v->fenced && h->v->lost.devices == 1u << GOES && h->told == 1);
    assert_true(vmfs_leave(h->v, NULL) < 0);
    put(h);
}

/* ---- what was under way ---- */
struct path { /* another path of a host's to the device, with a write that takes its time */
    struct gr_bdev *b;
    struct gr_chan *ch;
};

static void late_begin(struct site *s, struct path *l, uint64_t key)
{
    l->b = nexus(s, GOES);
    OK(l->b->fence->enter(l->b, key, &err));
    assert_int_equal(gr_chan_open(l->b, gr_fiber_loop(), &l->ch), 0);
}

static int late_lands(struct path *l)
{
    uint8_t buf[4096];
    int r = gr_pread(l->ch, buf, sizeof buf, 63 * MIB);
    return r == 0 ? gr_pwrite(l->ch, buf, sizeof buf, 63 * MIB, 0) : r;
}

static void late_end(struct path *l)
{
    assert_int_equal(late_lands(l), -GR_EFENCED);
    gr_chan_close(l->ch);
    gr_bdev_put(l->b);
}

static void joins_slowly(void *arg)
{
    struct gr_bdev *first = arg;
    gr_fiber_sleep_ms(SLOW);
    OK(first->fence->enter(first, 4711, &err));
}

static int late_fn(void *arg)
{
    struct site *s = make(true);
    struct path late, joining;
    (void)arg;
    join(s, &s->a, "a", true);
    join(s, &s->b, "b", true);
    OK(vmfs_create(s->a.v, "d", VMFS_DISK, 8 * MIB, VMFS_THIN, &err));
    go_to(s->a.v, GOES);
    rw_mib(&s->a, "d", 1, true);
    /* the other host sees the device all the time, and overwrites there what this one has left; the second time it is known to be stale */
    for (unsigned i = 0; i < 2; i++) {
        late_begin(s, &late, s->a.v->life.key);
        lost(&s->a, i ? "y" : "x");
        join(s, &s->a, "a", false);
        OK(vmfs_release(s->a.v, "d", &err));
        assert_int_equal(late_lands(&late), 0); /* nobody has been there since */
        struct gr_bdev *first = nexus(s, 0);
        late_begin(s, &joining, 4711); /* another host joins just now */
        assert_int_equal(gr_fiber_start(gr_fiber_loop(), joins_slowly, first), 0);
        rw_mib(&s->b, "d", (uint8_t)(1 + i), false);
        rw_mib(&s->b, "d", (uint8_t)(2 + i), true);
        late_end(&late);
        assert_int_equal(late_lands(&joining), 0);
        OK(first->fence->leave(first, &err));
        OK(joining.b->fence->leave(joining.b, &err));
        gr_chan_close(joining.ch);
        gr_bdev_put(joining.b);
        gr_bdev_put(first);
        OK(vmfs_release(s->b.v, "d", &err));
        leave(&s->a);
        join(s, &s->a, "a", true);
        rw_mib(&s->a, "d", (uint8_t)(2 + i), false);
    }
    /* alone: before it is used again */
    leave(&s->b);
    late_begin(s, &late, s->a.v->life.key);
    lost(&s->a, "z");
    join(s, &s->a, "a", false);
    assert_int_equal(late_lands(&late), 0);
    leave(&s->a);
    join(s, &s->a, "a", true);
    late_end(&late);
    rw_mib(&s->a, "d", 3, false);
    leave(&s->a);
    unmake(s);
    return 0;
}

static void late(void **state)
{
    (void)state;
    test_in_fiber(late_fn, NULL);
}

/* The device is lost to another host, too, which does not know it yet, and learns of the mark: it cannot see who is to be shut out there. */
static int no_keys(struct gr_bdev *b, uint64_t *keys, unsigned max, unsigned *n, struct gr_err *err)
{
    (void)keys;
    (void)max;
    (void)n;
    return gr_fail(err, -EIO, "'%s' fails", b->name);
}

static int both_fn(void *arg)
{
    struct site *s = make(true);
    struct gr_fault_rule rule = { .op = GR_OP_READ, .code = -EIO };
    (void)arg;
    join(s, &s->a, "a", true);
    join(s, &s->b, "b", true);
    go_to(s->a.v, 1);
    OK(vmfs_create(s->a.v, "d", VMFS_DISK, 8 * MIB, VMFS_THIN, &err));
    rw_mib(&s->a, "d", 1, true);
    lost(&s->a, "x");
    join(s, &s->a, "a", false);
    OK(vmfs_release(s->a.v, "d", &err));
    struct gr_fence_ops broken = *s->b.dev[GOES]->fence;
    broken.keys = no_keys;
    s->b.dev[GOES]->fence = &broken;
    assert_int_equal(gr_bdev_fault_add(s->b.fault[GOES], &rule), 0);
    struct vmfs_disk *d;
    FAILS(-GR_EFENCED, "is lost to this host, too", vmfs_open(s->b.v, "d", &d, NULL, &err));
    assert_true(s->b.v->lost.devices == 1u << GOES && s->b.told == 1);
    assert_true(vmfs_leave(s->b.v, NULL) < 0);
    put(&s->b);
    join(s, &s->b, "b", false);
    rw_mib(&s->b, "d", 1, false);
    leave(&s->b);
    leave(&s->a);
    unmake(s);
    return 0;
}

static void both(void **state)
{
    (void)state;
    test_in_fiber(both_fn, NULL);
}

/* ---- superblocks that follow each other ---- */
struct refresh {
    struct vmfs *v;
    bool over;
};

static void refreshes(void *arg)
{
    struct refresh *r = arg;
    OK(vmfs_refresh(r->v, &err));
    r->over = true;
}

/* Counting what a device that became stale has free takes a while; meanwhile it is of use again, and another fiber learns that at once. */
static int newest_fn(void *arg)
{
    struct site *s = make(false);
    struct refresh first = { 0 };
    (void)arg;
    s->b.slow_ns = 20000000;
    join(s, &s->a, "a", true);
    join(s, &s->b, "b", true);
    OK(vmfs_refresh(s->b.v, &err));
    uint64_t elsewhere = s->b.v->sp.free_elsewhere;
    OK(vloss_mark(s->a.v, GOES, false, &err));
    first.v = s->b.v;
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), refreshes, &first), 0);
    gr_fiber_sleep_ms(30); /* it has read the superblock */
    assert_false(first.over);
    OK(vloss_unmark(s->a.v, GOES, &err));
    OK(vmfs_refresh(s->b.v, &err));
    while (!first.over)
        gr_fiber_sleep_ms(5);
    assert_int_equal(s->b.v->sb.generation, s->a.v->sb.generation);
    assert_false(s->b.v->sb.dev[GOES].stale);
    assert_int_equal(s->b.v->sp.free_elsewhere, elsewhere);
    leave(&s->a);
    leave(&s->b);
    unmake(s);
    return 0;
}

static void newest(void **state)
{
    (void)state;
    test_in_fiber(newest_fn, NULL);
}

/* ---- a slot that is being taken over ---- */
static int taken_fn(void *arg)
{
    struct site *s = make(false);
    struct vslot is, now;
    uint8_t *block = aligned_alloc(4096, 4096);
    (void)arg;
    join(s, &s->a, "a", true);
    join(s, &s->b, "b", true);
    unsigned slot = s->a.v->slot;
    OK(vmfs_create(s->a.v, "x", VMFS_DISK, 8 * MIB, VMFS_THIN, &err));
    go_to(s->a.v, GOES);
    lose(&s->a, "x");
    assert_int_equal(s->a.v->lost.devices, 1u << GOES);
    OK(vslot_read(s->b.v, slot, &is, &err)); /* as whoever recovers it begins */
    now = is;
    now.state = VMFS_SLOT_REPLAYING;
    now.nonce = s->b.v->life.key;
    now.block_generation++;
    for (int copy = 0; copy < 2; copy++) {
        uint64_t at = vhome_addr(&s->b.v->sb.slots, slot, 0, copy);
        vslot_encode(s->b.v, &now, slot, at, block);
        assert_int_equal(vdev_write(s->b.v, at, 1, block, 0), 0);
    }
    free(block);
    s->a.warned[0] = 0;
    assert_true(vmfs_leave(s->a.v, NULL) < 0);
    assert_non_null(strstr(s->a.warned, "another host takes this one's place"));
    put(&s->a);
    OK(vslot_read(s->b.v, slot, &is, &err));
    assert_int_equal(is.state, VMFS_SLOT_REPLAYING);
    assert_int_equal(is.nonce, now.nonce);
    assert_int_equal(is.block_generation, now.block_generation);
    assert_int_equal(is.lost.devices, 0);
    assert_int_equal(vmfs_recover_slot(s->b.v, slot, NULL), 1);
    leave(&s->b);
    unmake(s);
    return 0;
}

static void taken(void **state)
{
    (void)state;
    test_in_fiber(taken_fn, NULL);
}

/* ---- what is no loss ---- */
static int well_fn(void *arg)
{
    struct site *s = make(false);
    struct gr_fault_rule rule = { .op = GR_OP_WRITE, .count = 1, .code = -EIO };
    uint8_t *block = aligned_alloc(4096, 4096);
    (void)arg;
    memset(block, 0, 4096);
    join(s, &s->a, "a", true);
    go_to(s->a.v, GOES);
    uint64_t at = space_take_piece(s->a.v);
    assert_int_equal(vmfs_addr_dev(at), GOES);
    assert_int_equal(gr_bdev_fault_add(s->a.fault[GOES], &rule), 0);
    for (unsigned twice = 0; twice < 2; twice++) { /* the second time while the first is just being looked at */
        assert_int_equal(vdev_write(s->a.v, at, 1, block, 0), -EIO); /* and whoever wanted it can do without */
        assert_true(s->a.v->dev[GOES].failed);
        for (unsigned i = 0; i < 300 && s->a.v->dev[GOES].failed; i++)
            gr_fiber_sleep_ms(10);
        assert_false(s->a.v->dev[GOES].failed || s->a.v->fenced);
        assert_true(s->a.v->dev[GOES].looking);
        assert_int_equal(gr_bdev_fault_add(s->a.fault[GOES], &rule), 0);
    }
    free(block);
    vmfs_fence(s->a.v, "of something else");
    assert_int_equal(s->a.v->lost.devices, 0);
    assert_int_equal(s->a.told, 0);
    assert_string_equal(s->a.v->fence_reason, "of something else");
    vmfs_abandon(s->a.v);
    put(&s->a);
    unmake(s);
    return 0;
}

static void well(void **state)
{
    (void)state;
    test_in_fiber(well_fn, NULL);
}

/* An older release would take the tables of the device for good. */
#define OLDER (VMFS_INCOMPAT_KNOWN & ~(uint64_t)(VMFS_INCOMPAT_STALE | VMFS_INCOMPAT_KEPT))
static int older_fn(void *arg)
{
    struct site *s = make(true);
    (void)arg;
    join(s, &s->a, "a", true);
    OK(try_join(s, &s->b, "b", true, OLDER, &err));
    OK(vmfs_create(s->a.v, "x", VMFS_DISK, 8 * MIB, VMFS_THIN, &err));
    OK(vmfs_create(s->a.v, "y", VMFS_DISK, 8 * MIB, VMFS_THIN, &err));
    go_to(s->a.v, GOES);
    rw_mib(&s->a, "y", 1, true);
    lost(&s->a, "z");
    for (unsigned with = 0; with < 2; with++) {
        FAILS(-GR_EVERSION, "host 'b' runs a release of Granary that does not know lost devices: upgrade it, or leave", try_join(s, &s->a, "a", with, 0, &err));
        put(&s->a);
    }
    assert_false(s->b.v->sb.incompat & VMFS_INCOMPAT_STALE);
    leave(&s->b);
    join(s, &s->a, "a", false);
    struct vmfs_stat st;
    OK(vmfs_stat(s->a.v, "z", &st, &err));
    assert_true(st.lost_writes); /* that has not been forgotten meanwhile */
    leave(&s->a);
    unmake(s);
    return 0;
}

static void older(void **state)
{
    (void)state;
    test_in_fiber(older_fn, NULL);
}

/* A host that is upgraded after it died is no longer that older release. */
static int upgraded_fn(void *arg)
{
    struct site *s = make(true);
    (void)arg;
    join(s, &s->a, "a", true);
    OK(vmfs_create(s->a.v, "x", VMFS_DISK, 8 * MIB, VMFS_THIN, &err));
    leave(&s->a);
    OK(try_join(s, &s->a, "a", true, OLDER, &err));
    go_to(s->a.v, GOES);
    rw_mib(&s->a, "x", 2, true);
    OK(vmfs_checkpoint(s->a.v, &err)); /* nothing in its journal is in doubt */
    vmfs_abandon(s->a.v);
    put(&s->a);
    join(s, &s->a, "a", false);
    assert_true(vdev_stale(s->a.v, GOES));
    FAILS(-ENODEV, "joined without its device 2", vmfs_device_remove(s->a.v, GOES, &(struct vmfs_device_remove){ 0 }, &err));
    leave(&s->a);
    join(s, &s->a, "a", true);
    rw_mib(&s->a, "x", 2, false);
    FAILS(-EBUSY, "was lost, and what lies there must be counted first", vmfs_device_remove(s->a.v, GOES, &(struct vmfs_device_remove){ 0 }, &err));
    leave(&s->a);
    unmake(s);
    return 0;
}

static void upgraded(void **state)
{
    (void)state;
    test_in_fiber(upgraded_fn, NULL);
}

/* ---- lists that lie on it ---- */
/* A volume of long ago: what does not fit the block of foreign frees lies on the device. */
static void list_on_it(struct vmfs *v)
{
    struct vmfs_aux_disk *a = aligned_alloc(4096, 4096);
    struct vmfs_hdr_disk *b = aligned_alloc(4096, 2 * 4096);
    uint32_t got;
    go_to(v, GOES);
    uint64_t at = 0;
    for (struct vregion *r = v->sp.regions; r && !at; r = r->next)
        at = vmfs_addr_dev(r->first) == GOES ? r->first + r->units - 2 : 0;
    OK(vhome_read(v, &v->sb.slots, v->slot, 1, VMFS_T_AUX, a, &err));
    got = gr_le32_get(a->blob_units);
    assert_true(gr_le32_get(a->n_runs) > VMFS_AUX_RUNS && got == 2);
    assert_true(vdev_has_tables(v, vmfs_addr_dev(gr_le64_get(a->blob_addr))));
    assert_int_equal(vdev_read(v, gr_le64_get(a->blob_addr), got, b), 0);
    vhdr_seal(v, b, VMFS_T_BLOB, got, at, gr_le64_get(b->generation), v->slot);
    assert_int_equal(vdev_write(v, at, got, b, 0), 0);
    a->blob_addr = gr_le64_of(at);
    vhdr_seal(v, a, VMFS_T_AUX, 1, vhome_addr(&v->sb.slots, v->slot, 1, 0), gr_le64_get(a->hdr.generation) + 1, v->slot);
    OK(vhome_write(v, &v->sb.slots, v->slot, 1, a, &err));
    free(a);
    free(b);
}

static int lists_fn(void *arg)
{
    struct site *s = make(false);
    (void)arg;
    join(s, &s->a, "a", true);
    join(s, &s->b, "b", true);
    go_to(s->b.v, 1);
    uint64_t first = 0;
    for (struct vregion *r = s->b.v->sp.regions; r; r = r->next)
        first = vmfs_addr_dev(r->first) == 1 ? r->first : first;
    for (unsigned i = 0; i < VMFS_AUX_RUNS + 300u; i++) /* every other unit: no two runs are one */
        OK(space_foreign_take(s->a.v, first + 2 * i, 1));
    size_t n = s->a.v->sp.n_foreign;
    s->a.v->sp.foreign_dirty = true;
    OK(vmfs_checkpoint(s->a.v, &err));
    list_on_it(s->a.v);
    vmfs_abandon(s->a.v);
    put(&s->a);
    s->a.warned[0] = 0;
    join(s, &s->a, "a", false);
    assert_int_equal(s->a.v->sp.n_foreign, VMFS_AUX_RUNS);
    assert_non_null(strstr(s->a.warned, "a list of space that slot"));
    leave(&s->a);
    join(s, &s->a, "a", true); /* nothing of it is forgotten */
    assert_int_equal(s->a.v->sp.n_foreign, n);
    /* the list of what lay on a device that has left: without it nothing can be joined, so it is not done without */
    OK(vmfs_create(s->a.v, "x", VMFS_DISK, 8 * MIB, VMFS_THIN, &err));
    go_to(s->a.v, GOES);
    assert_false(vdev_needed(s->a.v, GOES));
    s->a.v->sb.dev[1].moved_addr = vmfs_addr(GOES, 4000);
    assert_true(vdev_needed(s->a.v, GOES));
    s->a.told = 0;
    lose(&s->a, "x");
    assert_true(s->a.v->fenced && !s->a.v->lost.devices && !s->a.told);
    assert_true(vmfs_leave(s->a.v, NULL) < 0);
    put(&s->a);
    leave(&s->b);
    unmake(s);
    return 0;
}

static void lists(void **state)
{
    (void)state;
    test_in_fiber(lists_fn, NULL);
}

/* ---- counting with little memory ---- */
#define OWNERS 8u
#define COPIED (4 * MIB)

static void copy(struct gr_chan *ch, uint64_t to)
{
    struct gr_bio bio = { .op = GR_OP_COPY, .off = to, .len = COPIED, .copy_src = ch };
    assert_int_equal(gr_submit_wait(ch, &bio), 0);
}

static void disk_with_copies(struct host *h)
{
    static uint8_t buf[MIB];
    struct vmfs_disk *d;
    struct gr_chan *ch;
    char name[8];
    OK(vmfs_create(h->v, "d", VMFS_DISK, OWNERS * COPIED, VMFS_THIN, &err));
    go_to(h->v, GOES);
    OK(vmfs_open(h->v, "d", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    for (uint64_t at = 0; at < COPIED; at += MIB) {
        memset(buf, 1 + (int)(at / MIB), sizeof buf);
        OK(gr_pwrite(ch, buf, MIB, at, 0));
    }
    for (unsigned i = 1; i < OWNERS; i++)
        copy(ch, i * COPIED);
    for (unsigned i = 0; i < 16; i++) { /* leaves that are written anew name all again that they named before */
        snprintf(name, sizeof name, "s%u", i);
        OK(snap_create(&d, 1, name, &err));
        for (uint64_t at = 0; at < OWNERS * COPIED; at += VMFS_LEAF_PIECES * VMFS_PIECE)
            OK(gr_pwrite(ch, buf, VMFS_PIECE, at, 0));
    }
    OK(gr_flush(ch));
    gr_chan_close(ch);
    vmfs_close(d);
}

static int memory_fn(void *arg)
{
    struct site *s = make(false);
    struct vmfs_check_report rep;
    unsigned shares = 0;
    (void)arg;
    s->check_memory = 64 << 10;
    join(s, &s->a, "a", true);
    disk_with_copies(&s->a);
    OK(vmfs_check(s->a.v, warn, &s->a, &rep, &err));
    lost(&s->a, "x");
    join(s, &s->a, "a", false);
    leave(&s->a);
    join(s, &s->a, "a", true);
    OK(vmfs_repair(s->a.v, warn, &s->a, &rep, &err));
    assert_int_equal(rep.errors + rep.leaked_units, 0);
    print_message("# %llu bytes were used to count\n", (unsigned long long)rep.memory);
    assert_true(rep.memory < 500000); /* a list of all owners of a region, once; not of each time they are named */
    for (const struct vregion *r = s->a.v->sp.regions; r; r = r->next)
        for (size_t i = 0; i < r->n_shares; i++) {
            assert_int_equal(r->shares[i].more, OWNERS - 1);
            shares += r->shares[i].units;
        }
    assert_int_equal(shares, COPIED / VMFS_UNIT);
    OK(vmfs_check(s->a.v, warn, &s->a, &rep, &err));
    leave(&s->a);
    unmake(s);
    return 0;
}

static void memory(void **state)
{
    (void)state;
    test_in_fiber(memory_fn, NULL);
}

TEST_MAIN(TEST(late), TEST(both), TEST(newest), TEST(taken), TEST(well), TEST(older), TEST(upgraded), TEST(lists), TEST(memory))
