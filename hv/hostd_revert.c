/* The host agent's snapshots of VMs once they are there: shown, gone back to, deleted; and what was cut short is finished. */
#include "common/cleanup.h"
#include "common/seam.h"
#include "hv/hostd_int.h"
#include <string.h>

#define CALL_MS 60000
#define IDLE_MS 5000

json_t *hv_hostd_snapshot_row(json_t *rows, const char *name)
{
    size_t i;
    json_t *row;
    json_array_foreach(rows, i, row) {
        const char *n = json_string_value(json_object_get(row, "name"));
        if (n && !strcmp(n, name))
            return row;
    }
    return NULL;
}

/* The row of @rows that is @record's part: of its name and of its instant. NULL: there is none. */
static json_t *part_of(json_t *rows, const struct hv_vm *record)
{
    json_t *row = hv_hostd_snapshot_row(rows, hv_vmsn_get(record, "snapshot.name"));
    const char *group = json_string_value(json_object_get(row, "group")), *wanted = hv_vmsn_get(record, "snapshot.group");
    return *wanted && group && !strcmp(group, wanted) ? row : NULL;
}

static int snapshots_of(struct hv_hostd *h, const char *disk, json_t **ret, struct gr_err *err)
{
    return hv_storage_call(&h->storage, "snapshot.list", json_pack("{s:s}", "disk", disk), CALL_MS, ret, err);
}

/* ---- deleting, and what was cut short ---- */
int hv_hostd_remove_part(struct hv_hostd *h, const char *disk, const char *name, const char *group, struct gr_err *err)
{
    if (!*group)
        return 0; /* whoever noted no number had taken nothing that can be told from what is others' */
    int r = hv_storage_call(&h->storage, "snapshot.delete", json_pack("{s:s, s:s, s:s}", "disk", disk, "snapshot", name, "group", group), CALL_MS, NULL, err);
    return r == -ENOENT ? 0 : r;
}

/* In this order, so that one that was cut short can be given again. */
static int remove_parts(struct hv_hostd *h, const struct hv_vm *record, struct gr_err *err)
{
    const char *name = hv_vmsn_get(record, "snapshot.name");
    gr_auto_free char *memory = hv_vmsn_path(record->path, name, "vmem"), *file = hv_vmsn_path(record->path, name, "vmsn");
    if (!memory || !file)
        return gr_fail(err, -ENOMEM, "out of memory");
    for (unsigned i = 0; i < record->disk_count; i++) {
        int r = hv_hostd_remove_part(h, record->disks[i].path, name, hv_vmsn_get(record, "snapshot.group"), err);
        if (r < 0)
            return gr_prefix(err, r, "snapshot '%s' of '%s' is deleted in part", name, record->path);
    }
    int r = hv_storage_call(&h->storage, "dir.remove", json_pack("{s:s}", "path", memory), CALL_MS, NULL, err);
    if (r >= 0 || r == -ENOENT)
        r = hv_storage_call(&h->storage, "dir.remove", json_pack("{s:s}", "path", file), CALL_MS, NULL, err);
    return r == -ENOENT ? 0 : r;
}

int hv_hostd_tidy_snapshots(struct hv_hostd *h, const char *path, struct gr_err *err)
{
    gr_auto(hv_vmsn_list_done) struct hv_vmsn_list l = {0};
    int r = hv_vmsn_list(&h->storage, path, &l, err);
    for (size_t i = 0; r >= 0 && i < l.n; i++)
        if (!hv_vmsn_is(&l.v[i], "snapshot.state", "whole"))
            r = remove_parts(h, &l.v[i], err);
    return r;
}

/* What had grown from @gone has grown from what that had grown from. */
static int hand_down(struct hv_hostd *h, const struct hv_vm *gone, struct gr_err *err)
{
    gr_auto(hv_vmsn_list_done) struct hv_vmsn_list l = {0};
    gr_auto(hv_vm_done) struct hv_vm vm = {0};
    const char *name = hv_vmsn_get(gone, "snapshot.name"), *parent = hv_vmx_get(&gone->vmx, "snapshot.parent");
    int r = hv_vmsn_list(&h->storage, gone->path, &l, err);
    for (size_t i = 0; r >= 0 && i < l.n; i++)
        if (hv_vmsn_is(&l.v[i], "snapshot.parent", name) && (r = hv_vmx_set(&l.v[i].vmx, "snapshot.parent", parent)) >= 0)
            r = hv_vmsn_write(&h->storage, hv_vmsn_get(&l.v[i], "snapshot.name"), &l.v[i], err);
    if (r < 0 || (r = hv_storage_read_vm(&h->storage, gone->path, &vm, err)) < 0 || !hv_vmsn_is(&vm, "snapshot.current", name))
        return r;
    r = hv_vmx_set(&vm.vmx, "snapshot.current", parent);
    return r < 0 ? gr_fail(err, r, "'%s': %s", gone->path, gr_code_text(r)) : hv_storage_write_vm(&h->storage, &vm, err);
}

