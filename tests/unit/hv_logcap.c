/* The capped log: whatever is written, the space is never exceeded and the newest is what remains. */
#include "common/cleanup.h"
#include "hv/logcap.h"
#include "tests/lib/test.h"
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static uint64_t on_disk(const char *path)
{
    gr_auto_free char *old = NULL;
    struct stat st;
    uint64_t n = stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;
    assert_true(asprintf(&old, "%s.1", path) > 0);
    return n + (stat(old, &st) == 0 ? (uint64_t)st.st_size : 0);
}

static void test_cap(void **state)
{
    uint64_t seed = test_seed();
    gr_auto_free char *path = test_path("console.log");
    gr_auto_buf struct gr_buf all = {0}, kept = {0};
    struct hv_logcap *l = NULL;
    const uint64_t max = 8192;
    assert_int_equal(hv_logcap_open(path, max, &l, NULL), 0);
    for (unsigned i = 0; i < 400; i++) {
        char chunk[6000];
        size_t n = test_rand(&seed) % (i % 20 ? 200 : sizeof chunk);
        memset(chunk, 'a' + (int)(i % 26), sizeof chunk);
        gr_buf_add(&all, chunk, n);
        hv_logcap_write(l, chunk, n);
        assert_true(on_disk(path) <= max);
        if (i == 200) { /* another process goes on where this one stopped */
            hv_logcap_close(l);
            assert_int_equal(hv_logcap_open(path, max, &l, NULL), 0);
        }
    }
    assert_int_equal(hv_logcap_lost(l), 0);
    assert_int_equal(hv_logcap_read(path, max, &kept, NULL), 0);
    assert_true(kept.len >= max / 2 && kept.len <= max);
    assert_memory_equal(kept.data, all.data + all.len - kept.len, kept.len);
    kept.len = 0;
    assert_int_equal(hv_logcap_read(path, 100, &kept, NULL), 0);
    assert_int_equal(kept.len, 100);
    assert_memory_equal(kept.data, all.data + all.len - 100, 100);
    hv_logcap_close(l);
    /* a smaller cap shrinks what an earlier process left */
    assert_int_equal(hv_logcap_open(path, 4096, &l, NULL), 0);
    for (int i = 0; i < 100; i++)
        hv_logcap_write(l, all.data, 100);
    assert_true(on_disk(path) <= 4096 + 2048);
    hv_logcap_close(l);
}

static void test_full_disk(void **state)
{
    struct hv_logcap *l = NULL;
    assert_int_equal(hv_logcap_open("/dev/full", 8192, &l, NULL), 0);
    hv_logcap_write(l, "hello", 5);
    assert_int_equal(hv_logcap_lost(l), 5);
    hv_logcap_close(l);
    assert_true(hv_logcap_open("/nonexistent/x", 8192, &l, NULL) < 0);
    gr_auto_buf struct gr_buf b = {0};
    gr_auto_free char *none = test_path("none");
    assert_int_equal(hv_logcap_read(none, 10, &b, NULL), 0);
    assert_int_equal(b.len, 0);
}

TEST_MAIN(TEST(test_cap), TEST(test_full_disk))
