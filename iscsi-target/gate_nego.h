/* What a client may say before TLS, as a state machine without I/O: its flags, then options, of which only STARTTLS and ABORT are answered;
 * the data of all others is thrown away unread. Nothing is remembered but whether it wants no zeroes. */
#ifndef GATE_NEGO_H
#define GATE_NEGO_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GATE_HELLO_LEN 18u
#define GATE_ANSWER_MAX 96u
enum gate_act {
    GATE_READ,  /* send the answer if there is one (answer_len), then read the next gate_nego_wants() bytes */
    GATE_TLS,   /* send the answer, the handshake begins with the next byte */
    GATE_LEFT,  /* send the answer, then close: it said good-bye */
    GATE_WRONG, /* close; reason says why */
};
struct gate_nego {
    bool no_zeroes;
    uint8_t answer[GATE_ANSWER_MAX];
    uint32_t answer_len;
    const char *reason;
    /* private */
    enum { GATE_FLAGS, GATE_OPTION, GATE_DATA } state;
    uint8_t head[16];
    uint32_t got, option, left, n_options;
};
/* Begin: the answer is the greeting. */
void gate_nego_init(struct gate_nego *n);
/* How many bytes may be read now (at least 1): none of the handshake behind STARTTLS is among them. */
size_t gate_nego_wants(const struct gate_nego *n);
/* What was read, at most gate_nego_wants() bytes. */
enum gate_act gate_nego_feed(struct gate_nego *n, const uint8_t *bytes, size_t len);
#endif
