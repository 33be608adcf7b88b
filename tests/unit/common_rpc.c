#include "common/cleanup.h"
#include "common/daemon.h"
#include "common/endian.h"
#include "common/rpc_wire.h"
#include "tests/lib/test.h"
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* ---- a daemon and its methods ---- */
struct daemon {
    struct gr_loop *loop;
    struct gr_rpc_server *server;
    char *path;
    unsigned running, most_running, closed, stopped_early;
    uint64_t parts_sent;
};

static int m_echo(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    *ret = json_incref(params);
    return 0;
}

static int m_sleep(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct daemon *d = arg;
    uint64_t ms = 0;
    int r = gr_json_u64(params, "ms", &ms, err);
    if (r < 0)
        return r;
    d->running++;
    d->most_running = GR_MAX(d->most_running, d->running);
    gr_fiber_sleep_ms(ms);
    d->running--;
    *ret = json_pack("{s:I}", "slept", (json_int_t)ms);
    return 0;
}

static int m_fail(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    const char *text = "disk 'a\"b' is damaged";
    gr_json_opt_str(params, "text", &text, err);
    return gr_fail(err, -GR_ECORRUPT, "%s", text);
}

static int m_not_utf8(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    return gr_fail(err, -ENOENT, "name \xff\xfe");
}

static int m_stream(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct daemon *d = arg;
    uint64_t n = 0, bytes = 1;
    int r = gr_json_u64(params, "n", &n, err);
    gr_json_opt_u64(params, "bytes", &bytes, err);
    gr_auto_free char *fill = malloc(bytes + 1);
    memset(fill, 'x', bytes);
    fill[bytes] = 0;
    for (uint64_t i = 0; r == 0 && i < n; i++) {
        r = gr_rpc_part(call, json_pack("{s:I,s:s}", "i", (json_int_t)i, "fill", fill));
        d->parts_sent += r == 0;
    }
    if (r < 0 && gr_rpc_gone(call))
        d->stopped_early++;
    *ret = json_pack("{s:I}", "sent", (json_int_t)n);
    return r;
}

static int m_huge(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    gr_auto_free char *fill = malloc(GR_RPC_MAX + 1);
    memset(fill, 'x', GR_RPC_MAX);
    fill[GR_RPC_MAX] = 0;
    *ret = json_pack("{s:s}", "fill", fill);
    return 0;
}

static void count_close(void *arg)
{
    ((struct daemon *)arg)->closed++;
}

static int m_pin(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    return gr_rpc_on_close(call, count_close, arg);
}

static int m_where(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    *ret = json_pack("{s:I}", "connection", (json_int_t)gr_rpc_connection(call));
    return 0;
}

/* Passed on to somebody who never reads. */
static int m_pass(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct daemon *d = arg;
    struct gr_rpc_client *c = NULL;
    int fd[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd), 0);
    assert_int_equal(gr_rpc_client_new(d->loop, fd[0], &c, err), 0);
    d->running++;
    int r = gr_rpc_pass_on(c, call, "echo", json_incref(params), ret, err);
    d->running--;
    gr_rpc_client_free(c);
    close(fd[1]);
    return r;
}

static const struct gr_rpc_method methods[] = {
    {"echo", m_echo}, {"sleep", m_sleep}, {"pass", m_pass}, {"fail", m_fail}, {"not-utf8", m_not_utf8}, {"stream", m_stream},
    {"huge", m_huge}, {"pin", m_pin},     {"where", m_where}, {NULL, NULL},
};

static void daemon_start(struct daemon *d)
{
    struct gr_err err = {0};
    *d = (struct daemon){.loop = gr_fiber_loop(), .path = test_path("rpc.sock")};
    assert_int_equal(gr_rpc_server_new(d->loop, &d->server), 0);
    assert_int_equal(gr_rpc_server_add(d->server, methods, d), 0);
    assert_int_equal(gr_rpc_server_listen(d->server, d->path, &err), 0);
}

static void daemon_stop(struct daemon *d)
{
    struct stat st;
    gr_rpc_server_free(d->server);
    assert_int_not_equal(stat(d->path, &st), 0);
    free(d->path);
}

static struct gr_rpc_client *client_of(struct daemon *d)
{
    struct gr_rpc_client *c = NULL;
    struct gr_err err = {0};
    assert_int_equal(gr_rpc_connect(d->loop, d->path, &c, &err), 0);
    return c;
}

