/* Inside of the data mover; nobody else includes this. Files:
 *   mover_server.c   listening, limits, life of connections       mover_io.c      bytes: buffers, queue of replies
 *   mover_gate.c     the gate process, which speaks TLS for us     mover_keys.c    secrets and certificates: loading, signing
 *   mover_pki.c      making certificates                          acceptor.c      listening sockets
 *   mover_opt.c      parsing of options (pure, fuzzed)            mover_nego.c    negotiation of one connection
 *   mover_req.c      requests                                     mover_reply.c   replies
 *   mover_status.c   block status                                 mover_name.c    URLs
 *   mover_handover.c connections that go on in another process    mover_old_gate.c the gates that these go through
 *
 * Each connection has one fiber that reads: it negotiates, then reads requests and submits them. READ and WRITE complete
 * by callback into the connection's reply queue, which is written when the socket takes it; BLOCK_STATUS and CACHE run as
 * fibers of their own. A connection ends when its fiber ends, and the fiber ends only when no request is in flight. */
#ifndef MOVER_INT_H
#define MOVER_INT_H
#include "common/buf.h"
#include "common/fiber.h"
#include "common/acceptor.h"
#include "iscsi-target/gate_ipc.h"
#include "iscsi-target/mover_proof.h"
#include "iscsi-target/mover.h"
#include "iscsi-target/mover_proto.h"
#include <gnutls/x509.h>
#include <jansson.h>
#include <netinet/in.h>
#include <sys/socket.h>

#define MOVER_MAX_REQUEST (UINT32_C(32) << 20) /* bytes of one READ or WRITE */
#define MOVER_MAX_OPTION (UINT32_C(64) << 10)  /* option data that is looked at */
#define MOVER_MAX_OPTION_SKIP (UINT32_C(1) << 20) /* longer ones end the connection */
#define MOVER_IN_SIZE (64u << 10)              /* of the buffer that is received into */
#define MOVER_MAX_OPTIONS 64                   /* per connection */
#define MOVER_MAX_CONTEXTS 16
#define MOVER_MAX_EXTENTS 2048                 /* of one block-status reply and context */
#define MOVER_PER_ADDRESS 16                   /* negotiating connections */
#define MOVER_READ_CHUNKS 16                   /* data and hole chunks of one READ */
#define GATE_LEAVE_MS 1000u                    /* that a gate has to send what it has when the mover ends */
#define MOVER_MAX_SLOW 16                      /* BLOCK_STATUS and CACHE fibers per connection */

