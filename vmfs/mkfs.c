/* Formatting a volume, and what is on a device before that. */
#include "common/bdev_probe.h"
#include "common/seam.h"
#include "vmfs/internal.h"

/* ---- probe: names of what others leave on a device ---- */
struct magic {
    uint64_t off;
    const char *bytes;
    unsigned len;
    const char *name;
};
static const struct magic magics[] = {
    { 0x438, "\x53\xef", 2, "ext2/ext3/ext4 file system" },
    { 0, "XFSB", 4, "XFS file system" },
    { 0x10040, "_BHRfS_M", 8, "btrfs file system" },
    { 3, "NTFS    ", 8, "NTFS file system" },
    { 3, "EXFAT   ", 8, "exFAT file system" },
    { 54, "FAT1", 4, "FAT file system" },
    { 82, "FAT32", 5, "FAT file system" },
    { 512, "LABELONE", 8, "LVM physical volume" },
    { 0, "LABELONE", 8, "LVM physical volume" },
    { 1536, "LABELONE", 8, "LVM physical volume" },
    { 4096, "\xfc\x4e\x2b\xa9", 4, "Linux RAID member" },
    { 0, "LUKS\xba\xbe", 6, "LUKS encrypted volume" },
    { 0, "KDMV", 4, "VMDK image" },
    { 0, "# Disk DescriptorFile", 21, "VMDK descriptor" },
    { 0, "QFI\xfb", 4, "qcow2 image" },
    { 0, "con" "ectix", 8, "VHD image" },
    { 0, "vhdxfile", 8, "VHDX image" },
    { 32769, "CD001", 5, "ISO 9660 file system" },
    { 4086, "SWAPSPACE2", 10, "Linux swap area" },
    { 0x100000, "\x0d\xd0\x01\xc0", 4, "VMFS volume" },
};

static bool nothing_in(const uint8_t *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (b[i])
            return false;
    return true;
}

static void probe_text(const uint8_t *b, size_t len, char *ret, size_t size)
{
    const struct vmfs_hdr_disk *h;
    static const uint64_t supers[] = { VMFS_SUPER_A, VMFS_SUPER_B };
    ret[0] = 0;
    for (unsigned i = 0; i < 2; i++) {
        h = (const struct vmfs_hdr_disk *)(b + supers[i] * VMFS_UNIT);
        if ((supers[i] + 1) * VMFS_UNIT <= len && gr_le32_get(h->magic) == VMFS_MAGIC && gr_le16_get(h->type) == VMFS_T_SUPER) {
            char name[64];
            memcpy(name, ((const struct vmfs_super_disk *)h)->name, sizeof name);
            name[63] = 0;
            snprintf(ret, size, "Granary datastore '%s'", gr_utf8_ok(name, strlen(name)) ? name : "?");
            return;
        }
    }
    if (len >= 1024 && memcmp(b + 512, "EFI PART", 8) == 0) {
        snprintf(ret, size, "GPT partition table");
        return;
    }
    for (size_t i = 0; i < GR_ARRAY_LEN(magics); i++)
        if (magics[i].off + magics[i].len <= len && memcmp(b + magics[i].off, magics[i].bytes, magics[i].len) == 0) {
            snprintf(ret, size, "%s", magics[i].name);
            return;
        }
    if (len >= 512 && b[510] == 0x55 && b[511] == 0xaa) {
        snprintf(ret, size, "partition table or boot sector");
        return;
    }
    if (!nothing_in(b, len))
        snprintf(ret, size, "data of an unknown kind");
}

