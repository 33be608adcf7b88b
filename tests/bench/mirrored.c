/* What it costs that a datastore of two devices keeps each journal twice: the same writes to one that does and to one that does not, in turn, counted and
 * timed below and above the datastore, in one process without a network.
 *   single   4 KiB writes to where nothing was yet, one at a time, each of them flushed: what a write and a flush take
 *   depth    such writes, 32 at a time, with a flush every 1,000
 * Usage: mirrored DIR [COUNT [TURNS]]. Two files are made in DIR. Prints one JSON object for each of the two. */
#include "tests/bench/volume.h"
#include "vmfs/format.h"
#include <stdlib.h>

#define SIZE (2 * GIB)
#define EVERY 1000u

struct site {
    struct gr_bdev *dev[2], *counted[2];
    struct counted counts[2];
    char file[2][4096];
    struct vmfs *v;
    struct vmfs_disk *disk;
};
struct seen {
    uint64_t *write_ns, *flush_ns;
    size_t n;
    uint64_t guest, device, flushes, guest_flushes, deep_writes, deep_ns;
};

static int site_open(struct bench *b, struct site *s, bool mirrored)
{
    struct gr_loop *loop = gr_fiber_loop();
    struct gr_file_opts o = { .direct = strncmp(b->dir, "/dev/shm", 8) != 0, .create = true, .size = SIZE };
    struct vmfs_format_opts f = { .name = "bench", .features = mirrored ? 0 : vmfs_features_known() & ~VMFS_INCOMPAT_MIRRORED };
    struct vmfs_join_opts j = { .role = VMFS_HOST, .host_name = "bench", .warn = bench_warn, .warn_arg = b };
    int r = 0;
    for (unsigned i = 0; r == 0 && i < 2; i++) {
        snprintf(s->file[i], sizeof s->file[i], "%s/%s-%u.img", b->dir, b->name, i);
        unlink(s->file[i]);
        r = gr_bdev_file_open(loop, s->file[i], &o, &s->dev[i], &b->err);
        if (r == 0)
            s->counted[i] = counted_over(&s->counts[i], s->dev[i]);
    }
    if (r < 0 || (r = vmfs_format(loop, s->counted, 2, &f, &b->err)) < 0 || (r = vmfs_join(loop, s->counted, 2, &j, &s->v, &b->err)) < 0 ||
        (r = vmfs_create(s->v, "disk", VMFS_DISK, SIZE, VMFS_THIN, &b->err)) < 0 || (r = vmfs_open(s->v, "disk", &s->disk, NULL, &b->err)) < 0)
        return r;
    r = gr_chan_open(vmfs_bdev(s->disk), loop, &b->ch);
    return r < 0 ? gr_fail(&b->err, r, "%s", gr_code_text(r)) : 0;
}

static int site_close(struct bench *b, struct site *s)
{
    gr_chan_close(b->ch);
    vmfs_close(s->disk);
    int r = vmfs_leave(s->v, &b->err);
    for (unsigned i = 0; i < 2; i++) {
        gr_bdev_put(s->counted[i]);
        gr_bdev_put(s->dev[i]);
        unlink(s->file[i]);
    }
    return r;
}

static uint64_t anywhere(struct bench *b)
{
    return rnd(&b->rng) % (GIB / 4096) * 4096;
}

static int single(struct bench *b, struct seen *k, unsigned n)
{
    uint8_t *buf = aligned_alloc(4096, 4096);
    int r = buf ? 0 : -ENOMEM;
    for (unsigned i = 0; r == 0 && i < n; i++) {
        uint64_t t0 = now_ns();
        memset(buf, (int)i | 1, 4096);
        r = gr_pwrite(b->ch, buf, 4096, anywhere(b), 0);
        uint64_t t1 = now_ns();
        if (r == 0)
            r = gr_flush(b->ch);
        k->write_ns[k->n] = t1 - t0;
        k->flush_ns[k->n++] = now_ns() - t1;
    }
    free(buf);
    return r < 0 ? gr_fail(&b->err, r, "I/O: %s", gr_code_text(r)) : 0;
}

static int deep(struct bench *b, struct seen *k, unsigned n)
{
    struct load w = { .b = b, .op = GR_OP_WRITE, .place = anywhere };
    uint64_t began = now_ns();
    int r = 0;
    for (unsigned i = 0; r == 0 && i < n / EVERY; i++) {
        r = load_run(&w, EVERY);
        if (r == 0)
            r = gr_flush(b->ch);
        k->guest_flushes++;
    }
    k->deep_ns += now_ns() - began;
    k->deep_writes += n / EVERY * EVERY;
    load_free(&w);
    return r;
}

static int turn(struct bench *b, struct seen *k, bool mirrored, unsigned n)
{
    struct site s = { 0 };
    int r = site_open(b, &s, mirrored);
    struct counts was[2] = { s.counts[0].n, s.counts[1].n };
    if (r == 0)
        r = single(b, k, n);
    if (r == 0)
        r = deep(b, k, 10 * n);
    for (unsigned i = 0; i < 2; i++) {
        k->device += s.counts[i].n.write_bytes - was[i].write_bytes;
        k->flushes += s.counts[i].n.flushes - was[i].flushes;
    }
    k->guest += (uint64_t)n * 4096 + n * 10ull / EVERY * EVERY * 4096;
    k->guest_flushes += n;
    return r < 0 ? r : site_close(b, &s);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static double us(uint64_t *ns, size_t n, double q)
{
    qsort(ns, n, sizeof *ns, by_value);
    return n ? (double)ns[(size_t)((double)(n - 1) * q)] / 1e3 : 0;
}

static int body(void *arg)
{
    struct bench *b = arg;
    unsigned n = b->argc > 2 ? (unsigned)strtoul(b->argv[2], NULL, 10) : 1000, turns = b->argc > 3 ? (unsigned)strtoul(b->argv[3], NULL, 10) : 3;
    struct seen seen[2] = { 0 };
    int r = 0;
    for (unsigned i = 0; i < 2; i++) {
        seen[i].write_ns = calloc((size_t)n * turns, sizeof *seen[i].write_ns);
        seen[i].flush_ns = calloc((size_t)n * turns, sizeof *seen[i].flush_ns);
    }
    b->rng = 88172645463325252ull;
    for (unsigned i = 0; r == 0 && i < 2 * turns; i++)
        r = turn(b, &seen[i % 2], i % 2, n);
    for (unsigned i = 0; r == 0 && i < 2; i++) {
        struct seen *k = &seen[i];
        printf("{\"mirrored\":%s,\"write-us\":%.0f,\"write-us-p99\":%.0f,\"flush-us\":%.0f,\"flush-us-p99\":%.0f,\"device-bytes-per-guest-byte\":%.3f,"
               "\"flushes-per-flush-and-device\":%.3f,\"iops\":%.0f}\n", i ? "true" : "false", us(k->write_ns, k->n, 0.5), us(k->write_ns, k->n, 0.99), us(k->flush_ns, k->n, 0.5),
               us(k->flush_ns, k->n, 0.99), (double)k->device / (double)k->guest, (double)k->flushes / 2 / (double)k->guest_flushes, (double)k->deep_writes * 1e9 / (double)k->deep_ns);
    }
    for (unsigned i = 0; i < 2; i++) {
        free(seen[i].write_ns);
        free(seen[i].flush_ns);
    }
    return r;
}

int main(int argc, char **argv)
{
    struct bench b = { .name = "mirrored", .dir = argc > 1 ? argv[1] : "/dev/shm", .argc = argc, .argv = argv };
    return bench_main(&b, body);
}
