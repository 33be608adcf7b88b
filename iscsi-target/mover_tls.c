/* TLS of the mover: credentials and the server's handshake. Nobody passes without proof: a certificate of our CA that is
 * made for clients, or a pre-shared key; there is no anonymous or server-only mode. No tickets, so no resumed session can
 * skip the check. */
#include "iscsi-target/mover_int.h"
#include "common/cleanup.h"
#include <gnutls/x509.h>
#include <string.h>

#define PRIORITY "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"
#define PRIORITY_PSK PRIORITY ":+ECDHE-PSK:+DHE-PSK"
#define MAX_PEM (1u << 20)

struct psk {
    char *user;
    uint8_t key[64];
    size_t key_len;
};
struct mover_creds {
    gnutls_certificate_credentials_t x509;
    gnutls_psk_server_credentials_t psk;
    gnutls_priority_t priority;
    struct psk *keys;
    size_t n_keys;
};

void mover_creds_free(struct mover_creds *c)
{
    if (!c)
        return;
    if (c->x509)
        gnutls_certificate_free_credentials(c->x509);
    if (c->psk)
        gnutls_psk_free_server_credentials(c->psk);
    if (c->priority)
        gnutls_priority_deinit(c->priority);
    for (size_t i = 0; i < c->n_keys; i++)
        free(c->keys[i].user);
    if (c->keys)
        explicit_bzero(c->keys, c->n_keys * sizeof(c->keys[0]));
    free(c->keys);
    free(c);
}

static void creds_freep(struct mover_creds **c)
{
    mover_creds_free(*c);
}

static void secret_done(struct gr_buf *b)
{
    if (b->data)
        explicit_bzero(b->data, b->cap);
    gr_buf_done(b);
}

static int load_x509(struct mover_creds *c, const char *dir, struct gr_err *err)
{
    gr_auto_free char *ca = gr_asprintf("%s/ca-cert.pem", dir);
    gr_auto_free char *cert = gr_asprintf("%s/server-cert.pem", dir);
    gr_auto_free char *key = gr_asprintf("%s/server-key.pem", dir);
    gr_auto_buf struct gr_buf ca_pem = {0}, cert_pem = {0};
    __attribute__((cleanup(secret_done))) struct gr_buf key_pem = {0};
    if (!ca || !cert || !key)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = gr_file_read(ca, MAX_PEM, &ca_pem, err);
    if (r >= 0)
        r = gr_file_read(cert, MAX_PEM, &cert_pem, err);
    if (r >= 0)
        r = gr_secret_read(key, &key_pem, err);
    if (r < 0)
        return r;
    if (gnutls_certificate_allocate_credentials(&c->x509) < 0)
        return gr_fail(err, -ENOMEM, "out of memory");
    gnutls_datum_t d = {(unsigned char *)ca_pem.data, (unsigned)ca_pem.len};
    int n = gnutls_certificate_set_x509_trust_mem(c->x509, &d, GNUTLS_X509_FMT_PEM);
    if (n <= 0)
        return gr_fail(err, -GR_EFORMAT, "%s: no CA certificate can be read from it: %s", ca, n < 0 ? gnutls_strerror(n) : "empty");
    gnutls_datum_t dc = {(unsigned char *)cert_pem.data, (unsigned)cert_pem.len};
    gnutls_datum_t dk = {(unsigned char *)key_pem.data, (unsigned)key_pem.len};
    n = gnutls_certificate_set_x509_key_mem(c->x509, &dc, &dk, GNUTLS_X509_FMT_PEM);
    if (n < 0)
        return gr_fail(err, -GR_EFORMAT, "%s and %s: not a certificate and its key: %s", cert, key, gnutls_strerror(n));
    return 0;
}

