/* Cached reading of an image (a read-only gr_bdev) in blocks of 256 KiB, with read-ahead. For fibers of one loop. */
#ifndef FS_CACHE_H
#define FS_CACHE_H
#include "common/bdev.h"

#define FS_CACHE_BLOCK (256u << 10)
struct fs_cache;
/* Cache of at most about @max_bytes over @bdev (takes a reference). Free with fs_cache_free. */
int fs_cache_new(struct gr_loop *loop, struct gr_bdev *bdev, size_t max_bytes, struct fs_cache **ret, struct gr_err *err);
void fs_cache_free(struct fs_cache *c); /* fiber: waits for read-ahead under way; NULL allowed */
uint64_t fs_cache_size(const struct fs_cache *c); /* bytes of the image */
/* Read exactly [off, off+len), fiber. 0, -GR_ERANGE outside the image, or the device's error. */
int fs_cache_read(struct fs_cache *c, void *buf, size_t len, uint64_t off);
/* Start reading [off, off+len) in the background, as far as it is not there; never waits, errors show at the read. */
void fs_cache_ahead(struct fs_cache *c, uint64_t off, uint64_t len);
/* Time spent waiting for the device so far, ns (a watchdog subtracts it). */
uint64_t fs_cache_wait_ns(const struct fs_cache *c);
#endif
