/* granary-storaged: the storage daemon of one GRANARY_HOME. Joins its datastores, owns their disks, serves them over iSCSI and
 * the LAN mover, and answers requests on run/storaged.sock. granary-storaged(8) is its manual.
 *
 * Composition only: the service is snapshot/service.h, the target iscsi-target/target.h, the mover iscsi-target/mover.h; here
 * they are tied together, and snapshots are exposed for backups. */
#include "iscsi-target/main_granary-storaged.h"
#include "backup-proxy/image_ops.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/daemon.h"
#include "common/link.h"
#include "vmfs/vmfs.h"
#include <signal.h>
#include <string.h>
#include <sys/stat.h>

#define SHUTDOWN_MS 5000u /* what initiators get to log out in */

static const struct snap_images images = {bp_image_probe, bp_image_open, bp_image_write, bp_image_copy};

/* ---- hooks of the service ---- */
static int let_go(void *arg, const char *disk, bool only_idle, struct gr_err *err)
{
    struct daemon *d = arg;
    bool is_snapshot = strchr(disk, '@') != NULL;
    if (!d->tgt)
        return 0;
    int r = d->exposures ? snap_exposures_drop(d->exposures, disk, only_idle, err) : 0;
    if (r < 0)
        return r;
    r = tgt_server_release(d->tgt, disk, only_idle, err);
    if (r == -EBUSY) {
        r = -GR_ELOCKED;
        if (err)
            err->code = r;
    }
    if (r < 0)
        return r;
    if (!d->mover || (is_snapshot && only_idle)) /* a reader over the mover keeps the snapshot, hidden, until it is done */
        return 0;
    mover_server_drop(d->mover, disk, false);
    gr_auto_free char *snapshots = gr_asprintf("%s@", disk);
    if (snapshots && !is_snapshot)
        mover_server_drop(d->mover, snapshots, true);
    return 0;
}

static unsigned count_users(void *arg, const char *disk)
{
    struct daemon *d = arg;
    return d->tgt ? tgt_server_sessions(d->tgt, disk) : 0;
}

static void log_note(void *arg, int level, const char *text)
{
    gr_log((enum gr_log_level)level, "%s", text);
}

/* ---- hooks of the portals ---- */
static int admit_others(void *arg, struct gr_err *err)
{
    struct daemon *d = arg;
    const char *name = snap_exposed_to_all(d->exposures);
    return name ? gr_fail(err, -EBUSY, "%s is exposed to every initiator of this machine: no portal for others until that has ended", name) : 0;
}

static int portals_changed(void *arg, struct gr_err *err)
{
    struct daemon *d = arg;
    tgt_isns_look(d->isns);
    return snap_svc_set_portal(d->svc, tgt_server_portal(d->tgt), err);
}

/* Other hosts reach us where initiators do, unless it is said. */
static int start_link(struct daemon *d, struct gr_err *err)
{
    char host[TGT_SHOWN];
    const char *portal = tgt_server_portal(d->tgt);
    tgt_portal_host(portal ? portal : "", host);
    gr_auto_free char *address = gr_asprintf(strchr(host, ':') ? "[%s]" : "%s", host);
    if (!address)
        return gr_fail(err, -ENOMEM, "out of memory");
    return snap_svc_link(d->svc, d->o.link ? d->o.link : address, err);
}

/* ---- start and end ---- */
/* Portals of our own, or those of the one before us, whose sessions go on first of all. */
static int start_portals(struct daemon *d, struct gr_err *err)
{
    d->portals = (struct tgt_portals){
        .server = d->tgt, .home = d->home, .insecure = d->o.insecure, .arg = d, .admit = admit_others, .changed = portals_changed};
    if (!d->heritage.doc)
        return tgt_portals_open(&d->portals, &d->o.portals, &d->o.multipath, err);
    int r = tgt_server_inherit_portals(d->tgt, &d->heritage, err);
    if (r == 0)
        tgt_server_inherit_sessions(d->tgt, &d->heritage);
    return r;
}

static int take_lock(struct daemon *d, struct gr_err *err)
{
    for (struct gr_home_queue queue = {0};;) {
        int r = gr_home_lock(d->home, &d->lock, err);
        if (r != -GR_ELOCKED || d->stop || !gr_home_queue_on(&queue, err))
            return r;
        gr_fiber_sleep_ms(GR_HOME_STEP_MS);
    }
}

static void audit_warning(void *arg, const char *text)
{
    gr_log_limited(GR_LOG_WARN, "%s", text);
}

static void sanitized(void *arg, const struct gr_rpc_seen *seen)
{
    gr_audit_line(arg, seen);
}

