/* Messages between the link process and the daemon that started it (common/packet.h). The process talks to strangers and is not trusted:
 * a malformed message ends it. @slot and @gen name a connection of it. */
#ifndef GR_LINK_IPC_H
#define GR_LINK_IPC_H
#include "common/link_key.h"
#include "common/packet.h"
#include "common/strangers.h"

#define LINK_FLAG "--granary-link"
#define LINK_IPC_MAGIC 0x676c6b31u /* changes with every change of this file */
#define LINK_SLOTS GR_STRANGERS_MAX
#define LINK_REASON 200u

enum link_msg_type {
    /* to the daemon */
    LINK_OPEN = 1,    /* carries a socket: the channel is up, and its bytes are there */
    LINK_FAILED,      /* one that was dialled came to nothing */
    LINK_TURNED_AWAY, /* a stranger did not get as far */
    LINK_PONG,
    /* to the process */
    LINK_LISTEN, /* carries a listening socket */
    LINK_DIAL,   /* carries a connected one; we are the client */
    LINK_KNOWN,  /* the stranger has proved who he is */
    LINK_PING,
    LINK_TYPES
};
struct link_msg {
    uint32_t magic, type, slot, gen;
    uint64_t dial; /* number of LINK_DIAL in its answer; 0: the other end has dialled */
    union {
        struct {
            uint8_t channel[GR_LINK_CHANNEL_LEN];
            struct sockaddr_storage from;
        } open;
        struct {
            char text[LINK_REASON];
            struct sockaddr_storage from;
        } reason;
    } u;
};
int link_msg_send(int sock, struct link_msg *m, enum link_msg_type type, int fd, int flags);
int link_msg_recv(int sock, struct link_msg *m, int *ret_fd);
#endif
