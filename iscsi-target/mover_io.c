/* Bytes of one connection: receive buffer, reply queue, and the pump between them and the socket.
 *
 * One gr_watch per socket. POLLIN stays armed while the reader keeps up and is disarmed when it does not, POLLOUT is armed
 * only while the kernel's buffer is full. */
#include "iscsi-target/mover_int.h"
#include "common/cleanup.h"
#include <fcntl.h>
#include <poll.h>
#include <string.h>

#define SEND_IOV 64

static void io_update(struct mover_io *io)
{
    if (io->watching)
        (void)gr_watch_set(io->loop, &io->watch, (io->in_armed ? POLLIN : 0) | (io->out_armed ? POLLOUT : 0));
}

static void io_wake(struct mover_io *io)
{
    if (io->reader)
        gr_fiber_wake(io->reader);
}

static void io_arm_out(struct mover_io *io, bool on)
{
    if (on)
        (void)gr_timer_arm(io->loop, &io->stall_timer, io->stall_ms * 1000000);
    else
        gr_timer_cancel(io->loop, &io->stall_timer);
    if (io->out_armed == on)
        return;
    io->out_armed = on;
    io_update(io);
}

void mover_io_fail(struct mover_io *io, int code)
{
    if (io->error)
        return;
    io->error = code;
    if (io->watching) {
        gr_watch_del(io->loop, &io->watch);
        io->watching = false;
    }
    gr_timer_cancel(io->loop, &io->stall_timer);
    gr_loop_defer_cancel(io->loop, &io->flush);
    if (!io->left)
        shutdown(io->fd, SHUT_RDWR);
    while (io->head) {
        struct mover_out *o = io->head;
        io->head = o->next;
        o->done(o);
    }
    io->tail = NULL;
    io_wake(io);
}

static void on_ready(void *arg, int events)
{
    struct mover_io *io = arg;
    if (events & (POLLIN | POLLHUP | POLLERR)) {
        if (io->reader) {
            io->in_ready = true;
            io_wake(io);
        } else if (events & (POLLHUP | POLLERR)) {
            mover_io_fail(io, -ECONNRESET); /* level-triggered and cannot be masked: would spin */
            return;
        }
        if (io->in_armed) {
            io->in_armed = false;
            io_update(io);
        }
    }
    if (events & POLLOUT)
        mover_io_flush(io);
}

static void on_deadline(void *arg)
{
    struct mover_io *io = arg;
    io->timed_out = true;
    io_wake(io);
}

static void on_stall(void *arg)
{
    mover_io_fail(arg, -ETIMEDOUT);
}

static void on_flush(void *arg)
{
    mover_io_flush(arg);
}

int mover_io_open(struct mover_io *io, struct gr_loop *loop, int fd, uint64_t stall_ms)
{
    memset(io, 0, sizeof(*io));
    int fl = fcntl(fd, F_GETFL);
    if (fl < 0 || fcntl(fd, F_SETFL, fl | O_NONBLOCK) < 0)
        return -errno;
    io->loop = loop;
    io->fd = fd;
    io->stall_ms = stall_ms;
    io->in_timer = (struct gr_timer){.fn = on_deadline, .arg = io};
    io->stall_timer = (struct gr_timer){.fn = on_stall, .arg = io};
    io->flush = (struct gr_defer){.fn = on_flush, .arg = io};
    io->watch = (struct gr_watch){.fn = on_ready, .arg = io, .fd = fd, .events = 0};
    io->in = gr_alloc(MOVER_IN_SIZE);
    if (!io->in)
        return -ENOMEM;
    int r = gr_watch_add(loop, &io->watch);
    if (r < 0) {
        free(io->in);
        return r;
    }
    io->watching = true;
    return 0;
}

void mover_io_close(struct mover_io *io)
{
    mover_io_fail(io, -ECONNRESET);
    gr_timer_cancel(io->loop, &io->in_timer);
    close(io->fd);
    free(io->in);
    io->in = NULL;
}

