/* vmfs: the datastore. A volume on one or more devices, joined by hosts through slots; a namespace of directories,
 * regular files and disks; each disk's content a map of 4 KiB pieces with births, journalled per host.
 *
 * The on-disk format is vmfs/format.h; the ideas are in docs/vmfs.md.
 *
 * Thread rule: a volume lives on one loop; every call is made there, in a fiber unless marked "any context", and may
 * suspend. Ownership: what an _open/_join gives is released by _close/_leave; strings in results are copies in place. */
#ifndef VMFS_H
#define VMFS_H
#include "common/bdev.h"
#include "common/fiber.h"

#define VMFS_NAME_MAX 255       /* bytes of one path component */
#define VMFS_PATH_MAX 4096      /* bytes of a path inside the volume */
#define VMFS_VOLUME_NAME_MAX 63
#define VMFS_DEVICES_MAX 32
#define VMFS_ADDRESS_MAX 1023
#define VMFS_BLOCK 65536u       /* bytes: the block */
#define VMFS_PIECE 4096u        /* bytes: the piece, unit of allocation and of change tracking */
#define VMFS_DISK_MAX (1ull << 50) /* bytes: 1 PiB */

struct vmfs;      /* a joined volume */
struct vmfs_disk; /* an open object with content: a disk or a regular file */

/* ---- format, probe ---- */
/* Shared logical units: how long the process of a slot may be silent, when somebody asks, before it is ejected. On files a process
 * that is there is never ejected, and one that is gone is known to be at once. */
enum vmfs_timing {
    VMFS_TIMING_DEFAULT = 0, /* looks once a second; 5 s of silence */
    VMFS_TIMING_FAST = 1,    /* four times a second; 1.5 s */
};
struct vmfs_format_opts {
    const char *name;       /* volume name, 1..63 bytes, [A-Za-z0-9._-], not starting with '.' or '-' */
    bool force;             /* format over foreign data (never over a volume with a living slot) */
    unsigned journal_units; /* 0: by volume size */
    unsigned region_units;  /* 0: by volume size */
    unsigned slots;         /* how many hosts and readers can have joined at once, at most 4096; 0: by volume size, 8 to 64 */
    bool preallocate;       /* write the devices' blocks out first, so that later writes hit allocated space */
    enum vmfs_timing timing;
    bool one_host; /* logical units that fence nobody: one host at a time may join, and nobody takes over but by hand (vmfs_join_opts.gone) */
    bool data_crc;          /* keep a CRC32C of every piece of data, compared at each read; writes then never go where the old data is */
    const uint32_t *tested; /* of each device: VMFS_TESTED_* (vmfs/format.h), kept for later joins; NULL: none was tried */
    uint64_t features;      /* incompat features that it may have; 0: vmfs_features_known() */
};
/* Write a new, empty volume. Refuses anything that already holds data and names it (file system, partition table, volume). */
int vmfs_format(struct gr_loop *loop, struct gr_bdev *const *devices, unsigned n, const struct vmfs_format_opts *opts, struct gr_err *err);
/* What is on a device: "" when it is blank, else a name such as "ext4 file system", "GPT partition table", "Granary datastore 'ds1'". */
int vmfs_probe(struct gr_loop *loop, struct gr_bdev *device, char ret_what[160], struct gr_err *err);

