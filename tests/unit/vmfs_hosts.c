/* Several devices under one volume; several hosts on one device; what a flush promises while a checkpoint runs. */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/fiber.h"
#include "vmfs/vmfs.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB ((uint64_t)1 << 20)

struct host {
    struct gr_loop *loop;
    struct gr_bdev *dev[3];
    unsigned n;
    struct vmfs *v;
};

static void warn(void *arg, const char *text)
{
    (void)arg;
    print_message("warning: %s\n", text);
}

static int try_join(struct host *h, struct gr_loop *loop, struct gr_mem *const *mem, unsigned n, const char *name, struct gr_err *err)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = name, .warn = warn };
    *h = (struct host){ .loop = loop, .n = n };
    for (unsigned i = 0; i < n; i++)
        assert_int_equal(gr_bdev_mem_open(loop, mem[i], &h->dev[i]), 0);
    return vmfs_join(loop, h->dev, n, &o, &h->v, err);
}

static void devs_put(struct host *h)
{
    for (unsigned i = 0; i < h->n; i++)
        gr_bdev_put(h->dev[i]);
}

static void join(struct host *h, struct gr_loop *loop, struct gr_mem *const *mem, unsigned n, const char *name)
{
    OK(try_join(h, loop, mem, n, name, &err));
}

static void leave(struct host *h)
{
    OK(vmfs_leave(h->v, &err));
    devs_put(h);
}

static void crash(struct host *h)
{
    vmfs_abandon(h->v);
    devs_put(h);
}

static void format(struct gr_loop *loop, struct gr_mem *const *mem, unsigned n)
{
    struct vmfs_format_opts f = { .name = "ds1" };
    struct gr_bdev *dev[3] = { 0 };
    for (unsigned i = 0; i < n; i++)
        assert_int_equal(gr_bdev_mem_open(loop, mem[i], &dev[i]), 0);
    OK(vmfs_format(loop, dev, n, &f, &err));
    for (unsigned i = 0; i < n; i++)
        gr_bdev_put(dev[i]);
}

static void check_clean(struct host *h)
{
    struct vmfs_check_report rep;
    OK(vmfs_check(h->v, warn, NULL, &rep, &err));
    assert_int_equal(rep.leaked_units, 0);
}

static void pattern(uint8_t *p, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)((i * 2654435761u >> 9) + seed * 131 + i / 4096);
}

/* Write (or compare) @len bytes of pattern @seed at @off of a disk. */
static void content(struct host *h, const char *path, uint64_t off, uint64_t len, uint64_t seed, bool write)
{
    static uint8_t a[1 << 20], b[1 << 20];
    struct vmfs_disk *d;
    struct gr_chan *ch;
    OK(vmfs_open(h->v, path, &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), h->loop, &ch), 0);
    for (uint64_t at = 0; at < len; at += MIB) {
        pattern(a, MIB, seed + at / MIB);
        if (write) {
            OK(gr_pwrite(ch, a, MIB, off + at, 0));
        } else {
            OK(gr_pread(ch, b, MIB, off + at));
            assert_memory_equal(a, b, MIB);
        }
    }
    if (write)
        OK(gr_flush(ch));
    gr_chan_close(ch);
    vmfs_close(d);
}

/* ---- several devices ---- */
static unsigned pages_of(struct gr_mem *m, uint64_t size)
{
    unsigned n = 0;
    for (uint64_t off = 0; off < size; off += 4096)
        n += gr_mem_page(m, off, false) != NULL;
    return n;
}

