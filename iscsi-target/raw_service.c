/* RPC methods that change which raw LUNs there are and where they are served. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/raw_int.h"
#include <string.h>
#include <sys/stat.h>

static int lun_param(struct tgt_raw *raw, json_t *params, struct raw_lun **ret, struct gr_err *err)
{
    const char *name = NULL;
    int r = gr_json_str(params, "lun", &name, err);
    if (r < 0)
        return r;
    *ret = tgt_raw_find(raw, name);
    return *ret ? 0 : gr_fail(err, -ENOENT, "LUN '%s' does not exist ('granary lun add' makes one of a file)", name);
}

static int row_of(const struct raw_lun *l, json_t **ret, struct gr_err *err)
{
    *ret = tgt_raw_row(l);
    return *ret ? 0 : gr_fail(err, -ENOMEM, "out of memory for the answer");
}

/* Nobody serves it when no daemon runs. */
static void close_idle(struct tgt_raw *raw, struct raw_lun *l)
{
    if (!raw->server)
        gr_bdev_put(gr_take(l->bdev));
}

/* ---- add ---- */
static bool same_file(const char *a, const struct stat *sb)
{
    struct stat sa;
    if (stat(a, &sa) < 0)
        return false;
    return (sa.st_dev == sb->st_dev && sa.st_ino == sb->st_ino) || (S_ISBLK(sa.st_mode) && S_ISBLK(sb->st_mode) && sa.st_rdev == sb->st_rdev);
}

static int check_new(struct tgt_raw *raw, const char *name, const char *file, bool sized, struct gr_err *err)
{
    struct stat st;
    int r = tgt_raw_name_check(name, err);
    if (r < 0)
        return r;
    const struct raw_lun *same = tgt_raw_find(raw, name);
    if (same)
        return gr_fail(err, -EEXIST, "LUN '%s' exists already: it is '%s'", name, same->file);
    if (file[0] != '/')
        return gr_fail(err, -GR_EUSAGE, "'%s' is not an absolute path", file);
    bool there = stat(file, &st) == 0;
    for (const struct raw_lun *l = raw->luns; there && l; l = l->next)
        if (same_file(l->file, &st))
            return gr_fail(err, -EEXIST, "'%s' is LUN '%s' already", file, l->name);
    return there || sized ? 0 : gr_fail(err, -ENOENT, "'%s' does not exist: give a size to make a file of it", file);
}

static int choose_uuid(struct tgt_raw *raw, const char *text, uint8_t ret[16], struct gr_err *err)
{
    if (!text) {
        gr_world_real()->random(NULL, ret, 16);
        ret[6] = (uint8_t)((ret[6] & 0x0f) | 0x40);
        ret[8] = (uint8_t)((ret[8] & 0x3f) | 0x80);
        return 0;
    }
    static const uint8_t none[16];
    if (gr_uuid_parse(text, ret) < 0 || memcmp(ret, none, 16) == 0)
        return gr_fail(err, -EINVAL, "'%s' is not a uuid", text);
    for (const struct raw_lun *l = raw->luns; l; l = l->next)
        if (memcmp(l->uuid, ret, 16) == 0)
            return gr_fail(err, -EEXIST, "uuid %s is that of LUN '%s'", text, l->name);
    return 0;
}

static int add(struct tgt_raw *raw, struct raw_lun *l, uint64_t size, struct gr_err *err)
{
    int r = tgt_raw_open(raw, l, size != 0, size, err);
    if (r < 0)
        return r;
    tgt_raw_link(raw, l);
    r = tgt_raw_save(raw, NULL, err);
    if (r == 0)
        return 0;
    tgt_raw_unlink(raw, l);
    gr_auto_free char *store = tgt_raw_store_dir(raw, l);
    if (store)
        tgt_raw_store_remove(store, NULL);
    if (size)
        unlink(l->file); /* made a moment ago, and nobody else's: we hold it */
    return r;
}

static int op_add(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct tgt_raw *raw = arg;
    const char *name = NULL, *file = NULL, *uuid = NULL;
    uint64_t size = 0;
    bool read_only = false;
    int r = gr_json_str(params, "lun", &name, err);
    if (r == 0)
        r = gr_json_str(params, "file", &file, err);
    if (r == 0)
        r = gr_json_opt_u64(params, "size", &size, err);
    if (r == 0)
        r = gr_json_opt_bool(params, "read-only", &read_only, err);
    if (r == 0)
        r = gr_json_opt_str(params, "uuid", &uuid, err);
    if (r == 0 && json_object_get(params, "size") && (!size || size % 4096))
        r = gr_fail(err, -EINVAL, "a LUN of %llu bytes: a multiple of 4096 is needed", (unsigned long long)size);
    if (r < 0)
        return r;
    gr_fmutex_lock(&raw->lock);
    struct raw_lun *l = gr_zalloc(sizeof *l);
    r = check_new(raw, name, file, size != 0, err);
    if (r == 0 && l) {
        l->name = gr_strdup(name);
        l->file = gr_strdup(file);
        l->read_only = read_only;
    }
    if (r == 0 && (!l || !l->name || !l->file))
        r = gr_fail(err, -ENOMEM, "LUN '%s': out of memory", name);
    if (r == 0)
        r = choose_uuid(raw, uuid, l->uuid, err);
    if (r == 0)
        r = add(raw, l, size, err);
    if (r < 0) {
        tgt_raw_lun_free(l);
    } else {
        r = row_of(l, ret, err);
        close_idle(raw, l);
    }
    gr_fmutex_unlock(&raw->lock);
    return r;
}

