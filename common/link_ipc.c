#include "common/link_ipc.h"
#include <stddef.h>

#define BARE offsetof(struct link_msg, u)
#define SIZE(field) (BARE + sizeof ((struct link_msg *)0)->u.field)

static const size_t sizes[LINK_TYPES] = {
    [LINK_OPEN] = SIZE(open),
    [LINK_FAILED] = SIZE(reason),
    [LINK_TURNED_AWAY] = SIZE(reason),
    [LINK_PONG] = BARE,
    [LINK_LISTEN] = BARE,
    [LINK_DIAL] = BARE,
    [LINK_KNOWN] = BARE,
    [LINK_PING] = BARE,
};
static const struct gr_messages messages = {LINK_IPC_MAGIC, LINK_TYPES, sizes, sizeof(struct link_msg)};
_Static_assert(offsetof(struct link_msg, magic) == 0 && offsetof(struct link_msg, type) == 4, "it begins with its head");

int link_msg_send(int sock, struct link_msg *m, enum link_msg_type type, int fd, int flags)
{
    return gr_message_send(sock, &messages, m, type, fd, flags);
}

int link_msg_recv(int sock, struct link_msg *m, int *ret_fd)
{
    return gr_message_recv(sock, &messages, m, ret_fd);
}
