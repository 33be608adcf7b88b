/* Calls to a daemon while a load runs, and what the load felt of them.
 *
 *   calls make rpc|qmp SOCKET LOG METHOD PARAMS [--count N] [--first N] [--every MS] [--shuffle] [--burst N --pause MS] [--until EVENT]
 *              [--drop METHOD PARAMS --keep N]
 *        METHOD with PARAMS (JSON; '#' is the number of the call, '%' that before it), one call each --every milliseconds; LOG gets when each began
 *        and was answered. rpc: granary-storaged; qmp: QEMU. --shuffle: the numbers come in a random order, the same each time. --burst: a pause after
 *        each N calls. --until: a call is over when this event of QEMU comes. --drop: after each call another one, with the number of N calls ago
 *   calls report LOG TRACE...      for each call the longest of the commands that were under way at any moment of it (--trace of iscsi_load, nbd_load), and
 *        the longest silence (in which none ended) that met it; and the same in the time before the call, as long as it took where there is so much
 *   calls bursts LOG TRACE...      p99 of all commands begun in each burst of calls, over that in as long a time before it, when nothing was called
 * Prints one JSON object, times in milliseconds. */
#include "common/rpc.h"
#include "hv/qmp.h"
#include "tests/bench/load.h"
#include <stdlib.h>

#define CALL_MS 60000
#define PAUSE_NS 200000000u /* a gap as long as this is between bursts */

static int fail(const char *what, const struct gr_err *err, int r)
{
    fprintf(stderr, "calls: %s: %s\n", what, gr_err_text(err, r));
    return 1;
}

/* ---- calling ---- */
struct caller {
    struct gr_loop *loop;
    int argc;
    char **argv;
    const char *until, *drop, *drop_params;
    uint64_t count, first, every_ms, burst, pause_ms, keep;
    bool shuffle;
    struct gr_rpc_client *rpc;
    struct hv_qmp *qmp;
    unsigned seen; /* of the events waited for */
    struct gr_fqueue event;
};

static void on_event(void *arg, const char *name, json_t *data)
{
    struct caller *c = arg;
    (void)data;
    if (c->until && strcmp(name, c->until) == 0) {
        c->seen++;
        gr_fqueue_wake_all(&c->event);
    }
}

static json_t *params_of(const char *pattern, uint64_t n)
{
    char text[8192];
    size_t len = 0;
    json_error_t je;
    for (const char *p = pattern; *p && len + 21 < sizeof(text); p++)
        if (*p == '#' || *p == '%')
            len += (size_t)snprintf(text + len, sizeof(text) - len, "%llu", (unsigned long long)(*p == '#' ? n : n - 1));
        else
            text[len++] = *p;
    text[len] = 0;
    json_t *o = json_loads(text, 0, &je);
    if (!o)
        fprintf(stderr, "calls: %s: %s\n", text, je.text);
    return o;
}

static int one(struct caller *c, const char *method, const char *pattern, uint64_t n, struct gr_err *err)
{
    json_t *params = params_of(pattern, n), *result = NULL;
    if (!params)
        return gr_fail(err, -GR_EUSAGE, "these parameters are no JSON");
    int r = c->rpc ? gr_rpc_call(c->rpc, method, params, NULL, NULL, CALL_MS, &result, err) : hv_qmp_call(c->qmp, method, params, CALL_MS, &result, err);
    json_decref(result);
    return r;
}

static int logged(struct caller *c, FILE *log, uint64_t n, struct gr_err *err)
{
    struct load_traced t = {.start_ns = load_now()};
    unsigned seen = c->seen;
    int r = one(c, c->argv[5], c->argv[6], n, err);
    while (r == 0 && c->until && c->seen == seen)
        gr_fqueue_wait(&c->event);
    t.end_ns = load_now();
    return r < 0 || fwrite(&t, sizeof(t), 1, log) == 1 ? r : gr_fail(err, -EIO, "the log cannot be written");
}

static uint64_t *numbers(const struct caller *c)
{
    uint64_t *n = calloc(c->count, sizeof(*n)), seed = 88172645463325252u;
    for (uint64_t i = 0; n && i < c->count; i++)
        n[i] = c->first + i;
    for (uint64_t i = c->count; n && c->shuffle && i > 1; i--) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        uint64_t *other = &n[seed % i], swap = *other;
        *other = n[i - 1];
        n[i - 1] = swap;
    }
    return n;
}

static int all(struct caller *c, FILE *log, struct gr_err *err)
{
    gr_auto_free uint64_t *n = numbers(c);
    int r = n ? 0 : gr_fail(err, -ENOMEM, "out of memory");
    for (uint64_t i = 0; r == 0 && i < c->count; i++) {
        r = logged(c, log, n[i], err);
        if (r == 0 && c->drop && i >= c->keep)
            r = one(c, c->drop, c->drop_params, n[i - c->keep], err);
        gr_fiber_sleep_ms(c->burst && i % c->burst == c->burst - 1 ? c->pause_ms : c->every_ms);
    }
    return r;
}