/* ---- another server takes the place ---- */
struct moved {
    unsigned n;
    struct gr_rpc_left c;
    struct gr_buf unread;
};

static int move(void *arg, const struct gr_rpc_left *c)
{
    struct moved *m = arg;
    m->n++;
    m->c = *c;
    m->c.fd = dup(c->fd);
    assert_true(m->c.fd >= 0);
    assert_int_equal(gr_buf_add(&m->unread, c->unread, c->len), 0);
    return 0;
}

struct asks {
    struct gr_rpc_client *c;
    const char *method;
    json_t *params;
    int result;
    json_t *out;
    bool done;
};

static void ask_fiber(void *arg)
{
    struct asks *a = arg;
    struct gr_err err = {0};
    a->result = gr_rpc_call(a->c, a->method, a->params, NULL, NULL, 5000, &a->out, &err);
    a->done = true;
}

static void ask(struct asks *a, struct daemon *d, struct gr_rpc_client *c, const char *method, json_t *params)
{
    *a = (struct asks){.c = c, .method = method, .params = params};
    assert_int_equal(gr_fiber_start(d->loop, ask_fiber, a), 0);
    gr_fiber_sleep_ms(20);
}

static uint64_t connection_of(struct gr_rpc_client *c)
{
    json_t *out = NULL;
    assert_int_equal(gr_rpc_call(c, "where", NULL, NULL, NULL, 1000, &out, NULL), 0);
    uint64_t id = (uint64_t)json_integer_value(json_object_get(out, "connection"));
    json_decref(out);
    return id;
}

static int hand_over_body(void *arg)
{
    struct daemon old, new = {0};
    struct asks slow, held;
    struct moved m = {0};
    daemon_start(&old);
    struct gr_rpc_client *c = client_of(&old), *busy = client_of(&old);
    /* one that is at work is waited for, one that comes meanwhile waits; nothing is lost when the server stays after all */
    ask(&slow, &old, c, "sleep", json_pack("{s:i}", "ms", 150));
    uint64_t began = gr_loop_now_ns(old.loop);
    assert_int_equal(gr_rpc_server_rest(old.server, NULL, 3000), 0);
    assert_true(gr_loop_now_ns(old.loop) - began > 50000000);
    gr_fiber_sleep_ms(20);
    assert_true(slow.done && slow.result == 0);
    ask(&held, &old, c, "echo", json_pack("{s:s}", "k", "later"));
    assert_false(held.done);
    gr_rpc_server_resume(old.server);
    gr_fiber_sleep_ms(20);
    assert_true(held.done && held.result == 0);
    json_decref(slow.out);
    json_decref(held.out);
    /* the connection goes to another server: with a request that waits, and with what is tied to it */
    assert_int_equal(gr_rpc_call(c, "pin", NULL, NULL, NULL, 1000, NULL, NULL), 0);
    uint64_t where = connection_of(c);
    ask(&slow, &old, busy, "sleep", json_pack("{s:i}", "ms", 600)); /* this one is not in time: cut */
    assert_int_equal(gr_rpc_server_rest(old.server, NULL, 50), 1);
    ask(&held, &old, c, "echo", json_pack("{s:s}", "k", "over there"));
    assert_false(held.done);
    assert_true(gr_rpc_may_leave(old.server, where));
    assert_int_equal(gr_rpc_server_bequeath(old.server, move, &m), 0); /* not with something tied to it */
    assert_int_equal(m.n, 0);
    assert_false(gr_rpc_untie(old.server, where, count_close, &m));
    assert_true(gr_rpc_untie(old.server, where, count_close, &old));
    assert_int_equal(gr_rpc_server_bequeath(old.server, move, &m), 0);
    assert_int_equal(m.n, 1);
    assert_int_equal(m.c.id, where);
    assert_true(m.unread.len > 0);
    daemon_stop(&old);
    assert_true(slow.done && slow.result < 0);
    assert_int_equal(old.closed, 0); /* it did not close */
    assert_false(held.done);
    daemon_start(&new);
    m.c.unread = m.unread.data;
    assert_int_equal(gr_rpc_server_inherit(new.server, &m.c), 0);
    assert_int_equal(gr_rpc_tie(new.server, where + 7, count_close, &new), -ENOENT);
    assert_int_equal(gr_rpc_tie(new.server, where, count_close, &new), 0);
    gr_fiber_sleep_ms(30);
    assert_true(held.done && held.result == 0);
    assert_string_equal(json_string_value(json_object_get(held.out, "k")), "over there");
    json_decref(held.out);
    struct gr_rpc_client *late = client_of(&new); /* numbers are never used twice */
    assert_int_equal(connection_of(c), where);
    assert_int_not_equal(connection_of(late), where);
    gr_rpc_client_free(late);
    assert_int_equal(new.closed, 0);
    gr_rpc_client_free(c);
    gr_fiber_sleep_ms(20);
    assert_int_equal(new.closed, 1);
    gr_rpc_client_free(busy);
    gr_buf_done(&m.unread);
    daemon_stop(&new);
    return 0;
}

