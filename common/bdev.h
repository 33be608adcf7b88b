/* gr_bdev: the seam. A file, a block device, a foreign LUN, a disk's live head, a snapshot, an NFS file, a restore
 * point: everything that has bytes at offsets is a gr_bdev, and layers (fault, delay, record, throttle, cache) stack.
 *
 * A bdev is used through a channel (struct gr_chan), one per loop, so that no operation takes a shared lock.
 * Requests (struct gr_bio) are the caller's memory, submitted with gr_submit(); done() is called exactly once, on the
 * channel's loop, and may be called inside gr_submit(). Offsets and lengths are bytes; offset and length must be
 * multiples of the logical block (geometry), else -GR_ERANGE. A request outside the device: -GR_ERANGE, nothing done.
 *
 * Durability: a WRITE whose done() reported 0 is visible to later reads; it is durable after a later FLUSH reported 0
 * (or at once with GR_BIO_FUA). A failed FLUSH is final: later flushes of that bdev fail too. */
#ifndef GR_BDEV_H
#define GR_BDEV_H
#include "common/loop.h"
#include <stddef.h>

enum gr_op {
    GR_OP_READ,
    GR_OP_WRITE,
    GR_OP_FLUSH,
    GR_OP_UNMAP,         /* afterwards the range reads as zeros; space is given back where possible */
    GR_OP_WRITE_ZEROES,  /* reads as zeros; keeps the space of a reserved (thick) disk */
    GR_OP_COMPARE_WRITE, /* iov = len bytes to compare, iov2 = len bytes to write; atomic against everything on the range,
                            durable before done; -GR_EMISCOMPARE with miscompare_off set */
    GR_OP_EXTENTS,       /* describe [off, off+len): fills extents[0..n_extents), contiguous from off, at least one */
    GR_OP_SCRUB,         /* overwrite with zeros, where it lies, all that is held for whole pieces of the range, durable before done; the
                            map and what changed since when stay as they are, so write or unmap it next. -EBUSY: shared. -EAGAIN: a write
                            came between, try again. Optional (-EOPNOTSUPP) */
    GR_OP_COPY,          /* copy len bytes from (copy_src, copy_src_off) to off by sharing where possible; same volume only,
                            else -EOPNOTSUPP: caller then reads and writes */
};
enum gr_bio_flags {
    GR_BIO_FUA = 1,    /* WRITE, WRITE_ZEROES, UNMAP: durable before done */
    GR_BIO_ATOMIC = 2, /* WRITE: all or nothing, also across a crash; up to geometry.atomic_bytes */
    GR_BIO_MAY_UNMAP = 4, /* WRITE_ZEROES: may give the space back */
    GR_BIO_ALONE = 8,  /* WRITE: something else waits for its end: not to be gathered with others of this turn */
};
enum gr_extent_flags {
    GR_EXTENT_DATA = 0,
    GR_EXTENT_ZERO = 1, /* reads as zeros */
    GR_EXTENT_HOLE = 2, /* no space is held for it (implies ZERO) */
};
struct gr_extent {
    uint64_t off, len; /* bytes */
    uint32_t flags;    /* gr_extent_flags */
    bool changed;      /* changed since the base asked for (true when no base was given) */
};
/* Point in a disk's history, enough to ask "what changed since" when the snapshot itself is gone. */
struct gr_bookmark {
    uint8_t disk[16];  /* uuid */
    uint64_t lineage;
    uint64_t epoch;
};
/* Its token "uuid:lineage:epoch" (decimal), as commands, job records and NBD contexts carry it. */
#define GR_BOOKMARK_TEXT 96
void gr_bookmark_format(const struct gr_bookmark *b, char out[GR_BOOKMARK_TEXT]);
int gr_bookmark_parse(const char *text, struct gr_bookmark *ret); /* 0 or -EINVAL */

