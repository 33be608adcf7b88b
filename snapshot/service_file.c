/* Methods dir.* and file.*: the small files beside the disks (VM configurations, notes, state). */
#include "common/b64.h"
#include "common/buf.h"
#include "snapshot/keyfile.h"
#include "snapshot/service_int.h"
#include <string.h>

static const char *type_name(enum vmfs_type t)
{
    switch (t) {
    case VMFS_DIR:
        return "dir";
    case VMFS_FILE:
        return "file";
    case VMFS_DISK:
        return "disk";
    }
    return "unknown";
}

struct rows {
    struct snap_ds *ds;
    json_t *a;
    bool files_below; /* files of all folders; else everything of one folder */
};

static json_t *entry_row(struct snap_ds *ds, const char *path, const struct vmfs_stat *st)
{
    const char *slash = strrchr(path, '/');
    gr_auto_free char *full = path[0] ? gr_asprintf("%s/%s", ds->name, path) : gr_strdup(ds->name);
    json_t *row = json_pack("{s:s,s:s,s:s,s:I,s:I,s:I,s:I}", "name", slash ? slash + 1 : path, "path", full ? full : path, "type", type_name(st->type),
                     "id", (json_int_t)st->id, "size", (json_int_t)st->size, "used", (json_int_t)st->used, "mtime", (json_int_t)st->mtime_s);
    if (row && st->type != VMFS_DIR)
        snap_key_row(st->key_id, row);
    return row;
}

static int add_row(void *arg, const char *path, const struct vmfs_stat *st)
{
    struct rows *l = arg;
    if (l->files_below && st->type != VMFS_FILE)
        return SNAP_WALK_INTO;
    return json_array_append_new(l->a, entry_row(l->ds, path, st)) < 0 ? -ENOMEM : 0;
}

static int list(struct snap_op *op, bool files_below)
{
    struct snap_path p;
    snap_auto_json json_t *a = json_array();
    struct rows l = {.a = a, .files_below = files_below};
    int r = snap_op_path_ds(op, "path", SNAP_PATH_DIR, &p, &l.ds);
    if (r < 0)
        return r;
    r = snap_walk(l.ds, p.path, add_row, &l, op->err);
    snap_ds_put(l.ds);
    if (r < 0)
        return op->err->code ? r : gr_fail(op->err, r, "%s/%s: %s", p.ds, p.path, gr_code_text(r));
    return snap_op_result(op, gr_take(a));
}

static int op_dir_list(struct snap_op *op)
{
    return list(op, false);
}
SNAP_METHOD(op_dir_list, "dir.list")

static int op_file_list(struct snap_op *op)
{
    return list(op, true);
}
SNAP_METHOD(op_file_list, "file.list")

static bool key_here(struct snap_svc *s, uint64_t id)
{
    uint8_t key[SNAP_KEY_BYTES];
    bool here = snap_key_find(s->o.home, id, key) == 0;
    explicit_bzero(key, sizeof(key));
    return here;
}

static int op_dir_stat(struct snap_op *op)
{
    struct snap_path p;
    struct snap_ds *ds = NULL;
    struct vmfs_stat st;
    int r = snap_op_path_ds(op, "path", SNAP_PATH_DIR, &p, &ds);
    if (r < 0)
        return r;
    r = snap_stat(ds, p.path, &st, op->err);
    json_t *o = r == 0 ? entry_row(ds, p.path, &st) : NULL;
    if (o && st.key_id)
        json_object_set_new(o, "key-here", json_boolean(key_here(op->s, st.key_id)));
    snap_ds_put(ds);
    return r < 0 ? r : snap_op_result(op, o);
}
SNAP_METHOD(op_dir_stat, "dir.stat")

static int op_dir_make(struct snap_op *op)
{
    struct snap_path p;
    struct snap_ds *ds = NULL;
    int r = snap_op_path_ds(op, "path", SNAP_PATH_DISK, &p, &ds);
    if (r < 0)
        return r;
    r = vmfs_mkdir(ds->v, p.path, true, op->err);
    snap_ds_put(ds);
    return r;
}
SNAP_METHOD(op_dir_make, "dir.make")

int snap_refuse_foreign(struct snap_op *op, struct snap_ds *ds, const char *path)
{
    int r = snap_owner_of(ds, path, &op->owner, op->err);
    if (r <= 0)
        return r;
    op->forward = op->owner.address[0] != 0;
    return gr_fail(op->err, -GR_ELOCKED, "%s/%s is owned by host '%s'", ds->name, path, op->owner.host);
}

