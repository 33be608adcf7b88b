/* The datastores of a home: joining, leaving; and the disks held open in them. */
#include "common/buf.h"
#include "snapshot/keyfile.h"
#include "snapshot/service_int.h"
#include <assert.h>
#include <string.h>

/* ---- join, leave ---- */
static void close_devices(struct snap_ds *ds)
{
    for (unsigned i = 0; i < ds->n_devices; i++) {
        gr_bdev_put(ds->bdevs[i]);
        ds->bdevs[i] = NULL;
    }
}

static void vmfs_warning(void *arg, const char *text)
{
    snap_warn(((struct snap_ds *)arg)->svc, "%s", text);
}

static bool object_in_use(void *arg, uint64_t id)
{
    return mnt_in_use_elsewhere(arg, id);
}

/* ---- ejected ---- */
#define STRANGER_MS 5000u /* for a session that is there to be refused only */
#define REJOIN_MS 2000u /* between two attempts */
static bool any_ejected(const struct snap_svc *s)
{
    const struct snap_ds *ds = s->list;
    while (ds && !ds->ejected)
        ds = ds->next;
    return ds != NULL;
}

/* Devices because of which the volume was given up. */
static void note_lost(struct snap_ds *ds)
{
    struct vmfs_info info;
    vmfs_info(ds->v, &info);
    for (unsigned i = 0; i < ds->n_devices; i++) {
        int number = ds->bdevs[i] ? vmfs_device_number(ds->v, ds->bdevs[i]) : -1;
        if (number >= 0 && (info.lost >> number & 1))
            ds->lost[i] = true;
    }
}

static bool any_lost(const struct snap_ds *ds)
{
    for (unsigned i = 0; i < ds->n_devices; i++)
        if (ds->lost[i])
            return true;
    return false;
}

/* Requests at work on the datastore, which is being left, end by themselves; long ones are not waited for when it is only about leaving. Nobody gets
 * or removes it meanwhile. Who has it may wait for the lock, so that is given back; after waiting it is held again. */
static int wait_unused(struct snap_svc *s, struct snap_ds *ds, bool bounded, struct gr_err *err)
{
    int r = 0;
    assert(ds->leaving);
    if (ds->users == 0)
        return 0;
    gr_fmutex_unlock(&s->lock);
    for (unsigned ms = 0; r == 0 && ds->users > 0; ms += 20) {
        if (bounded && ms >= SNAP_WAIT_MS)
            r = gr_fail(err, -GR_ELOCKED, "datastore '%s' is in use by %u requests", ds->name, ds->users);
        else
            gr_fiber_sleep_ms(20);
    }
    gr_fmutex_lock(&s->lock);
    return r;
}

/* The lock is held. */
static int rejoin(struct snap_svc *s, struct snap_ds *ds, unsigned back, struct gr_err *err)
{
    bool again = back && back <= ds->n_devices;
    if (ds->v && (again || snap_fenced(ds))) {
        ds->leaving = true;
        (void)wait_unused(s, ds, false, NULL);
        note_lost(ds);
        snap_ds_leave(s, ds, false, NULL);
    }
    if (ds->v)
        return snap_fenced(ds) ? gr_fail(err, -EBUSY, "it cannot be left") : 0; /* 0: a request has joined it meanwhile */
    if (!again)
        return snap_ds_join(s, ds, err);
    ds->lost[back - 1] = false;
    int r = snap_ds_join(s, ds, err);
    if (r < 0) { /* the others are not to wait for it */
        snap_warn(s, "datastore '%s' cannot be joined with '%s', and is joined without it: %s", ds->name, ds->devices[back - 1], gr_err_text(err, r));
        ds->lost[back - 1] = true;
        r = snap_ds_join(s, ds, err);
    } else if (back <= ds->n_devices && vmfs_device_number(ds->v, ds->bdevs[back - 1]) < 0) { /* it is there, but not to be used */
        ds->lost[back - 1] = true;
    }
    return r;
}

