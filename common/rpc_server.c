#include "common/cleanup.h"
#include "common/log.h"
#include "common/rpc_int.h"
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

/* Last registered first. In a fiber. */
static void run_closers(struct rpc_closer **list)
{
    while (*list) {
        struct rpc_closer *c = *list;
        *list = c->next;
        c->fn(c->arg);
        free(c);
    }
}

static void conn_put(struct rpc_conn *c)
{
    struct gr_rpc_server *s = c->server;
    if (--c->refs > 0)
        return;
    rpc_wire_done(&c->wire);
    if (c->prev)
        c->prev->next = c->next;
    else
        s->conns = c->next;
    if (c->next)
        c->next->prev = c->prev;
    s->n_conns--;
    if (c->peer)
        c->peer->free(c->peer);
    free(c);
    if (s->n_conns == 0)
        gr_fqueue_wake_all(&s->drained);
}

static int send_reply(struct gr_rpc_call *call, int r, json_t *result, const struct gr_err *err)
{
    json_t *reply;
    if (r >= 0)
        reply = json_pack("{s:I,s:o}", "id", call->id, "result", result ? result : json_object());
    else
        reply = json_pack("{s:I,s:{s:s,s:s%}}", "id", call->id, "error", "code", gr_code_name(r), "text", gr_err_text(err, r),
                          strlen(gr_err_text(err, r)));
    if (r < 0)
        json_decref(result);
    if (!reply && r < 0) /* the sentence quotes bytes that are not UTF-8 */
        reply = json_pack("{s:I,s:{s:s,s:s}}", "id", call->id, "error", "code", gr_code_name(r), "text", gr_code_text(r));
    return reply ? rpc_wire_send(&call->conn->wire, reply) : -ENOMEM;
}

/* May who is at the other end ask for this? */
static int guarded(const struct gr_rpc_call *call, struct gr_err *err)
{
    const struct gr_rpc_server *s = call->server;
    if (!call->conn->peer)
        return 0;
    return s->guard ? s->guard(s->guard_arg, call->conn->peer, call->method->name, call->params, err) : gr_fail(err, -GR_EAUTH, "not for others");
}

/* Run the method, and let the witness know. In process (no connection) it is ourselves who asked. */
static int run_method(struct gr_rpc_call *call, json_t **ret_result, struct gr_err *err)
{
    const struct gr_rpc_server *s = call->server;
    const struct rpc_conn *conn = call->conn;
    const struct gr_world *w = gr_loop_world(s->loop);
    uint64_t begin = gr_loop_now_ns(s->loop);
    int r = conn ? guarded(call, err) : 0;
    struct gr_rpc_seen seen = {.method = call->method->name,
                               .params = call->params,
                               .peer = conn ? conn->peer : NULL,
                               .pid = conn ? conn->cred.pid : getpid(),
                               .uid = conn ? conn->cred.uid : getuid()};
    if (r == 0 && s->witness && call->method->destroys) {
        w->random(w->arg, &seen.number, sizeof(seen.number));
        seen.number |= 1;
        seen.begins = true;
        s->witness(s->witness_arg, &seen);
        seen.begins = false;
    }
    if (r == 0)
        r = call->method->fn(call->method_arg, call, call->params, ret_result, err);
    seen.result = r;
    seen.ns = gr_loop_now_ns(s->loop) - begin;
    if (s->witness && !call->method->asks && !call->asked)
        s->witness(s->witness_arg, &seen);
    return r;
}

static void call_main(void *arg)
{
    struct gr_rpc_call *call = arg;
    struct rpc_conn *conn = call->conn;
    struct gr_err err = {0};
    json_t *result = NULL;
    int r = run_method(call, &result, &err);
    if (conn->gone) {
        json_decref(result);
    } else {
        r = send_reply(call, r, result, &err);
        if (r == -EMSGSIZE)
            r = send_reply(call, gr_fail(&err, -EMSGSIZE, "%s: the answer is above %u bytes", call->method->name, GR_RPC_MAX), NULL, &err);
        if (r < 0)
            rpc_wire_shutdown(&conn->wire);
    }
    for (struct gr_rpc_call **p = &conn->calls; *p; p = &(*p)->next)
        if (*p == call) {
            *p = call->next;
            break;
        }
    conn->n_calls--;
    gr_fqueue_wake_one(&conn->room);
    if (!conn->gone && call->closers) {
        struct rpc_closer *last = call->closers;
        while (last->next)
            last = last->next;
        last->next = conn->closers;
        conn->closers = gr_take(call->closers);
    }
    run_closers(&call->closers);
    json_decref(call->params);
    free(call);
    conn_put(conn);
}

static const struct gr_rpc_method *find_method(struct gr_rpc_server *s, const char *name, void **ret_arg)
{
    for (unsigned i = 0; i < s->n_tables; i++)
        for (const struct gr_rpc_method *m = s->tables[i].methods; m->name; m++)
            if (strcmp(m->name, name) == 0) {
                *ret_arg = s->tables[i].arg;
                return m;
            }
    return NULL;
}

