#include "iscsi-target/login.h"
#include "common/cleanup.h"
#include <stdlib.h>

void tgt_login_init(struct tgt_login *l)
{
    memset(l, 0, offsetof(struct tgt_login, out_buf));
    memset(&l->out, 0, sizeof *l - offsetof(struct tgt_login, out));
    l->out = (struct tgt_text_out){l->out_buf, 0, sizeof l->out_buf, false};
    l->list_ttt = TGT_TAG_NONE;
}

static void start_answer(struct tgt_login *l)
{
    uint8_t *b = l->rsp;
    tgt_bhs_start(b, TGT_OP_LOGIN_RSP, 0, l->itt, 0);
    memcpy(b + 8, l->isid, TGT_ISID_LEN);
    gr_put_be16(b + 14, l->tsih);
    tgt_bhs_sns(b, l->statsn, l->cmdsn, l->cmdsn);
}

static enum tgt_login_act fail(struct tgt_login *l, unsigned status)
{
    start_answer(l);
    gr_put_be16(l->rsp + 36, (uint16_t)status);
    if (status != TGT_LOGIN_MOVED)
        l->out.len = 0;
    gr_put_be24(l->rsp + 5, (uint32_t)l->out.len);
    return TGT_ACT_FAIL;
}

/* Answer with what was collected; move to the next stage when both sides are ready. */
static enum tgt_login_act answer(struct tgt_login *l)
{
    if (l->out.overflow)
        return fail(l, TGT_LOGIN_INITIATOR);
    bool may_move = l->authenticated || !l->need_chap;
    bool move = l->transit && may_move;
    start_answer(l);
    l->rsp[1] = (uint8_t)(l->csg << 2 | (move ? TGT_LOGIN_TRANSIT | l->nsg : 0));
    gr_put_be24(l->rsp + 5, (uint32_t)l->out.len);
    l->statsn++;
    if (!move)
        return TGT_ACT_REPLY;
    l->csg = l->nsg;
    if (l->csg != 3)
        return TGT_ACT_REPLY;
    l->phase = LOGIN_FULL;
    tgt_nego_finish(&l->nego);
    if (!l->discovery)
        return TGT_ACT_HAND_OVER;
    gr_put_be16(l->rsp + 14, 1); /* a discovery session needs some TSIH; nothing refers to it */
    return TGT_ACT_REPLY;
}

static const char *find(const struct tgt_login *l, const char *key)
{
    for (int i = 0; i < l->n_pairs; i++)
        if (!strcmp(l->pairs[i].key, key))
            return l->pairs[i].value;
    return NULL;
}

/* Names of RFC 7143 4.2.7: no control bytes or blanks; case folded (the profile maps to lower case). */
static bool take_name(char ret[TGT_NAME_MAX + 1], const char *value)
{
    size_t len = strlen(value);
    if (!len || len > TGT_NAME_MAX)
        return false;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)value[i];
        if (c <= ' ' || c == 0x7f || c == '"' || c == '\\')
            return false;
        ret[i] = (char)(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
    }
    ret[len] = 0;
    return true;
}

static enum tgt_login_act identify(struct tgt_login *l)
{
    const char *initiator = find(l, "InitiatorName"), *target = find(l, "TargetName"), *type = find(l, "SessionType");
    if (!initiator)
        return fail(l, TGT_LOGIN_MISSING);
    if (!take_name(l->initiator, initiator))
        return fail(l, TGT_LOGIN_INITIATOR);
    if (type && strcmp(type, "Discovery") && strcmp(type, "Normal"))
        return fail(l, TGT_LOGIN_NO_SESSION_TYPE);
    l->discovery = type && !strcmp(type, "Discovery");
    if (!l->discovery && !target)
        return fail(l, TGT_LOGIN_MISSING);
    if (target && !take_name(l->target, target))
        return fail(l, TGT_LOGIN_NOT_FOUND);
    if (l->tsih && l->discovery)
        return fail(l, TGT_LOGIN_NO_SESSION);
    tgt_nego_init(&l->nego, l->discovery);
    l->nego.joining = l->tsih != 0;
    l->waiting = true;
    return TGT_ACT_ASK;
}

