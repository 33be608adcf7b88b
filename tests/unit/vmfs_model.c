/* The order in which hosts take disks from each other, explored: small sizes only (make model: large ones). */
#include "tests/model/groups.h"
#include "tests/model/pins.h"
#include "tests/model/runs.h"
#include "tests/lib/test.h"

static void holds(enum run_size size)
{
    struct ex_result r;
    int e = run_config(&run_small[size], 20000000, &r);
    run_line(run_small[size].text, &r);
    if (e == 1)
        site_print(&run_small[size].m, &r);
    assert_int_equal(e, 0);
    ex_done(&r);
}

static void no_clock(void **state)
{
    (void)state;
    holds(RUN_SAFE);
}
static void two_join(void **state)
{
    (void)state;
    holds(RUN_JOIN);
}
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TWO_FAULTS /* the code of the others once more: nothing that a sanitizer could see besides */
#else
#define TWO_FAULTS TEST(two_faults),
static void two_faults(void **state)
{
    (void)state;
    holds(RUN_CLOCK);
}
#endif
static void stall(void **state)
{
    (void)state;
    holds(RUN_STALL);
}

static void every_step_is_missed(void **state)
{
    (void)state;
    assert_int_equal(run_n_mutants, M_N_STEPS);
    for (unsigned i = 0; i < run_n_mutants; i++) {
        const struct mutant *x = &run_mutants[i];
        struct ex_result r;
        struct model m;
        if (run_mutant(x, &r, &m) != 1)
            fail_msg("without \"%s\" no promise is broken", m_step_text[__builtin_ctz(x->without)]);
        ex_done(&r);
    }
}

static void pins(void **state)
{
    (void)state;
    for (int i = -1; i < PINS_N_STEPS; i++) {
        struct ex_result r;
        if (pins_run(i < 0 ? 0 : 1u << i, &r) != (i >= 0))
            fail_msg("pins: %s: %s", i < 0 ? "nothing is left out" : pins_step_text[i], r.why ? r.why : "no promise is broken");
        ex_done(&r);
    }
}

static void groups(void **state)
{
    (void)state;
    for (int i = -1; i < GROUPS_N_STEPS; i++) {
        struct ex_result r;
        int e = groups_run(i < 0 ? 0 : 1u << i, &r);
        if (i < 0)
            run_line("groups of 3 hosts, 2 deaths", &r);
        if (e == 1 && i < 0)
            groups_print(&r);
        if (e != (i >= 0))
            fail_msg("groups: %s: %s", i < 0 ? "nothing is left out" : groups_step_text[i], r.why ? r.why : "no promise is broken");
        ex_done(&r);
    }
}

TEST_MAIN(TEST(no_clock), TEST(two_join), TWO_FAULTS TEST(stall), TEST(every_step_is_missed), TEST(pins), TEST(groups))
