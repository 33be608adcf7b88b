/* Login stages and text keys as they show on the wire: what each key changes, and what holds when it is absent (RFC 7143 13).
 * Initiators exist that send none (iPXE), and targets that got a default wrong failed with them. */
#include "common/cleanup.h"
#include "tests/lib/inix.h"
#include "tests/lib/test.h"
#include "tests/lib/tgtfix.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME "iqn.2026-11.local.granary:keys"
#define TAG 77u
static struct tgtfix fix;
static uint8_t zeros[1u << 20];

static void log_in(struct ini *i, const char *keys, size_t len)
{
    assert_int_equal(ini_connect(i, "127.0.0.1", fix.port), 0);
    i->cmdsn = 1;
    assert_int_equal(ini_login(i, NAME, TGTFIX_TARGET, keys, len), 0);
    assert_int_equal(i->login_status, 0);
    inix_ready(i);
}
#define LOGIN(i, keys) log_in(i, keys, sizeof(keys))

static void leave(struct ini *i)
{
    ini_close(i);
    tgtfix_wait_sessions(&fix, 0);
}

/* Longest Data-In, and longest run of them between F bits, of a read of 1 MiB. */
static void read_shape(struct ini *i, uint32_t *ret_segment, uint32_t *ret_burst)
{
    uint8_t b[TGT_BHS_LEN];
    uint32_t burst = 0;
    *ret_segment = *ret_burst = 0;
    assert_int_equal(inix_send_rw(i, i->cmdsn, TAG, false, 0, 2048), 0);
    do {
        uint32_t len = (uint32_t)inix_expect(i, b, TGT_OP_DATA_IN);
        burst += len;
        *ret_segment = GR_MAX(*ret_segment, len);
        *ret_burst = GR_MAX(*ret_burst, burst);
        if (b[1] & TGT_FINAL)
            burst = 0;
    } while (!(b[1] & 1));
    inix_take_status(i, b);
}

/* How many R2Ts come at once for a write of 1 MiB, and how long the first is; the write is then aborted. */
static void write_shape(struct ini *i, unsigned *ret_r2ts, uint32_t *ret_len)
{
    uint8_t b[TGT_BHS_LEN], response = 99;
    assert_int_equal(inix_send_rw(i, i->cmdsn, TAG, true, 0, 2048), 0);
    i->timeout_ms = 100;
    *ret_r2ts = 0;
    while (ini_recv(i, b, inix_seg, sizeof inix_seg) >= 0) {
        assert_int_equal(tgt_bhs_opcode(b), TGT_OP_R2T);
        if (!(*ret_r2ts)++)
            *ret_len = gr_get_be32(b + 44);
    }
    i->timeout_ms = 5000;
    assert_int_equal(ini_tmf(i, TGT_TMF_ABORT_TASK, TAG, i->cmdsn - 1, &response), 0);
    assert_int_equal(response, TGT_TMF_DONE);
}

/* A write of 256 KiB with @now bytes of immediate data, and, without @final, more to come unasked. True: it goes on. */
static bool accepts(struct ini *i, uint32_t now, bool final)
{
    uint8_t b[TGT_BHS_LEN], cdb[10], response;
    inix_rw_cdb(cdb, true, 0, 512);
    ini_cmd_bhs(i, b, cdb, 10, (uint8_t)((final ? TGT_FINAL : 0) | TGT_CMD_WRITE), 262144);
    uint32_t itt = tgt_bhs_itt(b);
    assert_int_equal(ini_send(i, b, zeros, now), 0);
    i->timeout_ms = 100;
    int r = ini_recv(i, b, inix_seg, sizeof inix_seg);
    i->timeout_ms = 5000;
    if (r >= 0 && tgt_bhs_opcode(b) == TGT_OP_SCSI_RSP) {
        assert_int_equal(b[3], 2);
        inix_take_status(i, b);
        return false;
    }
    assert_true(final ? r >= 0 && tgt_bhs_opcode(b) == TGT_OP_R2T : r == -ETIMEDOUT);
    assert_int_equal(ini_tmf(i, TGT_TMF_ABORT_TASK, itt, i->cmdsn - 1, &response), 0);
    return true;
}

