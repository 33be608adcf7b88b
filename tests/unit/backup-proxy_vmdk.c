/* VMDK codec: what we write obeys the strict readers' rules and reads back identical; hostile images are refused with a sentence
 * and open no file that was not named. */
#include "backup-proxy/vmdk.h"
#include "backup-proxy/vmdk_format.h"
#include "backup-proxy/walk.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "tests/lib/test.h"
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

static struct gr_loop *loop;

/* ---- a disk with holes, zeros and data ---- */
static struct gr_chan *make_disk(uint64_t size, uint64_t seed, struct gr_mem **ret_mem)
{
    struct gr_mem *m = gr_mem_new(size);
    struct gr_bdev *b = NULL;
    struct gr_chan *ch = NULL;
    static uint8_t buf[200000];
    assert_int_equal(gr_bdev_mem_open(loop, m, &b), 0);
    assert_int_equal(gr_chan_open(b, loop, &ch), 0);
    gr_bdev_put(b);
    for (unsigned i = 0; i < 60; i++) {
        size_t len = (1 + test_rand(&seed) % 390) * 512;
        if (len > size)
            len = 512;
        uint64_t off = test_rand(&seed) % ((size - len) / 512 + 1) * 512;
        unsigned kind = (unsigned)(test_rand(&seed) % 3);
        for (size_t k = 0; k < len; k++)
            buf[k] = kind == 0 ? (uint8_t)test_rand(&seed) : kind == 1 ? (uint8_t)(k / 100) : 0;
        assert_int_equal(gr_pwrite(ch, buf, len, off, 0), 0);
    }
    *ret_mem = m;
    return ch;
}
static void close_disk(struct gr_chan *ch, struct gr_mem *m)
{
    gr_chan_close(ch);
    gr_mem_free(m);
}

/* ---- our own strict checker: every rule of the readers that refuse ---- */
static uint8_t *slurp(const char *path, size_t *ret_len)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    uint8_t *p = malloc((size_t)st.st_size + 1);
    assert_int_equal(read(fd, p, (size_t)st.st_size), st.st_size);
    close(fd);
    *ret_len = (size_t)st.st_size;
    return p;
}
static void strict_check(const char *path, uint64_t size)
{
    size_t len, at;
    uint8_t *f = slurp(path, &len), *grain = malloc(VMDK_GRAIN);
    uint64_t cap = (size + 511) / 512, last = 0;
    uint32_t gts[64] = {0}, gt[512] = {0}, n_gt = 0;
    bool first = true;
    assert_int_equal(len % 512, 0);
    assert_int_equal(gr_get_le32(f), VMDK_MAGIC);
    assert_int_equal(gr_get_le32(f + 4), 3);
    assert_int_equal(gr_get_le32(f + 8), 0x30001);
    assert_true(gr_get_le64(f + 12) == cap && gr_get_le64(f + 56) == UINT64_MAX);
    at = (size_t)gr_get_le64(f + 64) * 512;
    assert_non_null(strstr((char *)f + 512, "# The Disk Data Base"));
    assert_int_equal(strncmp((char *)f + 512, "# Disk DescriptorFile\nversion=1\n", 32), 0);
    for (;;) {
        assert_true(at + 512 <= len);
        uint64_t val = gr_get_le64(f + at);
        uint32_t csize = gr_get_le32(f + at + 8), type = gr_get_le32(f + at + 12);
        if (csize) {
            uLongf out = VMDK_GRAIN;
            assert_true(first || val > last); /* strictly ascending */
            assert_true(val % 128 == 0 && csize < 2 * VMDK_GRAIN);
            assert_int_equal(uncompress(grain, &out, f + at + 12, csize), Z_OK);
            assert_int_equal(out, VMDK_GRAIN); /* the last one too */
            gt[val / 128 % 512] = (uint32_t)(at / 512);
            last = val;
            first = false;
            at += (12 + csize + 511) / 512 * 512;
            continue;
        }
        if (type == VMDK_MARK_GT) {
            assert_int_equal(val, 4);
            for (unsigned i = 0; i < 512; i++)
                assert_int_equal(gr_get_le32(f + at + 512 + 4 * i), gt[i]);
            memset(gt, 0, sizeof gt);
            gts[last / 128 / 512] = (uint32_t)(at / 512 + 1);
            n_gt++;
        } else if (type == VMDK_MARK_GD) {
            for (unsigned i = 0; i < (cap + 65535) / 65536; i++)
                assert_int_equal(gr_get_le32(f + at + 512 + 4 * i), gts[i]);
        } else if (type == VMDK_MARK_FOOTER) {
            assert_int_equal(val, 1);
            assert_int_equal(at, len - 1536);
            assert_int_equal(gr_get_le64(f + at + 512 + 56), gr_get_le64(f + at + 512 + 56));
            assert_int_equal(gr_get_le32(f + gr_get_le64(f + at + 512 + 56) * 512 - 512 + 12), VMDK_MARK_GD);
        } else {
            assert_int_equal(type, VMDK_MARK_EOS);
            assert_int_equal(at, len - 512); /* nothing behind it */
            break;
        }
        at += 512 + (size_t)val * 512;
    }
    assert_true(first || n_gt > 0);
    free(grain);
    free(f);
}

