/* The view of disks of a guest (of a restore point, or a raw image):
 *   DISK/disk.raw           the whole disk, raw
 *   DISK/partitions.json    what was found on it
 *   DISK/part1/…            files of the file system in partition 1, and so on; lv-GROUP-VOLUME/…, whole/… */
#ifndef MOUNT_GUEST_H
#define MOUNT_GUEST_H
#include "backup-proxy/fs_reader.h"
#include "backup-proxy/mount_view.h"

struct mount_disk {
    const char *name;     /* valid file name */
    struct gr_bdev *bdev; /* a reference is taken */
};
/* @mtime: shown for what is ours (seconds, when the point was taken). @uid, @gid: owner of what is ours. */
struct mount_guest_opts {
    int64_t mtime;
    uid_t uid;
    gid_t gid;
    struct fs_reader_opts reader;
};
int mount_guest_new(struct gr_loop *loop, const struct mount_disk *disks, unsigned n, const struct mount_guest_opts *opts,
                    struct mount_view *ret, struct gr_err *err);
/* The text of DISK/partitions.json: new memory. Fiber. */
int mount_guest_describe(struct fs_reader *r, char **ret, struct gr_err *err);
#endif
