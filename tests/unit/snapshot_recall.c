/* Regions go to whoever needs them: what one host has freed another can write, wherever it was leased and whoever freed it, before anybody is told
 * that no space is left; each keeps what it needs for metadata, deletes and what it promised; nobody is asked all the time. Simple cases, and random
 * histories of three hosts that write, delete, hand over, promise, die, do not answer, and give back whenever they like. */
#include "tests/lib/test.h"
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include "tests/lib/crash_world.h"
#include "tests/lib/diskfix.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>

#define VOLUME (256ull << 20)
#define HOSTS 3u
#define DISKS 6u
#define CHUNK (1u << 20)
#define SIZE (256ull << 20)

struct host {
    struct site *site;
    struct gr_bdev *base, *dev;
    struct vmfs *v;
    bool deaf, named; /* named: its folder is made, or refused */
    unsigned asked, asks, warned; /* it was, others were */
};
struct disk {
    struct diskfix f;
    unsigned host, snaps;
    char path[16];
    enum vmfs_provision provision;
};
struct site {
    uint64_t rng;
    struct gr_mem *mem;
    struct host host[HOSTS];
    struct disk disk[DISKS];
    unsigned hosts, names;
    uint8_t *buf;
    unsigned written, refused, again, moves, crashes, left_most;
};

static uint32_t rnd(struct site *t, uint32_t n) { return (uint32_t)(test_rand(&t->rng) % n); }

static void warn(void *arg, const char *text)
{
    struct host *h = arg;
    h->warned += strstr(text, "less than 10 %") != NULL;
}

static int recall_regions(void *arg, struct gr_err *err)
{
    struct host *me = arg;
    int r = 0;
    me->asks++;
    for (unsigned i = 0; i < me->site->hosts; i++) {
        struct host *h = &me->site->host[i];
        if (h == me || !h->v)
            continue;
        if (h->deaf) {
            gr_fiber_sleep_ms(10000);
            r = gr_fail(err, -ETIMEDOUT, "it does not answer");
            continue;
        }
        h->asked++;
        int one = vmfs_regions_recall(h->v, err);
        r = one < 0 ? one : r;
    }
    return r;
}

static void join(struct site *t, unsigned i)
{
    struct host *h = &t->host[i];
    char name[8];
    snprintf(name, sizeof name, "h%u", i);
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = name, .warn = warn, .warn_arg = h, .recall_regions = recall_regions };
    o.host_uuid[0] = (uint8_t)(i + 1);
    h->site = t;
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), t->mem, &h->base), 0);
    assert_int_equal(gr_bdev_delay_open(gr_fiber_loop(), h->base, 0, 20000, 0, &h->dev), 0);
    OK(vmfs_join(gr_fiber_loop(), &h->dev, 1, &o, &h->v, &err));
}

static void part(struct site *t, unsigned i, bool dies)
{
    struct host *h = &t->host[i];
    if (dies)
        vmfs_abandon(h->v);
    else
        OK(vmfs_leave(h->v, &err));
    h->v = NULL;
    gr_bdev_put(h->dev);
    gr_bdev_put(h->base);
}

static void open_disk(struct site *t, struct disk *d) { diskfix_open(&d->f, t->host[d->host].v, d->path); }

static void make_disk(struct site *t, unsigned i, unsigned host, uint64_t size, enum vmfs_provision provision)
{
    struct disk *d = &t->disk[i];
    *d = (struct disk){ .host = host, .provision = provision };
    snprintf(d->path, sizeof d->path, "d%u", t->names++);
    OK(vmfs_create(t->host[host].v, d->path, VMFS_DISK, size, provision, &err));
    open_disk(t, d);
}

static void delete_disk(struct site *t, struct disk *d)
{
    struct vmfs *v = t->host[d->host].v;
    diskfix_close(&d->f);
    OK(vmfs_remove(v, d->path, &err));
    OK(vmfs_settle(v, 60000));
}

static void hand_over(struct site *t, struct disk *d, unsigned to)
{
    diskfix_close(&d->f);
    OK(vmfs_release(t->host[d->host].v, d->path, &err));
    d->host = to;
    open_disk(t, d);
}

/* Bytes until it is refused, or @most. */
static uint64_t fill(struct site *t, struct disk *d, uint64_t from, uint64_t most)
{
    uint64_t at = 0;
    for (; at < most; at += CHUNK) {
        int r = gr_pwrite(d->f.ch, t->buf, CHUNK, from + at, 0);
        if (r == -GR_ENOSPACE)
            break;
        assert_int_equal(r, 0);
    }
    return at;
}

static void begin(struct site *t, unsigned hosts)
{
    struct vmfs_format_opts f = { .name = "ds" };
    t->hosts = hosts;
    t->mem = gr_mem_new(VOLUME);
    t->buf = malloc(CHUNK);
    memset(t->buf, 0x5a, CHUNK);
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), t->mem, &t->host[0].dev), 0);
    OK(vmfs_format(gr_fiber_loop(), &t->host[0].dev, 1, &f, &err));
    gr_bdev_put(t->host[0].dev);
    for (unsigned i = 0; i < hosts; i++)
        join(t, i);
}

