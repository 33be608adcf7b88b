/* The document of the home, and what the rules say. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/lun_access_int.h"
#include "iscsi-target/target.h"
#include <string.h>

#define SEEN "datastores-have-rules"

static json_t *disks(const struct tgt_access *a)
{
    return json_object_get(a->doc, "disks");
}

json_t *tgt_access_home(const struct tgt_access *a, const char *disk)
{
    return json_object_get(disks(a), disk);
}

int tgt_access_check(const char *disk, json_t *e, struct gr_err *err)
{
    json_t *chap = json_object_get(e, "chap"), *list = json_object_get(e, "initiators");
    if (!json_is_object(e) || (list && !json_is_array(list)) || (chap && !json_string_value(json_object_get(chap, "secret"))))
        return gr_fail(err, -GR_EFORMAT, "the entry of '%s' is not {\"initiators\": […], \"chap\": {\"user\", \"secret\"}}", disk);
    return 0;
}

static int check_doc(json_t *doc, struct gr_err *err)
{
    const char *disk;
    json_t *e, *all = json_object_get(doc, "disks");
    if (!json_is_object(doc) || (all && !json_is_object(all)))
        return gr_fail(err, -GR_EFORMAT, "\"disks\" is not an object");
    if (json_object_get(doc, "version") && json_integer_value(json_object_get(doc, "version")) != 1)
        return gr_fail(err, -GR_EVERSION, "its version is not 1");
    json_object_foreach(all, disk, e)
    {
        int r = tgt_access_check(disk, e, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int load(struct tgt_access *a, struct gr_err *err)
{
    gr_auto_buf struct gr_buf text = {0};
    json_error_t je;
    int r = a->path ? gr_file_read(a->path, 16u << 20, &text, err) : -ENOENT;
    if (r < 0 && r != -ENOENT)
        return r;
    if (r >= 0) {
        a->doc = json_loadb(text.data ? text.data : "", text.len, 0, &je);
        if (!a->doc)
            return gr_fail(err, -GR_EFORMAT, "%s: line %d: %s; correct it or move it away", a->path, je.line, je.text);
        r = check_doc(a->doc, err);
        if (r < 0)
            return gr_prefix(err, r, "%s", a->path);
    } else {
        a->doc = json_object();
    }
    if (a->doc && !disks(a))
        json_object_set_new(a->doc, "disks", json_object());
    json_object_set_new(a->doc, "version", json_integer(1));
    return disks(a) ? 0 : gr_fail(err, -ENOMEM, "access rules: out of memory");
}

int tgt_access_open(const char *path, const struct gr_rules *rules, struct tgt_access **ret, struct gr_err *err)
{
    struct tgt_access *a = gr_zalloc(sizeof *a);
    if (!a)
        return gr_fail(err, -ENOMEM, "access rules: out of memory");
    a->path = path ? gr_strdup(path) : NULL;
    a->held = json_object();
    if (rules)
        a->rules = *rules;
    int r = (path && !a->path) || !a->held ? gr_fail(err, -ENOMEM, "access rules: out of memory") : load(a, err);
    if (r < 0) {
        tgt_access_free(a);
        return r;
    }
    *ret = a;
    return 0;
}

void tgt_access_free(struct tgt_access *a)
{
    if (!a)
        return;
    json_decref(a->doc);
    json_decref(a->held);
    free(a->path);
    free(a);
}

/* Written first: on failure nothing has changed. */
int tgt_access_commit(struct tgt_access *a, json_t *doc, struct gr_err *err)
{
    int r = doc ? 0 : gr_fail(err, -ENOMEM, "access rules: out of memory");
    if (a->path && doc) {
        gr_auto_free char *text = json_dumps(doc, JSON_INDENT(2) | JSON_SORT_KEYS);
        r = text ? gr_file_replace(a->path, text, strlen(text), 0600, err) : gr_fail(err, -ENOMEM, "access rules: out of memory");
    }
    if (r < 0) {
        json_decref(doc);
        return r;
    }
    json_decref(a->doc);
    a->doc = doc;
    return 0;
}

