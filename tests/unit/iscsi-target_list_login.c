/* The list of bad inputs (docs/iscsi-hostile.md), 1 to 15: login and text. Every case runs beside a session that must not notice. */
#include "common/cleanup.h"
#include "tests/lib/inix.h"
#include "tests/lib/test.h"
#include "tests/lib/witness.h"
#include "iscsi-target/lun_access.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NAME "iqn.2026-11.local.granary:list"
#define NAMES "InitiatorName=" NAME "\0TargetName=" TGTFIX_TARGET "\0SessionType=Normal"
#define OWN "SendTargets=" TGTFIX_TARGET
static struct tgtfix fix;
static struct witness *witness;
static char text[20000];

static int setup(void **state)
{
    (void)state;
    memset(&fix, 0, sizeof fix);
    fix.redirect = "10.1.2.3:3260";
    fix.login_timeout_ms = 3000;
    tgtfix_start(&fix);
    witness = witness_start(&fix);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    witness_stop(witness);
    tgtfix_alive(&fix);
    tgtfix_stop(&fix);
    return 0;
}

/* One login request on a connection of its own: the login status, 0 where it goes on, -EPIPE when there was no answer. */
static int try_login(unsigned csg, unsigned nsg, int transit, const void *keys, size_t len)
{
    struct ini i;
    assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
    int r = ini_login_request(&i, csg, nsg, transit, keys, len);
    ini_close(&i);
    return r < 0 ? r : i.login_status;
}

/* The names, and then @add pairs of @len bytes: the answer to the key @key, "" when it is not there, "!" when refused. */
static const char *said(const void *add, size_t len, const char *key)
{
    static char value[300];
    struct ini i;
    memcpy(text, NAMES, sizeof NAMES);
    memcpy(text + sizeof NAMES, add, len);
    assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
    assert_true(ini_login_request(&i, 1, 1, 0, text, sizeof NAMES + len) >= 0);
    const char *v = ini_key(&i, key);
    snprintf(value, sizeof value, "%s", i.login_status ? "!" : v ? v : "");
    ini_close(&i);
    return value;
}
#define SAID(add, key) said(add, sizeof(add), key)

static size_t put_pair(size_t at, char fill, size_t key, size_t value)
{
    memset(text + at, fill, key);
    text[at + key] = '=';
    memset(text + at + key + 1, 'v', value);
    text[at + key + 1 + value] = 0;
    return at + key + value + 2;
}

static void i01_long_keys_and_values(void **state)
{
    static const struct {
        size_t key, value;
        int status;
    } cases[] = {{63, 1, 0}, {64, 1, TGT_LOGIN_INITIATOR}, {65, 1, TGT_LOGIN_INITIATOR}, {255, 1, TGT_LOGIN_INITIATOR}, {8, 255, 0}, {8, 256, TGT_LOGIN_INITIATOR},
                 {8, 7000, TGT_LOGIN_INITIATOR}};
    for (size_t k = 0; k < GR_ARRAY_LEN(cases); k++) {
        memcpy(text, NAMES, sizeof NAMES);
        size_t len = put_pair(sizeof NAMES, 'K', cases[k].key, cases[k].value);
        assert_int_equal(try_login(1, 1, 0, text, len), cases[k].status);
    }
    memcpy(text, NAMES, sizeof NAMES); /* over several requests */
    struct ini i;
    assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
    uint8_t b[TGT_BHS_LEN];
    memset(text, 'v', 8000);
    memcpy(text, "Key=", 4);
    int r = 0;
    for (int k = 0; k < 4 && r >= 0 && !(k && gr_get_be16(b + 36)); k++) {
        tgt_bhs_start(b, TGT_OP_LOGIN, TGT_CONTINUE | 4, 1, 0);
        b[0] |= TGT_IMMEDIATE;
        assert_true(ini_send(&i, b, text, 8000) >= 0);
        r = ini_recv(&i, b, inix_seg, sizeof inix_seg);
    }
    assert_true(r < 0 || gr_get_be16(b + 36) == TGT_LOGIN_INITIATOR);
    ini_close(&i);
}

static void i02_many_keys(void **state)
{
    size_t len = sizeof NAMES;
    memcpy(text, NAMES, sizeof NAMES);
    for (int k = 0; k < 2000 && len < 8100; k++)
        len += (size_t)snprintf(text + len, sizeof text - len, "a=b") + 1;
    assert_int_equal(try_login(1, 1, 0, text, len), TGT_LOGIN_INITIATOR);
    len = sizeof NAMES; /* as many as are allowed, none known */
    memcpy(text, NAMES, sizeof NAMES);
    for (int k = 0; k < 60; k++)
        len += (size_t)snprintf(text + len, sizeof text - len, "X-%d=b", k) + 1;
    struct ini i;
    assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
    assert_true(ini_login_request(&i, 1, 1, 0, text, len) >= 0);
    assert_int_equal(i.login_status, 0);
    for (int k = 0; k < 60; k++) {
        char key[16];
        snprintf(key, sizeof key, "X-%d", k);
        assert_string_equal(ini_key(&i, key), "NotUnderstood");
    }
    ini_close(&i);
}

