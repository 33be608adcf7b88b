/* Quotas of folders, inside vmfs/ and snapshot/: see quota.c. */
#ifndef VMFS_QUOTA_H
#define VMFS_QUOTA_H
#include <stdbool.h>
#include <stdint.h>

struct gr_err;
struct vmfs;
struct vobj;

/* May @o hold @growth units more than it does (with what is under way)? [sync] */
bool quota_fits(const struct vobj *o, int64_t growth);
/* What it was granted and does not hold is no longer granted; home with the next checkpoint [sync]. */
void quota_give_back(struct vobj *o);
/* Wait until it may (fiber). 0; -GR_ENOSPACE: a folder above it has no room, or the write that asks is late (dop_late); -GR_EFENCED. */
int quota_room(struct vobj *o, int64_t growth, uint64_t epoch);

/* The namespace is locked. May an object be made in directory @dir that holds @units from the beginning? -GR_ENOSPACE and which folder. */
int quota_may_create(struct vmfs *v, uint64_t dir, uint64_t units, struct gr_err *err);
/* The namespace is locked. May @id, a directory (@dir) or an object, move from the directory @from to @to? */
int quota_may_move(struct vmfs *v, uint64_t id, bool dir, uint64_t from, uint64_t to, struct gr_err *err);
#endif
