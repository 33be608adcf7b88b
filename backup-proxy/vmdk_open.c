/* Open an image: probe, descriptor, the files it consists of. */
#include "backup-proxy/vmdk.h"
#include "backup-proxy/vmdk_image.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include <fcntl.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

static const char text_magic[] = "# Disk DescriptorFile";

/* Regular files only: a FIFO would hang, a directory or device is not an image. */
static int open_regular(const char *path, int *ret_fd, uint64_t *ret_size, struct gr_err *err)
{
    struct stat st;
    gr_auto_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return gr_fail(err, -errno, "%s: cannot open: %s", path, gr_code_text(-errno));
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return gr_fail(err, -EINVAL, "%s: is not a regular file", path);
    *ret_size = (uint64_t)st.st_size;
    *ret_fd = gr_take_fd(&fd);
    return 0;
}

int bp_vmdk_probe(const char *path, struct gr_err *err)
{
    gr_auto_close int fd = -1;
    uint64_t size = 0;
    char head[sizeof text_magic - 1] = {0};
    int r = open_regular(path, &fd, &size, err);
    if (r < 0)
        return r;
    if (size < VMDK_SECTOR / 4)
        return 0;
    r = gr_file_pread(fd, head, sizeof head, 0);
    if (r < 0)
        return gr_fail(err, r, "%s: cannot read: %s", path, gr_code_text(r));
    return gr_get_le32(head) == VMDK_MAGIC || !strncasecmp(head, text_magic, sizeof head);
}

static int no_parent(const struct vmdk_desc *d, const char *path, struct gr_err *err)
{
    if (d->parent_cid == UINT32_MAX)
        return 0;
    return gr_fail(err, -GR_EFORMAT, "%s: is a delta of another disk (parentCID %08x); flatten the chain first", path, d->parent_cid);
}

/* A sparse extent with its descriptor inside. */
static int open_sparse(struct vmdk_image *m, int *fd, uint64_t size, const char *path, struct gr_err *err)
{
    int r = vmdk_sparse_decode(*fd, size, path, &m->sp, err);
    if (r < 0)
        return r;
    m->size = m->sp.capacity;
    m->seg[0] = (struct vmdk_seg){.kind = VMDK_SEG_SPARSE, .len = m->size, .fd = gr_take_fd(fd)};
    m->n_seg = 1;
    if (m->sp.desc_len == 0)
        return 0;
    gr_auto_free char *text = gr_alloc(m->sp.desc_len);
    if (!text)
        return gr_fail(err, -ENOMEM, "out of memory");
    struct vmdk_desc d;
    r = gr_file_pread(m->seg[0].fd, text, m->sp.desc_len, m->sp.desc_off);
    if (r < 0)
        return gr_fail(err, r, "%s: cannot read the embedded descriptor: %s", path, gr_code_text(r));
    r = vmdk_desc_parse(text, m->sp.desc_len, &d, err);
    if (r < 0)
        return gr_prefix(err, r, "%s", path);
    r = no_parent(&d, path, err);
    if (r == 0 && d.n > 1)
        r = gr_fail(err, -GR_EFORMAT, "%s: the embedded descriptor lists %u extents, one is allowed", path, d.n);
    if (r == 0 && d.n == 1 && d.extents[0].sectors != m->sp.capacity / VMDK_SECTOR)
        r = gr_fail(err, -GR_ECORRUPT, "%s: descriptor (%llu sectors) and header (%llu) tell different sizes", path,
                    (unsigned long long)d.extents[0].sectors, (unsigned long long)(m->sp.capacity / VMDK_SECTOR));
    free(d.extents);
    return r;
}

