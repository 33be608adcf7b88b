#include "tests/lib/inichap.h"
#include "iscsi-target/chap.h"
#include "iscsi-target/iscsi_text.h"
#include "tests/lib/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

unsigned inichap_ask(struct ini *i, const char *initiator, const char *target, const char *algs, struct inichap *ret)
{
    char keys[1024];
    int n = snprintf(keys, sizeof keys, "InitiatorName=%s%cTargetName=%s%cSessionType=Normal%cAuthMethod=CHAP", initiator, 0, target, 0, 0) + 1;
    memset(ret, 0, sizeof *ret);
    if (ini_login_request(i, 0, 0, 0, keys, (size_t)n) < 0)
        return 0xffff;
    if (i->login_status)
        return i->login_status;
    assert_string_equal(ini_key(i, "AuthMethod"), "CHAP");
    n = snprintf(keys, sizeof keys, "CHAP_A=%s", algs) + 1;
    if (ini_login_request(i, 0, 0, 0, keys, (size_t)n) < 0)
        return 0xffff;
    if (i->login_status)
        return i->login_status;
    ret->alg = (unsigned)strtoul(ini_key(i, "CHAP_A"), NULL, 10);
    ret->id = (uint8_t)strtoul(ini_key(i, "CHAP_I"), NULL, 10);
    int len = tgt_text_binary(ini_key(i, "CHAP_C"), ret->challenge, sizeof ret->challenge);
    assert_true(len >= 16);
    ret->len = (size_t)len;
    return 0;
}

int inichap_say(struct ini *i, const char *user, const char *response, const char *extra, size_t extra_len)
{
    static char keys[12000];
    int n = snprintf(keys, sizeof keys, "CHAP_N=%s%cCHAP_R=%s", user, 0, response) + 1;
    memcpy(keys + n, extra ? extra : "", extra_len);
    if (ini_login_request(i, 0, 3, 1, keys, (size_t)n + extra_len) < 0)
        return -1;
    return i->login_status;
}

unsigned inichap_prove(struct ini *i, const struct inichap *c, const char *user, const char *secret, const char *extra, size_t extra_len)
{
    uint8_t hash[TGT_CHAP_HASH_MAX];
    char hex[2 * TGT_CHAP_HASH_MAX + 3];
    assert_int_equal(tgt_chap_response(c->alg, c->id, secret, c->challenge, c->len, hash), 0);
    tgt_text_hex(hash, tgt_chap_len(c->alg), hex);
    return (unsigned)inichap_say(i, user, hex, extra, extra_len);
}
