/* The iSCSI bdev against our own target: every operation, sessions that break under load, the fence. What lying targets do to it is in
 * backup-proxy_source_iscsi.c, which goes through the same code. */
#include "common/bdev_iscsi.h"
#include "common/bdev_probe.h"
#include "common/cleanup.h"
#include "common/endian.h"
#include "common/fiber.h"
#include "common/gang.h"
#include "tests/lib/cutter.h"
#include "tests/lib/tgtfix.h"
#include <signal.h>
#include <stdlib.h>
#include <string.h>

static char nowhere[32] = "127.0.0.1:1"; /* where the target sends who asks for "t/elsewhere" */
static struct tgtfix fix = {.store = true, .redirect = nowhere};

struct host { /* an initiator, through a relay of its own */
    struct cutter cut;
    struct gr_bdev *bdev;
    struct gr_chan *ch;
    struct gr_listener listener;
    unsigned fenced;
};

static void on_event(void *arg, enum gr_event ev)
{
    struct host *h = arg;
    h->fenced += ev == GR_EVENT_FENCED;
}

static int host_open(struct host *h, uint8_t id, const char *target, struct gr_iscsi_opts o, struct gr_err *err)
{
    const uint8_t isid[6] = {0x80, 1, 2, 3, 0, id};
    gr_auto_free char *name = gr_asprintf("iqn.2026-11.local.granary:host-%u", id);
    cutter_start(&h->cut, (unsigned)strtoul(fix.port, NULL, 10));
    gr_auto_free char *url = gr_asprintf("iscsi://127.0.0.1:%u/%s/0", h->cut.port, target);
    o.initiator = name;
    o.isid = isid;
    int r = gr_bdev_iscsi_open(gr_fiber_loop(), url, &o, &h->bdev, err);
    if (r < 0)
        return r;
    assert_int_equal(gr_chan_open(h->bdev, gr_fiber_loop(), &h->ch), 0);
    h->listener = (struct gr_listener){.fn = on_event, .arg = h};
    gr_bdev_listen(h->bdev, &h->listener);
    return 0;
}

static void host_up(struct host *h, uint8_t id, const char *target)
{
    struct gr_err err = {0};
    *h = (struct host){0};
    if (host_open(h, id, target, (struct gr_iscsi_opts){.timeout_ms = 5000}, &err) < 0)
        fail_msg("%s", err.text);
}

static void host_down(struct host *h)
{
    gr_bdev_unlisten(h->bdev, &h->listener);
    gr_chan_close(h->ch);
    gr_bdev_put(h->bdev);
    cutter_stop(&h->cut);
}

static void fill(uint8_t *p, size_t len, uint64_t seed)
{
    for (size_t i = 0; i < len; i += 8) {
        uint64_t v = test_rand(&seed);
        memcpy(p + i, &v, 8);
    }
}

