/* What snapshots cost, counted below the datastore, in one process without a network:
 *   writes   4 KiB random writes after a snapshot: device bytes per guest byte (data, journal, map, one checkpoint included), reads made for them,
 *            device flushes per guest flush, and the rate beside that before the snapshot. 64 GiB disk, 4 GiB of it filled, a flush every 1,000
 *   depth    random reads and memory of the map with N snapshots beside the same live layout without
 *   free     a snapshot that alone has SIZE of data is deleted: how long until it is free, and what is written for it; busy: while 4 KiB are written each
 *            millisecond
 * Usage: snapshot_cost DIR writes front|spread|all COUNT...     snapshot_cost DIR depth SNAPSHOTS     snapshot_cost DIR free GIB [busy]
 * The file of the datastore is made in DIR. Prints one JSON object a line. */
#include "tests/bench/volume.h"

#define DISK (64 * GIB)
#define FILLED (4 * GIB)
#define FLUSH_EVERY 1000u

static int with_flushes(struct load *l, uint64_t n)
{
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < n; at += FLUSH_EVERY)
        if ((r = load_run(l, GR_MIN(n - at, (uint64_t)FLUSH_EVERY))) == 0 && (r = gr_flush(l->b->ch)) < 0)
            gr_fail(&l->b->err, r, "flush: %s", gr_code_text(r));
    return r;
}

/* ---- writes ---- */
static uint64_t at_front(struct bench *b)
{
    return rnd(&b->rng) % (FILLED / 4096) * 4096;
}
/* Every sixteenth block of the disk is filled, so that all of its map exists. */
static uint64_t at_spread(struct bench *b)
{
    uint64_t piece = rnd(&b->rng) % (FILLED / 4096);
    return piece / 16 * (DISK / FILLED) * VMFS_BLOCK + piece % 16 * 4096;
}
static uint64_t anywhere(struct bench *b)
{
    return rnd(&b->rng) % (DISK / 4096) * 4096;
}

static int fill(struct bench *b, bool spread)
{
    size_t n = spread ? VMFS_BLOCK : 1u << 20;
    int r = bench_fill(b, 0, spread ? DISK : FILLED, n, spread ? DISK / FILLED * n : n);
    return r < 0 ? r : vmfs_checkpoint(b->v, &b->err);
}

static int writes_once(struct bench *b, const char *where, uint64_t n)
{
    struct load l = { .b = b, .op = GR_OP_WRITE, .place = !strcmp(where, "front") ? at_front : !strcmp(where, "spread") ? at_spread : anywhere };
    struct vmfs_stats s0, s1;
    uint64_t size = DISK + 16 * GIB + (l.place == anywhere ? n * VMFS_BLOCK : n * 4096), t0, t1, t2; /* a write to a hole takes a whole block */
    int r = bench_open(b, size / 65536 * 65536, DISK, MARK);
    if (r < 0)
        return r;
    if ((r = bench_touch(b, FILLED + GR_MIN(n, 300000u) * 5120 + GIB / 4)) < 0 || (r = fill(b, l.place == at_spread)) < 0)
        return r;
    uint64_t touched = bench_file_bytes(b);
    double cpu = cpu_s(), cpu_before;
    t0 = now_ns();
    if (l.place != anywhere && (r = with_flushes(&l, n)) < 0) /* in place */
        return r;
    t1 = now_ns();
    cpu_before = cpu_s() - cpu;
    if ((r = vmfs_checkpoint(b->v, &b->err)) < 0 || (r = snap_create(&b->disk, 1, "s", &b->err)) < 0)
        return r;
    struct counts c0 = b->counts.n;
    vmfs_stats(b->v, &s0);
    double before_ms = (double)l.longest_ns / 1e6;
    cpu = cpu_s();
    l.longest_ns = 0;
    t2 = now_ns();
    if ((r = with_flushes(&l, n)) < 0)
        return r;
    double before = (double)n / ((double)(t1 - t0) / 1e9), after = (double)n / ((double)(now_ns() - t2) / 1e9);
    uint64_t flushes = b->counts.n.flushes - c0.flushes, reads = b->counts.n.reads - c0.reads, forced = b->counts.n.forced - c0.forced;
    cpu = cpu_s() - cpu;
    if ((r = vmfs_checkpoint(b->v, &b->err)) < 0)
        return r;
    vmfs_stats(b->v, &s1);
    uint64_t guest_flushes = (n + FLUSH_EVERY - 1) / FLUSH_EVERY, bytes = b->counts.n.write_bytes - c0.write_bytes;
    printf("{\"where\":\"%s\",\"writes\":%" PRIu64 ",\"device-bytes-per-guest-byte\":%.3f,\"journal\":%.3f,\"map\":%.3f,\"reads\":%" PRIu64 ",\"data-read\":%" PRIu64
           ",\"flushes-per-flush\":%.3f,\"forced\":%" PRIu64 ",\"iops-before\":%.0f,\"iops-after\":%.0f,\"kept\":%.2f,\"longest-ms-before\":%.2f,\"longest-ms\":%.2f,\"cpu-us-before\":%.2f,\"cpu-us\":%.2f,\"checkpoints\":%" PRIu64 ",\"records-per-frame\":%.1f,\"mib-first-touched\":%.1f}\n",
           where, n, (double)bytes / (double)n / 4096, (double)(s1.journal_bytes - s0.journal_bytes) / (double)n / 4096,
           (double)(s1.node_bytes - s0.node_bytes) / (double)n / 4096, reads, b->counts.n.marked_read - c0.marked_read, (double)flushes / (double)guest_flushes, forced, l.place == anywhere ? 0 : before, after,
           l.place == anywhere ? 0 : after / before, before_ms, (double)l.longest_ns / 1e6, cpu_before / (double)n * 1e6, cpu / (double)n * 1e6, s1.checkpoints - s0.checkpoints,
           (double)n / (double)GR_MAX(s1.journal_frames - s0.journal_frames, (uint64_t)1),
           (double)(bench_file_bytes(b) - touched) / 1048576);
    fflush(stdout);
    load_free(&l);
    return bench_close(b);
}

