/* Which sizes are explored, and what is left out to see that it is missed. */
#ifndef MODEL_RUNS_H
#define MODEL_RUNS_H
#include "tests/model/site.h"

enum run_size { RUN_SAFE, RUN_JOIN, RUN_CLOCK, RUN_STALL, RUN_SIZES };
/* Small sizes: seconds. Two processes and a third that starts, one disk, two devices: nobody is asked, anybody may be as slow as it likes.
 * Two that start at once. With the clock: two faults of any kind; two of which one may be that all storage stands still. */
extern const struct run_config {
    const char *text;
    struct model m;
} run_small[RUN_SIZES];
/* Large ones: minutes, gigabytes. */
extern const struct run_config run_large[];
extern const unsigned run_n_large;

struct mutant {
    uint32_t without; /* one step */
    enum run_size size;
};
extern const struct mutant run_mutants[];
extern const unsigned run_n_mutants;

/* The order with @mutant's step left out: 1 and a counter-example, 0 none; -ENOMEM or -E2BIG. */
int run_mutant(const struct mutant *x, struct ex_result *ret, struct model *ret_model);
int run_config(const struct run_config *c, uint64_t max_states, struct ex_result *ret);
void run_line(const char *what, const struct ex_result *r); /* printed: how many states, and whether the promises hold */
#endif
