/* The command table and what is checked before a command runs. */
#include "iscsi-target/scsi.h"
#include "iscsi-target/sanitize.h"
#include "common/cleanup.h"

#define R6 CMD_RES6_OK
#define PR CMD_PR_READ
#define PW CMD_PR_WRITE
#define RY CMD_READY
#define RD (CMD_PR_READ | CMD_MEDIUM | CMD_READY)
#define WR (CMD_PR_WRITE | CMD_WRITES | CMD_MEDIUM | CMD_READY)
#define FI CMD_FIBER
#define SB CMD_STANDBY_OK
#define USE6 {0, 0x1f, 0xff, 0xff, 0xff, 0x04}
#define USE10(b1) {0, b1, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x04}
#define USE12(b1) {0, b1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04}
#define USE16(b1) {0, b1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04}
#define USE_SA10 {0, 0x1f, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0x04}
#define USE_SA12 {0, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x04}
#define USE_SA16 {0, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x04}
#define SANITIZE {0, 0xbf, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04}
#define PROUT {0, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x04}

const struct tgt_cmd tgt_cmds[] = {
    {0x00, -1, 6, RY, OUT_NONE, {0, 0, 0, 0, 0, 0x04}, tgt_run_test_unit_ready},
    {0x03, -1, 6, CMD_UA_OK | CMD_NO_LUN | R6 | SB, OUT_NONE, {0, 0x01, 0, 0, 0xff, 0x04}, tgt_run_request_sense},
    {0x08, -1, 6, RD, OUT_NONE, USE6, tgt_run_read},
    {0x0a, -1, 6, WR, OUT_BLOCKS, USE6, tgt_run_write},
    {0x12, -1, 6, CMD_UA_OK | CMD_NO_LUN | R6 | SB, OUT_NONE, {0, 0x01, 0xff, 0xff, 0xff, 0x04}, tgt_run_inquiry},
    {0x15, -1, 6, PW, OUT_LEN8, {0, 0x11, 0, 0, 0xff, 0x04}, tgt_run_mode_select},
    {0x16, -1, 6, 0, OUT_NONE, {0, 0, 0, 0, 0, 0x04}, tgt_run_reserve6},
    {0x17, -1, 6, R6, OUT_NONE, {0, 0, 0, 0, 0, 0x04}, tgt_run_release6},
    {0x1a, -1, 6, PR | SB, OUT_NONE, {0, 0x08, 0xff, 0xff, 0xff, 0x04}, tgt_run_mode_sense},
    {0x1b, -1, 6, PW | CMD_CALM, OUT_NONE, {0, 0x01, 0, 0x0f, 0xf7, 0x04}, tgt_run_start_stop},
    {0x1d, -1, 6, PW | CMD_CALM, OUT_LEN16, {0, 0x04, 0, 0xff, 0xff, 0x04}, tgt_run_send_diagnostic},
    {0x1e, -1, 6, 0, OUT_NONE, {0, 0, 0, 0, 0x03, 0x04}, tgt_run_prevent},
    {0x25, -1, 10, RY | SB, OUT_NONE, {0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01, 0x04}, tgt_run_read_capacity10},
    {0x28, -1, 10, RD, OUT_NONE, USE10(0x18), tgt_run_read},
    {0x2a, -1, 10, WR, OUT_BLOCKS, USE10(0x18), tgt_run_write},
    {0x2e, -1, 10, WR | FI, OUT_BLOCKS, USE10(0x16), tgt_run_write_verify},
    {0x2f, -1, 10, RD | FI, OUT_VERIFY, USE10(0x16), tgt_run_verify},
    {0x34, -1, 10, RD, OUT_NONE, USE10(0x02), tgt_run_prefetch},
    {0x35, -1, 10, PW | RY, OUT_NONE, USE10(0x02), tgt_run_sync_cache},
    {0x37, -1, 10, PR | RY, OUT_NONE, {0, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0x04}, tgt_run_read_defect},
    {0x41, -1, 10, WR | FI, OUT_SAME, USE10(0x18), tgt_run_write_same},
    {0x42, -1, 10, WR | FI, OUT_LEN16, {0, 0, 0, 0, 0, 0, 0x1f, 0xff, 0xff, 0x04}, tgt_run_unmap},
    {0x48, 0x01, 10, WR | FI, OUT_LEN16, SANITIZE, tgt_run_sanitize},
    {0x48, 0x02, 10, WR | FI, OUT_LEN16, SANITIZE, tgt_run_sanitize},
    {0x48, 0x03, 10, WR | FI, OUT_LEN16, SANITIZE, tgt_run_sanitize},
    {0x48, 0x1f, 10, WR | FI, OUT_LEN16, SANITIZE, tgt_run_sanitize},
    {0x55, -1, 10, PW, OUT_LEN16, {0, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04}, tgt_run_mode_select},
    {0x5a, -1, 10, PR | SB, OUT_NONE, {0, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0x04}, tgt_run_mode_sense},
    {0x5e, 0x00, 10, FI | SB, OUT_NONE, USE_SA10, tgt_run_pr_in},
    {0x5e, 0x01, 10, FI | SB, OUT_NONE, USE_SA10, tgt_run_pr_in},
    {0x5e, 0x02, 10, FI | SB, OUT_NONE, USE_SA10, tgt_run_pr_in},
    {0x5e, 0x03, 10, FI | SB, OUT_NONE, USE_SA10, tgt_run_pr_in},
    {0x5f, 0x00, 10, FI | SB, OUT_LEN32_5, PROUT, tgt_run_pr_out},
    {0x5f, 0x01, 10, FI | SB, OUT_LEN32_5, PROUT, tgt_run_pr_out},
    {0x5f, 0x02, 10, FI | SB, OUT_LEN32_5, PROUT, tgt_run_pr_out},
    {0x5f, 0x03, 10, FI | SB, OUT_LEN32_5, PROUT, tgt_run_pr_out},
    {0x5f, 0x04, 10, FI | SB, OUT_LEN32_5, PROUT, tgt_run_pr_out},
    {0x5f, 0x05, 10, FI | SB, OUT_LEN32_5, PROUT, tgt_run_pr_out},
    {0x5f, 0x06, 10, FI | SB, OUT_LEN32_5, PROUT, tgt_run_pr_out},
    {0x83, 0x00, 16, PW | RY | FI, OUT_LEN32_10, {0, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04}, tgt_run_extended_copy},
    {0x84, 0x00, 16, PR, OUT_NONE, {0, 0x1f, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04}, tgt_run_copy_status},
    {0x84, 0x03, 16, PR, OUT_NONE, {0, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04}, tgt_run_copy_operating},
    {0x88, -1, 16, RD, OUT_NONE, USE16(0x18), tgt_run_read},
    {0x89, -1, 16, WR, OUT_CAW, {0, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0x1f, 0x04}, tgt_run_compare_write},
    {0x8a, -1, 16, WR, OUT_BLOCKS, USE16(0x18), tgt_run_write},
    {0x8b, -1, 16, WR | FI, OUT_BLOCKS, USE16(0x18), tgt_run_orwrite},
    {0x8e, -1, 16, WR | FI, OUT_BLOCKS, USE16(0x16), tgt_run_write_verify},
    {0x8f, -1, 16, RD | FI, OUT_VERIFY, USE16(0x16), tgt_run_verify},
    {0x90, -1, 16, RD, OUT_NONE, USE16(0x02), tgt_run_prefetch},
    {0x91, -1, 16, PW | RY, OUT_NONE, USE16(0x02), tgt_run_sync_cache},
    {0x93, -1, 16, WR | FI, OUT_SAME, USE16(0x09), tgt_run_write_same},
    {0x9c, -1, 16, WR, OUT_BLOCKS, {0, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04}, tgt_run_write_atomic},
    {0x9e, 0x10, 16, RY | SB, OUT_NONE, {0, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04}, tgt_run_read_capacity16},
    {0x9e, 0x12, 16, RY | FI, OUT_NONE, USE_SA16, tgt_run_get_lba_status},
    {0xa0, -1, 12, CMD_UA_OK | CMD_NO_LUN | R6 | SB, OUT_NONE, {0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04}, tgt_run_report_luns},
    {0xa3, 0x0a, 12, FI | SB, OUT_NONE, {0, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04}, tgt_run_report_tpg},
    {0xa3, 0x0c, 12, SB, OUT_NONE, {0, 0x1f, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x04}, tgt_run_report_opcodes},
    {0xa3, 0x0d, 12, SB, OUT_NONE, {0, 0x1f, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04}, tgt_run_report_tmf},
    {0xa8, -1, 12, RD, OUT_NONE, USE12(0x18), tgt_run_read},
    {0xaa, -1, 12, WR, OUT_BLOCKS, USE12(0x18), tgt_run_write},
    {0xae, -1, 12, WR | FI, OUT_BLOCKS, USE12(0x16), tgt_run_write_verify},
    {0xaf, -1, 12, RD | FI, OUT_VERIFY, USE12(0x16), tgt_run_verify},
    {0xb7, -1, 12, PR | RY, OUT_NONE, {0, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x04}, tgt_run_read_defect},
};
const unsigned tgt_n_cmds = GR_ARRAY_LEN(tgt_cmds);

