/* The list of bad inputs (docs/iscsi-hostile.md), 16 to 25: CHAP. */
#include "common/cleanup.h"
#include "iscsi-target/chap.h"
#include "iscsi-target/guesses.h"
#include "iscsi-target/iscsi_text.h"
#include "tests/lib/inichap.h"
#include "tests/lib/inix.h"
#include "tests/lib/test.h"
#include "tests/lib/witness.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NAME "iqn.2026-11.local.granary:chap"
#define SECRET "a-secret-of-joe"
#define OURS "our-own-secret-here"
static struct tgtfix fix;
static struct witness *witness;

struct chap_rule {
    const char *disk, *user, *secret, *mutual_user, *mutual_secret;
};

static int set_chap(struct tgtfix *f, void *arg)
{
    const struct chap_rule *c = arg;
    const struct gr_rpc_method *m = tgt_service;
    json_t *ret = NULL, *params = json_pack("{s:s,s:s*,s:s*,s:s*,s:s*,s:b}", "disk", c->disk, "user", c->user, "secret", c->secret, "mutual-user",
                                            c->mutual_user, "mutual-secret", c->mutual_secret, "off", !c->user);
    while (strcmp(m->name, "lun.chap") != 0)
        m++;
    int r = m->fn(f->server, NULL, params, &ret, NULL);
    json_decref(ret);
    json_decref(params);
    return r;
}

