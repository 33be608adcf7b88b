/* A command from its header to its answer: its data, R2Ts, waits, abort. */
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

static struct tgt_task *task_new(struct tgt_sess *sess)
{
    struct tgt_task *t = sess->free_tasks;
    const uint8_t *b = sess->rx_bhs;
    sess->free_tasks = t->hash_next;
    sess->n_free--;
    t->flags = b[1];
    t->immediate = tgt_bhs_immediate(b);
    t->itt = tgt_bhs_itt(b);
    t->cmdsn = tgt_bhs_cmdsn(b);
    t->edtl = gr_get_be32(b + 20);
    memcpy(t->cdb, b + 32, 16);
    t->lun_ok = !gr_get_be64(b + 8);
    t->counted = t->in_tx = t->aborted = t->waiting_buf = t->waiting_fiber = t->failed_early = t->unsolicited = t->in_fiber = false;
    t->tmf = NULL;
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

static void data_progress(struct tgt_task *t);

static uint32_t data_room(const struct tgt_task *t)
{
    uint32_t first = GR_MIN(t->edtl, t->sess->params.first_burst);
    return GR_MAX(t->out_need, first);
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
            int r = tgt_task_buf(t, data_room(t));
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
                data_progress(t);
            }
            continue;
        }
        t->waiting_buf = false;
        tgt_scsi_resume(t); /* queues itself again when there is still no room */
    }
}

/* ---- end of a task ---- */

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
        tgt_buf_put(&s->pool, t->buf, t->cap);
        t->buf = NULL;
    }
    if (t->counted)
        sess->outstanding--;
    if (t->immediate)
        sess->n_immediate--;
    t->counted = t->immediate = false;
    t->state = TASK_FREE;
    t->hash_next = sess->free_tasks;
    sess->free_tasks = t;
    sess->n_free++;
    struct tgt_tmf_wait *tmf = gr_take(t->tmf);
    if (tmf)
        tgt_tmf_task_gone(tmf);
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

static void to_send(struct tgt_task *t)
{
    struct tgt_sess *sess = t->sess;
    if (!t->in_tx) {
        t->in_tx = true;
        t->tx_next = NULL;
        if (sess->tx_tasks_last)
            sess->tx_tasks_last->tx_next = t;
        else
            sess->tx_tasks = t;
        sess->tx_tasks_last = t;
    }
    tgt_tx_kick(sess);
}

void tgt_task_done(struct tgt_task *t)
{
    struct tgt_sess *sess = t->sess;
    if (t->range.active)
        tgt_range_end(&t->lu->ranges, &t->range);
    t->range.active = false;
    if (t->state == TASK_RUN)
        sess->running--;
    if (t->aborted || sess->fd < 0) {
        sess->holds++;
        tgt_task_release(t);
        tgt_sess_unhold(sess);
        return;
    }
    count(t);
    t->state = TASK_REPLY;
    to_send(t);
}

static void held_remove(struct tgt_sess *sess, struct tgt_task *t)
{
    for (struct tgt_task **p = &sess->held; *p; p = &(*p)->wait_next)
        if (*p == t) {
            *p = t->wait_next;
            return;
        }
}

static void tx_remove(struct tgt_sess *sess, struct tgt_task *t)
{
    struct tgt_task *prev = NULL;
    for (struct tgt_task *o = sess->tx_tasks; o; prev = o, o = o->tx_next) {
        if (o != t)
            continue;
        if (prev)
            prev->tx_next = t->tx_next;
        else
            sess->tx_tasks = t->tx_next;
        if (sess->tx_tasks_last == t)
            sess->tx_tasks_last = prev;
        break;
    }
    t->in_tx = false;
}

/* Make it end without an answer. With the device it ends when the device answers; @tmf (NULL allowed) is told then. */
void tgt_task_abort(struct tgt_task *t, struct tgt_tmf_wait *tmf)
{
    struct tgt_sess *sess = t->sess;
    struct tgt_server *s = sess->server;
    if (t->aborted)
        return;
    switch ((enum tgt_state)t->state) {
    case TASK_FREE:
        return;
    case TASK_REPLY:
        if (!t->in_tx)
            return; /* its status is on its way */
        break;
    case TASK_RUN:
        t->aborted = true;
        t->tmf = tmf;
        if (tmf)
            tmf->tasks++;
        if (t->range.active && (t->cmd->flags & CMD_WRITES))
            tgt_range_seal(&t->lu->ranges, &t->range);
        return;
    case TASK_HELD:
        if (sess->fd >= 0) {
            t->aborted = true; /* it stays until its turn, to consume its CmdSN */
            return;
        }
        held_remove(sess, t);
        break;
    case TASK_COLLECT:
        break;
    case TASK_WAIT:
        if (t->waiting_buf)
            tgt_queue_remove(&s->buf_waiters, &s->buf_waiters_last, t);
        else if (t->waiting_limit)
            tgt_limit_leave(t);
        else if (t->waiting_fiber)
            tgt_queue_remove(&s->fiber_waiters, &s->fiber_waiters_last, t);
        else
            tgt_range_end(&t->lu->ranges, &t->range);
        break;
    }
    if (t->in_tx)
        tx_remove(sess, t);
    if (sess->rx_task == t) {
        sess->rx_task = NULL; /* the rest of its segment is thrown away */
        sess->rx_to = NULL;
    }
    tgt_task_release(t);
}

