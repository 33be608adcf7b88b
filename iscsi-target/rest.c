/* Bringing sessions to rest, so that another process can go on with them (handover.c): what was begun is finished and answered, nothing new
 * is begun. Requests that come meanwhile stay in the socket; where data of a command that was begun lies behind them in the stream, they
 * are read past it and kept as they came. At rest a session is its numbers, its parameters and unread bytes; it has no tasks
 * but those whose answer is kept until it is acknowledged. */
#include "common/cleanup.h"
#include "common/fiber.h"
#include "iscsi-target/handover.h"
#include "iscsi-target/scsi.h"

static bool awaits_data(const struct tgt_conn *c)
{
    for (unsigned i = 0; i < TGT_TASKS; i++)
        if (c->sess->tasks[i].state == TASK_COLLECT && c->sess->tasks[i].conn == c)
            return true;
    return false;
}

/* A request that was taken waits for one with a lower CmdSN, or a response for acknowledgements (ack_fence.c): they must be let in. */
static bool others_wait(const struct tgt_sess *sess)
{
    return sess->held || sess->held_requests || sess->fenced || sess->first;
}

enum tgt_rest tgt_rest_of(const struct tgt_conn *c, const uint8_t *b)
{
    switch (tgt_bhs_opcode(b)) {
    case TGT_OP_DATA_OUT:
    case TGT_OP_SNACK:
        return REST_TAKE;
    case TGT_OP_TEXT:
        if (c->text || c->listing)
            return REST_TAKE; /* an exchange goes on */
        break;
    default:
        break;
    }
    if (!c->parked.len && others_wait(c->sess))
        return REST_TAKE;
    return awaits_data(c) ? REST_PARK : REST_LEAVE;
}

static bool conn_rests(const struct tgt_conn *c)
{
    return !c->tx_count && !c->tx_tasks && !c->tx_misc && !c->text && !c->listing && !c->rx_request && !c->holds && !c->closing &&
           (c->rx_phase == RX_HEADER || c->rx_phase == RX_PARK);
}

/* Answers that are kept (recovery levels 1 and 2) do not disturb the rest. */
static bool tasks_rest(const struct tgt_sess *sess)
{
    unsigned n = sess->n_free;
    for (unsigned i = 0; n < TGT_TASKS && i < TGT_TASKS; i++)
        n += sess->tasks[i].state != TASK_FREE && tgt_task_kept(&sess->tasks[i]);
    return n == TGT_TASKS;
}

bool tgt_sess_rests(const struct tgt_sess *sess)
{
    if (sess->running || others_wait(sess) || !tasks_rest(sess))
        return false;
    for (const struct tgt_conn *c = sess->conns; c; c = c->next)
        if (!conn_rests(c))
            return false;
    return true;
}

const struct tgt_sess *tgt_server_restless(const struct tgt_server *s)
{
    for (const struct tgt_sess *o = s->sessions; o; o = o->next)
        if (!tgt_sess_rests(o))
            return o;
    return NULL;
}

int tgt_conn_unread(struct tgt_conn *c)
{
    c->unread = false;
    struct gr_buf all = c->parked;
    c->parked = (struct gr_buf){0};
    int r = gr_buf_add(&all, c->rx_buf + c->rx_pos, c->rx_end - c->rx_pos);
    if (!r && c->replay.len)
        r = gr_buf_add(&all, c->replay.data + c->replay_off, c->replay.len - c->replay_off);
    gr_buf_done(&c->replay);
    c->replay = all;
    c->replay_off = 0;
    c->rx_pos = c->rx_end = 0;
    c->park_left = 0;
    c->rx_phase = RX_HEADER;
    return r;
}

static void wake(struct tgt_server *s)
{
    struct tgt_sess *next;
    s->resting = false;
    for (struct tgt_sess *o = s->sessions; o; o = next) {
        struct tgt_conn *after;
        next = o->next;
        for (struct tgt_conn *c = o->conns; c; c = after) {
            after = c->next;
            if (c->parked.len && c->parsing) { /* another thread is receiving into its buffer */
                c->unread = true;
            } else if (c->parked.len && tgt_conn_unread(c) < 0) {
                tgt_conn_lost(c, "out of memory");
                continue;
            }
            c->paused = true; /* reading goes on where it stopped */
            tgt_tx_kick(c);
        }
    }
}

int tgt_server_rest(struct tgt_server *s, uint64_t timeout_ms, struct gr_err *err)
{
    if (s->stopping || s->resting)
        return gr_fail(err, -EBUSY, "sessions are being brought to rest, or ended, already");
    tgt_server_deafen(s);
    s->resting = true;
    s->rest_ns = gr_loop_now_ns(s->loop);
    uint64_t deadline = s->rest_ns + timeout_ms * 1000000;
    const struct tgt_sess *busy;
    while ((busy = tgt_server_restless(s)) && gr_loop_now_ns(s->loop) < deadline)
        gr_fiber_sleep_ms(1);
    if (!busy)
        return 0;
    gr_fail(err, -EBUSY, "session %u of %s on '%s' did not come to rest: commands of it are still under way", busy->id, busy->initiator, busy->lu->disk);
    wake(s);
    tgt_server_hear(s);
    return -EBUSY;
}
