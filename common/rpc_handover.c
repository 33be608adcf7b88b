/* Connections of a server that go on with another: at rest, at any byte. A request that was read and not begun is written down again. */
#include "common/cleanup.h"
#include "common/rpc_int.h"
#include <string.h>

static unsigned at_work(const struct gr_rpc_server *s, const struct gr_rpc_call *self)
{
    unsigned n = 0;
    for (const struct rpc_conn *c = s->conns; c; c = c->next)
        for (const struct gr_rpc_call *call = c->peer ? NULL : c->calls; call; call = call->next)
            n += call != self;
    return n;
}

unsigned gr_rpc_server_rest(struct gr_rpc_server *s, const struct gr_rpc_call *self, uint64_t timeout_ms)
{
    uint64_t deadline = gr_loop_now_ns(s->loop) + timeout_ms * 1000000;
    s->resting = true;
    while (at_work(s, self) && gr_loop_now_ns(s->loop) < deadline)
        gr_fiber_sleep_ms(1);
    return at_work(s, self);
}

void gr_rpc_server_resume(struct gr_rpc_server *s)
{
    s->resting = false;
    gr_fqueue_wake_all(&s->resumed);
}

static bool may_leave(const struct rpc_conn *c)
{
    return !c->peer && !c->gone && !c->wire.dead && !c->n_calls;
}

int gr_rpc_server_bequeath(struct gr_rpc_server *s, int (*fn)(void *arg, const struct gr_rpc_left *c), void *arg)
{
    int r = 0;
    for (struct rpc_conn *c = s->conns; c && r == 0; c = c->next) {
        gr_auto_buf struct gr_buf unread = {0};
        if (!may_leave(c) || c->closers)
            continue;
        if (c->held)
            r = rpc_frame_encode(c->held, &unread);
        if (r == 0)
            r = gr_buf_add(&unread, c->wire.in.data, c->wire.in.len);
        if (r == 0)
            r = fn(arg, &(struct gr_rpc_left){c->id, c->wire.rfd, unread.data, unread.len});
        if (r == 0)
            rpc_wire_leave(&c->wire);
    }
    gr_fqueue_wake_all(&s->resumed);
    return r;
}

int gr_rpc_server_inherit(struct gr_rpc_server *s, const struct gr_rpc_left *left)
{
    struct rpc_conn *c = NULL;
    uint64_t last = s->last_id;
    int r = rpc_conn_new(s, left->fd, &c);
    if (r < 0)
        return r;
    c->id = left->id; /* its fiber has not run yet */
    s->last_id = GR_MAX(last, left->id);
    r = gr_buf_add(&c->wire.in, left->unread, left->len);
    if (r < 0)
        rpc_wire_shutdown(&c->wire);
    return r;
}

static struct rpc_conn *find(const struct gr_rpc_server *s, uint64_t id)
{
    struct rpc_conn *c = s->conns;
    while (c && c->id != id)
        c = c->next;
    return c;
}

bool gr_rpc_may_leave(const struct gr_rpc_server *s, uint64_t id)
{
    const struct rpc_conn *c = find(s, id);
    return c && may_leave(c);
}

static bool take_out(struct rpc_closer **list, void (*fn)(void *arg), void *arg)
{
    for (struct rpc_closer **p = list; *p; p = &(*p)->next) {
        struct rpc_closer *o = *p;
        if (o->fn != fn || o->arg != arg)
            continue;
        *p = o->next;
        free(o);
        return true;
    }
    return false;
}

bool gr_rpc_untie(struct gr_rpc_server *s, uint64_t id, void (*fn)(void *arg), void *arg)
{
    struct rpc_conn *c = find(s, id);
    bool done = c && take_out(&c->closers, fn, arg);
    for (struct gr_rpc_call *call = c ? c->calls : NULL; call && !done; call = call->next)
        done = take_out(&call->closers, fn, arg);
    return done;
}

int gr_rpc_tie(struct gr_rpc_server *s, uint64_t id, void (*fn)(void *arg), void *arg)
{
    struct rpc_conn *c = find(s, id);
    struct rpc_closer *o = c && !c->gone && !c->wire.dead ? gr_alloc(sizeof(*o)) : NULL;
    if (!o)
        return c && !c->gone && !c->wire.dead ? -ENOMEM : -ENOENT;
    *o = (struct rpc_closer){fn, arg, c->closers};
    c->closers = o;
    return 0;
}
