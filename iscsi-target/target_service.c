/* RPC methods lun.* and session.*. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/target_int.h"
#include <stdlib.h>

struct lun_list {
    struct tgt_server *s;
    json_t *rows;
    const char *only; /* NULL: all */
    bool found;
    bool stats;
};

static json_t *or_null(const char *text)
{
    return text ? json_string(text) : json_null();
}

/* Looks at the rules of @disk; NULL, or why they cannot be told. */
static char *rules_doubt(struct tgt_server *s, const char *disk)
{
    struct gr_err err = {0};
    int r = tgt_access_refresh(s->access, disk, &err);
    return r < 0 ? gr_strdup(gr_err_text(&err, r)) : NULL;
}

static json_t *lun_row(struct tgt_server *s, const char *disk)
{
    struct tgt_chap_secrets sec;
    char name[TGT_NAME_MAX + 1];
    if (tgt_name_of(disk, name) < 0)
        return NULL;
    gr_auto_free char *url = tgt_server_url(s, disk);
    gr_auto_free char *nbd = s->dir.nbd_url ? s->dir.nbd_url(s->dir.arg, disk) : NULL;
    gr_auto_free char *doubt = rules_doubt(s, disk);
    const struct tgt_lu *lu = tgt_lu_find(s, disk);
    tgt_access_chap(s->access, disk, &sec);
    json_t *row = json_pack("{s:s,s:s,s:b,s:I}", "disk", disk, "target", name, "masked", tgt_access_masked(s->access, disk), "sessions",
                            (json_int_t)tgt_server_sessions(s, disk));
    if (!row)
        return NULL;
    json_object_set_new(row, "iscsi-url", or_null(url));
    json_object_set_new(row, "nbd-url", or_null(nbd));
    json_object_set_new(row, "initiators", tgt_access_initiators(s->access, disk));
    json_object_set_new(row, "chap-user", or_null(sec.user));
    json_object_set_new(row, "mutual-user", or_null(sec.mutual_user));
    json_object_set_new(row, "file", json_null());
    json_object_set_new(row, "size", lu && lu->bdev ? json_integer((json_int_t)lu->geo.size) : json_null());
    if (doubt)
        json_object_set_new(row, "error", json_string(doubt));
    if (s->dir.describe)
        s->dir.describe(s->dir.arg, disk, row);
    return row;
}

static void put_stats(json_t *row, const struct tgt_sess_stats *st)
{
    json_object_set_new(row, "reads", json_integer((json_int_t)st->reads));
    json_object_set_new(row, "read-bytes", json_integer((json_int_t)st->read_bytes));
    json_object_set_new(row, "writes", json_integer((json_int_t)st->writes));
    json_object_set_new(row, "write-bytes", json_integer((json_int_t)st->write_bytes));
    json_object_set_new(row, "others", json_integer((json_int_t)st->others));
    json_object_set_new(row, "errors", json_integer((json_int_t)st->errors));
    json_object_set_new(row, "read-p99-us", json_integer((json_int_t)tgt_latency_permille(&st->read_latency, 990)));
    json_object_set_new(row, "write-p99-us", json_integer((json_int_t)tgt_latency_permille(&st->write_latency, 990)));
    json_object_set_new(row, "read-latency", tgt_latency_json(&st->read_latency));
    json_object_set_new(row, "write-latency", tgt_latency_json(&st->write_latency));
}

static json_t *stat_row(struct tgt_server *s, const char *disk)
{
    const struct tgt_lu *lu = tgt_lu_find(s, disk);
    struct tgt_sess_stats sum = {0};
    if (lu)
        tgt_stats_add(&sum, &lu->stats);
    for (const struct tgt_sess *o = s->sessions; o; o = o->next)
        if (o->lu == lu)
            tgt_stats_add(&sum, &o->stats);
    json_t *row = json_pack("{s:s,s:I}", "disk", disk, "sessions", (json_int_t)tgt_server_sessions(s, disk));
    if (row)
        put_stats(row, &sum);
    return row;
}

static int each_lun(void *arg, const char *disk)
{
    struct lun_list *l = arg;
    if (l->only && strcmp(l->only, disk) != 0)
        return 0;
    l->found = true;
    json_t *row = l->stats ? stat_row(l->s, disk) : lun_row(l->s, disk);
    return row && json_array_append_new(l->rows, row) == 0 ? 0 : -ENOMEM;
}

