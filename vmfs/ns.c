/* The namespace: directories as blobs of names. The lock of the root directory guards all of it; whoever changes names holds
 * it, and what changed is home (checkpoint) before it is given up. So names need no records of their own. */
#include "common/seam.h"
#include "vmfs/internal.h"
#include "vmfs/notes.h"
#include "vmfs/keys.h"
#include "vmfs/rescue.h"

#define NS_WAIT_MS 15000u

/* ---- names ---- */
static int component_ok(const char *s, size_t n, const char *path, struct gr_err *err)
{
    if (n == 0)
        return gr_fail(err, -EINVAL, "'%.200s': an empty name in the path", path);
    if (n > VMFS_NAME_MAX)
        return gr_fail(err, -ENAMETOOLONG, "'%.200s…': a name of %zu bytes: at most %u", path, n, VMFS_NAME_MAX);
    if ((n == 1 && s[0] == '.') || (n == 2 && s[0] == '.' && s[1] == '.'))
        return gr_fail(err, -EINVAL, "'%.200s': '.' and '..' are not names", path);
    if (!gr_utf8_ok(s, n))
        return gr_fail(err, -EINVAL, "a name in the path is not valid UTF-8 or holds control characters");
    if (memchr(s, '@', n) || memchr(s, ':', n))
        return gr_fail(err, -EINVAL, "'%.200s': names hold no '@' and no ':'", path);
    return 0;
}

int vmfs_name_check(const char *path, struct gr_err *err)
{
    if (strlen(path) > VMFS_PATH_MAX)
        return gr_fail(err, -ENAMETOOLONG, "a path of %zu bytes: at most %u", strlen(path), VMFS_PATH_MAX);
    for (const char *p = path; *p;) {
        const char *e = strchrnul(p, '/');
        int r = component_ok(p, (size_t)(e - p), path, err);
        if (r < 0)
            return r;
        p = *e ? e + 1 : e;
        if (*e && !*p)
            return gr_fail(err, -EINVAL, "'%.200s': ends with a '/'", path);
    }
    return 0;
}

struct vdirent *dir_find(struct vobj *dir, const char *name, size_t n)
{
    for (size_t i = 0; i < dir->n_ents; i++)
        if (strlen(dir->ents[i].name) == n && memcmp(dir->ents[i].name, name, n) == 0)
            return &dir->ents[i];
    return NULL;
}

int dir_add(struct vobj *dir, const char *name, size_t n, uint64_t id, uint16_t type)
{
    if (dir->n_ents == dir->cap_ents) {
        size_t cap = dir->cap_ents ? dir->cap_ents * 2 : 16;
        struct vdirent *e = gr_realloc(dir->ents, cap * sizeof *e);
        if (!e)
            return -ENOMEM;
        dir->ents = e;
        dir->cap_ents = cap;
    }
    char *copy = gr_zalloc(n + 1);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, name, n);
    dir->ents[dir->n_ents++] = (struct vdirent){ id, type, copy };
    vobj_touch(dir);
    return 0;
}

void dir_remove(struct vobj *dir, uint64_t id)
{
    for (size_t i = 0; i < dir->n_ents; i++)
        if (dir->ents[i].id == id) {
            free(dir->ents[i].name);
            memmove(dir->ents + i, dir->ents + i + 1, (dir->n_ents - i - 1) * sizeof *dir->ents);
            dir->n_ents--;
            vobj_touch(dir);
            return;
        }
}

/* ---- changing: between ns_begin and ns_end ---- */
/* A checkpoint that finds no room for a directory is the end of the volume on this host, and one that joined when all was taken has none at first. */
#define NS_ROOM_UNITS 16u
static uint64_t room_of(const struct vobj *dir) { return NS_ROOM_UNITS + dir->n_ents / 16; }

static int room_ask(struct vmfs *v, uint64_t units, struct gr_err *err)
{
    int r = space_some(v, units);
    return r == -GR_ENOSPACE ? gr_fail(err, r, "datastore '%s' is full, and the other hosts have nothing left to give this one for its metadata: make room on another "
                                       "host (what has a disk open can unmap), or 'granary datastore grow' it", v->sb.name) : r;
}

