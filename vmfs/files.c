/* Directories and files by number. Changes of names are those of ns.c; who looks reads home blocks, and believes them if the root's lock was
 * free before and after. */
#include "common/seam.h"
#include "vmfs/internal.h"
#include "vmfs/keys.h"

#define LOOK_TRIES 40u /* a millisecond each, before a look waits in the queue of those who change names */

/* ---- owners, modes, times ---- */
void vposix_put(const struct vmfs_posix *p, struct vmfs_posix_disk *d)
{
    memset(d, 0, sizeof *d);
    d->mode = gr_le32_of(p->mode & 07777);
    d->uid = gr_le32_of(p->uid);
    d->gid = gr_le32_of(p->gid);
    d->atime_ns = gr_le64_of((uint64_t)p->atime_ns);
    d->mtime_ns = gr_le64_of((uint64_t)p->mtime_ns);
    d->ctime_ns = gr_le64_of((uint64_t)p->ctime_ns);
}

bool vposix_get(const struct vmfs_posix_disk *d, struct vmfs_posix *ret)
{
    struct vmfs_posix p = { gr_le32_get(d->mode), gr_le32_get(d->uid), gr_le32_get(d->gid), (int64_t)gr_le64_get(d->atime_ns),
                            (int64_t)gr_le64_get(d->mtime_ns), (int64_t)gr_le64_get(d->ctime_ns) };
    if (p.mode > 07777)
        return false;
    *ret = p;
    return true;
}

static bool posix_of(const struct vobj *o, struct vmfs_posix *ret)
{
    if (o->ino.type == VMFS_DIR) {
        *ret = o->posix;
        return o->has_posix;
    }
    for (size_t i = 0; i < o->n_attrs; i++)
        if (strcmp(o->attrs[i].key, VMFS_ATTR_POSIX) == 0 && o->attrs[i].len == sizeof(struct vmfs_posix_disk))
            return vposix_get(o->attrs[i].val, ret);
    return false;
}

static int posix_keep(struct vobj *o, const struct vmfs_posix *p)
{
    struct vmfs_posix_disk d;
    if (o->ino.type == VMFS_DIR) {
        o->posix = *p;
        o->posix.mode &= 07777;
        o->has_posix = true;
        vobj_touch(o);
        return 0;
    }
    vposix_put(p, &d);
    return vobj_attr_put(o, VMFS_ATTR_POSIX, strlen(VMFS_ATTR_POSIX), &d, sizeof d);
}

static void dir_changed(struct vobj *dir, int64_t now_ns)
{
    if (dir->has_posix)
        dir->posix.mtime_ns = dir->posix.ctime_ns = now_ns;
}

bool vmfs_files_kept(const struct vmfs *v)
{
    return v->sb.incompat & VMFS_INCOMPAT_FILES;
}

static void node_of(struct vobj *o, bool here, struct vmfs_node *ret)
{
    *ret = (struct vmfs_node){ .id = o->id, .type = (enum vmfs_type)o->ino.type, .size = o->ino.size, .used = o->ino.used_units * VMFS_UNIT,
                               .made_s = o->ino.mtime_s, .owner_slot = -1, .here = here };
    ret->has_posix = posix_of(o, &ret->posix);
    if (o->ino.type == VMFS_DIR)
        ret->size = o->n_ents;
}

void vmfs_disk_node(struct vmfs_disk *d, struct vmfs_node *ret)
{
    if (d->o)
        node_of(d->o, true, ret);
    else
        *ret = (struct vmfs_node){ .owner_slot = -1 };
}

/* ---- looking ---- */
/* The names do not change while somebody looks: then it is @fn's answer that counts. */
static int at_an_instant(struct vmfs *v, int (*fn)(struct vmfs *v, struct vobj *root, void *arg, struct gr_err *err), void *arg, struct gr_err *err)
{
    struct vobj *root;
    for (unsigned tries = 0; tries < LOOK_TRIES; tries++) {
        if (v->ns_lock.held) { /* by us: it will not be long */
            gr_fmutex_lock(&v->ns_lock);
            gr_fmutex_unlock(&v->ns_lock);
        }
        struct gr_err e = { 0 };
        int r = vobj_peek(v, VMFS_INODE_ROOT, &root, err);
        if (r < 0)
            return r;
        bool quiet = root->ino.lock.holder == 0;
        if (quiet)
            r = fn(v, root, arg, &e);
        quiet = quiet && vobj_unchanged(root);
        vobj_free(root);
        if (quiet) {
            if (r < 0 && err)
                *err = e;
            return r;
        }
        gr_fiber_sleep_ms(1);
    }
    int r = ns_begin_bare(v, &root, err);
    if (r < 0)
        return r;
    struct gr_err e = { 0 };
    r = fn(v, root, arg, &e);
    if (r < 0 && err)
        *err = e;
    ns_end(v, -ECANCELED, NULL); /* no name changed */
    return r;
}

