#include "common/cleanup.h"
#include "common/rpc_wire.h"
#include <string.h>

#define PARTS_QUEUED 32 /* of one call; then the connection is not read on */

/* A call that waits; lives on the caller's stack. */
struct waiting {
    json_int_t id;
    json_t *parts; /* array of those not yet handed on */
    json_t *reply; /* whole frame with "result" or "error" */
    struct gr_fqueue event;
    struct waiting *next;
};

struct gr_rpc_client {
    struct gr_loop *loop;
    struct rpc_wire wire;
    json_int_t last_id;
    struct waiting *waiting;
    struct gr_fqueue room;
    struct gr_fqueue stopped;
    bool reading;
    struct gr_err why; /* the connection ended */
};

static struct waiting *find_waiting(struct gr_rpc_client *c, json_t *frame)
{
    json_t *id = json_object_get(frame, "id");
    struct waiting *w = c->waiting;
    while (w && (!json_is_integer(id) || w->id != json_integer_value(id)))
        w = w->next;
    return w;
}

/* Hand one frame to its caller; of calls that gave up nothing is kept. */
static int take_reply(struct gr_rpc_client *c, json_t *frame)
{
    struct waiting *w = find_waiting(c, frame);
    json_t *part = json_object_get(frame, "part");
    if (!part && !json_object_get(frame, "result") && !json_is_object(json_object_get(frame, "error")))
        return gr_fail(&c->why, -GR_EPROTO, "the daemon sent a malformed answer");
    if (!w)
        return 0;
    if (!part) {
        w->reply = json_incref(frame);
        gr_fqueue_wake_all(&w->event);
        return 0;
    }
    while (w && json_array_size(w->parts) >= PARTS_QUEUED && !c->wire.dead) {
        gr_fqueue_wait(&c->room);
        w = find_waiting(c, frame);
    }
    if (w && json_array_append(w->parts, part) < 0)
        return gr_fail(&c->why, -ENOMEM, "out of memory");
    if (w)
        gr_fqueue_wake_all(&w->event);
    return 0;
}

static void client_main(void *arg)
{
    struct gr_rpc_client *c = arg;
    json_t *frame = NULL;
    int r;
    while ((r = rpc_wire_recv(&c->wire, &frame, &c->why)) > 0) {
        r = take_reply(c, frame);
        json_decref(frame);
        if (r < 0)
            break;
    }
    if (c->why.code == 0)
        gr_fail(&c->why, -EPIPE, "the daemon closed the connection before it had answered");
    rpc_wire_shutdown(&c->wire);
    c->reading = false;
    for (struct waiting *w = c->waiting; w; w = w->next)
        gr_fqueue_wake_all(&w->event);
    gr_fqueue_wake_all(&c->stopped);
}

/* A full backlog of the listening socket (-EAGAIN) is waited for, a few seconds. */
static int connect_patiently(const char *path, int *ret_fd, struct gr_err *err)
{
    int r = gr_unix_connect(path, ret_fd, err);
    for (int i = 0; r == -EAGAIN && i < 500; i++) {
        gr_fiber_sleep_ms(10);
        r = gr_unix_connect(path, ret_fd, err);
    }
    return r;
}

int gr_rpc_client_new(struct gr_loop *loop, int fd, struct gr_rpc_client **ret, struct gr_err *err)
{
    struct gr_rpc_client *c = gr_zalloc(sizeof(*c));
    if (!c) {
        close(fd);
        return gr_fail(err, -ENOMEM, "out of memory");
    }
    c->loop = loop;
    int r = rpc_wire_init(&c->wire, fd);
    if (r == 0 && (r = gr_fiber_start(loop, client_main, c)) < 0)
        rpc_wire_done(&c->wire);
    if (r < 0) {
        free(c);
        return gr_fail(err, r, "%s", gr_code_text(r));
    }
    c->reading = true;
    *ret = c;
    return 0;
}

int gr_rpc_connect(struct gr_loop *loop, const char *path, struct gr_rpc_client **ret, struct gr_err *err)
{
    int fd = -1;
    int r = connect_patiently(path, &fd, err);
    if (r < 0)
        return r;
    if (!gr_unix_served(fd)) {
        close(fd);
        return gr_fail(err, -ECONNREFUSED, "%s: cannot connect: the process that served it has died", path);
    }
    r = gr_rpc_client_new(loop, fd, ret, err);
    return r < 0 ? gr_prefix(err, r, "%s", path) : 0;
}

void gr_rpc_client_free(struct gr_rpc_client *c)
{
    if (!c)
        return;
    rpc_wire_shutdown(&c->wire);
    gr_fqueue_wake_all(&c->room);
    while (c->reading) {
        if (gr_fiber_self())
            gr_fqueue_wait(&c->stopped);
        else
            gr_loop_turn(c->loop, 100);
    }
    rpc_wire_done(&c->wire);
    free(c);
}

