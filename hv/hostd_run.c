/* The host agent's methods on VMs that run: start, and what is passed on to the supervisor. */
#include "common/b64.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "hv/console.h"
#include "hv/hostd_int.h"
#include <stdio.h>
#include <string.h>

/* (under the lock) May it be started, and from memory? */
static int may_start(struct hv_hostd *h, const char *path, const char *uuid, bool *ret_resumes, struct gr_err *err)
{
    int r = h->ending ? gr_fail(err, -ESHUTDOWN, "the host agent is ending") : hv_hostd_unclaimed(h, path, uuid, err);
    if (r < 0)
        return r;
    r = hv_hostd_is_on(h, uuid, err);
    if (r > 0)
        return gr_fail(err, -EBUSY, "'%s' is on already", path);
    if (r < 0)
        return gr_prefix(err, r, "'%s'", path);
    if (hv_hostd_has_record(h, uuid) && (r = hv_hostd_supervise(h, path, uuid, HV_START_ADOPT, err)) != -ESRCH)
        return r < 0 ? gr_prefix(err, r, "'%s' runs without a supervisor", path)
                     : gr_fail(err, -EBUSY, "'%s' is on already; its supervisor had died and was replaced", path);
    return hv_hostd_finish_revert(h, path, ret_resumes, err);
}

static int start(struct hv_hostd *h, const char *path, const char *uuid, struct gr_err *err)
{
    struct hv_claim claim;
    bool resumes = false;
    gr_fmutex_lock(&h->lock);
    hv_hostd_wait_started(h, uuid);
    int r = may_start(h, path, uuid, &resumes, err);
    if (r >= 0)
        hv_hostd_claim_start(h, &claim, uuid);
    gr_fmutex_unlock(&h->lock);
    if (r < 0)
        return r;
    r = hv_hostd_supervise(h, path, uuid, resumes ? HV_START_RESUME : HV_START_NEW, err);
    hv_hostd_unclaim(h, &claim);
    return r;
}

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
    r = start(h, path, uuid, err);
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

const struct gr_rpc_method hv_hostd_run_methods[] = {
    {"vm.start", m_start},   {"vm.stop", m_stop},       {"vm.reset", m_reset},   {"vm.suspend", m_suspend}, {"vm.resume", m_resume}, {"vm.wait", m_wait},
    {"vm.exec", m_exec},     {"vm.console", m_console}, {"vm.freeze", m_freeze}, {"vm.thaw", m_thaw},       {NULL, NULL},
};
