/* The namespace: directories as blobs of names. The lock of the root directory guards all of it; whoever changes names holds
 * it, and what changed is home (checkpoint) before it is given up. So names need no records of their own. */
#include "common/seam.h"
#include "vmfs/internal.h"
#include "vmfs/keys.h"

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
int ns_begin(struct vmfs *v, struct vobj **ret_root, struct gr_err *err)
{
    if (v->role != VMFS_HOST)
        return gr_fail(err, -GR_EREADONLY, "this host joined datastore '%s' for reading only", v->sb.name);
    gr_fmutex_lock(&v->ns_lock);
    int r = v->fenced ? gr_fail(err, -GR_EFENCED, "datastore '%s': %s", v->sb.name, v->fence_reason)
                      : vobj_hold(v, VMFS_INODE_ROOT, NS_WAIT_MS, ret_root, NULL, err);
    if (r < 0) {
        gr_prefix(err, r, "datastore '%s': the namespace cannot be locked", v->sb.name);
        gr_fmutex_unlock(&v->ns_lock);
    }
    return r;
}

/* Home with it (unless @r says that nothing was changed), give the lock up. */
int ns_end(struct vmfs *v, int r, struct gr_err *err)
{
    if (r >= 0 && (r = ckpt_run(v)) < 0)
        gr_fail(err, r, "datastore '%s': %s", v->sb.name, v->fenced ? v->fence_reason : gr_code_text(r));
    for (unsigned h = 0; h < VOBJ_HASH; h++)
        for (struct vobj *o = v->objs[h], *next; o; o = next) {
            next = o->hash_next;
            bool removed = o->ino.type == 0 && !o->ino.lock.holder; /* a directory */
            if (removed || (o->ino.type == VMFS_DIR && o->id != VMFS_INODE_ROOT))
                vobj_free(o);
        }
    struct vobj *root = vobj_find(v, VMFS_INODE_ROOT);
    if (root) {
        int rel = v->fenced ? 0 : vobj_release(v, root, r < 0 ? NULL : err);
        r = r < 0 ? r : rel;
    }
    gr_fmutex_unlock(&v->ns_lock);
    return r;
}

/* A directory of the tree while the namespace lock is held. */
int dir_load(struct vmfs *v, uint64_t id, struct vobj **ret, struct gr_err *err)
{
    struct vobj *o = vobj_find(v, id);
    int r = 0;
    if (!o && (r = vobj_peek(v, id, &o, err)) == 0)
        vobj_adopt(o);
    if (r == 0 && o->ino.type != VMFS_DIR)
        r = gr_fail(err, -ENOTDIR, "object %llu is not a directory", (unsigned long long)id);
    if (r == 0)
        *ret = o;
    return r;
}

