/* Access rules, CHAP, persistent reservations as a state machine, CDB decoding, sense data, ranges. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "iscsi-target/chap.h"
#include "iscsi-target/iscsi_text.h"
#include "iscsi-target/lun_access.h"
#include "iscsi-target/pr.h"
#include "iscsi-target/scsi.h"
#include "tests/lib/test.h"
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define ME "iqn.2026-11.org.example:me"

static int allow(struct tgt_access *a, const char *disk, const char *name, struct gr_err *err)
{
    json_t *names = json_pack("[s]", name);
    int r = tgt_access_acl(a, disk, names, NULL, NULL, err);
    json_decref(names);
    return r;
}

static int deny(struct tgt_access *a, const char *disk, const char *name, struct gr_err *err)
{
    json_t *names = json_pack("[s]", name);
    int r = tgt_access_acl(a, disk, NULL, names, NULL, err);
    json_decref(names);
    return r;
}

static void rules(void **state)
{
    gr_auto_free char *path = test_path("access.json");
    struct tgt_access *a = NULL;
    struct gr_err err = {0};
    struct stat st;
    assert_int_equal(tgt_access_open(path, NULL, &a, &err), 0);
    assert_false(tgt_access_any(a));
    assert_true(tgt_access_admits(a, "ds/a", ME, true));
    assert_false(tgt_access_admits(a, "ds/a", ME, false)); /* no rule: loopback only */
    assert_int_equal(allow(a, "ds/a", ME, &err), 0);
    assert_int_equal(allow(a, "ds/a", ME, &err), 0);
    assert_int_equal(allow(a, "ds/a", "bob", &err), -EINVAL);
    assert_int_equal(allow(a, "ds/a", "iqn.UPPER", &err), -EINVAL);
    assert_true(tgt_access_admits(a, "ds/a", ME, false));
    assert_true(tgt_access_admits(a, "ds/a@snap", ME, false)); /* a snapshot is ruled by its disk */
    assert_false(tgt_access_admits(a, "ds/a", ME "x", true));
    assert_true(tgt_access_admits(a, "ds/b", ME "x", true));
    assert_int_equal(allow(a, "ds/a", "iqn.vm:*", &err), 0);
    assert_true(tgt_access_admits(a, "ds/a", "iqn.vm:7", false));
    assert_int_equal(tgt_access_mask(a, "ds/a", true, NULL, &err), 0);
    assert_false(tgt_access_admits(a, "ds/a", ME, true));
    assert_int_equal(tgt_access_mask(a, "ds/a", false, NULL, &err), 0);
    assert_int_equal(deny(a, "ds/a", "iqn.none", &err), -ENOENT);
    assert_int_equal(deny(a, "ds/a", ME, &err), 0);
    assert_int_equal(deny(a, "ds/a", "iqn.vm:*", &err), 0);
    assert_false(tgt_access_admits(a, "ds/a", ME, true)); /* an empty list admits nobody */
    struct tgt_chap_secrets s = {.user = "u", .secret = "0123456789ab"}, got;
    assert_int_equal(tgt_access_set_chap(a, "*", &s, NULL, &err), 0);
    assert_true(tgt_access_chap(a, "ds/other", &got));
    assert_string_equal(got.secret, "0123456789ab");
    assert_true(tgt_access_admits(a, "ds/other", ME, false)); /* CHAP is a rule */
    s.secret = "short";
    assert_int_equal(tgt_access_set_chap(a, "ds/a", &s, NULL, &err), -EINVAL);
    assert_null(strstr(err.text, "short"));
    s = (struct tgt_chap_secrets){"u", "0123456789ab", "t", "0123456789ab"};
    assert_int_equal(tgt_access_set_chap(a, "ds/a", &s, NULL, &err), -EINVAL);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    tgt_access_free(a);
    assert_int_equal(tgt_access_open(path, NULL, &a, &err), 0); /* read back */
    assert_true(tgt_access_chap(a, "ds/other", &got));
    assert_false(tgt_access_admits(a, "ds/a", ME, true));
    tgt_access_free(a);
    static const char *const bad[] = {"{", "[]", "{\"disks\": 3}", "{\"version\": 2}", "{\"disks\": {\"a\": {\"initiators\": 1}}}",
                                      "{\"disks\": {\"a\": {\"chap\": {}}}}"};
    for (unsigned i = 0; i < GR_ARRAY_LEN(bad); i++) {
        assert_int_equal(gr_file_replace(path, bad[i], strlen(bad[i]), 0600, &err), 0);
        assert_true(tgt_access_open(path, NULL, &a, &err) < 0);
        assert_non_null(strstr(err.text, path));
    }
}

