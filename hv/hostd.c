#include "hv/hostd.h"
#include "common/cleanup.h"
#include "common/daemon.h"
#include "common/log.h"
#include "common/seam.h"
#include "hv/hostd_int.h"
#include "hv/probe.h"
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define START_MS 60000
#define RESUME_MS 3600000
#define INFO_MS 15000
#define RESTARTS_MAX 5
#define ENDING_MS 10000
#define LOCK_MS 2000

struct pass {
    struct gr_rpc_call *call;
};
static int pass_part(void *arg, json_t *part)
{
    struct pass *p = arg;
    return p->call ? gr_rpc_part(p->call, json_incref(part)) : 0;
}

int hv_hostd_vmx(struct hv_hostd *h, const char *uuid, const char *method, json_t *params, struct gr_rpc_call *call, int64_t timeout_ms, json_t **ret,
                 struct gr_err *err)
{
    json_auto_t *take = params;
    gr_auto_free char *path = hv_run_path(h->home, uuid, "vmx.sock");
    struct gr_rpc_client *c = NULL;
    struct pass p = {call};
    if (!path)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = gr_rpc_connect(h->loop, path, &c, NULL);
    if (r < 0)
        return gr_fail(err, r == -ECONNREFUSED ? -ENOENT : r, "the virtual machine is off");
    r = gr_rpc_call(c, method, gr_take(take), pass_part, &p, timeout_ms, ret, err);
    gr_rpc_client_free(c);
    return r;
}

static bool answers(struct hv_hostd *h, const char *uuid)
{
    return hv_hostd_vmx(h, uuid, "vmx.info", NULL, NULL, INFO_MS, NULL, NULL) >= 0;
}

/* (under the lock) An engine that runs without a supervisor gets one. -ESRCH: it does not run any more. */
static int revive(struct hv_hostd *h, const char *path, const char *uuid, struct gr_err *err)
{
    if (!hv_hostd_has_record(h, uuid) || answers(h, uuid))
        return 0;
    return hv_hostd_supervise(h, path, uuid, HV_START_ADOPT, err);
}

int hv_hostd_vmx_wait(struct hv_hostd *h, const char *path, const char *uuid, const char *method, json_t *params, struct gr_rpc_call *call,
                      int64_t timeout_ms, json_t **ret, struct gr_err *err)
{
    json_auto_t *take = params;
    int r = hv_hostd_vmx(h, uuid, method, json_incref(take), call, timeout_ms, ret, err);
    if (r == -ENOENT && hv_hostd_has_record(h, uuid)) {
        gr_fmutex_lock(&h->lock);
        hv_hostd_wait_started(h, uuid);
        struct gr_err why = {0};
        int a = h->ending ? 0 : revive(h, path, uuid, &why);
        gr_fmutex_unlock(&h->lock);
        if (a < 0 && a != -ESRCH)
            return gr_fail(err, -EBUSY, "its engine runs without a supervisor: %s", gr_err_text(&why, a));
        r = hv_hostd_vmx(h, uuid, method, json_incref(take), call, timeout_ms, ret, err);
    }
    return r;
}

int hv_hostd_is_on(struct hv_hostd *h, const char *uuid, struct gr_err *err)
{
    int r = 0;
    for (int i = 0; i < ENDING_MS / 50; i++) {
        r = hv_hostd_vmx(h, uuid, "vmx.info", NULL, NULL, INFO_MS, NULL, err);
        if (r >= 0 || r == -ENOENT)
            return r >= 0;
        if (r == -ETIMEDOUT)
            return r;
        gr_fiber_sleep_ms(50); /* it answers that its engine is gone, or goes while it answers */
    }
    return gr_fail(err, -EBUSY, "the supervisor of the virtual machine does not come to its end");
}

bool hv_hostd_has_record(struct hv_hostd *h, const char *uuid)
{
    gr_auto_free char *path = hv_run_path(h->home, uuid, "record.json");
    return path && access(path, F_OK) == 0;
}

