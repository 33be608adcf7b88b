/* Devices that come to a volume while it is in use: on this host and on others, and cut off at every step. */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/fiber.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>

#define MIB ((uint64_t)1 << 20)
#define DEVICES 4

struct host {
    struct gr_bdev *dev[DEVICES];
    struct vmfs *v;
    unsigned warnings;
    bool leased;
};

static void warn(void *arg, const char *text)
{
    struct host *h = arg;
    if (h)
        h->warnings++;
    print_message("warning: %s\n", text);
}

static struct gr_bdev *open_mem(struct gr_mem *m, bool shared)
{
    struct gr_bdev *dev = NULL;
    assert_int_equal((shared ? gr_bdev_mem_open_shared : gr_bdev_mem_open)(gr_fiber_loop(), m, &dev), 0);
    return dev;
}

static int try_join(struct host *h, struct gr_mem *const *mem, unsigned n, const char *name, bool shared, struct gr_err *err)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = name, .warn = warn, .warn_arg = h };
    snprintf((char *)o.host_uuid, sizeof o.host_uuid, "%s", name);
    *h = (struct host){ 0 };
    for (unsigned i = 0; i < n; i++)
        h->dev[i] = open_mem(mem[i], shared);
    return vmfs_join(gr_fiber_loop(), h->dev, n, &o, &h->v, err);
}

static void put(struct host *h)
{
    for (unsigned i = 0; i < DEVICES; i++)
        gr_bdev_put(h->dev[i]);
}

static void leave(struct host *h)
{
    OK(vmfs_leave(h->v, &err));
    put(h);
}

static void format(struct gr_mem *mem, bool shared)
{
    struct vmfs_format_opts f = { .name = "ds1", .timing = VMFS_TIMING_FAST };
    struct gr_bdev *dev = open_mem(mem, shared);
    OK(vmfs_format(gr_fiber_loop(), &dev, 1, &f, &err));
    gr_bdev_put(dev);
}

static void sound(struct host *h)
{
    struct vmfs_check_report rep;
    OK(vmfs_check(h->v, warn, h, &rep, &err));
    assert_int_equal(rep.leaked_units, 0);
}

static void pattern(uint8_t *p, uint64_t seed)
{
    for (size_t i = 0; i < MIB; i++)
        p[i] = (uint8_t)((i * 2654435761u >> 9) + seed * 131 + i / 4096);
}

