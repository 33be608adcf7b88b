/* granary backup … */
#include "backup-proxy/catalogue.h"
#include "backup-proxy/cmd_proxy.h"
#include "backup-proxy/gc.h"
#include "backup-proxy/point.h"
#include "common/retain.h"
#include "backup-proxy/verify.h"
#include "backup-proxy/vmdk.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <string.h>

static const struct gr_opt repo_opts[] = {{"repo", "DIR", "the repository; default: the one used last", false}, {NULL, NULL, NULL, false}};

/* ---- run ---- */
#define ARGS_MAX 80
static int run_one(struct gr_cmd_ctx *c, const char *repo, const char *vm, json_t **ret, struct gr_err *err)
{
    const char *args[ARGS_MAX] = {"backup", "--json", "--repo", repo}, *v;
    int n = 4;
    static const char *const pass[] = {"transport", "name", "level"}, *const flags[] = {"full", "no-quiesce"};
    static const char *const dashed[] = {"--transport", "--name", "--level"}, *const dashed_flags[] = {"--full", "--no-quiesce"};
    for (size_t i = 0; i < GR_ARRAY_LEN(pass); i++)
        if ((v = gr_cmd_opt(c, pass[i]))) {
            args[n++] = dashed[i];
            args[n++] = v;
        }
    for (size_t i = 0; i < GR_ARRAY_LEN(flags); i++)
        if (gr_cmd_flag(c, flags[i]))
            args[n++] = dashed_flags[i];
    for (int i = 0; !vm && (v = gr_cmd_opt_n(c, "disk", i)); i++) {
        if (n > ARGS_MAX - 4)
            return gr_fail(err, -GR_EUSAGE, "too many disks");
        args[n++] = "--disk";
        args[n++] = v;
    }
    args[n++] = "--";
    if (vm)
        args[n++] = vm;
    return bp_run_proxy(args, ret, err);
}
static const struct gr_col run_cols[] = {{"name", "NAME", GR_COL_TEXT},        {"status", "STATUS", GR_COL_TEXT},   {"kind", "KIND", GR_COL_TEXT},
                                         {"consistency", "CONSISTENCY", GR_COL_TEXT}, {"read", "READ", GR_COL_SIZE},        {"changed", "CHANGED", GR_COL_SIZE}, {"stored", "STORED", GR_COL_SIZE},
                                         {"frozen-ms", "FROZEN MS", GR_COL_NUMBER}, {"duration", "SECONDS", GR_COL_NUMBER},
                                         {"point", "POINT", GR_COL_TEXT},      {"error", "ERROR", GR_COL_TEXT},     {NULL, NULL, 0}};
static int run_jobs(struct gr_cmd_ctx *c, const char *repo, json_t *rows, struct gr_err *err)
{
    int jobs = gr_cmd_opt(c, "disk") ? 1 : gr_cmd_nargs(c), failed = 0, code = 0;
    for (int i = 0; i < jobs; i++) {
        const char *vm = gr_cmd_arg(c, i);
        json_t *row = NULL;
        struct gr_err e = {0};
        int r = run_one(c, repo, vm, &row, &e);
        if (r < 0) {
            const char *name = gr_cmd_opt(c, "name");
            row = json_pack("{s:s,s:s,s:s,s:s}", "name", name ? name : vm ? vm : gr_cmd_opt(c, "disk"), "status", "failed", "code", gr_code_name(r),
                            "error", gr_err_text(&e, r));
            failed++;
            code = r;
            if (jobs == 1)
                gr_fail(err, r, "%s", gr_err_text(&e, r));
        } else {
            json_object_set_new(row, "status", json_string("ok"));
        }
        json_array_append_new(rows, row);
    }
    if (failed == 0 || jobs == 1)
        return code;
    return gr_fail(err, failed < jobs ? -GR_EPARTIAL : -EIO, "%d of %d backups failed", failed, jobs);
}
static int cmd_run(struct gr_cmd_ctx *c, struct gr_err *err)
{
    gr_auto_free char *repo = NULL;
    if ((gr_cmd_nargs(c) == 0) == (gr_cmd_opt(c, "disk") == NULL))
        return gr_fail(err, -GR_EUSAGE, "name VMs, or plain disks with --disk, not both");
    if (gr_cmd_nargs(c) > 1 && gr_cmd_opt(c, "name"))
        return gr_fail(err, -GR_EUSAGE, "--name is for one backup, not for several VMs");
    int r = bp_cmd_repo_path(c, &repo, err);
    if (r < 0)
        return r;
    json_t *rows = json_array();
    r = run_jobs(c, repo, rows, err);
    bp_cmd_repo_remember(repo);
    int shown = gr_cmd_rows(c, run_cols, rows);
    json_decref(rows);
    return r < 0 ? r : shown;
}