/* ---- join, leave ---- */
enum vmfs_role {
    VMFS_HOST,   /* takes a slot; may own disks and write */
    VMFS_READER, /* takes a slot for pins only; reads snapshots; never writes content */
};
struct vmfs_join_opts {
    enum vmfs_role role;
    uint8_t host_uuid[16];
    const char *host_name;  /* shown to others */
    const char *address;    /* unix socket of this host's storage service, or "" ; at most VMFS_ADDRESS_MAX bytes */
    const char *portal;     /* "host:port" of this host's iSCSI portal, or "" */
    const uint8_t *link_key; /* 32 bytes, copied: by which other hosts know this one on links (common/link.h); NULL: no links */
    const char *gone;       /* where nothing fences: the name of a host of which the caller knows that it is off and stays off: it is taken over
                               from, unless it answers. -ENOENT: no such host has joined. Borrowed until vmfs_join() returns; NULL: none */
    uint64_t features;       /* incompat features of the format that count as known, for tests of releases that know fewer; 0: all that this build knows */
    /* Open @device once more, as another nexus that is registered nowhere: with it each join tries again what hosts rely on. Put by the volume. In a
     * fiber; argument as for warn. An error: it is not tried, and warned of. NULL: only what one nexus can see is looked at. */
    int (*stranger)(void *arg, const struct gr_bdev *device, struct gr_bdev **ret, struct gr_err *err);
    bool rescue;            /* a device is lost for good: what is left is read, nothing is written to any device. No other host uses the volume (vmfs_rescued) */
    const uint64_t *accepted; /* with rescue: objects (vmfs_rescued.id) for which vmfs_accept_loss() was called earlier; borrowed until vmfs_join() returns */
    size_t n_accepted;
    bool degraded;          /* join also without devices that hold no tables: what lies on them cannot be read, all else works */
    /* The key-encryption key @id: 0 and its bytes (32), or -ENOKEY. Asked for when an encrypted disk is opened or made; the bytes are zeroed
     * after use. Any context; may be NULL: no encrypted disk can be opened. */
    int (*kek)(void *arg, uint64_t id, uint8_t ret[32]);
    void *kek_arg;
    size_t map_cache_bytes; /* limit of map nodes in memory, all that belongs to them counted, beyond what is not written yet; 0: 256 MiB */
    size_t check_memory;    /* limit of what a check remembers of units at a time; 0: 256 MiB */
    void (*ejected)(void *arg); /* another host has taken our place: nothing works any more, vmfs_leave() or vmfs_abandon() it and join
                                   again. Any context, nothing of the volume may be called in it; argument as for warn; may be NULL */
    /* A device was lost that the others can do without, and of which it could not be told what was durable: nothing works any more. vmfs_leave()
     * fails, but keeps what the next join has to know, which is to be made without that device (vmfs_info.lost, degraded). Whoever has a disk open
     * got GR_EVENT_EJECTED. Context and argument as for ejected; NULL: the volume just ends on this host. */
    void (*device_lost)(void *arg);
    bool (*in_use)(void *arg, uint64_t id);   /* an object without a name: does another host have it open? Fiber; argument as for warn; may be NULL */
    /* The host in @slot calls vmfs_resume_object(@id): the removal of that can only go on there, and nobody here is at it any more. Fiber; argument
     * as for warn; may be NULL. */
    void (*resume)(void *arg, uint64_t id, unsigned slot);
    void (*warn)(void *arg, const char *text); /* damage repaired from a copy, slots recovered, …; may be NULL */
    void *warn_arg;
    /* Every other host that has joined calls vmfs_quota_recall(): 0, or why one did not. In a fiber; the namespace may be locked. Argument as
     * for warn. NULL: there are no others, or quotas cannot be set. */
    int (*recall)(void *arg, struct gr_err *err);
    /* Every other host that has joined calls vmfs_regions_recall(): 0, or that one did not, which is no error for the caller. In a fiber; argument as
     * for warn; it ends in a bounded time, for writes wait. NULL: there are no others. */
    int (*recall_regions)(void *arg, struct gr_err *err);
};
/* Join: read the superblock (second copy with a warning when the first is damaged), recover dead hosts' slots, take a slot. A device that
 * was about to be added when that ended is left alone, with a warning (vmfs_device_number()).
 * Devices that were tried before they were shared are looked at again: -EOPNOTSUPP when they do not honour any more what they did.
 * Errors: -GR_EFORMAT no datastore, -GR_EVERSION, -GR_ECORRUPT, -GR_ELOCKED no free slot (one_host: another host has one), -ENODEV device missing. */
int vmfs_join(struct gr_loop *loop, struct gr_bdev *const *devices, unsigned n, const struct vmfs_join_opts *opts, struct vmfs **ret,
              struct gr_err *err);
/* Checkpoint, give everything back and leave; all disks must be closed. The handle is gone even when it fails. */
int vmfs_leave(struct vmfs *v, struct gr_err *err);
/* Forget everything at once, as if the process had died (tests, fenced hosts). */
void vmfs_abandon(struct vmfs *v);
/* Change what others see of this host (portal known after listening). */
int vmfs_set_address(struct vmfs *v, const char *address, const char *portal, struct gr_err *err);

