/* Transmission phase of the data mover: every command, good and bad. */
#include "tests/lib/nbdfix.h"
#include "tests/lib/test.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void fill(struct nbdfix *f, uint64_t off, uint64_t len, uint8_t with)
{
    for (uint64_t at = off; at < off + len; at += 4096)
        memset(gr_mem_page(f->mem, at, true), with, 4096);
}

static void simple_reads(struct nbdfix *f)
{
    fill(f, 4096, 4096, 0xab);
    int fd = nbdc_go(f->server, "ds/disk@snap", false, NULL, NULL, NULL);
    struct nbdc_chunk k;
    nbdc_request(fd, 0, NBD_CMD_READ, 0x1122334455667788, 4095, 3); /* not aligned: read-only exports take it */
    nbdc_chunk(fd, false, 3, &k);
    assert_int_equal(k.error, 0);
    assert_true(k.cookie == 0x1122334455667788);
    assert_memory_equal(k.data, "\0\xab\xab", 3);
    free(k.data);
    nbdc_request(fd, 0, NBD_CMD_READ, 2, NBDFIX_SIZE - 1, 1);
    nbdc_chunk(fd, false, 1, &k);
    assert_int_equal(k.error, 0);
    free(k.data);
    static const struct {
        uint16_t flags, type;
        uint64_t off;
        uint32_t len, error;
    } bad[] = {
        {0, NBD_CMD_READ, NBDFIX_SIZE, 1, NBD_EINVAL},
        {0, NBD_CMD_READ, NBDFIX_SIZE - 1, 2, NBD_EINVAL},
        {0, NBD_CMD_READ, UINT64_MAX, 4096, NBD_EINVAL},
        {0, NBD_CMD_READ, 0, 0, NBD_EINVAL},
        {0, NBD_CMD_READ, 0, 0xffffffff, NBD_EINVAL},
        {NBD_CMD_FLAG_DF, NBD_CMD_READ, 0, 512, NBD_EINVAL}, /* needs structured replies */
        {0x8000, NBD_CMD_READ, 0, 512, NBD_EINVAL},
        {0, NBD_CMD_BLOCK_STATUS, 0, 512, NBD_EINVAL},
        {0, 99, 0, 512, NBD_EINVAL},
        {0, NBD_CMD_TRIM, 0, 512, NBD_EPERM},
        {0, NBD_CMD_WRITE_ZEROES, 0, 512, NBD_EPERM},
        {0, NBD_CMD_FLUSH, 1, 0, NBD_EINVAL},
        {0, NBD_CMD_FLUSH, 0, 0, 0},
        {0, NBD_CMD_CACHE, 100, NBDFIX_SIZE - 100, 0},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        nbdc_request(fd, bad[i].flags, bad[i].type, i, bad[i].off, bad[i].len);
        assert_int_equal(nbdc_status(fd, false), bad[i].error);
    }
    char data[1024] = "x";
    nbdc_request(fd, 0, NBD_CMD_WRITE, 7, 0, sizeof(data)); /* the payload is swallowed, the stream stays in step */
    nbdc_send(fd, data, sizeof(data));
    assert_int_equal(nbdc_status(fd, false), NBD_EPERM);
    nbdc_request(fd, 0, NBD_CMD_FLUSH, 8, 0, 0);
    assert_int_equal(nbdc_status(fd, false), 0);
    nbdc_request(fd, 0, NBD_CMD_DISC, 9, 0, 0);
    assert_true(nbdc_closed(fd));
    close(fd);
}

