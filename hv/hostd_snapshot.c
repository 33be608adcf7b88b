/* The host agent takes snapshots of VMs: for a backup (the disks only, and nothing is kept of it but what they hold), and for people. The number of the
 * disks' group is chosen here, and in the record before anything is taken: what is of that number is part of it, and what is not never was. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "hv/hostd_int.h"
#include <stdio.h>
#include <string.h>

#define FREEZE_DEADLINE_MS 20000
#define CREATE_MS 60000
#define INFO_MS 15000
#define MEMORY_MS 86400000
#define MEMORY_SPARE (256ull << 20) /* bytes: devices, and what a guest changes while its memory is written */

/* ---- the ticket: frozen or not, and why ---- */
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
    int r = hv_hostd_vmx_wait(h, path, uuid, "vmx.info", NULL, NULL, INFO_MS, &info, &why);
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

static json_t *disk_list(const struct hv_vm *vm)
{
    json_t *list = json_array();
    for (unsigned i = 0; list && i < vm->disk_count; i++)
        json_array_append_new(list, json_string(vm->disks[i].path));
    return list;
}

struct order { /* what is asked for */
    const char *name, *description;
    char group[37]; /* of the disks' snapshots */
    bool quiesce, record, memory;
    uint64_t deadline_ms;
};
struct taken {
    struct ticket t;
    json_t *made;   /* rows of the disks' snapshots */
    json_t *memory; /* what vmx.save gave; NULL: without */
};

static void taken_done(struct taken *k)
{
    json_decref(k->made);
    json_decref(k->memory);
}

static int take_disks(struct hv_hostd *h, const struct hv_vm *vm, const char *uuid, const struct order *o, struct taken *k, struct gr_err *err)
{
    json_auto_t *disks = disk_list(vm), *request = disks ? json_pack("{s:O, s:s, s:s}", "disks", disks, "name", o->name, "group", o->group) : NULL;
    if (!request)
        return gr_fail(err, -ENOMEM, "out of memory");
    ticket_freeze(h, vm->path, uuid, o->quiesce, o->deadline_ms, &k->t);
    int r = hv_storage_call(&h->storage, "snapshot.create", gr_take(request), CREATE_MS, &k->made, err);
    if (k->t.frozen)
        ticket_thaw(h, uuid, &k->t);
    return r;
}

/* ---- with memory ---- */
/* What a guest with an encrypted disk has in its memory is as secret as that: it is encrypted with the same key, that of the first one. *ret: its
 * number, the caller's to free; NULL: no disk is encrypted. */
static int memory_key(struct hv_hostd *h, const struct hv_vm *vm, char **ret, struct gr_err *err)
{
    *ret = NULL;
    for (unsigned i = 0; !*ret && i < vm->disk_count; i++) {
        json_auto_t *info = NULL;
        int r = hv_storage_call(&h->storage, "disk.info", json_pack("{s:s}", "disk", vm->disks[i].path), CREATE_MS, &info, err);
        if (r < 0)
            return r;
        const char *key = json_string_value(json_object_get(info, "key"));
        if (json_is_true(json_object_get(info, "encrypted")) && !(*ret = gr_strdup(key ? key : "")))
            return gr_fail(err, -ENOMEM, "out of memory");
    }
    return 0;
}

static int save_memory(struct hv_hostd *h, const struct hv_vm *vm, const char *uuid, json_t *request, struct gr_rpc_call *call, json_t **ret, struct gr_err *err)
{
    bool encrypted = json_object_get(request, "key") != NULL; /* of its own method, as in hv/memory_file.c */
    int r = hv_hostd_vmx_wait(h, vm->path, uuid, encrypted ? "vmx.save-encrypted" : "vmx.save", request, call, MEMORY_MS, ret, err);
    if (r == -ENOENT && !hv_hostd_has_record(h, uuid))
        return gr_fail(err, -ESRCH, "'%s' is off: it has no memory to keep", vm->path);
    if (r == -EOPNOTSUPP && encrypted)
        return gr_prefix(err, r, "'%s' was started by an earlier release, which cannot encrypt its memory: stop and start it first", vm->path);
    return r;
}

static int take_memory(struct hv_hostd *h, const struct hv_vm *vm, const char *uuid, const struct order *o, struct gr_rpc_call *call, struct taken *k, struct gr_err *err)
{
    gr_auto_free char *file = hv_vmsn_path(vm->path, o->name, "vmem"), *key = NULL;
    json_auto_t *disks = disk_list(vm), *request = NULL;
    int r = memory_key(h, vm, &key, err);
    if (r < 0)
        return r;
    if (file && disks)
        request = json_pack("{s:s, s:I, s:O, s:s, s:s, s:s*}", "file", file, "limit", (json_int_t)(vm->memory * 3 + MEMORY_SPARE), "disks", disks, "name", o->name,
                            "group", o->group, "key", key);
    if (!request)
        return gr_fail(err, -ENOMEM, "out of memory");
    if ((r = save_memory(h, vm, uuid, gr_take(request), call, &k->memory, err)) < 0)
        return r;
    k->made = json_incref(json_object_get(k->memory, "made"));
    k->t.frozen_ms = (uint64_t)json_integer_value(json_object_get(k->memory, "held-ms"));
    set_cause(&k->t, "memory", "with the guest's memory of the same instant", "");
    return 0;
}