/* The file of the operator's list whose last path part is @name. */
static const char *find_named(const char *const *named, const char *name)
{
    for (; named && *named; named++) {
        const char *slash = strrchr(*named, '/');
        if (!strcmp(slash ? slash + 1 : *named, name))
            return *named;
    }
    return NULL;
}
static int add_extent(struct vmdk_image *m, const struct vmdk_desc_extent *e, const char *path, const char *const *named, struct gr_err *err)
{
    uint64_t len = e->sectors * VMDK_SECTOR, at = e->off_sectors * VMDK_SECTOR, size = 0;
    struct vmdk_seg s = {.kind = VMDK_SEG_ZERO, .off = m->size, .len = len, .fd = -1};
    if (len > INT64_MAX - m->size)
        return gr_fail(err, -GR_EFORMAT, "%s: its extents add up to more than 2^63 bytes", path);
    if (strcmp(e->type, "ZERO")) {
        if (strcmp(e->type, "FLAT") && strcmp(e->type, "VMFS"))
            return gr_fail(err, -GR_EFORMAT, "%s: extents of type %s are not supported here (FLAT, VMFS, ZERO)", path, e->type);
        const char *file = strchr(e->name, '/') ? NULL : find_named(named, e->name);
        if (!file)
            return gr_fail(err, -EACCES, "%s: names the extent file '%s'; name it on the command line too if it shall be read", path, e->name);
        int r = open_regular(file, &s.fd, &size, err);
        if (r < 0)
            return r;
        s.kind = VMDK_SEG_FLAT;
        s.file_off = at;
        if (at > size || len > size - at) {
            close(s.fd);
            return gr_fail(err, -GR_ECORRUPT, "%s: extent file %s is truncated: %llu bytes, the descriptor wants %llu", path, file,
                           (unsigned long long)size, (unsigned long long)(at + len));
        }
    }
    m->seg[m->n_seg++] = s;
    m->size += len;
    return 0;
}
static int open_text(struct vmdk_image *m, int fd, uint64_t size, const char *path, const char *const *named, struct gr_err *err)
{
    if (size > VMDK_MAX_DESC)
        return gr_fail(err, -GR_EFORMAT, "%s: a VMDK descriptor of %llu bytes (at most %u)", path, (unsigned long long)size, VMDK_MAX_DESC);
    gr_auto_free char *text = gr_alloc(size + 1);
    struct vmdk_desc d;
    if (!text)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = gr_file_pread(fd, text, size, 0);
    if (r < 0)
        return gr_fail(err, r, "%s: cannot read: %s", path, gr_code_text(r));
    r = vmdk_desc_parse(text, size, &d, err);
    if (r < 0)
        return gr_prefix(err, r, "%s", path);
    r = no_parent(&d, path, err);
    if (r == 0 && d.n == 0)
        r = gr_fail(err, -GR_EFORMAT, "%s: the VMDK descriptor lists no extent", path);
    for (unsigned i = 0; r == 0 && i < d.n; i++)
        r = add_extent(m, &d.extents[i], path, named, err);
    free(d.extents);
    return r;
}

int bp_vmdk_open(struct gr_loop *loop, const char *path, const char *const *extents, struct gr_bdev **ret, struct gr_err *err)
{
    (void)loop;
    gr_auto_close int fd = -1;
    uint64_t size = 0;
    char head[sizeof text_magic - 1] = {0};
    int r = open_regular(path, &fd, &size, err);
    if (r < 0)
        return r;
    if (size < sizeof head || gr_file_pread(fd, head, sizeof head, 0) < 0)
        return gr_fail(err, -GR_EFORMAT, "%s: %llu bytes are too few for a VMDK", path, (unsigned long long)size);
    struct vmdk_image *m = gr_zalloc(sizeof *m);
    if (!m)
        return gr_fail(err, -ENOMEM, "out of memory");
    gr_bdev_init(&m->bdev, &vmdk_ops, path);
    if (gr_get_le32(head) == VMDK_MAGIC)
        r = open_sparse(m, &fd, size, path, err);
    else if (!strncasecmp(head, text_magic, sizeof head))
        r = open_text(m, fd, size, path, extents, err);
    else
        r = gr_fail(err, -GR_EFORMAT, "%s: neither a sparse VMDK nor a VMDK descriptor", path);
    if (r < 0) {
        gr_bdev_put(&m->bdev);
        return r;
    }
    *ret = &m->bdev;
    return 0;
}
