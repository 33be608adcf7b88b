#include "iscsi-target/lun_access.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/chap.h"
#include "iscsi-target/target.h"
#include <string.h>

struct tgt_access {
    char *path;
    json_t *doc;
};

static json_t *disks(const struct tgt_access *a)
{
    return json_object_get(a->doc, "disks");
}

static int check_entry(const char *disk, json_t *e, struct gr_err *err)
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
        int r = check_entry(disk, e, err);
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

int tgt_access_open(const char *path, struct tgt_access **ret, struct gr_err *err)
{
    struct tgt_access *a = gr_zalloc(sizeof *a);
    if (!a)
        return gr_fail(err, -ENOMEM, "access rules: out of memory");
    a->path = path ? gr_strdup(path) : NULL;
    int r = path && !a->path ? gr_fail(err, -ENOMEM, "access rules: out of memory") : load(a, err);
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
    free(a->path);
    free(a);
}

/* The entry that rules @disk; NULL: none. */
static json_t *entry(const struct tgt_access *a, const char *disk)
{
    json_t *e = json_object_get(disks(a), disk);
    const char *at = strchr(disk, '@');
    if (!strcmp(disk, TGT_ACCESS_DISCOVERY)) /* not a disk: the rule of all disks is not its rule */
        return e;
    if (!e && at) {
        gr_auto_free char *base = gr_asprintf("%.*s", (int)(at - disk), disk);
        e = base ? json_object_get(disks(a), base) : NULL;
    }
    return e ? e : json_object_get(disks(a), "*");
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
    return false;
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
    if (strchr(disk, '@') && !json_object_get(disks(a), disk)) /* a snapshot: the directory has it only for whom it is exposed to */
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

/* ---- changes: on a copy, which replaces the document once it is written ---- */

static int commit(struct tgt_access *a, json_t *doc, struct gr_err *err)
{
    int r = 0;
    if (a->path) {
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

/* Copy of the document with an own entry for @disk. */
static json_t *begin(struct tgt_access *a, const char *disk, json_t **ret_entry)
{
    json_t *doc = json_deep_copy(a->doc), *all = json_object_get(doc, "disks"), *e = json_object_get(all, disk);
    if (!e) {
        json_t *inherited = entry(a, disk);
        e = inherited ? json_deep_copy(inherited) : json_object();
        json_object_set_new(all, disk, e);
    }
    *ret_entry = json_object_get(all, disk);
    return doc;
}

static int check_initiator(const char *name, struct gr_err *err)
{
    size_t len = strlen(name);
    bool known = !strncmp(name, "iqn.", 4) || !strncmp(name, "eui.", 4) || !strncmp(name, "naa.", 4) || !strcmp(name, "*");
    if (!known || len > TGT_NAME_MAX || strpbrk(name, " \t\n\"\\"))
        return gr_fail(err, -EINVAL, "'%s' is not an initiator name (iqn.…, eui.…, naa.…; a trailing * stands for any rest)", name);
    for (const char *p = name; *p; p++)
        if (*p >= 'A' && *p <= 'Z')
            return gr_fail(err, -EINVAL, "'%s': initiator names are written in lower case", name);
    return 0;
}

int tgt_access_mask(struct tgt_access *a, const char *disk, bool masked, struct gr_err *err)
{
    json_t *e, *doc = begin(a, disk, &e);
    json_object_set_new(e, "masked", json_boolean(masked));
    return commit(a, doc, err);
}

int tgt_access_allow(struct tgt_access *a, const char *disk, const char *initiator, struct gr_err *err)
{
    json_t *e, *v;
    size_t i;
    int r = check_initiator(initiator, err);
    if (r < 0)
        return r;
    json_t *doc = begin(a, disk, &e), *list = json_object_get(e, "initiators");
    if (!list)
        json_object_set_new(e, "initiators", list = json_array());
    json_array_foreach(list, i, v)
    {
        if (json_is_string(v) && !strcmp(json_string_value(v), initiator)) {
            json_decref(doc);
            return 0;
        }
    }
    json_array_append_new(list, json_string(initiator));
    return commit(a, doc, err);
}

int tgt_access_deny(struct tgt_access *a, const char *disk, const char *initiator, struct gr_err *err)
{
    json_t *e, *v;
    size_t i;
    json_t *doc = begin(a, disk, &e), *list = json_object_get(e, "initiators");
    json_array_foreach(list, i, v)
    {
        if (json_is_string(v) && !strcmp(json_string_value(v), initiator)) {
            json_array_remove(list, i);
            return commit(a, doc, err);
        }
    }
    json_decref(doc);
    return gr_fail(err, -ENOENT, "disk '%s': '%s' is not in its list of initiators", disk, initiator);
}

static int check_secret(const char *what, const char *disk, const char *secret, struct gr_err *err)
{
    size_t len = strlen(secret);
    if (len < TGT_CHAP_SECRET_MIN || len > TGT_CHAP_SECRET_MAX)
        return gr_fail(err, -EINVAL, "disk '%s': the %s has %zu bytes; %u to %u are needed", disk, what, len, TGT_CHAP_SECRET_MIN,
                       TGT_CHAP_SECRET_MAX);
    return 0;
}

static json_t *credential(const char *user, const char *secret)
{
    return json_pack("{s:s,s:s}", "user", user, "secret", secret);
}

int tgt_access_set_chap(struct tgt_access *a, const char *disk, const struct tgt_chap_secrets *s, struct gr_err *err)
{
    json_t *e, *mutual = NULL;
    if (s->user) {
        int r = check_secret("CHAP secret", disk, s->secret ? s->secret : "", err);
        if (!r && s->mutual_user)
            r = check_secret("mutual CHAP secret", disk, s->mutual_secret ? s->mutual_secret : "", err);
        if (r < 0)
            return r;
        if (s->mutual_user && !strcmp(s->secret, s->mutual_secret))
            return gr_fail(err, -EINVAL, "disk '%s': the CHAP secrets of the two directions must differ", disk);
    }
    json_t *doc = begin(a, disk, &e);
    json_object_del(e, "chap");
    json_object_del(e, "mutual");
    if (s->user) {
        json_t *chap = credential(s->user, s->secret);
        mutual = s->mutual_user ? credential(s->mutual_user, s->mutual_secret) : NULL;
        if (!chap || (s->mutual_user && !mutual)) {
            json_decref(chap);
            json_decref(doc);
            return gr_fail(err, -EINVAL, "disk '%s': CHAP user and secret must be UTF-8 text", disk);
        }
        json_object_set_new(e, "chap", chap);
        if (mutual)
            json_object_set_new(e, "mutual", mutual);
    }
    return commit(a, doc, err);
}
