/* Directories and files by number: names, owners and times, any length, files without a name; on two hosts, and after a crash. */
#include "common/fiber.h"
#include "tests/lib/test.h"
#include "vmfs/files.h"
#include <stdlib.h>
#include <string.h>

#define MIB ((uint64_t)1 << 20)

struct host {
    struct gr_bdev *dev;
    struct vmfs *v;
    uint64_t kept; /* an object without a name that "another host" has open */
};

static void line(void *arg, const char *text)
{
    print_message("# %s\n", text);
}

static bool in_use(void *arg, uint64_t id)
{
    return ((struct host *)arg)->kept == id;
}

static void join(struct host *h, struct gr_mem *mem, const char *name)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = name, .warn = line, .warn_arg = h, .in_use = in_use };
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), mem, &h->dev), 0);
    OK(vmfs_join(gr_fiber_loop(), &h->dev, 1, &o, &h->v, &err));
}

static void leave(struct host *h)
{
    OK(vmfs_leave(h->v, &err));
    gr_bdev_put(h->dev);
}

static void crash(struct host *h)
{
    vmfs_abandon(h->v);
    gr_bdev_put(h->dev);
}

static struct gr_mem *format(void)
{
    struct vmfs_format_opts f = { .name = "ds1" };
    struct gr_mem *mem = gr_mem_new(64 * MIB);
    struct gr_bdev *dev;
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), mem, &dev), 0);
    OK(vmfs_format(gr_fiber_loop(), &dev, 1, &f, &err));
    gr_bdev_put(dev);
    return mem;
}

static void check(struct host *h)
{
    struct vmfs_check_report rep;
    OK(vmfs_check(h->v, line, NULL, &rep, &err));
    assert_int_equal(rep.leaked_units, 0);
}

static const struct vmfs_posix posix = { 0640, 5, 6, 1, 2, 3 };

static uint64_t make(struct host *h, uint64_t dir, const char *name, enum vmfs_type type)
{
    uint64_t id = 0;
    OK(vmfs_make(h->v, dir, name, type, &posix, &id, &err));
    return id;
}

static int count(void *arg, const char *name, uint64_t id, enum vmfs_type type)
{
    ++*(unsigned *)arg;
    return 0;
}

static unsigned entries(struct host *h, uint64_t dir)
{
    unsigned n = 0;
    OK(vmfs_list(h->v, dir, count, &n, &err));
    return n;
}

