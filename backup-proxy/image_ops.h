/* Disk images for whoever imports and exports them (the storage service): reading, writing and copying by format name. */
#ifndef BP_IMAGE_OPS_H
#define BP_IMAGE_OPS_H
#include "common/bdev.h"

/* "vmdk" when the file @path looks like one, else "raw"; NULL and *err when it cannot be read. */
const char *bp_image_probe(const char *path, struct gr_err *err);
/* (fiber) Open @path as a read-only bdev. @format must be "vmdk". @extents as bp_vmdk_open(). */
int bp_image_open(struct gr_loop *loop, const char *path, const char *format, const char *const *extents, struct gr_bdev **ret,
                  struct gr_err *err);
/* (fiber) Write all of @src as an image of @format ("vmdk": stream-optimized) named @name to @fd. */
int bp_image_write(struct gr_chan *src, const char *name, int fd, const char *format,
                   int (*progress)(void *arg, uint64_t done, uint64_t total), void *arg, struct gr_err *err);
/* (fiber) Copy what is not zero of @src to @dst, which reads as zeros; flushes @dst. */
int bp_image_copy(struct gr_chan *src, struct gr_chan *dst, int (*progress)(void *arg, uint64_t done, uint64_t total), void *arg,
                  struct gr_err *err);
#endif
