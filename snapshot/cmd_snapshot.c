/* granary snapshot create|list|tree|describe|delete|revert|clone|bookmark|diff */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/range_text.h"
#include "snapshot/cmd_storage.h"
#include <string.h>

static const struct gr_col list_cols[] = {
    {"name", "NAME", GR_COL_TEXT},      {"kind", "KIND", GR_COL_TEXT},     {"created", "CREATED", GR_COL_TIME}, {"size", "SIZE", GR_COL_SIZE},
    {"used", "USED", GR_COL_SIZE},      {"shared", "SHARED", GR_COL_SIZE}, {"unique", "UNIQUE", GR_COL_SIZE},
    {"clone-disks", "CLONES", GR_COL_LIST}, {"deleting", "DELETED", GR_COL_BOOL}, {"protected", "PROTECTED", GR_COL_BOOL},
    {"expires", "EXPIRES", GR_COL_TIME}, {"current", "CURRENT", GR_COL_BOOL}, {"bookmark", "BOOKMARK", GR_COL_TEXT},
    {"description", "DESCRIPTION", GR_COL_TEXT}, {NULL},
};
static const struct gr_col tree_cols[] = {
    {"name", "NAME", GR_COL_TEXT},     {"created", "CREATED", GR_COL_TIME}, {"used", "USED", GR_COL_SIZE},
    {"unique", "UNIQUE", GR_COL_SIZE}, {"clones", "CLONES", GR_COL_NUMBER}, {"description", "DESCRIPTION", GR_COL_TEXT}, {NULL},
};
static const struct gr_col diff_cols[] = {
    {"offset", "OFFSET", GR_COL_NUMBER}, {"length", "LENGTH", GR_COL_NUMBER}, {"state", "STATE", GR_COL_TEXT}, {NULL},
};

static int describe(struct gr_cmd_ctx *c, const char *disk, const char *name, const char *text, struct gr_err *err)
{
    json_t *params = json_pack("{s:s,s:s,s:s}", "disk", disk, "snapshot", name, "description", text);
    return params ? snap_cmd_call(c, "snapshot.describe", params, NULL, NULL, NULL, err) : gr_fail(err, -GR_EUSAGE, "the description is not UTF-8");
}

static int create_params(struct gr_cmd_ctx *c, json_t **ret, struct gr_err *err)
{
    const char *name = gr_cmd_opt(c, "name"), *expire = gr_cmd_opt(c, "expire");
    bool policy = gr_cmd_flag(c, "policy");
    json_t *disks = json_array();
    int64_t at = 0;
    int r = 0;
    if (policy && name)
        r = gr_fail(err, -GR_EUSAGE, "with --policy the name is made of the policy's prefix and the time: leave --name away");
    else if (!policy)
        r = name ? snap_name_check(name, err) : gr_fail(err, -GR_EUSAGE, "give the snapshot's --name, or --policy");
    if (r == 0 && expire)
        r = snap_cmd_expiry(expire, &at, err);
    for (int i = 0; r == 0 && gr_cmd_arg(c, i); i++) {
        struct snap_path p;
        r = snap_path_parse(gr_cmd_arg(c, i), policy ? SNAP_PATH_DIR : SNAP_PATH_DISK, &p, err);
        if (r == 0)
            json_array_append_new(disks, json_string(gr_cmd_arg(c, i)));
    }
    if (r == 0)
        *ret = json_pack("{s:O,s:s*,s:I}", policy ? "paths" : "disks", disks, "name", name, "expires", (json_int_t)at);
    json_decref(disks);
    return r;
}

