/* Commands of backup and restore. Those that touch storage run as jobs in granary-proxy, one process each; the others read the
 * repository themselves. */
#ifndef BP_CMD_PROXY_H
#define BP_CMD_PROXY_H
#include "backup-proxy/job.h"
#include "common/cmd.h"
extern const struct gr_cmd bp_backup_commands[];  /* granary backup … */
extern const struct gr_cmd bp_restore_commands[]; /* granary restore vm|disk|file */
int bp_restore_file(struct gr_cmd_ctx *c, struct gr_err *err);
/* granary-proxy's own; its app is a struct bp_job_app. */
extern const struct gr_cmd bp_job_commands[];
struct bp_job_app {
    /* Make the environment of a job on the command's loop; *ret_warn goes to stderr. */
    int (*open)(struct gr_cmd_ctx *c, struct bp_env *ret, struct gr_err *err);
    void (*close)(struct bp_env *env);
};

/* Run granary-proxy (beside this program) with the NULL-terminated @args; its JSON result in *ret (NULL when it gave none). Returns 0
 * or the code that it failed with. Fiber. */
int bp_run_proxy(const char *const *args, json_t **ret, struct gr_err *err);
/* The repository a command means: --repo, else the one this home has used last (conf/repositories.json). */
int bp_cmd_repo(struct gr_cmd_ctx *c, struct bp_repo **ret, struct gr_err *err);
int bp_cmd_repo_path(struct gr_cmd_ctx *c, char **ret, struct gr_err *err);
/* Remember @path as a repository of this home. Best effort. */
void bp_cmd_repo_remember(const char *path);
#endif
