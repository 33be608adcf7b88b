/* Methods snapshot.prune and snapshot.create-by-policy: what cron asks for.
 *
 * All snapshots of a datastore are looked at, for what was taken in one instant goes together: a snapshot is removed only if none of its group stays.
 * Of a disk with a policy those with its prefix are judged (common/retain.h); one that has an expiry stays until then and no longer, whatever its
 * name. What is protected stays. So does what a host has that does not answer, with all that was taken with it, as far as that is home. What was
 * judged is deleted only if it still is the snapshot that was looked at, and expires when it did. */
#include "common/buf.h"
#include "snapshot/service_int.h"
#include <string.h>
#include <time.h>

struct snapshot {
    json_t *row; /* borrowed from @rows */
    bool keep, here; /* here: its disk is below what was asked for */
    char why[96];
    const char *group;
    const char *error; /* why it could not be looked at; NULL: it was */
};
struct prune {
    struct snap_op *op;
    struct snap_ds *ds;
    const char *below;
    int64_t now_s;
    json_t *rows; /* lists of snapshots, one for each disk; and errors, strings */
    json_t *silent; /* {slot: why}: hosts that took too long to answer */
    struct snapshot *s;
    size_t n, cap;
};

static void prune_done(struct prune *p)
{
    json_decref(p->rows);
    json_decref(p->silent);
    free(p->s);
    if (p->ds)
        snap_ds_put(p->ds);
}

/* ---- judging ---- */
static void verdict(struct snapshot *s, bool keep, const char *why)
{
    s->keep = keep;
    snprintf(s->why, sizeof(s->why), "%s", why);
}

static int snapshots_add(struct prune *p, json_t *list, bool here, const char *error)
{
    json_t *row;
    size_t i;
    json_array_foreach(list, i, row)
    {
        if (strcmp(json_string_value(json_object_get(row, "kind")), "snapshot") != 0)
            continue;
        if (p->n == p->cap) {
            size_t cap = p->cap ? p->cap * 2 : 64;
            struct snapshot *s = gr_realloc(p->s, cap * sizeof(*s));
            if (!s)
                return gr_fail(p->op->err, -ENOMEM, "out of memory");
            p->s = s;
            p->cap = cap;
        }
        p->s[p->n++] = (struct snapshot){.row = row, .here = here, .group = json_string_value(json_object_get(row, "group")), .error = error};
    }
    return 0;
}

static int64_t number(const struct snapshot *s, const char *key)
{
    return json_integer_value(json_object_get(s->row, key));
}

static int newest_first(const void *a, const void *b)
{
    const struct snapshot *x = a, *y = b;
    int64_t t = number(y, "created") - number(x, "created"), n = number(y, "id") - number(x, "id");
    return t ? (t > 0 ? 1 : -1) : (n > 0) - (n < 0);
}

/* Snapshots [from, n) are one disk's. */
static int judge(struct prune *p, size_t from, const struct snap_policy *policy)
{
    size_t n = p->n - from, judged = 0;
    gr_auto_free struct gr_retain_item *it = gr_zalloc((n + 1) * sizeof(*it));
    if (!it)
        return gr_fail(p->op->err, -ENOMEM, "out of memory");
    if (n)
        qsort(p->s + from, n, sizeof(*p->s), newest_first);
    for (size_t i = from; i < p->n; i++) {
        struct snapshot *s = &p->s[i];
        const char *name = json_string_value(json_object_get(s->row, "name"));
        int64_t expires = number(s, "expires");
        bool protect = json_is_true(json_object_get(s->row, "protected"));
        if (s->error)
            verdict(s, true, "its host does not answer");
        else if (protect)
            verdict(s, true, "protected");
        else if (expires)
            verdict(s, expires > p->now_s, expires > p->now_s ? "not expired" : "expired");
        else if (policy->none)
            verdict(s, true, "no policy");
        else if (strncmp(name, policy->prefix, strlen(policy->prefix)) != 0)
            verdict(s, true, "not of the policy");
        else
            it[judged++] = (struct gr_retain_item){.time_s = number(s, "created")};
    }
    gr_retain_plan(it, judged, &policy->keep);
    for (size_t i = from, k = 0; i < p->n; i++)
        if (!p->s[i].why[0]) {
            verdict(&p->s[i], it[k].keep, it[k].keep ? it[k].why : "no rule keeps it");
            k++;
        }
    return 0;
}

