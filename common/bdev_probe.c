#include "common/bdev_probe.h"
#include "common/fiber.h"
#include <stdlib.h>
#include <string.h>

enum { RACES = 200, WATCH_MS = 500, LOOK_MS = 10, FLIGHT = 32, EJECTS = 3, UNIT = GR_PROBE_UNIT };

struct probe {
    struct gr_bdev *a, *b;
    struct gr_chan *ch_a, *ch_b;
    const struct gr_probe_opts *o;
    struct gr_probe *seen;
    uint64_t key_a, key_b, nonce;
    uint8_t *was, *now, *one, *two; /* units: what was found; and for use */
};

static uint64_t random_key(const struct probe *p)
{
    const struct gr_world *w = gr_loop_world(p->ch_a->loop);
    uint64_t k = 0;

    while (!k)
        w->random(w->arg, &k, sizeof(k));
    return k;
}

/* A unit that was never there before: each word is the one before it and STEP, and so they can be told from anything else. */
#define STEP UINT64_C(0x9e3779b97f4a7c15)
static void fresh(struct probe *p, uint8_t *unit)
{
    for (size_t i = 0; i < UNIT; i += 8) {
        uint64_t v = ++p->nonce * STEP;
        memcpy(unit + i, &v, 8);
    }
}

/* Sector by sector, for it may be of two. */
bool gr_bdev_probe_left(const uint8_t *unit)
{
    for (size_t i = 0; i < UNIT; i += 8) {
        uint64_t before, v;
        memcpy(&v, unit + i, 8);
        if (i % 512)
            memcpy(&before, unit + i - 8, 8);
        else
            before = v - STEP;
        if (v != before + STEP)
            return false;
    }
    return true;
}

static int lies(struct probe *p, struct gr_err *err, const char *what)
{
    return gr_fail(err, -EOPNOTSUPP, "'%s' cannot be shared: %s", p->a->name, what);
}

static int failed(struct probe *p, int code, struct gr_err *err, const char *what)
{
    return gr_fail(err, code, "'%s': %s, while it was tried whether it can be shared: %s", p->a->name, what, gr_code_text(code));
}

static int enter_a(struct probe *p, struct gr_err *err)
{
    p->key_a = random_key(p);
    return p->a->fence->enter(p->a, p->key_a, err);
}

static int enter_b(struct probe *p, struct gr_err *err)
{
    p->key_b = random_key(p);
    return p->b->fence->enter(p->b, p->key_b, err);
}

enum { KEYS_MAX = 4096 };

/* An earlier probe of this nexus, cut off by a crash, may have left it registered. Nobody else's key is touched: it gets a new one, and goes with that. */
static int forget(struct probe *p, struct gr_err *err)
{
    uint64_t *keys = gr_alloc(KEYS_MAX * sizeof(*keys));
    unsigned n = 0;
    bool in = false;
    int r = keys ? enter_b(p, err) : gr_fail(err, -ENOMEM, "out of memory");

    if (r >= 0)
        r = p->b->fence->leave(p->b, err);
    if (r >= 0)
        r = p->a->fence->keys(p->a, keys, KEYS_MAX, &n, err);
    for (unsigned i = 0; r >= 0 && i < n && i < KEYS_MAX; i++)
        in |= keys[i] == p->key_b;
    free(keys);
    return in ? p->a->fence->eject(p->a, p->key_b, err) : r == -EOPNOTSUPP ? -EIO : r; /* it holds the reservation, and cannot leave */
}

