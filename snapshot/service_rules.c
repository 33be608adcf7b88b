/* Access rules of disks (common/rules.h), kept in their datastore (service_table.c) in granary.access: of a disk's UUID (VPD 83)
 * {"rules"?: ENTRY, "snapshots"?: {NAME: ENTRY}}. */
#include "common/buf.h"
#include "snapshot/service_int.h"
#include <string.h>

/* The key of the disk's rules. */
static int identify(struct snap_ds *ds, const char *path, char ret[33], struct gr_err *err)
{
    struct vmfs_stat st;
    int r = snap_stat(ds, path, &st, err);
    if (r == 0 && st.type != VMFS_DISK)
        r = gr_fail(err, -ENOENT, "%s/%s is not a disk", ds->name, path);
    if (r == 0)
        snap_table_key(st.uuid, ret);
    return r;
}

static int datastore_of(struct snap_svc *s, const char *disk, struct snap_path *p, struct snap_ds **ret, struct gr_err *err)
{
    int r = snap_path_parse(disk, SNAP_PATH_EITHER, p, err);
    if (r < 0) {
        err->code = -ENOENT;
        return gr_prefix(err, -ENOENT, "no such disk");
    }
    r = snap_ds_get(s, p->ds, ret, err);
    if (r == -ENOENT)
        err->code = r = -ENODEV;
    return r;
}

static int rules_get(void *arg, const char *disk, json_t **ret, struct gr_err *err)
{
    struct gr_err scratch = {0};
    struct gr_err *e = err ? err : &scratch;
    struct snap_path p;
    struct snap_ds *ds = NULL;
    char uuid[33];
    json_t *row;
    int r = datastore_of(arg, disk, &p, &ds, e);
    if (r < 0)
        return r;
    r = identify(ds, p.path, uuid, e);
    if (r == 0)
        r = snap_table_look(ds, &ds->rules, e);
    if (r == 0)
        r = snap_table_row(ds, &ds->rules, uuid, &row, e);
    if (r == 0)
        *ret = json_incref(row);
    snap_ds_put(ds);
    return r;
}

/* ---- changing ---- */
struct editing {
    json_t *names;
    gr_rules_edit edit;
    void *arg;
};

/* @new in its place in @row. */
static int place(json_t *row, const char *snap, json_t *new)
{
    json_t *snaps = json_object_get(row, "snapshots");
    if (!snap[0])
        return json_object_set_new(row, "rules", new);
    if (!snaps && json_object_set_new(row, "snapshots", snaps = json_object()) < 0)
        snaps = NULL;
    return json_object_set_new(snaps, snap, new);
}

static int edit_one(const struct editing *e, struct snap_ds *ds, json_t *rows, const char *name, struct gr_err *err)
{
    struct snap_path p;
    char uuid[33];
    json_t *row = NULL, *new = NULL;
    int r = snap_path_parse(name, SNAP_PATH_EITHER, &p, err);
    if (r == 0)
        r = identify(ds, p.path, uuid, err);
    if (r == 0 && !(row = json_object_get(rows, uuid)))
        r = snap_table_row(ds, &ds->rules, uuid, &row, err);
    if (r < 0)
        return r;
    const json_t *own = json_object_get(row, "rules"), *above = NULL;
    if (p.snap[0]) {
        above = own;
        own = json_object_get(json_object_get(row, "snapshots"), p.snap);
    }
    r = e->edit(e->arg, name, own, above, &new, err);
    if (r < 0 || !new)
        return r;
    snap_auto_json json_t *changed = row ? json_deep_copy(row) : json_object();
    if (place(changed, p.snap, new) < 0 || json_object_set(rows, uuid, changed) < 0)
        return gr_fail(err, -ENOMEM, "access rules: out of memory");
    return 0;
}

static int edit_all(void *arg, struct snap_ds *ds, json_t *rows, struct gr_err *err)
{
    const struct editing *e = arg;
    json_t *name;
    size_t i;
    int r = 0;
    json_array_foreach(e->names, i, name)
    {
        if (r == 0)
            r = edit_one(e, ds, rows, json_string_value(name), err);
    }
    return r;
}

/* A sentence about hosts that do not know yet. */
static char *tell(struct snap_ds *ds, json_t *names)
{
    struct gr_err err = {0};
    int r = snap_ds_tell(ds, "lun.rules-changed", json_pack("{s:O}", "disks", names), &err);
    if (r == 0)
        return NULL;
    return gr_asprintf("not every host could be told, and sessions there go on until their next login: %s", gr_err_text(&err, r));
}

static int rules_change(void *arg, json_t *names, gr_rules_edit edit, void *edit_arg, char **ret_untold, struct gr_err *err)
{
    struct gr_err scratch = {0};
    struct gr_err *e = err ? err : &scratch;
    struct editing editing = {names, edit, edit_arg};
    struct snap_path p;
    struct snap_ds *ds = NULL;
    const char *first = json_string_value(json_array_get(names, 0));
    int r = datastore_of(arg, first ? first : "", &p, &ds, e);
    if (r < 0)
        return r;
    r = snap_table_change(ds, &ds->rules, edit_all, &editing, e);
    char *untold = r == 0 ? tell(ds, names) : NULL;
    snap_ds_put(ds);
    if (ret_untold && r == 0)
        *ret_untold = gr_take(untold);
    free(untold);
    return r;
}

