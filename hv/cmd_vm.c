#include "hv/cmd_vm.h"
#include "common/b64.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/daemon.h"
#include "common/rpc.h"
#include "hv/vm.h"
#include <stdio.h>
#include <string.h>

#define HOSTD_START_MS 20000

static const struct gr_col vm_columns[] = {
    {"vm", "NAME", GR_COL_TEXT},      {"state", "STATE", GR_COL_TEXT},   {"accel", "ACCEL", GR_COL_TEXT},   {"agent", "AGENT", GR_COL_TEXT},
    {"memory", "MEMORY", GR_COL_SIZE}, {"vcpus", "CPUS", GR_COL_NUMBER}, {"disks", "DISKS", GR_COL_LIST},   {NULL, NULL, GR_COL_TEXT},
};
static const struct gr_col info_columns[] = {
    {"vm", "name", GR_COL_TEXT},          {"uuid", "uuid", GR_COL_TEXT},
    {"state", "state", GR_COL_TEXT},      {"error", "error", GR_COL_TEXT},
    {"memory", "memory", GR_COL_SIZE},    {"vcpus", "virtual cpus", GR_COL_NUMBER},
    {"disks", "disks", GR_COL_LIST},      {"nic", "network", GR_COL_BOOL},
    {"agent", "guest agent", GR_COL_TEXT}, {"frozen", "frozen", GR_COL_TEXT},
    {"accel", "accelerator", GR_COL_TEXT}, {"accel-reason", "because", GR_COL_TEXT},
    {"since", "running since", GR_COL_TIME}, {"incarnation", "starts so far", GR_COL_NUMBER},
    {"snapshot", "snapshot it grew from", GR_COL_TEXT}, {"resumes", "goes on from memory", GR_COL_BOOL},
    {"pid", "engine's process", GR_COL_NUMBER}, {"config", "configuration", GR_COL_TEXT},
    {NULL, NULL, GR_COL_TEXT},
};

/* 0 connected, 1 connected after starting the agent. */
static int connect_host(struct gr_loop *loop, struct gr_rpc_client **ret, struct gr_err *err)
{
    struct gr_home *home = NULL;
    int r = gr_home_open(1, &home, err), started = 0;
    if (r < 0)
        return r;
    gr_auto_free char *path = gr_home_path(home, "run/hostd.sock"), *log = gr_home_path(home, "log/hostd.log");
    r = path && log ? gr_rpc_connect(loop, path, ret, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r == -ENOENT || r == -ECONNREFUSED) {
        gr_auto_free char *exe = gr_program_path("granary-hostd");
        const char *args[] = {exe, NULL};
        r = exe ? gr_daemon_start(args, log, HOSTD_START_MS, err) : gr_fail(err, -ENOENT, "the program granary-hostd is not beside granary");
        started = 1;
        if (r >= 0 || r == -GR_ELOCKED) /* locked: another command started it in the same moment */
            r = gr_rpc_connect(loop, path, ret, err);
    }
    gr_home_free(home);
    return r < 0 ? r : started;
}

int hv_host_ensure(struct gr_loop *loop, struct gr_err *err)
{
    struct gr_rpc_client *c = NULL;
    int r = connect_host(loop, &c, err);
    gr_rpc_client_free(c);
    return r;
}

int hv_host_call(struct gr_loop *loop, const char *method, json_t *params, int (*on_part)(void *arg, json_t *part), void *part_arg, int64_t timeout_ms,
                 json_t **ret, struct gr_err *err)
{
    json_auto_t *take = params;
    struct gr_rpc_client *c = NULL;
    int r = connect_host(loop, &c, err);
    if (r < 0)
        return r;
    r = gr_rpc_call(c, method, gr_take(take), on_part, part_arg, timeout_ms, ret, err);
    gr_rpc_client_free(c);
    return r;
}

static int call(struct gr_cmd_ctx *c, const char *method, json_t *params, json_t **ret, struct gr_err *err)
{
    return hv_host_call(gr_cmd_loop(c), method, params, NULL, NULL, -1, ret, err);
}

static json_t *named(struct gr_cmd_ctx *c)
{
    return json_pack("{s:s}", "vm", gr_cmd_arg(c, 0));
}

