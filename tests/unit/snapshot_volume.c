/* A volume in memory: format, join, names, content, what a crash leaves. */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/fiber.h"
#include "snapshot/snapshot.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct site {
    struct gr_loop *loop;
    struct gr_mem *mem;
    struct gr_bdev *dev;
    struct vmfs *v;
};

static void warn(void *arg, const char *text)
{
    (void)arg;
    print_message("warning: %s\n", text);
}

static void join(struct site *s)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "unit", .warn = warn };
    struct gr_err err = { 0 };
    assert_int_equal(gr_bdev_mem_open(s->loop, s->mem, &s->dev), 0);
    int r = vmfs_join(s->loop, &s->dev, 1, &o, &s->v, &err);
    if (r < 0)
        fail_msg("join: %s", gr_err_text(&err, r));
}

static void make_site(struct site *s, uint64_t size)
{
    struct gr_err err = { 0 };
    struct vmfs_format_opts f = { .name = "ds1" };
    s->mem = gr_mem_new(size);
    assert_int_equal(gr_bdev_mem_open(s->loop, s->mem, &s->dev), 0);
    int r = vmfs_format(s->loop, &s->dev, 1, &f, &err);
    if (r < 0)
        fail_msg("format: %s", gr_err_text(&err, r));
    gr_bdev_put(s->dev);
    join(s);
}

static void leave(struct site *s)
{
    struct gr_err err = { 0 };
    int r = vmfs_leave(s->v, &err);
    if (r < 0)
        fail_msg("leave: %s", gr_err_text(&err, r));
    gr_bdev_put(s->dev);
}

static void crash(struct site *s)
{
    vmfs_abandon(s->v);
    gr_bdev_put(s->dev);
}

static void check_clean(struct site *s)
{
    struct vmfs_check_report rep;
    OK(vmfs_check(s->v, warn, NULL, &rep, &err));
}

static void fill(uint8_t *p, size_t n, unsigned seed)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)((i * 2654435761u >> 7) + seed * 97 + i / 4096);
}

static int names_fn(void *arg)
{
    struct site s = { .loop = arg };
    struct vmfs_stat st;
    make_site(&s, 256 << 20);
    OK(vmfs_create(s.v, "vm/web/root", VMFS_DISK, 1 << 30, VMFS_THIN, &err));
    assert_int_equal(vmfs_create(s.v, "vm/web/root", VMFS_DISK, 4096, VMFS_THIN, NULL), -EEXIST);
    assert_int_equal(vmfs_create(s.v, "a/../b", VMFS_DISK, 4096, VMFS_THIN, NULL), -EINVAL);
    assert_int_equal(vmfs_create(s.v, "zero", VMFS_DISK, 0, VMFS_THIN, NULL), -EINVAL);
    OK(vmfs_stat(s.v, "vm/web/root", &st, &err));
    assert_int_equal(st.size, 1 << 30);
    OK(vmfs_file_write(s.v, "vm/web/web.vmx", NULL, "name = \"web\"\n", 13, &err));
    OK(vmfs_file_write(s.v, "vm/web/web.vmx", NULL, "name = \"web2\"\n", 14, &err));
    void *text;
    size_t len;
    OK(vmfs_file_read(s.v, "vm/web/web.vmx", 1000, &text, &len, &err));
    assert_int_equal(len, 14);
    assert_memory_equal(text, "name = \"web2\"\n", 14);
    free(text);
    OK(vmfs_rename(s.v, "vm/web", "vm/www", &err));
    assert_int_equal(vmfs_stat(s.v, "vm/web/root", &st, NULL), -ENOENT);
    OK(vmfs_stat(s.v, "vm/www/root", &st, &err));
    check_clean(&s);
    leave(&s);
    join(&s);
    OK(vmfs_stat(s.v, "vm/www/root", &st, &err));
    OK(vmfs_remove(s.v, "vm/www/root", &err));
    assert_int_equal(vmfs_stat(s.v, "vm/www/root", &st, NULL), -ENOENT);
    leave(&s);
    gr_mem_free(s.mem);
    return 0;
}

