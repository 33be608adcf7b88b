/* Links between hosts that share a datastore on logical units (common/link.h): they may be on other machines, where our socket means
 * nothing. Each host's slot has its key and, when it serves, its address. On files all hosts are processes of one machine and meet on
 * sockets. Nothing's safety depends on a link: the disk decides. */
#include "common/b64.h"
#include "common/buf.h"
#include "common/link.h"
#include "snapshot/service_int.h"
#include <string.h>

#define SCHEME "hostlink://" /* HOST:PORT/VOLUME/KEY; a slot has the part before the second slash */
#define KEY_FILE "conf/link.key"
#define DIAL_MS 3000u
#define LAST "state/link.json" /* {"port":N} */

struct peer { /* of a connection that came over a link */
    struct gr_rpc_peer who;
    char datastore[VMFS_VOLUME_NAME_MAX + 1];
};

bool snap_ds_links(const struct snap_ds *ds)
{
    return gr_device_is_lun(ds->devices[0]);
}

int snap_link_key(struct snap_svc *s, const uint8_t **ret, struct gr_err *err)
{
    gr_auto_free char *path = s->link.key ? NULL : gr_home_path(s->o.home, KEY_FILE);
    if (!s->link.key && !path)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = s->link.key ? 0 : gr_link_key_open(path, &s->link.key, err);
    if (r == 0)
        *ret = gr_link_key_public(s->link.key);
    return r;
}

/* ---- who comes in ---- */
static struct snap_ds *ds_of_volume(struct snap_svc *s, const uint8_t uuid[16])
{
    for (struct snap_ds *ds = s->list; ds; ds = ds->next) {
        struct vmfs_info info;
        if (!ds->v || ds->leaving || !snap_ds_links(ds))
            continue;
        vmfs_info(ds->v, &info);
        if (memcmp(info.uuid, uuid, sizeof(info.uuid)) == 0)
            return ds;
    }
    return NULL;
}

static int admit(void *arg, const struct gr_link_peer *who, struct gr_err *err)
{
    struct snap_ds *ds = ds_of_volume(arg, who->volume);
    char host[64];
    if (!ds)
        return gr_fail(err, -ENOENT, "it names a datastore that is not joined here");
    ds->users++;
    int r = vmfs_link_known(ds->v, who->key, host, err);
    snap_ds_put(ds);
    return r;
}

static void peer_free(struct gr_rpc_peer *who)
{
    free(gr_container_of(who, struct peer, who));
}

static void comes(void *arg, int fd, const struct gr_link_peer *who)
{
    struct snap_svc *s = arg;
    struct snap_ds *ds = ds_of_volume(s, who->volume);
    struct peer *p = ds ? gr_zalloc(sizeof(*p)) : NULL;
    bool known = false;
    if (p) {
        p->who.free = peer_free;
        memcpy(p->datastore, ds->name, sizeof(p->datastore));
        snprintf(p->who.from, sizeof(p->who.from), "%s", who->from);
        ds->users++;
        known = vmfs_link_known(ds->v, who->key, p->who.host, NULL) == 0;
        snap_ds_put(ds);
    }
    if (known && s->server) {
        gr_rpc_server_adopt(s->server, fd, &p->who);
        return;
    }
    free(p);
    close(fd);
}

/* What hosts ask of each other; all else is for processes of this machine. Files of a machine are in none of them. */
static bool for_hosts(const char *method)
{
    static const char *const names[] = {
        "daemon.nbd-url", "datastore.accept-loss", "datastore.open-device", "datastore.recall-quota", "datastore.recall-regions",
        "datastore.rescan", "datastore.resume", "disk.checkpoint", "disk.defragment", "disk.delete", "disk.detach",
        "disk.erase", "disk.info", "disk.list", "disk.move", "disk.promote", "disk.rekey", "disk.release",
        "disk.resize", "disk.set", "disk.take", "fs.locks", "fs.lost", "fs.stat", "fs.yield", "lun.attention",
        "lun.reserve", "lun.rules-changed", "snapshot.bookmark", "snapshot.clone", "snapshot.create",
        "snapshot.delete", "snapshot.delete-part", "snapshot.describe", "snapshot.diff", "snapshot.expire", "snapshot.expose", "snapshot.hold", "snapshot.list",
        "snapshot.part", "snapshot.protect", "snapshot.revert", "snapshot.settle", "snapshot.take", "snapshot.unexpose",
        "snapshot.unprotect",
    };
    for (size_t i = 0; i < GR_ARRAY_LEN(names); i++)
        if (strcmp(names[i], method) == 0)
            return true;
    return false;
}

