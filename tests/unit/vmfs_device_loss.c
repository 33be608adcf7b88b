/* A device dies under load, with what it had acknowledged and nobody had flushed: who has nothing there loses nothing, who has keeps what was flushed
 * and is told; then crashes, and the device comes back. */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/fiber.h"
#include "snapshot/snapshot.h"
#include "tests/lib/crash_world.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>

#define MIB ((uint64_t)1 << 20)
#define DEVICES 3u
#define DISKS 4u
#define PIECES 512u
#define WRITERS 2u /* of each disk */
#define SNAPS 8u

/* ---- a device that can die ---- */
static struct frail { /* one at a time, and the operations of the device below it */
    struct gr_mem *mem;
    bool dead;
    uint64_t *rng;
    struct page {
        uint64_t off;
        uint8_t was[4096];
    } *page; /* overwritten since the last flush, oldest first */
    size_t n, cap;
    struct gr_bdev_ops honest, ops;
} frail;

static void remember(uint64_t off, uint64_t len)
{
    for (uint64_t at = off & ~4095ull; at < off + len; at += 4096) {
        if (frail.n == frail.cap) {
            frail.cap = frail.cap ? frail.cap * 2 : 256;
            frail.page = realloc(frail.page, frail.cap * sizeof *frail.page);
            assert_non_null(frail.page);
        }
        struct page *p = &frail.page[frail.n++];
        const void *was = gr_mem_page(frail.mem, at, false);
        p->off = at;
        if (was)
            memcpy(p->was, was, 4096);
        else
            memset(p->was, 0, 4096);
    }
}

static void frail_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    if (frail.dead) {
        gr_bio_end(bio, -EIO);
        return;
    }
    if (bio->op == GR_OP_FLUSH)
        frail.n = 0;
    else if (bio->op != GR_OP_READ && bio->op != GR_OP_EXTENTS && !(bio->flags & GR_BIO_FUA) && bio->op != GR_OP_COMPARE_WRITE)
        remember(bio->off, bio->len);
    frail.honest.submit(ch, bio);
}

/* It is dead, and any part of what was not flushed is gone: of a page the newest writes. */
static void die(void)
{
    frail.dead = true;
    for (size_t i = frail.n; i-- > 0;) {
        bool kept = test_rand(frail.rng) % 2;
        for (size_t k = i + 1; k < frail.n && kept; k++)
            kept = frail.page[k].off != frail.page[i].off || frail.page[k].off == UINT64_MAX;
        if (!kept)
            memcpy(gr_mem_page(frail.mem, frail.page[i].off, true), frail.page[i].was, 4096);
        else
            frail.page[i].off = UINT64_MAX; /* kept: older ones below it are */
    }
    frail.n = 0;
}

/* ---- the site ---- */
struct disk {
    struct vmfs_disk *d;
    struct gr_chan *ch;
    bool lost, busy_snap, quiet;
    unsigned writing;
    uint32_t acked[PIECES], durable[PIECES], maybe[PIECES]; /* maybe: under way, or failed */
    struct snap {
        char name[8];
        uint32_t is[PIECES];
    } snap[SNAPS];
    unsigned n_snaps;
};
struct site {
    struct gr_mem *mem[DEVICES];
    struct gr_bdev *low[DEVICES], *fault[DEVICES], *dev[DEVICES];
    unsigned frail; /* number of the device that dies */
    bool own_tables; /* it was added later */
    struct vmfs *v;
    struct disk disk[DISKS];
    uint64_t rng;
    uint32_t newest;
    unsigned seldom; /* that data goes to the one that dies */
    unsigned told, running, failed, absent, losers, cut;
    bool stop;
    struct gr_fqueue ended;
    const char *host;
};

static unsigned rnd(struct site *s, unsigned n) { return (unsigned)(test_rand(&s->rng) % n); }

static void warn(void *arg, const char *text)
{
    (void)arg;
    print_message("# %s\n", text);
}

static void device_lost(void *arg)
{
    ((struct site *)arg)->told++;
}