static int devices_fn(void *arg)
{
    struct gr_loop *loop = arg;
    struct gr_mem *mem[3] = { gr_mem_new(64 * MIB), gr_mem_new(96 * MIB), gr_mem_new(128 * MIB) };
    struct gr_mem *other[3] = { mem[2], mem[0], mem[1] }, *twice[3] = { mem[0], mem[1], mem[1] };
    struct host h;
    struct vmfs_info info;
    format(loop, mem, 3);
    join(&h, loop, mem, 3, "one");
    vmfs_info(h.v, &info);
    assert_int_equal(info.n_devices, 3);
    OK(vmfs_create(h.v, "d", VMFS_DISK, 1024 * MIB, VMFS_THIN, &err));
    content(&h, "d", 0, 200 * MIB, 7, true);
    for (unsigned i = 0; i < 3; i++)
        assert_true(pages_of(mem[i], (uint64_t[]){ 64, 96, 128 }[i] * MIB) > 2000); /* all of them carry data */
    check_clean(&h);
    crash(&h);
    join(&h, loop, other, 3, "one"); /* given in another order */
    content(&h, "d", 0, 200 * MIB, 7, false);
    check_clean(&h);
    leave(&h);

    struct gr_err e = { 0 };
    assert_int_equal(try_join(&h, loop, mem, 2, "one", &e), -ENODEV);
    devs_put(&h);
    assert_int_equal(try_join(&h, loop, twice, 3, "one", &e), -EINVAL);
    devs_put(&h);

    static uint8_t super[4096];
    memcpy(super, gr_mem_page(mem[0], 4096, true), 4096);
    memset(gr_mem_page(mem[0], 4096, true), 0, 4096); /* superblock A of the first device: B serves */
    join(&h, loop, mem, 3, "one");
    memcpy(gr_mem_page(mem[0], 4096, true), super, 4096);
    content(&h, "d", 0, 200 * MIB, 7, false);
    OK(vmfs_remove(h.v, "d", &err));
    OK(vmfs_settle(h.v, 10000));
    check_clean(&h);
    leave(&h);
    for (unsigned i = 0; i < 3; i++)
        gr_mem_free(mem[i]);
    return 0;
}

/* ---- several hosts ---- */
struct busy {
    struct host *h;
    unsigned number, *left;
    struct gr_fqueue *done;
};

/* Names made, moved and removed by several at once. */
static void busy_work(void *arg)
{
    struct busy *b = arg;
    for (unsigned i = 0; i < 6; i++) {
        char from[64], to[64];
        snprintf(from, sizeof from, "dir/h%u-%u", b->number, i);
        snprintf(to, sizeof to, "moved%u/h%u-%u", i, b->number, i);
        OK(vmfs_create(b->h->v, from, VMFS_DISK, 16 * MIB, VMFS_THIN, &err));
        OK(vmfs_rename(b->h->v, from, to, &err));
        OK(vmfs_file_write(b->h->v, "shared", NULL, &i, sizeof i, &err));
        if (i % 2)
            OK(vmfs_remove(b->h->v, to, &err));
    }
    if (--*b->left == 0)
        gr_fqueue_wake_all(b->done);
}

static int count_name(void *arg, const char *name, const struct vmfs_stat *st)
{
    (void)name;
    (void)st;
    ++*(unsigned *)arg;
    return 0;
}

static int names_fn(void *arg)
{
    struct gr_loop *loop = arg;
    struct gr_mem *mem = gr_mem_new(512 * MIB);
    struct host h[2];
    unsigned left = 2;
    struct gr_fqueue done = { 0 };
    format(loop, &mem, 1);
    join(&h[0], loop, &mem, 1, "one");
    join(&h[1], loop, &mem, 1, "two");
    struct busy b[2] = { { &h[0], 0, &left, &done }, { &h[1], 1, &left, &done } };
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(gr_fiber_start(loop, busy_work, &b[i]), 0);
    while (left)
        gr_fqueue_wait(&done);
    for (unsigned k = 0; k < 2; k++)
        for (unsigned i = 0; i < 6; i++) {
            char dir[32];
            unsigned n = 0;
            snprintf(dir, sizeof dir, "moved%u", i);
            OK(vmfs_readdir(h[k].v, dir, count_name, &n, &err));
            assert_int_equal(n, i % 2 ? 0 : 2);
        }
    for (unsigned k = 0; k < 2; k++)
        OK(vmfs_settle(h[k].v, 10000));
    check_clean(&h[0]);
    leave(&h[0]);
    leave(&h[1]);
    join(&h[0], loop, &mem, 1, "three");
    OK(vmfs_settle(h[0].v, 10000));
    check_clean(&h[0]);
    leave(&h[0]);
    gr_mem_free(mem);
    return 0;
}