static int names_fn(void *arg)
{
    struct gr_mem *mem = format();
    struct host a = { 0 }, b = { 0 };
    struct vmfs_node n;
    struct vmfs_lost lost;
    uint64_t id = 0, x, y, f, g;
    char name[300];
    join(&a, mem, "a");
    join(&b, mem, "b");
    assert_true(vmfs_files_kept(a.v));
    x = make(&a, VMFS_ROOT_ID, "x", VMFS_DIR);
    y = make(&b, x, "y", VMFS_DIR); /* what a made, b sees at once */
    f = make(&a, y, "f", VMFS_FILE);
    OK(vmfs_look(b.v, y, "f", &n, &err));
    assert_int_equal(n.id, f);
    assert_int_equal(n.owner_slot, vmfs_own_slot(a.v));
    assert_true(n.has_posix && n.posix.mode == 0640 && n.posix.uid == 5 && n.posix.gid == 6 && n.posix.ctime_ns == 3);
    FAILS(-EEXIST, "", vmfs_make(b.v, y, "f", VMFS_FILE, &posix, &id, &err));
    assert_int_equal(id, f);
    memset(name, 'n', sizeof name - 1);
    name[256] = 0;
    FAILS(-ENAMETOOLONG, "", vmfs_make(a.v, x, name, VMFS_DIR, &posix, &id, &err));
    name[255] = 0;
    make(&a, x, name, VMFS_DIR);
    FAILS(-EINVAL, "", vmfs_make(a.v, x, "a/b", VMFS_DIR, &posix, &id, &err));
    FAILS(-EINVAL, "", vmfs_make(a.v, x, "a:b", VMFS_DIR, &posix, &id, &err));
    FAILS(-ENOTDIR, "", vmfs_make(a.v, f, "in a file", VMFS_DIR, &posix, &id, &err));
    /* a directory's owner and times; entries move them */
    struct vmfs_posix p = { 02775, 7, 8, 10, 20, 30 };
    OK(vmfs_dir_set_posix(b.v, y, &p, &err));
    OK(vmfs_unlink(b.v, x, name, true, 0, 99, &lost, &err));
    OK(vmfs_look(a.v, y, "", &n, &err));
    assert_true(n.posix.mode == 02775 && n.posix.uid == 7 && n.posix.mtime_ns == 20);
    assert_int_equal(n.size, 1);
    OK(vmfs_look(a.v, x, "", &n, &err));
    assert_int_equal(n.posix.mtime_ns, 99);
    /* moving */
    FAILS(-EINVAL, "", vmfs_move(a.v, VMFS_ROOT_ID, "x", y, "z", 0, 0, 1, &lost, &err));
    FAILS(-ENOTEMPTY, "", vmfs_unlink(a.v, VMFS_ROOT_ID, "x", true, 0, 1, &lost, &err));
    FAILS(-ENOTDIR, "", vmfs_unlink(a.v, y, "f", true, 0, 1, &lost, &err));
    FAILS(-EISDIR, "", vmfs_unlink(a.v, x, "y", false, 0, 1, &lost, &err));
    /* what was looked up is meant, not what has its name by now */
    uint64_t e1 = make(&b, VMFS_ROOT_ID, "e1", VMFS_DIR), e2 = make(&b, VMFS_ROOT_ID, "e2", VMFS_DIR);
    FAILS(-ESTALE, "names something else", vmfs_unlink(a.v, VMFS_ROOT_ID, "e1", true, e2, 1, &lost, &err));
    FAILS(-ESTALE, "", vmfs_move(a.v, VMFS_ROOT_ID, "e1", VMFS_ROOT_ID, "e2", 0, e1, 1, &lost, &err));
    FAILS(-ESTALE, "", vmfs_move(a.v, VMFS_ROOT_ID, "e1", VMFS_ROOT_ID, "e3", 0, e2, 1, &lost, &err)); /* nothing is there any more */
    OK(vmfs_move(a.v, VMFS_ROOT_ID, "e1", VMFS_ROOT_ID, "e2", 0, e2, 1, &lost, &err));
    OK(vmfs_unlink(b.v, VMFS_ROOT_ID, "e2", true, e1, 1, &lost, &err));
    g = make(&b, VMFS_ROOT_ID, "g", VMFS_FILE);
    FAILS(-EEXIST, "", vmfs_move(a.v, y, "f", VMFS_ROOT_ID, "g", VMFS_MOVE_KEEP, 0, 1, &lost, &err));
    OK(vmfs_move(a.v, y, "f", VMFS_ROOT_ID, "g", VMFS_MOVE_SWAP, 0, 1, &lost, &err));
    OK(vmfs_look(b.v, y, "f", &n, &err));
    assert_int_equal(n.id, g);
    FAILS(-GR_ELOCKED, "", vmfs_move(a.v, VMFS_ROOT_ID, "g", y, "f", 0, 0, 1, &lost, &err)); /* b must give g up first */
    assert_true(lost.id == g && lost.owner_slot == (int)vmfs_own_slot(b.v));
    OK(vmfs_release_id(b.v, g, "g", &err));
    OK(vmfs_move(a.v, VMFS_ROOT_ID, "g", y, "f", 0, 0, 1, &lost, &err));
    assert_int_equal(lost.id, g);
    OK(vmfs_look(b.v, g, "", &n, &err)); /* it lives on, without a name */
    OK(vmfs_file_end(a.v, g, &err));
    OK(vmfs_settle(a.v, 5000));
    FAILS(-ENOENT, "", vmfs_look(b.v, g, "", &n, &err));
    assert_int_equal(entries(&b, VMFS_ROOT_ID), 1);
    assert_int_equal(entries(&a, y), 1);
    OK(vmfs_create(a.v, "x/disk", VMFS_DISK, MIB, VMFS_THIN, &err));
    FAILS(-EPERM, "", vmfs_unlink(a.v, x, "disk", false, 0, 1, &lost, &err));
    leave(&b);
    check(&a);
    leave(&a);
    gr_mem_free(mem);
    return 0;
}

static void put(struct vmfs_disk *d, uint64_t off, size_t len, uint8_t value)
{
    struct gr_chan *ch;
    uint8_t *buf = malloc(len);
    memset(buf, value, len);
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    assert_int_equal(gr_pwrite(ch, buf, len, off, 0), 0);
    gr_chan_close(ch);
    free(buf);
}

static void holds(struct vmfs_disk *d, uint64_t off, size_t len, uint8_t value)
{
    struct gr_chan *ch;
    uint8_t *buf = malloc(len);
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    assert_int_equal(gr_pread(ch, buf, len, off), 0);
    for (size_t i = 0; i < len; i++)
        assert_int_equal(buf[i], value);
    gr_chan_close(ch);
    free(buf);
}

