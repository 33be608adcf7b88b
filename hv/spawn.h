/* Starting the engine's process: own session, own user, its descriptors and nothing else; of the environment it gets PATH,
 * LANG and GRANARY_HOME, by which one can tell whose it is. */
#ifndef HV_SPAWN_H
#define HV_SPAWN_H
#include "common/err.h"
#include <sys/types.h>

struct hv_spawn {
    char *const *argv;   /* argv[0]: absolute path of the program */
    const int *fds;      /* become descriptors 3, 4, … of the child */
    unsigned fd_count;
    int output;          /* becomes standard output and error; -1: /dev/null */
    unsigned uid;        /* user and group to run as; 0: as we are */
    const char *group_of; /* also a member of the group that owns this file (/dev/kvm); NULL: none */
};
/* Start it. A program that cannot be executed is reported here, not later. *ret_pid: a child of this process. */
int hv_spawn(const struct hv_spawn *s, pid_t *ret_pid, struct gr_err *err);
/* Start time of @pid in clock ticks since boot (field 22 of /proc/PID/stat): with the number it names one process for ever.
 * 0 or -ESRCH. */
int hv_process_start_time(pid_t pid, unsigned long long *ret);
#endif
