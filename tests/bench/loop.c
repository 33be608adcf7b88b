/* 4 KiB random reads and overwrites at depth 32: gr_bdev_file beside the bare system interface on the same file, on a disk with O_DIRECT
 * (peer: liburing by hand) and on tmpfs (peer: pread in a loop).   loop [SECONDS] [DISK-DIRECTORY] */
#include "common/bdev.h"
#include "common/cleanup.h"
#include <fcntl.h>
#include <liburing.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum { DEPTH = 32, IO = 4096, MIB = 256 };
#define FILE_LEN ((uint64_t)MIB << 20)

static double now_s(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static double cpu_s(void)
{
    struct rusage r;

    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) + (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

static uint64_t rand_off(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (*state >> 33) % (FILE_LEN / IO) * IO;
}

static void report(const char *what, uint64_t n, double t0, double c0)
{
    double t = now_s() - t0, c = cpu_s() - c0;

    printf("%-40s %9.0f IOPS   %5.2f us CPU per I/O\n", what, (double)n / t, c * 1e6 / (double)n);
}

static int raw_uring(const char *path, bool write, double seconds, uint8_t *buf)
{
    gr_auto_close int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    struct io_uring ring;
    struct io_uring_params p = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
    uint64_t seed = 1, n = 0;
    int op = write ? IORING_OP_WRITE : IORING_OP_READ;

    if (fd < 0 || io_uring_queue_init_params(1024, &ring, &p) < 0)
        return -1;
    double c0 = cpu_s(), t0 = now_s();
    for (uint64_t i = 0; i < DEPTH; i++) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
        io_uring_prep_rw(op, sqe, fd, buf + i * IO, IO, rand_off(&seed));
        io_uring_sqe_set_data64(sqe, i);
    }
    while (now_s() - t0 < seconds) {
        struct io_uring_cqe *cqe;
        unsigned head, got = 0;
        io_uring_submit_and_wait(&ring, 1);
        io_uring_for_each_cqe(&ring, head, cqe) {
            uint64_t i = cqe->user_data;
            if (cqe->res != IO)
                return -1;
            struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
            io_uring_prep_rw(op, sqe, fd, buf + i * IO, IO, rand_off(&seed));
            io_uring_sqe_set_data64(sqe, i);
            got++;
        }
        io_uring_cq_advance(&ring, got);
        n += got;
    }
    report(write ? "O_DIRECT write, liburing by hand" : "O_DIRECT read, liburing by hand", n, t0, c0);
    io_uring_queue_exit(&ring);
    return 0;
}

static int raw_pread(const char *path, double seconds, uint8_t *buf)
{
    gr_auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    uint64_t seed = 1, n = 0;

    double c0 = cpu_s(), t0 = now_s();
    for (; (n & 255) || now_s() - t0 < seconds; n++)
        if (pread(fd, buf, IO, (off_t)rand_off(&seed)) != IO)
            return -1;
    report("tmpfs read, pread in a loop", n, t0, c0);
    return 0;
}

struct bench {
    struct gr_chan *ch;
    uint64_t seed, n;
    bool stop, failed;
    int running;
};

static void next(struct gr_bio *bio)
{
    struct bench *b = bio->arg;

    b->n++;
    if (bio->status < 0)
        b->failed = b->stop = true;
    if (b->stop) {
        b->running--;
        return;
    }
    bio->off = rand_off(&b->seed);
    gr_submit(b->ch, bio);
}

static void time_up(void *arg)
{
    ((struct bench *)arg)->stop = true;
}

static int through_bdev(const char *what, const char *path, bool write, double seconds, uint8_t *buf)
{
    struct gr_loop *loop = NULL;
    struct gr_bdev *bdev = NULL;
    struct bench b = {.seed = 1};
    struct gr_err err = {0};
    struct gr_bio bio[DEPTH];
    struct iovec iov[DEPTH];
    struct gr_timer timer = {.fn = time_up, .arg = &b};
    char label[80];

    if (gr_loop_new(NULL, &loop, &err) < 0 ||
        gr_bdev_file_open(loop, path, &(struct gr_file_opts){.direct = true}, &bdev, &err) < 0 ||
        gr_chan_open(bdev, loop, &b.ch) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return -1;
    }
    gr_timer_arm(loop, &timer, (uint64_t)(seconds * 1e9));
    double c0 = cpu_s(), t0 = now_s();
    b.running = DEPTH;
    for (int i = 0; i < DEPTH; i++) {
        iov[i] = (struct iovec){buf + (size_t)i * IO, IO};
        bio[i] = (struct gr_bio){.op = write ? GR_OP_WRITE : GR_OP_READ, .len = IO, .iov = &iov[i], .iovcnt = 1, .done = next, .arg = &b, .off = rand_off(&b.seed)};
        gr_submit(b.ch, &bio[i]);
    }
    while (b.running)
        gr_loop_turn(loop, -1);
    snprintf(label, sizeof(label), "%s, gr_bdev_file (%s)", what, gr_loop_engine(loop) == GR_ENGINE_URING ? "io_uring" : "sync");
    report(label, b.n, t0, c0);
    gr_chan_close(b.ch);
    gr_bdev_put(bdev);
    gr_loop_free(loop);
    return b.failed ? -1 : 0;
}

static int make_file(const char *path)
{
    gr_auto_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    gr_auto_free uint8_t *mib = malloc(1 << 20);

    if (fd < 0 || !mib)
        return -1;
    for (size_t i = 0; i < 1 << 20; i++)
        mib[i] = (uint8_t)(i * 2654435761u >> 16);
    for (int i = 0; i < MIB; i++)
        if (write(fd, mib, 1 << 20) != 1 << 20)
            return -1;
    return fsync(fd);
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? strtod(argv[1], NULL) : 2;
    const char *dir = argc > 2 ? argv[2] : "/var/tmp";
    gr_auto_free uint8_t *buf = gr_alloc_aligned(4096, DEPTH * IO);
    char disk[256], shm[64];

    snprintf(disk, sizeof(disk), "%s/granary-bench-%d", dir, (int)getpid());
    snprintf(shm, sizeof(shm), "/dev/shm/granary-bench-%d", (int)getpid());
    int r = buf && make_file(disk) == 0 && make_file(shm) == 0 ? 0 : -1;
    for (int round = 0; r == 0 && round < 2; round++) {
        r = raw_uring(disk, round, seconds, buf);
        if (r == 0)
            r = through_bdev(round ? "O_DIRECT write" : "O_DIRECT read", disk, round, seconds, buf);
    }
    if (r == 0)
        r = raw_pread(shm, seconds, buf);
    if (r == 0)
        r = through_bdev("tmpfs read", shm, false, seconds, buf);
    unlink(disk);
    unlink(shm);
    if (r < 0)
        fprintf(stderr, "loop: failed\n");
    return r < 0;
}
