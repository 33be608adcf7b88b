/* What is said of snapshots: attributes of their disk. All [sync]. */
#ifndef VMFS_NOTES_H
#define VMFS_NOTES_H
#include <stdbool.h>
#include <stdint.h>

struct gr_err;
struct vattr;
struct vmfs;
struct vobj;
struct vsnap;

/* The attribute, or NULL. */
const struct vattr *vobj_note(const struct vobj *o, const char *kind, uint64_t snap);
void vobj_note_key(const char *kind, uint64_t snap, char ret[33]);
/* Snapshots of @o were that object's before (snap_promote), under the same numbers: readers elsewhere may have pinned them there [sync]. */
bool vobj_was_of(const struct vobj *o, uint64_t object);
int vobj_heir_of(struct vobj *o, const struct vobj *from);
/* The volume says that there are such, so that no older release changes or removes what is to stay (fiber; the namespace is not locked). */
int vkept_on(struct vmfs *v, struct gr_err *err);
#define VKEPT_WHAT "templates, protected snapshots and removed disks that are kept for clones"
/* -GR_ELOCKED and who protects it, or 0. */
int vobj_protected(const struct vobj *o, const struct vsnap *s, const char *disk, struct gr_err *err);
#endif
