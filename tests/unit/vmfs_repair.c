/* check --repair beyond single rules (those: vmfs_check.c): whole folders without a name, what cannot be read keeps its name and its space, repairs
 * beside writes, other hosts, and how much memory a check takes. */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1ull << 20)
struct site {
    struct gr_loop *loop;
    struct gr_mem *mem;
    struct gr_bdev *dev;
    struct gr_chan *raw;
    struct vmfs *v;
    char said[16384];
};

static void join_as(struct site *s, const char *host, struct gr_bdev *dev, struct vmfs **ret)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = host };
    OK(vmfs_join(s->loop, &dev, 1, &o, ret, &err));
}

static void make(struct site *s, uint64_t size)
{
    struct vmfs_format_opts f = { .name = "ds1" };
    memset(s, 0, sizeof *s);
    s->loop = gr_fiber_loop();
    s->mem = gr_mem_new(size);
    assert_int_equal(gr_bdev_mem_open(s->loop, s->mem, &s->dev), 0);
    OK(vmfs_format(s->loop, &s->dev, 1, &f, &err));
    assert_int_equal(gr_chan_open(s->dev, s->loop, &s->raw), 0);
    join_as(s, "one", s->dev, &s->v);
}

static void unmake(struct site *s)
{
    OK(vmfs_leave(s->v, &err));
    gr_chan_close(s->raw);
    gr_bdev_put(s->dev);
    gr_mem_free(s->mem);
}

static void line(void *arg, const char *text)
{
    struct site *s = arg;
    size_t n = strlen(s->said);
    snprintf(s->said + n, sizeof s->said - n, "%s\n", text);
}

static int repair(struct site *s, struct vmfs_check_report *rep)
{
    s->said[0] = 0;
    return vmfs_repair(s->v, line, s, rep, NULL);
}

static void put(struct gr_chan *ch, uint64_t off, size_t len, unsigned seed)
{
    uint8_t *b = aligned_alloc(4096, len);
    memset(b, (int)seed, len);
    assert_int_equal(gr_pwrite(ch, b, len, off, 0), 0);
    free(b);
}

static void make_disk(struct site *s, const char *path, size_t len, unsigned seed)
{
    struct vmfs_disk *d;
    struct gr_chan *ch;
    OK(vmfs_create(s->v, path, VMFS_DISK, 16 * MIB, VMFS_THIN, &err));
    OK(vmfs_open(s->v, path, &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), s->loop, &ch), 0);
    put(ch, 0, len, seed);
    gr_chan_close(ch);
    vmfs_close(d);
}

static void holds(struct site *s, const char *path, unsigned seed)
{
    struct vmfs_disk *d;
    struct gr_chan *ch;
    uint8_t *b = aligned_alloc(4096, 65536), *want = malloc(65536);
    memset(want, (int)seed, 65536);
    OK(vmfs_open(s->v, path, &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), s->loop, &ch), 0);
    assert_int_equal(gr_pread(ch, b, 65536, 0), 0);
    assert_memory_equal(b, want, 65536);
    gr_chan_close(ch);
    vmfs_close(d);
    free(b);
    free(want);
}

/* Change an inode in both copies, checksum right. Nobody has joined. */
static void inode_change(struct site *s, const struct vsuper *sb, uint64_t id, void (*fn)(struct vmfs_inode_disk *i, uint64_t arg), uint64_t arg)
{
    for (int copy = 0; copy < 2; copy++) {
        uint64_t a = vhome_addr(&sb->inodes, (uint32_t)id, 0, copy);
        struct vmfs_inode_disk *i = aligned_alloc(4096, 4096);
        assert_int_equal(gr_pread(s->raw, i, 4096, vmfs_addr_unit(a) * 4096), 0);
        fn(i, arg);
        vhdr_move(i, 1, a);
        assert_int_equal(gr_pwrite(s->raw, i, 4096, vmfs_addr_unit(a) * 4096, 0), 0);
        free(i);
    }
}

static void forget_names(struct vmfs_inode_disk *i, uint64_t arg)
{
    i->blob_bytes = gr_le32_of(0);
}

/* The first entry names another object. */
static void name_other(struct vmfs_inode_disk *i, uint64_t arg)
{
    ((struct vmfs_dirent_disk *)(void *)i->blob)->id = gr_le64_of(arg);
}

static uint64_t id_of(struct site *s, const char *path)
{
    struct vmfs_stat st;
    OK(vmfs_stat(s->v, path, &st, &err));
    return st.id;
}

