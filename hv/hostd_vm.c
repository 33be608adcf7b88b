/* The host agent's methods that make, show and remove VMs. */
#include "common/cleanup.h"
#include "common/seam.h"
#include "hv/hostd_int.h"
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define STORAGE_MS 120000

int hv_hostd_describe(struct hv_hostd *h, const char *path, const char *uuid, json_t **ret, struct gr_err *err)
{
    gr_auto(hv_vm_done) struct hv_vm vm = {0};
    struct gr_err why = {0};
    gr_auto_free char *config = hv_vm_config_path(path);
    json_auto_t *live = NULL, *o = json_pack("{s:s, s:s, s:s, s:s, s:[]}", "vm", path, "uuid", uuid, "config", config ? config : "", "state", "off", "disks");
    static const char *const from_live[] = {"state", "engine", "accel", "accel-reason", "agent", "frozen", "pid", "since", "console-lost"};
    if (!o || !config)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = hv_hostd_vmx_wait(h, path, uuid, "vmx.info", NULL, NULL, 15000, &live, &why), bad = 0;
    if (r < 0 && r != -ENOENT && r != -ESRCH)
        bad |= json_object_set_new(o, "state", json_string("unknown")) | json_object_set_new(o, "error", json_string(gr_err_text(&why, r)));
    for (size_t i = 0; live && i < GR_ARRAY_LEN(from_live); i++) {
        json_t *v = json_object_get(live, from_live[i]);
        bad |= v ? json_object_set(o, from_live[i], v) : 0;
    }
    r = hv_storage_read_vm(&h->storage, path, &vm, &why);
    if (r < 0) {
        bad |= json_object_set_new(o, "error", json_string(gr_err_text(&why, r)));
    } else {
        for (unsigned i = 0; i < vm.disk_count; i++)
            bad |= json_array_append_new(json_object_get(o, "disks"), json_string(vm.disks[i].path));
        bad |= json_object_set_new(o, "memory", json_integer((json_int_t)vm.memory)) | json_object_set_new(o, "vcpus", json_integer(vm.vcpus)) |
               json_object_set_new(o, "incarnation", json_integer((json_int_t)vm.incarnation)) | json_object_set_new(o, "nic", json_boolean(vm.nic)) |
               json_object_set_new(o, "snapshot", json_string(hv_vmsn_get(&vm, "snapshot.current"))) |
               json_object_set_new(o, "reverting", json_string(hv_vmsn_get(&vm, "snapshot.reverting"))) |
               json_object_set_new(o, "resumes", json_boolean(*hv_vmsn_get(&vm, "snapshot.resume") != 0));
    }
    if (bad)
        return gr_fail(err, -ENOMEM, "out of memory");
    *ret = json_incref(o);
    return 0;
}

static int m_info(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_hostd *h = arg;
    gr_auto_free char *path = NULL;
    char uuid[37];
    int r = hv_hostd_resolve(h, params, &path, uuid, err);
    return r < 0 ? r : hv_hostd_describe(h, path, uuid, ret, err);
}

static int m_list(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_hostd *h = arg;
    json_auto_t *list = json_array();
    /* the registry may change while we wait for answers: go by position, each entry looked at once */
    for (size_t i = 0; list && i < h->registry.count; i++) {
        json_t *row = NULL;
        gr_auto_free char *path = gr_strdup(h->registry.v[i].path);
        char uuid[37];
        memcpy(uuid, h->registry.v[i].uuid, sizeof uuid);
        int r = path ? hv_hostd_describe(h, path, uuid, &row, err) : gr_fail(err, -ENOMEM, "out of memory");
        if (r < 0)
            return r;
        json_array_append_new(list, row);
    }
    *ret = gr_take(list);
    return *ret ? 0 : -ENOMEM;
}

/* Disks that were made for a VM whose creation failed go again. */
static void undo_disks(struct hv_hostd *h, json_t *made)
{
    size_t i;
    json_t *d;
    json_array_foreach(made, i, d)
        hv_storage_call(&h->storage, "disk.delete", json_pack("{s:O}", "disk", d), STORAGE_MS, NULL, NULL);
}

