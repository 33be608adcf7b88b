/* Disks whose last changes are lost, so that their maps may name what is another disk's by now: behind.c. Thread rule: the loop of the volume. */
#ifndef VMFS_BEHIND_H
#define VMFS_BEHIND_H
#include "vmfs/internal.h"

struct vbehind; /* what a volume that is being rescued knows of them */
struct vbehind *vbehind_new(const uint64_t *accepted, size_t n); /* @accepted: objects that are shown as they are; NULL: out of memory */
void vbehind_free(struct vbehind *b);
/* The journal of @host is lost, who was in @slot under @generation. */
int vbehind_host_gone(struct vbehind *b, unsigned slot, uint64_t generation, const char *host);
size_t vbehind_hosts(const struct vbehind *b); /* how many such there are, */
size_t vbehind_skips(const struct vbehind *b); /* objects of which records were left out */
const char *vbehind_host(const struct vbehind *b, size_t i);
const char *vbehind_of_lock(const struct vmfs *v, const struct vlock *l); /* and which of them held it; NULL: none [sync] */
/* What is known of object @id, whose lock was @was before anybody here took it: held from now on [sync]. */
int vbehind_seen(struct vobj *o, const struct vlock *was);
bool vbehind_accepted(const struct vmfs *v, uint64_t id); /* [sync] */
const char *vbehind_host_of(const struct vmfs *v, uint64_t id); /* of what was held here since; NULL: none that is gone had it [sync] */

/* A record of @id cannot be applied because of @r. 0: it is left out, and what follows of the object, too; else @r (fiber). */
int vrescue_skip(struct vmfs *v, uint64_t id, int r);
bool vrescue_skipped(const struct vmfs *v, uint64_t id); /* [sync] */
/* May it show another disk's bytes? Its live head is not read then. [sync] */
bool vbehind_doubtful(const struct vobj *o, const char *host);
/* The same of a snapshot: one that was home is exact; one that came with records is not when others were left out. [sync] */
bool vbehind_snap_doubtful(const struct vobj *o, uint64_t snap);
int vbehind_accept(struct vobj *o, struct gr_err *err); /* from now on it is shown as it is [sync] */
int vbehind_snap_refuse(const struct vobj *o, const struct vsnap *s, const char *name, struct gr_err *err); /* 0; -GR_EBEHIND [sync] */
#endif