struct vmfs_info {
    char name[VMFS_VOLUME_NAME_MAX + 1];
    uint8_t uuid[16];
    uint64_t size, free, metadata; /* bytes; free: what can be had here, with what other hosts lease but would give back (as of their last checkpoints, and of our last look) */
    uint64_t reserved;             /* bytes promised to thick disks for overwrites */
    unsigned n_devices, n_slots, n_regions;
    uint64_t region_bytes, journal_bytes;
    unsigned version;
    enum vmfs_timing timing;
    bool one_host;    /* its devices are logical units that fence nobody: no other host can join meanwhile */
    bool data_crc;      /* pieces of data have a CRC32C */
    struct vmfs_scrubbed { /* the last scrub, by whichever host; started_s 0: there was none */
        int64_t started_s, ended_s; /* seconds since 1970; ended_s 0: it was broken off, or goes on */
        uint64_t bytes, bad_pieces, errors;
    } scrubbed;
    unsigned n_missing; /* devices it was joined without */
    unsigned n_stale;   /* devices that were lost: nothing new is put there until vmfs_repair() has counted them anew */
    uint32_t missing, stale; /* those, a bit for each number */
    uint32_t lost;      /* fenced: because these were lost, a bit for each number */
    bool shared_luns; /* its devices are logical units that fence lost hosts */
    bool rescue; /* joined for reading what a lost device has left: vmfs_rescued() */
    bool fenced; /* this host gave the volume up; `fence_reason` says why */
    char fence_reason[192];
};
void vmfs_info(struct vmfs *v, struct vmfs_info *ret); /* any context */
uint64_t vmfs_features_known(void); /* incompat features that this build knows */
/* Could a build that knows @features (0: of the first releases) join? 0, or -GR_EVERSION. */
int vmfs_known_to(const struct vmfs *v, uint64_t features, struct gr_err *err);
struct vmfs_slot_info {
    unsigned slot;
    uint64_t generation;
    const char *state; /* "free", "host", "reader", "replaying" */
    bool alive, self;
    uint8_t host_uuid[16];
    char host_name[64], portal[128];
    char address[VMFS_ADDRESS_MAX + 1];
    uint8_t link_key[32]; /* zero: none */
};
/* Has a host with this key joined? 0 and its name, or -ENOENT. Nobody is asked whether it lives. */
int vmfs_link_known(struct vmfs *v, const uint8_t key[32], char ret_host[64], struct gr_err *err);
unsigned vmfs_own_slot(const struct vmfs *v); /* of this host; any context. A host that comes back gets the same one when it is still free */
/* One slot, all slots. On shared logical units a host that may be gone is asked, which takes seconds if it is. */
int vmfs_slot(struct vmfs *v, unsigned slot, struct vmfs_slot_info *ret, struct gr_err *err);
int vmfs_slots(struct vmfs *v, void (*fn)(void *arg, const struct vmfs_slot_info *s), void *arg, struct gr_err *err);
/* The same of one slot without asking anybody: `alive` says nothing. */
int vmfs_slot_peek(struct vmfs *v, unsigned slot, struct vmfs_slot_info *ret, struct gr_err *err);
/* How far this host is with taking over from the host in @slot; false: it is not at it. Milliseconds. Any context. */
struct vmfs_ending {
    bool asked;   /* whether it lives, on shared logical units; else its process is known to be gone */
    bool ejected; /* nothing of it reaches the volume any more: its journal is replayed */
    uint64_t asked_ms, ejected_ms;   /* so long ago */
    unsigned silent_ms, patience_ms; /* since it was asked; so long it may be */
};
bool vmfs_ending(const struct vmfs *v, unsigned slot, struct vmfs_ending *ret);
/* Take over dead hosts' slots now: replay and free them. Returns how many. */
int vmfs_recover(struct vmfs *v, struct gr_err *err);
int vmfs_recover_slot(struct vmfs *v, unsigned slot, struct gr_err *err); /* only this one: 1, or 0 when it lives or is free */
/* The volume learns that its device(s) grew; new regions are added. */
int vmfs_grow(struct vmfs *v, struct gr_err *err);

/* ---- devices ---- */
struct vmfs_device_info {
    unsigned number;        /* in addresses; never used again for another */
    char name[128];         /* as the device was opened on this host */
    uint8_t uuid[16];
    uint64_t size, free, metadata; /* bytes; free as vmfs_info has it */
    unsigned regions;
    bool added;             /* after the format */
    uint32_t tested;        /* VMFS_TESTED_*: what was seen when it was tried, */
    int64_t tested_s;       /* and when (seconds since 1970); 0: it was not */
    bool missing;           /* joined without it */
    bool stale;             /* it was lost: nothing new is put there until it is counted anew */
    bool lost;              /* this host has given the volume up because of it */
    bool leaving;           /* what lies on it is being moved to the others, or was until that was broken off */
};
int vmfs_devices(struct vmfs *v, void (*fn)(void *arg, const struct vmfs_device_info *d), void *arg, struct gr_err *err);
struct vmfs_device_add {
    bool force;      /* over foreign data; never over a datastore */
    uint32_t tested; /* VMFS_TESTED_*, as in struct vmfs_format_opts */
    /* Every other host that has joined has opened the device (vmfs_device_open): 0, or why not. In the fiber; the namespace is locked;
     * NULL: there are no others. */
    int (*confirm)(void *arg, struct gr_err *err);
    void *arg;
};
/* Add @bdev to the volume while it is in use; the volume keeps using it until it is left, the caller keeps its reference until then. Refused
 * when it holds anything recognisable. Cut off or failed before it is a member: nothing has changed, and the same device can be added
 * again. A member that this host did not have open is opened. -EEXIST: holds something, or is open here already; -EINVAL: too small, or of another kind than the others. */
int vmfs_device_add(struct vmfs *v, struct gr_bdev *bdev, const struct vmfs_device_add *add, struct gr_err *err);
/* Another host is adding (or has added) this device: open it. It is read to see that it belongs here. The caller keeps its reference
 * until it leaves. What was opened for an addition that came to nothing is let go of. */
