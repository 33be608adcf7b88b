/* granary-vmx: the supervisor of one VM. Started by granary-hostd, in the manner of common/daemon.h. */
#include "common/cleanup.h"
#include "common/daemon.h"
#include "common/home.h"
#include "common/log.h"
#include "common/seam.h"
#include "hv/supervisor.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] = "usage: granary-vmx [options] DATASTORE/NAME\n"
                            "Supervises one virtual machine: starts its engine and stays with it until it ends.\n"
                            "It is started by granary-hostd; people use 'granary vm'.\n"
                            "  --adopt        take over the engine that runs, instead of starting one\n"
                            "  --ready-fd N   tell descriptor N how the start went\n";

struct app {
    struct gr_home *home;
    struct gr_loop *loop;
    struct hv_sup_opts opts;
    int ready_fd;
};

static void ready(void *arg, int code, const char *text)
{
    struct app *a = arg;
    gr_daemon_ready(a->ready_fd, code, text);
    a->ready_fd = -1;
}

static int supervise(void *arg)
{
    struct app *a = arg;
    struct gr_err err = {0};
    int r = hv_supervise(&a->opts, &err);
    if (r < 0)
        gr_log(GR_LOG_ERR, "vm=%s: %s", a->opts.path, gr_err_text(&err, r));
    return r;
}

int main(int argc, char **argv)
{
    struct app a = {.ready_fd = -1};
    struct gr_err err = {0};
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--help")) {
            fputs(usage, stdout);
            return 0;
        } else if (!strcmp(argv[i], "--adopt")) {
            a.opts.adopt = true;
        } else if (!strcmp(argv[i], "--ready-fd") && i + 1 < argc) {
            a.ready_fd = (int)strtol(argv[++i], NULL, 10);
        } else if (argv[i][0] != '-' && !a.opts.path) {
            a.opts.path = argv[i];
        } else {
            fputs(usage, stderr);
            return 2;
        }
    }
    if (!a.opts.path) {
        fputs(usage, stderr);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    int r = gr_log_open("granary-vmx", NULL, GR_LOG_INFO, &err);
    if (r >= 0)
        r = gr_home_open(1, &a.home, &err);
    if (r >= 0)
        r = gr_loop_new(NULL, &a.loop, &err);
    if (r < 0) {
        ready(&a, r, gr_err_text(&err, r));
        fprintf(stderr, "granary-vmx: %s\n", gr_err_text(&err, r));
        return gr_code_exit(r);
    }
    a.opts.loop = a.loop;
    a.opts.home = a.home;
    a.opts.ready = ready;
    a.opts.arg = &a;
    r = gr_fiber_run(a.loop, supervise, &a);
    return gr_code_exit(r);
}
