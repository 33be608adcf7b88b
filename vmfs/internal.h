/* Inside vmfs/ (and, for what snapshots are made of, snapshot/): the state of one joined volume.
 *
 * One fiber loop, no threads: functions marked [sync] never suspend; all others may, and every pointer into the map or the
 * object table must be looked up again afterwards unless it is pinned (refs) or guarded (range lock, ns lock, ckpt lock).
 *
 * Every change of durable state is a record; apply_*() [sync] is the only code that changes objects, maps and free space,
 * both when a record is made and when it is replayed. */
#ifndef VMFS_INTERNAL_H
#define VMFS_INTERNAL_H
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/crc.h"
#include "common/iov.h"
#include "vmfs/busy.h"
#include "vmfs/cipher.h"
#include "vmfs/feature.h"
#include "vmfs/files.h"
#include "vmfs/format.h"
#include "vmfs/life.h"
#include "vmfs/mnode.h"
#include "vmfs/quota.h"
#include "vmfs/share.h"
#include "vmfs/space.h"
#include "vmfs/usage.h"
#include "vmfs/vmfs.h"
#include <string.h>

/* ---------- decoded home blocks ---------- */
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
    bool stale;        /* its tables are not to be believed */
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
    uint64_t journal_addr, tail_seq, tail_off, version;
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

/* ---------- objects ---------- */
struct vsnap {
    uint64_t id, parent, epoch, lineage, size, cursor;
    int64_t created_s;
    uint32_t flags, clones;
    uint8_t group[16];
    char *name;
    struct mtree tree;
    struct vusage use;
    uint64_t passed; /* being given back: of its parent's own units, its successor has lost behind the cursor */
    unsigned open; /* bdevs reading it in this process */
    bool said, home; /* that it is being deleted: before a checkpoint began, and since it is where readers elsewhere look (reap.c) */
};
struct vlineage {
    uint64_t lineage, parent, epoch;
};
struct vbookmark {
    uint64_t lineage, epoch;
    int64_t created_s;
    char *name;
};
struct vattr {
    char *key;
    void *val;
    size_t len;
};
struct vdirent {
    uint64_t id;
    uint16_t type;
    char *name;
};
/* An operation on a range of a disk, from admission to acknowledgement. */
struct vrange {
    uint64_t first, end; /* pieces */
    uint64_t epoch;      /* at admission: birth of what it writes */
    bool granted;
    struct vrange *prev, *next;
    bool renews;         /* a copy: it goes on in the new epoch when one begins without a snapshot */
    bool moves;          /* it changes where pieces lie, not what they are: nobody who watches is told */
    void (*grant)(struct vrange *r); /* called when it may go on */
    void *arg;
};
/* Pieces that somebody has read without holding anybody up: was a write admitted there since? */
struct vwatch {
    uint64_t first, end;
    bool hit;
};
struct vobj { /* an object this host holds the lock of */
    struct vobj *hash_next;
    struct vmfs *v;
    uint64_t id;
    struct vinode ino;
    bool dirty; /* inode or blob differs from home */
    unsigned opens;
    unsigned users;              /* readers of a whole file: not to be given up under them */
    int reap_error;              /* why the walker ended last */
    bool dying; /* content is being given back */
    /* directories */
    struct vdirent *ents;
    size_t n_ents, cap_ents;
    bool has_posix;
    struct vmfs_posix posix;
    /* disks and files */
    uint64_t epoch, lineage, parent_snap, next_snap;
    uint64_t origin_object, origin_snap, origin_epoch;
    uint64_t reserved_units, reserved_leaves;
    uint64_t promised_elsewhere; /* peeked: its owner's reserved_units */
    /* quotas: ino.quota is what it was granted */
    uint64_t quota_pending;      /* units taken for writes under way */
    uint64_t quota_refused_ns, quota_refused; /* it was refused to hold so many units then; 0: it was not */
    int quota_error;             /* how asking ended */
    bool quota_asking, quota_free; /* free: no folder above it has a limit */
    bool quota_hidden;           /* not in a folder yet */
    bool quota_low, quota_low_known; /* its users, all hosts were told that a folder above is nearly full */
    bool copied;                 /* VMFS_CONTENT_COPIED */
    uint64_t data_written;       /* v->j.data_written when data of it last reached a device, */
    uint64_t data_on[VMFS_DEVICES_MAX]; /* and each of them */
    bool lost, is_template;      /* of the attributes, as every write asks: VMFS_ATTR_LOST, VMFS_LUN_TEMPLATE */
    struct mtree live;
    struct vusage use; /* of the live head */
    bool counted;      /* the numbers of all trees are known */
    bool counting;     /* a fiber is finding them out; walker is set, too */
    struct vsnap **snaps;
    size_t n_snaps;
    struct vlineage *lineages;
    size_t n_lineages;
    struct vbookmark *bookmarks;
    size_t n_bookmarks;
    struct vattr *attrs;
    size_t n_attrs;
    struct gr_fmutex load_lock;  /* one fiber loads nodes of this object at a time */
    struct vrange *ranges, *last_range; /* admitted and waiting, in order of arrival */
    struct vwatch *watch;        /* of defrag.c; NULL: nobody watches */
    bool defragmenting;
    unsigned waiting;
    bool frozen;                 /* admission stopped (revert, resize, remove) */
    bool granting;
    unsigned in_flight;           /* admitted writes, all epochs */
    unsigned late;               /* … of an epoch before the current one */
    struct gr_fqueue drained;    /* woken when in_flight or late fall to 0, or frozen ends */
    struct vmfs_disk *handle;    /* the open handle, NULL when closed */
    struct gr_fmutex keys_lock;  /* its block of keys is changed by one at a time; taken before ckpt_lock */
    struct vcipher *cipher;      /* keys.c: encrypted (ino.key_id), and its keys are here */
    uint64_t pinned_snap;        /* peeked by a reader: what its slot pins */
    bool walker;                 /* a fiber is giving back deleted snapshots */
    struct gr_fqueue settled;
};
struct vmfs_disk {
    struct gr_bdev bdev; /* first member */
    struct vobj *o;
    char *path;
    bool gone; /* volume left or abandoned under it */
};