int vmfs_device_open(struct vmfs *v, struct gr_bdev *bdev, struct gr_err *err);
struct vmfs_device_remove {
    /* What has moved of what there is, bytes, once in a while; not 0: stop. In the fiber; may be NULL. */
    int (*progress)(void *arg, uint64_t done, uint64_t all, struct gr_err *err);
    void *arg;
    uint64_t step; /* bytes that are copied before a checkpoint takes them over, and which a cut undoes; 0: 1 GiB */
};
/* Move all that lies on a device to the others while it is in use, and let go of it. No other host may have joined, nor can one meanwhile.
 * Failed or cut off: what has moved stays moved, and another call goes on from there; until then nothing new is put on the device (on one
 * from which nothing has moved, all is as before). -GR_ENOSPACE: the others have no room; -GR_ELOCKED: another host has joined; -EBUSY: it
 * holds tables, -ENOENT. The caller puts its reference on the device afterwards. */
int vmfs_device_remove(struct vmfs *v, unsigned number, const struct vmfs_device_remove *opts, struct gr_err *err);
/* Its number when @bdev, as it was given to join, add or open, is a device of the volume now; -ENOENT. Any context. */
int vmfs_device_number(struct vmfs *v, const struct gr_bdev *bdev);

/* Wait until what was deleted, here or by a host that is gone, has given its space back. -ETIMEDOUT: it goes on in the background. */
int vmfs_settle(struct vmfs *v, uint64_t timeout_ms);
/* Another host finds no space: what is leased here and not needed is given back. 0, also when nothing can be given now. */
int vmfs_regions_recall(struct vmfs *v, struct gr_err *err);
/* What is free in regions that other hosts lease is read anew, for vmfs_info(). */
int vmfs_free_look(struct vmfs *v, struct gr_err *err);
/* Below so much free space whoever has a disk open gets GR_EVENT_THRESHOLD, once until there is clearly more again. */
#define VMFS_LOW_PERCENT 10u
/* Write journal and map home. */
int vmfs_checkpoint(struct vmfs *v, struct gr_err *err);

/* Counters for tests, `info` and benchmarks. */
struct vmfs_stats {
    uint64_t reads, writes_in_place, writes_redirected, splits, merges, unmaps, flushes;
    uint64_t discarded;     /* bytes that devices were told of */
    uint64_t copies_shared; /* copies that moved no data */
    uint64_t rotten;        /* reads that found a piece that is not what was written: they end with -EIO */
    uint64_t journal_frames, journal_bytes, checkpoints, node_bytes, device_flushes;
    uint64_t replays, replayed_records, dropped_pieces, takeovers;
    uint64_t looks;          /* objects read as they are at home: folders, what others have or nobody */
    uint64_t regions_given_back; /* without leaving */
    uint64_t map_bytes;      /* of map nodes in memory now */
    uint64_t scan_leaves, scan_nodes, scan_reads; /* by looks at what is mapped or changed: leaves looked at; nodes read for it, and in how many requests */
    uint64_t capture_ns_max; /* longest instant a checkpoint held the loop */
};
void vmfs_stats(const struct vmfs *v, struct vmfs_stats *ret); /* any context */