const struct tgt_cmd *tgt_scsi_lookup(const uint8_t *cdb, uint32_t *ret_sense)
{
    *ret_sense = TGT_SENSE_INVALID_OPCODE;
    for (unsigned i = 0; i < tgt_n_cmds; i++) {
        if (tgt_cmds[i].op != cdb[0])
            continue;
        if (tgt_cmds[i].sa < 0 || (cdb[1] & 0x1f) == tgt_cmds[i].sa) {
            *ret_sense = 0;
            return &tgt_cmds[i];
        }
        *ret_sense = TGT_SENSE_INVALID_CDB; /* a service action that we do not have */
    }
    return NULL;
}

uint64_t tgt_cdb_lba(const uint8_t *cdb)
{
    switch (cdb[0] >> 5) {
    case 0:
        return gr_get_be24(cdb + 1) & 0x1fffffu;
    case 4:
        return gr_get_be64(cdb + 2);
    default:
        return gr_get_be32(cdb + 2);
    }
}

uint32_t tgt_cdb_blocks(const uint8_t *cdb)
{
    switch (cdb[0]) {
    case 0x89:
        return cdb[13];
    case 0x9c:
        return gr_get_be16(cdb + 12);
    default:
        break;
    }
    switch (cdb[0] >> 5) {
    case 0:
        return cdb[4] ? cdb[4] : 256;
    case 4:
        return gr_get_be32(cdb + 10);
    case 5:
        return gr_get_be32(cdb + 6);
    default:
        return gr_get_be16(cdb + 7);
    }
}