static void hand_over(void **state)
{
    test_in_fiber(hand_over_body, NULL);
}

/* ---- calls ---- */
static int calls_body(void *arg)
{
    struct daemon d;
    struct gr_err err = {0};
    daemon_start(&d);
    struct gr_rpc_client *c = client_of(&d);
    json_t *out = NULL;
    assert_int_equal(gr_rpc_call(c, "echo", json_pack("{s:s}", "k", "v\xc3\xa4"), NULL, NULL, 1000, &out, &err), 0);
    assert_string_equal(json_string_value(json_object_get(out, "k")), "v\xc3\xa4");
    json_decref(out);
    assert_int_equal(gr_rpc_call(c, "echo", NULL, NULL, NULL, -1, NULL, &err), 0);
    /* errors come back as they were */
    assert_int_equal(gr_rpc_call(c, "fail", NULL, NULL, NULL, -1, NULL, &err), -GR_ECORRUPT);
    assert_string_equal(err.text, "disk 'a\"b' is damaged");
    assert_int_equal(gr_rpc_call(c, "not-utf8", NULL, NULL, NULL, -1, NULL, &err), -ENOENT);
    assert_int_equal(gr_rpc_call(c, "sleep", NULL, NULL, NULL, -1, NULL, &err), -EINVAL);
    assert_string_equal(err.text, "\"ms\" is missing");
    assert_int_equal(gr_rpc_call(c, "no-such", NULL, NULL, NULL, -1, NULL, &err), -EOPNOTSUPP);
    assert_int_equal(gr_rpc_call(c, "huge", NULL, NULL, NULL, -1, NULL, &err), -EMSGSIZE);
    assert_int_equal(gr_rpc_call(c, "sleep", json_pack("{s:i}", "ms", 300), NULL, NULL, 20, NULL, &err), -ETIMEDOUT);
    /* the connection is good for more after all that */
    assert_int_equal(gr_rpc_call(c, "echo", NULL, NULL, NULL, 1000, NULL, &err), 0);
    /* a second server at that path is refused, a dead socket is replaced */
    struct gr_rpc_server *second = NULL;
    assert_int_equal(gr_rpc_server_new(d.loop, &second), 0);
    assert_int_equal(gr_rpc_server_listen(second, d.path, &err), -EADDRINUSE);
    gr_rpc_server_free(second);
    gr_rpc_client_free(c);
    daemon_stop(&d);
    assert_int_equal(gr_rpc_connect(gr_fiber_loop(), "/nonexistent/s", &c, &err), -ENOENT);
    return 0;
}

static void calls(void **state)
{
    test_in_fiber(calls_body, NULL);
}

/* ---- many at once: 16 connections, 200 calls on each ---- */
struct caller {
    struct daemon *d;
    unsigned *left;
    unsigned seed;
};

static void caller_main(void *arg)
{
    struct caller *caller = arg;
    struct gr_rpc_client *c = client_of(caller->d);
    for (int i = 0; i < 200; i++) {
        json_t *out = NULL;
        json_int_t want = caller->seed * 1000 + i;
        if (i % 10 == 0) {
            assert_int_equal(gr_rpc_call(c, "sleep", json_pack("{s:i}", "ms", 1), NULL, NULL, -1, NULL, NULL), 0);
            continue;
        }
        assert_int_equal(gr_rpc_call(c, "echo", json_pack("{s:I}", "n", want), NULL, NULL, -1, &out, NULL), 0);
        assert_int_equal(json_integer_value(json_object_get(out, "n")), want);
        json_decref(out);
    }
    gr_rpc_client_free(c);
    --*caller->left;
}

struct shared_call {
    struct gr_rpc_client *c;
    unsigned *left;
    int ms;
};