/* ---- who is registered, and who is not ---- */
/* A write of what is there: harmless when it is let through. */
static int shut_out(struct probe *p, struct gr_err *err)
{
    int r = gr_pwrite(p->ch_b, p->was, UNIT, p->o->off, 0);

    if (r >= 0)
        return lies(p, err, "it lets who is not registered write");
    if (r != -GR_EFENCED)
        return failed(p, r, err, "a write");
    p->seen->shuts_out_writes = true;
    r = enter_b(p, err);
    if (r < 0)
        return r;
    for (int turn = 0; turn < 2; turn++) {
        struct gr_chan *from = turn ? p->ch_b : p->ch_a, *to = turn ? p->ch_a : p->ch_b;
        fresh(p, p->one);
        r = gr_pwrite(from, p->one, UNIT, p->o->off, GR_BIO_FUA);
        if (r >= 0)
            r = gr_pread(to, p->now, UNIT, p->o->off);
        if (r == -GR_EFENCED)
            return lies(p, err, "it does not let all who are registered read and write");
        if (r < 0)
            return failed(p, r, err, "a read or write");
        if (memcmp(p->one, p->now, UNIT) != 0)
            return lies(p, err, "what one host has written the other does not read");
    }
    p->seen->joint = true;
    r = p->b->fence->leave(p->b, err);
    if (r < 0)
        return r;
    r = gr_pread(p->ch_b, p->now, UNIT, p->o->off);
    if (r >= 0)
        return lies(p, err, "it lets who is not registered read");
    if (r != -GR_EFENCED)
        return failed(p, r, err, "a read");
    p->seen->shuts_out_reads = true;
    return enter_b(p, err);
}

/* ---- compare-and-write ---- */
static int swaps(struct probe *p, struct gr_err *err)
{
    int r = gr_pread(p->ch_a, p->now, UNIT, p->o->off);

    fresh(p, p->one);
    if (r >= 0)
        r = gr_compare_write(p->ch_a, p->o->off, p->now, p->one, UNIT, NULL);
    if (r == -EOPNOTSUPP || r == -EINVAL)
        return lies(p, err, "it has no COMPARE AND WRITE of 4 KiB");
    if (r == -GR_EMISCOMPARE)
        return lies(p, err, "COMPARE AND WRITE does not find equal what is");
    if (r >= 0)
        r = gr_pread(p->ch_b, p->now, UNIT, p->o->off);
    if (r < 0)
        return failed(p, r, err, "a compare-and-write");
    if (memcmp(p->now, p->one, UNIT) != 0)
        return lies(p, err, "COMPARE AND WRITE does not write");
    p->seen->swaps = true;
    for (size_t at = 0; at < UNIT; at += UNIT / 4 + 511) { /* one bit, wherever it is */
        fresh(p, p->two);
        p->one[at] ^= 0x10;
        r = gr_compare_write(p->ch_b, p->o->off, p->one, p->two, UNIT, NULL);
        p->one[at] ^= 0x10;
        if (r >= 0)
            return lies(p, err, "COMPARE AND WRITE finds equal what is not");
        if (r == -GR_EMISCOMPARE)
            r = gr_pread(p->ch_a, p->now, UNIT, p->o->off);
        if (r < 0)
            return failed(p, r, err, "a compare-and-write");
        if (memcmp(p->now, p->one, UNIT) != 0)
            return lies(p, err, "COMPARE AND WRITE writes though it did not compare equal");
    }
    p->seen->miscompares = true;
    return 0;
}

struct racer {
    struct gr_bio bio;
    struct iovec cmp, wr;
    unsigned *left;
    struct gr_fiber *waiter;
};

static void racer_done(struct gr_bio *bio)
{
    struct racer *r = bio->arg;

    if (!--*r->left)
        gr_fiber_wake(r->waiter);
}

static void racer_start(struct racer *r, struct gr_chan *ch, uint64_t off)
{
    r->waiter = gr_fiber_self();
    r->bio = (struct gr_bio){.op = GR_OP_COMPARE_WRITE, .off = off, .len = UNIT, .iov = &r->cmp, .iovcnt = 1, .iov2 = &r->wr, .iovcnt2 = 1,
                             .done = racer_done, .arg = r};
    gr_submit(ch, &r->bio);
}

