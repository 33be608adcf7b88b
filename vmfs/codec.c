/* Home blocks to and from memory: the only place that looks inside *_disk structures of superblock, slot and inode. */
#include "vmfs/internal.h"

static uint32_t block_crc(const void *block, uint32_t units)
{
    static const uint8_t zero[4];
    const uint8_t *b = block;
    size_t at = offsetof(struct vmfs_hdr_disk, crc32c);
    uint32_t c = gr_crc32c(0, b, at);
    c = gr_crc32c(c, zero, 4);
    return gr_crc32c(c, b + at + 4, (size_t)units * VMFS_UNIT - at - 4);
}

static void seal(const uint8_t volume[16], void *block, unsigned type, uint32_t units, uint64_t self, uint64_t generation, unsigned slot)
{
    struct vmfs_hdr_disk *h = block;
    uint64_t reserved = gr_le64_get(h->reserved);
    memset(h, 0, sizeof *h);
    h->magic = gr_le32_of(VMFS_MAGIC);
    h->type = gr_le16_of((uint16_t)type);
    h->version = gr_le16_of(VMFS_VERSION);
    memcpy(h->volume, volume, 16);
    h->self = gr_le64_of(self);
    h->generation = gr_le64_of(generation);
    h->units = gr_le32_of(units);
    h->slot = gr_le32_of(slot);
    h->reserved = gr_le64_of(reserved);
    h->crc32c = gr_le32_of(block_crc(block, units));
}

void vhdr_seal(const struct vmfs *v, void *block, unsigned type, uint32_t units, uint64_t self, uint64_t generation, unsigned slot)
{
    seal(v->sb.uuid, block, type, units, self, generation, slot);
}

void vhdr_move(void *block, uint32_t units, uint64_t self)
{
    struct vmfs_hdr_disk *h = block;
    h->self = gr_le64_of(self);
    h->crc32c = gr_le32_of(block_crc(block, units));
}

int vhdr_check(const uint8_t volume[16], const void *block, unsigned type, uint32_t units, uint64_t self, struct gr_err *err)
{
    const struct vmfs_hdr_disk *h = block;
    unsigned long long u = vmfs_addr_unit(self);
    unsigned d = vmfs_addr_dev(self);
    if (gr_le32_get(h->magic) != VMFS_MAGIC)
        return gr_fail(err, -GR_ECORRUPT, "device %u unit %llu: rule 1: no metadata block here", d, u);
    if (gr_le16_get(h->type) != type)
        return gr_fail(err, -GR_ECORRUPT, "device %u unit %llu: rule 1: block of type %u where %u belongs", d, u, gr_le16_get(h->type), type);
    if (gr_le32_get(h->units) != units)
        return gr_fail(err, -GR_ECORRUPT, "device %u unit %llu: rule 6: %u units where the pointer says %u", d, u, gr_le32_get(h->units), units);
    if (gr_le32_get(h->crc32c) != block_crc(block, units))
        return gr_fail(err, -GR_ECORRUPT, "device %u unit %llu: rule 5: checksum is wrong", d, u);
    if (gr_le16_get(h->version) > VMFS_VERSION)
        return gr_fail(err, -GR_EVERSION, "device %u unit %llu: rule 2: version %u is newer than this build's %u", d, u,
                       gr_le16_get(h->version), VMFS_VERSION);
    if (volume && memcmp(h->volume, volume, 16) != 0)
        return gr_fail(err, -GR_ECORRUPT, "device %u unit %llu: rule 3: block of another volume", d, u);
    if (gr_le64_get(h->self) != self)
        return gr_fail(err, -GR_ECORRUPT, "device %u unit %llu: rule 4: block belongs at device %u unit %llu", d, u,
                       vmfs_addr_dev(gr_le64_get(h->self)), (unsigned long long)vmfs_addr_unit(gr_le64_get(h->self)));
    return 0;
}

static void table_get(const struct vmfs_table_disk *d, struct vtable *t)
{
    t->addr_a = gr_le64_get(d->addr_a);
    t->addr_b = gr_le64_get(d->addr_b);
    t->entries = gr_le32_get(d->entries);
    t->stride = gr_le32_get(d->stride);
}
static void table_put(const struct vtable *t, struct vmfs_table_disk *d)
{
    d->addr_a = gr_le64_of(t->addr_a);
    d->addr_b = gr_le64_of(t->addr_b);
    d->entries = gr_le32_of(t->entries);
    d->stride = gr_le32_of(t->stride);
}

