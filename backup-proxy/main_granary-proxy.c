/* granary-proxy: one job of backup or restore. Composes the jobs with the storage service: through its daemon's socket, or in this
 * process when no daemon runs; and with the datastore itself for the transport "local". */
#include "backup-proxy/cmd_proxy.h"
#include "common/bdev_open.h"
#include "common/cleanup.h"
#include "common/daemon.h"
#include "snapshot/client.h"
#include "snapshot/keyfile.h"
#include "snapshot/snapshot.h"
#include <glob.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define HOST_START_MS 20000
#define CALL_TIMEOUT_MS (10 * 60 * 1000)
struct proxy {
    struct gr_cmd_ctx *cmd;
    struct gr_loop *loop;
    struct gr_home *home;
    struct snap_client *client; /* opened at the first need */
    struct gr_rpc_client *host; /* NULL: not asked yet, or none */
    struct vmfs *reader;        /* transport local beside a daemon */
    char reader_ds[VMFS_VOLUME_NAME_MAX + 1];
    struct gr_bdev *devices[16];
    unsigned n_devices;
};

static int need_client(struct proxy *p, struct gr_err *err)
{
    return p->client ? 0 : snap_client_open(p->loop, p->home, NULL, &p->client, err);
}
static int call_storage(void *arg, const char *method, json_t *params, int (*on_part)(void *part_arg, json_t *part), void *part_arg, json_t **ret,
                        struct gr_err *err)
{
    struct proxy *p = arg;
    int r = params ? need_client(p, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r < 0) {
        json_decref(params);
        return r;
    }
    return snap_client_call(p->client, method, params, on_part, part_arg, ret, err);
}
/* An engine of this home was started and has not ended in order: its guest may be running, whether the host agent does or not. */
static bool engine_may_run(struct proxy *p)
{
    gr_auto_free char *pattern = gr_home_path(p->home, "run/vm/*/record.json");
    glob_t found = {0};
    bool any = pattern && glob(pattern, GLOB_NOSORT, NULL, &found) == 0 && found.gl_pathc > 0;
    globfree(&found);
    return any;
}

/* A VM must not be taken for off because the agent that knows it is away. */
static int connect_host(struct proxy *p, struct gr_err *err)
{
    gr_auto_free char *path = gr_home_path(p->home, "run/hostd.sock"), *log = gr_home_path(p->home, "log/hostd.log");
    int r = path && log ? gr_rpc_connect(p->loop, path, &p->host, err) : gr_fail(err, -ENOMEM, "out of memory");
    if ((r != -ENOENT && r != -ECONNREFUSED) || !engine_may_run(p))
        return r;
    gr_auto_free char *exe = gr_program_path("granary-hostd");
    const char *argv[] = {exe, NULL};
    r = exe ? gr_daemon_start(argv, log, HOST_START_MS, err) : gr_fail(err, -EIO, "a virtual machine may be running, but granary-hostd is not installed");
    return r < 0 && r != -GR_ELOCKED ? r : gr_rpc_connect(p->loop, path, &p->host, err);
}

static int call_host(void *arg, const char *method, json_t *params, json_t **ret, struct gr_err *err)
{
    struct proxy *p = arg;
    int r = 0;
    if (!p->host)
        r = connect_host(p, err);
    if (r < 0) {
        json_decref(params);
        return r == -ECONNREFUSED ? -ENOENT : r;
    }
    return gr_rpc_call(p->host, method, params, NULL, NULL, CALL_TIMEOUT_MS, ret, err);
}
static bool has_daemon(void *arg)
{
    struct proxy *p = arg;
    return need_client(p, NULL) == 0 && !snap_client_local(p->client);
}

