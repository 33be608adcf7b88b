#include "iscsi-target/cmd_ask.h"
#include "common/cleanup.h"
#include "common/home.h"
#include "common/rpc.h"
#include <stdio.h>

#define SOCKET "run/storaged.sock"
#define CALL_TIMEOUT_MS 60000

int tgt_cmd_ask_if(struct gr_cmd_ctx *c, const char *method, json_t *params, json_t **ret, struct gr_err *err)
{
    struct gr_home *home = NULL;
    struct gr_rpc_client *client = NULL;
    int r = gr_home_open(0, &home, err);
    if (r < 0) {
        json_decref(params);
        return r;
    }
    gr_auto_free char *path = gr_home_path(home, SOCKET);
    gr_home_free(home);
    r = path ? gr_rpc_connect(gr_cmd_loop(c), path, &client, err) : -ENOMEM;
    if (r < 0) {
        json_decref(params);
        return r == -ENOENT ? -ECONNREFUSED : r;
    }
    r = gr_rpc_call(client, method, params, NULL, NULL, CALL_TIMEOUT_MS, ret, err);
    gr_rpc_client_free(client);
    return r;
}

int tgt_cmd_ask(struct gr_cmd_ctx *c, const char *method, json_t *params, json_t **ret, struct gr_err *err)
{
    int r = tgt_cmd_ask_if(c, method, params, ret, err);
    return r == -ECONNREFUSED ? gr_fail(err, r, "the storage daemon does not run; start it with 'granary up'") : r;
}

int tgt_cmd_rows(struct gr_cmd_ctx *c, const char *method, json_t *params, const struct gr_col *cols, struct gr_err *err)
{
    json_t *result = NULL;
    int r = tgt_cmd_ask_if(c, method, params, &result, err);
    if (r == -ECONNREFUSED) {
        fputs("note: the storage daemon does not run; 'granary up' starts it\n", stderr);
        result = json_array();
        r = result ? 0 : -ENOMEM;
    }
    if (r < 0)
        return r;
    r = gr_cmd_rows(c, cols, result);
    json_decref(result);
    return r;
}
