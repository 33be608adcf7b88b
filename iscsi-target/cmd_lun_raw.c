/* Commands "granary lun add|remove|resize|set|redirect": by the storage daemon of this home, or, while it does not run, here under its lock. */
#include "common/audit.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/cmd_ask.h"
#include "iscsi-target/raw_luns.h"
#include <string.h>

/* The method in this process: nothing is served. */
static int run_here(struct gr_cmd_ctx *c, struct gr_home *home, const char *method, json_t *params, json_t **ret, struct gr_err *err)
{
    static const struct tgt_directory nothing;
    struct gr_rpc_server *server = NULL;
    struct tgt_raw *raw = NULL;
    struct gr_audit audit;
    int r = gr_audit_init(&audit, home, gr_cmd_warn, NULL, err);
    if (r == 0)
        r = tgt_raw_new(gr_cmd_loop(c), home, &nothing, &raw, err);
    if (r == 0 && ((r = gr_rpc_server_new(gr_cmd_loop(c), &server)) < 0 || (r = gr_rpc_server_add(server, tgt_raw_methods, raw)) < 0))
        gr_fail(err, r, "LUNs cannot be changed here: %s", gr_code_text(r));
    if (r == 0) {
        gr_audit_watch(&audit, server);
        r = gr_rpc_local(server, method, json_incref(params), NULL, NULL, ret, err);
    }
    gr_rpc_server_free(server);
    tgt_raw_free(raw);
    gr_audit_done(&audit);
    return r;
}

/* Ask the daemon, or do it here; somebody who holds the home without answering (a command, a daemon that starts or ends) is waited for. */
static int change_at(struct gr_cmd_ctx *c, struct gr_home *home, const char *method, json_t *params, json_t **ret, struct gr_err *err)
{
    for (struct gr_home_queue queue = {0};;) {
        gr_auto_close int lock = -1;
        struct gr_err locked = {0};
        int r = tgt_cmd_ask_if(c, method, json_incref(params), ret, err);
        if (r != -ECONNREFUSED && r != -EPIPE)
            return r;
        r = gr_home_lock(home, &lock, &locked);
        if (r == 0)
            return run_here(c, home, method, params, ret, err);
        if (r != -GR_ELOCKED || !gr_home_queue_on(&queue, &locked))
            return gr_fail(err, r, "%s", locked.text);
        gr_fiber_sleep_ms(GR_HOME_STEP_MS);
    }
}

/* Takes @params; NULL: an argument was not UTF-8. */
static int change(struct gr_cmd_ctx *c, const char *method, json_t *params, json_t **ret, struct gr_err *err)
{
    struct gr_home *home = NULL;
    if (!params)
        return gr_fail(err, -GR_EUSAGE, "an argument is not UTF-8");
    int r = gr_home_open(1, &home, err);
    if (r == 0)
        r = change_at(c, home, method, params, ret, err);
    gr_home_free(home);
    json_decref(params);
    return r;
}

static int size_param(json_t *params, const char *text, struct gr_err *err)
{
    uint64_t size;
    if (gr_parse_size(text, &size, err) < 0)
        return -GR_EUSAGE;
    json_object_set_new(params, "size", json_integer((json_int_t)size));
    return 0;
}

static char *absolute(const char *path)
{
    gr_auto_free char *cwd = path[0] == '/' ? NULL : getcwd(NULL, 0);
    return path[0] == '/' ? gr_strdup(path) : cwd ? gr_asprintf("%s/%s", cwd, path) : NULL;
}

static int lun_add(struct gr_cmd_ctx *c, struct gr_err *err)
{
    gr_auto_free char *file = absolute(gr_cmd_arg(c, 1));
    const char *size = gr_cmd_opt(c, "size"), *uuid = gr_cmd_opt(c, "uuid");
    json_t *result = NULL;
    if (!file)
        return gr_fail(err, -ENOMEM, "'%s': out of memory", gr_cmd_arg(c, 1));
    json_t *params = json_pack("{s:s,s:s,s:s*}", "lun", gr_cmd_arg(c, 0), "file", file, "uuid", uuid);
    int r = params ? gr_cmd_on_off(c, "read-only", params, err) : 0;
    if (params && r == 0 && size)
        r = size_param(params, size, err);
    if (r < 0) {
        json_decref(params);
        return r;
    }
    r = change(c, "lun.add", params, &result, err);
    if (r == 0)
        r = gr_cmd_done(c, result, "added LUN %s: %s", gr_cmd_arg(c, 0), file);
    json_decref(result);
    return r;
}