/* ---- the record ---- */
static int record_begin(struct hv_hostd *h, const struct hv_vm *vm, const struct order *o, struct hv_vm *record, struct gr_err *err)
{
    const struct gr_world *w = gr_loop_world(h->loop);
    int r = hv_vmsn_read(&h->storage, vm->path, o->name, record, NULL);
    if (r != -ENOENT)
        return gr_fail(err, -EEXIST, "'%s' has a snapshot '%s' already", vm->path, o->name);
    if ((r = hv_storage_read_vm(&h->storage, vm->path, record, err)) < 0)
        return r;
    const char *parent = hv_vmx_get(&record->vmx, "snapshot.current");
    if ((r = hv_vmx_set(&record->vmx, "snapshot.parent", parent)) < 0 || (r = hv_vmx_set(&record->vmx, "snapshot.current", NULL)) < 0 ||
        (r = hv_vmx_set(&record->vmx, "snapshot.name", o->name)) < 0 || (r = hv_vmx_set(&record->vmx, "snapshot.state", "making")) < 0 ||
        (r = hv_vmx_set(&record->vmx, "snapshot.group", o->group)) < 0 ||
        (r = hv_vmx_set(&record->vmx, "snapshot.description", o->description)) < 0 ||
        (r = hv_vmsn_set_number(record, "snapshot.created", (uint64_t)w->wall_s(w->arg))) < 0)
        return gr_fail(err, r, "snapshot '%s' of '%s': %s", o->name, vm->path, gr_code_text(r));
    return hv_vmsn_write(&h->storage, o->name, record, err);
}

static int record_memory(const struct hv_vm *vm, const struct order *o, json_t *m, struct hv_vm *record)
{
    gr_auto_free char *file = hv_vmsn_path(vm->path, o->name, "vmem");
    int r = file ? hv_vmx_set(&record->vmx, "snapshot.memory", file) : -ENOMEM;
    if (r < 0 || (r = hv_vmsn_set_number(record, "snapshot.memoryBytes", (uint64_t)json_integer_value(json_object_get(m, "bytes")))) < 0 ||
        (r = hv_vmsn_set_number(record, "snapshot.memoryCrc", (uint64_t)json_integer_value(json_object_get(m, "crc")))) < 0 ||
        (r = hv_vmx_set(&record->vmx, "snapshot.suspended", json_is_true(json_object_get(m, "suspended")) ? "1" : NULL)) < 0)
        return r;
    return hv_vmx_set(&record->vmx, "snapshot.accel", json_string_value(json_object_get(m, "accel")));
}

/* So that nobody takes one away from the others (disk.promote). */
static int mark_parts(struct hv_hostd *h, const struct hv_vm *vm, const char *name, struct gr_err *err)
{
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < vm->disk_count; i++) {
        r = hv_storage_call(&h->storage, "snapshot.part", json_pack("{s:s, s:s, s:s}", "disk", vm->disks[i].path, "snapshot", name, "of", vm->path), CREATE_MS, NULL, err);
        r = r == -EOPNOTSUPP ? 0 : r; /* its owner is of an earlier release */
    }
    return r;
}

/* From here on it exists, and the machine grows from it. */
static int record_end(struct hv_hostd *h, const struct hv_vm *vm, const struct order *o, const struct taken *k, struct hv_vm *record, struct gr_err *err)
{
    gr_auto(hv_vm_done) struct hv_vm now = {0};
    int r = k->memory ? record_memory(vm, o, k->memory, record) : 0;
    if (r < 0 || (r = hv_vmx_set(&record->vmx, "snapshot.consistency", k->t.consistency)) < 0 ||
        (r = hv_vmx_set(&record->vmx, "snapshot.state", "whole")) < 0)
        return gr_fail(err, r, "snapshot '%s' of '%s': %s", o->name, vm->path, gr_code_text(r));
    if ((r = hv_vmsn_write(&h->storage, o->name, record, err)) < 0 || (r = hv_storage_read_vm(&h->storage, vm->path, &now, err)) < 0)
        return r;
    r = hv_vmx_set(&now.vmx, "snapshot.current", o->name);
    return r < 0 ? gr_fail(err, r, "'%s': %s", vm->path, gr_code_text(r)) : hv_storage_write_vm(&h->storage, &now, err);
}