static int table_ok(const struct vsuper *s, const struct vtable *t, uint32_t stride, const char *what, struct gr_err *err)
{
    for (int copy = 0; copy < 2; copy++) {
        uint64_t a = copy ? t->addr_b : t->addr_a;
        uint64_t len = (uint64_t)t->entries * t->stride;
        if (t->entries == 0 || t->stride != stride || vmfs_addr_dev(a) >= s->n_devices || vmfs_addr_unit(a) < 2 ||
            vmfs_addr_unit(a) > s->dev[vmfs_addr_dev(a)].units || len > s->dev[vmfs_addr_dev(a)].units - vmfs_addr_unit(a))
            return gr_fail(err, -GR_ECORRUPT, "superblock: rule 7: %s table lies outside the device", what);
    }
    return 0;
}

/* Rule 7 for the region table that a device brought with it. */
static int own_table_ok(const struct vsuper *s, unsigned dev, struct gr_err *err)
{
    const struct vdevinfo *d = &s->dev[dev];
    if (!d->table.entries)
        return 0;
    if (vmfs_addr_dev(d->table.addr_a) != dev || vmfs_addr_dev(d->table.addr_b) != dev || d->regions > d->table.entries)
        return gr_fail(err, -GR_ECORRUPT, "superblock: rule 7: table of %u regions of device %u", d->table.entries, dev);
    return table_ok(s, &d->table, 1 + s->bitmap_blocks, "region", err);
}

static int super_ranges_ok(const struct vsuper *s, struct gr_err *err)
{
    uint64_t regions = 0, common = 0;
    int r = 0;
    if (s->n_devices < 1 || s->n_devices > VMFS_DEVICES_MAX || s->this_device >= s->n_devices)
        return gr_fail(err, -GR_ECORRUPT, "superblock: rule 7: device %u of %u", s->this_device, s->n_devices);
    if (s->region_units < 256 || s->bitmap_blocks < 1 || s->bitmap_blocks > 1u << 16 ||
        s->region_units > (uint64_t)s->bitmap_blocks * VMFS_BITMAP_BITS || s->region_units % VMFS_BLOCK_PIECES)
        return gr_fail(err, -GR_ECORRUPT, "superblock: rule 7: regions of %u units with %u bitmap blocks", s->region_units, s->bitmap_blocks);
    if (s->journal_units < 64 || s->journal_units > 1u << 20)
        return gr_fail(err, -GR_ECORRUPT, "superblock: rule 7: journals of %u units", s->journal_units);
    for (unsigned i = 0; i < s->n_devices; i++) {
        const struct vdevinfo *d = &s->dev[i];
        if (d->units < 1024 || d->units > VMFS_MAX_UNITS || d->first_region != regions || d->first_unit > d->units)
            return gr_fail(err, -GR_ECORRUPT, "superblock: rule 7: device %u of %llu units", i, (unsigned long long)d->units);
        if ((d->units - d->first_unit + s->region_units - 1) / s->region_units < d->regions)
            return gr_fail(err, -GR_ECORRUPT, "superblock: rule 7: %u regions do not fit on device %u", d->regions, i);
        regions += d->regions;
        common = d->table.entries ? common : regions; /* their indexes in the common table are those in the volume */
        if ((r = own_table_ok(s, i, err)) < 0)
            return r;
        if (d->state > VMFS_DEVICE_GONE || (i == 0 && d->state) || d->moved_units > VMFS_BLOB_UNITS_MAX || d->mover > s->slots.entries ||
            (d->moved_addr && (d->state == VMFS_DEVICE_IN_USE || !d->moved_bytes || d->moved_bytes % sizeof(struct vmfs_moved_disk) ||
                               d->moved_bytes > (uint64_t)d->moved_units * VMFS_UNIT - sizeof(struct vmfs_hdr_disk))))
            return gr_fail(err, -GR_ECORRUPT, "superblock: rule 7: device %u in state %u", i, d->state);
    }
    if (regions == 0 || regions > UINT32_MAX || common > s->regions.entries)
        return gr_fail(err, -GR_ECORRUPT, "superblock: rule 7: %llu regions in a table of %u", (unsigned long long)regions, s->regions.entries);
    if (s->timing > VMFS_TIMING_FAST)
        return gr_fail(err, -GR_ECORRUPT, "superblock: rule 7: timing %u", s->timing);
    if (s->slots.entries > VMFS_SLOTS_MAX || s->inodes.entries < 16)
        return gr_fail(err, -GR_ECORRUPT, "superblock: rule 7: %u slots, %u inodes", s->slots.entries, s->inodes.entries);
    r = table_ok(s, &s->slots, s->incompat & VMFS_INCOMPAT_ALARMS ? VMFS_SLOT_UNITS : 2, "slot", err);
    if (r == 0)
        r = table_ok(s, &s->regions, 1 + s->bitmap_blocks, "region", err);
    if (r == 0)
        r = table_ok(s, &s->inodes, 1, "inode", err);
    return r;
}

