#include "snapshot/client.h"
#include "common/audit.h"
#include "common/cleanup.h"
#include "common/log.h"
#include <string.h>

#define PING_MS 30000

struct snap_client {
    struct gr_rpc_client *peer; /* the daemon, or */
    struct snap_svc *svc;       /* the service in this process */
    struct gr_rpc_server *server;
    struct gr_audit audit;
    int lock;
};

static void print_warning(void *arg, int level, const char *text)
{
    if (level <= GR_LOG_WARN)
        gr_cmd_warn(NULL, text);
}

static int start_here(struct snap_client *c, struct gr_loop *loop, struct gr_home *home, const struct snap_images *images, struct gr_err *err)
{
    struct snap_svc_opts o = {.loop = loop, .home = home, .address = "", .hooks = {.note = print_warning}, .images = images};
    int r = gr_rpc_server_new(loop, &c->server);
    if (r < 0)
        return gr_fail(err, r, "storage service: %s", gr_code_text(r));
    r = gr_audit_init(&c->audit, home, gr_cmd_warn, NULL, err);
    if (r < 0)
        return r;
    gr_audit_watch(&c->audit, c->server);
    r = snap_svc_new(&o, &c->svc, err);
    if (r == 0 && (r = snap_svc_serve(c->svc, c->server)) < 0)
        gr_fail(err, r, "storage service: %s", gr_code_text(r));
    return r;
}

/* Connect and hear something: a daemon that is dying still takes connections. */
static int connect_daemon(struct snap_client *c, struct gr_loop *loop, const char *path, struct gr_err *err)
{
    json_t *res = NULL;
    int r = gr_rpc_connect(loop, path, &c->peer, err);
    if (r < 0)
        return r;
    r = gr_rpc_call(c->peer, "daemon.ping", NULL, NULL, NULL, PING_MS, &res, err);
    json_decref(res);
    if (r == 0 || r == -EOPNOTSUPP)
        return 0;
    gr_rpc_client_free(c->peer);
    c->peer = NULL;
    return r == -EPIPE || r == -ECONNRESET || r == -GR_EPROTO || r == -EIO ? -ECONNREFUSED : r;
}

int snap_client_open(struct gr_loop *loop, struct gr_home *home, const struct snap_images *images, struct snap_client **ret,
                     struct gr_err *err)
{
    gr_auto_free char *path = gr_home_path(home, "run/storaged.sock");
    struct snap_client *c = gr_zalloc(sizeof(*c));
    if (!c || !path) {
        free(c);
        return gr_fail(err, -ENOMEM, "storage service: out of memory");
    }
    c->lock = -1;
    int r;
    struct gr_home_queue queue = {0};
    for (;;) {
        struct gr_err locked = {0};
        r = connect_daemon(c, loop, path, err);
        if (r != -ENOENT && r != -ECONNREFUSED)
            break;
        r = gr_home_lock(home, &c->lock, &locked);
        if (r != -GR_ELOCKED || !gr_home_queue_on(&queue, &locked)) {
            r = r < 0 ? gr_fail(err, r, "%s", locked.text) : 0;
            break;
        }
        gr_fiber_sleep_ms(GR_HOME_STEP_MS);
    }
    if (r == 0 && !c->peer)
        r = start_here(c, loop, home, images, err);
    if (r < 0) {
        snap_client_close(c);
        return r;
    }
    *ret = c;
    return 0;
}

void snap_client_close(struct snap_client *c)
{
    if (!c)
        return;
    gr_rpc_client_free(c->peer);
    snap_svc_unlink(c->svc);
    gr_rpc_server_free(c->server);
    snap_svc_free(c->svc);
    gr_audit_done(&c->audit);
    gr_closep(&c->lock);
    free(c);
}

int snap_client_call(struct snap_client *c, const char *method, json_t *params, int (*on_part)(void *arg, json_t *part), void *part_arg,
                     json_t **ret_result, struct gr_err *err)
{
    if (c->peer)
        return gr_rpc_call(c->peer, method, params, on_part, part_arg, -1, ret_result, err);
    return gr_rpc_local(c->server, method, params, on_part, part_arg, ret_result, err);
}

struct snap_svc *snap_client_local(struct snap_client *c)
{
    return c->svc;
}
