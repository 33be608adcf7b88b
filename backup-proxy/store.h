/* Store one disk of a point: read what is to be read, hash, deduplicate, compress, put into packs, and map. */
#ifndef BP_STORE_H
#define BP_STORE_H
#include "backup-proxy/repo.h"
#include "common/bdev.h"

/* What to store, ascending and disjoint, in bytes. */
struct bp_change {
    uint64_t off, len;
    bool zero; /* reads as zeros now */
};
struct bp_store_stats {
    uint64_t read;    /* bytes read from the source */
    uint64_t changed; /* bytes that the source of changes named */
    uint64_t stored;  /* bytes added to packs for data */
    uint64_t map;     /* bytes added to packs for the map */
    uint64_t deduped; /* raw bytes that were there already */
};
struct bp_store_job {
    struct bp_repo *repo;
    const struct bp_lease *lease;
    struct gr_chan *src;
    uint64_t size;             /* bytes of the disk */
    struct bp_ref parent;      /* root of the parent's map of this disk; raw == 0: none */
    uint64_t parent_size;
    bool incremental;          /* start from the parent's map, else from an empty one (the parent only helps to find known bytes) */
    /* Next change: 1, 0 at the end, negative code. Fiber. */
    int (*next)(void *arg, struct bp_change *ret, struct gr_err *err);
    void *next_arg;
    int level;                 /* zstd level; 0: 3 */
    void (*progress)(void *arg, uint64_t done, uint64_t total); /* bytes of the disk; may be NULL */
    void *progress_arg;
    const bool *cancel;        /* set to true: the job ends with -GR_ECANCELED; may be NULL */
};
/* All of it; on return 0 every pack is sealed and *ret_root (raw == 0: all zeros) is a complete map. What a failed run has put
 * into packs is a collection's business. Fiber; suspends. */
int bp_store_disk(const struct bp_store_job *job, struct bp_ref *ret_root, struct bp_store_stats *ret_stats, struct gr_err *err);
#endif
