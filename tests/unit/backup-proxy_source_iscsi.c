/* The iSCSI source against a small scripted target that tells the truth, loses connections, or lies. The real target and tgt
 * are tried end to end (tests/e2e/142-network-sources.sh). */
#include "backup-proxy/source.h"
#include "common/bdev_iscsi.h"
#include "common/cleanup.h"
#include "common/endian.h"
#include "common/fiber.h"
#include "tests/lib/test.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define SIZE (UINT64_C(4) << 20)

enum act { TRUE_ALL, NO_DATA, SHORT_DATA, SILENT, STATUS_STUCK, STATUS_BACK, STATUS_LONG, STATUS_NONE,
           KEYS_LONG, KEYS_ODD, KEYS_SHORT, BIG_BLOCK, HUGE_CAPACITY, UNIT_ATTENTION, MEDIUM };
struct target {
    struct gr_loop *loop;
    int listen, open; /* open: fibers running */
    unsigned port, logins;
    enum act act;
    int cut_after;     /* close after so many READs, per connection; 0: never */
    int cut_sessions;  /* only the first so many connections */
    unsigned cut_logins, cut_questions; /* so many connections are closed when they log in; so many behind them when the unit is asked something */
    bool refuses;      /* every log-in */
    bool shrinks;      /* from the second log-in on it is smaller */
    bool other_unit;   /* from the second log-in on it is another unit */
    unsigned attentions;
};
struct link {
    struct target *t;
    int fd;
    uint32_t stat_sn, max_cmd;
    int reads;
    unsigned number;
};

static uint8_t pattern(uint64_t off)
{
    return (uint8_t)(off / 512 * 7 + 3);
}

static bool get(struct link *l, void *buf, size_t len)
{
    for (size_t at = 0; at < len;) {
        ssize_t n = recv(l->fd, (char *)buf + at, len - at, MSG_DONTWAIT);
        if (n > 0)
            at += (size_t)n;
        else if (n == 0 || errno != EAGAIN || gr_fiber_wait_fd(l->fd, POLLIN, 10000) <= 0)
            return false;
    }
    return true;
}

static void put(struct link *l, const void *buf, size_t len)
{
    for (size_t at = 0; at < len;) {
        ssize_t n = send(l->fd, (const char *)buf + at, len - at, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0)
            at += (size_t)n;
        else if (errno != EAGAIN || gr_fiber_wait_fd(l->fd, POLLOUT, 10000) <= 0)
            return;
    }
}

static void send_pdu(struct link *l, uint8_t bhs[48], const uint8_t *req, const void *data, uint32_t len)
{
    static const uint8_t pad[4];
    gr_put_be24(bhs + 5, len);
    memcpy(bhs + 16, req + 16, 4); /* ITT */
    gr_put_be32(bhs + 24, l->stat_sn++);
    gr_put_be32(bhs + 28, l->max_cmd - 64);
    gr_put_be32(bhs + 32, l->max_cmd);
    put(l, bhs, 48);
    put(l, data, len);
    put(l, pad, -len & 3);
}

static void login(struct link *l, const uint8_t *req)
{
    bool security = !(req[1] & 0x0c);
    static const char sec[] = "AuthMethod=None", op[] = "HeaderDigest=None\0DataDigest=None\0MaxRecvDataSegmentLength=262144";
    uint8_t b[48] = {0x23, req[1]};
    if (l->t->refuses) {
        gr_put_be16(b + 36, 0x0203);
        send_pdu(l, b, req, NULL, 0);
        return;
    }
    memcpy(b + 8, req + 8, 6);
    gr_put_be16(b + 14, 1);
    l->max_cmd = gr_get_be32(req + 24) + 64;
    send_pdu(l, b, req, security ? sec : op, security ? sizeof(sec) : sizeof(op));
}

static void status(struct link *l, const uint8_t *req, uint8_t st, uint8_t key, uint16_t asc)
{
    uint8_t b[48] = {0x21, 0x80, 0, st}, sense[20] = {0, 18, 0x70, 0, key, 0, 0, 0, 0, 10};
    sense[14] = (uint8_t)(asc >> 8);
    sense[15] = (uint8_t)asc;
    send_pdu(l, b, req, sense, st == 2 ? 20 : 0);
}