/* The machine as it is must not be in need of it. */
static int not_needed(struct hv_hostd *h, const char *path, const char *name, struct gr_err *err)
{
    gr_auto(hv_vm_done) struct hv_vm vm = {0};
    int r = hv_storage_read_vm(&h->storage, path, &vm, err);
    if (r >= 0 && hv_vmsn_is(&vm, "snapshot.reverting", name))
        r = gr_fail(err, -EBUSY, "the revert of '%s' to '%s' was cut short: start it first, revert it to another snapshot, or give the revert up with 'granary vm revert %s --abandon'",
                    path, name, path);
    if (r >= 0 && hv_vmsn_is(&vm, "snapshot.resume", name))
        r = gr_fail(err, -EBUSY, "'%s' was reverted to '%s' and has not gone on from it: start it first, or revert it with --no-memory", path, name);
    return r;
}

static int delete_snapshot(struct hv_hostd *h, const char *path, const char *name, struct gr_err *err)
{
    gr_auto(hv_vm_done) struct hv_vm record = {0};
    int r;
    if ((r = hv_hostd_tidy_snapshots(h, path, err)) < 0 || (r = not_needed(h, path, name, err)) < 0 ||
        (r = hv_vmsn_read(&h->storage, path, name, &record, err)) < 0 || (r = hand_down(h, &record, err)) < 0)
        return r;
    r = hv_vmx_set(&record.vmx, "snapshot.state", "deleting");
    if (r < 0 || (r = hv_vmsn_write(&h->storage, name, &record, err)) < 0)
        return r;
    return remove_parts(h, &record, err);
}

/* ---- going back ---- */
/* All of it must be there before anything changes. */
static int parts_there(struct hv_hostd *h, const struct hv_vm *record, struct gr_err *err)
{
    const char *name = hv_vmsn_get(record, "snapshot.name");
    if (!hv_vmsn_is(record, "snapshot.state", "whole"))
        return gr_fail(err, -ENOENT, "snapshot '%s' of '%s' is not whole: it was cut short while it was being taken or deleted", name, record->path);
    for (unsigned i = 0; i < record->disk_count; i++) {
        json_auto_t *rows = NULL;
        int r = snapshots_of(h, record->disks[i].path, &rows, err);
        if (r < 0)
            return gr_prefix(err, r, "snapshot '%s' of '%s'", name, record->path);
        if (!part_of(rows, record))
            return gr_fail(err, -ENOENT, "snapshot '%s' of '%s' is not whole: its part of disk %s was deleted", name, record->path, record->disks[i].path);
    }
    return 0;
}

/* The memory, too, if it is asked for: as long as it was, and with the key that it needs. */
static int memory_there(struct hv_hostd *h, const struct hv_vm *record, struct gr_err *err)
{
    const char *name = hv_vmsn_get(record, "snapshot.name"), *file = hv_vmsn_get(record, "snapshot.memory");
    json_auto_t *row = NULL;
    if (!*file)
        return 0;
    int r = hv_storage_call(&h->storage, "dir.stat", json_pack("{s:s}", "path", file), CALL_MS, &row, err);
    if (r >= 0 && (uint64_t)json_integer_value(json_object_get(row, "size")) != hv_vmsn_number(record, "snapshot.memoryBytes"))
        r = gr_fail(err, -GR_ECORRUPT, "%s has %lld bytes, not %llu", file, (long long)json_integer_value(json_object_get(row, "size")),
                    (unsigned long long)hv_vmsn_number(record, "snapshot.memoryBytes"));
    if (r >= 0 && json_is_false(json_object_get(row, "key-here")))
        r = gr_fail(err, -ENOKEY, "%s: encrypted with key %s, which is not here: 'granary key import' it", file, json_string_value(json_object_get(row, "key")));
    return r < 0 ? gr_prefix(err, r, "snapshot '%s' of '%s' cannot be gone on from (--no-memory goes back without it)", name, record->path) : 0;
}