static void end(struct site *t)
{
    struct vmfs_check_report rep;
    for (unsigned i = 0; i < DISKS; i++)
        if (t->disk[i].f.d)
            diskfix_close(&t->disk[i].f);
    for (unsigned i = 0; i < t->hosts; i++) {
        OK(vmfs_settle(t->host[i].v, 60000));
        OK(vmfs_checkpoint(t->host[i].v, &err));
    }
    OK(vmfs_check(t->host[0].v, NULL, NULL, &rep, &err));
    assert_int_equal(rep.leaked_units, 0);
    for (unsigned i = t->hosts; i-- > 0;)
        part(t, i, false);
    join(t, 0); /* nobody else is there: each region is compared */
    OK(vmfs_check(t->host[0].v, NULL, NULL, &rep, &err));
    assert_int_equal(rep.leaked_units, 0);
    part(t, 0, false);
    gr_mem_free(t->mem);
    free(t->buf);
}

static uint64_t free_of(struct site *t, unsigned i)
{
    struct vmfs_info info;
    OK(vmfs_free_look(t->host[i].v, &err));
    vmfs_info(t->host[i].v, &info);
    return info.free;
}

/* ---- simple cases ---- */
static int turns_fn(void *arg)
{
    struct site *t = arg;
    begin(t, 2);
    make_disk(t, 0, 0, SIZE, VMFS_THIN);
    uint64_t all = fill(t, &t->disk[0], 0, SIZE), last = all;
    for (unsigned turn = 1; turn < 5; turn++) {
        struct host *other = &t->host[turn % 2];
        delete_disk(t, &t->disk[0]);
        assert_true(free_of(t, turn % 2) >= all - all / 32); /* what can be had is told */
        make_disk(t, 0, turn % 2, SIZE, VMFS_THIN);
        unsigned told = other->warned, asks = other->asks;
        last = fill(t, &t->disk[0], 0, SIZE);
        print_message("turn %u: %llu MiB were written, %llu in the first; %u times asked\n", turn, (unsigned long long)last >> 20, (unsigned long long)all >> 20,
                      other->asks - asks);
        assert_true(last >= all - all / 32); /* but for what the other keeps */
        assert_true(other->asks - asks <= 8);
        assert_true(other->warned > told && t->disk[0].f.told > 0); /* in time */
        OK(vmfs_checkpoint(other->v, &err)); /* what its regions' headers say is as of then */
        assert_true(free_of(t, !(turn % 2)) < VOLUME / 10);
    }
    end(t);
    return 0;
}

/* What was freed in regions of others is theirs to give: neither the one who freed it nor who leases it has to be asked by name. */
static int foreign_fn(void *arg)
{
    struct site *t = arg;
    begin(t, 3);
    make_disk(t, 0, 0, SIZE, VMFS_THIN);
    uint64_t all = fill(t, &t->disk[0], 0, SIZE);
    hand_over(t, &t->disk[0], 1);
    delete_disk(t, &t->disk[0]);
    assert_true(t->host[1].v->sp.n_foreign > 0); /* in regions of the first */
    make_disk(t, 1, 2, SIZE, VMFS_THIN);
    uint64_t third = fill(t, &t->disk[1], 0, SIZE);
    print_message("%llu MiB were written by the third, %llu by the first\n", (unsigned long long)third >> 20, (unsigned long long)all >> 20);
    assert_true(third >= all - all / 12);
    /* and in the asker's own: the third's regions, its disk handed over and emptied by another */
    hand_over(t, &t->disk[1], 0);
    delete_disk(t, &t->disk[1]);
    make_disk(t, 2, 2, SIZE, VMFS_THIN);
    gr_fiber_sleep_ms(1100); /* it was refused a moment ago */
    uint64_t again = fill(t, &t->disk[2], 0, SIZE);
    print_message("%llu MiB were written again by the third\n", (unsigned long long)again >> 20);
    assert_true(again >= all - all / 12);
    end(t);
    return 0;
}

