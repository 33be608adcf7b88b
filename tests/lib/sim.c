/* Hosts on a virtual clock. */
#include "tests/lib/sim.h"
#include "common/cleanup.h"
#include "common/iov.h"
#include "common/loop_int.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct sim_host {
    struct sim *sim;
    struct gr_world world; /* the sim's, with a wall clock of its own */
    int64_t wall_off_s;
    struct gr_loop *loop;
    bool stopped;
    struct sim_host *next;
};
struct sim {
    struct gr_world world;
    uint64_t now_ns, random;
    struct gr_loop *net;
    struct sim_host *hosts;
    struct sim_watcher watcher;
    void (*on_eject)(void *arg, struct sim_host *h);
    void *on_eject_arg;
};

/* ---- the world ---- */
static uint64_t mono_ns(void *arg)
{
    return ((struct sim *)arg)->now_ns;
}
static int64_t wall_s(void *arg)
{
    return 1700000000 + (int64_t)(((struct sim *)arg)->now_ns / 1000000000);
}
uint64_t sim_random(struct sim *s) /* splitmix64 */
{
    uint64_t z = s->random += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}
static void random_bytes(void *arg, void *buf, size_t len)
{
    for (size_t i = 0; i < len; i++)
        ((uint8_t *)buf)[i] = (uint8_t)sim_random(arg);
}
uint64_t sim_below(struct sim *s, uint64_t n)
{
    return n ? sim_random(s) % n : 0;
}
static uint64_t host_mono_ns(void *arg)
{
    return mono_ns(((struct sim_host *)arg)->sim);
}
static int64_t host_wall_s(void *arg)
{
    return wall_s(((struct sim_host *)arg)->sim) + ((struct sim_host *)arg)->wall_off_s;
}
static void host_random_bytes(void *arg, void *buf, size_t len)
{
    random_bytes(((struct sim_host *)arg)->sim, buf, len);
}
void sim_wall_jump(struct sim_host *h, int64_t off_s)
{
    h->wall_off_s = off_s;
}
uint64_t sim_now_ns(const struct sim *s)
{
    return s->now_ns;
}
struct gr_loop *sim_net(struct sim *s)
{
    return s->net;
}

static struct gr_loop *loop_new(const struct gr_world *world)
{
    struct gr_loop_opts o = { .engine = GR_ENGINE_SYNC, .world = world };
    struct gr_loop *loop = NULL;
    int r = gr_loop_new(&o, &loop, NULL);
    assert(r == 0);
    (void)r;
    return loop;
}

struct sim *sim_new(uint64_t seed)
{
    struct sim *s = calloc(1, sizeof *s);
    assert(s);
    s->world = (struct gr_world){ s, mono_ns, wall_s, random_bytes };
    s->random = seed;
    s->now_ns = 1000000000;
    s->net = loop_new(&s->world);
    return s;
}

void sim_free(struct sim *s)
{
    assert(!s->hosts);
    gr_loop_free(s->net);
    free(s);
}

/* ---- hosts ---- */
struct sim_host *sim_host_new(struct sim *s)
{
    struct sim_host *h = calloc(1, sizeof *h);
    assert(h);
    h->sim = s;
    h->world = (struct gr_world){ h, host_mono_ns, host_wall_s, host_random_bytes };
    h->loop = loop_new(&h->world);
    h->next = s->hosts;
    s->hosts = h;
    return h;
}

void sim_host_free(struct sim_host *h)
{
    struct sim_host **p = &h->sim->hosts;
    while (*p != h)
        p = &(*p)->next;
    *p = h->next;
    gr_loop_free(h->loop);
    free(h);
}

struct gr_loop *sim_host_loop(struct sim_host *h)
{
    return h->loop;
}
void sim_stop(struct sim_host *h, bool stopped)
{
    h->stopped = stopped;
}
bool sim_stopped(const struct sim_host *h)
{
    return h->stopped;
}

/* ---- time ---- */
static bool has_work(const struct sim *s, struct gr_loop *l)
{
    return l->ready.head || l->later.head || gr_timers_next_ns(l) <= s->now_ns;
}

