/* Quotas of folders: random histories of two hosts with disks in nested folders. What is below a folder is never more than its limit, and
 * nobody is refused who would fit, whoever holds what, after moves, snapshots, deletes, crashes and new limits. */
#include "tests/lib/test.h"
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include "tests/lib/crash_world.h"
#include "tests/lib/diskfix.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>

#define DISKS 6u
#define FOLDERS 4u
#define SIZE (64ull << 20)
#define KIB 1024ull

static const char *const folder[FOLDERS] = { "free", "a", "a/b", "c" };

struct host {
    struct gr_bdev *base, *dev;
    struct vmfs *v;
    struct host *other;
    bool deaf; /* it cannot be told anything */
};
struct disk {
    char path[32];
    struct diskfix f;
    unsigned host, folder, snaps;
};
struct history {
    uint64_t rng, write_ns;
    struct gr_mem *mem;
    struct host host[2];
    struct disk disk[DISKS];
    uint64_t limit[FOLDERS];
    uint8_t *buf;
    unsigned refused, refused_names, written, moves, crashes, warned, names, again;
};

static uint32_t rnd(struct history *h, uint32_t n) { return (uint32_t)(test_rand(&h->rng) % n); }

static void quiet(void *arg, const char *text)
{
    (void)arg;
    (void)text;
}

static int recall(void *arg, struct gr_err *err)
{
    struct host *me = arg;
    if (me->other->deaf)
        return gr_fail(err, -ETIMEDOUT, "it does not answer");
    return me->other->v ? vmfs_quota_recall(me->other->v, err) : 0;
}

static void join(struct history *h, unsigned i)
{
    struct host *host = &h->host[i];
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = i ? "two" : "one", .warn = quiet, .warn_arg = host, .recall = recall };
    host->other = &h->host[!i];
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), h->mem, &host->base), 0);
    assert_int_equal(gr_bdev_delay_open(gr_fiber_loop(), host->base, 0, h->write_ns, 0, &host->dev), 0);
    OK(vmfs_join(gr_fiber_loop(), &host->dev, 1, &o, &host->v, &err));
}

static void open_disk(struct history *h, struct disk *d) { diskfix_open(&d->f, h->host[d->host].v, d->path); }

static bool below(unsigned at, unsigned f)
{
    return at == f || (f == 1 && at == 2);
}

static uint64_t held(const struct disk *d)
{
    return (d->f.d->o->ino.used_units + d->f.d->o->reserved_units) * VMFS_UNIT;
}

static uint64_t used(struct history *h, unsigned f)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < DISKS; i++)
        if (below(h->disk[i].folder, f))
            sum += held(&h->disk[i]);
    return sum;
}

static void compare(struct history *h)
{
    for (unsigned f = 0; f < FOLDERS; f++)
        if (h->limit[f] && used(h, f) > h->limit[f])
            fail_msg("%s: %llu of %llu bytes are used", folder[f], (unsigned long long)used(h, f), (unsigned long long)h->limit[f]);
}

/* Would @bytes more fit below all folders above @at (but those above @not_above, too)? */
static bool fits(struct history *h, unsigned at, uint64_t bytes, int not_above)
{
    for (unsigned f = 0; f < FOLDERS; f++)
        if (h->limit[f] && below(at, f) && !(not_above >= 0 && below((unsigned)not_above, f)) && used(h, f) + bytes > h->limit[f])
            return false;
    return true;
}

static void do_write(struct history *h, struct disk *d)
{
    uint64_t len = (1 + rnd(h, 200)) * 4 * KIB, off = rnd(h, (uint32_t)((SIZE - len) / 4096)) * 4096ull;
    int r = gr_pwrite(d->f.ch, h->buf, len, off, 0);
    h->written += r == 0;
    if (r == 0)
        return;
    assert_int_equal(r, -GR_ENOSPACE);
    h->refused++;
    if (!fits(h, d->folder, len + 30 * 4 * KIB, -1)) /* with what is left of a block at each end */
        return;
    gr_fiber_sleep_ms(1100); /* room was made since it was refused last, perhaps */
    h->again++;
    r = gr_pwrite(d->f.ch, h->buf, len, off, 0);
    if (r < 0)
        fail_msg("%s: %llu bytes are refused, though there is room", d->path, (unsigned long long)len);
}