/* Both are at work when there is little left: regions do not go back and forth for ever, deletes work on both, and who is refused is not asked for. */
static int both_full_fn(void *arg)
{
    struct site *t = arg;
    begin(t, 2);
    make_disk(t, 0, 0, SIZE, VMFS_THIN);
    make_disk(t, 1, 1, SIZE, VMFS_THIN);
    uint64_t at[2] = { 0, 0 };
    unsigned full = 0, tries = 0;
    for (unsigned i = 0; full < 40; i++, tries++) {
        unsigned d = i % 2;
        int r = gr_pwrite(t->disk[d].f.ch, t->buf, 65536, at[d], 0);
        assert_true(r == 0 || r == -GR_ENOSPACE);
        at[d] += r == 0 ? 65536 : 0;
        full = r == 0 ? 0 : full + 1;
    }
    unsigned asks = t->host[0].asks + t->host[1].asks;
    print_message("%llu and %llu MiB were written by both, %u times asked\n", (unsigned long long)at[0] >> 20, (unsigned long long)at[1] >> 20, asks);
    assert_true(at[0] > at[1] / 2 && at[1] > at[0] / 2 && at[0] + at[1] > VOLUME * 3 / 4);
    assert_true(asks < 100);
    for (unsigned i = 0; i < 200; i++) /* nobody is asked again within a second */
        assert_int_equal(gr_pwrite(t->disk[i % 2].f.ch, t->buf, 65536, at[i % 2], 0), -GR_ENOSPACE);
    assert_true(t->host[0].asks + t->host[1].asks <= asks + 4);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(gr_pwrite(t->disk[i].f.ch, t->buf, CHUNK, 0, 0), 0); /* what it has */
        assert_int_equal(gr_unmap(t->disk[i].f.ch, 0, at[i] / 2, 0), 0);
        assert_int_equal(gr_flush(t->disk[i].f.ch), 0);
        OK(vmfs_checkpoint(t->host[i].v, &err));
    }
    delete_disk(t, &t->disk[0]);
    delete_disk(t, &t->disk[1]);
    end(t);
    return 0;
}

/* An overwrite on a full volume brings home what it can before others are asked: what is there can be overwritten then. */
static int overwrite_fn(void *arg)
{
    struct site *t = arg;
    begin(t, 2);
    make_disk(t, 1, 1, SIZE, VMFS_THIN);
    fill(t, &t->disk[1], 0, 100u << 20);
    t->host[1].v->sp.stay = 1; /* nothing is given back unasked */
    delete_disk(t, &t->disk[1]);
    t->host[1].v->sp.stay = 0;
    make_disk(t, 0, 0, SIZE, VMFS_THIN);
    unsigned asked = 0, r = 0;
    for (uint64_t at = 0; at < SIZE && r == 0; at += 65536) {
        r = gr_pwrite(t->disk[0].f.ch, t->buf, 65536, at, 0) == -GR_ENOSPACE;
        unsigned asks = t->host[0].asks;
        if (r == 0)
            assert_int_equal(gr_pwrite(t->disk[0].f.ch, t->buf, 65536, at, 0), 0);
        asked += t->host[0].asks - asks;
    }
    print_message("others were asked %u times, for overwrites %u\n", t->host[0].asks, asked);
    assert_true(r && t->host[0].asks > 0);
    assert_int_equal(asked, 0);
    end(t);
    return 0;
}

/* A host that writes steadily beside an idle one leases each region once: none goes behind a checkpoint to be leased again for the next. */
static int steady_fn(void *arg)
{
    struct site *t = arg;
    unsigned n = 0;
    begin(t, 2);
    struct vmfs *v = t->host[0].v;
    make_disk(t, 0, 0, 64u << 20, VMFS_THIN);
    make_disk(t, 1, 0, 64ull << 30, VMFS_THIN);
    fill(t, &t->disk[0], 0, 64u << 20);
    for (unsigned round = 0; round < 6; round++) {
        for (unsigned i = 0; i < 300; i++) /* a leaf of the map for each */
            assert_int_equal(gr_pwrite(t->disk[1].f.ch, t->buf, 4096, (i + round * 300) * (32ull << 20), 0), 0);
        for (unsigned i = 0; i < 2048; i++)
            assert_int_equal(gr_pwrite(t->disk[0].f.ch, t->buf, 4096, rnd(t, 16384) * 4096ull, 0), 0);
        OK(vmfs_checkpoint(v, &err));
        gr_fiber_sleep_ms(50);
    }
    for (const struct vregion *r = v->sp.regions; r; r = r->next)
        n++;
    print_message("%u regions are leased after %llu checkpoints, %llu were given back\n", n, (unsigned long long)v->stats.checkpoints,
                  (unsigned long long)v->stats.regions_given_back);
    assert_int_equal(v->stats.regions_given_back, 0);
    end(t);
    return 0;
}

