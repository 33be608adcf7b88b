/* A mover takes the place of another while clients use it: plain ones and those behind a gate. Both are in one process here; e2e 238 has two. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "iscsi-target/handover.h"
#include "tests/lib/nbdc.h"
#include "tests/lib/test.h"
#include "tests/lib/tlsc.h"
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SIZE (16u << 20)
#define SLOW_MS 80u
#define TLS13 "NORMAL:-VERS-ALL:+VERS-TLS1.3"

struct world {
    struct gr_loop *loop;
    struct mover_server *server;
    struct mover_opts opts;
    struct gr_mem *mem, *another;
    struct gr_bdev *mem_dev, *disk, *other;
    struct gr_bdev_ops named; /* of other: it has a number of its own */
    bool swapped; /* "ds/disk" is another disk now */
    bool busy;    /* with sessions: nobody may open it for writing */
    unsigned opens;
    char *pki;
    char last[512], lost[512];
    struct told *told; /* of exports */
    void (*body)(struct world *w);
};

static int other_geometry(struct gr_bdev *b, struct gr_geometry *ret)
{
    *ret = (struct gr_geometry){.size = SIZE, .logical_block = 512, .physical_block = 4096, .uuid = {7}};
    return 0;
}

static int dir_open(void *arg, const char *name, struct mover_export *ret, struct gr_err *err)
{
    struct world *w = arg;
    if (strcmp(name, "ds/disk") != 0)
        return gr_fail(err, -ENOENT, "no export '%s'", name);
    w->opens++;
    *ret = (struct mover_export){.bdev = gr_bdev_get(w->swapped ? w->other : w->disk), .writable = !w->busy};
    return 0;
}

static void on_log(void *arg, enum mover_log_level level, const char *text)
{
    struct world *w = arg;
    snprintf(strstr(text, "refused") ? w->lost : w->last, sizeof(w->last), "%s", text);
}

static void server_new(struct world *w)
{
    struct gr_err err = {0};
    if (mover_server_new(w->loop, &w->opts, &w->server, &err) < 0)
        fail_msg("%s", err.text);
}

static int run(void *arg)
{
    struct world *w = arg;
    w->mem = gr_mem_new(SIZE);
    w->another = gr_mem_new(SIZE);
    assert_int_equal(gr_bdev_mem_open(w->loop, w->mem, &w->mem_dev), 0);
    assert_int_equal(gr_bdev_mem_open(w->loop, w->another, &w->other), 0);
    assert_int_equal(gr_bdev_delay_open(w->loop, w->mem_dev, SLOW_MS * UINT64_C(1000000), 0, 0, &w->disk), 0);
    w->named = *w->other->ops;
    w->named.geometry = other_geometry;
    w->other->ops = &w->named;
    w->opts.dir = (struct mover_dir){.arg = w, .open = dir_open};
    w->opts.log = on_log;
    w->opts.log_arg = w;
    server_new(w);
    w->body(w);
    mover_server_stop(w->server);
    assert_int_equal(w->disk->refs, 1);
    gr_bdev_put(w->disk);
    gr_bdev_put(w->other);
    gr_bdev_put(w->mem_dev);
    gr_mem_free(w->mem);
    gr_mem_free(w->another);
    return 0;
}

static void in_world(struct mover_opts opts, void (*body)(struct world *w))
{
    struct world w = {.opts = opts, .body = body, .pki = test_path("pki")};
    struct gr_err err = {0};
    if (opts.security == MOVER_TLS) {
        assert_int_equal(mover_pki_ensure(w.pki, NULL, 0, &err), 0);
        w.opts.pki_dir = w.pki;
    }
    assert_int_equal(gr_loop_new(NULL, &w.loop, NULL), 0);
    assert_int_equal(gr_fiber_run(w.loop, run, &w), 0);
    gr_loop_free(w.loop);
    free(w.pki);
}

