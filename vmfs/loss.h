/* A device that is lost while the volume is in use: loss.c tells how it is done. Thread rule: the loop of the volume. */
#ifndef VMFS_LOSS_H
#define VMFS_LOSS_H
#include "vmfs/internal.h"

/* [sync] Do tables lie there that all depend on, or journals? */
bool vdev_has_tables(const struct vmfs *v, unsigned dev);
bool vdev_needed(const struct vmfs *v, unsigned dev); /* [sync] these, or something else that a volume cannot be joined without? */
/* [sync] Within vmfs_fence(): is it because of devices without tables? Then v->lost says what is lost with them. */
bool vloss_found(struct vmfs *v);
/* After a request to devices @devs failed: are they lost? -GR_EFENCED: yes, the volume was given up; else @r (fiber). */
int vloss_look(struct vmfs *v, uint32_t devs, int r);
void vloss_suspect(struct vmfs *v, uint32_t devs); /* the same in the background [sync] */
/* After a look that device 0 answered: is there one that is silent for so long that it is lost? [sync] */
void vloss_watch(struct vmfs *v, unsigned look_ms, unsigned patience_ms);
/* What was lost goes into our slot; nothing of ours is under way any more. -GR_EFENCED: another host has begun to take it over. */
int vloss_write(struct vmfs *v);
int vdev_swap_last(struct vmfs *v, uint64_t addr, const void *was, const void *now); /* vdev_swap() when the volume was given up */
/* The superblock says that the tables of @dev are stale; no lock is needed. @anew: also when it says so already, so that all hosts look at it again.
 * -GR_EVERSION: another host does not know that. */
int vloss_mark(struct vmfs *v, unsigned dev, bool anew, struct gr_err *err);
int vloss_unmark(struct vmfs *v, unsigned dev, struct gr_err *err);
/* Of devices that are stale, as @s says, and open here: nothing of who lost them reaches them any more (shut_out.c). */
int vloss_shut_out(struct vmfs *v, const struct vsuper *s, struct gr_err *err);
#define VMFS_ATTR_LOST "lost-writes"
uint32_t vobj_lost_writes(const struct vobj *o); /* devices that were lost with unflushed writes of it, a bit each */
int vloss_poison(struct vobj *o, uint32_t devices); /* unflushed writes of it were lost [sync] */

/* space_lease() of a region whose device was lost, with what was counted in place of what its tables say; *@n's list is taken. */
struct recount {
    const uint64_t *used;
    struct vshare *shares;
    size_t n_shares;
};
int space_lease_recounted(struct vmfs *v, uint32_t index, struct recount *n, struct gr_err *err);
#endif