int hv_hostd_resolve(struct hv_hostd *h, json_t *params, char **ret_path, char ret_uuid[37], struct gr_err *err)
{
    const char *name = NULL;
    struct hv_reg_entry *e = NULL;
    gr_auto(hv_vm_done) struct hv_vm vm = {0};
    int r = gr_json_str(params, "vm", &name, err);
    if (r < 0)
        return r;
    r = hv_registry_find(&h->registry, name, &e, err);
    if (r == -ENOENT && strchr(name, '/')) {
        if ((r = hv_storage_read_vm(&h->storage, name, &vm, err)) < 0)
            return r;
        gr_fmutex_lock(&h->lock);
        r = hv_registry_add(&h->registry, name, vm.uuid, err);
        gr_fmutex_unlock(&h->lock);
        if (r >= 0)
            r = hv_registry_find(&h->registry, name, &e, err);
    }
    if (r < 0)
        return r;
    char *path = gr_strdup(e->path);
    if (!path)
        return gr_fail(err, -ENOMEM, "out of memory");
    memcpy(ret_uuid, e->uuid, sizeof e->uuid);
    *ret_path = path;
    return 0;
}

/* ---- claims ---- */
int hv_hostd_unclaimed(const struct hv_hostd *h, const char *path, const char *uuid, struct gr_err *err)
{
    for (const struct hv_claim *c = h->claims; c; c = c->next)
        if (!strcmp(c->uuid, uuid))
            return gr_fail(err, -EBUSY, "'%s': %s", path, c->what);
    return 0;
}

static void claim_add(struct hv_hostd *h, struct hv_claim *c, const char *uuid, const char *what, bool starting)
{
    *c = (struct hv_claim){.next = h->claims, .what = what, .starting = starting};
    memcpy(c->uuid, uuid, sizeof c->uuid);
    h->claims = c;
}

int hv_hostd_claim(struct hv_hostd *h, struct hv_claim *c, const char *path, const char *uuid, const char *what, struct gr_err *err)
{
    gr_fmutex_lock(&h->lock);
    hv_hostd_wait_started(h, uuid);
    int r = hv_hostd_unclaimed(h, path, uuid, err);
    if (r >= 0)
        claim_add(h, c, uuid, what, false);
    gr_fmutex_unlock(&h->lock);
    return r;
}

void hv_hostd_claim_start(struct hv_hostd *h, struct hv_claim *c, const char *uuid)
{
    claim_add(h, c, uuid, "it is being started", true);
}

static bool is_starting(const struct hv_hostd *h, const char *uuid)
{
    for (const struct hv_claim *c = h->claims; c; c = c->next)
        if (c->starting && (!uuid || !strcmp(c->uuid, uuid)))
            return true;
    return false;
}

void hv_hostd_wait_started(struct hv_hostd *h, const char *uuid)
{
    while (is_starting(h, uuid)) {
        gr_fmutex_unlock(&h->lock);
        gr_fqueue_wait(&h->unclaimed);
        gr_fmutex_lock(&h->lock);
    }
}

void hv_hostd_unclaim(struct hv_hostd *h, struct hv_claim *c)
{
    for (struct hv_claim **p = &h->claims; *p; p = &(*p)->next)
        if (*p == c) {
            *p = c->next;
            break;
        }
    gr_fqueue_wake_all(&h->unclaimed);
}

/* ---- supervisors ---- */
struct guard {
    struct hv_hostd *h;
    char *path;
    char uuid[37];
    int pidfd;
};

static int open_pidfd(struct hv_hostd *h, const char *uuid)
{
    json_auto_t *info = NULL;
    if (hv_hostd_vmx(h, uuid, "vmx.info", NULL, NULL, INFO_MS, &info, NULL) < 0)
        return -ENOENT;
    int fd = (int)syscall(SYS_pidfd_open, (pid_t)json_integer_value(json_object_get(info, "supervisor-pid")), 0);
    if (fd >= 0)
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
}

static int launch_vmx(struct hv_hostd *h, const char *path, const char *uuid, enum hv_start how, struct gr_err *err)
{
    gr_auto_free char *dir = hv_log_path(h->home, uuid, ""), *log = hv_log_path(h->home, uuid, "supervisor.log");
    if (!dir || !log)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = gr_mkdirs(dir, 0700, err);
    gr_auto_free char *exe = gr_program_path("granary-vmx");
    const char *args[] = {exe, path, how == HV_START_ADOPT ? "--adopt" : NULL, NULL};
    if (r >= 0 && !exe)
        r = gr_fail(err, -ENOENT, "the program granary-vmx is not beside granary-hostd");
    return r < 0 ? r : gr_daemon_start(args, log, how == HV_START_RESUME ? RESUME_MS : START_MS, err);
}

