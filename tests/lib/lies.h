/* Blocks of metadata of volumes in memory, for tests that change them and put their checksums right. */
#ifndef LIES_H
#define LIES_H
#include "common/bdev.h"
#include "vmfs/internal.h"

#define LIES_DEVICES 3u
#define LIES_BLOCKS 8192u

struct lies_block {
    unsigned dev;
    uint64_t unit;
    uint32_t units;
    unsigned type;
    int twin; /* its other copy, or -1 */
};
struct lies_image {
    struct gr_mem *mem[LIES_DEVICES];
    uint64_t units[LIES_DEVICES];
    unsigned n_dev;
    struct lies_block at[LIES_BLOCKS]; /* where a block begins */
    unsigned n, kinds;                 /* kinds: a bit for each type there is */
};
/* Find all blocks, and which are copies of each other. */
void lies_find(struct lies_image *m);
/* The bytes of a block; new memory. */
uint8_t *lies_load(const struct lies_image *m, const struct lies_block *at);
/* Write it with a checksum that is right, in place of the other copy, too, when @twin: else the newer one counts. Frames that come behind it in its
 * journal follow it as they did before. */
void lies_store(const struct lies_image *m, const struct lies_block *at, uint8_t *b, bool twin);

/* A number in a block. */
struct lies_field {
    const char *name; /* NULL: a word of what has no fixed place */
    uint32_t off, size;
};
/* The @i-th field of a block that has @b in it: false, there are no more. First those that have names, then each word of variable parts that are in use. */
bool lies_field(const struct lies_block *at, const uint8_t *b, unsigned i, struct lies_field *ret);
#endif
