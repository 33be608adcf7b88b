/* Error recovery levels 0, 1 and 2 (RFC 7143 7): what libiscsi cannot drive. An initiator of our own loses PDUs, breaks digests
 * and drops connections on purpose; in the end every byte is right and every command answered once. */
#include "common/cleanup.h"
#include "common/crc.h"
#include "tests/lib/inisess.h"
#include "tests/lib/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BLOCK INIX_BLOCK
static struct tgtfix fix;

static int teardown(void **state)
{
    (void)state;
    tgtfix_stop(&fix);
    return 0;
}

/* ---- level 1 ---- */

static void lost_data(void **state)
{
    static uint8_t out[32768];
    uint8_t r2t[TGT_BHS_LEN], again[TGT_BHS_LEN], second[TGT_BHS_LEN], b[TGT_BHS_LEN];
    struct ini i;
    inix_pattern(out, sizeof out, 2);
    LEAD(&i, TGTFIX_TARGET, KEYS_ERL1);
    assert_string_equal(ini_key(&i, "ErrorRecoveryLevel"), "1");
    /* a wrong digest in the middle of a sequence: refused, the rest asked for again under a new tag */
    uint32_t sn = i.cmdsn;
    assert_int_equal(inix_send_rw(&i, sn++, 60, true, 0, 64), 0);
    inix_expect(&i, r2t, TGT_OP_R2T);
    inix_expect(&i, second, TGT_OP_R2T); /* two outstanding */
    assert_int_equal(gr_get_be32(second + 36), 1);
    assert_int_equal(gr_get_be32(second + 40), 16384);
    assert_int_equal(inix_send_out(&i, r2t, 0, 0, 4096, false, out), 0);
    assert_int_equal(inix_send_out_bad(&i, r2t, 1, 4096, 4096, false, out), 0);
    assert_int_equal(inix_expect(&i, b, TGT_OP_REJECT), TGT_BHS_LEN);
    assert_int_equal(b[2], TGT_REJECT_DATA_DIGEST);
    inix_take_status(&i, b);
    assert_int_equal(inix_send_out(&i, r2t, 2, 8192, 4096, false, out), 0);
    inix_silent(&i, 20);
    assert_int_equal(inix_send_out(&i, r2t, 3, 12288, 4096, true, out), 0);
    inix_expect(&i, again, TGT_OP_R2T);
    assert_int_not_equal(tgt_bhs_ttt(again), tgt_bhs_ttt(r2t));
    assert_int_equal(gr_get_be32(again + 36), 2);
    assert_int_equal(gr_get_be32(again + 40), 4096);
    assert_int_equal(gr_get_be32(again + 44), 12288);
    /* the second sequence loses a PDU in the middle, the repeated one its last */
    assert_int_equal(inix_send_out(&i, second, 0, 16384, 4096, false, out), 0);
    assert_int_equal(inix_send_out(&i, second, 2, 24576, 4096, false, out), 0);
    assert_int_equal(inix_send_out(&i, second, 3, 28672, 4096, true, out), 0);
    inix_expect(&i, second, TGT_OP_R2T);
    assert_int_equal(gr_get_be32(second + 40), 20480);
    assert_int_equal(gr_get_be32(second + 44), 12288);
    assert_int_equal(inix_send_out(&i, r2t, 0, 4096, 4096, true, out), 0); /* for the tag that was replaced: nothing */
    assert_int_equal(inix_send_out(&i, again, 0, 4096, 4096, false, out), 0);
    assert_int_equal(inix_send_out(&i, again, 1, 8192, 4096, false, out), 0);
    assert_int_equal(inix_send_out_bad(&i, again, 2, 12288, 4096, true, out), 0);
    inix_expect(&i, b, TGT_OP_REJECT);
    inix_take_status(&i, b);
    inix_expect(&i, again, TGT_OP_R2T);
    assert_int_equal(gr_get_be32(again + 40), 12288);
    assert_int_equal(inix_send_out(&i, again, 0, 12288, 4096, true, out), 0);
    assert_int_equal(inix_send_out(&i, second, 0, 20480, 4096, false, out), 0);
    assert_int_equal(inix_send_out(&i, second, 1, 24576, 8192, true, out), 0);
    inix_good(&i, 60);
    inisess_check_disk(&fix, 0, out, 64);
    /* an R2T that was lost on the way is asked for by SNACK */
    assert_int_equal(inix_send_rw(&i, sn++, 61, true, 64, 16), 0);
    inix_expect(&i, r2t, TGT_OP_R2T);
    inix_snack(&i, 0, 61, TGT_TAG_NONE, 0, 1);
    inix_expect(&i, again, TGT_OP_R2T);
    assert_memory_equal(r2t, again, 24);
    assert_memory_equal(r2t + 36, again + 36, 12);
    inix_snack(&i, 0, 61, TGT_TAG_NONE, 1, 1); /* never sent */
    inix_expect(&i, b, TGT_OP_REJECT);
    assert_int_equal(b[2], TGT_REJECT_SNACK);
    inix_take_status(&i, b);
    assert_int_equal(inix_send_out(&i, r2t, 0, 0, 8192, true, out), 0);
    inix_good(&i, 61);
    inisess_check_disk(&fix, 64, out, 16);
    ini_close(&i);
    tgtfix_wait_sessions(&fix, 0);
}

