/* granary-vmx: the supervisor of one VM. Started by granary-hostd, in the manner of common/daemon.h. */
#include "common/cleanup.h"
#include "common/daemon.h"
#include "common/home.h"
#include "common/log.h"
#include "common/seam.h"
#include "hv/supervisor.h"
#include <signal.h>
#include <stdio.h>

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
    struct app a = {0};
    struct gr_err err = {0};
    struct gr_daemon_args args = {.usage = usage, .flag = "--adopt", .takes_name = true};
    int r = gr_daemon_args(argc, argv, &args);
    if (r >= 0)
        return r;
    a.ready_fd = args.ready_fd;
    a.opts.adopt = args.flagged;
    a.opts.path = args.name;
    signal(SIGPIPE, SIG_IGN);
    r = gr_log_open("granary-vmx", NULL, GR_LOG_INFO, &err);
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
