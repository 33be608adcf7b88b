/* Sending: everything that became ready during a turn of the loop goes out in one sendmsg, data by reference. Numbers that
 * belong to the moment of sending (StatSN, ExpCmdSN, MaxCmdSN) are filled in when a PDU enters the ring. */
#include "common/cleanup.h"
#include "common/crc.h"
#include "common/gang.h"
#include "iscsi-target/target_int.h"
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

/* In one system call: the initiator is at work on the first while we send the rest, so that it and the device do not wait for each other. */
#define SEND_ANSWERS 16u
#define TURN_BYTES (256u << 10) /* of one long answer, before others that wait have their turn */

void tgt_tx_kick(struct tgt_conn *c)
{
    if (c->fd >= 0)
        gr_loop_defer(c->sess->loop, &c->flush);
}

static void seal(const struct tgt_conn *c, struct tgt_tx *tx)
{
    tx->head_len = TGT_BHS_LEN;
    tx->tail_len = (uint8_t)tgt_pad4(tx->len);
    memset(tx->tail, 0, tx->tail_len);
    if (c->params.header_digest) {
        tgt_digest_put(tx->head + TGT_BHS_LEN, gr_crc32c(0, tx->head, TGT_BHS_LEN));
        tx->head_len += 4;
    }
    if (c->params.data_digest && tx->len) {
        uint32_t crc = gr_crc32c(gr_crc32c(0, tx->data, tx->len), tx->tail, tx->tail_len);
        tgt_digest_put(tx->tail + tx->tail_len, crc);
        tx->tail_len = (uint8_t)(tx->tail_len + 4);
    }
}

static struct tgt_tx *slot(struct tgt_conn *c, struct tgt_task *t)
{
    struct tgt_tx *tx = &c->tx[(c->tx_head + c->tx_count++) % TGT_TX_PDUS];
    tx->data = NULL;
    tx->len = 0;
    tx->task = t;
    tx->misc = NULL;
    tx->ends = false;
    if (t)
        t->in_ring++;
    return tx;
}

static void numbers(const struct tgt_conn *c, struct tgt_tx *tx, uint32_t statsn)
{
    tgt_bhs_sns(tx->head, statsn, c->sess->expcmdsn, tgt_sess_maxcmdsn(c->sess));
}

/* The StatSN of an answer: the next one, or its own when it is sent again. */
static uint32_t take_statsn(struct tgt_conn *c, struct tgt_unacked *u)
{
    if (u->listed)
        return u->statsn;
    if (c->params.error_recovery_level)
        tgt_unacked_add(c, u, c->statsn);
    return c->statsn++;
}

static void put_misc(struct tgt_conn *c, struct tgt_misc *m)
{
    struct tgt_tx *tx = slot(c, NULL);
    memcpy(tx->head, m->bhs, TGT_BHS_LEN);
    gr_put_be24(tx->head + 5, m->len);
    numbers(c, tx, m->takes_statsn ? take_statsn(c, &m->unacked) : c->statsn);
    m->unacked.again = false;
    m->in_ring = true;
    if (m->fences) {
        m->fences = false;
        tgt_fence_sent(c);
    }
    tx->data = m->data;
    tx->len = m->len;
    tx->misc = m;
    seal(c, tx);
}

static struct tgt_misc *next_misc(struct tgt_conn *c)
{
    struct tgt_misc *m = c->tx_misc;
    c->tx_misc = m->next;
    if (!c->tx_misc)
        c->tx_misc_last = NULL;
    m->next = NULL;
    return m;
}

/* The R2T to send: one that is due again, or the next of the data still missing; NULL: none now. */
static struct tgt_r2t *next_r2t(const struct tgt_conn *c, struct tgt_task *t)
{
    for (unsigned i = 0; i < t->n_r2t; i++)
        if (t->r2t[i].due)
            return &t->r2t[i];
    if (t->unsolicited || t->n_r2t >= c->params.max_outstanding_r2t || t->r2t_off >= t->out_need)
        return NULL;
    struct tgt_r2t *r = &t->r2t[t->n_r2t++];
    *r = (struct tgt_r2t){.off = t->r2t_off, .len = GR_MIN(c->params.max_burst, t->out_need - t->r2t_off), .sn = t->r2tsn++};
    r->ttt = (uint32_t)t->index << 16 | (t->r2t_seq++ & 0xffffu);
    t->r2t_off += r->len;
    return r;
}

