/* Restores: into new disks under a name nobody uses, renamed to the wanted one when whole. */
#include "backup-proxy/intent.h"
#include "backup-proxy/job.h"
#include "backup-proxy/point.h"
#include "backup-proxy/vm_config.h"
#include "backup-proxy/vmdk.h"
#include "common/b64.h"
#include "common/cleanup.h"
#include "common/rpc.h"
#include "common/seam.h"
#include <string.h>

struct restore {
    struct bp_env *env;
    struct bp_repo *repo;
    const char *id;
    struct gr_err *err;
    struct bp_intent *intent;
    char *temp;       /* disk or directory under work */
    const char *what; /* for progress */
    uint64_t done_before, total;
};

static int call(struct restore *x, const char *method, json_t *params, json_t **ret)
{
    json_t *res = NULL;
    int r = params ? x->env->storage(x->env->arg, method, params, NULL, NULL, &res, x->err) : gr_fail(x->err, -ENOMEM, "out of memory");
    if (ret && r == 0)
        *ret = res;
    else
        json_decref(res);
    return r;
}
/* Is there a disk, file or directory at @path? 1 or 0. */
static int exists(struct restore *x, const char *path)
{
    static const char *const methods[][2] = {{"disk.info", "disk"}, {"dir.list", "path"}, {"file.read", "path"}};
    for (unsigned i = 0; i < GR_ARRAY_LEN(methods); i++) {
        json_t *res = NULL;
        struct gr_err e = {0};
        int r = x->env->storage(x->env->arg, methods[i][0], json_pack("{s:s}", methods[i][1], path), NULL, NULL, &res, &e);
        json_decref(res);
        if (r == 0)
            return 1;
        if (r != -ENOENT && r != -ENOTDIR && r != -EISDIR && r != -EINVAL)
            return gr_fail(x->err, r, "%s", gr_err_text(&e, r));
    }
    return 0;
}
static int refuse_existing(struct restore *x, const char *path)
{
    int r = exists(x, path);
    return r > 0 ? gr_fail(x->err, -EEXIST, "'%s' exists already; a restore never writes over anything, give a new name", path) : r;
}
/* A name beside @target that nobody uses. */
static char *temp_name(const char *target)
{
    const struct gr_world *w = gr_world_real();
    uint8_t b[6];
    w->random(w->arg, b, sizeof b);
    return gr_asprintf("%s.restore-%02x%02x%02x%02x%02x%02x", target, b[0], b[1], b[2], b[3], b[4], b[5]);
}

/* ---- one disk ---- */
static int open_target(struct restore *x, const char *path, struct gr_bdev **ret)
{
    json_t *rows = NULL, *row;
    size_t i;
    if (!x->env->daemon(x->env->arg))
        return x->env->open_local(x->env->arg, path, ret, x->err);
    int r = call(x, "lun.list", json_object(), &rows);
    if (r < 0)
        return r;
    gr_auto_free char *url = NULL;
    json_array_foreach(rows, i, row) {
        const char *disk = json_string_value(json_object_get(row, "disk")), *u = json_string_value(json_object_get(row, "nbd-url"));
        if (disk && u && !strcmp(disk, path))
            url = gr_strdup(u);
    }
    json_decref(rows);
    if (!url)
        return gr_fail(x->err, -ENOENT, "the storage daemon offers no data mover for '%s'; start it with \"granary up --mover HOST:PORT\"", path);
    return bp_sink_nbd_open(x->env->loop, url, ret, x->err);
}
static int on_progress(void *arg, uint64_t done, uint64_t total)
{
    struct restore *x = arg;
    if (x->env->progress)
        x->env->progress(x->env->arg, x->what, x->done_before + done, x->total);
    return 0;
}
/* Make the disk @path and fill it from @disk of the point. */
static int fill_disk(struct restore *x, const struct bp_point_disk *d, const char *path)
{
    struct gr_bdev *src = NULL, *dst = NULL;
    struct gr_chan *from = NULL, *to = NULL;
    int r = bp_point_open(x->env->loop, x->repo, x->id, d->name, &src, x->err);
    if (r == 0)
        r = call(x, "disk.create", json_pack("{s:s,s:I,s:s,s:b}", "disk", path, "size", (json_int_t)d->size, "provision", "thin", "encrypt", x->env->encrypt), NULL);
    if (r == 0)
        r = open_target(x, path, &dst);
    if (r == 0 && ((r = gr_chan_open(src, x->env->loop, &from)) < 0 || (r = gr_chan_open(dst, x->env->loop, &to)) < 0))
        gr_fail(x->err, r, "'%s': %s", path, gr_code_text(r));
    if (r == 0)
        r = bp_copy(from, to, true, on_progress, x, x->err);
    gr_chan_close(from);
    gr_chan_close(to);
    gr_bdev_put(src);
    gr_bdev_put(dst);
    x->done_before += d->size;
    return r;
}
static int begin(struct restore *x, const char *target, json_t *disks, json_t *files, json_t *dirs)
{
    json_t *detail = json_pack("{s:s,s:s,s:o,s:o,s:o}", "point", x->id, "target", target, "disks", disks, "files", files, "dirs", dirs);
    int r = detail ? bp_intent_begin(x->env->home, "restore", detail, &x->intent, x->err) : gr_fail(x->err, -ENOMEM, "out of memory");
    json_decref(detail);
    return r;
}
/* Undo at once what failed; what cannot be undone stays recorded. */
static int finish(struct restore *x, int r)
{
    if (!x->intent)
        return r;
    if (r == 0)
        return bp_intent_end(x->intent, x->err);
    gr_auto_free char *id = gr_strdup(bp_intent_id(x->intent));
    bp_intent_free(x->intent);
    if (id && bp_undo_restore(x->env, id, NULL) == 0)
        (void)bp_intent_remove(x->env->home, id, NULL);
    return r;
}

