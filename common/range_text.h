/* Ranges of a disk that changed, as they go from process to process: a part of an answer (common/rpc.h) is a text of them, for there may be millions. */
#ifndef GR_RANGE_TEXT_H
#define GR_RANGE_TEXT_H
#include "common/buf.h"
#include <jansson.h>
#include <stdbool.h>

#define GR_RANGES_TEXT "text" /* who asks for ranges says that it takes this form; who does not know it answers in objects */

/* Add "OFFSET+LENGTH " to @b, with a z behind what reads as zeros; bytes. 0; -ENOMEM. */
int gr_ranges_put(struct gr_buf *b, uint64_t off, uint64_t len, bool zero);
/* Each range of a part, which is such a text, or an array of {"offset", "length", "state": "data" or "zero"} as earlier releases send it. Lengths are not
 * 0, and no range ends behind 2^63-1. Returns 0; what @fn did, as soon as that is not 0; -GR_EPROTO: it is something else. */
int gr_ranges_part(const json_t *part, int (*fn)(void *arg, uint64_t off, uint64_t len, bool zero), void *arg);
#endif
