#include "tests/lib/lies.h"
#include <stdlib.h>
#include <string.h>

static void load(const struct lies_image *m, unsigned dev, uint64_t unit, uint8_t *ret, uint32_t units)
{
    for (uint32_t i = 0; i < units; i++) {
        const uint8_t *p = gr_mem_page(m->mem[dev], (unit + i) * VMFS_UNIT, false);
        if (p)
            memcpy(ret + (size_t)i * VMFS_UNIT, p, VMFS_UNIT);
        else
            memset(ret + (size_t)i * VMFS_UNIT, 0, VMFS_UNIT);
    }
}

static uint32_t crc_of(const uint8_t *b, size_t bytes)
{
    static const uint8_t zero[4];
    size_t at = offsetof(struct vmfs_hdr_disk, crc32c);
    uint32_t c = gr_crc32c(0, b, at);
    c = gr_crc32c(c, zero, 4);
    return gr_crc32c(c, b + at + 4, bytes - at - 4);
}

static void seal(uint8_t *b, uint32_t units)
{
    ((struct vmfs_hdr_disk *)b)->crc32c = gr_le32_of(crc_of(b, (size_t)units * VMFS_UNIT));
}

static void put(const struct lies_image *m, const struct lies_block *at, const uint8_t *b)
{
    for (uint32_t i = 0; i < at->units; i++)
        memcpy(gr_mem_page(m->mem[at->dev], (at->unit + i) * VMFS_UNIT, true), b + (size_t)i * VMFS_UNIT, VMFS_UNIT);
}

uint8_t *lies_load(const struct lies_image *m, const struct lies_block *at)
{
    uint8_t *b = gr_alloc((size_t)at->units * VMFS_UNIT);
    load(m, at->dev, at->unit, b, at->units);
    return b;
}

/* All but self and checksum is the same. */
static bool same(const uint8_t *a, const uint8_t *b, uint32_t units)
{
    size_t body = sizeof(struct vmfs_hdr_disk);
    return memcmp(a, b, 24) == 0 && memcmp(a + 32, b + 32, 16) == 0 && memcmp(a + body, b + body, (size_t)units * VMFS_UNIT - body) == 0;
}

static void pair(struct lies_image *m)
{
    for (unsigned i = 0; i < m->n; i++)
        m->at[i].twin = -1;
    for (unsigned i = 0; i < m->n; i++) {
        bool home = m->at[i].type <= VMFS_T_INODE || m->at[i].type == VMFS_T_KEYS;
        uint8_t *a = home && m->at[i].twin < 0 ? lies_load(m, &m->at[i]) : NULL;
        for (unsigned k = i + 1; a && k < m->n && m->at[i].twin < 0; k++) {
            if (m->at[k].type != m->at[i].type || m->at[k].units != m->at[i].units || m->at[k].twin >= 0)
                continue;
            uint8_t *b = lies_load(m, &m->at[k]);
            if (same(a, b, m->at[i].units)) {
                m->at[i].twin = (int)k;
                m->at[k].twin = (int)i;
            }
            free(b);
        }
        free(a);
    }
}

void lies_find(struct lies_image *m)
{
    m->n = m->kinds = 0;
    for (unsigned d = 0; d < m->n_dev; d++)
        for (uint64_t u = 0; u < m->units[d] && m->n < LIES_BLOCKS; u++) {
            const struct vmfs_hdr_disk *h = gr_mem_page(m->mem[d], u * VMFS_UNIT, false);
            if (!h || gr_le32_get(h->magic) != VMFS_MAGIC)
                continue;
            uint32_t n = gr_le32_get(h->units);
            struct lies_block at = {d, u, n == 0 || n > 256 || u + n > m->units[d] ? 1 : n, gr_le16_get(h->type), -1};
            uint8_t *b = lies_load(m, &at);
            if (crc_of(b, (size_t)at.units * VMFS_UNIT) == gr_le32_get(h->crc32c)) { /* not what is left of an older one */
                m->at[m->n++] = at;
                m->kinds |= 1u << at.type;
            }
            free(b);
        }
    pair(m);
}