static bool turn_all(struct sim *s)
{
    bool any = has_work(s, s->net);
    if (any)
        gr_loop_turn(s->net, 0);
    for (struct sim_host *h = s->hosts, *next; h; h = next) {
        next = h->next;
        if (h->stopped || !has_work(s, h->loop))
            continue;
        any = true;
        gr_loop_turn(h->loop, 0);
    }
    return any;
}

static uint64_t next_ns(struct sim *s)
{
    uint64_t next = gr_timers_next_ns(s->net);
    for (struct sim_host *h = s->hosts; h; h = h->next) {
        uint64_t t = h->stopped ? UINT64_MAX : gr_timers_next_ns(h->loop);
        next = t < next ? t : next;
    }
    return next;
}

int sim_run(struct sim *s, bool (*done)(void *arg), void *arg, uint64_t limit_ns)
{
    uint64_t end = limit_ns > UINT64_MAX - s->now_ns ? UINT64_MAX : s->now_ns + limit_ns;
    while (!done(arg)) {
        if (turn_all(s))
            continue;
        uint64_t next = next_ns(s);
        if (next == UINT64_MAX)
            return -EDEADLK;
        if (next > end)
            return -ETIMEDOUT;
        s->now_ns = next > s->now_ns ? next : s->now_ns;
    }
    return 0;
}

/* ---- paths ---- */
struct path {
    struct gr_bdev base;
    struct sim_host *host;
    struct gr_bdev *lower;
    struct gr_chan *low; /* on the net's loop */
    uint64_t min_ns, max_ns;
    unsigned lose;
    bool cut, told, given_up;
    int fails;           /* 0, or what every request ends with */
    uint64_t answered_ns, travels_ns; /* the second: since then */
    unsigned travels;    /* fibers with something to do at the fence */
    struct trip *trips;  /* all of them */
    struct trip *held;   /* of these, until the path is healed */
};
struct trip { /* a request on its way, there and back */
    struct gr_bio low;
    struct gr_bio *up;   /* NULL: whoever sent it waits no more */
    struct iovec copy;   /* then: what it carries */
    struct path *path;
    struct gr_timer timer;
    struct gr_defer arrive;
    struct trip *next, *next_of_path, **at;
    uint64_t sent_ns;
    bool there, back, again, arrives; /* at the device; on the way back; … a second time; to the host */
};

static void send_trip(struct trip *t);

static void trip_free(struct trip *t)
{
    *t->at = t->next_of_path;
    if (t->next_of_path)
        t->next_of_path->at = t->at;
    free(t->copy.iov_base);
    free(t);
}

static void arrived(void *arg) /* on the host's loop */
{
    struct trip *t = arg;
    struct path *p = t->path;
    struct gr_bio *up = t->up;
    up->n_extents = t->low.n_extents;
    up->miscompare_off = t->low.miscompare_off;
    int status = t->low.status;
    p->answered_ns = p->host->sim->now_ns;
    trip_free(t);
    if (status == -GR_EFENCED && !p->told) {
        p->told = true;
        gr_bdev_event(&p->base, GR_EVENT_FENCED);
    }
    gr_bio_end(up, status);
}

static void device_done(struct gr_bio *low)
{
    struct trip *t = low->arg;
    t->there = false;
    const struct sim_watcher *w = &t->path->host->sim->watcher;
    if (w->request)
        w->request(w->arg, t->path->host, &t->path->base, low, low->status);
    if (low->op == GR_OP_COMPARE_WRITE && !t->again && t->path->lose && sim_below(t->path->host->sim, t->path->lose) == 0)
        t->again = true; /* the answer is lost */
    else
        t->back = true;
    send_trip(t);
}

static void arrive(struct trip *t)
{
    t->arrives = true;
    t->arrive.fn = arrived;
    t->arrive.arg = t;
    gr_loop_defer(t->path->host->loop, &t->arrive);
}

static void orphan_end(struct trip *t)
{
    struct gr_bdev *b = &t->path->base;
    trip_free(t);
    gr_bdev_put(b);
}