static void defaults(void **state)
{
    uint32_t segment, burst, len = 0;
    unsigned r2ts;
    struct ini i, second;
    uint8_t b[TGT_BHS_LEN];
    LOGIN(&i, "");
    read_shape(&i, &segment, &burst);
    assert_int_equal(segment, 8192);  /* MaxRecvDataSegmentLength */
    assert_int_equal(burst, 262144);  /* MaxBurstLength */
    write_shape(&i, &r2ts, &len);
    assert_int_equal(r2ts, 1);        /* MaxOutstandingR2T */
    assert_int_equal(len, 262144);
    assert_true(accepts(&i, 65536, true)); /* ImmediateData=Yes, FirstBurstLength=65536 */
    assert_false(accepts(&i, 65536 + 512, true));
    assert_false(accepts(&i, 512, false)); /* InitialR2T=Yes */
    inix_snack(&i, 1, TGT_TAG_NONE, TGT_TAG_NONE, 0, 0);
    inix_expect(&i, b, TGT_OP_REJECT);
    assert_int_equal(b[2], TGT_REJECT_PROTOCOL); /* ErrorRecoveryLevel=0 */
    inix_take_status(&i, b);
    assert_int_equal(ini_connect(&second, "127.0.0.1", fix.port), 0);
    second.tsih = i.tsih;
    second.cid = 1;
    assert_int_equal(ini_login(&second, NAME, TGTFIX_TARGET, NULL, 0), 0);
    assert_int_equal(second.login_status, TGT_LOGIN_TOO_MANY); /* MaxConnections=1 */
    ini_close(&second);
    leave(&i);
}

static void each_key(void **state)
{
    uint32_t segment, burst, len = 0;
    unsigned r2ts;
    struct ini i;
    static const char *const segments[] = {"512", "513", "65536", "262144", "16777215"};
    for (size_t k = 0; k < GR_ARRAY_LEN(segments); k++) {
        char key[64];
        int n = snprintf(key, sizeof key, "MaxRecvDataSegmentLength=%s", segments[k]);
        log_in(&i, key, (size_t)n + 1);
        read_shape(&i, &segment, &burst);
        assert_int_equal(segment, GR_MIN(strtoul(segments[k], NULL, 10), 262144ul)); /* never across the end of a burst */
        leave(&i);
    }
    LOGIN(&i, "MaxBurstLength=1024\0FirstBurstLength=512\0MaxOutstandingR2T=3\0MaxRecvDataSegmentLength=65536");
    read_shape(&i, &segment, &burst);
    assert_int_equal(segment, 1024);
    assert_int_equal(burst, 1024);
    write_shape(&i, &r2ts, &len);
    assert_int_equal(r2ts, 3);
    assert_int_equal(len, 1024);
    assert_true(accepts(&i, 512, true));
    assert_false(accepts(&i, 1024, true));
    leave(&i);
    LOGIN(&i, "MaxBurstLength=16777215\0FirstBurstLength=16777215\0MaxOutstandingR2T=65535");
    write_shape(&i, &r2ts, &len);
    assert_int_equal(len, 1048576); /* ours */
    assert_true(accepts(&i, 262144 - 512, true));
    leave(&i);
    LOGIN(&i, "ImmediateData=No");
    assert_true(accepts(&i, 0, true));
    assert_false(accepts(&i, 512, true));
    leave(&i);
    LOGIN(&i, "InitialR2T=No");
    assert_true(accepts(&i, 512, false));
    assert_true(accepts(&i, 0, false));
    leave(&i);
    LOGIN(&i, "InitialR2T=Yes\0ImmediateData=Yes");
    assert_false(accepts(&i, 0, false));
    leave(&i);
    LOGIN(&i, "HeaderDigest=None,CRC32C\0DataDigest=X-odd,CRC32C,None"); /* the initiator's first choice that we know */
    assert_int_equal(i.header_digest, 0);
    assert_int_equal(i.data_digest, 1);
    read_shape(&i, &segment, &burst); /* the digests are right */
    leave(&i);
    LOGIN(&i, "MaxRecvDataSegmentLength=512");
    uint8_t b[TGT_BHS_LEN]; /* declared again in the full feature phase */
    tgt_bhs_start(b, TGT_OP_TEXT, TGT_FINAL, 9, 0);
    gr_put_be32(b + 20, TGT_TAG_NONE);
    gr_put_be32(b + 24, i.cmdsn++);
    assert_int_equal(ini_send(&i, b, "MaxRecvDataSegmentLength=4096", 30), 0);
    assert_int_equal(inix_expect(&i, b, TGT_OP_TEXT_RSP), 0);
    inix_take_status(&i, b);
    read_shape(&i, &segment, &burst);
    assert_int_equal(segment, 4096);
    tgt_bhs_start(b, TGT_OP_TEXT, TGT_FINAL, 10, 0);
    gr_put_be32(b + 20, TGT_TAG_NONE);
    gr_put_be32(b + 24, i.cmdsn++);
    assert_int_equal(ini_send(&i, b, "MaxRecvDataSegmentLength=7", 27), 0); /* below what a key may be */
    inix_expect(&i, b, TGT_OP_REJECT);
    inix_take_status(&i, b);
    inix_ready(&i);
    leave(&i);
}