/* ---- receiving ---- */

int mover_io_wait(struct mover_io *io, uint64_t deadline_ns)
{
    io->reader = gr_fiber_self();
    io->in_ready = io->timed_out = false;
    if (!io->in_armed && !io->error) {
        io->in_armed = true;
        io_update(io);
    }
    if (deadline_ns) {
        uint64_t now = gr_loop_now_ns(io->loop);
        int r = gr_timer_arm(io->loop, &io->in_timer, deadline_ns > now ? deadline_ns - now : 0);
        if (r < 0) {
            io->reader = NULL;
            return r;
        }
    }
    while (!io->in_ready && !io->timed_out && !io->error && !(io->at_boundary && io->called))
        gr_fiber_suspend();
    io->reader = NULL;
    gr_timer_cancel(io->loop, &io->in_timer);
    return io->error ? io->error : io->in_ready ? 0 : io->timed_out ? -ETIMEDOUT : -EINTR;
}

/* recv(2) that says -EAGAIN. */
static int64_t raw_recv(struct mover_io *io, void *buf, size_t len)
{
    for (;;) {
        ssize_t n = recv(io->fd, buf, len, MSG_DONTWAIT);
        if (n >= 0)
            return n;
        if (errno != EINTR)
            return errno == EWOULDBLOCK ? -EAGAIN : -errno;
    }
}

static int64_t raw_read(struct mover_io *io, void *buf, size_t len)
{
    if (io->in_pos == io->in_len) {
        if (len >= MOVER_IN_SIZE / 2)
            return raw_recv(io, buf, len);
        int64_t n = raw_recv(io, io->in, MOVER_IN_SIZE);
        if (n <= 0)
            return n;
        io->in_pos = 0;
        io->in_len = (size_t)n;
    }
    size_t n = GR_MIN(len, io->in_len - io->in_pos);
    memcpy(buf, io->in + io->in_pos, n);
    io->in_pos += n;
    return (int64_t)n;
}

void mover_io_call(struct mover_io *io)
{
    io->called = true;
    if (io->at_boundary)
        io_wake(io);
}

int64_t mover_io_more(struct mover_io *io, uint64_t deadline_ns)
{
    if (io->in_pos) {
        memmove(io->in, io->in + io->in_pos, io->in_len - io->in_pos);
        io->in_len -= io->in_pos;
        io->in_pos = 0;
    }
    for (;;) {
        int64_t n = io->error ? io->error : raw_recv(io, io->in + io->in_len, MOVER_IN_SIZE - io->in_len);
        if (n != -EAGAIN) {
            io->in_len += n > 0 ? (size_t)n : 0;
            return n;
        }
        io->at_boundary = true;
        io->called = false;
        int r = mover_io_wait(io, deadline_ns);
        io->at_boundary = false;
        if (r < 0)
            return r;
    }
}

int64_t mover_io_read_some(struct mover_io *io, void *buf, size_t len, uint64_t deadline_ns)
{
    for (;;) {
        if (io->error)
            return io->error;
        int64_t n = raw_read(io, buf, len);
        if (n != -EAGAIN)
            return n;
        int r = mover_io_wait(io, deadline_ns);
        if (r < 0)
            return r;
    }
}

int mover_io_read(struct mover_io *io, void *buf, size_t len, uint64_t deadline_ns)
{
    for (size_t got = 0; got < len;) {
        int64_t n = mover_io_read_some(io, (uint8_t *)buf + got, len - got, deadline_ns);
        if (n <= 0)
            return n < 0 ? (int)n : -EPIPE;
        got += (size_t)n;
    }
    return 0;
}

int mover_io_skip(struct mover_io *io, uint64_t len, uint64_t deadline_ns)
{
    uint8_t sink[4096];
    while (len) {
        int64_t n = mover_io_read_some(io, sink, GR_MIN(len, sizeof(sink)), deadline_ns);
        if (n <= 0)
            return n < 0 ? (int)n : -EPIPE;
        len -= (uint64_t)n;
    }
    return 0;
}

