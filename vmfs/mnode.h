/* The map in memory: nodes of a tree, shared between the live head and snapshots. docs/vmfs.md, "The map". */
#ifndef VMFS_MNODE_H
#define VMFS_MNODE_H
#include "vmfs/format.h"
#include <stdbool.h>

struct mptr {
    uint64_t addr;
    uint64_t birth;
    uint32_t units;
};
struct mpieces { /* SPLIT and RUN in memory */
    uint64_t addr[VMFS_BLOCK_PIECES];
    uint64_t birth[VMFS_BLOCK_PIECES];
};
enum mrun { /* do the owned pieces lie one behind the other? It is looked at when a leaf's size is asked for, and kept until one changes. */
    MRUN_UNKNOWN,
    MRUN_YES,
    MRUN_NO,
};
struct mentry {
    uint64_t addr;  /* EXTENT: first piece; unused with px */
    uint64_t birth; /* EXTENT: of every owned piece */
    uint64_t seq;   /* newest frame with a record for this block: in place only when sealed */
    uint16_t written, zero;
    uint8_t run; /* enum mrun: of what is at px */
    struct mpieces *px; /* NULL: EXTENT (or never written: addr 0) */
    uint32_t *crc;      /* of each piece with data; NULL: none has data, or the volume keeps none */
};
struct mnode;
struct mchild {
    struct mnode *mem;
    struct mptr ptr; /* when mem is NULL */
};
struct mnode {
    unsigned refs; /* parents (and pins) */
    uint8_t level; /* 0: leaf */
    bool dirty, used; /* used: clock bit of the cache */
    uint32_t loaded;  /* which load of the volume brought it; 0: it was made here */
    uint32_t hanging; /* bytes that hang on the entries of a leaf, as they are counted in v->map_bytes */
    uint32_t settled; /* v->sp.moves when its addresses were last looked up */
    uint32_t due;     /* its bytes are yet to be made: index in v->dues, plus 1; 0: they are not (due.h) */
    struct mptr ptr;  /* where it lies on disk; addr 0: nowhere yet. ptr.birth of the version on disk */
    uint64_t birth;   /* newest birth below, now */
    union {
        struct mchild child[VMFS_FANOUT];
        struct mentry ent[VMFS_FANOUT];
    };
};
/* Root of a tree: the live head's, a snapshot's. */
struct mtree {
    struct mchild root;
    uint8_t level; /* of the root, >= 1 */
};
/* As mtree_done(), in the background: to free a large map takes tens of milliseconds. */
struct vmfs;
void mtree_drop(struct vmfs *v, struct mtree *t);
#endif