/* Each that was ejected is tried once. How many were joined. */
static unsigned rejoin_all(struct snap_svc *s)
{
    unsigned n = 0;
    gr_fmutex_lock(&s->lock);
    for (struct snap_ds *ds = s->list; ds && !s->ending; ds = ds->next) {
        struct gr_err err = {0};
        if (!ds->ejected || ds->leaving) /* who leaves it waits without the lock, and may remove it: if it stays, it is looked at again */
            continue;
        unsigned back = ds->back;
        ds->ejected = false; /* it may be set again at any time */
        ds->back = 0;
        int r = rejoin(s, ds, back, &err);
        ds->ejected |= r < 0;
        n += r == 0;
        snap_note(s, r < 0 ? GR_LOG_WARN : GR_LOG_NOTE, r < 0 ? "datastore '%s' cannot be joined again, and will be tried again: %s" : "datastore '%s' is joined again%s", ds->name,
                  r < 0 ? gr_err_text(&err, r) : "");
    }
    gr_fmutex_unlock(&s->lock);
    return n;
}

/* Another host has our disks now; ours come back to be led there, and we come back as if we had just started. Or a device was lost: initiators come
 * back, too, and send again what was not answered. One that cannot be joined keeps no other waiting, and what is ejected meanwhile is looked at, too. */
static void rejoin_fiber(void *arg)
{
    struct snap_svc *s = arg;
    while (!s->ending && any_ejected(s)) {
        if (rejoin_all(s)) {
            if (!s->ending)
                snap_svc_open_all(s);
        } else if (!s->ending) {
            gr_fqueue_wait_ms(&s->wake, REJOIN_MS);
        }
    }
    s->rejoining--;
    gr_fqueue_wake_all(&s->wake);
}

void snap_ds_rejoin(struct snap_ds *ds)
{
    struct snap_svc *s = ds->svc;
    ds->ejected = true;
    if (s->rejoining || s->ending)
        return;
    s->rejoining++;
    if (gr_fiber_start(s->o.loop, rejoin_fiber, s) < 0)
        s->rejoining--;
}

static void vmfs_ejected(void *arg)
{
    snap_ds_rejoin(arg);
}

/* A session of its own, as any other host's would be. */
static int stranger(void *arg, const struct gr_bdev *device, struct gr_bdev **ret, struct gr_err *err)
{
    struct snap_ds *ds = arg;
    uint8_t uuid[16];
    struct gr_device_opts other = {.host_uuid = uuid, .stranger = true, .login = ds->login, .patience_ms = STRANGER_MS};
    unsigned i = 0;
    while (i < ds->n_devices && ds->bdevs[i] != device)
        i++;
    int r = i == ds->n_devices ? -ENODEV : gr_home_host_uuid(ds->svc->o.home, uuid, err);
    return r < 0 ? r : gr_device_open(ds->svc->o.loop, ds->devices[i], &other, ret, err);
}