/* ---- every operation ---- */
static int operations(void *arg)
{
    enum { BIG = 3 << 20 };
    struct host h;
    struct gr_geometry g;
    (void)arg;
    host_up(&h, 1, TGTFIX_TARGET);
    assert_int_equal(gr_bdev_geometry(h.bdev, &g), 0);
    assert_true(g.size == TGTFIX_SIZE && g.logical_block == 512 && !g.read_only && g.thin && g.unmap_granule);
    assert_int_equal(g.uuid[0] >> 4, 6);
    uint8_t *a = malloc(BIG), *b = malloc(BIG), zero[4096] = {0};
    assert_true(a && b);
    fill(a, BIG, 1);
    assert_int_equal(gr_pwrite(h.ch, a, BIG, 4096, 0), 0);
    assert_int_equal(gr_pread(h.ch, b, BIG, 4096), 0);
    assert_memory_equal(a, b, BIG);
    struct iovec odd[3] = {{a, 100}, {a + 100, 512}, {a + 612, 412}}, back[2] = {{b, 1000}, {b + 1000, 24}};
    assert_int_equal(gr_pwritev(h.ch, odd, 3, 512, GR_BIO_FUA), 0);
    assert_int_equal(gr_preadv(h.ch, back, 2, 512), 0);
    assert_memory_equal(a, b, 1024);
    assert_int_equal(gr_flush(h.ch), 0);
    assert_int_equal(gr_unmap(h.ch, 8192, 1 << 20, GR_BIO_FUA), 0);
    assert_int_equal(gr_write_zeroes(h.ch, 2 << 20, 4096, 0), 0);
    assert_int_equal(gr_pread(h.ch, b, 4096, 1 << 20), 0);
    assert_memory_equal(b, zero, 4096);
    assert_int_equal(gr_pread(h.ch, b, 4096, 2 << 20), 0);
    assert_memory_equal(b, zero, 4096);
    struct gr_extent e[8];
    unsigned n = 0;
    assert_int_equal(gr_extents(h.ch, 0, TGTFIX_SIZE, NULL, e, 8, &n), 0);
    assert_true(n >= 3 && e[0].off == 0 && e[1].off == 8192 && e[1].len == 1 << 20 && (e[1].flags & GR_EXTENT_HOLE));
    uint64_t at = 77;
    assert_int_equal(gr_compare_write(h.ch, 2 << 20, zero, a, 4096, &at), 0);
    assert_int_equal(gr_pread(h.ch, b, 4096, 2 << 20), 0);
    assert_memory_equal(b, a, 4096);
    memcpy(b, a, 4096);
    b[1234] ^= 1;
    assert_int_equal(gr_compare_write(h.ch, 2 << 20, b, zero, 4096, &at), -GR_EMISCOMPARE);
    assert_int_equal(at, 1234);
    assert_int_equal(gr_pread(h.ch, b, 512, TGTFIX_SIZE), -GR_ERANGE);
    free(a);
    free(b);
    host_down(&h);
    return 0;
}

/* ---- sessions that break ---- */
enum { LANES = 48, LANE = 128 << 10 };
struct lane { /* a range of the disk that one fiber writes and knows */
    struct host *h;
    uint64_t off, rng;
    uint8_t *want, *got;
    unsigned *running, *done;
    const bool *stop;
};

static void lane_step(struct lane *l)
{
    uint64_t what = test_rand(&l->rng), at = what % (LANE / 512) * 512, len = (what >> 20) % 65 * 512 + 512, most = LANE - at;
    len = GR_MIN(len, most);
    switch ((what >> 40) % 8) {
    case 0:
        assert_int_equal(gr_flush(l->h->ch), 0);
        break;
    case 1:
        len = GR_MIN(len, 4096u);
        fill(l->got, len, what);
        assert_int_equal(gr_compare_write(l->h->ch, l->off + at, l->want + at, l->got, len, NULL), 0);
        memcpy(l->want + at, l->got, len);
        break;
    case 2:
        assert_int_equal(gr_write_zeroes(l->h->ch, l->off + at, len, what >> 50 & 1 ? GR_BIO_MAY_UNMAP : 0), 0);
        memset(l->want + at, 0, len);
        break;
    case 3:
    case 4:
        assert_int_equal(gr_pread(l->h->ch, l->got, len, l->off + at), 0);
        assert_memory_equal(l->got, l->want + at, len);
        break;
    default:
        fill(l->want + at, len, what);
        assert_int_equal(gr_pwrite(l->h->ch, l->want + at, len, l->off + at, what >> 50 & 1 ? GR_BIO_FUA : 0), 0);
        break;
    }
}

static void lane_run(void *arg)
{
    struct lane *l = arg;
    while (!*l->stop) {
        lane_step(l);
        (*l->done)++;
    }
    assert_int_equal(gr_pread(l->h->ch, l->got, LANE, l->off), 0);
    assert_memory_equal(l->got, l->want, LANE);
    (*l->running)--;
}

