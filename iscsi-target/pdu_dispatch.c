/* What to do with each PDU of the full feature phase. */
#include "common/cleanup.h"
#include "iscsi-target/target_int.h"

/* A request that consumes a CmdSN: true when it is the next one. Anything else is dropped in silence (RFC 7143 4.2.2.1):
 * with one connection a gap inside the window cannot be filled by a non-SCSI request. */
static bool in_turn(struct tgt_sess *sess)
{
    if (tgt_bhs_immediate(sess->rx_bhs))
        return true;
    if (tgt_bhs_cmdsn(sess->rx_bhs) != sess->expcmdsn)
        return false;
    sess->expcmdsn++;
    return true;
}

static void nop_header(struct tgt_sess *sess)
{
    uint32_t itt = tgt_bhs_itt(sess->rx_bhs);
    if (itt == TGT_TAG_NONE) { /* the answer to our NOP-In */
        sess->nop_outstanding = 0;
        return;
    }
    if (!in_turn(sess))
        return;
    struct tgt_misc *m = tgt_misc_new(sess, TGT_OP_NOP_IN, TGT_FINAL, itt, sess->rx_len);
    if (!m)
        return;
    memcpy(m->bhs + 8, sess->rx_bhs + 8, 8);
    gr_put_be32(m->bhs + 20, TGT_TAG_NONE);
    sess->rx_misc = m;
    sess->rx_to = m->data;
}

static void nop_whole(struct tgt_sess *sess)
{
    struct tgt_misc *m = gr_take(sess->rx_misc);
    if (!m)
        return;
    m->len = GR_MIN(m->len, sess->params.max_send_dsl);
    tgt_misc_send(sess, m);
}

static void logout(struct tgt_sess *sess)
{
    const uint8_t *b = sess->rx_bhs;
    unsigned reason = b[1] & 0x7fu;
    uint8_t response = 0;
    if (!in_turn(sess))
        return;
    if (reason == 1 && gr_get_be16(b + 20) != sess->cid)
        response = 1; /* no such connection */
    else if (reason == 2)
        response = 2; /* connection recovery is not supported */
    else if (reason > 2)
        response = 3;
    if (!response)
        for (unsigned i = 0; i < TGT_TASKS; i++)
            if (sess->tasks[i].state != TASK_FREE && sess->tasks[i].state != TASK_REPLY)
                tgt_task_abort(&sess->tasks[i], NULL);
    struct tgt_misc *m = tgt_misc_new(sess, TGT_OP_LOGOUT_RSP, TGT_FINAL, tgt_bhs_itt(b), 0);
    if (!m) {
        tgt_sess_close(sess, "out of memory");
        return;
    }
    m->bhs[2] = response;
    gr_put_be16(m->bhs + 40, (uint16_t)sess->params.time2wait);
    m->last = !response;
    tgt_misc_send(sess, m);
    if (!response)
        sess->closing = true;
}

bool tgt_pdu_header(struct tgt_sess *sess, const uint8_t *ahs)
{
    switch (tgt_bhs_opcode(sess->rx_bhs)) {
    case TGT_OP_SCSI_CMD:
        tgt_task_command(sess, ahs != NULL);
        break;
    case TGT_OP_DATA_OUT:
        tgt_task_data_out(sess);
        break;
    case TGT_OP_NOP_OUT:
        nop_header(sess);
        break;
    case TGT_OP_TEXT:
        if (in_turn(sess) && !tgt_ffp_text_header(sess))
            tgt_sess_reject(sess, sess->rx_bhs, TGT_REJECT_PROTOCOL);
        break;
    default:
        break; /* acted on once the segment, which means nothing here, has passed */
    }
    return sess->fd >= 0;
}

void tgt_pdu_whole(struct tgt_sess *sess)
{
    switch (tgt_bhs_opcode(sess->rx_bhs)) {
    case TGT_OP_SCSI_CMD:
    case TGT_OP_DATA_OUT:
        if (sess->rx_task)
            tgt_task_segment(gr_take(sess->rx_task));
        tgt_task_advance(sess);
        break;
    case TGT_OP_NOP_OUT:
        nop_whole(sess);
        break;
    case TGT_OP_TEXT:
        if (sess->rx_to || !sess->rx_len)
            tgt_ffp_text_whole(sess);
        break;
    case TGT_OP_TMF:
        if (in_turn(sess))
            tgt_tmf_request(sess);
        break;
    case TGT_OP_LOGOUT:
        logout(sess);
        break;
    case TGT_OP_SNACK:
        tgt_sess_reject(sess, sess->rx_bhs, TGT_REJECT_SNACK);
        break;
    case TGT_OP_LOGIN:
        tgt_sess_reject(sess, sess->rx_bhs, TGT_REJECT_PROTOCOL);
        break;
    default:
        tgt_sess_reject(sess, sess->rx_bhs, TGT_REJECT_UNSUPPORTED);
        break;
    }
    if (sess->fd >= 0 && sess->held)
        tgt_task_advance(sess);
}