/* ---- namespace: paths inside the volume, '/'-separated, no leading slash needed; "" is the root ---- */
enum vmfs_type { VMFS_DIR = 1, VMFS_FILE = 2, VMFS_DISK = 3 };
enum vmfs_provision { VMFS_THIN = 0, VMFS_THICK = 1, VMFS_EAGER = 2 };
enum vmfs_lun_flags {
    VMFS_LUN_READ_ONLY = 1,
    VMFS_LUN_REMOVABLE = 2,
    VMFS_LUN_TEMPLATE = 4, /* it is there to be cloned: nobody writes, resizes, reverts or removes it */
};
#define VMFS_NOTE_PROTECTED "protected" /* kinds of attributes of snapshots: vmfs/format.h */
#define VMFS_NOTE_EXPIRES "expires"
#define VMFS_NOTE_PART "part-of"
struct vmfs_lun {
    uint32_t flags, iops; /* commands a second; 0: no limit */
    uint64_t bytes_per_s; /* 0: no limit */
    uint32_t burst_ms;    /* how much of a limit may be saved up; 0: the server's default */
};
struct vmfs_stat {
    enum vmfs_type type;
    uint64_t id;         /* object id (inode number) */
    uint8_t uuid[16];    /* disks: identity for VPD 83, bookmarks */
    uint64_t size;       /* bytes */
    uint64_t used;       /* bytes of space the object holds (its own map and metadata), as of the owner's last checkpoint or now if ours */
    bool counted;        /* the following two are known (volumes made by earlier releases: once the disk was opened) */
    uint64_t reachable;  /* bytes of data that the live head names, its own or shared with snapshots, with the disk it was cloned from, or by copying */
    uint64_t unique;     /* bytes of it that no snapshot has (what is shared by copying counts for every owner) */
    enum vmfs_provision provision;
    uint32_t physical_block; /* disks: bytes, as initiators are told */
    struct vmfs_lun lun;     /* disks */
    uint64_t key_id;         /* disks and files: 0 not encrypted; else of the key-encryption key, or VMFS_ERASED, as of its holder's last checkpoint */
    int64_t mtime_s;
    bool lost_writes;        /* disks and files: vmfs_accept_loss() */
    unsigned n_snapshots;
    int owner_slot;      /* -1: nobody */
    uint64_t owner_generation;
    char parent[VMFS_NAME_MAX + 1 + 16]; /* clones: text naming the origin, "" otherwise */
    uint64_t origin_id, origin_snapshot; /* clones: object and snapshot that they start at; 0: not a clone */
    uint64_t clones; /* disks that start at its snapshots */
};
/* What the disk of @st looks like as a gr_bdev, without opening it. Any context. */
void vmfs_stat_geometry(const struct vmfs_stat *st, struct gr_geometry *ret);
/* Names: 1..255 bytes of UTF-8 without '/', '@', ':' or control characters, not "." or "..". */
int vmfs_name_check(const char *path, struct gr_err *err); /* any context */
int vmfs_stat(struct vmfs *v, const char *path, struct vmfs_stat *ret, struct gr_err *err);
int vmfs_stat_object(struct vmfs *v, uint64_t id, struct vmfs_stat *ret, struct gr_err *err); /* by its id */
/* All there are, named or not, as the table of inodes has them: none is missed because it is renamed meanwhile. An error when one cannot be read. */
int vmfs_each_object(struct vmfs *v, int (*fn)(void *arg, const struct vmfs_stat *st), void *arg, struct gr_err *err);
typedef int vmfs_dirent_fn(void *arg, const char *name, const struct vmfs_stat *st); /* a negative result ends it */
int vmfs_readdir(struct vmfs *v, const char *path, vmfs_dirent_fn *fn, void *arg, struct gr_err *err);
int vmfs_readdir_id(struct vmfs *v, uint64_t id, vmfs_dirent_fn *fn, void *arg, struct gr_err *err); /* of the directory @id */
/* What an object is called inside the volume (malloc'ed): nothing remembers that, so folders are read until it is found. -ENOENT: by no name. */
int vmfs_path_of(struct vmfs *v, uint64_t id, char **ret, struct gr_err *err);
int vmfs_mkdir(struct vmfs *v, const char *path, bool parents, struct gr_err *err);
int vmfs_rename(struct vmfs *v, const char *from, const char *to, struct gr_err *err);
/* Remove an empty directory, a file, or a disk (nobody else may own it, it may not be open, be a template, or have a protected snapshot:
 * -GR_ELOCKED). Of a disk that clones start at what they need stays,
 * hidden, until the last of them is gone. */
int vmfs_remove(struct vmfs *v, const char *path, struct gr_err *err);
/* The same, if @path still names the object @id, which the caller has looked at; else -ESTALE, or -ENOENT. */
int vmfs_remove_object(struct vmfs *v, const char *path, uint64_t id, struct gr_err *err);
/* Disks that were removed and are kept for their clones; @name: what it was called. fn returns < 0 to stop. */
int vmfs_hidden(struct vmfs *v, int (*fn)(void *arg, const char *name, const struct vmfs_stat *st), void *arg, struct gr_err *err);
struct vmfs_origin { /* where a clone starts */
    bool removed;                     /* the disk */
    bool snapshot_removed;
    char name[VMFS_PATH_MAX + 1];     /* what the disk was called, when it was removed; else "" */
    char snapshot[VMFS_NAME_MAX + 1]; /* "" when it cannot be told */
};
int vmfs_origin(struct vmfs *v, uint64_t id, uint64_t snapshot, struct vmfs_origin *ret, struct gr_err *err); /* -ENOENT */
struct vmfs_detach {
    int (*progress)(void *arg, uint64_t bytes, struct gr_err *err); /* once in a while, bytes copied; not 0: stop. In the fiber; may be NULL */
    void *arg;
};
/* A clone gets its own copies of all that it shares with its origin, while it is in use, and is a clone no more: durable. Stopped or cut off it goes
 * on in the next call. *ret_copied (may be NULL), also on failure: bytes. Nothing is done for a disk that is no clone. -EBUSY: it has snapshots,
 * which share, too; -GR_ELOCKED: all is copied, but another host has the origin; -GR_ENOSPACE. */
int vmfs_detach(struct vmfs_disk *d, const struct vmfs_detach *opts, uint64_t *ret_copied, struct gr_err *err);
/* Go on with the removal of an object that no host is at: another one asks that cannot, because something that it needs is ours. In the background, any
 * context. */
