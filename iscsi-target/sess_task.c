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

static struct tgt_task *task_new(struct tgt_conn *c)
{
    const uint8_t *b = c->rx_bhs;
    struct tgt_task *t = tgt_task_blank(c->sess, tgt_bhs_itt(b));
    t->conn = c;
    t->flags = b[1];
    t->immediate = tgt_bhs_immediate(b);
    t->cmdsn = tgt_bhs_cmdsn(b);
    t->edtl = gr_get_be32(b + 20);
    memcpy(t->cdb, b + 32, 16);
    t->lun_ok = tgt_bhs_lun0(b);
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

static void held_remove(struct tgt_sess *sess, struct tgt_task *t)
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

/* The rest of the segment being received for it is thrown away. */
static void stop_receiving(struct tgt_task *t)
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
    if (t->aborted)
        return;
    switch ((enum tgt_state)t->state) {
    case TASK_FREE:
        return;
    case TASK_REPLY:
        if (t->answered)
            return; /* its status is on its way */
        if (!t->in_ring)
            break;
        if (tmf && !t->tmf) { /* its data is: the function is answered behind its status */
            t->tmf = tmf;
            tmf->tasks++;
        }
        return;
    case TASK_RUN:
        t->aborted = true;
        t->tmf = tmf;
        if (tmf)
            tmf->tasks++;
        if (t->range.active && (t->cmd->flags & CMD_WRITES))
            tgt_range_seal(&t->lu->ranges, &t->range);
        return;
    case TASK_HELD:
        if (!sess->ended) {
            t->aborted = true; /* it stays until its turn, to consume its CmdSN */
            return;
        }
        held_remove(sess, t);
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
            tgt_queue_remove(&s->fiber_waiters, &s->fiber_waiters_last, t);
        else
            tgt_range_end(&t->lu->ranges, &t->range);
        break;
    }
    if (t->in_tx)
        tx_remove(t);
    stop_receiving(t);
    tgt_task_release(t);
}

/* Its connection has ended, and with it what was queued there. */
void tgt_task_leave(struct tgt_task *t, enum tgt_leave how)
{
    struct tgt_sess *sess = t->sess;
    t->conn = NULL;
    t->receiving = false;
    if (t->state == TASK_HELD && (how == LEAVE_KEEP || sess->ended)) {
        held_remove(sess, t); /* not acknowledged: the initiator will send the command again */
        tgt_task_release(t);
    } else if (t->state == TASK_REPLY && (how == LEAVE_DROP || t->aborted || t->tmf)) {
        tgt_task_release(t);
    } else if (how == LEAVE_DROP) {
        tgt_task_abort(t, NULL);
    }
    /* else it goes on, and waits to be reassigned when it has something to say */
}

/* ---- data from the initiator ---- */

/* Answer before the data is complete; what still comes is thrown away. */
static void fail_early(struct tgt_task *t, uint32_t sense)
{
    stop_receiving(t);
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
    tgt_task_to_send(t); /* R2Ts */
}

/* Ask for the rest of a sequence under a new tag (recovery R2T, RFC 7143 7.1.4.3). */
static void recover(struct tgt_task *t, struct tgt_r2t *r)
{
    *r = (struct tgt_r2t){.off = r->off + r->got, .len = r->len - r->got, .sn = t->r2tsn++, .due = true};
    r->ttt = (uint32_t)t->index << 16 | (t->r2t_seq++ & 0xffffu);
    tgt_task_to_send(t);
}

void tgt_task_resend_r2ts(struct tgt_task *t)
{
    for (unsigned i = 0; i < t->n_r2t; i++)
        recover(t, &t->r2t[i]);
    t->unsolicited = t->unsol_broken = false;
    data_progress(t);
}