static int breaks(void *arg)
{
    struct host h;
    struct lane lanes[LANES];
    unsigned running = LANES, done = 0;
    bool stop = false;
    uint64_t rng = test_seed();
    (void)arg;
    host_up(&h, 1, TGTFIX_TARGET);
    for (int i = 0; i < LANES; i++) {
        lanes[i] = (struct lane){&h, (uint64_t)i * LANE, rng + 1000003u * (uint64_t)i, calloc(1, LANE), calloc(1, LANE), &running, &done, &stop};
        assert_int_equal(gr_fiber_start(gr_fiber_loop(), lane_run, &lanes[i]), 0);
    }
    uint64_t until = gr_loop_now_ns(gr_fiber_loop()) + test_soak_s(3) * UINT64_C(1000000000);
    while (gr_loop_now_ns(gr_fiber_loop()) < until) {
        gr_fiber_sleep_ms(test_rand(&rng) % 60);
        cutter_cut(&h.cut);
    }
    stop = true;
    while (running)
        gr_fiber_sleep_ms(5);
    printf("# %u operations over %u sessions\n", done, h.cut.logins);
    assert_true(h.cut.logins > 5 && done > LANES);
    for (int i = 0; i < LANES; i++) {
        free(lanes[i].want);
        free(lanes[i].got);
    }
    assert_int_equal(h.fenced, 0);
    host_down(&h);
    return 0;
}

/* The same from loops of a gang: each lane's fiber and channel are on a loop of its own. */
struct member {
    struct host *h;
    struct gr_chan *ch;
    struct lane lane;
    unsigned *running;
};

static void member_run(void *arg)
{
    struct member *m = arg;
    struct host own = {.bdev = m->h->bdev};
    unsigned left = 1;
    assert_int_equal(gr_chan_open(m->h->bdev, gr_fiber_loop(), &own.ch), 0);
    m->lane.h = &own;
    m->lane.running = &left;
    lane_run(&m->lane);
    gr_chan_close(own.ch);
    --*m->running;
}

static int gang(void *arg)
{
    enum { MEMBERS = 12 };
    struct host h;
    struct gr_gang *g = NULL;
    struct member m[MEMBERS];
    unsigned running = MEMBERS, done = 0;
    bool stop = false;
    (void)arg;
    assert_int_equal(gr_gang_start(gr_fiber_loop(), 2, &g, NULL), 0);
    host_up(&h, 1, TGTFIX_TARGET);
    for (int i = 0; i < MEMBERS; i++) {
        m[i] = (struct member){.h = &h, .running = &running};
        m[i].lane = (struct lane){.off = (uint64_t)i * LANE, .rng = test_seed() + (uint64_t)i, .done = &done, .stop = &stop};
        m[i].lane.want = calloc(1, LANE);
        m[i].lane.got = calloc(1, LANE);
        assert_int_equal(gr_fiber_start(gr_gang_loop(g, (unsigned)i % 3), member_run, &m[i]), 0);
    }
    for (int i = 0; i < 10; i++) {
        gr_fiber_sleep_ms(50);
        cutter_cut(&h.cut);
    }
    stop = true;
    while (running)
        gr_fiber_sleep_ms(5);
    assert_true(done > MEMBERS);
    for (int i = 0; i < MEMBERS; i++) {
        free(m[i].lane.want);
        free(m[i].lane.got);
    }
    host_down(&h);
    gr_gang_stop(g);
    return 0;
}

/* A target that loses its power, and with it what was never flushed. */
static int forget(struct tgtfix *f, void *arg)
{
    const uint64_t *off = arg;
    memset(gr_mem_page(f->mem, *off, true), 0, 4096);
    return 0;
}

