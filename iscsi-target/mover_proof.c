#include "iscsi-target/mover_proof.h"
#include "common/cleanup.h"
#include "common/endian.h"
#include <gnutls/crypto.h>
#include <string.h>

enum { CLIENT_HELLO = 1, SERVER_HELLO = 2, ENCRYPTED_EXTENSIONS = 8, CERTIFICATE = 11, SERVER_KEY_EXCHANGE = 12, CERTIFICATE_REQUEST = 13,
       SERVER_HELLO_DONE = 14, CERTIFICATE_VERIFY = 15, CLIENT_KEY_EXCHANGE = 16, FINISHED = 20, MESSAGE_HASH = 254 };
#define RANDOM_LEN 32u
#define HASH_MAX 64u
#define ECDSA_P256_SHA256 0x0403u

/* ---- reading ---- */

/* The next @len bytes; false: there are fewer. */
static bool take(struct mover_bytes *from, size_t len, struct mover_bytes *ret)
{
    if (len > from->len)
        return false;
    *ret = (struct mover_bytes){from->p, len};
    from->p += len;
    from->len -= len;
    return true;
}

/* A number of @n bytes, big-endian. */
static bool number(struct mover_bytes *from, unsigned n, size_t *ret)
{
    struct mover_bytes b;
    if (!take(from, n, &b))
        return false;
    *ret = 0;
    for (unsigned i = 0; i < n; i++)
        *ret = *ret << 8 | b.p[i];
    return true;
}

/* A vector whose length stands before it in @n bytes. */
static bool vector(struct mover_bytes *from, unsigned n, struct mover_bytes *ret)
{
    size_t len;
    return number(from, n, &len) && take(from, len, ret);
}

/* The next message, which must be of that type: its body. */
static bool message(struct mover_bytes *from, unsigned type, struct mover_bytes *ret)
{
    size_t got;
    return number(from, 1, &got) && got == type && vector(from, 3, ret);
}

/* ---- the hello ---- */

struct hello {
    struct mover_bytes random;
    gnutls_digest_algorithm_t hash; /* of the handshake */
    bool tls12, retry;
};

static bool server_hello(struct mover_bytes b, struct hello *ret)
{
    static const uint8_t retry[RANDOM_LEN] = {0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
                                              0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c};
    struct mover_bytes session, extensions = {0}, data;
    size_t version, suite, compression, type;
    if (!number(&b, 2, &version) || !take(&b, RANDOM_LEN, &ret->random) || !vector(&b, 1, &session) || !number(&b, 2, &suite) ||
        !number(&b, 1, &compression) || (b.len && !vector(&b, 2, &extensions)) || b.len)
        return false;
    ret->tls12 = true;
    while (extensions.len) {
        if (!number(&extensions, 2, &type) || !vector(&extensions, 2, &data))
            return false;
        if (type == 43 && data.len == 2 && data.p[0] == 3 && data.p[1] == 4) /* supported_versions: TLS 1.3 */
            ret->tls12 = false;
    }
    ret->hash = suite == 0x1302 ? GNUTLS_DIG_SHA384 : GNUTLS_DIG_SHA256; /* TLS_AES_256_GCM_SHA384; the other suites of TLS 1.3 */
    ret->retry = !ret->tls12 && !memcmp(ret->random.p, retry, RANDOM_LEN);
    return true;
}

static bool client_random(struct mover_bytes b, struct mover_bytes *ret)
{
    size_t version;
    return number(&b, 2, &version) && take(&b, RANDOM_LEN, ret);
}

/* ---- what was signed ---- */

/* Hash of the messages from @from to @to; a first ClientHello that was answered by a retry counts by its hash (RFC 8446 4.4.1). */
static bool transcript_hash(const struct hello *h, const uint8_t *from, const uint8_t *second, const uint8_t *to, uint8_t ret[HASH_MAX])
{
    unsigned len = (unsigned)gnutls_hash_get_len(h->hash);
    if (!second)
        return gnutls_hash_fast(h->hash, from, (size_t)(to - from), ret) >= 0;
    uint8_t first[4 + HASH_MAX] = {MESSAGE_HASH, 0, 0, (uint8_t)len};
    gnutls_hash_hd_t hash;
    if (gnutls_hash_fast(h->hash, from, (size_t)(second - from), first + 4) < 0 || gnutls_hash_init(&hash, h->hash) < 0)
        return false;
    bool good = gnutls_hash(hash, first, 4 + len) >= 0 && gnutls_hash(hash, second, (size_t)(to - second)) >= 0;
    gnutls_hash_deinit(hash, ret);
    return good;
}