static void chap(void **state)
{
    uint8_t r[TGT_CHAP_HASH_MAX];
    char hex[2 * TGT_CHAP_HASH_MAX + 3];
    /* printf '\001secret-secret\252\273' | md5sum, sha256sum, openssl dgst -sha3-256 */
    assert_int_equal(tgt_chap_response(5, 1, "secret-secret", (const uint8_t *)"\xaa\xbb", 2, r), 0);
    tgt_text_hex(r, tgt_chap_len(5), hex);
    assert_string_equal(hex, "0xab0587295d58c5865802692c1cd794ff");
    assert_int_equal(tgt_chap_response(7, 1, "secret-secret", (const uint8_t *)"\xaa\xbb", 2, r), 0);
    tgt_text_hex(r, tgt_chap_len(7), hex);
    assert_string_equal(hex, "0xa100c61be4a3b70823025513ed63da3e9e295543b70b90e6225d77f9212ed19a");
    assert_int_equal(tgt_chap_response(8, 1, "secret-secret", (const uint8_t *)"\xaa\xbb", 2, r), 0);
    tgt_text_hex(r, tgt_chap_len(8), hex);
    assert_string_equal(hex, "0x1b8605c04728f078c0948ecc43056a1b095d5828131d0fd03f64e5cd6d14313c");
    assert_int_equal(tgt_chap_choose(1u << 5 | 1u << 7), 7);
    assert_int_equal(tgt_chap_choose(1u << 6), 0);
    assert_int_equal(tgt_chap_response(5, 1, "secret-secret", r, 1025, r), -GR_EPROTO);
}

/* ---- persistent reservations ---- */

static struct tgt_pr_state pr;
static struct tgt_pr_effect eff;
static struct tgt_nexus who[3] = {{"iqn.a", {1}}, {"iqn.b", {1}}, {"iqn.a", {2}}};

static uint32_t out(unsigned n, enum tgt_pr_action action, uint64_t key, uint64_t new_key, uint8_t type)
{
    struct tgt_pr_request rq = {.action = action, .type = type, .key = key, .new_key = new_key};
    return tgt_pr_apply(&pr, &who[n], &rq, &eff);
}

static void three_registered(void)
{
    memset(&pr, 0, sizeof pr);
    for (unsigned n = 0; n < 3; n++)
        assert_int_equal(out(n, PR_REGISTER, 0, n + 1, 0), 0);
}

static void pr_registration(void **state)
{
    three_registered();
    assert_int_equal(pr.generation, 3);
    assert_int_equal(out(0, PR_REGISTER, 9, 5, 0), TGT_CONFLICT); /* a wrong key */
    assert_int_equal(out(0, PR_REGISTER_IGNORE, 9, 5, 0), 0);
    assert_int_equal(tgt_pr_find(&pr, &who[0])->key, 5);
    assert_int_equal(out(0, PR_RESERVE, 1, 0, PR_WE), TGT_CONFLICT);
    assert_int_equal(out(0, PR_RESERVE, 5, 0, 2) >> 8, TGT_SENSE_INVALID_CDB);
    assert_int_equal(out(0, PR_REGISTER, 5, 0, 0), 0);
    assert_null(tgt_pr_find(&pr, &who[0]));
    assert_int_equal(out(0, PR_REGISTER, 0, 0, 0), 0);
    memset(&pr, 0, sizeof pr);
    for (unsigned k = 0; k < TGT_PR_MAX; k++) {
        struct tgt_nexus n = {"iqn.x", {(uint8_t)(k >> 8), (uint8_t)k}};
        struct tgt_pr_request rq = {.action = PR_REGISTER, .new_key = 1};
        assert_int_equal(tgt_pr_apply(&pr, &n, &rq, &eff), 0);
    }
    assert_int_equal(out(0, PR_REGISTER, 0, 1, 0) >> 8, TGT_SENSE_PR_RESOURCES);
}

