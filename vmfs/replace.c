/* A device with tables is lost for good, and an empty one takes its place.
 *
 *   1. the superblocks of all other devices list a new uuid in its place, the other one with tables first. From here on the lost device is none of the
 *      volume's any more, should it come back, for what it has is older than what follows; the volume can be rescued as before (rescue.c)
 *   2. the new device gets its copies of the tables, made of the others; journals there are empty
 *   3. when that is durable it gets superblocks: the volume is whole, and whoever joins recovers what hosts had left in journals
 *
 * What lay in the regions of the lost device does not exist any more (vdev_emptied): it is not read, nothing is put there, and it is told by -EIO, until a
 * look of the check finds that no tree names anything there (recount.c).
 *
 * It is done by nobody who has joined, and needs no lock: without the lost device nobody can. */
#include "common/seam.h"
#include "vmfs/loss.h"
#include "vmfs/rescue.h"

#define BATCH 256u /* blocks */

/* v->dev in the volume's order, the new device in place of the lost one. */
static void devices_place(struct vmfs *v, const int *number, unsigned n, unsigned lost)
{
    struct vdev sorted[VMFS_DEVICES_MAX] = { 0 };
    for (unsigned i = 0; i < n; i++)
        sorted[number[i]] = v->dev[i];
    sorted[lost] = v->dev[n];
    memcpy(v->dev, sorted, sizeof sorted);
    v->n_dev = v->sb.n_devices;
}

/* Is it the one that is missing, and may it be replaced as the volume is? */
static int may_replace(const struct vmfs *v, unsigned lost, uint32_t missing, struct gr_err *err)
{
    const char *name = v->sb.name;
    if (lost >= v->sb.n_devices || !(missing >> lost & 1))
        return gr_fail(err, -EINVAL, "datastore '%s': its device %u is not missing", name, lost);
    if (!vdev_has_tables(v, lost))
        return gr_fail(err, -EINVAL, "datastore '%s': its device %u has no tables of it: it can be joined without, and another device be added", name, lost);
    if (missing != (uint32_t)1 << lost)
        return gr_fail(err, -ENODEV, "datastore '%s': besides device %u others are missing: name all that are there", name, lost);
    for (unsigned i = 0; i < v->sb.n_devices; i++) {
        if (v->sb.dev[i].state == VMFS_DEVICE_LEAVING)
            return gr_fail(err, -EBUSY, "datastore '%s': its device %u was being emptied when that happened: copy what is whole (join --rescue)", name, i);
        if (v->sb.dev[i].moved_addr && vmfs_addr_dev(v->sb.dev[i].moved_addr) == lost)
            return gr_fail(err, -ENODEV, "datastore '%s': the list of what was moved from device %u lay on device %u, too: copy what is whole (join --rescue)", name, i, lost);
    }
    return 0;
}

/* Recovery is tried in memory (rescue.c): what it could not follow for want of the lost device it could not follow later, and then nobody knows what is free. */
static int recovery_try(struct gr_loop *loop, struct gr_bdev *const *devices, unsigned n, const struct vmfs_replacing *how, struct gr_err *err)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "replacing a device", .rescue = true };
    struct vmfs *v = NULL;
    int r = vmfs_join(loop, devices, n, &o, &v, err);
    if (r < 0)
        return r;
    const struct vbehind *b = vrescue_behind(v);
    if (vbehind_hosts(b))
        r = gr_fail(err, -ENODEV, "datastore '%s': the journal of host '%s' was lost with device %u, and without that nobody knows what is free: copy what is whole (join --rescue)",
                    v->sb.name, vbehind_host(b, 0), how->lost);
    else if (vbehind_skips(b))
        r = gr_fail(err, -ENODEV, "datastore '%s': the last changes of %zu disks or files cannot be followed without device %u, so nobody knows what is free: copy what is whole (join --rescue)",
                    v->sb.name, vbehind_skips(b), how->lost);
    int left = vmfs_leave(v, r < 0 ? NULL : err);
    return r < 0 ? r : left;
}

