/* The link process: TLS between hosts, for strangers who dial and for those whom we dial. It has no key, no file and no datastore: a channel
 * is private and whole, and who is at its other end is proved inside it (link_key.h), to the daemon. What both ends know beforehand is no
 * secret; it spares them certificates, and with them most of the code that a stranger could reach. */
#include "common/acceptor.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "common/link.h"
#include "common/link_ipc.h"
#include "common/sandbox.h"
#include <fcntl.h>
#include <gnutls/gnutls.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#define PRIORITY "NORMAL:-VERS-ALL:+VERS-TLS1.3:+ECDHE-PSK"
#define USER "granary"
#define KNOWN_TO_ALL "Granary hosts prove who they are inside" /* and not by this */
#define CHANNEL_LABEL "EXPORTER-Channel-Binding"           /* RFC 9266 section 2 */
#define STRANGERS 64u
#define PER_ADDRESS 16u
#define DEADLINE_MS 10000u /* from the first byte to the proof */
#define MEMORY_LIMIT (768ull << 20)
#define RECORD (16u << 10)

struct link_proc;
struct link_conn {
    struct link_proc *proc;
    uint32_t slot, gen;
    uint64_t dial; /* 0: it came to us */
    int net_in, net_out, house_in, house_out; /* each socket twice: two fibers wait for it */
    gnutls_session_t tls;
    struct sockaddr_storage from;
    struct gr_timer deadline;
    const char *dropped;
    unsigned fibers;
};
struct link_proc {
    struct gr_loop *loop;
    struct gr_watch parent;
    gnutls_psk_server_credentials_t server;
    gnutls_psk_client_credentials_t client;
    gnutls_priority_t priority;
    struct gr_strangers strangers;
    uint32_t next_gen;
    struct link_msg out, in;
    struct link_conn *conns[LINK_SLOTS];
};

static void tell(struct link_proc *p, enum link_msg_type type, int fd)
{
    if (link_msg_send(GR_IPC_FD, &p->out, type, fd, 0) < 0)
        _exit(0); /* the daemon is gone */
}

static void tell_reason(struct link_proc *p, const struct link_conn *c, const struct sockaddr_storage *from, const char *why)
{
    memset(&p->out, 0, sizeof(p->out));
    p->out.dial = c ? c->dial : 0;
    p->out.u.reason.from = *from;
    snprintf(p->out.u.reason.text, LINK_REASON, "%s", why);
    tell(p, p->out.dial ? LINK_FAILED : LINK_TURNED_AWAY, -1);
}

/* ---- a connection ---- */
static void drop(struct link_conn *c, const char *why)
{
    if (c->dropped)
        return;
    c->dropped = why;
    shutdown(c->net_in, SHUT_RDWR);
    if (c->house_in >= 0)
        shutdown(c->house_in, SHUT_RDWR);
}

static void conn_put(struct link_conn *c)
{
    if (--c->fibers > 0)
        return;
    gr_timer_cancel(c->proc->loop, &c->deadline);
    if (c->tls)
        gnutls_deinit(c->tls);
    gr_closep(&c->net_in);
    gr_closep(&c->net_out);
    gr_closep(&c->house_in);
    gr_closep(&c->house_out);
    gr_strangers_remove(&c->proc->strangers, c->slot);
    c->proc->conns[c->slot] = NULL;
    free(c);
}

static void on_deadline(void *arg)
{
    drop(arg, "it did not prove who it is in time");
}

static int wait_fd(const struct link_conn *c, int fd, int events)
{
    if (!c->dropped)
        (void)gr_fiber_wait_fd(fd, events, -1);
    return c->dropped ? -EPIPE : 0;
}

static const char *session(struct link_conn *c)
{
    struct link_proc *p = c->proc;
    if (gnutls_init(&c->tls, (c->dial ? GNUTLS_CLIENT : GNUTLS_SERVER) | GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS) < 0)
        return "out of memory";
    if (gnutls_priority_set(c->tls, p->priority) < 0 ||
        gnutls_credentials_set(c->tls, GNUTLS_CRD_PSK, c->dial ? (void *)p->client : (void *)p->server) < 0)
        return "no TLS session";
    gnutls_handshake_set_timeout(c->tls, GNUTLS_INDEFINITE_TIMEOUT);
    gnutls_handshake_set_max_packet_length(c->tls, 8192);
    gnutls_transport_set_int(c->tls, c->net_in);
    return NULL;
}

static const char *handshake(struct link_conn *c)
{
    const char *why = session(c);
    while (!why) {
        int r = gnutls_handshake(c->tls);
        if (c->dropped)
            return c->dropped;
        if (r == GNUTLS_E_SUCCESS)
            return NULL;
        if (r == GNUTLS_E_AGAIN) {
            if (wait_fd(c, c->net_in, gnutls_record_get_direction(c->tls) ? POLLOUT : POLLIN) < 0)
                why = c->dropped;
        } else if (gnutls_error_is_fatal(r)) {
            (void)gnutls_alert_send_appropriate(c->tls, r);
            why = gnutls_strerror(r);
        }
    }
    return why;
}

