#include "backup-proxy/mount_datastore.h"
#include "backup-proxy/fs_proto.h"
#include "common/b64.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/log.h"
#include "common/rpc.h"
#include "common/seam.h"
#include <stdio.h>
#include <string.h>

#define FRESH_NS 1000000000ull /* how long a listing is believed */
#define DISK_BLOCK 4096u

enum kind { ROOT, DIRECTORY, FILE_KIND, DISK };

/* What has been seen under a path; its index + 1 is the object's inode. Kept while the mount lives. */
struct thing {
    char *path; /* in the datastore */
    enum kind kind;
    uint64_t size, used;
    int64_t mtime;
};
struct names { /* last listing of one directory */
    uint64_t dir;  /* inode */
    uint64_t when; /* loop time, ns */
    uint64_t *inodes;
    size_t n;
};
struct store {
    struct gr_loop *loop;
    struct mount_datastore_opts opts;
    char *name;
    struct thing *things;
    size_t n, cap;
    struct names recent[16];
    unsigned turn;
};
struct handle {
    struct mount_obj obj;
    uint64_t *inodes; /* directory */
    size_t n;
    char *data;       /* file */
    size_t len;
    struct gr_bdev *bdev; /* disk */
    struct gr_chan *chan;
    uint64_t size;
};

static int to_fuse(int rc, const struct gr_err *err)
{
    if (rc < 0 && rc != -ENOENT && rc != -ENOMEM)
        gr_log_limited(GR_LOG_WARN, "%s", gr_err_text(err, rc));
    return rc;
}

static const struct thing *thing_of(const struct store *s, const struct mount_obj *o)
{
    return o->inode >= 1 && o->inode <= s->n ? &s->things[o->inode - 1] : NULL;
}

/* Number of @path, made at its first sight; 0: out of memory. */
static uint64_t intern(struct store *s, const char *path, const struct thing *now)
{
    for (size_t i = 0; i < s->n; i++)
        if (strcmp(s->things[i].path, path) == 0) {
            char *keep = s->things[i].path;
            s->things[i] = *now;
            s->things[i].path = keep;
            return i + 1;
        }
    if (s->n == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 64;
        struct thing *t = gr_realloc(s->things, cap * sizeof *t);
        if (!t)
            return 0;
        s->things = t;
        s->cap = cap;
    }
    char *copy = gr_strdup(path);
    if (!copy)
        return 0;
    s->things[s->n] = *now;
    s->things[s->n].path = copy;
    return ++s->n;
}

static void own_stat(const struct store *s, const struct mount_obj *o, struct stat *st)
{
    const struct thing *t = thing_of(s, o);
    *st = (struct stat){.st_mode = S_IFDIR | 0755, .st_nlink = 2, .st_uid = s->opts.uid, .st_gid = s->opts.gid, .st_blksize = 4096,
                        .st_ino = (ino_t)(o->inode + 1)};
    if (!t)
        return;
    st->st_mtim.tv_sec = st->st_ctim.tv_sec = st->st_atim.tv_sec = t->mtime;
    if (t->kind == DIRECTORY)
        return;
    st->st_mode = S_IFREG | (t->kind == DISK ? 0440 : 0444);
    st->st_nlink = 1;
    st->st_size = (off_t)t->size;
    st->st_blocks = (blkcnt_t)(t->used / 512);
}

/* ---- listings ---- */
static int add_row(struct store *s, const char *dir, json_t *row, uint64_t *ret)
{
    const char *name = json_string_value(json_object_get(row, "name")), *type = json_string_value(json_object_get(row, "type"));
    if (!name || !type || !fs_name_ok(name, strlen(name)))
        return -GR_EPROTO;
    struct thing t = {.kind = strcmp(type, "dir") == 0 ? DIRECTORY : strcmp(type, "disk") == 0 ? DISK : FILE_KIND,
                      .size = (uint64_t)json_integer_value(json_object_get(row, "size")),
                      .used = (uint64_t)json_integer_value(json_object_get(row, "used")),
                      .mtime = json_integer_value(json_object_get(row, "mtime"))};
    gr_auto_free char *path = gr_asprintf("%s%s%s", dir, *dir ? "/" : "", name);
    uint64_t inode = path ? intern(s, path, &t) : 0;
    if (!inode)
        return -ENOMEM;
    *ret = inode;
    return 0;
}

