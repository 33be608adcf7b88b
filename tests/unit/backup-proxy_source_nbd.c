/* The NBD source: against the real data mover, and against servers that lie. */
#include "backup-proxy/source.h"
#include "common/cleanup.h"
#include "iscsi-target/mover_proto.h"
#include "tests/lib/nbdfix.h"
#include "tests/lib/test.h"
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int listen_unix(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_true(fd >= 0 && strlen(path) < sizeof(a.sun_path));
    memcpy(a.sun_path, path, strlen(path) + 1);
    unlink(path);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(fd, 8), 0);
    return fd;
}

static int open_at(struct gr_loop *loop, const char *path, struct bp_nbd_opts o, struct gr_bdev **ret, struct gr_err *err)
{
    gr_auto_free char *uri = gr_asprintf("nbd+unix:///ds/disk%%40snap?socket=%s", path);
    o.uri = uri;
    return bp_source_nbd_open(loop, &o, ret, err);
}

static struct gr_chan *source(struct nbdfix *f, unsigned connections)
{
    gr_auto_free char *path = test_path("nbd.sock");
    struct gr_bdev *b = NULL;
    struct gr_chan *ch = NULL;
    struct gr_err err = {0};
    assert_int_equal(mover_server_listen_fd(f->server, listen_unix(path), &err), 0);
    int r = open_at(f->loop, path, (struct bp_nbd_opts){.connections = connections}, &b, &err);
    if (r < 0)
        fail_msg("%s", err.text);
    assert_int_equal(gr_chan_open(b, f->loop, &ch), 0);
    gr_bdev_put(b);
    return ch;
}

struct many {
    struct gr_bio bio[64];
    struct iovec iov[64][3];
    uint8_t *buf[64];
    unsigned left;
    struct gr_fiber *fiber;
};
static void one_done(struct gr_bio *bio)
{
    struct many *m = bio->arg;
    assert_int_equal(bio->status, 0);
    if (!--m->left)
        gr_fiber_wake(m->fiber);
}

static void reads(struct nbdfix *f)
{
    uint64_t seed = test_seed();
    for (uint64_t at = 0; at < NBDFIX_SIZE; at += 4096)
        if (at % 65536 == 0 || at > (6 << 20))
            memset(gr_mem_page(f->mem, at, true), (int)(1 + at / 4096 % 250), 4096);
    struct gr_chan *ch = source(f, 4);
    struct gr_geometry g;
    assert_int_equal(gr_bdev_geometry(ch->bdev, &g), 0);
    assert_true(g.size == NBDFIX_SIZE && g.read_only && g.thin);
    struct many *m = calloc(1, sizeof(*m));
    assert_non_null(m);
    m->fiber = gr_fiber_self();
    m->left = 64;
    for (int i = 0; i < 64; i++) {
        uint64_t len = (1 + test_rand(&seed) % (i % 8 ? 64 : NBDFIX_SIZE / 512)) * 512, off = test_rand(&seed) % (NBDFIX_SIZE - len) / 512 * 512;
        m->buf[i] = malloc(len);
        uint64_t cut = i % 2 ? len / 3 : 0;
        m->iov[i][0] = (struct iovec){m->buf[i], cut ? cut : len};
        m->iov[i][1] = (struct iovec){m->buf[i] + cut, 0};
        m->iov[i][2] = (struct iovec){m->buf[i] + cut, len - cut};
        m->bio[i] = (struct gr_bio){.op = GR_OP_READ, .off = off, .len = len, .iov = m->iov[i], .iovcnt = cut ? 3 : 1, .done = one_done, .arg = m};
        gr_submit(ch, &m->bio[i]);
    }
    while (m->left)
        gr_fiber_suspend();
    for (int i = 0; i < 64; i++) {
        for (uint64_t at = 0; at < m->bio[i].len; at += 512) {
            uint64_t dev = m->bio[i].off + at;
            const uint8_t *page = gr_mem_page(f->mem, dev / 4096 * 4096, false);
            assert_int_equal(m->buf[i][at], page ? page[0] : 0);
        }
        free(m->buf[i]);
    }
    free(m);
    uint8_t b[512] = {0};
    assert_int_equal(gr_pwrite(ch, b, 512, 0, 0), -GR_EREADONLY);
    assert_int_equal(gr_pread(ch, b, 512, NBDFIX_SIZE), -GR_ERANGE);
    gr_chan_close(ch);
}

