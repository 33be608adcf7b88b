/* Devices before they are part of a datastore (service_creation.c); only snapshot/service_*.c include it. Everything in a fiber. */
#ifndef SNAPSHOT_SERVICE_CREATION_H
#define SNAPSHOT_SERVICE_CREATION_H
#include "snapshot/service_int.h"

struct snap_creation {
    struct gr_loop *loop;
    const char *paths[VMFS_DEVICES_MAX];
    bool made[VMFS_DEVICES_MAX]; /* made or lengthened here, to be undone */
    bool was_empty[VMFS_DEVICES_MAX];
    struct gr_bdev *bdevs[VMFS_DEVICES_MAX];
    unsigned n;
    uint32_t tested[VMFS_DEVICES_MAX]; /* VMFS_TESTED_* of those that were tried */
    uint64_t size;
    bool has_size;
    enum vmfs_timing timing;
    bool one_host; /* nothing is shared: a LUN need not fence anybody, and is not entered or tried */
    uint8_t host_uuid[16];
    struct gr_device_opts device;
};
int snap_creation_open(struct snap_creation *c, struct snap_svc *s, const struct gr_device_login *login, struct gr_err *err);
void snap_creation_close(struct snap_creation *c); /* the devices that are open */
void snap_creation_undo(struct snap_creation *c);  /* and the files that were made */
/* A missing file is made; an empty one gets its length; anything else is taken as it is. */
int snap_creation_prepare(struct snap_creation *c, unsigned i, struct gr_err *err);
/* Open device @i and see that it is free; a LUN is tried. @own: a datastore whose traces are no reason to refuse; NULL: none. */
int snap_creation_check(struct snap_creation *c, unsigned i, bool force, const char *own, struct gr_err *err);
/* Register with the fence of a LUN under a key of the moment. */
int snap_creation_enter(const struct snap_creation *c, struct gr_bdev *bdev, struct gr_err *err);
/* Even --force does not take a device of a datastore that is registered here, joined or not. @but: not asked; may be NULL. */
int snap_creation_free_of(struct snap_svc *s, const struct snap_creation *c, const struct snap_ds *but, struct gr_err *err);
/* VMFS_TESTED_* by their names. */
json_t *snap_tested_row(uint32_t tested);
bool snap_same_device(const char *one, const char *other);
#endif