static int unknown_method(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret_result, struct gr_err *err)
{
    return gr_fail(err, -EOPNOTSUPP, "this daemon has no such method; is it of another version?");
}

static struct gr_rpc_call *find_call(struct rpc_conn *c, json_int_t id)
{
    struct gr_rpc_call *call = c->calls;
    while (call && call->id != id)
        call = call->next;
    return call;
}

/* Until @frame may be begun. False: the connection is over, or another server's. */
static bool await_turn(struct rpc_conn *c, json_t *frame)
{
    bool full;
    c->held = frame;
    while (!c->wire.dead && ((full = c->n_calls >= MAX_CALLS) || (c->server->resting && !c->peer)))
        gr_fqueue_wait(full ? &c->room : &c->server->resumed);
    c->held = NULL;
    return !c->wire.dead;
}

/* One frame of the peer; negative: malformed, close. */
static int take_request(struct rpc_conn *c, json_t *frame)
{
    static const struct gr_rpc_method unknown = {"unknown", unknown_method, .asks = true};
    json_t *id = json_object_get(frame, "id"), *params = json_object_get(frame, "params");
    const char *name = json_string_value(json_object_get(frame, "method"));
    if (!json_is_integer(id) || (params && !json_is_object(params)))
        return -GR_EPROTO;
    struct gr_rpc_call *call = find_call(c, json_integer_value(id));
    if (json_is_true(json_object_get(frame, "cancel"))) {
        if (call)
            call->canceled = true;
        return 0;
    }
    if (!name || call)
        return -GR_EPROTO;
    if (!await_turn(c, frame))
        return -EPIPE;
    call = gr_zalloc(sizeof(*call));
    if (!call)
        return -ENOMEM;
    call->server = c->server;
    call->conn = c;
    call->id = json_integer_value(id);
    call->method = find_method(c->server, name, &call->method_arg);
    if (!call->method)
        call->method = &unknown;
    call->params = params ? json_incref(params) : json_object();
    int r = gr_fiber_start(c->server->loop, call_main, call);
    if (r < 0) {
        json_decref(call->params);
        free(call);
        return r;
    }
    call->next = c->calls;
    c->calls = call;
    c->n_calls++;
    c->refs++;
    return 0;
}

static void conn_main(void *arg)
{
    struct rpc_conn *c = arg;
    json_t *frame = NULL;
    int r;
    while ((r = rpc_wire_recv(&c->wire, &frame, NULL)) > 0) {
        r = take_request(c, frame);
        json_decref(frame);
        if (r < 0)
            break;
    }
    c->gone = true;
    rpc_wire_shutdown(&c->wire);
    run_closers(&c->closers);
    conn_put(c);
}

void gr_rpc_server_guard(struct gr_rpc_server *s, int (*guard)(void *arg, struct gr_rpc_peer *peer, const char *method, json_t *params, struct gr_err *err),
                         void *arg)
{
    s->guard = guard;
    s->guard_arg = arg;
}

void gr_rpc_server_witness(struct gr_rpc_server *s, void (*fn)(void *arg, const struct gr_rpc_seen *seen), void *arg)
{
    s->witness = fn;
    s->witness_arg = arg;
}

int rpc_conn_new(struct gr_rpc_server *s, int fd, struct rpc_conn **ret)
{
    struct rpc_conn *c = s->n_conns < MAX_CONNECTIONS ? gr_zalloc(sizeof(*c)) : NULL;
    int r = c ? rpc_wire_init(&c->wire, fd) : -ENOMEM;
    if (!c)
        close(fd);
    if (r == 0) {
        c->server = s;
        c->refs = 1;
        r = gr_fiber_start(s->loop, conn_main, c);
        if (r < 0)
            rpc_wire_done(&c->wire);
    }
    if (r < 0) {
        free(c);
        return r;
    }
    c->id = ++s->last_id;
    socklen_t len = sizeof(c->cred);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c->cred, &len) < 0)
        c->cred = (struct ucred){.uid = (uid_t)-1, .gid = (gid_t)-1};
    c->next = s->conns;
    if (c->next)
        c->next->prev = c;
    s->conns = c;
    s->n_conns++;
    *ret = c;
    return 0;
}

void gr_rpc_server_adopt(struct gr_rpc_server *s, int fd, struct gr_rpc_peer *peer)
{
    struct rpc_conn *c = NULL;
    if (rpc_conn_new(s, fd, &c) == 0) {
        c->peer = peer;
    } else if (peer) {
        peer->free(peer);
    }
}

static void on_listen(void *arg, int events)
{
    struct gr_rpc_server *s = arg;
    for (int i = 0; i < 16; i++) {
        int fd = accept4(s->watch.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0)
            return;
        gr_rpc_server_adopt(s, fd, NULL);
    }
}

