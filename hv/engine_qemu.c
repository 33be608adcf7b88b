/* QEMU as an engine: one process in a session of its own that outlives this one; its monitor, agent channel and console are
 * sockets in the engine's directory, made here and handed over, so that QEMU itself needs no right to any directory. */
#include "common/cleanup.h"
#include "common/rpc.h"
#include "common/seam.h"
#include "hv/qemu_argv.h"
#include "hv/qemu_memory.h"
#include "hv/qmp.h"
#include "hv/spawn.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define GREET_MS 20000
#define CALL_MS 10000

struct qemu {
    struct hv_engine base;
    struct gr_loop *loop;
    struct hv_qmp *qmp;
    pid_t pid;
    unsigned long long start_time;
    int pidfd, output; /* output: read end of QEMU's standard error */
    bool child, exited, killing;
    unsigned fibers; /* watcher and output reader */
    struct gr_fqueue idle;
    char last_line[256];
};

static void emit(struct qemu *q, enum hv_event e, const char *text)
{
    if (q->base.on_event)
        q->base.on_event(q->base.arg, e, text);
}

static void on_event(void *arg, const char *name, json_t *data)
{
    struct qemu *q = arg;
    const char *device = json_string_value(json_object_get(data, "device")), *node = json_string_value(json_object_get(data, "node-name"));
    char text[300];
    if (!strcmp(name, "VSERPORT_CHANGE")) {
        emit(q, HV_EVENT_AGENT, json_is_true(json_object_get(data, "open")) ? "open" : "closed");
    } else if (!strcmp(name, "BLOCK_IO_ERROR")) {
        const char *op = json_string_value(json_object_get(data, "operation"));
        bool space = json_is_true(json_object_get(data, "nospace"));
        snprintf(text, sizeof text, "disk %s: a %s failed%s", device && *device ? device : node ? node : "?", op ? op : "request",
                 space ? ": no space left on the datastore" : "");
        emit(q, HV_EVENT_NOTE, text);
    } else if (!strcmp(name, "GUEST_PANICKED")) {
        emit(q, HV_EVENT_NOTE, "the guest's kernel reported a crash");
        emit(q, HV_EVENT_STATE, hv_state_name(HV_PANICKED));
    } else if (!strcmp(name, "STOP") || !strcmp(name, "RESUME")) {
        emit(q, HV_EVENT_STATE, !strcmp(name, "STOP") ? hv_state_name(HV_SUSPENDED) : hv_state_name(HV_RUNNING));
    } else if (!strcmp(name, "RESET") || !strcmp(name, "SHUTDOWN")) {
        const char *reason = json_string_value(json_object_get(data, "reason"));
        snprintf(text, sizeof text, "%s (%s)", !strcmp(name, "RESET") ? "reset" : "shutting down", reason ? reason : "no reason given");
        emit(q, HV_EVENT_NOTE, text);
    }
}

/* QEMU's own messages: to the log, the last one kept as the reason of an end. */
static void output_reader(void *arg)
{
    struct qemu *q = arg;
    char buf[4096];
    for (;;) {
        ssize_t n = read(q->output, buf, sizeof buf - 1);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            gr_fiber_wait_fd(q->output, POLLIN, -1);
            continue;
        }
        if (n <= 0)
            break;
        buf[n] = 0;
        emit(q, HV_EVENT_OUTPUT, buf);
        while (n > 0 && (buf[n - 1] == '\n' || buf[n - 1] == '\r'))
            buf[--n] = 0;
        char *line = strrchr(buf, '\n');
        snprintf(q->last_line, sizeof q->last_line, "%s", line ? line + 1 : buf);
    }
    close(gr_take_fd(&q->output));
    q->fibers--;
    gr_fqueue_wake_all(&q->idle);
}

static void watcher(void *arg)
{
    struct qemu *q = arg;
    int status = 0;
    char text[400];
    while (gr_fiber_wait_fd(q->pidfd, POLLIN, -1) < 0)
        ;
    if (q->child)
        waitpid(q->pid, &status, 0);
    q->exited = true;
    while (q->output >= 0) /* the last words come before the end is reported */
        gr_fqueue_wait(&q->idle);
    if (!q->child)
        snprintf(text, sizeof text, "ended");
    else if (WIFSIGNALED(status))
        snprintf(text, sizeof text, "ended by signal %d%s", WTERMSIG(status), q->killing ? " on request" : "");
    else
        snprintf(text, sizeof text, "ended with status %d%s%s", WEXITSTATUS(status), WEXITSTATUS(status) && q->last_line[0] ? ": " : "",
                 WEXITSTATUS(status) ? q->last_line : "");
    q->fibers--;
    gr_fqueue_wake_all(&q->idle);
    emit(q, HV_EVENT_EXIT, text);
}

