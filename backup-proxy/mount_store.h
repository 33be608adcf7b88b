/* The view of a datastore: its folders, its files, and its disks as raw images, read-only, asked of the storage service. */
#ifndef MOUNT_STORE_H
#define MOUNT_STORE_H
#include "backup-proxy/mount_view.h"
#include <jansson.h>
#include <sys/types.h>

struct mount_store_opts {
    const char *path; /* "DS" or "DS/FOLDER" */
    uid_t uid;
    gid_t gid;
    /* (fiber) Call a method of the storage service (snapshot/service.h). Takes the reference of @params. */
    int (*call)(void *arg, const char *method, json_t *params, json_t **ret, struct gr_err *err);
    void *arg;
};
/* (fiber) -ENOENT, -ENOTDIR, and what the service says. @opts and its strings are copied. */
int mount_store_new(const struct mount_store_opts *opts, struct mount_view *ret, struct gr_err *err);
#endif