static bool choose_method(struct tgt_login *l, const char *list)
{
    if (l->has_auth_method)
        return false;
    l->has_auth_method = true;
    if (l->need_chap && tgt_text_list_has(list, "CHAP")) {
        l->chap_step = 1;
        tgt_text_add(&l->out, "AuthMethod", "CHAP");
        return true;
    }
    if (l->need_chap || !tgt_text_list_has(list, "None"))
        return false;
    tgt_text_add(&l->out, "AuthMethod", "None");
    return true;
}

/* Which of our algorithms are in CHAP_A (decimal numbers). */
static uint32_t algorithms(const char *list)
{
    uint32_t algs = 0;
    static const struct {
        const char *text;
        unsigned number;
    } known[] = {{"5", 5}, {"7", 7}, {"8", 8}};
    for (size_t i = 0; i < GR_ARRAY_LEN(known); i++)
        if (tgt_text_list_has(list, known[i].text))
            algs |= 1u << known[i].number;
    return algs;
}

static bool take_response(struct tgt_login *l, const char *name, const char *response)
{
    const char *id = find(l, "CHAP_I"), *challenge = find(l, "CHAP_C");
    size_t len = strlen(name);
    int n = tgt_text_binary(response, l->chap_response, sizeof l->chap_response);
    if (!len || len >= sizeof l->chap_name || n <= 0 || !id != !challenge)
        return false;
    memcpy(l->chap_name, name, len + 1);
    l->chap_response_len = (uint32_t)n;
    l->mutual = id != NULL;
    if (!l->mutual)
        return true;
    unsigned long num;
    n = tgt_text_binary(challenge, l->mutual_challenge, sizeof l->mutual_challenge);
    if (tgt_text_number(id, 255, &num) < 0 || n <= 0)
        return false;
    l->mutual_id = (uint8_t)num;
    l->mutual_challenge_len = (uint32_t)n;
    return true;
}

static bool is_chap(const char *key)
{
    return !strncmp(key, "CHAP_", 5);
}

static bool is_identity(const char *key)
{
    return !strcmp(key, "InitiatorName") || !strcmp(key, "TargetName") || !strcmp(key, "SessionType") || !strcmp(key, "InitiatorAlias");
}

/* The CHAP step that this request asks for. */
static enum tgt_login_act chap(struct tgt_login *l)
{
    const char *algs = find(l, "CHAP_A"), *name = find(l, "CHAP_N"), *response = find(l, "CHAP_R");
    if (l->csg != 0)
        return fail(l, TGT_LOGIN_INITIATOR);
    if (algs && l->chap_step == 1) {
        l->chap_algs = algorithms(algs);
        if (!l->chap_algs)
            return fail(l, TGT_LOGIN_AUTH);
        l->waiting = true;
        return TGT_ACT_CHAP_START;
    }
    if (name && response && !algs && l->chap_step == 2) {
        if (!take_response(l, name, response))
            return fail(l, TGT_LOGIN_AUTH);
        l->waiting = true;
        l->chap_step = 3;
        return TGT_ACT_CHAP_VERIFY;
    }
    return fail(l, TGT_LOGIN_INITIATOR);
}

/* Who it is was said in the first request, and asked of the parent: it may be said again, not changed. */
static bool same_identity(const struct tgt_login *l, const struct tgt_text_pair *p)
{
    char name[TGT_NAME_MAX + 1];
    if (!strcmp(p->key, "InitiatorName"))
        return take_name(name, p->value) && !strcmp(name, l->initiator);
    if (!strcmp(p->key, "TargetName"))
        return take_name(name, p->value) && !strcmp(name, l->target);
    return strcmp(p->key, "SessionType") != 0 || !strcmp(p->value, l->discovery ? "Discovery" : "Normal");
}

/* FirstBurstLength may not exceed MaxBurstLength, whichever was written first. */
static void order(struct tgt_login *l)
{
    for (int i = 1; i < l->n_pairs; i++) {
        struct tgt_text_pair p = l->pairs[i];
        if (strcmp(p.key, "MaxBurstLength") != 0)
            continue;
        l->pairs[i] = l->pairs[0];
        l->pairs[0] = p;
    }
}

