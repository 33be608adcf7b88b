/* Who is the client of a handshake? His certificate must be of our CA and for clients, and his signature right. Strangers' bytes come to this
 * process so, and a certificate is a hard thing to read: nothing is read of one before its issuer's signature over it has been checked,
 * and the issuer is the site's CA, or somebody whose certificate has been read in the same way. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "iscsi-target/mover_int.h"
#include <gnutls/abstract.h>
#include <string.h>

static const struct {
    uint16_t scheme; /* SignatureScheme, RFC 8446 4.2.3 */
    bool only_tls12;
    gnutls_sign_algorithm_t sign;
} schemes[] = {
    {0x0403, false, GNUTLS_SIGN_ECDSA_SHA256},     {0x0503, false, GNUTLS_SIGN_ECDSA_SHA384},     {0x0603, false, GNUTLS_SIGN_ECDSA_SHA512},
    {0x0804, false, GNUTLS_SIGN_RSA_PSS_RSAE_SHA256}, {0x0805, false, GNUTLS_SIGN_RSA_PSS_RSAE_SHA384}, {0x0806, false, GNUTLS_SIGN_RSA_PSS_RSAE_SHA512},
    {0x0809, false, GNUTLS_SIGN_RSA_PSS_SHA256},   {0x080a, false, GNUTLS_SIGN_RSA_PSS_SHA384},   {0x080b, false, GNUTLS_SIGN_RSA_PSS_SHA512},
    {0x0807, false, GNUTLS_SIGN_EDDSA_ED25519},    {0x0808, false, GNUTLS_SIGN_EDDSA_ED448},
    {0x0401, true, GNUTLS_SIGN_RSA_SHA256},        {0x0501, true, GNUTLS_SIGN_RSA_SHA384},        {0x0601, true, GNUTLS_SIGN_RSA_SHA512},
};
static const struct {
    uint8_t len, oid[9];
    gnutls_sign_algorithm_t sign;
} issuers[] = {
    {8, {0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02}, GNUTLS_SIGN_ECDSA_SHA256},
    {8, {0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03}, GNUTLS_SIGN_ECDSA_SHA384},
    {8, {0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04}, GNUTLS_SIGN_ECDSA_SHA512},
    {9, {0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b}, GNUTLS_SIGN_RSA_SHA256},
    {9, {0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c}, GNUTLS_SIGN_RSA_SHA384},
    {9, {0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d}, GNUTLS_SIGN_RSA_SHA512},
    {3, {0x2b, 0x65, 0x70}, GNUTLS_SIGN_EDDSA_ED25519},
    {3, {0x2b, 0x65, 0x71}, GNUTLS_SIGN_EDDSA_ED448},
};

static gnutls_datum_t datum(struct mover_bytes b)
{
    return (gnutls_datum_t){(unsigned char *)(uintptr_t)b.p, (unsigned)b.len};
}

static bool signed_with(gnutls_x509_crt_t by, gnutls_sign_algorithm_t how, struct mover_bytes what, struct mover_bytes signature)
{
    gnutls_pubkey_t key = NULL;
    gnutls_datum_t data = datum(what), sig = datum(signature);
    bool good = gnutls_pubkey_init(&key) >= 0 && gnutls_pubkey_import_x509(key, by, 0) >= 0 && gnutls_pubkey_verify_data2(key, how, 0, &data, &sig) >= 0;
    if (key)
        gnutls_pubkey_deinit(key);
    return good;
}

static gnutls_sign_algorithm_t issuers_way(struct mover_bytes oid)
{
    for (size_t i = 0; i < GR_ARRAY_LEN(issuers); i++)
        if (oid.len == issuers[i].len && !memcmp(oid.p, issuers[i].oid, oid.len))
            return issuers[i].sign;
    return GNUTLS_SIGN_UNKNOWN;
}

