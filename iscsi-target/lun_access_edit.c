/* Changes of access rules: each makes a new entry from the one that ruled so far, wherever it is kept. */
#include "common/cleanup.h"
#include "iscsi-target/chap.h"
#include "iscsi-target/lun_access_int.h"
#include "iscsi-target/target.h"

struct change {
    struct tgt_access *a;
    int (*fn)(const char *disk, json_t *e, const void *arg, struct gr_err *err); /* 0, or negative: nothing changes */
    const void *arg;
};

static int apply(void *arg, const char *disk, const json_t *own, const json_t *above, json_t **ret, struct gr_err *err)
{
    const struct change *c = arg;
    const json_t *all = strcmp(disk, TGT_ACCESS_DISCOVERY) ? tgt_access_home(c->a, "*") : NULL;
    const json_t *old = own ? own : above ? above : all;
    json_t *e = old ? json_deep_copy(old) : json_object();
    int r = e ? c->fn(disk, e, c->arg, err) : gr_fail(err, -ENOMEM, "access rules: out of memory");
    if (r == 0 && !(own && json_equal(own, e)))
        *ret = json_incref(e);
    json_decref(e);
    return r;
}

static int change(struct tgt_access *a, const char *disk, int (*fn)(const char *, json_t *, const void *, struct gr_err *), const void *arg,
                  char **ret_untold, struct gr_err *err)
{
    struct change c = {a, fn, arg};
    json_t *new = NULL;
    if (tgt_access_kept(a, disk))
        return tgt_access_change_kept(a, disk, apply, &c, ret_untold, err);
    gr_auto_free char *base = tgt_access_base(disk);
    const json_t *above = base && strchr(disk, '@') ? tgt_access_home(a, base) : NULL;
    int r = apply(&c, disk, tgt_access_home(a, disk), above, &new, err);
    if (r < 0 || !new)
        return r;
    json_t *doc = json_deep_copy(a->doc);
    if (json_object_set_new(json_object_get(doc, "disks"), disk, new) < 0) {
        json_decref(doc);
        return gr_fail(err, -EINVAL, "'%s' is no name of a disk", disk);
    }
    return tgt_access_commit(a, doc, err);
}

static int set_masked(const char *disk, json_t *e, const void *arg, struct gr_err *err)
{
    const bool *masked = arg;
    json_object_set_new(e, "masked", json_boolean(*masked));
    return 0;
}

int tgt_access_mask(struct tgt_access *a, const char *disk, bool masked, char **ret_untold, struct gr_err *err)
{
    return change(a, disk, set_masked, &masked, ret_untold, err);
}

/* ---- lists ---- */
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

/* Where in @list it is; its size: nowhere. */
static size_t find_name(json_t *list, const char *name)
{
    size_t i = 0;
    while (i < json_array_size(list) && strcmp(json_string_value(json_array_get(list, i)) ?: "", name) != 0)
        i++;
    return i;
}

struct names {
    json_t *allow, *deny;
};

static int set_names(const char *disk, json_t *e, const void *arg, struct gr_err *err)
{
    const struct names *n = arg;
    json_t *list = json_object_get(e, "initiators"), *v;
    size_t i;
    json_array_foreach(n->allow, i, v)
    {
        if (!list)
            json_object_set_new(e, "initiators", list = json_array());
        if (find_name(list, json_string_value(v)) == json_array_size(list))
            json_array_append(list, v);
    }
    json_array_foreach(n->deny, i, v)
    {
        size_t at = find_name(list, json_string_value(v));
        if (at == json_array_size(list))
            return gr_fail(err, -ENOENT, "disk '%s': '%s' is not in its list of initiators", disk, json_string_value(v));
        json_array_remove(list, at);
    }
    return 0;
}

static int check_names(json_t *list, bool well_formed, struct gr_err *err)
{
    json_t *v;
    size_t i;
    int r = list && !json_is_array(list) ? gr_fail(err, -GR_EUSAGE, "access list: initiator names come in an array") : 0;
    json_array_foreach(list, i, v)
    {
        if (r == 0)
            r = !json_is_string(v) ? gr_fail(err, -GR_EUSAGE, "access list: an initiator name is not a string")
                                   : well_formed ? check_initiator(json_string_value(v), err) : 0;
    }
    return r;
}

int tgt_access_acl(struct tgt_access *a, const char *disk, json_t *allow, json_t *deny, char **ret_untold, struct gr_err *err)
{
    struct names n = {allow, deny};
    int r = check_names(allow, true, err);
    if (r == 0)
        r = check_names(deny, false, err);
    return r < 0 ? r : change(a, disk, set_names, &n, ret_untold, err);
}

/* ---- CHAP ---- */
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

static int set_chap(const char *disk, json_t *e, const void *arg, struct gr_err *err)
{
    const struct tgt_chap_secrets *s = arg;
    json_object_del(e, "chap");
    json_object_del(e, "mutual");
    if (s->user && json_object_set_new(e, "chap", credential(s->user, s->secret)) < 0)
        return gr_fail(err, -EINVAL, "disk '%s': CHAP user and secret must be UTF-8 text", disk);
    if (s->user && s->mutual_user && json_object_set_new(e, "mutual", credential(s->mutual_user, s->mutual_secret)) < 0)
        return gr_fail(err, -EINVAL, "disk '%s': CHAP user and secret must be UTF-8 text", disk);
    return 0;
}

int tgt_access_set_chap(struct tgt_access *a, const char *disk, const struct tgt_chap_secrets *s, char **ret_untold, struct gr_err *err)
{
    int r = s->user ? check_secret("CHAP secret", disk, s->secret ? s->secret : "", err) : 0;
    if (r == 0 && s->user && s->mutual_user)
        r = check_secret("mutual CHAP secret", disk, s->mutual_secret ? s->mutual_secret : "", err);
    if (r == 0 && s->user && s->mutual_user && !strcmp(s->secret, s->mutual_secret))
        r = gr_fail(err, -EINVAL, "disk '%s': the CHAP secrets of the two directions must differ", disk);
    return r < 0 ? r : change(a, disk, set_chap, s, ret_untold, err);
}
