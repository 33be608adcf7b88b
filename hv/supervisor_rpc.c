/* Methods of the supervisor's socket. */
#include "common/b64.h"
#include "common/cleanup.h"
#include "hv/supervisor_int.h"
#include <string.h>
#include <unistd.h>

#define STOP_MS 60000
#define EXEC_MS 60000

/* There is an engine to talk to: not between two starts, not after its end. */
static int need_live(struct hv_sup *s, struct gr_err *err)
{
    return s->engine && s->console && !s->ended ? 0 : gr_fail(err, -ESRCH, "'%s' is not on", s->vm.path);
}

static int engine_state(struct hv_sup *s, enum hv_state *ret, struct gr_err *err)
{
    int r = need_live(s, err);
    return r < 0 ? r : s->engine->ops->state(s->engine, ret, err);
}

static int need_running(struct hv_sup *s, struct gr_err *err)
{
    enum hv_state state = HV_OFF;
    int r = engine_state(s, &state, err);
    if (r >= 0 && state != HV_RUNNING)
        r = gr_fail(err, -EBUSY, "'%s' is not running (%s)", s->vm.path, hv_state_name(state));
    return r;
}

static int m_info(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_sup *s = arg;
    enum hv_state state = HV_OFF;
    int r = engine_state(s, &state, err);
    if (r < 0)
        return r;
    if ((r = need_live(s, err)) < 0)
        return r;
    json_auto_t *record = s->engine->ops->record(s->engine);
    static const char *const frozen[] = {"no", "freezing", "yes", "unknown"};
    *ret = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:s, s:s, s:I, s:i, s:I, s:I, s:i, s:I}", "path", s->vm.path, "uuid", s->vm.uuid, "state", hv_state_name(state),
                     "engine", "qemu", "accel", hv_accel_name(s->accel), "accel-reason", s->accel_reason, "incarnation", (json_int_t)s->vm.incarnation, "agent",
                     hv_qga_is_open(s->qga) ? "up" : "down", "frozen", frozen[hv_freezer_state(s->freezer)], "memory", (json_int_t)s->vm.memory, "vcpus",
                     (int)s->vm.vcpus, "since", (json_int_t)s->since, "pid", json_integer_value(json_object_get(record, "pid")), "supervisor-pid", (int)getpid(), "console-lost",
                     (json_int_t)hv_console_lost(s->console));
    return *ret ? 0 : -ENOMEM;
}

/* Wait until the engine has ended, at most until @due. */
static int wait_off(struct hv_sup *s, uint64_t due)
{
    while (!s->ended) {
        uint64_t now = gr_loop_now_ns(s->opts->loop);
        if (now >= due)
            return -ETIMEDOUT;
        gr_fqueue_wait_ms(&s->changed, (due - now) / 1000000 + 1);
    }
    return 0;
}

static int wait_agent(struct hv_sup *s, uint64_t due, struct gr_err *err)
{
    for (;;) {
        uint64_t now = gr_loop_now_ns(s->opts->loop);
        if (s->ended)
            return gr_fail(err, -ESRCH, "'%s' has ended (%s)", s->vm.path, s->how);
        if (now >= due)
            return gr_fail(err, -ETIMEDOUT, "the guest agent of '%s' did not answer in time", s->vm.path);
        bool open = s->qga && hv_qga_is_open(s->qga);
        if (open && hv_qga_ping(s->qga, 2000, NULL) >= 0)
            return 0;
        gr_fqueue_wait_ms(&s->changed, GR_MIN((due - now) / 1000000 + 1, open ? 200u : 2000u));
    }
}

static int m_wait(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_sup *s = arg;
    const char *what = NULL;
    uint64_t ms = STOP_MS;
    int r;
    if ((r = gr_json_str(params, "for", &what, err)) < 0 || (r = gr_json_opt_u64(params, "timeout-ms", &ms, err)) < 0)
        return r;
    uint64_t due = gr_loop_now_ns(s->opts->loop) + GR_MIN(ms, 86400000u) * 1000000;
    s->calls++;
    if (!strcmp(what, "agent"))
        r = wait_agent(s, due, err);
    else if (!strcmp(what, "off"))
        r = wait_off(s, due) < 0 ? gr_fail(err, -ETIMEDOUT, "'%s' was still on after %.1f s", s->vm.path, (double)ms / 1e3) : 0;
    else
        r = gr_fail(err, -GR_EUSAGE, "cannot wait for '%s', only for agent or off", what);
    s->calls--;
    return r;
}

/* Ask the guest in both ways; which of them it heeds is its own affair. */
static int ask_to_stop(struct hv_sup *s, struct gr_err *err)
{
    int r = need_running(s, err);
    if (r < 0)
        return gr_prefix(err, r, "cannot ask the guest to shut down (--force ends it)");
    r = s->engine->ops->power_button(s->engine, err);
    if (hv_qga_is_open(s->qga))
        hv_qga_call(s->qga, "guest-shutdown", json_pack("{s:s}", "mode", "powerdown"), 3000, NULL, NULL); /* no answer means: accepted */
    return s->ended ? 0 : r;
}

