#include "common/range_text.h"
#include "common/err.h"
#include <errno.h>
#include <string.h>

#define DIGITS 20u /* of the largest number */

static char *put_number(char *end, uint64_t n) /* in front of @end */
{
    do
        *--end = (char)('0' + n % 10);
    while (n /= 10);
    return end;
}

int gr_ranges_put(struct gr_buf *b, uint64_t off, uint64_t len, bool zero)
{
    char text[2 * DIGITS + 3], *end = text + sizeof text, *p = end;
    *--p = ' ';
    if (zero)
        *--p = 'z';
    p = put_number(p, len);
    *--p = '+';
    p = put_number(p, off);
    return gr_buf_add(b, p, (size_t)(end - p));
}

static bool get_number(const char **p, uint64_t *ret)
{
    uint64_t n = 0;
    const char *s = *p;
    for (; *s >= '0' && *s <= '9'; s++) {
        if (n >= UINT64_MAX / 10)
            return false;
        n = n * 10 + (uint64_t)(*s - '0');
    }
    *ret = n;
    bool any = s != *p;
    *p = s;
    return any;
}

static bool fits(uint64_t off, uint64_t len)
{
    return len && off <= INT64_MAX && len <= INT64_MAX - off;
}

static int from_text(const char *p, int (*fn)(void *arg, uint64_t off, uint64_t len, bool zero), void *arg)
{
    int r = 0;
    while (r == 0 && *p) {
        uint64_t off, len;
        if (!get_number(&p, &off) || *p++ != '+' || !get_number(&p, &len))
            return -GR_EPROTO;
        bool zero = *p == 'z';
        p += zero;
        if (*p++ != ' ' || !fits(off, len))
            return -GR_EPROTO;
        r = fn(arg, off, len, zero);
    }
    return r;
}

static int from_objects(const json_t *part, int (*fn)(void *arg, uint64_t off, uint64_t len, bool zero), void *arg)
{
    json_t *row;
    size_t i;
    int r = 0;
    json_array_foreach(part, i, row) {
        const char *state = json_string_value(json_object_get(row, "state"));
        json_int_t off = json_integer_value(json_object_get(row, "offset")), len = json_integer_value(json_object_get(row, "length"));
        if (!state || off < 0 || len <= 0 || !fits((uint64_t)off, (uint64_t)len))
            return -GR_EPROTO;
        if ((r = fn(arg, (uint64_t)off, (uint64_t)len, strcmp(state, "zero") == 0)) != 0)
            return r;
    }
    return r;
}

int gr_ranges_part(const json_t *part, int (*fn)(void *arg, uint64_t off, uint64_t len, bool zero), void *arg)
{
    if (json_is_string(part))
        return from_text(json_string_value(part), fn, arg);
    return json_is_array(part) ? from_objects(part, fn, arg) : -GR_EPROTO;
}
