/* Access rules of disks, the seam between who decides by them (iscsi-target/) and the datastores that keep them (snapshot/service_rules.c):
 * each datastore has those of its disks, so that they are the same on every host, and go with a disk wherever it goes.
 *
 * What a rule says is its user's: here it is a JSON object. A disk is "DATASTORE/PATH", a snapshot of one "DATASTORE/PATH@NAME". Source: docs/storage-service.md,
 * "Rules of disks".
 *
 * Thread rule: on the loop of the store, in fibers; all calls may suspend. */
#ifndef GR_RULES_H
#define GR_RULES_H
#include "common/fiber.h"
#include <jansson.h>

/* The change of one entry. @own: what @disk has, NULL: nothing. @above: of a snapshot: what its disk has. Both are borrowed and must not be changed.
 * 0: *ret is the new entry, a new reference, or stays NULL: it remains as it is. Negative: nothing is changed, with *err. Must not suspend. */
typedef int (*gr_rules_edit)(void *arg, const char *disk, const json_t *own, const json_t *above, json_t **ret, struct gr_err *err);

struct gr_rules { /* copied by its users */
    void *arg;
    /* What holds for the disk @disk (no snapshot) at this moment, whichever host changed it last: *ret is {"rules"?: entry, "snapshots"?: {NAME:
     * entry}}, a new reference that must not be changed, or NULL: nothing. -ENOENT: there is no such disk; -ENODEV: its datastore is not joined;
     * else it cannot be told, and nobody may be let in. */
    int (*get)(void *arg, const char *disk, json_t **ret, struct gr_err *err);
    /* Change the entries of @disks (names, all of one datastore; a snapshot need not exist yet) with @edit: when this returns they are durable, and
     * no change that another host makes at the same time is lost. When an edit fails, nothing is changed; when the process dies, or a device fails,
     * each entry is the old or the new one. Then the other hosts are told. *ret_untold (may be NULL): new memory, a sentence about one that could not be, or NULL. -ENOENT, -ENODEV as above; -GR_ELOCKED:
     * another host is at it for longer than 15 s. */
    int (*change)(void *arg, json_t *disks, gr_rules_edit edit, void *edit_arg, char **ret_untold, struct gr_err *err);
};

/* How a command gets at the rules of its home while no daemon runs there. What gr_cmd_app() gives begins with this. */
struct gr_rules_app {
    /* Call fn(arg, rules). -EALREADY: a daemon runs, ask it. */
    int (*with)(struct gr_loop *loop, int (*fn)(void *arg, const struct gr_rules *rules, struct gr_err *err), void *arg, struct gr_err *err);
};
#endif