/* ---- what is written ---- */
static int others_told(struct vmfs *v, unsigned lost, uint32_t tested, bool half, struct gr_err *err)
{
    const struct gr_world *w = gr_loop_world(v->loop);
    struct vsuper s = v->sb;
    s.generation++;
    s.incompat |= VMFS_INCOMPAT_STALE | VMFS_INCOMPAT_REPLACED;
    mkfs_uuid(v, s.dev[lost].uuid);
    s.dev[lost].stale = s.dev[lost].emptied = true;
    if (tested || !half) { /* else it was tried before, when it was begun */
        s.dev[lost].tested = tested;
        s.dev[lost].tested_s = tested ? (uint64_t)w->wall_s(w->arg) : 0;
    }
    int r = 0;
    for (unsigned pass = 0; r == 0 && pass < 2; pass++) /* that which everybody needs first */
        for (unsigned i = 0; r == 0 && i < s.n_devices; i++)
            if (i != lost && vdev_has_tables(v, i) == !pass)
                r = vsuper_write(v, &s, i, err);
    if (r == 0)
        v->sb = s;
    return r;
}

/* Blocks of a batch from @from get the address @to; what is no valid block stays what it is not: unwritten. */
static unsigned batch_move(const struct vmfs *v, uint8_t *buf, uint32_t n, uint64_t from, uint64_t to)
{
    static const uint8_t zero[VMFS_UNIT];
    unsigned damaged = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint8_t *b = buf + (size_t)i * VMFS_UNIT;
        if (memcmp(b, zero, VMFS_UNIT) == 0)
            continue;
        if (vhdr_check(v->sb.uuid, b, gr_le16_get(((const struct vmfs_hdr_disk *)b)->type), 1, from + i, NULL) == 0) {
            vhdr_move(b, 1, to + i);
        } else {
            memset(b, 0, VMFS_UNIT);
            damaged++;
        }
    }
    return damaged;
}

static int table_make(struct vmfs *v, const struct vtable *t, unsigned lost, struct gr_err *err)
{
    bool is_first = t == &v->sb.slots; /* whose first block tells what this is (half_made): it is there before anything else */
    uint64_t to = vmfs_addr_dev(t->addr_a) == lost ? t->addr_a : t->addr_b, units = (uint64_t)t->entries * t->stride;
    uint64_t from = vrescue_other_copy(v, to);
    unsigned damaged = 0;
    uint8_t *buf = vunits_alloc(BATCH);
    int r = buf ? 0 : -ENOMEM;
    for (uint64_t at = 0, n; r == 0 && vmfs_addr_dev(to) == lost && at < units; at += n) {
        n = is_first && !at ? 1 : GR_MIN(units - at, (uint64_t)BATCH);
        r = vdev_read(v, from + at, (uint32_t)n, buf);
        damaged += r == 0 ? batch_move(v, buf, (uint32_t)n, from + at, to + at) : 0;
        if (r == 0)
            r = vdev_write(v, to + at, (uint32_t)n, buf, at ? 0 : GR_BIO_FUA);
        gr_fiber_yield();
    }
    free(buf);
    if (damaged)
        vmfs_warn(v, "datastore '%s': %u blocks of its tables are damaged, and the copies that would tell are lost", v->sb.name, damaged);
    return r < 0 ? gr_fail(err, r, "the tables of device %u cannot be made: %s", lost, gr_code_text(r)) : 0;
}

/* Of the slots, on the device that is made: it tells what this is (half_made). */
static uint64_t first_block(const struct vmfs *v, unsigned lost)
{
    return vmfs_addr_dev(v->sb.slots.addr_a) == lost ? v->sb.slots.addr_a : v->sb.slots.addr_b;
}

/* What an earlier attempt left goes, but for that block, which is written next: else whoever is cut off here, too, leaves what nobody knows. */
static int tables_clear(struct vmfs *v, unsigned lost)
{
    uint64_t first = vmfs_addr_unit(first_block(v, lost));
    int r = mkfs_clear(v, lost, 0, first);
    return r == 0 ? mkfs_clear(v, lost, first + 1, v->sb.dev[lost].first_unit) : r;
}

static int make(struct vmfs *v, const struct vmfs_replacing *how, bool half, struct gr_err *err)
{
    const struct vtable *t[] = { &v->sb.slots, &v->sb.regions, &v->sb.inodes };
    unsigned lost = how->lost;
    int r = others_told(v, lost, how->tested, half, err);
    if (r == 0 && (r = tables_clear(v, lost)) < 0)
        gr_fail(err, r, "'%s': its tables cannot be cleared: %s", v->dev[lost].bdev->name, gr_code_text(r));
    for (unsigned i = 0; r == 0 && i < 3; i++)
        r = table_make(v, t[i], lost, err);
    if (r == 0 && (r = gr_flush(v->dev[lost].ch)) < 0)
        gr_fail(err, r, "'%s' cannot be flushed: %s", v->dev[lost].bdev->name, gr_code_text(r));
    return r == 0 ? vsuper_write(v, &v->sb, lost, err) : r;
}

