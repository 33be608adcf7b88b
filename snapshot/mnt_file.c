/* Content of files and disks: open, read, write, truncate, holes, fsync. */
#include "common/seam.h"
#include "snapshot/mnt_int.h"
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECTOR 512u
#define DISK_WAIT_MS 2000u

/* ---- descriptors ---- */
static struct mnt_open **open_at(struct mnt_mount *m, uint64_t fh)
{
    struct mnt_open **p = &m->opens[fh % MNT_OBJ_HASH];
    while (*p && (*p)->fh != fh)
        p = &(*p)->next;
    return p;
}

static int open_add(struct mnt_mount *m, struct mnt_obj *o, uint64_t fh)
{
    struct mnt_open *d = gr_zalloc(sizeof(*d));
    if (!d)
        return -ENOMEM;
    *d = (struct mnt_open){.next = m->opens[fh % MNT_OBJ_HASH], .fh = fh, .o = o};
    m->opens[fh % MNT_OBJ_HASH] = d;
    mnt_opened(o);
    return 0;
}

void mnt_close(struct mnt_mount *m, uint64_t fh)
{
    struct mnt_open **p = open_at(m, fh), *d = *p;
    if (!d)
        return;
    *p = d->next;
    mnt_closed(d->o);
    free(d);
}

void mnt_opens_free(struct mnt_mount *m)
{
    for (unsigned h = 0; h < MNT_OBJ_HASH; h++)
        while (m->opens[h]) {
            mnt_locks_free(m->opens[h]->o, m);
            mnt_close(m, m->opens[h]->fh);
        }
}

/* ---- disks: raw files, for one writer at a time ---- */
static int disk_handle(struct mnt_mount *m, const char *path, struct snap_handle **ret, struct gr_err *err)
{
    struct snap_place owner = {0};
    int r = snap_handle_get(m->s, m->ds, path, "mount", DISK_WAIT_MS, ret, &owner, err);
    if (r != -GR_ELOCKED || !owner.address[0])
        return r;
    gr_auto_free char *disk = gr_asprintf("%s/%s", m->ds_name, path); /* its owner gives a disk that nobody uses */
    r = disk ? snap_peer_ask(m->s, owner.address, "disk.release", json_pack("{s:s}", "disk", disk), SNAP_TELL_MS, NULL, err) : -ENOMEM;
    return r < 0 ? gr_prefix(err, r, "host '%s' has it", owner.host) : snap_handle_get(m->s, m->ds, path, "mount", DISK_WAIT_MS, ret, &owner, err);
}

static int disk_let_write(struct mnt_mount *m, struct mnt_obj *o, const char *path, struct gr_err *err)
{
    struct snap_disk d = {.ds = m->ds, .h = o->handle};
    int r = o->writing ? 0 : snap_refuse_in_use(m->s, &d, "be written through a mount", err);
    if (r == 0 && !o->writing)
        r = snap_release_hook(m->s, m->ds, path, true, err); /* the target opens it anew, and is told */
    if (r == 0 && !o->writing) {
        o->writing = true;
        o->handle->mounted++;
    }
    return r;
}

static int disk_open(struct mnt_mount *m, struct mnt_obj *o, bool write, struct gr_err *err)
{
    gr_auto_free char *path = mnt_path_of(m, o->id);
    int r = path ? 0 : gr_fail(err, -ESTALE, "its path is not known any more");
    struct snap_handle *h = NULL;
    if (r == 0 && !o->handle) {
        r = disk_handle(m, path, &h, err);
        if (r == 0 && o->handle)
            h->users--; /* somebody was quicker */
        else if (r == 0 && (r = gr_chan_open(vmfs_bdev(h->disk), m->s->o.loop, &o->ch)) < 0)
            h->users--;
        else if (r == 0) {
            o->handle = h;
            o->disk = h->disk;
        }
    }
    if (r == 0 && write)
        r = disk_let_write(m, o, path, err);
    if (r == -GR_ELOCKED || r == -EBUSY) {
        gr_log_limited(GR_LOG_NOTE, "mount on '%s': %s/%s cannot be opened%s: %s", m->dir, m->ds_name, path, write ? " for writing" : "", gr_err_text(err, r));
        r = -EBUSY;
    }
    return r;
}

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

/* ---- owners and times; the lease is held ---- */
static int own_posix(struct mnt_mount *m, struct mnt_obj *o)
{
    if (!o->has_posix) {
        int64_t now = mnt_now_ns();
        o->posix = (struct vmfs_posix){0644, m->uid, m->gid, now, now, now};
        o->has_posix = true;
    }
    o->posix_dirty = true;
    return 0;
}

static void data_changed(struct mnt_mount *m, struct mnt_obj *o)
{
    if (o->handle)
        return;
    own_posix(m, o);
    o->posix.mtime_ns = o->posix.ctime_ns = mnt_now_ns();
}

