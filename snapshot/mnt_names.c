/* Names: looking, making, removing, moving. */
#include "common/seam.h"
#include "snapshot/mnt_int.h"
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define OWN "granary." /* at the root: Granary's own, not shown */
#define LOOK_TRIES 50u /* how often a name leads elsewhere while it is looked up */
#define TAKE_TRIES 20u /* and while it is taken away */

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

/* Bytes of the path of @name in directory @dir; what cannot be told counts as short. */
static size_t path_len(const struct mnt_mount *m, uint64_t dir, const char *name)
{
    size_t n = strlen(m->prefix) + strlen(name) + 1;
    while (dir != m->root && n <= VMFS_PATH_MAX) {
        const struct mnt_path *p = m->paths[dir % MNT_OBJ_HASH];
        while (p && p->id != dir)
            p = p->next;
        if (!p)
            return 0;
        n += strlen(p->name) + 1;
        dir = p->parent;
    }
    return m->prefix[0] ? n : n - 1;
}

void mnt_paths_free(struct mnt_mount *m)
{
    for (unsigned h = 0; h < MNT_OBJ_HASH; h++)
        for (struct mnt_path *p = m->paths[h], *next; p; p = next) {
            next = p->next;
            free(p);
        }
}

bool mnt_is_own(uint64_t dir, const char *name)
{
    return dir == VMFS_ROOT_ID && strncmp(name, OWN, strlen(OWN)) == 0;
}

/* ---- looking ---- */
static int look(struct mnt_mount *m, uint64_t dir, const char *name, struct vmfs_node *ret)
{
    int r = mnt_is_own(dir, name) ? -ENOENT : strlen(name) > VMFS_NAME_MAX ? -ENAMETOOLONG : !*name ? -EINVAL : vmfs_look(m->ds->v, dir, name, ret, NULL);
    if (r == 0 && ret->type != VMFS_FILE)
        mnt_path_seen(m, ret->id, dir, name);
    return r;
}

/* ---- what a thread has seen ----
 * The kernel looks names up, and then asks for a change of names. When that is done it marks the folder that it had found under a removed or replaced name
 * as dead, for good. If another host put another folder there meanwhile, it would mark one that lives, and nobody on this host would find anything in it
 * any more. So the change goes by what the thread was told last; it hears ESTALE otherwise, upon which the kernel looks again. */
static struct mnt_looked *looked_at(struct mnt_req *r)
{
    return &r->m->looked[r->h.pid % MNT_LOOKED];
}

static void look_told(struct mnt_req *r, uint64_t dir, const char *name, const struct vmfs_node *n)
{
    struct mnt_looked *l = looked_at(r);
    l->pid = n && n->type == VMFS_DIR ? r->h.pid : 0;
    if (!l->pid) /* no folder; or a thread of processes that this one cannot tell apart */
        return;
    l->dir = dir;
    l->id = n->id;
    memcpy(l->name, name, strlen(name) + 1); /* it was found: it is not too long */
}

/* The folder that the thread of @r means by a name; 0: it does not take it for a folder, or that is not known. */
static uint64_t folder_meant(struct mnt_req *r, uint64_t dir, const char *name)
{
    const struct mnt_looked *l = looked_at(r);
    return l->pid && l->pid == r->h.pid && l->dir == dir && strcmp(l->name, name) == 0 ? l->id : 0;
}

/* The name may lead elsewhere while another host is asked about what it led to. */
void mnt_op_lookup(struct mnt_req *r)
{
    struct mnt_mount *m = r->m;
    struct vmfs_node n;
    struct fuse_entry_out out;
    int rc = -EAGAIN;
    for (unsigned tries = 0; rc == -EAGAIN && tries < LOOK_TRIES; tries++) {
        rc = look(m, mnt_id(m, r->h.nodeid), r->body, &n);
        if (rc == 0 && (rc = mnt_entry(m, &n, &out, NULL)) == -ENOENT)
            rc = -EAGAIN;
    }
    look_told(r, mnt_id(m, r->h.nodeid), r->body, rc == 0 ? &n : NULL);
    if (rc < 0)
        mnt_fail(r, rc);
    else
        mnt_reply(r, &out, sizeof(out));
}

/* ---- making ---- */
static void reply_entry(struct mnt_req *r, const struct vmfs_node *n)
{
    struct fuse_entry_out out;
    int rc = mnt_entry(r->m, n, &out, NULL);
    if (rc < 0)
        mnt_fail(r, rc);
    else
        mnt_reply(r, &out, sizeof(out));
}

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
    if (mnt_is_own(dir, name))
        return -EPERM;
    if (path_len(m, dir, name) > VMFS_PATH_MAX) /* nobody could name it without a mount */
        return -ENAMETOOLONG;
    int rc = new_posix(r, dir, mode, type == VMFS_DIR, &posix);
    if (rc == 0)
        rc = vmfs_make(m->ds->v, dir, name, type, &posix, &id, err);
    if (rc == 0) /* as it was made: another host may have removed or replaced it already */
        *ret = (struct vmfs_node){.id = id, .type = type, .owner_slot = -1, .has_posix = true, .posix = posix};
    if (rc == -EEXIST && r->again)
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
    if (rc == 0 && (rc = mnt_entry(m, &n, &out.entry, NULL)) < 0)
        mnt_close(m, fh);
    if (rc < 0) {
        mnt_fail(r, rc);
        return;
    }
    out.open = (struct fuse_open_out){.fh = fh, .open_flags = FOPEN_DIRECT_IO};
    mnt_reply(r, &out, sizeof(out));
}

