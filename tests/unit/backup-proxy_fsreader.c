/* The parent of the guest reader against helpers that lie, hang and die: each request fails with a clear code, and the
 * next one works with a new helper. This binary is its own hostile helper: started as "granary-fsread" it reads the first
 * byte of the image and does what that says. */
#include "backup-proxy/fs_dir.h"
#include "backup-proxy/fs_file.h"
#include "backup-proxy/fs_reader.h"
#include "common/endian.h"
#include "common/fiber.h"
#include "tests/lib/test.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum mode {
    GOOD, END, GARBAGE, TOO_LONG, WRONG_SEQ, READ_OUTSIDE, READ_NOTHING, HANG, CRASH, BAD_NAME, DOTS, RUN_OUTSIDE, RUN_NOWHERE, ENDLESS_READS,
    ENDLESS_ENTRIES, TRAILING, WRONG_TYPE, HUGE_SIZE, VOLUME_OUTSIDE, ERROR_ZERO, SHORT_FRAME, LAST
};
#define IMAGE (8u << 20)

/* ---- the helper ---- */
static void h_read(void *p, size_t len)
{
    for (size_t at = 0; at < len;) {
        ssize_t n = read(3, (char *)p + at, len - at);
        if (n <= 0)
            _exit(0);
        at += (size_t)n;
    }
}
static void h_send(uint16_t type, uint32_t seq, const void *body, uint32_t len)
{
    uint8_t h[FS_HDR];
    fs_hdr_put(h, &(struct fs_hdr){.type = type, .len = len, .seq = seq});
    if (write(3, h, sizeof h) < 0 || (len && write(3, body, len) < 0))
        _exit(0);
}
static uint8_t h_image_byte(uint32_t seq)
{
    uint8_t b[12] = {0}, reply[FS_HDR + 9];
    gr_put_le32(b + 8, 1);
    h_send(FS_IMG_READ, seq, b, 12);
    h_read(reply, sizeof reply);
    return reply[FS_HDR + 8];
}
static void h_attr(struct fs_out *o, const char *name)
{
    struct fs_entry e = {.attr = {.inode = 5, .size = 1000, .nlink = 1, .type = FS_T_FILE}};
    e.name_len = (uint32_t)strlen(name);
    memcpy(e.name, name, e.name_len + 1);
    fs_put_entry(o, &e);
}

/* Lies for any request; false: answer as a good one. */
static bool h_lie(enum mode m, uint16_t type, uint32_t seq)
{
    uint8_t b[4096] = {0};
    struct fs_out o = {.p = b, .cap = sizeof b};
    switch (m) {
    case END: _exit(0);
    case GARBAGE: (void)!write(3, "this is not a header of the protocol", 36); pause(); return true;
    case TOO_LONG:
        fs_hdr_put(b, &(struct fs_hdr){.type = FS_OK, .len = 0xffffffff, .seq = seq});
        (void)!write(3, b, FS_HDR);
        pause();
        return true;
    case WRONG_SEQ: h_send(FS_OK, seq + 1, NULL, 0); pause(); return true;
    case READ_OUTSIDE:
        gr_put_le64(b, IMAGE - 10);
        gr_put_le32(b + 8, 11);
        h_send(FS_IMG_READ, seq, b, 12);
        pause();
        return true;
    case READ_NOTHING: h_send(FS_IMG_READ, seq, b, 12); pause(); return true;
    case HANG: pause(); return true;
    case CRASH: signal(SIGSEGV, SIG_DFL); raise(SIGSEGV); return true;
    case ENDLESS_READS:
        for (;;)
            h_image_byte(seq);
    case TRAILING: h_send(FS_OK, seq, b, 4); pause(); return true;
    case WRONG_TYPE: h_send(FS_HELLO, seq, NULL, 0); pause(); return true;
    case ERROR_ZERO: h_send(FS_ERROR, seq, b, 8); pause(); return true;
    case SHORT_FRAME: (void)!write(3, b, 7); _exit(0);
    case VOLUME_OUTSIDE:
    case BAD_NAME:
    case DOTS:
    case ENDLESS_ENTRIES:
        if (type != FS_LIST)
            return false;
        fs_put_u32(&o, m == ENDLESS_ENTRIES ? 2 : 1);
        h_attr(&o, m == BAD_NAME ? "../../etc/passwd" : m == DOTS ? ".." : "a");
        if (m == ENDLESS_ENTRIES)
            h_attr(&o, "b");
        do
            h_send(FS_ENTRIES, seq, b, (uint32_t)o.len);
        while (m == ENDLESS_ENTRIES);
        h_send(FS_OK, seq, NULL, 0);
        return true;
    case RUN_OUTSIDE:
    case RUN_NOWHERE:
        if (type != FS_MAP)
            return false;
        fs_put_u8(&o, 1);
        fs_put_u64(&o, m == RUN_NOWHERE ? 0 : 1000);
        fs_put_u32(&o, 1);
        fs_put_run(&o, &(struct fs_run){0, m == RUN_OUTSIDE ? IMAGE - 500 : 0, 1000});
        h_send(FS_RUNS, seq, b, (uint32_t)o.len);
        return true;
    default: return false;
    }
}

