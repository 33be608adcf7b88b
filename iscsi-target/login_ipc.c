#include "iscsi-target/login_ipc.h"
#include <sys/socket.h>
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

union control {
    char buf[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
};

int tgt_msg_send(int sock, struct tgt_msg *m, enum tgt_msg_type type, int fd, int flags)
{
    struct iovec iov = {m, tgt_msg_size(type)};
    union control c;
    struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
    m->magic = TGT_IPC_MAGIC;
    m->type = type;
    if (fd >= 0) {
        memset(&c, 0, sizeof c);
        h.msg_control = c.buf;
        h.msg_controllen = sizeof c.buf;
        struct cmsghdr *cm = CMSG_FIRSTHDR(&h);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cm), &fd, sizeof fd);
    }
    ssize_t n;
    do
        n = sendmsg(sock, &h, flags | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

/* The descriptor that came along, if exactly one did; others are closed. */
static int take_fd(struct msghdr *h)
{
    int fd = -1;
    for (struct cmsghdr *cm = CMSG_FIRSTHDR(h); cm; cm = CMSG_NXTHDR(h, cm)) {
        if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int f;
            memcpy(&f, CMSG_DATA(cm) + i * sizeof(int), sizeof f);
            if (fd >= 0)
                close(fd);
            fd = f;
        }
    }
    return fd;
}

int tgt_msg_recv(int sock, struct tgt_msg *m, int *ret_fd)
{
    struct iovec iov = {m, sizeof *m};
    union control c;
    struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof c.buf};
    ssize_t n;
    do
        n = recvmsg(sock, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EAGAIN ? -EAGAIN : 0;
    if (!n)
        return 0;
    int fd = take_fd(&h);
    bool good = (size_t)n >= BARE && !(h.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) && m->magic == TGT_IPC_MAGIC &&
                tgt_msg_size(m->type) == (size_t)n;
    if (!good) {
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