/* ---------- space ---------- */
struct vfree { /* units freed in memory, not yet reusable */
    uint64_t addr;
    uint32_t units;
    uint64_t seq;
    uint64_t ticket; /* reusable when every ticket below this number is closed */
    bool given_up;   /* the device may be told */
};
struct vshare { /* units of a region with more owners than one */
    uint32_t at, units, more;
};
struct vregion { /* a region leased by this host */
    uint32_t index;
    uint64_t first; /* address of its first unit */
    uint32_t units;
    struct vlock lock;
    uint64_t hdr_generation, bm_generation;
    uint64_t *used;    /* logical: what a checkpoint persists */
    struct vbusy busy; /* used, or in flight, or freed but not yet reusable */
    uint32_t free_used; /* units clear in used */
    bool dirty, closed; /* closed: its device leaves, nothing is taken from it, and its free units do not count */
    bool giving;        /* it is being given back (recall.c): nothing is taken from it */
    uint64_t *dirty_blocks; /* bitmap blocks that differ from home */
    struct vshare *shares;  /* ascending, apart */
    size_t n_shares, cap_shares;
    bool shares_dirty;
    uint64_t shares_addr;   /* of the blob at home */
    uint32_t shares_bytes, shares_units;
    struct vregion *next;
};
/* Units of a device that leaves or has left, and where they lie now: ascending, apart. */
struct vmove {
    uint64_t from, to;
    uint32_t units;
};
struct vmoved {
    struct vmove *e;
    size_t n, cap;
};
struct evac; /* evacuate.c */
#define VSPACE_POOL 4096u
struct vspace {
    struct vregion *regions;     /* leased here, newest first */
    struct vregion **by_index;   /* [n_regions] or NULL */
    uint64_t free_busy, free_used, free_blocks; /* sums over the regions leased here */
    uint64_t share_units;          /* that their lists of shared units take */
    uint64_t images, images_max;   /* home blocks of these regions: changed, and all */
    uint8_t *tried;              /* [n_regions] not 0: known to be leased by another, full, or damaged */
    uint32_t n_indexed;          /* entries of the two */
    struct vregion *current;     /* allocating from */
    uint64_t frag_addr;          /* fragment block being filled */
    uint32_t frag_left;
    struct vfreeq {
        struct vfree *e; /* FIFO */
        size_t first, n, cap;
    } freeq[3]; /* by kind; and what was a foreign free, as kind 1 */
    struct vmfs_run { uint64_t addr; uint64_t units; } pool[VSPACE_POOL]; /* runs kept for checkpoints */
    unsigned n_pool;
    uint64_t pool_units, pool_sure, pool_leaves; /* all; those that surely find use, whatever the nodes; as leaves of the longest */
    struct vdiscard {            /* discard.c: reusable, but still busy: the device is told first */
        struct vmfs_run *run;
        size_t n;
        uint64_t units;          /* with those it is being told of */
        bool running;
    } discard;
    struct vmfs_run *foreign; /* freed here, leased elsewhere */
    size_t n_foreign, cap_foreign;
    uint64_t foreign_units;      /* in all */
    uint64_t foreign_ticket;     /* as in struct vfree: of the newest */
    bool foreign_dirty;
    uint64_t aux_blob_addr;      /* where the foreign frees that do not fit the aux block are */
    uint32_t aux_blob_units;
    uint64_t next_ticket;
    struct vticket *oldest, *newest;
    struct vmoved moved[VMFS_DEVICES_MAX];
    struct evac *evac;           /* a device is being emptied here */
    bool recounting;             /* stale devices are counted anew: what is freed there meanwhile is listed */
    uint32_t moves;              /* how often addresses were settled anew */
    bool any_moved;
    uint64_t free_elsewhere;     /* free units of regions not leased here that can be had, as of their last checkpoint and of the last look */
    struct gr_fmutex lease_lock; /* a region comes or goes; taken after ckpt_lock */
    /* recall.c */
    struct gr_fmutex give_lock;  /* one fiber gives regions back; taken before ckpt_lock */
    unsigned stay;               /* somebody relies on what is leased here: nothing is given back */
    uint64_t taken, taken_before; /* units, since the last checkpoint and before it, and since something was given back */
    bool asking, tending;        /* a fiber asks the others; looks after what is idle */
    bool asked_got, asked_well;  /* the last one that asked got something, and it was worth asking */
    uint64_t asked_ns, looked_ns, unrecovered_ns; /* it ended then; the last look at what is free elsewhere; that a host could not be recovered */
};
struct vticket { /* somebody may still read units freed after now */
    uint64_t number;
    struct vticket *prev, *next;
};

/* ---------- journal ---------- */
struct vjournal {
    uint64_t addr;
    uint32_t units;
    uint64_t next_seq;   /* of the frame being filled */
    uint64_t head_off;   /* where it goes */
    uint64_t tail_seq, tail_off;
    uint32_t used;       /* units between tail and head */
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
};