/* Write (or compare) the megabytes [from, to) of a disk. */
static void content(struct host *h, const char *path, uint64_t from, uint64_t to, uint64_t seed, bool write)
{
    static uint8_t a[MIB], b[MIB];
    struct vmfs_disk *d;
    struct gr_chan *ch;
    OK(vmfs_open(h->v, path, &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    for (uint64_t at = from; at < to; at++) {
        pattern(a, seed + at);
        if (write) {
            OK(gr_pwrite(ch, a, MIB, at * MIB, 0));
        } else {
            OK(gr_pread(ch, b, MIB, at * MIB));
            assert_memory_equal(a, b, MIB);
        }
    }
    if (write)
        OK(gr_flush(ch));
    gr_chan_close(ch);
    vmfs_close(d);
}

static unsigned pages_of(struct gr_mem *m, uint64_t size)
{
    unsigned n = 0;
    for (uint64_t off = 0; off < size; off += 4096)
        n += gr_mem_page(m, off, false) != NULL;
    return n;
}

static void add(struct host *h, unsigned at, struct gr_mem *m, bool shared)
{
    struct vmfs_device_add a = { 0 };
    h->dev[at] = open_mem(m, shared);
    OK(vmfs_device_add(h->v, h->dev[at], &a, &err));
}

/* ---- one host ---- */
static void keep_info(void *arg, const struct vmfs_device_info *d)
{
    *(struct vmfs_device_info *)arg = *d;
}

static void sum_free(void *arg, const struct vmfs_device_info *d)
{
    uint64_t *free_bytes = arg;
    *free_bytes += d->free;
    assert_true(d->free <= d->size);
}

static int alone_fn(void *arg)
{
    struct gr_mem *mem[] = { gr_mem_new(64 * MIB), gr_mem_new(256 * MIB), gr_mem_new(96 * MIB) };
    struct host h;
    struct vmfs_info before, now;
    struct gr_err e = { 0 };
    (void)arg;
    format(mem[0], false);
    assert_int_equal(try_join(&h, mem, 1, "one", false, &e), 0);
    OK(vmfs_create(h.v, "d", VMFS_DISK, 1024 * MIB, VMFS_THIN, &err));
    content(&h, "d", 0, 20, 1, true);
    vmfs_info(h.v, &before);
    add(&h, 1, mem[1], false);
    vmfs_info(h.v, &now);
    assert_int_equal(now.n_devices, 2);
    assert_int_equal(now.size, 320 * MIB);
    assert_true(now.free > before.free + 235 * MIB);
    uint64_t free_bytes = 0;
    OK(vmfs_devices(h.v, sum_free, &free_bytes, &err));
    assert_int_equal(free_bytes, now.free);
    sound(&h);
    content(&h, "d", 20, 200, 1, true); /* more than the first device has */
    assert_true(pages_of(mem[1], 256 * MIB) > 30000);
    sound(&h);
    vmfs_abandon(h.v); /* what lies there is recovered, too */
    put(&h);

    assert_int_equal(try_join(&h, mem, 1, "one", false, &e), -ENODEV);
    put(&h);
    assert_int_equal(try_join(&h, (struct gr_mem *[]){ mem[1], mem[0] }, 2, "one", false, &e), 0);
    content(&h, "d", 0, 200, 1, false);
    sound(&h);
    add(&h, 2, mem[2], false); /* a third; and it grows */
    OK(vmfs_grow(h.v, &err));
    content(&h, "d", 0, 300, 2, true);
    content(&h, "d", 0, 300, 2, false);
    OK(vmfs_remove(h.v, "d", &err));
    OK(vmfs_settle(h.v, 10000));
    sound(&h);
    leave(&h);
    for (unsigned i = 0; i < 3; i++)
        gr_mem_free(mem[i]);
    return 0;
}

static void alone(void **state)
{
    (void)state;
    test_in_fiber(alone_fn, NULL);
}

/* ---- regions that are leased for what was freed there, and a volume that gets more of them meanwhile ---- */
static void lease_foreign(void *arg)
{
    struct host *h = arg;
    ckpt_lease_foreign(h->v);
    h->leased = true;
}

static int leased_fn(void *arg)
{
    struct gr_mem *mem = gr_mem_new(256 * MIB);
    struct host h;
    struct gr_err e = { 0 };
    uint32_t units, old = 0;
    (void)arg;
    format(mem, false);
    assert_int_equal(try_join(&h, &mem, 1, "one", false, &e), 0);
    struct vmfs *v = h.v;
    struct vsuper grown = v->sb;
    grown.generation++;
    uint32_t before = --v->sb.dev[0].regions; /* the last one comes later */
    while (old < before && v->sp.by_index[old])
        old++;
    assert_true(old < before && !v->sp.by_index[before]);
    assert_int_equal(space_foreign_take(v, space_region_first(v, old, &units), 1), 0);
    gr_fmutex_lock(&v->sp.lease_lock);
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), lease_foreign, &h), 0); /* and it waits for its region */
    gr_fiber_yield();
    assert_false(h.leased);
    assert_int_equal(space_regions_added(v, &grown), 0);
    assert_int_equal(space_n_regions(v), before + 1);
    assert_int_equal(space_foreign_take(v, space_region_first(v, before, &units), 1), 0); /* of a disk that came from another host */
    gr_fmutex_unlock(&v->sp.lease_lock);
    while (!h.leased)
        gr_fiber_yield();
    assert_non_null(v->sp.by_index[old]);
    assert_null(v->sp.by_index[before]); /* next time */
    ckpt_lease_foreign(v);
    assert_non_null(v->sp.by_index[before]);
    assert_int_equal(v->sp.n_foreign, 0);
    vmfs_abandon(v); /* nobody had these units */
    put(&h);
    gr_mem_free(mem);
    return 0;
}

