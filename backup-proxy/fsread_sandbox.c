#include "backup-proxy/fsread_sandbox.h"
#include "common/sandbox.h"
#include <errno.h>
#include <grp.h>
#include <linux/landlock.h>
#include <seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NOBODY 65534

static int set_limit(int which, rlim_t value)
{
    struct rlimit l = {value, value};
    return setrlimit((__rlimit_resource_t)which, &l) < 0 ? -errno : 0;
}

static int set_limits(size_t max_memory)
{
    int rc = 0;
    if (max_memory && !GR_SANITIZED) /* AddressSanitizer reserves terabytes of addresses */
        rc = set_limit(RLIMIT_AS, max_memory);
    if (rc == 0)
        rc = set_limit(RLIMIT_CORE, 0);
    if (rc == 0)
        rc = set_limit(RLIMIT_FSIZE, 0);
    if (rc == 0)
        rc = set_limit(RLIMIT_NPROC, 0);
    if (rc == 0)
        rc = set_limit(RLIMIT_NOFILE, 0); /* what is open stays open */
    return rc;
}

static int close_others(int keep_fd)
{
    if (keep_fd > 0 && syscall(SYS_close_range, 0u, (unsigned)keep_fd - 1, 0u) < 0)
        return -errno;
    if (syscall(SYS_close_range, (unsigned)keep_fd + 1, ~0u, 0u) < 0)
        return -errno;
    return 0;
}

/* As root: into a directory that is removed once we are in it, so that nothing can ever be put there. */
static int empty_root(void)
{
    char dir[] = "/tmp/granary-fsread.XXXXXX";
    if (!mkdtemp(dir))
        return -errno;
    int rc = chdir(dir) < 0 ? -errno : 0;
    if (rmdir(dir) < 0 && rc == 0)
        rc = -errno;
    if (rc == 0 && chroot(".") < 0)
        rc = -errno;
    return rc;
}

static int drop_ids(void)
{
    if (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0)
        return -errno;
    return setuid(0) == 0 ? -EPERM : 0; /* must not come back */
}

/* Without root there is no chroot: a Landlock domain with no rule denies every path. A kernel without Landlock leaves
 * the job to seccomp alone. */
static int deny_paths(void)
{
    struct landlock_ruleset_attr attr = {.handled_access_fs = (1u << 13) - 1}; /* all rights of ABI 1 */
    int fd = (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof attr, 0);
    if (fd < 0)
        return errno == ENOSYS || errno == EOPNOTSUPP ? 0 : -errno;
    int rc = syscall(SYS_landlock_restrict_self, fd, 0) < 0 ? -errno : 0;
    close(fd);
    return rc;
}

static int allow_memory(scmp_filter_ctx ctx)
{
    int rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    if (rc == 0)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    return rc;
}

static int allow_calls(int keep_fd)
{
    static const int calls[] = {SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(brk), SCMP_SYS(madvise), SCMP_SYS(futex),
                                SCMP_SYS(exit), SCMP_SYS(exit_group), SCMP_SYS(rt_sigreturn), SCMP_SYS(rt_sigprocmask),
                                SCMP_SYS(clock_gettime), SCMP_SYS(gettimeofday), SCMP_SYS(time), SCMP_SYS(getrandom),
                                SCMP_SYS(restart_syscall), SCMP_SYS(sched_yield)};
    static const int sanitizer_calls[] = {SCMP_SYS(sigaltstack), SCMP_SYS(getpid), SCMP_SYS(gettid), SCMP_SYS(rt_sigaction)};
    static const int io[] = {SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(readv), SCMP_SYS(writev)};
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (!ctx)
        return -ENOMEM;
    int rc = allow_memory(ctx);
    for (size_t i = 0; rc == 0 && i < sizeof calls / sizeof calls[0]; i++)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, calls[i], 0);
    for (size_t i = 0; GR_SANITIZED && rc == 0 && i < sizeof sanitizer_calls / sizeof sanitizer_calls[0]; i++)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, sanitizer_calls[i], 0);
    for (size_t i = 0; rc == 0 && i < sizeof io / sizeof io[0]; i++)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, io[i], 1, SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)keep_fd));
    if (rc == 0)
        rc = seccomp_load(ctx);
    seccomp_release(ctx);
    return rc;
}

int fsread_sandbox(int keep_fd, size_t max_memory, const char **ret_step)
{
    bool root = geteuid() == 0;
    int rc;
    *ret_step = "close descriptors";
    if ((rc = close_others(keep_fd)) < 0)
        return rc;
    *ret_step = "leave the file system";
    if (root && (rc = empty_root()) < 0)
        return rc;
    *ret_step = "drop the user";
    if (root && (rc = drop_ids()) < 0)
        return rc;
    *ret_step = "set process flags"; /* after the change of ids, which resets them */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || prctl(PR_SET_DUMPABLE, 0) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -errno;
    *ret_step = "deny paths with Landlock";
    if (!root && (rc = deny_paths()) < 0)
        return rc;
    *ret_step = "set limits";
    if ((rc = set_limits(max_memory)) < 0)
        return rc;
    *ret_step = "load the seccomp filter";
    return allow_calls(keep_fd);
}
