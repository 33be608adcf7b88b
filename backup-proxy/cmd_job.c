/* granary-proxy's commands: each is one job; with --json the result, or the failure, is one object on standard output. */
#include "backup-proxy/cmd_proxy.h"
#include "backup-proxy/point.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include <stdio.h>
#include <string.h>

#define DISKS_MAX 32
static int env_open(struct gr_cmd_ctx *c, struct bp_env *ret, struct gr_err *err)
{
    const struct bp_job_app *app = gr_cmd_app(c);
    return app->open(c, ret, err);
}
static void env_close(struct gr_cmd_ctx *c, struct bp_env *env)
{
    const struct bp_job_app *app = gr_cmd_app(c);
    app->close(env);
}
/* Tell the result; a failure too, so that whoever started the job has its code and sentence. */
static int tell(struct gr_cmd_ctx *c, int r, json_t *res, const struct gr_err *err)
{
    if (r == 0) {
        int shown = gr_cmd_done(c, res, "done: %s", json_string_value(json_object_get(res, "point")));
        json_decref(res);
        return shown;
    }
    if (gr_cmd_json(c)) {
        json_t *o = json_pack("{s:s,s:s}", "code", gr_code_name(r), "error", gr_err_text(err, r));
        if (o && json_dumpf(o, stdout, JSON_COMPACT) == 0) {
            putchar('\n');
            gr_cmd_told(c);
        }
        json_decref(o);
    }
    return r;
}
static int cmd_job_backup(struct gr_cmd_ctx *c, struct gr_err *err)
{
    const char *disks[DISKS_MAX], *v;
    struct bp_backup_spec s = {.repo = gr_cmd_opt(c, "repo"),
                               .vm = gr_cmd_arg(c, 0),
                               .disks = disks,
                               .name = gr_cmd_opt(c, "name"),
                               .transport = gr_cmd_opt(c, "transport"),
                               .full = gr_cmd_flag(c, "full"),
                               .no_quiesce = gr_cmd_flag(c, "no-quiesce")};
    struct bp_env env = {.arg = NULL};
    json_t *res = NULL;
    uint64_t level = 0;
    if (!s.repo)
        return gr_fail(err, -GR_EUSAGE, "--repo DIR is missing");
    for (; (v = gr_cmd_opt_n(c, "disk", (int)s.n_disks)); s.n_disks++) {
        if (s.n_disks == DISKS_MAX)
            return gr_fail(err, -GR_EUSAGE, "more than %d disks in one backup", DISKS_MAX);
        disks[s.n_disks] = v;
    }
    v = gr_cmd_opt(c, "level");
    if (v && gr_parse_u64(v, 1, 19, &level, err) < 0)
        return gr_prefix(err, -GR_EUSAGE, "--level");
    s.level = (int)level;
    int r = env_open(c, &env, err);
    if (r == 0)
        r = bp_backup(&env, &s, &res, err);
    env_close(c, &env);
    return tell(c, r, res, err);
}
static int restore(struct gr_cmd_ctx *c, bool vm, struct gr_err *err)
{
    struct bp_env env = {.arg = NULL};
    struct bp_repo *repo = NULL;
    json_t *res = NULL;
    char id[BP_POINT_ID_MAX];
    gr_auto_free char *disk = NULL;
    int r = bp_cmd_repo(c, &repo, err);
    if (r == 0)
        r = bp_point_resolve(repo, gr_cmd_arg(c, 0), id, vm ? NULL : &disk, err);
    if (r == 0)
        r = env_open(c, &env, err);
    env.encrypt = gr_cmd_flag(c, "encrypt");
    if (r == 0)
        r = vm ? bp_restore_vm(&env, repo, id, gr_cmd_arg(c, 1), &res, err) : bp_restore_disk(&env, repo, id, disk, gr_cmd_arg(c, 1), &res, err);
    env_close(c, &env);
    bp_repo_close(repo);
    return tell(c, r, res, err);
}
static int cmd_job_vm(struct gr_cmd_ctx *c, struct gr_err *err)
{
    return restore(c, true, err);
}
static int cmd_job_disk(struct gr_cmd_ctx *c, struct gr_err *err)
{
    return restore(c, false, err);
}
static int cmd_job_recover(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct bp_env env = {.arg = NULL};
    struct bp_repo *repo = NULL;
    int r = gr_cmd_opt(c, "repo") ? bp_cmd_repo(c, &repo, err) : 0, n = 0;
    if (r == 0)
        r = env_open(c, &env, err);
    if (r == 0)
        r = n = bp_recover(&env, repo, err);
    env_close(c, &env);
    bp_repo_close(repo);
    if (r < 0)
        return r;
    json_t *o = json_pack("{s:i}", "settled", n);
    r = gr_cmd_done(c, o, "put away what %d dead jobs had left", n);
    json_decref(o);
    return r;
}
static const struct gr_opt backup_opts[] = {{"repo", "DIR", "the repository; made when it does not exist", false},
                                            {"transport", "HOW", "san, lan or local", false},
                                            {"disk", "DS/PATH", "a plain disk, instead of a VM", true},
                                            {"name", "NAME", "name of the backup", false},
                                            {"full", NULL, "read everything", false},
                                            {"level", "N", "zstd level 1 to 19", false},
                                            {"no-quiesce", NULL, "do not freeze the guest", false},
                                            {NULL, NULL, NULL, false}};
static const struct gr_opt restore_opts[] = {{"repo", "DIR", "the repository", false},
                                             {"encrypt", NULL, "encrypt the disks that are made", false},
                                             {NULL, NULL, NULL, false}};
static const struct gr_opt recover_opts[] = {{"repo", "DIR", "the repository", false}, {NULL, NULL, NULL, false}};
const struct gr_cmd bp_job_commands[] = {
    {NULL, "backup", "[VM]", 0, 1, "back up one VM, or the disks named", backup_opts, cmd_job_backup},
    {NULL, "restore-vm", "POINT DS/NEWNAME", 2, 2, "make a new VM from a restore point", restore_opts, cmd_job_vm},
    {NULL, "restore-disk", "POINT[:DISK] DS/PATH", 2, 2, "make a new disk from a disk of a restore point", restore_opts, cmd_job_disk},
    {NULL, "recover", "", 0, 0, "put away what dead jobs have left", recover_opts, cmd_job_recover},
    {NULL, NULL, NULL, 0, 0, NULL, NULL, NULL}};
