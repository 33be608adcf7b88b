/* The supervisor and the guest's memory: a snapshot of it together with the disks, and a start that goes on from one. */
#include "common/cleanup.h"
#include "common/log.h"
#include "common/seam.h"
#include "hv/supervisor_int.h"
#include <string.h>

#define TAKE_MS 15000 /* what the disks' snapshot gets while the guest is held */

static char *memory_socket(const struct hv_sup *s)
{
    return gr_asprintf("%s/memory.sock", s->dir);
}

/* ---- a start that goes on ---- */
int hv_sup_memory_begin(struct hv_sup *s, struct hv_sup_memory *m, struct gr_err *err)
{
    const char *name = hv_vmx_get(&s->vm.vmx, "snapshot.resume");
    *m = (struct hv_sup_memory){.fd = -1};
    if (!name)
        return 0;
    int r = hv_vmsn_read(&s->storage, s->vm.path, name, &m->record, err);
    const char *file = r < 0 ? "" : hv_vmsn_get(&m->record, "snapshot.memory"), *accel = r < 0 ? "" : hv_vmsn_get(&m->record, "snapshot.accel");
    gr_auto_free char *socket = memory_socket(s);
    if (r >= 0 && !*file)
        r = gr_fail(err, -ENOENT, "snapshot '%s' has no memory", name);
    if (r >= 0 && strcmp(accel, hv_accel_name(s->accel)))
        r = gr_fail(err, -EOPNOTSUPP, "its memory is of a guest that ran with %s, and here is %s", accel, hv_accel_name(s->accel));
    if (r >= 0)
        r = socket ? hv_memory_file_open(&s->storage, HV_MEMORY_GIVE, file, 0, NULL, socket, &m->file, &m->fd, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r < 0)
        return gr_prefix(err, r, "'%s' cannot go on from snapshot '%s' ('granary vm revert %s %s --no-memory' lets it boot)", s->vm.path, name, s->vm.path, name);
    m->suspended = hv_vmsn_is(&m->record, "snapshot.suspended", "1");
    return 0;
}

int hv_sup_memory_end(struct hv_sup *s, struct hv_sup_memory *m, bool loaded, struct gr_err *err)
{
    uint64_t bytes = 0;
    uint32_t crc = 0;
    if (!m->file)
        return 0;
    close(gr_take_fd(&m->fd));
    int r = hv_memory_file_end(gr_take(m->file), &bytes, &crc, loaded ? err : NULL);
    if (!loaded)
        return 0;
    if (r >= 0 && (bytes != hv_vmsn_number(&m->record, "snapshot.memoryBytes") || crc != hv_vmsn_number(&m->record, "snapshot.memoryCrc")))
        r = gr_fail(err, -GR_ECORRUPT, "%s is not what was written: %llu bytes with checksum %08x", hv_vmsn_get(&m->record, "snapshot.memory"),
                    (unsigned long long)bytes, (unsigned)crc);
    return r;
}

static int set_resume(struct hv_sup *s, const char *name, struct gr_err *err)
{
    int r = hv_vmx_set(&s->vm.vmx, "snapshot.resume", name);
    return r < 0 ? gr_fail(err, r, "'%s': %s", s->vm.path, gr_code_text(r)) : hv_storage_write_vm(&s->storage, &s->vm, err);
}

/* The disks change from when the virtual CPUs run: this memory must never be loaded over them again. An engine that says it stands still has not run. */
int hv_sup_go_on(struct hv_sup *s, struct gr_err *err)
{
    gr_auto_free char *name = gr_strdup(hv_vmsn_get(&s->vm, "snapshot.resume"));
    enum hv_state state = HV_RUNNING;
    struct gr_err why = {0};
    int r = name ? 0 : gr_fail(err, -ENOMEM, "out of memory");
    if (r >= 0 && *name)
        r = set_resume(s, NULL, err);
    if (r < 0)
        return r;
    if (s->starting == HV_STARTING_RUNNING)
        r = s->engine->ops->go(s->engine, err);
    s->starting = HV_STARTING_NOT;
    if (r >= 0)
        (void)hv_sup_save_record(s); /* whoever does not see it does it again */
    else if (*name && s->engine->ops->state(s->engine, &state, NULL) >= 0 && state == HV_SUSPENDED && set_resume(s, name, &why) < 0)
        gr_log(GR_LOG_WARN, "vm=%s: the next start does not go on from snapshot '%s': %s", s->vm.path, name, why.text);
    return r;
}

void hv_sup_memory_done(struct hv_sup_memory *m)
{
    if (m->fd >= 0)
        close(m->fd);
    hv_vm_done(&m->record);
}

/* ---- a snapshot ---- */
static int tell_progress(void *arg, uint64_t done, uint64_t total)
{
    return gr_rpc_part(arg, json_pack("{s:I, s:I}", "done", (json_int_t)done, "total", (json_int_t)total));
}

