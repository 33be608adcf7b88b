/* Text, negotiation key by key, the login state machine, names. */
#include "iscsi-target/login.h"
#include "iscsi-target/nego.h"
#include "tests/lib/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void text_split(void **state)
{
    struct tgt_text_pair p[TGT_KEYS_MAX];
    char good[] = "A=1\0Key.x=a=b\0E=";
    assert_int_equal(tgt_text_split(good, sizeof good, p), 3);
    assert_string_equal(p[1].key, "Key.x");
    assert_string_equal(p[1].value, "a=b");
    assert_string_equal(p[2].value, "");
    char pad[] = "A=1\0\0\0\0";
    assert_int_equal(tgt_text_split(pad, sizeof pad, p), 1);
    char nothing[4] = {0};
    assert_int_equal(tgt_text_split(nothing, 4, p), 0);
    assert_int_equal(tgt_text_split(nothing, 0, p), 0);
    char no_eq[] = "A\0B=1";
    assert_int_equal(tgt_text_split(no_eq, sizeof no_eq, p), -GR_EPROTO);
    char no_end[] = "A=1";
    assert_int_equal(tgt_text_split(no_end, 3, p), -GR_EPROTO);
    char hole[] = "A=1\0\0B=1";
    assert_int_equal(tgt_text_split(hole, sizeof hole, p), -GR_EPROTO);
    char long_key[80];
    memset(long_key, 'k', sizeof long_key);
    memcpy(long_key + 63, "=1", 3);
    assert_int_equal(tgt_text_split(long_key, 66, p), 1);
    memset(long_key, 'k', sizeof long_key);
    memcpy(long_key + 64, "=1", 3);
    assert_int_equal(tgt_text_split(long_key, 67, p), -GR_EPROTO);
    char long_value[300] = "V=";
    memset(long_value + 2, 'x', 256);
    assert_int_equal(tgt_text_split(long_value, 259, p), -GR_EPROTO);
    long_value[1] = '='; /* was split in place */
    long_value[2 + 255] = 0;
    assert_int_equal(tgt_text_split(long_value, 258, p), 1);
    char many[4 * 65];
    for (int i = 0; i < 65; i++)
        memcpy(many + 4 * i, "a=b", 4);
    assert_int_equal(tgt_text_split(many, sizeof many, p), -GR_EPROTO);
}

static void text_binary(void **state)
{
    unsigned char b[16];
    assert_int_equal(tgt_text_binary("0x00ff", b, 16), 2);
    assert_int_equal(b[1], 255);
    assert_int_equal(tgt_text_binary("0xfff", b, 16), 2);
    assert_int_equal(b[0], 15);
    assert_int_equal(tgt_text_binary("0x", b, 16), -GR_EPROTO);
    assert_int_equal(tgt_text_binary("0xgg", b, 16), -GR_EPROTO);
    assert_int_equal(tgt_text_binary("0x0000000000000000000000000000000000", b, 16), -GR_EPROTO);
    assert_int_equal(tgt_text_binary("0bAAEC", b, 16), 3);
    assert_int_equal(b[2], 2);
    assert_int_equal(tgt_text_binary("0bAA==", b, 16), 1);
    assert_int_equal(tgt_text_binary("0bAA=A", b, 16), -GR_EPROTO);
    assert_int_equal(tgt_text_binary("0bAAA", b, 16), -GR_EPROTO);
    assert_int_equal(tgt_text_binary("0bAAAAAAAAAAAAAAAAAAAAAAAA", b, 16), -GR_EPROTO);
    assert_int_equal(tgt_text_binary("12", b, 16), -GR_EPROTO);
    assert_int_equal(tgt_text_binary("", b, 16), -GR_EPROTO);
    unsigned long v;
    assert_int_equal(tgt_text_number("0x10", 100, &v), 0);
    assert_int_equal(v, 16);
    assert_int_equal(tgt_text_number("18446744073709551616", ~0ul, &v), -GR_EPROTO);
    assert_int_equal(tgt_text_number("-1", 100, &v), -GR_EPROTO);
    assert_int_equal(tgt_text_number("", 100, &v), -GR_EPROTO);
    assert_int_equal(tgt_text_number("101", 100, &v), -GR_EPROTO);
}

