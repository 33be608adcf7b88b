/* Inside of the supervisor: shared by supervisor.c (life), supervisor_rpc.c (methods) and console.c. */
#ifndef HV_SUPERVISOR_INT_H
#define HV_SUPERVISOR_INT_H
#include "hv/console.h"
#include "hv/freeze.h"
#include "hv/storage.h"
#include "hv/supervisor.h"

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
    struct gr_fqueue changed; /* ended, agent, state */
};
extern const struct gr_rpc_method hv_sup_methods[];
#endif