/* A name that is there already is refused before anything is written. */
static int names_free(struct hv_hostd *h, const struct hv_vm *vm, const char *name, struct gr_err *err)
{
    for (unsigned i = 0; i < vm->disk_count; i++) {
        json_auto_t *rows = NULL;
        int r = hv_storage_call(&h->storage, "snapshot.list", json_pack("{s:s}", "disk", vm->disks[i].path), CREATE_MS, &rows, err);
        if (r < 0)
            return r;
        if (hv_hostd_snapshot_row(rows, name))
            return gr_fail(err, -EEXIST, "'%s@%s' exists already", vm->disks[i].path, name);
    }
    return 0;
}

static int take_recorded(struct hv_hostd *h, const struct hv_vm *vm, const char *uuid, const struct order *o, struct gr_rpc_call *call, struct taken *k, struct gr_err *err)
{
    gr_auto(hv_vm_done) struct hv_vm record = {0};
    int r = hv_vmsn_name_check(vm->path, o->name, err);
    if (r < 0 || (r = hv_hostd_tidy_snapshots(h, vm->path, err)) < 0 || (r = names_free(h, vm, o->name, err)) < 0 || (r = record_begin(h, vm, o, &record, err)) < 0)
        return r;
    r = o->memory ? take_memory(h, vm, uuid, o, call, k, err) : take_disks(h, vm, uuid, o, k, err);
    if (r >= 0)
        r = mark_parts(h, vm, o->name, err);
    if (r >= 0)
        r = record_end(h, vm, o, k, &record, err);
    if (r < 0)
        (void)hv_hostd_tidy_snapshots(h, vm->path, NULL);
    return r;
}

/* Nobody has noted it: what a request that failed took after all is removed here. */
static int take_unrecorded(struct hv_hostd *h, const struct hv_vm *vm, const char *uuid, const struct order *o, struct taken *k, struct gr_err *err)
{
    int r = take_disks(h, vm, uuid, o, k, err);
    for (unsigned i = 0; r < 0 && i < vm->disk_count; i++)
        (void)hv_hostd_remove_part(h, vm->disks[i].path, o->name, o->group, NULL);
    return r;
}

static int read_order(struct hv_hostd *h, json_t *params, struct order *o, struct gr_err *err)
{
    const struct gr_world *w = gr_loop_world(h->loop);
    uint8_t group[16];
    int r;
    w->random(w->arg, group, sizeof group);
    gr_uuid_format(group, o->group);
    if ((r = gr_json_str(params, "name", &o->name, err)) < 0 || (r = gr_json_opt_bool(params, "quiesce", &o->quiesce, err)) < 0 ||
        (r = gr_json_opt_u64(params, "deadline-ms", &o->deadline_ms, err)) < 0 || (r = gr_json_opt_bool(params, "record", &o->record, err)) < 0 ||
        (r = gr_json_opt_bool(params, "memory", &o->memory, err)) < 0 || (r = gr_json_opt_str(params, "description", &o->description, err)) < 0)
        return r;
    if (o->description && strlen(o->description) > HV_VMSN_TEXT)
        return gr_fail(err, -GR_EUSAGE, "a description of %zu bytes, the longest allowed is %d", strlen(o->description), HV_VMSN_TEXT);
    o->record = o->record || o->memory;
    return 0;
}

int hv_hostd_m_snapshot(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_hostd *h = arg;
    struct order o = {.quiesce = true, .deadline_ms = FREEZE_DEADLINE_MS};
    gr_auto_free char *path = NULL;
    gr_auto(hv_vm_done) struct hv_vm vm = {0};
    gr_auto(taken_done) struct taken k = {0};
    struct hv_claim claim = {0};
    char uuid[37];
    int r = read_order(h, params, &o, err);
    if (r < 0 || (r = hv_hostd_resolve(h, params, &path, uuid, err)) < 0)
        return r;
    if (o.record && (r = hv_hostd_claim(h, &claim, path, uuid, "a snapshot of it is being taken", err)) < 0)
        return r;
    r = hv_storage_read_vm(&h->storage, path, &vm, err);
    if (r >= 0 && !vm.disk_count)
        r = gr_fail(err, -EINVAL, "'%s' has no disks", path);
    if (r >= 0 && hv_vmx_get(&vm.vmx, "snapshot.reverting"))
        r = gr_fail(err, -EBUSY, "'%s' is reverted in part: start it, or give the revert again, first", path);
    if (r >= 0)
        r = o.record ? take_recorded(h, &vm, uuid, &o, call, &k, err) : take_unrecorded(h, &vm, uuid, &o, &k, err);
    hv_hostd_unclaim(h, &claim);
    if (r < 0)
        return r;
    *ret = json_pack("{s:s, s:s, s:o, s:I, s:s, s:s, s:I}", "vm", path, "name", o.name, "disks", ticket_disks(&vm, o.name, k.made), "frozen-ms",
                     (json_int_t)k.t.frozen_ms, "consistency", k.t.consistency, "cause", k.t.cause, "memory", json_integer_value(json_object_get(k.memory, "bytes")));
    return *ret ? 0 : gr_fail(err, -ENOMEM, "out of memory");
}