static int cmd_create(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *params = NULL, *res = NULL;
    const char *name = gr_cmd_opt(c, "name");
    bool policy = gr_cmd_flag(c, "policy");
    int r = create_params(c, &params, err);
    if (r == 0)
        r = snap_cmd_call(c, policy ? "snapshot.create-by-policy" : "snapshot.create", params, NULL, NULL, &res, err);
    for (int i = 0; r == 0 && !policy && gr_cmd_opt(c, "description") && gr_cmd_arg(c, i); i++)
        if ((r = describe(c, gr_cmd_arg(c, i), name, gr_cmd_opt(c, "description"), err)) < 0)
            gr_prefix(err, r, "the snapshot exists, but is not described");
    if (r == 0 && policy)
        r = gr_cmd_done(c, res, "snapshots of %zu disks created", json_array_size(res));
    else if (r == 0 && gr_cmd_nargs(c) == 1)
        r = gr_cmd_done(c, res, "snapshot %s@%s created", gr_cmd_arg(c, 0), name);
    else if (r == 0)
        r = gr_cmd_done(c, res, "snapshot '%s' of %d disks created, all at one instant", name, gr_cmd_nargs(c));
    json_decref(res);
    return r;
}

static int cmd_describe(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct snap_path p;
    int r = snap_path_parse(gr_cmd_arg(c, 0), SNAP_PATH_SNAPSHOT, &p, err);
    if (r < 0)
        return r;
    gr_auto_free char *disk = snap_cmd_disk(&p);
    r = disk ? describe(c, disk, p.snap, gr_cmd_arg(c, 1), err) : -ENOMEM;
    return r < 0 ? r : gr_cmd_done(c, NULL, "snapshot %s described", gr_cmd_arg(c, 0));
}

static int get_list(struct gr_cmd_ctx *c, json_t **ret, struct gr_err *err)
{
    struct snap_path p;
    int r = snap_path_parse(gr_cmd_arg(c, 0), SNAP_PATH_DISK, &p, err);
    bool deleted = gr_cmd_flag(c, "deleted");
    return r < 0 ? r : snap_cmd_call(c, "snapshot.list", json_pack("{s:s,s:b}", "disk", gr_cmd_arg(c, 0), "deleted", deleted), NULL, NULL, ret, err);
}

static int cmd_list(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *res = NULL;
    int r = get_list(c, &res, err);
    if (r == 0)
        r = gr_cmd_rows(c, list_cols, res);
    json_decref(res);
    return r;
}

static int cmd_tree(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *res = NULL;
    int r = get_list(c, &res, err);
    for (size_t i = json_array_size(res); r == 0 && !gr_cmd_json(c) && i-- > 0;) /* bookmarks grow from nothing */
        if (json_integer_value(json_object_get(json_array_get(res, i), "id")) == 0)
            json_array_remove(res, i);
    if (r == 0)
        r = gr_cmd_tree(c, tree_cols, res, "id", "parent-id", "(the disk as it is now)");
    json_decref(res);
    return r;
}

/* {"disk","snapshot"} from DS/PATH@SNAP */
static int disk_snapshot(struct gr_cmd_ctx *c, json_t **ret, struct gr_err *err)
{
    struct snap_path p;
    int r = snap_path_parse(gr_cmd_arg(c, 0), SNAP_PATH_SNAPSHOT, &p, err);
    if (r < 0)
        return r;
    gr_auto_free char *disk = snap_cmd_disk(&p);
    *ret = disk ? json_pack("{s:s,s:s}", "disk", disk, "snapshot", p.snap) : NULL;
    return 0;
}

static int cmd_delete(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *params = NULL;
    int r = disk_snapshot(c, &params, err);
    if (r < 0)
        return r;
    if (gr_cmd_flag(c, "keep-bookmark"))
        json_object_set_new(params, "keep-bookmark", json_true());
    if (gr_cmd_flag(c, "settle"))
        json_object_set_new(params, "settle", json_true());
    r = snap_cmd_call(c, "snapshot.delete", params, NULL, NULL, NULL, err);
    return r < 0 ? r : gr_cmd_done(c, NULL, "snapshot %s deleted", gr_cmd_arg(c, 0));
}

