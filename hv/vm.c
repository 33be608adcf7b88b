#include "hv/vm.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <stdio.h>
#include <string.h>

#define PATH_MAX_BYTES 1024

int hv_vm_path_check(const char *path, struct gr_err *err)
{
    size_t len = strlen(path), parts = 1, start = 0;
    if (len > PATH_MAX_BYTES)
        return gr_fail(err, -GR_EUSAGE, "a name of %zu bytes, the longest allowed is %d", len, PATH_MAX_BYTES);
    if (!gr_utf8_ok(path, len))
        return gr_fail(err, -GR_EUSAGE, "the name holds control characters or is not UTF-8");
    if (strpbrk(path, "@:"))
        return gr_fail(err, -GR_EUSAGE, "'%s': '@' and ':' are not allowed in names", path);
    for (size_t i = 0; i <= len; i++) {
        if (path[i] != '/' && path[i])
            continue;
        size_t n = i - start;
        if (!n || (n == 1 && path[start] == '.') || (n == 2 && path[start] == '.' && path[start + 1] == '.'))
            return gr_fail(err, -GR_EUSAGE, "'%s': a part is empty, '.' or '..'", path);
        if (n > 255)
            return gr_fail(err, -GR_EUSAGE, "'%s': a part of %zu bytes, the longest allowed is 255", path, n);
        parts += path[i] == '/';
        start = i + 1;
    }
    if (parts < 2)
        return gr_fail(err, -GR_EUSAGE, "'%s' is not DATASTORE/PATH", path);
    return 0;
}

static int set_path(struct hv_vm *vm, const char *path, struct gr_err *err)
{
    int r = hv_vm_path_check(path, err);
    if (r < 0)
        return r;
    vm->path = gr_strdup(path);
    vm->name = gr_strdup(strrchr(path, '/') + 1);
    return vm->path && vm->name ? 0 : gr_fail(err, -ENOMEM, "out of memory");
}

int hv_vm_init(const char *path, const uint8_t random[16], struct hv_vm *ret, struct gr_err *err)
{
    gr_auto(hv_vm_done) struct hv_vm vm = {.memory = 256u << 20, .vcpus = 1, .nic = true, .console_max = 1u << 20};
    int r = set_path(&vm, path, err);
    if (r < 0)
        return r;
    uint8_t uuid[16];
    memcpy(uuid, random, 16);
    uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x40); /* RFC 4122 version 4, variant 1 */
    uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
    gr_uuid_format(uuid, vm.uuid);
    snprintf(vm.mac, sizeof vm.mac, "52:54:00:%02x:%02x:%02x", random[13], random[14], random[15]);
    *ret = vm;
    vm = (struct hv_vm){0};
    return 0;
}

int hv_vm_add_disk(struct hv_vm *vm, const char *path, enum hv_bus bus, struct gr_err *err)
{
    int r = hv_vm_path_check(path, err);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < vm->disk_count; i++)
        if (!strcmp(vm->disks[i].path, path))
            return gr_fail(err, -GR_EUSAGE, "disk '%s' is given twice", path);
    if (vm->disk_count == HV_DISKS_MAX)
        return gr_fail(err, -GR_EUSAGE, "a virtual machine has at most %d disks", HV_DISKS_MAX);
    char *copy = gr_strdup(path);
    if (!copy)
        return gr_fail(err, -ENOMEM, "out of memory");
    vm->disks[vm->disk_count++] = (struct hv_disk){copy, bus};
    return 0;
}

/* Number of @key within [min, max]; *ret alone when the key is absent. */
static int number(const struct hv_vmx *v, const char *key, uint64_t min, uint64_t max, uint64_t *ret, struct gr_err *err)
{
    const char *text = hv_vmx_get(v, key);
    if (!text)
        return 0;
    if (gr_parse_u64(text, min, max, ret, NULL) < 0)
        return gr_fail(err, -GR_EFORMAT, "%s = \"%s\" is not a number from %llu to %llu", key, text, (unsigned long long)min, (unsigned long long)max);
    return 0;
}

static bool mac_ok(const char *m)
{
    for (int i = 0; i < 17; i++)
        if (i % 3 == 2 ? m[i] != ':' : !m[i] || !strchr("0123456789abcdefABCDEF", m[i]))
            return false;
    /* not a group address */
    return !m[17] && strchr("02468aceACE", m[1]);
}

static int decode_disks(struct hv_vm *vm, struct gr_err *err)
{
    for (unsigned i = 0; i < HV_DISKS_MAX; i++) {
        char key[32], bus_key[32];
        snprintf(key, sizeof key, "disk%u.fileName", i);
        snprintf(bus_key, sizeof bus_key, "disk%u.interface", i);
        const char *path = hv_vmx_get(&vm->vmx, key), *bus = hv_vmx_get(&vm->vmx, bus_key);
        if (!path)
            continue;
        enum hv_bus b = HV_BUS_BLK;
        if (bus && !strcmp(bus, "virtio-scsi"))
            b = HV_BUS_SCSI;
        else if (bus && strcmp(bus, "virtio-blk"))
            return gr_fail(err, -GR_EFORMAT, "%s = \"%s\" is neither virtio-blk nor virtio-scsi", bus_key, bus);
        int r = hv_vm_add_disk(vm, path, b, err);
        if (r < 0)
            return gr_prefix(err, r == -GR_EUSAGE ? -GR_EFORMAT : r, "%s", key);
    }
    return 0;
}