static int join_volume(struct snap_svc *s, struct snap_ds *ds, struct gr_err *err)
{
    char address[VMFS_ADDRESS_MAX + 1];
    struct vmfs_join_opts o = {.role = VMFS_HOST, .address = address, .portal = s->portal, .ejected = vmfs_ejected, .device_lost = vmfs_ejected, .in_use = object_in_use, .warn = vmfs_warning, .recall = snap_quota_recall, .recall_regions = snap_regions_recall, .stranger = stranger, .resume = snap_tell_resume,
                               .warn_arg = ds, .gone = s->gone};
    char host[65] = "";
    int r = gr_home_host_uuid(s->o.home, o.host_uuid, err);
    if (r == 0 && snap_ds_links(ds))
        r = snap_link_key(s, &o.link_key, err);
    if (r == 0 && snap_ds_links(ds))
        r = snap_link_up(s, err);
    if (r < 0)
        return r;
    snap_own_address(s, ds, address);
    if (gethostname(host, sizeof(host) - 1) < 0 || !host[0])
        memcpy(host, "localhost", sizeof("localhost"));
    char uuid[37];
    gr_uuid_format(o.host_uuid, uuid);
    gr_auto_free char *name = gr_asprintf("%.50s-%.8s", host, uuid); /* several homes of one machine are told apart */
    if (!name)
        return gr_fail(err, -ENOMEM, "out of memory");
    o.host_name = name;
    o.degraded = ds->degraded || any_lost(ds);
    o.rescue = ds->rescue;
    o.accepted = ds->accepted;
    o.n_accepted = ds->n_accepted;
    o.kek = snap_key_find;
    o.kek_arg = s->o.home;
    struct gr_device_opts device = {.host_uuid = o.host_uuid, .login = ds->login};
    struct gr_bdev *open[VMFS_DEVICES_MAX];
    struct gr_err missing = {0};
    unsigned n = 0;
    for (unsigned i = 0; i < ds->n_devices; i++) { /* one that cannot be opened may have been removed by another host */
        r = ds->lost[i] ? -ENODEV : gr_device_open(s->o.loop, ds->devices[i], &device, &ds->bdevs[i], missing.code ? NULL : &missing);
        if (r == 0)
            open[n++] = ds->bdevs[i];
    }
    r = n ? vmfs_join(s->o.loop, open, n, &o, &ds->v, err) : -ENODEV;
    if (n == 0) {
        *err = missing;
        return missing.code;
    }
    if (r == -ENODEV && !ds->rescue) {
        gr_auto_free char *why = gr_strdup(err->text);
        return gr_fail(err, r, "%s%s%s; 'granary datastore add-device %s DEVICE' names one that another host added; when one is lost for good, 'granary datastore join --rescue' "
                       "reads what is left, and 'granary datastore replace-device' puts an empty one in its place", missing.text, missing.code ? "; " : "", why ? why : "", ds->name);
    }
    if (r < 0)
        return r;
    struct vmfs_info info;
    vmfs_info(ds->v, &info);
    if (strcmp(info.name, ds->name) == 0)
        return 0;
    vmfs_leave(ds->v, NULL);
    ds->v = NULL;
    return gr_fail(err, -EINVAL, "%s holds datastore '%s', not '%s': join it by that name", ds->devices[0], info.name, ds->name);
}

int snap_ds_join(struct snap_svc *s, struct snap_ds *ds, struct gr_err *err)
{
    struct gr_err scratch = {0};
    struct gr_err *e = err ? err : &scratch;
    int r = join_volume(s, ds, e);
    snap_table_free(&ds->rules); /* it may be another datastore of that name */
    snap_table_free(&ds->policies);
    if (r < 0) {
        close_devices(ds);
    } else {
        struct vmfs_info info;
        vmfs_info(ds->v, &info);
        if (!info.n_missing)
            snap_ds_prune(s, ds);
        if (!info.rescue) {
            snap_clean_tmp(s, ds);
            snap_clean_groups(ds);
        }
    }
    memcpy(ds->error, r < 0 ? e->text : "", r < 0 ? sizeof(ds->error) : 1);
    return r < 0 ? gr_prefix(e, r, "datastore '%s'", ds->name) : 0;
}

static void memory_free(struct snap_handle *h)
{
    if (h->looks)
        return;
    free(h->path);
    free(h);
}

static void handle_free(struct snap_ds *ds, struct snap_handle *h)
{
    for (struct snap_handle **p = &ds->handles; *p; p = &(*p)->next) {
        if (*p != h)
            continue;
        *p = h->next;
        break;
    }
    vmfs_close(gr_take(h->disk));
    memory_free(h);
}

int snap_release_hook(struct snap_svc *s, const struct snap_ds *ds, const char *path, bool only_idle, struct gr_err *err)
{
    gr_auto_free char *disk = gr_asprintf("%s/%s", ds->name, path);
    if (!disk)
        return gr_fail(err, -ENOMEM, "out of memory");
    return s->o.hooks.release ? s->o.hooks.release(s->o.hooks.arg, disk, only_idle, err) : 0;
}

/* It stays after all. A new portal was not told to it meanwhile. */
static void tell_portal(struct snap_svc *s, struct snap_ds *ds)
{
    char address[VMFS_ADDRESS_MAX + 1];
    struct gr_err err = {0};
    snap_own_address(s, ds, address);
    ds->users++;
    if (vmfs_set_address(ds->v, address, s->portal, &err) < 0)
        snap_warn(s, "datastore '%s': others are not told of this host's portal: %s", ds->name, err.text);
    snap_ds_put(ds);
}