/* The next frame of the same journal; NULL: there is none. */
static const struct lies_block *behind(const struct lies_image *m, uint64_t generation, uint64_t seq)
{
    for (unsigned i = 0; i < m->n; i++) {
        if (m->at[i].type != VMFS_T_FRAME)
            continue;
        const struct vmfs_frame_disk *f = gr_mem_page(m->mem[m->at[i].dev], m->at[i].unit * VMFS_UNIT, false);
        if (gr_le64_get(f->hdr.generation) == generation && gr_le64_get(f->seq) == seq)
            return &m->at[i];
    }
    return NULL;
}

static void store_frame(const struct lies_image *m, const struct lies_block *at, uint8_t *b)
{
    struct vmfs_frame_disk was;
    memcpy(&was, gr_mem_page(m->mem[at->dev], at->unit * VMFS_UNIT, false), sizeof was);
    put(m, at, b);
    uint32_t crc = gr_le32_get(((struct vmfs_hdr_disk *)b)->crc32c);
    const struct lies_block *next = at;
    for (uint64_t seq = gr_le64_get(was.seq) + 1; (next = behind(m, gr_le64_get(was.hdr.generation), seq)); seq++) {
        uint8_t *f = lies_load(m, next);
        ((struct vmfs_frame_disk *)f)->previous = gr_le32_of(crc);
        seal(f, next->units);
        put(m, next, f);
        crc = gr_le32_get(((struct vmfs_hdr_disk *)f)->crc32c);
        free(f);
    }
}

void lies_store(const struct lies_image *m, const struct lies_block *at, uint8_t *b, bool twin)
{
    struct vmfs_hdr_disk *h = (struct vmfs_hdr_disk *)b;
    seal(b, at->units);
    if (at->type == VMFS_T_FRAME) {
        store_frame(m, at, b);
        return;
    }
    put(m, at, b);
    if (!twin || at->twin < 0)
        return;
    const struct lies_block *o = &m->at[at->twin];
    if (gr_le64_get(h->self) == vmfs_addr(at->dev, at->unit))
        h->self = gr_le64_of(vmfs_addr(o->dev, o->unit));
    seal(b, at->units);
    put(m, o, b);
}

/* ---- fields ---- */
#define F(s, f) {#f, (uint32_t)offsetof(struct s, f), sizeof(((struct s *)0)->f)}
#define AT(name, off, type) {name, (uint32_t)(off), sizeof(type)}
#define HDR F(vmfs_hdr_disk, magic), F(vmfs_hdr_disk, type), F(vmfs_hdr_disk, version), AT("volume", 8, gr_le64), F(vmfs_hdr_disk, self), \
            F(vmfs_hdr_disk, generation), F(vmfs_hdr_disk, units), F(vmfs_hdr_disk, slot), F(vmfs_hdr_disk, reserved)
#define LOCK(s) F(s, lock.holder), F(s, lock.flags), F(s, lock.generation), F(s, lock.token), F(s, lock.nonce)
#define TABLE(s, t) F(s, t.addr_a), F(s, t.addr_b), F(s, t.entries), F(s, t.stride)
#define MEMBER(i) TABLE(vmfs_super_disk, members[i].regions), F(vmfs_super_disk, members[i].state), F(vmfs_super_disk, members[i].mover),         \
                  F(vmfs_super_disk, members[i].moved_addr), F(vmfs_super_disk, members[i].moved_bytes), F(vmfs_super_disk, members[i].moved_units), \
                  F(vmfs_super_disk, members[i].tested), F(vmfs_super_disk, members[i].stale), F(vmfs_super_disk, members[i].tested_s)
#define DEVICE(i) AT("devices[" #i "].uuid", offsetof(struct vmfs_super_disk, devices[i].uuid), gr_le64), F(vmfs_super_disk, devices[i].units),      \
                  F(vmfs_super_disk, devices[i].first_unit), F(vmfs_super_disk, devices[i].first_region), F(vmfs_super_disk, devices[i].regions),    \
                  F(vmfs_super_disk, devices[i].flags)
