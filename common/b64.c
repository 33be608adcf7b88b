#include "common/b64.h"
#include "common/buf.h"
#include "common/err.h"
#include "common/seam.h"
#include <string.h>

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

char *gr_b64_encode(const void *data, size_t len)
{
    const uint8_t *in = data;
    if (len > SIZE_MAX / 2)
        return NULL;
    char *out = gr_alloc((len + 2) / 3 * 4 + 1), *o = out;
    if (!out)
        return NULL;
    for (size_t i = 0; i < len; i += 3) {
        size_t n = len - i;
        uint32_t v = (uint32_t)in[i] << 16 | (n > 1 ? (uint32_t)in[i + 1] << 8 : 0) | (n > 2 ? in[i + 2] : 0u);
        *o++ = alphabet[v >> 18];
        *o++ = alphabet[v >> 12 & 63];
        *o++ = n > 1 ? alphabet[v >> 6 & 63] : '=';
        *o++ = n > 2 ? alphabet[v & 63] : '=';
    }
    *o = 0;
    return out;
}

/* Value of one character, 64 for any foreign one. */
static unsigned value_of(char c)
{
    const char *p = c ? strchr(alphabet, c) : NULL;
    return p ? (unsigned)(p - alphabet) : 64;
}

int gr_b64_decode(const char *text, size_t len, struct gr_buf *ret)
{
    if (len % 4)
        return -EINVAL;
    size_t before = ret->len;
    int r = gr_buf_reserve(ret, len / 4 * 3);
    for (size_t i = 0; r >= 0 && i < len; i += 4) {
        size_t pad = i + 4 == len ? (size_t)(text[i + 3] == '=') + (text[i + 3] == '=' && text[i + 2] == '=') : 0;
        uint32_t v = 0;
        for (size_t k = 0; k < 4; k++) {
            unsigned c = k < 4 - pad ? value_of(text[i + k]) : 0;
            if (c > 63)
                r = -EINVAL;
            v = v << 6 | (c & 63);
        }
        if ((pad == 1 && (v & 0xff)) || (pad == 2 && (v & 0xffff)))
            r = -EINVAL;
        uint8_t bytes[3] = {(uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v};
        if (r >= 0)
            r = gr_buf_add(ret, bytes, 3 - pad);
    }
    if (r < 0) {
        ret->len = before;
        if (ret->data)
            ret->data[before] = 0;
        return r;
    }
    return 0;
}