static void leased(void **state)
{
    (void)state;
    test_in_fiber(leased_fn, NULL);
}

/* ---- a disk is cut while its device leaves ---- */
struct cutting {
    struct vmfs_disk *d;
    bool done;
};

static void cut(void *arg)
{
    struct cutting *c = arg;
    OK(vmfs_resize(c->d, 100 * MIB - 512, true, &err));
    c->done = true;
}

/* The end of its last piece is overwritten in place, late: it is not copied before that. */
static int cut_fn(void *arg)
{
    struct gr_mem *mem[] = { gr_mem_new(64 * MIB), gr_mem_new(128 * MIB), gr_mem_new(256 * MIB) };
    struct vmfs_device_remove opts = { 0 };
    struct cutting c = { 0 };
    struct gr_err e = { 0 };
    struct gr_bdev *slow;
    struct gr_chan *usual, *late, *ch;
    struct mnode *leaf;
    uint8_t *b = vunits_alloc(1);
    struct host h;
    (void)arg;
    format(mem[0], false);
    assert_int_equal(try_join(&h, mem, 1, "one", false, &e), 0);
    add(&h, 1, mem[1], false);
    OK(vmfs_create(h.v, "d", VMFS_DISK, 100 * MIB, VMFS_THIN, &err));
    content(&h, "d", 0, 100, 1, true);
    assert_int_equal(journal_seal(h.v), 0);
    OK(vmfs_open(h.v, "d", &c.d, NULL, &err));
    uint64_t last = 100 * MIB / VMFS_PIECE - 1;
    assert_int_equal(mtree_peek(&c.d->o->live, last, &leaf), 0);
    assert_int_equal(vmfs_addr_dev(ment_piece(&leaf->ent[last % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES], (unsigned)(last % VMFS_BLOCK_PIECES)).addr), 1);
    add(&h, 2, mem[2], false);
    usual = h.v->dev[1].ch;
    assert_int_equal(gr_bdev_delay_open(gr_fiber_loop(), h.dev[1], 0, 1500000000, 0, &slow), 0);
    assert_int_equal(gr_chan_open(slow, gr_fiber_loop(), &late), 0);
    h.v->dev[1].ch = late;
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), cut, &c), 0);
    while (!c.d->o->frozen)
        gr_fiber_yield();
    h.v->dev[1].ch = usual;
    OK(vmfs_device_remove(h.v, 1, &opts, &err));
    while (!c.done)
        gr_fiber_sleep_ms(5);
    OK(vmfs_resize(c.d, 100 * MIB, false, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(c.d), gr_fiber_loop(), &ch), 0);
    OK(gr_pread(ch, b, VMFS_UNIT, last * VMFS_UNIT));
    for (unsigned i = VMFS_UNIT - 512; i < VMFS_UNIT; i++)
        assert_int_equal(b[i], 0);
    gr_chan_close(ch);
    vmfs_close(c.d);
    sound(&h);
    gr_chan_close(late);
    gr_bdev_put(slow);
    leave(&h);
    for (unsigned i = 0; i < 3; i++)
        gr_mem_free(mem[i]);
    free(b);
    return 0;
}

static void cut_while_leaving(void **state)
{
    (void)state;
    test_in_fiber(cut_fn, NULL);
}

/* ---- what is refused ---- */
static int refuse_confirm(void *arg, struct gr_err *err)
{
    ++*(unsigned *)arg;
    return gr_fail(err, -GR_ELOCKED, "host 'two' does not see it");
}