/* ---- list, show, find ---- */
static const struct gr_col list_cols[] = {{"point", "POINT", GR_COL_TEXT},   {"time", "TIME", GR_COL_TIME},       {"kind", "KIND", GR_COL_TEXT},
                                          {"consistency", "CONSISTENCY", GR_COL_TEXT}, {"size", "SIZE", GR_COL_SIZE}, {"read", "READ", GR_COL_SIZE},
                                          {"stored", "STORED", GR_COL_SIZE}, {"state", "STATE", GR_COL_TEXT},     {NULL, NULL, 0}};
static int show_rows(struct gr_cmd_ctx *c, const char *name, const char *find, struct gr_err *err)
{
    struct bp_repo *repo = NULL;
    struct bp_catalogue *cat = NULL;
    json_t *rows = NULL;
    int r = bp_cmd_repo(c, &repo, err);
    if (r == 0)
        r = bp_catalogue_open(repo, &cat, err);
    if (r == 0)
        r = find ? bp_catalogue_find(cat, find, &rows, err) : bp_catalogue_list(cat, name, &rows, err);
    if (r == 0)
        r = gr_cmd_rows(c, list_cols, rows);
    json_decref(rows);
    bp_catalogue_close(cat);
    bp_repo_close(repo);
    return r;
}
static int cmd_list(struct gr_cmd_ctx *c, struct gr_err *err)
{
    return show_rows(c, gr_cmd_arg(c, 0), NULL, err);
}
static int cmd_find(struct gr_cmd_ctx *c, struct gr_err *err)
{
    return show_rows(c, NULL, gr_cmd_arg(c, 0), err);
}
static const struct gr_col show_cols[] = {{"point", "point", GR_COL_TEXT},           {"time", "time", GR_COL_TIME},
                                          {"kind", "kind", GR_COL_TEXT},             {"cause", "cause of the full", GR_COL_TEXT},
                                          {"parent", "parent", GR_COL_TEXT},         {"consistency", "consistency", GR_COL_TEXT},
                                          {"consistency-cause", "because", GR_COL_TEXT},
                                          {"transport", "transport", GR_COL_TEXT},   {"frozen-ms", "frozen ms", GR_COL_NUMBER},
                                          {"read", "read", GR_COL_SIZE},             {"changed", "changed", GR_COL_SIZE},
                                          {"stored", "stored", GR_COL_SIZE},         {"deduped", "deduplicated", GR_COL_SIZE},
                                          {"duration", "seconds", GR_COL_NUMBER},    {NULL, NULL, 0}};
static const struct gr_col disk_cols[] = {{"name", "DISK", GR_COL_TEXT},     {"path", "PATH", GR_COL_TEXT},       {"size", "SIZE", GR_COL_SIZE},
                                          {"kind", "KIND", GR_COL_TEXT},     {"read", "READ", GR_COL_SIZE},       {"stored", "STORED", GR_COL_SIZE},
                                          {"bookmark", "BOOKMARK", GR_COL_TEXT}, {NULL, NULL, 0}};
static int cmd_show(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct bp_repo *repo = NULL;
    struct bp_point p = {.doc = NULL};
    char id[BP_POINT_ID_MAX];
    int r = bp_cmd_repo(c, &repo, err);
    if (r == 0)
        r = bp_point_resolve(repo, gr_cmd_arg(c, 0), id, NULL, err);
    if (r == 0)
        r = bp_point_load(repo, id, &p, err);
    if (r == 0)
        r = gr_cmd_object(c, show_cols, p.doc);
    if (r == 0 && !gr_cmd_json(c))
        r = gr_cmd_rows(c, disk_cols, json_object_get(p.doc, "disks"));
    bp_point_done(&p);
    bp_repo_close(repo);
    return r;
}

