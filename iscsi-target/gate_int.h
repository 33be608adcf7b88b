/* Inside of the mover's gate process; nobody else includes this. Files:
 *   gate.c        the process: listening, limits, messages          gate_nego.c   what is said before TLS (pure, fuzzed)
 *   gate_shake.c  a stranger: until he has proved himself or left    gate_tls.c    credentials without the server's key, and the proof
 *   gate_pump.c   afterwards: bytes both ways                       gate_ipc.c    messages to and from storaged
 *
 * A stranger is a fiber: it suspends inside GnuTLS's callbacks when storaged must sign or tell a key. Who has proved himself is a pump
 * without a fiber. */
#ifndef GATE_INT_H
#define GATE_INT_H
#include "common/buf.h"
#include "common/fiber.h"
#include "iscsi-target/gate_ipc.h"
#include "iscsi-target/gate_nego.h"
#include <gnutls/gnutls.h>

struct gate;
struct gate_creds;
struct gr_acceptor;
struct gate_pump;
struct gate_conn {
    struct gate *gate;
    uint32_t slot, gen;
    int fd;
    uint64_t came_ns;
    struct gate_nego nego;
    gnutls_session_t tls;
    struct gr_fiber *fiber;   /* of a stranger */
    struct gr_timer deadline;
    const char *dropped;      /* why he must leave */
    bool waiting;             /* for storaged's answer */
    struct gate_answer answer;
    char user[GATE_NAME_MAX + 1]; /* whose key he claims to have */
    struct gr_buf shaken;         /* the handshake's messages up to his signature */
    bool signed_by_him;
    uint32_t shake_got;           /* bytes received in the handshake */
    struct gate_pump *pump;
};
struct gate {
    struct gr_loop *loop;
    struct gr_watch parent;
    struct gr_acceptor *listeners;
    struct gate_creds *creds;
    uint32_t max_connections, negotiate_ms, stall_ms;
    uint32_t n_conns, next_gen;
    bool retired; /* ends with its last connection */
    bool hurries; /* does not wait for clients to close */
    struct gate_msg out, in;
    struct gate_conn *shaking; /* whose handshake runs: GnuTLS does not tell who wants the signature */
    struct gr_strangers strangers;
    struct gate_conn *conns[GATE_SLOTS];
    uint8_t *scratch; /* GATE_SCRATCH bytes that pass through within one call */
};
#define GATE_SCRATCH (256u << 10)

/* ---- gate.c ---- */
/* Tell storaged; the message's body is in gate->out. */
void gate_tell(struct gate *g, const struct gate_conn *c, enum gate_msg_type type, int fd);
/* Fiber of @c: wait for the answer to what was told, into new memory of GnuTLS; 0, or negative: refused, or he must leave. */
int gate_await(struct gate_conn *c, gnutls_datum_t *ret);
/* He must leave: his fiber notices. */
void gate_drop(struct gate_conn *c, const char *why);
/* The connection is over: close it, free it. */
void gate_conn_end(struct gate_conn *c);

/* ---- gate_tls.c ---- */
/* Fill gate->creds; 0 or negative. */
int gate_creds_new(struct gate *g, const struct gate_msg *start, const uint8_t *pem);
/* A session for @c over its socket; 0 or -ENOMEM. */
int gate_session_new(struct gate_conn *c);
/* After the handshake: how did he prove himself? NULL, else the reason why not (static or in @text). */
const char *gate_check_peer(struct gate_conn *c, enum gate_proof *ret, char text[256]);

/* ---- gate_shake.c ---- */
void gate_stranger(void *arg); /* fiber: struct gate_conn */

/* ---- gate_pump.c ---- */
/* From here on bytes travel between the session of @c and @fd, which is taken over in any case. 0 or negative: end the connection. */
int gate_pump_start(struct gate_conn *c, int fd);
void gate_pump_free(struct gate_conn *c);
#endif