static void do_overwrite(struct history *h, struct disk *d)
{
    if (d->snaps || d->f.d->o->ino.used_units == 0)
        return;
    struct mnode *leaf;
    for (uint64_t p = 0; p < SIZE / 4096; p++) {
        while (mtree_peek(&d->f.d->o->live, p, &leaf) < 0)
            OK(mtree_load(d->f.d->o, &d->f.d->o->live, p, &err));
        if (!leaf || ment_piece(&leaf->ent[p % VMFS_LEAF_PIECES / 16], (unsigned)(p % 16)).state != VMFS_P_DATA)
            continue;
        assert_int_equal(gr_pwrite(d->f.ch, h->buf, 4096, p * 4096, 0), 0); /* what it has can be overwritten, whatever is left */
        return;
    }
}

static void do_unmap(struct history *h, struct disk *d)
{
    uint64_t len = (1 + rnd(h, 4000)) * 4 * KIB, off = rnd(h, (uint32_t)((SIZE - len) / 4096)) * 4096ull;
    assert_int_equal(gr_unmap(d->f.ch, off, len, 0), 0);
}

static void do_snapshot(struct history *h, struct disk *d)
{
    char name[16] = "s";
    if (d->snaps) {
        OK(snap_delete(d->f.d, name, false, &err));
        OK(snap_settle(d->f.d, &err));
        d->snaps = 0;
    } else if (rnd(h, 2)) {
        OK(snap_create(&d->f.d, 1, name, &err));
        d->snaps = 1;
    }
}

static void do_move(struct history *h, struct disk *d)
{
    unsigned to = rnd(h, FOLDERS);
    char path[32];
    struct gr_err err = { 0 };
    snprintf(path, sizeof path, "%s/d%u", folder[to], h->names++);
    bool fit = fits(h, to, held(d), (int)d->folder);
    int r = vmfs_rename(h->host[rnd(h, 2)].v, d->path, path, &err); /* by whichever host */
    if (fit != (r == 0))
        fail_msg("%s to %s: %s", d->path, path, r < 0 ? err.text : "it does not fit");
    h->moves += r == 0;
    if (r == 0) {
        memcpy(d->path, path, sizeof path);
        d->folder = to;
        return;
    }
    h->refused_names++;
    assert_int_equal(r, -GR_ENOSPACE);
    assert_non_null(strstr(err.text, "its quota is"));
}

static void do_hand_over(struct history *h, struct disk *d)
{
    diskfix_close(&d->f);
    OK(vmfs_release(h->host[d->host].v, d->path, &err));
    d->host = !d->host;
    open_disk(h, d);
}

/* One host dies; the other, or the same again, finds everything. */
static void do_crash(struct history *h)
{
    unsigned dead = rnd(h, 2);
    for (unsigned i = 0; i < DISKS; i++)
        if (h->disk[i].host == dead)
            diskfix_close(&h->disk[i].f);
    vmfs_abandon(h->host[dead].v);
    h->host[dead].v = NULL;
    gr_bdev_put(h->host[dead].dev);
    gr_bdev_put(h->host[dead].base);
    if (rnd(h, 2))
        OK(vmfs_recover(h->host[!dead].v, &err));
    join(h, dead);
    for (unsigned i = 0; i < DISKS; i++)
        if (!h->disk[i].f.d)
            open_disk(h, &h->disk[i]);
    h->crashes++;
}

static void do_limit(struct history *h)
{
    unsigned f = 1 + rnd(h, FOLDERS - 1);
    uint64_t bytes = (2000 + rnd(h, 8000)) * KIB / 4096 * 4096, least = used(h, f);
    bytes = !rnd(h, 5) ? 0 : GR_MAX(bytes, least);
    bytes = bytes && bytes < VMFS_BLOCK ? VMFS_BLOCK : bytes;
    OK(vmfs_quota_set(h->host[rnd(h, 2)].v, folder[f], bytes, &err));
    h->limit[f] = bytes;
}

