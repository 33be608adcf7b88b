/* Runs that are kept for the nodes of maps (pool.c). Thread rule: the loop of the volume. */
#ifndef VMFS_POOL_H
#define VMFS_POOL_H
#include <stdbool.h>
#include <stdint.h>

struct vmfs;
void space_pool_fill(struct vmfs *v); /* fiber */
/* Can all nodes that are dirty be written, what one more write makes so, and @leaves more that are promised? Fills the pool when whole blocks are
 * short (fiber); as it is now [sync]. @promised: to the write that asks. */
bool space_nodes_fit(struct vmfs *v, uint64_t leaves, bool promised);
bool space_nodes_fit_now(const struct vmfs *v, uint64_t leaves, bool promised);
struct vregion;
bool space_nodes_fit_without(struct vmfs *v, const struct vregion *r, uint64_t leaves); /* … if that region, which is open, went [sync] */
uint64_t space_pool_take(struct vmfs *v, uint32_t units); /* so many behind each other; 0: there are none [sync] */
/* Of nodes, in one region, busy and not used any more; false: they are not wanted [sync]. */
bool pool_keep(struct vmfs *v, uint64_t addr, uint64_t units);
void pool_leave_closed(struct vmfs *v); /* [sync] */
uint64_t pool_due(const struct vmfs *v); /* units for the nodes that are not written yet, about */
#endif
