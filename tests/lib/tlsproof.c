#include "tests/lib/tlsproof.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/endian.h"
#include "common/seam.h"
#include "tests/lib/test.h"
#include <errno.h>
#include <gnutls/abstract.h>
#include <gnutls/crypto.h>
#include <string.h>
#include <time.h>

#define TLS(call) assert_true((call) >= 0)

/* ---- certificates ---- */

static gnutls_digest_algorithm_t digest_for(const struct tlsproof_id *issuer)
{
    return gnutls_x509_privkey_get_pk_algorithm(issuer->key) == GNUTLS_PK_EDDSA_ED25519 ? GNUTLS_DIG_SHA512 : GNUTLS_DIG_SHA256;
}

static unsigned bits_of(gnutls_pk_algorithm_t algo)
{
    return algo == GNUTLS_PK_RSA ? 2048 : algo == GNUTLS_PK_ECDSA ? GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1) : 256;
}

void tlsproof_issue(struct tlsproof_id *ret, const char *cn, gnutls_pk_algorithm_t algo, enum tlsproof_kind kind, const struct tlsproof_id *issuer, time_t until)
{
    uint8_t number[8];
    TLS(gnutls_rnd(GNUTLS_RND_NONCE, number, sizeof number));
    number[0] = 1;
    TLS(gnutls_x509_privkey_init(&ret->key));
    TLS(gnutls_x509_privkey_generate(ret->key, algo, bits_of(algo), 0));
    TLS(gnutls_x509_crt_init(&ret->crt));
    TLS(gnutls_x509_crt_set_version(ret->crt, 3));
    TLS(gnutls_x509_crt_set_serial(ret->crt, number, sizeof number));
    TLS(gnutls_x509_crt_set_activation_time(ret->crt, time(NULL) - 2 * 86400));
    TLS(gnutls_x509_crt_set_expiration_time(ret->crt, until));
    TLS(gnutls_x509_crt_set_dn_by_oid(ret->crt, GNUTLS_OID_X520_COMMON_NAME, 0, cn, (unsigned)strlen(cn)));
    TLS(gnutls_x509_crt_set_key(ret->crt, ret->key));
    TLS(gnutls_x509_crt_set_basic_constraints(ret->crt, kind == TLSPROOF_CA, -1));
    TLS(gnutls_x509_crt_set_key_usage(ret->crt, kind == TLSPROOF_CA ? GNUTLS_KEY_KEY_CERT_SIGN : GNUTLS_KEY_DIGITAL_SIGNATURE));
    if (kind != TLSPROOF_CA)
        TLS(gnutls_x509_crt_set_key_purpose_oid(ret->crt, kind == TLSPROOF_CLIENT ? GNUTLS_KP_TLS_WWW_CLIENT : GNUTLS_KP_TLS_WWW_SERVER, 0));
    const struct tlsproof_id *by = issuer ? issuer : ret;
    TLS(gnutls_x509_crt_sign2(ret->crt, by->crt, by->key, digest_for(by), 0));
    gnutls_datum_t der; /* read again: what was made in memory lacks what GnuTLS finds when it reads */
    TLS(gnutls_x509_crt_export2(ret->crt, GNUTLS_X509_FMT_DER, &der));
    gnutls_x509_crt_deinit(ret->crt);
    TLS(gnutls_x509_crt_init(&ret->crt));
    TLS(gnutls_x509_crt_import(ret->crt, &der, GNUTLS_X509_FMT_DER));
    gnutls_free(der.data);
}

void tlsproof_load(struct tlsproof_id *ret, const char *dir, const char *what)
{
    gr_auto_free char *cert = gr_asprintf("%s/%s-cert.pem", dir, what), *key = gr_asprintf("%s/%s-key.pem", dir, what);
    gr_auto_buf struct gr_buf c = {0}, k = {0};
    assert_int_equal(gr_file_read(cert, 1 << 20, &c, NULL), 0);
    assert_int_equal(gr_file_read(key, 1 << 20, &k, NULL), 0);
    gnutls_datum_t dc = {(unsigned char *)c.data, (unsigned)c.len}, dk = {(unsigned char *)k.data, (unsigned)k.len};
    TLS(gnutls_x509_crt_init(&ret->crt));
    TLS(gnutls_x509_crt_import(ret->crt, &dc, GNUTLS_X509_FMT_PEM));
    TLS(gnutls_x509_privkey_init(&ret->key));
    TLS(gnutls_x509_privkey_import(ret->key, &dk, GNUTLS_X509_FMT_PEM));
}

