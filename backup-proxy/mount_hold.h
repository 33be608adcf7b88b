/* A mount that another process serves: the kernel's requests are read by the storage daemon, so that data takes no way around; the mount is held
 * here, and given to the next daemon when one ends. Where the kernel can give out requests a second time (Linux 6.9), nobody who uses the mount
 * sees more of that than a pause; else the mount ends with the daemon. */
#ifndef MOUNT_HOLD_H
#define MOUNT_HOLD_H
#include "backup-proxy/mount_fuse.h"
#include "common/home.h"

struct mount_hold;
/* (fiber) Mount @datastore, "DATASTORE[/FOLDER]", for reading and writing, and have the daemon of @home serve it. @ready(arg) is called once it
 * answers, @gone(arg) once the mount is no more. Nothing stays behind when it fails. */
int mount_hold_open(struct gr_loop *loop, struct gr_home *home, const char *datastore, const struct mount_fuse_opts *opts, void (*ready)(void *arg),
                    void (*gone)(void *arg), void *arg, struct mount_hold **ret, struct gr_err *err);
void mount_hold_detach(struct mount_hold *h); /* what is open in it fails; @gone follows */
void mount_hold_free(struct mount_hold *h); /* (fiber) after @gone, or when it failed; NULL allowed */
#endif
