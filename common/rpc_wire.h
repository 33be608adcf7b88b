/* The frames of common/rpc.h on one connected socket; used by rpc_client.c and rpc_server.c only. */
#ifndef GR_RPC_WIRE_H
#define GR_RPC_WIRE_H
#include "common/buf.h"
#include "common/rpc.h"
#define RPC_HEADER 8            /* "GRP1", be32 length of the body */
#define RPC_MAX_DEPTH 64        /* nested arrays and objects: the JSON parser recurses on a fiber's stack */
#define RPC_LOOK_MS 200         /* how often what is done for another call looks whether its caller is gone */
#define RPC_MAX_VALUES (1 << 20) /* elements and members of one frame: a parsed value takes some 60 bytes */

/* Look for one frame at the start of @p. Returns 1 and fills *ret (new reference) and *ret_used (bytes of the frame);
 * 0 when more bytes are needed (*ret_used: how many in all); -GR_EPROTO for what is no frame. Pure. */
int rpc_frame_decode(const char *p, size_t len, size_t *ret_used, json_t **ret, struct gr_err *err);
/* Append @obj as a frame. -EMSGSIZE: longer than GR_RPC_MAX. */
int rpc_frame_encode(json_t *obj, struct gr_buf *out);

struct rpc_wire {
    int rfd, wfd; /* the same socket twice, so that reader and writers can wait for it side by side */
    struct gr_buf in;
    struct gr_fmutex write_lock;
    bool dead; /* nothing goes out any more */
    bool left; /* somebody else goes on with the socket: it is not shut down */
    struct gr_fiber *reader; /* that waits for bytes */
    bool readable;
};
/* Takes @fd, also on failure. */
int rpc_wire_init(struct rpc_wire *w, int fd);
void rpc_wire_done(struct rpc_wire *w);
/* In a fiber: next frame. 1 and *ret; 0 the peer has closed; negative: broken. One reader at a time. */
int rpc_wire_recv(struct rpc_wire *w, json_t **ret, struct gr_err *err);
/* In a fiber: send @obj, taking its reference; suspends while the peer is slow. -EPIPE: peer is gone; -EMSGSIZE. */
int rpc_wire_send(struct rpc_wire *w, json_t *obj);
/* The same for the caller of @of (may be NULL): when he is gone, a slow peer is waited for no longer, and the connection is over. -GR_ECANCELED. */
int rpc_wire_send_for(struct rpc_wire *w, const struct gr_rpc_call *of, json_t *obj);
/* Wake reader and writers: they find the connection closed. */
void rpc_wire_shutdown(struct rpc_wire *w);
/* The same, but the peer does not notice: somebody has a copy of the socket, and goes on with what is in the buffer now. */
void rpc_wire_leave(struct rpc_wire *w);
#endif
