/* Commands `granary mount` and `granary unmount`. */
#ifndef CMD_MOUNT_H
#define CMD_MOUNT_H
#include "common/cmd.h"
extern const struct gr_cmd mount_cmds[];
/* Run the program granary-mount, found beside this one, with the NULL-terminated arguments @args (without its name) and
 * wait until the mount answers. Its complaint becomes @err. Also for `granary datastore mount`. */
int mount_start_program(const char *const *args, struct gr_err *err);
#endif
