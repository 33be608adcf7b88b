/* Reading an aged disk from its beginning to its end, before and after it was defragmented, beside one that was written once: in one process,
 * without a network. Aged: all of it written once, then as many random 4 KiB overwrites as it has such blocks, between SNAPSHOTS snapshots, all of which are
 * deleted. The three are read in turn, several times; medians count. Requests below the datastore are counted, too: they depend on no machine.
 * Usage: defragment DIR MIB SNAPSHOTS. The file of the datastore is made in DIR. Prints one JSON object. */
#include "common/bdev.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "snapshot/snapshot.h"
#include "tests/bench/counted.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define DEPTH 4u        /* reads under way */
#define READ (1u << 20) /* bytes of each */
#define TURNS 5u
#define WRITERS 32u

struct disk {
    struct vmfs_disk *d;
    struct gr_chan *ch;
};
struct bench {
    const char *dir;
    uint64_t size;
    unsigned snapshots;
    char file[4096];
    struct gr_bdev *dev, *counted;
    struct counted counts;
    struct vmfs *v;
    struct disk fresh, aged;
    uint64_t rng;
    struct gr_err err;
};
struct result {
    double mib_s[TURNS], requests;
};

static uint64_t rnd(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

static void warn(void *arg, const char *text)
{
    (void)arg;
    fprintf(stderr, "defragment: %s\n", text);
}

static int disk_make(struct bench *b, const char *path, struct disk *ret)
{
    size_t len = READ;
    uint8_t *buf = aligned_alloc(4096, len);
    int r = vmfs_create(b->v, path, VMFS_DISK, b->size, VMFS_THIN, &b->err);
    if (r == 0)
        r = vmfs_open(b->v, path, &ret->d, NULL, &b->err);
    if (r == 0)
        r = gr_chan_open(vmfs_bdev(ret->d), gr_fiber_loop(), &ret->ch);
    for (uint64_t off = 0; r == 0 && off < b->size; off += len) {
        memset(buf, (int)(rnd(&b->rng) | 1), len);
        r = gr_pwrite(ret->ch, buf, len, off, 0);
    }
    free(buf);
    return r;
}

static int bench_open(struct bench *b)
{
    struct gr_loop *loop = gr_fiber_loop();
    struct gr_file_opts o = { .direct = strncmp(b->dir, "/dev/shm", 8) != 0, .create = true, .size = 4 * b->size + (512u << 20) };
    struct vmfs_format_opts f = { .name = "bench", .preallocate = true };
    struct vmfs_join_opts j = { .role = VMFS_HOST, .host_name = "bench", .warn = warn };
    snprintf(b->file, sizeof b->file, "%s/defragment.img", b->dir);
    unlink(b->file);
    int fd = open(b->file, O_RDWR | O_CREAT | O_EXCL, 0600); /* all of it is there, so that its own splinters do not count */
    int room = fd < 0 ? errno : posix_fallocate(fd, 0, (off_t)o.size);
    if (fd >= 0)
        close(fd);
    if (room)
        return gr_fail(&b->err, -room, "'%s': %s", b->file, strerror(room));
    int r = gr_bdev_file_open(loop, b->file, &o, &b->dev, &b->err);
    if (r < 0)
        return r;
    b->counted = counted_over(&b->counts, b->dev);
    if ((r = vmfs_format(loop, &b->counted, 1, &f, &b->err)) < 0 || (r = vmfs_join(loop, &b->counted, 1, &j, &b->v, &b->err)) < 0)
        return r;
    b->rng = 88172645463325252ull;
    if ((r = disk_make(b, "fresh", &b->fresh)) == 0)
        r = disk_make(b, "aged", &b->aged);
    return r;
}

/* ---- ageing ---- */
struct writers {
    struct bench *b;
    uint64_t left;
    unsigned running;
    int status;
    struct gr_fqueue ended;
};

static void writer(void *arg)
{
    struct writers *w = arg;
    struct bench *b = w->b;
    uint8_t *buf = aligned_alloc(4096, 4096);
    while (w->left && w->status == 0) {
        w->left--;
        memset(buf, (int)(rnd(&b->rng) | 1), 4096);
        w->status = gr_pwrite(b->aged.ch, buf, 4096, rnd(&b->rng) % (b->size / 4096) * 4096, 0);
    }
    free(buf);
    if (--w->running == 0)
        gr_fqueue_wake_all(&w->ended);
}

static int overwrite(struct bench *b, uint64_t n)
{
    struct writers w = { .b = b, .left = n, .running = WRITERS };
    for (unsigned i = 0; i < WRITERS; i++)
        if (gr_fiber_start(gr_fiber_loop(), writer, &w) < 0)
            w.running--;
    while (w.running)
        gr_fqueue_wait(&w.ended);
    return w.status;
}

static int grow_old(struct bench *b)
{
    char name[24];
    int r = 0;
    for (unsigned i = 0; r == 0 && i < b->snapshots; i++) {
        snprintf(name, sizeof name, "s%u", i);
        r = snap_create(&b->aged.d, 1, name, &b->err);
        if (r == 0)
            r = overwrite(b, b->size / 4096 / b->snapshots);
    }
    for (unsigned i = 0; r == 0 && i < b->snapshots; i++) {
        snprintf(name, sizeof name, "s%u", i);
        r = snap_delete(b->aged.d, name, false, &b->err);
    }
    return r == 0 ? snap_settle(b->aged.d, &b->err) : r;
}

/* ---- reading ---- */
struct reading {
    struct gr_chan *ch;
    uint64_t at, end;
    unsigned running;
    int status;
    struct gr_fiber *fiber;
    struct io {
        struct gr_bio bio;
        struct iovec iov;
        struct reading *of;
    } io[DEPTH];
};

static void done(struct gr_bio *bio);
static void next(struct io *io)
{
    struct reading *l = io->of;
    io->bio = (struct gr_bio){ .op = GR_OP_READ, .off = l->at, .len = READ, .iov = &io->iov, .iovcnt = 1, .done = done, .arg = io };
    l->at += READ;
    gr_submit(l->ch, &io->bio);
}

static void done(struct gr_bio *bio)
{
    struct io *io = bio->arg;
    struct reading *l = io->of;
    l->status = bio->status < 0 ? bio->status : l->status;
    if (l->at < l->end && l->status == 0)
        next(io);
    else if (--l->running == 0)
        gr_fiber_wake(l->fiber);
}

static int read_through(struct bench *b, const struct disk *d, struct result *ret, unsigned turn)
{
    struct reading l = { .ch = d->ch, .end = b->size, .running = DEPTH, .fiber = gr_fiber_self() };
    uint64_t requests = b->counts.n.reads, began = gr_loop_now_ns(gr_fiber_loop());
    for (unsigned i = 0; i < DEPTH; i++) {
        l.io[i].of = &l;
        l.io[i].iov = (struct iovec){ aligned_alloc(4096, READ), READ };
    }
    for (unsigned i = 0; i < DEPTH; i++)
        next(&l.io[i]);
    while (l.running)
        gr_fiber_suspend();
    for (unsigned i = 0; i < DEPTH; i++)
        free(l.io[i].iov.iov_base);
    ret->mib_s[turn] = (double)(b->size >> 20) / ((double)(gr_loop_now_ns(gr_fiber_loop()) - began) / 1e9);
    ret->requests = (double)(b->counts.n.reads - requests) / (double)(b->size >> 20);
    return l.status;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(struct result *r)
{
    qsort(r->mib_s, TURNS, sizeof r->mib_s[0], by_value);
    return r->mib_s[TURNS / 2];
}

/* The two in turn, so that what else the machine does meets both. */
static int both(struct bench *b, struct result *fresh, struct result *aged)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < TURNS; i++)
        if ((r = read_through(b, &b->fresh, fresh, i)) == 0)
            r = read_through(b, &b->aged, aged, i);
    return r;
}

