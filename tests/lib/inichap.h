/* CHAP as an initiator does it (RFC 7143 12.1.3), step by step so that tests can do any of them wrong. */
#ifndef TEST_INICHAP_H
#define TEST_INICHAP_H
#include "tests/lib/ini.h"

struct inichap {
    unsigned alg;
    uint8_t id, challenge[64];
    size_t len;
};
/* On a connection: names and CHAP_A=@algs; takes the challenge. The login status. */
unsigned inichap_ask(struct ini *i, const char *initiator, const char *target, const char *algs, struct inichap *ret);
/* The proof of @user with @secret, and @extra pairs ("CHAP_I=1\0CHAP_C=0x…"); the login status. */
unsigned inichap_prove(struct ini *i, const struct inichap *c, const char *user, const char *secret, const char *extra, size_t extra_len);
/* The same with CHAP_R as given. -1: the connection was closed without an answer. */
int inichap_say(struct ini *i, const char *user, const char *response, const char *extra, size_t extra_len);
#endif
