/* The list of raw LUNs and the directory that has them beside what is below. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/raw_int.h"
#include <string.h>

#define STEP_MS 50u
#define WATCH_MS 1000

/* ---- the list ---- */
struct raw_lun *tgt_raw_find(const struct tgt_raw *raw, const char *name)
{
    struct raw_lun *l = raw->luns;
    while (l && strcmp(l->name, name) != 0)
        l = l->next;
    return l;
}

void tgt_raw_link(struct tgt_raw *raw, struct raw_lun *l)
{
    struct raw_lun **p = &raw->luns;
    while (*p && strcmp((*p)->name, l->name) < 0)
        p = &(*p)->next;
    l->next = *p;
    *p = l;
}

void tgt_raw_unlink(struct tgt_raw *raw, struct raw_lun *l)
{
    struct raw_lun **p = &raw->luns;
    while (*p != l)
        p = &(*p)->next;
    *p = l->next;
}

void tgt_raw_lun_free(struct raw_lun *l)
{
    if (!l)
        return;
    gr_bdev_put(l->bdev);
    free(l->name);
    free(l->file);
    free(l->redirect);
    free(l);
}

char *tgt_raw_store_dir(const struct tgt_raw *raw, const struct raw_lun *l)
{
    char uuid[37];
    gr_uuid_format(l->uuid, uuid);
    return gr_asprintf("%s/state/luns/%s", gr_home_dir(raw->home), uuid);
}

/* ---- opening ---- */
int tgt_raw_open(struct tgt_raw *raw, struct raw_lun *l, bool create, uint64_t size, struct gr_err *err)
{
    gr_auto_free char *store = tgt_raw_store_dir(raw, l);
    struct tgt_raw_opts o = {.file = l->file, .store = store, .read_only = l->read_only, .limits = l->limits,
                             .create = create, .size = size};
    struct gr_err why = {0};
    if (l->bdev)
        return 0;
    memcpy(o.uuid, l->uuid, 16);
    int r = store ? tgt_raw_bdev_open(raw->loop, &o, &l->bdev, &why) : gr_fail(&why, -ENOMEM, "out of memory");
    if (r < 0)
        gr_prefix(&why, r, "LUN '%s'", l->name);
    memcpy(l->why, why.text, sizeof l->why);
    return r < 0 ? gr_fail(err, r, "%s", l->why) : 0;
}

static bool held_by_another(int r)
{
    return r == -GR_ELOCKED || r == -EBUSY;
}

static void open_patiently(struct tgt_raw *raw, struct raw_lun *l, uint64_t deadline)
{
    struct gr_err err = {0};
    int r;
    while (held_by_another(r = tgt_raw_open(raw, l, false, 0, &err)) && gr_loop_now_ns(raw->loop) < deadline)
        gr_fiber_sleep_ms(STEP_MS);
    if (r < 0)
        raw->note(raw->note_arg, 3, err.text);
}

static void watch_one(struct tgt_raw *raw, struct raw_lun *l)
{
    struct gr_file_room room;
    struct gr_bdev *bdev = gr_bdev_get(l->bdev);
    if (tgt_raw_bdev_watch(bdev, &room)) {
        gr_auto_free char *text = gr_asprintf("LUN '%s': the file system of '%s' has %llu MiB free, less than %u %% of it, and %llu MiB of the file "
                                              "have no space yet: make room", l->name, l->file, (unsigned long long)(room.free >> 20),
                                              TGT_RAW_LOW_PERCENT, (unsigned long long)(room.missing >> 20));
        if (text)
            raw->note(raw->note_arg, 4, text);
    }
    gr_bdev_put(bdev);
}

static void watch(void *arg)
{
    struct tgt_raw *raw = arg;
    while (!raw->stop) {
        gr_fmutex_lock(&raw->lock);
        for (struct raw_lun *l = raw->luns; l && !raw->stop; l = l->next)
            if (l->bdev)
                watch_one(raw, l);
        gr_fmutex_unlock(&raw->lock);
        if (!raw->stop)
            (void)gr_fqueue_wait_ms(&raw->wake, WATCH_MS);
    }
    raw->watching = false;
    gr_fqueue_wake_all(&raw->ended);
}

int tgt_raw_serve(struct tgt_raw *raw, struct tgt_server *server, void (*note)(void *arg, int level, const char *text), void *note_arg,
                  unsigned patience_ms, struct gr_err *err)
{
    uint64_t deadline = gr_loop_now_ns(raw->loop) + patience_ms * 1000000ull;
    raw->server = server;
    raw->note = note;
    raw->note_arg = note_arg;
    for (struct raw_lun *l = raw->luns; l; l = l->next)
        if (!l->redirect)
            open_patiently(raw, l, deadline);
    int r = gr_fiber_start(raw->loop, watch, raw);
    raw->watching = r == 0;
    return r < 0 ? gr_fail(err, r, "the room below LUNs cannot be watched: %s", gr_code_text(r)) : 0;
}

/* ---- the directory ---- */
static void put_redirect(struct tgt_raw *raw, const struct raw_lun *l, struct tgt_place *ret)
{
    struct tgt_raw_opts o = {.file = l->file, .read_only = l->read_only};
    memcpy(o.uuid, l->uuid, 16);
    snprintf(ret->redirect, sizeof ret->redirect, "%s", l->redirect);
    (void)tgt_raw_bdev_peek(raw->loop, &o, &ret->geometry); /* only a portal that never redirects wants it, and says when there is none */
}