static int power_lost(void *arg)
{
    struct host h;
    uint8_t a[4096], b[4096], c[4096];
    uint64_t off[3] = {0, 8192, 16384};
    (void)arg;
    host_up(&h, 1, TGTFIX_TARGET);
    fill(a, sizeof(a), 1);
    fill(b, sizeof(b), 2);
    for (int i = 0; i < 2; i++)
        assert_int_equal(gr_pwrite(h.ch, a, 4096, off[i], 0), 0);
    assert_int_equal(gr_pwrite(h.ch, b, 512, off[1] + 512, GR_BIO_FUA), 0); /* durable: takes the place of what was there */
    for (int i = 0; i < 2; i++)
        tgtfix_call(&fix, forget, &off[i]);
    cutter_cut(&h.cut);
    assert_int_equal(gr_flush(h.ch), 0);
    assert_int_equal(gr_pread(h.ch, c, 4096, off[0]), 0);
    assert_memory_equal(c, a, 4096);
    assert_int_equal(gr_pread(h.ch, c, 4096, off[1]), 0);
    assert_memory_equal(c, a, 512);
    memset(b, 0, sizeof(b)); /* this target lied of FUA; the older bytes were not put there */
    assert_memory_equal(c + 512, b, 512);
    assert_memory_equal(c + 1024, a + 1024, 4096 - 1024);
    tgtfix_call(&fix, forget, &off[0]); /* flushed since: nothing is written again */
    cutter_cut(&h.cut);
    assert_int_equal(gr_flush(h.ch), 0);
    assert_int_equal(gr_pread(h.ch, c, 4096, off[0]), 0);
    assert_memory_equal(c, b, 4096);
    host_down(&h);
    return 0;
}

/* ---- the answer to a COMPARE AND WRITE is lost ---- */
static bool is_compare(const void *data, size_t len)
{
    return len >= 48 && (((const uint8_t *)data)[0] & 0x3f) == 0x01 && ((const uint8_t *)data)[32] == 0x89;
}
static bool mute_compare(struct cutter *c, const void *data, size_t len)
{
    c->mute |= is_compare(data, len);
    return true;
}
static bool stop_compare(struct cutter *c, const void *data, size_t len)
{
    bool hit = is_compare(data, len);
    c->sees = hit ? NULL : c->sees;
    return !hit;
}

struct cutting {
    struct cutter *c;
    uint64_t intrude; /* somebody else writes there before the session is back; 0: nobody */
    bool over;
};

static void cut_when_mute(void *arg)
{
    struct cutting *k = arg;
    while (!k->c->mute)
        gr_fiber_sleep_ms(1);
    gr_fiber_sleep_ms(100); /* it has been carried out */
    if (k->intrude)
        tgtfix_call(&fix, forget, &k->intrude);
    k->c->sees = NULL;
    cutter_cut(k->c);
    k->c->mute = false;
    k->over = true;
}

static int lost_answers(void *arg)
{
    struct host h;
    uint8_t a[4096], b[4096], c[4096], zero[4096] = {0};
    uint64_t at = 0;
    (void)arg;
    host_up(&h, 1, TGTFIX_TARGET);
    fill(a, sizeof(a), 1);
    fill(b, sizeof(b), 2);
    struct cutting k = {.c = &h.cut};
    h.cut.sees = mute_compare; /* carried out, and nobody told us */
    assert_int_equal(gr_fiber_start(h.cut.loop, cut_when_mute, &k), 0);
    assert_int_equal(gr_compare_write(h.ch, 4096, zero, a, 4096, &at), 0);
    while (!k.over)
        gr_fiber_sleep_ms(5);
    h.cut.sees = stop_compare; /* never got there */
    assert_int_equal(gr_compare_write(h.ch, 4096, a, b, 4096, &at), 0);
    assert_int_equal(h.cut.logins, 3);
    k = (struct cutting){.c = &h.cut, .intrude = 4096};
    h.cut.sees = mute_compare; /* carried out, and somebody else came after us */
    assert_int_equal(gr_fiber_start(h.cut.loop, cut_when_mute, &k), 0);
    assert_int_equal(gr_compare_write(h.ch, 4096, b, a, 4096, &at), -GR_EMISCOMPARE);
    while (!k.over)
        gr_fiber_sleep_ms(5);
    assert_int_equal(gr_pread(h.ch, c, 4096, 4096), 0);
    assert_memory_equal(c, zero, 4096);
    host_down(&h);
    return 0;
}

