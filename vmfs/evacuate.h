/* Inside the emptying of a device: evacuate.c has the steps, evac_copy.c moves the bytes. */
#ifndef VMFS_EVACUATE_H
#define VMFS_EVACUATE_H
#include "vmfs/internal.h"

struct evac {
    struct vmfs *v;
    unsigned dev;
    struct vmoved copied;  /* not taken over yet: their units there are reserved */
    uint64_t pending;      /* units of them */
    struct vmoved taken;   /* the list as it will be: of a capture whose images are not durable yet */
    bool captured;
    uint64_t blob_addr;    /* reserved for the list */
    uint32_t blob_units;
    uint64_t units, done;  /* to be moved, and moved */
    uint64_t *touched;     /* regions that what was copied comes from or goes to */
    uint32_t n_touched;
    const struct vmfs_device_remove *opts;
    uint8_t *buf;
    uint32_t buf_units;
};

/* Room on the other devices for @want units behind each other, or fewer, but @least: reserved. What checkpoints need and what was
 * promised stays. 0; -GR_ENOSPACE and the numbers (fiber). */
int evac_room(struct evac *e, uint32_t want, uint32_t least, uint64_t *ret_addr, uint32_t *ret_got, struct gr_err *err);
/* Units [at, at + run) of the region, which are in use, or some of them: *@ret_units were copied, and stand in e->copied (fiber). */
int evac_copy(struct evac *e, struct vregion *r, uint32_t at, uint32_t run, uint32_t *ret_units, struct gr_err *err);

/* For the rest of the volume, and from ckpt.c. */
struct ckpt;
const struct vmoved *evac_pending(const struct evac *e, unsigned dev); /* what a checkpoint under way moves off it; NULL: nothing [sync] */
int evac_clear(struct vmfs *v, struct gr_err *err); /* nobody is emptying a device: the superblock says so */
void evac_capture(struct ckpt *c); /* [sync] within the capture of a checkpoint */
/* ckpt.c, for it: a run that was reserved becomes part of the checkpoint. NULL: out of memory, the run is free again. */
uint8_t *ckpt_take(struct ckpt *c, uint64_t addr, uint32_t units);
void ckpt_image(struct ckpt *c, uint64_t addr_a, uint64_t addr_b, const void *block);
void ckpt_fail(struct ckpt *c, int code);
uint64_t ckpt_number(const struct ckpt *c);
struct vmfs *ckpt_volume(const struct ckpt *c);
#endif
