/* Deletes and clones, counted below the datastore, in one process without a network:
 *   delete   all of N snapshots, in a random order, while 4 KiB writes go on: data that is copied for it, how long a delete takes, and what the longest
 *            write took without and with them
 *   clones   N linked clones of a disk of 1 GiB, and of one of 64 GiB all of whose map exists: seconds, bytes written for each and space each takes;
 *            and what it takes to delete one that has 0, 1,000, 10,000, 50,000 changes
 * Usage: snapshot_many DIR delete [SNAPSHOTS]     snapshot_many DIR clones [CLONES]
 * The file of the datastore is made in DIR. Prints one JSON object a line. */
#include "tests/bench/volume.h"

#define SETTLE_MS 60000
#define CHANGES 100u /* between two snapshots */
#define WRITES 64u   /* in each millisecond while snapshots are deleted, at most */

static uint64_t in_first_gib(struct bench *b)
{
    return rnd(&b->rng) % (GIB / 4096) * 4096;
}

/* ---- delete ---- */
struct deletes {
    unsigned n;
    uint64_t longest_ns, took_ns, data_written, data_read, copied, guest, journal, map;
};

static void order(struct bench *b, unsigned *ret, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        ret[i] = i;
    for (unsigned i = n; i > 1; i--) {
        unsigned k = (unsigned)(rnd(&b->rng) % i), swap = ret[k];
        ret[k] = ret[i - 1];
        ret[i - 1] = swap;
    }
}

static int delete_all(struct bench *b, struct load *w, unsigned n, struct deletes *ret)
{
    gr_auto_free unsigned *nth = calloc(n, sizeof *nth);
    struct vmfs_stats s0, s1;
    struct counts c0 = b->counts.n;
    char name[24];
    int r = nth ? 0 : gr_fail(&b->err, -ENOMEM, "out of memory");
    if (r == 0)
        order(b, nth, n);
    vmfs_stats(b->v, &s0);
    w->ended = 0;
    uint64_t began = now_ns();
    for (unsigned i = 0; r == 0 && (i < n || vmfs_settle(b->v, 0) == -ETIMEDOUT); i++) {
        load_start(w, WRITES);
        uint64_t t = now_ns();
        snprintf(name, sizeof name, "s%u", i < n ? nth[i] : 0);
        if (i < n && (r = snap_delete(b->disk, name, false, &b->err)) == 0)
            ret->longest_ns = GR_MAX(ret->longest_ns, now_ns() - t);
        int lr = load_wait(w);
        r = r < 0 ? r : lr;
        gr_fiber_sleep_ms(1);
    }
    ret->took_ns = now_ns() - began;
    vmfs_stats(b->v, &s1);
    ret->guest = w->ended * 4096;
    ret->data_written = b->counts.n.marked_written - c0.marked_written;
    ret->data_read = b->counts.n.marked_read - c0.marked_read;
    ret->copied = b->counts.n.copied - c0.copied;
    ret->journal = s1.journal_bytes - s0.journal_bytes;
    ret->map = s1.node_bytes - s0.node_bytes;
    return r;
}

static int deletes(struct bench *b)
{
    unsigned n = b->argc > 3 ? (unsigned)strtoul(b->argv[3], NULL, 10) : 1000;
    struct load w = { .b = b, .op = GR_OP_WRITE, .place = in_first_gib };
    struct deletes d = { .n = n };
    struct vmfs_info i0, i1;
    char name[24];
    int r = bench_open(b, 6 * GIB, GIB, MARK);
    if (r == 0)
        r = bench_fill(b, 0, GIB, 1u << 20, 1u << 20);
    for (unsigned i = 0; r == 0 && i < n; i++) {
        snprintf(name, sizeof name, "s%u", i);
        if ((r = snap_create(&b->disk, 1, name, &b->err)) == 0)
            r = load_run(&w, CHANGES);
    }
    if (r == 0 && (r = vmfs_checkpoint(b->v, &b->err)) == 0) {
        w.longest_ns = 0;
        r = load_run(&w, 100000);
    }
    uint64_t without_ns = w.longest_ns;
    w.longest_ns = 0;
    vmfs_info(b->v, &i0);
    if (r == 0)
        r = delete_all(b, &w, n, &d);
    vmfs_info(b->v, &i1);
    load_free(&w);
    if (r < 0)
        return r;
    printf("{\"what\":\"delete\",\"snapshots\":%u,\"guest-bytes\":%" PRIu64 ",\"data-copied\":%" PRId64 ",\"data-read\":%" PRIu64
           ",\"journal-bytes\":%" PRIu64 ",\"map-bytes\":%" PRIu64 ",\"freed-mib\":%.1f,\"seconds\":%.2f,\"longest-delete-ms\":%.2f,\"longest-write-ms\":%.2f,\"longest-write-ms-without\":%.2f}\n",
           n, d.guest, (int64_t)(d.data_written - d.guest + d.copied), d.data_read, d.journal, d.map, ((double)i1.free - (double)i0.free) / 1048576,
           (double)d.took_ns / 1e9, (double)d.longest_ns / 1e6, (double)w.longest_ns / 1e6, (double)without_ns / 1e6);
    return bench_close(b);
}

/* ---- clones ---- */
struct image {
    struct bench *b;
    unsigned gib;
};

