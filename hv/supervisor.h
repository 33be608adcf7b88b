/* The supervisor of one VM: owns its engine, agent channel, console log and freeze deadline; the body of granary-vmx.
 *
 * Files below the home: run/vm/UUID/ holds lock, record.json (what adoption needs), vmx.sock (the methods below) and the
 * engine's sockets; log/vm/UUID/ holds console.log and engine.log, both with a cap. The engine survives the supervisor; a
 * new supervisor (--adopt) takes it over. When the engine ends, run/vm/UUID/last.json tells how, and the supervisor ends.
 *
 * Methods on vmx.sock (params → result):
 *   vmx.info → {"path","uuid","state","engine","accel","accel-reason","pid","supervisor-pid","incarnation","agent":"up|down","frozen","memory","vcpus","since","console-lost"}
 *   vmx.wait {"for":"agent|off","timeout-ms"?}     vmx.stop {"force"?,"timeout-ms"?}      vmx.reset  vmx.suspend  vmx.resume
 *   vmx.exec {"argv":[…],"input-b64"?,"timeout-ms"?} → {"exit-code","out-b64","err-b64","truncated"}
 *   vmx.freeze {"deadline-ms"} → {"filesystems"}   vmx.thaw → {"frozen-ms"}
 *   vmx.save {"file","limit","disks","name"} parts {"done","total"} → {"bytes","crc","held-ms","accel","suspended","made"}: memory and devices to a new file
 *       of a datastore while the guest runs, of the same instant as snapshot "name" of "disks"; the guest goes on
 *   vmx.console {"follow"?} parts {"data-b64"}: what is kept of the console, then, with follow, what comes */
#ifndef HV_SUPERVISOR_H
#define HV_SUPERVISOR_H
#include "common/home.h"
#include "common/rpc.h"

struct hv_sup_opts {
    struct gr_loop *loop;
    struct gr_home *home;
    const char *path; /* "DS/NAME" */
    bool adopt;       /* take over a running engine; without it a new one is started */
    /* Called once: the VM runs (@code 0) or could not be started or adopted. May be NULL. */
    void (*ready)(void *arg, int code, const char *text);
    void *arg;
};
/* (fiber) Supervise until the engine has ended: 0, or why it could not be started or adopted. */
int hv_supervise(const struct hv_sup_opts *opts, struct gr_err *err);
/* Directory of a VM's run files, "run/vm/UUID" under the home, and log file NAME of it; new memory. */
char *hv_run_path(struct gr_home *home, const char *uuid, const char *name);
char *hv_log_path(struct gr_home *home, const char *uuid, const char *name);
#endif