void vmfs_resume_object(struct vmfs *v, uint64_t id);
struct vmfs_defrag_opts {
    uint64_t rate; /* bytes moved a second; 0: as fast as it goes */
    bool dry_run;  /* only look */
    /* Once in a while: how much of the data was looked at, bytes; not 0: stop. In the fiber; may be NULL. */
    int (*progress)(void *arg, uint64_t done, uint64_t all, struct gr_err *err);
    void *arg;
};
struct vmfs_defrag_report {
    uint64_t bytes;             /* looked at: what the disk holds without its snapshots */
    uint64_t runs_before, runs; /* in so many reads it could be read from its beginning to its end, with what lies between them; dry_run: runs as estimated */
    uint64_t moved;             /* bytes; dry_run: that would be moved */
    uint64_t shared;            /* bytes that stay where they are: snapshots, clones or copies have them, too */
    uint64_t busy, splinters;   /* bytes of windows that were left: they were written all the time; free space is in splinters */
    uint64_t bad;               /* bytes that the device does not return as they were written: they stay where they are */
};
/* What random writes left in splinters is put one behind the other, while the disk is in use: by windows of 1 MiB, as far as it is the disk's alone.
 * Nothing counts as changed. Between windows it waits as @opts->rate says, and four times as long as a window took while there are requests. Killed, or stopped, it has
 * moved what it has moved; the next call finds less to do. What is moved is durable when it returns, also on failure. -EBUSY: it is at it
 * already; -GR_ENOSPACE: what it needs for the moment would come from what is kept back; -EIO: lost writes, vmfs_accept_loss(). */
int vmfs_defragment(struct vmfs_disk *d, const struct vmfs_defrag_opts *opts, struct vmfs_defrag_report *ret, struct gr_err *err);
/* With all removals that no host is at: hosts of an earlier release do not say of which. */
void vmfs_resume(struct vmfs *v);
/* New disk or file; parent folders are made. -EEXIST. size: multiple of 512, > 0 for disks, at most VMFS_DISK_MAX. */
int vmfs_create(struct vmfs *v, const char *path, enum vmfs_type type, uint64_t size, enum vmfs_provision provision, struct gr_err *err);
/* New disk whose initiators are told physical blocks of 512 bytes (for software that refuses 512e) or of 4096, as vmfs_create() makes. */
int vmfs_create_disk(struct vmfs *v, const char *path, uint64_t size, enum vmfs_provision provision, uint32_t physical_block, struct gr_err *err);
/* The same, encrypted with a data key of its own that is kept wrapped with the key-encryption key @kek_id. -ENOKEY: that is not here. */
int vmfs_create_encrypted(struct vmfs *v, const char *path, uint64_t size, enum vmfs_provision provision, uint32_t physical_block, uint64_t kek_id,
                          struct gr_err *err);
/* A new empty file; *ret_id: the object, whatever becomes of its name. @kek_id: its content is encrypted in the same way, whatever becomes of its
 * length (vmfs_file_resize()); 0: it is not. -EEXIST, -ENOKEY. */
int vmfs_create_file(struct vmfs *v, const char *path, uint64_t kek_id, uint64_t *ret_id, struct gr_err *err);

/* ---- quotas of folders ---- */
/* What all disks and files below a folder hold together (with snapshots, and with what thick disks are promised) stays within its limit. A write
 * that would hold more ends as on a full datastore; whoever has a disk below a folder open gets GR_EVENT_THRESHOLD at so many percent. */
#define VMFS_QUOTA_LOW_PERCENT 90u
struct vmfs_quota {
    char path[VMFS_PATH_MAX + 1];
    uint64_t limit, used; /* bytes; used as of the owners' last checkpoints, or now for disks of this host */
    uint64_t granted;     /* bytes: used, and what hosts may write without asking */
};
/* @bytes 0: none any more. What is below already may be more: then nothing grows. -ENOENT, -ENOTDIR, -EINVAL; -GR_ELOCKED: another host has
 * joined that cannot be told. */
int vmfs_quota_set(struct vmfs *v, const char *path, uint64_t bytes, struct gr_err *err);
int vmfs_quotas(struct vmfs *v, int (*fn)(void *arg, const struct vmfs_quota *q), void *arg, struct gr_err *err);
/* Another host asks: what was granted here and is not used is given back, and home. */
int vmfs_quota_recall(struct vmfs *v, struct gr_err *err);

/* ---- objects with content ---- */
/* Take the object's lock and open it; opened twice gives the same object again (counted). -ENOKEY: encrypted, and its key is not here.
 * -GR_ELOCKED: owned by a living host, whose slot and name are in the text (and in ret_owner when not NULL). */