/* --timeout SECONDS into params' "timeout-ms". */
static int add_timeout(struct gr_cmd_ctx *c, json_t *params, struct gr_err *err)
{
    uint64_t s = 0;
    const char *text = gr_cmd_opt(c, "timeout");
    if (!text)
        return 0;
    int r = gr_parse_u64(text, 1, 86400, &s, err);
    if (r < 0)
        return gr_prefix(err, -GR_EUSAGE, "--timeout");
    return json_object_set_new(params, "timeout-ms", json_integer((json_int_t)s * 1000)) ? -ENOMEM : 0;
}

/* --disk DS/PATH or SIZE: a size has no '/'. */
static int add_disks(struct gr_cmd_ctx *c, json_t *params, struct gr_err *err)
{
    json_t *list = json_array();
    if (json_object_set_new(params, "disks", list))
        return -ENOMEM;
    for (int i = 0;; i++) {
        const char *text = gr_cmd_opt_n(c, "disk", i);
        uint64_t size = 0;
        if (!text)
            return 0;
        if (!strchr(text, '/') && gr_parse_size(text, &size, err) < 0)
            return gr_prefix(err, -GR_EUSAGE, "--disk %s is neither DATASTORE/PATH nor a size", text);
        json_t *spec = strchr(text, '/') ? json_pack("{s:s}", "disk", text) : json_pack("{s:I}", "size", (json_int_t)size);
        if (spec && !strchr(text, '/') && gr_cmd_opt(c, "provision"))
            json_object_set_new(spec, "provision", json_string(gr_cmd_opt(c, "provision")));
        if (json_array_append_new(list, spec))
            return -ENOMEM;
    }
}

static int vm_create(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_auto_t *params = named(c), *res = NULL;
    const char *memory = gr_cmd_opt(c, "memory"), *vcpus = gr_cmd_opt(c, "vcpus"), *bus = gr_cmd_opt(c, "bus");
    uint64_t n = 0;
    int r = params ? add_disks(c, params, err) : -ENOMEM;
    if (r < 0)
        return r;
    if (memory) {
        if (gr_parse_size(memory, &n, err) < 0)
            return gr_prefix(err, -GR_EUSAGE, "--memory");
        json_object_set_new(params, "memory", json_integer((json_int_t)n));
    }
    if (vcpus) {
        if (gr_parse_u64(vcpus, 1, HV_VCPUS_MAX, &n, err) < 0)
            return gr_prefix(err, -GR_EUSAGE, "--vcpus");
        json_object_set_new(params, "vcpus", json_integer((json_int_t)n));
    }
    if (bus)
        json_object_set_new(params, "bus", json_string(bus));
    if (gr_cmd_flag(c, "no-network"))
        json_object_set_new(params, "nic", json_false());
    r = call(c, "vm.create", gr_take(params), &res, err);
    return r < 0 ? r : gr_cmd_done(c, res, "created virtual machine %s", gr_cmd_arg(c, 0));
}

static int vm_start(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_auto_t *params = named(c), *res = NULL;
    int r = params ? add_timeout(c, params, err) : -ENOMEM;
    if (r < 0)
        return r;
    if (gr_cmd_opt(c, "wait"))
        json_object_set_new(params, "wait", json_string(gr_cmd_opt(c, "wait")));
    r = call(c, "vm.start", gr_take(params), &res, err);
    if (r < 0)
        return r;
    const char *accel = json_string_value(json_object_get(res, "accel"));
    return gr_cmd_done(c, res, "started %s (%s)", gr_cmd_arg(c, 0), accel ? accel : "?");
}

static int vm_stop(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_auto_t *params = named(c);
    int r = params ? add_timeout(c, params, err) : -ENOMEM;
    if (r < 0)
        return r;
    json_object_set_new(params, "force", json_boolean(gr_cmd_flag(c, "force")));
    r = call(c, "vm.stop", gr_take(params), NULL, err);
    return r < 0 ? r : gr_cmd_done(c, NULL, "stopped %s", gr_cmd_arg(c, 0));
}

static int simple(struct gr_cmd_ctx *c, const char *method, const char *did, struct gr_err *err)
{
    int r = call(c, method, named(c), NULL, err);
    return r < 0 ? r : gr_cmd_done(c, NULL, "%s %s", did, gr_cmd_arg(c, 0));
}

static int vm_reset(struct gr_cmd_ctx *c, struct gr_err *err)
{
    return simple(c, "vm.reset", "reset", err);
}

