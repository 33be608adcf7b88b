#include "common/link_key.h"
#include "common/b64.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <gnutls/abstract.h>
#include <string.h>

#define SEED_LEN 32u

struct gr_link_key {
    gnutls_privkey_t key;
    uint8_t public[GR_LINK_KEY_LEN];
};

/* All that is signed. */
struct claim {
    char text[sizeof(GR_LINK_TEXT)];
    uint8_t role;
    uint8_t magic[8], volume[16], key[GR_LINK_KEY_LEN];
    uint8_t channel[GR_LINK_CHANNEL_LEN], theirs[GR_LINK_KEY_LEN];
} __attribute__((packed));
GR_SIZE(struct claim, sizeof(GR_LINK_TEXT) + 1 + 8 + 16 + 32 + 32 + 32);

static void claim_make(struct claim *c, const struct gr_link_proof *p, bool dialled, const uint8_t *channel, const uint8_t *theirs)
{
    *c = (struct claim){.text = GR_LINK_TEXT, .role = dialled ? 'd' : 'l'};
    memcpy(c->magic, p->magic, sizeof(c->magic));
    memcpy(c->volume, p->volume, sizeof(c->volume));
    memcpy(c->key, p->key, sizeof(c->key));
    memcpy(c->channel, channel, sizeof(c->channel));
    memcpy(c->theirs, theirs, sizeof(c->theirs));
}

/* GnuTLS makes no public key from a seed: it is what the private one says of itself. */
static int derive(struct gr_link_key *k, const uint8_t seed[SEED_LEN])
{
    /* PKCS #8 of an Ed25519 key, RFC 8410 section 7: all but the seed is the same for every key */
    uint8_t der[16 + SEED_LEN] = {0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20};
    memcpy(der + 16, seed, SEED_LEN);
    gnutls_datum_t d = {der, sizeof(der)}, x = {0};
    gnutls_pubkey_t pub = NULL;
    gnutls_ecc_curve_t curve;
    int r = gnutls_privkey_init(&k->key);
    if (r >= 0)
        r = gnutls_privkey_import_x509_raw(k->key, &d, GNUTLS_X509_FMT_DER, NULL, 0);
    if (r >= 0)
        r = gnutls_pubkey_init(&pub);
    if (r >= 0)
        r = gnutls_pubkey_import_privkey(pub, k->key, 0, 0);
    if (r >= 0)
        r = gnutls_pubkey_export_ecc_raw(pub, &curve, &x, NULL);
    if (r >= 0 && x.size == GR_LINK_KEY_LEN)
        memcpy(k->public, x.data, GR_LINK_KEY_LEN);
    else
        r = GR_MIN(r, -1);
    explicit_bzero(der, sizeof(der));
    gnutls_free(x.data);
    if (pub)
        gnutls_pubkey_deinit(pub);
    return r;
}

static int make_seed(const char *path, uint8_t seed[SEED_LEN], struct gr_err *err)
{
    const struct gr_world *w = gr_world_real();
    w->random(w->arg, seed, SEED_LEN);
    gr_auto_free char *text = gr_b64_encode(seed, SEED_LEN);
    int r = text ? gr_file_replace(path, text, strlen(text), 0600, err) : gr_fail(err, -ENOMEM, "%s: out of memory", path);
    if (text)
        explicit_bzero(text, strlen(text));
    return r;
}

static int load_seed(const char *path, uint8_t seed[SEED_LEN], struct gr_err *err)
{
    gr_auto_buf struct gr_buf text = {0}, b = {0};
    int r = gr_secret_read(path, &text, err);
    if (r == -ENOENT)
        return make_seed(path, seed, err);
    if (r < 0)
        return r;
    r = gr_b64_decode(text.data ? text.data : "", text.len, &b);
    if (r < 0 || b.len != SEED_LEN)
        r = gr_fail(err, -GR_EFORMAT, "%s: not the key of a host: move it away and another is made", path);
    else
        memcpy(seed, b.data, SEED_LEN);
    if (text.data)
        explicit_bzero(text.data, text.len);
    if (b.data)
        explicit_bzero(b.data, b.len);
    return GR_MIN(r, 0);
}

int gr_link_key_open(const char *path, struct gr_link_key **ret, struct gr_err *err)
{
    uint8_t seed[SEED_LEN];
    int r = load_seed(path, seed, err);
    if (r < 0)
        return r;
    struct gr_link_key *k = gr_zalloc(sizeof(*k));
    if (!k)
        r = gr_fail(err, -ENOMEM, "%s: out of memory", path);
    else if (derive(k, seed) < 0)
        r = gr_fail(err, -EIO, "%s: GnuTLS cannot use this key", path);
    explicit_bzero(seed, sizeof(seed));
    if (r < 0)
        gr_link_key_free(k);
    else
        *ret = k;
    return r;
}

void gr_link_key_free(struct gr_link_key *k)
{
    if (!k)
        return;
    if (k->key)
        gnutls_privkey_deinit(k->key);
    free(k);
}

const uint8_t *gr_link_key_public(const struct gr_link_key *k)
{
    return k->public;
}

int gr_link_prove(const struct gr_link_key *k, bool dialled, const uint8_t volume[16], const uint8_t channel[GR_LINK_CHANNEL_LEN],
                  const uint8_t theirs[GR_LINK_KEY_LEN], struct gr_link_proof *ret)
{
    struct claim c;
    struct gr_link_proof p = {0};
    memcpy(p.magic, GR_LINK_MAGIC, sizeof(p.magic));
    memcpy(p.volume, volume, sizeof(p.volume));
    memcpy(p.key, k->public, sizeof(p.key));
    claim_make(&c, &p, dialled, channel, theirs);
    gnutls_datum_t text = {(uint8_t *)&c, sizeof(c)}, sig = {0};
    int r = gnutls_privkey_sign_data2(k->key, GNUTLS_SIGN_EDDSA_ED25519, 0, &text, &sig);
    bool good = r >= 0 && sig.size == GR_LINK_SIGNATURE_LEN;
    if (good)
        memcpy(p.signature, sig.data, GR_LINK_SIGNATURE_LEN);
    gnutls_free(sig.data);
    *ret = p;
    return good ? 0 : -EIO;
}

bool gr_link_proves(const struct gr_link_proof *p, bool dialled, const uint8_t channel[GR_LINK_CHANNEL_LEN], const uint8_t ours[GR_LINK_KEY_LEN])
{
    struct claim c;
    struct gr_link_proof copy = *p;
    if (memcmp(p->magic, GR_LINK_MAGIC, sizeof(p->magic)) != 0)
        return false;
    claim_make(&c, p, dialled, channel, ours);
    gnutls_datum_t x = {copy.key, sizeof(copy.key)}, text = {(uint8_t *)&c, sizeof(c)}, sig = {copy.signature, sizeof(copy.signature)};
    gnutls_pubkey_t pub = NULL;
    bool good = gnutls_pubkey_init(&pub) >= 0 && gnutls_pubkey_import_ecc_raw(pub, GNUTLS_ECC_CURVE_ED25519, &x, NULL) >= 0 &&
                gnutls_pubkey_verify_data2(pub, GNUTLS_SIGN_EDDSA_ED25519, 0, &text, &sig) >= 0;
    if (pub)
        gnutls_pubkey_deinit(pub);
    return good;
}
