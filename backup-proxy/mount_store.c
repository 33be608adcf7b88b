#include "backup-proxy/mount_store.h"
#include "common/b64.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "common/seam.h"
#include <string.h>

#define WINDOW (1u << 20) /* bytes fetched at once */

/* Paths get a number when the kernel first hears of them and keep it; number 0 is the root. */
struct store {
    struct mount_store_opts o;
    char *root;
    json_t *numbers; /* path → number */
    char **paths;
    size_t n, cap;
};
struct store_dir {
    json_t *rows;
};
struct store_file {
    char *path;
    struct gr_fmutex lock; /* the kernel reads ahead: several requests at once */
    uint64_t off;          /* of the window */
    struct gr_buf window;
};

static const char *path_of(const struct store *s, const struct mount_obj *o)
{
    return o->inode < s->n ? s->paths[o->inode] : NULL;
}

static int number_of(struct store *s, const char *path, uint64_t *ret)
{
    json_t *known = json_object_get(s->numbers, path);
    if (known) {
        *ret = (uint64_t)json_integer_value(known);
        return 0;
    }
    if (s->n == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 64;
        char **paths = gr_realloc(s->paths, cap * sizeof(*paths));
        if (!paths)
            return -ENOMEM;
        s->paths = paths;
        s->cap = cap;
    }
    char *copy = gr_strdup(path);
    if (!copy || json_object_set_new(s->numbers, path, json_integer((json_int_t)s->n)) < 0) {
        free(copy);
        return -ENOMEM;
    }
    s->paths[s->n] = copy;
    *ret = s->n++;
    return 0;
}

static void row_stat(const struct store *s, json_t *row, struct stat *ret)
{
    bool dir = strcmp(json_string_value(json_object_get(row, "type")), "dir") == 0;
    struct stat st = {
        .st_ino = (ino_t)json_integer_value(json_object_get(row, "id")),
        .st_mode = dir ? S_IFDIR | 0555 : S_IFREG | 0444,
        .st_nlink = 1,
        .st_uid = s->o.uid,
        .st_gid = s->o.gid,
        .st_size = dir ? 0 : (off_t)json_integer_value(json_object_get(row, "size")),
        .st_blocks = (blkcnt_t)(json_integer_value(json_object_get(row, "used")) + 511) / 512,
        .st_blksize = 4096,
    };
    st.st_mtim.tv_sec = st.st_ctim.tv_sec = st.st_atim.tv_sec = (time_t)json_integer_value(json_object_get(row, "mtime"));
    *ret = st;
}

static bool row_ok(json_t *row)
{
    return json_is_string(json_object_get(row, "type")) && json_is_string(json_object_get(row, "name"));
}

/* The row of one path; what cannot be a name in a datastore is not there. */
static int ask_stat(struct store *s, const char *path, json_t **ret, struct gr_err *err)
{
    json_t *params = json_pack("{s:s}", "path", path);
    int r = params ? s->o.call(s->o.arg, "dir.stat", params, ret, err) : -ENOENT;
    if (r == -GR_EUSAGE || r == -EINVAL)
        return -ENOENT;
    if (r == 0 && !row_ok(*ret)) {
        json_decref(*ret);
        return gr_fail(err, -GR_EPROTO, "%s: the storage service's answer is not understood", path);
    }
    return r;
}

static int store_getattr(void *view, const struct mount_obj *o, struct stat *ret)
{
    struct store *s = view;
    const char *path = path_of(s, o);
    json_t *row = NULL;
    int r = path ? ask_stat(s, path, &row, NULL) : -ESTALE;
    if (r == 0)
        row_stat(s, row, ret);
    json_decref(r == 0 ? row : NULL);
    return r;
}

static int found_of(struct store *s, const char *path, json_t *row, struct mount_found *ret)
{
    struct mount_found f = {.obj.kind = 1};
    int r = number_of(s, path, &f.obj.inode);
    if (r < 0)
        return r;
    row_stat(s, row, &f.st);
    *ret = f;
    return 0;
}

static int store_lookup(void *view, const struct mount_obj *dir, const char *name, struct mount_found *ret)
{
    struct store *s = view;
    const char *parent = path_of(s, dir);
    json_t *row = NULL;
    if (!parent)
        return -ESTALE;
    gr_auto_free char *path = gr_asprintf("%s/%s", parent, name);
    int r = path ? ask_stat(s, path, &row, NULL) : -ENOMEM;
    if (r < 0)
        return r;
    r = found_of(s, path, row, ret);
    json_decref(row);
    return r;
}

static int store_readlink(void *view, const struct mount_obj *o, char *buf, size_t cap)
{
    return -EINVAL;
}