static const struct lies_field of_super[] = {
    HDR, F(vmfs_super_disk, compat), F(vmfs_super_disk, ro_compat), F(vmfs_super_disk, incompat), F(vmfs_super_disk, created_s), AT("name", 128, gr_le64),
    F(vmfs_super_disk, n_devices), F(vmfs_super_disk, this_device), F(vmfs_super_disk, region_units), F(vmfs_super_disk, bitmap_blocks),
    F(vmfs_super_disk, journal_units), F(vmfs_super_disk, timing), TABLE(vmfs_super_disk, slots), TABLE(vmfs_super_disk, regions), TABLE(vmfs_super_disk, inodes),
    F(vmfs_super_disk, data_crc), F(vmfs_super_disk, key_id), F(vmfs_super_disk, quota), F(vmfs_super_disk, scrub.started_s), F(vmfs_super_disk, scrub.ended_s),
    F(vmfs_super_disk, scrub.object), F(vmfs_super_disk, scrub.snapshot), F(vmfs_super_disk, scrub.piece), F(vmfs_super_disk, scrub.bytes),
    MEMBER(0), MEMBER(2), MEMBER(31), DEVICE(0), DEVICE(1), DEVICE(2), DEVICE(3)};
static const struct lies_field of_slot[] = {
    HDR, F(vmfs_slot_disk, state), F(vmfs_slot_disk, n_pins), F(vmfs_slot_disk, generation), F(vmfs_slot_disk, nonce), AT("host_uuid", offsetof(struct vmfs_slot_disk, host_uuid), gr_le64),
    AT("host_name", offsetof(struct vmfs_slot_disk, host_name), gr_le64), AT("host_name's end", offsetof(struct vmfs_slot_disk, host_name) + 56, gr_le64),
    AT("portal's end", offsetof(struct vmfs_slot_disk, portal) + 120, gr_le64), AT("address's end", offsetof(struct vmfs_slot_disk, address) + 1016, gr_le64),
    F(vmfs_slot_disk, journal_addr), F(vmfs_slot_disk, journal_units), F(vmfs_slot_disk, reserved), F(vmfs_slot_disk, tail_seq), F(vmfs_slot_disk, tail_off),
    F(vmfs_slot_disk, version), F(vmfs_slot_disk, pins[0].object), F(vmfs_slot_disk, pins[0].snapshot), F(vmfs_slot_disk, features),
    F(vmfs_slot_disk, lost_devices), F(vmfs_slot_disk, n_lost), F(vmfs_slot_disk, lost_seq), F(vmfs_slot_disk, lost_objects[0]), F(vmfs_slot_disk, journal_mirror)};
static const struct lies_field of_aux[] = {HDR, F(vmfs_aux_disk, n_runs), F(vmfs_aux_disk, reserved), F(vmfs_aux_disk, blob_addr), F(vmfs_aux_disk, blob_bytes),
                                           F(vmfs_aux_disk, blob_units), F(vmfs_aux_disk, runs[0].addr), F(vmfs_aux_disk, runs[0].units),
                                           F(vmfs_aux_disk, runs[1].addr), F(vmfs_aux_disk, runs[1].units), F(vmfs_aux_disk, runs[239].addr)};
static const struct lies_field of_region[] = {HDR, LOCK(vmfs_region_disk), F(vmfs_region_disk, units), F(vmfs_region_disk, free_units), F(vmfs_region_disk, shares_addr),
                                              F(vmfs_region_disk, shares_bytes), F(vmfs_region_disk, shares_units)};
static const struct lies_field of_bitmap[] = {HDR, AT("bits[0]", 64, gr_le64), AT("bits[8]", 72, gr_le64), AT("bits[64]", 128, gr_le64), AT("bits[1024]", 1088, gr_le64),
                                              AT("the last bits", 4088, gr_le64)};
