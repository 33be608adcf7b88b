/* Replies: simple ones for clients that negotiated nothing better, structured ones else. */
#include "iscsi-target/mover_int.h"
#include "common/cleanup.h"
#include <string.h>

uint32_t mover_errno(int code)
{
    switch (gr_code_errno(code)) {
    case EPERM:
    case EROFS:
    case EACCES:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case ENOTSUP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

static void req_sent(struct mover_out *out)
{
    struct mover_req *r = gr_container_of(out, struct mover_req, out);
    r->conn->queued--;
    mover_req_free(r);
}

static void req_send(struct mover_req *r, int iovcnt)
{
    r->conn->queued++;
    r->out = (struct mover_out){.iov = r->iov, .iovcnt = iovcnt, .done = req_sent};
    mover_io_send(&r->conn->io, &r->out);
}

static void simple_head(struct mover_req *r, uint32_t error)
{
    struct nbd_simple_wire w = {gr_be32_of(NBD_SIMPLE_REPLY_MAGIC), gr_be32_of(error), gr_be64_of(r->rq.cookie)};
    memcpy(r->heads[0], &w, sizeof(w));
    r->iov[0] = (struct iovec){r->heads[0], sizeof(w)};
}

static void chunk_head(struct mover_req *r, uint8_t *to, unsigned type, unsigned flags, size_t len)
{
    struct nbd_chunk_wire w = {gr_be32_of(NBD_STRUCTURED_REPLY_MAGIC), gr_be16_of((uint16_t)flags), gr_be16_of((uint16_t)type),
                               gr_be64_of(r->rq.cookie), gr_be32_of((uint32_t)len)};
    memcpy(to, &w, sizeof(w));
}

void mover_reply_done(struct mover_req *r)
{
    if (r->conn->structured) {
        chunk_head(r, r->heads[0], NBD_REPLY_TYPE_NONE, NBD_REPLY_FLAG_DONE, 0);
        r->iov[0] = (struct iovec){r->heads[0], sizeof(struct nbd_chunk_wire)};
    } else {
        simple_head(r, 0);
    }
    req_send(r, 1);
}

void mover_reply_error(struct mover_req *r, uint32_t nbd_error, const char *text)
{
    if (!r->conn->structured) {
        simple_head(r, nbd_error);
        req_send(r, 1);
        return;
    }
    size_t n = text ? strnlen(text, GR_ERR_TEXT) : 0;
    free(r->extra);
    r->extra = n ? gr_alloc(n) : NULL;
    if (!r->extra)
        n = 0;
    uint8_t *h = r->heads[0];
    chunk_head(r, h, NBD_REPLY_TYPE_ERROR, NBD_REPLY_FLAG_DONE, 6 + n);
    gr_put_be32(h + 20, nbd_error);
    gr_put_be16(h + 24, (uint16_t)n);
    r->iov[0] = (struct iovec){h, 26};
    if (n) {
        memcpy(r->extra, text, n);
        r->iov[1] = (struct iovec){r->extra, n};
    }
    req_send(r, n ? 2 : 1);
}

void mover_reply_code(struct mover_req *r, int code, const char *what)
{
    char text[200];
    snprintf(text, sizeof(text), "%s: %s", what, gr_code_text(code));
    mover_reply_error(r, mover_errno(code), text);
}

static bool all_zero(const uint8_t *p, size_t len)
{
    return len == 0 || (p[0] == 0 && !memcmp(p, p + 1, len - 1));
}

/* Runs of zeros travel as OFFSET_HOLE: the test stops at the first byte that is not zero, so full blocks cost nothing. */
static int read_chunks(struct mover_req *r)
{
    const uint8_t *data = r->data + (r->rq.off - r->data_off);
    size_t len = r->rq.len, granule = GR_MAX((size_t)32768, (len / MOVER_READ_CHUNKS + 4095) / 4096 * 4096);
    bool whole = r->rq.flags & NBD_CMD_FLAG_DF;
    int n_iov = 0, chunk = 0;
    for (size_t at = 0; at < len; chunk++) {
        size_t n = whole ? len : GR_MIN(granule, len - at);
        bool zero = !whole && all_zero(data + at, n);
        while (!whole && at + n < len) {
            size_t more = GR_MIN(granule, len - at - n);
            if (all_zero(data + at + n, more) != zero)
                break;
            n += more;
        }
        uint8_t *h = r->heads[chunk];
        unsigned flags = at + n == len ? NBD_REPLY_FLAG_DONE : 0;
        chunk_head(r, h, zero ? NBD_REPLY_TYPE_OFFSET_HOLE : NBD_REPLY_TYPE_OFFSET_DATA, flags, zero ? 12 : 8 + n);
        gr_put_be64(h + 20, r->rq.off + at);
        if (zero)
            gr_put_be32(h + 28, (uint32_t)n);
        r->iov[n_iov++] = (struct iovec){h, zero ? 32 : 28};
        if (!zero)
            r->iov[n_iov++] = (struct iovec){r->data + (r->rq.off - r->data_off) + at, n};
        at += n;
    }
    return n_iov;
}

void mover_reply_read(struct mover_req *r)
{
    if (r->conn->structured) {
        req_send(r, read_chunks(r));
        return;
    }
    simple_head(r, 0);
    r->iov[1] = (struct iovec){r->data + (r->rq.off - r->data_off), r->rq.len};
    req_send(r, 2);
}

void mover_reply_status(struct mover_req *r, struct mover_status_part *parts, unsigned n)
{
    size_t total = 0;
    for (unsigned i = 0; i < n; i++)
        total += sizeof(struct nbd_chunk_wire) + 4 + 8 * (size_t)parts[i].n;
    uint8_t *out = gr_alloc(total);
    if (!out) {
        mover_reply_code(r, -ENOMEM, "block status");
        return;
    }
    size_t at = 0;
    for (unsigned i = 0; i < n; i++) {
        size_t len = 4 + 8 * (size_t)parts[i].n;
        chunk_head(r, out + at, NBD_REPLY_TYPE_BLOCK_STATUS, i + 1 == n ? NBD_REPLY_FLAG_DONE : 0, len);
        at += sizeof(struct nbd_chunk_wire);
        memcpy(out + at, parts[i].wire, len);
        at += len;
    }
    free(r->extra);
    r->extra = out;
    r->iov[0] = (struct iovec){out, total};
    req_send(r, 1);
}
