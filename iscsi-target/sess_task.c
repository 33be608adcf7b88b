/* A task: its place, its buffer and the wait for one, its end. What arrives for it is sess_cmd.c. */
#include "common/cleanup.h"
#include "iscsi-target/scsi.h"
#include <stdlib.h>

static struct tgt_task **bucket(struct tgt_sess *sess, uint32_t itt)
{
    return &sess->hash[(itt ^ itt >> 9 ^ itt >> 18) % TGT_TASKS];
}

struct tgt_task *tgt_task_find(struct tgt_sess *sess, uint32_t itt)
{
    struct tgt_task *t = *bucket(sess, itt);
    while (t && t->itt != itt)
        t = t->hash_next;
    return t;
}

struct tgt_task *tgt_task_blank(struct tgt_sess *sess, uint32_t itt)
{
    struct tgt_task *t = sess->free_tasks;
    t->conn = NULL;
    sess->free_tasks = t->hash_next;
    sess->n_free--;
    t->itt = itt;
    t->immediate = false;
    t->counted = t->in_tx = t->aborted = t->waiting_buf = t->waiting_fiber = t->failed_early = t->unsolicited = t->in_fiber = false;
    t->receiving = t->unsol_broken = t->answered = t->collapsed = t->separate = false;
    t->unacked = (struct tgt_unacked){.is_task = true};
    t->in_ring = 0;
    t->base_sn = t->base_off = t->again_sn = t->again_end = t->snack_tag = 0;
    t->tmf = NULL;
    t->tmf_more = NULL;
    t->buf = NULL;
    t->cap = t->out_total = t->out_need = t->out_got = t->in_total = t->in_len = 0;
    t->unsol_datasn = t->unsol_limit = t->r2t_off = t->r2tsn = t->n_r2t = 0;
    t->status = t->sense_len = 0;
    t->tx_off = t->datasn = 0;
    t->range.active = false;
    t->range.len = 0;
    t->range.excl = false;
    t->cmd = NULL;
    t->early = 0;
    struct tgt_task **slot = bucket(sess, t->itt);
    t->hash_next = *slot;
    *slot = t;
    return t;
}

/* ---- buffers and waiting for them ---- */

int tgt_task_buf(struct tgt_task *t, uint32_t len)
{
    struct tgt_sess *sess = t->sess;
    if (t->buf)
        return t->cap >= len ? 0 : -ENOMEM;
    if (sess->buf_bytes && (sess->buf_bytes + len > TGT_SESSION_BYTES || sess->server->pool.used + len > TGT_SERVER_BYTES))
        return -EAGAIN;
    t->buf = tgt_buf_get(&sess->server->pool, len, &t->cap);
    if (!t->buf)
        return -ENOMEM;
    sess->buf_bytes += t->cap;
    return 0;
}

int tgt_task_read_buf(struct tgt_task *t, uint32_t len)
{
    struct tgt_sess *sess = t->sess;
    /* (with error recovery an answer keeps its buffer until it is acknowledged, perhaps by the next command only) */
    bool windowed = t->lu->geo.in_memory && len >= TGT_LONG_READ && !sess->params.error_recovery_level;
    if (windowed && sess->window_bytes && sess->window_bytes + len > TGT_WINDOW_BYTES)
        return -EAGAIN;
    int r = tgt_task_buf(t, len);
    if (r == 0 && windowed) {
        t->windowed = true;
        sess->window_bytes += t->cap;
    }
    return r;
}

void tgt_queue_add(struct tgt_task **head, struct tgt_task **last, struct tgt_task *t)
{
    t->wait_next = NULL;
    if (*last)
        (*last)->wait_next = t;
    else
        *head = t;
    *last = t;
}

void tgt_queue_remove(struct tgt_task **head, struct tgt_task **last, struct tgt_task *t)
{
    struct tgt_task *prev = NULL;
    for (struct tgt_task *o = *head; o; prev = o, o = o->wait_next) {
        if (o != t)
            continue;
        if (prev)
            prev->wait_next = t->wait_next;
        else
            *head = t->wait_next;
        if (*last == t)
            *last = prev;
        return;
    }
}

