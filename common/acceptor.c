#include "common/acceptor.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

#define PAUSE_NS UINT64_C(100000000)

static void resume(void *arg)
{
    struct gr_acceptor *a = arg;
    (void)gr_watch_set(a->loop, &a->watch, POLLIN);
}

static void on_accept(void *arg, int events)
{
    struct gr_acceptor *a = arg;
    for (unsigned n = 0; n < a->batch; n++) {
        struct sockaddr_storage from = {0};
        socklen_t len = sizeof(from);
        int fd = accept4(a->fd, (struct sockaddr *)&from, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            gr_socket_set(fd);
            a->fn(a->arg, fd, &from, len);
            continue;
        }
        if (errno == EINTR || errno == ECONNABORTED)
            continue;
        if (errno != EAGAIN) {
            a->failed(a->arg, -errno);
            (void)gr_watch_set(a->loop, &a->watch, 0);
            (void)gr_timer_arm(a->loop, &a->pause, PAUSE_NS);
        }
        return;
    }
}

int gr_acceptor_start(struct gr_acceptor *a)
{
    a->watch = (struct gr_watch){.fn = on_accept, .arg = a, .fd = a->fd, .events = POLLIN};
    a->pause = (struct gr_timer){.fn = resume, .arg = a};
    return gr_watch_add(a->loop, &a->watch);
}

void gr_acceptor_stop(struct gr_acceptor *a)
{
    gr_timer_cancel(a->loop, &a->pause);
    gr_watch_del(a->loop, &a->watch);
    close(a->fd);
}

void gr_socket_set(int fd)
{
    int on = 1, idle = 60, interval = 15, count = 4;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
}
