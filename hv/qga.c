#include "hv/qga.h"
#include "common/b64.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "hv/stream.h"
#include <string.h>

#define QGA_LINE_MAX (32u << 20) /* the agent itself caps captured output at 16 MiB, times 4/3 for base64 */
#define SYNC_MS 2000

struct hv_qga {
    struct gr_loop *loop;
    char *path;
    struct hv_stream *stream;
    bool open;     /* the guest's side of the channel */
    bool dirty;    /* an answer may still be on its way: synchronise before the next command */
    bool ended;    /* the stream ended: connect anew */
    bool waiting;  /* a command is out */
    int64_t sync_id; /* nonzero: only this answer counts */
    json_t *reply;
    struct gr_fqueue answered;
    struct gr_fmutex lock; /* one command at a time: the agent answers in order and without ids */
};

static void on_message(void *arg, json_t *msg)
{
    struct hv_qga *g = arg;
    if (!g->waiting || g->reply)
        return;
    json_t *value = json_object_get(msg, "return");
    if (g->sync_id && !(json_is_integer(value) && json_integer_value(value) == g->sync_id))
        return;
    g->reply = json_incref(msg);
    gr_fqueue_wake_all(&g->answered);
}

static void on_end(void *arg, const char *why)
{
    struct hv_qga *g = arg;
    g->ended = true;
    gr_fqueue_wake_all(&g->answered);
}

int hv_qga_new(struct gr_loop *loop, const char *path, struct hv_qga **ret)
{
    struct hv_qga *g = gr_zalloc(sizeof *g);
    char *copy = gr_strdup(path);
    if (!g || !copy) {
        free(g);
        free(copy);
        return -ENOMEM;
    }
    g->loop = loop;
    g->path = copy;
    g->dirty = true;
    *ret = g;
    return 0;
}

void hv_qga_free(struct hv_qga *g)
{
    if (!g)
        return;
    hv_stream_close(g->stream);
    free(g->path);
    free(g);
}

void hv_qga_set_open(struct hv_qga *g, bool open)
{
    if (open && !g->open)
        g->dirty = true;
    g->open = open;
    if (!open)
        gr_fqueue_wake_all(&g->answered);
}

bool hv_qga_is_open(const struct hv_qga *g)
{
    return g->open;
}

static uint64_t left_ms(struct hv_qga *g, uint64_t due)
{
    uint64_t now = gr_loop_now_ns(g->loop);
    return now >= due ? 0 : (due - now) / 1000000 + 1;
}

/* Send one message and wait for what on_message accepts. *ret: a new reference to the whole answer. */
static int exchange(struct hv_qga *g, bool mark, json_t *msg, int64_t sync_id, uint64_t due, json_t **ret)
{
    g->waiting = true;
    g->sync_id = sync_id;
    int r = hv_stream_send(g->stream, mark, msg, -1, GR_MAX(left_ms(g, due), 1u));
    while (r >= 0 && !g->reply) {
        uint64_t ms = left_ms(g, due);
        if (g->ended || !g->open)
            r = -ENOTCONN;
        else if (!ms)
            r = -ETIMEDOUT;
        else
            gr_fqueue_wait_ms(&g->answered, ms);
    }
    json_t *reply = gr_take(g->reply);
    g->waiting = false;
    g->sync_id = 0;
    if (!reply)
        return r == -EPIPE ? -ENOTCONN : r;
    *ret = reply;
    return 0;
}

static int ensure_connected(struct hv_qga *g, struct gr_err *err)
{
    if (g->stream && !g->ended)
        return 0;
    hv_stream_close(g->stream);
    g->stream = NULL;
    g->ended = false;
    g->dirty = true;
    struct hv_stream_opts so = {.loop = g->loop, .max_line = QGA_LINE_MAX, .resync = true, .on_message = on_message, .on_end = on_end, .arg = g};
    return hv_stream_open(&so, g->path, &g->stream, err);
}

static int synchronise(struct hv_qga *g, uint64_t due)
{
    int64_t id = 0;
    gr_loop_world(g->loop)->random(gr_loop_world(g->loop)->arg, &id, sizeof id);
    id = (id & 0x3fffffffffff) | 1;
    json_auto_t *msg = json_pack("{s:s, s:{s:I}}", "execute", "guest-sync-delimited", "arguments", "id", (json_int_t)id), *reply = NULL;
    uint64_t sync_due = gr_loop_now_ns(g->loop) + SYNC_MS * 1000000ull;
    int r = msg ? exchange(g, true, msg, id, GR_MIN(due, sync_due), &reply) : -ENOMEM;
    if (r >= 0)
        g->dirty = false;
    return r;
}

