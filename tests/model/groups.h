/* A snapshot of one instant over disks of several hosts (snapshot/service_group.c) as a transition system, beside the order of taking disks over
 * (tests/model/order.h): a leader and two followers with a disk each. Calls are answered, or their answer is lost, or they arrive when nobody waits for
 * them any more. There is no clock: whoever holds a disk may give up at any moment, so no deadline is too short or too long. Who is dead is ejected, and
 * its disk is opened by another host, which may die, too. Promises: all follow one decision; the snapshots show one instant; from everywhere there is
 * a way on which nothing is left, neither a held disk nor a folder. */
#ifndef MODEL_GROUPS_H
#define MODEL_GROUPS_H
#include "tests/model/explore.h"

#define GROUPS_STEPS(X)                                                                     \
    X(HOLD, "hold a disk before its snapshot is taken")                                     \
    X(DURABLE, "a snapshot is durable before it is said to be taken")                       \
    X(TAKE_ALL, "decide when all have taken theirs")                                        \
    X(REFUSE_LATE, "who has given up takes none any more")                                  \
    X(DEADLINE, "hold for so long, then give up")                                           \
    X(REFUSE, "who gives up makes an empty folder, which is the refusal")                   \
    X(EXCLUSIVE, "the rename that decides fails where there is a folder")                   \
    X(ENTRY, "look for one's own entry in the folder")                                      \
    X(LOOK_AGAIN, "look again when somebody was quicker to make the folder")                \
    X(OPEN_ASKS, "who opens a dead host's disk follows the decision, too")                  \
    X(SIGN_LAST, "sign off when the snapshot's name is home")                               \
    X(SIGN_OPEN, "sign off for who died before it could")                                   \
    X(EMPTY_ONLY, "the folder goes when all have signed off")                               \
    X(CLEAN, "remove what a leader has left")                                               \
    X(CLEAN_GONE, "but only when it is gone")
enum groups_step {
#define X(name, text) GROUPS_##name,
    GROUPS_STEPS(X)
#undef X
        GROUPS_N_STEPS
};
extern const char *const groups_step_text[GROUPS_N_STEPS];

/* @without: 1 << groups_step that is left out. 1 a promise is broken, 0 none; -ENOMEM, -E2BIG. */
int groups_run(unsigned without, struct ex_result *ret);
void groups_print(const struct ex_result *r);
#endif