/* Who has part in a group of which something stays, stays. */
static int judge_groups(struct prune *p)
{
    snap_auto_json json_t *kept = json_object();
    bool ok = kept != NULL;
    for (size_t i = 0; i < p->n; i++)
        if (p->s[i].keep && p->s[i].group && p->s[i].group[0])
            ok &= json_object_set(kept, p->s[i].group, json_object_get(p->s[i].row, "disk")) == 0;
    for (size_t i = 0; i < p->n; i++) {
        const char *disk = p->s[i].keep || !p->s[i].group ? NULL : json_string_value(json_object_get(kept, p->s[i].group));
        if (!disk)
            continue;
        p->s[i].keep = true;
        snprintf(p->s[i].why, sizeof(p->s[i].why), "its group stays on %s", disk);
    }
    return ok ? 0 : gr_fail(p->op->err, -ENOMEM, "out of memory");
}

struct home {
    const char *ds, *path;
    json_t *list;
};
static int add_home(void *arg, const struct snap_info *info)
{
    struct home *h = arg;
    return json_array_append_new(h->list, snap_info_row(h->ds, h->path, info)) < 0 ? -ENOMEM : 0;
}

/* Its snapshots as they are at home, for @why its owner cannot tell. */
static int look_home(struct prune *p, const char *path, const struct vmfs_stat *st, const char *why, json_t **ret, const char **ret_error)
{
    struct home h = {p->ds->name, path, json_array()};
    json_t *text = json_string(why);
    int r = h.list && text && json_array_append(p->rows, text) == 0 ? 0 : gr_fail(p->op->err, -ENOMEM, "out of memory");
    if (r == 0)
        r = snap_list_home(p->ds->v, st->id, add_home, &h, p->op->err);
    *ret_error = json_string_value(text); /* @rows has it */
    json_decref(text);
    if (r < 0)
        json_decref(h.list);
    else
        *ret = h.list;
    return r == -ENOMEM ? gr_fail(p->op->err, r, "out of memory") : r;
}

/* A list of its snapshots, kept in @rows. */
static int look_at_disk(struct prune *p, const char *disk, const char *path, const struct vmfs_stat *st, json_t **ret, const char **ret_error)
{
    struct gr_err err = {0};
    struct vmfs_stat now;
    char slot[16];
    snprintf(slot, sizeof(slot), "%d", st->owner_slot);
    const char *silent = st->owner_slot >= 0 ? json_string_value(json_object_get(p->silent, slot)) : NULL;
    int r = silent ? look_home(p, path, st, silent, ret, ret_error)
                   : snap_op_sub(p->op, snap_op_snapshot_list, "snapshot.list", json_pack("{s:s}", "disk", disk), ret, &err);
    if (r < 0 && !silent) {
        if (st->owner_slot >= 0 && (r == -ETIMEDOUT || r == -EPIPE))
            json_object_set_new(p->silent, slot, json_string(gr_err_text(&err, r)));
        r = look_home(p, path, st, gr_err_text(&err, r), ret, ret_error);
    }
    if (r < 0 && (vmfs_stat(p->ds->v, path, &now, NULL) == -ENOENT || now.id != st->id))
        *ret = json_array(), r = 0; /* it was removed meanwhile */
    return r < 0 ? r : json_array_append_new(p->rows, *ret) < 0 ? gr_fail(p->op->err, -ENOMEM, "out of memory") : 0;
}

static int look_at(void *arg, const char *path, const struct vmfs_stat *st)
{
    struct prune *p = arg;
    json_t *list = NULL;
    const char *error = NULL;
    size_t from = p->n;
    if (st->type == VMFS_DIR)
        return SNAP_WALK_INTO;
    if (st->type != VMFS_DISK || (st->n_snapshots == 0 && !snap_handle_find(p->ds, path) && st->owner_slot < 0))
        return 0;
    gr_auto_free char *disk = gr_asprintf("%s/%s", p->ds->name, path);
    struct snap_policy *policy = gr_alloc(sizeof(*policy));
    int r = disk && policy ? 0 : gr_fail(p->op->err, -ENOMEM, "out of memory");
    if (r == 0)
        r = look_at_disk(p, disk, path, st, &list, &error);
    if (r == 0)
        r = snapshots_add(p, list, snap_is_below(path, p->below), error);
    if (r == 0 && p->n > from)
        r = snap_policy_find(p->ds, path, policy, p->op->err);
    if (r == 0 && p->n > from)
        r = judge(p, from, policy);
    free(policy);
    return r;
}

/* ---- removing ---- */
static bool wanted(const struct prune *p, const struct snapshot *s)
{
    bool here = s->here;
    for (size_t i = 0; !here && !s->keep && s->group && s->group[0] && i < p->n; i++)
        here = p->s[i].here && p->s[i].group && strcmp(p->s[i].group, s->group) == 0; /* taken along */
    return here;
}

