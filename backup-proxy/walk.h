/* Walk the extents of a bdev in order, merged, so that callers see long runs whatever the map below looks like.
 * A source that cannot tell its extents is walked as one run of data. Fiber only. */
#ifndef BP_WALK_H
#define BP_WALK_H
#include "common/bdev.h"

#define BP_WALK_BATCH 1024
struct bp_walk {
    struct gr_chan *ch;             /* borrowed */
    const struct gr_bookmark *base; /* borrowed; NULL: everything counts as changed */
    uint64_t size;                  /* bytes of the bdev */
    uint64_t off;                   /* next byte to ask for */
    unsigned i, n;
    bool blind; /* the source has no extents */
    struct gr_extent held;
    bool have_held;
    struct gr_extent batch[BP_WALK_BATCH];
};

/* Start at byte 0 of @ch, which holds @size bytes. */
void bp_walk_init(struct bp_walk *w, struct gr_chan *ch, uint64_t size, const struct gr_bookmark *base);
/* Next run of bytes that agree in (reads as zeros, changed): 1 and *ret, 0 at the end, negative code on failure:
 * -EOPNOTSUPP or -ENOENT when the source cannot tell what changed since the base. */
int bp_walk_next(struct bp_walk *w, struct gr_extent *ret);
/* 1 when all @len bytes at @p are zero. */
int bp_is_zero(const void *p, size_t len);
#endif
