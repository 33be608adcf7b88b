/* A log file that a guest can fill and that never takes more than a given space: NAME and, before it, NAME.1. */
#ifndef HV_LOGCAP_H
#define HV_LOGCAP_H
#include "common/buf.h"
#include "common/err.h"

struct hv_logcap;
/* Append to @path, at most @max bytes on disk in both files (at least 4096). */
int hv_logcap_open(const char *path, uint64_t max, struct hv_logcap **ret, struct gr_err *err);
/* Append; the oldest half goes when the space is used up. What cannot be written (disk full) is dropped and counted. */
void hv_logcap_write(struct hv_logcap *l, const void *data, size_t len);
uint64_t hv_logcap_lost(const struct hv_logcap *l); /* bytes dropped */
void hv_logcap_close(struct hv_logcap *l);          /* NULL allowed */
/* All that is kept of the log at @path, oldest first, appended to @ret; the last @max bytes of it. 0 when there is none. */
int hv_logcap_read(const char *path, uint64_t max, struct gr_buf *ret, struct gr_err *err);
#endif
