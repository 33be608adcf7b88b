/* A volume of which a device is lost for good, opened for reading what is left: rescue.c. Thread rule: the loop of the volume. */
#ifndef VMFS_RESCUE_H
#define VMFS_RESCUE_H
#include "vmfs/behind.h"

struct vrescue;
/* The devices that were given are put behind memory; of those that are missing, memory takes the place of the ones that held tables. v->dev is
 * then what is to be joined. -EINVAL: none is missing; -ENODEV: too much is. */
int vrescue_begin(struct vmfs *v, struct gr_err *err);
/* Hosts whose journals are lost have left, as of their last checkpoint. -GR_ELOCKED: one of those that have joined is there. */
int vrescue_slots(struct vmfs *v, struct gr_err *err);
/* Also for replace.c, of v->dev as they were given: */
int vrescue_supers(struct vmfs *v, struct vsuper *s, unsigned *ret_first, struct gr_err *err); /* of each; which counts. -EINVAL: one belongs to another, or was replaced */
/* The number of each, and a bit for each that is missing; v->sb is known. -EINVAL: none is, or one was given twice; -ENODEV: too many are [sync] */
int vrescue_missing(const struct vmfs *v, const struct vsuper *s, int *number, uint32_t *ret_lost, struct gr_err *err);
uint64_t vrescue_other_copy(const struct vmfs *v, uint64_t addr); /* of the table's block at @addr; 0: it is no table's [sync] */
int vrescue_too_short(const struct vmfs *v, const struct gr_bdev *bdev, unsigned dev, struct gr_err *err); /* 0; -GR_ECORRUPT: it is, for device @dev [sync] */
void vrescue_end(struct vmfs *v); /* the channels are closed */
bool vrescue_lost(const struct vmfs *v, unsigned dev); /* [sync] a device that is missing for good, whether memory stands for it or not */
int vrescue_device(const struct vmfs *v, const struct gr_bdev *bdev); /* [sync] the number of the one that was given as @bdev; -ENOENT */
int vrescue_refuse(const struct vmfs *v, struct gr_err *err); /* [sync] 0; -GR_EREADONLY: nothing is changed on a volume that is being rescued */
struct vbehind *vrescue_behind(const struct vmfs *v); /* [sync] NULL: an ordinary volume */
#endif
