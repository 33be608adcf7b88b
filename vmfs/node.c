/* Map nodes to and from disk. */
#include "common/seam.h"
#include "vmfs/internal.h"
#include <assert.h>

/* A RUN is a split whose owned pieces lie one behind the other, as the pieces of one run. */
static bool is_run(const struct mentry *e, uint64_t *ret_addr)
{
    uint64_t base = 0;
    for (unsigned i = 0; i < VMFS_BLOCK_PIECES; i++) {
        if (!(e->written >> i & 1) && !(e->zero >> i & 1))
            continue;
        uint64_t b = e->px->addr[i] - i;
        if (base && b != base)
            return false;
        base = b;
    }
    *ret_addr = base;
    return true;
}

static unsigned data_mask(const struct mentry *e)
{
    return e->written & ~(unsigned)e->zero;
}

static unsigned tag_of(const struct mentry *e)
{
    unsigned crc = e->crc && data_mask(e) ? VMFS_LEAF_CRC : 0;
    if (e->px)
        return (e->run == MRUN_YES ? VMFS_LEAF_RUN : VMFS_LEAF_SPLIT) | crc;
    return e->addr ? VMFS_LEAF_EXTENT | crc : VMFS_LEAF_EMPTY;
}

static size_t tag_bytes(unsigned tag)
{
    static const uint16_t bytes[] = { 0, VMFS_EXTENT_BYTES, VMFS_RUN_BYTES, VMFS_SPLIT_BYTES };
    return bytes[tag & ~VMFS_LEAF_CRC] + (tag & VMFS_LEAF_CRC ? VMFS_CRC_BYTES : 0);
}

/* What hangs on a leaf's entries lies here and there: fetched while the entries before are looked at, it is there in time. */
static void look_ahead(const struct mnode *n, unsigned i)
{
    const struct mpieces *px = i < VMFS_FANOUT ? n->ent[i].px : NULL;
    for (size_t at = 0; px && at < sizeof *px; at += 64)
        __builtin_prefetch((const uint8_t *)px + at);
}

uint32_t mnode_units(struct mnode *n)
{
    size_t bytes = sizeof(struct vmfs_hdr_disk) + VMFS_FANOUT;
    uint64_t a;
    if (n->level)
        return 1;
    for (unsigned i = 0; i < VMFS_FANOUT; i++) {
        struct mentry *e = &n->ent[i];
        if (e->px && e->run == MRUN_UNKNOWN)
            e->run = is_run(e, &a) ? MRUN_YES : MRUN_NO;
        bytes += tag_bytes(tag_of(e));
    }
    return (uint32_t)((bytes + VMFS_UNIT - 1) / VMFS_UNIT);
}

static uint8_t *put_entry(uint8_t *p, unsigned full_tag, const struct mentry *e, uint64_t addr)
{
    unsigned tag = full_tag & ~VMFS_LEAF_CRC;
    if (tag == VMFS_LEAF_EMPTY)
        return p;
    if (tag != VMFS_LEAF_SPLIT) {
        gr_put_le64(p, addr);
        p += 8;
    }
    if (tag == VMFS_LEAF_EXTENT) {
        gr_put_le64(p, e->birth);
        p += 8;
    }
    gr_put_le16(p, e->written);
    gr_put_le16(p + 2, e->zero);
    p += 4;
    for (unsigned i = 0; tag != VMFS_LEAF_EXTENT && i < VMFS_BLOCK_PIECES; i++) {
        if (tag == VMFS_LEAF_SPLIT) {
            gr_put_le64(p, e->px->addr[i]);
            p += 8;
        }
        gr_put_le64(p, e->px->birth[i]);
        p += 8;
    }
    for (unsigned i = 0; full_tag & VMFS_LEAF_CRC && i < VMFS_BLOCK_PIECES; i++, p += 4)
        gr_put_le32(p, e->crc[i]);
    return p;
}

void mnode_encode(const struct vmfs *v, const struct mnode *n, uint64_t addr, void *buf)
{
    if (n->level) {
        struct vmfs_node_disk *d = buf;
        memset(buf, 0, VMFS_UNIT);
        d->level = gr_le32_of(n->level);
        for (unsigned i = 0; i < VMFS_FANOUT; i++) {
            const struct mchild *c = &n->child[i];
            const struct mptr *p = c->mem ? &c->mem->ptr : &c->ptr;
            d->child[i].addr = gr_le64_of(p->addr);
            d->child[i].birth = gr_le64_of(p->birth << 16 | p->units);
        }
        vhdr_seal(v, buf, VMFS_T_NODE, 1, addr, n->birth, v->slot);
        return;
    }
    uint8_t *tags = (uint8_t *)buf + sizeof(struct vmfs_hdr_disk), *p = tags + VMFS_FANOUT;
    memset(buf, 0, sizeof(struct vmfs_hdr_disk));
    for (unsigned i = 0; i < VMFS_FANOUT; i++) {
        const struct mentry *e = &n->ent[i];
        uint64_t a = e->addr;
        assert(!e->px || e->run != MRUN_UNKNOWN);
        unsigned tag = tag_of(e);
        look_ahead(n, i + 2);
        if (e->px && e->run == MRUN_YES)
            (void)is_run(e, &a);
        tags[i] = (uint8_t)tag;
        p = put_entry(p, tag, e, a);
    }
    size_t bytes = (size_t)(p - (uint8_t *)buf), whole = (bytes + VMFS_UNIT - 1) / VMFS_UNIT * VMFS_UNIT;
    memset(p, 0, whole - bytes);
    vhdr_seal(v, buf, VMFS_T_LEAF, (uint32_t)(whole / VMFS_UNIT), addr, n->birth, v->slot);
}

