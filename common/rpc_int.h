/* What rpc_server.c and rpc_handover.c share. */
#ifndef GR_RPC_INT_H
#define GR_RPC_INT_H
#include "common/rpc_wire.h"
#include <sys/socket.h>
#include <sys/types.h>

#define MAX_TABLES 32
#define MAX_CONNECTIONS 256
#define MAX_CALLS 64 /* at once on one connection: further requests stay unread */

struct rpc_closer {
    void (*fn)(void *arg);
    void *arg;
    struct rpc_closer *next;
};

struct rpc_conn {
    struct gr_rpc_server *server;
    struct rpc_wire wire;
    uint64_t id;   /* never used again, not by a server that takes this one's place either */
    unsigned refs; /* the reader and each call */
    unsigned n_calls;
    bool gone;
    struct gr_fqueue room;
    struct gr_rpc_call *calls;
    struct rpc_closer *closers; /* of calls that have returned */
    json_t *held;           /* a request that was read and is not begun, as the server rests */
    struct gr_rpc_peer *peer; /* NULL: a process of this machine that may open the socket, */
    struct ucred cred;        /* this one */
    struct rpc_conn *prev, *next;
};

struct gr_rpc_call {
    struct gr_rpc_server *server;
    struct rpc_conn *conn; /* NULL: in process */
    json_int_t id;
    bool canceled;
    bool asked; /* it changed nothing: no witness */
    const struct gr_rpc_method *method;
    void *method_arg;
    json_t *params;
    struct rpc_closer *closers;
    int (*on_part)(void *arg, json_t *part); /* in process */
    void *part_arg;
    struct gr_rpc_call *next;
};

struct gr_rpc_server {
    struct gr_loop *loop;
    struct {
        const struct gr_rpc_method *methods;
        void *arg;
    } tables[MAX_TABLES];
    unsigned n_tables;
    int (*guard)(void *arg, struct gr_rpc_peer *peer, const char *method, json_t *params, struct gr_err *err);
    void *guard_arg;
    void (*witness)(void *arg, const struct gr_rpc_seen *seen);
    void *witness_arg;
    struct gr_watch watch; /* fd -1: not listening */
    char *path;
    ino_t path_ino;
    struct rpc_conn *conns;
    unsigned n_conns;
    struct gr_fqueue drained;
    struct rpc_closer *closers; /* of calls in process */
    uint64_t last_id;
    bool resting;           /* no request of a process of this machine is begun */
    struct gr_fqueue resumed;
};
/* A connection on @fd (taken, also on failure), with what was read of it before. 0 or negative: @peer is still the caller's. */
int rpc_conn_new(struct gr_rpc_server *s, int fd, struct rpc_conn **ret);
#endif