/* ---- removing, moving ---- */
/* What lost its name ends in a while, or stays until nobody has it open. */
static void bury(struct mnt_mount *m, const struct vmfs_lost *lost)
{
    struct mnt_obj *o = lost->id ? mnt_obj_get(m->ds, lost->id, VMFS_FILE) : NULL;
    if (!o) /* out of memory: the next join gives it back */
        return;
    o->lost = true;
    mnt_obj_put(o);
}

/* A change of names, and the file that loses its name by it: ours while that is tried. */
struct taking {
    struct mnt_mount *m;
    struct vmfs_lost lost;
    struct mnt_obj *held;
};

static void let(struct taking *t)
{
    if (t->held) {
        mnt_drop(t->held);
        mnt_obj_put(t->held);
    }
    t->held = NULL;
}

/* It was not done because another host has the file: have it. 0: try again. */
static int have(struct taking *t, struct gr_err *err)
{
    let(t);
    if (t->lost.owner_slot < 0)
        return -GR_ELOCKED;
    struct mnt_obj *o = mnt_obj_get(t->m->ds, t->lost.id, VMFS_FILE);
    int r = o ? mnt_hold(o, MNT_PLAIN, err) : -ENOMEM;
    if (r == 0)
        t->held = o;
    else if (o)
        mnt_obj_put(o);
    return r == -ESTALE ? 0 : r; /* it is gone: the name leads elsewhere now */
}

static int taken(struct taking *t, int r)
{
    if (r == 0)
        bury(t->m, &t->lost);
    let(t);
    return r;
}

/* A folder that may be about to lose its name, and its snapshot policy with it. */
static struct vmfs_stat folder_at(struct mnt_mount *m, uint64_t dir, const char *name)
{
    struct vmfs_node n;
    struct vmfs_stat st;
    bool is = vmfs_look(m->ds->v, dir, name, &n, NULL) == 0 && n.type == VMFS_DIR && vmfs_stat_object(m->ds->v, n.id, &st, NULL) == 0;
    return is ? st : (struct vmfs_stat){0};
}

static void folder_gone(struct mnt_mount *m, const struct vmfs_stat *folder)
{
    struct vmfs_stat now;
    if (folder->id && vmfs_stat_object(m->ds->v, folder->id, &now, NULL) == -ENOENT)
        snap_policy_forget(m->ds, folder->uuid);
}

static void unlink_name(struct mnt_req *r, bool dir_wanted)
{
    struct mnt_mount *m = r->m;
    const char *name = r->body;
    uint64_t dir = mnt_id(m, r->h.nodeid);
    struct taking t = {.m = m};
    struct gr_err err = {0};
    int rc = mnt_is_own(dir, name) ? -ENOENT : 0;
    struct vmfs_stat folder = rc == 0 && dir_wanted ? folder_at(m, dir, name) : (struct vmfs_stat){0};
    for (unsigned tries = 0; rc == 0 && tries < TAKE_TRIES; tries++) {
        rc = vmfs_unlink(m->ds->v, dir, name, dir_wanted, dir_wanted ? folder_meant(r, dir, name) : 0, mnt_now_ns(), &t.lost, &err);
        if (rc != -GR_ELOCKED || tries == TAKE_TRIES - 1)
            break;
        rc = have(&t, &err);
    }
    rc = taken(&t, rc);
    if (rc == 0)
        folder_gone(m, &folder);
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

/* The paths of all that moves stay short enough. */
static int fits(struct mnt_mount *m, const struct vmfs_node *n, uint64_t to_dir, const char *to)
{
    size_t len = path_len(m, to_dir, to);
    return len > VMFS_PATH_MAX ? -ENAMETOOLONG : n->type == VMFS_DIR && len ? vmfs_path_fits(m->ds->v, n->id, len, NULL) : 0;
}

static void rename_names(struct mnt_req *r, uint64_t to_dir, const char *from, const char *to, unsigned flags)
{
    struct mnt_mount *m = r->m;
    uint64_t dir = mnt_id(m, r->h.nodeid);
    struct taking t = {.m = m};
    struct vmfs_node n;
    uint64_t meant = flags ? 0 : folder_meant(r, to_dir, to);
    struct gr_err err = {0};
    int rc = mnt_is_own(dir, from) ? -ENOENT : mnt_is_own(to_dir, to) ? -EPERM : look(m, dir, from, &n);
    if (rc == 0 && (rc = fits(m, &n, to_dir, to)) == 0)
        rc = let_go_below(m, &n, &err);
    struct vmfs_stat over = rc == 0 && n.type == VMFS_DIR && !flags ? folder_at(m, to_dir, to) : (struct vmfs_stat){0};
    if (rc == 0 && (flags & VMFS_MOVE_SWAP) && (rc = look(m, to_dir, to, &n)) == 0 && (rc = fits(m, &n, dir, from)) == 0)
        rc = let_go_below(m, &n, &err);
    for (unsigned tries = 0; rc == 0 && tries < TAKE_TRIES; tries++) {
        rc = vmfs_move(m->ds->v, dir, from, to_dir, to, flags, meant, mnt_now_ns(), &t.lost, &err);
        if (rc != -GR_ELOCKED || tries == TAKE_TRIES - 1)
            break;
        rc = have(&t, &err);
    }
    rc = taken(&t, rc);
    if (rc == 0)
        folder_gone(m, &over);
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
