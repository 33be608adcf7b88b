#include "common/retain.h"
#include <string.h>
#include <time.h>

#define PERIOD_TEXT 24
static void period_of(const struct gr_retain_item *it, size_t i, const char *format, char out[PERIOD_TEXT])
{
    struct tm tm = {0};
    time_t t = (time_t)it[i].time_s;
    gmtime_r(&t, &tm);
    out[0] = 0;
    if (!strcmp(format, "hour"))
        (void)strftime(out, PERIOD_TEXT, "%Y-%m-%dT%H", &tm);
    else if (!strcmp(format, "day"))
        (void)strftime(out, PERIOD_TEXT, "%Y-%m-%d", &tm);
    else if (!strcmp(format, "week"))
        (void)strftime(out, PERIOD_TEXT, "%G-W%V", &tm);
    else if (!strcmp(format, "month"))
        (void)strftime(out, PERIOD_TEXT, "%Y-%m", &tm);
    else
        (void)strftime(out, PERIOD_TEXT, "%Y", &tm);
}
/* One rule. Points are in order, so that equal periods are neighbours among those kept or looked at. */
static void apply(struct gr_retain_item *it, size_t n, uint64_t count, const char *format, const char *why)
{
    char last[PERIOD_TEXT] = "", p[PERIOD_TEXT], other[PERIOD_TEXT];
    uint64_t used = 0;
    for (size_t i = 0; i < n && used < count; i++) {
        bool covered = false;
        if (it[i].keep || it[i].protect)
            continue;
        period_of(it, i, format, p);
        for (size_t k = 0; k < n && !covered; k++) /* covered by what an earlier rule keeps */
            if (it[k].keep && strcmp(it[k].why, why)) {
                period_of(it, k, format, other);
                covered = !strcmp(p, other);
            }
        if (covered || !strcmp(p, last))
            continue;
        memcpy(last, p, sizeof last);
        it[i].keep = true;
        it[i].why = why;
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
        apply(it, n, keep->hourly, "hour", "hourly");
        apply(it, n, keep->daily, "day", "daily");
        apply(it, n, keep->weekly, "week", "weekly");
        apply(it, n, keep->monthly, "month", "monthly");
        apply(it, n, keep->yearly, "year", "yearly");
    }
    for (size_t i = 0; i < n; i++)
        if (it[i].protect) {
            it[i].keep = true;
            it[i].why = "protected";
        }
}