static int start_target(struct daemon *d, struct gr_err *err)
{
    gr_auto_free char *access = gr_home_path(d->home, "conf/access.json");
    uint8_t uuid[16];
    char host[37];
    if (!access)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = d->o.loops > 1 ? gr_gang_start(d->loop, d->o.loops - 1, &d->gang, err) : 0;
    if (r < 0)
        return r;
    const struct tgt_directory disks = storaged_disks(d);
    r = tgt_raw_new(d->loop, d->home, &disks, &d->raw, err);
    if (r == 0)
        r = gr_home_host_uuid(d->home, uuid, err);
    if (r < 0)
        return r;
    gr_uuid_format(uuid, host);
    const struct gr_rules rules = snap_svc_rules(d->svc);
    struct tgt_server_opts o = {.loop = d->loop, .gang = d->gang, .dir = tgt_raw_directory(d->raw), .access_path = access, .rules = &rules,
                                .host = host, .note = log_note, .witness = sanitized, .witness_arg = &d->audit};
    r = gr_audit_init(&d->audit, d->home, audit_warning, NULL, err);
    if (r == 0)
        r = tgt_server_new(&o, &d->tgt, err);
    return r < 0 ? r : tgt_raw_serve(d->raw, d->tgt, log_note, NULL, d->heritage.doc ? 0 : TGT_RAW_GHOST_MS, err);
}

static int start_service(struct daemon *d, struct gr_err *err)
{
    struct snap_svc_opts o = {
        .loop = d->loop,
        .home = d->home,
        .address = d->socket_path,
        .hooks = {.arg = d, .release = let_go, .users = count_users, .note = log_note},
        .images = &images,
    };
    const struct snap_expose_hooks hooks = storaged_exposures(d);
    int r = snap_svc_new(&o, &d->svc, err);
    if (r == 0)
        r = snap_exposures_new(d->loop, d->svc, &hooks, &d->exposures, err);
    if (r >= 0)
        r = snap_svc_join_all(d->svc, err);
    struct gr_err why = {0};
    int missing = r < 0 ? 0 : snap_exposures_load(d->exposures, json_object_get(d->heritage.doc, "exposures"), &why);
    if (missing)
        gr_log(GR_LOG_WARN, "%d snapshots that were exposed are not any more: %s", missing, why.text);
    return r;
}

static int start_isns(struct daemon *d, struct gr_err *err)
{
    uint8_t uuid[16];
    char text[37], entity[64];
    int r = gr_home_host_uuid(d->home, uuid, err);
    if (r < 0)
        return r;
    gr_uuid_format(uuid, text);
    snprintf(entity, sizeof(entity), "granary-%s", text);
    return tgt_isns_start(d->tgt, d->o.isns, entity, &d->isns, err);
}

static int start_all(struct daemon *d, struct gr_err *err)
{
    int r = d->o.take_over ? storaged_make_mover(d, err) : 0;
    if (r == 0 && d->o.take_over)
        r = tgt_heritage_ask(d->loop, d->home, vmfs_features_known(), &d->heritage, err);
    if (r == 0)
        r = take_lock(d, err);
    if (r == 0)
        r = start_service(d, err);
    if (r >= 0)
        r = start_target(d, err);
    if (r == 0)
        r = start_portals(d, err);
    if (r == 0)
        r = storaged_start_mover(d, err);
    if (r == 0 && d->o.isns)
        r = start_isns(d, err);
    if (r == 0)
        r = tgt_portals_save(&d->portals, err);
    if (r == 0)
        r = start_link(d, err);
    if (r == 0)
        r = portals_changed(d, err);
    int owned = r == 0 ? snap_svc_open_all(d->svc) : 0;
    if (r == 0)
        r = storaged_serve(d, err);
    if (r == 0)
        r = gr_daemon_pidfile(d->pid_path, err);
    if (r == 0)
        gr_log(GR_LOG_NOTE, "ready: %d disks owned, portal %s, mover %s%s", owned, tgt_server_portal(d->tgt), d->mover_addr,
               d->o.insecure ? " (plain text)" : "");
    return r;
}

