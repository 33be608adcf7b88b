/* A device leaves while disks, snapshots, clones and copies on it are in use: everything is as it was, before and after a cut, and again
 * when the device that took it leaves, too. */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/fiber.h"
#include "snapshot/snapshot.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>

#define MIB ((uint64_t)1 << 20)
#define PIECES 4096u /* of a disk: 16 MiB */
#define DISKS 4u
#define DEVICES 4u

struct world {
    struct gr_mem *mem[DEVICES];
    struct gr_bdev *dev[DEVICES];
    struct vmfs *v;
    struct vmfs_disk *disk[DISKS];
    struct gr_chan *ch[DISKS];
    uint32_t now[DISKS][PIECES], then[PIECES]; /* what is in each piece, 0: zeros; of disk 0 at snapshot "old" */
    uint32_t newest;
    uint64_t rng;
    bool stop, sharing;
    unsigned writers, writes, moves, copies;
    uint32_t next_writer;
    struct gr_fqueue ended;
    bool thick;
};

static void say(void *arg, const char *text)
{
    (void)arg;
    print_message("# %s\n", text);
}

static void fill(uint8_t *p, uint32_t generation)
{
    for (uint32_t i = 0; i < 4096; i += 4) {
        uint32_t v = generation ? generation * 2654435761u + i : 0;
        memcpy(p + i, &v, 4);
    }
}

static void open_all(struct world *w)
{
    char name[8];
    for (unsigned i = 0; i < DISKS; i++) {
        snprintf(name, sizeof name, "d%u", i);
        OK(vmfs_open(w->v, name, &w->disk[i], NULL, &err));
        assert_int_equal(gr_chan_open(vmfs_bdev(w->disk[i]), gr_fiber_loop(), &w->ch[i]), 0);
    }
}

static void close_all(struct world *w)
{
    for (unsigned i = 0; i < DISKS; i++) {
        gr_chan_close(w->ch[i]);
        vmfs_close(w->disk[i]);
    }
}

static void join(struct world *w)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "one", .warn = say };
    struct gr_bdev *dev[DEVICES];
    unsigned n = 0;
    for (unsigned i = 0; i < DEVICES; i++)
        if (w->dev[i])
            dev[n++] = w->dev[i];
    OK(vmfs_join(gr_fiber_loop(), dev, n, &o, &w->v, &err));
}

static void write_some(struct world *w, unsigned disk, uint32_t piece, uint32_t n)
{
    uint8_t *buf = vunits_alloc(n);
    for (uint32_t i = 0; i < n; i++)
        fill(buf + i * 4096u, w->now[disk][piece + i] = ++w->newest);
    OK(gr_pwrite(w->ch[disk], buf, n * 4096u, piece * 4096ull, 0));
    free(buf);
}

/* Pieces of the other end of another disk become ones of this, shared where that can be. */
static void copy_some(struct world *w, uint32_t piece, uint32_t n)
{
    struct gr_bio bio = { .op = GR_OP_COPY, .off = piece * 4096ull, .len = n * 4096ull, .copy_src = w->ch[1], .copy_src_off = piece * 4096ull };
    int r = gr_submit_wait(w->ch[2], &bio);
    if (r == 0)
        memcpy(&w->now[2][piece], &w->now[1][piece], n * sizeof w->now[0][0]);
    w->copies += r == 0;
}

/* Each writer has pieces of its own, so that the last write of each is known. */
static void writer(void *arg)
{
    struct world *w = arg;
    uint32_t own = w->next_writer++;
    while (!w->stop) {
        unsigned disk = (unsigned)(test_rand(&w->rng) % 3), what = (unsigned)(test_rand(&w->rng) % 16);
        uint32_t n = 1 + (uint32_t)(test_rand(&w->rng) % 20), piece = (uint32_t)(test_rand(&w->rng) % (PIECES / 256)) * 256 + own * 64 + (uint32_t)(test_rand(&w->rng) % 44);
        if (what == 0 && w->sharing) {
            copy_some(w, piece, n);
        } else if (what < 3) {
            for (uint32_t i = 0; i < n; i++)
                w->now[disk][piece + i] = 0;
            OK(gr_unmap(w->ch[disk], piece * 4096ull, n * 4096ull, 0));
        } else {
            write_some(w, disk, piece, n);
        }
        w->writes++;
        gr_fiber_yield();
    }
    if (--w->writers == 0)
        gr_fqueue_wake_all(&w->ended);
}