#define PROBE_HEAD ((size_t)(VMFS_SUPER_B + 1) * VMFS_UNIT)
#define PROBE_TAIL ((size_t)1 << 20)
int vmfs_probe(struct gr_loop *loop, struct gr_bdev *device, char ret_what[160], struct gr_err *err)
{
    struct gr_geometry g;
    struct gr_chan *ch = NULL;
    int r = gr_bdev_geometry(device, &g);
    if (r == 0)
        r = gr_chan_open(device, loop, &ch);
    if (r < 0)
        return gr_fail(err, r, "'%s' cannot be used: %s", device->name, gr_code_text(r));
    size_t head = GR_MIN(PROBE_HEAD, g.size) & ~511ul, tail = GR_MIN(PROBE_TAIL, g.size - head) & ~511ul;
    uint8_t *b = vunits_alloc((uint32_t)((head + tail) / VMFS_UNIT + 2));
    r = b ? 0 : -ENOMEM;
    ret_what[0] = 0;
    if (r == 0 && head)
        r = gr_pread(ch, b, head, 0);
    if (r == 0 && tail)
        r = gr_pread(ch, b + head, tail, (g.size & ~511ull) - tail);
    if (r == 0 && head >= VMFS_UNIT && gr_bdev_probe_left(b)) /* it was tried whether hosts can share it, and that was cut off */
        memset(b, 0, VMFS_UNIT);
    if (r == 0) {
        probe_text(b, head, ret_what, 160);
        if (!ret_what[0] && tail >= 512 && memcmp(b + head + tail - 512, "EFI PART", 8) == 0)
            snprintf(ret_what, 160, "GPT partition table (the copy at the end)");
        else if (!ret_what[0] && !nothing_in(b + head, tail))
            snprintf(ret_what, 160, "data of an unknown kind");
    }
    free(b);
    gr_chan_close(ch);
    return r < 0 ? gr_fail(err, r, "'%s' cannot be read: %s", device->name, gr_code_text(r)) : 0;
}

/* ---- layout ---- */
struct placer {
    uint64_t a, b; /* next free unit for copies A and B on device 0 / the device of copies B */
    unsigned dev_b;
};

static uint64_t place_a(struct placer *p, uint64_t units)
{
    if (p->a < VMFS_SUPER_B && p->a + units > VMFS_SUPER_B) {
        if (p->dev_b == 0)
            p->b = GR_MAX(p->b, (uint64_t)VMFS_SUPER_B + 1); /* both go on behind superblock B */
        p->a = p->dev_b == 0 ? p->b : VMFS_SUPER_B + 1;
    }
    uint64_t at = p->a;
    p->a += units;
    if (p->dev_b == 0 && at > VMFS_SUPER_B)
        p->b = p->a;
    return at;
}
static uint64_t place_b(struct placer *p, uint64_t units)
{
    uint64_t at = p->b;
    p->b += units;
    if (p->dev_b == 0 && p->a > VMFS_SUPER_B)
        p->a = p->b;
    return at;
}

static void place_table(struct placer *p, struct vtable *t, uint32_t entries, uint32_t stride)
{
    uint64_t units = (uint64_t)entries * stride;
    t->entries = entries;
    t->stride = stride;
    t->addr_a = vmfs_addr(0, place_a(p, units));
    t->addr_b = vmfs_addr(p->dev_b, place_b(p, units));
}

static uint32_t round_block(uint64_t units)
{
    return (uint32_t)(units - units % VMFS_BLOCK_PIECES);
}

/* @smaller: units of the smaller device with journals. */
static void choose_sizes(struct vsuper *s, const struct vmfs_format_opts *o, uint64_t total, uint64_t smaller, uint32_t *ret_slots, uint32_t *ret_inodes)
{
    uint64_t gib = 262144; /* units */
    *ret_slots = o->slots ? GR_MIN(o->slots, VMFS_SLOTS_MAX) : total < 4 * gib ? 8 : total < 16 * gib ? 16 : total < 64 * gib ? 32 : VMFS_SLOTS_DEFAULT;
    uint64_t inodes = total / 1024;
    if (inodes < 2048 && total >= gib / 4)
        inodes = 2048;
    *ret_inodes = (uint32_t)GR_MAX(256u, GR_MIN(65536u, inodes));
    s->journal_units = o->journal_units ? o->journal_units : (uint32_t)GR_MAX(256u, GR_MIN(8192u, GR_MIN(total / 32, smaller / 8) / *ret_slots));
    uint64_t region = o->region_units ? o->region_units : total / 64;
    region = GR_MAX(1024u, GR_MIN(region, (uint64_t)VMFS_BITMAP_BITS));
    s->bitmap_blocks = 1;
    while (total / region > 4096) {
        s->bitmap_blocks++;
        region = (uint64_t)s->bitmap_blocks * VMFS_BITMAP_BITS;
    }
    s->region_units = round_block(region);
}

