/* The Granary volume format, version 1. This header is the specification; docs/vmfs.md tells the why.
 *
 * UNITS. Everything is counted in units of 4 KiB. An address is {device (16 bits), unit (48 bits)} in one 64-bit number;
 * address 0 means "none" (unit 0 of device 0 is never used, so that boot sectors of others stay recognisable).
 *
 * LAYOUT of device 0 (other devices of the format: superblocks and regions only; copies B lie on device 1 when there is one)
 *     unit 0        left alone              unit 1          superblock A
 *     unit 4096     superblock B            tables A, B     slots, region headers + bitmaps, inodes: superblock tells where;
 *                                                        one journal per slot: its slot block tells where
 *     the rest      regions: runs of units that one host at a time leases for allocation
 * A device that was added later brings its own table of region headers and bitmaps, both copies on itself (they are of no use without it).
 *
 * MEMBERS. Superblocks of all devices are the same but for this_device, self and crc; the one with the highest generation counts. A device
 * is a member when the superblock of device 0 lists its uuid: one that was being added when its host died is none, and can be added again.
 * The list only grows. A host that meets a list longer than the devices it has open gives no lock out and takes nobody over until it has
 * opened the new one.
 *
 * WHO WRITES WHAT. A host owns its slot, the regions it leased and the objects it locked, and nothing else. Home blocks
 * (slot, aux, region header, bitmap, inode) exist in two copies, each with its own address and a generation that only
 * grows; the newer valid copy counts. Blobs and map nodes are never overwritten: a checkpoint writes new ones elsewhere.
 * All changes between two checkpoints are records in the host's journal; a checkpoint puts images of the changed home
 * blocks into the journal, makes them durable, writes them home, and moves the journal's tail. So the state of a host at any
 * cut is: home blocks, plus the last complete image set, plus the records behind it, in order.
 *
 * A DEVICE THAT LEAVES. Nothing new is put on it and nothing on it is overwritten, so its content can be copied while it is read. A checkpoint
 * marks the copies' units as used, frees the originals, and puts the list of what lies where (struct vmfs_moved_disk) into the superblock, all
 * with one set of images. Maps and blobs keep the old addresses until they are written again for another reason: whoever reads one looks
 * up where it lies now. Blocks keep the address they were written at (rule 4 follows the list). When all is moved the device is gone; its number
 * and its list stay.
 *
 * A DEVICE THAT IS LOST holds no tables that all depend on. Its regions count as nobody's and as full: nothing is leased there, and what is freed there
 * is forgotten. The superblock says so (stale) before the slot is free whose journal may tell of them; then they are counted anew from all trees
 * and lists of foreign frees, and the superblock says that they are good. A slot's host that was there when the device was lost says in its slot up to
 * which frame data on it was durable: of later frames, records of unflushed data there are not applied. Nobody was told that these were durable.
 *
 * A DEVICE THAT IS REPLACED, one with tables, was lost for good. The superblocks of all others list a new uuid in its place, with a higher
 * generation, before the new device gets its copies of tables, and then superblocks: so one that comes back later is none of the volume's any more. What
 * lay in its regions ends with an I/O error, and nothing is put there, until no tree names anything there.
 *
 * VALIDITY RULES of every metadata block
 *   rule 1 magic and type are the expected ones     rule 2 version <= VMFS_VERSION    rule 3 volume equals the superblock's
 *   rule 4 self equals the address read from (or was moved there)     rule 5 crc32c over all units of the block with the field zero
 *   rule 6 units matches the pointer                rule 7 numbers inside are in range (each decoder says which)
 *
 * LOCKS. A lock names slot, slot generation and token. It counts while that slot is in use under that generation.
 * Every compare-and-write carries a fresh nonce. On files and block devices, life locks are byte locks of the device (key = slot
 * number) held by the process itself: getting another's proves that its process is gone. On logical units each process registers
 * a key of its own (the slot's nonce) with all devices; who does not answer the alarm of its slot is ejected from all of them. Where nothing
 * fences (ONE_HOST) a slot in use shuts every other host out, until it is given back: by its host, by an earlier start of that home that comes
 * back, or by a recoverer whom an administrator has told that this host is gone. Nobody registers anything then, and alarms only tell who lives. */
#ifndef VMFS_FORMAT_H
#define VMFS_FORMAT_H
#include "common/endian.h"