static void shared_main(void *arg)
{
    struct shared_call *s = arg;
    json_t *out = NULL;
    assert_int_equal(gr_rpc_call(s->c, "sleep", json_pack("{s:i}", "ms", s->ms), NULL, NULL, -1, &out, NULL), 0);
    assert_int_equal(json_integer_value(json_object_get(out, "slept")), s->ms);
    json_decref(out);
    --*s->left;
}

static int many_body(void *arg)
{
    struct daemon d;
    struct caller callers[16];
    struct shared_call shared[100];
    unsigned left = 16;
    daemon_start(&d);
    for (unsigned i = 0; i < 16; i++) {
        callers[i] = (struct caller){&d, &left, i + 1};
        assert_int_equal(gr_fiber_start(d.loop, caller_main, &callers[i]), 0);
    }
    while (left > 0)
        gr_fiber_sleep_ms(2);
    /* 100 at once on one connection, answered out of order; the server runs a bounded number of them side by side */
    struct gr_rpc_client *c = client_of(&d);
    left = 100;
    d.most_running = 0;
    for (int i = 0; i < 100; i++) {
        shared[i] = (struct shared_call){c, &left, 1 + (100 - i) % 23};
        assert_int_equal(gr_fiber_start(d.loop, shared_main, &shared[i]), 0);
    }
    while (left > 0)
        gr_fiber_sleep_ms(2);
    assert_true(d.most_running > 1 && d.most_running <= 64);
    gr_rpc_client_free(c);
    daemon_stop(&d);
    return 0;
}

static void many_at_once(void **state)
{
    test_in_fiber(many_body, NULL);
}

/* ---- streams ---- */
struct sink {
    uint64_t next;
    unsigned pause_every, stop_at;
};

static int take_part(void *arg, json_t *part)
{
    struct sink *s = arg;
    assert_int_equal(json_integer_value(json_object_get(part, "i")), s->next);
    s->next++;
    if (s->stop_at && s->next == s->stop_at)
        return -ECANCELED;
    if (s->pause_every && s->next % s->pause_every == 0)
        gr_fiber_sleep_ms(1);
    return 0;
}

static int stream_body(void *arg)
{
    struct daemon d;
    struct gr_err err = {0};
    struct sink sink = {.pause_every = 50};
    daemon_start(&d);
    struct gr_rpc_client *c = client_of(&d);
    json_t *out = NULL;
    assert_int_equal(gr_rpc_call(c, "stream", json_pack("{s:i,s:i}", "n", 2000, "bytes", 4000), take_part, &sink, -1, &out, &err), 0);
    assert_int_equal(sink.next, 2000);
    assert_int_equal(json_integer_value(json_object_get(out, "sent")), 2000);
    json_decref(out);
    /* the reader gives up: the sender is told and stops, the connection goes on */
    sink = (struct sink){.stop_at = 10};
    d.parts_sent = 0;
    assert_int_equal(gr_rpc_call(c, "stream", json_pack("{s:i,s:i}", "n", 1000000, "bytes", 4000), take_part, &sink, -1, NULL, &err),
                     -ECANCELED);
    assert_int_equal(gr_rpc_call(c, "echo", NULL, NULL, NULL, 2000, NULL, &err), 0);
    for (int i = 0; i < 500 && d.stopped_early == 0; i++)
        gr_fiber_sleep_ms(2);
    assert_int_equal(d.stopped_early, 1);
    assert_true(d.parts_sent < 10000);
    gr_rpc_client_free(c);
    /* a peer that never reads: the sender is held by the socket's buffer, and let go when the peer dies */
    int fd = -1;
    assert_int_equal(gr_unix_connect(d.path, &fd, &err), 0);
    struct gr_buf frame = {0};
    json_t *req = json_pack("{s:i,s:s,s:{s:i,s:i}}", "id", 1, "method", "stream", "params", "n", 1000000, "bytes", 4000);
    assert_int_equal(rpc_frame_encode(req, &frame), 0);
    json_decref(req);
    d.parts_sent = 0;
    assert_int_equal(send(fd, frame.data, frame.len, MSG_NOSIGNAL), frame.len);
    gr_fiber_sleep_ms(50);
    uint64_t held = d.parts_sent;
    gr_fiber_sleep_ms(50);
    assert_true(held > 0 && held < 1000);
    assert_int_equal(d.parts_sent, held);
    close(fd);
    for (int i = 0; i < 500 && d.stopped_early == 1; i++)
        gr_fiber_sleep_ms(2);
    assert_int_equal(d.stopped_early, 2);
    gr_buf_done(&frame);
    daemon_stop(&d);
    return 0;
}