static int refused_fn(void *arg)
{
    struct gr_mem *mem[] = { gr_mem_new(64 * MIB), gr_mem_new(64 * MIB) }, *tiny = gr_mem_new(16 * MIB), *foreign = gr_mem_new(64 * MIB);
    struct host h;
    struct gr_err e = { 0 };
    unsigned asked = 0;
    struct vmfs_device_add a = { 0 }, no = { .confirm = refuse_confirm, .arg = &asked };
    (void)arg;
    format(mem[0], false);
    format(foreign, false);
    assert_int_equal(try_join(&h, mem, 1, "one", false, &e), 0);
    struct gr_bdev *dev = open_mem(tiny, false), *other = open_mem(foreign, false), *self = open_mem(mem[0], false), *shared = open_mem(tiny, true);
    assert_int_equal(vmfs_device_add(h.v, dev, &a, &e), -EINVAL); /* too small */
    assert_int_equal(vmfs_device_add(h.v, shared, &a, &e), -EINVAL); /* of another kind */
    a.force = true;
    assert_int_equal(vmfs_device_add(h.v, other, &a, &e), -EEXIST); /* another datastore, even forced */
    assert_non_null(strstr(e.text, "ds1"));
    assert_int_equal(vmfs_device_add(h.v, self, &a, &e), -EEXIST); /* a member */
    h.dev[1] = open_mem(mem[1], false);
    memset(gr_mem_page(mem[1], 0x8000, true), 7, 100);
    a.force = false;
    assert_int_equal(vmfs_device_add(h.v, h.dev[1], &a, &e), -EEXIST); /* something unknown */
    memset(gr_mem_page(mem[1], 0x8000, true), 0, 100);
    assert_int_equal(vmfs_device_add(h.v, h.dev[1], &no, &e), -GR_ELOCKED); /* another host does not see it */
    assert_int_equal(asked, 1);
    struct vmfs_info info;
    vmfs_info(h.v, &info);
    assert_int_equal(info.n_devices, 1);
    sound(&h);
    struct host two;
    OK(try_join(&two, mem, 2, "two", false, &err)); /* half added is no member, and is left alone */
    assert_int_equal(vmfs_device_number(two.v, two.dev[0]), 0);
    assert_int_equal(vmfs_device_number(two.v, two.dev[1]), -ENOENT);
    assert_int_equal(two.warnings, 1);
    leave(&two);
    OK(vmfs_device_add(h.v, h.dev[1], &a, &err)); /* and can be added again */
    sound(&h);
    leave(&h);
    gr_bdev_put(dev);
    gr_bdev_put(other);
    gr_bdev_put(self);
    gr_bdev_put(shared);
    gr_mem_free(mem[0]);
    gr_mem_free(mem[1]);
    gr_mem_free(tiny);
    gr_mem_free(foreign);
    return 0;
}

static void refused(void **state)
{
    (void)state;
    test_in_fiber(refused_fn, NULL);
}

/* ---- several hosts ---- */
struct pair {
    struct host one, two;
    struct gr_mem *mem;
    bool shared, skip;
};

static int confirm_two(void *arg, struct gr_err *err)
{
    struct pair *p = arg;
    if (p->skip)
        return 0;
    p->two.dev[1] = open_mem(p->mem, p->shared);
    return vmfs_device_open(p->two.v, p->two.dev[1], err);
}