static void put_r2t(struct tgt_conn *c, struct tgt_task *t, struct tgt_r2t *r)
{
    struct tgt_tx *tx = slot(c, t);
    r->due = false;
    tgt_bhs_start(tx->head, TGT_OP_R2T, TGT_FINAL, t->itt, 0);
    gr_put_be32(tx->head + 20, r->ttt);
    numbers(c, tx, c->statsn);
    gr_put_be32(tx->head + 36, r->sn);
    gr_put_be32(tx->head + 40, r->off);
    gr_put_be32(tx->head + 44, r->len);
    seal(c, tx);
}

/* Expected minus transferred: the flag and the count (RFC 7143 11.4.5). */
static uint8_t residual(const struct tgt_task *t, uint32_t *ret_count)
{
    uint32_t total = t->out_total ? t->out_total : t->in_total;
    if (t->status == 0x02) /* CHECK CONDITION: nothing was transferred to the initiator */
        total = t->out_total ? t->out_total : 0;
    if (total > t->edtl) {
        *ret_count = total - t->edtl;
        return 0x04;
    }
    *ret_count = t->edtl - total;
    return *ret_count ? 0x02 : 0;
}

static void answered(struct tgt_conn *c, struct tgt_task *t)
{
    if (t->counted)
        c->sess->outstanding--;
    t->counted = false;
    t->answered = true;
}

static void put_status(struct tgt_conn *c, struct tgt_task *t)
{
    uint32_t count;
    struct tgt_tx *tx = slot(c, t);
    answered(c, t);
    tgt_bhs_start(tx->head, TGT_OP_SCSI_RSP, (uint8_t)(TGT_FINAL | residual(t, &count)), t->itt, 0);
    tx->head[3] = t->status;
    if (t->sense_len) {
        gr_put_be16(t->sense, t->sense_len);
        tx->data = t->sense;
        tx->len = t->sense_len + 2u;
        gr_put_be24(tx->head + 5, tx->len);
    }
    gr_put_be32(tx->head + 20, t->snack_tag);
    numbers(c, tx, take_statsn(c, &t->unacked));
    gr_put_be32(tx->head + 36, t->datasn);
    gr_put_be32(tx->head + 44, count);
    tx->ends = true;
    seal(c, tx);
}

/* Bytes of the Data-In that begins at @off. */
static uint32_t data_in_len(const struct tgt_conn *c, const struct tgt_task *t, uint32_t off)
{
    uint32_t burst_left = c->params.max_burst - off % c->params.max_burst;
    return GR_MIN(GR_MIN(t->segment, t->in_len - off), burst_left);
}

/* Data-In number @sn from @off; with the status in the last one. */
static void put_data_in(struct tgt_conn *c, struct tgt_task *t, uint32_t sn, uint32_t off)
{
    struct tgt_tx *tx = slot(c, t);
    uint32_t len = data_in_len(c, t, off);
    bool whole = off + len == t->in_len, last = whole && !t->separate;
    uint8_t flags = whole || (off + len) % c->params.max_burst == 0 ? TGT_FINAL : 0;
    uint32_t count = 0;
    if (last) {
        answered(c, t);
        t->collapsed = true;
        flags |= (uint8_t)(0x01 | residual(t, &count));
    }
    tgt_bhs_start(tx->head, TGT_OP_DATA_IN, flags, t->itt, len);
    gr_put_be32(tx->head + 20, TGT_TAG_NONE);
    numbers(c, tx, last ? take_statsn(c, &t->unacked) : 0);
    gr_put_be32(tx->head + 36, sn);
    gr_put_be32(tx->head + 40, off);
    if (last) {
        tx->head[3] = t->status;
        gr_put_be32(tx->head + 44, count);
        tx->ends = true;
    }
    tx->data = t->buf + off;
    tx->len = len;
    seal(c, tx);
}

