/* A part of a device as a device: several devices whose histories are one (tests/lib/crash_replay.h). */
#ifndef SLICE_H
#define SLICE_H
#include "common/bdev.h"
/* [off, off+size) of @lower, of which it takes a reference. */
int slice_open(struct gr_bdev *lower, uint64_t off, uint64_t size, struct gr_bdev **ret);
#endif
