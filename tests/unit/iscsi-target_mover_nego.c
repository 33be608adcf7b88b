/* Negotiation of the data mover, with a client that says exact bytes. */
#include "tests/lib/nbdfix.h"
#include "tests/lib/test.h"
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void old_style(struct nbdfix *f)
{
    for (int no_zeroes = 0; no_zeroes < 2; no_zeroes++) {
        int fd = nbdc_connect(f->server);
        uint8_t got[8 + 2 + 124], zero[124] = {0};
        nbdc_hello(fd, no_zeroes ? 3 : 1);
        nbdc_option(fd, NBD_OPT_EXPORT_NAME, "ds/disk", 7);
        nbdc_recv(fd, got, no_zeroes ? 10 : sizeof(got));
        assert_int_equal(gr_get_be64(got), NBDFIX_SIZE);
        assert_true(gr_get_be16(got + 8) & NBD_FLAG_HAS_FLAGS);
        if (!no_zeroes)
            assert_memory_equal(got + 10, zero, 124);
        nbdc_request(fd, 0, NBD_CMD_READ, 1, 0, 512);
        struct nbdc_chunk k;
        nbdc_chunk(fd, false, 512, &k);
        assert_int_equal(k.len, 512);
        free(k.data);
        close(fd);
    }
    int fd = nbdc_connect(f->server);
    nbdc_hello(fd, 3);
    nbdc_option(fd, NBD_OPT_EXPORT_NAME, "ds/nothing", 10);
    assert_true(nbdc_closed(fd));
    assert_non_null(strstr(f->last_log, "ds/nothing"));
    close(fd);
}

static void info_and_go(struct nbdfix *f)
{
    struct nbdc_rep rep;
    uint8_t d[512];
    int fd = nbdc_connect(f->server);
    nbdc_hello(fd, 3);
    size_t n = nbdc_name_info(d, "ds/disk@snap", 3, NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE);
    nbdc_option(fd, NBD_OPT_INFO, d, n);
    unsigned seen = 0, min = 0;
    for (;;) {
        nbdc_reply(fd, &rep);
        if (rep.type == NBD_REP_ACK)
            break;
        assert_int_equal(rep.type, NBD_REP_INFO);
        unsigned kind = gr_get_be16(rep.data);
        seen |= 1u << kind;
        if (kind == NBD_INFO_EXPORT)
            assert_true(gr_get_be16(rep.data + 10) & NBD_FLAG_READ_ONLY);
        if (kind == NBD_INFO_NAME)
            assert_string_equal((char *)rep.data + 2, "ds/disk@snap");
        if (kind == NBD_INFO_BLOCK_SIZE)
            min = gr_get_be32(rep.data + 2);
    }
    assert_int_equal(seen, 15);
    assert_int_equal(min, 1);
    assert_int_equal(f->faulty->refs, 1); /* INFO keeps nothing open */
    assert_int_equal(nbdc_ask(fd, NBD_OPT_GO, d, nbdc_name_info(d, "ds/none", 0), &rep), NBD_REP_ERR_UNKNOWN);
    assert_int_equal(nbdc_ask(fd, NBD_OPT_GO, d, nbdc_name_info(d, "ds/\tx", 0), &rep), NBD_REP_ERR_INVALID);
    assert_int_equal(nbdc_ask(fd, NBD_OPT_GO, d, 3, &rep), NBD_REP_ERR_INVALID);
    nbdc_option(fd, NBD_OPT_ABORT, NULL, 0);
    nbdc_reply(fd, &rep);
    assert_true(nbdc_closed(fd));
    close(fd);

    uint64_t size = 0;
    uint16_t flags = 0;
    fd = nbdc_go(f->server, "ds/disk", true, NULL, &size, &flags);
    assert_int_equal(size, NBDFIX_SIZE);
    assert_int_equal(flags & (NBD_FLAG_READ_ONLY | NBD_FLAG_SEND_DF | NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_FUA),
                     NBD_FLAG_SEND_DF | NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_FUA);
    close(fd);
}