/* Snapshots come and go. */
static void snapper(void *arg)
{
    struct world *w = arg;
    char name[16];
    for (unsigned i = 0; !w->stop; i++) {
        snprintf(name, sizeof name, "s%u", i);
        OK(snap_create(&w->disk[i % 3], 1, name, &err));
        gr_fiber_sleep_ms(3);
        OK(snap_delete(w->disk[i % 3], name, false, &err));
        gr_fiber_sleep_ms(3);
    }
    if (--w->writers == 0)
        gr_fqueue_wake_all(&w->ended);
}

static void compare(struct gr_chan *ch, const uint32_t *generations, const char *what)
{
    static uint8_t is[64 * 4096], should[4096];
    for (uint32_t p = 0; p < PIECES; p += 64) {
        OK(gr_pread(ch, is, sizeof is, p * 4096ull));
        for (uint32_t i = 0; i < 64; i++) {
            fill(should, generations[p + i]);
            if (memcmp(is + i * 4096u, should, 4096) != 0)
                fail_msg("%s: piece %u is not as it was written (generation %u)", what, p + i, generations[p + i]);
        }
    }
}

static void verify(struct world *w)
{
    struct gr_bdev *snap;
    struct gr_chan *ch;
    struct vmfs_check_report rep;
    for (unsigned i = 0; i < DISKS; i++)
        compare(w->ch[i], i == 3 ? w->then : w->now[i], "disk");
    OK(snap_open(w->disk[0], "old", &snap, &err));
    assert_int_equal(gr_chan_open(snap, gr_fiber_loop(), &ch), 0);
    compare(ch, w->then, "snapshot");
    gr_chan_close(ch);
    gr_bdev_put(snap);
    OK(vmfs_check(w->v, say, NULL, &rep, &err));
    assert_int_equal(rep.leaked_units, 0);
}

/* Disks 0..2 are written, 0 has snapshots, 3 is a clone of one; parts of 1 were copied by sharing to 2. */
static void prepare(struct world *w)
{
    char name[8];
    for (unsigned i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "d%u", i);
        OK(vmfs_create(w->v, name, VMFS_DISK, PIECES * 4096ull, i == 0 && w->thick ? VMFS_THICK : VMFS_THIN, &err));
        OK(vmfs_open(w->v, name, &w->disk[i], NULL, &err));
        assert_int_equal(gr_chan_open(vmfs_bdev(w->disk[i]), gr_fiber_loop(), &w->ch[i]), 0);
        for (uint32_t p = 0; p < PIECES; p += 64)
            write_some(w, i, p, 48);
    }
    for (unsigned k = 0; k < 300; k++)
        write_some(w, 0, (uint32_t)(test_rand(&w->rng) % (PIECES - 4)), 3);
    for (uint32_t p = 0; p < PIECES; p += 256)
        copy_some(w, p, 32);
    assert_true(w->copies > 0);
    OK(snap_create(&w->disk[0], 1, "old", &err));
    memcpy(w->then, w->now[0], sizeof w->then);
    for (unsigned k = 0; k < 300; k++)
        write_some(w, 0, (uint32_t)(test_rand(&w->rng) % (PIECES - 4)), 3);
    OK(snap_create(&w->disk[0], 1, "new", &err));
    OK(snap_clone(w->disk[0], "old", "d3", &err));
    for (unsigned i = 0; i < 3; i++) {
        OK(gr_flush(w->ch[i]));
        gr_chan_close(w->ch[i]);
        vmfs_close(w->disk[i]);
    }
    OK(vmfs_file_write(w->v, "conf/file", NULL, w->then, sizeof w->then, &err));
}