static void member_get(const struct vmfs_member_disk *d, struct vdevinfo *i)
{
    table_get(&d->regions, &i->table);
    i->state = gr_le32_get(d->state);
    i->mover = gr_le32_get(d->mover);
    i->moved_addr = gr_le64_get(d->moved_addr);
    i->moved_bytes = gr_le32_get(d->moved_bytes);
    i->moved_units = gr_le32_get(d->moved_units);
}
static void member_put(const struct vdevinfo *i, struct vmfs_member_disk *d)
{
    table_put(&i->table, &d->regions);
    d->state = gr_le32_of(i->state);
    d->mover = gr_le32_of(i->mover);
    d->moved_addr = gr_le64_of(i->moved_addr);
    d->moved_bytes = gr_le32_of(i->moved_bytes);
    d->moved_units = gr_le32_of(i->moved_units);
    d->tested = gr_le32_of(i->tested);
    d->tested_s = gr_le64_of(i->tested_s);
    d->stale = gr_le32_of(i->emptied ? 3 : i->stale);
}

static void scrub_get(const struct vmfs_scrub_disk *d, struct vscrub *s)
{
    *s = (struct vscrub){ gr_le64_get(d->started_s), gr_le64_get(d->ended_s), gr_le64_get(d->object),     gr_le64_get(d->snapshot),
                          gr_le64_get(d->piece),     gr_le64_get(d->bytes),   gr_le64_get(d->bad_pieces), gr_le64_get(d->errors) };
}
static void scrub_put(const struct vscrub *s, struct vmfs_scrub_disk *d)
{
    *d = (struct vmfs_scrub_disk){ gr_le64_of(s->started_s), gr_le64_of(s->ended_s), gr_le64_of(s->object),     gr_le64_of(s->snapshot),
                                   gr_le64_of(s->piece),     gr_le64_of(s->bytes),   gr_le64_of(s->bad_pieces), gr_le64_of(s->errors) };
}

int vsuper_decode(const void *block, struct vsuper *ret, struct gr_err *err)
{
    const struct vmfs_super_disk *d = block;
    struct vsuper s = { .generation = gr_le64_get(d->hdr.generation) };
    memcpy(s.uuid, d->hdr.volume, 16);
    s.version = gr_le16_get(d->hdr.version);
    s.compat = gr_le64_get(d->compat);
    s.ro_compat = gr_le64_get(d->ro_compat);
    s.incompat = gr_le64_get(d->incompat);
    s.created_s = gr_le64_get(d->created_s);
    memcpy(s.name, d->name, sizeof s.name);
    if (memchr(s.name, 0, sizeof s.name) == NULL || !gr_utf8_ok(s.name, strlen(s.name)) || s.name[0] == 0)
        return gr_fail(err, -GR_ECORRUPT, "superblock: rule 7: the volume's name is not text");
    if (s.incompat & ~vmfs_features_known())
        return gr_fail(err, -GR_EVERSION, "datastore '%s' uses features 0x%llx that this build does not know: use a newer Granary", s.name,
                       (unsigned long long)(s.incompat & ~vmfs_features_known()));
    s.n_devices = gr_le32_get(d->n_devices);
    s.this_device = gr_le32_get(d->this_device);
    s.region_units = gr_le32_get(d->region_units);
    s.bitmap_blocks = gr_le32_get(d->bitmap_blocks);
    s.journal_units = gr_le32_get(d->journal_units);
    s.timing = gr_le32_get(d->timing);
    s.data_crc = gr_le64_get(d->data_crc);
    if (s.data_crc != (s.incompat & VMFS_INCOMPAT_DATA_CRC ? 1 : 0))
        return gr_fail(err, -GR_ECORRUPT, "superblock: rule 7: data CRCs of kind %llu", (unsigned long long)s.data_crc);
    table_get(&d->slots, &s.slots);
    table_get(&d->regions, &s.regions);
    table_get(&d->inodes, &s.inodes);
    scrub_get(&d->scrub, &s.scrub);
    for (unsigned i = 0; i < VMFS_DEVICES_MAX; i++) {
        memcpy(s.dev[i].uuid, d->devices[i].uuid, 16);
        s.dev[i].units = gr_le64_get(d->devices[i].units);
        s.dev[i].first_unit = gr_le64_get(d->devices[i].first_unit);
        s.dev[i].first_region = gr_le32_get(d->devices[i].first_region);
        s.dev[i].regions = gr_le32_get(d->devices[i].regions);
        s.dev[i].tested = gr_le32_get(d->members[i].tested);
        s.dev[i].tested_s = gr_le64_get(d->members[i].tested_s);
        if (s.incompat & (VMFS_INCOMPAT_MEMBERS | VMFS_INCOMPAT_MOVED))
            member_get(&d->members[i], &s.dev[i]);
        uint32_t stale = s.incompat & VMFS_INCOMPAT_STALE ? gr_le32_get(d->members[i].stale) : 0;
        bool emptied = stale == 3 && s.incompat & VMFS_INCOMPAT_REPLACED;
        if ((stale > 1 || (stale && i == 0)) && !emptied)
            return gr_fail(err, -GR_ECORRUPT, "superblock: rule 7: tables of device %u in state %u", i, stale);
        s.dev[i].stale = stale;
        s.dev[i].emptied = emptied;
    }
    int r = super_ranges_ok(&s, err);
    if (r < 0)
        return r;
    *ret = s;
    return 0;
}