/* Immediate and unsolicited data. */
static void lost_unsolicited(void **state)
{
    static const char keys[] = "MaxConnections=2\0InitialR2T=No\0ErrorRecoveryLevel=1\0DataDigest=CRC32C\0HeaderDigest=CRC32C\0FirstBurstLength=16384";
    static uint8_t out[16384];
    uint8_t b[TGT_BHS_LEN], r2t[TGT_BHS_LEN], cdb[10], first[TGT_BHS_LEN], digest[8];
    struct ini i, other;
    inix_pattern(out, sizeof out, 3);
    LEAD(&i, TGTFIX_TARGET, keys);
    assert_int_equal(JOIN(&other, &i, 1, TGTFIX_TARGET), 0);
    inix_rw_cdb(cdb, true, 300, 32);
    /* a command whose immediate data is wrong has not arrived: CmdSN stands still, the same is accepted again */
    ini_cmd_bhs(&i, b, cdb, 10, TGT_FINAL | TGT_CMD_WRITE, 16384);
    gr_put_be24(b + 5, 4096);
    memcpy(first, b, sizeof b);
    uint32_t sn = tgt_bhs_cmdsn(b);
    tgt_digest_put(digest, gr_crc32c(0, b, TGT_BHS_LEN));
    memset(digest + 4, 0x5a, 4);
    assert_int_equal(ini_send_raw(&i, b, sizeof b), 0);
    assert_int_equal(ini_send_raw(&i, digest, 4), 0);
    assert_int_equal(ini_send_raw(&i, out, 2000), 0);
    usleep(20000);
    tgt_bhs_start(b, TGT_OP_NOP_OUT, TGT_FINAL, 1, 0); /* meanwhile the other connection is served */
    b[0] |= TGT_IMMEDIATE;
    gr_put_be32(b + 20, TGT_TAG_NONE);
    gr_put_be32(b + 24, sn);
    assert_int_equal(ini_send(&other, b, NULL, 0), 0);
    inix_expect(&other, b, TGT_OP_NOP_IN);
    assert_int_equal(gr_get_be32(b + 28), sn);
    assert_int_equal(ini_send_raw(&i, out + 2000, 2096), 0);
    assert_int_equal(ini_send_raw(&i, digest + 4, 4), 0);
    inix_expect(&i, b, TGT_OP_REJECT);
    assert_int_equal(b[2], TGT_REJECT_DATA_DIGEST);
    assert_int_equal(gr_get_be32(b + 28), sn);
    assert_memory_equal(inix_seg, first, TGT_BHS_LEN);
    inix_take_status(&i, b);
    uint32_t itt = tgt_bhs_itt(first);
    first[1] = TGT_CMD_WRITE; /* this time unsolicited data follows; one of its PDUs is lost */
    assert_int_equal(ini_send(&i, first, out, 4096), 0);
    tgt_bhs_start(r2t, TGT_OP_R2T, 0, itt, 0);
    gr_put_be32(r2t + 20, TGT_TAG_NONE);
    assert_int_equal(inix_send_out(&i, r2t, 1, 8192, 4096, false, out), 0);
    assert_int_equal(inix_send_out(&i, r2t, 2, 12288, 4096, true, out), 0);
    inix_expect(&i, r2t, TGT_OP_R2T);
    assert_int_equal(gr_get_be32(r2t + 40), 4096);
    assert_int_equal(gr_get_be32(r2t + 44), 12288);
    assert_int_equal(inix_send_out(&i, r2t, 0, 4096, 12288, true, out), 0);
    inix_good(&i, itt);
    inisess_check_disk(&fix, 300, out, 32);
    /* another request with wrong data: said again, it is answered */
    tgt_bhs_start(b, TGT_OP_NOP_OUT, TGT_FINAL, 900, 4);
    gr_put_be32(b + 20, TGT_TAG_NONE);
    gr_put_be32(b + 24, i.cmdsn);
    gr_put_be32(b + 28, i.expstatsn);
    gr_put_be24(b + 5, 4);
    tgt_digest_put(digest, gr_crc32c(0, b, TGT_BHS_LEN));
    memcpy(first, b, sizeof b);
    assert_int_equal(ini_send_raw(&i, b, sizeof b), 0);
    assert_int_equal(ini_send_raw(&i, digest, 4), 0);
    assert_int_equal(ini_send_raw(&i, "pingXXXX", 8), 0);
    inix_expect(&i, b, TGT_OP_REJECT);
    inix_take_status(&i, b);
    assert_int_equal(ini_send(&i, first, "ping", 4), 0);
    assert_int_equal(inix_expect(&i, b, TGT_OP_NOP_IN), 4);
    inix_take_status(&i, b);
    /* a header digest that is wrong leaves no way to find the next PDU: the connection ends, at level 1 with the session */
    ini_cmd_bhs(&i, b, cdb, 10, TGT_FINAL | TGT_CMD_WRITE, 0);
    assert_int_equal(ini_send_raw(&i, b, sizeof b), 0);
    assert_int_equal(ini_send_raw(&i, "oops", 4), 0);
    assert_int_equal(ini_recv(&i, b, inix_seg, sizeof inix_seg), -EPIPE);
    tgtfix_wait_sessions(&fix, 0);
    ini_close(&i);
    ini_close(&other);
}

