/* Splits a byte stream of JSON lines from a peer that is not trusted (QMP, guest agent) into lines, with bounded memory. */
#ifndef HV_LINES_H
#define HV_LINES_H
#include "common/buf.h"
#include <stdbool.h>

struct hv_lines {
    struct gr_buf buf;     /* the unfinished line */
    size_t max;            /* longest line, bytes */
    bool resync;           /* 0xFF (never part of UTF-8) throws away what came before it on the line */
    bool skipping;         /* inside a line that is too long */
    unsigned long dropped; /* lines that were too long */
};
/* Take @len bytes; call fn(arg, line, len) for each complete, non-blank line (without its newline, NUL-terminated, borrowed).
 * Lines beyond max are dropped and counted. A negative return of fn ends the call and is returned; else 0 or -ENOMEM. */
int hv_lines_feed(struct hv_lines *l, const char *data, size_t len, int (*fn)(void *arg, char *line, size_t len), void *arg);
void hv_lines_done(struct hv_lines *l);
#endif
