/* Names: looking, making, removing, moving; directories; what nodes look like. */
#include "common/buf.h"
#include "common/seam.h"
#include "snapshot/mnt_int.h"
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define OWN "granary." /* at the root: Granary's own, not shown */
#define HOLDER_XATTR "user.granary.holder"
#define YIELD_TRIES 50u

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
        p = (struct vmfs_posix){dir ? 0755 : now.type == VMFS_FILE ? 0644 : 0600, m->uid, m->gid, now.made_s * 1000000000, now.made_s * 1000000000, now.made_s * 1000000000};
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
static int entry(struct mnt_mount *m, const struct vmfs_node *n, struct fuse_entry_out *ret, struct gr_err *err)
{
    *ret = (struct fuse_entry_out){.nodeid = mnt_node(m, n->id)};
    return mnt_attr(m, n, &ret->attr, err);
}

static void reply_entry(struct mnt_req *r, const struct vmfs_node *n)
{
    struct fuse_entry_out out;
    int rc = entry(r->m, n, &out, NULL);
    if (rc < 0)
        mnt_fail(r, rc);
    else
        mnt_reply(r, &out, sizeof(out));
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

/* ---- paths, for what goes by them: disks, and folders with disks ---- */
void mnt_path_seen(struct mnt_mount *m, uint64_t id, uint64_t parent, const char *name)
{
    struct mnt_path **p = &m->paths[id % MNT_OBJ_HASH];
    while (*p && (*p)->id != id)
        p = &(*p)->next;
    if (*p && (*p)->parent == parent && strcmp((*p)->name, name) == 0)
        return;
    if (*p) {
        struct mnt_path *old = *p;
        *p = old->next;
        free(old);
    }
    struct mnt_path *n = gr_alloc(sizeof(*n) + strlen(name) + 1);
    if (!n) /* what needs it fails, and can be tried again after a look */
        return;
    *n = (struct mnt_path){.next = m->paths[id % MNT_OBJ_HASH], .id = id, .parent = parent};
    memcpy(n->name, name, strlen(name) + 1);
    m->paths[id % MNT_OBJ_HASH] = n;
}

char *mnt_path_of(const struct mnt_mount *m, uint64_t id)
{
    char *path = gr_strdup("");
    for (unsigned depth = 0; path && id != m->root; depth++) {
        const struct mnt_path *p = m->paths[id % MNT_OBJ_HASH];
        while (p && p->id != id)
            p = p->next;
        char *longer = p && depth < VMFS_PATH_MAX / 2 ? gr_asprintf("%s%s%s", p->name, *path ? "/" : "", path) : NULL;
        free(path);
        path = longer;
        id = p ? p->parent : 0;
    }
    if (path && m->prefix[0]) {
        char *whole = gr_asprintf("%s%s%s", m->prefix, *path ? "/" : "", path);
        free(path);
        path = whole;
    }
    return path;
}

void mnt_paths_free(struct mnt_mount *m)
{
    for (unsigned h = 0; h < MNT_OBJ_HASH; h++)
        for (struct mnt_path *p = m->paths[h], *next; p; p = next) {
            next = p->next;
            free(p);
        }
}

static bool is_own(uint64_t dir, const char *name)
{
    return dir == VMFS_ROOT_ID && strncmp(name, OWN, strlen(OWN)) == 0;
}

/* ---- looking ---- */
static int look(struct mnt_mount *m, uint64_t dir, const char *name, struct vmfs_node *ret)
{
    int r = is_own(dir, name) ? -ENOENT : strlen(name) > VMFS_NAME_MAX ? -ENAMETOOLONG : !*name ? -EINVAL : vmfs_look(m->ds->v, dir, name, ret, NULL);
    if (r == 0 && ret->type != VMFS_FILE)
        mnt_path_seen(m, ret->id, dir, name);
    return r;
}

void mnt_op_lookup(struct mnt_req *r)
{
    struct vmfs_node n;
    int rc = look(r->m, mnt_id(r->m, r->h.nodeid), r->body, &n);
    if (rc < 0)
        mnt_fail(r, rc);
    else
        reply_entry(r, &n);
}

/* ---- making ---- */
/* Two texts at the end of a body. */
static bool two_names(const struct mnt_req *r, size_t skip, const char **a, const char **b)
{
    *a = (const char *)r->body + skip;
    size_t n = strlen(*a);
    if (skip + n + 1 >= r->len)
        return false;
    *b = *a + n + 1;
    return true;
}

/* Whose it is: the asker's, in a directory of a group (set-group-ID) that group's. */
static int new_posix(struct mnt_req *r, uint64_t dir, uint32_t mode, bool is_dir, struct vmfs_posix *ret)
{
    struct fuse_attr parent;
    int rc = mnt_attr_of(r->m, dir, &parent, NULL);
    if (rc < 0)
        return rc;
    int64_t now = mnt_now_ns();
    *ret = (struct vmfs_posix){mode & 07777, r->h.uid, r->h.gid, now, now, now};
    if (parent.mode & S_ISGID) {
        ret->gid = parent.gid;
        ret->mode |= is_dir ? S_ISGID : 0;
    }
    return 0;
}

/* -EEXIST of what a former process made for this very request, before it could answer, is none. */
static int make(struct mnt_req *r, const char *name, enum vmfs_type type, uint32_t mode, struct vmfs_node *ret, struct gr_err *err)
{
    struct mnt_mount *m = r->m;
    uint64_t dir = mnt_id(m, r->h.nodeid), id = 0;
    struct vmfs_posix posix;
    if (is_own(dir, name))
        return -EPERM;
    int rc = new_posix(r, dir, mode, type == VMFS_DIR, &posix);
    if (rc == 0)
        rc = vmfs_make(m->ds->v, dir, name, type, &posix, &id, err);
    if (rc == -EEXIST && r->again)
        rc = 0;
    if (rc == 0)
        rc = vmfs_look(m->ds->v, id, "", ret, err);
    if (rc == 0 && ret->type != type)
        rc = -EEXIST;
    if (rc == 0 && type == VMFS_DIR)
        mnt_path_seen(m, id, dir, name);
    return rc;
}

static void make_and_reply(struct mnt_req *r, const char *name, enum vmfs_type type, uint32_t mode)
{
    struct vmfs_node n;
    struct mnt_obj *o = NULL;
    int rc = make(r, name, type, mode, &n, NULL);
    if (rc < 0) {
        mnt_fail(r, rc);
        return;
    }
    if (type == VMFS_FILE && (o = mnt_obj_get(r->m->ds, n.id, type)) && mnt_hold(o, MNT_PLAIN, NULL) == 0)
        mnt_drop(o); /* it is ours until it has been idle for a while */
    reply_entry(r, &n);
    if (o)
        mnt_obj_put(o);
}

void mnt_op_mkdir(struct mnt_req *r)
{
    const struct fuse_mkdir_in *in = r->body;
    make_and_reply(r, (const char *)(in + 1), VMFS_DIR, in->mode);
}

void mnt_op_mknod(struct mnt_req *r)
{
    const struct fuse_mknod_in *in = r->body;
    if (S_ISREG(in->mode) || !(in->mode & S_IFMT))
        make_and_reply(r, (const char *)(in + 1), VMFS_FILE, in->mode);
    else
        mnt_fail(r, -EPERM);
}

void mnt_op_create(struct mnt_req *r)
{
    const struct fuse_create_in *in = r->body;
    struct mnt_mount *m = r->m;
    const char *name = (const char *)(in + 1);
    struct vmfs_node n;
    struct {
        struct fuse_entry_out entry;
        struct fuse_open_out open;
    } out = {0};
    int rc = make(r, name, VMFS_FILE, in->mode, &n, NULL);
    if (rc == -EEXIST && !(in->flags & O_EXCL)) /* another host was quicker */
        rc = look(m, mnt_id(m, r->h.nodeid), name, &n);
    if (rc == 0 && n.type == VMFS_DIR)
        rc = -EISDIR;
    uint64_t fh = 0;
    if (rc == 0)
        rc = mnt_open(m, n.id, in->flags, &fh, NULL);
    if (rc == 0 && (rc = entry(m, &n, &out.entry, NULL)) < 0)
        mnt_close(m, fh);
    if (rc < 0) {
        mnt_fail(r, rc);
        return;
    }
    out.open = (struct fuse_open_out){.fh = fh, .open_flags = FOPEN_DIRECT_IO};
    mnt_reply(r, &out, sizeof(out));
}

/* ---- removing, moving ---- */
/* What lost its name ends, or stays until nobody has it open. Held by us until the other hosts know. */
static void bury(struct mnt_mount *m, const struct vmfs_lost *lost)
{
    struct mnt_obj *o = lost->id ? mnt_obj_get(m->ds, lost->id, VMFS_FILE) : NULL;
    if (!o)
        return;
    mnt_opened(o); /* and closed again: if nobody else has it, that ends it */
    o->lost = true;
    mnt_closed(o);
    if (o->opens)
        (void)mnt_peer_leave_to(m->ds, o->id, NULL); /* others that have it open know */
    mnt_obj_put(o);
}

/* Another host has the file that is to lose its name. */
static int ask_for(struct mnt_mount *m, const struct vmfs_lost *lost, struct gr_err *err)
{
    int r = mnt_peer_yield(m->ds, lost->id, lost->owner_slot, err);
    return r == -EAGAIN ? 0 : r;
}

static void unlink_name(struct mnt_req *r, bool dir_wanted)
{
    struct mnt_mount *m = r->m;
    const char *name = r->body;
    uint64_t dir = mnt_id(m, r->h.nodeid);
    struct vmfs_lost lost = {0};
    struct gr_err err = {0};
    int rc = is_own(dir, name) ? -ENOENT : -GR_ELOCKED;
    for (unsigned tries = 0; rc == -GR_ELOCKED && tries < YIELD_TRIES; tries++) {
        rc = vmfs_unlink(m->ds->v, dir, name, dir_wanted, mnt_now_ns(), &lost, &err);
        if (rc == -GR_ELOCKED && lost.owner_slot >= 0) {
            int asked = ask_for(m, &lost, &err);
            if (asked < 0)
                rc = asked;
        }
        if (rc == -GR_ELOCKED)
            gr_fiber_sleep_ms(tries);
    }
    if (rc == 0)
        bury(m, &lost);
    mnt_fail(r, rc == -ENOENT && r->again ? 0 : rc);
}

void mnt_op_unlink(struct mnt_req *r)
{
    unlink_name(r, false);
}

void mnt_op_rmdir(struct mnt_req *r)
{
    unlink_name(r, true);
}

/* Disks that are open below it go by their path. */
static int let_go_below(struct mnt_mount *m, const struct vmfs_node *n, struct gr_err *err)
{
    if (n->type == VMFS_FILE)
        return 0;
    if (n->type == VMFS_DISK && n->owner_slot >= 0)
        return gr_fail(err, -EBUSY, "the disk is another host's");
    gr_auto_free char *path = mnt_path_of(m, n->id);
    return path ? snap_close_below(m->s, m->ds, path, err) : -ESTALE;
}

static void rename_names(struct mnt_req *r, uint64_t to_dir, const char *from, const char *to, unsigned flags)
{
    struct mnt_mount *m = r->m;
    uint64_t dir = mnt_id(m, r->h.nodeid);
    struct vmfs_lost lost = {0};
    struct vmfs_node n;
    struct gr_err err = {0};
    int rc = is_own(dir, from) ? -ENOENT : is_own(to_dir, to) ? -EPERM : look(m, dir, from, &n);
    if (rc == 0)
        rc = let_go_below(m, &n, &err);
    if (rc == 0 && (flags & VMFS_MOVE_SWAP) && (rc = look(m, to_dir, to, &n)) == 0)
        rc = let_go_below(m, &n, &err);
    for (unsigned tries = 0; rc >= 0 && tries < YIELD_TRIES; tries++) {
        rc = vmfs_move(m->ds->v, dir, from, to_dir, to, flags, mnt_now_ns(), &lost, &err);
        if (rc != -GR_ELOCKED)
            break;
        rc = lost.owner_slot >= 0 ? ask_for(m, &lost, &err) : 0;
        gr_fiber_sleep_ms(tries);
        if (rc == 0 && tries == YIELD_TRIES - 1)
            rc = -GR_ELOCKED;
    }
    if (rc == 0)
        bury(m, &lost);
    if (rc == -EBUSY || rc == -GR_ELOCKED)
        gr_log_limited(GR_LOG_NOTE, "mount on '%s': '%s' is not renamed: %s", m->dir, from, gr_err_text(&err, rc));
    if (rc == -ENOENT && r->again && look(m, to_dir, to, &n) == 0)
        rc = 0;
    mnt_fail(r, rc);
}

void mnt_op_rename(struct mnt_req *r)
{
    const struct fuse_rename_in *in = r->body;
    const char *from, *to;
    if (two_names(r, sizeof(*in), &from, &to))
        rename_names(r, mnt_id(r->m, in->newdir), from, to, 0);
    else
        mnt_fail(r, -EINVAL);
}

void mnt_op_rename2(struct mnt_req *r)
{
    const struct fuse_rename2_in *in = r->body;
    const char *from, *to;
    if (two_names(r, sizeof(*in), &from, &to) && !(in->flags & ~(uint32_t)(RENAME_NOREPLACE | RENAME_EXCHANGE)))
        rename_names(r, mnt_id(r->m, in->newdir), from, to, (in->flags & RENAME_NOREPLACE ? VMFS_MOVE_KEEP : 0) | (in->flags & RENAME_EXCHANGE ? VMFS_MOVE_SWAP : 0));
    else
        mnt_fail(r, -EINVAL);
}

/* ---- directories ---- */
static void dir_free(struct mnt_dir *d)
{
    for (size_t i = 0; i < d->n; i++)
        free(d->ents[i].name);
    free(d->ents);
    free(d);
}

void mnt_dirs_free(struct mnt_mount *m)
{
    while (m->dirs) {
        struct mnt_dir *d = m->dirs;
        m->dirs = d->next;
        dir_free(d);
    }
}

struct listing {
    struct mnt_dir *d;
    uint64_t id;
};

static int add_name(void *arg, const char *name, uint64_t id, enum vmfs_type type)
{
    const struct listing *l = arg;
    struct mnt_dir *d = l->d;
    if (is_own(l->id, name))
        return 0;
    if (d->n == d->cap) {
        size_t cap = d->cap ? d->cap * 2 : 32;
        struct mnt_name *e = gr_realloc(d->ents, cap * sizeof(*e));
        if (!e)
            return -ENOMEM;
        d->ents = e;
        d->cap = cap;
    }
    char *copy = gr_strdup(name);
    if (!copy)
        return -ENOMEM;
    d->ents[d->n++] = (struct mnt_name){id, type, copy};
    return 0;
}

static int dir_open(struct mnt_mount *m, uint64_t id, uint64_t fh, struct mnt_dir **ret)
{
    struct mnt_dir *d = gr_zalloc(sizeof(*d));
    struct listing l = {d, id};
    int r = d ? vmfs_list(m->ds->v, id, add_name, &l, NULL) : -ENOMEM;
    if (r < 0) {
        if (d)
            dir_free(d);
        return r;
    }
    d->fh = fh;
    d->next = m->dirs;
    m->dirs = d;
    *ret = d;
    return 0;
}

void mnt_op_opendir(struct mnt_req *r)
{
    struct mnt_dir *d;
    int rc = dir_open(r->m, mnt_id(r->m, r->h.nodeid), r->m->next_fh++, &d);
    if (rc < 0)
        mnt_fail(r, rc);
    else
        mnt_reply(r, &(struct fuse_open_out){.fh = d->fh}, sizeof(struct fuse_open_out));
}

static struct mnt_dir **dir_at(struct mnt_mount *m, uint64_t fh)
{
    struct mnt_dir **p = &m->dirs;
    while (*p && (*p)->fh != fh)
        p = &(*p)->next;
    return p;
}

static int put_name(struct gr_buf *b, size_t max, uint64_t ino, const char *name, uint32_t type, uint64_t next)
{
    static const char zero[8];
    size_t n = strlen(name), size = FUSE_REC_ALIGN(FUSE_NAME_OFFSET + n);
    struct fuse_dirent d = {.ino = ino, .off = next, .namelen = (uint32_t)n, .type = type};
    if (size > max - b->len)
        return 1;
    return gr_buf_add(b, &d, FUSE_NAME_OFFSET) < 0 || gr_buf_add(b, name, n) < 0 || gr_buf_add(b, zero, size - FUSE_NAME_OFFSET - n) < 0 ? -ENOMEM : 0;
}

void mnt_op_readdir(struct mnt_req *r)
{
    const struct fuse_read_in *in = r->body;
    struct mnt_mount *m = r->m;
    gr_auto_buf struct gr_buf b = {0};
    uint64_t id = mnt_id(m, r->h.nodeid);
    struct mnt_dir *d = *dir_at(m, in->fh);
    size_t max = GR_MIN(in->size, MNT_IO_MAX);
    int rc = !d || in->offset == 0 ? 0 : 1; /* from the beginning (rewinddir): as it is now */
    if (rc == 0) {
        struct mnt_dir **old = dir_at(m, in->fh);
        if (*old) {
            d = *old;
            *old = d->next;
            dir_free(d);
        }
        rc = dir_open(m, id, in->fh, &d); /* also of a former process */
    }
    rc = GR_MIN(rc, 0);
    for (uint64_t i = in->offset; rc == 0 && i < d->n + 2; i++) {
        const struct mnt_name *e = i < 2 ? NULL : &d->ents[i - 2];
        rc = put_name(&b, max, e ? e->id : id, e ? e->name : i == 0 ? "." : "..", e && e->type != VMFS_DIR ? S_IFREG >> 12 : S_IFDIR >> 12, i + 1);
    }
    if (rc < 0)
        mnt_fail(r, rc);
    else
        mnt_reply(r, b.data, b.len);
}

void mnt_op_releasedir(struct mnt_req *r)
{
    const struct fuse_release_in *in = r->body;
    struct mnt_dir **p = dir_at(r->m, in->fh), *d = *p;
    if (d) {
        *p = d->next;
        dir_free(d);
    }
    mnt_fail(r, 0);
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