int snap_ds_leave(struct snap_svc *s, struct snap_ds *ds, bool only_idle, struct gr_err *err)
{
    int r = 0;
    for (struct snap_handle *h = ds->handles; h && only_idle; h = h->next)
        if (snap_users_of(s, ds, h->path) > 0)
            return snap_release_hook(s, ds, h->path, true, err) < 0
                       ? gr_prefix(err, -GR_ELOCKED, "datastore '%s' is in use", ds->name)
                       : gr_fail(err, -GR_ELOCKED, "datastore '%s' is in use: disk %s has sessions", ds->name, h->path);
    const char *dir = only_idle ? mnt_mounted_on(ds) : NULL;
    if (dir)
        return gr_fail(err, -GR_ELOCKED, "datastore '%s' is in use: it is mounted on '%s' (granary unmount)", ds->name, dir);
    ds->leaving = true;
    r = wait_unused(s, ds, only_idle, err);
    if (r == 0)
        mnt_vol_close(ds);
    while (r == 0 && ds->handles) {
        r = snap_release_hook(s, ds, ds->handles->path, only_idle, err);
        if (r == 0)
            handle_free(ds, ds->handles);
    }
    if (r == 0) {
        r = vmfs_leave(gr_take(ds->v), err);
        close_devices(ds);
    }
    ds->leaving = false;
    if (ds->v && !snap_fenced(ds))
        tell_portal(s, ds);
    return r;
}

int snap_ds_get(struct snap_svc *s, const char *name, struct snap_ds **ret, struct gr_err *err)
{
    gr_fmutex_lock(&s->lock);
    struct snap_ds *ds = snap_ds_find(s, name);
    int r = 0;
    if (!ds)
        r = gr_fail(err, -ENOENT, "no datastore '%s' here: granary datastore list shows those joined", name);
    else if (ds->leaving || (s->ending && !ds->v))
        r = gr_fail(err, -GR_ELOCKED, "datastore '%s' is being left", name);
    else if (!ds->v)
        r = snap_ds_join(s, ds, err);
    if (r == 0) {
        ds->users++;
        *ret = ds;
    }
    gr_fmutex_unlock(&s->lock);
    return r;
}

bool snap_fenced(const struct snap_ds *ds)
{
    struct vmfs_info i;
    vmfs_info(ds->v, &i);
    return i.fenced;
}

void snap_ds_put(struct snap_ds *ds)
{
    ds->users--;
}

/* ---- open disks ---- */
struct snap_handle *snap_handle_find(struct snap_ds *ds, const char *path)
{
    for (struct snap_handle *h = ds->handles; h; h = h->next)
        if (strcmp(h->path, path) == 0)
            return h;
    return NULL;
}

int snap_stat(struct snap_ds *ds, const char *path, struct vmfs_stat *ret, struct gr_err *err)
{
    int r = vmfs_stat(ds->v, path, ret, err);
    const struct snap_handle *h = snap_handle_find(ds, path);
    if (r == 0 && h && !h->closing && vmfs_disk_id(h->disk) == ret->id)
        vmfs_disk_stat(h->disk, ret);
    return r;
}

unsigned snap_users_of(struct snap_svc *s, const struct snap_ds *ds, const char *path)
{
    gr_auto_free char *disk = gr_asprintf("%s/%s", ds->name, path);
    return disk && s->o.hooks.users ? s->o.hooks.users(s->o.hooks.arg, disk) : 0;
}

int snap_refuse_in_use(struct snap_svc *s, const struct snap_disk *d, const char *what, struct gr_err *err)
{
    unsigned n = snap_users_of(s, d->ds, d->h->path);
    if (n == 0)
        return 0;
    return gr_fail(err, -GR_ELOCKED, "disk %s/%s cannot %s: it is in use by %u session%s (granary session list names them)", d->ds->name,
                   d->h->path, what, n, n == 1 ? "" : "s");
}

