/* Rules of disks that a datastore keeps: where they are looked for, changed, and brought over to, whatever happens meanwhile. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "iscsi-target/lun_access.h"
#include "tests/lib/test.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define ME "iqn.2026-11.org.example:me"
#define OTHER "iqn.2026-11.org.example:other"

/* A datastore "ds" with disks; each row as gr_rules.get gives it. */
struct store {
    json_t *rows; /* {DISK: row}; every disk that exists */
    int fail_get, fail_change;
    const char *untold;
    unsigned changes;
};
static struct gr_err err;

static int store_get(void *arg, const char *disk, json_t **ret, struct gr_err *e)
{
    struct store *s = arg;
    json_t *row = json_object_get(s->rows, disk);
    if (s->fail_get)
        return gr_fail(e, s->fail_get, "cannot be read");
    if (strncmp(disk, "ds/", 3) != 0)
        return gr_fail(e, -ENODEV, "no datastore for '%s'", disk);
    if (!row)
        return gr_fail(e, -ENOENT, "no disk '%s'", disk);
    *ret = json_object_size(row) ? json_deep_copy(row) : NULL;
    return 0;
}

static int store_change(void *arg, json_t *disks, gr_rules_edit edit, void *edit_arg, char **ret_untold, struct gr_err *e)
{
    struct store *s = arg;
    json_t *rows = json_deep_copy(s->rows), *v;
    size_t i;
    int r = s->fail_change ? gr_fail(e, s->fail_change, "cannot be written") : 0;
    json_array_foreach(disks, i, v)
    {
        const char *name = json_string_value(v), *at = strchr(name, '@');
        gr_auto_free char *base = gr_asprintf("%.*s", (int)strcspn(name, "@"), name);
        json_t *row = json_object_get(rows, base), *snaps = json_object_get(row, "snapshots"), *rules = json_object_get(row, "rules"), *new = NULL;
        if (r == 0)
            r = row ? edit(edit_arg, name, at ? json_object_get(snaps, at + 1) : rules, at ? rules : NULL, &new, e) : gr_fail(e, -ENOENT, "no disk '%s'", base);
        if (at && new && !snaps)
            json_object_set_new(row, "snapshots", snaps = json_object());
        if (new)
            json_object_set_new(at ? snaps : row, at ? at + 1 : "rules", new);
    }
    if (r < 0) {
        json_decref(rows);
        return r;
    }
    json_decref(s->rows);
    s->rows = rows;
    s->changes++;
    if (ret_untold && s->untold)
        *ret_untold = gr_strdup(s->untold);
    return 0;
}

static void store_new(struct store *s, struct gr_rules *ret)
{
    *s = (struct store){.rows = json_pack("{s:{},s:{},s:{}}", "ds/a", "ds/b", "ds/c")};
    *ret = (struct gr_rules){.arg = s, .get = store_get, .change = store_change};
    err = (struct gr_err){0};
}

static struct tgt_access *opened(const char *path, const struct gr_rules *rules)
{
    struct tgt_access *a = NULL;
    if (tgt_access_open(path, rules, &a, &err) < 0)
        fail_msg("%s", err.text);
    return a;
}

static char *home_file(const char *name, const char *text)
{
    char *path = test_path(name);
    assert_int_equal(gr_file_replace(path, text, strlen(text), 0600, &err), 0);
    return path;
}

static json_t *home_now(const char *path)
{
    json_t *doc = json_load_file(path, 0, NULL);
    assert_non_null(doc);
    return doc;
}

static json_t *rule(const struct store *s, const char *disk, const char *snap)
{
    json_t *row = json_object_get(s->rows, disk);
    return snap ? json_object_get(json_object_get(row, "snapshots"), snap) : json_object_get(row, "rules");
}

