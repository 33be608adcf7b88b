/* Collection: packs that no visible point, no reader and no running writer needs are removed. Crash-safe and without clocks:
 *
 *   1 mark: every pack that a visible point, or a pruned one that a living reader still names, refers to
 *   2 condemn every other sealed pack (a marker file; from now on no new point uses it), then move the epoch on
 *   3 list the leases; a writer whose lease is of an older epoch may have used a condemned pack before its marker was
 *     there: then packs stay condemned for the next collection
 *   4 mark again the points that came since step 1; whatever they use is pardoned
 *   5 remove the packs still condemned, forget pruned points, remove leavings of dead leases
 * Killed anywhere, the next collection begins again at 1. */
#ifndef BP_GC_H
#define BP_GC_H
#include "backup-proxy/repo.h"
struct bp_gc_stats {
    uint64_t packs, bytes;               /* in the repository before */
    uint64_t removed_packs, removed_bytes;
    uint64_t waiting_packs, waiting_bytes; /* condemned, kept because of running writers */
    uint64_t points_forgotten, leavings;
    unsigned busy_writers;
};
/* -GR_ELOCKED: another collection runs. -GR_ECORRUPT: a map or manifest of a visible point is damaged (nothing is removed). Blocks. */
int bp_gc(struct bp_repo *r, struct bp_gc_stats *ret, struct gr_err *err);
#endif