static int hand_over_fn(void *arg)
{
    struct gr_loop *loop = arg;
    struct gr_mem *mem = gr_mem_new(512 * MIB);
    struct host a, b;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    struct vmfs_info before, after;
    int owner = -1;
    format(loop, &mem, 1);
    join(&a, loop, &mem, 1, "one");
    join(&b, loop, &mem, 1, "two");
    vmfs_info(a.v, &before);
    OK(vmfs_create(a.v, "d", VMFS_DISK, 256 * MIB, VMFS_THIN, &err));
    content(&a, "d", 0, 20 * MIB, 1, true);
    assert_int_equal(vmfs_open(b.v, "d", &d, &owner, NULL), -GR_ELOCKED);
    assert_int_equal(owner, 0);
    OK(vmfs_release(a.v, "d", &err));

    content(&b, "d", 0, 20 * MIB, 1, false);
    content(&b, "d", 5 * MIB, 3 * MIB, 50, true); /* in place or not, its units are the first host's */
    OK(vmfs_open(b.v, "d", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), loop, &ch), 0);
    OK(gr_unmap(ch, 10 * MIB, 10 * MIB, 0)); /* foreign frees */
    OK(gr_flush(ch));
    gr_chan_close(ch);
    vmfs_close(d);
    crash(&b); /* the first host takes over */
    content(&a, "d", 0, 5 * MIB, 1, false);
    content(&a, "d", 5 * MIB, 3 * MIB, 50, false);
    content(&a, "d", 8 * MIB, 2 * MIB, 9, false);
    OK(vmfs_remove(a.v, "d", &err));
    OK(vmfs_settle(a.v, 10000));
    OK(vmfs_checkpoint(a.v, &err));
    check_clean(&a);
    leave(&a);

    join(&b, loop, &mem, 1, "three"); /* in the first slot */
    join(&a, loop, &mem, 1, "four"); /* the slot whose foreign frees are still to be given back */
    OK(vmfs_create(a.v, "e", VMFS_DISK, 16 * MIB, VMFS_THIN, &err));
    content(&a, "e", 0, MIB, 3, true);
    check_clean(&a);
    leave(&b);
    OK(vmfs_remove(a.v, "e", &err));
    OK(vmfs_settle(a.v, 10000));
    OK(vmfs_checkpoint(a.v, &err));
    leave(&a);
    join(&a, loop, &mem, 1, "five");
    vmfs_info(a.v, &after);
    assert_true(after.free + MIB > before.free);
    leave(&a);
    gr_mem_free(mem);
    return 0;
}

/* ---- opening what is being given up ---- */
static void release_work(void *arg)
{
    struct busy *b = arg;
    for (unsigned i = 0; i < 60; i++) {
        struct gr_err err = { 0 };
        int r = vmfs_release(b->h->v, "d", &err);
        assert_true(r == 0 || r == -EBUSY);
        gr_fiber_yield();
    }
    if (--*b->left == 0)
        gr_fqueue_wake_all(b->done);
}

static void open_work(void *arg)
{
    struct busy *b = arg;
    for (uint64_t i = 0; i < 20; i++) {
        content(b->h, "d", i * MIB, MIB, i, true);
        content(b->h, "d", i * MIB, MIB, i, false);
        gr_fiber_yield();
    }
    if (--*b->left == 0)
        gr_fqueue_wake_all(b->done);
}

static int release_fn(void *arg)
{
    struct gr_loop *loop = arg;
    struct gr_mem *mem = gr_mem_new(256 * MIB);
    struct host h;
    unsigned left = 2;
    struct gr_fqueue done = { 0 };
    format(loop, &mem, 1);
    join(&h, loop, &mem, 1, "one");
    OK(vmfs_create(h.v, "d", VMFS_DISK, 64 * MIB, VMFS_THIN, &err));
    struct busy b = { &h, 0, &left, &done };
    assert_int_equal(gr_fiber_start(loop, release_work, &b), 0);
    assert_int_equal(gr_fiber_start(loop, open_work, &b), 0);
    while (left)
        gr_fqueue_wait(&done);
    for (uint64_t i = 0; i < 20; i++)
        content(&h, "d", i * MIB, MIB, i, false);
    check_clean(&h);
    leave(&h);
    gr_mem_free(mem);
    return 0;
}

