/* The host agent's methods on VMs that run: start, what is passed on to the supervisor, and the snapshot ticket. */
#include "common/b64.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "hv/console.h"
#include "hv/hostd_int.h"
#include <stdio.h>
#include <string.h>

#define FREEZE_DEADLINE_MS 20000

static int m_start(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_hostd *h = arg;
    gr_auto_free char *path = NULL;
    char uuid[37];
    const char *wait = NULL;
    uint64_t ms = 300000;
    int r;
    if ((r = gr_json_opt_str(params, "wait", &wait, err)) < 0 || (r = gr_json_opt_u64(params, "timeout-ms", &ms, err)) < 0 ||
        (r = hv_hostd_resolve(h, params, &path, uuid, err)) < 0)
        return r;
    if (wait && strcmp(wait, "agent"))
        return gr_fail(err, -GR_EUSAGE, "cannot wait for '%s', only for agent", wait);
    gr_fmutex_lock(&h->lock);
    r = hv_hostd_is_on(h, uuid, err);
    if (r > 0)
        r = gr_fail(err, -EBUSY, "'%s' is on already", path);
    else if (r < 0)
        gr_prefix(err, r, "'%s'", path);
    else if (hv_hostd_has_record(h, uuid) && (r = hv_hostd_supervise(h, path, uuid, true, err)) != -ESRCH)
        r = r < 0 ? gr_prefix(err, r, "'%s' runs without a supervisor", path)
                  : gr_fail(err, -EBUSY, "'%s' is on already; its supervisor had died and was replaced", path);
    else
        r = hv_hostd_supervise(h, path, uuid, false, err);
    gr_fmutex_unlock(&h->lock);
    if (r >= 0 && wait)
        r = hv_hostd_vmx(h, uuid, "vmx.wait", json_pack("{s:s, s:I}", "for", wait, "timeout-ms", (json_int_t)ms), NULL, (int64_t)ms + 5000, NULL, err);
    return r < 0 ? r : hv_hostd_describe(h, path, uuid, ret, err);
}

/* Pass @method on with the same params. */
static int forward(struct hv_hostd *h, const char *method, json_t *params, struct gr_rpc_call *call, json_t **ret, struct gr_err *err)
{
    gr_auto_free char *path = NULL;
    char uuid[37];
    int r = hv_hostd_resolve(h, params, &path, uuid, err);
    if (r < 0)
        return r;
    r = hv_hostd_vmx_wait(h, path, uuid, method, json_incref(params), call, -1, ret, err);
    return r == -ENOENT ? gr_fail(err, -ESRCH, "'%s' is off", path) : r;
}