/* Who does not answer costs a bounded time, and what others can give is had all the same. */
static int deaf_fn(void *arg)
{
    struct site *t = arg;
    begin(t, 3);
    make_disk(t, 0, 0, SIZE, VMFS_THIN);
    uint64_t all = fill(t, &t->disk[0], 0, 100u << 20);
    make_disk(t, 1, 1, SIZE, VMFS_THIN);
    fill(t, &t->disk[1], 0, 100u << 20);
    t->host[0].v->sp.stay = t->host[1].v->sp.stay = 1; /* nothing is given back unasked */
    delete_disk(t, &t->disk[0]);
    delete_disk(t, &t->disk[1]);
    t->host[0].v->sp.stay = t->host[1].v->sp.stay = 0;
    t->host[0].deaf = true;
    make_disk(t, 2, 2, SIZE, VMFS_THIN);
    uint64_t began = gr_loop_now_ns(gr_fiber_loop()), third = fill(t, &t->disk[2], 0, SIZE);
    uint64_t took = gr_loop_now_ns(gr_fiber_loop()) - began;
    print_message("%llu MiB were written in %.1f s, beside one that is deaf\n", (unsigned long long)third >> 20, (double)took / 1e9);
    assert_true(third < all * 2 && third > all);
    assert_true(took < (t->host[2].asks * 11ull + 10) * 1000000000ull);
    t->host[0].deaf = false;
    gr_fiber_sleep_ms(1100);
    assert_true(fill(t, &t->disk[2], third, SIZE - third) > all / 2);
    end(t);
    return 0;
}

/* What was promised to a thick disk is there, whatever others write; what they have is not promised; what is missing is named. */
static int promise_fn(void *arg)
{
    struct site *t = arg;
    struct gr_err why = { 0 };
    begin(t, 2);
    make_disk(t, 0, 0, 64 << 20, VMFS_THICK);
    assert_int_equal(fill(t, &t->disk[0], 0, 64 << 20), 64 << 20);
    OK(snap_create(&t->disk[0].f.d, 1, "s", &err));
    make_disk(t, 1, 1, SIZE, VMFS_THIN);
    uint64_t other = fill(t, &t->disk[1], 0, SIZE);
    print_message("%llu MiB were written beside 128 MiB that are used or promised\n", (unsigned long long)other >> 20);
    assert_true(other > 60u << 20);
    assert_int_equal(vmfs_create(t->host[1].v, "big", VMFS_DISK, 64 << 20, VMFS_THICK, &why), -GR_ENOSPACE);
    assert_non_null(strstr(why.text, "bytes are missing"));
    assert_int_equal(fill(t, &t->disk[0], 0, 64 << 20), 64 << 20); /* the promise holds */
    why = (struct gr_err){ 0 };
    assert_int_equal(snap_create(&t->disk[0].f.d, 1, "s2", &why), -GR_ENOSPACE);
    assert_non_null(strstr(why.text, "bytes are missing"));
    delete_disk(t, &t->disk[1]);
    gr_fiber_sleep_ms(1100);
    OK(snap_create(&t->disk[0].f.d, 1, "s2", &err)); /* of what the other gives back */
    assert_true(t->host[0].asks > 0);
    end(t);
    return 0;
}

/* Regions in which others have freed something go, too, but not with what was promised. */
static int promise_wanted_fn(void *arg)
{
    struct site *t = arg;
    begin(t, 2);
    make_disk(t, 0, 0, 64 << 20, VMFS_THICK);
    assert_int_equal(fill(t, &t->disk[0], 0, 64 << 20), 64 << 20);
    make_disk(t, 2, 0, SIZE, VMFS_THIN);
    assert_int_equal(fill(t, &t->disk[2], 0, 80u << 20), 80u << 20);
    for (uint64_t at = 0; at < 80u << 20; at += CHUNK) /* a little is left in each region */
        assert_int_equal(gr_unmap(t->disk[2].f.ch, at, CHUNK - 65536, 0), 0);
    assert_int_equal(gr_flush(t->disk[2].f.ch), 0);
    OK(snap_create(&t->disk[0].f.d, 1, "s", &err));
    OK(vmfs_checkpoint(t->host[0].v, &err));
    hand_over(t, &t->disk[2], 1);
    make_disk(t, 1, 1, SIZE, VMFS_THIN);
    uint64_t other = fill(t, &t->disk[1], 0, SIZE);
    assert_int_equal(gr_unmap(t->disk[2].f.ch, 0, 80u << 20, 0), 0);
    assert_int_equal(gr_flush(t->disk[2].f.ch), 0);
    OK(vmfs_checkpoint(t->host[1].v, &err));
    for (unsigned k = 0; k < 3; k++) {
        gr_fiber_sleep_ms(1100); /* so that he asks again */
        other += fill(t, &t->disk[1], other, SIZE - other);
    }
    print_message("%llu MiB were written beside a promise of 64\n", (unsigned long long)other >> 20);
    assert_int_equal(fill(t, &t->disk[0], 0, 64 << 20), 64 << 20);
    end(t);
    return 0;
}

/* A promise goes where the disk goes: handed over, or taken from a host that is gone. */
static int promise_moves_fn(void *arg)
{
    struct site *t = arg;
    begin(t, 2);
    make_disk(t, 0, 0, 64 << 20, VMFS_THICK);
    assert_int_equal(fill(t, &t->disk[0], 0, 64 << 20), 64 << 20);
    OK(snap_create(&t->disk[0].f.d, 1, "s", &err));
    make_disk(t, 1, 0, SIZE, VMFS_THIN);
    hand_over(t, &t->disk[0], 1);
    gr_fiber_sleep_ms(200);
    uint64_t other = fill(t, &t->disk[1], 0, SIZE);
    print_message("%llu MiB were written beside a promise that has moved\n", (unsigned long long)other >> 20);
    assert_int_equal(fill(t, &t->disk[0], 0, 64 << 20), 64 << 20);
    end(t);
    return 0;
}