/* One key: what we answer and what the parameter becomes. */
static void key(const char *name, const char *value, const char *answer, size_t field, uint32_t result)
{
    struct tgt_nego n;
    char buf[256] = "";
    struct tgt_text_out out = {buf, 0, sizeof buf, false};
    struct tgt_text_pair p = {name, value};
    tgt_nego_init(&n, false);
    assert_int_equal(tgt_nego_key(&n, &p, &out), 1);
    char want[128] = "";
    if (answer)
        snprintf(want, sizeof want, "%s=%s", name, answer);
    assert_string_equal(buf, want);
    assert_int_equal(*(uint32_t *)(void *)((char *)&n.params + field), result);
    assert_int_equal(tgt_nego_key(&n, &p, &out), -GR_EPROTO); /* only once */
}
#define F(name) offsetof(struct tgt_params, name)

static void nego_keys(void **state)
{
    struct tgt_params d;
    tgt_params_default(&d);
    assert_int_equal(d.max_send_dsl, 8192);
    assert_int_equal(d.max_burst, 262144);
    assert_int_equal(d.first_burst, 65536);
    assert_int_equal(d.initial_r2t, 1);
    assert_int_equal(d.immediate_data, 1);
    assert_int_equal(d.max_outstanding_r2t, 1);
    assert_int_equal(d.time2wait, 2);
    assert_int_equal(d.time2retain, 20);
    assert_true(tgt_params_ok(&d));
    key("HeaderDigest", "CRC32C,None", "CRC32C", F(header_digest), 1);
    key("DataDigest", "None,CRC32C", "None", F(data_digest), 0);
    key("DataDigest", "X,CRC32C", "CRC32C", F(data_digest), 1);
    key("HeaderDigest", "MD5", "Reject", F(header_digest), 0);
    key("InitialR2T", "No", "No", F(initial_r2t), 0);
    key("InitialR2T", "Yes", "Yes", F(initial_r2t), 1);
    key("InitialR2T", "Yes,No", "Reject", F(initial_r2t), 1);
    key("ImmediateData", "No", "No", F(immediate_data), 0);
    key("ImmediateData", "Yes", "Yes", F(immediate_data), 1);
    key("MaxBurstLength", "16776192", "1048576", F(max_burst), 1048576);
    key("MaxBurstLength", "512", "512", F(max_burst), 512);
    key("MaxBurstLength", "511", "Reject", F(max_burst), 262144);
    key("MaxBurstLength", "16777216", "Reject", F(max_burst), 262144);
    key("FirstBurstLength", "0x10000", "65536", F(first_burst), 65536);
    key("MaxOutstandingR2T", "65535", "8", F(max_outstanding_r2t), 8);
    key("MaxOutstandingR2T", "0", "Reject", F(max_outstanding_r2t), 1);
    key("MaxConnections", "65535", "8", F(max_connections), 8);
    key("MaxConnections", "1", "1", F(max_connections), 1);
    key("DefaultTime2Wait", "5", "5", F(time2wait), 5);
    key("DefaultTime2Retain", "60", "20", F(time2retain), 20);
    key("DefaultTime2Retain", "0", "0", F(time2retain), 0);
    key("ErrorRecoveryLevel", "2", "2", F(error_recovery_level), 2);
    key("ErrorRecoveryLevel", "3", "Reject", F(error_recovery_level), 0);
    key("DataPDUInOrder", "No", "Yes", F(data_pdu_in_order), 1);
    key("DataSequenceInOrder", "No", "Yes", F(data_sequence_in_order), 1);
    key("MaxRecvDataSegmentLength", "262144", NULL, F(max_send_dsl), 262144);
    key("OFMarker", "Yes", "No", F(protocol_level), 1);
    key("IFMarkInt", "1~2", "Irrelevant", F(protocol_level), 1);
    struct tgt_nego n;
    char buf[64];
    struct tgt_text_out out = {buf, 0, sizeof buf, false};
    tgt_nego_init(&n, false);
    struct tgt_text_pair bad = {"MaxRecvDataSegmentLength", "16777216"}, other = {"X-com.example", "1"};
    assert_int_equal(tgt_nego_key(&n, &bad, &out), -GR_EPROTO);
    assert_int_equal(tgt_nego_key(&n, &other, &out), 0);
    struct tgt_params p = d;
    p.max_burst = 1u << 24;
    assert_false(tgt_params_ok(&p));
    p = d;
    p.first_burst = p.max_burst + 1;
    assert_false(tgt_params_ok(&p));
}

