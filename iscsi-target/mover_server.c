/* The mover's server: sockets, limits, and the life of connections. */
#include "common/cleanup.h"
#include "iscsi-target/mover_int.h"
#include <fcntl.h>
#include <netdb.h>
#include <string.h>

#define REFUSALS_TOLD 20u /* in one second; of others only how many */
#define POOL_MIN 4096u
#define POOL_KEEP (64u << 20) /* bytes of free buffers kept */

void mover_log(struct mover_server *s, enum mover_log_level level, const char *fmt, ...)
{
    if (!s->opts.log)
        return;
    char text[GR_ERR_TEXT + 128];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    s->opts.log(s->opts.log_arg, level, text);
}

/* ---- buffers ---- */

static int pool_class(size_t len)
{
    int n = 0;
    while (n < MOVER_POOL_CLASSES && len > (size_t)POOL_MIN << n)
        n++;
    return n < MOVER_POOL_CLASSES ? n : -1;
}

void *mover_buf_get(struct mover_server *s, size_t len)
{
    int k = pool_class(len);
    if (k < 0)
        return gr_alloc_aligned(4096, (len + 4095) / 4096 * 4096);
    void *p = s->pool[k];
    if (!p)
        return gr_alloc_aligned(4096, (size_t)POOL_MIN << k);
    s->pool[k] = *(void **)p;
    s->pool_bytes -= (size_t)POOL_MIN << k;
    return p;
}

void mover_buf_put(struct mover_server *s, void *buf, size_t len)
{
    int k = pool_class(len);
    size_t size = k < 0 ? 0 : (size_t)POOL_MIN << k;
    if (k < 0 || s->pool_bytes > POOL_KEEP - size) {
        free(buf);
        return;
    }
    *(void **)buf = s->pool[k];
    s->pool[k] = buf;
    s->pool_bytes += size;
}

void mover_pool_free(struct mover_server *s)
{
    for (int k = 0; k < MOVER_POOL_CLASSES; k++) {
        while (s->pool[k]) {
            void *p = s->pool[k];
            s->pool[k] = *(void **)p;
            free(p);
        }
    }
    s->pool_bytes = 0;
}

/* ---- connections ---- */

static void conn_free(struct mover_conn *c)
{
    struct mover_server *s = c->server;
    mover_export_close(c);
    mover_io_close(&c->io);
    for (struct mover_conn **p = &s->conns; *p; p = &(*p)->next) {
        if (*p == c) {
            *p = c->next;
            break;
        }
    }
    s->stats.connections--;
    s->stats.negotiating -= c->negotiating;
    free(c->meta_name);
    json_decref(c->inherited);
    free(c);
    gr_fqueue_wake_all(&s->ended);
}