static int store_opendir(void *view, const struct mount_obj *o, void **ret)
{
    struct store *s = view;
    const char *path = path_of(s, o);
    struct store_dir *d = gr_zalloc(sizeof(*d));
    if (!d || !path) {
        free(d);
        return d ? -ESTALE : -ENOMEM;
    }
    int r = s->o.call(s->o.arg, "dir.list", json_pack("{s:s}", "path", path), &d->rows, NULL);
    if (r < 0) {
        free(d);
        return r;
    }
    *ret = d;
    return 0;
}

static int store_entry(void *view, void *dir, uint64_t i, const char **ret_name, struct mount_found *ret)
{
    struct store_dir *d = dir;
    json_t *row = json_array_get(d->rows, (size_t)i);
    const char *path = json_string_value(json_object_get(row, "path"));
    if (!row)
        return 0;
    if (!row_ok(row) || !path)
        return -GR_EPROTO;
    int r = found_of(view, path, row, ret);
    if (r < 0)
        return r;
    *ret_name = json_string_value(json_object_get(row, "name"));
    return 1;
}

static void store_closedir(void *view, void *dir)
{
    struct store_dir *d = dir;
    json_decref(d->rows);
    free(d);
}

static int store_open(void *view, const struct mount_obj *o, const struct stat *st, void **ret)
{
    const char *path = path_of(view, o);
    struct store_file *f = path ? gr_zalloc(sizeof(*f)) : NULL;
    if (!f || !(f->path = gr_strdup(path))) {
        free(f);
        return path ? -ENOMEM : -ESTALE;
    }
    *ret = f;
    return 0;
}

static int fetch(struct store *s, struct store_file *f, uint64_t off)
{
    json_t *res = NULL;
    int r = s->o.call(s->o.arg, "file.read", json_pack("{s:s,s:I,s:I}", "path", f->path, "offset", (json_int_t)off, "length", (json_int_t)WINDOW),
                      &res, NULL);
    if (r < 0)
        return r;
    json_t *data = json_object_get(res, "data-b64");
    gr_buf_done(&f->window);
    f->off = off;
    r = json_is_string(data) ? gr_b64_decode(json_string_value(data), json_string_length(data), &f->window) : -GR_EPROTO;
    json_decref(res);
    return r;
}

/* Sequential reads are served from a window; a read behind its end, or before it, fetches another. */
static int64_t read_window(struct store *view, struct store_file *f, void *buf, size_t len, uint64_t off)
{
    size_t done = 0;
    while (done < len) {
        uint64_t at = off + done;
        if (at < f->off || at - f->off >= f->window.len) {
            int r = fetch(view, f, at / 4096 * 4096);
            if (r < 0)
                return r;
            if (at - f->off >= f->window.len)
                break; /* the end of the file */
        }
        size_t n = GR_MIN(len - done, f->window.len - (size_t)(at - f->off));
        memcpy((char *)buf + done, f->window.data + (at - f->off), n);
        done += n;
    }
    return (int64_t)done;
}

static int64_t store_read(void *view, void *file, void *buf, size_t len, uint64_t off)
{
    struct store_file *f = file;
    if (off > INT64_MAX - len)
        return -EINVAL;
    gr_fmutex_lock(&f->lock);
    int64_t r = read_window(view, f, buf, len, off);
    gr_fmutex_unlock(&f->lock);
    return r;
}

static void store_close(void *view, void *file)
{
    struct store_file *f = file;
    gr_buf_done(&f->window);
    free(f->path);
    free(f);
}

static void store_free(void *view)
{
    struct store *s = view;
    for (size_t i = 0; i < s->n; i++)
        free(s->paths[i]);
    free(s->paths);
    free(s->root);
    json_decref(s->numbers);
    free(s);
}

static const struct mount_view_ops store_ops = {
    store_getattr, store_lookup,   store_readlink, store_opendir, store_entry, store_closedir,
    store_open,    store_read,     store_close,    store_free,
};

int mount_store_new(const struct mount_store_opts *opts, struct mount_view *ret, struct gr_err *err)
{
    struct store *s = gr_zalloc(sizeof(*s));
    json_t *row = NULL;
    uint64_t zero;
    if (!s)
        return gr_fail(err, -ENOMEM, "out of memory");
    s->o = *opts;
    s->numbers = json_object();
    s->root = gr_strdup(opts->path);
    int r = s->numbers && s->root ? number_of(s, s->root, &zero) : -ENOMEM;
    if (r < 0)
        gr_fail(err, r, "out of memory");
    if (r == 0)
        r = ask_stat(s, s->root, &row, err);
    if (r == 0 && strcmp(json_string_value(json_object_get(row, "type")), "dir") != 0)
        r = gr_fail(err, -ENOTDIR, "%s is no folder", opts->path);
    json_decref(row);
    if (r < 0) {
        store_free(s);
        return r;
    }
    *ret = (struct mount_view){.ops = &store_ops, .impl = s};
    return 0;
}
