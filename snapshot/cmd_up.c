/* granary up|down|status: the daemons of this GRANARY_HOME. */
#include "common/cleanup.h"
#include "common/daemon.h"
#include "snapshot/cmd_storage.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define START_MS 60000u
#define STOP_MS 60000u
#define ASK_MS 5000
#define LAST_UP "state/up.json" /* the addresses of mover and iSNS server that were asked for last; portals the daemon remembers itself */
#define ARGS_MAX 80          /* of a daemon: some options, and as many portals as there can be */
#define GUESTS_MS 20000 /* what a guest gets to shut down */

struct site {
    struct gr_cmd_ctx *c;
    struct gr_home *home;
    char *storaged, *hostd; /* sockets */
    int lock;
};

static int site_open(struct site *s, struct gr_cmd_ctx *c, struct gr_err *err)
{
    *s = (struct site){.c = c, .lock = -1};
    int r = gr_home_open(1, &s->home, err);
    if (r < 0)
        return r;
    s->storaged = gr_home_path(s->home, "run/storaged.sock");
    s->hostd = gr_home_path(s->home, "run/hostd.sock");
    return s->storaged && s->hostd ? 0 : gr_fail(err, -ENOMEM, "out of memory");
}

static void site_done(struct site *s)
{
    gr_closep(&s->lock);
    free(s->storaged);
    free(s->hostd);
    gr_home_free(s->home);
}

/* One starts or ends daemons at a time; a second waits for the first. */
static int site_lock(struct site *s, struct gr_err *err)
{
    gr_auto_free char *path = gr_home_path(s->home, "run/up.lock");
    int r = path ? gr_daemon_lock(path, START_MS + STOP_MS, &s->lock, err) : gr_fail(err, -ENOMEM, "out of memory");
    return r == -GR_ELOCKED ? gr_fail(err, r, "another 'granary up' or 'granary down' of %s does not come to an end", gr_home_dir(s->home)) : r;
}

/* Ask a daemon; NULL: it is not there (or does not know the method). */
static json_t *ask(struct site *s, const char *socket, const char *method)
{
    struct gr_rpc_client *peer = NULL;
    json_t *res = NULL;
    if (gr_rpc_connect(gr_cmd_loop(s->c), socket, &peer, NULL) < 0)
        return NULL;
    if (gr_rpc_call(peer, method, json_object(), NULL, NULL, ASK_MS, &res, NULL) < 0)
        res = NULL;
    gr_rpc_client_free(peer);
    return res;
}

/* ---- up ---- */
static bool port_is_any(const char *portal)
{
    size_t n = strlen(portal);
    return n >= 2 && strcmp(portal + n - 2, ":0") == 0;
}

/* What the daemon that runs was given for @option; NULL: nothing. */
static const char *given(json_t *status, const char *option, char text[24])
{
    const json_t *v = json_object_get(status, option);
    if (json_is_integer(v)) {
        snprintf(text, 24, "%lld", (long long)json_integer_value(v));
        return text;
    }
    return json_string_value(v) && json_string_value(v)[0] ? json_string_value(v) : NULL;
}

/* A daemon that runs with others is not what was asked for. */
static int check_same(struct site *s, json_t *status, const char *option, struct gr_err *err)
{
    const char *wanted = gr_cmd_opt(s->c, option);
    char text[24];
    const char *is = given(status, option, text);
    if (!wanted || port_is_any(wanted) || (is && strcmp(wanted, is) == 0))
        return 0;
    return gr_fail(err, -EBUSY, "granary-storaged is up already, but with --%s %s: run 'granary down' first", option, is ? is : "(none)");
}

static bool same_portal(const char *wanted, const char *is)
{
    size_t n = strlen(wanted);
    return strncmp(wanted, is, n) == 0 && (!is[n] || strcmp(is + n, ":3260") == 0);
}

static int check_portals(struct site *s, json_t *open, const char *option, struct gr_err *err)
{
    const char *wanted;
    for (int k = 0; (wanted = gr_cmd_opt_n(s->c, option, k)); k++) {
        bool found = port_is_any(wanted);
        json_t *is;
        size_t i;
        json_array_foreach(open, i, is)
            found = found || same_portal(wanted, json_string_value(is));
        if (!found)
            return gr_fail(err, -EBUSY, "granary-storaged is up already, without --%s %s: change its portals with 'granary portal add' and 'granary portal remove'",
                           option, wanted);
    }
    return 0;
}

