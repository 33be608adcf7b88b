/* TLS handshakes in memory, between a server and a client of GnuTLS's own, kept as the mover's gate keeps them. */
#ifndef TLSPROOF_H
#define TLSPROOF_H
#include "iscsi-target/gate_ipc.h"
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

struct tlsproof {
    uint8_t said[GATE_PROOF_MAX]; /* all messages up to the client's signature */
    size_t len;
    uint8_t digest[GATE_DIGEST_LEN]; /* what the server's key was asked to sign */
    struct gate_answer signature;
    bool retried; /* the server asked for another ClientHello */
};
struct tlsproof_id {
    gnutls_x509_crt_t crt;
    gnutls_x509_privkey_t key;
};
enum tlsproof_kind { TLSPROOF_CA, TLSPROOF_CLIENT, TLSPROOF_SERVER };
/* A certificate for @cn by @issuer (NULL: by itself) with a new key. Valid from yesterday until @until (seconds, wall clock). */
void tlsproof_issue(struct tlsproof_id *ret, const char *cn, gnutls_pk_algorithm_t algo, enum tlsproof_kind kind, const struct tlsproof_id *issuer, time_t until);
void tlsproof_load(struct tlsproof_id *ret, const char *dir, const char *what); /* DIR/WHAT-{cert,key}.pem */
void tlsproof_done(struct tlsproof_id *id);
/* Shake hands; the client shows @chain, its own first, and has the key of that. Fails the test unless it works. */
void tlsproof_shake(struct tlsproof *ret, const struct tlsproof_id *server, const struct tlsproof_id *const *chain, unsigned n, const char *server_priority,
                    const char *client_priority);
/* Sign @digest with the server's key, once more. */
void tlsproof_sign(const struct tlsproof_id *server, const uint8_t digest[GATE_DIGEST_LEN], struct gate_answer *ret);
#endif
