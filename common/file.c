/* Whole small files: read, replace, secrets, directories. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/err.h"
#include "common/seam.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* Read what is behind @fd, a regular file, up to @max bytes. */
static int read_fd(int fd, const char *path, size_t max, struct gr_buf *ret, struct gr_err *err)
{
    gr_auto_buf struct gr_buf b = {0};
    for (;;) {
        int r = gr_buf_reserve(&b, GR_MIN(max - b.len + 1, (size_t)65536));
        if (r < 0)
            return gr_fail(err, r, "%s: out of memory", path);
        ssize_t n = read(fd, b.data + b.len, GR_MIN(b.cap - b.len - 1, max - b.len + 1));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return gr_fail(err, -errno, "%s: cannot read: %s", path, strerror(errno));
        if (n == 0)
            break;
        b.len += (size_t)n;
        if (b.len > max)
            return gr_fail(err, -EFBIG, "%s: longer than %zu bytes", path, max);
    }
    b.data[b.len] = 0;
    gr_buf_done(ret);
    *ret = b;
    b = (struct gr_buf){0};
    return 0;
}

static int open_regular(const char *path, int *ret_fd, struct stat *st, struct gr_err *err)
{
    gr_auto_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return gr_fail(err, -errno, "%s: cannot open: %s", path, strerror(errno));
    if (fstat(fd, st) < 0)
        return gr_fail(err, -errno, "%s: cannot look at it: %s", path, strerror(errno));
    if (!S_ISREG(st->st_mode))
        return gr_fail(err, -EINVAL, "%s: not a regular file", path);
    *ret_fd = gr_take_fd(&fd);
    return 0;
}

int gr_file_read(const char *path, size_t max, struct gr_buf *ret, struct gr_err *err)
{
    struct stat st;
    gr_auto_close int fd = -1;
    int r = open_regular(path, &fd, &st, err);
    return r < 0 ? r : read_fd(fd, path, max, ret, err);
}

int gr_secret_read(const char *path, struct gr_buf *ret, struct gr_err *err)
{
    struct stat st;
    gr_auto_close int fd = -1;
    int r = open_regular(path, &fd, &st, err);
    if (r < 0)
        return r;
    if (st.st_mode & 077)
        return gr_fail(err, -EPERM, "%s: a secret must not be readable by others (mode is %03o): chmod 600 it", path,
                       (unsigned)st.st_mode & 0777);
    r = read_fd(fd, path, 65536, ret, err);
    if (r < 0)
        return r;
    if (ret->len > 0 && ret->data[ret->len - 1] == '\n')
        ret->data[--ret->len] = 0;
    if (ret->len == 0)
        return gr_fail(err, -EINVAL, "%s: holds no secret, it is empty", path);
    return 0;
}

int gr_file_pread(int fd, void *buf, size_t len, uint64_t off)
{
    char *p = buf;
    if (off > INT64_MAX || len > INT64_MAX - off)
        return -GR_ECORRUPT;
    while (len > 0) {
        ssize_t n = pread(fd, p, len, (off_t)off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -GR_ECORRUPT;
        p += n;
        off += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

int gr_file_pwrite(int fd, const void *buf, size_t len, uint64_t off)
{
    const char *p = buf;
    while (len > 0) {
        ssize_t n = pwrite(fd, p, len, (off_t)off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -ENOSPC;
        p += n;
        off += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

static int write_all(int fd, const char *p, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0) {
            p += n;
            len -= (size_t)n;
        }
    }
    return 0;
}

/* A rename is durable only when the directory is. */
int gr_sync_parent(const char *path)
{
    gr_auto_free char *dir = gr_strdup(path);
    if (!dir)
        return -ENOMEM;
    char *slash = strrchr(dir, '/');
    if (slash == dir)
        slash[1] = 0;
    else if (slash)
        *slash = 0;
    gr_auto_close int fd = open(slash ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        return -errno;
    return 0;
}

int gr_file_replace(const char *path, const void *data, size_t len, int mode, struct gr_err *err)
{
    uint64_t salt;
    gr_world_real()->random(NULL, &salt, sizeof(salt));
    gr_auto_free char *tmp = gr_asprintf("%s.%016llx.tmp", path, (unsigned long long)salt);
    if (!tmp)
        return gr_fail(err, -ENOMEM, "%s: out of memory", path);
    gr_auto_close int fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return gr_fail(err, -errno, "%s: cannot make a new file beside it: %s", path, strerror(errno));
    int r = write_all(fd, data, len);
    if (r == 0 && (fchmod(fd, (mode_t)mode) < 0 || fsync(fd) < 0))
        r = -errno;
    if (r == 0 && rename(tmp, path) < 0)
        r = -errno;
    if (r < 0) {
        unlink(tmp);
        return gr_fail(err, r, "%s: cannot replace it: %s", path, gr_code_text(r));
    }
    r = gr_sync_parent(path);
    return r < 0 ? gr_fail(err, r, "%s: its directory cannot be synced: %s", path, gr_code_text(r)) : 0;
}

int gr_mkdirs(const char *path, int mode, struct gr_err *err)
{
    gr_auto_free char *p = gr_strdup(path);
    if (!p)
        return gr_fail(err, -ENOMEM, "%s: out of memory", path);
    for (char *s = p + 1;; s++) {
        if (*s != '/' && *s != 0)
            continue;
        char saved = *s;
        *s = 0;
        if (mkdir(p, (mode_t)mode) < 0 && errno != EEXIST)
            return gr_fail(err, -errno, "%s: cannot make the directory: %s", p, strerror(errno));
        *s = saved;
        if (saved == 0)
            break;
    }
    struct stat st;
    if (stat(path, &st) < 0)
        return gr_fail(err, -errno, "%s: cannot look at it: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return gr_fail(err, -ENOTDIR, "%s: not a directory", path);
    return 0;
}

void gr_boot_id(char ret[37])
{
    gr_auto_close int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, ret, 36);
    ret[n == 36 ? n : 0] = 0;
}