static int start(struct site *s, const char *program, const char *const *more, bool needed, struct gr_err *err)
{
    const char *argv[ARGS_MAX + 1] = {0};
    size_t n = 1;
    gr_auto_free char *path = gr_program_path(program);
    gr_auto_free char *name = gr_asprintf("log/%s.log", strncmp(program, "granary-", 8) == 0 ? program + 8 : program);
    gr_auto_free char *log = name ? gr_home_path(s->home, name) : NULL;
    if (!path)
        return needed ? gr_fail(err, -ENOENT, "the program %s is not beside granary", program) : 0;
    if (!log)
        return gr_fail(err, -ENOMEM, "out of memory");
    argv[0] = path;
    for (size_t i = 0; more && more[i] && n < GR_ARRAY_LEN(argv) - 1; i++)
        argv[n++] = more[i];
    return gr_daemon_start(argv, log, START_MS, err);
}

/* Options with a value that "up" remembers and an upgrade keeps; the daemon's status has them under the same names. (It remembers its
 * portals itself.) */
static const char *const kept[][2] = {{"mover", "--mover"}, {"isns", "--isns"}, {"loops", "--loops"}, {"link", "--link"}};

struct args {
    const char *v[ARGS_MAX];
    size_t n;
};

static void add_arg(struct args *a, const char *flag, const char *value)
{
    if (a->n + 2 >= ARGS_MAX)
        return;
    a->v[a->n++] = flag;
    if (value)
        a->v[a->n++] = value;
}

/* An address that is not named is the one of last time: virtual machines that were left on look for their disks there. */
static int start_storaged(struct site *s, struct gr_err *err)
{
    gr_auto_free char *log = gr_home_path(s->home, "log/storaged.log");
    struct args args = {{"--log", log}, 2};
    json_t *last = NULL, *now = json_object();
    const char *v;
    int r = now && log ? gr_home_load(s->home, LAST_UP, &last, err) : gr_fail(err, -ENOMEM, "out of memory");
    for (size_t i = 0; r == 0 && i < GR_ARRAY_LEN(kept); i++) {
        v = gr_cmd_opt(s->c, kept[i][0]);
        if (!v)
            v = json_string_value(json_object_get(last, kept[i][0]));
        if (!v || !strcmp(v, "off")) /* an iSNS server is no must */
            continue;
        add_arg(&args, kept[i][1], v);
        json_object_set_new(now, kept[i][0], json_string(v));
    }
    for (int i = 0; (v = gr_cmd_opt_n(s->c, "portal", i)); i++)
        add_arg(&args, "--portal", v);
    for (int i = 0; (v = gr_cmd_opt_n(s->c, "multipath-portal", i)); i++)
        add_arg(&args, "--multipath-portal", v);
    if (gr_cmd_flag(s->c, "insecure"))
        add_arg(&args, "--insecure", NULL);
    if (r == 0)
        r = start(s, "granary-storaged", args.v, true, err);
    if (r == 0)
        r = gr_home_save(s->home, LAST_UP, now, err);
    json_decref(last);
    json_decref(now);
    return r;
}

static int bring_up(struct site *s, bool *ret_already, struct gr_err *err)
{
    int r = site_lock(s, err);
    if (r < 0)
        return r;
    json_t *status = ask(s, s->storaged, "daemon.status");
    bool already = status != NULL;
    if (already) {
        r = check_portals(s, json_object_get(status, "portals"), "portal", err);
        r = r < 0 ? r : check_portals(s, json_object_get(status, "multipath-portals"), "multipath-portal", err);
        for (size_t i = 0; r == 0 && i < GR_ARRAY_LEN(kept); i++)
            r = check_same(s, status, kept[i][0], err);
        json_decref(status);
    } else {
        r = start_storaged(s, err);
    }
    if (r < 0)
        return r;
    if (gr_daemon_pid(s->hostd) == 0) {
        r = start(s, "granary-hostd", NULL, false, err);
        if (r < 0)
            return gr_prefix(err, -GR_EPARTIAL, "storage is up, but virtual machines cannot run");
    }
    *ret_already = already;
    return 0;
}

