/* Commands "granary lun …" and "granary session …": they ask the running storage daemon; masks, access lists and CHAP can also
 * be set while it does not run. */
#include "common/audit.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/home.h"
#include "iscsi-target/cmd_ask.h"
#include "iscsi-target/lun_access.h"
#include "iscsi-target/prometheus.h"
#include "iscsi-target/target.h"
#include <stdio.h>
#include <string.h>

#define ACCESS "conf/access.json"

static json_t *disk_param(struct gr_cmd_ctx *c)
{
    const char *disk = gr_cmd_arg(c, 0) ? gr_cmd_arg(c, 0) : gr_cmd_opt(c, "disk");
    return disk ? json_pack("{s:s}", "disk", disk) : json_object();
}

static int lun_list(struct gr_cmd_ctx *c, struct gr_err *err)
{
    static const struct gr_col cols[] = {{"disk", "DISK", GR_COL_TEXT},         {"sessions", "SESSIONS", GR_COL_NUMBER},
                                         {"masked", "MASKED", GR_COL_BOOL},     {"chap-user", "CHAP", GR_COL_TEXT},
                                         {"iscsi-url", "ISCSI URL", GR_COL_TEXT}, {"nbd-url", "NBD URL", GR_COL_TEXT},
                                         {"size", "SIZE", GR_COL_SIZE},         {"file", "FILE", GR_COL_TEXT},
                                         {NULL, NULL, GR_COL_TEXT}};
    return tgt_cmd_rows(c, "lun.list", disk_param(c), cols, err);
}

static int lun_stat(struct gr_cmd_ctx *c, struct gr_err *err)
{
    static const struct gr_col cols[] = {{"disk", "DISK", GR_COL_TEXT},           {"sessions", "SESSIONS", GR_COL_NUMBER},
                                         {"reads", "READS", GR_COL_NUMBER},       {"read-bytes", "READ", GR_COL_SIZE},
                                         {"writes", "WRITES", GR_COL_NUMBER},     {"write-bytes", "WRITTEN", GR_COL_SIZE},
                                         {"read-p99-us", "READ P99 US", GR_COL_NUMBER}, {"write-p99-us", "WRITE P99 US", GR_COL_NUMBER},
                                         {"others", "OTHERS", GR_COL_NUMBER},     {"errors", "ERRORS", GR_COL_NUMBER},
                                         {NULL, NULL, GR_COL_TEXT}};
    if (!gr_cmd_flag(c, "prometheus"))
        return tgt_cmd_rows(c, "lun.stat", disk_param(c), cols, err);
    json_t *result = NULL;
    int r = tgt_cmd_ask(c, "lun.stat", disk_param(c), &result, err);
    if (!r && (r = tgt_prometheus_print(result, stdout)) < 0)
        gr_fail(err, r, "standard output: cannot be written");
    json_decref(result);
    return r;
}

static int session_list(struct gr_cmd_ctx *c, struct gr_err *err)
{
    static const struct gr_col cols[] = {{"id", "ID", GR_COL_NUMBER},           {"disk", "DISK", GR_COL_TEXT},
                                         {"initiator", "INITIATOR", GR_COL_TEXT}, {"address", "ADDRESS", GR_COL_TEXT},
                                         {"age", "AGE", GR_COL_NUMBER},         {"depth", "DEPTH", GR_COL_NUMBER},
                                         {"reads", "READS", GR_COL_NUMBER},     {"writes", "WRITES", GR_COL_NUMBER},
                                         {NULL, NULL, GR_COL_TEXT}};
    return tgt_cmd_rows(c, "session.list", disk_param(c), cols, err);
}

static int session_drop(struct gr_cmd_ctx *c, struct gr_err *err)
{
    uint64_t id;
    json_t *result = NULL;
    int r = gr_parse_u64(gr_cmd_arg(c, 0), 0, UINT32_MAX, &id, err);
    if (r < 0)
        return -GR_EUSAGE;
    r = tgt_cmd_ask(c, "session.drop", json_pack("{s:I}", "id", (json_int_t)id), &result, err);
    if (r < 0)
        return r;
    r = gr_cmd_done(c, result, "dropped session %llu", (unsigned long long)id);
    json_decref(result);
    return r;
}

/* ---- rules of a home whose daemon does not run ---- */
struct offline {
    const char *disk;
    int (*fn)(struct offline *o, struct tgt_access *a, struct gr_err *err);
    void *arg;
    char *untold;
    json_t *result;
};

/* @rules: NULL where the home has them itself. */
static int with_rules(void *arg, const struct gr_rules *rules, struct gr_err *err)
{
    struct offline *o = arg;
    struct tgt_access *a = NULL;
    struct gr_home *home = NULL;
    int r = gr_home_open(1, &home, err);
    if (r < 0)
        return r;
    gr_auto_free char *path = gr_home_path(home, ACCESS);
    gr_home_free(home);
    r = path ? tgt_access_open(path, rules, &a, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r == 0)
        r = o->fn(o, a, err);
    tgt_access_free(a);
    return r;
}

