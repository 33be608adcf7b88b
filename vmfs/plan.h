/* What becomes of the pieces of a write that cannot go in place (plan.c). Part of vmfs/internal.h. Thread rule: the loop of the volume; all of it [sync]. */
#ifndef VMFS_PLAN_H
#define VMFS_PLAN_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct dop;
/* What becomes of a run of pieces. */
struct part {
    uint64_t piece, addr;
    uint32_t count;
    bool in_place; /* data only: no record */
    bool reserve;  /* the rest of a new block: record RESERVED, no data */
    bool own_unit; /* the piece's own reserved unit: nothing was taken for it */
};
#define PLAN_FEW 4
struct plan {
    struct dop *op;
    struct part *parts; /* @few, as long as they fit */
    size_t n, cap;
    uint64_t growth; /* of what the disk holds, while it is under way */
    struct part few[PLAN_FEW];
};
void plan_begin(struct plan *p, struct dop *op); /* no parts yet */
/* Does every piece keep its place? Then no space is taken. *ret_own: the others have data that is this epoch's own. *ret_data: all are data, and the
 * map stays as it is. */
bool plan_keeps_all(const struct dop *op, uint64_t first, uint64_t end, bool atomic, bool *ret_own, bool *ret_data);
/* Decide for every piece of [first, end), and take the units; the live tree is in memory there. -EAGAIN: space ran out under us. After an error
 * plan_drop() gives back what was taken. */
int plan_make(struct plan *p, uint64_t first, uint64_t end, bool atomic);
int64_t plan_growth(const struct plan *p); /* so many units more than now will the disk hold */
uint32_t plan_devs(const struct plan *p);  /* devices that its data goes to, a bit each */
/* The records, data being where the plan says, which cannot be dropped afterwards. @crc: of each piece from @first on, or NULL. @durable: the data is. */
int plan_record(struct plan *p, uint64_t first, const uint32_t *crc, bool durable);
void plan_drop(struct plan *p); /* give back what was taken: no parts again */
void plan_end(struct plan *p);  /* free its memory */
#endif
