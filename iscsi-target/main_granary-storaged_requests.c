/* What the daemon answers itself, and who else answers on its socket. */
#include "iscsi-target/main_granary-storaged.h"
#include "common/cleanup.h"
#include "iscsi-target/mover_lend.h"
#include <string.h>
#include <unistd.h>

#define REST_MS 10000u    /* what commands get to end in before a hand-over */
#define REQUESTS_MS 5000u /* and requests, while initiators work on */
#define READERS_MS 3000u  /* and readers of snapshots that are deleted, while everything goes on */
#define LATE_MS 500u      /* and those that were deleted last, while requests wait */
#define READERS_STEP_MS 20u

/* ---- snapshots exposed ---- */
static void exposure_ended(void *arg, const char *name)
{
    struct daemon *d = arg;
    tgt_server_release(d->tgt, name, false, NULL);
    if (d->mover)
        mover_server_drop(d->mover, name, false);
}

static void exposure_describe(void *arg, const char *name, json_t *row)
{
    struct daemon *d = arg;
    char target[TGT_NAME_MAX + 1] = "";
    tgt_name_of(name, target);
    gr_auto_free char *iscsi = tgt_server_url(d->tgt, name);
    gr_auto_free char *nbd = storaged_nbd_url(d, name);
    json_object_set_new(row, "target", json_string(target));
    json_object_set_new(row, "iscsi-url", iscsi ? json_string(iscsi) : json_null());
    json_object_set_new(row, "nbd-url", nbd ? json_string(nbd) : json_null());
}

static bool others_reach_us(void *arg)
{
    struct daemon *d = arg;
    return !d->o.insecure && tgt_portals_beyond(&d->portals);
}

struct snap_expose_hooks storaged_exposures(struct daemon *d)
{
    return (struct snap_expose_hooks){.arg = d, .ended = exposure_ended, .describe = exposure_describe, .need_initiator = others_reach_us};
}

/* ---- methods of the daemon itself ---- */
/* daemon.nbd-url {"disk"} -> {"nbd-url"}; to a host on another machine also {"mover","lent"}: mover_lend.h. */
static int op_nbd_url(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct daemon *d = arg;
    const struct gr_rpc_peer *host = gr_rpc_peer_of(call);
    const char *disk = NULL;
    json_t *lent = NULL;
    int r = gr_json_str(params, "disk", &disk, err);
    if (r == 0 && host && d->mover && !d->o.insecure)
        r = mover_lend(d->pki_dir, host->host, &lent, err);
    if (r < 0)
        return r;
    gr_auto_free char *url = storaged_nbd_url(d, disk);
    *ret = json_pack("{s:s?}", "nbd-url", url);
    if (lent) {
        json_object_set_new(*ret, "mover", json_string(d->mover_addr));
        json_object_set_new(*ret, "lent", lent);
    }
    return 0;
}

static int op_status(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct daemon *d = arg;
    struct mover_stats ms = {0};
    if (d->mover)
        mover_server_stats(d->mover, &ms);
    json_t *portals = tgt_portals_names(&d->portals, false), *multipath = tgt_portals_names(&d->portals, true);
    const char *portal = json_string_value(json_array_get(portals, 0)), *second = json_string_value(json_array_get(multipath, 0));
    *ret = json_pack("{s:s,s:i,s:I,s:s,s:s,s:s,s:o,s:o,s:s,s:s,s:s,s:i,s:s,s:s,s:i,s:i,s:i,s:b,s:o,s:o}", "program", "granary-storaged", "pid", (int)getpid(),
                     "uptime", (json_int_t)((gr_loop_now_ns(d->loop) - d->started_ns) / 1000000000ull), "engine",
                     gr_loop_engine(d->loop) == GR_ENGINE_URING ? "io_uring" : "synchronous", "portal", portal ? portal : "", "multipath-portal",
                     second ? second : "", "portals", portals, "multipath-portals", multipath, "mover", d->mover_addr, "mover-security",
                     d->o.insecure ? "none" : "tls", "isns", d->o.isns ? d->o.isns : "", "isns-targets", d->isns ? tgt_isns_registered(d->isns) : 0,
                     "link", d->o.link ? d->o.link : "", "link-address", snap_svc_link_at(d->svc), "loops", (int)d->o.loops, "sessions", (int)tgt_server_sessions(d->tgt, NULL), "mover-connections", (int)ms.connections, "insecure", d->o.insecure,
                     "exposures", snap_exposures_list(d->exposures), "raw-luns", tgt_raw_list(d->raw));
    return *ret ? 0 : gr_fail(err, -ENOMEM, "out of memory for the answer");
}

static int op_ping(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    return 0;
}

struct sought {
    struct daemon *d;
    struct gr_err *err;
    const char *snapshot;
    bool found;
};

static int is_sought(void *arg, const struct snap_info *info)
{
    struct sought *w = arg;
    w->found |= !info->is_bookmark && !info->deleting && strcmp(info->name, w->snapshot) == 0;
    return 0;
}