/* ---- a flush answered while a checkpoint flushes ---- */
static void ckpt_work(void *arg)
{
    struct busy *b = arg;
    for (unsigned i = 0; i < 25; i++) {
        OK(vmfs_file_write(b->h->v, "f", NULL, &i, sizeof i, &err)); /* something to bring home */
        OK(vmfs_checkpoint(b->h->v, &err));
    }
    --*b->left;
}

/* Was a flush begun behind the write with @stamp, and has it ended? */
static bool covered(struct gr_record *rec, uint64_t stamp)
{
    uint64_t written = 0;
    for (size_t i = 0; i < gr_record_count(rec); i++) {
        const struct gr_record_entry *e = gr_record_at(rec, i);
        if (e->op == GR_OP_WRITE && e->len == 4096 && memcmp(e->data, &stamp, 8) == 0)
            written = e->completed;
        if (e->op == GR_OP_FLUSH && written && e->submitted > written && e->completed)
            return true;
    }
    return false;
}

static int flush_fn(void *arg)
{
    struct gr_loop *loop = arg;
    struct gr_mem *mem = gr_mem_new(64 * MIB);
    struct gr_bdev *low, *slow, *dev;
    struct host h = { .loop = loop };
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "one", .warn = warn };
    struct vmfs_disk *d;
    struct gr_chan *ch;
    struct vmfs_stats st;
    unsigned left = 1;
    static uint8_t page[4096];
    format(loop, &mem, 1);
    assert_int_equal(gr_bdev_mem_open(loop, mem, &low), 0);
    assert_int_equal(gr_bdev_delay_open(loop, low, 0, 0, 1000000, &slow), 0);
    assert_int_equal(gr_bdev_record_open(loop, slow, &dev), 0);
    gr_bdev_put(low);
    gr_bdev_put(slow);
    OK(vmfs_join(loop, &dev, 1, &o, &h.v, &err));
    OK(vmfs_create(h.v, "d", VMFS_DISK, 16 * MIB, VMFS_THIN, &err));
    OK(vmfs_open(h.v, "d", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), loop, &ch), 0);
    OK(gr_pwrite(ch, page, sizeof page, 0, 0));
    OK(gr_flush(ch));
    OK(vmfs_checkpoint(h.v, &err)); /* from now on in place */
    struct busy b = { &h, 0, &left, NULL };
    assert_int_equal(gr_fiber_start(loop, ckpt_work, &b), 0);
    uint64_t stamp = 0xfeed0000beef0001;
    while (left) { /* until the checkpoints are through */
        stamp++;
        memcpy(page, &stamp, 8);
        OK(gr_pwrite(ch, page, sizeof page, 0, 0));
        OK(gr_flush(ch));
        assert_true(covered(gr_bdev_record(dev), stamp));
        gr_fiber_sleep_ms(stamp % 3);
    }
    vmfs_stats(h.v, &st);
    assert_true(st.writes_in_place > 5);
    gr_chan_close(ch);
    vmfs_close(d);
    OK(vmfs_leave(h.v, &err));
    gr_bdev_put(dev);
    gr_mem_free(mem);
    return 0;
}

/* ---- a file read by a host that does not own it ---- */
/* What its owner frees is not reused before another host could see that the file changed. */
/* ---- a crowd of writers that finds no region leased ---- */
enum { CROWD = 256 };
struct writer {
    struct gr_chan *ch;
    unsigned index, *left;
    struct gr_fqueue *done;
    int result;
};

static void crowd_work(void *arg)
{
    struct writer *w = arg;
    uint8_t block[16384];
    memset(block, (int)w->index, sizeof block);
    w->result = gr_pwrite(w->ch, block, sizeof block, w->index * (uint64_t)65536, 0);
    if (!--*w->left)
        gr_fqueue_wake_all(w->done);
}

/* Right after a join: one region serves them all, and nobody is told that there is no space. What was answered is there when the process
 * ends in that moment, though nobody flushed: initiators live on, and believe in it. */
