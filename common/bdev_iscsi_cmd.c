/* Command descriptor blocks (SBC-3, SPC-4), and what the answers mean. What a target returns is not trusted: before a read each sector of
 * the buffer is marked with a random number, and one still marked after GOOD status was never sent; LBA status must move on and stay
 * inside the question. */
#include "common/bdev_iscsi_int.h"
#include "common/cleanup.h"
#include "common/endian.h"
#include <stdlib.h>
#include <string.h>

enum { MARK_EVERY = 512, CDB_MAX = 16 };
#define MARK_STEP UINT64_C(0x9e3779b97f4a7c15)

/* ---- marks ---- */
static bool each_mark(const struct isc_sub *s, const struct scsi_iovec *iov, int n, bool plant)
{
    const uint64_t nonce = s->nonce;
    bool left = false;

    for (int i = 0; i < n; i++) {
        uint8_t *p = iov[i].iov_base;
        for (size_t at = 0; iov[i].iov_len >= 8 && at <= iov[i].iov_len - 8; at += MARK_EVERY) {
            if (plant)
                memcpy(p + at, &nonce, 8);
            else if (!memcmp(p + at, &nonce, 8))
                left = true;
        }
    }
    return left;
}

/* ---- commands ---- */
static void blocks16(uint8_t *cdb, const struct isc_sub *s, uint64_t off, uint64_t len)
{
    gr_put_be64(cdb + 2, off / s->dev->unit.block);
    gr_put_be32(cdb + 10, (uint32_t)(len / s->dev->unit.block));
}

static const uint8_t zeros[64 << 10];

void isc_zero_vector(struct isc_sub *s)
{
    uint64_t left = s->dev->no_write_same ? GR_MIN(s->len - s->at, (uint64_t)s->dev->unit.piece) : s->dev->unit.block;

    for (s->n_iov = 0; left && s->n_iov < ISCSI_IOV; s->n_iov++) {
        size_t n = GR_MIN((size_t)left, sizeof(zeros));
        s->iov[s->n_iov] = (struct scsi_iovec){(void *)(uintptr_t)zeros, n};
        left -= n;
    }
}

/* READ(16) of @s's range into @iov, whose sectors are marked. */
static struct scsi_task *read_command(struct isc_sub *s, struct scsi_iovec *iov, int n)
{
    uint8_t cdb[CDB_MAX] = {0x88};

    blocks16(cdb, s, s->off, s->len);
    s->nonce = s->dev->nonce += MARK_STEP; /* another each time: a buffer of a read that failed may have been written since */
    each_mark(s, iov, n, true);
    struct scsi_task *t = scsi_create_task(CDB_MAX, cdb, SCSI_XFER_READ, (int)s->len);
    if (t)
        scsi_task_set_iov_in(t, iov, n);
    return t;
}

static struct scsi_task *see_again_command(struct isc_sub *s)
{
    if (!s->seen)
        s->seen = gr_alloc(sizeof(struct scsi_iovec) + s->len);
    if (!s->seen)
        return NULL;
    struct scsi_iovec *iov = (struct scsi_iovec *)s->seen;
    *iov = (struct scsi_iovec){s->seen + sizeof(*iov), s->len};
    return read_command(s, iov, 1);
}

struct scsi_task *isc_command(struct isc_sub *s)
{
    const struct isc_unit *u = &s->dev->unit;
    uint8_t cdb[CDB_MAX] = {0};
    size_t data = s->len;
    int dir = SCSI_XFER_WRITE;

