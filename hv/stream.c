#include "hv/stream.h"
#include "common/cleanup.h"
#include "common/rpc.h"
#include "common/seam.h"
#include "hv/lines.h"
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

struct hv_stream {
    struct hv_stream_opts o;
    struct hv_lines lines;
    int fd, send_fd; /* the same socket twice: reader and sender may both wait */
    bool closing, ended;
    struct gr_fqueue done;
    struct gr_fmutex send_lock;
};

static int on_line(void *arg, char *line, size_t len)
{
    struct hv_stream *s = arg;
    json_auto_t *msg = json_loadb(line, len, 0, NULL);
    if (!json_is_object(msg))
        return s->o.resync ? 0 : -GR_EPROTO;
    s->o.on_message(s->o.arg, msg);
    return s->closing ? -GR_ECANCELED : 0;
}

static void reader(void *arg)
{
    struct hv_stream *s = arg;
    const char *why = "the connection was closed";
    char buf[16384];
    for (;;) {
        ssize_t n = recv(s->fd, buf, sizeof buf, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            gr_fiber_wait_fd(s->fd, POLLIN, -1);
            continue;
        }
        if (n <= 0 || s->closing)
            break;
        int r = hv_lines_feed(&s->lines, buf, (size_t)n, on_line, s);
        if (r >= 0 && s->lines.dropped && !s->o.resync)
            r = -GR_EPROTO;
        if (r < 0) {
            why = r == -GR_EPROTO ? "the peer sent something that is no message" : "out of memory";
            break;
        }
    }
    s->ended = true;
    shutdown(s->fd, SHUT_RDWR);
    if (!s->closing)
        s->o.on_end(s->o.arg, why);
    gr_fqueue_wake_all(&s->done);
}

int hv_stream_open(const struct hv_stream_opts *opts, const char *path, struct hv_stream **ret, struct gr_err *err)
{
    struct hv_stream *s = gr_zalloc(sizeof *s);
    if (!s)
        return gr_fail(err, -ENOMEM, "out of memory");
    s->o = *opts;
    s->lines.max = opts->max_line;
    s->lines.resync = opts->resync;
    s->send_fd = -1;
    int r = gr_unix_connect(path, &s->fd, err);
    if (r < 0) {
        free(s);
        return r;
    }
    s->send_fd = fcntl(s->fd, F_DUPFD_CLOEXEC, 0);
    r = s->send_fd < 0 ? -errno : gr_fiber_start(opts->loop, reader, s);
    if (r < 0) {
        if (s->send_fd >= 0)
            close(s->send_fd);
        close(s->fd);
        free(s);
        return gr_fail(err, r, "cannot start reading from %s: %s", path, gr_code_text(r));
    }
    *ret = s;
    return 0;
}

/* With the first bytes goes the descriptor, if there is one. */
static ssize_t send_some(struct hv_stream *s, const char *data, size_t len, int fd)
{
    union {
        struct cmsghdr h;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {.h = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    struct iovec iov = {(char *)(uintptr_t)data, len};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fd >= 0) {
        memcpy(CMSG_DATA(&control.h), &fd, sizeof(int));
        m.msg_control = &control;
        m.msg_controllen = sizeof control.space;
    }
    return sendmsg(s->send_fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
}

int hv_stream_send(struct hv_stream *s, bool mark, json_t *msg, int fd, uint64_t timeout_ms)
{
    gr_auto_free char *text = json_dumps(msg, JSON_COMPACT);
    gr_auto_buf struct gr_buf line = {0};
    if (!text || (mark && gr_buf_add(&line, "\xff", 1) < 0) || gr_buf_add(&line, text, strlen(text)) < 0 || gr_buf_add(&line, "\n", 1) < 0)
        return -ENOMEM;
    uint64_t due = gr_loop_now_ns(s->o.loop) + timeout_ms * 1000000;
    int r = 0;
    gr_fmutex_lock(&s->send_lock);
    for (size_t off = 0; off < line.len && r >= 0;) {
        ssize_t n = s->ended ? -1 : send_some(s, (const char *)line.data + off, line.len - off, off ? -1 : fd);
        if (n >= 0) {
            off += (size_t)n;
        } else if (s->ended || (errno != EAGAIN && errno != EINTR)) {
            r = -EPIPE;
        } else {
            uint64_t now = gr_loop_now_ns(s->o.loop);
            r = now >= due ? -ETIMEDOUT : gr_fiber_wait_fd(s->send_fd, POLLOUT, (int64_t)((due - now) / 1000000 + 1));
        }
    }
    gr_fmutex_unlock(&s->send_lock);
    return r < 0 ? r : 0;
}

void hv_stream_close(struct hv_stream *s)
{
    if (!s)
        return;
    s->closing = true;
    shutdown(s->fd, SHUT_RDWR);
    while (!s->ended)
        gr_fqueue_wait(&s->done);
    gr_fmutex_lock(&s->send_lock); /* a sender that was waiting has seen the end */
    gr_fmutex_unlock(&s->send_lock);
    close(s->fd);
    close(s->send_fd);
    hv_lines_done(&s->lines);
    free(s);
}