static void extents(struct nbdfix *f)
{
    memset(gr_mem_page(f->mem, 65536, true), 1, 4096);
    struct gr_chan *ch = source(f, 1);
    struct gr_extent e[8];
    unsigned n = 0;
    assert_int_equal(gr_extents(ch, 0, NBDFIX_SIZE, NULL, e, 8, &n), 0);
    assert_int_equal(n, 3);
    assert_true(e[0].len == 65536 && (e[0].flags & GR_EXTENT_HOLE) && e[0].changed);
    assert_true(e[1].off == 65536 && e[1].len == 4096 && e[1].flags == GR_EXTENT_DATA);
    assert_true(e[2].off + e[2].len == NBDFIX_SIZE);
    assert_int_equal(gr_extents(ch, 0, NBDFIX_SIZE, NULL, e, 2, &n), 0);
    assert_int_equal(n, 2);
    struct gr_bookmark base = {.epoch = 1};
    assert_int_equal(gr_extents(ch, 0, 512, &base, e, 8, &n), -EOPNOTSUPP);
    gr_chan_close(ch);
    /* memory knows no history: the open says so at once */
    gr_auto_free char *path = test_path("nbd.sock");
    struct gr_bdev *b = NULL;
    struct gr_err err = {0};
    assert_int_equal(open_at(f->loop, path, (struct bp_nbd_opts){.base = &base}, &b, &err), -ENOENT);
    assert_non_null(strstr(err.text, "changed since 00000000-"));
    assert_int_equal(open_at(f->loop, path, (struct bp_nbd_opts){.require_tls = true}, &b, &err), -GR_EAUTH);
}

static void broken_connection(struct nbdfix *f)
{
    struct gr_chan *ch = source(f, 1);
    uint8_t b[512];
    assert_int_equal(gr_pread(ch, b, 512, 0), 0);
    mover_server_drop(f->server, "ds/", true);
    assert_true(gr_pread(ch, b, 512, 0) < 0);
    assert_true(gr_pread(ch, b, 512, 0) < 0);
    gr_chan_close(ch);
}

/* ---- a server that lies ---- */
enum lie { LIE_NONE, LIE_SIZE_HUGE, LIE_SIZE_ODD, LIE_SILENT, LIE_GAP, LIE_OVERLAP, LIE_OUTSIDE, LIE_COOKIE, LIE_CUT, LIE_NO_DATA,
    LIE_ZERO_EXTENT, LIE_LONG_EXTENT, LIE_NO_EXTENT, LIE_MANY_CHUNKS, LIE_MUTE, LIE_MAGIC, LIE_REPLY_LEN, LIE_REPLY_MAGIC };
struct liar {
    enum lie lie;
    int listen;
    bool ended;
    struct gr_loop *loop;
};

static void say_chunk(int fd, uint16_t flags, uint16_t type, uint64_t cookie, const void *data, uint32_t len)
{
    struct nbd_chunk_wire w = {gr_be32_of(NBD_STRUCTURED_REPLY_MAGIC), gr_be16_of(flags), gr_be16_of(type), gr_be64_of(cookie), gr_be32_of(len)};
    nbdc_send(fd, &w, sizeof(w));
    nbdc_send(fd, data, len);
}

static void say_data(int fd, uint16_t flags, uint64_t cookie, uint64_t off, uint32_t len)
{
    uint8_t *d = calloc(1, len + 8u);
    gr_put_be64(d, off);
    memset(d + 8, 0x77, len);
    say_chunk(fd, flags, NBD_REPLY_TYPE_OFFSET_DATA, cookie, d, len + 8);
    free(d);
}

static bool got(int fd, void *buf, size_t len) /* false: the client went */
{
    for (size_t at = 0; at < len;) {
        ssize_t n = recv(fd, (char *)buf + at, len - at, 0);
        if (n > 0)
            at += (size_t)n;
        else if (n == 0 || errno != EAGAIN || gr_fiber_wait_fd(fd, POLLIN, 5000) <= 0)
            return false;
    }
    return true;
}

static void lie_reply(int fd, uint32_t opt, uint32_t type, const void *data, size_t len)
{
    struct nbd_rep_wire w = {gr_be64_of(NBD_REP_MAGIC), gr_be32_of(opt), gr_be32_of(type), gr_be32_of((uint32_t)len)};
    nbdc_send(fd, &w, sizeof(w));
    nbdc_send(fd, data, len);
}

