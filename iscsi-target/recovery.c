/* Error recovery above level 0 (RFC 7143 7): answers are kept until ExpStatSN acknowledges them, SNACK has them sent again
 * (level 1), tasks move to another connection when theirs has failed (level 2).
 *
 * A task whose answer is kept holds its buffer, so that the very bytes can be sent again. What is kept is bounded: the oldest
 * answers go first, and a SNACK for one of them is refused. */
#include "common/cleanup.h"
#include "iscsi-target/target_int.h"
#include <stdlib.h>

static struct tgt_task *task_of(struct tgt_unacked *u)
{
    return gr_container_of(u, struct tgt_task, unacked);
}

static struct tgt_misc *misc_of(struct tgt_unacked *u)
{
    return gr_container_of(u, struct tgt_misc, unacked);
}

static bool in_use(struct tgt_unacked *u)
{
    return u->is_task ? task_of(u)->in_ring || task_of(u)->in_tx : misc_of(u)->in_ring || u->again;
}

static size_t bytes_of(struct tgt_unacked *u)
{
    return u->is_task ? task_of(u)->cap : misc_of(u)->len;
}

void tgt_unacked_remove(struct tgt_conn *c, struct tgt_unacked *u)
{
    struct tgt_unacked **p = &c->unacked, *prev = NULL;
    for (; *p != u; p = &(*p)->next)
        prev = *p;
    *p = u->next;
    if (c->unacked_last == u)
        c->unacked_last = prev;
    u->listed = u->again = false;
    c->sess->n_unacked--;
    c->sess->unacked_bytes -= bytes_of(u);
}

static void forget(struct tgt_conn *c, struct tgt_unacked *u)
{
    tgt_unacked_remove(c, u);
    if (u->is_task)
        tgt_task_release(task_of(u));
    else
        free(misc_of(u));
}

void tgt_unacked_add(struct tgt_conn *c, struct tgt_unacked *u, uint32_t statsn)
{
    struct tgt_sess *sess = c->sess;
    u->next = NULL;
    u->statsn = statsn;
    u->listed = true;
    u->again = false;
    if (c->unacked_last)
        c->unacked_last->next = u;
    else
        c->unacked = u;
    c->unacked_last = u;
    sess->n_unacked++;
    sess->unacked_bytes += bytes_of(u);
    while ((sess->n_unacked > TGT_UNACKED_MAX || sess->unacked_bytes > TGT_UNACKED_BYTES) && c->unacked != u && !in_use(c->unacked))
        forget(c, c->unacked);
}

void tgt_ack(struct tgt_conn *c, uint32_t expstatsn)
{
    if (tgt_sn_lt(c->statsn, expstatsn))
        return; /* of what was never sent: some initiators count wrongly, and it says nothing */
    if (tgt_sn_lt(c->acked, expstatsn))
        c->acked = expstatsn;
    if (c->fenced)
        tgt_fence_acked(c);
    while (c->unacked && tgt_sn_lt(c->unacked->statsn, expstatsn) && !in_use(c->unacked))
        forget(c, c->unacked);
}

/* The connection ends: tasks stay, by whoever keeps them. */
void tgt_unacked_drop(struct tgt_conn *c)
{
    while (c->unacked) {
        struct tgt_unacked *u = c->unacked;
        tgt_unacked_remove(c, u);
        if (!u->is_task)
            free(misc_of(u));
    }
}

/* ---- SNACK ---- */

/* Where Data-In number @sn begins: segments of the initiator's length, cut at the end of each burst. */
uint32_t tgt_data_in_off(const struct tgt_task *t, uint32_t sn)
{
    uint32_t burst = t->sess->params.max_burst, seg = t->segment, per_burst = (burst + seg - 1) / seg;
    uint32_t n = sn - t->base_sn, off = t->base_off, left = burst - off % burst, first = (left + seg - 1) / seg;
    if (n < first)
        return off + n * seg;
    n -= first;
    return off + left + n / per_burst * burst + n % per_burst * seg;
}

static bool again_data_in(struct tgt_task *t, uint32_t from, uint32_t count)
{
    uint32_t end = count ? from + count : t->datasn;
    if (from < t->base_sn || from >= t->datasn || end > t->datasn || end < from)
        return false; /* acknowledged, or never sent */
    bool pending = t->again_sn != t->again_end;
    t->again_sn = pending ? GR_MIN(t->again_sn, from) : from;
    t->again_end = pending ? GR_MAX(t->again_end, end) : end;
    tgt_task_to_send(t);
    return true;
}