/* ---- before ---- */
/* It is in place already, but for its second superblock perhaps. */
static bool in_place(struct vmfs *v, unsigned at, unsigned lost)
{
    struct vsuper s;
    return v->sb.dev[lost].emptied && vsuper_read(v, at, &s, NULL) == 0 && memcmp(s.uuid, v->sb.uuid, 16) == 0 && s.this_device == lost &&
           s.generation == v->sb.generation && memcmp(s.dev[lost].uuid, v->sb.dev[lost].uuid, 16) == 0;
}

/* What an attempt left that was cut off before the superblocks: the first block that it wrote is there. */
static bool half_made(struct vmfs *v, unsigned at, unsigned lost)
{
    uint64_t first = first_block(v, lost);
    struct vsuper s;
    uint8_t *b = vunits_alloc(1);
    bool half = b && v->sb.dev[lost].emptied && vmfs_addr_dev(first) == lost && vsuper_read(v, at, &s, NULL) == -GR_EFORMAT &&
                gr_pread(v->dev[at].ch, b, VMFS_UNIT, vmfs_addr_unit(first) * VMFS_UNIT) == 0 && vhdr_check(v->sb.uuid, b, VMFS_T_SLOT, 1, first, NULL) == 0;
    free(b);
    return half;
}

/* The volume as its devices say; the last of v->dev, which does not count, is the new one. 1: that is in place already; 2: half made. */
static int look(struct vmfs *v, struct gr_bdev *with, int *number, unsigned lost, struct gr_err *err)
{
    struct vsuper *s = gr_zalloc(VMFS_DEVICES_MAX * sizeof *s);
    uint32_t missing = 0;
    unsigned first = 0;
    char what[160];
    int r = s ? vrescue_supers(v, s, &first, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r == 0) {
        v->sb = s[first];
        r = vfeature_check(v, &v->sb, err);
    }
    if (r == 0)
        r = vrescue_missing(v, s, number, &missing, err);
    if (r == 0)
        r = may_replace(v, lost, missing, err);
    if (r == 0 && in_place(v, v->n_dev, lost)) {
        free(s);
        return 1;
    }
    if (r == 0)
        r = vmfs_probe(v->loop, with, what, err);
    bool half = r == 0 && what[0] && half_made(v, v->n_dev, lost);
    if (r == 0 && what[0] && !half)
        r = gr_fail(err, -EEXIST, "'%s' already holds a %s: nothing was changed", with->name, what);
    if (r == 0 && vrescue_too_short(v, with, lost, NULL) < 0)
        r = gr_fail(err, -EINVAL, "'%s' is too small: the device that it is to replace has %llu bytes", with->name, (unsigned long long)v->sb.dev[lost].units * VMFS_UNIT);
    free(s);
    return r == 0 && half ? 2 : r;
}

int vmfs_replace_device(struct gr_loop *loop, struct gr_bdev *const *devices, unsigned n, struct gr_bdev *with, const struct vmfs_replacing *how, struct gr_err *err)
{
    struct gr_bdev *all[VMFS_DEVICES_MAX];
    int number[VMFS_DEVICES_MAX];
    if (n >= VMFS_DEVICES_MAX)
        return gr_fail(err, -EINVAL, "a datastore has at most %u devices", VMFS_DEVICES_MAX);
    int r = recovery_try(loop, devices, n, how, err);
    if (r < 0)
        return r;
    struct vmfs *v = gr_zalloc(sizeof *v);
    if (!v)
        return gr_fail(err, -ENOMEM, "out of memory");
    v->loop = loop;
    v->role = VMFS_HOST;
    v->features = vmfs_features_known();
    v->opts.warn = how->warn;
    v->opts.warn_arg = how->warn_arg;
    memcpy(all, devices, n * sizeof all[0]);
    all[n] = with;
    r = vdevs_open(v, all, n + 1, err);
    if (r == 0) {
        v->life.alone = valone_found(v);
        r = vlife_enter(v, err); /* who is not registered does not even read */
    }
    if (r == 0) {
        v->n_dev = n;
        r = look(v, with, number, how->lost, err);
        v->n_dev = n + 1;
    }
    if (r >= 0)
        devices_place(v, number, n, how->lost);
    if (r == 1) /* it was cut off at the very end */
        r = vsuper_write(v, &v->sb, how->lost, err);
    else if (r >= 0)
        r = make(v, how, r == 2, err);
    v->opts.warn = NULL; /* nothing is given up: it was never joined */
    vlife_stop(v, true);
    vmfs_abandon(v);
    return r;
}