static bool inside(const struct peer *p, const char *path)
{
    size_t n = strlen(p->datastore);
    return path && strncmp(path, p->datastore, n) == 0 && (path[n] == '/' || path[n] == 0);
}

/* Everything that a request names must lie in the datastore for which its sender has proved himself. */
static bool stays_inside(const struct peer *p, const char *method, json_t *params)
{
    static const char *const keys[] = {"disk", "path", "from", "to"};
    static const char *const lists[] = {"disks", "targets"};
    json_t *v;
    unsigned named = 0;
    size_t i;
    for (i = 0; i < GR_ARRAY_LEN(keys); i++) {
        v = json_object_get(params, keys[i]);
        if (strcmp(keys[i], "to") == 0 && strcmp(method, "snapshot.clone") != 0)
            continue; /* of a diff: a snapshot */
        if (v && !inside(p, json_string_value(v)))
            return false;
        named += v != NULL;
    }
    for (unsigned k = 0; k < GR_ARRAY_LEN(lists); k++)
        json_array_foreach(json_object_get(params, lists[k]), i, v)
        {
            if (!inside(p, json_string_value(v)))
                return false;
            named++;
        }
    v = strncmp(method, "datastore.", 10) == 0 || strncmp(method, "lun.rules", 9) == 0 ? json_object_get(params, "name") : NULL;
    if (v && (!json_is_string(v) || strcmp(json_string_value(v), p->datastore) != 0))
        return false;
    return named > 0 || v;
}

static bool names_lun(json_t *params)
{
    const char *device = json_string_value(json_object_get(params, "device"));
    return device && gr_device_is_lun(device);
}

static int guard(void *arg, struct gr_rpc_peer *who, const char *method, json_t *params, struct gr_err *err)
{
    const struct peer *p = gr_container_of(who, struct peer, who);
    if (!for_hosts(method))
        return gr_fail(err, -GR_EAUTH, "%s is nothing that hosts do for each other: run the command on the host that owns the disk", method);
    if (strcmp(method, "datastore.open-device") == 0 && !names_lun(params))
        return gr_fail(err, -GR_EAUTH, "%s: what another machine names here can be a LUN only", method);
    if (!stays_inside(p, method, params))
        return gr_fail(err, -GR_EAUTH, "%s: a host of datastore '%s' may ask for what lies in it only", method, p->datastore);
    return 0;
}

static void note(void *arg, int level, const char *text)
{
    snap_note(arg, level, "%s", text);
}

/* ---- the link of this home ---- */
static int start(struct snap_svc *s, struct gr_err *err)
{
    const uint8_t *key;
    int r = snap_link_key(s, &key, err);
    if (r < 0 || s->link.process)
        return r;
    const struct gr_link_opts o = {.loop = s->o.loop, .key = s->link.key, .arg = s, .admit = admit, .comes = comes, .note = note};
    return gr_link_new(&o, &s->link.process, err);
}

/* "ADDRESS" is the port of last time, when it is free, or any. */
static int listen_at(struct snap_svc *s, const char *address, bool any_port, struct gr_err *err)
{
    snap_auto_json json_t *doc = NULL;
    uint16_t port = 0;
    int r = any_port ? gr_home_load(s->o.home, LAST, &doc, err) : gr_link_listen(s->link.process, address, &port, err);
    if (r < 0)
        return r;
    json_int_t last = json_integer_value(json_object_get(doc, "port"));
    for (int i = last > 0 && last < 65536 ? 0 : 1; any_port && i < 2; i++) {
        gr_auto_free char *at = gr_asprintf("%s:%d", address, i ? 0 : (int)last);
        r = at ? gr_link_listen(s->link.process, at, &port, err) : gr_fail(err, -ENOMEM, "out of memory");
        if (r != -EADDRINUSE)
            break;
    }
    if (r == 0 && any_port) {
        json_object_set_new(doc, "port", json_integer(port));
        r = gr_home_save(s->o.home, LAST, doc, err);
    }
    const char *colon = strrchr(address, ':');
    if (r == 0)
        snprintf(s->link.at, sizeof(s->link.at), "%.*s:%u", any_port ? (int)strlen(address) : (int)(colon - address), address, port);
    return r;
}

