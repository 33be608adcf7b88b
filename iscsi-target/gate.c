/* The mover's gate: a process that owns the listening sockets and every TLS connection, from its first byte to its last. It has no key, no
 * file and no datastore, and makes only the system calls of the list below, before it reads the first byte from a stranger. How many
 * strangers there are is limited in total and per address (strangers.h), and each has one deadline until storaged has his first option.
 * GnuTLS cannot move a session to another process, so this one opens and makes the records of those who have proved themselves as well. */
#include "common/cleanup.h"
#include "common/acceptor.h"
#include "iscsi-target/gate_int.h"
#include "iscsi-target/mover.h"
#include "common/sandbox.h"
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#define MEMORY_LIMIT (768ull << 20)
#define CREDENTIALS_MAX (4u << 20)

void gate_tell(struct gate *g, const struct gate_conn *c, enum gate_msg_type type, int fd)
{
    g->out.slot = c ? c->slot : 0;
    g->out.gen = c ? c->gen : 0;
    if (gate_msg_send(GR_IPC_FD, &g->out, type, fd, 0) < 0)
        _exit(0); /* storaged is gone */
}

int gate_await(struct gate_conn *c, gnutls_datum_t *ret)
{
    struct gate_answer *a = &c->answer;
    c->waiting = true;
    while (c->waiting && !c->dropped)
        gr_fiber_suspend();
    c->waiting = false;
    if (c->dropped || !a->len || a->len > sizeof a->bytes)
        return -GR_EAUTH;
    ret->data = gnutls_malloc(a->len);
    ret->size = a->len;
    if (ret->data)
        memcpy(ret->data, a->bytes, a->len);
    explicit_bzero(a, sizeof *a);
    return ret->data ? 0 : -ENOMEM;
}

/* ---- connections ---- */

void gate_drop(struct gate_conn *c, const char *why)
{
    if (c->dropped)
        return;
    c->dropped = why;
    gr_strangers_remove(&c->gate->strangers, c->slot);
    shutdown(c->fd, SHUT_RDWR); /* ends a wait for the socket */
    if (c->waiting)
        gr_fiber_wake(c->fiber);
}

void gate_conn_end(struct gate_conn *c)
{
    struct gate *g = c->gate;
    gr_timer_cancel(g->loop, &c->deadline);
    gate_pump_free(c);
    if (c->tls)
        gnutls_deinit(c->tls);
    gr_buf_done(&c->shaken);
    close(c->fd);
    gr_strangers_remove(&g->strangers, c->slot);
    g->conns[c->slot] = NULL;
    g->n_conns--;
    free(c);
    if (g->retired && !g->n_conns)
        _exit(0);
}

static void on_deadline(void *arg)
{
    gate_drop(arg, "no end of the TLS handshake in time");
}

static void turn_away(struct gate *g, const struct sockaddr_storage *from, const char *why)
{
    struct gate_msg *m = &g->out;
    memset(&m->u.turned_away, 0, sizeof m->u.turned_away);
    m->u.turned_away.addr = *from;
    snprintf(m->u.turned_away.reason, sizeof m->u.turned_away.reason, "%s", why);
    gate_tell(g, NULL, GATE_TURNED_AWAY, -1);
}

static struct gate_conn *conn_new(struct gate *g, int fd)
{
    uint32_t slot = 0;
    while (slot < GATE_SLOTS && g->conns[slot])
        slot++;
    struct gate_conn *c = slot < GATE_SLOTS ? gr_zalloc(sizeof *c) : NULL;
    if (!c)
        return NULL;
    *c = (struct gate_conn){.gate = g, .slot = slot, .gen = ++g->next_gen, .fd = fd, .came_ns = gr_loop_now_ns(g->loop)};
    c->deadline = (struct gr_timer){.fn = on_deadline, .arg = c};
    if (gr_timer_arm(g->loop, &c->deadline, g->negotiate_ms * UINT64_C(1000000)) < 0 || gr_fiber_start(g->loop, gate_stranger, c) < 0) {
        gr_timer_cancel(g->loop, &c->deadline);
        free(c);
        return NULL;
    }
    return c;
}

static void comes(void *arg, int fd, const struct sockaddr_storage *from, socklen_t len)
{
    struct gate *g = arg;
    struct in6_addr peer;
    gr_peer_of(from, &peer);
    int leaver = gr_strangers_room(&g->strangers, &peer);
    if (leaver >= 0)
        gate_drop(g->conns[leaver], "another came while it had proved nothing, and there are too many like it");
    bool full = g->n_conns >= g->max_connections + (leaver >= 0);
    struct gate_conn *c = full ? NULL : conn_new(g, fd);
    if (!c) {
        close(fd);
        turn_away(g, from, full ? "too many connections" : "out of memory");
        return;
    }
    g->conns[c->slot] = c;
    g->n_conns++;
    gr_strangers_add(&g->strangers, c->slot, &peer);
    g->out.u.opened.addr = *from;
    gate_tell(g, c, GATE_OPENED, -1);
}

static void cannot_accept(void *arg, int code)
{
    struct sockaddr_storage nobody = {0};
    turn_away(arg, &nobody, gr_code_text(code));
}

