/* Losing a session and making the next one: log in, see that the unit is still ours, that nobody has thrown us out meanwhile, and write
 * again what the target may have forgotten; only then the requests go on. */
#include "common/bdev_iscsi_int.h"
#include "common/cleanup.h"
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { REDIAL_MIN_MS = 50, REDIAL_MAX_MS = 2000, NAP_MS = 100 };

void isc_sleep_ms(struct isc_dev *d, uint64_t ms)
{
    for (uint64_t n; ms && !d->closing; ms -= n) {
        n = GR_MIN(ms, (uint64_t)NAP_MS);
        gr_fiber_sleep_ms(n);
    }
}

void isc_back_off(struct isc_dev *d)
{
    isc_sleep_ms(d, GR_MIN((uint64_t)REDIAL_MIN_MS << GR_MIN(d->failures, 8u), (uint64_t)REDIAL_MAX_MS));
}

/* ---- losing ---- */
void isc_detach(struct isc_dev *d)
{
    gr_timer_cancel(d->loop, &d->age);
    if (d->watching)
        gr_watch_del(d->loop, &d->watch);
    d->watching = false;
    d->tearing = true;
    isc_hang_up(&d->session); /* everything busy comes back to `waiting`, questions are answered */
    d->tearing = false;
    d->lost = false;
}

void isc_lose(struct isc_dev *d)
{
    if (!d->watching)
        return;
    isc_detach(d);
    d->failures++;
    if (d->state == ISC_LIVE)
        d->state = ISC_DOWN;
    gr_loop_defer(d->loop, &d->kick);
}

static void on_socket(void *arg, int events)
{
    struct isc_dev *d = arg;
    char c;

    if (events & (POLLHUP | POLLERR)) {
        isc_lose(d);
        return;
    }
    /* an idle session that the target closed says so only here */
    if ((events & POLLIN) && !d->n_busy && recv(d->session.watch_fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) == 0) {
        isc_lose(d);
        return;
    }
    isc_pump(d, events);
    if (d->watching && d->waiting.head)
        isc_kick(d);
}

/* The oldest command: is it too old? Others may have been answered, one that the target has dropped never is. */
static void on_age(void *arg)
{
    struct isc_dev *d = arg;

    if (d->busy.head && gr_loop_now_ns(d->loop) >= d->busy.head->sent_ns + d->timeout_ms * 1000000)
        isc_lose(d);
    else
        isc_update(d);
}

int isc_attach(struct isc_dev *d)
{
    d->age = (struct gr_timer){.fn = on_age, .arg = d};
    d->watch = (struct gr_watch){.fn = on_socket, .arg = d, .fd = d->session.watch_fd, .events = POLLIN};
    int r = gr_watch_add(d->loop, &d->watch);
    if (r < 0)
        isc_hang_up(&d->session);
    d->watching = r >= 0;
    return r;
}

/* ---- the next one ---- */
static void adopt(struct isc_dev *d, const struct isc_unit *u)
{
    if (u->size != d->unit.size) {
        d->news_resized = true;
        gr_loop_defer(d->loop, &d->announce);
    }
    struct isc_unit old = d->unit;
    d->unit = *u;
    if (!u->modes_known && old.modes_known) { /* not told to who is not registered */
        d->unit.modes_known = true;
        d->unit.wce = old.wce;
        d->unit.dpofua = old.dpofua;
        d->unit.write_protected = old.write_protected;
    }
}

/* Is it the same unit, and are we still in? */
static int look_around(struct isc_dev *d, struct gr_err *err)
{
    struct isc_unit u;
    int r = isc_examine(d, &u, err);

    if (r >= 0)
        r = isc_same_unit(&d->unit, &u, err);
    if (r < 0)
        return r;
    adopt(d, &u);
    r = d->key ? isc_check_place(d, err) : 0;
    if (r == -GR_EFENCED) {
        isc_fenced(d);
        r = 0;
    }
    return r;
}

static int resume(struct isc_dev *d, struct gr_err *err)
{
    int r = isc_dial(d, &d->session, err);

    if (r >= 0)
        r = isc_attach(d);
    if (r >= 0)
        r = look_around(d, err);
    if (r < 0)
        return r;
    r = d->fenced ? 0 : isc_dirty_replay(d);
    if (r == -ECONNRESET || r == -ENOMEM)
        return gr_fail(err, r, "while written data was sent again: %s", gr_code_text(r));
    if (r == -GR_EFENCED)
        isc_fenced(d);
    else if (r < 0 && !d->flush_error)
        d->flush_error = r; /* what the target forgot cannot be written again */
    return d->watching ? 0 : gr_fail(err, -ECONNRESET, "%s", gr_code_text(-ECONNRESET));
}

