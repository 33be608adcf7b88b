/* What a hostile repository may hold as a map node: what is accepted has one encoding, and is in bounds. */
#include "backup-proxy/tree.h"
#include "common/endian.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct bp_node n, back;
    static uint8_t out[REPO_NODE_MAX];
    if (size < sizeof(struct node_header_disk))
        return 0;
    unsigned level = data[4];
    uint64_t first = gr_get_le64(data + 8);
    if (level >= REPO_MAX_LEVELS || bp_node_decode(data, size, level, first, &n, NULL) < 0)
        return 0;
    for (unsigned i = 0; level == 0 && i < REPO_FANOUT; i++)
        for (unsigned k = 0; k < n.unit[i].n; k++) {
            const struct bp_part *p = &n.unit[i].part[k];
            if (p->first + p->count > REPO_PIECES || (p->src + p->count) * REPO_PIECE > p->ref.raw)
                __builtin_trap();
        }
    int len = bp_node_encode(&n, out, sizeof out);
    if (len < 0 || (len > 0 && (bp_node_decode(out, (size_t)len, level, first, &back, NULL) < 0 || memcmp(&n, &back, sizeof n))))
        __builtin_trap();
    return 0;
}