static void do_remake(struct history *h, struct disk *d)
{
    struct gr_err why = { 0 };
    struct vmfs *v = h->host[d->host].v;
    diskfix_close(&d->f);
    OK(vmfs_remove(v, d->path, &err));
    OK(vmfs_settle(v, 60000));
    int r = vmfs_create(v, d->path, VMFS_DISK, SIZE, VMFS_THIN, &why);
    if (r == -GR_ENOSPACE) { /* nothing can be made in a folder that is full */
        snprintf(d->path, sizeof d->path, "free/d%u", h->names++);
        d->folder = 0;
        OK(vmfs_create(v, d->path, VMFS_DISK, SIZE, VMFS_THIN, &err));
        h->refused_names++;
    }
    d->snaps = 0;
    open_disk(h, d);
}

static void step(struct history *h)
{
    struct disk *d = &h->disk[rnd(h, DISKS)];
    unsigned k = rnd(h, 100);
    if (k < 55)
        do_write(h, d);
    else if (k < 60)
        do_overwrite(h, d);
    else if (k < 72)
        do_unmap(h, d);
    else if (k < 78)
        do_snapshot(h, d);
    else if (k < 84)
        do_move(h, d);
    else if (k < 88)
        do_hand_over(h, d);
    else if (k < 90)
        do_crash(h);
    else if (k < 93)
        do_limit(h);
    else if (k < 95)
        do_remake(h, d);
    else
        OK(vmfs_checkpoint(h->host[rnd(h, 2)].v, &err));
}

static void begin(struct history *h)
{
    struct vmfs_format_opts f = { .name = "ds1" };
    h->mem = gr_mem_new(1 << 30);
    h->buf = calloc(1, 1 << 20);
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), h->mem, &h->host[0].dev), 0);
    OK(vmfs_format(gr_fiber_loop(), &h->host[0].dev, 1, &f, &err));
    gr_bdev_put(h->host[0].dev);
    join(h, 0);
    join(h, 1);
    for (unsigned i = 0; i < FOLDERS; i++)
        OK(vmfs_mkdir(h->host[0].v, folder[i], true, &err));
    for (unsigned i = 0; i < DISKS; i++) {
        struct disk *d = &h->disk[i];
        d->host = i % 2;
        d->folder = i % FOLDERS;
        snprintf(d->path, sizeof d->path, "%s/d%u", folder[d->folder], h->names++);
        OK(vmfs_create(h->host[d->host].v, d->path, VMFS_DISK, SIZE, VMFS_THIN, &err));
        open_disk(h, d);
    }
}

static void end(struct history *h)
{
    for (unsigned i = 0; i < DISKS; i++) {
        h->warned += h->disk[i].f.told;
        diskfix_close(&h->disk[i].f);
    }
    for (unsigned i = 0; i < 2; i++) {
        OK(vmfs_leave(h->host[i].v, &err));
        h->host[i].v = NULL;
        gr_bdev_put(h->host[i].dev);
        gr_bdev_put(h->host[i].base);
    }
    gr_mem_free(h->mem);
    free(h->buf);
}

static int history_fn(void *arg)
{
    struct history *h = arg;
    struct vmfs_check_report rep;
    begin(h);
    for (unsigned i = 0; i < 3; i++)
        do_limit(h);
    for (unsigned i = 0, n = test_cases(500); i < n; i++) {
        step(h);
        compare(h);
    }
    OK(vmfs_settle(h->host[0].v, 60000));
    OK(vmfs_settle(h->host[1].v, 60000));
    OK(vmfs_checkpoint(h->host[1].v, &err));
    OK(vmfs_check(h->host[0].v, NULL, NULL, &rep, &err));
    end(h);
    return 0;
}

static void histories(void **state)
{
    struct history all = { 0 };
    uint64_t seed = test_seed();
    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        struct history h = { .rng = seed + i };
        crash_world_run(seed + i, history_fn, &h);
        all.written += h.written, all.refused += h.refused, all.refused_names += h.refused_names, all.moves += h.moves;
        all.crashes += h.crashes, all.warned += h.warned, all.again += h.again;
    }
    print_message("writes %u, refused %u (%u not once room was made), moves %u, refused moves and creates %u, crashes %u, told in time %u\n",
                  all.written, all.refused, all.again, all.moves, all.refused_names, all.crashes, all.warned);
    assert_true(all.written && all.refused && all.moves && all.refused_names && all.crashes && all.warned);
}

