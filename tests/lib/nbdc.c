/* See nbdc.h. */
#include "tests/lib/nbdc.h"
#include "common/seam.h"
#include "tests/lib/test.h"
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define WAIT_MS 5000

int nbdc_connect(struct mover_server *s)
{
    int sv[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv), 0);
    assert_int_equal(mover_server_adopt(s, sv[0], NULL), 0);
    return sv[1];
}

void nbdc_send(int fd, const void *buf, size_t len)
{
    for (size_t at = 0; at < len;) {
        ssize_t n = send(fd, (const char *)buf + at, len - at, MSG_NOSIGNAL);
        if (n > 0)
            at += (size_t)n;
        else if (errno == EAGAIN)
            assert_true(gr_fiber_wait_fd(fd, POLLOUT, WAIT_MS) > 0);
        else
            return; /* the server closed already: what it said is what the test looks at */
    }
}

void nbdc_recv(int fd, void *buf, size_t len)
{
    for (size_t at = 0; at < len;) {
        ssize_t n = recv(fd, (char *)buf + at, len - at, 0);
        if (n > 0)
            at += (size_t)n;
        else if (n < 0 && errno == EAGAIN)
            assert_true(gr_fiber_wait_fd(fd, POLLIN, WAIT_MS) > 0);
        else
            fail_msg("the server closed after %zu of %zu bytes", at, len);
    }
}

bool nbdc_closed(int fd)
{
    char c;
    for (;;) {
        ssize_t n = recv(fd, &c, 1, 0);
        if (n == 0 || (n < 0 && errno == ECONNRESET))
            return true;
        if (n > 0 || errno != EAGAIN || gr_fiber_wait_fd(fd, POLLIN, WAIT_MS) <= 0)
            return false;
    }
}

void nbdc_hello(int fd, uint32_t client_flags)
{
    uint8_t hello[18], f[4];
    nbdc_recv(fd, hello, sizeof(hello));
    assert_memory_equal(hello, "NBDMAGICIHAVEOPT", 16);
    assert_int_equal(gr_get_be16(hello + 16), 3);
    gr_put_be32(f, client_flags);
    nbdc_send(fd, f, sizeof(f));
}

void nbdc_option(int fd, uint32_t option, const void *data, size_t len)
{
    struct nbd_opt_wire w = {gr_be64_of(NBD_OPTS_MAGIC), gr_be32_of(option), gr_be32_of((uint32_t)len)};
    nbdc_send(fd, &w, sizeof(w));
    if (len)
        nbdc_send(fd, data, len);
}

void nbdc_reply(int fd, struct nbdc_rep *ret)
{
    struct nbd_rep_wire w;
    nbdc_recv(fd, &w, sizeof(w));
    assert_true(gr_be64_get(w.magic) == NBD_REP_MAGIC);
    ret->option = gr_be32_get(w.option);
    ret->type = gr_be32_get(w.type);
    ret->len = gr_be32_get(w.length);
    assert_true(ret->len < sizeof(ret->data));
    nbdc_recv(fd, ret->data, ret->len);
    ret->data[ret->len] = 0;
}

uint32_t nbdc_ask(int fd, uint32_t option, const void *data, size_t len, struct nbdc_rep *ret)
{
    nbdc_option(fd, option, data, len);
    nbdc_reply(fd, ret);
    assert_int_equal(ret->option, option);
    return ret->type;
}

static size_t put_name(uint8_t *out, const char *name)
{
    size_t n = strlen(name);
    gr_put_be32(out, (uint32_t)n);
    memcpy(out + 4, name, n);
    return 4 + n;
}

size_t nbdc_name_info(uint8_t *out, const char *name, int n_infos, ...)
{
    size_t at = put_name(out, name);
    gr_put_be16(out + at, (uint16_t)n_infos);
    at += 2;
    va_list ap;
    va_start(ap, n_infos);
    for (int i = 0; i < n_infos; i++, at += 2)
        gr_put_be16(out + at, (uint16_t)va_arg(ap, int));
    va_end(ap);
    return at;
}

