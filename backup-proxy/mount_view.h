/* What is shown under a mount point: a read-only tree behind a table, so that the FUSE side (mount_fuse.h) knows nothing
 * of guests, restore points or datastores. An object is a small value, not a handle: the FUSE side keeps one node per
 * object that the kernel knows, and asks with the value. All functions run in fibers; errors are negative codes. */
#ifndef MOUNT_VIEW_H
#define MOUNT_VIEW_H
#include "common/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

struct mount_obj {
    uint32_t kind, disk, vol; /* the view's own meaning; all zero: the root */
    uint64_t inode;
};
struct mount_found {
    struct mount_obj obj;
    struct stat st; /* st_ino unique in the mount */
    bool broken;    /* there is a name, but what it names cannot be read: -EIO when looked up */
};
struct mount_view_ops {
    /* The root, and what the kernel asks again. */
    int (*getattr)(void *view, const struct mount_obj *o, struct stat *ret);
    int (*lookup)(void *view, const struct mount_obj *dir, const char *name, struct mount_found *ret); /* -ENOENT */
    int (*readlink)(void *view, const struct mount_obj *o, char *buf, size_t cap); /* NUL-terminated */
    /* Directories: entry @i (from 0, without "." and ".."): 1, or 0 behind the last. The name is valid until closedir. */
    int (*opendir)(void *view, const struct mount_obj *o, void **ret);
    int (*entry)(void *view, void *dir, uint64_t i, const char **ret_name, struct mount_found *ret);
    void (*closedir)(void *view, void *dir);
    /* @st: what was last told about it (exact when the view is immutable). */
    int (*open)(void *view, const struct mount_obj *o, const struct stat *st, void **ret);
    int64_t (*read)(void *view, void *file, void *buf, size_t len, uint64_t off);
    void (*close)(void *view, void *file);
    void (*free)(void *view); /* fiber; nothing is open */
};
struct mount_view {
    const struct mount_view_ops *ops;
    void *impl;
    bool immutable; /* nothing in it ever changes: the kernel may keep all it knows */
    bool guest_ids; /* owners and modes are a guest's */
};
#endif
