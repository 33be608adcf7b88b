#include "common/sandbox.h"
#include <errno.h>
#include <grp.h>
#include <linux/close_range.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

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
    if (!SANITIZED && (dup2(0, 2) < 0 || cap(RLIMIT_AS, s->max_memory) < 0 || cap(RLIMIT_STACK, 1u << 20) < 0))
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

int gr_confine(const struct gr_call *calls, size_t n)
{
    if (SANITIZED)
        return 0;
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (!ctx)
        return -ENOMEM;
    int r = 0;
    for (size_t i = 0; i < n && !r; i++)
        r = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, calls[i].nr, !!calls[i].only[0].op + !!calls[i].only[1].op, calls[i].only);
    if (!r)
        r = seccomp_load(ctx);
    seccomp_release(ctx);
    return r;
}