static int changes_of(struct bench *b, const char *path, unsigned n)
{
    struct load w = { .b = b, .op = GR_OP_WRITE, .place = in_first_gib };
    struct gr_chan *image = b->ch;
    struct vmfs_disk *clone;
    int r = vmfs_open(b->v, path, &clone, NULL, &b->err);
    if (r < 0)
        return r;
    if ((r = gr_chan_open(vmfs_bdev(clone), gr_fiber_loop(), &b->ch)) == 0) {
        r = load_run(&w, n);
        gr_chan_close(b->ch);
    }
    b->ch = image;
    load_free(&w);
    vmfs_close(clone);
    return r < 0 ? r : vmfs_checkpoint(b->v, &b->err);
}

static int delete_changed(const struct image *m, unsigned changes)
{
    struct bench *b = m->b;
    struct vmfs_info i0, i1;
    int r = snap_clone(b->disk, "gold", "changed", &b->err);
    if (r < 0 || (r = changes_of(b, "changed", changes)) < 0)
        return r;
    vmfs_info(b->v, &i0);
    struct counts c0 = b->counts.n;
    uint64_t t = now_ns();
    if ((r = vmfs_remove(b->v, "changed", &b->err)) < 0)
        return r;
    uint64_t answered_ns = now_ns() - t;
    if ((r = vmfs_settle(b->v, SETTLE_MS)) < 0)
        return gr_fail(&b->err, r, "the space of a deleted clone: %s", gr_code_text(r));
    double ms = (double)(now_ns() - t) / 1e6;
    vmfs_info(b->v, &i1);
    printf("{\"what\":\"delete-clone\",\"image-gib\":%u,\"changes\":%u,\"answered-ms\":%.2f,\"free-after-ms\":%.2f,\"read-kib\":%" PRIu64
           ",\"written-kib\":%" PRIu64 ",\"freed-mib\":%.1f}\n",
           m->gib, changes, (double)answered_ns / 1e6, ms, (b->counts.n.read_bytes - c0.read_bytes) >> 10,
           (b->counts.n.write_bytes - c0.write_bytes) >> 10, ((double)i1.free - (double)i0.free) / 1048576);
    fflush(stdout);
    return 0;
}

static int make_many(const struct image *m, unsigned n)
{
    struct bench *b = m->b;
    gr_auto_free char (*names)[24] = calloc(n, sizeof *names);
    gr_auto_free const char **paths = calloc(n, sizeof *paths);
    struct vmfs_info i0, i1;
    unsigned made;
    if (!names || !paths)
        return gr_fail(&b->err, -ENOMEM, "out of memory");
    for (unsigned i = 0; i < n; i++) {
        snprintf(names[i], sizeof names[i], "clones/c%u", i);
        paths[i] = names[i];
    }
    vmfs_info(b->v, &i0);
    struct counts c0 = b->counts.n;
    uint64_t t = now_ns();
    int r = snap_clone_many(b->disk, "gold", paths, n, &made, NULL, &b->err);
    if (r < 0)
        return r;
    double s = (double)(now_ns() - t) / 1e9;
    vmfs_info(b->v, &i1);
    printf("{\"what\":\"clones\",\"image-gib\":%u,\"clones\":%u,\"seconds\":%.3f,\"kib-written-each\":%.1f,\"kib-taken-each\":%.1f,\"data-written\":%" PRIu64 "}\n",
           m->gib, made, s, (double)(b->counts.n.write_bytes - c0.write_bytes) / 1024 / n, ((double)i0.free - (double)i1.free) / 1024 / n,
           b->counts.n.marked_written - c0.marked_written);
    fflush(stdout);
    return 0;
}

static int clones_of(struct bench *b, unsigned n, unsigned gib)
{
    static const unsigned changes[] = { 0, 1000, 10000, 50000 };
    struct image m = { b, gib };
    uint64_t leaf = 8u << 20; /* a leaf of the map: with data in each, all of the map exists */
    int r = bench_open(b, gib * GIB / 4 + 8 * GIB, gib * GIB, MARK);
    if (r == 0)
        r = bench_fill(b, 0, GIB, 1u << 20, 1u << 20);
    if (r == 0)
        r = bench_fill(b, GIB, gib * GIB, VMFS_BLOCK, leaf);
    if (r == 0 && (r = vmfs_checkpoint(b->v, &b->err)) == 0)
        r = snap_create(&b->disk, 1, "gold", &b->err);
    if (r == 0)
        r = make_many(&m, n);
    for (unsigned i = 0; r == 0 && i < sizeof changes / sizeof *changes; i++)
        r = delete_changed(&m, changes[i]);
    return r < 0 ? r : bench_close(b);
}

static int clones(struct bench *b)
{
    unsigned n = b->argc > 3 ? (unsigned)strtoul(b->argv[3], NULL, 10) : 1000;
    int r = clones_of(b, n, 1);
    return r < 0 ? r : clones_of(b, n, 64);
}

static int body(void *arg)
{
    struct bench *b = arg;
    const char *what = b->argc > 2 ? b->argv[2] : "";
    return !strcmp(what, "delete") ? deletes(b) : !strcmp(what, "clones") ? clones(b) : gr_fail(&b->err, -GR_EUSAGE, "delete or clones");
}

int main(int argc, char **argv)
{
    return bench_main(&(struct bench){ .name = "snapshot_many", .dir = argc > 1 ? argv[1] : "/tmp", .argc = argc, .argv = argv }, body);
}
