#include "iscsi-target/iscsi_text.h"
#include <stdio.h>
#include <string.h>

static bool key_ok(const char *key, size_t len)
{
    if (!len || len > TGT_KEY_MAX)
        return false;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)key[i];
        bool alnum = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!alnum && !strchr(".-+@_#", c))
            return false;
    }
    return true;
}

/* Values that may be longer than 255 bytes. */
static bool value_may_be_long(const char *key)
{
    return !strcmp(key, "CHAP_C") || !strcmp(key, "CHAP_R");
}

int tgt_text_split(char *text, size_t len, struct tgt_text_pair ret[TGT_KEYS_MAX])
{
    size_t pos = 0;
    unsigned n = 0;
    /* Some initiators pad with NULs inside the declared length. */
    while (len && !text[len - 1] && (len < 2 || !text[len - 2]))
        len--;
    if (!len)
        return 0;
    if (text[len - 1])
        return -GR_EPROTO; /* the last pair has no end */
    while (pos < len) {
        size_t pair = strnlen(text + pos, len - pos);
        char *eq = memchr(text + pos, '=', pair);
        if (!eq || !key_ok(text + pos, (size_t)(eq - (text + pos))) || n >= TGT_KEYS_MAX)
            return -GR_EPROTO;
        *eq = 0;
        size_t value = pair - (size_t)(eq + 1 - (text + pos));
        if (value > (value_may_be_long(text + pos) ? TGT_BINARY_MAX : TGT_VALUE_MAX))
            return -GR_EPROTO;
        ret[n++] = (struct tgt_text_pair){text + pos, eq + 1};
        pos += pair + 1;
    }
    return (int)n;
}

void tgt_text_add(struct tgt_text_out *o, const char *key, const char *value)
{
    size_t k = strlen(key), v = strlen(value);
    if (o->overflow || k + v + 2 > o->cap - o->len) {
        o->overflow = true;
        return;
    }
    memcpy(o->buf + o->len, key, k);
    o->buf[o->len + k] = '=';
    memcpy(o->buf + o->len + k + 1, value, v + 1);
    o->len += k + v + 2;
}

void tgt_text_add_num(struct tgt_text_out *o, const char *key, unsigned long value)
{
    char num[24];
    snprintf(num, sizeof num, "%lu", value);
    tgt_text_add(o, key, num);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

int tgt_text_number(const char *value, unsigned long max, unsigned long *ret)
{
    unsigned base = 10;
    unsigned long v = 0;
    if (value[0] == '0' && (value[1] == 'x' || value[1] == 'X')) {
        base = 16;
        value += 2;
    }
    if (!*value)
        return -GR_EPROTO;
    for (; *value; value++) {
        int d = hex_digit(*value);
        if (d < 0 || (unsigned)d >= base || v > (max - (unsigned)d) / base)
            return -GR_EPROTO;
        v = v * base + (unsigned)d;
    }
    if (v > max)
        return -GR_EPROTO;
    *ret = v;
    return 0;
}

static int base64_value(char c)
{
    static const char set[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *p = c ? strchr(set, c) : NULL;
    return p ? (int)(p - set) : -1;
}

static int base64_decode(const char *s, unsigned char *ret, size_t max)
{
    size_t len = strlen(s), n = 0;
    if (!len || len % 4)
        return -GR_EPROTO;
    for (size_t i = 0; i < len; i += 4) {
        bool last = i + 4 == len;
        int pad = last && s[i + 3] == '=' ? (s[i + 2] == '=' ? 2 : 1) : 0;
        uint32_t v = 0;
        for (int j = 0; j < 4; j++) {
            int d = j >= 4 - pad ? 0 : base64_value(s[i + (size_t)j]);
            if (d < 0)
                return -GR_EPROTO;
            v = v << 6 | (uint32_t)d;
        }
        for (int j = 0; j < 3 - pad; j++) {
            if (n >= max)
                return -GR_EPROTO;
            ret[n++] = (unsigned char)(v >> (16 - 8 * j));
        }
    }
    return (int)n;
}

int tgt_text_binary(const char *value, unsigned char *ret, size_t max)
{
    if (value[0] != '0' || !value[1])
        return -GR_EPROTO;
    if (value[1] == 'b' || value[1] == 'B')
        return base64_decode(value + 2, ret, max);
    if (value[1] != 'x' && value[1] != 'X')
        return -GR_EPROTO;
    value += 2;
    size_t len = strlen(value), n = 0;
    if (!len || (len + 1) / 2 > max)
        return -GR_EPROTO;
    /* an odd number of digits has an implied leading zero */
    for (size_t i = 0; i < len;) {
        int hi = n == 0 && len % 2 ? 0 : hex_digit(value[i++]);
        int lo = hex_digit(value[i++]);
        if (hi < 0 || lo < 0)
            return -GR_EPROTO;
        ret[n++] = (unsigned char)(hi << 4 | lo);
    }
    return (int)n;
}

void tgt_text_hex(const unsigned char *p, size_t len, char *ret)
{
    static const char digits[] = "0123456789abcdef";
    *ret++ = '0';
    *ret++ = 'x';
    for (size_t i = 0; i < len; i++) {
        *ret++ = digits[p[i] >> 4];
        *ret++ = digits[p[i] & 15];
    }
    *ret = 0;
}

bool tgt_text_list_has(const char *list, const char *item)
{
    size_t len = strlen(item);
    for (const char *p = list; *p;) {
        size_t n = strcspn(p, ",");
        if (n == len && !memcmp(p, item, n))
            return true;
        p += n;
        if (*p)
            p++;
    }
    return false;
}
