/* How long it takes to say what changed on a large disk, and what is read for it. All of the disk is mapped (of its data nothing is kept: what is
 * written begins with a mark and goes nowhere), then one in a hundred of its bytes is changed, twice:
 *   runs       blocks of 64 KiB anywhere
 *   scattered  pieces of 4 KiB anywhere
 * Each is asked for with the map on the device alone (O_DIRECT, the datastore joined anew), and once more with the device's file in the page cache.
 * Usage: changed DIR GIB             the file of the datastore is made in DIR and removed. Prints one JSON object a line
 *        changed GIB runs|scattered  the same changes as commands of qemu-io, for a peer */
#include "common/bdev.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "snapshot/snapshot.h"
#include "tests/bench/counted.h"
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define GIB (1ull << 30)
#define LEAF_BLOCKS 128u
#define BLOCK 65536u
#define PIECE 4096u
#define MARK 0x6b72616d646c6f63ull
#define WRITE (4u << 20)
#define DEPTH 16u

struct bench {
    const char *dir;
    char file[4096];
    uint64_t size, rng;
    struct gr_bdev *dev, *counted;
    struct counted counts;
    struct vmfs *v;
    struct vmfs_disk *disk;
    struct gr_chan *ch;
    uint64_t *buf;
    struct gr_err err;
};

