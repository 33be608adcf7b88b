#include "common/buf.h"
#include "common/err.h"
#include "common/seam.h"
#include "tests/lib/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void grows(void **state)
{
    struct gr_buf b = {0};
    for (int i = 0; i < 1000; i++)
        assert_int_equal(gr_buf_printf(&b, "%03d,", i), 0);
    assert_int_equal(b.len, 4000);
    assert_int_equal(b.data[b.len], 0);
    assert_memory_equal(b.data + 3996, "999,", 5);
    assert_int_equal(gr_buf_zero(&b, 5000), 0);
    assert_int_equal(b.len, 9000);
    assert_int_equal(b.data[8999], 0);
    assert_int_equal(gr_buf_reserve(&b, SIZE_MAX - 10), -ENOMEM);
    char *p = gr_buf_take(&b);
    assert_null(b.data);
    free(p);
    /* a buffer filled exactly to its capacity still has room for its NUL */
    for (size_t n = 1; n < 300; n++) {
        struct gr_buf c = {0};
        char fill[300];
        memset(fill, 'a', sizeof(fill));
        assert_int_equal(gr_buf_add(&c, fill, n), 0);
        assert_int_equal(strlen(c.data), n);
        gr_buf_done(&c);
    }
}

static void allocation_fails(void **state)
{
    struct gr_buf b = {0};
    gr_alloc_fail_after(0, 0);
    assert_int_equal(gr_buf_add(&b, "x", 1), -ENOMEM);
    assert_int_equal(gr_buf_add(&b, "x", 1), 0); /* one failure only */
    gr_alloc_fail_after(2, 1);
    free(gr_alloc(1));
    free(gr_zalloc(1));
    assert_null(gr_strdup("x"));
    assert_null(gr_asprintf("x"));
    assert_null(gr_alloc_aligned(4096, 1));
    gr_alloc_fail_after(-1, 0);
    char *p = gr_asprintf("%d", 42);
    assert_string_equal(p, "42");
    free(p);
    p = gr_alloc_aligned(4096, 10);
    assert_int_equal((uintptr_t)p & 4095, 0);
    free(p);
    gr_buf_done(&b);
}

static void sizes(void **state)
{
    static const struct {
        const char *text;
        uint64_t want;
    } good[] = {{"0", 0}, {"1536", 1536}, {"64K", 65536}, {"64k", 65536}, {"10G", 10737418240u}, {"1T", 1099511627776u},
                {"8191P", 8191ull << 50}, {"9223372036854775807", INT64_MAX}};
    static const char *const bad[] = {"", "-1", "K", "1.5G", "10GB", "10 G", " 1", "+1", "0x10", "1X", "9223372036854775808", "8192P",
                                      "99999999999999999999999", "1K1"};
    struct gr_err err = {0};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        uint64_t v = 1;
        assert_int_equal(gr_parse_size(good[i].text, &v, &err), 0);
        assert_true(v == good[i].want);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        uint64_t v = 12345;
        err = (struct gr_err){0};
        assert_int_equal(gr_parse_size(bad[i], &v, &err), -GR_EUSAGE);
        assert_int_equal(v, 12345);
        assert_true(err.text[0] != 0);
    }
    uint64_t v;
    assert_int_equal(gr_parse_u64("17", 1, 20, &v, NULL), 0);
    assert_int_equal(v, 17);
    assert_int_equal(gr_parse_u64("21", 1, 20, &v, &err), -GR_EUSAGE);
    assert_int_equal(gr_parse_u64("18446744073709551615", 0, UINT64_MAX, &v, NULL), 0);
    assert_int_equal(gr_parse_u64("18446744073709551616", 0, UINT64_MAX, &v, NULL), -GR_EUSAGE);
    assert_int_equal(gr_parse_u64("1K", 0, UINT64_MAX, &v, NULL), -GR_EUSAGE);
    char out[16];
    static const struct {
        uint64_t n;
        const char *want;
    } shown[] = {{0, "0 B"}, {1023, "1023 B"}, {1024, "1 KiB"}, {1536, "1.5 KiB"}, {1ull << 40, "1 TiB"}, {UINT64_MAX, "16 EiB"}};
    for (size_t i = 0; i < sizeof(shown) / sizeof(shown[0]); i++) {
        gr_format_size(shown[i].n, out);
        assert_string_equal(out, shown[i].want);
    }
}

static void utf8(void **state)
{
    static const char *const good[] = {"", "plain", "Gr\xc3\xa4ser", "\xe2\x82\xac", "\xf0\x9f\x90\xb3", "\xf4\x8f\xbf\xbf"};
    static const char *const bad[] = {"\x01", "a\nb", "\x7f", "\xc0\xaf", "\xe0\x80\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xff",
                                      "\xc3", "\xe2\x82", "\xc2\x85", "\x80"};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_int_equal(gr_utf8_ok(good[i], strlen(good[i])), 1);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(gr_utf8_ok(bad[i], strlen(bad[i])), 0);
    assert_int_equal(gr_utf8_ok("a\0b", 3), 0);
}

static void uuids(void **state)
{
    uint8_t u[16], v[16] = {0};
    char text[37];
    for (int i = 0; i < 16; i++)
        u[i] = (uint8_t)(i * 17);
    gr_uuid_format(u, text);
    assert_string_equal(text, "00112233-4455-6677-8899-aabbccddeeff");
    assert_int_equal(gr_uuid_parse("00112233-4455-6677-8899-AABBCCDDEEFF", v), 0);
    assert_memory_equal(u, v, 16);
    assert_int_equal(gr_uuid_parse("00112233-4455-6677-8899-aabbccddeef", v), -EINVAL);
    assert_int_equal(gr_uuid_parse("00112233x4455-6677-8899-aabbccddeeff", v), -EINVAL);
    assert_int_equal(gr_uuid_parse("0011223g-4455-6677-8899-aabbccddeeff", v), -EINVAL);
}

TEST_MAIN(TEST(grows), TEST(allocation_fails), TEST(sizes), TEST(utf8), TEST(uuids))