int snap_link_up(struct snap_svc *s, struct gr_err *err)
{
    const char *a = s->link.wanted;
    if (!a[0] || s->link.at[0])
        return 0;
    int r = start(s, err);
    const char *bracket = strchr(a, ']'), *port = strchr(bracket ? bracket : a, ':');
    return r < 0 ? r : listen_at(s, a, !port, err);
}

int snap_svc_link(struct snap_svc *s, const char *address, struct gr_err *err)
{
    int r = 0;
    snprintf(s->link.wanted, sizeof(s->link.wanted), "%s", address);
    for (struct snap_ds *ds = s->list; ds && r == 0; ds = ds->next) {
        if (!ds->v || !snap_ds_links(ds))
            continue;
        r = snap_link_up(s, err);
        if (!address[0])
            snap_warn(s, "datastore '%s': other hosts cannot ask this one for anything: no portal names one address; say one with --link", ds->name);
    }
    return r;
}

const char *snap_svc_link_at(const struct snap_svc *s)
{
    return s->link.at;
}

void snap_link_serve(struct snap_svc *s, struct gr_rpc_server *server)
{
    s->server = server;
    gr_rpc_server_guard(server, guard, s);
}

void snap_svc_unlink(struct snap_svc *s)
{
    if (!s)
        return;
    s->link.at[0] = s->link.wanted[0] = 0;
    gr_link_free(gr_take(s->link.process));
}

void snap_link_end(struct snap_svc *s)
{
    snap_svc_unlink(s);
    gr_link_key_free(gr_take(s->link.key));
}

/* ---- addresses ---- */
void snap_own_address(const struct snap_svc *s, const struct snap_ds *ds, char ret[VMFS_ADDRESS_MAX + 1])
{
    if (!snap_ds_links(ds))
        snprintf(ret, VMFS_ADDRESS_MAX + 1, "%s", s->address);
    else
        snprintf(ret, VMFS_ADDRESS_MAX + 1, "%s%s", s->link.at[0] ? SCHEME : "", s->link.at);
}

void snap_peer_address(const struct snap_ds *ds, const struct vmfs_slot_info *i, char ret[VMFS_ADDRESS_MAX + 1])
{
    struct vmfs_info info;
    char uuid[37];
    snprintf(ret, VMFS_ADDRESS_MAX + 1, "%s", i->address);
    if (strncmp(i->address, SCHEME, strlen(SCHEME)) != 0)
        return;
    vmfs_info(ds->v, &info);
    gr_uuid_format(info.uuid, uuid);
    gr_auto_free char *key = gr_b64_encode(i->link_key, sizeof(i->link_key));
    if (key)
        snprintf(ret, VMFS_ADDRESS_MAX + 1, "%.200s/%s/%s", i->address, uuid, key);
}

static int dial(struct snap_svc *s, const char *address, int *ret_fd, struct gr_err *err)
{
    gr_auto_free char *at = gr_strdup(address + strlen(SCHEME));
    gr_auto_buf struct gr_buf key = {0};
    char *volume = at ? strchr(at, '/') : NULL, *text = volume ? strchr(volume + 1, '/') : NULL;
    uint8_t uuid[16];
    if (!at)
        return gr_fail(err, -ENOMEM, "out of memory");
    if (text) {
        *volume++ = 0;
        *text++ = 0;
    }
    if (!text || gr_uuid_parse(volume, uuid) < 0 || gr_b64_decode(text, strlen(text), &key) < 0 || key.len != GR_LINK_KEY_LEN)
        return gr_fail(err, -GR_EFORMAT, "%s is no address of a host", address);
    int r = start(s, err);
    return r < 0 ? r : gr_link_dial(s->link.process, at, uuid, (const uint8_t *)key.data, DIAL_MS, ret_fd, err);
}

int snap_peer_connect(struct snap_svc *s, const char *address, struct gr_rpc_client **ret, struct gr_err *err)
{
    int fd = -1;
    if (strncmp(address, SCHEME, strlen(SCHEME)) != 0)
        return gr_rpc_connect(s->o.loop, address, ret, err);
    int r = dial(s, address, &fd, err);
    return r < 0 ? r : gr_rpc_client_new(s->o.loop, fd, ret, err);
}
