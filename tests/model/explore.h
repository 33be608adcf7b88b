/* Every state that can be reached, by breadth: the first counter-example is a shortest one. States are kept whole and compared whole, so
 * "complete" means every one. */
#ifndef MODEL_EXPLORE_H
#define MODEL_EXPLORE_H
#include <stdbool.h>
#include <stdint.h>

struct ex_model {
    void *arg;
    unsigned size;   /* of a state, a multiple of 8 */
    unsigned n_acts; /* steps to try in each state, by number */
    void (*begin)(void *arg, uint8_t *st);
    int (*step)(void *arg, uint8_t *st, unsigned act, const char **ret_why); /* 1 done, 0 cannot be done, -1 done and a promise is broken */
    void (*say)(void *arg, unsigned act, char *buf, unsigned len);
    bool (*good)(void *arg, uint8_t *st); /* may be NULL. Some such state must be within reach of every state by steps that are not @bad */
    bool (*bad)(void *arg, unsigned act);
};
struct ex_result {
    uint64_t states, steps; /* distinct states; steps done in them */
    unsigned depth;         /* longest of the shortest ways to a state */
    bool complete;          /* all there are, or the broken promise */
    const char *why;        /* the broken promise; NULL: none. Static */
    unsigned *trace, n_trace; /* acts that lead there; free() */
};
/* 0; -ENOMEM. At most @max_states are looked at. */
int ex_run(const struct ex_model *m, uint64_t max_states, struct ex_result *ret);
void ex_done(struct ex_result *r);
#endif
