/* Methods snapshot.policy, set-policy: which snapshots stay, by rule; snapshot.protect, unprotect, expire: what is said of single ones.
 *
 * A policy is a row of the datastore's table granary.policy, of a disk's UUID or of a folder's:
 *   {"prefix","keep-last"?,"keep-hourly"?,"keep-daily"?,"keep-weekly"?,"keep-monthly"?,"keep-yearly"?} or {"none":true}
 * What is below a folder inherits its policy, unless it has one of its own. */
#include "common/buf.h"
#include "snapshot/service_int.h"
#include <string.h>

#define PREFIX "auto-"

struct rule {
    const char *key;
    uint64_t *to;
};
#define RULES 6
static void rules_of(struct gr_keep *k, struct rule ret[RULES])
{
    const struct rule r[RULES] = {{"keep-last", &k->last},     {"keep-hourly", &k->hourly},   {"keep-daily", &k->daily},
                                  {"keep-weekly", &k->weekly}, {"keep-monthly", &k->monthly}, {"keep-yearly", &k->yearly}};
    memcpy(ret, r, sizeof(r));
}

/* ---- reading ---- */
static void from_row(const json_t *row, struct snap_policy *p)
{
    struct rule rule[RULES];
    const char *prefix = json_string_value(json_object_get(row, "prefix"));
    rules_of(&p->keep, rule);
    for (unsigned i = 0; i < RULES; i++)
        *rule[i].to = (uint64_t)GR_MAX(json_integer_value(json_object_get(row, rule[i].key)), 0);
    p->none = json_is_true(json_object_get(row, "none"));
    snprintf(p->prefix, sizeof(p->prefix), "%s", prefix ? prefix : PREFIX);
}

static int row_at(struct snap_ds *ds, const char *path, json_t **ret, struct gr_err *err)
{
    struct vmfs_stat st;
    char key[33];
    int r = vmfs_stat(ds->v, path, &st, err);
    if (r < 0)
        return r;
    snap_table_key(st.uuid, key);
    return snap_table_row(ds, &ds->policies, key, ret, err);
}

int snap_policy_find(struct snap_ds *ds, const char *path, struct snap_policy *ret, struct gr_err *err)
{
    gr_auto_free char *at = gr_strdup(path);
    *ret = (struct snap_policy){.none = true};
    int r = at ? snap_table_look(ds, &ds->policies, err) : gr_fail(err, -ENOMEM, "out of memory");
    for (bool root = false; r == 0 && !root;) {
        json_t *row = NULL;
        root = !at[0];
        r = row_at(ds, at, &row, err);
        if (r == 0 && row) {
            from_row(row, ret);
            snprintf(ret->from, sizeof(ret->from), "%s%s%s", ds->name, at[0] ? "/" : "", at);
            return 0;
        }
        char *slash = strrchr(at, '/');
        *(slash ? slash : at) = 0;
    }
    return r;
}

static json_t *policy_row(const char *path, struct snap_policy *p)
{
    struct rule rule[RULES];
    json_t *o = json_pack("{s:s,s:b,s:s,s:s}", "path", path, "policy", !p->none, "from", p->from, "prefix", p->none ? "" : p->prefix);
    rules_of(&p->keep, rule);
    for (unsigned i = 0; o && i < RULES; i++)
        json_object_set_new(o, rule[i].key, json_integer((json_int_t)*rule[i].to));
    return o;
}

static int result_policy(struct snap_op *op, struct snap_ds *ds, const char *path)
{
    struct snap_policy *p = gr_zalloc(sizeof(*p));
    int r = p ? snap_policy_find(ds, path, p, op->err) : gr_fail(op->err, -ENOMEM, "out of memory");
    if (r == 0)
        r = snap_op_result(op, policy_row(json_string_value(json_object_get(op->params, "path")), p));
    free(p);
    return r;
}

static int op_policy(struct snap_op *op)
{
    struct snap_path p;
    struct snap_ds *ds = NULL;
    int r = snap_op_path_ds(op, "path", SNAP_PATH_DIR, &p, &ds);
    if (r < 0)
        return r;
    r = result_policy(op, ds, p.path);
    snap_ds_put(ds);
    return r;
}
SNAP_METHOD(op_policy, "snapshot.policy")

/* ---- setting ---- */
struct setting {
    char key[33];
    json_t *row; /* empty: none of its own */
};

static int set_row(void *arg, struct snap_ds *ds, json_t *rows, struct gr_err *err)
{
    const struct setting *s = arg;
    (void)ds;
    return json_object_set(rows, s->key, s->row) < 0 ? gr_fail(err, -ENOMEM, "out of memory") : 0;
}