static int hold_root(struct vmfs *v, struct vobj **ret, struct gr_err *err)
{
    int r = vobj_hold(v, VMFS_INODE_ROOT, NS_WAIT_MS, ret, NULL, err);
    return r < 0 ? gr_prefix(err, r, "datastore '%s': the namespace cannot be locked", v->sb.name) : r;
}

/* The root is held. Others are asked for room without its lock: that takes seconds when one of them does not answer, and nobody could change a name. */
static int root_room(struct vmfs *v, struct vobj **root, struct gr_err *err)
{
    uint64_t need = room_of(*root);
    int r = 0;
    if (!space_has(v, need) && (r = vobj_release(v, *root, err)) == 0 && (r = room_ask(v, need, err)) == 0)
        r = hold_root(v, root, err);
    if (r == 0 && (r = room_ask(v, room_of(*root), err)) < 0 && !v->fenced) /* it is hardly ever gone again */
        (void)vobj_release(v, *root, NULL);
    return r;
}

static int begin(struct vmfs *v, bool names, struct vobj **ret_root, struct gr_err *err)
{
    if (v->role != VMFS_HOST)
        return gr_fail(err, -GR_EREADONLY, "this host joined datastore '%s' for reading only", v->sb.name);
    if (v->rescue && !v->replaying)
        return vrescue_refuse(v, err);
    gr_fmutex_lock(&v->ns_lock);
    v->ns_made = 0;
    int r = v->fenced ? gr_fail(err, -GR_EFENCED, "datastore '%s': %s", v->sb.name, v->fence_reason)
                      : hold_root(v, ret_root, err);
    if (r == 0 && names)
        r = root_room(v, ret_root, err);
    if (r < 0)
        gr_fmutex_unlock(&v->ns_lock);
    return r;
}

int ns_begin(struct vmfs *v, struct vobj **ret_root, struct gr_err *err)
{
    return begin(v, true, ret_root, err);
}

int ns_begin_bare(struct vmfs *v, struct vobj **ret_root, struct gr_err *err)
{
    return begin(v, false, ret_root, err);
}

/* In memory names hang together with much else, which nobody can take back: a checkpoint that has no memory is tried again, and then it is the end of
 * the volume on this host, as when it fails for anything else. */
#define HOME_TRIES 50u
#define HOME_PAUSE_MS 20u
static int names_home(struct vmfs *v)
{
    int r = ckpt_run(v);
    for (unsigned tries = 1; r == -ENOMEM && !v->fenced && tries < HOME_TRIES; tries++) {
        gr_fiber_sleep_ms(HOME_PAUSE_MS);
        r = ckpt_run(v);
    }
    if (r < 0 && !v->fenced)
        vmfs_fence(v, "names that were changed cannot go home: %s", gr_code_text(r));
    return r;
}

/* Home with it (unless @r says that nothing was changed), give the lock up. */
int ns_end(struct vmfs *v, int r, struct gr_err *err)
{
    if (r >= 0 && (r = names_home(v)) < 0)
        gr_fail(err, r, "datastore '%s': %s", v->sb.name, v->fenced ? v->fence_reason : gr_code_text(r));
    struct vobj *root = vobj_find(v, VMFS_INODE_ROOT);
    if (root && r < 0)
        vobj_clean(root); /* a checkpoint must not take home names of what came to nothing */
    for (unsigned h = 0; h < VOBJ_HASH; h++)
        for (struct vobj *o = v->objs[h], *next; o; o = next) {
            next = o->hash_next;
            bool removed = o->ino.type == 0 && !o->ino.lock.holder; /* a directory */
            if (removed || (o->ino.type == VMFS_DIR && o->id != VMFS_INODE_ROOT))
                vobj_free(o);
        }
    struct gr_err why = { 0 };
    int rel = root && !v->fenced ? vobj_release(v, root, &why) : 0;
    if (rel < 0 && rel != -ENOMEM && r >= 0)
        r = gr_fail(err, rel, "%s", gr_err_text(&why, rel));
    else if (rel < 0 && !v->fenced) /* but what was changed is home */
        vmfs_warn(v, "datastore '%s': the lock of its names is not given back, which the next change here does: %s", v->sb.name, gr_err_text(&why, rel));
    gr_fmutex_unlock(&v->ns_lock);
    return r;
}

