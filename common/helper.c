#include "common/helper.h"
#include "common/cleanup.h"
#include "common/sandbox.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define RESTART_NS (200ull * 1000000)
#define PING_NS (5ull * 1000000000)

static void note(struct gr_helper *h, int level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void note(struct gr_helper *h, int level, const char *fmt, ...)
{
    char text[GR_ERR_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    h->o.note(h->o.arg, level, text);
}

static int spawn(struct gr_helper *h, int theirs, struct gr_err *err)
{
    char *argv[] = {(char *)(uintptr_t)h->o.name, (char *)(uintptr_t)h->o.flag, NULL}, *env[] = {NULL};
    const char *exe = h->o.exe ? h->o.exe : "/proc/self/exe";
    posix_spawn_file_actions_t fa;
    posix_spawnattr_t at;
    sigset_t none;
    sigemptyset(&none);
    posix_spawn_file_actions_init(&fa);
    posix_spawnattr_init(&at);
    posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDWR, 0);
    posix_spawn_file_actions_adddup2(&fa, 0, 1);
    posix_spawn_file_actions_adddup2(&fa, theirs, GR_IPC_FD);
    posix_spawnattr_setsigmask(&at, &none);
    posix_spawnattr_setflags(&at, POSIX_SPAWN_SETSIGMASK);
    int r = posix_spawn(&h->pid, exe, &fa, &at, argv, env);
    posix_spawn_file_actions_destroy(&fa);
    posix_spawnattr_destroy(&at);
    if (r)
        h->pid = -1;
    return r ? gr_fail(err, -r, "%s: cannot start %s: %s", h->o.what, exe, strerror(r)) : 0;
}

static void on_readable(void *arg, int events)
{
    struct gr_helper *h = arg;
    h->o.readable(h->o.arg);
}

static void hang_up(struct gr_helper *h)
{
    if (h->sock < 0)
        return;
    if (h->watch.fn)
        gr_watch_del(h->o.loop, &h->watch);
    close(h->sock);
    h->sock = -1;
}

static void ended(void *arg, int pid, int status)
{
    struct gr_helper *h = arg;
    if (h->pid != pid)
        return;
    h->pid = -1;
    if (!h->stopping)
        note(h, 4, "the %s ended (%s %d), starting another", h->o.what, WIFSIGNALED(status) ? "signal" : "status",
             WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    gr_helper_lose(h, NULL);
    h->o.ended(h->o.arg);
}

/* Watch it and tell it what it needs; the loop reaps it from then on. */
static int begin(struct gr_helper *h)
{
    struct gr_watch w = {.fn = on_readable, .arg = h, .fd = h->sock, .events = POLLIN};
    h->watch = w;
    int r = gr_watch_add(h->o.loop, &h->watch);
    if (r < 0)
        h->watch.fn = NULL;
    if (r == 0)
        r = h->o.begin(h->o.arg);
    return r < 0 ? r : gr_loop_child(h->o.loop, h->pid, ended, h);
}

static int start(struct gr_helper *h, struct gr_err *err)
{
    int pair[2], room = 8 << 20;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return gr_fail(err, -errno, "%s: no socket pair: %s", h->o.what, strerror(errno));
    if (setsockopt(pair[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) < 0)
        setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    h->sock = pair[0];
    h->watch.fn = NULL;
    int r = spawn(h, pair[1], err);
    close(pair[1]);
    if (r < 0) {
        hang_up(h);
        return r;
    }
    h->spawn++;
    h->ponged = true;
    h->started_ns = gr_loop_now_ns(h->o.loop);
    r = begin(h);
    if (r == 0)
        return 0;
    hang_up(h);
    kill(h->pid, SIGKILL);
    waitpid(h->pid, NULL, 0);
    h->pid = -1;
    return gr_fail(err, r, "%s: cannot be told what to do: %s", h->o.what, gr_code_text(r));
}

static void restart(void *arg)
{
    struct gr_helper *h = arg;
    struct gr_err err = {0};
    if (h->stopping || h->sock >= 0 || h->pid > 0) /* when the old one is reaped, this is called again */
        return;
    if (start(h, &err) < 0) {
        note(h, 3, "%s", err.text);
        gr_helper_lose(h, NULL);
    }
}

void gr_helper_lose(struct gr_helper *h, const char *why)
{
    if (why)
        note(h, 4, "%s: %s; it is replaced", h->o.what, why);
    hang_up(h);
    if (h->pid > 0)
        kill(h->pid, SIGKILL);
    h->o.lost(h->o.arg);
    if (h->stopping)
        return;
    bool short_lived = gr_loop_now_ns(h->o.loop) - h->started_ns < RESTART_NS;
    gr_timer_arm(h->o.loop, &h->restart, short_lived || h->pid > 0 ? RESTART_NS : 0);
}

static void ping(void *arg)
{
    struct gr_helper *h = arg;
    if (h->sock >= 0 && !h->ponged) {
        gr_helper_lose(h, "it does not answer");
    } else if (h->sock >= 0) {
        h->ponged = false;
        h->o.ping(h->o.arg);
    }
    gr_timer_arm(h->o.loop, &h->ping, PING_NS);
}

void gr_helper_pong(struct gr_helper *h)
{
    h->ponged = true;
}

int gr_helper_start(struct gr_helper *h, const struct gr_helper_opts *o, struct gr_err *err)
{
    *h = (struct gr_helper){.o = *o, .sock = -1, .pid = -1};
    h->restart = (struct gr_timer){.fn = restart, .arg = h};
    h->ping = (struct gr_timer){.fn = ping, .arg = h};
    int r = start(h, err);
    if (r == 0)
        gr_timer_arm(o->loop, &h->ping, PING_NS);
    return r;
}

void gr_helper_last(struct gr_helper *h)
{
    h->stopping = true;
    gr_timer_cancel(h->o.loop, &h->restart);
    gr_timer_cancel(h->o.loop, &h->ping);
}

void gr_helper_stop(struct gr_helper *h)
{
    gr_helper_last(h);
    gr_helper_lose(h, NULL);
}

int gr_helper_leave(struct gr_helper *h)
{
    gr_helper_last(h);
    if (h->sock < 0)
        return -1;
    gr_watch_del(h->o.loop, &h->watch);
    gr_loop_child_forget(h->o.loop, h->pid);
    h->pid = -1;
    return gr_take_fd(&h->sock);
}
