/* The smaller parts of jobs: machine configurations, lists of changes, the ordered pipeline, sets of places. */
#include "backup-proxy/pipe.h"
#include "backup-proxy/placeset.h"
#include "backup-proxy/ranges.h"
#include "backup-proxy/vm_config.h"
#include "common/cleanup.h"
#include "tests/lib/test.h"
#include <string.h>

static void vm_configs(void **state)
{
    static const char text[] = "# a machine\ngranary.version = \"1\"\ndisplayName=\"web\"\n  DISK0.fileName  =  \"ds1/web/ro|22ot\"\nstrange line\nmemsize = \"256\"";
    gr_auto_free char *name = bp_vm_config_get(text, "displayname");
    gr_auto_free char *disk = bp_vm_config_get(text, "disk0.fileName");
    gr_auto_free char *mem = bp_vm_config_get(text, "memsize");
    assert_string_equal(name, "web");
    assert_string_equal(disk, "ds1/web/ro\"ot");
    assert_string_equal(mem, "256");
    assert_null(bp_vm_config_get(text, "disk0"));
    assert_null(bp_vm_config_get(text, "# a machine"));
    assert_null(bp_vm_config_get("", "x"));
    gr_auto_buf struct gr_buf b = {0};
    assert_true(bp_vm_config_set(text, "DisplayName", "a \"b\"|c", &b) >= 0);
    gr_auto_free char *back = bp_vm_config_get(b.data, "displayName");
    assert_string_equal(back, "a \"b\"|c");
    assert_non_null(strstr(b.data, "strange line\n"));
    gr_auto_buf struct gr_buf c = {0};
    assert_true(bp_vm_config_set(b.data, "memsize", NULL, &c) >= 0);
    assert_null(bp_vm_config_get(c.data, "memsize"));
    gr_auto_buf struct gr_buf d = {0};
    assert_true(bp_vm_config_set(c.data, "new.key", "v", &d) >= 0);
    gr_auto_free char *added = bp_vm_config_get(d.data, "new.key");
    assert_string_equal(added, "v");
    gr_auto_free char *file = bp_vm_config_file("ds1/deep/web");
    assert_string_equal(file, "ds1/deep/web/web.vmx");
}

static void ranges(void **state)
{
    struct bp_ranges r = {.v = NULL};
    struct bp_change c;
    assert_int_equal(bp_ranges_add(&r, 4096, 4096, false), 0);
    assert_int_equal(bp_ranges_add(&r, 8192, 4096, false), 0); /* merged */
    assert_int_equal(bp_ranges_add(&r, 12288, 4096, true), 0);
    assert_int_equal(r.n, 2);
    assert_int_equal(bp_ranges_add(&r, 8192, 4096, false), -GR_EPROTO); /* backwards */
    assert_int_equal(bp_ranges_add(&r, 1u << 20, 0, false), -GR_EPROTO);
    assert_int_equal(bp_ranges_add(&r, UINT64_MAX - 5, 4096, false), -GR_EPROTO);
    assert_int_equal(bp_ranges_add(&r, 1u << 20, UINT64_MAX, false), -GR_EPROTO);
    assert_int_equal(bp_ranges_next(&r, &c, NULL), 1);
    assert_true(c.off == 4096 && c.len == 8192 && !c.zero);
    bp_ranges_done(&r);
    /* more than are kept apart: still ascending, disjoint, and nothing that changed is missing */
    uint64_t n = BP_RANGES_MAX + 1000, covered = 0, last = 0;
    for (uint64_t i = 0; i < n; i++)
        assert_int_equal(bp_ranges_add(&r, i * 8192, 4096, i % 2), 0);
    assert_true(r.n <= BP_RANGES_MAX);
    while (bp_ranges_next(&r, &c, NULL) > 0) {
        assert_true(c.off >= last);
        for (uint64_t i = c.off / 8192; i * 8192 < c.off + c.len; i++)
            covered++;
        last = c.off + c.len;
    }
    assert_int_equal(covered, n);
    bp_ranges_done(&r);
}