int snap_refuse_shown(const struct snap_disk *d, struct gr_err *err)
{
    const char *dir = d->h->mounted ? mnt_mounted_on(d->ds) : NULL;
    return d->h->mounted ? gr_fail(err, -GR_ELOCKED, "disk %s/%s is open for writing on '%s'", d->ds->name, d->h->path, dir ? dir : "a mount") : 0;
}

void snap_place_of_host(const struct snap_ds *ds, const struct vmfs_slot_info *i, struct snap_place *ret)
{
    struct snap_place p = {0};
    memcpy(p.host, i->host_name, sizeof(p.host));
    memcpy(p.portal, i->portal, sizeof(p.portal));
    snap_peer_address(ds, i, p.address);
    *ret = p;
}

int snap_place_of_slot(struct snap_ds *ds, int slot, struct snap_place *ret, struct gr_err *err)
{
    struct vmfs_slot_info *i = slot < 0 ? NULL : gr_alloc(sizeof(*i));
    if (!i)
        return slot < 0 ? 0 : gr_fail(err, -ENOMEM, "out of memory");
    int r = vmfs_slot(ds->v, (unsigned)slot, i, err);
    if (r == 0)
        r = i->alive && !i->self;
    if (r == 1)
        snap_place_of_host(ds, i, ret);
    free(i);
    return r;
}

int snap_owner_of(struct snap_ds *ds, const char *path, struct snap_place *ret, struct gr_err *err)
{
    struct vmfs_stat st;
    int r = vmfs_stat(ds->v, path, &st, err);
    return r < 0 ? r : snap_place_of_slot(ds, st.owner_slot, ret, err);
}

struct stale {
    char names[8][VMFS_NAME_MAX + 1];
    unsigned n;
};

static int note_stale(void *arg, const struct snap_info *info)
{
    struct stale *st = arg;
    bool ours = strncmp(info->name, SNAP_EXPORT_PREFIX, strlen(SNAP_EXPORT_PREFIX)) == 0 ||
                strncmp(info->name, SNAP_GROUP_PREFIX, strlen(SNAP_GROUP_PREFIX)) == 0;
    if (ours && !info->deleting && st->n < GR_ARRAY_LEN(st->names))
        memcpy(st->names[st->n++], info->name, sizeof(st->names[0]));
    return 0;
}

/* An export that was killed left its snapshot; who opens the disk first is alone with it and removes it. That of a group is settled. */
static void remove_stale(struct snap_svc *s, struct snap_ds *ds, struct snap_handle *h)
{
    struct vmfs_stat st;
    vmfs_disk_stat(h->disk, &st);
    if (st.type != VMFS_DISK || st.n_snapshots == 0)
        return;
    struct stale *stale = gr_zalloc(sizeof(*stale));
    struct gr_err err = {0};
    if (!stale)
        return;
    if (snap_list(h->disk, note_stale, stale, &err) < 0)
        snap_warn(s, "disk %s/%s: its snapshots cannot be listed: %s", ds->name, h->path, err.text);
    for (unsigned i = 0; i < stale->n; i++)
        if (strncmp(stale->names[i], SNAP_GROUP_PREFIX, strlen(SNAP_GROUP_PREFIX)) == 0)
            snap_group_recover(s, ds, h->disk, stale->names[i]);
        else if (snap_delete(h->disk, stale->names[i], false, &err) < 0)
            snap_warn(s, "disk %s/%s: left-over snapshot %s cannot be deleted: %s", ds->name, h->path, stale->names[i], err.text);
    free(stale);
    snap_group_sign(ds, h->disk);
}

/* Its name leads elsewhere by now: folders are renamed also by hosts that have nothing of what is below. Who uses it may go on. */
static int handle_forget(struct snap_svc *s, struct snap_ds *ds, struct snap_handle *h, struct gr_err *err)
{
    struct snap_disk d = {.ds = ds, .h = h};
    h->users++;
    int r = snap_disk_drop(s, &d, true, err);
    if (r < 0)
        h->users--;
    return r;
}