static int cmd_revert(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *params = NULL;
    int r = disk_snapshot(c, &params, err);
    if (r < 0)
        return r;
    if (gr_cmd_flag(c, "force"))
        json_object_set_new(params, "force", json_true());
    r = snap_cmd_call(c, "snapshot.revert", params, NULL, NULL, NULL, err);
    return r < 0 ? r : gr_cmd_done(c, NULL, "disk reverted to %s", gr_cmd_arg(c, 0));
}

static int cmd_bookmark(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *params = NULL, *res = NULL;
    int r = snap_name_check(gr_cmd_arg(c, 1), err);
    if (r == 0)
        r = disk_snapshot(c, &params, err);
    if (r < 0)
        return r;
    json_object_set_new(params, "bookmark", json_string(gr_cmd_arg(c, 1)));
    r = snap_cmd_call(c, "snapshot.bookmark", params, NULL, NULL, &res, err);
    if (r == 0)
        r = gr_cmd_done(c, res, "bookmark '%s' of %s: %s", gr_cmd_arg(c, 1), gr_cmd_arg(c, 0),
                        json_string_value(json_object_get(res, "bookmark")));
    json_decref(res);
    return r;
}

struct diff {
    struct gr_cmd_ctx *c;
    bool begun;
    json_t *row[2]; /* of data, of zeros: the same for all ranges */
};

/* Nothing is printed before the service has found both ends. */
static int diff_begin(struct diff *d)
{
    if (d->begun)
        return 0;
    d->begun = true;
    return gr_cmd_stream_begin(d->c, diff_cols);
}

static int diff_row(void *arg, uint64_t off, uint64_t len, bool zero)
{
    struct diff *d = arg;
    json_t *row = d->row[zero];
    if (!row && !(row = d->row[zero] = json_pack("{s:I,s:I,s:s}", "offset", (json_int_t)0, "length", (json_int_t)0, "state", zero ? "zero" : "data")))
        return -ENOMEM;
    (void)json_integer_set(json_object_get(row, "offset"), (json_int_t)off);
    (void)json_integer_set(json_object_get(row, "length"), (json_int_t)len);
    return gr_cmd_stream_row(d->c, row);
}

static int diff_part(void *arg, json_t *part)
{
    int r = diff_begin(arg);
    return r < 0 ? r : gr_ranges_part(part, diff_row, arg);
}

static int diff_params(struct gr_cmd_ctx *c, json_t **ret, struct gr_err *err)
{
    struct snap_path a, b = {0};
    const char *since = gr_cmd_opt(c, "since"), *second = gr_cmd_arg(c, 1);
    int r = snap_path_parse(gr_cmd_arg(c, 0), since ? SNAP_PATH_EITHER : SNAP_PATH_SNAPSHOT, &a, err);
    if (r == 0 && since && second)
        r = gr_fail(err, -GR_EUSAGE, "with --since only one disk or snapshot can be named");
    if (r == 0 && second)
        r = snap_path_parse(second, SNAP_PATH_EITHER, &b, err);
    if (r == 0 && second && (strcmp(a.ds, b.ds) != 0 || strcmp(a.path, b.path) != 0))
        r = gr_fail(err, -GR_EUSAGE, "'%s' and '%s' belong to different disks", gr_cmd_arg(c, 0), second);
    if (r < 0)
        return r;
    const char *to = since ? a.snap : b.snap;
    gr_auto_free char *disk = snap_cmd_disk(&a);
    *ret = json_pack("{s:s,s:s,s:s*,s:s}", "disk", disk ? disk : "", "base", since ? since : a.snap, "to", to[0] ? to : NULL, "form", GR_RANGES_TEXT);
    return 0;
}

static int cmd_diff(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *params = NULL;
    struct diff d = {c, false, {NULL}};
    int r = diff_params(c, &params, err);
    if (r == 0)
        r = snap_cmd_call(c, "snapshot.diff", params, diff_part, &d, NULL, err);
    if (r == 0)
        r = diff_begin(&d);
    int end = d.begun ? gr_cmd_stream_end(c) : 0;
    json_decref(d.row[0]);
    json_decref(d.row[1]);
    return r < 0 ? r : end;
}

