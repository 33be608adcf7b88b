/* A virtual machine as configured: a directory of a datastore ("DS/NAME") that holds NAME.vmx and usually its disks.
 *
 * Keys of the .vmx that mean something here (all others are kept untouched):
 *   granary.version = "1"           displayName = "web01"         uuid.bios = "8-4-4-4-12"
 *   memsize = "256"  (MiB)          numvcpus = "1"
 *   diskN.fileName = "DS/PATH"      diskN.interface = "virtio-blk" | "virtio-scsi"       N = 0..31; disk0 boots
 *   ethernet0.connectionType = "user" | "none"     ethernet0.address = "52:54:00:…"
 *   console.logMax = "1048576"      bytes of serial console log kept
 *   granary.incarnation = "7"       how often it was started; part of its initiator name */
#ifndef HV_VM_H
#define HV_VM_H
#include "hv/vmx.h"
#include <stdbool.h>

#define HV_DISKS_MAX 32
#define HV_MEMORY_MIN (64ull << 20)
#define HV_MEMORY_MAX (4ull << 40)
#define HV_VCPUS_MAX 255
#define HV_CONSOLE_MIN (64ull << 10)
#define HV_CONSOLE_MAX (1ull << 30)
enum hv_bus { HV_BUS_BLK, HV_BUS_SCSI };
struct hv_disk {
    char *path; /* "DS/PATH" */
    enum hv_bus bus;
};
struct hv_vm {
    char *path;       /* "DS/NAME", also NAME may hold '/' */
    char *name;       /* last part of path */
    char uuid[37];
    uint64_t memory;  /* bytes, a multiple of 1 MiB */
    unsigned vcpus;
    struct hv_disk disks[HV_DISKS_MAX];
    unsigned disk_count;
    bool nic;         /* user networking */
    char mac[18];
    uint64_t console_max; /* bytes */
    uint64_t incarnation;
    struct hv_vmx vmx; /* all keys as read */
};
/* "DS/NAME": at least two parts, none empty, "." or "..", no '@', ':', control character or bad UTF-8. -GR_EUSAGE. */
int hv_vm_path_check(const char *path, struct gr_err *err);
/* A new VM with a fresh uuid and MAC from @random (16 bytes) and nothing else set but defaults: 256 MiB, 1 vCPU, user NIC. */
int hv_vm_init(const char *path, const uint8_t random[16], struct hv_vm *ret, struct gr_err *err);
/* Read the .vmx text of the VM at @path. Errors name the file, the line or key, and the cause: -GR_EFORMAT. */
int hv_vm_decode(const char *path, const char *text, size_t len, struct hv_vm *ret, struct gr_err *err);
/* Write the fields back into the keys and append the .vmx text to @ret. 0 or -ENOMEM / -ENOSPC. */
int hv_vm_encode(struct hv_vm *vm, struct gr_buf *ret);
int hv_vm_add_disk(struct hv_vm *vm, const char *path, enum hv_bus bus, struct gr_err *err);
/* "DS/NAME/NAME.vmx"; new memory. */
char *hv_vm_config_path(const char *path);
/* "iqn.2026-11.local.granary:vm-<uuid>:<incarnation>"; new memory. */
char *hv_vm_initiator(const struct hv_vm *vm);
#define HV_INITIATOR_PREFIX "iqn.2026-11.local.granary:vm-"
void hv_vm_done(struct hv_vm *vm);
#endif