/* One PDU of an answer; false: there is no more. */
static bool put_answer(struct tgt_conn *c, struct tgt_task *t)
{
    if (t->again_sn != t->again_end) { /* asked for by a SNACK */
        put_data_in(c, t, t->again_sn, tgt_data_in_off(t, t->again_sn));
        t->again_sn++;
    } else if (t->tx_off < t->in_len) {
        uint32_t off = t->tx_off;
        t->tx_off += data_in_len(c, t, off);
        put_data_in(c, t, t->datasn++, off);
    } else if (!t->answered) {
        put_status(c, t);
    } else if (t->unacked.again) {
        t->unacked.again = false;
        if (t->collapsed)
            put_data_in(c, t, t->datasn - 1, tgt_data_in_off(t, t->datasn - 1));
        else
            put_status(c, t);
    }
    return t->again_sn != t->again_end || t->tx_off < t->in_len || !t->answered || t->unacked.again;
}

/* One PDU of the first task that has something; false: it is done with its turn. */
static bool put_task(struct tgt_conn *c, struct tgt_task *t)
{
    if (t->state == TASK_COLLECT && !t->aborted) {
        struct tgt_r2t *r = next_r2t(c, t);
        if (r)
            put_r2t(c, t, r);
        return r != NULL;
    }
    return t->state == TASK_REPLY && put_answer(c, t);
}

static void fill(struct tgt_conn *c)
{
    unsigned answers = 0;
    while (c->tx_count < TGT_TX_PDUS && c->tx_misc)
        put_misc(c, next_misc(c));
    bool fenced = c->sess->first && c->sess->first != c;
    for (uint32_t turn = 0; !fenced && c->tx_count < TGT_TX_PDUS && answers < SEND_ANSWERS && c->tx_tasks;) {
        struct tgt_task *t = c->tx_tasks;
        bool more = put_task(c, t);
        answers += !more;
        turn += TGT_BHS_LEN + c->tx[(c->tx_head + c->tx_count - 1) % TGT_TX_PDUS].len;
        if (more && (turn < TURN_BYTES || !t->tx_next))
            continue;
        c->tx_tasks = t->tx_next;
        if (!c->tx_tasks)
            c->tx_tasks_last = NULL;
        t->tx_next = NULL;
        t->in_tx = false;
        if (more)
            tgt_task_to_send(t);
        turn = 0;
    }
}

/* A PDU of a task is out. Its answer is kept where it may be asked for again. */
static void task_out(struct tgt_task *t, bool ends)
{
    t->in_ring--;
    if (ends && !t->unacked.listed && !t->in_ring && !t->in_tx)
        tgt_task_release(t);
    else if (ends)
        tgt_tmf_task_ended(t);
}

/* False: the connection was closed. */
static bool misc_out(struct tgt_conn *c, struct tgt_misc *m)
{
    enum tgt_after after = m->after;
    m->in_ring = false;
    c->n_misc--;
    if (!m->unacked.listed)
        free(m);
    if (after == AFTER_CLOSE_SESSION)
        tgt_sess_close(c->sess, "logged out");
    else if (after == AFTER_CLOSE_CONN)
        tgt_conn_close(c, LEAVE_DROP, "logged out");
    return after == AFTER_NOTHING;
}

/* @n bytes of the ring are out. */
static void advance(struct tgt_conn *c, size_t n)
{
    n += c->tx_done;
    while (c->tx_count) {
        struct tgt_tx *tx = &c->tx[c->tx_head];
        size_t len = (size_t)tx->head_len + tx->len + tx->tail_len;
        if (n < len)
            break;
        n -= len;
        c->tx_done = 0;
        c->tx_head = (c->tx_head + 1) % TGT_TX_PDUS;
        c->tx_count--;
        if (tx->task)
            task_out(tx->task, tx->ends);
        if (tx->misc && !misc_out(c, tx->misc))
            return;
    }
    c->tx_done = (uint32_t)n;
}