/* Read @len at @off in chunks into @buf; number of data chunks, *ret_holes of hole chunks. */
static int read_structured(int fd, uint16_t flags, uint64_t off, uint32_t len, uint8_t *buf, int *ret_holes)
{
    int data = 0;
    uint64_t at = off;
    struct nbdc_chunk k;
    *ret_holes = 0;
    memset(buf, 0xee, len);
    nbdc_request(fd, flags, NBD_CMD_READ, 5, off, len);
    do {
        nbdc_chunk(fd, true, 0, &k);
        assert_true(k.cookie == 5);
        assert_true(gr_get_be64(k.data) == at);
        uint32_t n;
        if (k.type == NBD_REPLY_TYPE_OFFSET_HOLE) {
            n = gr_get_be32(k.data + 8);
            assert_int_equal(k.len, 12);
            assert_true(n <= len - (at - off));
            memset(buf + (at - off), 0, n);
            ++*ret_holes;
        } else {
            assert_int_equal(k.type, NBD_REPLY_TYPE_OFFSET_DATA);
            n = k.len - 8;
            assert_true(n <= len - (at - off));
            memcpy(buf + (at - off), k.data + 8, n);
            data++;
        }
        at += n;
        free(k.data);
    } while (!(k.flags & NBD_REPLY_FLAG_DONE));
    assert_true(at == off + len);
    return data;
}

static void structured_reads(struct nbdfix *f)
{
    uint64_t seed = test_seed();
    fill(f, 0, 65536, 1);
    fill(f, 200704, 4096, 2);
    fill(f, 1 << 20, 1 << 20, 3);
    int fd = nbdc_go(f->server, "ds/disk@snap", true, NULL, NULL, NULL), holes;
    uint8_t *buf = malloc(NBDFIX_SIZE);
    assert_non_null(buf);
    assert_int_equal(read_structured(fd, 0, 0, 1 << 20, buf, &holes), 2);
    assert_int_equal(holes, 2);
    assert_int_equal(buf[65535] + buf[200704] + buf[65536] + buf[204800], 3);
    assert_int_equal(read_structured(fd, NBD_CMD_FLAG_DF, 0, 1 << 20, buf, &holes), 1);
    assert_int_equal(holes, 0);
    assert_int_equal(read_structured(fd, 0, 4 << 20, 1 << 20, buf, &holes), 0);
    assert_int_equal(holes, 1);
    for (unsigned i = 0; i < test_cases(100); i++) {
        uint64_t off = test_rand(&seed) % NBDFIX_SIZE;
        uint32_t len = 1 + (uint32_t)(test_rand(&seed) % (NBDFIX_SIZE - off));
        read_structured(fd, 0, off, len, buf, &holes);
        for (int j = 0; j < 50; j++) {
            uint64_t at = test_rand(&seed) % len;
            const uint8_t *page = gr_mem_page(f->mem, (off + at) / 4096 * 4096, false);
            assert_int_equal(buf[at], page ? page[(off + at) % 4096] : 0);
        }
    }
    nbdc_request(fd, 0, NBD_CMD_READ, 1, NBDFIX_SIZE, 1);
    assert_int_equal(nbdc_status(fd, true), NBD_EINVAL);
    free(buf);
    close(fd);
}

