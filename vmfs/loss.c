/* A device is lost while the volume is in use: it holds no tables that all depend on, so the others can go on without it.
 *
 * 1. A flush of it fails, or a write of metadata; or a logical unit answers nothing for a long time (life.c), while device 0 does. What it
 *    acknowledged before and nobody flushed may be gone, and which of it nobody can tell. So the volume is given up at once, as in a crash;
 *    nothing under way is answered. v->lost says what is gone: up to which frame data there was durable, and which objects had written there since.
 * 2. Who uses the volume leaves it: its slot is not freed, but says what is gone (vloss_write).
 * 3. He joins again, without the device. Recovery does what it does after a crash: of what was written to other devices nothing is missing, and
 *    records of data there that was not durable are not applied, so what earlier flushes made durable stays. The superblock says that the
 *    device's tables are stale before the slot is free; objects that have lost writes say so and acknowledge no flush any more.
 *
 * When the device is back it can be read and overwritten at once; it gets new data when its tables have been counted anew (recount.c). */
#include "common/seam.h"
#include "vmfs/behind.h"
#include "vmfs/loss.h"

#define LOOK_NS 1000000000ull /* between two looks at a device of which requests fail */

static uint32_t bit_of(unsigned dev) { return (uint32_t)1 << dev; }

/* Could this host go on without it? */
static bool can_do_without(const struct vmfs *v, unsigned dev)
{
    return v->joined && v->role == VMFS_HOST && v->opts.device_lost && !v->replaying && dev < v->sb.n_devices && v->dev[dev].ch &&
           v->sb.dev[dev].state != VMFS_DEVICE_GONE && !vdev_needed(v, dev);
}

/* Who has written there since the last flush that ended well, or has records of data there that recovery will not apply (the data may have been flushed
 * and the frame not)? Negative: more than a slot can name. */
static int lost_objects(const struct vmfs *v, struct vlost *l)
{
    for (unsigned h = 0; h < VOBJ_HASH; h++)
        for (const struct vobj *o = v->objs[h]; o; o = o->hash_next) {
            bool any = false;
            for (unsigned i = 0; i < v->sb.n_devices; i++)
                any |= (l->devices & bit_of(i)) && (o->data_on[i] > v->j.data_flushed || o->record_on[i] > l->seq);
            if (!any)
                continue;
            if (l->n == VMFS_LOST_MAX)
                return -ENOBUFS;
            l->objects[l->n++] = o->id;
        }
    return 0;
}

bool vloss_found(struct vmfs *v)
{
    struct vlost l = { .seq = v->j.durable_seq };
    char names[96] = "";
    for (unsigned i = 0; i < v->sb.n_devices; i++) {
        if (!v->dev[i].failed)
            continue;
        if (!can_do_without(v, i))
            return false;
        l.devices |= bit_of(i);
        size_t at = strlen(names);
        snprintf(names + at, sizeof names - at, "%s%u ('%.60s')", at ? ", " : "", i, v->dev[i].bdev->name);
    }
    if (!l.devices || v->life.ejected || v->sp.evac || lost_objects(v, &l) < 0)
        return false;
    char why[64];
    snprintf(why, sizeof why, "%.63s", v->fence_reason);
    snprintf(v->fence_reason, sizeof v->fence_reason, "device %s is lost: %s", names, why);
    v->lost = l;
    return true;
}

/* Can it still be read, written and flushed? Its second superblock is written as it is: whoever changes it meanwhile writes the first one, too,
 * and device 0's is the one that counts. */
static int try_out(struct vmfs *v, unsigned dev)
{
    struct vdev *d = &v->dev[dev];
    uint8_t *b = vunits_alloc(1);
    d->users++;
    int r = b ? gr_pread(d->ch, b, VMFS_UNIT, VMFS_SUPER_B * VMFS_UNIT) : -ENOMEM;
    if (r == 0)
        r = v->fenced ? 0 : gr_pwrite(d->ch, b, VMFS_UNIT, VMFS_SUPER_B * VMFS_UNIT, GR_BIO_FUA);
    if (r == 0 && !v->fenced)
        r = gr_flush(d->ch);
    d->users--;
    free(b);
    return r;
}