/* What was refused since somebody has the object open is said of its owner, where that is another host. */
static int refuse_locked(struct snap_op *op, struct snap_ds *ds, const char *path)
{
    struct gr_err locked = *op->err;
    int r = snap_refuse_foreign(op, ds, path);
    return r == 0 ? gr_fail(op->err, -GR_ELOCKED, "%s", locked.text) : r;
}

static bool is_below(const char *path, const char *dir)
{
    size_t n = strlen(dir);
    return strncmp(path, dir, n) == 0 && (path[n] == 0 || path[n] == '/');
}

/* Close what is open at or below @path, if nobody uses it. */
int snap_close_below(struct snap_svc *s, struct snap_ds *ds, const char *path, struct gr_err *err)
{
    for (struct snap_handle *h = ds->handles; h;) {
        if (!is_below(h->path, path)) {
            h = h->next;
            continue;
        }
        struct snap_disk d = {.ds = ds, .h = h};
        h->users++;
        int r = snap_refuse_in_use(s, &d, "be renamed or removed", err);
        if (r == 0)
            r = snap_disk_drop(s, &d, true, err);
        if (r < 0) {
            h->users--;
            return r;
        }
        h = ds->handles; /* the list may have changed while it suspended */
    }
    return 0;
}

static int op_rename(struct snap_op *op)
{
    struct snap_path from, to;
    struct snap_ds *ds = NULL;
    int r = snap_op_path(op, "from", SNAP_PATH_DISK, &from);
    if (r == 0)
        r = snap_op_path(op, "to", SNAP_PATH_DISK, &to);
    if (r == 0 && strcmp(from.ds, to.ds) != 0)
        r = gr_fail(op->err, -EXDEV, "'%s' and '%s' are different datastores: a rename stays within one", from.ds, to.ds);
    if (r == 0)
        r = snap_ds_get(op->s, from.ds, &ds, op->err);
    if (r < 0)
        return r;
    r = snap_refuse_foreign(op, ds, from.path);
    if (r == 0)
        r = snap_close_below(op->s, ds, from.path, op->err);
    if (r == 0)
        r = vmfs_rename(ds->v, from.path, to.path, op->err);
    snap_ds_put(ds);
    return r;
}
SNAP_METHOD(op_rename, "dir.rename")

static int op_remove(struct snap_op *op)
{
    struct snap_path p;
    struct snap_ds *ds = NULL;
    struct vmfs_stat st;
    int r = snap_op_path_ds(op, "path", SNAP_PATH_DISK, &p, &ds);
    if (r < 0)
        return r;
    r = vmfs_stat(ds->v, p.path, &st, op->err);
    if (r == 0 && st.type == VMFS_DISK)
        r = gr_fail(op->err, -EINVAL, "%s/%s is a disk: granary disk delete removes it", p.ds, p.path);
    if (r == 0)
        r = snap_refuse_foreign(op, ds, p.path);
    if (r == 0)
        r = snap_close_below(op->s, ds, p.path, op->err);
    if (r == 0)
        r = vmfs_remove_object(ds->v, p.path, st.id, op->err);
    if (r == 0 && st.type == VMFS_DIR)
        snap_policy_forget(ds, st.uuid);
    snap_ds_put(ds);
    return r;
}
SNAP_METHOD(op_remove, "dir.remove")

static int result_bytes(struct snap_op *op, const void *data, size_t len, uint64_t size)
{
    gr_auto_free char *text = gr_b64_encode(data, len);
    return snap_op_result(op, text ? json_pack("{s:s,s:I}", "data-b64", text, "size", (json_int_t)size) : NULL);
}