static void at_end(void *arg) /* of one way, on the net's loop */
{
    struct trip *t = arg;
    if (t->path->cut) {
        t->next = t->path->held;
        t->path->held = t;
    } else if (t->back && !t->up) {
        orphan_end(t);
    } else if (t->back) {
        arrive(t);
    } else if (t->path->fails && t->up) {
        t->low.status = t->path->fails;
        t->back = true;
        send_trip(t);
    } else {
        if (t->up)
            t->low = *t->up;
        t->low.done = device_done;
        t->low.arg = t;
        t->there = true;
        gr_submit(t->path->low, &t->low);
    }
}

static void send_trip(struct trip *t)
{
    struct path *p = t->path;
    t->timer.fn = at_end;
    t->timer.arg = t;
    gr_timer_arm(p->host->sim->net, &t->timer, p->min_ns + sim_below(p->host->sim, p->max_ns - p->min_ns + 1));
}

static void path_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    struct trip *t = calloc(1, sizeof *t);
    assert(t);
    struct path *p = (struct path *)ch->bdev;
    t->up = bio;
    t->path = p;
    t->sent_ns = p->host->sim->now_ns;
    t->at = &p->trips;
    t->next_of_path = p->trips;
    if (p->trips)
        p->trips->at = &t->next_of_path;
    p->trips = t;
    if (!p->given_up) {
        send_trip(t);
        return;
    }
    t->low.status = -EIO;
    arrive(t);
}

static uint64_t path_silent_ms(struct gr_bdev *b)
{
    const struct path *p = (struct path *)b;
    uint64_t now = p->host->sim->now_ns, since = now;
    for (const struct trip *t = p->trips; t; t = t->next_of_path)
        since = t->up && t->sent_ns < since ? t->sent_ns : since;
    if (p->travels && p->travels_ns < since)
        since = p->travels_ns;
    since = since > p->answered_ns ? since : p->answered_ns;
    return since < now ? (now - since) / 1000000 : 0;
}

/* Nobody waits for it any more, and where what it carries lies may be used for something else; a write that has not got there yet still may. */
static void orphan(struct trip *t)
{
    struct trip *end = calloc(1, sizeof *end);
    struct gr_bio *up = gr_take(t->up);
    assert(end);
    if (!t->there && !t->back && up->op == GR_OP_WRITE) {
        t->copy = (struct iovec){ malloc(up->len), up->len };
        assert(t->copy.iov_base);
        gr_iov_get(up->iov, up->iovcnt, 0, t->copy.iov_base, up->len);
        t->low = (struct gr_bio){ .op = up->op, .flags = up->flags, .off = up->off, .len = up->len, .iov = &t->copy, .iovcnt = 1 };
    } else if (!t->there) {
        t->low = (struct gr_bio){ .op = GR_OP_FLUSH }; /* does nothing */
    }
    gr_bdev_get(&t->path->base);
    *end = (struct trip){ .up = up, .path = t->path, .low.status = -EIO, .at = &t->path->trips, .next_of_path = t->path->trips };
    end->next_of_path->at = &end->next_of_path;
    t->path->trips = end;
    arrive(end);
}

static void path_give_up(struct gr_bdev *b)
{
    struct path *p = (struct path *)b;
    p->given_up = true;
    for (struct trip *t = p->trips; t; t = t->next_of_path)
        if (t->up && !t->arrives)
            orphan(t);
}

static int path_geometry(struct gr_bdev *b, struct gr_geometry *ret)
{
    return gr_bdev_geometry(((struct path *)b)->lower, ret);
}

static void path_close(struct gr_bdev *b)
{
    struct path *p = (struct path *)b;
    gr_chan_close(p->low);
    gr_bdev_put(p->lower);
    free(p);
}

static void tell_fence(struct path *p, enum sim_fence what, uint64_t key)
{
    const struct sim_watcher *w = &p->host->sim->watcher;
    if (w->fence)
        w->fence(w->arg, p->host, &p->base, what, key);
}

