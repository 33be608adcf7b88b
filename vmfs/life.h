/* Slots, and whether the process that answers for one is there. Part of vmfs/internal.h. */
#ifndef VMFS_LIFE_H
#define VMFS_LIFE_H
#include "common/err.h"
#include <stdbool.h>
#include <stdint.h>

struct gr_bdev;
struct vlock;
struct vmfs;
struct vslot;

/* ---------- slot.c ---------- */
int vslot_read(struct vmfs *v, unsigned slot, struct vslot *ret, struct gr_err *err);
int vslot_write_mine(struct vmfs *v, struct gr_err *err);
int vslot_write(struct vmfs *v, unsigned slot, struct vslot *s, struct gr_err *err); /* both copies */
/* Does this lock count now? 1 held by a living or unrecovered slot, 0 void. Own locks count. */
int vlock_counts(struct vmfs *v, const struct vlock *l, struct gr_err *err);
bool vlock_mine(const struct vmfs *v, const struct vlock *l);
/* The holder of @l is dead: recover its slot. 1 recovered, 0 it lives. */
int vslot_recover_holder(struct vmfs *v, unsigned slot, uint64_t generation, struct gr_err *err);
int vslot_recover_own(struct vmfs *v, struct gr_err *err); /* what an earlier start of this host left */

/* ---------- life.c: is the process that answers for a slot there? ---------- */
/* Make our key and register it with the fence of every device, before anything is read; -EINVAL: fenced and other devices mixed. */
int vlife_enter(struct vmfs *v, struct gr_err *err);
int vlife_enter_device(struct vmfs *v, struct gr_bdev *bdev, struct gr_err *err); /* one more, of the kind of the others */
void vlife_leave_device(struct vmfs *v, struct gr_bdev *bdev); /* and what was entered for it */
int vlife_watch(struct vmfs *v, struct gr_err *err); /* answer alarms from now on; the superblock is known */
/* The end of it; in a fiber when there is a fence. @orderly: nothing of ours is under way, and we do not come back. */
void vlife_stop(struct vmfs *v, bool orderly);
int vlife_answer_for(struct vmfs *v, unsigned slot);
void vlife_answer_no_more(struct vmfs *v, unsigned slot);
/* honour.c: do the devices still do what was seen when they were tried? Ours is the slot. -EOPNOTSUPP and what they do not (fiber). */
int vhonour_check(struct vmfs *v, struct gr_err *err);
int vlife_claim(struct vmfs *v, unsigned slot); /* before a free slot is taken: its life lock, where there are such. -EBUSY */
void vlife_unclaim(struct vmfs *v, unsigned slot);
/* See to it that nothing of who answers for @slot, read as @s, reaches the devices any more, if it is gone; may take as long as the
 * datastore's timing says. 0: so it is, and no other fiber of ours does the same until vlife_end_done(); -EBUSY: it lives. */
int vlife_end(struct vmfs *v, unsigned slot, const struct vslot *s, struct gr_err *err);
void vlife_end_done(struct vmfs *v, unsigned slot);
bool vlife_own(const struct vmfs *v, const struct vslot *s); /* @s is that of a host of this home, or was until another began to recover it [sync] */
bool vlife_earlier_self(const struct vmfs *v, const struct vslot *s); /* @s is that of an earlier start of this home, which is over [sync] */
unsigned vlife_look_ms(const struct vmfs *v); /* between two looks of a host at its alarm */

bool vlife_shows(struct vmfs *v, unsigned slot, const struct vslot *s); /* it is there now, or nobody can tell */
void vlife_doubt(struct vmfs *v); /* somebody does not answer: who was seen a moment ago is asked anew [sync] */

/* Claim a free slot (its life lock and block); give it back; drop the life lock only. */
int vslot_claim(struct vmfs *v, struct gr_err *err);
int vslot_free_mine(struct vmfs *v, struct gr_err *err);
void vslot_forget(struct vmfs *v);
/* Release the memory of objects, map, space, journal of @v; not @v itself. */
void vmfs_abandon_state(struct vmfs *v);
#endif