static int crowd_fn(void *arg)
{
    static struct writer w[CROWD];
    struct gr_loop *loop = arg;
    struct gr_mem *mem = gr_mem_new(256 * MIB);
    struct gr_fqueue done = { 0 };
    struct host h;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    unsigned left = CROWD;
    format(loop, &mem, 1);
    join(&h, loop, &mem, 1, "one");
    OK(vmfs_create(h.v, "d", VMFS_DISK, 64 * MIB, VMFS_THIN, &err));
    leave(&h);
    h = (struct host){ .loop = loop, .n = 2 }; /* a device that takes its time, so that they meet */
    assert_int_equal(gr_bdev_mem_open(loop, mem, &h.dev[1]), 0);
    assert_int_equal(gr_bdev_delay_open(loop, h.dev[1], 200000, 200000, 0, &h.dev[0]), 0);
    OK(vmfs_join(loop, h.dev, 1, &(struct vmfs_join_opts){ .role = VMFS_HOST, .host_name = "one", .warn = warn }, &h.v, &err));
    OK(vmfs_open(h.v, "d", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), loop, &ch), 0);
    for (unsigned i = 0; i < CROWD; i++) {
        w[i] = (struct writer){ ch, i, &left, &done, -1 };
        assert_int_equal(gr_fiber_start(loop, crowd_work, &w[i]), 0);
    }
    while (left)
        gr_fqueue_wait(&done);
    for (unsigned i = 0; i < CROWD; i++)
        assert_int_equal(w[i].result, 0);
    gr_chan_close(ch);
    vmfs_close(d);
    crash(&h);
    join(&h, loop, &mem, 1, "two");
    OK(vmfs_open(h.v, "d", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), loop, &ch), 0);
    for (unsigned i = 0; i < CROWD; i++) {
        uint8_t block[16384], want[sizeof block];
        memset(want, (int)i, sizeof want);
        OK(gr_pread(ch, block, sizeof block, i * (uint64_t)65536));
        assert_memory_equal(block, want, sizeof want);
    }
    gr_chan_close(ch);
    vmfs_close(d);
    check_clean(&h);
    leave(&h);
    gr_mem_free(mem);
    return 0;
}

/* A while after the last write what was written is overwritten where it lies, though nobody ever flushed. */
static int quiet_fn(void *arg)
{
    static const uint8_t block[65536];
    struct gr_loop *loop = arg;
    struct gr_mem *mem = gr_mem_new(256 * MIB);
    struct host h;
    struct vmfs_disk *d;
    struct vmfs_stats before, after;
    struct gr_chan *ch;
    format(loop, &mem, 1);
    join(&h, loop, &mem, 1, "one");
    OK(vmfs_create(h.v, "d", VMFS_DISK, 64 * MIB, VMFS_THIN, &err));
    OK(vmfs_open(h.v, "d", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), loop, &ch), 0);
    for (unsigned i = 0; i < 64; i++)
        OK(gr_pwrite(ch, block, sizeof block, i * sizeof block, 0));
    gr_fiber_sleep_ms(1500);
    vmfs_stats(h.v, &before);
    for (unsigned i = 0; i < 64; i++)
        OK(gr_pwrite(ch, block, sizeof block, i * sizeof block, 0));
    vmfs_stats(h.v, &after);
    assert_int_equal(after.writes_in_place - before.writes_in_place, 64);
    gr_chan_close(ch);
    vmfs_close(d);
    leave(&h);
    gr_mem_free(mem);
    return 0;
}

