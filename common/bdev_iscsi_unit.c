/* What the logical unit says it is: capacity, identity, limits, provisioning, cache. */
#include "common/bdev_iscsi_int.h"
#include "common/cleanup.h"
#include "common/endian.h"
#include <string.h>

/* Ask with @cdb for up to @max bytes: those that came are in @out. What the target does not know gives 0 bytes. */
static int ask_bytes(struct isc_dev *d, const uint8_t *cdb, size_t cdb_len, uint8_t *out, size_t max, size_t *ret_len, char why[96],
                     struct gr_err *err)
{
    struct isc_answer a = {0};
    int r = isc_ask(d, cdb, cdb_len, max, NULL, 0, &a);

    *ret_len = 0;
    if (r < 0)
        return gr_fail(err, r, "while the unit was asked: %s", gr_code_text(r));
    const struct scsi_data *in = &a.task->datain;
    if (a.status == SCSI_STATUS_GOOD && in->size > 0) {
        *ret_len = GR_MIN((size_t)in->size, max);
        if (a.task->residual_status == SCSI_RESIDUAL_UNDERFLOW) /* libiscsi's buffer may be as long as what was expected */
            *ret_len = GR_MIN(*ret_len, max - GR_MIN(max, a.task->residual));
        memcpy(out, in->data, *ret_len);
    }
    (void)isc_status_text(a.status, a.task, why);
    scsi_free_scsi_task(a.task);
    return 0;
}

static int ask_capacity(struct isc_dev *d, struct isc_unit *u, struct gr_err *err)
{
    const uint8_t cdb[16] = {0x9e, 0x10, [13] = 32};
    uint8_t p[32];
    char why[96];
    size_t n;
    int r = ask_bytes(d, cdb, sizeof(cdb), p, sizeof(p), &n, why, err);

    if (r < 0)
        return r;
    if (n < sizeof(p))
        return gr_fail(err, -GR_EPROTO, "no READ CAPACITY(16): %s", n ? "a short answer" : why);
    uint64_t last = gr_get_be64(p);
    u->block = gr_get_be32(p + 8);
    if ((u->block != 512 && u->block != 4096) || last >= INT64_MAX / u->block)
        return gr_fail(err, -GR_EPROTO, "a last block of %llu and blocks of %u bytes make no sense", (unsigned long long)last, u->block);
    u->size = (last + 1) * u->block;
    u->physical = u->block << GR_MIN(p[13] & 0x0f, 8);
    u->lbpme = p[14] & 0x80;
    u->lbprz = p[14] & 0x40;
    return 0;
}

/* Optional VPD pages: what a target does not know is left at its default. */
static int vpd(struct isc_dev *d, uint8_t page, uint8_t *out, size_t max, size_t *ret_len, struct gr_err *err)
{
    const uint8_t cdb[6] = {0x12, 0x01, page, (uint8_t)(max >> 8), (uint8_t)max, 0};
    char why[96];
    int r = ask_bytes(d, cdb, sizeof(cdb), out, max, ret_len, why, err);

    if (r < 0)
        return r;
    if (*ret_len < 4 || out[1] != page)
        *ret_len = 0;
    else
        *ret_len = GR_MIN(*ret_len, 4 + (size_t)gr_get_be16(out + 2));
    return 0;
}

/* MODE SENSE(6) of the caching page (SBC-3 6.4.5): who is not registered may be refused, so it is asked again after that. */
int isc_ask_modes(struct isc_dev *d, struct isc_unit *u, struct gr_err *err)
{
    const uint8_t cdb[6] = {0x1a, 0, 0x08, 0, 192, 0};
    uint8_t p[192];
    char why[96];
    size_t n;
    int r = ask_bytes(d, cdb, sizeof(cdb), p, sizeof(p), &n, why, err);

    if (r < 0)
        return r;
    u->wce = true; /* who does not tell may have a cache that forgets */
    if (n < 4)
        return 0;
    u->modes_known = true;
    u->write_protected = p[2] & 0x80;
    u->dpofua = p[2] & 0x10;
    size_t page = 4 + (size_t)p[3];
    if (page + 3 <= n && (p[page] & 0x3f) == 0x08)
        u->wce = p[page + 2] & 0x04;
    return 0;
}

int isc_examine(struct isc_dev *d, struct isc_unit *ret, struct gr_err *err)
{
    struct isc_unit u = {0};
    uint8_t limits[64] = {0}, thin[8] = {0};
    size_t n = 0, m = 0;
    int r = ask_capacity(d, &u, err);

    if (r >= 0)
        r = vpd(d, 0x83, u.id, 255, &u.id_len, err);
    if (r >= 0)
        r = vpd(d, 0xb0, limits, sizeof(limits), &n, err);
    if (r >= 0)
        r = vpd(d, 0xb2, thin, sizeof(thin), &m, err);
    if (r >= 0)
        r = isc_ask_modes(d, &u, err);
    if (r < 0)
        return r;
    u.piece = ISCSI_PIECE;
    uint64_t most = n >= 12 ? (uint64_t)gr_get_be32(limits + 8) * u.block : 0; /* MAXIMUM TRANSFER LENGTH; 0: not told */
    if (most && most < u.piece)
        u.piece = (uint32_t)most;
    u.caw_blocks = n >= 6 ? limits[5] : 0;
    uint64_t same = n >= 44 ? gr_get_be64(limits + 36) : 0; /* MAXIMUM WRITE SAME LENGTH; 0: not told */
    u.same_bytes = same && same < ISCSI_ZERO_PIECE / u.block ? same * u.block : ISCSI_ZERO_PIECE;
    u.lbpws = m >= 6 && (thin[5] & 0x40);
    uint64_t granule = n >= 32 ? (uint64_t)gr_get_be32(limits + 28) * u.block : 0;
    u.granule = granule && granule <= UINT32_MAX ? (uint32_t)granule : u.block;
    *ret = u;
    return 0;
}

int isc_same_unit(const struct isc_unit *was, const struct isc_unit *now, struct gr_err *err)
{
    if (was->id_len != now->id_len || memcmp(was->id, now->id, was->id_len))
        return gr_fail(err, -ESTALE, "another logical unit answers there now (VPD page 83h differs): it is not touched");
    if (was->block != now->block)
        return gr_fail(err, -ESTALE, "its blocks had %u bytes and have %u now: it is not touched", was->block, now->block);
    if (now->size < was->size)
        return gr_fail(err, -ESTALE, "it had %llu bytes and has %llu now: it is not touched", (unsigned long long)was->size,
                       (unsigned long long)now->size);
    return 0;
}
