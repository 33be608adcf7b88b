/* Snapshots: what is made of births and roots. Names live per disk; snapshots and bookmarks share one name space.
 * Thread rule as vmfs/vmfs.h: the volume's loop, in a fiber. */
#ifndef SNAPSHOT_H
#define SNAPSHOT_H
#include "vmfs/vmfs.h"

#define SNAP_TEXT_ATTR "snapshot.text." /* and the id in hexadecimal: attribute of a disk that describes its snapshot */
#define SNAP_WHO_MAX 128u
#define SNAP_WHY_MAX 512u
struct snap_info {
    char name[VMFS_NAME_MAX + 1];
    bool is_bookmark;
    uint64_t id;          /* stable number within the disk; 0 for bookmarks */
    uint64_t parent_id;   /* snapshot this one grew from; 0: none */
    int64_t created_s;    /* wall clock */
    uint64_t size;        /* bytes: size of the disk at that instant */
    struct gr_bookmark bookmark; /* disk, lineage, epoch: keep it to ask what changed since */
    unsigned clones;      /* disks that start here */
    bool counted;         /* used and unique are known (struct vmfs_stat) */
    uint64_t used;        /* bytes of data that it names */
    uint64_t unique;      /* bytes that deleting it alone gives back: none while clones, or lines of several snapshots, start here. At most: what
                             other disks share by copying stays */
    bool current;         /* the live head grew from it */
    bool deleting;        /* going away in the background */
    unsigned pins;        /* readers elsewhere */
    char group[37];       /* uuid text of the group taken in one instant */
    int64_t expires_s;    /* from then on it is removed by whoever prunes; 0: never */
    bool protect;         /* it is not deleted: */
    int64_t protected_s;  /* since then, */
    char protected_by[SNAP_WHO_MAX], protected_why[SNAP_WHY_MAX + 1];
};
struct snap_new {
    const char *name;
    int64_t expires_s; /* 0: never */
    const uint8_t *group; /* 16 bytes: the number of the instant; NULL: a new one. Not of snap_create_held() */
};
/* One instant of all @disks; durable when it returns. -EEXIST names the disk that has @name already (then nothing is done). */
int snap_create(struct vmfs_disk *const *disks, unsigned n, const char *name, struct gr_err *err);
int snap_create_new(struct vmfs_disk *const *disks, unsigned n, const struct snap_new *s, struct gr_err *err);
/* An instant of disks of several hosts is made of two steps on each, all hosts having done the first before any does the next: hold (no write is
 * admitted any more; those that were are part of it, reads and flushes go on), and take, which lets them go on at once [sync]; with snap_taken() it
 * is durable. What is acknowledged on one host before something is written on another is then in the first's snapshot, if that is in the second's: it
 * was admitted before the hold there, as all were held before any went on. Held disks must be resumed or taken by whoever held them. -EEXIST: as above. */
int snap_hold(struct vmfs_disk *const *disks, unsigned n, const char *name, struct gr_err *err);
int snap_create_held(struct vmfs_disk *const *disks, unsigned n, const struct snap_new *s, const uint8_t group[16], struct gr_err *err);
int snap_taken(struct vmfs_disk *const *disks, unsigned n, struct gr_err *err);
void snap_resume(struct vmfs_disk *const *disks, unsigned n);
/* Another name, from now on; durable with the next checkpoint. */
int snap_rename(struct vmfs_disk *d, const char *name, const char *to, struct gr_err *err);
int snap_list(struct vmfs_disk *d, int (*fn)(void *arg, const struct snap_info *info), void *arg, struct gr_err *err);
/* Snapshots of an object that another host may have: as they are at home, as of its last checkpoint. */
int snap_list_home(struct vmfs *v, uint64_t id, int (*fn)(void *arg, const struct snap_info *info), void *arg, struct gr_err *err);
int snap_list_kept(struct vmfs_disk *d, int (*fn)(void *arg, const struct snap_info *info), void *arg, struct gr_err *err); /* deleted, with clones */
int snap_find(struct vmfs_disk *d, const char *name, struct snap_info *ret, struct gr_err *err); /* -ENOENT */
/* Gone from the list at once, durably; space comes back in the background. @keep_bookmark leaves a bookmark of the same name.
 * A snapshot with clones stays hidden until they are gone. -GR_ELOCKED: pinned by readers (named), or protected. */
