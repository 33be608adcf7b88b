/* A command arrives: its header, its turn, its data in segments and after R2Ts, what is lost of it. */
#include "common/cleanup.h"
#include "iscsi-target/scsi.h"

/* ---- data from the initiator ---- */

uint32_t tgt_task_data_room(const struct tgt_task *t)
{
    uint32_t first = GR_MIN(t->edtl, t->sess->params.first_burst);
    return GR_MAX(t->out_need, first);
}

/* Answer before the data is complete; what still comes is thrown away. */
static void fail_early(struct tgt_task *t, uint32_t sense)
{
    tgt_task_stop_receiving(t);
    t->failed_early = true;
    if (t->state == TASK_HELD) {
        t->early = sense; /* answered in its turn */
        return;
    }
    t->state = TASK_COLLECT;
    tgt_check(t, sense);
}

void tgt_task_go_on(struct tgt_task *t)
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
    tgt_task_go_on(t);
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
            tgt_task_go_on(t);
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
            tgt_task_go_on(t);
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
        tgt_task_go_on(t);
}

/* The segment's data digest was wrong: a command did not arrive, data is asked for again. */
void tgt_task_segment_bad(struct tgt_conn *c)
{
    struct tgt_task *t = gr_take(c->rx_task);
    if (!t)
        return;
    if (tgt_bhs_opcode(c->rx_bhs) == TGT_OP_SCSI_CMD) {
        if (t->state == TASK_HELD)
            tgt_task_unhold(t->sess, t);
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
    int r = tgt_task_buf(t, tgt_task_data_room(t));
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
        tgt_task_go_on(t);
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
            tgt_task_go_on(t);
        return true;
    }
    return false;
}
