/* Snapshots of a virtual machine: its disks in one instant, its configuration, and perhaps its memory. Beside NAME.vmx lies NAME-SNAPSHOT.vmsn for
 * each: the .vmx of that instant, and these keys:
 *   snapshot.state = "making" | "whole" | "deleting"     what is not whole is finished or undone by whoever comes next
 *   snapshot.name = "before-upgrade"      snapshot.description = "…"     snapshot.created = "1795800000" (seconds since 1970)
 *   snapshot.parent = "…"                 the snapshot that the machine had grown from; absent: none
 *   snapshot.consistency = "filesystem" | "crash" | "memory"
 *   snapshot.group = "8-4-4-4-12"         of the disks' snapshots, there before they are: those of the same name and another group are not meant
 *   snapshot.memory = "DS/NAME/NAME-SNAPSHOT.vmem"       its bytes and their CRC32C: snapshot.memoryBytes, snapshot.memoryCrc
 *   snapshot.accel = "kvm" | "tcg"        what it ran on: memory can be loaded by the same only
 *   snapshot.suspended = "1"              its virtual CPUs stood still on request
 * Keys of the .vmx itself:
 *   snapshot.current = "…"                the snapshot that it grew from
 *   snapshot.reverting = "…"              a revert to this one has begun: nothing runs before it is over
 *   snapshot.resume = "…"                 the next start goes on from this one's memory; gone before a virtual CPU runs */
#ifndef HV_VMSN_H
#define HV_VMSN_H
#include "hv/storage.h"

#define HV_VMSN_TEXT 1024 /* bytes of a description */

/* "DS/NAME/NAME-SNAPSHOT.EXT"; new memory. */
char *hv_vmsn_path(const char *vm_path, const char *name, const char *ext);
/* Is @file, a name without folders, that of a file as above? */
bool hv_vmsn_is_file(const char *file, const char *vm_path, const char *ext);
/* A name that can be part of a file's. */
int hv_vmsn_name_check(const char *vm_path, const char *name, struct gr_err *err);
/* (fiber) One snapshot's record; -ENOENT says so. */
int hv_vmsn_read(const struct hv_storage *s, const char *vm_path, const char *name, struct hv_vm *ret, struct gr_err *err);
int hv_vmsn_write(const struct hv_storage *s, const char *name, struct hv_vm *record, struct gr_err *err);
/* (fiber) All, by the time they were made: release with hv_vmsn_list_done(). Those that cannot be read are left out, and logged. */
struct hv_vmsn_list {
    struct hv_vm *v;
    size_t n;
};
int hv_vmsn_list(const struct hv_storage *s, const char *vm_path, struct hv_vmsn_list *ret, struct gr_err *err);
void hv_vmsn_list_done(struct hv_vmsn_list *l);
/* A record's value; never NULL. */
const char *hv_vmsn_get(const struct hv_vm *record, const char *key);
bool hv_vmsn_is(const struct hv_vm *record, const char *key, const char *value);
uint64_t hv_vmsn_number(const struct hv_vm *record, const char *key);
int hv_vmsn_set_number(struct hv_vm *record, const char *key, uint64_t value);
#endif
