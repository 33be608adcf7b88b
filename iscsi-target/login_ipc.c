#include "iscsi-target/login_ipc.h"
#include "iscsi-target/packet.h"
#include <unistd.h>

#define SIZE(field) (offsetof(struct tgt_msg, u) + sizeof ((struct tgt_msg *)0)->u.field)
#define BARE offsetof(struct tgt_msg, u)

size_t tgt_msg_size(uint32_t type)
{
    static const size_t sizes[TGT_MSG_TYPES] = {
        [TGT_MSG_ASK] = SIZE(ask),
        [TGT_MSG_CHAP_START] = SIZE(chap_start),
        [TGT_MSG_CHAP_VERIFY] = SIZE(chap_verify),
        [TGT_MSG_HAND_OVER] = SIZE(hand_over),
        [TGT_MSG_LIST] = SIZE(list),
        [TGT_MSG_GONE] = BARE,
        [TGT_MSG_PONG] = BARE,
        [TGT_MSG_CONFIG] = SIZE(config),
        [TGT_MSG_LISTEN] = SIZE(listen),
        [TGT_MSG_UNLISTEN] = SIZE(listen),
        [TGT_MSG_ASKED] = SIZE(asked),
        [TGT_MSG_CHALLENGE] = SIZE(challenge),
        [TGT_MSG_VERIFIED] = SIZE(verified),
        [TGT_MSG_LISTED] = SIZE(listed),
        [TGT_MSG_PING] = BARE,
    };
    return type < TGT_MSG_TYPES ? sizes[type] : 0;
}

int tgt_msg_send(int sock, struct tgt_msg *m, enum tgt_msg_type type, int fd, int flags)
{
    m->magic = TGT_IPC_MAGIC;
    m->type = type;
    return tgt_packet_send(sock, m, tgt_msg_size(type), fd, flags);
}

int tgt_msg_recv(int sock, struct tgt_msg *m, int *ret_fd)
{
    size_t n;
    int fd = -1, r = tgt_packet_recv(sock, m, sizeof *m, &n, &fd);
    if (r <= 0)
        return r;
    if (n < BARE || m->magic != TGT_IPC_MAGIC || tgt_msg_size(m->type) != n) {
        if (fd >= 0)
            close(fd);
        return -GR_EPROTO;
    }
    *ret_fd = fd;
    return 1;
}

bool tgt_msg_str_ok(const char *s, size_t size)
{
    return memchr(s, 0, size) != NULL;
}