/* ---- nobody is there ---- */
static int patience(void *arg)
{
    struct host h = {0};
    struct gr_err err = {0};
    uint8_t a[512] = {1};
    (void)arg;
    assert_int_equal(host_open(&h, 1, TGTFIX_TARGET, (struct gr_iscsi_opts){.timeout_ms = 8000, .patience_ms = 300}, &err), 0);
    for (int mute = 0; mute < 2; mute++) { /* refused; let in, and never answered */
        uint64_t began = gr_loop_now_ns(h.cut.loop);
        h.cut.away = !mute;
        h.cut.mute = mute;
        cutter_cut(&h.cut);
        assert_true(gr_pwrite(h.ch, a, 512, 0, 0) < 0);
        assert_true(gr_loop_now_ns(h.cut.loop) - began < UINT64_C(4000000000));
    }
    h.cut.away = h.cut.mute = false; /* and it comes back: the next one is served */
    assert_int_equal(gr_pwrite(h.ch, a, 512, 0, 0), 0);
    assert_int_equal(gr_flush(h.ch), 0);
    host_down(&h);
    return 0;
}

/* ---- portals that send us elsewhere ---- */
static int own_it(struct tgtfix *f, void *arg)
{
    f->elsewhere.here = *(bool *)arg;
    return (int)f->elsewhere.lookups;
}

static void own_it_soon(void *arg)
{
    bool *done = arg, yes = true;
    gr_fiber_sleep_ms(100);
    assert_true(tgtfix_call(&fix, own_it, &yes) > 0);
    *done = true;
}

static int redirects(void *arg)
{
    struct gr_err err = {0};
    struct gr_bdev *b = NULL;
    bool no = false, done = false;
    (void)arg;
    snprintf(nowhere, sizeof(nowhere), "127.0.0.1:%s", fix.port);
    gr_auto_free char *url = gr_asprintf("iscsi://127.0.0.1:%s/" TGTFIX_ELSEWHERE "/0", fix.port);
    tgtfix_call(&fix, own_it, &no);
    assert_true(gr_bdev_iscsi_open(gr_fiber_loop(), url, &(struct gr_iscsi_opts){.timeout_ms = 3000}, &b, &err) < 0);
    assert_non_null(strstr(err.text, "t:elsewhere"));
    assert_non_null(strstr(err.text, "portal"));
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), own_it_soon, &done), 0);
    for (int i = 0; i < 100 && !b; i++)
        if (gr_bdev_iscsi_open(gr_fiber_loop(), url, &(struct gr_iscsi_opts){.timeout_ms = 3000}, &b, &err) < 0)
            gr_fiber_sleep_ms(10);
    assert_non_null(b);
    gr_bdev_put(b);
    while (!done)
        gr_fiber_sleep_ms(5);
    return 0;
}

static int refusals(void *arg)
{
    struct gr_err err = {0};
    struct gr_bdev *b = NULL;
    struct gr_iscsi_opts o = {.timeout_ms = 2000};
    static const uint8_t bad[6] = {0xc0};
    (void)arg;
    gr_auto_free char *gone = gr_asprintf("iscsi://127.0.0.1:%s/iqn.2026-11.local.granary:t:nothing/0", fix.port);
    assert_true(gr_bdev_iscsi_open(gr_fiber_loop(), gone, &o, &b, &err) < 0);
    assert_non_null(strstr(err.text, "nothing"));
    gr_auto_free char *secret = gr_asprintf("iscsi://me%%secret@127.0.0.1:%s/" TGTFIX_TARGET "/0", fix.port);
    assert_int_equal(gr_bdev_iscsi_open(gr_fiber_loop(), secret, &o, &b, &err), -EINVAL);
    assert_null(strstr(err.text, "me%secret"));
    assert_true(gr_bdev_iscsi_open(gr_fiber_loop(), "iscsi://127.0.0.1:1/" TGTFIX_TARGET "/0", &o, &b, &err) < 0);
    assert_non_null(strstr(err.text, "127.0.0.1:1/"));
    assert_int_equal(gr_bdev_iscsi_open(gr_fiber_loop(), "nbd://x", &o, &b, &err), -EINVAL);
    o.isid = bad;
    gr_auto_free char *six = gr_asprintf("iscsi://[::1]:%s/" TGTFIX_TARGET "/0", fix.port2);
    assert_int_equal(gr_bdev_iscsi_open(gr_fiber_loop(), six, &o, &b, &err), -EINVAL);
    o.isid = NULL;
    if (gr_bdev_iscsi_open(gr_fiber_loop(), six, &o, &b, &err) < 0)
        fail_msg("%s", err.text);
    gr_bdev_put(b);
    return 0;
}