static void answers_again(void **state)
{
    static uint8_t out[40960], in[40960];
    uint8_t got[10][TGT_BHS_LEN], b[TGT_BHS_LEN], cdb[10];
    struct ini i;
    struct ini_result r;
    inix_pattern(out, sizeof out, 4);
    LEAD(&i, TGTFIX_TARGET, KEYS_ERL1);
    inix_rw_cdb(cdb, true, 500, 80);
    assert_int_equal(ini_cmd(&i, cdb, 10, out, sizeof out, NULL, 0, &r), 0);
    assert_int_equal(r.status, 0);
    uint32_t sn = i.cmdsn;
    assert_int_equal(inix_send_rw(&i, sn, 70, false, 500, 80), 0);
    for (unsigned k = 0; k < 10; k++) {
        assert_int_equal(inix_expect(&i, got[k], TGT_OP_DATA_IN), 4096);
        assert_int_equal(gr_get_be32(got[k] + 36), k);
    }
    assert_int_equal(got[9][1] & 1, 1);
    /* three from the middle, as they were */
    inix_snack(&i, 0, 70, TGT_TAG_NONE, 3, 3);
    for (unsigned k = 3; k < 6; k++) {
        assert_int_equal(inix_expect(&i, b, TGT_OP_DATA_IN), 4096);
        assert_memory_equal(b, got[k], 28);
        assert_memory_equal(b + 36, got[k] + 36, 12);
        assert_memory_equal(inix_seg, out + 4096 * k, 4096);
    }
    /* everything from one on: the status comes along, with its number */
    inix_snack(&i, 0, 70, TGT_TAG_NONE, 8, 0);
    for (unsigned k = 8; k < 10; k++) {
        inix_expect(&i, b, TGT_OP_DATA_IN);
        assert_memory_equal(b, got[k], 28);
    }
    /* the status alone */
    inix_snack(&i, 1, TGT_TAG_NONE, TGT_TAG_NONE, gr_get_be32(got[9] + 24), 1);
    inix_expect(&i, b, TGT_OP_DATA_IN);
    assert_memory_equal(b, got[9], 28);
    /* all anew, the status apart and with the tag of the request */
    inix_snack(&i, 3, 70, 0xabcd, 0, 0);
    memset(in, 0, sizeof in);
    for (unsigned k = 0; k < 10; k++) {
        assert_int_equal(inix_expect(&i, b, TGT_OP_DATA_IN), 4096);
        assert_int_equal(gr_get_be32(b + 36), k);
        assert_int_equal(b[1] & 1, 0);
        memcpy(in + gr_get_be32(b + 40), inix_seg, 4096);
    }
    assert_memory_equal(in, out, sizeof in);
    inix_expect(&i, b, TGT_OP_SCSI_RSP);
    assert_int_equal(tgt_bhs_ttt(b), 0xabcd);
    inix_take_status(&i, b);
    /* answers of other kinds: a task management response and a NOP-In */
    uint8_t tmf[TGT_BHS_LEN];
    tgt_bhs_start(b, TGT_OP_TMF, TGT_FINAL | TGT_TMF_ABORT_TASK_SET, 800, 0);
    b[0] |= TGT_IMMEDIATE;
    gr_put_be32(b + 24, sn + 1);
    gr_put_be32(b + 28, i.expstatsn);
    assert_int_equal(ini_send(&i, b, NULL, 0), 0);
    inix_expect(&i, tmf, TGT_OP_TMF_RSP);
    inix_snack(&i, 1, TGT_TAG_NONE, TGT_TAG_NONE, gr_get_be32(tmf + 24), 0);
    inix_expect(&i, b, TGT_OP_TMF_RSP);
    assert_memory_equal(b, tmf, 28);
    inix_take_status(&i, b);
    /* acknowledged, never sent, of no task, reserved: refused */
    static const struct {
        unsigned type;
        uint32_t itt, back, count;
    } refused[] = {{1, TGT_TAG_NONE, 1, 1}, {1, TGT_TAG_NONE, 0, 1}, {0, 70, 0, 0}, {0, 4711, 0, 0}, {2, 70, 0, 0}, {3, 70, 0, 0}, {7, 70, 0, 0}};
    inix_snack(&i, 1, TGT_TAG_NONE, TGT_TAG_NONE, i.expstatsn + 1000, 1);
    inix_expect(&i, b, TGT_OP_REJECT);
    assert_int_equal(b[2], TGT_REJECT_SNACK);
    inix_take_status(&i, b);
    for (size_t k = 0; k < GR_ARRAY_LEN(refused); k++) {
        inix_snack(&i, refused[k].type, refused[k].itt, 5, i.expstatsn - refused[k].back, refused[k].count);
        inix_expect(&i, b, TGT_OP_REJECT);
        assert_int_equal(b[2], TGT_REJECT_SNACK);
        inix_take_status(&i, b);
    }
    i.cmdsn = sn + 1;
    inix_ready(&i);
    /* what is kept is bounded: an initiator that acknowledges nothing is still served */
    uint32_t stuck = i.expstatsn;
    for (uint32_t k = 0; k < 2000; k++) {
        i.expstatsn = stuck;
        assert_int_equal(inix_send_rw(&i, i.cmdsn, 1000 + k, false, 500, 8), 0);
        inix_expect(&i, b, TGT_OP_DATA_IN);
        assert_int_equal(b[1] & 1, 1);
    }
    ini_close(&i);
    tgtfix_wait_sessions(&fix, 0);
}