/* The server is another one afterwards: how many connections it could not go on with, or why the old one goes on. */
static int hand_over(struct world *w)
{
    struct gr_err err = {0};
    struct tgt_heritage mine = {.doc = json_object(), .fds = calloc(TGT_HERITAGE_FDS, sizeof(int))}, theirs = {0};
    int pair[2], r = mover_server_rest(w->server, 400, &err);
    if (r < 0) {
        snprintf(w->last, sizeof(w->last), "%s", err.text);
        tgt_heritage_free(&mine);
        return r;
    }
    assert_int_equal(mover_server_bequeath(w->server, &mine), 0);
    mover_server_stop(w->server);
    assert_int_equal(w->disk->refs, 1); /* nothing is held any more */
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(tgt_heritage_send(w->loop, pair[0], &mine, &err), 0);
    tgt_heritage_free(&mine);
    assert_int_equal(tgt_heritage_recv(w->loop, pair[1], &theirs, &err), 0);
    close(pair[0]);
    close(pair[1]);
    server_new(w);
    r = mover_server_inherit(w->server, &theirs);
    for (unsigned i = 0; i < theirs.n_fds; i++)
        assert_int_equal(theirs.fds[i], -1); /* all of it was taken */
    tgt_heritage_free(&theirs);
    return r;
}

struct later {
    struct world *w;
    int result;
    bool done;
};

static void hand_over_fiber(void *arg)
{
    struct later *l = arg;
    l->result = hand_over(l->w);
    l->done = true;
}

static void begin(struct later *l, struct world *w)
{
    *l = (struct later){.w = w};
    assert_int_equal(gr_fiber_start(w->loop, hand_over_fiber, l), 0);
    gr_fiber_sleep_ms(20);
}

static int end(const struct later *l)
{
    for (int i = 0; i < 5000 && !l->done; i++)
        gr_fiber_sleep_ms(1);
    assert_true(l->done);
    return l->result;
}

static void pattern(struct world *w)
{
    for (uint64_t off = 0; off < SIZE; off += 4096) {
        uint8_t *page = gr_mem_page(w->mem, off, true);
        gr_put_be64(page, off);
        gr_put_be64(page + 4088, ~off);
    }
}

static bool right(const uint8_t *p, uint64_t off, size_t len)
{
    for (size_t k = 0; k < len; k += 4096)
        if (gr_get_be64(p + k) != off + k || gr_get_be64(p + k + 4088) != ~(off + k))
            return false;
    return true;
}

/* A chunk of data that answers @cookie. */
static void take_read(int fd, uint64_t cookie, uint64_t off, uint32_t len)
{
    struct nbdc_chunk c;
    nbdc_chunk(fd, true, 0, &c);
    assert_int_equal(c.cookie, cookie);
    assert_int_equal(c.type, NBD_REPLY_TYPE_OFFSET_DATA);
    assert_int_equal(c.len, 8 + len);
    assert_true(gr_get_be64(c.data) == off && right(c.data + 8, off, len));
    free(c.data);
}

/* ---- plain text: every place in the stream ---- */

static void in_the_stream(struct world *w)
{
    uint64_t size;
    uint16_t flags;
    uint8_t head[28] = {0}, data[512];
    struct nbdc_rep rep;
    struct nbdc_chunk c;
    struct later l;
    pattern(w);
    int reads = nbdc_go(w->server, "ds/disk", true, "base:allocation", &size, &flags), greets = nbdc_connect(w->server), opts = nbdc_connect(w->server);
    int half = nbdc_connect(w->server);
    nbdc_hello(opts, 3);
    assert_int_equal(nbdc_ask(opts, NBD_OPT_STRUCTURED_REPLY, NULL, 0, &rep), NBD_REP_ACK);
    nbdc_hello(half, 3);
    size_t n = nbdc_name_info(data, "ds/disk", 0);
    struct nbd_opt_wire go = {gr_be64_of(NBD_OPTS_MAGIC), gr_be32_of(NBD_OPT_GO), gr_be32_of((uint32_t)n)};
    nbdc_send(half, &go, 7); /* half an option, which is read now */
    gr_fiber_sleep_ms(10);
    nbdc_request(reads, 0, NBD_CMD_READ, 1, 8192, 4096); /* under way: answered by who began it */
    begin(&l, w);
    nbdc_request(reads, 0, NBD_CMD_READ, 2, 65536, 65536); /* comes too late for the old one */
    gr_put_be32(head, NBD_REQUEST_MAGIC);
    gr_put_be16(head + 6, NBD_CMD_BLOCK_STATUS);
    gr_put_be64(head + 8, 3);
    gr_put_be32(head + 24, 4096);
    nbdc_send(reads, head, 11);
    assert_int_equal(end(&l), 0);
    nbdc_send(reads, head + 11, 17);
    take_read(reads, 1, 8192, 4096);
    take_read(reads, 2, 65536, 65536);
    nbdc_chunk(reads, true, 0, &c); /* the context is there, under its id */
    assert_int_equal(c.type, NBD_REPLY_TYPE_BLOCK_STATUS);
    assert_int_equal(gr_get_be32(c.data), 1);
    free(c.data);
    /* the others go on with their options; nobody is greeted twice */
    nbdc_send(half, (const uint8_t *)&go + 7, sizeof(go) - 7);
    nbdc_send(half, data, n);
    do
        nbdc_reply(half, &rep);
    while (rep.type == NBD_REP_INFO);
    assert_int_equal(rep.type, NBD_REP_ACK);
    nbdc_hello(greets, 3);
    assert_int_equal(nbdc_ask(greets, NBD_OPT_LIST, NULL, 0, &rep), NBD_REP_ERR_POLICY);
    nbdc_option(opts, NBD_OPT_GO, data, n);
    do
        nbdc_reply(opts, &rep);
    while (rep.type == NBD_REP_INFO);
    nbdc_request(opts, 0, NBD_CMD_READ, 4, 0, 4096);
    take_read(opts, 4, 0, 4096); /* structured, as it was agreed on before */
    close(reads);
    close(greets);
    close(opts);
    close(half);
}

