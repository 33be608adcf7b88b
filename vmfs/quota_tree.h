/* Folders with limits, and what is below them: quota.c decides by it. The volume's loop; in a fiber unless marked [sync]. */
#ifndef VMFS_QUOTA_TREE_H
#define VMFS_QUOTA_TREE_H
#include "vmfs/internal.h"

struct qdir {
    uint64_t id;
    size_t parent; /* index; of the root: 0 */
    uint64_t limit, used, granted;
    char *name;
    bool limited; /* by itself, or a folder above */
};
struct qkept { /* removed, and kept for its clones */
    size_t dir; /* index */
    uint64_t units;
};
struct qtree {
    struct vmfs *v;
    struct qdir *d;
    size_t n, cap;
    struct qkept *kept; /* of limited folders */
    size_t n_kept;
    uint64_t want; /* object or directory to find */
    size_t found;  /* index of the directory that holds it, or of itself; SIZE_MAX */
};

/* All directories, and what is below those that are limited; @want: what is to be found, or 0. qtree_done() it [sync]. */
int qtree_make(struct vmfs *v, uint64_t want, struct qtree *t, struct gr_err *err);
void qtree_done(struct qtree *t);
void qtree_path(const struct qtree *t, size_t at, char *ret, size_t size); /* of the directory at index @at [sync] */
/* Units of an object: what it has, with what it was promised; and what it may have [sync]. */
uint64_t quota_holds(const struct vobj *o);
uint64_t quota_granted(const struct vobj *o);
#endif
