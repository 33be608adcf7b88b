/* A unix socket that carries JSON messages, one per line, in both directions: the common part of QMP and guest agent. */
#ifndef HV_STREAM_H
#define HV_STREAM_H
#include "common/fiber.h"
#include <jansson.h>

struct hv_stream;
struct hv_stream_opts {
    struct gr_loop *loop;
    size_t max_line; /* bytes of one message from the peer */
    bool resync;     /* guest agent: see hv_lines, and messages that are no JSON objects are passed over, not fatal */
    /* A message came (a JSON object, borrowed). Called in the stream's reader fiber; must neither suspend nor close the stream. */
    void (*on_message)(void *arg, json_t *msg);
    /* No message will come any more: the peer left or broke the protocol. Once, never after hv_stream_close(). */
    void (*on_end)(void *arg, const char *why);
    void *arg;
};
/* (fiber) Connect to @path. */
int hv_stream_open(const struct hv_stream_opts *opts, const char *path, struct hv_stream **ret, struct gr_err *err);
/* (fiber) Send @msg (borrowed) as one line, after a byte 0xFF with @mark; with the descriptor @fd, which stays the caller's, or -1.
 * -EPIPE: the peer is gone; -ETIMEDOUT. */
int hv_stream_send(struct hv_stream *s, bool mark, json_t *msg, int fd, uint64_t timeout_ms);
/* (fiber) Close and free; NULL allowed. Not from inside the callbacks. */
void hv_stream_close(struct hv_stream *s);
#endif