static void i03_lengths(void **state)
{
    uint8_t b[TGT_BHS_LEN];
    struct ini i;
    memset(text, 'a', sizeof text);
    for (unsigned len = 8188; len <= 8193; len++) {
        assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
        tgt_bhs_start(b, TGT_OP_LOGIN, 0x87, 5, len);
        b[0] |= TGT_IMMEDIATE;
        (void)!ini_send(&i, b, text, len);
        int r = ini_recv(&i, b, inix_seg, sizeof inix_seg);
        if (len > 8192)
            assert_int_equal(r, -EPIPE);
        else
            assert_int_equal(gr_get_be16(b + 36), TGT_LOGIN_INITIATOR);
        ini_close(&i);
    }
    assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
    tgt_bhs_start(b, TGT_OP_LOGIN, 0x87, 5, 0xffffff);
    b[0] |= TGT_IMMEDIATE;
    assert_int_equal(ini_send_raw(&i, b, sizeof b), 0);
    assert_int_equal(ini_recv(&i, b, inix_seg, sizeof inix_seg), -EPIPE);
    ini_close(&i);
}

static void i04_malformed_text(void **state)
{
    static const char no_equal[] = "InitiatorName", no_end[] = {'A', '=', 'b'}, nuls[64] = {0}, no_key[] = "=value", high[] = "\xff\xfe=\x80";
    assert_int_equal(try_login(1, 3, 1, no_equal, sizeof no_equal), TGT_LOGIN_INITIATOR);
    assert_int_equal(try_login(1, 3, 1, no_end, sizeof no_end), TGT_LOGIN_INITIATOR);
    assert_int_equal(try_login(1, 3, 1, no_key, sizeof no_key), TGT_LOGIN_INITIATOR);
    assert_int_equal(try_login(1, 3, 1, high, sizeof high), TGT_LOGIN_INITIATOR);
    assert_in_range(try_login(1, 3, 1, nuls, sizeof nuls), TGT_LOGIN_INITIATOR, TGT_LOGIN_MISSING); /* nothing but ends: names are missing */
    assert_in_range(try_login(1, 3, 1, NULL, 0), TGT_LOGIN_INITIATOR, TGT_LOGIN_MISSING);
}

static void i05_keys_twice(void **state)
{
    assert_string_equal(SAID("MaxBurstLength=65536\0MaxBurstLength=131072", "MaxBurstLength"), "!");
    /* a name said again is nothing new (initiators do that), another one is refused, also in a later request */
    static const char again[] = NAMES "\0InitiatorName=" NAME, two_names[] = NAMES "\0InitiatorName=" NAME ":other";
    assert_int_equal(try_login(1, 1, 0, again, sizeof again), 0);
    assert_int_equal(try_login(1, 1, 0, two_names, sizeof two_names), TGT_LOGIN_INITIATOR);
    struct ini i;
    static const char other[] = "InitiatorName=" NAME ":other";
    assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
    assert_true(ini_login_request(&i, 1, 1, 0, NAMES, sizeof NAMES) >= 0);
    assert_true(ini_login_request(&i, 1, 1, 0, other, sizeof other) >= 0);
    assert_int_equal(i.login_status, TGT_LOGIN_INITIATOR);
    ini_close(&i);
}

static void i06_continuations(void **state)
{
    uint8_t b[TGT_BHS_LEN];
    struct ini i;
    assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
    int n = 0, r = 0;
    for (; n < 100 && r >= 0; n++) { /* C without data, for ever */
        tgt_bhs_start(b, TGT_OP_LOGIN, TGT_CONTINUE | 4, 1, 0);
        b[0] |= TGT_IMMEDIATE;
        if (ini_send(&i, b, NULL, 0) < 0)
            break;
        r = ini_recv(&i, b, inix_seg, sizeof inix_seg);
        if (r >= 0 && gr_get_be16(b + 36))
            break;
    }
    assert_true(n < 100);
    ini_close(&i);
}

