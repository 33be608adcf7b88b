/* What dead jobs have left, put away. Idempotent: every step may have been done before. */
#include "backup-proxy/fs_extract.h"
#include "backup-proxy/intent.h"
#include "backup-proxy/job.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include <string.h>

/* How long a snapshot may be in use by a reader of ours whose end the daemon has not noticed yet. */
#define DROP_PATIENCE_MS 5000
#define DROP_EVERY_MS 20

/* The answer @r to a removal means that the thing is not there (any more). */
static bool is_gone(int r)
{
    return r == 0 || r == -ENOENT || r == -ENOTDIR || r == -GR_EUSAGE; /* a name that cannot be was never made */
}
static int remove_each(struct bp_env *env, json_t *list, const char *method, const char *key, struct gr_err *err)
{
    json_t *v;
    size_t i;
    json_array_foreach(list, i, v) {
        json_t *res = NULL;
        int r = env->storage(env->arg, method, json_pack("{s:O}", key, v), NULL, NULL, &res, err);
        json_decref(res);
        if (!is_gone(r))
            return r;
    }
    return 0;
}
static int undo_restore(struct bp_env *env, json_t *detail, struct gr_err *err)
{
    int r = remove_each(env, json_object_get(detail, "disks"), "disk.delete", "disk", err);
    if (r == 0)
        r = remove_each(env, json_object_get(detail, "files"), "dir.remove", "path", err);
    if (r == 0)
        r = remove_each(env, json_object_get(detail, "dirs"), "dir.remove", "path", err);
    return r;
}
int bp_drop_snapshot(struct bp_env *env, const char *disk, const char *snapshot, struct gr_err *err)
{
    for (unsigned waited = 0;; waited += DROP_EVERY_MS) {
        json_t *res = NULL;
        struct gr_err e = {0};
        int r = env->storage(env->arg, "snapshot.delete", json_pack("{s:s,s:s}", "disk", disk, "snapshot", snapshot), NULL, NULL, &res, &e);
        json_decref(res);
        if (is_gone(r))
            return 0;
        if (r != -GR_ELOCKED || waited >= DROP_PATIENCE_MS)
            return gr_fail(err, r, "%s", gr_err_text(&e, r));
        gr_fiber_sleep_ms(DROP_EVERY_MS);
    }
}
static int undo_backup(struct bp_env *env, json_t *detail, struct gr_err *err)
{
    const char *snap = json_string_value(json_object_get(detail, "snapshot"));
    json_t *v;
    size_t i;
    json_array_foreach(json_object_get(detail, "disks"), i, v) {
        const char *disk = json_string_value(v);
        int r = disk && snap ? bp_drop_snapshot(env, disk, snap, err) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}
static int with_records(struct bp_env *env, const char *kind, const char *only, bool dead,
                        int (*undo)(struct bp_env *env, json_t *detail, struct gr_err *err), struct gr_err *err)
{
    json_t *list = NULL, *in;
    size_t i;
    int n = 0, r = bp_intent_list(env->home, kind, &list, err);
    json_array_foreach(list, i, in) {
        const char *id = json_string_value(json_object_get(in, "id"));
        struct gr_err e = {0};
        if (!id || (only && strcmp(only, id)) || (dead && json_is_true(json_object_get(in, "alive"))))
            continue;
        int u = undo(env, json_object_get(in, "detail"), &e);
        if (u == 0 && !only)
            u = bp_intent_remove(env->home, id, &e);
        if (u == 0)
            n++;
        else if (only)
            r = u;
        else if (env->warn) {
            gr_auto_free char *text = gr_asprintf("what a dead %s has left cannot be put away yet: %s", kind, gr_err_text(&e, u));
            env->warn(env->arg, text ? text : e.text);
        }
    }
    json_decref(list);
    return r < 0 ? r : n;
}
int bp_undo_restore(struct bp_env *env, const char *id, struct gr_err *err)
{
    int r = with_records(env, "restore", id, false, undo_restore, err);
    return r < 0 ? r : 0;
}
int bp_recover_files(struct gr_home *home, struct gr_err *err)
{
    json_t *list = NULL, *in;
    size_t i;
    int n = 0, r = bp_intent_list(home, "extract", &list, err);
    json_array_foreach(list, i, in) {
        const char *id = json_string_value(json_object_get(in, "id")), *path = json_string_value(json_object_get(json_object_get(in, "detail"), "path"));
        if (!id || !path || json_is_true(json_object_get(in, "alive")))
            continue;
        if (fs_extract_undo(path, NULL) == 0 && bp_intent_remove(home, id, NULL) == 0)
            n++;
    }
    json_decref(list);
    return r < 0 ? r : n;
}
int bp_recover(struct bp_env *env, struct bp_repo *repo, struct gr_err *err)
{
    int a = with_records(env, "backup", NULL, true, undo_backup, err);
    int b = a < 0 ? a : with_records(env, "restore", NULL, true, undo_restore, err);
    int c = b < 0 || !repo ? b : bp_repo_sweep(repo, err);
    int d = c < 0 ? c : bp_recover_files(env->home, err);
    return d < 0 ? d : a + b + d;
}
