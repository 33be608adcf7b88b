/* Receiving: one recv brings many PDUs into the connection's buffer; a large data segment is received straight into the task's
 * buffer, and what follows it into ours, by the same system call. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/crc.h"
#include "common/gang.h"
#include "iscsi-target/target_int.h"
#include <sys/socket.h>
#include <unistd.h>

#define DIRECT_MIN 16384u   /* segments with so much still to come bypass the buffer */
#define BEHIND_DIRECT 4096u /* of the buffer, behind such a segment: the next header, but little of the next segment, which would be copied once more */

static bool congested(const struct tgt_conn *c)
{
    return !c->sess->n_free || c->n_misc >= TGT_MISC_MAX || c->closing;
}

bool tgt_rx_must_wait(const struct tgt_conn *c)
{
    if (c->server->resting && c->rx_phase == RX_HEADER && c->rx_end - c->rx_pos >= TGT_BHS_LEN)
        return congested(c) || tgt_rest_of(c, c->rx_buf + c->rx_pos) == REST_LEAVE;
    return congested(c);
}

/* The request, of which @head bytes are header, is kept as it came. */
static bool begin_park(struct tgt_conn *c, const uint8_t *b, uint32_t head)
{
    uint32_t len = tgt_bhs_dsl(b);
    if (len > TGT_MAX_DSL) {
        tgt_conn_lost(c, "a data segment was longer than negotiated");
        return false;
    }
    c->park_left = head + len + tgt_pad4(len) + (c->params.data_digest && len ? 4 : 0);
    c->rx_phase = RX_PARK;
    return true;
}

static bool park(struct tgt_conn *c)
{
    uint32_t n = GR_MIN(c->park_left, c->rx_end - c->rx_pos);
    if (gr_buf_add(&c->parked, c->rx_buf + c->rx_pos, n) < 0) {
        tgt_conn_lost(c, "out of memory");
        return false;
    }
    c->rx_pos += n;
    c->park_left -= n;
    if (c->park_left)
        return false;
    c->rx_phase = RX_HEADER;
    return true;
}

/* A header with its AHS and digest is in the buffer: check and act on it. False: stop parsing. */
static bool header(struct tgt_conn *c)
{
    const uint8_t *b = c->rx_buf + c->rx_pos;
    uint32_t avail = c->rx_end - c->rx_pos;
    if (avail < TGT_BHS_LEN)
        return false;
    uint32_t ahs = tgt_bhs_ahs_len(b), len = TGT_BHS_LEN + ahs;
    uint32_t need = len + (c->params.header_digest ? 4 : 0);
    if (avail < need)
        return false;
    if (c->params.header_digest && tgt_digest_get(b + len) != gr_crc32c(0, b, len)) {
        tgt_conn_lost(c, "a header digest was wrong"); /* its length is in doubt too: where the next PDU begins is not known */
        return false;
    }
    tgt_ack(c, gr_get_be32(b + 28));
    if (c->fd < 0)
        return false;
    if (tgt_rx_must_wait(c)) {
        c->paused = true;
        return false;
    }
    if (c->server->resting && tgt_rest_of(c, b) == REST_PARK)
        return begin_park(c, b, need);
    memcpy(c->rx_bhs, b, TGT_BHS_LEN);
    c->rx_pos += need;
    c->rx_len = c->rx_left = tgt_bhs_dsl(b);
    c->rx_to = NULL;
    c->rx_task = NULL;
    c->rx_request = NULL;
    c->rx_phase = RX_DATA;
    if (c->rx_len > TGT_MAX_DSL) {
        tgt_conn_lost(c, "a data segment was longer than negotiated");
        return false;
    }
    return tgt_pdu_header(c, ahs ? b + TGT_BHS_LEN : NULL);
}

static bool segment(struct tgt_conn *c)
{
    uint32_t n = GR_MIN(c->rx_left, c->rx_end - c->rx_pos);
    if (n && c->rx_to)
        memcpy(c->rx_to + (c->rx_len - c->rx_left), c->rx_buf + c->rx_pos, n);
    c->rx_pos += n;
    c->rx_left -= n;
    if (c->rx_left)
        return false;
    c->rx_phase = RX_TAIL;
    return true;
}

static bool tail(struct tgt_conn *c)
{
    const uint8_t *b = c->rx_buf + c->rx_pos;
    uint32_t pad = tgt_pad4(c->rx_len);
    uint32_t need = pad + (c->params.data_digest && c->rx_len ? 4 : 0);
    bool whole = true;
    if (c->rx_end - c->rx_pos < need)
        return false;
    if (need > pad && c->rx_to) {
        uint32_t crc = gr_crc32c(gr_crc32c(0, c->rx_to, c->rx_len), b, pad);
        whole = crc == tgt_digest_get(b + pad);
    }
    c->rx_pos += need;
    c->rx_phase = RX_HEADER;
    if (whole)
        tgt_pdu_whole(c);
    else
        tgt_pdu_bad_data(c);
    return c->fd >= 0;
}

