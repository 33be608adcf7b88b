/* Devices of datastores by name: the absolute path of a regular file or a block device, or "iscsi://HOST[:PORT]/TARGET/LUN". */
#ifndef GR_BDEV_OPEN_H
#define GR_BDEV_OPEN_H
#include "common/bdev.h"

/* How to log in to logical units: CHAP, secrets in files that only their owner may read. NULLs: without. */
struct gr_device_login {
    const char *user, *secret_file;
    const char *target_user, *target_secret_file; /* who the target must prove to be */
};
struct gr_device_opts {
    const uint8_t *host_uuid; /* 16 bytes: the one process of this host that joins; its nexus is the same at each start. NULL: any other */
    bool stranger;            /* not that process, but whom it opens to try what others may: a nexus of its own, the same each time. Needs @host_uuid */
    struct gr_device_login login;
    uint64_t patience_ms;     /* for a log-in, and without a session before requests fail; 0: as it is for devices that all depends on */
};
bool gr_device_is_lun(const char *name);
/* 0; -GR_EUSAGE: neither an absolute path nor such a URL. */
int gr_device_name_check(const char *name, struct gr_err *err);
/* Open @name as a device that is to be shared or owned for good: a block device exclusively, a file never on a network file system
 * (its byte locks could not tell whether a process lives). In a fiber. */
int gr_device_open(struct gr_loop *loop, const char *name, const struct gr_device_opts *opts, struct gr_bdev **ret, struct gr_err *err);
#endif
