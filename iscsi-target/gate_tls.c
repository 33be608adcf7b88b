/* TLS in the gate: credentials without the server's key, and the proof of who is at the other end. Nobody passes without: a certificate
 * of our CA that is made for clients, or a pre-shared key; there is no anonymous or server-only mode. No tickets, so no resumed session can
 * skip the check. The signature of a handshake is made by storaged, and the pre-shared key of the one user who is named comes from there. */
#include "common/cleanup.h"
#include "common/endian.h"
#include "iscsi-target/gate_int.h"
#include <gnutls/abstract.h>
#include <gnutls/x509.h>
#include <sys/socket.h>
#include <malloc.h>
#include <string.h>

#define PRIORITY "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"
#define PRIORITY_PSK PRIORITY ":+ECDHE-PSK:+DHE-PSK"
#define HANDSHAKE_MAX (16u << 10) /* bytes of one handshake message: a client's certificates */
#define SHAKE_MAX (GATE_PROOF_MAX + 4096u) /* bytes that a stranger may send: GnuTLS looks at the length of a message when it is whole */
_Static_assert(2 * HANDSHAKE_MAX <= GATE_PROOF_MAX, "a handshake that is let in can be told");

struct gate_creds {
    struct gate *gate;
    gnutls_certificate_credentials_t x509;
    gnutls_psk_server_credentials_t psk;
    gnutls_priority_t priority;
};

/* ---- what storaged does for us ---- */

static bool p256_with_sha256(gnutls_sign_algorithm_t algo)
{
    return algo == GNUTLS_SIGN_ECDSA_SHA256 || algo == GNUTLS_SIGN_ECDSA_SECP256R1_SHA256;
}

static int key_info(gnutls_privkey_t key, unsigned flags, void *arg)
{
    if (flags & GNUTLS_PRIVKEY_INFO_PK_ALGO)
        return GNUTLS_PK_ECDSA;
    if (flags & GNUTLS_PRIVKEY_INFO_PK_ALGO_BITS)
        return 256;
    if (flags & GNUTLS_PRIVKEY_INFO_HAVE_SIGN_ALGO)
        return p256_with_sha256(GNUTLS_FLAGS_TO_SIGN_ALGO(flags));
    return flags & GNUTLS_PRIVKEY_INFO_SIGN_ALGO ? GNUTLS_SIGN_ECDSA_SHA256 : -1;
}

static int sign(gnutls_privkey_t key, gnutls_sign_algorithm_t algo, void *arg, unsigned flags, const gnutls_datum_t *hash, gnutls_datum_t *ret)
{
    struct gate *g = arg;
    struct gate_conn *c = g->shaking;
    if (!p256_with_sha256(algo) || hash->size != GATE_DIGEST_LEN)
        return GNUTLS_E_PK_SIGN_FAILED;
    memcpy(g->out.u.sign.digest, hash->data, GATE_DIGEST_LEN);
    gate_tell(g, c, GATE_SIGN, -1);
    return gate_await(c, ret) < 0 ? GNUTLS_E_PK_SIGN_FAILED : 0;
}

/* The key lives in GnuTLS for the handshake; what brought it is wiped at once. */
static int psk_of(gnutls_session_t s, const char *user, gnutls_datum_t *ret)
{
    struct gate_conn *c = gnutls_session_get_ptr(s);
    struct gate *g = c->gate;
    if (!user || !user[0] || strlen(user) > GATE_NAME_MAX || (c->user[0] && strcmp(c->user, user) != 0))
        return -1;
    snprintf(c->user, sizeof c->user, "%s", user);
    memcpy(g->out.u.key.user, c->user, sizeof c->user);
    gate_tell(g, c, GATE_KEY, -1);
    return gate_await(c, ret) < 0 ? -1 : 0;
}

/* GnuTLS does not wipe all of its copies of a key: everything that it releases is wiped. */
static void wipe_and_free(void *p)
{
    if (p)
        explicit_bzero(p, malloc_usable_size(p));
    free(p);
}

/* ---- credentials ---- */

static int own_certificate(struct gate_creds *c, const gnutls_datum_t *pem)
{
    gnutls_pcert_st chain[8];
    unsigned n = GR_ARRAY_LEN(chain);
    gnutls_privkey_t key = NULL;
    int r = gnutls_pcert_list_import_x509_raw(chain, &n, pem, GNUTLS_X509_FMT_PEM, 0);
    if (r < 0)
        return r;
    r = gnutls_privkey_init(&key);
    if (r >= 0)
        r = gnutls_privkey_import_ext4(key, c->gate, NULL, sign, NULL, NULL, key_info, 0);
    gnutls_certificate_set_flags(c->x509, GNUTLS_CERTIFICATE_SKIP_KEY_CERT_MATCH); /* storaged has looked */
    if (r >= 0)
        r = gnutls_certificate_set_key(c->x509, NULL, 0, chain, (int)n, key);
    if (r >= 0)
        return r;
    for (unsigned i = 0; i < n; i++)
        gnutls_pcert_deinit(&chain[i]);
    gnutls_privkey_deinit(key);
    return r;
}

static int load_x509(struct gate_creds *c, const struct gate_msg *start, const uint8_t *pem)
{
    gnutls_datum_t ca = {(unsigned char *)(uintptr_t)pem, start->u.start.ca_len};
    gnutls_datum_t own = {ca.data + ca.size, start->u.start.cert_len};
    int r = gnutls_certificate_allocate_credentials(&c->x509);
    if (r >= 0)
        r = gnutls_certificate_set_x509_trust_mem(c->x509, &ca, GNUTLS_X509_FMT_PEM);
    return r < 0 ? r : own_certificate(c, &own);
}