/* ---- thick disks, and many writes at once ---- */
static void must_not_fit(int r, const struct gr_err *err, const char *text)
{
    assert_int_equal(r, -GR_ENOSPACE);
    if (!strstr(err->text, text))
        fail_msg("'%s' does not say '%s'", err->text, text);
}

static int thick_fn(void *arg)
{
    struct history *h = arg;
    struct gr_err why = { 0 };
    struct vmfs_disk *d;
    begin(h);
    struct vmfs *v = h->host[1].v;
    OK(vmfs_quota_set(v, "a", 16 << 20, &err));
    OK(vmfs_create(v, "a/b/t1", VMFS_DISK, 8 << 20, VMFS_THICK, &err));
    must_not_fit(vmfs_create(v, "a/t2", VMFS_DISK, 10 << 20, VMFS_EAGER, &why), &why, "folder 'ds1/a': its quota is 16777216 bytes, 8388608 of them are used, and 10485760 more do not fit");
    must_not_fit(vmfs_create(v, "a/new/t2", VMFS_DISK, 10 << 20, VMFS_THICK, &why), &why, "its quota");
    struct vmfs_stat st;
    assert_int_equal(vmfs_stat(v, "a/new", &st, NULL), -ENOENT); /* nothing was made */
    OK(vmfs_open(v, "a/b/t1", &d, NULL, &err));
    OK(snap_create(&d, 1, "s", &err)); /* as much again is promised */
    must_not_fit(vmfs_create(v, "a/x", VMFS_DISK, 8 << 20, VMFS_THIN, &why), &why, "0 more do not fit");
    OK(snap_delete(d, "s", false, &err));
    OK(snap_settle(d, &err));
    OK(vmfs_create(v, "a/t3", VMFS_DISK, 8 << 20, VMFS_THICK, &err));
    must_not_fit(snap_create(&d, 1, "s2", &why), &why, "a snapshot of a thick disk needs 8388608 bytes");
    vmfs_close(d);
    end(h);
    return 0;
}

#define MANY 48u
struct many {
    struct gr_bio bio[MANY];
    struct iovec iov;
    unsigned left, done, refused;
    struct gr_fiber *fiber;
};

static void many_done(struct gr_bio *bio)
{
    struct many *m = bio->arg;
    m->done += bio->status == 0;
    m->refused += bio->status == -GR_ENOSPACE;
    if (--m->left == 0)
        gr_fiber_wake(m->fiber);
}

static int take_c(void *arg, const struct vmfs_quota *q)
{
    if (strcmp(q->path, "c") == 0)
        *(struct vmfs_quota *)arg = *q;
    return 0;
}

/* What a disk was granted in advance is with nobody when nobody has it. */
static int closed_fn(void *arg)
{
    struct history *h = arg;
    static struct vmfs_quota q;
    begin(h);
    OK(vmfs_quota_set(h->host[0].v, "c", 64 << 20, &err));
    assert_int_equal(gr_pwrite(h->disk[3].f.ch, h->buf, 4 * KIB, 0, 0), 0);
    OK(vmfs_quotas(h->host[0].v, take_c, &q, &err));
    assert_true(q.granted >= 2 << 20 && q.limit == 64 << 20);
    diskfix_close(&h->disk[3].f);
    OK(vmfs_release(h->host[1].v, h->disk[3].path, &err));
    OK(vmfs_quotas(h->host[0].v, take_c, &q, &err));
    assert_int_equal(q.granted, 64 * KIB);
    assert_int_equal(q.used, 64 * KIB);
    open_disk(h, &h->disk[3]);
    end(h);
    return 0;
}

static int take_a(void *arg, const struct vmfs_quota *q)
{
    if (strcmp(q->path, "a") == 0 || strcmp(q->path, "z") == 0)
        *(struct vmfs_quota *)arg = *q;
    return 0;
}

static uint64_t used_of_a(struct vmfs *v)
{
    struct vmfs_quota *q = gr_zalloc(sizeof *q);
    OK(vmfs_settle(v, 20000));
    OK(vmfs_checkpoint(v, &err));
    OK(vmfs_quotas(v, take_a, q, &err));
    uint64_t n = q->used;
    free(q);
    return n;
}

