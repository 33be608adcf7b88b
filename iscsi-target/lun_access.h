/* Who may use which disk: masks, ACLs by initiator name, CHAP. Kept in one JSON document (mode 0600), applied live.
 *
 *   {"version": 1, "disks": {"ds1/web01": {"masked": true, "initiators": ["iqn…", "iqn…:vm-…:*"],
 *                                          "chap": {"user", "secret"}, "mutual": {"user", "secret"}}}}
 *
 * The entry of "ds1/web01" also rules its snapshots ("ds1/web01@x") unless they have their own; the entry "*" rules
 * everything that has none; "discovery" has the CHAP of discovery sessions (no disk has that name). A disk without ACL and
 * CHAP is open to everybody on loopback only. */
#ifndef TGT_ACCESS_H
#define TGT_ACCESS_H
#include "common/err.h"
#include <jansson.h>
#include <stdbool.h>

#define TGT_ACCESS_DISCOVERY "discovery"
struct tgt_access;
struct tgt_chap_secrets { /* borrowed; NULL when not set */
    const char *user, *secret, *mutual_user, *mutual_secret;
};
int tgt_access_open(const char *path, struct tgt_access **ret, struct gr_err *err); /* path NULL: memory only */
void tgt_access_free(struct tgt_access *a);
bool tgt_access_any(const struct tgt_access *a); /* any ACL or CHAP at all */
bool tgt_access_masked(const struct tgt_access *a, const char *disk);
/* May @initiator see and use @disk (CHAP aside)? @open: a disk without any rule is allowed (loopback, insecure portal). */
bool tgt_access_admits(const struct tgt_access *a, const char *disk, const char *initiator, bool open);
/* True when a log-in must prove itself; fills *ret. */
bool tgt_access_chap(const struct tgt_access *a, const char *disk, struct tgt_chap_secrets *ret);
/* Names allowed, new reference; null: no ACL (an empty array admits nobody). */
json_t *tgt_access_initiators(const struct tgt_access *a, const char *disk);

/* Changes; written before they return (on failure nothing has changed). */
int tgt_access_mask(struct tgt_access *a, const char *disk, bool masked, struct gr_err *err);
int tgt_access_allow(struct tgt_access *a, const char *disk, const char *initiator, struct gr_err *err);
int tgt_access_deny(struct tgt_access *a, const char *disk, const char *initiator, struct gr_err *err);
/* user NULL: CHAP off. Secrets: 12 to 255 bytes, and the two differ. */
int tgt_access_set_chap(struct tgt_access *a, const char *disk, const struct tgt_chap_secrets *s, struct gr_err *err);
#endif