/* A snapshot that was deleted stays, hidden, for who still reads it; but the next process could not find it. */
static int outlives_us(void *arg, const char *name, const char *peer)
{
    struct sought *w = arg;
    const char *at = strchr(name, '@');
    gr_auto_free char *disk = gr_asprintf("%.*s", at ? (int)(at - name) : 0, name);
    if (!at || !disk)
        return 0;
    w->snapshot = at + 1;
    w->found = false;
    int r = snap_svc_each_snapshot(w->d->svc, disk, is_sought, w, w->err);
    if (r < 0 || w->found)
        return GR_MIN(r, 0);
    return gr_fail(w->err, -EBUSY, "%s is deleted as soon as %s has read it over the data mover: wait until then", name, peer);
}

/* Whoever has closed his connection may have had his snapshot deleted before we see that he is gone. */
static int readers_end(struct daemon *d, uint64_t timeout_ms, struct gr_err *err)
{
    struct sought w = {.d = d, .err = err};
    uint64_t deadline = gr_loop_now_ns(d->loop) + timeout_ms * 1000000;
    int r;
    while ((r = mover_server_each_export(d->mover, outlives_us, &w)) == -EBUSY && gr_loop_now_ns(d->loop) < deadline)
        gr_fiber_sleep_ms(READERS_STEP_MS);
    return r;
}

/* What the next process goes on with comes to rest, initiators last; or everything goes on. */
static int come_to_rest(struct daemon *d, const struct gr_rpc_call *call, struct gr_err *err)
{
    int r = readers_end(d, READERS_MS, err);
    if (r < 0)
        return r;
    unsigned late = gr_rpc_server_rest(d->rpc, call, REQUESTS_MS);
    if (late)
        gr_log(GR_LOG_WARN, "%u requests are still at work: they are cut off", late);
    r = readers_end(d, LATE_MS, err);
    if (r == 0)
        r = snap_svc_checkpoint(d->svc, err); /* while initiators work: what is left for later is little */
    if (r == 0)
        tgt_server_deafen(d->tgt);
    if (r == 0)
        r = mover_server_rest(d->mover, REST_MS, err);
    if (r == 0 && (r = tgt_server_rest(d->tgt, REST_MS, err)) < 0)
        mover_server_resume(d->mover);
    if (r < 0) {
        tgt_server_hear(d->tgt);
        gr_rpc_server_resume(d->rpc);
    }
    return r;
}

/* daemon.hand-over {"socket","versions":[oldest,newest],"features"}: who listens there takes our place. When it is answered, sessions are at rest, and
 * we end. */
static int op_hand_over(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct daemon *d = arg;
    const char *path = NULL;
    gr_auto_close int heir = -1;
    int r = gr_json_str(params, "socket", &path, err);
    if (r == 0)
        r = tgt_heritage_readable(params, err);
    if (r == 0)
        r = snap_svc_known_to(d->svc, (uint64_t)json_integer_value(json_object_get(params, "features")), err);
    if (r == 0 && (d->stop || d->rests))
        r = gr_fail(err, -EBUSY, d->stop ? "the daemon ends already" : "the daemon is being replaced already");
    if (r == 0)
        r = gr_unix_connect(path, &heir, err);
    if (r < 0)
        return r;
    d->rests = true;
    r = come_to_rest(d, call, err);
    d->rests = false;
    if (r < 0)
        return r;
    d->heir = gr_take_fd(&heir);
    d->stop = true;
    gr_fqueue_wake_all(&d->stop_wait);
    return 0;
}

static const struct gr_rpc_method daemon_methods[] = {{"daemon.ping", op_ping, true}, {"daemon.status", op_status, true}, {"daemon.nbd-url", op_nbd_url, true},
                                                       {"daemon.hand-over", op_hand_over}, {NULL, NULL}};

/* ---- all of them ---- */
int storaged_serve(struct daemon *d, struct gr_err *err)
{
    int r = gr_rpc_server_new(d->loop, &d->rpc);
    if (r == 0)
        gr_audit_watch(&d->audit, d->rpc);
    if (r == 0)
        r = snap_svc_serve(d->svc, d->rpc);
    if (r == 0)
        r = gr_rpc_server_add(d->rpc, tgt_service, d->tgt);
    if (r == 0)
        r = gr_rpc_server_add(d->rpc, tgt_host_methods, d->tgt);
    if (r == 0)
        r = gr_rpc_server_add(d->rpc, tgt_raw_methods, d->raw);
    if (r == 0)
        r = gr_rpc_server_add(d->rpc, tgt_portal_methods, &d->portals);
    if (r == 0)
        r = snap_exposures_serve(d->exposures, d->rpc);
    if (r == 0)
        r = gr_rpc_server_add(d->rpc, daemon_methods, d);
    if (r == 0) {
        tgt_heritage_take_requests(&d->heritage, d->rpc);
        snap_exposures_tie(d->exposures);
        tgt_heritage_free(&d->heritage);
    }
    if (r < 0)
        return gr_fail(err, r, "%s: %s", d->socket_path, gr_code_text(r));
    return gr_rpc_server_listen(d->rpc, d->socket_path, err);
}
