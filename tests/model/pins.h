/* Readers elsewhere pin a snapshot in their own slot; its owner deletes it. As a transition system, beside the order of taking disks over
 * (tests/model/order.h): a reader pins, then looks whether the snapshot is being deleted; an owner says at home that it is, then looks for
 * pins. Whoever does not answer is ejected, rightly or not, and its pins are void. The owner may die at any point and another goes on. */
#ifndef MODEL_PINS_H
#define MODEL_PINS_H
#include "tests/model/explore.h"

#define PINS_STEPS(X)                                                 \
    X(LOOK_AGAIN, "look whether it is being deleted, having pinned")  \
    X(HOME_FIRST, "say at home that it is deleted, then look for pins") \
    X(SCAN, "look for pins before anything is freed")                 \
    X(SCAN_ALL, "look at every slot")                                 \
    X(EJECT, "eject a reader before its pins are void")               \
    X(SCAN_AGAIN, "the next owner looks for pins, too")
enum pins_step {
#define X(name, text) PINS_##name,
    PINS_STEPS(X)
#undef X
        PINS_N_STEPS
};
extern const char *const pins_step_text[PINS_N_STEPS];

/* Two readers, one snapshot. @without: 1 << pins_step that is left out. 1 a promise is broken, 0 none; -ENOMEM. */
int pins_run(unsigned without, struct ex_result *ret);
void pins_print(const struct ex_result *r);
#endif
