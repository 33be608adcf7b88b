/* Fibers: making, switching, suspending, waking. */
#include "common/fiber_int.h"
#include "common/loop_int.h"
#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FIBER_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define FIBER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define FIBER_TSAN 1
#endif
#endif
#ifdef FIBER_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <sanitizer/lsan_interface.h>
#endif
#ifdef FIBER_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#if defined(FIBER_ASAN) || defined(FIBER_TSAN)
#define STACK_LEN ((size_t)1 << 20) /* instrumented frames are several times larger */
#else
#define STACK_LEN ((size_t)256 << 10)
#endif
enum { GUARD_LEN = 4096, MAX_IDLE = 64 };

enum fiber_state { FIBER_READY, FIBER_RUNNING, FIBER_SUSPENDED, FIBER_ENDED };
struct gr_fiber {
    struct gr_loop *loop;
    void (*fn)(void *arg);
    void *arg;
    enum fiber_state state;
    bool woken;               /* a wake came while it ran */
    struct gr_defer resume;
    struct gr_timer timer;    /* its place in the timer heap is reserved */
    struct gr_fctx ctx, back; /* where it goes on; who resumed it */
    char *stack;              /* STACK_LEN bytes above the guard page */
    struct gr_fiber *next;    /* idle ones */
#ifdef FIBER_ASAN
    void *fake, *back_fake;
    const void *back_stack;
    size_t back_len;
#endif
#ifdef FIBER_TSAN
    void *tsan, *back_tsan;
#endif
};

/* The fiber that runs on this thread. The only state that is not in an object: gr_fiber_self() has no argument. */
static _Thread_local struct gr_fiber *current;

struct gr_fiber *gr_fiber_self(void)
{
    return current;
}

struct gr_loop *gr_fiber_loop(void)
{
    assert(current);
    return current->loop;
}

struct gr_timer *gr_fiber_timer(struct gr_fiber *f)
{
    return &f->timer;
}

/* ---- switching ---- */
static void switch_in(struct gr_fiber *f)
{
    current = f;
    f->state = FIBER_RUNNING;
#ifdef FIBER_ASAN
    __sanitizer_start_switch_fiber(&f->back_fake, f->stack, STACK_LEN);
#endif
#ifdef FIBER_TSAN
    f->back_tsan = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(f->tsan, 0);
#endif
    gr_fctx_switch(&f->back, &f->ctx);
#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(f->back_fake, NULL, NULL);
#endif
    current = NULL;
}

static void switch_out(struct gr_fiber *f)
{
#ifdef FIBER_ASAN
    /* An ended fiber gives its fake stack back. */
    __sanitizer_start_switch_fiber(f->state == FIBER_ENDED ? NULL : &f->fake, f->back_stack, f->back_len);
#endif
#ifdef FIBER_TSAN
    __tsan_switch_to_fiber(f->back_tsan, 0);
#endif
    gr_fctx_switch(&f->ctx, &f->back);
#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(f->fake, &f->back_stack, &f->back_len);
#endif
}

static void fiber_entry(void *arg)
{
    struct gr_fiber *f = arg;

#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(NULL, &f->back_stack, &f->back_len);
#endif
    f->fn(f->arg);
    f->state = FIBER_ENDED;
    switch_out(f);
    abort(); /* an ended fiber is never resumed */
}

/* ---- life ---- */
static void fiber_free(struct gr_fiber *f)
{
#ifdef FIBER_ASAN
    __asan_unpoison_memory_region(f->stack, STACK_LEN);
    __lsan_unregister_root_region(f->stack, STACK_LEN);
#endif
    munmap(f->stack - GUARD_LEN, STACK_LEN + GUARD_LEN);
    free(f);
}

static struct gr_fiber *fiber_alloc(struct gr_loop *loop)
{
    struct gr_fiber *f = loop->idle_fibers;

