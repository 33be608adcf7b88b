/* The mover's secrets: the key of the server and those of users. They stay here; the gate (mover_gate.c) gets certificates, signatures,
 * and the key of a user who is named. */
#include "common/cleanup.h"
#include "iscsi-target/mover_int.h"
#include <gnutls/abstract.h>
#include <gnutls/x509.h>
#include <string.h>
#include <sys/mman.h>

#define MAX_PEM (1u << 20)
#define PSK_MAX 64u
_Static_assert(PSK_MAX <= GATE_ANSWER_BYTES, "a key fits into an answer");

struct psk {
    char *user;
    struct gate_answer key;
};
struct mover_creds {
    struct gr_buf ca, cert; /* PEM; empty: no certificates */
    struct mover_cas cas;
    gnutls_privkey_t key;
    struct psk *keys;
    size_t n_keys;
};

void mover_creds_free(struct mover_creds *c)
{
    if (!c)
        return;
    gr_buf_done(&c->ca);
    gr_buf_done(&c->cert);
    for (unsigned i = 0; i < c->cas.n; i++)
        gnutls_x509_crt_deinit(c->cas.list[i]);
    gnutls_free(c->cas.list);
    if (c->key)
        gnutls_privkey_deinit(c->key);
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

/* Do the key and the (first) certificate belong together? */
static bool pair_matches(gnutls_privkey_t key, const gnutls_datum_t *pem)
{
    gnutls_x509_crt_t crt = NULL;
    gnutls_pubkey_t pub = NULL;
    uint8_t a[64], b[64];
    size_t a_len = sizeof(a), b_len = sizeof(b);
    bool good = gnutls_x509_crt_init(&crt) >= 0 && gnutls_x509_crt_import(crt, pem, GNUTLS_X509_FMT_PEM) >= 0 &&
                gnutls_pubkey_init(&pub) >= 0 && gnutls_pubkey_import_privkey(pub, key, 0, 0) >= 0 &&
                gnutls_pubkey_get_key_id(pub, GNUTLS_KEYID_USE_SHA256, a, &a_len) >= 0 &&
                gnutls_x509_crt_get_key_id(crt, GNUTLS_KEYID_USE_SHA256, b, &b_len) >= 0 && a_len == b_len && !memcmp(a, b, a_len);
    if (pub)
        gnutls_pubkey_deinit(pub);
    if (crt)
        gnutls_x509_crt_deinit(crt);
    return good;
}

static int load_key(struct mover_creds *c, const char *cert, const char *path, struct gr_err *err)
{
    __attribute__((cleanup(secret_done))) struct gr_buf pem = {0};
    unsigned bits = 0;
    int r = gr_secret_read(path, &pem, err);
    if (r < 0)
        return r;
    gnutls_datum_t dk = {(unsigned char *)pem.data, (unsigned)pem.len}, dc = {(unsigned char *)c->cert.data, (unsigned)c->cert.len};
    if (gnutls_privkey_init(&c->key) < 0)
        return gr_fail(err, -ENOMEM, "out of memory");
    if (gnutls_privkey_import_x509_raw(c->key, &dk, GNUTLS_X509_FMT_PEM, NULL, 0) < 0 || !pair_matches(c->key, &dc))
        return gr_fail(err, -GR_EFORMAT, "%s and %s: not a certificate and its key", cert, path);
    if (gnutls_privkey_get_pk_algorithm(c->key, &bits) != GNUTLS_PK_ECDSA || bits != 256)
        return gr_fail(err, -GR_EFORMAT, "%s: the mover's key must be one for ECDSA with P-256", path);
    return 0;
}

static bool read_cas(const struct gr_buf *pem, struct mover_cas *ret)
{
    gnutls_datum_t d = {(unsigned char *)pem->data, (unsigned)pem->len};
    return gnutls_x509_crt_list_import2(&ret->list, &ret->n, &d, GNUTLS_X509_FMT_PEM, 0) >= 0 && ret->n > 0;
}

const struct mover_cas *mover_creds_cas(const struct mover_creds *c)
{
    return &c->cas;
}

static int load_x509(struct mover_creds *c, const char *dir, struct gr_err *err)
{
    gr_auto_free char *ca = gr_asprintf("%s/ca-cert.pem", dir);
    gr_auto_free char *cert = gr_asprintf("%s/server-cert.pem", dir);
    gr_auto_free char *key = gr_asprintf("%s/server-key.pem", dir);
    if (!ca || !cert || !key)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = gr_file_read(ca, MAX_PEM, &c->ca, err);
    if (r >= 0)
        r = gr_file_read(cert, MAX_PEM, &c->cert, err);
    if (r < 0)
        return r;
    if (!read_cas(&c->ca, &c->cas))
        return gr_fail(err, -GR_EFORMAT, "%s: no CA certificate can be read from it", ca);
    return load_key(c, cert, key, err);
}

static int psk_line(struct mover_creds *c, const char *path, unsigned line_no, char *line, struct gr_err *err)
{
    char *colon = strchr(line, ':');
    size_t hex_len = colon ? strlen(colon + 1) : 0;
    if (!colon || colon == line || colon - line > 255 || hex_len % 2 || hex_len < 32 || hex_len > 2 * PSK_MAX)
        return gr_fail(err, -GR_EFORMAT, "%s: line %u is not USER:HEXKEY with a key of 16 to 64 bytes", path, line_no);
    struct psk *keys = gr_realloc(c->keys, (c->n_keys + 1) * sizeof(*keys));
    if (!keys)
        return gr_fail(err, -ENOMEM, "out of memory");
    c->keys = keys;
    struct psk *k = &keys[c->n_keys];
    memset(k, 0, sizeof(*k));
    gnutls_datum_t hex = {(unsigned char *)colon + 1, (unsigned)hex_len};
    size_t len = sizeof(k->key.bytes);
    if (gnutls_hex_decode(&hex, k->key.bytes, &len) < 0)
        return gr_fail(err, -GR_EFORMAT, "%s: line %u: the key is not hexadecimal", path, line_no);
    k->key.len = (uint32_t)len;
    *colon = 0;
    k->user = gr_strdup(line);
    if (!k->user)
        return gr_fail(err, -ENOMEM, "out of memory");
    c->n_keys++;
    return 0;
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
    if (!c->key && !c->n_keys)
        return gr_fail(err, -EINVAL, "data mover: TLS needs a certificate directory or a PSK file");
    *ret = gr_take(c);
    return 0;
}

int mover_creds_file(const struct mover_creds *c, struct gate_msg *ret)
{
    gr_auto_close int file = memfd_create("granary-certificates", MFD_CLOEXEC);
    if (file < 0)
        return -errno;
    if (write(file, c->ca.data, c->ca.len) != (ssize_t)c->ca.len || write(file, c->cert.data, c->cert.len) != (ssize_t)c->cert.len)
        return -EIO;
    ret->u.start.ca_len = (uint32_t)c->ca.len;
    ret->u.start.cert_len = (uint32_t)c->cert.len;
    ret->u.start.keys = c->n_keys > 0;
    return gr_take_fd(&file);
}

void mover_creds_sign(const struct mover_creds *c, const uint8_t digest[GATE_DIGEST_LEN], struct gate_answer *ret)
{
    gnutls_datum_t hash = {(unsigned char *)(uintptr_t)digest, GATE_DIGEST_LEN}, signature = {0};
    ret->len = 0;
    if (!c->key || gnutls_privkey_sign_hash2(c->key, GNUTLS_SIGN_ECDSA_SHA256, 0, &hash, &signature) < 0)
        return;
    if (signature.size <= sizeof(ret->bytes)) {
        memcpy(ret->bytes, signature.data, signature.size);
        ret->len = signature.size;
    }
    gnutls_free(signature.data);
}

void mover_creds_key(const struct mover_creds *c, const char *user, struct gate_answer *ret)
{
    ret->len = 0;
    for (size_t i = 0; i < c->n_keys; i++)
        if (!strcmp(c->keys[i].user, user))
            *ret = c->keys[i].key;
}