#define VMFS_VERSION 1
#define VMFS_UNIT 4096u
#define VMFS_SUPER_A 1u
#define VMFS_SUPER_B 4096u
#define VMFS_MIN_UNITS 8192u            /* 32 MiB: smallest device 0 */
#define VMFS_MAX_UNITS (1ull << 44)     /* 64 PiB per device */
#define VMFS_SLOTS_DEFAULT 64u
#define VMFS_SLOTS_MAX 4096u
#define VMFS_BITMAP_BITS 32256u         /* units described by one bitmap block: 4032 bytes */
#define VMFS_FANOUT 128u                /* children of a node, blocks of a leaf */
#define VMFS_BLOCK_PIECES 16u
#define VMFS_LEAF_PIECES (VMFS_FANOUT * VMFS_BLOCK_PIECES) /* 2048 pieces = 8 MiB */
#define VMFS_MAX_LEVEL 5u               /* level 5 covers 2^18 PiB; a disk of 1 PiB needs level 4 */

#define VMFS_COMPAT_PREALLOCATED 1ull   /* the devices' space was taken at once: nothing is given back to them */
#define VMFS_INCOMPAT_SHARES 1ull       /* regions list units that more than one owner names; without it nothing is shared by copying */
#define VMFS_INCOMPAT_ALARMS 2ull       /* slots have alarms: entries of three units; without it the volume lies on files or block devices */
#define VMFS_INCOMPAT_MEMBERS 4ull      /* devices were added after format: struct vmfs_member_disk tells of them; without it all of it is zero */
#define VMFS_INCOMPAT_MOVED 8ull        /* a device leaves or has left: addresses on it are looked up */
#define VMFS_INCOMPAT_ONE_HOST 16ull    /* logical units that fence nobody: one host at a time, no take-over but by hand */
#define VMFS_INCOMPAT_ENCRYPTED 32ull   /* a disk or file is, or was, encrypted: inodes with a key_id, blocks of keys */
#define VMFS_INCOMPAT_DATA_CRC 64ull    /* every piece with data has a CRC32C in the map, and is never overwritten where it lies */
#define VMFS_INCOMPAT_QUOTA 128ull      /* folders may have quotas: who writes must stay below what his disks were granted */
#define VMFS_INCOMPAT_FILES 256ull      /* regular files of any length; owners, modes and times of files and directories: struct vmfs_posix_disk */
#define VMFS_INCOMPAT_STALE 512ull      /* a device was lost: its tables are stale, and slots say what was lost with it */
#define VMFS_INCOMPAT_KEPT 1024ull      /* templates, protected snapshots, removed disks kept for their clones: who does not know would write to or remove them */
#define VMFS_INCOMPAT_MIRRORED 2048ull  /* made with several devices: each journal is kept on device 0 and on device 1 */
#define VMFS_INCOMPAT_REPLACED 4096ull  /* a device was replaced by an empty one: what lay in its regions is lost, and is not read */
#define VMFS_INCOMPAT_KNOWN                                                                                                                  \
    (VMFS_INCOMPAT_SHARES | VMFS_INCOMPAT_ALARMS | VMFS_INCOMPAT_MEMBERS | VMFS_INCOMPAT_MOVED | VMFS_INCOMPAT_ONE_HOST |                     \
     VMFS_INCOMPAT_ENCRYPTED | VMFS_INCOMPAT_DATA_CRC | VMFS_INCOMPAT_QUOTA | VMFS_INCOMPAT_FILES | VMFS_INCOMPAT_STALE | VMFS_INCOMPAT_KEPT |       \
     VMFS_INCOMPAT_MIRRORED | VMFS_INCOMPAT_REPLACED)
/* Of releases that did not write it into their slots. */
#define VMFS_INCOMPAT_FIRST (VMFS_INCOMPAT_SHARES | VMFS_INCOMPAT_ALARMS | VMFS_INCOMPAT_MEMBERS | VMFS_INCOMPAT_MOVED)
#define VMFS_RO_COMPAT_KNOWN 0ull

#define VMFS_ADDR_NONE 0ull
static inline uint64_t vmfs_addr(unsigned dev, uint64_t unit) { return (uint64_t)dev << 48 | unit; }
static inline unsigned vmfs_addr_dev(uint64_t a) { return (unsigned)(a >> 48); }
static inline uint64_t vmfs_addr_unit(uint64_t a) { return a & 0xffffffffffffull; }

enum vmfs_block_type {
    VMFS_T_SUPER = 1, VMFS_T_SLOT, VMFS_T_AUX, VMFS_T_REGION, VMFS_T_BITMAP, VMFS_T_INODE, VMFS_T_NODE, VMFS_T_LEAF, VMFS_T_BLOB,
    VMFS_T_FRAME, VMFS_T_ALARM, VMFS_T_KEYS
};
#define VMFS_MAGIC 0x42564e47u /* "GNVB" */

