/* Who talks to us without having proved anything: how many at once, in total and of one address. When a limit is reached, one makes room:
 * of an address that has too many, or more than half of that, its oldest; else, as many addresses come, the oldest of all. So one address
 * cannot lock out another, and many cannot lock out one who needs but a moment. */
#ifndef GR_STRANGERS_H
#define GR_STRANGERS_H
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define GR_STRANGERS_MAX 512u
struct gr_stranger {
    bool there;
    struct in6_addr peer;
    uint64_t nth; /* to come */
};
struct gr_strangers { /* zeroed, then max and per_address set: empty */
    uint32_t max, per_address, n;
    uint64_t arrivals;
    struct gr_stranger at[GR_STRANGERS_MAX];
};
/* What counts as one address: an IPv4 address, an IPv6 /64; local sockets all together. */
void gr_peer_of(const struct sockaddr_storage *a, struct in6_addr *ret);
/* The place of who must leave before one of @peer comes, -1: nobody. */
int gr_strangers_room(const struct gr_strangers *s, const struct in6_addr *peer);
void gr_strangers_add(struct gr_strangers *s, uint32_t place, const struct in6_addr *peer);
void gr_strangers_remove(struct gr_strangers *s, uint32_t place); /* whether there or not */
#endif