/* More than the socket takes is passed on, to somebody who reads nothing of it: it ends with whoever asked for it. */
static int deaf_body(void *arg)
{
    struct daemon d;
    struct gr_err err = {0};
    gr_auto_free char *fill = malloc((4u << 20) + 1);
    memset(fill, 'x', 4u << 20);
    fill[4u << 20] = 0;
    daemon_start(&d);
    for (unsigned how = 0; how < 2; how++) { /* he gives it up, or is gone */
        struct gr_rpc_client *c = client_of(&d);
        assert_int_equal(gr_rpc_call(c, "pass", json_pack("{s:s}", "fill", how ? fill : ""), NULL, NULL, 300, NULL, &err), -ETIMEDOUT);
        assert_int_equal(gr_rpc_call(c, "pass", json_pack("{s:s}", "fill", fill), NULL, NULL, 300, NULL, &err), -ETIMEDOUT);
        if (how)
            gr_rpc_client_free(gr_take(c));
        for (int i = 0; i < 500 && d.running; i++)
            gr_fiber_sleep_ms(10);
        assert_int_equal(d.running, 0);
        gr_rpc_client_free(c);
    }
    daemon_stop(&d);
    return 0;
}

static void deaf(void **state)
{
    test_in_fiber(deaf_body, NULL);
}

static void streams(void **state)
{
    test_in_fiber(stream_body, NULL);
}

/* ---- deaths ---- */
static void wait_slow(void *arg)
{
    struct shared_call *s = arg;
    struct gr_err err = {0};
    assert_int_equal(gr_rpc_call(s->c, "sleep", json_pack("{s:i}", "ms", 100), NULL, NULL, -1, NULL, &err), -EPIPE);
    assert_non_null(strstr(err.text, "closed the connection"));
    --*s->left;
}

static int death_body(void *arg)
{
    struct daemon d;
    daemon_start(&d);
    /* closers run when the client goes, for each call that asked */
    struct gr_rpc_client *c = client_of(&d);
    for (int i = 0; i < 3; i++)
        assert_int_equal(gr_rpc_call(c, "pin", NULL, NULL, NULL, -1, NULL, NULL), 0);
    gr_fiber_sleep_ms(5);
    assert_int_equal(d.closed, 0);
    gr_rpc_client_free(c);
    for (int i = 0; i < 500 && d.closed < 3; i++)
        gr_fiber_sleep_ms(2);
    assert_int_equal(d.closed, 3);
    /* the daemon goes while calls wait: each gets an error, at once */
    c = client_of(&d);
    unsigned left = 5;
    struct shared_call s = {c, &left, 100};
    for (int i = 0; i < 5; i++)
        assert_int_equal(gr_fiber_start(d.loop, wait_slow, &s), 0);
    gr_fiber_sleep_ms(20);
    daemon_stop(&d);
    while (left > 0)
        gr_fiber_sleep_ms(1);
    struct gr_err err = {0};
    assert_int_equal(gr_rpc_call(c, "echo", NULL, NULL, NULL, -1, NULL, &err), -EPIPE);
    gr_rpc_client_free(c);
    return 0;
}

static void deaths(void **state)
{
    test_in_fiber(death_body, NULL);
}

/* ---- hostile peers of the server: each must lose its connection and harm nobody ---- */
static void must_be_closed(struct daemon *d, struct gr_rpc_client *good, const void *bytes, size_t len, bool half_close)
{
    int fd = -1;
    char drop[4096];
    struct gr_err err = {0};
    assert_int_equal(gr_unix_connect(d->path, &fd, &err), 0);
    for (size_t sent = 0; sent < len;) {
        ssize_t n = send(fd, (const char *)bytes + sent, len - sent, MSG_NOSIGNAL);
        if (n > 0)
            sent += (size_t)n;
        else if (errno == EAGAIN)
            gr_fiber_wait_fd(fd, POLLOUT, 2000);
        else
            break; /* closed in the middle: as it should be */
    }
    if (half_close)
        shutdown(fd, SHUT_WR);
    for (;;) {
        int ready = gr_fiber_wait_fd(fd, POLLIN, 3000);
        assert_true(ready > 0);
        ssize_t n = recv(fd, drop, sizeof(drop), 0);
        if (n == 0 || (n < 0 && errno == ECONNRESET))
            break;
    }
    close(fd);
    assert_int_equal(gr_rpc_call(good, "echo", NULL, NULL, NULL, 2000, NULL, &err), 0);
}