struct vmfs_hdr_disk {        /* OFFSET SIZE */
    gr_le32 magic;            /*   0  4  rule 1 */
    gr_le16 type, version;    /*   4  4  rules 1, 2 */
    uint8_t volume[16];       /*   8 16  rule 3 */
    gr_le64 self;             /*  24  8  rule 4 */
    gr_le64 generation;       /*  32  8  grows with every write of a home block; birth epoch for nodes */
    gr_le32 units;            /*  40  4  rule 6 */
    gr_le32 slot;             /*  44  4  who wrote it */
    gr_le64 reserved;         /*  48  8  zero */
    gr_le32 crc32c;           /*  56  4  rule 5 */
    gr_le32 reserved2;        /*  60  4  zero */
} __attribute__((packed));
GR_SIZE(struct vmfs_hdr_disk, 64);
GR_LAYOUT(struct vmfs_hdr_disk, crc32c, 56);

struct vmfs_lock_disk {
    gr_le32 holder;     /* slot + 1; 0: free */
    gr_le32 flags;      /* zero */
    gr_le64 generation; /* of the slot */
    gr_le64 token;      /* grows with every acquisition; records name it */
    gr_le64 nonce;      /* fresh with every write of the lock */
} __attribute__((packed));
GR_SIZE(struct vmfs_lock_disk, 32);

struct vmfs_table_disk {     /* a table of fixed-stride entries in two copies */
    gr_le64 addr_a, addr_b;
    gr_le32 entries, stride; /* stride in units */
} __attribute__((packed));
GR_SIZE(struct vmfs_table_disk, 24);

struct vmfs_device_disk {
    uint8_t uuid[16];
    gr_le64 units;        /* of the device, all of it */
    gr_le64 first_unit;   /* of its first region */
    gr_le32 first_region; /* index of its first region in the region table */
    gr_le32 regions;
    gr_le64 flags; /* zero */
} __attribute__((packed));
GR_SIZE(struct vmfs_device_disk, 48);

/* More of a device. */
struct vmfs_member_disk {
    struct vmfs_table_disk regions; /* its own table; entries 0: its regions are in the common one */
    gr_le32 state;                  /* enum vmfs_device_state */
    gr_le32 mover;                  /* LEAVING: slot + 1 of the host that is at it, alone; 0: nobody is */
    gr_le64 moved_addr;             /* LEAVING, GONE: blob of struct vmfs_moved_disk, ascending, apart; 0: nothing moved */
    gr_le32 moved_bytes, moved_units;
    gr_le32 tested;                 /* VMFS_TESTED_*: what was seen before it became part of a datastore that hosts share; 0: not tried */
    gr_le32 stale;                  /* 1 (INCOMPAT_STALE): headers, bitmaps and lists of its regions are not to be believed; 3 (INCOMPAT_REPLACED): nor
                                     * does anything in its regions exist any more. Device 0: 0 or 3 */
    gr_le64 tested_s;               /* when */
} __attribute__((packed));
GR_SIZE(struct vmfs_member_disk, 64);
GR_LAYOUT(struct vmfs_member_disk, tested, 48);
GR_LAYOUT(struct vmfs_member_disk, stale, 52);
/* The fence: there is one, it shuts out the writes and the reads of who is not registered, and lets whoever is work. Compare-and-writes: what
 * compares equal is replaced, what does not is left alone, one of two at a time wins. Ejecting: it shuts out, nothing lands afterwards, a
 * second session is outside too, registrations outlast a loss of power. */
#define VMFS_TESTED_FENCE 1u
#define VMFS_TESTED_SHUTS_OUT_WRITES 2u
#define VMFS_TESTED_SHUTS_OUT_READS 4u
#define VMFS_TESTED_JOINT 8u
#define VMFS_TESTED_SWAPS 16u
#define VMFS_TESTED_MISCOMPARES 32u
#define VMFS_TESTED_ONE_WINNER 64u
#define VMFS_TESTED_EJECTS 128u
#define VMFS_TESTED_DRAINS 256u
#define VMFS_TESTED_OUTLASTS_SESSION 512u
#define VMFS_TESTED_OUTLASTS_POWER 1024u
#define VMFS_TESTED_FLUSHES 2048u /* FUA and flush end well; that they are kept is on the device's word */
enum vmfs_device_state { VMFS_DEVICE_IN_USE = 0, VMFS_DEVICE_LEAVING = 1, VMFS_DEVICE_GONE = 2 };
/* Units [from, from + units) of the device lie at address @to (which may have moved, too) and behind. A block of several units is never cut. */
struct vmfs_moved_disk {
    gr_le64 from, to;
    gr_le32 units, reserved;
} __attribute__((packed));
GR_SIZE(struct vmfs_moved_disk, 24);

/* The last scrub, or the one that was broken off (ended_s 0): how far it is, to go on from. All zero: there was none. */
struct vmfs_scrub_disk {
    gr_le64 started_s, ended_s;
    gr_le64 object, snapshot, piece; /* next to be read: index of the inode, snapshot (all ones: the live head), piece */
    gr_le64 bytes;                   /* of data, read so far */
    gr_le64 bad_pieces, errors;      /* what it found: pieces of data, broken rules of metadata */
} __attribute__((packed));
GR_SIZE(struct vmfs_scrub_disk, 64);