static bool lie_options(int fd, enum lie lie)
{
    uint8_t hello[18], head[16], data[2048], info[12];
    gr_put_be64(hello, NBD_MAGIC);
    gr_put_be64(hello + 8, NBD_OPTS_MAGIC);
    gr_put_be16(hello + 16, 3);
    if (lie == LIE_MUTE)
        return got(fd, data, 1);
    if (lie == LIE_MAGIC)
        hello[3] ^= 1;
    nbdc_send(fd, hello, 18);
    if (!got(fd, data, 4))
        return false;
    for (;;) {
        if (!got(fd, head, 16) || gr_get_be32(head + 12) > sizeof(data) || !got(fd, data, gr_get_be32(head + 12)))
            return false;
        uint32_t opt = gr_get_be32(head + 8);
        if (lie == LIE_REPLY_LEN || lie == LIE_REPLY_MAGIC) {
            struct nbd_rep_wire w = {gr_be64_of(NBD_REP_MAGIC ^ (lie == LIE_REPLY_MAGIC)), gr_be32_of(opt), gr_be32_of(NBD_REP_ACK),
                                     gr_be32_of(lie == LIE_REPLY_LEN ? 0xffffffff : 0)};
            nbdc_send(fd, &w, sizeof(w));
            continue;
        }
        if (opt == NBD_OPT_SET_META_CONTEXT)
            lie_reply(fd, opt, NBD_REP_META_CONTEXT, "\0\0\0\1base:allocation", 19);
        if (opt == NBD_OPT_GO) {
            gr_put_be16(info, NBD_INFO_EXPORT);
            gr_put_be64(info + 2, lie == LIE_SIZE_HUGE ? UINT64_C(1) << 63 : lie == LIE_SIZE_ODD ? 1000001 : 1 << 20);
            gr_put_be16(info + 10, NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY | NBD_FLAG_SEND_DF);
            lie_reply(fd, opt, NBD_REP_INFO, info, 12);
        }
        lie_reply(fd, opt, NBD_REP_ACK, NULL, 0);
        if (opt == NBD_OPT_GO)
            return true;
    }
}

static void lie_extents(int fd, enum lie lie, uint64_t cookie)
{
    uint8_t d[20] = {0};
    gr_put_be32(d, lie == LIE_NO_EXTENT ? 9 : 1); /* an answer for a context nobody asked for */
    gr_put_be32(d + 4, lie == LIE_ZERO_EXTENT ? 0 : lie == LIE_LONG_EXTENT ? 0xffffffff : 4096);
    gr_put_be32(d + 12, lie == LIE_LONG_EXTENT ? 0xffffffff : 4096);
    gr_put_be32(d + 16, 3);
    say_chunk(fd, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, cookie, d, 20);
}

static void lie_read(int fd, enum lie lie, uint64_t cookie, uint64_t off, uint32_t len)
{
    switch (lie) {
    case LIE_GAP:
        say_data(fd, NBD_REPLY_FLAG_DONE, cookie, off, len - 512);
        return;
    case LIE_OVERLAP:
        say_data(fd, 0, cookie, off, len / 2);
        say_data(fd, NBD_REPLY_FLAG_DONE, cookie, off, len / 2);
        return;
    case LIE_OUTSIDE:
        say_data(fd, NBD_REPLY_FLAG_DONE, cookie, off + len, len);
        return;
    case LIE_COOKIE:
        say_data(fd, NBD_REPLY_FLAG_DONE, cookie + 77, off, len);
        return;
    case LIE_CUT:
        say_data(fd, 0, cookie, off, len / 2);
        close(fd);
        return;
    case LIE_NO_DATA:
        say_chunk(fd, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, cookie, NULL, 0);
        return;
    case LIE_MANY_CHUNKS:
        for (uint32_t i = 0; i + 1 < len; i++)
            say_data(fd, 0, cookie, off + i, 1);
        say_data(fd, NBD_REPLY_FLAG_DONE, cookie, off + len - 1, 1);
        return;
    default:
        say_data(fd, NBD_REPLY_FLAG_DONE, cookie, off, len);
    }
}