/* Data of a sequence is lost. With the last PDU of it the rest is asked for; until then what comes is thrown away. */
static void lost(struct tgt_task *t, struct tgt_r2t *r, bool final)
{
    if (r) {
        r->broken = true;
        if (final)
            recover(t, r);
        return;
    }
    t->unsol_broken = true;
    if (final) {
        t->unsolicited = t->unsol_broken = false;
        if (t->state != TASK_HELD)
            data_progress(t);
    }
}

static struct tgt_r2t *r2t_of(struct tgt_task *t, uint32_t ttt)
{
    for (unsigned i = 0; i < t->n_r2t; i++)
        if (t->r2t[i].ttt == ttt)
            return &t->r2t[i];
    return NULL;
}

void tgt_task_segment(struct tgt_task *t)
{
    struct tgt_conn *c = t->conn;
    const uint8_t *b = c->rx_bhs;
    uint32_t len = c->rx_len;
    if (tgt_bhs_opcode(b) == TGT_OP_SCSI_CMD) {
        t->out_got = len;
        t->receiving = false;
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
        struct tgt_r2t *r = r2t_of(t, ttt);
        if (!r)
            return;
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

/* The segment's data digest was wrong: a command did not arrive, data is asked for again. */
void tgt_task_segment_bad(struct tgt_conn *c)
{
    struct tgt_task *t = gr_take(c->rx_task);
    if (!t)
        return;
    if (tgt_bhs_opcode(c->rx_bhs) == TGT_OP_SCSI_CMD) {
        if (t->state == TASK_HELD)
            held_remove(t->sess, t);
        tgt_task_release(t);
        return;
    }
    lost(t, tgt_bhs_ttt(c->rx_bhs) == TGT_TAG_NONE ? NULL : r2t_of(t, tgt_bhs_ttt(c->rx_bhs)), c->rx_bhs[1] & TGT_FINAL);
}

enum data_out { DATA_OK, DATA_SKIP, DATA_WRONG };

/* What to do with this Data-Out (RFC 7143 4.2.4.3, 11.7). Numbers that jump mean loss, and are recovered from above level 0. */
static enum data_out judge(const struct tgt_conn *c, struct tgt_task *t)
{
    const uint8_t *b = c->rx_bhs;
    uint32_t ttt = tgt_bhs_ttt(b), sn = gr_get_be32(b + 36), off = gr_get_be32(b + 40), len = c->rx_len;
    struct tgt_r2t *r = ttt == TGT_TAG_NONE ? NULL : r2t_of(t, ttt);
    bool recovers = c->params.error_recovery_level > 0, final = b[1] & TGT_FINAL;
    if (ttt != TGT_TAG_NONE && !r)
        return recovers ? DATA_SKIP : DATA_WRONG; /* of an R2T that another has replaced */
    if (!r && !t->unsolicited)
        return recovers ? DATA_SKIP : DATA_WRONG;
    uint32_t *want = r ? &r->datasn : &t->unsol_datasn;
    if (recovers && (sn != *want || (r ? r->broken : t->unsol_broken))) {
        if (tgt_sn_lt(*want, sn) || final)
            lost(t, r, final);
        return DATA_SKIP;
    }
    if (sn != *want || off != (r ? r->off + r->got : t->out_got) || len > (r ? r->len - r->got : t->unsol_limit - t->out_got))
        return DATA_WRONG;
    ++*want;
    return DATA_OK;
}

void tgt_task_data_out(struct tgt_conn *c)
{
    struct tgt_task *t = tgt_task_find(c->sess, tgt_bhs_itt(c->rx_bhs));
    if (!t || t->conn != c || (t->state != TASK_COLLECT && t->state != TASK_HELD) || t->failed_early || t->aborted || !t->buf) {
        /* of a command already answered or aborted, or forged */
        if (++c->bad_data > TGT_BAD_DATA_MAX)
            tgt_sess_close(c->sess, "it kept sending data that belongs to no command");
        return;
    }
    enum data_out what = judge(c, t);
    uint32_t off = gr_get_be32(c->rx_bhs + 40);
    if (what == DATA_OK && (c->rx_len > t->cap || off > t->cap - c->rx_len))
        what = DATA_WRONG;
    if (what == DATA_WRONG)
        fail_early(t, TGT_SENSE_DATA_PHASE);
    if (what != DATA_OK)
        return;
    c->bad_data = 0;
    c->rx_task = t;
    c->rx_to = t->buf + off;
}

/* ---- a new command ---- */

static void begin_write(struct tgt_conn *c, struct tgt_task *t)
{
    struct tgt_sess *sess = c->sess;
    uint32_t dsl = c->rx_len;
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
        c->rx_task = t;
        c->rx_to = t->buf;
        return;
    }
    if (t->state != TASK_HELD)
        data_progress(t);
}

static void start(struct tgt_conn *c, struct tgt_task *t, bool bad_ahs)
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
    begin_write(c, t);
}

