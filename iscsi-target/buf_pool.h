/* Aligned data buffers in size classes, kept for reuse: nothing is allocated per command once warm. One per server. */
#ifndef TGT_POOL_H
#define TGT_POOL_H
#include <stdint.h>
#include <stddef.h>

#define TGT_BUF_CLASSES 8u           /* 4K 16K 64K 256K 1M 4M 16M 64M */
#define TGT_BUF_MAX (64u << 20)      /* largest buffer = largest transfer of one command */
#define TGT_BUF_KEEP (32u << 20)     /* idle bytes kept per class */

struct tgt_pool {
    struct tgt_free_buf *free[TGT_BUF_CLASSES];
    size_t idle[TGT_BUF_CLASSES];    /* bytes */
    size_t used;                     /* bytes handed out */
};
/* Class of a size up to TGT_BUF_MAX, and its bytes. */
unsigned tgt_buf_class(uint32_t len);
uint32_t tgt_buf_bytes(unsigned cls);
/* 4 KiB aligned memory of at least @len bytes (uninitialised); NULL: out of memory or beyond TGT_BUF_MAX. */
void *tgt_buf_get(struct tgt_pool *p, uint32_t len, uint32_t *ret_cap);
void tgt_buf_put(struct tgt_pool *p, void *buf, uint32_t cap);
void tgt_pool_done(struct tgt_pool *p);
#endif