static int locked_call(struct hv_qga *g, const char *cmd, json_t *args, uint64_t due, json_t **ret, struct gr_err *err)
{
    if (!g->open)
        return gr_fail(err, -ENOTCONN, "no guest agent is running in the guest");
    int r = ensure_connected(g, err);
    if (r < 0)
        return r;
    if (g->dirty && (r = synchronise(g, due)) < 0)
        return gr_fail(err, r, "the guest agent does not answer: %s", gr_code_text(r));
    json_auto_t *msg = args ? json_pack("{s:s, s:O}", "execute", cmd, "arguments", args) : json_pack("{s:s}", "execute", cmd), *reply = NULL;
    if (!msg)
        return gr_fail(err, -ENOMEM, "out of memory");
    g->dirty = true;
    r = exchange(g, false, msg, 0, due, &reply);
    if (r < 0)
        return gr_fail(err, r, r == -ETIMEDOUT ? "the guest agent gave no answer to '%s' in time" : "the guest agent went away during '%s'", cmd);
    g->dirty = false;
    json_t *error = json_object_get(reply, "error"), *value = json_object_get(reply, "return");
    if (error || !value) {
        const char *text = json_string_value(json_object_get(error, "desc"));
        return gr_fail(err, error ? -EIO : -GR_EPROTO, "the guest agent refused '%s': %s", cmd, text ? text : "no reason given");
    }
    if (ret)
        *ret = json_incref(value);
    return 0;
}

int hv_qga_call(struct hv_qga *g, const char *cmd, json_t *args, uint64_t timeout_ms, json_t **ret, struct gr_err *err)
{
    json_auto_t *take = args;
    uint64_t due = gr_loop_now_ns(g->loop) + timeout_ms * 1000000;
    gr_fmutex_lock(&g->lock);
    int r = locked_call(g, cmd, take, due, ret, err);
    gr_fmutex_unlock(&g->lock);
    return r;
}

int hv_qga_ping(struct hv_qga *g, uint64_t timeout_ms, struct gr_err *err)
{
    return hv_qga_call(g, "guest-ping", NULL, timeout_ms, NULL, err);
}

static int take_output(json_t *status, const char *key, struct gr_buf *ret)
{
    json_t *v = json_object_get(status, key);
    if (!v)
        return 0;
    if (!json_is_string(v) || json_string_length(v) / 4 * 3 > HV_EXEC_OUTPUT_MAX * 2)
        return -GR_EPROTO;
    int r = gr_b64_decode(json_string_value(v), json_string_length(v), ret);
    return r == -EINVAL ? -GR_EPROTO : r;
}

static int start_program(struct hv_qga *g, json_t *argv, const struct gr_buf *input, uint64_t timeout_ms, int64_t *ret_pid, struct gr_err *err)
{
    json_auto_t *args = json_pack("{s:O, s:b, s:[]}", "path", json_array_get(argv, 0), "capture-output", 1, "arg"), *started = NULL;
    json_t *list = json_object_get(args, "arg");
    int bad = !args;
    for (size_t i = 1; i < json_array_size(argv); i++)
        bad |= json_array_append(list, json_array_get(argv, i));
    if (input) {
        gr_auto_free char *b64 = gr_b64_encode(input->data, input->len);
        bad |= !b64 || json_object_set_new(args, "input-data", json_string(b64));
    }
    if (bad)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = hv_qga_call(g, "guest-exec", gr_take(args), timeout_ms, &started, err);
    if (r < 0)
        return r;
    json_t *pid = json_object_get(started, "pid");
    if (!json_is_integer(pid))
        return gr_fail(err, -GR_EPROTO, "the guest agent did not tell the program's number");
    *ret_pid = json_integer_value(pid);
    return 0;
}

int hv_qga_exec(struct hv_qga *g, json_t *argv, const struct gr_buf *input, uint64_t timeout_ms, struct hv_exec_result *ret, struct gr_err *err)
{
    uint64_t due = gr_loop_now_ns(g->loop) + timeout_ms * 1000000;
    int64_t pid = 0;
    const char *name = json_string_value(json_array_get(argv, 0));
    if (!name)
        return gr_fail(err, -EINVAL, "no program to run");
    int r = start_program(g, argv, input, GR_MIN(timeout_ms, 20000u), &pid, err);
    for (unsigned pause_ms = 20; r >= 0; pause_ms = GR_MIN(pause_ms * 2, 500u)) {
        json_auto_t *status = NULL;
        if (!left_ms(g, due))
            return gr_fail(err, -ETIMEDOUT, "'%s' was still running in the guest after %.1f s", name, (double)timeout_ms / 1e3);
        r = hv_qga_call(g, "guest-exec-status", json_pack("{s:I}", "pid", (json_int_t)pid), GR_MIN(left_ms(g, due) + 1000, 20000u), &status, err);
        if (r < 0)
            return r;
        if (json_is_false(json_object_get(status, "exited"))) {
            gr_fiber_sleep_ms(pause_ms); /* the agent has no event for a program's end: it must be asked */
            continue;
        }
        json_t *code = json_object_get(status, "exitcode"), *sig = json_object_get(status, "signal");
        ret->exit_code = json_is_integer(code) ? (int)(json_integer_value(code) & 255) : 128 + (int)(json_integer_value(sig) & 127);
        ret->truncated = json_is_true(json_object_get(status, "out-truncated")) || json_is_true(json_object_get(status, "err-truncated"));
        r = take_output(status, "out-data", &ret->out);
        if (r >= 0)
            r = take_output(status, "err-data", &ret->err);
        return r < 0 ? gr_fail(err, r, "the guest agent's answer for '%s' is not valid", name) : 0;
    }
    return r;
}
