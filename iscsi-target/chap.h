/* CHAP (RFC 1994 in iSCSI: RFC 7143 12.1.3): response = HASH(id || secret || challenge). Algorithms by IANA number:
 * 5 MD5, 7 SHA-256, 8 SHA3-256. Only the parent, which holds the secrets, uses this. */
#ifndef TGT_CHAP_H
#define TGT_CHAP_H
#include "common/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TGT_CHAP_SECRET_MIN 12u /* bytes; RFC 7143 12.1.3: below 96 bits only under IPsec */
#define TGT_CHAP_SECRET_MAX 255u
#define TGT_CHAP_HASH_MAX 32u

/* The strongest algorithm of the @offered bits (bit per number), 0: none. */
unsigned tgt_chap_choose(uint32_t offered);
/* Bytes of a response and of our challenges. */
uint32_t tgt_chap_len(unsigned alg);
/* 0, or negative when the library refuses the algorithm. */
int tgt_chap_response(unsigned alg, uint8_t id, const char *secret, const uint8_t *challenge, size_t challenge_len,
                      uint8_t ret[TGT_CHAP_HASH_MAX]);
/* Compare in constant time. */
bool tgt_chap_equal(const uint8_t *a, const uint8_t *b, size_t len);
#endif