static int body(void *arg)
{
    struct caller *c = arg;
    struct gr_err err = {0};
    struct hv_qmp_opts o = {.loop = c->loop, .on_event = on_event, .arg = c};
    int r = strcmp(c->argv[2], "qmp") == 0 ? hv_qmp_connect(&o, c->argv[3], CALL_MS, &c->qmp, &err) : gr_rpc_connect(c->loop, c->argv[3], &c->rpc, &err);
    if (r < 0)
        return fail(c->argv[3], &err, r);
    FILE *log = fopen(c->argv[4], "w");
    r = log ? all(c, log, &err) : gr_fail(&err, -errno, "the log cannot be made");
    if (log)
        fclose(log);
    hv_qmp_close(c->qmp);
    gr_rpc_client_free(c->rpc);
    return r < 0 ? fail(c->argv[5], &err, r) : 0;
}

static int options(struct caller *c)
{
    for (int i = 7; i < c->argc; i++) {
        const char *o = c->argv[i], *v = i + 1 < c->argc ? c->argv[i + 1] : "";
        uint64_t *to = !strcmp(o, "--count") ? &c->count : !strcmp(o, "--first") ? &c->first : !strcmp(o, "--every") ? &c->every_ms :
                       !strcmp(o, "--burst") ? &c->burst : !strcmp(o, "--pause") ? &c->pause_ms : !strcmp(o, "--keep") ? &c->keep : NULL;
        if (!strcmp(o, "--shuffle")) {
            c->shuffle = true;
            continue;
        }
        if (to)
            *to = load_number(v);
        else if (!strcmp(o, "--until"))
            c->until = v;
        else if (!strcmp(o, "--drop") && i + 2 < c->argc) {
            c->drop = v;
            c->drop_params = c->argv[++i + 1];
        } else
            return -1;
        i++;
    }
    return 0;
}

static int make(int argc, char **argv)
{
    struct caller c = {.argc = argc, .argv = argv, .count = 1, .first = 1};
    struct gr_err err = {0};
    if (argc < 7 || options(&c) < 0) {
        fprintf(stderr, "usage: calls make rpc|qmp SOCKET LOG METHOD PARAMS [options]\n");
        return 2;
    }
    int r = gr_loop_new(NULL, &c.loop, &err);
    if (r < 0)
        return fail("loop", &err, r);
    r = gr_fiber_run(c.loop, body, &c);
    gr_loop_free(c.loop);
    return r;
}

/* ---- what the load felt ---- */
struct trace {
    struct load_traced *at;
    size_t n;
    uint64_t longest_ns;
};

static int trace_read(const char *path, struct trace *ret)
{
    FILE *f = fopen(path, "r");
    if (!f || fseek(f, 0, SEEK_END) < 0)
        return -1;
    ret->n = (size_t)ftell(f) / sizeof(*ret->at);
    ret->at = malloc(GR_MAX(ret->n, (size_t)1) * sizeof(*ret->at));
    rewind(f);
    int r = ret->at && fread(ret->at, sizeof(*ret->at), ret->n, f) == ret->n ? 0 : -1;
    fclose(f);
    for (size_t i = 0; r == 0 && i < ret->n; i++)
        ret->longest_ns = GR_MAX(ret->longest_ns, ret->at[i].end_ns - ret->at[i].start_ns);
    return r;
}