static void listing(struct nbdfix *f)
{
    struct nbdc_rep rep;
    int fd = nbdc_connect(f->server);
    nbdc_hello(fd, 3);
    nbdc_option(fd, NBD_OPT_LIST, NULL, 0);
    int n = 0;
    for (nbdc_reply(fd, &rep); rep.type == NBD_REP_SERVER; nbdc_reply(fd, &rep))
        if (!n++)
            assert_string_equal((char *)rep.data + 4, "ds/diska test disk");
    assert_int_equal(rep.type, NBD_REP_ACK);
    assert_int_equal(n, 101);
    assert_int_equal(nbdc_ask(fd, NBD_OPT_LIST, "x", 1, &rep), NBD_REP_ERR_INVALID);
    assert_int_equal(nbdc_ask(fd, 77, "abc", 3, &rep), NBD_REP_ERR_UNSUP);
    assert_int_equal(nbdc_ask(fd, NBD_OPT_STARTTLS, NULL, 0, &rep), NBD_REP_ERR_UNSUP); /* none set up */
    close(fd);
}

static void contexts(struct nbdfix *f)
{
    struct nbdc_rep rep;
    uint8_t d[1024];
    int fd = nbdc_connect(f->server);
    nbdc_hello(fd, 3);
    size_t n = nbdc_meta(d, "ds/disk", 0);
    assert_int_equal(nbdc_ask(fd, NBD_OPT_LIST_META_CONTEXT, d, n, &rep), NBD_REP_ERR_INVALID); /* before STRUCTURED_REPLY */
    assert_int_equal(nbdc_ask(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0, &rep), NBD_REP_ACK);
    static const char *const want[] = {"base:allocation", "granary:changed:monday", "granary:changed:tuesday"};
    nbdc_option(fd, NBD_OPT_LIST_META_CONTEXT, d, n);
    for (int i = 0; i < 3; i++) {
        nbdc_reply(fd, &rep);
        assert_int_equal(rep.type, NBD_REP_META_CONTEXT);
        assert_string_equal((char *)rep.data + 4, want[i]);
    }
    nbdc_reply(fd, &rep);
    assert_int_equal(rep.type, NBD_REP_ACK);
    /* unknown contexts and bases are passed over in silence; memory tells no changes, so a token is not selected either */
    n = nbdc_meta(d, "ds/disk", 4, "qemu:dirty-bitmap:x", "granary:changed:none",
                  "granary:changed:00112233-4455-6677-8899-aabbccddeeff:1:1", "base:allocation");
    assert_int_equal(nbdc_ask(fd, NBD_OPT_SET_META_CONTEXT, d, n, &rep), NBD_REP_META_CONTEXT);
    assert_string_equal((char *)rep.data + 4, "base:allocation");
    nbdc_reply(fd, &rep);
    assert_int_equal(rep.type, NBD_REP_ACK);
    n = nbdc_meta(d, "ds/none", 1, "base:allocation");
    assert_int_equal(nbdc_ask(fd, NBD_OPT_SET_META_CONTEXT, d, n, &rep), NBD_REP_ERR_UNKNOWN);
    n = nbdc_meta(d, "ds/disk", 1, "base:allocation");
    gr_put_be32(d + 11, 0x7fffffff); /* claims 2^31 queries */
    assert_int_equal(nbdc_ask(fd, NBD_OPT_SET_META_CONTEXT, d, n, &rep), NBD_REP_ERR_INVALID);
    close(fd);
}

/* Contexts count for the export they were selected for, and only for that one. */
static void contexts_of_another_export(struct nbdfix *f)
{
    struct nbdc_rep rep;
    uint8_t d[1024];
    int fd = nbdc_connect(f->server);
    nbdc_hello(fd, 3);
    assert_int_equal(nbdc_ask(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0, &rep), NBD_REP_ACK);
    nbdc_ask(fd, NBD_OPT_SET_META_CONTEXT, d, nbdc_meta(d, "ds/disk@snap", 1, "base:allocation"), &rep);
    nbdc_reply(fd, &rep);
    nbdc_option(fd, NBD_OPT_GO, d, nbdc_name_info(d, "ds/disk", 0));
    do
        nbdc_reply(fd, &rep);
    while (rep.type == NBD_REP_INFO);
    assert_int_equal(rep.type, NBD_REP_ACK);
    nbdc_request(fd, 0, NBD_CMD_BLOCK_STATUS, 1, 0, 4096);
    assert_int_equal(nbdc_status(fd, true), NBD_EINVAL);
    close(fd);
}

