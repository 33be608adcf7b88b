#include "hv/supervisor.h"
#include "common/cleanup.h"
#include "common/daemon.h"
#include "common/log.h"
#include "common/seam.h"
#include "hv/probe.h"
#include "hv/supervisor_int.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define ENGINE_LOG_MAX (256u << 10)
#define LOCK_MS 2000

char *hv_run_path(struct gr_home *home, const char *uuid, const char *name)
{
    gr_auto_free char *rel = gr_asprintf("run/vm/%s%s%s", uuid, *name ? "/" : "", name);
    return rel ? gr_home_path(home, rel) : NULL;
}

char *hv_log_path(struct gr_home *home, const char *uuid, const char *name)
{
    gr_auto_free char *rel = gr_asprintf("log/vm/%s%s%s", uuid, *name ? "/" : "", name);
    return rel ? gr_home_path(home, rel) : NULL;
}

/* The user that this VM's engine runs as: an unprivileged number of its own, derived from the uuid. 0: we are no root and
 * cannot change. */
static unsigned engine_uid(const struct hv_vm *vm)
{
    uint8_t u[16];
    if (geteuid() != 0 || gr_uuid_parse(vm->uuid, u) < 0)
        return 0;
    return 0x40000000u | (u[12] & 0x0fu) << 24 | (unsigned)u[13] << 16 | (unsigned)u[14] << 8 | u[15];
}

static void note(void *arg, const char *text)
{
    struct hv_sup *s = arg;
    gr_log_limited(GR_LOG_NOTE, "vm=%s: %s", s->vm.path, text); /* a guest can cause these */
}

static void on_event(void *arg, enum hv_event e, const char *text)
{
    struct hv_sup *s = arg;
    switch (e) {
    case HV_EVENT_STATE:
        s->check_state = true;
        if (!strcmp(text, hv_state_name(HV_SUSPENDED)))
            s->stopped_ns = gr_loop_now_ns(s->opts->loop);
        note(s, text);
        break;
    case HV_EVENT_AGENT:
        hv_qga_set_open(s->qga, !strcmp(text, "open"));
        break;
    case HV_EVENT_NOTE:
        note(s, text);
        break;
    case HV_EVENT_OUTPUT:
        hv_logcap_write(s->engine_log, text, strlen(text));
        return;
    case HV_EVENT_EXIT:
        snprintf(s->how, sizeof s->how, "%s", text);
        s->ended = true;
        break;
    }
    gr_fqueue_wake_all(&s->changed);
}

static char *in_dir(const struct hv_sup *s, const char *name)
{
    return gr_asprintf("%s/%s", s->dir, name);
}

static int save_json(struct hv_sup *s, const char *name, json_t *doc)
{
    gr_auto_free char *path = in_dir(s, name), *text = json_dumps(doc, JSON_INDENT(1));
    return path && text ? gr_file_replace(path, text, strlen(text), 0600, NULL) : -ENOMEM;
}

int hv_sup_save_record(struct hv_sup *s)
{
    static const char *const starting[] = {"", "running", "suspended"};
    json_auto_t *record = s->engine->ops->record(s->engine);
    if (!record || json_object_set_new(record, "path", json_string(s->vm.path)) || json_object_set_new(record, "accel", json_string(hv_accel_name(s->accel))) ||
        json_object_set_new(record, "accel-reason", json_string(s->accel_reason)) || json_object_set_new(record, "since", json_integer(s->since)) ||
        json_object_set_new(record, "incarnation", json_integer((json_int_t)s->vm.incarnation)) ||
        json_object_set_new(record, "starting", json_string(starting[s->starting])) || json_object_set_new(record, "saving", json_boolean(s->saving == HV_SAVING_RUNNING)))
        return -ENOMEM;
    char pid[24];
    gr_auto_free char *pid_path = in_dir(s, "engine.pid");
    snprintf(pid, sizeof pid, "%lld\n", (long long)json_integer_value(json_object_get(record, "pid")));
    if (!pid_path || gr_file_replace(pid_path, pid, strlen(pid), 0644, NULL) < 0)
        return -EIO;
    return save_json(s, "record.json", record);
}

