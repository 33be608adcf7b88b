/* The transmission phase: read requests, check them, hand them to the bdev. */
#include "common/cleanup.h"
#include "iscsi-target/mover_int.h"
#include <string.h>

#define SLOW_BYTES (64u << 10) /* what a BLOCK_STATUS or CACHE counts as in flight */
#define CACHE_STEP (1u << 20)
#define YIELD_EVERY 32         /* requests read in one go before the loop gets its turn */
#define SLOWEST_BYTES_PER_S 32768 /* a payload that arrives slower is a silent peer */

void mover_req_free(struct mover_req *r)
{
    struct mover_conn *c = r->conn;
    struct mover_server *s = c->server;
    c->in_flight--;
    c->slow -= r->is_slow;
    c->in_flight_bytes -= r->counted;
    s->in_flight_bytes -= r->counted;
    if (r->data)
        mover_buf_put(s, r->data, r->data_len);
    free(r->extra);
    free(r);
    gr_fqueue_wake_all(&c->room);
    gr_fqueue_wake_all(&s->room);
}

/* Suspend the reader until one more request of @bytes is within the limits. 0 or the connection's error. */
static int admit(struct mover_conn *c, uint64_t bytes, bool slow)
{
    struct mover_server *s = c->server;
    const struct mover_opts *o = &s->opts;
    while (!c->io.error) {
        bool full = c->in_flight >= o->max_requests || (slow && c->slow >= MOVER_MAX_SLOW) ||
                    (c->in_flight && c->in_flight_bytes + bytes > o->max_inflight_bytes);
        /* a connection with nothing in flight gets a small request through, however busy the others are */
        bool all_full = s->in_flight_bytes + bytes > 8 * o->max_inflight_bytes && (c->in_flight || bytes > (2u << 20));
        if (full)
            (void)gr_fqueue_wait_ms(&c->room, 1000);
        else if (all_full)
            (void)gr_fqueue_wait_ms(&s->room, 1000);
        else
            return 0;
    }
    return c->io.error;
}

static struct mover_req *req_new(struct mover_conn *c, const struct mover_request *rq, uint64_t bytes)
{
    struct mover_req *r = gr_alloc(sizeof(*r));
    if (!r)
        return NULL;
    r->conn = c;
    r->rq = *rq;
    r->bio = (struct gr_bio){.arg = r};
    r->data = r->extra = NULL;
    r->data_len = 0;
    r->is_slow = false;
    r->counted = bytes;
    c->in_flight++;
    c->in_flight_bytes += bytes;
    c->server->in_flight_bytes += bytes;
    c->server->stats.requests++;
    return r;
}

static const char *cmd_name(unsigned type)
{
    static const char *const names[] = {"read", "write", "disconnect", "flush", "trim", "cache", "write zeroes", "block status"};
    return type < GR_ARRAY_LEN(names) ? names[type] : "unknown command";
}

static void on_done(struct gr_bio *bio)
{
    struct mover_req *r = bio->arg;
    if (bio->status < 0)
        mover_reply_code(r, bio->status, cmd_name(r->rq.type));
    else
        mover_reply_done(r);
}

static void on_read(struct gr_bio *bio)
{
    struct mover_req *r = bio->arg;
    if (bio->status < 0) {
        mover_reply_code(r, bio->status, "read");
        return;
    }
    r->conn->server->stats.bytes_read += r->rq.len;
    mover_reply_read(r);
}

static void run_read(struct mover_req *r)
{
    struct mover_conn *c = r->conn;
    uint64_t block = c->geo.logical_block, from = r->rq.off - r->rq.off % block;
    uint64_t to = GR_MIN((r->rq.off + r->rq.len + block - 1) / block * block, c->geo.size);
    r->data_len = (size_t)(to - from);
    r->data_off = from;
    r->data = mover_buf_get(c->server, r->data_len);
    if (!r->data) {
        mover_reply_code(r, -ENOMEM, "read");
        return;
    }
    r->data_iov = (struct iovec){r->data, r->data_len};
    r->bio.op = GR_OP_READ;
    r->bio.off = from;
    r->bio.len = r->data_len;
    r->bio.iov = &r->data_iov;
    r->bio.iovcnt = 1;
    r->bio.done = on_read;
    gr_submit(c->chan, &r->bio);
}