static int folders(void *arg)
{
    struct site s;
    struct vmfs_check_report rep;
    char path[64];
    (void)arg;
    make(&s, 96 * MIB);
    make_disk(&s, "a/b/c/disk", 65536, 5);
    make_disk(&s, "top", 65536, 6);
    OK(vmfs_mkdir(s.v, "x/y", true, &err));
    uint64_t a = id_of(&s, "a"), top = id_of(&s, "top"), x = id_of(&s, "x"), y = id_of(&s, "x/y");
    struct vsuper sb = s.v->sb;
    OK(vmfs_leave(s.v, &err));
    inode_change(&s, &sb, VMFS_INODE_ROOT, forget_names, 0);
    join_as(&s, "one", s.dev, &s.v);
    if (repair(&s, &rep) != 0)
        fail_msg("%s", s.said);
    assert_int_equal(rep.mended, 3); /* a, top, x: what is below has its name with them */
    snprintf(path, sizeof path, "lost+found/object-%llu/b/c/disk", (unsigned long long)a);
    holds(&s, path, 5);
    snprintf(path, sizeof path, "lost+found/object-%llu", (unsigned long long)top);
    holds(&s, path, 6);
    OK(vmfs_rename(s.v, path, "top", &err));
    /* two that name each other, and nobody else does */
    snprintf(path, sizeof path, "lost+found/object-%llu/y/z", (unsigned long long)x);
    OK(vmfs_mkdir(s.v, path, true, &err));
    OK(vmfs_leave(s.v, &err));
    inode_change(&s, &sb, y, name_other, x);
    inode_change(&s, &sb, VMFS_INODE_ROOT, forget_names, 0);
    join_as(&s, "one", s.dev, &s.v);
    if (repair(&s, &rep) != -GR_ECORRUPT) /* that circle has a name, and one name too many: which one to take away is not known */
        fail_msg("%s", s.said);
    assert_non_null(strstr(s.said, "2 directory entries name it"));
    unmake(&s);
    return 0;
}
static void folders_without_a_name_are_found_again(void **state)
{
    (void)state;
    test_in_fiber(folders, NULL);
}

/* What cannot be read may use what nothing seems to use: it keeps its name, its space stays, and it is told every time. */
static int unreadable(void *arg)
{
    struct site s;
    struct vmfs_check_report rep;
    struct vmfs_info before, after;
    struct vmfs_stat st;
    (void)arg;
    make(&s, 96 * MIB);
    make_disk(&s, "a/disk", 4 << 20, 5);
    make_disk(&s, "other", 65536, 6);
    uint64_t id = id_of(&s, "a/disk");
    vmfs_info(s.v, &before);
    struct vsuper sb = s.v->sb;
    OK(vmfs_leave(s.v, &err));
    for (int copy = 0; copy < 2; copy++)
        put(s.raw, vmfs_addr_unit(vhome_addr(&sb.inodes, (uint32_t)id, 0, copy)) * 4096, 4096, 0x55);
    join_as(&s, "one", s.dev, &s.v);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(repair(&s, &rep), -GR_ECORRUPT);
        assert_int_equal(rep.mended, 0);
        assert_non_null(strstr(s.said, "of which the inode cannot be read"));
        vmfs_info(s.v, &after);
        assert_true(after.free <= before.free + MIB);
    }
    holds(&s, "other", 6);
    assert_true(vmfs_stat(s.v, "a/disk", &st, NULL) < 0);
    unmake(&s);
    return 0;
}
static void what_cannot_be_read_loses_nothing(void **state)
{
    (void)state;
    test_in_fiber(unreadable, NULL);
}

/* ---- beside writes ---- */
struct writer {
    struct site *s;
    bool stop, ended;
    unsigned n;
    struct gr_fqueue q;
};

static void write_on(void *arg)
{
    struct writer *w = arg;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    OK(vmfs_open(w->s->v, "busy", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), w->s->loop, &ch), 0);
    while (!w->stop) {
        char name[16];
        put(ch, w->n * 7 % 240 * 65536ull, 65536, w->n);
        snprintf(name, sizeof name, "s%u", w->n++);
        OK(snap_create(&d, 1, name, &err));
        put(ch, w->n * 3 % 240 * 65536ull, 4096, w->n);
        OK(snap_delete(d, name, false, &err));
        gr_fiber_sleep_ms(1);
    }
    gr_chan_close(ch);
    vmfs_close(d);
    w->ended = true;
    gr_fqueue_wake_all(&w->q);
}

static void plant_leak(struct site *s, const struct vsuper *sb, unsigned n)
{
    struct vmfs_bitmap_disk *b = aligned_alloc(4096, 4096);
    for (int copy = 0; copy < 2; copy++) {
        uint64_t a = vhome_addr(&sb->regions, 0, 1, copy);
        uint32_t at = sb->region_units - 1, left = n;
        assert_int_equal(gr_pread(s->raw, b, 4096, vmfs_addr_unit(a) * 4096), 0);
        for (; left; at--)
            if (!(b->bits[at / 8] >> at % 8 & 1)) {
                b->bits[at / 8] |= (uint8_t)(1u << at % 8);
                left--;
            }
        vhdr_move(b, 1, a);
        assert_int_equal(gr_pwrite(s->raw, b, 4096, vmfs_addr_unit(a) * 4096, 0), 0);
    }
    free(b);
}