/* A directory of the tree while the namespace lock is held. */
int dir_load(struct vmfs *v, uint64_t id, struct vobj **ret, struct gr_err *err)
{
    struct vobj *o = vobj_find(v, id);
    int r = 0;
    if (!o && (r = vobj_peek(v, id, &o, err)) == 0) {
        vobj_adopt(o);
        r = room_ask(v, room_of(o), err);
    }
    if (r == 0 && o->ino.type != VMFS_DIR)
        r = gr_fail(err, -ENOTDIR, "object %llu is not a directory", (unsigned long long)id);
    if (r == 0)
        *ret = o;
    return r;
}

/* The directories of @rest, the end of @path, are missing. All that a change of names makes goes home in one checkpoint, for which the journal must
 * have room beside what guests have in it. */
static int may_make(struct vmfs *v, const char *path, const char *rest, struct gr_err *err)
{
    unsigned n = 0, most = vmfs_create_max(v);
    for (const char *c = rest; *c; c++)
        n += *c == '/';
    if (n > most - GR_MIN(v->ns_made, most))
        return gr_fail(err, -EMLINK, "'%s/%.200s' needs %u new folders: this datastore's journal has room for %u at a time, make some of them first", v->sb.name,
                       path, n, most);
    v->ns_made += n;
    return 0;
}

/* Walk to the directory of the last component; @make: missing directories are made. */
int ns_walk_parent(struct vmfs *v, struct vobj *root, const char *path, bool make, struct vobj **ret_dir, const char **ret_name,
                   struct gr_err *err)
{
    struct vobj *dir = root;
    const char *p = path, *e;
    bool made = false;
    for (; *(e = strchrnul(p, '/')); p = e + 1) {
        struct vdirent *d = dir_find(dir, p, (size_t)(e - p));
        int r;
        if (d) {
            if (d->type != VMFS_DIR)
                return gr_fail(err, -ENOTDIR, "'%.*s' is not a directory", (int)(e - path), path);
            r = dir_load(v, d->id, &dir, err);
        } else if (make) {
            struct vobj *n;
            r = made ? 0 : may_make(v, path, p, err);
            made = true;
            if (r == 0)
                r = vobj_new(v, VMFS_DIR, &n, err);
            if (r == 0) {
                n->ino.lock.holder = 0; /* the namespace lock guards directories */
                r = dir_add(dir, p, (size_t)(e - p), n->id, VMFS_DIR);
            }
            dir = r == 0 ? n : dir;
        } else {
            r = gr_fail(err, -ENOENT, "no directory '%.*s'", (int)(e - path), path);
        }
        if (r < 0)
            return r;
    }
    *ret_dir = dir;
    *ret_name = p;
    return 0;
}

/* The last directory of the path that there is. */
int ns_walk_existing(struct vmfs *v, struct vobj *root, const char *path, struct vobj **ret, struct gr_err *err)
{
    struct vobj *dir = root;
    int r = 0;
    for (const char *p = path, *e; r == 0 && *(e = strchrnul(p, '/')); p = e + 1) {
        struct vdirent *d = dir_find(dir, p, (size_t)(e - p));
        if (!d || d->type != VMFS_DIR)
            break;
        r = dir_load(v, d->id, &dir, err);
    }
    *ret = dir;
    return r;
}

int ns_dir(struct vmfs *v, const char *path, struct vobj **ret, struct gr_err *err)
{
    struct vobj *dir;
    const char *name;
    int r = ns_walk_parent(v, vobj_find(v, VMFS_INODE_ROOT), path, false, &dir, &name, err);
    struct vdirent *e = r == 0 ? dir_find(dir, name, strlen(name)) : NULL;
    if (r == 0 && !e)
        r = gr_fail(err, -ENOENT, "'%s/%s' does not exist", v->sb.name, path);
    if (r == 0 && e->type != VMFS_DIR)
        r = gr_fail(err, -ENOTDIR, "'%s/%s' is not a folder", v->sb.name, path);
    return r == 0 ? dir_load(v, e->id, ret, err) : r;
}