int snap_delete(struct vmfs_disk *d, const char *name, bool keep_bookmark, struct gr_err *err);
/* The same, if the snapshot of that name still is the one that somebody looked at, and expires when it did then; else -ESTALE. */
struct snap_seen {
    struct gr_bookmark bookmark;
    int64_t expires_s;
};
int snap_delete_seen(struct vmfs_disk *d, const char *name, const struct snap_seen *seen, struct gr_err *err);
/* Nobody deletes it, nor its disk (-GR_ELOCKED with who and why), until it is unprotected. Durable. */
int snap_protect(struct vmfs_disk *d, const char *name, const char *by, const char *why, struct gr_err *err);
int snap_unprotect(struct vmfs_disk *d, const char *name, struct gr_err *err);
int snap_expire(struct vmfs_disk *d, const char *name, int64_t at_s, struct gr_err *err); /* 0: never. Durable */
/* It is part of a snapshot of @of, a virtual machine ("": of none any more): it stays with its disk (snap_promote). Durable. */
int snap_part_of(struct vmfs_disk *d, const char *name, const char *of, struct gr_err *err);
void snap_text_key(uint64_t id, char ret[33]); /* of the attribute that says what snapshot @id is for */
int snap_bookmark(struct vmfs_disk *d, const char *snapshot, const char *bookmark, struct gr_err *err);
/* Wait until no snapshot of @d is being deleted any more. */
int snap_settle(struct vmfs_disk *d, struct gr_err *err);
/* The live disk becomes what the snapshot is; later snapshots stay. GR_EVENT_REVERTED. The disk's own I/O is held meanwhile. -GR_ENOSPACE: a thick disk was
 * longer then, and there is no room to promise. */
int snap_revert(struct vmfs_disk *d, const char *name, struct gr_err *err);
/* New disk @path of the same volume that starts at the snapshot. */
int snap_clone(struct vmfs_disk *d, const char *name, const char *path, struct gr_err *err);
/* Many of them. On failure the first *ret_made (may be NULL) exist; of as many as fit one checkpoint all are made, or none. @ret_ids (may be NULL):
 * @n object ids. */
int snap_clone_many(struct vmfs_disk *d, const char *name, const char *const *paths, unsigned n, unsigned *ret_made, uint64_t *ret_ids,
                    struct gr_err *err);
/* The clone and the disk it was cloned from change places: the snapshot it starts at and those before it become the clone's, and that disk is a clone
 * that starts there. Durable. -EBUSY and why: other clones, readers, snapshots of the clone, a revert of the other disk, parts of snapshots of a
 * virtual machine. */
int snap_promote(struct vmfs_disk *d, struct gr_err *err);
/* Read-only bdev of a snapshot; holds the snapshot while open (a delete waits hidden). Put with gr_bdev_put. */
int snap_open(struct vmfs_disk *d, const char *name, struct gr_bdev **ret, struct gr_err *err);
/* The same for a process that joined as VMFS_READER: pins the snapshot in the reader's slot. @path is the disk. */
int snap_open_reader(struct vmfs *reader, const char *path, const char *name, struct gr_bdev **ret, struct gr_err *err);
/* Changes from @base (name of a snapshot or bookmark, or a token of gr_bookmark_format()) to @to (NULL: the live disk at one
 * instant), in ascending order, merged, exact to 4 KiB. fn returns < 0 to stop. -ENOENT: base unknown here, and why. */
int snap_diff(struct vmfs_disk *d, const char *base, const char *to, int (*fn)(void *arg, uint64_t off, uint64_t len, bool zero), void *arg,
              struct gr_err *err);
int snap_resolve_base(struct vmfs_disk *d, const char *base, struct gr_bookmark *ret, struct gr_err *err);
#endif