static int race(struct probe *p, bool a_first, struct gr_err *err)
{
    unsigned left = 2;
    struct racer one = {.cmp = {p->now, UNIT}, .wr = {p->one, UNIT}, .left = &left};
    struct racer two = {.cmp = {p->now, UNIT}, .wr = {p->two, UNIT}, .left = &left};

    fresh(p, p->one);
    fresh(p, p->two);
    racer_start(a_first ? &one : &two, a_first ? p->ch_a : p->ch_b, p->o->off);
    racer_start(a_first ? &two : &one, a_first ? p->ch_b : p->ch_a, p->o->off);
    while (left)
        gr_fiber_suspend();
    bool w1 = one.bio.status >= 0, w2 = two.bio.status >= 0;
    int r = w1 || one.bio.status == -GR_EMISCOMPARE ? two.bio.status : one.bio.status;
    if (r < 0 && r != -GR_EMISCOMPARE)
        return failed(p, r, err, "a compare-and-write");
    if (w1 && w2)
        return lies(p, err, "of two COMPARE AND WRITE at a time both win");
    if (!w1 && !w2)
        return lies(p, err, "of two COMPARE AND WRITE at a time none wins");
    r = gr_pread(a_first ? p->ch_a : p->ch_b, p->now, UNIT, p->o->off);
    if (r < 0)
        return failed(p, r, err, "a read");
    if (memcmp(p->now, w1 ? p->one : p->two, UNIT) != 0)
        return lies(p, err, "of two COMPARE AND WRITE at a time the loser writes");
    return 0;
}

static int races(struct probe *p, struct gr_err *err)
{
    unsigned n = p->o->races ? p->o->races : RACES;
    int r = gr_pread(p->ch_a, p->now, UNIT, p->o->off);

    if (r < 0)
        return failed(p, r, err, "a read");
    for (unsigned i = 0; i < n && r >= 0; i++)
        r = race(p, i % 2, err);
    p->seen->one_winner = r >= 0;
    return r;
}

/* ---- the lost host ---- */
struct flight { /* writes of the victim under way */
    struct gr_bio bio[FLIGHT];
    struct iovec iov[FLIGHT];
    uint8_t *units;
    unsigned left;
    int strange; /* a status that is neither done nor fenced */
    struct gr_fiber *waiter;
};

static void flight_done(struct gr_bio *bio)
{
    struct flight *f = bio->arg;

    if (bio->status < 0 && bio->status != -GR_EFENCED)
        f->strange = bio->status;
    if (!--f->left)
        gr_fiber_wake(f->waiter);
}

static void take_off(struct probe *p, struct flight *f)
{
    f->left = FLIGHT;
    f->waiter = gr_fiber_self();
    for (int i = 0; i < FLIGHT; i++) {
        fresh(p, f->units + (size_t)i * UNIT);
        f->iov[i] = (struct iovec){f->units + (size_t)i * UNIT, UNIT};
        f->bio[i] = (struct gr_bio){.op = GR_OP_WRITE, .off = p->o->off, .len = UNIT, .iov = &f->iov[i], .iovcnt = 1, .done = flight_done, .arg = f};
        gr_submit(p->ch_a, &f->bio[i]);
    }
}

/* The unit stays as @want is. */
static int watch(struct probe *p, const uint8_t *want, struct gr_err *err)
{
    unsigned ms = p->o->watch_ms ? p->o->watch_ms : WATCH_MS;

    for (unsigned at = 0; at <= ms; at += LOOK_MS) {
        int r = gr_pread(p->ch_b, p->now, UNIT, p->o->off);
        if (r < 0)
            return failed(p, r, err, "a read");
        if (memcmp(p->now, want, UNIT) != 0)
            return lies(p, err, "a write of a host lands after the host was ejected");
        gr_fiber_sleep_ms(LOOK_MS);
    }
    return 0;
}

static int eject_once(struct probe *p, struct flight *f, struct gr_err *err)
{
    int r = enter_a(p, err);

    if (r < 0)
        return r;
    take_off(p, f);
    gr_fiber_yield(); /* they are on their way */
    r = p->b->fence->eject(p->b, p->key_a, err);
    if (r >= 0 && (r = gr_pread(p->ch_b, p->two, UNIT, p->o->off)) < 0)
        r = failed(p, r, err, "a read");
    if (r >= 0)
        r = watch(p, p->two, err);
    fresh(p, p->two);
    if (r >= 0 && (r = gr_pwrite(p->ch_b, p->two, UNIT, p->o->off, GR_BIO_FUA)) < 0)
        r = failed(p, r, err, "a write");
    if (r >= 0)
        r = watch(p, p->two, err);
    while (f->left)
        gr_fiber_suspend();
    if (r >= 0 && f->strange)
        r = failed(p, f->strange, err, "a write of an ejected host");
    if (r < 0)
        return r;
    fresh(p, p->one);
    r = gr_pwrite(p->ch_a, p->one, UNIT, p->o->off, 0);
    return r == -GR_EFENCED ? 0 : r >= 0 ? lies(p, err, "a host that was ejected still writes") : failed(p, r, err, "a write of an ejected host");
}

