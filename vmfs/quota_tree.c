/* The tree of folders, looked through for limits: what lies below each that has one, or is kept for it (quota.c).
 * The namespace is locked, or what is found may be a little older than what is. */
#include "vmfs/quota_tree.h"

#define DIRS_MAX 65536u

void qtree_done(struct qtree *t)
{
    for (size_t i = 0; i < t->n; i++)
        free(t->d[i].name);
    free(t->d);
    free(t->kept);
    memset(t, 0, sizeof *t);
}

static int dir_push(struct qtree *t, uint64_t id, size_t parent, const char *name)
{
    if (t->n == DIRS_MAX)
        return -ENOMEM;
    if (t->n == t->cap) {
        size_t cap = t->cap ? t->cap * 2 : 64;
        struct qdir *d = gr_realloc(t->d, cap * sizeof *d);
        if (!d)
            return -ENOMEM;
        t->d = d;
        t->cap = cap;
    }
    t->d[t->n] = (struct qdir){ .id = id, .parent = parent, .name = gr_strdup(name) };
    return t->d[t->n++].name ? 0 : -ENOMEM;
}

uint64_t quota_holds(const struct vobj *o)
{
    return o->ino.used_units + o->reserved_units + o->promised_elsewhere;
}

uint64_t quota_granted(const struct vobj *o)
{
    return GR_MAX(o->ino.quota, quota_holds(o) + o->quota_pending);
}

/* For the directory at @dir, and those above it. */
static void count(struct qtree *t, size_t dir, uint64_t used, uint64_t units_granted)
{
    for (size_t i = dir;; i = t->d[i].parent) {
        t->d[i].used += used;
        t->d[i].granted += units_granted;
        if (i == 0)
            break;
    }
}

static int object_add(struct qtree *t, size_t dir, uint64_t id, struct gr_err *err)
{
    struct vobj *o, *peeked;
    int r = vobj_look(t->v, id, &o, &peeked, err);
    if (r == -ENOENT)
        return 0; /* removed meanwhile: only when the namespace is not locked */
    if (r < 0)
        return r;
    count(t, dir, quota_holds(o), quota_granted(o));
    vobj_free(peeked);
    return 0;
}

static int dir_scan(struct qtree *t, size_t at, struct gr_err *err)
{
    struct vobj *o, *peeked;
    int r = vobj_look(t->v, t->d[at].id, &o, &peeked, err);
    if (r == -ENOENT)
        return 0;
    if (r < 0)
        return r;
    t->d[at].limit = o->ino.quota;
    t->d[at].limited = o->ino.quota || (at && t->d[t->d[at].parent].limited);
    size_t n = o->n_ents;
    struct { uint64_t id; uint16_t type; } *e = gr_alloc((n + 1) * sizeof *e); /* the directory may change while objects are read */
    r = e ? 0 : -ENOMEM;
    for (size_t i = 0; r == 0 && i < n; i++) {
        e[i].id = o->ents[i].id;
        e[i].type = o->ents[i].type;
        if (e[i].type == VMFS_DIR)
            r = dir_push(t, e[i].id, at, o->ents[i].name);
        if (t->want == e[i].id)
            t->found = e[i].type == VMFS_DIR ? t->n - 1 : at;
    }
    vobj_free(peeked);
    for (size_t i = 0; r == 0 && i < n; i++)
        if (e[i].type != VMFS_DIR && t->d[at].limited)
            r = object_add(t, at, e[i].id, err);
    free(e);
    return r;
}

static size_t child_named(const struct qtree *t, size_t parent, const char *name, size_t len)
{
    for (size_t i = 1; i < t->n; i++)
        if (t->d[i].parent == parent && strlen(t->d[i].name) == len && memcmp(t->d[i].name, name, len) == 0)
            return i;
    return 0;
}

/* Where a removed disk lay: index of the folder @id, or of the last one of @path that there is. */
static size_t kept_at(const struct qtree *t, uint64_t id, const char *path)
{
    size_t at = 0, next = 1;
    for (size_t i = 0; i < t->n; i++)
        if (t->d[i].id == id)
            return i;
    for (const char *p = path, *e; next && *(e = strchrnul(p, '/')); p = e + 1) {
        next = child_named(t, at, p, (size_t)(e - p));
        at = next ? next : at;
    }
    return at;
}

static int kept_add(struct qtree *t, uint64_t id, struct gr_err *err)
{
    struct vobj *o, *peeked;
    char path[VMFS_PATH_MAX + 1];
    int r = vobj_look(t->v, id, &o, &peeked, err);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    uint64_t folder = hidden_from(o, path), units = quota_holds(o);
    vobj_free(peeked);
    size_t at = path[0] ? kept_at(t, folder, path) : 0;
    if (!t->d[at].limited || !units)
        return 0;
    struct qkept *k = gr_realloc(t->kept, (t->n_kept + 1) * sizeof *k);
    if (!k)
        return -ENOMEM;
    t->kept = k;
    t->kept[t->n_kept++] = (struct qkept){ at, units };
    count(t, at, units, units);
    return 0;
}

/* Disks that were removed from limited folders, and are kept. */
static int kept_scan(struct qtree *t, struct gr_err *err)
{
    struct vobj *dying, *peeked;
    bool limited = false;
    for (size_t i = 0; i < t->n; i++)
        limited |= t->d[i].limited;
    int r = limited ? vobj_look(t->v, VMFS_INODE_DYING, &dying, &peeked, err) : 1;
    if (r != 0)
        return GR_MIN(r, 0);
    size_t n = 0;
    uint64_t *ids = gr_alloc((dying->n_ents + 1) * sizeof *ids); /* the directory may change while objects are read */
    for (size_t i = 0; ids && i < dying->n_ents; i++)
        if (dying->ents[i].type == VMFS_DISK)
            ids[n++] = dying->ents[i].id;
    vobj_free(peeked);
    r = ids ? 0 : -ENOMEM;
    for (size_t i = 0; r == 0 && i < n; i++)
        r = kept_add(t, ids[i], err);
    free(ids);
    return r;
}

int qtree_make(struct vmfs *v, uint64_t want, struct qtree *t, struct gr_err *err)
{
    *t = (struct qtree){ .v = v, .want = want, .found = want == VMFS_INODE_ROOT ? 0 : SIZE_MAX };
    int r = dir_push(t, VMFS_INODE_ROOT, 0, "");
    for (size_t i = 0; r == 0 && i < t->n; i++)
        r = dir_scan(t, i, err);
    if (r == 0)
        r = kept_scan(t, err);
    if (r == -ENOMEM)
        gr_fail(err, r, "out of memory for the folders of datastore '%s'", v->sb.name);
    if (r < 0)
        qtree_done(t);
    return r;
}

void qtree_path(const struct qtree *t, size_t at, char *ret, size_t size)
{
    char tail[VMFS_PATH_MAX + 1] = "", all[VMFS_PATH_MAX + 1];
    for (; at; at = t->d[at].parent) {
        int n = snprintf(all, sizeof all, "%s%s%s", t->d[at].name, tail[0] ? "/" : "", tail);
        if (n < 0 || n >= (int)sizeof all)
            break;
        memcpy(tail, all, (size_t)n + 1);
    }
    snprintf(ret, size, "%s", tail);
}