int gr_rpc_server_new(struct gr_loop *loop, struct gr_rpc_server **ret)
{
    struct gr_rpc_server *s = gr_zalloc(sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->loop = loop;
    s->watch.fd = -1;
    *ret = s;
    return 0;
}

int gr_rpc_server_add(struct gr_rpc_server *s, const struct gr_rpc_method *methods, void *arg)
{
    if (s->n_tables == MAX_TABLES)
        return -ENOSPC;
    s->tables[s->n_tables].methods = methods;
    s->tables[s->n_tables++].arg = arg;
    return 0;
}

int gr_rpc_server_listen(struct gr_rpc_server *s, const char *path, struct gr_err *err)
{
    struct stat st;
    gr_auto_close int fd = -1;
    gr_auto_free char *copy = gr_strdup(path);
    if (!copy)
        return gr_fail(err, -ENOMEM, "%s: out of memory", path);
    int r = gr_unix_listen(path, 0600, &fd, err);
    if (r < 0)
        return r;
    s->watch = (struct gr_watch){.fn = on_listen, .arg = s, .fd = fd, .events = POLLIN};
    r = gr_watch_add(s->loop, &s->watch);
    if (r < 0) {
        s->watch.fd = -1;
        unlink(path);
        return gr_fail(err, r, "%s: cannot watch the socket: %s", path, gr_code_text(r));
    }
    gr_take_fd(&fd);
    s->path_ino = stat(path, &st) == 0 ? st.st_ino : 0;
    s->path = gr_take(copy);
    return 0;
}

static void stop_listening(struct gr_rpc_server *s)
{
    struct stat st;
    if (s->watch.fd < 0)
        return;
    gr_watch_del(s->loop, &s->watch);
    /* a successor may have put its own socket there */
    if (stat(s->path, &st) == 0 && st.st_ino == s->path_ino)
        unlink(s->path);
    gr_closep(&s->watch.fd);
    free(s->path);
}

void gr_rpc_server_free(struct gr_rpc_server *s)
{
    if (!s)
        return;
    stop_listening(s);
    for (struct rpc_conn *c = s->conns; c; c = c->next) {
        rpc_wire_shutdown(&c->wire);
        gr_fqueue_wake_all(&c->room);
    }
    gr_fqueue_wake_all(&s->resumed);
    while (s->n_conns > 0) {
        if (gr_fiber_self())
            gr_fqueue_wait(&s->drained);
        else
            gr_loop_turn(s->loop, 100);
    }
    run_closers(&s->closers);
    free(s);
}

int gr_rpc_part(struct gr_rpc_call *call, json_t *part)
{
    if (!part)
        return -ENOMEM;
    if (!call || (!call->conn && !call->on_part)) {
        json_decref(part);
        return 0;
    }
    if (!call->conn) {
        int r = call->on_part(call->part_arg, part);
        json_decref(part);
        return r < 0 ? r : 0;
    }
    if (gr_rpc_gone(call)) {
        json_decref(part);
        return -EPIPE;
    }
    json_t *frame = json_pack("{s:I,s:o}", "id", call->id, "part", part);
    return frame ? rpc_wire_send(&call->conn->wire, frame) : -ENOMEM;
}

void gr_rpc_only_asked(struct gr_rpc_call *call)
{
    if (call)
        call->asked = true;
}

const struct gr_rpc_peer *gr_rpc_peer_of(const struct gr_rpc_call *call)
{
    return call->conn ? call->conn->peer : NULL;
}

bool gr_rpc_gone(const struct gr_rpc_call *call)
{
    return call && (call->canceled || (call->conn && (call->conn->gone || call->conn->wire.dead)));
}

uint64_t gr_rpc_connection(const struct gr_rpc_call *call)
{
    return call->conn ? call->conn->id : 0;
}

int gr_rpc_on_close(struct gr_rpc_call *call, void (*fn)(void *arg), void *arg)
{
    if (call->conn && (call->conn->gone || call->conn->wire.dead))
        return -EPIPE;
    struct rpc_closer *c = gr_alloc(sizeof(*c));
    if (!c)
        return -ENOMEM;
    *c = (struct rpc_closer){fn, arg, call->closers};
    call->closers = c;
    return 0;
}

int gr_rpc_local(struct gr_rpc_server *s, const char *method, json_t *params, int (*on_part)(void *arg, json_t *part), void *part_arg,
                 json_t **ret_result, struct gr_err *err)
{
    struct gr_rpc_call call = {.server = s, .on_part = on_part, .part_arg = part_arg, .params = params ? params : json_object()};
    call.method = find_method(s, method, &call.method_arg);
    json_t *result = NULL;
    int r = call.method ? run_method(&call, &result, err) : gr_fail(err, -EOPNOTSUPP, "no method '%s'", method);
    json_decref(call.params);
    if (call.closers) {
        struct rpc_closer *last = call.closers;
        while (last->next)
            last = last->next;
        last->next = s->closers;
        s->closers = call.closers;
    }
    if (r >= 0 && ret_result)
        *ret_result = result ? result : json_object();
    else
        json_decref(result);
    return r;
}
