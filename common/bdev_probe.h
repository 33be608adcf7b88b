/* What hosts that share a device rely on is tried before it is relied on: two handles of one device, which must be two nexuses of it, and
 * one unit of 4 KiB that nobody else uses. */
#ifndef GR_BDEV_PROBE_H
#define GR_BDEV_PROBE_H
#include "common/bdev.h"

#define GR_PROBE_UNIT 4096u
struct gr_probe_opts {
    uint64_t off;      /* bytes: where the unit is; it is left as it was found */
    unsigned races;    /* of two compare-and-writes; 0: 200 */
    unsigned watch_ms; /* how long the unit is watched after an eject, each of three times; 0: 500 */
    /* Open the first handle's nexus anew (a second session of it); NULL: this is not tried. In a fiber. */
    int (*again)(void *arg, struct gr_bdev **ret, struct gr_err *err);
    void *arg;
};
struct gr_probe { /* what was seen; false: not, or it did not come to that */
    bool fence;            /* it has one */
    bool shuts_out_writes; /* of who is not registered */
    bool joint;            /* whoever is registered reads and writes */
    bool shuts_out_reads;
    bool swaps;            /* compare-and-write of a unit: what compares equal is replaced, */
    bool miscompares;      /* what does not is left alone, */
    bool one_winner;       /* and of two at a time one wins */
    bool ejects;           /* who was ejected writes no more */
    bool drains;           /* nothing of him lands after he was ejected */
    bool outlasts_session; /* a second session of his nexus is outside, too */
    bool outlasts_power;   /* registrations and reservation (as the device says of itself) */
    bool flushes;          /* a write with FUA and a flush end well: what it keeps of them is on its word */
};
/* What a probe that was cut off left registered under the nexus of @b goes when the next one begins; so @b is best the same nexus each time, and of nobody
 * else. In a fiber, a few seconds. 0: the device honours all of it. -EOPNOTSUPP: it does not, @err has the first thing; *@ret tells what was
 * seen up to there. Other codes: a request failed. Other hosts may be registered and work meanwhile. Both handles are registered no more
 * afterwards; where nobody was when it began, there is no reservation either. */
int gr_bdev_probe(struct gr_bdev *a, struct gr_bdev *b, const struct gr_probe_opts *opts, struct gr_probe *ret, struct gr_err *err);
/* [sync] Is that (GR_PROBE_UNIT bytes) what a probe that was cut off left in its unit, and nothing else? */
bool gr_bdev_probe_left(const uint8_t *unit);
/* The part of it that may be tried at any time, in a dozen requests, while others are at work on the device: nothing is written that is not there already
 * (by an honest device nothing at all, but a flush). @a is registered and stays so; @b is another nexus, not registered (or by an earlier probe),
 * and not afterwards; @off as
 * above. What is seen is shuts_out_reads, shuts_out_writes, joint, miscompares, ejects, flushes. In a fiber; results as above. */
int gr_bdev_probe_member(struct gr_bdev *a, struct gr_bdev *b, uint64_t off, struct gr_probe *ret, struct gr_err *err);
#endif
