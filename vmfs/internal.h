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
#include "vmfs/ahead.h"
#include "vmfs/busy.h"
#include "vmfs/cipher.h"
#include "vmfs/due.h"
#include "vmfs/feature.h"
#include "vmfs/files.h"
#include "vmfs/format.h"
#include "vmfs/homeblock.h"
#include "vmfs/journal.h"
#include "vmfs/life.h"
#include "vmfs/map.h"
#include "vmfs/mnode.h"
#include "vmfs/ns.h"
#include "vmfs/quota.h"
#include "vmfs/share.h"
#include "vmfs/space.h"
#include "vmfs/usage.h"
#include "vmfs/vmfs.h"
#include <string.h>

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
    uint64_t data_on[VMFS_DEVICES_MAX]; /* and each of them; */
    uint64_t record_on[VMFS_DEVICES_MAX]; /* the newest frame that tells of data there */
    bool behind;                 /* it may show another disk's bytes: its live head is not read (behind.c) */
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
    struct vahead ahead;
    struct gr_fqueue drained;    /* woken when in_flight or late fall to 0, or frozen ends */
    struct vmfs_disk *handle;    /* the open handle, NULL when closed */
    struct gr_fmutex keys_lock;  /* its block of keys is changed by one at a time; taken before ckpt_lock */
    struct vcipher *cipher;      /* keys.c: encrypted (ino.key_id), and its keys are here */
    uint64_t pinned_snap;        /* peeked by a reader: what its slot pins */
    uint32_t shape;              /* counts changes of which trees there are, and which grew from which */
    bool walker;                 /* a fiber is giving back deleted snapshots */
    struct gr_fqueue settled;
};
struct vmfs_disk {
    struct gr_bdev bdev; /* first member */
    struct vobj *o;
    char *path;
    bool gone; /* volume left or abandoned under it */
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
    struct vrescue *rescue; /* rescue.c: a device is lost for good, and what is left is only read; NULL: an ordinary volume */
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
    struct vdues dues;
    uint64_t leaves_moved;            /* counts how often some began to get new places */
    uint64_t reserved_units, reserved_leaves; /* sums over the objects held here */
    size_t dirty_nodes, max_dirty_nodes, dirty_hanging; /* of the map: not written yet; and bytes that hang on them (struct mnode) */
    size_t dirty_objects;
    size_t map_bytes, map_limit; /* of map nodes in memory; to throw out clean ones above it */
    uint32_t map_loads;
    unsigned background;          /* fibers that must end before leave */
    unsigned settling;            /* so many wait until all is given back that is to be */
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
/* Writes that are made at once (their status is not set): 0, or the first error. Whoever calls it gives the volume up then. */
#define VDEV_WRITES_MAX 4u
int vdev_write_all(struct vmfs *v, struct vread *writes, unsigned n);
void *vunits_alloc(uint32_t units); /* aligned, zeroed; free() */
/* Give the volume up on this host: nothing is acknowledged any more. [sync] */
void vmfs_fence(struct vmfs *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void vmfs_tell_all(struct vmfs *v, enum gr_event ev); /* whoever has a disk open. [sync] */
void vmfs_warn(struct vmfs *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---------- super.c ---------- */
int vsuper_read(struct vmfs *v, unsigned dev, struct vsuper *ret, struct gr_err *err); /* the newer valid copy of a device */
/* Has another taken its place, as the superblocks @all of @n devices say? [sync] */
bool vsuper_replaced(const struct vsuper *s, const struct vsuper *all, unsigned n);
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
int mkfs_clear(struct vmfs *v, unsigned dev, uint64_t from, uint64_t end); /* units from @from to @end read as zeros */
void mkfs_uuid(struct vmfs *v, uint8_t ret[16]);

/* ---------- member.c: devices that join a volume ---------- */
/* A device is opened beside those of the volume, behind the fence; it is no member yet. Its number, or an error. */
int vmember_open(struct vmfs *v, struct gr_bdev *bdev, struct gr_err *err);
void vmember_close(struct vmfs *v); /* the last one opened, which did not become a member */

/* ---------- volume.c ---------- */
int vdevs_open(struct vmfs *v, struct gr_bdev *const *devices, unsigned n, struct gr_err *err); /* in this order, whatever they are */

/* Object blob (content or directory) to and from a vobj. */
int vobj_blob_encode(const struct vobj *o, struct gr_buf *ret);
int vobj_blob_decode(struct vobj *o, const void *blob, size_t len, struct gr_err *err);

static inline bool vdev_missing(const struct vmfs *v, unsigned dev) /* a device that we joined without [sync] */
{
    return !v->dev[dev].ch && v->sb.dev[dev].state != VMFS_DEVICE_GONE;
}
/* Does nothing of what was in its regions exist any more? Then reading it ends with -EIO [sync] */
static inline bool vdev_emptied(const struct vmfs *v, unsigned dev) { return v->sb.dev[dev].emptied; }
static inline bool vdev_no_data(const struct vmfs *v, unsigned dev) { return vdev_missing(v, dev) || vdev_emptied(v, dev); }
static inline bool space_leaving(const struct vmfs *v, uint64_t addr) /* nothing there is overwritten, shared or added to [sync] */
{
    unsigned dev = vmfs_addr_dev(addr);
    return v->sb.dev[dev].state != VMFS_DEVICE_IN_USE || vdev_no_data(v, dev);
}
bool vdev_all_in_memory(struct vmfs *v);
static inline bool vdev_stale(const struct vmfs *v, unsigned dev) { return v->sb.dev[dev].stale; }
static inline bool space_closed(const struct vmfs *v, uint64_t addr) /* nothing is taken there [sync] */
{
    return space_leaving(v, addr) || vdev_stale(v, vmfs_addr_dev(addr));
}
int vdev_all_here(struct vmfs *v, const char *what, struct gr_err *err); /* -ENODEV when one is missing: @what cannot be done */
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
void vcrc_of(const struct iovec *iov, int iovcnt, uint64_t count, uint32_t *ret); /* CRCs of @count pieces of @iov */

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
const struct vattr *vobj_attr(const struct vobj *o, const char *key); /* NULL: there is none [sync] */
void vobj_attrs_sort(struct vobj *o); /* as the others rely on; after they were read [sync] */
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

/* ---------- ns_make.c ---------- */
static inline unsigned vmfs_create_max(const struct vmfs *v) { return GR_MAX(v->j.units / 8, 1u); }
#include "vmfs/dop.h"
#endif
