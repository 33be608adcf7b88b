/* A view (mount_view.h) mounted with FUSE: read-only, nosuid, nodev. Requests run as fibers of the loop. This file and
 * main_granary-mount.c are the only users of libfuse3. */
#ifndef MOUNT_FUSE_H
#define MOUNT_FUSE_H
#include "backup-proxy/mount_view.h"
#include "common/loop.h"

struct mount_fuse;
struct mount_fuse_opts {
    const char *dir;    /* an existing directory */
    const char *source; /* shown in the table of mounts: "granary:REPO/POINT" */
    bool allow_other;   /* other users may enter; then the guest's owners and modes are enforced */
};
/* Mount; takes over @view (freed by mount_fuse_free, not on failure). @ready(arg) is called once the kernel talks to us,
 * @gone(arg) once the mount is no more and nothing is under way. */
int mount_fuse_open(struct gr_loop *loop, const struct mount_view *view, const struct mount_fuse_opts *opts, void (*ready)(void *arg),
                    void (*gone)(void *arg), void *arg, struct mount_fuse **ret, struct gr_err *err);
/* Detach the mount point; @gone follows when open files allow. */
void mount_fuse_detach(struct mount_fuse *m);
void mount_fuse_free(struct mount_fuse *m); /* fiber, after @gone; NULL allowed */
#endif