static void peer_text(const struct sockaddr_storage *a, socklen_t len, char out[80])
{
    char host[64], port[16];
    if ((a->ss_family == AF_INET || a->ss_family == AF_INET6) &&
        !getnameinfo((const struct sockaddr *)a, len, host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV))
        snprintf(out, 80, a->ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
    else
        snprintf(out, 80, "a local client");
}

void mover_refuse(struct mover_server *s, const struct sockaddr_storage *from, socklen_t from_len, const char *why)
{
    char peer[80];
    uint64_t now = gr_loop_now_ns(s->loop);
    s->stats.refused++;
    if (now - s->told_ns >= UINT64_C(1000000000)) {
        if (s->told > REFUSALS_TOLD)
            mover_log(s, MOVER_LOG_WARN, "data mover: and %u others were refused in that second", s->told - REFUSALS_TOLD);
        s->told_ns = now;
        s->told = 0;
    }
    if (s->told++ >= REFUSALS_TOLD)
        return;
    peer_text(from, from_len, peer);
    mover_log(s, MOVER_LOG_WARN, "data mover: %s refused: %s", peer, why);
}

static void conn_run(void *arg)
{
    struct mover_conn *c = arg;
    struct mover_server *s = c->server;
    struct gr_err err = {0};
    int r = c->inherited ? mover_conn_go_on(c, &err) : 0;
    if (r == 0 && c->negotiating) {
        r = mover_negotiate(c, &err);
        if (r == 0)
            mover_log(s, MOVER_LOG_INFO, "data mover: %s opened %s (%s%s)", c->peer, c->name, c->tls ? c->how : "plain text",
                      c->exp.writable ? ", writable" : "");
    }
    if (r == 0) {
        s->stats.negotiating -= c->negotiating;
        c->negotiating = false;
        r = mover_serve(c);
        if (r < 0 && !c->io.left)
            mover_log(s, MOVER_LOG_INFO, "data mover: %s on %s ended: %s", c->peer, c->name, gr_code_text(r));
    } else if (r < 0 && !c->io.left) {
        mover_refuse(s, &c->addr, sizeof(c->addr), gr_err_text(&err, r));
    }
    if (r >= 0 && !c->io.error)
        (void)mover_io_drain(&c->io, gr_loop_now_ns(s->loop) + s->opts.stall_timeout_ms * 1000000);
    conn_free(c);
}

static const char *over_limit(const struct mover_server *s, const struct sockaddr_storage *from)
{
    unsigned of_host = 0;
    struct in6_addr peer, other;
    gr_peer_of(from, &peer);
    for (const struct mover_conn *c = s->conns; c; c = c->next) {
        gr_peer_of(&c->addr, &other);
        of_host += c->negotiating && from->ss_family != AF_UNIX && !memcmp(&peer, &other, sizeof(peer));
    }
    if (s->stats.connections >= s->opts.max_connections)
        return "too many connections";
    if (s->stats.negotiating >= s->opts.max_negotiating)
        return "too many connections that have not finished their negotiation";
    return of_host >= MOVER_PER_ADDRESS ? "too many connections from this address that have not finished their negotiation" : NULL;
}

int mover_conn_new(struct mover_server *s, int fd, const struct sockaddr_storage *from, socklen_t from_len, struct mover_conn **ret)
{
    const char *why = over_limit(s, from);
    struct mover_conn *c = why ? NULL : gr_zalloc(sizeof(*c));
    int r = c ? mover_io_open(&c->io, s->loop, fd, s->opts.stall_timeout_ms) : why ? -EAGAIN : -ENOMEM;
    if (r < 0) {
        close(fd);
        free(c);
        mover_refuse(s, from, from_len, why ? why : gr_code_text(r));
        return r;
    }
    c->server = s;
    c->addr = *from;
    peer_text(from, from_len, c->peer);
    c->negotiating = true;
    c->deadline_ns = gr_loop_now_ns(s->loop) + s->opts.negotiate_timeout_ms * 1000000;
    r = gr_fiber_start(s->loop, conn_run, c);
    if (r < 0) {
        mover_io_close(&c->io);
        free(c);
        return r;
    }
    c->next = s->conns;
    s->conns = c;
    s->stats.connections++;
    s->stats.negotiating++;
    *ret = c;
    return 0;
}

static void on_accept(void *arg, int fd, const struct sockaddr_storage *from, socklen_t len)
{
    struct mover_server *s = arg;
    struct mover_conn *c;
    s->stats.accepted += mover_conn_new(s, fd, from, len, &c) == 0;
}

static void cannot_accept(void *arg, int code)
{
    mover_log(arg, MOVER_LOG_WARN, "data mover: cannot accept: %s", gr_code_text(code));
}

/* ---- the server ---- */

static void server_free(struct mover_server *s)
{
    mover_creds_free(s->creds);
    mover_pool_free(s);
    free(s->pki_dir);
    free(s->psk_file);
    free(s);
}

static void set_defaults(struct mover_opts *o)
{
    o->max_connections = o->max_connections ? o->max_connections : 256;
    o->max_negotiating = o->max_negotiating ? o->max_negotiating : 64;
    o->max_requests = o->max_requests ? o->max_requests : 256;
    o->max_inflight_bytes = o->max_inflight_bytes ? o->max_inflight_bytes : UINT64_C(64) << 20;
    o->max_inflight_bytes = GR_MAX(o->max_inflight_bytes, (uint64_t)MOVER_MAX_REQUEST);
    o->negotiate_timeout_ms = o->negotiate_timeout_ms ? o->negotiate_timeout_ms : 15000;
    o->stall_timeout_ms = o->stall_timeout_ms ? o->stall_timeout_ms : 30000;
}

int mover_server_new(struct gr_loop *loop, const struct mover_opts *opts, struct mover_server **ret, struct gr_err *err)
{
    struct mover_server *s = gr_zalloc(sizeof(*s));
    if (!s)
        return gr_fail(err, -ENOMEM, "out of memory");
    s->loop = loop;
    s->opts = *opts;
    set_defaults(&s->opts);
    s->pki_dir = opts->pki_dir ? gr_strdup(opts->pki_dir) : NULL;
    s->psk_file = opts->psk_file ? gr_strdup(opts->psk_file) : NULL;
    s->opts.pki_dir = s->pki_dir;
    s->opts.psk_file = s->psk_file;
    int r = 0;
    if ((opts->pki_dir && !s->pki_dir) || (opts->psk_file && !s->psk_file))
        r = gr_fail(err, -ENOMEM, "out of memory");
    else if (opts->security == MOVER_TLS)
        r = mover_creds_load(s->pki_dir, s->psk_file, &s->creds, err);
    if (r >= 0 && s->creds)
        r = mover_gate_start(s, err);
    if (r < 0) {
        server_free(s);
        return r;
    }
    *ret = s;
    return 0;
}

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr) >> 24 == 127;
    if (a->sa_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
    return a->sa_family == AF_UNIX;
}

