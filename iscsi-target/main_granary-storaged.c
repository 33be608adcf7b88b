/* granary-storaged: the storage daemon of one GRANARY_HOME. Joins its datastores, owns their disks, serves them over iSCSI and
 * the LAN mover, and answers requests on run/storaged.sock. granary-storaged(8) is its manual.
 *
 * Composition only: the service is snapshot/service.h, the target iscsi-target/target.h, the mover iscsi-target/mover.h; here
 * they are tied together, and snapshots are exposed for backups. */
#include "backup-proxy/image_ops.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/daemon.h"
#include "common/link.h"
#include "common/audit.h"
#include "common/log.h"
#include "iscsi-target/handover.h"
#include "iscsi-target/isns.h"
#include "iscsi-target/mover_lend.h"
#include "iscsi-target/raw_luns.h"
#include "iscsi-target/storaged_options.h"
#include "snapshot/expose.h"
#include "vmfs/vmfs.h"
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define LOGIN_WAIT_MS 10000u   /* how long a login waits for a disk that changes hands */
#define SHUTDOWN_MS 5000u      /* what initiators get to log out in */
#define REST_MS 10000u         /* what commands get to end in before a hand-over */
#define REQUESTS_MS 5000u      /* and requests, while initiators work on */

struct daemon {
    struct storaged_options o;
    struct gr_loop *loop;
    struct gr_gang *gang;
    struct gr_home *home;
    int lock, heir; /* heir: a socket to who takes our place, -1: nobody */
    struct tgt_heritage heritage;
    char *pki_dir, *socket_path, *pid_path;
    struct snap_svc *svc;
    struct tgt_raw *raw;
    struct tgt_server *tgt;
    struct tgt_portals portals;
    struct tgt_isns *isns;
    struct mover_server *mover;
    struct gr_rpc_server *rpc;
    struct gr_audit audit;
    struct snap_exposures *exposures;
    char mover_addr[TGT_SHOWN];
    uint64_t started_ns;
    bool stop;
    struct gr_fqueue stop_wait;
};

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

static void audit_warning(void *arg, const char *text)
{
    gr_log_limited(GR_LOG_WARN, "%s", text);
}

static void log_mover(void *arg, enum mover_log_level level, const char *text)
{
    gr_log(level == MOVER_LOG_WARN ? GR_LOG_WARN : GR_LOG_INFO, "mover: %s", text);
}

/* ---- directory of the target ---- */
static int dir_lookup(void *arg, const char *disk, const char *initiator, struct tgt_place *ret, struct gr_err *err)
{
    struct daemon *d = arg;
    struct snap_place place = {0};
    if (strchr(disk, '@') && !(d->exposures && snap_exposed_to(d->exposures, disk, initiator)))
        return gr_fail(err, -ENOENT, "snapshot %s is not exposed to %s", disk, initiator);
    gr_auto_free char *what = initiator[0] ? gr_asprintf("login of %s", initiator) : NULL;
    int r = snap_svc_find(d->svc, disk, what ? what : "login", LOGIN_WAIT_MS, &place, err);
    if (r < 0)
        return r;
    if (!place.bdev && !place.portal[0])
        return gr_fail(err, -GR_ELOCKED, "%s is owned by host '%s', which has no portal", disk, place.host);
    struct tgt_place out = {.bdev = place.bdev};
    if (!place.bdev) {
        memcpy(out.redirect, place.portal, sizeof(place.portal));
        out.geometry = place.geometry;
    }
    *ret = out;
    return 0;
}

static int dir_list(void *arg, int (*each)(void *each_arg, const char *disk), void *each_arg, struct gr_err *err)
{
    struct daemon *d = arg;
    return snap_svc_each_disk(d->svc, each, each_arg, err);
}

static char *own_nbd_url(struct daemon *d, const char *name)
{
    return d->mover ? mover_url(d->mover_addr, name, d->o.insecure ? NULL : d->pki_dir) : NULL;
}