/* ---- mover_io.c: the bytes of one connection ---- */
/* One message of the reply queue; memory is the sender's until done(). */
struct mover_out {
    struct iovec *iov;
    int iovcnt;
    void (*done)(struct mover_out *out); /* sent or given up */
    struct mover_out *next;
};
struct mover_io {
    struct gr_loop *loop;
    int fd;
    int error; /* negative once the connection is broken: nothing more is read or written */
    bool watching, in_armed, out_armed, in_ready;
    bool at_boundary, called; /* the reader is between two messages, and is wanted for something else */
    bool left; /* another process goes on with the socket: it is not shut down */
    struct gr_watch watch;
    struct gr_fiber *reader;      /* suspended until readable, drained or broken */
    struct gr_timer in_timer;     /* deadline of the reader */
    bool timed_out;
    struct gr_timer stall_timer;  /* the peer takes nothing */
    uint64_t stall_ms;
    struct gr_defer flush;
    uint8_t *in;                  /* raw bytes received, not yet consumed */
    size_t in_pos, in_len;
    struct mover_out *head, *tail;
    int head_iov;                 /* progress inside the head message */
    size_t head_off;
};
/* Take over @fd (made non-blocking). 0, -ENOMEM or what the loop says; on failure the caller still owns @fd. */
int mover_io_open(struct mover_io *io, struct gr_loop *loop, int fd, uint64_t stall_ms);
void mover_io_close(struct mover_io *io); /* gives up the queue, closes the socket */
void mover_io_fail(struct mover_io *io, int code); /* break the connection; callable from callbacks */
/* Fiber: read between 1 and @len bytes; 0 at the end of the stream; -ETIMEDOUT at @deadline_ns (0: none). */
int64_t mover_io_read_some(struct mover_io *io, void *buf, size_t len, uint64_t deadline_ns);
/* Fiber: exactly @len bytes; -EPIPE when the stream ends first. */
int mover_io_read(struct mover_io *io, void *buf, size_t len, uint64_t deadline_ns);
/* Fiber, between two messages: receive something more into the buffer. Bytes; 0 at the end of the stream; -EINTR: mover_io_call(). */
int64_t mover_io_more(struct mover_io *io, uint64_t deadline_ns);
void mover_io_call(struct mover_io *io); /* wakes the reader where it is between two messages */
int mover_io_skip(struct mover_io *io, uint64_t len, uint64_t deadline_ns);
/* Queue a message; it is written later this turn. On a broken connection done() is called at once. */
void mover_io_send(struct mover_io *io, struct mover_out *out);
int mover_io_send_copy(struct mover_io *io, const void *buf, size_t len); /* 0, -ENOMEM, or the connection's error */
/* Fiber: wait until everything queued has been given to the kernel; 0 or the error. */
int mover_io_drain(struct mover_io *io, uint64_t deadline_ns);
/* Fiber: wait until there may be something to read. 0, -ETIMEDOUT or the error. */
int mover_io_wait(struct mover_io *io, uint64_t deadline_ns);
void mover_io_flush(struct mover_io *io);

/* ---- mover_keys.c ---- */
struct mover_creds;
int mover_creds_load(const char *pki_dir, const char *psk_file, struct mover_creds **ret, struct gr_err *err);
void mover_creds_free(struct mover_creds *c);
/* What the gate may know: a file of certificates, and in @ret how it is to be read. The file or negative. */
int mover_creds_file(const struct mover_creds *c, struct gate_msg *ret);
/* Length 0 when it cannot be had: no such key. */
void mover_creds_sign(const struct mover_creds *c, const uint8_t digest[GATE_DIGEST_LEN], struct gate_answer *ret);
void mover_creds_key(const struct mover_creds *c, const char *user, struct gate_answer *ret);

struct mover_cas { /* who may vouch for clients */
    gnutls_x509_crt_t *list;
    unsigned n;
};
const struct mover_cas *mover_creds_cas(const struct mover_creds *c);

/* ---- mover_vouch.c ---- */
/* Whose handshake is @p? 0 and his name ("": none that is text); -GR_EPROTO: it proves nothing, so that who says it does lies; -GR_EAUTH: his
 * certificate does not count (any more); -ENOTSUP: it does not say so in a way that is known here. */
int mover_cas_vouch(const struct mover_cas *cas, const struct mover_proof *p, char ret_name[GATE_NAME_MAX + 1], struct gr_err *err);

/* ---- mover_gate.c ---- */
struct mover_gate;
int mover_gate_start(struct mover_server *s, struct gr_err *err);
void mover_gate_listen(struct mover_server *s, int fd);
int mover_gate_adopt(struct mover_server *s, int fd); /* a connected socket, still the caller's */
unsigned mover_gate_strangers(const struct mover_server *s);
/* Fiber: nobody new is let in; wait until those under way have proved themselves or left. And back. */
void mover_gate_rest(struct mover_server *s, uint64_t timeout_ms);
void mover_gate_resume(struct mover_server *s);
/* It lives on for the connections that it has; the socket by which it lives, now the caller's, or -1. There is no gate afterwards. */
int mover_gate_leave(struct mover_server *s);
/* One that was left so by another process: it lives until its last connection has ended, or the mover stops. Takes @fd. */
int mover_gate_keep_old(struct mover_server *s, int fd);
int mover_old_gate_at(const struct mover_server *s, unsigned i); /* the socket of the @i-th; borrowed. -1: there are not so many */
void mover_old_gates_drop(struct mover_server *s); /* they are somebody else's */
void mover_old_gates_stop(struct mover_server *s); /* fiber: when they have sent what they have, or soon */
void mover_gate_close(struct mover_server *s); /* it lets nobody in any more */
void mover_gate_free(struct mover_server *s);  /* fiber: when it has sent what it has, or soon */