static void devices_open(struct site *s)
{
    for (unsigned i = 0; i < DEVICES; i++) {
        assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), s->mem[i], &s->low[i]), 0);
        if (i == s->frail) {
            frail.mem = s->mem[i];
            frail.rng = &s->rng;
            frail.honest = frail.ops = *s->low[i]->ops;
            frail.ops.submit = frail_submit;
            s->low[i]->ops = &frail.ops;
        }
        assert_int_equal(gr_bdev_fault_open(gr_fiber_loop(), s->low[i], &s->fault[i]), 0);
        assert_int_equal(gr_bdev_delay_open(gr_fiber_loop(), s->fault[i], 20000, 150000 + 100000 * i, 400000, &s->dev[i]), 0);
    }
}

static void devices_close(struct site *s)
{
    for (unsigned i = 0; i < DEVICES; i++) {
        gr_bdev_put(s->dev[i]);
        gr_bdev_put(s->fault[i]);
        gr_bdev_put(s->low[i]);
    }
}

static int try_join(struct site *s, bool with, bool degraded, struct gr_err *err)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = s->host, .warn = warn, .warn_arg = s, .degraded = degraded, .device_lost = device_lost };
    struct gr_bdev *dev[DEVICES];
    unsigned n = 0;
    snprintf((char *)o.host_uuid, sizeof o.host_uuid, "%s", s->host);
    for (unsigned i = 0; i < DEVICES; i++)
        if (with || i != s->frail)
            dev[n++] = s->dev[i];
    int r = vmfs_join(gr_fiber_loop(), dev, n, &o, &s->v, err);
    if (r == 0)
        s->v->sp.stay++; /* it leases more than it needs, and keeps it: data is put on chosen devices */
    return r;
}

/* New data goes there, if it may have some. */
static void go_to(struct vmfs *v, unsigned dev)
{
    for (struct vregion *r = v->sp.regions; r; r = r->next)
        if (vmfs_addr_dev(r->first) == dev && !r->closed)
            v->sp.current = r;
    v->sp.frag_left = 0; /* what is left of it stays busy until the end */
}

static void wander(struct site *s)
{
    go_to(s->v, rnd(s, s->seldom) ? rnd(s, DEVICES - 1) : s->frail);
}

static void disks_open(struct site *s)
{
    for (uint32_t i = 0; i < space_n_regions(s->v); i++)
        OK(space_lease(s->v, i, &err));
    for (unsigned i = 0; i < DISKS; i++) {
        struct disk *d = &s->disk[i];
        char name[8];
        struct vmfs_stat st;
        snprintf(name, sizeof name, "d%u", i);
        OK(vmfs_open(s->v, name, &d->d, NULL, &err));
        assert_int_equal(gr_chan_open(vmfs_bdev(d->d), gr_fiber_loop(), &d->ch), 0);
        vmfs_disk_stat(d->d, &st);
        d->lost = st.lost_writes;
    }
}

static void disks_close(struct site *s)
{
    for (unsigned i = 0; i < DISKS; i++) {
        gr_chan_close(s->disk[i].ch);
        vmfs_close(s->disk[i].d);
    }
}

static void make(struct site *s, bool own_tables)
{
    struct vmfs_format_opts f = { .name = "ds1", .journal_units = 256 };
    s->frail = 2;
    s->own_tables = own_tables;
    s->host = "one";
    frail.dead = false;
    frail.n = 0;
    for (unsigned i = 0; i < DEVICES; i++)
        s->mem[i] = gr_mem_new((i ? 96 : 64) * MIB);
    devices_open(s);
    OK(vmfs_format(gr_fiber_loop(), s->dev, own_tables ? 2 : 3, &f, &err));
    if (own_tables) {
        struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "one", .warn = warn };
        struct vmfs_device_add add = { 0 };
        OK(vmfs_join(gr_fiber_loop(), s->dev, 2, &o, &s->v, &err));
        OK(vmfs_device_add(s->v, s->dev[2], &add, &err));
        OK(vmfs_leave(s->v, &err));
    }
}

