/* Life of a connection: from the hand-over of a logged-in socket to the release of its memory. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/target_int.h"
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#define NOP_AFTER_NS (15ull * 1000000000)  /* silence before we ask */
#define DEAD_AFTER_NS (60ull * 1000000000) /* silence before we give up */
#define LOST_AFTER_NS (5ull * 1000000000)  /* silence before data that was asked for counts as lost */

struct tgt_misc *tgt_misc_new(struct tgt_conn *c, enum tgt_opcode op, uint8_t flags, uint32_t itt, uint32_t len)
{
    struct tgt_misc *m = gr_alloc(sizeof *m + len);
    if (!m)
        return NULL;
    memset(m, 0, sizeof *m);
    m->len = len;
    m->takes_statsn = !(op == TGT_OP_NOP_IN && itt == TGT_TAG_NONE);
    tgt_bhs_start(m->bhs, op, flags, itt, len);
    c->n_misc++;
    return m;
}

void tgt_misc_send(struct tgt_conn *c, struct tgt_misc *m)
{
    if (c->fd < 0) {
        free(m);
        return;
    }
    if (c->tx_misc_last)
        c->tx_misc_last->next = m;
    else
        c->tx_misc = m;
    c->tx_misc_last = m;
    tgt_tx_kick(c);
}

void tgt_conn_reject(struct tgt_conn *c, const uint8_t *bhs, enum tgt_reject reason)
{
    struct tgt_misc *m = tgt_misc_new(c, TGT_OP_REJECT, TGT_FINAL, TGT_TAG_NONE, TGT_BHS_LEN);
    if (!m)
        return;
    m->bhs[2] = (uint8_t)reason;
    memcpy(m->data, bhs, TGT_BHS_LEN);
    tgt_misc_send(c, m);
}

struct tgt_conn *tgt_conn_find(const struct tgt_sess *sess, uint16_t cid)
{
    struct tgt_conn *c = sess->conns;
    while (c && c->cid != cid)
        c = c->next;
    return c;
}

/* ---- end ---- */

static void conn_free(void *arg)
{
    struct tgt_conn *c = arg;
    struct tgt_sess *sess = c->sess;
    gr_loop_defer_cancel(c->sess->loop, &c->flush);
    if (c->listing)
        gr_buf_done(c->listing);
    free(c->listing);
    gr_buf_done(&c->parked);
    gr_buf_done(&c->replay);
    free(c->text);
    free(c->tx);
    free(c->rx_buf);
    free(c);
    tgt_sess_unhold(sess);
}

static void maybe_reap(struct tgt_conn *c)
{
    if (c->fd < 0 && !c->holds)
        gr_loop_defer(c->sess->loop, &c->reap);
}

void tgt_conn_unhold(struct tgt_conn *c)
{
    c->holds--;
    maybe_reap(c);
}

static void unlink_conn(struct tgt_conn *c)
{
    struct tgt_conn **p = &c->sess->conns;
    while (*p != c)
        p = &(*p)->next;
    *p = c->next;
    c->sess->n_conns--;
}

void tgt_conn_close(struct tgt_conn *c, enum tgt_leave tasks, const char *why)
{
    struct tgt_sess *sess = c->sess;
    if (c->fd < 0)
        return;
    gr_watch_del(c->sess->loop, &c->watch);
    while (atomic_load(&c->in_call)) /* another thread is in a system call that does not wait for anything */
        sched_yield();
    close(c->fd);
    c->fd = -1;
    unlink_conn(c);
    tgt_tx_drop(c);
    free(gr_take(c->rx_request));
    c->rx_task = NULL;
    c->rx_to = NULL;
    for (unsigned i = 0; i < TGT_TASKS; i++)
        if (sess->tasks[i].state != TASK_FREE && sess->tasks[i].conn == c)
            tgt_task_leave(&sess->tasks[i], tasks);
    tgt_requests_leave(c, tasks);
    tgt_fence_look(sess);
    maybe_reap(c);
    if (sess->ended)
        return;
    tgt_note(c->server, 6, "session %u: connection %u from %s ended: %s", sess->id, c->cid, c->address, why);
    if (tasks == LEAVE_KEEP) /* until then they may be reassigned */
        tgt_sess_retain(sess);
    else if (!sess->conns)
        tgt_sess_close(sess, why);
}

void tgt_conn_lost(struct tgt_conn *c, const char *why)
{
    if (c->fd < 0)
        return;
    if (c->params.error_recovery_level == 2 && !c->closing)
        tgt_conn_close(c, c->params.time2retain ? LEAVE_KEEP : LEAVE_DROP, why);
    else
        tgt_sess_close(c->sess, why);
}

/* ---- beginning ---- */

