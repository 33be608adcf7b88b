/* Making objects: content, then a name. A thick one is filled before it has its name, hidden among what is dying, so that a cut leaves nothing. */
#include "common/seam.h"
#include "vmfs/internal.h"
#include "vmfs/keys.h"

struct ns_made {
    const char *path, *name;
    struct vobj *dir, *o;
};

struct shape {
    uint64_t size;
    enum vmfs_provision provision;
    uint32_t physical_block;
    struct vkeys_new *keys; /* NULL: not encrypted */
    uint64_t id;            /* of what was made */
};
static int content_init(void *arg, struct vobj *o)
{
    struct shape *s = arg;
    s->id = o->id;
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
    uint64_t pieces = (size + VMFS_PIECE - 1) / VMFS_PIECE, need = pieces + space_meta_reserve(v) + v->reserved_units;
    int r = space_look(v, err);
    if (r == 0 && space_free_units(v) < need)
        r = gr_fail(err, -GR_ENOSPACE, "datastore '%s' has %llu bytes free, a %s disk of %llu bytes does not fit: %llu bytes are missing", v->sb.name,
                    (unsigned long long)space_free_units(v) * VMFS_UNIT, provision == VMFS_EAGER ? "eager" : "thick", (unsigned long long)size,
                    (unsigned long long)(need - space_free_units(v)) * VMFS_UNIT);
    if (r == 0)
        r = vkeys_open(o, err);
    if (r < 0)
        return r;
    r = provision == VMFS_EAGER ? write_out(o, size) : disk_reserve(o, 0, pieces, o->epoch);
    if (r == -GR_ENOSPACE)
        return gr_fail(err, r, "datastore '%s' has no space left for a %s disk of %llu bytes: %llu bytes are missing", v->sb.name,
                       provision == VMFS_EAGER ? "eager" : "thick", (unsigned long long)size, (unsigned long long)(pieces - GR_MIN(pieces, o->ino.used_units)) * VMFS_UNIT);
    return r < 0 ? gr_fail(err, r, "the disk's space cannot be reserved: %s", gr_code_text(r)) : 0;
}