/* What one host writes on the new device the other reads, and takes over. @shared: logical units with a fence. */
static void two_hosts(bool shared)
{
    struct gr_mem *mem[] = { gr_mem_new(64 * MIB), gr_mem_new(128 * MIB) };
    struct pair p = { .mem = mem[1], .shared = shared };
    struct vmfs_device_add a = { .confirm = confirm_two, .arg = &p };
    struct gr_err e = { 0 };
    format(mem[0], shared);
    OK(try_join(&p.one, mem, 1, "one", shared, &err));
    OK(try_join(&p.two, mem, 1, "two", shared, &err));
    p.one.dev[1] = open_mem(mem[1], shared);
    OK(vmfs_device_add(p.one.v, p.one.dev[1], &a, &err));
    struct vmfs_device_remove rem = { 0 };
    assert_int_equal(vmfs_device_remove(p.one.v, 1, &rem, &e), -GR_ELOCKED); /* it is to be alone for that */
    assert_non_null(strstr(e.text, "'two'"));
    OK(vmfs_create(p.one.v, "d", VMFS_DISK, 1024 * MIB, VMFS_THIN, &err));
    content(&p.one, "d", 0, 80, 3, true);
    OK(vmfs_release(p.one.v, "d", &err));
    content(&p.two, "d", 0, 80, 3, false);
    OK(vmfs_create(p.two.v, "e", VMFS_DISK, 1024 * MIB, VMFS_THIN, &err));
    content(&p.two, "e", 0, 10, 4, true);
    sound(&p.two);
    struct vmfs_info info;
    vmfs_info(p.two.v, &info);
    assert_int_equal(info.n_devices, 2);
    vmfs_abandon(p.two.v);
    put(&p.two);
    if (shared)
        gr_fiber_sleep_ms(1100); /* who has answered within the last second counts as alive (vmfs/life.c) */
    content(&p.one, "d", 0, 80, 3, false); /* recovered */
    content(&p.one, "e", 0, 10, 4, false);
    sound(&p.one);
    assert_int_equal(try_join(&p.two, mem, 1, "two", shared, &e), -ENODEV);
    put(&p.two);
    leave(&p.one);
    gr_mem_free(mem[0]);
    gr_mem_free(mem[1]);
}

static int files_fn(void *arg)
{
    (void)arg;
    two_hosts(false);
    return 0;
}

static int luns_fn(void *arg)
{
    (void)arg;
    two_hosts(true);
    return 0;
}

static void hosts_on_files(void **state)
{
    (void)state;
    test_in_fiber(files_fn, NULL);
}

static void hosts_on_luns(void **state)
{
    (void)state;
    test_in_fiber(luns_fn, NULL);
}

/* One that joined between the question and the change does not have the new device: it locks nothing and takes nobody over. */
static int unaware_fn(void *arg)
{
    struct gr_mem *mem[] = { gr_mem_new(64 * MIB), gr_mem_new(128 * MIB) };
    struct pair p = { .mem = mem[1], .skip = true };
    struct vmfs_device_add a = { .confirm = confirm_two, .arg = &p };
    struct gr_err e = { 0 };
    struct vmfs_disk *d;
    (void)arg;
    format(mem[0], false);
    OK(try_join(&p.one, mem, 1, "one", false, &err));
    OK(vmfs_create(p.one.v, "d", VMFS_DISK, 1024 * MIB, VMFS_THIN, &err));
    OK(try_join(&p.two, mem, 1, "two", false, &err));
    p.one.dev[1] = open_mem(mem[1], false);
    OK(vmfs_device_add(p.one.v, p.one.dev[1], &a, &err));
    content(&p.one, "d", 0, 80, 3, true);
    OK(vmfs_release(p.one.v, "d", &err));
    assert_int_equal(vmfs_open(p.two.v, "d", &d, NULL, &e), -ENODEV);
    assert_non_null(strstr(e.text, "add-device"));
    vmfs_abandon(p.one.v);
    put(&p.one);
    assert_int_equal(vmfs_recover(p.two.v, &e), -ENODEV);
    p.two.dev[1] = open_mem(mem[1], false);
    a.confirm = NULL;
    OK(vmfs_device_add(p.two.v, p.two.dev[1], &a, &err)); /* a member already: it is opened */
    assert_int_equal(vmfs_device_number(p.two.v, p.two.dev[1]), 1);
    OK(vmfs_recover(p.two.v, &err));
    content(&p.two, "d", 0, 80, 3, false);
    sound(&p.two);
    leave(&p.two);
    gr_mem_free(mem[0]);
    gr_mem_free(mem[1]);
    return 0;
}