struct gr_rules snap_svc_rules(struct snap_svc *s)
{
    return (struct gr_rules){.arg = s, .get = rules_get, .change = rules_change};
}

/* ---- what is deleted ---- */
struct gone {
    char uuid[33];
    const char *snap; /* NULL: the disk */
};

static int forget(void *arg, struct snap_ds *ds, json_t *rows, struct gr_err *err)
{
    const struct gone *g = arg;
    json_t *row = json_object_get(ds->rules.rows, g->uuid);
    json_t *left = g->snap ? json_deep_copy(row) : json_object();
    json_t *snaps = json_object_get(left, "snapshots");
    json_object_del(snaps, g->snap ? g->snap : "");
    if (!json_object_size(snaps))
        json_object_del(left, "snapshots");
    return json_object_set_new(rows, g->uuid, left) < 0 ? gr_fail(err, -ENOMEM, "out of memory") : 0;
}

void snap_rules_forget(struct snap_ds *ds, const uint8_t uuid[16], const char *snap)
{
    struct gone g = {.snap = snap};
    struct gr_err err = {0};
    snap_table_key(uuid, g.uuid);
    int r = snap_table_look(ds, &ds->rules, &err);
    json_t *row = r == 0 ? json_object_get(ds->rules.rows, g.uuid) : NULL;
    if (row && (!snap || json_object_get(json_object_get(row, "snapshots"), snap)))
        r = snap_table_change(ds, &ds->rules, forget, &g, &err);
    if (r < 0)
        snap_warn(ds->svc, "the access rules of what was deleted stay, and rule nothing: %s", gr_err_text(&err, r));
}

/* ---- snapshots that change hands ---- */
struct handing {
    const struct snap_handing *h;
    json_t *there; /* names of the snapshots that the clone has */
    bool begins;   /* it has them for itself, and is about to be promoted */
    bool done;     /* they are what the other had */
};

static int keep_snapshots(json_t *rows, const char *uuid, json_t *row, json_t *snaps)
{
    snap_auto_json json_t *changed = row ? json_copy(row) : json_object();
    if (json_object_size(snaps) ? json_object_set(changed, "snapshots", snaps) < 0 : !changed)
        return -ENOMEM;
    if (!json_object_size(snaps))
        json_object_del(changed, "snapshots");
    return json_object_set(rows, uuid, changed);
}

static int hand(void *arg, struct snap_ds *ds, json_t *rows, struct gr_err *err)
{
    const struct handing *n = arg;
    json_t *from = json_object_get(ds->rules.rows, n->h->from), *to = json_object_get(ds->rules.rows, n->h->to), *entry;
    json_t *all = json_object_get(from, "snapshots"), *own = json_object_get(to, "snapshots");
    snap_auto_json json_t *left = all ? json_deep_copy(all) : json_object(), *has = own ? json_deep_copy(own) : json_object();
    const char *name;
    int r = left && has ? 0 : -ENOMEM;
    json_object_foreach(all, name, entry)
    {
        bool there = json_object_get(n->there, name);
        if (r == 0 && n->begins && !there && !json_object_get(has, name))
            r = json_object_set(has, name, entry) < 0 || json_object_set_new(n->h->added, name, json_true()) < 0 ? -ENOMEM : 0;
        if (n->done && there)
            json_object_del(left, name);
    }
    json_object_foreach(n->h->added, name, entry)
    {
        if (!n->begins && !(n->done && json_object_get(n->there, name)))
            json_object_del(has, name);
    }
    if (r == 0)
        r = keep_snapshots(rows, n->h->from, from, left);
    if (r == 0)
        r = keep_snapshots(rows, n->h->to, to, has);
    return r < 0 ? gr_fail(err, -ENOMEM, "access rules: out of memory") : 0;
}

static int note_name(void *arg, const struct snap_info *info)
{
    return json_object_set_new(arg, info->name, json_true()) < 0 ? -ENOMEM : 0;
}

static int hand_now(struct snap_ds *ds, struct handing *n, struct gr_err *err)
{
    snap_auto_json json_t *there = json_object();
    n->there = there;
    int r = there && n->h->added ? snap_list(n->h->clone, note_name, there, err) : gr_fail(err, -ENOMEM, "access rules: out of memory");
    return r < 0 ? r : snap_table_change(ds, &ds->rules, hand, n, err);
}

int snap_rules_hand_begin(struct snap_ds *ds, struct snap_handing *h, struct gr_err *err)
{
    struct handing n = {.h = h, .begins = true};
    int r = snap_table_look(ds, &ds->rules, err);
    if (r < 0 || !json_object_size(json_object_get(json_object_get(ds->rules.rows, h->from), "snapshots")))
        return r;
    h->added = json_object();
    return hand_now(ds, &n, err);
}

void snap_rules_hand_end(struct snap_ds *ds, struct snap_handing *h, bool done)
{
    struct gr_err err = {0};
    struct handing n = {.h = h, .done = done};
    int r = h->added ? hand_now(ds, &n, &err) : 0;
    if (r < 0)
        snap_warn(ds->svc, "access rules of snapshots that have changed hands stay with both disks: %s", gr_err_text(&err, r));
    json_decref(gr_take(h->added));
}