uint64_t tgt_scsi_out_total(const struct tgt_lu *lu, const struct tgt_cmd *cmd, const uint8_t *cdb)
{
    uint64_t block = lu->geo.logical_block;
    switch ((enum tgt_out_kind)cmd->out) {
    case OUT_NONE:
        return 0;
    case OUT_BLOCKS:
        return tgt_cdb_blocks(cdb) * block;
    case OUT_CAW:
        return 2 * tgt_cdb_blocks(cdb) * block;
    case OUT_VERIFY:
        return (cdb[1] >> 1 & 3) == 1 ? tgt_cdb_blocks(cdb) * block : (cdb[1] >> 1 & 3) == 3 ? block : 0;
    case OUT_SAME:
        return cdb[0] == 0x93 && (cdb[1] & 1) ? 0 : block;
    case OUT_LEN8:
        return cdb[4];
    case OUT_LEN16:
        return cdb[0] == 0x1d ? gr_get_be16(cdb + 3) : gr_get_be16(cdb + 7);
    case OUT_LEN24:
        return gr_get_be24(cdb + 6);
    case OUT_LEN32_5:
        return gr_get_be32(cdb + 5);
    case OUT_LEN32_10:
        return gr_get_be32(cdb + 10);
    }
    return 0;
}

uint32_t tgt_scsi_refusal(const struct tgt_lu *lu, const struct tgt_sess *sess, const struct tgt_cmd *cmd, int *ret_progress)
{
    unsigned flags = cmd->flags;
    *ret_progress = -1;
    if (lu->standby && !(flags & CMD_STANDBY_OK))
        return TGT_SENSE_STANDBY << 8;
    if ((lu->reserved && lu->reserved != sess && !(flags & CMD_RES6_OK)) || tgt_pr_check(lu, sess, flags))
        return TGT_CONFLICT;
    if (lu->ejected && (flags & CMD_READY))
        return TGT_SENSE_NO_MEDIUM << 8;
    uint32_t bar = tgt_sanitize_bars(lu, cmd, ret_progress);
    if (bar)
        return bar << 8;
    if ((flags & CMD_WRITES) && (lu->geo.read_only || lu->swp))
        return TGT_SENSE_WRITE_PROTECTED << 8;
    return lu->fenced && (flags & CMD_MEDIUM) ? tgt_code_sense(-GR_EFENCED) << 8 : 0;
}