static void unmake(struct site *s)
{
    devices_close(s);
    for (unsigned i = 0; i < DEVICES; i++)
        gr_mem_free(s->mem[i]);
    free(frail.page);
    frail.page = NULL;
    frail.n = frail.cap = 0;
}

/* ---- content ---- */
static void fill(uint8_t *p, unsigned disk, uint32_t piece, uint32_t stamp)
{
    uint32_t v[4] = { stamp, stamp ? disk : 0, stamp ? piece : 0, stamp * 2654435761u };
    for (unsigned i = 0; i < 4096; i += sizeof v)
        memcpy(p + i, v, sizeof v);
}

/* The stamp in a piece; it must be one of that piece, whole. */
static uint32_t stamp_of(const uint8_t *p, unsigned disk, uint32_t piece)
{
    static uint8_t want[4096];
    uint32_t stamp;
    memcpy(&stamp, p, sizeof stamp);
    fill(want, disk, piece, stamp);
    if (memcmp(p, want, 4096) != 0)
        fail_msg("disk %u, piece %u: somebody else's bytes (stamp %u)", disk, piece, stamp);
    return stamp;
}

static bool over(const struct site *s) { return s->stop || s->v->fenced; }

static void write_some(struct site *s, unsigned k)
{
    static const uint32_t lens[] = { 1, 1, 2, 5, 16, 32 };
    struct disk *d = &s->disk[k];
    uint32_t n = lens[rnd(s, 6)], at = rnd(s, PIECES - n), stamp = ++s->newest;
    if (rnd(s, 3) == 0)
        at = at / 8; /* some places are hot */
    if (n >= 16)
        at -= at % 16;
    for (uint32_t i = 0; i < n; i++)
        if (d->maybe[at + i])
            return; /* somebody is at it; or nobody knows what is there */
    uint8_t *buf = malloc(n * 4096u);
    assert_non_null(buf);
    for (uint32_t i = 0; i < n; i++) {
        fill(buf + i * 4096u, k, at + i, stamp);
        d->maybe[at + i] = stamp;
    }
    d->writing++;
    int r = gr_pwrite(d->ch, buf, n * 4096u, (uint64_t)at * 4096, rnd(s, 20) ? 0 : GR_BIO_FUA);
    d->writing--;
    for (uint32_t i = 0; r == 0 && i < n; i++) {
        d->acked[at + i] = stamp;
        d->maybe[at + i] = 0;
    }
    s->failed += r < 0 && !s->v->fenced;
    if (r < 0 && !s->v->fenced && r != -EIO && r != -GR_ENOSPACE)
        fail_msg("disk %u: a write ends with %s", k, gr_code_text(r));
    free(buf);
}

static void flush_it(struct site *s, unsigned k)
{
    struct disk *d = &s->disk[k];
    uint32_t *then = malloc(sizeof d->acked);
    assert_non_null(then);
    memcpy(then, d->acked, sizeof d->acked);
    int r = gr_flush(d->ch);
    for (uint32_t i = 0; r == 0 && i < PIECES; i++)
        d->durable[i] = GR_MAX(d->durable[i], then[i]);
    if (r == 0 && d->lost)
        fail_msg("disk %u has lost writes, and acknowledges a flush", k);
    if (r < 0 && !s->v->fenced && !d->lost)
        fail_msg("disk %u: a flush ends with %s", k, gr_code_text(r));
    free(then);
}

static void snapshot(struct site *s, unsigned k)
{
    struct disk *d = &s->disk[k];
    if (d->n_snaps == SNAPS || d->busy_snap || d->lost)
        return;
    d->busy_snap = true;
    while (d->writing && !over(s))
        gr_fiber_sleep_ms(1);
    for (uint32_t i = 0; i < PIECES; i++)
        if (d->maybe[i])
            goto out; /* it is not known what it would have */
    struct snap *sn = &d->snap[d->n_snaps];
    snprintf(sn->name, sizeof sn->name, "s%u", d->n_snaps);
    memcpy(sn->is, d->acked, sizeof sn->is);
    if (!over(s) && snap_create(&d->d, 1, sn->name, NULL) == 0) {
        d->n_snaps++;
        memcpy(d->durable, d->acked, sizeof d->durable);
    }
out:
    d->busy_snap = false;
}