void vsuper_encode(const struct vsuper *s, uint64_t self, void *block)
{
    struct vmfs_super_disk *d = block;
    memset(d, 0, sizeof *d);
    d->compat = gr_le64_of(s->compat);
    d->ro_compat = gr_le64_of(s->ro_compat);
    d->incompat = gr_le64_of(s->incompat);
    d->created_s = gr_le64_of(s->created_s);
    memcpy(d->name, s->name, sizeof d->name);
    d->n_devices = gr_le32_of(s->n_devices);
    d->this_device = gr_le32_of(s->this_device);
    d->region_units = gr_le32_of(s->region_units);
    d->bitmap_blocks = gr_le32_of(s->bitmap_blocks);
    d->journal_units = gr_le32_of(s->journal_units);
    d->timing = gr_le32_of(s->timing);
    d->data_crc = gr_le64_of(s->data_crc);
    table_put(&s->slots, &d->slots);
    table_put(&s->regions, &d->regions);
    table_put(&s->inodes, &d->inodes);
    scrub_put(&s->scrub, &d->scrub);
    for (unsigned i = 0; i < s->n_devices; i++) {
        memcpy(d->devices[i].uuid, s->dev[i].uuid, 16);
        d->devices[i].units = gr_le64_of(s->dev[i].units);
        d->devices[i].first_unit = gr_le64_of(s->dev[i].first_unit);
        d->devices[i].first_region = gr_le32_of(s->dev[i].first_region);
        d->devices[i].regions = gr_le32_of(s->dev[i].regions);
        member_put(&s->dev[i], &d->members[i]);
    }
    seal(s->uuid, block, VMFS_T_SUPER, 1, self, s->generation, 0);
}

static void text_get(char *dst, const char *src, size_t size)
{
    memcpy(dst, src, size);
    dst[size - 1] = 0;
}

/* Rule 7 for an area of a journal: below the regions of its device. */
static bool journal_ok(const struct vsuper *sb, uint64_t addr, uint32_t units)
{
    unsigned d = vmfs_addr_dev(addr);
    uint64_t u = vmfs_addr_unit(addr);
    return d < sb->n_devices && u >= 2 && units <= sb->dev[d].first_unit && u <= sb->dev[d].first_unit - units;
}