/* All data of a sequence is lost: after some silence it is asked for anew. */
static void silence(void **state)
{
    static uint8_t out[8192];
    uint8_t r2t[TGT_BHS_LEN], again[TGT_BHS_LEN];
    struct ini i;
    inix_pattern(out, sizeof out, 8);
    LEAD(&i, TGTFIX_TARGET, KEYS_ERL1);
    i.timeout_ms = 15000;
    assert_int_equal(inix_send_rw(&i, i.cmdsn, 90, true, 4000, 16), 0);
    inix_expect(&i, r2t, TGT_OP_R2T);
    inix_expect(&i, again, TGT_OP_R2T);
    assert_int_not_equal(tgt_bhs_ttt(again), tgt_bhs_ttt(r2t));
    assert_int_equal(gr_get_be32(again + 44), 8192);
    assert_int_equal(inix_send_out(&i, again, 0, 0, 8192, true, out), 0);
    inix_good(&i, 90);
    inisess_check_disk(&fix, 4000, out, 16);
    ini_close(&i);
    tgtfix_wait_sessions(&fix, 0);
}

/* Level 0 knows no SNACK. */
static void level_0(void **state)
{
    uint8_t b[TGT_BHS_LEN];
    struct ini i;
    LEAD(&i, TGTFIX_TARGET, KEYS_ERL0);
    inix_snack(&i, 1, TGT_TAG_NONE, TGT_TAG_NONE, i.expstatsn, 0);
    inix_expect(&i, b, TGT_OP_REJECT);
    assert_int_equal(b[2], TGT_REJECT_PROTOCOL);
    inix_take_status(&i, b);
    assert_int_equal(inix_reassign(&i, 5, 0), TGT_TMF_NO_REASSIGN);
    inix_ready(&i);
    ini_close(&i);
    tgtfix_wait_sessions(&fix, 0);
}