static void i07_stages(void **state)
{
    assert_int_equal(try_login(1, 3, 1, NAMES, sizeof NAMES), 0);
    assert_int_equal(try_login(2, 3, 1, NAMES, sizeof NAMES), TGT_LOGIN_INITIATOR); /* a reserved stage */
    assert_int_equal(try_login(1, 2, 1, NAMES, sizeof NAMES), TGT_LOGIN_INITIATOR);
    assert_int_equal(try_login(1, 0, 1, NAMES, sizeof NAMES), TGT_LOGIN_INITIATOR); /* backwards */
    assert_int_equal(try_login(1, 1, 1, NAMES, sizeof NAMES), TGT_LOGIN_INITIATOR); /* on the spot */
    assert_int_equal(try_login(3, 3, 1, NAMES, sizeof NAMES), TGT_LOGIN_INITIATOR);
    uint8_t b[TGT_BHS_LEN];
    struct ini i;
    assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
    tgt_bhs_start(b, TGT_OP_LOGIN, TGT_CONTINUE | 0x87, 1, 0); /* to be continued, and the end */
    b[0] |= TGT_IMMEDIATE;
    assert_true(ini_send(&i, b, NAMES, sizeof NAMES) >= 0);
    assert_true(ini_recv(&i, b, inix_seg, sizeof inix_seg) >= 0);
    assert_int_equal(gr_get_be16(b + 36), TGT_LOGIN_INITIATOR);
    ini_close(&i);
}

static void i08_sessions_and_connections(void **state)
{
    struct ini a, b;
    assert_int_equal(ini_connect(&a, "127.0.0.1", fix.port), 0);
    a.tsih = 4711; /* a session that is not */
    assert_true(ini_login(&a, NAME, TGTFIX_TARGET, NULL, 0) >= 0);
    assert_int_equal(a.login_status, TGT_LOGIN_NO_SESSION);
    ini_close(&a);
    tgtfix_login(&fix, &a, NAME);
    assert_int_equal(ini_connect(&b, "127.0.0.1", fix.port), 0);
    b.tsih = a.tsih; /* one that is, of another initiator */
    assert_true(ini_login(&b, NAME ":stranger", TGTFIX_TARGET, NULL, 0) >= 0);
    assert_int_equal(b.login_status, TGT_LOGIN_NO_SESSION);
    ini_close(&b);
    inix_ready(&a);
    tgtfix_login(&fix, &b, NAME); /* the same ISID: the session is replaced */
    assert_int_equal(ini_recv(&a, (uint8_t[TGT_BHS_LEN]){0}, inix_seg, sizeof inix_seg), -EPIPE);
    ini_close(&a);
    ini_close(&b);
    tgtfix_wait_sessions(&fix, 1);
}

static void i09_before_the_end_of_login(void **state)
{
    static const enum tgt_opcode ops[] = {TGT_OP_NOP_OUT, TGT_OP_SCSI_CMD, TGT_OP_TMF, TGT_OP_TEXT, TGT_OP_DATA_OUT, TGT_OP_LOGOUT, TGT_OP_SNACK};
    for (size_t k = 0; k < GR_ARRAY_LEN(ops); k++) {
        uint8_t b[TGT_BHS_LEN];
        struct ini i;
        assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
        if (k % 2) /* in the middle of one, or before it */
            assert_true(ini_login_request(&i, 1, 1, 0, NAMES, sizeof NAMES) >= 0);
        tgt_bhs_start(b, ops[k], TGT_FINAL, 1, 0);
        assert_int_equal(ini_send(&i, b, NULL, 0), 0);
        assert_int_equal(ini_recv(&i, b, inix_seg, sizeof inix_seg), -EPIPE);
        ini_close(&i);
    }
}

/* A command in the same segment as the last login request is the session's first. */
static void i10_glued(void **state)
{
    uint8_t b[2 * TGT_BHS_LEN + sizeof NAMES + 4] = {0}, tur[6] = {0};
    struct ini i;
    assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
    tgt_bhs_start(b, TGT_OP_LOGIN, 0x87, 0, sizeof NAMES);
    b[0] |= TGT_IMMEDIATE;
    gr_put_be32(b + 24, i.cmdsn);
    memcpy(b + TGT_BHS_LEN, NAMES, sizeof NAMES);
    size_t at = TGT_BHS_LEN + sizeof NAMES + tgt_pad4(sizeof NAMES);
    ini_cmd_bhs(&i, b + at, tur, 6, TGT_FINAL, 0);
    assert_int_equal(ini_send_raw(&i, b, at + TGT_BHS_LEN), 0);
    assert_true(ini_recv(&i, b, inix_seg, sizeof inix_seg) >= 0);
    assert_int_equal(gr_get_be16(b + 36), 0);
    inix_expect(&i, b, TGT_OP_SCSI_RSP);
    ini_close(&i);
    tgtfix_wait_sessions(&fix, 1);
}

static void discover(struct ini *i)
{
    static const char keys[] = "InitiatorName=" NAME "\0SessionType=Discovery";
    assert_int_equal(ini_connect(i, "127.0.0.1", fix.port), 0);
    assert_int_equal(ini_login_request(i, 1, 3, 1, keys, sizeof keys) & 0x83, 0x83);
    assert_int_equal(i->login_status, 0);
}

