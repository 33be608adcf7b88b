/* What a handshake proves, as storaged sees it: every kind of it that is let in, and that neither an old one, nor another's, nor one with any
 * byte changed is believed. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "iscsi-target/mover_int.h"
#include "tests/lib/test.h"
#include "tests/lib/tlsproof.h"
#include <string.h>
#include <time.h>

#define TLS13 "NORMAL:-VERS-ALL:+VERS-TLS1.3"
#define TLS12 "NORMAL:-VERS-ALL:+VERS-TLS1.2"
#define SOON (time(NULL) + 86400)

static struct {
    struct tlsproof_id ca, server, client, other_ca, stranger;
    struct mover_cas cas;
} site; /* made once */
static struct tlsproof p, q;

static int make_site(void **state)
{
    tlsproof_issue(&site.ca, "ca", GNUTLS_PK_ECDSA, TLSPROOF_CA, NULL, SOON);
    tlsproof_issue(&site.server, "server", GNUTLS_PK_ECDSA, TLSPROOF_SERVER, &site.ca, SOON);
    tlsproof_issue(&site.client, "client", GNUTLS_PK_ECDSA, TLSPROOF_CLIENT, &site.ca, SOON);
    tlsproof_issue(&site.other_ca, "ca", GNUTLS_PK_ECDSA, TLSPROOF_CA, NULL, SOON);
    tlsproof_issue(&site.stranger, "client", GNUTLS_PK_ECDSA, TLSPROOF_CLIENT, &site.other_ca, SOON);
    site.cas = (struct mover_cas){&site.ca.crt, 1};
    return 0;
}

static int end_site(void **state)
{
    struct tlsproof_id *all[] = {&site.ca, &site.server, &site.client, &site.other_ca, &site.stranger};
    for (unsigned i = 0; i < GR_ARRAY_LEN(all); i++)
        tlsproof_done(all[i]);
    return 0;
}

static int judge(const struct tlsproof *t, const struct mover_cas *cas, char name[GATE_NAME_MAX + 1], struct gr_err *err)
{
    struct mover_proof proof;
    gr_auto_free uint8_t *said = malloc(t->len); /* of exactly that size, for the sanitizer */
    memcpy(said, t->said, t->len);
    int r = mover_proof_read(said, t->len, t->digest, &t->signature, &proof, err);
    return r < 0 ? r : mover_cas_vouch(cas, &proof, name, err);
}

static void believed(const struct tlsproof *t, const struct mover_cas *cas, const char *who)
{
    char name[GATE_NAME_MAX + 1] = "";
    struct gr_err err = {0};
    if (judge(t, cas, name, &err) < 0)
        fail_msg("%s", err.text);
    assert_string_equal(name, who);
}

static void not_believed(const struct tlsproof *t, int code, const char *why)
{
    char name[GATE_NAME_MAX + 1] = "";
    struct gr_err err = {0};
    assert_int_equal(judge(t, &site.cas, name, &err), code);
    if (!strstr(err.text, why))
        fail_msg("says '%s', not '%s'", err.text, why);
}

static void shake(struct tlsproof *ret, const struct tlsproof_id *client, const char *server_priority, const char *client_priority)
{
    tlsproof_shake(ret, &site.server, &client, 1, server_priority, client_priority);
}

static void versions(void **state)
{
    static const char *const suites[] = {":-CIPHER-ALL:+AES-128-GCM", ":-CIPHER-ALL:+AES-256-GCM", ":-CIPHER-ALL:+CHACHA20-POLY1305"};
    for (unsigned i = 0; i < GR_ARRAY_LEN(suites); i++) {
        char v13[128], v12[128];
        snprintf(v13, sizeof v13, TLS13 "%s", suites[i]);
        snprintf(v12, sizeof v12, TLS12 "%s", suites[i]);
        shake(&p, &site.client, v13, v13);
        believed(&p, &site.cas, "client");
        shake(&p, &site.client, v12, v12);
        believed(&p, &site.cas, "client");
    }
    /* the first guess of a group is not one of the server's */
    for (unsigned i = 0; i < 2; i++) {
        const char *suite = i ? TLS13 ":-CIPHER-ALL:+AES-128-GCM:-GROUP-ALL:+GROUP-SECP384R1" : TLS13 ":-CIPHER-ALL:+AES-256-GCM:-GROUP-ALL:+GROUP-SECP384R1";
        shake(&p, &site.client, suite, TLS13 ":-GROUP-ALL:+GROUP-X25519:+GROUP-SECP256R1:+GROUP-SECP384R1");
        assert_true(p.retried);
        believed(&p, &site.cas, "client");
    }
}