/* Is @der signed by the CA, or by the owner of @above, who may sign others? Then it is read. */
static int read_signed(const struct mover_cas *cas, struct mover_bytes der, gnutls_x509_crt_t above, gnutls_x509_crt_t *ret, struct gr_err *err)
{
    struct mover_bytes tbs, oid, signature;
    gnutls_datum_t d = datum(der);
    gnutls_x509_crt_t crt = NULL;
    if (!mover_der_certificate(der, &tbs, &oid, &signature))
        return gr_fail(err, -GR_EPROTO, "the client's certificate is none");
    gnutls_sign_algorithm_t how = issuers_way(oid);
    if (how == GNUTLS_SIGN_UNKNOWN)
        return gr_fail(err, -ENOTSUP, "the client's certificate is signed in a way that is not known here: use ECDSA, RSA or EdDSA");
    bool good = above && gnutls_x509_crt_get_ca_status(above, NULL) > 0 && signed_with(above, how, tbs, signature);
    for (unsigned i = 0; !good && i < cas->n; i++)
        good = signed_with(cas->list[i], how, tbs, signature);
    if (!good)
        return gr_fail(err, -GR_EPROTO, "the client's certificate is not signed by the site's CA");
    if (gnutls_x509_crt_init(&crt) < 0)
        return gr_fail(err, -ENOMEM, "out of memory");
    if (gnutls_x509_crt_import(crt, &d, GNUTLS_X509_FMT_DER) < 0) {
        gnutls_x509_crt_deinit(crt);
        return gr_fail(err, -GR_EPROTO, "the client's certificate cannot be read");
    }
    *ret = crt;
    return 0;
}

/* Every rule of X.509: names, dates, purposes. */
static int chain_ok(const struct mover_cas *cas, gnutls_x509_crt_t *chain, unsigned n, struct gr_err *err)
{
    gnutls_typed_vdata_st purpose = {.type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (unsigned char *)(uintptr_t)GNUTLS_KP_TLS_WWW_CLIENT};
    gnutls_x509_trust_list_t trust = NULL;
    unsigned status = GNUTLS_CERT_INVALID;
    bool asked = gnutls_x509_trust_list_init(&trust, 0) >= 0 && gnutls_x509_trust_list_add_cas(trust, cas->list, cas->n, 0) >= 0 &&
                 gnutls_x509_trust_list_verify_crt2(trust, chain, n, &purpose, 1, 0, &status, NULL) >= 0;
    if (trust)
        gnutls_x509_trust_list_deinit(trust, 0);
    if (asked && !status)
        return 0;
    gnutls_datum_t why = {0};
    (void)gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &why, 0);
    gr_fail(err, -GR_EAUTH, "the client's certificate is not accepted: %s", why.data ? (char *)why.data : "invalid");
    gnutls_free(why.data);
    return -GR_EAUTH;
}

static int proves(const struct mover_proof *p, gnutls_x509_crt_t owner, struct gr_err *err)
{
    for (size_t i = 0; i < GR_ARRAY_LEN(schemes); i++) {
        if (schemes[i].scheme != p->scheme || (schemes[i].only_tls12 && !p->tls12))
            continue;
        if (signed_with(owner, schemes[i].sign, p->content, p->signature))
            return 0;
        return gr_fail(err, -GR_EPROTO, "the handshake is not signed by the owner of the certificate in it");
    }
    return gr_fail(err, -ENOTSUP, "the client signs in a way that is not known here (scheme %04x): use ECDSA, RSA or EdDSA", p->scheme);
}

int mover_cas_vouch(const struct mover_cas *cas, const struct mover_proof *p, char ret_name[GATE_NAME_MAX + 1], struct gr_err *err)
{
    gnutls_x509_crt_t chain[MOVER_PROOF_CERTS];
    unsigned first = p->n_certs;
    int r = 0;
    while (r == 0 && first > 0) { /* from the CA downwards */
        r = read_signed(cas, p->certs[first - 1], first < p->n_certs ? chain[first] : NULL, &chain[first - 1], err);
        first -= r == 0;
    }
    if (r == 0)
        r = chain_ok(cas, chain, p->n_certs, err);
    if (r == 0)
        r = proves(p, chain[0], err);
    size_t len = GATE_NAME_MAX + 1;
    if (r == 0 && (gnutls_x509_crt_get_dn_by_oid(chain[0], GNUTLS_OID_X520_COMMON_NAME, 0, 0, ret_name, &len) < 0 || !gr_utf8_ok(ret_name, strlen(ret_name))))
        ret_name[0] = 0;
    for (unsigned i = first; i < p->n_certs; i++)
        gnutls_x509_crt_deinit(chain[i]);
    return r;
}