/* Answer every pair of the request; called once the identity is accepted. */
static enum tgt_login_act process(struct tgt_login *l)
{
    bool wants_chap = false;
    order(l);
    for (int i = 0; i < l->n_pairs; i++) {
        const struct tgt_text_pair *p = &l->pairs[i];
        if (is_identity(p->key)) {
            if (!same_identity(l, p))
                return fail(l, TGT_LOGIN_INITIATOR);
            continue;
        }
        if (is_chap(p->key)) {
            wants_chap = true;
            continue;
        }
        if (!strcmp(p->key, "AuthMethod")) {
            if (l->csg != 0)
                return fail(l, TGT_LOGIN_INITIATOR);
            if (!choose_method(l, p->value))
                return fail(l, TGT_LOGIN_AUTH);
            continue;
        }
        int r = tgt_nego_key(&l->nego, p, &l->out);
        if (r < 0)
            return fail(l, TGT_LOGIN_INITIATOR);
        if (!r)
            tgt_text_add(&l->out, p->key, "NotUnderstood");
    }
    if (l->need_chap && !l->authenticated && !l->chap_step && (l->csg == 1 || l->transit))
        return fail(l, TGT_LOGIN_AUTH);
    if (!l->first_done && !l->discovery)
        tgt_text_add_num(&l->out, "TargetPortalGroupTag", l->group);
    l->first_done = true;
    if (l->csg == 1 && !l->nego.declared) {
        l->nego.declared = true;
        tgt_text_add_num(&l->out, "MaxRecvDataSegmentLength", l->discovery ? TGT_LOGIN_DSL : TGT_MAX_DSL);
        if (l->alias[0] && !l->discovery)
            tgt_text_add(&l->out, "TargetAlias", l->alias);
    }
    return wants_chap ? chap(l) : answer(l);
}

/* Add a data segment to the text; 1: whole, 0: more to come, negative: too long. */
static int collect(struct tgt_login *l, const void *data, uint32_t len, bool more)
{
    if (len > TGT_LOGIN_TEXT_MAX - l->text_len)
        return -GR_EPROTO;
    if (len)
        memcpy(l->text + l->text_len, data, len);
    l->text_len += len;
    if (more)
        return 0;
    l->text[l->text_len] = 0;
    l->n_pairs = tgt_text_split(l->text, l->text_len, l->pairs);
    l->text_len = 0;
    return l->n_pairs < 0 ? l->n_pairs : 1;
}

static bool stages_ok(const struct tgt_login *l, const uint8_t *bhs)
{
    unsigned csg = bhs[1] >> 2 & 3u, nsg = bhs[1] & 3u;
    bool transit = bhs[1] & TGT_LOGIN_TRANSIT;
    if (csg > 1 || (l->phase != LOGIN_FIRST && csg != l->csg))
        return false;
    if (transit && (bhs[1] & TGT_CONTINUE))
        return false;
    return !transit || (nsg > csg && nsg != 2);
}

static void take_first(struct tgt_login *l, const uint8_t *bhs)
{
    memcpy(l->isid, bhs + 8, TGT_ISID_LEN);
    l->tsih = gr_get_be16(bhs + 14);
    l->cid = gr_get_be16(bhs + 20);
    l->cmdsn = tgt_bhs_cmdsn(bhs);
    l->statsn = gr_get_be32(bhs + 28); /* ours starts where the initiator expects it */
}

static enum tgt_login_act login_request(struct tgt_login *l, const uint8_t *bhs, const void *data, uint32_t len)
{
    if (++l->pdus > TGT_LOGIN_PDUS_MAX || l->waiting)
        return TGT_ACT_CLOSE;
    if (l->phase == LOGIN_FIRST)
        take_first(l, bhs);
    else if (memcmp(l->isid, bhs + 8, TGT_ISID_LEN) || gr_get_be16(bhs + 14) != l->tsih || gr_get_be16(bhs + 20) != l->cid)
        return fail(l, TGT_LOGIN_INVALID_DURING);
    l->itt = tgt_bhs_itt(bhs);
    l->out.len = 0;
    l->out.overflow = false;
    if (bhs[3] > 0)
        return fail(l, TGT_LOGIN_VERSION);
    if (!stages_ok(l, bhs))
        return fail(l, TGT_LOGIN_INITIATOR);
    l->csg = bhs[1] >> 2 & 3u;
    bool first = l->phase == LOGIN_FIRST;
    l->transit = bhs[1] & TGT_LOGIN_TRANSIT;
    l->nsg = bhs[1] & 3u;
    int r = collect(l, data, len, bhs[1] & TGT_CONTINUE);
    if (r < 0)
        return fail(l, TGT_LOGIN_INITIATOR);
    if (!r) /* an empty answer asks for the rest (T is not set together with C) */
        return answer(l);
    l->phase = LOGIN_STAGES;
    return first || !l->initiator[0] ? identify(l) : process(l);
}