/* The configuration becomes that of the snapshot; but a start is never counted twice. */
static int configure(struct hv_hostd *h, struct hv_vm *record, uint64_t incarnation, bool memory, struct gr_err *err)
{
    gr_auto_free char *name = gr_strdup(hv_vmsn_get(record, "snapshot.name"));
    struct hv_vmx *v = &record->vmx;
    int r = name ? 0 : -ENOMEM;
    for (size_t i = v->count; r >= 0 && i-- > 0;)
        if (!strncmp(v->pairs[i].key, "snapshot.", 9)) {
            gr_auto_free char *key = gr_strdup(v->pairs[i].key);
            r = key ? hv_vmx_set(v, key, NULL) : -ENOMEM;
        }
    record->incarnation = incarnation;
    if (r >= 0)
        r = hv_vmx_set(v, "snapshot.current", name);
    if (r >= 0 && memory)
        r = hv_vmx_set(v, "snapshot.resume", name);
    return r < 0 ? gr_fail(err, r, "'%s': %s", record->path, gr_code_text(r)) : hv_storage_write_vm(&h->storage, record, err);
}

/* (under the lock, the VM is off) From the first write on it can only go forward: a start, or another revert, does it again. */
static int revert(struct hv_hostd *h, struct hv_vm *vm, struct hv_vm *record, bool memory, struct gr_err *err)
{
    const char *name = hv_vmsn_get(record, "snapshot.name");
    int r = parts_there(h, record, err);
    if (r < 0)
        return r;
    if ((r = hv_vmx_set(&vm->vmx, "snapshot.reverting", name)) < 0 || (r = hv_vmx_set(&vm->vmx, "snapshot.revertMemory", memory ? "1" : "0")) < 0 ||
        (r = hv_vmx_set(&vm->vmx, "snapshot.resume", NULL)) < 0)
        return gr_fail(err, r, "'%s': %s", vm->path, gr_code_text(r));
    if ((r = hv_storage_write_vm(&h->storage, vm, err)) < 0 || (r = hv_storage_fence(&h->storage, vm, err)) < 0 || (r = hv_storage_fence(&h->storage, record, err)) < 0)
        return r;
    for (unsigned i = 0; r >= 0 && i < record->disk_count; i++)
        r = hv_storage_call(&h->storage, "snapshot.revert", json_pack("{s:s, s:s}", "disk", record->disks[i].path, "snapshot", name), CALL_MS, NULL, err);
    if (r < 0)
        return gr_prefix(err, r, "'%s' is reverted in part, give it again", vm->path);
    return configure(h, record, vm->incarnation, memory, err);
}

int hv_hostd_finish_revert(struct hv_hostd *h, const char *path, bool *ret_resumes, struct gr_err *err)
{
    gr_auto(hv_vm_done) struct hv_vm vm = {0}, record = {0};
    int r = hv_storage_read_vm(&h->storage, path, &vm, err);
    if (r < 0)
        return r;
    *ret_resumes = hv_vmx_get(&vm.vmx, "snapshot.resume") != NULL;
    const char *name = hv_vmx_get(&vm.vmx, "snapshot.reverting");
    if (!name)
        return 0;
    *ret_resumes = hv_vmsn_is(&vm, "snapshot.revertMemory", "1");
    r = hv_vmsn_read(&h->storage, path, name, &record, err);
    if (r >= 0)
        r = revert(h, &vm, &record, *ret_resumes, err);
    return r < 0 ? gr_prefix(err, r, "the revert of '%s' to '%s' was cut short and could not be finished (revert it to another snapshot, or leave its disks as they are "
                             "with 'granary vm revert %s --abandon')", path, name, path) : 0;
}

/* Off, by force if that was asked for. */
static int end_it(struct hv_hostd *h, const char *path, const char *uuid, bool force, struct gr_err *err)
{
    int r = hv_hostd_is_on(h, uuid, err);
    bool on = r > 0 || hv_hostd_has_record(h, uuid);
    if (r >= 0 && on && !force)
        return gr_fail(err, -EBUSY, "'%s' is on: stop it first, or give --force, which ends it as it is", path);
    if (r >= 0 && on) {
        r = hv_hostd_vmx_wait(h, path, uuid, "vmx.stop", json_pack("{s:b}", "force", 1), NULL, CALL_MS, NULL, err);
        r = r >= 0 || r == -ENOENT || r == -ESRCH ? hv_hostd_is_on(h, uuid, err) : r;
    }
    return r <= 0 ? r : gr_fail(err, -EBUSY, "'%s' does not end", path);
}

