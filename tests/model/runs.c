#include "tests/model/runs.h"
#include <errno.h>
#include <stdio.h>

#define NOBODY_ASKS (1u << MX_ASK) /* without the clock: whoever is silent in the eyes of another may be well */
#define CRASH_PAUSE_LOST_CUT 15u
#define CRASH_STALL 17u

const struct run_config run_small[RUN_SIZES] = {
    [RUN_SAFE] = { "2 hosts and one that starts again, 1 disk, 2 devices, 1 lost answer, no clock",
                   { .hosts = 2, .procs = 3, .slots = 2, .disks = 1, .devices = 2, .losses = 1, .restarts = 1, .looks = 1, .slow_devices = true, .without = NOBODY_ASKS } },
    [RUN_JOIN] = { "1 host and two that join at once, 1 disk, 2 devices, no clock",
                   { .hosts = 1, .procs = 3, .slots = 2, .disks = 1, .devices = 2, .losses = 1, .restarts = 2, .looks = 1, .without = NOBODY_ASKS } },
    [RUN_CLOCK] = { "3 hosts, 1 disk, 2 devices, 2 faults out of crash, pause, lost answer and cut path",
                    { .hosts = 3, .procs = 3, .slots = 3, .disks = 1, .devices = 2, .clock = true, .still = true, .faults = 2, .fault_kinds = CRASH_PAUSE_LOST_CUT, .looks = 3 } },
    [RUN_STALL] = { "3 hosts, 1 disk, 2 devices, 2 faults out of crash and storage that stands still",
                    { .hosts = 3, .procs = 3, .slots = 3, .disks = 1, .devices = 2, .clock = true, .still = true, .faults = 2, .fault_kinds = CRASH_STALL, .looks = 5 } },
};

const struct run_config run_large[] = {
    { "3 hosts, 2 disks, 2 devices, 2 faults out of crash, pause, lost answer and cut path",
      { .hosts = 3, .procs = 3, .slots = 3, .disks = 2, .devices = 2, .clock = true, .still = true, .faults = 2, .fault_kinds = CRASH_PAUSE_LOST_CUT, .looks = 3 } },
    { "3 hosts, 2 disks, 2 devices, 1 lost answer, no clock",
      { .hosts = 3, .procs = 3, .slots = 3, .disks = 2, .devices = 2, .losses = 1, .looks = 1, .without = NOBODY_ASKS } },
    { "3 hosts and one that starts again, 1 disk, 2 devices, 1 lost answer, no clock",
      { .hosts = 3, .procs = 4, .slots = 3, .disks = 1, .devices = 2, .losses = 1, .restarts = 1, .looks = 1, .without = NOBODY_ASKS } },
    { "2 hosts and one that starts again, 2 disks, 2 devices that take writes in and do them later, 1 lost answer, no clock",
      { .hosts = 2, .procs = 3, .slots = 2, .disks = 2, .devices = 2, .losses = 1, .restarts = 1, .looks = 1, .slow_devices = true, .without = NOBODY_ASKS } },
};
const unsigned run_n_large = sizeof run_large / sizeof run_large[0];

#define ONE(x, size) { 1u << MX_##x, size }
const struct mutant run_mutants[] = {
    ONE(ASK, RUN_CLOCK),
    ONE(PATIENCE, RUN_CLOCK),
    ONE(OWN_LOOKS, RUN_STALL),
    ONE(ANSWER, RUN_CLOCK),
    ONE(ANSWER_FOR, RUN_CLOCK),
    ONE(ANSWER_FIRST, RUN_CLOCK),
    ONE(READ_BACK, RUN_CLOCK),
    ONE(EJECT_0, RUN_SAFE),
    ONE(EJECT_1, RUN_SAFE),
    ONE(DRAIN, RUN_SAFE),
    ONE(SLOT_NEWER, RUN_SAFE),
    ONE(SLOT_COMPARE, RUN_SAFE),
    ONE(MARK, RUN_SAFE),
    ONE(KEY, RUN_SAFE),
    ONE(REPLAY, RUN_SAFE),
    ONE(REPLAY_FIRST, RUN_SAFE),
    ONE(COUNTS_REPLAYING, RUN_SAFE),
    ONE(FREE_GENERATION, RUN_JOIN),
    ONE(CLAIM_COMPARE, RUN_JOIN),
    ONE(LOCK_COMPARE, RUN_SAFE),
    ONE(LOCK_THEN_SLOT, RUN_SAFE),
    ONE(HOME_FIRST, RUN_SAFE),
    ONE(RELEASE_LAST, RUN_SAFE),
    ONE(SECOND_LOOK, RUN_SAFE),
};
const unsigned run_n_mutants = sizeof run_mutants / sizeof run_mutants[0];

int run_mutant(const struct mutant *x, struct ex_result *ret, struct model *ret_model)
{
    *ret_model = run_small[x->size].m;
    ret_model->without |= x->without;
    int r = site_run(ret_model, 20000000, ret);
    return r < 0 ? r : ret->why ? 1 : ret->complete ? 0 : -E2BIG;
}

int run_config(const struct run_config *c, uint64_t max_states, struct ex_result *ret)
{
    int r = site_run(&c->m, max_states, ret);
    return r < 0 ? r : ret->why ? 1 : ret->complete ? 0 : -E2BIG;
}

void run_line(const char *what, const struct ex_result *r)
{
    printf("%s: %llu states, %llu steps, at most %u from the beginning: %s\n", what, (unsigned long long)r->states, (unsigned long long)r->steps,
           r->depth, r->why ? r->why : r->complete ? "every promise holds" : "not all of them looked at");
    fflush(stdout);
}
