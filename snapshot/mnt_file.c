/* Descriptors: files and disks that are open. */
#include "common/seam.h"
#include "snapshot/mnt_int.h"
#include <fcntl.h>
#include <string.h>

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

int mnt_disk_open(struct mnt_mount *m, struct mnt_obj *o, bool write, struct gr_err *err)
{
    gr_auto_free char *path = mnt_path_of(m, o->id);
    int r = path ? 0 : gr_fail(err, -ESTALE, "its path is not known any more");
    struct snap_handle *h = NULL;
    if (r == 0 && !o->handle) {
        r = disk_handle(m, path, &h, err);
        if (r == 0 && o->handle)
            h->users--; /* somebody was quicker */
        else if (r == 0 && ((r = vmfs_shown(h->disk, err)) < 0 || (r = gr_chan_open(vmfs_bdev(h->disk), m->s->o.loop, &o->ch)) < 0))
            h->users--;
        else if (r == 0) {
            o->handle = h;
            o->disk = h->disk;
        }
    }
    if (r == 0 && write)
        r = disk_let_write(m, o, path, err);
    if (r == -GR_EBEHIND)
        gr_log_limited(GR_LOG_NOTE, "mount on '%s': %s", m->dir, err->text);
    if (r == -GR_ELOCKED || r == -EBUSY) {
        gr_log_limited(GR_LOG_NOTE, "mount on '%s': %s/%s cannot be opened%s: %s", m->dir, m->ds_name, path, write ? " for writing" : "", gr_err_text(err, r));
        r = -EBUSY;
    }
    return r;
}

/* ---- owners and times; the lease is held ---- */
void mnt_own_posix(struct mnt_mount *m, struct mnt_obj *o)
{
    if (!o->has_posix) {
        int64_t now = mnt_now_ns();
        o->posix = (struct vmfs_posix){0644, m->uid, m->gid, now, now, now};
        o->has_posix = true;
    }
    o->posix_dirty = true;
}

void mnt_changed(struct mnt_mount *m, struct mnt_obj *o)
{
    if (o->handle)
        return;
    mnt_own_posix(m, o);
    o->posix.mtime_ns = o->posix.ctime_ns = mnt_now_ns();
}

/* ---- the object of a request ---- */
/* With a reference. A descriptor that a former process gave out is one again. */
int mnt_obj_of(struct mnt_req *r, uint64_t fh, struct mnt_obj **ret)
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
        rc = mnt_disk_open(m, o, false, &err);
    if (rc == 0 && !*open_at(m, fh))
        rc = open_add(m, o, fh);
    if (rc < 0 && o)
        mnt_obj_put(o);
    else
        *ret = o;
    return rc;
}

static int cut_to_nothing(struct mnt_mount *m, struct mnt_obj *o, struct gr_err *err)
{
    int r = mnt_hold(o, MNT_PLAIN, err);
    if (r < 0)
        return r;
    gr_frwlock_write(&o->data);
    r = vmfs_file_resize(o->disk, 0, err);
    mnt_changed(m, o);
    gr_frwlock_unlock(&o->data);
    mnt_drop(o);
    return r;
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
    r = open_add(m, o, fh);
    if (r == 0 && n.type == VMFS_DISK)
        r = mnt_disk_open(m, o, write, err);
    else if (r == 0 && (flags & O_TRUNC))
        r = cut_to_nothing(m, o, err);
    if (r < 0)
        mnt_close(m, fh);
    else
        *ret_fh = fh;
    mnt_obj_put(o);
    return r == -ENOENT ? -ESTALE : r;
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

/* ---- durable ---- */
void mnt_op_fsync(struct mnt_req *r)
{
    const struct fuse_fsync_in *in = r->body;
    struct mnt_obj *o;
    int rc = mnt_obj_of(r, in->fh, &o);
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
