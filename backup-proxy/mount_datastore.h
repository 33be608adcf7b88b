/* The view of a datastore: its folders, its files, and each virtual disk as a raw file of its size, all read-only. Asks the
 * storage service (snapshot/service.h) through functions of the program, so that nothing here depends on where it runs. */
#ifndef MOUNT_DATASTORE_H
#define MOUNT_DATASTORE_H
#include "backup-proxy/mount_view.h"
#include "common/bdev.h"
#include <jansson.h>

struct mount_datastore_opts {
    const char *name;  /* of the datastore */
    uid_t uid;         /* owner shown */
    gid_t gid;
    /* (fiber) Run a method of the storage service; takes the reference of @params. */
    int (*call)(void *arg, const char *method, json_t *params, json_t **ret, struct gr_err *err);
    /* (fiber) Bytes of the disk "DS/PATH" as they are now. */
    int (*open_disk)(void *arg, const char *disk, struct gr_bdev **ret, struct gr_err *err);
    void *arg;
};
/* (fiber) -ENOENT: no such datastore. */
int mount_datastore_new(struct gr_loop *loop, const struct mount_datastore_opts *opts, struct mount_view *ret, struct gr_err *err);
#endif