/* The CRCs behind an entry: there when, and only when, the volume keeps them and there is data. */
static int entry_crc(struct vmfs *v, struct mentry *e, unsigned tag, const uint8_t **pp)
{
    if (!(tag & VMFS_LEAF_CRC) != !(vcrc_kept(v) && data_mask(e)))
        return -GR_ECORRUPT;
    if (!(tag & VMFS_LEAF_CRC))
        return 0;
    if (!(e->crc = gr_alloc(VMFS_BLOCK_PIECES * sizeof *e->crc)))
        return -ENOMEM;
    for (unsigned i = 0; i < VMFS_BLOCK_PIECES; i++, *pp += 4)
        e->crc[i] = gr_get_le32(*pp);
    return 0;
}

static int leaf_entry(struct vmfs *v, struct mentry *e, unsigned full_tag, const uint8_t **pp, const uint8_t *end)
{
    const uint8_t *p = *pp;
    unsigned tag = full_tag & ~VMFS_LEAF_CRC;
    if (tag > VMFS_LEAF_SPLIT || full_tag == VMFS_LEAF_CRC || tag_bytes(full_tag) > (size_t)(end - p))
        return -GR_ECORRUPT;
    if (tag == VMFS_LEAF_EMPTY)
        return 0;
    uint64_t addr = 0;
    if (tag != VMFS_LEAF_SPLIT) {
        addr = gr_get_le64(p);
        p += 8;
    }
    if (tag == VMFS_LEAF_EXTENT) {
        e->addr = addr;
        e->birth = gr_get_le64(p);
        p += 8;
        if (!space_addr_ok(v, addr, VMFS_BLOCK_PIECES))
            return -GR_ECORRUPT;
    }
    e->written = gr_get_le16(p);
    e->zero = gr_get_le16(p + 2);
    p += 4;
    if (tag != VMFS_LEAF_EXTENT && !(e->px = gr_zalloc(sizeof *e->px)))
        return -ENOMEM;
    for (unsigned i = 0; e->px && i < VMFS_BLOCK_PIECES; i++) {
        bool owned = (e->written >> i & 1) || (e->zero >> i & 1);
        e->px->addr[i] = tag == VMFS_LEAF_RUN ? (owned ? addr + i : 0) : 0;
        if (tag == VMFS_LEAF_SPLIT) {
            e->px->addr[i] = gr_get_le64(p);
            p += 8;
        }
        e->px->birth[i] = gr_get_le64(p);
        p += 8;
        if (owned != (e->px->addr[i] != 0) || (owned && !space_addr_ok(v, e->px->addr[i], 1)))
            return -GR_ECORRUPT;
    }
    e->run = tag == VMFS_LEAF_RUN ? MRUN_YES : MRUN_NO;
    int r = entry_crc(v, e, full_tag, &p);
    *pp = p;
    return r < 0 || !v->sp.any_moved ? r : moved_entry(v, e);
}

static int leaf_decode(struct vmfs *v, struct mnode *n, const void *buf, uint32_t units)
{
    const uint8_t *tags = (const uint8_t *)buf + sizeof(struct vmfs_hdr_disk), *p = tags + VMFS_FANOUT;
    const uint8_t *end = (const uint8_t *)buf + (size_t)units * VMFS_UNIT;
    for (unsigned i = 0; i < VMFS_FANOUT; i++) {
        int r = leaf_entry(v, &n->ent[i], tags[i], &p, end);
        if (r < 0)
            return r;
    }
    return 0;
}

static int node_decode(struct vmfs *v, struct mnode *n, const void *buf)
{
    const struct vmfs_node_disk *d = buf;
    if (gr_le32_get(d->level) != n->level)
        return -GR_ECORRUPT;
    for (unsigned i = 0; i < VMFS_FANOUT; i++) {
        struct mptr *p = &n->child[i].ptr;
        uint64_t b = gr_le64_get(d->child[i].birth);
        p->addr = gr_le64_get(d->child[i].addr);
        p->birth = b >> 16;
        p->units = b & 0xffff;
        if (p->addr && (p->units == 0 || p->units > (n->level == 1 ? leaf_units_max(v) : 1) || !space_addr_ok(v, p->addr, p->units)))
            return -GR_ECORRUPT;
        if (p->addr && !(p->addr = moved_addr(v, p->addr, p->units, NULL)))
            return -GR_ECORRUPT;
    }
    return 0;
}

int mnode_decode(struct vmfs *v, const void *buf, uint32_t units, uint64_t addr, unsigned level, struct mnode **ret, struct gr_err *err)
{
    int r = vblock_check(v, buf, level ? VMFS_T_NODE : VMFS_T_LEAF, units, addr, err);
    if (r < 0)
        return r;
    struct mnode *n = mnode_new(v, level);
    if (!n)
        return gr_fail(err, -ENOMEM, "out of memory for the map");
    n->settled = v->sp.moves;
    n->birth = gr_le64_get(((const struct vmfs_hdr_disk *)buf)->generation);
    n->ptr = (struct mptr){ addr, n->birth, units };
    r = level ? node_decode(v, n, buf) : leaf_decode(v, n, buf, units);
    if (r < 0) {
        mnode_put(v, n);
        return gr_fail(err, r, "map node at device %u unit %llu: rule 7", vmfs_addr_dev(addr), (unsigned long long)vmfs_addr_unit(addr));
    }
    mnode_count(v, n);
    *ret = n;
    return 0;
}
