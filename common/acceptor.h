/* A listening socket for peers of a network, and what their connections are set to. Loop thread only. */
#ifndef GR_ACCEPTOR_H
#define GR_ACCEPTOR_H
#include "common/loop.h"
#include <sys/socket.h>

struct gr_acceptor { /* zeroed, then those up to arg set */
    struct gr_loop *loop;
    int fd;         /* listening, non-blocking; owned */
    unsigned batch; /* connections accepted before others get their turn */
    void (*fn)(void *arg, int fd, const struct sockaddr_storage *from, socklen_t len); /* takes @fd over */
    void (*failed)(void *arg, int code);                                               /* out of descriptors or memory: it rests a moment */
    void *arg;
    struct gr_acceptor *next; /* the caller's own */
    struct gr_watch watch;
    struct gr_timer pause; /* the queue stays readable: it would spin */
};
int gr_acceptor_start(struct gr_acceptor *a); /* 0 or negative: @fd is still the caller's */
void gr_acceptor_stop(struct gr_acceptor *a); /* closes */
/* No delay, and dead peers are found within two minutes. */
void gr_socket_set(int fd);
#endif