/* After a big delete what is idle is given back unasked, for whoever cannot ask. */
static int unasked_fn(void *arg)
{
    struct site *t = arg;
    begin(t, 2);
    make_disk(t, 0, 0, SIZE, VMFS_THIN);
    fill(t, &t->disk[0], 0, 160u << 20);
    delete_disk(t, &t->disk[0]);
    gr_fiber_sleep_ms(3000);
    OK(vmfs_checkpoint(t->host[0].v, &err));
    gr_fiber_sleep_ms(3000);
    t->host[1].v->opts.recall_regions = NULL;
    make_disk(t, 1, 1, SIZE, VMFS_THIN);
    uint64_t n = fill(t, &t->disk[1], 0, SIZE);
    print_message("%llu MiB were written by one who cannot ask\n", (unsigned long long)n >> 20);
    assert_true(n > 120u << 20);
    end(t);
    return 0;
}

/* Who joins when all is taken gets some of what the others keep back: it can make names, unmap and delete, and so can the others. When they have nothing
 * left to give it is told so, and the volume goes on there. */
static int joiner_fn(void *arg)
{
    struct site *t = arg;
    struct gr_err why = { 0 };
    char name[201];
    begin(t, 1);
    make_disk(t, 0, 0, SIZE, VMFS_THIN);
    make_disk(t, 1, 0, SIZE, VMFS_THIN);
    fill(t, &t->disk[1], 0, 64u << 20);
    fill(t, &t->disk[0], 0, SIZE);
    t->hosts = 2;
    join(t, 1);
    struct vmfs *v = t->host[1].v;
    assert_int_equal(space_free_here(v), 0);
    for (unsigned i = 0; i < 40; i++) { /* a directory that needs room of its own */
        snprintf(name, sizeof name, "%0200u", i);
        OK(vmfs_mkdir(v, name, false, &err));
    }
    print_message("who joined has %llu units, who was there %llu; %u times asked\n", (unsigned long long)(space_free_here(v) + v->sp.pool_units),
                  (unsigned long long)(space_free_here(t->host[0].v) + t->host[0].v->sp.pool_units), t->host[1].asks);
    t->hosts = 3;
    join(t, 2);
    int r = 0;
    for (unsigned i = 0; i < 40 && r == 0; i++) {
        snprintf(name, sizeof name, "t%0199u", i);
        r = vmfs_mkdir(t->host[2].v, name, false, &why);
    }
    if (r < 0) {
        assert_int_equal(r, -GR_ENOSPACE);
        assert_non_null(strstr(why.text, "make room on another host"));
    }
    assert_false(t->host[2].v->fenced);
    assert_int_equal(gr_pwrite(t->disk[0].f.ch, t->buf, CHUNK, 0, 0), 0); /* who was there overwrites what it has, */
    hand_over(t, &t->disk[0], 1);
    assert_int_equal(gr_pwrite(t->disk[0].f.ch, t->buf, CHUNK, 0, 0), 0); /* and so does who joined */
    for (uint64_t off = 0; off < 32u << 20; off += 2 * CHUNK)
        assert_int_equal(gr_unmap(t->disk[0].f.ch, off, CHUNK, 0), 0);
    assert_int_equal(gr_flush(t->disk[0].f.ch), 0);
    delete_disk(t, &t->disk[0]);
    delete_disk(t, &t->disk[1]);
    gr_fiber_sleep_ms(1100);
    make_disk(t, 2, 2, SIZE, VMFS_THIN);
    assert_true(fill(t, &t->disk[2], 0, SIZE) > VOLUME / 2);
    end(t);
    return 0;
}

/* While one who has no room asks others, of whom one does not answer, those who have room change names. */
static void mkdir_fiber(void *arg)
{
    struct host *h = arg;
    (void)vmfs_mkdir(h->v, "x", false, NULL);
    h->named = true;
}

static int names_fn(void *arg)
{
    struct site *t = arg;
    char name[8];
    begin(t, 1);
    make_disk(t, 0, 0, SIZE, VMFS_THIN);
    fill(t, &t->disk[0], 0, SIZE);
    t->hosts = 2;
    join(t, 1);
    t->host[0].deaf = true;
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), mkdir_fiber, &t->host[1]), 0);
    while (!t->host[1].asks)
        gr_fiber_sleep_ms(1);
    unsigned made = 0;
    for (; t->host[1].asks == 1 && t->host[1].v->sp.asking && made < 3; made++) {
        snprintf(name, sizeof name, "n%u", made);
        OK(vmfs_mkdir(t->host[0].v, name, false, &err));
    }
    print_message("%u folders were made while another host asked for room\n", made);
    bool asking = t->host[1].v->sp.asking;
    t->host[0].deaf = false;
    while (!t->host[1].named)
        gr_fiber_sleep_ms(5);
    assert_true(made == 3 && asking);
    OK(vmfs_mkdir(t->host[1].v, "y", false, &err));
    delete_disk(t, &t->disk[0]);
    end(t);
    return 0;
}

