/* Retention: which points of one name stay. Newest first; the rules last, hourly, daily, weekly (ISO weeks), monthly, yearly are
 * applied in this order, each keeps the newest point of each of its periods, periods without a point do not count, and a period
 * that an earlier rule has already covered is passed over. Protected points are neither counted nor removed. Periods are UTC. */
#ifndef BP_PRUNE_H
#define BP_PRUNE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
struct bp_keep {
    uint64_t last, hourly, daily, weekly, monthly, yearly;
};
struct bp_prune_item {
    int64_t time_s;
    bool protect;    /* in */
    bool keep;       /* out */
    const char *why; /* out: the rule that keeps it, "protected", or NULL */
};
/* @items newest first. Without any rule everything is kept. */
void bp_prune_plan(struct bp_prune_item *items, size_t n, const struct bp_keep *keep);
#endif
