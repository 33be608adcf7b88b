/* granary-hostd: the host agent. In the foreground; --ready-fd gets one line once the socket answers. */
#include "common/cleanup.h"
#include "common/daemon.h"
#include "common/home.h"
#include "common/log.h"
#include "hv/hostd.h"
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static const char usage[] = "usage: granary-hostd [options]\n"
                            "Serves the virtual machines of GRANARY_HOME on run/hostd.sock, in the foreground, until SIGTERM.\n"
                            "Virtual machines run on without it.\n"
                            "  --ready-fd N   tell descriptor N how the start went\n";

struct app {
    struct gr_home *home;
    struct gr_loop *loop;
    int ready_fd;
    bool stop;
};

static void ready(void *arg)
{
    struct app *a = arg;
    gr_auto_free char *pid_file = gr_home_path(a->home, "run/hostd.pid");
    if (pid_file)
        gr_daemon_pidfile(pid_file, NULL);
    gr_daemon_ready(a->ready_fd, 0, "");
    a->ready_fd = -1;
}

static void on_signal(void *arg, int signo)
{
    struct app *a = arg;
    a->stop = true;
}

static int run(void *arg)
{
    struct app *a = arg;
    struct gr_err err = {0};
    int r = hv_hostd_run(a->loop, a->home, &a->stop, ready, a, &err);
    if (r < 0) {
        gr_log(GR_LOG_ERR, "%s", gr_err_text(&err, r));
        gr_daemon_ready(a->ready_fd, r, gr_err_text(&err, r));
    }
    return r;
}

int main(int argc, char **argv)
{
    struct app a = {0};
    struct gr_err err = {0};
    struct gr_daemon_args args = {.usage = usage};
    int r = gr_daemon_args(argc, argv, &args);
    if (r >= 0)
        return r;
    a.ready_fd = args.ready_fd;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_IGN); /* supervisors are watched by pidfd; nothing of them is to be collected */
    r = gr_log_open("granary-hostd", NULL, GR_LOG_INFO, &err);
    if (r >= 0)
        r = gr_home_open(1, &a.home, &err);
    if (r >= 0)
        r = gr_loop_new(NULL, &a.loop, &err);
    if (r >= 0)
        r = gr_loop_signal(a.loop, SIGTERM, on_signal, &a);
    if (r >= 0)
        r = gr_loop_signal(a.loop, SIGINT, on_signal, &a);
    if (r < 0) {
        gr_daemon_ready(a.ready_fd, r, gr_err_text(&err, r));
        fprintf(stderr, "granary-hostd: %s\n", gr_err_text(&err, r));
        return gr_code_exit(r);
    }
    gr_auto_free char *pid_file = gr_home_path(a.home, "run/hostd.pid");
    r = gr_fiber_run(a.loop, run, &a);
    gr_daemon_stopping();
    if (r >= 0 && pid_file)
        gr_daemon_pidfile_remove(pid_file);
    return gr_code_exit(r);
}