enum tgt_login_act tgt_login_asked(struct tgt_login *l, unsigned status, bool need_chap, unsigned group, const char *alias, const char *address)
{
    l->waiting = false;
    l->group = group;
    if (status == TGT_LOGIN_MOVED)
        tgt_text_add(&l->out, "TargetAddress", address);
    if (status)
        return fail(l, status);
    l->need_chap = need_chap;
    size_t len = GR_MIN(strlen(alias), sizeof l->alias - 1);
    memcpy(l->alias, alias, len);
    l->alias[len] = 0;
    return process(l);
}

enum tgt_login_act tgt_login_challenge(struct tgt_login *l, unsigned alg, uint8_t id, const uint8_t *challenge, uint32_t len)
{
    char hex[2 * 64 + 3];
    l->waiting = false;
    if (!alg || len > 64)
        return fail(l, TGT_LOGIN_AUTH);
    l->chap_step = 2;
    tgt_text_hex(challenge, len, hex);
    tgt_text_add_num(&l->out, "CHAP_A", alg);
    tgt_text_add_num(&l->out, "CHAP_I", id);
    tgt_text_add(&l->out, "CHAP_C", hex);
    return answer(l);
}

enum tgt_login_act tgt_login_verified(struct tgt_login *l, unsigned status, const char *name, const uint8_t *response, uint32_t len)
{
    char hex[2 * 64 + 3];
    l->waiting = false;
    if (status || len > 64 || (l->mutual && !len))
        return fail(l, status ? status : TGT_LOGIN_AUTH);
    l->authenticated = true;
    if (l->mutual) {
        tgt_text_hex(response, len, hex);
        tgt_text_add(&l->out, "CHAP_N", name);
        tgt_text_add(&l->out, "CHAP_R", hex);
    }
    return answer(l);
}

/* ---- the full feature phase of a discovery session: SendTargets, NOP, logout ---- */

uint32_t tgt_login_list_room(const struct tgt_login *l)
{
    return GR_MIN(l->nego.params.max_send_dsl, (uint32_t)sizeof l->out_buf);
}

static void full_answer(struct tgt_login *l, enum tgt_opcode op, uint8_t flags, const uint8_t *bhs, uint32_t dsl)
{
    tgt_bhs_start(l->rsp, op, flags, tgt_bhs_itt(bhs), dsl);
    gr_put_be32(l->rsp + 20, TGT_TAG_NONE);
    tgt_bhs_sns(l->rsp, l->statsn++, l->cmdsn, l->cmdsn + 1);
}

static enum tgt_login_act reject(struct tgt_login *l, const uint8_t *bhs, enum tgt_reject reason)
{
    tgt_bhs_start(l->rsp, TGT_OP_REJECT, TGT_FINAL, TGT_TAG_NONE, TGT_BHS_LEN);
    l->rsp[2] = (uint8_t)reason;
    tgt_bhs_sns(l->rsp, l->statsn++, l->cmdsn, l->cmdsn + 1);
    memcpy(l->out_buf, bhs, TGT_BHS_LEN);
    l->out.len = TGT_BHS_LEN;
    return TGT_ACT_FAIL;
}