/* A directory for reading: @root, or a copy that *ret_own says is the caller's to free. */
static int dir_peek(struct vmfs *v, struct vobj *root, uint64_t id, struct vobj **ret, struct vobj **ret_own, struct gr_err *err)
{
    if (id == VMFS_INODE_ROOT) {
        *ret = root;
        return 0;
    }
    int r = id == VMFS_INODE_DYING ? gr_fail(err, -ENOENT, "object %llu is gone", (unsigned long long)id) : vobj_peek(v, id, ret, err);
    if (r < 0)
        return r;
    *ret_own = *ret;
    return (*ret)->ino.type == VMFS_DIR ? 0 : gr_fail(err, -ENOTDIR, "object %llu is not a directory", (unsigned long long)id);
}

struct look {
    uint64_t dir;
    const char *name;
    struct vmfs_node *ret;
    int (*each)(void *arg, const char *name, uint64_t id, enum vmfs_type type);
    void *arg;
};

static int node_by_id(struct vmfs *v, uint64_t id, struct vmfs_node *ret, struct gr_err *err)
{
    struct vobj *o = vobj_find(v, id), *own = NULL;
    if (!o || o->ino.type == VMFS_DIR) {
        int r = vobj_peek(v, id, &own, err);
        if (r < 0)
            return r;
        o = vobj_find(v, id); /* it may have come here meanwhile */
        o = o && o->ino.type != VMFS_DIR ? o : own;
    }
    node_of(o, o != own, ret);
    const struct vlock *l = &o->ino.lock;
    if (o == own && l->holder && !vlock_mine(v, l) && vlock_counts(v, l, NULL) == 1)
        ret->owner_slot = (int)l->holder - 1;
    vobj_free(own);
    return ret->type ? 0 : gr_fail(err, -ENOENT, "object %llu is gone", (unsigned long long)id);
}

static int look(struct vmfs *v, struct vobj *root, void *arg, struct gr_err *err)
{
    const struct look *l = arg;
    struct vobj *dir, *own = NULL;
    if (!*l->name)
        return node_by_id(v, l->dir, l->ret, err);
    int r = dir_peek(v, root, l->dir, &dir, &own, err);
    const struct vdirent *e = r == 0 ? dir_find(dir, l->name, strlen(l->name)) : NULL;
    if (r == 0)
        r = e ? node_by_id(v, e->id, l->ret, err) : gr_fail(err, -ENOENT, "'%s' does not exist", l->name);
    vobj_free(own);
    return r;
}

int vmfs_look(struct vmfs *v, uint64_t dir, const char *name, struct vmfs_node *ret, struct gr_err *err)
{
    return at_an_instant(v, look, &(struct look){ .dir = dir, .name = name, .ret = ret }, err);
}

struct names {
    uint64_t dir;
    struct vobj *copy;
};

static int keep_names(struct vmfs *v, struct vobj *root, void *arg, struct gr_err *err)
{
    struct names *n = arg;
    struct vobj *dir = NULL;
    vobj_free(n->copy); /* of an attempt before */
    n->copy = NULL;
    int r = vobj_peek(v, n->dir, &dir, err);
    if (r == 0 && dir->ino.type != VMFS_DIR)
        r = gr_fail(err, -ENOTDIR, "object %llu is not a directory", (unsigned long long)n->dir);
    if (r == 0)
        n->copy = dir;
    else
        vobj_free(dir);
    return r;
}

int vmfs_list(struct vmfs *v, uint64_t dir, int (*fn)(void *arg, const char *name, uint64_t id, enum vmfs_type type), void *arg, struct gr_err *err)
{
    struct names n = { .dir = dir };
    int r = at_an_instant(v, keep_names, &n, err);
    for (size_t i = 0; r == 0 && i < n.copy->n_ents; i++)
        r = fn(arg, n.copy->ents[i].name, n.copy->ents[i].id, (enum vmfs_type)n.copy->ents[i].type);
    vobj_free(n.copy);
    return r;
}

