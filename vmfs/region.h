/* Between region.c, space.c and frees.c: the counts of the regions leased here. Thread rule: the loop of the volume. */
#ifndef VMFS_REGION_H
#define VMFS_REGION_H
#include "vmfs/space.h"

/* Units of [addr, addr+units) that lie in the region of @addr: runs go on across regions that are neighbours. [sync] */
uint32_t space_in_region(const struct vmfs *v, uint64_t addr, uint32_t units);
void space_busy_change(struct vmfs *v, struct vregion *r, uint32_t at, uint32_t units, bool taken); /* its units may be taken, or may not [sync] */
void space_used_change(struct vmfs *v, struct vregion *r, int64_t n); /* so many more of its units are not used [sync] */
/* lease_lock held: one more region with free units; of them, one on a device that holds tables. -GR_ENOSPACE: none can be had (fiber). */
int space_lease_more(struct vmfs *v, struct gr_err *err);
int space_lease_steady(struct vmfs *v, struct gr_err *err);
void space_foreign_return(struct vmfs *v, struct vregion *r); /* foreign frees of a region that is leased here are its own again [sync] */
#endif