/* Why each of @rows that has an "error" is not served; how many. */
static int tell_errors(json_t *rows)
{
    json_t *row;
    size_t i;
    int n = 0;
    json_array_foreach(rows, i, row)
    {
        const char *why = json_string_value(json_object_get(row, "error"));
        if (!why)
            continue;
        gr_cmd_warn(NULL, why);
        n++;
    }
    return n;
}

/* Datastores that are registered but cannot be joined: their disks are not served. */
static int tell_missing(struct site *s)
{
    json_t *rows = ask(s, s->storaged, "datastore.list");
    int n = tell_errors(rows);
    json_decref(rows);
    return n;
}

static int cmd_up(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct site s;
    bool already = false;
    int r = site_open(&s, c, err);
    if (r == 0)
        r = bring_up(&s, &already, err);
    if (r < 0) {
        site_done(&s);
        return r;
    }
    json_t *st = ask(&s, s.storaged, "daemon.status");
    json_t *o = json_pack("{s:s,s:b,s:O?,s:O?,s:O?,s:i,s:i}", "home", gr_home_dir(s.home), "already-up", already, "portal",
                          json_object_get(st, "portal"), "multipath-portal", json_object_get(st, "multipath-portal"), "mover",
                          json_object_get(st, "mover"), "storaged-pid", (int)gr_daemon_pid(s.storaged), "hostd-pid",
                          (int)gr_daemon_pid(s.hostd));
    int missing = tell_missing(&s), closed = tell_errors(json_object_get(st, "raw-luns"));
    const char *portal = json_string_value(json_object_get(st, "portal")), *mover = json_string_value(json_object_get(st, "mover"));
    r = gr_cmd_done(c, o, "%s: iSCSI portal %s, mover %s", already ? "up already" : "up", portal ? portal : "?", mover ? mover : "?");
    json_decref(st);
    json_decref(o);
    site_done(&s);
    if (r == 0 && missing > 0)
        return gr_fail(err, -GR_EPARTIAL, "%d datastore%s could not be joined", missing, missing == 1 ? "" : "s");
    if (r == 0 && closed > 0)
        return gr_fail(err, -GR_EPARTIAL, "%d LUN%s could not be opened", closed, closed == 1 ? "" : "s");
    return r;
}

/* ---- upgrade ---- */
/* The addresses are those of the daemon that runs: it hands its portals over. */
static int replace_storaged(struct site *s, json_t *status, struct gr_err *err)
{
    gr_auto_free char *log = gr_home_path(s->home, "log/storaged.log");
    struct args args = {{"--take-over", "--log", log}, 3};
    char texts[GR_ARRAY_LEN(kept)][24];
    if (!log)
        return gr_fail(err, -ENOMEM, "out of memory");
    for (size_t i = 0; i < GR_ARRAY_LEN(kept); i++) {
        const char *v = given(status, kept[i][0], texts[i]);
        if (v)
            add_arg(&args, kept[i][1], v);
    }
    if (json_is_true(json_object_get(status, "insecure")))
        add_arg(&args, "--insecure", NULL);
    return start(s, "granary-storaged", args.v, true, err);
}

/* The host agent has no sessions: virtual machines run on under their supervisors while it is away. */
static int replace_hostd(struct site *s, struct gr_err *err)
{
    int r = gr_daemon_stop(s->hostd, "granary-hostd", STOP_MS, err);
    if (r >= 0)
        r = start(s, "granary-hostd", NULL, false, err);
    return r < 0 ? gr_prefix(err, -GR_EPARTIAL, "storage was replaced, the host agent was not") : 0;
}