int mkfs_device(struct vsuper *s, unsigned dev, uint64_t units, uint64_t used, struct gr_err *err)
{
    struct vdevinfo *d = &s->dev[dev];
    d->units = units;
    d->first_unit = GR_MAX((uint64_t)VMFS_SUPER_B + 1, used);
    d->first_unit = (d->first_unit + VMFS_BLOCK_PIECES - 1) / VMFS_BLOCK_PIECES * VMFS_BLOCK_PIECES;
    if (d->first_unit + 1024 > units)
        return gr_fail(err, -EINVAL, "device %u of %llu bytes is too small for this datastore: at least %llu bytes", dev,
                       (unsigned long long)units * VMFS_UNIT, (unsigned long long)(d->first_unit + 1024) * VMFS_UNIT);
    d->first_region = dev ? s->dev[dev - 1].first_region + s->dev[dev - 1].regions : 0;
    d->regions = (uint32_t)((units - d->first_unit) / s->region_units);
    uint64_t rest = (units - d->first_unit) % s->region_units;
    if (rest >= VMFS_REGION_MIN || d->regions == 0)
        d->regions++;
    return 0;
}

int mkfs_member(struct vsuper *s, unsigned dev, uint64_t units, struct gr_err *err)
{
    struct placer p = { VMFS_SUPER_A + 1, VMFS_SUPER_B + 1, 0 };
    struct vtable *t = &s->dev[dev].table;
    uint32_t regions = (uint32_t)(units / s->region_units + 1);
    place_table(&p, t, regions + regions / 2 + 64, 1 + s->bitmap_blocks);
    t->addr_a = vmfs_addr(dev, vmfs_addr_unit(t->addr_a));
    t->addr_b = vmfs_addr(dev, vmfs_addr_unit(t->addr_b));
    return mkfs_device(s, dev, units, GR_MAX(p.a, p.b), err);
}

/* Superblock for these devices; ret_used[i]: units taken by tables on device i. */
static int layout(struct vsuper *s, const uint64_t *units, unsigned n, const struct vmfs_format_opts *o, uint64_t ret_journals[2],
                  struct gr_err *err)
{
    uint64_t total = 0;
    uint32_t slots, inodes, regions = 0;
    for (unsigned i = 0; i < n; i++)
        total += units[i];
    s->compat = o->preallocate ? VMFS_COMPAT_PREALLOCATED : 0;
    s->incompat = VMFS_INCOMPAT_SHARES | VMFS_INCOMPAT_ALARMS | VMFS_INCOMPAT_FILES;
    if (o->one_host)
        s->incompat |= VMFS_INCOMPAT_ONE_HOST;
    s->timing = o->timing;
    s->data_crc = o->data_crc;
    s->incompat |= o->data_crc ? VMFS_INCOMPAT_DATA_CRC : 0;
    if (n > 1 && (o->features ? o->features : vmfs_features_known()) & VMFS_INCOMPAT_MIRRORED)
        s->incompat |= VMFS_INCOMPAT_MIRRORED;
    bool mirrored = s->incompat & VMFS_INCOMPAT_MIRRORED;
    choose_sizes(s, o, total, GR_MIN(units[0], units[n > 1]), &slots, &inodes);
    for (unsigned i = 0; i < n; i++)
        regions += (uint32_t)(units[i] / s->region_units + 1);
    struct placer p = { VMFS_SUPER_A + 1, VMFS_SUPER_B + 1, n > 1 ? 1 : 0 };
    place_table(&p, &s->slots, slots, VMFS_SLOT_UNITS);
    place_table(&p, &s->regions, regions + regions / 2 + 64, 1 + s->bitmap_blocks); /* room to grow */
    place_table(&p, &s->inodes, inodes, 1);
    uint64_t journals = (uint64_t)slots * s->journal_units;
    ret_journals[0] = mirrored ? vmfs_addr(0, place_a(&p, journals)) : vmfs_addr(p.dev_b, place_b(&p, journals));
    ret_journals[1] = mirrored ? vmfs_addr(p.dev_b, place_b(&p, journals)) : 0;
    s->n_devices = n;
    int r = 0;
    for (unsigned i = 0; r == 0 && i < n; i++)
        r = mkfs_device(s, i, units[i], GR_MAX(i == 0 ? p.a : 0, i == p.dev_b ? p.b : 0), err);
    return r;
}