static int psk_line(struct mover_creds *c, const char *path, unsigned line_no, char *line, struct gr_err *err)
{
    char *colon = strchr(line, ':');
    size_t hex_len = colon ? strlen(colon + 1) : 0;
    if (!colon || colon == line || colon - line > 255 || hex_len % 2 || hex_len < 32 || hex_len > 2 * sizeof(c->keys[0].key))
        return gr_fail(err, -GR_EFORMAT, "%s: line %u is not USER:HEXKEY with a key of 16 to 64 bytes", path, line_no);
    struct psk *keys = gr_realloc(c->keys, (c->n_keys + 1) * sizeof(*keys));
    if (!keys)
        return gr_fail(err, -ENOMEM, "out of memory");
    c->keys = keys;
    struct psk *k = &keys[c->n_keys];
    memset(k, 0, sizeof(*k));
    gnutls_datum_t hex = {(unsigned char *)colon + 1, (unsigned)hex_len};
    k->key_len = sizeof(k->key);
    if (gnutls_hex_decode(&hex, k->key, &k->key_len) < 0)
        return gr_fail(err, -GR_EFORMAT, "%s: line %u: the key is not hexadecimal", path, line_no);
    *colon = 0;
    k->user = gr_strdup(line);
    if (!k->user)
        return gr_fail(err, -ENOMEM, "out of memory");
    c->n_keys++;
    return 0;
}

static int psk_lookup(gnutls_session_t session, const char *user, gnutls_datum_t *key)
{
    const struct mover_creds *c = gnutls_session_get_ptr(session);
    for (size_t i = 0; user && i < c->n_keys; i++) {
        if (strcmp(c->keys[i].user, user))
            continue;
        key->data = gnutls_malloc(c->keys[i].key_len);
        if (!key->data)
            return -1;
        memcpy(key->data, c->keys[i].key, c->keys[i].key_len);
        key->size = (unsigned)c->keys[i].key_len;
        return 0;
    }
    return -1;
}

static int load_psk(struct mover_creds *c, const char *path, struct gr_err *err)
{
    __attribute__((cleanup(secret_done))) struct gr_buf text = {0};
    int r = gr_secret_read(path, &text, err);
    if (r < 0)
        return r;
    if (text.len && memchr(text.data, 0, text.len))
        return gr_fail(err, -GR_EFORMAT, "%s: holds a NUL byte, not lines of USER:HEXKEY", path);
    unsigned line_no = 0;
    for (char *p = text.data; p && *p;) {
        char *nl = strchr(p, '\n');
        if (nl)
            *nl = 0;
        line_no++;
        if (*p && *p != '#') {
            r = psk_line(c, path, line_no, p, err);
            if (r < 0)
                return r;
        }
        p = nl ? nl + 1 : NULL;
    }
    if (!c->n_keys)
        return gr_fail(err, -GR_EFORMAT, "%s: no line USER:HEXKEY in it", path);
    if (gnutls_psk_allocate_server_credentials(&c->psk) < 0)
        return gr_fail(err, -ENOMEM, "out of memory");
    gnutls_psk_set_server_credentials_function(c->psk, psk_lookup);
    return 0;
}

int mover_creds_load(const char *pki_dir, const char *psk_file, struct mover_creds **ret, struct gr_err *err)
{
    __attribute__((cleanup(creds_freep))) struct mover_creds *c = gr_zalloc(sizeof(*c));
    if (!c)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = pki_dir ? load_x509(c, pki_dir, err) : 0;
    if (r >= 0 && psk_file)
        r = load_psk(c, psk_file, err);
    if (r < 0)
        return r;
    if (!c->x509 && !c->psk)
        return gr_fail(err, -EINVAL, "data mover: TLS needs a certificate directory or a PSK file");
    r = gnutls_priority_init(&c->priority, c->psk ? PRIORITY_PSK : PRIORITY, NULL);
    if (r < 0)
        return gr_fail(err, -EINVAL, "data mover: GnuTLS takes no TLS 1.2 or 1.3 here: %s", gnutls_strerror(r));
    *ret = gr_take(c);
    return 0;
}

