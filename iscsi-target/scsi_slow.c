/* Commands of several device operations: in fibers, in pieces, so that nothing else waits for them. */
#include "common/cleanup.h"
#include "iscsi-target/scsi.h"

#define PIECE (1u << 20)          /* bytes of a buffer for patterns and comparisons */
#define ZERO_PIECE (64u << 20)    /* bytes of one zeroing or unmapping request */
#define UNMAP_DESCRIPTORS_MAX 256u
#define LBA_DESCRIPTORS_MAX 256u

static void range_wake(struct tgt_range *r)
{
    struct tgt_task *t = gr_container_of(r, struct tgt_task, range);
    gr_fiber_wake((struct gr_fiber *)t->bio.arg);
}

bool tgt_fiber_range(struct tgt_task *t, uint64_t off, uint64_t len, bool excl)
{
    t->range.off = off;
    t->range.len = len;
    t->range.excl = excl;
    t->range.go = range_wake;
    t->bio.arg = gr_fiber_self();
    bool waited = !tgt_range_begin(&t->lu->ranges, &t->range);
    if (waited)
        gr_fiber_suspend();
    if (t->aborted) { /* its initiator may have written there since: what waited was not sealed */
        tgt_status(t, TGT_BUSY); /* which nobody hears */
        return false;
    }
    return !waited || !t->cmd || tgt_scsi_still_admitted(t);
}

/* Start and length in bytes of the blocks that the CDB names; false: answered. */
static bool extent(struct tgt_task *t, uint64_t *ret_off, uint64_t *ret_len)
{
    uint64_t lba = tgt_cdb_lba(t->cdb), blocks = tgt_cdb_blocks(t->cdb);
    if (t->cdb[1] & 0xe0) {
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 1);
        return false;
    }
    if (!tgt_check_range(t, lba, blocks))
        return false;
    *ret_off = lba << t->lu->shift;
    *ret_len = blocks << t->lu->shift;
    return true;
}

static uint64_t sent(const struct tgt_task *t)
{
    return GR_MIN(t->out_need, t->out_got) & ~(uint64_t)(t->lu->geo.logical_block - 1);
}

static void finish(struct tgt_task *t, int r)
{
    if (r < 0)
        tgt_check_code(t, r);
    else
        tgt_good(t);
}

void tgt_run_orwrite(struct tgt_task *t)
{
    uint64_t off, len;
    uint32_t cap, flags = t->cdb[1] & 0x08 ? GR_BIO_FUA : 0;
    if (!extent(t, &off, &len))
        return;
    len = GR_MIN(len, sent(t));
    if (!len) {
        tgt_good(t);
        return;
    }
    if (!tgt_fiber_range(t, off, len, true))
        return;
    uint8_t *old = tgt_buf_get(&t->sess->server->pool, (uint32_t)len, &cap);
    if (!old) {
        tgt_status(t, TGT_BUSY);
        return;
    }
    int r = gr_pread(t->lu->chan, old, len, off);
    for (uint64_t i = 0; !r && i < len; i++)
        t->buf[i] |= old[i];
    if (!r)
        r = gr_pwrite(t->lu->chan, t->buf, len, off, flags);
    tgt_buf_put(&t->sess->server->pool, old, cap);
    finish(t, r);
}

/* Compare the device's bytes with @want (@period bytes, repeated). 0, -GR_EMISCOMPARE with *ret_at, or an error. */
static int compare(struct tgt_task *t, uint64_t off, uint64_t len, const uint8_t *want, uint64_t period, uint64_t *ret_at)
{
    uint32_t cap;
    uint64_t step = period < PIECE ? PIECE / period * period : period;
    uint8_t *got = tgt_buf_get(&t->sess->server->pool, (uint32_t)GR_MIN(step, len), &cap);
    int r = got ? 0 : -ENOMEM;
    for (uint64_t done = 0; !r && done < len; done += step) {
        uint64_t n = GR_MIN(step, len - done);
        r = gr_pread(t->lu->chan, got, n, off + done);
        for (uint64_t i = 0; !r && i < n; i += period) {
            uint64_t m = GR_MIN(period, n - i);
            if (!memcmp(got + i, want, m))
                continue;
            uint64_t at = 0;
            while (got[i + at] == want[at])
                at++;
            *ret_at = done + i + at;
            r = -GR_EMISCOMPARE;
        }
    }
    if (got)
        tgt_buf_put(&t->sess->server->pool, got, cap);
    return r;
}

static void finish_compare(struct tgt_task *t, int r, uint64_t at)
{
    if (r == -GR_EMISCOMPARE)
        tgt_check_info(t, TGT_SENSE_MISCOMPARE, at);
    else
        finish(t, r);
}