static void pr_access(void **state)
{
    /* type, registered other may read / write, unregistered may read / write */
    static const struct {
        uint8_t type, reg_read, reg_write, un_read, un_write;
    } table[] = {{PR_WE, 1, 0, 1, 0}, {PR_EA, 0, 0, 0, 0}, {PR_WE_RO, 1, 1, 1, 0}, {PR_EA_RO, 1, 1, 0, 0}, {PR_WE_AR, 1, 1, 1, 0}, {PR_EA_AR, 1, 1, 0, 0}};
    for (unsigned i = 0; i < GR_ARRAY_LEN(table); i++) {
        three_registered();
        assert_int_equal(out(2, PR_REGISTER, 3, 0, 0), 0);
        assert_int_equal(out(0, PR_RESERVE, 1, 0, table[i].type), 0);
        assert_true(tgt_pr_allows(&pr, &who[0], true, true));
        assert_int_equal(tgt_pr_allows(&pr, &who[1], true, false), table[i].reg_read);
        assert_int_equal(tgt_pr_allows(&pr, &who[1], false, true), table[i].reg_write);
        assert_int_equal(tgt_pr_allows(&pr, &who[2], true, false), table[i].un_read);
        assert_int_equal(tgt_pr_allows(&pr, &who[2], false, true), table[i].un_write);
        assert_int_equal(out(1, PR_RESERVE, 2, 0, table[i].type), table[i].type >= PR_WE_AR ? 0 : TGT_CONFLICT);
        assert_int_equal(out(0, PR_RELEASE, 1, 0, table[i].type == PR_WE ? PR_EA : PR_WE) >> 8, TGT_SENSE_RELEASE_INVALID);
        assert_int_equal(out(0, PR_RELEASE, 1, 0, table[i].type), 0);
        assert_int_equal(eff.n, table[i].type >= PR_WE_RO ? 1 : 0); /* 2A/04 for the other registrant */
        assert_true(tgt_pr_allows(&pr, &who[2], true, true));
    }
}

static void pr_preempt(void **state)
{
    three_registered();
    assert_int_equal(out(0, PR_RESERVE, 1, 0, PR_EA), 0);
    assert_int_equal(out(1, PR_PREEMPT, 2, 99, PR_WE), TGT_CONFLICT);
    assert_int_equal(out(1, PR_PREEMPT, 2, 0, PR_WE) >> 8, TGT_SENSE_INVALID_PARAM);
    assert_int_equal(out(1, PR_PREEMPT, 2, 1, PR_WE), 0);
    assert_true(tgt_pr_holds(&pr, &who[1]));
    assert_int_equal(pr.type, PR_WE);
    assert_null(tgt_pr_find(&pr, &who[0]));
    assert_int_equal(eff.ua[0], TGT_UA_REG_PREEMPTED);
    assert_true(eff.removed[0]);
    assert_int_equal(out(2, PR_PREEMPT_ABORT, 3, 3, PR_WE), 0); /* its own key, not the holder's: nobody else goes */
    assert_non_null(tgt_pr_find(&pr, &who[1]));
    assert_int_equal(out(2, PR_CLEAR, 3, 0, 0), 0);
    assert_int_equal(pr.n, 0);
    assert_int_equal(pr.type, PR_NONE);
    assert_int_equal(eff.ua[0], TGT_UA_RES_PREEMPTED);
    three_registered();
    assert_int_equal(out(0, PR_RESERVE, 1, 0, PR_EA_AR), 0);
    assert_int_equal(out(1, PR_REGISTER, 2, 0, 0), 0); /* one registrant of several leaves: still reserved */
    assert_int_equal(pr.type, PR_EA_AR);
    assert_int_equal(out(2, PR_PREEMPT, 3, 0, PR_WE), 0); /* key 0: everybody else */
    assert_int_equal(pr.n, 1);
    assert_int_equal(pr.type, PR_WE);
    assert_int_equal(out(2, PR_REGISTER, 3, 0, 0), 0);
    assert_int_equal(pr.type, PR_NONE);
}