struct writer {
    struct site *s;
    unsigned disk;
};

static void writer(void *arg)
{
    struct writer *w = arg;
    struct site *s = w->s;
    while (!over(s)) {
        if (s->disk[w->disk].busy_snap || s->disk[w->disk].quiet) {
            gr_fiber_sleep_ms(1);
            continue;
        }
        unsigned what = rnd(s, 40);
        if (rnd(s, 10) == 0)
            wander(s);
        if (what == 0)
            snapshot(s, w->disk);
        else if (what < 5)
            flush_it(s, w->disk);
        else if (!s->disk[w->disk].lost)
            write_some(s, w->disk);
        else
            gr_fiber_sleep_ms(1);
    }
    free(w);
    s->running--;
    gr_fqueue_wake_all(&s->ended);
}

static void load(struct site *s, unsigned ms, bool dies)
{
    s->stop = false;
    for (unsigned i = 0; i < DISKS * WRITERS; i++) {
        struct writer *w = malloc(sizeof *w);
        assert_non_null(w);
        *w = (struct writer){ s, i % DISKS };
        s->running++;
        assert_int_equal(gr_fiber_start(gr_fiber_loop(), writer, w), 0);
    }
    gr_fiber_sleep_ms(ms);
    for (unsigned i = 0; dies && i < DISKS; i++)
        s->disk[i].quiet = rnd(s, 2); /* what it wrote is flushed by others, perhaps */
    gr_fiber_sleep_ms(dies ? rnd(s, 30) : 0);
    if (dies)
        die();
    for (unsigned i = 0; i < DISKS; i++)
        s->disk[i].quiet = false;
    for (unsigned i = 0; dies && i < 3000 && !s->v->fenced; i++)
        gr_fiber_sleep_ms(1);
    s->stop = true;
    while (s->running)
        gr_fqueue_wait(&s->ended);
}

/* What is in every piece is allowed. @partly: what lies on the missing device ends with an error. */
static void verify(struct site *s, bool partly)
{
    uint8_t buf[4096];
    for (unsigned k = 0; k < DISKS; k++) {
        struct disk *d = &s->disk[k];
        for (uint32_t i = 0; i < PIECES; i++) {
            int r = gr_pread(d->ch, buf, 4096, (uint64_t)i * 4096);
            if (r == -EIO && partly) {
                s->absent++;
                continue;
            }
            if (r < 0)
                fail_msg("disk %u, piece %u: %s", k, i, gr_code_text(r));
            uint32_t is = stamp_of(buf, k, i);
            bool ok = is == d->acked[i] || (d->maybe[i] && is == d->maybe[i]) || (d->lost && is >= d->durable[i] && is <= d->acked[i]);
            if (!ok)
                fail_msg("disk %u, piece %u: %u where %u was written, %u flushed, %u under way%s", k, i, is, d->acked[i], d->durable[i], d->maybe[i],
                         d->lost ? ", and it has lost writes" : "");
            if (!partly) { /* from now on that is what it is */
                d->acked[i] = d->durable[i] = is;
                d->maybe[i] = 0;
            }
        }
    }
}

static void verify_snapshots(struct site *s)
{
    uint8_t buf[4096];
    for (unsigned k = 0; k < DISKS; k++)
        for (unsigned n = 0; n < s->disk[k].n_snaps; n++) {
            const struct snap *sn = &s->disk[k].snap[n];
            struct gr_bdev *b = NULL;
            struct gr_chan *ch = NULL;
            OK(snap_open(s->disk[k].d, sn->name, &b, &err));
            assert_int_equal(gr_chan_open(b, gr_fiber_loop(), &ch), 0);
            for (uint32_t i = 0; i < PIECES; i++) {
                OK(gr_pread(ch, buf, 4096, (uint64_t)i * 4096));
                assert_int_equal(stamp_of(buf, k, i), sn->is[i]);
            }
            gr_chan_close(ch);
            gr_bdev_put(b);
        }
}

