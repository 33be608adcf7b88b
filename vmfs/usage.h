/* How much space each tree of a disk names, and whose it is. Kept as numbers that every change of a map corrects, so that nobody has to
 * walk a tree to tell. docs/vmfs.md says why they add up; struct vmfs_usage_disk is how they rest.
 *
 * A unit's owner is the tree in whose time the piece was born: the oldest snapshot of a tree's past whose epoch is not older than its
 * birth, else the tree itself. A snapshot owns what would go free if no younger tree had it; so what deleting it alone gives back is what
 * it owns and the one tree that grew from it has lost.
 *
 * All but usage_ready() is [sync], and part of applying a record: right again after any replay. */
#ifndef VMFS_USAGE_H
#define VMFS_USAGE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gr_err;
struct mnode;
struct mtree;
struct vobj;
struct vsnap;
struct vmfs_rec_counts_disk;

struct vusage { /* units of data; nodes and blobs of metadata are not counted */
    uint64_t used; /* the tree names; of a snapshot that is being given back: not kept */
    uint64_t own;  /* of which it is the owner, and which somebody names */
    uint64_t lost; /* of its parent's own, the tree names no more */
};

/* Pieces [piece, piece+count) of one leaf are about to become owned, of @birth, or not owned. */
struct usage_change {
    uint64_t piece, birth;
    uint32_t count;
    bool owned;
};
void usage_map(struct vobj *o, const struct mnode *leaf, const struct usage_change *c); /* of the live head, whose @leaf it is */
/* The same for a late write: of all @n trees it belongs to, oldest first, the live head last. @parent: id of the snapshot the oldest of
 * them grew from. 0; -EAGAIN: a path is not in memory. */
int usage_map_late(struct vobj *o, struct mtree *const *tree, struct vusage *const *use, unsigned n, uint64_t parent, const struct usage_change *c);
void usage_frozen(struct vobj *o, struct vsnap *s, bool end); /* the live head has become @s; @end: and is empty */
void usage_reverted(struct vobj *o, const struct vsnap *s);   /* it is what @s is */
/* Some of what the snapshot @s owns was given back, and its cursor is about to move on: behind it what it owns is its successor's. @n: what was
 * freed, what the successor has lost there of @s' parent's own, and what trees that grew from it have lost of what it is given. */
void usage_freed(struct vobj *o, struct vsnap *s, const struct vmfs_rec_counts_disk *n);
void usage_dropped(struct vobj *o, const struct vsnap *s); /* @s, of which nothing is left, leaves the table */
void usage_unknown(struct vobj *o); /* a host that does not count changed the disk */

/* Epoch before the time of @s begins. */
uint64_t usage_before(struct vobj *o, const struct vsnap *s);
/* What deleting the snapshot alone would give back, in units: nothing while a clone or more than one tree grows from it. */
uint64_t usage_unique(struct vobj *o, const struct vsnap *s);

/* What was counted of leaves while the tree could change: where each lay, and what it had lost. */
struct usage_notes {
    struct usage_note {
        uint64_t piece, addr;
        uint32_t lost;
    } *leaf;
    size_t n, cap;
    size_t taken; /* so many of them were still good (usage_lost) */
};
void usage_notes_done(struct usage_notes *n);
/* How much of the own units of @parent, a snapshot of @parent_of, a tree of @o that grew from it has lost; neither changes meanwhile (fiber). @notes
 * (may be NULL): leaves that still lie where they lay then are not read; no unit that was freed since may have been used again. */
int usage_lost(struct vobj *o, struct mtree *tree, struct vobj *parent_of, struct vsnap *parent, struct usage_notes *notes, uint64_t *ret, struct gr_err *err);
/* Count leaves that are not about to move ahead of that. */
int usage_lost_ahead(struct vobj *o, struct mtree *tree, struct vobj *parent_of, struct vsnap *parent, struct usage_notes *notes, struct gr_err *err);
/* A disk that is about to be opened and has no numbers is counted: that reads all of its maps, once (fiber). One that is open, or of which
 * something is being given back, stays without for now, as does one of which a map cannot be read. */
void usage_ready(struct vobj *o);
/* Whatever the numbers are: count again (fiber). -EBUSY: something of it is being given back just now. */
int usage_recount(struct vobj *o, struct gr_err *err);
#endif