/* One end of a pair goes to the daemon. */
static const char *hand_over(struct link_conn *c)
{
    struct link_proc *p = c->proc;
    int pair[2];
    memset(&p->out, 0, sizeof(p->out));
    if (gnutls_prf_rfc5705(c->tls, strlen(CHANNEL_LABEL), CHANNEL_LABEL, 0, "", GR_LINK_CHANNEL_LEN, (char *)p->out.u.open.channel) < 0)
        return "the channel has no number";
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
        return "no socket pair";
    gr_auto_close int theirs = pair[1];
    c->house_in = pair[0];
    c->house_out = fcntl(pair[0], F_DUPFD_CLOEXEC, 0);
    if (c->house_out < 0)
        return "no descriptor";
    p->out.slot = c->slot;
    p->out.gen = c->gen;
    p->out.dial = c->dial;
    p->out.u.open.from = c->from;
    tell(p, LINK_OPEN, theirs);
    if (c->dial)
        gr_timer_cancel(p->loop, &c->deadline);
    return NULL;
}

static bool give_house(struct link_conn *c, const uint8_t *p, size_t len)
{
    while (len) {
        ssize_t n = send(c->house_out, p, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN && wait_fd(c, c->house_out, POLLOUT) == 0)
            continue;
        if (n < 0)
            return false;
        p += n;
        len -= (size_t)n;
    }
    return true;
}

/* From the net to the house. */
static void up(struct link_conn *c)
{
    uint8_t buf[RECORD];
    while (!c->dropped) {
        ssize_t n = gnutls_record_recv(c->tls, buf, sizeof(buf));
        if (n > 0 && give_house(c, buf, (size_t)n))
            continue;
        if (n == GNUTLS_E_AGAIN && wait_fd(c, c->net_in, gnutls_record_get_direction(c->tls) ? POLLOUT : POLLIN) == 0)
            continue;
        if (n == GNUTLS_E_INTERRUPTED || n == GNUTLS_E_WARNING_ALERT_RECEIVED)
            continue;
        break;
    }
    shutdown(c->house_out, SHUT_WR); /* what was said last is read first */
}

static bool give_net(struct link_conn *c, const uint8_t *p, size_t len)
{
    while (len) {
        ssize_t n = gnutls_record_send(c->tls, p, len);
        if (n == GNUTLS_E_AGAIN && wait_fd(c, c->net_out, POLLOUT) == 0)
            continue;
        if (n == GNUTLS_E_INTERRUPTED)
            continue;
        if (n <= 0)
            return false;
        p += n;
        len -= (size_t)n;
    }
    return true;
}

/* From the house to the net. */
static void down(void *arg)
{
    struct link_conn *c = arg;
    uint8_t buf[RECORD];
    while (!c->dropped) {
        ssize_t n = recv(c->house_in, buf, sizeof(buf), MSG_DONTWAIT);
        if (n > 0 && give_net(c, buf, (size_t)n))
            continue;
        if (n < 0 && errno == EAGAIN && wait_fd(c, c->house_in, POLLIN) == 0)
            continue;
        break;
    }
    if (!c->dropped)
        (void)gnutls_bye(c->tls, GNUTLS_SHUT_WR);
    drop(c, "the daemon has hung up");
    conn_put(c);
}

static void conn_main(void *arg)
{
    struct link_conn *c = arg;
    const char *why = c->dropped ? c->dropped : handshake(c);
    if (!why)
        why = hand_over(c);
    if (why) {
        tell_reason(c->proc, c, &c->from, why);
    } else {
        c->fibers++;
        if (gr_fiber_start(c->proc->loop, down, c) < 0)
            c->fibers--;
        else
            up(c);
    }
    conn_put(c);
}

/* Takes @fd. */
static void comes(struct link_proc *p, int fd, const struct sockaddr_storage *from, uint64_t dial)
{
    struct in6_addr peer;
    gr_peer_of(from, &peer);
    int leaver = dial ? -1 : gr_strangers_room(&p->strangers, &peer);
    if (leaver >= 0) {
        gr_strangers_remove(&p->strangers, (uint32_t)leaver);
        drop(p->conns[leaver], "another came while it had proved nothing");
    }
    uint32_t slot = 0;
    while (slot < LINK_SLOTS && p->conns[slot])
        slot++;
    struct link_conn *c = slot < LINK_SLOTS ? gr_zalloc(sizeof(*c)) : NULL;
    const struct link_conn asked = {.dial = dial};
    if (!c) {
        close(fd);
        tell_reason(p, &asked, from, "too many connections");
        return;
    }
    *c = (struct link_conn){.proc = p, .slot = slot, .gen = ++p->next_gen, .dial = dial, .net_in = fd, .house_in = -1, .house_out = -1, .from = *from,
                            .fibers = 1};
    c->net_out = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    c->deadline = (struct gr_timer){.fn = on_deadline, .arg = c};
    if (c->net_out < 0 || gr_timer_arm(p->loop, &c->deadline, DEADLINE_MS * UINT64_C(1000000)) < 0 || gr_fiber_start(p->loop, conn_main, c) < 0) {
        tell_reason(p, &asked, from, "out of memory");
        p->conns[slot] = c;
        conn_put(c);
        return;
    }
    p->conns[slot] = c;
    if (!dial)
        gr_strangers_add(&p->strangers, slot, &peer);
}

