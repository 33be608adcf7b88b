/* Who may use which disk: masks, ACLs by initiator name, CHAP; applied live. An entry is
 *
 *   {"masked": true, "initiators": ["iqn…", "iqn…:vm-…:*"], "chap": {"user", "secret"}, "mutual": {"user", "secret"}}
 *
 * The entry of "ds1/web01" also rules its snapshots ("ds1/web01@x") unless they have their own; the entry "*" rules everything that has none;
 * "discovery" has the CHAP of discovery sessions (no disk has that name). A disk without ACL and CHAP is open to everybody on loopback only.
 *
 * Entries of disks are kept in their datastore (common/rules.h), the same for all hosts; those of names without '/' ("*", "discovery", raw LUNs)
 * in one JSON document of the home (mode 0600): {"version": 1, "disks": {NAME: entry}}. Entries of disks that are found there, where they all
 * were once, hold until they are brought over.
 *
 * What is asked (no fiber needed) is answered by what tgt_access_refresh() last saw: whoever decides looks first. Source: docs/iscsi-target.md,
 * "Access rules". */
#ifndef TGT_ACCESS_H
#define TGT_ACCESS_H
#include "common/rules.h"
#include <stdbool.h>

#define TGT_ACCESS_DISCOVERY "discovery"
struct tgt_access;
struct tgt_chap_secrets { /* borrowed; NULL when not set */
    const char *user, *secret, *mutual_user, *mutual_secret;
};
/* @path: the home's document; NULL: memory only. @rules: where disks have theirs, copied; NULL: in that document, too. */
int tgt_access_open(const char *path, const struct gr_rules *rules, struct tgt_access **ret, struct gr_err *err);
void tgt_access_free(struct tgt_access *a);
/* (fiber) See what holds for @disk (or its snapshot) at this moment. Negative: it cannot be told, and nobody may be let in; -ENOENT: there is no
 * such disk. */
int tgt_access_refresh(struct tgt_access *a, const char *disk, struct gr_err *err);
/* (fiber) Bring entries of disks from the home over to their datastores. note(arg, syslog level, text) tells of each datastore; what cannot be
 * brought over now stays, and holds here. An entry for which the datastore has another one, or no disk, goes to "set-aside" of the document. */
void tgt_access_bring_over(struct tgt_access *a, void (*note)(void *arg, int level, const char *text), void *arg);

bool tgt_access_any(const struct tgt_access *a); /* any ACL or CHAP in the home, or once tgt_access_seen() */
bool tgt_access_ruled(const struct tgt_access *a, const char *disk); /* an ACL or CHAP of its own */
/* A disk of a datastore is ruled: remembered in the home. */
int tgt_access_seen(struct tgt_access *a, struct gr_err *err);
bool tgt_access_masked(const struct tgt_access *a, const char *disk);
/* May @initiator see and use @disk (CHAP aside)? @open: a disk without any rule is allowed (loopback, insecure portal). */
bool tgt_access_admits(const struct tgt_access *a, const char *disk, const char *initiator, bool open);
/* True when a log-in must prove itself; fills *ret. */
bool tgt_access_chap(const struct tgt_access *a, const char *disk, struct tgt_chap_secrets *ret);
/* Names allowed, new reference; null: no ACL (an empty array admits nobody). */
json_t *tgt_access_initiators(const struct tgt_access *a, const char *disk);

/* (fiber) Changes: durable before they return, on failure nothing has changed. An entry that is new begins as that which ruled so far. @ret_untold
 * (set when there is something to say, to new memory): a sentence about other hosts that do not know yet. */
int tgt_access_mask(struct tgt_access *a, const char *disk, bool masked, char **ret_untold, struct gr_err *err);
/* Arrays of names (NULL: none); -ENOENT: one to @deny is not in the list. */
int tgt_access_acl(struct tgt_access *a, const char *disk, json_t *allow, json_t *deny, char **ret_untold, struct gr_err *err);
/* user NULL: CHAP off. Secrets: 12 to 255 bytes, and the two differ. */
int tgt_access_set_chap(struct tgt_access *a, const char *disk, const struct tgt_chap_secrets *s, char **ret_untold, struct gr_err *err);
#endif