static int setup(void **state)
{
    (void)state;
    memset(&fix, 0, sizeof fix);
    fix.redirect = "10.1.2.3:3260"; /* "t/elsewhere" exists, and needs proofs; the witness' disk does not */
    fix.elsewhere.here = true;
    tgtfix_start(&fix);
    witness = witness_start(&fix);
    assert_int_equal(tgtfix_call(&fix, set_chap, &(struct chap_rule){"t/elsewhere", "joe", SECRET, "us", OURS}), 0);
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

static void ask(struct ini *i, const char *algs, struct inichap *c)
{
    assert_int_equal(ini_connect(i, "127.0.0.1", fix.port), 0);
    assert_int_equal(inichap_ask(i, NAME, TGTFIX_ELSEWHERE, algs, c), 0);
}

/* One login from start to end: its status. */
static unsigned login(const char *host, const char *port, const char *secret)
{
    struct ini i;
    struct inichap c;
    assert_int_equal(ini_connect(&i, host, port), 0);
    unsigned status = inichap_ask(&i, NAME, TGTFIX_ELSEWHERE, "5,7,8", &c);
    if (!status)
        status = inichap_prove(&i, &c, "joe", secret, NULL, 0);
    ini_close(&i);
    return status;
}

#define EXTRA 300u
static size_t mutual(char ret[EXTRA], unsigned id, const uint8_t *challenge, size_t len)
{
    char hex[2 * 64 + 3];
    tgt_text_hex(challenge, len, hex);
    int n = snprintf(ret, EXTRA, "CHAP_I=%u", id) + 1;
    return (size_t)(n + snprintf(ret + n, EXTRA - (size_t)n, "CHAP_C=%s", hex) + 1);
}

/* Our own challenge thrown back, on the same connection or on another: never answered with a proof. */
static void i16_reflected_challenges(void **state)
{
    struct ini a, b;
    struct inichap ca, cb;
    char extra[EXTRA];
    ask(&a, "5", &ca);
    ask(&b, "5", &cb);
    size_t n = mutual(extra, ca.id, ca.challenge, ca.len);
    assert_int_equal(inichap_prove(&b, &cb, "joe", SECRET, extra, n), TGT_LOGIN_AUTH);
    assert_null(ini_key(&b, "CHAP_R"));
    ini_close(&b);
    assert_int_equal(inichap_prove(&a, &ca, "joe", SECRET, extra, n), TGT_LOGIN_AUTH);
    ini_close(&a);
    ask(&a, "7", &ca); /* a challenge of its own is answered with the right proof */
    uint8_t mine[16] = {1, 2, 3}, want[TGT_CHAP_HASH_MAX];
    char hex[2 * TGT_CHAP_HASH_MAX + 3];
    n = mutual(extra, 77, mine, sizeof mine);
    assert_int_equal(inichap_prove(&a, &ca, "joe", SECRET, extra, n), 0);
    assert_int_equal(tgt_chap_response(7, 77, OURS, mine, sizeof mine, want), 0);
    tgt_text_hex(want, 32, hex);
    assert_string_equal(ini_key(&a, "CHAP_R"), hex);
    assert_string_equal(ini_key(&a, "CHAP_N"), "us");
    ini_close(&a);
}

static void i17_i25_secrets(void **state)
{
    assert_true(tgtfix_call(&fix, set_chap, &(struct chap_rule){"t/elsewhere", "joe", SECRET, "us", SECRET}) < 0);
    assert_true(tgtfix_call(&fix, set_chap, &(struct chap_rule){"t/elsewhere", "joe", "eleven-char", "us", OURS}) < 0);
    assert_true(tgtfix_call(&fix, set_chap, &(struct chap_rule){"t/elsewhere", "joe", SECRET, "us", "eleven-char"}) < 0);
    assert_int_equal(login("127.0.0.1", fix.port, SECRET), 0); /* nothing was changed by it */
}

static void i18_responses(void **state)
{
    static char big[9000];
    static const char *const bad[] = {"0x", "0x00", "0xabc", "0xzz", "0b", "0b!!!!", "0bQQ", "1234", "", "0x00112233445566778899aabbccddee"};
    struct ini i;
    struct inichap c;
    for (size_t k = 0; k < GR_ARRAY_LEN(bad); k++) {
        ask(&i, "5", &c);
        assert_int_equal(inichap_say(&i, "joe", bad[k], NULL, 0), TGT_LOGIN_AUTH);
        ini_close(&i);
        if (k == 8) /* guesses are counted */
            usleep(1100000u * TGT_GUESS_S);
    }
    for (int base64 = 0; base64 < 2; base64++) { /* as long as a value may be, and far longer */
        for (size_t len = 34; len < 8000; len = len * 3 + 1) {
            ask(&i, "5", &c);
            memset(big, base64 ? 'A' : '1', len);
            memcpy(big, base64 ? "0b" : "0x", 2);
            big[len] = 0;
            int r = inichap_say(&i, "joe", big, NULL, 0);
            if (r != TGT_LOGIN_AUTH && r != TGT_LOGIN_INITIATOR && r != TGT_LOGIN_UNAVAILABLE)
                fail_msg("%zu bytes were answered %d", len, r);
            ini_close(&i);
        }
    }
}

static void i19_identifiers(void **state)
{
    static const char *const bad[] = {"CHAP_I=256\0CHAP_C=0x0102030405060708", "CHAP_I=-1\0CHAP_C=0x0102030405060708", "CHAP_I=\0CHAP_C=0x0102030405060708",
                                      "CHAP_I=1\0CHAP_C=0x\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "CHAP_I=1\0NOTHING=0x010203040506070"};
    for (size_t k = 0; k < GR_ARRAY_LEN(bad); k++) {
        struct ini i;
        struct inichap c;
        ask(&i, "5", &c);
        size_t first = strlen(bad[k]) + 1;
        assert_int_equal(inichap_prove(&i, &c, "joe", SECRET, bad[k], first + strlen(bad[k] + first) + 1), TGT_LOGIN_AUTH);
        ini_close(&i);
    }
}

static void i20_no_authentication(void **state)
{
    static const char none[] = "InitiatorName=" NAME "\0TargetName=" TGTFIX_ELSEWHERE "\0SessionType=Normal\0AuthMethod=None";
    static const char names[] = "InitiatorName=" NAME "\0TargetName=" TGTFIX_ELSEWHERE "\0SessionType=Normal";
    static const char chap[] = "InitiatorName=" NAME "\0TargetName=" TGTFIX_ELSEWHERE "\0SessionType=Normal\0AuthMethod=CHAP";
    struct {
        unsigned csg, nsg;
        int transit;
        const char *keys;
        size_t len;
    } ways[] = {{0, 3, 1, none, sizeof none}, {0, 1, 1, none, sizeof none}, {1, 3, 1, names, sizeof names}, {0, 3, 1, names, sizeof names}, {1, 1, 0, names, sizeof names}};
    struct ini i;
    for (size_t k = 0; k < GR_ARRAY_LEN(ways); k++) {
        assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
        assert_true(ini_login_request(&i, ways[k].csg, ways[k].nsg, ways[k].transit, ways[k].keys, ways[k].len) >= 0);
        assert_int_equal(i.login_status, TGT_LOGIN_AUTH);
        ini_close(&i);
    }
    assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0); /* CHAP was promised, and the proof left out */
    assert_true(ini_login_request(&i, 0, 0, 0, chap, sizeof chap) >= 0);
    assert_int_equal(i.login_status, 0);
    int r = ini_login_request(&i, 0, 3, 1, NULL, 0);
    assert_true(r < 0 || i.login_status || (r & 0x80) == 0);
    if (r >= 0 && !i.login_status)
        r = ini_login_request(&i, 1, 3, 1, NULL, 0);
    assert_true(r < 0 || i.login_status);
    ini_close(&i);
}

/* No proof was needed when the login began, and one is when it ends. */
static void late_rule(void **state)
{
    static const char none[] = "InitiatorName=" NAME "\0TargetName=" TGTFIX_ELSEWHERE "\0SessionType=Normal\0AuthMethod=None";
    struct ini i;
    for (int late = 0; late < 2; late++) {
        assert_int_equal(tgtfix_call(&fix, set_chap, &(struct chap_rule){.disk = "t/elsewhere"}), 0);
        assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
        assert_true(ini_login_request(&i, 0, 1, 1, none, sizeof none) >= 0);
        assert_int_equal(i.login_status, 0);
        if (late)
            assert_int_equal(tgtfix_call(&fix, set_chap, &(struct chap_rule){"t/elsewhere", "joe", SECRET, "us", OURS}), 0);
        int r = ini_login_request(&i, 1, 3, 1, NULL, 0);
        assert_int_equal(r < 0, late);
        ini_close(&i);
    }
}

static void i21_algorithms(void **state)
{
    static const char *const bad[] = {"6", "0", "256", "5x", "", "6,9,55"};
    struct ini i;
    struct inichap c;
    for (size_t k = 0; k < GR_ARRAY_LEN(bad); k++) {
        assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
        assert_int_equal(inichap_ask(&i, NAME, TGTFIX_ELSEWHERE, bad[k], &c), TGT_LOGIN_AUTH);
        ini_close(&i);
    }
    ask(&i, "6,5,9", &c);
    assert_int_equal(c.alg, 5);
    ini_close(&i);
    ask(&i, "5,7,8", &c); /* the strongest */
    assert_int_equal(c.alg, 8);
    assert_int_equal(inichap_prove(&i, &c, "joe", SECRET, NULL, 0), 0);
    ini_close(&i);
}

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Comparing takes no longer for a digest that is wrong at its end than at its beginning: 10^5 of each, in batches that alternate; the
 * medians of the batches. A comparison that stops early differs by tens of percent. */
static void i22_timing(void **state)
{
    enum { BATCHES = 500, BATCH = 200 };
    static uint64_t took[2][BATCHES];
    uint8_t want[32], got[2][32];
    double ratio = 0;
    for (unsigned k = 0; k < sizeof want; k++)
        want[k] = got[0][k] = got[1][k] = (uint8_t)(k * 37);
    got[0][0] ^= 1;
    got[1][31] ^= 1;
    for (int tries = 0; tries < 5; tries++) {
        unsigned equal = 0;
        for (unsigned b = 0; b < 2 * BATCHES; b++) {
            uint64_t start = now_ns();
            for (unsigned k = 0; k < BATCH; k++)
                equal += tgt_chap_equal(want, got[b & 1], sizeof want);
            took[b & 1][b / 2] = now_ns() - start;
        }
        assert_int_equal(equal, 0);
        qsort(took[0], BATCHES, sizeof took[0][0], by_size);
        qsort(took[1], BATCHES, sizeof took[0][0], by_size);
        ratio = (double)took[0][BATCHES / 2] / (double)took[1][BATCHES / 2];
        if (ratio > 0.93 && ratio < 1.07)
            return;
    }
    fail_msg("first byte wrong: %.2f of the time of last byte wrong", ratio);
}

/* Challenges and identifiers are fresh, also after a restart of the target. */
static void i23_challenges(void **state)
{
    enum { EACH = 20 };
    static uint8_t seen[2 * EACH][64];
    unsigned n = 0;
    for (int run = 0; run < 2; run++) {
        for (int k = 0; k < EACH; k++) {
            struct ini i;
            struct inichap c;
            ask(&i, "8", &c);
            memcpy(seen[n], c.challenge, c.len);
            for (unsigned o = 0; o < n; o++)
                assert_memory_not_equal(seen[o], seen[n], c.len);
            n++;
            ini_close(&i);
        }
        if (!run) {
            teardown(NULL);
            setup(NULL);
        }
    }
}

/* Too many wrong proofs: none is looked at any more, right or wrong, from that address and for that disk; for a while. */
static void i24_guessing(void **state)
{
    enum { AT_ONCE = TGT_GUESSES };
    static struct ini i[AT_ONCE];
    struct inichap c[AT_ONCE];
    uint64_t start = now_ns();
    for (int k = 0; k < AT_ONCE; k++)
        ask(&i[k], "5", &c[k]);
    for (int k = 0; k < AT_ONCE; k++) { /* sent at once, answered late */
        uint8_t b[TGT_BHS_LEN];
        static const char wrong[] = "CHAP_N=joe\0CHAP_R=0x00112233445566778899aabbccddeeff";
        tgt_bhs_start(b, TGT_OP_LOGIN, 0x83, i[k].itt, 0);
        b[0] |= TGT_IMMEDIATE;
        memcpy(b + 8, i[k].isid, TGT_ISID_LEN);
        gr_put_be32(b + 24, i[k].cmdsn);
        gr_put_be32(b + 28, i[k].expstatsn);
        assert_int_equal(ini_send(&i[k], b, wrong, sizeof wrong), 0);
    }
    for (int k = 0; k < AT_ONCE; k++) {
        uint8_t b[TGT_BHS_LEN];
        assert_true(ini_recv(&i[k], b, inix_seg, sizeof inix_seg) >= 0);
        assert_int_equal(gr_get_be16(b + 36), TGT_LOGIN_AUTH);
        ini_close(&i[k]);
    }
    assert_true(now_ns() - start >= 1000000000u);
    assert_int_equal(login("127.0.0.1", fix.port, SECRET), TGT_LOGIN_UNAVAILABLE);
    assert_int_equal(login("127.0.0.1", fix.port, "no-such-secret"), TGT_LOGIN_UNAVAILABLE);
    assert_int_equal(login("::1", fix.port2, SECRET), 0); /* another address */
    usleep(1100000u * TGT_GUESS_S);
    assert_int_equal(login("127.0.0.1", fix.port, SECRET), 0); /* and that one again; the count starts anew */
    assert_int_equal(login("127.0.0.1", fix.port, "no-such-secret"), TGT_LOGIN_AUTH);
    assert_int_equal(login("127.0.0.1", fix.port, SECRET), 0);
}

/* The buckets by themselves: ports do not count, an IPv6 /64 is one, others are not touched. */
static void guesses(void **state)
{
    static struct tgt_guesses g = {.key = {0x1234567890abcdefull, 0xfedcba0987654321ull}};
    uint64_t s = 1000000000;
    for (unsigned k = 1; k <= TGT_GUESSES; k++) {
        char address[32];
        snprintf(address, sizeof address, "10.0.0.1:%u", 1000 + k);
        assert_true(tgt_guess_allowed(&g, address, "d", s));
        assert_int_equal(tgt_guess_wrong(&g, address, "d", s), k == TGT_GUESSES);
    }
    assert_false(tgt_guess_allowed(&g, "10.0.0.1:5", "d", s));
    assert_true(tgt_guess_allowed(&g, "10.0.0.2:5", "d", s));
    assert_true(tgt_guess_allowed(&g, "10.0.0.1:5", "e", s));
    assert_false(tgt_guess_allowed(&g, "10.0.0.1:5", "d", s + (TGT_GUESS_S - 1) * s));
    assert_true(tgt_guess_allowed(&g, "10.0.0.1:5", "d", s + TGT_GUESS_S * s));
    assert_true(tgt_guess_wrong(&g, "10.0.0.1:5", "d", s + TGT_GUESS_S * s)); /* one, and none again */
    tgt_guess_right(&g, "10.0.0.1:5", "d");
    assert_true(tgt_guess_allowed(&g, "10.0.0.1:5", "d", s));
    for (unsigned k = 0; k < TGT_GUESSES; k++)
        tgt_guess_wrong(&g, k % 2 ? "[2001:db8::1]:7" : "[2001:db8::ffff:1]:8", "d", s);
    assert_false(tgt_guess_allowed(&g, "[2001:db8::2]:9", "d", s));
    assert_true(tgt_guess_allowed(&g, "[2001:db8:0:1::2]:9", "d", s));
}

#define CASE(f) {#f, f, setup, teardown, NULL}
TGTFIX_MAIN(NULL, NULL,
    CASE(i16_reflected_challenges), CASE(i17_i25_secrets), CASE(i18_responses), CASE(i19_identifiers), CASE(i20_no_authentication),
    CASE(late_rule), CASE(i21_algorithms), TEST(i22_timing), CASE(i23_challenges), CASE(i24_guessing), TEST(guesses))