static int m_stop(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_sup *s = arg;
    bool force = false;
    uint64_t ms = STOP_MS;
    int r;
    if ((r = gr_json_opt_bool(params, "force", &force, err)) < 0 || (r = gr_json_opt_u64(params, "timeout-ms", &ms, err)) < 0)
        return r;
    if ((r = need_live(s, err)) < 0)
        return r;
    s->calls++;
    s->stopping = true;
    uint64_t due = gr_loop_now_ns(s->opts->loop) + GR_MIN(ms, 86400000u) * 1000000;
    if (force) {
        s->engine->ops->kill(s->engine, 3000);
        due = gr_loop_now_ns(s->opts->loop) + STOP_MS * 1000000ull;
    } else {
        r = ask_to_stop(s, err);
    }
    if (r >= 0 && wait_off(s, due) < 0) {
        s->stopping = false;
        r = gr_fail(err, -ETIMEDOUT, "the guest of '%s' did not shut down within %.0f s; --force ends it at once", s->vm.path, (double)ms / 1e3);
    }
    s->calls--;
    gr_fqueue_wake_all(&s->changed);
    return r;
}

static int m_reset(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_sup *s = arg;
    enum hv_state state = HV_OFF;
    int r = need_live(s, err);
    if (r >= 0)
        r = hv_sup_not_saving(s, err);
    if (r >= 0)
        r = s->engine->ops->reset(s->engine, err);
    /* a guest that had crashed or was paused runs again after a reset */
    if (r >= 0 && (r = engine_state(s, &state, err)) >= 0 && state != HV_RUNNING)
        r = s->engine->ops->go(s->engine, err);
    return r;
}

static int m_suspend(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_sup *s = arg;
    int r = need_live(s, err);
    if (r >= 0)
        r = hv_sup_not_saving(s, err);
    return r < 0 ? r : s->engine->ops->suspend(s->engine, err);
}

static int m_resume(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_sup *s = arg;
    enum hv_state state = HV_OFF;
    int r = hv_sup_not_saving(s, err);
    if (r >= 0)
        r = engine_state(s, &state, err);
    if (r >= 0 && (state == HV_PANICKED || state == HV_ENGINE_FAILED))
        r = gr_fail(err, -EBUSY, "'%s' has crashed (%s); it can only be reset or stopped", s->vm.path, hv_state_name(state));
    return r < 0 ? r : s->engine->ops->go(s->engine, err);
}

static int m_exec(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_sup *s = arg;
    json_t *argv = NULL;
    const char *input64 = NULL;
    uint64_t ms = EXEC_MS;
    gr_auto_buf struct gr_buf input = {0};
    struct hv_exec_result res = {0};
    int r;
    if ((r = gr_json_array(params, "argv", &argv, err)) < 0 || (r = gr_json_opt_str(params, "input-b64", &input64, err)) < 0 ||
        (r = gr_json_opt_u64(params, "timeout-ms", &ms, err)) < 0)
        return r;
    for (size_t i = 0; i < json_array_size(argv); i++)
        if (!json_is_string(json_array_get(argv, i)))
            return gr_fail(err, -GR_EUSAGE, "argument %zu of the program is no text", i);
    if (input64 && gr_b64_decode(input64, strlen(input64), &input) < 0)
        return gr_fail(err, -GR_EUSAGE, "input-b64 is no base64");
    if ((r = need_running(s, err)) < 0)
        return r;
    s->calls++;
    r = hv_qga_exec(s->qga, argv, input64 ? &input : NULL, GR_MIN(ms, 86400000u), &res, err);
    gr_auto_free char *out = r < 0 ? NULL : gr_b64_encode(res.out.data, res.out.len), *errors = r < 0 ? NULL : gr_b64_encode(res.err.data, res.err.len);
    gr_buf_done(&res.out);
    gr_buf_done(&res.err);
    if (r >= 0 && !(*ret = json_pack("{s:i, s:s, s:s, s:b}", "exit-code", res.exit_code, "out-b64", out, "err-b64", errors, "truncated", res.truncated)))
        r = gr_fail(err, -ENOMEM, "out of memory");
    s->calls--;
    return r;
}

static int m_freeze(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_sup *s = arg;
    uint64_t ms = 0;
    int r = gr_json_u64(params, "deadline-ms", &ms, err);
    if (r >= 0 && (ms < 1 || ms > 600000))
        r = gr_fail(err, -GR_EUSAGE, "a freeze deadline of %llu ms is not between 1 ms and 10 minutes", (unsigned long long)ms);
    if (r < 0 || (r = need_running(s, err)) < 0 || (r = hv_sup_not_saving(s, err)) < 0)
        return r;
    s->calls++;
    r = hv_freeze(s->freezer, ms, err);
    s->calls--;
    if (r >= 0)
        *ret = json_pack("{s:i}", "filesystems", r);
    return r < 0 ? r : 0;
}

static int m_thaw(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_sup *s = arg;
    uint64_t ms = 0;
    int r = need_live(s, err);
    if (r < 0)
        return r;
    s->calls++;
    r = hv_thaw(s->freezer, &ms, err);
    s->calls--;
    if (r >= 0)
        *ret = json_pack("{s:I}", "frozen-ms", (json_int_t)ms);
    return r;
}

static int m_console(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_sup *s = arg;
    bool follow = false;
    int r = gr_json_opt_bool(params, "follow", &follow, err);
    if (r < 0 || (r = need_live(s, err)) < 0)
        return r;
    s->calls++;
    r = hv_console_follow(s->console, call, follow, err);
    s->calls--;
    return r;
}

const struct gr_rpc_method hv_sup_methods[] = {
    {"vmx.info", m_info},       {"vmx.wait", m_wait},     {"vmx.stop", m_stop}, {"vmx.reset", m_reset}, {"vmx.suspend", m_suspend}, {"vmx.resume", m_resume},
    {"vmx.exec", m_exec},       {"vmx.freeze", m_freeze}, {"vmx.thaw", m_thaw}, {"vmx.console", m_console}, {"vmx.save", hv_sup_m_save}, {"vmx.save-encrypted", hv_sup_m_save_encrypted},
    {NULL, NULL},
};