/* Another machine's URL names a folder there: what is in it comes along, and is kept in one of ours. */
static char *lent_url(struct daemon *d, const char *disk, const char *address, json_t *res)
{
    const char *mover = json_string_value(json_object_get(res, "mover")), *key = strstr(address, "://");
    for (int i = 0; key && i < 2; i++) /* hostlink://HOST:PORT/VOLUME/KEY, and a key may have slashes */
        key = strchr(i ? key + 1 : key + 3, '/');
    json_t *lent = json_object_get(res, "lent");
    struct gr_err err = {0};
    if (!mover || !key)
        return NULL;
    gr_auto_free char *name = gr_asprintf("state/movers/%s", key + 1);
    for (char *c = name ? name + strlen("state/movers/") : NULL; c && *c; c++)
        *c = *c == '/' ? '-' : *c == '+' || *c == '=' ? '_' : *c;
    gr_auto_free char *dir = name ? gr_home_path(d->home, name) : NULL;
    if (!dir)
        return NULL;
    if (mover_keep_lent(dir, lent, &err) < 0) {
        gr_log_limited(GR_LOG_WARN, "%s: no URL of its data mover: %s", disk, err.text);
        return NULL;
    }
    return mover_url(mover, disk, dir);
}

/* The owner's URL; asked of it, as only it knows its mover. */
static char *dir_nbd_url(void *arg, const char *disk)
{
    struct daemon *d = arg;
    struct snap_place owner = {0};
    if (snap_svc_owner(d->svc, disk, &owner, NULL) <= 0)
        return own_nbd_url(d, disk);
    json_t *res = NULL;
    char *url = NULL;
    if (owner.address[0] && snap_peer_ask(d->svc, owner.address, "daemon.nbd-url", json_pack("{s:s}", "disk", disk), 2000, &res, NULL) == 0) {
        if (json_object_get(res, "lent"))
            url = lent_url(d, disk, owner.address, res);
        else if (json_is_string(json_object_get(res, "nbd-url")))
            url = gr_strdup(json_string_value(json_object_get(res, "nbd-url")));
    }
    json_decref(res);
    return url;
}

static char *dir_portal(void *arg, const char *disk)
{
    struct daemon *d = arg;
    struct snap_place owner = {0};
    return snap_svc_owner(d->svc, disk, &owner, NULL) > 0 && owner.portal[0] ? gr_strdup(owner.portal) : NULL;
}

static uint16_t dir_group(void *arg, const char *disk)
{
    struct daemon *d = arg;
    return (uint16_t)snap_svc_host_number(d->svc, disk);
}

struct group_list {
    struct tgt_group *ret;
    unsigned n, max;
};

static void add_group(void *arg, unsigned number, bool owner)
{
    struct group_list *l = arg;
    if (l->n < l->max)
        l->ret[l->n++] = (struct tgt_group){.id = (uint16_t)number, .active = owner};
}

static int dir_groups(void *arg, const char *disk, struct tgt_group *ret, unsigned max)
{
    struct daemon *d = arg;
    struct group_list l = {.ret = ret, .max = max};
    int r = snap_svc_each_host(d->svc, disk, add_group, &l, NULL);
    return r < 0 ? r : (int)l.n;
}

static int dir_ask_owner(void *arg, const char *disk, const char *method, json_t *params, json_t **ret, struct gr_err *err)
{
    struct daemon *d = arg;
    struct snap_place owner = {0};
    int r = snap_svc_owner(d->svc, disk, &owner, err);
    if (r > 0 && owner.address[0])
        return snap_peer_ask(d->svc, owner.address, method, params, LOGIN_WAIT_MS, ret, err);
    json_decref(params);
    return r < 0 ? r : gr_fail(err, -GR_ELOCKED, "disk %s has no owner that serves it now", disk);
}

static int dir_tell_hosts(void *arg, const char *disk, const char *method, json_t *params, struct gr_err *err)
{
    struct daemon *d = arg;
    struct snap_path p;
    if (snap_path_parse(disk, SNAP_PATH_EITHER, &p, err) == 0)
        return snap_svc_tell(d->svc, p.ds, method, params, err);
    json_decref(params);
    return -GR_EUSAGE;
}