static void hold(struct tgt_sess *sess, struct tgt_task *t)
{
    t->state = TASK_HELD;
    t->wait_next = sess->held;
    sess->held = t;
}

/* Its tag is in use. True: by a task whose answer the initiator must have, since it uses the tag again; it acknowledges that
 * on another connection, or after one was lost. */
static bool tag_freed(struct tgt_task *old)
{
    if (old->state != TASK_REPLY || !old->answered || old->in_ring || old->in_tx)
        return false;
    if (old->unacked.listed)
        tgt_unacked_remove(old->conn, &old->unacked);
    tgt_task_release(old);
    return true;
}

void tgt_task_command(struct tgt_conn *c, bool bad_ahs)
{
    struct tgt_sess *sess = c->sess;
    const uint8_t *b = c->rx_bhs;
    uint32_t itt = tgt_bhs_itt(b), ahead = tgt_bhs_cmdsn(b) - sess->expcmdsn;
    bool immediate = tgt_bhs_immediate(b);
    if (!immediate && ahead >= TGT_WINDOW - sess->outstanding)
        return; /* outside the window, or sent again although it had arrived: dropped in silence */
    struct tgt_task *same = tgt_task_find(sess, itt);
    if (same && same->state == TASK_HELD && same->cmdsn == tgt_bhs_cmdsn(b) && !immediate)
        return; /* sent again */
    if (itt == TGT_TAG_NONE || (same && !tag_freed(same))) {
        tgt_conn_reject(c, b, itt == TGT_TAG_NONE ? TGT_REJECT_INVALID : TGT_REJECT_TASK);
        if (!immediate && !ahead)
            sess->expcmdsn++;
        return;
    }
    if (immediate && sess->n_immediate >= TGT_IMMEDIATE_MAX) {
        tgt_conn_reject(c, b, TGT_REJECT_IMMEDIATE);
        return;
    }
    struct tgt_task *t = task_new(c);
    /* with a digest over its data it has arrived only when that is right: CmdSN moves then */
    bool doubtful = !immediate && c->rx_len && c->params.data_digest && c->params.error_recovery_level;
    t->state = TASK_COLLECT;
    t->began_ns = c->heard_ns;
    if (immediate) {
        sess->n_immediate++;
    } else {
        t->counted = true;
        sess->outstanding++;
        if (ahead || doubtful)
            hold(sess, t);
        else
            sess->expcmdsn++;
    }
    t->receiving = doubtful;
    start(c, t, bad_ahs);
}

bool tgt_task_advance(struct tgt_sess *sess)
{
    for (struct tgt_task **p = &sess->held; *p; p = &(*p)->wait_next) {
        struct tgt_task *t = *p;
        if (t->cmdsn != sess->expcmdsn || t->receiving)
            continue;
        *p = t->wait_next;
        sess->expcmdsn++;
        t->state = TASK_COLLECT;
        if (t->aborted)
            tgt_task_release(t);
        else if (t->early)
            tgt_check(t, t->early);
        else if (!t->conn || t->conn->rx_task != t)
            data_progress(t);
        return true;
    }
    return false;
}