static int reader_fn(void *arg)
{
    struct gr_loop *loop = arg;
    struct gr_mem *mem = gr_mem_new(96 * MIB);
    struct host a, b;
    static uint8_t want[1 << 20], other[1 << 20];
    void *got;
    size_t len;
    struct vmfs_disk *f, *d;
    struct gr_chan *fch, *dch;
    format(loop, &mem, 1);
    join(&a, loop, &mem, 1, "one");
    join(&b, loop, &mem, 1, "two");
    pattern(want, MIB, 1);
    memset(other, 0xa5, MIB);
    OK(vmfs_file_write(a.v, "f", NULL, want, MIB, &err));
    OK(vmfs_create(a.v, "d", VMFS_DISK, 512 * MIB, VMFS_THIN, &err));
    OK(vmfs_open(a.v, "f", &f, NULL, &err));
    OK(vmfs_open(a.v, "d", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(f), loop, &fch), 0);
    assert_int_equal(gr_chan_open(vmfs_bdev(d), loop, &dch), 0);
    OK(vmfs_checkpoint(a.v, &err));
    OK(gr_unmap(fch, 0, MIB, 0));
    OK(gr_flush(fch));
    for (uint64_t at = 0; at < 512 * MIB && gr_pwrite(dch, other, MIB, at, 0) == 0; at += MIB) {
        struct gr_err err = { 0 };
        gr_flush(dch);
        if (vmfs_file_read(b.v, "f", MIB, &got, &len, &err) < 0)
            continue; /* it changes meanwhile: an answer */
        const uint8_t *p = got;
        for (size_t i = 0; i < len; i++)
            if (p[i] != want[i] && p[i] != 0)
                fail_msg("byte %zu is another disk's, after %llu MiB", i, (unsigned long long)(at / MIB));
        free(got);
    }
    gr_chan_close(fch);
    gr_chan_close(dch);
    vmfs_close(f);
    vmfs_close(d);
    leave(&b);
    check_clean(&a);
    leave(&a);
    gr_mem_free(mem);
    return 0;
}

/* ---- a large map ---- */
/* The next host does not wait until the map in memory is freed; nor is any of it left, also when the host leaves meanwhile. */
static int large_map_fn(void *arg)
{
    struct gr_loop *loop = arg;
    struct gr_mem *mem = gr_mem_new(512 * MIB);
    struct host a, b;
    struct vmfs_stats before, now;
    format(loop, &mem, 1);
    join(&a, loop, &mem, 1, "a");
    join(&b, loop, &mem, 1, "b");
    vmfs_stats(a.v, &before);
    OK(vmfs_create(a.v, "large", VMFS_DISK, 8192 * MIB, VMFS_THIN, &err));
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < 8; i++)
            content(&a, "large", (i * 1024ull + 8 * round) * MIB, 8 * MIB, i + round, true);
        OK(vmfs_release(a.v, "large", &err));
        vmfs_stats(a.v, &now);
        assert_true(now.map_bytes > before.map_bytes); /* it is being freed */
        if (round == 1)
            leave(&a);
        for (unsigned i = 0; i < 8; i++)
            content(&b, "large", (i * 1024ull + 8 * round) * MIB, 8 * MIB, i + round, false);
        if (round == 1)
            break;
        for (unsigned ms = 0; ms < 5000 && now.map_bytes != before.map_bytes; ms++) {
            gr_fiber_sleep_ms(1);
            vmfs_stats(a.v, &now);
        }
        assert_int_equal(now.map_bytes, before.map_bytes);
        OK(vmfs_release(b.v, "large", &err));
    }
    check_clean(&b);
    leave(&b);
    gr_mem_free(mem);
    return 0;
}

static void run(int (*fn)(void *))
{
    struct gr_loop *loop;
    assert_int_equal(gr_loop_new(NULL, &loop, NULL), 0);
    assert_int_equal(gr_fiber_run(loop, fn, loop), 0);
    gr_loop_free(loop);
}
static void test_devices(void **state) { (void)state; run(devices_fn); }
static void test_names(void **state) { (void)state; run(names_fn); }
static void test_hand_over(void **state) { (void)state; run(hand_over_fn); }
static void test_release(void **state) { (void)state; run(release_fn); }
static void test_flush(void **state) { (void)state; run(flush_fn); }
static void test_crowd(void **state) { (void)state; run(crowd_fn); }
static void test_quiet(void **state) { (void)state; run(quiet_fn); }
static void test_reader(void **state) { (void)state; run(reader_fn); }
static void test_large_map(void **state) { (void)state; run(large_map_fn); }

TEST_MAIN(TEST(test_devices), TEST(test_names), TEST(test_hand_over), TEST(test_release), TEST(test_flush), TEST(test_crowd), TEST(test_quiet),
          TEST(test_reader), TEST(test_large_map))
