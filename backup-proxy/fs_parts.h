/* Partition tables: GPT (UEFI 2.10, chapter 5) with sectors of 512 or 4096 bytes, MBR with logical partitions, or a
 * file system on the whole disk. Runs inside the sandboxed reader: the image is hostile. Needs libc only. */
#ifndef FS_PARTS_H
#define FS_PARTS_H
#include "backup-proxy/fs_proto.h"

/* Bytes to look at. read: 0 or a negative errno; the range lies inside [0, size). */
struct fs_image {
    uint64_t size;   /* bytes */
    uint32_t sector; /* 512 or 4096: what the disk tells; the other size is tried as well */
    int (*read)(void *arg, uint64_t off, void *buf, size_t len);
    void *arg;
};
/* Find the volumes of @img: fills out[0..return) (at most @max) in the order of their numbers; *ret_kind ("gpt", "mbr",
 * "none") is static. A disk without a table gives one volume of kind FS_V_WHOLE. Entries outside of the disk are left
 * out. Returns the count, or a negative errno when the image cannot be read. */
int fs_parts_scan(const struct fs_image *img, struct fs_volume *out, unsigned max, const char **ret_kind);
/* Read the checked range [off, off+len) of volume @v of @img: 0, -ERANGE or the image's error. */
int fs_parts_read(const struct fs_image *img, const struct fs_volume *v, uint64_t off, void *buf, size_t len);
#endif