void tgt_task_wait_buf(struct tgt_task *t)
{
    struct tgt_server *s = t->sess->server;
    t->state = TASK_WAIT;
    t->waiting_buf = true;
    tgt_queue_add(&s->buf_waiters, &s->buf_waiters_last, t);
}

/* Give waiting commands what has become free. Each is tried once. */
void tgt_bufs_retry(struct tgt_server *s)
{
    struct tgt_task *t = s->buf_waiters, *next;
    s->buf_waiters = s->buf_waiters_last = NULL;
    for (; t; t = next) {
        next = t->wait_next;
        bool collecting = t->out_got < t->out_need && !t->buf;
        if (collecting) {
            int r = tgt_task_buf(t, tgt_task_data_room(t));
            if (r == -EAGAIN) {
                tgt_queue_add(&s->buf_waiters, &s->buf_waiters_last, t);
                continue;
            }
            t->waiting_buf = false;
            t->state = TASK_COLLECT;
            if (r < 0) {
                t->failed_early = true;
                tgt_status(t, TGT_BUSY);
            } else {
                tgt_task_go_on(t);
            }
            continue;
        }
        t->waiting_buf = false;
        tgt_scsi_resume(t); /* queues itself again when there is still no room */
    }
}

/* ---- end of a task ---- */

/* Connections stopped reading because every task was in use. */
static void wake_paused(struct tgt_sess *sess)
{
    for (struct tgt_conn *c = sess->conns; c; c = c->next)
        if (c->paused)
            tgt_tx_kick(c);
}

void tgt_task_release(struct tgt_task *t)
{
    struct tgt_sess *sess = t->sess;
    struct tgt_server *s = sess->server;
    struct tgt_task **p = bucket(sess, t->itt);
    while (*p != t)
        p = &(*p)->hash_next;
    *p = t->hash_next;
    if (t->buf) {
        sess->buf_bytes -= t->cap;
        sess->window_bytes -= t->windowed ? t->cap : 0;
        t->windowed = false;
        tgt_buf_put(&s->pool, t->buf, t->cap);
        t->buf = NULL;
    }
    if (t->shared) /* it waited for something else when it was given up */
        tgt_share_done(t);
    if (t->counted)
        sess->outstanding--;
    if (t->immediate)
        sess->n_immediate--;
    t->counted = t->immediate = false;
    t->state = TASK_FREE;
    t->conn = NULL;
    t->hash_next = sess->free_tasks;
    sess->free_tasks = t;
    if (!sess->n_free++)
        wake_paused(sess);
    tgt_tmf_task_ended(t);
    if (s->buf_waiters)
        tgt_bufs_retry(s);
}

static void count(struct tgt_task *t)
{
    struct tgt_sess_stats *st = &t->sess->stats;
    uint64_t us = (gr_loop_now_ns(t->sess->server->loop) - t->began_ns) / 1000;
    unsigned code = t->cdb[0] & 0x1fu;
    if (t->status == TGT_CHECK)
        st->errors++;
    if (t->in_len && code == 0x08) {
        st->reads++;
        st->read_bytes += t->in_len;
        tgt_latency_add(&st->read_latency, us);
    } else if (t->out_need && code == 0x0a) {
        st->writes++;
        st->write_bytes += t->out_need;
        tgt_latency_add(&st->write_latency, us);
    } else {
        st->others++;
    }
}

void tgt_task_to_send(struct tgt_task *t)
{
    struct tgt_conn *c = t->conn;
    if (!c)
        return; /* when it is reassigned */
    if (!t->in_tx) {
        t->in_tx = true;
        t->tx_next = NULL;
        if (c->tx_tasks_last)
            c->tx_tasks_last->tx_next = t;
        else
            c->tx_tasks = t;
        c->tx_tasks_last = t;
    }
    tgt_tx_kick(c);
}

