/* Every kind of bdev against a byte oracle: random requests with random memory, under both engines, one process and two. */
#include "common/bdev.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include "tests/lib/test.h"

enum { SIZE = 2 << 20, ROUNDS = 300, MAX_IO = 192 << 10 };
struct ctx {
    struct gr_loop *loop;
    struct gr_bdev *bdev;
    struct gr_mem *mem;
    struct gr_chan *ch;
    uint8_t *oracle, *buf;
    unsigned seed;
    char path[64];
};
enum kind { KIND_MEM, KIND_DIRECT, KIND_BUFFERED, KIND_TMPFS };
struct setup {
    enum kind kind;
    enum gr_engine engine;
};

static void open_file(struct ctx *c, const char *dir, bool direct)
{
    struct gr_err err = {0};

    snprintf(c->path, sizeof(c->path), "%s/granary-bdev-XXXXXX", dir);
    int fd = mkostemp(c->path, O_CLOEXEC);
    assert_true(fd >= 0);
    close(fd);
    unlink(c->path);
    int r = gr_bdev_file_open(c->loop, c->path, &(struct gr_file_opts){.direct = direct, .create = true, .size = SIZE}, &c->bdev, &err);
    if (r < 0)
        print_message("%s\n", err.text);
    assert_int_equal(r, 0);
}

static int setup(void **state)
{
    const struct setup *s = *state;
    struct ctx *c = calloc(1, sizeof(*c));

    assert_int_equal(gr_loop_new(&(struct gr_loop_opts){.engine = s->engine}, &c->loop, NULL), 0);
    switch (s->kind) {
    case KIND_MEM:
        c->mem = gr_mem_new(SIZE);
        assert_int_equal(gr_bdev_mem_open(c->loop, c->mem, &c->bdev), 0);
        break;
    case KIND_DIRECT:
        open_file(c, "/var/tmp", true);
        break;
    case KIND_BUFFERED:
        open_file(c, "/var/tmp", false);
        break;
    case KIND_TMPFS:
        open_file(c, "/dev/shm", true);
        break;
    }
    assert_int_equal(gr_chan_open(c->bdev, c->loop, &c->ch), 0);
    c->oracle = calloc(1, SIZE);
    c->buf = malloc(MAX_IO + 64);
    c->seed = (unsigned)test_seed();
    *state = c;
    return 0;
}

static int teardown(void **state)
{
    struct ctx *c = *state;

    gr_chan_close(c->ch);
    gr_bdev_put(c->bdev);
    gr_loop_free(c->loop);
    gr_mem_free(c->mem);
    if (c->path[0])
        unlink(c->path);
    free(c->oracle);
    free(c->buf);
    free(c);
    return 0;
}

static unsigned rnd(struct ctx *c, unsigned n)
{
    return (unsigned)rand_r(&c->seed) % n;
}

/* Cut @len bytes of buffer into vectors; odd lengths too when @odd. */
static int cut(struct ctx *c, uint8_t *p, size_t len, struct iovec *iov, int max, bool odd)
{
    int n = 0;

    while (len && n < max - 1) {
        size_t part = odd ? 1 + rnd(c, 3000) : 512 * (1 + rnd(c, 64));
        if (part > len)
            part = len;
        iov[n++] = (struct iovec){p, part};
        p += part;
        len -= part;
    }
    if (len)
        iov[n++] = (struct iovec){p, len};
    return n;
}

