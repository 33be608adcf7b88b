#include "hv/spawn.h"
#include "common/cleanup.h"
#include <fcntl.h>
#include <grp.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define FD_MAX 48
#define FD_SPARE 100 /* descriptors are parked above this before they get their numbers */

/* Between fork and exec: system calls only. Returns errno of what failed. */
static int become(const struct hv_spawn *s, const int *parked, int output, gid_t extra)
{
    static const struct rlimit no_core = {0, 0};
    setsid();
    if (chdir("/") < 0 || setrlimit(RLIMIT_CORE, &no_core) < 0)
        return errno;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0 || dup2(null, 0) < 0 || dup2(output >= 0 ? output : null, 1) < 0 || dup2(output >= 0 ? output : null, 2) < 0)
        return errno;
    for (unsigned i = 0; i < s->fd_count; i++)
        if (dup2(parked[i], 3 + (int)i) < 0)
            return errno;
    if (s->uid) {
        if (setgroups(extra ? 1 : 0, &extra) < 0 || setresgid(s->uid, s->uid, s->uid) < 0 || setresuid(s->uid, s->uid, s->uid) < 0)
            return errno;
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    return 0;
}

static gid_t owner_group(const char *path)
{
    struct stat st;
    return path && stat(path, &st) == 0 ? st.st_gid : 0;
}

int hv_spawn(const struct hv_spawn *s, pid_t *ret_pid, struct gr_err *err)
{
    static char path_env[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin", lang_env[] = "LANG=C.UTF-8";
    char *home = getenv("GRANARY_HOME"), *envp[] = {path_env, lang_env, home ? home - strlen("GRANARY_HOME=") : NULL, NULL};
    int parked[FD_MAX], report[2], r = 0, code = 0;
    unsigned n = 0;
    if (s->fd_count > FD_MAX)
        return gr_fail(err, -E2BIG, "too many descriptors for %s", s->argv[0]);
    if (pipe2(report, O_CLOEXEC) < 0)
        return gr_fail(err, -errno, "cannot start %s: %s", s->argv[0], strerror(errno));
    gr_auto_close int rd = report[0], wr = fcntl(report[1], F_DUPFD_CLOEXEC, FD_SPARE), out = s->output >= 0 ? fcntl(s->output, F_DUPFD_CLOEXEC, FD_SPARE) : -1;
    close(report[1]);
    for (; n < s->fd_count && r >= 0; n++)
        if ((parked[n] = fcntl(s->fds[n], F_DUPFD_CLOEXEC, FD_SPARE)) < 0)
            r = -errno;
    if (wr < 0)
        r = -EMFILE;
    gid_t extra = owner_group(s->group_of);
    pid_t pid = r < 0 ? -1 : fork();
    if (pid < 0 && r >= 0)
        r = -errno;
    if (pid == 0) {
        code = become(s, parked, out, extra);
        if (!code) {
            /* all descriptors but the child's own close on exec, whoever opened them */
            syscall(SYS_close_range, 3 + s->fd_count, ~0u, CLOSE_RANGE_CLOEXEC);
            execve(s->argv[0], s->argv, envp);
            code = errno;
        }
        ssize_t ignored = write(wr, &code, sizeof code);
        (void)ignored;
        _exit(127);
    }
    for (unsigned i = 0; i < n; i++)
        if (parked[i] >= 0)
            close(parked[i]);
    if (r < 0)
        return gr_fail(err, r, "cannot start %s: %s", s->argv[0], gr_code_text(r));
    close(gr_take_fd(&wr));
    if (read(rd, &code, sizeof code) == (ssize_t)sizeof code) {
        waitpid(pid, NULL, 0);
        return gr_fail(err, -code, "cannot start %s: %s%s", s->argv[0], strerror(code), code == ENOENT && strstr(s->argv[0], "qemu") ? "; install the package qemu-system-x86" : "");
    }
    *ret_pid = pid;
    return 0;
}

int hv_process_start_time(pid_t pid, unsigned long long *ret)
{
    char path[32], buf[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    gr_auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, sizeof buf - 1);
    if (n <= 0)
        return -ESRCH;
    buf[n] = 0;
    char *p = strrchr(buf, ')'); /* the name, field 2, may hold anything */
    for (int field = 2; p && field < 22; field++)
        p = strchr(p + 1, ' ');
    if (!p || sscanf(p, " %llu", ret) != 1)
        return -ESRCH;
    return 0;
}