static enum tgt_login_act text_request(struct tgt_login *l, const uint8_t *bhs, const void *data, uint32_t len)
{
    bool more = bhs[1] & TGT_CONTINUE;
    l->text_itt = tgt_bhs_itt(bhs);
    if (tgt_bhs_ttt(bhs) != TGT_TAG_NONE && tgt_bhs_ttt(bhs) == l->list_ttt && !len) {
        l->waiting = true;
        return TGT_ACT_LIST; /* the next piece */
    }
    int r = collect(l, data, len, more);
    if (r < 0)
        return reject(l, bhs, TGT_REJECT_PROTOCOL);
    l->out.len = 0;
    l->out.overflow = false;
    if (!r) {
        full_answer(l, TGT_OP_TEXT_RSP, 0, bhs, 0);
        gr_put_be32(l->rsp + 20, 1);
        return TGT_ACT_REPLY;
    }
    const char *send = find(l, "SendTargets");
    if (send && *send && strlen(send) <= TGT_NAME_MAX) {
        memcpy(l->list_target, send, strlen(send) + 1);
        l->list_off = 0;
        l->waiting = true;
        return TGT_ACT_LIST;
    }
    for (int i = 0; i < l->n_pairs; i++)
        tgt_text_add(&l->out, l->pairs[i].key, send ? "Reject" : "NotUnderstood");
    if (l->out.overflow)
        return reject(l, bhs, TGT_REJECT_PROTOCOL);
    full_answer(l, TGT_OP_TEXT_RSP, TGT_FINAL, bhs, (uint32_t)l->out.len);
    return TGT_ACT_REPLY;
}

enum tgt_login_act tgt_login_listed(struct tgt_login *l, const char *piece, uint32_t len, bool more)
{
    uint8_t request[TGT_BHS_LEN];
    l->waiting = false;
    if (len > tgt_login_list_room(l))
        return TGT_ACT_CLOSE;
    memcpy(l->out_buf, piece, len);
    l->out.len = len;
    l->list_off += len;
    l->list_ttt = more ? l->list_off : TGT_TAG_NONE;
    tgt_bhs_start(request, TGT_OP_TEXT, 0, l->text_itt, 0);
    full_answer(l, TGT_OP_TEXT_RSP, more ? TGT_CONTINUE : TGT_FINAL, request, len);
    gr_put_be32(l->rsp + 20, l->list_ttt);
    return TGT_ACT_REPLY;
}

static enum tgt_login_act nop_out(struct tgt_login *l, const uint8_t *bhs, const void *data, uint32_t len)
{
    if (tgt_bhs_itt(bhs) == TGT_TAG_NONE)
        return TGT_ACT_CLOSE; /* an answer to a NOP-In that was never sent */
    len = GR_MIN(len, tgt_login_list_room(l));
    if (len)
        memcpy(l->out_buf, data, len);
    l->out.len = len;
    full_answer(l, TGT_OP_NOP_IN, TGT_FINAL, bhs, len);
    return TGT_ACT_REPLY;
}

static enum tgt_login_act discovery_request(struct tgt_login *l, const uint8_t *bhs, const void *data, uint32_t len)
{
    if (l->waiting)
        return TGT_ACT_CLOSE;
    if (!tgt_bhs_immediate(bhs)) {
        if (tgt_bhs_cmdsn(bhs) != l->cmdsn)
            return TGT_ACT_CLOSE;
        l->cmdsn++;
    }
    l->out.len = 0;
    switch (tgt_bhs_opcode(bhs)) {
    case TGT_OP_TEXT:
        return text_request(l, bhs, data, len);
    case TGT_OP_NOP_OUT:
        return nop_out(l, bhs, data, len);
    case TGT_OP_LOGOUT:
        full_answer(l, TGT_OP_LOGOUT_RSP, TGT_FINAL, bhs, 0);
        return TGT_ACT_FAIL; /* answered, then closed */
    default:
        return reject(l, bhs, TGT_REJECT_PROTOCOL);
    }
}

enum tgt_login_act tgt_login_pdu(struct tgt_login *l, const uint8_t *bhs, const void *data, uint32_t len)
{
    if (tgt_bhs_ahs_len(bhs))
        return TGT_ACT_CLOSE;
    if (l->phase == LOGIN_FULL)
        return l->discovery ? discovery_request(l, bhs, data, len) : TGT_ACT_CLOSE;
    if (tgt_bhs_opcode(bhs) != TGT_OP_LOGIN)
        return TGT_ACT_CLOSE;
    return login_request(l, bhs, data, len);
}