/* ---- data from the initiator ---- */

/* Answer before the data is complete; what still comes is thrown away. */
static void fail_early(struct tgt_task *t, uint32_t sense)
{
    struct tgt_sess *sess = t->sess;
    if (sess->rx_task == t) {
        sess->rx_task = NULL;
        sess->rx_to = NULL;
    }
    t->failed_early = true;
    if (t->state == TASK_HELD) {
        t->early = sense; /* answered in its turn */
        return;
    }
    t->state = TASK_COLLECT;
    tgt_check(t, sense);
}

static void data_progress(struct tgt_task *t)
{
    if (t->unsolicited)
        return; /* until its last Data-Out */
    if (t->out_got >= t->out_need) {
        tgt_scsi_execute(t);
        return;
    }
    t->state = TASK_COLLECT;
    if (t->r2t_off < t->out_got)
        t->r2t_off = t->out_got;
    to_send(t); /* R2Ts */
}

void tgt_task_segment(struct tgt_task *t)
{
    struct tgt_sess *sess = t->sess;
    const uint8_t *b = sess->rx_bhs;
    uint32_t len = sess->rx_len;
    if (tgt_bhs_opcode(b) == TGT_OP_SCSI_CMD) {
        t->out_got = len;
        if (t->state != TASK_HELD)
            data_progress(t);
        return;
    }
    bool final = b[1] & TGT_FINAL;
    uint32_t ttt = tgt_bhs_ttt(b);
    if (ttt == TGT_TAG_NONE) {
        t->out_got += len;
        t->unsolicited = !final;
    } else {
        unsigned i = 0;
        while (i < t->n_r2t && t->r2t[i].ttt != ttt)
            i++;
        if (i == t->n_r2t)
            return;
        struct tgt_r2t *r = &t->r2t[i];
        r->got += len;
        t->out_got += len;
        if (final != (r->got == r->len)) {
            fail_early(t, TGT_SENSE_DATA_PHASE); /* a sequence that ends early, or does not end */
            return;
        }
        if (final)
            *r = t->r2t[--t->n_r2t];
    }
    if (t->state != TASK_HELD)
        data_progress(t);
}

/* Which bytes of the task this Data-Out brings; false: it breaks the rules (RFC 7143 4.2.4.3, 11.7). */
static bool data_out_ok(struct tgt_sess *sess, struct tgt_task *t)
{
    const uint8_t *b = sess->rx_bhs;
    uint32_t ttt = tgt_bhs_ttt(b), sn = gr_get_be32(b + 36), off = gr_get_be32(b + 40), len = sess->rx_len;
    if (ttt == TGT_TAG_NONE) {
        if (!t->unsolicited || off != t->out_got || sn != t->unsol_datasn || len > t->unsol_limit - t->out_got)
            return false;
        t->unsol_datasn++;
        return true;
    }
    for (unsigned i = 0; i < t->n_r2t; i++) {
        struct tgt_r2t *r = &t->r2t[i];
        if (r->ttt != ttt)
            continue;
        if (off != r->off + r->got || sn != r->datasn || len > r->len - r->got)
            return false;
        r->datasn++;
        return true;
    }
    return false;
}

void tgt_task_data_out(struct tgt_sess *sess)
{
    struct tgt_task *t = tgt_task_find(sess, tgt_bhs_itt(sess->rx_bhs));
    if (!t || (t->state != TASK_COLLECT && t->state != TASK_HELD) || t->failed_early || t->aborted || !t->buf) {
        /* of a command already answered or aborted, or forged */
        if (++sess->bad_data > TGT_BAD_DATA_MAX)
            tgt_sess_close(sess, "it kept sending data that belongs to no command");
        return;
    }
    if (!data_out_ok(sess, t)) {
        fail_early(t, TGT_SENSE_DATA_PHASE);
        return;
    }
    uint32_t off = gr_get_be32(sess->rx_bhs + 40);
    if (sess->rx_len > t->cap || off > t->cap - sess->rx_len) {
        fail_early(t, TGT_SENSE_DATA_PHASE);
        return;
    }
    sess->bad_data = 0;
    sess->rx_task = t;
    sess->rx_to = t->buf + off;
}