/* The handle under the name @path, if that still leads to it: else *@h is NULL. Nobody is kept from closing it meanwhile. */
static int handle_look(struct snap_svc *s, struct snap_ds *ds, const char *path, struct snap_handle **h, struct gr_err *err)
{
    struct vmfs_stat st;
    *h = snap_handle_find(ds, path);
    if (!*h || (*h)->closing)
        return 0;
    (*h)->looks++;
    int found = vmfs_stat(ds->v, path, &st, NULL);
    (*h)->looks--;
    if (!(*h)->disk) {
        memory_free(gr_take(*h));
        return 0;
    }
    if ((*h)->closing || (found < 0 && found != -ENOENT) || (found == 0 && st.id == vmfs_disk_id((*h)->disk)))
        return 0;
    int r = handle_forget(s, ds, *h, err);
    if (r == 0)
        *h = NULL;
    else if (found == 0)
        return gr_prefix(err, r, "%s/%s names something else by now, and what it named", ds->name, path);
    return 0;
}

/* What is to be open as @path may be open under a name that it has no more. */
static int forget_old_name(struct snap_svc *s, struct snap_ds *ds, const char *path, const struct vmfs_disk *disk, struct gr_err *err)
{
    struct snap_handle *h = ds->handles;
    while (h && (h->disk != disk || strcmp(h->path, path) == 0))
        h = h->next;
    return !h ? 0 : h->closing ? gr_fail(err, -GR_ELOCKED, "%s/%s is being closed", ds->name, h->path) : handle_forget(s, ds, h, err);
}

static int handle_add(struct snap_svc *s, struct snap_ds *ds, const char *path, struct vmfs_disk *disk, struct snap_handle **ret,
                      struct gr_err *err)
{
    int r = forget_old_name(s, ds, path, disk, err);
    struct snap_handle *h = snap_handle_find(ds, path);
    if (r < 0 || h) { /* somebody else was quicker */
        vmfs_close(disk);
        *ret = h;
        return r;
    }
    h = gr_zalloc(sizeof(*h));
    if (!h || !(h->path = gr_strdup(path))) {
        free(h);
        vmfs_close(disk);
        return gr_fail(err, -ENOMEM, "%s/%s: out of memory", ds->name, path);
    }
    h->disk = disk;
    h->next = ds->handles;
    ds->handles = h;
    h->users++;
    if (!ds->rescue)
        remove_stale(s, ds, h);
    h->users--;
    *ret = h;
    return 0;
}

/* One try to open: 0, or an error; -GR_ELOCKED with *ret_owner filled when a living host holds it; -EAGAIN: a dead one was
 * recovered, try again. */
static int try_open(struct snap_svc *s, struct snap_ds *ds, const char *path, struct snap_handle **ret, struct snap_place *owner,
                    struct gr_err *err)
{
    int slot = -1;
    struct vmfs_disk *disk = NULL;
    int r = vmfs_open(ds->v, path, &disk, &slot, err);
    if (r == 0)
        return handle_add(s, ds, path, disk, ret, err);
    if (r != -GR_ELOCKED || slot < 0)
        return r;
    int living = snap_place_of_slot(ds, slot, owner, err);
    if (living != 0)
        return living < 0 ? living : -GR_ELOCKED;
    living = vmfs_recover_slot(ds->v, (unsigned)slot, err);
    return living < 0 ? living : -EAGAIN;
}

static bool is_moving(const struct snap_ds *ds, const char *path)
{
    const struct snap_moving *m = ds->moving;
    while (m && strcmp(m->path, path) != 0)
        m = m->next;
    return m != NULL;
}

