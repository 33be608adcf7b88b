/* granary snapshot policy|prune|protect|unprotect|expire */
#include "common/buf.h"
#include "common/cleanup.h"
#include "snapshot/cmd_storage.h"
#include <pwd.h>
#include <string.h>
#include <time.h>

static const struct gr_col policy_cols[] = {
    {"path", "Path", GR_COL_TEXT},          {"policy", "Policy", GR_COL_BOOL},         {"from", "Set on", GR_COL_TEXT},
    {"prefix", "Prefix", GR_COL_TEXT},      {"keep-last", "Keep last", GR_COL_NUMBER}, {"keep-hourly", "Keep hourly", GR_COL_NUMBER},
    {"keep-daily", "Keep daily", GR_COL_NUMBER}, {"keep-weekly", "Keep weekly", GR_COL_NUMBER}, {"keep-monthly", "Keep monthly", GR_COL_NUMBER},
    {"keep-yearly", "Keep yearly", GR_COL_NUMBER}, {NULL},
};
static const struct gr_col prune_cols[] = {
    {"disk", "DISK", GR_COL_TEXT}, {"name", "SNAPSHOT", GR_COL_TEXT}, {"created", "CREATED", GR_COL_TIME}, {"keep", "KEEP", GR_COL_BOOL},
    {"why", "WHY", GR_COL_TEXT},   {NULL},
};

#define YEARS_MAX 75u /* to live: seconds since 1970 have 32 bits (snapshot.expire) */

int snap_cmd_expiry(const char *text, int64_t *ret, struct gr_err *err)
{
    static const struct {
        char unit;
        uint64_t s;
    } units[] = {{'m', 60}, {'h', 3600}, {'d', 86400}, {'w', 7 * 86400}, {'y', 365 * 86400}};
    size_t n = strlen(text);
    char digits[16];
    uint64_t value = 0;
    for (size_t i = 0; i < GR_ARRAY_LEN(units); i++) {
        if (n < 2 || n > sizeof(digits) || text[n - 1] != units[i].unit)
            continue;
        memcpy(digits, text, n - 1);
        digits[n - 1] = 0;
        if (gr_parse_u64(digits, 1, YEARS_MAX * 365 * 86400ull / units[i].s, &value, NULL) == 0) {
            *ret = (int64_t)time(NULL) + (int64_t)(value * units[i].s);
            return 0;
        }
    }
    return gr_fail(err, -GR_EUSAGE, "'%.40s' is not a time to live: write 90m, 12h, 7d, 4w or 1y (at most %uy)", text, YEARS_MAX);
}

/* ---- policy ---- */
static int given(struct gr_cmd_ctx *c, json_t *params, struct gr_err *err)
{
    static const char *const keep[] = {"keep-last", "keep-hourly", "keep-daily", "keep-weekly", "keep-monthly", "keep-yearly"};
    for (size_t i = 0; i < GR_ARRAY_LEN(keep); i++) {
        const char *text = gr_cmd_opt(c, keep[i]);
        uint64_t n = 0;
        if (text && gr_parse_u64(text, 0, 1000000, &n, err) < 0)
            return gr_prefix(err, -GR_EUSAGE, "--%s", keep[i]);
        if (text)
            json_object_set_new(params, keep[i], json_integer((json_int_t)n));
    }
    if (gr_cmd_opt(c, "prefix"))
        json_object_set_new(params, "prefix", json_string(gr_cmd_opt(c, "prefix")));
    if (gr_cmd_flag(c, "none"))
        json_object_set_new(params, "none", json_true());
    if (gr_cmd_flag(c, "clear"))
        json_object_set_new(params, "clear", json_true());
    if ((gr_cmd_flag(c, "none") || gr_cmd_flag(c, "clear")) && json_object_size(params) > 2)
        return gr_fail(err, -GR_EUSAGE, "--clear removes a policy, --none says that there is none, --keep-… sets one: say which");
    return 0;
}

int snap_cmd_policy(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct snap_path p;
    const char *path = gr_cmd_arg(c, 0);
    json_t *res = NULL, *params = json_pack("{s:s}", "path", path);
    int r = snap_path_parse(path, SNAP_PATH_DIR, &p, err);
    if (r == 0)
        r = given(c, params, err);
    if (r == 0)
        r = snap_cmd_call(c, json_object_size(params) > 1 ? "snapshot.set-policy" : "snapshot.policy", json_incref(params), NULL, NULL, &res, err);
    if (r == 0)
        r = gr_cmd_object(c, policy_cols, res);
    json_decref(params);
    json_decref(res);
    return r;
}

/* 0, or the first thing that was not done. */
static int prune_result(const json_t *rows, struct gr_err *err)
{
    json_t *row;
    size_t i;
    json_array_foreach(rows, i, row)
    {
        const char *error = json_string_value(json_object_get(row, "error"));
        if (error)
            return gr_fail(err, -GR_EPARTIAL, json_object_get(row, "deleted") ? "%s@%s is not deleted: %s" : "%s@%s is not judged: %s",
                           json_string_value(json_object_get(row, "disk")), json_string_value(json_object_get(row, "name")), error);
    }
    return 0;
}

