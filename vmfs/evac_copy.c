/* Copying what lies on a device that leaves: blocks of metadata stay together, wherever they go. */
#include "common/seam.h"
#include "vmfs/evacuate.h"
#include "vmfs/pool.h"

#define HOME_TRIES 3u
#define COPY_UNITS 1024u          /* read at once, unless one block is longer */

/* Units from buf[at] on that must stay together: a block of metadata that begins there, or one. *@ret_units counts none behind @have. */
static uint32_t block_at(const struct evac *e, const uint8_t *p, uint64_t addr, uint32_t run)
{
    const struct vmfs_hdr_disk *h = (const struct vmfs_hdr_disk *)p;
    uint32_t units = gr_le32_get(h->units);
    unsigned type = gr_le16_get(h->type);
    if (gr_le32_get(h->magic) != VMFS_MAGIC || units < 2 || units > run || (type != VMFS_T_LEAF && type != VMFS_T_BLOB) ||
        memcmp(h->volume, e->v->sb.uuid, 16) != 0)
        return 1;
    uint64_t self = gr_le64_get(h->self);
    bool here = self == addr || (vmfs_addr_dev(self) < e->v->sb.n_devices && moved_addr(e->v, self, units, NULL) == addr);
    return here ? units : 1;
}

static int buf_room(struct evac *e, uint32_t units)
{
    if (units <= e->buf_units)
        return 0;
    free(e->buf);
    e->buf = vunits_alloc(units);
    e->buf_units = e->buf ? units : 0;
    return e->buf ? 0 : -ENOMEM;
}

/* Read from @addr on, at most @run units: as many as there are whole blocks of, at least one block. */
static int read_blocks(struct evac *e, uint64_t addr, uint32_t run, uint32_t *ret_units)
{
    uint32_t n = GR_MIN(run, COPY_UNITS), at = 0, block = 0;
    int r = buf_room(e, COPY_UNITS);
    if (r == 0)
        r = vdev_read(e->v, addr, n, e->buf);
    while (r == 0 && at < n) {
        block = block_at(e, e->buf + (size_t)at * VMFS_UNIT, addr + at, run - at);
        if (at + block > n)
            break;
        at += block;
    }
    if (r == 0 && at == 0) { /* the first one is longer */
        at = block;
        r = buf_room(e, at);
        if (r == 0)
            r = vdev_read(e->v, addr, at, e->buf);
    }
    *ret_units = at;
    return r;
}

/* The largest part of @n units in the buffer that is no longer than @got and ends with a block. 0: the first block is longer. */
static uint32_t fitting(const struct evac *e, uint64_t addr, uint32_t n, uint32_t got)
{
    uint32_t at = 0, block;
    while (at < n && (block = block_at(e, e->buf + (size_t)at * VMFS_UNIT, addr + at, n - at)) <= got - at)
        at += block;
    return at;
}

static int no_room(const struct evac *e, uint64_t keep, int code, struct gr_err *err)
{
    const struct vmfs *v = e->v;
    return gr_fail(err, code, "datastore '%s': the other devices have no room for what is left on '%s': %llu MiB of it, and %llu MiB free of which %llu MiB are kept back",
                   v->sb.name, v->dev[e->dev].bdev->name, (unsigned long long)((e->units - GR_MIN(e->units, e->done)) * VMFS_UNIT >> 20),
                   (unsigned long long)(space_free_units(v) * VMFS_UNIT >> 20), (unsigned long long)(keep * VMFS_UNIT >> 20));
}

int evac_room(struct evac *e, uint32_t want, uint32_t least, uint64_t *ret_addr, uint32_t *ret_got, struct gr_err *err)
{
    struct vmfs *v = e->v;
    uint64_t keep = space_meta_reserve(v) + v->reserved_units;
    int r = space_free_units(v) < want + keep ? -GR_ENOSPACE : space_ensure(v, want + space_meta_reserve(v));
    if (r < 0)
        return no_room(e, keep, r, err);
    for (unsigned tries = 0; r == 0;) {
        uint64_t addr = space_take_run(v, want, ret_got);
        bool fit = space_nodes_fit_now(v, v->reserved_leaves, true); /* what is dirty still finds runs */
        if (addr && *ret_got >= least && fit) {
            *ret_addr = addr;
            return 0;
        }
        if (addr)
            space_unreserve(v, addr, *ret_got);
        r = space_lease_any(v, NULL); /* those leased so far are in splinters */
        if (r == -GR_ENOSPACE && !fit && v->dirty_nodes && tries++ < HOME_TRIES)
            r = ckpt_run(v); /* what is home needs none */
    }
    return gr_fail(err, r, "datastore '%s': free space on the other devices is in splinters: no %u blocks of 4096 bytes lie behind each other", v->sb.name, least);
}

int evac_copy(struct evac *e, struct vregion *r, uint32_t at, uint32_t run, uint32_t *ret_units, struct gr_err *err)
{
    struct vmfs *v = e->v;
    uint64_t addr = r->first + at, to = 0;
    uint32_t n = 0, got = 0;
    int rc = read_blocks(e, addr, run, &n);
    if (rc < 0)
        return gr_fail(err, rc, "'%s' cannot be read at byte %llu: %s; its content stays where it is", v->dev[e->dev].bdev->name,
                       (unsigned long long)(vmfs_addr_unit(addr) * VMFS_UNIT), gr_code_text(rc));
    rc = evac_room(e, n, GR_MIN(n, block_at(e, e->buf, addr, n)), &to, &got, err);
    if (rc < 0)
        return rc;
    uint32_t fit = got < n ? fitting(e, addr, n, got) : n;
    if (fit < got)
        space_unreserve(v, to + fit, got - fit);
    rc = vdev_write(v, to, fit, e->buf, 0);
    if (rc == 0)
        rc = moved_add(&e->copied, (struct vmove){ vmfs_addr_unit(addr), to, fit });
    if (rc == 0) {
        e->pending += fit;
        e->n_touched += bits_set(e->touched, r->index, 1, true);
        e->n_touched += bits_set(e->touched, space_region_index(v, to), 1, true);
    }
    if (rc < 0) {
        space_unreserve(v, to, fit);
        return gr_fail(err, rc, "datastore '%s': what lies on '%s' cannot be written elsewhere: %s", v->sb.name, v->dev[e->dev].bdev->name, gr_code_text(rc));
    }
    *ret_units = fit;
    return 0;
}