static void data_in(struct link *l, const uint8_t *req, const uint8_t *data, uint32_t len, bool with_residual)
{
    uint32_t edtl = gr_get_be32(req + 20);
    for (uint32_t at = 0, sn = 0;; sn++) {
        uint32_t n = len - at < 262144 ? len - at : 262144;
        bool last = at + n == len;
        uint8_t b[48] = {0x25, (uint8_t)(last ? 0x81 : 0)};
        gr_put_be32(b + 20, 0xffffffff);
        gr_put_be32(b + 36, sn);
        gr_put_be32(b + 40, at);
        if (last && with_residual && len < edtl) {
            b[1] |= 2;
            gr_put_be32(b + 44, edtl - len);
        }
        uint32_t keep = l->stat_sn;
        send_pdu(l, b, req, data + at, n);
        if (!last)
            l->stat_sn = keep;
        at += n;
        if (last)
            return;
    }
}

static void inquiry(struct link *l, const uint8_t *req)
{
    uint8_t d[24] = {0, req[34]};
    if (req[34] != 0x83) {
        status(l, req, 2, 5, 0x2400);
        return;
    }
    d[3] = 20;
    memcpy(d + 4, "\x02\x01\0\x10granary-test-00", 19);
    d[23] = (uint8_t)('0' + (l->t->other_unit && l->number > 1));
    data_in(l, req, d, 24, true);
}

static void capacity(struct link *l, const uint8_t *req)
{
    uint8_t d[32] = {0};
    gr_put_be64(d, l->t->act == HUGE_CAPACITY ? UINT64_MAX : (l->t->shrinks && l->number > 1 ? SIZE / 2 : SIZE) / 512 - 1);
    gr_put_be32(d + 8, l->t->act == BIG_BLOCK ? 0x80000000u : 512);
    d[14] = 0xc0;
    data_in(l, req, d, 32, true);
}

static void lba_status(struct link *l, const uint8_t *req)
{
    uint8_t d[8 + 48] = {0};
    uint64_t lba = gr_get_be64(req + 34);
    gr_put_be32(d, 4 + 48);
    if (l->t->act == STATUS_NONE) {
        data_in(l, req, d, 8, true);
        return;
    }
    if (l->t->act == STATUS_STUCK) {
        gr_put_be64(d + 8, lba);
    } else if (l->t->act == STATUS_BACK) {
        gr_put_be32(d + 16, 1);
    } else if (l->t->act == STATUS_LONG) {
        gr_put_be64(d + 8, lba);
        gr_put_be32(d + 16, 0xffffffff);
        d[20] = 1;
    } else {
        gr_put_be64(d + 8, lba);
        gr_put_be32(d + 16, 1024);
        gr_put_be64(d + 24, lba + 1024);
        gr_put_be32(d + 32, 1024);
        d[36] = 1;
        gr_put_be64(d + 40, 17); /* a jump: what is good of the answer is kept */
        gr_put_be32(d + 48, 5);
    }
    data_in(l, req, d, sizeof(d), true);
}

/* READ KEYS: of a length that is not that of the keys. */
static void read_keys(struct link *l, const uint8_t *req)
{
    uint8_t d[8 + 16] = {0};
    gr_put_be32(d + 4, l->t->act == KEYS_LONG ? 0xfffffff8u : 16);
    data_in(l, req, d, l->t->act == KEYS_SHORT ? 5 : l->t->act == KEYS_ODD ? 8 + 11 : 8 + 16, true);
}

