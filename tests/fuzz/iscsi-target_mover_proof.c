/* Fuzz target: what a gate in wrong hands may pass as a handshake, and certificates in it before anybody vouches for them. First comes what was
 * signed (a digest), and the signature with its length in one byte; the corpus has handshakes that these belong to. */
#include "common/cleanup.h"
#include "iscsi-target/mover_proof.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool within(struct mover_bytes b, const uint8_t *p, size_t len)
{
    return b.p >= p && b.p <= p + len && b.len <= (size_t)(p + len - b.p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gate_answer signature = {0};
    struct mover_proof proof;
    if (size < GATE_DIGEST_LEN + 1u || data[GATE_DIGEST_LEN] > GATE_ANSWER_BYTES || size - GATE_DIGEST_LEN - 1 < data[GATE_DIGEST_LEN])
        return 0;
    signature.len = data[GATE_DIGEST_LEN];
    memcpy(signature.bytes, data + GATE_DIGEST_LEN + 1, signature.len);
    size_t at = GATE_DIGEST_LEN + 1 + signature.len, len = size - at;
    gr_auto_free uint8_t *said = malloc(len + 1);
    memcpy(said, data + at, len);
    if (mover_proof_read(said, len, data, &signature, &proof, NULL) < 0)
        return 0;
    assert(proof.n_certs > 0 && proof.n_certs <= MOVER_PROOF_CERTS);
    assert(within(proof.signature, said, len));
    assert(proof.tls12 ? within(proof.content, said, len) : within(proof.content, proof.text, sizeof proof.text));
    for (unsigned i = 0; i < proof.n_certs; i++) {
        struct mover_bytes tbs, oid, sig;
        assert(within(proof.certs[i], said, len));
        if (!mover_der_certificate(proof.certs[i], &tbs, &oid, &sig))
            continue;
        assert(within(tbs, proof.certs[i].p, proof.certs[i].len) && within(oid, proof.certs[i].p, proof.certs[i].len));
        assert(within(sig, proof.certs[i].p, proof.certs[i].len));
    }
    return 0;
}