/* ---- changing names ---- */
static int name_ok(const char *name, struct gr_err *err)
{
    if (strlen(name) > VMFS_NAME_MAX)
        return gr_fail(err, -ENAMETOOLONG, "a name of %zu bytes: at most %u", strlen(name), VMFS_NAME_MAX);
    return !*name || strchr(name, '/') ? gr_fail(err, -EINVAL, "'%s' is not a name", name) : vmfs_name_check(name, err);
}

/* ns_begin() and the directory, which still is one. */
static int begin_in(struct vmfs *v, uint64_t id, struct vobj **ret, struct gr_err *err)
{
    struct vobj *root;
    int r = ns_begin(v, &root, err);
    if (r < 0)
        return r;
    r = id == VMFS_INODE_DYING ? -ENOENT : dir_load(v, id, ret, err);
    return r < 0 ? ns_end(v, r, err) : 0;
}

int vmfs_make(struct vmfs *v, uint64_t dir, const char *name, enum vmfs_type type, const struct vmfs_posix *posix, uint64_t *ret_id, struct gr_err *err)
{
    struct vobj *d, *o = NULL;
    int r = name_ok(name, err);
    if (r == 0)
        r = begin_in(v, dir, &d, err);
    if (r < 0)
        return r;
    const struct vdirent *e = dir_find(d, name, strlen(name));
    if (e) {
        *ret_id = e->id;
        r = gr_fail(err, -EEXIST, "'%s' exists already", name);
    }
    if (r == 0)
        r = vobj_new(v, type, &o, err);
    if (r == 0) {
        o->live.level = (uint8_t)mtree_level_for(0);
        r = posix_keep(o, posix);
    }
    if (r == 0)
        r = dir_add(d, name, strlen(name), o->id, (uint16_t)type);
    if (r == 0) {
        dir_changed(d, posix->mtime_ns);
        if (type == VMFS_DIR)
            o->ino.lock.holder = 0; /* the namespace lock guards directories */
    }
    uint64_t id = o ? o->id : 0;
    if (r < 0)
        ns_undo(v, o);
    r = ns_end(v, r, err);
    if (r == 0)
        *ret_id = id;
    return r;
}

/* The object loses its name: a directory at once, a file hangs among the dying until nobody has it open. Held by us from here on. */
static int take_name(struct vmfs *v, struct vobj *dir, const struct vdirent *e, struct vmfs_lost *lost, struct gr_err *err)
{
    struct vobj *o;
    uint64_t id = e->id;
    if (e->type == VMFS_DISK)
        return gr_fail(err, -EPERM, "'%s' is a disk: granary disk delete removes it", e->name);
    if (e->type == VMFS_DIR) {
        int r = dir_load(v, id, &o, err);
        if (r < 0 || o->n_ents)
            return r < 0 ? r : gr_fail(err, -ENOTEMPTY, "the directory is not empty");
        dir_remove(dir, id);
        inode_clear(v, o);
        return 0;
    }
    lost->id = id;
    int r = vobj_hold(v, id, 0, &o, &lost->owner_slot, err);
    if (r == 0)
        r = dying_add(v, id, VMFS_FILE, err);
    if (r == 0)
        dir_remove(dir, id);
    return r;
}

/* Somebody who looked a name up acts on what he saw. */
static int is_meant(const struct vdirent *e, uint64_t meant, const char *name, struct gr_err *err)
{
    return meant && (!e || e->id != meant) ? gr_fail(err, -ESTALE, "'%s' names something else by now", name) : 0;
}

int vmfs_unlink(struct vmfs *v, uint64_t dir, const char *name, bool dir_wanted, uint64_t meant, int64_t now_ns, struct vmfs_lost *lost, struct gr_err *err)
{
    struct vobj *d, *dying;
    *lost = (struct vmfs_lost){ .owner_slot = -1 };
    int r = begin_in(v, dir, &d, err);
    if (r < 0)
        return r;
    r = dir_load(v, VMFS_INODE_DYING, &dying, err); /* first: the entries change without a suspension between */
    const struct vdirent *e = dir_find(d, name, strlen(name));
    if (r == 0 && !e)
        r = gr_fail(err, -ENOENT, "'%s' does not exist", name);
    if (r == 0 && dir_wanted != (e->type == VMFS_DIR))
        r = dir_wanted ? gr_fail(err, -ENOTDIR, "'%s' is not a directory", name) : gr_fail(err, -EISDIR, "'%s' is a directory", name);
    if (r == 0)
        r = is_meant(e, meant, name, err);
    if (r == 0)
        r = take_name(v, d, e, lost, err);
    if (r == 0)
        dir_changed(d, now_ns);
    return ns_end(v, r, err);
}

