/* Log of daemons and commands: one line on stderr per message, with an <N> level prefix when stderr is a journal or a
 * file given by gr_log_open(), so that journald keeps levels. Libraries do not log. */
#ifndef GR_LOG_H
#define GR_LOG_H
#include "common/err.h"
enum gr_log_level { GR_LOG_ERR = 3, GR_LOG_WARN = 4, GR_LOG_NOTE = 5, GR_LOG_INFO = 6, GR_LOG_DEBUG = 7 };
/* @program: shown in front of each line; @path: append to this file instead of stderr (NULL: stderr), putting one above
 * 16 MiB aside as PATH.old; @max: highest level shown. */
int gr_log_open(const char *program, const char *path, enum gr_log_level max, struct gr_err *err);
/* A log above 16 MiB becomes PATH.old, in place of an earlier one. */
void gr_log_put_aside(const char *path);
void gr_log(enum gr_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* At most one line a second for each call site; tells how many were left out. */
#define gr_log_limited(level, ...)                                    \
    do {                                                              \
        static struct gr_log_limit _limit_;                           \
        if (gr_log_allowed(&_limit_, level))                          \
            gr_log(level, __VA_ARGS__);                               \
    } while (0)
struct gr_log_limit {
    uint64_t next_ns;
    unsigned suppressed;
};
int gr_log_allowed(struct gr_log_limit *l, enum gr_log_level level);
#endif