static void compare(struct gr_chan *a, struct gr_chan *b, uint64_t size)
{
    static uint8_t x[1u << 20], y[1u << 20];
    for (uint64_t off = 0; off < size; off += sizeof x) {
        size_t n = (size_t)GR_MIN((uint64_t)sizeof x, size - off);
        assert_int_equal(gr_pread(a, x, n, off), 0);
        assert_int_equal(gr_pread(b, y, n, off), 0);
        assert_memory_equal(x, y, n);
    }
}
static int round_trip(void *arg)
{
    static const uint64_t sizes[] = {512, 4096, 65536, 65536 * 512, 40ull << 20, (70ull << 20) + 11264, 65536 * 512 + 512};
    uint64_t seed = *(uint64_t *)arg;
    for (unsigned i = 0; i < GR_ARRAY_LEN(sizes); i++) {
        gr_auto_free char *path = test_path("a.vmdk");
        struct gr_mem *m, *m2;
        struct gr_bdev *v = NULL, *d2 = NULL;
        struct gr_chan *ch = make_disk(sizes[i], seed + i, &m), *vc = NULL, *c2 = NULL;
        struct gr_err err = {0};
        struct bp_vmdk_stats st;
        struct bp_vmdk_opts o = {.level = 1 + i % 3, .lanes = 1 + i % 4};
        (void)unlink(path);
        if (bp_vmdk_export_file(ch, path, &o, &st, &err) < 0)
            fail_msg("export: %s", err.text);
        assert_int_equal(bp_vmdk_export_file(ch, path, &o, &st, &err), -EEXIST);
        strict_check(path, sizes[i]);
        if (bp_vmdk_open(loop, path, NULL, &v, &err) < 0)
            fail_msg("open: %s", err.text);
        assert_int_equal(gr_chan_open(v, loop, &vc), 0);
        compare(ch, vc, sizes[i]);
        /* import: copy into another disk, sparse stays sparse */
        m2 = gr_mem_new(sizes[i]);
        assert_int_equal(gr_bdev_mem_open(loop, m2, &d2), 0);
        assert_int_equal(gr_chan_open(d2, loop, &c2), 0);
        if (bp_copy(vc, c2, true, NULL, NULL, &err) < 0)
            fail_msg("copy: %s", err.text);
        compare(ch, c2, sizes[i]);
        /* and over a disk that held something else */
        memset(gr_mem_page(m2, 0, true), 0xee, 512);
        assert_int_equal(bp_copy(vc, c2, false, NULL, NULL, &err), 0);
        compare(ch, c2, sizes[i]);
        gr_chan_close(c2);
        gr_bdev_put(d2);
        gr_mem_free(m2);
        gr_chan_close(vc);
        gr_bdev_put(v);
        close_disk(ch, m);
    }
    return 0;
}
static void round_trips(void **state)
{
    uint64_t seed = test_seed();
    assert_int_equal(gr_fiber_run(loop, round_trip, &seed), 0);
}