#define TRY(expr)                                                                  \
    do {                                                                           \
        int r_ = (expr);                                                           \
        if (r_ < 0) {                                                              \
            print_message("%s: %s (round %d)\n", #expr, gr_code_text(r_), round); \
            return -1;                                                             \
        }                                                                          \
    } while (0)
#define MUST(cond)                                               \
    do {                                                         \
        if (!(cond)) {                                           \
            print_message("not so: %s (round %d)\n", #cond, round); \
            return -1;                                           \
        }                                                        \
    } while (0)

static int one_round(struct ctx *c, int round)
{
    uint64_t off = 512 * (uint64_t)rnd(c, SIZE / 512);
    size_t len = 512 * (1 + (size_t)rnd(c, rnd(c, 4) ? 16 : MAX_IO / 512)), cmp_len = len < 4096 ? len : 4096;
    uint8_t *p = c->buf + rnd(c, 2) * (1 + rnd(c, 60)), other[4096];
    struct iovec iov[24];
    uint64_t miss;

    if (len > SIZE - off)
        len = SIZE - off, cmp_len = len < 4096 ? len : 4096;
    switch (rnd(c, 8)) {
    case 0:
    case 1:
        memset(p, (int)rnd(c, 256), len);
        TRY(gr_pwritev(c->ch, iov, cut(c, p, len, iov, 24, rnd(c, 2)), off, rnd(c, 8) ? 0 : GR_BIO_FUA));
        memcpy(c->oracle + off, p, len);
        break;
    case 2:
    case 3:
    case 4:
        memset(p, 0xee, len);
        TRY(gr_preadv(c->ch, iov, cut(c, p, len, iov, 24, rnd(c, 2)), off));
        MUST(!memcmp(p, c->oracle + off, len));
        break;
    case 5:
        if (rnd(c, 2))
            TRY(gr_unmap(c->ch, off, len, rnd(c, 2) ? GR_BIO_FUA : 0));
        else
            TRY(gr_write_zeroes(c->ch, off, len, rnd(c, 2) ? GR_BIO_MAY_UNMAP : 0));
        memset(c->oracle + off, 0, len);
        break;
    case 6:
        memcpy(p, c->oracle + off, cmp_len);
        memset(other, (int)rnd(c, 256), sizeof(other));
        if (rnd(c, 2)) {
            TRY(gr_compare_write(c->ch, off, p, other, cmp_len, &miss));
            memcpy(c->oracle + off, other, cmp_len);
        } else {
            size_t at = rnd(c, (unsigned)cmp_len);
            p[at] ^= 1;
            MUST(gr_compare_write(c->ch, off, p, other, cmp_len, &miss) == -GR_EMISCOMPARE);
            MUST(miss == at);
        }
        break;
    case 7:
        if (rnd(c, 8) == 0)
            TRY(gr_flush(c->ch));
        break;
    }
    return 0;
}

static int check_extents(struct ctx *c)
{
    static const uint8_t zero[512];
    struct gr_extent ext[3];
    unsigned n = 0;
    int round = -1;

    for (uint64_t at = 0; at < SIZE;) {
        TRY(gr_extents(c->ch, at, SIZE - at, NULL, ext, 3, &n));
        MUST(n >= 1 && n <= 3);
        for (unsigned i = 0; i < n; i++) {
            MUST(ext[i].off == at && ext[i].len && ext[i].len % 512 == 0 && ext[i].changed);
            MUST(!(ext[i].flags & GR_EXTENT_HOLE) || (ext[i].flags & GR_EXTENT_ZERO));
            for (uint64_t b = at; (ext[i].flags & GR_EXTENT_ZERO) && b < at + ext[i].len; b += 512)
                MUST(!memcmp(c->oracle + b, zero, 512));
            at += ext[i].len;
        }
        MUST(at <= SIZE);
    }
    return 0;
}

static int run_random(void *arg)
{
    struct ctx *c = arg;
    int rounds = (int)test_cases(ROUNDS);

    for (int round = 0; round < rounds; round++)
        if (one_round(c, round) < 0)
            return -1;
    return check_extents(c);
}

static void test_random(void **state)
{
    struct ctx *c = *state;

    assert_int_equal(gr_fiber_run(c->loop, run_random, c), 0);
}

static int run_refused(void *arg)
{
    struct ctx *c = arg;
    uint8_t b[1024] = {0};
    int round = 0;
    struct gr_extent e;
    unsigned n;

    MUST(gr_pread(c->ch, b, 512, 1) == -GR_ERANGE);
    MUST(gr_pread(c->ch, b, 100, 0) == -GR_ERANGE);
    MUST(gr_pread(c->ch, b, 512, SIZE) == -GR_ERANGE);
    MUST(gr_pread(c->ch, b, 1024, SIZE - 512) == -GR_ERANGE);
    MUST(gr_pwrite(c->ch, b, 512, UINT64_MAX - 511, 0) == -GR_ERANGE);
    MUST(gr_pwrite(c->ch, b, 0, 0, 0) == 0);
    MUST(gr_unmap(c->ch, 512, UINT64_MAX - 511, 0) == -GR_ERANGE);
    MUST(gr_pwrite(c->ch, b, 512, 0, GR_BIO_ATOMIC) == -EOPNOTSUPP);
    MUST(gr_extents(c->ch, 0, SIZE, &(struct gr_bookmark){.epoch = 1}, &e, 1, &n) == -EOPNOTSUPP);
    struct iovec iov = {b, 512};
    struct gr_bio bio = {.op = GR_OP_READ, .len = 1024, .iov = &iov, .iovcnt = 1};
    MUST(gr_submit_wait(c->ch, &bio) == -EINVAL);
    bio = (struct gr_bio){.op = GR_OP_COPY, .len = 512, .copy_src = c->ch};
    MUST(gr_submit_wait(c->ch, &bio) == -EOPNOTSUPP);
    return 0;
}

static void test_refused(void **state)
{
    struct ctx *c = *state;

    assert_int_equal(gr_fiber_run(c->loop, run_refused, c), 0);
}

/* Many at once, and a chain of requests each sent from the done() of the one before: little stack, all answered. */
struct chain {
    struct ctx *c;
    struct gr_bio bio;
    struct iovec iov;
    int left;
    uint8_t buf[512];
};

static void chain_next(struct gr_bio *bio)
{
    struct chain *ch = bio->arg;

    assert_int_equal(bio->status, 0);
    if (--ch->left > 0)
        gr_submit(ch->c->ch, bio);
}

static void test_chains(void **state)
{
    struct ctx *c = *state;
    enum { N = 40 };
    struct chain *chains = calloc(N, sizeof(*chains));
    int left;

    for (int i = 0; i < N; i++) {
        chains[i].c = c;
        chains[i].left = c->mem && i == 0 ? 300000 : 200; /* without the limit of nesting: far more than the stack holds */
        chains[i].iov = (struct iovec){chains[i].buf, 512};
        chains[i].bio = (struct gr_bio){.op = i % 2 ? GR_OP_READ : GR_OP_WRITE, .off = 512 * (uint64_t)i, .len = 512, .iov = &chains[i].iov,
                                        .iovcnt = 1, .done = chain_next, .arg = &chains[i]};
        gr_submit(c->ch, &chains[i].bio);
    }
    do {
        left = 0;
        for (int i = 0; i < N; i++)
            left += chains[i].left > 0;
        if (left)
            gr_loop_turn(c->loop, 1000);
    } while (left);
    free(chains);
}

static struct gr_bdev *second_handle(struct ctx *c)
{
    struct gr_bdev *b = NULL;

    if (c->mem)
        assert_int_equal(gr_bdev_mem_open(c->loop, c->mem, &b), 0);
    else
        assert_int_equal(gr_bdev_file_open(c->loop, c->path, &(struct gr_file_opts){.direct = true}, &b, NULL), 0);
    return b;
}

static void test_named_locks(void **state)
{
    struct ctx *c = *state;
    struct gr_bdev *b = second_handle(c);

    assert_int_equal(c->bdev->ops->trylock(c->bdev, 5), 0);
    assert_int_equal(c->bdev->ops->trylock(c->bdev, 5), -EBUSY);
    assert_int_equal(b->ops->trylock(b, 5), -EBUSY);
    assert_int_equal(b->ops->trylock(b, 6), 0);
    c->bdev->ops->unlock(c->bdev, 6); /* not ours: nothing happens */
    assert_int_equal(c->bdev->ops->trylock(c->bdev, 6), -EBUSY);
    c->bdev->ops->unlock(c->bdev, 5);
    assert_int_equal(b->ops->trylock(b, 5), 0);
    gr_bdev_put(b); /* closing lets go */
    assert_int_equal(c->bdev->ops->trylock(c->bdev, 5), 0);
    assert_int_equal(c->bdev->ops->trylock(c->bdev, 6), 0);
}

/* Counters incremented by compare-and-write, by fibers of two handles and of a child process. */
struct counter {
    struct gr_chan *ch;
    int left, *running, lost;
};

static void count_up(void *arg)
{
    struct counter *k = arg;
    uint64_t now[64] = {0}, next[64];

    while (k->left) {
        memcpy(next, now, sizeof(now));
        next[0]++;
        int r = gr_compare_write(k->ch, 4096, now, next, sizeof(now), NULL);
        if (r == 0)
            k->left--;
        if (r < 0 && r != -GR_EMISCOMPARE) {
            print_message("compare-and-write: %s\n", gr_code_text(r));
            break;
        }
        k->lost += r < 0;
        if (gr_pread(k->ch, now, sizeof(now), 4096) < 0)
            break;
    }
    (*k->running)--;
}

static int count_in(struct gr_loop *loop, struct gr_chan *a, struct gr_chan *b)
{
    int running = 4;
    struct counter k[4];

    for (int i = 0; i < 4; i++) {
        k[i] = (struct counter){.ch = i % 2 ? a : b, .left = 15, .running = &running};
        if (gr_fiber_start(loop, count_up, &k[i]) < 0)
            return -1;
    }
    while (running)
        gr_loop_turn(loop, 1000);
    return k[0].left + k[1].left + k[2].left + k[3].left;
}

static int child_main(const char *path)
{
    struct gr_loop *loop = NULL;
    struct gr_bdev *b = NULL;
    struct gr_chan *ch = NULL;

    if (gr_loop_new(NULL, &loop, NULL) < 0 || gr_bdev_file_open(loop, path, NULL, &b, NULL) < 0 || gr_chan_open(b, loop, &ch) < 0)
        return 1;
    int r = count_in(loop, ch, ch);
    gr_chan_close(ch);
    gr_bdev_put(b);
    gr_loop_free(loop);
    return r ? 2 : 0;
}

static int read_counter(void *arg)
{
    struct ctx *c = arg;
    uint64_t v[64] = {0};

    return gr_pread(c->ch, v, sizeof(v), 4096) < 0 ? -1 : (int)v[0];
}

static void test_compare_write_races(void **state)
{
    struct ctx *c = *state;
    struct gr_bdev *b = second_handle(c);
    struct gr_chan *ch = NULL;
    int pid = 0, status = 0;

    if (!c->mem) {
        pid = fork();
        if (pid == 0)
            _exit(child_main(c->path));
    }
    assert_int_equal(gr_chan_open(b, c->loop, &ch), 0);
    assert_int_equal(count_in(c->loop, c->ch, ch), 0);
    if (pid) {
        waitpid(pid, &status, 0);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
    }
    assert_int_equal(gr_fiber_run(c->loop, read_counter, c), pid ? 120 : 60);
    gr_chan_close(ch);
    gr_bdev_put(b);
}

/* One bdev from the loops of two threads, each by its channel: halves of their own, and one counter together. */
struct half {
    struct ctx *c;
    struct gr_loop *loop;
    struct gr_chan *ch;
    uint64_t base;
    unsigned seed;
    int result;
};

static int run_half(void *arg)
{
    struct half *h = arg;
    int round = 0;
    uint64_t w[512], r[512];

    for (; round < 40; round++) {
        uint64_t off = h->base + 4096 * (uint64_t)(rand_r(&h->seed) % 100);
        for (int i = 0; i < 512; i++)
            w[i] = h->base + (uint64_t)(round * i);
        TRY(gr_pwrite(h->ch, w, sizeof(w), off, 0));
        TRY(gr_pread(h->ch, r, sizeof(r), off));
        MUST(!memcmp(w, r, sizeof(w)));
        if (round % 10 == 0)
            TRY(gr_flush(h->ch));
    }
    return 0;
}

static void *half_main(void *arg)
{
    struct half *h = arg;

    h->result = gr_fiber_run(h->loop, run_half, h);
    if (h->result == 0)
        h->result = count_in(h->loop, h->ch, h->ch);
    return NULL;
}

static void test_two_loops(void **state)
{
    struct ctx *c = *state;
    struct half h[2];
    pthread_t t[2];

    for (int i = 0; i < 2; i++) {
        h[i] = (struct half){.c = c, .base = (uint64_t)(i + 1) << 19, .seed = c->seed + (unsigned)i, .result = -1};
        assert_int_equal(gr_loop_new(&(struct gr_loop_opts){.engine = gr_loop_engine(c->loop)}, &h[i].loop, NULL), 0);
        assert_int_equal(gr_chan_open(c->bdev, h[i].loop, &h[i].ch), 0);
        assert_int_equal(pthread_create(&t[i], NULL, half_main, &h[i]), 0);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(t[i], NULL);
        assert_int_equal(h[i].result, 0);
        gr_chan_close(h[i].ch);
        gr_loop_free(h[i].loop);
    }
    assert_int_equal(gr_fiber_run(c->loop, read_counter, c), 120);
}

#define ON(f, kind, engine) {#f ": " #kind ", " #engine, f, setup, teardown, &(struct setup){KIND_##kind, GR_ENGINE_##engine}}
#define ALL(f) ON(f, MEM, AUTO), ON(f, MEM, SYNC), ON(f, DIRECT, AUTO), ON(f, DIRECT, SYNC), ON(f, BUFFERED, AUTO), ON(f, BUFFERED, SYNC), ON(f, TMPFS, AUTO)
int main(void)
{
    const struct CMUnitTest tests[] = {ALL(test_random), ALL(test_refused), ALL(test_chains), ALL(test_named_locks), ALL(test_compare_write_races), ALL(test_two_loops)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