int gate_creds_new(struct gate *g, const struct gate_msg *start, const uint8_t *pem)
{
    struct gate_creds *c = g->creds = gr_zalloc(sizeof *c);
    if (!c)
        return -ENOMEM;
    c->gate = g;
    gnutls_free = wipe_and_free;
    int r = start->u.start.cert_len ? load_x509(c, start, pem) : 0;
    if (r >= 0 && start->u.start.keys) {
        r = gnutls_psk_allocate_server_credentials(&c->psk);
        if (r >= 0)
            gnutls_psk_set_server_credentials_function(c->psk, psk_of);
    }
    return r < 0 ? r : gnutls_priority_init(&c->priority, c->psk ? PRIORITY_PSK : PRIORITY, NULL);
}

static ssize_t pull(gnutls_transport_ptr_t arg, void *to, size_t len)
{
    struct gate_conn *c = arg;
    ssize_t n = recv(c->fd, to, len, MSG_DONTWAIT);
    if (n < 0 || c->pump)
        return n; /* with errno; or he has proved himself */
    c->shake_got += (uint32_t)n;
    if (c->shake_got <= SHAKE_MAX)
        return n;
    gate_drop(c, "it sent more than a TLS handshake has");
    errno = EMSGSIZE;
    return -1;
}

/* Keeps what is said, as it is said, up to the client's signature: storaged believes that, not us. */
static int on_message(gnutls_session_t s, unsigned type, unsigned when, unsigned incoming, const gnutls_datum_t *body)
{
    struct gate_conn *c = gnutls_session_get_ptr(s);
    if (c->signed_by_him || type == GNUTLS_HANDSHAKE_CHANGE_CIPHER_SPEC)
        return 0;
    uint8_t head[4] = {type == GNUTLS_HANDSHAKE_HELLO_RETRY_REQUEST ? GNUTLS_HANDSHAKE_SERVER_HELLO : (uint8_t)type};
    gr_put_be24(head + 1, body->size);
    if (body->size > GATE_PROOF_MAX || c->shaken.len + sizeof head + body->size > GATE_PROOF_MAX || gr_buf_add(&c->shaken, head, sizeof head) < 0 ||
        gr_buf_add(&c->shaken, body->data, body->size) < 0)
        return GNUTLS_E_HANDSHAKE_TOO_LARGE;
    c->signed_by_him = incoming && type == GNUTLS_HANDSHAKE_CERTIFICATE_VERIFY;
    return 0;
}

int gate_session_new(struct gate_conn *c)
{
    const struct gate_creds *k = c->gate->creds;
    gnutls_session_t s = NULL;
    if (gnutls_init(&s, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS) < 0)
        return -ENOMEM;
    c->tls = s;
    gnutls_session_set_ptr(s, c);
    int r = gnutls_priority_set(s, k->priority);
    if (r >= 0 && k->x509)
        r = gnutls_credentials_set(s, GNUTLS_CRD_CERTIFICATE, k->x509);
    if (r >= 0 && k->psk)
        r = gnutls_credentials_set(s, GNUTLS_CRD_PSK, k->psk);
    gnutls_certificate_server_set_request(s, GNUTLS_CERT_REQUIRE);
    gnutls_handshake_set_timeout(s, GNUTLS_INDEFINITE_TIMEOUT);
    gnutls_handshake_set_max_packet_length(s, HANDSHAKE_MAX);
    gnutls_handshake_set_hook_function(s, GNUTLS_HANDSHAKE_ANY, GNUTLS_HOOK_PRE, on_message);
    gnutls_transport_set_ptr2(s, c, (gnutls_transport_ptr_t)(intptr_t)c->fd);
    gnutls_transport_set_pull_function(s, pull);
    return r < 0 ? -ENOMEM : 0;
}

/* ---- the proof ---- */

static const char *check_certificate(gnutls_session_t s, char text[256])
{
    gnutls_typed_vdata_st purpose = {.type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (unsigned char *)(uintptr_t)GNUTLS_KP_TLS_WWW_CLIENT};
    unsigned status = 0;
    int r = gnutls_certificate_verify_peers(s, &purpose, 1, &status);
    if (r < 0) {
        snprintf(text, 256, "the client showed no certificate that can be verified: %s", gnutls_strerror(r));
        return text;
    }
    if (status) {
        gnutls_datum_t why = {0};
        (void)gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &why, 0);
        snprintf(text, 256, "the client's certificate is not accepted: %s", why.data ? (char *)why.data : "invalid");
        gnutls_free(why.data);
        return text;
    }
    return NULL;
}

const char *gate_check_peer(struct gate_conn *c, enum gate_proof *ret, char text[256])
{
    switch (gnutls_auth_client_get_type(c->tls)) {
    case GNUTLS_CRD_PSK: /* the handshake ends only with the right key */
        *ret = GATE_BY_KEY;
        return NULL;
    case GNUTLS_CRD_CERTIFICATE:
        *ret = GATE_BY_CERTIFICATE;
        return check_certificate(c->tls, text);
    case GNUTLS_CRD_ANON:
    case GNUTLS_CRD_SRP:
    case GNUTLS_CRD_IA:
        break;
    }
    return "the client proved nothing";
}
