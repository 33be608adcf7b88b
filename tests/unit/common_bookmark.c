/* Bookmark tokens: there and back, and what is no token. */
#include "common/bdev.h"
#include "tests/lib/test.h"
#include <string.h>

static void roundtrip(void **state)
{
    struct gr_bookmark b = {.lineage = 7, .epoch = UINT64_MAX}, c;
    char text[GR_BOOKMARK_TEXT];
    for (int i = 0; i < 16; i++)
        b.disk[i] = (uint8_t)(i * 17);
    gr_bookmark_format(&b, text);
    assert_string_equal(text, "00112233-4455-6677-8899-aabbccddeeff:7:18446744073709551615");
    assert_int_equal(gr_bookmark_parse(text, &c), 0);
    assert_memory_equal(&b, &c, sizeof(b));
}

static void refused(void **state)
{
    static const char *const bad[] = {
        "", "nightly", "00112233-4455-6677-8899-aabbccddeeff", "00112233-4455-6677-8899-aabbccddeeff:1",
        "00112233-4455-6677-8899-aabbccddeeff:1:", "00112233-4455-6677-8899-aabbccddeeff:1:2:3",
        "00112233-4455-6677-8899-aabbccddeeff:-1:2", "00112233-4455-6677-8899-aabbccddeeff:1:18446744073709551616",
        "0011223344556677-8899-aabbccddeeff--:1:2", "00112233-4455-6677-8899-aabbccddeeff:1:2 ",
    };
    struct gr_bookmark c = {.epoch = 42};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(gr_bookmark_parse(bad[i], &c), -EINVAL);
    char big[4096];
    memset(big, '1', sizeof(big) - 1);
    big[sizeof(big) - 1] = 0;
    assert_int_equal(gr_bookmark_parse(big, &c), -EINVAL);
    assert_int_equal(c.epoch, 42); /* written on success only */
}

TEST_MAIN(TEST(roundtrip), TEST(refused))
