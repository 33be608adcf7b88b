/* Every allocation of a whole conversation with the data mover fails once, and from there on: no crash, no leak (under ASan), no
 * connection and no reference left over. */
#include "common/cleanup.h"
#include "tests/lib/nbdfix.h"
#include "tests/lib/test.h"
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int dir_open(void *arg, const char *name, struct mover_export *ret, struct gr_err *err)
{
    *ret = (struct mover_export){.bdev = gr_bdev_get(arg), .writable = true};
    return 0;
}

static int dir_list(void *arg, mover_name_fn fn, void *ctx, struct gr_err *err)
{
    return fn(ctx, "ds/disk", "a disk");
}

static size_t put_option(uint8_t *out, uint32_t option, const uint8_t *data, size_t len)
{
    gr_put_be64(out, NBD_OPTS_MAGIC);
    gr_put_be32(out + 8, option);
    gr_put_be32(out + 12, (uint32_t)len);
    memcpy(out + 16, data, len);
    return 16 + len;
}

static size_t put_request(uint8_t *out, uint16_t type, uint64_t off, uint32_t len)
{
    gr_put_be32(out, NBD_REQUEST_MAGIC);
    gr_put_be16(out + 4, 0);
    gr_put_be16(out + 6, type);
    gr_put_be64(out + 8, off);
    gr_put_be64(out + 16, off);
    gr_put_be32(out + 24, len);
    return 28;
}

/* Everything a client would say, at once. */
static size_t script(uint8_t *out)
{
    uint8_t data[256] = {0};
    size_t n = 4;
    gr_put_be32(out, 3);
    n += put_option(out + n, NBD_OPT_STRUCTURED_REPLY, data, 0);
    n += put_option(out + n, NBD_OPT_LIST, data, 0);
    n += put_option(out + n, NBD_OPT_SET_META_CONTEXT, data, nbdc_meta(data, "ds/disk", 1, "base:allocation"));
    n += put_option(out + n, NBD_OPT_GO, data, nbdc_name_info(data, "ds/disk", 1, NBD_INFO_NAME));
    n += put_request(out + n, NBD_CMD_READ, 0, 70000);
    n += put_request(out + n, NBD_CMD_BLOCK_STATUS, 0, 1 << 20);
    n += put_request(out + n, NBD_CMD_CACHE, 0, 1 << 20);
    n += put_request(out + n, NBD_CMD_READ, NBDFIX_SIZE, 512);
    n += put_request(out + n, NBD_CMD_WRITE, 8192, 512);
    memset(out + n, 7, 512);
    n += 512;
    n += put_request(out + n, NBD_CMD_FLUSH, 0, 0);
    n += put_request(out + n, NBD_CMD_DISC, 0, 0);
    return n;
}

/* One conversation with allocation @nth failing (negative: none); bytes the server said. No allocation of the test's own. */
static size_t converse(struct gr_loop *loop, struct mover_server *s, int nth, int sticky)
{
    uint8_t say[2048], sink[4096];
    size_t n = script(say), got = 0;
    int sv[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sv), 0);
    assert_int_equal(send(sv[1], say, n, 0), (ssize_t)n);
    gr_alloc_fail_after(nth, sticky);
    (void)mover_server_adopt(s, sv[0], NULL);
    bool open = true;
    for (int turns = 0; open && turns < 5000; turns++) {
        gr_loop_turn(loop, 1);
        if (turns == 200)
            gr_alloc_fail_after(-1, 0); /* memory comes back: whoever waits for it may go on */
        for (;;) {
            ssize_t r = recv(sv[1], sink, sizeof(sink), 0);
            if (r > 0)
                got += (size_t)r;
            else {
                open = r < 0 && errno == EAGAIN;
                break;
            }
        }
    }
    gr_alloc_fail_after(-1, 0);
    close(sv[1]);
    struct mover_stats st;
    for (int i = 0; i < 100; i++) {
        mover_server_stats(s, &st);
        if (!st.connections)
            break;
        gr_loop_turn(loop, 10);
    }
    assert_int_equal(st.connections, 0);
    assert_int_equal(st.negotiating, 0);
    return got;
}

static int stop(void *arg)
{
    mover_server_stop(arg);
    return 0;
}

static void sweep(void **state)
{
    struct gr_loop *loop = NULL;
    struct mover_server *s = NULL;
    struct gr_bdev *disk = NULL;
    struct gr_mem *mem = gr_mem_new(NBDFIX_SIZE);
    assert_int_equal(gr_loop_new(NULL, &loop, NULL), 0);
    assert_int_equal(gr_bdev_mem_open(loop, mem, &disk), 0);
    memset(gr_mem_page(mem, 4096, true), 1, 4096);
    struct mover_opts o = {.security = MOVER_PLAIN_LOOPBACK, .dir = {.arg = disk, .open = dir_open, .list = dir_list}};
    assert_int_equal(mover_server_new(loop, &o, &s, NULL), 0);
    size_t whole = converse(loop, s, -1, 0);
    assert_true(whole > 5000);
    int failed = 0;
    for (int sticky = 0; sticky < 2; sticky++) {
        for (int nth = 0; nth < 120; nth++) {
            size_t got = converse(loop, s, nth, sticky);
            assert_true(got <= whole + 500); /* error sentences instead of data, never more than that */
            failed += got != whole;
            assert_int_equal(disk->refs, 1);
        }
    }
    printf("# %d of 240 conversations met a failed allocation\n", failed);
    assert_true(failed > 20);
    assert_int_equal(converse(loop, s, -1, 0), whole); /* and all is well afterwards */
    assert_int_equal(gr_fiber_run(loop, stop, s), 0);
    gr_bdev_put(disk);
    gr_mem_free(mem);
    gr_loop_free(loop);
}

TEST_MAIN(TEST(sweep))
