/* Reaching the storage service of a home: through the daemon's socket when it answers, else in this process. */
#ifndef SNAPSHOT_CLIENT_H
#define SNAPSHOT_CLIENT_H
#include "snapshot/service.h"

struct snap_client;
/* (fiber) Connect to run/storaged.sock, or take the home's storage lock and make the service here. Somebody who holds the lock
 * without answering (a command at work, a daemon that starts) is waited for, 10 s at most: -GR_ELOCKED naming the holder.
 * @home is borrowed; @images may be NULL. */
int snap_client_open(struct gr_loop *loop, struct gr_home *home, const struct snap_images *images, struct snap_client **ret,
                     struct gr_err *err);
/* (fiber) Leave what was joined for it. NULL allowed. */
void snap_client_close(struct snap_client *c);
/* (fiber) Run a method of snapshot/service.h. Takes the reference of @params. on_part may be NULL. */
int snap_client_call(struct snap_client *c, const char *method, json_t *params, int (*on_part)(void *arg, json_t *part), void *part_arg,
                     json_t **ret_result, struct gr_err *err);
/* The service when it lives in this process, else NULL. */
struct snap_svc *snap_client_local(struct snap_client *c);
#endif