static void start(struct world *w, uint64_t first_size, uint64_t second_size, bool thick)
{
    struct vmfs_format_opts f = { .name = "ds1", .region_units = 1024 };
    const uint64_t more[] = { second_size, 400 * MIB };
    *w = (struct world){ .rng = test_seed(), .thick = thick };
    w->mem[0] = gr_mem_new(first_size);
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), w->mem[0], &w->dev[0]), 0);
    OK(vmfs_format(gr_fiber_loop(), w->dev, 1, &f, &err));
    join(w);
    for (unsigned i = 1; i < 3; i++) {
        struct vmfs_device_add a = { 0 };
        w->mem[i] = gr_mem_new(more[i - 1]);
        assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), w->mem[i], &w->dev[i]), 0);
        OK(vmfs_device_add(w->v, w->dev[i], &a, &err));
        if (i == 1)
            prepare(w); /* most of it lies on device 1 */
    }
}

static void end(struct world *w)
{
    for (unsigned i = 0; i < DEVICES; i++) {
        gr_bdev_put(w->dev[i]);
        gr_mem_free(w->mem[i]);
    }
}

static int count_moves(void *arg, uint64_t done, uint64_t all, struct gr_err *err)
{
    struct world *w = arg;
    assert_true(done <= all);
    if (w->moves++ == 0) { /* nobody comes in meanwhile */
        struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "two", .warn = say };
        struct gr_bdev *dev[DEVICES];
        struct gr_err e = { 0 };
        struct vmfs *v;
        unsigned n = 0;
        for (unsigned i = 0; i < DEVICES; i++)
            if (w->mem[i])
                assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), w->mem[i], &dev[n++]), 0);
        assert_int_equal(vmfs_join(gr_fiber_loop(), dev, n, &o, &v, &e), -GR_ELOCKED);
        assert_non_null(strstr(e.text, "moving the content"));
        while (n)
            gr_bdev_put(dev[--n]);
    }
    gr_fiber_sleep_ms(1); /* guests have their turn */
    return 0;
}

/* The device goes, and what it is on with it. */
static void remove_device(struct world *w, unsigned n)
{
    struct vmfs_device_remove r = { .progress = count_moves, .arg = w };
    OK(vmfs_device_remove(w->v, n, &r, &err));
    assert_int_equal(vmfs_device_number(w->v, w->dev[n]), -ENOENT);
    gr_bdev_put(w->dev[n]);
    w->dev[n] = NULL;
    gr_mem_free(w->mem[n]);
    w->mem[n] = NULL;
}

static void load_start(struct world *w, bool snapshots)
{
    w->stop = false;
    w->sharing = snapshots;
    w->next_writer = 0;
    for (w->writers = 0; w->writers < 4; w->writers++)
        assert_int_equal(gr_fiber_start(gr_fiber_loop(), writer, w), 0);
    if (!snapshots) /* with them little is overwritten where it lies */
        return;
    w->writers++;
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), snapper, w), 0);
}

static void load_stop(struct world *w)
{
    w->stop = true;
    while (w->writers)
        gr_fqueue_wait(&w->ended);
}

static void file_ok(struct world *w)
{
    void *p;
    size_t n;
    OK(vmfs_file_read(w->v, "conf/file", MIB, &p, &n, &err));
    assert_int_equal(n, sizeof w->then);
    assert_memory_equal(p, w->then, n);
    free(p);
}