static bool again_r2t(struct tgt_task *t, uint32_t from, uint32_t count)
{
    if (from >= t->r2tsn || (count && count > t->r2tsn - from))
        return false;
    for (unsigned i = 0; i < t->n_r2t; i++) /* one that has been answered needs no repeating */
        if (t->r2t[i].sn - from < (count ? count : UINT32_MAX))
            t->r2t[i].due = true;
    tgt_task_to_send(t);
    return true;
}

static bool snack_data(struct tgt_conn *c, uint32_t from, uint32_t count)
{
    struct tgt_task *t = tgt_task_find(c->sess, tgt_bhs_itt(c->rx_bhs));
    if (!t || t->conn != c || t->aborted)
        return false;
    if (t->state == TASK_COLLECT)
        return again_r2t(t, from, count);
    return t->state == TASK_REPLY && again_data_in(t, from, count);
}

/* All data anew, in segments of the length that holds now, and the status behind it with the initiator's tag. */
static bool snack_r_data(struct tgt_conn *c)
{
    struct tgt_task *t = tgt_task_find(c->sess, tgt_bhs_itt(c->rx_bhs));
    uint32_t tag = tgt_bhs_ttt(c->rx_bhs);
    if (!t || t->conn != c || t->aborted || t->state != TASK_REPLY || !t->in_len || !tag || tag == TGT_TAG_NONE || t->in_ring)
        return false;
    if (t->unacked.listed)
        tgt_unacked_remove(c, &t->unacked);
    t->snack_tag = tag;
    t->separate = true;
    t->answered = t->collapsed = false;
    t->tx_off = t->base_off;
    t->datasn = t->again_sn = t->again_end = t->base_sn;
    t->segment = c->params.max_send_dsl;
    tgt_task_to_send(t);
    return true;
}

static void again_answer(struct tgt_conn *c, struct tgt_unacked *u)
{
    if (u->is_task) {
        u->again = true;
        tgt_task_to_send(task_of(u));
    } else {
        u->again = true;
        c->n_misc++;
        tgt_misc_send(c, misc_of(u));
    }
}

static bool snack_status(struct tgt_conn *c, uint32_t from, uint32_t count)
{
    if (!tgt_sn_lt(from, c->statsn) || (count && tgt_sn_lt(c->statsn, from + count)))
        return false;
    uint32_t wanted = count ? count : c->statsn - from, found = 0;
    for (struct tgt_unacked *u = c->unacked; u; u = u->next) {
        if (u->statsn - from >= wanted)
            continue;
        found++;
        if (!in_use(u)) /* else it is on its way already */
            again_answer(c, u);
    }
    return found == wanted;
}

void tgt_snack(struct tgt_conn *c)
{
    const uint8_t *b = c->rx_bhs;
    uint32_t from = gr_get_be32(b + 40), count = gr_get_be32(b + 44);
    bool done = false;
    if (!c->params.error_recovery_level) {
        tgt_conn_reject(c, b, TGT_REJECT_PROTOCOL);
        return;
    }
    switch (b[1] & 0x0f) {
    case 0:
        done = snack_data(c, from, count);
        break;
    case 1:
        done = tgt_bhs_itt(b) == TGT_TAG_NONE && snack_status(c, from, count);
        break;
    case 3:
        done = snack_r_data(c);
        break;
    default: /* 2, DataACK: we never ask for one */
        break;
    }
    if (!done)
        tgt_conn_reject(c, b, TGT_REJECT_SNACK);
}

/* ---- TASK REASSIGN ---- */

uint8_t tgt_reassign(struct tgt_conn *c, const uint8_t *bhs)
{
    struct tgt_task *t = tgt_task_find(c->sess, gr_get_be32(bhs + 20));
    uint32_t expdatasn = gr_get_be32(bhs + 36);
    if (c->params.error_recovery_level < 2)
        return TGT_TMF_NO_REASSIGN;
    if (!t || t->aborted || t->state == TASK_HELD)
        return TGT_TMF_NO_TASK;
    if (t->conn)
        return TGT_TMF_ALLEGIANT;
    t->conn = c;
    if (t->state == TASK_COLLECT) {
        tgt_task_resend_r2ts(t);
    } else {
        /* data below ExpDataSN is acknowledged; the rest goes again, cut to this connection's segments (RFC 7143 11.5.6) */
        if (expdatasn > t->base_sn && expdatasn <= t->datasn) {
            t->base_off = GR_MIN(tgt_data_in_off(t, expdatasn), t->in_len);
            t->base_sn = expdatasn;
        }
        t->tx_off = t->base_off;
        t->datasn = t->again_sn = t->again_end = t->base_sn;
        t->answered = t->collapsed = false;
        t->segment = c->params.max_send_dsl;
        if (t->state == TASK_REPLY)
            tgt_task_to_send(t);
    }
    return TGT_TMF_DONE;
}
