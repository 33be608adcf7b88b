/* Inside of the host agent: hostd.c (life, adoption), hostd_vm.c (create, list, delete), hostd_run.c (start, forwarding),
 * hostd_snapshot.c (taking one), hostd_revert.c (the rest of snapshots). */
#ifndef HV_HOSTD_INT_H
#define HV_HOSTD_INT_H
#include "hv/hostd.h"
#include "hv/registry.h"
#include "hv/storage.h"
#include "hv/supervisor.h"
#include "hv/vmsn.h"

/* Work on one VM that takes a while and that nothing may come between. */
struct hv_claim {
    struct hv_claim *next;
    char uuid[37];
    const char *what; /* "it is being reverted" */
    bool starting;    /* a supervisor of it is being started, not under the lock: memory may take long to load */
};
struct hv_hostd {
    struct gr_loop *loop;
    struct gr_home *home;
    struct hv_storage storage;
    struct hv_registry registry;
    struct gr_fmutex lock; /* changes of the registry, starts and deletes: one at a time */
    struct hv_claim *claims;
    struct gr_fqueue unclaimed;
    struct gr_rpc_server *server;
    bool ending;
    struct gr_fqueue end;
};
extern const struct gr_rpc_method hv_hostd_vm_methods[], hv_hostd_run_methods[], hv_hostd_snapshot_methods[];
/* (fiber) The VM that params' "vm" names: new memory in *ret_path. One that is not registered is, when it is named in full. */
int hv_hostd_resolve(struct hv_hostd *h, json_t *params, char **ret_path, char ret_uuid[37], struct gr_err *err);
/* (fiber) Call the supervisor of @uuid. -ENOENT or -ECONNREFUSED: there is none, the VM is off. @call not NULL: parts are passed on. */
int hv_hostd_vmx(struct hv_hostd *h, const char *uuid, const char *method, json_t *params, struct gr_rpc_call *call, int64_t timeout_ms, json_t **ret,
                 struct gr_err *err);
/* (fiber) The same, not under the lock: while the VM is being started or adopted, waits for that first; an engine that runs without
 * a supervisor gets one. */
int hv_hostd_vmx_wait(struct hv_hostd *h, const char *path, const char *uuid, const char *method, json_t *params, struct gr_rpc_call *call, int64_t timeout_ms, json_t **ret,
                      struct gr_err *err);
/* (fiber) Is @uuid on? 1 or 0; a supervisor that is just ending is waited for. -EBUSY: it does not end; its own error. */
int hv_hostd_is_on(struct hv_hostd *h, const char *uuid, struct gr_err *err);
/* (fiber) One VM as vm.info gives it. */
int hv_hostd_describe(struct hv_hostd *h, const char *path, const char *uuid, json_t **ret, struct gr_err *err);
enum hv_start { HV_START_ADOPT, HV_START_NEW, HV_START_RESUME /* from memory, which may take long to load */ };
/* (fiber) Start a supervisor and wait for its verdict; afterwards it is watched and replaced when it dies. Adopting: under the lock; else only with a
 * claim that says so, as it may take long. */
int hv_hostd_supervise(struct hv_hostd *h, const char *path, const char *uuid, enum hv_start how, struct gr_err *err);
/* True while an engine of @uuid may be running (its record is there). */
bool hv_hostd_has_record(struct hv_hostd *h, const char *uuid);
/* (fiber) Claim the VM: waits for a start or delete under way first. -EBUSY: claimed already, by what. The claim is the caller's memory until unclaimed (which
 * one that was not made may be). */
int hv_hostd_claim(struct hv_hostd *h, struct hv_claim *c, const char *path, const char *uuid, const char *what, struct gr_err *err);
void hv_hostd_unclaim(struct hv_hostd *h, struct hv_claim *c);
void hv_hostd_claim_start(struct hv_hostd *h, struct hv_claim *c, const char *uuid); /* (under the lock, unclaimed) To start it not under the lock */
/* (fiber, under the lock, which is left meanwhile) Until @uuid, NULL: none, is being started. */
void hv_hostd_wait_started(struct hv_hostd *h, const char *uuid);
int hv_hostd_unclaimed(const struct hv_hostd *h, const char *path, const char *uuid, struct gr_err *err); /* 0 or -EBUSY */

/* ---- snapshots ---- */
int hv_hostd_m_snapshot(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err);
/* (fiber) The snapshot @name of @disk goes, if it is of that group; if it is still under way (a request that nobody waits for), then after that. */
int hv_hostd_remove_part(struct hv_hostd *h, const char *disk, const char *name, const char *group, struct gr_err *err);
/* (fiber, VM claimed) Snapshots of which taking or deleting was cut short go. */
int hv_hostd_tidy_snapshots(struct hv_hostd *h, const char *path, struct gr_err *err);
/* (fiber, under the lock, VM off) A revert that was cut short is finished. *ret_resumes: the next start goes on from memory. */
int hv_hostd_finish_revert(struct hv_hostd *h, const char *path, bool *ret_resumes, struct gr_err *err);
/* Of rows of snapshot.list the one of that name; borrowed, NULL. */
json_t *hv_hostd_snapshot_row(json_t *rows, const char *name);
#endif