static int check(struct site *s, bool repair)
{
    struct vmfs_check_report rep;
    struct gr_err e = { 0 };
    int r = (repair ? vmfs_repair : vmfs_check)(s->v, warn, s, &rep, &e);
    if (r < 0)
        print_message("# %s\n", e.text);
    if (r != -GR_EPARTIAL && r < 0)
        fail_msg("check: %s", e.text);
    assert_int_equal(rep.errors, 0);
    assert_int_equal(rep.leaked_units, 0);
    if (repair)
        assert_int_equal(rep.mended, 1); /* the device, and nothing that was counted wrong */
    return r;
}

static uint64_t used_on(struct site *s, unsigned dev)
{
    uint64_t n = 0;
    for (const struct vregion *r = s->v->sp.regions; r; r = r->next)
        if (vmfs_addr_dev(r->first) == dev)
            n += r->units - r->free_used;
    return n;
}

/* The host goes: in order, at once, or at once and another takes over. */
static void end_host(struct site *s)
{
    disks_close(s);
    if (s->v->lost.devices) {
        struct gr_err e = { 0 };
        assert_true(vmfs_leave(s->v, &e) < 0);
        return;
    }
    if (rnd(s, 2))
        vmfs_abandon(s->v);
    else
        OK(vmfs_leave(s->v, &err));
    if (rnd(s, 3) == 0)
        s->host = s->host[0] == 'o' ? "two" : "one";
}

/* Who recovers it ends in the middle of that: at any write, or right behind it. */
static void recoveries_fail(struct site *s)
{
    for (unsigned n = rnd(s, 4); n > 0; n--) {
        unsigned after = rnd(s, 24), dev = rnd(s, 2);
        struct gr_fault_rule rules[] = { { .op = GR_OP_WRITE, .after = after, .code = -EIO }, { .op = GR_OP_COMPARE_WRITE, .after = after / 3, .code = -EIO } };
        struct gr_err e = { 0 };
        for (unsigned i = 0; i < 2; i++)
            assert_int_equal(gr_bdev_fault_add(s->fault[dev], &rules[i]), 0);
        int r = try_join(s, false, true, &e);
        gr_bdev_fault_clear(s->fault[dev]);
        s->cut += r < 0;
        if (r == 0)
            vmfs_abandon(s->v);
    }
}

/* ---- at random ---- */
static int random_fn(void *arg)
{
    struct site *s = calloc(1, sizeof *s);
    struct gr_err e = { 0 };
    assert_non_null(s);
    s->rng = *(uint64_t *)arg;
    make(s, rnd(s, 2));
    s->seldom = 2 + rnd(s, 3) * 6;
    OK(try_join(s, true, false, &err));
    for (unsigned i = 0; i < DISKS; i++) {
        char name[8];
        snprintf(name, sizeof name, "d%u", i);
        OK(vmfs_create(s->v, name, VMFS_DISK, PIECES * 4096ull, i == 1 ? VMFS_THICK : VMFS_THIN, &err));
    }
    disks_open(s);
    load(s, 20 + rnd(s, 400), true);
    assert_int_equal(s->told, 1);
    assert_true(s->v->fenced && s->v->lost.devices == 4);
    end_host(s);
    recoveries_fail(s);
    OK(try_join(s, false, true, &err));
    disks_open(s);
    verify(s, true);
    for (unsigned i = 0; i < DISKS; i++)
        s->losers += s->disk[i].lost;
    for (unsigned i = 0; i < 2; i++) { /* it goes on without it, and ends in all ways */
        load(s, 20 + rnd(s, 100), false);
        assert_int_equal(check(s, false), -GR_EPARTIAL);
        end_host(s);
        OK(try_join(s, false, rnd(s, 2), &err)); /* that it is lost is known by now */
        disks_open(s);
        verify(s, true);
    }
    assert_int_equal(s->told, 1);
    end_host(s);
    devices_close(s);
    frail.dead = false;
    devices_open(s);
    if (try_join(s, true, false, &e) < 0)
        fail_msg("with it again: %s", e.text);
    disks_open(s);
    verify(s, false);
    verify_snapshots(s);
    uint64_t used = used_on(s, s->frail);
    assert_int_equal(used, 0); /* nothing is leased there */
    load(s, 40, false);
    assert_int_equal(check(s, false), -GR_EPARTIAL);
    assert_int_equal(check(s, true), 0);
    assert_int_equal(check(s, false), 0);
    for (unsigned i = 0; i < DISKS; i++)
        if (s->disk[i].lost) {
            OK(vmfs_accept_loss(s->disk[i].d, &err));
            s->disk[i].lost = false;
        }
    load(s, 60, false);
    verify(s, false);
    verify_snapshots(s);
    assert_int_equal(check(s, false), 0);
    end_host(s);
    OK(try_join(s, true, false, &err));
    disks_open(s);
    verify(s, false);
    assert_int_equal(check(s, false), 0);
    disks_close(s);
    OK(vmfs_leave(s->v, &err));
    print_message("# %u disks lost writes, %u snapshots; without the device %u pieces could not be read and %u writes failed; %u recoveries failed\n", s->losers,
                  s->disk[0].n_snaps + s->disk[1].n_snaps + s->disk[2].n_snaps + s->disk[3].n_snaps, s->absent, s->failed, s->cut);
    unmake(s);
    free(s);
    return 0;
}

