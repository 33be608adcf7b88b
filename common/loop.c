/* The loop: turns, deferred calls, calls from other threads, watches. The engines do the waiting. */
#include "common/loop_int.h"
#include "common/cleanup.h"
#include <assert.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>

/* Deferred calls that arm each other are run this often before I/O gets a look. */
enum { DEFER_ROUNDS = 32, RING_ENTRIES = 1024 };

static void event_ready(void *arg, int events)
{
    struct gr_loop *loop = arg;
    uint64_t n;

    (void)events;
    if (read(loop->event_fd, &n, sizeof(n)) < 0)
        return; /* somebody else's wake-up was eaten already: nothing to read, the list below is still looked at next time */
    pthread_mutex_lock(&loop->post_lock);
    struct gr_post *p = loop->post_head;
    loop->post_head = loop->post_tail = NULL;
    pthread_mutex_unlock(&loop->post_lock);
    while (p) {
        struct gr_post *next = p->next;
        void (*fn)(void *) = p->fn;
        void *fn_arg = p->arg;
        if (p->owned)
            free(p);
        fn(fn_arg);
        p = next;
    }
}

static int engine_open(struct gr_loop *loop, const struct gr_loop_opts *opts, struct gr_err *err)
{
    enum gr_engine want = opts ? opts->engine : GR_ENGINE_AUTO;
    unsigned entries = opts && opts->ring_entries ? opts->ring_entries : RING_ENTRIES;
    const char *env = want == GR_ENGINE_AUTO ? secure_getenv("GRANARY_ENGINE") : NULL;

    if (env && !strcmp(env, "sync"))
        want = GR_ENGINE_SYNC;
    if (want != GR_ENGINE_SYNC) {
        loop->engine = &gr_engine_uring;
        int r = loop->engine->open(loop, entries, err);
        if (r == 0 || want == GR_ENGINE_URING)
            return r;
    }
    loop->engine = &gr_engine_sync;
    return loop->engine->open(loop, entries, err);
}

int gr_loop_new(const struct gr_loop_opts *opts, struct gr_loop **ret, struct gr_err *err)
{
    struct gr_loop *loop = gr_zalloc(sizeof(*loop));
    int r;

    if (!loop)
        return gr_fail(err, -ENOMEM, "event loop: out of memory");
    loop->world = opts && opts->world ? opts->world : gr_world_real();
    pthread_mutex_init(&loop->post_lock, NULL);
    loop->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (loop->event_fd < 0) {
        r = -errno;
        pthread_mutex_destroy(&loop->post_lock);
        free(loop);
        return gr_fail(err, r, "event loop: cannot make an eventfd: %s", gr_code_text(r));
    }
    r = engine_open(loop, opts, err);
    if (r < 0) {
        close(loop->event_fd);
        pthread_mutex_destroy(&loop->post_lock);
        free(loop);
        return r;
    }
    loop->event_watch = (struct gr_watch){.fn = event_ready, .arg = loop, .fd = loop->event_fd, .events = POLLIN};
    r = gr_watch_add(loop, &loop->event_watch);
    if (r < 0) {
        gr_loop_free(loop);
        return gr_fail(err, r, "event loop: cannot watch its eventfd: %s", gr_code_text(r));
    }
    *ret = loop;
    return 0;
}

void gr_loop_free(struct gr_loop *loop)
{
    if (!loop)
        return;
    loop->closing = true;
    gr_pool_free(loop->pool);
    gr_signals_free(loop);
    gr_fibers_free(loop);
    if (loop->event_watch.priv)
        gr_watch_del(loop, &loop->event_watch);
    loop->engine->close(loop);
    close(loop->event_fd);
    for (struct gr_post *p = loop->post_head, *next; p; p = next) {
        next = p->next;
        if (p->owned)
            free(p);
    }
    pthread_mutex_destroy(&loop->post_lock);
    free(loop->heap);
    free(loop);
}

enum gr_engine gr_loop_engine(const struct gr_loop *loop)
{
    return loop->engine->id;
}

const struct gr_world *gr_loop_world(const struct gr_loop *loop)
{
    return loop->world;
}

uint64_t gr_loop_now_ns(struct gr_loop *loop)
{
    return loop->world->mono_ns(loop->world->arg);
}

/* ---- deferred calls ---- */
static void list_add(struct gr_defer_list *l, struct gr_defer *d)
{
    if (d->armed)
        return;
    d->armed = true;
    d->next = NULL;
    if (l->tail)
        l->tail->next = d;
    else
        l->head = d;
    l->tail = d;
}

static bool list_remove(struct gr_defer_list *l, struct gr_defer *d)
{
    struct gr_defer *prev = NULL;

    for (struct gr_defer *p = l->head; p; prev = p, p = p->next) {
        if (p != d)
            continue;
        if (prev)
            prev->next = p->next;
        else
            l->head = p->next;
        if (l->tail == p)
            l->tail = prev;
        d->armed = false;
        return true;
    }
    return false;
}

void gr_loop_defer(struct gr_loop *loop, struct gr_defer *d)
{
    list_add(&loop->ready, d);
    gr_gang_rouse(loop);
}

void gr_loop_defer_later(struct gr_loop *loop, struct gr_defer *d)
{
    list_add(&loop->later, d);
    gr_gang_rouse(loop);
}

uint64_t gr_loop_turns(const struct gr_loop *loop)
{
    return loop->turns;
}

