/* Inside of the supervisor: shared by supervisor.c (life), supervisor_rpc.c (methods),
 * supervisor_memory.c and console.c. */
#ifndef HV_SUPERVISOR_INT_H
#define HV_SUPERVISOR_INT_H
#include "hv/console.h"
#include "hv/freeze.h"
#include "hv/memory_file.h"
#include "hv/storage.h"
#include "hv/supervisor.h"
#include "hv/vmsn.h"

enum hv_starting { HV_STARTING_NOT, HV_STARTING_RUNNING, HV_STARTING_SUSPENDED /* what it will be; its virtual CPUs have not run yet */ };
enum hv_saving { HV_SAVING_NOT, HV_SAVING_RUNNING, HV_SAVING_SUSPENDED /* what the guest was */ };
struct hv_sup {
    const struct hv_sup_opts *opts;
    struct hv_storage storage;
    struct hv_vm vm;
    char *dir; /* run/vm/UUID */
    struct hv_engine *engine;
    enum hv_accel accel;
    char accel_reason[200];
    struct hv_qga *qga;
    struct hv_freezer *freezer;
    struct hv_console *console;
    struct hv_logcap *engine_log;
    struct gr_rpc_server *server;
    bool ended;       /* the engine is gone */
    bool stopping;    /* on request */
    bool check_state; /* the engine paused: look why */
    char how[400];    /* it ended */
    int64_t since;    /* wall clock of the start */
    unsigned calls;   /* methods under way */
    enum hv_starting starting; /* in the record, too: whoever adopts it finishes the start */
    enum hv_saving saving; /* a snapshot of its memory is being taken */
    uint64_t stopped_ns; /* when its virtual CPUs were last stopped */
    struct gr_fqueue changed; /* ended, agent, state */
};
extern const struct gr_rpc_method hv_sup_methods[];
int hv_sup_save_record(struct hv_sup *s);

/* What a start goes on from. */
struct hv_sup_memory {
    struct hv_vm record; /* of the snapshot */
    struct hv_memory_file *file; /* NULL: from nothing */
    int fd;
    bool suspended;
};
/* (fiber) When the configuration says so, have the memory come. End in any case; @loaded: the engine has it, and this is 0 when it is what was written. */
int hv_sup_memory_begin(struct hv_sup *s, struct hv_sup_memory *m, struct gr_err *err);
int hv_sup_memory_end(struct hv_sup *s, struct hv_sup_memory *m, bool loaded, struct gr_err *err);
/* (fiber) The virtual CPUs go (or stand still, if they did then); before that nothing loads the memory again, and if they did not go, then it does. */
int hv_sup_go_on(struct hv_sup *s, struct gr_err *err);
void hv_sup_memory_done(struct hv_sup_memory *m);
int hv_sup_m_save(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err);
int hv_sup_m_save_encrypted(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err);
int hv_sup_not_saving(const struct hv_sup *s, struct gr_err *err); /* 0 or -EBUSY */
#endif
