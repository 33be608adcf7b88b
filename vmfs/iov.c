/* Parts of scattered buffers. */
#include "vmfs/internal.h"

int iov_slice(const struct iovec *iov, int iovcnt, size_t off, size_t len, struct iovec *out)
{
    int n = 0;
    for (int i = 0; i < iovcnt && len; i++) {
        if (off >= iov[i].iov_len) {
            off -= iov[i].iov_len;
            continue;
        }
        size_t take = GR_MIN(len, iov[i].iov_len - off);
        out[n].iov_base = (char *)iov[i].iov_base + off;
        out[n++].iov_len = take;
        len -= take;
        off = 0;
    }
    return n;
}

void iov_zero(const struct iovec *iov, int iovcnt, size_t off, size_t len)
{
    for (int i = 0; i < iovcnt && len; i++) {
        if (off >= iov[i].iov_len) {
            off -= iov[i].iov_len;
            continue;
        }
        size_t take = GR_MIN(len, iov[i].iov_len - off);
        memset((char *)iov[i].iov_base + off, 0, take);
        len -= take;
        off = 0;
    }
}

void iov_get(const struct iovec *iov, int iovcnt, size_t off, void *dst, size_t len)
{
    for (int i = 0; i < iovcnt && len; i++) {
        if (off >= iov[i].iov_len) {
            off -= iov[i].iov_len;
            continue;
        }
        size_t take = GR_MIN(len, iov[i].iov_len - off);
        memcpy(dst, (char *)iov[i].iov_base + off, take);
        dst = (char *)dst + take;
        len -= take;
        off = 0;
    }
}

uint32_t iov_crc32c(const struct iovec *iov, int iovcnt, size_t off, size_t len)
{
    uint32_t crc = 0;
    for (int i = 0; i < iovcnt && len; i++) {
        if (off >= iov[i].iov_len) {
            off -= iov[i].iov_len;
            continue;
        }
        size_t take = GR_MIN(len, iov[i].iov_len - off);
        crc = gr_crc32c(crc, (char *)iov[i].iov_base + off, take);
        len -= take;
        off = 0;
    }
    return crc;
}
