/* What a TLS handshake proves, found out by storaged itself: the gate saw it, but the gate talks to strangers, and could say anything.
 *
 * The gate passes the handshake's messages as they were sent, up to the client's CertificateVerify. Server and client both signed them. The
 * server's signature was made here, a moment ago, for this stranger, and is in the messages; an ECDSA signature has a random part that nobody
 * knows before. So a client's signature over them (RFC 8446 4.4.3, RFC 5246 7.4.8) was made by the owner of the client's key after that
 * moment, in a handshake with this server: nothing that was seen in an earlier one will do. What cannot be seen from here is whether the
 * bytes that the gate passes afterwards are that client's. */
#ifndef MOVER_PROOF_H
#define MOVER_PROOF_H
#include "common/err.h"
#include "iscsi-target/gate_ipc.h"
#include <stdbool.h>
#include <stddef.h>

#define MOVER_PROOF_CERTS 8u
#define MOVER_PROOF_CONTENT 160u
struct mover_bytes {
    const uint8_t *p;
    size_t len;
};
struct mover_proof {
    struct mover_bytes certs[MOVER_PROOF_CERTS]; /* DER, the client's own first; not looked into */
    unsigned n_certs;
    uint16_t scheme;              /* SignatureScheme of the client's signature */
    bool tls12;
    struct mover_bytes signature, content; /* the client's; what it must be a signature of */
    uint8_t text[MOVER_PROOF_CONTENT];     /* where @content lies for TLS 1.3: a proof is not copied */
};
/* Read the messages @p. @digest is what was signed for this handshake, @signature what that gave: both must be in it, at the server's place.
 * @ret points into @p. 0, or -GR_EPROTO and what is wrong. Does not check the client's signature: see mover_creds_vouch(). */
int mover_proof_read(const uint8_t *p, size_t len, const uint8_t digest[GATE_DIGEST_LEN], const struct gate_answer *signature,
                     struct mover_proof *ret, struct gr_err *err);
/* An X.509 certificate without looking into what its issuer signed: @tbs, which is signed, by which algorithm (the DER of its OID, without
 * tag and length), the signature. False: it is none. */
bool mover_der_certificate(struct mover_bytes der, struct mover_bytes *tbs, struct mover_bytes *oid, struct mover_bytes *signature);
#endif
