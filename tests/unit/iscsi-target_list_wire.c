/* The list of bad inputs (docs/iscsi-hostile.md), 26 to 43: framing and sequence; what iscsi-target_hostile and _recovery have is there.
 * Every case runs beside a session that must not notice. */
#include "common/cleanup.h"
#include "tests/lib/inix.h"
#include "tests/lib/test.h"
#include "tests/lib/witness.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define NAME "iqn.2026-11.local.granary:wire"
static struct tgtfix fix;
static struct witness *witness;
static uint8_t data[262144];

static int setup(void **state)
{
    (void)state;
    memset(&fix, 0, sizeof fix);
    tgtfix_start(&fix);
    witness = witness_start(&fix);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tgtfix_wait_sessions(&fix, 1);
    witness_stop(witness);
    tgtfix_alive(&fix);
    tgtfix_stop(&fix);
    return 0;
}

static void login(struct ini *i)
{
    tgtfix_login(&fix, i, NAME);
    inix_ready(i);
}

/* An answer with that status and, for CHECK CONDITION, sense key. */
static void expect_status(struct ini *i, unsigned status, unsigned key)
{
    uint8_t b[TGT_BHS_LEN];
    inix_expect(i, b, TGT_OP_SCSI_RSP);
    assert_int_equal(b[3], status);
    if (status == 2)
        assert_int_equal(inix_seg[4] & 15, key);
    inix_take_status(i, b);
}

/* Additional header segments: too long, of unknown kinds, an extended CDB, a bidirectional command. */
static void i26_header_segments(void **state)
{
    static const struct {
        uint8_t ahs[20];
        unsigned words;
        uint8_t flags;
    } cases[] = {{{0, 1, 0x7f, 0}, 1, TGT_FINAL},                       /* a kind that does not exist */
                 {{0, 5, 0x02, 0, 0, 0, 16, 0}, 2, TGT_FINAL | TGT_CMD_READ | TGT_CMD_WRITE}, /* bidirectional */
                 {{0, 9, 0x01, 0, 1, 2, 3, 4, 5, 6, 7, 8}, 3, TGT_FINAL | TGT_CMD_READ},      /* a CDB of 24 bytes */
                 {{0xff, 0xff, 0x01, 0}, 1, TGT_FINAL},                 /* longer than the segment it is in */
                 {{0, 0, 0, 0}, 5, TGT_FINAL}};
    for (size_t k = 0; k < GR_ARRAY_LEN(cases); k++) {
        uint8_t b[TGT_BHS_LEN], tur[6] = {0};
        struct ini i;
        login(&i);
        ini_cmd_bhs(&i, b, tur, 6, cases[k].flags, 0);
        b[4] = (uint8_t)cases[k].words;
        assert_int_equal(ini_send_raw(&i, b, sizeof b), 0);
        assert_int_equal(ini_send_raw(&i, cases[k].ahs, 4 * cases[k].words), 0);
        int r = ini_recv(&i, b, inix_seg, sizeof inix_seg); /* refused, or the connection is closed; never run */
        if (r >= 0)
            assert_true(tgt_bhs_opcode(b) == TGT_OP_REJECT || (tgt_bhs_opcode(b) == TGT_OP_SCSI_RSP && b[3] == 2));
        else
            assert_int_equal(r, -EPIPE);
        ini_close(&i);
    }
}

