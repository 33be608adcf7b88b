/* QMP and guest agent clients against peers that answer late, lie, babble or vanish; and the freeze deadline. The peer is a
 * script: what it answers to each command is decided by the test. */
#include "common/cleanup.h"
#include "common/rpc.h"
#include "hv/freeze.h"
#include "hv/lines.h"
#include "hv/qmp.h"
#include "tests/lib/test.h"
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct peer {
    int listen_fd, fd;
    bool quit, running;
    const char *greeting;
    struct hv_lines lines;
    /* Answer @cmd (with the whole message); sends with say(). */
    void (*answer)(struct peer *p, const char *cmd, json_t *msg);
    int frozen, freezes, thaws, delay_ms, commands;
    const char *odd; /* sent instead of the next answer */
    size_t odd_len;
    struct gr_fqueue done;
};

static void say_bytes(struct peer *p, const char *data, size_t len)
{
    while (len && p->fd >= 0) {
        ssize_t n = send(p->fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            gr_fiber_sleep_ms(1);
        else if (n < 0)
            return;
        else {
            data += n;
            len -= (size_t)n;
        }
    }
}

static void say(struct peer *p, json_t *msg)
{
    char *text = json_dumps(msg, JSON_COMPACT);
    say_bytes(p, text, strlen(text));
    say_bytes(p, "\n", 1);
    free(text);
    json_decref(msg);
}

static int on_line(void *arg, char *line, size_t len)
{
    struct peer *p = arg;
    json_auto_t *msg = json_loads(line, 0, NULL);
    p->commands++;
    p->answer(p, json_string_value(json_object_get(msg, "execute")), msg);
    return 0;
}

static void peer_fiber(void *arg)
{
    struct peer *p = arg;
    char buf[4096];
    while (!p->quit) {
        struct pollfd w = {.fd = p->listen_fd, .events = POLLIN};
        if (poll(&w, 1, 0) == 0) {
            gr_fiber_sleep_ms(2);
            continue;
        }
        p->fd = accept4(p->listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (p->greeting)
            say_bytes(p, p->greeting, strlen(p->greeting));
        while (!p->quit && p->fd >= 0) {
            ssize_t n = recv(p->fd, buf, sizeof buf, MSG_DONTWAIT);
            if (n < 0)
                gr_fiber_sleep_ms(2);
            else if (n == 0)
                break;
            else
                hv_lines_feed(&p->lines, buf, (size_t)n, on_line, p);
        }
        if (p->fd >= 0)
            close(p->fd);
        p->fd = -1;
    }
    p->running = false;
    gr_fqueue_wake_all(&p->done);
}

static char *peer_start(struct peer *p, const char *name)
{
    char *path = test_path(name);
    p->fd = -1;
    p->lines = (struct hv_lines){.max = 65536, .resync = true};
    assert_int_equal(gr_unix_listen(path, 0600, &p->listen_fd, NULL), 0);
    p->running = true;
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), peer_fiber, p), 0);
    return path;
}

static void peer_end(struct peer *p)
{
    p->quit = true;
    while (p->running)
        gr_fqueue_wait(&p->done);
    close(p->listen_fd);
    hv_lines_done(&p->lines);
}

/* ---- QMP ---- */
static const char greeting[] = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";
static char events[256];

static void on_event(void *arg, const char *name, json_t *data)
{
    size_t n = strlen(events);
    snprintf(events + n, sizeof events - n, "%s ", name);
}
static int ends;
static void on_end(void *arg, const char *why)
{
    ends++;
}

static void qmp_answer(struct peer *p, const char *cmd, json_t *msg)
{
    json_t *id = json_object_get(msg, "id");
    if (!strcmp(cmd, "stop")) {
        say(p, json_pack("{s:s, s:{}}", "event", "STOP", "data"));
        say(p, json_pack("{s:{}, s:I}", "return", "id", (json_int_t)999)); /* somebody else's answer */
        say(p, json_pack("{s:{s:s}, s:O}", "return", "was", "stop", "id", id));
    } else if (!strcmp(cmd, "refuse")) {
        say(p, json_pack("{s:{s:s, s:s}, s:O}", "error", "class", "GenericError", "desc", "because", "id", id));
    } else if (!strcmp(cmd, "silent")) {
        return;
    } else if (!strcmp(cmd, "garbage")) {
        say_bytes(p, "this is no JSON\n", 16);
    } else {
        say(p, json_pack("{s:{}, s:O}", "return", "id", id));
    }
}