static int writes(struct bench *b)
{
    int r = 0;
    if (b->argc < 5 || (strcmp(b->argv[3], "front") && strcmp(b->argv[3], "spread") && strcmp(b->argv[3], "all")))
        return gr_fail(&b->err, -GR_EUSAGE, "writes front|spread|all COUNT...");
    for (int i = 4; r == 0 && i < b->argc; i++)
        r = writes_once(b, b->argv[3], strtoull(b->argv[i], NULL, 10));
    return r;
}

/* ---- free ---- */
struct guest {
    struct bench *b;
    uint64_t size;
    bool stop, ended;
    int r;
};
static void guest_work(void *arg)
{
    struct guest *g = arg;
    uint8_t *buf = gr_alloc_aligned(4096, 4096);
    g->r = buf ? 0 : -ENOMEM;
    for (; g->r == 0 && !g->stop; gr_fiber_sleep_ms(1)) {
        memset(buf, 0x5a, 4096);
        g->r = gr_pwrite(g->b->ch, buf, 4096, rnd(&g->b->rng) % (g->size / 4096) * 4096, 0);
    }
    free(buf);
    g->ended = true;
}

/* Until the snapshot's @size is free, with the guest at work. */
static int wait_free(struct bench *b, uint64_t size, uint64_t free_before)
{
    struct guest g = { .b = b, .size = size };
    struct vmfs_info i;
    int r = gr_fiber_start(gr_fiber_loop(), guest_work, &g);
    if (r < 0)
        return gr_fail(&b->err, r, "out of memory");
    do {
        gr_fiber_sleep_ms(10);
        vmfs_info(b->v, &i);
    } while (g.r == 0 && i.free < free_before + size - size / 100);
    for (g.stop = true; !g.ended;)
        gr_fiber_sleep_ms(1);
    return g.r < 0 ? gr_fail(&b->err, g.r, "the guest's write: %s", gr_code_text(g.r)) : 0;
}

static int free_it(struct bench *b)
{
    uint64_t gib = b->argc > 3 ? strtoull(b->argv[3], NULL, 10) : 100, size = gib * GIB;
    bool busy = b->argc > 4 && !strcmp(b->argv[4], "busy");
    struct vmfs_info i0, i1;
    int r = bench_open(b, size * 3, size, MARK); /* so that space is not short: then nobody rests */
    b->counts.drop = true; /* wherever a write is split it begins with the mark */
    if (r == 0 && (r = bench_fill(b, 0, size, 4u << 20, 4u << 20)) == 0 && (r = snap_create(&b->disk, 1, "s", &b->err)) == 0)
        r = bench_fill(b, 0, size, 4u << 20, 4u << 20);
    if (r < 0 || (r = vmfs_checkpoint(b->v, &b->err)) < 0)
        return r;
    vmfs_info(b->v, &i0);
    struct counts c0 = b->counts.n;
    uint64_t t0 = now_ns();
    double cpu = cpu_s();
    if ((r = snap_delete(b->disk, "s", false, &b->err)) < 0)
        return r;
    uint64_t t1 = now_ns();
    if ((r = busy ? wait_free(b, size, i0.free) : snap_settle(b->disk, &b->err)) < 0)
        return r;
    double took = (double)(now_ns() - t0) / 1e9;
    vmfs_info(b->v, &i1);
    printf("{\"freed-gib\":%.1f,\"answered-ms\":%.2f,\"seconds\":%.2f,\"cpu-seconds\":%.2f,\"written-mib\":%.2f,\"read-mib\":%.2f,\"unmapped-gib\":%.1f}\n",
           (double)(i1.free - i0.free) / (double)GIB, (double)(t1 - t0) / 1e6, took, cpu_s() - cpu, (double)(b->counts.n.write_bytes - c0.write_bytes) / 1048576,
           (double)(b->counts.n.read_bytes - c0.read_bytes) / 1048576, (double)(b->counts.n.unmapped - c0.unmapped) / (double)GIB);
    return bench_close(b);
}

