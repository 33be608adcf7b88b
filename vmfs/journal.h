/* The journal: frames of records and of images (journal.c), and how they are read again (journal_read.c). Part of vmfs/internal.h. Thread rule: the
 * loop of the volume. */
#ifndef VMFS_JOURNAL_H
#define VMFS_JOURNAL_H
#include "common/buf.h"
#include "common/fiber.h"
#include "vmfs/format.h"

struct vmfs;
struct vobj;
struct vappend { /* what waits for journal_append() without a fiber of its own */
    struct vappend *next;
    uint64_t seq; /* of the frame it waits for */
    void (*done)(struct vappend *a, int status);
};
struct vjournal {
    uint64_t addr[2]; /* the same frames are in each of @n_copies areas */
    unsigned n_copies;
    uint32_t units;
    uint64_t next_seq;   /* of the frame being filled */
    uint64_t head_off;   /* where it goes */
    uint64_t tail_seq, tail_off;
    uint32_t used;       /* units between tail and head */
    uint32_t coming;     /* that the images of the checkpoint under way will take */
    uint64_t durable_seq, sealed_seq, written_watermark;
    uint64_t written_seq; /* newest frame that the device has, flushed or not */
    struct gr_buf pending;
    uint32_t n_pending;
    bool committing;
    uint64_t data_written, data_flushed; /* data writes that ended; those that ended before a device flush that ended well began */
    uint64_t flushed_ns; /* when the last flush ended */
    uint32_t last_crc;           /* of the frame before: frames are a chain */
    uint64_t last_record_seq;  /* newest frame with records */
    uint64_t replay_watermark; /* of the last frame found by recovery */
    uint64_t asked, done;      /* commit requests */
    struct gr_fmutex write_lock; /* frames are cut and written in order */
    struct gr_fqueue commit_q, room_q;
    struct gr_timer timer;
    bool timer_fiber, stopping;
    struct vappend *appends, **appends_end; /* in the order of their frames */
    bool appending;                         /* a fiber is there for them */
};

/* ---------- journal.c ---------- */
struct dop;
uint64_t journal_seq(const struct vmfs *v); /* of the frame a record made now goes into [sync] */
/* Add a record to the frame being filled [sync]. 0 or -ENOMEM. */
int journal_add(struct vmfs *v, const void *rec, size_t len);
void journal_room(struct vmfs *v);        /* suspend while the journal or the pending frame is too full */
void journal_room_for(const struct dop *op); /* the same within an admitted write */
bool journal_has_room(const struct vmfs *v); /* nobody would have to wait now [sync] */
int journal_commit(struct vmfs *v);       /* everything applied so far is durable when it returns 0 */
int journal_append(struct vmfs *v);       /* everything applied so far is with the device, not flushed: it outlives this process */
/* The same, then a->done(): one fiber serves all that come. @a: the caller's, with @done set, until then [sync]. */
void journal_append_later(struct vmfs *v, struct vappend *a);
int journal_seal(struct vmfs *v);         /* and what it wrote may be overwritten where it lies */
int journal_try_seal(struct vmfs *v);     /* the same, without ever waiting for a checkpoint: -EAGAIN when the journal is too full */
void journal_data_written(struct vobj *o, uint32_t devs); /* data of it reached devices @devs (a bit each): a flush is owed [sync] */
void journal_expect_images(struct vmfs *v, unsigned n); /* so many are written soon: room for them is kept [sync] */
bool journal_holds_images(const struct vmfs *v, unsigned more); /* has it room for so many beside those that are due, and the list of foreign frees? [sync] */
/* Write images as frames (no flush). *ret_seq: the last one's. */
int journal_write_images(struct vmfs *v, const struct vmfs_image_disk *images, unsigned n, uint64_t covers, uint64_t *ret_seq);
/* A frame cut but not yet written. */
struct vcut {
    uint8_t *buf;
    uint32_t units;
    uint64_t seq, off, watermark;
};
/* Close the pending frame [sync], write_lock held. @force: also when it is empty. buf NULL: nothing to write. */
int journal_cut(struct vmfs *v, bool force, struct vcut *ret);
int journal_write_cut(struct vmfs *v, struct vcut *c); /* write_lock held; frees c->buf */
/* Flush the devices and draw the conclusions: frames up to @seq are durable. Fences on failure. */
int journal_flush(struct vmfs *v, uint64_t seq);
int journal_put(struct vmfs *v, unsigned copies, uint64_t off, uint32_t units, void *buf); /* to these areas (a bit each) at once, round the end if need be */
void journal_start(struct vmfs *v);
void journal_stop(struct vmfs *v);

/* ---------- journal_read.c ---------- */
/* A frame that is whole in one area only, or another one there, is written to the other, and all is flushed: before anything is done that relies on it. */
int journal_mend(struct vmfs *v, struct gr_err *err);
/* Walk the frames from the tail: fn gets header fields and payload. Ends at the first that is not valid. */
struct vframe {
    uint64_t seq, off, watermark, covers;
    uint32_t units, kind, n_records, part, parts, payload, crc, previous;
};
int journal_scan(struct vmfs *v, int (*fn)(void *arg, const struct vframe *f, const uint8_t *payload), void *arg, struct vframe *ret_last,
                 struct gr_err *err);
#endif