/* Certificates of other kinds, and by way of others. */
static void kinds(void **state)
{
    static const gnutls_pk_algorithm_t algos[] = {GNUTLS_PK_RSA, GNUTLS_PK_EDDSA_ED25519, GNUTLS_PK_ECDSA};
    for (unsigned i = 0; i < GR_ARRAY_LEN(algos); i++) {
        struct tlsproof_id ca, middle, client;
        tlsproof_issue(&ca, "another ca", algos[i], TLSPROOF_CA, NULL, SOON);
        tlsproof_issue(&middle, "middle", GNUTLS_PK_ECDSA, TLSPROOF_CA, &ca, SOON);
        tlsproof_issue(&client, "somebody", algos[i], TLSPROOF_CLIENT, &middle, SOON);
        const struct tlsproof_id *chain[] = {&client, &middle, &ca};
        gnutls_x509_crt_t list[] = {site.ca.crt, ca.crt};
        struct mover_cas cas = {list, 2};
        for (unsigned n = 2; n <= 3; n++) {
            tlsproof_shake(&p, &site.server, chain, n, TLS13, TLS13);
            believed(&p, &cas, "somebody");
            not_believed(&p, -GR_EPROTO, "not signed by the site's CA");
            tlsproof_shake(&p, &site.server, chain, n, TLS12, TLS12);
            believed(&p, &cas, "somebody");
        }
        tlsproof_done(&ca);
        tlsproof_done(&middle);
        tlsproof_done(&client);
    }
}

static void wrong_people(void **state)
{
    struct tlsproof_id late, under;
    tlsproof_issue(&late, "late", GNUTLS_PK_ECDSA, TLSPROOF_CLIENT, &site.ca, time(NULL) - 86400);
    tlsproof_issue(&under, "under", GNUTLS_PK_ECDSA, TLSPROOF_CLIENT, &site.client, SOON);
    shake(&p, &site.stranger, TLS13, TLS13);
    not_believed(&p, -GR_EPROTO, "not signed by the site's CA");
    shake(&p, &late, TLS13, TLS13);
    not_believed(&p, -GR_EAUTH, "expired");
    shake(&p, &site.server, TLS13, TLS13);
    not_believed(&p, -GR_EAUTH, "not accepted");
    const struct tlsproof_id *chain[] = {&under, &site.client}; /* whoever has a certificate cannot give others one */
    tlsproof_shake(&p, &site.server, chain, 2, TLS13, TLS13);
    not_believed(&p, -GR_EPROTO, "not signed by the site's CA");
    tlsproof_done(&late);
    tlsproof_done(&under);
}

/* A handshake that was seen once proves nothing when the same is signed again. */
static void old_ones(void **state)
{
    static const char *const versions[] = {TLS13, TLS12};
    for (unsigned i = 0; i < 2; i++) {
        shake(&p, &site.client, versions[i], versions[i]);
        q = p;
        tlsproof_sign(&site.server, q.digest, &q.signature);
        assert_memory_not_equal(q.signature.bytes, p.signature.bytes, 40);
        not_believed(&q, -GR_EPROTO, "not the one that was signed for here");
        /* with the new signature in its place, it is not what the client signed */
        for (size_t at = 0; at + p.signature.len <= q.len; at++)
            if (!memcmp(q.said + at, p.signature.bytes, p.signature.len) && q.signature.len == p.signature.len)
                memcpy(q.said + at, q.signature.bytes, q.signature.len);
        if (q.signature.len == p.signature.len)
            not_believed(&q, -GR_EPROTO, "not signed by the owner");
        /* another one's, with this one's signature */
        shake(&q, &site.client, versions[i], versions[i]);
        memcpy(q.digest, p.digest, sizeof q.digest);
        not_believed(&q, -GR_EPROTO, "not the one that was signed for here");
        memcpy(q.signature.bytes, p.signature.bytes, sizeof q.signature.bytes);
        q.signature.len = p.signature.len;
        not_believed(&q, -GR_EPROTO, "not the one that was signed for here");
        q.signature.len = 0;
        not_believed(&q, -GR_EPROTO, "not the one that was signed for here");
    }
}

/* Every byte counts, and every length. */
static void bytes_changed(void **state)
{
    static const char *const versions[] = {TLS13, TLS12};
    char name[GATE_NAME_MAX + 1];
    for (unsigned i = 0; i < 2; i++) {
        shake(&p, &site.client, versions[i], versions[i]);
        believed(&p, &site.cas, "client");
        for (size_t at = 0; at < p.len; at++) {
            q = p;
            q.said[at] ^= (uint8_t)(1u << at % 8);
            assert_true(judge(&q, &site.cas, name, NULL) < 0);
        }
        for (size_t len = 0; len < p.len; len++) {
            q = p;
            q.len = len;
            assert_true(judge(&q, &site.cas, name, NULL) < 0);
        }
        q = p;
        q.said[q.len++] = 0;
        not_believed(&q, -GR_EPROTO, "does not end with a signature");
        q = p;
        q.digest[7] ^= 1;
        not_believed(&q, -GR_EPROTO, "not the one that was signed for here");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(versions), TEST(kinds), TEST(wrong_people), TEST(old_ones), TEST(bytes_changed)};
    return cmocka_run_group_tests(tests, make_site, end_site);
}