static int vm_suspend(struct gr_cmd_ctx *c, struct gr_err *err)
{
    return simple(c, "vm.suspend", "suspended", err);
}

static int vm_resume(struct gr_cmd_ctx *c, struct gr_err *err)
{
    return simple(c, "vm.resume", "resumed", err);
}

static int vm_register(struct gr_cmd_ctx *c, struct gr_err *err)
{
    return simple(c, "vm.register", "registered", err);
}

static int vm_unregister(struct gr_cmd_ctx *c, struct gr_err *err)
{
    return simple(c, "vm.unregister", "unregistered", err);
}

static int vm_list(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_auto_t *res = NULL;
    int r = call(c, "vm.list", NULL, &res, err);
    return r < 0 ? r : gr_cmd_rows(c, vm_columns, res);
}

static int vm_info(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_auto_t *res = NULL;
    int r = call(c, "vm.info", named(c), &res, err);
    return r < 0 ? r : gr_cmd_object(c, info_columns, res);
}

/* "@before A B"; "" when there are none. */
static char *paths(json_t *list, const char *before)
{
    char *text = gr_strdup(json_array_size(list) ? before : "");
    json_t *p;
    size_t i;
    json_array_foreach(list, i, p) {
        char *longer = text ? gr_asprintf("%s %s", text, json_string_value(p)) : NULL;
        free(text);
        text = longer;
    }
    return text;
}

static int vm_delete(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_auto_t *params = named(c), *res = NULL;
    bool keep = gr_cmd_flag(c, "keep-disks");
    if (!keep && !gr_cmd_flag(c, "yes"))
        return gr_fail(err, -GR_EUSAGE, "this deletes '%s' with the disks in its directory: add --yes, or --keep-disks", gr_cmd_arg(c, 0));
    if (!params || json_object_set_new(params, "keep-disks", json_boolean(keep)))
        return -ENOMEM;
    int r = call(c, "vm.delete", gr_take(params), &res, err);
    if (r < 0)
        return r;
    gr_auto_free char *unread = paths(json_object_get(res, "unread"), "; these records of its snapshots could not be read, disks that only they named are not known:");
    gr_auto_free char *left = paths(json_object_get(res, "left"), "; left in its folder:");
    return unread && left ? gr_cmd_done(c, res, "deleted %s%s%s", gr_cmd_arg(c, 0), unread, left) : gr_fail(err, -ENOMEM, "out of memory");
}

/* Append the bytes of a part's "data-b64". */
static int take_part(json_t *part, struct gr_buf *ret)
{
    json_t *text = json_object_get(part, "data-b64");
    return json_is_string(text) ? gr_b64_decode(json_string_value(text), json_string_length(text), ret) : -GR_EPROTO;
}

static int console_part(void *arg, json_t *part)
{
    gr_auto_buf struct gr_buf b = {0};
    int r = take_part(part, &b);
    if (r >= 0 && b.len && (fwrite(b.data, 1, b.len, stdout) != b.len || fflush(stdout)))
        r = -EPIPE;
    return r;
}

static int console_collect(void *arg, json_t *part)
{
    return take_part(part, arg);
}

static int vm_console(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_auto_t *params = named(c);
    gr_auto_buf struct gr_buf all = {0};
    bool json = gr_cmd_json(c);
    if (!params || json_object_set_new(params, "follow", json_boolean(gr_cmd_flag(c, "follow") && !json)))
        return -ENOMEM;
    int r = hv_host_call(gr_cmd_loop(c), "vm.console", gr_take(params), json ? console_collect : console_part, &all, -1, NULL, err);
    if (r < 0 || !json)
        return r == -EPIPE ? 0 : r;
    gr_auto_free char *text = gr_b64_encode(all.data, all.len);
    json_auto_t *o = text ? json_pack("{s:s, s:s}", "vm", gr_cmd_arg(c, 0), "data-b64", text) : NULL;
    return o ? gr_cmd_done(c, o, " ") : -ENOMEM;
}

static int print_output(json_t *res, const char *key, FILE *to)
{
    gr_auto_buf struct gr_buf b = {0};
    const char *text = json_string_value(json_object_get(res, key));
    int r = text ? gr_b64_decode(text, strlen(text), &b) : 0;
    if (r >= 0 && b.len)
        fwrite(b.data, 1, b.len, to);
    fflush(to);
    return r;
}

