#include "common/rpc_wire.h"
#include "common/cleanup.h"
#include "common/endian.h"
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define READ_STEP 65536 /* bytes: memory grows with what has arrived, not with what a header announces */

/* Count nesting and values without recursion, before the parser sees the text. */
static int check_shape(const char *p, size_t len, struct gr_err *err)
{
    unsigned depth = 0, values = 0;
    bool in_string = false;
    for (size_t i = 0; i < len; i++) {
        char c = p[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
            continue;
        }
        switch (c) {
        case '"':
            in_string = true;
            break;
        case '[':
        case '{':
            if (++depth > RPC_MAX_DEPTH)
                return gr_fail(err, -GR_EPROTO, "frame nests deeper than %d", RPC_MAX_DEPTH);
            values++;
            break;
        case ']':
        case '}':
            depth -= depth > 0;
            break;
        case ',':
            values++;
            break;
        }
        if (values > RPC_MAX_VALUES)
            return gr_fail(err, -GR_EPROTO, "frame holds more than %d values", RPC_MAX_VALUES);
    }
    return 0;
}

int rpc_frame_decode(const char *p, size_t len, size_t *ret_used, json_t **ret, struct gr_err *err)
{
    size_t known = GR_MIN(len, (size_t)4);
    if (memcmp(p, "GRP1", known) != 0)
        return gr_fail(err, -GR_EPROTO, "frame does not start with GRP1");
    if (len < RPC_HEADER) {
        *ret_used = RPC_HEADER;
        return 0;
    }
    uint32_t body = gr_get_be32(p + 4);
    if (body > GR_RPC_MAX)
        return gr_fail(err, -GR_EPROTO, "frame announces %u bytes, above the limit of %u", body, GR_RPC_MAX);
    if (body > len - RPC_HEADER) {
        *ret_used = RPC_HEADER + (size_t)body;
        return 0;
    }
    int r = check_shape(p + RPC_HEADER, body, err);
    if (r < 0)
        return r;
    json_error_t je;
    json_t *obj = json_loadb(p + RPC_HEADER, body, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &je);
    if (!obj)
        return gr_fail(err, -GR_EPROTO, "frame is not JSON: %s", je.text);
    if (!json_is_object(obj)) {
        json_decref(obj);
        return gr_fail(err, -GR_EPROTO, "frame is not a JSON object");
    }
    *ret_used = RPC_HEADER + (size_t)body;
    *ret = obj;
    return 1;
}

static int append_text(const char *text, size_t len, void *out)
{
    return gr_buf_add(out, text, len);
}

int rpc_frame_encode(json_t *obj, struct gr_buf *out)
{
    size_t start = out->len;
    int r = gr_buf_add(out, "GRP1\0\0\0\0", RPC_HEADER);
    if (r < 0)
        return r;
    if (json_dump_callback(obj, append_text, out, JSON_COMPACT) < 0)
        r = -ENOMEM;
    size_t body = out->len - start - RPC_HEADER;
    if (r == 0 && body > GR_RPC_MAX)
        r = -EMSGSIZE;
    if (r < 0) {
        out->len = start;
        return r;
    }
    gr_put_be32(out->data + start + 4, (uint32_t)body);
    return 0;
}

int rpc_wire_init(struct rpc_wire *w, int fd)
{
    *w = (struct rpc_wire){.rfd = fd, .wfd = fcntl(fd, F_DUPFD_CLOEXEC, 0)};
    if (w->wfd >= 0)
        return 0;
    int r = -errno;
    rpc_wire_done(w);
    return r;
}

void rpc_wire_done(struct rpc_wire *w)
{
    gr_closep(&w->rfd);
    gr_closep(&w->wfd);
    gr_buf_done(&w->in);
}

void rpc_wire_shutdown(struct rpc_wire *w)
{
    w->dead = true;
    if (!w->left)
        shutdown(w->rfd, SHUT_RDWR);
}

void rpc_wire_leave(struct rpc_wire *w)
{
    w->left = w->dead = true;
    if (w->reader)
        gr_fiber_wake(w->reader);
}