/* Padding is not data, whatever it holds. */
static void i28_padding(void **state)
{
    uint8_t b[TGT_BHS_LEN], cdb[10], in[512];
    struct ini i;
    struct ini_result r;
    login(&i);
    inix_rw_cdb(cdb, true, 0, 1);
    assert_int_equal(ini_cmd(&i, cdb, 10, memset(data, 1, 512), 512, NULL, 0, &r), 0);
    ini_cmd_bhs(&i, b, cdb, 10, TGT_FINAL | TGT_CMD_WRITE, 509); /* 509 bytes and three of padding */
    gr_put_be24(b + 5, 509);
    memset(data, 2, 509);
    memset(data + 509, 0xff, 3);
    assert_int_equal(ini_send_raw(&i, b, sizeof b), 0);
    assert_int_equal(ini_send_raw(&i, data, 512), 0);
    inix_expect(&i, b, TGT_OP_SCSI_RSP);
    inix_take_status(&i, b);
    inix_rw_cdb(cdb, false, 0, 1);
    assert_int_equal(ini_cmd(&i, cdb, 10, NULL, 0, in, sizeof in, &r), 0);
    for (unsigned k = 509; k < 512; k++)
        assert_int_equal(in[k], 1); /* never the padding */
    ini_close(&i);
}

/* The same exchange a byte at a time, and many PDUs in one piece. */
static void i31_pieces(void **state)
{
    static uint8_t many[2048 * TGT_BHS_LEN];
    uint8_t b[TGT_BHS_LEN + 512], cdb[10], in[512];
    struct ini i;
    struct ini_result r;
    login(&i);
    inix_rw_cdb(cdb, true, 7, 1);
    ini_cmd_bhs(&i, b, cdb, 10, TGT_FINAL | TGT_CMD_WRITE, 512);
    gr_put_be24(b + 5, 512);
    inix_pattern(b + TGT_BHS_LEN, 512, 5);
    for (unsigned k = 0; k < sizeof b; k++)
        assert_int_equal(ini_send_raw(&i, b + k, 1), 0);
    expect_status(&i, 0, 0);
    inix_rw_cdb(cdb, false, 7, 1);
    assert_int_equal(ini_cmd(&i, cdb, 10, NULL, 0, in, sizeof in, &r), 0);
    assert_memory_equal(in, b + TGT_BHS_LEN, sizeof in);
    for (unsigned k = 0; k < 2048; k++) { /* pings that want no answer, the last one does */
        uint8_t *p = many + (size_t)k * TGT_BHS_LEN;
        tgt_bhs_start(p, TGT_OP_NOP_OUT, TGT_FINAL, k == 2047 ? 0x777 : TGT_TAG_NONE, 0);
        p[0] |= TGT_IMMEDIATE;
        gr_put_be32(p + 20, TGT_TAG_NONE);
        gr_put_be32(p + 24, i.cmdsn);
        gr_put_be32(p + 28, i.expstatsn);
    }
    assert_int_equal(ini_send_raw(&i, many, sizeof many), 0);
    inix_expect(&i, b, TGT_OP_NOP_IN);
    assert_int_equal(tgt_bhs_itt(b), 0x777);
    ini_close(&i);
}

