/* Trees of the map: what hangs where, and how it changes (map.c; nodes to and from blocks: node.c). Part of vmfs/internal.h. Thread rule: the loop of the
 * volume. */
#ifndef VMFS_MAP_H
#define VMFS_MAP_H
#include "common/err.h"
#include "vmfs/mnode.h"

struct vmfs;
struct vobj;
/* Nodes. */
uint32_t mnode_units(struct mnode *n); /* that it takes on disk; whether its entries are runs is looked at, and kept with them */
void mnode_encode(const struct vmfs *v, const struct mnode *n, uint64_t addr, void *buf); /* behind mnode_units(): it has looked at each entry */
int mnode_decode(struct vmfs *v, const void *buf, uint32_t units, uint64_t addr, unsigned level, struct mnode **ret, struct gr_err *err);

struct mnode *mnode_new(struct vmfs *v, unsigned level);
void mnode_set_dirty(struct vmfs *v, struct mnode *n, bool dirty);
void mnode_count(struct vmfs *v, struct mnode *n); /* what hangs on its entries changed otherwise than by mleaf_set() */
void mnode_put(struct vmfs *v, struct mnode *n);
void mnode_put_by_parts(struct vmfs *v, struct mnode *n); /* the same; others have their turn in between (fiber) */
struct mnode *mnode_get(struct mnode *n);
void mtree_done(struct vmfs *v, struct mtree *t);
void mtree_share(struct mtree *dst, const struct mtree *src); /* a second holder of the same nodes [sync] */
unsigned mtree_level_for(uint64_t pieces);
uint64_t mnode_span(unsigned level); /* pieces covered by a node of this level */
/* Leaf holding @piece if the path is in memory [sync]. *ret NULL: nothing was ever written there. -EAGAIN: must be loaded. */
int mtree_peek(struct mtree *t, uint64_t piece, struct mnode **ret);
/* Load the path to @piece (fiber). Afterwards mtree_peek succeeds until the next suspension. */
int mtree_load(struct vobj *o, struct mtree *t, uint64_t piece, struct gr_err *err);
/* First piece >= @piece below which something may be mapped or born after @since, skipping pruned subtrees; loads interior nodes.
 * Returns UINT64_MAX when there is none. */
int mtree_next(struct vobj *o, struct mtree *t, uint64_t piece, uint64_t since, uint64_t *ret, struct gr_err *err);
/* Slots of a tree: where a node hangs. */
static inline uint64_t slot_addr(const struct mchild *c) { return c->mem ? c->mem->ptr.addr : c->ptr.addr; }
static inline uint64_t slot_birth(const struct mchild *c) { return c->mem ? c->mem->birth : c->ptr.birth; }
static inline bool slot_empty(const struct mchild *c) { return !c->mem && !c->ptr.addr; }
/* The very same node, with the same content. */
static inline bool slot_same(const struct mchild *a, const struct mchild *b)
{
    if (a->mem && a->mem == b->mem)
        return true;
    return slot_addr(a) && slot_addr(a) == slot_addr(b) && !(a->mem && a->mem->dirty) && !(b->mem && b->mem->dirty);
}
/* The slot of the node of @level that holds @piece [sync]. NULL: *ret_absent (nothing was ever written there, or the tree has no
 * such level), else the path must be loaded (mtree_load). */
struct mchild *mtree_slot(struct mtree *t, unsigned level, uint64_t piece, bool *ret_absent);
void mtree_grow(struct vmfs *v, struct mtree *t, unsigned level, uint64_t birth); /* @birth: the tree's epoch [sync] */
/* One piece of an entry. */
struct mpiece {
    uint64_t addr, birth;
    enum vmfs_piece_state state;
    uint32_t crc; /* of data, where the volume keeps it */
};
static inline struct mpiece ment_piece(const struct mentry *e, unsigned i)
{
    struct mpiece p;
    unsigned st = (e->written >> i & 1) | (e->zero >> i & 1) << 1;
    p.state = (enum vmfs_piece_state)st;
    p.crc = e->crc ? e->crc[i] : 0;
    if (e->px) {
        p.addr = e->px->addr[i];
        p.birth = e->px->birth[i];
    } else {
        p.addr = st ? e->addr + i : 0;
        p.birth = st ? e->birth : 0;
    }
    return p;
}
/* Make the path to @piece in the live tree of @o private and dirty; the path must be in memory [sync]. NULL: -ENOMEM. */
struct mnode *mtree_own(struct vobj *o, struct mtree *t, uint64_t piece, uint64_t birth);
/* A late write belongs to every tree frozen since it was admitted, and to the live head. All that shared the path to @piece share it
 * afterwards, too; what trees from before the write have stays as it is. Paths are in memory [sync]. */
struct late {
    struct mtree **tree; /* oldest first, the live head last */
    uint64_t *epoch;     /* of each */
    unsigned n;
    uint64_t piece, birth;
    uint64_t before; /* epoch of the tree the oldest one grew from */
};
/* The leaves to change: ret_leaves[i] of tree[i], NULL where an earlier one is shared. 0 or -ENOMEM. */
int mtree_own_late(struct vobj *o, const struct late *l, struct mnode **ret_leaves);
/* What becomes of @count pieces from @piece on. */
struct map_change {
    uint64_t piece, addr, birth, seq;
    uint32_t count;
    enum vmfs_piece_state state;
    const uint32_t *crc; /* DATA: of each piece; NULL: not known */
    bool durable;        /* DATA: it was before the record */
    bool shared;         /* … and is somebody's already */
};
/* Change pieces of one leaf, already owned [sync]. Old units are handed to @dropped(arg, piece, old) when owned. */
int mleaf_set(struct vmfs *v, struct mnode *leaf, const struct map_change *c, void (*dropped)(void *arg, uint64_t piece, const struct mpiece *old), void *arg);
void map_evict(struct vmfs *v); /* keep the cache within its limit [sync] */

/* Load the root of a tree of which nothing is in memory (fiber). */
int mtree_load_root(struct vobj *o, struct mtree *t, struct gr_err *err);
#endif
