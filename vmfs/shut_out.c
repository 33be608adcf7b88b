/* Keys that a device still knows and nobody answers for any more. A host that lost a logical unit was ejected from the others only, when it joined
 * again without it: what it had under way to the lost one may arrive when the path is well again, behind whatever was written there since. So the
 * superblock says that the device is stale (loss.c), and whoever has it open throws such keys out before it does anything with what lay there: when
 * it joins, and when it learns of the mark (vmfs_refresh), which is behind every lock it takes from another.
 *
 * Whose is a key? Who uses the volume registers with device 0, too, and who is ejected is ejected there first. One that joins may get there last, so
 * a second look some time later decides. */
#include "common/seam.h"
#include "vmfs/loss.h"

#define LOOKS 5u /* who joins may need a while from one device to the next, or tries a second nexus (honour.c) */

struct keys {
    uint64_t *key;
    unsigned n;
};

static int keys_read(struct gr_bdev *d, struct keys *ret, struct gr_err *err)
{
    unsigned max = 64, n = 0;
    int r;
    do {
        max = GR_MAX(max, n);
        free(ret->key);
        ret->key = gr_alloc(max * sizeof *ret->key);
        r = ret->key ? d->fence->keys(d, ret->key, max, &n, err) : gr_fail(err, -ENOMEM, "out of memory");
    } while (r == 0 && n > max);
    ret->n = r == 0 ? n : 0;
    return r;
}

static bool has(const struct keys *k, uint64_t key)
{
    for (unsigned i = 0; i < k->n; i++)
        if (k->key[i] == key)
            return true;
    return false;
}

/* Of those that @d knows, and @among (NULL: any), those that device 0 does not know: it is asked last. */
static int strangers(struct gr_bdev *d, struct gr_bdev *first, const struct keys *among, struct keys *ret, struct gr_err *err)
{
    struct keys known = { 0 };
    int r = keys_read(d, ret, err);
    if (r == 0)
        r = keys_read(first, &known, err);
    unsigned n = 0;
    for (unsigned i = 0; i < ret->n; i++)
        if (!has(&known, ret->key[i]) && (!among || has(among, ret->key[i])))
            ret->key[n++] = ret->key[i];
    ret->n = r == 0 ? n : 0;
    free(known.key);
    return r;
}

static int shut_out(struct vmfs *v, struct gr_bdev *d, struct gr_bdev *first, struct gr_err *err)
{
    struct keys k = { 0 };
    int r = strangers(d, first, NULL, &k, err);
    for (unsigned i = 0; r == 0 && k.n && i < LOOKS; i++) {
        struct keys before = k;
        k = (struct keys){ 0 };
        gr_fiber_sleep_ms(vlife_look_ms(v));
        r = strangers(d, first, &before, &k, err);
        free(before.key);
    }
    for (unsigned i = 0; r == 0 && i < k.n; i++)
        r = d->fence->eject(d, k.key[i], err);
    if (r == 0 && k.n)
        vmfs_warn(v, "datastore '%s': '%s' was lost to a host, and what that may have had under way to it was shut out (%u keys)", v->sb.name, d->name, k.n);
    free(k.key);
    return r < 0 ? gr_prefix(err, r, "datastore '%s': who wrote to '%s' when it was lost cannot be shut out", v->sb.name, d->name) : 0;
}

int vloss_shut_out(struct vmfs *v, const struct vsuper *s, struct gr_err *err)
{
    int r = 0;
    if (!v->life.fences || v->role != VMFS_HOST || !v->dev[0].bdev)
        return 0;
    for (unsigned i = 1; r == 0 && i < s->n_devices && i < v->n_dev; i++) {
        struct gr_bdev *d = s->dev[i].stale && v->dev[i].bdev ? gr_bdev_get(v->dev[i].bdev) : NULL;
        if (!d)
            continue;
        r = shut_out(v, d, v->dev[0].bdev, err);
        if (r < 0 && vloss_look(v, (uint32_t)1 << i, r) == -GR_EFENCED) /* it does not answer this host any more either */
            r = gr_fail(err, -GR_EFENCED, "datastore '%s': '%s' is lost to this host, too", v->sb.name, d->name);
        gr_bdev_put(d);
    }
    return r;
}