int vslot_decode(const struct vsuper *sb, const void *block, uint64_t self, struct vslot *ret, struct gr_err *err)
{
    const struct vmfs_slot_disk *d = block;
    struct vslot s = { 0 };
    int r = vhdr_check(sb->uuid, block, VMFS_T_SLOT, 1, self, err);
    if (r < 0)
        return r;
    s.block_generation = gr_le64_get(d->hdr.generation);
    s.state = gr_le32_get(d->state);
    s.n_pins = gr_le32_get(d->n_pins);
    s.generation = gr_le64_get(d->generation);
    s.nonce = gr_le64_get(d->nonce);
    memcpy(s.host_uuid, d->host_uuid, 16);
    text_get(s.host_name, d->host_name, sizeof s.host_name);
    text_get(s.portal, d->portal, sizeof s.portal);
    text_get(s.address, d->address, sizeof s.address);
    s.journal_addr = gr_le64_get(d->journal_addr);
    s.journal_mirror = sb->incompat & VMFS_INCOMPAT_MIRRORED ? gr_le64_get(d->journal_mirror) : 0;
    s.journal_units = gr_le32_get(d->journal_units);
    s.tail_seq = gr_le64_get(d->tail_seq);
    s.tail_off = gr_le64_get(d->tail_off);
    s.version = gr_le64_get(d->version);
    memcpy(s.link_key, d->link_key, sizeof s.link_key);
    s.features = gr_le64_get(d->features);
    s.lost = (struct vlost){ .devices = gr_le32_get(d->lost_devices), .n = gr_le32_get(d->n_lost), .seq = gr_le64_get(d->lost_seq) };
    if (s.state > VMFS_SLOT_REPLAYING || s.n_pins > VMFS_PINS_MAX || s.lost.n > VMFS_LOST_MAX || s.journal_units < 64 || s.tail_off >= s.journal_units)
        return gr_fail(err, -GR_ECORRUPT, "slot block at unit %llu: rule 7", (unsigned long long)vmfs_addr_unit(self));
    if (!journal_ok(sb, s.journal_addr, s.journal_units))
        return gr_fail(err, -GR_ECORRUPT, "slot block at unit %llu: rule 7: its journal lies at device %u unit %llu", (unsigned long long)vmfs_addr_unit(self),
                       vmfs_addr_dev(s.journal_addr), (unsigned long long)vmfs_addr_unit(s.journal_addr));
    if (s.journal_mirror && (!journal_ok(sb, s.journal_mirror, s.journal_units) || vmfs_addr_dev(s.journal_mirror) == vmfs_addr_dev(s.journal_addr)))
        return gr_fail(err, -GR_ECORRUPT, "slot block at unit %llu: rule 7: the mirror of its journal lies at device %u unit %llu", (unsigned long long)vmfs_addr_unit(self),
                       vmfs_addr_dev(s.journal_mirror), (unsigned long long)vmfs_addr_unit(s.journal_mirror));
    for (unsigned i = 0; i < s.n_pins; i++) {
        s.pins[i].object = gr_le64_get(d->pins[i].object);
        s.pins[i].snapshot = gr_le64_get(d->pins[i].snapshot);
    }
    for (unsigned i = 0; i < s.lost.n; i++)
        s.lost.objects[i] = gr_le64_get(d->lost_objects[i]);
    *ret = s;
    return 0;
}

void vslot_encode(const struct vmfs *v, const struct vslot *s, unsigned index, uint64_t self, void *block)
{
    struct vmfs_slot_disk *d = block;
    memset(d, 0, sizeof *d);
    d->state = gr_le32_of(s->state);
    d->n_pins = gr_le32_of(s->n_pins);
    d->generation = gr_le64_of(s->generation);
    d->nonce = gr_le64_of(s->nonce);
    memcpy(d->host_uuid, s->host_uuid, 16);
    memcpy(d->host_name, s->host_name, sizeof d->host_name);
    memcpy(d->portal, s->portal, sizeof d->portal);
    memcpy(d->address, s->address, sizeof d->address);
    memcpy(d->link_key, s->link_key, sizeof d->link_key);
    d->features = gr_le64_of(s->features);
    d->journal_addr = gr_le64_of(s->journal_addr);
    d->journal_mirror = gr_le64_of(s->journal_mirror);
    d->journal_units = gr_le32_of(s->journal_units);
    d->tail_seq = gr_le64_of(s->tail_seq);
    d->tail_off = gr_le64_of(s->tail_off);
    d->version = gr_le64_of(s->version);
    for (unsigned i = 0; i < s->n_pins; i++) {
        d->pins[i].object = gr_le64_of(s->pins[i].object);
        d->pins[i].snapshot = gr_le64_of(s->pins[i].snapshot);
    }
    d->lost_devices = gr_le32_of(s->lost.devices);
    d->n_lost = gr_le32_of(s->lost.n);
    d->lost_seq = gr_le64_of(s->lost.seq);
    for (unsigned i = 0; i < s->lost.n; i++)
        d->lost_objects[i] = gr_le64_of(s->lost.objects[i]);
    vhdr_seal(v, block, VMFS_T_SLOT, 1, self, s->block_generation, index);
}