static int cmd_upgrade(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct site s;
    int r = site_open(&s, c, err);
    if (r == 0)
        r = site_lock(&s, err);
    json_t *status = r == 0 ? ask(&s, s.storaged, "daemon.status") : NULL;
    if (r == 0 && !status)
        r = gr_fail(err, -GR_EUSAGE, "nothing is up here: 'granary up' starts the daemons");
    int before = (int)gr_daemon_pid(s.storaged);
    if (r == 0)
        r = replace_storaged(&s, status, err);
    if (r == 0)
        r = replace_hostd(&s, err);
    json_decref(status);
    int now = (int)gr_daemon_pid(s.storaged);
    site_done(&s);
    if (r < 0)
        return r;
    json_t *o = json_pack("{s:i,s:i}", "storaged-pid-before", before, "storaged-pid", now);
    r = gr_cmd_done(c, o, "the daemons were replaced: granary-storaged is process %d now", now);
    json_decref(o);
    return r;
}

/* ---- down ---- */
/* Guests are shut down with the host: their disks go away. */
static int stop_guests(struct site *s, struct gr_err *err)
{
    struct gr_rpc_client *peer = NULL;
    json_t *list = gr_cmd_flag(s->c, "keep-vms") ? NULL : ask(s, s->hostd, "vm.list"), *vm;
    size_t i;
    bool any = false;
    json_array_foreach(list, i, vm)
    {
        const char *state = json_string_value(json_object_get(vm, "state"));
        any = any || (state && strcmp(state, "off") != 0);
    }
    json_decref(list);
    if (!any)
        return 0;
    int r = gr_rpc_connect(gr_cmd_loop(s->c), s->hostd, &peer, err);
    if (r == 0)
        r = gr_rpc_call(peer, "host.shutdown", json_pack("{s:b,s:i}", "stop-vms", 1, "timeout-ms", GUESTS_MS), NULL, NULL, -1, NULL, err);
    gr_rpc_client_free(peer);
    return r;
}

static int cmd_down(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct site s;
    int stopped = 0;
    int r = site_open(&s, c, err);
    if (r == 0)
        r = site_lock(&s, err);
    if (r == 0)
        r = stop_guests(&s, err);
    if (r == 0)
        r = gr_daemon_stop(s.hostd, "granary-hostd", STOP_MS, err);
    stopped += r == 0;
    if (r >= 0)
        r = gr_daemon_stop(s.storaged, "granary-storaged", STOP_MS, err);
    stopped += r == 0;
    site_done(&s);
    if (r < 0)
        return r;
    return gr_cmd_done(c, NULL, stopped ? "down" : "nothing was up");
}

/* ---- status ---- */
static const struct gr_col status_cols[] = {
    {"home", "Home", GR_COL_TEXT},         {"up", "Up", GR_COL_BOOL},          {"portals", "iSCSI portals", GR_COL_LIST},
    {"mover", "Mover", GR_COL_TEXT},       {"sessions", "Sessions", GR_COL_NUMBER}, {"engine", "VM engine", GR_COL_TEXT},
    {"engine-reason", "because", GR_COL_TEXT}, {NULL},
};
static const struct gr_col datastore_cols[] = {
    {"name", "DATASTORE", GR_COL_TEXT}, {"state", "STATE", GR_COL_TEXT}, {"size", "SIZE", GR_COL_SIZE},
    {"free", "FREE", GR_COL_SIZE},      {"error", "ERROR", GR_COL_TEXT}, {"warning", "WARNING", GR_COL_TEXT}, {NULL},
};
static const struct gr_col lun_cols[] = {
    {"disk", "RAW LUN", GR_COL_TEXT}, {"size", "SIZE", GR_COL_SIZE}, {"file", "FILE", GR_COL_TEXT}, {"redirect", "SERVED BY", GR_COL_TEXT},
    {"error", "ERROR", GR_COL_TEXT},  {NULL},
};
static const struct gr_col vm_cols[] = {
    {"vm", "VM", GR_COL_TEXT}, {"state", "STATE", GR_COL_TEXT}, {"accel", "ENGINE", GR_COL_TEXT}, {NULL},
};

/* Without a daemon nothing is joined just to be shown: what is registered is told. */
static json_t *registered(struct site *s, struct gr_err *err)
{
    json_t *doc = NULL, *rows = json_array(), *row;
    size_t i;
    if (gr_home_load(s->home, "conf/datastores.json", &doc, err) < 0) {
        json_decref(rows);
        return NULL;
    }
    json_array_foreach(json_object_get(doc, "datastores"), i, row)
        json_array_append_new(rows, json_pack("{s:O?,s:s,s:O?}", "name", json_object_get(row, "name"), "state", "registered", "devices",
                                              json_object_get(row, "devices")));
    json_decref(doc);
    return rows;
}