int vmfs_open(struct vmfs *v, const char *path, struct vmfs_disk **ret, int *ret_owner_slot, struct gr_err *err);
/* Last close: the lock stays ours until vmfs_release() or leave, so that opening again is cheap. */
void vmfs_close(struct vmfs_disk *d);
/* Checkpoint and give up the lock of a closed object, so that another host can open it. */
int vmfs_release(struct vmfs *v, const char *path, struct gr_err *err);
struct gr_bdev *vmfs_bdev(struct vmfs_disk *d); /* the live head; borrowed */
uint64_t vmfs_disk_id(const struct vmfs_disk *d);
void vmfs_disk_stat(struct vmfs_disk *d, struct vmfs_stat *ret);
struct vmfs *vmfs_disk_volume(struct vmfs_disk *d);
/* Grow or shrink (shrink refuses unless @shrink). Durable before it returns; GR_EVENT_RESIZED. */
int vmfs_resize(struct vmfs_disk *d, uint64_t size, bool shrink, struct gr_err *err);
/* How the disk shows itself as a logical unit, on every host. Durable before it returns; GR_EVENT_PRESENTED. */
int vmfs_set_lun(struct vmfs_disk *d, const struct vmfs_lun *lun, struct gr_err *err);
/* Writes of it were lost with a device before they were flushed: it refuses everything but reads, until this is called. Durable.
 * On a volume that is being rescued: it is shown, though it may have another disk's bytes (vmfs_rescued.refused); for as long as it is joined. */
int vmfs_accept_loss(struct vmfs_disk *d, struct gr_err *err);
/* May its live head be read? 0; -GR_EBEHIND and why not: it may have another disk's bytes, as its last changes are lost. Its snapshots are open. [sync] */
int vmfs_shown(const struct vmfs_disk *d, struct gr_err *err);
/* Whole small files (configuration): read at most @max bytes into new memory; replace atomically. @aside: the folder, made at need, in which the new
 * content has a name of its own until it is whole, which a death of this host leaves there; NULL: that of the file. */
int vmfs_file_read(struct vmfs *v, const char *path, size_t max, void **ret, size_t *ret_len, struct gr_err *err);
int vmfs_file_write(struct vmfs *v, const char *path, const char *aside, const void *data, size_t len, struct gr_err *err);

/* Attributes of the file @id (set through its bdev by who holds it), held or not: as its holder last brought them home, which vmfs_release() does.
 * 1: fn(arg, key, value, length) was called for each, and *version is set; 0: they are still those of *version (0: none is known). fn must not
 * suspend. */
int vmfs_attrs(struct vmfs *v, uint64_t id, uint64_t *version, void (*fn)(void *arg, const char *key, const void *val, size_t len), void *arg,
               struct gr_err *err);

/* ---- encrypted disks and files (docs/vmfs.md) ---- */
#define VMFS_ERASED UINT64_MAX /* key_id of one whose keys were destroyed */
uint64_t vmfs_kek_id(const uint8_t kek[32]); /* its number: of its bytes, so the same on every host. Any context */
/* The data keys of the disk or file are wrapped with another key-encryption key, all at once or not at all; durable. */
int vmfs_keys_rewrap(struct vmfs_disk *d, uint64_t kek_id, struct gr_err *err);
/* What is written from now on is encrypted with a new data key; durable. What was written before keeps its own. -GR_ENOSPACE: it has as many as
 * fit already: vmfs_keys_rewrite() first. */
int vmfs_keys_rotate(struct vmfs_disk *d, uint64_t kek_id, struct gr_err *err);
/* Write what was written with an older data key anew, while the disk is in use, and forget keys that nothing needs any more: snapshots may
 * still need them. Pieces that are rewritten count as changed. @progress: once in a while, pieces done; not 0: stop. *ret_keys: that are left. */
int vmfs_keys_rewrite(struct vmfs_disk *d, int (*progress)(void *arg, uint64_t pieces, struct gr_err *err), void *arg, unsigned *ret_keys,
                      struct gr_err *err);
/* Destroy the keys of the disk @id that nobody has open; durable. @path: for messages. Neither it nor its snapshots can be read any more; it can only be removed, which
 * destroys the keys of an encrypted disk or file first, too. No key-encryption key is needed. -EBUSY: in use, or clones have its keys, too. */
int vmfs_keys_erase(struct vmfs *v, uint64_t id, const char *path, struct gr_err *err);

/* ---- check ---- */
struct vmfs_check_report {
    uint64_t objects, nodes, pieces, shared_pieces, regions; /* how much was looked at */
    uint64_t errors;                                         /* broken rules */
    uint64_t leaked_units;                                   /* allocated, reachable from nowhere */
    uint64_t repaired;                                       /* home blocks with one damaged copy, rewritten from the other */
    uint64_t mended;                                         /* vmfs_repair(): broken rules that were mended */
    uint64_t memory;                                         /* bytes of memory that it took by the size of the volume */
    uint64_t read;                                           /* bytes, by all looks */
    uint64_t unreachable;                                    /* things that lie on missing devices and could not be looked at */
};
/* Prove the volume while it is in use: every metadata block valid, reachable ∪ journals ∪ tables ∪ pending frees ∪ free = all, disjoint but for
 * sharing that births explain. One line per broken rule goes to @line. 0: sound; -GR_ECORRUPT: @ret counts what is wrong. */