void tlsproof_done(struct tlsproof_id *id)
{
    gnutls_x509_crt_deinit(id->crt);
    gnutls_x509_privkey_deinit(id->key);
}

/* ---- the server ---- */

struct shake {
    struct tlsproof *ret;
    const struct tlsproof_id *server;
    bool signed_by_client;
    struct gr_buf to_server, to_client;
};

static int key_info(gnutls_privkey_t key, unsigned flags, void *arg)
{
    gnutls_sign_algorithm_t algo = GNUTLS_FLAGS_TO_SIGN_ALGO(flags);
    if (flags & GNUTLS_PRIVKEY_INFO_PK_ALGO)
        return GNUTLS_PK_ECDSA;
    if (flags & GNUTLS_PRIVKEY_INFO_PK_ALGO_BITS)
        return 256;
    if (flags & GNUTLS_PRIVKEY_INFO_HAVE_SIGN_ALGO)
        return algo == GNUTLS_SIGN_ECDSA_SHA256 || algo == GNUTLS_SIGN_ECDSA_SECP256R1_SHA256;
    return -1;
}

void tlsproof_sign(const struct tlsproof_id *server, const uint8_t digest[GATE_DIGEST_LEN], struct gate_answer *ret)
{
    gnutls_datum_t hash = {(unsigned char *)(uintptr_t)digest, GATE_DIGEST_LEN}, signature;
    gnutls_privkey_t key;
    TLS(gnutls_privkey_init(&key));
    TLS(gnutls_privkey_import_x509(key, server->key, 0));
    TLS(gnutls_privkey_sign_hash2(key, GNUTLS_SIGN_ECDSA_SHA256, 0, &hash, &signature));
    assert_true(signature.size <= sizeof ret->bytes);
    ret->len = signature.size;
    memcpy(ret->bytes, signature.data, signature.size);
    gnutls_free(signature.data);
    gnutls_privkey_deinit(key);
}

static int sign(gnutls_privkey_t key, gnutls_sign_algorithm_t algo, void *arg, unsigned flags, const gnutls_datum_t *hash, gnutls_datum_t *ret)
{
    struct shake *k = arg;
    assert_int_equal(hash->size, GATE_DIGEST_LEN);
    memcpy(k->ret->digest, hash->data, GATE_DIGEST_LEN);
    tlsproof_sign(k->server, k->ret->digest, &k->ret->signature);
    ret->data = gnutls_malloc(k->ret->signature.len);
    ret->size = k->ret->signature.len;
    memcpy(ret->data, k->ret->signature.bytes, ret->size);
    return 0;
}

static int on_message(gnutls_session_t s, unsigned type, unsigned when, unsigned incoming, const gnutls_datum_t *body)
{
    struct shake *k = gnutls_session_get_ptr(s);
    struct tlsproof *p = k->ret;
    if (k->signed_by_client || type == GNUTLS_HANDSHAKE_CHANGE_CIPHER_SPEC)
        return 0;
    p->retried |= type == GNUTLS_HANDSHAKE_HELLO_RETRY_REQUEST;
    assert_true(p->len + 4 + body->size <= sizeof p->said);
    p->said[p->len] = type == GNUTLS_HANDSHAKE_HELLO_RETRY_REQUEST ? GNUTLS_HANDSHAKE_SERVER_HELLO : (uint8_t)type;
    gr_put_be24(p->said + p->len + 1, body->size);
    memcpy(p->said + p->len + 4, body->data, body->size);
    p->len += 4 + body->size;
    k->signed_by_client = incoming && type == GNUTLS_HANDSHAKE_CERTIFICATE_VERIFY;
    return 0;
}

/* ---- memory for a network ---- */

static ssize_t pull_from(gnutls_session_t s, struct gr_buf *from, void *to, size_t len)
{
    len = GR_MIN(len, from->len);
    if (!len) {
        gnutls_transport_set_errno(s, EAGAIN);
        return -1;
    }
    memcpy(to, from->data, len);
    memmove(from->data, from->data + len, from->len - len);
    from->len -= len;
    return (ssize_t)len;
}