/* What no server witnessed leaves its line all the same. */
static void leave_line(const char *method, json_t *params, int result, uint64_t ns)
{
    struct gr_home *home = NULL;
    if (strcmp(method, "lun.acl") == 0 && !json_array_size(json_object_get(params, "allow")) && !json_array_size(json_object_get(params, "deny")))
        return; /* it only asks */
    if (gr_home_open(1, &home, NULL) == 0)
        gr_audit_own(home, method, params, result, ns, gr_cmd_warn);
    gr_home_free(home);
}

/* Ask the daemon; when none runs, do the same here. @params are taken; o->result is new. What others could not be told is printed. */
static int change(struct gr_cmd_ctx *c, const char *method, json_t *params, struct offline *o, struct gr_err *err)
{
    const struct gr_rules_app *app = gr_cmd_app(c);
    int r = tgt_cmd_ask_if(c, method, json_incref(params), &o->result, err);
    if (r == -ECONNREFUSED) {
        uint64_t begin = gr_loop_now_ns(gr_cmd_loop(c));
        r = strchr(o->disk, '/') ? app->with(gr_cmd_loop(c), with_rules, o, err) : with_rules(o, NULL, err);
        if (r != -EALREADY)
            leave_line(method, params, r, gr_loop_now_ns(gr_cmd_loop(c)) - begin);
    }
    if (r == -EALREADY) /* it has just started */
        r = tgt_cmd_ask(c, method, json_incref(params), &o->result, err);
    json_decref(params);
    if (r == 0 && o->untold && o->result)
        json_object_set_new(o->result, "warning", json_string(o->untold));
    free(o->untold);
    const char *warning = json_string_value(json_object_get(o->result, "warning"));
    if (warning)
        gr_cmd_warn(NULL, warning);
    return r;
}

static int mask_offline(struct offline *o, struct tgt_access *a, struct gr_err *err)
{
    const bool *masked = o->arg;
    int r = tgt_access_mask(a, o->disk, *masked, &o->untold, err);
    o->result = json_pack("{s:s,s:b}", "disk", o->disk, "masked", *masked);
    return r;
}

static int change_mask(struct gr_cmd_ctx *c, bool masked, struct gr_err *err)
{
    struct offline o = {.disk = gr_cmd_arg(c, 0), .fn = mask_offline, .arg = &masked};
    int r = change(c, masked ? "lun.mask" : "lun.unmask", disk_param(c), &o, err);
    if (!r)
        r = gr_cmd_done(c, o.result, "%s %s", masked ? "masked" : "unmasked", o.disk);
    json_decref(o.result);
    return r;
}

static int lun_mask(struct gr_cmd_ctx *c, struct gr_err *err)
{
    return change_mask(c, true, err);
}

static int lun_unmask(struct gr_cmd_ctx *c, struct gr_err *err)
{
    return change_mask(c, false, err);
}

static json_t *names(struct gr_cmd_ctx *c, const char *opt)
{
    json_t *list = json_array();
    for (int i = 0; gr_cmd_opt_n(c, opt, i); i++)
        json_array_append_new(list, json_string(gr_cmd_opt_n(c, opt, i)));
    return list;
}

static int acl_offline(struct offline *o, struct tgt_access *a, struct gr_err *err)
{
    json_t *params = o->arg, *allow = json_object_get(params, "allow"), *deny = json_object_get(params, "deny");
    int r = json_array_size(allow) || json_array_size(deny) ? tgt_access_acl(a, o->disk, allow, deny, &o->untold, err)
                                                            : tgt_access_refresh(a, o->disk, err);
    if (r == 0)
        o->result = json_pack("{s:s,s:o}", "disk", o->disk, "initiators", tgt_access_initiators(a, o->disk));
    return r;
}

static int lun_acl(struct gr_cmd_ctx *c, struct gr_err *err)
{
    static const struct gr_col cols[] = {{"disk", "disk", GR_COL_TEXT}, {"initiators", "initiators", GR_COL_LIST}, {NULL, NULL, GR_COL_TEXT}};
    json_t *params = json_pack("{s:s,s:o,s:o}", "disk", gr_cmd_arg(c, 0), "allow", names(c, "allow"), "deny", names(c, "deny"));
    struct offline o = {.disk = gr_cmd_arg(c, 0), .fn = acl_offline, .arg = params};
    int r = change(c, "lun.acl", json_incref(params), &o, err);
    if (!r)
        r = gr_cmd_object(c, cols, o.result);
    json_decref(params);
    json_decref(o.result);
    return r;
}

