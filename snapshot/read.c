/* A snapshot as a read-only gr_bdev, for its owner and for readers elsewhere. */
#include "common/seam.h"
#include "snapshot/snapshot.h"
#include "vmfs/behind.h"
#include "vmfs/keys.h"

struct snap_bdev {
    struct gr_bdev bdev; /* first member */
    struct vobj *o;
    struct vsnap *s;
    struct vmfs_disk *disk; /* owner: the open disk; NULL: a reader elsewhere, which owns o */
};

static struct snap_bdev *of(struct gr_bdev *b)
{
    return gr_container_of(b, struct snap_bdev, bdev);
}

static bool gone(const struct snap_bdev *b)
{
    return b->disk && (b->disk->gone || !b->disk->o);
}

static void submit(struct gr_chan *ch, struct gr_bio *bio)
{
    struct snap_bdev *b = of(ch->bdev);
    if (gone(b)) {
        gr_bio_end(bio, -GR_EFENCED);
        return;
    }
    switch (bio->op) {
    case GR_OP_READ:
        tree_read(b->o, &b->s->tree, bio);
        return;
    case GR_OP_EXTENTS:
        tree_extents(b->o, &b->s->tree, b->s->lineage, b->s->epoch, bio);
        return;
    case GR_OP_FLUSH:
        gr_bio_end(bio, 0);
        return;
    case GR_OP_WRITE:
    case GR_OP_UNMAP:
    case GR_OP_WRITE_ZEROES:
    case GR_OP_COMPARE_WRITE:
    case GR_OP_SCRUB:
    case GR_OP_COPY:
        break;
    }
    gr_bio_end(bio, -GR_EREADONLY);
}

static int geometry(struct gr_bdev *bdev, struct gr_geometry *ret)
{
    struct snap_bdev *b = of(bdev);
    if (gone(b))
        return -GR_EFENCED;
    *ret = (struct gr_geometry){ .size = b->s->size, .logical_block = 512, .physical_block = vobj_physical_block(b->o), .optimal_io = VMFS_BLOCK,
                                 .read_only = true, .thin = true, .in_memory = vdev_all_in_memory(b->o->v) };
    memcpy(ret->uuid, b->o->ino.uuid, 16);
    for (unsigned i = 0; i < 8; i++) /* an identity of its own, always the same */
        ret->uuid[15 - i] ^= (uint8_t)((b->s->id * 0x9e3779b97f4a7c15ull) >> (8 * i));
    return 0;
}

/* ---- pins of readers elsewhere ---- */
static int pin(struct vmfs *v, uint64_t object, uint64_t snap, struct gr_err *err)
{
    gr_fmutex_lock(&v->ckpt_lock);
    int r = -GR_ELOCKED;
    if (v->me.n_pins < VMFS_PINS_MAX) {
        v->me.pins[v->me.n_pins].object = object;
        v->me.pins[v->me.n_pins++].snapshot = snap;
        r = vslot_write_mine(v, err);
    } else {
        gr_fail(err, r, "this reader pins %u snapshots already", VMFS_PINS_MAX);
    }
    gr_fmutex_unlock(&v->ckpt_lock);
    return r;
}

static void unpin(struct vmfs *v, uint64_t object, uint64_t snap)
{
    gr_fmutex_lock(&v->ckpt_lock);
    for (unsigned i = 0; i < v->me.n_pins; i++)
        if (v->me.pins[i].object == object && v->me.pins[i].snapshot == snap) {
            v->me.pins[i] = v->me.pins[--v->me.n_pins];
            vslot_write_mine(v, NULL);
            break;
        }
    gr_fmutex_unlock(&v->ckpt_lock);
}

static void close_reader(void *arg)
{
    struct vobj *o = arg;
    unpin(o->v, o->id, o->pinned_snap);
    vobj_free(o);
}

static void close_bdev(struct gr_bdev *bdev)
{
    struct snap_bdev *b = of(bdev);
    if (!b->disk) {
        b->o->pinned_snap = b->s->id;
        if (gr_fiber_self())
            close_reader(b->o);
        else
            gr_fiber_start(b->o->v->loop, close_reader, b->o);
    } else {
        if (!gone(b)) {
            b->s->open--;
            reap_kick(b->o);
        }
        vmfs_close(b->disk);
    }
    free(b);
}

static const struct gr_bdev_ops ops = { .type = "vmfs snapshot", .submit = submit, .geometry = geometry, .close = close_bdev };

static int make(struct vobj *o, struct vsnap *s, struct vmfs_disk *disk, const char *disk_name, struct gr_bdev **ret, struct gr_err *err)
{
    struct snap_bdev *b = gr_zalloc(sizeof *b);
    char name[128];
    if (!b)
        return gr_fail(err, -ENOMEM, "out of memory");
    snprintf(name, sizeof name, "%s@%s", disk_name, s->name);
    gr_bdev_init(&b->bdev, &ops, name);
    b->o = o;
    b->s = s;
    b->disk = disk;
    *ret = &b->bdev;
    return 0;
}

int snap_open(struct vmfs_disk *d, const char *name, struct gr_bdev **ret, struct gr_err *err)
{
    if (!d->o || d->gone)
        return gr_fail(err, -GR_EFENCED, "'%s' is no longer ours", d->bdev.name);
    disk_wait_late(d->o);
    struct vsnap *s = d->o ? vobj_snap_named(d->o, name) : NULL;
    if (!s)
        return gr_fail(err, -ENOENT, "'%s' has no snapshot '%s'", d->bdev.name, name);
    int r = vbehind_snap_refuse(d->o, s, d->bdev.name, err);
    if (r == 0)
        r = make(d->o, s, d, d->bdev.name, ret, err);
    if (r == 0) {
        s->open++;
        d->o->opens++; /* closed with the bdev */
        gr_bdev_get(&d->bdev);
    }
    return r;
}

int snap_open_reader(struct vmfs *reader, const char *path, const char *name, struct gr_bdev **ret, struct gr_err *err)
{
    struct vmfs_stat st;
    struct vobj *o = NULL;
    int r = vmfs_stat(reader, path, &st, err);
    if (r == 0)
        r = vobj_peek(reader, st.id, &o, err);
    if (r < 0)
        return r;
    struct vsnap *s = vobj_snap_named(o, name);
    uint64_t id = s ? s->id : 0;
    vobj_free(o);
    if (!id)
        return gr_fail(err, -ENOENT, "'%s/%s' has no snapshot '%s' that is home yet (ask its owner for a checkpoint)", reader->sb.name, path, name);
    r = pin(reader, st.id, id, err);
    if (r < 0)
        return r;
    r = vobj_peek(reader, st.id, &o, err); /* pinned: now see whether it is still there */
    s = r == 0 ? vobj_snap(o, id) : NULL;
    if (r == 0 && (!s || (s->flags & VMFS_SNAP_DELETING)))
        r = gr_fail(err, -ENOENT, "'%s/%s@%s' is being deleted", reader->sb.name, path, name);
    if (r == 0 && (r = vkeys_open(o, err)) < 0)
        gr_prefix(err, r, "'%s/%s'", reader->sb.name, path);
    char disk_name[128];
    snprintf(disk_name, sizeof disk_name, "%s/%s", reader->sb.name, path);
    if (r == 0)
        r = make(o, s, NULL, disk_name, ret, err);
    if (r < 0) {
        vobj_free(o);
        unpin(reader, st.id, id);
    }
    return r;
}