/* ---- level 2 ---- */

static void reassigned(void **state)
{
    static uint8_t out[40960], in[40960];
    uint8_t b[TGT_BHS_LEN], r2t[2][TGT_BHS_LEN], cdb[10];
    struct ini a, c;
    struct ini_result r;
    inix_pattern(out, sizeof out, 5);
    LEAD(&a, TGTFIX_TARGET, KEYS_ERL2);
    assert_string_equal(ini_key(&a, "ErrorRecoveryLevel"), "2");
    inix_rw_cdb(cdb, true, 1000, 80);
    assert_int_equal(ini_cmd(&a, cdb, 10, out, sizeof out, NULL, 0, &r), 0);
    assert_int_equal(r.status, 0);
    /* a read, cut after four segments: the rest comes by the other connection, whose segments are longer */
    assert_int_equal(inix_send_rw(&a, a.cmdsn, 80, false, 1000, 80), 0);
    for (unsigned k = 0; k < 4; k++) {
        inix_expect(&a, b, TGT_OP_DATA_IN);
        memcpy(in + gr_get_be32(b + 40), inix_seg, 4096);
    }
    assert_int_equal(inisess_open(&fix, &c, &a, 1, TGTFIX_TARGET, "MaxRecvDataSegmentLength=8192", 30), 0);
    c.cmdsn = a.cmdsn;
    assert_int_equal(inix_reassign(&c, 80, 4), TGT_TMF_ALLEGIANT);
    assert_int_equal(inix_reassign(&c, 4711, 0), TGT_TMF_NO_TASK);
    ini_close(&a);
    assert_int_equal(inix_logout(&c, 2, 0), 0); /* also makes sure that it is gone */
    assert_int_equal(inix_reassign(&c, 80, 4), TGT_TMF_DONE);
    inix_expect(&c, b, TGT_OP_DATA_IN);
    memcpy(in + 16384, inix_seg, 8192);
    inix_snack(&c, 0, 80, TGT_TAG_NONE, 2, 1); /* acknowledged by the reassignment */
    for (uint32_t at = 16384 + 8192, n = 5; at < 40960; n++) {
        int len = inix_expect(&c, b, TGT_OP_DATA_IN);
        assert_int_equal(gr_get_be32(b + 36), n);
        assert_int_equal(gr_get_be32(b + 40), at);
        assert_int_equal(len, 8192);
        memcpy(in + at, inix_seg, (size_t)len);
        at += (uint32_t)len;
    }
    assert_int_equal(b[1] & 1, 1);
    inix_expect(&c, b, TGT_OP_REJECT);
    assert_int_equal(b[2], TGT_REJECT_SNACK);
    inix_take_status(&c, b);
    assert_memory_equal(in, out, sizeof in);
    tgtfix_wait_sessions(&fix, 1);
    /* a write, cut in the middle of its sequences: what is missing is asked for there */
    inix_pattern(out, sizeof out, 6);
    assert_int_equal(JOIN(&a, &c, 0, TGTFIX_TARGET), 0);
    assert_int_equal(inix_send_rw(&a, a.cmdsn, 81, true, 1000, 64), 0);
    inix_expect(&a, r2t[0], TGT_OP_R2T);
    inix_expect(&a, r2t[1], TGT_OP_R2T);
    assert_int_equal(inix_send_out(&a, r2t[0], 0, 0, 4096, false, out), 0);
    assert_int_equal(inix_send_out(&a, r2t[1], 0, 16384, 8192, false, out), 0);
    usleep(50000);
    ini_close(&a);
    assert_int_equal(inix_logout(&c, 2, 0), 0);
    assert_int_equal(inix_reassign(&c, 81, 0), TGT_TMF_DONE);
    for (unsigned k = 0; k < 2; k++) {
        inix_expect(&c, r2t[k], TGT_OP_R2T);
        uint32_t off = gr_get_be32(r2t[k] + 40), len = gr_get_be32(r2t[k] + 44);
        assert_int_equal(off, k ? 24576 : 4096);
        assert_int_equal(inix_send_out(&c, r2t[k], 0, off, len, true, out), 0);
    }
    inix_good(&c, 81);
    inisess_check_disk(&fix, 1000, out, 64);
    /* nobody reassigns: given up when the time is over, and the tag is free again */
    c.cmdsn = a.cmdsn;
    assert_int_equal(JOIN(&a, &c, 0, TGTFIX_TARGET), 0);
    assert_int_equal(inix_send_rw(&a, c.cmdsn, 82, true, 1000, 64), 0);
    inix_expect(&a, r2t[0], TGT_OP_R2T);
    ini_close(&a);
    usleep(2500000);
    assert_int_equal(inix_reassign(&c, 82, 0), TGT_TMF_NO_TASK);
    c.cmdsn++;
    inix_ready(&c);
    /* the only connection breaks: the session waits for another, then ends */
    ini_close(&c);
    usleep(300000);
    tgtfix_wait_sessions(&fix, 1);
    assert_int_equal(JOIN(&a, &c, 3, TGTFIX_TARGET), 0);
    inix_ready(&a);
    ini_close(&a);
    tgtfix_wait_sessions(&fix, 0);
}