static int travel(struct path *p, struct gr_err *err) /* in a fiber of the host: there, and no further while the path is cut */
{
    if (!p->travels++)
        p->travels_ns = p->host->sim->now_ns;
    do
        gr_fiber_sleep_ms(1);
    while (p->cut && !p->given_up);
    p->travels--;
    p->answered_ns = p->host->sim->now_ns;
    return p->fails || p->given_up ? gr_fail(err, p->fails ? p->fails : -EIO, "'%s' fails", p->base.name) : 0;
}
static int path_enter(struct gr_bdev *b, uint64_t key, struct gr_err *err)
{
    struct path *p = (struct path *)b;
    int r = travel(p, err);
    if (r == 0)
        r = p->lower->fence->enter(p->lower, key, err);
    p->told = r == 0 ? false : p->told;
    if (r == 0)
        tell_fence(p, SIM_ENTERED, key);
    return r;
}
static int path_leave(struct gr_bdev *b, struct gr_err *err)
{
    struct path *p = (struct path *)b;
    int r = travel(p, err);
    if (r == 0)
        r = p->lower->fence->leave(p->lower, err);
    if (r == 0)
        tell_fence(p, SIM_LEFT, 0);
    return r;
}
static int path_eject(struct gr_bdev *b, uint64_t key, struct gr_err *err)
{
    struct path *p = (struct path *)b;
    int r = travel(p, err);
    if (r == 0)
        r = p->lower->fence->eject(p->lower, key, err);
    if (r == 0)
        tell_fence(p, SIM_EJECTED, key);
    if (r == 0 && p->host->sim->on_eject)
        p->host->sim->on_eject(p->host->sim->on_eject_arg, p->host);
    return r;
}
static int path_keys(struct gr_bdev *b, uint64_t *keys, unsigned max, unsigned *n, struct gr_err *err)
{
    struct path *p = (struct path *)b;
    int r = travel(p, err);
    return r < 0 ? r : p->lower->fence->keys(p->lower, keys, max, n, err);
}
static int path_clear(struct gr_bdev *b, struct gr_err *err)
{
    struct path *p = (struct path *)b;
    int r = travel(p, err);
    return r < 0 ? r : p->lower->fence->clear(p->lower, err);
}
static const struct gr_fence_ops path_fence = {
    .enter = path_enter, .leave = path_leave, .eject = path_eject, .keys = path_keys, .clear = path_clear,
};
static const struct gr_bdev_ops path_ops = { .type = "path", .submit = path_submit, .geometry = path_geometry, .close = path_close, .silent_ms = path_silent_ms, .give_up = path_give_up };

int sim_path_open(struct sim_host *h, struct gr_bdev *lower, uint64_t min_ns, uint64_t max_ns, struct gr_bdev **ret)
{
    struct path *p = calloc(1, sizeof *p);
    assert(p);
    gr_bdev_init(&p->base, &path_ops, lower->name);
    p->base.fence = lower->fence ? &path_fence : NULL;
    p->host = h;
    p->lower = gr_bdev_get(lower);
    p->min_ns = min_ns;
    p->max_ns = max_ns;
    *ret = &p->base;
    return gr_chan_open(lower, h->sim->net, &p->low);
}

void sim_on_eject(struct sim *s, void (*fn)(void *arg, struct sim_host *h), void *arg)
{
    s->on_eject = fn;
    s->on_eject_arg = arg;
}

void sim_watch(struct sim *s, const struct sim_watcher *w)
{
    s->watcher = w ? *w : (struct sim_watcher){ 0 };
}

void sim_path_cut(struct gr_bdev *b, bool cut)
{
    struct path *p = (struct path *)b;
    p->cut = cut;
    while (!cut && p->held) {
        struct trip *t = p->held;
        p->held = t->next;
        send_trip(t);
    }
}

void sim_path_fail(struct gr_bdev *b, int code)
{
    ((struct path *)b)->fails = code;
}

void sim_path_lose(struct gr_bdev *b, unsigned n)
{
    ((struct path *)b)->lose = n;
}
