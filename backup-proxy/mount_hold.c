#define FUSE_USE_VERSION 314
#include "backup-proxy/mount_hold.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "common/log.h"
#include "common/rpc.h"
#include "common/seam.h"
#include <fuse_lowlevel.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define SERVE_MS 40000  /* what the daemon gets to take the mount over in: the datastore may have to be joined */
#define AGAIN_MS 200u   /* between two attempts to find a daemon */

struct mount_hold {
    struct gr_loop *loop;
    struct gr_home *home;
    char *datastore, *dir, *socket;
    struct fuse_session *se;
    int listener, daemon; /* the stream to who serves it, -1: nobody does */
    bool answers, lasts, stop; /* lasts: another daemon can go on with it */
    unsigned fibers;
    struct gr_fqueue ended;
    void (*ready)(void *arg);
    void (*gone)(void *arg);
    void *arg;
};

/* ---- mounting ---- */
static int mount_it(struct mount_hold *h, const struct mount_fuse_opts *opts, struct gr_err *err)
{
    static const struct fuse_lowlevel_ops none; /* nothing is served here */
    gr_auto_free char *text = gr_asprintf("fsname=%s,nosuid,nodev,subtype=granary,default_permissions%s", opts->source, opts->allow_other ? ",allow_other" : "");
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    bool bad = !text || fuse_opt_add_arg(&args, "granary-mount") < 0 || fuse_opt_add_arg(&args, "-o") < 0 || fuse_opt_add_arg(&args, text) < 0;
    h->se = bad ? NULL : fuse_session_new(&args, &none, sizeof(none), NULL);
    fuse_opt_free_args(&args);
    if (!h->se)
        return gr_fail(err, -EIO, "cannot mount on '%s': libfuse refuses its options", opts->dir);
    if (fuse_session_mount(h->se, opts->dir) == 0)
        return 0;
    fuse_session_destroy(gr_take(h->se));
    return gr_fail(err, -EIO, "cannot mount on '%s': FUSE refuses (is /dev/fuse there, may this user mount?)", opts->dir);
}

/* The kernel has ended the connection. */
static bool is_over(const struct mount_hold *h)
{
    struct pollfd p = {.fd = fuse_session_fd(h->se)};
    return poll(&p, 1, 0) == 1 && (p.revents & (POLLERR | POLLHUP));
}

