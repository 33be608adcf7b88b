/* CRC32C (Castagnoli; RFC 3720 appendix B.4, iSCSI digests; also every Granary metadata block). */
#ifndef GR_CRC_H
#define GR_CRC_H
#include <stddef.h>
#include <stdint.h>
/* CRC32C of @len bytes continuing from @crc; start with 0. By ISA-L or the SSE4.2 instruction, else by a table. Thread-safe. */
uint32_t gr_crc32c(uint32_t crc, const void *buf, size_t len);
/* The portable implementation, for tests and machines without the instruction. */
uint32_t gr_crc32c_table(uint32_t crc, const void *buf, size_t len);
#endif