static struct tgt_login login;

static enum tgt_login_act request(uint8_t flags, const char *text, uint32_t len)
{
    uint8_t b[TGT_BHS_LEN];
    tgt_bhs_start(b, TGT_OP_LOGIN, flags, 7, len);
    b[0] |= TGT_IMMEDIATE;
    return tgt_login_pdu(&login, b, text, len);
}
#define REQ(flags, text) request(flags, text, sizeof(text))
#define STATUS() gr_get_be16(login.rsp + 36)

static bool said(const char *pair)
{
    for (size_t i = 0; i < login.out.len; i += strlen(login.out_buf + i) + 1)
        if (!strcmp(login.out_buf + i, pair))
            return true;
    return false;
}

static void login_plain(void **state)
{
    tgt_login_init(&login);
    assert_int_equal(REQ(0x87, "InitiatorName=iqn.A\0TargetName=iqn.t\0X-odd=1\0MaxBurstLength=1024\0FirstBurstLength=4096"), TGT_ACT_ASK);
    assert_string_equal(login.initiator, "iqn.a");
    assert_int_equal(tgt_login_asked(&login, 0, false, 1, "t/disk", ""), TGT_ACT_HAND_OVER);
    assert_true(said("X-odd=NotUnderstood"));
    assert_true(said("MaxRecvDataSegmentLength=262144"));
    assert_true(said("TargetPortalGroupTag=1"));
    assert_int_equal(login.nego.params.first_burst, 1024);
    assert_int_equal(login.rsp[1], 0x87);
}

static void login_refusals(void **state)
{
    tgt_login_init(&login);
    assert_int_equal(REQ(0x87, "TargetName=iqn.t"), TGT_ACT_FAIL);
    assert_int_equal(STATUS(), TGT_LOGIN_MISSING);
    tgt_login_init(&login);
    assert_int_equal(REQ(0x87, "InitiatorName=iqn.a"), TGT_ACT_FAIL);
    assert_int_equal(STATUS(), TGT_LOGIN_MISSING);
    tgt_login_init(&login);
    assert_int_equal(REQ(0xc7, "InitiatorName=iqn.a\0TargetName=iqn.t"), TGT_ACT_FAIL); /* T with C */
    tgt_login_init(&login);
    assert_int_equal(REQ(0x84, "InitiatorName=iqn.a\0TargetName=iqn.t"), TGT_ACT_FAIL); /* NSG < CSG */
    tgt_login_init(&login);
    assert_int_equal(REQ(0x8b, "InitiatorName=iqn.a\0TargetName=iqn.t"), TGT_ACT_FAIL); /* CSG reserved */
    tgt_login_init(&login);
    assert_int_equal(REQ(0x87, "InitiatorName=iqn.a\0SessionType=Odd"), TGT_ACT_FAIL);
    assert_int_equal(STATUS(), TGT_LOGIN_NO_SESSION_TYPE);
    tgt_login_init(&login);
    assert_int_equal(REQ(0x87, "InitiatorName=iqn.a\0TargetName=iqn.t"), TGT_ACT_ASK);
    assert_int_equal(tgt_login_asked(&login, TGT_LOGIN_MOVED, false, 1, "", "10.0.0.1:3260"), TGT_ACT_FAIL);
    assert_int_equal(STATUS(), TGT_LOGIN_MOVED);
    assert_true(said("TargetAddress=10.0.0.1:3260"));
    tgt_login_init(&login); /* CHAP is needed: neither AuthMethod=None nor skipping the stage helps */
    assert_int_equal(REQ(0x81, "InitiatorName=iqn.a\0TargetName=iqn.t\0AuthMethod=None"), TGT_ACT_ASK);
    assert_int_equal(tgt_login_asked(&login, 0, true, 1, "", ""), TGT_ACT_FAIL);
    assert_int_equal(STATUS(), TGT_LOGIN_AUTH);
    tgt_login_init(&login);
    assert_int_equal(REQ(0x87, "InitiatorName=iqn.a\0TargetName=iqn.t"), TGT_ACT_ASK);
    assert_int_equal(tgt_login_asked(&login, 0, true, 1, "", ""), TGT_ACT_FAIL);
    assert_int_equal(STATUS(), TGT_LOGIN_AUTH);
    tgt_login_init(&login);
    uint8_t b[TGT_BHS_LEN] = {TGT_OP_SCSI_CMD};
    assert_int_equal(tgt_login_pdu(&login, b, NULL, 0), TGT_ACT_CLOSE);
}

