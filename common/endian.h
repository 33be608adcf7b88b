/* Bytes on disk (little-endian) and on the wire (big-endian) have their own one-field types, so that arithmetic on
 * them does not compile; each is read and written through the accessors below only. */
#ifndef GR_ENDIAN_H
#define GR_ENDIAN_H
#include <endian.h>
#include <stddef.h>
#include <stdint.h>

#define GR_ENDIAN_TYPE(name, bits, get, set)                          \
    typedef struct {                                                  \
        uint##bits##_t raw;                                           \
    } __attribute__((packed)) name;                                   \
    static inline uint##bits##_t name##_get(name v) { return get(v.raw); } \
    static inline name name##_of(uint##bits##_t v) { return (name){set(v)}; }
GR_ENDIAN_TYPE(gr_le16, 16, le16toh, htole16)
GR_ENDIAN_TYPE(gr_le32, 32, le32toh, htole32)
GR_ENDIAN_TYPE(gr_le64, 64, le64toh, htole64)
GR_ENDIAN_TYPE(gr_be16, 16, be16toh, htobe16)
GR_ENDIAN_TYPE(gr_be32, 32, be32toh, htobe32)
GR_ENDIAN_TYPE(gr_be64, 64, be64toh, htobe64)

/* Big-endian fields inside byte strings (CDBs, parameter data). */
static inline uint16_t gr_get_be16(const void *p) { return (uint16_t)(((const uint8_t *)p)[0] << 8 | ((const uint8_t *)p)[1]); }
static inline uint32_t gr_get_be24(const void *p) { const uint8_t *b = (const uint8_t *)p; return (uint32_t)b[0] << 16 | (uint32_t)b[1] << 8 | b[2]; }
static inline uint32_t gr_get_be32(const void *p) { gr_be32 v; __builtin_memcpy(&v, p, 4); return gr_be32_get(v); }
static inline uint64_t gr_get_be64(const void *p) { gr_be64 v; __builtin_memcpy(&v, p, 8); return gr_be64_get(v); }
static inline void gr_put_be16(void *p, uint16_t v) { gr_be16 t = gr_be16_of(v); __builtin_memcpy(p, &t, 2); }
static inline void gr_put_be24(void *p, uint32_t v) { uint8_t *b = (uint8_t *)p; b[0] = (uint8_t)(v >> 16); b[1] = (uint8_t)(v >> 8); b[2] = (uint8_t)v; }
static inline void gr_put_be32(void *p, uint32_t v) { gr_be32 t = gr_be32_of(v); __builtin_memcpy(p, &t, 4); }
static inline void gr_put_be64(void *p, uint64_t v) { gr_be64 t = gr_be64_of(v); __builtin_memcpy(p, &t, 8); }
static inline uint16_t gr_get_le16(const void *p) { gr_le16 v; __builtin_memcpy(&v, p, 2); return gr_le16_get(v); }
static inline uint32_t gr_get_le32(const void *p) { gr_le32 v; __builtin_memcpy(&v, p, 4); return gr_le32_get(v); }
static inline uint64_t gr_get_le64(const void *p) { gr_le64 v; __builtin_memcpy(&v, p, 8); return gr_le64_get(v); }
static inline void gr_put_le16(void *p, uint16_t v) { gr_le16 t = gr_le16_of(v); __builtin_memcpy(p, &t, 2); }
static inline void gr_put_le32(void *p, uint32_t v) { gr_le32 t = gr_le32_of(v); __builtin_memcpy(p, &t, 4); }
static inline void gr_put_le64(void *p, uint64_t v) { gr_le64 t = gr_le64_of(v); __builtin_memcpy(p, &t, 8); }

#define GR_SIZE(type, n) _Static_assert(sizeof(type) == (n), #type " must be " #n " bytes")
#define GR_LAYOUT(type, field, off) _Static_assert(offsetof(type, field) == (off), #type "." #field " must be at " #off)
#endif
