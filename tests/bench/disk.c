/* A disk of a datastore through gr_bdev, without a network: 4 KiB random I/O beside the bare file, the stall of a snapshot, writes
 * after a snapshot; or what data CRCs cost. Usage: disk DIR [seconds per cell] [crc]. */
#include "common/bdev.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "snapshot/snapshot.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define DEPTH 32
struct load {
    struct gr_loop *loop;
    struct gr_chan *ch;
    uint64_t blocks, ops, until_ns, worst_ns, rng;
    size_t len; /* of one; 0: 4096 */
    enum gr_op op;
    unsigned running;
    struct gr_fiber *fiber;
    struct io {
        struct gr_bio bio;
        struct iovec iov;
        struct load *l;
        uint64_t started_ns;
    } io[DEPTH];
};

static uint64_t rnd(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

static void next(struct io *io);
static void done(struct gr_bio *bio)
{
    struct io *io = bio->arg;
    struct load *l = io->l;
    uint64_t now = gr_loop_now_ns(l->loop), took = now - io->started_ns;
    if (bio->status < 0) {
        fprintf(stderr, "I/O failed: %s\n", gr_code_text(bio->status));
        exit(1);
    }
    l->ops++;
    if (took > l->worst_ns)
        l->worst_ns = took;
    if (now >= l->until_ns) {
        if (--l->running == 0)
            gr_fiber_wake(l->fiber);
        return;
    }
    next(io);
}

static void next(struct io *io)
{
    struct load *l = io->l;
    io->started_ns = gr_loop_now_ns(l->loop);
    memset(&io->bio, 0, sizeof io->bio);
    io->bio.op = l->op;
    io->bio.off = rnd(&l->rng) % l->blocks * l->len;
    io->bio.len = l->len;
    io->bio.iov = &io->iov;
    io->bio.iovcnt = 1;
    io->bio.done = done;
    io->bio.arg = io;
    gr_submit(l->ch, &io->bio);
}

static double cpu_s(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static double run(struct load *l, const char *what, enum gr_op op, double seconds)
{
    double c0 = cpu_s();
    uint64_t t0 = gr_loop_now_ns(l->loop);
    l->op = op;
    l->ops = 0;
    l->worst_ns = 0;
    l->running = DEPTH;
    l->fiber = gr_fiber_self();
    l->until_ns = t0 + (uint64_t)(seconds * 1e9);
    l->len = l->len ? l->len : 4096;
    for (unsigned i = 0; i < DEPTH; i++) {
        l->io[i].l = l;
        if (!l->io[i].iov.iov_base) {
            l->io[i].iov = (struct iovec){ aligned_alloc(4096, l->len), l->len };
            memset(l->io[i].iov.iov_base, (int)i + 1, l->len);
        }
        next(&l->io[i]);
    }
    while (l->running)
        gr_fiber_suspend();
    double took = (double)(gr_loop_now_ns(l->loop) - t0) / 1e9, iops = (double)l->ops / took;
    printf("%-44s %9.0f IOPS  %5.2f us CPU/op  worst %6.2f ms\n", what, iops, (cpu_s() - c0) / (double)l->ops * 1e6, (double)l->worst_ns / 1e6);
    return iops;
}

static int fail(const struct gr_err *err, int r)
{
    fprintf(stderr, "%s\n", gr_err_text(err, r));
    return 1;
}

struct args {
    const char *dir;
    double seconds;
};

static int fill(struct gr_chan *ch, uint64_t bytes)
{
    size_t n = 1 << 20;
    uint8_t *buf = aligned_alloc(4096, n);
    int r = 0;
    for (size_t i = 0; i < n; i++)
        buf[i] = (uint8_t)(i * 31 + i / 4096);
    for (uint64_t off = 0; r == 0 && off < bytes; off += n)
        r = gr_pwrite(ch, buf, n, off, 0);
    free(buf);
    return r < 0 ? r : gr_flush(ch);
}

static void warn(void *arg, const char *text)
{
    (void)arg;
    fprintf(stderr, "%s\n", text);
}

/* A disk of 100 GiB with data everywhere: how long does a snapshot hold it, how long the checkpoints that follow? */
static int big_disk(struct vmfs *v, double seconds, struct gr_err *err)
{
    uint64_t bytes = 100ull << 30, held_max = 0;
    struct gr_loop *loop = gr_fiber_loop();
    struct vmfs_disk *d;
    struct gr_chan *ch;
    struct vmfs_stats st;
    int r = vmfs_create(v, "big", VMFS_DISK, bytes, VMFS_THIN, err);
    if (r < 0 || (r = vmfs_open(v, "big", &d, NULL, err)) < 0)
        return r;
    if (gr_chan_open(vmfs_bdev(d), loop, &ch) < 0)
        return gr_fail(err, -ENOMEM, "out of memory");
    uint8_t *block = aligned_alloc(4096, 65536);
    memset(block, 7, 65536);
    for (uint64_t off = 0; r == 0 && off < bytes; off += 4 << 20) /* every leaf: 25,600 blocks, 1.6 GiB */
        r = gr_pwrite(ch, block, 65536, off, 0);
    if (r < 0 || (r = gr_flush(ch)) < 0)
        return gr_fail(err, r, "filling: %s", gr_code_text(r));
    struct load l = { .loop = loop, .ch = ch, .blocks = bytes / 4096 / 64, .rng = 7 };
    run(&l, "100 GiB disk, random write, no snapshot", GR_OP_WRITE, seconds);
    for (unsigned i = 0; i < 20; i++) {
        char name[16];
        snprintf(name, sizeof name, "s%u", i);
        uint64_t t0 = gr_loop_now_ns(loop);
        if ((r = snap_create(&d, 1, name, err)) < 0)
            return r;
        uint64_t took = gr_loop_now_ns(loop) - t0;
        held_max = took > held_max ? took : held_max;
    }
    run(&l, "100 GiB disk, random write after 20 snapshots", GR_OP_WRITE, seconds);
    vmfs_stats(v, &st);
    printf("%-44s %9.2f ms until durable, longest of 20\n", "snapshot of the 100 GiB disk", (double)held_max / 1e6);
    printf("%-44s %9.2f ms, %" PRIu64 " checkpoints\n", "longest hold by a checkpoint", (double)st.capture_ns_max / 1e6, st.checkpoints);
    gr_chan_close(ch);
    vmfs_close(d);
    free(block);
    return 0;
}

/* ---- what data CRCs cost ---- */
static int crc_cells(const struct args *a, bool crc, double ret[4], struct gr_err *err)
{
    static const struct {
        const char *what;
        enum gr_op op;
        size_t len;
    } cells[4] = { { "random read, 4 KiB", GR_OP_READ, 4096 }, { "random read, 1 MiB", GR_OP_READ, 1 << 20 },
                   { "random write, 4 KiB", GR_OP_WRITE, 4096 }, { "random write, 1 MiB", GR_OP_WRITE, 1 << 20 } };
    struct gr_loop *loop = gr_fiber_loop();
    uint64_t bytes = 1ull << 30;
    char ds[4096], what[64];
    struct gr_bdev *dev;
    snprintf(ds, sizeof ds, "%s/ds.img", a->dir);
    unlink(ds);
    struct gr_file_opts o = { .direct = true, .create = true, .size = 3ull << 30 };
    struct vmfs_format_opts f = { .name = "bench", .preallocate = true, .data_crc = crc };
    struct vmfs_join_opts j = { .role = VMFS_HOST, .host_name = "bench", .warn = warn };
    struct vmfs *v;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    int r = gr_bdev_file_open(loop, ds, &o, &dev, err);
    if (r < 0 || (r = vmfs_format(loop, &dev, 1, &f, err)) < 0 || (r = vmfs_join(loop, &dev, 1, &j, &v, err)) < 0 ||
        (r = vmfs_create(v, "disk", VMFS_DISK, bytes, VMFS_THIN, err)) < 0 || (r = vmfs_open(v, "disk", &d, NULL, err)) < 0)
        return r;
    if ((r = gr_chan_open(vmfs_bdev(d), loop, &ch)) < 0 || (r = fill(ch, bytes)) < 0)
        return gr_fail(err, r, "filling: %s", gr_code_text(r));
    gr_fiber_sleep_ms(200);
    for (unsigned i = 0; i < 4; i++) {
        struct load l = { .loop = loop, .ch = ch, .len = cells[i].len, .blocks = bytes / cells[i].len, .rng = 88172645463325252ull };
        snprintf(what, sizeof what, "%s, %s", cells[i].what, crc ? "data CRCs" : "none");
        ret[i] = run(&l, what, cells[i].op, a->seconds);
        for (unsigned k = 0; k < DEPTH; k++)
            free(l.io[k].iov.iov_base);
    }
    gr_chan_close(ch);
    vmfs_close(d);
    r = vmfs_leave(v, err);
    gr_bdev_put(dev);
    unlink(ds);
    return r;
}

static int crc_body(void *arg)
{
    struct gr_err err = { 0 };
    double without[4], with[4];
    int r = crc_cells(arg, false, without, &err);
    if (r == 0)
        r = crc_cells(arg, true, with, &err);
    for (unsigned i = 0; r == 0 && i < 4; i++)
        printf("  ratio with/without %.2f\n", with[i] / without[i]);
    return r < 0 ? fail(&err, r) : 0;
}

static int body(void *arg)
{
    struct args *a = arg;
    struct gr_loop *loop = gr_fiber_loop();
    uint64_t bytes = 1ull << 30;
    char raw[4096], ds[4096];
    struct gr_err err = { 0 };
    struct gr_bdev *dev, *file;
    struct gr_chan *fch;
    snprintf(raw, sizeof raw, "%s/raw.img", a->dir);
    snprintf(ds, sizeof ds, "%s/ds.img", a->dir);
    unlink(raw);
    unlink(ds);
    struct gr_file_opts fo = { .direct = true, .create = true, .size = bytes }, dopt = { .direct = true, .create = true, .size = 6ull << 30 };
    int r = gr_bdev_file_open(loop, raw, &fo, &file, &err);
    if (r == 0)
        r = gr_bdev_file_open(loop, ds, &dopt, &dev, &err);
    if (r < 0 || gr_chan_open(file, loop, &fch) < 0 || fill(fch, bytes) < 0)
        return fail(&err, r);
    struct vmfs_format_opts f = { .name = "bench", .preallocate = true };
    struct vmfs_join_opts j = { .role = VMFS_HOST, .host_name = "bench", .warn = warn };
    struct vmfs *v;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    if ((r = vmfs_format(loop, &dev, 1, &f, &err)) < 0 || (r = vmfs_join(loop, &dev, 1, &j, &v, &err)) < 0 ||
        (r = vmfs_create(v, "disk", VMFS_DISK, bytes, VMFS_THIN, &err)) < 0 || (r = vmfs_open(v, "disk", &d, NULL, &err)) < 0)
        return fail(&err, r);
    if (gr_chan_open(vmfs_bdev(d), loop, &ch) < 0 || fill(ch, bytes) < 0)
        return fail(NULL, -EIO);
    gr_fiber_sleep_ms(200);
    struct load lf = { .loop = loop, .ch = fch, .blocks = bytes / 4096, .rng = 88172645463325252ull };
    struct load ld = lf;
    ld.ch = ch;
    double fr = run(&lf, "file, random read", GR_OP_READ, a->seconds), dr = run(&ld, "disk, random read", GR_OP_READ, a->seconds);
    printf("  ratio disk/file %.2f\n", dr / fr);
    double fw = run(&lf, "file, random overwrite", GR_OP_WRITE, a->seconds), dw = run(&ld, "disk, random overwrite in place", GR_OP_WRITE, a->seconds);
    printf("  ratio disk/file %.2f\n", dw / fw);
    gr_flush(ch);
    uint64_t t0 = gr_loop_now_ns(loop);
    if ((r = snap_create(&d, 1, "s1", &err)) < 0)
        return fail(&err, r);
    printf("%-44s %9.2f ms\n", "snapshot create, idle", (double)(gr_loop_now_ns(loop) - t0) / 1e6);
    double sw = run(&ld, "disk, random write after a snapshot", GR_OP_WRITE, a->seconds);
    printf("  ratio to in place %.2f\n", sw / dw);
    run(&ld, "disk, random read of the split map", GR_OP_READ, a->seconds);
    struct vmfs_stats st;
    vmfs_stats(v, &st);
    printf("in place %" PRIu64 ", redirected %" PRIu64 ", splits %" PRIu64 ", checkpoints %" PRIu64 ", journal %" PRIu64 " MiB, nodes %" PRIu64 " MiB\n",
           st.writes_in_place, st.writes_redirected, st.splits, st.checkpoints, st.journal_bytes >> 20, st.node_bytes >> 20);
    gr_chan_close(ch);
    vmfs_close(d);
    if ((r = big_disk(v, a->seconds, &err)) < 0)
        return fail(&err, r);
    if ((r = vmfs_leave(v, &err)) < 0)
        return fail(&err, r);
    gr_bdev_put(dev);
    gr_chan_close(fch);
    gr_bdev_put(file);
    unlink(raw);
    unlink(ds);
    return 0;
}

int main(int argc, char **argv)
{
    struct args a = { argc > 1 ? argv[1] : "/tmp", argc > 2 ? strtod(argv[2], NULL) : 2 };
    struct gr_loop *loop;
    struct gr_err err = { 0 };
    if (gr_loop_new(NULL, &loop, &err) < 0)
        return fail(&err, -1);
    int r = gr_fiber_run(loop, argc > 3 && strcmp(argv[3], "crc") == 0 ? crc_body : body, &a);
    gr_loop_free(loop);
    return r;
}
