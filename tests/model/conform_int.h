/* What the files of the conformance check share. */
#ifndef MODEL_CONFORM_INT_H
#define MODEL_CONFORM_INT_H
#include "tests/model/conform.h"
#include "tests/model/order.h"
#include "vmfs/internal.h"

#define PROCS 30u   /* at once; a key is a number of 5 bits */
#define OBJECTS 255u /* inodes and regions that are touched */
struct chost {
    struct sim_host *sim;
    struct gr_bdev *path[VMFS_DEVICES_MAX];
    uint64_t key;
    char home[80];
    bool known;       /* its process has begun */
    unsigned charges; /* slots it has ever answered for, or was about to */
};
struct object {
    uint64_t addr_a, addr_b;
    uint64_t b_generation; /* of the second copy, as last written by whoever has it */
};
struct conform {
    struct sim *sim;
    struct gr_mem *mem[VMFS_DEVICES_MAX];
    unsigned n_dev, n_objects;
    struct vsuper sb;
    struct model m;
    uint8_t *st;
    struct chost host[PROCS];
    struct object object[OBJECTS];
    uint64_t steps;
    void (*on_eject)(void *arg, struct sim_host *victim);
    void *on_eject_arg;
    char error[400];
};


/* The first request that is not allowed is kept, and why. @a may be NULL. */
void conform_refuse(struct conform *c, const struct m_act *a, const char *why);
void conform_step(struct conform *c, unsigned kind, unsigned p, unsigned a, unsigned d); /* a step that was done */
int conform_proc(const struct conform *c, const struct sim_host *h); /* its number; -1: it is not watched */
const void *conform_block(const struct conform *c, uint64_t addr);   /* as it is on the device */
int conform_slot_in(const struct conform *c, const void *b, unsigned slot, struct vslot *ret);
/* Unit @addr was read or written by process @p; @b is what was read, or written. @done: no miscompare. */
void conform_unit(struct conform *c, unsigned p, uint64_t addr, const struct gr_bio *bio, const void *b, bool done);
#endif