/* Engine, agent and freezer objects; they are there before the first event. */
static int make_parts(struct hv_sup *s, struct gr_err *err)
{
    gr_auto_free char *agent = in_dir(s, HV_SOCK_AGENT);
    int r = agent ? hv_engine_qemu_new(s->opts->loop, &s->engine) : -ENOMEM;
    if (r >= 0)
        r = hv_qga_new(s->opts->loop, agent, &s->qga);
    if (r >= 0)
        r = hv_freezer_new(s->opts->loop, s->qga, note, s, &s->freezer);
    if (r < 0)
        return gr_fail(err, r, "out of memory");
    s->engine->on_event = on_event;
    s->engine->arg = s;
    return 0;
}

static void drop_parts(struct hv_sup *s)
{
    hv_console_close(gr_take(s->console));
    hv_freezer_free(gr_take(s->freezer));
    hv_qga_free(gr_take(s->qga));
    if (s->engine)
        s->engine->ops->free(gr_take(s->engine));
}

static int open_logs(struct hv_sup *s, struct gr_err *err)
{
    gr_auto_free char *dir = hv_log_path(s->opts->home, s->vm.uuid, ""), *log = hv_log_path(s->opts->home, s->vm.uuid, "engine.log");
    if (!dir || !log)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = gr_mkdirs(dir, 0700, err);
    return r < 0 ? r : hv_logcap_open(log, ENGINE_LOG_MAX, &s->engine_log, err);
}

static int open_console(struct hv_sup *s, struct gr_err *err)
{
    gr_auto_free char *sock = in_dir(s, HV_SOCK_CONSOLE), *log = hv_log_path(s->opts->home, s->vm.uuid, "console.log");
    if (!sock || !log)
        return gr_fail(err, -ENOMEM, "out of memory");
    return hv_console_open(s->opts->loop, sock, log, s->vm.console_max, &s->console, err);
}

static void launch_done(struct hv_launch *l)
{
    for (unsigned i = 0; i < HV_DISKS_MAX; i++)
        hv_lun_done(&l->luns[i]);
    free(l->initiator);
}

static void end_engine(struct hv_sup *s)
{
    s->engine->ops->kill(s->engine, 0);
    while (!s->ended)
        gr_fqueue_wait(&s->changed);
}

/* A new incarnation: its number is durable in the VM's configuration before anything uses it. */
static int launch(struct hv_sup *s, int memory_fd, struct gr_err *err)
{
    gr_auto(launch_done) struct hv_launch l = {.vm = &s->vm, .accel = s->accel, .dir = s->dir, .uid = engine_uid(&s->vm), .memory_fd = memory_fd};
    int r = hv_storage_fence(&s->storage, &s->vm, err);
    for (unsigned i = 0; r >= 0 && i < s->vm.disk_count; i++)
        r = hv_storage_lun(&s->storage, s->vm.disks[i].path, &l.luns[i], err);
    if (r < 0)
        return r;
    s->vm.incarnation++;
    l.initiator = hv_vm_initiator(&s->vm);
    if (!l.initiator)
        return gr_fail(err, -ENOMEM, "out of memory");
    s->since = gr_loop_world(s->opts->loop)->wall_s(gr_loop_world(s->opts->loop)->arg);
    if ((r = hv_storage_write_vm(&s->storage, &s->vm, err)) < 0 || (r = make_parts(s, err)) < 0)
        return r;
    return s->engine->ops->start(s->engine, &l, err);
}

static int start_engine(struct hv_sup *s, struct gr_err *err)
{
    gr_auto(hv_sup_memory_done) struct hv_sup_memory m = {.fd = -1};
    const char *reverting = hv_vmx_get(&s->vm.vmx, "snapshot.reverting");
    char mark[200];
    if (reverting)
        return gr_fail(err, -EBUSY, "'%s': its revert to snapshot '%s' was cut short; give it again", s->vm.path, reverting);
    int r = hv_sup_memory_begin(s, &m, err);
    if (r >= 0)
        r = launch(s, m.fd, err);
    bool loaded = r >= 0;
    int e = hv_sup_memory_end(s, &m, loaded, err);
    if (!loaded)
        return r;
    s->starting = m.suspended ? HV_STARTING_SUSPENDED : HV_STARTING_RUNNING;
    if ((r = e) >= 0 && (r = hv_sup_save_record(s)) < 0)
        r = gr_fail(err, r, "cannot write %s/record.json: %s", s->dir, gr_code_text(r));
    if (r >= 0 && (r = open_console(s, err)) >= 0) {
        snprintf(mark, sizeof mark, "start %llu of %s with %s", (unsigned long long)s->vm.incarnation, s->vm.name, hv_accel_name(s->accel));
        hv_console_mark(s->console, mark);
        r = hv_sup_go_on(s, err);
    }
    if (r < 0)
        end_engine(s);
    return r;
}