static void parse(struct tgt_conn *c)
{
    bool more = true;
    while (more && c->fd >= 0) {
        switch (c->rx_phase) {
        case RX_HEADER:
            more = header(c);
            break;
        case RX_DATA:
            more = segment(c);
            break;
        case RX_TAIL:
            more = tail(c);
            break;
        case RX_PARK:
            more = park(c);
            break;
        }
    }
    if (c->rx_pos == c->rx_end)
        c->rx_pos = c->rx_end = 0;
}

/* What was parked before is read first. */
static int replay(struct tgt_conn *c)
{
    size_t n = GR_MIN(c->replay.len - c->replay_off, (size_t)(TGT_RX_BYTES - c->rx_end));
    memcpy(c->rx_buf + c->rx_end, c->replay.data + c->replay_off, n);
    c->rx_end += (uint32_t)n;
    c->replay_off += n;
    if (c->replay_off == c->replay.len) {
        gr_buf_done(&c->replay);
        c->replay_off = 0;
    }
    return 1;
}

/* Into the buffer, which nobody else touches. Into a task's only with the gang closed: another thread may end that task. */
static ssize_t receive_open(struct tgt_conn *c, const struct iovec *iov)
{
    int fd = c->fd;
    atomic_store(&c->in_call, true);
    gr_gang_open();
    ssize_t n = recv(fd, iov->iov_base, iov->iov_len, MSG_DONTWAIT);
    int e = errno;
    atomic_store(&c->in_call, false);
    gr_gang_close();
    errno = e;
    return n;
}

/* Read what there is; 1: the buffers were filled, more may wait; 0: drained; negative: closed. */
static int receive(struct tgt_conn *c, bool open)
{
    if (c->rx_pos && c->rx_end > TGT_RX_BYTES / 2) {
        memmove(c->rx_buf, c->rx_buf + c->rx_pos, c->rx_end - c->rx_pos);
        c->rx_end -= c->rx_pos;
        c->rx_pos = 0;
    }
    if (c->replay.len)
        return replay(c);
    struct iovec iov[2];
    bool direct = c->rx_phase == RX_DATA && c->rx_left >= DIRECT_MIN && c->rx_to && c->rx_pos == c->rx_end;
    int n_iov = 0;
    if (direct)
        iov[n_iov++] = (struct iovec){c->rx_to + (c->rx_len - c->rx_left), c->rx_left};
    iov[n_iov++] = (struct iovec){c->rx_buf + c->rx_end, GR_MIN(direct ? BEHIND_DIRECT : TGT_RX_BYTES, TGT_RX_BYTES - c->rx_end)};
    size_t room = iov[0].iov_len + (direct ? iov[1].iov_len : 0);
    struct msghdr h = {.msg_iov = iov, .msg_iovlen = (size_t)n_iov};
    ssize_t n = direct || !open ? recvmsg(c->fd, &h, MSG_DONTWAIT) : receive_open(c, iov);
    if (c->fd < 0)
        return -EPIPE;
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0) {
        tgt_conn_lost(c, n ? "the connection broke" : "the initiator closed the connection");
        return -EPIPE;
    }
    size_t got = (size_t)n;
    if (direct) {
        uint32_t part = (uint32_t)GR_MIN(got, (size_t)c->rx_left);
        c->rx_left -= part;
        got -= part;
    }
    c->rx_end += (uint32_t)got;
    if (c->unread && tgt_conn_unread(c) < 0) {
        tgt_conn_lost(c, "out of memory");
        return -EPIPE;
    }
    return (size_t)n == room;
}

static void ready(struct tgt_conn *c, bool open)
{
    if (c->parsing)
        return;
    c->parsing = true;
    c->heard_ns = gr_loop_now_ns(c->server->loop);
    if (c->rx_pos < c->rx_end)
        parse(c); /* left over from a pause */
    for (int round = 0; (round < 4 || c->replay.len) && c->fd >= 0 && !c->paused; round++) {
        int r = receive(c, open);
        if (r < 0)
            break;
        parse(c);
        if (!r)
            break;
    }
    c->parsing = false;
    if (c->paused)
        tgt_tx_kick(c); /* also sets what is watched */
}

void tgt_rx_ready(struct tgt_conn *c)
{
    ready(c, false);
}

void tgt_rx_turn(struct tgt_conn *c)
{
    ready(c, true);
}