int bp_restore_disk(struct bp_env *env, struct bp_repo *repo, const char *id, const char *disk, const char *target, json_t **ret,
                    struct gr_err *err)
{
    struct gr_err local = {0};
    struct restore x = {.env = env, .repo = repo, .id = id, .err = err ? err : &local, .what = target};
    struct bp_point p = {.doc = NULL};
    struct bp_point_disk d;
    uint64_t began = gr_loop_now_ns(env->loop);
    gr_auto_free char *temp = temp_name(target);
    int r = temp ? bp_recover(env, repo, x.err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r >= 0)
        r = bp_point_load(repo, id, &p, x.err);
    if (r == 0)
        r = bp_point_find_disk(&p, disk, &d, x.err);
    if (r == 0)
        r = refuse_existing(&x, target);
    if (r == 0)
        r = begin(&x, target, json_pack("[s]", temp), json_array(), json_array());
    if (r == 0) {
        x.total = d.size;
        r = fill_disk(&x, &d, temp);
    }
    if (r == 0)
        r = call(&x, "dir.rename", json_pack("{s:s,s:s}", "from", temp, "to", target), NULL);
    r = finish(&x, r);
    if (r == 0)
        *ret = json_pack("{s:s,s:s,s:s,s:I,s:f}", "point", id, "from-disk", d.name, "disk", target, "size", (json_int_t)d.size, "duration",
                         (double)(gr_loop_now_ns(env->loop) - began) / 1e9);
    bp_point_done(&p);
    return r;
}