static bool read16(struct link *l, const uint8_t *req)
{
    uint64_t off = gr_get_be64(req + 34) * 512;
    uint32_t len = gr_get_be32(req + 42) * 512;
    struct target *t = l->t;
    uint8_t *d = malloc(len);
    assert_non_null(d);
    for (uint32_t i = 0; i < len; i++)
        d[i] = pattern(off + i);
    l->reads++;
    if (t->cut_after && l->reads >= t->cut_after && (int)l->number <= t->cut_sessions) {
        uint8_t b[48] = {0x25};
        gr_put_be24(b + 5, len);
        memcpy(b + 16, req + 16, 4);
        put(l, b, 48);
        put(l, d, len / 2); /* cut in the middle of the data */
        free(d);
        return false;
    }
    if (t->act == NO_DATA)
        status(l, req, 0, 0, 0);
    else if (t->act == SHORT_DATA)
        data_in(l, req, d, len - 512, false);
    else if (t->act == MEDIUM)
        status(l, req, 2, 3, 0x1100);
    else if (t->act == UNIT_ATTENTION && t->attentions < 2 && ++t->attentions)
        status(l, req, 2, 6, 0x2900);
    else
        data_in(l, req, d, len, true);
    free(d);
    return true;
}

static bool command(struct link *l, const uint8_t *req)
{
    l->max_cmd = gr_get_be32(req + 24) + 65;
    if (l->t->act == SILENT && req[32] == 0x88)
        return true;
    switch (req[32]) {
    case 0x00:
        status(l, req, 0, 0, 0);
        return true;
    case 0x12:
        inquiry(l, req);
        return true;
    case 0x9e:
        if ((req[33] & 0x1f) == 0x10)
            capacity(l, req);
        else
            lba_status(l, req);
        return true;
    case 0x88:
        return read16(l, req);
    case 0x5e:
        read_keys(l, req);
        return true;
    default:
        status(l, req, 2, 5, 0x2000);
        return true;
    }
}

static void serve_link(void *arg)
{
    struct link *l = arg;
    uint8_t req[48], data[8192];
    while (get(l, req, 48)) {
        uint32_t len = (gr_get_be24(req + 5) + 3) & ~3u;
        if (len > sizeof(data) || !get(l, data, len))
            break;
        if (l->number <= l->t->cut_logins + ((req[0] & 0x3f) == 1 ? l->t->cut_questions : 0))
            break;
        if ((req[0] & 0x3f) == 3)
            login(l, req);
        else if ((req[0] & 0x3f) == 1 && !command(l, req))
            break;
    }
    close(l->fd);
    l->t->open--;
    free(l);
}

static void serve(void *arg)
{
    struct target *t = arg;
    while (t->listen >= 0) {
        if (gr_fiber_wait_fd(t->listen, POLLIN, 20) <= 0)
            continue;
        int fd = accept4(t->listen, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        int on = 1;
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        struct link *l = calloc(1, sizeof(*l));
        assert_non_null(l);
        *l = (struct link){.t = t, .fd = fd, .stat_sn = 1, .number = ++t->logins};
        t->open++;
        assert_int_equal(gr_fiber_start(t->loop, serve_link, l), 0);
    }
    t->open--;
}

static void target_up(struct target *t)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    t->loop = gr_fiber_loop();
    t->listen = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(t->listen, (struct sockaddr *)&a, len), 0);
    assert_int_equal(listen(t->listen, 16), 0);
    assert_int_equal(getsockname(t->listen, (struct sockaddr *)&a, &len), 0);
    t->port = ntohs(a.sin_port);
    t->open = 1;
    assert_int_equal(gr_fiber_start(t->loop, serve, t), 0);
}

static void target_down(struct target *t)
{
    int fd = t->listen;
    t->listen = -1;
    while (t->open)
        gr_fiber_sleep_ms(5);
    close(fd);
}

static struct gr_chan *source(struct target *t, struct gr_err *err)
{
    struct gr_bdev *b = NULL;
    struct gr_chan *ch = NULL;
    gr_auto_free char *url = gr_asprintf("iscsi://127.0.0.1:%u/iqn.2026-01.test:unit/0", t->port);
    struct bp_iscsi_opts o = {.url = url, .timeout_ms = t->act == SILENT ? 150 : 3000, .reconnects = 2};
    *err = (struct gr_err){0};
    if (bp_source_iscsi_open(t->loop, &o, &b, err) < 0)
        return NULL;
    assert_int_equal(gr_chan_open(b, t->loop, &ch), 0);
    gr_bdev_put(b);
    return ch;
}