static int ask_list(struct store *s, const char *dir, uint64_t **ret, size_t *ret_n)
{
    struct gr_err err = {0};
    json_t *rows = NULL;
    gr_auto_free char *path = gr_asprintf("%s%s%s", s->name, *dir ? "/" : "", dir);
    if (!path)
        return -ENOMEM;
    int rc = s->opts.call(s->opts.arg, "dir.list", json_pack("{s:s}", "path", path), &rows, &err);
    if (rc < 0)
        return to_fuse(rc, &err);
    size_t n = json_array_size(rows);
    uint64_t *inodes = gr_zalloc((n + 1) * sizeof *inodes);
    rc = inodes ? 0 : -ENOMEM;
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = add_row(s, dir, json_array_get(rows, i), &inodes[i]);
    json_decref(rows);
    if (rc < 0) {
        free(inodes);
        return rc;
    }
    *ret = inodes;
    *ret_n = n;
    return 0;
}

/* The directory's listing, at most FRESH_NS old; borrowed until the next suspension. */
static int list(struct store *s, uint64_t dir, const struct names **ret)
{
    uint64_t now = gr_loop_now_ns(s->loop);
    for (size_t i = 0; i < GR_ARRAY_LEN(s->recent); i++)
        if (s->recent[i].inodes && s->recent[i].dir == dir && now - s->recent[i].when < FRESH_NS) {
            *ret = &s->recent[i];
            return 0;
        }
    uint64_t *inodes = NULL;
    size_t n = 0;
    int rc = ask_list(s, dir ? s->things[dir - 1].path : "", &inodes, &n);
    if (rc < 0)
        return rc;
    struct names *l = &s->recent[s->turn++ % GR_ARRAY_LEN(s->recent)];
    free(l->inodes);
    *l = (struct names){.dir = dir, .when = gr_loop_now_ns(s->loop), .inodes = inodes, .n = n};
    *ret = l;
    return 0;
}

