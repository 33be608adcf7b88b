/* The prison of granary-fsread: after fsread_sandbox() the process has its one socket and nothing else. */
#ifndef FSREAD_SANDBOX_H
#define FSREAD_SANDBOX_H
#include <stddef.h>
/* Give up everything but descriptor @keep_fd: other descriptors closed, root changed to an empty directory that no longer
 * has a name and uid/gid 65534 (as root), a Landlock rule set that allows no path (otherwise), no new privileges, limits
 * on memory (@max_memory bytes of address space, 0: none), files and processes, and a seccomp list of system calls that
 * cannot open, connect, start or signal anything; any other call kills the process. Returns 0, or a negative errno with
 * the name of the failed step in *ret_step (static): the caller must then end. One-way; single-threaded process. */
int fsread_sandbox(int keep_fd, size_t max_memory, const char **ret_step);
#endif
