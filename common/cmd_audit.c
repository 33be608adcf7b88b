/* granary audit: who changed what in this home. */
#include "common/audit.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/cmd.h"
#include "common/seam.h"
#include <string.h>
#include <time.h>

static const struct gr_col cols[] = {
    {"utc", "TIME", GR_COL_TEXT},   {"who", "WHO", GR_COL_TEXT},       {"method", "METHOD", GR_COL_TEXT},
    {"result", "RESULT", GR_COL_TEXT}, {"seconds", "SECONDS", GR_COL_NUMBER}, {"what", "WHAT", GR_COL_TEXT}, {NULL},
};

/* "DATE", "DATETtime" (UTC), or so long ago: "90m", "12h", "7d". */
static int parse_since(const char *text, int64_t *ret, struct gr_err *err)
{
    static const char *const forms[] = {"%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d"};
    static const struct {
        char letter;
        int64_t seconds;
    } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}};
    for (size_t i = 0; i < GR_ARRAY_LEN(forms); i++) {
        struct tm tm = {0};
        const char *end = strptime(text, forms[i], &tm);
        if (end && !*end) {
            *ret = timegm(&tm);
            return 0;
        }
    }
    char *end = NULL;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    for (size_t i = 0; i < GR_ARRAY_LEN(units) && errno == 0 && n >= 0 && n < 1000000000 && end != text; i++)
        if (end[0] == units[i].letter && !end[1]) {
            *ret = gr_world_real()->wall_s(NULL) - n * units[i].seconds;
            return 0;
        }
    return gr_fail(err, -GR_EUSAGE, "--since %s: a day (2026-11-27), a time in UTC (2026-11-27T23:10) or so long ago (90m, 12h, 7d)", text);
}

/* {"disk":"ds1/a","size":4096} as "disk=ds1/a size=4096" */
static int what_of(json_t *named, struct gr_buf *b)
{
    const char *key;
    json_t *v;
    int r = gr_buf_add(b, "", 0);
    json_object_foreach(named, key, v)
    {
        gr_auto_free char *text = json_is_string(v) ? NULL : json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);
        r = r < 0 ? r : gr_buf_printf(b, "%s%s=%s", b->len ? " " : "", key, text ? text : json_string_value(v));
    }
    return r;
}

static int one_line(void *arg, json_t *line)
{
    json_t *rows = arg, *host = json_object_get(line, "host"), *initiator = json_object_get(line, "initiator");
    gr_auto_buf struct gr_buf what = {0};
    int r = what_of(json_object_get(line, "named"), &what);
    gr_auto_free char *who = initiator ? gr_asprintf("initiator %s", json_string_value(initiator))
                             : host    ? gr_asprintf("host %s", json_string_value(host))
                                  : gr_asprintf("uid %lld pid %lld", (long long)json_integer_value(json_object_get(line, "uid")),
                                                (long long)json_integer_value(json_object_get(line, "pid")));
    if (r < 0 || !who)
        return -ENOMEM;
    json_object_set_new(line, "who", json_string(who));
    json_object_set_new(line, "what", json_string(what.data));
    return json_array_append(rows, line) < 0 ? -ENOMEM : 0;
}

static int as_it_is(void *arg, json_t *line)
{
    return json_array_append(arg, line) < 0 ? -ENOMEM : 0;
}

/* Of what began, only what has not ended: {call: line}. */
static int unfinished(void *arg, json_t *line)
{
    json_t *open = arg;
    const char *call = json_string_value(json_object_get(line, "call")), *result = json_string_value(json_object_get(line, "result"));
    if (!call)
        return 0;
    if (!result || strcmp(result, "begun") != 0)
        (void)json_object_del(open, call); /* its beginning may be older than the log */
    else if (json_object_set(open, call, line) < 0)
        return -ENOMEM;
    return 0;
}

static int read_unfinished(const struct gr_home *home, int64_t since, int (*fn)(void *arg, json_t *line), json_t *rows, struct gr_err *err)
{
    const char *call;
    json_t *open = json_object(), *line;
    int r = open ? gr_audit_read(home, since, unfinished, open, err) : gr_fail(err, -ENOMEM, "out of memory"), bad = r;
    json_object_foreach(open, call, line)
        r = r < 0 ? r : fn(rows, line);
    json_decref(open);
    return r < 0 ? r : bad;
}

static int cmd_audit(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct gr_home *home = NULL;
    int64_t since = INT64_MIN;
    const char *text = gr_cmd_opt(c, "since");
    int r = text ? parse_since(text, &since, err) : 0;
    if (r == 0)
        r = gr_home_open(0, &home, err);
    if (r < 0)
        return r;
    json_t *rows = json_array();
    int (*fn)(void *arg, json_t *line) = gr_cmd_json(c) ? as_it_is : one_line;
    int bad = gr_cmd_flag(c, "unfinished") ? read_unfinished(home, since, fn, rows, err) : gr_audit_read(home, since, fn, rows, err);
    gr_home_free(home);
    if (bad > 0)
        gr_cmd_warn(NULL, "the audit log has lines that cannot be read");
    r = bad < 0 ? bad : gr_cmd_rows(c, cols, rows);
    json_decref(rows);
    return r;
}

static const struct gr_opt opts[] = {{"since", "TIME", "only what came later: 2026-11-27, 2026-11-27T23:10 (UTC), or 90m, 12h, 7d ago", false},
                                     {"unfinished", NULL, "only what destroys, was begun and has not ended: it is at work, or was cut off by a crash", false},
                                     {NULL}};

const struct gr_cmd gr_audit_commands[] = {
    {NULL, "audit", "", 0, 0, "what was changed in this home, when, by whom", opts, cmd_audit},
    {NULL},
};