/* A client that takes nothing: what it was answered waits for it, to the byte. */
static void unsent(struct world *w)
{
    uint64_t size;
    uint16_t flags;
    pattern(w);
    int fd = nbdc_go(w->server, "ds/disk", true, NULL, &size, &flags);
    for (unsigned i = 0; i < 8; i++)
        nbdc_request(fd, NBD_CMD_FLAG_DF, NBD_CMD_READ, i, i << 20, 1 << 20);
    gr_fiber_sleep_ms(2 * SLOW_MS);
    assert_int_equal(hand_over(w), 0);
    assert_int_equal(hand_over(w), 0);
    bool seen[8] = {0};
    for (unsigned i = 0; i < 8; i++) {
        struct nbdc_chunk c;
        nbdc_chunk(fd, true, 0, &c);
        assert_true(c.cookie < 8 && !seen[c.cookie] && c.len == 8 + (1u << 20));
        seen[c.cookie] = true;
        assert_true(right(c.data + 8, c.cookie << 20, 1 << 20));
        free(c.data);
    }
    nbdc_request(fd, 0, NBD_CMD_READ, 9, 4096, 4096);
    take_read(fd, 9, 4096, 4096);
    close(fd);
}

/* Half a write: it is named, and everything goes on as before. */
static void no_rest(struct world *w)
{
    static uint8_t out[65536];
    uint64_t size;
    uint16_t flags;
    struct later l;
    pattern(w);
    int fd = nbdc_go(w->server, "ds/disk", true, NULL, &size, &flags), other = nbdc_go(w->server, "ds/disk", true, NULL, &size, &flags);
    nbdc_request(fd, 0, NBD_CMD_WRITE, 1, 0, sizeof(out));
    nbdc_send(fd, out, 1000);
    gr_fiber_sleep_ms(10);
    begin(&l, w);
    nbdc_request(other, 0, NBD_CMD_READ, 2, 65536, 4096);
    assert_int_equal(end(&l), -EBUSY);
    assert_non_null(strstr(w->last, "ds/disk"));
    take_read(other, 2, 65536, 4096);
    nbdc_send(fd, out + 1000, sizeof(out) - 1000);
    assert_int_equal(nbdc_status(fd, true), 0);
    assert_int_equal(hand_over(w), 0);
    nbdc_request(fd, 0, NBD_CMD_READ, 3, 65536, 4096);
    take_read(fd, 3, 65536, 4096);
    close(fd);
    close(other);
}

