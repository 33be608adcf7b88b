#include "common/b64.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "tests/lib/test.h"
#include <errno.h>
#include <string.h>

static void test_vectors(void **state)
{
    static const char *const v[][2] = {{"", ""}, {"f", "Zg=="}, {"fo", "Zm8="}, {"foo", "Zm9v"}, {"foob", "Zm9vYg=="}, {"fooba", "Zm9vYmE="}, {"foobar", "Zm9vYmFy"}};
    for (size_t i = 0; i < GR_ARRAY_LEN(v); i++) {
        gr_auto_free char *t = gr_b64_encode(v[i][0], strlen(v[i][0]));
        assert_string_equal(t, v[i][1]);
        gr_auto_buf struct gr_buf b = {0};
        assert_int_equal(gr_b64_decode(t, strlen(t), &b), 0);
        assert_int_equal(b.len, strlen(v[i][0]));
        assert_memory_equal(b.data ? b.data : "", v[i][0], b.len);
    }
}

static void test_refused(void **state)
{
    static const char *const bad[] = {"Z", "Zg", "Zg=", "Zh==", "Zm9=", "Z===", "====", "Zg==Zg==", "Zm9v\n", "Zm-_", "Zg=a", "Zm9vZm9"};
    for (size_t i = 0; i < GR_ARRAY_LEN(bad); i++) {
        gr_auto_buf struct gr_buf b = {0};
        gr_buf_add(&b, "x", 1);
        assert_int_equal(gr_b64_decode(bad[i], strlen(bad[i]), &b), -EINVAL);
        assert_int_equal(b.len, 1);
    }
}

static void test_random(void **state)
{
    uint64_t seed = test_seed();
    for (unsigned i = 0; i < test_cases(500); i++) {
        uint8_t data[200];
        size_t len = test_rand(&seed) % sizeof data;
        for (size_t k = 0; k < len; k++)
            data[k] = (uint8_t)test_rand(&seed);
        gr_auto_free char *t = gr_b64_encode(data, len);
        gr_auto_buf struct gr_buf b = {0};
        assert_int_equal(gr_b64_decode(t, strlen(t), &b), 0);
        assert_int_equal(b.len, len);
        assert_true(!len || !memcmp(b.data, data, len));
    }
}

TEST_MAIN(TEST(test_vectors), TEST(test_refused), TEST(test_random))