/* The guest is held as short as can be: from the end of its memory until the disks' snapshot is there. */
static int save_and_take(struct hv_sup *s, int fd, bool running, json_t *request, struct gr_rpc_call *call, json_t **ret_made, uint64_t *ret_held_ms, struct gr_err *err)
{
    struct hv_save opts = {.progress = tell_progress, .arg = call};
    struct gr_err why = {0};
    s->stopped_ns = gr_loop_now_ns(s->opts->loop);
    int r = s->engine->ops->save(s->engine, fd, &opts, err), go = 0;
    if (r < 0)
        return r;
    r = hv_storage_call(&s->storage, "snapshot.create", json_incref(request), TAKE_MS, ret_made, err);
    if (running && !s->ended)
        go = s->engine->ops->go(s->engine, &why);
    *ret_held_ms = (gr_loop_now_ns(s->opts->loop) - s->stopped_ns) / 1000000;
    return r < 0 ? r : go < 0 ? gr_fail(err, go, "'%s' does not go on: %s", s->vm.path, gr_err_text(&why, go)) : 0;
}

static int save(struct hv_sup *s, const char *file, uint64_t limit, const char *key, json_t *request, struct gr_rpc_call *call, json_t **ret, struct gr_err *err)
{
    struct hv_memory_file *f = NULL;
    json_auto_t *made = NULL;
    gr_auto_close int fd = -1;
    gr_auto_free char *socket = memory_socket(s);
    enum hv_state state = HV_OFF;
    struct gr_err why = {0};
    uint64_t bytes = 0, held_ms = 0;
    uint32_t crc = 0;
    int r = socket ? s->engine->ops->state(s->engine, &state, err) : gr_fail(err, -ENOMEM, "out of memory");
    bool running = state == HV_RUNNING;
    if (r >= 0)
        r = hv_memory_file_open(&s->storage, HV_MEMORY_TAKE, file, limit, key, socket, &f, &fd, err);
    if (r < 0)
        return r;
    s->saving = running ? HV_SAVING_RUNNING : HV_SAVING_SUSPENDED;
    if ((r = hv_sup_save_record(s)) < 0)
        gr_fail(err, r, "cannot write %s/record.json: %s", s->dir, gr_code_text(r));
    if (r >= 0)
        r = save_and_take(s, fd, running, request, call, &made, &held_ms, err);
    close(gr_take_fd(&fd));
    int e = hv_memory_file_end(f, &bytes, &crc, &why);
    s->saving = HV_SAVING_NOT;
    if (!s->ended)
        (void)hv_sup_save_record(s);
    if (e < 0 && (r >= 0 || e != -ECONNRESET)) /* else the engine went away from the service, not the service from the engine */
        return gr_fail(err, e, "%s", gr_err_text(&why, e));
    if (r < 0)
        return r;
    *ret = json_pack("{s:I, s:I, s:I, s:s, s:b, s:O}", "bytes", (json_int_t)bytes, "crc", (json_int_t)crc, "held-ms", (json_int_t)held_ms, "accel",
                     hv_accel_name(s->accel), "suspended", !running, "made", made);
    return *ret ? 0 : gr_fail(err, -ENOMEM, "out of memory");
}

/* @key: as of hv_memory_file_open(). */
static int save_with(struct hv_sup *s, const char *key, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    const char *file = NULL, *name = NULL, *group = NULL;
    uint64_t limit = 0;
    json_t *disks = NULL;
    struct gr_err why = {0};
    int r;
    if ((r = gr_json_str(params, "file", &file, err)) < 0 || (r = gr_json_u64(params, "limit", &limit, err)) < 0 ||
        (r = gr_json_array(params, "disks", &disks, err)) < 0 || (r = gr_json_str(params, "name", &name, err)) < 0 ||
        (r = gr_json_str(params, "group", &group, err)) < 0)
        return r;
    if (!s->engine || !s->console || s->ended)
        return gr_fail(err, -ESRCH, "'%s' is not on", s->vm.path);
    if ((r = hv_sup_not_saving(s, err)) < 0)
        return r;
    if (hv_freezer_state(s->freezer) != HV_THAWED)
        return gr_fail(err, -EBUSY, "'%s': its file systems are frozen", s->vm.path);
    json_auto_t *request = json_pack("{s:O, s:s, s:s}", "disks", disks, "name", name, "group", group);
    if (!request)
        return gr_fail(err, -ENOMEM, "out of memory");
    s->calls++;
    r = save(s, file, limit, key, request, call, ret, &why);
    s->calls--;
    gr_fqueue_wake_all(&s->changed);
    if (r == -EOPNOTSUPP) /* which is said of a supervisor alone (hostd_snapshot.c) */
        return gr_fail(err, -GR_EVERSION, "saving the memory of '%s', at the storage service: %s", s->vm.path, gr_err_text(&why, r));
    return r < 0 ? gr_fail(err, r, "%s", gr_err_text(&why, r)) : r;
}

int hv_sup_m_save(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    return save_with(arg, NULL, call, params, ret, err);
}

int hv_sup_m_save_encrypted(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    const char *key = NULL;
    int r = gr_json_str(params, "key", &key, err);
    return r < 0 ? r : save_with(arg, key, call, params, ret, err);
}

int hv_sup_not_saving(const struct hv_sup *s, struct gr_err *err)
{
    return s->saving == HV_SAVING_NOT ? 0 : gr_fail(err, -EBUSY, "'%s': a snapshot of its memory is being taken", s->vm.path);
}