/* The connection is reset in the middle of the data of a write: nothing of it shows that was not sent, nothing leaks. */
static void i34_reset_in_data(void **state)
{
    uint8_t cdb[10], in[8192];
    struct ini i, j;
    struct ini_result r;
    for (unsigned cut = 0; cut < 8192; cut += 777) {
        uint8_t b[TGT_BHS_LEN];
        struct linger now = {.l_onoff = 1};
        login(&i);
        assert_int_equal(inix_send_rw(&i, i.cmdsn, 9, true, 100, 16), 0);
        inix_expect(&i, b, TGT_OP_R2T);
        tgt_bhs_start(b, TGT_OP_DATA_OUT, TGT_FINAL, 9, 8192);
        gr_put_be32(b + 20, 0);
        memset(data, 0xdd, 8192);
        assert_int_equal(ini_send_raw(&i, b, sizeof b), 0);
        assert_int_equal(ini_send_raw(&i, data, cut), 0);
        setsockopt(i.fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        ini_close(&i);
        tgtfix_wait_sessions(&fix, 1);
    }
    login(&j);
    inix_rw_cdb(cdb, false, 100, 16);
    assert_int_equal(ini_cmd(&j, cdb, 10, NULL, 0, in, sizeof in, &r), 0);
    for (unsigned k = 0; k < sizeof in; k++)
        assert_true(in[k] == 0 || in[k] == 0xdd);
    ini_close(&j);
}

/* More immediate commands than there may be: they are rejected, or the sender is not read any more; ordinary ones go on. */
static void i35_immediate_flood(void **state)
{
    uint8_t b[TGT_BHS_LEN], cdb[10];
    struct ini i;
    unsigned r2ts = 0, rejects = 0;
    login(&i);
    inix_rw_cdb(cdb, true, 0, 1);
    for (unsigned k = 0; k < 300; k++) { /* writes without data wait for it */
        ini_cmd_bhs(&i, b, cdb, 10, TGT_FINAL | TGT_CMD_WRITE, 512);
        i.cmdsn--;
        b[0] |= TGT_IMMEDIATE;
        gr_put_be32(b + 24, i.cmdsn);
        gr_put_be32(b + 16, 0x1000 + k);
        assert_int_equal(ini_send(&i, b, NULL, 0), 0);
    }
    i.timeout_ms = 500;
    while (ini_recv(&i, b, inix_seg, sizeof inix_seg) >= 0) {
        r2ts += tgt_bhs_opcode(b) == TGT_OP_R2T;
        rejects += tgt_bhs_opcode(b) == TGT_OP_REJECT;
        if (tgt_bhs_opcode(b) == TGT_OP_REJECT) {
            assert_true(b[2] == TGT_REJECT_IMMEDIATE);
            inix_take_status(&i, b);
        }
    }
    i.timeout_ms = 5000;
    assert_int_equal(r2ts + rejects, 300);
    assert_in_range(r2ts, 1, 64);
    ini_close(&i);
}

/* The length that the initiator expects, and the direction it says, against what the CDB means. */
static void i39_expected_lengths(void **state)
{
    static const struct {
        uint8_t flags;
        uint32_t edtl;
        bool write;
    } cases[] = {{TGT_CMD_READ, 0, false},          {TGT_CMD_READ, 0xffffffff, false}, {TGT_CMD_WRITE, 4096, false}, {0, 4096, false},
                 {TGT_CMD_WRITE, 0, true},          {TGT_CMD_WRITE, 0xffffffff, true}, {TGT_CMD_READ, 4096, true},   {0, 4096, true},
                 {TGT_CMD_READ | TGT_CMD_WRITE, 4096, true}};
    for (size_t k = 0; k < GR_ARRAY_LEN(cases); k++) {
        uint8_t b[TGT_BHS_LEN], cdb[10];
        struct ini i;
        login(&i);
        inix_rw_cdb(cdb, cases[k].write, 50, 8);
        ini_cmd_bhs(&i, b, cdb, 10, (uint8_t)(TGT_FINAL | cases[k].flags), cases[k].edtl);
        assert_int_equal(ini_send(&i, b, NULL, 0), 0);
        uint32_t got = 0;
        enum tgt_opcode op;
        do {
            int n = ini_recv(&i, b, inix_seg, sizeof inix_seg);
            op = n < 0 ? TGT_OP_REJECT : tgt_bhs_opcode(b);
            if (op == TGT_OP_DATA_IN)
                got += (uint32_t)n;
            if (op == TGT_OP_R2T) { /* it wants no more than the command means */
                assert_true(gr_get_be32(b + 44) <= 4096);
                assert_int_equal(inix_send_out(&i, b, 0, gr_get_be32(b + 40), gr_get_be32(b + 44), true, data), 0);
            }
        } while (op == TGT_OP_R2T || (op == TGT_OP_DATA_IN && !(b[1] & 1)));
        assert_true(got <= 4096 && got <= cases[k].edtl);
        ini_close(&i);
    }
}

/* A window full of writes without data: reads of others go on, and so does this session when it gives them up. */
static void i40_starvation(void **state)
{
    uint8_t b[TGT_BHS_LEN], response = 99, cdb[10];
    struct ini i;
    unsigned n = 0;
    login(&i);
    inix_rw_cdb(cdb, true, 0, 512);
    for (; n < 300 && (int32_t)(i.maxcmdsn - i.cmdsn) >= 0; n++) {
        ini_cmd_bhs(&i, b, cdb, 10, TGT_FINAL | TGT_CMD_WRITE, 262144);
        assert_int_equal(ini_send(&i, b, NULL, 0), 0);
    }
    assert_in_range(n, 200, 256);
    assert_int_equal(ini_tmf(&i, TGT_TMF_ABORT_TASK_SET, TGT_TAG_NONE, 0, &response), 0);
    assert_int_equal(response, TGT_TMF_DONE);
    inix_ready(&i);
    ini_close(&i);
}

/* Every function on a command in every state: held, waiting for data, with the device, answered, never sent. */
static void i41_task_management(void **state)
{
    static const char keys[] = "InitialR2T=Yes\0ImmediateData=No";
    for (unsigned fn = 0; fn < 16; fn++) {
        if (fn == TGT_TMF_COLD_RESET || fn == TGT_TMF_WARM_RESET || fn == TGT_TMF_LUN_RESET)
            continue; /* their effects reach the other session: iscsi-target_hostile */
        uint8_t b[TGT_BHS_LEN], cdb[10];
        struct ini i;
        assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
        assert_int_equal(ini_login(&i, NAME, TGTFIX_SLOW, keys, sizeof keys), 0);
        inix_ready(&i);
        assert_int_equal(inix_send_rw(&i, i.cmdsn, 0x10, true, 0, 16), 0); /* waits for data */
        inix_expect(&i, b, TGT_OP_R2T);
        assert_int_equal(inix_send_rw(&i, i.cmdsn, 0x11, true, 32 + 8 * fn, 1), 0); /* goes to the device, which is slow */
        inix_expect(&i, b, TGT_OP_R2T);
        assert_int_equal(inix_send_out(&i, b, 0, 0, 512, true, data), 0);
        inix_rw_cdb(cdb, false, 0, 1);
        ini_cmd_bhs(&i, b, cdb, 10, TGT_FINAL | TGT_CMD_READ, 512); /* held: one before it is missing */
        gr_put_be32(b + 16, 0x12);
        gr_put_be32(b + 24, i.cmdsn);
        assert_int_equal(ini_send(&i, b, NULL, 0), 0);
        i.cmdsn--;
        for (uint32_t itt = 0x10; itt <= 0x13; itt++) {
            tgt_bhs_start(b, TGT_OP_TMF, (uint8_t)(TGT_FINAL | fn), 0x100 + itt, 0);
            b[0] |= TGT_IMMEDIATE;
            gr_put_be32(b + 20, itt);
            gr_put_be32(b + 24, i.cmdsn);
            gr_put_be32(b + 28, i.expstatsn);
            gr_put_be32(b + 32, i.cmdsn);
            assert_int_equal(ini_send(&i, b, NULL, 0), 0);
        }
        unsigned answers = 0;
        while (answers < 4) {
            int r = ini_recv(&i, b, inix_seg, sizeof inix_seg);
            assert_true(r >= 0);
            if (tgt_bhs_opcode(b) == TGT_OP_TMF_RSP || tgt_bhs_opcode(b) == TGT_OP_REJECT)
                answers++;
        }
        ini_close(&i);
        tgtfix_wait_sessions(&fix, 1);
    }
}

#define CASE(f) {#f, f, setup, teardown, NULL}
TGTFIX_MAIN(NULL, NULL,
    CASE(i26_header_segments), CASE(i28_padding), CASE(i31_pieces), CASE(i34_reset_in_data), CASE(i35_immediate_flood),
    CASE(i39_expected_lengths), CASE(i40_starvation), CASE(i41_task_management))