/* ---- looking: home state, no lock ---- */
int ns_lookup(struct vmfs *v, const char *path, uint64_t *ret_id, enum vmfs_type *ret_type, struct gr_err *err)
{
    uint64_t id = VMFS_INODE_ROOT;
    enum vmfs_type type = VMFS_DIR;
    int r = vmfs_name_check(path, err);
    for (const char *p = path, *e; r == 0 && *p; p = *e ? e + 1 : e) {
        struct vobj *dir = NULL;
        e = strchrnul(p, '/');
        if (type != VMFS_DIR)
            return gr_fail(err, -ENOTDIR, "'%.*s' is not a directory", (int)(p - path - 1), path);
        r = vobj_peek(v, id, &dir, err);
        if (r < 0)
            break;
        struct vdirent *d = dir_find(dir, p, (size_t)(e - p));
        if (d) {
            id = d->id;
            type = (enum vmfs_type)d->type;
        } else {
            r = gr_fail(err, -ENOENT, "'%s/%s' does not exist", v->sb.name, path);
        }
        vobj_free(dir);
    }
    if (r == 0) {
        *ret_id = id;
        *ret_type = type;
    }
    return r;
}

static int stat_id(struct vmfs *v, uint64_t id, struct vmfs_stat *ret, struct gr_err *err)
{
    struct vobj *o = vobj_find(v, id), *peeked = NULL;
    int r = o && o->ino.type != VMFS_DIR ? 0 : vobj_peek(v, id, &peeked, err);
    if (r < 0)
        return r;
    o = peeked ? peeked : o;
    vobj_stat(o, ret);
    struct vlock l = o->ino.lock;
    if (l.holder && (vlock_mine(v, &l) || vlock_counts(v, &l, NULL) == 1)) {
        ret->owner_slot = (int)l.holder - 1;
        ret->owner_generation = l.generation;
    }
    if (peeked)
        vobj_free(peeked);
    return 0;
}

int vmfs_stat_object(struct vmfs *v, uint64_t id, struct vmfs_stat *ret, struct gr_err *err) { return stat_id(v, id, ret, err); }

int vmfs_each_object(struct vmfs *v, int (*fn)(void *arg, const struct vmfs_stat *st), void *arg, struct gr_err *err)
{
    uint8_t *block = vunits_alloc(1);
    int r = block ? 0 : gr_fail(err, -ENOMEM, "out of memory");
    for (uint32_t i = 0; r >= 0 && i < v->sb.inodes.entries; i++) {
        struct vinode ino;
        struct vmfs_stat st;
        r = vhome_read(v, &v->sb.inodes, i, 0, VMFS_T_INODE, block, err);
        if (r == 0)
            r = vinode_decode(&v->sb, block, vhome_addr(&v->sb.inodes, i, 0, 0), &ino, err);
        if (r < 0 || ino.type == 0)
            continue;
        r = stat_id(v, ino.id, &st, err);
        r = r == 0 ? fn(arg, &st) : r == -ENOENT ? 0 : r; /* removed meanwhile */
    }
    free(block);
    return GR_MIN(r, 0);
}

int vmfs_stat(struct vmfs *v, const char *path, struct vmfs_stat *ret, struct gr_err *err)
{
    uint64_t id;
    enum vmfs_type type;
    int r = ns_lookup(v, path, &id, &type, err);
    return r < 0 ? r : stat_id(v, id, ret, err);
}

int vmfs_readdir_id(struct vmfs *v, uint64_t id, vmfs_dirent_fn *fn, void *arg, struct gr_err *err)
{
    struct vobj *dir;
    int r = vobj_peek(v, id, &dir, err);
    if (r < 0)
        return r;
    if (dir->ino.type != VMFS_DIR)
        r = gr_fail(err, -ENOTDIR, "object %llu is not a directory", (unsigned long long)id);
    for (size_t i = 0; r >= 0 && i < dir->n_ents; i++) {
        struct vmfs_stat st;
        r = stat_id(v, dir->ents[i].id, &st, err);
        if (r == -ENOENT || (r == -EIO && v->rescue))
            r = 0; /* removed meanwhile; or lost with a device, which vmfs_rescued() tells */
        else if (r == 0)
            r = fn(arg, dir->ents[i].name, &st);
    }
    vobj_free(dir);
    return r < 0 ? r : 0;
}