/* Who has no room for metadata, and gets none, gives the datastore a device. */
static int helper_fn(void *arg)
{
    struct site *t = arg;
    struct gr_err why = { 0 };
    struct vmfs_device_add a = { .force = false };
    begin(t, 1);
    make_disk(t, 0, 0, SIZE, VMFS_THIN);
    fill(t, &t->disk[0], 0, SIZE);
    t->host[0].v->sp.stay = 1; /* it keeps what it has */
    t->hosts = 2;
    join(t, 1);
    assert_int_equal(vmfs_mkdir(t->host[1].v, "x", false, &why), -GR_ENOSPACE);
    assert_non_null(strstr(why.text, "grow"));
    struct gr_mem *more = gr_mem_new(VOLUME);
    struct gr_bdev *dev;
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), more, &dev), 0);
    OK(vmfs_device_add(t->host[1].v, dev, &a, &err));
    OK(vmfs_mkdir(t->host[1].v, "x", false, &err));
    diskfix_close(&t->disk[0].f);
    part(t, 1, true);
    part(t, 0, true);
    gr_bdev_put(dev);
    gr_mem_free(more);
    gr_mem_free(t->mem);
    free(t->buf);
    return 0;
}

struct writer {
    struct site *t;
    struct disk *d;
    bool stop, over;
};

static void write_on(void *arg)
{
    struct writer *w = arg;
    for (unsigned i = 0; !w->stop; i++) {
        uint64_t off = rnd(w->t, 512) * 65536ull;
        assert_int_equal(i % 9 ? gr_pwrite(w->d->f.ch, w->t->buf, 65536, off, 0) : gr_unmap(w->d->f.ch, off, 65536, 0), 0);
    }
    w->over = true;
}

/* Regions go while they are written to and freed in. */
static int at_work_fn(void *arg)
{
    struct site *t = arg;
    struct writer w[3];
    begin(t, 2);
    struct vmfs *v = t->host[0].v;
    for (unsigned i = 0; i < 3; i++) {
        make_disk(t, i, 0, 32u << 20, VMFS_THIN);
        w[i] = (struct writer){ .t = t, .d = &t->disk[i] };
        assert_int_equal(gr_fiber_start(gr_fiber_loop(), write_on, &w[i]), 0);
    }
    for (unsigned i = 0; i < 300; i++) {
        for (unsigned n = rnd(t, 4); n > 0; n--)
            space_lease_any(v, NULL);
        gr_fiber_sleep_ms(rnd(t, 3));
        OK(vmfs_regions_recall(v, &err));
    }
    for (unsigned i = 0; i < 3; i++)
        for (w[i].stop = true; !w[i].over;)
            gr_fiber_sleep_ms(1);
    print_message("%llu regions were given back by a host at work\n", (unsigned long long)v->stats.regions_given_back);
    assert_true(v->stats.regions_given_back > 50);
    end(t);
    return 0;
}

/* Regions with units that are free, but not to be used yet. */
static unsigned waiting_regions(const struct vmfs *v, uint8_t *ret)
{
    unsigned n = 0;
    for (unsigned kind = 0; kind < 2; kind++)
        for (size_t i = 0; i < v->sp.freeq[kind].n; i++) {
            uint32_t at = space_region_index(v, v->sp.freeq[kind].e[v->sp.freeq[kind].first + i].addr);
            n += !ret[at];
            ret[at] = 1;
        }
    return n;
}

/* What somebody may still read is nobody else's yet. */
static int readers_fn(void *arg)
{
    struct site *t = arg;
    uint8_t was[4096] = { 0 };
    struct vticket reader;
    begin(t, 2);
    struct vmfs *v = t->host[0].v;
    make_disk(t, 0, 0, 64u << 20, VMFS_THIN);
    fill(t, &t->disk[0], 0, 64u << 20);
    v->sp.stay++;
    for (uint64_t off = 0; off < 64u << 20; off += 2 * 65536)
        assert_int_equal(gr_unmap(t->disk[0].f.ch, off, 65536, 0), 0);
    OK(vmfs_checkpoint(v, &err)); /* half of each region may go */
    gr_fiber_sleep_ms(100);
    ticket_open(v, &reader);
    delete_disk(t, &t->disk[0]);
    OK(vmfs_checkpoint(v, &err));
    v->sp.stay--;
    assert_true(waiting_regions(v, was) > 8);
    OK(vmfs_regions_recall(v, &err));
    for (uint32_t i = 0; i < space_n_regions(v); i++)
        assert_true(!was[i] || v->sp.by_index[i]);
    uint64_t given = v->stats.regions_given_back;
    ticket_close(v, &reader);
    space_reclaim(v);
    gr_fiber_sleep_ms(100);
    OK(vmfs_regions_recall(v, &err));
    assert_true(v->stats.regions_given_back > given + 8);
    end(t);
    return 0;
}

