/* Verify: read every extent that points need and compare with the hashes taken when the source was read. */
#ifndef BP_VERIFY_H
#define BP_VERIFY_H
#include "backup-proxy/repo.h"
#include <jansson.h>
struct bp_verify {
    uint64_t points, extents, bytes; /* looked at: points, distinct extents, stored bytes read */
    uint64_t nodes;
    json_t *damage;   /* array of {"point","disk","offset"?,"error"}: at most BP_VERIFY_MAX of the points asked for */
    json_t *affected; /* array of ids: every visible point that needs something damaged */
};
#define BP_VERIFY_MAX 1000
/* Verify the points @ids (array of strings). 0: done, also when damage was found (then ret->damage is not empty); negative code:
 * could not be done. Both arrays are new references. Fiber; suspends. */
int bp_verify_points(struct bp_repo *r, json_t *ids, void (*progress)(void *arg, uint64_t bytes), void *arg, struct bp_verify *ret,
                     struct gr_err *err);
#endif