static int add_disk(struct hv_hostd *h, struct hv_vm *vm, json_t *spec, enum hv_bus bus, json_t *made, struct gr_err *err)
{
    const char *disk = NULL, *provision = NULL;
    uint64_t size = 0;
    int r;
    if ((r = gr_json_opt_str(spec, "disk", &disk, err)) < 0 || (r = gr_json_opt_u64(spec, "size", &size, err)) < 0 ||
        (r = gr_json_opt_str(spec, "provision", &provision, err)) < 0)
        return r;
    if (disk) {
        if ((r = hv_vm_path_check(disk, err)) < 0)
            return r;
        r = hv_storage_call(&h->storage, "disk.info", json_pack("{s:s}", "disk", disk), STORAGE_MS, NULL, err);
        return r < 0 ? r : hv_vm_add_disk(vm, disk, bus, err);
    }
    if (!size)
        return gr_fail(err, -GR_EUSAGE, "each disk needs a name or a size");
    gr_auto_free char *path = gr_asprintf("%s/disk%u", vm->path, vm->disk_count);
    json_auto_t *p = path ? json_pack("{s:s, s:I}", "disk", path, "size", (json_int_t)size) : NULL;
    if (!p || (provision && json_object_set_new(p, "provision", json_string(provision))))
        return gr_fail(err, -ENOMEM, "out of memory");
    r = hv_storage_call(&h->storage, "disk.create", gr_take(p), STORAGE_MS, NULL, err);
    if (r >= 0 && json_array_append_new(made, json_string(path)))
        r = gr_fail(err, -ENOMEM, "out of memory");
    return r < 0 ? r : hv_vm_add_disk(vm, path, bus, err);
}

static int read_settings(json_t *params, struct hv_vm *vm, enum hv_bus *bus, struct gr_err *err)
{
    uint64_t vcpus = vm->vcpus;
    const char *bus_name = NULL;
    int r;
    if ((r = gr_json_opt_u64(params, "memory", &vm->memory, err)) < 0 || (r = gr_json_opt_u64(params, "vcpus", &vcpus, err)) < 0 ||
        (r = gr_json_opt_bool(params, "nic", &vm->nic, err)) < 0 || (r = gr_json_opt_str(params, "bus", &bus_name, err)) < 0)
        return r;
    if (vm->memory < HV_MEMORY_MIN || vm->memory > HV_MEMORY_MAX || vm->memory % (1 << 20))
        return gr_fail(err, -GR_EUSAGE, "memory of %llu bytes: it must be whole MiB, from 64 MiB to 4 TiB", (unsigned long long)vm->memory);
    if (vcpus < 1 || vcpus > HV_VCPUS_MAX)
        return gr_fail(err, -GR_EUSAGE, "%llu virtual CPUs: it must be 1 to %d", (unsigned long long)vcpus, HV_VCPUS_MAX);
    if (bus_name && strcmp(bus_name, "virtio-blk") && strcmp(bus_name, "virtio-scsi"))
        return gr_fail(err, -GR_EUSAGE, "bus '%s' is neither virtio-blk nor virtio-scsi", bus_name);
    *bus = bus_name && !strcmp(bus_name, "virtio-scsi") ? HV_BUS_SCSI : HV_BUS_BLK;
    vm->vcpus = (unsigned)vcpus;
    return 0;
}

static int create(struct hv_hostd *h, json_t *params, const char *name, json_t *made, struct gr_err *err)
{
    gr_auto(hv_vm_done) struct hv_vm vm = {0}, other = {0};
    struct hv_reg_entry *e = NULL;
    uint8_t random[16];
    enum hv_bus bus = HV_BUS_BLK;
    size_t i;
    json_t *spec;
    gr_loop_world(h->loop)->random(gr_loop_world(h->loop)->arg, random, sizeof random);
    int r = hv_vm_init(name, random, &vm, err);
    if (r < 0 || (r = read_settings(params, &vm, &bus, err)) < 0)
        return r;
    r = hv_storage_read_vm(&h->storage, name, &other, err);
    if (r != -ENOENT || hv_registry_find(&h->registry, name, &e, NULL) >= 0) {
        bool there = r >= 0 || r == -GR_EFORMAT || r == -GR_EVERSION || r == -ENOENT;
        return there ? gr_fail(err, -EEXIST, "virtual machine '%s' exists already", name) : r;
    }
    json_array_foreach(json_object_get(params, "disks"), i, spec)
        if ((r = add_disk(h, &vm, spec, bus, made, err)) < 0)
            return r;
    hv_storage_call(&h->storage, "dir.make", json_pack("{s:s}", "path", name), STORAGE_MS, NULL, NULL); /* there already is fine */
    if ((r = hv_storage_write_vm(&h->storage, &vm, err)) < 0)
        return r;
    return hv_registry_add(&h->registry, name, vm.uuid, err);
}

static int m_create(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_hostd *h = arg;
    const char *name = NULL;
    json_auto_t *made = json_array();
    struct hv_reg_entry *e = NULL;
    int r = gr_json_str(params, "vm", &name, err);
    if (r < 0 || (r = hv_vm_path_check(name, err)) < 0)
        return r;
    gr_fmutex_lock(&h->lock);
    r = create(h, params, name, made, err);
    if (r < 0)
        undo_disks(h, made);
    gr_fmutex_unlock(&h->lock);
    if (r >= 0)
        r = hv_registry_find(&h->registry, name, &e, err);
    return r < 0 ? r : hv_hostd_describe(h, name, e->uuid, ret, err);
}