static int decode_fields(struct hv_vm *vm, struct gr_err *err)
{
    uint64_t version = 0, memory = vm->memory >> 20, vcpus = vm->vcpus;
    int r = number(&vm->vmx, "granary.version", 1, UINT32_MAX, &version, err);
    if (r < 0)
        return r;
    if (version != 1)
        return gr_fail(err, version ? -GR_EVERSION : -GR_EFORMAT, version ? "granary.version = \"%llu\" is not known to this build" : "granary.version is missing (%llu)",
                       (unsigned long long)version);
    uint8_t uuid[16];
    const char *text = hv_vmx_get(&vm->vmx, "uuid.bios");
    if (!text || gr_uuid_parse(text, uuid) < 0)
        return gr_fail(err, -GR_EFORMAT, "uuid.bios is %s%s", text ? "no UUID: " : "missing", text ? text : "");
    gr_uuid_format(uuid, vm->uuid);
    if ((r = number(&vm->vmx, "memsize", HV_MEMORY_MIN >> 20, HV_MEMORY_MAX >> 20, &memory, err)) < 0 ||
        (r = number(&vm->vmx, "numvcpus", 1, HV_VCPUS_MAX, &vcpus, err)) < 0 ||
        (r = number(&vm->vmx, "console.logMax", HV_CONSOLE_MIN, HV_CONSOLE_MAX, &vm->console_max, err)) < 0 ||
        (r = number(&vm->vmx, "granary.incarnation", 0, INT64_MAX, &vm->incarnation, err)) < 0)
        return r;
    vm->memory = memory << 20;
    vm->vcpus = (unsigned)vcpus;
    text = hv_vmx_get(&vm->vmx, "ethernet0.connectionType");
    if (text && strcmp(text, "user") && strcmp(text, "none"))
        return gr_fail(err, -GR_EFORMAT, "ethernet0.connectionType = \"%s\" is neither user nor none", text);
    vm->nic = !text || !strcmp(text, "user");
    text = hv_vmx_get(&vm->vmx, "ethernet0.address");
    if (text && !mac_ok(text))
        return gr_fail(err, -GR_EFORMAT, "ethernet0.address = \"%s\" is no MAC address of one machine", text);
    if (text)
        memcpy(vm->mac, text, sizeof vm->mac);
    else
        snprintf(vm->mac, sizeof vm->mac, "52:54:00:%02x:%02x:%02x", uuid[13], uuid[14], uuid[15]);
    return decode_disks(vm, err);
}

int hv_vm_decode(const char *path, const char *text, size_t len, struct hv_vm *ret, struct gr_err *err)
{
    gr_auto(hv_vm_done) struct hv_vm vm = {.memory = 256u << 20, .vcpus = 1, .console_max = 1u << 20};
    int r = set_path(&vm, path, err);
    if (r < 0)
        return r;
    r = hv_vmx_parse(text, len, &vm.vmx, err);
    if (r >= 0)
        r = decode_fields(&vm, err);
    if (r < 0)
        return gr_prefix(err, r, "%s/%s.vmx", vm.path, vm.name);
    *ret = vm;
    vm = (struct hv_vm){0};
    return 0;
}

static int set_number(struct hv_vmx *v, const char *key, uint64_t n)
{
    char text[24];
    snprintf(text, sizeof text, "%llu", (unsigned long long)n);
    return hv_vmx_set(v, key, text);
}

int hv_vm_encode(struct hv_vm *vm, struct gr_buf *ret)
{
    struct hv_vmx *v = &vm->vmx;
    int r;
    if ((r = hv_vmx_set(v, "granary.version", "1")) < 0 || (r = hv_vmx_set(v, "displayName", vm->name)) < 0 ||
        (r = hv_vmx_set(v, "uuid.bios", vm->uuid)) < 0 || (r = set_number(v, "memsize", vm->memory >> 20)) < 0 ||
        (r = set_number(v, "numvcpus", vm->vcpus)) < 0)
        return r;
    for (unsigned i = 0; i < HV_DISKS_MAX; i++) {
        char key[32];
        snprintf(key, sizeof key, "disk%u.fileName", i);
        if ((r = hv_vmx_set(v, key, i < vm->disk_count ? vm->disks[i].path : NULL)) < 0)
            return r;
        snprintf(key, sizeof key, "disk%u.interface", i);
        if ((r = hv_vmx_set(v, key, i >= vm->disk_count ? NULL : vm->disks[i].bus == HV_BUS_SCSI ? "virtio-scsi" : "virtio-blk")) < 0)
            return r;
    }
    if ((r = hv_vmx_set(v, "ethernet0.connectionType", vm->nic ? "user" : "none")) < 0 || (r = hv_vmx_set(v, "ethernet0.address", vm->mac)) < 0 ||
        (r = set_number(v, "console.logMax", vm->console_max)) < 0 || (r = set_number(v, "granary.incarnation", vm->incarnation)) < 0)
        return r;
    return hv_vmx_format(v, ret);
}

char *hv_vm_config_path(const char *path)
{
    const char *slash = strrchr(path, '/');
    return gr_asprintf("%s/%s.vmx", path, slash ? slash + 1 : path);
}

char *hv_vm_initiator(const struct hv_vm *vm)
{
    return gr_asprintf(HV_INITIATOR_PREFIX "%s:%llu", vm->uuid, (unsigned long long)vm->incarnation);
}

void hv_vm_done(struct hv_vm *vm)
{
    for (unsigned i = 0; i < vm->disk_count; i++)
        free(vm->disks[i].path);
    free(vm->path);
    free(vm->name);
    hv_vmx_done(&vm->vmx);
    *vm = (struct hv_vm){0};
}
