/* The map of a disk in a restore point: a copy-on-write radix tree over units of 64 KiB (repo_format.h). A new point writes only
 * the nodes on the paths of what changed; every root is a complete map. Functions block; those of a reader are thread-safe with
 * an own codec. */
#ifndef BP_TREE_H
#define BP_TREE_H
#include "backup-proxy/repo.h"

/* Part of a unit: pieces [first, first+count) are pieces [src, src+count) of the extent. */
struct bp_part {
    uint8_t first, count, src;
    struct bp_ref ref;
};
struct bp_unit {
    unsigned n; /* 0: reads as zeros */
    struct bp_part part[REPO_PIECES];
};
/* A decoded node. */
struct bp_node {
    unsigned level; /* 0: leaf */
    uint64_t first_unit;
    union {
        struct bp_ref child[REPO_FANOUT]; /* raw == 0: absent */
        struct bp_unit unit[REPO_FANOUT];
    };
};
/* Levels of the tree of a disk of @size bytes: 1 (a leaf alone) .. REPO_MAX_LEVELS. */
unsigned bp_tree_levels(uint64_t size);
/* Units under one slot of a node of @level. */
uint64_t bp_tree_span(unsigned level);

int bp_node_encode(const struct bp_node *n, uint8_t *out, size_t room); /* length; 0: the node is empty */
/* Rules 6 and 7; -GR_ECORRUPT with the rule that is broken. */
int bp_node_decode(const uint8_t *in, size_t len, unsigned level, uint64_t first_unit, struct bp_node *ret, struct gr_err *err);
/* Read and decode the node @ref. */
int bp_node_read(struct bp_repo *r, struct bp_codec *c, const struct bp_ref *ref, unsigned level, uint64_t first_unit, struct bp_node *ret,
                 struct gr_err *err);

/* ---- writing ---- */
struct bp_tree;
/* Start from @base (the parent's root; raw == 0: empty) of a disk that had @base_size bytes; the new one has @size. Nodes go to
 * @packer. What lies behind the new end is forgotten. */
int bp_tree_new(struct bp_repo *r, struct bp_packer *packer, const struct bp_ref *base, uint64_t base_size, uint64_t size,
                struct bp_tree **ret, struct gr_err *err);
/* Pieces [first, first+count) of @unit are those of @ref from its piece 0 on (NULL: zeros). Fastest in ascending order. */
int bp_tree_set(struct bp_tree *t, uint64_t unit, unsigned first, unsigned count, const struct bp_ref *ref, struct gr_err *err);
/* Units [from, to) read as zeros: whole subtrees at once. */
int bp_tree_clear(struct bp_tree *t, uint64_t from, uint64_t to, struct gr_err *err);
/* What the unit holds now. */
int bp_tree_get(struct bp_tree *t, uint64_t unit, struct bp_unit *ret, struct gr_err *err);
/* Write what is left; *ret_root is the new root (raw == 0: all zeros). */
int bp_tree_finish(struct bp_tree *t, struct bp_ref *ret_root, struct gr_err *err);
uint64_t bp_tree_nodes(const struct bp_tree *t); /* written */
void bp_tree_free(struct bp_tree *t);

/* ---- reading ---- */
/* Call unit() for every unit in use in [from, to), ascending; node() before the node behind @ref is read: 0 skips it, 1 reads it,
 * negative ends. Either may be NULL. */
struct bp_walk_ops {
    int (*node)(void *arg, const struct bp_ref *ref, unsigned level, uint64_t first_unit);
    int (*unit)(void *arg, uint64_t unit, const struct bp_unit *u);
};
int bp_tree_walk(struct bp_repo *r, struct bp_codec *c, const struct bp_ref *root, uint64_t size, uint64_t from, uint64_t to,
                 const struct bp_walk_ops *ops, void *arg, struct gr_err *err);
#endif