static int start_fibers(struct qemu *q, struct gr_err *err)
{
    int r = 0;
    q->pidfd = (int)syscall(SYS_pidfd_open, q->pid, 0);
    if (q->pidfd < 0)
        return gr_fail(err, -errno, "cannot watch QEMU: %s", strerror(errno));
    fcntl(q->pidfd, F_SETFD, FD_CLOEXEC);
    if (q->output >= 0 && (r = gr_fiber_start(q->loop, output_reader, q)) >= 0)
        q->fibers++;
    if (r >= 0 && (r = gr_fiber_start(q->loop, watcher, q)) >= 0)
        q->fibers++;
    return r < 0 ? gr_fail(err, r, "out of memory") : 0;
}

static int connect_monitor(struct qemu *q, const char *dir, struct gr_err *err)
{
    gr_auto_free char *path = gr_asprintf("%s/" HV_SOCK_QMP, dir);
    struct hv_qmp_opts o = {.loop = q->loop, .on_event = on_event, .arg = q};
    if (!path)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = hv_qmp_connect(&o, path, GREET_MS, &q->qmp, err);
    if (r < 0 && q->exited)
        return gr_fail(err, -EIO, "QEMU did not start: %s", q->last_line[0] ? q->last_line : "it said nothing");
    return r;
}

/* Tell whether the guest has the agent's channel open already. */
static void ask_agent(struct qemu *q)
{
    json_auto_t *list = NULL;
    size_t i;
    json_t *c;
    if (hv_qmp_call(q->qmp, "query-chardev", NULL, CALL_MS, &list, NULL) < 0)
        return;
    json_array_foreach(list, i, c) {
        const char *label = json_string_value(json_object_get(c, "label"));
        if (label && !strcmp(label, "agent"))
            emit(q, HV_EVENT_AGENT, json_is_true(json_object_get(c, "frontend-open")) ? "open" : "closed");
    }
}

