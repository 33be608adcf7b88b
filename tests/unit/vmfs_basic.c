/* A volume in memory: format, join, names, content, what a crash leaves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "common/bdev.h"
#include "common/fiber.h"
#include "vmfs/vmfs.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

#define OK(call)                                                 \
    do {                                                         \
        struct gr_err err = { 0 };                               \
        int rc_ = (call);                                        \
        if (rc_ < 0)                                             \
            fail_msg("%s: %s", #call, gr_err_text(&err, rc_));   \
    } while (0)

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
    OK(vmfs_file_write(s.v, "vm/web/web.vmx", "name = \"web\"\n", 13, &err));
    OK(vmfs_file_write(s.v, "vm/web/web.vmx", "name = \"web2\"\n", 14, &err));
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

static void run(int (*fn)(void *))
{
    struct gr_loop *loop;
    assert_int_equal(gr_loop_new(NULL, &loop, NULL), 0);
    assert_int_equal(gr_fiber_run(loop, fn, loop), 0);
    gr_loop_free(loop);
}
static void test_names(void **state) { (void)state; run(names_fn); }
static void test_content(void **state) { (void)state; run(content_fn); }

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_names), cmocka_unit_test(test_content) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
