/* Base64 (RFC 4648 section 4, with padding), for bytes inside JSON messages. */
#ifndef GR_B64_H
#define GR_B64_H
#include <stddef.h>
struct gr_buf;
/* Text of @len bytes; new memory, NULL when out of memory. */
char *gr_b64_encode(const void *data, size_t len);
/* Append what @text (@len characters) stands for to @ret. -EINVAL: a foreign character, bad padding or stray bits in the
 * last group (so that each byte string has one text only); @ret is then as it was. -ENOMEM. */
int gr_b64_decode(const char *text, size_t len, struct gr_buf *ret);
#endif