    blocks16(cdb, s, s->off, s->len);
    if (s->unsure)
        return see_again_command(s);
    switch (s->kind) {
    case ISC_READ:
        return read_command(s, s->iov, s->n_iov);
    case ISC_WRITE:
        cdb[0] = 0x8a;
        cdb[1] = s->fua ? 0x08 : 0;
        break;
    case ISC_ZERO:
        isc_zero_vector(s);
        if (s->dev->no_write_same) { /* plain writes, of as much as the vector holds */
            data = 0;
            for (int i = 0; i < s->n_iov; i++)
                data += s->iov[i].iov_len;
            cdb[0] = 0x8a;
            blocks16(cdb, s, s->off + s->at, data);
        } else {
            cdb[0] = 0x93;
            cdb[1] = s->unmap ? 0x08 : 0;
            data = u->block;
        }
        break;
    case ISC_FLUSH:
        cdb[0] = 0x91; /* LBA 0 and 0 blocks: all of it */
        memset(cdb + 2, 0, 12);
        data = 0;
        dir = SCSI_XFER_NONE;
        break;
    case ISC_CAW:
        memset(cdb + 10, 0, 4);
        cdb[0] = 0x89;
        cdb[1] = s->fua ? 0x08 : 0;
        cdb[13] = (uint8_t)(s->len / u->block);
        data = 2 * s->len;
        break;
    case ISC_STATUS:
        cdb[0] = 0x9e;
        cdb[1] = 0x12;
        data = 8 + 16 * ISCSI_DESCRIPTORS;
        gr_put_be32(cdb + 10, (uint32_t)data);
        dir = SCSI_XFER_READ;
        break;
    case ISC_QUESTION:
        return NULL;
    }
    struct scsi_task *t = scsi_create_task(CDB_MAX, cdb, dir, (int)data);
    if (t && s->n_iov)
        scsi_task_set_iov_out(t, s->iov, s->n_iov);
    return t;
}

struct scsi_task *isc_small_command(const uint8_t *cdb, size_t cdb_len, size_t in, const void *out, size_t out_len)
{
    uint8_t copy[CDB_MAX] = {0};

    memcpy(copy, cdb, cdb_len);
    int dir = in ? SCSI_XFER_READ : out_len ? SCSI_XFER_WRITE : SCSI_XFER_NONE;
    struct scsi_task *t = scsi_create_task((int)cdb_len, copy, dir, (int)(in ? in : out_len));
    if (!t || !out_len)
        return t;
    uint8_t *p = scsi_malloc(t, sizeof(struct scsi_iovec) + out_len);
    if (!p) {
        scsi_free_scsi_task(t);
        return NULL;
    }
    struct scsi_iovec *iov = (struct scsi_iovec *)p;
    *iov = (struct scsi_iovec){p + sizeof(*iov), out_len};
    memcpy(iov->iov_base, out, out_len);
    scsi_task_set_iov_out(t, iov, 1);
    return t;
}

/* ---- answers ---- */
/* iSCSI puts two bytes of length in front of the sense data (RFC 7143 11.4.7.2). Fixed and descriptor format: SPC-4 4.5. */
struct isc_sense isc_sense(const struct scsi_task *t)
{
    struct isc_sense r = {0};
    size_t have = t->datain.size < 2 || !t->datain.data ? 0 : (size_t)t->datain.size - 2;
    const uint8_t *d = have ? t->datain.data + 2 : NULL;

    if (have)
        have = GR_MIN(have, (size_t)gr_get_be16(t->datain.data));
    if (have >= 4 && ((d[0] & 0x7f) == 0x72 || (d[0] & 0x7f) == 0x73)) {
        r.key = d[1] & 0x0f;
        r.asc = gr_get_be16(d + 2);
        for (size_t at = 8; at + 2 <= have && at + 2 + d[at + 1] <= have; at += 2u + d[at + 1])
            if (d[at] == 0x00 && d[at + 1] == 0x0a && (d[at + 2] & 0x80)) {
                r.has_info = true;
                r.info = gr_get_be64(d + at + 4);
                break;
            }
    } else if (have >= 14 && ((d[0] & 0x7f) == 0x70 || (d[0] & 0x7f) == 0x71)) {
        r.key = d[2] & 0x0f;
        r.asc = gr_get_be16(d + 12);
        r.has_info = d[0] & 0x80;
        r.info = gr_get_be32(d + 3);
    }
    return r;
}

static int sense_code(struct isc_sense s)
{
    switch (s.key) {
    case 0x03: /* MEDIUM ERROR */
        return -GR_EMEDIUM;
    case 0x05: /* ILLEGAL REQUEST */
        return s.asc == 0x2100 ? -GR_ERANGE : -EOPNOTSUPP;
    case 0x07: /* DATA PROTECT: SPACE ALLOCATION FAILED, else WRITE PROTECTED */
        return s.asc == 0x2707 ? -GR_ENOSPACE : -GR_EREADONLY;
    case 0x0e:
        return -GR_EMISCOMPARE;
    default:
        return -EIO;
    }
}

