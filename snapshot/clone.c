/* Clones: a disk that starts at another's snapshot. It shares the snapshot's nodes and units by address; the snapshot is
 * pinned by one counter, and units born at or before it are never the clone's to free. */
#include "common/seam.h"
#include "snapshot/snapshot.h"
#include "vmfs/internal.h"
#include "vmfs/keys.h"

struct clone {
    struct vobj *from;
    uint64_t snap;
    struct vkeys_new *keys; /* of each; NULL: not encrypted */
    unsigned next;          /* which is made */
    uint64_t *ids;          /* of the clones; NULL: not wanted */
    struct gr_err *err;
};

/* [sync] */
static int lineages_copy(struct vobj *o, const struct vobj *from, const struct vsnap *s)
{
    o->lineages = gr_zalloc((from->n_lineages + 2) * sizeof *o->lineages);
    if (!o->lineages)
        return -ENOMEM;
    if (from->n_lineages)
        memcpy(o->lineages, from->lineages, from->n_lineages * sizeof *o->lineages);
    o->n_lineages = from->n_lineages;
    o->lineages[o->n_lineages++] = (struct vlineage){ o->lineage, s->lineage, s->epoch };
    return 0;
}

static int init(void *arg, struct vobj *o)
{
    struct clone *c = arg;
    struct vsnap *s = vobj_snap(c->from, c->snap);
    if (!s || (s->flags & VMFS_SNAP_HIDDEN) || (s->tree.root.mem && s->tree.root.mem->dirty))
        return gr_fail(c->err, -EAGAIN, "the snapshot changed meanwhile");
    o->ino.size = s->size;
    o->epoch = s->epoch + 1;
    o->origin_object = c->from->id;
    o->origin_snap = s->id;
    o->origin_epoch = s->epoch;
    o->live.level = s->tree.level;
    o->live.root = (struct mchild){ .ptr = s->tree.root.mem ? s->tree.root.mem->ptr : s->tree.root.ptr };
    o->counted = c->from->counted;
    o->use = (struct vusage){ .used = s->use.used };
    int r = lineages_copy(o, c->from, s);
    if (r == 0)
        r = vobj_set_physical_block(o, vobj_physical_block(c->from));
    if (r == 0 && c->keys)
        r = vkeys_take(&c->keys[c->next], o);
    if (r < 0)
        return gr_fail(c->err, r, "out of memory");
    if (c->ids)
        c->ids[c->next] = o->id;
    c->next++;
    s->clones++; /* goes home with the clone's name, in one checkpoint */
    vobj_touch(c->from);
    return 0;
}

static void undo(void *arg, struct vobj *o)
{
    struct clone *c = arg;
    struct vsnap *s = vobj_snap(c->from, o->origin_snap);
    if (s && s->clones)
        s->clones--;
}

/* Blocks of keys for all of them. */
static int keys_make(struct vobj *o, uint64_t epoch, unsigned n, struct vkeys_new **ret, struct gr_err *err)
{
    struct vkeys_new *keys = gr_zalloc(n * sizeof *keys);
    int r = keys ? 0 : gr_fail(err, -ENOMEM, "out of memory");
    unsigned made = 0;
    while (r == 0 && made < n && (r = vkeys_make(o->v, 0, o, epoch, &keys[made], err)) == 0)
        made++;
    if (r == 0) {
        *ret = keys;
        return 0;
    }
    while (made-- > 0)
        vkeys_made(&keys[made], r);
    free(keys);
    return r;
}

static int clone_once(struct vmfs_disk *d, const char *name, const char *const *paths, unsigned n, uint64_t *ids, struct gr_err *err)
{
    struct vobj *o = d->o;
    struct vsnap *s = vobj_snap_named(o, name);
    if (!s)
        return gr_fail(err, -ENOENT, "'%s' has no snapshot '%s'", d->bdev.name, name);
    struct clone c = { .from = o, .snap = s->id, .ids = ids, .err = err };
    uint64_t epoch = s->epoch;
    int r = 0;
    if (o->late || (s->tree.root.mem && s->tree.root.mem->dirty)) /* its nodes must have addresses */
        r = vmfs_checkpoint(o->v, err);
    if (r == 0 && o->ino.key_id && (r = keys_make(o, epoch, n, &c.keys, err)) < 0)
        gr_prefix(err, r, "'%s'", d->bdev.name);
    if (r == 0)
        r = vmfs_create_many(o->v, paths, n, &(struct ns_many){ VMFS_DISK, init, undo, &c }, err);
    for (unsigned i = 0; c.keys && i < n; i++)
        vkeys_made(&c.keys[i], r);
    free(c.keys);
    return r;
}

/* New objects that @path may need, folders included, when @before was made with it (NULL: none was). */
static unsigned objects_of(const char *path, const char *before)
{
    size_t same = 0;
    while (before && path[same] && path[same] == before[same])
        same++;
    unsigned n = 1;
    for (const char *c = path + same; *c; c++)
        n += *c == '/';
    return n;
}

/* How many of @paths go home in one checkpoint. */
static unsigned batch_of(const struct vmfs *v, const char *const *paths, unsigned n)
{
    unsigned k = 0, objects = 0;
    do
        objects += objects_of(paths[k], k ? paths[k - 1] : NULL);
    while (++k < n && objects + objects_of(paths[k], paths[k - 1]) <= vmfs_create_max(v));
    return k;
}

int snap_clone_many(struct vmfs_disk *d, const char *name, const char *const *paths, unsigned n, unsigned *ret_made, uint64_t *ret_ids,
                    struct gr_err *err)
{
    int r = 0;
    unsigned made = 0;
    while (r == 0 && made < n) {
        if (!d->o || d->gone) {
            r = gr_fail(err, -GR_EFENCED, "'%s' is no longer ours", d->bdev.name);
            break;
        }
        unsigned k = batch_of(d->o->v, paths + made, n - made);
        r = -EAGAIN;
        for (int tries = 0; r == -EAGAIN && tries < 5; tries++)
            r = clone_once(d, name, paths + made, k, ret_ids ? ret_ids + made : NULL, err);
        made += r == 0 ? k : 0;
    }
    if (ret_made)
        *ret_made = made;
    return r;
}

int snap_clone(struct vmfs_disk *d, const char *name, const char *path, struct gr_err *err)
{
    return snap_clone_many(d, name, &path, 1, NULL, NULL, err);
}
