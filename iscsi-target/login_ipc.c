#include "iscsi-target/login_ipc.h"
#include "common/packet.h"

#define SIZE(field) (offsetof(struct tgt_msg, u) + sizeof ((struct tgt_msg *)0)->u.field)
#define BARE offsetof(struct tgt_msg, u)

static const size_t sizes[TGT_MSG_TYPES] = {
    [TGT_MSG_ASK] = SIZE(ask),
    [TGT_MSG_CHAP_START] = SIZE(chap_start),
    [TGT_MSG_CHAP_VERIFY] = SIZE(chap_verify),
    [TGT_MSG_HAND_OVER] = SIZE(hand_over),
    [TGT_MSG_LIST] = SIZE(list),
    [TGT_MSG_GONE] = BARE,
    [TGT_MSG_PONG] = BARE,
    [TGT_MSG_QUIET] = SIZE(deaf),
    [TGT_MSG_CONFIG] = SIZE(config),
    [TGT_MSG_LISTEN] = SIZE(listen),
    [TGT_MSG_UNLISTEN] = SIZE(listen),
    [TGT_MSG_DEAF] = SIZE(deaf),
    [TGT_MSG_ASKED] = SIZE(asked),
    [TGT_MSG_CHALLENGE] = SIZE(challenge),
    [TGT_MSG_VERIFIED] = SIZE(verified),
    [TGT_MSG_LISTED] = SIZE(listed),
    [TGT_MSG_PING] = BARE,
};
static const struct gr_messages messages = {TGT_IPC_MAGIC, TGT_MSG_TYPES, sizes, sizeof(struct tgt_msg)};
_Static_assert(offsetof(struct tgt_msg, magic) == 0 && offsetof(struct tgt_msg, type) == 4, "it begins with its head");

int tgt_msg_send(int sock, struct tgt_msg *m, enum tgt_msg_type type, int fd, int flags)
{
    return gr_message_send(sock, &messages, m, type, fd, flags);
}

int tgt_msg_recv(int sock, struct tgt_msg *m, int *ret_fd)
{
    return gr_message_recv(sock, &messages, m, ret_fd);
}

bool tgt_msg_str_ok(const char *s, size_t size)
{
    return memchr(s, 0, size) != NULL;
}