size_t nbdc_meta(uint8_t *out, const char *name, int n_queries, ...)
{
    size_t at = put_name(out, name);
    gr_put_be32(out + at, (uint32_t)n_queries);
    at += 4;
    va_list ap;
    va_start(ap, n_queries);
    for (int i = 0; i < n_queries; i++)
        at += put_name(out + at, va_arg(ap, const char *));
    va_end(ap);
    return at;
}

int nbdc_go(struct mover_server *s, const char *name, bool structured, const char *context, uint64_t *ret_size, uint16_t *ret_flags)
{
    struct nbdc_rep rep;
    uint8_t data[1024];
    int fd = nbdc_connect(s);
    nbdc_hello(fd, 3);
    if (structured)
        assert_int_equal(nbdc_ask(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0, &rep), NBD_REP_ACK);
    if (context) {
        size_t n = nbdc_meta(data, name, 1, context);
        assert_int_equal(nbdc_ask(fd, NBD_OPT_SET_META_CONTEXT, data, n, &rep), NBD_REP_META_CONTEXT);
        nbdc_reply(fd, &rep);
        assert_int_equal(rep.type, NBD_REP_ACK);
    }
    nbdc_option(fd, NBD_OPT_GO, data, nbdc_name_info(data, name, 0));
    for (;;) {
        nbdc_reply(fd, &rep);
        if (rep.type == NBD_REP_ACK)
            return fd;
        assert_int_equal(rep.type, NBD_REP_INFO);
        if (gr_get_be16(rep.data) != NBD_INFO_EXPORT)
            continue;
        if (ret_size)
            *ret_size = gr_get_be64(rep.data + 2);
        if (ret_flags)
            *ret_flags = gr_get_be16(rep.data + 10);
    }
}

void nbdc_request(int fd, uint16_t flags, uint16_t type, uint64_t cookie, uint64_t off, uint32_t len)
{
    struct nbd_request_wire w = {gr_be32_of(NBD_REQUEST_MAGIC), gr_be16_of(flags), gr_be16_of(type),
                                 gr_be64_of(cookie), gr_be64_of(off), gr_be32_of(len)};
    nbdc_send(fd, &w, sizeof(w));
}

void nbdc_chunk(int fd, bool structured, uint32_t simple_len, struct nbdc_chunk *ret)
{
    memset(ret, 0, sizeof(*ret));
    uint8_t magic[4];
    nbdc_recv(fd, magic, 4);
    ret->simple = gr_get_be32(magic) == NBD_SIMPLE_REPLY_MAGIC;
    assert_true(ret->simple != structured);
    uint8_t head[16];
    nbdc_recv(fd, head, ret->simple ? 12 : 16);
    if (ret->simple) {
        ret->error = gr_get_be32(head);
        ret->cookie = gr_get_be64(head + 4);
        ret->len = ret->error ? 0 : simple_len;
    } else {
        assert_int_equal(gr_get_be32(magic), NBD_STRUCTURED_REPLY_MAGIC);
        ret->flags = gr_get_be16(head);
        ret->type = gr_get_be16(head + 2);
        ret->cookie = gr_get_be64(head + 4);
        ret->len = gr_get_be32(head + 12);
    }
    ret->data = malloc(ret->len + 1u);
    assert_non_null(ret->data);
    nbdc_recv(fd, ret->data, ret->len);
}

uint32_t nbdc_status(int fd, bool structured)
{
    struct nbdc_chunk k;
    nbdc_chunk(fd, structured, 0, &k);
    uint32_t error = k.error;
    if (!k.simple) {
        assert_true(k.flags & NBD_REPLY_FLAG_DONE);
        error = k.type == NBD_REPLY_TYPE_ERROR ? gr_get_be32(k.data) : 0;
    }
    free(k.data);
    return error;
}