static int online(void *arg)
{
    struct site s;
    struct vmfs_check_report rep;
    struct writer w = { .s = &s };
    (void)arg;
    make(&s, 96 * MIB);
    make_disk(&s, "busy", MIB, 1);
    struct vsuper sb = s.v->sb;
    OK(vmfs_leave(s.v, &err));
    plant_leak(&s, &sb, 300);
    join_as(&s, "one", s.dev, &s.v);
    assert_int_equal(gr_fiber_start(s.loop, write_on, &w), 0);
    gr_fiber_sleep_ms(20);
    if (repair(&s, &rep) != 0)
        fail_msg("%s", s.said);
    assert_true(rep.mended >= 1);
    assert_non_null(strstr(s.said, "given back"));
    unsigned n = w.n;
    gr_fiber_sleep_ms(30);
    assert_true(w.n > n);
    w.stop = true;
    while (!w.ended)
        gr_fqueue_wait(&w.q);
    OK(vmfs_check(s.v, NULL, NULL, &rep, &err));
    /* not while others are there: what they change looks wrong, or goes wrong */
    struct gr_bdev *dev2;
    struct vmfs *v2;
    assert_int_equal(gr_bdev_mem_open(s.loop, s.mem, &dev2), 0);
    join_as(&s, "two", dev2, &v2);
    assert_int_equal(repair(&s, &rep), -GR_ELOCKED);
    OK(vmfs_leave(v2, &err));
    gr_bdev_put(dev2);
    assert_int_equal(repair(&s, &rep), 0);
    unmake(&s);
    return 0;
}
static void it_is_repaired_beside_writes(void **state)
{
    (void)state;
    test_in_fiber(online, NULL);
}

/* So much as it is told for units, a bit for each, and a little for each object: not more for more data. */
static int bounded(void *arg)
{
    struct site s;
    struct vmfs_check_report rep, more;
    struct vmfs_info info;
    (void)arg;
    make(&s, 512 * MIB);
    for (unsigned i = 0; i < 24; i++) {
        char path[40];
        snprintf(path, sizeof path, "full-%u", i);
        make_disk(&s, path, 16 * MIB, i);
    }
    OK(vmfs_check(s.v, NULL, NULL, &more, &err));
    OK(vmfs_leave(s.v, &err));
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "one", .check_memory = 64 << 10 };
    OK(vmfs_join(s.loop, &s.dev, 1, &o, &s.v, &err));
    OK(vmfs_check(s.v, NULL, NULL, &rep, &err));
    assert_int_equal(rep.pieces, more.pieces);
    assert_int_equal(rep.nodes, more.nodes);
    assert_int_equal(rep.objects, more.objects);
    print_message("# %llu pieces: %llu KiB of memory at once\n", (unsigned long long)more.pieces, (unsigned long long)more.memory >> 10);
    for (unsigned i = 0; i < 400; i++) {
        char path[40];
        snprintf(path, sizeof path, "d%u/disk-%u", i / 50, i);
        OK(vmfs_create(s.v, path, VMFS_DISK, 1 << 20, VMFS_THIN, &err));
    }
    OK(vmfs_check(s.v, NULL, NULL, &more, &err));
    vmfs_info(s.v, &info);
    uint64_t regions = info.n_regions * (info.region_bytes / VMFS_UNIT);
    print_message("# %llu objects, %llu units: %llu KiB of memory; with %llu objects %llu KiB\n", (unsigned long long)rep.objects, (unsigned long long)regions,
                  (unsigned long long)rep.memory >> 10, (unsigned long long)more.objects, (unsigned long long)more.memory >> 10);
    uint64_t fixed = GR_MAX((uint64_t)64 << 10, info.region_bytes / VMFS_UNIT * 4) + regions / 8 + info.n_regions * 200;
    assert_true(rep.memory <= fixed + rep.objects * 1024);
    assert_true(more.memory <= fixed + more.objects * 1024);
    unmake(&s);
    return 0;
}
static void memory_is_bounded(void **state)
{
    (void)state;
    test_in_fiber(bounded, NULL);
}

TEST_MAIN(TEST(folders_without_a_name_are_found_again), TEST(what_cannot_be_read_loses_nothing), TEST(it_is_repaired_beside_writes),
          TEST(memory_is_bounded))