/* Every answer to a key that is negotiated is given once, and names what holds. */
static void answers(void **state)
{
    static const struct {
        const char *say, *key, *answer;
    } all[] = {
        {"MaxConnections=3", "MaxConnections", "3"},
        {"ErrorRecoveryLevel=1", "ErrorRecoveryLevel", "1"},
        {"DataPDUInOrder=No", "DataPDUInOrder", "Yes"},
        {"DataSequenceInOrder=No", "DataSequenceInOrder", "Yes"},
        {"DefaultTime2Wait=7", "DefaultTime2Wait", "7"},
        {"DefaultTime2Retain=7", "DefaultTime2Retain", "7"},
        {"iSCSIProtocolLevel=2", "iSCSIProtocolLevel", "1"},
        {"TaskReporting=RFC3720", "TaskReporting", "NotUnderstood"},
        {"IFMarker=Yes", "IFMarker", "No"},
        {"OFMarkInt=1", "OFMarkInt", "Irrelevant"},
        {"X-com.example.key=what", "X-com.example.key", "NotUnderstood"},
        {"MaxBurstLength=0x400", "MaxBurstLength", "1024"},
        {"MaxBurstLength=-1", "MaxBurstLength", "Reject"},
        {"MaxBurstLength=511", "MaxBurstLength", "Reject"},
        {"InitialR2T=yes", "InitialR2T", "Reject"},
        {"HeaderDigest=SHA", "HeaderDigest", "Reject"},
    };
    struct ini i;
    for (size_t k = 0; k < GR_ARRAY_LEN(all); k++) {
        log_in(&i, all[k].say, strlen(all[k].say) + 1);
        const char *v = ini_key(&i, all[k].key);
        assert_non_null(v);
        assert_string_equal(v, all[k].answer);
        assert_string_equal(ini_key(&i, "MaxRecvDataSegmentLength"), "262144");
        assert_string_equal(ini_key(&i, "TargetPortalGroupTag"), "1");
        leave(&i);
    }
}

/* Every way through the stages. */
static void stages(void **state)
{
    static const char names[] = "InitiatorName=" NAME "\0TargetName=" TGTFIX_TARGET "\0SessionType=Normal";
    static const char sec[] = "AuthMethod=None", op[] = "HeaderDigest=None";
    struct ini i;
    char all[512];
    memcpy(all, names, sizeof names);
    memcpy(all + sizeof names, sec, sizeof sec);
    for (int way = 0; way < 5; way++) {
        assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
        i.cmdsn = 1;
        int r = 0;
        switch (way) {
        case 0: /* operational stage at once */
            r = ini_login_request(&i, 1, 3, 1, names, sizeof names);
            break;
        case 1: /* security, straight to the end */
            r = ini_login_request(&i, 0, 3, 1, all, sizeof names + sizeof sec);
            break;
        case 2: /* security, operational, end */
            assert_int_equal(ini_login_request(&i, 0, 1, 1, all, sizeof names + sizeof sec), 0x81);
            assert_string_equal(ini_key(&i, "AuthMethod"), "None");
            r = ini_login_request(&i, 1, 3, 1, op, sizeof op);
            break;
        case 3: /* without moving on: the target waits */
            assert_int_equal(ini_login_request(&i, 0, 0, 0, names, sizeof names), 0);
            assert_int_equal(ini_login_request(&i, 0, 1, 1, sec, sizeof sec), 0x81);
            assert_int_equal(ini_login_request(&i, 1, 0, 0, op, sizeof op), 0x04);
            r = ini_login_request(&i, 1, 3, 1, NULL, 0);
            break;
        case 4: /* a key a second time: refused */
            assert_int_equal(ini_login_request(&i, 1, 0, 0, names, sizeof names), 0x04);
            assert_int_equal(ini_login_request(&i, 1, 0, 0, op, sizeof op), 0x04);
            ini_login_request(&i, 1, 3, 1, op, sizeof op);
            assert_int_equal(i.login_status, TGT_LOGIN_INITIATOR);
            ini_close(&i);
            continue;
        }
        assert_int_equal(r & 0x83, 0x83);
        assert_int_equal(i.login_status, 0);
        assert_int_not_equal(i.tsih, 0);
        inix_ready(&i);
        leave(&i);
    }
}

static int setup(void **state)
{
    (void)state;
    memset(&fix, 0, sizeof fix);
    tgtfix_start(&fix);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tgtfix_stop(&fix);
    return 0;
}

TGTFIX_MAIN(setup, teardown,
    TEST(defaults), TEST(each_key), TEST(answers), TEST(stages))