/* ---- the fence ---- */
static int fencing(void *arg)
{
    struct host a, b, c;
    struct gr_err err = {0};
    uint8_t p[512] = {1};
    uint64_t keys[4];
    unsigned n = 0;
    (void)arg;
    host_up(&a, 1, TGTFIX_TARGET);
    host_up(&b, 2, TGTFIX_TARGET);
    host_up(&c, 3, TGTFIX_TARGET);
    const struct gr_fence_ops *f = a.bdev->fence;
    assert_int_equal(f->enter(a.bdev, 0, &err), -EINVAL);
    assert_int_equal(f->eject(a.bdev, 11, &err), -GR_EFENCED); /* not in itself; and it is told so until it enters */
    assert_int_equal(f->enter(a.bdev, 11, &err), 0);
    assert_int_equal(f->enter(b.bdev, 22, &err), 0);
    assert_int_equal(f->enter(b.bdev, 23, &err), 0); /* in place of the other */
    assert_int_equal(f->keys(a.bdev, keys, 1, &n, &err), 0);
    assert_int_equal(n, 2);
    assert_int_equal(f->keys(a.bdev, keys, 4, &n, &err), 0);
    assert_true(n == 2 && ((keys[0] == 11 && keys[1] == 23) || (keys[0] == 23 && keys[1] == 11)));
    assert_int_equal(gr_pwrite(a.ch, p, 512, 0, 0), 0);
    assert_int_equal(gr_pwrite(b.ch, p, 512, 0, 0), 0);
    assert_int_equal(gr_pread(c.ch, p, 512, 0), -GR_EFENCED);
    cutter_cut(&a.cut); /* the same nexus afterwards: the registration holds */
    assert_int_equal(gr_pwrite(a.ch, p, 512, 0, 0), 0);
    assert_int_equal(f->eject(b.bdev, 99, &err), 0); /* nobody */
    assert_int_equal(f->eject(b.bdev, 11, &err), 0); /* who holds the reservation */
    assert_int_equal(gr_pread(a.ch, p, 512, 0), -GR_EFENCED);
    assert_int_equal(gr_pread(a.ch, p, 512, 0), -GR_EFENCED);
    cutter_cut(&a.cut);
    assert_int_equal(gr_pread(a.ch, p, 512, 0), -GR_EFENCED);
    assert_int_equal(f->eject(a.bdev, 23, &err), -GR_EFENCED);
    assert_int_equal(f->enter(a.bdev, 11, &err), -GR_EFENCED); /* never under that key */
    gr_fiber_sleep_ms(20);
    assert_int_equal(a.fenced, 2); /* once before it entered at all */
    assert_int_equal(gr_pwrite(b.ch, p, 512, 0, 0), 0);
    assert_int_equal(f->enter(a.bdev, 12, &err), 0);
    assert_int_equal(gr_pread(a.ch, p, 512, 0), 0);
    assert_int_equal(f->leave(a.bdev, &err), 0); /* b holds: a goes */
    assert_int_equal(f->leave(b.bdev, &err), 0); /* b holds: b stays, for the reservation's sake */
    assert_int_equal(f->keys(c.bdev, keys, 4, &n, &err), 0);
    assert_true(n == 1 && keys[0] == 23);
    assert_int_equal(gr_pread(a.ch, p, 512, 0), -GR_EFENCED);
    assert_int_equal(f->enter(a.bdev, 13, &err), 0);
    assert_int_equal(f->clear(c.bdev, &err), 0);
    assert_int_equal(gr_pwrite(a.ch, p, 512, 0, 0), -GR_EFENCED); /* nothing holds it back any more: it looks for itself */
    assert_int_equal(f->keys(c.bdev, keys, 4, &n, &err), 0);
    assert_int_equal(n, 0);
    host_down(&a);
    host_down(&b);
    host_down(&c);
    return 0;
}