/* Stands by one supervisor: when it dies while its engine's record is still there, another takes the engine over. */
static void guard_fiber(void *arg)
{
    struct guard *g = arg;
    for (int restarts = 0; restarts < RESTARTS_MAX && g->pidfd >= 0; restarts++) {
        struct gr_err err = {0};
        while (gr_fiber_wait_fd(g->pidfd, POLLIN, -1) < 0)
            ;
        close(gr_take_fd(&g->pidfd));
        gr_fmutex_lock(&g->h->lock);
        hv_hostd_wait_started(g->h, g->uuid);
        bool needed = hv_hostd_has_record(g->h, g->uuid) && !g->h->ending && !answers(g->h, g->uuid); /* another has its own guard */
        if (needed)
            gr_log(GR_LOG_WARN, "vm=%s: its supervisor died; starting another", g->path);
        int r = needed ? launch_vmx(g->h, g->path, g->uuid, HV_START_ADOPT, &err) : 0;
        if (r < 0)
            gr_log(GR_LOG_ERR, "vm=%s: %s", g->path, gr_err_text(&err, r));
        else if (needed)
            g->pidfd = open_pidfd(g->h, g->uuid);
        gr_fmutex_unlock(&g->h->lock);
    }
    if (g->pidfd >= 0)
        close(g->pidfd);
    free(g->path);
    free(g);
}

static int start_guard(struct hv_hostd *h, const char *path, const char *uuid)
{
    struct guard *g = gr_zalloc(sizeof *g);
    if (!g || !(g->path = gr_strdup(path))) {
        free(g);
        return -ENOMEM;
    }
    g->h = h;
    memcpy(g->uuid, uuid, sizeof g->uuid);
    g->pidfd = open_pidfd(h, uuid);
    int r = g->pidfd < 0 ? 0 : gr_fiber_start(h->loop, guard_fiber, g);
    if (r < 0 || g->pidfd < 0) {
        if (g->pidfd >= 0)
            close(g->pidfd);
        free(g->path);
        free(g);
    }
    return r;
}

int hv_hostd_supervise(struct hv_hostd *h, const char *path, const char *uuid, enum hv_start how, struct gr_err *err)
{
    int r = launch_vmx(h, path, uuid, how, err);
    if (r < 0)
        return r;
    if (start_guard(h, path, uuid) < 0)
        gr_log(GR_LOG_WARN, "vm=%s: out of memory; its supervisor is not watched", path);
    return 0;
}

/* At our start: living supervisors are watched again, engines without one get one, and traces of dead ones go. */
static void readopt(struct hv_hostd *h, const struct hv_reg_entry *e)
{
    struct gr_err err = {0};
    gr_auto_free char *record = hv_run_path(h->home, e->uuid, "record.json");
    int fd = open_pidfd(h, e->uuid);
    if (fd >= 0) {
        close(fd);
        start_guard(h, e->path, e->uuid);
    } else if (record && hv_hostd_has_record(h, e->uuid)) {
        int r = hv_hostd_supervise(h, e->path, e->uuid, HV_START_ADOPT, &err);
        if (r == -ESRCH)
            unlink(record);
        gr_log(r < 0 ? GR_LOG_WARN : GR_LOG_NOTE, "vm=%s: %s", e->path, r < 0 ? gr_err_text(&err, r) : "its engine was running without supervisor; taken over");
    }
}

static void readopt_all(void *arg)
{
    struct hv_hostd *h = arg;
    gr_fmutex_lock(&h->lock);
    for (size_t i = 0; i < h->registry.count; i++)
        readopt(h, &h->registry.v[i]);
    gr_fmutex_unlock(&h->lock);
}

/* ---- life ---- */
static int m_probe(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_hostd *h = arg;
    struct hv_probe p = {0};
    int r = hv_probe_get(h->home, &p, err);
    if (r < 0)
        return r;
    *ret = json_pack("{s:s, s:s, s:s, s:I}", "verdict", hv_accel_name(p.verdict), "engine", hv_accel_name(p.verdict), "reason", p.reason, "mips", (json_int_t)p.mips);
    return *ret ? 0 : -ENOMEM;
}