static const struct gr_opt create_opts[] = {
    {"name", "NAME", "name of the snapshot"},
    {"description", "TEXT", "what it is for; not with --policy"},
    {"policy", NULL, "name it as the policy of the disks says; folders stand for the disks below that have one, an instant for each folder"},
    {"expire", "TIME", "prune may remove it after 90m, 12h, 7d, 4w, 1y"},
    {NULL},
};
static const struct gr_opt list_opts[] = {{"deleted", NULL, "also those that were deleted, and are kept as long as there are clones of them"}, {NULL}};
static const struct gr_opt delete_opts[] = {
    {"keep-bookmark", NULL, "leave a bookmark of the same name, so that changes since can still be asked for"},
    {"settle", NULL, "return when its space is free again"},
    {NULL},
};
static const struct gr_opt revert_opts[] = {{"force", NULL, "even while initiators use the disk"}, {NULL}};
static const struct gr_opt diff_opts[] = {{"since", "BOOKMARK", "changes since this bookmark or token UUID:LINEAGE:EPOCH"}, {NULL}};

const struct gr_cmd snap_snapshot_commands[] = {
    {"snapshot", "create", "DATASTORE/PATH...", 1, -1, "take a snapshot of one or more disks, all at one instant", create_opts, cmd_create},
    {"snapshot", "list", "DATASTORE/PATH", 1, 1, "list the snapshots and bookmarks of a disk", list_opts, cmd_list},
    {"snapshot", "tree", "DATASTORE/PATH", 1, 1, "show which snapshot grew from which", NULL, cmd_tree},
    {"snapshot", "describe", "DATASTORE/PATH@SNAPSHOT TEXT", 2, 2, "say what a snapshot is for; an empty text removes that", NULL, cmd_describe},
    {"snapshot", "delete", "DATASTORE/PATH@SNAPSHOT", 1, 1, "delete a snapshot or bookmark", delete_opts, cmd_delete},
    {"snapshot", "revert", "DATASTORE/PATH@SNAPSHOT", 1, 1, "make the disk what it was at the snapshot", revert_opts, cmd_revert},
    {"snapshot", "clone", "DATASTORE/PATH[@SNAPSHOT] DATASTORE/NEW...", 2, -1, "make new disks that start at a snapshot", snap_clone_opts, snap_cmd_clone},
    {"snapshot", "bookmark", "DATASTORE/PATH@SNAPSHOT NAME", 2, 2, "note the snapshot's instant for later comparison", NULL, cmd_bookmark},
    {"snapshot", "diff", "DATASTORE/PATH@A [DATASTORE/PATH@B]", 1, 2, "list what changed between a snapshot and a later one, or now", diff_opts,
     cmd_diff},
    {"snapshot", "policy", "DATASTORE[/PATH]", 1, 1, "say, or show, which snapshots of a disk or of a folder's disks stay", snap_policy_opts, snap_cmd_policy},
    {"snapshot", "prune", "DATASTORE[/PATH]...", 1, -1, "remove snapshots that no policy keeps, and those that have expired", snap_prune_opts, snap_cmd_prune},
    {"snapshot", "protect", "DATASTORE/PATH@SNAPSHOT", 1, 1, "let nobody delete a snapshot, nor its disk", snap_protect_opts, snap_cmd_protect},
    {"snapshot", "unprotect", "DATASTORE/PATH@SNAPSHOT", 1, 1, "let it be deleted again", NULL, snap_cmd_unprotect},
    {"snapshot", "expire", "DATASTORE/PATH@SNAPSHOT TIME|off", 2, 2, "let prune remove a snapshot after a time", NULL, snap_cmd_expire},
    {NULL},
};