static void kept(void **state)
{
    struct store s;
    struct gr_rules rules;
    store_new(&s, &rules);
    gr_auto_free char *path = home_file("kept.json", "{\"version\":1,\"disks\":{\"*\":{\"chap\":{\"user\":\"all\",\"secret\":\"0123456789abc\"}}}}");
    struct tgt_access *a = opened(path, &rules), *b = opened(NULL, &rules); /* two hosts */
    struct tgt_chap_secrets got, mine = {.user = "u", .secret = "abcdefghijkl"};
    json_t *names = json_pack("[s]", ME);
    char *untold = NULL;
    /* "*" is each host's own; what is made from it begins with what ruled there */
    assert_true(tgt_access_chap(a, "ds/a", &got));
    assert_false(tgt_access_chap(b, "ds/a", &got));
    assert_int_equal(tgt_access_acl(a, "ds/a", names, NULL, &untold, &err), 0);
    assert_null(untold);
    assert_int_equal(tgt_access_refresh(b, "ds/a", &err), 0);
    assert_true(tgt_access_chap(b, "ds/a", &got));
    assert_string_equal(got.user, "all");
    assert_true(tgt_access_admits(b, "ds/a", ME, false));
    assert_false(tgt_access_admits(b, "ds/a", OTHER, true));
    assert_true(tgt_access_ruled(b, "ds/a"));
    assert_false(tgt_access_ruled(b, "ds/b"));
    /* from there to here; a snapshot by its disk, until it has its own */
    s.untold = "host 'x' sleeps";
    assert_int_equal(tgt_access_set_chap(b, "ds/a", &mine, &untold, &err), 0);
    assert_string_equal(untold, s.untold);
    free(untold);
    assert_int_equal(tgt_access_refresh(a, "ds/a@s", &err), 0);
    assert_true(tgt_access_chap(a, "ds/a@s", &got));
    assert_string_equal(got.secret, "abcdefghijkl");
    assert_int_equal(tgt_access_mask(b, "ds/a@s", true, NULL, &err), 0);
    assert_true(tgt_access_masked(b, "ds/a@s"));
    assert_false(tgt_access_masked(b, "ds/a"));
    assert_int_equal(tgt_access_refresh(a, "ds/a", &err), 0);
    assert_true(tgt_access_masked(a, "ds/a@s"));
    assert_null(json_object_get(rule(&s, "ds/a", "s"), "snapshots"));
    /* nothing new is not written; nothing of it is in the home */
    unsigned before = s.changes;
    json_t *was = json_deep_copy(s.rows);
    assert_int_equal(tgt_access_acl(a, "ds/a", names, NULL, NULL, &err), 0);
    assert_true(json_equal(was, s.rows));
    assert_int_equal(s.changes, before + 1);
    json_decref(was);
    json_t *doc = home_now(path);
    assert_int_equal(json_object_size(json_object_get(doc, "disks")), 1);
    json_decref(doc);
    /* what cannot be told lets nobody in; what is gone is forgotten */
    s.fail_get = -EIO;
    assert_int_equal(tgt_access_refresh(a, "ds/a", &err), -EIO);
    s.fail_get = 0;
    json_object_set_new(json_object_get(s.rows, "ds/b"), "rules", json_pack("{s:i}", "initiators", 3));
    assert_int_equal(tgt_access_refresh(a, "ds/b", NULL), -GR_EFORMAT);
    json_object_del(s.rows, "ds/a");
    assert_int_equal(tgt_access_refresh(a, "ds/a", NULL), -ENOENT);
    assert_false(tgt_access_ruled(a, "ds/a"));
    /* a failure changes nothing, and is told */
    s.fail_change = -GR_ENOSPACE;
    assert_int_equal(tgt_access_mask(a, "ds/c", true, NULL, &err), -GR_ENOSPACE);
    assert_false(tgt_access_masked(a, "ds/c"));
    /* names that are no disks stay in the home */
    assert_int_equal(tgt_access_mask(a, "raw1", true, NULL, &err), 0);
    assert_true(tgt_access_masked(a, "raw1"));
    assert_false(tgt_access_any(b));
    assert_int_equal(tgt_access_seen(b, &err), 0);
    assert_true(tgt_access_any(b));
    json_decref(names);
    tgt_access_free(a);
    tgt_access_free(b);
    json_decref(s.rows);
}

/* ---- bringing over ---- */
#define LIST(who) "{\"initiators\":[\"" who "\"]}"
#define OLD "{\"version\":1,\"disks\":{\"*\":{\"masked\":false},\"raw1\":{\"masked\":true},\"discovery\":{\"chap\":{\"user\":\"d\",\"secret\":\"0123456789abc\"}}," \
            "\"ds/a\":" LIST(ME) ",\"ds/a@s\":{\"masked\":true},\"ds/b\":" LIST(ME) ",\"ds/gone\":" LIST(ME) ",\"off/x\":" LIST(ME) "}}"
static char notes[4096];