/* A write that is with the device when its connection breaks is answered by another; one that was answered, but whose answer
 * was lost, is answered again. */
static void answered_elsewhere(void **state)
{
    static uint8_t out[4096];
    uint8_t b[TGT_BHS_LEN], cdb[10];
    struct ini a, c;
    inix_pattern(out, sizeof out, 7);
    LEAD(&a, TGTFIX_SLOW, KEYS_ERL2);
    assert_int_equal(JOIN(&c, &a, 1, TGTFIX_SLOW), 0);
    inix_rw_cdb(cdb, true, 3000, 8);
    for (int late = 0; late < 2; late++) {
        ini_cmd_bhs(&a, b, cdb, 10, TGT_FINAL | TGT_CMD_WRITE, sizeof out);
        uint32_t itt = tgt_bhs_itt(b);
        assert_int_equal(ini_send(&a, b, out, sizeof out), 0);
        usleep(late ? (TGTFIX_SLOW_MS + 200) * 1000 : 100000);
        ini_close(&a);
        assert_int_equal(inix_logout(&c, 2, 0), 0);
        assert_int_equal(inix_reassign(&c, itt, 0), TGT_TMF_DONE);
        inix_good(&c, itt);
        c.cmdsn = a.cmdsn;
        assert_int_equal(JOIN(&a, &c, 0, TGTFIX_SLOW), 0);
        a.itt = 1000;
    }
    inisess_check_disk(&fix, 3000, out, 8);
    ini_close(&a);
    ini_close(&c);
    tgtfix_wait_sessions(&fix, 0);
}