struct gr_chan;
struct gr_bdev;
struct gr_bio {
    enum gr_op op;
    uint32_t flags;
    uint64_t off, len;
    const struct iovec *iov; /* READ, WRITE, COMPARE_WRITE; lengths add up to len */
    int iovcnt;
    const struct iovec *iov2;
    int iovcnt2;
    struct gr_extent *extents; /* EXTENTS: caller's array */
    unsigned max_extents;      /* >= 1 */
    unsigned n_extents;        /* out */
    const struct gr_bookmark *base; /* EXTENTS: changed since; NULL = none. -EOPNOTSUPP / -ENOENT: cannot tell. With a base
                                       only changed extents tell their flags: unchanged ones are skipped over, flags 0 */
    struct gr_chan *copy_src;
    uint64_t copy_src_off;
    uint64_t miscompare_off; /* out, bytes from the start of the range */
    uint64_t bad_off;        /* out, READ with -EIO: bytes from the start of the range to the first that cannot be read, plus one; 0: not known */
    int status;              /* out: 0 or negative code */
    void (*done)(struct gr_bio *bio);
    void *arg;               /* caller's */
    struct gr_bio *next;     /* for whoever holds the request (queues) */
    void *layer[4];          /* scratch of the layer that holds the request; a layer that forwards uses its own bio */
};

struct gr_geometry {
    uint64_t size;            /* bytes */
    uint32_t logical_block;   /* bytes, 512 or 4096 */
    uint32_t physical_block;  /* bytes */
    uint32_t unmap_granule;   /* bytes; 0: UNMAP is not supported */
    uint32_t optimal_io;      /* bytes */
    uint32_t atomic_bytes;    /* largest GR_BIO_ATOMIC write; 0: none */
    bool read_only;
    bool removable;           /* the medium can be ejected (RMB) */
    uint32_t limit_iops;      /* what whoever serves it should hold it to: commands a second; 0: no limit */
    uint64_t limit_bytes;     /* bytes a second */
    uint32_t limit_burst_ms;  /* how much of a limit may be saved up; 0: the server's default */
    bool thin;                /* EXTENTS tells holes */
    bool rotational;
    bool in_memory;           /* a transfer is a copy: more of them at a time only push each other out of the cache */
    uint8_t uuid[16];         /* stable identity of the bytes (VPD 83), zero when none */
};
/* Events upward, turned into UNIT ATTENTIONs and the like. */
enum gr_event { GR_EVENT_RESIZED, GR_EVENT_REVERTED, GR_EVENT_THRESHOLD, GR_EVENT_FENCED, GR_EVENT_MOVING, GR_EVENT_GONE,
                GR_EVENT_EJECTED /* fenced: another host has it now. What is under way here must not be answered: its answer is with that host */,
                GR_EVENT_PRESENTED /* read_only, removable or the limits have changed */ };
struct gr_listener {
    void (*fn)(void *arg, enum gr_event ev);
    void *arg;
    struct gr_listener *next;
};

/* Optional, devices that several hosts share: the fence that keeps a lost host's late writes off. On a logical unit a persistent
 * reservation of type 6 (Exclusive Access, Registrants Only; SPC-4 5.13) that outlives a power loss of the target (APTPL). Keys are
 * never 0. In a fiber; blocking. Once a request was refused because our key is gone, every request ends with -GR_EFENCED (announced
 * once by GR_EVENT_FENCED) and nothing is sent any more, until enter() is called with another key. */
struct gr_fence_ops {
    /* Register all our nexuses under @key, whatever they were registered under before, and see to it that the reservation is held, by us
     * or by another: from here on nobody who is not registered reads or writes the device. */
    int (*enter)(struct gr_bdev *bdev, uint64_t key, struct gr_err *err);
    /* No request of ours is under way. The reservation stays, also when nobody is left: whoever was ejected before stays outside. So who
     * holds it remains registered; who does not is registered no more. */
    int (*leave)(struct gr_bdev *bdev, struct gr_err *err);
    /* When it returns 0 nothing of who was registered under @key can reach the device any more, and nothing of it is under way (PREEMPT AND
     * ABORT). Also 0 when nobody is registered under it. -GR_EFENCED: we are not registered ourselves. */
    int (*eject)(struct gr_bdev *bdev, uint64_t key, struct gr_err *err);
    /* The keys that are registered, each once: at most @max of them; *@ret_n counts all. */
    int (*keys)(struct gr_bdev *bdev, uint64_t *keys, unsigned max, unsigned *ret_n, struct gr_err *err);
    /* Take the reservation and everybody's registration away (the datastore is destroyed). */
    int (*clear)(struct gr_bdev *bdev, struct gr_err *err);
    /* Optional: does the device say that registrations and reservation outlive a loss of its power, and that it keeps them so now (PTPL_C,
     * PTPL_A)? We are registered. 0, or -EOPNOTSUPP. Absent: they do. */
    int (*persists)(struct gr_bdev *bdev, struct gr_err *err);
};

