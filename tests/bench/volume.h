/* A datastore with one disk, in this process and without a network, below which everything is counted; and a load on it. Programs that measure
 * what snapshots cost. Everything runs in one fiber. */
#ifndef BENCH_VOLUME_H
#define BENCH_VOLUME_H
#include "common/cleanup.h"
#include "common/fiber.h"
#include "snapshot/snapshot.h"
#include "tests/bench/counted.h"
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEPTH 32
#define GIB (1ull << 30)
#define MARK 0x6b72616d646c6f63ull /* what data begins with that the counting layer knows */

struct bench {
    const char *name, *dir; /* of the program; where the datastore's file goes */
    int argc;
    char **argv;
    char file[4096];
    struct gr_bdev *dev, *counted;
    struct counted counts;
    struct vmfs *v;
    struct vmfs_disk *disk;
    struct gr_chan *ch;
    uint64_t rng;
    struct gr_err err;
};

static inline uint64_t rnd(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

static inline double cpu_s(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static inline uint64_t now_ns(void)
{
    return gr_loop_now_ns(gr_fiber_loop());
}

static inline void bench_warn(void *arg, const char *text)
{
    const struct bench *b = arg;
    fprintf(stderr, "%s: %s\n", b->name, text);
}

/* A datastore of @size with a thin disk of @disk bytes. @mark: of data that is counted alone (struct counted), 0 none. */
static inline int bench_open(struct bench *b, uint64_t size, uint64_t disk, uint64_t mark)
{
    struct gr_loop *loop = gr_fiber_loop();
    struct gr_file_opts o = { .direct = access("/dev/shm", F_OK) != 0 || strncmp(b->dir, "/dev/shm", 8) != 0, .create = true, .size = size };
    struct vmfs_format_opts f = { .name = "bench", .preallocate = getenv("PREALLOCATE") != NULL };
    struct vmfs_join_opts j = { .role = VMFS_HOST, .host_name = "bench", .warn = bench_warn, .warn_arg = b };
    snprintf(b->file, sizeof b->file, "%s/%s.img", b->dir, b->name);
    unlink(b->file);
    int r = gr_bdev_file_open(loop, b->file, &o, &b->dev, &b->err);
    if (r < 0)
        return r;
    b->counted = counted_over(&b->counts, b->dev);
    if ((r = vmfs_format(loop, &b->counted, 1, &f, &b->err)) < 0 || (r = vmfs_join(loop, &b->counted, 1, &j, &b->v, &b->err)) < 0 ||
        (r = vmfs_create(b->v, "disk", VMFS_DISK, disk, VMFS_THIN, &b->err)) < 0 || (r = vmfs_open(b->v, "disk", &b->disk, NULL, &b->err)) < 0)
        return r;
    b->counts.mark = mark;
    b->rng = 88172645463325252ull;
    r = gr_chan_open(vmfs_bdev(b->disk), loop, &b->ch);
    return r < 0 ? gr_fail(&b->err, r, "%s", gr_code_text(r)) : 0;
}

/* The first @bytes of space for data are written, so that their first touch is not measured. fallocate() is not enough: tmpfs gives pages that nobody has
 * touched, and in a virtual machine the host may have to find memory for each, at the first write to it. */
static inline int bench_touch(struct bench *b, uint64_t bytes)
{
    gr_auto_close int fd = open(b->file, O_RDWR | O_CLOEXEC);
    gr_auto_free uint8_t *zeros = gr_zalloc(1u << 20);
    struct vmfs_info i;
    vmfs_info(b->v, &i);
    bool ok = fd >= 0 && zeros;
    for (uint64_t at = 0; ok && at < bytes; at += 1u << 20)
        ok = pwrite(fd, zeros, 1u << 20, (off_t)(i.metadata + at)) == 1 << 20;
    if (ok && (ok = fsync(fd) == 0))
        return 0;
    return gr_fail(&b->err, -EIO, "'%s' cannot be written out beforehand", b->file);
}

static inline uint64_t bench_file_bytes(const struct bench *b)
{
    struct stat st;
    return stat(b->file, &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
}

static inline int bench_close(struct bench *b)
{
    gr_chan_close(b->ch);
    vmfs_close(b->disk);
    int r = vmfs_leave(b->v, &b->err);
    gr_bdev_put(b->counted);
    gr_bdev_put(b->dev);
    unlink(b->file);
    return r;
}

/* Data from @from to @to, with the mark in every piece when there is one; in writes of @n bytes, @step bytes from one to the next. */
static inline int bench_fill(struct bench *b, uint64_t from, uint64_t to, size_t n, uint64_t step)
{
    uint8_t *buf = aligned_alloc(4096, n);
    int r = 0;
    memset(buf, 0x5a, n);
    for (size_t k = 0; b->counts.mark && k < n; k += 4096)
        memcpy(buf + k, &b->counts.mark, sizeof b->counts.mark);
    for (uint64_t off = from; r == 0 && off < to; off += step)
        r = gr_pwrite(b->ch, buf, n, off, 0);
    free(buf);
    return r < 0 ? gr_fail(&b->err, r, "filling: %s", gr_code_text(r)) : 0;
}

/* ---- a load: so many operations, 32 under way, at places that @place gives ---- */
struct load {
    struct bench *b;
    enum gr_op op;
    uint64_t left, ended, longest_ns, (*place)(struct bench *b);
    unsigned running;
    struct gr_fiber *fiber;
    int status;
    struct io {
        struct gr_bio bio;
        struct iovec iov;
        struct load *l;
        uint64_t start_ns;
    } io[DEPTH];
};

static inline void load_next(struct io *io);
static inline void load_done(struct gr_bio *bio)
{
    struct io *io = bio->arg;
    struct load *l = io->l;
    l->ended++;
    l->longest_ns = GR_MAX(l->longest_ns, gr_loop_now_ns(l->b->ch->loop) - io->start_ns);
    l->status = bio->status < 0 ? bio->status : l->status;
    if (l->left && l->status == 0)
        load_next(io);
    else if (--l->running == 0 && l->fiber)
        gr_fiber_wake(l->fiber);
}

static inline void load_next(struct io *io)
{
    struct load *l = io->l;
    l->left--;
    memset(&io->bio, 0, sizeof io->bio);
    io->start_ns = gr_loop_now_ns(l->b->ch->loop);
    io->bio = (struct gr_bio){ .op = l->op, .off = l->place(l->b), .len = 4096, .iov = &io->iov, .iovcnt = 1, .done = load_done, .arg = io };
    gr_submit(l->b->ch, &io->bio);
}

/* It runs; load_wait() waits until @n have ended. */
static inline void load_start(struct load *l, uint64_t n)
{
    l->left = n;
    l->running = (unsigned)GR_MIN(n, (uint64_t)DEPTH);
    l->fiber = NULL;
    for (unsigned i = 0, k = l->running; i < k; i++) {
        l->io[i].l = l;
        if (!l->io[i].iov.iov_base)
            l->io[i].iov = (struct iovec){ aligned_alloc(4096, 4096), 4096 };
        memset(l->io[i].iov.iov_base, (int)(rnd(&l->b->rng) | 1), 4096);
        if (l->b->counts.mark)
            memcpy(l->io[i].iov.iov_base, &l->b->counts.mark, sizeof l->b->counts.mark);
        if (l->left)
            load_next(&l->io[i]);
        else /* those before it ended at once, and did all */
            l->running--;
    }
}

static inline int load_wait(struct load *l)
{
    l->fiber = gr_fiber_self();
    while (l->running)
        gr_fiber_suspend();
    return l->status < 0 ? gr_fail(&l->b->err, l->status, "I/O: %s", gr_code_text(l->status)) : 0;
}

static inline int load_run(struct load *l, uint64_t n)
{
    load_start(l, n);
    return load_wait(l);
}

static inline void load_free(struct load *l)
{
    for (unsigned i = 0; i < DEPTH; i++)
        free(l->io[i].iov.iov_base);
}

/* main() of such a program: @body in a fiber. */
static inline int bench_main(struct bench *b, int (*body)(void *arg))
{
    struct gr_loop *loop;
    if (gr_loop_new(NULL, &loop, &b->err) < 0)
        return 1;
    int r = gr_fiber_run(loop, body, b);
    if (r < 0)
        fprintf(stderr, "%s: %s\n", b->name, gr_err_text(&b->err, r));
    gr_loop_free(loop);
    if (r && b->file[0])
        unlink(b->file);
    return r < 0;
}
#endif