/* What is kept for the map is kept by region, though regions that are neighbours have no border between their units: each can go without the other. */
static int neighbours_fn(void *arg)
{
    struct site *t = arg;
    begin(t, 1);
    struct vmfs *v = t->host[0].v;
    OK(space_lease(v, 9, &err));
    OK(space_lease(v, 10, &err));
    struct vregion *a = v->sp.by_index[9], *b = v->sp.by_index[10];
    uint64_t border = b->first;
    assert_int_equal(a->first + a->units, border);
    const struct vmfs_run freed[3][2] = { { { border - 64, 128 } }, { { border - 64, 64 }, { border, 64 } }, { { border, 64 }, { border - 64, 64 } } };
    for (unsigned i = 0; i < 3; i++) { /* at once; one behind the other, and the other way round */
        for (unsigned k = 0; k < 2 && freed[i][k].units; k++) {
            space_used(v, freed[i][k].addr, (uint32_t)freed[i][k].units);
            space_freed(v, freed[i][k].addr, (uint32_t)freed[i][k].units, 1, v->ckpt_done);
            space_reclaim(v);
        }
        unsigned beside = 0;
        for (unsigned k = 0; k < v->sp.n_pool; k++) {
            const struct vmfs_run *run = &v->sp.pool[k];
            assert_true(run->addr >= border || run->addr + run->units <= border);
            beside += run->addr == border || run->addr + run->units == border;
        }
        assert_int_equal(beside, 2);
        assert_int_equal(a->busy.free, a->free_used - 64);
        space_giving(v, b, true);
        assert_int_equal(b->busy.free, b->free_used); /* nothing of it is kept, and all of the other is */
        assert_int_equal(a->busy.free, a->free_used - 64);
        space_giving(v, a, true);
        assert_int_equal(a->busy.free, a->free_used);
        space_giving(v, a, false);
        space_giving(v, b, false);
    }
    end(t);
    return 0;
}

/* ---- random histories ---- */
#define LESS (96ull << 20) /* of a disk: six of them are more than the volume */

/* Units that are free, or would be if all that was freed had reached its region. */
static uint64_t truly_free(struct site *t)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < space_n_regions(t->host[0].v); i++) {
        const struct vregion *r = NULL;
        uint64_t units = 0;
        for (unsigned h = 0; h < t->hosts && !r; h++)
            r = t->host[h].v->sp.by_index[i];
        if (r)
            units = r->free_used;
        else
            OK(space_region_free(t->host[0].v, i, &units, &err));
        sum += units;
    }
    for (unsigned h = 0; h < t->hosts; h++)
        for (size_t i = 0; i < t->host[h].v->sp.n_foreign; i++)
            sum += t->host[h].v->sp.foreign[i].units;
    return sum;
}

static void write_somewhere(struct site *t, struct disk *d)
{
    uint64_t len = (1 + rnd(t, 256)) * 4096ull, off = rnd(t, (uint32_t)((LESS - len) / 4096)) * 4096ull, kept = 0;
    int r = gr_pwrite(d->f.ch, t->buf, len, off, 0);
    t->written += r == 0;
    if (r == 0)
        return;
    assert_int_equal(r, -GR_ENOSPACE);
    t->refused++;
    for (unsigned i = 0; i < t->hosts; i++) {
        t->host[i].deaf = false;
        OK(vmfs_settle(t->host[i].v, 60000)); /* what is still being given back */
    }
    gr_fiber_sleep_ms(1100);
    r = gr_pwrite(d->f.ch, t->buf, len, off, 0);
    t->again += r == 0;
    if (r == 0)
        return;
    for (unsigned i = 0; i < t->hosts; i++)
        kept += space_meta_reserve(t->host[i].v) + t->host[i].v->reserved_units;
    uint64_t left = truly_free(t), most = kept + (t->hosts + 1) * (uint64_t)t->host[0].v->sb.region_units;
    t->left_most = GR_MAX(t->left_most, (unsigned)(left - GR_MIN(left, kept)));
    if (left > most)
        fail_msg("host %u: refused, and %llu units are free, %llu of which are kept back", d->host, (unsigned long long)left, (unsigned long long)kept);
}