/* What was named before @path is done. */
static int partly(const char *path, struct gr_err *err)
{
    const struct gr_err why = *err;
    return gr_fail(err, -GR_EPARTIAL, "what is named before %s is done, but there: %s", path, why.text);
}

int snap_cmd_prune(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct snap_path p;
    json_t *all = json_array();
    bool dry = gr_cmd_flag(c, "dry-run");
    int r = 0, n = 0;
    for (; r == 0 && gr_cmd_arg(c, n); n++)
        r = snap_path_parse(gr_cmd_arg(c, n), SNAP_PATH_DIR, &p, err);
    for (n = 0; r == 0 && gr_cmd_arg(c, n); n++) {
        json_t *res = NULL;
        r = snap_cmd_call(c, "snapshot.prune", json_pack("{s:s,s:b}", "path", gr_cmd_arg(c, n), "dry-run", dry), NULL, NULL, &res, err);
        json_array_extend(all, res);
        json_decref(res);
        if (r < 0 && n > 0)
            r = partly(gr_cmd_arg(c, n), err);
    }
    int shown = r == 0 || json_array_size(all) ? gr_cmd_rows(c, prune_cols, all) : 0;
    if (r == 0)
        r = shown < 0 ? shown : prune_result(all, err);
    json_decref(all);
    return r;
}

/* ---- single ones ---- */
static int one(struct gr_cmd_ctx *c, const char *method, json_t *more, const char *done, struct gr_err *err)
{
    struct snap_path p;
    json_t *res = NULL;
    int r = more ? snap_path_parse(gr_cmd_arg(c, 0), SNAP_PATH_SNAPSHOT, &p, err) : gr_fail(err, -GR_EUSAGE, "an argument is not UTF-8");
    gr_auto_free char *disk = r == 0 ? snap_cmd_disk(&p) : NULL;
    if (disk) {
        json_object_set_new(more, "disk", json_string(disk));
        json_object_set_new(more, "snapshot", json_string(p.snap));
    }
    if (r == 0)
        r = snap_cmd_call(c, method, json_incref(more), NULL, NULL, &res, err);
    if (r == 0)
        r = gr_cmd_done(c, res, "snapshot %s %s", gr_cmd_arg(c, 0), done);
    json_decref(more);
    json_decref(res);
    return r;
}

int snap_cmd_protect(struct gr_cmd_ctx *c, struct gr_err *err)
{
    char host[65] = "", by[128];
    const struct passwd *pw = getpwuid(geteuid());
    const char *given_by = gr_cmd_opt(c, "by");
    (void)gethostname(host, sizeof(host) - 1);
    snprintf(by, sizeof(by), "%s@%s", pw ? pw->pw_name : "somebody", host);
    return one(c, "snapshot.protect", json_pack("{s:s,s:s*}", "by", given_by ? given_by : by, "why", gr_cmd_opt(c, "reason")),
               "is protected: it is not deleted, nor is its disk", err);
}

int snap_cmd_unprotect(struct gr_cmd_ctx *c, struct gr_err *err)
{
    return one(c, "snapshot.unprotect", json_object(), "is protected no more", err);
}

int snap_cmd_expire(struct gr_cmd_ctx *c, struct gr_err *err)
{
    int64_t at = 0;
    struct tm tm;
    char done[64] = "does not expire any more";
    const char *text = gr_cmd_arg(c, 1);
    int r = strcmp(text, "off") == 0 ? 0 : snap_cmd_expiry(text, &at, err);
    if (r == 0 && at && localtime_r(&(time_t){(time_t)at}, &tm))
        strftime(done, sizeof(done), "expires on %Y-%m-%d at %H:%M:%S: prune may remove it then", &tm);
    return r < 0 ? gr_prefix(err, r, "neither 'off' nor a time") : one(c, "snapshot.expire", json_pack("{s:I}", "expires", (json_int_t)at), done, err);
}

const struct gr_opt snap_policy_opts[] = {
    {"keep-last", "N", "keep the newest N"},
    {"keep-hourly", "N", "keep the newest of N hours"},
    {"keep-daily", "N", "keep the newest of N days (UTC)"},
    {"keep-weekly", "N", "keep the newest of N weeks (ISO)"},
    {"keep-monthly", "N", "keep the newest of N months"},
    {"keep-yearly", "N", "keep the newest of N years"},
    {"prefix", "TEXT", "what the names of its snapshots begin with (auto-); others are nothing to it"},
    {"none", NULL, "no policy here, whatever the folders above have"},
    {"clear", NULL, "nothing of its own: what the folders above have counts"},
    {NULL},
};
const struct gr_opt snap_prune_opts[] = {{"dry-run", NULL, "show what would be removed"}, {NULL}};
const struct gr_opt snap_protect_opts[] = {
    {"reason", "TEXT", "why; shown to whoever wants to delete it"},
    {"by", "NAME", "who (the caller's user name and host)"},
    {NULL},
};
