/* Clones: a disk that starts at another's snapshot. It shares the snapshot's nodes and units by address; the snapshot is
 * pinned by one counter, and units born at or before it are never the clone's to free. */
#include "common/seam.h"
#include "snapshot/snapshot.h"
#include "vmfs/internal.h"
#include "vmfs/keys.h"

struct clone {
    struct vobj *from;
    uint64_t snap;
    struct vkeys_new *keys; /* NULL: not encrypted */
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
        r = vkeys_take(c->keys, o);
    if (r < 0)
        return gr_fail(c->err, r, "out of memory");
    s->clones++; /* goes home with the clone's name, in one checkpoint */
    vobj_touch(c->from);
    return 0;
}

int snap_clone(struct vmfs_disk *d, const char *name, const char *path, struct gr_err *err)
{
    if (!d->o || d->gone)
        return gr_fail(err, -GR_EFENCED, "'%s' is no longer ours", d->bdev.name);
    struct vobj *o = d->o;
    int r = -EAGAIN;
    for (int tries = 0; r == -EAGAIN && tries < 5; tries++) {
        struct vsnap *s = vobj_snap_named(o, name);
        if (!s)
            return gr_fail(err, -ENOENT, "'%s' has no snapshot '%s'", d->bdev.name, name);
        struct vkeys_new keys = { 0 };
        struct clone c = { o, s->id, o->ino.key_id ? &keys : NULL, err };
        uint64_t epoch = s->epoch;
        if (o->late || (s->tree.root.mem && s->tree.root.mem->dirty)) /* its nodes must have addresses */
            if ((r = vmfs_checkpoint(o->v, err)) < 0)
                return r;
        if (c.keys && (r = vkeys_make(o->v, 0, o, epoch, &keys, err)) < 0)
            return gr_prefix(err, r, "'%s'", d->bdev.name);
        r = vmfs_create_with(o->v, path, VMFS_DISK, init, &c, err);
        if (c.keys)
            vkeys_made(&keys, r);
    }
    return r;
}
