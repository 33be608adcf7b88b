/* What changed on a disk between two points, as the storage service tells it. */
#ifndef BP_RANGES_H
#define BP_RANGES_H
#include "backup-proxy/job.h"
#include "backup-proxy/store.h"
#define BP_RANGES_MAX (4u << 20) /* kept apart; beyond, neighbours are merged, which costs bytes read, never correctness */
struct bp_ranges {
    struct bp_change *v;
    size_t n, cap, at;
};
/* Ask for changes from @base (a token "uuid:lineage:epoch") to snapshot @to of @disk. -ENOENT and others: cannot be told. */
int bp_ranges_ask(struct bp_env *env, const char *disk, const char *base, const char *to, struct bp_ranges *ret, struct gr_err *err);
int bp_ranges_next(void *ranges, struct bp_change *ret, struct gr_err *err); /* as bp_store_job.next */
/* Add one behind the others: ascending, disjoint. -GR_EPROTO when it is not. */
int bp_ranges_add(struct bp_ranges *r, uint64_t off, uint64_t len, bool zero);
void bp_ranges_done(struct bp_ranges *r);
#endif