static void i11_discovery_sends_scsi(void **state)
{
    uint8_t b[TGT_BHS_LEN], tur[6] = {0};
    struct ini i;
    discover(&i);
    ini_cmd_bhs(&i, b, tur, 6, TGT_FINAL, 0);
    assert_int_equal(ini_send(&i, b, NULL, 0), 0);
    int r = ini_recv(&i, b, inix_seg, sizeof inix_seg);
    assert_true(r == -EPIPE || tgt_bhs_opcode(b) == TGT_OP_REJECT);
    ini_close(&i);
}

struct rule {
    const char *disk, *initiator;
};

/* An access list with one name. */
static int allow(struct tgtfix *f, void *arg)
{
    const struct rule *rule = arg;
    const struct gr_rpc_method *m = tgt_service;
    json_t *ret = NULL, *params = json_pack("{s:s,s:[s]}", "disk", rule->disk, "allow", rule->initiator);
    while (strcmp(m->name, "lun.acl") != 0)
        m++;
    int r = m->fn(f->server, NULL, params, &ret, NULL);
    json_decref(ret);
    json_decref(params);
    return r;
}

/* What an initiator may not use, it does not hear of. */
static void i12_send_targets(void **state)
{
    static const char *const asks[] = {"SendTargets=All", OWN, "SendTargets=iqn.2026-11.local.granary:t:nothing", "SendTargets="};
    for (int round = 0; round < 2; round++) {
        for (size_t k = 0; k < GR_ARRAY_LEN(asks); k++) {
            uint8_t b[TGT_BHS_LEN];
            struct ini i;
            discover(&i);
            tgt_bhs_start(b, TGT_OP_TEXT, TGT_FINAL, 9, 0);
            gr_put_be32(b + 20, TGT_TAG_NONE);
            assert_int_equal(ini_send(&i, b, asks[k], (uint32_t)strlen(asks[k]) + 1), 0);
            memset(inix_seg, 0, 256);
            int n = inix_expect(&i, b, TGT_OP_TEXT_RSP);
            bool named = n > 0 && strstr((char *)inix_seg, TGTFIX_TARGET);
            assert_int_equal(named, !round && k < 2);
            ini_close(&i);
        }
        assert_int_equal(tgtfix_call(&fix, allow, &(struct rule){"t/disk", round ? "iqn.2026-11.local.granary:alive" : "iqn.2026-11.local.granary:witness"}), 0);
    }
}

static void i13_numbers(void **state)
{
    static const char *const bad[] = {"-1", "0x", "18446744073709551616", "4294967296", "Yes,No", "", " 65536", "65536 ", "0b11", "1e5", "511"};
    for (size_t k = 0; k < GR_ARRAY_LEN(bad); k++) {
        char pair[64];
        int n = snprintf(pair, sizeof pair, "MaxBurstLength=%s", bad[k]);
        const char *answer = said(pair, (size_t)n + 1, "MaxBurstLength");
        if (strcmp(answer, "Reject") != 0 && strcmp(answer, "!") != 0)
            fail_msg("'%s' was answered '%s'", bad[k], answer);
    }
    assert_string_equal(SAID("InitialR2T=Yes,No", "InitialR2T"), "Reject");
    assert_string_equal(SAID("MaxBurstLength=0x10000", "MaxBurstLength"), "65536");
}

static void i14_first_burst_above_max(void **state)
{
    assert_string_equal(SAID("MaxBurstLength=8192\0FirstBurstLength=65536", "FirstBurstLength"), "8192");
    assert_string_equal(SAID("FirstBurstLength=65536\0MaxBurstLength=8192", "MaxBurstLength"), "8192");
}

/* Where a disk is, is told only to who may use it. */
static void i15_redirect_after_access(void **state)
{
    static const char keys[] = "InitiatorName=" NAME "\0TargetName=" TGTFIX_ELSEWHERE "\0SessionType=Normal";
    assert_int_equal(try_login(1, 3, 1, keys, sizeof keys), TGT_LOGIN_MOVED);
    assert_int_equal(tgtfix_call(&fix, allow, &(struct rule){"t/elsewhere", NAME ":another"}), 0);
    assert_int_equal(try_login(1, 3, 1, keys, sizeof keys), TGT_LOGIN_FORBIDDEN);
}

#define CASE(f) {#f, f, setup, teardown, NULL}
TGTFIX_MAIN(NULL, NULL,
    CASE(i01_long_keys_and_values), CASE(i02_many_keys), CASE(i03_lengths), CASE(i04_malformed_text), CASE(i05_keys_twice),
    CASE(i06_continuations), CASE(i07_stages), CASE(i08_sessions_and_connections), CASE(i09_before_the_end_of_login), CASE(i10_glued),
    CASE(i11_discovery_sends_scsi), CASE(i12_send_targets), CASE(i13_numbers), CASE(i14_first_burst_above_max),
    CASE(i15_redirect_after_access))
