#include "common/sandbox.h"
#include <errno.h>
#include <grp.h>
#include <linux/close_range.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static int cap(int resource, rlim_t value)
{
    struct rlimit lim = {value, value};
    return setrlimit((__rlimit_resource_t)resource, &lim);
}

int gr_sandbox(const struct gr_sandbox *s)
{
    if (!s->outlives)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NAME, s->name);
    prctl(PR_SET_DUMPABLE, 0);
    setpriority(PRIO_PROCESS, 0, s->nice);
    signal(SIGPIPE, SIG_IGN);
    if (close_range(GR_IPC_FD + 1, ~0u, 0) < 0 || cap(RLIMIT_CORE, 0) < 0 || cap(RLIMIT_NOFILE, s->max_fds) < 0)
        return -errno;
    /* standard error is the parent's log: /dev/null in its place */
    if (!GR_SANITIZED && (dup2(0, 2) < 0 || cap(RLIMIT_AS, s->max_memory) < 0 || cap(RLIMIT_STACK, 1u << 20) < 0))
        return -errno;
    if (geteuid() == 0) {
        uid_t nobody = 65534;
        if (setgroups(0, NULL) < 0 || setresgid(nobody, nobody, nobody) < 0 || setresuid(nobody, nobody, nobody) < 0)
            return -errno;
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -errno;
    return 0;
}

static int allow(scmp_filter_ctx ctx, const struct gr_call *calls, size_t n)
{
    int r = 0;
    for (size_t i = 0; i < n && !r; i++)
        r = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, calls[i].nr, !!calls[i].only[0].op + !!calls[i].only[1].op, calls[i].only);
    return r;
}

static int confine(const struct gr_call *calls, size_t n, const struct gr_call *more, size_t n_more)
{
    if (GR_SANITIZED)
        return 0;
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (!ctx)
        return -ENOMEM;
    int r = allow(ctx, calls, n);
    if (!r)
        r = allow(ctx, more, n_more);
    if (!r)
        r = seccomp_load(ctx);
    seccomp_release(ctx);
    return r;
}

int gr_confine(const struct gr_call *calls, size_t n)
{
    return confine(calls, n, NULL, 0);
}

int gr_confine_tls(const struct gr_call *more, size_t n)
{
    static const struct gr_call calls[] = {
        /* the loop */
        {SCMP_SYS(epoll_wait)}, {SCMP_SYS(epoll_pwait)}, {SCMP_SYS(epoll_pwait2)}, {SCMP_SYS(epoll_ctl)}, {SCMP_SYS(clock_gettime)},
        /* sockets */
        {SCMP_SYS(accept4)}, {SCMP_SYS(recvfrom)}, {SCMP_SYS(recvmsg)}, {SCMP_SYS(sendto)}, {SCMP_SYS(sendmsg)}, {SCMP_SYS(close)},
        {SCMP_SYS(shutdown)}, {SCMP_SYS(socketpair), {{0, SCMP_CMP_EQ, AF_UNIX}}},
        {SCMP_SYS(setsockopt), {{1, SCMP_CMP_EQ, IPPROTO_TCP}}},
        {SCMP_SYS(setsockopt), {{1, SCMP_CMP_EQ, SOL_SOCKET}, {2, SCMP_CMP_EQ, SO_KEEPALIVE}}},
        /* memory, for the allocator and the stacks of fibers */
        {SCMP_SYS(brk)}, {SCMP_SYS(munmap)}, {SCMP_SYS(mremap)}, {SCMP_SYS(madvise)},
        {SCMP_SYS(mmap), {{2, SCMP_CMP_MASKED_EQ, PROT_EXEC, 0}, {3, SCMP_CMP_MASKED_EQ, MAP_ANONYMOUS, MAP_ANONYMOUS}}},
        {SCMP_SYS(mprotect), {{2, SCMP_CMP_MASKED_EQ, PROT_EXEC, 0}}},
        /* GnuTLS and the C library: random numbers, their locks, the date where it is not in the vdso */
        {SCMP_SYS(getrandom)}, {SCMP_SYS(futex)}, {SCMP_SYS(time)}, {SCMP_SYS(gettimeofday)},
        {SCMP_SYS(exit_group)}, {SCMP_SYS(exit)}, {SCMP_SYS(rt_sigreturn)}, {SCMP_SYS(restart_syscall)}};
    return confine(calls, sizeof calls / sizeof *calls, more, n);
}
