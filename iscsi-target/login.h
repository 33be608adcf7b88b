/* The login phase of one connection as a state machine without I/O (RFC 7143 sections 6 and 11.12 to 11.13): it eats
 * login and (in discovery sessions) text requests, and says what to do next. It runs in the login process, which holds no
 * secret: what depends on configuration is asked of the parent. */
#ifndef TGT_LOGIN_H
#define TGT_LOGIN_H
#include "iscsi-target/iscsi.h"
#include "iscsi-target/nego.h"
#include "iscsi-target/target.h"

#define TGT_LOGIN_DSL 8192u        /* largest data segment before the full feature phase */
#define TGT_LOGIN_TEXT_MAX 16384u  /* text of one exchange, over continuations */
#define TGT_LOGIN_ANSWER_MAX 8192u /* text of one answer */
#define TGT_LOGIN_PARENT_BYTES 12288u /* its share in the parent */
#define TGT_LOGIN_BYTES 65536u /* memory of ours that a connection may hold before it is logged in; the kernel queues a first window beside it */
#define TGT_CHAP_MAX 1024u         /* bytes of a binary CHAP value (RFC 7143 12.1.3) */
#define TGT_LOGIN_PDUS_MAX 64u     /* requests in one login */

enum tgt_login_act {
    TGT_ACT_REPLY,       /* send rsp and out, read the next request */
    TGT_ACT_FAIL,        /* send rsp and out, then close */
    TGT_ACT_CLOSE,       /* close without an answer */
    TGT_ACT_ASK,         /* ask the parent whether this initiator may use this target: tgt_login_asked() */
    TGT_ACT_CHAP_START,  /* ask for a challenge: tgt_login_challenge() */
    TGT_ACT_CHAP_VERIFY, /* have the response checked: tgt_login_verified() */
    TGT_ACT_HAND_OVER,   /* logged in: give the socket to the parent, which sends the last answer */
    TGT_ACT_LIST,        /* discovery: fetch the listing from list_off: tgt_login_listed() */
};
struct tgt_login {
    /* identity, valid from TGT_ACT_ASK on */
    char initiator[TGT_NAME_MAX + 1], target[TGT_NAME_MAX + 1];
    bool discovery;
    uint8_t isid[TGT_ISID_LEN];
    uint16_t tsih, cid;
    uint32_t itt, cmdsn, statsn;
    struct tgt_nego nego;
    /* CHAP, valid at TGT_ACT_CHAP_START / VERIFY */
    uint32_t chap_algs;               /* bit per IANA number offered (5, 7, 8) */
    char chap_name[256];
    uint8_t chap_response[64];
    uint32_t chap_response_len;
    bool mutual;                      /* the initiator wants us to answer its challenge */
    uint8_t mutual_id;
    uint8_t mutual_challenge[TGT_CHAP_MAX];
    uint32_t mutual_challenge_len;
    /* listing, valid at TGT_ACT_LIST */
    char list_target[TGT_NAME_MAX + 1]; /* "All" or a name */
    uint32_t list_off;
    /* answer */
    uint8_t rsp[TGT_BHS_LEN];
    char out_buf[TGT_LOGIN_ANSWER_MAX];
    struct tgt_text_out out;
    /* private */
    enum { LOGIN_FIRST, LOGIN_STAGES, LOGIN_FULL } phase;
    unsigned csg, nsg, pdus, group;
    bool transit, waiting;
    bool first_done, has_auth_method;
    bool need_chap, authenticated;
    int chap_step;
    char alias[TGT_NAME_MAX + 1];
    char text[TGT_LOGIN_TEXT_MAX + 1];
    uint32_t text_len;
    struct tgt_text_pair pairs[TGT_KEYS_MAX];
    int n_pairs;
    uint32_t text_itt, list_ttt;
};
void tgt_login_init(struct tgt_login *l);
/* One request: header and data segment (without padding). */
enum tgt_login_act tgt_login_pdu(struct tgt_login *l, const uint8_t *bhs, const void *data, uint32_t len);
/* The parent's answer to TGT_ACT_ASK. @status: tgt_login_status; @group: portal group tag; @address: TargetAddress of a redirect. */
enum tgt_login_act tgt_login_asked(struct tgt_login *l, unsigned status, bool need_chap, unsigned group, const char *alias, const char *address);
enum tgt_login_act tgt_login_challenge(struct tgt_login *l, unsigned alg, uint8_t id, const uint8_t *challenge, uint32_t len);
/* @status: tgt_login_status; @name and @response: ours, for mutual authentication (else len 0). */
enum tgt_login_act tgt_login_verified(struct tgt_login *l, unsigned status, const char *name, const uint8_t *response, uint32_t len);
/* @piece of the listing from list_off; @more: not the last. */
enum tgt_login_act tgt_login_listed(struct tgt_login *l, const char *piece, uint32_t len, bool more);
/* Largest piece of a listing that fits in one answer. */
uint32_t tgt_login_list_room(const struct tgt_login *l);
#endif