/* ---- the transport "local" ---- */
/* Join the datastore as a reader beside the daemon that owns it. */
static int join_reader(struct proxy *p, const char *ds, struct gr_err *err)
{
    json_t *res = NULL, *dev;
    size_t i;
    if (p->reader && !strcmp(p->reader_ds, ds))
        return 0;
    if (p->reader)
        return gr_fail(err, -EOPNOTSUPP, "transport local reads one datastore per job; '%s' is another than '%s'", ds, p->reader_ds);
    int r = call_storage(p, "datastore.info", json_pack("{s:s}", "name", ds), NULL, NULL, &res, err);
    json_t *login = json_object_get(res, "login");
    struct gr_device_opts device = {.login = {json_string_value(json_object_get(login, "user")), json_string_value(json_object_get(login, "secret-file")),
                                              json_string_value(json_object_get(login, "target-user")),
                                              json_string_value(json_object_get(login, "target-secret-file"))}};
    json_array_foreach(json_object_get(res, "devices"), i, dev) {
        const char *path = json_is_string(dev) ? json_string_value(dev) : json_string_value(json_object_get(dev, "path"));
        if (r < 0)
            break;
        if (!path || p->n_devices == GR_ARRAY_LEN(p->devices))
            r = gr_fail(err, -GR_EPROTO, "datastore '%s': its devices cannot be opened here", ds);
        else if ((r = gr_device_open(p->loop, path, &device, &p->devices[p->n_devices], err)) == 0)
            p->n_devices++;
    }
    json_decref(res);
    struct vmfs_join_opts o = {.role = VMFS_READER, .host_name = "granary-proxy", .address = "", .portal = "", .kek = snap_key_find, .kek_arg = p->home};
    if (r == 0)
        r = gr_home_host_uuid(p->home, o.host_uuid, err);
    if (r == 0)
        r = vmfs_join(p->loop, p->devices, p->n_devices, &o, &p->reader, err);
    if (r == 0)
        snprintf(p->reader_ds, sizeof p->reader_ds, "%s", ds);
    return r;
}
static int open_local(void *arg, const char *name, struct gr_bdev **ret, struct gr_err *err)
{
    struct proxy *p = arg;
    struct snap_place place = {.bdev = NULL};
    struct snap_path path;
    int r = need_client(p, err);
    if (r == 0)
        r = snap_path_parse(name, SNAP_PATH_EITHER, &path, err);
    if (r < 0)
        return r;
    if (snap_client_local(p->client)) {
        r = snap_svc_find(snap_client_local(p->client), name, "backup", 10000, &place, err);
        if (r == 0 && !place.bdev)
            return gr_fail(err, -GR_ELOCKED, "'%s' is owned by host '%s'; back it up there, or by san or lan", name, place.host);
        if (r == 0)
            *ret = place.bdev;
        return r;
    }
    if (!path.snap[0])
        return gr_fail(err, -GR_ELOCKED, "'%s' is owned by the storage daemon", name);
    gr_auto_free char *disk = gr_asprintf("%s/%s", path.ds, path.path);
    json_t *res = NULL;
    r = call_storage(p, "disk.checkpoint", json_pack("{s:s}", "disk", disk ? disk : ""), NULL, NULL, &res, err);
    json_decref(res);
    if (r == 0)
        r = join_reader(p, path.ds, err);
    return r < 0 ? r : snap_open_reader(p->reader, path.path, path.snap, ret, err);
}

/* ---- environment of a job ---- */
static void on_progress(void *arg, const char *what, uint64_t done, uint64_t total)
{
    struct proxy *p = arg;
    gr_cmd_progress(p->cmd, what, done, total, true);
}
static void on_warn(void *arg, const char *text)
{
    (void)arg;
    fprintf(stderr, "warning: %s\n", text);
}
/* The snapshot goes away and the repository is left in order before the process ends. */
static void on_signal(void *arg, int signo)
{
    struct bp_env *env = arg;
    env->cancel = true;
}
static int env_open(struct gr_cmd_ctx *c, struct bp_env *ret, struct gr_err *err)
{
    struct proxy *p = gr_zalloc(sizeof *p);
    if (!p)
        return gr_fail(err, -ENOMEM, "out of memory");
    p->cmd = c;
    p->loop = gr_cmd_loop(c);
    int r = gr_home_open(1, &p->home, err);
    if (r < 0) {
        free(p);
        return r;
    }
    *ret = (struct bp_env){.loop = p->loop,
                           .home = p->home,
                           .arg = p,
                           .storage = call_storage,
                           .host = call_host,
                           .daemon = has_daemon,
                           .open_local = open_local,
                           .progress = on_progress,
                           .warn = on_warn};
    (void)gr_loop_signal(p->loop, SIGTERM, on_signal, ret);
    (void)gr_loop_signal(p->loop, SIGINT, on_signal, ret);
    return 0;
}
static void env_close(struct bp_env *env)
{
    struct proxy *p = env->arg;
    if (!p)
        return;
    if (p->reader)
        (void)vmfs_leave(p->reader, NULL);
    for (unsigned i = 0; i < p->n_devices; i++)
        gr_bdev_put(p->devices[i]);
    gr_rpc_client_free(p->host);
    snap_client_close(p->client);
    gr_home_free(p->home);
    free(p);
}

int main(int argc, char **argv)
{
    static const struct gr_cmd *const tables[] = {bp_job_commands, NULL};
    static const struct bp_job_app app = {env_open, env_close};
    union {
        const struct bp_job_app *in;
        void *out;
    } u = {.in = &app};
    return gr_cmd_main(argc, argv, "granary-proxy", "one job of backup or restore", tables, u.out);
}