static void unaware(void **state)
{
    (void)state;
    test_in_fiber(unaware_fn, NULL);
}

/* ---- cut off at every write ---- */
/* The n-th write from here on fails, with all that follow, on one of the devices. False: there were not so many. */
static bool cut_once(unsigned device, unsigned after)
{
    struct gr_mem *mem[] = { gr_mem_new(64 * MIB), gr_mem_new(64 * MIB) };
    struct gr_bdev *lower[2], *dev[2];
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "one", .warn = warn };
    struct vmfs_device_add a = { 0 };
    struct gr_fault_rule rules[] = { { .op = GR_OP_WRITE, .after = after, .code = -EIO }, { .op = GR_OP_WRITE_ZEROES, .after = after, .code = -EIO } };
    struct gr_err e = { 0 };
    struct host h = { 0 };
    struct vmfs *v;
    format(mem[0], false);
    for (unsigned i = 0; i < 2; i++) {
        lower[i] = open_mem(mem[i], false);
        assert_int_equal(gr_bdev_fault_open(gr_fiber_loop(), lower[i], &dev[i]), 0);
    }
    OK(vmfs_join(gr_fiber_loop(), dev, 1, &o, &v, &err));
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(gr_bdev_fault_add(dev[device], &rules[i]), 0);
    int r = vmfs_device_add(v, dev[1], &a, &e);
    vmfs_abandon(v);
    for (unsigned i = 0; i < 2; i++) {
        gr_bdev_put(dev[i]);
        gr_bdev_put(lower[i]);
    }
    if (try_join(&h, mem, 1, "one", false, &e) == 0) { /* a member, or not, and then it can be added again */
        assert_int_not_equal(r, 0);
        add(&h, 1, mem[1], false);
    } else {
        put(&h);
        OK(try_join(&h, mem, 2, "one", false, &err));
    }
    OK(vmfs_create(h.v, "d", VMFS_DISK, 1024 * MIB, VMFS_THIN, &err));
    content(&h, "d", 0, 50, 5, true);
    sound(&h);
    leave(&h);
    gr_mem_free(mem[0]);
    gr_mem_free(mem[1]);
    return r < 0;
}

static int cuts_fn(void *arg)
{
    unsigned cuts = 0;
    (void)arg;
    for (unsigned device = 0; device < 2; device++)
        for (unsigned after = 0; cut_once(device, after); after++)
            cuts++;
    print_message("%u cuts\n", cuts);
    assert_true(cuts >= 5);
    return 0;
}

static void cut_anywhere(void **state)
{
    (void)state;
    test_in_fiber(cuts_fn, NULL);
}

/* ---- without a device ---- */
static int try_join_degraded(struct host *h, struct gr_mem *mem, struct gr_err *err)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "one", .warn = warn, .warn_arg = h, .degraded = true };
    *h = (struct host){ .dev = { open_mem(mem, false) } };
    return vmfs_join(gr_fiber_loop(), h->dev, 1, &o, &h->v, err);
}