static void hostile(struct nbdfix *f)
{
    struct nbdc_rep rep;
    uint8_t *big = calloc(1, 1 << 20);
    assert_non_null(big);
    int fd = nbdc_connect(f->server);
    nbdc_hello(fd, 1u << 20); /* unknown flags */
    assert_true(nbdc_closed(fd));
    close(fd);

    fd = nbdc_connect(f->server);
    nbdc_hello(fd, 3);
    nbdc_option(fd, NBD_OPT_GO, big, 200000); /* over 64 KiB: skipped, and the connection goes on */
    nbdc_reply(fd, &rep);
    assert_int_equal(rep.type, NBD_REP_ERR_TOO_BIG);
    assert_int_equal(nbdc_ask(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0, &rep), NBD_REP_ACK);
    gr_put_be32(big, 4097); /* a name one byte too long */
    memset(big + 4, 'a', 4097);
    assert_int_equal(nbdc_ask(fd, NBD_OPT_INFO, big, 4 + 4097 + 2, &rep), NBD_REP_ERR_INVALID);
    struct nbd_opt_wire w = {gr_be64_of(NBD_OPTS_MAGIC), gr_be32_of(NBD_OPT_GO), gr_be32_of(0xffffffff)};
    nbdc_send(fd, &w, sizeof(w)); /* 4 GiB of data: not even skipped */
    assert_true(nbdc_closed(fd));
    close(fd);

    fd = nbdc_connect(f->server);
    nbdc_hello(fd, 3);
    w.magic = gr_be64_of(NBD_OPTS_MAGIC ^ 1);
    nbdc_send(fd, &w, sizeof(w));
    assert_true(nbdc_closed(fd));
    close(fd);

    fd = nbdc_connect(f->server);
    nbdc_hello(fd, 3);
    int n = 0;
    for (; n < 64; n++) /* endless options end */
        nbdc_ask(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0, &rep);
    assert_true(nbdc_closed(fd));
    close(fd);
    free(big);
    struct mover_stats st;
    gr_fiber_sleep_ms(1);
    mover_server_stats(f->server, &st);
    assert_int_equal(st.connections, 0);
    assert_int_equal(st.refused, 4);
}

static void silent(struct nbdfix *f)
{
    int fd = nbdc_connect(f->server), half = nbdc_connect(f->server);
    nbdc_hello(half, 3);
    nbdc_send(half, "IHAVE", 5);
    uint8_t hello[18];
    nbdc_recv(fd, hello, sizeof(hello));
    uint64_t start = gr_loop_now_ns(f->loop);
    assert_true(nbdc_closed(fd));
    assert_true(nbdc_closed(half));
    uint64_t ms = (gr_loop_now_ns(f->loop) - start) / 1000000;
    assert_true(ms < 2000);
    close(fd);
    close(half);
}

static void too_many(struct nbdfix *f)
{
    int fd[4], sv[2];
    for (int i = 0; i < 4; i++)
        fd[i] = nbdc_connect(f->server);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
    assert_int_equal(mover_server_adopt(f->server, sv[0], NULL), -EAGAIN);
    close(sv[1]);
    for (int i = 0; i < 4; i++)
        close(fd[i]);
    gr_fiber_sleep_ms(20);
    close(nbdc_go(f->server, "ds/disk", true, NULL, NULL, NULL)); /* and room again */
}

#define IN_LOOP(fn) static void t_##fn(void **state) { nbdfix_run(NULL, fn); }
IN_LOOP(old_style)
IN_LOOP(info_and_go)
IN_LOOP(listing)
IN_LOOP(contexts)
IN_LOOP(contexts_of_another_export)
IN_LOOP(hostile)
static void t_silent(void **state)
{
    struct mover_opts o = {.negotiate_timeout_ms = 100};
    nbdfix_run(&o, silent);
}
static void t_too_many(void **state)
{
    struct mover_opts o = {.max_negotiating = 4};
    nbdfix_run(&o, too_many);
}
TEST_MAIN(TEST(t_old_style), TEST(t_info_and_go), TEST(t_listing), TEST(t_contexts), TEST(t_contexts_of_another_export),
          TEST(t_hostile), TEST(t_silent), TEST(t_too_many))