/* ---- depth ---- */
#define DEPTH_DISK GIB
static uint64_t in_depth(struct bench *b)
{
    return rnd(&b->rng) % (DEPTH_DISK / 4096) * 4096;
}

static int reads(struct bench *b, struct load *l, unsigned n, const char *what)
{
    double best = 0, cpu = 0;
    struct vmfs_stats st;
    struct gr_extent e[64];
    unsigned k;
    int r = 0;
    for (uint64_t off = 0; r == 0 && off < DEPTH_DISK; off = e[k - 1].off + e[k - 1].len) /* so that all of the map is in memory */
        r = gr_extents(b->ch, off, DEPTH_DISK - off, NULL, e, 64, &k);
    if (r == 0)
        r = load_run(l, 200000);
    for (unsigned i = 0; r == 0 && i < 5; i++) {
        uint64_t t0 = now_ns();
        double c0 = cpu_s();
        r = load_run(l, 200000);
        double iops = 200000 / ((double)(now_ns() - t0) / 1e9);
        if (iops > best) {
            best = iops;
            cpu = (cpu_s() - c0) / 200000 * 1e6;
        }
    }
    vmfs_stats(b->v, &st);
    printf("{\"what\":\"%s\",\"snapshots\":%u,\"iops\":%.0f,\"cpu-us\":%.2f,\"map-bytes\":%" PRIu64 ",\"map-mib-per-tib\":%.0f}\n", what, n, best, cpu, st.map_bytes,
           (double)st.map_bytes / 1048576 * ((double)(1ull << 40) / (double)DEPTH_DISK));
    fflush(stdout);
    return r;
}

static int depth(struct bench *b)
{
    unsigned n = b->argc > 3 ? (unsigned)strtoul(b->argv[3], NULL, 10) : 1000;
    struct load w = { .b = b, .op = GR_OP_WRITE, .place = in_depth }, rd = { .b = b, .op = GR_OP_READ, .place = in_depth };
    char name[24];
    int r = bench_open(b, DEPTH_DISK * 6, DEPTH_DISK, 0);
    if (r == 0)
        r = bench_fill(b, 0, DEPTH_DISK, 1u << 20, 1u << 20);
    for (unsigned i = 0; r == 0 && i < n; i++) {
        snprintf(name, sizeof name, "s%u", i);
        if ((r = snap_create(&b->disk, 1, name, &b->err)) == 0)
            r = load_run(&w, 100);
    }
    if (r == 0 && (r = vmfs_checkpoint(b->v, &b->err)) == 0) /* else it is what is not written yet that is measured */
        r = reads(b, &rd, n, "with");
    for (unsigned i = 0; r == 0 && i < n; i++) {
        snprintf(name, sizeof name, "s%u", i);
        r = snap_delete(b->disk, name, false, &b->err);
    }
    if (r == 0 && (r = snap_settle(b->disk, &b->err)) == 0)
        r = reads(b, &rd, 0, "without, the same layout");
    load_free(&w);
    load_free(&rd);
    return r < 0 ? r : bench_close(b);
}

static int body(void *arg)
{
    struct bench *b = arg;
    const char *what = b->argc > 2 ? b->argv[2] : "";
    return !strcmp(what, "writes") ? writes(b) : !strcmp(what, "free") ? free_it(b) : !strcmp(what, "depth") ? depth(b) : gr_fail(&b->err, -GR_EUSAGE, "writes, depth or free");
}

int main(int argc, char **argv)
{
    return bench_main(&(struct bench){ .name = "snapshot_cost", .dir = argc > 1 ? argv[1] : "/tmp", .argc = argc, .argv = argv }, body);
}