static int list_luns(struct tgt_server *s, json_t *params, bool stats, json_t **ret, struct gr_err *err)
{
    struct lun_list l = {.s = s, .rows = json_array(), .stats = stats};
    int r = gr_json_opt_str(params, "disk", &l.only, err);
    if (!r)
        r = s->dir.list(s->dir.arg, each_lun, &l, err);
    if (!r && l.only && !l.found)
        r = gr_fail(err, -ENOENT, "disk '%s' is not served here", l.only);
    if (r < 0) {
        json_decref(l.rows);
        return r;
    }
    *ret = l.rows;
    return 0;
}

static int lun_list(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    (void)call;
    return list_luns(arg, params, false, ret, err);
}

static int lun_stat(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    (void)call;
    return list_luns(arg, params, true, ret, err);
}

/* The disk of a request that changes its rules: "*" (the rule of all others), one that exists, or a snapshot of such. */
static int disk_param(struct tgt_server *s, json_t *params, const char **ret, struct gr_err *err)
{
    const char *disk;
    int r = gr_json_str(params, "disk", &disk, err);
    if (r < 0)
        return r;
    gr_auto_free char *base = gr_asprintf("%.*s", (int)strcspn(disk, "@"), disk);
    struct lun_list l = {.s = s, .rows = json_array(), .only = base ? base : disk, .stats = true};
    if (strcmp(disk, "*") != 0)
        r = s->dir.list(s->dir.arg, each_lun, &l, err);
    json_decref(l.rows);
    if (r < 0)
        return r;
    if (strcmp(disk, "*") != 0 && !l.found)
        return gr_fail(err, -ENOENT, "disk '%s' is not served here", disk);
    *ret = disk;
    return 0;
}

/* The disks that have sessions, after a look at their rules; those that cannot be told are left out. */
static json_t *used_disks(struct tgt_server *s)
{
    json_t *used = json_object(), *known = json_object(), *v;
    const char *disk;
    for (const struct tgt_sess *o = s->sessions; o; o = o->next)
        json_object_set_new(used, o->lu->disk, json_true());
    json_object_foreach(used, disk, v)
    {
        if (tgt_access_refresh(s->access, disk, NULL) == 0)
            json_object_set_new(known, disk, json_true());
    }
    json_decref(used);
    return known;
}

/* End the sessions that the rules no longer admit. */
static void enforce(struct tgt_server *s, const char *why)
{
    json_t *known = used_disks(s);
    struct tgt_sess *next;
    for (struct tgt_sess *o = s->sessions; o; o = next) {
        next = o->next;
        if (json_object_get(known, o->lu->disk) && !tgt_access_admits(s->access, o->lu->disk, o->initiator, true))
            tgt_sess_close(o, why);
    }
    json_decref(known);
}

/* An answer, with a warning when there is one (its memory is taken). */
static json_t *answer(json_t *o, char *untold)
{
    if (o && untold)
        json_object_set_new(o, "warning", json_string(untold));
    free(untold);
    return o;
}

static int set_mask(struct tgt_server *s, json_t *params, bool masked, json_t **ret, struct gr_err *err)
{
    const char *disk;
    char *untold = NULL;
    int r = disk_param(s, params, &disk, err);
    if (!r)
        r = tgt_access_mask(s->access, disk, masked, &untold, err);
    if (r < 0)
        return r;
    enforce(s, "the disk was masked");
    *ret = answer(json_pack("{s:s,s:b}", "disk", disk, "masked", masked), untold);
    return 0;
}

static int lun_mask(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    (void)call;
    return set_mask(arg, params, true, ret, err);
}

static int lun_unmask(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    (void)call;
    return set_mask(arg, params, false, ret, err);
}

static int lun_acl(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct tgt_server *s = arg;
    const char *disk;
    char *untold = NULL;
    json_t *allow = json_object_get(params, "allow"), *deny = json_object_get(params, "deny");
    bool asks = !json_array_size(allow) && !json_array_size(deny);
    if (asks)
        gr_rpc_only_asked(call);
    int r = disk_param(s, params, &disk, err);
    if (!r && asks)
        r = tgt_access_refresh(s->access, disk, err);
    else if (!r)
        r = tgt_access_acl(s->access, disk, allow, deny, &untold, err);
    if (r < 0)
        return r;
    enforce(s, "its initiator is no longer in the access list");
    *ret = answer(json_pack("{s:s,s:o}", "disk", disk, "initiators", tgt_access_initiators(s->access, disk)), untold);
    return 0;
}

