/* GRANARY_HOME: where one host keeps its configuration, state and sockets.
 *   conf/   datastores.json, access.json …        state/   host.json (host uuid), intents, caches
 *   run/    storaged.sock, hostd.sock, *.pid, vm/  log/     one file per daemon, per VM
 * Default: /var/lib/granary (conf in it too). Directories are 0700. */
#ifndef GR_HOME_H
#define GR_HOME_H
#include "common/err.h"
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
struct gr_home;
/* From $GRANARY_HOME or the default; makes the directories when @make. */
int gr_home_open(int make, struct gr_home **ret, struct gr_err *err);
void gr_home_free(struct gr_home *h);
const char *gr_home_dir(const struct gr_home *h);
/* Absolute path of a name below the home, such as "run/storaged.sock"; new memory. */
char *gr_home_path(const struct gr_home *h, const char *name);
/* This host's uuid, made at first use. */
int gr_home_host_uuid(struct gr_home *h, uint8_t ret[16], struct gr_err *err);
/* Exclusive lock on the home's storage role (one joined writer process): 0, or -GR_ELOCKED with the holder's pid in the text.
 * Held until *ret_fd is closed. */
int gr_home_lock(struct gr_home *h, int *ret_fd, struct gr_err *err);
/* Standing in the queue for that lock: after a try that gave -GR_ELOCKED (@locked is its text), true: sleep GR_HOME_STEP_MS and try
 * again. Patience is 10 s with one holder, and 10 minutes with a queue whose holders change. Zero-initialised. */
#define GR_HOME_STEP_MS 50u
struct gr_home_queue {
    struct gr_err before;
    unsigned ms, same_ms;
};
bool gr_home_queue_on(struct gr_home_queue *q, const struct gr_err *locked);
/* JSON documents under conf/ and state/: a missing one reads as an empty object; written atomically. */
int gr_home_load(struct gr_home *h, const char *name, json_t **ret, struct gr_err *err);
int gr_home_save(struct gr_home *h, const char *name, json_t *doc, struct gr_err *err);
#endif