/* ---- verify ---- */
static void verify_progress(void *arg, uint64_t bytes)
{
    gr_cmd_progress(arg, "verify", bytes, 0, true);
}
static int wanted_points(struct gr_cmd_ctx *c, struct bp_repo *repo, json_t **ret, struct gr_err *err)
{
    if (gr_cmd_nargs(c) == 0)
        return bp_point_ids(repo, NULL, ret, err);
    *ret = json_array();
    for (int i = 0; i < gr_cmd_nargs(c); i++) {
        char id[BP_POINT_ID_MAX];
        int r = bp_point_resolve(repo, gr_cmd_arg(c, i), id, NULL, err);
        if (r < 0)
            return r;
        json_array_append_new(*ret, json_string(id));
    }
    return 0;
}
static int cmd_verify(struct gr_cmd_ctx *c, struct gr_err *err)
{
    static const struct gr_col cols[] = {{"points", "points", GR_COL_NUMBER}, {"extents", "extents", GR_COL_NUMBER}, {"bytes", "bytes read", GR_COL_SIZE},
                                         {"damaged", "damaged", GR_COL_NUMBER}, {"affected-points", "affected points", GR_COL_LIST}, {NULL, NULL, 0}};
    static const struct gr_col bad_cols[] = {{"point", "POINT", GR_COL_TEXT}, {"disk", "DISK", GR_COL_TEXT}, {"offset", "OFFSET", GR_COL_NUMBER},
                                             {"error", "DAMAGE", GR_COL_TEXT}, {NULL, NULL, 0}};
    struct bp_repo *repo = NULL;
    struct bp_verify v = {.damage = NULL};
    json_t *ids = NULL;
    int r = bp_cmd_repo(c, &repo, err);
    if (r == 0)
        r = wanted_points(c, repo, &ids, err);
    if (r == 0)
        r = bp_verify_points(repo, ids, verify_progress, c, &v, err);
    if (r == 0) {
        json_t *o = json_pack("{s:I,s:I,s:I,s:I,s:O,s:O}", "points", (json_int_t)v.points, "extents", (json_int_t)v.extents, "bytes",
                              (json_int_t)v.bytes, "damaged", (json_int_t)json_array_size(v.damage), "damage", v.damage, "affected-points", v.affected);
        r = gr_cmd_object(c, cols, o);
        if (r == 0 && !gr_cmd_json(c) && json_array_size(v.damage))
            r = gr_cmd_rows(c, bad_cols, v.damage);
        if (json_array_size(v.damage))
            r = gr_fail(err, -GR_ECORRUPT, "%s: %zu points need data that is damaged; the first is '%s'", bp_repo_path(repo),
                        json_array_size(v.affected), json_string_value(json_array_get(v.affected, 0)));
        json_decref(o);
    }
    json_decref(v.damage);
    json_decref(v.affected);
    json_decref(ids);
    bp_repo_close(repo);
    return r;
}