/* ---- the object of a request ---- */
/* With a reference. A descriptor that a former process gave out is one again. */
static int obj_of(struct mnt_req *r, uint64_t fh, struct mnt_obj **ret)
{
    struct mnt_mount *m = r->m;
    struct mnt_open *d = *open_at(m, fh);
    if (d) {
        *ret = d->o;
        d->o->users++;
        return 0;
    }
    struct vmfs_node n;
    struct gr_err err = {0};
    int rc = vmfs_look(m->ds->v, mnt_id(m, r->h.nodeid), "", &n, &err);
    if (rc < 0)
        return rc == -ENOENT ? -ESTALE : rc;
    struct mnt_obj *o = n.type == VMFS_DIR ? NULL : mnt_obj_get(m->ds, n.id, n.type);
    rc = o ? 0 : n.type == VMFS_DIR ? -EISDIR : -ENOMEM;
    if (rc == 0 && n.type == VMFS_DISK)
        rc = disk_open(m, o, false, &err);
    if (rc == 0 && !*open_at(m, fh))
        rc = open_add(m, o, fh);
    if (rc < 0 && o)
        mnt_obj_put(o);
    else
        *ret = o;
    return rc;
}

int mnt_open(struct mnt_mount *m, uint64_t id, uint32_t flags, uint64_t *ret_fh, struct gr_err *err)
{
    struct vmfs_node n;
    struct gr_err scratch = {0};
    bool write = (flags & O_ACCMODE) != O_RDONLY;
    err = err ? err : &scratch;
    int r = vmfs_look(m->ds->v, id, "", &n, err);
    if (r < 0 || n.type == VMFS_DIR)
        return r == -ENOENT ? -ESTALE : r < 0 ? r : -EISDIR;
    struct mnt_obj *o = mnt_obj_get(m->ds, id, n.type);
    if (!o)
        return -ENOMEM;
    uint64_t fh = m->next_fh++;
    r = open_add(m, o, fh); /* who asks whether it is open hears so from here on */
    if (r == 0 && n.type == VMFS_DISK) {
        r = disk_open(m, o, write, err);
    } else if (r == 0 && (flags & O_TRUNC)) {
        r = mnt_hold(o, MNT_PLAIN, err);
        if (r == 0) {
            gr_frwlock_write(&o->data);
            r = vmfs_file_resize(o->disk, 0, err);
            data_changed(m, o);
            gr_frwlock_unlock(&o->data);
            mnt_drop(o);
        }
    }
    if (r < 0)
        mnt_close(m, fh);
    else
        *ret_fh = fh;
    mnt_obj_put(o);
    return r;
}

void mnt_op_open(struct mnt_req *r)
{
    const struct fuse_open_in *in = r->body;
    struct fuse_open_out out = {.open_flags = FOPEN_DIRECT_IO};
    int rc = mnt_open(r->m, mnt_id(r->m, r->h.nodeid), in->flags, &out.fh, NULL);
    if (rc < 0)
        mnt_fail(r, rc);
    else
        mnt_reply(r, &out, sizeof(out));
}

void mnt_op_release(struct mnt_req *r)
{
    const struct fuse_release_in *in = r->body;
    struct mnt_open *d = *open_at(r->m, in->fh);
    if (d && (in->release_flags & FUSE_RELEASE_FLOCK_UNLOCK))
        mnt_locks_drop(d->o, r->m, in->lock_owner, true);
    mnt_close(r->m, in->fh);
    mnt_fail(r, 0);
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
    int rc = buf ? obj_of(r, in->fh, &o) : -ENOMEM;
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
        data_changed(m, o);
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
    data_changed(m, o);
    gr_frwlock_unlock(&o->data);
    return r < 0 ? r : (int64_t)len;
}

void mnt_op_write(struct mnt_req *r)
{
    const struct fuse_write_in *in = r->body;
    struct mnt_mount *m = r->m;
    struct mnt_obj *o;
    bool page = in->write_flags & FUSE_WRITE_CACHE;
    int64_t rc = obj_of(r, in->fh, &o);
    if (rc == 0) {
        if (o->type == VMFS_DISK && !o->writing)
            rc = disk_open(m, o, true, &(struct gr_err){0}); /* a descriptor of a former process */
        if (rc == 0)
            rc = mnt_hold(o, page ? MNT_WRITEBACK : MNT_PLAIN, NULL);
        if (rc == 0) {
            rc = in->size ? write_some(m, o, r->data, in->offset, in->size, !page && (in->flags & O_APPEND) && !r->again && o->type == VMFS_FILE) : 0;
            mnt_drop(o);
        }
        mnt_obj_put(o);
    }
    if (rc < 0)
        mnt_fail(r, (int)rc);
    else
        mnt_reply(r, &(struct fuse_write_out){.size = (uint32_t)rc}, sizeof(struct fuse_write_out));
}

