#include "hv/lines.h"
#include <string.h>

/* A newline was met: hand out the line, unless it was too long or blank. */
static int end_line(struct hv_lines *l, int (*fn)(void *arg, char *line, size_t len), void *arg)
{
    if (l->skipping) {
        l->skipping = false;
        return 0;
    }
    size_t len = l->buf.len;
    if (len && l->buf.data[len - 1] == '\r')
        l->buf.data[--len] = 0;
    l->buf.len = 0;
    if (!len || strspn(l->buf.data, " \t") >= len)
        return 0;
    return fn(arg, l->buf.data, len);
}

static int add(struct hv_lines *l, const char *data, size_t len)
{
    if (l->skipping || !len)
        return 0;
    if (len > l->max - l->buf.len) {
        l->skipping = true;
        l->dropped++;
        l->buf.len = 0;
        return 0;
    }
    return gr_buf_add(&l->buf, data, len);
}

int hv_lines_feed(struct hv_lines *l, const char *data, size_t len, int (*fn)(void *arg, char *line, size_t len), void *arg)
{
    const char *p = data, *end = data + len;
    while (p < end) {
        const char *stop = p;
        while (stop < end && *stop != '\n' && !(l->resync && (unsigned char)*stop == 0xff))
            stop++;
        int r = add(l, p, (size_t)(stop - p));
        if (r < 0)
            return r;
        if (stop == end)
            break;
        if (*stop == '\n') {
            if ((r = end_line(l, fn, arg)) < 0)
                return r;
        } else {
            l->buf.len = 0;
            l->skipping = false;
        }
        p = stop + 1;
    }
    return 0;
}

void hv_lines_done(struct hv_lines *l)
{
    gr_buf_done(&l->buf);
}