/* ---- remove and redirect ---- */
/* Its sessions end, or are in the way; the file is closed. Nobody is let in before @l says so. */
static int let_go(struct tgt_raw *raw, struct raw_lun *l, bool only_idle, struct gr_err *err)
{
    l->leaving = true;
    int r = raw->server ? tgt_server_release(raw->server, l->name, only_idle, err) : 0;
    if (r == -EBUSY) {
        r = -GR_ELOCKED;
        if (err)
            err->code = r;
    }
    if (r == 0)
        gr_bdev_put(gr_take(l->bdev));
    else
        l->leaving = false;
    return r;
}

static int op_remove(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct tgt_raw *raw = arg;
    struct raw_lun *l = NULL;
    bool force = false;
    int r = gr_json_opt_bool(params, "force", &force, err);
    if (r < 0)
        return r;
    gr_fmutex_lock(&raw->lock);
    r = lun_param(raw, params, &l, err);
    if (r == 0)
        r = let_go(raw, l, !force, err);
    if (r == 0 && (r = tgt_raw_save(raw, l, err)) < 0)
        l->leaving = false; /* it stays, and is opened again when somebody comes */
    if (r == 0) {
        gr_auto_free char *store = tgt_raw_store_dir(raw, l);
        tgt_raw_unlink(raw, l);
        *ret = json_pack("{s:s,s:s}", "disk", l->name, "file", l->file);
        if (store)
            r = tgt_raw_store_remove(store, err);
        if (r < 0)
            r = gr_prefix(err, -GR_EPARTIAL, "LUN '%s' is removed, but not what was remembered of it", l->name);
        tgt_raw_lun_free(l);
    }
    gr_fmutex_unlock(&raw->lock);
    return r;
}

static bool is_ours(const struct tgt_raw *raw, const char *address)
{
    struct tgt_portal_info info;
    for (unsigned i = 0; raw->server && tgt_server_portal_at(raw->server, i, &info); i++)
        if (strcmp(info.name, address) == 0)
            return true;
    return false;
}

/* Write down that logins to @l go to @to (taken), then act on it. */
static int set_redirect(struct tgt_raw *raw, struct raw_lun *l, char *to, struct gr_err *err)
{
    char *before = l->redirect;
    l->redirect = to;
    int r = tgt_raw_save(raw, NULL, err);
    if (r < 0) {
        l->redirect = before;
        free(to);
        return r;
    }
    free(before);
    return 0;
}

static int op_redirect(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct tgt_raw *raw = arg;
    struct raw_lun *l = NULL;
    const char *to = NULL;
    int r = gr_json_opt_str(params, "to", &to, err);
    if (r == 0 && to)
        r = tgt_raw_address_check(to, err);
    if (r == 0 && to && is_ours(raw, to))
        r = gr_fail(err, -EINVAL, "'%s' is a portal of this host: who is sent there comes back here", to);
    if (r < 0)
        return r;
    gr_auto_free char *copy = to ? gr_strdup(to) : NULL;
    if (to && !copy)
        return gr_fail(err, -ENOMEM, "out of memory");
    gr_fmutex_lock(&raw->lock);
    r = lun_param(raw, params, &l, err);
    if (r == 0 && !to && l->redirect) /* it must be ours before anybody is told so */
        r = tgt_raw_open(raw, l, false, 0, err);
    if (r == 0)
        r = set_redirect(raw, l, gr_take(copy), err);
    if (r == 0 && to) {
        r = let_go(raw, l, false, err);
        l->leaving = false;
        l->why[0] = 0;
    }
    if (r == 0)
        r = row_of(l, ret, err);
    if (l)
        close_idle(raw, l);
    gr_fmutex_unlock(&raw->lock);
    return r;
}

/* ---- limits and size ---- */
static int op_set(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct tgt_raw *raw = arg;
    struct raw_lun *l = NULL;
    gr_fmutex_lock(&raw->lock);
    int r = lun_param(raw, params, &l, err);
    struct tgt_raw_limits before = l ? l->limits : (struct tgt_raw_limits){0};
    if (r == 0)
        r = tgt_raw_read_limits(params, &l->limits, err);
    if (r == 0 && (r = tgt_raw_save(raw, NULL, err)) < 0)
        l->limits = before;
    if (r == 0 && l->bdev)
        tgt_raw_bdev_limit(l->bdev, &l->limits);
    if (r == 0)
        r = row_of(l, ret, err);
    gr_fmutex_unlock(&raw->lock);
    return r;
}

static int op_resize(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct tgt_raw *raw = arg;
    struct raw_lun *l = NULL;
    uint64_t size = 0;
    int r = gr_json_u64(params, "size", &size, err);
    if (r == 0 && (!size || size % 4096))
        r = gr_fail(err, -EINVAL, "a LUN of %llu bytes: a multiple of 4096 is needed", (unsigned long long)size);
    if (r < 0)
        return r;
    gr_fmutex_lock(&raw->lock);
    r = lun_param(raw, params, &l, err);
    if (r == 0 && l->redirect)
        r = gr_fail(err, -GR_ELOCKED, "LUN '%s' is served by %s: resize it there", l->name, l->redirect);
    if (r == 0)
        r = tgt_raw_open(raw, l, false, 0, err);
    if (r == 0 && (r = tgt_raw_bdev_grow(raw->loop, l->bdev, size, err)) < 0)
        gr_prefix(err, r, "LUN '%s'", l->name);
    if (r == 0)
        r = row_of(l, ret, err);
    if (l)
        close_idle(raw, l);
    gr_fmutex_unlock(&raw->lock);
    return r;
}

const struct gr_rpc_method tgt_raw_methods[] = {
    {"lun.add", op_add}, {"lun.remove", op_remove, .destroys = true}, {"lun.resize", op_resize, .destroys = true}, {"lun.set", op_set}, {"lun.redirect", op_redirect}, {NULL, NULL}};