static void frame_of(struct gr_buf *b, const void *body, size_t len)
{
    b->len = 0;
    gr_buf_add(b, "GRP1\0\0\0\0", 8);
    gr_put_be32(b->data + 4, (uint32_t)len);
    gr_buf_add(b, body, len);
}

static int hostile_body(void *arg)
{
    static const char *const bodies[] = {
        "", "[]", "1", "nonsense", "{\"id\":1}", "{\"id\":\"x\",\"method\":\"echo\"}", "{\"method\":\"echo\"}",
        "{\"id\":1,\"method\":5}", "{\"id\":1,\"method\":\"echo\",\"params\":[]}", "{\"id\":1,\"id\":2,\"method\":\"echo\"}",
        "{\"id\":1e3,\"method\":\"echo\"}", "{\"id\":1,\"method\":\"echo\"} trailing", "{\"id\":1,\"method\":\"ec\xff\"}",
        "{\"id\":99999999999999999999999,\"method\":\"echo\"}",
    };
    struct daemon d;
    struct gr_buf b = {0}, body = {0};
    daemon_start(&d);
    struct gr_rpc_client *good = client_of(&d);
    must_be_closed(&d, good, "GET / HTTP/1.1\r\n\r\n", 18, false);
    must_be_closed(&d, good, "GRP2\0\0\0\2{}", 10, false);
    must_be_closed(&d, good, "X", 1, false);
    must_be_closed(&d, good, "GRP1\xff\xff\xff\xff", 8, false); /* 4 GiB */
    must_be_closed(&d, good, "GRP1\x01\0\0\1", 8, false);       /* one byte above the limit */
    must_be_closed(&d, good, "GRP1\0\0\1\0{\"id\"", 13, true);  /* cut */
    must_be_closed(&d, good, "GRP1", 4, true);
    must_be_closed(&d, good, "", 0, true);
    for (size_t i = 0; i < GR_ARRAY_LEN(bodies); i++) {
        frame_of(&b, bodies[i], strlen(bodies[i]));
        must_be_closed(&d, good, b.data, b.len, false);
    }
    /* depth: a million brackets, and a nest inside a valid request */
    for (int i = 0; i < 1000000; i++)
        gr_buf_add(&body, i % 2 ? "[" : "[[", i % 2 ? 1 : 2);
    frame_of(&b, body.data, body.len);
    must_be_closed(&d, good, b.data, b.len, false);
    body.len = 0;
    gr_buf_printf(&body, "{\"id\":1,\"method\":\"echo\",\"params\":{\"x\":");
    for (int i = 0; i < 100; i++)
        gr_buf_add(&body, "[", 1);
    for (int i = 0; i < 100; i++)
        gr_buf_add(&body, "]", 1);
    gr_buf_printf(&body, "}}");
    frame_of(&b, body.data, body.len);
    must_be_closed(&d, good, b.data, b.len, false);
    /* width: more values than are parsed */
    body.len = 0;
    gr_buf_printf(&body, "{\"id\":1,\"method\":\"echo\",\"params\":{\"x\":[0");
    for (int i = 0; i < RPC_MAX_VALUES; i++)
        gr_buf_add(&body, ",0", 2);
    gr_buf_printf(&body, "]}}");
    frame_of(&b, body.data, body.len);
    must_be_closed(&d, good, b.data, b.len, false);
    /* an id that is in use */
    frame_of(&b, "{\"id\":1,\"method\":\"sleep\",\"params\":{\"ms\":50}}", 45);
    size_t one = b.len;
    gr_buf_add(&b, b.data, one);
    must_be_closed(&d, good, b.data, b.len, false);
    /* brackets inside strings are no nesting; escapes are understood */
    json_t *out = NULL;
    assert_int_equal(gr_rpc_call(good, "echo",
                                 json_pack("{s:s}", "x", "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\\"{"), NULL,
                                 NULL, 1000, &out, NULL),
                     0);
    json_decref(out);
    gr_buf_done(&b);
    gr_buf_done(&body);
    gr_rpc_client_free(good);
    daemon_stop(&d);
    return 0;
}

static void hostile_clients(void **state)
{
    test_in_fiber(hostile_body, NULL);
}

/* ---- hostile daemons ---- */
struct bad_daemon {
    int fd;
    const char *bytes;
    size_t len;
};

static void bad_main(void *arg)
{
    struct bad_daemon *b = arg;
    char drop[512];
    gr_fiber_wait_fd(b->fd, POLLIN, 2000);
    int fd = accept(b->fd, NULL, NULL);
    assert_true(fd >= 0);
    gr_fiber_wait_fd(fd, POLLIN, 2000);
    assert_true(recv(fd, drop, sizeof(drop), MSG_DONTWAIT) > 0);
    assert_int_equal(send(fd, b->bytes, b->len, MSG_NOSIGNAL), b->len);
    gr_fiber_wait_fd(fd, POLLIN, 2000);
    close(fd);
}

static int bad_daemon_body(void *arg)
{
    static const char *const bodies[] = {"{\"id\":1}", "{\"id\":1,\"error\":5}", "[", "{\"result\":{}", "{}"};
    struct gr_buf b = {0};
    for (size_t i = 0; i <= GR_ARRAY_LEN(bodies); i++) {
        char *path = test_path("bad.sock");
        struct gr_err err = {0};
        struct gr_rpc_client *c = NULL;
        struct bad_daemon bad = {.fd = -1};
        if (i < GR_ARRAY_LEN(bodies))
            frame_of(&b, bodies[i], strlen(bodies[i]));
        else
            frame_of(&b, "{\"id\":7,\"result\":{}}{\"id\":1,\"error\":{\"code\":\"OK\"}}", 20);
        bad.bytes = b.data;
        bad.len = b.len;
        assert_int_equal(gr_unix_listen(path, 0600, &bad.fd, &err), 0);
        assert_int_equal(gr_fiber_start(gr_fiber_loop(), bad_main, &bad), 0);
        assert_int_equal(gr_rpc_connect(gr_fiber_loop(), path, &c, &err), 0);
        int r = gr_rpc_call(c, "echo", NULL, NULL, NULL, 300, NULL, &err);
        if (i < GR_ARRAY_LEN(bodies))
            assert_int_equal(r, -GR_EPROTO);
        else
            assert_int_equal(r, -ETIMEDOUT); /* an answer to a call that was never made is dropped */
        gr_rpc_client_free(c);
        gr_fiber_sleep_ms(20);
        close(bad.fd);
        unlink(path);
        free(path);
    }
    gr_buf_done(&b);
    return 0;
}

static void hostile_daemons(void **state)
{
    test_in_fiber(bad_daemon_body, NULL);
}

/* ---- in process, and sockets at long paths ---- */
static int local_body(void *arg)
{
    struct daemon d;
    struct gr_err err = {0};
    struct sink sink = {0};
    json_t *out = NULL;
    daemon_start(&d);
    assert_int_equal(gr_rpc_local(d.server, "stream", json_pack("{s:i}", "n", 5), take_part, &sink, &out, &err), 0);
    assert_int_equal(sink.next, 5);
    json_decref(out);
    sink = (struct sink){.stop_at = 3};
    assert_int_equal(gr_rpc_local(d.server, "stream", json_pack("{s:i}", "n", 5), take_part, &sink, NULL, &err), -ECANCELED);
    assert_int_equal(gr_rpc_local(d.server, "fail", NULL, NULL, NULL, NULL, &err), -GR_ECORRUPT);
    assert_int_equal(gr_rpc_local(d.server, "nothing", NULL, NULL, NULL, NULL, &err), -EOPNOTSUPP);
    assert_int_equal(gr_rpc_local(d.server, "pin", NULL, NULL, NULL, NULL, &err), 0);
    assert_int_equal(d.closed, 0);
    daemon_stop(&d);
    assert_int_equal(d.closed, 1);
    return 0;
}

static void local_calls(void **state)
{
    test_in_fiber(local_body, NULL);
}

/* Let the n-th allocation of client and server fail, for every n until none is left: an error, never a crash or a leak, and the
 * daemon goes on. */
static int no_memory_body(void *arg)
{
    struct daemon d;
    int failures = 0;
    daemon_start(&d);
    for (int n = 0;; n++) {
        struct gr_err err = {0};
        struct gr_rpc_client *c = NULL;
        struct sink sink = {0};
        gr_alloc_fail_after(n, 0);
        int r = gr_rpc_connect(d.loop, d.path, &c, &err);
        if (r == 0)
            r = gr_rpc_call(c, "pin", NULL, NULL, NULL, 2000, NULL, &err);
        if (r == 0)
            r = gr_rpc_call(c, "stream", json_pack("{s:i}", "n", 3), take_part, &sink, 2000, NULL, &err);
        void *probe = gr_alloc(1);
        bool all_served = probe == NULL; /* the failure was still to come */
        free(probe);
        gr_alloc_fail_after(-1, 0);
        gr_rpc_client_free(c);
        assert_true(r != -ETIMEDOUT);
        failures += r < 0;
        if (r == 0 && all_served)
            break;
        assert_true(n < 2000);
    }
    assert_true(failures > 5);
    struct gr_rpc_client *c = client_of(&d);
    assert_int_equal(gr_rpc_call(c, "echo", NULL, NULL, NULL, 2000, NULL, NULL), 0);
    gr_rpc_client_free(c);
    daemon_stop(&d);
    return 0;
}

static void no_memory(void **state)
{
    test_in_fiber(no_memory_body, NULL);
}

static void long_paths(void **state)
{
    struct gr_err err = {0};
    char *dir = test_path("0123456789012345678901234567890123456789/0123456789012345678901234567890123456789/"
                          "0123456789012345678901234567890123456789/0123456789012345678901234567890123456789");
    gr_auto_free char *path = gr_asprintf("%s/s.sock", dir), *file = gr_asprintf("%s/file", dir);
    int fd = -1, c = -1;
    struct stat st;
    assert_int_equal(gr_mkdirs(dir, 0700, &err), 0);
    assert_int_equal(gr_unix_connect(path, &c, &err), -ENOENT);
    assert_int_equal(gr_unix_listen(path, 0600, &fd, &err), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(gr_unix_connect(path, &c, &err), 0);
    close(c);
    close(fd);
    assert_int_equal(gr_unix_connect(path, &c, &err), -ECONNREFUSED); /* a dead socket */
    assert_int_equal(gr_unix_listen(path, 0600, &fd, &err), 0);       /* is replaced */
    close(fd);
    assert_int_equal(gr_file_replace(file, "precious", 8, 0600, &err), 0);
    assert_int_equal(gr_unix_listen(file, 0600, &fd, &err), -EEXIST);
    assert_int_equal(gr_unix_listen("/no/such/dir/s", 0600, &fd, &err), -ENOENT);
    free(dir);
}

/* A process that is dead, but whose socket still answers: here another process holds it, in life the kernel, for the io_uring of
 * one that was killed. */
static void leave_ghost(const char *path, int life_ms)
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        int fd;
        if (gr_unix_listen(path, 0600, &fd, NULL) == 0 && fork() == 0)
            poll(NULL, 0, life_ms);
        _exit(0);
    }
    assert_true(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static int ghost_body(void *arg)
{
    struct gr_loop *loop = arg;
    gr_auto_free char *path = test_path("ghost.sock");
    struct gr_rpc_client *c = NULL;
    struct gr_err err = {0};
    int fd = -1, live = -1;
    leave_ghost(path, 500);
    assert_int_equal(gr_unix_connect(path, &fd, NULL), 0);
    assert_false(gr_unix_served(fd));
    assert_int_equal(gr_rpc_connect(loop, path, &c, &err), -ECONNREFUSED);
    assert_int_equal(gr_daemon_pid(path), 0);
    assert_int_equal(gr_unix_listen(path, 0600, &live, &err), 0); /* its successor has the name */
    close(fd);
    assert_int_equal(gr_unix_connect(path, &fd, NULL), 0);
    assert_true(gr_unix_served(fd));
    assert_int_equal(gr_unix_listen(path, 0600, &live, &err), -EADDRINUSE);
    close(fd);
    close(live);
    return 0;
}

static void ghosts(void **state)
{
    struct gr_loop *loop = NULL;
    assert_int_equal(gr_loop_new(NULL, &loop, NULL), 0);
    assert_int_equal(gr_fiber_run(loop, ghost_body, loop), 0);
    gr_loop_free(loop);
}

TEST_MAIN(TEST(calls), TEST(many_at_once), TEST(streams), TEST(deaf), TEST(deaths), TEST(hostile_clients), TEST(hostile_daemons), TEST(local_calls),
          TEST(no_memory), TEST(long_paths), TEST(ghosts), TEST(hand_over))