/* The first that ended at @ns or later. */
static size_t ended_from(const struct trace *t, uint64_t ns)
{
    size_t lo = 0, hi = t->n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (t->at[mid].end_ns < ns)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static uint64_t longest(const struct trace *t, uint64_t from, uint64_t to)
{
    uint64_t ns = 0;
    for (size_t i = ended_from(t, from); i < t->n && t->at[i].end_ns <= to + t->longest_ns; i++)
        if (t->at[i].start_ns <= to)
            ns = GR_MAX(ns, t->at[i].end_ns - t->at[i].start_ns);
    return ns;
}

static uint64_t silence(const struct trace *t, uint64_t from, uint64_t to)
{
    uint64_t ns = 0;
    for (size_t i = GR_MAX(ended_from(t, from), (size_t)1); i < t->n; i++) {
        ns = GR_MAX(ns, t->at[i].end_ns - t->at[i - 1].end_ns);
        if (t->at[i].end_ns > to)
            break;
    }
    return ns;
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static double percentile(uint64_t *ns, size_t n, double p) /* sorts; milliseconds */
{
    if (n == 0)
        return 0;
    qsort(ns, n, sizeof(*ns), ascending);
    size_t at = (size_t)(p * (double)n + 0.999999);
    return (double)ns[at > 0 ? at - 1 : 0] / 1e6;
}

static void print(const char *key, uint64_t *ns, size_t n)
{
    printf(",\"%s\":{\"p50\":%.2f,\"p99\":%.2f,\"max\":%.2f}", key, percentile(ns, n, 0.5), percentile(ns, n, 0.99), percentile(ns, n, 1));
}

static int report(const struct trace *log, const struct trace *traces, unsigned n)
{
    uint64_t *ns[5];
    size_t felt = 0;
    for (unsigned k = 0; k < 5; k++)
        if (!(ns[k] = calloc(GR_MAX(log->n, (size_t)1), sizeof(uint64_t))))
            return 1;
    for (size_t i = 0; i < log->n; i++) {
        uint64_t from = log->at[i].start_ns, to = log->at[i].end_ns, quiet = from - (i ? GR_MIN(to - from, from - log->at[i - 1].end_ns) : to - from);
        for (unsigned k = 0; k < n; k++) {
            ns[1][i] = GR_MAX(ns[1][i], longest(&traces[k], from, to));
            ns[2][i] = GR_MAX(ns[2][i], longest(&traces[k], quiet, from - 1));
            ns[3][i] = GR_MAX(ns[3][i], silence(&traces[k], from, to));
            ns[4][i] = GR_MAX(ns[4][i], silence(&traces[k], quiet, from - 1));
        }
        ns[0][i] = to - from;
        felt += ns[1][i] != 0;
    }
    printf("{\"calls\":%zu,\"felt\":%zu", log->n, felt);
    static const char *const keys[5] = {"call", "longest", "longest-without", "silence", "silence-without"};
    for (unsigned k = 0; k < (n ? 5 : 1); k++)
        print(keys[k], ns[k], log->n);
    printf("}\n");
    for (unsigned k = 0; k < 5; k++)
        free(ns[k]);
    return 0;
}

/* p99 of the commands begun in a time. */
static double p99_of(const struct trace *traces, unsigned n, uint64_t from, uint64_t to, uint64_t *ns)
{
    size_t count = 0;
    for (unsigned k = 0; k < n; k++)
        for (size_t i = ended_from(&traces[k], from); i < traces[k].n && traces[k].at[i].end_ns <= to + traces[k].longest_ns; i++)
            if (traces[k].at[i].start_ns >= from && traces[k].at[i].start_ns <= to)
                ns[count++] = traces[k].at[i].end_ns - traces[k].at[i].start_ns;
    return percentile(ns, count, 0.99);
}

static int bursts(const struct trace *log, const struct trace *traces, unsigned n)
{
    size_t most = 1, count = 0;
    for (unsigned k = 0; k < n; k++)
        most += traces[k].n;
    uint64_t *ns = calloc(most, sizeof(*ns)), *table = calloc(3 * log->n + 3, sizeof(*table)), *with = table, *without = table + log->n + 1, *ratio = without + log->n + 1;
    if (!ns || !table)
        return 1;
    for (size_t i = 0, end; i < log->n; i = end) {
        for (end = i + 1; end < log->n && log->at[end].start_ns - log->at[end - 1].end_ns < PAUSE_NS; end++)
            ;
        uint64_t from = log->at[i].start_ns, to = 2 * log->at[end - 1].end_ns - from; /* what they began goes on behind them */
        uint64_t back = GR_MIN(to - from, i ? from - log->at[i - 1].end_ns : to - from);
        double a = p99_of(traces, n, from, to, ns), b = p99_of(traces, n, from - back, from - 1, ns);
        if (a <= 0 || b <= 0)
            continue;
        with[count] = (uint64_t)(a * 1e6);
        without[count] = (uint64_t)(b * 1e6);
        ratio[count++] = (uint64_t)(a / b * 1e6);
    }
    printf("{\"bursts\":%zu,\"p99\":%.3f,\"p99-without\":%.3f,\"ratio\":%.3f}\n", count, percentile(with, count, 0.5), percentile(without, count, 0.5),
           percentile(ratio, count, 0.5));
    free(ns);
    free(table);
    return 0;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    struct trace files[64] = {0};
    if (strcmp(what, "make") == 0)
        return make(argc, argv);
    if ((strcmp(what, "report") && strcmp(what, "bursts")) || argc < 3 || argc > 64) {
        fprintf(stderr, "usage: calls make|report|bursts ...\n");
        return 2;
    }
    for (int i = 2; i < argc; i++)
        if (trace_read(argv[i], &files[i - 2]) < 0) {
            fprintf(stderr, "calls: %s cannot be read\n", argv[i]);
            return 1;
        }
    int r = strcmp(what, "report") == 0 ? report(&files[0], files + 1, (unsigned)argc - 3) : bursts(&files[0], files + 1, (unsigned)argc - 3);
    for (int i = 2; i < argc; i++)
        free(files[i - 2].at);
    return r;
}