/* Walk to the directory of the last component; @make: missing directories are made. */
static int walk_parent(struct vmfs *v, struct vobj *root, const char *path, bool make, struct vobj **ret_dir, const char **ret_name,
                       struct gr_err *err)
{
    struct vobj *dir = root;
    const char *p = path, *e;
    for (; *(e = strchrnul(p, '/')); p = e + 1) {
        struct vdirent *d = dir_find(dir, p, (size_t)(e - p));
        int r;
        if (d) {
            if (d->type != VMFS_DIR)
                return gr_fail(err, -ENOTDIR, "'%.*s' is not a directory", (int)(e - path), path);
            r = dir_load(v, d->id, &dir, err);
        } else if (make) {
            struct vobj *n;
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
static int walk_existing(struct vmfs *v, struct vobj *root, const char *path, struct vobj **ret, struct gr_err *err)
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
    int r = walk_parent(v, vobj_find(v, VMFS_INODE_ROOT), path, false, &dir, &name, err);
    struct vdirent *e = r == 0 ? dir_find(dir, name, strlen(name)) : NULL;
    if (r == 0 && !e)
        r = gr_fail(err, -ENOENT, "'%s/%s' does not exist", v->sb.name, path);
    if (r == 0 && e->type != VMFS_DIR)
        r = gr_fail(err, -ENOTDIR, "'%s/%s' is not a folder", v->sb.name, path);
    return r == 0 ? dir_load(v, e->id, ret, err) : r;
}

/* ---- looking: home state, no lock ---- */
static int lookup(struct vmfs *v, const char *path, uint64_t *ret_id, enum vmfs_type *ret_type, struct gr_err *err)
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

int vmfs_stat(struct vmfs *v, const char *path, struct vmfs_stat *ret, struct gr_err *err)
{
    uint64_t id;
    enum vmfs_type type;
    int r = lookup(v, path, &id, &type, err);
    return r < 0 ? r : stat_id(v, id, ret, err);
}

int vmfs_readdir(struct vmfs *v, const char *path, int (*fn)(void *arg, const char *name, const struct vmfs_stat *st), void *arg,
                 struct gr_err *err)
{
    uint64_t id;
    enum vmfs_type type;
    struct vobj *dir;
    int r = lookup(v, path, &id, &type, err);
    if (r == 0 && type != VMFS_DIR)
        r = gr_fail(err, -ENOTDIR, "'%s/%s' is not a directory", v->sb.name, path);
    if (r == 0)
        r = vobj_peek(v, id, &dir, err);
    if (r < 0)
        return r;
    for (size_t i = 0; r >= 0 && i < dir->n_ents; i++) {
        struct vmfs_stat st;
        r = stat_id(v, dir->ents[i].id, &st, err);
        if (r == -ENOENT)
            r = 0; /* removed meanwhile */
        else if (r == 0)
            r = fn(arg, dir->ents[i].name, &st);
    }
    vobj_free(dir);
    return r < 0 ? r : 0;
}

/* ---- making ---- */
struct shape {
    uint64_t size;
    enum vmfs_provision provision;
    uint32_t physical_block;
    struct vkeys_new *keys; /* NULL: not encrypted */
};
static int content_init(void *arg, struct vobj *o)
{
    const struct shape *s = arg;
    o->ino.size = s->size;
    o->ino.provision = (uint16_t)s->provision;
    o->live.level = (uint8_t)mtree_level_for((s->size + VMFS_PIECE - 1) / VMFS_PIECE);
    int r = vobj_set_physical_block(o, s->physical_block);
    return r == 0 && s->keys ? vkeys_take(s->keys, o) : r;
}

int dying_add(struct vmfs *v, uint64_t id, uint16_t type, struct gr_err *err)
{
    struct vobj *dying;
    char name[24];
    int r = dir_load(v, VMFS_INODE_DYING, &dying, err);
    int n = snprintf(name, sizeof name, "%016llx", (unsigned long long)id);
    return r < 0 ? r : dir_add(dying, name, (size_t)n, id, type);
}

/* Eager: every piece is data, zeros, written now. */
static int write_out(struct vobj *o, uint64_t size)
{
    size_t chunk = (size_t)1 << 20;
    uint8_t *zero = gr_zalloc(chunk);
    struct dop op = { .o = o };
    int r = zero ? 0 : -ENOMEM;
    op.range.epoch = o->epoch;
    for (uint64_t off = 0; r == 0 && off < size; off += chunk) {
        struct iovec iov = { zero, GR_MIN((uint64_t)chunk, (size - off + VMFS_PIECE - 1) / VMFS_PIECE * VMFS_PIECE) };
        journal_room(o->v);
        r = disk_write_pieces(&op, off, iov.iov_len, &iov, 1, false);
    }
    free(zero);
    return r;
}

/* Content for thick and eager disks, while the new disk is still hidden among the dying. */
static int fill(struct vobj *o, enum vmfs_provision provision, uint64_t size, struct gr_err *err)
{
    struct vmfs *v = o->v;
    uint64_t pieces = (size + VMFS_PIECE - 1) / VMFS_PIECE;
    if (space_free_units(v) < pieces + space_meta_reserve(v))
        return gr_fail(err, -GR_ENOSPACE, "datastore '%s' has %llu bytes free, a %s disk of %llu bytes does not fit", v->sb.name,
                       (unsigned long long)space_free_units(v) * VMFS_UNIT, provision == VMFS_EAGER ? "eager" : "thick", (unsigned long long)size);
    int r = vkeys_open(o, err);
    if (r < 0)
        return r;
    r = provision == VMFS_EAGER ? write_out(o, size) : disk_reserve(o, 0, pieces, o->epoch);
    return r < 0 ? gr_fail(err, r, "the disk's space cannot be reserved: %s", gr_code_text(r)) : 0;
}

static int create_hidden(struct vmfs *v, const char *path, enum vmfs_type type, struct shape *shape, struct vobj **ret, struct gr_err *err)
{
    struct vobj *root, *o = NULL, *dir;
    int r = ns_begin(v, &root, err);
    if (r < 0)
        return r;
    struct vobj *dying;
    r = walk_existing(v, root, path, &dir, err);
    if (r == 0)
        r = quota_may_create(v, dir->id, (shape->size + VMFS_UNIT - 1) / VMFS_UNIT, err); /* before it is written */
    if (r == 0)
        r = dir_load(v, VMFS_INODE_DYING, &dying, err);
    if (r == 0)
        r = vobj_new(v, type, &o, err);
    if (r == 0)
        r = content_init(shape, o);
    if (r == 0)
        r = dying_add(v, o->id, (uint16_t)type, err);
    if (r == 0)
        o->quota_hidden = true; /* until it is in a folder */
    r = ns_end(v, r, err);
    if (r == 0)
        *ret = o;
    return r;
}

static int link_at(struct vmfs *v, struct vobj *root, const char *path, struct vobj *o, struct gr_err *err)
{
    struct vobj *dir;
    const char *name;
    int r = walk_parent(v, root, path, true, &dir, &name, err);
    if (r == 0 && dir_find(dir, name, strlen(name)))
        r = gr_fail(err, -EEXIST, "'%s/%s' exists already", v->sb.name, path);
    if (r == 0)
        r = quota_may_create(v, dir->id, o->ino.used_units, err);
    if (r == 0)
        r = dir_add(dir, name, strlen(name), o->id, o->ino.type);
    if (r == 0) {
        o->ino.quota = o->ino.used_units;
        o->quota_hidden = false;
        vobj_touch(o);
    }
    return r;
}

static int create_thick(struct vmfs *v, const char *path, enum vmfs_type type, struct shape *shape, struct gr_err *err)
{
    struct vobj *o = NULL, *root;
    int r = create_hidden(v, path, type, shape, &o, err);
    if (r < 0)
        return r;
    if (shape->keys)
        vkeys_made(shape->keys, 0); /* they go with it from now on */
    o->opens++; /* nobody lets go of it meanwhile */
    r = fill(o, shape->provision, shape->size, err);
    vkeys_close(o);
    o->opens--;
    if (r == 0 && (r = ns_begin(v, &root, err)) == 0) {
        struct vobj *dying;
        r = dir_load(v, VMFS_INODE_DYING, &dying, err); /* first: the name comes and the other goes in one checkpoint */
        if (r == 0)
            r = link_at(v, root, path, o, err);
        if (r == 0)
            dir_remove(dying, o->id);
        r = ns_end(v, r, err);
    }
    if (r < 0)
        ns_destroy(o);
    return r;
}

/* The path must be free; checked before anything is made. */
static int must_be_free(struct vmfs *v, const char *path, struct gr_err *err)
{
    struct gr_err none;
    uint64_t id;
    enum vmfs_type type;
    int r = vmfs_name_check(path, err);
    if (r == 0 && !*path)
        r = gr_fail(err, -EINVAL, "a name is missing behind '%s/'", v->sb.name);
    if (r < 0)
        return r;
    r = lookup(v, path, &id, &type, &none);
    if (r == 0)
        return gr_fail(err, -EEXIST, "'%s/%s' exists already", v->sb.name, path);
    return r == -ENOENT ? 0 : gr_fail(err, r, "%s", none.text);
}

int vmfs_create_with(struct vmfs *v, const char *path, enum vmfs_type type, int (*init)(void *arg, struct vobj *o), void *arg, struct gr_err *err)
{
    struct vobj *root, *o = NULL, *dir;
    const char *name;
    int r = must_be_free(v, path, err);
    if (r == 0)
        r = ns_begin(v, &root, err);
    if (r < 0)
        return r;
    r = walk_parent(v, root, path, true, &dir, &name, err);
    if (r == 0 && dir_find(dir, name, strlen(name)))
        r = gr_fail(err, -EEXIST, "'%s/%s' exists already", v->sb.name, path);
    if (r == 0 && type == VMFS_DISK)
        r = quota_may_create(v, dir->id, 0, err);
    if (r == 0)
        r = vobj_new(v, type, &o, err);
    if (r == 0 && init)
        r = init(arg, o);
    if (r == 0)
        r = dir_add(dir, name, strlen(name), o->id, (uint16_t)type);
    if (r == 0 && type == VMFS_DIR)
        o->ino.lock.holder = 0;
    if (r < 0)
        ns_undo(v, o);
    return ns_end(v, r, err);
}

static int size_ok(const struct vmfs *v, const char *path, const struct shape *shape, struct gr_err *err)
{
    if (shape->size == 0 || shape->size > VMFS_DISK_MAX || shape->size % 512)
        return gr_fail(err, -EINVAL, "'%s/%s': a disk of %llu bytes: it must be a multiple of 512, at least 512 and at most 1 PiB", v->sb.name,
                       path, (unsigned long long)shape->size);
    return 0;
}

static int create(struct vmfs *v, const char *path, enum vmfs_type type, struct shape *shape, struct gr_err *err)
{
    int r = type == VMFS_DISK ? size_ok(v, path, shape, err) : 0;
    if (r < 0)
        return r;
    if (type == VMFS_DIR)
        return vmfs_create_with(v, path, type, NULL, NULL, err);
    if (shape->provision == VMFS_THIN || shape->size == 0)
        return vmfs_create_with(v, path, type, content_init, shape, err);
    r = must_be_free(v, path, err);
    return r < 0 ? r : create_thick(v, path, type, shape, err);
}

int vmfs_create(struct vmfs *v, const char *path, enum vmfs_type type, uint64_t size, enum vmfs_provision provision, struct gr_err *err)
{
    return create(v, path, type, &(struct shape){ size, provision, VMFS_PIECE, NULL }, err);
}

int vmfs_create_disk(struct vmfs *v, const char *path, uint64_t size, enum vmfs_provision provision, uint32_t physical_block, struct gr_err *err)
{
    if (physical_block != 512 && physical_block != VMFS_PIECE)
        return gr_fail(err, -EINVAL, "'%s/%s': physical blocks of %u bytes: 512 or %u", v->sb.name, path, physical_block, VMFS_PIECE);
    return create(v, path, VMFS_DISK, &(struct shape){ size, provision, physical_block, NULL }, err);
}

int vmfs_create_encrypted(struct vmfs *v, const char *path, uint64_t size, enum vmfs_provision provision, uint32_t physical_block, uint64_t kek_id,
                          struct gr_err *err)
{
    struct vkeys_new keys;
    struct shape shape = { size, provision, physical_block == 512 ? 512 : VMFS_PIECE, &keys };
    int r = size_ok(v, path, &shape, err);
    if (r == 0)
        r = must_be_free(v, path, err);
    if (r == 0)
        r = vkeys_make(v, kek_id, NULL, 0, &keys, err);
    if (r < 0)
        return r;
    r = create(v, path, VMFS_DISK, &shape, err);
    vkeys_made(&keys, r);
    return r;
}

int vmfs_mkdir(struct vmfs *v, const char *path, bool parents, struct gr_err *err)
{
    uint64_t id;
    enum vmfs_type type;
    int r = lookup(v, path, &id, &type, err);
    if (r == 0)
        return parents && type == VMFS_DIR ? 0 : gr_fail(err, -EEXIST, "'%s/%s' exists already", v->sb.name, path);
    return r == -ENOENT ? vmfs_create(v, path, VMFS_DIR, 0, VMFS_THIN, err) : r;
}

int vmfs_rename(struct vmfs *v, const char *from, const char *to, struct gr_err *err)
{
    struct vobj *root, *a, *b;
    const char *an, *bn;
    int r = vmfs_name_check(from, err);
    if (r == 0)
        r = must_be_free(v, to, err);
    size_t fl = strlen(from);
    if (r == 0 && strncmp(from, to, fl) == 0 && to[fl] == '/')
        r = gr_fail(err, -EINVAL, "'%s' cannot move into itself", from);
    if (r == 0)
        r = ns_begin(v, &root, err);
    if (r < 0)
        return r;
    r = walk_parent(v, root, from, false, &a, &an, err);
    struct vdirent *e = r == 0 ? dir_find(a, an, strlen(an)) : NULL;
    if (r == 0 && !e)
        r = gr_fail(err, -ENOENT, "'%s/%s' does not exist", v->sb.name, from);
    struct vdirent moved = e ? *e : (struct vdirent){ 0 };
    if (r == 0)
        r = walk_parent(v, root, to, true, &b, &bn, err);
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

static int removable(struct vobj *o, const char *path, struct gr_err *err)
{
    const char *ds = o->v->sb.name;
    if (o->ino.type == VMFS_DIR)
        return o->n_ents ? gr_fail(err, -ENOTEMPTY, "'%s/%s' is not empty", ds, path) : 0;
    if (o->opens || o->handle || o->users)
        return gr_fail(err, -EBUSY, "'%s/%s' is in use", ds, path);
    for (size_t i = 0; i < o->n_snaps; i++) {
        if (o->snaps[i]->clones)
            return gr_fail(err, -EBUSY, "'%s/%s': %u clones start at its snapshot '%s'", ds, path, o->snaps[i]->clones, o->snaps[i]->name);
        if (o->snaps[i]->open)
            return gr_fail(err, -EBUSY, "'%s/%s': its snapshot '%s' is being read", ds, path, o->snaps[i]->name);
    }
    return 0;
}

int ns_replace(struct vmfs *v, const char *from, const char *to, struct gr_err *err)
{
    struct vobj *root, *a, *b, *dying, *old = NULL;
    const char *an, *bn;
    int r = ns_begin(v, &root, err);
    if (r < 0)
        return r;
    r = walk_parent(v, root, from, false, &a, &an, err);
    if (r == 0)
        r = walk_parent(v, root, to, false, &b, &bn, err);
    if (r == 0)
        r = dir_load(v, VMFS_INODE_DYING, &dying, err);
    struct vdirent *e = r == 0 ? dir_find(a, an, strlen(an)) : NULL, *o = r == 0 ? dir_find(b, bn, strlen(bn)) : NULL;
    if (r == 0 && (!e || !o))
        r = gr_fail(err, -ENOENT, "'%s/%s' does not exist", v->sb.name, e ? to : from);
    if (r == 0 && (r = vobj_hold(v, o->id, 2000, &old, NULL, err)) < 0)
        gr_prefix(err, r, "'%s/%s'", v->sb.name, to);
    if (r == 0)
        r = removable(old, to, err);
    if (r == 0)
        r = quota_may_move(v, e->id, e->type == VMFS_DIR, a->id, b->id, err);
    if (r == 0)
        r = vkeys_destroy(old, err); /* before anything else: it ends with its keys */
    if (r == 0)
        r = dying_add(v, old->id, old->ino.type, err);
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

int vmfs_remove(struct vmfs *v, const char *path, struct gr_err *err)
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
    r = walk_parent(v, root, path, false, &dir, &name, err);
    struct vdirent *e = r == 0 ? dir_find(dir, name, strlen(name)) : NULL;
    if (r == 0 && !e)
        r = gr_fail(err, -ENOENT, "'%s/%s' does not exist", v->sb.name, path);
    uint64_t id = e ? e->id : 0;
    if (r == 0 && e->type == VMFS_DIR) {
        r = remove_dir(v, dir, id, path, err);
    } else if (r == 0) {
        r = dir_load(v, VMFS_INODE_DYING, &dying, err);
        if (r == 0)
            r = vobj_hold(v, id, 0, &o, NULL, err);
        if (r < 0)
            gr_prefix(err, r, "'%s/%s'", v->sb.name, path);
        if (r == 0)
            r = removable(o, path, err);
        if (r == 0)
            r = vkeys_destroy(o, err);
        if (r == 0)
            r = dying_add(v, id, o->ino.type, err);
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

/* ---- the end of an object ---- */
/* All its trees become deleted snapshots; the walker gives them back, then the object is buried. */
void ns_destroy(struct vobj *o)
{
    uint32_t gone = VMFS_SNAP_HIDDEN | VMFS_SNAP_DELETING;
    struct vmfs_rec_snap_disk d = { .value = gr_le32_of(gone) };
    o->dying = true;
    if (o->v->fenced)
        return;
    d.r.type = gr_le16_of(VMFS_R_SNAP_FLAGS);
    for (size_t i = 0; i < o->n_snaps; i++)
        if (o->snaps[i]->flags != gone) {
            d.id = gr_le64_of(o->snaps[i]->id);
            record_do(o, &d, sizeof d, NULL);
        }
    if (o->live.root.mem || o->live.root.ptr.addr) {
        memset(&d, 0, sizeof d);
        d.r.type = gr_le16_of(VMFS_R_SNAP_ADD);
        d.value = gr_le32_of(gone);
        record_do(o, &d, sizeof d, NULL);
    }
    reap_kick(o);
}

/* A clone's origin, held: its counter goes home together with the clone's inode. Waits while another host has it. */
static int hold_origin(struct vobj *o, struct vobj **ret)
{
    struct vmfs *v = o->v;
    int r = -GR_ELOCKED;
    *ret = NULL;
    while (o->origin_object && r == -GR_ELOCKED && !v->fenced && !v->leaving) {
        struct gr_err err = { 0 };
        r = vobj_hold(v, o->origin_object, 0, ret, NULL, &err);
        if (r == -GR_ELOCKED)
            gr_fiber_sleep_ms(500);
        else if (r < 0)
            vmfs_warn(v, "object %llu cannot be removed: its origin: %s", (unsigned long long)o->id, gr_err_text(&err, r));
    }
    return o->origin_object ? r : 0;
}

static void origin_done(struct vobj *origin)
{
    if (origin) {
        origin->users--;
        gr_fqueue_wake_all(&origin->settled);
    }
}

/* Nothing is left of it but the inode. The names, the counter and the inode change without a suspension in between, so they go home
 * in one checkpoint. */
int ns_bury(struct vobj *o)
{
    struct vmfs *v = o->v;
    struct vobj *root, *dying, *origin;
    struct gr_err err = { 0 };
    int r = hold_origin(o, &origin);
    if (r < 0)
        return r;
    if (origin)
        origin->users++; /* nobody gives it up meanwhile */
    r = ns_begin(v, &root, &err);
    if (r < 0) {
        origin_done(origin);
        return r;
    }
    r = dir_load(v, VMFS_INODE_DYING, &dying, &err);
    if (r == 0 && (o->n_snaps || !slot_empty(&o->live.root)))
        r = -EAGAIN; /* it was marked as dying, but what it holds was not yet: once more */
    if (r == 0) {
        struct vsnap *s = origin ? vobj_snap(origin, o->origin_snap) : NULL;
        dir_remove(dying, o->id);
        if (s && s->clones) {
            s->clones--;
            vobj_touch(origin);
        }
        inode_clear(v, o);
    }
    r = ns_end(v, r, &err);
    if (r == 0) {
        gr_fqueue_wake_all(&o->settled);
        vobj_release(v, o, &err);
    }
    if (r == 0 && origin)
        reap_kick(origin);
    origin_done(origin);
    return r;
}

void inode_clear(struct vmfs *v, struct vobj *o)
{
    o->ino.type = 0;
    o->ino.size = o->ino.used_units = 0;
    o->ino.n_snapshots = 0;
    if (o->ino.blob_addr)
        space_freed(v, o->ino.blob_addr, o->ino.blob_units, 1, v->ckpt_started + 1);
    o->ino.blob_addr = 0;
    o->ino.blob_units = o->ino.blob_bytes = 0;
    vkeys_free(o);
    vobj_touch(o);
}

/* An object made in an operation that failed. */
void ns_undo(struct vmfs *v, struct vobj *o)
{
    for (unsigned h = 0; h < VOBJ_HASH; h++)
        for (struct vobj *d = v->objs[h], *next; d; d = next) {
            next = d->hash_next;
            if (d->ino.type == VMFS_DIR && d->id != VMFS_INODE_ROOT && d->ino.block_generation == 0 && d != o)
                vobj_clean(d);
        }
    if (o && o->ino.type != VMFS_DIR) {
        o->ino.type = 0;
        vobj_clean(o);
        vobj_release(v, o, NULL);
    }
}

/* One of the dying, if it still is: a new disk is among them while it is being filled, and then it is not. */
static void resume_one(struct vmfs *v, uint64_t id)
{
    struct vobj *root, *dying, *o = NULL;
    bool listed = false;
    if (vobj_find(v, id) || (v->opts.in_use && v->opts.in_use(v->opts.warn_arg, id)) || ns_begin(v, &root, NULL) < 0)
        return; /* one of ours, under way; or a file that somebody has open */
    int r = dir_load(v, VMFS_INODE_DYING, &dying, NULL);
    for (size_t i = 0; r == 0 && i < dying->n_ents; i++)
        listed |= dying->ents[i].id == id;
    if (listed && !vobj_find(v, id) && vobj_hold(v, id, 0, &o, NULL, NULL) == 0)
        o->dying = true;
    ns_end(v, -ECANCELED, NULL); /* no name changed */
    if (o)
        ns_destroy(o);
}

static void resume_work(void *arg)
{
    struct vmfs *v = arg;
    struct vobj *dying;
    if (vobj_peek(v, VMFS_INODE_DYING, &dying, NULL) == 0) {
        for (size_t i = 0; i < dying->n_ents && !v->fenced && !v->leaving; i++)
            resume_one(v, dying->ents[i].id);
        vobj_free(dying);
    }
    v->resuming = false;
    if (--v->background == 0)
        gr_fqueue_wake_all(&v->background_q);
}

void ns_resume(struct vmfs *v)
{
    if (v->role != VMFS_HOST)
        return;
    v->background++;
    v->resuming = true;
    if (gr_fiber_start(v->loop, resume_work, v) < 0) {
        v->background--;
        v->resuming = false;
    }
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
