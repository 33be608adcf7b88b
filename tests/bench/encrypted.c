/* An encrypted disk beside a plain one, through gr_bdev: 4 KiB at random and 1 MiB in a row, reading and overwriting. On memory, so that
 * the cipher is what is measured, and on a file. Usage: encrypted DIR [seconds per cell]. */
#include "common/bdev.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "vmfs/vmfs.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DISK (256ull << 20)
#define DEPTH_MAX 32u
static const uint8_t secret[32] = "the key of this measurement";

struct load {
    struct gr_loop *loop;
    struct gr_chan *ch;
    struct gr_fiber *fiber;
    uint64_t until_ns, ops, at;
    size_t len;
    enum gr_op op;
    unsigned running;
    struct io {
        struct gr_bio bio;
        struct iovec iov;
        struct load *l;
    } io[DEPTH_MAX];
};

static void next(struct io *io);
static void done(struct gr_bio *bio)
{
    struct io *io = bio->arg;
    struct load *l = io->l;
    l->ops++;
    if (bio->status == 0 && gr_loop_now_ns(l->loop) < l->until_ns)
        next(io);
    else if (--l->running == 0)
        gr_fiber_wake(l->fiber);
}

static void next(struct io *io)
{
    struct load *l = io->l;
    l->at = l->len > 4096 ? l->at + 1 : l->at * 6364136223846793005ull + 1442695040888963407ull;
    uint64_t place = l->len > 4096 ? l->at : l->at >> 33;
    io->bio = (struct gr_bio){ .op = l->op, .off = place % (DISK / l->len) * l->len, .len = l->len, .iov = &io->iov, .iovcnt = 1, .done = done, .arg = io };
    gr_submit(l->ch, &io->bio);
}

static double cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* MiB a second; *ret_us: of the processor, for each operation. */
static double run(struct gr_chan *ch, enum gr_op op, size_t len, unsigned depth, double seconds, double *ret_us)
{
    static struct load l;
    l = (struct load){ .loop = gr_fiber_loop(), .ch = ch, .fiber = gr_fiber_self(), .len = len, .op = op, .running = depth, .at = 7 };
    uint64_t t0 = gr_loop_now_ns(l.loop);
    double c0 = cpu_s();
    l.until_ns = t0 + (uint64_t)(seconds * 1e9);
    for (unsigned i = 0; i < depth; i++) {
        l.io[i].l = &l;
        l.io[i].iov = (struct iovec){ aligned_alloc(4096, len), len };
        memset(l.io[i].iov.iov_base, (int)i + 1, len);
        next(&l.io[i]);
    }
    while (l.running)
        gr_fiber_suspend();
    for (unsigned i = 0; i < depth; i++)
        free(l.io[i].iov.iov_base);
    *ret_us = (cpu_s() - c0) / (double)l.ops * 1e6;
    return (double)(l.ops * len) / 1048576 / ((double)(gr_loop_now_ns(l.loop) - t0) / 1e9);
}

static int kek(void *arg, uint64_t id, uint8_t ret[32])
{
    (void)arg;
    (void)id;
    memcpy(ret, secret, 32);
    return 0;
}

static void must(int r, const struct gr_err *err)
{
    if (r >= 0)
        return;
    fprintf(stderr, "%s\n", gr_err_text(err, r));
    exit(1);
}

static void beside(const char *on, struct gr_bdev *dev, double seconds)
{
    struct vmfs_format_opts f = { .name = "bench", .preallocate = true };
    struct vmfs_join_opts j = { .role = VMFS_HOST, .host_name = "bench", .kek = kek };
    static const char *const names[] = { "plain", "encrypted" };
    struct gr_err err = { 0 };
    struct vmfs *v;
    struct vmfs_disk *d[2];
    struct gr_chan *ch[2];
    must(vmfs_format(gr_fiber_loop(), &dev, 1, &f, &err), &err);
    must(vmfs_join(gr_fiber_loop(), &dev, 1, &j, &v, &err), &err);
    must(vmfs_create(v, names[0], VMFS_DISK, DISK, VMFS_EAGER, &err), &err);
    must(vmfs_create_encrypted(v, names[1], DISK, VMFS_EAGER, 4096, vmfs_kek_id(secret), &err), &err);
    for (unsigned i = 0; i < 2; i++) {
        must(vmfs_open(v, names[i], &d[i], NULL, &err), &err);
        must(gr_chan_open(vmfs_bdev(d[i]), gr_fiber_loop(), &ch[i]), NULL);
        must(gr_flush(ch[i]), NULL);
    }
    gr_fiber_sleep_ms(300); /* sealed: overwrites go in place */
    for (unsigned big = 0; big < 2; big++)
        for (unsigned w = 0; w < 2; w++) {
            double at[2] = { 0 }, us[2] = { 1e9, 1e9 }, x;
            for (unsigned turn = 0; turn < 6; turn++) { /* in turns, the best of three: other work on the machine meets both */
                at[turn % 2] = GR_MAX(at[turn % 2], run(ch[turn % 2], w ? GR_OP_WRITE : GR_OP_READ, big ? 1 << 20 : 4096, big ? 4 : 32, seconds, &x));
                us[turn % 2] = GR_MIN(us[turn % 2], x);
            }
            printf("%-7s %-6s %-6s plain %7.0f MiB/s %7.1f us CPU/op   encrypted %7.0f MiB/s %7.1f us CPU/op   ratio %.2f\n", on, big ? "1 MiB" : "4 KiB",
                   w ? "write" : "read", at[0], us[0], at[1], us[1], at[1] / at[0]);
            fflush(stdout);
        }
    for (unsigned i = 0; i < 2; i++) {
        gr_chan_close(ch[i]);
        vmfs_close(d[i]);
    }
    must(vmfs_leave(v, &err), &err);
}

struct args {
    const char *dir;
    double seconds;
};

static int body(void *arg)
{
    const struct args *a = arg;
    struct gr_err err = { 0 };
    struct gr_mem *mem = gr_mem_new(1ull << 30);
    struct gr_bdev *dev;
    char path[4096];
    must(gr_bdev_mem_open(gr_fiber_loop(), mem, &dev), NULL);
    beside("memory", dev, a->seconds);
    gr_bdev_put(dev);
    gr_mem_free(mem);
    snprintf(path, sizeof path, "%s/encrypted.img", a->dir);
    unlink(path);
    struct gr_file_opts o = { .direct = true, .create = true, .size = 1ull << 30 };
    must(gr_bdev_file_open(gr_fiber_loop(), path, &o, &dev, &err), &err);
    beside("file", dev, a->seconds);
    gr_bdev_put(dev);
    unlink(path);
    return 0;
}

int main(int argc, char **argv)
{
    struct args a = { argc > 1 ? argv[1] : "/tmp", argc > 2 ? strtod(argv[2], NULL) : 2 };
    struct gr_loop *loop;
    struct gr_err err = { 0 };
    must(gr_loop_new(NULL, &loop, &err), &err);
    int r = gr_fiber_run(loop, body, &a);
    gr_loop_free(loop);
    return r;
}