static int content_fn(void *arg)
{
    struct site s = { .loop = arg };
    struct vmfs_disk *d;
    struct gr_chan *ch;
    static uint8_t a[1 << 20], b[1 << 20];
    make_site(&s, 256 << 20);
    OK(vmfs_create(s.v, "d", VMFS_DISK, 64 << 20, VMFS_THIN, &err));
    OK(vmfs_open(s.v, "d", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), s.loop, &ch), 0);
    fill(a, sizeof a, 1);
    assert_int_equal(gr_pwrite(ch, a, sizeof a, 3 << 20, 0), 0);
    assert_int_equal(gr_pread(ch, b, sizeof b, 3 << 20), 0);
    assert_memory_equal(a, b, sizeof a);
    assert_int_equal(gr_pwrite(ch, a + 512, 1536, (40 << 20) + 2560, 0), 0); /* inside a piece, across two */
    assert_int_equal(gr_pwrite(ch, a + 512, 4096, (41 << 20) + 3584, 0), 0);
    assert_int_equal(gr_flush(ch), 0);
    assert_int_equal(gr_pwrite(ch, a + 4096, 4096, 3 << 20, 0), 0); /* flushed, then overwritten without a flush */
    gr_chan_close(ch);
    vmfs_close(d);
    crash(&s);
    join(&s);
    check_clean(&s);
    OK(vmfs_open(s.v, "d", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), s.loop, &ch), 0);
    assert_int_equal(gr_pread(ch, b, sizeof b, 3 << 20), 0);
    assert_memory_equal(a + 4096, b + 4096, sizeof a - 4096);
    assert_true(memcmp(a, b, 4096) == 0 || memcmp(a + 4096, b, 4096) == 0);
    assert_int_equal(gr_pread(ch, b, 4096, (40 << 20) + 2560), 0);
    assert_memory_equal(a + 512, b, 1536);
    assert_int_equal(gr_pread(ch, b, 4096, (41 << 20) + 3584), 0);
    assert_memory_equal(a + 512, b, 4096);
    assert_int_equal(gr_unmap(ch, 3 << 20, 1 << 20, 0), 0);
    assert_int_equal(gr_pread(ch, b, sizeof b, 3 << 20), 0);
    memset(a, 0, sizeof a);
    assert_memory_equal(a, b, sizeof a);
    gr_chan_close(ch);
    vmfs_close(d);
    check_clean(&s);
    leave(&s);
    gr_mem_free(s.mem);
    return 0;
}

