/* A stranger: greeting, options, handshake, proof. One fiber, one deadline for all of it. */
#include "common/cleanup.h"
#include "iscsi-target/gate_int.h"
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define READ_MAX 512u /* at a time, of option data that nobody looks at */

static int wait_for(struct gate_conn *c, int events)
{
    int r = c->dropped ? -ETIMEDOUT : gr_fiber_wait_fd(c->fd, events, -1);
    return c->dropped ? -ETIMEDOUT : r;
}

/* 0, or negative: the connection is lost. */
static int send_answer(struct gate_conn *c)
{
    for (size_t at = 0; at < c->nego.answer_len;) {
        ssize_t n = send(c->fd, c->nego.answer + at, c->nego.answer_len - at, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0)
            at += (size_t)n;
        else if (errno != EAGAIN && errno != EINTR)
            return -errno;
        else if (wait_for(c, POLLOUT) < 0)
            return -ETIMEDOUT;
    }
    return 0;
}

/* Bytes received; 0 at the end of the stream, negative when the connection is lost. */
static ssize_t receive(struct gate_conn *c, uint8_t *to, size_t len)
{
    for (;;) {
        ssize_t n = recv(c->fd, to, len, MSG_DONTWAIT);
        if (n >= 0)
            return n;
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
        if (wait_for(c, POLLIN) < 0)
            return -ETIMEDOUT;
    }
}

/* Up to STARTTLS: NULL, or why it ends ("": in order). */
static const char *options(struct gate_conn *c)
{
    uint8_t bytes[READ_MAX];
    gate_nego_init(&c->nego);
    enum gate_act act = GATE_READ;
    for (bool first = true;; first = false) {
        if (send_answer(c) < 0)
            return "connection lost in the negotiation";
        if (act == GATE_TLS)
            return NULL;
        if (act == GATE_LEFT)
            return "";
        ssize_t n = receive(c, bytes, GR_MIN(gate_nego_wants(&c->nego), sizeof bytes));
        if (n == 0 && (first || c->nego.n_options))
            return ""; /* a port check, or one who saw enough */
        if (n <= 0)
            return "connection lost in the negotiation";
        act = gate_nego_feed(&c->nego, bytes, (size_t)n);
        if (act == GATE_WRONG)
            return c->nego.reason;
    }
}

static const char *handshake(struct gate_conn *c, char text[256])
{
    if (gate_session_new(c) < 0)
        return "no TLS session: out of memory";
    for (;;) {
        c->gate->shaking = c;
        int r = gnutls_handshake(c->tls);
        if (c->dropped)
            return c->dropped;
        if (r == GNUTLS_E_SUCCESS)
            return NULL;
        if (r == GNUTLS_E_AGAIN) {
            if (wait_for(c, gnutls_record_get_direction(c->tls) ? POLLOUT : POLLIN) < 0)
                return "connection lost in the TLS handshake";
        } else if (gnutls_error_is_fatal(r)) {
            (void)gnutls_alert_send_appropriate(c->tls, r);
            snprintf(text, 256, "TLS handshake failed: %s", gnutls_strerror(r));
            return text;
        }
    }
}

static void tell_proof(struct gate_conn *c)
{
    struct gate *g = c->gate;
    for (size_t at = 0; at < c->shaken.len; at += g->out.u.proof.len) {
        g->out.u.proof.len = (uint32_t)GR_MIN(c->shaken.len - at, (size_t)GATE_PROOF_PIECE);
        memcpy(g->out.u.proof.bytes, c->shaken.data + at, g->out.u.proof.len);
        gate_tell(g, c, GATE_PROOF, -1);
    }
}

/* He has proved himself: storaged gets one end of a pair, the pump the other. */
static const char *let_in(struct gate_conn *c, enum gate_proof proof)
{
    struct gate *g = c->gate;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
        return "no socket pair for it";
    gr_auto_close int theirs = pair[1];
    if (gate_pump_start(c, pair[0]) < 0)
        return "out of memory";
    if (proof == GATE_BY_CERTIFICATE)
        tell_proof(c);
    gr_buf_done(&c->shaken);
    memset(&g->out.u.proven, 0, sizeof g->out.u.proven);
    g->out.u.proven.proof = proof;
    memcpy(g->out.u.proven.name, c->user, sizeof c->user);
    g->out.u.proven.no_zeroes = c->nego.no_zeroes;
    g->out.u.proven.spent_ms = (uint32_t)((gr_loop_now_ns(g->loop) - c->came_ns) / 1000000);
    gate_tell(g, c, GATE_PROVEN, theirs);
    gr_strangers_remove(&g->strangers, c->slot);
    gr_timer_cancel(g->loop, &c->deadline);
    c->fiber = NULL;
    return NULL;
}

static const char *prove(struct gate_conn *c, char text[256])
{
    const char *why = options(c);
    if (!why)
        why = handshake(c, text);
    if (why)
        return why;
    enum gate_proof proof = GATE_BY_KEY;
    why = gate_check_peer(c, &proof, text);
    if (why)
        (void)gnutls_alert_send(c->tls, GNUTLS_AL_FATAL, GNUTLS_A_BAD_CERTIFICATE);
    return why ? why : let_in(c, proof);
}

void gate_stranger(void *arg)
{
    struct gate_conn *c = arg;
    char text[256];
    c->fiber = gr_fiber_self();
    const char *why = c->dropped ? c->dropped : prove(c, text);
    if (!why)
        return;
    if (c->dropped)
        why = c->dropped;
    struct gate_msg *m = &c->gate->out;
    memset(&m->u.ended, 0, sizeof m->u.ended);
    snprintf(m->u.ended.reason, sizeof m->u.ended.reason, "%s", why);
    gate_tell(c->gate, c, GATE_ENDED, -1);
    gate_conn_end(c);
}
