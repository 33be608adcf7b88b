/* Sending: everything that became ready during a turn of the loop goes out in one sendmsg, data by reference. Numbers that
 * belong to the moment of sending (StatSN, ExpCmdSN, MaxCmdSN) are filled in when a PDU enters the ring. */
#include "common/cleanup.h"
#include "common/crc.h"
#include "iscsi-target/target_int.h"
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

void tgt_tx_kick(struct tgt_sess *sess)
{
    if (sess->fd >= 0)
        gr_loop_defer(sess->server->loop, &sess->flush);
}

static void seal(const struct tgt_sess *sess, struct tgt_tx *tx)
{
    tx->head_len = TGT_BHS_LEN;
    tx->tail_len = (uint8_t)tgt_pad4(tx->len);
    memset(tx->tail, 0, tx->tail_len);
    if (sess->params.header_digest) {
        tgt_digest_put(tx->head + TGT_BHS_LEN, gr_crc32c(0, tx->head, TGT_BHS_LEN));
        tx->head_len += 4;
    }
    if (sess->params.data_digest && tx->len) {
        uint32_t crc = gr_crc32c(gr_crc32c(0, tx->data, tx->len), tx->tail, tx->tail_len);
        tgt_digest_put(tx->tail + tx->tail_len, crc);
        tx->tail_len = (uint8_t)(tx->tail_len + 4);
    }
}

static struct tgt_tx *slot(struct tgt_sess *sess)
{
    struct tgt_tx *tx = &sess->tx[(sess->tx_head + sess->tx_count++) % TGT_TX_PDUS];
    tx->data = NULL;
    tx->len = 0;
    tx->ends = NULL;
    tx->misc = NULL;
    tx->last = false;
    return tx;
}

static void put_misc(struct tgt_sess *sess)
{
    struct tgt_misc *m = sess->tx_misc;
    struct tgt_tx *tx = slot(sess);
    sess->tx_misc = m->next;
    if (!sess->tx_misc)
        sess->tx_misc_last = NULL;
    memcpy(tx->head, m->bhs, TGT_BHS_LEN);
    gr_put_be24(tx->head + 5, m->len);
    tgt_bhs_sns(tx->head, sess->statsn, sess->expcmdsn, tgt_sess_maxcmdsn(sess));
    if (m->takes_statsn)
        sess->statsn++;
    tx->data = m->data;
    tx->len = m->len;
    tx->misc = m;
    tx->last = m->last;
    seal(sess, tx);
}

