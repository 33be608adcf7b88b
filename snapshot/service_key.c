/* Methods key.* and what encrypted disks have of their own: disk.rekey, disk.erase. */
#include "snapshot/keyfile.h"
#include "snapshot/service_int.h"
#include <string.h>

#define HOST_MS 60000 /* what another host gets to wrap the keys of one disk in */

int snap_op_encrypt(struct snap_op *op, uint64_t *ret_key)
{
    const char *text = NULL, *file = NULL;
    bool encrypt = false;
    *ret_key = 0;
    int r = gr_json_opt_bool(op->params, "encrypt", &encrypt, op->err);
    if (r == 0)
        r = gr_json_opt_str(op->params, "key", &text, op->err);
    if (r == 0)
        r = gr_json_opt_str(op->params, "key-file", &file, op->err);
    if (r == 0 && !encrypt && (text || file))
        r = gr_fail(op->err, -GR_EUSAGE, "a key is for a disk that is encrypted: add --encrypt");
    if (r < 0 || !encrypt)
        return r;
    if (file)
        return snap_key_import(op->s->o.home, file, ret_key, op->err);
    return text ? snap_key_parse(text, ret_key, op->err) : snap_key_current(op->s->o.home, ret_key, op->err);
}

void snap_key_row(uint64_t key_id, json_t *row)
{
    char text[SNAP_KEY_TEXT] = "";
    bool erased = key_id == VMFS_ERASED;
    if (key_id && !erased)
        snap_key_format(key_id, text);
    json_object_set_new(row, "encrypted", json_boolean(key_id != 0));
    json_object_set_new(row, "key", json_string(erased ? "erased" : text));
}

/* ---- keys ---- */
static int result_id(struct snap_op *op, uint64_t id)
{
    char text[SNAP_KEY_TEXT];
    snap_key_format(id, text);
    return snap_op_result(op, json_pack("{s:s}", "key", text));
}

static int param_key(struct snap_op *op, uint64_t *ret)
{
    const char *text = NULL;
    int r = gr_json_str(op->params, "key", &text, op->err);
    return r == 0 ? snap_key_parse(text, ret, op->err) : r;
}

static int op_key_create(struct snap_op *op)
{
    uint64_t id;
    int r = snap_key_make(op->s->o.home, &id, op->err);
    return r == 0 ? result_id(op, id) : r;
}
SNAP_METHOD(op_key_create, "key.create")

static int op_key_import(struct snap_op *op)
{
    const char *file = NULL;
    uint64_t id;
    int r = gr_json_str(op->params, "file", &file, op->err);
    if (r == 0)
        r = snap_key_import(op->s->o.home, file, &id, op->err);
    return r == 0 ? result_id(op, id) : r;
}
SNAP_METHOD(op_key_import, "key.import")

static int op_key_export(struct snap_op *op)
{
    const char *file = NULL;
    uint64_t id;
    int r = gr_json_str(op->params, "file", &file, op->err);
    if (r == 0)
        r = param_key(op, &id);
    if (r == 0)
        r = snap_key_export(op->s->o.home, id, file, op->err);
    return r == 0 ? result_id(op, id) : r;
}
SNAP_METHOD(op_key_export, "key.export")

static int op_key_use(struct snap_op *op)
{
    uint64_t id;
    int r = param_key(op, &id);
    if (r == 0)
        r = snap_key_use(op->s->o.home, id, op->err);
    return r == 0 ? result_id(op, id) : r;
}
SNAP_METHOD(op_key_use, "key.use")

/* ---- which disks, and files ---- */
struct disks {
    struct snap_ds *ds;
    uint64_t key; /* only those of this one; 0: all that are encrypted */
    json_t *a;    /* of names */
};