/* Thick and eager disks hold their space, keep a promise of more for overwrites after a snapshot, and say what is missing. */
static int thick_fn(void *arg)
{
    struct site s = { .loop = arg };
    struct vmfs_disk *d, *t;
    struct gr_chan *ch, *tch;
    struct vmfs_info before, after;
    struct gr_err e = { 0 };
    static uint8_t a[1 << 20], b[1 << 20];
    make_site(&s, 256 << 20);
    vmfs_info(s.v, &before);
    OK(vmfs_create(s.v, "thick", VMFS_DISK, 40 << 20, VMFS_THICK, &err));
    OK(vmfs_create(s.v, "eager", VMFS_DISK, 20 << 20, VMFS_EAGER, &err));
    vmfs_info(s.v, &after);
    assert_true(before.free - after.free >= 60 << 20);
    assert_true(before.free - after.free < 62 << 20);
    OK(vmfs_open(s.v, "thick", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), s.loop, &ch), 0);
    assert_int_equal(gr_pread(ch, b, sizeof b, 5 << 20), 0);
    assert_memory_equal(a, b, sizeof a);
    fill(a, sizeof a, 3);
    assert_int_equal(gr_pwrite(ch, a, sizeof a, 5 << 20, 0), 0);
    OK(snap_create(&d, 1, "s1", &err));
    vmfs_info(s.v, &after);
    assert_int_equal(after.reserved, 40 << 20);
    /* another disk cannot eat what was promised */
    OK(vmfs_create(s.v, "thin", VMFS_DISK, 400 << 20, VMFS_THIN, &err));
    OK(vmfs_open(s.v, "thin", &t, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(t), s.loop, &tch), 0);
    int r = 0;
    for (uint64_t off = 0; r == 0 && off < 400 << 20; off += sizeof a)
        r = gr_pwrite(tch, a, sizeof a, off, 0);
    assert_int_equal(r, -GR_ENOSPACE);
    r = 0;
    fill(b, sizeof b, 9);
    for (uint64_t off = 0; off < 40 << 20; off += sizeof b)
        if ((r = gr_pwrite(ch, b, sizeof b, off, 0)) < 0) {
            vmfs_info(s.v, &after);
            fail_msg("overwrite at %lu: %s; %lu bytes free, %lu promised", (unsigned long)off, gr_code_text(r), (unsigned long)after.free,
                     (unsigned long)after.reserved);
        }
    assert_int_equal(gr_flush(ch), 0);
    r = snap_create(&d, 1, "s2", &e);
    assert_int_equal(r, -GR_ENOSPACE);
    assert_non_null(strstr(e.text, "missing"));
    assert_int_equal(vmfs_create(s.v, "more", VMFS_DISK, 40 << 20, VMFS_THICK, &e), -GR_ENOSPACE);
    assert_int_equal(gr_unmap(tch, 0, 400 << 20, 0), 0);
    OK(vmfs_checkpoint(s.v, &err));
    OK(snap_create(&d, 1, "s2", &err));
    gr_chan_close(tch);
    vmfs_close(t);
    gr_chan_close(ch);
    vmfs_close(d);
    OK(vmfs_remove(s.v, "thin", &err));
    check_clean(&s);
    leave(&s);
    gr_mem_free(s.mem);
    return 0;
}

static int grow_fn(void *arg)
{
    struct site s = { .loop = arg };
    struct vmfs_info before, after;
    struct gr_err e = { 0 };
    const char *path = "/dev/shm/granary-unit-grow.img";
    struct gr_file_opts fo = { .create = true, .size = 64 << 20 };
    struct vmfs_format_opts f = { .name = "ds1" };
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "unit", .warn = warn };
    unlink(path);
    OK(gr_bdev_file_open(s.loop, path, &fo, &s.dev, &err));
    OK(vmfs_format(s.loop, &s.dev, 1, &f, &err));
    OK(vmfs_join(s.loop, &s.dev, 1, &o, &s.v, &err));
    vmfs_info(s.v, &before);
    OK(gr_bdev_file_resize(s.dev, 256 << 20, &err));
    int r = vmfs_grow(s.v, &e);
    if (r == -GR_ENOSPACE) { /* the table of regions has an end: named */
        assert_non_null(strstr(e.text, "can grow to"));
        OK(gr_bdev_file_resize(s.dev, 96 << 20, &err));
        OK(vmfs_grow(s.v, &err));
    } else {
        assert_int_equal(r, 0);
    }
    vmfs_info(s.v, &after);
    assert_true(after.free > before.free + (28 << 20));
    OK(vmfs_create(s.v, "big", VMFS_DISK, before.free + (8 << 20), VMFS_THICK, &err));
    check_clean(&s);
    leave(&s);
    unlink(path);
    return 0;
}

static void run(int (*fn)(void *))
{
    struct gr_loop *loop;
    assert_int_equal(gr_loop_new(NULL, &loop, NULL), 0);
    assert_int_equal(gr_fiber_run(loop, fn, loop), 0);
    gr_loop_free(loop);
}
static void test_names(void **state) { (void)state; run(names_fn); }
static void test_content(void **state) { (void)state; run(content_fn); }
static void test_thick(void **state) { (void)state; run(thick_fn); }
static void test_grow(void **state) { (void)state; run(grow_fn); }

TEST_MAIN(TEST(test_names), TEST(test_content), TEST(test_thick), TEST(test_grow))
