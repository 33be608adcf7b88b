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

int vsuper_write(struct vmfs *v, const struct vsuper *s, unsigned dev, struct gr_err *err)
{
    static const uint64_t at[] = { VMFS_SUPER_B, VMFS_SUPER_A };
    if (s->dev[dev].state == VMFS_DEVICE_GONE)
        return 0;
    uint8_t *b = vunits_alloc(1);
    struct vsuper copy = *s;
    int r = b ? 0 : -ENOMEM;
    copy.this_device = dev;
    for (unsigned i = 0; r == 0 && i < 2; i++) {
        vsuper_encode(&copy, vmfs_addr(dev, at[i]), b);
        r = vdev_write(v, vmfs_addr(dev, at[i]), 1, b, GR_BIO_FUA);
    }
    free(b);
    return r < 0 ? gr_fail(err, r, "datastore '%s': the superblocks of '%s' cannot be written: %s", s->name, v->dev[dev].bdev->name, gr_code_text(r)) : 0;
}

int vsuper_write_all(struct vmfs *v, const struct vsuper *s, struct gr_err *err)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < s->n_devices; i++)
        r = vsuper_write(v, s, i, err);
    return r;
}