void vlock_get(const struct vmfs_lock_disk *d, struct vlock *ret)
{
    ret->holder = gr_le32_get(d->holder);
    ret->generation = gr_le64_get(d->generation);
    ret->token = gr_le64_get(d->token);
    ret->nonce = gr_le64_get(d->nonce);
}
void vlock_put(const struct vlock *l, struct vmfs_lock_disk *d)
{
    d->holder = gr_le32_of(l->holder);
    d->flags = gr_le32_of(0);
    d->generation = gr_le64_of(l->generation);
    d->token = gr_le64_of(l->token);
    d->nonce = gr_le64_of(l->nonce);
}

int vinode_decode(const struct vsuper *sb, const void *block, uint64_t self, struct vinode *ret, struct gr_err *err)
{
    const struct vmfs_inode_disk *d = block;
    int r = vhdr_check(sb->uuid, block, VMFS_T_INODE, 1, self, err);
    if (r < 0)
        return r;
    struct vinode i;
    memset(&i, 0, sizeof i);
    i.block_generation = gr_le64_get(d->hdr.generation);
    vlock_get(&d->lock, &i.lock);
    i.id = gr_le64_get(d->id);
    i.type = gr_le16_get(d->type);
    i.provision = gr_le16_get(d->provision);
    i.n_snapshots = gr_le32_get(d->n_snapshots);
    memcpy(i.uuid, d->uuid, 16);
    i.size = gr_le64_get(d->size);
    i.used_units = gr_le64_get(d->used_units);
    i.quota = gr_le64_get(d->quota);
    i.mtime_s = (int64_t)gr_le64_get(d->mtime_s);
    i.blob_addr = gr_le64_get(d->blob_addr);
    i.blob_bytes = gr_le32_get(d->blob_bytes);
    i.blob_units = gr_le32_get(d->blob_units);
    i.key_id = gr_le64_get(d->key_id);
    memcpy(i.inline_blob, d->blob, sizeof i.inline_blob);
    if (i.type > VMFS_DISK || i.provision > VMFS_EAGER || i.size > VMFS_DISK_MAX || i.lock.holder > sb->slots.entries)
        return gr_fail(err, -GR_ECORRUPT, "inode %u: rule 7: type %u, size %llu", (uint32_t)i.id, i.type, (unsigned long long)i.size);
    if (i.blob_addr ? (i.blob_units == 0 || i.blob_bytes > (uint64_t)i.blob_units * VMFS_UNIT - sizeof(struct vmfs_hdr_disk) ||
                       vmfs_addr_dev(i.blob_addr) >= sb->n_devices)
                    : i.blob_bytes > VMFS_INODE_BLOB_MAX)
        return gr_fail(err, -GR_ECORRUPT, "inode %u: rule 7: blob of %u bytes", (uint32_t)i.id, i.blob_bytes);
    *ret = i;
    return 0;
}

void vinode_encode(const struct vmfs *v, const struct vinode *i, uint64_t self, void *block)
{
    struct vmfs_inode_disk *d = block;
    memset(d, 0, sizeof *d);
    vlock_put(&i->lock, &d->lock);
    d->id = gr_le64_of(i->id);
    d->type = gr_le16_of(i->type);
    d->provision = gr_le16_of(i->provision);
    d->n_snapshots = gr_le32_of(i->n_snapshots);
    memcpy(d->uuid, i->uuid, 16);
    d->size = gr_le64_of(i->size);
    d->used_units = gr_le64_of(i->used_units);
    d->quota = gr_le64_of(i->quota);
    d->mtime_s = gr_le64_of((uint64_t)i->mtime_s);
    d->blob_addr = gr_le64_of(i->blob_addr);
    d->blob_bytes = gr_le32_of(i->blob_bytes);
    d->blob_units = gr_le32_of(i->blob_units);
    d->key_id = gr_le64_of(i->key_id);
    memcpy(d->blob, i->inline_blob, sizeof d->blob);
    vhdr_seal(v, block, VMFS_T_INODE, 1, self, i->block_generation, v->slot);
}