int vmfs_readdir(struct vmfs *v, const char *path, vmfs_dirent_fn *fn, void *arg, struct gr_err *err)
{
    uint64_t id;
    enum vmfs_type type;
    int r = ns_lookup(v, path, &id, &type, err);
    if (r == 0 && type != VMFS_DIR)
        r = gr_fail(err, -ENOTDIR, "'%s/%s' is not a directory", v->sb.name, path);
    return r < 0 ? r : vmfs_readdir_id(v, id, fn, arg, err);
}

/* The path must be free; checked before anything is made. */
int ns_must_be_free(struct vmfs *v, const char *path, struct gr_err *err)
{
    struct gr_err none;
    uint64_t id;
    enum vmfs_type type;
    int r = vmfs_name_check(path, err);
    if (r == 0 && !*path)
        r = gr_fail(err, -EINVAL, "a name is missing behind '%s/'", v->sb.name);
    if (r < 0)
        return r;
    r = ns_lookup(v, path, &id, &type, &none);
    if (r == 0)
        return gr_fail(err, -EEXIST, "'%s/%s' exists already", v->sb.name, path);
    return r == -ENOENT ? 0 : gr_fail(err, r, "%s", none.text);
}

int vmfs_mkdir(struct vmfs *v, const char *path, bool parents, struct gr_err *err)
{
    uint64_t id;
    enum vmfs_type type;
    int r = ns_lookup(v, path, &id, &type, err);
    if (r == 0)
        return parents && type == VMFS_DIR ? 0 : gr_fail(err, -EEXIST, "'%s/%s' exists already", v->sb.name, path);
    return r == -ENOENT ? vmfs_create(v, path, VMFS_DIR, 0, VMFS_THIN, err) : r;
}

struct below {
    uint64_t id;
    size_t len; /* of its path */
};

static int below_add(struct gr_buf *left, uint64_t id, size_t len)
{
    return gr_buf_add(left, &(struct below){ id, len }, sizeof(struct below));
}

/* One directory, taken from the end of those that are left. */
static int fits_dir(struct vmfs *v, struct gr_buf *left, struct gr_err *err)
{
    struct below at;
    struct vobj *dir, *peeked;
    left->len -= sizeof at;
    memcpy(&at, left->data + left->len, sizeof at);
    int r = vobj_look(v, at.id, &dir, &peeked, err);
    if (r < 0)
        return r == -ENOENT ? 0 : r; /* removed meanwhile */
    for (size_t i = 0; r == 0 && i < dir->n_ents; i++) {
        size_t len = at.len + 1 + strlen(dir->ents[i].name);
        if (len > VMFS_PATH_MAX)
            r = gr_fail(err, -ENAMETOOLONG, "what is in it ('…/%.100s') would have a path of more than %u bytes", dir->ents[i].name, VMFS_PATH_MAX);
        else if (dir->ents[i].type == VMFS_DIR && below_add(left, dir->ents[i].id, len) < 0)
            r = gr_fail(err, -ENOMEM, "out of memory");
    }
    vobj_free(peeked);
    return r;
}

int vmfs_path_fits(struct vmfs *v, uint64_t dir, size_t path_len, struct gr_err *err)
{
    gr_auto_buf struct gr_buf left = { 0 };
    int r = below_add(&left, dir, path_len) < 0 ? gr_fail(err, -ENOMEM, "out of memory") : 0;
    while (r == 0 && left.len)
        r = fits_dir(v, &left, err);
    return r;
}

