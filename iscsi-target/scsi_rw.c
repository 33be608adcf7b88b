/* READ, WRITE and friends: the hot path. Callbacks only; nothing is allocated. */
#include "iscsi-target/scsi.h"
#include "common/cleanup.h"

static void dev_done(struct gr_bio *bio)
{
    struct tgt_task *t = bio->arg;
    if (bio->status < 0) {
        if (bio->status == -GR_EMISCOMPARE)
            tgt_check_info(t, TGT_SENSE_MISCOMPARE, bio->miscompare_off);
        else if (bio->status == -EIO && bio->bad_off)
            tgt_check_info(t, TGT_SENSE_READ_ERROR, (bio->off + bio->bad_off - 1) >> t->lu->shift);
        else
            tgt_check_code(t, bio->status);
        return;
    }
    if (bio->op == GR_OP_READ)
        t->in_len = GR_MIN(t->in_total, t->edtl);
    tgt_good(t);
}

static void dev_go(struct tgt_range *r)
{
    struct tgt_task *t = gr_container_of(r, struct tgt_task, range);
    t->state = TASK_RUN;
    t->sess->running++;
    if (tgt_scsi_still_admitted(t))
        gr_submit(t->lu->chan, &t->bio);
}

/* Hand t->bio (op, flags, iov set) for bytes [off, off+len) to the device, when the range is free. */
static void dev_start(struct tgt_task *t, uint64_t off, uint64_t len)
{
    t->bio.off = off;
    t->bio.len = len;
    t->bio.done = dev_done;
    t->bio.arg = t;
    t->range.off = off;
    t->range.len = len;
    t->range.go = dev_go;
    if (tgt_range_begin(&t->lu->ranges, &t->range)) {
        gr_submit(t->lu->chan, &t->bio);
        return;
    }
    t->sess->running--;
    t->state = TASK_WAIT;
}

/* Protection information is not supported: RDPROTECT/WRPROTECT must be 0 (the 6-byte forms have none). */
static bool protect_ok(struct tgt_task *t)
{
    if (t->cdb[0] >> 5 == 0 || !(t->cdb[1] & 0xe0))
        return true;
    tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 1);
    return false;
}

static bool fua(const struct tgt_task *t)
{
    return t->cdb[0] >> 5 != 0 && (t->cdb[1] & 0x08);
}

void tgt_run_read(struct tgt_task *t)
{
    uint64_t lba = tgt_cdb_lba(t->cdb);
    uint32_t blocks = tgt_cdb_blocks(t->cdb), block = t->lu->geo.logical_block;
    if (!protect_ok(t) || !tgt_check_range(t, lba, blocks))
        return;
    if (blocks > TGT_BUF_MAX >> t->lu->shift) {
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, t->cdb[0] >> 5 == 4 ? 10 : 6);
        return;
    }
    t->in_total = blocks << t->lu->shift;
    uint32_t want = t->flags & TGT_CMD_READ ? GR_MIN(t->in_total, t->edtl) : 0;
    if (!want) {
        tgt_good(t);
        return;
    }
    want = (want + block - 1) & ~(block - 1);
    int r = tgt_task_read_buf(t, want);
    if (r == -EAGAIN) {
        t->sess->running--;
        tgt_task_wait_buf(t);
        return;
    }
    if (r < 0) {
        tgt_status(t, TGT_BUSY);
        return;
    }
    t->iov = (struct iovec){t->buf, want};
    t->bio.op = GR_OP_READ;
    t->bio.flags = 0;
    t->bio.iov = &t->iov;
    t->bio.iovcnt = 1;
    dev_start(t, lba << t->lu->shift, want);
}

/* Whole blocks of what the initiator sent. */
static uint32_t sent_bytes(const struct tgt_task *t)
{
    return GR_MIN(t->out_need, t->out_got) & ~(t->lu->geo.logical_block - 1);
}

static void write_blocks(struct tgt_task *t, uint32_t flags)
{
    uint64_t lba = tgt_cdb_lba(t->cdb);
    if (!protect_ok(t) || !tgt_check_range(t, lba, tgt_cdb_blocks(t->cdb)))
        return;
    uint32_t len = sent_bytes(t);
    if (!len) {
        tgt_good(t);
        return;
    }
    t->iov = (struct iovec){t->buf, len};
    t->bio.op = GR_OP_WRITE;
    t->bio.flags = flags | (fua(t) ? GR_BIO_FUA : 0);
    t->bio.iov = &t->iov;
    t->bio.iovcnt = 1;
    dev_start(t, lba << t->lu->shift, len);
}

void tgt_run_write(struct tgt_task *t)
{
    write_blocks(t, 0);
}

void tgt_run_write_atomic(struct tgt_task *t)
{
    uint32_t max = t->lu->geo.atomic_bytes >> t->lu->shift, blocks = tgt_cdb_blocks(t->cdb);
    uint32_t boundary = gr_get_be16(t->cdb + 10);
    if (!max) {
        tgt_check(t, TGT_SENSE_INVALID_OPCODE);
        return;
    }
    if (boundary) { /* MAXIMUM ATOMIC BOUNDARY SIZE 0: not supported */
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 10);
        return;
    }
    if (!tgt_check_range(t, tgt_cdb_lba(t->cdb), blocks))
        return;
    if (tgt_cdb_lba(t->cdb) % tgt_lu_atomic_unit(t->lu)) {
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 2);
        return;
    }
    if (blocks > max || blocks % tgt_lu_atomic_unit(t->lu) || sent_bytes(t) < t->out_total) {
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 12);
        return;
    }
    write_blocks(t, GR_BIO_ATOMIC);
}

void tgt_run_compare_write(struct tgt_task *t)
{
    uint64_t lba = tgt_cdb_lba(t->cdb);
    uint32_t len = tgt_cdb_blocks(t->cdb) << t->lu->shift;
    if (!protect_ok(t) || !tgt_check_range(t, lba, tgt_cdb_blocks(t->cdb)))
        return;
    if (t->edtl != t->out_total || t->out_got < t->out_total) { /* comparing a part would change the meaning */
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 13);
        return;
    }
    if (!len) {
        tgt_good(t);
        return;
    }
    t->iov = (struct iovec){t->buf, len};
    t->iov2 = (struct iovec){t->buf + len, len};
    t->range.excl = true; /* a plain write of somebody else is before it or behind it, never within */
    t->bio.op = GR_OP_COMPARE_WRITE;
    t->bio.flags = GR_BIO_FUA;
    t->bio.iov = &t->iov;
    t->bio.iov2 = &t->iov2;
    t->bio.iovcnt = t->bio.iovcnt2 = 1;
    dev_start(t, lba << t->lu->shift, len);
}

void tgt_run_sync_cache(struct tgt_task *t)
{
    uint64_t lba = tgt_cdb_lba(t->cdb);
    if (!tgt_check_range(t, lba, tgt_cdb_blocks(t->cdb)))
        return;
    if (t->lu->geo.read_only) {
        tgt_good(t);
        return;
    }
    t->bio.op = GR_OP_FLUSH;
    t->bio.flags = 0;
    t->bio.off = t->bio.len = 0;
    t->bio.done = dev_done;
    t->bio.arg = t;
    gr_submit(t->lu->chan, &t->bio); /* needs no range: it orders nothing */
}

void tgt_run_prefetch(struct tgt_task *t)
{
    uint64_t lba = tgt_cdb_lba(t->cdb);
    uint32_t blocks = tgt_cdb_blocks(t->cdb);
    if (tgt_check_range(t, lba, blocks))
        tgt_status(t, TGT_CONDITION_MET); /* whatever is asked for is as near as it gets */
}
