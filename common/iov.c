/* Vectors of buffers. */
#include "common/iov.h"
#include "common/crc.h"
#include <string.h>

enum what { GET, PUT, ZERO, DIFF };

/* Walks the pieces of [off, off+len); returns how far it got (DIFF stops at a difference). */
static size_t walk(enum what what, const struct iovec *iov, int iovcnt, uint64_t off, uint8_t *flat, const uint8_t *cflat, size_t len)
{
    size_t pos = 0;

    for (int i = 0; i < iovcnt && pos < len; i++) {
        if (off >= iov[i].iov_len) {
            off -= iov[i].iov_len;
            continue;
        }
        uint8_t *p = (uint8_t *)iov[i].iov_base + off;
        size_t n = iov[i].iov_len - (size_t)off;
        if (n > len - pos)
            n = len - pos;
        off = 0;
        switch (what) {
        case GET:
            memcpy(flat + pos, p, n);
            break;
        case PUT:
            memcpy(p, cflat + pos, n);
            break;
        case ZERO:
            memset(p, 0, n);
            break;
        case DIFF:
            if (memcmp(p, cflat + pos, n)) {
                while (*p == cflat[pos])
                    p++, pos++;
                return pos;
            }
            break;
        }
        pos += n;
    }
    return pos;
}

void gr_iov_get(const struct iovec *iov, int iovcnt, uint64_t off, void *to, size_t len)
{
    walk(GET, iov, iovcnt, off, to, NULL, len);
}

void gr_iov_put(const struct iovec *iov, int iovcnt, uint64_t off, const void *from, size_t len)
{
    walk(PUT, iov, iovcnt, off, NULL, from, len);
}

void gr_iov_zero(const struct iovec *iov, int iovcnt, uint64_t off, size_t len)
{
    walk(ZERO, iov, iovcnt, off, NULL, NULL, len);
}

size_t gr_iov_diff(const struct iovec *iov, int iovcnt, uint64_t off, const void *with, size_t len)
{
    return walk(DIFF, iov, iovcnt, off, NULL, with, len);
}

int gr_iov_rest(const struct iovec *iov, int iovcnt, uint64_t off, struct iovec *out, int max)
{
    int n = 0;

    for (int i = 0; i < iovcnt && n < max; i++) {
        if (off >= iov[i].iov_len) {
            off -= iov[i].iov_len;
            continue;
        }
        out[n++] = (struct iovec){(uint8_t *)iov[i].iov_base + off, iov[i].iov_len - (size_t)off};
        off = 0;
    }
    return n;
}

int gr_iov_slice(const struct iovec *iov, int iovcnt, uint64_t off, size_t len, struct iovec *out)
{
    int n = gr_iov_rest(iov, iovcnt, off, out, iovcnt), kept = 0;

    while (kept < n && len) {
        if (out[kept].iov_len > len)
            out[kept].iov_len = len;
        len -= out[kept++].iov_len;
    }
    return kept;
}

uint32_t gr_iov_crc32c(const struct iovec *iov, int iovcnt, uint64_t off, size_t len)
{
    uint32_t crc = 0;

    for (int i = 0; i < iovcnt && len; i++) {
        if (off >= iov[i].iov_len) {
            off -= iov[i].iov_len;
            continue;
        }
        size_t n = iov[i].iov_len - (size_t)off;
        if (n > len)
            n = len;
        crc = gr_crc32c(crc, (const uint8_t *)iov[i].iov_base + off, n);
        len -= n;
        off = 0;
    }
    return crc;
}