/* Four connections, three of which break at any time: no command is lost, none is executed wrongly. Each round writes or reads
 * a piece; whoever was cut is replaced, its command reassigned, or sent again when the target had not seen it. */
#define CONNS 4u
#define SPAN 64u /* blocks */
struct cmd {
    uint32_t itt, sn, lba, blocks;
    bool write, pending, sent;
    unsigned conn;
};

static int finish(struct ini *i, struct cmd *c, uint8_t *image)
{
    uint8_t b[TGT_BHS_LEN];
    uint8_t *data = image + c->lba * BLOCK;
    for (;;) {
        int r = ini_recv(i, b, inix_seg, sizeof inix_seg);
        if (r < 0)
            return r;
        unsigned op = tgt_bhs_opcode(b);
        if (op == TGT_OP_R2T) {
            assert_int_equal(tgt_bhs_itt(b), c->itt);
            r = inix_send_out(i, b, 0, gr_get_be32(b + 40), gr_get_be32(b + 44), true, data);
            if (r < 0)
                return r;
        } else if (op == TGT_OP_DATA_IN) {
            assert_int_equal(tgt_bhs_itt(b), c->itt);
            assert_memory_equal(data + gr_get_be32(b + 40), inix_seg, (size_t)r);
            if (b[1] & 1)
                break;
        } else {
            assert_int_equal(op, TGT_OP_SCSI_RSP);
            assert_int_equal(tgt_bhs_itt(b), c->itt);
            assert_int_equal(b[3], 0);
            break;
        }
    }
    inix_take_status(i, b);
    c->pending = false;
    return 0;
}

static void rescue(struct ini *conn, struct cmd *c, uint32_t cmdsn, uint8_t *image)
{
    struct ini fresh, like = conn[0];
    like.cmdsn = cmdsn;
    ini_close(&conn[c->conn]);
    assert_int_equal(JOIN(&fresh, &like, (uint16_t)c->conn, TGTFIX_TARGET), 0); /* takes the old one's place */
    conn[c->conn] = fresh;
    if (!c->pending)
        return;
    int r = inix_reassign(&conn[c->conn], c->itt, 0);
    if (r == TGT_TMF_NO_TASK) /* it had not arrived: the same command again */
        assert_int_equal(inix_send_rw(&conn[c->conn], c->sn, c->itt, c->write, c->lba, c->blocks), 0);
    else
        assert_int_equal(r, TGT_TMF_DONE);
    assert_int_equal(finish(&conn[c->conn], c, image), 0);
}