static void changes(struct nbdfix *f)
{
    int fd = nbdc_go(f->server, "ds/disk", true, NULL, NULL, NULL), holes;
    uint8_t buf[8192];
    memset(buf, 0x5a, sizeof(buf));
    nbdc_request(fd, NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, 1, 8192, 8192);
    nbdc_send(fd, buf, sizeof(buf));
    assert_int_equal(nbdc_status(fd, true), 0);
    assert_int_equal(((uint8_t *)gr_mem_page(f->mem, 8192, true))[0], 0x5a);
    nbdc_request(fd, 0, NBD_CMD_WRITE_ZEROES, 2, 8192, 512);
    assert_int_equal(nbdc_status(fd, true), 0);
    nbdc_request(fd, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_WRITE_ZEROES, 2, 8192 + 512, 512);
    assert_int_equal(nbdc_status(fd, true), 0);
    nbdc_request(fd, 0, NBD_CMD_TRIM, 3, 12288, 4096);
    assert_int_equal(nbdc_status(fd, true), 0);
    nbdc_request(fd, 0, NBD_CMD_TRIM, 3, 8193 + 1024, 100); /* nothing whole in it: nothing happens */
    assert_int_equal(nbdc_status(fd, true), 0);
    nbdc_request(fd, 0, NBD_CMD_FLUSH, 4, 0, 0);
    assert_int_equal(nbdc_status(fd, true), 0);
    read_structured(fd, 0, 8192, 8192, buf, &holes);
    assert_int_equal(buf[0] + buf[1023], 0);
    assert_int_equal(buf[1024], 0x5a);
    assert_int_equal(buf[4095], 0x5a);
    nbdc_request(fd, 0, NBD_CMD_WRITE_ZEROES, 5, 100, 512); /* below the advertised block */
    assert_int_equal(nbdc_status(fd, true), NBD_EINVAL);
    nbdc_request(fd, 0, NBD_CMD_WRITE, 6, NBDFIX_SIZE - 512, 1024);
    nbdc_send(fd, buf, 1024);
    assert_int_equal(nbdc_status(fd, true), NBD_ENOSPC);
    nbdc_request(fd, 0, NBD_CMD_WRITE, 7, 0, (32u << 20) + 512); /* longer than any request: the end */
    assert_true(nbdc_closed(fd));
    close(fd);
}

struct ext {
    uint32_t len, flags;
};
static unsigned status_of(int fd, uint16_t flags, uint64_t off, uint32_t len, struct ext *out, unsigned max)
{
    struct nbdc_chunk k;
    nbdc_request(fd, flags, NBD_CMD_BLOCK_STATUS, 1, off, len);
    nbdc_chunk(fd, true, 0, &k);
    assert_int_equal(k.type, NBD_REPLY_TYPE_BLOCK_STATUS);
    assert_true(k.flags & NBD_REPLY_FLAG_DONE);
    assert_int_equal(k.len % 8, 4);
    assert_int_equal(gr_get_be32(k.data), 1); /* context id */
    unsigned n = k.len / 8;
    assert_true(n >= 1 && n <= max);
    for (unsigned i = 0; i < n; i++)
        out[i] = (struct ext){gr_get_be32(k.data + 4 + 8 * i), gr_get_be32(k.data + 8 + 8 * i)};
    free(k.data);
    return n;
}

static void block_status(struct nbdfix *f)
{
    fill(f, 65536, 8192, 1);
    int fd = nbdc_go(f->server, "ds/disk", true, "base:allocation", NULL, NULL);
    struct ext e[64];
    assert_int_equal(status_of(fd, 0, 0, 1 << 20, e, 64), 3);
    assert_int_equal(e[0].len, 65536);
    assert_int_equal(e[0].flags, NBD_STATE_HOLE | NBD_STATE_ZERO);
    assert_int_equal(e[1].len, 8192);
    assert_int_equal(e[1].flags, 0);
    assert_int_equal(e[2].len, (1 << 20) - 65536 - 8192);
    assert_int_equal(status_of(fd, NBD_CMD_FLAG_REQ_ONE, 65537, 1 << 20, e, 1), 1);
    assert_int_equal(e[0].len, 8191); /* clipped at an offset that is no block */
    assert_int_equal(e[0].flags, 0);
    assert_int_equal(status_of(fd, 0, NBDFIX_SIZE - 1, 1, e, 64), 1);
    assert_int_equal(e[0].len, 1);
    nbdc_request(fd, 0, NBD_CMD_BLOCK_STATUS, 1, 0, 0);
    assert_int_equal(nbdc_status(fd, true), NBD_EINVAL);
    nbdc_request(fd, NBD_CMD_FLAG_DF, NBD_CMD_BLOCK_STATUS, 1, 0, 512);
    assert_int_equal(nbdc_status(fd, true), NBD_EINVAL);
    close(fd);
}