/* ---- storaged ---- */

static void add_listener(struct gate *g, int fd)
{
    struct gr_acceptor *a = gr_zalloc(sizeof *a);
    /* one at a time: handshakes take turns with the bytes of those who have proved themselves */
    if (a)
        *a = (struct gr_acceptor){.loop = g->loop, .fd = fd, .batch = 1, .fn = comes, .failed = cannot_accept, .arg = g, .next = g->listeners};
    if (!a || gr_acceptor_start(a) < 0) {
        free(a);
        close(fd);
        return;
    }
    g->listeners = a;
}

static void adopt(struct gate *g, int fd)
{
    struct sockaddr_storage from = {0};
    socklen_t len = sizeof from;
    (void)getpeername(fd, (struct sockaddr *)&from, &len);
    comes(g, fd, &from, len);
}

static void go_deaf(struct gate *g)
{
    while (g->listeners) {
        struct gr_acceptor *a = g->listeners;
        g->listeners = a->next;
        gr_acceptor_stop(a);
        free(a);
    }
}

static void retire(struct gate *g, const char *why)
{
    go_deaf(g);
    g->retired = true;
    for (uint32_t i = 0; i < GATE_SLOTS; i++)
        if (g->conns[i] && !g->conns[i]->pump)
            gate_drop(g->conns[i], why);
    if (!g->n_conns)
        _exit(0);
}

static void answered(struct gate *g, const struct gate_msg *m)
{
    struct gate_conn *c = m->slot < GATE_SLOTS ? g->conns[m->slot] : NULL;
    if (!c || c->gen != m->gen || !c->waiting)
        return;
    c->answer = m->u.answer;
    c->waiting = false;
    gr_fiber_wake(c->fiber);
}

static void from_parent(void *arg, int events)
{
    struct gate *g = arg;
    int fd = -1;
    int r = gate_msg_recv(GR_IPC_FD, &g->in, &fd);
    if (r == -EAGAIN)
        return;
    if (r <= 0)
        _exit(0);
    switch (g->in.type) {
    case GATE_LISTEN:
        add_listener(g, fd);
        return;
    case GATE_ADOPT:
        adopt(g, fd);
        return;
    case GATE_DEAF:
        go_deaf(g);
        gate_tell(g, NULL, GATE_IS_DEAF, -1);
        return;
    case GATE_RETIRE:
        retire(g, "the daemon was replaced before it had proved anything");
        return;
    case GATE_STOP:
        g->hurries = true;
        retire(g, "the mover ends");
        return;
    case GATE_PING:
        gate_tell(g, NULL, GATE_PONG, -1);
        return;
    default:
        answered(g, &g->in);
        explicit_bzero(&g->in, sizeof g->in);
    }
}

/* ---- the process ---- */

/* The first message, with the file of certificates: they are read before the filter goes up. */
static int begin(struct gate *g)
{
    gr_auto_close int file = -1;
    struct gate_msg *m = &g->in;
    struct pollfd ready = {.fd = GR_IPC_FD, .events = POLLIN};
    if (poll(&ready, 1, 10000) != 1 || gate_msg_recv(GR_IPC_FD, m, &file) != 1 || m->type != GATE_START || file < 0)
        return -GR_EPROTO;
    g->max_connections = GR_MIN(m->u.start.max_connections, GATE_SLOTS - 1);
    g->negotiate_ms = m->u.start.negotiate_ms;
    g->stall_ms = m->u.start.stall_ms;
    g->strangers.max = m->u.start.max_strangers;
    g->strangers.per_address = m->u.start.per_address;
    size_t len = (size_t)m->u.start.ca_len + m->u.start.cert_len;
    gr_auto_free uint8_t *pem = len <= CREDENTIALS_MAX ? gr_alloc(len + 1) : NULL;
    if (!pem || pread(file, pem, len, 0) != (ssize_t)len)
        return -EIO;
    return gate_creds_new(g, m, pem);
}

static int confine(void)
{
    static const struct gr_call more = {SCMP_SYS(getpeername)};
    return gr_confine_tls(&more, 1);
}

int mover_gate_main(int argc, char **argv)
{
    if (argc != 2 || strcmp(argv[1], GATE_FLAG) != 0)
        return -1;
    /* No lower priority: it would slow down those who have proved themselves, whose records are opened and made here. */
    const struct gr_sandbox rights = {.name = "granary-gate", .max_fds = 2 * GATE_SLOTS + 64, .max_memory = MEMORY_LIMIT, .outlives = true};
    static struct gate gate; /* the process's one object */
    struct gate *g = &gate;
    struct gr_loop_opts o = {.engine = GR_ENGINE_SYNC};
    g->scratch = gr_sandbox(&rights) < 0 ? NULL : gr_alloc(GATE_SCRATCH);
    if (!g->scratch || gr_loop_new(&o, &g->loop, NULL) < 0 || begin(g) < 0)
        return 1;
    g->parent = (struct gr_watch){.fn = from_parent, .arg = g, .fd = GR_IPC_FD, .events = POLLIN};
    if (gr_watch_add(g->loop, &g->parent) < 0 || confine() != 0)
        return 1;
    return gr_loop_run(g->loop);
}
