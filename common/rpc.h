/* JSON over unix sockets between the processes of one machine.
 *
 * Frame: 8 bytes "GRP1" + be32 length of the body, then the body: one JSON object of at most GR_RPC_MAX bytes.
 * Request  {"id":N,"method":"disk.create","params":{…}}
 * Reply    {"id":N,"part":…} any number of times, then {"id":N,"result":…} or {"id":N,"error":{"code":"ENOENT","text":"…"}}.
 * {"id":N,"cancel":true} from the caller: it no longer waits. One connection may carry many requests, also at once. A malformed frame closes the connection and nothing else.
 * Paths may be of any length (the directory is opened first and the socket reached through /proc/self/fd). */
#ifndef GR_RPC_H
#define GR_RPC_H
#include "common/fiber.h"
#include <jansson.h>
#include <sys/types.h>
#define GR_RPC_MAX (16u << 20)

struct gr_rpc_call; /* one request being served */
/* Serve a request in a fiber of its own. @params: borrowed. On success put a new reference into *ret_result (NULL = {}). */
typedef int (*gr_rpc_fn)(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret_result, struct gr_err *err);
struct gr_rpc_method {
    const char *name;
    gr_rpc_fn fn;
    bool asks; /* changes nothing, or only what is no administrator's business: who witnesses calls is not told of it */
    bool destroys; /* what it takes away does not come back: the witness is told before it begins, too */
};
/* Send one part of a streamed answer; takes the reference of @part. Suspends while the peer is slow. -EPIPE: peer is gone.
 * In process (gr_rpc_local) the part goes to the caller's on_part; with a NULL call it is dropped. */
int gr_rpc_part(struct gr_rpc_call *call, json_t *part);
/* This call changes nothing, though its method may: as gr_rpc_method.asks. NULL allowed. */
void gr_rpc_only_asked(struct gr_rpc_call *call);
struct gr_rpc_peer;
/* Who asks, when that is no process of this machine; else NULL. As long as the call. */
const struct gr_rpc_peer *gr_rpc_peer_of(const struct gr_rpc_call *call);
/* True once the peer is gone or has given up this call: long work should stop. */
bool gr_rpc_gone(const struct gr_rpc_call *call);
/* Have fn(arg) called, in a fiber, once the connection of @call has closed and the call has returned (pins, exposures tied to
 * the caller's life); in process: when the server is freed. -EPIPE: it is closed already, nothing was registered. */
int gr_rpc_on_close(struct gr_rpc_call *call, void (*fn)(void *arg), void *arg);

struct gr_rpc_server;
int gr_rpc_server_new(struct gr_loop *loop, struct gr_rpc_server **ret);
/* Add a NULL-name-terminated table; @arg is passed to its functions. Tables are borrowed. */
int gr_rpc_server_add(struct gr_rpc_server *s, const struct gr_rpc_method *methods, void *arg);
/* Listen on a unix socket (mode 0600), replacing a dead one. -EADDRINUSE: somebody answers there. */
int gr_rpc_server_listen(struct gr_rpc_server *s, const char *path, struct gr_err *err);
/* Who is at the other end of a stream that came another way, and is no process of this machine that may open the socket. */
struct gr_rpc_peer {
    char host[64]; /* its name, */
    char from[64]; /* and address */
    void (*free)(struct gr_rpc_peer *p); /* when the connection is gone */
};
/* Serve such a stream; it and @peer are taken, also on failure. The guard is asked about each request first (-GR_EAUTH and the like: refused). */
void gr_rpc_server_adopt(struct gr_rpc_server *s, int fd, struct gr_rpc_peer *peer);
void gr_rpc_server_guard(struct gr_rpc_server *s, int (*guard)(void *arg, struct gr_rpc_peer *peer, const char *method, json_t *params, struct gr_err *err),
                         void *arg);
/* A call that has ended, and is not answered yet; or one that is about to begin. */
struct gr_rpc_seen {
    bool begins;                    /* result and ns say nothing yet */
    uint64_t number;                /* of one whose beginning is told, too: the same both times, and no other's; else 0 */
    const char *method;
    json_t *params;                 /* borrowed */
    const char *initiator, *from;   /* it was no call, but a SCSI command of that initiator, from that address; else NULL */
    const struct gr_rpc_peer *peer; /* NULL: a process of this machine, */
    pid_t pid;                      /* namely this one, as the kernel told when it connected, or the caller itself */
    uid_t uid;
    int result;
    uint64_t ns; /* how long it took */
};
/* Call fn(arg, seen) for every call, also a refused one, of a method that does not just ask; twice for one that destroys, if it is not refused.
 * In the fiber of the call, which may suspend. */
void gr_rpc_server_witness(struct gr_rpc_server *s, void (*fn)(void *arg, const struct gr_rpc_seen *seen), void *arg);
/* Closes the socket and all connections and waits for calls being served (in a fiber that serves none, or outside the
 * loop). NULL allowed. */