static void settle(struct isc_dev *d, enum isc_state state, int code)
{
    d->state = state;
    d->dead = code;
    if (state != ISC_LIVE) {
        isc_detach(d);
        isc_fail_waiting(d, code);
    }
    gr_fqueue_wake_all(&d->settled);
}

static bool patient(const struct isc_dev *d)
{
    uint64_t down_ms = (gr_loop_now_ns(d->loop) - d->down_since_ns) / 1000000;

    return !d->given_up && (!d->reconnects || d->failures <= d->reconnects) && (!d->patience_ms || down_ms < d->patience_ms);
}

static uint64_t oldest(const struct isc_list *l, uint64_t ns)
{
    for (const struct isc_sub *s = l->head; s; s = s->next)
        if (s->first_ns && s->first_ns < ns)
            ns = s->first_ns;
    return ns;
}

uint64_t isc_silent_ms(struct gr_bdev *bdev)
{
    const struct isc_dev *d = gr_container_of(bdev, struct isc_dev, bdev);
    uint64_t now = gr_loop_now_ns(d->loop), since = oldest(&d->busy, oldest(&d->waiting, now));

    if ((d->waiting.head || d->fencing) && d->state != ISC_LIVE && d->down_since_ns < since)
        since = d->down_since_ns;
    since = GR_MAX(since, d->answered_ns);
    return since < now ? (now - since) / 1000000 : 0;
}

void isc_give_up(struct gr_bdev *bdev)
{
    struct isc_dev *d = gr_container_of(bdev, struct isc_dev, bdev);

    d->given_up = true;
    if (d->state == ISC_DIALING) /* its fiber sees it */
        isc_fail_waiting(d, -EIO);
    else
        settle(d, ISC_DEAD, -EIO);
}

static void redial(struct isc_dev *d)
{
    int r = -ECONNRESET;

    while (patient(d) && !d->closing) {
        if (d->failures > 1)
            isc_back_off(d);
        r = resume(d, &d->why);
        if (r >= 0 && !d->given_up) {
            settle(d, ISC_LIVE, 0);
            isc_kick(d);
            return;
        }
        isc_detach(d);
        if (r == -ESTALE) {
            settle(d, ISC_DEAD, r);
            return;
        }
        d->failures++;
    }
    d->failures = 0;
    settle(d, d->given_up ? ISC_DEAD : ISC_DOWN, d->given_up ? -EIO : r);
}

static void fiber_ends(struct isc_dev *d)
{
    d->fibers--;
    gr_fqueue_wake_all(&d->settled);
}

static void redial_fiber(void *arg)
{
    struct isc_dev *d = arg;

    redial(d);
    fiber_ends(d);
}

void isc_start_dialing(struct isc_dev *d)
{
    d->state = ISC_DIALING;
    d->down_since_ns = gr_loop_now_ns(d->loop);
    if (gr_fiber_start(d->loop, redial_fiber, d) < 0)
        settle(d, ISC_DOWN, -ENOMEM);
    else
        d->fibers++;
}

static void looking_fiber(void *arg)
{
    struct isc_dev *d = arg;
    struct gr_err err;

    do {
        d->look = false;
        int r = look_around(d, &err);
        if (r == -ESTALE && d->state == ISC_LIVE)
            settle(d, ISC_DEAD, r);
        else if (r < 0)
            isc_lose(d); /* the next session looks again */
    } while (d->look && d->watching);
    d->looking = false;
    isc_kick(d);
    fiber_ends(d);
}

void isc_start_looking(struct isc_dev *d)
{
    if (d->looking)
        return;
    if (gr_fiber_start(d->loop, looking_fiber, d) < 0) {
        isc_lose(d);
        return;
    }
    d->looking = true;
    d->fibers++;
}

int isc_wait_live(struct isc_dev *d, struct gr_err *err)
{
    if (d->state == ISC_DOWN)
        isc_start_dialing(d);
    while (d->state == ISC_DIALING)
        gr_fqueue_wait(&d->settled);
    if (d->state == ISC_LIVE)
        return 0;
    return gr_fail(err, d->dead, "%s", gr_err_text(&d->why, d->dead));
}
