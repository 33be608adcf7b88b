/* What a raw LUN remembers: a directory with one file for each attribute. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "common/seam.h"
#include "iscsi-target/raw_lun.h"
#include <fcntl.h>
#include <string.h>

#define VALUE_MAX 65536u

struct job {
    const char *dir, *path;
    const void *val;
    size_t len;
    struct gr_buf *buf;
    struct gr_err *err;
};

static bool key_ok(const char *key)
{
    size_t n = strlen(key);
    return n >= 1 && n <= 32 && key[0] != '.' && strspn(key, "abcdefghijklmnopqrstuvwxyz0123456789.-") == n;
}

static char *path_of(const char *dir, const char *key)
{
    return key_ok(key) ? gr_asprintf("%s/%s", dir, key) : NULL;
}

/* The directory and the one above it, which may both be new. */
static int make(void *arg)
{
    const struct job *j = arg;
    gr_auto_free char *parent = gr_strdup(j->dir);
    char *slash = parent ? strrchr(parent, '/') : NULL;
    if (!slash)
        return gr_fail(j->err, parent ? -EINVAL : -ENOMEM, "%s: no directory for attributes", j->dir);
    *slash = 0;
    int r = gr_mkdirs(j->dir, 0700, j->err);
    if (r < 0)
        return r;
    if ((r = gr_sync_parent(j->dir)) < 0 || (r = gr_sync_parent(parent)) < 0)
        return gr_fail(j->err, r, "%s: its directory cannot be synced: %s", j->dir, gr_code_text(r));
    return 0;
}

int tgt_raw_store_make(const char *dir, struct gr_err *err)
{
    struct job j = {.dir = dir, .err = err};
    return gr_fiber_work(make, &j);
}

static int read_file(void *arg)
{
    const struct job *j = arg;
    return gr_file_read(j->path, VALUE_MAX, j->buf, j->err);
}

int tgt_raw_store_get(const char *dir, const char *key, void **ret, struct gr_err *err)
{
    gr_auto_buf struct gr_buf buf = {0};
    gr_auto_free char *path = path_of(dir, key);
    if (!path)
        return gr_fail(err, -EINVAL, "%s: no attribute can be called '%s'", dir, key);
    struct job j = {.path = path, .buf = &buf, .err = err};
    int r = gr_fiber_work(read_file, &j);
    if (r < 0)
        return r;
    size_t len = buf.len;
    *ret = gr_buf_take(&buf);
    return (int)len;
}

static int write_file(void *arg)
{
    const struct job *j = arg;
    if (j->len)
        return gr_file_replace(j->path, j->val, j->len, 0600, j->err);
    int r = unlink(j->path) < 0 && errno != ENOENT ? -errno : 0;
    r = r < 0 ? r : gr_sync_parent(j->path);
    return r < 0 ? gr_fail(j->err, r, "%s: cannot be removed: %s", j->path, gr_code_text(r)) : 0;
}

int tgt_raw_store_set(const char *dir, const char *key, const void *val, size_t len, struct gr_err *err)
{
    gr_auto_free char *path = path_of(dir, key);
    if (!path)
        return gr_fail(err, -EINVAL, "%s: no attribute can be called '%s'", dir, key);
    if (len > VALUE_MAX)
        return gr_fail(err, -EFBIG, "%s: an attribute of %zu bytes: at most %u are kept", path, len, VALUE_MAX);
    struct job j = {.path = path, .val = val, .len = len, .err = err};
    return gr_fiber_work(write_file, &j);
}

static int remove_all(void *arg)
{
    const struct job *j = arg;
    gr_auto_closedir DIR *d = opendir(j->dir);
    if (!d)
        return errno == ENOENT ? 0 : gr_fail(j->err, -errno, "%s: cannot be removed: %s", j->dir, strerror(errno));
    for (const struct dirent *e; (e = readdir(d));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            unlinkat(dirfd(d), e->d_name, 0);
    int r = rmdir(j->dir) < 0 ? -errno : gr_sync_parent(j->dir);
    return r < 0 ? gr_fail(j->err, r, "%s: cannot be removed: %s", j->dir, gr_code_text(r)) : 0;
}

int tgt_raw_store_remove(const char *dir, struct gr_err *err)
{
    struct job j = {.dir = dir, .err = err};
    return gr_fiber_work(remove_all, &j);
}