static int read_mib(struct host *h, const char *path, uint64_t at)
{
    static uint8_t buf[MIB];
    struct vmfs_disk *d;
    struct gr_chan *ch;
    OK(vmfs_open(h->v, path, &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    int r = gr_pread(ch, buf, MIB, at * MIB);
    gr_chan_close(ch);
    vmfs_close(d);
    return r;
}

static int degraded_fn(void *arg)
{
    struct gr_mem *mem[] = { gr_mem_new(64 * MIB), gr_mem_new(256 * MIB) };
    struct vmfs_device_add a = { 0 };
    struct vmfs_info info;
    struct vmfs_check_report rep;
    struct host h;
    struct gr_err e = { 0 };
    (void)arg;
    format(mem[0], false);
    OK(try_join(&h, mem, 1, "one", false, &err));
    OK(vmfs_create(h.v, "here", VMFS_DISK, 16 * MIB, VMFS_THICK, &err)); /* it has its space here */
    content(&h, "here", 0, 8, 1, true);
    OK(vmfs_create(h.v, "there", VMFS_DISK, 256 * MIB, VMFS_THIN, &err));
    add(&h, 1, mem[1], false);
    content(&h, "there", 0, 60, 2, true); /* begins on device 0, ends on device 1 */
    leave(&h);

    assert_int_equal(try_join(&h, mem, 1, "one", false, &e), -ENODEV); /* never silently */
    put(&h);
    for (int again = 0; again < 2; again++) {
        OK(try_join_degraded(&h, mem[0], &err));
        assert_true(h.warnings > 0); /* it is told */
        vmfs_info(h.v, &info);
        assert_int_equal(info.n_missing, 1);
        content(&h, "here", 0, 8, 1, false); /* disks that have nothing there go on */
        content(&h, "here", 0, 4, 1, true);
        assert_int_equal(read_mib(&h, "there", 59 - again), -EIO);
        content(&h, "here", 8, 12, 7, true);
        assert_int_equal(vmfs_device_add(h.v, h.dev[0], &a, &e), -ENODEV);
        assert_int_equal(vmfs_check(h.v, warn, NULL, &rep, &e), -GR_EPARTIAL); /* it tells what it cannot see */
        assert_int_equal(rep.leaked_units, 0);
        if (again)
            leave(&h);
        else {
            vmfs_abandon(h.v);
            put(&h);
        }
    }
    OK(try_join(&h, mem, 2, "one", false, &err)); /* it is back */
    content(&h, "here", 0, 8, 1, false);
    content(&h, "here", 8, 12, 7, false);
    content(&h, "there", 0, 60, 2, false);
    OK(vmfs_checkpoint(h.v, &err)); /* what was freed there is given back */
    sound(&h);
    vmfs_info(h.v, &info);
    assert_int_equal(info.n_missing, 0);
    content(&h, "there", 60, 70, 2, true);
    vmfs_abandon(h.v); /* not left in order: it has journal records about that device */
    put(&h);
    int r = try_join_degraded(&h, mem[0], &e);
    if (r < 0) {
        print_message("refused: %s\n", e.text);
        put(&h);
    } else {
        leave(&h);
    }
    OK(try_join(&h, mem, 2, "one", false, &err));
    content(&h, "there", 0, 60, 2, false);
    content(&h, "there", 60, 70, 2, false);
    sound(&h);
    leave(&h);
    gr_mem_free(mem[0]);
    gr_mem_free(mem[1]);
    return 0;
}

static void degraded(void **state)
{
    (void)state;
    test_in_fiber(degraded_fn, NULL);
}

/* ---- what was tried before is looked at again ---- */
static struct gr_fence_ops honest, lying; /* of the one device of the test below, while it lies */
static struct gr_bdev_ops honest_ops, lying_ops;

static int no_keys(struct gr_bdev *bdev, uint64_t *keys, unsigned max, unsigned *ret_n, struct gr_err *err)
{
    int r = honest.keys(bdev, keys, max, ret_n, err);
    *ret_n = 0;
    return r;
}
static int forgetful(struct gr_bdev *bdev, struct gr_err *err)
{
    return gr_fail(err, -EOPNOTSUPP, "no APTPL");
}
/* Whatever is compared is equal; what is written is a new block. */
static void always_equal(struct gr_chan *ch, struct gr_bio *bio)
{
    if (bio->op == GR_OP_COMPARE_WRITE) {
        bio->op = GR_OP_WRITE;
        bio->iov = bio->iov2;
        bio->iovcnt = bio->iovcnt2;
    }
    honest_ops.submit(ch, bio);
}

struct second_nexus {
    struct gr_mem *mem;
    bool inside; /* a fence that lets everybody in: what is asked there goes the way of one that is registered */
    unsigned asked;
};

static struct gr_bdev_ops open_ops;
static struct gr_chan *way_in;
static void let_in(struct gr_chan *ch, struct gr_bio *bio)
{
    (void)ch;
    gr_submit(way_in, bio);
}

static int second_nexus(void *arg, const struct gr_bdev *device, struct gr_bdev **ret, struct gr_err *err)
{
    struct second_nexus *n = arg;
    (void)device;
    (void)err;
    n->asked++;
    int r = gr_bdev_mem_open_shared(gr_fiber_loop(), n->mem, ret);
    if (r == 0 && n->inside) {
        open_ops = *(*ret)->ops;
        open_ops.submit = let_in;
        (*ret)->ops = &open_ops;
    }
    return r;
}

static int honour_fn(void *arg)
{
    static const char *const says[] = { "registered", "power", "compare-and-write", "lets who is not registered read" };
    struct gr_mem *mem = gr_mem_new(64 * MIB);
    uint32_t tested = VMFS_TESTED_FENCE | VMFS_TESTED_OUTLASTS_POWER | VMFS_TESTED_MISCOMPARES;
    struct vmfs_format_opts f = { .name = "ds1", .tested = &tested };
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "one", .warn = warn };
    struct gr_bdev *dev = open_mem(mem, true);
    struct vmfs_device_info seen = { 0 };
    struct second_nexus nexus = { .mem = mem };
    struct gr_bdev *member;
    o.stranger = second_nexus;
    o.warn_arg = &nexus;
    (void)arg;
    OK(vmfs_format(gr_fiber_loop(), &dev, 1, &f, &err));
    OK(gr_bdev_mem_open_shared(gr_fiber_loop(), mem, &member));
    OK(member->fence->enter(member, 99, &err));
    OK(gr_chan_open(member, gr_fiber_loop(), &way_in));
    for (int lie = -1; lie < 5; lie++) {
        struct gr_err e = { 0 };
        struct vmfs *v;
        gr_bdev_put(dev);
        dev = open_mem(mem, true);
        honest = lying = *dev->fence;
        honest_ops = lying_ops = *dev->ops;
        if (lie == 0)
            lying.keys = no_keys;
        if (lie == 1)
            lying.persists = forgetful;
        if (lie == 2)
            lying_ops.submit = always_equal;
        nexus.inside = lie == 3;
        o.stranger = lie == 2 ? NULL : second_nexus; /* one nexus sees that by itself */
        dev->fence = &lying;
        dev->ops = &lying_ops;
        int r = vmfs_join(gr_fiber_loop(), &dev, 1, &o, &v, &e);
        if (lie < 0 || lie == 4) { /* honest before and afterwards: nobody is kept out for good */
            assert_int_equal(r, 0);
            OK(vmfs_devices(v, keep_info, &seen, &err));
            assert_int_equal(seen.tested, tested);
            OK(vmfs_leave(v, &err));
            assert_true(nexus.asked > 0);
            continue;
        }
        assert_int_equal(r, -EOPNOTSUPP);
        assert_non_null(strstr(e.text, says[lie]));
        assert_non_null(strstr(e.text, "does not honour any more"));
    }
    gr_chan_close(way_in);
    OK(member->fence->leave(member, &err));
    gr_bdev_put(member);
    gr_bdev_put(dev);
    gr_mem_free(mem);
    return 0;
}

static void honour(void **state)
{
    (void)state;
    test_in_fiber(honour_fn, NULL);
}

TEST_MAIN(TEST(degraded), TEST(honour), TEST(alone), TEST(leased), TEST(cut_while_leaving), TEST(refused), TEST(hosts_on_files), TEST(hosts_on_luns), TEST(unaware), TEST(cut_anywhere))
