#include "iscsi-target/gate_ipc.h"
#include "common/err.h"
#include "iscsi-target/packet.h"
#include <stddef.h>
#include <unistd.h>

#define BARE offsetof(struct gate_msg, u)
#define SIZE(field) (BARE + sizeof ((struct gate_msg *)0)->u.field)

static size_t size_of(uint32_t type)
{
    static const size_t sizes[GATE_TYPES] = {
        [GATE_OPENED] = SIZE(opened),
        [GATE_SIGN] = SIZE(sign),
        [GATE_KEY] = SIZE(key),
        [GATE_PROVEN] = SIZE(proven),
        [GATE_ENDED] = SIZE(ended),
        [GATE_TURNED_AWAY] = SIZE(turned_away),
        [GATE_PONG] = BARE,
        [GATE_START] = SIZE(start),
        [GATE_LISTEN] = BARE,
        [GATE_ADOPT] = BARE,
        [GATE_STOP] = BARE,
        [GATE_ANSWER] = SIZE(answer),
        [GATE_PING] = BARE,
    };
    return type < GATE_TYPES ? sizes[type] : 0;
}

int gate_msg_send(int sock, struct gate_msg *m, enum gate_msg_type type, int fd, int flags)
{
    m->magic = GATE_IPC_MAGIC;
    m->type = type;
    return tgt_packet_send(sock, m, size_of(type), fd, flags);
}

int gate_msg_recv(int sock, struct gate_msg *m, int *ret_fd)
{
    size_t n;
    int fd = -1, r = tgt_packet_recv(sock, m, sizeof *m, &n, &fd);
    if (r <= 0)
        return r;
    if (n < BARE || m->magic != GATE_IPC_MAGIC || size_of(m->type) != n) {
        if (fd >= 0)
            close(fd);
        return -GR_EPROTO;
    }
    *ret_fd = fd;
    return 1;
}
