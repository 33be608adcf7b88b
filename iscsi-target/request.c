/* What to do with each PDU of the full feature phase. Commands and data go to their tasks; other requests are collected here and
 * acted on when they are whole and, unless immediate, when their CmdSN's turn has come: with several connections to a session
 * they may well arrive in another order (RFC 7143 4.2.2.1). */
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/target_int.h"
#include <stdlib.h>

static void nop(struct tgt_conn *c, const struct tgt_request *rq)
{
    uint32_t len = GR_MIN(rq->len, c->params.max_send_dsl);
    struct tgt_misc *m = tgt_misc_new(c, TGT_OP_NOP_IN, TGT_FINAL, tgt_bhs_itt(rq->bhs), len);
    if (!m)
        return;
    memcpy(m->bhs + 8, rq->bhs + 8, 8);
    gr_put_be32(m->bhs + 20, TGT_TAG_NONE);
    if (len)
        memcpy(m->data, rq->data, len);
    tgt_misc_send(c, m);
}

enum { CLOSE_SESSION = 0, CLOSE_CONNECTION = 1, CLOSE_FOR_RECOVERY = 2 };         /* reasons (RFC 7143 11.14.1) */
enum { LOGGED_OUT = 0, NO_SUCH_CID = 1, NO_RECOVERY = 2, CLEANUP_FAILED = 3 };    /* responses (11.15.1) */

/* Recovery: the connection is given up, its tasks wait for TASK REASSIGN. It may have broken before. */
static uint8_t remove_for_recovery(struct tgt_conn *c, uint16_t cid)
{
    struct tgt_conn *old = tgt_conn_find(c->sess, cid);
    if (c->params.error_recovery_level < 2)
        return NO_RECOVERY;
    if (old == c)
        return CLEANUP_FAILED; /* the answer could not travel */
    if (old)
        tgt_conn_close(old, LEAVE_KEEP, "removed for recovery");
    return LOGGED_OUT;
}

static void logout(struct tgt_conn *c, const uint8_t *b)
{
    unsigned reason = b[1] & 0x7fu;
    uint16_t cid = gr_get_be16(b + 20);
    uint8_t response = reason > CLOSE_FOR_RECOVERY ? CLEANUP_FAILED : LOGGED_OUT;
    struct tgt_conn *other = tgt_conn_find(c->sess, cid);
    enum tgt_after after = AFTER_NOTHING;
    if (reason == CLOSE_CONNECTION && !other) {
        response = NO_SUCH_CID;
    } else if (reason == CLOSE_CONNECTION && other != c) {
        tgt_conn_close(other, LEAVE_DROP, "logged out by another connection");
    } else if (reason == CLOSE_FOR_RECOVERY) {
        response = remove_for_recovery(c, cid);
    } else if (!response) {
        after = reason == CLOSE_SESSION ? AFTER_CLOSE_SESSION : AFTER_CLOSE_CONN;
        for (unsigned i = 0; i < TGT_TASKS; i++) {
            struct tgt_task *t = &c->sess->tasks[i];
            if (t->state != TASK_FREE && t->state != TASK_REPLY && (reason == CLOSE_SESSION || t->conn == c))
                tgt_task_abort(t, NULL);
        }
    }
    struct tgt_misc *m = tgt_misc_new(c, TGT_OP_LOGOUT_RSP, TGT_FINAL, tgt_bhs_itt(b), 0);
    if (!m) {
        tgt_sess_close(c->sess, "out of memory");
        return;
    }
    m->bhs[2] = response;
    gr_put_be16(m->bhs + 40, (uint16_t)c->params.time2wait);
    if (c->params.error_recovery_level == 2)
        gr_put_be16(m->bhs + 42, (uint16_t)c->params.time2retain);
    m->after = after;
    c->closing = after != AFTER_NOTHING;
    tgt_misc_send(c, m);
}

static void act(struct tgt_conn *c, const struct tgt_request *rq)
{
    switch (tgt_bhs_opcode(rq->bhs)) {
    case TGT_OP_NOP_OUT:
        nop(c, rq);
        break;
    case TGT_OP_TEXT:
        tgt_ffp_text(c, rq);
        break;
    case TGT_OP_TMF:
        tgt_tmf_request(c, rq->bhs);
        break;
    default:
        logout(c, rq->bhs);
        break;
    }
}

/* ---- turns ---- */

static bool held_request(struct tgt_sess *sess)
{
    for (struct tgt_request **p = &sess->held_requests; *p; p = &(*p)->next) {
        gr_auto_free struct tgt_request *rq = *p;
        if (tgt_bhs_cmdsn(rq->bhs) != sess->expcmdsn) {
            rq = NULL;
            continue;
        }
        *p = rq->next;
        sess->n_held_requests--;
        sess->expcmdsn++;
        if (rq->conn)
            act(rq->conn, rq);
        return true;
    }
    return false;
}