/* ---- directory of the mover ---- */
static int export_open(void *arg, const char *name, struct mover_export *ret, struct gr_err *err)
{
    struct daemon *d = arg;
    struct snap_place place = {0};
    int r = snap_svc_find(d->svc, name, "NBD client", LOGIN_WAIT_MS, &place, err);
    if (r < 0)
        return r;
    if (!place.bdev)
        return gr_fail(err, -GR_ELOCKED, "%s is owned by host '%s': ask its mover", name, place.host);
    /* an initiator's file system would not survive a second writer */
    struct mover_export e = {.bdev = place.bdev, .writable = !strchr(name, '@') && tgt_server_sessions(d->tgt, name) == 0};
    *ret = e;
    return 0;
}

struct export_list {
    struct daemon *d;
    mover_name_fn fn;
    void *ctx;
    const char *disk;
};

static int list_snapshot(void *arg, const struct snap_info *info)
{
    struct export_list *l = arg;
    if (info->is_bookmark || info->deleting)
        return 0;
    gr_auto_free char *name = gr_asprintf("%s@%s", l->disk, info->name);
    return name ? l->fn(l->ctx, name, "snapshot") : -ENOMEM;
}

static int list_disk(void *arg, const char *disk)
{
    struct export_list *l = arg;
    struct snap_place owner = {0};
    if (snap_svc_owner(l->d->svc, disk, &owner, NULL) != 0)
        return 0;
    int r = l->fn(l->ctx, disk, "disk");
    if (r < 0)
        return r;
    l->disk = disk;
    return snap_svc_each_snapshot(l->d->svc, disk, list_snapshot, l, NULL);
}

static int export_list(void *arg, mover_name_fn fn, void *ctx, struct gr_err *err)
{
    struct export_list l = {.d = arg, .fn = fn, .ctx = ctx};
    return snap_svc_each_disk(l.d->svc, list_disk, &l, err);
}

static int export_base(void *arg, const char *export_name, const char *base, struct gr_bookmark *ret, struct gr_err *err)
{
    struct daemon *d = arg;
    return snap_svc_resolve_base(d->svc, export_name, base, ret, err);
}

static int list_base(void *arg, const struct snap_info *info)
{
    struct export_list *l = arg;
    return l->fn(l->ctx, info->name, info->is_bookmark ? "bookmark" : "snapshot");
}

static int export_bases(void *arg, const char *export_name, mover_name_fn fn, void *ctx, struct gr_err *err)
{
    struct export_list l = {.d = arg, .fn = fn, .ctx = ctx};
    return snap_svc_each_snapshot(l.d->svc, export_name, list_base, &l, err);
}

/* ---- methods of the daemon itself ---- */
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
    gr_auto_free char *nbd = own_nbd_url(d, name);
    json_object_set_new(row, "target", json_string(target));
    json_object_set_new(row, "iscsi-url", iscsi ? json_string(iscsi) : json_null());
    json_object_set_new(row, "nbd-url", nbd ? json_string(nbd) : json_null());
}

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
    gr_auto_free char *url = own_nbd_url(d, disk);
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

/* What the next process goes on with comes to rest, initiators last; or everything goes on. */
static int come_to_rest(struct daemon *d, const struct gr_rpc_call *call, struct gr_err *err)
{
    struct sought w = {.d = d, .err = err};
    int r = mover_server_each_export(d->mover, outlives_us, &w);
    if (r < 0)
        return r;
    unsigned late = gr_rpc_server_rest(d->rpc, call, REQUESTS_MS);
    if (late)
        gr_log(GR_LOG_WARN, "%u requests are still at work: they are cut off", late);
    r = snap_svc_checkpoint(d->svc, err); /* while initiators work: what is left for later is little */
    if (r == 0)
        r = mover_server_rest(d->mover, REST_MS, err);
    if (r == 0 && (r = tgt_server_rest(d->tgt, REST_MS, err)) < 0)
        mover_server_resume(d->mover);
    if (r < 0)
        gr_rpc_server_resume(d->rpc);
    return r;
}

