#include "iscsi-target/gate_ipc.h"
#include "common/packet.h"
#include <stddef.h>

#define BARE offsetof(struct gate_msg, u)
#define SIZE(field) (BARE + sizeof ((struct gate_msg *)0)->u.field)

static const size_t sizes[GATE_TYPES] = {
    [GATE_OPENED] = SIZE(opened),
    [GATE_SIGN] = SIZE(sign),
    [GATE_KEY] = SIZE(key),
    [GATE_PROOF] = SIZE(proof),
    [GATE_PROVEN] = SIZE(proven),
    [GATE_ENDED] = SIZE(ended),
    [GATE_TURNED_AWAY] = SIZE(turned_away),
    [GATE_PONG] = BARE,
    [GATE_IS_DEAF] = BARE,
    [GATE_START] = SIZE(start),
    [GATE_LISTEN] = BARE,
    [GATE_ADOPT] = BARE,
    [GATE_DEAF] = BARE,
    [GATE_RETIRE] = BARE,
    [GATE_STOP] = BARE,
    [GATE_ANSWER] = SIZE(answer),
    [GATE_PING] = BARE,
};
static const struct gr_messages messages = {GATE_IPC_MAGIC, GATE_TYPES, sizes, sizeof(struct gate_msg)};
_Static_assert(offsetof(struct gate_msg, magic) == 0 && offsetof(struct gate_msg, type) == 4, "it begins with its head");

int gate_msg_send(int sock, struct gate_msg *m, enum gate_msg_type type, int fd, int flags)
{
    return gr_message_send(sock, &messages, m, type, fd, flags);
}

int gate_msg_recv(int sock, struct gate_msg *m, int *ret_fd)
{
    return gr_message_recv(sock, &messages, m, ret_fd);
}