/* ---- CDBs and sense ---- */

static void cdbs(void **state)
{
    static const uint8_t r6[16] = {0x08, 0xff, 1, 2, 0}, r10[16] = {0x28, 0, 1, 2, 3, 4, 0, 5, 6}, r12[16] = {0xa8, 0, 1, 2, 3, 4, 5, 6, 7, 8},
                         r16[16] = {0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    assert_int_equal(tgt_cdb_lba(r6), 0x1f0102);
    assert_int_equal(tgt_cdb_blocks(r6), 256);
    assert_int_equal(tgt_cdb_lba(r10), 0x01020304);
    assert_int_equal(tgt_cdb_blocks(r10), 0x0506);
    assert_int_equal(tgt_cdb_blocks(r12), 0x05060708);
    assert_true(tgt_cdb_lba(r16) == 0x0102030405060708);
    assert_int_equal(tgt_cdb_blocks(r16), 0x090a0b0c);
    uint32_t sense;
    uint8_t cdb[16] = {0xff};
    assert_null(tgt_scsi_lookup(cdb, &sense));
    assert_int_equal(sense, TGT_SENSE_INVALID_OPCODE);
    cdb[0] = 0x9e;
    cdb[1] = 0x1f;
    assert_null(tgt_scsi_lookup(cdb, &sense));
    assert_int_equal(sense, TGT_SENSE_INVALID_CDB);
    for (unsigned i = 0; i < tgt_n_cmds; i++) /* every row is found by its own code */
        for (unsigned j = 0; j < i; j++)
            assert_false(tgt_cmds[i].op == tgt_cmds[j].op && tgt_cmds[i].sa == tgt_cmds[j].sa);
    uint8_t p[44];
    uint64_t info = 0x123456789aull;
    assert_int_equal(tgt_sense_encode(p, false, TGT_SENSE_INVALID_CDB, NULL, 7, true), 18);
    assert_int_equal(p[0], 0x70);
    assert_int_equal(p[2], 5);
    assert_int_equal(p[12], 0x24);
    assert_int_equal(p[15], 0xc0);
    assert_int_equal(p[17], 7);
    assert_int_equal(tgt_sense_encode(p, true, TGT_SENSE_MISCOMPARE, &info, -1, false), 20);
    assert_int_equal(p[0], 0x72);
    assert_int_equal(p[1], 0xe);
    assert_int_equal(p[7], 12);
    assert_true(gr_get_be64(p + 12) == info);
}

static unsigned went;
static void go(struct tgt_range *r)
{
    went++;
}

static void ranges(void **state)
{
    struct tgt_ranges rs = {0};
    struct tgt_range a = {.off = 0, .len = 10, .go = go}, b = {.off = 5, .len = 10, .go = go}, x = {.off = 8, .len = 4, .excl = true, .go = go},
                     c = {.off = 11, .len = 1, .go = go}, d = {.off = 20, .len = 1, .go = go};
    assert_true(tgt_range_begin(&rs, &a));
    assert_true(tgt_range_begin(&rs, &b)); /* plain ones overlap freely */
    assert_false(tgt_range_begin(&rs, &x));
    assert_false(tgt_range_begin(&rs, &c)); /* behind the exclusive one */
    assert_true(tgt_range_begin(&rs, &d));
    tgt_range_end(&rs, &a);
    assert_int_equal(went, 0);
    tgt_range_end(&rs, &b);
    assert_int_equal(went, 1);
    assert_true(x.active);
    tgt_range_end(&rs, &x);
    assert_int_equal(went, 2);
    tgt_range_seal(&rs, &c);
    assert_false(tgt_range_begin(&rs, &x));
    tgt_range_end(&rs, &x); /* gives up waiting */
    tgt_range_end(&rs, &c);
    tgt_range_end(&rs, &d);
    assert_int_equal(rs.n_excl, 0);
    assert_null(rs.active);
}

TEST_MAIN(TEST(rules), TEST(chap), TEST(pr_registration), TEST(pr_access), TEST(pr_preempt), TEST(cdbs), TEST(ranges))