static int adopt_engine(struct hv_sup *s, struct gr_err *err)
{
    gr_auto_free char *path = in_dir(s, "record.json");
    gr_auto_buf struct gr_buf text = {0};
    int r = path ? gr_file_read(path, 65536, &text, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r < 0)
        return r;
    json_auto_t *record = json_loadb(text.data ? text.data : "", text.len, 0, NULL);
    const char *accel = json_string_value(json_object_get(record, "accel")), *reason = json_string_value(json_object_get(record, "accel-reason")),
               *starting = json_string_value(json_object_get(record, "starting"));
    if (!record)
        return gr_fail(err, -GR_EFORMAT, "%s is damaged", path);
    starting = starting ? starting : "";
    s->accel = accel && !strcmp(accel, "kvm") ? HV_ACCEL_KVM : HV_ACCEL_TCG;
    snprintf(s->accel_reason, sizeof s->accel_reason, "%s", reason ? reason : "");
    s->since = json_integer_value(json_object_get(record, "since"));
    if ((r = make_parts(s, err)) < 0 || (r = s->engine->ops->adopt(s->engine, s->dir, record, err)) < 0)
        return r;
    if (json_is_true(json_object_get(record, "saving"))) {
        note(s, "whoever was saving its memory is gone: it goes on without");
        s->engine->ops->save_undo(s->engine);
        (void)hv_sup_save_record(s);
    }
    /* whoever had frozen the guest cannot thaw it any more */
    hv_freezer_suspect(s->freezer);
    if ((r = open_console(s, err)) < 0 || !*starting)
        return r;
    note(s, "whoever was starting it is gone: it goes on from there");
    s->starting = !strcmp(starting, "suspended") ? HV_STARTING_SUSPENDED : HV_STARTING_RUNNING;
    return hv_sup_go_on(s, err);
}

static int choose_accel(struct hv_sup *s, struct gr_err *err)
{
    struct hv_probe p = {0};
    int r = hv_probe_get(s->opts->home, &p, err);
    if (r < 0)
        return r;
    s->accel = p.verdict;
    snprintf(s->accel_reason, sizeof s->accel_reason, "%s", p.reason);
    return 0;
}

/* Until the engine has ended. Returns 1 when it must be started again, on TCG. */
static int watch(struct hv_sup *s)
{
    bool again = false;
    while (!s->ended) {
        enum hv_state state = HV_RUNNING;
        if (s->check_state) {
            s->check_state = false;
            if (s->engine->ops->state(s->engine, &state, NULL) >= 0 && state == HV_ENGINE_FAILED && s->accel == HV_ACCEL_KVM) {
                note(s, "KVM failed under the guest; it is started again with TCG");
                hv_probe_mark_bad(s->opts->home, "KVM failed while a guest was running (internal error)", NULL);
                again = true;
                s->engine->ops->kill(s->engine, 2000);
            }
        }
        if (!s->ended && !s->check_state)
            gr_fqueue_wait(&s->changed);
    }
    return again && !s->stopping;
}

static void remove_run_files(struct hv_sup *s)
{
    static const char *const names[] = {"record.json", "engine.pid", HV_SOCK_QMP, HV_SOCK_AGENT, HV_SOCK_CONSOLE};
    for (size_t i = 0; i < GR_ARRAY_LEN(names); i++) {
        gr_auto_free char *path = in_dir(s, names[i]);
        if (path)
            unlink(path);
    }
}

/* One supervisor per VM on this machine. */
static int lock_dir(struct hv_sup *s, int *ret_fd, struct gr_err *err)
{
    gr_auto_free char *path = in_dir(s, "lock");
    int r = path ? gr_mkdirs(s->dir, 0700, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r < 0)
        return r;
    r = gr_daemon_lock(path, LOCK_MS, ret_fd, err);
    return r == -GR_ELOCKED ? gr_fail(err, r, "'%s' has a supervisor already", s->vm.path) : r;
}

