#include "common/seam.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

static uint64_t real_mono_ns(void *arg)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int64_t real_wall_s(void *arg)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return ts.tv_sec;
}

/* Identities and nonces are made of these bytes: no randomness means no safe way on. */
static void real_random(void *arg, void *buf, size_t len)
{
    uint8_t *p = buf;
    while (len > 0) {
        ssize_t n = getrandom(p, len, 0);
        if (n < 0 && errno != EINTR)
            abort();
        if (n > 0) {
            p += n;
            len -= (size_t)n;
        }
    }
}

const struct gr_world *gr_world_real(void)
{
    static const struct gr_world real = {.mono_ns = real_mono_ns, .wall_s = real_wall_s, .random = real_random};
    return &real;
}

/* The one piece of test control: a countdown of the calling thread, off unless a test arms it. */
static _Thread_local struct {
    int left; /* allocations that still succeed, plus one; 0: off */
    int sticky;
} alloc_fail;

void gr_alloc_fail_after(int n, int sticky)
{
    alloc_fail.left = n < 0 ? 0 : n + 1;
    alloc_fail.sticky = sticky;
}

static int must_fail(void)
{
    if (__builtin_expect(alloc_fail.left == 0, 1))
        return 0;
    if (alloc_fail.left > 1) {
        alloc_fail.left--;
        return 0;
    }
    if (!alloc_fail.sticky)
        alloc_fail.left = 0;
    return 1;
}

void *gr_alloc(size_t len)
{
    return must_fail() ? NULL : malloc(len ? len : 1);
}

void *gr_zalloc(size_t len)
{
    return must_fail() ? NULL : calloc(1, len ? len : 1);
}

void *gr_realloc(void *p, size_t len)
{
    return must_fail() ? NULL : realloc(p, len ? len : 1);
}

void *gr_alloc_aligned(size_t align, size_t len)
{
    void *p = NULL;
    if (must_fail())
        return NULL;
    if (align < sizeof(void *))
        align = sizeof(void *);
    return posix_memalign(&p, align, len ? len : 1) == 0 ? p : NULL;
}

char *gr_strdup(const char *s)
{
    size_t len = strlen(s) + 1;
    char *p = gr_alloc(len);
    return p ? memcpy(p, s, len) : NULL;
}

char *gr_asprintf(const char *fmt, ...)
{
    va_list ap;
    char *p = NULL;
    if (must_fail())
        return NULL;
    va_start(ap, fmt);
    int n = vasprintf(&p, fmt, ap);
    va_end(ap);
    return n < 0 ? NULL : p;
}