struct vseen { /* what is known of the process that answers for a slot */
    uint64_t nonce, at_ns; /* it answered then */
    bool ending;           /* a fiber asks, ejects or recovers it, */
    uint64_t asked_ns, ejected_ns; /* since then; 0: not (yet) */
    unsigned silent_ms;            /* as counted by who asks */
};
struct vlife {
    uint64_t key;              /* ours, at the fence of every device and in our slot */
    bool fences;               /* the devices are logical units with a fence */
    bool alone;                /* logical units without: alone.c */
    struct gr_fmutex swapping; /* vdev_swap() */
    bool ejected;              /* by another host */
    bool watching, stop;
    unsigned *charge, n_charge; /* slots we answer for */
    struct vseen *seen;        /* [slots] or NULL */
    struct gr_fqueue wake, ended;
    struct gr_bdev *entered[VMFS_DEVICES_MAX];
    struct gr_listener listener[VMFS_DEVICES_MAX];
    unsigned n_entered;
};

struct vdev {
    struct gr_bdev *bdev;
    struct gr_chan *ch;
    uint8_t uuid[16]; /* as its superblock says */
    bool no_discard;  /* it has said so */
    bool failed;      /* a flush of it failed, or a write of metadata */
    bool looking;     /* a fiber finds out whether it is lost */
    unsigned silent;  /* looks of ours that device 0 answered in a row, and it nothing */
    unsigned users;   /* metadata I/O under way */
};
#define VBOUNCE_CLASSES 3u
#define VOBJ_HASH 1024u
struct vmfs {
    struct gr_loop *loop;
    struct vdev dev[VMFS_DEVICES_MAX];
    unsigned n_dev; /* opened: sb.n_devices, and perhaps one that is about to be added */
    struct vsuper sb;
    enum vmfs_role role;
    bool joined, leaving, fenced, replaying;
    char fence_reason[192];
    struct vlost lost; /* devices != 0: they are why it was given up */
    struct gr_fqueue looks; /* loss.c */
    unsigned slot;
    struct vslot me;
    struct vlife life;
    struct vmfs_join_opts opts; /* strings owned below */
    char *host_name, *address, *portal;
    uint8_t link_key[32];
    uint64_t features; /* incompat features that we know, or say that we do */
    struct vjournal j;
    struct vspace sp;
    struct vobj *objs[VOBJ_HASH];
    struct gr_fmutex ns_lock;     /* namespace operations of this process */
    unsigned ns_made;             /* folders that the one under way makes */
    struct gr_fmutex hold_lock;   /* objects come into the table and leave it one at a time; taken before ckpt_lock */
    struct gr_fmutex member_lock; /* one device is opened or added at a time; taken before ns_lock */
    struct gr_fmutex adopt_lock;  /* a superblock that another host wrote becomes ours: grow.c; nothing is locked behind it */
    struct gr_fmutex settle_lock; /* what addresses mean does not change meanwhile; taken before ckpt_lock */
    struct gr_fmutex ckpt_lock;
    uint64_t ckpt_started, ckpt_done; /* numbers of checkpoints */
    uint64_t leaves_moved;            /* counts how often some began to get new places */
    uint64_t reserved_units, reserved_leaves; /* sums over the objects held here */
    size_t dirty_nodes, max_dirty_nodes, dirty_hanging; /* of the map: not written yet; and bytes that hang on them (struct mnode) */
    size_t dirty_objects;
    size_t map_bytes, map_limit; /* of map nodes in memory; to throw out clean ones above it */
    uint32_t map_loads;
    unsigned background;          /* fibers that must end before leave */
    bool resuming, resume_again; /* what others left to be given back is still being looked for; and once more */
    struct gr_fqueue background_q;
    bool ckpt_running_auto, ckpt_cleaning;
    uint64_t ckpt_rounds;         /* checkpoints in the background that ended */
    bool ckpt_writing;            /* nodes that count as clean may still be on their way to the device: memory is kept */
    uint64_t aux_generation;
    uint32_t next_inode; /* where to look for a free one */
    struct vmfs_stats stats;
    uint64_t rotten_addr, rotten_ns; /* what was told last of damaged data, and when */
    bool scrubbing;
    bool low;                     /* it was told that little space is left */
    struct vbounce {              /* bounce.c */
        struct kept *kept[VBOUNCE_CLASSES];
        unsigned n_kept[VBOUNCE_CLASSES];
        size_t in_use; /* bytes */
        struct gr_fqueue freed;
    } bounce;
    struct rop *free_rops;        /* pool of tree_io.c */
    struct dop *free_dops;        /* pool of disk.c */
};