static void lie_serve(void *arg)
{
    struct liar *l = arg;
    uint8_t q[28];
    assert_true(gr_fiber_wait_fd(l->listen, POLLIN, 5000) > 0);
    int fd = accept4(l->listen, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    assert_true(fd >= 0);
    int keep = dup(fd); /* some lies close the socket: then its number must not be anybody else's */
    if (lie_options(fd, l->lie)) {
        while (got(fd, q, 28) && gr_get_be16(q + 6) != NBD_CMD_DISC) {
            uint64_t cookie = gr_get_be64(q + 8), off = gr_get_be64(q + 16);
            if (l->lie == LIE_SILENT)
                continue;
            if (gr_get_be16(q + 6) == NBD_CMD_BLOCK_STATUS)
                lie_extents(fd, l->lie, cookie);
            else
                lie_read(fd, l->lie, cookie, off, gr_get_be32(q + 24));
            if (l->lie == LIE_CUT)
                break;
        }
    }
    if (l->lie != LIE_CUT)
        close(fd);
    close(keep);
    l->ended = true;
}

/* Open the liar's export; NULL when that fails, with the reason in @err. */
static struct gr_chan *lied_to(struct nbdfix *f, struct liar *l, enum lie lie, struct gr_err *err)
{
    gr_auto_free char *path = test_path("liar.sock");
    struct gr_bdev *b = NULL;
    struct gr_chan *ch = NULL;
    *l = (struct liar){.lie = lie, .listen = listen_unix(path), .loop = f->loop};
    *err = (struct gr_err){0};
    assert_int_equal(gr_fiber_start(f->loop, lie_serve, l), 0);
    if (open_at(f->loop, path, (struct bp_nbd_opts){.timeout_ms = lie == LIE_SILENT || lie == LIE_MUTE ? 100 : 5000}, &b, err) < 0)
        return NULL;
    assert_int_equal(gr_chan_open(b, f->loop, &ch), 0);
    gr_bdev_put(b);
    return ch;
}

static void lied_end(struct liar *l, struct gr_chan *ch)
{
    gr_chan_close(ch);
    while (!l->ended)
        gr_fiber_sleep_ms(1);
    close(l->listen);
}

static void hostile(struct nbdfix *f)
{
    struct liar l;
    struct gr_err err;
    static uint8_t b[65536];
    assert_null(lied_to(f, &l, LIE_SIZE_HUGE, &err));
    lied_end(&l, NULL);
    assert_null(lied_to(f, &l, LIE_SIZE_ODD, &err));
    assert_non_null(strstr(err.text, "1000001"));
    lied_end(&l, NULL);

    static const enum lie greetings[] = {LIE_MUTE, LIE_MAGIC, LIE_REPLY_LEN, LIE_REPLY_MAGIC};
    for (int i = 0; i < 4; i++) {
        assert_null(lied_to(f, &l, greetings[i], &err));
        assert_true(err.code < 0 && err.text[0]);
        lied_end(&l, NULL);
    }

    struct gr_chan *ch = lied_to(f, &l, LIE_NONE, &err); /* the liar can tell the truth */
    assert_non_null(ch);
    assert_int_equal(gr_pread(ch, b, sizeof(b), 4096), 0);
    assert_int_equal(b[0], 0x77);
    lied_end(&l, ch);

    static const struct {
        enum lie lie;
        int code; /* 0: any failure */
    } reads_of[] = {{LIE_SILENT, -ETIMEDOUT}, {LIE_GAP, 0}, {LIE_OVERLAP, 0}, {LIE_OUTSIDE, 0}, {LIE_COOKIE, 0}, {LIE_CUT, 0}, {LIE_NO_DATA, 0}, {LIE_MANY_CHUNKS, 0}};
    for (size_t i = 0; i < sizeof(reads_of) / sizeof(reads_of[0]); i++) {
        ch = lied_to(f, &l, reads_of[i].lie, &err);
        assert_non_null(ch);
        int r = gr_pread(ch, b, sizeof(b), 4096);
        if (r >= 0 || (reads_of[i].code && r != reads_of[i].code))
            fail_msg("lie %d: %d", reads_of[i].lie, r);
        lied_end(&l, ch);
    }
    struct gr_extent e[4];
    unsigned n = 0;
    static const enum lie status_of[] = {LIE_ZERO_EXTENT, LIE_NO_EXTENT};
    for (size_t i = 0; i < 2; i++) {
        ch = lied_to(f, &l, status_of[i], &err);
        assert_non_null(ch);
        assert_true(gr_extents(ch, 0, 1 << 20, NULL, e, 4, &n) < 0);
        lied_end(&l, ch);
    }
    ch = lied_to(f, &l, LIE_LONG_EXTENT, &err); /* longer than asked: cut to the question, as the protocol allows */
    assert_non_null(ch);
    assert_int_equal(gr_extents(ch, 0, 8192, NULL, e, 4, &n), 0);
    assert_int_equal(n, 1);
    assert_int_equal(e[0].len, 8192);
    lied_end(&l, ch);
}

#define IN_LOOP(fn) static void t_##fn(void **state) { nbdfix_run(NULL, fn); }
IN_LOOP(reads)
IN_LOOP(extents)
IN_LOOP(broken_connection)
IN_LOOP(hostile)
TEST_MAIN(TEST(t_reads), TEST(t_extents), TEST(t_broken_connection), TEST(t_hostile))