bool tgt_scsi_still_admitted(struct tgt_task *t)
{
    int progress;
    uint32_t r = tgt_scsi_refusal(t->lu, t->sess, t->cmd, &progress);
    if (!r)
        return true;
    if (r & 0xff)
        tgt_status(t, (uint8_t)r);
    else if (progress >= 0)
        tgt_check_field(t, r >> 8, false, (unsigned)progress); /* the same place in the sense data */
    else
        tgt_check(t, r >> 8);
    return false;
}

/* True: it may run. */
static bool admitted(struct tgt_task *t)
{
    struct tgt_sess *sess = t->sess;
    if (sess->n_ua && !(t->cmd->flags & CMD_UA_OK)) {
        tgt_check(t, 0x060000u | tgt_sess_ua_next(sess));
        return false;
    }
    if (t->lu->standby && !(t->cmd->flags & CMD_STANDBY_OK))
        tgt_lu_look_soon(t->lu);
    return tgt_scsi_still_admitted(t);
}

void tgt_scsi_execute(struct tgt_task *t)
{
    t->state = TASK_RUN;
    t->sess->running++;
    if (!admitted(t))
        return;
    if ((t->cmd->flags & CMD_MEDIUM) && (!tgt_limit_pass(t) || !tgt_share_pass(t))) {
        t->sess->running--;
        t->state = TASK_WAIT;
        return;
    }
    if (t->cmd->flags & CMD_FIBER)
        tgt_scsi_fiber(t);
    else
        t->cmd->run(t);
}

void tgt_scsi_resume(struct tgt_task *t)
{
    t->state = TASK_RUN;
    t->sess->running++;
    if (!tgt_scsi_still_admitted(t))
        return;
    if (t->cmd->flags & CMD_FIBER)
        tgt_scsi_fiber(t);
    else
        t->cmd->run(t);
}

/* ---- answers ---- */

void tgt_status(struct tgt_task *t, uint8_t status)
{
    t->status = status;
    t->in_len = 0;
    tgt_task_done(t);
}

void tgt_good(struct tgt_task *t)
{
    t->status = TGT_GOOD;
    tgt_task_done(t);
}