/* ---------- device.c: synchronous-looking metadata I/O (fiber) ---------- */
int vdev_read(struct vmfs *v, uint64_t addr, uint32_t units, void *buf);
int vdev_write(struct vmfs *v, uint64_t addr, uint32_t units, const void *buf, uint32_t flags);
/* Compare-and-write of one unit. Where one host is alone the device need not be able to. */
int vdev_swap(struct vmfs *v, uint64_t addr, const void *was, const void *now);
int vdev_flush(struct vmfs *v); /* all devices */
struct vread { /* one of several that are made at once */
    uint64_t addr;
    uint32_t units;
    int status; /* out */
    void *buf;
};
void vdev_read_all(struct vmfs *v, struct vread *reads, unsigned n);
/* The same in two steps: each is begun, then all of a set are waited for. @r and @buf stay until then. */
struct vreads { /* a set; zero at first */
    unsigned running;
    struct gr_fiber *waiting;
};
struct vreading {
    struct gr_bio bio;
    struct iovec iov;
    struct vreads *set;
    struct vdev *dev; /* NULL: nothing was begun */
    int status;       /* out: 0, or why not */
};
void vdev_read_begin(struct vmfs *v, struct vreads *set, struct vreading *r, uint64_t addr, uint32_t units, void *buf); /* [sync] */
void vdev_reads_wait(struct vreads *set);
void *vunits_alloc(uint32_t units); /* aligned, zeroed; free() */
/* Give the volume up on this host: nothing is acknowledged any more. [sync] */
void vmfs_fence(struct vmfs *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void vmfs_tell_all(struct vmfs *v, enum gr_event ev); /* whoever has a disk open. [sync] */
void vmfs_warn(struct vmfs *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---------- super.c ---------- */
int vsuper_read(struct vmfs *v, unsigned dev, struct vsuper *ret, struct gr_err *err); /* the newer valid copy of a device */
int vsuper_write(struct vmfs *v, const struct vsuper *s, unsigned dev, struct gr_err *err); /* both copies of a device, durable; none of one that is gone */
/* The same on every device the volume has in @s, device 0 first: once it is there the change is made. */
void vsuper_ours(struct vmfs *v, const struct vsuper *s); /* it was written: v->sb from here on, unless that is newer by now [sync] */
int vsuper_write_all(struct vmfs *v, const struct vsuper *s, struct gr_err *err); /* -EAGAIN: another host was quicker, nothing was changed */

/* ---------- mkfs.c ---------- */
/* Where things are on device @dev, of @units, of a volume that has the devices before it: rest of the entry, and *ret_table (NULL: its
 * regions are in the common table). @used: units of it that tables take. */
int mkfs_device(struct vsuper *s, unsigned dev, uint64_t units, uint64_t used, struct gr_err *err);
/* The same for a device that brings a table of its own. */
int mkfs_member(struct vsuper *s, unsigned dev, uint64_t units, struct gr_err *err);
int mkfs_clear(struct vmfs *v, unsigned dev, uint64_t end); /* units below @end read as zeros */
void mkfs_uuid(struct vmfs *v, uint8_t ret[16]);

/* ---------- member.c: devices that join a volume ---------- */
/* A device is opened beside those of the volume, behind the fence; it is no member yet. Its number, or an error. */
int vmember_open(struct vmfs *v, struct gr_bdev *bdev, struct gr_err *err);
void vmember_close(struct vmfs *v); /* the last one opened, which did not become a member */

/* ---------- volume.c ---------- */

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
/* Object blob (content or directory) to and from a vobj. */
int vobj_blob_encode(const struct vobj *o, struct gr_buf *ret);
int vobj_blob_decode(struct vobj *o, const void *blob, size_t len, struct gr_err *err);
/* Nodes. encode_size: units the node takes. */
uint32_t mnode_units(const struct mnode *n);
void mnode_encode(const struct vmfs *v, const struct mnode *n, uint64_t addr, void *buf);
int mnode_decode(struct vmfs *v, const void *buf, uint32_t units, uint64_t addr, unsigned level, struct mnode **ret, struct gr_err *err);

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
int journal_seal(struct vmfs *v);         /* and what it wrote may be overwritten where it lies */
int journal_try_seal(struct vmfs *v);     /* the same, without ever waiting for a checkpoint: -EAGAIN when the journal is too full */
void journal_data_written(struct vobj *o, uint32_t devs); /* data of it reached devices @devs (a bit each): a flush is owed [sync] */
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
void journal_start(struct vmfs *v);
void journal_stop(struct vmfs *v);

/* ---------- journal_read.c ---------- */
/* Walk the frames from the tail: fn gets header fields and payload. Ends at the first that is not valid. */
struct vframe {
    uint64_t seq, off, watermark, covers;
    uint32_t units, kind, n_records, part, parts, payload, crc, previous;
};
int journal_scan(struct vmfs *v, int (*fn)(void *arg, const struct vframe *f, const uint8_t *payload), void *arg, struct vframe *ret_last,
                 struct gr_err *err);

/* ---------- recall.c: regions go to whoever needs them ---------- */
/* Nothing more can be leased, and a write of @o, admitted at @epoch, needs some: others are asked to give back what they do not need. True: try
 * again; false: they were asked a moment ago, have nothing, or the write is late (fiber). */
bool space_ask(struct vmfs *v, const struct vobj *o, uint64_t epoch);
/* @more units are to be promised to thick disks, beyond what is: so much is leased here, or the others are asked for it. 0; -GR_ENOSPACE (fiber). */
int space_back(struct vmfs *v, uint64_t more);
void space_promised(struct vmfs *v); /* a disk came here: what it was promised is leased, in the background [sync] */
int space_look(struct vmfs *v, struct gr_err *err); /* how much is free elsewhere is read anew (fiber) */
void space_tend(struct vmfs *v); /* behind a checkpoint: what is idle is given back, once in a while others' headers are read [sync] */
void ticket_open(struct vmfs *v, struct vticket *t);
void ticket_close(struct vmfs *v, struct vticket *t);

static inline bool vdev_missing(const struct vmfs *v, unsigned dev) /* a device that we joined without [sync] */
{
    return !v->dev[dev].ch && v->sb.dev[dev].state != VMFS_DEVICE_GONE;
}
static inline bool space_leaving(const struct vmfs *v, uint64_t addr) /* nothing there is overwritten, shared or added to [sync] */
{
    unsigned dev = vmfs_addr_dev(addr);
    return v->sb.dev[dev].state != VMFS_DEVICE_IN_USE || vdev_missing(v, dev);
}
bool vdev_all_in_memory(struct vmfs *v);
static inline bool vdev_stale(const struct vmfs *v, unsigned dev) { return v->sb.dev[dev].stale; }
static inline bool space_closed(const struct vmfs *v, uint64_t addr) /* nothing is taken there [sync] */
{
    return space_leaving(v, addr) || vdev_stale(v, vmfs_addr_dev(addr));
}
int vdev_all_here(struct vmfs *v, const char *what, struct gr_err *err); /* -ENODEV when one is missing: @what cannot be done */
void space_close(struct vmfs *v);                 /* regions of devices that leave are closed, those of others open [sync] */
int space_left(struct vmfs *v, struct vregion *r, uint32_t at, uint32_t units); /* they lie elsewhere now. 0; -ENOMEM [sync] */
void space_forget(struct vmfs *v, unsigned dev);  /* it is gone, and its regions with it [sync] */
uint64_t space_unsettled(const struct vmfs *v, unsigned dev); /* units of it that are taken, but not yet used nor waiting to be free [sync] */

/* ---------- moved.c: what lay on a device that leaves ---------- */
uint64_t moved_look(const struct vmfs *v, uint64_t addr, uint32_t units, uint32_t *ret_units);
/* Where the unit at @addr lies now; *ret_units (may be NULL): so many from there on, at most @units, lie behind each other. 0: not on the
 * list, where it should be [sync]. */
static inline uint64_t moved_addr(const struct vmfs *v, uint64_t addr, uint32_t units, uint32_t *ret_units)
{
    if (ret_units)
        *ret_units = units;
    return v->sp.any_moved && addr ? moved_look(v, addr, units, ret_units) : addr;
}
/* The same where space is given back or counted: what a checkpoint under way moves counts as moved already [sync]. */
uint64_t moved_owned(const struct vmfs *v, uint64_t addr, uint32_t units, uint32_t *ret_units);
int moved_entry(struct vmfs *v, struct mentry *e); /* addresses of a leaf's entry, just decoded [sync] */
void moved_settle(struct vmfs *v);                 /* all addresses in memory [sync] */
int moved_add(struct vmoved *m, struct vmove e);   /* behind the others; joined where it can be. 0; -ENOMEM [sync] */
size_t moved_find(const struct vmoved *m, uint64_t unit); /* the first entry that ends behind @unit [sync] */
int moved_load(struct vmfs *v, struct gr_err *err); /* the lists that the superblock names (fiber) */
void moved_done(struct vmfs *v);
/* vhdr_check() of a block that may have been moved since it was written. */
int vblock_check(const struct vmfs *v, const void *block, unsigned type, uint32_t units, uint64_t addr, struct gr_err *err);

/* ---------- data_crc.c: datastores that keep a CRC32C of every piece ---------- */
static inline bool vcrc_kept(const struct vmfs *v) { return v->sb.incompat & VMFS_INCOMPAT_DATA_CRC; }
static inline uint32_t leaf_units_max(const struct vmfs *v) { return vcrc_kept(v) ? VMFS_LEAF_UNITS_MAX_CRC : VMFS_LEAF_UNITS_MAX; }
struct vcrc_want { /* a piece that is read */
    uint64_t addr; /* 0: it has no data */
    uint32_t crc;
};
/* Is what was read for @bio (whole pieces) what was written? 0; -EIO: it is told, counted, and bio->bad_off says where [sync]. */
int vcrc_verify(struct vobj *o, struct gr_bio *bio, const struct vcrc_want *want);
/* A read that begins or ends inside a piece: the whole pieces are read and verified (any context; completes the bio). */
void vcrc_read_part(struct vobj *o, struct mtree *t, struct gr_bio *bio);
/* CRCs of @count pieces of @iov; NULL: out of memory. */
uint32_t *vcrc_of(const struct iovec *iov, int iovcnt, uint64_t count);

/* ---------- map.c ---------- */
struct mnode *mnode_new(struct vmfs *v, unsigned level);
void mnode_set_dirty(struct vmfs *v, struct mnode *n, bool dirty);
void mnode_count(struct vmfs *v, struct mnode *n); /* what hangs on its entries changed otherwise than by mleaf_set() */
void mnode_put(struct vmfs *v, struct mnode *n);
struct mnode *mnode_get(struct mnode *n);
void mtree_done(struct vmfs *v, struct mtree *t);
void mtree_share(struct mtree *dst, const struct mtree *src); /* a second holder of the same nodes [sync] */
unsigned mtree_level_for(uint64_t pieces);
uint64_t mnode_span(unsigned level); /* pieces covered by a node of this level */
/* Leaf holding @piece if the path is in memory [sync]. *ret NULL: nothing was ever written there. -EAGAIN: must be loaded. */
int mtree_peek(struct mtree *t, uint64_t piece, struct mnode **ret);
/* Load the path to @piece (fiber). Afterwards mtree_peek succeeds until the next suspension. */
int mtree_load(struct vobj *o, struct mtree *t, uint64_t piece, struct gr_err *err);
/* First piece >= @piece below which something may be mapped or born after @since, skipping pruned subtrees; loads interior nodes.
 * Returns UINT64_MAX when there is none. */
int mtree_next(struct vobj *o, struct mtree *t, uint64_t piece, uint64_t since, uint64_t *ret, struct gr_err *err);
/* Slots of a tree: where a node hangs. */
static inline uint64_t slot_addr(const struct mchild *c) { return c->mem ? c->mem->ptr.addr : c->ptr.addr; }
static inline uint64_t slot_birth(const struct mchild *c) { return c->mem ? c->mem->birth : c->ptr.birth; }
static inline bool slot_empty(const struct mchild *c) { return !c->mem && !c->ptr.addr; }
/* The very same node, with the same content. */
static inline bool slot_same(const struct mchild *a, const struct mchild *b)
{
    if (a->mem && a->mem == b->mem)
        return true;
    return slot_addr(a) && slot_addr(a) == slot_addr(b) && !(a->mem && a->mem->dirty) && !(b->mem && b->mem->dirty);
}
/* The slot of the node of @level that holds @piece [sync]. NULL: *ret_absent (nothing was ever written there, or the tree has no
 * such level), else the path must be loaded (mtree_load). */
struct mchild *mtree_slot(struct mtree *t, unsigned level, uint64_t piece, bool *ret_absent);
void mtree_grow(struct vmfs *v, struct mtree *t, unsigned level, uint64_t birth); /* @birth: the tree's epoch [sync] */
/* One piece of an entry. */
struct mpiece {
    uint64_t addr, birth;
    enum vmfs_piece_state state;
    uint32_t crc; /* of data, where the volume keeps it */
};
static inline struct mpiece ment_piece(const struct mentry *e, unsigned i)
{
    struct mpiece p;
    unsigned st = (e->written >> i & 1) | (e->zero >> i & 1) << 1;
    p.state = (enum vmfs_piece_state)st;
    p.crc = e->crc ? e->crc[i] : 0;
    if (e->px) {
        p.addr = e->px->addr[i];
        p.birth = e->px->birth[i];
    } else {
        p.addr = st ? e->addr + i : 0;
        p.birth = st ? e->birth : 0;
    }
    return p;
}
/* Make the path to @piece in the live tree of @o private and dirty; the path must be in memory [sync]. NULL: -ENOMEM. */
struct mnode *mtree_own(struct vobj *o, struct mtree *t, uint64_t piece, uint64_t birth);
/* A late write belongs to every tree frozen since it was admitted, and to the live head. All that shared the path to @piece share it
 * afterwards, too; what trees from before the write have stays as it is. Paths are in memory [sync]. */
struct late {
    struct mtree **tree; /* oldest first, the live head last */
    uint64_t *epoch;     /* of each */
    unsigned n;
    uint64_t piece, birth;
    uint64_t before; /* epoch of the tree the oldest one grew from */
};
/* The leaves to change: ret_leaves[i] of tree[i], NULL where an earlier one is shared. 0 or -ENOMEM. */
int mtree_own_late(struct vobj *o, const struct late *l, struct mnode **ret_leaves);
/* What becomes of @count pieces from @piece on. */
struct map_change {
    uint64_t piece, addr, birth, seq;
    uint32_t count;
    enum vmfs_piece_state state;
    const uint32_t *crc; /* DATA: of each piece; NULL: not known */
    bool durable;        /* DATA: it was before the record */
    bool shared;         /* … and is somebody's already */
};
/* Change pieces of one leaf, already owned [sync]. Old units are handed to @dropped(arg, piece, old) when owned. */
int mleaf_set(struct vmfs *v, struct mnode *leaf, const struct map_change *c, void (*dropped)(void *arg, uint64_t piece, const struct mpiece *old), void *arg);
void map_evict(struct vmfs *v); /* keep the cache within its limit [sync] */

/* Load the root of a tree of which nothing is in memory (fiber). */
int mtree_load_root(struct vobj *o, struct mtree *t, struct gr_err *err);

/* ---------- object.c ---------- */
struct vobj *vobj_find(struct vmfs *v, uint64_t id);          /* held here? [sync] */
/* Lock and load an object. -GR_ELOCKED with the holder named; *ret_owner its slot. Waits up to @wait_ms for it. */
int vobj_hold(struct vmfs *v, uint64_t id, unsigned wait_ms, struct vobj **ret, int *ret_owner, struct gr_err *err);
/* Give the lock up (after a checkpoint); frees the memory. */
int vobj_release(struct vmfs *v, struct vobj *o, struct gr_err *err);
/* The same unless it is in use or changed since the last checkpoint: 1. */
int vobj_release_idle(struct vmfs *v, uint64_t id, struct gr_err *err);
bool vobj_unchanged(struct vobj *o); /* a peeked object is still at home as it was read (fiber) */
void vobj_free(struct vobj *o);
/* Read an object someone else may own (home state, as of its last checkpoint), not locked, not in the table. */
int vobj_peek(struct vmfs *v, uint64_t id, struct vobj **ret, struct gr_err *err);
/* The object as it is here, or else at home: then it is *ret_peeked, too, the caller's to free. */
int vobj_look(struct vmfs *v, uint64_t id, struct vobj **ret, struct vobj **ret_peeked, struct gr_err *err);
int vobj_new(struct vmfs *v, enum vmfs_type type, struct vobj **ret, struct gr_err *err); /* free inode, locked, in the table */
struct vsnap *vobj_snap(struct vobj *o, uint64_t id);
struct vsnap *vobj_snap_named(struct vobj *o, const char *name);
/* Its inode or blob differs from home; a checkpoint (or undoing it) ends that. */
static inline void vobj_touch(struct vobj *o)
{
    o->v->dirty_objects += !o->dirty;
    o->dirty = true;
}
static inline void vobj_clean(struct vobj *o)
{
    o->v->dirty_objects -= o->dirty;
    o->dirty = false;
}
void vobj_stat(struct vobj *o, struct vmfs_stat *ret); /* owner_slot: -1 */
/* Set an attribute in memory (@len 0: remove it): by its record, or for an object that is just being made. */
int vobj_attr_put(struct vobj *o, const char *key, size_t key_len, const void *val, size_t len);
/* Bytes of a physical block as reported to initiators: the attribute of that name, 512 or a piece. */
#define VMFS_ATTR_PHYSICAL "physical-block"
uint32_t vobj_physical_block(const struct vobj *o);
int vobj_set_physical_block(struct vobj *o, uint32_t bytes);
/* How the disk shows itself as a logical unit. */
#define VMFS_ATTR_LUN "lun"
struct vmfs_lun vobj_lun(const struct vobj *o);
static inline bool vobj_template(const struct vobj *o) { return o->is_template; }
void vobj_attrs_seen(struct vobj *o); /* they have changed, or were read [sync] */
struct vbookmark *vobj_bookmark_named(struct vobj *o, const char *name);

/* object_name.c: "DATASTORE/PATH", or "DATASTORE, object N" of one that has no name (fiber). */
void vobj_name(struct vmfs *v, uint64_t id, char *out, size_t size);

/* ---------- record.c: make, apply, replay ---------- */
/* Add the record to the journal and apply it [sync]. Everything it touches must be in memory. */
int record_do(struct vobj *o, void *rec, size_t len, struct gr_err *err);
int record_apply(struct vobj *o, const void *rec, uint64_t seq, struct gr_err *err);
/* Map change of one leaf's range. @crc: of data that replay shall doubt. Units must be reserved (space_take_*). */
int record_map(struct vobj *o, uint64_t piece, uint32_t count, uint64_t addr, uint64_t birth, enum vmfs_piece_state state, const uint32_t *crc);
/* Pieces become one more owner of units whose data is durable; behind it, without a suspension between, record_epoch(). */
int record_share(struct vobj *o, uint64_t piece, uint32_t count, uint64_t addr, uint64_t birth, const uint32_t *crc);
/* Data that was durable before. @crc: NULL only where the volume keeps none. */
int record_durable(struct vobj *o, uint64_t piece, uint32_t count, uint64_t addr, uint64_t birth, const uint32_t *crc);
int record_epoch(struct vobj *o);
/* Is a unit born at @birth at @piece still needed by a snapshot (or origin) the tree with parent @parent_snap grew from? */
bool held_by_ancestors(struct vobj *o, uint64_t parent_snap, uint64_t birth, uint64_t piece_end);
/* Has a snapshot been taken since epoch @birth, that is still in the table? Then a map change of that birth belongs to it, too. */
bool frozen_since(struct vobj *o, uint64_t birth);

/* What a thick or eager disk needs to overwrite all it has, when nothing may be overwritten where it lies any more; thin: 0 [sync]. */
uint64_t vobj_overwrite_units(const struct vobj *o);
int record_promise(struct vobj *o, struct gr_err *err); /* so much is promised to it from now on */
void reserve_set(struct vobj *o, uint64_t units); /* promised overwrite space, counted for the volume [sync] */
uint64_t reserve_leaves(const struct vobj *o, uint64_t units); /* of its map that overwriting so many units may need anew, at most [sync] */

/* ---------- ckpt.c ---------- */
int ckpt_run(struct vmfs *v);
void ckpt_kick(struct vmfs *v); /* start one in the background when due [sync] */
void ckpt_lease_foreign(struct vmfs *v); /* regions that something was freed in are leased, and have it, where they can be */
int ckpt_background(struct vmfs *v); /* start one unless one is running; v->ckpt_rounds counts those that ended [sync] */

/* ---------- replay.c ---------- */
int replay_run(struct vmfs *v, struct gr_err *err); /* of v->slot, whose life lock is held */
int foreign_load(struct vmfs *v, struct gr_err *err); /* frees an earlier holder of this slot left */
/* The list of foreign frees of @slot, as it is at home: fn() of each run, whose address is not checked. -GR_ECORRUPT, or what fn() returned. */
int foreign_read(struct vmfs *v, unsigned slot, int (*fn)(void *arg, uint64_t addr, uint64_t units), void *arg, struct gr_err *err);

/* ---------- range.c [sync]: admission of operations on a disk ---------- */
/* Ask for a range (first, end, grant set): r->grant() is called now or when everything before it that overlaps is done. */
void range_enter(struct vobj *o, struct vrange *r);
void range_leave(struct vobj *o, struct vrange *r);
/* Stop admission and wait until no write is in flight; admit again (fiber). */
void disk_freeze(struct vobj *o);
void disk_thaw(struct vobj *o);
void disk_wait_late(struct vobj *o); /* until no write of an older epoch is in flight */

/* ---------- tree_io.c: reading trees ---------- */
/* READ of @bio from a tree (any context; completes the bio). Bytes behind @size read as zeros. */
void tree_read(struct vobj *o, struct mtree *t, struct gr_bio *bio);
int tree_read_wait(struct vobj *o, struct mtree *t, void *buf, uint64_t len, uint64_t off); /* fiber */
/* EXTENTS of @bio (any context). @o: whose lineage counts for bio->base; @lineage, @epoch: of the tree. */
void tree_extents(struct vobj *o, struct mtree *t, uint64_t lineage, uint64_t epoch, struct gr_bio *bio);
/* Is @base in the past of (@lineage, @epoch)? 0 and its epoch; -ENOENT and why. */
int lineage_since(struct vobj *o, uint64_t lineage, uint64_t epoch, const struct gr_bookmark *base, uint64_t *ret_since, struct gr_err *err);
/* Load everything a map change of [piece, piece+count) with this birth needs, so that record_map() can follow at once. */
int map_load_for(struct vobj *o, uint64_t piece, uint32_t count, uint64_t birth, struct gr_err *err);

/* ---------- bounce.c ---------- */
uint8_t *vbounce_get(struct vmfs *v, size_t len); /* NULL: all are in use, or out of memory [sync] */
void vbounce_put(struct vmfs *v, uint8_t *buf, size_t len); /* [sync] */
int vbounce_wait(struct vmfs *v, size_t len, uint8_t **ret); /* the same, when others have put theirs back. 0; -ENOMEM */
void vbounce_done(struct vmfs *v); /* [sync] */

/* ---------- reap.c ---------- */
void reap_kick(struct vobj *o);    /* give back deleted snapshots in the background [sync] */
bool reap_pending(struct vobj *o); /* something is being given back, or could be [sync] */
bool reap_parked(struct vobj *o);  /* it was removed, and what is left of it stays as long as there are clones of it [sync] */

/* ---------- disk.c, open.c: what files.c does differently ---------- */
int disk_attr_record(struct vmfs_disk *d, const char *key, const void *val, size_t len, struct gr_err *err); /* not durable yet */
int disk_attr_do(struct vmfs_disk *d, const char *key, const void *val, size_t len, struct gr_err *err); /* the same [sync]; the journal has room */
int disk_open(struct vmfs *v, uint64_t id, const char *path, unsigned wait_ms, struct vmfs_disk **ret, int *ret_owner_slot, struct gr_err *err);
int disk_give_up(struct vmfs *v, uint64_t id, const char *path, struct gr_err *err);
/* Cut or grow, frozen (fiber). */
int disk_set_size(struct vmfs_disk *d, uint64_t size, struct gr_err *err);

/* ---------- files.c ---------- */
#define VMFS_ATTR_POSIX "posix"
void vposix_put(const struct vmfs_posix *p, struct vmfs_posix_disk *d); /* [sync] */
bool vposix_get(const struct vmfs_posix_disk *d, struct vmfs_posix *ret); /* false: rule 7 [sync] */

/* ---------- ns.c ---------- */
/* Between ns_begin() and ns_end(): a directory of the tree, its entries. */
int dir_load(struct vmfs *v, uint64_t id, struct vobj **ret, struct gr_err *err);
struct vdirent *dir_find(struct vobj *dir, const char *name, size_t n);                    /* [sync] */
int dir_add(struct vobj *dir, const char *name, size_t n, uint64_t id, uint16_t type);     /* [sync] */
void dir_remove(struct vobj *dir, uint64_t id);                                            /* [sync] */
int dying_add(struct vmfs *v, uint64_t id, uint16_t type, struct gr_err *err);
/* Lock the namespace; home with what changed (unless @r < 0) and unlock. */
int ns_begin(struct vmfs *v, struct vobj **ret_root, struct gr_err *err);
/* Between them: the directory of the last component (@make: missing ones are made), and the last directory of the path that there is. */
int ns_walk_parent(struct vmfs *v, struct vobj *root, const char *path, bool make, struct vobj **ret_dir, const char **ret_name, struct gr_err *err);
int ns_walk_existing(struct vmfs *v, struct vobj *root, const char *path, struct vobj **ret, struct gr_err *err);
/* Without the lock, in what is home. */
int ns_lookup(struct vmfs *v, const char *path, uint64_t *ret_id, enum vmfs_type *ret_type, struct gr_err *err);
int ns_keepsake(const struct vobj *o, const char *path, struct gr_err *err); /* -GR_ELOCKED: a template, or one of its snapshots is protected */
int ns_must_be_free(struct vmfs *v, const char *path, struct gr_err *err); /* -EEXIST, or what is wrong with it */
int ns_dir(struct vmfs *v, const char *path, struct vobj **ret, struct gr_err *err); /* a directory, between begin and end */
int ns_end(struct vmfs *v, int r, struct gr_err *err);
int vmfs_refresh(struct vmfs *v, struct gr_err *err); /* grow.c: learn that another host grew the volume */
void vobj_adopt(struct vobj *o); /* object.c: a peeked object joins the table of those held here [sync] */
/* New objects at all @paths, or at none; they and their names go home in one checkpoint, so no more than vmfs_create_max()
 * objects, new folders included. */
struct ns_many {
    enum vmfs_type type;
    int (*init)(void *arg, struct vobj *o);  /* [sync] fills its content before it becomes visible; may be NULL */
    void (*undo)(void *arg, struct vobj *o); /* [sync] of one that init() was called for: it comes to nothing; may be NULL */
    void *arg;
};
int vmfs_create_many(struct vmfs *v, const char *const *paths, unsigned n, const struct ns_many *m, struct gr_err *err);
static inline unsigned vmfs_create_max(const struct vmfs *v) { return GR_MAX(v->j.units / 8, 1u); }
/* New object at @path; init(arg, o) [sync] fills its content before it becomes visible. */
int vmfs_create_with(struct vmfs *v, const char *path, enum vmfs_type type, int (*init)(void *arg, struct vobj *o), void *arg, struct gr_err *err);
/* The object at @from takes the name @to over; what had it goes. */
int ns_replace(struct vmfs *v, const char *from, const char *to, struct gr_err *err);
void ns_destroy(struct vobj *o);              /* a removed object's content goes, in the background */
int ns_bury(struct vobj *o);                  /* … and its inode; 0: @o is gone (fiber) */
/* The origin of a clone, held for one that lets go of it: between them it is in use. */
void origin_let_go(struct vobj *origin, uint64_t snap, const struct vobj *dying); /* [sync] */
void origin_done(struct vobj *origin);        /* origin->users was raised; NULL allowed (fiber) */
int hidden_allowed(struct vobj *o, struct gr_err *err); /* may it be removed while there are clones of it: does every host know of such? */
/* hidden.c: what is deleted keeps its name, and the directory it lay in, while there are clones of it [sync] */
int hidden_name(struct vobj *o, const char *path, uint64_t folder, struct gr_err *err);
uint64_t hidden_from(const struct vobj *o, char ret_path[VMFS_PATH_MAX + 1]); /* both: 0, "" when it is not one of those [sync] */
void ns_undo(struct vmfs *v, struct vobj *o); /* an operation failed: forget what it made */
void inode_clear(struct vmfs *v, struct vobj *o); /* [sync] */
int ns_format_root(struct vmfs *v, struct gr_err *err); /* the root and the directory of dying objects */
void ns_resume(struct vmfs *v); /* go on with what a host that is gone left dying (background) [sync] */
#include "vmfs/dop.h"
#endif