static int session_new(struct mover_io *io, struct mover_creds *c)
{
    gnutls_session_t s = NULL;
    if (gnutls_init(&s, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS) < 0)
        return -ENOMEM;
    gnutls_session_set_ptr(s, c);
    int r = gnutls_priority_set(s, c->priority);
    if (r >= 0 && c->x509)
        r = gnutls_credentials_set(s, GNUTLS_CRD_CERTIFICATE, c->x509);
    if (r >= 0 && c->psk)
        r = gnutls_credentials_set(s, GNUTLS_CRD_PSK, c->psk);
    gnutls_certificate_server_set_request(s, GNUTLS_CERT_REQUIRE);
    gnutls_handshake_set_timeout(s, GNUTLS_INDEFINITE_TIMEOUT);
    r = r < 0 ? -ENOMEM : mover_io_bind_tls(io, s);
    if (r < 0)
        gnutls_deinit(s);
    return r;
}

/* Who is at the other end: 0 or -GR_EAUTH. */
static int check_peer(gnutls_session_t s, struct gr_err *err)
{
    switch (gnutls_auth_client_get_type(s)) {
    case GNUTLS_CRD_PSK:
        return 0; /* the handshake ends only with the right key */
    case GNUTLS_CRD_CERTIFICATE: {
        gnutls_typed_vdata_st purpose = {.type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (unsigned char *)(uintptr_t)GNUTLS_KP_TLS_WWW_CLIENT};
        unsigned status = 0;
        int r = gnutls_certificate_verify_peers(s, &purpose, 1, &status);
        if (r < 0)
            return gr_fail(err, -GR_EAUTH, "the client showed no certificate that can be verified: %s", gnutls_strerror(r));
        if (status) {
            gnutls_datum_t text = {0};
            (void)gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0);
            (void)gr_fail(err, -GR_EAUTH, "the client's certificate is not accepted: %s", text.data ? (char *)text.data : "invalid");
            gnutls_free(text.data);
            return -GR_EAUTH;
        }
        return 0;
    }
    case GNUTLS_CRD_ANON:
    case GNUTLS_CRD_SRP:
    case GNUTLS_CRD_IA:
        break;
    }
    return gr_fail(err, -GR_EAUTH, "the client proved nothing");
}

int mover_tls_accept(struct mover_io *io, struct mover_creds *c, uint64_t deadline_ns, struct gr_err *err)
{
    int r = session_new(io, c);
    if (r < 0)
        return gr_fail(err, r, "no TLS session: out of memory");
    for (;;) {
        r = gnutls_handshake(io->tls);
        mover_io_flush(io);
        if (io->error)
            return gr_fail(err, io->error, "connection lost in the TLS handshake");
        if (r == GNUTLS_E_SUCCESS)
            break;
        if (r == GNUTLS_E_AGAIN) {
            int w = mover_io_wait(io, deadline_ns);
            if (w < 0)
                return gr_fail(err, w, w == -ETIMEDOUT ? "no end of the TLS handshake in time" : "connection lost in the TLS handshake");
            continue;
        }
        if (!gnutls_error_is_fatal(r))
            continue;
        (void)gnutls_alert_send_appropriate(io->tls, r);
        mover_io_flush(io);
        return gr_fail(err, -GR_EAUTH, "TLS handshake failed: %s", gnutls_strerror(r));
    }
    r = check_peer(io->tls, err);
    if (r < 0) {
        (void)gnutls_alert_send(io->tls, GNUTLS_AL_FATAL, GNUTLS_A_BAD_CERTIFICATE);
        mover_io_flush(io);
    }
    return r;
}

void mover_tls_bye(struct mover_io *io)
{
    if (!io->tls || io->error)
        return;
    (void)gnutls_bye(io->tls, GNUTLS_SHUT_WR);
    mover_io_flush(io);
}
