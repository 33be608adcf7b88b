/* VMDK images: what goes out to and comes in from other products.
 *
 * Out: stream-optimized, to any descriptor (file, pipe). In: stream-optimized (ours, VMware's, open-vmdk's, qemu's),
 * monolithicSparse, and flat extents through a text descriptor. An image that is read never makes us open a file that the
 * operator did not name: extents of a descriptor must be among the files given, parents are refused. */
#ifndef BP_VMDK_H
#define BP_VMDK_H
#include "common/bdev.h"

struct bp_vmdk_stats {
    uint64_t disk_bytes;  /* virtual size */
    uint64_t read_bytes;  /* read from the source */
    uint64_t grains;      /* grains holding data */
    uint64_t file_bytes;  /* written */
};
struct bp_vmdk_opts {
    const char *name;   /* extent name shown in the descriptor; NULL: "disk.vmdk" */
    unsigned level;     /* deflate level 1..3; 0: 1 */
    unsigned lanes;     /* grains runs in flight, 1..16; 0: 6 */
    const uint8_t *uuid; /* 16 bytes, ddb.uuid; NULL: none */
    int (*progress)(void *arg, uint64_t done, uint64_t total); /* bytes of the disk; negative: give up with that code; NULL: none */
    void *arg;
};
/* Write all of @src (a channel on the running fiber's loop) as a stream-optimized VMDK to @fd, which needs not be seekable
 * and is not synced. Returns 0 and *ret_stats; -EFBIG when the file would pass 2 TiB; the source's or the file's code.
 * @opts, @ret_stats may be NULL. Fiber; suspends. */
int bp_vmdk_export(struct gr_chan *src, int fd, const struct bp_vmdk_opts *opts, struct bp_vmdk_stats *ret_stats, struct gr_err *err);
/* The same into a new file @path: written beside it as a temporary file, synced, then renamed. -EEXIST: @path is there. */
int bp_vmdk_export_file(struct gr_chan *src, const char *path, const struct bp_vmdk_opts *opts, struct bp_vmdk_stats *ret_stats,
                        struct gr_err *err);

/* 1 when the file @path looks like a VMDK (sparse magic or a text descriptor), 0 when not, negative code. Only for a choice the
 * operator can overrule: the content of a raw disk is under its guest's control. */
int bp_vmdk_probe(const char *path, struct gr_err *err);
/* Open the image @path as a read-only bdev with extents. @extents: NULL-terminated list of the files which a text descriptor
 * may name (by their last path part); NULL: none. Errors: -GR_EFORMAT, -GR_EVERSION, -GR_ECORRUPT, -EACCES (an extent that was
 * not named), each with its place. Blocks on a few small reads. */
int bp_vmdk_open(struct gr_loop *loop, const char *path, const char *const *extents, struct gr_bdev **ret, struct gr_err *err);

/* Copy the data of @src to @dst: runs that read as zeros are left alone when @dst_zero says that @dst reads as zeros already,
 * else written as zeros. @dst must be at least as large, else -GR_ERANGE. Flushes @dst. Several copies in flight. Fiber. */
int bp_copy(struct gr_chan *src, struct gr_chan *dst, bool dst_zero, int (*progress)(void *arg, uint64_t done, uint64_t total), void *arg,
            struct gr_err *err);
#endif
