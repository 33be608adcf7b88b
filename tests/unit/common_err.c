#include "common/err.h"
#include "tests/lib/test.h"
#include <string.h>

static void codes_map(void **state)
{
    assert_int_equal(GR_ECORRUPT, 4096);
    assert_int_equal(gr_code_exit(-GR_ECORRUPT), 5);
    assert_int_equal(gr_code_exit(-GR_ELOCKED), 4);
    assert_int_equal(gr_code_exit(-GR_EPARTIAL), 3);
    assert_int_equal(gr_code_exit(-GR_EUSAGE), 2);
    assert_int_equal(gr_code_exit(-ENOENT), 1);
    assert_int_equal(gr_code_exit(7), 0);
    assert_int_equal(gr_code_errno(-GR_EFENCED), EROFS);
    assert_int_equal(gr_code_errno(-ENOENT), ENOENT);
    assert_int_equal(gr_code_errno(-99999), EIO);
    struct gr_sense s = gr_code_sense(-GR_EMISCOMPARE);
    assert_int_equal(s.key, 0x0e);
    assert_int_equal(s.asc, 0x1d);
    s = gr_code_sense(-GR_ENOSPACE);
    assert_int_equal(s.key << 16 | s.asc << 8 | s.ascq, 0x072707);
    s = gr_code_sense(-EIO);
    assert_int_equal(s.key, 0x04);
    assert_int_equal(gr_code_sense(0).key, 0);
}

static void names_round_trip(void **state)
{
    static const int some[] = {-GR_ECORRUPT, -GR_ERESERVED, -GR_EMEDIUM, -ENOENT, -EPIPE, -ETIMEDOUT, -EIO};
    for (size_t i = 0; i < sizeof(some) / sizeof(some[0]); i++)
        assert_int_equal(gr_code_from_name(gr_code_name(some[i])), some[i]);
    assert_string_equal(gr_code_name(-GR_EFENCED), "GR_EFENCED");
    assert_string_equal(gr_code_name(-ENOENT), "ENOENT");
    assert_string_equal(gr_code_name(-77777), "EIO");
    assert_int_equal(gr_code_from_name("nonsense"), -EIO);
    assert_int_equal(gr_code_from_name(gr_code_name(0)), 0);
}

static void sentences(void **state)
{
    struct gr_err e = {0};
    assert_string_equal(gr_err_text(&e, -ENOENT), "No such file or directory");
    assert_string_equal(gr_err_text(NULL, -GR_EFORMAT), "not in a known format");
    assert_int_equal(gr_fail(&e, -ENOSPC, "volume '%s': full", "ds1"), -ENOSPC);
    assert_int_equal(gr_prefix(&e, -EIO, "disk '%s'", "a"), -ENOSPC);
    assert_string_equal(gr_err_text(&e, 0), "disk 'a': volume 'ds1': full");
    assert_int_equal(gr_fail(NULL, -EIO, "x"), -EIO);
    assert_int_equal(gr_prefix(NULL, -EIO, "x"), -EIO);
    struct gr_err fresh = {0};
    assert_int_equal(gr_prefix(&fresh, -ENOENT, "here"), -ENOENT);
    assert_string_equal(fresh.text, "here: No such file or directory");
    char long_text[1999];
    memset(long_text, 'x', sizeof(long_text) - 1);
    long_text[sizeof(long_text) - 1] = 0;
    gr_fail(&e, -EIO, "%s", long_text);
    gr_prefix(&e, -EIO, "%s", long_text);
    assert_int_equal(strlen(e.text), GR_ERR_TEXT - 1);
    gr_fail(&e, -EIO, "the cause, and what to do about it");
    gr_prefix(&e, -EIO, "disk %s", long_text);
    assert_non_null(strstr(e.text, "xxx…: the cause, and what to do about it"));
    for (size_t i = 0; i + 1 < sizeof(long_text); i++)
        long_text[i] = "\xc3\xa4"[i % 2];
    for (unsigned i = 0; i < 2; i++) {
        gr_fail(&e, -EIO, "the cause");
        gr_prefix(&e, -EIO, "%s%s", i ? "a" : "", long_text);
        assert_non_null(strstr(e.text, "\xc3\xa4…: the cause")); /* no half of a character */
    }
}

TEST_MAIN(TEST(codes_map), TEST(names_round_trip), TEST(sentences))
