#include "common/retain.h"
#include <time.h>

#define HOUR 3600
#define DAY (24 * HOUR)

enum period { HOURS, DAYS, WEEKS, MONTHS, YEARS };

/* Number of the period that the second is in: equal ones are equal, older ones lower. */
static int64_t period_of(int64_t time_s, enum period p)
{
    struct tm tm = {0};
    time_t t = (time_t)time_s;
    int64_t days = time_s / DAY - (time_s % DAY < 0);
    switch (p) {
    case HOURS:
        return time_s / HOUR - (time_s % HOUR < 0);
    case DAYS:
        return days;
    case WEEKS: /* ISO weeks begin on Mondays; day 0 was a Thursday */
        return (days + 3) / 7 - ((days + 3) % 7 < 0);
    case MONTHS:
        gmtime_r(&t, &tm);
        return (int64_t)tm.tm_year * 12 + tm.tm_mon;
    case YEARS:
        gmtime_r(&t, &tm);
        return tm.tm_year;
    }
    return 0;
}

/* One rule. Points are in order, so those of a period are neighbours. */
static void apply(struct gr_retain_item *it, size_t n, uint64_t count, enum period period, const char *why)
{
    uint64_t used = 0;
    for (size_t i = 0, end; i < n && used < count; i = end) {
        size_t newest = n; /* that may be kept */
        bool covered = false; /* by what an earlier rule keeps */
        int64_t p = period_of(it[i].time_s, period);
        for (end = i; end < n && period_of(it[end].time_s, period) == p; end++) {
            covered |= it[end].keep;
            if (newest == n && !it[end].keep && !it[end].protect)
                newest = end;
        }
        if (covered || newest == n)
            continue;
        it[newest].keep = true;
        it[newest].why = why;
        used++;
    }
}

void gr_retain_plan(struct gr_retain_item *it, size_t n, const struct gr_keep *keep)
{
    bool any = keep->last || keep->hourly || keep->daily || keep->weekly || keep->monthly || keep->yearly;
    uint64_t last = keep->last;
    for (size_t i = 0; i < n; i++) {
        it[i].keep = !any;
        it[i].why = any ? NULL : "no rule";
        if (any && !it[i].protect && last > 0) {
            it[i].keep = true;
            it[i].why = "last";
            last--;
        }
    }
    if (any) {
        apply(it, n, keep->hourly, HOURS, "hourly");
        apply(it, n, keep->daily, DAYS, "daily");
        apply(it, n, keep->weekly, WEEKS, "weekly");
        apply(it, n, keep->monthly, MONTHS, "monthly");
        apply(it, n, keep->yearly, YEARS, "yearly");
    }
    for (size_t i = 0; i < n; i++)
        if (it[i].protect) {
            it[i].keep = true;
            it[i].why = "protected";
        }
}