void tgt_run_verify(struct tgt_task *t)
{
    uint64_t off, len, at = 0;
    unsigned bytchk = t->cdb[1] >> 1 & 3;
    if (!extent(t, &off, &len))
        return;
    if (bytchk == 2) {
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 1);
        return;
    }
    if (!bytchk || !len) { /* every read is checked where the device can: nothing to add */
        tgt_good(t);
        return;
    }
    uint64_t period = bytchk == 3 ? t->lu->geo.logical_block : GR_MIN(len, sent(t));
    if (bytchk == 1)
        len = period;
    if (!period || sent(t) < period) {
        tgt_good(t);
        return;
    }
    if (!tgt_fiber_range(t, off, len, false))
        return;
    int r = compare(t, off, len, t->buf, period, &at);
    finish_compare(t, r, at);
}

void tgt_run_write_verify(struct tgt_task *t)
{
    uint64_t off, len, at = 0;
    unsigned bytchk = t->cdb[1] >> 1 & 3;
    if (!extent(t, &off, &len))
        return;
    if (bytchk > 1) {
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 1);
        return;
    }
    len = GR_MIN(len, sent(t));
    if (!len) {
        tgt_good(t);
        return;
    }
    if (!tgt_fiber_range(t, off, len, bytchk)) /* nobody else writes there between writing and comparing */
        return;
    int r = gr_pwrite(t->lu->chan, t->buf, len, off, GR_BIO_FUA);
    if (!r && bytchk)
        r = compare(t, off, len, t->buf, len, &at);
    finish_compare(t, r, at);
}

static bool all_zero(const uint8_t *p, size_t len)
{
    return !p[0] && !memcmp(p, p + 1, len - 1);
}

static int write_pattern(struct tgt_task *t, uint64_t off, uint64_t len, const uint8_t *block, uint32_t block_len)
{
    uint32_t cap;
    uint64_t step = GR_MIN((uint64_t)PIECE, len);
    uint8_t *p = tgt_buf_get(&t->sess->server->pool, (uint32_t)step, &cap);
    if (!p)
        return -ENOMEM;
    for (uint64_t i = 0; i < step; i += block_len)
        memcpy(p + i, block, block_len);
    int r = 0;
    for (uint64_t done = 0; !r && done < len && !t->aborted; done += step)
        r = gr_pwrite(t->lu->chan, p, GR_MIN(step, len - done), off + done, 0);
    tgt_buf_put(&t->sess->server->pool, p, cap);
    return r;
}

static int zero(struct tgt_task *t, uint64_t off, uint64_t len, uint32_t flags)
{
    int r = 0;
    for (uint64_t done = 0; !r && done < len && !t->aborted; done += ZERO_PIECE)
        r = gr_write_zeroes(t->lu->chan, off + done, GR_MIN((uint64_t)ZERO_PIECE, len - done), flags);
    return r;
}

void tgt_run_write_same(struct tgt_task *t)
{
    uint64_t off, len;
    uint32_t block = t->lu->geo.logical_block, blocks = tgt_cdb_blocks(t->cdb);
    bool ndob = t->cdb[0] == 0x93 && (t->cdb[1] & 1), unmap = t->cdb[1] & 0x08;
    if ((t->cdb[1] & 0x10) || (unmap && !t->lu->geo.unmap_granule)) { /* ANCHOR; UNMAP on a LU without */
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 1);
        return;
    }
    if (!extent(t, &off, &len))
        return;
    if (!blocks) /* to the end (WSNZ is 0) */
        len = t->lu->geo.size - off;
    if (len >> t->lu->shift > TGT_WRITE_SAME_MAX) {
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, t->cdb[0] == 0x93 ? 10 : 7);
        return;
    }
    if (!ndob && (t->edtl != block || sent(t) < block)) { /* one block, no more and no less */
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 1);
        return;
    }
    bool zeros = ndob || all_zero(t->buf, block);
    if (!tgt_fiber_range(t, off, len, false))
        return;
    finish(t, zeros ? zero(t, off, len, unmap ? GR_BIO_MAY_UNMAP : 0) : write_pattern(t, off, len, t->buf, block));
}

/* All descriptors are checked before the first is acted on. */
static bool unmap_list_ok(struct tgt_task *t, uint32_t *ret_n)
{
    uint32_t have = GR_MIN(t->out_need, t->out_got), list = t->out_total;
    if (!list) {
        tgt_good(t);
        return false;
    }
    if (have < 8) {
        tgt_check(t, TGT_SENSE_PARAM_LENGTH);
        return false;
    }
    uint32_t bytes = gr_get_be16(t->buf + 2), n = bytes / 16;
    if (bytes > have - 8 || gr_get_be16(t->buf) < bytes) {
        tgt_check(t, TGT_SENSE_PARAM_LENGTH);
        return false;
    }
    if (n > UNMAP_DESCRIPTORS_MAX) {
        tgt_check(t, TGT_SENSE_INVALID_PARAM);
        return false;
    }
    uint64_t capacity = t->lu->geo.size >> t->lu->shift;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t lba = gr_get_be64(t->buf + 8 + 16 * i), blocks = gr_get_be32(t->buf + 16 + 16 * i);
        if (lba <= capacity && blocks <= capacity - lba) /* no blocks at the very end is no error */
            continue;
        tgt_check(t, TGT_SENSE_LBA_RANGE);
        return false;
    }
    *ret_n = n;
    return true;
}

