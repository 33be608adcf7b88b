/* Leaves that have their place in a checkpoint, and whose bytes are yet to be made (due.c). Part of vmfs/internal.h. Thread rule: the loop of the volume. */
#ifndef VMFS_DUE_H
#define VMFS_DUE_H
#include "vmfs/mnode.h"

struct vmfs;
struct vdue {
    struct mnode *n; /* NULL: its bytes are made */
    uint64_t addr;
    void *buf;
};
struct vdues {
    struct vdue *due;
    uint32_t n, cap;
};
/* @n, as it is now, goes to @addr; its bytes, mnode_units() of it, are to be at @buf before the checkpoint writes them. They are made at once when there
 * is no memory to remember it [sync]. */
void due_add(struct vmfs *v, struct mnode *n, uint64_t addr, void *buf);
/* The bytes of @n now: before it changes, or goes [sync]. */
void due_make(struct vmfs *v, struct mnode *n);
/* All of them; others have their turn in between (fiber). */
void due_make_all(struct vmfs *v);
void due_forget(struct vmfs *v); /* the checkpoint failed: where the bytes were to be goes [sync] */
void due_done(struct vmfs *v);   /* the volume goes [sync] */
#endif