int vloss_look(struct vmfs *v, uint32_t devs, int r)
{
    int why = 0; /* all are tried out first: several may be lost at once */
    for (unsigned i = 0; i < v->sb.n_devices && !v->fenced; i++) {
        if (!(devs & bit_of(i)) || !can_do_without(v, i))
            continue;
        int f = try_out(v, i);
        if (v->fenced || f == -GR_EFENCED || f == -ENOMEM || f == -GR_ENOSPACE)
            continue;
        v->dev[i].failed = f < 0; /* it does what it refused before: whatever else the volume is given up for is not its fault */
        why = f < 0 ? f : why;
    }
    if (why && !v->fenced)
        vmfs_fence(v, "%s", gr_code_text(why));
    return v->fenced ? -GR_EFENCED : r;
}

struct look {
    struct vmfs *v;
    unsigned dev;
};

static void look_work(void *arg)
{
    struct look *l = arg;
    struct vmfs *v = l->v;
    do { /* what fails meanwhile is looked at behind the wait, or the device would be blamed for whatever the volume is given up for one day */
        vloss_look(v, bit_of(l->dev), 0);
        if (!v->fenced)
            gr_fqueue_wait_ms(&v->looks, LOOK_NS / 1000000);
    } while (v->dev[l->dev].failed && !v->fenced && !v->leaving);
    v->dev[l->dev].looking = false;
    free(l);
    if (--v->background == 0)
        gr_fqueue_wake_all(&v->background_q);
}

static void suspect(struct vmfs *v, unsigned dev)
{
    struct vdev *d = &v->dev[dev];
    if (v->fenced || v->leaving || d->looking || !can_do_without(v, dev))
        return;
    struct look *l = gr_alloc(sizeof *l);
    if (!l)
        return; /* the next one that fails, or a flush, finds it out */
    *l = (struct look){ v, dev };
    d->looking = true;
    v->background++;
    if (gr_fiber_start(v->loop, look_work, l) < 0) {
        d->looking = false;
        v->background--;
        free(l);
    }
}

void vloss_suspect(struct vmfs *v, uint32_t devs)
{
    for (unsigned i = 0; devs; i++, devs >>= 1)
        if (devs & 1)
            suspect(v, i);
}

void vloss_watch(struct vmfs *v, unsigned look_ms, unsigned patience_ms)
{
    struct vlost l = { .seq = v->j.durable_seq };
    unsigned longest = 0;
    for (unsigned i = 1; i < v->sb.n_devices && !v->fenced; i++) {
        struct vdev *d = &v->dev[i];
        struct gr_bdev *b = can_do_without(v, i) && d->bdev->ops->silent_ms ? d->bdev : NULL;
        if (!b)
            continue;
        d->silent = b->ops->silent_ms(b) < look_ms ? 0 : d->silent + 1;
        if (d->silent * look_ms < patience_ms || b->ops->silent_ms(b) < patience_ms)
            continue;
        l.devices |= bit_of(i);
        longest = GR_MAX(longest, d->silent * look_ms);
    }
    if (!l.devices || v->fenced || v->sp.evac || lost_objects(v, &l) < 0)
        return; /* where it could not go on without them it waits for them */
    for (unsigned i = 1; i < v->sb.n_devices; i++)
        v->dev[i].failed |= (l.devices & bit_of(i)) != 0;
    vmfs_fence(v, "it was silent for %.1f s, while device 0 answered", longest / 1e3);
    for (unsigned i = 1; i < v->sb.n_devices; i++)
        if (l.devices & bit_of(i))
            v->dev[i].bdev->ops->give_up(v->dev[i].bdev);
}