/* Whatever has its turn now. */
static void turns(struct tgt_sess *sess)
{
    while (!sess->ended && ((sess->held && tgt_task_advance(sess)) || (sess->held_requests && held_request(sess))))
        continue;
}

static bool held_already(const struct tgt_sess *sess, uint32_t cmdsn)
{
    for (const struct tgt_request *rq = sess->held_requests; rq; rq = rq->next)
        if (tgt_bhs_cmdsn(rq->bhs) == cmdsn)
            return true;
    return false;
}

static void request_whole(struct tgt_conn *c)
{
    struct tgt_sess *sess = c->sess;
    gr_auto_free struct tgt_request *rq = gr_take(c->rx_request);
    if (!rq)
        return;
    uint32_t cmdsn = tgt_bhs_cmdsn(rq->bhs), ahead = cmdsn - sess->expcmdsn;
    if (tgt_bhs_immediate(rq->bhs)) {
        act(c, rq);
    } else if (!ahead) {
        sess->expcmdsn++;
        act(c, rq);
    } else if (ahead < TGT_WINDOW - sess->outstanding && sess->n_held_requests < TGT_HELD_MAX && rq->len <= TGT_HELD_BYTES &&
               !held_already(sess, cmdsn)) {
        sess->n_held_requests++;
        rq->next = sess->held_requests;
        sess->held_requests = gr_take(rq);
    } /* else outside the window, or a repetition: dropped in silence */
}

void tgt_requests_leave(struct tgt_conn *c, enum tgt_leave how)
{
    struct tgt_sess *sess = c->sess;
    for (struct tgt_request **p = &sess->held_requests; *p;) {
        struct tgt_request *rq = *p;
        if (rq->conn == c)
            rq->conn = NULL; /* it still takes its turn */
        if (rq->conn || how == LEAVE_DROP) {
            p = &rq->next;
            continue;
        }
        *p = rq->next; /* the initiator will say it again, with the same CmdSN, on another connection */
        sess->n_held_requests--;
        free(rq);
    }
}

/* ---- PDUs ---- */

static void request_header(struct tgt_conn *c)
{
    struct tgt_request *rq = gr_alloc(sizeof *rq + c->rx_len);
    if (!rq) {
        tgt_conn_reject(c, c->rx_bhs, TGT_REJECT_IMMEDIATE);
        return;
    }
    rq->next = NULL;
    rq->conn = c;
    rq->len = c->rx_len;
    memcpy(rq->bhs, c->rx_bhs, TGT_BHS_LEN);
    c->rx_request = rq;
    c->rx_to = rq->data;
}

bool tgt_pdu_header(struct tgt_conn *c, const uint8_t *ahs)
{
    switch (tgt_bhs_opcode(c->rx_bhs)) {
    case TGT_OP_SCSI_CMD:
        tgt_task_command(c, ahs != NULL);
        break;
    case TGT_OP_DATA_OUT:
        tgt_task_data_out(c);
        break;
    case TGT_OP_NOP_OUT:
        if (tgt_bhs_itt(c->rx_bhs) == TGT_TAG_NONE)
            c->nop_outstanding = 0; /* the answer to our NOP-In */
        else
            request_header(c);
        break;
    case TGT_OP_TEXT:
    case TGT_OP_TMF:
    case TGT_OP_LOGOUT:
        request_header(c);
        break;
    default:
        break; /* acted on once the segment, which means nothing here, has passed */
    }
    return c->fd >= 0;
}

void tgt_pdu_whole(struct tgt_conn *c)
{
    switch (tgt_bhs_opcode(c->rx_bhs)) {
    case TGT_OP_SCSI_CMD:
    case TGT_OP_DATA_OUT:
        if (c->rx_task)
            tgt_task_segment(gr_take(c->rx_task));
        break;
    case TGT_OP_NOP_OUT:
    case TGT_OP_TEXT:
    case TGT_OP_TMF:
    case TGT_OP_LOGOUT:
        request_whole(c);
        break;
    case TGT_OP_SNACK:
        tgt_snack(c);
        break;
    case TGT_OP_LOGIN:
        tgt_conn_reject(c, c->rx_bhs, TGT_REJECT_PROTOCOL);
        break;
    default:
        tgt_conn_reject(c, c->rx_bhs, TGT_REJECT_UNSUPPORTED);
        break;
    }
    turns(c->sess);
}

/* The PDU is thrown away (RFC 7143 7.8). Data is asked for again; anything else the initiator must say again. */
void tgt_pdu_bad_data(struct tgt_conn *c)
{
    tgt_conn_reject(c, c->rx_bhs, TGT_REJECT_DATA_DIGEST);
    free(gr_take(c->rx_request));
    if (!c->params.error_recovery_level) {
        tgt_tx_flush(c);
        if (c->fd >= 0)
            tgt_sess_close(c->sess, "a data digest was wrong");
        return;
    }
    tgt_task_segment_bad(c);
    turns(c->sess);
}
