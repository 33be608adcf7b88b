/* Intents: what a process has begun and must not leave behind when it is killed (a job's snapshot, a mount, a half-made
 * restore). Written before the first step, updated as steps are done, removed when all is done or undone. The next
 * command lists them and finishes or undoes those whose process is gone.
 *
 * One file per intent, GRANARY_HOME/state/intents/KIND-UUID.json:
 *   {"kind":…,"id":…,"pid":N,"start-time":N,"boot":"…","began":seconds,"detail":{…}}
 * pid, start time (clock ticks since boot, /proc/PID/stat) and boot id together name one process for ever.
 * Blocking, short. Thread rule: none. */
#ifndef BP_INTENT_H
#define BP_INTENT_H
#include "common/home.h"
#include <stdbool.h>

struct bp_intent;
/* Record that this process begins something; durable on return. @kind: [a-z]+. @detail: an object, borrowed. */
int bp_intent_begin(struct gr_home *home, const char *kind, json_t *detail, struct bp_intent **ret, struct gr_err *err);
/* Replace its detail; durable on return. */
int bp_intent_update(struct bp_intent *in, json_t *detail, struct gr_err *err);
const char *bp_intent_id(const struct bp_intent *in); /* "KIND-UUID" */
json_t *bp_intent_detail(const struct bp_intent *in);  /* borrowed */
/* Done or undone: remove the record and free the handle (also on error). */
int bp_intent_end(struct bp_intent *in, struct gr_err *err);
/* Free the handle and leave the record: for a child after fork, or when undoing failed. NULL allowed. */
void bp_intent_free(struct bp_intent *in);

/* All records of @kind (NULL: any), a new array; each object has its file's keys and "alive": whether its process still
 * runs. Files that are no record are left out. */
int bp_intent_list(struct gr_home *home, const char *kind, json_t **ret, struct gr_err *err);
/* Remove the record @id of a dead process, once its leftovers are gone. A missing one is no error. */
int bp_intent_remove(struct gr_home *home, const char *id, struct gr_err *err);

/* Start time of a running process in clock ticks since boot, 0 when there is none (or only a zombie). */
uint64_t bp_process_start(int pid);
#endif