static int lun_chap(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct tgt_server *s = arg;
    struct tgt_chap_secrets sec = {0};
    const char *disk;
    char *untold = NULL;
    bool off = false;
    (void)call;
    int r = gr_json_str(params, "disk", &disk, err);
    if (!r && strcmp(disk, TGT_ACCESS_DISCOVERY) != 0)
        r = disk_param(s, params, &disk, err);
    if (!r)
        r = gr_json_opt_bool(params, "off", &off, err);
    if (!r && !off) {
        r = gr_json_str(params, "user", &sec.user, err);
        if (!r)
            r = gr_json_str(params, "secret", &sec.secret, err);
        if (!r)
            r = gr_json_opt_str(params, "mutual-user", &sec.mutual_user, err);
        if (!r)
            r = gr_json_opt_str(params, "mutual-secret", &sec.mutual_secret, err);
    }
    if (!r)
        r = tgt_access_set_chap(s->access, disk, &sec, &untold, err);
    if (r < 0)
        return r;
    *ret = answer(json_pack("{s:s,s:b}", "disk", disk, "chap", !off), untold);
    return 0;
}

int tgt_rules_changed(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct tgt_server *s = arg;
    json_t *disks, *v;
    size_t i;
    (void)call;
    int r = gr_json_array(params, "disks", &disks, err);
    json_array_foreach(disks, i, v)
    {
        if (r == 0)
            r = json_is_string(v) ? tgt_access_refresh(s->access, json_string_value(v), err) : gr_fail(err, -EINVAL, "a disk's name is not a string");
    }
    enforce(s, "its initiator is no longer admitted: another host changed the rules");
    return r;
}

static json_t *session_row(struct tgt_server *s, const struct tgt_sess *o)
{
    char isid[2 * TGT_ISID_LEN + 1];
    for (unsigned i = 0; i < TGT_ISID_LEN; i++)
        snprintf(isid + 2 * i, 3, "%02x", o->isid[i]);
    json_t *row = json_pack("{s:I,s:s,s:s,s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:b,s:b}", "id", (json_int_t)o->id, "disk", o->lu->disk, "access",
                            o->lu->standby ? "standby" : "active", "initiator", o->initiator,
                            "address", o->address, "isid", isid, "age", (json_int_t)((gr_loop_now_ns(s->loop) - o->started_ns) / 1000000000),
                            "depth", (json_int_t)o->outstanding, "connections", (json_int_t)o->n_conns, "recovery-level",
                            (json_int_t)o->params.error_recovery_level, "header-digest", (int)o->params.header_digest, "data-digest",
                            (int)o->params.data_digest);
    if (row)
        put_stats(row, &o->stats);
    return row;
}

static int session_list(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct tgt_server *s = arg;
    const char *disk = NULL;
    (void)call;
    int r = gr_json_opt_str(params, "disk", &disk, err);
    if (r < 0)
        return r;
    json_t *rows = json_array();
    for (const struct tgt_sess *o = s->sessions; o; o = o->next)
        if (!disk || !strcmp(disk, o->lu->disk))
            json_array_append_new(rows, session_row(s, o));
    *ret = rows;
    return 0;
}

static int session_drop(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct tgt_server *s = arg;
    uint64_t id;
    (void)call;
    int r = gr_json_u64(params, "id", &id, err);
    if (r < 0)
        return r;
    for (struct tgt_sess *o = s->sessions; o; o = o->next) {
        if (o->id != id)
            continue;
        tgt_sess_close(o, "dropped by command");
        *ret = json_pack("{s:I}", "id", (json_int_t)id);
        return 0;
    }
    return gr_fail(err, -ENOENT, "session %llu does not exist", (unsigned long long)id);
}

const struct gr_rpc_method tgt_service[] = {
    {"lun.list", lun_list, true},       {"lun.mask", lun_mask},         {"lun.unmask", lun_unmask},     {"lun.acl", lun_acl}, {"lun.chap", lun_chap},
    {"lun.stat", lun_stat, true},       {"session.list", session_list, true}, {"session.drop", session_drop}, {NULL, NULL},
};