static void on_readable(void *arg, int events)
{
    struct rpc_wire *w = arg;
    w->readable = true;
    gr_fiber_wake(w->reader);
}

/* Until there is something to read, or the wire is left. */
static int wait_readable(struct rpc_wire *w)
{
    struct gr_watch watch = {.fn = on_readable, .arg = w, .fd = w->rfd, .events = POLLIN};
    w->reader = gr_fiber_self();
    w->readable = false;
    int r = gr_watch_add(gr_fiber_loop(), &watch);
    while (r == 0 && !w->readable && !w->left)
        gr_fiber_suspend();
    if (r == 0)
        gr_watch_del(gr_fiber_loop(), &watch);
    w->reader = NULL;
    return r;
}

/* Have at least @need bytes in the buffer. 1; 0 closed between frames; negative. */
static int fill(struct rpc_wire *w, size_t need, struct gr_err *err)
{
    while (w->in.len < need) {
        if (w->left)
            return 0;
        int r = gr_buf_reserve(&w->in, GR_MAX(GR_MIN(need - w->in.len, (size_t)READ_STEP), (size_t)4096));
        if (r < 0)
            return gr_fail(err, r, "out of memory");
        ssize_t n = recv(w->rfd, w->in.data + w->in.len, w->in.cap - w->in.len - 1, 0);
        if (n > 0) {
            w->in.len += (size_t)n;
            continue;
        }
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN)
            return gr_fail(err, -errno, "cannot receive: %s", strerror(errno));
        if (n == 0)
            return w->in.len == 0 || w->dead ? 0 : gr_fail(err, -GR_EPROTO, "closed in the middle of a frame");
        r = wait_readable(w);
        if (r < 0)
            return gr_fail(err, r, "cannot wait for more: %s", gr_code_text(r));
    }
    return 1;
}

int rpc_wire_recv(struct rpc_wire *w, json_t **ret, struct gr_err *err)
{
    size_t need = 1; /* a wrong first byte is refused at once */
    for (;;) {
        int r = fill(w, need, err);
        if (r <= 0)
            return r;
        size_t used;
        r = rpc_frame_decode(w->in.data, w->in.len, &used, ret, err);
        if (r < 0)
            return r;
        if (r == 0) {
            need = used;
            continue;
        }
        memmove(w->in.data, w->in.data + used, w->in.len - used);
        w->in.len -= used;
        if (w->in.len == 0 && w->in.cap > READ_STEP)
            gr_buf_done(&w->in);
        return 1;
    }
}

static int send_bytes(struct rpc_wire *w, const struct gr_rpc_call *of, const char *p, size_t len)
{
    while (len > 0) {
        if (w->dead)
            return -EPIPE;
        ssize_t n = send(w->wfd, p, len, MSG_NOSIGNAL);
        if (n >= 0) {
            p += n;
            len -= (size_t)n;
        } else if (errno == EAGAIN) {
            if (gr_rpc_gone(of))
                return -GR_ECANCELED;
            gr_fiber_wait_fd(w->wfd, POLLOUT, of ? RPC_LOOK_MS : -1);
        } else if (errno != EINTR) {
            return -EPIPE;
        }
    }
    return 0;
}

int rpc_wire_send_for(struct rpc_wire *w, const struct gr_rpc_call *of, json_t *obj)
{
    gr_auto_buf struct gr_buf out = {0};
    int r = rpc_frame_encode(obj, &out);
    json_decref(obj);
    if (r < 0)
        return r;
    gr_fmutex_lock(&w->write_lock);
    r = send_bytes(w, of, out.data, out.len);
    if (r < 0) /* part of a frame may be out: nothing may follow it */
        rpc_wire_shutdown(w);
    gr_fmutex_unlock(&w->write_lock);
    return r;
}

int rpc_wire_send(struct rpc_wire *w, json_t *obj)
{
    return rpc_wire_send_for(w, NULL, obj);
}