static int measure(struct bench *b)
{
    struct result f1 = { 0 }, f2 = { 0 }, aged = { 0 }, after = { 0 };
    struct vmfs_defrag_report rep = { 0 };
    int r = both(b, &f1, &aged);
    uint64_t began = gr_loop_now_ns(gr_fiber_loop());
    if (r == 0)
        r = vmfs_defragment(b->aged.d, &(struct vmfs_defrag_opts){ 0 }, &rep, &b->err);
    double seconds = (double)(gr_loop_now_ns(gr_fiber_loop()) - began) / 1e9;
    if (r == 0)
        r = both(b, &f2, &after);
    if (r < 0)
        return r;
    double fresh_before = median(&f1), fresh = median(&f2), old = median(&aged), now = median(&after);
    printf("{\"mib\":%llu,\"snapshots\":%u,\"fresh\":%.0f,\"aged\":%.0f,\"after\":%.0f,\"aged-over-fresh\":%.3f,\"after-over-fresh\":%.3f,"
           "\"reads-fresh\":%.1f,\"reads-aged\":%.1f,\"reads-after\":%.1f,\"runs-before\":%llu,\"runs\":%llu,\"moved-mib\":%llu,\"seconds\":%.2f}\n",
           (unsigned long long)(b->size >> 20), b->snapshots, fresh, old, now, old / fresh_before, now / fresh, f2.requests, aged.requests,
           after.requests, (unsigned long long)rep.runs_before, (unsigned long long)rep.runs, (unsigned long long)(rep.moved >> 20), seconds);
    return 0;
}

static void bench_close(struct bench *b)
{
    struct disk *d[] = { &b->fresh, &b->aged };
    for (unsigned i = 0; i < 2; i++)
        if (d[i]->ch) {
            gr_chan_close(d[i]->ch);
            vmfs_close(d[i]->d);
        }
    if (b->v)
        (void)vmfs_leave(b->v, NULL);
    gr_bdev_put(b->counted);
    gr_bdev_put(b->dev);
    unlink(b->file);
}

static int body(void *arg)
{
    struct bench *b = arg;
    int r = bench_open(b);
    if (r == 0)
        r = grow_old(b);
    if (r == 0)
        r = measure(b);
    if (r < 0)
        fprintf(stderr, "defragment: %s\n", gr_err_text(&b->err, r));
    bench_close(b);
    return r < 0;
}

int main(int argc, char **argv)
{
    struct bench b = { .dir = argc > 1 ? argv[1] : "/tmp", .size = (argc > 2 ? strtoull(argv[2], NULL, 10) : 512) << 20,
                       .snapshots = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 10) : 100 };
    struct gr_loop *loop;
    if (!b.size || !b.snapshots || gr_loop_new(NULL, &loop, &b.err) < 0)
        return 1;
    int r = gr_fiber_run(loop, body, &b);
    gr_loop_free(loop);
    return r;
}