/* ---- writing ---- */
static int slots_write(struct vmfs *v, const uint64_t journals[2], struct gr_err *err)
{
    uint8_t *b = vunits_alloc(1);
    int r = b ? 0 : -ENOMEM;
    for (unsigned i = 0; r == 0 && i < v->sb.slots.entries; i++) {
        struct vslot s = { .block_generation = 1, .generation = 1, .tail_seq = 1, .journal_units = v->sb.journal_units };
        s.journal_addr = journals[0] + (uint64_t)i * v->sb.journal_units;
        s.journal_mirror = journals[1] ? journals[1] + (uint64_t)i * v->sb.journal_units : 0;
        vslot_encode(v, &s, i, vhome_addr(&v->sb.slots, i, 0, 0), b);
        for (int copy = 0; r == 0 && copy < 2; copy++) {
            vhdr_move(b, 1, vhome_addr(&v->sb.slots, i, 0, copy));
            r = vdev_write(v, vhome_addr(&v->sb.slots, i, 0, copy), 1, b, 0);
        }
    }
    free(b);
    return r < 0 ? gr_fail(err, r, "the slots cannot be written: %s", gr_code_text(r)) : 0;
}

int mkfs_clear(struct vmfs *v, unsigned dev, uint64_t from, uint64_t end)
{
    return from < end ? gr_write_zeroes(v->dev[dev].ch, from * VMFS_UNIT, (end - from) * VMFS_UNIT, 0) : 0;
}

void mkfs_uuid(struct vmfs *v, uint8_t ret[16])
{
    const struct gr_world *w = gr_loop_world(v->loop);
    w->random(w->arg, ret, 16);
    ret[6] = (uint8_t)((ret[6] & 0x0f) | 0x40); /* RFC 4122 version 4 */
    ret[8] = (uint8_t)((ret[8] & 0x3f) | 0x80);
}

static int preallocate(struct vmfs *v, struct gr_err *err)
{
    size_t chunk = (size_t)4 << 20;
    uint8_t *zero = vunits_alloc((uint32_t)(chunk / VMFS_UNIT));
    int r = zero ? 0 : -ENOMEM;
    for (unsigned d = 0; r == 0 && d < v->n_dev; d++)
        for (uint64_t off = v->sb.dev[d].first_unit * VMFS_UNIT, end = v->sb.dev[d].units * VMFS_UNIT; r == 0 && off < end; off += chunk)
            r = gr_pwrite(v->dev[d].ch, zero, GR_MIN((uint64_t)chunk, end - off), off, 0);
    free(zero);
    return r < 0 ? gr_fail(err, r, "the devices cannot be written out: %s", gr_code_text(r)) : 0;
}

/* On shared logical units nobody is asked: a slot that was not given back is enough. */
static int refuse_taken(struct vmfs *v, unsigned dev, struct gr_err *err)
{
    struct vmfs old = { .loop = v->loop, .n_dev = v->n_dev };
    memcpy(old.dev, v->dev, sizeof old.dev);
    if (vsuper_read(&old, dev, &old.sb, NULL) < 0 || old.sb.this_device != 0)
        return 0;
    for (unsigned i = 0; i < old.sb.slots.entries; i++) {
        struct vslot s;
        if (vslot_read(&old, i, &s, NULL) == 0 && s.state != VMFS_SLOT_FREE)
            return gr_fail(err, -GR_ELOCKED, "'%s' holds datastore '%s', whose slot %u host '%s' has not given back: leave it there, or join and leave it here, first",
                           v->dev[dev].bdev->name, old.sb.name, i, s.host_name);
    }
    return 0;
}

/* A volume whose slot is held by a living process is never formatted over, not even forced. */
static int refuse_living(struct vmfs *v, unsigned dev, const char *what, struct gr_err *err)
{
    if (v->life.fences || v->life.alone)
        return refuse_taken(v, dev, err);
    for (unsigned s = 0; s < 4096; s++) {
        struct gr_bdev *d = v->dev[0].bdev;
        int r = d->ops->trylock ? d->ops->trylock(d, s) : 0;
        if (r == -EBUSY || r == -EAGAIN)
            return gr_fail(err, -GR_ELOCKED, "'%s' holds a %s that is in use (slot %u lives): stop its host first", d->name, what, s);
        if (r == 0 && d->ops->unlock)
            d->ops->unlock(d, s);
    }
    return 0;
}

