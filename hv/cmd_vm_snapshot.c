/* granary vm snapshot|snapshots|revert|delete-snapshot */
#include "common/cleanup.h"
#include "hv/cmd_vm.h"

static const struct gr_col columns[] = {
    {"name", "NAME", GR_COL_TEXT},      {"parent", "PARENT", GR_COL_TEXT}, {"created", "CREATED", GR_COL_TIME}, {"state", "STATE", GR_COL_TEXT},
    {"unique", "UNIQUE", GR_COL_SIZE},  {"memory", "MEMORY", GR_COL_SIZE}, {"current", "CURRENT", GR_COL_BOOL}, {"description", "DESCRIPTION", GR_COL_TEXT},
    {NULL, NULL, GR_COL_TEXT},
};

static int show_progress(void *arg, json_t *part)
{
    gr_cmd_progress(arg, "memory", (uint64_t)json_integer_value(json_object_get(part, "done")), (uint64_t)json_integer_value(json_object_get(part, "total")), true);
    return 0;
}

static int vm_snapshot(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_auto_t *params = NULL, *res = NULL;
    const char *name = gr_cmd_opt(c, "name");
    bool memory = gr_cmd_flag(c, "memory");
    if (!name)
        return gr_fail(err, -GR_EUSAGE, "--name is missing");
    params = json_pack("{s:s, s:s, s:b, s:b, s:b, s:s*}", "vm", gr_cmd_arg(c, 0), "name", name, "record", 1, "memory", memory, "quiesce",
                       !gr_cmd_flag(c, "no-quiesce"), "description", gr_cmd_opt(c, "description"));
    if (!params)
        return gr_fail(err, -GR_EUSAGE, "the name or description is not UTF-8");
    int r = hv_host_call(gr_cmd_loop(c), "vm.snapshot", gr_take(params), show_progress, c, -1, &res, err);
    if (r < 0)
        return r;
    const char *how = json_string_value(json_object_get(res, "consistency")), *cause = json_string_value(json_object_get(res, "cause"));
    if (memory)
        return gr_cmd_done(c, res, "snapshot %s of %s taken %s; it was held for %lld ms", name, gr_cmd_arg(c, 0), cause ? cause : "",
                           (long long)json_integer_value(json_object_get(res, "frozen-ms")));
    return gr_cmd_done(c, res, "snapshot %s of %s is %s-consistent: %s", name, gr_cmd_arg(c, 0), how ? how : "?", cause ? cause : "");
}

static int vm_snapshots(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_auto_t *res = NULL;
    int r = hv_host_call(gr_cmd_loop(c), "vm.snapshots", json_pack("{s:s}", "vm", gr_cmd_arg(c, 0)), NULL, NULL, -1, &res, err);
    if (r < 0)
        return r;
    return gr_cmd_flag(c, "tree") ? gr_cmd_tree(c, columns, res, "name", "parent", "(the machine as it is now)") : gr_cmd_rows(c, columns, res);
}

static json_t *named(struct gr_cmd_ctx *c)
{
    return json_pack("{s:s, s:s}", "vm", gr_cmd_arg(c, 0), "name", gr_cmd_arg(c, 1));
}

static int vm_abandon_revert(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_auto_t *res = NULL;
    if (gr_cmd_arg(c, 1) || gr_cmd_flag(c, "force") || gr_cmd_flag(c, "no-memory"))
        return gr_fail(err, -GR_EUSAGE, "--abandon gives up a revert that was cut short: it goes with the name of the machine alone");
    int r = hv_host_call(gr_cmd_loop(c), "vm.abandon-revert", json_pack("{s:s}", "vm", gr_cmd_arg(c, 0)), NULL, NULL, -1, &res, err);
    return r < 0 ? r : gr_cmd_done(c, res, "%s stays as its revert has left it: some of its disks may be of the snapshot, others not", gr_cmd_arg(c, 0));
}

static int vm_revert(struct gr_cmd_ctx *c, struct gr_err *err)
{
    if (gr_cmd_flag(c, "abandon"))
        return vm_abandon_revert(c, err);
    if (!gr_cmd_arg(c, 1))
        return gr_fail(err, -GR_EUSAGE, "which snapshot? 'granary vm snapshots %s' lists them", gr_cmd_arg(c, 0));
    json_auto_t *params = named(c), *res = NULL;
    if (!params || json_object_set_new(params, "force", json_boolean(gr_cmd_flag(c, "force"))) ||
        json_object_set_new(params, "memory", json_boolean(!gr_cmd_flag(c, "no-memory"))))
        return -ENOMEM;
    int r = hv_host_call(gr_cmd_loop(c), "vm.revert", gr_take(params), NULL, NULL, -1, &res, err);
    const char *state = json_string_value(json_object_get(res, "state"));
    return r < 0 ? r : gr_cmd_done(c, res, "%s is as it was at snapshot %s (%s)", gr_cmd_arg(c, 0), gr_cmd_arg(c, 1), state ? state : "?");
}

static int vm_delete_snapshot(struct gr_cmd_ctx *c, struct gr_err *err)
{
    int r = hv_host_call(gr_cmd_loop(c), "vm.delete-snapshot", named(c), NULL, NULL, -1, NULL, err);
    return r < 0 ? r : gr_cmd_done(c, NULL, "deleted snapshot %s of %s", gr_cmd_arg(c, 1), gr_cmd_arg(c, 0));
}

static const struct gr_opt snapshot_opts[] = {
    {"name", "NAME", "name of the snapshot", false},
    {"description", "TEXT", "what it is for", false},
    {"memory", NULL, "with the guest's memory, so that it can go on from there; nothing is frozen for it", false},
    {"no-quiesce", NULL, "do not freeze the guest's file systems", false},
    {NULL, NULL, NULL, false},
};
static const struct gr_opt list_opts[] = {
    {"tree", NULL, "show which grew from which, and where the machine is now", false},
    {NULL, NULL, NULL, false},
};
static const struct gr_opt revert_opts[] = {
    {"force", NULL, "also while it is on: it is ended first, as it is", false},
    {"no-memory", NULL, "disks and configuration only; it stays off", false},
    {"abandon", NULL, "give up one that was cut short and cannot be finished: the disks stay as they are", false},
    {NULL, NULL, NULL, false},
};

const struct gr_cmd hv_vm_snapshot_commands[] = {
    {"vm", "snapshot", "NAME", 1, 1, "Keep its disks of one instant and its configuration, and its memory if asked", snapshot_opts, vm_snapshot},
    {"vm", "snapshots", "NAME", 1, 1, "List the snapshots of a virtual machine", list_opts, vm_snapshots},
    {"vm", "revert", "NAME [SNAPSHOT]", 1, 2, "Make it what it was at a snapshot; with its memory it goes on from there", revert_opts, vm_revert},
    {"vm", "delete-snapshot", "NAME SNAPSHOT", 2, 2, "Delete a snapshot of a virtual machine; what grew from it stays", NULL, vm_delete_snapshot},
    {NULL, NULL, NULL, 0, 0, NULL, NULL, NULL},
};