/* Remove directory @path of ours with the plain files in it. */
static void remove_flat_dir(const char *path)
{
    gr_auto_closedir DIR *d = path ? opendir(path) : NULL;
    struct dirent *e;
    while (d && (e = readdir(d)))
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
            unlinkat(dirfd(d), e->d_name, 0);
    if (d)
        rmdir(path);
}

static bool listed(json_t *list, const char *text)
{
    size_t i;
    json_t *v;
    json_array_foreach(list, i, v)
        if (!strcmp(json_string_value(v), text))
            return true;
    return false;
}

/* Disks inside the VM's directory belong to it; others only were used by it. */
static int delete_disks(struct hv_hostd *h, const struct hv_vm *vm, bool keep, json_t *deleted, json_t *kept, struct gr_err *err)
{
    size_t len = strlen(vm->path);
    for (unsigned i = 0; i < vm->disk_count; i++) {
        const char *disk = vm->disks[i].path;
        bool own = !strncmp(disk, vm->path, len) && disk[len] == '/';
        if (listed(deleted, disk) || listed(kept, disk))
            continue;
        if (own && !keep) {
            int r = hv_storage_call(&h->storage, "disk.delete", json_pack("{s:s}", "disk", disk), STORAGE_MS, NULL, err);
            if (r < 0 && r != -ENOENT)
                return r;
        }
        json_array_append_new(own && !keep ? deleted : kept, json_string(disk));
    }
    return 0;
}

/* Their records and memory, and disks that only they know. */
static int delete_snapshots(struct hv_hostd *h, const struct hv_vmsn_list *l, bool keep, json_t *deleted, json_t *kept, struct gr_err *err)
{
    int r = 0;
    for (size_t i = 0; r >= 0 && i < l->n; i++) {
        const char *name = hv_vmsn_get(&l->v[i], "snapshot.name");
        gr_auto_free char *memory = hv_vmsn_path(l->v[i].path, name, "vmem"), *file = hv_vmsn_path(l->v[i].path, name, "vmsn");
        if (!memory || !file)
            return gr_fail(err, -ENOMEM, "out of memory");
        if ((r = delete_disks(h, &l->v[i], keep, deleted, kept, err)) < 0)
            return r;
        for (unsigned k = 0; k < l->v[i].disk_count; k++) /* what stays is a snapshot like any other */
            (void)hv_storage_call(&h->storage, "snapshot.part", json_pack("{s:s, s:s, s:s}", "disk", l->v[i].disks[k].path, "snapshot", name, "of", ""), STORAGE_MS,
                                  NULL, NULL);
        r = hv_storage_call(&h->storage, "dir.remove", json_pack("{s:s}", "path", memory), STORAGE_MS, NULL, err);
        if (r >= 0 || r == -ENOENT)
            r = hv_storage_call(&h->storage, "dir.remove", json_pack("{s:s}", "path", file), STORAGE_MS, NULL, err);
        r = r == -ENOENT ? 0 : r;
    }
    return r;
}

/* Records that cannot be read, and memory whose record that is: theirs by their names and the folder. What disks they name nobody knows. */
static int delete_unread(struct hv_hostd *h, const char *path, json_t *unread, struct gr_err *err)
{
    json_auto_t *entries = NULL;
    json_t *e;
    size_t i;
    int r = hv_storage_call(&h->storage, "dir.list", json_pack("{s:s}", "path", path), STORAGE_MS, &entries, err);
    json_array_foreach(entries, i, e) {
        const char *name = json_string_value(json_object_get(e, "name"));
        bool record = name && hv_vmsn_is_file(name, path, "vmsn");
        if (r < 0 || !name || !(record || hv_vmsn_is_file(name, path, "vmem")))
            continue;
        r = hv_storage_call(&h->storage, "dir.remove", json_pack("{s:O}", "path", json_object_get(e, "path")), STORAGE_MS, NULL, err);
        if (r >= 0 && record)
            json_array_append(unread, json_object_get(e, "path"));
        r = r == -ENOENT ? 0 : r;
    }
    return r == -ENOENT ? 0 : r;
}

/* What is in its folder after all, but for disks that were to stay. */
static void list_left(struct hv_hostd *h, const char *path, json_t *kept, json_t *left)
{
    json_auto_t *entries = NULL;
    json_t *e;
    size_t i;
    (void)hv_storage_call(&h->storage, "dir.list", json_pack("{s:s}", "path", path), STORAGE_MS, &entries, NULL);
    json_array_foreach(entries, i, e) {
        json_t *file = json_object_get(e, "path");
        if (json_is_string(file) && !listed(kept, json_string_value(file)))
            json_array_append(left, file);
    }
}