/* Is directory @id inside @top? Its subtree is walked. */
static int is_inside(struct vmfs *v, uint64_t top, uint64_t id, struct gr_err *err)
{
    gr_auto_buf struct gr_buf left = { 0 };
    struct vobj *d;
    int r = top == id ? 1 : gr_buf_add(&left, &top, sizeof top);
    while (r == 0 && left.len) {
        uint64_t at;
        left.len -= sizeof at;
        memcpy(&at, left.data + left.len, sizeof at);
        r = dir_load(v, at, &d, err);
        for (size_t i = 0; r == 0 && i < d->n_ents; i++)
            if (d->ents[i].type == VMFS_DIR)
                r = d->ents[i].id == id ? 1 : gr_buf_add(&left, &d->ents[i].id, sizeof id);
    }
    return r;
}

static int swap_names(struct vobj *a, struct vdirent *x, struct vobj *b, struct vdirent *y)
{
    struct vdirent t = *x;
    x->id = y->id;
    x->type = y->type;
    y->id = t.id;
    y->type = t.type;
    vobj_touch(a);
    vobj_touch(b);
    return 0;
}

static int move_over(struct vmfs *v, struct vobj *b, struct vdirent *e, const struct vdirent *old, struct vmfs_lost *lost, struct gr_err *err)
{
    if (old->type == VMFS_DIR && e->type != VMFS_DIR)
        return gr_fail(err, -EISDIR, "'%s' is a directory", old->name);
    if (old->type != VMFS_DIR && e->type == VMFS_DIR)
        return gr_fail(err, -ENOTDIR, "'%s' is not a directory", old->name);
    return take_name(v, b, old, lost, err);
}

static int move_locked(struct vmfs *v, struct vobj *a, const char *from, struct vobj *b, const char *to, unsigned flags, uint64_t meant,
                       struct vmfs_lost *lost, struct gr_err *err)
{
    struct vdirent *e = dir_find(a, from, strlen(from)), *old = dir_find(b, to, strlen(to));
    int r = 0;
    if (!e || (!old && (flags & VMFS_MOVE_SWAP)))
        return gr_fail(err, -ENOENT, "'%s' does not exist", e ? to : from);
    if (old && (flags & VMFS_MOVE_KEEP))
        return gr_fail(err, -EEXIST, "'%s' exists already", to);
    if ((r = is_meant(old, meant, to, err)) < 0)
        return r;
    if (old && old->id == e->id)
        return 0;
    if (a != b && e->type == VMFS_DIR)
        r = is_inside(v, e->id, b->id, err);
    if (r == 0 && a != b && old && old->type == VMFS_DIR && (flags & VMFS_MOVE_SWAP))
        r = is_inside(v, old->id, a->id, err);
    if (r != 0)
        return r < 0 ? r : gr_fail(err, -EINVAL, "'%s' cannot move into itself", from);
    if (a != b)
        r = quota_may_move(v, e->id, e->type == VMFS_DIR, a->id, b->id, err);
    if (r == 0 && a != b && (flags & VMFS_MOVE_SWAP))
        r = quota_may_move(v, old->id, old->type == VMFS_DIR, b->id, a->id, err);
    if (r < 0)
        return r;
    if (flags & VMFS_MOVE_SWAP)
        return swap_names(a, e, b, old);
    struct vdirent moved = *e;
    if (old)
        r = move_over(v, b, e, old, lost, err);
    if (r == 0) {
        dir_remove(a, moved.id); /* its name goes with it, moved.name is not read again */
        r = dir_add(b, to, strlen(to), moved.id, moved.type);
    }
    return r;
}

