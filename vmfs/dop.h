/* Operations that change a live disk: its users', and those of the volume itself. Part of vmfs/internal.h. Thread rule: the loop of the volume. */
#ifndef VMFS_DOP_H
#define VMFS_DOP_H
#include "vmfs/internal.h"
#include "vmfs/plan.h"

/* ---------- disk.c, disk_write.c ---------- */
#define DOP_KIDS 4
#define DOP_IOV 16
struct run {
    uint64_t addr;
    uint32_t count; /* pieces */
};
/* One operation that changes a live disk. */
struct dop {
    struct vobj *o;
    struct vmfs *v;
    struct gr_bio *bio;
    struct vrange range;
    struct vticket ticket;
    unsigned kids;
    int status;
    uint32_t devs; /* that it overwrites, a bit each */
    bool left; /* no longer admitted */
    struct iovec *iov;
    struct iovec sealed; /* encrypted: what goes to the device instead of the caller's bytes */
    struct dop *next;
    struct gr_bio kid_inline[DOP_KIDS]; /* from here on what is set when it is used */
    struct iovec iov_inline[DOP_IOV];
    struct plan plan; /* disk_redirect.c */
    uint32_t crc[VMFS_BLOCK_PIECES];
    struct vappend append;
};
void disk_change_start(struct dop *op); /* range granted, and it cannot go in place: a fiber does it */
/* A write whose range was granted, and that cannot go in place: the usual one needs no fiber. False: it is not that, nothing was done [sync]. */
bool disk_redirect(struct dop *op);
void disk_op_end(struct dop *op, int status);
/* What it changed is applied: others may go on before it is durable and answered. A checkpoint waits for late writes, so none may
 * wait for a checkpoint (journal_commit) while it is admitted. */
void disk_op_leave(struct dop *op);
/* (fiber) It is done: leave, make it durable (or at least safe from the end of this process) and answer. */
void disk_op_finish(struct dop *op, int r, bool durable);
struct vmfs_disk *disk_of(struct gr_chan *ch);
int disk_scrub(struct dop *op); /* GR_OP_SCRUB (fiber): disk_scrub.c */
int disk_unshared(struct vobj *o, struct gr_err *err); /* 0; -EBUSY: a piece of it has another owner, or may have (fiber) */
void disk_copy(struct gr_chan *ch, struct gr_bio *bio); /* GR_OP_COPY: disk_copy.c */
struct dop *disk_op_new(struct vobj *o, struct gr_bio *bio);
/* An operation of our own on pieces [first, end), for which nobody waits: admitted when it returns (fiber). It ends as any other, and then
 * p->bio has its status. NULL: out of memory. @moves: struct vrange. */
struct dpass {
    struct gr_bio bio;
    struct gr_fiber *fiber; /* not NULL: it waits */
    bool ended;
};
struct dop *disk_pass_begin(struct dpass *p, struct vobj *o, uint64_t first, uint64_t end, bool moves);
/* Admitted before the newest snapshot: it belongs to that, and checkpoints wait for it. */
static inline bool dop_late(const struct dop *op) { return op->range.epoch < op->o->epoch; }
extern const struct gr_bdev_ops vmfs_disk_ops;
/* Write @len bytes at @off within an admitted operation (fiber). @atomic: all or nothing across a crash. */
int disk_write_pieces(struct dop *op, uint64_t off, uint64_t len, const struct iovec *iov, int iovcnt, bool atomic);
/* The data of a plan for [first, end) is where it goes, or @r says why not: its records, or what was taken goes back (fiber). Result: @r, or why there is
 * no record. @crc, @atomic: as plan_record() takes them. */
int disk_planned(struct plan *p, uint64_t first, uint64_t end, const uint32_t *crc, bool atomic, int r);
/* Room for @units more data units of @o: leases, waits for frees; -GR_ENOSPACE when they would eat the metadata reserve or what
 * was promised to other disks (fiber). @epoch: of the write that asks; it gives up when it is late (dop_late). */
int disk_room(struct vobj *o, uint64_t units, uint64_t epoch);
/* The same at once, where all is in plenty; false: ask disk_room() [sync]. */
bool disk_room_at_once(const struct vobj *o, uint64_t units);
/* The same for a write that lets go of as much as it takes (@replaces), and so may take from what is kept back for a moment. */
int disk_room_for(struct vobj *o, uint64_t units, uint64_t epoch, bool replaces);
/* The same for what takes no data units, only makes nodes dirty. */
int disk_room_nodes(struct vobj *o, uint64_t epoch);
/* Are there still runs for what becomes dirty? To be asked when something has suspended since: many are told that there is room at once, and others
 * may have come first [sync]. */
bool disk_nodes_fit(const struct vobj *o);
/* Give every piece of [first, end) its own reserved unit (thick, eager) (fiber). */
int disk_reserve(struct vobj *o, uint64_t first, uint64_t end, uint64_t epoch);

/* GR_OP_UNMAP, GR_OP_WRITE_ZEROES of an admitted operation (fiber): disk_clear.c. */
int disk_clear(struct dop *op);
/* Make [first, end) holes, whatever is there (fiber). */
int disk_clear_pieces(struct dop *op, uint64_t first, uint64_t end);

/* ---------- renew.c ---------- */
struct vrenew {
    struct vmfs_disk *d;
    uint64_t from; /* what was born before this epoch is old */
    bool all;      /* not only data: pieces that are owned and read as zeros become holes */
    uint64_t done; /* pieces of data written anew */
    int (*progress)(void *arg, uint64_t pieces, struct gr_err *err); /* once in a while; not 0: stop; may be NULL */
    void *arg;
    int (*leaf)(struct vrenew *w, uint64_t piece, struct mnode *leaf, struct gr_err *err); /* of each leaf that has nothing old any more; may be NULL */
};
int disk_renew(struct vrenew *w, struct gr_err *err); /* all of the live head (fiber) */
#endif