static int add_encrypted(void *arg, const char *path, const struct vmfs_stat *st)
{
    struct disks *d = arg;
    if (st->type == VMFS_DIR)
        return SNAP_WALK_INTO;
    if (!st->key_id || st->key_id == VMFS_ERASED || (d->key && st->key_id != d->key))
        return 0;
    gr_auto_free char *name = gr_asprintf("%s/%s", d->ds->name, path);
    return name && json_array_append_new(d->a, json_string(name)) == 0 ? 0 : -ENOMEM;
}

static int encrypted_disks(struct snap_svc *s, uint64_t key, json_t *a, struct gr_err *err)
{
    snap_auto_json json_t *names = json_array();
    json_t *n;
    size_t i;
    for (struct snap_ds *ds = s->list; ds; ds = ds->next)
        json_array_append_new(names, json_string(ds->name));
    json_array_foreach(names, i, n)
    {
        struct disks d = {.key = key, .a = a};
        int r = snap_ds_get(s, json_string_value(n), &d.ds, err);
        if (r == 0) {
            r = snap_walk(d.ds, "", add_encrypted, &d, err);
            snap_ds_put(d.ds);
        }
        if (r < 0)
            return r;
    }
    return 0;
}

struct keys {
    struct snap_svc *s;
    json_t *a;
    uint64_t current;
    struct gr_err *err;
};

static int add_key(void *arg, uint64_t id, int64_t made_s)
{
    struct keys *k = arg;
    char text[SNAP_KEY_TEXT];
    snap_auto_json json_t *disks = json_array();
    int r = encrypted_disks(k->s, id, disks, k->err);
    if (r < 0)
        return r;
    snap_key_format(id, text);
    json_t *row = json_pack("{s:s,s:b,s:I,s:I}", "key", text, "current", id == k->current, "made", (json_int_t)made_s, "disks",
                            (json_int_t)json_array_size(disks));
    return json_array_append_new(k->a, row) < 0 ? -ENOMEM : 0;
}

static int op_key_list(struct snap_op *op)
{
    struct keys k = {.s = op->s, .a = json_array(), .err = op->err};
    if (snap_key_current(op->s->o.home, &k.current, NULL) < 0)
        k.current = 0;
    int r = snap_key_each(op->s->o.home, add_key, &k, op->err);
    if (r == 0)
        return snap_op_result(op, k.a);
    json_decref(k.a);
    return r;
}
SNAP_METHOD(op_key_list, "key.list")

/* Only as far as this host can see: a datastore that it has not joined may need the key all the same. */
static int op_key_delete(struct snap_op *op)
{
    snap_auto_json json_t *disks = json_array();
    uint64_t id;
    int r = param_key(op, &id);
    if (r == 0)
        r = encrypted_disks(op->s, id, disks, op->err);
    if (r == 0 && json_array_size(disks))
        r = gr_fail(op->err, -EBUSY, "%s needs this key: without it nobody can read it (granary disk erase does that to a disk on purpose)",
                    json_string_value(json_array_get(disks, 0)));
    if (r == 0)
        r = snap_key_delete(op->s->o.home, id, op->err);
    return r == 0 ? result_id(op, id) : r;
}
SNAP_METHOD(op_key_delete, "key.delete")

/* ---- new keys for a disk ---- */
struct rewriting {
    struct snap_op *op;
    uint64_t total; /* bytes, about */
    uint64_t told_ns;
};

static int tell_progress(void *arg, uint64_t pieces, struct gr_err *err)
{
    struct rewriting *w = arg;
    uint64_t now = gr_loop_now_ns(w->op->s->o.loop), done = pieces * VMFS_PIECE;
    if (gr_rpc_gone(w->op->call))
        return gr_fail(err, -GR_ECANCELED, "the caller is gone; rekey --resume goes on where this one was");
    if (w->op->s->ending)
        return gr_fail(err, -GR_ECANCELED, "the service ends; rekey --resume goes on where this one was");
    if (now - w->told_ns < SNAP_PROGRESS_NS)
        return 0;
    w->told_ns = now;
    (void)gr_rpc_part(w->op->call, json_pack("{s:I,s:I}", "done", (json_int_t)done, "total", (json_int_t)GR_MAX(done, w->total)));
    return 0;
}

