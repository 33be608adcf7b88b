#include "backup-proxy/pipe.h"
#include <string.h>

struct pipe_run {
    const struct bp_pipe_ops *ops;
    void *arg;
    struct gr_err *err;
    int status;
    bool ended;
    uint64_t taken, committed;
    unsigned live;
    struct gr_fmutex take;
    struct gr_fqueue turn;
    struct gr_fqueue finished;
};
struct pipe_lane {
    struct pipe_run *run;
    void *slot;
};

static void pipe_stop(struct pipe_run *p, int status, const struct gr_err *err)
{
    p->ended = true;
    if (p->status < 0)
        return;
    p->status = status;
    if (p->err)
        *p->err = *err;
    if (p->err && !err->code)
        gr_fail(p->err, status, "%s", gr_code_text(status));
}

struct pipe_work {
    const struct bp_pipe_ops *ops;
    void *slot;
};
static int pipe_work(void *arg)
{
    struct pipe_work *w = arg;
    return w->ops->work(w->slot);
}

/* Take, load and work one item; its ticket comes back in *ret_ticket. 1 done, 0 no more, negative code. */
static int pipe_one(struct pipe_lane *l, uint64_t *ret_ticket, struct gr_err *err)
{
    struct pipe_run *p = l->run;
    gr_fmutex_lock(&p->take);
    int r = p->ended ? 0 : p->ops->next(p->arg, l->slot, err);
    if (r > 0)
        *ret_ticket = p->taken++;
    else
        p->ended = true;
    gr_fmutex_unlock(&p->take);
    if (r <= 0)
        return r;
    int s = p->ops->load ? p->ops->load(p->arg, l->slot, err) : 0;
    if (s >= 0 && p->ops->work && p->status >= 0) {
        struct pipe_work w = {p->ops, l->slot};
        s = gr_fiber_work(pipe_work, &w);
    }
    while (p->committed != *ret_ticket)
        gr_fqueue_wait(&p->turn);
    if (s >= 0 && p->status >= 0 && p->ops->commit)
        s = p->ops->commit(p->arg, l->slot, err);
    if (s < 0)
        pipe_stop(p, s, err); /* before the next one's turn: its commit must not run */
    p->committed++;
    gr_fqueue_wake_all(&p->turn);
    return s < 0 || p->status < 0 ? 0 : 1;
}

static void pipe_lane(void *arg)
{
    struct pipe_lane *l = arg;
    struct pipe_run *p = l->run;
    struct gr_err err = {0};
    uint64_t ticket = 0;
    int r;
    do
        r = pipe_one(l, &ticket, &err);
    while (r > 0);
    if (r < 0)
        pipe_stop(p, r, &err);
    if (--p->live == 0)
        gr_fqueue_wake_all(&p->finished);
}

#define PIPE_MAX_LANES 64
int bp_pipe_run(const struct bp_pipe_ops *ops, void *arg, void *slots, size_t slot_size, unsigned n_slots, struct gr_err *err)
{
    struct pipe_run p = {.ops = ops, .arg = arg, .err = err};
    struct pipe_lane lanes[PIPE_MAX_LANES];
    if (n_slots == 0 || n_slots > PIPE_MAX_LANES)
        return gr_fail(err, -EINVAL, "a pipeline has 1 to %d lanes, not %u", PIPE_MAX_LANES, n_slots);
    for (unsigned i = 0; i < n_slots; i++) {
        lanes[i] = (struct pipe_lane){&p, (char *)slots + i * slot_size};
        int r = gr_fiber_start(gr_fiber_loop(), pipe_lane, &lanes[i]);
        if (r < 0) {
            p.ended = true;
            p.status = gr_fail(err, r, "cannot start a worker");
            break;
        }
        p.live++;
    }
    while (p.live > 0)
        gr_fqueue_wait(&p.finished);
    return p.status;
}
