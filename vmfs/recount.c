/* Tables of a device that was lost, made anew: what all trees and lists of foreign frees name there is used, all else is free. A look of the check has
 * been at all of them, and found nothing broken; since before its checkpoint whatever is freed on the device is on our list of foreign frees, so it
 * counts as used here and is given back with its region. Nobody takes anything there until the superblock says that the tables are good. */
#include "common/seam.h"
#include "vmfs/check.h"
#include "vmfs/loss.h"

int recount_share(struct chk_region *r, struct vshare s)
{
    struct vshare *last = r->n_found ? &r->found[r->n_found - 1] : NULL;
    if (last && last->at + last->units == s.at && last->more == s.more) {
        last->units++;
        return 0;
    }
    if (r->n_found % 64 == 0) {
        struct vshare *a = gr_realloc(r->found, (r->n_found + 64) * sizeof *a);
        if (!a)
            return -ENOMEM;
        r->found = a;
    }
    r->found[r->n_found++] = s;
    return 0;
}

static int region_install(struct chk *c, uint32_t index, struct gr_err *err)
{
    struct vmfs *v = c->v;
    struct chk_region *r = &c->regions[index];
    struct recount n = { r->used, r->found, r->n_found };
    int rc = space_lease_recounted(v, index, &n, err);
    r->found = n.shares;
    if (rc == 1)
        rc = gr_fail(err, -GR_ELOCKED, "datastore '%s': another host holds space on '%s'", v->sb.name, v->dev[vmfs_addr_dev(r->first)].bdev->name);
    if (rc == 0 && ckpt_images_due(v) > v->j.units / 8)
        rc = vmfs_checkpoint(v, err);
    return rc;
}

static int device_install(struct chk *c, unsigned dev, struct gr_err *err)
{
    struct vmfs *v = c->v;
    const struct vdevinfo d = v->sb.dev[dev];
    uint64_t used = 0;
    int r = 0;
    for (uint32_t i = d.first_region; r == 0 && i < d.first_region + d.regions; i++) {
        r = region_install(c, i, err);
        if (r == 0)
            used += v->sp.by_index[i]->units - v->sp.by_index[i]->free_used;
    }
    if (r == 0)
        r = vmfs_checkpoint(v, err); /* home before it is believed */
    if (r == 0)
        r = vloss_unmark(v, dev, err);
    if (r == 0)
        chk_note(c, "repaired: device %u, which was lost, is in use again: %llu MiB are used on it", dev, (unsigned long long)(used * VMFS_UNIT >> 20));
    return r;
}

/* What lay on a device that was replaced does not exist: as long as a tree names it, it must not look as if it did. */
static bool named(const struct chk *c, unsigned dev)
{
    const struct vdevinfo *d = &c->v->sb.dev[dev];
    for (uint32_t i = d->first_region; i < d->first_region + d->regions; i++)
        for (uint32_t w = 0; w < (c->regions[i].units + 63) / 64; w++)
            if (c->regions[i].used[w])
                return true;
    return false;
}

int recount_install(struct chk *c, struct gr_err *err)
{
    struct vmfs *v = c->v;
    int n = 0, r = 0;
    if (!c->stale || c->rep.errors || c->blind)
        return 0;
    for (unsigned i = 0; r == 0 && i < v->sb.n_devices; i++) {
        if (!vdev_stale(v, i) || vdev_missing(v, i))
            continue;
        if (vdev_emptied(v, i) && named(c, i)) {
            chk_note(c, "device %u has replaced one that was lost, and what lay there is still named: when no disk, file or snapshot does so any more, it gets data again", i);
            continue;
        }
        r = device_install(c, i, err);
        n += r == 0;
    }
    return r < 0 ? r : n;
}
