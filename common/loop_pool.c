/* The loop's pool of threads for calls that block. Threads start when there is work and none is idle; they end with the
 * loop. They take no signals. */
#include "common/loop_int.h"
#include <signal.h>
#include <stdlib.h>

enum { MAX_THREADS = 4 };
struct job {
    struct gr_post post; /* carries the result back; first, so that its memory is the job's */
    int (*work)(void *arg);
    void (*done)(void *arg, int result);
    void *arg;
    int result;
    struct job *next;
};
struct gr_pool {
    struct gr_loop *loop;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t wake;
    struct job *head, *tail;
    pthread_t threads[MAX_THREADS];
    unsigned n_threads, n_idle;
    bool stop;
};

static void job_done(void *arg)
{
    struct job *job = arg;
    struct job copy = *job;

    free(job);
    copy.done(copy.arg, copy.result);
}

static void *worker(void *arg)
{
    struct gr_pool *pool = arg;

    pthread_mutex_lock(&pool->lock);
    for (;;) {
        while (!pool->head && !pool->stop) {
            pool->n_idle++;
            pthread_cond_wait(&pool->wake, &pool->lock);
            pool->n_idle--;
        }
        struct job *job = pool->head;
        if (!job)
            break;
        pool->head = job->next;
        if (!pool->head)
            pool->tail = NULL;
        pthread_mutex_unlock(&pool->lock);
        job->result = job->work(job->arg);
        gr_loop_post_node(pool->loop, &job->post);
        pthread_mutex_lock(&pool->lock);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

static struct gr_pool *pool_new(struct gr_loop *loop)
{
    struct gr_pool *pool = gr_zalloc(sizeof(*pool));

    if (!pool)
        return NULL;
    pool->loop = loop;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    return pool;
}

/* Called with the lock held. */
static int start_thread(struct gr_pool *pool)
{
    sigset_t all, old;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(&pool->threads[pool->n_threads], NULL, worker, pool);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r == 0)
        pool->n_threads++;
    return -r;
}

int gr_loop_work(struct gr_loop *loop, int (*work)(void *arg), void (*done)(void *arg, int result), void *arg)
{
    struct job *job = gr_zalloc(sizeof(*job));
    int r = 0;

    if (!job)
        return -ENOMEM;
    if (!loop->pool && !(loop->pool = pool_new(loop))) {
        free(job);
        return -ENOMEM;
    }
    *job = (struct job){.post = {.fn = job_done, .arg = job}, .work = work, .done = done, .arg = arg};
    struct gr_pool *pool = loop->pool;
    pthread_mutex_lock(&pool->lock);
    unsigned waiting = 1;
    for (struct job *j = pool->head; j && waiting <= pool->n_idle; j = j->next)
        waiting++;
    if (waiting > pool->n_idle && pool->n_threads < MAX_THREADS)
        r = start_thread(pool);
    if (r < 0 && pool->n_threads) /* fewer threads will have to do */
        r = 0;
    if (r == 0) {
        if (pool->tail)
            pool->tail->next = job;
        else
            pool->head = job;
        pool->tail = job;
        pthread_cond_signal(&pool->wake);
    }
    pthread_mutex_unlock(&pool->lock);
    if (r < 0)
        free(job);
    return r < 0 ? -ENOMEM : 0;
}

void gr_pool_free(struct gr_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->n_threads; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}
