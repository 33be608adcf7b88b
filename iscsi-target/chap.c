#include "iscsi-target/chap.h"
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <string.h>

unsigned tgt_chap_choose(uint32_t offered)
{
    static const unsigned by_strength[] = {8, 7, 5};
    for (unsigned i = 0; i < sizeof by_strength / sizeof by_strength[0]; i++)
        if (offered & 1u << by_strength[i])
            return by_strength[i];
    return 0;
}

uint32_t tgt_chap_len(unsigned alg)
{
    return alg == 5 ? 16 : 32;
}

int tgt_chap_response(unsigned alg, uint8_t id, const char *secret, const uint8_t *challenge, size_t challenge_len,
                      uint8_t ret[TGT_CHAP_HASH_MAX])
{
    gnutls_digest_algorithm_t digest = alg == 8 ? GNUTLS_DIG_SHA3_256 : alg == 7 ? GNUTLS_DIG_SHA256 : GNUTLS_DIG_MD5;
    uint8_t text[1 + TGT_CHAP_SECRET_MAX + 1024];
    size_t len = strlen(secret);
    if (len > TGT_CHAP_SECRET_MAX || challenge_len > 1024)
        return -GR_EPROTO;
    text[0] = id;
    memcpy(text + 1, secret, len);
    memcpy(text + 1 + len, challenge, challenge_len);
    int r = gnutls_hash_fast(digest, text, 1 + len + challenge_len, ret);
    gnutls_memset(text, 0, sizeof text);
    return r < 0 ? -ENOTSUP : 0;
}

bool tgt_chap_equal(const uint8_t *a, const uint8_t *b, size_t len)
{
    return gnutls_memcmp(a, b, len) == 0;
}