void gr_rpc_server_free(struct gr_rpc_server *s);
/* ---- a server takes the place of another, and its clients do not notice (rpc_handover.c) ---- */
/* (fiber) No further request of a process of this machine is begun: it waits. Wait until those that are at work, but @self (may be NULL), are
 * answered; how many were not in time. */
unsigned gr_rpc_server_rest(struct gr_rpc_server *s, const struct gr_rpc_call *self, uint64_t timeout_ms);
void gr_rpc_server_resume(struct gr_rpc_server *s); /* it stays in its place */
struct gr_rpc_left {
    uint64_t id; /* of the connection: what is tied to it finds it by that */
    int fd;
    const void *unread; /* what was read and not acted on */
    size_t len;
};
/* At rest: tell @fn of every connection that has no request at work and nothing tied to it; @fn copies the descriptor. Here it ends, and its peer
 * does not notice. 0, or what @fn said: that connection and those behind it are cut with the server. */
int gr_rpc_server_bequeath(struct gr_rpc_server *s, int (*fn)(void *arg, const struct gr_rpc_left *c), void *arg);
/* Go on with one; takes c->fd, also on failure. */
int gr_rpc_server_inherit(struct gr_rpc_server *s, const struct gr_rpc_left *c);
/* The number of the connection that a call came by; 0: none, in process. */
uint64_t gr_rpc_connection(const struct gr_rpc_call *call);
/* Is connection @id one that bequeath() will tell, but for what is tied to it? */
bool gr_rpc_may_leave(const struct gr_rpc_server *s, uint64_t id);
/* What gr_rpc_on_close() tied to connection @id comes loose: fn(arg) is not called. False: it is not tied, or being called. */
bool gr_rpc_untie(struct gr_rpc_server *s, uint64_t id, void (*fn)(void *arg), void *arg);
/* And is tied again, to one that was inherited. -ENOENT: it is not there (any more). */
int gr_rpc_tie(struct gr_rpc_server *s, uint64_t id, void (*fn)(void *arg), void *arg);

/* Run a method of the server's tables in process, without a socket (fiber). Takes the reference of @params (may be NULL). */
int gr_rpc_local(struct gr_rpc_server *s, const char *method, json_t *params, int (*on_part)(void *arg, json_t *part), void *part_arg,
                 json_t **ret_result, struct gr_err *err);

struct gr_rpc_client;
/* Connect (fiber). -ENOENT / -ECONNREFUSED: nobody listens. */
int gr_rpc_connect(struct gr_loop *loop, const char *path, struct gr_rpc_client **ret, struct gr_err *err);
/* The same over a connected stream, which is taken, also on failure. */
int gr_rpc_client_new(struct gr_loop *loop, int fd, struct gr_rpc_client **ret, struct gr_err *err);
void gr_rpc_client_free(struct gr_rpc_client *c); /* NULL allowed; no call may be waiting */
/* Call and wait (fiber). @params: reference is taken (may be NULL). on_part may be NULL; its json_t is borrowed; a negative
 * return ends the call, and the peer is told (gr_rpc_gone there). The peer's error comes back as its code and text. timeout_ms < 0: none. */
int gr_rpc_call(struct gr_rpc_client *c, const char *method, json_t *params, int (*on_part)(void *arg, json_t *part), void *part_arg,
                int64_t timeout_ms, json_t **ret_result, struct gr_err *err);
/* The same for the caller of @of, a request being served, who gets the parts: when he is gone, or his server ends, so does this, with
 * -GR_ECANCELED, however long @c stays silent. */
int gr_rpc_pass_on(struct gr_rpc_client *c, struct gr_rpc_call *of, const char *method, json_t *params, json_t **ret_result, struct gr_err *err);

/* Unix sockets at paths of any length. */
/* Takes the place of a socket that nobody serves; -EADDRINUSE: somebody does. May block for some seconds while a socket outlives
 * its process. */
int gr_unix_listen(const char *path, int mode, int *ret_fd, struct gr_err *err);
int gr_unix_connect(const char *path, int *ret_fd, struct gr_err *err); /* non-blocking descriptor */
/* Does the process that listens at the other end of @fd (connected) live? Its socket can answer for a moment after its death:
 * what an io_uring had in flight holds it until the kernel has cancelled that. */
bool gr_unix_served(int fd);

/* Typed reading of params; each gives one clear error naming the key. Optional ones leave *ret alone when absent. */
int gr_json_str(json_t *o, const char *key, const char **ret, struct gr_err *err);
int gr_json_opt_str(json_t *o, const char *key, const char **ret, struct gr_err *err);
int gr_json_u64(json_t *o, const char *key, uint64_t *ret, struct gr_err *err);
int gr_json_opt_u64(json_t *o, const char *key, uint64_t *ret, struct gr_err *err);
int gr_json_opt_bool(json_t *o, const char *key, bool *ret, struct gr_err *err);
int gr_json_array(json_t *o, const char *key, json_t **ret, struct gr_err *err);
#endif