/* ---- prune ---- */
static int keep_options(struct gr_cmd_ctx *c, struct gr_keep *k, struct gr_err *err)
{
    const struct {
        const char *name;
        uint64_t *to;
    } o[] = {{"keep-last", &k->last},     {"keep-hourly", &k->hourly},   {"keep-daily", &k->daily},
             {"keep-weekly", &k->weekly}, {"keep-monthly", &k->monthly}, {"keep-yearly", &k->yearly}};
    bool any = false;
    for (size_t i = 0; i < GR_ARRAY_LEN(o); i++) {
        const char *v = gr_cmd_opt(c, o[i].name);
        if (v && gr_parse_u64(v, 0, 1000000, o[i].to, err) < 0)
            return gr_prefix(err, -GR_EUSAGE, "--%s", o[i].name);
        any = any || *o[i].to;
    }
    return any ? 0 : gr_fail(err, -GR_EUSAGE, "say what to keep: --keep-last N, --keep-daily N, …; without a rule nothing is removed");
}
/* Judge the points of one name, @ids[from..to) oldest first; rows get {"point","time","keep","why"} newest first. */
static int prune_name(struct bp_repo *repo, json_t *ids, size_t from, size_t to, const struct gr_keep *keep, json_t *rows, struct gr_err *err)
{
    size_t n = to - from;
    gr_auto_free struct gr_retain_item *it = gr_zalloc(n * sizeof *it);
    if (!it)
        return gr_fail(err, -ENOMEM, "out of memory");
    for (size_t i = 0; i < n; i++) {
        struct bp_point p = {.doc = NULL};
        const char *id = json_string_value(json_array_get(ids, to - 1 - i));
        int r = bp_point_load(repo, id, &p, err);
        if (r < 0 && r != -GR_ECORRUPT)
            return r;
        it[i].time_s = r == 0 ? json_integer_value(json_object_get(p.doc, "time")) : 0;
        it[i].protect = r < 0 || json_is_true(json_object_get(p.doc, "protected")); /* a damaged one is for people to judge */
        bp_point_done(&p);
    }
    gr_retain_plan(it, n, keep);
    for (size_t i = 0; i < n; i++)
        json_array_append_new(rows, json_pack("{s:O,s:I,s:b,s:s}", "point", json_array_get(ids, to - 1 - i), "time", (json_int_t)it[i].time_s, "keep",
                                              it[i].keep, "why", it[i].why ? it[i].why : "removed"));
    return 0;
}
static size_t name_len(json_t *id)
{
    const char *s = json_string_value(id);
    return (size_t)(strrchr(s, '/') - s);
}
static int prune_all(struct bp_repo *repo, json_t *ids, const struct gr_keep *keep, json_t *rows, struct gr_err *err)
{
    size_t n = json_array_size(ids);
    int r = 0;
    for (size_t i = 0, k; r == 0 && i < n; i = k) {
        json_t *first = json_array_get(ids, i);
        for (k = i + 1; k < n; k++) {
            json_t *other = json_array_get(ids, k);
            if (name_len(other) != name_len(first) || memcmp(json_string_value(other), json_string_value(first), name_len(first)))
                break;
        }
        r = prune_name(repo, ids, i, k, keep, rows, err);
    }
    return r;
}
static int cmd_prune(struct gr_cmd_ctx *c, struct gr_err *err)
{
    static const struct gr_col cols[] = {{"point", "POINT", GR_COL_TEXT}, {"time", "TIME", GR_COL_TIME}, {"keep", "KEEP", GR_COL_BOOL},
                                         {"why", "WHY", GR_COL_TEXT}, {NULL, NULL, 0}};
    struct bp_repo *repo = NULL;
    struct gr_keep keep = {0};
    json_t *ids = NULL, *rows = json_array(), *row;
    size_t i;
    int r = keep_options(c, &keep, err);
    if (r == 0)
        r = bp_cmd_repo(c, &repo, err);
    if (r == 0)
        r = bp_point_ids(repo, gr_cmd_arg(c, 0), &ids, err);
    if (r == 0)
        r = prune_all(repo, ids, &keep, rows, err);
    json_array_foreach(rows, i, row) {
        if (r == 0 && !gr_cmd_flag(c, "dry-run") && !json_is_true(json_object_get(row, "keep")))
            r = bp_point_remove(repo, json_string_value(json_object_get(row, "point")), err);
    }
    if (r == 0)
        r = gr_cmd_rows(c, cols, rows);
    json_decref(ids);
    json_decref(rows);
    bp_repo_close(repo);
    return r;
}
static int cmd_remove(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct bp_repo *repo = NULL;
    char id[BP_POINT_ID_MAX];
    int r = bp_cmd_repo(c, &repo, err);
    if (r == 0)
        r = strstr(gr_cmd_arg(c, 0), "/latest") ? gr_fail(err, -GR_EUSAGE, "name the point in full, not by 'latest'") : 0;
    if (r == 0)
        r = bp_point_resolve(repo, gr_cmd_arg(c, 0), id, NULL, err);
    if (r == 0 && strcmp(id, gr_cmd_arg(c, 0)))
        r = gr_fail(err, -GR_EUSAGE, "name the point in full (NAME/STAMP), as \"granary backup list\" shows it");
    if (r == 0)
        r = bp_point_remove(repo, id, err);
    bp_repo_close(repo);
    json_t *o = r == 0 ? json_pack("{s:s}", "point", id) : NULL;
    if (r == 0)
        r = gr_cmd_done(c, o, "removed %s; \"granary backup gc\" gives its space back", id);
    json_decref(o);
    return r;
}

