/* fs.serve: a mount is taken over from who holds it. */
#include "snapshot/mnt_int.h"
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define HAND_MS 5000 /* what the holder gets to hand it over in */

/* The descriptor that comes with one byte. */
static int take_fd(int from, int *ret, struct gr_err *err)
{
    char byte;
    union {
        struct cmsghdr h;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    int ready = gr_fiber_wait_fd(from, POLLIN, HAND_MS);
    ssize_t n = ready < 0 ? ready : recvmsg(from, &msg, MSG_CMSG_CLOEXEC);
    const struct cmsghdr *c = n == 1 ? CMSG_FIRSTHDR(&msg) : NULL;
    if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(sizeof(int)))
        return gr_fail(err, -GR_EPROTO, "no mount comes from who holds it: %s", ready < 0 ? gr_code_text(ready) : n < 0 ? gr_code_text(-errno) : "no descriptor");
    memcpy(ret, CMSG_DATA(c), sizeof(int));
    return 0;
}

int mnt_op_serve(struct snap_op *op)
{
    const char *socket = NULL;
    struct mnt_mount_opts o = {.fd = -1, .holder = -1};
    uint64_t uid = 0, gid = 0;
    int r = gr_json_str(op->params, "name", &o.name, op->err);
    if (r == 0)
        r = gr_json_str(op->params, "dir", &o.dir, op->err);
    if (r == 0)
        r = gr_json_str(op->params, "socket", &socket, op->err);
    if (r == 0)
        r = gr_json_u64(op->params, "uid", &uid, op->err);
    if (r == 0)
        r = gr_json_u64(op->params, "gid", &gid, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "again", &o.again, op->err);
    if (r < 0)
        return r;
    if (!op->s->address[0])
        return gr_fail(op->err, -GR_ELOCKED, "the storage daemon of this home does not run: granary up starts it, and --read-only does without");
    o.uid = (uint32_t)uid;
    o.gid = (uint32_t)gid;
    r = gr_unix_connect(socket, &o.holder, op->err);
    if (r == 0 && (r = take_fd(o.holder, &o.fd, op->err)) < 0)
        close(o.holder);
    return r < 0 ? r : mnt_mount_start(op->s, &o, op->err);
}