int vmfs_check(struct vmfs *v, void (*line)(void *arg, const char *text), void *arg, struct vmfs_check_report *ret, struct gr_err *err);
/* The same, and mend what can be mended without guessing; then prove it anew: @ret and the result are those of the last look. A line tells
 * what was found and what was done: allocated space that nothing uses is given back (when nothing else is broken that is left as it is), used space
 * allocated, counts and lists of owners put right, names that lead nowhere removed, and objects without a name put into the folder
 * VMFS_LOST. No data is discarded, nor a name of what cannot be read. -GR_ELOCKED: another host that lives has joined, or a device leaves. */
#define VMFS_LOST "lost+found"
int vmfs_repair(struct vmfs *v, void (*line)(void *arg, const char *text), void *arg, struct vmfs_check_report *ret, struct gr_err *err);

/* ---- what a lost device has left: vmfs_join_opts.rescue ---- */
struct vmfs_rescued {
    const char *path;     /* inside the volume */
    const char *snapshot; /* NULL: the disk or file as it is now; a folder */
    const char *behind;   /* not NULL: this host had it, and its journal is lost: it is as it was at that host's last checkpoint, but what was overwritten in place since
                           * has newer bytes, and what was given up since may be another disk's by now (with data_crc: an error; files: never) */
    enum vmfs_type type;
    uint64_t id;
    uint64_t size;        /* bytes, */
    uint64_t lost_data;   /* that lie on the lost device, */
    uint64_t lost_map;    /* of which nobody knows where they lie */
    bool whole;           /* nothing is lost */
    bool unreadable;      /* nothing can be read: where its map is, or the folder's names, lay there */
    bool refused;         /* it may have another disk's bytes: it is not shown (-GR_EBEHIND) */
    bool accepted;        /* it would be refused, but vmfs_accept_loss() was called */
    bool skipped;         /* changes that a journal tells of could not be followed, for they are of parts of the map that are lost */
};
typedef int vmfs_rescued_fn(void *arg, const struct vmfs_rescued *what); /* in the fiber; a negative result ends it */
/* All folders that cannot be read, and all disks and files with their snapshots: what is left of them, by their maps, all of which are read. Data is not. */
int vmfs_rescued(struct vmfs *v, vmfs_rescued_fn *fn, void *arg, struct gr_err *err);
/* Hosts whose journals are lost, so that what they had may be behind. Returns how many. */
int vmfs_rescued_hosts(struct vmfs *v, void (*fn)(void *arg, const char *host), void *arg);

/* ---- a device that is lost for good is replaced ---- */
struct vmfs_replacing {
    unsigned lost;   /* its number: 0 or 1, which have tables */
    uint32_t tested; /* VMFS_TESTED_*: what was seen of the new one */
    void (*warn)(void *arg, const char *text);
    void *warn_arg;
};
/* @with gets the tables of the lost device from the other copies, and takes its place; the volume can then be joined. @devices are all others; nobody has
 * joined, or will meanwhile, which the caller vouches for. What lay in the lost device's regions stays lost (-EIO). Cut off anywhere: it is as it was, but that
 * the lost device is none of the volume's any more, or replaced; it can be done again, with any device.
 * -EINVAL: no device is missing, or another one, or @with is too small; -EEXIST: @with holds something; -ENODEV: a journal is lost that somebody needs, or more
 * than the one is missing; -EBUSY: a device is being emptied; -GR_ELOCKED: a host is at work on it. */
int vmfs_replace_device(struct gr_loop *loop, struct gr_bdev *const *devices, unsigned n, struct gr_bdev *with, const struct vmfs_replacing *how, struct gr_err *err);

/* ---- scrub ---- */
struct vmfs_scrub_opts {
    uint64_t rate; /* bytes a second, of metadata (in one look as vmfs_check(), which data then waits for) and data; 0: as fast as it goes */
    bool restart;  /* from the beginning, also when one was broken off */
    void (*line)(void *arg, const char *text); /* one per thing that is wrong; may be NULL */
    /* How much of the data is read, bytes, between two slices of at most 64 MiB; not 0: stop. In the fiber; may be NULL. */
    int (*progress)(void *arg, uint64_t done, uint64_t all, struct gr_err *err);
    void *arg;
};
struct vmfs_scrub_report {
    uint64_t bytes;      /* of data, by all calls that this one went on from */
    uint64_t bad_pieces; /* that the device does not read, or (data CRCs) does not return as they were written */
    uint64_t errors, repaired; /* metadata: as vmfs_check() has it */
    uint64_t metadata;         /* bytes of it, by this call */
    bool resumed;
};
/* Read everything while the volume is in use: metadata, both copies, which are repaired from each other (vmfs_check), then all data of all disks,
 * files and snapshots, each unit once. Stopped by @progress or a lost host it goes on from there in the next call, by any host. The result is kept
 * (vmfs_info). 0: all is well; -GR_ECORRUPT: @ret counts what is not; -EBUSY: this host is at it; what @progress returned. */
int vmfs_scrub(struct vmfs *v, const struct vmfs_scrub_opts *opts, struct vmfs_scrub_report *ret, struct gr_err *err);
#endif