uint8_t tgt_sense_encode(uint8_t *p, bool descriptor, uint32_t sense, const uint64_t *information, int field, bool field_in_cdb)
{
    uint8_t key = (uint8_t)(sense >> 16 & 15), asc = (uint8_t)(sense >> 8), ascq = (uint8_t)sense;
    uint8_t pointer[3] = {(uint8_t)(0x80 | (field_in_cdb ? 0x40 : 0)), (uint8_t)((unsigned)field >> 8), (uint8_t)field};
    if (!descriptor) {
        memset(p, 0, 18);
        p[0] = 0x70;
        p[2] = key;
        p[7] = 10;
        p[12] = asc;
        p[13] = ascq;
        if (information && *information <= UINT32_MAX) {
            p[0] |= 0x80;
            gr_put_be32(p + 3, (uint32_t)*information);
        }
        if (field >= 0)
            memcpy(p + 15, pointer, sizeof pointer);
        return 18;
    }
    memset(p, 0, 8 + 12 + 8);
    p[0] = 0x72;
    p[1] = key;
    p[2] = asc;
    p[3] = ascq;
    uint8_t *d = p + 8;
    if (information) {
        d[0] = 0;
        d[1] = 10;
        d[2] = 0x80;
        gr_put_be64(d + 4, *information);
        d += 12;
    }
    if (field >= 0) {
        d[0] = 2;
        d[1] = 6;
        memcpy(d + 4, pointer, sizeof pointer);
        d += 8;
    }
    p[7] = (uint8_t)(d - p - 8);
    return (uint8_t)(d - p);
}

static void check(struct tgt_task *t, uint32_t sense, const uint64_t *information, int field, bool in_cdb)
{
    t->sense_len = tgt_sense_encode(t->sense + 2, t->lu->d_sense, sense, information, field, in_cdb);
    tgt_status(t, TGT_CHECK);
}

void tgt_check(struct tgt_task *t, uint32_t sense)
{
    check(t, sense, NULL, -1, false);
}

void tgt_check_info(struct tgt_task *t, uint32_t sense, uint64_t information)
{
    check(t, sense, &information, -1, false);
}

void tgt_check_field(struct tgt_task *t, uint32_t sense, bool in_cdb, unsigned byte)
{
    check(t, sense, NULL, (int)byte, in_cdb);
}

uint32_t tgt_code_sense(int code)
{
    struct gr_sense s = gr_code_sense(code);
    return (uint32_t)s.key << 16 | (uint32_t)s.asc << 8 | s.ascq;
}

void tgt_check_code(struct tgt_task *t, int code)
{
    if (code == -GR_ERESERVED) {
        tgt_status(t, TGT_CONFLICT);
        return;
    }
    if (code == -ENOMEM || code == -EAGAIN) {
        tgt_status(t, TGT_BUSY);
        return;
    }
    tgt_check(t, tgt_code_sense(code));
}

uint8_t *tgt_in_buf(struct tgt_task *t, uint32_t len)
{
    if (!t->buf) {
        t->buf = tgt_buf_get(&t->sess->server->pool, GR_MAX(len, 1u), &t->cap);
        if (t->buf)
            t->sess->buf_bytes += t->cap;
    }
    if (!t->buf || t->cap < len) {
        tgt_status(t, TGT_BUSY);
        return NULL;
    }
    memset(t->buf, 0, len);
    return t->buf;
}

void tgt_in_data(struct tgt_task *t, uint32_t len, uint32_t alloc)
{
    t->in_total = GR_MIN(len, alloc);
    t->in_len = t->flags & TGT_CMD_READ ? GR_MIN(t->in_total, t->edtl) : 0;
    tgt_good(t);
}

bool tgt_check_range(struct tgt_task *t, uint64_t lba, uint64_t blocks)
{
    uint64_t capacity = t->lu->geo.size >> t->lu->shift;
    if (lba > capacity || blocks > capacity - lba || (lba == capacity && !blocks)) {
        tgt_check(t, TGT_SENSE_LBA_RANGE);
        return false;
    }
    return true;
}
