/* What expose.c and expose_handover.c share. */
#ifndef SNAPSHOT_EXPOSE_INT_H
#define SNAPSHOT_EXPOSE_INT_H
#include "snapshot/expose.h"

#define EXPOSURES_MAX 256

struct exposure {
    struct exposure *next;
    char id[33];
    char *name;           /* DS/PATH@SNAP */
    char *initiator;      /* "": any that the portal lets in */
    struct gr_bdev *bdev; /* holds the snapshot */
    uint64_t connection;  /* it is tied to, 0: none */
    struct end_tied *tie; /* what that connection holds; NULL: nothing (yet, or any more) */
};
struct snap_exposures {
    struct gr_loop *loop;
    struct snap_svc *svc;
    struct snap_expose_hooks hooks;
    struct gr_rpc_server *server; /* whose connections things are tied to */
    struct exposure *list;
    unsigned ending; /* fibers that end one */
};
struct end_tied {
    struct snap_exposures *x;
    char id[33];
};
/* (fiber) Expose @name once more, not tied to anything; @id: that it had before, NULL: a new one. */
int exposure_new(struct snap_exposures *x, const char *name, const char *initiator, const char *id, struct exposure **ret, struct gr_err *err);
void exposure_free(struct snap_exposures *x, struct exposure *e);
/* Nobody wants it any more: with the last exposure of a snapshot those who read it are cut. */
void exposure_end(struct snap_exposures *x, struct exposure *e);
/* What is to be done when the connection of @e closes; its argument is new, NULL: out of memory. */
struct end_tied *exposure_tie(struct snap_exposures *x, const struct exposure *e);
void exposure_end_tied(void *arg);
#endif
