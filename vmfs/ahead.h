/* Flushes that are begun before they are asked for: see ahead.c. Inside vmfs/. */
#ifndef VMFS_AHEAD_H
#define VMFS_AHEAD_H
#include <stdbool.h>
#include <stdint.h>

struct vobj;
/* What the user of a disk usually does. All zeros at first. */
struct vahead {
    uint64_t writes; /* since he last asked for a flush */
    uint64_t usual;  /* so many there were before that */
    unsigned times;  /* that it was so, one after the other */
    bool begun;      /* the next one, ahead of him */
};

void ahead_write(struct vobj *o);   /* its user writes, and leaves it to a flush to make that durable [sync] */
void ahead_flush(struct vobj *o);   /* its user asks for a flush [sync] */
void ahead_settled(struct vobj *o); /* a change of it has ended, and is with the devices [sync] */
#endif