/* One line of standard input. */
static int read_stdin(struct gr_buf *ret, struct gr_err *err)
{
    char ch;
    while (ret->len < 1024) {
        ssize_t n = read(0, &ch, 1);
        if (n <= 0 || ch == '\n')
            break;
        int r = gr_buf_add(ret, &ch, 1);
        if (r < 0)
            return gr_fail(err, r, "out of memory");
    }
    return ret->len ? 0 : gr_fail(err, -EINVAL, "standard input: no secret");
}

static int secret(const char *path, struct gr_buf *ret, struct gr_err *err)
{
    return strcmp(path, "-") ? gr_secret_read(path, ret, err) : read_stdin(ret, err);
}

static int chap_offline(struct offline *o, struct tgt_access *a, struct gr_err *err)
{
    const struct tgt_chap_secrets *sec = o->arg;
    int r = tgt_access_set_chap(a, o->disk, sec, &o->untold, err);
    o->result = json_pack("{s:s,s:b}", "disk", o->disk, "chap", sec->user != NULL);
    return r;
}

static int lun_chap(struct gr_cmd_ctx *c, struct gr_err *err)
{
    gr_auto_buf struct gr_buf own = {0}, theirs = {0};
    const char *disk = gr_cmd_arg(c, 0), *user = gr_cmd_opt(c, "user"), *file = gr_cmd_opt(c, "secret-file");
    const char *mutual = gr_cmd_opt(c, "mutual-user"), *mutual_file = gr_cmd_opt(c, "mutual-secret-file");
    bool off = gr_cmd_flag(c, "off");
    if (off ? user || file || mutual || mutual_file : !user || !file || !mutual != !mutual_file)
        return gr_fail(err, -GR_EUSAGE, "give --user and --secret-file (and both --mutual options, or none), or --off");
    int r = off ? 0 : secret(file, &own, err);
    if (!r && mutual)
        r = secret(mutual_file, &theirs, err);
    if (r < 0)
        return r;
    json_t *params = off ? json_pack("{s:s,s:b}", "disk", disk, "off", 1)
                         : json_pack("{s:s,s:s,s:s}", "disk", disk, "user", user, "secret", own.data);
    if (!params)
        return gr_fail(err, -EINVAL, "disk '%s': CHAP user and secret must be UTF-8 text", disk);
    if (mutual) {
        json_object_set_new(params, "mutual-user", json_string(mutual));
        json_object_set_new(params, "mutual-secret", json_string(theirs.data));
    }
    struct tgt_chap_secrets sec = {user, own.data, mutual, theirs.data};
    struct offline o = {.disk = disk, .fn = chap_offline, .arg = &sec};
    r = change(c, "lun.chap", params, &o, err);
    if (!r)
        r = gr_cmd_done(c, o.result, off ? "CHAP is off for %s" : "CHAP is set for %s", disk);
    json_decref(o.result);
    return r;
}

static const struct gr_opt acl_opts[] = {{"allow", "INITIATOR", "let this initiator name in; a trailing * stands for any rest", true},
                                         {"deny", "INITIATOR", "take it off the list; its sessions end", true},
                                         {NULL, NULL, NULL, false}};
static const struct gr_opt chap_opts[] = {{"user", "NAME", "name that initiators prove", false},
                                          {"secret-file", "FILE", "its secret, 12 to 255 bytes, in a file only you can read; - for standard input", false},
                                          {"mutual-user", "NAME", "name that we prove to the initiator", false},
                                          {"mutual-secret-file", "FILE", "its secret, another one", false},
                                          {"off", NULL, "ask for no proof", false},
                                          {NULL, NULL, NULL, false}};
static const struct gr_opt stat_opts[] = {{"prometheus", NULL, "print it as Prometheus text, with latency histograms", false}, {NULL, NULL, NULL, false}};
static const struct gr_opt session_opts[] = {{"disk", "DISK", "only sessions of this disk", false}, {NULL, NULL, NULL, false}};

const struct gr_cmd tgt_commands[] = {
    {"lun", "list", "[DISK]", 0, 1, "disks and raw LUNs served, and the URLs that reach them", NULL, lun_list},
    {"lun", "stat", "[DISK]", 0, 1, "what was read and written through iSCSI, and how long it took", stat_opts, lun_stat},
    {"lun", "mask", "DISK", 1, 1, "hide a disk from all initiators; its sessions end", NULL, lun_mask},
    {"lun", "unmask", "DISK", 1, 1, "show it again", NULL, lun_unmask},
    {"lun", "acl", "DISK", 1, 1, "show or change which initiators may use a disk ('*': every disk without a list of its own)", acl_opts, lun_acl},
    {"lun", "chap", "DISK|discovery", 1, 1, "ask initiators of a disk, or all that list targets, for a CHAP proof", chap_opts, lun_chap},
    {"session", "list", "", 0, 0, "initiators that are logged in", session_opts, session_list},
    {"session", "drop", "ID", 1, 1, "cut a session (the initiator may log in again)", NULL, session_drop},
    {NULL, NULL, NULL, 0, 0, NULL, NULL, NULL},
};
