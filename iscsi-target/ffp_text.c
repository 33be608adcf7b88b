/* Text requests of a logged-in session: SendTargets for its own target, and answers that do not fit in one PDU. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/target_int.h"
#include "iscsi-target/iscsi_text.h"
#include <stdlib.h>

struct text_job { /* a listing being made for a session */
    struct tgt_conn *conn;
    uint32_t itt;
    char which[TGT_NAME_MAX + 1];
};

/* Add the segment to what a continued request brought before. */
static bool collect(struct tgt_conn *c, const struct tgt_request *rq)
{
    if (!c->text)
        c->text = gr_alloc(TGT_TEXT_IN_MAX + 1);
    if (!c->text || rq->len > TGT_TEXT_IN_MAX - c->text_len)
        return false;
    memcpy(c->text + c->text_len, rq->data, rq->len);
    c->text_len += rq->len;
    return true;
}

static void answer(struct tgt_conn *c, uint32_t itt, uint8_t flags, const char *text, uint32_t len, uint32_t ttt)
{
    struct tgt_misc *m = tgt_misc_new(c, TGT_OP_TEXT_RSP, flags, itt, len);
    if (!m)
        return;
    if (len)
        memcpy(m->data, text, len);
    gr_put_be32(m->bhs + 20, ttt);
    tgt_misc_send(c, m);
}

static void send_piece(struct tgt_conn *c, uint32_t itt)
{
    struct gr_buf *all = c->listing;
    uint32_t left = (uint32_t)all->len - c->text_off, len = GR_MIN(left, c->params.max_send_dsl);
    bool more = len < left;
    answer(c, itt, more ? TGT_CONTINUE : TGT_FINAL, all->data + c->text_off, len, more ? 1 : TGT_TAG_NONE);
    c->text_off += len;
    if (!more) {
        gr_buf_done(all);
        free(all);
        c->listing = NULL;
    }
}

static void list_fiber(void *arg)
{
    struct text_job *job = arg;
    struct tgt_conn *c = job->conn;
    struct gr_buf *all = gr_zalloc(sizeof *all);
    char address[64] = "";
    if (c->fd >= 0)
        tgt_told_address(c->server, c->fd, address);
    if (all && tgt_list_targets(c->server, c->sess->initiator, job->which, true, address, all) >= 0 && c->fd >= 0 && !c->listing) {
        c->listing = gr_take(all);
        c->text_off = 0;
        send_piece(c, job->itt);
    }
    if (all)
        gr_buf_done(all);
    free(all);
    c->server->busy_fibers--;
    tgt_conn_unhold(c);
    free(job);
}

/* A normal session may ask for its own target only; "All" means just that one too (RFC 7143 appendix C). */
static void send_targets(struct tgt_conn *c, uint32_t itt, const char *which)
{
    if (*which && strcmp(which, c->sess->lu->target) != 0) {
        answer(c, itt, TGT_FINAL, "SendTargets=Reject", sizeof "SendTargets=Reject", TGT_TAG_NONE);
        return;
    }
    struct text_job *job = gr_zalloc(sizeof *job);
    if (!job)
        return;
    job->conn = c;
    job->itt = itt;
    memcpy(job->which, c->sess->lu->target, sizeof job->which);
    c->holds++;
    c->server->busy_fibers++;
    if (gr_fiber_start(c->server->loop, list_fiber, job) < 0) {
        c->server->busy_fibers--;
        tgt_conn_unhold(c);
        free(job);
    }
}

/* The one key that may be declared again at any time (RFC 7143 13.12). Answers that have begun keep their segments. */
static bool declare_segment(struct tgt_conn *c, const char *value)
{
    struct tgt_params p = c->params;
    unsigned long v;
    if (tgt_text_number(value, UINT32_MAX, &v) < 0)
        return false;
    p.max_send_dsl = (uint32_t)v;
    if (!tgt_params_ok(&p))
        return false;
    c->params = p;
    for (unsigned i = 0; i < TGT_TASKS; i++) {
        struct tgt_task *t = &c->sess->tasks[i];
        if (t->state == TASK_REPLY && t->conn == c && !t->datasn)
            t->segment = p.max_send_dsl;
    }
    return true;
}

/* What a whole text request asks for; true: it is answered. */
static bool answer_pairs(struct tgt_conn *c, uint32_t itt, const struct tgt_text_pair *pairs, int n)
{
    char out_buf[TGT_TEXT_IN_MAX];
    struct tgt_text_out out = {out_buf, 0, sizeof out_buf, false};
    for (int i = 0; i < n; i++) {
        if (!strcmp(pairs[i].key, "SendTargets")) {
            send_targets(c, itt, strcmp(pairs[i].value, "All") ? pairs[i].value : "");
            return true;
        }
        if (strcmp(pairs[i].key, "MaxRecvDataSegmentLength") != 0)
            tgt_text_add(&out, pairs[i].key, "NotUnderstood");
        else if (!declare_segment(c, pairs[i].value))
            return false;
    }
    if (out.overflow || out.len > c->params.max_send_dsl)
        return false;
    answer(c, itt, TGT_FINAL, out.buf, (uint32_t)out.len, TGT_TAG_NONE);
    return true;
}

void tgt_ffp_text(struct tgt_conn *c, const struct tgt_request *rq)
{
    struct tgt_text_pair pairs[TGT_KEYS_MAX];
    uint32_t itt = tgt_bhs_itt(rq->bhs);
    if (tgt_bhs_ttt(rq->bhs) != TGT_TAG_NONE && c->listing) {
        c->text_len = 0;
        send_piece(c, itt);
        return;
    }
    if (!collect(c, rq)) {
        tgt_conn_reject(c, rq->bhs, TGT_REJECT_PROTOCOL);
        return;
    }
    if (rq->bhs[1] & TGT_CONTINUE) {
        answer(c, itt, 0, NULL, 0, 1);
        return;
    }
    c->text[c->text_len] = 0;
    int n = tgt_text_split(c->text, c->text_len, pairs);
    c->text_len = 0;
    if (n < 0 || !answer_pairs(c, itt, pairs, n))
        tgt_conn_reject(c, rq->bhs, TGT_REJECT_PROTOCOL);
}
