/* Buffers in which writes of encrypted disks are encrypted, for the caller's must stay as they are: pooled, and bounded in sum. What has
 * one waits for the device only, so whoever waits for one gets it. */
#include "common/seam.h"
#include "vmfs/internal.h"

#define IN_USE_MAX ((size_t)64 << 20) /* bytes; one request that is larger may have it alone */
static const size_t class_bytes[VBOUNCE_CLASSES] = { 4096, 65536, 1u << 20 };
static const unsigned class_kept[VBOUNCE_CLASSES] = { 256, 64, 8 };

struct kept { /* in a free buffer */
    struct kept *next;
};

static unsigned class_of(size_t len)
{
    unsigned c = 0;
    while (c < VBOUNCE_CLASSES && len > class_bytes[c])
        c++;
    return c;
}

uint8_t *vbounce_get(struct vmfs *v, size_t len)
{
    struct vbounce *b = &v->bounce;
    unsigned c = class_of(len);
    size_t bytes = c < VBOUNCE_CLASSES ? class_bytes[c] : (len + VMFS_UNIT - 1) / VMFS_UNIT * VMFS_UNIT;
    if (b->in_use && (bytes > IN_USE_MAX || b->in_use > IN_USE_MAX - bytes))
        return NULL;
    struct kept *k = c < VBOUNCE_CLASSES ? b->kept[c] : NULL;
    if (k) {
        b->kept[c] = k->next;
        b->n_kept[c]--;
    } else if (!(k = gr_alloc_aligned(VMFS_UNIT, bytes))) {
        return NULL;
    }
    b->in_use += bytes;
    return (uint8_t *)k;
}

void vbounce_put(struct vmfs *v, uint8_t *buf, size_t len)
{
    struct vbounce *b = &v->bounce;
    unsigned c = class_of(len);
    b->in_use -= c < VBOUNCE_CLASSES ? class_bytes[c] : (len + VMFS_UNIT - 1) / VMFS_UNIT * VMFS_UNIT;
    if (c < VBOUNCE_CLASSES && b->n_kept[c] < class_kept[c]) {
        struct kept *k = (struct kept *)buf;
        k->next = b->kept[c];
        b->kept[c] = k;
        b->n_kept[c]++;
    } else {
        free(buf);
    }
    gr_fqueue_wake_all(&b->freed);
}

int vbounce_wait(struct vmfs *v, size_t len, uint8_t **ret)
{
    while (!(*ret = vbounce_get(v, len))) {
        if (!v->bounce.in_use)
            return -ENOMEM;
        gr_fqueue_wait(&v->bounce.freed);
    }
    return 0;
}

void vbounce_done(struct vmfs *v)
{
    for (unsigned c = 0; c < VBOUNCE_CLASSES; c++)
        for (struct kept *k; (k = v->bounce.kept[c]); free(k))
            v->bounce.kept[c] = k->next;
}