/* A file's content is not written again: it keeps its data key. 1: it is none. */
static int rekey_file(struct snap_op *op, const struct snap_path *p, bool wrap, uint64_t key)
{
    struct snap_ds *ds = NULL;
    struct vmfs_disk *file = NULL;
    struct vmfs_stat st;
    int r = snap_ds_get(op->s, p->ds, &ds, op->err);
    if (r < 0)
        return r;
    r = snap_stat(ds, p->path, &st, op->err);
    if (r < 0 || st.type != VMFS_FILE) {
        snap_ds_put(ds);
        return r < 0 ? r : 1;
    }
    if (!wrap)
        r = gr_fail(op->err, -EINVAL, "%s/%s is a file, whose data key stays as it is: --wrap wraps that with another key", p->ds, p->path);
    if (r == 0)
        r = snap_refuse_foreign(op, ds, p->path);
    if (r == 0)
        r = vmfs_open(ds->v, p->path, &file, NULL, op->err);
    if (r == 0) {
        r = vmfs_keys_rewrap(file, key, op->err);
        vmfs_disk_stat(file, &st);
        vmfs_close(file);
        (void)vmfs_release(ds->v, p->path, NULL); /* unless somebody has it open */
    }
    if (r == 0)
        r = snap_op_result(op, snap_disk_row(ds, p->path, &st));
    snap_ds_put(ds);
    return r;
}

static int op_rekey(struct snap_op *op)
{
    struct snap_path p;
    struct snap_disk d = {0};
    struct vmfs_stat st;
    bool wrap = false, rewrite = false, resume = false;
    const char *text = NULL;
    uint64_t key = 0;
    unsigned left = 0;
    int r = snap_op_path(op, "disk", SNAP_PATH_DISK, &p);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "wrap", &wrap, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "rewrite", &rewrite, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "resume", &resume, op->err);
    rewrite |= resume;
    if (r == 0)
        r = gr_json_opt_str(op->params, "key", &text, op->err);
    if (r == 0 && wrap && rewrite)
        r = gr_fail(op->err, -GR_EUSAGE, "--wrap keeps the data key, --rewrite begins a new one: say which");
    if (r == 0)
        r = text ? snap_key_parse(text, &key, op->err) : snap_key_current(op->s->o.home, &key, op->err);
    if (r == 0 && (r = rekey_file(op, &p, wrap, key)) <= 0)
        return r;
    if (r > 0)
        r = snap_disk_get(op, &p, &d);
    if (r < 0)
        return r;
    if (wrap)
        r = vmfs_keys_rewrap(d.h->disk, key, op->err);
    else if (!resume)
        r = vmfs_keys_rotate(d.h->disk, key, op->err);
    vmfs_disk_stat(d.h->disk, &st);
    struct rewriting w = {.op = op, .total = st.used};
    if (r == 0 && rewrite)
        r = vmfs_keys_rewrite(d.h->disk, tell_progress, &w, &left, op->err);
    if (r == 0)
        r = snap_op_result(op, snap_disk_row(d.ds, d.h->path, &st));
    if (r == 0 && rewrite)
        json_object_set_new(*op->ret, "data-keys", json_integer((json_int_t)left));
    snap_disk_put(&d);
    return r;
}
SNAP_METHOD(op_rekey, "disk.rekey")

