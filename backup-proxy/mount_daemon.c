#include "backup-proxy/mount_daemon.h"
#include "backup-proxy/mount_hold.h"
#include "backup-proxy/mount_table.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "common/log.h"
#include "common/seam.h"
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

struct daemon {
    const struct mount_daemon_opts *opts;
    struct gr_home *home;
    struct gr_loop *loop;
    char *dir;
    int report; /* pipe to the starting process; -1: told already */
    struct mount_fuse *fuse;
    struct mount_hold *hold;
    struct bp_intent *intent;
    struct gr_fqueue events;
    bool gone, stop;
};

/* ---- telling the starting process ---- */
/* The pipe carries "0 \n" or "CODE sentence\n". */
static void tell(struct daemon *d, int code, const char *text)
{
    char line[GR_ERR_TEXT + 32];
    int n = snprintf(line, sizeof line, "%d %s\n", code, text);
    if (d->report < 0)
        return;
    if (write(d->report, line, (size_t)GR_MIN(n, (int)sizeof line - 1)) < 0)
        d->stop = true; /* it is gone: nobody would know of this mount */
    close(d->report);
    d->report = -1;
}

static int hear(int fd, struct gr_err *err)
{
    char line[GR_ERR_TEXT + 32];
    size_t n = 0;
    while (n < sizeof line - 1) {
        ssize_t k = read(fd, line + n, sizeof line - 1 - n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            break;
        n += (size_t)k;
    }
    line[n] = '\0';
    char *rest = line;
    long code = strtol(line, &rest, 10);
    size_t len = strcspn(rest, "\n");
    if (rest == line)
        return gr_fail(err, -EIO, "the mount daemon ended without a word");
    rest[len] = '\0';
    return code == 0 ? 0 : gr_fail(err, (int)code, "%s", *rest ? rest + 1 : rest);
}

/* ---- the daemon ---- */
static void on_ready(void *arg)
{
    struct daemon *d = arg;
    tell(d, 0, "");
    if (!d->opts->foreground) { /* nobody reads our words from here on */
        gr_auto_close int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        for (int i = 0; i < 3 && null >= 0; i++)
            dup2(null, i);
        gr_auto_free char *path = gr_home_path(d->home, "log/mount.log");
        (void)gr_log_open("granary-mount", path, GR_LOG_NOTE, NULL); /* else silent */
    }
    if (d->stop)
        gr_fqueue_wake_all(&d->events);
}

static void on_gone(void *arg)
{
    struct daemon *d = arg;
    d->gone = true;
    gr_fqueue_wake_all(&d->events);
}

static void on_signal(void *arg, int signo)
{
    struct daemon *d = arg;
    d->stop = true;
    gr_fqueue_wake_all(&d->events);
}

static int start(struct daemon *d, struct gr_err *err)
{
    const struct mount_daemon_opts *o = d->opts;
    struct mount_view view;
    json_t *detail = json_pack("{s:s,s:s}", "dir", d->dir, "source", o->source);
    int rc = detail ? bp_intent_begin(d->home, "mount", detail, &d->intent, err) : gr_fail(err, -EINVAL, "'%s' is no valid text", d->dir);
    json_decref(detail);
    if (rc < 0)
        return rc;
    struct mount_fuse_opts fo = {.dir = d->dir, .source = o->source, .allow_other = o->allow_other};
    if (o->hold)
        return mount_hold_open(d->loop, d->home, o->hold, &fo, on_ready, on_gone, d, &d->hold, err);
    rc = o->make_view(o->arg, d->loop, &view, err);
    if (rc < 0)
        return rc;
    rc = mount_fuse_open(d->loop, &view, &fo, on_ready, on_gone, d, &d->fuse, err);
    if (rc < 0)
        view.ops->free(view.impl);
    return rc;
}

static int serve(void *arg)
{
    struct daemon *d = arg;
    struct gr_err err = {0};
    gr_loop_signal(d->loop, SIGTERM, on_signal, d);
    gr_loop_signal(d->loop, SIGINT, on_signal, d);
    int rc = start(d, &err);
    while (rc == 0 && !d->gone) {
        if (d->stop && d->hold)
            mount_hold_detach(d->hold);
        else if (d->stop)
            mount_fuse_detach(d->fuse);
        if (!d->gone)
            gr_fqueue_wait(&d->events);
    }
    mount_fuse_free(d->fuse);
    mount_hold_free(d->hold);
    if (d->opts->release)
        d->opts->release(d->opts->arg, d->loop);
    if (d->intent && bp_intent_end(d->intent, NULL) < 0)
        gr_log(GR_LOG_WARN, "cannot remove the record of the mount on '%s'", d->dir);
    if (rc < 0)
        tell(d, rc, gr_err_text(&err, rc));
    return rc;
}

static int run_daemon(struct daemon *d)
{
    struct gr_err err = {0};
    signal(SIGPIPE, SIG_IGN);
    int rc = gr_loop_new(NULL, &d->loop, &err);
    if (rc < 0) {
        tell(d, rc, gr_err_text(&err, rc));
        return rc;
    }
    rc = gr_fiber_run(d->loop, serve, d);
    gr_loop_free(d->loop);
    return rc;
}

/* ---- the starting process ---- */
static int check_dir(struct daemon *d, struct gr_err *err)
{
    struct stat st;
    char source[256], type[64];
    int rc = mount_canonical(d->opts->dir, &d->dir, err);
    if (rc < 0)
        return rc;
    rc = mount_reap(d->home, err); /* a dead mount of ours may sit there */
    if (rc < 0)
        return rc;
    if (stat(d->dir, &st) < 0)
        return gr_fail(err, -errno, "'%s': %s", d->dir, gr_code_text(-errno));
    if (!S_ISDIR(st.st_mode))
        return gr_fail(err, -ENOTDIR, "'%s' is no directory", d->dir);
    if (mount_lookup(d->dir, source, type))
        return gr_fail(err, -EBUSY, "something is mounted on '%s' already: %s (%s)", d->dir, source, type);
    return 0;
}

static int fork_daemon(struct daemon *d, struct gr_err *err)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0)
        return gr_fail(err, -errno, "cannot make a pipe: %s", gr_code_text(-errno));
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) {
        int rc = -errno;
        close(fds[0]);
        close(fds[1]);
        return gr_fail(err, rc, "cannot start the mount daemon: %s", gr_code_text(rc));
    }
    if (pid == 0) {
        close(fds[0]);
        setsid();
        if (chdir("/") < 0)
            _exit(1);
        d->report = fds[1];
        _exit(run_daemon(d) < 0 ? 1 : 0);
    }
    close(fds[1]);
    int rc = hear(fds[0], err);
    close(fds[0]);
    if (rc < 0)
        (void)waitpid(pid, NULL, 0); /* so that nothing of it is left when we report */
    return rc;
}

int mount_daemon_run(const struct mount_daemon_opts *opts, struct gr_err *err)
{
    struct daemon d = {.opts = opts, .report = -1};
    int rc = gr_home_open(1, &d.home, err);
    if (rc == 0)
        rc = check_dir(&d, err);
    if (rc == 0 && opts->foreground) {
        int fds[2] = {-1, -1};
        if (pipe2(fds, O_CLOEXEC) == 0) {
            d.report = fds[1];
            rc = run_daemon(&d);
            if (rc < 0)
                rc = hear(fds[0], err);
            close(fds[0]);
        }
    } else if (rc == 0) {
        rc = fork_daemon(&d, err);
    }
    free(d.dir);
    gr_home_free(d.home);
    return rc;
}