/* What a side signs in TLS 1.3 (RFC 8446 4.4.3): its length. */
static size_t signed_text(const char *who, const struct hello *h, const uint8_t hash[HASH_MAX], uint8_t ret[MOVER_PROOF_CONTENT])
{
    unsigned len = (unsigned)gnutls_hash_get_len(h->hash);
    memset(ret, ' ', 64);
    int n = snprintf((char *)ret + 64, MOVER_PROOF_CONTENT - 64, "TLS 1.3, %s CertificateVerify", who); /* its NUL belongs to it */
    memcpy(ret + 64 + n + 1, hash, len);
    return 64 + (size_t)n + 1 + len;
}

static bool is_ours(struct mover_bytes content, size_t scheme, struct mover_bytes signature, const uint8_t digest[GATE_DIGEST_LEN],
                    const struct gate_answer *ours)
{
    uint8_t hash[HASH_MAX];
    return scheme == ECDSA_P256_SHA256 && ours->len && signature.len == ours->len && !memcmp(signature.p, ours->bytes, ours->len) &&
           gnutls_hash_fast(GNUTLS_DIG_SHA256, content.p, content.len, hash) >= 0 && !memcmp(hash, digest, GATE_DIGEST_LEN);
}

static bool verify_message(struct mover_bytes b, size_t *ret_scheme, struct mover_bytes *ret_signature)
{
    return number(&b, 2, ret_scheme) && vector(&b, 2, ret_signature) && !b.len;
}

static bool certificates(struct mover_bytes b, struct mover_proof *ret)
{
    struct mover_bytes context, list, extensions;
    if ((!ret->tls12 && (!vector(&b, 1, &context) || context.len)) || !vector(&b, 3, &list) || b.len)
        return false;
    while (list.len) {
        if (ret->n_certs == MOVER_PROOF_CERTS || !vector(&list, 3, &ret->certs[ret->n_certs++]) || (!ret->tls12 && !vector(&list, 2, &extensions)))
            return false;
    }
    return ret->n_certs > 0;
}

/* ---- the two versions ---- */

struct reader {
    const uint8_t *begin, *second; /* @second: behind a first ClientHello that was answered by a retry */
    struct mover_bytes left;
    struct hello hello;
    struct mover_bytes client_random;
    const uint8_t *digest;
    const struct gate_answer *ours;
};

static const char *read_tls13(struct reader *r, struct mover_proof *ret)
{
    struct mover_bytes b, signature;
    uint8_t hash[HASH_MAX], text[MOVER_PROOF_CONTENT];
    size_t scheme;
    if (!message(&r->left, ENCRYPTED_EXTENSIONS, &b) || !message(&r->left, CERTIFICATE_REQUEST, &b) || !message(&r->left, CERTIFICATE, &b))
        return "it is not one in which a certificate was asked for";
    if (!transcript_hash(&r->hello, r->begin, r->second, r->left.p, hash))
        return "its hash cannot be computed";
    struct mover_bytes content = {text, signed_text("server", &r->hello, hash, text)};
    if (!message(&r->left, CERTIFICATE_VERIFY, &b) || !verify_message(b, &scheme, &signature) ||
        !is_ours(content, scheme, signature, r->digest, r->ours))
        return "it is not the one that was signed for here";
    if (!message(&r->left, FINISHED, &b) || !message(&r->left, CERTIFICATE, &b) || !certificates(b, ret))
        return "there is no certificate of the client in it";
    if (!transcript_hash(&r->hello, r->begin, r->second, r->left.p, hash))
        return "its hash cannot be computed";
    ret->content = (struct mover_bytes){ret->text, signed_text("client", &r->hello, hash, ret->text)};
    return NULL;
}