struct vmfs_super_disk {
    struct vmfs_hdr_disk hdr;
    gr_le64 compat, ro_compat, incompat; /* feature words: unknown incompat: no join; unknown ro_compat: readers only */
    gr_le64 created_s;
    char name[64];                       /* NUL-terminated */
    gr_le32 n_devices, this_device;
    gr_le32 region_units;                /* units of a full region */
    gr_le32 bitmap_blocks;               /* bitmap blocks of a region */
    gr_le32 journal_units;               /* of one host's journal */
    gr_le32 timing;                      /* enum vmfs_timing: how soon silence counts as death */
    struct vmfs_table_disk slots, regions, inodes;
    gr_le64 data_crc;                    /* 0: none (and no VMFS_INCOMPAT_DATA_CRC); 1: CRC32C of the bytes as the device has them */
    gr_le64 key_id, quota;               /* reserved for encryption, quotas: zero */
    struct vmfs_scrub_disk scrub;
    uint8_t pad[4096 - 64 - 32 - 64 - 24 - 72 - 24 - 64 - 32 * 64 - 32 * 48];
    struct vmfs_member_disk members[32];
    struct vmfs_device_disk devices[32];
} __attribute__((packed));
GR_SIZE(struct vmfs_super_disk, 4096);

enum vmfs_slot_state { VMFS_SLOT_FREE = 0, VMFS_SLOT_HOST = 1, VMFS_SLOT_READER = 2, VMFS_SLOT_REPLAYING = 3 };
#define VMFS_PINS_MAX 64u
#define VMFS_LOST_MAX 192u
struct vmfs_pin_disk {
    gr_le64 object, snapshot;
} __attribute__((packed));
struct vmfs_slot_disk {
    struct vmfs_hdr_disk hdr;
    gr_le32 state, n_pins;
    gr_le64 generation;            /* grows when the slot is freed, and at no other time (releases before: when it is claimed, too) */
    gr_le64 nonce;                 /* of who answers for the slot, its owner or (REPLAYING) its recoverer: its key at the devices' fence */
    uint8_t host_uuid[16];
    char host_name[64];
    char portal[128];
    char address[1024];
    gr_le64 journal_addr;          /* set by format; outside the regions (INCOMPAT_MIRRORED: on device 0) */
    gr_le32 journal_units, reserved;
    gr_le64 tail_seq;              /* first frame not yet covered by home blocks */
    gr_le64 tail_off;              /* its offset in the journal, units */
    gr_le64 version;               /* of the format, as the host's software writes it */
    struct vmfs_pin_disk pins[VMFS_PINS_MAX];
    uint8_t link_key[32];          /* Ed25519 public key by which other hosts know this one; zero: it takes part in no links */
    gr_le64 features;              /* incompat features that its software knows; 0: VMFS_INCOMPAT_FIRST. None is switched on that one in use does not know */
    gr_le32 lost_devices;          /* a bit for each that its host lost (INCOMPAT_STALE); 0: none, and the rest is zero */
    gr_le32 n_lost;                /* objects in the list */
    gr_le64 lost_seq;              /* frames up to here had their data on those devices durable */
    gr_le64 lost_objects[VMFS_LOST_MAX]; /* with data there that was not flushed when they were lost, whether or not it has records */
    gr_le64 journal_mirror;        /* INCOMPAT_MIRRORED: the same frames on device 1, set by format, too; else 0 */
    uint8_t pad[4096 - 64 - 8 - 16 - 16 - 64 - 128 - 1024 - 16 - 24 - VMFS_PINS_MAX * 16 - 32 - 8 - 16 - VMFS_LOST_MAX * 8 - 8];
} __attribute__((packed));
GR_SIZE(struct vmfs_slot_disk, 4096);
GR_LAYOUT(struct vmfs_slot_disk, lost_devices, 2424);
GR_LAYOUT(struct vmfs_slot_disk, link_key, 2384);
GR_LAYOUT(struct vmfs_slot_disk, features, 2416);
GR_LAYOUT(struct vmfs_slot_disk, journal_mirror, 3976);

/* Foreign frees: units this slot's host freed in regions that another host leases; they are given back when the region can
 * be leased. The list stays with the slot when the host leaves. More than fit: in a blob. */
struct vmfs_run_disk {
    gr_le64 addr;
    gr_le64 units;
} __attribute__((packed));
#define VMFS_AUX_RUNS 240u
struct vmfs_aux_disk {
    struct vmfs_hdr_disk hdr;
    gr_le32 n_runs, reserved;
    gr_le64 blob_addr;  /* 0: none; else a blob of more runs */
    gr_le32 blob_bytes, blob_units;
    struct vmfs_run_disk runs[VMFS_AUX_RUNS];
    uint8_t pad[4096 - 64 - 24 - VMFS_AUX_RUNS * 16];
} __attribute__((packed));
GR_SIZE(struct vmfs_aux_disk, 4096);