/* The row that params ask for; empty: none. */
static int wanted(struct snap_op *op, json_t *row)
{
    struct gr_keep keep = {0};
    struct rule rule[RULES];
    const char *prefix = PREFIX;
    bool clear = false, none = false, any = false;
    rules_of(&keep, rule);
    int r = gr_json_opt_bool(op->params, "clear", &clear, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "none", &none, op->err);
    if (r == 0)
        r = gr_json_opt_str(op->params, "prefix", &prefix, op->err);
    for (unsigned i = 0; r == 0 && i < RULES; i++) {
        r = gr_json_opt_u64(op->params, rule[i].key, rule[i].to, op->err);
        if (r == 0 && *rule[i].to > 1000000)
            r = gr_fail(op->err, -GR_EUSAGE, "%s: at most 1000000", rule[i].key);
        any |= *rule[i].to != 0;
    }
    if (r < 0 || clear)
        return r;
    if (none)
        return json_object_set_new(row, "none", json_true()) < 0 ? -ENOMEM : 0;
    if (!any)
        return gr_fail(op->err, -GR_EUSAGE, "a policy says what to keep: --keep-last N, --keep-hourly N, --keep-daily N, …");
    if (strlen(prefix) >= sizeof(((struct snap_policy *)0)->prefix))
        return gr_fail(op->err, -GR_EUSAGE, "a prefix of %zu bytes: at most %zu", strlen(prefix), sizeof(((struct snap_policy *)0)->prefix) - 1);
    r = snap_name_check(prefix, op->err);
    if (r == 0)
        json_object_set_new(row, "prefix", json_string(prefix));
    for (unsigned i = 0; r == 0 && i < RULES; i++)
        if (*rule[i].to)
            json_object_set_new(row, rule[i].key, json_integer((json_int_t)*rule[i].to));
    return r;
}

static int op_set_policy(struct snap_op *op)
{
    struct snap_path p;
    struct snap_ds *ds = NULL;
    struct vmfs_stat st;
    snap_auto_json json_t *row = json_object();
    struct setting s = {.row = row};
    int r = snap_op_path(op, "path", SNAP_PATH_DIR, &p);
    if (r == 0)
        r = wanted(op, row);
    if (r == 0)
        r = snap_ds_get(op->s, p.ds, &ds, op->err);
    if (r < 0)
        return r;
    r = vmfs_stat(ds->v, p.path, &st, op->err);
    if (r == 0 && st.type == VMFS_FILE)
        r = gr_fail(op->err, -EINVAL, "%s/%s is a file: disks and folders have policies", p.ds, p.path);
    if (r == 0) {
        snap_table_key(st.uuid, s.key);
        r = snap_table_change(ds, &ds->policies, set_row, &s, op->err);
    }
    if (r == 0)
        r = result_policy(op, ds, p.path);
    snap_ds_put(ds);
    return r;
}
SNAP_METHOD(op_set_policy, "snapshot.set-policy")

void snap_policy_forget(struct snap_ds *ds, const uint8_t uuid[16])
{
    snap_auto_json json_t *none = json_object();
    struct setting s = {.row = none};
    struct gr_err err = {0};
    snap_table_key(uuid, s.key);
    int r = snap_table_look(ds, &ds->policies, &err);
    if (r == 0 && json_object_get(ds->policies.rows, s.key))
        r = snap_table_change(ds, &ds->policies, set_row, &s, &err);
    if (r < 0)
        snap_warn(ds->svc, "the snapshot policy of what was deleted stays, and rules nothing: %s", gr_err_text(&err, r));
}

/* ---- single ones ---- */
struct one {
    struct snap_path p;
    struct snap_disk d;
    const char *name;
};

static int one_open(struct snap_op *op, struct one *o)
{
    int r = gr_json_str(op->params, "snapshot", &o->name, op->err);
    if (r == 0)
        r = snap_op_path(op, "disk", SNAP_PATH_DISK, &o->p);
    return r < 0 ? r : snap_disk_get(op, &o->p, &o->d);
}

static int one_result(struct snap_op *op, struct one *o, int r)
{
    struct snap_info info;
    if (r == 0)
        r = snap_find(o->d.h->disk, o->name, &info, op->err);
    snap_disk_put(&o->d);
    return r < 0 ? r : snap_op_result(op, snap_info_row(o->p.ds, o->p.path, &info));
}

static int op_protect(struct snap_op *op)
{
    struct one o = {0};
    const char *by = "", *why = "";
    int r = gr_json_opt_str(op->params, "by", &by, op->err);
    if (r == 0)
        r = gr_json_opt_str(op->params, "why", &why, op->err);
    if (r == 0 && (!gr_utf8_ok(by, strlen(by)) || !gr_utf8_ok(why, strlen(why))))
        r = gr_fail(op->err, -GR_EUSAGE, "who protects a snapshot, and why, is not UTF-8 or has a control character in it");
    if (r == 0)
        r = one_open(op, &o);
    return r < 0 ? r : one_result(op, &o, snap_protect(o.d.h->disk, o.name, by[0] ? by : "somebody", why, op->err));
}
SNAP_METHOD(op_protect, "snapshot.protect")

static int op_unprotect(struct snap_op *op)
{
    struct one o = {0};
    int r = one_open(op, &o);
    return r < 0 ? r : one_result(op, &o, snap_unprotect(o.d.h->disk, o.name, op->err));
}
SNAP_METHOD(op_unprotect, "snapshot.unprotect")

static int op_expire(struct snap_op *op)
{
    struct one o = {0};
    uint64_t at = 0;
    int r = gr_json_u64(op->params, "expires", &at, op->err);
    if (r == 0 && at > UINT32_MAX)
        r = gr_fail(op->err, -GR_EUSAGE, "a snapshot cannot expire at second %llu", (unsigned long long)at);
    if (r == 0)
        r = one_open(op, &o);
    return r < 0 ? r : one_result(op, &o, snap_expire(o.d.h->disk, o.name, (int64_t)at, op->err));
}
SNAP_METHOD(op_expire, "snapshot.expire")

const struct gr_rpc_method snap_policy_methods[] = {
    {"snapshot.policy", rpc_op_policy, true}, {"snapshot.set-policy", rpc_op_set_policy}, {"snapshot.protect", rpc_op_protect},
    {"snapshot.unprotect", rpc_op_unprotect}, {"snapshot.expire", rpc_op_expire},         {NULL, NULL},
};