int vmfs_move(struct vmfs *v, uint64_t from_dir, const char *from, uint64_t to_dir, const char *to, unsigned flags, uint64_t meant, int64_t now_ns,
              struct vmfs_lost *lost, struct gr_err *err)
{
    struct vobj *a, *b, *dying;
    *lost = (struct vmfs_lost){ .owner_slot = -1 };
    int r = name_ok(to, err);
    if (r == 0)
        r = begin_in(v, from_dir, &a, err);
    if (r < 0)
        return r;
    r = to_dir == VMFS_INODE_DYING ? gr_fail(err, -ENOENT, "the directory is gone") : dir_load(v, to_dir, &b, err);
    if (r == 0)
        r = dir_load(v, VMFS_INODE_DYING, &dying, err);
    if (r == 0)
        r = move_locked(v, a, from, b, to, flags, meant, lost, err);
    if (r == 0) {
        dir_changed(a, now_ns);
        dir_changed(b, now_ns);
    }
    return ns_end(v, r, err);
}

int vmfs_dir_set_posix(struct vmfs *v, uint64_t dir, const struct vmfs_posix *posix, struct gr_err *err)
{
    struct vobj *d;
    int r = begin_in(v, dir, &d, err);
    return r < 0 ? r : ns_end(v, posix_keep(d, posix), err);
}

/* ---- open files ---- */
int vmfs_open_id(struct vmfs *v, uint64_t id, const char *what, struct vmfs_disk **ret, int *ret_owner_slot, struct gr_err *err)
{
    if (v->role != VMFS_HOST)
        return gr_fail(err, -GR_EREADONLY, "this host joined datastore '%s' for reading only", v->sb.name);
    return disk_open(v, id, what, 0, ret, ret_owner_slot, err);
}

int vmfs_release_id(struct vmfs *v, uint64_t id, const char *what, struct gr_err *err)
{
    int r = vobj_release_idle(v, id, err); /* one of many that the same checkpoint brought home */
    return r == 1 ? disk_give_up(v, id, what, err) : r;
}

int vmfs_file_resize(struct vmfs_disk *d, uint64_t size, struct gr_err *err)
{
    struct vobj *o = d->o;
    if (!o || d->gone)
        return gr_fail(err, -GR_EFENCED, "'%s' is no longer ours", d->bdev.name);
    if (size > VMFS_FILE_MAX)
        return gr_fail(err, -EFBIG, "'%s': %llu bytes: a file has at most 1 PiB", d->bdev.name, (unsigned long long)size);
    uint64_t sectors = (o->ino.size + 511) / 512;
    int r = 0;
    if (size > o->ino.size && o->ino.provision == VMFS_THIN) {
        struct vmfs_rec_value_disk rec = { .r.type = gr_le16_of(VMFS_R_RESIZE), .value = gr_le64_of(size) };
        journal_room(o->v);
        r = size > o->ino.size ? record_do(o, &rec, sizeof rec, err) : 0; /* somebody may have made it longer meanwhile */
    } else if (size != o->ino.size) {
        r = disk_set_size(d, size, err);
    }
    if (r == 0 && (r = journal_append(o->v)) < 0)
        gr_fail(err, r, "'%s': its new length is not with the device: %s", d->bdev.name, gr_code_text(r));
    if (r == 0 && sectors != (o->ino.size + 511) / 512)
        gr_bdev_event(&d->bdev, GR_EVENT_RESIZED);
    return r;
}

int vmfs_file_set_posix(struct vmfs_disk *d, const struct vmfs_posix *posix, struct gr_err *err)
{
    struct vmfs_posix_disk p;
    vposix_put(posix, &p);
    int r = disk_attr_record(d, VMFS_ATTR_POSIX, &p, sizeof p, err);
    if (r == 0 && (r = journal_append(d->o->v)) < 0)
        gr_fail(err, r, "'%s': its owner and times are not with the device: %s", d->bdev.name, gr_code_text(r));
    return r;
}

int vmfs_file_end(struct vmfs *v, uint64_t id, struct gr_err *err)
{
    struct vobj *o;
    int r = vobj_hold(v, id, 0, &o, NULL, err);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    if (o->opens || o->handle)
        return gr_fail(err, -EBUSY, "object %llu is open", (unsigned long long)id);
    if (o->dying)
        return 0;
    o->users++; /* nobody gives it up meanwhile */
    r = vkeys_destroy(o, err);
    o->users--;
    gr_fqueue_wake_all(&o->settled);
    if (r == 0 && !o->dying)
        ns_destroy(o);
    return r;
}