/* The alarm of a slot: the third unit of its entry (volumes made before have two), copy A only, changed by compare-and-write. Who
 * wants to know whether the slot's process is there writes a fresh number; who answers for the slot looks once in a while (the only
 * thing a host does that nobody disturbs) and writes it as answered. Unreadable or never written: quiet. */
struct vmfs_alarm_disk {
    struct vmfs_hdr_disk hdr;
    gr_le64 asked, answered; /* equal: quiet */
    uint8_t pad[4096 - 64 - 16];
} __attribute__((packed));
GR_SIZE(struct vmfs_alarm_disk, 4096);
GR_LAYOUT(struct vmfs_alarm_disk, asked, 64);
#define VMFS_SLOT_UNITS 3u /* slot, aux, alarm */

/* The last region of a device may be short. When the volume grows it is a whole one, for whoever leases it next: until then its holder
 * knows, and its header says, fewer units than the superblock makes it. */
#define VMFS_REGION_MIN 512u
struct vmfs_region_disk {
    struct vmfs_hdr_disk hdr;
    struct vmfs_lock_disk lock;
    gr_le32 units, free_units; /* free as of the last checkpoint */
    gr_le64 shares_addr;       /* 0: no unit is shared; else a blob of struct vmfs_share_disk, ascending, apart */
    gr_le32 shares_bytes, shares_units;
    uint8_t pad[4096 - 64 - 32 - 8 - 16];
} __attribute__((packed));
GR_SIZE(struct vmfs_region_disk, 4096);
/* Units [at, at + units) of the region have @more owners beside the first: that many frees only take one away. Owners are places
 * of a lineage (the piece of a disk, with a birth); trees that share a piece by births are one owner. */
struct vmfs_share_disk {
    gr_le32 at, units, more;
} __attribute__((packed));
GR_SIZE(struct vmfs_share_disk, 12);
#define VMFS_SHARES_UNITS_MAX 65536u /* of such a blob */
struct vmfs_bitmap_disk {
    struct vmfs_hdr_disk hdr;
    uint8_t bits[4032]; /* bit set: allocated */
} __attribute__((packed));
GR_SIZE(struct vmfs_bitmap_disk, 4096);

#define VMFS_INODE_ROOT 1u  /* the root directory; its lock guards the whole namespace */
#define VMFS_INODE_DYING 2u /* a hidden directory of objects whose content is being given back */
struct vmfs_inode_disk {
    struct vmfs_hdr_disk hdr;
    struct vmfs_lock_disk lock;
    gr_le64 id;               /* index | reuse count << 32 */
    gr_le16 type, provision;  /* enum vmfs_type (0: free), enum vmfs_provision */
    gr_le32 n_snapshots;
    uint8_t uuid[16];
    gr_le64 size, used_units;
    gr_le64 mtime_s;
    gr_le64 blob_addr;        /* 0: the blob is inline */
    gr_le32 blob_bytes, blob_units;
    gr_le64 key_id;           /* 0: not encrypted; of the key its newest data key is wrapped with, as of the last checkpoint */
    gr_le64 quota;            /* directories: limit of what is below, units, 0: none; disks and files: so many units it may hold (INCOMPAT_QUOTA) */
    uint8_t blob[4096 - 64 - 32 - 88];
} __attribute__((packed));
GR_SIZE(struct vmfs_inode_disk, 4096);
GR_LAYOUT(struct vmfs_inode_disk, lock, 64);
#define VMFS_BLOB_UNITS_MAX 65536u /* 256 MiB of names, snapshots or frees of one object */
#define VMFS_INODE_BLOB_MAX sizeof(((struct vmfs_inode_disk *)0)->blob)

/* Directory blob: entries one behind the other. With VMFS_INCOMPAT_FILES the first may have id 0, type 0 and a struct vmfs_posix_disk in
 * place of a name: the directory's own. */
struct vmfs_dirent_disk {
    gr_le64 id;
    gr_le16 type, name_len;
    char name[];
} __attribute__((packed));
GR_SIZE(struct vmfs_dirent_disk, 12);

/* Who owns a file or directory, and what others may do; of files and disks the value of the attribute "posix". Absent: the host that shows it
 * chooses. Times are nanoseconds since 1970. */
struct vmfs_posix_disk {
    gr_le32 mode; /* 07777 */
    gr_le32 uid, gid, reserved;
    gr_le64 atime_ns, mtime_ns, ctime_ns;
} __attribute__((packed));
GR_SIZE(struct vmfs_posix_disk, 40);

struct vmfs_ptr_disk {
    gr_le64 addr;  /* 0: nothing below was ever written */
    gr_le64 birth; /* newest birth below << 16 | units */
} __attribute__((packed));
GR_SIZE(struct vmfs_ptr_disk, 16);

