/* Task management (RFC 7143 11.5, SAM-5 7). A function is answered when every task it ends has ended: what is with the device
 * ends when the device answers, and what is being sent when it is out. */
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/scsi.h"
#include <stdlib.h>

void tgt_tmf_answer(struct tgt_tmf_wait *w)
{
    struct tgt_conn *c = w->conn;
    struct tgt_server *s = c->server;
    struct tgt_lu *lu = c->sess->lu;
    bool answered = false;
    if (c->fd >= 0) {
        struct tgt_misc *m = tgt_misc_new(c, TGT_OP_TMF_RSP, TGT_FINAL, w->itt, 0);
        if (m) {
            m->bhs[2] = w->unsure ? TGT_TMF_REJECTED : w->response;
            m->after = w->cold_reset ? AFTER_CLOSE_SESSION : AFTER_NOTHING;
            c->closing |= w->cold_reset;
            if (w->many)
                tgt_fence_response(c, m);
            tgt_misc_send(c, m);
            answered = true;
        }
    }
    if (w->cold_reset) { /* every session of the target ends */
        struct tgt_sess *next;
        for (struct tgt_sess *o = s->sessions; o; o = next) {
            next = o->next;
            if (o->lu == lu && (o != c->sess || !answered)) /* ours, when the answer is out */
                tgt_sess_close(o, "target cold reset");
        }
    }
    free(w);
    tgt_conn_unhold(c);
}

static void task_gone(struct tgt_tmf_wait *w)
{
    if (!--w->tasks && !(w->many && tgt_fence_hold(w)))
        tgt_tmf_answer(w);
}

void tgt_tmf_wait_for(struct tgt_tmf_wait *w, struct tgt_task *t)
{
    struct tgt_tmf_more *m = w && t->tmf ? gr_alloc(sizeof *m) : NULL;
    if (!w)
        return;
    if (m) {
        *m = (struct tgt_tmf_more){t->tmf_more, w};
        t->tmf_more = m;
    } else if (!t->tmf) {
        t->tmf = w;
    } else {
        w->unsure = true;
        return;
    }
    w->tasks++;
}

void tgt_tmf_task_ended(struct tgt_task *t)
{
    struct tgt_tmf_wait *w = gr_take(t->tmf);
    struct tgt_tmf_more *m = gr_take(t->tmf_more), *next;
    if (w)
        task_gone(w);
    for (; m; m = next) {
        next = m->next;
        task_gone(m->w);
        free(m);
    }
}

static void abort_all(struct tgt_tmf_wait *w, struct tgt_sess *sess)
{
    for (unsigned i = 0; i < TGT_TASKS; i++)
        tgt_task_abort(&sess->tasks[i], w);
}

static uint8_t abort_task(struct tgt_tmf_wait *w, struct tgt_sess *sess, const uint8_t *b)
{
    uint32_t ref = gr_get_be32(b + 20), ref_cmdsn = gr_get_be32(b + 32);
    struct tgt_task *t = tgt_task_find(sess, ref);
    if (t) {
        bool late = t->state == TASK_REPLY && (t->answered || t->in_ring);
        tgt_task_abort(t, w);
        return late ? TGT_TMF_NO_TASK : TGT_TMF_DONE; /* its answer goes out before ours */
    }
    /* Not here: if it may still be on its way, it counts as received and gone (RFC 7143 11.6.1). */
    uint32_t ahead = ref_cmdsn - sess->expcmdsn;
    return ahead < TGT_WINDOW - sess->outstanding ? TGT_TMF_DONE : TGT_TMF_NO_TASK;
}

/* Abort the tasks of every session, drop RESERVE(6), tell everybody. */
static void reset(struct tgt_tmf_wait *w, struct tgt_lu *lu)
{
    struct tgt_server *s = lu->server;
    for (struct tgt_sess *o = s->sessions; o; o = o->next)
        if (o->lu == lu) {
            abort_all(w, o);
            o->prevents = false;
        }
    lu->reserved = NULL;
    lu->swp = lu->d_sense = false;
    tgt_lu_ua(lu, NULL, TGT_UA_RESET);
}

static uint8_t function(struct tgt_tmf_wait *w, const uint8_t *b)
{
    struct tgt_sess *sess = w->conn->sess;
    struct tgt_lu *lu = sess->lu;
    unsigned fn = b[1] & 0x7fu;
    bool needs_lun = (fn >= TGT_TMF_ABORT_TASK && fn <= TGT_TMF_LUN_RESET) || fn == TGT_TMF_REASSIGN;
    if (needs_lun && !tgt_bhs_lun0(b))
        return TGT_TMF_NO_LUN;
    w->many = fn >= TGT_TMF_ABORT_TASK_SET && fn <= TGT_TMF_COLD_RESET && fn != TGT_TMF_CLEAR_ACA;
    switch (fn) {
    case TGT_TMF_ABORT_TASK:
        return abort_task(w, sess, b);
    case TGT_TMF_ABORT_TASK_SET:
        abort_all(w, sess);
        return TGT_TMF_DONE;
    case TGT_TMF_CLEAR_TASK_SET:
        for (struct tgt_sess *o = lu->server->sessions; o; o = o->next)
            if (o->lu == lu)
                abort_all(w, o);
        tgt_lu_ua(lu, sess, TGT_UA_CLEARED);
        return TGT_TMF_DONE;
    case TGT_TMF_LUN_RESET:
    case TGT_TMF_WARM_RESET:
        reset(w, lu);
        return TGT_TMF_DONE;
    case TGT_TMF_COLD_RESET:
        reset(w, lu);
        w->cold_reset = true;
        return TGT_TMF_DONE;
    case TGT_TMF_REASSIGN:
        return tgt_reassign(w->conn, b);
    case TGT_TMF_CLEAR_ACA:
        return TGT_TMF_UNSUPPORTED;
    default:
        return TGT_TMF_REJECTED;
    }
}

void tgt_tmf_request(struct tgt_conn *c, const uint8_t *bhs)
{
    struct tgt_tmf_wait *w = gr_zalloc(sizeof *w);
    if (!w) {
        tgt_conn_reject(c, bhs, TGT_REJECT_IMMEDIATE);
        return;
    }
    w->conn = c;
    w->itt = tgt_bhs_itt(bhs);
    w->tasks = 1; /* ours, so that nothing is answered before all are aborted */
    c->holds++;
    w->response = function(w, bhs);
    task_gone(w);
}
