/* Life of a session: from the hand-over of a logged-in socket to the release of its memory. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/target_int.h"
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#define NOP_AFTER_NS (15ull * 1000000000)  /* silence before we ask */
#define DEAD_AFTER_NS (60ull * 1000000000) /* silence before we give up */

uint32_t tgt_sess_maxcmdsn(const struct tgt_sess *sess)
{
    return sess->expcmdsn + (TGT_WINDOW - sess->outstanding) - 1;
}

struct tgt_misc *tgt_misc_new(struct tgt_sess *sess, enum tgt_opcode op, uint8_t flags, uint32_t itt, uint32_t len)
{
    struct tgt_misc *m = gr_alloc(sizeof *m + len);
    if (!m)
        return NULL;
    m->next = NULL;
    m->len = len;
    m->last = false;
    m->takes_statsn = !(op == TGT_OP_NOP_IN && itt == TGT_TAG_NONE);
    tgt_bhs_start(m->bhs, op, flags, itt, len);
    sess->n_misc++;
    return m;
}

void tgt_misc_send(struct tgt_sess *sess, struct tgt_misc *m)
{
    if (sess->fd < 0) {
        free(m);
        return;
    }
    if (sess->tx_misc_last)
        sess->tx_misc_last->next = m;
    else
        sess->tx_misc = m;
    sess->tx_misc_last = m;
    tgt_tx_kick(sess);
}

void tgt_sess_reject(struct tgt_sess *sess, const uint8_t *bhs, enum tgt_reject reason)
{
    struct tgt_misc *m = tgt_misc_new(sess, TGT_OP_REJECT, TGT_FINAL, TGT_TAG_NONE, TGT_BHS_LEN);
    if (!m)
        return;
    m->bhs[2] = (uint8_t)reason;
    memcpy(m->data, bhs, TGT_BHS_LEN);
    tgt_misc_send(sess, m);
}

void tgt_sess_ask_logout(struct tgt_sess *sess)
{
    struct tgt_misc *m = sess->logout_sent ? NULL : tgt_misc_new(sess, TGT_OP_ASYNC, TGT_FINAL, TGT_TAG_NONE, 0);
    if (!m)
        return;
    sess->logout_sent = true;
    m->bhs[36] = 1;                 /* target requests logout */
    gr_put_be16(m->bhs + 42, 3);    /* within so many seconds */
    tgt_misc_send(sess, m);
}

void tgt_sess_ua(struct tgt_sess *sess, uint16_t ua)
{
    for (unsigned i = 0; i < sess->n_ua; i++)
        if (sess->ua[i] == ua)
            return;
    if (sess->n_ua < TGT_UA_MAX)
        sess->ua[sess->n_ua++] = ua;
}

void tgt_stats_add(struct tgt_sess_stats *sum, const struct tgt_sess_stats *st)
{
    sum->reads += st->reads;
    sum->writes += st->writes;
    sum->read_bytes += st->read_bytes;
    sum->write_bytes += st->write_bytes;
    sum->others += st->others;
    sum->errors += st->errors;
    tgt_latency_merge(&sum->read_latency, &st->read_latency);
    tgt_latency_merge(&sum->write_latency, &st->write_latency);
}

static void sess_free(void *arg)
{
    struct tgt_sess *sess = arg;
    struct tgt_server *s = sess->server;
    gr_loop_defer_cancel(s->loop, &sess->flush);
    tgt_stats_add(&sess->lu->stats, &sess->stats);
    if (sess->listing)
        gr_buf_done(sess->listing);
    free(sess->listing);
    free(sess->text);
    free(sess->tasks);
    free(sess->tx);
    free(sess->rx_buf);
    tgt_lu_user_put(sess->lu);
    s->busy_fibers--;
    free(sess);
    gr_fqueue_wake_all(&s->changed);
}

/* The memory can go once no task is with the device and nobody holds it. */
static void maybe_reap(struct tgt_sess *sess)
{
    if (sess->fd < 0 && !sess->running && !sess->holds)
        gr_loop_defer(sess->server->loop, &sess->reap);
}

void tgt_sess_unhold(struct tgt_sess *sess)
{
    sess->holds--;
    maybe_reap(sess);
}

static void release_reservation(struct tgt_sess *sess)
{
    if (sess->lu->reserved == sess)
        sess->lu->reserved = NULL;
}

void tgt_sess_close(struct tgt_sess *sess, const char *why)
{
    struct tgt_server *s = sess->server;
    if (sess->fd < 0)
        return;
    sess->why = why;
    gr_watch_del(s->loop, &sess->watch);
    close(sess->fd);
    sess->fd = -1;
    if (sess->prev)
        sess->prev->next = sess->next;
    else
        s->sessions = sess->next;
    if (sess->next)
        sess->next->prev = sess->prev;
    s->n_sessions--;
    sess->lu->n_sessions--;
    release_reservation(sess);
    tgt_tx_drop(sess);
    free(gr_take(sess->rx_misc));
    sess->rx_task = NULL;
    for (unsigned i = 0; i < TGT_TASKS; i++) {
        struct tgt_task *t = &sess->tasks[i];
        if (t->state == TASK_REPLY)
            tgt_task_release(t);
        else if (t->state != TASK_FREE)
            tgt_task_abort(t, NULL);
    }
    tgt_note(s, 6, "session %u of %s (%s) on '%s' ended: %s", sess->id, sess->initiator, sess->address, sess->lu->disk, why);
    gr_fqueue_wake_all(&s->changed);
    maybe_reap(sess);
}