/* ---- eject while the victim's writes are under way: nothing of them lands afterwards ---- */
enum { VICTIMS = 24 };
static int look_at(struct tgtfix *f, void *arg)
{
    uint8_t (*out)[4096] = arg;
    for (unsigned i = 0; i < VICTIMS; i++) {
        const void *p = gr_mem_page(f->mem, i * 4096u, false);
        if (p)
            memcpy(out[i], p, 4096);
    }
    return 0;
}

struct late {
    struct gr_bio bio;
    struct iovec iov;
    unsigned *left, *refused;
};

static void late_done(struct gr_bio *bio)
{
    struct late *l = bio->arg;
    --*l->left;
    assert_true(bio->status == 0 || bio->status == -GR_EFENCED);
    *l->refused += bio->status == -GR_EFENCED;
}

static int draining(void *arg)
{
    struct host a, b;
    struct gr_err err = {0};
    static uint8_t p[4096], then[VICTIMS][4096], now[VICTIMS][4096];
    struct late late[VICTIMS];
    unsigned left = VICTIMS, refused = 0;
    (void)arg;
    memset(then, 0, sizeof(then));
    memset(now, 0, sizeof(now));
    host_up(&a, 1, TGTFIX_SLOW);
    host_up(&b, 2, TGTFIX_SLOW);
    assert_int_equal(a.bdev->fence->enter(a.bdev, 1, &err), 0);
    assert_int_equal(b.bdev->fence->enter(b.bdev, 2, &err), 0);
    memset(p, 0xaa, sizeof(p));
    for (unsigned i = 0; i < VICTIMS; i++) {
        late[i] = (struct late){.iov = {p, 4096}, .left = &left, .refused = &refused};
        late[i].bio = (struct gr_bio){.op = GR_OP_WRITE, .off = i * 4096u, .len = 4096, .iov = &late[i].iov, .iovcnt = 1, .done = late_done,
                                      .arg = &late[i]};
        gr_submit(a.ch, &late[i].bio);
    }
    gr_fiber_sleep_ms(TGTFIX_SLOW_MS / 4); /* they are with the device */
    assert_int_equal(b.bdev->fence->eject(b.bdev, 1, &err), 0);
    tgtfix_call(&fix, look_at, then);
    gr_fiber_sleep_ms(2 * TGTFIX_SLOW_MS);
    tgtfix_call(&fix, look_at, now);
    for (unsigned i = 0; i < VICTIMS; i++)
        assert_memory_equal(then[i], now[i], 4096);
    assert_int_equal(gr_pwrite(a.ch, p, 4096, 0, 0), -GR_EFENCED);
    for (int i = 0; left && i < 1000; i++)
        gr_fiber_sleep_ms(10);
    assert_int_equal(left, 0);
    printf("# %u of %d refused\n", refused, VICTIMS);
    host_down(&a);
    host_down(&b);
    return 0;
}

/* ---- our own target keeps what the self-test asks of a shared device ---- */
static int same_nexus(void *arg, struct gr_bdev **ret, struct gr_err *err)
{
    const uint8_t isid[6] = {0x80, 1, 2, 3, 0, 1};
    const struct gr_iscsi_opts o = {.initiator = "iqn.2026-11.local.granary:host-1", .isid = isid, .timeout_ms = 5000};
    gr_auto_free char *url = gr_asprintf("iscsi://127.0.0.1:%s/%s/0", fix.port, (const char *)arg);
    return gr_bdev_iscsi_open(gr_fiber_loop(), url, &o, ret, err);
}

