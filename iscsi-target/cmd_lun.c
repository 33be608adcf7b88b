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

/* A change of the rules of a home whose daemon does not run, which leaves its line in the audit log all the same. */
static int change_rules(struct gr_cmd_ctx *c, const char *method, json_t *params, int (*change)(struct tgt_access *a, void *arg, struct gr_err *err),
                        void *arg, struct gr_err *err)
{
    struct gr_home *home = NULL;
    struct tgt_access *a = NULL;
    uint64_t begin = gr_loop_now_ns(gr_cmd_loop(c));
    int r = gr_home_open(1, &home, err);
    if (r < 0)
        return r;
    gr_auto_free char *path = gr_home_path(home, ACCESS);
    r = path ? tgt_access_open(path, &a, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r == 0)
        r = change(a, arg, err);
    gr_audit_own(home, method, params, r, gr_loop_now_ns(gr_cmd_loop(c)) - begin, gr_cmd_warn);
    tgt_access_free(a);
    gr_home_free(home);
    return r;
}

struct masking {
    const char *disk;
    bool masked;
};

static int mask_offline(struct tgt_access *a, void *arg, struct gr_err *err)
{
    const struct masking *m = arg;
    return tgt_access_mask(a, m->disk, m->masked, err);
}

static int change_mask(struct gr_cmd_ctx *c, bool masked, struct gr_err *err)
{
    const char *disk = gr_cmd_arg(c, 0), *method = masked ? "lun.mask" : "lun.unmask";
    json_t *result = NULL, *params = disk_param(c);
    int r = tgt_cmd_ask_if(c, method, json_incref(params), &result, err);
    if (r == -ECONNREFUSED) {
        r = change_rules(c, method, params, mask_offline, &(struct masking){disk, masked}, err);
        result = json_pack("{s:s,s:b}", "disk", disk, "masked", masked);
    }
    if (!r)
        r = gr_cmd_done(c, result, "%s %s", masked ? "masked" : "unmasked", disk);
    json_decref(result);
    json_decref(params);
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

struct acl_change {
    struct gr_cmd_ctx *c;
    json_t **ret;
};

static int acl_offline(struct tgt_access *a, void *arg, struct gr_err *err)
{
    const struct acl_change *change = arg;
    struct gr_cmd_ctx *c = change->c;
    const char *disk = gr_cmd_arg(c, 0), *name;
    int r = 0;
    for (int i = 0; !r && (name = gr_cmd_opt_n(c, "allow", i)); i++)
        r = tgt_access_allow(a, disk, name, err);
    for (int i = 0; !r && (name = gr_cmd_opt_n(c, "deny", i)); i++)
        r = tgt_access_deny(a, disk, name, err);
    if (!r)
        *change->ret = json_pack("{s:s,s:o}", "disk", disk, "initiators", tgt_access_initiators(a, disk));
    return r;
}

static int lun_acl(struct gr_cmd_ctx *c, struct gr_err *err)
{
    static const struct gr_col cols[] = {{"disk", "disk", GR_COL_TEXT}, {"initiators", "initiators", GR_COL_LIST}, {NULL, NULL, GR_COL_TEXT}};
    json_t *result = NULL;
    json_t *params = json_pack("{s:s,s:o,s:o}", "disk", gr_cmd_arg(c, 0), "allow", names(c, "allow"), "deny", names(c, "deny"));
    int r = tgt_cmd_ask_if(c, "lun.acl", json_incref(params), &result, err);
    if (r == -ECONNREFUSED)
        r = change_rules(c, "lun.acl", params, acl_offline, &(struct acl_change){c, &result}, err);
    if (!r)
        r = gr_cmd_object(c, cols, result);
    json_decref(result);
    json_decref(params);
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

struct chap_change {
    const char *disk;
    struct tgt_chap_secrets secrets;
};

static int chap_offline(struct tgt_access *a, void *arg, struct gr_err *err)
{
    const struct chap_change *change = arg;
    return tgt_access_set_chap(a, change->disk, &change->secrets, err);
}

static int lun_chap(struct gr_cmd_ctx *c, struct gr_err *err)
{
    gr_auto_buf struct gr_buf own = {0}, theirs = {0};
    const char *disk = gr_cmd_arg(c, 0), *user = gr_cmd_opt(c, "user"), *file = gr_cmd_opt(c, "secret-file");
    const char *mutual = gr_cmd_opt(c, "mutual-user"), *mutual_file = gr_cmd_opt(c, "mutual-secret-file");
    bool off = gr_cmd_flag(c, "off");
    json_t *result = NULL;
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
    r = tgt_cmd_ask_if(c, "lun.chap", json_incref(params), &result, err);
    if (r == -ECONNREFUSED) {
        struct chap_change change = {disk, {user, own.data, mutual, theirs.data}};
        r = change_rules(c, "lun.chap", params, chap_offline, &change, err);
        result = json_pack("{s:s,s:b}", "disk", disk, "chap", !off);
    }
    if (!r)
        r = gr_cmd_done(c, result, off ? "CHAP is off for %s" : "CHAP is set for %s", disk);
    json_decref(result);
    json_decref(params);
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
