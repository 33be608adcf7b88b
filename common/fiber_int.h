/* Inside of fibers: shared by fiber*.c and bdev_fiber.c. */
#ifndef GR_FIBER_INT_H
#define GR_FIBER_INT_H
#include "common/fiber.h"
#include "common/fiber_ctx.h"

/* One thing a fiber waits for: on the fiber's stack. gr_fdone_set() from the loop (or at once, before the wait). */
struct gr_fdone {
    struct gr_fiber *fiber;
    bool set, waiting;
};
static inline void gr_fdone_set(struct gr_fdone *d)
{
    d->set = true;
    if (d->waiting)
        gr_fiber_wake(d->fiber);
}
/* Suspend until set. Wakes meant for others of this fiber's waits do not count. */
void gr_fdone_wait(struct gr_fdone *d);
/* The fiber's own timer; arming it by gr_timer_arm_reserved() cannot fail. */
struct gr_timer *gr_fiber_timer(struct gr_fiber *f);
#endif