int vmfs_rename(struct vmfs *v, const char *from, const char *to, struct gr_err *err)
{
    struct vobj *root, *a, *b;
    const char *an, *bn;
    int r = vmfs_name_check(from, err);
    if (r == 0)
        r = ns_must_be_free(v, to, err);
    size_t fl = strlen(from);
    if (r == 0 && strncmp(from, to, fl) == 0 && to[fl] == '/')
        r = gr_fail(err, -EINVAL, "'%s' cannot move into itself", from);
    if (r == 0)
        r = ns_begin(v, &root, err);
    if (r < 0)
        return r;
    r = ns_walk_parent(v, root, from, false, &a, &an, err);
    struct vdirent *e = r == 0 ? dir_find(a, an, strlen(an)) : NULL;
    if (r == 0 && !e)
        r = gr_fail(err, -ENOENT, "'%s/%s' does not exist", v->sb.name, from);
    struct vdirent moved = e ? *e : (struct vdirent){ 0 };
    if (r == 0 && moved.type == VMFS_DIR && strlen(to) > fl && (r = vmfs_path_fits(v, moved.id, strlen(to), err)) < 0)
        gr_prefix(err, r, "'%s/%.200s' cannot be moved there", v->sb.name, from);
    if (r == 0)
        r = ns_walk_parent(v, root, to, true, &b, &bn, err);
    if (r == 0 && dir_find(b, bn, strlen(bn)))
        r = gr_fail(err, -EEXIST, "'%s/%s' exists already", v->sb.name, to);
    if (r == 0)
        r = quota_may_move(v, moved.id, moved.type == VMFS_DIR, a->id, b->id, err);
    if (r == 0) {
        dir_remove(a, moved.id);
        r = dir_add(b, bn, strlen(bn), moved.id, moved.type);
    }
    return ns_end(v, r, err);
}

