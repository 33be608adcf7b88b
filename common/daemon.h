/* Starting, announcing and ending our daemons without an init system, and beside one (systemd's notification).
 *
 * A starter runs the program with "--ready-fd N"; the daemon writes "ok\n", or "CODE sentence\n" (gr_code_name), to that
 * descriptor when it knows. Which process serves a socket is asked of the kernel (SO_PEERCRED), not of a pid file. */
#ifndef GR_DAEMON_H
#define GR_DAEMON_H
#include "common/fiber.h"
#include <sys/types.h>

/* ---- for whoever starts and ends them; all in fibers ---- */
/* Run @argv (NULL-terminated; argv[0] is the path of the program) detached, with "--ready-fd N" appended and its output
 * appended to the file @log, and wait until it is ready. Its sentence of failure comes back in @err. -ETIMEDOUT: it is ended. */
int gr_daemon_start(const char *const *argv, const char *log, unsigned timeout_ms, struct gr_err *err);
/* The process that listens on the unix socket @path; 0: nobody. */
pid_t gr_daemon_pid(const char *path);
/* SIGTERM to it, and wait until the process is gone. 0; 1: nobody was there; -ETIMEDOUT. */
int gr_daemon_stop(const char *path, const char *program, unsigned timeout_ms, struct gr_err *err);
/* Path of a program of ours: beside the running one. New memory, NULL: it is not there. Any context. */
char *gr_program_path(const char *name);

/* ---- for the daemon itself; any context ---- */
/* The arguments of a daemon that people do not start by hand: "--help", "--ready-fd N", a flag and a name where it takes them. */
struct gr_daemon_args {
    const char *usage;
    const char *flag; /* NULL: none */
    bool takes_name;  /* one must be given */
    bool flagged;     /* from here on what was found */
    const char *name;
    int ready_fd; /* -1: none */
};
/* -1: go on; else the exit status of a program that has nothing more to do. */
int gr_daemon_args(int argc, char **argv, struct gr_daemon_args *a);
/* Tell the starter (descriptor @ready_fd, -1: none) and systemd: ready (@code 0), or failed with @code and the sentence @text.
 * Closes @ready_fd. */
void gr_daemon_ready(int ready_fd, int code, const char *text);
/* Tell systemd that the end has begun. */
void gr_daemon_stopping(void);
/* (fiber) Hold the lock file @path as long as *ret_fd is open. One that is just ending still holds it for a moment, so it is tried for
 * @patience_ms; -GR_ELOCKED: it is held all the same, and @err is the caller's to word. */
int gr_daemon_lock(const char *path, unsigned patience_ms, int *ret_fd, struct gr_err *err);
/* Write the pid file; gr_daemon_pidfile_remove() when the process ends. Another process' file is left alone: one that failed to take
 * its place may be what ends. */
int gr_daemon_pidfile(const char *path, struct gr_err *err);
void gr_daemon_pidfile_remove(const char *path);
/* No core dumps (they would hold secrets and guests' data), no new privileges by exec, and, for root, only what opening
 * devices, files and ports of others needs: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_NET_BIND_SERVICE,
 * CAP_SYS_RAWIO, and what the login process sheds itself (CAP_SETUID, CAP_SETGID, CAP_SYS_CHROOT). Call it before the first
 * thread is made. */
int gr_daemon_confine(struct gr_err *err);
#endif