/* daemon.hand-over {"socket","versions":[oldest,newest],"features"}: who listens there takes our place. When it is answered, sessions are at rest, and we end. */
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
    if (r == 0)
        r = d->stop ? gr_fail(err, -EBUSY, "the daemon ends already") : gr_unix_connect(path, &heir, err);
    if (r == 0)
        r = come_to_rest(d, call, err);
    if (r < 0)
        return r;
    d->heir = gr_take_fd(&heir);
    d->stop = true;
    gr_fqueue_wake_all(&d->stop_wait);
    return 0;
}

static const struct gr_rpc_method daemon_methods[] = {{"daemon.ping", op_ping, true}, {"daemon.status", op_status, true}, {"daemon.nbd-url", op_nbd_url, true},
                                                       {"daemon.hand-over", op_hand_over}, {NULL, NULL}};

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

static bool others_reach_us(void *arg)
{
    struct daemon *d = arg;
    return !d->o.insecure && tgt_portals_beyond(&d->portals);
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
    const struct tgt_directory disks = {.arg = d, .lookup = dir_lookup, .list = dir_list, .nbd_url = dir_nbd_url, .portal = dir_portal,
                                        .group = dir_group, .groups = dir_groups, .ask_owner = dir_ask_owner,
                                        .tell_hosts = dir_tell_hosts};
    r = tgt_raw_new(d->loop, d->home, &disks, &d->raw, err);
    if (r == 0)
        r = gr_home_host_uuid(d->home, uuid, err);
    if (r < 0)
        return r;
    gr_uuid_format(uuid, host);
    const struct gr_rules rules = snap_svc_rules(d->svc);
    struct tgt_server_opts o = {.loop = d->loop, .gang = d->gang, .dir = tgt_raw_directory(d->raw), .access_path = access, .rules = &rules,
                                .host = host, .note = log_note};
    r = tgt_server_new(&o, &d->tgt, err);
    return r < 0 ? r : tgt_raw_serve(d->raw, d->tgt, log_note, NULL, d->heritage.doc ? 0 : TGT_RAW_GHOST_MS, err);
}

/* All that takes time before anybody is listened to, who takes over does before he asks: certificates and the gate. The host part of HOST:PORT
 * goes into the server's certificate. */
static int make_mover(struct daemon *d, struct gr_err *err)
{
    char host[TGT_SHOWN];
    tgt_portal_host(d->o.mover ? d->o.mover : TGT_MOVER_DEFAULT, host);
    const char *hosts[] = {host};
    int r = mover_pki_ensure(d->pki_dir, hosts, host[0] ? 1 : 0, err);
    if (r < 0)
        return r;
    struct mover_opts o = {
        .security = d->o.insecure ? MOVER_PLAIN_ANYWHERE : MOVER_TLS,
        .pki_dir = d->pki_dir,
        .dir = {.arg = d, .open = export_open, .list = export_list, .resolve_base = export_base, .list_bases = export_bases},
        .log = log_mover,
    };
    return mover_server_new(d->loop, &o, &d->mover, err);
}

static int start_mover(struct daemon *d, struct gr_err *err)
{
    int r = d->mover ? 0 : make_mover(d, err);
    if (r == 0)
        r = tgt_mover_inherit(d->mover, &d->heritage, d->mover_addr, err);
    return r == 0 ? tgt_mover_open(d->mover, d->home, d->o.mover, d->mover_addr, err) : GR_MIN(r, 0);
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
    const struct snap_expose_hooks hooks = {
        .arg = d, .ended = exposure_ended, .describe = exposure_describe, .need_initiator = others_reach_us};
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

static int serve_requests(struct daemon *d, struct gr_err *err)
{
    int r = gr_audit_init(&d->audit, d->home, audit_warning, NULL, err);
    if (r < 0)
        return r;
    r = gr_rpc_server_new(d->loop, &d->rpc);
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

static int start_all(struct daemon *d, struct gr_err *err)
{
    int r = d->o.take_over ? make_mover(d, err) : 0;
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
        r = start_mover(d, err);
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
        r = serve_requests(d, err);
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
    gr_audit_done(&d->audit);
    snap_exposures_free(d->exposures);
    d->exposures = NULL;
    tgt_server_free(gr_take(d->tgt));
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
