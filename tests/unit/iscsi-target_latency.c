/* Histograms of latency: buckets without gaps, percentiles to a fifth, and JSON that adds up. */
#include "iscsi-target/latency.h"
#include "tests/lib/test.h"
#include <stdlib.h>
#include <string.h>

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void buckets(void **state)
{
    for (unsigned i = 0; i < TGT_LATENCY_BUCKETS; i++) {
        struct tgt_latency l = {0};
        uint64_t last = tgt_latency_limit(i), first = i ? tgt_latency_limit(i - 1) + 1 : 0;
        assert_true(first <= last);
        tgt_latency_add(&l, first);
        tgt_latency_add(&l, last);
        assert_int_equal(l.n[i], 2);
    }
    struct tgt_latency l = {0};
    tgt_latency_add(&l, UINT64_MAX / 2);
    assert_int_equal(l.n[TGT_LATENCY_BUCKETS - 1], 1);
    assert_int_equal(l.max_us, UINT64_MAX / 2);
}

static void percentiles(void **state)
{
    static uint64_t v[20000];
    uint64_t rnd = test_seed();
    struct tgt_latency a = {0}, b = {0}, none = {0};
    assert_int_equal(tgt_latency_permille(&none, 990), 0);
    for (unsigned i = 0; i < 20000; i++) {
        v[i] = test_rand(&rnd) % (1u << (test_rand(&rnd) % 24));
        tgt_latency_add(i % 3 ? &a : &b, v[i]);
    }
    tgt_latency_merge(&a, &b);
    qsort(v, 20000, sizeof v[0], by_value);
    static const unsigned permille[] = {1, 500, 900, 990, 999, 1000};
    for (unsigned i = 0; i < sizeof permille / sizeof permille[0]; i++) {
        uint64_t exact = v[20000 * permille[i] / 1000 - 1], got = tgt_latency_permille(&a, permille[i]);
        assert_true(got >= exact);
        assert_true(got <= exact + exact / 4 + 1);
    }
    assert_int_equal(tgt_latency_permille(&a, 1000), v[19999]);
}

static void json(void **state)
{
    struct tgt_latency l = {0};
    json_t *o = tgt_latency_json(&l);
    assert_int_equal(json_array_size(json_object_get(o, "buckets")), 0);
    json_decref(o);
    for (unsigned us = 0; us < 100; us++)
        tgt_latency_add(&l, us);
    o = tgt_latency_json(&l);
    json_t *list = json_object_get(o, "buckets"), *row;
    size_t i;
    json_int_t before = 0;
    json_array_foreach(list, i, row)
    {
        json_int_t le = json_integer_value(json_object_get(row, "le-us")), n = json_integer_value(json_object_get(row, "count"));
        assert_int_equal(n, le < 100 ? le + 1 : 100);
        assert_true(n > before);
        before = n;
    }
    assert_int_equal(before, 100);
    assert_int_equal(json_integer_value(json_object_get(o, "sum-us")), 4950);
    json_decref(o);
}

/* What another process goes on with is all of it, and what cannot be is not taken. */
static void saved(void **state)
{
    struct tgt_latency l = {0}, none = {0}, all = {0}, twice = {0};
    uint64_t rnd = 7;
    for (unsigned i = 0; i < 3000; i++)
        tgt_latency_add(&l, test_rand(&rnd) % (1u << (test_rand(&rnd) % 28)));
    json_t *o = tgt_latency_save(&l), *nothing = tgt_latency_save(&none);
    tgt_latency_load(&all, o);
    tgt_latency_load(&all, nothing);
    tgt_latency_load(&all, NULL);
    assert_memory_equal(&all, &l, sizeof l);
    tgt_latency_load(&all, o);
    tgt_latency_merge(&twice, &l);
    tgt_latency_merge(&twice, &l);
    assert_memory_equal(&all, &twice, sizeof all);
    json_array_append_new(json_object_get(nothing, "n"), json_integer(-1));
    tgt_latency_load(&all, nothing);
    assert_memory_equal(&all, &twice, sizeof all);
    json_decref(o);
    json_decref(nothing);
}

TEST_MAIN(TEST(buckets), TEST(percentiles), TEST(json), TEST(saved))
