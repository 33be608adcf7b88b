/* What a process of ours gives up before it reads a stranger's first byte: everything but its socket to the parent, its memory and the
 * system calls that it makes. Its rights (nobody's uid when started as root, no new privileges, no core dump, limits) first, the filter
 * when all that needs more has been done. */
#ifndef GR_SANDBOX_H
#define GR_SANDBOX_H
#include <seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GR_IPC_FD 3 /* where such a process finds its end of the pair (helper.h) */

struct gr_sandbox {
    const char *name;    /* as ps shows it */
    int nice;
    unsigned max_fds;
    uint64_t max_memory; /* bytes of addresses */
    bool outlives;       /* its parent, when somebody else has the other end of its socket: it ends with that socket */
};
int gr_sandbox(const struct gr_sandbox *s); /* 0 or -errno: the process must end then */

/* One system call that stays allowed, where its arguments meet all of @only that has an op. */
struct gr_call {
    int nr;
    struct scmp_arg_cmp only[2];
};
/* Any other call kills the process. A sanitizer makes many of its own: it goes without. 0 or negative. */
int gr_confine(const struct gr_call *calls, size_t n);
/* The same for a process that talks TLS with strangers in fibers of a loop: the calls which that takes, and @more. */
int gr_confine_tls(const struct gr_call *more, size_t n);

/* A sanitizer is in this program: it reserves terabytes of addresses, and makes calls of its own. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define GR_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define GR_SANITIZED 1
#endif
#endif
#ifndef GR_SANITIZED
#define GR_SANITIZED 0
#endif
#endif