static int status_object(struct site *s, json_t **ret, struct gr_err *err)
{
    json_t *st = ask(s, s->storaged, "daemon.status");
    json_t *ds = st ? ask(s, s->storaged, "datastore.list") : registered(s, err);
    json_t *hd = ask(s, s->hostd, "daemon.status");
    json_t *probe = ask(s, s->hostd, "hv.probe");
    json_t *vms = ask(s, s->hostd, "vm.list");
    if (!ds) {
        json_decref(st);
        return err->code ? err->code : gr_fail(err, -EIO, "the datastores cannot be listed");
    }
    *ret = json_pack("{s:s,s:b,s:O?,s:O?,s:O?,s:O?,s:O?,s:O?,s:O?,s:O?,s:o?,s:o?,s:o?,s:o?}", "home", gr_home_dir(s->home), "up", st != NULL, "portal",
                     json_object_get(st, "portal"), "portals", json_object_get(st, "portals"), "multipath-portal",
                     json_object_get(st, "multipath-portal"), "multipath-portals", json_object_get(st, "multipath-portals"), "mover",
                     json_object_get(st, "mover"), "sessions", json_object_get(st, "sessions"), "engine", json_object_get(probe, "verdict"),
                     "engine-reason", json_object_get(probe, "reason"), "storaged", st, "hostd", hd, "datastores", ds, "vms", vms);
    json_decref(probe);
    return *ret ? 0 : gr_fail(err, -ENOMEM, "out of memory");
}

static int cmd_status(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct site s;
    json_t *o = NULL;
    int r = site_open(&s, c, err);
    if (r == 0)
        r = status_object(&s, &o, err);
    if (r == 0)
        r = gr_cmd_object(c, status_cols, o);
    if (r == 0 && !gr_cmd_json(c) && json_array_size(json_object_get(o, "datastores")) > 0)
        r = gr_cmd_rows(c, datastore_cols, json_object_get(o, "datastores"));
    json_t *luns = json_object_get(json_object_get(o, "storaged"), "raw-luns");
    if (r == 0 && !gr_cmd_json(c) && json_array_size(luns) > 0)
        r = gr_cmd_rows(c, lun_cols, luns);
    if (r == 0 && !gr_cmd_json(c) && json_array_size(json_object_get(o, "vms")) > 0)
        r = gr_cmd_rows(c, vm_cols, json_object_get(o, "vms"));
    json_decref(o);
    site_done(&s);
    return r;
}

static const struct gr_opt up_opts[] = {
    {"portal", "HOST:PORT", "iSCSI portal (default: those of last time, at first 127.0.0.1:3260; port 0: any free one)", true},
    {"multipath-portal", "HOST:PORT", "a portal that never redirects, for dm-multipath", true},
    {"isns", "HOST[:PORT]", "register the targets with this iSNS server; off: with none any more"},
    {"mover", "HOST:PORT", "NBD data mover (default 127.0.0.1:10809, or any free port)"},
    {"link", "ADDRESS[:PORT]", "where other hosts of a datastore on LUNs reach this one (default: the first portal's address)"},
    {"loops", "N", "event loops, with a thread each, that share the sessions (default 1)"},
    {"insecure", NULL, "allow addresses beyond loopback without access control, and the mover without TLS"},
    {NULL},
};

static const struct gr_opt down_opts[] = {
    {"keep-vms", NULL, "leave virtual machines on; they stand still without their disks"},
    {NULL},
};

const struct gr_cmd snap_up_commands[] = {
    {NULL, "up", "", 0, 0, "start the daemons of this host; returns when every LUN answers", up_opts, cmd_up},
    {NULL, "down", "", 0, 0, "end guests and daemons in order; returns when they are gone", down_opts, cmd_down},
    {NULL, "upgrade", "", 0, 0, "replace the daemons by the programs beside this one; initiators and guests work on", NULL, cmd_upgrade},
    {NULL, "status", "", 0, 0, "show daemons, datastores, portals and virtual machines", NULL, cmd_status},
    {NULL},
};