static int name_ok(const char *name, struct gr_err *err)
{
    size_t n = strlen(name);
    if (n == 0 || n > VMFS_VOLUME_NAME_MAX || name[0] == '.' || name[0] == '-')
        return gr_fail(err, -EINVAL, "datastore name '%.80s': 1 to %u characters, not beginning with '.' or '-'", name, VMFS_VOLUME_NAME_MAX);
    for (size_t i = 0; i < n; i++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", name[i]))
            return gr_fail(err, -EINVAL, "datastore name '%.80s': only letters, digits, '.', '_' and '-'", name);
    return 0;
}

static int format_devices(struct vmfs *v, const struct vmfs_format_opts *o, struct gr_err *err)
{
    uint64_t units[VMFS_DEVICES_MAX], journals[2];
    const struct gr_world *w = gr_loop_world(v->loop);
    for (unsigned i = 0; i < v->n_dev; i++) {
        struct gr_geometry g;
        char what[160];
        int r = gr_bdev_geometry(v->dev[i].bdev, &g);
        if (r < 0)
            return gr_fail(err, r, "'%s' cannot be used: %s", v->dev[i].bdev->name, gr_code_text(r));
        units[i] = g.size / VMFS_UNIT;
        if (units[i] < VMFS_MIN_UNITS || units[i] > VMFS_MAX_UNITS)
            return gr_fail(err, -EINVAL, "'%s' has %llu bytes: a device of a datastore has at least %llu (32 MiB)", v->dev[i].bdev->name,
                           (unsigned long long)g.size, (unsigned long long)VMFS_MIN_UNITS * VMFS_UNIT);
        r = vmfs_probe(v->loop, v->dev[i].bdev, what, err);
        if (r == 0 && what[0])
            r = refuse_living(v, i, what, err);
        if (r == 0 && what[0] && !o->force)
            r = gr_fail(err, -EEXIST, "'%s' already holds a %s: nothing was changed", v->dev[i].bdev->name, what);
        if (r < 0)
            return r;
    }
    int r = layout(&v->sb, units, v->n_dev, o, journals, err);
    if (r < 0)
        return r;
    mkfs_uuid(v, v->sb.uuid);
    for (unsigned i = 0; i < v->n_dev; i++) {
        mkfs_uuid(v, v->sb.dev[i].uuid);
        v->sb.dev[i].tested = o->tested ? o->tested[i] : 0;
        v->sb.dev[i].tested_s = v->sb.dev[i].tested ? (uint64_t)w->wall_s(w->arg) : 0;
    }
    v->sb.generation = 1;
    v->sb.created_s = (uint64_t)w->wall_s(w->arg);
    snprintf(v->sb.name, sizeof v->sb.name, "%s", o->name);
    for (unsigned i = 0; r == 0 && i < v->n_dev; i++)
        r = mkfs_clear(v, i, 0, v->sb.dev[i].first_unit);
    if (r < 0)
        return gr_fail(err, r, "the tables cannot be cleared: %s", gr_code_text(r));
    r = slots_write(v, journals, err);
    if (r == 0)
        r = ns_format_root(v, err);
    if (r == 0 && o->preallocate)
        r = preallocate(v, err);
    if (r == 0 && (r = vdev_flush(v)) < 0)
        gr_fail(err, r, "the device cannot be flushed: %s", gr_code_text(r));
    if (r == 0)
        r = vsuper_write_all(v, &v->sb, err);
    return r;
}

int vmfs_format(struct gr_loop *loop, struct gr_bdev *const *devices, unsigned n, const struct vmfs_format_opts *opts, struct gr_err *err)
{
    int r = name_ok(opts->name, err);
    if (r < 0)
        return r;
    if (n == 0 || n > VMFS_DEVICES_MAX)
        return gr_fail(err, -EINVAL, "a datastore has 1 to %u devices, not %u", VMFS_DEVICES_MAX, n);
    struct vmfs *v = gr_zalloc(sizeof *v);
    if (!v)
        return gr_fail(err, -ENOMEM, "out of memory");
    v->loop = loop;
    v->life.alone = opts->one_host;
    for (unsigned i = 0; r == 0 && i < n; i++) {
        r = gr_chan_open(devices[i], loop, &v->dev[i].ch);
        v->dev[i].bdev = devices[i];
        v->n_dev += r == 0;
        if (r < 0)
            gr_fail(err, r, "'%s' cannot be used: %s", devices[i]->name, gr_code_text(r));
    }
    if (r == 0)
        r = vlife_enter(v, err);
    if (r == 0)
        r = format_devices(v, opts, err);
    vlife_stop(v, true);
    for (unsigned i = 0; i < v->n_dev; i++)
        gr_chan_close(v->dev[i].ch);
    free(v);
    return r;
}