struct deleted { /* paths */
    json_t *deleted, *kept; /* disks */
    json_t *unread;         /* records that could not be read, and were deleted */
    json_t *left;           /* what stays, as it is not known to be the VM's */
};

static void deleted_done(struct deleted *d)
{
    json_decref(d->deleted);
    json_decref(d->kept);
    json_decref(d->unread);
    json_decref(d->left);
}

/* In this order, so that a delete that was cut short can be given again. */
static int delete(struct hv_hostd *h, const char *path, const char *uuid, bool keep, struct deleted *d, struct gr_err *err)
{
    gr_auto(hv_vm_done) struct hv_vm vm = {0};
    gr_auto(hv_vmsn_list_done) struct hv_vmsn_list snapshots = {0};
    gr_auto_free char *config = hv_vm_config_path(path), *run = hv_run_path(h->home, uuid, ""), *log = hv_log_path(h->home, uuid, "");
    if (!config || !run || !log)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = hv_hostd_unclaimed(h, path, uuid, err);
    if (r < 0 || (r = hv_hostd_is_on(h, uuid, err)) < 0)
        return r;
    if (r > 0 || hv_hostd_has_record(h, uuid))
        return gr_fail(err, -EBUSY, "'%s' is on; stop it first", path);
    r = hv_storage_read_vm(&h->storage, path, &vm, err);
    if (r < 0 && r != -ENOENT)
        return r;
    if (r >= 0 && (r = delete_disks(h, &vm, keep, d->deleted, d->kept, err)) < 0)
        return r;
    r = hv_vmsn_list(&h->storage, path, &snapshots, err);
    if (r >= 0 && (r = delete_snapshots(h, &snapshots, keep, d->deleted, d->kept, err)) >= 0)
        r = delete_unread(h, path, d->unread, err);
    if (r < 0 && r != -ENOENT)
        return r;
    r = hv_storage_call(&h->storage, "dir.remove", json_pack("{s:s}", "path", config), STORAGE_MS, NULL, err);
    if (r < 0 && r != -ENOENT)
        return r;
    /* what else lies in the directory is not ours to remove: then it stays */
    if (hv_storage_call(&h->storage, "dir.remove", json_pack("{s:s}", "path", path), STORAGE_MS, NULL, NULL) < 0)
        list_left(h, path, d->kept, d->left);
    remove_flat_dir(run);
    remove_flat_dir(log);
    return hv_registry_remove(&h->registry, path, err);
}

static int m_delete(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_hostd *h = arg;
    gr_auto_free char *path = NULL;
    char uuid[37];
    bool keep = false;
    gr_auto(deleted_done) struct deleted d = {json_array(), json_array(), json_array(), json_array()};
    int r = gr_json_opt_bool(params, "keep-disks", &keep, err);
    if (r < 0 || (r = hv_hostd_resolve(h, params, &path, uuid, err)) < 0)
        return r;
    gr_fmutex_lock(&h->lock);
    hv_hostd_wait_started(h, uuid);
    r = delete(h, path, uuid, keep, &d, err);
    gr_fmutex_unlock(&h->lock);
    if (r >= 0)
        *ret = json_pack("{s:s, s:O, s:O, s:O, s:O}", "vm", path, "deleted", d.deleted, "kept", d.kept, "unread", d.unread, "left", d.left);
    return r;
}

static int m_register(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    return m_info(arg, call, params, ret, err);
}

static int m_unregister(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct hv_hostd *h = arg;
    struct hv_reg_entry *e = NULL;
    const char *name = NULL;
    int r = gr_json_str(params, "vm", &name, err);
    if (r < 0 || (r = hv_registry_find(&h->registry, name, &e, err)) < 0)
        return r;
    gr_auto_free char *path = gr_strdup(e->path);
    char uuid[37];
    memcpy(uuid, e->uuid, sizeof uuid);
    if (!path)
        return gr_fail(err, -ENOMEM, "out of memory");
    gr_fmutex_lock(&h->lock);
    hv_hostd_wait_started(h, uuid);
    r = hv_hostd_unclaimed(h, path, uuid, err);
    if (r >= 0 && hv_hostd_has_record(h, uuid))
        r = gr_fail(err, -EBUSY, "'%s' is on; stop it first", path);
    if (r >= 0)
        r = hv_registry_remove(&h->registry, path, err);
    gr_fmutex_unlock(&h->lock);
    return r;
}

const struct gr_rpc_method hv_hostd_vm_methods[] = {
    {"vm.create", m_create}, {"vm.list", m_list},         {"vm.info", m_info},
    {"vm.delete", m_delete}, {"vm.register", m_register}, {"vm.unregister", m_unregister}, {NULL, NULL},
};
