#include "common/log.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

/* The log belongs to the process: set up once by main before anything else runs, read only afterwards. */
static struct log_sink {
    char program[32];
    enum gr_log_level max;
    int fd;
    bool prefix; /* "<N>" for journald */
    bool stamp;  /* our own time, when nobody else puts one */
} sink = {.program = "granary", .max = GR_LOG_INFO, .fd = STDERR_FILENO};

/* systemd tells the device and inode of the journal's stream; stderr may have been redirected since. */
static bool stderr_is_journal(void)
{
    const char *env = getenv("JOURNAL_STREAM");
    unsigned long long dev, ino;
    struct stat st;
    return env && sscanf(env, "%llu:%llu", &dev, &ino) == 2 && fstat(STDERR_FILENO, &st) == 0 && st.st_dev == dev && st.st_ino == ino;
}

#define LOG_KEEP (16 << 20) /* bytes: a longer log is put aside */

void gr_log_put_aside(const char *path)
{
    struct stat st;
    gr_auto_free char *old = gr_asprintf("%s.old", path);
    if (old && stat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > LOG_KEEP)
        rename(path, old);
}

int gr_log_open(const char *program, const char *path, enum gr_log_level max, struct gr_err *err)
{
    snprintf(sink.program, sizeof(sink.program), "%s", program);
    sink.max = max;
    if (!path) {
        sink.prefix = stderr_is_journal();
        return 0;
    }
    gr_log_put_aside(path);
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return gr_fail(err, -errno, "%s: cannot open the log: %s", path, strerror(errno));
    if (sink.fd != STDERR_FILENO)
        close(sink.fd);
    sink.fd = fd;
    sink.prefix = true;
    sink.stamp = true;
    return 0;
}

/* One write(2) per line, so that lines of several processes do not mix. Control characters would forge lines. */
void gr_log(enum gr_log_level level, const char *fmt, ...)
{
    char line[2048];
    size_t n = 0;
    int saved_errno = errno;
    if (level > sink.max)
        return;
    if (sink.prefix)
        n += (size_t)snprintf(line + n, sizeof(line) - n, "<%d>", level);
    if (sink.stamp) {
        struct tm tm;
        time_t now = (time_t)gr_world_real()->wall_s(NULL);
        gmtime_r(&now, &tm);
        n += strftime(line + n, sizeof(line) - n, "%Y-%m-%dT%H:%M:%SZ ", &tm);
    }
    n += (size_t)snprintf(line + n, sizeof(line) - n, "%s: ", sink.program);
    size_t start = n;
    va_list ap;
    va_start(ap, fmt);
    int m = vsnprintf(line + n, sizeof(line) - n - 1, fmt, ap);
    va_end(ap);
    if (m > 0)
        n = GR_MIN(n + (size_t)m, sizeof(line) - 2);
    for (size_t i = start; i < n; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = ' ';
    line[n++] = '\n';
    if (write(sink.fd, line, n) < 0) {
        /* nowhere left to tell it */
    }
    errno = saved_errno;
}

int gr_log_allowed(struct gr_log_limit *l, enum gr_log_level level)
{
    if (level > sink.max)
        return 0;
    uint64_t now = gr_world_real()->mono_ns(NULL);
    if (now < l->next_ns) {
        l->suppressed++;
        return 0;
    }
    if (l->suppressed > 0)
        gr_log(level, "(%u similar messages left out)", l->suppressed);
    l->suppressed = 0;
    l->next_ns = now + 1000000000u;
    return 1;
}
