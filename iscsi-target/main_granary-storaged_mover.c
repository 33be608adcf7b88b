/* The mover's part: what it serves of the volumes, where, and how it starts. */
#include "iscsi-target/main_granary-storaged.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "iscsi-target/mover_lend.h"
#include <string.h>

/* ---- URLs ---- */
char *storaged_nbd_url(struct daemon *d, const char *name)
{
    return d->mover ? mover_url(d->mover_addr, name, d->o.insecure ? NULL : d->pki_dir) : NULL;
}

/* Its URL names a folder there: what is in it comes along, and is kept in one of ours. */
char *storaged_lent_url(struct daemon *d, const char *disk, const char *address, json_t *res)
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

/* ---- what it serves ---- */
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

/* ---- its start ---- */
static void log_mover(void *arg, enum mover_log_level level, const char *text)
{
    gr_log(level == MOVER_LOG_WARN ? GR_LOG_WARN : GR_LOG_INFO, "mover: %s", text);
}

/* The host part of HOST:PORT goes into the server's certificate. */
int storaged_make_mover(struct daemon *d, struct gr_err *err)
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

int storaged_start_mover(struct daemon *d, struct gr_err *err)
{
    int r = d->mover ? 0 : storaged_make_mover(d, err);
    if (r == 0)
        r = tgt_mover_inherit(d->mover, &d->heritage, d->mover_addr, err);
    return r == 0 ? tgt_mover_open(d->mover, d->home, d->o.mover, d->mover_addr, err) : GR_MIN(r, 0);
}