/* What ended here has soon ended for the target, too; what goes on runs elsewhere. */
static int wait_idle(struct hv_hostd *h, const struct hv_vm *vm, struct gr_err *err)
{
    int r = hv_storage_idle(&h->storage, vm, err);
    for (unsigned ms = 0; r == -GR_ELOCKED && ms < IDLE_MS; ms += 100) {
        gr_fiber_sleep_ms(100);
        r = hv_storage_idle(&h->storage, vm, err);
    }
    return r;
}

static int go_back(struct hv_hostd *h, struct hv_claim *claim, const char *path, const char *name, bool memory, struct gr_err *err)
{
    const char *uuid = claim->uuid;
    gr_auto(hv_vm_done) struct hv_vm vm = {0}, record = {0};
    int r = hv_storage_read_vm(&h->storage, path, &vm, err);
    if (r < 0 || (r = hv_vmsn_read(&h->storage, path, name, &record, err)) < 0)
        return r;
    memory = memory && hv_vmx_get(&record.vmx, "snapshot.memory");
    if ((r = wait_idle(h, &vm, err)) < 0)
        return r;
    gr_fmutex_lock(&h->lock);
    r = h->ending ? gr_fail(err, -ESHUTDOWN, "the host agent is ending") : hv_hostd_is_on(h, uuid, err); /* it was off; nobody starts it while we are at it */
    r = r > 0 ? gr_fail(err, -EBUSY, "'%s' is on", path) : r < 0 ? r : revert(h, &vm, &record, memory, err);
    claim->starting = r >= 0 && memory;
    gr_fmutex_unlock(&h->lock);
    return claim->starting ? hv_hostd_supervise(h, path, uuid, HV_START_RESUME, err) : r;
}

/* ---- shown ---- */
static void add_usage(const struct hv_vm *record, const char *disk, json_t *rows, json_int_t *unique, json_t *missing)
{
    json_t *row = part_of(rows, record);
    if (row)
        *unique += json_integer_value(json_object_get(row, "unique"));
    else
        json_array_append_new(missing, json_string(disk));
}

/* @known: rows of disks that were asked for already. */
static json_t *describe(struct hv_hostd *h, const struct hv_vm *record, const char *current, json_t *known)
{
    json_t *disks = json_array(), *missing = json_array();
    json_int_t unique = 0;
    for (unsigned i = 0; i < record->disk_count; i++) {
        const char *disk = record->disks[i].path;
        json_t *rows = json_object_get(known, disk);
        if (!rows && snapshots_of(h, disk, &rows, NULL) >= 0)
            json_object_set_new(known, disk, rows);
        else if (!rows)
            json_object_set_new(known, disk, rows = json_array());
        add_usage(record, disk, rows, &unique, missing);
        json_array_append_new(disks, json_string(disk));
    }
    const char *name = hv_vmsn_get(record, "snapshot.name"), *state = hv_vmsn_get(record, "snapshot.state");
    if (!strcmp(state, "whole") && json_array_size(missing))
        state = "incomplete";
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:I, s:I, s:I, s:o, s:o}", "vm", record->path, "name", name, "parent",
                     hv_vmsn_get(record, "snapshot.parent"), "description", hv_vmsn_get(record, "snapshot.description"), "state", state, "consistency",
                     hv_vmsn_get(record, "snapshot.consistency"), "group", hv_vmsn_get(record, "snapshot.group"), "current", !strcmp(name, current), "created",
                     (json_int_t)hv_vmsn_number(record, "snapshot.created"), "unique", unique, "memory", (json_int_t)hv_vmsn_number(record, "snapshot.memoryBytes"),
                     "disks", disks, "missing", missing);
}