/* Reads on the first devices' small size; then device 1 leaves, then (to a new one) device 2. */
static void leaves(bool thick)
{
    struct world *w = gr_zalloc(sizeof *w);
    start(w, 40 * MIB, 640 * MIB, thick);
    open_all(w);
    memcpy(w->now[3], w->then, sizeof w->then);
    verify(w);
    for (unsigned i = 0; i < 600; i++) /* much of it would be overwritten where it lies */
        write_some(w, i % 3, (uint32_t)(test_rand(&w->rng) % (PIECES - 20)), 20);
    OK(vmfs_checkpoint(w->v, &err));
    load_start(w, false); /* disk 3 stays as it is */
    remove_device(w, 1);
    load_stop(w);
    print_message("# %u writes and %u copies beside %u moves\n", w->writes, w->copies, w->moves);
    assert_true(w->moves > 10);
    verify(w);
    file_ok(w);
    struct vmfs_info info;
    vmfs_info(w->v, &info);
    assert_int_equal(info.n_devices, 2);
    close_all(w);
    vmfs_abandon(w->v); /* what was written since is recovered */
    join(w);
    open_all(w);
    verify(w);
    file_ok(w);
    struct vmfs_device_add a = { 0 };
    w->mem[3] = gr_mem_new(400 * MIB);
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), w->mem[3], &w->dev[3]), 0);
    OK(vmfs_device_add(w->v, w->dev[3], &a, &err));
    load_start(w, true);
    remove_device(w, 2); /* it has what device 1 had: lists point to lists */
    load_stop(w);
    verify(w);
    file_ok(w);
    close_all(w);
    OK(vmfs_leave(w->v, &err));
    join(w);
    open_all(w);
    verify(w);
    OK(snap_delete(w->disk[0], "new", false, &err));
    OK(snap_settle(w->disk[0], &err));
    verify(w);
    close_all(w);
    OK(vmfs_release(w->v, "d3", &err));
    OK(vmfs_remove(w->v, "d3", &err));
    OK(vmfs_settle(w->v, 20000));
    struct vmfs_check_report rep;
    OK(vmfs_check(w->v, say, NULL, &rep, &err));
    assert_int_equal(rep.leaked_units, 0);
    OK(vmfs_leave(w->v, &err));
    end(w);
    free(w);
}

/* Refused for want of room, and all is as before; then there is room. */
static int room_fn(void *arg)
{
    struct world *w = gr_zalloc(sizeof *w);
    struct vmfs_device_remove r = { .progress = count_moves, .arg = w };
    struct vmfs_device_add a = { 0 };
    struct gr_err e = { 0 };
    struct vmfs_info before, after;
    static uint8_t mib[MIB];
    (void)arg;
    start(w, 40 * MIB, 640 * MIB, false); /* its journal holds the images of few regions */
    OK(vmfs_create(w->v, "big", VMFS_DISK, 1024 * MIB, VMFS_THIN, &err));
    OK(vmfs_open(w->v, "big", &w->disk[0], NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(w->disk[0]), gr_fiber_loop(), &w->ch[0]), 0);
    vmfs_info(w->v, &before);
    uint64_t n = before.free / MIB - 20;
    for (uint64_t i = 0; i < n; i++) {
        memset(mib, (int)(i + 1), sizeof mib);
        OK(gr_pwrite(w->ch[0], mib, MIB, i * MIB, 0));
    }
    OK(vmfs_checkpoint(w->v, &err));
    vmfs_info(w->v, &before);
    assert_int_equal(vmfs_device_remove(w->v, 1, &r, &e), -GR_ENOSPACE);
    assert_non_null(strstr(e.text, "MiB free"));
    vmfs_info(w->v, &after);
    assert_true(after.free >= before.free - MIB);
    memset(mib, (int)n + 1, sizeof mib);
    OK(gr_pwrite(w->ch[0], mib, MIB, n * MIB, 0));
    w->mem[3] = gr_mem_new(900 * MIB);
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), w->mem[3], &w->dev[3]), 0);
    OK(vmfs_device_add(w->v, w->dev[3], &a, &err));
    remove_device(w, 1);
    for (uint64_t i = 0; i <= n; i++) {
        OK(gr_pread(w->ch[0], mib, MIB, i * MIB));
        for (size_t k = 0; k < MIB; k += 4096)
            assert_int_equal(mib[k], (uint8_t)(i + 1));
    }
    gr_chan_close(w->ch[0]);
    vmfs_close(w->disk[0]);
    struct vmfs_check_report rep;
    OK(vmfs_check(w->v, say, NULL, &rep, &err));
    OK(vmfs_leave(w->v, &err));
    end(w);
    free(w);
    return 0;
}
static void room(void **state)
{
    (void)state;
    test_in_fiber(room_fn, NULL);
}

