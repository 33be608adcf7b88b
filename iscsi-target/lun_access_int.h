/* What the files of the access rules share: lun_access.c (the home's document, what the rules say), lun_access_edit.c (changes),
 * lun_access_kept.c (rules that datastores keep). */
#ifndef TGT_ACCESS_INT_H
#define TGT_ACCESS_INT_H
#include "iscsi-target/lun_access.h"
#include <string.h>

struct tgt_access {
    char *path;            /* of the home's document; NULL: in memory only */
    json_t *doc;
    struct gr_rules rules; /* .get NULL: all rules are in the home */
    json_t *held;          /* of disks that were looked at: what gr_rules.get gave, by name */
};
/* Has the datastore the rules of @disk, and not the home? */
static inline bool tgt_access_kept(const struct tgt_access *a, const char *disk)
{
    return a->rules.get && strchr(disk, '/');
}
json_t *tgt_access_home(const struct tgt_access *a, const char *disk); /* its entry in the home's document, borrowed, or NULL */
char *tgt_access_base(const char *disk);                               /* a snapshot's disk; new memory */
/* Is @e an entry of @disk? 0, or -GR_EFORMAT. */
int tgt_access_check(const char *disk, json_t *e, struct gr_err *err);
/* Make @doc (its reference is taken; NULL: out of memory) the home's document, once it is written. */
int tgt_access_commit(struct tgt_access *a, json_t *doc, struct gr_err *err);
/* (fiber) Change the entry of @disk, which its datastore keeps; what the home still has of it is brought over first. */
int tgt_access_change_kept(struct tgt_access *a, const char *disk, gr_rules_edit edit, void *arg, char **ret_untold, struct gr_err *err);
#endif
