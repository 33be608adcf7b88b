/* The order, made ready to be explored. */
#ifndef MODEL_SITE_H
#define MODEL_SITE_H
#include "tests/model/explore.h"
#include "tests/model/order.h"

struct site {
    struct model model;
    struct m_act *acts; /* every step there is, by number */
    unsigned n_acts;
};
/* @m's counts and limits are set. 0; -ENOMEM. */
int site_init(struct site *s, const struct model *m);
void site_done(struct site *s);
struct ex_model site_explorable(struct site *s);
/* Does it break a promise? As ex_run(). */
int site_run(const struct model *m, uint64_t max_states, struct ex_result *ret);
void site_print(const struct model *m, const struct ex_result *r); /* the way to the broken promise, one step per line */
#endif