/* A disk with many leaves of several units: pieces of theirs in many blocks were written after a snapshot. */
static void wide(struct world *w, bool write)
{
    static uint8_t piece[4096], is[4096];
    struct vmfs_disk *d;
    struct gr_chan *ch;
    if (write)
        OK(vmfs_create(w->v, "wide", VMFS_DISK, 480 * MIB, VMFS_THIN, &err));
    OK(vmfs_open(w->v, "wide", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t leaf = 0; leaf < 60; leaf++)
            for (uint32_t block = 0; block < 20; block++) {
                uint64_t at = leaf * 8 * MIB + block * 65536 + round * 4096;
                fill(piece, (uint32_t)(at / 4096) + 1);
                if (write)
                    OK(gr_pwrite(ch, piece, sizeof piece, at, 0));
                else
                    OK(gr_pread(ch, is, sizeof is, at));
                if (!write)
                    assert_memory_equal(is, piece, sizeof is);
            }
        if (write && round == 0)
            OK(snap_create(&d, 1, "wide", &err));
    }
    gr_chan_close(ch);
    vmfs_close(d);
    OK(vmfs_checkpoint(w->v, &err));
}

/* What is free on the others lies in splinters that are hardly longer than a leaf. */
static int splinters_fn(void *arg)
{
    struct world *w = gr_zalloc(sizeof *w);
    static uint8_t part[32 * 4096];
    struct vmfs_disk *d;
    struct gr_chan *ch;
    struct vmfs_info info;
    uint64_t n = 0;
    (void)arg;
    start(w, 40 * MIB, 256 * MIB, false);
    wide(w, true);
    OK(vmfs_create(w->v, "fill", VMFS_DISK, 1024 * MIB, VMFS_THIN, &err));
    OK(vmfs_open(w->v, "fill", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    memset(part, 9, sizeof part);
    for (vmfs_info(w->v, &info); info.free > 15 * MIB; vmfs_info(w->v, &info))
        OK(gr_pwrite(ch, part, sizeof part, n++ * sizeof part, 0));
    OK(vmfs_checkpoint(w->v, &err));
    for (uint64_t i = 0; i < 2 * n; i++)
        OK(gr_unmap(ch, i * sizeof part / 2 + 2 * 4096, 13 * 4096, 0));
    OK(vmfs_checkpoint(w->v, &err));
    gr_chan_close(ch);
    vmfs_close(d);
    open_all(w);
    memcpy(w->now[3], w->then, sizeof w->then);
    struct vmfs_device_remove r = { .progress = count_moves, .arg = w };
    OK(vmfs_device_remove(w->v, 1, &r, &err));
    verify(w);
    close_all(w);
    OK(vmfs_leave(w->v, &err));
    gr_bdev_put(w->dev[1]);
    w->dev[1] = NULL;
    join(w);
    open_all(w);
    verify(w);
    wide(w, false);
    close_all(w);
    OK(vmfs_leave(w->v, &err));
    end(w);
    free(w);
    return 0;
}
static void splinters(void **state)
{
    (void)state;
    test_in_fiber(splinters_fn, NULL);
}

static int thin_fn(void *arg)
{
    (void)arg;
    leaves(false);
    return 0;
}
static int thick_fn(void *arg)
{
    (void)arg;
    leaves(true);
    return 0;
}
static void thin(void **state)
{
    (void)state;
    test_in_fiber(thin_fn, NULL);
}
static void thick(void **state)
{
    (void)state;
    test_in_fiber(thick_fn, NULL);
}

TEST_MAIN(TEST(thin), TEST(thick), TEST(room), TEST(splinters))