/* ---- the pipeline ---- */
struct item {
    uint64_t number;
    uint64_t squared;
};
struct run {
    uint64_t next, limit, fail_take, fail_load, fail_work, fail_commit, committed, rnd;
};
static struct run *the_run(void *arg)
{
    return arg;
}
static int p_next(void *arg, void *slot, struct gr_err *err)
{
    struct run *r = the_run(arg);
    struct item *it = slot;
    if (r->next == r->limit)
        return 0;
    if (r->next == r->fail_take)
        return gr_fail(err, -EIO, "take %llu", (unsigned long long)r->next);
    it->number = r->next++;
    if (test_rand(&r->rnd) % 3 == 0)
        gr_fiber_yield();
    return 1;
}
static int p_load(void *arg, void *slot, struct gr_err *err)
{
    struct run *r = the_run(arg);
    const struct item *it = slot;
    for (unsigned i = (unsigned)(test_rand(&r->rnd) % 4); i > 0; i--)
        gr_fiber_yield();
    return it->number == r->fail_load ? gr_fail(err, -EIO, "load %llu", (unsigned long long)it->number) : 0;
}
static int p_work(void *slot)
{
    struct item *it = slot;
    it->squared = it->number * it->number;
    return it->number == 777 ? -ENOMEM : 0;
}
static int p_commit(void *arg, void *slot, struct gr_err *err)
{
    struct run *r = the_run(arg);
    const struct item *it = slot;
    assert_int_equal(it->number, r->committed); /* in order, none left out */
    assert_int_equal(it->squared, it->number * it->number);
    if (it->number == r->fail_commit)
        return gr_fail(err, -EIO, "commit %llu", (unsigned long long)it->number);
    if (test_rand(&r->rnd) % 3 == 0)
        gr_fiber_yield();
    r->committed++;
    return 0;
}
static int pipelines(void *arg)
{
    static const struct bp_pipe_ops ops = {p_next, p_load, p_work, p_commit};
    uint64_t seed = test_seed();
    for (unsigned lanes = 1; lanes <= 16; lanes += 5) {
        struct item slots[16];
        struct gr_err err = {0};
        struct run r = {.limit = 300, .fail_take = UINT64_MAX, .fail_load = UINT64_MAX, .fail_commit = UINT64_MAX, .rnd = seed};
        assert_int_equal(bp_pipe_run(&ops, &r, slots, sizeof slots[0], lanes, &err), 0);
        assert_int_equal(r.committed, 300);
        r = (struct run){.limit = 300, .fail_take = 100, .fail_load = UINT64_MAX, .fail_commit = UINT64_MAX, .rnd = seed};
        assert_int_equal(bp_pipe_run(&ops, &r, slots, sizeof slots[0], lanes, &err), -EIO);
        assert_string_equal(err.text, "take 100");
        assert_true(r.committed <= 100);
        r = (struct run){.limit = 300, .fail_take = UINT64_MAX, .fail_load = 50, .fail_commit = UINT64_MAX, .rnd = seed};
        assert_int_equal(bp_pipe_run(&ops, &r, slots, sizeof slots[0], lanes, &err), -EIO);
        assert_string_equal(err.text, "load 50");
        assert_true(r.committed <= 50); /* nothing behind a failure is committed */
        r = (struct run){.limit = 300, .fail_take = UINT64_MAX, .fail_load = UINT64_MAX, .fail_commit = 200, .rnd = seed};
        assert_int_equal(bp_pipe_run(&ops, &r, slots, sizeof slots[0], lanes, &err), -EIO);
        assert_int_equal(r.committed, 200);
        r = (struct run){.limit = 900, .fail_take = UINT64_MAX, .fail_load = UINT64_MAX, .fail_commit = UINT64_MAX, .rnd = seed};
        err = (struct gr_err){0};
        assert_int_equal(bp_pipe_run(&ops, &r, slots, sizeof slots[0], lanes, &err), -ENOMEM);
        assert_int_equal(r.committed, 777);
        assert_true(err.text[0]);
    }
    return 0;
}
static void pipes(void **state)
{
    struct gr_loop *loop = NULL;
    assert_int_equal(gr_loop_new(NULL, &loop, NULL), 0);
    assert_int_equal(gr_fiber_run(loop, pipelines, NULL), 0);
    gr_loop_free(loop);
}
static void places(void **state)
{
    struct bp_placeset s = {.v = NULL};
    assert_false(bp_placeset_has(&s, 1, 2));
    for (uint64_t i = 1; i < 20000; i++)
        assert_int_equal(bp_placeset_add(&s, i * 77 % 1009 + 1, (uint32_t)(i * 8)), 1);
    for (uint64_t i = 1; i < 20000; i++) {
        assert_true(bp_placeset_has(&s, i * 77 % 1009 + 1, (uint32_t)(i * 8)));
        assert_int_equal(bp_placeset_add(&s, i * 77 % 1009 + 1, (uint32_t)(i * 8)), 0);
    }
    assert_false(bp_placeset_has(&s, 5000, 8));
    assert_int_equal(s.n, 19999);
    bp_placeset_done(&s);
}
TEST_MAIN(TEST(vm_configs), TEST(ranges), TEST(pipes), TEST(places))
