/* Shared by the unit tests: cmocka and what it needs, a private directory, seeds, a deadline for soaks. */
#ifndef TEST_H
#define TEST_H
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h needs the four above */
#include <cmocka.h>
#include "common/err.h"
#include <string.h>

/* A fresh private directory, removed with all it holds when the process ends. The string lives as long as the process. */
const char *test_dir(void);
/* "DIR/name" of the private directory; new memory. */
char *test_path(const char *name);
struct gr_home;
/* The Granary home "DIR/name" is that of this process from now on ($GRANARY_HOME); made where it is not. The caller frees it (gr_home_free). */
struct gr_home *test_home(const char *name);
/* Seed of this run: GRANARY_SEED or the clock; printed, so that a failure can be repeated. */
uint64_t test_seed(void);
/* Small fast generator (splitmix64) for test data; @state is the seed and moves on. */
uint64_t test_rand(uint64_t *state);
/* Seconds a randomised test should go on: GRANARY_SOAK, or @usual. */
unsigned test_soak_s(unsigned usual);
/* How many random cases to do: @usual, or far more under GRANARY_SOAK. */
unsigned test_cases(unsigned usual);
/* After gr_alloc_fail_after(@n, 0) and whatever asked for memory then: has the one that was to fail? From now on none does. */
bool test_alloc_failed(int n);

/* Run @body as a fiber on a loop of its own (the test's body when it calls what suspends); it must return 0. */
void test_in_fiber(int (*body)(void *arg), void *arg);

/* @call must succeed, or its sentence is shown: it may hand on `&err`, a struct gr_err of its own. */
#define OK(call)                                               \
    do {                                                       \
        struct gr_err err = {0};                               \
        int rc_ = (call);                                      \
        if (rc_ < 0)                                           \
            fail_msg("%s: %s", #call, gr_err_text(&err, rc_)); \
    } while (0)
/* @call, which hands on `&err`, must fail with @code and a sentence that has @part in it ("": any sentence). */
#define FAILS(code, part, call)                                        \
    do {                                                               \
        struct gr_err err = {0};                                       \
        assert_int_equal(call, code);                                  \
        if (!err.text[0] || !strstr(err.text, part))                   \
            fail_msg("%s: '%s' is not in: %s", #call, part, err.text); \
    } while (0)

#define TEST(fn) cmocka_unit_test(fn)
#define TEST_MAIN(...)                                                        \
    int main(void)                                                            \
    {                                                                         \
        const struct CMUnitTest test_list[] = {__VA_ARGS__};                  \
        return cmocka_run_group_tests(test_list, NULL, NULL);                 \
    }
#endif