    if (f) {
        loop->idle_fibers = f->next;
        loop->n_idle_fibers--;
        return f;
    }
    f = gr_zalloc(sizeof(*f));
    if (!f)
        return NULL;
    void *map = mmap(NULL, STACK_LEN + GUARD_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        free(f);
        return NULL;
    }
    if (mprotect(map, GUARD_LEN, PROT_NONE) < 0) {
        munmap(map, STACK_LEN + GUARD_LEN);
        free(f);
        return NULL;
    }
    f->stack = (char *)map + GUARD_LEN;
#ifdef FIBER_ASAN
    /* What only a suspended fiber points to is not lost. */
    __lsan_register_root_region(f->stack, STACK_LEN);
#endif
    return f;
}

static void fiber_recycle(struct gr_fiber *f)
{
    struct gr_loop *loop = f->loop;

    gr_timer_unreserve(loop);
#ifdef FIBER_TSAN
    __tsan_destroy_fiber(f->tsan);
#endif
    if (loop->n_idle_fibers >= MAX_IDLE) {
        fiber_free(f);
        return;
    }
    f->next = loop->idle_fibers;
    loop->idle_fibers = f;
    loop->n_idle_fibers++;
}

void gr_fibers_free(struct gr_loop *loop)
{
    while (loop->idle_fibers) {
        struct gr_fiber *f = loop->idle_fibers;
        loop->idle_fibers = f->next;
        fiber_free(f);
    }
    loop->n_idle_fibers = 0;
    /* A test's failed assertion jumps out of the fiber it stands in; what comes next runs in none. */
    if (current && current->loop == loop)
        current = NULL;
}

static void resume(void *arg)
{
    struct gr_fiber *f = arg;

    assert(!current); /* fibers are resumed from the loop only */
    switch_in(f);
    if (f->state == FIBER_ENDED)
        fiber_recycle(f);
}

int gr_fiber_start(struct gr_loop *loop, void (*fn)(void *arg), void *arg)
{
    if (gr_timer_reserve(loop) < 0)
        return -ENOMEM;
    struct gr_fiber *f = fiber_alloc(loop);
    if (!f) {
        gr_timer_unreserve(loop);
        return -ENOMEM;
    }
    f->loop = loop;
    f->fn = fn;
    f->arg = arg;
    f->state = FIBER_READY;
    f->woken = false;
    f->timer = (struct gr_timer){0};
    f->resume = (struct gr_defer){.fn = resume, .arg = f};
#ifdef FIBER_ASAN
    __asan_unpoison_memory_region(f->stack, STACK_LEN);
    f->fake = NULL;
#endif
#ifdef FIBER_TSAN
    f->tsan = __tsan_create_fiber(0);
#endif
    gr_fctx_make(&f->ctx, f->stack, STACK_LEN, fiber_entry, f);
    gr_loop_defer(loop, &f->resume);
    return 0;
}

struct run {
    int (*fn)(void *arg);
    void *arg;
    int result;
    bool done;
};

static void run_entry(void *arg)
{
    struct run *run = arg;

    run->result = run->fn(run->arg);
    run->done = true;
}

int gr_fiber_run(struct gr_loop *loop, int (*fn)(void *arg), void *arg)
{
    struct run run = {.fn = fn, .arg = arg};

    assert(!current);
    int r = gr_fiber_start(loop, run_entry, &run);
    if (r < 0)
        return r;
    while (!run.done)
        gr_loop_turn(loop, -1);
    return run.result;
}

/* ---- suspend and wake ---- */
void gr_fiber_suspend(void)
{
    struct gr_fiber *f = current;

    assert(f);
    if (f->woken) {
        f->woken = false;
        return;
    }
    f->state = FIBER_SUSPENDED;
    switch_out(f);
}

void gr_fiber_wake(struct gr_fiber *f)
{
    switch (f->state) {
    case FIBER_SUSPENDED:
        f->state = FIBER_READY;
        gr_loop_defer(f->loop, &f->resume);
        break;
    case FIBER_RUNNING:
        f->woken = true;
        break;
    case FIBER_READY:
    case FIBER_ENDED:
        break;
    }
}

void gr_fiber_yield(void)
{
    struct gr_fiber *f = current;

    assert(f);
    f->state = FIBER_READY;
    gr_loop_defer_later(f->loop, &f->resume);
    switch_out(f);
}