static void device_errors(struct nbdfix *f)
{
    struct gr_fault_rule rules[] = {
        {.op = GR_OP_READ, .off = 4096, .len = 4096, .count = 1, .code = -GR_EMEDIUM},
        {.op = GR_OP_WRITE, .off = 0, .len = 4096, .count = 1, .code = -GR_ENOSPACE},
        {.op = GR_OP_FLUSH, .count = 1, .code = -EIO},
    };
    for (int i = 0; i < 3; i++)
        assert_int_equal(gr_bdev_fault_add(f->faulty, &rules[i]), 0);
    int fd = nbdc_go(f->server, "ds/disk", true, NULL, NULL, NULL);
    struct nbdc_chunk k;
    nbdc_request(fd, 0, NBD_CMD_READ, 1, 0, 8192);
    nbdc_chunk(fd, true, 0, &k);
    assert_int_equal(k.type, NBD_REPLY_TYPE_ERROR);
    assert_int_equal(gr_get_be32(k.data), NBD_EIO);
    assert_int_equal(gr_get_be16(k.data + 4), k.len - 6);
    assert_memory_equal(k.data + 6, "read: ", 6);
    free(k.data);
    char buf[512] = {0};
    nbdc_request(fd, 0, NBD_CMD_WRITE, 1, 0, 512);
    nbdc_send(fd, buf, 512);
    assert_int_equal(nbdc_status(fd, true), NBD_ENOSPC);
    nbdc_request(fd, 0, NBD_CMD_FLUSH, 1, 0, 0);
    assert_int_equal(nbdc_status(fd, true), NBD_EIO);
    close(fd);
}

/* Hundreds of requests before the first reply is read: the limits hold them back, all are answered, in any order. */
static void many_in_flight(struct nbdfix *f)
{
    int fd = nbdc_go(f->server, "ds/disk@snap", false, NULL, NULL, NULL);
    fill(f, 0, NBDFIX_SIZE, 9);
    enum { N = 300 };
    uint8_t seen[N] = {0};
    for (int i = 0; i < N; i++)
        nbdc_request(fd, 0, NBD_CMD_READ, (uint64_t)i, (uint64_t)i * 4096, 65536);
    gr_fiber_sleep_ms(20);
    for (int i = 0; i < N; i++) {
        struct nbdc_chunk k;
        nbdc_chunk(fd, false, 65536, &k);
        assert_true(k.cookie < N && !seen[k.cookie]);
        assert_int_equal(k.error, 0);
        assert_int_equal(k.data[65535], 9);
        seen[k.cookie] = 1;
        free(k.data);
    }
    close(fd);
}

static void drop_and_gone(struct nbdfix *f)
{
    int a = nbdc_go(f->server, "ds/disk", true, NULL, NULL, NULL), b = nbdc_go(f->server, "ds/disk@snap", true, NULL, NULL, NULL);
    assert_int_equal(f->faulty->refs, 1 + 2 * 2); /* the export's and its channel's, each */
    mover_server_drop(f->server, "ds/disk@snap", false);
    assert_int_equal(f->faulty->refs, 1 + 2);
    assert_true(nbdc_closed(b));
    nbdc_request(a, 0, NBD_CMD_FLUSH, 1, 0, 0);
    assert_int_equal(nbdc_status(a, true), 0);
    gr_bdev_event(f->faulty, GR_EVENT_GONE);
    assert_true(nbdc_closed(a));
    close(a);
    close(b);
}