static int handle_wait(struct snap_svc *s, struct snap_ds *ds, const char *path, struct snap_wait *w, uint64_t wait_ms, struct snap_handle **ret,
                       struct snap_place *ret_owner, struct gr_err *err)
{
    uint64_t deadline = w->since_ns + wait_ms * 1000000ull;
    while (is_moving(ds, path) && gr_loop_now_ns(s->o.loop) < deadline) {
        w->moving = true;
        gr_fqueue_wait_ms(&s->wake, 100);
    }
    struct snap_place there = {0};
    if (w->moving && snap_owner_of(ds, path, &there, NULL) > 0 && there.address[0] && ret_owner) { /* led there at once, rather than after a look for who is gone */
        *ret_owner = there;
        return gr_fail(err, -GR_ELOCKED, "%s/%s is owned by host '%s'", ds->name, path, there.host);
    }
    if (is_moving(ds, path)) /* it is free for a moment, but not for us */
        return gr_fail(err, -GR_ELOCKED, "%s/%s changes hands: try again", ds->name, path);
    w->moving = false;
    for (unsigned tries = 0;; tries++) {
        struct snap_place owner = {0};
        struct snap_handle *h;
        int r = handle_look(s, ds, path, &h, err);
        if (r == 0 && !h)
            r = try_open(s, ds, path, &h, &owner, err);
        if (r == 0 && !h->closing) {
            h->users++;
            *ret = h;
            return 0;
        }
        if (r == 0)
            r = gr_fail(err, -GR_ELOCKED, "%s/%s is being closed", ds->name, path);
        if (r == -EAGAIN && tries > 50)
            return gr_fail(err, -GR_ELOCKED, "%s/%s: locked by a host that is gone, and cannot be recovered", ds->name, path);
        if (r != -GR_ELOCKED && r != -EAGAIN)
            return r;
        if (owner.host[0])
            gr_fail(err, -GR_ELOCKED, "%s/%s is owned by host '%s'%s", ds->name, path, owner.host,
                    owner.address[0] ? "" : ", where a command is at work on it: try again");
        if (r == -GR_ELOCKED && (owner.address[0] || gr_loop_now_ns(s->o.loop) >= deadline)) {
            if (ret_owner)
                *ret_owner = owner;
            return r;
        }
        memcpy(w->host, owner.host, sizeof(w->host));
        gr_fiber_sleep_ms(50);
    }
}

int snap_handle_get(struct snap_svc *s, struct snap_ds *ds, const char *path, const char *what, uint64_t wait_ms, struct snap_handle **ret,
                    struct snap_place *ret_owner, struct gr_err *err)
{
    struct snap_wait w = {.what = what, .path = path};
    snap_wait_begin(ds, &w);
    int r = handle_wait(s, ds, path, &w, wait_ms, ret, ret_owner, err);
    snap_wait_end(ds, &w);
    return r;
}

int snap_disk_get(struct snap_op *op, const struct snap_path *p, struct snap_disk *ret)
{
    struct snap_disk d = {0};
    int r = snap_ds_get(op->s, p->ds, &d.ds, op->err);
    if (r < 0)
        return r;
    struct snap_place owner = {0};
    r = snap_handle_get(op->s, d.ds, p->path, op->method, SNAP_WAIT_MS, &d.h, &owner, op->err);
    if (r == -GR_ELOCKED && owner.address[0]) {
        op->owner = owner;
        op->forward = true;
    }
    if (r < 0) {
        snap_ds_put(d.ds);
        return r;
    }
    struct vmfs_stat st;
    vmfs_disk_stat(d.h->disk, &st);
    if (st.type != VMFS_DISK) { /* it does not stay open, or nobody could write it any more */
        if (snap_disk_drop(op->s, &d, true, NULL) == 0)
            (void)vmfs_release(d.ds->v, p->path, NULL);
        snap_disk_put(&d);
        return gr_fail(op->err, -EINVAL, "%s/%s is a file, not a disk", p->ds, p->path);
    }
    *ret = d;
    return 0;
}

void snap_disk_put(struct snap_disk *d)
{
    if (d->h)
        d->h->users--;
    if (d->ds)
        snap_ds_put(d->ds);
    *d = (struct snap_disk){0};
}

int snap_disk_drop(struct snap_svc *s, struct snap_disk *d, bool only_idle, struct gr_err *err)
{
    snap_passes_stop(s, d->h);
    if (d->h->users > 1)
        return gr_fail(err, -GR_ELOCKED, "disk %s/%s is in use by %u other request%s", d->ds->name, d->h->path, d->h->users - 1,
                       d->h->users == 2 ? "" : "s");
    d->h->closing = true;
    int r = snap_release_hook(s, d->ds, d->h->path, only_idle, err);
    if (r < 0) {
        d->h->closing = false;
        return r;
    }
    handle_free(d->ds, d->h);
    d->h = NULL;
    return 0;
}