static void snapshot(struct disk *d)
{
    struct gr_err why = { 0 };
    if (d->snaps) {
        OK(snap_delete(d->f.d, "s", false, &err));
        d->snaps = 0;
        return;
    }
    int r = snap_create(&d->f.d, 1, "s", &why);
    if (r < 0 && r != -GR_ENOSPACE)
        fail_msg("%s", why.text);
    d->snaps = r == 0;
}

static void crash(struct site *t)
{
    unsigned dead = rnd(t, t->hosts);
    for (unsigned i = 0; i < DISKS; i++)
        if (t->disk[i].host == dead)
            diskfix_close(&t->disk[i].f);
    part(t, dead, true);
    if (rnd(t, 2))
        OK(vmfs_recover(t->host[(dead + 1) % t->hosts].v, &err));
    join(t, dead);
    for (unsigned i = 0; i < DISKS; i++)
        if (!t->disk[i].f.d)
            open_disk(t, &t->disk[i]);
    t->crashes++;
}

static void step(struct site *t)
{
    unsigned i = rnd(t, DISKS), k = rnd(t, 100), h = rnd(t, t->hosts);
    struct disk *d = &t->disk[i];
    if (k < 70) {
        write_somewhere(t, d);
    } else if (k < 76) {
        uint64_t len = (1 + rnd(t, 1000)) * 4096ull, off = rnd(t, (uint32_t)((LESS - len) / 4096)) * 4096ull;
        assert_int_equal(gr_unmap(d->f.ch, off, len, 0), 0);
    } else if (k < 81) {
        snapshot(d);
    } else if (k < 86) {
        hand_over(t, d, h);
        t->moves++;
    } else if (k < 88) {
        delete_disk(t, d);
        make_disk(t, i, h, LESS, VMFS_THIN);
    } else if (k < 89) {
        crash(t);
    } else if (k < 96) {
        OK(vmfs_regions_recall(t->host[h].v, &err));
    } else if (k < 97) {
        t->host[h].deaf = !t->host[h].deaf;
    } else {
        OK(vmfs_checkpoint(t->host[h].v, &err));
    }
}

static int history_fn(void *arg)
{
    struct site *t = arg;
    begin(t, 2 + rnd(t, 2));
    for (unsigned i = 0; i < DISKS; i++)
        make_disk(t, i, i % t->hosts, LESS, VMFS_THIN);
    for (unsigned i = 0; i < DISKS; i++)
        fill(t, &t->disk[i], 0, 36u << 20); /* full */
    for (unsigned i = 0, n = test_cases(1500); i < n; i++)
        step(t);
    end(t);
    return 0;
}

static void histories(void **state)
{
    struct site all = { 0 };
    uint64_t seed = test_seed();
    unsigned asks = 0;
    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        struct site t = { .rng = seed + i };
        crash_world_run(seed + i, history_fn, &t);
        all.written += t.written, all.refused += t.refused, all.again += t.again, all.moves += t.moves, all.crashes += t.crashes;
        all.left_most = GR_MAX(all.left_most, t.left_most);
        for (unsigned h = 0; h < HOSTS; h++)
            asks += t.host[h].asks;
    }
    print_message("%u writes, %u refused (%u not a second later), at most %u units free beyond what is kept back; %u times asked; %u disks handed over, %u deaths\n", all.written,
                  all.refused, all.again, all.left_most, asks, all.moves, all.crashes);
    assert_true(all.written && asks && all.moves && all.crashes);
}

static void run(int (*fn)(void *arg))
{
    struct site t = { .rng = test_seed() };
    crash_world_run(t.rng, fn, &t);
}
static void turns(void **state) { (void)state; run(turns_fn); }
static void foreign(void **state) { (void)state; run(foreign_fn); }
static void both_full(void **state) { (void)state; run(both_full_fn); }
static void deaf(void **state) { (void)state; run(deaf_fn); }
static void promised(void **state) { (void)state; run(promise_fn); }
static void at_work(void **state) { (void)state; run(at_work_fn); }
static void readers(void **state) { (void)state; run(readers_fn); }
static void promise_wanted(void **state) { (void)state; run(promise_wanted_fn); }
static void promise_moves(void **state) { (void)state; run(promise_moves_fn); }
static void overwrite(void **state) { (void)state; run(overwrite_fn); }
static void steady(void **state) { (void)state; run(steady_fn); }
static void neighbours(void **state) { (void)state; run(neighbours_fn); }
static void joiner(void **state) { (void)state; run(joiner_fn); }
static void helper(void **state) { (void)state; run(helper_fn); }
static void names(void **state) { (void)state; run(names_fn); }
static void unasked(void **state) { (void)state; run(unasked_fn); }

TEST_MAIN(TEST(turns), TEST(foreign), TEST(both_full), TEST(deaf), TEST(promised), TEST(promise_wanted), TEST(promise_moves), TEST(unasked), TEST(steady), TEST(joiner), TEST(helper), TEST(names), TEST(at_work), TEST(readers), TEST(overwrite), TEST(neighbours), TEST(histories))