static void silent_peer(struct nbdfix *f)
{
    int cut = nbdc_go(f->server, "ds/disk", true, NULL, NULL, NULL), payload = nbdc_go(f->server, "ds/disk", true, NULL, NULL, NULL);
    int deaf = nbdc_go(f->server, "ds/disk", true, NULL, NULL, NULL), idle = nbdc_go(f->server, "ds/disk", true, NULL, NULL, NULL);
    nbdc_send(cut, "\x25\x60", 2);
    nbdc_request(payload, 0, NBD_CMD_WRITE, 1, 0, 512);
    fill(f, 0, NBDFIX_SIZE, 9);
    nbdc_request(deaf, 0, NBD_CMD_READ, 1, 0, NBDFIX_SIZE);
    assert_true(nbdc_closed(cut));
    assert_true(nbdc_closed(payload));
    struct mover_stats st;
    for (int i = 0; i < 100; i++) {
        mover_server_stats(f->server, &st);
        if (st.connections == 1)
            break;
        gr_fiber_sleep_ms(20);
    }
    assert_int_equal(st.connections, 1); /* the idle one may stay */
    nbdc_request(idle, 0, NBD_CMD_FLUSH, 1, 0, 0);
    assert_int_equal(nbdc_status(idle, true), 0);
    close(cut);
    close(payload);
    close(deaf);
    close(idle);
}

/* Random bytes, and random damage to a good conversation: no crash, no hang, and a good client is served beside it. */
static void garbage(struct nbdfix *f)
{
    uint64_t seed = test_seed();
    int good = nbdc_go(f->server, "ds/disk@snap", true, "base:allocation", NULL, NULL);
    for (unsigned i = 0; i < test_cases(300); i++) {
        uint8_t msg[2048];
        size_t n = 0;
        int fd;
        if (i % 2) {
            fd = nbdc_go(f->server, "ds/disk", i % 4 > 1, NULL, NULL, NULL);
            for (; n + 28 <= 512; n += 28) {
                struct nbd_request_wire w = {gr_be32_of(NBD_REQUEST_MAGIC), gr_be16_of(0),
                                             gr_be16_of((uint16_t)(test_rand(&seed) % 9)), gr_be64_of(n),
                                             gr_be64_of(test_rand(&seed) % NBDFIX_SIZE), gr_be32_of((uint32_t)(test_rand(&seed) % 70000))};
                memcpy(msg + n, &w, 28);
            }
        } else {
            fd = nbdc_connect(f->server);
            gr_put_be32(msg, 3);
            gr_put_be64(msg + 4, NBD_OPTS_MAGIC);
            gr_put_be32(msg + 12, (uint32_t)(test_rand(&seed) % 12));
            gr_put_be32(msg + 16, (uint32_t)(test_rand(&seed) % 64));
            for (n = 20; n < 256; n++)
                msg[n] = (uint8_t)test_rand(&seed);
        }
        for (unsigned flips = (unsigned)(test_rand(&seed) % 4); flips; flips--)
            msg[test_rand(&seed) % n] ^= (uint8_t)(1u << test_rand(&seed) % 8);
        nbdc_send(fd, msg, test_rand(&seed) % (n + 1));
        if (i % 3)
            gr_fiber_yield();
        close(fd);
        struct ext e[64];
        if (i % 10 == 0)
            status_of(good, 0, 0, 1 << 20, e, 64);
    }
    close(good);
    gr_fiber_sleep_ms(50);
    struct mover_stats st;
    mover_server_stats(f->server, &st);
    assert_int_equal(st.connections, 0);
}

#define IN_LOOP(fn) static void t_##fn(void **state) { nbdfix_run(NULL, fn); }
IN_LOOP(simple_reads)
IN_LOOP(structured_reads)
IN_LOOP(changes)
IN_LOOP(block_status)
IN_LOOP(device_errors)
IN_LOOP(drop_and_gone)
IN_LOOP(garbage)
static void t_many_in_flight(void **state)
{
    struct mover_opts o = {.max_requests = 8};
    nbdfix_run(&o, many_in_flight);
}
static void t_silent_peer(void **state)
{
    struct mover_opts o = {.stall_timeout_ms = 100};
    nbdfix_run(&o, silent_peer);
}
TEST_MAIN(TEST(t_simple_reads), TEST(t_structured_reads), TEST(t_changes), TEST(t_block_status), TEST(t_device_errors),
          TEST(t_many_in_flight), TEST(t_drop_and_gone), TEST(t_silent_peer), TEST(t_garbage))
