#include "tests/lib/cutter.h"
#include "common/fiber.h"
#include "tests/lib/test.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

struct cut_link {
    struct cutter *c;
    int fd[2]; /* the initiator's, the target's */
    unsigned refs;
    struct cut_link *next;
};

static void cut_link(struct cut_link *l)
{
    shutdown(l->fd[0], SHUT_RDWR);
    shutdown(l->fd[1], SHUT_RDWR);
}

static void leave(struct cut_link *l)
{
    struct cutter *c = l->c;
    cut_link(l);
    c->links--;
    if (--l->refs)
        return;
    struct cut_link **p = &c->first;
    while (*p != l)
        p = &(*p)->next;
    *p = l->next;
    close(l->fd[0]);
    close(l->fd[1]);
    free(l);
}

static bool put(int fd, const char *p, size_t len)
{
    while (len) {
        ssize_t n = send(fd, p, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) {
            p += n;
            len -= (size_t)n;
        } else if (errno != EAGAIN || gr_fiber_wait_fd(fd, POLLOUT, 10000) <= 0) {
            return false;
        }
    }
    return true;
}

static void pass(struct cut_link *l, int from)
{
    static _Thread_local char shared[64 << 10];
    for (;;) {
        int got = gr_fiber_wait_fd(l->fd[from], POLLIN, -1);
        ssize_t n = got < 0 ? 0 : recv(l->fd[from], shared, sizeof(shared), MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            continue;
        if (n <= 0 || (from == 0 && l->c->sees && !l->c->sees(l->c, shared, (size_t)n)))
            return;
        char *own = malloc((size_t)n); /* the other direction uses the buffer while we wait */
        assert_non_null(own);
        __builtin_memcpy(own, shared, (size_t)n);
        bool ok = (from == 1 && l->c->mute) || put(l->fd[!from], own, (size_t)n);
        free(own);
        if (!ok)
            return;
    }
}

static void up(void *arg)
{
    pass(arg, 0);
    leave(arg);
}

static void down(void *arg)
{
    pass(arg, 1);
    leave(arg);
}

static void add(struct cutter *c, int fd)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)c->to)};
    int on = 1, other = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->away || connect(other, (struct sockaddr *)&a, sizeof(a)) < 0) {
        close(other);
        close(fd);
        return;
    }
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)setsockopt(other, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    struct cut_link *l = calloc(1, sizeof(*l));
    assert_non_null(l);
    *l = (struct cut_link){.c = c, .fd = {fd, other}, .refs = 2, .next = c->first};
    c->first = l;
    c->links += 2;
    c->logins++;
    assert_int_equal(gr_fiber_start(c->loop, up, l), 0);
    assert_int_equal(gr_fiber_start(c->loop, down, l), 0);
}

static void serve(void *arg)
{
    struct cutter *c = arg;
    while (c->listen >= 0) {
        if (gr_fiber_wait_fd(c->listen, POLLIN, 20) <= 0)
            continue;
        int fd = accept4(c->listen, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0)
            add(c, fd);
    }
    c->links--;
}

void cutter_start(struct cutter *c, unsigned to)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    c->loop = gr_fiber_loop();
    c->to = to;
    c->listen = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(c->listen, (struct sockaddr *)&a, len), 0);
    assert_int_equal(listen(c->listen, 16), 0);
    assert_int_equal(getsockname(c->listen, (struct sockaddr *)&a, &len), 0);
    c->port = ntohs(a.sin_port);
    c->links = 1;
    assert_int_equal(gr_fiber_start(c->loop, serve, c), 0);
}

void cutter_cut(struct cutter *c)
{
    for (struct cut_link *l = c->first; l; l = l->next)
        cut_link(l);
}

void cutter_stop(struct cutter *c)
{
    int fd = c->listen;
    c->listen = -1;
    cutter_cut(c);
    while (c->links)
        gr_fiber_sleep_ms(5);
    close(fd);
}
