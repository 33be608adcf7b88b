/* The namespace: folders, names, objects that are made and removed (ns.c, ns_make.c, ns_end.c, hidden.c). Part of vmfs/internal.h. Thread rule: the loop
 * of the volume. */
#ifndef VMFS_NS_H
#define VMFS_NS_H
#include "vmfs/vmfs.h"

struct vdirent;
struct vobj;
/* Between ns_begin() and ns_end(): a directory of the tree, its entries. */
int dir_load(struct vmfs *v, uint64_t id, struct vobj **ret, struct gr_err *err);
struct vdirent *dir_find(struct vobj *dir, const char *name, size_t n);                    /* [sync] */
int dir_add(struct vobj *dir, const char *name, size_t n, uint64_t id, uint16_t type);     /* [sync] */
void dir_remove(struct vobj *dir, uint64_t id);                                            /* [sync] */
int dying_add(struct vmfs *v, uint64_t id, uint16_t type, struct gr_err *err);
/* Lock the namespace; home with what changed (unless @r < 0) and unlock. */
int ns_begin(struct vmfs *v, struct vobj **ret_root, struct gr_err *err);
/* Where no name changes: to look, or to write the superblock alone, by which a full volume grows; it takes no room. */
int ns_begin_bare(struct vmfs *v, struct vobj **ret_root, struct gr_err *err);
/* Between them: the directory of the last component (@make: missing ones are made), and the last directory of the path that there is. */
int ns_walk_parent(struct vmfs *v, struct vobj *root, const char *path, bool make, struct vobj **ret_dir, const char **ret_name, struct gr_err *err);
int ns_walk_existing(struct vmfs *v, struct vobj *root, const char *path, struct vobj **ret, struct gr_err *err);
/* Without the lock, in what is home. */
int ns_lookup(struct vmfs *v, const char *path, uint64_t *ret_id, enum vmfs_type *ret_type, struct gr_err *err);
int ns_keepsake(const struct vobj *o, const char *path, struct gr_err *err); /* -GR_ELOCKED: a template, or one of its snapshots is protected */
int ns_must_be_free(struct vmfs *v, const char *path, struct gr_err *err); /* -EEXIST, or what is wrong with it */
int ns_dir(struct vmfs *v, const char *path, struct vobj **ret, struct gr_err *err); /* a directory, between begin and end */
int ns_end(struct vmfs *v, int r, struct gr_err *err);
int vmfs_refresh(struct vmfs *v, struct gr_err *err); /* grow.c: learn that another host grew the volume */
void vobj_adopt(struct vobj *o); /* object.c: a peeked object joins the table of those held here [sync] */
/* New objects at all @paths, or at none; they and their names go home in one checkpoint, so no more than vmfs_create_max()
 * objects, new folders included. */
struct ns_many {
    enum vmfs_type type;
    int (*init)(void *arg, struct vobj *o);  /* [sync] fills its content before it becomes visible; may be NULL */
    void (*undo)(void *arg, struct vobj *o); /* [sync] of one that init() was called for: it comes to nothing; may be NULL */
    void *arg;
};
int vmfs_create_many(struct vmfs *v, const char *const *paths, unsigned n, const struct ns_many *m, struct gr_err *err);
/* New object at @path; init(arg, o) [sync] fills its content before it becomes visible. */
int vmfs_create_with(struct vmfs *v, const char *path, enum vmfs_type type, int (*init)(void *arg, struct vobj *o), void *arg, struct gr_err *err);
/* The object at @from takes the name @to over; what had it goes. */
int ns_replace(struct vmfs *v, const char *from, const char *to, struct gr_err *err);
void ns_destroy(struct vobj *o);              /* a removed object's content goes, in the background */
int ns_bury(struct vobj *o);                  /* … and its inode; 0: @o is gone (fiber) */
/* The origin of a clone, held for one that lets go of it: between them it is in use. */
void origin_let_go(struct vobj *origin, uint64_t snap, const struct vobj *dying); /* [sync] */
void origin_done(struct vobj *origin);        /* origin->users was raised; NULL allowed (fiber) */
int hidden_allowed(struct vobj *o, struct gr_err *err); /* may it be removed while there are clones of it: does every host know of such? */
/* hidden.c: what is deleted keeps its name, and the directory it lay in, while there are clones of it [sync] */
int hidden_name(struct vobj *o, const char *path, uint64_t folder, struct gr_err *err);
uint64_t hidden_from(const struct vobj *o, char ret_path[VMFS_PATH_MAX + 1]); /* both: 0, "" when it is not one of those [sync] */
void ns_undo(struct vmfs *v, struct vobj *o); /* an operation failed: forget what it made */
void inode_clear(struct vmfs *v, struct vobj *o); /* [sync] */
int ns_format_root(struct vmfs *v, struct gr_err *err); /* the root and the directory of dying objects */
void ns_resume(struct vmfs *v); /* go on with what a host that is gone left dying (background) [sync] */
#endif
