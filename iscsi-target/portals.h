/* Addresses that a storage daemon listens on. What was open last is in state/portals.json, and opened again at a start that asks for
 * nothing else; a port given as 0 is any free one, and the same again when it is still free, so that initiators find their way back.
 * Thread rule as iscsi-target/target.h. */
#ifndef TGT_PORTALS_H
#define TGT_PORTALS_H
#include "common/home.h"
#include "iscsi-target/mover.h"
#include "iscsi-target/target.h"

#define TGT_PORTAL_DEFAULT "127.0.0.1:3260"
#define TGT_MOVER_DEFAULT "127.0.0.1:10809"

struct tgt_portal_names { /* asked for at the start; none: those of last time */
    const char *name[TGT_PORTALS];
    unsigned n;
};
struct tgt_portals {
    struct tgt_server *server;
    struct gr_home *home;
    bool insecure;
    void *arg;
    /* May machines other than this one reach us from now on? */
    int (*admit)(void *arg, struct gr_err *err);
    /* (fiber) Other portals are open now: whoever was told an address is told anew. */
    int (*changed)(void *arg, struct gr_err *err);
};
/* (fiber) At the start: open what was asked for, or what was open last, or the default. */
int tgt_portals_open(const struct tgt_portals *p, const struct tgt_portal_names *redirecting, const struct tgt_portal_names *multipath,
                     struct gr_err *err);
/* Remember what is open. */
int tgt_portals_save(const struct tgt_portals *p, struct gr_err *err);
/* Does a portal reach beyond this machine? */
bool tgt_portals_beyond(const struct tgt_portals *p);
/* Names of those that redirect, or, with @multipath, of those that never do; a new array. */
json_t *tgt_portals_names(const struct tgt_portals *p, bool multipath);
/* RPC: add with arg = the struct tgt_portals.
 *   portal.list                            → [{"portal","multipath","sessions"}]
 *   portal.add {"portal","multipath"?}     → {"portal","multipath"}; also while initiators work
 *   portal.remove {"portal"}               → {"portal","sessions"}; no new logins there, sessions stay */
extern const struct gr_rpc_method tgt_portal_methods[];

/* (fiber) Listen on @wanted, or, when NULL, on the default, or, when that is taken, on any free port of the loopback. */
int tgt_mover_open(struct mover_server *s, struct gr_home *home, const char *wanted, char ret_shown[TGT_SHOWN], struct gr_err *err);
/* (fiber) Its listening sockets go along in a hand-over, and its connections: who connects meanwhile waits. bequeath: 0 or what stood in the way of
 * one; inherit: 1 they are ours, 0 there are none. @shown: as tgt_mover_open() told. */
struct tgt_heritage;
int tgt_mover_bequeath(struct mover_server *s, const char *shown, struct tgt_heritage *h);
int tgt_mover_inherit(struct mover_server *s, struct tgt_heritage *h, char ret_shown[TGT_SHOWN], struct gr_err *err);
/* The HOST of "HOST:PORT" without brackets; "" when it names no single host. */
void tgt_portal_host(const char *portal, char ret[TGT_SHOWN]);
#endif