/* ---- mover_opt.c: option data, no state ---- */
struct mover_opt_info { /* INFO, GO */
    char name[NBD_MAX_STRING + 1];
    bool want_name, want_description, want_block_size;
};
struct mover_opt_meta { /* LIST_META_CONTEXT, SET_META_CONTEXT */
    char name[NBD_MAX_STRING + 1];
    uint32_t n_queries;
    size_t first; /* offset of the first query in the option data */
};
/* An export name: 1..4096 bytes, UTF-8 without control characters. 0 or -EINVAL. */
int mover_opt_name(const uint8_t *data, size_t len, char ret[NBD_MAX_STRING + 1]);
int mover_opt_parse_info(const uint8_t *data, size_t len, struct mover_opt_info *ret);
int mover_opt_parse_meta(const uint8_t *data, size_t len, struct mover_opt_meta *ret);
/* Next query at *@pos: 0 and the string, or -EINVAL. All of them are checked by mover_opt_parse_meta. */
int mover_opt_next_query(const uint8_t *data, size_t len, size_t *pos, char ret[NBD_MAX_STRING + 1]);
struct mover_request {
    uint16_t flags, type;
    uint64_t cookie, off;
    uint32_t len;
};
/* 0 or -GR_EPROTO (wrong magic). */
int mover_request_parse(const uint8_t wire[28], struct mover_request *ret);

