/* fs.serve: a mount is taken over from who holds it. */
#include "common/buf.h"
#include "snapshot/mnt_int.h"
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define KEPT_MAX (64u << 20) /* bytes */
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

/* What it keeps for us: frames of mnt_keep.c, ended by 'E'. */
static int take_kept(int from, struct gr_buf *ret, struct gr_err *err)
{
    for (;;) {
        char part[4096];
        int ready = gr_fiber_wait_fd(from, POLLIN, HAND_MS);
        ssize_t n = ready < 0 ? ready : read(from, part, sizeof(part));
        if (n <= 0 || ret->len + (size_t)n > KEPT_MAX || gr_buf_add(ret, part, (size_t)n) < 0)
            return gr_fail(err, -GR_EPROTO, "who holds the mount does not tell what it keeps: %s", n < 0 ? gr_code_text((int)n) : "it ends, or is too much");
        if (ret->data[ret->len - 1] == 'E' && mnt_kept_whole(ret->data, ret->len - 1))
            return 0;
    }
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
    gr_auto_buf struct gr_buf kept = {0};
    gr_auto_close int holder = -1, fd = -1;
    r = gr_unix_connect(socket, &holder, op->err);
    if (r == 0)
        r = take_fd(holder, &fd, op->err);
    if (r == 0)
        r = take_kept(holder, &kept, op->err);
    if (r < 0)
        return r;
    o.kept = kept.data;
    o.kept_len = kept.len - 1;
    o.holder = gr_take_fd(&holder);
    o.fd = gr_take_fd(&fd);
    return mnt_mount_start(op->s, &o, op->err);
}
