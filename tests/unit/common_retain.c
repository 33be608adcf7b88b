/* Retention: fixed cases with their answers, and random ones against a second, slower statement of the rules. */
#include "common/retain.h"
#include "tests/lib/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DAY 86400
#define HOUR 3600
static const int64_t t0 = 1795348800; /* 2026-11-22T12:00:00Z, a Sunday */

static size_t kept(const struct gr_retain_item *it, size_t n)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++)
        k += it[i].keep;
    return k;
}
static void cases(void **state)
{
    struct gr_retain_item it[400];
    struct gr_keep keep = {0};
    for (size_t i = 0; i < 400; i++)
        it[i] = (struct gr_retain_item){.time_s = t0 - (int64_t)i * DAY};
    gr_retain_plan(it, 400, &keep); /* no rule: nothing goes */
    assert_int_equal(kept(it, 400), 400);
    keep = (struct gr_keep){.last = 3};
    gr_retain_plan(it, 400, &keep);
    assert_int_equal(kept(it, 400), 3);
    assert_true(it[0].keep && it[2].keep && !it[3].keep);
    keep = (struct gr_keep){.daily = 7, .weekly = 4, .monthly = 12};
    gr_retain_plan(it, 400, &keep);
    assert_int_equal(kept(it, 400), 7 + 4 + 12);
    assert_string_equal(it[6].why, "daily");
    assert_string_equal(it[7].why, "weekly"); /* Sunday a week ago ends an ISO week that no daily one covers */
    keep = (struct gr_keep){.yearly = 10};
    gr_retain_plan(it, 400, &keep);
    assert_int_equal(kept(it, 400), 2); /* there are points of two years only */
    it[100].protect = true;
    gr_retain_plan(it, 400, &keep);
    assert_int_equal(kept(it, 400), 3);
    assert_string_equal(it[100].why, "protected");
    /* periods without a point do not count */
    struct gr_retain_item gap[3] = {{.time_s = t0}, {.time_s = t0 - 40 * DAY}, {.time_s = t0 - 90 * DAY}};
    keep = (struct gr_keep){.daily = 2};
    gr_retain_plan(gap, 3, &keep);
    assert_true(gap[0].keep && gap[1].keep && !gap[2].keep);
    gr_retain_plan(gap, 0, &keep);
}
static void period(const struct gr_retain_item *it, size_t i, unsigned rule, char out[32])
{
    struct tm tm;
    time_t t = (time_t)it[i].time_s;
    gmtime_r(&t, &tm);
    memset(out, 0, 32);
    if (rule == 0)
        snprintf(out, 32, "%zu", i);
    else if (rule == 1)
        (void)strftime(out, 32, "%Y%m%d%H", &tm);
    else if (rule == 2)
        (void)strftime(out, 32, "%Y%m%d", &tm);
    else if (rule == 3)
        (void)strftime(out, 32, "%G%V", &tm);
    else if (rule == 4)
        (void)strftime(out, 32, "%Y%m", &tm);
    else
        (void)strftime(out, 32, "%Y", &tm);
}
/* The rules again, told another way: a set of period names that are taken. */
static void slow_plan(struct gr_retain_item *it, size_t n, const struct gr_keep *k)
{
    const uint64_t counts[] = {k->last, k->hourly, k->daily, k->weekly, k->monthly, k->yearly};
    uint64_t any = 0;
    for (unsigned r = 0; r < 6; r++)
        any += counts[r];
    for (size_t i = 0; i < n; i++)
        it[i].keep = !any;
    for (unsigned r = 0; any && r < 6; r++) {
        static char taken[512][32];
        size_t n_taken = 0, own = 0;
        for (size_t i = 0; i < n; i++) {
            char p[32];
            period(it, i, r, p);
            if (it[i].keep && !it[i].protect)
                memcpy(taken[n_taken++], p, sizeof p);
        }
        for (size_t i = 0; i < n && own < counts[r]; i++) {
            char p[32];
            int found = 0;
            if (it[i].protect || it[i].keep)
                continue;
            period(it, i, r, p);
            for (size_t q = 0; q < n_taken; q++)
                found |= !strcmp(taken[q], p);
            if (found)
                continue;
            memcpy(taken[n_taken++], p, sizeof p);
            it[i].keep = true;
            own++;
        }
    }
    for (size_t i = 0; i < n; i++)
        it[i].keep |= it[i].protect;
}
static void random_cases(void **state)
{
    uint64_t rnd = test_seed();
    for (unsigned c = 0; c < test_cases(200); c++) {
        struct gr_retain_item a[150], b[150];
        size_t n = test_rand(&rnd) % 150;
        int64_t t = t0;
        for (size_t i = 0; i < n; i++) {
            static const int64_t steps[] = {60, HOUR / 2, HOUR, 5 * HOUR, DAY, 9 * DAY, 40 * DAY};
            t -= 1 + (int64_t)(test_rand(&rnd) % (uint64_t)steps[test_rand(&rnd) % (c % 7 + 1)]);
            a[i] = b[i] = (struct gr_retain_item){.time_s = t, .protect = test_rand(&rnd) % 20 == 0};
        }
        struct gr_keep k = {test_rand(&rnd) % 4, test_rand(&rnd) % 6, test_rand(&rnd) % 6, test_rand(&rnd) % 5, test_rand(&rnd) % 5, test_rand(&rnd) % 3};
        gr_retain_plan(a, n, &k);
        slow_plan(b, n, &k);
        for (size_t i = 0; i < n; i++)
            if (a[i].keep != b[i].keep)
                fail_msg("case %u, point %zu of %zu: %d, %d", c, i, n, a[i].keep, b[i].keep);
    }
}
/* As many as there can be: the time it takes grows with them, not with their square. */
#define LOTS 40000u
static void lots(void **state)
{
    struct gr_retain_item *it = calloc(LOTS, sizeof *it);
    struct gr_keep keep = {.last = 10, .hourly = LOTS, .daily = LOTS, .weekly = LOTS, .monthly = LOTS, .yearly = LOTS};
    (void)state;
    for (size_t i = 0; i < LOTS; i++)
        it[i].time_s = t0 - (int64_t)i * (HOUR / 2);
    clock_t began = clock(); /* of this process, whatever else the machine does */
    gr_retain_plan(it, LOTS, &keep);
    double s = (double)(clock() - began) / CLOCKS_PER_SEC;
    print_message("# %u points judged in %.3f s\n", LOTS, s);
    assert_int_equal(kept(it, LOTS), 10 + (LOTS - 10) / 2);
    assert_true(s < 2);
    free(it);
}
/* Weeks, months and years at their ends, against the calendar's own words. */
static void ends(void **state)
{
    uint64_t rnd = test_seed();
    (void)state;
    for (unsigned c = 0; c < test_cases(20000); c++) {
        int64_t t = (int64_t)(test_rand(&rnd) % (200ull * 365 * DAY)) - 50ll * 365 * DAY;
        t -= c % 3 ? ((t % DAY) + DAY) % DAY : 0; /* at midnight */
        struct gr_retain_item it[2] = {{.time_s = t}, {.time_s = t - 1}};
        for (unsigned r = 0; r < 5; r++) {
            struct gr_keep keep = {0};
            uint64_t *const rule[] = {&keep.hourly, &keep.daily, &keep.weekly, &keep.monthly, &keep.yearly};
            char text[2][32];
            *rule[r] = 2;
            gr_retain_plan(it, 2, &keep);
            period(it, 0, r + 1, text[0]);
            period(it, 1, r + 1, text[1]);
            if (it[1].keep != (strcmp(text[0], text[1]) != 0))
                fail_msg("second %lld, rule %u: %s, %s", (long long)t, r, text[0], text[1]);
        }
    }
}
TEST_MAIN(TEST(cases), TEST(random_cases), TEST(lots), TEST(ends))