/* It may write on, though a new one might not; another disk under the same name is not shown to who knew the first. */
static void same_export(struct world *w)
{
    static uint8_t out[4096];
    uint64_t size;
    uint16_t flags;
    int fd = nbdc_go(w->server, "ds/disk", true, NULL, &size, &flags);
    w->busy = true;
    int late = nbdc_go(w->server, "ds/disk", true, NULL, &size, &flags);
    assert_true(flags & NBD_FLAG_READ_ONLY);
    assert_int_equal(hand_over(w), 0);
    w->busy = false;
    assert_int_equal(hand_over(w), 0);
    memset(out, 0x5a, sizeof(out));
    nbdc_request(fd, 0, NBD_CMD_WRITE, 1, 4096, sizeof(out));
    nbdc_send(fd, out, sizeof(out));
    assert_int_equal(nbdc_status(fd, true), 0);
    assert_memory_equal(gr_mem_page(w->mem, 4096, false), out, sizeof(out));
    nbdc_request(late, 0, NBD_CMD_WRITE, 1, 4096, sizeof(out));
    nbdc_send(late, out, sizeof(out));
    assert_int_equal(nbdc_status(late, true), NBD_EPERM);
    w->swapped = true;
    assert_int_equal(hand_over(w), 2);
    assert_true(nbdc_closed(fd));
    assert_true(nbdc_closed(late));
    assert_non_null(strstr(w->lost, "is not what it was"));
    gr_fiber_sleep_ms(10);
}

struct told {
    char name[32], peer[80];
    unsigned n;
};

static int told(void *arg, const char *name, const char *peer)
{
    struct told *t = arg;
    if (!t->n++)
        gr_fiber_sleep_ms(100);
    snprintf(t->name, sizeof(t->name), "%s", name);
    snprintf(t->peer, sizeof(t->peer), "%s", peer);
    return 0;
}

static void look_at_exports(void *arg)
{
    struct later *l = arg;
    l->result = mover_server_each_export(l->w->server, told, l->w->told);
    l->done = true;
}

/* Connections end while somebody looks at what they have open, who waits: he was told all the same, and of what there is. */
static void looked_at(struct world *w)
{
    uint64_t size;
    uint16_t flags;
    struct told seen = {0};
    struct later l = {.w = w};
    int fd[3];
    for (int i = 0; i < 3; i++)
        fd[i] = nbdc_go(w->server, "ds/disk", true, NULL, &size, &flags);
    w->told = &seen;
    assert_int_equal(gr_fiber_start(w->loop, look_at_exports, &l), 0);
    gr_fiber_sleep_ms(10);
    for (int i = 0; i < 3; i++)
        close(fd[i]);
    assert_int_equal(end(&l), 0);
    assert_int_equal(seen.n, 3);
    assert_string_equal(seen.name, "ds/disk");
    assert_true(seen.peer[0]);
    seen = (struct told){0};
    assert_int_equal(mover_server_each_export(w->server, told, &seen), 0);
    assert_int_equal(seen.n, 0);
}

/* ---- behind a gate ---- */

static void tls_go(struct tlsc *c, struct world *w)
{
    uint8_t data[64], option[16 + sizeof(data)], answer[128];
    tlsc_connect(c, w->server);
    assert_true(tlsc_shake(c, TLS13, w->pki, NULL, NULL));
    size_t n = nbdc_name_info(data, "ds/disk", 0);
    gr_put_be64(option, NBD_OPTS_MAGIC);
    gr_put_be32(option + 8, NBD_OPT_GO);
    gr_put_be32(option + 12, (uint32_t)n);
    memcpy(option + 16, data, n);
    assert_true(tlsc_send(c, option, 16 + n));
    for (size_t got = 0; got < 3 * 20 + 12 + 14;) { /* two infos and an acknowledgement */
        ssize_t r = tlsc_recv(c, answer, sizeof(answer));
        assert_true(r > 0);
        got += (size_t)r;
    }
}

static void tls_ask(struct tlsc *c, uint64_t off, uint32_t len)
{
    uint8_t rq[28] = {0};
    gr_put_be32(rq, NBD_REQUEST_MAGIC);
    gr_put_be16(rq + 6, NBD_CMD_READ);
    gr_put_be64(rq + 8, off);
    gr_put_be64(rq + 16, off);
    gr_put_be32(rq + 24, len);
    assert_true(tlsc_send(c, rq, sizeof(rq)));
}

static void tls_take(struct tlsc *c, uint64_t off, uint32_t len)
{
    gr_auto_free uint8_t *p = malloc(16 + len);
    for (size_t got = 0; got < 16 + len;) {
        ssize_t r = tlsc_recv(c, p + got, 16 + len - got);
        if (r <= 0)
            fail_msg("the server went away after %zu bytes: %s", got, r ? gnutls_strerror((int)r) : "good-bye");
        got += (size_t)r;
    }
    assert_int_equal(gr_get_be32(p + 4), 0);
    assert_true(gr_get_be64(p + 8) == off && right(p + 16, off, len));
}