static int qmp_fiber(void *arg)
{
    struct peer p = {.greeting = greeting, .answer = qmp_answer};
    gr_auto_free char *path = peer_start(&p, "qmp.sock");
    struct hv_qmp_opts o = {.loop = gr_fiber_loop(), .on_event = on_event, .on_end = on_end};
    struct hv_qmp *q = NULL;
    struct gr_err err = {0};
    assert_int_equal(hv_qmp_connect(&o, path, 2000, &q, &err), 0);
    json_auto_t *res = NULL;
    assert_int_equal(hv_qmp_call(q, "stop", NULL, 2000, &res, &err), 0);
    assert_string_equal(json_string_value(json_object_get(res, "was")), "stop");
    assert_string_equal(events, "STOP ");
    assert_int_equal(hv_qmp_call(q, "refuse", json_pack("{s:i}", "x", 1), 2000, NULL, &err), -EIO);
    assert_string_equal(err.text, "QEMU refused 'refuse': because");
    assert_int_equal(hv_qmp_call(q, "silent", NULL, 50, NULL, &err), -ETIMEDOUT);
    assert_int_equal(hv_qmp_call(q, "cont", NULL, 2000, NULL, &err), 0);
    assert_int_equal(hv_qmp_call(q, "garbage", NULL, 2000, NULL, &err), -EPIPE);
    assert_int_equal(ends, 1);
    assert_int_equal(hv_qmp_call(q, "cont", NULL, 2000, NULL, &err), -EPIPE);
    hv_qmp_close(q);
    peer_end(&p);
    return 0;
}

/* What answers is no QEMU, or nobody. */
static int qmp_wrong_fiber(void *arg)
{
    static const char *const greetings[] = {"HTTP/1.1 400 Bad Request\r\n", "{\"hello\": 1}\n", NULL, "{\"QMP\": 1}\n", "[]\n"};
    for (size_t i = 0; i < GR_ARRAY_LEN(greetings); i++) {
        struct peer p = {.greeting = greetings[i], .answer = qmp_answer};
        gr_auto_free char *path = peer_start(&p, "qmp2.sock");
        struct hv_qmp_opts o = {.loop = gr_fiber_loop(), .on_event = on_event};
        struct hv_qmp *q = NULL;
        struct gr_err err = {0};
        int r = hv_qmp_connect(&o, path, 100, &q, &err);
        assert_true(r == -ETIMEDOUT || r == -GR_EPROTO);
        assert_null(q);
        peer_end(&p);
        unlink(path);
    }
    return 0;
}

/* ---- guest agent ---- */
static void qga_answer(struct peer *p, const char *cmd, json_t *msg)
{
    if (p->delay_ms)
        {
        int ms = p->delay_ms;
        p->delay_ms = 0;
        gr_fiber_sleep_ms((uint64_t)ms);
    }
    if (!strcmp(cmd, "guest-sync-delimited")) {
        say_bytes(p, "\xff", 1);
        say(p, json_pack("{s:O}", "return", json_object_get(json_object_get(msg, "arguments"), "id")));
        return;
    }
    if (!strcmp(cmd, "guest-fsfreeze-freeze")) {
        p->frozen = 1;
        p->freezes++;
    } else if (!strcmp(cmd, "guest-fsfreeze-thaw")) {
        p->frozen = 0;
        p->thaws++;
    }
    if (p->odd)
        say_bytes(p, gr_take(p->odd), p->odd_len);
    else if (!strcmp(cmd, "guest-fsfreeze-status"))
        say(p, json_pack("{s:s}", "return", p->frozen ? "frozen" : "thawed"));
    else if (!strcmp(cmd, "guest-exec"))
        say(p, json_pack("{s:{s:i}}", "return", "pid", 7));
    else if (!strcmp(cmd, "guest-exec-status"))
        say(p, json_pack("{s:{s:b, s:i, s:s, s:s}}", "return", "exited", 1, "exitcode", 3, "out-data", "aGk=", "err-data", ""));
    else if (!strcmp(cmd, "guest-refuse"))
        say(p, json_pack("{s:{s:s}}", "error", "desc", "not today"));
    else
        say(p, json_pack("{s:i}", "return", 2));
}