/* A removed disk that is kept for a clone elsewhere counts for the folder it lay in: with what is left of it, also when that is renamed or removed. */
static int kept_fn(void *arg)
{
    struct history *h = arg;
    struct gr_err why = { 0 };
    struct vmfs_disk *d;
    struct gr_chan *ch;
    begin(h);
    struct vmfs *v = h->host[0].v, *other = h->host[1].v;
    OK(vmfs_quota_set(v, "a", 8 << 20, &err));
    uint64_t empty = used_of_a(v);
    OK(vmfs_create(v, "a/in/gold", VMFS_DISK, SIZE, VMFS_THIN, &err));
    OK(vmfs_open(v, "a/in/gold", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(gr_pwrite(ch, h->buf, 1 << 20, (uint64_t)i << 20, 0), 0);
    OK(snap_create(&d, 1, "s", &err));
    OK(snap_clone(d, "s", "free/c", &err));
    assert_int_equal(gr_pwrite(ch, h->buf, 1 << 20, 0, 0), 0); /* this goes with it */
    gr_chan_close(ch);
    vmfs_close(d);
    OK(vmfs_remove(v, "a/in/gold", &err));
    assert_int_equal(used_of_a(v), empty + (6 << 20));
    assert_int_equal(used_of_a(other), empty + (6 << 20));
    must_not_fit(vmfs_create(other, "a/t", VMFS_DISK, 4 << 20, VMFS_THICK, &why), &why, "of them are used");
    OK(vmfs_rename(v, "a", "z", &err));
    assert_int_equal(used_of_a(other), empty + (6 << 20));
    OK(vmfs_rename(v, "z", "a", &err));
    OK(vmfs_remove(v, "a/in", &err)); /* it is empty */
    assert_int_equal(used_of_a(v), empty + (6 << 20));
    OK(vmfs_remove(v, "free/c", &err));
    assert_int_equal(used_of_a(v), empty);
    OK(vmfs_create(other, "a/t", VMFS_DISK, 4 << 20, VMFS_THICK, &err));
    end(h);
    return 0;
}

static int many_fn(void *arg)
{
    struct history *h = arg;
    struct many m = { .left = MANY, .iov = { h->buf, 256 * KIB }, .fiber = gr_fiber_self() };
    h->write_ns = 1000000; /* they are under way together */
    begin(h);
    m.iov.iov_base = h->buf;
    OK(vmfs_quota_set(h->host[0].v, "a", 6 << 20, &err));
    h->limit[1] = 6 << 20;
    h->host[0].deaf = h->host[1].deaf = true; /* nobody gives anything back */
    for (unsigned i = 0; i < MANY; i++) { /* to the disks of a and of a/b, of different hosts */
        m.bio[i] = (struct gr_bio){ .op = GR_OP_WRITE, .off = i * 256 * KIB, .len = 256 * KIB, .iov = &m.iov, .iovcnt = 1, .done = many_done, .arg = &m };
        gr_submit(h->disk[1 + i % 2].f.ch, &m.bio[i]);
    }
    while (m.left)
        gr_fiber_suspend();
    compare(h);
    assert_int_equal(m.done + m.refused, MANY);
    assert_in_range(m.done, 12, 24); /* 24 fit; a quarter may be granted to the wrong host */
    diskfix_close(&h->disk[2].f); /* what it was granted and has not used comes back by itself */
    OK(vmfs_release(h->host[0].v, h->disk[2].path, &err));
    gr_fiber_sleep_ms(1100);
    while (gr_pwrite(h->disk[1].f.ch, h->buf, 4 * KIB, (32 << 20) + m.done++ * 64 * KIB, 0) == 0) /* in blocks of 64 KiB: the rest is to be had now */
        ;
    open_disk(h, &h->disk[2]);
    assert_true(used(h, 1) <= h->limit[1]);
    h->host[0].deaf = h->host[1].deaf = false;
    assert_true(used(h, 1) + 64 * KIB > h->limit[1]);
    end(h);
    return 0;
}

static void run(int (*fn)(void *arg))
{
    struct history h = { .rng = test_seed() };
    crash_world_run(h.rng, fn, &h);
}
static void closed(void **state) { (void)state; run(closed_fn); }
static void kept(void **state) { (void)state; run(kept_fn); }
static void thick(void **state) { (void)state; run(thick_fn); }
static void many(void **state) { (void)state; run(many_fn); }

TEST_MAIN(TEST(histories), TEST(thick), TEST(many), TEST(closed), TEST(kept))
