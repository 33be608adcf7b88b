/* Units of a region with more owners than one: the list that its header names. Thread rule: the loop of the volume. */
#ifndef VMFS_SHARE_H
#define VMFS_SHARE_H
#include "vmfs/format.h"
#include <stdbool.h>

struct gr_err;
struct vmfs;
struct vregion;
/* Owners of [at, at+units) of a region: one more, or one less where there are more than one [sync]. 0; -ENOMEM: nothing changed. */
int share_change(struct vregion *r, uint32_t at, uint32_t units, bool more);
/* Is the unit @at shared? *ret_units: so many from there on are alike, at most @units [sync]. */
bool share_at(const struct vregion *r, uint32_t at, uint32_t units, uint32_t *ret_units);
/* Nothing of [at, at+units) is on the list any more [sync]. 0; -ENOMEM. */
int share_cut(struct vregion *r, uint32_t at, uint32_t units);
int share_load(struct vmfs *v, struct vregion *r, const struct vmfs_region_disk *h, struct gr_err *err);
uint32_t share_blob_units(const struct vregion *r);
void share_blob_encode(const struct vregion *r, void *units); /* behind the header [sync] */
/* Rule 7: ascending, apart, inside a region of @units. */
bool share_list_ok(const struct vmfs_share_disk *d, size_t n, uint32_t units);
#endif
