/* The login state machine and its text, as the login process runs it: any sequence of requests, the parent answering whatever
 * the input says. Input: records of {flags byte 1, kind, 16-bit length, data}. */
#include "common/cleanup.h"
#include "iscsi-target/login.h"
#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static enum tgt_login_act answer(struct tgt_login *l, enum tgt_login_act a, uint8_t how)
{
    static const uint8_t bytes[64] = {1, 2, 3};
    static const char list[] = "TargetName=iqn.t\0TargetAddress=127.0.0.1:3260,1";
    switch (a) {
    case TGT_ACT_ASK:
        return tgt_login_asked(l, how & 8 ? TGT_LOGIN_MOVED : how & 4 ? TGT_LOGIN_NOT_FOUND : 0, how & 1, 1, "disk", "127.0.0.1:1");
    case TGT_ACT_CHAP_START:
        return tgt_login_challenge(l, how & 1 ? 0 : 5, how, bytes, 16u + (how & 31));
    case TGT_ACT_CHAP_VERIFY:
        return tgt_login_verified(l, how & 1 ? 0 : TGT_LOGIN_AUTH, "us", bytes, how & 63);
    case TGT_ACT_LIST:
        return tgt_login_listed(l, list, sizeof list, how & 1);
    case TGT_ACT_REPLY:
    case TGT_ACT_FAIL:
    case TGT_ACT_CLOSE:
    case TGT_ACT_HAND_OVER:
        return a;
    }
    return TGT_ACT_CLOSE;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tgt_login l;
    tgt_login_init(&l);
    while (size >= 4) {
        uint8_t bhs[TGT_BHS_LEN] = {0}, how = data[1];
        uint32_t len = GR_MIN(gr_get_be16(data + 2), TGT_LOGIN_DSL);
        data += 4;
        size -= 4;
        len = (uint32_t)GR_MIN((size_t)len, size);
        static const uint8_t ops[] = {TGT_OP_LOGIN, TGT_OP_TEXT, TGT_OP_NOP_OUT, TGT_OP_LOGOUT};
        bhs[0] = (uint8_t)(ops[how >> 6] | TGT_IMMEDIATE);
        bhs[1] = data[-4];
        if (how & 0x20)
            gr_put_be32(bhs + 20, gr_get_be32(l.rsp + 20)); /* the tag that we gave */
        gr_put_be24(bhs + 5, len);
        enum tgt_login_act a = tgt_login_pdu(&l, bhs, data, len);
        for (int i = 0; i < 3; i++)
            a = answer(&l, a, how);
        if (l.out.len > sizeof l.out_buf)
            abort();
        if (a == TGT_ACT_HAND_OVER && (!tgt_params_ok(&l.nego.params) || !l.initiator[0] || !l.target[0]))
            abort();
        if (a != TGT_ACT_REPLY)
            break;
        data += len;
        size -= len;
    }
    return 0;
}
