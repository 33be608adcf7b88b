/* Logical units: opened at the first login, closed when nobody is left; their events become unit attentions. */
#include "common/cleanup.h"
#include "common/buf.h"
#include "common/seam.h"
#include "iscsi-target/sanitize.h"
#include "iscsi-target/scsi.h"
#include <stdlib.h>
#include <sys/socket.h>

#define INCARNATIONS_ATTR "incarnations"
#define INCARNATIONS_MAX 64u
#define RELEASE_WAIT_NS 10000000000ull /* how long a login waits for a disk that is being let go of */

struct tgt_lu *tgt_lu_find(struct tgt_server *s, const char *disk)
{
    struct tgt_lu *lu = s->lus;
    while (lu && strcmp(lu->disk, disk) != 0)
        lu = lu->next;
    return lu;
}

void tgt_lu_ua(struct tgt_lu *lu, const struct tgt_sess *except, uint16_t ua)
{
    for (struct tgt_sess *o = lu->server->sessions; o; o = o->next)
        if (o->lu == lu && o != except)
            tgt_sess_ua(o, ua);
}

int tgt_lu_shape(struct tgt_lu *lu, const struct gr_geometry *g)
{
    if (g->size < g->logical_block || (g->logical_block != 512 && g->logical_block != 4096))
        return -EINVAL;
    lu->geo = *g;
    lu->shift = g->logical_block == 512 ? 9 : 12;
    return 0;
}

static int take_geometry(struct tgt_lu *lu)
{
    struct gr_geometry g;
    int r = gr_bdev_geometry(lu->bdev, &g);
    return r < 0 ? r : tgt_lu_shape(lu, &g);
}

static void ask_logout(struct tgt_lu *lu)
{
    for (struct tgt_sess *o = lu->server->sessions; o; o = o->next)
        if (o->lu == lu)
            tgt_sess_ask_logout(o);
}

/* What is under way has its answer with another host: the initiators hear nothing from us, and come back to be led there. */
static void cut_off(struct tgt_lu *lu)
{
    for (struct tgt_sess *o = lu->server->sessions; o; o = o->next)
        for (struct tgt_conn *c = o->lu == lu ? o->conns : NULL; c; c = c->next)
            if (c->fd >= 0)
                shutdown(c->fd, SHUT_RDWR);
}

static void presented(struct tgt_lu *lu)
{
    struct gr_geometry before = lu->geo;
    if (take_geometry(lu) < 0)
        return;
    if (lu->geo.read_only != before.read_only)
        tgt_lu_ua(lu, NULL, TGT_UA_MODE_CHANGED);
    if (lu->geo.removable != before.removable)
        tgt_lu_ua(lu, NULL, TGT_UA_INQUIRY_CHANGED);
    lu->ejected = lu->ejected && lu->geo.removable;
    tgt_limit_changed(lu);
}

static void event(void *arg, enum gr_event ev)
{
    struct tgt_lu *lu = arg;
    switch (ev) {
    case GR_EVENT_RESIZED:
        if (take_geometry(lu) == 0)
            tgt_lu_ua(lu, NULL, TGT_UA_CAPACITY);
        break;
    case GR_EVENT_REVERTED:
        if (take_geometry(lu) == 0)
            tgt_lu_ua(lu, NULL, TGT_UA_MEDIUM_CHANGED);
        break;
    case GR_EVENT_PRESENTED:
        presented(lu);
        break;
    case GR_EVENT_THRESHOLD:
        tgt_lu_ua(lu, NULL, TGT_UA_THRESHOLD);
        break;
    case GR_EVENT_FENCED:
        lu->fenced = true;
        break;
    case GR_EVENT_EJECTED:
        lu->fenced = true;
        cut_off(lu);
        break;
    case GR_EVENT_MOVING:
        ask_logout(lu);
        break;
    case GR_EVENT_GONE:
        lu->fenced = true;
        ask_logout(lu);
        break;
    }
}

static void lu_close(struct tgt_lu *lu)
{
    lu->standby = false;
    free(gr_take(lu->incarnations)); /* also of those that logged in while it was in standby */
    if (!lu->bdev)
        return;
    gr_bdev_unlisten(lu->bdev, &lu->listener);
    gr_chan_close(gr_take(lu->chan));
    gr_bdev_put(gr_take(lu->bdev));
    tgt_copies_free(lu);
    tgt_sanitize_free(lu);
    gr_timer_cancel(lu->server->loop, &lu->limit.timer);
    lu->fenced = lu->swp = lu->d_sense = lu->ejected = lu->has_store = false;
}

void tgt_lu_user_put(struct tgt_lu *lu)
{
    struct tgt_server *s = lu->server;
    if (--lu->users)
        return;
    lu_close(lu);
    gr_fqueue_wake_all(&s->changed);
}