static void note(void *arg, int level, const char *text)
{
    size_t n = strlen(notes);
    snprintf(notes + n, sizeof notes - n, "<%d>%s\n", level, text);
}

static json_t *start(const char *path, struct store *s, const struct gr_rules *rules)
{
    struct tgt_access *a = opened(path, rules);
    notes[0] = 0;
    tgt_access_bring_over(a, note, NULL);
    (void)tgt_access_refresh(a, "ds/a", NULL);
    assert_false(tgt_access_admits(a, "ds/a", OTHER, true)); /* however far it came */
    assert_true(tgt_access_admits(a, "ds/a", ME, true));
    assert_true(tgt_access_masked(a, "ds/a@s"));
    assert_false(tgt_access_admits(a, "off/x", OTHER, true));
    tgt_access_free(a);
    return home_now(path);
}

static void over(void **state)
{
    struct store s;
    struct gr_rules rules;
    store_new(&s, &rules);
    json_object_set_new(json_object_get(s.rows, "ds/b"), "rules", json_pack("{s:[s]}", "initiators", OTHER)); /* another host was first */
    gr_auto_free char *path = home_file("over.json", OLD);
    /* the datastore cannot be written: they hold, and stay */
    s.fail_change = -GR_ENOSPACE;
    json_t *doc = start(path, &s, &rules);
    assert_int_equal(json_object_size(json_object_get(doc, "disks")), 8);
    assert_non_null(strstr(notes, "<4>the access rules of datastore 'ds' that are in access.json hold on this host only"));
    json_decref(doc);
    /* now it can */
    s.fail_change = 0;
    doc = start(path, &s, &rules);
    json_t *disks = json_object_get(doc, "disks"), *aside = json_object_get(doc, "set-aside");
    assert_int_equal(json_object_size(disks), 4); /* *, raw1, discovery, and that of a datastore that is not here */
    assert_non_null(json_object_get(disks, "off/x"));
    assert_int_equal(json_object_size(aside), 2);
    assert_non_null(json_object_get(aside, "ds/b"));
    assert_non_null(json_object_get(aside, "ds/gone"));
    assert_string_equal(json_string_value(json_array_get(json_object_get(rule(&s, "ds/b", NULL), "initiators"), 0)), OTHER);
    assert_non_null(strstr(notes, "<5>the access rules of 2 disks were brought over"));
    assert_non_null(strstr(notes, "<4>the access rules of ds/gone"));
    assert_non_null(strstr(notes, "<4>the access rules of datastore 'off'"));
    json_decref(doc);
    /* cut off between the datastore and the home, and changed there before the next start: the newer ones hold */
    free(home_file("over.json", OLD));
    json_object_set_new(rule(&s, "ds/a", NULL), "masked", json_true());
    struct tgt_access *a = opened(path, &rules);
    tgt_access_bring_over(a, note, NULL);
    assert_int_equal(tgt_access_refresh(a, "ds/a", &err), 0);
    assert_true(tgt_access_masked(a, "ds/a"));
    tgt_access_free(a);
    doc = home_now(path);
    assert_non_null(json_object_get(json_object_get(doc, "set-aside"), "ds/a"));
    assert_null(json_object_get(json_object_get(doc, "set-aside"), "ds/a@s")); /* that one is the same in both */
    json_decref(doc);
    /* a change brings over what is still here first, and is not made when that fails */
    free(home_file("over.json", "{\"disks\":{\"ds/c\":" LIST(ME) "}}"));
    json_t *names = json_pack("[s]", OTHER);
    a = opened(path, &rules);
    s.fail_change = -GR_ELOCKED;
    assert_int_equal(tgt_access_acl(a, "ds/c", names, NULL, NULL, &err), -GR_ELOCKED);
    assert_true(tgt_access_admits(a, "ds/c", ME, true));
    s.fail_change = 0;
    assert_int_equal(tgt_access_acl(a, "ds/c", names, NULL, NULL, &err), 0);
    assert_int_equal(json_array_size(json_object_get(rule(&s, "ds/c", NULL), "initiators")), 2);
    assert_true(tgt_access_admits(a, "ds/c", ME, true));
    tgt_access_free(a);
    doc = home_now(path);
    assert_int_equal(json_object_size(json_object_get(doc, "disks")), 0);
    json_decref(doc);
    json_decref(names);
    json_decref(s.rows);
}

TEST_MAIN(TEST(kept), TEST(over))
