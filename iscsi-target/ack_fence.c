/* The response fence (RFC 7143 4.2.2.3): with several connections to a session, what is sent on one may overtake what was sent on another. So the
 * response to a function that ends many tasks waits until every other connection has acknowledged the statuses sent there, and
 * statuses on the others wait until that response is acknowledged. NOP-Ins ask for it. A connection that ends holds nothing up. */
#include "common/cleanup.h"
#include "iscsi-target/target_int.h"

#define NOT_YET (1u << 30) /* ahead of every StatSN that can be outstanding: the response has not got its own */

static void fence(struct tgt_conn *c, uint32_t statsn)
{
    c->fenced = true;
    c->fence = statsn;
}

/* Does anything that was sent on another connection wait to be acknowledged? Those are asked. */
static bool raise_fence(struct tgt_conn *mine)
{
    bool any = false;
    for (struct tgt_conn *c = mine->sess->conns; c; c = c->next) {
        if (c == mine || c->acked == c->statsn)
            continue;
        fence(c, c->statsn);
        tgt_conn_ping(c);
        any = true;
    }
    return any;
}

bool tgt_fence_hold(struct tgt_tmf_wait *w)
{
    struct tgt_sess *sess = w->conn->sess;
    if (w->conn->fd < 0 || !raise_fence(w->conn))
        return false;
    w->next = NULL;
    if (sess->fenced_last)
        sess->fenced_last->next = w;
    else
        sess->fenced = w;
    sess->fenced_last = w;
    return true;
}

void tgt_fence_response(struct tgt_conn *c, struct tgt_misc *m)
{
    if (c->sess->n_conns < 2)
        return;
    m->fences = true;
    c->sess->first = c;
    fence(c, c->statsn + NOT_YET);
}

void tgt_fence_sent(struct tgt_conn *c)
{
    fence(c, c->statsn);
    tgt_conn_ping(c);
}

void tgt_fence_look(struct tgt_sess *sess)
{
    bool any = false, first = false;
    for (struct tgt_conn *c = sess->conns; c; c = c->next) {
        any |= c->fenced;
        first |= c == sess->first && c->fenced;
    }
    if (sess->first && !first) {
        sess->first = NULL;
        for (struct tgt_conn *c = sess->conns; c; c = c->next)
            tgt_tx_kick(c);
    }
    while (!any && sess->fenced) {
        struct tgt_tmf_wait *w = sess->fenced;
        sess->fenced = w->next;
        if (!sess->fenced)
            sess->fenced_last = NULL;
        tgt_tmf_answer(w);
    }
}

void tgt_fence_acked(struct tgt_conn *c)
{
    if (tgt_sn_lt(c->acked, c->fence))
        return;
    c->fenced = false;
    tgt_fence_look(c->sess);
}