/* ---- hostile images: one change each to a good one ---- */
struct poke {
    const char *what;
    long at;      /* byte; negative: from the end */
    unsigned width;
    uint64_t value;
    int open_code, read_code; /* what opening, else reading everything, gives */
};
static const struct poke pokes[] = {
    {"magic", 0, 4, 0x12345678, -GR_EFORMAT, 0},
    {"version 4", 4, 4, 4, -GR_EVERSION, 0},
    {"version 0", 4, 4, 0, -GR_EVERSION, 0},
    {"grain size 2^64-1", 20, 8, UINT64_MAX, -GR_EFORMAT, 0},
    {"grain size 0", 20, 8, 0, -GR_EFORMAT, 0},
    {"grain size odd", 20, 8, 129, -GR_EFORMAT, 0},
    {"entries 2^32-1", 44, 4, UINT32_MAX, -GR_EFORMAT, 0},
    {"entries 0", 44, 4, 0, -GR_EFORMAT, 0},
    {"capacity high half", 16, 4, UINT32_MAX, -GR_EFORMAT, 0},
    {"capacity 0", 12, 8, 0, -GR_EFORMAT, 0},
    {"text-mode transfer", 75, 1, '\n', -GR_ECORRUPT, 0},
    {"descriptor outside", 28, 8, 1u << 30, -GR_ECORRUPT, 0},
    {"descriptor of 20 MiB", 36, 8, 40960, -GR_ECORRUPT, 0},
    {"overhead outside", 64, 8, 1u << 30, -GR_ECORRUPT, 0},
    {"algorithm 2", 77, 2, 2, -GR_EFORMAT, 0},
    {"no footer marker", -1536 + 12, 4, 9, -GR_ECORRUPT, 0},
    {"footer magic", -1024, 4, 0, -GR_ECORRUPT, 0},
    {"footer capacity differs", -1024 + 12, 8, 2048, -GR_ECORRUPT, 0},
    {"footer grain size 0", -1024 + 20, 8, 0, -GR_EFORMAT, 0},
    {"directory at 0", -1024 + 56, 8, 0, -GR_ECORRUPT, 0},
    {"directory outside", -1024 + 56, 8, UINT64_MAX - 1, -GR_ECORRUPT, 0},
    {"directory at the header", -1024 + 56, 8, 1, -GR_ECORRUPT, 0},
    {"no end of stream", -512, 8, 1, -GR_ECORRUPT, 0},
    {"first grain: another place", 65536, 8, 128, 0, -GR_ECORRUPT},
    {"first grain: size 0", 65536 + 8, 4, 0, 0, -GR_ECORRUPT},
    {"first grain: huge", 65536 + 8, 4, UINT32_MAX, 0, -GR_ECORRUPT},
    {"first grain: 2 grains", 65536 + 8, 4, 131072, 0, -GR_ECORRUPT},
    {"first grain: content", 65536 + 40, 4, 0x5a5a5a5a, 0, -GR_ECORRUPT},
};
static void put_le(uint8_t *p, uint64_t v, unsigned width)
{
    for (unsigned i = 0; i < width; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}
static void spill(const char *path, const void *p, size_t len)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0 && write(fd, p, len) == (ssize_t)len);
    close(fd);
}
/* Open and read all; the first code that is not 0. */
static int try_image(const char *path, const char *const *named, struct gr_err *err)
{
    struct gr_bdev *v = NULL;
    struct gr_chan *ch = NULL;
    struct gr_geometry g;
    static uint8_t buf[1u << 20];
    int r = bp_vmdk_open(loop, path, named, &v, err);
    if (r < 0)
        return r;
    assert_int_equal(gr_bdev_geometry(v, &g), 0);
    assert_int_equal(gr_chan_open(v, loop, &ch), 0);
    for (uint64_t off = 0; r == 0 && off < GR_MIN(g.size, (uint64_t)(64u << 20)); off += sizeof buf)
        r = gr_pread(ch, buf, (size_t)GR_MIN((uint64_t)sizeof buf, g.size - off), off);
    struct bp_walk w;
    struct gr_extent e;
    bp_walk_init(&w, ch, g.size, NULL);
    for (unsigned i = 0; r == 0 && i < 1000; i++)
        if ((r = bp_walk_next(&w, &e)) <= 0)
            break;
        else
            r = 0;
    gr_chan_close(ch);
    gr_bdev_put(v);
    return r;
}
static int hostile(void *arg)
{
    gr_auto_free char *path = test_path("h.vmdk");
    gr_auto_free char *good = test_path("good.vmdk");
    struct gr_mem *m;
    struct gr_chan *ch = make_disk(3u << 20, 7, &m);
    struct gr_err err = {0};
    uint8_t first[4096];
    memset(first, 0x41, sizeof first);
    assert_int_equal(gr_pwrite(ch, first, sizeof first, 0, 0), 0); /* grain 0 is there */
    (void)unlink(good);
    assert_int_equal(bp_vmdk_export_file(ch, good, NULL, NULL, &err), 0);
    size_t len;
    gr_auto_free uint8_t *f = slurp(good, &len);
    assert_int_equal(try_image(good, NULL, &err), 0);
    for (unsigned i = 0; i < GR_ARRAY_LEN(pokes); i++) {
        gr_auto_free uint8_t *c = malloc(len);
        memcpy(c, f, len);
        put_le(c + (pokes[i].at < 0 ? (long)len + pokes[i].at : pokes[i].at), pokes[i].value, pokes[i].width);
        spill(path, c, len);
        err = (struct gr_err){0};
        int r = try_image(path, NULL, &err), want = pokes[i].open_code ? pokes[i].open_code : pokes[i].read_code;
        if (r != want)
            fail_msg("%s: %s instead of %s (%s)", pokes[i].what, gr_code_name(r), gr_code_name(want), err.text);
        if (pokes[i].open_code)
            assert_non_null(strstr(err.text, "h.vmdk"));
    }
    for (size_t cut = 0; cut < len; cut += cut < 70000 ? 4099 : 511) { /* truncated anywhere: never accepted */
        spill(path, f, cut);
        assert_true(try_image(path, NULL, &err) < 0);
    }
    uint64_t seed = test_seed();
    for (unsigned i = 0; i < 300; i++) { /* random damage: any answer but a crash or a hang */
        gr_auto_free uint8_t *c = malloc(len);
        memcpy(c, f, len);
        for (unsigned k = 0; k < 4; k++) {
            size_t at = test_rand(&seed) % 3 == 0 ? test_rand(&seed) % 128 : test_rand(&seed) % 2 ? len - 1 - test_rand(&seed) % 6000 : test_rand(&seed) % len;
            c[at] = (uint8_t)test_rand(&seed);
        }
        spill(path, c, len);
        (void)try_image(path, NULL, &err);
    }
    close_disk(ch, m);
    return 0;
}
static void hostile_sparse(void **state)
{
    assert_int_equal(gr_fiber_run(loop, hostile, NULL), 0);
}