/* Open, read @len at 1 MiB, check, close; the status of the read. */
static int read_once(struct target t, uint32_t len, unsigned *ret_logins)
{
    struct gr_err err;
    target_up(&t);
    struct gr_chan *ch = source(&t, &err);
    if (!ch)
        fail_msg("%s", err.text);
    uint8_t *buf = malloc(len);
    assert_non_null(buf);
    int r = gr_pread(ch, buf, len, 1 << 20);
    for (uint32_t i = 0; r >= 0 && i < len; i++)
        if (buf[i] != pattern((1 << 20) + i))
            fail_msg("byte %u is %u", i, buf[i]);
    free(buf);
    gr_chan_close(ch);
    if (ret_logins)
        *ret_logins = t.logins;
    target_down(&t);
    return r;
}

static int truth(void *arg)
{
    struct target t = {0};
    struct gr_err err;
    target_up(&t);
    struct gr_chan *ch = source(&t, &err);
    assert_non_null(ch);
    struct gr_geometry g;
    assert_int_equal(gr_bdev_geometry(ch->bdev, &g), 0);
    assert_true(g.size == SIZE && g.logical_block == 512 && g.read_only && g.thin);
    uint8_t a[1024], b[70000 / 512 * 512], c[512];
    struct iovec odd[3] = {{a, 100}, {b, 512}, {a + 100, 412}}, even[3] = {{a, 1024}, {b, sizeof(b)}, {c, 512}};
    assert_int_equal(gr_preadv(ch, odd, 3, 512), 0);
    assert_true(a[0] == pattern(512) && b[0] == pattern(612) && b[511] == pattern(1123) && a[511] == pattern(1535));
    assert_int_equal(gr_preadv(ch, even, 3, 0), 0);
    assert_true(a[1023] == pattern(1023) && b[0] == pattern(1024) && c[0] == pattern(1024 + sizeof(b)));
    assert_int_equal(gr_pwrite(ch, a, 512, 0, 0), -GR_EREADONLY);
    struct gr_extent e[8];
    unsigned n = 0;
    assert_int_equal(gr_extents(ch, 4096, SIZE - 4096, NULL, e, 8, &n), 0);
    assert_int_equal(n, 2);
    assert_true(e[0].off == 4096 && e[0].len == 1024 * 512 && e[0].flags == GR_EXTENT_DATA);
    assert_true(e[1].len == 1024 * 512 && (e[1].flags & GR_EXTENT_HOLE));
    struct gr_bookmark base = {.epoch = 1};
    assert_int_equal(gr_extents(ch, 0, 512, &base, e, 8, &n), -EOPNOTSUPP);
    gr_chan_close(ch);
    target_down(&t);
    assert_int_equal(read_once((struct target){.act = UNIT_ATTENTION}, 65536, NULL), 0);
    assert_int_equal(read_once((struct target){.act = MEDIUM}, 65536, NULL), -GR_EMEDIUM);
    return 0;
}

static int lost_sessions(void *arg)
{
    unsigned logins = 0;
    assert_int_equal(read_once((struct target){.cut_after = 2, .cut_sessions = 1}, 3 << 20, &logins), 0);
    assert_int_equal(logins, 2);
    assert_int_equal(read_once((struct target){.cut_after = 1, .cut_sessions = 2}, 65536, &logins), 0);
    assert_int_equal(logins, 3);
    assert_true(read_once((struct target){.cut_after = 1, .cut_sessions = 1000}, 65536, &logins) < 0); /* and it ends */
    assert_int_equal(logins, 3);
    assert_int_equal(read_once((struct target){.cut_after = 1, .cut_sessions = 1, .other_unit = true}, 65536, NULL), -ESTALE);
    assert_int_equal(read_once((struct target){.cut_after = 1, .cut_sessions = 1, .shrinks = true}, 65536, NULL), -ESTALE);
    assert_true(read_once((struct target){.act = SILENT}, 65536, NULL) < 0);
    return 0;
}