static int m_shutdown(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_hostd *h = arg;
    bool stop = false;
    uint64_t ms = 30000;
    int r, stopped = 0;
    if ((r = gr_json_opt_bool(params, "stop-vms", &stop, err)) < 0 || (r = gr_json_opt_u64(params, "timeout-ms", &ms, err)) < 0)
        return r;
    gr_fmutex_lock(&h->lock);
    hv_hostd_wait_started(h, NULL);
    for (size_t i = 0; stop && i < h->registry.count; i++) {
        const char *uuid = h->registry.v[i].uuid;
        if ((r = revive(h, h->registry.v[i].path, uuid, err)) < 0 && r != -ESRCH) {
            gr_fmutex_unlock(&h->lock);
            return gr_prefix(err, r, "'%s' runs on", h->registry.v[i].path);
        }
        r = hv_hostd_vmx(h, uuid, "vmx.stop", json_pack("{s:I}", "timeout-ms", (json_int_t)ms), NULL, (int64_t)ms + 10000, NULL, NULL);
        if (r == -ENOENT)
            continue;
        if (r < 0)
            hv_hostd_vmx(h, uuid, "vmx.stop", json_pack("{s:b}", "force", 1), NULL, 30000, NULL, NULL);
        stopped++;
    }
    gr_fmutex_unlock(&h->lock);
    h->ending = true;
    gr_fqueue_wake_all(&h->end);
    *ret = json_pack("{s:i}", "stopped", stopped);
    return *ret ? 0 : -ENOMEM;
}

static int m_status(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_hostd *h = arg;
    int on = 0;
    for (size_t i = 0; i < h->registry.count; i++)
        on += hv_hostd_has_record(h, h->registry.v[i].uuid);
    *ret = json_pack("{s:i, s:s, s:i, s:i}", "pid", (int)getpid(), "home", gr_home_dir(h->home), "vms", (int)h->registry.count, "vms-on", on);
    return *ret ? 0 : -ENOMEM;
}

static const struct gr_rpc_method own_methods[] = {{"daemon.status", m_status}, {"hv.probe", m_probe}, {"host.shutdown", m_shutdown}, {NULL, NULL}};

static int lock_home(struct hv_hostd *h, int *ret_fd, struct gr_err *err)
{
    gr_auto_free char *path = gr_home_path(h->home, "run/hostd.lock");
    int r = path ? gr_daemon_lock(path, LOCK_MS, ret_fd, err) : gr_fail(err, -ENOMEM, "out of memory");
    return r == -GR_ELOCKED ? gr_fail(err, r, "a host agent of %s runs already", gr_home_dir(h->home)) : r;
}

static int serve(struct hv_hostd *h, struct gr_err *err)
{
    gr_auto_free char *path = gr_home_path(h->home, "run/hostd.sock");
    int r = path ? gr_rpc_server_new(h->loop, &h->server) : -ENOMEM;
    if (r >= 0)
        r = gr_rpc_server_add(h->server, own_methods, h);
    if (r >= 0)
        r = gr_rpc_server_add(h->server, hv_hostd_vm_methods, h);
    if (r >= 0)
        r = gr_rpc_server_add(h->server, hv_hostd_run_methods, h);
    if (r >= 0)
        r = gr_rpc_server_add(h->server, hv_hostd_snapshot_methods, h);
    return r < 0 ? gr_fail(err, r, "out of memory") : gr_rpc_server_listen(h->server, path, err);
}

int hv_hostd_run(struct gr_loop *loop, struct gr_home *home, const bool *stop, void (*ready)(void *arg), void *arg, struct gr_err *err)
{
    struct hv_hostd h = {.loop = loop, .home = home, .storage = {loop, home}};
    gr_auto_close int lock = -1;
    int r = lock_home(&h, &lock, err);
    if (r >= 0 && (r = hv_registry_load(home, &h.registry, err)) >= 0 && (r = serve(&h, err)) >= 0)
        r = gr_fiber_start(loop, readopt_all, &h) < 0 ? gr_fail(err, -ENOMEM, "out of memory") : 0;
    if (r >= 0 && ready)
        ready(arg);
    while (r >= 0 && !h.ending && !*stop)
        gr_fqueue_wait_ms(&h.end, 500);
    /* fibers that wait for supervisors end with the process; the socket is ours as long as we hold the lock */
    gr_auto_free char *path = lock >= 0 ? gr_home_path(home, "run/hostd.sock") : NULL;
    if (path)
        unlink(path);
    hv_registry_done(&h.registry);
    return r;
}