static int m_snapshots(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_hostd *h = arg;
    gr_auto(hv_vmsn_list_done) struct hv_vmsn_list l = {0};
    gr_auto(hv_vm_done) struct hv_vm vm = {0};
    gr_auto_free char *path = NULL;
    json_auto_t *rows = json_array(), *known = json_object();
    char uuid[37];
    int r;
    if ((r = hv_hostd_resolve(h, params, &path, uuid, err)) < 0 || (r = hv_storage_read_vm(&h->storage, path, &vm, err)) < 0 ||
        (r = hv_vmsn_list(&h->storage, path, &l, err)) < 0)
        return r;
    for (size_t i = 0; i < l.n; i++)
        json_array_append_new(rows, describe(h, &l.v[i], hv_vmsn_get(&vm, "snapshot.current"), known));
    *ret = gr_take(rows);
    return *ret ? 0 : gr_fail(err, -ENOMEM, "out of memory");
}

static int m_revert(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_hostd *h = arg;
    const char *name = NULL;
    bool force = false, memory = true;
    gr_auto_free char *path = NULL;
    struct hv_claim claim = {0};
    char uuid[37];
    int r;
    if ((r = gr_json_str(params, "name", &name, err)) < 0 || (r = gr_json_opt_bool(params, "force", &force, err)) < 0 ||
        (r = gr_json_opt_bool(params, "memory", &memory, err)) < 0 || (r = hv_hostd_resolve(h, params, &path, uuid, err)) < 0 ||
        (r = hv_hostd_claim(h, &claim, path, uuid, "it is being reverted", err)) < 0)
        return r;
    gr_auto(hv_vm_done) struct hv_vm record = {0};
    r = hv_vmsn_read(&h->storage, path, name, &record, err);
    if (r >= 0)
        r = parts_there(h, &record, err); /* before anything is ended for it */
    if (r >= 0 && memory)
        r = memory_there(h, &record, err);
    if (r >= 0)
        r = end_it(h, path, uuid, force, err);
    if (r >= 0)
        r = go_back(h, &claim, path, name, memory, err);
    hv_hostd_unclaim(h, &claim);
    return r < 0 ? r : hv_hostd_describe(h, path, uuid, ret, err);
}

/* The configuration is still that of before; which of the disks are of then, and which are not, nobody says. */
static int abandon(struct hv_hostd *h, const char *path, struct gr_err *err)
{
    gr_auto(hv_vm_done) struct hv_vm vm = {0};
    int r = hv_storage_read_vm(&h->storage, path, &vm, err);
    if (r >= 0 && !hv_vmx_get(&vm.vmx, "snapshot.reverting"))
        r = gr_fail(err, -ENOENT, "no revert of '%s' was cut short", path);
    if (r < 0)
        return r;
    if ((r = hv_vmx_set(&vm.vmx, "snapshot.reverting", NULL)) < 0 || (r = hv_vmx_set(&vm.vmx, "snapshot.revertMemory", NULL)) < 0)
        return gr_fail(err, r, "'%s': %s", path, gr_code_text(r));
    return hv_storage_write_vm(&h->storage, &vm, err);
}

static int m_abandon_revert(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_hostd *h = arg;
    gr_auto_free char *path = NULL;
    struct hv_claim claim = {0};
    char uuid[37];
    int r;
    if ((r = hv_hostd_resolve(h, params, &path, uuid, err)) < 0 || (r = hv_hostd_claim(h, &claim, path, uuid, "a revert of it is being given up", err)) < 0)
        return r;
    r = abandon(h, path, err);
    hv_hostd_unclaim(h, &claim);
    return r < 0 ? r : hv_hostd_describe(h, path, uuid, ret, err);
}

static int m_delete_snapshot(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_hostd *h = arg;
    const char *name = NULL;
    gr_auto_free char *path = NULL;
    struct hv_claim claim = {0};
    char uuid[37];
    int r;
    if ((r = gr_json_str(params, "name", &name, err)) < 0 || (r = hv_hostd_resolve(h, params, &path, uuid, err)) < 0 ||
        (r = hv_hostd_claim(h, &claim, path, uuid, "a snapshot of it is being deleted", err)) < 0)
        return r;
    r = delete_snapshot(h, path, name, err);
    hv_hostd_unclaim(h, &claim);
    return r;
}

const struct gr_rpc_method hv_hostd_snapshot_methods[] = {
    {"vm.snapshot", hv_hostd_m_snapshot},           {"vm.snapshots", m_snapshots}, {"vm.revert", m_revert},
    {"vm.delete-snapshot", m_delete_snapshot}, {"vm.abandon-revert", m_abandon_revert}, {NULL, NULL},
};
