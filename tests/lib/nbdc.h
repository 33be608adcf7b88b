/* A scripted NBD client for unit tests: says exactly the bytes it is told to, right or wrong. Runs in a fiber of the same
 * loop as the server under test; every wait ends after five seconds with a failed assertion. */
#ifndef NBDC_H
#define NBDC_H
#include "common/bdev.h"
#include "common/fiber.h"
#include "iscsi-target/mover.h"
#include "iscsi-target/mover_proto.h"

struct nbdc_rep { /* one option reply */
    uint32_t option, type, len;
    uint8_t data[5000];
};
struct nbdc_chunk { /* one simple reply or one chunk of a structured one */
    bool simple;
    uint32_t error; /* simple */
    uint16_t flags, type;
    uint64_t cookie;
    uint32_t len;
    uint8_t *data; /* of a chunk; owned by the caller */
};
int nbdc_connect(struct mover_server *s); /* a socketpair, one end given to the server; returns the other */
void nbdc_send(int fd, const void *buf, size_t len);
void nbdc_recv(int fd, void *buf, size_t len);
bool nbdc_closed(int fd); /* the server closes without another byte */
void nbdc_hello(int fd, uint32_t client_flags); /* reads the greeting, sends the flags */
void nbdc_option(int fd, uint32_t option, const void *data, size_t len);
void nbdc_reply(int fd, struct nbdc_rep *ret);
uint32_t nbdc_ask(int fd, uint32_t option, const void *data, size_t len, struct nbdc_rep *ret); /* first reply; its type */
size_t nbdc_name_info(uint8_t *out, const char *name, int n_infos, ...);                        /* data of GO and INFO */
size_t nbdc_meta(uint8_t *out, const char *name, int n_queries, ...);                           /* data of *_META_CONTEXT */
/* hello + STRUCTURED_REPLY (if @structured) + contexts (NULL: none) + GO; returns size and transmission flags. */
int nbdc_go(struct mover_server *s, const char *name, bool structured, const char *context, uint64_t *ret_size, uint16_t *ret_flags);
void nbdc_request(int fd, uint16_t flags, uint16_t type, uint64_t cookie, uint64_t off, uint32_t len);
void nbdc_chunk(int fd, bool structured, uint32_t simple_len, struct nbdc_chunk *ret);
uint32_t nbdc_status(int fd, bool structured); /* reads one reply without data; its error (0: success) */
#endif