static int create_hidden(struct vmfs *v, const char *path, enum vmfs_type type, struct shape *shape, struct vobj **ret, struct gr_err *err)
{
    struct vobj *root, *o = NULL, *dir;
    int r = ns_begin(v, &root, err);
    if (r < 0)
        return r;
    struct vobj *dying;
    r = ns_walk_existing(v, root, path, &dir, err);
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
    int r = ns_walk_parent(v, root, path, true, &dir, &name, err);
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

static int place_one(struct vmfs *v, struct vobj *root, const struct ns_many *m, struct ns_made *ret, struct gr_err *err)
{
    int r = ns_walk_parent(v, root, ret->path, true, &ret->dir, &ret->name, err);
    if (r == 0 && dir_find(ret->dir, ret->name, strlen(ret->name)))
        r = gr_fail(err, -EEXIST, "'%s/%s' exists already", v->sb.name, ret->path);
    if (r == 0 && m->type == VMFS_DISK)
        r = quota_may_create(v, ret->dir->id, 0, err);
    return r;
}

/* Free inodes, several at a time: each is a compare-and-write that a flash or a disk takes its time for. */
#define MAKERS 16u
struct makers {
    struct vmfs *v;
    enum vmfs_type type;
    struct ns_made *made;
    unsigned n, next, running;
    int r;
    struct gr_err err;
    struct gr_fqueue done;
};
static void make_some(void *arg)
{
    struct makers *k = arg;
    while (k->r == 0 && k->next < k->n) {
        struct ns_made *m = &k->made[k->next++];
        struct gr_err err = { 0 };
        int r = vobj_new(k->v, k->type, &m->o, &err);
        if (r == 0)
            vobj_clean(m->o); /* it is not home, nor named, before all are */
        else if (k->r == 0) {
            k->r = r;
            k->err = err;
        }
    }
    k->running--;
    gr_fqueue_wake_all(&k->done);
}

static int make_all(struct vmfs *v, enum vmfs_type type, struct ns_made *made, unsigned n, struct gr_err *err)
{
    struct makers k = { .v = v, .type = type, .made = made, .n = n, .running = 1 };
    for (unsigned i = 1; i < GR_MIN(n, MAKERS); i++)
        if (gr_fiber_start(v->loop, make_some, &k) == 0)
            k.running++;
    make_some(&k);
    while (k.running)
        gr_fqueue_wait(&k.done);
    if (k.r < 0 && err)
        *err = k.err;
    return k.r;
}

/* [sync] */
static int name_all(struct vmfs *v, const struct ns_many *m, struct ns_made *made, unsigned n, struct gr_err *err)
{
    int r = 0;
    unsigned done = 0;
    for (; r == 0 && done < n; done++) {
        struct ns_made *k = &made[done];
        if (dir_find(k->dir, k->name, strlen(k->name)))
            r = gr_fail(err, -EEXIST, "'%s/%s' is named twice", v->sb.name, k->path);
        if (r == 0)
            r = dir_add(k->dir, k->name, strlen(k->name), k->o->id, (uint16_t)m->type);
        if (r == 0 && m->init && (r = m->init(m->arg, k->o)) < 0)
            dir_remove(k->dir, k->o->id);
        if (r < 0)
            break;
        vobj_touch(k->o);
        if (m->type == VMFS_DIR)
            k->o->ino.lock.holder = 0;
    }
    while (r < 0 && done-- > 0) {
        dir_remove(made[done].dir, made[done].o->id);
        if (m->undo)
            m->undo(m->arg, made[done].o);
    }
    return r;
}

int vmfs_create_many(struct vmfs *v, const char *const *paths, unsigned n, const struct ns_many *m, struct gr_err *err)
{
    struct vobj *root;
    struct ns_made *made = gr_zalloc(n * sizeof *made);
    int r = made ? 0 : gr_fail(err, -ENOMEM, "out of memory");
    for (unsigned i = 0; r == 0 && i < n; i++) {
        made[i].path = paths[i];
        r = n > 1 && *paths[i] ? vmfs_name_check(paths[i], err) : ns_must_be_free(v, paths[i], err); /* before anything is locked */
    }
    if (r == 0)
        r = ns_begin(v, &root, err);
    if (r < 0) {
        free(made);
        return r;
    }
    for (unsigned i = 0; r == 0 && i < n; i++)
        r = place_one(v, root, m, &made[i], err);
    if (r == 0)
        r = make_all(v, m->type, made, n, err);
    if (r == 0)
        r = name_all(v, m, made, n, err);
    if (r < 0) {
        ns_undo(v, NULL);
        for (unsigned i = 0; i < n; i++)
            if (made[i].o)
                ns_undo(v, made[i].o);
    }
    free(made);
    return ns_end(v, r, err);
}

int vmfs_create_with(struct vmfs *v, const char *path, enum vmfs_type type, int (*init)(void *arg, struct vobj *o), void *arg, struct gr_err *err)
{
    return vmfs_create_many(v, &path, 1, &(struct ns_many){ .type = type, .init = init, .arg = arg }, err);
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
    r = ns_must_be_free(v, path, err);
    return r < 0 ? r : create_thick(v, path, type, shape, err);
}

int vmfs_create(struct vmfs *v, const char *path, enum vmfs_type type, uint64_t size, enum vmfs_provision provision, struct gr_err *err)
{
    return create(v, path, type, &(struct shape){ size, provision, VMFS_PIECE, NULL, 0 }, err);
}

int vmfs_create_disk(struct vmfs *v, const char *path, uint64_t size, enum vmfs_provision provision, uint32_t physical_block, struct gr_err *err)
{
    if (physical_block != 512 && physical_block != VMFS_PIECE)
        return gr_fail(err, -EINVAL, "'%s/%s': physical blocks of %u bytes: 512 or %u", v->sb.name, path, physical_block, VMFS_PIECE);
    return create(v, path, VMFS_DISK, &(struct shape){ size, provision, physical_block, NULL, 0 }, err);
}

static int create_encrypted(struct vmfs *v, const char *path, enum vmfs_type type, struct shape *shape, uint64_t kek_id, struct gr_err *err)
{
    struct vkeys_new keys;
    int r = type == VMFS_DISK ? size_ok(v, path, shape, err) : 0;
    if (r == 0)
        r = ns_must_be_free(v, path, err);
    if (r == 0)
        r = vkeys_make(v, kek_id, NULL, 0, &keys, err);
    if (r < 0)
        return r;
    shape->keys = &keys;
    r = create(v, path, type, shape, err);
    vkeys_made(&keys, r);
    return r;
}

int vmfs_create_encrypted(struct vmfs *v, const char *path, uint64_t size, enum vmfs_provision provision, uint32_t physical_block, uint64_t kek_id,
                          struct gr_err *err)
{
    return create_encrypted(v, path, VMFS_DISK, &(struct shape){ size, provision, physical_block == 512 ? 512 : VMFS_PIECE, NULL, 0 }, kek_id, err);
}

int vmfs_create_file(struct vmfs *v, const char *path, uint64_t kek_id, uint64_t *ret_id, struct gr_err *err)
{
    struct shape shape = { 0, VMFS_THIN, VMFS_PIECE, NULL, 0 };
    int r = kek_id ? create_encrypted(v, path, VMFS_FILE, &shape, kek_id, err) : create(v, path, VMFS_FILE, &shape, err);
    if (r == 0)
        *ret_id = shape.id;
    return r;
}