static void login_chap(void **state)
{
    static const uint8_t challenge[16] = {1, 2, 3}, answer[16] = {9};
    tgt_login_init(&login);
    assert_int_equal(REQ(0x81, "InitiatorName=iqn.a\0TargetName=iqn.t\0AuthMethod=CHAP,None"), TGT_ACT_ASK);
    assert_int_equal(tgt_login_asked(&login, 0, true, 1, "", ""), TGT_ACT_REPLY);
    assert_true(said("AuthMethod=CHAP"));
    assert_int_equal(login.rsp[1] & 0x80, 0); /* not yet */
    assert_int_equal(REQ(0x01, "CHAP_A=8,5"), TGT_ACT_CHAP_START);
    assert_int_equal(login.chap_algs, 1u << 5 | 1u << 8);
    assert_int_equal(tgt_login_challenge(&login, 5, 17, challenge, 16), TGT_ACT_REPLY);
    assert_true(said("CHAP_C=0x01020300000000000000000000000000"));
    assert_int_equal(REQ(0x81, "CHAP_N=me\0CHAP_R=0x000102030405060708090a0b0c0d0e0f\0CHAP_I=3\0CHAP_C=0xaabb"), TGT_ACT_CHAP_VERIFY);
    assert_int_equal(login.mutual_challenge_len, 2);
    assert_int_equal(tgt_login_verified(&login, 0, "target", answer, 16), TGT_ACT_REPLY);
    assert_true(said("CHAP_N=target"));
    assert_int_equal(login.rsp[1], 0x81);
    assert_int_equal(REQ(0x87, "HeaderDigest=None"), TGT_ACT_HAND_OVER);
    /* out of order */
    tgt_login_init(&login);
    assert_int_equal(REQ(0x81, "InitiatorName=iqn.a\0TargetName=iqn.t\0AuthMethod=CHAP"), TGT_ACT_ASK);
    assert_int_equal(tgt_login_asked(&login, 0, true, 1, "", ""), TGT_ACT_REPLY);
    assert_int_equal(REQ(0x81, "CHAP_N=me\0CHAP_R=0x00"), TGT_ACT_FAIL);
    tgt_login_init(&login);
    assert_int_equal(REQ(0x81, "InitiatorName=iqn.a\0TargetName=iqn.t\0AuthMethod=CHAP"), TGT_ACT_ASK);
    assert_int_equal(tgt_login_asked(&login, 0, true, 1, "", ""), TGT_ACT_REPLY);
    assert_int_equal(REQ(0x01, "CHAP_A=9,1"), TGT_ACT_FAIL);
    assert_int_equal(STATUS(), TGT_LOGIN_AUTH);
}

static void login_limits(void **state)
{
    static char big[8192];
    tgt_login_init(&login);
    memset(big, 'a', sizeof big);
    assert_int_equal(request(0x44, big, 8192), TGT_ACT_REPLY); /* continued, answered empty */
    assert_int_equal(login.out.len, 0);
    assert_int_equal(request(0x44, big, 8192), TGT_ACT_REPLY);
    assert_int_equal(request(0x44, big, 1), TGT_ACT_FAIL); /* 16 KiB is enough */
    tgt_login_init(&login);
    enum tgt_login_act a = TGT_ACT_REPLY;
    for (int i = 0; i < 100 && a == TGT_ACT_REPLY; i++)
        a = request(0x44, "", 0);
    assert_int_equal(a, TGT_ACT_CLOSE); /* endless continuation */
    tgt_login_init(&login); /* the text is put together over two requests */
    assert_int_equal(request(0x44, "InitiatorName=iqn.a\0TargetNa", 28), TGT_ACT_REPLY);
    assert_int_equal(request(0x87, "me=iqn.t", 9), TGT_ACT_ASK);
    assert_string_equal(login.target, "iqn.t");
}

