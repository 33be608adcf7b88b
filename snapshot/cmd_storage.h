/* Shared by the storage commands (cmd_datastore.c, cmd_disk.c, cmd_snapshot.c). */
#ifndef SNAPSHOT_CMD_STORAGE_H
#define SNAPSHOT_CMD_STORAGE_H
#include "snapshot/client.h"

/* Run one method of the service of this GRANARY_HOME. Takes @params; NULL means that an argument was not UTF-8. */
int snap_cmd_call(struct gr_cmd_ctx *c, const char *method, json_t *params, int (*on_part)(void *arg, json_t *part), void *arg, json_t **ret,
                  struct gr_err *err);
/* "DS/PATH" of @p in new memory, NULL: out of memory. */
char *snap_cmd_disk(const struct snap_path *p);
/* Parameters for a method about @device (a path is made absolute) of datastore @name, which is checked; @size: text of its length, or NULL. */
int snap_cmd_device_params(struct gr_cmd_ctx *c, const char *name, const char *device, const char *size, json_t **ret, struct gr_err *err);
/* @path made absolute by the working directory; new memory. */
int snap_cmd_absolute(const char *path, char **ret, struct gr_err *err);
/* --size of the command line. */
int snap_cmd_size(struct gr_cmd_ctx *c, const char *text, uint64_t *ret, struct gr_err *err);
/* on_part of a long request that tells "done" and "total". */
struct snap_transfer {
    struct gr_cmd_ctx *c;
    const char *what; /* it does */
};
int snap_cmd_show_progress(void *arg, json_t *part);
int snap_cmd_quota(struct gr_cmd_ctx *c, struct gr_err *err); /* cmd_quota.c */
/* cmd_clone.c */
int snap_cmd_clone(struct gr_cmd_ctx *c, struct gr_err *err);
int snap_cmd_detach(struct gr_cmd_ctx *c, struct gr_err *err);
int snap_cmd_promote(struct gr_cmd_ctx *c, struct gr_err *err);
extern const struct gr_opt snap_clone_opts[], snap_detach_opts[];
/* cmd_defragment.c */
int snap_cmd_defragment(struct gr_cmd_ctx *c, struct gr_err *err);
extern const struct gr_opt snap_defragment_opts[];
/* cmd_policy.c */
int snap_cmd_policy(struct gr_cmd_ctx *c, struct gr_err *err);
int snap_cmd_prune(struct gr_cmd_ctx *c, struct gr_err *err);
int snap_cmd_protect(struct gr_cmd_ctx *c, struct gr_err *err);
int snap_cmd_unprotect(struct gr_cmd_ctx *c, struct gr_err *err);
int snap_cmd_expire(struct gr_cmd_ctx *c, struct gr_err *err);
int snap_cmd_expiry(const char *text, int64_t *ret, struct gr_err *err); /* "7d" from now, in seconds since 1970 */
extern const struct gr_opt snap_policy_opts[], snap_prune_opts[], snap_protect_opts[];
/* cmd_check.c */
int snap_cmd_check(struct gr_cmd_ctx *c, struct gr_err *err);
/* cmd_rescue.c */
int snap_cmd_rescued(struct gr_cmd_ctx *c, struct gr_err *err);
int snap_cmd_replace_device(struct gr_cmd_ctx *c, struct gr_err *err);
extern const struct gr_opt snap_replace_opts[];
/* cmd_check.c, too */
int snap_cmd_accept_loss(struct gr_cmd_ctx *c, struct gr_err *err);
int snap_cmd_scrub(struct gr_cmd_ctx *c, struct gr_err *err);
extern const struct gr_opt snap_check_opts[], snap_scrub_opts[];
#endif