struct gr_bdev_ops {
    const char *type;
    void (*submit)(struct gr_chan *ch, struct gr_bio *bio);
    int (*geometry)(struct gr_bdev *bdev, struct gr_geometry *ret);
    void (*close)(struct gr_bdev *bdev); /* last reference gone; called on the loop that opened it */
    /* Optional per-channel state: set ch->priv. */
    int (*chan_open)(struct gr_bdev *bdev, struct gr_chan *ch);
    void (*chan_close)(struct gr_chan *ch);
    /* Optional, devices of a datastore: named exclusive locks, seen by every process that opened the same device.
     * Held until unlocked or until the process is gone; never passed to children. trylock: 0, or -EBUSY held elsewhere. */
    int (*trylock)(struct gr_bdev *bdev, uint64_t key);
    void (*unlock)(struct gr_bdev *bdev, uint64_t key);
    /* Optional small durable store of the logical unit (reservations, access lists). In a fiber; blocking.
     * get: length or -ENOENT; value is new memory. set with len 0 deletes. Keys: [a-z0-9.-]{1,32}; values up to 64 KiB. */
    int (*attr_get)(struct gr_bdev *bdev, const char *key, void **ret, struct gr_err *err);
    int (*attr_set)(struct gr_bdev *bdev, const char *key, const void *val, size_t len, struct gr_err *err);
    /* Optional, devices that are waited for as long as it takes: for how many milliseconds nothing was answered though something is under way (0:
     * nothing is, or it answers). And the end of waiting: what is under way, and what comes, ends with -EIO for ever. Any context. */
    uint64_t (*silent_ms)(struct gr_bdev *bdev);
    void (*give_up)(struct gr_bdev *bdev);
    /* Optional: 0 when no byte of it belongs to anybody else too (a snapshot, a clone), -EBUSY with the reason otherwise. Absent: 0. */
    int (*exclusive)(struct gr_bdev *bdev, struct gr_err *err);
};
struct gr_bdev {
    const struct gr_bdev_ops *ops;
    unsigned refs;
    struct gr_listener *listeners;
    const struct gr_fence_ops *fence; /* NULL: nothing fences a lost host */
    unsigned geometry_gen; /* counts up when the geometry may have changed */
    char name[128];        /* for messages */
};
struct gr_chan {
    struct gr_bdev *bdev;
    struct gr_loop *loop;
    unsigned refs;
    void *priv;
    /* gr_submit()'s own: the geometry requests are checked against, and requests put off because done() was nested too deep. */
    struct gr_geometry geometry;
    unsigned geometry_gen;
    struct gr_bio *put_off_head, *put_off_tail;
    struct gr_defer put_off;
};

/* For implementations: set ops, name, refs = 1. */
void gr_bdev_init(struct gr_bdev *bdev, const struct gr_bdev_ops *ops, const char *name);
struct gr_bdev *gr_bdev_get(struct gr_bdev *bdev);
void gr_bdev_put(struct gr_bdev *bdev); /* NULL allowed */
int gr_bdev_geometry(struct gr_bdev *bdev, struct gr_geometry *ret);
void gr_bdev_listen(struct gr_bdev *bdev, struct gr_listener *l);
void gr_bdev_unlisten(struct gr_bdev *bdev, struct gr_listener *l);
void gr_bdev_event(struct gr_bdev *bdev, enum gr_event ev);
/* Channel of @bdev on @loop; holds a reference on the bdev. */
int gr_chan_open(struct gr_bdev *bdev, struct gr_loop *loop, struct gr_chan **ret);
void gr_chan_close(struct gr_chan *ch); /* NULL allowed; no request may be in flight */
/* Check the range against the geometry and hand @bio to the bdev. */
void gr_submit(struct gr_chan *ch, struct gr_bio *bio);
/* For implementations: set status and call done. */
static inline void gr_bio_end(struct gr_bio *bio, int status)
{
    bio->status = status;
    bio->done(bio);
}

