/* A set of places in packs (pack, offset). */
#ifndef BP_PLACESET_H
#define BP_PLACESET_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
struct bp_place {
    uint64_t pack; /* 0: empty slot */
    uint32_t off;
};
struct bp_placeset { /* zero-initialised is empty */
    struct bp_place *v;
    size_t cap, n;
};
/* 1 added, 0 was there, -ENOMEM. */
int bp_placeset_add(struct bp_placeset *s, uint64_t pack, uint32_t off);
bool bp_placeset_has(const struct bp_placeset *s, uint64_t pack, uint32_t off);
void bp_placeset_done(struct bp_placeset *s);
#endif