#define FORWARD(verb)                                                                                                             \
    static int m_##verb(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)                    \
    {                                                                                                                             \
        return forward(arg, "vmx." #verb, params, call, ret, err);                                                                \
    }
FORWARD(reset)
FORWARD(suspend)
FORWARD(resume)
FORWARD(exec)
FORWARD(freeze)
FORWARD(thaw)

/* Off means that the supervisor is gone too: a start may follow at once. */
static int m_stop(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_hostd *h = arg;
    gr_auto_free char *path = NULL;
    char uuid[37];
    int r = hv_hostd_resolve(h, params, &path, uuid, err);
    if (r < 0 || (r = forward(h, "vmx.stop", params, call, ret, err)) < 0)
        return r;
    r = hv_hostd_is_on(h, uuid, err);
    return r < 0 ? r : 0;
}

static int m_wait(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    const char *what = NULL;
    int r = gr_json_str(params, "for", &what, err);
    if (r >= 0)
        r = forward(arg, "vmx.wait", params, call, ret, err);
    return r == -ESRCH && what && !strcmp(what, "off") ? 0 : r;
}

/* Off: what is kept of the log. */
static int m_console(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_hostd *h = arg;
    gr_auto_free char *path = NULL, *log = NULL;
    gr_auto_buf struct gr_buf text = {0};
    char uuid[37];
    int r = hv_hostd_resolve(h, params, &path, uuid, err);
    if (r < 0)
        return r;
    r = hv_hostd_vmx(h, uuid, "vmx.console", json_incref(params), call, -1, ret, err);
    if (r != -ENOENT && r != -ESRCH)
        return r;
    log = hv_log_path(h->home, uuid, "console.log");
    r = log ? hv_logcap_read(log, HV_CONSOLE_MAX, &text, err) : gr_fail(err, -ENOMEM, "out of memory");
    return r < 0 ? r : hv_console_parts(call, &text);
}

/* ---- the snapshot ticket ---- */
struct ticket {
    const char *consistency;
    char cause[GR_ERR_TEXT];
    uint64_t frozen_ms;
    bool frozen;
};

static void set_cause(struct ticket *t, const char *consistency, const char *fmt, const char *detail)
{
    t->consistency = consistency;
    snprintf(t->cause, sizeof t->cause, "%s%s", fmt, detail);
}

static void ticket_freeze(struct hv_hostd *h, const char *path, const char *uuid, bool quiesce, uint64_t deadline_ms, struct ticket *t)
{
    json_auto_t *info = NULL;
    struct gr_err why = {0};
    int r = hv_hostd_vmx_wait(h, path, uuid, "vmx.info", NULL, NULL, 15000, &info, &why);
    const char *state = json_string_value(json_object_get(info, "state"));
    if (r == -ENOENT && !hv_hostd_has_record(h, uuid)) {
        set_cause(t, "filesystem", "the virtual machine is off", "");
    } else if (r < 0) {
        set_cause(t, "crash", "its supervisor does not answer: ", gr_err_text(&why, r));
    } else if (!quiesce) {
        set_cause(t, "crash", "no quiescing was asked for", "");
    } else if (!state || strcmp(state, "running")) {
        set_cause(t, "crash", "the virtual machine is not running: ", state ? state : "unknown");
    } else {
        r = hv_hostd_vmx(h, uuid, "vmx.freeze", json_pack("{s:I}", "deadline-ms", (json_int_t)deadline_ms), NULL, (int64_t)deadline_ms + 15000, NULL, &why);
        t->frozen = r >= 0;
        set_cause(t, r >= 0 ? "filesystem" : "crash", r >= 0 ? "the guest agent had frozen the file systems" : "no freeze: ", r >= 0 ? "" : gr_err_text(&why, r));
    }
}

static void ticket_thaw(struct hv_hostd *h, const char *uuid, struct ticket *t)
{
    json_auto_t *res = NULL;
    struct gr_err why = {0};
    int r = hv_hostd_vmx(h, uuid, "vmx.thaw", NULL, NULL, 20000, &res, &why);
    t->frozen_ms = (uint64_t)json_integer_value(json_object_get(res, "frozen-ms"));
    if (r == -ETIMEDOUT) /* not held until the snapshot was there */
        set_cause(t, "crash", "", gr_err_text(&why, r));
}

/* {"disk","snapshot","bookmark"} for each disk. */
static json_t *ticket_disks(const struct hv_vm *vm, const char *name, json_t *made)
{
    json_t *list = json_array();
    for (unsigned i = 0; list && i < vm->disk_count; i++) {
        gr_auto_free char *snap = gr_asprintf("%s@%s", vm->disks[i].path, name);
        json_t *row = snap ? json_pack("{s:s, s:s}", "disk", vm->disks[i].path, "snapshot", snap) : NULL, *m;
        size_t k;
        json_array_foreach(made, k, m) {
            const char *disk = json_string_value(json_object_get(m, "disk"));
            if (row && disk && !strcmp(disk, vm->disks[i].path) && json_object_get(m, "bookmark"))
                json_object_set(row, "bookmark", json_object_get(m, "bookmark"));
        }
        json_array_append_new(list, row);
    }
    return list;
}

static int m_snapshot(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_hostd *h = arg;
    gr_auto_free char *path = NULL;
    gr_auto(hv_vm_done) struct hv_vm vm = {0};
    const char *name = NULL;
    bool quiesce = true;
    uint64_t deadline_ms = FREEZE_DEADLINE_MS;
    char uuid[37];
    struct ticket t = {0};
    int r;
    if ((r = gr_json_str(params, "name", &name, err)) < 0 || (r = gr_json_opt_bool(params, "quiesce", &quiesce, err)) < 0 ||
        (r = gr_json_opt_u64(params, "deadline-ms", &deadline_ms, err)) < 0 || (r = hv_hostd_resolve(h, params, &path, uuid, err)) < 0 ||
        (r = hv_storage_read_vm(&h->storage, path, &vm, err)) < 0)
        return r;
    if (!vm.disk_count)
        return gr_fail(err, -EINVAL, "'%s' has no disks", path);
    json_auto_t *disks = json_array(), *made = NULL;
    for (unsigned i = 0; disks && i < vm.disk_count; i++)
        json_array_append_new(disks, json_string(vm.disks[i].path));
    json_auto_t *request = json_pack("{s:O, s:s}", "disks", disks, "name", name);
    if (!request)
        return gr_fail(err, -ENOMEM, "out of memory");
    ticket_freeze(h, path, uuid, quiesce, deadline_ms, &t);
    r = hv_storage_call(&h->storage, "snapshot.create", gr_take(request), 60000, &made, err);
    if (t.frozen)
        ticket_thaw(h, uuid, &t);
    if (r < 0)
        return r;
    *ret = json_pack("{s:s, s:s, s:o, s:I, s:s, s:s}", "vm", path, "name", name, "disks", ticket_disks(&vm, name, made), "frozen-ms", (json_int_t)t.frozen_ms,
                     "consistency", t.consistency, "cause", t.cause);
    return *ret ? 0 : gr_fail(err, -ENOMEM, "out of memory");
}

const struct gr_rpc_method hv_hostd_run_methods[] = {
    {"vm.start", m_start},   {"vm.stop", m_stop},       {"vm.reset", m_reset},   {"vm.suspend", m_suspend}, {"vm.resume", m_resume}, {"vm.wait", m_wait},
    {"vm.exec", m_exec},     {"vm.console", m_console}, {"vm.freeze", m_freeze}, {"vm.thaw", m_thaw},       {"vm.snapshot", m_snapshot}, {NULL, NULL},
};
