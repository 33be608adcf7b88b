/* What nodes look like: attributes, who has them, how much space there is. */
#include "common/cleanup.h"
#include "snapshot/mnt_int.h"
#include <string.h>
#include <sys/stat.h>

#define HOLDER_XATTR "user.granary.holder"

/* ---- what nodes look like ---- */
static void set_time(int64_t ns, uint64_t *ret_s, uint32_t *ret_ns)
{
    int64_t s = ns / 1000000000 - (ns % 1000000000 < 0);
    *ret_s = (uint64_t)s;
    *ret_ns = (uint32_t)(ns - s * 1000000000);
}

int mnt_attr(struct mnt_mount *m, const struct vmfs_node *n, struct fuse_attr *ret, struct gr_err *err)
{
    struct vmfs_node now = *n;
    int r = now.owner_slot >= 0 ? mnt_peer_look(m->ds, &now, err) : 0;
    if (r < 0)
        return r;
    const struct mnt_obj *o = mnt_obj_find(m->ds, now.id);
    if (o && o->disk && !o->handle) {
        now.posix = o->posix;
        now.has_posix = o->has_posix;
    }
    bool dir = now.type == VMFS_DIR;
    struct vmfs_posix p = now.posix;
    if (!now.has_posix)
        p = (struct vmfs_posix){dir ? 0755 : 0600, m->uid, m->gid, now.made_s * 1000000000, now.made_s * 1000000000, now.made_s * 1000000000};
    *ret = (struct fuse_attr){.ino = now.id, .size = now.size, .blocks = (now.used + 511) / 512, .mode = p.mode | (dir ? S_IFDIR : S_IFREG), .nlink = dir ? 2 : o && o->lost ? 0 : 1,
                              .uid = p.uid, .gid = p.gid, .blksize = VMFS_BLOCK};
    set_time(p.atime_ns, &ret->atime, &ret->atimensec);
    set_time(p.mtime_ns, &ret->mtime, &ret->mtimensec);
    set_time(p.ctime_ns, &ret->ctime, &ret->ctimensec);
    return 0;
}

int mnt_attr_of(struct mnt_mount *m, uint64_t id, struct fuse_attr *ret, struct gr_err *err)
{
    struct vmfs_node n;
    int r = vmfs_look(m->ds->v, id, "", &n, err);
    return r < 0 ? r : mnt_attr(m, &n, ret, err);
}

/* Entries and attributes are good for no time: each is asked for anew, as another host may have changed it. */
int mnt_entry(struct mnt_mount *m, const struct vmfs_node *n, struct fuse_entry_out *ret, struct gr_err *err)
{
    *ret = (struct fuse_entry_out){.nodeid = mnt_node(m, n->id)};
    return mnt_attr(m, n, &ret->attr, err);
}

void mnt_op_getattr(struct mnt_req *r)
{
    struct fuse_attr_out out = {0};
    int rc = mnt_attr_of(r->m, mnt_id(r->m, r->h.nodeid), &out.attr, NULL);
    if (rc < 0)
        mnt_fail(r, rc);
    else
        mnt_reply(r, &out, sizeof(out));
}

/* ---- changing ---- */
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
        mnt_changed(m, o);
        gr_frwlock_unlock(&o->data);
    }
    if (r == 0) {
        mnt_own_posix(m, o);
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

/* ---- the rest ---- */
void mnt_op_statfs(struct mnt_req *r)
{
    struct vmfs_info i;
    vmfs_info(r->m->ds->v, &i);
    struct fuse_statfs_out out = {.st = {.blocks = i.size / 4096, .bfree = i.free / 4096, .bavail = i.free / 4096, .bsize = 4096, .frsize = 4096,
                                         .namelen = VMFS_NAME_MAX}};
    mnt_reply(r, &out, sizeof(out));
}

static void reply_text(struct mnt_req *r, uint32_t max, const char *text, size_t len)
{
    if (max == 0)
        mnt_reply(r, &(struct fuse_getxattr_out){.size = (uint32_t)len}, sizeof(struct fuse_getxattr_out));
    else if (len > max)
        mnt_fail(r, -ERANGE);
    else
        mnt_reply(r, text, len);
}

/* Who has it: a host, and if sessions use it, that. */
static int holder_of(struct mnt_mount *m, uint64_t id, char ret[256])
{
    struct vmfs_node n;
    char host[64] = "";
    int r = vmfs_look(m->ds->v, id, "", &n, NULL);
    if (r < 0)
        return r;
    if (n.owner_slot >= 0)
        mnt_peer_name(m->ds, n.owner_slot, host);
    gr_auto_free char *path = n.type == VMFS_DISK ? mnt_path_of(m, id) : NULL;
    unsigned sessions = path ? snap_users_of(m->s, m->ds, path) : 0;
    if (sessions)
        snprintf(ret, 256, "%u session%s on this host", sessions, sessions == 1 ? "" : "s");
    else
        snprintf(ret, 256, "%s", host[0] ? host : n.here ? "this host" : "nobody");
    return 0;
}

void mnt_op_getxattr(struct mnt_req *r)
{
    const struct fuse_getxattr_in *in = r->body;
    char text[256];
    int rc = strcmp((const char *)(in + 1), HOLDER_XATTR) == 0 ? holder_of(r->m, mnt_id(r->m, r->h.nodeid), text) : -ENODATA;
    if (rc < 0)
        mnt_fail(r, rc);
    else
        reply_text(r, in->size, text, strlen(text));
}

void mnt_op_listxattr(struct mnt_req *r)
{
    const struct fuse_getxattr_in *in = r->body;
    reply_text(r, in->size, HOLDER_XATTR, sizeof(HOLDER_XATTR));
}