/* ---- what recovery must know ---- */
int vloss_write(struct vmfs *v)
{
    uint64_t a = vhome_addr(&v->sb.slots, v->slot, 0, 0), b = vhome_addr(&v->sb.slots, v->slot, 0, 1);
    uint8_t *is = vunits_alloc(1), *block = vunits_alloc(1);
    struct vslot now;
    int r = is && block ? vdev_read(v, a, 1, is) : -ENOMEM;
    if (r == 0 && vslot_decode(&v->sb, is, a, &now, NULL) < 0)
        r = vslot_read(v, v->slot, &now, NULL); /* the other copy: it was being written when all this began */
    if (r == 0 && (now.state != VMFS_SLOT_HOST || now.generation != v->me.generation || now.nonce != v->me.nonce))
        r = -GR_EFENCED;
    if (r == 0) {
        v->me.lost = v->lost;
        v->me.block_generation = GR_MAX(v->me.block_generation, now.block_generation) + 1;
        vslot_encode(v, &v->me, v->slot, a, block);
        r = vdev_swap_last(v, a, is, block);
    }
    if (r == -GR_EMISCOMPARE)
        r = vdev_read(v, a, 1, is) == 0 && memcmp(is, block, VMFS_UNIT) == 0 ? 0 : -GR_EFENCED; /* 0: our own write whose answer was lost */
    if (r == 0) { /* the volume is given up, so not through vdev_write() */
        vhdr_move(block, 1, b);
        r = gr_pwrite(v->dev[vmfs_addr_dev(b)].ch, block, VMFS_UNIT, vmfs_addr_unit(b) * VMFS_UNIT, GR_BIO_FUA);
    }
    free(is);
    free(block);
    return r;
}

/* The superblock is changed by compare-and-write: in a recovery the namespace cannot be locked. */
static int stale_set(struct vmfs *v, unsigned dev, bool stale, bool anew, struct gr_err *err)
{
    int r = -EAGAIN;
    for (int tries = 0; r == -EAGAIN && tries < 50; tries++) {
        if (tries)
            gr_fiber_sleep_ms(5);
        if ((r = vmfs_refresh(v, err)) < 0 || (v->sb.dev[dev].stale == stale && !anew))
            return r;
        if (stale && !(v->sb.incompat & VMFS_INCOMPAT_STALE) && (r = vfeature_all_know(v, VMFS_INCOMPAT_STALE, "lost devices", err)) < 0)
            return r;
        struct vsuper s = v->sb;
        s.generation++;
        s.incompat |= VMFS_INCOMPAT_STALE;
        s.dev[dev].stale = stale;
        s.dev[dev].emptied &= stale;
        r = vsuper_write_all(v, &s, err);
        if (r == 0)
            vsuper_ours(v, &s);
    }
    space_close(v);
    return r;
}

int vloss_mark(struct vmfs *v, unsigned dev, bool anew, struct gr_err *err)
{
    return stale_set(v, dev, true, anew, err);
}

int vloss_unmark(struct vmfs *v, unsigned dev, struct gr_err *err)
{
    return stale_set(v, dev, false, false, err);
}

/* ---- objects that have lost writes ---- */
int vloss_poison(struct vobj *o, uint32_t devices)
{
    gr_le32 val = gr_le32_of(devices | vobj_lost_writes(o));
    vobj_touch(o);
    return vobj_attr_put(o, VMFS_ATTR_LOST, strlen(VMFS_ATTR_LOST), &val, sizeof val);
}

int vmfs_accept_loss(struct vmfs_disk *d, struct gr_err *err)
{
    if (!d->o || d->gone)
        return gr_fail(err, -GR_EFENCED, "'%s' is no longer ours", d->bdev.name);
    if (d->o->behind)
        return vbehind_accept(d->o, err);
    if (!d->o->lost)
        return gr_fail(err, -EINVAL, "'%s' has lost no writes", d->bdev.name);
    int r = disk_attr_record(d, VMFS_ATTR_LOST, NULL, 0, err);
    if (r == 0 && (r = journal_commit(d->o->v)) < 0)
        gr_fail(err, r, "'%s': %s", d->bdev.name, gr_code_text(r));
    return r;
}