/* A memory file with @l's secret, readable by @uid only. */
static int secret_fd(const struct hv_lun *l, unsigned uid)
{
    gr_auto_close int fd = memfd_create("chap", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (fchmod(fd, 0400) < 0 || (uid && fchown(fd, uid, uid) < 0) || write(fd, l->secret.data, l->secret.len) != (ssize_t)l->secret.len || lseek(fd, 0, SEEK_SET) < 0)
        return -EIO;
    return gr_take_fd(&fd);
}

struct fd_list {
    int v[3 + HV_DISKS_MAX];
    unsigned n;
};
static void fd_list_done(struct fd_list *l)
{
    for (unsigned i = 0; i < l->n; i++)
        close(l->v[i]);
}

static int open_fds(const struct hv_launch *l, struct fd_list *fds, struct gr_err *err)
{
    static const char *const names[] = {HV_SOCK_QMP, HV_SOCK_AGENT, HV_SOCK_CONSOLE};
    for (unsigned i = 0; i < GR_ARRAY_LEN(names); i++) {
        gr_auto_free char *path = gr_asprintf("%s/%s", l->dir, names[i]);
        int r = path ? gr_unix_listen(path, 0600, &fds->v[fds->n], err) : gr_fail(err, -ENOMEM, "out of memory");
        if (r < 0)
            return r;
        fds->n++;
    }
    for (unsigned i = 0; i < l->vm->disk_count; i++) {
        if (!l->luns[i].user)
            continue;
        int fd = secret_fd(&l->luns[i], l->uid);
        if (fd < 0)
            return gr_fail(err, fd, "cannot hand the CHAP secret of disk '%s' over: %s", l->vm->disks[i].path, gr_code_text(fd));
        fds->v[fds->n++] = fd;
    }
    return 0;
}

static int load_memory(struct qemu *q, int fd, struct gr_err *err)
{
    int r = hv_qemu_load(q->qmp, fd, err);
    if (r < 0 && (q->exited || r == -EPIPE))
        return gr_fail(err, -EIO, "QEMU could not load the guest's memory: %s", q->last_line[0] ? q->last_line : "it ended without a word");
    if (r >= 0)
        ask_agent(q);
    return r;
}

static int qemu_start(struct hv_engine *e, const struct hv_launch *l, struct gr_err *err)
{
    struct qemu *q = (struct qemu *)e;
    gr_auto(hv_argv_done) struct hv_argv argv = {0};
    gr_auto(fd_list_done) struct fd_list fds = {0};
    int r = hv_qemu_argv(l, &argv, err), out[2];
    if (r >= 0)
        r = open_fds(l, &fds, err);
    if (r < 0)
        return r;
    if (pipe2(out, O_CLOEXEC) < 0)
        return gr_fail(err, -errno, "cannot start QEMU: %s", strerror(errno));
    gr_auto_close int wr = out[1];
    q->output = out[0];
    fcntl(q->output, F_SETFL, O_NONBLOCK);
    struct hv_spawn s = {.argv = argv.v, .fds = fds.v, .fd_count = fds.n, .output = wr, .uid = l->uid, .group_of = l->accel == HV_ACCEL_KVM ? "/dev/kvm" : NULL};
    if ((r = hv_spawn(&s, &q->pid, err)) < 0) {
        close(gr_take_fd(&q->output));
        return r;
    }
    close(gr_take_fd(&wr));
    q->child = true;
    hv_process_start_time(q->pid, &q->start_time);
    if ((r = start_fibers(q, err)) >= 0 && (r = connect_monitor(q, l->dir, err)) >= 0)
        r = l->memory_fd < 0 ? 0 : load_memory(q, l->memory_fd, err);
    if (r >= 0)
        return 0;
    kill(q->pid, SIGKILL);
    while (!q->exited && q->fibers)
        gr_fqueue_wait(&q->idle);
    return r;
}

static int qemu_adopt(struct hv_engine *e, const char *dir, json_t *record, struct gr_err *err)
{
    struct qemu *q = (struct qemu *)e;
    unsigned long long start = 0;
    q->pid = (pid_t)json_integer_value(json_object_get(record, "pid"));
    q->start_time = (unsigned long long)json_integer_value(json_object_get(record, "start-time"));
    if (q->pid <= 1 || hv_process_start_time(q->pid, &start) < 0 || start != q->start_time)
        return gr_fail(err, -ESRCH, "the engine that was running is gone");
    int r = start_fibers(q, err);
    if (r >= 0 && q->exited)
        r = gr_fail(err, -ESRCH, "the engine that was running is gone");
    if (r >= 0)
        r = connect_monitor(q, dir, err);
    if (r >= 0)
        ask_agent(q);
    return r;
}

static json_t *qemu_record(struct hv_engine *e)
{
    struct qemu *q = (struct qemu *)e;
    return json_pack("{s:s, s:I, s:I}", "engine", e->ops->name, "pid", (json_int_t)q->pid, "start-time", (json_int_t)q->start_time);
}

static int call(struct hv_engine *e, const char *cmd, struct gr_err *err)
{
    struct qemu *q = (struct qemu *)e;
    if (!q->qmp || q->exited)
        return gr_fail(err, -ESRCH, "the engine is gone");
    return hv_qmp_call(q->qmp, cmd, NULL, CALL_MS, NULL, err);
}

static int qemu_state(struct hv_engine *e, enum hv_state *ret, struct gr_err *err)
{
    static const struct {
        const char *name;
        enum hv_state state;
    } map[] = {{"running", HV_RUNNING},       {"suspended", HV_RUNNING},        {"paused", HV_SUSPENDED},        {"prelaunch", HV_SUSPENDED},
               {"io-error", HV_IO_ERROR},     {"guest-panicked", HV_PANICKED},  {"internal-error", HV_ENGINE_FAILED}, {"shutdown", HV_RUNNING},
               {"debug", HV_SUSPENDED},       {"inmigrate", HV_SUSPENDED},      {"postmigrate", HV_SUSPENDED},   {"finish-migrate", HV_SUSPENDED},
               {"save-vm", HV_SUSPENDED},     {"restore-vm", HV_SUSPENDED},     {"watchdog", HV_SUSPENDED},      {"colo", HV_SUSPENDED}};
    struct qemu *q = (struct qemu *)e;
    json_auto_t *status = NULL;
    if (!q->qmp || q->exited) {
        *ret = HV_OFF;
        return 0;
    }
    int r = hv_qmp_call(q->qmp, "query-status", NULL, CALL_MS, &status, err);
    if (r < 0)
        return r;
    const char *name = json_string_value(json_object_get(status, "status"));
    for (size_t i = 0; name && i < GR_ARRAY_LEN(map); i++)
        if (!strcmp(map[i].name, name)) {
            *ret = map[i].state;
            return 0;
        }
    return gr_fail(err, -GR_EPROTO, "QEMU reports a state that is not known: %s", name ? name : "none");
}

/* "io-error" has two causes that a user must be able to tell apart. */
static int refine_io_error(struct qemu *q, enum hv_state *state)
{
    json_auto_t *list = NULL;
    size_t i;
    json_t *b;
    if (hv_qmp_call(q->qmp, "query-block", NULL, CALL_MS, &list, NULL) < 0)
        return 0;
    json_array_foreach(list, i, b) {
        const char *s = json_string_value(json_object_get(b, "io-status"));
        if (s && !strcmp(s, "nospace"))
            *state = HV_NO_SPACE;
    }
    return 0;
}

static int qemu_state_refined(struct hv_engine *e, enum hv_state *ret, struct gr_err *err)
{
    enum hv_state s = HV_OFF;
    int r = qemu_state(e, &s, err);
    if (r >= 0 && s == HV_IO_ERROR)
        r = refine_io_error((struct qemu *)e, &s);
    if (r >= 0)
        *ret = s;
    return r;
}

static int qemu_go(struct hv_engine *e, struct gr_err *err)
{
    return call(e, "cont", err);
}

static int qemu_suspend(struct hv_engine *e, struct gr_err *err)
{
    return call(e, "stop", err);
}

static int qemu_reset(struct hv_engine *e, struct gr_err *err)
{
    return call(e, "system_reset", err);
}

static int qemu_power_button(struct hv_engine *e, struct gr_err *err)
{
    return call(e, "system_powerdown", err);
}

static int qemu_save(struct hv_engine *e, int fd, const struct hv_save *opts, struct gr_err *err)
{
    struct qemu *q = (struct qemu *)e;
    enum hv_state state = HV_OFF;
    int r = qemu_state(e, &state, err);
    if (r >= 0 && state != HV_RUNNING && state != HV_SUSPENDED)
        r = gr_fail(err, -EBUSY, "the guest is neither running nor suspended (%s)", hv_state_name(state));
    return r < 0 ? r : hv_qemu_save(q->loop, q->qmp, fd, state == HV_RUNNING, opts, err);
}

static void qemu_save_undo(struct hv_engine *e)
{
    struct qemu *q = (struct qemu *)e;
    if (q->qmp && !q->exited)
        hv_qemu_save_undo(q->loop, q->qmp);
}

static void qemu_kill(struct hv_engine *e, uint64_t grace_ms)
{
    struct qemu *q = (struct qemu *)e;
    if (q->exited || q->pid <= 1)
        return;
    q->killing = true;
    if (grace_ms && q->qmp)
        hv_qmp_call(q->qmp, "quit", NULL, grace_ms, NULL, NULL);
    uint64_t due = gr_loop_now_ns(q->loop) + grace_ms * 1000000;
    while (!q->exited && gr_loop_now_ns(q->loop) < due)
        gr_fqueue_wait_ms(&q->idle, (due - gr_loop_now_ns(q->loop)) / 1000000 + 1);
    if (!q->exited)
        syscall(SYS_pidfd_send_signal, q->pidfd, SIGKILL, NULL, 0);
}

static void qemu_free(struct hv_engine *e)
{
    struct qemu *q = (struct qemu *)e;
    if (!q)
        return;
    q->base.on_event = NULL;
    hv_qmp_close(q->qmp);
    if (q->pidfd >= 0)
        close(q->pidfd);
    if (q->output >= 0)
        close(q->output);
    free(q);
}

int hv_engine_qemu_new(struct gr_loop *loop, struct hv_engine **ret)
{
    static const struct hv_engine_ops ops = {
        .name = "qemu", .start = qemu_start, .adopt = qemu_adopt, .record = qemu_record, .state = qemu_state_refined, .go = qemu_go,
        .suspend = qemu_suspend, .reset = qemu_reset, .power_button = qemu_power_button, .save = qemu_save,
        .save_undo = qemu_save_undo, .kill = qemu_kill, .free = qemu_free};
    struct qemu *q = gr_zalloc(sizeof *q);
    if (!q)
        return -ENOMEM;
    q->base.ops = &ops;
    q->loop = loop;
    q->pidfd = q->output = -1;
    *ret = &q->base;
    return 0;
}