/* ---- connection ---- */
struct mover_context {
    uint32_t id;
    bool changed; /* granary:changed:..., else base:allocation */
    struct gr_bookmark base;
};
struct mover_conn {
    struct mover_server *server;
    struct mover_conn *next;
    struct mover_io io;
    char peer[80];
    char how[GATE_NAME_MAX + 40]; /* it proved itself, for the log */
    struct sockaddr_storage addr;
    uint64_t deadline_ns; /* of the negotiation */
    bool negotiating, structured, no_zeroes;
    bool greets, greeted; /* our part of the greeting is out; the client's has come */
    bool rests;         /* between two messages, as the server rests */
    unsigned n_options; /* answered */
    json_t *inherited;  /* what another process told of it, until its fiber goes on with that */
    bool tls; /* it comes from the gate: greeted, proven, and what it sends was under TLS */
    char *name; /* export being opened or served; NULL before */
    struct mover_export exp;
    struct gr_listener listener;
    bool listening;
    struct gr_chan *chan;
    struct gr_geometry geo;
    uint16_t tx_flags;
    char *meta_name; /* export the contexts were selected for */
    struct mover_context ctx[MOVER_MAX_CONTEXTS];
    unsigned n_ctx;
    unsigned in_flight, slow, queued; /* queued: of those in flight, answered and not sent yet */
    uint64_t in_flight_bytes;
    struct gr_fqueue room; /* the reader, waiting for requests to end */
};
struct mover_listen {
    struct mover_server *server;
    struct gr_acceptor acceptor; /* without TLS; else the gate accepts, and here is only the socket for the next gate */
    struct mover_listen *next;
    unsigned port;
};
#define MOVER_POOL_CLASSES 10 /* 4 KiB << n, up to 2 MiB */
struct mover_server {
    struct gr_loop *loop;
    struct mover_opts opts;
    char *pki_dir, *psk_file;
    struct mover_creds *creds; /* NULL: without TLS */
    struct mover_gate *gate;
    struct mover_old_gate *old_gates; /* of processes before this one */
    unsigned lost;          /* inherited connections that could not go on */
    bool resting;           /* connections stay at the next boundary between messages */
    uint64_t rest_ns;       /* when all of them were there */
    struct mover_listen *listens;
    struct mover_conn *conns;
    struct gr_fqueue ended; /* somebody waits for connections to end */
    struct gr_fqueue room;  /* readers waiting for bytes of the whole server */
    uint64_t in_flight_bytes;
    uint64_t told_ns; /* refusals: the log is not for strangers to fill */
    unsigned told;
    struct mover_stats stats; /* without the gate's strangers */
    void *pool[MOVER_POOL_CLASSES]; /* free buffers, linked through their first word */
    size_t pool_bytes;
};
void mover_log(struct mover_server *s, enum mover_log_level level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Aligned buffers for data, kept for reuse. */
void *mover_buf_get(struct mover_server *s, size_t len);
void mover_buf_put(struct mover_server *s, void *buf, size_t len);
void mover_pool_free(struct mover_server *s);

/* A connection on @fd (taken over in any case) from @from: *ret, whose fiber has not begun yet, or negative. */
int mover_conn_new(struct mover_server *s, int fd, const struct sockaddr_storage *from, socklen_t from_len, struct mover_conn **ret);
/* Fiber: export and contexts of an inherited connection as they were. 0, or it cannot go on. */
int mover_conn_go_on(struct mover_conn *c, struct gr_err *err);
/* Count and tell that one was not let in. */
void mover_refuse(struct mover_server *s, const struct sockaddr_storage *from, socklen_t from_len, const char *why);

/* Fiber, between two messages: wait until the first @n bytes of the next are in the buffer, where they stay (@n: 64 at most). 1; 0: the stream
 * ended; negative: it broke, the time was up, or (-ECANCELED) another process goes on. @stall_ms: that bytes may take once the first has come, 0:
 * no such limit; @deadline_ns 0: none. */
int mover_next(struct mover_conn *c, size_t n, uint64_t deadline_ns, uint64_t stall_ms);

/* Fiber: handshake and options. 0: the transmission phase begins; 1: the client left in order; else the error. */
int mover_negotiate(struct mover_conn *c, struct gr_err *err);
/* Fiber: opens the export into @c (bdev, channel, geometry, flags). */
int mover_export_open(struct mover_conn *c, const char *name, struct gr_err *err);
void mover_export_close(struct mover_conn *c);
/* Fiber: read and submit requests until the client leaves or breaks; returns when nothing is in flight. */
int mover_serve(struct mover_conn *c);

/* ---- requests (mover_req.c, mover_reply.c, mover_status.c) ---- */
struct mover_req {
    struct mover_conn *conn;
    struct mover_request rq;
    struct gr_bio bio;
    struct iovec data_iov;
    uint8_t *data;
    size_t data_len; /* of the buffer */
    uint64_t data_off; /* device offset of data[0] */
    uint64_t counted; /* bytes counted as in flight */
    bool is_slow;
    struct mover_out out;
    struct iovec iov[2 * MOVER_READ_CHUNKS + 1];
    uint8_t heads[MOVER_READ_CHUNKS][32];
    uint8_t *extra; /* chunk data made for the reply: block status, error text; freed with the request */
};
void mover_req_free(struct mover_req *r);
/* Queue the reply of a request, which frees it when sent. */
void mover_reply_done(struct mover_req *r);                                /* success without data */
void mover_reply_error(struct mover_req *r, uint32_t nbd_error, const char *text); /* text: for people, may be NULL */
void mover_reply_code(struct mover_req *r, int code, const char *what);     /* a negative code of ours */
void mover_reply_read(struct mover_req *r);                                /* data/data_off hold rq.off..rq.off+len */
/* Block status of one context, as it goes on the wire: its id, then n times {length, flags}. */
struct mover_status_part {
    uint32_t n;
    uint8_t *wire; /* 4 + 8 * n bytes */
};
void mover_reply_status(struct mover_req *r, struct mover_status_part *parts, unsigned n);
void mover_status_run(void *arg); /* fiber: struct mover_req */
uint32_t mover_errno(int code);
#endif