/* In the reverse order of start_all(); each part may be missing. */
static void stop_all(struct daemon *d)
{
    gr_daemon_stopping();
    struct tgt_heritage heritage = {0};
    struct gr_err err = {0};
    tgt_isns_stop(gr_take(d->isns));
    if (d->heir >= 0 && tgt_server_bequeath(d->tgt, &heritage, &err) < 0)
        gr_log(GR_LOG_ERR, "%s", err.text);
    int r = heritage.doc ? tgt_mover_bequeath(d->mover, d->mover_addr, &heritage) : 0;
    if (r < 0)
        gr_log(GR_LOG_WARN, "some of the mover cannot be handed over: %s, ignoring", gr_code_text(r));
    if (heritage.doc) {
        json_object_set_new(heritage.doc, "exposures", snap_exposures_save(d->exposures));
        r = tgt_heritage_add_requests(&heritage, d->rpc);
        if (r < 0)
            gr_log(GR_LOG_WARN, "requests cannot be handed over: %s, ignoring", gr_code_text(r));
    }
    if (d->tgt && d->heir < 0) {
        int cut = tgt_server_shutdown(d->tgt, SHUTDOWN_MS);
        if (cut > 0)
            gr_log(GR_LOG_WARN, "%d sessions did not log out in time and were cut", cut);
    }
    mover_server_stop(gr_take(d->mover));
    snap_svc_unlink(d->svc);
    gr_rpc_server_free(d->rpc);
    snap_exposures_free(d->exposures);
    d->exposures = NULL;
    tgt_server_free(gr_take(d->tgt));
    gr_audit_done(&d->audit);
    tgt_raw_free(gr_take(d->raw));
    snap_svc_free(d->svc);
    gr_gang_stop(gr_take(d->gang));
    gr_daemon_pidfile_remove(d->pid_path);
    gr_closep(&d->lock);
    if (heritage.doc && tgt_heritage_send(d->loop, d->heir, &heritage, &err) < 0)
        gr_log(GR_LOG_ERR, "%s", err.text);
    tgt_heritage_free(&heritage);
    gr_closep(&d->heir);
    tgt_heritage_free(&d->heritage);
}

static void on_signal(void *arg, int signo)
{
    struct daemon *d = arg;
    d->stop = true;
    gr_fqueue_wake_all(&d->stop_wait);
}

static int daemon_main(void *arg)
{
    struct daemon *d = arg;
    struct gr_err err = {0};
    d->started_ns = gr_loop_now_ns(d->loop);
    int r = gr_loop_signal(d->loop, SIGTERM, on_signal, d);
    if (r == 0)
        r = gr_loop_signal(d->loop, SIGINT, on_signal, d);
    if (r == 0)
        r = start_all(d, &err);
    if (r < 0)
        gr_log(GR_LOG_ERR, "%s", gr_err_text(&err, r));
    gr_daemon_ready(d->o.ready_fd, r, gr_err_text(&err, r));
    while (r == 0 && !d->stop)
        gr_fqueue_wait(&d->stop_wait);
    stop_all(d);
    if (r == 0)
        gr_log(GR_LOG_NOTE, "ended in order");
    return r;
}

int main(int argc, char **argv)
{
    int r = tgt_login_main(argc, argv);
    if (r < 0)
        r = mover_gate_main(argc, argv);
    if (r < 0)
        r = gr_link_main(argc, argv);
    if (r >= 0)
        return r;
    struct daemon d = {.lock = -1, .heir = -1, .o = {.ready_fd = -1, .loops = 1}};
    struct gr_err err = {0};
    r = storaged_options(argc, argv, &d.o);
    if (r >= 0)
        return r;
    signal(SIGPIPE, SIG_IGN);
    umask(077);
    r = gr_log_open("granary-storaged", d.o.log, d.o.verbose ? GR_LOG_DEBUG : GR_LOG_INFO, &err);
    if (r == 0)
        r = gr_daemon_confine(&err);
    if (r == 0)
        r = gr_home_open(1, &d.home, &err);
    if (r == 0)
        r = gr_loop_new(NULL, &d.loop, &err);
    if (r == 0) {
        d.pki_dir = gr_home_path(d.home, "conf/pki");
        d.socket_path = gr_home_path(d.home, "run/storaged.sock");
        d.pid_path = gr_home_path(d.home, "run/storaged.pid");
        if (!d.pki_dir || !d.socket_path || !d.pid_path)
            r = gr_fail(&err, -ENOMEM, "out of memory");
    }
    if (r == 0) {
        r = gr_fiber_run(d.loop, daemon_main, &d);
    } else {
        fprintf(stderr, "granary-storaged: %s\n", gr_err_text(&err, r));
        gr_daemon_ready(d.o.ready_fd, r, gr_err_text(&err, r));
    }
    gr_loop_free(d.loop);
    gr_home_free(d.home);
    free(d.pki_dir);
    free(d.socket_path);
    free(d.pid_path);
    return gr_code_exit(r);
}
