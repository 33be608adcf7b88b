/* Ranges between processes: as text, as objects of earlier releases, and what is neither. */
#include "tests/lib/test.h"
#include "common/range_text.h"
#include <errno.h>
#include <stdio.h>

struct got {
    uint64_t off[8], len[8];
    bool zero[8];
    unsigned n, stop_at;
};
static int note(void *arg, uint64_t off, uint64_t len, bool zero)
{
    struct got *g = arg;
    assert_true(g->n < 8);
    g->off[g->n] = off;
    g->len[g->n] = len;
    g->zero[g->n++] = zero;
    return g->n == g->stop_at ? -ECANCELED : 0;
}

static int text(const char *s, struct got *g)
{
    json_t *part = json_string(s);
    *g = (struct got){ .stop_at = g->stop_at };
    int r = gr_ranges_part(part, note, g);
    json_decref(part);
    return r;
}

static void to_and_fro(void **state)
{
    static const uint64_t v[][2] = { { 0, 1 }, { 0, INT64_MAX }, { INT64_MAX - 1, 1 }, { 4096, 8192 }, { 1ull << 50, 65536 }, { 9, 10 } };
    gr_auto_buf struct gr_buf b = { 0 };
    struct got g = { 0 };
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(gr_ranges_put(&b, v[i][0], v[i][1], i % 2), 0);
    assert_int_equal(strncmp(b.data, "0+1 0+9223372036854775807z ", 27), 0);
    assert_int_equal(text(b.data, &g), 0);
    assert_int_equal(g.n, 6);
    for (unsigned i = 0; i < 6; i++) {
        assert_int_equal(g.off[i], v[i][0]);
        assert_int_equal(g.len[i], v[i][1]);
        assert_int_equal(g.zero[i], i % 2);
    }
    g.stop_at = 3;
    assert_int_equal(text(b.data, &g), -ECANCELED);
    assert_int_equal(g.n, 3);
    g.stop_at = 0;
    assert_int_equal(text("", &g), 0);
    assert_int_equal(g.n, 0);
}

static void objects(void **state)
{
    struct got g = { 0 };
    json_t *part = json_pack("[{s:i,s:i,s:s},{s:i,s:i,s:s}]", "offset", 0, "length", 4096, "state", "data", "offset", 8192, "length", 4096, "state", "zero");
    assert_int_equal(gr_ranges_part(part, note, &g), 0);
    assert_int_equal(g.n, 2);
    assert_true(!g.zero[0] && g.zero[1] && g.off[1] == 8192 && g.len[1] == 4096);
    json_decref(part);
}

static void neither(void **state)
{
    static const char *const bad[] = { "x", "1", "1+", "+1 ", "1+2", "1+2 3", "1+2z3+4 ", "1+2  3+4 ", "1+0 ", "-1+2 ", "1+-2 ", "9223372036854775807+1 ", "1+9223372036854775807 ",
                                       "99999999999999999999+1 ", "1+18446744073709551617 ", "1 + 2 ", "1+2zz " };
    static const char *const docs[] = { "[1]", "[{}]", "[{\"offset\":0,\"length\":0,\"state\":\"data\"}]", "[{\"offset\":-1,\"length\":1,\"state\":\"data\"}]",
                                        "[{\"offset\":0,\"length\":1}]", "[{\"offset\":9223372036854775807,\"length\":1,\"state\":\"data\"}]", "{}", "null", "7" };
    struct got g = { 0 };
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
        if (text(bad[i], &g) != -GR_EPROTO)
            fail_msg("'%s' was taken", bad[i]);
    for (unsigned i = 0; i < sizeof docs / sizeof *docs; i++) {
        json_t *part = json_loads(docs[i], JSON_DECODE_ANY, NULL);
        assert_non_null(part);
        g = (struct got){ 0 };
        if (gr_ranges_part(part, note, &g) != -GR_EPROTO)
            fail_msg("'%s' was taken", docs[i]);
        json_decref(part);
    }
}

TEST_MAIN(TEST(to_and_fro), TEST(objects), TEST(neither))
