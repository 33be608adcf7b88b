#define FUSE_USE_VERSION 314
#include "backup-proxy/mount_hold.h"
#include "common/buf.h"
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

/* What the daemon wants kept for the next one (locks of processes), by a number of its own. */
struct kept {
    struct kept *next;
    uint64_t id;
    size_t len;
    char frame[]; /* as it came, and goes */
};
struct frame { /* behind a 'K' */
    uint64_t id;
    uint32_t len, reserved;
};

struct mount_hold {
    struct gr_loop *loop;
    struct gr_home *home;
    char *datastore, *dir, *socket;
    struct fuse_session *se;
    int listener, daemon; /* the stream to who serves it, -1: nobody does */
    bool answers, lasts, stop; /* lasts: another daemon can go on with it */
    unsigned fibers;
    struct gr_fqueue ended;
    struct kept *kept;
    struct gr_buf said; /* by the daemon, not taken apart yet */
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

/* ---- what is kept ---- */
static void keep(struct mount_hold *h, uint64_t id, const char *frame, size_t len)
{
    struct kept **p = &h->kept;
    while (*p && (*p)->id != id)
        p = &(*p)->next;
    if (*p) {
        struct kept *old = *p;
        *p = old->next;
        free(old);
    }
    struct kept *k = len > 1 + sizeof(struct frame) ? gr_alloc(sizeof(*k) + len) : NULL; /* empty: nothing is left to keep */
    if (!k)
        return;
    *k = (struct kept){h->kept, id, len};
    memcpy(k->frame, frame, len);
    h->kept = k;
}

/* Take apart what the daemon has said. */
static void heard(struct mount_hold *h)
{
    size_t at = 0;
    while (at < h->said.len) {
        const char *p = h->said.data + at;
        struct frame f;
        if (*p != 'K') { /* it answers */
            h->lasts = *p == 'r';
            if (!h->answers)
                h->ready(h->arg);
            h->answers = true;
            at++;
            continue;
        }
        if (h->said.len - at < 1 + sizeof(f))
            break;
        memcpy(&f, p + 1, sizeof(f));
        if (h->said.len - at - 1 - sizeof(f) < f.len)
            break;
        keep(h, f.id, p, 1 + sizeof(f) + f.len);
        at += 1 + sizeof(f) + f.len;
    }
    if (at)
        memmove(h->said.data, h->said.data + at, h->said.len - at);
    h->said.len -= at;
}

static int send_all(int fd, const char *data, size_t len)
{
    while (len) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN && gr_fiber_wait_fd(fd, POLLOUT, SERVE_MS) >= 0)
            continue;
        if (n < 0)
            return -errno;
        data += n;
        len -= (size_t)n;
    }
    return 0;
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
    int rc = fd >= 0 && sendmsg(fd, &msg, MSG_NOSIGNAL) == 1 ? 0 : -EPIPE;
    for (const struct kept *k = h->kept; k && rc == 0; k = k->next)
        rc = send_all(fd, k->frame, k->len);
    if (rc == 0 && send_all(fd, "E", 1) == 0) {
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
    h->said.len = 0;
    while (!h->stop) {
        char part[4096];
        int ready = gr_fiber_wait_fd(h->daemon, POLLIN, -1);
        ssize_t n = ready < 0 ? 0 : read(h->daemon, part, sizeof(part));
        if (n < 0 && errno == EAGAIN)
            continue;
        if (n <= 0 || gr_buf_add(&h->said, part, (size_t)n) < 0)
            break;
        heard(h);
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
    while (h->kept) {
        struct kept *k = h->kept;
        h->kept = k->next;
        free(k);
    }
    gr_buf_done(&h->said);
    free(h->datastore);
    free(h->dir);
    free(h->socket);
    free(h);
}
