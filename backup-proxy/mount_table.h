/* The mounts of one GRANARY_HOME: intents of kind "mount" (intent.h) with the detail {"dir","source"}. */
#ifndef MOUNT_TABLE_H
#define MOUNT_TABLE_H
#include "backup-proxy/intent.h"

/* Canonical path of a mount point, also when what is mounted there no longer answers: new memory. -ENOENT, -ENOTDIR. */
int mount_canonical(const char *dir, char **ret, struct gr_err *err);
/* Source and type of the topmost mount on @dir (canonical) in this process's table of mounts: 1, or 0 when nothing is
 * mounted there. */
int mount_lookup(const char *dir, char source[256], char type[64]);
/* Clean up after mount daemons that were killed: detach their dead mounts, drop their intents. Called by every command
 * that mounts or unmounts. Returns how many were cleaned. */
int mount_reap(struct gr_home *home, struct gr_err *err);
/* Unmount @dir and wait until its daemon and the daemon's helpers are gone. -ENOENT: no mount of this home there;
 * -GR_ELOCKED: in use (without @force). With @force what is open there fails with ENOTCONN. */
int mount_unmount(struct gr_home *home, const char *dir, bool force, struct gr_err *err);
#endif
