/* Timers: a binary heap of the callers' timers, earliest first. */
#include "common/loop_int.h"
#include <assert.h>
#include <stdlib.h>

static void put_at(struct gr_loop *loop, size_t pos, struct gr_timer *t)
{
    loop->heap[pos] = t;
    t->heap_pos = pos;
}

static void sift_up(struct gr_loop *loop, size_t pos)
{
    struct gr_timer *t = loop->heap[pos];

    for (; pos > 1 && loop->heap[pos / 2]->due_ns > t->due_ns; pos /= 2)
        put_at(loop, pos, loop->heap[pos / 2]);
    put_at(loop, pos, t);
}

static void sift_down(struct gr_loop *loop, size_t pos)
{
    struct gr_timer *t = loop->heap[pos];

    for (;;) {
        size_t child = pos * 2;
        if (child > loop->heap_len)
            break;
        if (child < loop->heap_len && loop->heap[child + 1]->due_ns < loop->heap[child]->due_ns)
            child++;
        if (loop->heap[child]->due_ns >= t->due_ns)
            break;
        put_at(loop, pos, loop->heap[child]);
        pos = child;
    }
    put_at(loop, pos, t);
}

/* Room for @n timers. */
static int heap_grow(struct gr_loop *loop, size_t n)
{
    if (n < loop->heap_cap)
        return 0;
    size_t cap = loop->heap_cap ? loop->heap_cap * 2 : 32;
    while (cap <= n)
        cap *= 2;
    struct gr_timer **heap = gr_realloc(loop->heap, cap * sizeof(*heap));
    if (!heap)
        return -ENOMEM;
    loop->heap = heap;
    loop->heap_cap = cap;
    return 0;
}

int gr_timer_reserve(struct gr_loop *loop)
{
    int r = heap_grow(loop, loop->heap_len + loop->heap_reserved + 1);

    if (r == 0)
        loop->heap_reserved++;
    return r;
}

void gr_timer_unreserve(struct gr_loop *loop)
{
    loop->heap_reserved--;
}

static void insert(struct gr_loop *loop, struct gr_timer *t, uint64_t after_ns)
{
    uint64_t now = gr_loop_now_ns(loop);
    uint64_t due = after_ns > UINT64_MAX - 1 - now ? UINT64_MAX - 1 : now + after_ns;

    if (t->heap_pos) {
        assert(loop->heap[t->heap_pos] == t);
        bool earlier = due < t->due_ns;
        t->due_ns = due;
        if (earlier)
            sift_up(loop, t->heap_pos);
        else
            sift_down(loop, t->heap_pos);
        gr_gang_rouse(loop);
        return;
    }
    t->due_ns = due;
    loop->heap_len++;
    put_at(loop, loop->heap_len, t);
    sift_up(loop, loop->heap_len);
    gr_gang_rouse(loop);
}

int gr_timer_arm(struct gr_loop *loop, struct gr_timer *t, uint64_t after_ns)
{
    if (!t->heap_pos) {
        /* Keeps room for every reserved timer, armed or not. */
        int r = heap_grow(loop, loop->heap_len + loop->heap_reserved + 1);
        if (r < 0)
            return r;
    }
    insert(loop, t, after_ns);
    return 0;
}

void gr_timer_arm_reserved(struct gr_loop *loop, struct gr_timer *t, uint64_t after_ns)
{
    assert(t->heap_pos || loop->heap_len + 1 < loop->heap_cap);
    insert(loop, t, after_ns);
}

void gr_timer_cancel(struct gr_loop *loop, struct gr_timer *t)
{
    size_t pos = t->heap_pos;

    if (!pos)
        return;
    assert(loop->heap[pos] == t);
    t->heap_pos = 0;
    struct gr_timer *last = loop->heap[loop->heap_len--];
    if (last == t)
        return;
    put_at(loop, pos, last);
    sift_up(loop, pos);
    sift_down(loop, last->heap_pos);
}

uint64_t gr_timers_next_ns(const struct gr_loop *loop)
{
    return loop->heap_len ? loop->heap[1]->due_ns : UINT64_MAX;
}

void gr_timers_run(struct gr_loop *loop)
{
    if (!loop->heap_len)
        return;
    /* One reading of the clock: a timer that re-arms itself with 0 waits for the next turn. */
    uint64_t now = gr_loop_now_ns(loop);
    for (size_t budget = loop->heap_len; budget && loop->heap_len && loop->heap[1]->due_ns <= now; budget--) {
        struct gr_timer *t = loop->heap[1];
        gr_timer_cancel(loop, t);
        t->fn(t->arg);
    }
}