/* ---- a VM ---- */
static int set_key(char **text, const char *key, const char *value)
{
    struct gr_buf b = {0};
    int r = bp_vm_config_set(*text, key, value, &b);
    if (r < 0) {
        gr_buf_done(&b);
        return r;
    }
    if (!b.data)
        (void)gr_buf_add(&b, "", 1);
    free(*text);
    *text = gr_buf_take(&b);
    return 0;
}
/* The configuration under its new name: new identity, new disks. */
static int new_config(struct restore *x, const struct bp_point *p, const char *target, char **ret)
{
    const char *old = json_string_value(json_object_get(json_object_get(p->doc, "vm"), "config")), *slash = strrchr(target, '/');
    const struct gr_world *w = gr_world_real();
    uint8_t id[16];
    char uuid[37], mac[18];
    if (!old || strlen(old) > BP_VM_CONFIG_MAX)
        return gr_fail(x->err, -GR_EFORMAT, "point '%s' holds no VM; restore its disks with \"granary restore disk\"", p->id);
    w->random(w->arg, id, sizeof id);
    id[6] = (id[6] & 0x0f) | 0x40;
    id[8] = (id[8] & 0x3f) | 0x80;
    gr_uuid_format(id, uuid);
    snprintf(mac, sizeof mac, "52:54:00:%02x:%02x:%02x", id[0], id[1], id[2]);
    gr_auto_free char *text = gr_strdup(old);
    int r = text ? set_key(&text, "displayName", slash ? slash + 1 : target) : -ENOMEM;
    if (r == 0)
        r = set_key(&text, "uuid.bios", uuid);
    if (r == 0)
        r = set_key(&text, "granary.incarnation", NULL);
    gr_auto_free char *had_mac = text ? bp_vm_config_get(text, "ethernet0.address") : NULL;
    if (r == 0 && had_mac)
        r = set_key(&text, "ethernet0.address", mac);
    for (unsigned k = 0; r == 0 && k < BP_VM_DISKS; k++) {
        char key[32];
        snprintf(key, sizeof key, "disk%u.fileName", k);
        gr_auto_free char *path = bp_vm_config_get(text, key);
        for (size_t i = 0; path && r == 0 && i < bp_point_disks(p); i++) {
            struct bp_point_disk d;
            if (bp_point_disk(p, i, &d, NULL) < 0 || strcmp(d.path, path))
                continue;
            gr_auto_free char *now = gr_asprintf("%s/%s", target, d.name);
            r = now ? set_key(&text, key, now) : -ENOMEM;
            break;
        }
    }
    if (r < 0)
        return gr_fail(x->err, r, "cannot write the configuration of '%s'", target);
    *ret = gr_take(text);
    return 0;
}
static int fill_vm(struct restore *x, const struct bp_point *p, const char *target, const char *temp, const char *config)
{
    int r = call(x, "dir.make", json_pack("{s:s}", "path", temp), NULL);
    for (size_t i = 0; r == 0 && i < bp_point_disks(p); i++) {
        struct bp_point_disk d;
        r = bp_point_disk(p, i, &d, x->err);
        gr_auto_free char *path = r == 0 ? gr_asprintf("%s/%s", temp, d.name) : NULL;
        if (r == 0)
            r = path ? fill_disk(x, &d, path) : gr_fail(x->err, -ENOMEM, "out of memory");
    }
    const char *slash = strrchr(target, '/');
    gr_auto_free char *file = gr_asprintf("%s/%s.vmx", temp, slash ? slash + 1 : target);
    gr_auto_free char *b64 = gr_b64_encode(config, strlen(config));
    if (r == 0)
        r = call(x, "file.write", file && b64 ? json_pack("{s:s,s:s}", "path", file, "data-b64", b64) : NULL, NULL);
    if (r == 0)
        r = call(x, "dir.rename", json_pack("{s:s,s:s}", "from", temp, "to", target), NULL);
    return r;
}
static int begin_vm(struct restore *x, const struct bp_point *p, const char *target, const char *temp)
{
    json_t *disks = json_array(), *files = json_array();
    const char *slash = strrchr(target, '/');
    int r = 0;
    for (size_t i = 0; r == 0 && i < bp_point_disks(p); i++) {
        struct bp_point_disk d;
        r = bp_point_disk(p, i, &d, x->err);
        gr_auto_free char *path = r == 0 ? gr_asprintf("%s/%s", temp, d.name) : NULL;
        if (path)
            json_array_append_new(disks, json_string(path));
        x->total += r == 0 ? d.size : 0;
    }
    gr_auto_free char *file = gr_asprintf("%s/%s.vmx", temp, slash ? slash + 1 : target);
    json_array_append_new(files, json_string(file ? file : ""));
    if (r < 0) {
        json_decref(disks);
        json_decref(files);
        return r;
    }
    return begin(x, target, disks, files, json_pack("[s]", temp));
}
int bp_restore_vm(struct bp_env *env, struct bp_repo *repo, const char *id, const char *target, json_t **ret, struct gr_err *err)
{
    struct gr_err local = {0};
    struct restore x = {.env = env, .repo = repo, .id = id, .err = err ? err : &local, .what = target};
    struct bp_point p = {.doc = NULL};
    uint64_t began = gr_loop_now_ns(env->loop);
    gr_auto_free char *temp = temp_name(target), *config = NULL;
    int r = temp ? bp_recover(env, repo, x.err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r >= 0 && (!strchr(target, '/') || strpbrk(target, "@:")))
        r = gr_fail(x.err, -GR_EUSAGE, "'%s' is no name for a VM (DATASTORE/NAME)", target);
    if (r >= 0)
        r = bp_point_load(repo, id, &p, x.err);
    if (r == 0)
        r = new_config(&x, &p, target, &config);
    if (r == 0)
        r = refuse_existing(&x, target);
    if (r == 0)
        r = begin_vm(&x, &p, target, temp);
    if (r == 0)
        r = fill_vm(&x, &p, target, temp, config);
    r = finish(&x, r);
    if (r == 0) {
        json_t *res = NULL;
        struct gr_err e = {0};
        int h = env->host(env->arg, "vm.register", json_pack("{s:s}", "vm", target), &res, &e);
        json_decref(res);
        if (h < 0 && h != -ENOENT && h != -ECONNREFUSED && env->warn)
            env->warn(env->arg, gr_err_text(&e, h)); /* it is there; naming it in full registers it later */
        *ret = json_pack("{s:s,s:s,s:I,s:f}", "point", id, "vm", target, "size", (json_int_t)x.total, "duration",
                         (double)(gr_loop_now_ns(env->loop) - began) / 1e9);
    }
    bp_point_done(&p);
    return r;
}