static int ejects(struct probe *p, struct gr_err *err)
{
    struct flight *f = gr_zalloc(sizeof(*f));
    uint8_t *units = gr_alloc((size_t)FLIGHT * UNIT);
    int r = f && units ? 0 : gr_fail(err, -ENOMEM, "out of memory");

    for (int i = 0; i < EJECTS && r >= 0; i++) {
        f->units = units;
        r = eject_once(p, f, err);
    }
    free(f);
    free(units);
    p->seen->ejects = p->seen->drains = r >= 0;
    return r;
}

static int second_session(struct probe *p, struct gr_err *err)
{
    struct gr_bdev *again = NULL;
    struct gr_chan *ch = NULL;
    int r = p->o->again ? p->o->again(p->o->arg, &again, err) : 0;

    if (r < 0 || !again)
        return r;
    r = gr_chan_open(again, p->ch_a->loop, &ch);
    if (r >= 0)
        r = gr_pwrite(ch, p->two, UNIT, p->o->off, 0);
    gr_chan_close(ch);
    gr_bdev_put(again);
    if (r >= 0)
        return lies(p, err, "a host that was ejected writes over a new session");
    if (r != -GR_EFENCED)
        return failed(p, r, err, "a write");
    p->seen->outlasts_session = true;
    return 0;
}

static int flushes(struct probe *p, struct gr_err *err)
{
    int r = gr_flush(p->ch_a);

    if (r == -EOPNOTSUPP || r == -EINVAL)
        return lies(p, err, "it cannot be told to keep what was written (SYNCHRONIZE CACHE)");
    p->seen->flushes = r >= 0;
    return r < 0 ? failed(p, r, err, "a flush") : 0;
}

/* ---- all of it ---- */
static int tries(struct probe *p, struct gr_err *err)
{
    int r = shut_out(p, err); /* with FUA */

    if (r >= 0)
        r = flushes(p, err);
    if (r >= 0)
        r = swaps(p, err);
    if (r >= 0)
        r = races(p, err);
    if (r >= 0)
        r = ejects(p, err);
    if (r >= 0)
        r = second_session(p, err);
    if (r >= 0 && p->b->fence->persists && (r = p->b->fence->persists(p->b, err)) < 0)
        r = r == -EOPNOTSUPP ? lies(p, err, "it does not keep registrations through a loss of power") : r;
    p->seen->outlasts_power = r >= 0;
    return r;
}

/* As it was found: the unit, and who is registered. */
static int tidy(struct probe *p, bool alone, int result, struct gr_err *err)
{
    struct gr_err mine = {0};
    int r = enter_b(p, &mine); /* whatever has become of it */

    if (r >= 0 && (r = gr_pwrite(p->ch_b, p->was, UNIT, p->o->off, GR_BIO_FUA)) < 0)
        r = failed(p, r, &mine, "putting back what was there");
    (void)p->a->fence->leave(p->a, NULL);
    int l = alone ? p->b->fence->clear(p->b, &mine) : p->b->fence->leave(p->b, &mine);
    r = r < 0 ? r : l;
    if (result >= 0 && r < 0)
        return gr_fail(err, r, "%s", mine.text);
    return result;
}

static int run(struct probe *p, struct gr_err *err)
{
    unsigned others = 0;
    int r = p->a->fence->keys(p->a, NULL, 0, &others, err);

    if (r >= 0)
        r = enter_a(p, err);
    if (r < 0)
        return r;
    p->nonce = random_key(p);
    r = forget(p, err);
    if (r >= 0 && (r = gr_pread(p->ch_a, p->was, UNIT, p->o->off)) < 0)
        r = failed(p, r, err, "a read");
    if (r >= 0 && gr_bdev_probe_left(p->was)) /* one that was cut off: nothing was there before it, or nothing that is known */
        memset(p->was, 0, UNIT);
    if (r < 0) {
        (void)(others ? p->a->fence->leave(p->a, NULL) : p->a->fence->clear(p->a, NULL));
        return r;
    }
    return tidy(p, !others, tries(p, err), err);
}

