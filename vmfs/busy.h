/* Which units of a region may not be taken, and where the free ones are: a bit for each unit, a bit for each block of 16 that is
 * free as a whole, and a bound on the longest free run, so that a splintered region costs no search that cannot find anything.
 * Thread rule: the loop of the volume. */
#ifndef VMFS_BUSY_H
#define VMFS_BUSY_H
#include <stdbool.h>
#include <stdint.h>

struct vbusy {
    uint64_t *units;         /* a set bit: taken */
    uint64_t *blocks;        /* a set bit: all 16 units of the block are free */
    uint32_t n_units, free;  /* n_units: a multiple of 16; free: clear bits */
    uint32_t free_blocks;
    uint32_t block_hint;     /* where to look for the next block, and for the next run */
    uint32_t run_hint;
    uint32_t run_bound;      /* no free run is longer */
};
/* All @n_units are free. 0 or -ENOMEM. */
int busy_init(struct vbusy *b, uint32_t n_units);
void busy_done(struct vbusy *b);
/* What is set in @taken (bits for all units) is taken; right after busy_init(). */
void busy_load(struct vbusy *b, const uint64_t *taken);
/* Take (@taken) or give back units; the number that changed. */
uint32_t busy_set(struct vbusy *b, uint32_t first, uint32_t n, bool taken);
/* Take a free block. False: there is none. *ret: its first unit. */
bool busy_take_block(struct vbusy *b, uint32_t *ret);
/* Look for a free run of @want units (at least 1). True: it begins at *ret. False: there is none; run_bound tells the longest. */
bool busy_find_run(struct vbusy *b, uint32_t want, uint32_t *ret);

/* The same for any bitmap: set or clear bits; the number that changed. */
uint32_t bits_set(uint64_t *w, uint32_t first, uint32_t n, bool set);
bool bits_get(const uint64_t *w, uint32_t i);
#endif