/* Checks shared by all commands with a range. NULL: good; else the reason, with *@ret_error set. */
static const char *check(struct mover_conn *c, const struct mover_request *q, uint32_t *ret_error)
{
    unsigned allowed = NBD_CMD_FLAG_FUA;
    bool changes = false, aligned = false;
    *ret_error = NBD_EINVAL;
    switch (q->type) {
    case NBD_CMD_READ:
        allowed |= c->structured ? NBD_CMD_FLAG_DF : 0;
        if (q->len > MOVER_MAX_REQUEST)
            return "read: longer than the advertised maximum of 32 MiB";
        break;
    case NBD_CMD_WRITE:
        changes = aligned = true;
        break;
    case NBD_CMD_TRIM:
        changes = true;
        break;
    case NBD_CMD_WRITE_ZEROES:
        allowed |= NBD_CMD_FLAG_NO_HOLE;
        changes = aligned = true;
        break;
    case NBD_CMD_BLOCK_STATUS:
        allowed |= NBD_CMD_FLAG_REQ_ONE;
        if (!c->n_ctx)
            return "block status: no metadata context was negotiated";
        break;
    case NBD_CMD_CACHE:
        break;
    case NBD_CMD_FLUSH:
        return q->flags & ~allowed || q->off || q->len ? "flush: flags, offset and length must be zero" : NULL;
    default:
        return "unknown command";
    }
    if (q->flags & ~allowed)
        return "a flag that this command does not have";
    if (changes && !c->exp.writable) {
        *ret_error = NBD_EPERM;
        return "the export is read-only";
    }
    if (!q->len || q->off > c->geo.size || q->len > c->geo.size - q->off) {
        if (changes && q->len)
            *ret_error = NBD_ENOSPC;
        return q->len ? "outside the export" : "length 0";
    }
    if (aligned && (q->off % c->geo.logical_block || q->len % c->geo.logical_block))
        return "not a multiple of the advertised minimum block size";
    return NULL;
}

static void run_cache(void *arg)
{
    struct mover_req *r = arg;
    struct mover_conn *c = r->conn;
    uint64_t block = c->geo.logical_block, at = r->rq.off - r->rq.off % block;
    uint64_t end = GR_MIN((r->rq.off + r->rq.len + block - 1) / block * block, c->geo.size);
    void *buf = mover_buf_get(c->server, CACHE_STEP);
    int status = buf ? 0 : -ENOMEM;
    for (; status >= 0 && at < end && !c->io.error; at += CACHE_STEP)
        status = gr_pread(c->chan, buf, (size_t)GR_MIN(end - at, (uint64_t)CACHE_STEP), at);
    if (buf)
        mover_buf_put(c->server, buf, CACHE_STEP);
    if (status < 0)
        mover_reply_code(r, status, "cache");
    else
        mover_reply_done(r);
}

/* TRIM is advice: a range that is not whole blocks is rounded inwards. */
static void run_trim(struct mover_req *r)
{
    uint64_t block = r->conn->geo.logical_block;
    uint64_t from = (r->rq.off + block - 1) / block * block, to = (r->rq.off + r->rq.len) / block * block;
    if (!r->conn->geo.unmap_granule || to <= from) {
        mover_reply_done(r);
        return;
    }
    r->bio.op = GR_OP_UNMAP;
    r->bio.off = from;
    r->bio.len = to - from;
    r->bio.flags = r->rq.flags & NBD_CMD_FLAG_FUA ? GR_BIO_FUA : 0;
    gr_submit(r->conn->chan, &r->bio);
}

