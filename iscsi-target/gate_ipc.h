/* Messages between the mover's gate and granary-storaged, over a SOCK_SEQPACKET pair: one message is one packet of exactly the size of its
 * type. Both ends run the same program, so the layout is the compiler's; storaged checks every field all the same: the gate talks to
 * strangers and is not trusted. A malformed message ends the gate (a new one starts).
 *
 * Each connection that has proved nothing yet has a slot; @gen tells apart the users of one slot. */
#ifndef GATE_IPC_H
#define GATE_IPC_H
#include "common/strangers.h"

#define GATE_FLAG "--granary-mover-gate"
#define GATE_IPC_MAGIC 0x67726d32u /* changes with every change of this file */
#define GATE_SLOTS GR_STRANGERS_MAX
#define GATE_DIGEST_LEN 32u  /* SHA-256: all that is signed */
#define GATE_ANSWER_BYTES 80u /* a signature of ECDSA P-256 (DER), or a key */
#define GATE_NAME_MAX 255u
#define GATE_PROOF_PIECE 4096u
#define GATE_PROOF_MAX (32u << 10) /* bytes of a handshake up to the client's signature */

enum gate_msg_type {
    /* to storaged */
    GATE_OPENED = 1,  /* a stranger has come */
    GATE_SIGN,        /* asks for a signature of the server's key */
    GATE_KEY,         /* asks for the key of a user */
    GATE_PROOF,       /* before PROVEN by a certificate: a piece of the handshake that proves it (mover_proof.h) */
    GATE_PROVEN,      /* carries a socket: the stranger is none any more, and his bytes come there */
    GATE_ENDED,       /* a stranger has left or was refused */
    GATE_TURNED_AWAY, /* one was not let in at all; no slot */
    GATE_PONG,
    GATE_IS_DEAF, /* nobody comes any more */
    /* to the gate */
    GATE_START,  /* first of all; carries a file: CA certificates and the server's own, PEM */
    GATE_LISTEN, /* carries a listening socket */
    GATE_ADOPT,  /* carries a connected one */
    GATE_DEAF,   /* accept nobody until the next LISTEN; those who are there go on */
    GATE_RETIRE, /* no more strangers; end when the others have ended */
    GATE_STOP,   /* the same, and do not wait for clients to close */
    GATE_ANSWER, /* to SIGN and KEY */
    GATE_PING,
    GATE_TYPES
};
enum gate_proof { GATE_BY_CERTIFICATE = 1, GATE_BY_KEY };
struct gate_msg {
    uint32_t magic, type, slot, gen;
    union {
        struct {
            struct sockaddr_storage addr;
        } opened;
        struct {
            uint8_t digest[GATE_DIGEST_LEN];
        } sign;
        struct {
            char user[GATE_NAME_MAX + 1];
        } key;
        struct {
            uint32_t proof, no_zeroes, spent_ms; /* spent_ms: since it came */
            char name[GATE_NAME_MAX + 1]; /* of the key, for people; a certificate's is found in the proof */
        } proven;
        struct {
            uint32_t len;
            uint8_t bytes[GATE_PROOF_PIECE];
        } proof;
        struct {
            char reason[256]; /* empty: it left in order */
        } ended;
        struct {
            struct sockaddr_storage addr;
            char reason[256];
        } turned_away;
        struct {
            uint32_t ca_len, cert_len; /* the file's parts; 0 and 0: no certificates */
            uint32_t keys;             /* there are pre-shared ones */
            uint32_t max_connections, max_strangers, per_address, negotiate_ms, stall_ms;
        } start;
        struct gate_answer {
            uint32_t len; /* 0: refused, no such user */
            uint8_t bytes[GATE_ANSWER_BYTES];
        } answer;
    } u;
};
/* Send; @fd >= 0 goes along. 0 or -errno. @flags: of sendmsg. */
int gate_msg_send(int sock, struct gate_msg *m, enum gate_msg_type type, int fd, int flags);
/* Receive one without waiting; *ret_fd: -1 or a descriptor. 1: a message; 0: the peer is gone; -EAGAIN: none waits; -GR_EPROTO: malformed. */
int gate_msg_recv(int sock, struct gate_msg *m, int *ret_fd);
#endif