/* Object blob of a disk or file: this, then snaps, lineages, bookmarks, attributes, each as its counter says. */
struct vmfs_content_disk {
    gr_le64 epoch;          /* current: births of new data */
    gr_le64 lineage;        /* random, of the live head */
    gr_le64 parent_snap;    /* snapshot id the live head grew from; 0: none (or the origin) */
    gr_le64 next_snap;      /* next snapshot id */
    struct vmfs_ptr_disk root;
    gr_le32 level, flags;   /* VMFS_CONTENT_* */
    gr_le64 origin_object, origin_snap, origin_epoch; /* clone of; 0: not a clone */
    gr_le64 reserved_units; /* promised overwrite space (thick, eager) */
    gr_le32 n_snaps, n_lineages, n_bookmarks, n_attrs;
} __attribute__((packed));
GR_SIZE(struct vmfs_content_disk, 104);
#define VMFS_CONTENT_COUNTED 256u /* behind the attributes: a struct vmfs_usage_disk of each snapshot, in order, and of the live head */
/* vmfs/usage.h says what is counted, in units. Hosts that do not know of it leave flag and numbers out, and the next one counts again. */
struct vmfs_usage_disk {
    gr_le64 used, own, lost;
    gr_le64 passed; /* snapshots that are being given back; else zero */
} __attribute__((packed));
GR_SIZE(struct vmfs_usage_disk, 32);
#define VMFS_CONTENT_COPIED 1u /* units of it may have other owners: it was copied from, or to, by sharing */
struct vmfs_snap_disk {
    gr_le64 id, parent, epoch, lineage, size;
    struct vmfs_ptr_disk root;
    gr_le32 level, flags;   /* VMFS_SNAP_* */
    gr_le64 cursor;         /* deleting: pieces below are given back */
    gr_le64 created_s;
    gr_le32 clones, reserved; /* clones: goes home together with the clones' names, no record */
    uint8_t group[16];
    gr_le16 name_len;
    char name[];
} __attribute__((packed));
GR_SIZE(struct vmfs_snap_disk, 106);
#define VMFS_SNAP_HIDDEN 1u   /* not listed: deleted by the user, or an old live head after a revert */
#define VMFS_SNAP_DELETING 2u /* being given back */
struct vmfs_lineage_disk {
    gr_le64 lineage, parent, epoch; /* grew from @parent at @epoch */
} __attribute__((packed));
struct vmfs_bookmark_disk {
    gr_le64 lineage, epoch, created_s;
    gr_le16 name_len;
    char name[];
} __attribute__((packed));
/* Keys are the owners' (reservations, incarnations …). The volume itself knows these: "physical-block", a gr_le32 of 512 for a disk that
 * reports 512-byte physical blocks (absent: 4096), "lun", a struct vmfs_lun_disk (absent: zeros), "keys", a struct vmfs_keys_at_disk
 * for a disk or file that is encrypted, which never changes, "posix", a struct vmfs_posix_disk, "protected-N" of the snapshot whose id is N, in hexadecimal,
 * a struct vmfs_protected_disk: neither it nor the disk is removed, "removed-as", the path that a removed disk had which is kept for its clones, and
 * "removed-from", a gr_le64, the directory it was in (absent: an older release removed it), "heir-of", gr_le64s: objects whose snapshots became this one's under the same ids, so that pins of readers elsewhere may still name those.
 * "expires-N", a gr_le64: seconds since 1970, from when on whoever prunes snapshots removes it. "part-of-N", text: the virtual machine of one of whose snapshots it
 * is a part. "lost-writes", a gr_le32 with a bit for each device that
 * was lost with writes that it had acknowledged and nobody had flushed. */
struct vmfs_protected_disk {
    gr_le64 since_s;
    char text[]; /* who, a NUL, why */
} __attribute__((packed));
struct vmfs_attr_disk {
    gr_le16 key_len, reserved;
    gr_le32 val_len;
    char bytes[]; /* key, value */
} __attribute__((packed));

struct vmfs_lun_disk {
    gr_le32 flags;     /* enum vmfs_lun_flags */
    gr_le32 iops;      /* limits; 0: none */
    gr_le64 bytes_per_s;
    gr_le32 burst_ms, reserved;
} __attribute__((packed));
GR_SIZE(struct vmfs_lun_disk, 24);