static void put_r2t(struct tgt_sess *sess, struct tgt_task *t)
{
    struct tgt_r2t *r = &t->r2t[t->n_r2t++];
    struct tgt_tx *tx = slot(sess);
    r->off = t->r2t_off;
    r->len = GR_MIN(sess->params.max_burst, t->out_need - t->r2t_off);
    r->got = r->datasn = 0;
    r->ttt = (uint32_t)t->index << 16 | (t->r2t_seq++ & 0xffffu);
    t->r2t_off += r->len;
    tgt_bhs_start(tx->head, TGT_OP_R2T, TGT_FINAL, t->itt, 0);
    gr_put_be32(tx->head + 20, r->ttt);
    tgt_bhs_sns(tx->head, sess->statsn, sess->expcmdsn, tgt_sess_maxcmdsn(sess));
    gr_put_be32(tx->head + 36, t->r2tsn++);
    gr_put_be32(tx->head + 40, r->off);
    gr_put_be32(tx->head + 44, r->len);
    seal(sess, tx);
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

static void answered(struct tgt_sess *sess, struct tgt_task *t)
{
    if (t->counted)
        sess->outstanding--;
    t->counted = false;
}

static void put_status(struct tgt_sess *sess, struct tgt_task *t)
{
    uint32_t count;
    struct tgt_tx *tx = slot(sess);
    answered(sess, t);
    tgt_bhs_start(tx->head, TGT_OP_SCSI_RSP, (uint8_t)(TGT_FINAL | residual(t, &count)), t->itt, 0);
    tx->head[3] = t->status;
    if (t->sense_len) {
        gr_put_be16(t->sense, t->sense_len);
        tx->data = t->sense;
        tx->len = t->sense_len + 2u;
        gr_put_be24(tx->head + 5, tx->len);
    }
    tgt_bhs_sns(tx->head, sess->statsn++, sess->expcmdsn, tgt_sess_maxcmdsn(sess));
    gr_put_be32(tx->head + 36, t->datasn);
    gr_put_be32(tx->head + 44, count);
    tx->ends = t;
    seal(sess, tx);
}

/* The next Data-In; with the status in the last one. */
static void put_data_in(struct tgt_sess *sess, struct tgt_task *t)
{
    struct tgt_tx *tx = slot(sess);
    uint32_t burst_left = sess->params.max_burst - t->tx_off % sess->params.max_burst;
    uint32_t len = GR_MIN(GR_MIN(sess->params.max_send_dsl, t->in_len - t->tx_off), burst_left);
    bool last = t->tx_off + len == t->in_len;
    uint8_t flags = last || len == burst_left ? TGT_FINAL : 0;
    uint32_t count = 0;
    if (last) {
        answered(sess, t);
        flags |= (uint8_t)(0x01 | residual(t, &count));
    }
    tgt_bhs_start(tx->head, TGT_OP_DATA_IN, flags, t->itt, len);
    gr_put_be32(tx->head + 20, TGT_TAG_NONE);
    tgt_bhs_sns(tx->head, last ? sess->statsn++ : 0, sess->expcmdsn, tgt_sess_maxcmdsn(sess));
    gr_put_be32(tx->head + 36, t->datasn++);
    gr_put_be32(tx->head + 40, t->tx_off);
    if (last) {
        tx->head[3] = t->status;
        gr_put_be32(tx->head + 44, count);
        tx->ends = t;
    }
    tx->data = t->buf + t->tx_off;
    tx->len = len;
    t->tx_off += len;
    seal(sess, tx);
}

/* One PDU of the first task that has something; false: it is done with its turn. */
static bool put_task(struct tgt_sess *sess, struct tgt_task *t)
{
    if (t->state == TASK_COLLECT && !t->aborted) {
        if (t->unsolicited || t->n_r2t >= sess->params.max_outstanding_r2t || t->r2t_off >= t->out_need)
            return false;
        put_r2t(sess, t);
        return true;
    }
    if (t->state != TASK_REPLY)
        return false;
    if (t->tx_off < t->in_len) {
        put_data_in(sess, t);
        return t->tx_off < t->in_len;
    }
    put_status(sess, t);
    return false;
}

static void fill(struct tgt_sess *sess)
{
    while (sess->tx_count < TGT_TX_PDUS && sess->tx_misc)
        put_misc(sess);
    while (sess->tx_count < TGT_TX_PDUS && sess->tx_tasks) {
        struct tgt_task *t = sess->tx_tasks;
        if (put_task(sess, t))
            continue;
        sess->tx_tasks = t->tx_next;
        if (!sess->tx_tasks)
            sess->tx_tasks_last = NULL;
        t->tx_next = NULL;
        t->in_tx = false;
    }
}

/* @n bytes of the ring are out. */
static void advance(struct tgt_sess *sess, size_t n)
{
    n += sess->tx_done;
    while (sess->tx_count) {
        struct tgt_tx *tx = &sess->tx[sess->tx_head];
        size_t len = (size_t)tx->head_len + tx->len + tx->tail_len;
        if (n < len)
            break;
        n -= len;
        sess->tx_head = (sess->tx_head + 1) % TGT_TX_PDUS;
        sess->tx_count--;
        if (tx->ends)
            tgt_task_release(tx->ends);
        if (tx->misc) {
            free(tx->misc);
            sess->n_misc--;
        }
        if (tx->last) {
            tgt_sess_close(sess, "logged out");
            return;
        }
    }
    sess->tx_done = (uint32_t)n;
}

static int gather(const struct tgt_sess *sess, struct iovec *iov)
{
    int n = 0;
    size_t skip = sess->tx_done;
    for (unsigned i = 0; i < sess->tx_count; i++) {
        struct tgt_tx *tx = &sess->tx[(sess->tx_head + i) % TGT_TX_PDUS];
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

static void resume_reading(struct tgt_sess *sess)
{
    if (!sess->paused || !sess->n_free || sess->n_misc >= TGT_MISC_MAX || sess->closing)
        return;
    sess->paused = false;
    tgt_rx_ready(sess);
}

static void watch(struct tgt_sess *sess, bool want_out)
{
    int events = (sess->paused || sess->closing ? 0 : POLLIN) | (want_out ? POLLOUT : 0);
    if (sess->watch.events != events)
        gr_watch_set(sess->server->loop, &sess->watch, events);
}

void tgt_tx_flush(struct tgt_sess *sess)
{
    struct iovec iov[3 * TGT_TX_PDUS];
    bool blocked = false;
    while (sess->fd >= 0 && !blocked) {
        fill(sess);
        if (!sess->tx_count)
            break;
        struct msghdr h = {.msg_iov = iov, .msg_iovlen = (size_t)gather(sess, iov)};
        ssize_t n = sendmsg(sess->fd, &h, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN) {
            tgt_sess_close(sess, "the connection broke while sending");
            return;
        }
        blocked = n < 0;
        if (!blocked)
            advance(sess, (size_t)n);
    }
    if (sess->fd < 0)
        return;
    watch(sess, blocked);
    resume_reading(sess);
    if (sess->fd >= 0)
        watch(sess, blocked);
}

void tgt_tx_drop(struct tgt_sess *sess)
{
    while (sess->tx_misc) {
        struct tgt_misc *m = sess->tx_misc;
        sess->tx_misc = m->next;
        free(m);
    }
    for (; sess->tx_count; sess->tx_count--) {
        free(sess->tx[sess->tx_head].misc);
        sess->tx_head = (sess->tx_head + 1) % TGT_TX_PDUS;
    }
    sess->tx_misc_last = NULL;
    sess->n_misc = 0;
    sess->tx_tasks = sess->tx_tasks_last = NULL;
}
