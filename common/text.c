/* Numbers, sizes, UTF-8 and UUIDs as people and configuration files write them. */
#include "common/buf.h"
#include "common/err.h"
#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* Decimal digits at @s; returns the first character behind them, NULL when there is none or on overflow. */
static const char *parse_digits(const char *s, uint64_t *ret)
{
    uint64_t v = 0;
    if (!isdigit((unsigned char)*s))
        return NULL;
    for (; isdigit((unsigned char)*s); s++)
        if (__builtin_mul_overflow(v, 10u, &v) || __builtin_add_overflow(v, (uint64_t)(*s - '0'), &v))
            return NULL;
    *ret = v;
    return s;
}

int gr_parse_size(const char *text, uint64_t *ret, struct gr_err *err)
{
    static const char units[] = "KMGTP";
    uint64_t v;
    const char *end = parse_digits(text, &v);
    if (!end)
        return gr_fail(err, -GR_EUSAGE, "'%.64s' is not a size: write a number such as 512M, 10G or 1T", text);
    if (*end) {
        const char *unit = strchr(units, toupper((unsigned char)*end));
        if (!unit || end[1])
            return gr_fail(err, -GR_EUSAGE, "size '%.64s' ends in '%.16s': only K, M, G, T or P (of 1024) may follow the number", text,
                           end);
        unsigned shift = 10 * (unsigned)(unit - units + 1);
        if (v > (uint64_t)INT64_MAX >> shift)
            return gr_fail(err, -GR_EUSAGE, "size '%.64s' is above 2^63-1 bytes", text);
        v <<= shift;
    }
    if (v > INT64_MAX)
        return gr_fail(err, -GR_EUSAGE, "size '%.64s' is above 2^63-1 bytes", text);
    *ret = v;
    return 0;
}

int gr_parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *ret, struct gr_err *err)
{
    uint64_t v;
    const char *end = parse_digits(text, &v);
    if (!end || *end)
        return gr_fail(err, -GR_EUSAGE, "'%.64s' is not a whole number", text);
    if (v < min || v > max)
        return gr_fail(err, -GR_EUSAGE, "%.64s is not between %llu and %llu", text, (unsigned long long)min, (unsigned long long)max);
    *ret = v;
    return 0;
}

void gr_format_size(uint64_t bytes, char out[16])
{
    static const char units[][4] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned u = 0;
    double v = (double)bytes;
    while (v >= 1024 && u < 6) {
        v /= 1024;
        u++;
    }
    if (u == 0)
        snprintf(out, 16, "%llu B", (unsigned long long)bytes);
    else
        snprintf(out, 16, v == (double)(uint64_t)v ? "%.0f %s" : "%.1f %s", v, units[u]);
}

/* Length of the well-formed sequence at @s (RFC 3629 section 4), 0 when there is none. */
static size_t utf8_sequence(const uint8_t *s, size_t left)
{
    size_t n;
    uint32_t cp;
    if (s[0] < 0x80)
        return 1;
    if (s[0] >= 0xc2 && s[0] <= 0xdf)
        n = 2, cp = s[0] & 0x1fu;
    else if ((s[0] & 0xf0) == 0xe0)
        n = 3, cp = s[0] & 0x0fu;
    else if (s[0] >= 0xf0 && s[0] <= 0xf4)
        n = 4, cp = s[0] & 0x07u;
    else
        return 0;
    if (n > left)
        return 0;
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        cp = cp << 6 | (s[i] & 0x3fu);
    }
    if ((n == 3 && cp < 0x800) || (n == 4 && (cp < 0x10000 || cp > 0x10ffff)) || (cp >= 0xd800 && cp <= 0xdfff))
        return 0;
    if (cp >= 0x80 && cp <= 0x9f) /* C1 controls */
        return 0;
    return n;
}

int gr_utf8_ok(const char *s, size_t len)
{
    const uint8_t *p = (const uint8_t *)s;
    for (size_t i = 0; i < len;) {
        size_t n = utf8_sequence(p + i, len - i);
        if (n == 0 || p[i] < 0x20 || p[i] == 0x7f)
            return 0;
        i += n;
    }
    return 1;
}

void gr_uuid_format(const uint8_t uuid[16], char out[37])
{
    static const char hex[] = "0123456789abcdef";
    char *o = out;
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *o++ = '-';
        *o++ = hex[uuid[i] >> 4];
        *o++ = hex[uuid[i] & 15];
    }
    *o = 0;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

int gr_uuid_parse(const char *text, uint8_t ret[16])
{
    uint8_t out[16];
    if (strlen(text) != 36)
        return -EINVAL;
    for (int i = 0, o = 0; i < 36;) {
        if (i == 8 || i == 13 || i == 18 || i == 23) {
            if (text[i++] != '-')
                return -EINVAL;
            continue;
        }
        int hi = hex_digit(text[i]), lo = hex_digit(text[i + 1]);
        if (hi < 0 || lo < 0)
            return -EINVAL;
        out[o++] = (uint8_t)(hi << 4 | lo);
        i += 2;
    }
    memcpy(ret, out, 16);
    return 0;
}
