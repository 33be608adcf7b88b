/* The commands "granary vm …" and the way to the host agent that other commands use too. */
#ifndef HV_CMD_VM_H
#define HV_CMD_VM_H
#include "common/cmd.h"
#include "common/home.h"

/* For gr_cmd_main's tables; its app is not used. */
extern const struct gr_cmd hv_vm_commands[], hv_vm_snapshot_commands[];
/* (fiber) Call the host agent of GRANARY_HOME, starting it when it does not run. @params reference is taken. */
int hv_host_call(struct gr_loop *loop, const char *method, json_t *params, int (*on_part)(void *arg, json_t *part), void *part_arg, int64_t timeout_ms,
                 json_t **ret, struct gr_err *err);
/* (fiber) Make sure that the host agent of GRANARY_HOME runs: 1 it was started now, 0 it ran already. */
int hv_host_ensure(struct gr_loop *loop, struct gr_err *err);
#endif
