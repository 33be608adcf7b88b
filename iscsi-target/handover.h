/* Handing portals and sessions over to another process that takes this one's place (an upgrade of the program), without an initiator
 * noticing more than a moment of silence. The old one brings its sessions to rest, describes them, gives its disks up and sends; the new
 * one takes the disks and goes on. docs/iscsi-target.md, "Upgrade".
 *
 * The description is JSON (its form is in handover.c), so that programs of different versions understand each other; sockets are
 * referred to by index. Thread rule as target.h; everything marked (fiber) may suspend. */
#ifndef TGT_HANDOVER_H
#define TGT_HANDOVER_H
#include "common/home.h"
#include "iscsi-target/target.h"

#define TGT_HERITAGE_FDS 4096u
/* Of the document that is written, and the oldest that is read. Who reads must know all that a version says, as what it does not know is lost:
 * so who asks for a place says which it reads ("versions":[oldest, newest] of daemon.hand-over), and is refused before anything comes to rest. */
#define TGT_HERITAGE_VERSION 2
#define TGT_HERITAGE_OLDEST 1
struct tgt_heritage {
    json_t *doc;
    int *fds; /* owned; -1 where somebody has taken it */
    unsigned n_fds;
};
void tgt_heritage_free(struct tgt_heritage *h); /* closes what nobody took */
/* Does who sent these params of daemon.hand-over read what we write? 0, or -EOPNOTSUPP. */
int tgt_heritage_readable(json_t *params, struct gr_err *err);
/* (fiber) Nobody is let in any more: who comes waits in the socket, for who listens there next. Logins under way get two seconds from the first
 * call on; those that have not ended by then are cut when another process takes this one's place. Sessions work on. */
void tgt_server_deafen(struct tgt_server *s);
void tgt_server_hear(struct tgt_server *s); /* the same people again; nothing when it was not deaf */
/* (fiber) Nobody new is let in, as above, and nothing new is begun; wait until what was begun is answered. 0, or -EBUSY naming the session
 * that has not come to rest: then everything goes on as before. */
int tgt_server_rest(struct tgt_server *s, uint64_t timeout_ms, struct gr_err *err);
/* At rest: describe everything and take the sockets. The server has no sessions and portals afterwards, and can only be freed. */
int tgt_server_bequeath(struct tgt_server *s, struct tgt_heritage *ret, struct gr_err *err);
/* Have the portals of the other, in place of tgt_server_listen(). Nobody is let in before the sessions go on, which is next: who comes late meets
 * what they hold. */
int tgt_server_inherit_portals(struct tgt_server *s, struct tgt_heritage *h, struct gr_err *err);
/* (fiber) Go on with the sessions. Those whose disk cannot be had end; how many. */
int tgt_server_inherit_sessions(struct tgt_server *s, struct tgt_heritage *h);
/* A copy of @fd goes along: its index, or negative. And back: the descriptor at the index that @o has under "fd", now the caller's, or -1. */
int tgt_heritage_keep(struct tgt_heritage *h, int fd);
int tgt_heritage_take_fd(struct tgt_heritage *h, json_t *o);
/* Listening sockets of another server of the program: a copy of @fd goes along, in the list @key; and the @i-th of that list, now the
 * caller's, or -1. */
int tgt_heritage_add(struct tgt_heritage *h, const char *key, int fd);
int tgt_heritage_take(struct tgt_heritage *h, const char *key, size_t i);
/* The connections of requests (gr_rpc_server_bequeath() and _inherit()) go along. How many were taken over. */
int tgt_heritage_add_requests(struct tgt_heritage *h, struct gr_rpc_server *rpc);
unsigned tgt_heritage_take_requests(struct tgt_heritage *h, struct gr_rpc_server *rpc);
/* (fiber) Over a connected SOCK_SEQPACKET socket. 0 or negative. */
int tgt_heritage_send(struct gr_loop *loop, int sock, const struct tgt_heritage *h, struct gr_err *err);
int tgt_heritage_recv(struct gr_loop *loop, int sock, struct tgt_heritage *ret, struct gr_err *err);
/* (fiber) Ask the daemon that runs in @home for its place (RPC daemon.hand-over), and receive. @features: of datastores, that this program knows. */
int tgt_heritage_ask(struct gr_loop *loop, const struct gr_home *home, uint64_t features, struct tgt_heritage *ret, struct gr_err *err);
#endif
