#include "common/buf.h"
#include "common/seam.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void gr_buf_done(struct gr_buf *b)
{
    free(b->data);
    *b = (struct gr_buf){0};
}

int gr_buf_reserve(struct gr_buf *b, size_t more)
{
    if (b->data && more < b->cap - b->len) /* one byte is kept for the NUL */
        return 0;
    if (more > (SIZE_MAX >> 1) - b->len - 1)
        return -ENOMEM;
    size_t need = b->len + more + 1, cap = b->cap ? b->cap : 64;
    while (cap < need)
        cap *= 2;
    char *p = gr_realloc(b->data, cap);
    if (!p)
        return -ENOMEM;
    if (!b->data)
        p[0] = 0;
    b->data = p;
    b->cap = cap;
    return 0;
}

int gr_buf_add(struct gr_buf *b, const void *p, size_t len)
{
    int r = gr_buf_reserve(b, len);
    if (r < 0)
        return r;
    if (len > 0)
        memcpy(b->data + b->len, p, len);
    b->len += len;
    b->data[b->len] = 0;
    return 0;
}

int gr_buf_zero(struct gr_buf *b, size_t len)
{
    int r = gr_buf_reserve(b, len);
    if (r < 0)
        return r;
    memset(b->data + b->len, 0, len + 1);
    b->len += len;
    return 0;
}

int gr_buf_printf(struct gr_buf *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0)
        return -EINVAL;
    int r = gr_buf_reserve(b, (size_t)n);
    if (r < 0)
        return r;
    va_start(ap, fmt);
    vsnprintf(b->data + b->len, (size_t)n + 1, fmt, ap);
    va_end(ap);
    b->len += (size_t)n;
    return 0;
}

char *gr_buf_take(struct gr_buf *b)
{
    char *p = b->data;
    *b = (struct gr_buf){0};
    return p;
}
