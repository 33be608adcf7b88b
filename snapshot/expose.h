/* Snapshots made reachable over the network for one initiator, as long as somebody wants them: what a backup reads from.
 *
 * An exposure holds its snapshot open (a delete waits, hidden). It lives in memory only: it ends with snapshot.unexpose, with
 * the connection it is tied to, or with the daemon, unless another takes the daemon's place.
 *   snapshot.expose {"disk","snapshot","initiator"?,"tie"?} → {"id","name","initiator","target","iscsi-url","nbd-url","size","tied"}
 *   snapshot.unexpose {"id","disk"?}   the disk helps to find an exposure of another host
 * Thread rule as snapshot/service.h. */
#ifndef SNAPSHOT_EXPOSE_H
#define SNAPSHOT_EXPOSE_H
#include "snapshot/service.h"

struct snap_exposures;
struct snap_expose_hooks {
    void *arg;
    /* (fiber) Nobody wants "DS/PATH@SNAP" any more: cut who still reads it. Its bdev is put already by the exposure. */
    void (*ended)(void *arg, const char *name);
    /* Add what a reader needs to know ("target", "iscsi-url", "nbd-url") to @row. */
    void (*describe)(void *arg, const char *name, json_t *row);
    /* Are portals open to others than this machine? Then who may read must be named. */
    bool (*need_initiator)(void *arg);
};
int snap_exposures_new(struct gr_loop *loop, struct snap_svc *svc, const struct snap_expose_hooks *hooks, struct snap_exposures **ret,
                       struct gr_err *err);
/* (fiber) Drop all (without calling ended) and free; waits for those that are ending. NULL allowed. */
void snap_exposures_free(struct snap_exposures *x);
int snap_exposures_serve(struct snap_exposures *x, struct gr_rpc_server *server); /* @server outlives what is tied to its connections */
/* May @initiator read "DS/PATH@SNAP"? Any context. */
bool snap_exposed_to(const struct snap_exposures *x, const char *name, const char *initiator);
/* A snapshot that anybody whom the portals let in may read; NULL: there is none. Borrowed. */
const char *snap_exposed_to_all(const struct snap_exposures *x);
/* (fiber) Nobody may hold @disk or its snapshots any more; end what is exposed. @only_idle: -GR_ELOCKED when something is. */
int snap_exposures_drop(struct snap_exposures *x, const char *disk, bool only_idle, struct gr_err *err);
/* For another process that takes this one's place: [{"id","name","initiator","uuid","size","connection"?}]. What is tied to a connection that is
 * not handed over is not among them, and what is comes loose here: bequeath the connections of the server afterwards. */
json_t *snap_exposures_save(struct snap_exposures *x);
/* (fiber) Before anybody reads: expose again what @list says. The connections that something is tied to come later (snap_exposures_tie). What is
 * not there any more, or is another snapshot of the same name, is missing: how many, with *err naming one. */
int snap_exposures_load(struct snap_exposures *x, json_t *list, struct gr_err *err);
/* (fiber) The connections are inherited: tie to them what goes with them; what belongs to one that is gone ends. */
void snap_exposures_tie(struct snap_exposures *x);
/* New array of rows. */
json_t *snap_exposures_list(const struct snap_exposures *x);
#endif