/* ---- the daemon ---- */
static void accepted(void *arg, int fd, const struct sockaddr_storage *from, socklen_t len)
{
    comes(arg, fd, from, 0);
}

static void cannot_accept(void *arg, int code)
{
    const struct sockaddr_storage nobody = {0};
    tell_reason(arg, NULL, &nobody, gr_code_text(code));
}

static void add_listener(struct link_proc *p, int fd)
{
    struct gr_acceptor *a = gr_zalloc(sizeof(*a)); /* for as long as the process lives */
    if (a)
        *a = (struct gr_acceptor){.loop = p->loop, .fd = fd, .batch = 4, .fn = accepted, .failed = cannot_accept, .arg = p};
    if (!a || gr_acceptor_start(a) < 0) {
        free(a);
        close(fd);
    }
}

static void known(struct link_proc *p)
{
    struct link_conn *c = p->in.slot < LINK_SLOTS ? p->conns[p->in.slot] : NULL;
    if (!c || c->gen != p->in.gen)
        return;
    gr_strangers_remove(&p->strangers, c->slot);
    gr_timer_cancel(p->loop, &c->deadline);
}

static void from_parent(void *arg, int events)
{
    struct link_proc *p = arg;
    const struct sockaddr_storage nobody = {0};
    int fd = -1;
    int r = link_msg_recv(GR_IPC_FD, &p->in, &fd);
    if (r == -EAGAIN)
        return;
    if (r <= 0)
        _exit(0);
    if (p->in.type == LINK_LISTEN)
        add_listener(p, fd);
    else if (p->in.type == LINK_DIAL)
        comes(p, fd, &nobody, p->in.dial);
    else if (p->in.type == LINK_KNOWN)
        known(p);
    else if (p->in.type == LINK_PING)
        tell(p, LINK_PONG, -1);
}

/* ---- the process ---- */
static int the_key(gnutls_session_t s, const char *user, gnutls_datum_t *ret)
{
    ret->size = sizeof(KNOWN_TO_ALL) - 1;
    ret->data = gnutls_malloc(ret->size);
    if (!ret->data || !user || strcmp(user, USER) != 0)
        return -1;
    memcpy(ret->data, KNOWN_TO_ALL, ret->size);
    return 0;
}

static int credentials(struct link_proc *p)
{
    const gnutls_datum_t key = {(uint8_t *)(uintptr_t)KNOWN_TO_ALL, sizeof(KNOWN_TO_ALL) - 1};
    int r = gnutls_psk_allocate_server_credentials(&p->server);
    if (r >= 0)
        r = gnutls_psk_allocate_client_credentials(&p->client);
    if (r >= 0)
        r = gnutls_psk_set_client_credentials(p->client, USER, &key, GNUTLS_PSK_KEY_RAW);
    if (r >= 0)
        gnutls_psk_set_server_credentials_function(p->server, the_key);
    return r < 0 ? r : gnutls_priority_init(&p->priority, PRIORITY, NULL);
}

static int confine(void)
{
    static const struct gr_call more = {SCMP_SYS(fcntl), {{1, SCMP_CMP_EQ, F_DUPFD_CLOEXEC}}};
    return gr_confine_tls(&more, 1);
}

int gr_link_main(int argc, char **argv)
{
    if (argc != 2 || strcmp(argv[1], LINK_FLAG) != 0)
        return -1;
    const struct gr_sandbox rights = {.name = "granary-link", .max_fds = 4 * LINK_SLOTS + 64, .max_memory = MEMORY_LIMIT};
    const struct gr_loop_opts o = {.engine = GR_ENGINE_SYNC};
    int r = gr_sandbox(&rights);
    struct link_proc *p = r < 0 ? NULL : gr_zalloc(sizeof(*p));
    if (!p || gr_loop_new(&o, &p->loop, NULL) < 0 || credentials(p) < 0)
        return 1;
    p->strangers.max = STRANGERS;
    p->strangers.per_address = PER_ADDRESS;
    p->parent = (struct gr_watch){.fn = from_parent, .arg = p, .fd = GR_IPC_FD, .events = POLLIN};
    if (gr_watch_add(p->loop, &p->parent) < 0 || confine() != 0)
        return 1;
    return gr_loop_run(p->loop);
}