/* ---- durable ---- */
void mnt_op_fsync(struct mnt_req *r)
{
    const struct fuse_fsync_in *in = r->body;
    struct mnt_obj *o;
    int rc = obj_of(r, in->fh, &o);
    if (rc == 0) {
        while (o->changing)
            gr_fqueue_wait(&o->wake);
        if (o->disk) { /* else all is at home: it was brought there before the lease went */
            o->busy++;
            rc = o->handle ? 0 : mnt_posix_flush(o, NULL);
            if (rc == 0)
                rc = gr_flush(o->ch);
            mnt_drop(o);
        }
        mnt_obj_put(o);
    }
    mnt_fail(r, rc);
}

/* A descriptor is closed, perhaps not the last that leads here: POSIX locks of the process end. */
void mnt_op_flush(struct mnt_req *r)
{
    const struct fuse_flush_in *in = r->body;
    struct mnt_open *d = *open_at(r->m, in->fh);
    if (d)
        mnt_locks_drop(d->o, r->m, in->lock_owner, false);
    mnt_fail(r, 0);
}

/* ---- attributes ---- */
static void change_posix(const struct fuse_setattr_in *in, struct vmfs_posix *p)
{
    int64_t now = mnt_now_ns();
    if (in->valid & FATTR_MODE)
        p->mode = in->mode & 07777;
    if (in->valid & FATTR_UID)
        p->uid = in->uid;
    if (in->valid & FATTR_GID)
        p->gid = in->gid;
    if (in->valid & FATTR_ATIME)
        p->atime_ns = in->valid & FATTR_ATIME_NOW ? now : (int64_t)in->atime * 1000000000 + in->atimensec;
    if (in->valid & FATTR_MTIME)
        p->mtime_ns = in->valid & FATTR_MTIME_NOW ? now : (int64_t)in->mtime * 1000000000 + in->mtimensec;
    p->ctime_ns = now;
}

static int set_dir(struct mnt_mount *m, uint64_t id, const struct fuse_setattr_in *in)
{
    struct fuse_attr a;
    int r = in->valid & FATTR_SIZE ? -EISDIR : mnt_attr_of(m, id, &a, NULL);
    if (r < 0)
        return r;
    struct vmfs_posix p = {a.mode & 07777, a.uid, a.gid, (int64_t)a.atime * 1000000000 + a.atimensec, (int64_t)a.mtime * 1000000000 + a.mtimensec, 0};
    change_posix(in, &p);
    return vmfs_dir_set_posix(m->ds->v, id, &p, NULL);
}

static int set_file(struct mnt_mount *m, struct mnt_obj *o, const struct fuse_setattr_in *in)
{
    int r = mnt_hold(o, MNT_PLAIN, NULL);
    if (r < 0)
        return r;
    if (in->valid & FATTR_SIZE) {
        gr_frwlock_write(&o->data);
        r = vmfs_file_resize(o->disk, in->size, NULL);
        data_changed(m, o);
        gr_frwlock_unlock(&o->data);
    }
    if (r == 0) {
        own_posix(m, o);
        change_posix(in, &o->posix);
        r = mnt_posix_flush(o, NULL);
    }
    mnt_drop(o);
    return r;
}

/* A disk has its size from granary disk resize, and its owner is who mounts; times are nobody's business. */
static int set_disk(const struct vmfs_node *n, const struct fuse_setattr_in *in)
{
    bool size = (in->valid & FATTR_SIZE) && in->size != n->size;
    return size || (in->valid & (FATTR_MODE | FATTR_UID | FATTR_GID)) ? -EPERM : 0;
}

void mnt_op_setattr(struct mnt_req *r)
{
    const struct fuse_setattr_in *in = r->body;
    struct mnt_mount *m = r->m;
    struct vmfs_node n;
    struct fuse_attr_out out = {0};
    uint64_t id = mnt_id(m, r->h.nodeid);
    int rc = vmfs_look(m->ds->v, id, "", &n, NULL);
    if (rc == 0 && n.type == VMFS_DIR) {
        rc = set_dir(m, id, in);
    } else if (rc == 0 && n.type == VMFS_DISK) {
        rc = set_disk(&n, in);
    } else if (rc == 0) {
        struct mnt_obj *o = mnt_obj_get(m->ds, id, n.type);
        rc = o ? set_file(m, o, in) : -ENOMEM;
        if (o)
            mnt_obj_put(o);
    }
    if (rc == 0)
        rc = mnt_attr_of(m, id, &out.attr, NULL);
    if (rc < 0)
        mnt_fail(r, rc);
    else
        mnt_reply(r, &out, sizeof(out));
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
    data_changed(m, o);
    gr_frwlock_unlock(&o->data);
    mnt_drop(o);
    return r;
}

void mnt_op_fallocate(struct mnt_req *r)
{
    const struct fuse_fallocate_in *in = r->body;
    struct mnt_obj *o;
    int rc = obj_of(r, in->fh, &o);
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
    int rc = in->whence == SEEK_DATA || in->whence == SEEK_HOLE ? obj_of(r, in->fh, &o) : -EINVAL;
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