int mover_server_listen_fd(struct mover_server *s, int fd_in, struct gr_err *err)
{
    gr_auto_close int fd = fd_in;
    struct sockaddr_storage a = {0};
    socklen_t len = sizeof(a);
    if (getsockname(fd, (struct sockaddr *)&a, &len) < 0)
        return gr_fail(err, -errno, "data mover: descriptor %d is no socket", fd_in);
    if (s->opts.security == MOVER_PLAIN_LOOPBACK && !is_loopback((struct sockaddr *)&a))
        return gr_fail(err, -GR_EAUTH, "data mover: plain text on an address that others can reach is refused; set up TLS, or listen on 127.0.0.1");
    if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0 || listen(fd, 128) < 0)
        return gr_fail(err, -errno, "data mover: cannot listen: %s", gr_code_text(-errno));
    struct mover_listen *l = gr_zalloc(sizeof(*l));
    if (!l)
        return gr_fail(err, -ENOMEM, "out of memory");
    l->server = s;
    l->acceptor = (struct gr_acceptor){.loop = s->loop, .fd = fd, .batch = 32, .fn = on_accept, .failed = cannot_accept, .arg = s};
    l->port = a.ss_family == AF_INET    ? ntohs(((struct sockaddr_in *)&a)->sin_port)
              : a.ss_family == AF_INET6 ? ntohs(((struct sockaddr_in6 *)&a)->sin6_port)
                                        : 0;
    int r = 0;
    if (s->gate)
        mover_gate_listen(s, fd);
    else
        r = gr_acceptor_start(&l->acceptor);
    if (r < 0) {
        free(l);
        return gr_fail(err, r, "data mover: cannot watch its socket: %s", gr_code_text(r));
    }
    (void)gr_take_fd(&fd);
    struct mover_listen **p = &s->listens;
    while (*p)
        p = &(*p)->next;
    *p = l;
    return 0;
}

static int split_host_port(const char *text, char host[256], char port[16], struct gr_err *err)
{
    const char *colon = strrchr(text, ':');
    size_t n = colon ? (size_t)(colon - text) : 0;
    if (!colon || n >= 256 || strlen(colon + 1) >= 16 || !colon[1])
        return gr_fail(err, -EINVAL, "data mover: \"%.300s\" is not HOST:PORT", text);
    bool bracketed = n >= 2 && text[0] == '[' && text[n - 1] == ']';
    if (!bracketed && memchr(text, ':', n))
        return gr_fail(err, -EINVAL, "data mover: \"%.300s\": write an IPv6 address as [ADDRESS]:PORT", text);
    snprintf(host, 256, "%.*s", (int)(bracketed ? n - 2 : n), bracketed ? text + 1 : text);
    snprintf(port, 16, "%s", colon + 1);
    uint64_t v = 0;
    return gr_parse_u64(port, 0, 65535, &v, err);
}

