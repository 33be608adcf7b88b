/* What disks and snapshots may show after a power cut at any tick: per disk and 512-byte sector, the newest value that was
 * flushed and every value written since; per snapshot its content; per name what was acknowledged.
 *
 * Only the sectors of a few windows per disk are written; everything else must stay empty. A sector's value is a stamp: 0
 * reads as zeros, another as a pattern made of the stamp and the place. */
#ifndef CRASH_ORACLE_H
#define CRASH_ORACLE_H
#include "common/bdev.h"
#include "common/fiber.h"
#include "snapshot/snapshot.h"

#define ORC_WINDOWS 5u
#define ORC_WINDOW_SECTORS 256u /* 128 KiB */
#define ORC_SLOTS (ORC_WINDOWS * ORC_WINDOW_SECTORS)
#define ORC_SIZE (40ull << 20)
#define ORC_SIZE_SMALL (ORC_SIZE - 40960 - 512)
#define ORC_NAME 48

struct orc_op {
    uint64_t first, n;      /* sectors of the disk */
    uint32_t stamp;         /* 0: zeros */
    const uint32_t *values; /* ORC_SLOTS of them: revert; else NULL */
    uint32_t *copied;       /* ORC_SLOTS of them, freed with the oracle: a copy from another disk; else NULL */
    uint64_t size;          /* resize or revert: the disk's size after it; else 0 */
    uint64_t submit, ack, durable; /* ticks; 0: not (yet) */
    bool fua, dead;         /* dead: had no effect (miscompared, failed) */
};
struct orc_span { /* when something was asked for and answered; 0: not yet */
    uint64_t submit, ack;
};
struct orc_snap {
    char name[ORC_NAME];
    struct orc_span made, deleted;
    uint32_t *values; /* ORC_SLOTS; NULL: never read */
    uint64_t size;
    unsigned group;   /* same number: one instant */
};
struct orc_list {
    uint32_t *op;
    size_t n, cap;
};
struct orc_disk {
    unsigned number;
    char name[ORC_NAME], name2[ORC_NAME]; /* before and after the rename */
    struct orc_span made, renamed, removed;
    bool eager;        /* written with zeros when it was made (or its origin was): all of it is data */
    uint32_t *initial; /* ORC_SLOTS, of a clone; NULL: zeros */
    uint64_t initial_size;
    struct orc_op *op;
    size_t n_ops, cap_ops;
    struct orc_list slot[ORC_SLOTS];
    struct orc_snap **snap;
    size_t n_snaps;
    /* of the workload */
    struct vmfs_disk *d;
    struct gr_chan *ch;
    struct gr_frwlock lock; /* data: read; revert, resize, remove: write */
    unsigned users;
};
struct orc {
    struct gr_record *record;
    const char *prefix; /* of its disks' names; NULL: none */
    struct orc_disk **disk;
    size_t n_disks;
    uint32_t stamps;
    uint64_t durable_ops, unsure; /* sectors with several allowed values at a cut */
};

uint64_t orc_tick(struct orc *o); /* now, in ticks of the record */
struct orc_disk *orc_disk_add(struct orc *o, const uint32_t *initial, uint64_t size);
struct orc_snap *orc_snap_add(struct orc_disk *d, const char *name);
/* The new operation's index; its submit tick is now. */
size_t orc_op_add(struct orc *o, struct orc_disk *d, struct orc_op op);
void orc_op_ack(struct orc *o, struct orc_disk *d, size_t op);
/* A flush of the disk asked for at tick @submit was answered just now. */
void orc_flushed(struct orc *o, struct orc_disk *d, uint64_t submit);
void orc_free(struct orc *o);

uint64_t orc_window_off(unsigned w); /* bytes */
/* Slot of a sector, or -1. */
int orc_slot(uint64_t sector);
void orc_fill(uint8_t *sector, const struct orc_disk *d, uint64_t number, uint32_t stamp);
/* The stamp a sector shows; -1: no pattern. The disk is not part of the pattern of clones' shared data: @family is. */
int64_t orc_stamp(const uint8_t *sector, uint64_t number);
/* May @slot show @stamp after a cut at @tick, when what was flushed by tick @flushed must be there? */
bool orc_allowed(const struct orc_disk *d, unsigned slot, uint32_t stamp, uint64_t flushed, uint64_t tick, uint64_t *unsure);
/* … when it was read between @since and @tick, without a cut? */
bool orc_visible(const struct orc_disk *d, unsigned slot, uint32_t stamp, uint64_t since, uint64_t tick);
bool orc_size_allowed(const struct orc_disk *d, uint64_t size, uint64_t tick);

/* Compare a recovered volume with what may be there after a cut at @tick. 0, or -1 and the first difference in @why. */
int orc_verify(struct orc *o, struct vmfs *v, uint64_t tick, char why[256]);
/* Content of the windows of an open device into @values (ORC_SLOTS); -1 and @why when a sector is no pattern. */
int orc_read(struct gr_bdev *b, uint64_t size, uint32_t *values, char why[256]);
#endif
