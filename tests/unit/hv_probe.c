/* The KVM probe: whatever the machine has, a verdict with a reason, in time; cached for this boot only. */
#include "common/cleanup.h"
#include "hv/probe.h"
#include "tests/lib/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void test_no_device(void **state)
{
    struct hv_probe p = {.verdict = HV_ACCEL_KVM};
    hv_probe_run("/nonexistent/kvm", &p);
    assert_int_equal(p.verdict, HV_ACCEL_TCG);
    assert_non_null(strstr(p.reason, "cannot be opened"));
    hv_probe_run("/dev/null", &p);
    assert_int_equal(p.verdict, HV_ACCEL_TCG);
    assert_non_null(strstr(p.reason, "API version"));
}

static void test_in_time(void **state)
{
    struct hv_probe p = {0};
    uint64_t begin = now_ms();
    hv_probe_run("/dev/kvm", &p);
    uint64_t took = now_ms() - begin;
    print_message("# %s: %s (%llu ms)\n", hv_accel_name(p.verdict), p.reason, (unsigned long long)took);
    assert_true(took < HV_PROBE_MS + 200);
    assert_true(strlen(p.reason) > 10);
}

static int cached(void *arg)
{
    struct gr_home *home = arg;
    struct hv_probe p = {0};
    assert_int_equal(hv_probe_mark_bad(home, "because of a test", NULL), 0);
    assert_int_equal(hv_probe_get(home, &p, NULL), 0);
    assert_string_equal(p.reason, "because of a test");
    /* another boot: the verdict counts no more */
    json_auto_t *doc = NULL;
    assert_int_equal(gr_home_load(home, "state/kvm.json", &doc, NULL), 0);
    json_object_set_new(doc, "boot-id", json_string("another"));
    assert_int_equal(gr_home_save(home, "state/kvm.json", doc, NULL), 0);
    assert_int_equal(hv_probe_get(home, &p, NULL), 0);
    assert_string_not_equal(p.reason, "because of a test");
    return 0;
}

static void test_cache(void **state)
{
    struct gr_loop *loop = NULL;
    struct gr_home *home = NULL;
    gr_auto_free char *dir = test_path("home");
    setenv("GRANARY_HOME", dir, 1);
    assert_int_equal(gr_home_open(1, &home, NULL), 0);
    assert_int_equal(gr_loop_new(NULL, &loop, NULL), 0);
    assert_int_equal(gr_fiber_run(loop, cached, home), 0);
    gr_loop_free(loop);
    gr_home_free(home);
}

TEST_MAIN(TEST(test_no_device), TEST(test_in_time), TEST(test_cache))