/* Hand the queued parts on; on_part may suspend. */
static int deliver_parts(struct gr_rpc_client *c, struct waiting *w, int (*on_part)(void *arg, json_t *part), void *part_arg)
{
    int r = 0;
    while (r >= 0 && json_array_size(w->parts) > 0) {
        json_t *part = json_incref(json_array_get(w->parts, 0));
        json_array_remove(w->parts, 0);
        gr_fqueue_wake_all(&c->room);
        if (on_part)
            r = on_part(part_arg, part);
        json_decref(part);
    }
    return r;
}

/* @of (may be NULL): the call for whose caller this is done. */
static int wait_reply(struct gr_rpc_client *c, struct waiting *w, const struct gr_rpc_call *of, int (*on_part)(void *arg, json_t *part), void *part_arg,
                      int64_t timeout_ms, struct gr_err *err)
{
    uint64_t end = gr_loop_now_ns(c->loop) + (uint64_t)GR_MAX(timeout_ms, 0) * 1000000u;
    for (;;) {
        int r = deliver_parts(c, w, on_part, part_arg);
        if (r < 0)
            return r;
        if (w->reply)
            return 0;
        if (!c->reading)
            return gr_fail(err, c->why.code, "%s", gr_err_text(&c->why, -EPIPE));
        if (json_array_size(w->parts) > 0)
            continue;
        if (gr_rpc_gone(of))
            return gr_fail(err, -GR_ECANCELED, "the caller is gone");
        if (timeout_ms < 0 && of) {
            (void)gr_fqueue_wait_ms(&w->event, RPC_LOOK_MS);
            continue;
        }
        if (timeout_ms < 0) {
            gr_fqueue_wait(&w->event);
            continue;
        }
        uint64_t now = gr_loop_now_ns(c->loop);
        if (now >= end)
            return gr_fail(err, -ETIMEDOUT, "the daemon did not answer within %lld ms", (long long)timeout_ms);
        gr_fqueue_wait_ms(&w->event, (end - now + 999999) / 1000000);
    }
}

static int read_reply(json_t *reply, json_t **ret_result, struct gr_err *err)
{
    json_t *error = json_object_get(reply, "error");
    if (!error) {
        if (ret_result)
            *ret_result = json_incref(json_object_get(reply, "result"));
        return 0;
    }
    const char *name = json_string_value(json_object_get(error, "code")), *text = json_string_value(json_object_get(error, "text"));
    int code = name ? gr_code_from_name(name) : -EIO;
    if (code >= 0)
        code = -EIO;
    return gr_fail(err, code, "%s", text && text[0] ? text : gr_code_text(code));
}

static int call(struct gr_rpc_client *c, const struct gr_rpc_call *of, const char *method, json_t *params, int (*on_part)(void *arg, json_t *part), void *part_arg,
                int64_t timeout_ms, json_t **ret_result, struct gr_err *err)
{
    struct waiting w = {.id = ++c->last_id, .parts = json_array()};
    json_t *request = json_pack("{s:I,s:s,s:o}", "id", w.id, "method", method, "params", params ? params : json_object());
    if (!request || !w.parts) {
        json_decref(request);
        json_decref(w.parts);
        return gr_fail(err, -ENOMEM, "%s: out of memory", method);
    }
    w.next = c->waiting;
    c->waiting = &w;
    int r = rpc_wire_send_for(&c->wire, of, request);
    if (r == -EPIPE)
        r = gr_fail(err, r, "the connection to the daemon is closed");
    else if (r < 0)
        r = gr_fail(err, r, "%s: cannot send: %s", method, gr_code_text(r));
    else
        r = wait_reply(c, &w, of, on_part, part_arg, timeout_ms, err);
    for (struct waiting **p = &c->waiting; *p; p = &(*p)->next)
        if (*p == &w) {
            *p = w.next;
            break;
        }
    if (r < 0 && c->reading) {
        gr_fqueue_wake_all(&c->room); /* the reader may hold a part of ours */
        rpc_wire_send_for(&c->wire, of, json_pack("{s:I,s:b}", "id", w.id, "cancel", 1));
    }
    if (w.reply) {
        if (r >= 0)
            r = read_reply(w.reply, ret_result, err);
        json_decref(w.reply);
    }
    json_decref(w.parts);
    return r;
}

int gr_rpc_call(struct gr_rpc_client *c, const char *method, json_t *params, int (*on_part)(void *arg, json_t *part), void *part_arg,
                int64_t timeout_ms, json_t **ret_result, struct gr_err *err)
{
    return call(c, NULL, method, params, on_part, part_arg, timeout_ms, ret_result, err);
}

static int pass_part(void *arg, json_t *part)
{
    return gr_rpc_part(arg, json_incref(part));
}

int gr_rpc_pass_on(struct gr_rpc_client *c, struct gr_rpc_call *of, const char *method, json_t *params, json_t **ret_result, struct gr_err *err)
{
    return call(c, of, method, params, pass_part, of, -1, ret_result, err);
}