static void cut(struct ini *i, uint32_t how)
{
    static const struct linger hard = {1, 0};
    if (how & 1)
        setsockopt(i->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    if (how & 2)
        ini_send_raw(i, "half a header", 13);
    ini_close(i);
}

static void storm(void **state)
{
    static uint8_t image[CONNS * SPAN * BLOCK];
    struct ini conn[CONNS];
    unsigned seed = getenv("GRANARY_SEED") ? (unsigned)strtoul(getenv("GRANARY_SEED"), NULL, 0) : (unsigned)time(NULL);
    unsigned rounds = getenv("GRANARY_ROUNDS") ? (unsigned)strtoul(getenv("GRANARY_ROUNDS"), NULL, 0) : 150;
    printf("# seed %u\n", seed);
    LEAD(&conn[0], TGTFIX_TARGET, KEYS_ERL2);
    for (uint16_t k = 1; k < CONNS; k++)
        assert_int_equal(JOIN(&conn[k], &conn[0], k, TGTFIX_TARGET), 0);
    assert_int_equal(0, 0);
    uint32_t sn = conn[0].cmdsn, itt = 5000;
    uint8_t zero[BLOCK] = {0};
    for (unsigned k = 0; k < CONNS * SPAN; k++) {
        struct ini_result r;
        uint8_t cdb[10];
        memcpy(image + k * BLOCK, zero, BLOCK);
        inix_rw_cdb(cdb, true, k, 1);
        conn[0].cmdsn = sn++;
        assert_int_equal(ini_cmd(&conn[0], cdb, 10, image + k * BLOCK, BLOCK, NULL, 0, &r), 0);
        assert_int_equal(r.status, 0);
    }
    for (unsigned round = 0; round < rounds; round++) {
        struct cmd c[CONNS];
        unsigned kept = (unsigned)rand_r(&seed) % CONNS;
        for (unsigned k = 0; k < CONNS; k++) { /* all are sent before any is answered */
            uint32_t from = (uint32_t)rand_r(&seed) % SPAN, len = 1 + (uint32_t)rand_r(&seed) % (SPAN - from);
            c[k] = (struct cmd){.itt = itt++, .sn = sn++, .lba = k * SPAN + from, .blocks = len, .write = rand_r(&seed) & 1, .pending = true, .conn = k};
            if (c[k].write)
                inix_pattern(image + c[k].lba * BLOCK, len * BLOCK, round * 7 + k);
            if (inix_send_rw(&conn[k], c[k].sn, c[k].itt, c[k].write, c[k].lba, len) < 0)
                fail();
        }
        for (unsigned k = 0; k < CONNS; k++) {
            uint32_t what = (uint32_t)rand_r(&seed);
            if (k == kept || what & 1) {
                assert_int_equal(finish(&conn[k], &c[k], image), 0);
            } else if (what & 2) { /* cut after a while */
                usleep(what >> 8 & 0x3ff);
                cut(&conn[k], what >> 3);
                rescue(conn, &c[k], sn, image);
            } else { /* cut after some of the answer */
                uint8_t b[TGT_BHS_LEN];
                if (ini_recv(&conn[k], b, inix_seg, sizeof inix_seg) >= 0 && tgt_bhs_opcode(b) == TGT_OP_R2T)
                    inix_send_out(&conn[k], b, 0, gr_get_be32(b + 40), BLOCK, gr_get_be32(b + 44) == BLOCK, image + c[k].lba * BLOCK);
                cut(&conn[k], what >> 3);
                rescue(conn, &c[k], sn, image);
            }
        }
    }
    for (unsigned k = 0; k < CONNS; k++)
        ini_close(&conn[k]);
    for (unsigned k = 0; k < CONNS; k++)
        inisess_check_disk(&fix, k * SPAN, image + k * SPAN * BLOCK, SPAN);
    tgtfix_wait_sessions(&fix, 0);
}

#define CASE(f) {#f, f, tgtfix_setup, teardown, &fix}
TGTFIX_MAIN(NULL, NULL,
    CASE(lost_data), CASE(lost_unsolicited), CASE(answers_again), CASE(silence), CASE(level_0), CASE(reassigned), CASE(answered_elsewhere),
    CASE(storm))
