/* CRC32C: reflected polynomial 0x82f63b78. The instruction has a latency of three cycles and a throughput of one, so
 * long buffers run as three streams whose results are joined by multiplying with x^(8*n) mod P. */
#include "common/crc.h"
#include <endian.h>
#include <string.h>
#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

#define POLY 0x82f63b78u

struct crc_tables {
    uint32_t slice[8][256];      /* slicing-by-8 */
    uint32_t shift_long[4][256]; /* advance a CRC over LONG zero bytes, one table per byte of the CRC */
    uint32_t shift_short[4][256];
};
#define LONG 8192u
#define SHORT 256u

static uint32_t slice_step(const uint32_t t[8][256], uint32_t crc, const uint8_t *p, size_t len)
{
    for (; len >= 8; p += 8, len -= 8) {
        uint64_t v;
        memcpy(&v, p, 8);
        v = le64toh(v) ^ crc;
        crc = t[7][v & 0xff] ^ t[6][v >> 8 & 0xff] ^ t[5][v >> 16 & 0xff] ^ t[4][v >> 24 & 0xff] ^ t[3][v >> 32 & 0xff] ^
              t[2][v >> 40 & 0xff] ^ t[1][v >> 48 & 0xff] ^ t[0][v >> 56];
    }
    while (len-- > 0)
        crc = crc >> 8 ^ t[0][(crc ^ *p++) & 0xff];
    return crc;
}

static struct crc_tables tables; /* written once, before main, by make_tables() */

static uint32_t table_crc(uint32_t crc, const uint8_t *p, size_t len)
{
    return slice_step((const uint32_t(*)[256])tables.slice, crc, p, len);
}

/* Advancing over zeros is linear: the 32 single bits are computed, every other value is a sum of them. */
static void make_shift(uint32_t out[4][256], size_t zeros)
{
    static const uint8_t zero[256];
    for (unsigned byte = 0; byte < 4; byte++)
        for (unsigned bit = 0; bit < 8; bit++) {
            uint32_t crc = 1u << (8 * byte + bit);
            for (size_t left = zeros; left > 0; left -= sizeof(zero))
                crc = table_crc(crc, zero, sizeof(zero));
            for (unsigned v = 0; v < 1u << bit; v++)
                out[byte][v | 1u << bit] = out[byte][v] ^ crc;
        }
}

__attribute__((constructor)) static void make_tables(void)
{
    for (unsigned i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? c >> 1 ^ POLY : c >> 1;
        tables.slice[0][i] = c;
    }
    for (unsigned i = 0; i < 256; i++)
        for (unsigned k = 1; k < 8; k++)
            tables.slice[k][i] = tables.slice[k - 1][i] >> 8 ^ tables.slice[0][tables.slice[k - 1][i] & 0xff];
    make_shift(tables.shift_long, LONG);
    make_shift(tables.shift_short, SHORT);
}

uint32_t gr_crc32c_table(uint32_t crc, const void *buf, size_t len)
{
    return ~table_crc(~crc, buf, len);
}

#if defined(__x86_64__)
static uint32_t shift(const uint32_t t[4][256], uint32_t crc)
{
    return t[0][crc & 0xff] ^ t[1][crc >> 8 & 0xff] ^ t[2][crc >> 16 & 0xff] ^ t[3][crc >> 24];
}

__attribute__((target("sse4.2"))) static uint64_t step8(uint64_t crc, const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return _mm_crc32_u64(crc, v);
}

/* Three streams of @block bytes each, as long as there are so many; advances *p and *len. */
__attribute__((target("sse4.2"))) static uint64_t three_streams(uint64_t crc, const uint8_t **p, size_t *len, size_t block,
                                                                const uint32_t t[4][256])
{
    const uint8_t *q = *p;
    for (; *len >= 3 * block; *len -= 3 * block, q += 2 * block) {
        uint64_t b = 0, c = 0;
        for (const uint8_t *end = q + block; q < end; q += 8) {
            crc = step8(crc, q);
            b = step8(b, q + block);
            c = step8(c, q + 2 * block);
        }
        crc = shift(t, (uint32_t)crc) ^ b;
        crc = shift(t, (uint32_t)crc) ^ c;
    }
    *p = q;
    return crc;
}

__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t start, const uint8_t *p, size_t len)
{
    uint64_t crc = ~start;
    for (; len > 0 && ((uintptr_t)p & 7); len--)
        crc = _mm_crc32_u8((uint32_t)crc, *p++);
    crc = three_streams(crc, &p, &len, LONG, (const uint32_t(*)[256])tables.shift_long);
    crc = three_streams(crc, &p, &len, SHORT, (const uint32_t(*)[256])tables.shift_short);
    for (; len >= 8; p += 8, len -= 8)
        crc = step8(crc, p);
    while (len-- > 0)
        crc = _mm_crc32_u8((uint32_t)crc, *p++);
    return ~(uint32_t)crc;
}
#endif

uint32_t gr_crc32c(uint32_t crc, const void *buf, size_t len)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2"))
        return crc32c_sse42(crc, buf, len);
#endif
    return gr_crc32c_table(crc, buf, len);
}