/* Whole granules are given back; the edges are zeroed, so that all of it reads as zeros (LBPRZ). */
static int unmap_range(struct tgt_task *t, uint64_t off, uint64_t len)
{
    struct tgt_lu *lu = t->lu;
    uint64_t granule = lu->geo.unmap_granule, end = off + len;
    uint64_t first = (off + granule - 1) / granule * granule, last = end == lu->geo.size ? end : end / granule * granule;
    if (first >= last)
        return gr_write_zeroes(lu->chan, off, len, GR_BIO_MAY_UNMAP);
    int r = first > off ? gr_write_zeroes(lu->chan, off, first - off, GR_BIO_MAY_UNMAP) : 0;
    for (uint64_t at = first; !r && at < last && !t->aborted; at += ZERO_PIECE)
        r = gr_unmap(lu->chan, at, GR_MIN((uint64_t)ZERO_PIECE, last - at), 0);
    if (!r && end > last)
        r = gr_write_zeroes(lu->chan, last, end - last, GR_BIO_MAY_UNMAP);
    return r;
}

void tgt_run_unmap(struct tgt_task *t)
{
    uint32_t n;
    struct tgt_lu *lu = t->lu;
    if (!lu->geo.unmap_granule) {
        tgt_check(t, TGT_SENSE_INVALID_OPCODE);
        return;
    }
    if (t->cdb[1] & 1) { /* ANCHOR */
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 1);
        return;
    }
    if (!unmap_list_ok(t, &n))
        return;
    int r = 0;
    for (uint32_t i = 0; i < n && !r && !t->aborted; i++) {
        uint64_t off = gr_get_be64(t->buf + 8 + 16 * i) << lu->shift, len = (uint64_t)gr_get_be32(t->buf + 16 + 16 * i) << lu->shift;
        if (!len)
            continue;
        if (t->range.active)
            tgt_range_end(&lu->ranges, &t->range);
        if (!tgt_fiber_range(t, off, len, false))
            return;
        r = unmap_range(t, off, len);
    }
    finish(t, r);
}

void tgt_run_get_lba_status(struct tgt_task *t)
{
    struct tgt_lu *lu = t->lu;
    uint64_t lba = gr_get_be64(t->cdb + 2);
    uint32_t alloc = gr_get_be32(t->cdb + 10), cap, n = 0;
    if (!tgt_check_range(t, lba, 1))
        return;
    uint32_t want = alloc < 24 ? 1 : GR_MIN((alloc - 8) / 16, LBA_DESCRIPTORS_MAX);
    uint32_t bytes = want * (uint32_t)sizeof(struct gr_extent);
    struct gr_extent *e = tgt_buf_get(&t->sess->server->pool, bytes, &cap);
    if (!e) {
        tgt_status(t, TGT_BUSY);
        return;
    }
    uint64_t off = lba << lu->shift, end = lu->geo.size & ~(uint64_t)(lu->geo.logical_block - 1);
    int r = gr_extents(lu->chan, off, end - off, NULL, e, want, &n);
    if (r == -EOPNOTSUPP) { /* a device that cannot tell: all of it is mapped */
        e[0] = (struct gr_extent){.off = off, .len = end - off};
        n = 1;
        r = 0;
    }
    uint8_t *p = r < 0 ? NULL : tgt_in_buf(t, 8 + 16 * want);
    uint32_t out = 0;
    for (uint32_t i = 0; p && i < n; i++) {
        uint8_t *d = p + 8 + 16 * out, *prev = d - 16;
        uint64_t blocks = e[i].len >> lu->shift;
        uint8_t status = e[i].flags & GR_EXTENT_HOLE ? 1 : 0;
        if (out && prev[12] == status && gr_get_be32(prev + 8) + blocks <= UINT32_MAX) {
            gr_put_be32(prev + 8, (uint32_t)(gr_get_be32(prev + 8) + blocks));
            continue;
        }
        gr_put_be64(d, e[i].off >> lu->shift);
        gr_put_be32(d + 8, (uint32_t)GR_MIN(blocks, (uint64_t)UINT32_MAX));
        d[12] = status;
        out++;
        if (blocks > UINT32_MAX)
            break;
    }
    tgt_buf_put(&t->sess->server->pool, e, cap);
    if (r < 0) {
        tgt_check_code(t, r);
    } else if (p) {
        gr_put_be32(p, 4 + 16 * out);
        tgt_in_data(t, 8 + 16 * out, alloc);
    }
}