static void run(struct mover_req *r)
{
    struct mover_conn *c = r->conn;
    uint32_t fua = r->rq.flags & NBD_CMD_FLAG_FUA ? GR_BIO_FUA : 0;
    r->bio.done = on_done;
    r->bio.off = r->rq.off;
    r->bio.len = r->rq.len;
    switch (r->rq.type) {
    case NBD_CMD_READ:
        run_read(r);
        return;
    case NBD_CMD_WRITE:
        r->bio.op = GR_OP_WRITE;
        r->bio.flags = fua;
        r->data_iov = (struct iovec){r->data, r->rq.len};
        r->bio.iov = &r->data_iov;
        r->bio.iovcnt = 1;
        c->server->stats.bytes_written += r->rq.len;
        gr_submit(c->chan, &r->bio);
        return;
    case NBD_CMD_FLUSH:
        if (!c->exp.writable) {
            mover_reply_done(r);
            return;
        }
        r->bio.op = GR_OP_FLUSH;
        gr_submit(c->chan, &r->bio);
        return;
    case NBD_CMD_TRIM:
        run_trim(r);
        return;
    case NBD_CMD_WRITE_ZEROES:
        r->bio.op = GR_OP_WRITE_ZEROES;
        r->bio.flags = fua | (r->rq.flags & NBD_CMD_FLAG_NO_HOLE ? 0 : GR_BIO_MAY_UNMAP);
        gr_submit(c->chan, &r->bio);
        return;
    default: /* BLOCK_STATUS, CACHE: check() let nothing else through */
        r->is_slow = true;
        c->slow++;
        if (gr_fiber_start(c->server->loop, r->rq.type == NBD_CMD_CACHE ? run_cache : mover_status_run, r) < 0)
            mover_reply_code(r, -ENOMEM, cmd_name(r->rq.type));
        return;
    }
}

static uint64_t deadline(struct mover_conn *c, uint64_t bytes)
{
    uint64_t ms = c->server->opts.stall_timeout_ms + bytes * 1000 / SLOWEST_BYTES_PER_S;
    return gr_loop_now_ns(c->server->loop) + ms * 1000000;
}

/* One request whose header is read. 0 or negative: the connection ends. */
static int one_request(struct mover_conn *c, const struct mover_request *q)
{
    uint32_t error = 0;
    const char *why = check(c, q, &error);
    if (q->type == NBD_CMD_WRITE && q->len > MOVER_MAX_REQUEST)
        return -GR_EPROTO; /* nothing sensible can follow */
    bool slow = q->type == NBD_CMD_BLOCK_STATUS || q->type == NBD_CMD_CACHE;
    uint64_t bytes = why ? 0 : slow ? SLOW_BYTES : q->type == NBD_CMD_READ || q->type == NBD_CMD_WRITE ? q->len : 0;
    int r = admit(c, bytes, slow);
    if (r < 0)
        return r;
    struct mover_req *req = req_new(c, q, bytes);
    if (!req)
        return -ENOMEM;
    if (q->type == NBD_CMD_WRITE) {
        if (!why) {
            req->data_len = q->len;
            req->data = mover_buf_get(c->server, q->len);
            if (!req->data) {
                why = "out of memory";
                error = NBD_ENOMEM;
            }
        }
        r = req->data ? mover_io_read(&c->io, req->data, q->len, deadline(c, q->len))
                      : mover_io_skip(&c->io, q->len, deadline(c, q->len));
        if (r < 0) {
            mover_req_free(req);
            return r;
        }
    }
    if (why)
        mover_reply_error(req, error, why);
    else
        run(req);
    return 0;
}

static int read_header(struct mover_conn *c, uint8_t head[28])
{
    uint64_t idle = c->server->opts.idle_timeout_ms;
    uint64_t until = idle ? gr_loop_now_ns(c->server->loop) + idle * 1000000 : 0;
    int r = mover_next(c, 28, until, c->server->opts.stall_timeout_ms);
    return r > 0 ? mover_io_read(&c->io, head, 28, 0) : r < 0 ? r : -EPIPE;
}

int mover_serve(struct mover_conn *c)
{
    int r = 0;
    for (unsigned n = 1; r >= 0; n++) {
        uint8_t head[28];
        struct mover_request q;
        r = read_header(c, head);
        if (r >= 0)
            r = mover_request_parse(head, &q);
        if (r < 0 || q.type == NBD_CMD_DISC)
            break;
        r = one_request(c, &q);
        if (n % YIELD_EVERY == 0)
            gr_fiber_yield();
    }
    /* The peer left: what is in flight still finishes, and its answers are sent if the peer takes them. */
    if (r < 0 && r != -EPIPE)
        mover_io_fail(&c->io, r);
    while (c->in_flight)
        (void)gr_fqueue_wait_ms(&c->room, 1000);
    if (!c->io.error)
        (void)mover_io_drain(&c->io, deadline(c, 0));
    return r == -EPIPE ? 0 : r;
}
