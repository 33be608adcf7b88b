/* DATASTORE/PATH[@SNAPSHOT]: what is taken, what is refused, and that the sentence names the cause. */
#include "snapshot/service.h"
#include "tests/lib/test.h"
#include <string.h>

struct good {
    const char *text;
    enum snap_path_kind kind;
    const char *ds, *path, *snap;
};
struct bad {
    const char *text;
    enum snap_path_kind kind;
    const char *why; /* must occur in the sentence */
};

static void test_good(void **state)
{
    static const struct good t[] = {
        {"ds1/web01", SNAP_PATH_DISK, "ds1", "web01", ""},
        {"ds1/vm/web01/root", SNAP_PATH_DISK, "ds1", "vm/web01/root", ""},
        {"ds1/web01@nightly", SNAP_PATH_SNAPSHOT, "ds1", "web01", "nightly"},
        {"ds1/web01@nightly", SNAP_PATH_EITHER, "ds1", "web01", "nightly"},
        {"ds1/web01", SNAP_PATH_EITHER, "ds1", "web01", ""},
        {"ds1", SNAP_PATH_DIR, "ds1", "", ""},
        {"ds1/", SNAP_PATH_DIR, "ds1", "", ""},
        {"ds1/a/b", SNAP_PATH_DIR, "ds1", "a/b", ""},
        {"ds1/\xc3\xa4 b", SNAP_PATH_DISK, "ds1", "\xc3\xa4 b", ""},
        {"a/...", SNAP_PATH_DISK, "a", "...", ""},
    };
    for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
        struct snap_path p;
        struct gr_err err = {0};
        assert_int_equal(snap_path_parse(t[i].text, t[i].kind, &p, &err), 0);
        assert_string_equal(p.ds, t[i].ds);
        assert_string_equal(p.path, t[i].path);
        assert_string_equal(p.snap, t[i].snap);
    }
}

static void refused(const char *text, enum snap_path_kind kind, const char *why)
{
    struct snap_path p;
    struct gr_err err = {0};
    memset(&p, 0x5a, sizeof(p));
    assert_int_equal(snap_path_parse(text, kind, &p, &err), -GR_EUSAGE);
    assert_int_equal(p.ds[0], 0x5a); /* outputs are untouched */
    if (!strstr(err.text, why))
        fail_msg("'%s' gave '%s', which does not say '%s'", text, err.text, why);
    assert_null(strchr(err.text, '\n'));
}

static void test_bad(void **state)
{
    static const struct bad t[] = {
        {"", SNAP_PATH_DISK, "DATASTORE/PATH"},
        {"ds1", SNAP_PATH_DISK, "'ds1' names no disk"},
        {"ds1/", SNAP_PATH_DISK, "names no disk"},
        {"/x", SNAP_PATH_DISK, "empty"},
        {"ds1/../etc", SNAP_PATH_DISK, "'..' is not allowed"},
        {"ds1/a/..", SNAP_PATH_DISK, "'..' is not allowed"},
        {"ds1/.", SNAP_PATH_DISK, "'.' is not allowed"},
        {"ds1/a//b", SNAP_PATH_DISK, "empty"},
        {"ds1//b", SNAP_PATH_DISK, "empty"},
        {"ds1/a/", SNAP_PATH_DISK, "end with '/'"},
        {"ds1/a:b", SNAP_PATH_DISK, "':'"},
        {"ds1/a@b", SNAP_PATH_DISK, "'@'"},
        {"ds1/a", SNAP_PATH_SNAPSHOT, "names no snapshot"},
        {"ds1/a@", SNAP_PATH_SNAPSHOT, "empty"},
        {"ds1/a@b@c", SNAP_PATH_SNAPSHOT, "'@'"},
        {"ds1/a@b/c", SNAP_PATH_SNAPSHOT, "'/'"},
        {"ds1/a@..", SNAP_PATH_SNAPSHOT, "not allowed"},
        {"ds1@b", SNAP_PATH_SNAPSHOT, "names no disk"},
        {"ds1/a\nb", SNAP_PATH_DISK, "control character"},
        {"ds1/\xff\xfe", SNAP_PATH_DISK, "not UTF-8"},
        {"ds1/\xc0\xaf", SNAP_PATH_DISK, "not UTF-8"},
        {"-ds/a", SNAP_PATH_DISK, "'-'"},
        {".ds/a", SNAP_PATH_DISK, "'.'"},
        {"ds1/granary.tmp/x", SNAP_PATH_DISK, "Granary's own"},
        {"d s/a", SNAP_PATH_DISK, "letters"},
    };
    for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++)
        refused(t[i].text, t[i].kind, t[i].why);
}

static void test_long(void **state)
{
    char text[5000] = "ds1/";
    memset(text + 4, 'x', 300);
    refused(text, SNAP_PATH_DISK, "300 bytes");
    memset(text + 4, 'x', 255);
    text[4 + 255] = 0;
    struct snap_path p;
    assert_int_equal(snap_path_parse(text, SNAP_PATH_DISK, &p, NULL), 0);
    for (size_t i = 4; i < sizeof(text) - 1; i++)
        text[i] = i % 2 ? '/' : 'x';
    text[sizeof(text) - 1] = 0;
    refused(text, SNAP_PATH_DISK, "at most 4096");
    memset(text, 'd', 64);
    memcpy(text + 64, "/a", 3);
    refused(text, SNAP_PATH_DISK, "longer than 63");
    /* a two-byte character across the place where the message is cut */
    memcpy(text, "ds1/", 4);
    for (size_t i = 4; i < 400; i += 2)
        memcpy(text + i, "\xc3\xa4", 2);
    text[400] = 0;
    refused(text, SNAP_PATH_DISK, "396 bytes");
}

static void test_snapshot_names(void **state)
{
    assert_int_equal(snap_name_check("nightly", NULL), 0);
    assert_int_equal(snap_name_check("granary", NULL), 0);
    assert_int_equal(snap_name_check("", NULL), -GR_EUSAGE);
    assert_int_equal(snap_name_check("a@b", NULL), -GR_EUSAGE);
    assert_int_equal(snap_name_check("granary.export.1", NULL), -GR_EUSAGE);
    assert_int_equal(snap_name_check(SNAP_TEMPLATE, NULL), -GR_EUSAGE);
    assert_int_equal(snap_name_check("..", NULL), -GR_EUSAGE);
}

TEST_MAIN(TEST(test_good), TEST(test_bad), TEST(test_long), TEST(test_snapshot_names))
