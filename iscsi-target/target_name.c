/* Disk names to target names and back. */
#include "common/cleanup.h"
#include "iscsi-target/target.h"
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <string.h>

static bool plain(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.';
}

/* Escaped length so far and the bytes, as far as they fit. */
static size_t encode(const char *disk, char *out, size_t cap)
{
    static const char hex[] = "0123456789abcdef";
    size_t n = 0;
    for (; *disk; disk++) {
        char piece[3];
        size_t len = 1;
        unsigned char c = (unsigned char)*disk;
        if (plain(*disk)) {
            piece[0] = *disk;
        } else if (c == '/') {
            piece[0] = ':';
        } else if (c == '-') {
            memcpy(piece, "--", 2);
            len = 2;
        } else {
            piece[0] = '-';
            piece[1] = hex[c >> 4];
            piece[2] = hex[c & 15];
            len = 3;
        }
        if (n + len <= cap)
            memcpy(out + n, piece, len);
        n += len;
    }
    return n;
}

int tgt_name_of(const char *disk, char ret[TGT_NAME_MAX + 1])
{
    static const char hex[] = "0123456789abcdef";
    size_t prefix = sizeof TGT_IQN_PREFIX - 1, cap = TGT_NAME_MAX - prefix;
    if (!*disk)
        return -EINVAL;
    memcpy(ret, TGT_IQN_PREFIX, prefix);
    size_t n = encode(disk, ret + prefix, cap);
    if (n > cap) { /* 'h' is no hex digit: no escaped name looks like this */
        uint8_t digest[32];
        if (gnutls_hash_fast(GNUTLS_DIG_SHA256, disk, strlen(disk), digest) < 0)
            return -EINVAL;
        memcpy(ret + prefix, "-h", 2);
        for (size_t i = 0; i < sizeof digest; i++) {
            ret[prefix + 2 + 2 * i] = hex[digest[i] >> 4];
            ret[prefix + 3 + 2 * i] = hex[digest[i] & 15];
        }
        n = 2 + 2 * sizeof digest;
    }
    ret[prefix + n] = 0;
    return 0;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int tgt_disk_of(const char *name, char *ret, size_t size)
{
    size_t prefix = sizeof TGT_IQN_PREFIX - 1, n = 0;
    if (strncmp(name, TGT_IQN_PREFIX, prefix) != 0 || !name[prefix])
        return -EINVAL;
    if (!strncmp(name + prefix, "-h", 2))
        return -GR_ERANGE;
    for (const char *p = name + prefix; *p; p++) {
        char c = *p;
        if (c == ':') {
            c = '/';
        } else if (c == '-' && p[1] == '-') {
            p++;
        } else if (c == '-') {
            int hi = hex_digit(p[1]), lo = hi < 0 ? -1 : hex_digit(p[2]);
            if (lo < 0 || !(hi | lo))
                return -EINVAL;
            c = (char)(hi << 4 | lo);
            p += 2;
        } else if (!plain(c)) {
            return -EINVAL;
        }
        if (n + 1 >= size)
            return -EINVAL;
        ret[n++] = c;
    }
    ret[n] = 0;
    char again[TGT_NAME_MAX + 1]; /* one spelling only: an escaped plain letter is refused */
    return tgt_name_of(ret, again) == 0 && !strcmp(again, name) ? 0 : -EINVAL;
}