/* ---- gc ---- */
static int gc_work(void *arg)
{
    void **a = arg;
    return bp_gc(a[0], a[1], a[2]);
}
static int cmd_gc(struct gr_cmd_ctx *c, struct gr_err *err)
{
    static const struct gr_col cols[] = {{"packs", "packs before", GR_COL_NUMBER},      {"bytes", "bytes before", GR_COL_SIZE},
                                         {"removed-packs", "removed packs", GR_COL_NUMBER}, {"removed-bytes", "removed", GR_COL_SIZE},
                                         {"waiting-packs", "waiting for running backups", GR_COL_NUMBER}, {"waiting-bytes", "waiting", GR_COL_SIZE},
                                         {"points-forgotten", "pruned points forgotten", GR_COL_NUMBER}, {"leavings", "leavings of dead jobs", GR_COL_NUMBER},
                                         {NULL, NULL, 0}};
    struct bp_repo *repo = NULL;
    struct bp_gc_stats st = {0};
    int r = bp_cmd_repo(c, &repo, err);
    void *a[] = {repo, &st, err};
    if (r == 0)
        r = gr_fiber_work(gc_work, a);
    bp_repo_close(repo);
    if (r < 0)
        return r;
    json_t *o = json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "packs", (json_int_t)st.packs, "bytes", (json_int_t)st.bytes, "removed-packs",
                          (json_int_t)st.removed_packs, "removed-bytes", (json_int_t)st.removed_bytes, "waiting-packs", (json_int_t)st.waiting_packs,
                          "waiting-bytes", (json_int_t)st.waiting_bytes, "points-forgotten", (json_int_t)st.points_forgotten, "leavings",
                          (json_int_t)st.leavings);
    r = gr_cmd_object(c, cols, o);
    json_decref(o);
    return r;
}

/* ---- catalogue rebuild, export ---- */
static int cmd_rebuild(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct bp_repo *repo = NULL;
    int r = bp_cmd_repo(c, &repo, err);
    if (r == 0)
        r = bp_catalogue_rebuild(repo, err);
    bp_repo_close(repo);
    if (r < 0)
        return r;
    json_t *o = json_pack("{s:i}", "points", r);
    int n = r;
    r = gr_cmd_done(c, o, "rebuilt the catalogue: %d points", n);
    json_decref(o);
    return r;
}
static int export_progress(void *arg, uint64_t done, uint64_t total)
{
    gr_cmd_progress(arg, "export", done, total, true);
    return 0;
}
static int export_raw(struct gr_cmd_ctx *c, struct gr_chan *ch, uint64_t size, const char *file, struct gr_err *err)
{
    struct gr_file_opts fo = {.create = true, .size = size};
    struct gr_bdev *out = NULL;
    struct gr_chan *to = NULL;
    if (access(file, F_OK) == 0)
        return gr_fail(err, -EEXIST, "%s: exists already", file);
    int r = gr_bdev_file_open(gr_cmd_loop(c), file, &fo, &out, err);
    if (r == 0)
        r = gr_chan_open(out, gr_cmd_loop(c), &to);
    if (r == 0)
        r = bp_copy(ch, to, true, export_progress, c, err);
    gr_chan_close(to);
    if (r < 0 && out)
        (void)unlink(file);
    gr_bdev_put(out);
    return r;
}
static int cmd_export(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct bp_repo *repo = NULL;
    struct gr_bdev *bdev = NULL;
    struct gr_chan *ch = NULL;
    struct gr_geometry g = {0};
    gr_auto_free char *disk = NULL;
    char id[BP_POINT_ID_MAX];
    const char *file = gr_cmd_arg(c, 1), *format = gr_cmd_opt(c, "format");
    if (format && strcmp(format, "vmdk") && strcmp(format, "raw"))
        return gr_fail(err, -GR_EUSAGE, "unknown format '%s' (vmdk, raw)", format);
    int r = bp_cmd_repo(c, &repo, err);
    if (r == 0)
        r = bp_point_resolve(repo, gr_cmd_arg(c, 0), id, &disk, err);
    if (r == 0)
        r = bp_point_open(gr_cmd_loop(c), repo, id, disk, &bdev, err);
    if (r == 0 && (r = gr_bdev_geometry(bdev, &g)) == 0)
        r = gr_chan_open(bdev, gr_cmd_loop(c), &ch);
    struct bp_vmdk_opts o = {.progress = export_progress, .arg = c};
    if (r == 0)
        r = format && !strcmp(format, "raw") ? export_raw(c, ch, g.size, file, err)
            : strcmp(file, "-")             ? bp_vmdk_export_file(ch, file, &o, NULL, err)
                                            : bp_vmdk_export(ch, STDOUT_FILENO, &o, NULL, err);
    gr_chan_close(ch);
    gr_bdev_put(bdev);
    bp_repo_close(repo);
    if (r < 0 || !strcmp(file, "-"))
        return r;
    json_t *obj = json_pack("{s:s,s:s,s:I}", "point", id, "file", file, "size", (json_int_t)g.size);
    r = gr_cmd_done(c, obj, "exported %s to %s", id, file);
    json_decref(obj);
    return r;
}

