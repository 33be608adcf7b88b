/* Signals (signalfd) and the end of child processes (pidfd). */
#include "common/loop_int.h"
#include "common/cleanup.h"
#include <assert.h>
#include <poll.h>
#include <signal.h>
#include <sys/pidfd.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

struct gr_signals {
    int fd;
    sigset_t set;
    struct gr_watch watch;
    struct {
        void (*fn)(void *arg, int signo);
        void *arg;
    } handlers[_NSIG];
};

static void signal_ready(void *arg, int events)
{
    struct gr_signals *s = arg;
    struct signalfd_siginfo info;

    (void)events;
    /* One per call: a handler may free the loop's user state; the rest is still readable next turn. */
    if (read(s->fd, &info, sizeof(info)) != sizeof(info))
        return;
    int signo = (int)info.ssi_signo;
    if (signo > 0 && signo < _NSIG && s->handlers[signo].fn)
        s->handlers[signo].fn(s->handlers[signo].arg, signo);
}

int gr_loop_signal(struct gr_loop *loop, int signo, void (*fn)(void *arg, int signo), void *arg)
{
    struct gr_signals *s = loop->signals;
    int r;

    if (signo <= 0 || signo >= _NSIG)
        return -EINVAL;
    if (!s) {
        s = gr_zalloc(sizeof(*s));
        if (!s)
            return -ENOMEM;
        sigemptyset(&s->set);
        s->fd = signalfd(-1, &s->set, SFD_CLOEXEC | SFD_NONBLOCK);
        if (s->fd < 0) {
            r = -errno;
            free(s);
            return r;
        }
        s->watch = (struct gr_watch){.fn = signal_ready, .arg = s, .fd = s->fd, .events = POLLIN};
        r = gr_watch_add(loop, &s->watch);
        if (r < 0) {
            close(s->fd);
            free(s);
            return r;
        }
        loop->signals = s;
    }
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, signo);
    sigaddset(&s->set, signo);
    pthread_sigmask(SIG_BLOCK, &one, NULL);
    if (signalfd(s->fd, &s->set, SFD_CLOEXEC | SFD_NONBLOCK) < 0)
        return -errno;
    s->handlers[signo].fn = fn;
    s->handlers[signo].arg = arg;
    return 0;
}

void gr_signals_free(struct gr_loop *loop)
{
    if (!loop->signals)
        return;
    gr_watch_del(loop, &loop->signals->watch);
    close(loop->signals->fd);
    free(loop->signals);
    loop->signals = NULL;
}

/* ---- children ---- */
struct gr_child {
    struct gr_loop *loop;
    struct gr_child *next;
    struct gr_watch watch;
    int pid;
    void (*fn)(void *arg, int pid, int status);
    void *arg;
};

static void drop(struct gr_child *c)
{
    struct gr_child **p = &c->loop->children;
    while (*p != c)
        p = &(*p)->next;
    *p = c->next;
    gr_watch_del(c->loop, &c->watch);
    close(c->watch.fd);
    free(c);
}

static void child_ready(void *arg, int events)
{
    struct gr_child *c = arg;
    int status = 0;

    (void)events;
    int r = waitpid(c->pid, &status, WNOHANG);
    if (r == 0)
        return; /* the descriptor was ready for another reason; it stays watched */
    if (r < 0)
        status = -errno; /* reaped by somebody else: its status is lost */
    struct gr_child copy = *c;
    drop(c);
    copy.fn(copy.arg, copy.pid, status);
}

int gr_loop_child(struct gr_loop *loop, int pid, void (*fn)(void *arg, int pid, int status), void *arg)
{
    struct gr_child *c = gr_zalloc(sizeof(*c));
    int r;

    if (!c)
        return -ENOMEM;
    *c = (struct gr_child){.loop = loop, .pid = pid, .fn = fn, .arg = arg};
    int fd = pidfd_open(pid, 0); /* close-on-exec by itself */
    if (fd < 0) {
        r = -errno;
        free(c);
        return r;
    }
    c->watch = (struct gr_watch){.fn = child_ready, .arg = c, .fd = fd, .events = POLLIN};
    r = gr_watch_add(loop, &c->watch);
    if (r < 0) {
        close(fd);
        free(c);
        return r;
    }
    c->next = loop->children;
    loop->children = c;
    return 0;
}

void gr_loop_child_forget(struct gr_loop *loop, int pid)
{
    struct gr_child *c = loop->children;
    while (c && c->pid != pid)
        c = c->next;
    if (c)
        drop(c);
}
