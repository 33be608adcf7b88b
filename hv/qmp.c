#include "hv/qmp.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "hv/stream.h"
#include <string.h>

#define QMP_LINE_MAX (4u << 20)

struct waiter {
    uint64_t id;
    json_t *reply; /* whole message */
    struct gr_fqueue q;
    struct waiter *next;
};
struct hv_qmp {
    struct hv_qmp_opts o;
    struct hv_stream *stream;
    struct waiter *waiters;
    struct gr_fqueue greeted;
    bool greeting, ended;
    uint64_t last_id;
};

static void on_message(void *arg, json_t *msg)
{
    struct hv_qmp *q = arg;
    json_t *event = json_object_get(msg, "event"), *id = json_object_get(msg, "id");
    if (json_is_object(json_object_get(msg, "QMP"))) {
        q->greeting = true;
        gr_fqueue_wake_all(&q->greeted);
    } else if (json_is_string(event)) {
        q->o.on_event(q->o.arg, json_string_value(event), json_object_get(msg, "data"));
    } else if (json_is_integer(id)) {
        for (struct waiter *w = q->waiters; w; w = w->next)
            if (w->id == (uint64_t)json_integer_value(id) && !w->reply) {
                w->reply = json_incref(msg);
                gr_fqueue_wake_all(&w->q);
                break;
            }
    }
}

static void on_end(void *arg, const char *why)
{
    struct hv_qmp *q = arg;
    q->ended = true;
    gr_fqueue_wake_all(&q->greeted);
    for (struct waiter *w = q->waiters; w; w = w->next)
        gr_fqueue_wake_all(&w->q);
    if (q->o.on_end)
        q->o.on_end(q->o.arg, why);
}

/* Milliseconds until @due, 0 when it has passed. */
static int remaining_ms(struct gr_loop *loop, uint64_t due)
{
    uint64_t now = gr_loop_now_ns(loop);
    return now >= due ? 0 : (int)GR_MIN((due - now) / 1000000 + 1, (uint64_t)INT32_MAX);
}

static int call(struct hv_qmp *q, const char *cmd, json_t *args, int fd, uint64_t timeout_ms, json_t **ret, struct gr_err *err)
{
    json_auto_t *take = args;
    struct waiter w = {.id = ++q->last_id};
    uint64_t due = gr_loop_now_ns(q->o.loop) + timeout_ms * 1000000;
    json_auto_t *msg = take ? json_pack("{s:s, s:O, s:I}", "execute", cmd, "arguments", take, "id", (json_int_t)w.id)
                            : json_pack("{s:s, s:I}", "execute", cmd, "id", (json_int_t)w.id);
    if (!msg)
        return gr_fail(err, -ENOMEM, "out of memory");
    w.next = q->waiters;
    q->waiters = &w;
    int r = q->ended ? -EPIPE : hv_stream_send(q->stream, false, msg, fd, timeout_ms);
    while (r >= 0 && !w.reply && !q->ended) {
        int ms = remaining_ms(q->o.loop, due);
        r = ms ? gr_fqueue_wait_ms(&w.q, (uint64_t)ms) : -ETIMEDOUT;
        if (r == -ETIMEDOUT && (w.reply || remaining_ms(q->o.loop, due)))
            r = 0;
    }
    for (struct waiter **p = &q->waiters; *p; p = &(*p)->next)
        if (*p == &w) {
            *p = w.next;
            break;
        }
    json_auto_t *reply = w.reply;
    if (!reply)
        return gr_fail(err, r < 0 ? r : -EPIPE, "QEMU's monitor %s to '%s'", r == -ETIMEDOUT ? "gave no answer in time" : "closed before it answered", cmd);
    json_t *error = json_object_get(reply, "error"), *value = json_object_get(reply, "return");
    if (error || !value) {
        const char *text = json_string_value(json_object_get(error, "desc"));
        return gr_fail(err, -EIO, "QEMU refused '%s': %s", cmd, text ? text : "no reason given");
    }
    if (ret)
        *ret = json_incref(value);
    return 0;
}

int hv_qmp_call(struct hv_qmp *q, const char *cmd, json_t *args, uint64_t timeout_ms, json_t **ret, struct gr_err *err)
{
    return call(q, cmd, args, -1, timeout_ms, ret, err);
}

int hv_qmp_give_fd(struct hv_qmp *q, const char *name, int fd, uint64_t timeout_ms, struct gr_err *err)
{
    return call(q, "getfd", json_pack("{s:s}", "fdname", name), fd, timeout_ms, NULL, err);
}

int hv_qmp_connect(const struct hv_qmp_opts *opts, const char *path, uint64_t timeout_ms, struct hv_qmp **ret, struct gr_err *err)
{
    struct hv_qmp *q = gr_zalloc(sizeof *q);
    if (!q)
        return gr_fail(err, -ENOMEM, "out of memory");
    q->o = *opts;
    uint64_t due = gr_loop_now_ns(opts->loop) + timeout_ms * 1000000;
    struct hv_stream_opts so = {.loop = opts->loop, .max_line = QMP_LINE_MAX, .on_message = on_message, .on_end = on_end, .arg = q};
    int r = hv_stream_open(&so, path, &q->stream, err);
    while (r >= 0 && !q->greeting && !q->ended) {
        int ms = remaining_ms(opts->loop, due);
        if (!ms || (gr_fqueue_wait_ms(&q->greeted, (uint64_t)ms) < 0 && !remaining_ms(opts->loop, due)))
            r = q->greeting ? 0 : gr_fail(err, -ETIMEDOUT, "QEMU's monitor at %s did not greet in time", path);
    }
    if (r >= 0 && !q->greeting)
        r = gr_fail(err, -GR_EPROTO, "what answers at %s is no QEMU monitor", path);
    if (r >= 0)
        r = hv_qmp_call(q, "qmp_capabilities", NULL, (uint64_t)remaining_ms(opts->loop, due), NULL, err);
    if (r < 0) {
        q->o.on_end = NULL;
        hv_qmp_close(q);
        return r;
    }
    *ret = q;
    return 0;
}

void hv_qmp_close(struct hv_qmp *q)
{
    if (!q)
        return;
    hv_stream_close(q->stream);
    free(q);
}