static void h_answer(enum mode m, uint16_t type, uint32_t seq)
{
    static uint8_t b[65536];
    struct fs_out o = {.p = b, .cap = sizeof b};
    struct fs_attr a = {.inode = 5, .size = m == HUGE_SIZE ? UINT64_MAX : 1000, .nlink = 1, .type = FS_T_FILE};
    static struct fs_volume v = {.kind = FS_V_WHOLE, .size = IMAGE, .n_segs = 1, .segs = {{0, 0, IMAGE}}};
    struct fs_opened opened = {.fs = "ext4", .root = 2, .block_size = 4096, .size = IMAGE};
    if (h_lie(m, type, seq))
        return;
    switch (type) {
    case FS_PARTS:
        v.segs[0].len = v.size = m == VOLUME_OUTSIDE ? IMAGE + 512 : IMAGE;
        fs_put_str(&o, "none");
        fs_put_u32(&o, 1);
        fs_put_volume(&o, &v);
        h_send(FS_PARTS_ARE, seq, b, (uint32_t)o.len);
        return;
    case FS_OPEN:
        fs_put_opened(&o, &opened);
        h_send(FS_OPENED, seq, b, (uint32_t)o.len);
        return;
    case FS_STAT:
        fs_put_attr(&o, &a);
        h_send(FS_ATTR, seq, b, (uint32_t)o.len);
        return;
    case FS_LIST:
        fs_put_u32(&o, 1);
        h_attr(&o, "file");
        h_send(FS_ENTRIES, seq, b, (uint32_t)o.len);
        h_send(FS_OK, seq, NULL, 0);
        return;
    case FS_MAP:
        fs_put_u8(&o, 1);
        fs_put_u64(&o, INT64_MAX);
        fs_put_u32(&o, 1);
        fs_put_run(&o, &(struct fs_run){0, 4096, 1000});
        h_send(FS_RUNS, seq, b, (uint32_t)o.len);
        return;
    default: h_send(FS_OK, seq, NULL, 0);
    }
}

static int helper(void)
{
    static uint8_t body[FS_BODY_MAX];
    for (;;) {
        uint8_t head[FS_HDR];
        struct fs_hdr h;
        h_read(head, sizeof head);
        if (!fs_hdr_get(head, &h))
            return 1;
        h_read(body, h.len);
        if (h.type == FS_HELLO || h.type == FS_VOLUME)
            h_send(FS_OK, h.seq, NULL, 0);
        else
            h_answer((enum mode)h_image_byte(h.seq), h.type, h.seq);
    }
}

/* ---- the tests ---- */
struct world {
    struct gr_loop *loop;
    struct gr_mem *mem;
    struct gr_bdev *bdev;
    struct gr_chan *chan;
    struct fs_reader *r;
};

static void set_mode(struct world *w, enum mode m)
{
    uint8_t *p = gr_mem_page(w->mem, 0, true); /* behind the reader's cache: it is opened anew for each mode */
    p[0] = (uint8_t)m;
}
static void open_world(struct world *w, enum mode m)
{
    struct gr_err err = {0};
    w->loop = gr_fiber_loop();
    w->mem = gr_mem_new(IMAGE);
    set_mode(w, m);
    memset(gr_mem_page(w->mem, 4096, true), 'x', 4096);
    assert_int_equal(gr_bdev_mem_open(w->loop, w->mem, &w->bdev), 0);
    assert_int_equal(fs_reader_open(w->loop, w->bdev, &(struct fs_reader_opts){.helper = "/proc/self/exe", .budget_ms = 300}, &w->r, &err), 0);
}
static void close_world(struct world *w)
{
    fs_reader_free(w->r);
    gr_bdev_put(w->bdev);
    gr_mem_free(w->mem);
}
static int count_entry(void *arg, const struct fs_entry *e)
{
    ++*(int *)arg;
    return 0;
}

