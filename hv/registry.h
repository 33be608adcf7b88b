/* The VMs that one host knows: conf/vms.json of its home. Their configurations live in the datastores. */
#ifndef HV_REGISTRY_H
#define HV_REGISTRY_H
#include "common/home.h"
#include <stddef.h>

struct hv_reg_entry {
    char *path; /* "DS/NAME" */
    char uuid[37];
};
struct hv_registry {
    struct gr_home *home;
    struct hv_reg_entry *v;
    size_t count;
};
/* Read it; a missing file is an empty registry, a damaged one -GR_EFORMAT. */
int hv_registry_load(struct gr_home *home, struct hv_registry *ret, struct gr_err *err);
void hv_registry_done(struct hv_registry *r);
/* "DS/NAME", or NAME when one VM only has that last part. -ENOENT; -GR_EUSAGE: several, all named. */
int hv_registry_find(const struct hv_registry *r, const char *name, struct hv_reg_entry **ret, struct gr_err *err);
/* Both write the file before they return. Adding a known path renews its uuid. */
int hv_registry_add(struct hv_registry *r, const char *path, const char *uuid, struct gr_err *err);
int hv_registry_remove(struct hv_registry *r, const char *path, struct gr_err *err);
#endif