/* Suspends when there is a bdev already: reservations may be stored anew. */
static int lu_open(struct tgt_lu *lu, struct gr_bdev *bdev, struct gr_err *err)
{
    void *text = NULL;
    lu->bdev = bdev;
    int r = take_geometry(lu);
    if (r < 0)
        gr_fail(err, r, "disk '%s': its geometry cannot be served", lu->disk);
    if (!r && (r = gr_chan_open(bdev, lu->server->loop, &lu->chan)) < 0)
        gr_fail(err, r, "disk '%s': cannot be opened for I/O: %s", lu->disk, gr_code_text(r));
    if (r < 0) {
        lu->bdev = NULL;
        gr_bdev_put(bdev);
        return r;
    }
    lu->listener = (struct gr_listener){.fn = event, .arg = lu};
    gr_bdev_listen(bdev, &lu->listener);
    lu->has_store = false;
    if (bdev->ops->attr_get && bdev->ops->attr_set) {
        int n = bdev->ops->attr_get(bdev, INCARNATIONS_ATTR, &text, NULL);
        lu->has_store = n != -EOPNOTSUPP; /* a layer has the calls, what is below it may not */
        free(gr_take(lu->incarnations)); /* what the store says, counts */
        if (n >= 0) {
            lu->incarnations = gr_asprintf("%.*s", n, (const char *)text);
            free(text);
        }
    }
    int p = tgt_pr_load(lu, err);
    return p < 0 ? p : tgt_sanitize_load(lu, err);
}

static struct tgt_lu *lu_new(struct tgt_server *s, const char *disk)
{
    struct tgt_lu *lu = gr_zalloc(sizeof *lu);
    if (!lu || strlen(disk) >= sizeof lu->disk || tgt_name_of(disk, lu->target) < 0) {
        free(lu);
        return NULL;
    }
    memcpy(lu->disk, disk, strlen(disk) + 1);
    lu->server = s;
    lu->next = s->lus;
    s->lus = lu;
    return lu;
}

struct tgt_lu *tgt_lu_known(struct tgt_server *s, const char *disk)
{
    struct tgt_lu *lu = tgt_lu_find(s, disk);
    return lu ? lu : lu_new(s, disk);
}

uint16_t tgt_group_of(struct tgt_server *s, const char *disk)
{
    uint16_t group = s->dir.group ? s->dir.group(s->dir.arg, disk) : 0;
    return group ? group : 1;
}

/* The incarnation of a VM was not looked up while the disk was elsewhere: its sessions come again, and are asked then. */
static void drop_incarnations(struct tgt_lu *lu)
{
    struct tgt_sess *next;
    char uuid[37];
    uint64_t n;
    for (struct tgt_sess *o = lu->server->sessions; o; o = next) {
        next = o->next;
        if (o->lu == lu && tgt_incarnation_split(o->initiator, uuid, &n))
            tgt_sess_close(o, "the disk was taken over");
    }
}

/* Whoever is at it: then its bdev is there to stay, or there is none. */
static void until_opened(struct tgt_lu *lu)
{
    while (lu->opening)
        gr_fqueue_wait(&lu->server->changed);
}

int tgt_lu_activate(struct tgt_lu *lu, struct gr_bdev *bdev, const struct tgt_sess *asked, struct gr_err *err)
{
    until_opened(lu);
    bool was_standby = lu->standby;
    if (lu->bdev) { /* another was faster */
        gr_bdev_put(bdev);
        return 0;
    }
    lu->opening = true;
    int r = lu_open(lu, bdev, err);
    lu->opening = false;
    gr_fqueue_wake_all(&lu->server->changed);
    if (r < 0) {
        lu_close(lu);
        lu->standby = was_standby;
        return r;
    }
    lu->standby = false;
    if (was_standby) {
        tgt_note(lu->server, 5, "disk '%s' is served here now", lu->disk);
        tgt_lu_ua(lu, asked, TGT_UA_ACCESS_CHANGED);
        drop_incarnations(lu);
    }
    return 0;
}

/* What the directory said is made true. Holds a user. */
static int place_lu(struct tgt_server *s, const char *disk, struct tgt_place *place, struct tgt_lu **ret, struct gr_err *err)
{
    struct tgt_lu *lu = tgt_lu_known(s, disk); /* another login may have been faster */
    if (!lu || lu->releasing) {
        gr_bdev_put(place->bdev);
        return gr_fail(err, lu ? -GR_ELOCKED : -ENOMEM, "disk '%s' cannot be served now", disk);
    }
    lu->users++;
    lu->group = tgt_group_of(s, disk);
    int r = 0;
    if (!place->bdev)
        until_opened(lu); /* another login was told that it is here, which may come to nothing */
    if (place->bdev) {
        r = tgt_lu_activate(lu, place->bdev, NULL, err);
    } else if (!lu->bdev) {
        lu->standby = true;
        r = tgt_lu_shape(lu, &place->geometry);
        if (r < 0)
            gr_fail(err, r, "disk '%s': what its owner says of it cannot be served", disk);
    }
    if (r == 0 && lu->releasing) /* since then: nobody is asked again */
        r = gr_fail(err, -GR_ELOCKED, "disk '%s' is being released", disk);
    if (r < 0) {
        tgt_lu_user_put(lu);
        return r;
    }
    *ret = lu;
    return 0;
}

