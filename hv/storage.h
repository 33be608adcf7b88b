/* What hv/ asks of the storage service of its home (run/storaged.sock): VM configurations, disks, where LUNs are. */
#ifndef HV_STORAGE_H
#define HV_STORAGE_H
#include "common/home.h"
#include "common/rpc.h"
#include "hv/engine.h"
#include "hv/vm.h"

struct hv_storage {
    struct gr_loop *loop;
    struct gr_home *home;
};
/* (fiber) One call; @params reference is taken. Nobody there: -ECONNREFUSED with a sentence that says to run
 * "granary up"; -ENOENT is what the service says of a thing. */
int hv_storage_call(const struct hv_storage *s, const char *method, json_t *params, uint64_t timeout_ms, json_t **ret, struct gr_err *err);
/* (fiber) A file with the keys of the VM at @vm_path, perhaps among others: "DS/NAME/FILE". */
int hv_storage_read_config(const struct hv_storage *s, const char *file, const char *vm_path, struct hv_vm *ret, struct gr_err *err);
int hv_storage_write_config(const struct hv_storage *s, const char *file, struct hv_vm *vm, struct gr_err *err);
/* (fiber) Read and write the .vmx of the VM at @path. */
int hv_storage_read_vm(const struct hv_storage *s, const char *path, struct hv_vm *ret, struct gr_err *err);
int hv_storage_write_vm(const struct hv_storage *s, struct hv_vm *vm, struct gr_err *err);
/* (fiber) Address of @disk, with its CHAP secret from conf/chap/USER where the LUN wants one. */
int hv_storage_lun(const struct hv_storage *s, const char *disk, struct hv_lun *ret, struct gr_err *err);
/* (fiber) Nobody but this VM may write its disks: sessions of older incarnations of it are cut; those of another VM, -GR_ELOCKED. */
int hv_storage_fence(const struct hv_storage *s, const struct hv_vm *vm, struct gr_err *err);
/* (fiber) -GR_ELOCKED: this VM itself is at work on one of its disks; it runs here, or on another host. */
int hv_storage_idle(const struct hv_storage *s, const struct hv_vm *vm, struct gr_err *err);
#endif