void tgt_task_done(struct tgt_task *t)
{
    struct tgt_sess *sess = t->sess;
    if (t->range.active)
        tgt_range_end(&t->lu->ranges, &t->range);
    t->range.active = false;
    if (t->state == TASK_RUN)
        sess->running--;
    if (t->shared)
        tgt_share_done(t);
    if (t->aborted || sess->ended) {
        sess->holds++;
        tgt_task_release(t);
        tgt_sess_unhold(sess);
        return;
    }
    count(t);
    t->state = TASK_REPLY;
    t->segment = t->conn ? t->conn->params.max_send_dsl : 0;
    tgt_task_to_send(t);
}

void tgt_task_unhold(struct tgt_sess *sess, struct tgt_task *t)
{
    for (struct tgt_task **p = &sess->held; *p; p = &(*p)->wait_next)
        if (*p == t) {
            *p = t->wait_next;
            return;
        }
}

static void tx_remove(struct tgt_task *t)
{
    struct tgt_conn *c = t->conn;
    struct tgt_task *prev = NULL;
    for (struct tgt_task *o = c->tx_tasks; o; prev = o, o = o->tx_next) {
        if (o != t)
            continue;
        if (prev)
            prev->tx_next = t->tx_next;
        else
            c->tx_tasks = t->tx_next;
        if (c->tx_tasks_last == t)
            c->tx_tasks_last = prev;
        break;
    }
    t->in_tx = false;
}

void tgt_task_stop_receiving(struct tgt_task *t)
{
    t->receiving = false;
    for (struct tgt_conn *c = t->sess->conns; c; c = c->next)
        if (c->rx_task == t) {
            c->rx_task = NULL;
            c->rx_to = NULL;
        }
}

/* Make it end without an answer. With the device it ends when the device answers; @tmf (NULL allowed) is told then. */
void tgt_task_abort(struct tgt_task *t, struct tgt_tmf_wait *tmf)
{
    struct tgt_sess *sess = t->sess;
    struct tgt_server *s = sess->server;
    if (t->aborted) {
        if (t->state == TASK_RUN) /* another was first, and it has not ended for that */
            tgt_tmf_wait_for(tmf, t);
        return;
    }
    switch ((enum tgt_state)t->state) {
    case TASK_FREE:
        return;
    case TASK_REPLY:
        if (t->answered)
            return; /* its status is on its way */
        if (!t->in_ring)
            break;
        tgt_tmf_wait_for(tmf, t); /* its data is: the function is answered behind its status */
        return;
    case TASK_RUN:
        t->aborted = true;
        tgt_tmf_wait_for(tmf, t);
        if (t->range.active && (t->cmd->flags & CMD_WRITES))
            tgt_range_seal(&t->lu->ranges, &t->range);
        return;
    case TASK_HELD:
        if (!sess->ended) {
            t->aborted = true; /* it stays until its turn, to consume its CmdSN */
            return;
        }
        tgt_task_unhold(sess, t);
        break;
    case TASK_COLLECT:
        tgt_tx_forget(t); /* R2Ts */
        break;
    case TASK_WAIT:
        if (t->waiting_buf)
            tgt_queue_remove(&s->buf_waiters, &s->buf_waiters_last, t);
        else if (t->waiting_limit)
            tgt_limit_leave(t);
        else if (t->waiting_share)
            tgt_share_leave(t);
        else if (t->waiting_fiber)
            tgt_fiber_leave(t);
        else
            tgt_range_end(&t->lu->ranges, &t->range);
        break;
    }
    if (t->in_tx)
        tx_remove(t);
    tgt_task_stop_receiving(t);
    tgt_task_release(t);
}

/* Its connection has ended, and with it what was queued there. */
void tgt_task_leave(struct tgt_task *t, enum tgt_leave how)
{
    struct tgt_sess *sess = t->sess;
    t->conn = NULL;
    t->receiving = false;
    if (t->state == TASK_HELD && (how == LEAVE_KEEP || sess->ended)) {
        tgt_task_unhold(sess, t); /* not acknowledged: the initiator will send the command again */
        tgt_task_release(t);
    } else if (t->state == TASK_REPLY && (how == LEAVE_DROP || t->aborted || t->tmf)) {
        tgt_task_release(t);
    } else if (how == LEAVE_DROP) {
        tgt_task_abort(t, NULL);
    }
    /* else it goes on, and waits to be reassigned when it has something to say */
}
