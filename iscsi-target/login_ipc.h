/* Messages between the login process and its parent, over a SOCK_SEQPACKET pair: one message is one packet of exactly the
 * size of its type. Both ends run the same program, so the layout is the compiler's; every field is checked all the same:
 * the login process talks to strangers and is not trusted. A malformed message ends the login process (a new one starts).
 *
 * Each login under way has a slot; @gen tells apart the users of one slot, so that a late answer meets nobody else. */
#ifndef TGT_LOGIN_IPC_H
#define TGT_LOGIN_IPC_H
#include "iscsi-target/login.h"
#include "common/strangers.h"

#define TGT_IPC_MAGIC 0x67726c36u /* changes with every change of this file */
#define TGT_LOGIN_FLAG "--granary-login-process"
#define TGT_LIST_PIECE 8192u
#define TGT_HAND_OVER_TEXT 8192u
#define TGT_SLOTS_MAX GR_STRANGERS_MAX

enum tgt_msg_type {
    /* to the parent */
    TGT_MSG_ASK = 1,
    TGT_MSG_CHAP_START,
    TGT_MSG_CHAP_VERIFY,
    TGT_MSG_HAND_OVER, /* carries the socket */
    TGT_MSG_LIST,
    TGT_MSG_GONE, /* the slot's connection has ended */
    TGT_MSG_PONG,
    TGT_MSG_QUIET, /* nobody was let in since that DEAF, and no login is under way any more */
    /* to the login process */
    TGT_MSG_CONFIG,
    TGT_MSG_LISTEN,   /* carries a listening socket */
    TGT_MSG_UNLISTEN, /* close that one, and all logins that came through it */
    TGT_MSG_DEAF,     /* close all of them; logins under way go on. It listens again when it gets one */
    TGT_MSG_ASKED,
    TGT_MSG_CHALLENGE,
    TGT_MSG_VERIFIED,
    TGT_MSG_LISTED,
    TGT_MSG_PING,
    TGT_MSG_TYPES
};
struct tgt_msg {
    uint32_t magic, type, slot, gen;
    union {
        struct {
            char initiator[TGT_NAME_MAX + 1], target[TGT_NAME_MAX + 1];
            uint32_t discovery, portal, loopback;
            uint8_t isid[TGT_ISID_LEN];
            uint16_t tsih, cid; /* tsih: the session it wants to join, 0: a new one */
            char address[64]; /* peer, for messages */
            char local[64];   /* "host:port" that it reached: the TargetAddress of a listing */
        } ask;
        struct {
            uint32_t algs;
        } chap_start;
        struct {
            char name[256];
            uint8_t response[64];
            uint32_t response_len, mutual, id, challenge_len;
            uint8_t challenge[TGT_CHAP_MAX];
        } chap_verify;
        struct {
            struct tgt_params params;
            uint8_t isid[TGT_ISID_LEN];
            uint16_t cid;
            uint32_t itt, cmdsn, statsn;
            uint32_t flags; /* byte 1 of the last login response */
            char address[64];
            uint32_t text_len;
            char text[TGT_HAND_OVER_TEXT];
        } hand_over;
        struct {
            char target[TGT_NAME_MAX + 1];
            uint32_t off, room;
        } list;
        struct {
            uint32_t max_half_open, per_address, timeout_ms;
        } config;
        struct {
            uint32_t portal; /* its id: of UNLISTEN too */
        } listen;
        struct {
            uint32_t turn; /* which DEAF: a late answer to an older one says nothing */
        } deaf; /* of QUIET too */
        struct {
            uint32_t status, need_chap, group;
            char alias[TGT_NAME_MAX + 1];
            char address[300];
        } asked;
        struct {
            uint32_t alg, id, len;
            uint8_t bytes[64];
        } challenge;
        struct {
            uint32_t status, len;
            char name[256];
            uint8_t response[64];
        } verified;
        struct {
            uint32_t len, more;
            char text[TGT_LIST_PIECE];
        } listed;
    } u;
};
/* Send; @fd >= 0 goes along. 0 or -errno. @flags: of sendmsg. */
int tgt_msg_send(int sock, struct tgt_msg *m, enum tgt_msg_type type, int fd, int flags);
/* Receive one; *ret_fd: -1 or a descriptor (close-on-exec). 1: a message; 0: the peer is gone; -EAGAIN: none waits;
 * -GR_EPROTO: malformed (nothing kept). */
int tgt_msg_recv(int sock, struct tgt_msg *m, int *ret_fd);
/* True when the char array @s of @size bytes holds a NUL. */
bool tgt_msg_str_ok(const char *s, size_t size);
#endif
