/* Ordered pipeline: items are taken one after another, loaded and worked on several at once, and committed in the order
 * in which they were taken. Backup, export, restore and verify are all this shape. Fiber only. */
#ifndef BP_PIPE_H
#define BP_PIPE_H
#include "common/fiber.h"

struct bp_pipe_ops {
    /* Fill @slot with the next item: 1 taken, 0 no more, negative code. One at a time; may suspend. */
    int (*next)(void *arg, void *slot, struct gr_err *err);
    /* Get the item's bytes (may suspend); several slots at once. NULL: nothing to load. */
    int (*load)(void *arg, void *slot, struct gr_err *err);
    /* Heavy computing or blocking calls, on the thread pool: touches @slot and constant state only. @slot carries its own
     * error text. NULL: nothing to do. */
    int (*work)(void *slot);
    /* In taking order, one at a time; may suspend. NULL: nothing to do. */
    int (*commit)(void *arg, void *slot, struct gr_err *err);
};
/* Run until next() says the end or something fails; the first failure's code and text come back. @slots: array of
 * @n_slots items of @slot_size bytes, prepared and released by the caller. */
int bp_pipe_run(const struct bp_pipe_ops *ops, void *arg, void *slots, size_t slot_size, unsigned n_slots, struct gr_err *err);
#endif