static int serve(struct hv_sup *s, struct gr_err *err)
{
    gr_auto_free char *path = in_dir(s, "vmx.sock");
    int r = path ? gr_rpc_server_new(s->opts->loop, &s->server) : -ENOMEM;
    if (r >= 0)
        r = gr_rpc_server_add(s->server, hv_sup_methods, s);
    return r < 0 ? gr_fail(err, r, "out of memory") : gr_rpc_server_listen(s->server, path, err);
}

static void remove_own_files(struct hv_sup *s)
{
    gr_auto_free char *pid = in_dir(s, "vmx.pid"), *sock = in_dir(s, "vmx.sock");
    if (pid)
        unlink(pid);
    if (sock)
        unlink(sock);
}

static int write_pid(struct hv_sup *s, struct gr_err *err)
{
    gr_auto_free char *path = in_dir(s, "vmx.pid");
    return path ? gr_daemon_pidfile(path, err) : gr_fail(err, -ENOMEM, "out of memory");
}

static void tell_ready(struct hv_sup *s, int code, const char *text)
{
    if (s->opts->ready)
        s->opts->ready(s->opts->arg, code, text);
}

/* Started once more: its configuration may have changed since. */
static int reread(struct hv_sup *s, struct gr_err *err)
{
    gr_auto(hv_vm_done) struct hv_vm vm = {0};
    int r = hv_storage_read_vm(&s->storage, s->opts->path, &vm, err);
    if (r < 0)
        return r;
    hv_vm_done(&s->vm);
    s->vm = vm;
    vm = (struct hv_vm){0};
    return 0;
}

static int run(struct hv_sup *s, struct gr_err *err)
{
    bool adopt = s->opts->adopt, told = false;
    int r, again;
    do {
        s->ended = false;
        r = adopt ? adopt_engine(s, err) : told ? reread(s, err) : 0;
        if (r >= 0 && !adopt)
            r = choose_accel(s, err);
        if (r >= 0 && !adopt)
            r = start_engine(s, err);
        if (r >= 0 && !s->server && (r = serve(s, err)) < 0 && !adopt)
            end_engine(s);
        if (r < 0)
            break;
        if (!told)
            tell_ready(s, 0, "");
        told = true;
        again = watch(s);
        gr_log(GR_LOG_NOTE, "vm=%s: the engine %s", s->vm.path, s->how);
        for (unsigned i = 0; s->calls && i < 40; i++) /* answers that are on their way, two seconds at most */
            gr_fqueue_wait_ms(&s->changed, 50);
        if (!s->calls)
            drop_parts(s);
        remove_run_files(s);
        adopt = false;
    } while (again && !s->calls);
    if (r < 0 && adopt && r != -ESRCH) /* the engine runs on, and its record tells whoever comes next */
        return r;
    json_auto_t *last = json_pack("{s:s, s:i}", "ended", r < 0 ? gr_err_text(err, r) : s->how, "code", r);
    if (last)
        save_json(s, "last.json", last);
    if (r < 0)
        remove_run_files(s);
    return r;
}

int hv_supervise(const struct hv_sup_opts *opts, struct gr_err *err)
{
    struct hv_sup *s = gr_zalloc(sizeof *s);
    gr_auto_close int lock = -1;
    if (!s)
        return gr_fail(err, -ENOMEM, "out of memory");
    s->opts = opts;
    s->storage = (struct hv_storage){opts->loop, opts->home};
    int r = hv_storage_read_vm(&s->storage, opts->path, &s->vm, err);
    if (r >= 0 && !(s->dir = hv_run_path(opts->home, s->vm.uuid, "")))
        r = gr_fail(err, -ENOMEM, "out of memory");
    if (r >= 0 && (r = lock_dir(s, &lock, err)) >= 0 && (r = open_logs(s, err)) >= 0 && (r = write_pid(s, err)) >= 0)
        r = run(s, err);
    if (r < 0)
        tell_ready(s, r, gr_err_text(err, r));
    if (s->calls) /* a caller that does not take its answer: the process ends without waiting for it */
        return r;
    gr_rpc_server_free(s->server);
    drop_parts(s);
    if (lock >= 0)
        remove_own_files(s);
    hv_logcap_close(s->engine_log);
    hv_vm_done(&s->vm);
    free(s->dir);
    free(s);
    return r;
}
