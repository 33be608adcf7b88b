#include "common/gang.h"
#include "common/cleanup.h"
#include "common/loop_int.h"
#include <assert.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#define PATIENCE_NS 1000000l

struct gr_gang {
    sem_t lock; /* no mutex: a fiber may open what its loop's thread has closed, which ThreadSanitizer takes for two threads */
    sem_t door; /* who has waited for the lock for long stands in it, and others come behind him */
    atomic_uint impatient;
    struct gr_loop *home;
    unsigned n;
    struct member {
        struct gr_loop *loop;
        pthread_t thread;
    } members[];
};
/* The loop that this thread turns: gr_gang_open() and file I/O have no other way to know. */
static _Thread_local struct gr_loop *here;

static void take(sem_t *s)
{
    while (sem_wait(s) < 0) /* interrupted */
        ;
}

/* Whoever comes takes it: who has it and wants it again at once mostly gets it, which saves a switch of threads each time, 15 % of a
 * target's writes. But nobody waits for more than a moment so. */
static void lock(struct gr_gang *g)
{
    struct timespec until;
    if (!atomic_load(&g->impatient)) {
        if (sem_trywait(&g->lock) == 0)
            return;
        clock_gettime(CLOCK_REALTIME, &until); /* sem_timedwait's; one that jumps changes nothing but the patience */
        until.tv_nsec += PATIENCE_NS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        if (sem_timedwait(&g->lock, &until) == 0)
            return;
    }
    atomic_fetch_add(&g->impatient, 1);
    take(&g->door);
    take(&g->lock);
    sem_post(&g->door);
    atomic_fetch_sub(&g->impatient, 1);
}

static void unlock(struct gr_gang *g)
{
    sem_post(&g->lock);
}

void gr_gang_begin(struct gr_loop *loop)
{
    loop->outer = here;
    here = loop;
    if (loop->gang)
        lock(loop->gang);
}

void gr_gang_end(struct gr_loop *loop)
{
    if (loop->gang)
        unlock(loop->gang);
    here = loop->outer;
}

void gr_gang_sleep(struct gr_loop *loop)
{
    if (!loop->gang)
        return;
    loop->asleep = true;
    unlock(loop->gang);
}

void gr_gang_wake(struct gr_loop *loop)
{
    if (!loop->gang)
        return;
    lock(loop->gang);
    loop->asleep = false;
}

void gr_gang_rouse(struct gr_loop *loop)
{
    if (!loop->asleep)
        return;
    loop->asleep = false;
    gr_loop_kick(loop);
}

struct gr_loop *gr_gang_here(struct gr_loop *loop)
{
    return loop->gang && here && here->gang == loop->gang ? here : loop;
}

void gr_gang_open(void)
{
    if (here && here->gang)
        unlock(here->gang);
}

void gr_gang_close(void)
{
    if (here && here->gang)
        lock(here->gang);
}

/* ---- file I/O by plain system calls ---- */
void gr_gang_plain(struct gr_loop *loop, struct gr_fio *fio)
{
    fio->next = NULL;
    if (loop->plain_tail)
        loop->plain_tail->next = fio;
    else
        loop->plain_head = fio;
    loop->plain_tail = fio;
}

bool gr_gang_run_plain(struct gr_loop *loop)
{
    struct gr_fio *all = loop->plain_head, *next;
    if (!all)
        return false;
    loop->plain_head = loop->plain_tail = NULL;
    gr_gang_open();
    for (struct gr_fio *fio = all; fio; fio = fio->next)
        gr_fio_exec(fio);
    gr_gang_close();
    for (struct gr_fio *fio = all; fio; fio = next) {
        next = fio->next;
        fio->done(fio);
    }
    return true;
}

/* ---- life ---- */
static void *run(void *arg)
{
    gr_loop_run(arg);
    return NULL;
}

static int member_start(struct gr_gang *g, struct gr_err *err)
{
    struct member *m = &g->members[g->n];
    struct gr_loop_opts o = {.engine = gr_loop_engine(g->home), .world = gr_loop_world(g->home)};
    sigset_t all, old;
    int r = gr_loop_new(&o, &m->loop, err);
    if (r < 0)
        return r;
    m->loop->gang = g;
    sigfillset(&all); /* signals are the home's */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    r = -pthread_create(&m->thread, NULL, run, m->loop);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r < 0) {
        gr_loop_free(m->loop);
        return gr_fail(err, r, "event loop: no thread for another one: %s", gr_code_text(r));
    }
    g->n++;
    return 0;
}

int gr_gang_start(struct gr_loop *home, unsigned n, struct gr_gang **ret, struct gr_err *err)
{
    assert(here == home && !home->gang);
    struct gr_gang *g = gr_zalloc(sizeof *g + n * sizeof g->members[0]);
    if (!g)
        return gr_fail(err, -ENOMEM, "event loop: out of memory");
    sem_init(&g->lock, 0, 0); /* within a turn */
    sem_init(&g->door, 0, 1);
    g->home = home;
    home->gang = g;
    int r = 0;
    while (r == 0 && g->n < n)
        r = member_start(g, err);
    if (r < 0) {
        gr_gang_stop(g);
        return r;
    }
    *ret = g;
    return 0;
}

void gr_gang_stop(struct gr_gang *g)
{
    if (!g)
        return;
    assert(here == g->home);
    for (unsigned i = 0; i < g->n; i++)
        gr_loop_stop(g->members[i].loop);
    gr_gang_open();
    for (unsigned i = 0; i < g->n; i++)
        pthread_join(g->members[i].thread, NULL);
    gr_gang_close();
    for (unsigned i = 0; i < g->n; i++)
        gr_loop_free(g->members[i].loop);
    g->home->gang = NULL;
    sem_destroy(&g->lock);
    sem_destroy(&g->door);
    free(g);
}

unsigned gr_gang_size(const struct gr_gang *g)
{
    return g ? g->n + 1 : 1;
}

struct gr_loop *gr_gang_loop(const struct gr_gang *g, unsigned i)
{
    return i ? g->members[i - 1].loop : g->home;
}