static int lun_remove(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *result = NULL;
    int r = change(c, "lun.remove", json_pack("{s:s,s:b}", "lun", gr_cmd_arg(c, 0), "force", gr_cmd_flag(c, "force")), &result, err);
    if (r == 0)
        r = gr_cmd_done(c, result, "removed LUN %s; %s keeps its bytes", gr_cmd_arg(c, 0), json_string_value(json_object_get(result, "file")));
    json_decref(result);
    return r;
}

static int lun_resize(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *result = NULL, *params = json_pack("{s:s}", "lun", gr_cmd_arg(c, 0));
    int r = params ? size_param(params, gr_cmd_arg(c, 1), err) : 0;
    if (r < 0) {
        json_decref(params);
        return r;
    }
    r = change(c, "lun.resize", params, &result, err);
    if (r == 0)
        r = gr_cmd_done(c, result, "LUN %s has %lld bytes", gr_cmd_arg(c, 0), (long long)json_integer_value(json_object_get(result, "size")));
    json_decref(result);
    return r;
}

static int lun_set(struct gr_cmd_ctx *c, struct gr_err *err)
{
    static const struct gr_col cols[] = {{"disk", "LUN", GR_COL_TEXT}, {"iops", "IOPS limit", GR_COL_NUMBER}, {"bandwidth", "Bandwidth limit", GR_COL_SIZE},
                                         {"burst-ms", "Burst ms", GR_COL_NUMBER}, {NULL, NULL, GR_COL_TEXT}};
    json_t *result = NULL, *params = json_pack("{s:s}", "lun", gr_cmd_arg(c, 0));
    int r = params ? gr_cmd_limit(c, "iops", "iops", false, params, err) : 0;
    if (params && r == 0)
        r = gr_cmd_limit(c, "bandwidth", "bandwidth", true, params, err);
    if (params && r == 0)
        r = gr_cmd_limit(c, "burst", "burst-ms", false, params, err);
    if (params && r == 0 && json_object_size(params) == 1)
        r = gr_fail(err, -GR_EUSAGE, "LUN %s: say what to set (--iops, --bandwidth, --burst)", gr_cmd_arg(c, 0));
    if (r < 0) {
        json_decref(params);
        return r;
    }
    r = change(c, "lun.set", params, &result, err);
    if (r == 0)
        r = gr_cmd_object(c, cols, result);
    json_decref(result);
    return r;
}

static int lun_redirect(struct gr_cmd_ctx *c, struct gr_err *err)
{
    const char *to = gr_cmd_arg(c, 1);
    json_t *result = NULL;
    if (gr_cmd_flag(c, "off") == (to != NULL))
        return gr_fail(err, -GR_EUSAGE, "give HOST:PORT, or --off");
    int r = change(c, "lun.redirect", json_pack("{s:s,s:s*}", "lun", gr_cmd_arg(c, 0), "to", to), &result, err);
    if (r == 0)
        r = to ? gr_cmd_done(c, result, "logins to LUN %s are sent to %s", gr_cmd_arg(c, 0), to)
               : gr_cmd_done(c, result, "LUN %s is served here", gr_cmd_arg(c, 0));
    json_decref(result);
    return r;
}

static const struct gr_opt add_opts[] = {{"size", "SIZE", "make the file, which must not exist, of this size", false},
                                         {"read-only", "on|off", "initiators may only read (default: off)", false},
                                         {"uuid", "UUID", "its identity (VPD page 83), when it takes the place of one with that; default: a new one", false},
                                         {NULL, NULL, NULL, false}};
static const struct gr_opt remove_opts[] = {{"force", NULL, "end sessions that use it", false}, {NULL, NULL, NULL, false}};
static const struct gr_opt set_opts[] = {{"iops", "N|off", "most commands a second", false},
                                         {"bandwidth", "SIZE|off", "most bytes a second", false},
                                         {"burst", "MS|off", "how much of a limit may be saved up (off: 100 ms)", false},
                                         {NULL, NULL, NULL, false}};
static const struct gr_opt redirect_opts[] = {{"off", NULL, "serve it here again", false}, {NULL, NULL, NULL, false}};

const struct gr_cmd tgt_raw_commands[] = {
    {"lun", "add", "NAME FILE|DEVICE", 2, 2, "serve a raw file or block device as a LUN", add_opts, lun_add},
    {"lun", "remove", "NAME", 1, 1, "serve it no more; its bytes stay", remove_opts, lun_remove},
    {"lun", "resize", "NAME SIZE", 2, 2, "let the file of a LUN grow; initiators are told", NULL, lun_resize},
    {"lun", "set", "NAME", 1, 1, "limit what initiators may ask of a LUN", set_opts, lun_set},
    {"lun", "redirect", "NAME [HOST:PORT]", 1, 2, "send logins to another portal, and let the file go", redirect_opts, lun_redirect},
    {NULL, NULL, NULL, 0, 0, NULL, NULL, NULL},
};