/* ---- handing over ---- */
static void hand_over(void *arg)
{
    struct mount_hold *h = arg;
    char byte = 0;
    union {
        struct cmsghdr h;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    int ready = gr_fiber_wait_fd(h->listener, POLLIN, SERVE_MS), fd = ready < 0 ? -1 : accept4(h->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    int fuse = fuse_session_fd(h->se);
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fuse, sizeof(int));
    if (fd >= 0 && sendmsg(fd, &msg, MSG_NOSIGNAL) == 1) {
        h->daemon = fd;
    } else if (fd >= 0) {
        close(fd);
    }
    h->fibers--;
    gr_fqueue_wake_all(&h->ended);
}

/* Ask the daemon to serve it; it comes for the descriptor. */
static int find_daemon(struct mount_hold *h, struct gr_err *err)
{
    gr_auto_free char *path = gr_home_path(h->home, "run/storaged.sock");
    struct gr_rpc_client *c = NULL;
    int rc = path ? gr_rpc_connect(h->loop, path, &c, err) : -ENOMEM;
    if (rc < 0)
        return rc == -ENOENT || rc == -ECONNREFUSED ? gr_fail(err, -GR_ELOCKED, "the storage daemon of this home does not run: granary up starts it, and "
                                                                                "--read-only does without") : rc;
    rc = gr_unix_listen(h->socket, 0600, &h->listener, err);
    if (rc == 0) {
        h->fibers++;
        rc = gr_fiber_start(h->loop, hand_over, h);
        h->fibers -= rc < 0;
    }
    if (rc == 0)
        rc = gr_rpc_call(c, "fs.serve", json_pack("{s:s,s:s,s:s,s:I,s:I,s:b}", "name", h->datastore, "dir", h->dir, "socket", h->socket, "uid", (json_int_t)geteuid(),
                                                  "gid", (json_int_t)getegid(), "again", h->answers), NULL, NULL, SERVE_MS, NULL, err);
    if (rc < 0 && h->listener >= 0)
        shutdown(h->listener, SHUT_RDWR); /* it will not come */
    while (h->fibers > 1)
        gr_fqueue_wait(&h->ended);
    gr_closep(&h->listener);
    unlink(h->socket);
    gr_rpc_client_free(c);
    return rc == 0 && h->daemon < 0 ? gr_fail(err, -GR_EPROTO, "the storage daemon did not take the mount") : rc;
}

/* Until the daemon ends, or the mount. */
static void listen_to(struct mount_hold *h)
{
    while (!h->stop) {
        char said;
        int ready = gr_fiber_wait_fd(h->daemon, POLLIN, -1);
        ssize_t n = ready < 0 ? 0 : read(h->daemon, &said, 1);
        if (n < 0 && errno == EAGAIN)
            continue;
        if (n <= 0)
            break;
        h->lasts = said == 'r';
        if (!h->answers)
            h->ready(h->arg);
        h->answers = true;
    }
    close(h->daemon);
    h->daemon = -1;
}

static void hold(void *arg)
{
    struct mount_hold *h = arg;
    struct gr_err err = {0};
    bool told = false;
    while (!h->stop && !is_over(h)) {
        int rc = h->daemon >= 0 ? 0 : find_daemon(h, &err);
        if (rc < 0 && !told)
            gr_log(GR_LOG_WARN, "the mount on '%s' waits for the storage daemon: %s", h->dir, gr_err_text(&err, rc));
        told = rc < 0;
        if (rc == 0)
            listen_to(h);
        else
            gr_fiber_sleep_ms(AGAIN_MS);
        if (!h->lasts) /* what was asked and not answered will never be */
            break;
    }
    fuse_session_unmount(h->se);
    h->fibers--;
    gr_fqueue_wake_all(&h->ended);
    h->gone(h->arg);
}

int mount_hold_open(struct gr_loop *loop, struct gr_home *home, const char *datastore, const struct mount_fuse_opts *opts, void (*ready)(void *arg),
                    void (*gone)(void *arg), void *arg, struct mount_hold **ret, struct gr_err *err)
{
    struct mount_hold *h = gr_zalloc(sizeof(*h));
    if (!h)
        return gr_fail(err, -ENOMEM, "cannot mount on '%s': out of memory", opts->dir);
    gr_auto_free char *name = gr_asprintf("run/mount-%d.sock", (int)getpid());
    *h = (struct mount_hold){.loop = loop, .home = home, .listener = -1, .daemon = -1, .ready = ready, .gone = gone, .arg = arg};
    h->datastore = gr_strdup(datastore);
    h->dir = gr_strdup(opts->dir);
    h->socket = name ? gr_home_path(home, name) : NULL;
    int rc = h->datastore && h->dir && h->socket ? mount_it(h, opts, err) : gr_fail(err, -ENOMEM, "cannot mount on '%s': out of memory", opts->dir);
    h->fibers = 1;
    if (rc == 0 && (rc = find_daemon(h, err)) < 0)
        fuse_session_unmount(h->se);
    if (rc == 0 && (rc = gr_fiber_start(loop, hold, h)) < 0)
        gr_fail(err, rc, "cannot mount on '%s': out of memory", opts->dir);
    if (rc < 0) {
        h->fibers = 0;
        mount_hold_free(h);
        return rc;
    }
    *ret = h;
    return 0;
}

void mount_hold_detach(struct mount_hold *h)
{
    h->stop = true;
    if (h->daemon >= 0)
        shutdown(h->daemon, SHUT_RDWR); /* the daemon closes what was open */
}

void mount_hold_free(struct mount_hold *h)
{
    if (!h)
        return;
    while (h->fibers)
        gr_fqueue_wait(&h->ended);
    if (h->se)
        fuse_session_destroy(h->se);
    free(h->datastore);
    free(h->dir);
    free(h->socket);
    free(h);
}