/* ---- a new command ---- */

static void begin_write(struct tgt_sess *sess, struct tgt_task *t)
{
    uint32_t dsl = sess->rx_len;
    bool writes = t->flags & TGT_CMD_WRITE, more = writes && !(t->flags & TGT_FINAL);
    if ((dsl && (!writes || !sess->params.immediate_data || dsl > t->edtl || dsl > sess->params.first_burst)) ||
        (more && sess->params.initial_r2t)) {
        fail_early(t, TGT_SENSE_UNEXPECTED_DATA);
        return;
    }
    t->unsol_limit = GR_MIN(t->edtl, sess->params.first_burst);
    t->unsolicited = more && dsl < t->unsol_limit;
    if (!t->out_need && !dsl && !t->unsolicited) {
        if (t->state != TASK_HELD)
            tgt_scsi_execute(t);
        return;
    }
    int r = tgt_task_buf(t, data_room(t));
    if (r == -EAGAIN && !dsl && !t->unsolicited && t->state != TASK_HELD) {
        tgt_task_wait_buf(t);
        return;
    }
    if (r < 0 && t->state == TASK_HELD) {
        fail_early(t, TGT_SENSE_DATA_PHASE);
        return;
    }
    if (r < 0) {
        t->failed_early = true;
        tgt_status(t, TGT_FULL);
        return;
    }
    if (dsl) {
        sess->rx_task = t;
        sess->rx_to = t->buf;
        return;
    }
    if (t->state != TASK_HELD)
        data_progress(t);
}

static void start(struct tgt_sess *sess, struct tgt_task *t, bool bad_ahs)
{
    uint32_t sense = 0;
    t->cmd = tgt_scsi_lookup(t->cdb, &sense);
    bool wrong_lun = !t->lun_ok && !(t->cmd && t->cmd->flags & CMD_NO_LUN);
    uint64_t total = t->cmd && !wrong_lun ? tgt_scsi_out_total(t->lu, t->cmd, t->cdb) : 0;
    if (wrong_lun)
        sense = TGT_SENSE_NO_LUN;
    else if (bad_ahs || total > TGT_BUF_MAX)
        sense = TGT_SENSE_INVALID_CDB;
    if (sense) {
        fail_early(t, sense);
        return;
    }
    t->out_total = (uint32_t)total;
    t->out_need = t->flags & TGT_CMD_WRITE ? GR_MIN(t->out_total, t->edtl) : 0;
    begin_write(sess, t);
}

void tgt_task_command(struct tgt_sess *sess, bool bad_ahs)
{
    const uint8_t *b = sess->rx_bhs;
    uint32_t itt = tgt_bhs_itt(b), ahead = tgt_bhs_cmdsn(b) - sess->expcmdsn;
    bool immediate = tgt_bhs_immediate(b);
    if (!immediate && ahead >= TGT_WINDOW - sess->outstanding)
        return; /* outside the window: dropped in silence */
    if (itt == TGT_TAG_NONE || tgt_task_find(sess, itt)) {
        tgt_sess_reject(sess, b, itt == TGT_TAG_NONE ? TGT_REJECT_INVALID : TGT_REJECT_TASK);
        if (!immediate && !ahead)
            sess->expcmdsn++;
        return;
    }
    if (immediate && sess->n_immediate >= TGT_IMMEDIATE_MAX) {
        tgt_sess_reject(sess, b, TGT_REJECT_IMMEDIATE);
        return;
    }
    struct tgt_task *t = task_new(sess);
    t->state = TASK_COLLECT;
    t->began_ns = sess->heard_ns;
    if (immediate) {
        sess->n_immediate++;
    } else {
        t->counted = true;
        sess->outstanding++;
        if (!ahead) {
            sess->expcmdsn++;
        } else {
            t->state = TASK_HELD;
            t->wait_next = sess->held;
            sess->held = t;
        }
    }
    start(sess, t, bad_ahs);
}

void tgt_task_advance(struct tgt_sess *sess)
{
    bool again = true;
    while (again && sess->fd >= 0) {
        again = false;
        for (struct tgt_task **p = &sess->held; *p; p = &(*p)->wait_next) {
            struct tgt_task *t = *p;
            if (t->cmdsn != sess->expcmdsn)
                continue;
            *p = t->wait_next;
            sess->expcmdsn++;
            t->state = TASK_COLLECT;
            if (t->aborted)
                tgt_task_release(t);
            else if (t->early)
                tgt_check(t, t->early);
            else if (sess->rx_task != t)
                data_progress(t);
            again = true;
            break;
        }
    }
}