/* A range of a disk as it is now; whole sectors are read around it. */
static int read_disk(struct snap_op *op, const struct snap_path *p, uint64_t off, uint64_t len)
{
    struct snap_disk d = {0};
    struct gr_chan *ch = NULL;
    struct gr_geometry g;
    int r = snap_disk_get(op, p, &d);
    if (r < 0)
        return r;
    struct gr_bdev *bdev = vmfs_bdev(d.h->disk);
    r = gr_bdev_geometry(bdev, &g);
    if (r == 0)
        r = gr_chan_open(bdev, op->s->o.loop, &ch);
    uint64_t end = 0, first = 0, last = 0;
    if (r == 0) {
        off = GR_MIN(off, g.size);
        end = off + GR_MIN(len, GR_MIN(g.size - off, (uint64_t)SNAP_FILE_MAX));
        first = off / 512 * 512;
        last = (end + 511) / 512 * 512; /* a disk's size is a multiple of it */
    }
    gr_auto_free uint8_t *buf = r == 0 ? gr_alloc_aligned(4096, (size_t)(last - first) + 512) : NULL;
    if (r == 0 && !buf)
        r = -ENOMEM;
    if (r == 0 && last > first)
        r = gr_pread(ch, buf, (size_t)(last - first), first);
    gr_chan_close(ch);
    snap_disk_put(&d);
    if (r < 0)
        return gr_fail(op->err, r, "%s/%s: %llu bytes at %llu cannot be read: %s", p->ds, p->path, (unsigned long long)(end - off),
                       (unsigned long long)off, gr_code_text(r));
    return result_bytes(op, buf + (off - first), (size_t)(end - off), g.size);
}

static int op_file_read(struct snap_op *op)
{
    struct snap_path p;
    struct vmfs_stat st = {0};
    struct snap_ds *ds = NULL;
    uint64_t off = 0, len = SNAP_FILE_MAX;
    gr_auto_free void *data = NULL;
    size_t size = 0;
    int r = snap_op_path(op, "path", SNAP_PATH_DISK, &p);
    if (r == 0)
        r = gr_json_opt_u64(op->params, "offset", &off, op->err);
    if (r == 0)
        r = gr_json_opt_u64(op->params, "length", &len, op->err);
    if (r == 0)
        r = snap_ds_get(op->s, p.ds, &ds, op->err);
    if (r < 0)
        return r;
    r = vmfs_stat(ds->v, p.path, &st, op->err);
    if (r < 0 || st.type == VMFS_DISK) {
        snap_ds_put(ds);
        return r < 0 ? r : read_disk(op, &p, off, len);
    }
    r = vmfs_file_read(ds->v, p.path, SNAP_FILE_MAX, &data, &size, op->err);
    if (r == -GR_ELOCKED)
        r = refuse_locked(op, ds, p.path);
    snap_ds_put(ds);
    if (r < 0)
        return r;
    off = GR_MIN(off, size);
    len = GR_MIN(len, size - off);
    return result_bytes(op, (char *)data + off, len, size);
}
SNAP_METHOD(op_file_read, "file.read")

static int op_file_write(struct snap_op *op)
{
    struct snap_path p;
    struct snap_ds *ds = NULL;
    const char *text = NULL;
    gr_auto_buf struct gr_buf b = {0};
    int r = snap_op_path(op, "path", SNAP_PATH_DISK, &p);
    if (r == 0)
        r = gr_json_str(op->params, "data-b64", &text, op->err);
    if (r < 0)
        return r;
    r = gr_b64_decode(text, strlen(text), &b);
    if (r < 0)
        return gr_fail(op->err, r, "%s/%s: \"data-b64\" is no valid base64 text", p.ds, p.path);
    if (b.len > SNAP_FILE_MAX)
        return gr_fail(op->err, -EFBIG, "%s/%s: %zu bytes; at most %u can be written at once", p.ds, p.path, b.len, SNAP_FILE_MAX);
    r = snap_ds_get(op->s, p.ds, &ds, op->err);
    if (r < 0)
        return r;
    r = vmfs_file_write(ds->v, p.path, SNAP_TMP_DIR, b.data ? b.data : "", b.len, op->err);
    if (r == -GR_ELOCKED)
        r = refuse_locked(op, ds, p.path);
    snap_ds_put(ds);
    return r;
}
SNAP_METHOD(op_file_write, "file.write")

const struct gr_rpc_method snap_file_methods[] = {
    {"dir.list", rpc_op_dir_list, true}, {"dir.stat", rpc_op_dir_stat, true}, {"dir.make", rpc_op_dir_make},   {"dir.rename", rpc_op_rename},      {"dir.remove", rpc_op_remove, .destroys = true},
    {"file.read", rpc_op_file_read, true}, {"file.write", rpc_op_file_write}, {"file.list", rpc_op_file_list, true}, {NULL, NULL},
};