static void behind_gates(struct world *w)
{
    struct tlsc a, b, shaking;
    struct later l;
    struct mover_stats st;
    pattern(w);
    tls_go(&a, w);
    tlsc_connect(&shaking, w->server); /* has proved nothing yet, and does so when it is nearly too late */
    tls_ask(&a, 1 << 20, 1 << 20);
    begin(&l, w);
    tls_ask(&a, 0, 4096);
    assert_true(tlsc_shake(&shaking, TLS13, w->pki, NULL, NULL));
    assert_int_equal(end(&l), 0);
    tls_take(&a, 1 << 20, 1 << 20);
    tls_take(&a, 0, 4096);
    assert_true(tlsc_alive(&shaking));
    tlsc_close(&shaking);
    tls_go(&b, w); /* through a gate of the new one */
    assert_int_equal(hand_over(w), 0);
    for (uint32_t i = 0; i < 4; i++) {
        tls_ask(&a, i << 20, 1 << 20);
        tls_ask(&b, (i + 4) << 20, 1 << 20);
    }
    for (uint32_t i = 0; i < 4; i++) {
        tls_take(&a, i << 20, 1 << 20);
        tls_take(&b, (i + 4) << 20, 1 << 20);
    }
    mover_server_stats(w->server, &st);
    assert_int_equal(st.connections, 2);
    assert_true(gnutls_bye(a.session, GNUTLS_SHUT_WR) >= 0);
    assert_int_equal(tlsc_recv(&a, &st, 1), 0); /* in order: the old gate waits until the client has closed, too */
    tlsc_close(&a);
    tlsc_close(&b);
    gr_fiber_sleep_ms(50);
    mover_server_stats(w->server, &st);
    assert_int_equal(st.connections, 0);
}

static int knock(struct world *w)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)mover_server_port(w->server)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof(to)), 0);
    assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
    return fd;
}

/* The hand-over does not come about: who knocked meanwhile was not turned away, and comes in. */
static void doors_open_again(struct world *w)
{
    assert_int_equal(mover_server_listen(w->server, "127.0.0.1:0", NULL), 0);
    struct tlsc a, b;
    struct later l;
    uint8_t rq[28] = {0};
    pattern(w);
    tls_go(&a, w);
    gr_put_be32(rq, NBD_REQUEST_MAGIC);
    gr_put_be16(rq + 6, NBD_CMD_WRITE);
    gr_put_be32(rq + 24, 4096);
    assert_true(tlsc_send(&a, rq, sizeof(rq)));
    gr_fiber_sleep_ms(20);
    begin(&l, w);
    int fd = knock(w);
    uint8_t byte;
    gr_fiber_sleep_ms(50);
    assert_int_equal(recv(fd, &byte, 1, 0), -1); /* nobody lets it in now */
    assert_int_equal(end(&l), -EBUSY);
    nbdc_hello(fd, 3);
    close(fd);
    tls_go(&b, w);
    tls_ask(&b, 4096, 4096);
    tls_take(&b, 4096, 4096);
    tlsc_close(&a);
    tlsc_close(&b);
}

static void t_in_the_stream(void **state)
{
    in_world((struct mover_opts){.security = MOVER_PLAIN_LOOPBACK}, in_the_stream);
}
static void t_unsent(void **state)
{
    in_world((struct mover_opts){.security = MOVER_PLAIN_LOOPBACK}, unsent);
}
static void t_no_rest(void **state)
{
    in_world((struct mover_opts){.security = MOVER_PLAIN_LOOPBACK}, no_rest);
}
static void t_same_export(void **state)
{
    in_world((struct mover_opts){.security = MOVER_PLAIN_LOOPBACK}, same_export);
}
static void t_looked_at(void **state)
{
    in_world((struct mover_opts){.security = MOVER_PLAIN_LOOPBACK}, looked_at);
}
static void t_behind_gates(void **state)
{
    in_world((struct mover_opts){0}, behind_gates);
}
static void t_doors_open_again(void **state)
{
    in_world((struct mover_opts){0}, doors_open_again);
}

int main(int argc, char **argv)
{
    int r = mover_gate_main(argc, argv);
    if (r >= 0)
        return r;
    const struct CMUnitTest tests[] = {TEST(t_in_the_stream), TEST(t_unsent), TEST(t_no_rest), TEST(t_same_export), TEST(t_looked_at), TEST(t_behind_gates),
                                       TEST(t_doors_open_again)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