static uint64_t rnd(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

static double cpu_s(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static double now_s(void) { return (double)gr_loop_now_ns(gr_fiber_loop()) / 1e9; }

static void warn(void *arg, const char *text) { fprintf(stderr, "changed: %s\n", text); }

/* ---- the datastore ---- */
static int attach(struct bench *b, bool direct, bool make)
{
    struct gr_loop *loop = gr_fiber_loop();
    struct gr_file_opts o = { .direct = direct, .create = make, .size = make ? b->size + b->size / 16 + 16 * GIB : 0 };
    struct vmfs_format_opts f = { .name = "bench" };
    struct vmfs_join_opts j = { .role = VMFS_HOST, .host_name = "bench", .warn = warn };
    int r = gr_bdev_file_open(loop, b->file, &o, &b->dev, &b->err);
    if (r < 0)
        return r;
    b->counted = counted_over(&b->counts, b->dev);
    if (make && (r = vmfs_format(loop, &b->counted, 1, &f, &b->err)) < 0)
        return r;
    if ((r = vmfs_join(loop, &b->counted, 1, &j, &b->v, &b->err)) < 0)
        return r;
    if (make && (r = vmfs_create(b->v, "disk", VMFS_DISK, b->size, VMFS_THIN, &b->err)) < 0)
        return r;
    if ((r = vmfs_open(b->v, "disk", &b->disk, NULL, &b->err)) < 0)
        return r;
    b->counts.mark = MARK;
    r = gr_chan_open(vmfs_bdev(b->disk), loop, &b->ch);
    return r < 0 ? gr_fail(&b->err, r, "%s", gr_code_text(r)) : 0;
}

static int detach(struct bench *b)
{
    gr_chan_close(b->ch);
    vmfs_close(b->disk);
    int r = vmfs_leave(b->v, &b->err);
    gr_bdev_put(b->counted);
    gr_bdev_put(b->dev);
    return r;
}

/* ---- writes, several at a time ---- */
struct writer {
    struct bench *b;
    unsigned running;
    int status;
    struct gr_fiber *fiber;
    struct io {
        struct gr_bio bio;
        struct iovec iov;
        bool busy;
    } io[DEPTH];
};

static void done(struct gr_bio *bio)
{
    struct writer *w = bio->arg;
    if (bio->status < 0)
        w->status = bio->status;
    gr_container_of(bio, struct io, bio)->busy = false;
    w->running--;
    if (w->fiber)
        gr_fiber_wake(w->fiber);
}

static void wait_below(struct writer *w, unsigned n)
{
    w->fiber = gr_fiber_self();
    while (w->running > n)
        gr_fiber_suspend();
    w->fiber = NULL;
}

static void put(void *arg, uint64_t off, uint32_t len)
{
    struct writer *w = arg;
    wait_below(w, DEPTH - 1);
    for (unsigned i = 0; i < DEPTH; i++) {
        struct io *io = &w->io[i];
        if (io->busy)
            continue;
        io->busy = true;
        io->iov = (struct iovec){ w->b->buf, len };
        io->bio = (struct gr_bio){ .op = GR_OP_WRITE, .off = off, .len = len, .iov = &io->iov, .iovcnt = 1, .done = done, .arg = w };
        w->running++;
        gr_submit(w->b->ch, &io->bio);
        return;
    }
}

static int written(struct writer *w, const char *what)
{
    wait_below(w, 0);
    int r = w->status < 0 ? gr_fail(&w->b->err, w->status, "%s: %s", what, gr_code_text(w->status)) : vmfs_checkpoint(w->b->v, &w->b->err);
    return r;
}

/* Leaves in random order, so that those that lie together on the device are not neighbours on the disk. */
static uint32_t *shuffled(struct bench *b, uint32_t n)
{
    uint32_t *o = malloc(n * sizeof *o);
    for (uint32_t i = 0; o && i < n; i++) {
        uint32_t k = (uint32_t)(rnd(&b->rng) % (i + 1));
        o[i] = o[k];
        o[k] = i;
    }
    return o;
}

/* One in a hundred units of @unit bytes, anywhere, leaf by leaf. @ret: how many leaves have one, and how many there are. */
struct changes {
    uint64_t leaves, units;
};
static struct changes changes_of(struct bench *b, uint32_t unit, void (*fn)(void *arg, uint64_t off, uint32_t len), void *arg)
{
    struct changes c = { 0 };
    uint32_t n = (uint32_t)(b->size / BLOCK / LEAF_BLOCKS), in_leaf = LEAF_BLOCKS * BLOCK / unit, *order = shuffled(b, n);
    for (uint32_t i = 0; order && i < n; i++) {
        uint64_t before = c.units;
        for (uint32_t k = 0; k < in_leaf; k++)
            if (rnd(&b->rng) % 100 == 0) {
                fn(arg, ((uint64_t)order[i] * in_leaf + k) * unit, unit);
                c.units++;
            }
        c.leaves += c.units > before;
    }
    free(order);
    return c;
}

static int change(struct bench *b, uint32_t unit, struct changes *ret)
{
    struct writer w = { .b = b };
    *ret = changes_of(b, unit, put, &w);
    return written(&w, "changing");
}

static void print_place(void *arg, uint64_t off, uint32_t len) { printf("write -q -z %" PRIu64 " %" PRIu32 "\n", off, len); }

static int fill(struct bench *b)
{
    struct writer w = { .b = b };
    for (uint64_t off = 0; off < b->size; off += WRITE)
        put(&w, off, WRITE);
    return written(&w, "filling");
}

/* ---- the question ---- */
struct heard {
    uint64_t ranges, bytes;
};
static int hear(void *arg, uint64_t off, uint64_t len, bool zero)
{
    struct heard *h = arg;
    h->ranges++;
    h->bytes += len;
    return 0;
}

static int drop_cache(struct bench *b)
{
    int fd = open(b->file, O_RDONLY | O_CLOEXEC);
    int r = fd < 0 ? -1 : fdatasync(fd) == 0 ? posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) : -1;
    if (fd >= 0)
        close(fd);
    return r;
}

static int ask(struct bench *b, const char *what, const char *how, const char *base, const char *to, const struct changes *c, uint32_t unit)
{
    struct vmfs_stats s0, s1;
    struct heard h = { 0 };
    vmfs_stats(b->v, &s0);
    struct counts c0 = b->counts.n;
    double t = now_s(), cpu = cpu_s();
    int r = snap_diff(b->disk, base, to, hear, &h, &b->err);
    t = now_s() - t;
    cpu = cpu_s() - cpu;
    vmfs_stats(b->v, &s1);
    printf("{\"what\":\"%s\",\"how\":\"%s\",\"gib\":%" PRIu64 ",\"seconds\":%.2f,\"cpu-seconds\":%.2f,\"ranges\":%" PRIu64 ",\"changed-gib\":%.2f,\"leaves\":%" PRIu64
           ",\"nodes\":%" PRIu64 ",\"reads\":%" PRIu64 ",\"read-mib\":%.0f,\"map-mib\":%.0f}\n",
           what, how, (uint64_t)(b->size / GIB), t, cpu, h.ranges, (double)h.bytes / (double)GIB, s1.scan_leaves - s0.scan_leaves, s1.scan_nodes - s0.scan_nodes,
           b->counts.n.reads - c0.reads, (double)(b->counts.n.read_bytes - c0.read_bytes) / 1048576, (double)s1.map_bytes / 1048576);
    fflush(stdout);
    if (r == 0 && (h.bytes != c->units * unit || s1.scan_leaves - s0.scan_leaves != c->leaves))
        return gr_fail(&b->err, -EIO, "%s: %" PRIu64 " bytes were said to have changed, not %" PRIu64, what, h.bytes, c->units * unit);
    return r;
}

static int measure(struct bench *b, const char *what, const char *base, const char *to, const struct changes *c, uint32_t unit)
{
    int r = detach(b);
    if (r == 0 && drop_cache(b) == 0 && (r = attach(b, true, false)) == 0)
        r = ask(b, what, "cold", base, to, c, unit);
    if (r == 0 && (r = detach(b)) == 0 && (r = attach(b, false, false)) == 0 && (r = snap_diff(b->disk, base, to, hear, &(struct heard){ 0 }, &b->err)) == 0)
        r = ask(b, what, "warm", base, to, c, unit);
    return r;
}

static int body(void *arg)
{
    struct bench *b = arg;
    struct changes c[2];
    double t = 0;
    b->buf = aligned_alloc(4096, WRITE);
    for (size_t i = 0; i < WRITE / 8; i++)
        b->buf[i] = MARK; /* wherever a write is split it begins with the mark */
    int r = attach(b, false, true);
    t = now_s();
    if (r == 0 && (r = fill(b)) == 0)
        r = snap_create(&b->disk, 1, "whole", &b->err);
    fprintf(stderr, "changed: all of it mapped after %.0f s\n", now_s() - t);
    if (r == 0 && (r = change(b, BLOCK, &c[0])) == 0)
        r = snap_create(&b->disk, 1, "runs", &b->err);
    if (r == 0)
        r = change(b, PIECE, &c[1]);
    fprintf(stderr, "changed: and changed after %.0f s\n", now_s() - t);
    if (r == 0)
        r = measure(b, "runs", "whole", "runs", &c[0], BLOCK);
    if (r == 0)
        r = measure(b, "scattered", "runs", NULL, &c[1], PIECE);
    if (r == 0)
        r = detach(b);
    if (r < 0)
        fprintf(stderr, "changed: %s\n", gr_err_text(&b->err, r));
    free(b->buf);
    return r < 0;
}

int main(int argc, char **argv)
{
    struct bench b = { .dir = argc > 1 ? argv[1] : "/tmp", .size = (argc > 2 ? strtoull(argv[2], NULL, 10) : 1024) * GIB, .rng = 88172645463325252ull };
    struct gr_loop *loop;
    if (argc > 2 && (!strcmp(argv[2], "runs") || !strcmp(argv[2], "scattered"))) {
        b.size = strtoull(argv[1], NULL, 10) * GIB;
        changes_of(&b, argv[2][0] == 'r' ? BLOCK : PIECE, print_place, NULL);
        return 0;
    }
    snprintf(b.file, sizeof b.file, "%s/changed.img", b.dir);
    unlink(b.file);
    if (gr_loop_new(NULL, &loop, &b.err) < 0)
        return 1;
    int r = gr_fiber_run(loop, body, &b);
    gr_loop_free(loop);
    unlink(b.file);
    return r;
}