int ns_keepsake(const struct vobj *o, const char *path, struct gr_err *err)
{
    const char *ds = o->v->sb.name;
    char disk[VMFS_VOLUME_NAME_MAX + VMFS_PATH_MAX + 2];
    if (vobj_template(o))
        return gr_fail(err, -GR_ELOCKED, "'%s/%s' is a template (granary disk set --template off makes it a disk like any other)", ds, path);
    snprintf(disk, sizeof disk, "%s/%s", ds, path);
    for (size_t i = 0; i < o->n_snaps; i++) {
        int r = o->snaps[i]->flags & VMFS_SNAP_HIDDEN ? 0 : vobj_protected(o, o->snaps[i], disk, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int removable(struct vobj *o, const char *path, struct gr_err *err)
{
    const char *ds = o->v->sb.name;
    if (o->ino.type == VMFS_DIR)
        return o->n_ents ? gr_fail(err, -ENOTEMPTY, "'%s/%s' is not empty", ds, path) : 0;
    if (o->opens || o->handle || o->users)
        return gr_fail(err, -EBUSY, "'%s/%s' is in use", ds, path);
    int r = ns_keepsake(o, path, err);
    for (size_t i = 0; r == 0 && i < o->n_snaps; i++)
        if (o->snaps[i]->open)
            r = gr_fail(err, -EBUSY, "'%s/%s': its snapshot '%s' is being read", ds, path, o->snaps[i]->name);
    return r;
}

/* It loses its name @path in @dir, held by us, and is among the dying. */
static int lose_name(struct vmfs *v, struct vobj *dir, struct vobj *o, const char *path, struct gr_err *err)
{
    int r = removable(o, path, err);
    if (r == 0)
        r = hidden_allowed(o, err); /* before its keys go */
    if (r == 0)
        r = vkeys_destroy(o, err); /* before anything else: it ends with its keys */
    if (r == 0)
        r = hidden_name(o, path, dir->id, err);
    return r < 0 ? r : dying_add(v, o->id, o->ino.type, err);
}

int ns_replace(struct vmfs *v, const char *from, const char *to, struct gr_err *err)
{
    struct vobj *root, *a, *b, *dying, *old = NULL;
    const char *an, *bn;
    int r = ns_begin(v, &root, err);
    if (r < 0)
        return r;
    r = ns_walk_parent(v, root, from, false, &a, &an, err);
    if (r == 0)
        r = ns_walk_parent(v, root, to, false, &b, &bn, err);
    if (r == 0)
        r = dir_load(v, VMFS_INODE_DYING, &dying, err);
    struct vdirent *e = r == 0 ? dir_find(a, an, strlen(an)) : NULL, *o = r == 0 ? dir_find(b, bn, strlen(bn)) : NULL;
    if (r == 0 && (!e || !o))
        r = gr_fail(err, -ENOENT, "'%s/%s' does not exist", v->sb.name, e ? to : from);
    if (r == 0 && (r = vobj_hold(v, o->id, 2000, &old, NULL, err)) < 0)
        gr_prefix(err, r, "'%s/%s'", v->sb.name, to);
    if (r == 0)
        r = quota_may_move(v, e->id, e->type == VMFS_DIR, a->id, b->id, err);
    if (r == 0)
        r = lose_name(v, b, old, to, err);
    if (r == 0) {
        struct vdirent moved = *dir_find(a, an, strlen(an));
        dir_remove(b, old->id);
        dir_remove(a, moved.id);
        r = dir_add(b, bn, strlen(bn), moved.id, moved.type);
        old->dying = true;
    }
    r = ns_end(v, r, err);
    if (r == 0)
        ns_destroy(old);
    return r;
}

/* ---- removing ---- */
static int remove_dir(struct vmfs *v, struct vobj *parent, uint64_t id, const char *path, struct gr_err *err)
{
    struct vobj *o;
    int r = dir_load(v, id, &o, err);
    if (r == 0)
        r = removable(o, path, err);
    if (r == 0) {
        dir_remove(parent, id);
        inode_clear(v, o);
    }
    return r;
}

int vmfs_remove(struct vmfs *v, const char *path, struct gr_err *err) { return vmfs_remove_object(v, path, 0, err); }

int vmfs_remove_object(struct vmfs *v, const char *path, uint64_t meant, struct gr_err *err)
{
    struct vobj *root, *dir, *dying, *o = NULL;
    const char *name;
    int r = vmfs_name_check(path, err);
    if (r == 0 && !*path)
        r = gr_fail(err, -EINVAL, "the root of '%s' cannot be removed", v->sb.name);
    if (r == 0)
        r = ns_begin(v, &root, err);
    if (r < 0)
        return r;
    r = ns_walk_parent(v, root, path, false, &dir, &name, err);
    struct vdirent *e = r == 0 ? dir_find(dir, name, strlen(name)) : NULL;
    if (r == 0 && !e)
        r = gr_fail(err, -ENOENT, "'%s/%s' does not exist", v->sb.name, path);
    uint64_t id = e ? e->id : 0;
    if (r == 0 && meant && id != meant)
        r = gr_fail(err, -ESTALE, "'%s/%s' names something else by now: what it named was renamed", v->sb.name, path);
    if (r == 0 && e->type == VMFS_DIR) {
        r = remove_dir(v, dir, id, path, err);
    } else if (r == 0) {
        r = dir_load(v, VMFS_INODE_DYING, &dying, err);
        if (r == 0)
            r = vobj_hold(v, id, 0, &o, NULL, err);
        if (r < 0)
            gr_prefix(err, r, "'%s/%s'", v->sb.name, path);
        if (r == 0)
            r = lose_name(v, dir, o, path, err);
        if (r == 0) {
            dir_remove(dir, id);
            o->dying = true;
        }
    }
    r = ns_end(v, r, err);
    if (r == 0 && o)
        ns_destroy(o);
    return r;
}

int ns_format_root(struct vmfs *v, struct gr_err *err)
{
    uint8_t *b = vunits_alloc(1);
    int r = b ? 0 : -ENOMEM;
    for (uint32_t i = VMFS_INODE_ROOT; r == 0 && i <= VMFS_INODE_DYING; i++) {
        struct vinode ino = { .id = i, .type = VMFS_DIR, .block_generation = 1 };
        const struct gr_world *w = gr_loop_world(v->loop);
        ino.mtime_s = w->wall_s(w->arg);
        vinode_encode(v, &ino, vhome_addr(&v->sb.inodes, i, 0, 0), b);
        r = vhome_write(v, &v->sb.inodes, i, 0, b, err);
    }
    free(b);
    return r;
}
