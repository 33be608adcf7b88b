/* Text requests of a logged-in session: SendTargets for its own target, and answers that do not fit in one PDU. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/target_int.h"
#include "iscsi-target/iscsi_text.h"
#include <stdlib.h>

struct text_job { /* a listing being made for a session */
    struct tgt_sess *sess;
    uint32_t itt;
    char which[TGT_NAME_MAX + 1];
};

/* Room for the segment behind what a continued request brought before. */
bool tgt_ffp_text_header(struct tgt_sess *sess)
{
    if (!sess->text)
        sess->text = gr_alloc(TGT_TEXT_IN_MAX + 1);
    if (!sess->text || sess->rx_len > TGT_TEXT_IN_MAX - sess->text_len)
        return false;
    sess->rx_to = (uint8_t *)sess->text + sess->text_len;
    return true;
}

static void answer(struct tgt_sess *sess, uint32_t itt, uint8_t flags, const char *text, uint32_t len, uint32_t ttt)
{
    struct tgt_misc *m = tgt_misc_new(sess, TGT_OP_TEXT_RSP, flags, itt, len);
    if (!m)
        return;
    if (len)
        memcpy(m->data, text, len);
    gr_put_be32(m->bhs + 20, ttt);
    tgt_misc_send(sess, m);
}

static void send_piece(struct tgt_sess *sess, uint32_t itt)
{
    struct gr_buf *all = sess->listing;
    uint32_t left = (uint32_t)all->len - sess->text_off, len = GR_MIN(left, sess->params.max_send_dsl);
    bool more = len < left;
    answer(sess, itt, more ? TGT_CONTINUE : TGT_FINAL, all->data + sess->text_off, len, more ? 1 : TGT_TAG_NONE);
    sess->text_off += len;
    if (!more) {
        gr_buf_done(all);
        free(all);
        sess->listing = NULL;
    }
}

static void list_fiber(void *arg)
{
    struct text_job *job = arg;
    struct tgt_sess *sess = job->sess;
    struct gr_buf *all = gr_zalloc(sizeof *all);
    char address[64] = "";
    if (sess->fd >= 0)
        tgt_local_address(sess->fd, address);
    if (all && tgt_list_targets(sess->server, sess->initiator, job->which, true, address, all) >= 0 && sess->fd >= 0 && !sess->listing) {
        sess->listing = gr_take(all);
        sess->text_off = 0;
        send_piece(sess, job->itt);
    }
    if (all)
        gr_buf_done(all);
    free(all);
    sess->server->busy_fibers--;
    tgt_sess_unhold(sess);
    free(job);
}

/* A normal session may ask for its own target only; "All" means just that one too (RFC 7143 appendix C). */
static void send_targets(struct tgt_sess *sess, uint32_t itt, const char *which)
{
    if (*which && strcmp(which, sess->lu->target) != 0) {
        answer(sess, itt, TGT_FINAL, "SendTargets=Reject", sizeof "SendTargets=Reject", TGT_TAG_NONE);
        return;
    }
    struct text_job *job = gr_zalloc(sizeof *job);
    if (!job)
        return;
    job->sess = sess;
    job->itt = itt;
    memcpy(job->which, sess->lu->target, sizeof job->which);
    sess->holds++;
    sess->server->busy_fibers++;
    if (gr_fiber_start(sess->server->loop, list_fiber, job) < 0) {
        sess->server->busy_fibers--;
        tgt_sess_unhold(sess);
        free(job);
    }
}

void tgt_ffp_text_whole(struct tgt_sess *sess)
{
    struct tgt_text_pair pairs[TGT_KEYS_MAX];
    char out_buf[TGT_TEXT_IN_MAX];
    struct tgt_text_out out = {out_buf, 0, sizeof out_buf, false};
    uint32_t itt = tgt_bhs_itt(sess->rx_bhs);
    if (!sess->text)
        return;
    sess->text_len += sess->rx_len;
    if (tgt_bhs_ttt(sess->rx_bhs) != TGT_TAG_NONE && sess->listing) {
        sess->text_len = 0;
        send_piece(sess, itt);
        return;
    }
    if (sess->rx_bhs[1] & TGT_CONTINUE) {
        answer(sess, itt, 0, NULL, 0, 1);
        return;
    }
    sess->text[sess->text_len] = 0;
    int n = tgt_text_split(sess->text, sess->text_len, pairs);
    sess->text_len = 0;
    if (n < 0) {
        tgt_sess_reject(sess, sess->rx_bhs, TGT_REJECT_PROTOCOL);
        return;
    }
    for (int i = 0; i < n; i++) {
        if (!strcmp(pairs[i].key, "SendTargets")) {
            send_targets(sess, itt, strcmp(pairs[i].value, "All") ? pairs[i].value : "");
            return;
        }
        /* nothing else may be negotiated again here, except what only declares */
        tgt_text_add(&out, pairs[i].key, strcmp(pairs[i].key, "MaxRecvDataSegmentLength") ? "NotUnderstood" : "Reject");
    }
    if (out.overflow || out.len > sess->params.max_send_dsl) {
        tgt_sess_reject(sess, sess->rx_bhs, TGT_REJECT_PROTOCOL);
        return;
    }
    answer(sess, itt, TGT_FINAL, out.buf, (uint32_t)out.len, TGT_TAG_NONE);
}
