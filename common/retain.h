/* Retention: which of many points in time stay: restore points of one name, snapshots of one disk. Newest first; the rules last, hourly, daily, weekly (ISO weeks), monthly, yearly are
 * applied in this order, each keeps the newest point of each of its periods, periods without a point do not count, and a period
 * that an earlier rule has already covered is passed over. Protected points are neither counted nor removed. Periods are UTC. */
#ifndef GR_RETAIN_H
#define GR_RETAIN_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
struct gr_keep {
    uint64_t last, hourly, daily, weekly, monthly, yearly;
};
struct gr_retain_item {
    int64_t time_s;
    bool protect;    /* in */
    bool keep;       /* out */
    const char *why; /* out: the rule that keeps it, "protected", or NULL */
};
/* @items newest first. Without any rule everything is kept. */
void gr_retain_plan(struct gr_retain_item *items, size_t n, const struct gr_keep *keep);
#endif
