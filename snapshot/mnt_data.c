/* Content of files and disks: reading, writing, holes. */
#include "common/seam.h"
#include "snapshot/mnt_int.h"
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECTOR 512u

/* ---- whole ranges; the lease is held ---- */
static uint64_t size_of(struct mnt_obj *o)
{
    struct vmfs_node n;
    vmfs_disk_node(o->disk, &n);
    return n.size;
}

/* The first and last sector around [off, end) come from what is there; between them is what the caller has put into @buf. */
static int fill_edges(struct mnt_obj *o, uint8_t *buf, uint64_t off, uint64_t end, uint64_t size)
{
    uint64_t first = off / SECTOR * SECTOR, last = end / SECTOR * SECTOR;
    _Alignas(512) uint8_t edge[SECTOR];
    int r = 0;
    if (off % SECTOR) {
        r = first < size ? gr_pread(o->ch, edge, SECTOR, first) : 0;
        if (r == 0 && first < size)
            memcpy(buf, edge, off - first);
        else
            memset(buf, 0, off - first);
    }
    if (r == 0 && end % SECTOR) {
        r = last < size ? gr_pread(o->ch, edge, SECTOR, last) : 0;
        if (r == 0 && last < size)
            memcpy(buf + (end - first), edge + (end - last), SECTOR - (end - last));
        else
            memset(buf + (end - first), 0, SECTOR - (end - last));
    }
    return r;
}

/* Write @len bytes at @off, inside the length or behind it, alone. @buf: the bytes lie at off % SECTOR, and there is room for whole sectors. */
static int write_alone(struct mnt_obj *o, uint8_t *buf, uint64_t off, uint64_t len)
{
    uint64_t size = size_of(o), end = off + len, first = off / SECTOR * SECTOR, last = (end + SECTOR - 1) / SECTOR * SECTOR;
    int r = fill_edges(o, buf, off, end, size);
    if (r == 0 && end > size)
        r = vmfs_file_resize(o->disk, end, NULL);
    if (r == 0)
        r = gr_pwrite(o->ch, buf, last - first, first, 0);
    if (r < 0 && end > size)
        (void)vmfs_file_resize(o->disk, size, NULL);
    return r;
}

static int zero_range(struct mnt_mount *m, struct mnt_obj *o, uint64_t off, uint64_t end)
{
    uint64_t from = (off + SECTOR - 1) / SECTOR * SECTOR, to = end / SECTOR * SECTOR;
    uint8_t *buf = mnt_buf_get(m);
    int r = buf ? 0 : -ENOMEM;
    if (r == 0)
        memset(buf, 0, 2 * SECTOR);
    if (r == 0 && off < from)
        r = write_alone(o, buf, off, GR_MIN(from, end) - off);
    if (r == 0)
        memset(buf, 0, 2 * SECTOR);
    if (r == 0 && to < end && to >= from)
        r = write_alone(o, buf, to, end - to);
    if (r == 0 && to > from)
        r = gr_unmap(o->ch, from, to - from, 0);
    mnt_buf_put(m, buf);
    return r;
}

/* ---- reading, writing ---- */
static int read_some(struct mnt_mount *m, struct mnt_obj *o, uint8_t *buf, uint64_t off, uint64_t len, const uint8_t **ret, size_t *ret_len)
{
    uint64_t size = size_of(o), end = off >= size ? off : off + GR_MIN(len, size - off);
    uint64_t first = off / SECTOR * SECTOR, last = (end + SECTOR - 1) / SECTOR * SECTOR;
    *ret = buf + (off - first);
    *ret_len = (size_t)(end - off);
    return end > off ? gr_pread(o->ch, buf, last - first, first) : 0;
}

void mnt_op_read(struct mnt_req *r)
{
    const struct fuse_read_in *in = r->body;
    struct mnt_mount *m = r->m;
    struct mnt_obj *o;
    uint8_t *buf = mnt_buf_get(m);
    const uint8_t *from = buf;
    size_t n = 0;
    int rc = buf ? mnt_obj_of(r, in->fh, &o) : -ENOMEM;
    if (rc == 0) {
        rc = mnt_hold(o, MNT_READ, NULL);
        if (rc == 0) {
            gr_frwlock_read(&o->data);
            rc = read_some(m, o, buf, in->offset, GR_MIN(in->size, MNT_IO_MAX), &from, &n);
            gr_frwlock_unlock(&o->data);
            if (rc == 0)
                mnt_reply(r, from, n); /* before the lease can go: the kernel has the page when it is told to forget it */
            mnt_drop(o);
        }
        mnt_obj_put(o);
    }
    if (rc < 0)
        mnt_fail(r, rc);
    mnt_buf_put(m, buf);
}

/* The bytes of @data go where they would lie among whole sectors. */
static int write_shifted(struct mnt_mount *m, struct mnt_obj *o, void *data, uint64_t off, uint64_t len)
{
    if (off % SECTOR == 0)
        return write_alone(o, data, off, len);
    uint8_t *buf = mnt_buf_get(m);
    if (!buf)
        return -ENOMEM;
    memcpy(buf + off % SECTOR, data, len);
    int r = write_alone(o, buf, off, len);
    mnt_buf_put(m, buf);
    return r;
}

