/* Fair shares of the target between logical units: each gets the same, however many connections its initiators have. Two things are
 * shared. Of the loop's time: a unit begins at most TURN commands in a turn of the loop, those beyond wait for the next. Of the devices'
 * queues: the units that are at work share TOTAL commands under way. A unit by itself notices neither. */
#include "common/cleanup.h"
#include "iscsi-target/scsi.h"

#define TURN 64u
#define TOTAL 128u
#define LEAST 16u /* of TOTAL, with many at work */

static bool idle(const struct tgt_share *h)
{
    return !h->running && !h->waiters;
}

static bool may_begin(const struct tgt_server *s, struct tgt_share *h)
{
    if (h->turn != gr_loop_turns(s->loop)) {
        h->turn = gr_loop_turns(s->loop);
        h->begun = 0;
    }
    return h->begun < TURN && h->running < GR_MAX(TOTAL / GR_MAX(s->n_sharing, 1u), LEAST);
}

static void begin(struct tgt_share *h, struct tgt_task *t)
{
    h->begun++;
    h->running++;
    t->shared = true;
}

/* The next turn: whoever waits begins, one after another of each unit. */
static void turn(void *arg)
{
    struct tgt_server *s = arg;
    bool more = true, waiting = false;
    while (more) {
        more = waiting = false;
        for (struct tgt_lu *lu = s->lus; lu; lu = lu->next) {
            struct tgt_share *h = &lu->share;
            struct tgt_task *t = h->waiters;
            if (!t)
                continue;
            if (!may_begin(s, h)) {
                waiting |= h->begun >= TURN; /* else it goes on when a command of it ends */
                continue;
            }
            tgt_queue_remove(&h->waiters, &h->waiters_last, t);
            t->waiting_share = false;
            begin(h, t);
            tgt_scsi_resume(t);
            more = true;
        }
    }
    if (waiting)
        gr_loop_defer_later(s->loop, &s->share_turn);
}

static void next_turn(struct tgt_server *s)
{
    s->share_turn.fn = turn;
    s->share_turn.arg = s;
    gr_loop_defer_later(s->loop, &s->share_turn);
}

bool tgt_share_pass(struct tgt_task *t)
{
    struct tgt_server *s = t->lu->server;
    struct tgt_share *h = &t->lu->share;
    s->n_sharing += idle(h);
    if (!h->waiters && may_begin(s, h)) {
        begin(h, t);
        return true;
    }
    t->waiting_share = true;
    tgt_queue_add(&h->waiters, &h->waiters_last, t);
    next_turn(s);
    return false;
}

static void maybe_idle(struct tgt_server *s, const struct tgt_share *h)
{
    s->n_sharing -= idle(h);
}

void tgt_share_done(struct tgt_task *t)
{
    struct tgt_server *s = t->lu->server;
    struct tgt_share *h = &t->lu->share;
    t->shared = false;
    h->running--;
    maybe_idle(s, h);
    if (h->waiters)
        next_turn(s);
}

void tgt_share_leave(struct tgt_task *t)
{
    struct tgt_share *h = &t->lu->share;
    tgt_queue_remove(&h->waiters, &h->waiters_last, t);
    t->waiting_share = false;
    maybe_idle(t->lu->server, h);
}
