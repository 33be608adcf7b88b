/* CRC32C: reflected polynomial 0x82f63b78. Long buffers are ISA-L's (carry-less multiplication where the machine has it: 90 ns for
 * 4 KiB), short ones the instruction's: its three cycles of latency per 8 bytes are less than a call and the folding at the end. */
#include "common/crc.h"
#include <endian.h>
#include <isa-l/crc.h>
#include <limits.h>
#include <string.h>
#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

#define POLY 0x82f63b78u
#define SHORT 128u /* below it the instruction is faster */

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

static uint32_t slice[8][256]; /* slicing-by-8; written once, before main, by make_tables() */

__attribute__((constructor)) static void make_tables(void)
{
    for (unsigned i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? c >> 1 ^ POLY : c >> 1;
        slice[0][i] = c;
    }
    for (unsigned i = 0; i < 256; i++)
        for (unsigned k = 1; k < 8; k++)
            slice[k][i] = slice[k - 1][i] >> 8 ^ slice[0][slice[k - 1][i] & 0xff];
}

uint32_t gr_crc32c_table(uint32_t crc, const void *buf, size_t len)
{
    return ~slice_step((const uint32_t(*)[256])slice, ~crc, buf, len);
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint64_t step8(uint64_t crc, const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return _mm_crc32_u64(crc, v);
}

__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t start, const uint8_t *p, size_t len)
{
    uint64_t crc = ~start;
    for (; len > 0 && ((uintptr_t)p & 7); len--)
        crc = _mm_crc32_u8((uint32_t)crc, *p++);
    for (; len >= 8; p += 8, len -= 8)
        crc = step8(crc, p);
    while (len-- > 0)
        crc = _mm_crc32_u8((uint32_t)crc, *p++);
    return ~(uint32_t)crc;
}
#endif

static uint32_t crc32c_long(uint32_t start, const uint8_t *p, size_t len)
{
    uint32_t crc = ~start;
    while (len) {
        size_t n = len < INT_MAX ? len : INT_MAX;
        union {
            const uint8_t *in;
            unsigned char *out;
        } part = {.in = p}; /* ISA-L has no const here */
        crc = crc32_iscsi(part.out, (int)n, crc);
        p += n;
        len -= n;
    }
    return ~crc;
}

uint32_t gr_crc32c(uint32_t crc, const void *buf, size_t len)
{
    if (len >= SHORT)
        return crc32c_long(crc, buf, len);
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2"))
        return crc32c_sse42(crc, buf, len);
#endif
    return gr_crc32c_table(crc, buf, len);
}