/* A handle for each nexus, and memory for units. */
static int with_handles(struct probe *p, int (*fn)(struct probe *p, struct gr_err *err), struct gr_err *err)
{
    *p->seen = (struct gr_probe){.fence = p->a->fence && p->b->fence};
    if (!p->seen->fence)
        return lies(p, err, "it has no fence");
    uint8_t *units = gr_zalloc(4 * UNIT);
    p->was = units;
    p->now = units + UNIT;
    p->one = units + 2 * UNIT;
    p->two = units + 3 * UNIT;
    int r = units ? gr_chan_open(p->a, gr_fiber_loop(), &p->ch_a) : -ENOMEM;
    if (r >= 0)
        r = gr_chan_open(p->b, gr_fiber_loop(), &p->ch_b);
    r = r < 0 ? gr_fail(err, r, "'%s': %s", p->a->name, gr_code_text(r)) : fn(p, err);
    gr_chan_close(p->ch_b);
    gr_chan_close(p->ch_a);
    free(units);
    return r;
}

int gr_bdev_probe(struct gr_bdev *a, struct gr_bdev *b, const struct gr_probe_opts *opts, struct gr_probe *ret, struct gr_err *err)
{
    struct probe p = {.a = a, .b = b, .o = opts, .seen = ret};

    return with_handles(&p, run, err);
}

/* ---- of a device in use ---- */
/* @b asks, and must be refused. */
static int refused(struct probe *p, bool write, struct gr_err *err, const char *lie)
{
    int r = write ? gr_pwrite(p->ch_b, p->was, UNIT, p->o->off, 0) : gr_pread(p->ch_b, p->now, UNIT, p->o->off);

    return r >= 0 ? lies(p, err, lie) : r == -GR_EFENCED ? 0 : failed(p, r, err, write ? "a write" : "a read");
}

/* It was let in, or what it needs for that is refused: too many keys, perhaps. */
static int enters(struct probe *p, struct gr_err *err)
{
    int r = enter_b(p, err);

    return r == -EOPNOTSUPP ? -EIO : r;
}

static int member(struct probe *p, struct gr_err *err)
{
    int r = forget(p, err);

    if (r < 0)
        return r;
    r = gr_pread(p->ch_a, p->was, UNIT, p->o->off);
    if (r < 0)
        return failed(p, r, err, "a read");
    if ((r = refused(p, false, err, "it lets who is not registered read")) < 0)
        return r;
    p->seen->shuts_out_reads = true;
    memcpy(p->one, p->was, UNIT);
    p->one[UNIT - 1] ^= 1;
    r = gr_compare_write(p->ch_a, p->o->off, p->one, p->was, UNIT, NULL);
    if (r >= 0)
        return lies(p, err, "COMPARE AND WRITE finds equal what is not");
    if (r != -GR_EMISCOMPARE)
        return failed(p, r, err, "a compare-and-write");
    p->seen->miscompares = true;
    if ((r = flushes(p, err)) < 0 || (r = enters(p, err)) < 0)
        return r;
    r = gr_pread(p->ch_b, p->now, UNIT, p->o->off);
    p->seen->joint = r >= 0;
    if (r < 0)
        r = r == -GR_EFENCED ? lies(p, err, "it does not let all who are registered read and write") : failed(p, r, err, "a read");
    else if ((r = p->a->fence->eject(p->a, p->key_b, err)) >= 0) /* the handle does not know yet: the device is asked */
        r = refused(p, true, err, "a host that was ejected still writes");
    if (r < 0) {
        (void)p->b->fence->leave(p->b, NULL);
        return r;
    }
    p->seen->shuts_out_writes = p->seen->ejects = true;
    return 0;
}

int gr_bdev_probe_member(struct gr_bdev *a, struct gr_bdev *b, uint64_t off, struct gr_probe *ret, struct gr_err *err)
{
    const struct gr_probe_opts o = {.off = off};
    struct probe p = {.a = a, .b = b, .o = &o, .seen = ret};

    return with_handles(&p, member, err);
}
