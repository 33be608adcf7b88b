/* Receiving: one recv brings many PDUs into the session's buffer; a large data segment is received straight into the task's
 * buffer, and what follows it into ours, by the same system call. */
#include "common/cleanup.h"
#include "common/crc.h"
#include "iscsi-target/target_int.h"
#include <sys/socket.h>
#include <unistd.h>

#define DIRECT_MIN 16384u /* segments with so much still to come bypass the buffer */

static bool congested(const struct tgt_sess *sess)
{
    return !sess->n_free || sess->n_misc >= TGT_MISC_MAX || sess->closing;
}

/* A header with its AHS and digest is in the buffer: check and act on it. False: stop parsing. */
static bool header(struct tgt_sess *sess)
{
    const uint8_t *b = sess->rx_buf + sess->rx_pos;
    uint32_t avail = sess->rx_end - sess->rx_pos;
    if (avail < TGT_BHS_LEN)
        return false;
    uint32_t ahs = tgt_bhs_ahs_len(b), len = TGT_BHS_LEN + ahs;
    uint32_t need = len + (sess->params.header_digest ? 4 : 0);
    if (avail < need)
        return false;
    if (congested(sess)) {
        sess->paused = true;
        return false;
    }
    if (sess->params.header_digest && tgt_digest_get(b + len) != gr_crc32c(0, b, len)) {
        tgt_sess_close(sess, "a header digest was wrong");
        return false;
    }
    memcpy(sess->rx_bhs, b, TGT_BHS_LEN);
    sess->rx_pos += need;
    sess->rx_len = sess->rx_left = tgt_bhs_dsl(b);
    sess->rx_to = NULL;
    sess->rx_task = NULL;
    sess->rx_misc = NULL;
    sess->rx_phase = RX_DATA;
    if (sess->rx_len > TGT_MAX_DSL) {
        tgt_sess_close(sess, "a data segment was longer than negotiated");
        return false;
    }
    return tgt_pdu_header(sess, ahs ? b + TGT_BHS_LEN : NULL);
}

static bool segment(struct tgt_sess *sess)
{
    uint32_t n = GR_MIN(sess->rx_left, sess->rx_end - sess->rx_pos);
    if (n && sess->rx_to)
        memcpy(sess->rx_to + (sess->rx_len - sess->rx_left), sess->rx_buf + sess->rx_pos, n);
    sess->rx_pos += n;
    sess->rx_left -= n;
    if (sess->rx_left)
        return false;
    sess->rx_phase = RX_TAIL;
    return true;
}

static bool tail(struct tgt_sess *sess)
{
    const uint8_t *b = sess->rx_buf + sess->rx_pos;
    uint32_t pad = tgt_pad4(sess->rx_len);
    uint32_t need = pad + (sess->params.data_digest && sess->rx_len ? 4 : 0);
    if (sess->rx_end - sess->rx_pos < need)
        return false;
    if (need > pad && sess->rx_to) {
        uint32_t crc = gr_crc32c(gr_crc32c(0, sess->rx_to, sess->rx_len), b, pad);
        if (crc != tgt_digest_get(b + pad)) {
            tgt_sess_reject(sess, sess->rx_bhs, TGT_REJECT_DATA_DIGEST);
            tgt_tx_flush(sess);
            tgt_sess_close(sess, "a data digest was wrong"); /* error recovery level 0: the session is given up */
            return false;
        }
    }
    sess->rx_pos += need;
    sess->rx_phase = RX_HEADER;
    tgt_pdu_whole(sess);
    return sess->fd >= 0;
}

static void parse(struct tgt_sess *sess)
{
    bool more = true;
    while (more && sess->fd >= 0) {
        switch (sess->rx_phase) {
        case RX_HEADER:
            more = header(sess);
            break;
        case RX_DATA:
            more = segment(sess);
            break;
        case RX_TAIL:
            more = tail(sess);
            break;
        }
    }
    if (sess->rx_pos == sess->rx_end)
        sess->rx_pos = sess->rx_end = 0;
}

/* Read what there is; 1: the buffers were filled, more may wait; 0: drained; negative: closed. */
static int receive(struct tgt_sess *sess)
{
    if (sess->rx_pos && sess->rx_end > TGT_RX_BYTES / 2) {
        memmove(sess->rx_buf, sess->rx_buf + sess->rx_pos, sess->rx_end - sess->rx_pos);
        sess->rx_end -= sess->rx_pos;
        sess->rx_pos = 0;
    }
    struct iovec iov[2];
    bool direct = sess->rx_phase == RX_DATA && sess->rx_left >= DIRECT_MIN && sess->rx_to && sess->rx_pos == sess->rx_end;
    int n_iov = 0;
    if (direct)
        iov[n_iov++] = (struct iovec){sess->rx_to + (sess->rx_len - sess->rx_left), sess->rx_left};
    iov[n_iov++] = (struct iovec){sess->rx_buf + sess->rx_end, TGT_RX_BYTES - sess->rx_end};
    size_t room = iov[0].iov_len + (direct ? iov[1].iov_len : 0);
    struct msghdr h = {.msg_iov = iov, .msg_iovlen = (size_t)n_iov};
    ssize_t n = direct ? recvmsg(sess->fd, &h, MSG_DONTWAIT) : recv(sess->fd, iov[0].iov_base, iov[0].iov_len, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0) {
        tgt_sess_close(sess, n ? "the connection broke" : "the initiator closed the connection");
        return -EPIPE;
    }
    size_t got = (size_t)n;
    if (direct) {
        uint32_t part = (uint32_t)GR_MIN(got, (size_t)sess->rx_left);
        sess->rx_left -= part;
        got -= part;
    }
    sess->rx_end += (uint32_t)got;
    return (size_t)n == room;
}

void tgt_rx_ready(struct tgt_sess *sess)
{
    if (sess->parsing)
        return;
    sess->parsing = true;
    sess->heard_ns = gr_loop_now_ns(sess->server->loop);
    if (sess->rx_pos < sess->rx_end)
        parse(sess); /* left over from a pause */
    for (int round = 0; round < 4 && sess->fd >= 0 && !sess->paused; round++) {
        int r = receive(sess);
        if (r < 0)
            break;
        parse(sess);
        if (!r)
            break;
    }
    sess->parsing = false;
    if (sess->paused)
        tgt_tx_kick(sess); /* also sets what is watched */
}
