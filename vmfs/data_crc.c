/* Data CRCs: what a piece was when it was written is in the map beside its address, so a read can tell whether the device still has it.
 *
 * A piece is never overwritten where it lies on such a datastore, so a unit and its CRC belong together from the record that names it to the
 * one that lets go of it; and a read holds a ticket, so that what it looked up is not used again under it. What differs is damage. */
#include "common/seam.h"
#include "vmfs/internal.h"

#define TELL_AGAIN_NS (60ull * 1000000000ull)

void vcrc_of(const struct iovec *iov, int iovcnt, uint64_t count, uint32_t *ret)
{
    for (uint64_t i = 0; i < count; i++)
        ret[i] = gr_iov_crc32c(iov, iovcnt, i * VMFS_PIECE, VMFS_PIECE);
}

/* ---- what is wrong ---- */
static const char *device_name(const struct vmfs *v, unsigned dev)
{
    return dev < v->n_dev && v->dev[dev].bdev ? v->dev[dev].bdev->name : "a device that is gone";
}

/* One piece is told once in a while, however often it is tried. */
static bool told_lately(struct vmfs *v, uint64_t addr)
{
    uint64_t now = gr_loop_now_ns(v->loop);
    if (v->rotten_addr == addr && now - v->rotten_ns < TELL_AGAIN_NS)
        return true;
    v->rotten_addr = addr;
    v->rotten_ns = now;
    return false;
}

static void tell(struct vobj *o, uint64_t off, uint64_t addr)
{
    struct vmfs *v = o->v;
    char name[32];
    snprintf(name, sizeof name, "object %llu", (unsigned long long)o->id);
    v->stats.rotten++;
    if (!told_lately(v, addr))
        vmfs_warn(v, "'%s/%s' at byte %llu: device %u ('%s') does not return what was written at its byte %llu: nothing of it is handed on; "
                  "restore these %u bytes, or write them anew", v->sb.name, o->handle ? o->handle->path : name, (unsigned long long)off, vmfs_addr_dev(addr),
                  device_name(v, vmfs_addr_dev(addr)), (unsigned long long)vmfs_addr_unit(addr) * VMFS_UNIT, VMFS_PIECE);
}

int vcrc_verify(struct vobj *o, struct gr_bio *bio, const struct vcrc_want *want)
{
    for (uint64_t i = 0; i < bio->len / VMFS_PIECE; i++)
        if (want[i].addr && gr_iov_crc32c(bio->iov, bio->iovcnt, i * VMFS_PIECE, VMFS_PIECE) != want[i].crc) {
            gr_iov_zero(bio->iov, bio->iovcnt, 0, bio->len);
            bio->bad_off = i * VMFS_PIECE + 1;
            if (o->ino.type != VMFS_FILE || vobj_find(o->v, o->id) == o) /* a file that its owner changes is read again by who peeks at it */
                tell(o, bio->off + i * VMFS_PIECE, want[i].addr);
            return -EIO;
        }
    return 0;
}

/* ---- reads of less than pieces ---- */
struct part_read {
    struct gr_bio bio; /* of whole pieces */
    struct iovec iov;
    struct gr_bio *up;
};

static void part_done(struct gr_bio *bio)
{
    struct part_read *p = bio->arg;
    struct gr_bio *up = p->up;
    int status = bio->status;
    uint64_t skip = up->off - bio->off;
    if (status == 0)
        gr_iov_put(up->iov, up->iovcnt, 0, (const uint8_t *)p->iov.iov_base + skip, up->len);
    else if (bio->bad_off)
        up->bad_off = 1 + (bio->bad_off - 1 > skip ? bio->bad_off - 1 - skip : 0);
    free(p->iov.iov_base);
    free(p);
    gr_bio_end(up, status);
}

void vcrc_read_part(struct vobj *o, struct mtree *t, struct gr_bio *bio)
{
    struct part_read *p = gr_zalloc(sizeof *p);
    uint64_t first = bio->off / VMFS_PIECE, end = (bio->off + bio->len + VMFS_PIECE - 1) / VMFS_PIECE;
    void *buf = p ? vunits_alloc((uint32_t)(end - first)) : NULL;
    if (!buf) {
        free(p);
        gr_bio_end(bio, -ENOMEM);
        return;
    }
    p->up = bio;
    p->iov = (struct iovec){ buf, (end - first) * VMFS_PIECE };
    p->bio = (struct gr_bio){ .op = GR_OP_READ, .off = first * VMFS_PIECE, .len = p->iov.iov_len, .iov = &p->iov, .iovcnt = 1, .done = part_done, .arg = p };
    tree_read(o, t, &p->bio);
}