static void readable(void *arg, int events)
{
    struct tgt_sess *sess = arg;
    if (events & (POLLIN | POLLHUP | POLLERR))
        tgt_rx_ready(sess);
    if (sess->fd >= 0 && (events & POLLOUT))
        tgt_tx_flush(sess);
}

static void flush(void *arg)
{
    tgt_tx_flush(arg);
}

static int allocate(struct tgt_sess *sess)
{
    sess->tasks = gr_zalloc(TGT_TASKS * sizeof *sess->tasks);
    sess->tx = gr_zalloc(TGT_TX_PDUS * sizeof *sess->tx);
    sess->rx_buf = gr_alloc_aligned(4096, TGT_RX_BYTES);
    if (!sess->tasks || !sess->tx || !sess->rx_buf)
        return -ENOMEM;
    for (unsigned i = TGT_TASKS; i-- > 0;) {
        struct tgt_task *t = &sess->tasks[i];
        t->sess = sess;
        t->lu = sess->lu;
        t->index = (uint16_t)i;
        t->hash_next = sess->free_tasks;
        sess->free_tasks = t;
    }
    sess->n_free = TGT_TASKS;
    return 0;
}

/* The last login response: with it the full feature phase begins. */
static int send_login_response(struct tgt_sess *sess, const struct tgt_sess_start *start)
{
    struct tgt_misc *m = tgt_misc_new(sess, TGT_OP_LOGIN_RSP, start->flags, start->itt, start->text_len);
    if (!m)
        return -ENOMEM;
    memcpy(m->bhs + 8, sess->isid, TGT_ISID_LEN);
    gr_put_be16(m->bhs + 14, sess->tsih);
    if (start->text_len)
        memcpy(m->data, start->text, start->text_len);
    struct tgt_params digests = sess->params;
    sess->params.header_digest = sess->params.data_digest = 0; /* they begin after this PDU */
    tgt_misc_send(sess, m);
    tgt_tx_flush(sess);
    sess->params = digests;
    return sess->fd < 0 ? -EPIPE : 0;
}

/* A session of the same initiator port to the same target is replaced (RFC 7143 6.3.5). */
static void reinstate(struct tgt_server *s, const struct tgt_sess_start *start)
{
    struct tgt_sess *next;
    for (struct tgt_sess *o = s->sessions; o; o = next) {
        next = o->next;
        if (o->lu == start->lu && !memcmp(o->isid, start->isid, TGT_ISID_LEN) && !strcmp(o->initiator, start->initiator))
            tgt_sess_close(o, "replaced by a new login of the same initiator port");
    }
}

static void sess_link(struct tgt_server *s, struct tgt_sess *sess)
{
    sess->next = s->sessions;
    if (sess->next)
        sess->next->prev = sess;
    s->sessions = sess;
    s->n_sessions++;
    s->busy_fibers++;
    sess->lu->n_sessions++;
}

int tgt_sess_new(struct tgt_server *s, const struct tgt_sess_start *start)
{
    struct tgt_sess *sess = gr_zalloc(sizeof *sess);
    if (!sess) {
        close(start->fd);
        tgt_lu_user_put(start->lu);
        return -ENOMEM;
    }
    sess->server = s;
    sess->lu = start->lu;
    sess->fd = start->fd;
    sess->params = start->params;
    sess->cid = start->cid;
    memcpy(sess->isid, start->isid, TGT_ISID_LEN);
    snprintf(sess->initiator, sizeof sess->initiator, "%s", start->initiator);
    snprintf(sess->address, sizeof sess->address, "%s", start->address);
    sess->statsn = start->statsn;
    sess->expcmdsn = start->cmdsn;
    sess->id = ++s->next_id;
    sess->tsih = ++s->next_tsih ? s->next_tsih : ++s->next_tsih;
    sess->started_ns = sess->heard_ns = gr_loop_now_ns(s->loop);
    sess->flush = (struct gr_defer){.fn = flush, .arg = sess};
    sess->reap = (struct gr_defer){.fn = sess_free, .arg = sess};
    sess->watch = (struct gr_watch){.fn = readable, .arg = sess, .fd = sess->fd, .events = POLLIN};
    reinstate(s, start);
    int r = allocate(sess);
    if (!r)
        r = gr_watch_add(s->loop, &sess->watch);
    if (r < 0) {
        close(sess->fd);
        free(sess->tasks);
        free(sess->tx);
        free(sess->rx_buf);
        free(sess);
        tgt_lu_user_put(start->lu);
        return r;
    }
    sess_link(s, sess);
    tgt_note(s, 6, "session %u: %s (%s) logged in to '%s'", sess->id, sess->initiator, sess->address, sess->lu->disk);
    r = send_login_response(sess, start);
    if (r < 0)
        tgt_sess_close(sess, "the login response could not be sent");
    return r;
}

/* Called every few seconds for each session: ask the silent, drop the dead. */
void tgt_sess_tick(struct tgt_sess *sess)
{
    uint64_t silent = gr_loop_now_ns(sess->server->loop) - sess->heard_ns;
    if (silent > DEAD_AFTER_NS && sess->nop_outstanding && !sess->paused) {
        tgt_sess_close(sess, "the initiator no longer answers");
        return;
    }
    if (silent < NOP_AFTER_NS || sess->closing || sess->nop_outstanding > 3)
        return;
    struct tgt_misc *m = tgt_misc_new(sess, TGT_OP_NOP_IN, TGT_FINAL, TGT_TAG_NONE, 0);
    if (!m)
        return;
    gr_put_be32(m->bhs + 20, ++sess->nop_outstanding);
    tgt_misc_send(sess, m);
}