struct text_case {
    const char *what, *text;
    int code;
};
#define HEAD "# Disk DescriptorFile\nversion=1\nCID=12345678\n"
static const struct text_case texts[] = {
    {"good", HEAD "parentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 16 FLAT \"flat.bin\" 0\n", 0},
    {"CRLF", "# Disk DescriptorFile\r\nversion=1\r\nparentCID=ffffffff\r\nRW 16 FLAT \"flat.bin\" 0\r\n", 0},
    {"two extents and zeros", HEAD "RW 8 FLAT \"flat.bin\" 0\nRW 100 ZERO\nRW 8 VMFS \"flat.bin\" 8\n", 0},
    {"not named", HEAD "RW 16 FLAT \"other.bin\" 0\n", -EACCES},
    {"absolute path", HEAD "RW 16 FLAT \"/etc/passwd\" 0\n", -EACCES},
    {"path upwards", HEAD "RW 1 FLAT \"../flat.bin\" 0\n", -EACCES},
    {"device", HEAD "RW 1 FLAT \"/dev/zero\" 0\n", -EACCES},
    {"truncated extent", HEAD "RW 17 FLAT \"flat.bin\" 0\n", -GR_ECORRUPT},
    {"offset outside", HEAD "RW 1 FLAT \"flat.bin\" 1000000000000\n", -GR_ECORRUPT},
    {"sector overflow", HEAD "RW 36893488147419103232 FLAT \"flat.bin\" 0\n", -GR_EFORMAT},
    {"sectors 2^63", HEAD "RW 9223372036854775807 ZERO\n", -GR_EFORMAT},
    {"sum overflow", HEAD "RW 18014398509481983 ZERO\nRW 18014398509481983 ZERO\n", -GR_EFORMAT},
    {"parent", HEAD "parentCID=deadbeef\nparentFileNameHint=\"h.vmdk\"\nRW 16 FLAT \"flat.bin\" 0\n", -GR_EFORMAT},
    {"no extent", HEAD "createType=\"x\"\n", -GR_EFORMAT},
    {"malformed extent", HEAD "RW x FLAT \"flat.bin\" 0\n", -GR_EFORMAT},
    {"open quote", HEAD "RW 16 FLAT \"flat.bin\n", -GR_EFORMAT},
    {"sparse in a text", HEAD "RW 16 SPARSE \"flat.bin\"\n", -GR_EFORMAT},
    {"garbage line", HEAD "hello\n", -GR_EFORMAT},
};
static int hostile_texts(void *arg)
{
    gr_auto_free char *path = test_path("h.vmdk");
    gr_auto_free char *flat = test_path("flat.bin");
    gr_auto_free char *fifo = test_path("pipe.vmdk");
    const char *named[] = {flat, NULL};
    uint8_t bytes[8192];
    memset(bytes, 0x77, sizeof bytes);
    spill(flat, bytes, sizeof bytes);
    for (unsigned i = 0; i < GR_ARRAY_LEN(texts); i++) {
        struct gr_err err = {0};
        spill(path, texts[i].text, strlen(texts[i].text));
        int r = try_image(path, named, &err);
        if (r != texts[i].code)
            fail_msg("%s: %s instead of %s (%s)", texts[i].what, gr_code_name(r), gr_code_name(texts[i].code), err.text);
    }
    struct gr_err err = {0};
    /* qemu-img replaces its text by a shorter one and leaves the end of the first behind the NUL */
    static const char leftover[] = HEAD "RW 16 FLAT \"flat.bin\" 0\n\0\n", utf16[] = "#\0 \0D\0i\0s\0k\0 \0D\0e\0s\0c\0";
    spill(path, leftover, sizeof leftover - 1);
    assert_int_equal(try_image(path, named, &err), 0);
    spill(path, utf16, sizeof utf16 - 1);
    assert_int_equal(try_image(path, named, &err), -GR_EFORMAT);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(try_image(fifo, NULL, &err), -EINVAL); /* and does not wait for a writer */
    assert_int_equal(try_image("/dev/zero", NULL, &err), -EINVAL);
    /* 10^6 extents */
    size_t len = 0;
    gr_auto_free char *big = malloc(20u << 20);
    len += (size_t)snprintf(big, 20u << 20, "%s", HEAD);
    while (len < 70000)
        len += (size_t)snprintf(big + len, 16, "RW 1 ZERO\n");
    spill(path, big, len);
    assert_int_equal(try_image(path, named, &err), -GR_EFORMAT);
    spill(path, big, 40000);
    assert_int_equal(try_image(path, named, &err), -GR_EFORMAT);
    return 0;
}
static void hostile_descriptors(void **state)
{
    assert_int_equal(gr_fiber_run(loop, hostile_texts, NULL), 0);
}
static int set_up(void **state)
{
    return gr_loop_new(NULL, &loop, NULL);
}
static int tear_down(void **state)
{
    gr_loop_free(loop);
    return 0;
}
int main(void)
{
    const struct CMUnitTest tests[] = {TEST(round_trips), TEST(hostile_sparse), TEST(hostile_descriptors)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
