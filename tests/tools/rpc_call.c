/* rpc_call SOCKET METHOD [PARAMS]: one request; prints each part and the result as a line of JSON. With --hold the connection
 * stays open until standard input ends. Exit status as granary. */
#include "common/rpc.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct run {
    struct gr_loop *loop;
    char **argv;
    bool hold;
};

static int print(void *arg, json_t *v)
{
    json_dumpf(v, stdout, JSON_COMPACT | JSON_ENCODE_ANY);
    putchar('\n');
    fflush(stdout);
    return 0;
}

static int body(void *arg)
{
    struct run *run = arg;
    struct gr_rpc_client *c = NULL;
    struct gr_err err = {0};
    json_error_t je;
    json_t *res = NULL, *params = json_loads(run->argv[2] ? run->argv[2] : "{}", 0, &je);
    int r = params ? gr_rpc_connect(run->loop, run->argv[0], &c, &err) : gr_fail(&err, -GR_EUSAGE, "PARAMS: %s", je.text);
    if (r == 0)
        r = gr_rpc_call(c, run->argv[1], params, print, NULL, -1, &res, &err);
    if (r == 0)
        print(NULL, res);
    char byte;
    while (r == 0 && run->hold && read(0, &byte, 1) > 0)
        ;
    if (r < 0)
        fprintf(stderr, "rpc_call: %s\n", gr_err_text(&err, r));
    json_decref(res);
    gr_rpc_client_free(c);
    return r;
}

int main(int argc, char **argv)
{
    struct run run = {.argv = argv + 1};
    if (argc > 1 && strcmp(argv[1], "--hold") == 0) {
        run.hold = true;
        run.argv++;
    }
    if (!run.argv[0] || !run.argv[1] || gr_loop_new(NULL, &run.loop, NULL) < 0) {
        fprintf(stderr, "usage: rpc_call [--hold] SOCKET METHOD [PARAMS]\n");
        return 2;
    }
    int r = gr_fiber_run(run.loop, body, &run);
    gr_loop_free(run.loop);
    return gr_code_exit(r);
}