static const char *base(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void found(const struct store *s, uint64_t inode, struct mount_found *ret)
{
    *ret = (struct mount_found){.obj = {.kind = s->things[inode - 1].kind, .inode = inode}};
    own_stat(s, &ret->obj, &ret->st);
}

static int store_lookup(void *view, const struct mount_obj *dir, const char *name, struct mount_found *ret)
{
    struct store *s = view;
    const struct names *l = NULL;
    int rc = list(s, dir->inode, &l);
    for (size_t i = 0; rc == 0 && i < l->n; i++)
        if (strcmp(base(s->things[l->inodes[i] - 1].path), name) == 0) {
            found(s, l->inodes[i], ret);
            return 0;
        }
    return rc < 0 ? rc : -ENOENT;
}

static int store_getattr(void *view, const struct mount_obj *o, struct stat *ret)
{
    struct store *s = view;
    struct mount_found f;
    const struct thing *t = thing_of(s, o);
    if (!t) {
        own_stat(s, o, ret);
        return 0;
    }
    gr_auto_free char *path = gr_strdup(t->path);
    if (!path)
        return -ENOMEM;
    const char *name = base(path);
    struct mount_obj parent = {0};
    if (name != path) { /* the parent was seen before */
        gr_auto_free char *up = gr_asprintf("%.*s", (int)(name - path - 1), path);
        for (size_t i = 0; up && i < s->n; i++)
            if (strcmp(s->things[i].path, up) == 0)
                parent.inode = i + 1;
        if (!parent.inode)
            return -ENOENT;
    }
    int rc = store_lookup(s, &parent, name, &f);
    if (rc == 0)
        *ret = f.st;
    return rc;
}

static int store_readlink(void *view, const struct mount_obj *o, char *buf, size_t cap)
{
    return -EINVAL;
}

/* ---- directories ---- */
static int store_opendir(void *view, const struct mount_obj *o, void **ret)
{
    struct store *s = view;
    struct handle *h = gr_zalloc(sizeof *h);
    int rc = !h ? -ENOMEM : ask_list(s, o->inode ? s->things[o->inode - 1].path : "", &h->inodes, &h->n);
    if (rc < 0) {
        free(h);
        return rc;
    }
    *ret = h;
    return 0;
}

static int store_entry(void *view, void *dir, uint64_t i, const char **ret_name, struct mount_found *ret)
{
    struct store *s = view;
    const struct handle *h = dir;
    if (i >= h->n)
        return 0;
    *ret_name = base(s->things[h->inodes[i] - 1].path);
    found(s, h->inodes[i], ret);
    return 1;
}

static void store_close(void *view, void *file)
{
    struct handle *h = file;
    gr_chan_close(h->chan);
    gr_bdev_put(h->bdev);
    free(h->inodes);
    free(h->data);
    free(h);
}

/* ---- files and disks ---- */
static int open_file(struct store *s, const char *path, struct handle *h, struct gr_err *err)
{
    json_t *reply = NULL;
    const char *text = NULL;
    gr_auto_buf struct gr_buf data = {0};
    int rc = s->opts.call(s->opts.arg, "file.read", json_pack("{s:s}", "path", path), &reply, err);
    if (rc == 0)
        rc = gr_json_str(reply, "data-b64", &text, err);
    if (rc == 0)
        rc = gr_b64_decode(text, strlen(text), &data);
    json_decref(reply);
    if (rc < 0)
        return rc;
    h->len = data.len;
    h->data = gr_buf_take(&data);
    return 0;
}

static int open_disk(struct store *s, const char *path, struct handle *h, struct gr_err *err)
{
    struct gr_geometry g = {0};
    int rc = s->opts.open_disk(s->opts.arg, path, &h->bdev, err);
    if (rc == 0)
        rc = gr_bdev_geometry(h->bdev, &g);
    if (rc == 0)
        rc = gr_chan_open(h->bdev, s->loop, &h->chan);
    h->size = g.size;
    return rc;
}

static int store_open(void *view, const struct mount_obj *o, void **ret)
{
    struct store *s = view;
    const struct thing *t = thing_of(s, o);
    struct gr_err err = {0};
    if (!t || t->kind == DIRECTORY)
        return -EISDIR;
    bool disk = t->kind == DISK;
    gr_auto_free char *path = gr_asprintf("%s/%s", s->name, t->path);
    struct handle *h = gr_zalloc(sizeof *h);
    int rc = !path || !h ? -ENOMEM : disk ? open_disk(s, path, h, &err) : open_file(s, path, h, &err);
    if (rc < 0) {
        if (h)
            store_close(s, h);
        return to_fuse(rc, &err);
    }
    h->obj = *o;
    *ret = h;
    return 0;
}

/* A disk is read in whole blocks. */
static int64_t read_disk(struct handle *h, void *buf, size_t len, uint64_t off)
{
    if (off >= h->size)
        return 0;
    len = (size_t)GR_MIN((uint64_t)len, h->size - off);
    uint64_t from = off / DISK_BLOCK * DISK_BLOCK;
    uint64_t to = GR_MIN(h->size, (off + len + DISK_BLOCK - 1) / DISK_BLOCK * DISK_BLOCK);
    gr_auto_free uint8_t *b = gr_alloc_aligned(DISK_BLOCK, (size_t)(to - from));
    int rc = b ? gr_pread(h->chan, b, (size_t)(to - from), from) : -ENOMEM;
    if (rc < 0)
        return rc;
    memcpy(buf, b + (off - from), len);
    return (int64_t)len;
}

static int64_t store_read(void *view, void *file, void *buf, size_t len, uint64_t off)
{
    struct handle *h = file;
    if (h->chan)
        return read_disk(h, buf, len, off);
    size_t n = off < h->len ? GR_MIN(len, h->len - (size_t)off) : 0;
    if (n)
        memcpy(buf, h->data + off, n);
    return (int64_t)n;
}

static void store_free(void *view)
{
    struct store *s = view;
    for (size_t i = 0; i < s->n; i++)
        free(s->things[i].path);
    for (size_t i = 0; i < GR_ARRAY_LEN(s->recent); i++)
        free(s->recent[i].inodes);
    free(s->things);
    free(s->name);
    free(s);
}

static const struct mount_view_ops store_ops = {
    .getattr = store_getattr, .lookup = store_lookup, .readlink = store_readlink, .opendir = store_opendir, .entry = store_entry,
    .closedir = store_close, .open = store_open, .read = store_read, .close = store_close, .free = store_free,
};

int mount_datastore_new(struct gr_loop *loop, const struct mount_datastore_opts *opts, struct mount_view *ret, struct gr_err *err)
{
    json_t *rows = NULL;
    int rc = opts->call(opts->arg, "dir.list", json_pack("{s:s}", "path", opts->name), &rows, err);
    json_decref(rows);
    if (rc < 0)
        return rc;
    struct store *s = gr_zalloc(sizeof *s);
    if (s) {
        s->loop = loop;
        s->opts = *opts;
        s->name = gr_strdup(opts->name);
    }
    if (!s || !s->name) {
        free(s);
        return gr_fail(err, -ENOMEM, "cannot show the datastore '%s': out of memory", opts->name);
    }
    *ret = (struct mount_view){.ops = &store_ops, .impl = s};
    return 0;
}
