/* The small commands: readiness, capacity, LUNs, RESERVE(6), what is supported. */
#include "common/cleanup.h"
#include "iscsi-target/sanitize.h"
#include "iscsi-target/scsi.h"

void tgt_run_test_unit_ready(struct tgt_task *t)
{
    if (t->lu->fenced)
        tgt_check_code(t, -GR_EFENCED);
    else
        tgt_good(t);
}

void tgt_run_request_sense(struct tgt_task *t)
{
    struct tgt_sess *sess = t->sess;
    static const struct tgt_cmd ready = {.flags = CMD_READY};
    uint32_t sense = 0;
    int progress = -1;
    uint8_t *p = tgt_in_buf(t, 64);
    if (!p)
        return;
    if (!t->lun_ok) {
        sense = TGT_SENSE_NO_LUN;
    } else if ((sense = tgt_sanitize_bars(t->lu, &ready, &progress))) {
        ;
    } else if (sess->n_ua) {
        sense = 0x060000u | tgt_sess_ua_next(sess);
    }
    tgt_in_data(t, tgt_sense_encode(p, t->cdb[1] & 1, sense, NULL, progress, false), t->cdb[4]);
}

void tgt_run_reserve6(struct tgt_task *t)
{
    if (tgt_pr_any(t->lu)) {
        tgt_status(t, TGT_CONFLICT);
        return;
    }
    t->lu->reserved = t->sess;
    tgt_good(t);
}

void tgt_run_release6(struct tgt_task *t)
{
    if (t->lu->reserved == t->sess)
        t->lu->reserved = NULL;
    tgt_good(t);
}

static bool removal_prevented(const struct tgt_lu *lu)
{
    for (const struct tgt_sess *o = lu->server->sessions; o; o = o->next)
        if (o->lu == lu && o->prevents && !o->ended)
            return true;
    return false;
}

/* The unit always spins: START, STOP and power conditions change nothing. LOEJ ejects and loads a removable medium. */
void tgt_run_start_stop(struct tgt_task *t)
{
    struct tgt_lu *lu = t->lu;
    bool start = t->cdb[4] & 0x01, loej = t->cdb[4] & 0x02, power = t->cdb[4] & 0xf0;
    if (loej && !lu->geo.removable) {
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 4);
        return;
    }
    if (loej && !power) {
        if (removal_prevented(lu)) {
            tgt_check(t, TGT_SENSE_MEDIUM_REMOVAL);
            return;
        }
        if (lu->ejected && start)
            tgt_lu_ua(lu, t->sess, TGT_UA_MEDIUM_CHANGED);
        lu->ejected = !start;
    }
    tgt_good(t);
}

void tgt_run_prevent(struct tgt_task *t)
{
    t->sess->prevents = t->cdb[4] & 1;
    tgt_good(t);
}

/* Only the default self-test, which has nothing to test here that a command would not show. */
void tgt_run_send_diagnostic(struct tgt_task *t)
{
    if (t->out_total || (t->cdb[1] & 0xe0) || !(t->cdb[1] & 0x04))
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 1);
    else
        tgt_good(t);
}

void tgt_run_read_capacity10(struct tgt_task *t)
{
    uint64_t last = (t->lu->geo.size >> t->lu->shift) - 1;
    if (gr_get_be32(t->cdb + 2) && !(t->cdb[8] & 1)) {
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 2);
        return;
    }
    uint8_t *p = tgt_in_buf(t, 8);
    if (!p)
        return;
    gr_put_be32(p, last > UINT32_MAX - 1 ? UINT32_MAX : (uint32_t)last);
    gr_put_be32(p + 4, t->lu->geo.logical_block);
    tgt_in_data(t, 8, 8);
}

void tgt_run_read_capacity16(struct tgt_task *t)
{
    const struct gr_geometry *g = &t->lu->geo;
    uint8_t *p = tgt_in_buf(t, 32);
    if (!p)
        return;
    gr_put_be64(p, (g->size >> t->lu->shift) - 1);
    gr_put_be32(p + 8, g->logical_block);
    uint8_t exponent = 0;
    while (exponent < 15 && g->logical_block << (exponent + 1) <= g->physical_block)
        exponent++;
    p[13] = exponent;
    if (tgt_lu_provisioned(t->lu))
        p[14] = 0xc0; /* LBPME, LBPRZ */
    tgt_in_data(t, 32, gr_get_be32(t->cdb + 10));
}

void tgt_run_read_defect(struct tgt_task *t)
{
    bool twelve = t->cdb[0] == 0xb7;
    uint8_t *p = tgt_in_buf(t, 8);
    if (!p)
        return;
    p[1] = t->cdb[twelve ? 1 : 2] & 0x1f; /* the lists asked for are valid, and empty */
    tgt_in_data(t, twelve ? 8 : 4, twelve ? gr_get_be32(t->cdb + 6) : gr_get_be16(t->cdb + 7));
}

