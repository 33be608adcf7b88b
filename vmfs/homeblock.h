/* Home blocks: as they are decoded (codec.c), in two copies (homeblock.c). Part of vmfs/internal.h. */
#ifndef VMFS_HOMEBLOCK_H
#define VMFS_HOMEBLOCK_H
#include "vmfs/format.h"
#include "vmfs/vmfs.h"

struct vlock {
    uint32_t holder; /* slot + 1, 0 free */
    uint64_t generation, token, nonce;
};
struct vtable {
    uint64_t addr_a, addr_b;
    uint32_t entries, stride;
};
struct vdevinfo {
    uint8_t uuid[16];
    uint64_t units, first_unit;
    uint32_t first_region, regions;
    struct vtable table; /* of its regions; entries 0: they are in the common one */
    uint32_t state, mover;
    uint64_t moved_addr;
    uint32_t moved_bytes, moved_units;
    uint32_t tested;   /* VMFS_TESTED_* */
    uint64_t tested_s;
    bool stale;        /* its tables are not to be believed, */
    bool emptied;      /* and nothing in its regions exists any more: it has replaced another */
};
struct vscrub { /* the last one: struct vmfs_scrub_disk */
    uint64_t started_s, ended_s, object, snapshot, piece, bytes, bad_pieces, errors;
};
struct vsuper {
    uint8_t uuid[16];
    uint64_t generation, compat, ro_compat, incompat, created_s, data_crc;
    char name[64];
    uint32_t n_devices, this_device, region_units, bitmap_blocks, journal_units, timing;
    uint32_t version;
    struct vtable slots, regions, inodes;
    struct vscrub scrub;
    struct vdevinfo dev[VMFS_DEVICES_MAX];
};
struct vlost { /* devices that the slot's host lost: struct vmfs_slot_disk */
    uint32_t devices, n;
    uint64_t seq, objects[VMFS_LOST_MAX];
};
struct vslot {
    uint64_t block_generation;
    uint32_t state, n_pins;
    uint64_t generation, nonce;
    uint8_t host_uuid[16];
    char host_name[64], portal[128], address[1024];
    uint8_t link_key[32];
    uint64_t features;
    uint64_t journal_addr, journal_mirror, tail_seq, tail_off, version;
    uint32_t journal_units;
    struct vlost lost;
    struct {
        uint64_t object, snapshot;
    } pins[VMFS_PINS_MAX];
};
struct vinode {
    uint64_t block_generation;
    struct vlock lock;
    uint64_t id;
    uint16_t type, provision;
    uint32_t n_snapshots;
    uint8_t uuid[16];
    uint64_t size, used_units, quota;
    int64_t mtime_s;
    uint64_t blob_addr;
    uint32_t blob_bytes, blob_units;
    uint64_t key_id;
    uint8_t inline_blob[VMFS_INODE_BLOB_MAX];
};

/* ---------- codec.c [sync]: decode checks every validity rule; encode seals ---------- */
void vhdr_seal(const struct vmfs *v, void *block, unsigned type, uint32_t units, uint64_t self, uint64_t generation, unsigned slot);
int vhdr_check(const uint8_t volume[16], const void *block, unsigned type, uint32_t units, uint64_t self, struct gr_err *err);
void vhdr_move(void *block, uint32_t units, uint64_t self); /* the same block for its other copy */
int vsuper_decode(const void *block, struct vsuper *ret, struct gr_err *err); /* rule 4 is the caller's */
void vsuper_encode(const struct vsuper *s, uint64_t self, void *block);
int vslot_decode(const struct vsuper *sb, const void *block, uint64_t self, struct vslot *ret, struct gr_err *err);
void vslot_encode(const struct vmfs *v, const struct vslot *s, unsigned index, uint64_t self, void *block);
int vinode_decode(const struct vsuper *sb, const void *block, uint64_t self, struct vinode *ret, struct gr_err *err);
void vinode_encode(const struct vmfs *v, const struct vinode *i, uint64_t self, void *block);
void vlock_get(const struct vmfs_lock_disk *d, struct vlock *ret);
void vlock_put(const struct vlock *l, struct vmfs_lock_disk *d);

/* ---------- homeblock.c: home blocks in two copies ---------- */
/* Read entry @index (+ @sub units) of a table: the newer valid copy; a damaged one is warned about.
 * 0; 1: never written since format (@buf is all zero); -GR_ECORRUPT: both bad. */
int vhome_read(struct vmfs *v, const struct vtable *t, uint32_t index, uint32_t sub, unsigned type, void *buf, struct gr_err *err);
/* Write both copies at once (own slot only; everything else goes through a checkpoint's images). */
int vhome_write(struct vmfs *v, const struct vtable *t, uint32_t index, uint32_t sub, const void *block, struct gr_err *err);
static inline uint64_t vhome_addr(const struct vtable *t, uint32_t index, uint32_t sub, int copy)
{
    return (copy ? t->addr_b : t->addr_a) + (uint64_t)index * t->stride + sub;
}
/* Compare-and-write of a home block's lock: @old is the block as read (4 KiB), @l the new lock. Bumps generation and nonce,
 * writes copy B too. 0; -GR_EMISCOMPARE: somebody was quicker. @block_out receives the new block (may be NULL). */
int vhome_lock(struct vmfs *v, const struct vtable *t, uint32_t index, const void *old, struct vlock *l, void *block_out, struct gr_err *err);
#endif