/* ENCRYPTED DISKS, and regular files (the memory of a virtual machine) in the same way. Data pieces are AES-256-XTS ciphertext
 * (vmfs/cipher.h), and so is what CRCs of data are of; holes, reserved and zeroed pieces have no data. The data keys of a disk lie wrapped in a block of their own, in two copies of one unit each; the newer valid copy
 * counts. It is written in place by who holds the disk, copy B first, and by nothing else: it is in no journal, no image, no blob and no
 * backup of a block, so overwriting both copies ends the data. The data key of a piece is the last one whose epoch is not behind the piece's
 * birth. Key-encryption keys are never on the volume; a key_id is the first 8 bytes, read as a big-endian number, of SHA-256 of
 * "granary key number 1", a NUL and the 32 bytes of the key. */
#define VMFS_KEY_ERASED UINT64_MAX /* key_id of a disk whose keys were destroyed */
#define VMFS_KEK_BYTES 32u
#define VMFS_DATA_KEY_BYTES 64u    /* AES-256 key of the data, AES-256 key of the tweak */
#define VMFS_KEY_NONCE 12u
#define VMFS_KEY_TAG 16u
#define VMFS_KEYS_MAX 32u
struct vmfs_keys_at_disk {
    gr_le64 addr_a, addr_b;
} __attribute__((packed));
GR_SIZE(struct vmfs_keys_at_disk, 16);
/* AES-256-GCM of the data key; additional data: "granary data key 1" padded with NULs to 24 bytes, then @from. */
struct vmfs_key_disk {
    gr_le64 from; /* epoch */
    gr_le64 kek;  /* key_id of the key it is wrapped with */
    uint8_t nonce[VMFS_KEY_NONCE], tag[VMFS_KEY_TAG], wrapped[VMFS_DATA_KEY_BYTES];
    gr_le32 reserved;
} __attribute__((packed));
GR_SIZE(struct vmfs_key_disk, 112);
struct vmfs_keys_disk {
    struct vmfs_hdr_disk hdr;
    gr_le32 n, erased; /* rule 7: 1..VMFS_KEYS_MAX, ascending by epoch; or erased 1, none, and zeros */
    struct vmfs_key_disk key[VMFS_KEYS_MAX];
    uint8_t pad[4096 - 64 - 8 - VMFS_KEYS_MAX * 112];
} __attribute__((packed));
GR_SIZE(struct vmfs_keys_disk, 4096);

/* Interior node (VMFS_T_NODE, one unit): header (reserved = level), then VMFS_FANOUT pointers.
 * Leaf (VMFS_T_LEAF, 1..9 units; 1..11 with data CRCs): header, tag[VMFS_FANOUT], then one payload per block whose tag is not EMPTY:
 *   EXTENT  addr, birth, written, zero        one run, one birth
 *   RUN     addr, written, zero, birth[16]    one run, 16 births
 *   SPLIT   written, zero, {addr, birth}[16]  sixteen of everything
 * State of a piece by (written, zero): 1,0 data · 0,1 reserved: owned, never written, reads zero · 1,1 zeroed: owned, reads
 * zero, born then · 0,0 hole: not owned, reads zero, born then (births of holes count: an unmap is a change).
 * VMFS_LEAF_CRC is added to the tag of every block with a piece of data, on volumes with VMFS_INCOMPAT_DATA_CRC and on no others: behind
 * the payload there is the CRC32C of each of the sixteen pieces, zero where there is no data. */
enum vmfs_leaf_tag { VMFS_LEAF_EMPTY = 0, VMFS_LEAF_EXTENT = 1, VMFS_LEAF_RUN = 2, VMFS_LEAF_SPLIT = 3 };
struct vmfs_node_disk {
    struct vmfs_hdr_disk hdr;
    gr_le32 level, reserved;
    struct vmfs_ptr_disk child[VMFS_FANOUT];
} __attribute__((packed));
GR_SIZE(struct vmfs_node_disk, 2120);
#define VMFS_EXTENT_BYTES 20u
#define VMFS_RUN_BYTES 140u
#define VMFS_SPLIT_BYTES 260u
#define VMFS_LEAF_CRC 4u
#define VMFS_CRC_BYTES 64u
#define VMFS_LEAF_UNITS_MAX 9u
#define VMFS_LEAF_UNITS_MAX_CRC 11u

/* Journal frame: this header, then payload, padded to units. A frame may wrap at the end of the journal area. */
enum vmfs_frame_kind { VMFS_FRAME_RECORDS = 1, VMFS_FRAME_IMAGES = 2 };
struct vmfs_frame_disk {
    struct vmfs_hdr_disk hdr;      /* type FRAME; generation = slot generation; units = units of the frame; self = offset in the journal */
    gr_le64 seq;                   /* the first frame of a journal is 1; never reset */
    gr_le64 watermark;             /* frames up to here were durable when this one was written: their data is never doubted */
    gr_le32 kind, n_records;
    gr_le32 payload;               /* bytes */
    gr_le32 previous;              /* crc32c of the frame before it (the first one behind the tail: not looked at) */
    gr_le64 covers;                /* IMAGES: state after this frame is in the images */
    gr_le32 part, parts;           /* IMAGES: which of how many */
} __attribute__((packed));
GR_SIZE(struct vmfs_frame_disk, 112);

