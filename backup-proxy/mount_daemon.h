/* The life of a mount: a daemon that is there from the moment the mount answers until it is unmounted. */
#ifndef MOUNT_DAEMON_H
#define MOUNT_DAEMON_H
#include "backup-proxy/mount_view.h"
#include "common/loop.h"

struct mount_daemon_opts {
    const char *dir;       /* mount point, as given by the user */
    const char *source;    /* what is mounted, for the table of mounts */
    bool allow_other;
    bool foreground;       /* stay in the foreground; ^C unmounts */
    const char *hold;      /* a datastore that the storage daemon serves (mount_hold.h), in place of a view; else NULL */
    /* Makes the view, in a fiber of the daemon's loop. */
    int (*make_view)(void *arg, struct gr_loop *loop, struct mount_view *ret, struct gr_err *err);
    void *arg;
    void (*release)(void *arg, struct gr_loop *loop); /* after the view is freed, in a fiber; may be NULL */
};
/* Mount and become a daemon. Returns in the starting process only: 0 once the mount answers (foreground: once it is
 * unmounted), or a negative code with the reason and nothing left behind. Call it before there is any loop or thread. */
int mount_daemon_run(const struct mount_daemon_opts *opts, struct gr_err *err);
#endif