static void discovery(void **state)
{
    uint8_t b[TGT_BHS_LEN];
    static const char send[] = "SendTargets=All", list[] = "TargetName=iqn.t\0TargetAddress=1.2.3.4:3260,1";
    tgt_login_init(&login);
    assert_int_equal(REQ(0x87, "InitiatorName=iqn.a\0SessionType=Discovery\0HeaderDigest=CRC32C,None\0MaxBurstLength=1024"), TGT_ACT_ASK);
    assert_int_equal(tgt_login_asked(&login, 0, false, 1, "", ""), TGT_ACT_REPLY);
    assert_true(said("HeaderDigest=None"));
    assert_true(said("MaxBurstLength=Irrelevant"));
    tgt_bhs_start(b, TGT_OP_TEXT, TGT_FINAL, 9, 0);
    b[0] |= TGT_IMMEDIATE;
    gr_put_be32(b + 20, TGT_TAG_NONE);
    assert_int_equal(tgt_login_pdu(&login, b, send, sizeof send), TGT_ACT_LIST);
    assert_string_equal(login.list_target, "All");
    assert_int_equal(tgt_login_listed(&login, list, sizeof list, true), TGT_ACT_REPLY);
    assert_int_equal(login.rsp[1], TGT_CONTINUE);
    gr_put_be32(b + 20, gr_get_be32(login.rsp + 20));
    assert_int_equal(tgt_login_pdu(&login, b, NULL, 0), TGT_ACT_LIST);
    assert_int_equal(login.list_off, sizeof list);
    assert_int_equal(tgt_login_listed(&login, list, sizeof list, false), TGT_ACT_REPLY);
    assert_int_equal(login.rsp[1], TGT_FINAL);
    tgt_bhs_start(b, TGT_OP_SCSI_CMD, TGT_FINAL, 9, 0);
    b[0] |= TGT_IMMEDIATE;
    assert_int_equal(tgt_login_pdu(&login, b, NULL, 0), TGT_ACT_FAIL);
    assert_int_equal(tgt_bhs_opcode(login.rsp), TGT_OP_REJECT);
}

static void names(void **state)
{
    char name[TGT_NAME_MAX + 1], disk[1024], long_name[600];
    assert_int_equal(tgt_name_of("ds1/web01", name), 0);
    assert_string_equal(name, TGT_IQN_PREFIX "ds1:web01");
    static const char *const all[] = {"ds1/Web-01_x@night ly", "a/b/c.vmdk", "d\xc3\xa9/x:y", "--", "ds/a-2d"};
    for (unsigned i = 0; i < sizeof all / sizeof all[0]; i++) {
        assert_int_equal(tgt_name_of(all[i], name), 0);
        assert_int_equal(tgt_disk_of(name, disk, sizeof disk), 0);
        assert_string_equal(disk, all[i]);
    }
    memset(long_name, 'Z', sizeof long_name - 1);
    long_name[599] = 0;
    assert_int_equal(tgt_name_of(long_name, name), 0);
    assert_true(strlen(name) <= TGT_NAME_MAX);
    assert_int_equal(tgt_disk_of(name, disk, sizeof disk), -GR_ERANGE);
    assert_int_equal(tgt_name_of("", name), -EINVAL);
    assert_int_equal(tgt_disk_of(TGT_IQN_PREFIX "a-61", disk, sizeof disk), -EINVAL); /* a second spelling of "aa" */
    assert_int_equal(tgt_disk_of(TGT_IQN_PREFIX "a-0", disk, sizeof disk), -EINVAL);
    assert_int_equal(tgt_disk_of(TGT_IQN_PREFIX "a-00", disk, sizeof disk), -EINVAL);
    assert_int_equal(tgt_disk_of("iqn.other:x", disk, sizeof disk), -EINVAL);
}

TEST_MAIN(TEST(text_split), TEST(text_binary), TEST(nego_keys), TEST(login_plain), TEST(login_refusals), TEST(login_chap), TEST(login_limits),
          TEST(discovery), TEST(names))