static const struct lies_field of_inode[] = {HDR, LOCK(vmfs_inode_disk), F(vmfs_inode_disk, id), F(vmfs_inode_disk, type), F(vmfs_inode_disk, provision),
                                             F(vmfs_inode_disk, n_snapshots), AT("uuid", offsetof(struct vmfs_inode_disk, uuid), gr_le64), F(vmfs_inode_disk, size),
                                             F(vmfs_inode_disk, used_units), F(vmfs_inode_disk, mtime_s), F(vmfs_inode_disk, blob_addr), F(vmfs_inode_disk, blob_bytes),
                                             F(vmfs_inode_disk, blob_units), F(vmfs_inode_disk, key_id), F(vmfs_inode_disk, quota)};
static const struct lies_field of_node[] = {HDR, F(vmfs_node_disk, level), F(vmfs_node_disk, reserved)};
static const struct lies_field of_any[] = {HDR};
static const struct lies_field of_frame[] = {HDR, F(vmfs_frame_disk, seq), F(vmfs_frame_disk, watermark), F(vmfs_frame_disk, kind), F(vmfs_frame_disk, n_records),
                                             F(vmfs_frame_disk, payload), F(vmfs_frame_disk, previous), F(vmfs_frame_disk, covers), F(vmfs_frame_disk, part),
                                             F(vmfs_frame_disk, parts)};
static const struct lies_field of_keys[] = {HDR, F(vmfs_keys_disk, n), F(vmfs_keys_disk, erased), F(vmfs_keys_disk, key[0].from), F(vmfs_keys_disk, key[0].kek),
                                            AT("key[0].nonce", offsetof(struct vmfs_keys_disk, key[0].nonce), gr_le64), AT("key[0].tag", offsetof(struct vmfs_keys_disk, key[0].tag), gr_le64),
                                            AT("key[0].wrapped", offsetof(struct vmfs_keys_disk, key[0].wrapped), gr_le64), F(vmfs_keys_disk, key[1].from)};
static const struct lies_field of_alarm[] = {HDR, F(vmfs_alarm_disk, asked), F(vmfs_alarm_disk, answered)};
static const struct {
    const struct lies_field *f;
    unsigned n;
    uint32_t words_from; /* 0: nothing variable; else what is read by words of four bytes, and by pairs of them */
} types[] = {
#define T(type, f, from) [type] = {f, GR_ARRAY_LEN(f), from}
    T(VMFS_T_SUPER, of_super, 0), T(VMFS_T_SLOT, of_slot, 0), T(VMFS_T_AUX, of_aux, 0), T(VMFS_T_REGION, of_region, 0), T(VMFS_T_BITMAP, of_bitmap, 0),
    T(VMFS_T_INODE, of_inode, offsetof(struct vmfs_inode_disk, blob)), T(VMFS_T_NODE, of_node, offsetof(struct vmfs_node_disk, child)),
    T(VMFS_T_LEAF, of_any, sizeof(struct vmfs_hdr_disk)), T(VMFS_T_BLOB, of_any, sizeof(struct vmfs_hdr_disk)),
    T(VMFS_T_FRAME, of_frame, sizeof(struct vmfs_frame_disk)), T(VMFS_T_ALARM, of_alarm, 0), T(VMFS_T_KEYS, of_keys, 0)};

bool lies_field(const struct lies_block *at, const uint8_t *b, unsigned i, struct lies_field *ret)
{
    if (at->type >= GR_ARRAY_LEN(types) || !types[at->type].n)
        return false;
    if (i < types[at->type].n) {
        *ret = types[at->type].f[i];
        return true;
    }
    i -= types[at->type].n;
    uint32_t from = types[at->type].words_from, end = at->units * VMFS_UNIT;
    while (from && end > from && b[end - 1] == 0)
        end--;
    end = GR_MIN(end + 8, at->units * VMFS_UNIT);
    static const uint32_t sizes[] = {4, 8, 2, 1}; /* at each word: itself, with the next one, its halves' first, a byte */
    uint32_t off = from + i / 4 * 4;
    if (!from || off + 8 > end)
        return false;
    *ret = (struct lies_field){NULL, off, sizes[i % 4]};
    return true;
}
