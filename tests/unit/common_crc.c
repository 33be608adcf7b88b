#include "common/crc.h"
#include "tests/lib/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* RFC 3720 appendix B.4 */
static void published_vectors(void **state)
{
    uint8_t b[48] = {0};
    assert_int_equal(gr_crc32c(0, b, 32), 0x8a9136aa);
    memset(b, 0xff, 32);
    assert_int_equal(gr_crc32c(0, b, 32), 0x62a8ab43);
    for (int i = 0; i < 32; i++)
        b[i] = (uint8_t)i;
    assert_int_equal(gr_crc32c(0, b, 32), 0x46dd794e);
    for (int i = 0; i < 32; i++)
        b[i] = (uint8_t)(31 - i);
    assert_int_equal(gr_crc32c(0, b, 32), 0x113fdb5c);
    static const uint8_t read10[48] = {0x01, 0xc0, [16] = 0x14, [22] = 0x04, [27] = 0x14, [31] = 0x18, 0x28, [40] = 0x02};
    assert_int_equal(gr_crc32c(0, read10, 48), 0xd9963a56);
    assert_int_equal(gr_crc32c(0, "123456789", 9), 0xe3069283);
    assert_int_equal(gr_crc32c_table(0, "123456789", 9), 0xe3069283);
    assert_int_equal(gr_crc32c(0, NULL, 0), 0);
}

/* One bit at a time, from the definition. */
static uint32_t slow_crc(const uint8_t *p, size_t len)
{
    uint32_t c = 0xffffffffu;
    while (len--) {
        c ^= *p++;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
    }
    return ~c;
}

static void agrees_with_definition(void **state)
{
    uint64_t seed = test_seed();
    size_t max = 70000;
    uint8_t *b = malloc(max + 16);
    for (size_t i = 0; i < max + 16; i++)
        b[i] = (uint8_t)test_rand(&seed);
    for (unsigned i = 0; i < test_cases(400); i++) {
        size_t len = test_rand(&seed) % (i % 4 == 0 ? max : i % 4 == 1 ? 1200 : 60), off = test_rand(&seed) % 16;
        size_t cut = len ? test_rand(&seed) % len : 0;
        uint32_t want = slow_crc(b + off, len);
        assert_int_equal(gr_crc32c(0, b + off, len), want);
        assert_int_equal(gr_crc32c_table(0, b + off, len), want);
        assert_int_equal(gr_crc32c(gr_crc32c(0, b + off, cut), b + off + cut, len - cut), want);
    }
    free(b);
}

TEST_MAIN(TEST(published_vectors), TEST(agrees_with_definition))
