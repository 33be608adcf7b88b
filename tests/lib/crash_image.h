/* Images of a device that share pages: what a power cut left, as a gr_bdev. Cheap to copy, so that thousands can be tried. */
#ifndef CRASH_IMAGE_H
#define CRASH_IMAGE_H
#include "common/bdev.h"

struct crash_image;
struct crash_image *crash_image_new(uint64_t size);                      /* zeros */
struct crash_image *crash_image_copy(const struct crash_image *from);    /* shares all pages */
void crash_image_free(struct crash_image *img);
uint64_t crash_image_size(const struct crash_image *img);
/* Whole 512-byte sectors. */
void crash_image_write(struct crash_image *img, uint64_t off, const void *data, size_t len);
void crash_image_zero(struct crash_image *img, uint64_t off, uint64_t len);
void crash_image_read(const struct crash_image *img, uint64_t off, void *data, size_t len);

/* The image as a device. @seed 0: requests complete inside the call. Else each waits some random tenths of a millisecond, so
 * that they overtake each other; two writes in flight on the same bytes are counted (crash_image_races), for nobody may
 * rely on their order (two COMPARE_WRITEs of different hosts have one). The image outlives the device. Named locks: each handle is a process of its own. */
int crash_image_open(struct gr_loop *loop, struct crash_image *img, uint64_t seed, struct gr_bdev **ret);
uint64_t crash_image_races(const struct crash_image *img);
#endif