/* It, as it was looked at. 0; what could not be deleted stays, and says why. */
static int remove_one(struct prune *p, struct snapshot *s, struct gr_err *err)
{
    json_t *row = s->row;
    int r = snap_op_sub(p->op, snap_op_snapshot_delete, "snapshot.delete",
                        json_pack("{s:O,s:O,s:{s:O,s:I}}", "disk", json_object_get(row, "disk"), "snapshot", json_object_get(row, "name"), "seen", "bookmark",
                                  json_object_get(row, "bookmark"), "expires", (json_int_t)number(s, "expires")), NULL, err);
    if (r == -ENOENT)
        verdict(s, false, "it is gone already");
    else if (r == -ESTALE)
        verdict(s, true, "it is not what it was when it was judged");
    return r;
}

static json_t *result_row(struct prune *p, struct snapshot *s, json_t *left, bool dry)
{
    struct gr_err err = {0};
    const char *elsewhere = s->keep || !s->group || !s->group[0] ? NULL : json_string_value(json_object_get(left, s->group));
    if (elsewhere) {
        s->keep = true;
        snprintf(s->why, sizeof(s->why), "its group stays on %s", elsewhere);
    }
    int r = s->keep || dry ? 0 : remove_one(p, s, &err);
    bool failed = r < 0 && r != -ENOENT;
    if (failed && s->group && s->group[0] && json_object_set(left, s->group, json_object_get(s->row, "disk")) < 0)
        return NULL;
    json_t *row = json_pack("{s:O,s:O,s:O,s:b,s:s}", "disk", json_object_get(s->row, "disk"), "name", json_object_get(s->row, "name"), "created",
                            json_object_get(s->row, "created"), "keep", s->keep, "why", s->why);
    if (s->error)
        json_object_set_new(row, "error", json_string(s->error));
    if (s->keep || dry)
        return row;
    json_object_set_new(row, "deleted", json_boolean(r == 0));
    if (failed)
        json_object_set_new(row, "error", json_string(gr_err_text(&err, r)));
    return row;
}

static int op_prune(struct snap_op *op)
{
    const struct gr_world *w = gr_loop_world(op->s->o.loop);
    struct snap_path path;
    gr_auto(prune_done) struct prune p = {.op = op, .rows = json_array(), .silent = json_object(), .now_s = w->wall_s(w->arg)};
    snap_auto_json json_t *a = json_array(), *left = json_object(); /* left: {group: a disk on which it could not be deleted} */
    bool dry = false;
    int r = snap_op_path(op, "path", SNAP_PATH_DIR, &path);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "dry-run", &dry, op->err);
    if (r == 0)
        r = snap_ds_get(op->s, path.ds, &p.ds, op->err);
    struct vmfs_stat st;
    if (r == 0 && path.path[0])
        r = vmfs_stat(p.ds->v, path.path, &st, op->err); /* a name that is not there is no empty folder */
    p.below = path.path;
    if (r == 0 && (r = snap_walk(p.ds, "", look_at, &p, op->err)) < 0 && !op->err->code)
        gr_fail(op->err, r, "datastore '%s': %s", path.ds, gr_code_text(r));
    if (r == 0)
        r = judge_groups(&p);
    for (size_t i = 0; r == 0 && i < p.n; i++)
        if (wanted(&p, &p.s[i]) && json_array_append_new(a, result_row(&p, &p.s[i], left, dry)) < 0)
            r = gr_fail(op->err, -ENOMEM, "out of memory");
    op->forward = false; /* other hosts did their part */
    return r < 0 ? r : snap_op_result(op, gr_take(a));
}
SNAP_METHOD(op_prune, "snapshot.prune")

/* ---- taking ---- */
struct set { /* of one instant */
    json_t *disks;
    char prefix[64];
    char folder[VMFS_PATH_MAX + 1];
    bool named; /* disks that the request names */
};
struct taking {
    struct snap_op *op;
    struct snap_ds *ds;
    struct set *set;
    size_t n;
    bool named;
};

static void taking_done(struct taking *t)
{
    for (size_t i = 0; i < t->n; i++)
        json_decref(t->set[i].disks);
    free(t->set);
    if (t->ds)
        snap_ds_put(t->ds);
}

static int set_for(struct taking *t, const char *path, struct set **ret)
{
    const char *slash = strrchr(path, '/');
    size_t len = slash && !t->named ? (size_t)(slash - path) : 0;
    for (size_t i = 0; i < t->n; i++)
        if (t->set[i].named == t->named && strlen(t->set[i].folder) == len && memcmp(t->set[i].folder, path, len) == 0) {
            *ret = &t->set[i];
            return 0;
        }
    struct set *s = gr_realloc(t->set, (t->n + 1) * sizeof(*s));
    if (!s)
        return gr_fail(t->op->err, -ENOMEM, "out of memory");
    t->set = s;
    s += t->n++;
    *s = (struct set){.disks = json_array(), .named = t->named};
    memcpy(s->folder, path, len);
    *ret = s;
    return 0;
}

