#include "hv/console.h"
#include "common/b64.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define PART_MAX (64u << 10)

struct follower {
    struct gr_buf pending;
    struct gr_fqueue q;
    struct follower *next;
};
struct hv_console {
    struct gr_loop *loop;
    struct hv_logcap *log;
    char *path;
    uint64_t max;
    int fd;
    bool closing, ended;
    struct follower *followers;
    struct gr_fqueue idle;
};

static void hand_out(struct hv_console *c, const char *data, size_t len)
{
    hv_logcap_write(c->log, data, len);
    for (struct follower *f = c->followers; f; f = f->next) {
        if (f->pending.len > HV_CONSOLE_FOLLOW_MAX - GR_MIN(len, (size_t)HV_CONSOLE_FOLLOW_MAX))
            f->pending.len = 0;
        if (gr_buf_add(&f->pending, data, len) >= 0)
            gr_fqueue_wake_all(&f->q);
    }
}

static void reader(void *arg)
{
    struct hv_console *c = arg;
    char buf[8192];
    while (!c->closing) {
        ssize_t n = recv(c->fd, buf, sizeof buf, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            gr_fiber_wait_fd(c->fd, POLLIN, -1);
        else if (n <= 0)
            break;
        else
            hand_out(c, buf, (size_t)n);
    }
    c->ended = true;
    for (struct follower *f = c->followers; f; f = f->next)
        gr_fqueue_wake_all(&f->q);
    gr_fqueue_wake_all(&c->idle);
}

int hv_console_open(struct gr_loop *loop, const char *socket, const char *log, uint64_t max, struct hv_console **ret, struct gr_err *err)
{
    struct hv_console *c = gr_zalloc(sizeof *c);
    if (!c)
        return gr_fail(err, -ENOMEM, "out of memory");
    c->loop = loop;
    c->fd = -1;
    c->max = max;
    c->path = gr_strdup(log);
    int r = c->path ? hv_logcap_open(log, max, &c->log, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r >= 0)
        r = gr_unix_connect(socket, &c->fd, err);
    if (r >= 0 && (r = gr_fiber_start(loop, reader, c)) < 0)
        gr_fail(err, r, "out of memory");
    if (r < 0) {
        c->ended = true;
        hv_console_close(c);
        return r;
    }
    *ret = c;
    return 0;
}

void hv_console_close(struct hv_console *c)
{
    if (!c)
        return;
    c->closing = true;
    if (c->fd >= 0)
        shutdown(c->fd, SHUT_RDWR);
    while (!c->ended || c->followers)
        gr_fqueue_wait(&c->idle);
    if (c->fd >= 0)
        close(c->fd);
    hv_logcap_close(c->log);
    free(c->path);
    free(c);
}

int hv_console_parts(struct gr_rpc_call *call, const struct gr_buf *b)
{
    int r = 0;
    for (size_t off = 0; off < b->len && r >= 0; off += PART_MAX) {
        gr_auto_free char *text = gr_b64_encode(b->data + off, GR_MIN(b->len - off, (size_t)PART_MAX));
        r = text ? gr_rpc_part(call, json_pack("{s:s}", "data-b64", text)) : -ENOMEM;
    }
    return r;
}

int hv_console_follow(struct hv_console *c, struct gr_rpc_call *call, bool follow, struct gr_err *err)
{
    struct follower me = {.next = c->followers};
    int r = hv_logcap_read(c->path, c->max, &me.pending, err);
    c->followers = &me;
    while (r >= 0 && !gr_rpc_gone(call)) {
        struct gr_buf now = me.pending;
        me.pending = (struct gr_buf){0};
        r = hv_console_parts(call, &now);
        gr_buf_done(&now);
        if (!follow || (c->ended && !me.pending.len))
            break;
        if (r >= 0 && !me.pending.len)
            gr_fqueue_wait_ms(&me.q, 1000); /* looks once a second whether the caller is still there */
    }
    for (struct follower **p = &c->followers; *p; p = &(*p)->next)
        if (*p == &me) {
            *p = me.next;
            break;
        }
    gr_buf_done(&me.pending);
    gr_fqueue_wake_all(&c->idle);
    return r == -EPIPE ? 0 : r;
}

uint64_t hv_console_lost(const struct hv_console *c)
{
    return hv_logcap_lost(c->log);
}

void hv_console_mark(struct hv_console *c, const char *text)
{
    char line[300];
    int n = snprintf(line, sizeof line, "\r\n[granary: %s]\r\n", text);
    if (n > 0)
        hand_out(c, line, GR_MIN((size_t)n, sizeof line - 1));
}
