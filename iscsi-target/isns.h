/* Registration of our targets with an iSNS server (RFC 4171), so that initiators of a large site find them.
 *
 * All that initiators may see (what is not masked) is registered as one entity with the addresses of our portals, again when it changes
 * and before the server would forget it, and taken off at the end. A server that does not answer is tried again; nothing else waits for
 * it. iSNS proves nothing to anybody: it says where targets are, and access lists and CHAP rule who may use them.
 * Thread rule: as iscsi-target/target.h. */
#ifndef TGT_ISNS_H
#define TGT_ISNS_H
#include "common/err.h"
#include <stddef.h>
#include <stdint.h>

struct tgt_server;
struct tgt_isns;
/* Register what @s serves with the server "HOST[:PORT]" (3205) as @entity. Returns at once. -EINVAL: no such address can be. */
int tgt_isns_start(struct tgt_server *s, const char *server, const char *entity, struct tgt_isns **ret, struct gr_err *err);
/* (fiber) Take it off the server, a few seconds at most, and end. NULL allowed. */
void tgt_isns_stop(struct tgt_isns *i);
/* Portals or targets are others now: it is looked at once. NULL allowed. */
void tgt_isns_look(struct tgt_isns *i);
/* How many targets the server holds for us; -1: it does not answer. */
int tgt_isns_registered(const struct tgt_isns *i);

/* ---- messages: isns_msg.c. Plain functions ---- */
enum tgt_isns_function { ISNS_DEV_ATTR_REG = 0x0001, ISNS_DEV_DEREG = 0x0004, ISNS_RESPONSE = 0x8000 };
enum tgt_isns_tag { /* RFC 4171 section 6 */
    ISNS_DELIMITER = 0, ISNS_ENTITY = 1, ISNS_PROTOCOL = 2, ISNS_PORTAL_IP = 16, ISNS_PORTAL_PORT = 17, ISNS_NAME = 32, ISNS_NODE_TYPE = 33, ISNS_ALIAS = 34
};
#define ISNS_HEADER 12u
#define ISNS_PAYLOAD_MAX 65532u
struct tgt_isns_msg { /* zeroed, then tgt_isns_begin() */
    uint8_t bytes[ISNS_HEADER + ISNS_PAYLOAD_MAX];
    size_t len;
    int full; /* something did not fit */
};
void tgt_isns_begin(struct tgt_isns_msg *m, uint16_t function, int replace, uint16_t transaction);
void tgt_isns_bytes(struct tgt_isns_msg *m, uint32_t tag, const void *data, size_t len);
void tgt_isns_number(struct tgt_isns_msg *m, uint32_t tag, uint32_t value);
void tgt_isns_text(struct tgt_isns_msg *m, uint32_t tag, const char *text);
void tgt_isns_end(struct tgt_isns_msg *m); /* the length is filled in */
/* Status of the answer to @function and @transaction in @p (header and payload): 0 or an iSNS status; -GR_EPROTO: it is none. */
int tgt_isns_status(const uint8_t *p, size_t len, uint16_t function, uint16_t transaction);
/* Payload bytes that follow the header @p; -GR_EPROTO: no header of ours. */
int tgt_isns_payload(const uint8_t p[ISNS_HEADER]);
#endif