static int take_in(void *arg, const char *path, const struct vmfs_stat *st)
{
    struct taking *t = arg;
    struct set *s = NULL;
    if (st->type == VMFS_DIR)
        return SNAP_WALK_INTO;
    if (st->type != VMFS_DISK)
        return 0;
    struct snap_policy *p = gr_alloc(sizeof(*p));
    int r = p ? snap_policy_find(t->ds, path, p, t->op->err) : gr_fail(t->op->err, -ENOMEM, "out of memory");
    if (r == 0 && p->none && t->named)
        r = gr_fail(t->op->err, -ENOENT, "disk %s/%s has no snapshot policy, nor has a folder above it (granary snapshot policy)", t->ds->name, path);
    if (r == 0 && !p->none)
        r = set_for(t, path, &s);
    gr_auto_free char *disk = s ? gr_asprintf("%s/%s", t->ds->name, path) : NULL;
    if (s && s->prefix[0] && strcmp(s->prefix, p->prefix) != 0)
        r = gr_fail(t->op->err, -GR_EUSAGE, "disks of one instant have policies of two prefixes, '%s' and (%s) '%s': take them one after the other", s->prefix, disk,
                    p->prefix);
    if (s && r == 0) {
        memcpy(s->prefix, p->prefix, sizeof(s->prefix));
        if (json_array_append_new(s->disks, json_string(disk)) < 0)
            r = gr_fail(t->op->err, -ENOMEM, "out of memory");
    }
    free(p);
    return r;
}

static int sets_of(struct taking *t, json_t *paths)
{
    struct snap_path *p = gr_alloc(sizeof(*p));
    struct vmfs_stat st;
    json_t *text;
    size_t i;
    int r = p ? 0 : gr_fail(t->op->err, -ENOMEM, "out of memory");
    json_array_foreach(paths, i, text)
    {
        if (r == 0)
            r = snap_path_parse(json_is_string(text) ? json_string_value(text) : "", SNAP_PATH_DIR, p, t->op->err);
        if (r == 0 && !t->ds)
            r = snap_ds_get(t->op->s, p->ds, &t->ds, t->op->err);
        if (r == 0 && strcmp(t->ds->name, p->ds) != 0)
            r = gr_fail(t->op->err, -EXDEV, "'%s' and '%s' are two datastores: take them one after the other", t->ds->name, p->ds);
        if (r == 0)
            r = vmfs_stat(t->ds->v, p->path, &st, t->op->err);
        t->named = r == 0 && st.type != VMFS_DIR;
        if (r == 0 && t->named)
            r = take_in(t, p->path, &st);
        else if (r == 0 && (r = snap_walk(t->ds, p->path, take_in, t, t->op->err)) < 0 && !t->op->err->code)
            gr_fail(t->op->err, r, "%s: %s", json_string_value(text), gr_code_text(r));
        if (r < 0)
            break;
    }
    free(p);
    return r;
}

/* One instant for all disks that were named, and one for those of each folder. */
static int op_create_by_policy(struct snap_op *op)
{
    const struct gr_world *w = gr_loop_world(op->s->o.loop);
    gr_auto(taking_done) struct taking t = {.op = op};
    snap_auto_json json_t *a = json_array();
    json_t *paths = NULL;
    uint64_t expires = 0;
    time_t now = (time_t)w->wall_s(w->arg);
    struct tm tm = {0};
    char stamp[32], name[128];
    int r = gr_json_array(op->params, "paths", &paths, op->err);
    if (r == 0)
        r = gr_json_opt_u64(op->params, "expires", &expires, op->err);
    if (r == 0)
        r = sets_of(&t, paths);
    if (r == 0 && t.n == 0)
        r = gr_fail(op->err, -ENOENT, "no disk there has a snapshot policy (granary snapshot policy)");
    gmtime_r(&now, &tm);
    strftime(stamp, sizeof(stamp), "%Y%m%d-%H%M%S", &tm);
    for (size_t i = 0; r == 0 && i < t.n; i++) {
        json_t *rows = NULL;
        snprintf(name, sizeof(name), "%s%s", t.set[i].prefix, stamp);
        r = snap_op_sub(op, snap_op_snapshot_create, "snapshot.create",
                        json_pack("{s:O,s:s,s:I}", "disks", t.set[i].disks, "name", name, "expires", (json_int_t)expires), &rows, op->err);
        if (r == 0)
            json_array_extend(a, rows);
        json_decref(rows);
        if (r < 0 && i)
            r = gr_prefix(op->err, -GR_EPARTIAL, "%zu of %zu folders are done, then", i, t.n);
    }
    op->forward = false;
    return r < 0 ? r : snap_op_result(op, gr_take(a));
}
SNAP_METHOD(op_create_by_policy, "snapshot.create-by-policy")

const struct gr_rpc_method snap_prune_methods[] = {
    {"snapshot.prune", rpc_op_prune, .destroys = true}, {"snapshot.create-by-policy", rpc_op_create_by_policy}, {NULL, NULL},
};