int tgt_lu_acquire(struct tgt_server *s, const char *disk, const char *initiator, bool standby, struct tgt_lu **ret, char redirect[300],
                   struct gr_err *err)
{
    struct tgt_place place = {0};
    struct tgt_lu *lu;
    uint64_t deadline = gr_loop_now_ns(s->loop) + RELEASE_WAIT_NS;
    while ((lu = tgt_lu_find(s, disk)) && (lu->releasing || lu->opening)) { /* then it is known where it is */
        if (s->stopping || gr_loop_now_ns(s->loop) >= deadline)
            return gr_fail(err, -GR_ELOCKED, "disk '%s' is being %s", disk, lu->releasing ? "released" : "opened");
        gr_fqueue_wait_ms(&s->changed, 100);
    }
    if (lu && lu->bdev) {
        lu->users++;
        *ret = lu;
        return 0;
    }
    int r = s->dir.lookup(s->dir.arg, disk, initiator, &place, err);
    if (r < 0)
        return r;
    if (!place.bdev && !standby) {
        memcpy(redirect, place.redirect, sizeof place.redirect);
        return -EREMCHG;
    }
    return place_lu(s, disk, &place, ret, err);
}

void tgt_lu_free_all(struct tgt_server *s)
{
    while (s->lus) {
        struct tgt_lu *lu = s->lus;
        s->lus = lu->next;
        lu_close(lu);
        tgt_pr_free(lu);
        free(lu);
    }
}

/* ---- incarnations: one start of a VM may not come back once a later one was seen ---- */

bool tgt_incarnation_split(const char *initiator, char uuid[37], uint64_t *ret_n)
{
    const char *vm = strstr(initiator, ":vm-");
    uint8_t raw[16];
    if (!vm || strlen(vm) < 4 + 36 + 2 || vm[4 + 36] != ':')
        return false;
    memcpy(uuid, vm + 4, 36);
    uuid[36] = 0;
    return gr_uuid_parse(uuid, raw) == 0 && gr_parse_u64(vm + 4 + 37, 0, UINT64_MAX / 2, ret_n, NULL) == 0;
}

static uint64_t highest(const struct tgt_lu *lu, const char *uuid)
{
    const char *at = lu->incarnations ? strstr(lu->incarnations, uuid) : NULL;
    return at ? strtoull(at + 36, NULL, 10) : 0;
}

/* The list with @uuid's number replaced, newest first, bounded. */
static char *updated(const struct tgt_lu *lu, const char *uuid, uint64_t n)
{
    struct gr_buf b = {0};
    unsigned lines = 1;
    gr_buf_printf(&b, "%s %llu\n", uuid, (unsigned long long)n);
    for (const char *p = lu->incarnations; p && *p && lines < INCARNATIONS_MAX;) {
        size_t len = strcspn(p, "\n");
        if (len > 37 && strncmp(p, uuid, 36) != 0) {
            gr_buf_printf(&b, "%.*s\n", (int)len, p);
            lines++;
        }
        p += len + (p[len] == '\n');
    }
    return gr_buf_take(&b);
}

static int incarnation(struct tgt_lu *lu, const char *uuid, uint64_t n, struct gr_err *err)
{
    char other[37];
    uint64_t m;
    if (n < highest(lu, uuid))
        return gr_fail(err, -GR_EFENCED, "disk '%s': start %llu of VM %s is not its latest", lu->disk, (unsigned long long)n, uuid);
    if (n > highest(lu, uuid)) {
        char *list = updated(lu, uuid, n);
        if (!list)
            return gr_fail(err, -ENOMEM, "disk '%s': out of memory", lu->disk);
        int r = lu->has_store ? lu->bdev->ops->attr_set(lu->bdev, INCARNATIONS_ATTR, list, strlen(list), err) : 0;
        if (r < 0) {
            free(list);
            return r;
        }
        free(lu->incarnations);
        lu->incarnations = list;
    }
    struct tgt_sess *next;
    for (struct tgt_sess *o = lu->server->sessions; o; o = next) {
        next = o->next;
        if (o->lu == lu && tgt_incarnation_split(o->initiator, other, &m) && !strcmp(other, uuid) && m < n)
            tgt_sess_close(o, "a later start of the same VM logged in");
    }
    return 0;
}

int tgt_lu_incarnation(struct tgt_lu *lu, const char *initiator, struct gr_err *err)
{
    char uuid[37];
    uint64_t n;
    if (!tgt_incarnation_split(initiator, uuid, &n))
        return 0;
    gr_fmutex_lock(&lu->starts); /* storing suspends, and all are in one list */
    until_opened(lu); /* asked for while it was in standby */
    int r = incarnation(lu, uuid, n, err);
    gr_fmutex_unlock(&lu->starts);
    return r;
}