static int qga_fiber(void *arg)
{
    struct peer p = {.answer = qga_answer};
    gr_auto_free char *path = peer_start(&p, "agent.sock");
    struct hv_qga *g = NULL;
    struct gr_err err = {0};
    json_auto_t *res = NULL;
    assert_int_equal(hv_qga_new(gr_fiber_loop(), path, &g), 0);
    assert_int_equal(hv_qga_ping(g, 1000, &err), -ENOTCONN);
    assert_int_equal(p.commands, 0);
    hv_qga_set_open(g, true);
    assert_int_equal(hv_qga_call(g, "guest-ping", NULL, 1000, &res, &err), 0);
    assert_int_equal(json_integer_value(res), 2);
    assert_int_equal(hv_qga_call(g, "guest-refuse", NULL, 1000, NULL, &err), -EIO);
    assert_non_null(strstr(err.text, "not today"));
    /* too late: the answer to this one must not be taken for that of the next */
    p.delay_ms = 80;
    p.odd = "{\"return\": 99}\n";
    p.odd_len = 15;
    assert_int_equal(hv_qga_call(g, "guest-late", NULL, 20, NULL, &err), -ETIMEDOUT);
    json_decref(gr_take(res));
    assert_int_equal(hv_qga_call(g, "guest-ping", NULL, 1000, &res, &err), 0);
    assert_int_equal(json_integer_value(res), 2);
    /* answers that are none */
    static const char *const odd[] = {"nonsense\n", "[1]\n", "{}\n", "{\"return\"\n", "\x80\xfe\n", "{\"error\": 5}\n"};
    for (size_t i = 0; i < GR_ARRAY_LEN(odd); i++) {
        p.odd = odd[i];
        p.odd_len = strlen(odd[i]);
        assert_true(hv_qga_call(g, "guest-odd", NULL, 60, NULL, &err) < 0);
        assert_int_equal(hv_qga_ping(g, 1000, &err), 0);
    }
    struct hv_exec_result x = {0};
    json_auto_t *argv = json_pack("[s, s]", "/bin/echo", "hi");
    assert_int_equal(hv_qga_exec(g, argv, NULL, 2000, &x, &err), 0);
    assert_int_equal(x.exit_code, 3);
    assert_string_equal(x.out.data, "hi");
    gr_buf_done(&x.out);
    gr_buf_done(&x.err);
    /* the guest goes away in the middle of a call */
    p.delay_ms = 60;
    hv_qga_set_open(g, false);
    assert_int_equal(hv_qga_ping(g, 1000, &err), -ENOTCONN);
    hv_qga_set_open(g, true);
    assert_int_equal(hv_qga_ping(g, 3000, &err), 0);
    hv_qga_free(g);
    peer_end(&p);
    return 0;
}

static int freeze_fiber(void *arg)
{
    struct peer p = {.answer = qga_answer};
    gr_auto_free char *path = peer_start(&p, "agent3.sock");
    struct hv_qga *g = NULL;
    struct hv_freezer *f = NULL;
    struct gr_err err = {0};
    uint64_t ms = 0;
    assert_int_equal(hv_qga_new(gr_fiber_loop(), path, &g), 0);
    assert_int_equal(hv_freezer_new(gr_fiber_loop(), g, NULL, NULL, &f), 0);
    assert_int_equal(hv_freeze(f, 1000, &err), -ENOTCONN);
    assert_int_equal(hv_freezer_state(f), HV_THAWED);
    hv_qga_set_open(g, true);
    /* in time */
    assert_int_equal(hv_freeze(f, 1000, &err), 2);
    assert_int_equal(p.frozen, 1);
    assert_int_equal(hv_freeze(f, 1000, &err), -EBUSY);
    assert_int_equal(hv_thaw(f, &ms, &err), 0);
    assert_int_equal(p.frozen, 0);
    assert_int_equal(hv_thaw(f, &ms, &err), -EINVAL);
    /* nobody thaws: the deadline does, and the late thaw is told */
    assert_int_equal(hv_freeze(f, 60, &err), 2);
    for (int i = 0; i < 100 && p.frozen; i++)
        gr_fiber_sleep_ms(10);
    assert_int_equal(p.frozen, 0);
    assert_int_equal(hv_thaw(f, &ms, &err), -ETIMEDOUT);
    /* the agent freezes after the request had timed out: it is found and thawed */
    int thaws = p.thaws;
    p.delay_ms = 150;
    assert_int_equal(hv_freeze(f, 50, &err), -ETIMEDOUT);
    assert_int_equal(hv_freezer_state(f), HV_UNSURE);
    for (int i = 0; i < 200 && (hv_freezer_state(f) != HV_THAWED || p.thaws == thaws); i++)
        gr_fiber_sleep_ms(10);
    assert_int_equal(hv_freezer_state(f), HV_THAWED);
    assert_int_equal(p.frozen, 0);
    assert_true(p.thaws > thaws);
    /* adoption of a guest that somebody had frozen */
    p.frozen = 1;
    hv_freezer_suspect(f);
    for (int i = 0; i < 200 && hv_freezer_state(f) != HV_THAWED; i++)
        gr_fiber_sleep_ms(10);
    assert_int_equal(p.frozen, 0);
    assert_int_equal(hv_freeze(f, 1000, &err), 2);
    assert_int_equal(hv_thaw(f, &ms, &err), 0);
    hv_freezer_free(f);
    hv_qga_free(g);
    peer_end(&p);
    return 0;
}

static void run(int (*fn)(void *arg))
{
    struct gr_loop *loop = NULL;
    assert_int_equal(gr_loop_new(NULL, &loop, NULL), 0);
    assert_int_equal(gr_fiber_run(loop, fn, NULL), 0);
    gr_loop_free(loop);
}
static void test_qmp(void **state)
{
    run(qmp_fiber);
}
static void test_qmp_wrong(void **state)
{
    run(qmp_wrong_fiber);
}
static void test_qga(void **state)
{
    run(qga_fiber);
}
static void test_freeze(void **state)
{
    run(freeze_fiber);
}

TEST_MAIN(TEST(test_qmp), TEST(test_qmp_wrong), TEST(test_qga), TEST(test_freeze))
