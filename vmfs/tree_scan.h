/* Looking through a tree, or two side by side, leaf by leaf in ascending order: what may have changed, or all there is. Nodes that are not in
 * memory are read many at a time, level by level, and not kept: what is held is bounded, whatever the size of the disk. */
#ifndef VMFS_TREE_SCAN_H
#define VMFS_TREE_SCAN_H
#include "vmfs/internal.h"

#define TSCAN_AHEAD 256u /* leaves read at the same time, at most; twice as many are held */

struct tscan {
    struct vobj *o;
    const struct mtree *tree; /* Both stay as they are until the scan has ended: shares of the nodes (mtree_share), and a ticket is open. */
    const struct mtree *base; /* NULL: one tree. Else leaves at which the two may differ; what is the same node in both is skipped */
    uint64_t since;           /* one tree: leaves that may have something born later; 0: all there are */
    uint64_t first, end;      /* pieces: no leaf outside is looked at; end UINT64_MAX: no end */
    /* The leaf that holds pieces from @piece on (a multiple of VMFS_LEAF_PIECES), in either tree; NULL: nothing was ever written there. They are good
     * until it returns, also across suspensions. 0: go on; negative: stop with that; positive: enough, the last leaf is kept in memory as it is
     * where the next scan begins. */
    int (*leaf)(void *arg, uint64_t piece, const struct mnode *leaf, const struct mnode *base);
    void *arg;
    unsigned ahead; /* leaves it is likely to want from now on, 1..TSCAN_AHEAD; leaf() may change it */
    uint64_t leaves; /* out: looked at (of two trees: pairs) */
};
/* Fiber. 0; positive: leaf() had enough; its error, or that of a node, which is named: nothing is skipped. */
int tscan_run(struct tscan *s, struct gr_err *err);
#endif