/* The same from a fiber: submit and suspend until done. Return 0 or the status. */
int gr_pread(struct gr_chan *ch, void *buf, size_t len, uint64_t off);
int gr_pwrite(struct gr_chan *ch, const void *buf, size_t len, uint64_t off, uint32_t flags);
int gr_preadv(struct gr_chan *ch, const struct iovec *iov, int iovcnt, uint64_t off);
int gr_pwritev(struct gr_chan *ch, const struct iovec *iov, int iovcnt, uint64_t off, uint32_t flags);
int gr_flush(struct gr_chan *ch);
int gr_unmap(struct gr_chan *ch, uint64_t off, uint64_t len, uint32_t flags);
int gr_write_zeroes(struct gr_chan *ch, uint64_t off, uint64_t len, uint32_t flags);
int gr_compare_write(struct gr_chan *ch, uint64_t off, const void *cmp, const void *wr, size_t len, uint64_t *ret_miscompare_off);
int gr_extents(struct gr_chan *ch, uint64_t off, uint64_t len, const struct gr_bookmark *base, struct gr_extent *out, unsigned max,
               unsigned *ret_n);
int gr_submit_wait(struct gr_chan *ch, struct gr_bio *bio); /* any request; done/arg are overwritten */

/* ---- implementations in common/ ---- */
struct gr_file_opts {
    bool read_only;
    bool direct;    /* O_DIRECT where the file system takes it (falls back to buffered + fdatasync, never silently loses durability) */
    bool create;    /* make it if missing */
    uint64_t size;  /* create: length in bytes */
    bool exclusive; /* block device nodes: O_EXCL */
    uint32_t logical_block; /* 0: 512 */
};
/* A regular file or block device node @path (never a FIFO, tty, directory). Unaligned user buffers are bounced for O_DIRECT.
 * COMPARE_WRITE is atomic between all processes on this machine that use it (OFD byte-range locks at block offset + 2^62);
 * trylock keys live at 2^61 + key on the same file. UNMAP punches holes where the file system can. */
int gr_bdev_file_open(struct gr_loop *loop, const char *path, const struct gr_file_opts *opts, struct gr_bdev **ret, struct gr_err *err);
/* Grow or shrink the file under it; announces GR_EVENT_RESIZED. */
int gr_bdev_file_resize(struct gr_bdev *bdev, uint64_t size, struct gr_err *err);
/* Be the only one who serves a regular file as a whole, until it is closed: no other handle has claimed it, and no named lock of it is held
 * or can be taken. Read-only handles share it. A block device node is claimed by its opening (exclusive). -GR_ELOCKED: somebody else is there. */
int gr_bdev_file_claim(struct gr_bdev *bdev, struct gr_err *err);
struct gr_file_room { /* bytes */
    uint64_t missing;   /* of a regular file's length, what its holes would still take */
    uint64_t free, all; /* of the file system below it */
};
int gr_bdev_file_room(struct gr_bdev *bdev, struct gr_file_room *ret); /* blocking; -EOPNOTSUPP: not a regular file */
/* Memory of @size bytes (sparse, zero at first). Handles opened on one gr_mem share bytes and locks: "hosts" in one process. */
struct gr_mem;
struct gr_mem *gr_mem_new(uint64_t size);
void gr_mem_free(struct gr_mem *m);
void *gr_mem_page(struct gr_mem *m, uint64_t off, bool make); /* 4 KiB page holding @off, NULL when never written and !make */
int gr_bdev_mem_open(struct gr_loop *loop, struct gr_mem *m, struct gr_bdev **ret);
/* The same as a shared logical unit is: no named locks, but a fence; each handle is a nexus. A request of an ejected one ends with
 * -GR_EFENCED when it gets to the memory, however long a layer kept it. */
