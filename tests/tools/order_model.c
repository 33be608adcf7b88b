/* order_model: explores the order in which hosts take disks from each other (tests/model/order.h), and shows what each step of it is for.
 *   order_model [--quiet] [--max STATES]
 * Prints the number of states of each size, and one way to the broken promise for each step that is left out. Exit 1 when a promise is broken
 * by the full order, or kept without a step. */
#include "tests/model/groups.h"
#include "tests/model/pins.h"
#include "tests/model/runs.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int all_hold(const struct run_config *c, unsigned n, uint64_t max_states)
{
    int bad = 0;
    for (unsigned i = 0; i < n; i++) {
        struct ex_result r;
        int e = run_config(&c[i], max_states, &r);
        run_line(c[i].text, &r);
        if (e == 1)
            site_print(&c[i].m, &r);
        bad += e != 0;
        ex_done(&r);
    }
    return bad;
}

static int each_is_missed(bool quiet)
{
    int bad = 0;
    for (unsigned i = 0; i < run_n_mutants; i++) {
        const struct mutant *x = &run_mutants[i];
        struct ex_result r;
        struct model m;
        char what[160];
        int e = run_mutant(x, &r, &m);
        snprintf(what, sizeof what, "without \"%s\"", m_step_text[__builtin_ctz(x->without)]);
        run_line(what, &r);
        if (e == 1 && !quiet)
            site_print(&m, &r);
        bad += e != 1;
        ex_done(&r);
    }
    return bad;
}

static int pins(bool quiet)
{
    int bad = 0;
    for (int i = -1; i < PINS_N_STEPS; i++) {
        struct ex_result r;
        char what[160];
        int e = pins_run(i < 0 ? 0 : 1u << i, &r);
        if (i < 0)
            snprintf(what, sizeof what, "pins of 2 readers");
        else
            snprintf(what, sizeof what, "pins without \"%s\"", pins_step_text[i]);
        run_line(what, &r);
        if (e == 1 && !quiet)
            pins_print(&r);
        bad += e != (i >= 0);
        ex_done(&r);
    }
    return bad;
}

static int groups(bool quiet)
{
    int bad = 0;
    for (int i = -1; i < GROUPS_N_STEPS; i++) {
        struct ex_result r;
        char what[160];
        int e = groups_run(i < 0 ? 0 : 1u << i, &r);
        if (i < 0)
            snprintf(what, sizeof what, "groups of 3 hosts, 2 deaths, any number of lost answers and late calls");
        else
            snprintf(what, sizeof what, "groups without \"%s\"", groups_step_text[i]);
        run_line(what, &r);
        if (e == 1 && !quiet)
            groups_print(&r);
        bad += e != (i >= 0);
        ex_done(&r);
    }
    return bad;
}

int main(int argc, char **argv)
{
    uint64_t max_states = 150000000;
    bool quiet = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quiet") == 0) {
            quiet = true;
        } else if (strcmp(argv[i], "--max") == 0 && i + 1 < argc) {
            max_states = strtoull(argv[++i], NULL, 10);
        } else {
            fprintf(stderr, "order_model: no option %s\n", argv[i]);
            return 2;
        }
    }
    int bad = all_hold(run_small, RUN_SIZES, max_states) + each_is_missed(quiet) + pins(quiet) + groups(quiet) + all_hold(run_large, run_n_large, max_states);
    printf("%s\n", bad ? "NOT as it should be" : "the order holds, and every step of it is missed when it is left out");
    return bad != 0;
}