enum vmfs_record_type {
    VMFS_R_MAP = 1,    /* pieces of an object get a new address and state */
    VMFS_R_SNAP_ADD,   /* new snapshot: the live root is frozen, epoch + 1 */
    VMFS_R_SNAP_FLAGS, /* hidden, deleting */
    VMFS_R_SNAP_FREE,  /* units only a deleting snapshot needed are free; its cursor moves */
    VMFS_R_SNAP_DROP,  /* a deleted snapshot leaves the table */
    VMFS_R_REVERT,     /* the live head becomes a snapshot's content, new lineage */
    VMFS_R_BOOKMARK,   /* bookmark added, or dropped (epoch 0) */
    VMFS_R_RESIZE,
    VMFS_R_ATTR,       /* small durable store of the logical unit */
    VMFS_R_RESERVE = 11, /* promised overwrite space */
    VMFS_R_EPOCH,        /* epoch + 1 without a snapshot: nothing that exists is overwritten in place any more */
};
struct vmfs_rec_disk {
    gr_le16 type, flags;
    gr_le32 len;      /* bytes of the record, this header included, multiple of 4 */
    gr_le64 object;   /* inode id */
    gr_le64 token;    /* lock token the record was written under: another token in the inode means somebody went on; skip */
} __attribute__((packed));
GR_SIZE(struct vmfs_rec_disk, 24);
struct vmfs_rec_map_disk {
    struct vmfs_rec_disk r;   /* flags: VMFS_RF_TRUSTED = data was durable before the record: no check */
    gr_le64 piece, birth;
    gr_le64 addr;             /* of the first piece; 0 for holes */
    gr_le32 count, state;     /* VMFS_P_* */
    gr_le32 crc[];            /* DATA and not TRUSTED, or DATA of a volume with data CRCs: CRC32C of each piece */
} __attribute__((packed));
GR_SIZE(struct vmfs_rec_map_disk, 56);
#define VMFS_RF_TRUSTED 1u
#define VMFS_RF_SHARED 2u /* DATA, TRUSTED: the units are somebody's already; the piece is one more owner of them */
enum vmfs_piece_state { VMFS_P_HOLE = 0, VMFS_P_DATA = 1, VMFS_P_RESERVED = 2, VMFS_P_ZEROED = 3 }; /* bit 0 written, bit 1 zero */
struct vmfs_rec_snap_disk { /* SNAP_ADD, SNAP_FLAGS (flags), SNAP_DROP, REVERT (id; lineage new) */
    struct vmfs_rec_disk r;
    gr_le64 id, lineage, created_s;
    gr_le32 value; /* flags (SNAP_ADD with DELETING: the live head becomes empty) */
    gr_le16 name_len, reserved;
    uint8_t group[16];
    char name[];
} __attribute__((packed));
GR_SIZE(struct vmfs_rec_snap_disk, 72);
struct vmfs_rec_free_disk {
    struct vmfs_rec_disk r; /* flags: VMFS_RF_COUNTED */
    gr_le64 id, cursor;
    gr_le32 n_runs, reserved;
    struct vmfs_run_disk runs[]; /* and, COUNTED, behind them a struct vmfs_rec_counts_disk */
} __attribute__((packed));
#define VMFS_RF_COUNTED 4u
struct vmfs_rec_counts_disk { /* vmfs/usage.h */
    gr_le64 units;            /* of data among what is freed */
    gr_le64 passed;
    gr_le32 n_lost, reserved;
    struct vmfs_rec_lost_disk {
        gr_le64 snap;         /* 0: the live head */
        gr_le64 units;
    } lost[];                 /* of trees that grew from the successor: what they have lost of what is its own now */
} __attribute__((packed));
GR_SIZE(struct vmfs_rec_counts_disk, 24);
struct vmfs_rec_value_disk { /* RESIZE, RESERVE, EPOCH (the new one) */
    struct vmfs_rec_disk r;
    gr_le64 value;
} __attribute__((packed));
struct vmfs_rec_bookmark_disk {
    struct vmfs_rec_disk r;
    gr_le64 lineage, epoch, created_s;
    gr_le16 name_len, reserved;
    char name[];
} __attribute__((packed));
struct vmfs_rec_attr_disk {
    struct vmfs_rec_disk r;
    gr_le16 key_len, reserved;
    gr_le32 val_len; /* 0: delete */
    char bytes[];
} __attribute__((packed));
/* Payload of an IMAGES frame: n_records of these. */
struct vmfs_image_disk {
    gr_le64 addr_a, addr_b;
    uint8_t block[4096]; /* as for copy A; copy B differs in self and crc only */
} __attribute__((packed));
GR_SIZE(struct vmfs_image_disk, 4112);
#endif
