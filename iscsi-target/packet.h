/* One packet of a SOCK_SEQPACKET pair, with at most one descriptor. */
#ifndef TGT_PACKET_H
#define TGT_PACKET_H
#include <stddef.h>

/* Send; @fd >= 0 goes along. 0 or -errno. @flags: of sendmsg. */
int tgt_packet_send(int sock, const void *buf, size_t len, int fd, int flags);
/* Receive one without waiting; *ret_fd: -1 or a descriptor (close-on-exec). 1: a packet of *ret_len bytes; 0: the peer is gone;
 * -EAGAIN: none waits; -GR_EPROTO: it did not fit (nothing kept). */
int tgt_packet_recv(int sock, void *buf, size_t cap, size_t *ret_len, int *ret_fd);
#endif