static void readable(void *arg, int events)
{
    struct tgt_conn *c = arg;
    c->holds++; /* while the gang is open, another thread may close it */
    if (c->flush.armed) /* the initiator waits for these, and what it has sent since may take us long */
        tgt_tx_turn(c);
    if (c->fd >= 0 && (events & (POLLIN | POLLHUP | POLLERR)))
        tgt_rx_turn(c);
    if (c->fd >= 0 && (events & POLLOUT))
        tgt_tx_turn(c);
    tgt_conn_unhold(c);
}

static void flush(void *arg)
{
    struct tgt_conn *c = arg;
    c->holds++;
    tgt_tx_turn(c);
    tgt_conn_unhold(c);
}

/* The last login response: with it the full feature phase begins. */
static int send_login_response(struct tgt_conn *c, const struct tgt_sess_start *start)
{
    struct tgt_misc *m = tgt_misc_new(c, TGT_OP_LOGIN_RSP, start->flags, start->itt, start->text_len);
    if (!m)
        return -ENOMEM;
    memcpy(m->bhs + 8, c->sess->isid, TGT_ISID_LEN);
    gr_put_be16(m->bhs + 14, c->sess->tsih);
    if (start->text_len)
        memcpy(m->data, start->text, start->text_len);
    struct tgt_params agreed = c->params;
    c->params.header_digest = c->params.data_digest = 0; /* they begin after this PDU */
    tgt_misc_send(c, m);
    tgt_tx_flush(c);
    c->params = agreed;
    return c->fd < 0 ? -EPIPE : 0;
}

static struct tgt_conn *allocate(void)
{
    struct tgt_conn *c = gr_zalloc(sizeof *c);
    if (!c)
        return NULL;
    c->tx = gr_zalloc(TGT_TX_PDUS * sizeof *c->tx);
    c->rx_buf = gr_alloc_aligned(4096, TGT_RX_BYTES);
    if (c->tx && c->rx_buf)
        return c;
    free(c->tx);
    free(c->rx_buf);
    free(c);
    return NULL;
}

int tgt_conn_new(struct tgt_sess *sess, const struct tgt_sess_start *start, struct tgt_conn **ret)
{
    struct tgt_server *s = sess->server;
    struct tgt_conn *c = allocate();
    if (!c)
        return -ENOMEM;
    c->sess = sess;
    c->server = s;
    c->cid = start->cid;
    snprintf(c->address, sizeof c->address, "%s", start->address);
    c->fd = start->fd;
    c->statsn = start->statsn;
    c->acked = start->acked;
    c->heard_ns = gr_loop_now_ns(s->loop);
    c->params = sess->params; /* what holds for the session, and this connection's own: */
    c->params.header_digest = start->params.header_digest;
    c->params.data_digest = start->params.data_digest;
    c->params.max_send_dsl = start->params.max_send_dsl;
    c->flush = (struct gr_defer){.fn = flush, .arg = c};
    c->reap = (struct gr_defer){.fn = conn_free, .arg = c};
    c->watch = (struct gr_watch){.fn = readable, .arg = c, .fd = c->fd, .events = POLLIN};
    int r = gr_watch_add(c->sess->loop, &c->watch);
    if (r < 0) {
        free(c->tx);
        free(c->rx_buf);
        free(c);
        return r;
    }
    c->next = sess->conns;
    sess->conns = c;
    sess->n_conns++;
    sess->holds++;
    snprintf(sess->address, sizeof sess->address, "%s", start->address);
    if (ret)
        *ret = c;
    else if (send_login_response(c, start) < 0)
        tgt_conn_lost(c, "the login response could not be sent");
    return 0;
}

/* ---- care ---- */

/* Data was asked for and nothing comes: the R2T or the data may be lost. */
static void ask_again(struct tgt_conn *c)
{
    for (unsigned i = 0; i < TGT_TASKS; i++) {
        struct tgt_task *t = &c->sess->tasks[i];
        if (t->state == TASK_COLLECT && t->conn == c && !t->aborted && !t->failed_early && !t->in_tx && !t->in_ring)
            tgt_task_resend_r2ts(t);
    }
}

void tgt_conn_tick(struct tgt_conn *c)
{
    uint64_t silent = gr_loop_now_ns(c->server->loop) - c->heard_ns;
    if (silent > DEAD_AFTER_NS && c->nop_outstanding && !c->paused) {
        tgt_conn_lost(c, "the initiator no longer answers");
        return;
    }
    if (c->params.error_recovery_level && silent >= LOST_AFTER_NS && c->rx_phase == RX_HEADER)
        ask_again(c);
    if (silent >= NOP_AFTER_NS)
        tgt_conn_ping(c);
}

void tgt_conn_ping(struct tgt_conn *c)
{
    if (c->closing || c->nop_outstanding > 3)
        return;
    struct tgt_misc *m = tgt_misc_new(c, TGT_OP_NOP_IN, TGT_FINAL, TGT_TAG_NONE, 0);
    if (!m)
        return;
    gr_put_be32(m->bhs + 20, ++c->nop_outstanding);
    tgt_misc_send(c, m);
}