/* One disk after the other, here or at its owner: *ret_done counts, *failed gets rows. */
static void rewrap_all(struct snap_op *op, const json_t *disks, const char *key, unsigned *ret_done, json_t *failed)
{
    size_t i;
    json_t *n;
    json_array_foreach(disks, i, n)
    {
        snap_auto_json json_t *params = json_pack("{s:O,s:b,s:s}", "disk", n, "wrap", true, "key", key), *res = NULL;
        struct gr_err err = {0};
        struct snap_op one = {.s = op->s, .method = "disk.rekey", .params = params, .ret = &res, .err = &err};
        int r = params ? op_rekey(&one) : -ENOMEM;
        if (r == -GR_ELOCKED && one.forward)
            r = snap_peer_ask(op->s, one.owner.address, "disk.rekey", json_incref(params), HOST_MS, NULL, &err);
        if (r == 0)
            ++*ret_done;
        else
            json_array_append_new(failed, json_pack("{s:O,s:s}", "disk", n, "error", gr_err_text(&err, r)));
    }
}

/* All disks that this host can reach get their keys wrapped with another key: "key", or a new one. */
static int op_key_rotate(struct snap_op *op)
{
    snap_auto_json json_t *disks = json_array(), *failed = json_array();
    const char *text = NULL;
    char name[SNAP_KEY_TEXT];
    uint64_t id = 0;
    unsigned done = 0;
    int r = gr_json_opt_str(op->params, "key", &text, op->err);
    if (r == 0)
        r = text ? snap_key_parse(text, &id, op->err) : snap_key_make(op->s->o.home, &id, op->err);
    if (r == 0)
        r = snap_key_use(op->s->o.home, id, op->err);
    if (r == 0)
        r = encrypted_disks(op->s, 0, disks, op->err);
    if (r < 0)
        return r;
    snap_key_format(id, name);
    rewrap_all(op, disks, name, &done, failed);
    return snap_op_result(op, json_pack("{s:s,s:i,s:O}", "key", name, "disks", (int)done, "failed", failed));
}
SNAP_METHOD(op_key_rotate, "key.rotate")

/* ---- the end ---- */
/* No key is needed to remove or to erase a disk: then there is nothing to close. 1: it is closed or was never open, @op has the datastore. */
int snap_disk_get_to_end(struct snap_op *op, const struct snap_path *p, const char *what, struct snap_disk *ret, struct vmfs_stat *st)
{
    struct snap_disk d = {0};
    int r = snap_disk_get(op, p, &d);
    if (r == -ENOKEY) {
        r = snap_ds_get(op->s, p->ds, &d.ds, op->err);
        if (r == 0)
            r = vmfs_stat(d.ds->v, p->path, st, op->err);
        if (r == 0 && st->type != VMFS_DISK)
            r = gr_fail(op->err, -EINVAL, "%s/%s is a file, not a disk", p->ds, p->path);
    } else if (r == 0) {
        vmfs_disk_stat(d.h->disk, st);
        r = snap_refuse_in_use(op->s, &d, what, op->err);
        if (r == 0)
            r = snap_disk_drop(op->s, &d, true, op->err);
    }
    if (r < 0)
        snap_disk_put(&d);
    else
        *ret = d;
    return r;
}

static int op_erase(struct snap_op *op)
{
    struct snap_path p;
    struct snap_disk d = {0};
    struct vmfs_stat st;
    int r = snap_op_path(op, "disk", SNAP_PATH_DISK, &p);
    if (r == 0)
        r = snap_disk_get_to_end(op, &p, "be erased", &d, &st);
    if (r < 0)
        return r;
    r = vmfs_keys_erase(d.ds->v, st.id, p.path, op->err);
    snap_disk_put(&d);
    return r;
}
SNAP_METHOD(op_erase, "disk.erase")

const struct gr_rpc_method snap_key_methods[] = {
    {"key.create", rpc_op_key_create}, {"key.list", rpc_op_key_list, true}, {"key.import", rpc_op_key_import}, {"key.export", rpc_op_key_export},
    {"key.use", rpc_op_key_use},       {"key.rotate", rpc_op_key_rotate, .destroys = true},   {"key.delete", rpc_op_key_delete, .destroys = true}, {"disk.rekey", rpc_op_rekey, .destroys = true},
    {"disk.erase", rpc_op_erase, .destroys = true},      {NULL, NULL},
};
