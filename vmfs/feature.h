/* Whom a volume is for: releases that know its features; one host alone where nothing fences. Part of vmfs/internal.h. */
#ifndef VMFS_FEATURE_H
#define VMFS_FEATURE_H
#include "common/err.h"
#include <stdbool.h>
#include <stdint.h>

struct vmfs;
struct vsuper;
struct vslot;

/* ---------- feature.c: releases of different age on one volume ---------- */
/* Does every host that has joined know it? -GR_EVERSION names one that does not. @what: the feature, as the message calls it. */
int vfeature_all_know(struct vmfs *v, uint64_t bit, const char *what, struct gr_err *err);
/* Switch on an incompat feature that is not on yet; the namespace is locked. -GR_EVERSION: a host that has joined does not know it. @what: the feature. */
int vfeature_on(struct vmfs *v, uint64_t bit, const char *what, struct gr_err *err);
int vfeature_check(const struct vmfs *v, const struct vsuper *s, struct gr_err *err); /* may we use such a volume? -GR_EVERSION */

/* ---------- alone.c: logical units that fence nobody ---------- */
bool valone_found(struct vmfs *v); /* the devices, which are open, hold such a volume; nothing is registered */
int valone_join(struct vmfs *v, struct gr_err *err); /* a slot, when nobody else has one */
bool valone_declared_gone(const struct vmfs *v, const struct vslot *s);
bool valone_lost(struct vmfs *v); /* our slot is another's */
#endif