static void at_random(void **state)
{
    uint64_t seed = test_seed();
    (void)state;
    for (unsigned i = 0, n = test_cases(4); i < n; i++) {
        uint64_t one = seed + i;
        print_message("# case %u: GRANARY_SEED=%llu\n", i, (unsigned long long)one);
        crash_world_run(one, random_fn, &one);
    }
}

/* ---- another host, which still sees the device ---- */
static void write_mib(struct vmfs *v, const char *path, uint64_t from, uint64_t to, uint8_t byte)
{
    static uint8_t buf[MIB];
    struct vmfs_disk *d;
    struct gr_chan *ch;
    OK(vmfs_open(v, path, &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    memset(buf, byte, sizeof buf);
    for (uint64_t at = from; at < to; at++)
        OK(gr_pwrite(ch, buf, MIB, at * MIB, 0));
    OK(gr_flush(ch));
    gr_chan_close(ch);
    vmfs_close(d);
}

/* How many of the megabytes [from, to) have @byte; the others cannot be read. */
static unsigned count_mib(struct vmfs *v, const char *path, uint64_t from, uint64_t to, uint8_t byte)
{
    static uint8_t buf[MIB];
    struct vmfs_disk *d;
    struct gr_chan *ch;
    unsigned n = 0;
    OK(vmfs_open(v, path, &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    for (uint64_t at = from; at < to; at++) {
        int r = gr_pread(ch, buf, MIB, at * MIB);
        if (r != -EIO)
            assert_int_equal(r, 0);
        n += r == 0;
        for (size_t i = 0; r == 0 && i < MIB; i++)
            assert_int_equal(buf[i], byte);
    }
    gr_chan_close(ch);
    vmfs_close(d);
    return n;
}

struct stale_seen {
    unsigned stale;
    uint64_t free;
};
static void see(void *arg, const struct vmfs_device_info *d)
{
    struct stale_seen *s = arg;
    s->stale |= (unsigned)d->stale << d->number;
}

static struct vmfs *join_other(struct gr_bdev *const *dev)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "other", .host_uuid = "other", .warn = warn };
    struct vmfs *v = NULL;
    OK(vmfs_join(gr_fiber_loop(), dev, DEVICES, &o, &v, &err));
    return v;
}

static int other_fn(void *arg)
{
    struct site *s = calloc(1, sizeof *s);
    struct gr_bdev *dev[DEVICES];
    struct gr_err e = { 0 };
    struct vmfs_disk *d;
    struct gr_chan *ch;
    uint8_t buf[4096] = { 1 };
    struct stale_seen seen = { 0 };
    assert_non_null(s);
    s->rng = 1;
    make(s, *(bool *)arg);
    OK(try_join(s, true, false, &err));
    for (uint32_t i = 0; i < space_n_regions(s->v); i++)
        OK(space_lease(s->v, i, &err));
    OK(vmfs_create(s->v, "here", VMFS_DISK, 64 * MIB, VMFS_THIN, &err));
    OK(vmfs_create(s->v, "there", VMFS_DISK, 256 * MIB, VMFS_THIN, &err));
    go_to(s->v, 0);
    write_mib(s->v, "here", 0, 4, 7);
    go_to(s->v, s->frail);
    write_mib(s->v, "there", 0, 150, 8); /* on all devices */
    assert_true(used_on(s, s->frail) > 1000);
    OK(vmfs_leave(s->v, &err)); /* and it has regions of it again */
    OK(try_join(s, true, false, &err));
    for (uint32_t i = 0; i < space_n_regions(s->v); i++)
        OK(space_lease(s->v, i, &err));
    for (unsigned i = 0; i < DEVICES; i++)
        assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), s->mem[i], &dev[i]), 0);
    struct vmfs *other = join_other(dev);
    die(); /* for the first one only: a write that needs room finds it out */
    OK(vmfs_open(s->v, "there", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    for (uint64_t i = 0; i < 150 && !s->v->fenced; i++) /* reads of what is there tell so to whoever asks, and it is looked at */
        if (gr_pread(ch, buf, 4096, i * MIB) < 0)
            gr_fiber_sleep_ms(20);
    assert_true(s->v->fenced && s->v->lost.devices == 4 && s->v->lost.n == 0);
    gr_chan_close(ch);
    vmfs_close(d);
    assert_true(vmfs_leave(s->v, &e) < 0);
    OK(try_join(s, false, true, &err));
    assert_int_equal(count_mib(s->v, "here", 0, 4, 7), 4);
    unsigned left = count_mib(s->v, "there", 0, 150, 8);
    assert_true(left > 10 && left < 150);
    write_mib(s->v, "there", 145, 150, 9); /* it lay there, perhaps, and is forgotten there */
    OK(vmfs_release(s->v, "there", &err));
    assert_int_equal(count_mib(other, "there", 0, 145, 8), 145); /* the other one sees all of it */
    assert_int_equal(count_mib(other, "there", 145, 150, 9), 5);
    OK(vmfs_devices(other, see, &seen, &err));
    assert_int_equal(seen.stale, 4);
    for (const struct vregion *r = other->sp.regions; r; r = r->next)
        assert_true(vmfs_addr_dev(r->first) != 2 || r->closed); /* it takes nothing there */
    for (uint32_t i = other->sb.dev[2].first_region; i < other->sb.dev[2].first_region + other->sb.dev[2].regions; i++)
        assert_int_not_equal(space_lease(other, i, NULL), 0);
    write_mib(other, "there", 0, 10, 10);
    struct vmfs_check_report rep;
    assert_int_equal(vmfs_repair(other, warn, NULL, &rep, &e), -GR_ELOCKED); /* not while another has joined */
    OK(vmfs_leave(s->v, &err));
    OK(vmfs_repair(other, warn, NULL, &rep, &err));
    assert_int_equal(rep.leaked_units, 0);
    write_mib(other, "there", 150, 170, 11);
    OK(vmfs_check(other, warn, NULL, &rep, &err));
    assert_int_equal(count_mib(other, "there", 10, 145, 8), 135);
    OK(vmfs_leave(other, &err));
    for (unsigned i = 0; i < DEVICES; i++)
        gr_bdev_put(dev[i]);
    unmake(s);
    free(s);
    return 0;
}

static void other_host(void **state)
{
    (void)state;
    for (unsigned own = 0; own < 2; own++) {
        bool tables = own;
        test_in_fiber(other_fn, &tables);
    }
}

TEST_MAIN(TEST(at_random), TEST(other_host))
