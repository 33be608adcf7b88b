/* One packet of a SOCK_SEQPACKET pair, with at most one descriptor. */
#ifndef GR_PACKET_H
#define GR_PACKET_H
#include <stddef.h>
#include <stdint.h>

/* Send; @fd >= 0 goes along. 0 or -errno. @flags: of sendmsg. */
int gr_packet_send(int sock, const void *buf, size_t len, int fd, int flags);
/* Receive one without waiting; *ret_fd: -1 or a descriptor (close-on-exec). 1: a packet of *ret_len bytes; 0: the peer is gone;
 * -EAGAIN: none waits; -GR_EPROTO: it did not fit (nothing kept). */
int gr_packet_recv(int sock, void *buf, size_t cap, size_t *ret_len, int *ret_fd);

/* Messages: packets that begin with a magic number and a type, and have exactly the size of that type. */
struct gr_message_head {
    uint32_t magic, type;
};
struct gr_messages {
    uint32_t magic, types;
    const size_t *sizes; /* of each type below @types; 0: there is none */
    size_t cap;          /* of the longest */
};
/* As gr_packet_send() of a message of that type, which begins with its head. */
int gr_message_send(int sock, const struct gr_messages *set, void *message, uint32_t type, int fd, int flags);
/* As gr_packet_recv(); what is no message of the set is -GR_EPROTO. */
int gr_message_recv(int sock, const struct gr_messages *set, void *message, int *ret_fd);
#endif
