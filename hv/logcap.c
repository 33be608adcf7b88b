#include "hv/logcap.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

struct hv_logcap {
    char *path, *old_path;
    int fd;
    uint64_t half, size, lost;
};

static int open_file(struct hv_logcap *l)
{
    struct stat st;
    l->fd = open(l->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (l->fd < 0 || fstat(l->fd, &st) < 0)
        return -errno;
    l->size = (uint64_t)st.st_size;
    return 0;
}

int hv_logcap_open(const char *path, uint64_t max, struct hv_logcap **ret, struct gr_err *err)
{
    struct hv_logcap *l = gr_zalloc(sizeof *l);
    if (!l)
        return gr_fail(err, -ENOMEM, "out of memory");
    l->fd = -1;
    l->half = GR_MAX(max, 4096u) / 2;
    l->path = gr_strdup(path);
    l->old_path = gr_asprintf("%s.1", path);
    int r = l->path && l->old_path ? open_file(l) : -ENOMEM;
    if (r < 0) {
        hv_logcap_close(l);
        return gr_fail(err, r, "cannot open the log %s: %s", path, gr_code_text(r));
    }
    *ret = l;
    return 0;
}

static int rotate(struct hv_logcap *l)
{
    close(l->fd);
    l->fd = -1;
    if (rename(l->path, l->old_path) < 0)
        unlink(l->path);
    return open_file(l);
}

void hv_logcap_write(struct hv_logcap *l, const void *data, size_t len)
{
    const char *p = data;
    while (len) {
        if ((l->size >= l->half || l->fd < 0) && (l->fd < 0 ? open_file(l) : rotate(l)) < 0) {
            l->lost += len;
            return;
        }
        /* a file left by a process with a larger cap is rotated away first */
        if (l->size >= l->half)
            continue;
        size_t n = (size_t)GR_MIN((uint64_t)len, l->half - l->size);
        ssize_t w = write(l->fd, p, n);
        if (w <= 0) {
            if (w < 0 && errno == EINTR)
                continue;
            l->lost += len;
            return;
        }
        l->size += (uint64_t)w;
        p += w;
        len -= (size_t)w;
    }
}

uint64_t hv_logcap_lost(const struct hv_logcap *l)
{
    return l->lost;
}

void hv_logcap_close(struct hv_logcap *l)
{
    if (!l)
        return;
    if (l->fd >= 0)
        close(l->fd);
    free(l->path);
    free(l->old_path);
    free(l);
}

static int read_one(const char *path, uint64_t max, struct gr_buf *ret)
{
    gr_auto_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct stat st;
    if (fd < 0)
        return errno == ENOENT ? 0 : -errno;
    if (fstat(fd, &st) < 0)
        return -errno;
    off_t off = (uint64_t)st.st_size > max ? st.st_size - (off_t)max : 0;
    while (off < st.st_size) {
        char buf[16384];
        ssize_t n = pread(fd, buf, (size_t)GR_MIN((off_t)sizeof buf, st.st_size - off), off);
        if (n < 0)
            return -errno;
        if (!n)
            break;
        int r = gr_buf_add(ret, buf, (size_t)n);
        if (r < 0)
            return r;
        off += n;
    }
    return 0;
}

int hv_logcap_read(const char *path, uint64_t max, struct gr_buf *ret, struct gr_err *err)
{
    gr_auto_free char *old = gr_asprintf("%s.1", path);
    gr_auto_buf struct gr_buf all = {0};
    int r = old ? read_one(old, max, &all) : -ENOMEM;
    if (r >= 0)
        r = read_one(path, max, &all);
    if (r < 0)
        return gr_fail(err, r, "cannot read the log %s: %s", path, gr_code_text(r));
    size_t skip = all.len > max ? all.len - (size_t)max : 0;
    return gr_buf_add(ret, all.data ? all.data + skip : "", all.len - skip);
}