const char *isc_status_text(int status, const struct scsi_task *t, char out[96])
{
    if (status == SCSI_STATUS_CHECK_CONDITION) {
        struct isc_sense s = isc_sense(t);
        const char *text = scsi_sense_ascq_str(s.asc);
        snprintf(out, 96, "%s (sense key %xh, %02xh/%02xh)", text ? text : "refused", s.key, s.asc >> 8, s.asc & 0xff);
    } else if (status == SCSI_STATUS_RESERVATION_CONFLICT) {
        snprintf(out, 96, "RESERVATION CONFLICT");
    } else {
        snprintf(out, 96, "status %02xh", (unsigned)status & 0xff);
    }
    return out;
}

/* GET LBA STATUS parameter data (SBC-3 5.5.2): 8 bytes, then descriptors of 16. */
static int status_result(struct isc_sub *s, const struct scsi_task *t)
{
    struct gr_bio *bio = s->req->bio;
    const struct isc_unit *u = &s->dev->unit;
    uint64_t at = bio->off, end = bio->off + bio->len;
    const uint8_t *d = t->datain.data;
    size_t size = t->datain.size < 0 || !d ? 0 : (size_t)t->datain.size;

    for (size_t i = 8; i + 16 <= size && i < 8 + 16 * ISCSI_DESCRIPTORS && at < end; i += 16) {
        uint64_t lba = gr_get_be64(d + i), blocks = gr_get_be32(d + i + 8);
        bool mapped = (d[i + 12] & 0x0f) == 0;
        if (!blocks || lba > at / u->block || blocks > UINT64_MAX / u->block - lba || (lba + blocks) * u->block <= at)
            return bio->n_extents ? 0 : -GR_EPROTO; /* does not go on where it should: keep what was good */
        uint64_t stop = GR_MIN((lba + blocks) * u->block, end);
        struct gr_extent e = {.off = at, .len = stop - at, .changed = true,
                              .flags = mapped || !u->lbprz ? GR_EXTENT_DATA : GR_EXTENT_HOLE | GR_EXTENT_ZERO};
        struct gr_extent *last = bio->n_extents ? &bio->extents[bio->n_extents - 1] : NULL;
        if (last && last->flags == e.flags)
            last->len += e.len;
        else if (bio->n_extents == bio->max_extents)
            return 0;
        else
            bio->extents[bio->n_extents++] = e;
        at = stop;
    }
    if (!bio->n_extents)
        isc_blind(bio); /* it answered, and told nothing */
    return 0;
}

void isc_blind(struct gr_bio *bio)
{
    bio->extents[0] = (struct gr_extent){.off = bio->off, .len = bio->len, .changed = true};
    bio->n_extents = 1;
}

static int read_result(const struct isc_sub *s, const struct scsi_iovec *iov, int n, const struct scsi_task *t)
{
    return t->residual_status != SCSI_RESIDUAL_NO_RESIDUAL || each_mark(s, iov, n, false) ? -GR_EPROTO : 0;
}

int isc_result(struct isc_sub *s, int status, const struct scsi_task *t)
{
    if (status == SCSI_STATUS_RESERVATION_CONFLICT)
        return -GR_ERESERVED;
    if (status == SCSI_STATUS_CHECK_CONDITION) {
        struct isc_sense sense = isc_sense(t);
        if (s->kind == ISC_CAW && sense.key == 0x0e)
            s->req->bio->miscompare_off = sense.has_info && sense.info < s->len ? sense.info : 0;
        return sense_code(sense);
    }
    if (status != SCSI_STATUS_GOOD)
        return -EIO;
    if (s->unsure)
        return read_result(s, (const struct scsi_iovec *)s->seen, 1, t);
    switch (s->kind) {
    case ISC_READ: /* fewer or more bytes than asked are no answer */
        return read_result(s, s->iov, s->n_iov, t);
    case ISC_STATUS:
        return status_result(s, t);
    case ISC_WRITE:
    case ISC_ZERO:
    case ISC_CAW: /* part of the data was not taken */
        return t->residual_status == SCSI_RESIDUAL_NO_RESIDUAL ? 0 : -GR_EPROTO;
    case ISC_FLUSH:
    case ISC_QUESTION:
        break;
    }
    return 0;
}