static int64_t write_some(struct mnt_mount *m, struct mnt_obj *o, void *data, uint64_t off, uint64_t len, bool append)
{
    int r;
    gr_frwlock_read(&o->data);
    uint64_t size = size_of(o);
    bool whole = !append && off % SECTOR == 0 && len % SECTOR == 0 && off <= size && len <= size - off;
    if (whole) {
        r = gr_pwrite(o->ch, data, len, off, 0);
        mnt_changed(m, o);
        gr_frwlock_unlock(&o->data);
        return r < 0 ? r : (int64_t)len;
    }
    gr_frwlock_unlock(&o->data);
    gr_frwlock_write(&o->data);
    size = size_of(o);
    off = append ? size : off;
    if (o->handle && (off >= size || len > size - off)) /* a disk does not grow */
        len = off >= size ? 0 : size - off;
    r = o->handle && !len ? -ENOSPC : off > VMFS_FILE_MAX - len ? -EFBIG : write_shifted(m, o, data, off, len);
    mnt_changed(m, o);
    gr_frwlock_unlock(&o->data);
    return r < 0 ? r : (int64_t)len;
}

/* Who writes and is not privileged ends what the file lets its runners be, before a byte of it changes. The lease is held. */
static int end_set_ids(struct mnt_mount *m, struct mnt_obj *o)
{
    uint32_t gone = o->has_posix ? o->posix.mode & (S_ISUID | (o->posix.mode & S_IXGRP ? S_ISGID : 0)) : 0;
    if (!gone || o->handle)
        return 0;
    mnt_own_posix(m, o);
    o->posix.mode &= ~gone;
    return mnt_posix_flush(o, NULL);
}

void mnt_op_write(struct mnt_req *r)
{
    const struct fuse_write_in *in = r->body;
    struct mnt_mount *m = r->m;
    struct mnt_obj *o;
    bool page = in->write_flags & FUSE_WRITE_CACHE;
    int64_t rc = mnt_obj_of(r, in->fh, &o);
    if (rc == 0) {
        if (o->type == VMFS_DISK && !o->writing)
            rc = mnt_disk_open(m, o, true, &(struct gr_err){0}); /* a descriptor of a former process */
        if (rc == 0)
            rc = mnt_hold(o, page ? MNT_WRITEBACK : MNT_PLAIN, NULL);
        if (rc == 0) {
            if (in->write_flags & FUSE_WRITE_KILL_SUIDGID)
                rc = end_set_ids(m, o);
            if (rc == 0 && in->size)
                rc = write_some(m, o, r->data, in->offset, in->size, !page && (in->flags & O_APPEND) && !r->again && o->type == VMFS_FILE);
            mnt_drop(o);
        }
        mnt_obj_put(o);
    }
    if (rc < 0)
        mnt_fail(r, (int)rc);
    else
        mnt_reply(r, &(struct fuse_write_out){.size = (uint32_t)rc}, sizeof(struct fuse_write_out));
}

/* ---- holes ---- */
static int allocate(struct mnt_mount *m, struct mnt_obj *o, const struct fuse_fallocate_in *in)
{
    uint32_t mode = in->mode & ~(uint32_t)FALLOC_FL_KEEP_SIZE;
    if (mode != FALLOC_FL_PUNCH_HOLE && mode != FALLOC_FL_ZERO_RANGE) /* thin: space cannot be promised, the C library writes instead */
        return -EOPNOTSUPP;
    if (in->offset > VMFS_FILE_MAX || in->length > VMFS_FILE_MAX - in->offset)
        return -EFBIG;
    int r = mnt_hold(o, MNT_PLAIN, NULL);
    if (r < 0)
        return r;
    gr_frwlock_write(&o->data);
    uint64_t size = size_of(o), end = GR_MIN(in->offset + in->length, size);
    if (in->offset < end)
        r = zero_range(m, o, in->offset, end);
    if (r == 0 && !(in->mode & FALLOC_FL_KEEP_SIZE) && in->offset + in->length > size)
        r = o->handle ? -EPERM : vmfs_file_resize(o->disk, in->offset + in->length, NULL);
    mnt_changed(m, o);
    gr_frwlock_unlock(&o->data);
    mnt_drop(o);
    return r;
}

void mnt_op_fallocate(struct mnt_req *r)
{
    const struct fuse_fallocate_in *in = r->body;
    struct mnt_obj *o;
    int rc = mnt_obj_of(r, in->fh, &o);
    if (rc == 0) {
        rc = allocate(r->m, o, in);
        mnt_obj_put(o);
    }
    mnt_fail(r, rc);
}

static int seek(struct mnt_obj *o, uint64_t off, bool data, uint64_t *ret)
{
    uint64_t size = size_of(o), whole = (size + SECTOR - 1) / SECTOR * SECTOR;
    if (off >= size)
        return -ENXIO;
    for (uint64_t at = off / SECTOR * SECTOR; at < whole;) {
        struct gr_extent e;
        unsigned n = 0;
        int r = gr_extents(o->ch, at, whole - at, NULL, &e, 1, &n);
        if (r < 0 || n == 0)
            return r < 0 ? r : -EIO;
        if (!(e.flags & (GR_EXTENT_HOLE | GR_EXTENT_ZERO)) == data) {
            *ret = GR_MAX(off, at);
            return 0;
        }
        at = e.off + e.len;
    }
    *ret = size;
    return data ? -ENXIO : 0;
}

void mnt_op_lseek(struct mnt_req *r)
{
    const struct fuse_lseek_in *in = r->body;
    struct fuse_lseek_out out = {0};
    struct mnt_obj *o;
    int rc = in->whence == SEEK_DATA || in->whence == SEEK_HOLE ? mnt_obj_of(r, in->fh, &o) : -EINVAL;
    if (rc == 0) {
        rc = mnt_hold(o, MNT_PLAIN, NULL);
        if (rc == 0) {
            gr_frwlock_read(&o->data);
            rc = seek(o, in->offset, in->whence == SEEK_DATA, &out.offset);
            gr_frwlock_unlock(&o->data);
            mnt_drop(o);
        }
        mnt_obj_put(o);
    }
    if (rc < 0)
        mnt_fail(r, rc);
    else
        mnt_reply(r, &out, sizeof(out));
}