static const struct gr_opt run_opts[] = {
    {"repo", "DIR", "the repository; made when it does not exist", false},
    {"transport", "HOW", "san (iSCSI), lan (NBD with TLS), local; default: san with a daemon, else local", false},
    {"disk", "DS/PATH", "back up this plain disk instead of VMs; several go into one point, taken in one instant", true},
    {"name", "NAME", "name of the backup; default: the VM's, or the first disk's", false},
    {"full", NULL, "read everything, not only what changed", false},
    {"level", "N", "zstd level 1 to 19; default 3", false},
    {"no-quiesce", NULL, "do not freeze the guest's file systems", false},
    {NULL, NULL, NULL, false}};
static const struct gr_opt prune_opts[] = {
    {"repo", "DIR", "the repository; default: the one used last", false},
    {"keep-last", "N", "keep the newest N points", false},
    {"keep-hourly", "N", "keep the newest point of N hours", false},
    {"keep-daily", "N", "keep the newest point of N days (UTC)", false},
    {"keep-weekly", "N", "keep the newest point of N weeks (ISO)", false},
    {"keep-monthly", "N", "keep the newest point of N months", false},
    {"keep-yearly", "N", "keep the newest point of N years", false},
    {"dry-run", NULL, "show what would be removed", false},
    {NULL, NULL, NULL, false}};
static const struct gr_opt export_opts[] = {{"repo", "DIR", "the repository; default: the one used last", false},
                                            {"format", "FORMAT", "vmdk (stream-optimized, default) or raw", false},
                                            {NULL, NULL, NULL, false}};
const struct gr_cmd bp_backup_commands[] = {
    {"backup", "run", "[VM...]", 0, -1, "back up virtual machines or disks into a repository", run_opts, cmd_run},
    {"backup", "list", "[NAME]", 0, 1, "list restore points", repo_opts, cmd_list},
    {"backup", "show", "POINT", 1, 1, "show one restore point and its disks", repo_opts, cmd_show},
    {"backup", "find", "TEXT", 1, 1, "list points whose name, disks or VM configuration contain TEXT", repo_opts, cmd_find},
    {"backup", "verify", "[POINT...]", 0, -1, "read all data of points (default: all) and check it against its hashes", repo_opts, cmd_verify},
    {"backup", "export", "POINT[:DISK] FILE", 2, 2, "write a disk of a point as an image file ('-': VMDK to standard output)", export_opts, cmd_export},
    {"backup", "prune", "[NAME]", 0, 1, "remove points that no rule keeps", prune_opts, cmd_prune},
    {"backup", "remove", "POINT", 1, 1, "remove one point", repo_opts, cmd_remove},
    {"backup", "gc", "", 0, 0, "give the space back that no point needs", repo_opts, cmd_gc},
    {"backup", "rebuild-catalogue", "", 0, 0, "read all manifests anew into the catalogue", repo_opts, cmd_rebuild},
    {NULL, NULL, NULL, 0, 0, NULL, NULL, NULL}};