void gr_loop_defer_cancel(struct gr_loop *loop, struct gr_defer *d)
{
    if (!d->armed)
        return;
    if (!list_remove(&loop->ready, d) && !list_remove(&loop->running, d))
        list_remove(&loop->later, d);
}

static bool run_defers(struct gr_loop *loop)
{
    bool any = loop->ready.head != NULL;

    for (int round = 0; loop->ready.head && round < DEFER_ROUNDS; round++) {
        loop->running = loop->ready;
        loop->ready = (struct gr_defer_list){0};
        while (loop->running.head) {
            struct gr_defer *d = loop->running.head;
            loop->running.head = d->next;
            if (!loop->running.head)
                loop->running.tail = NULL;
            d->armed = false;
            d->fn(d->arg);
        }
    }
    return any;
}

/* ---- from other threads ---- */
void gr_loop_kick(struct gr_loop *loop)
{
    uint64_t one = 1;
    ssize_t n;

    do
        n = write(loop->event_fd, &one, sizeof(one));
    while (n < 0 && errno == EINTR); /* EAGAIN: the counter is full, so the loop is going to wake anyway */
}

void gr_loop_post_node(struct gr_loop *loop, struct gr_post *p)
{
    p->next = NULL;
    pthread_mutex_lock(&loop->post_lock);
    bool first = !loop->post_head;
    if (first)
        loop->post_head = p;
    else
        loop->post_tail->next = p;
    loop->post_tail = p;
    /* Under the lock: once it is open, the loop may run the call that frees the loop. */
    if (first)
        gr_loop_kick(loop);
    pthread_mutex_unlock(&loop->post_lock);
}

int gr_loop_post(struct gr_loop *loop, void (*fn)(void *arg), void *arg)
{
    struct gr_post *p = gr_zalloc(sizeof(*p));

    if (!p)
        return -ENOMEM;
    p->fn = fn;
    p->arg = arg;
    p->owned = true;
    gr_loop_post_node(loop, p);
    return 0;
}

void gr_loop_stop(struct gr_loop *loop)
{
    int saved = errno; /* may run in a signal handler */

    atomic_store(&loop->stopping, true);
    gr_loop_kick(loop);
    errno = saved;
}

/* ---- turns ---- */
static int64_t wait_ns(struct gr_loop *loop, int timeout_ms)
{
    int64_t wait = timeout_ms < 0 ? -1 : (int64_t)timeout_ms * 1000000;

    if (loop->ready.head || loop->later.head || loop->plain_head)
        return 0;
    uint64_t due = gr_timers_next_ns(loop);
    if (due != UINT64_MAX && wait != 0) {
        uint64_t now = gr_loop_now_ns(loop);
        uint64_t left = due > now ? due - now : 0;
        if (wait < 0 || left < (uint64_t)wait)
            wait = left > INT64_MAX ? INT64_MAX : (int64_t)left;
    }
    return wait;
}

void gr_loop_turn(struct gr_loop *loop, int timeout_ms)
{
    gr_gang_begin(loop);
    assert(!loop->in_turn);
    loop->in_turn = true;
    loop->turns++;
    while (loop->later.head) {
        struct gr_defer *d = loop->later.head;
        list_remove(&loop->later, d);
        list_add(&loop->ready, d);
    }
    /* Something ran: the caller gets to look at it before anything is waited for. */
    bool ran = gr_gang_run_plain(loop);
    if (run_defers(loop) || ran)
        timeout_ms = 0;
    loop->engine->turn(loop, wait_ns(loop, timeout_ms));
    gr_timers_run(loop);
    run_defers(loop);
    loop->in_turn = false;
    gr_gang_end(loop);
}

int gr_loop_run(struct gr_loop *loop)
{
    while (!atomic_exchange(&loop->stopping, false))
        gr_loop_turn(loop, -1);
    return 0;
}

/* ---- watches and file I/O: the engine's ---- */
int gr_watch_add(struct gr_loop *loop, struct gr_watch *w)
{
    struct gr_wslot *slot = gr_zalloc(sizeof(*slot));

    if (!slot)
        return -ENOMEM;
    slot->w = w;
    slot->fd = w->fd;
    slot->wanted = w->events;
    int r = loop->engine->watch_add(loop, slot);
    if (r < 0) {
        free(slot);
        return r;
    }
    w->priv = slot;
    return 0;
}

int gr_watch_set(struct gr_loop *loop, struct gr_watch *w, int events)
{
    struct gr_wslot *slot = w->priv;

    assert(slot);
    w->events = events;
    if (slot->wanted == events)
        return 0;
    slot->wanted = events;
    loop->engine->watch_set(loop, slot);
    return 0;
}

void gr_watch_del(struct gr_loop *loop, struct gr_watch *w)
{
    struct gr_wslot *slot = w->priv;

    if (!slot)
        return;
    w->priv = NULL;
    slot->w = NULL;
    slot->wanted = 0;
    loop->engine->watch_del(loop, slot);
}

void gr_loop_file_io(struct gr_loop *loop, struct gr_fio *fio)
{
    loop = gr_gang_here(loop);
    loop->engine->file_io(loop, fio);
}

void gr_loop_file_io_now(struct gr_loop *loop, struct gr_fio *fio)
{
    loop = gr_gang_here(loop);
    if (loop->gang) {
        gr_gang_plain(loop, fio);
        return;
    }
    gr_fio_exec(fio);
    fio->done(fio);
}