/* Cut off before it is answered is not refused: it is tried again, for a while. */
static int cut_logins(void *arg)
{
    unsigned logins = 0;
    struct gr_err err;
    assert_int_equal(read_once((struct target){.cut_logins = 3}, 65536, &logins), 0);
    assert_int_equal(logins, 4);
    assert_int_equal(read_once((struct target){.cut_questions = 2}, 65536, &logins), 0);
    assert_int_equal(logins, 3);
    assert_int_equal(read_once((struct target){.cut_logins = 2, .cut_questions = 2}, 65536, &logins), 0);
    assert_int_equal(logins, 5);
    struct target t = {.cut_logins = 1000}; /* and it ends */
    target_up(&t);
    uint64_t began = gr_loop_now_ns(t.loop);
    assert_null(source(&t, &err));
    assert_int_equal(err.code, -ECONNRESET);
    assert_non_null(strstr(err.text, "connection lost"));
    assert_true(t.logins > 3 && gr_loop_now_ns(t.loop) - began < UINT64_C(8000000000));
    target_down(&t);
    t = (struct target){.refuses = true};
    target_up(&t);
    assert_null(source(&t, &err));
    assert_int_equal(t.logins, 1);
    target_down(&t);
    return 0;
}

static int lies(void *arg)
{
    assert_int_equal(read_once((struct target){.act = NO_DATA}, 65536, NULL), -GR_EPROTO);
    assert_int_equal(read_once((struct target){.act = SHORT_DATA}, 65536, NULL), -GR_EPROTO);
    static const enum act opens[] = {BIG_BLOCK, HUGE_CAPACITY};
    struct gr_err err;
    for (int i = 0; i < 2; i++) {
        struct target t = {.act = opens[i]};
        target_up(&t);
        assert_null(source(&t, &err));
        assert_non_null(strstr(err.text, "make no sense"));
        target_down(&t);
    }
    static const enum act extents[] = {STATUS_STUCK, STATUS_BACK, STATUS_LONG, STATUS_NONE};
    for (int i = 0; i < 4; i++) {
        struct target t = {.act = extents[i]};
        struct gr_extent e[4];
        unsigned n = 0;
        target_up(&t);
        struct gr_chan *ch = source(&t, &err);
        assert_non_null(ch);
        int r = gr_extents(ch, 1 << 20, 65536, NULL, e, 4, &n);
        assert_int_equal(r, extents[i] == STATUS_LONG || extents[i] == STATUS_NONE ? 0 : -GR_EPROTO);
        if (r >= 0)
            assert_true(n == 1 && e[0].off == 1 << 20 && e[0].len == 65536);
        gr_chan_close(ch);
        target_down(&t);
    }
    return 0;
}

/* The same device as datastores use it, that may write and has a fence. */
static int key_lies(void *arg)
{
    static const enum act acts[] = {KEYS_LONG, KEYS_ODD, KEYS_SHORT};
    for (int i = 0; i < 3; i++) {
        struct target t = {.act = acts[i]};
        struct gr_bdev *b = NULL;
        struct gr_err err = {0};
        uint64_t keys[4];
        unsigned n = 0;
        target_up(&t);
        gr_auto_free char *url = gr_asprintf("iscsi://127.0.0.1:%u/iqn.2026-01.test:unit/0", t.port);
        if (gr_bdev_iscsi_open(t.loop, url, NULL, &b, &err) < 0)
            fail_msg("%s", err.text);
        assert_int_equal(b->fence->keys(b, keys, 4, &n, &err), -GR_EPROTO);
        assert_non_null(strstr(err.text, url));
        gr_bdev_put(b);
        target_down(&t);
    }
    return 0;
}

static void in_loop(int (*fn)(void *))
{
    struct gr_loop *loop = NULL;
    assert_int_equal(gr_loop_new(NULL, &loop, NULL), 0);
    assert_int_equal(gr_fiber_run(loop, fn, NULL), 0);
    gr_loop_free(loop);
}
static void t_truth(void **state) { in_loop(truth); }
static void t_lost_sessions(void **state) { in_loop(lost_sessions); }
static void t_cut_logins(void **state) { in_loop(cut_logins); }
static void t_lies(void **state) { in_loop(lies); }
static void t_key_lies(void **state) { in_loop(key_lies); }
TEST_MAIN(TEST(t_truth), TEST(t_lost_sessions), TEST(t_cut_logins), TEST(t_lies), TEST(t_key_lies))