static int gather(const struct tgt_conn *c, struct iovec *iov)
{
    int n = 0;
    size_t skip = c->tx_done;
    for (unsigned i = 0; i < c->tx_count; i++) {
        struct tgt_tx *tx = &c->tx[(c->tx_head + i) % TGT_TX_PDUS];
        union {
            const uint8_t *in;
            void *out;
        } data = {.in = tx->data}; /* an iovec has no const */
        struct iovec part[3] = {{tx->head, tx->head_len}, {data.out, tx->len}, {tx->tail, tx->tail_len}};
        for (int j = 0; j < 3; j++) {
            if (skip >= part[j].iov_len) {
                skip -= part[j].iov_len;
                continue;
            }
            iov[n++] = (struct iovec){(char *)part[j].iov_base + skip, part[j].iov_len - skip};
            skip = 0;
        }
    }
    return n;
}

static void resume_reading(struct tgt_conn *c)
{
    if (!c->paused || tgt_rx_must_wait(c))
        return;
    c->paused = false;
    tgt_rx_ready(c);
}

static void watch(struct tgt_conn *c, bool want_out)
{
    int events = (c->paused || c->closing ? 0 : POLLIN) | (want_out ? POLLOUT : 0);
    if (c->watch.events != events)
        gr_watch_set(c->sess->loop, &c->watch, events);
}

static ssize_t send_ring(struct tgt_conn *c, bool open)
{
    struct iovec iov[3 * TGT_TX_PDUS];
    struct msghdr h = {.msg_iov = iov, .msg_iovlen = (size_t)gather(c, iov)};
    int fd = c->fd;
    if (open) {
        atomic_store(&c->in_call, true);
        gr_gang_open();
    }
    ssize_t n = sendmsg(fd, &h, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0)
        n = -errno;
    if (open) {
        atomic_store(&c->in_call, false);
        gr_gang_close();
    }
    return n;
}

static void transmit(struct tgt_conn *c, bool open)
{
    bool blocked = false;
    c->flushing = true;
    while (c->fd >= 0 && !blocked) {
        fill(c);
        if (!c->tx_count)
            break;
        ssize_t n = send_ring(c, open);
        if (n == -EINTR || c->fd < 0)
            continue;
        if (n < 0 && n != -EAGAIN) {
            tgt_conn_lost(c, "the connection broke while sending");
            break;
        }
        blocked = n < 0;
        if (!blocked)
            advance(c, (size_t)n);
    }
    c->flushing = false;
    if (c->fd < 0)
        return;
    watch(c, blocked);
    resume_reading(c);
    if (c->fd >= 0)
        watch(c, blocked);
}

void tgt_tx_flush(struct tgt_conn *c)
{
    if (!c->flushing) /* else what is new goes out next */
        transmit(c, false);
}

void tgt_tx_turn(struct tgt_conn *c)
{
    if (!c->flushing)
        transmit(c, true);
}

void tgt_tx_forget(struct tgt_task *t)
{
    struct tgt_conn *c = t->conn;
    for (unsigned i = 0; c && i < c->tx_count; i++) {
        struct tgt_tx *tx = &c->tx[(c->tx_head + i) % TGT_TX_PDUS];
        if (tx->task == t)
            tx->task = NULL;
    }
    t->in_ring = 0;
}

void tgt_tx_drop(struct tgt_conn *c)
{
    while (c->tx_misc) {
        struct tgt_misc *m = next_misc(c);
        if (!m->unacked.listed)
            free(m);
    }
    for (; c->tx_count; c->tx_count--) {
        struct tgt_tx *tx = &c->tx[c->tx_head];
        if (tx->task)
            tx->task->in_ring--;
        if (tx->misc) {
            tx->misc->in_ring = false;
            if (!tx->misc->unacked.listed)
                free(tx->misc);
        }
        c->tx_head = (c->tx_head + 1) % TGT_TX_PDUS;
    }
    c->n_misc = 0;
    tgt_unacked_drop(c);
    while (c->tx_tasks) {
        c->tx_tasks->in_tx = false;
        c->tx_tasks = c->tx_tasks->tx_next;
    }
    c->tx_tasks_last = NULL;
}
