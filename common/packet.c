#include "common/packet.h"
#include "common/err.h"
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

union control {
    char buf[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
};

int gr_packet_send(int sock, const void *buf, size_t len, int fd, int flags)
{
    struct iovec iov = {(void *)(uintptr_t)buf, len};
    union control c;
    struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
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

int gr_packet_recv(int sock, void *buf, size_t cap, size_t *ret_len, int *ret_fd)
{
    struct iovec iov = {buf, cap};
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
    if (h.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
        if (fd >= 0)
            close(fd);
        return -GR_EPROTO;
    }
    *ret_len = (size_t)n;
    *ret_fd = fd;
    return 1;
}

int gr_message_send(int sock, const struct gr_messages *set, void *message, uint32_t type, int fd, int flags)
{
    struct gr_message_head h = {set->magic, type};
    memcpy(message, &h, sizeof h);
    return gr_packet_send(sock, message, set->sizes[type], fd, flags);
}

int gr_message_recv(int sock, const struct gr_messages *set, void *message, int *ret_fd)
{
    struct gr_message_head h;
    size_t n;
    int fd = -1, r = gr_packet_recv(sock, message, set->cap, &n, &fd);
    if (r <= 0)
        return r;
    if (n >= sizeof h)
        memcpy(&h, message, sizeof h);
    if (n < sizeof h || h.magic != set->magic || h.type >= set->types || set->sizes[h.type] != n) {
        if (fd >= 0)
            close(fd);
        return -GR_EPROTO;
    }
    *ret_fd = fd;
    return 1;
}