char *tgt_access_base(const char *disk)
{
    return gr_asprintf("%.*s", (int)strcspn(disk, "@"), disk);
}

/* Its own entry; NULL: none. What is still in the home holds until it is brought over. */
static json_t *own(const struct tgt_access *a, const char *disk)
{
    json_t *e = tgt_access_home(a, disk);
    if (e || !tgt_access_kept(a, disk))
        return e;
    gr_auto_free char *base = tgt_access_base(disk);
    const char *at = strchr(disk, '@');
    json_t *row = base ? json_object_get(a->held, base) : NULL;
    return at ? json_object_get(json_object_get(row, "snapshots"), at + 1) : json_object_get(row, "rules");
}

/* The entry that rules @disk; NULL: none. */
static json_t *entry(const struct tgt_access *a, const char *disk)
{
    json_t *e = own(a, disk);
    if (!strcmp(disk, TGT_ACCESS_DISCOVERY)) /* not a disk: the rule of all disks is not its rule */
        return e;
    if (!e && strchr(disk, '@')) {
        gr_auto_free char *base = tgt_access_base(disk);
        e = base ? own(a, base) : NULL;
    }
    return e ? e : tgt_access_home(a, "*");
}

static bool has_rule(json_t *e)
{
    return json_object_get(e, "initiators") || json_object_get(e, "chap");
}

bool tgt_access_any(const struct tgt_access *a)
{
    const char *disk;
    json_t *e;
    json_object_foreach(disks(a), disk, e)
    {
        if (has_rule(e) && strcmp(disk, TGT_ACCESS_DISCOVERY) != 0)
            return true;
    }
    return json_is_true(json_object_get(a->doc, SEEN));
}

bool tgt_access_ruled(const struct tgt_access *a, const char *disk)
{
    return has_rule(own(a, disk));
}

int tgt_access_seen(struct tgt_access *a, struct gr_err *err)
{
    json_t *doc = json_copy(a->doc);
    json_object_set_new(doc, SEEN, json_true());
    return tgt_access_commit(a, doc, err);
}

bool tgt_access_masked(const struct tgt_access *a, const char *disk)
{
    return json_is_true(json_object_get(entry(a, disk), "masked"));
}

/* A trailing '*' stands for any rest. */
static bool name_matches(const char *pattern, const char *name)
{
    size_t len = strlen(pattern);
    if (len && pattern[len - 1] == '*')
        return strncmp(pattern, name, len - 1) == 0;
    return strcmp(pattern, name) == 0;
}

bool tgt_access_admits(const struct tgt_access *a, const char *disk, const char *initiator, bool open)
{
    json_t *e = entry(a, disk), *list = json_object_get(e, "initiators"), *v;
    size_t i;
    if (strchr(disk, '@') && !own(a, disk)) /* a snapshot: the directory has it only for whom it is exposed to */
        return true;
    if (json_is_true(json_object_get(e, "masked")))
        return false;
    if (!list)
        return open || json_object_get(e, "chap");
    json_array_foreach(list, i, v)
    {
        if (json_is_string(v) && name_matches(json_string_value(v), initiator))
            return true;
    }
    return false;
}

bool tgt_access_chap(const struct tgt_access *a, const char *disk, struct tgt_chap_secrets *ret)
{
    json_t *e = entry(a, disk), *chap = json_object_get(e, "chap"), *mutual = json_object_get(e, "mutual");
    *ret = (struct tgt_chap_secrets){0};
    if (!chap)
        return false;
    ret->user = json_string_value(json_object_get(chap, "user"));
    ret->secret = json_string_value(json_object_get(chap, "secret"));
    ret->mutual_user = json_string_value(json_object_get(mutual, "user"));
    ret->mutual_secret = json_string_value(json_object_get(mutual, "secret"));
    return true;
}

json_t *tgt_access_initiators(const struct tgt_access *a, const char *disk)
{
    json_t *list = json_object_get(entry(a, disk), "initiators");
    return list ? json_deep_copy(list) : json_null();
}
