/* The cache below the guest reader: right bytes for any pattern of reads and read-ahead, errors that are not kept. */
#include "backup-proxy/fs_cache.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "tests/lib/test.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SIZE ((9u << 20) + 4096) /* the last block is a short one */
struct world {
    struct gr_loop *loop;
    struct gr_mem *mem;
    struct gr_bdev *bdev, *fault;
    struct fs_cache *cache;
    uint64_t rnd;
    unsigned running;
    struct gr_fqueue all_done;
};

static uint8_t byte_at(uint64_t off)
{
    return (uint8_t)(off * 0x9e3779b97f4a7c15u >> 56);
}
static void open_world(struct world *w, size_t cache_bytes)
{
    struct gr_err err = {0};
    *w = (struct world){.loop = gr_fiber_loop(), .mem = gr_mem_new(SIZE), .rnd = test_seed()};
    for (uint64_t p = 0; p < SIZE; p += 4096) {
        uint8_t *page = gr_mem_page(w->mem, p, true);
        for (unsigned i = 0; i < 4096; i++)
            page[i] = byte_at(p + i);
    }
    assert_int_equal(gr_bdev_mem_open(w->loop, w->mem, &w->bdev), 0);
    assert_int_equal(gr_bdev_fault_open(w->loop, w->bdev, &w->fault), 0);
    assert_int_equal(fs_cache_new(w->loop, w->fault, cache_bytes, &w->cache, &err), 0);
    assert_int_equal(fs_cache_size(w->cache), SIZE);
}
static void close_world(struct world *w)
{
    fs_cache_free(w->cache);
    gr_bdev_put(w->fault);
    gr_bdev_put(w->bdev);
    gr_mem_free(w->mem);
}
static void read_and_compare(struct world *w, uint64_t off, size_t len)
{
    gr_auto_free uint8_t *buf = malloc(len + 1);
    buf[len] = 0x5a;
    assert_int_equal(fs_cache_read(w->cache, buf, len, off), 0);
    for (size_t i = 0; i < len; i++)
        if (buf[i] != byte_at(off + i))
            fail_msg("byte %llu is wrong", (unsigned long long)(off + i));
    assert_int_equal(buf[len], 0x5a);
}

static void reader(void *arg)
{
    struct world *w = arg;
    for (unsigned i = 0; i < test_cases(150); i++) {
        uint64_t off = test_rand(&w->rnd) % SIZE;
        uint64_t want = 1 + test_rand(&w->rnd) % (i % 5 ? 9000 : 1500000);
        size_t len = (size_t)GR_MIN(SIZE - off, want);
        if (i % 3 == 0)
            fs_cache_ahead(w->cache, test_rand(&w->rnd) % (SIZE + 100), test_rand(&w->rnd) % (3 << 20));
        read_and_compare(w, off, len);
    }
    if (--w->running == 0)
        gr_fqueue_wake_all(&w->all_done);
}
static int random_reads(void *arg)
{
    struct world w;
    open_world(&w, 2 << 20); /* far less than the image, and than what the readers hold at once */
    for (w.running = 0; w.running < 6; w.running++)
        assert_int_equal(gr_fiber_start(w.loop, reader, &w), 0);
    while (w.running)
        gr_fqueue_wait(&w.all_done);
    close_world(&w);
    return 0;
}
static void test_random_reads(void **state)
{
    test_in_fiber(random_reads, NULL);
}

static int errors(void *arg)
{
    struct world w;
    char b[16];
    open_world(&w, 4 << 20);
    assert_int_equal(fs_cache_read(w.cache, b, 16, SIZE - 15), -GR_ERANGE);
    assert_int_equal(fs_cache_read(w.cache, b, 16, UINT64_MAX - 3), -GR_ERANGE);
    assert_int_equal(fs_cache_read(w.cache, b, 0, SIZE), 0);
    struct gr_fault_rule once = {.op = GR_OP_READ, .off = 1 << 20, .len = 4096, .count = 1, .code = -EIO};
    assert_int_equal(gr_bdev_fault_add(w.fault, &once), 0);
    assert_int_equal(fs_cache_read(w.cache, b, 16, (1 << 20) + 5), -EIO);
    read_and_compare(&w, (1 << 20) + 5, 16); /* tried again, and good now */
    struct gr_fault_rule ahead = {.op = GR_OP_READ, .off = 2 << 20, .len = 4096, .count = 1, .code = -EIO};
    assert_int_equal(gr_bdev_fault_add(w.fault, &ahead), 0);
    fs_cache_ahead(w.cache, 2 << 20, 1 << 20);
    gr_fiber_sleep_ms(20);
    read_and_compare(&w, 2 << 20, 1 << 20); /* what failed ahead is read when it is needed */
    struct gr_fault_rule ever = {.op = GR_OP_READ, .off = 3 << 20, .len = 1 << 20, .code = -GR_EMEDIUM};
    assert_int_equal(gr_bdev_fault_add(w.fault, &ever), 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(fs_cache_read(w.cache, b, 16, (3 << 20) + 5), -GR_EMEDIUM);
    fs_cache_ahead(w.cache, 3 << 20, 1 << 20); /* under way when all ends */
    close_world(&w);
    return 0;
}
static void test_errors(void **state)
{
    test_in_fiber(errors, NULL);
}

TEST_MAIN(TEST(test_random_reads), TEST(test_errors))