/* A scan, then one of each request; the first failure. */
static int use(struct world *w, struct gr_err *err)
{
    const struct fs_vol *v = NULL;
    const char *table = NULL;
    struct fs_attr a;
    struct fs_file *f = NULL;
    unsigned n = 0;
    int count = 0;
    char buf[1000];
    int rc = fs_reader_scan(w->r, &v, &n, &table, err);
    if (rc == 0 && v[0].status < 0)
        rc = gr_fail(err, v[0].status, "%s", v[0].why);
    if (rc == 0)
        rc = fs_reader_stat(w->r, v, 5, &a, err);
    if (rc == 0)
        rc = fs_reader_list(w->r, v, 2, count_entry, &count, err);
    if (rc == 0)
        rc = fs_file_open(w->r, v, &a, &f, err);
    if (rc == 0) {
        int64_t got = fs_file_read(f, buf, sizeof buf, 0, err);
        rc = got < 0 ? (int)got : 0;
        if (rc == 0) {
            assert_int_equal(got, 1000);
            assert_int_equal(buf[999], 'x');
        }
        fs_file_close(f);
    }
    return rc;
}

static int all_lies(void *arg)
{
    for (int m = GOOD; m < LAST; m++) {
        struct world w;
        struct gr_err err = {0};
        open_world(&w, (enum mode)m);
        uint64_t start = gr_loop_now_ns(w.loop);
        int rc = use(&w, &err);
        if (m == GOOD)
            assert_int_equal(rc, 0);
        else if (rc != -EIO && rc != -ETIMEDOUT)
            fail_msg("lie %d: code %d (%s)", m, rc, err.text);
        if (m == HANG || m == ENDLESS_READS)
            assert_int_equal(rc, -ETIMEDOUT);
        if (m != GOOD)
            assert_true(strlen(err.text) > 10);
        assert_true(gr_loop_now_ns(w.loop) - start < 8000000000ull);
        close_world(&w);
    }
    return 0;
}
static void test_lies(void **state)
{
    test_in_fiber(all_lies, NULL);
}

static int deaths(void *arg)
{
    struct world w;
    struct gr_err err = {0};
    open_world(&w, GOOD);
    assert_int_equal(use(&w, &err), 0);
    for (int i = 0; i < 20; i++) {
        int pid = fs_reader_pid(w.r);
        assert_true(pid > 0);
        kill(pid, SIGKILL);
        int rc = use(&w, &err); /* may see the death */
        assert_true(rc == 0 || rc == -EIO);
        assert_int_equal(use(&w, &err), 0);
        assert_int_not_equal(fs_reader_pid(w.r), pid);
    }
    close_world(&w);
    return 0;
}
static void test_deaths(void **state)
{
    test_in_fiber(deaths, NULL);
}

static int walk(void *arg)
{
    struct world w;
    struct gr_err err = {0};
    struct fs_dirs *d = NULL;
    const struct fs_vol *v = NULL;
    const char *table = NULL;
    struct fs_attr a;
    unsigned n = 0;
    open_world(&w, GOOD);
    assert_int_equal(fs_reader_scan(w.r, &v, &n, &table, &err), 0);
    assert_int_equal(fs_dirs_new(w.r, &d), 0);
    assert_int_equal(fs_dir_walk(d, v, "//", &a, &err), 0);
    assert_int_equal(fs_dir_walk(d, v, "../x", &a, &err), -EINVAL);
    assert_int_equal(fs_dir_walk(d, v, "x", &a, &err), -ENOTDIR); /* this helper's root is a file */
    struct fs_dir *one = NULL, *two = NULL;
    assert_int_equal(fs_dir_get(d, v, 2, &one, &err), 0);
    assert_int_equal(fs_dir_get(d, v, 2, &two, &err), 0);
    assert_ptr_equal(one, two);
    assert_non_null(fs_dir_find(one, "file"));
    assert_null(fs_dir_find(one, "fil"));
    fs_dir_put(d, one);
    fs_dir_put(d, two);
    fs_dirs_free(d);
    close_world(&w);
    return 0;
}
static void test_walk(void **state)
{
    test_in_fiber(walk, NULL);
}

int main(int argc, char **argv)
{
    if (argc > 0 && strcmp(argv[0], "granary-fsread") == 0)
        return helper();
    const struct CMUnitTest tests[] = {TEST(test_lies), TEST(test_deaths), TEST(test_walk)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