void tgt_run_report_luns(struct tgt_task *t)
{
    uint32_t alloc = gr_get_be32(t->cdb + 6);
    uint8_t select = t->cdb[2];
    if (alloc < 16 || select > 2) {
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, alloc < 16 ? 6 : 2);
        return;
    }
    uint8_t *p = tgt_in_buf(t, 16);
    if (!p)
        return;
    uint32_t n = select == 1 ? 0 : 8; /* 1: well-known logical units, there are none */
    gr_put_be32(p, n);
    tgt_in_data(t, 8 + n, alloc);
}

/* ---- what is supported (SPC-4 6.35) ---- */

static void timeouts(uint8_t *p)
{
    gr_put_be16(p, 10); /* descriptor length; 0: no time is given */
}

/* LBA commands have a usage map; the row says how long the CDB is. */
static uint32_t one_command(const struct tgt_cmd *c, bool rctd, uint8_t *p)
{
    p[1] = (uint8_t)(0x03 | (rctd ? 0x80 : 0));
    gr_put_be16(p + 2, c->len);
    memcpy(p + 4, c->usage, c->len);
    p[4] = c->op;
    if (c->sa >= 0)
        p[5] = (uint8_t)((p[5] & 0xe0) | c->sa); /* the service action itself, not a mask */
    if (!rctd)
        return 4u + c->len;
    timeouts(p + 4 + c->len);
    return 4u + c->len + 12;
}

static bool supported(const struct tgt_lu *lu, const struct tgt_cmd *c)
{
    if (c->op == 0x42)
        return lu->geo.unmap_granule;
    if (c->op == 0x9c)
        return lu->geo.atomic_bytes;
    return true;
}

static void all_commands(struct tgt_task *t, bool rctd, uint32_t alloc)
{
    uint32_t len = 4;
    uint8_t *p = tgt_in_buf(t, 4 + 20 * tgt_n_cmds);
    if (!p)
        return;
    for (unsigned i = 0; i < tgt_n_cmds; i++) {
        const struct tgt_cmd *c = &tgt_cmds[i];
        if (!supported(t->lu, c))
            continue;
        uint8_t *d = p + len;
        d[0] = c->op;
        if (c->sa >= 0)
            gr_put_be16(d + 2, (uint16_t)c->sa);
        d[5] = (uint8_t)((c->sa >= 0 ? 1 : 0) | (rctd ? 2 : 0));
        gr_put_be16(d + 6, c->len);
        len += 8;
        if (rctd) {
            timeouts(p + len);
            len += 12;
        }
    }
    gr_put_be32(p, len - 4);
    tgt_in_data(t, len, alloc);
}

void tgt_run_report_opcodes(struct tgt_task *t)
{
    uint32_t alloc = gr_get_be32(t->cdb + 6);
    bool rctd = t->cdb[2] & 0x80, has_sa = false;
    unsigned option = t->cdb[2] & 7, op = t->cdb[3], sa = gr_get_be16(t->cdb + 4);
    const struct tgt_cmd *found = NULL;
    if (option == 0) {
        all_commands(t, rctd, alloc);
        return;
    }
    for (unsigned i = 0; i < tgt_n_cmds; i++) {
        const struct tgt_cmd *c = &tgt_cmds[i];
        if (c->op != op || !supported(t->lu, c))
            continue;
        has_sa = has_sa || c->sa >= 0;
        if (c->sa < 0 || (unsigned)c->sa == sa)
            found = c;
    }
    /* 1: a command without service actions; 2: one with; 3: either */
    if (option > 3 || (option == 1 && has_sa) || (option == 2 && found && !has_sa)) {
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 2);
        return;
    }
    uint8_t *p = tgt_in_buf(t, 64);
    if (!p)
        return;
    if (!found || (option == 3 && found->sa < 0 && sa)) {
        p[1] = 0x01; /* not supported */
        tgt_in_data(t, 4, alloc);
        return;
    }
    tgt_in_data(t, one_command(found, rctd, p), alloc);
}

void tgt_run_report_tmf(struct tgt_task *t)
{
    uint32_t alloc = gr_get_be32(t->cdb + 6), len = t->cdb[2] & 0x80 ? 16 : 4;
    uint8_t *p = alloc < 4 ? NULL : tgt_in_buf(t, 16);
    if (alloc < 4)
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 6);
    if (!p)
        return;
    p[0] = 0xc8 | 0x10; /* ABORT TASK, ABORT TASK SET, LOGICAL UNIT RESET; CLEAR TASK SET */
    p[3] = len == 16 ? 12 : 0;
    tgt_in_data(t, len, alloc);
}
