/* A process that talks to strangers in our place, and is kept alive: this program executed again with one argument, with a SOCK_SEQPACKET
 * pair to it (GR_IPC_FD at its side). One that ends, breaks the protocol or does not answer a ping in 5 s is replaced, at once when it had
 * lived for a while. Loop thread only. */
#ifndef GR_HELPER_H
#define GR_HELPER_H
#include "common/loop.h"

struct gr_helper_opts {
    struct gr_loop *loop;
    const char *what; /* for the log: "login process" */
    const char *name; /* its argv[0] */
    const char *flag; /* its argv[1] */
    const char *exe;  /* NULL: /proc/self/exe */
    void *arg;
    int (*begin)(void *arg);     /* it was started: tell it what it needs; negative: it is given up */
    void (*readable)(void *arg); /* take what it says */
    void (*ping)(void *arg);     /* ask it; pong() when it answers */
    void (*lost)(void *arg);     /* what it had under way is gone */
    void (*ended)(void *arg);    /* it was reaped */
    void (*note)(void *arg, int level, const char *text);
};
struct gr_helper {
    struct gr_helper_opts o;
    int sock, pid;  /* -1: none */
    uint32_t spawn; /* counts the processes started */
    bool stopping, ponged;
    uint64_t started_ns;
    struct gr_watch watch;
    struct gr_timer restart, ping;
};
/* Start it. On failure nothing is left of it. */
int gr_helper_start(struct gr_helper *h, const struct gr_helper_opts *o, struct gr_err *err);
void gr_helper_pong(struct gr_helper *h);
/* Give this process up, for the reason @why (logged unless NULL); another is started unless stopping. */
void gr_helper_lose(struct gr_helper *h, const char *why);
/* The one that there is may end by itself, and no other follows it. */
void gr_helper_last(struct gr_helper *h);
/* It goes on without us, and nobody is told of its end: its socket is the caller's. -1: there is none. */
int gr_helper_leave(struct gr_helper *h);
/* End it now. It is gone when pid is -1 (ended() is called). */
void gr_helper_stop(struct gr_helper *h);
#endif