static const char *read_tls12(struct reader *r, struct mover_proof *ret)
{
    struct mover_bytes b, params, point, signature;
    uint8_t text[2 * RANDOM_LEN + 4 + 255];
    size_t curve, scheme;
    if (!message(&r->left, CERTIFICATE, &b) || !message(&r->left, SERVER_KEY_EXCHANGE, &b))
        return "it is not one in which a certificate was asked for";
    params = b;
    if (!number(&b, 3, &curve) || !vector(&b, 1, &point))
        return "its key exchange is none of an elliptic curve";
    params.len -= b.len;
    memcpy(text, r->client_random.p, RANDOM_LEN);
    memcpy(text + RANDOM_LEN, r->hello.random.p, RANDOM_LEN);
    memcpy(text + 2 * RANDOM_LEN, params.p, params.len);
    struct mover_bytes content = {text, 2 * RANDOM_LEN + params.len};
    if (!verify_message(b, &scheme, &signature) || !is_ours(content, scheme, signature, r->digest, r->ours))
        return "it is not the one that was signed for here";
    if (!message(&r->left, CERTIFICATE_REQUEST, &b) || !message(&r->left, SERVER_HELLO_DONE, &b))
        return "it is not one in which a certificate was asked for";
    if (!message(&r->left, CERTIFICATE, &b) || !certificates(b, ret) || !message(&r->left, CLIENT_KEY_EXCHANGE, &b))
        return "there is no certificate of the client in it";
    ret->content = (struct mover_bytes){r->begin, (size_t)(r->left.p - r->begin)};
    return NULL;
}

static const char *hellos(struct reader *r)
{
    struct mover_bytes b;
    if (!message(&r->left, CLIENT_HELLO, &b) || !client_random(b, &r->client_random))
        return "it does not begin with a ClientHello";
    const uint8_t *behind = r->left.p;
    if (!message(&r->left, SERVER_HELLO, &b) || !server_hello(b, &r->hello))
        return "the server does not answer";
    if (!r->hello.retry)
        return NULL;
    r->second = behind;
    if (!message(&r->left, CLIENT_HELLO, &b) || !message(&r->left, SERVER_HELLO, &b) || !server_hello(b, &r->hello) || r->hello.retry || r->hello.tls12)
        return "the server does not answer the second ClientHello";
    return NULL;
}

int mover_proof_read(const uint8_t *p, size_t len, const uint8_t digest[GATE_DIGEST_LEN], const struct gate_answer *signature,
                     struct mover_proof *ret, struct gr_err *err)
{
    struct reader r = {.begin = p, .left = {p, len}, .digest = digest, .ours = signature};
    struct mover_bytes b;
    size_t scheme = 0;
    memset(ret, 0, sizeof *ret);
    const char *wrong = hellos(&r);
    ret->tls12 = r.hello.tls12;
    if (!wrong)
        wrong = ret->tls12 ? read_tls12(&r, ret) : read_tls13(&r, ret);
    if (!wrong && (!message(&r.left, CERTIFICATE_VERIFY, &b) || !verify_message(b, &scheme, &ret->signature) || r.left.len))
        wrong = "it does not end with a signature of the client";
    if (wrong)
        return gr_fail(err, -GR_EPROTO, "the handshake that the gate tells of proves nothing: %s", wrong);
    ret->scheme = (uint16_t)scheme;
    return 0;
}

/* ---- certificates from outside ---- */

/* One element of DER with that tag: its contents, and @whole of it. */
static bool element(struct mover_bytes *from, unsigned tag, struct mover_bytes *ret, struct mover_bytes *whole)
{
    const uint8_t *begin = from->p;
    size_t got, len;
    if (!number(from, 1, &got) || got != tag || !number(from, 1, &len))
        return false;
    if (len >= 0x80 && (len == 0x80 || len > 0x83 || !number(from, (unsigned)len - 0x80, &len)))
        return false;
    if (!take(from, len, ret))
        return false;
    *whole = (struct mover_bytes){begin, (size_t)(from->p - begin)};
    return true;
}

bool mover_der_certificate(struct mover_bytes der, struct mover_bytes *tbs, struct mover_bytes *oid, struct mover_bytes *signature)
{
    enum { SEQUENCE = 0x30, OID = 0x06, BIT_STRING = 0x03 };
    struct mover_bytes body, inner, algorithm, bits, whole;
    if (!element(&der, SEQUENCE, &body, &whole) || der.len || !element(&body, SEQUENCE, &inner, tbs) || !element(&body, SEQUENCE, &algorithm, &whole) ||
        !element(&algorithm, OID, oid, &whole) || !element(&body, BIT_STRING, &bits, &whole) || body.len || !bits.len || bits.p[0])
        return false;
    *signature = (struct mover_bytes){bits.p + 1, bits.len - 1};
    return true;
}
