/* key=value text of login and text PDUs (RFC 7143 6.1): pairs ended by NUL. */
#ifndef TGT_TEXT_H
#define TGT_TEXT_H
#include "common/err.h"
#include <stdbool.h>
#include <stddef.h>

#define TGT_KEY_MAX 63u     /* bytes of a key name */
#define TGT_VALUE_MAX 255u  /* bytes of a value that is not declared longer */
#define TGT_BINARY_MAX 2050u /* bytes of an encoded binary value: 1024 bytes in hexadecimal and its prefix */
#define TGT_KEYS_MAX 64u    /* pairs in one exchange */

struct tgt_text_pair {
    const char *key, *value; /* NUL-terminated, into the parsed text */
};
/* Split @text (@len bytes, changed in place, one more byte must be writable behind it) into pairs.
 * Returns their number, or -GR_EPROTO: no '=', bad or long key, long value, too many, the last pair not ended. */
int tgt_text_split(char *text, size_t len, struct tgt_text_pair ret[TGT_KEYS_MAX]);
/* Output of bounded size: pairs appended until full. */
struct tgt_text_out {
    char *buf;
    size_t len, cap;
    bool overflow; /* a pair did not fit; nothing of it was written */
};
void tgt_text_add(struct tgt_text_out *o, const char *key, const char *value);
void tgt_text_add_num(struct tgt_text_out *o, const char *key, unsigned long value);
/* "0x…", "0X…" or decimal, whole string; 0 or -GR_EPROTO. */
int tgt_text_number(const char *value, unsigned long max, unsigned long *ret);
/* Binary value: "0x" hex or "0b" base64 (RFC 7143 6.1); the length, or -GR_EPROTO when malformed or beyond @max. */
int tgt_text_binary(const char *value, unsigned char *ret, size_t max);
/* "0x" and @len bytes in hex; @ret holds 2 * len + 3. */
void tgt_text_hex(const unsigned char *p, size_t len, char *ret);
/* True when the comma-separated @list has @item. */
bool tgt_text_list_has(const char *list, const char *item);
#endif