struct end {
    gnutls_session_t session;
    struct gr_buf *in, *out;
};

static ssize_t pull(gnutls_transport_ptr_t arg, void *to, size_t len)
{
    struct end *e = arg;
    return pull_from(e->session, e->in, to, len);
}

static ssize_t push(gnutls_transport_ptr_t arg, const void *p, size_t len)
{
    struct end *e = arg;
    assert_int_equal(gr_buf_add(e->out, p, len), 0);
    return (ssize_t)len;
}

static void end_new(struct end *e, unsigned flags, const char *priority, gnutls_certificate_credentials_t cred, struct shake *k)
{
    TLS(gnutls_init(&e->session, flags | GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS));
    TLS(gnutls_priority_set_direct(e->session, priority, NULL));
    TLS(gnutls_credentials_set(e->session, GNUTLS_CRD_CERTIFICATE, cred));
    gnutls_session_set_ptr(e->session, k);
    gnutls_transport_set_ptr(e->session, e);
    gnutls_transport_set_pull_function(e->session, pull);
    gnutls_transport_set_push_function(e->session, push);
    gnutls_handshake_set_timeout(e->session, GNUTLS_INDEFINITE_TIMEOUT);
}

static void server_key(gnutls_certificate_credentials_t cred, struct shake *k)
{
    static gnutls_pcert_st pcert; /* the credentials keep it */
    gnutls_privkey_t key;
    TLS(gnutls_pcert_import_x509(&pcert, k->server->crt, 0));
    TLS(gnutls_privkey_init(&key));
    TLS(gnutls_privkey_import_ext4(key, k, NULL, sign, NULL, NULL, key_info, 0));
    gnutls_certificate_set_flags(cred, GNUTLS_CERTIFICATE_SKIP_KEY_CERT_MATCH);
    TLS(gnutls_certificate_set_key(cred, NULL, 0, &pcert, 1, key));
}

static void client_key(gnutls_certificate_credentials_t cred, const struct tlsproof_id *const *chain, unsigned n)
{
    gnutls_x509_crt_t list[16];
    assert_true(n <= GR_ARRAY_LEN(list));
    for (unsigned i = 0; i < n; i++)
        list[i] = chain[i]->crt;
    TLS(gnutls_certificate_set_x509_key(cred, list, (int)n, chain[0]->key));
}

void tlsproof_shake(struct tlsproof *ret, const struct tlsproof_id *server, const struct tlsproof_id *const *chain, unsigned n, const char *server_priority,
                    const char *client_priority)
{
    struct shake k = {.ret = ret, .server = server};
    struct end s = {.in = &k.to_server, .out = &k.to_client}, c = {.in = &k.to_client, .out = &k.to_server};
    gnutls_certificate_credentials_t cs, cc;
    memset(ret, 0, sizeof *ret);
    TLS(gnutls_certificate_allocate_credentials(&cs));
    TLS(gnutls_certificate_allocate_credentials(&cc));
    server_key(cs, &k);
    client_key(cc, chain, n);
    end_new(&s, GNUTLS_SERVER, server_priority, cs, &k);
    end_new(&c, GNUTLS_CLIENT | GNUTLS_FORCE_CLIENT_CERT, client_priority, cc, &k);
    gnutls_certificate_server_set_request(s.session, GNUTLS_CERT_REQUIRE);
    gnutls_handshake_set_hook_function(s.session, GNUTLS_HANDSHAKE_ANY, GNUTLS_HOOK_PRE, on_message);
    int rs = GNUTLS_E_AGAIN, rc = GNUTLS_E_AGAIN;
    for (int i = 0; i < 20 && (rs || rc); i++) {
        rc = rc ? gnutls_handshake(c.session) : 0;
        rs = rs ? gnutls_handshake(s.session) : 0;
        if ((rs && gnutls_error_is_fatal(rs)) || (rc && gnutls_error_is_fatal(rc)))
            fail_msg("server: %s, client: %s", gnutls_strerror(rs), gnutls_strerror(rc));
    }
    assert_true(!rs && !rc && k.signed_by_client);
    gnutls_deinit(s.session);
    gnutls_deinit(c.session);
    gnutls_certificate_free_credentials(cs);
    gnutls_certificate_free_credentials(cc);
    gr_buf_done(&k.to_server);
    gr_buf_done(&k.to_client);
}