int gr_bdev_mem_open_shared(struct gr_loop *loop, struct gr_mem *m, struct gr_bdev **ret);
/* Memory over a device: what is written stays in memory and ends with it, nothing of it reaches @below. Named locks are @below's. Whole pages of
 * 4 KiB: @size and what is below are a multiple of it. */
struct gr_over_opts {
    struct gr_bdev *below; /* NULL: there is none. A reference is taken */
    const char *name;      /* without @below */
    uint64_t size;         /* bytes */
    /* Without @below: the 4 KiB at @off, which were never written. 0, or why they cannot be read. In a fiber; NULL: -EIO. */
    int (*miss)(void *arg, uint64_t off, void *page);
    void *arg;
};
int gr_bdev_over_open(struct gr_loop *loop, const struct gr_over_opts *opts, struct gr_bdev **ret);
/* Reads zeros, swallows writes. */
int gr_bdev_null_open(struct gr_loop *loop, uint64_t size, struct gr_bdev **ret);

/* Layers: each takes its own reference on @lower. */
struct gr_fault_rule {
    enum gr_op op;
    uint64_t off, len;  /* hits requests that overlap; len 0: everywhere */
    unsigned after;     /* let this many hits pass first */
    unsigned count;     /* then fail this many; 0: for ever */
    int code;           /* negative status to give; 0 with @hang: never complete until the layer is closed */
    bool hang;
    bool swallow;       /* WRITE: report success, do nothing (phantom write) */
    uint32_t torn_bytes; /* WRITE, WRITE_ZEROES: only the first so many bytes reach the lower layer, then @code (0: success); whole blocks.
                            What is no longer passes whole. */
};
/* Of all rules that match, the first added that fires decides. -EINVAL: a rule that does nothing, or tears a block. */
int gr_bdev_fault_open(struct gr_loop *loop, struct gr_bdev *lower, struct gr_bdev **ret);
int gr_bdev_fault_add(struct gr_bdev *fault, const struct gr_fault_rule *rule);
void gr_bdev_fault_clear(struct gr_bdev *fault);
/* Each request waits so long before it reaches @lower (write_ns: everything that changes bytes). */
int gr_bdev_delay_open(struct gr_loop *loop, struct gr_bdev *lower, uint64_t read_ns, uint64_t write_ns, uint64_t flush_ns, struct gr_bdev **ret);
/* Record: every WRITE (with its bytes), UNMAP, WRITE_ZEROES and FLUSH in submission and completion order, in memory, so that
 * a replayer can build what a power cut could have left (tests/). Entries stand in submission order. A request that the
 * lower device failed stays "not yet completed": it may have done anything. A COMPARE_WRITE stands as a WRITE with FUA and
 * ATOMIC; one that miscompared as a GR_OP_READ of length 0, to be skipped. COPY is answered -EOPNOTSUPP.
 * gr_record_at()'s result is valid until the next request or note; data until the layer is closed. */
struct gr_record_entry {
    enum gr_op op;
    uint32_t flags;
    uint64_t off, len;
    uint64_t submitted, completed; /* ticks of one counter; completed 0: not yet */
    uint8_t *data;                 /* WRITE: len bytes */
    const char *note;              /* op == GR_OP_EXTENTS is used for notes put in by the test: a mark in the history */
    void *note_arg;
};
struct gr_record;
int gr_bdev_record_open(struct gr_loop *loop, struct gr_bdev *lower, struct gr_bdev **ret);
struct gr_record *gr_bdev_record(struct gr_bdev *record_bdev);
size_t gr_record_count(const struct gr_record *r);
const struct gr_record_entry *gr_record_at(const struct gr_record *r, size_t i);
/* Put a mark into the history (the test's own knowledge: "flush 17 acknowledged"). */
int gr_record_note(struct gr_record *r, const char *note, void *arg);
#endif
