/* Superblocks: two copies on every device. */
#include "vmfs/internal.h"

static int super_read_copy(struct vmfs *v, unsigned dev, uint64_t unit, struct vsuper *ret, struct gr_err *err)
{
    struct vmfs_super_disk *d = vunits_alloc(1);
    uint64_t self = vmfs_addr(dev, unit);
    int r = d ? gr_pread(v->dev[dev].ch, d, VMFS_UNIT, unit * VMFS_UNIT) : -ENOMEM;
    if (r < 0)
        gr_fail(err, r, "'%s': cannot read the superblock at unit %llu: %s", v->dev[dev].bdev->name, (unsigned long long)unit, gr_code_text(r));
    if (r == 0 && (gr_le32_get(d->hdr.magic) != VMFS_MAGIC || gr_le16_get(d->hdr.type) != VMFS_T_SUPER))
        r = gr_fail(err, -GR_EFORMAT, "'%s': no Granary superblock at unit %llu", v->dev[dev].bdev->name, (unsigned long long)unit);
    if (r == 0) { /* a device may sit at another place in the list than its superblock says: that is found out later */
        uint64_t says = gr_le64_get(d->hdr.self);
        if (vmfs_addr_unit(says) == unit)
            self = says;
        r = vhdr_check(NULL, d, VMFS_T_SUPER, 1, self, err);
    }
    if (r == 0)
        r = vsuper_decode(d, ret, err);
    if (r == 0 && vmfs_addr_dev(self) != ret->this_device)
        r = gr_fail(err, -GR_ECORRUPT, "'%s': rule 4: superblock of another device", v->dev[dev].bdev->name);
    free(d);
    return r;
}

int vsuper_read(struct vmfs *v, unsigned dev, struct vsuper *ret, struct gr_err *err)
{
    struct gr_err ea = { 0 }, eb = { 0 };
    struct vsuper a, b;
    int ra = super_read_copy(v, dev, VMFS_SUPER_A, &a, &ea), rb = super_read_copy(v, dev, VMFS_SUPER_B, &b, &eb);
    if (ra == 0 && rb == 0) {
        *ret = b.generation > a.generation ? b : a;
        return 0;
    }
    if (ra == -GR_EVERSION || rb == -GR_EVERSION) /* even one: a newer Granary has begun to change the volume */
        return gr_fail(err, -GR_EVERSION, "'%s': %s", v->dev[dev].bdev->name, ra == -GR_EVERSION ? ea.text : eb.text);
    if (ra == 0 || rb == 0) {
        vmfs_warn(v, "%s; the %s copy of the superblock is used", ra < 0 ? ea.text : eb.text, ra < 0 ? "second" : "first");
        *ret = ra == 0 ? a : b;
        return 0;
    }
    if ((ra == -GR_EFORMAT || ra == -GR_ERANGE) && (rb == -GR_EFORMAT || rb == -GR_ERANGE)) /* range: too small to have one there */
        return gr_fail(err, -GR_EFORMAT, "'%s' is not a Granary datastore", v->dev[dev].bdev->name);
    return gr_fail(err, ra == -GR_EFORMAT ? rb : ra, "'%s': both superblocks are damaged: %s; %s", v->dev[dev].bdev->name, ea.text, eb.text);
}

bool vsuper_replaced(const struct vsuper *s, const struct vsuper *all, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (all[i].n_devices > s->this_device && all[i].generation > s->generation && memcmp(all[i].dev[s->this_device].uuid, s->dev[s->this_device].uuid, 16) != 0)
            return true;
    return false;
}

/* The copy that decides, if it is still the one that @s was made from: hosts that mark a device as lost hold no lock. */
static int super_swap(struct vmfs *v, const struct vsuper *s, const void *block, struct gr_err *err)
{
    uint64_t at = vmfs_addr(0, VMFS_SUPER_A);
    uint8_t *is = vunits_alloc(1);
    struct vsuper now;
    int r = is ? vdev_read(v, at, 1, is) : -ENOMEM;
    if (r == 0 && vhdr_check(s->uuid, is, VMFS_T_SUPER, 1, at, NULL) == 0 && vsuper_decode(is, &now, NULL) == 0 && now.generation >= s->generation)
        r = -GR_EMISCOMPARE;
    if (r == 0)
        r = vdev_swap(v, at, is, block);
    if (r == -GR_EMISCOMPARE && vdev_read(v, at, 1, is) == 0 && memcmp(is, block, VMFS_UNIT) == 0)
        r = 0; /* our own write whose answer was lost */
    free(is);
    return r == -GR_EMISCOMPARE ? gr_fail(err, -EAGAIN, "datastore '%s': another host changed its superblock meanwhile: try again", s->name) : r;
}

int vsuper_write(struct vmfs *v, const struct vsuper *s, unsigned dev, struct gr_err *err)
{
    static const uint64_t at[] = { VMFS_SUPER_A, VMFS_SUPER_B };
    if (s->dev[dev].state == VMFS_DEVICE_GONE || (dev && dev < v->sb.n_devices && vdev_missing(v, dev)))
        return 0; /* device 0's counts, whatever is on one that comes back */
    uint8_t *b = vunits_alloc(1);
    struct vsuper copy = *s;
    int r = b ? 0 : -ENOMEM;
    copy.this_device = dev;
    for (unsigned i = 0; r == 0 && i < 2; i++) {
        vsuper_encode(&copy, vmfs_addr(dev, at[i]), b);
        r = dev == 0 && i == 0 && (v->joined || v->replaying) ? super_swap(v, &copy, b, err) : vdev_write(v, vmfs_addr(dev, at[i]), 1, b, GR_BIO_FUA);
    }
    free(b);
    if (r == 0 || r == -EAGAIN)
        return r;
    return gr_fail(err, r, "datastore '%s': the superblocks of '%s' cannot be written: %s", s->name, v->dev[dev].bdev->name, gr_code_text(r));
}

void vsuper_ours(struct vmfs *v, const struct vsuper *s)
{
    if (s->generation > v->sb.generation) /* another host may have changed it since, and another fiber learnt of it */
        v->sb = *s;
}

int vsuper_write_all(struct vmfs *v, const struct vsuper *s, struct gr_err *err)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < s->n_devices; i++)
        r = vsuper_write(v, s, i, err);
    return r;
}