/* ---- sending ---- */

/* The head message has @n more bytes behind it. */
static void out_consume(struct mover_io *io, size_t n)
{
    while (io->head) {
        struct mover_out *o = io->head;
        while (io->head_iov < o->iovcnt) {
            size_t left = o->iov[io->head_iov].iov_len - io->head_off;
            if (n < left) {
                io->head_off += n;
                return;
            }
            n -= left;
            io->head_iov++;
            io->head_off = 0;
        }
        io->head = o->next;
        if (!io->head)
            io->tail = NULL;
        io->head_iov = 0;
        io->head_off = 0;
        o->done(o);
        if (!n)
            return;
    }
}

static void flush_queue(struct mover_io *io)
{
    while (io->head) {
        struct iovec iov[SEND_IOV];
        int n_iov = 0;
        size_t total = 0;
        for (struct mover_out *o = io->head; o && n_iov < SEND_IOV; o = o->next) {
            for (int i = o == io->head ? io->head_iov : 0; i < o->iovcnt && n_iov < SEND_IOV; i++) {
                size_t skip = o == io->head && i == io->head_iov ? io->head_off : 0;
                iov[n_iov++] = (struct iovec){(uint8_t *)o->iov[i].iov_base + skip, o->iov[i].iov_len - skip};
                total += o->iov[i].iov_len - skip;
            }
        }
        struct msghdr m = {.msg_iov = iov, .msg_iovlen = (size_t)n_iov};
        ssize_t n = sendmsg(io->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
            mover_io_fail(io, -errno);
            return;
        }
        if (n > 0)
            out_consume(io, (size_t)n);
        if (io->error)
            return;
        if (n < (ssize_t)total) {
            io_arm_out(io, true);
            return;
        }
    }
    io_arm_out(io, false);
}

void mover_io_flush(struct mover_io *io)
{
    if (io->error)
        return;
    flush_queue(io);
    if (!io->error && !io->head)
        io_wake(io); /* somebody may wait for the queue to drain */
}

void mover_io_send(struct mover_io *io, struct mover_out *out)
{
    if (io->error) {
        out->done(out);
        return;
    }
    out->next = NULL;
    if (io->tail)
        io->tail->next = out;
    else
        io->head = out;
    io->tail = out;
    if (!io->out_armed)
        gr_loop_defer(io->loop, &io->flush);
}

struct copied {
    struct mover_out out;
    struct iovec iov;
    uint8_t bytes[];
};

static void copied_done(struct mover_out *out)
{
    free(gr_container_of(out, struct copied, out));
}

int mover_io_send_copy(struct mover_io *io, const void *buf, size_t len)
{
    if (io->error)
        return io->error;
    struct copied *c = gr_zalloc(sizeof(*c) + len);
    if (!c)
        return -ENOMEM;
    memcpy(c->bytes, buf, len);
    c->iov = (struct iovec){c->bytes, len};
    c->out = (struct mover_out){.iov = &c->iov, .iovcnt = 1, .done = copied_done};
    mover_io_send(io, &c->out);
    return 0;
}

int mover_io_drain(struct mover_io *io, uint64_t deadline_ns)
{
    mover_io_flush(io);
    io->timed_out = false;
    if (deadline_ns) {
        uint64_t now = gr_loop_now_ns(io->loop);
        int r = gr_timer_arm(io->loop, &io->in_timer, deadline_ns > now ? deadline_ns - now : 0);
        if (r < 0)
            return r;
    }
    io->reader = gr_fiber_self();
    while (io->head && !io->timed_out && !io->error)
        gr_fiber_suspend();
    io->reader = NULL;
    gr_timer_cancel(io->loop, &io->in_timer);
    return io->error ? io->error : io->timed_out ? -ETIMEDOUT : 0;
}