static int length_fn(void *arg)
{
    struct gr_mem *mem = format();
    struct host a = { 0 };
    struct vmfs_disk *d;
    struct vmfs_node n;
    join(&a, mem, "a");
    uint64_t f = make(&a, VMFS_ROOT_ID, "f", VMFS_FILE);
    OK(vmfs_open_id(a.v, f, "f", &d, NULL, &err));
    OK(vmfs_file_resize(d, 300001, &err));
    put(d, 0, 300032, 7); /* whole sectors: what is behind the length counts as well, until it is cut */
    OK(vmfs_file_resize(d, 300001, &err));
    OK(vmfs_file_resize(d, 5001, &err));
    OK(vmfs_file_resize(d, 9000, &err));
    holds(d, 0, 4608, 7);
    holds(d, 5120, 4096, 0); /* cut off, it does not come back */
    OK(vmfs_file_resize(d, 0, &err));
    OK(vmfs_file_resize(d, (1ull << 40) + 1, &err));
    put(d, 1ull << 39, 4096, 9);
    FAILS(-EFBIG, "", vmfs_file_resize(d, VMFS_FILE_MAX + 1, &err));
    struct vmfs_posix p = { 04755, 1, 2, -5, 6, 7 };
    OK(vmfs_file_set_posix(d, &p, &err));
    check(&a);
    vmfs_close(d);
    crash(&a); /* nothing was flushed, but all of it was answered */
    join(&a, mem, "a");
    OK(vmfs_open_id(a.v, f, "f", &d, NULL, &err));
    vmfs_disk_node(d, &n);
    assert_int_equal(n.size, (1ull << 40) + 1);
    assert_true(n.posix.mode == 04755 && n.posix.atime_ns == -5);
    holds(d, 1ull << 39, 4096, 9);
    holds(d, 0, 65536, 0);
    vmfs_close(d);
    check(&a);
    leave(&a);
    gr_mem_free(mem);
    return 0;
}

/* A disk that is no multiple of a block: its last block has pieces behind the end, which go when it is cut. */
static int cut_fn(void *arg)
{
    struct gr_mem *mem = format();
    struct host a = { 0 };
    struct vmfs_disk *d;
    join(&a, mem, "a");
    OK(vmfs_create(a.v, "disk", VMFS_DISK, MIB + 8192, VMFS_THIN, &err));
    OK(vmfs_open(a.v, "disk", &d, NULL, &err));
    put(d, MIB, 4096, 1);
    OK(vmfs_resize(d, 512 << 10, true, &err));
    check(&a);
    vmfs_close(d);
    leave(&a);
    gr_mem_free(mem);
    return 0;
}

/* A file without a name is given back by the next join, unless another host has it open. */
static int lost_fn(void *arg)
{
    struct gr_mem *mem = format();
    struct host a = { 0 };
    struct vmfs_disk *d;
    struct vmfs_lost lost;
    struct vmfs_node n;
    join(&a, mem, "a");
    uint64_t f = make(&a, VMFS_ROOT_ID, "f", VMFS_FILE), g = make(&a, VMFS_ROOT_ID, "g", VMFS_FILE);
    OK(vmfs_open_id(a.v, f, "f", &d, NULL, &err));
    OK(vmfs_file_resize(d, MIB, &err));
    put(d, 0, MIB, 3);
    OK(vmfs_unlink(a.v, VMFS_ROOT_ID, "f", false, 0, 1, &lost, &err));
    assert_int_equal(lost.id, f);
    OK(vmfs_unlink(a.v, VMFS_ROOT_ID, "g", false, 0, 1, &lost, &err));
    holds(d, 0, MIB, 3);
    FAILS(-EBUSY, "", vmfs_file_end(a.v, f, &err));
    check(&a);
    vmfs_close(d);
    crash(&a);
    a.kept = f;
    join(&a, mem, "a");
    OK(vmfs_settle(a.v, 5000));
    OK(vmfs_look(a.v, f, "", &n, &err)); /* somebody has it open */
    FAILS(-ENOENT, "", vmfs_look(a.v, g, "", &n, &err));
    OK(vmfs_file_end(a.v, f, &err));
    OK(vmfs_settle(a.v, 5000));
    FAILS(-ENOENT, "", vmfs_look(a.v, f, "", &n, &err));
    OK(vmfs_file_end(a.v, f, &err)); /* another host may have been quicker */
    check(&a);
    leave(&a);
    gr_mem_free(mem);
    return 0;
}

static void names(void **state) { test_in_fiber(names_fn, NULL); }
static void lengths(void **state) { test_in_fiber(length_fn, NULL); }
static void cut_disk(void **state) { test_in_fiber(cut_fn, NULL); }
static void lost_files(void **state) { test_in_fiber(lost_fn, NULL); }
TEST_MAIN(TEST(names), TEST(lengths), TEST(cut_disk), TEST(lost_files))