static int vm_exec(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_auto_t *params = named(c), *res = NULL;
    json_t *argv = json_array();
    if (!params || json_object_set_new(params, "argv", argv))
        return -ENOMEM;
    for (int i = 1; i < gr_cmd_nargs(c); i++)
        if (json_array_append_new(argv, json_string(gr_cmd_arg(c, i))))
            return gr_fail(err, -GR_EUSAGE, "argument %d is not UTF-8", i);
    int r = add_timeout(c, params, err);
    if (r < 0 || (r = call(c, "vm.exec", gr_take(params), &res, err)) < 0)
        return r;
    int code = (int)json_integer_value(json_object_get(res, "exit-code"));
    if (gr_cmd_json(c)) {
        if ((r = gr_cmd_done(c, res, " ")) < 0)
            return r;
    } else if ((r = print_output(res, "out-b64", stdout)) < 0 || (r = print_output(res, "err-b64", stderr)) < 0) {
        return r;
    }
    return code ? gr_fail(err, -EIO, "'%s' ended with status %d in the guest", gr_cmd_arg(c, 1), code) : 0;
}

static const struct gr_opt create_opts[] = {
    {"disk", "DS/PATH|SIZE", "an existing disk, or the size of a new one; the first boots", true},
    {"provision", "KIND", "of new disks: thin, thick or eager", false},
    {"memory", "SIZE", "memory (default 256M)", false},
    {"vcpus", "N", "virtual CPUs (default 1)", false},
    {"bus", "BUS", "virtio-blk (default) or virtio-scsi", false},
    {"no-network", NULL, "no network card", false},
    {NULL, NULL, NULL, false},
};
static const struct gr_opt start_opts[] = {
    {"wait", "agent", "return when the guest agent answers", false},
    {"timeout", "SECONDS", "how long to wait (default 300)", false},
    {NULL, NULL, NULL, false},
};
static const struct gr_opt stop_opts[] = {
    {"force", NULL, "end it at once, without asking the guest", false},
    {"timeout", "SECONDS", "how long to wait for the guest (default 60)", false},
    {NULL, NULL, NULL, false},
};
static const struct gr_opt delete_opts[] = {
    {"yes", NULL, "delete the disks in its directory too", false},
    {"keep-disks", NULL, "delete the configuration only", false},
    {NULL, NULL, NULL, false},
};
static const struct gr_opt console_opts[] = {
    {"follow", NULL, "go on with what comes, until interrupted", false},
    {NULL, NULL, NULL, false},
};
static const struct gr_opt exec_opts[] = {
    {"timeout", "SECONDS", "how long to wait for its end (default 60)", false},
    {NULL, NULL, NULL, false},
};

const struct gr_cmd hv_vm_commands[] = {
    {"vm", "create", "DS/NAME", 1, 1, "Make a virtual machine", create_opts, vm_create},
    {"vm", "start", "NAME", 1, 1, "Start a virtual machine", start_opts, vm_start},
    {"vm", "stop", "NAME", 1, 1, "Shut the guest down, or end it with --force", stop_opts, vm_stop},
    {"vm", "reset", "NAME", 1, 1, "Reset, as by the button", NULL, vm_reset},
    {"vm", "suspend", "NAME", 1, 1, "Stop the virtual CPUs", NULL, vm_suspend},
    {"vm", "resume", "NAME", 1, 1, "Let the virtual CPUs run again, also after a full datastore", NULL, vm_resume},
    {"vm", "list", "", 0, 0, "The virtual machines of this host", NULL, vm_list},
    {"vm", "info", "NAME", 1, 1, "All about one virtual machine", NULL, vm_info},
    {"vm", "console", "NAME", 1, 1, "What the guest wrote to its serial console", console_opts, vm_console},
    {"vm", "exec", "NAME -- PROGRAM [ARGUMENT...]", 2, -1, "Run a program in the guest through its agent", exec_opts, vm_exec},
    {"vm", "register", "DS/NAME", 1, 1, "Make a virtual machine of a datastore known to this host", NULL, vm_register},
    {"vm", "unregister", "NAME", 1, 1, "Forget a virtual machine; nothing of it is deleted", NULL, vm_unregister},
    {"vm", "delete", "NAME", 1, 1, "Delete a virtual machine", delete_opts, vm_delete},
    {NULL, NULL, NULL, 0, 0, NULL, NULL, NULL},
};
