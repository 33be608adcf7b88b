#include "iscsi-target/buf_pool.h"
#include "common/seam.h"
#include <stdlib.h>

struct tgt_free_buf {
    struct tgt_free_buf *next;
};

unsigned tgt_buf_class(uint32_t len)
{
    unsigned cls = 0;
    while (tgt_buf_bytes(cls) < len)
        cls++;
    return cls;
}

uint32_t tgt_buf_bytes(unsigned cls)
{
    return 4096u << (2 * cls);
}

void *tgt_buf_get(struct tgt_pool *p, uint32_t len, uint32_t *ret_cap)
{
    if (len > TGT_BUF_MAX)
        return NULL;
    unsigned cls = tgt_buf_class(len);
    uint32_t cap = tgt_buf_bytes(cls);
    struct tgt_free_buf *b = p->free[cls];
    if (b) {
        p->free[cls] = b->next;
        p->idle[cls] -= cap;
    } else {
        b = gr_alloc_aligned(4096, cap);
        if (!b)
            return NULL;
    }
    p->used += cap;
    *ret_cap = cap;
    return b;
}

void tgt_buf_put(struct tgt_pool *p, void *buf, uint32_t cap)
{
    unsigned cls = tgt_buf_class(cap);
    struct tgt_free_buf *b = buf;
    p->used -= cap;
    if (p->idle[cls] + cap > TGT_BUF_KEEP) {
        free(buf);
        return;
    }
    b->next = p->free[cls];
    p->free[cls] = b;
    p->idle[cls] += cap;
}

void tgt_pool_done(struct tgt_pool *p)
{
    for (unsigned cls = 0; cls < TGT_BUF_CLASSES; cls++) {
        while (p->free[cls]) {
            struct tgt_free_buf *b = p->free[cls];
            p->free[cls] = b->next;
            free(b);
        }
        p->idle[cls] = 0;
    }
}