int mover_server_listen(struct mover_server *s, const char *host_port, struct gr_err *err)
{
    char host[256], port[16];
    int r = split_host_port(host_port, host, port, err);
    if (r < 0)
        return r;
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM}, *list = NULL;
    int g = getaddrinfo(host[0] ? host : NULL, port, &hints, &list);
    if (g)
        return gr_fail(err, -EINVAL, "data mover: %s: %s", host_port, gai_strerror(g));
    unsigned bound = 0;
    r = -EADDRNOTAVAIL;
    for (const struct addrinfo *a = list; a; a = a->ai_next) {
        gr_auto_close int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        int on = 1;
        if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
            (a->ai_family == AF_INET6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)) < 0) ||
            bind(fd, a->ai_addr, a->ai_addrlen) < 0) {
            r = gr_fail(err, -errno, "data mover: cannot listen on %s: %s", host_port, gr_code_text(-errno));
            continue;
        }
        r = mover_server_listen_fd(s, gr_take_fd(&fd), err);
        if (r == -GR_EAUTH)
            break;
        bound += r >= 0;
    }
    freeaddrinfo(list);
    return bound && r != -GR_EAUTH ? 0 : r;
}

int mover_server_adopt(struct mover_server *s, int fd, struct gr_err *err)
{
    struct sockaddr_storage from = {0};
    socklen_t len = sizeof(from);
    struct mover_conn *c;
    int r;
    gr_socket_set(fd);
    if (s->gate) {
        r = fcntl(fd, F_SETFL, O_NONBLOCK) < 0 ? -errno : mover_gate_adopt(s, fd);
        close(fd);
    } else {
        (void)getpeername(fd, (struct sockaddr *)&from, &len);
        r = mover_conn_new(s, fd, &from, len, &c);
        s->stats.accepted += r == 0;
    }
    return r < 0 ? gr_fail(err, r, "data mover: connection refused: %s", gr_code_text(r)) : 0;
}

int mover_server_listener(const struct mover_server *s, unsigned i)
{
    const struct mover_listen *l = s->listens;
    while (l && i--)
        l = l->next;
    return l ? l->acceptor.fd : -1;
}

unsigned mover_server_port(const struct mover_server *s)
{
    return s->listens ? s->listens->port : 0;
}

void mover_server_stats(const struct mover_server *s, struct mover_stats *ret)
{
    unsigned strangers = mover_gate_strangers(s);
    *ret = s->stats;
    ret->strangers = strangers;
    ret->connections += strangers;
    ret->negotiating += strangers;
}

static bool matches(const struct mover_conn *c, const char *name, bool prefix)
{
    return c->name && (prefix ? !strncmp(c->name, name, strlen(name)) : !strcmp(c->name, name));
}

void mover_server_drop(struct mover_server *s, const char *name, bool prefix)
{
    for (;;) {
        bool any = false;
        for (struct mover_conn *c = s->conns; c; c = c->next) {
            if (!matches(c, name, prefix))
                continue;
            /* one still inside dir.open holds nothing yet, and gives back at once what it gets: waiting for it could be
             * waiting for ourselves when the open needs what our caller is about to release */
            any |= c->exp.bdev != NULL;
            mover_io_fail(&c->io, -ESHUTDOWN);
        }
        if (!any)
            return;
        gr_fqueue_wait(&s->ended);
    }
}

void mover_server_stop(struct mover_server *s)
{
    if (!s)
        return;
    mover_gate_close(s);
    while (s->listens) {
        struct mover_listen *l = s->listens;
        s->listens = l->next;
        gr_acceptor_stop(&l->acceptor);
        free(l);
    }
    for (struct mover_conn *c = s->conns; c; c = c->next)
        mover_io_fail(&c->io, -ESHUTDOWN);
    while (s->conns)
        gr_fqueue_wait(&s->ended);
    mover_gate_free(s);
    mover_old_gates_stop(s);
    server_free(s);
}
