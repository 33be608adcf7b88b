/* What hosts that share logical units rely on was tried before they did (common/bdev_probe.h), and stands in the superblock. At each join
 * the part of it is looked at again that costs a few requests and disturbs nobody: an array may have been replaced, or set up anew. */
#include "common/bdev_probe.h"
#include "common/seam.h"
#include "vmfs/internal.h"

#define KEYS_MAX 4096u

static int lies(const struct vmfs *v, unsigned dev, const char *what, struct gr_err *err)
{
    return gr_fail(err, -EOPNOTSUPP, "'%s' does not honour any more what datastore '%s' relies on: %s; set the array up as it was, or move the disks elsewhere",
                   v->dev[dev].bdev->name, v->sb.name, what);
}

static int registered(struct vmfs *v, unsigned dev, struct gr_err *err)
{
    struct gr_bdev *d = v->dev[dev].bdev;
    uint64_t *keys = gr_alloc(KEYS_MAX * sizeof *keys);
    unsigned n = 0;
    bool found = false;
    int r = keys ? d->fence->keys(d, keys, KEYS_MAX, &n, err) : gr_fail(err, -ENOMEM, "out of memory");
    for (unsigned i = 0; r == 0 && i < GR_MIN(n, KEYS_MAX); i++)
        found |= keys[i] == v->life.key;
    free(keys);
    return r < 0 ? r : found || n > KEYS_MAX ? 0 : lies(v, dev, "it does not know that this host is registered", err);
}

/* Unit 0 is nobody's. */
static int stranger(struct vmfs *v, unsigned dev, struct gr_err *err)
{
    struct gr_bdev *a = v->dev[dev].bdev, *b = NULL;
    struct gr_err why = {0};
    struct gr_probe seen;
    int r = v->opts.stranger(v->opts.warn_arg, a, &b, &why);
    if (r < 0) {
        vmfs_warn(v, "datastore '%s': whether '%s' still shuts out who is not registered cannot be tried: %s", v->sb.name, a->name, gr_err_text(&why, r));
        return 0;
    }
    struct gr_geometry ga, gb;
    r = gr_bdev_geometry(a, &ga);
    r = r < 0 ? r : gr_bdev_geometry(b, &gb);
    if (r == 0 && memcmp(ga.uuid, gb.uuid, sizeof ga.uuid) != 0)
        r = gr_fail(&why, -ESTALE, "who is not known there is shown another logical unit");
    if (r == 0)
        r = gr_bdev_probe_member(a, b, 0, &seen, &why);
    gr_bdev_put(b);
    const char *lie = strstr(why.text, ": "); /* behind its name */
    if (r == -EOPNOTSUPP)
        return lies(v, dev, lie ? lie + 2 : why.text, err);
    if (r < 0 && v->fenced)
        return gr_fail(err, r, "%s", gr_err_text(&why, r));
    if (r < 0) /* the second session's trouble is not ours */
        vmfs_warn(v, "datastore '%s': whether '%s' still shuts out who is not registered cannot be tried: %s", v->sb.name, a->name, gr_err_text(&why, r));
    return 0;
}

/* A compare-and-write of our own slot's block that must not compare equal; what it would write is what is there. */
static int miscompares(struct vmfs *v, struct gr_err *err)
{
    uint64_t a = vhome_addr(&v->sb.slots, v->slot, 0, 0), at = 0;
    unsigned dev = vmfs_addr_dev(a);
    uint8_t *is = vunits_alloc(1), *other = vunits_alloc(1);
    int r = is && other ? vdev_read(v, a, 1, is) : -ENOMEM;
    if (r == 0) {
        memcpy(other, is, VMFS_UNIT);
        other[VMFS_UNIT - 1] ^= 1;
        r = gr_compare_write(v->dev[dev].ch, vmfs_addr_unit(a) * VMFS_UNIT, other, is, VMFS_UNIT, &at);
        if (r == 0)
            r = lies(v, dev, "a compare-and-write of what is not there went through", err);
        else if (r == -GR_EMISCOMPARE)
            r = 0;
        else
            gr_fail(err, r, "'%s' cannot compare and write: %s", v->dev[dev].bdev->name, gr_code_text(r));
    } else {
        gr_fail(err, r, "slot %u cannot be read: %s", v->slot, gr_code_text(r));
    }
    free(is);
    free(other);
    return r;
}

int vhonour_check(struct vmfs *v, struct gr_err *err)
{
    int r = 0;
    bool compare = false;
    if (!v->life.fences)
        return 0;
    for (unsigned i = 0; r == 0 && i < v->sb.n_devices; i++) {
        const struct vdevinfo *d = &v->sb.dev[i];
        struct gr_bdev *b = v->dev[i].bdev;
        if (!b)
            continue;
        if (d->tested & VMFS_TESTED_FENCE)
            r = registered(v, i, err);
        if (r == 0 && (d->tested & VMFS_TESTED_OUTLASTS_POWER) && b->fence->persists && (r = b->fence->persists(b, err)) == -EOPNOTSUPP)
            r = lies(v, i, "registrations and reservation do not outlast a loss of its power", err);
        if (r == 0 && v->opts.stranger && (d->tested & VMFS_TESTED_FENCE))
            r = stranger(v, i, err);
        compare |= (d->tested & VMFS_TESTED_MISCOMPARES) && vmfs_addr_dev(v->sb.slots.addr_a) == i;
    }
    return r == 0 && compare ? miscompares(v, err) : r;
}
