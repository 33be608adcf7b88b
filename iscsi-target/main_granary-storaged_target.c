/* What the target sees of the volumes: their disks, who owns each, and where that is reached. */
#include "iscsi-target/main_granary-storaged.h"
#include "common/cleanup.h"
#include <string.h>

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

/* The owner's URL; asked of it, as only it knows its mover. */
static char *dir_nbd_url(void *arg, const char *disk)
{
    struct daemon *d = arg;
    struct snap_place owner = {0};
    if (snap_svc_owner(d->svc, disk, &owner, NULL) <= 0)
        return storaged_nbd_url(d, disk);
    json_t *res = NULL;
    char *url = NULL;
    if (owner.address[0] && snap_peer_ask(d->svc, owner.address, "daemon.nbd-url", json_pack("{s:s}", "disk", disk), 2000, &res, NULL) == 0) {
        if (json_object_get(res, "lent"))
            url = storaged_lent_url(d, disk, owner.address, res);
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
        return snap_peer_ask(d->svc, owner.address, method, params, RESERVE_WAIT_MS, ret, err);
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

struct tgt_directory storaged_disks(struct daemon *d)
{
    return (struct tgt_directory){.arg = d, .lookup = dir_lookup, .list = dir_list, .nbd_url = dir_nbd_url, .portal = dir_portal, .group = dir_group,
                                  .groups = dir_groups, .ask_owner = dir_ask_owner, .tell_hosts = dir_tell_hosts};
}
