/* What is special about files: opening the wrong thing, odd sizes, files cut or replaced below us, failed flushes, sizes. */
#include "common/bdev.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include "tests/lib/test.h"

struct ctx {
    struct gr_loop *loop;
    struct gr_bdev *bdev;
    struct gr_chan *ch;
    char *path;
    int events;
    uint8_t buf[8192];
};

static int setup(void **state)
{
    struct ctx *c = calloc(1, sizeof(*c));

    assert_int_equal(gr_loop_new(NULL, &c->loop, NULL), 0);
    c->path = test_path("file");
    unlink(c->path);
    *state = c;
    return 0;
}

static int teardown(void **state)
{
    struct ctx *c = *state;

    gr_chan_close(c->ch);
    gr_bdev_put(c->bdev);
    gr_loop_free(c->loop);
    unlink(c->path);
    free(c->path);
    free(c);
    return 0;
}

static void open_with(struct ctx *c, struct gr_file_opts opts)
{
    struct gr_err err = {0};

    if (gr_bdev_file_open(c->loop, c->path, &opts, &c->bdev, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(gr_chan_open(c->bdev, c->loop, &c->ch), 0);
}

static void make_file(const char *path, size_t len, int fill)
{
    gr_auto_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    char b[1] = {(char)fill};

    for (size_t i = 0; i < len; i++)
        assert_int_equal(write(fd, b, 1), 1);
}

static void test_refused(void **state)
{
    struct ctx *c = *state;
    struct gr_err err = {0};
    struct gr_file_opts rw = {.direct = true}, make = {.create = true, .size = UINT64_MAX};
    struct stat st;

    assert_int_equal(gr_bdev_file_open(c->loop, c->path, &rw, &c->bdev, &err), -ENOENT);
    assert_non_null(strstr(err.text, c->path));
    assert_int_equal(gr_bdev_file_open(c->loop, c->path, &make, &c->bdev, &err), -EFBIG);
    assert_int_equal(stat(c->path, &st), -1); /* nothing left behind */
    assert_int_equal(gr_bdev_file_open(c->loop, test_dir(), &rw, &c->bdev, &err), -EISDIR);
    assert_int_equal(gr_bdev_file_open(c->loop, "/dev/null", &rw, &c->bdev, &err), -EINVAL);
    assert_non_null(strstr(err.text, "/dev/null"));
    assert_int_equal(mkfifo(c->path, 0600), 0); /* nobody at the other end: must not hang */
    assert_int_equal(gr_bdev_file_open(c->loop, c->path, &rw, &c->bdev, &err), -EINVAL);
    rw.logical_block = 1000;
    assert_int_equal(gr_bdev_file_open(c->loop, c->path, &rw, &c->bdev, &err), -EINVAL);
    assert_null(c->bdev);
}

/* A file whose length is no multiple of the block: whole for readers, the tail padded; cut for writers. */
static int read_tail(void *arg)
{
    struct ctx *c = arg;

    memset(c->buf, 0xee, sizeof(c->buf));
    assert_int_equal(gr_pread(c->ch, c->buf, 512, 512), 0);
    for (int i = 0; i < 512; i++)
        assert_int_equal(c->buf[i], i < 488 ? 'x' : 0);
    assert_int_equal(gr_pread(c->ch, c->buf, 512, 1024), -GR_ERANGE);
    assert_int_equal(gr_pwrite(c->ch, c->buf, 512, 0, 0), -GR_EREADONLY);
    assert_int_equal(gr_flush(c->ch), 0);
    return 0;
}

static void test_odd_size(void **state)
{
    struct ctx *c = *state;
    struct gr_geometry g;

    make_file(c->path, 1000, 'x');
    open_with(c, (struct gr_file_opts){.read_only = true, .direct = true});
    assert_int_equal(gr_bdev_geometry(c->bdev, &g), 0);
    assert_int_equal(g.size, 1024);
    assert_true(g.read_only);
    assert_int_equal(gr_fiber_run(c->loop, read_tail, c), 0);
    gr_chan_close(c->ch);
    gr_bdev_put(c->bdev);
    open_with(c, (struct gr_file_opts){0});
    assert_int_equal(gr_bdev_geometry(c->bdev, &g), 0);
    assert_int_equal(g.size, 512);
}

/* Somebody cuts the file: reads behind the new end fail, they do not hang or give other bytes. */
static int read_cut(void *arg)
{
    struct ctx *c = arg;

    assert_int_equal(gr_pread(c->ch, c->buf, 4096, 0), 0);
    assert_int_equal(gr_pread(c->ch, c->buf, 4096, 8192), -GR_EMEDIUM);
    assert_int_equal(gr_pread(c->ch, c->buf, 8192, 0), -GR_EMEDIUM);
    return 0;
}

static void test_cut_below(void **state)
{
    struct ctx *c = *state;

    open_with(c, (struct gr_file_opts){.create = true, .size = 1 << 20, .direct = true});
    assert_int_equal(truncate(c->path, 6000), 0);
    assert_int_equal(gr_fiber_run(c->loop, read_cut, c), 0);
}

/* A synchronous write that failed: nothing is acknowledged as durable afterwards. */
static int fail_fua(void *arg)
{
    struct ctx *c = arg;
    struct rlimit old, small = {.rlim_cur = 4096};

    assert_int_equal(gr_flush(c->ch), 0);
    getrlimit(RLIMIT_FSIZE, &old);
    small.rlim_max = old.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    assert_int_equal(gr_pwrite(c->ch, c->buf, 4096, 65536, 0), -EFBIG);
    int plain = gr_flush(c->ch);
    int fua = gr_pwrite(c->ch, c->buf, 4096, 65536, GR_BIO_FUA);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(plain, 0);
    assert_int_equal(fua, -EFBIG);
    assert_int_equal(gr_flush(c->ch), -EFBIG);
    assert_int_equal(gr_pwrite(c->ch, c->buf, 4096, 0, GR_BIO_FUA), -EFBIG);
    assert_int_equal(gr_pwrite(c->ch, c->buf, 4096, 0, 0), 0);
    assert_int_equal(gr_compare_write(c->ch, 0, c->buf, c->buf, 512, NULL), -EFBIG);
    assert_int_equal(gr_flush(c->ch), -EFBIG);
    return 0;
}

static void test_latched(void **state)
{
    struct ctx *c = *state;

    open_with(c, (struct gr_file_opts){.create = true, .size = 1 << 20});
    assert_int_equal(gr_fiber_run(c->loop, fail_fua, c), 0);
}

static void on_event(void *arg, enum gr_event ev)
{
    ((struct ctx *)arg)->events += ev == GR_EVENT_RESIZED;
}

static int past_old_end(void *arg)
{
    struct ctx *c = arg;

    return gr_pwrite(c->ch, c->buf, 4096, 1 << 20, 0);
}

static void test_resize(void **state)
{
    struct ctx *c = *state;
    struct gr_listener l = {.fn = on_event, .arg = c};
    struct gr_err err = {0};

    open_with(c, (struct gr_file_opts){.create = true, .size = 1 << 20, .direct = true});
    gr_bdev_listen(c->bdev, &l);
    assert_int_equal(gr_fiber_run(c->loop, past_old_end, c), -GR_ERANGE);
    assert_int_equal(gr_bdev_file_resize(c->bdev, 2 << 20, &err), 0);
    assert_int_equal(c->events, 1);
    assert_int_equal(gr_fiber_run(c->loop, past_old_end, c), 0); /* the channel knows */
    assert_int_equal(gr_bdev_file_resize(c->bdev, 100, &err), -EINVAL);
    assert_int_equal(gr_bdev_file_resize(c->bdev, 1 << 20, &err), 0);
    assert_int_equal(gr_fiber_run(c->loop, past_old_end, c), -GR_ERANGE);
}

/* Odd memory in long writes: bounced in pieces. */
static int run_long(void *arg)
{
    struct ctx *c = arg;
    size_t len = (3 << 20) + 512;
    uint8_t *w = malloc(len + 1), *r = malloc(len + 1);

    for (size_t i = 0; i < len; i++)
        w[i + 1] = (uint8_t)(i * 2654435761u >> 13);
    assert_int_equal(gr_pwrite(c->ch, w + 1, len, 1024, GR_BIO_FUA), 0);
    assert_int_equal(gr_pread(c->ch, r + 1, len, 1024), 0);
    assert_memory_equal(w + 1, r + 1, len);
    struct iovec iov[1500];
    for (size_t i = 0; i < 1500; i++)
        iov[i] = (struct iovec){w + 512 * i, 512};
    assert_int_equal(gr_pwritev(c->ch, iov, 1500, 0, 0), 0); /* more vectors than the kernel takes at once */
    assert_int_equal(gr_pread(c->ch, r, 1500 * 512, 0), 0);
    assert_memory_equal(w, r, 1500 * 512);
    free(w);
    free(r);
    return 0;
}

static void test_long(void **state)
{
    struct ctx *c = *state;

    for (int direct = 0; direct < 2; direct++) {
        open_with(c, (struct gr_file_opts){.create = true, .size = 4 << 20, .direct = direct});
        assert_int_equal(gr_fiber_run(c->loop, run_long, c), 0);
        gr_chan_close(c->ch);
        gr_bdev_put(c->bdev);
        c->ch = NULL;
        c->bdev = NULL;
    }
}

/* ---- a file in memory ---- */
enum { MANY = 64, ODD = 512 * 3 };
struct burst {
    struct ctx *c;
    struct gr_bio bio[MANY];
    struct iovec iov[MANY];
    uint8_t data[MANY][ODD], back[MANY][ODD];
    unsigned left, inside; /* under way; how many ended within the call that asked for them */
    bool asking;
    int status;
    uint32_t flags; /* of writes */
};

static void burst_done(struct gr_bio *bio)
{
    struct burst *b = bio->arg;
    b->left--;
    b->inside += b->asking;
    if (bio->status)
        b->status = bio->status;
}

static unsigned ask_many(struct burst *b, enum gr_op op, unsigned n)
{
    b->left = n;
    b->inside = 0;
    b->asking = true;
    for (unsigned i = 0; i < n; i++) {
        b->iov[i] = (struct iovec){op == GR_OP_WRITE ? b->data[i] : b->back[i], ODD};
        b->bio[i] = (struct gr_bio){.op = op, .flags = op == GR_OP_WRITE ? b->flags : 0, .off = (uint64_t)i * ODD, .len = ODD, .iov = &b->iov[i], .iovcnt = 1, .done = burst_done, .arg = b};
        gr_submit(b->c->ch, &b->bio[i]);
    }
    b->asking = false;
    while (b->left)
        gr_loop_turn(b->c->loop, -1);
    return b->inside;
}

/* Many in one turn go into the kernel together, where it can do them there; few, and writes that something waits for, are done at once. Odd places and lengths are as good as
 * others, and what comes of it is the same either way. */
static void test_memory(void **state)
{
    struct ctx *c = *state;
    struct burst *b = calloc(1, sizeof *b);
    char path[] = "/dev/shm/granary-test-XXXXXX";
    close(mkstemp(path));
    free(c->path);
    c->path = strdup(path);
    unlink(path);
    b->c = c;
    open_with(c, (struct gr_file_opts){.create = true, .size = MANY * ODD, .direct = true});
    memset(b->data, 0x5a, sizeof b->data);
    gr_auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool ring = gr_loop_engine(c->loop) == GR_ENGINE_URING && fcntl(fd, F_SETFL, O_DIRECT) == 0;
    for (unsigned round = 1; round < 4; round++) {
        for (unsigned i = 0; i < MANY; i++)
            memset(b->data[i], (int)(round * 64 + i), ODD);
        unsigned inside = ask_many(b, GR_OP_WRITE, MANY);
        assert_true(b->flags || !ring ? inside == MANY : inside < 8);
        inside = ask_many(b, GR_OP_READ, MANY);
        assert_true(ring ? inside < 8 : inside == MANY);
        assert_int_equal(b->status, 0);
        assert_memory_equal(b->data, b->back, sizeof b->data);
        assert_int_equal(ask_many(b, GR_OP_READ, 1), ring ? 0 : 1); /* the burst before it counts still */
        assert_int_equal(ask_many(b, GR_OP_READ, 1), 1);
        b->flags ^= GR_BIO_ALONE;
    }
    b->flags = 0;
    assert_int_equal(truncate(path, (MANY - 1) * ODD), 0);
    ask_many(b, GR_OP_READ, MANY);
    assert_int_equal(b->status, -GR_EMEDIUM);
    free(b);
}

/* Much of it is given back by others than the loop, where there are others. */
static void test_memory_given_back(void **state)
{
    struct ctx *c = *state;
    struct burst *b = calloc(1, sizeof *b);
    char path[] = "/dev/shm/granary-test-XXXXXX";
    close(mkstemp(path));
    free(c->path);
    c->path = strdup(path);
    unlink(path);
    b->c = c;
    open_with(c, (struct gr_file_opts){.create = true, .size = 1 << 20});
    for (uint64_t len = 4096; len <= 512 << 10; len += (512 << 10) - 4096) {
        b->bio[0] = (struct gr_bio){.op = GR_OP_UNMAP, .len = len, .done = burst_done, .arg = b};
        b->left = 1;
        b->inside = 0;
        b->asking = true;
        gr_submit(c->ch, &b->bio[0]);
        b->asking = false;
        assert_int_equal(b->inside, gr_loop_engine(c->loop) == GR_ENGINE_URING && len > 4096 ? 0 : 1);
        while (b->left)
            gr_loop_turn(c->loop, -1);
        assert_int_equal(b->status, 0);
    }
    free(b);
}

/* Whoever serves the file as a whole keeps off others who do, and datastores, whose hosts hold named locks. */
static void test_claim(void **state)
{
    struct ctx *c = *state;
    struct gr_bdev *b = NULL;
    struct gr_file_room room;

    open_with(c, (struct gr_file_opts){.create = true, .size = 1 << 20});
    assert_int_equal(gr_bdev_file_room(c->bdev, &room), 0);
    assert_int_equal(room.missing, 1 << 20);
    assert_true(room.all >= room.free && room.free > 0);
    assert_int_equal(gr_bdev_file_open(c->loop, c->path, NULL, &b, NULL), 0);
    assert_int_equal(b->ops->trylock(b, 63), 0);
    assert_int_equal(gr_bdev_file_claim(c->bdev, NULL), -GR_ELOCKED);
    b->ops->unlock(b, 63);
    assert_int_equal(gr_bdev_file_claim(c->bdev, NULL), 0);
    assert_int_equal(b->ops->trylock(b, 63), -EBUSY);
    assert_int_equal(gr_bdev_file_claim(b, NULL), -GR_ELOCKED);
    gr_bdev_put(b);
    gr_chan_close(c->ch);
    c->ch = NULL;
    gr_bdev_put(c->bdev); /* closing lets go */
    open_with(c, (struct gr_file_opts){0});
    assert_int_equal(c->bdev->ops->trylock(c->bdev, 63), 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
TEST_MAIN(T(test_refused), T(test_odd_size), T(test_cut_below), T(test_latched), T(test_resize), T(test_long), T(test_memory), T(test_memory_given_back), T(test_claim))