static int lookup(void *arg, const char *disk, const char *initiator, struct tgt_place *ret, struct gr_err *err)
{
    struct tgt_raw *raw = arg;
    struct raw_lun *l = tgt_raw_find(raw, disk);
    struct tgt_place place = {0};
    int r = 0;
    if (!l)
        return raw->below.lookup ? raw->below.lookup(raw->below.arg, disk, initiator, ret, err)
                                 : gr_fail(err, -ENOENT, "'%s' is not served here", disk);
    if (!l->leaving && !l->redirect && !l->bdev) {
        if (!gr_fmutex_trylock(&raw->lock)) /* a removal may wait for whoever asks */
            return gr_fail(err, -GR_ELOCKED, "LUN '%s' cannot be opened now: another change is under way", disk);
        r = tgt_raw_open(raw, l, false, 0, err);
        gr_fmutex_unlock(&raw->lock);
        if (r < 0)
            return -GR_ELOCKED;
    }
    if (l->leaving)
        return gr_fail(err, -GR_ELOCKED, "LUN '%s' is being taken away", disk);
    if (l->redirect)
        put_redirect(raw, l, &place);
    else
        place.bdev = gr_bdev_get(l->bdev);
    *ret = place;
    return 0;
}

static int list(void *arg, int (*each)(void *each_arg, const char *disk), void *each_arg, struct gr_err *err)
{
    struct tgt_raw *raw = arg;
    int r = raw->below.list ? raw->below.list(raw->below.arg, each, each_arg, err) : 0;
    for (struct raw_lun *l = raw->luns, *next; l && r >= 0; l = next) {
        next = l->next;
        r = each(each_arg, l->name);
    }
    return r;
}

static char *nbd_url(void *arg, const char *disk)
{
    struct tgt_raw *raw = arg;
    return !tgt_raw_find(raw, disk) && raw->below.nbd_url ? raw->below.nbd_url(raw->below.arg, disk) : NULL;
}

static char *portal(void *arg, const char *disk)
{
    struct tgt_raw *raw = arg;
    const struct raw_lun *l = tgt_raw_find(raw, disk);
    if (l)
        return l->redirect ? gr_strdup(l->redirect) : NULL;
    return raw->below.portal ? raw->below.portal(raw->below.arg, disk) : NULL;
}

static uint16_t group(void *arg, const char *disk)
{
    struct tgt_raw *raw = arg;
    return !tgt_raw_find(raw, disk) && raw->below.group ? raw->below.group(raw->below.arg, disk) : 0;
}

static int groups(void *arg, const char *disk, struct tgt_group *ret, unsigned max)
{
    struct tgt_raw *raw = arg;
    return !tgt_raw_find(raw, disk) && raw->below.groups ? raw->below.groups(raw->below.arg, disk, ret, max) : 0;
}

static int ask_owner(void *arg, const char *disk, const char *method, json_t *params, json_t **ret, struct gr_err *err)
{
    struct tgt_raw *raw = arg;
    if (!tgt_raw_find(raw, disk) && raw->below.ask_owner)
        return raw->below.ask_owner(raw->below.arg, disk, method, params, ret, err);
    json_decref(params);
    return gr_fail(err, -EOPNOTSUPP, "LUN '%s' has no owner that could be asked", disk);
}

static int tell_hosts(void *arg, const char *disk, const char *method, json_t *params, struct gr_err *err)
{
    struct tgt_raw *raw = arg;
    if (!tgt_raw_find(raw, disk) && raw->below.tell_hosts)
        return raw->below.tell_hosts(raw->below.arg, disk, method, params, err);
    json_decref(params);
    return 0;
}

static void describe_to(void *arg, const char *disk, json_t *row)
{
    struct tgt_raw *raw = arg;
    const struct raw_lun *l = tgt_raw_find(raw, disk);
    json_t *more = l ? tgt_raw_row(l) : NULL;
    if (more)
        json_object_update(row, more);
    else if (raw->below.describe)
        raw->below.describe(raw->below.arg, disk, row);
    json_decref(more);
}

struct tgt_directory tgt_raw_directory(struct tgt_raw *raw)
{
    return (struct tgt_directory){.arg = raw, .lookup = lookup, .list = list, .nbd_url = nbd_url, .portal = portal,
                                  .group = group, .groups = groups, .ask_owner = ask_owner, .tell_hosts = tell_hosts, .describe = describe_to};
}

/* ---- start and end ---- */
int tgt_raw_new(struct gr_loop *loop, struct gr_home *home, const struct tgt_directory *below, struct tgt_raw **ret, struct gr_err *err)
{
    struct tgt_raw *raw = gr_zalloc(sizeof *raw);
    if (!raw)
        return gr_fail(err, -ENOMEM, "the list of LUNs: out of memory");
    raw->loop = loop;
    raw->home = home;
    raw->below = *below;
    int r = tgt_raw_load(raw, err);
    if (r < 0)
        tgt_raw_free(raw);
    else
        *ret = raw;
    return r;
}

void tgt_raw_free(struct tgt_raw *raw)
{
    if (!raw)
        return;
    raw->stop = true;
    gr_fqueue_wake_all(&raw->wake);
    while (raw->watching)
        gr_fqueue_wait(&raw->ended);
    while (raw->luns) {
        struct raw_lun *l = raw->luns;
        raw->luns = l->next;
        tgt_raw_lun_free(l);
    }
    free(raw);
}
