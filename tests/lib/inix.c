#include "tests/lib/inix.h"
#include "common/cleanup.h"
#include "tests/lib/test.h"
#include <errno.h>
#include <string.h>

void inix_rw_cdb(uint8_t cdb[10], bool write, uint32_t lba, uint32_t blocks)
{
    memset(cdb, 0, 10);
    cdb[0] = write ? 0x2a : 0x28;
    gr_put_be32(cdb + 2, lba);
    gr_put_be16(cdb + 7, (uint16_t)blocks);
}

/* A command without its data; the sequence number is the session's. */
int inix_send_rw(struct ini *i, uint32_t cmdsn, uint32_t itt, bool write, uint32_t lba, uint32_t blocks)
{
    uint8_t b[TGT_BHS_LEN], cdb[10];
    inix_rw_cdb(cdb, write, lba, blocks);
    ini_cmd_bhs(i, b, cdb, 10, (uint8_t)(TGT_FINAL | (write ? TGT_CMD_WRITE : TGT_CMD_READ)), blocks * INIX_BLOCK);
    gr_put_be32(b + 16, itt);
    gr_put_be32(b + 24, cmdsn);
    return ini_send(i, b, NULL, 0);
}

int inix_send_out(struct ini *i, const uint8_t *r2t, uint32_t sn, uint32_t off, uint32_t len, bool final, const uint8_t *data)
{
    uint8_t b[TGT_BHS_LEN];
    tgt_bhs_start(b, TGT_OP_DATA_OUT, final ? TGT_FINAL : 0, tgt_bhs_itt(r2t), 0);
    gr_put_be32(b + 20, tgt_bhs_ttt(r2t));
    gr_put_be32(b + 28, i->expstatsn);
    gr_put_be32(b + 36, sn);
    gr_put_be32(b + 40, off);
    return ini_send(i, b, data + off, len);
}

/* The same with a wrong data digest. */
int inix_send_out_bad(struct ini *i, const uint8_t *r2t, uint32_t sn, uint32_t off, uint32_t len, bool final, const uint8_t *data)
{
    uint8_t b[TGT_BHS_LEN], bad[4] = {1, 2, 3, 4};
    tgt_bhs_start(b, TGT_OP_DATA_OUT, final ? TGT_FINAL : 0, tgt_bhs_itt(r2t), len);
    gr_put_be32(b + 20, tgt_bhs_ttt(r2t));
    gr_put_be32(b + 28, i->expstatsn);
    gr_put_be32(b + 36, sn);
    gr_put_be32(b + 40, off);
    int r = ini_send_raw(i, b, sizeof b);
    if (!r)
        r = ini_send_raw(i, data + off, len);
    return r ? r : ini_send_raw(i, bad, 4);
}

uint8_t inix_seg[262144];
int inix_expect(struct ini *i, uint8_t *b, enum tgt_opcode op)
{
    int r = ini_recv(i, b, inix_seg, sizeof inix_seg);
    assert_true(r >= 0);
    assert_int_equal(tgt_bhs_opcode(b), op);
    return r;
}

void inix_silent(struct ini *i, int ms)
{
    uint8_t b[TGT_BHS_LEN];
    int old = i->timeout_ms;
    i->timeout_ms = ms;
    assert_int_equal(ini_recv(i, b, inix_seg, sizeof inix_seg), -ETIMEDOUT);
    i->timeout_ms = old;
}

void inix_take_status(struct ini *i, const uint8_t *b)
{
    i->expstatsn = gr_get_be32(b + 24) + 1;
}

void inix_good(struct ini *i, uint32_t itt)
{
    uint8_t b[TGT_BHS_LEN];
    inix_expect(i, b, TGT_OP_SCSI_RSP);
    assert_int_equal(tgt_bhs_itt(b), itt);
    assert_int_equal(b[3], 0);
    inix_take_status(i, b);
}

void inix_pattern(uint8_t *p, size_t len, unsigned seed)
{
    for (size_t k = 0; k < len; k++)
        p[k] = (uint8_t)((k * 167 + seed * 31) >> 3 ^ k);
}

int inix_logout(struct ini *i, unsigned reason, uint16_t cid)
{
    uint8_t b[TGT_BHS_LEN];
    tgt_bhs_start(b, TGT_OP_LOGOUT, (uint8_t)(TGT_FINAL | reason), ++i->itt, 0);
    b[0] |= TGT_IMMEDIATE;
    gr_put_be16(b + 20, cid);
    gr_put_be32(b + 24, i->cmdsn);
    gr_put_be32(b + 28, i->expstatsn);
    assert_int_equal(ini_send(i, b, NULL, 0), 0);
    do {
        int r = ini_recv(i, b, inix_seg, sizeof inix_seg);
        if (r < 0)
            return r;
    } while (tgt_bhs_opcode(b) != TGT_OP_LOGOUT_RSP);
    inix_take_status(i, b);
    return b[2];
}

void inix_snack(struct ini *i, unsigned type, uint32_t itt, uint32_t ttt, uint32_t from, uint32_t count)
{
    uint8_t b[TGT_BHS_LEN];
    tgt_bhs_start(b, TGT_OP_SNACK, (uint8_t)(TGT_FINAL | type), itt, 0);
    gr_put_be32(b + 20, ttt);
    gr_put_be32(b + 28, i->expstatsn);
    gr_put_be32(b + 40, from);
    gr_put_be32(b + 44, count);
    assert_int_equal(ini_send(i, b, NULL, 0), 0);
}

int inix_reassign(struct ini *i, uint32_t itt, uint32_t expdatasn)
{
    uint8_t b[TGT_BHS_LEN];
    tgt_bhs_start(b, TGT_OP_TMF, TGT_FINAL | TGT_TMF_REASSIGN, ++i->itt, 0);
    b[0] |= TGT_IMMEDIATE;
    gr_put_be32(b + 20, itt);
    gr_put_be32(b + 24, i->cmdsn);
    gr_put_be32(b + 28, i->expstatsn);
    gr_put_be32(b + 36, expdatasn);
    assert_int_equal(ini_send(i, b, NULL, 0), 0);
    inix_expect(i, b, TGT_OP_TMF_RSP);
    inix_take_status(i, b);
    return b[2];
}

/* Eat unit attentions. */
void inix_ready(struct ini *i)
{
    uint8_t tur[6] = {0};
    struct ini_result r;
    do
        assert_int_equal(ini_cmd(i, tur, 6, NULL, 0, NULL, 0, &r), 0);
    while (r.status == 2);
}