static int honours(void *arg)
{
    struct host a, b;
    struct gr_probe seen;
    struct gr_err err = {0};
    static char target[] = TGTFIX_TARGET;
    const struct gr_probe_opts o = {.off = 1 << 20, .races = 100, .watch_ms = 50, .again = same_nexus, .arg = target};
    (void)arg;
    host_up(&a, 1, TGTFIX_TARGET);
    host_up(&b, 2, TGTFIX_TARGET);
    if (gr_bdev_probe(a.bdev, b.bdev, &o, &seen, &err) < 0)
        fail_msg("%s", err.text);
    assert_true(seen.one_winner && seen.drains && seen.outlasts_session && seen.outlasts_power);
    host_down(&a);
    host_down(&b);
    return 0;
}

/* ---- nobody answers ---- */
struct asking {
    struct host *h;
    int r;
    bool over;
};

static void asks_for_keys(void *arg)
{
    struct asking *a = arg;
    uint64_t key[4];
    unsigned n;
    a->r = a->h->bdev->fence->keys(a->h->bdev, key, 4, &n, NULL);
    a->over = true;
}

/* It is silent also for who waits to speak with its fence only; and when it is given up, nobody waits any more. */
static int silent(void *arg)
{
    struct host h;
    (void)arg;
    host_up(&h, 1, TGTFIX_TARGET);
    struct asking a = {.h = &h};
    assert_int_equal(h.bdev->fence->enter(h.bdev, 7, NULL), 0);
    assert_int_equal(h.bdev->ops->silent_ms(h.bdev), 0);
    h.cut.away = true;
    cutter_cut(&h.cut);
    gr_fiber_sleep_ms(100);
    assert_int_equal(h.bdev->ops->silent_ms(h.bdev), 0); /* nothing is asked of it */
    assert_int_equal(gr_fiber_start(h.cut.loop, asks_for_keys, &a), 0);
    gr_fiber_sleep_ms(300);
    assert_false(a.over);
    assert_true(h.bdev->ops->silent_ms(h.bdev) >= 200);
    h.bdev->ops->give_up(h.bdev);
    for (unsigned i = 0; i < 500 && !a.over; i++)
        gr_fiber_sleep_ms(10);
    assert_true(a.over && a.r < 0);
    host_down(&h);
    host_up(&h, 2, TGTFIX_TARGET);
    assert_int_equal(h.bdev->fence->clear(h.bdev, NULL), 0);
    host_down(&h);
    return 0;
}

static void t_silent(void **state) { test_in_fiber(silent, NULL); }
static void t_honours(void **state) { test_in_fiber(honours, NULL); }
static void t_fencing(void **state) { test_in_fiber(fencing, NULL); }
static void t_draining(void **state) { test_in_fiber(draining, NULL); }
static void t_operations(void **state) { test_in_fiber(operations, NULL); }
static void t_breaks(void **state) { test_in_fiber(breaks, NULL); }
static void t_gang(void **state) { test_in_fiber(gang, NULL); }
static void t_power_lost(void **state) { test_in_fiber(power_lost, NULL); }
static void t_lost_answers(void **state) { test_in_fiber(lost_answers, NULL); }
static void t_patience(void **state) { test_in_fiber(patience, NULL); }
static void t_redirects(void **state) { test_in_fiber(redirects, NULL); }
static void t_refusals(void **state) { test_in_fiber(refusals, NULL); }
static int quiet(void **state)
{
    signal(SIGPIPE, SIG_IGN); /* as all programs do */
    return 0;
}
TGTFIX_MAIN(quiet, NULL, TGTFIX_CASE(t_operations), TGTFIX_CASE(t_breaks), TGTFIX_CASE(t_gang), TGTFIX_CASE(t_power_lost),
            TGTFIX_CASE(t_lost_answers), TGTFIX_CASE(t_silent), TGTFIX_CASE(t_patience), TGTFIX_CASE(t_refusals), TGTFIX_CASE(t_redirects), TGTFIX_CASE(t_fencing), TGTFIX_CASE(t_draining), TGTFIX_CASE(t_honours))
