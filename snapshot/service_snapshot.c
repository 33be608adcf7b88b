/* Methods snapshot.*: create, describe, list, delete, revert, clone, bookmark, diff. */
#include "common/range_text.h"
#include "snapshot/service_int.h"
#include <string.h>

#define DIFF_BATCH 2048 /* ranges in one part */

json_t *snap_info_row(const char *ds, const char *path, const struct snap_info *i)
{
    char token[96];
    gr_auto_free char *disk = gr_asprintf("%s/%s", ds, path);
    gr_bookmark_format(&i->bookmark, token);
    json_t *row = json_pack("{s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:s,s:i,s:b,s:b,s:i,s:s}", "disk", disk ? disk : path, "name", i->name, "kind",
                     i->is_bookmark ? "bookmark" : "snapshot", "id", (json_int_t)i->id, "parent-id", (json_int_t)i->parent_id, "created",
                     (json_int_t)i->created_s, "size", (json_int_t)i->size, "bookmark", token, "clones", (int)i->clones, "current",
                     i->current, "deleting", i->deleting, "pins", (int)i->pins, "group", i->group);
    if (row && i->counted)
        snap_usage_row(row, i->used, i->unique);
    json_object_set_new(row, "protected", json_boolean(i->protect));
    if (i->protect) {
        json_object_set_new(row, "protected-by", json_string(i->protected_by));
        json_object_set_new(row, "protected-since", json_integer(i->protected_s));
        json_object_set_new(row, "protected-why", json_string(i->protected_why));
    }
    if (i->expires_s)
        json_object_set_new(row, "expires", json_integer(i->expires_s));
    return row;
}

static int open_disk(struct snap_op *op, struct snap_path *p, struct snap_disk *d)
{
    int r = snap_op_path(op, "disk", SNAP_PATH_DISK, p);
    return r < 0 ? r : snap_disk_get(op, p, d);
}

/* ---- what a snapshot is for: an attribute of its disk ---- */
#define TEXT_MAX 1024u /* bytes */

static int set_text(struct vmfs_disk *d, uint64_t id, const char *text, struct gr_err *err)
{
    struct gr_bdev *b = vmfs_bdev(d);
    char key[33];
    snap_text_key(id, key);
    return b->ops->attr_set(b, key, text, strlen(text), err);
}

static void add_text(struct vmfs_disk *d, uint64_t id, json_t *row)
{
    struct gr_bdev *b = vmfs_bdev(d);
    gr_auto_free void *text = NULL;
    char key[33];
    snap_text_key(id, key);
    int n = b->ops->attr_get(b, key, &text, NULL);
    json_object_set_new(row, "description", json_stringn(n > 0 ? text : "", n > 0 ? (size_t)n : 0));
}

/* "part-of" */
static void add_part(struct vmfs_disk *d, uint64_t id, json_t *row)
{
    struct gr_bdev *b = vmfs_bdev(d);
    gr_auto_free void *of = NULL;
    char key[33];
    snprintf(key, sizeof(key), VMFS_NOTE_PART "-%llx", (unsigned long long)id);
    int n = b->ops->attr_get(b, key, &of, NULL);
    if (n > 0)
        json_object_set_new(row, "part-of", json_stringn(of, (size_t)n));
}

static bool has_text(struct vmfs_disk *d, uint64_t id)
{
    struct gr_bdev *b = vmfs_bdev(d);
    gr_auto_free void *text = NULL;
    char key[33];
    snap_text_key(id, key);
    return b->ops->attr_get(b, key, &text, NULL) > 0;
}

static int op_describe(struct snap_op *op)
{
    struct snap_path p;
    struct snap_disk d = {0};
    struct snap_info info;
    const char *name = NULL, *text = NULL;
    int r = gr_json_str(op->params, "snapshot", &name, op->err);
    if (r == 0)
        r = gr_json_str(op->params, "description", &text, op->err);
    if (r == 0 && strlen(text) > TEXT_MAX)
        r = gr_fail(op->err, -GR_EUSAGE, "a description of %zu bytes, the longest allowed is %u", strlen(text), TEXT_MAX);
    if (r == 0)
        r = open_disk(op, &p, &d);
    if (r < 0)
        return r;
    r = snap_find(d.h->disk, name, &info, op->err);
    if (r == 0 && info.is_bookmark)
        r = gr_fail(op->err, -EINVAL, "%s/%s@%s is a bookmark: only snapshots are described", p.ds, p.path, name);
    if (r == 0)
        r = set_text(d.h->disk, info.id, text, op->err);
    snap_disk_put(&d);
    return r;
}
SNAP_METHOD(op_describe, "snapshot.describe")

/* Of what snapshot of a virtual machine it is a part; "": of none. */
static int op_part(struct snap_op *op)
{
    struct snap_path p;
    struct snap_disk d = {0};
    const char *name = NULL, *of = NULL;
    int r = gr_json_str(op->params, "snapshot", &name, op->err);
    if (r == 0)
        r = gr_json_str(op->params, "of", &of, op->err);
    if (r == 0 && strlen(of) > TEXT_MAX)
        r = gr_fail(op->err, -GR_EUSAGE, "\"of\": %zu bytes, the longest allowed is %u", strlen(of), TEXT_MAX);
    if (r == 0)
        r = open_disk(op, &p, &d);
    if (r < 0)
        return r;
    r = snap_part_of(d.h->disk, name, of, op->err);
    snap_disk_put(&d);
    return r;
}
SNAP_METHOD(op_part, "snapshot.part")

/* ---- create ---- */
struct group {
    struct snap_path *paths;
    struct snap_disk *disks;  /* those without a handle are another host's, */
    struct snap_place *where; /* who is this */
    size_t n, n_others;
};

static void group_done(struct group *g)
{
    for (size_t i = 0; g->disks && i < g->n; i++)
        snap_disk_put(&g->disks[i]);
    free(g->disks);
    free(g->where);
    free(g->paths);
}

static int group_parse(struct snap_op *op, struct group *g)
{
    json_t *list = NULL;
    int r = gr_json_array(op->params, "disks", &list, op->err);
    if (r < 0)
        return r;
    size_t n = json_array_size(list);
    if (n == 0 || n > SNAP_GROUP_MAX)
        return gr_fail(op->err, -GR_EUSAGE, "%zu disks given; 1 to %u can be taken in one instant", n, SNAP_GROUP_MAX);
    g->paths = gr_zalloc(n * sizeof(*g->paths));
    g->disks = gr_zalloc(n * sizeof(*g->disks));
    g->where = gr_zalloc(n * sizeof(*g->where));
    if (!g->paths || !g->disks || !g->where)
        return gr_fail(op->err, -ENOMEM, "snapshot of %zu disks: out of memory", n);
    for (; g->n < n; g->n++) {
        const struct snap_path *p = &g->paths[g->n];
        const char *text = json_string_value(json_array_get(list, g->n));
        r = snap_path_parse(text ? text : "", SNAP_PATH_DISK, &g->paths[g->n], op->err);
        if (r < 0)
            return r;
        if (strcmp(p->ds, g->paths[0].ds) != 0)
            return gr_fail(op->err, -EXDEV, "disks of two datastores, '%s' and '%s', cannot be taken in one instant", g->paths[0].ds, p->ds);
        for (size_t k = 0; k < g->n; k++)
            if (strcmp(g->paths[k].path, p->path) == 0)
                return gr_fail(op->err, -GR_EUSAGE, "disk %s is given twice", text);
    }
    return 0;
}

/* A member that another host owns. The first decides who leads; a later one is asked back, if idle, else it stays there. */
static int fetch_member(struct snap_op *op, struct group *g, size_t i)
{
    struct snap_place owner = op->owner;
    if (i == 0)
        return -GR_ELOCKED;
    gr_auto_free char *disk = gr_asprintf("%s/%s", g->paths[i].ds, g->paths[i].path);
    op->forward = false;
    int r = snap_peer_ask(op->s, owner.address, "disk.release", json_pack("{s:s,s:b}", "disk", disk ? disk : "", "forwarded", 1), SNAP_TELL_MS, NULL, op->err);
    if (r == 0 && snap_disk_get(op, &g->paths[i], &g->disks[i]) == 0)
        return 0;
    if (r == -ETIMEDOUT || r == -ECONNREFUSED || r == -EPIPE) {
        const struct gr_err why = *op->err;
        return gr_fail(op->err, -GR_ELOCKED, "%s belongs to host '%s', which does not answer: %s", disk ? disk : "a disk", owner.host, why.text);
    }
    op->forward = false;
    *op->err = (struct gr_err){0};
    g->where[i] = owner;
    g->n_others++;
    return 0;
}

static int group_open(struct snap_op *op, struct group *g)
{
    for (size_t i = 0; i < g->n; i++) {
        int r = snap_disk_get(op, &g->paths[i], &g->disks[i]);
        if (r == -GR_ELOCKED && op->forward)
            r = fetch_member(op, g, i);
        if (r < 0)
            return r;
    }
    return 0;
}

static int create_here(struct snap_op *op, struct group *g, const struct snap_new *new, json_t *rows)
{
    struct vmfs_disk **disks = gr_alloc(g->n * sizeof(struct vmfs_disk *));
    if (!disks)
        return gr_fail(op->err, -ENOMEM, "snapshot of %zu disks: out of memory", g->n);
    for (size_t i = 0; i < g->n; i++)
        disks[i] = g->disks[i].h->disk;
    int r = snap_create_new(disks, (unsigned)g->n, new, op->err);
    free(disks);
    for (size_t i = 0; r == 0 && i < g->n; i++) {
        struct snap_info info;
        r = snap_find(g->disks[i].h->disk, new->name, &info, op->err);
        if (r == 0)
            json_array_append_new(rows, snap_info_row(g->paths[i].ds, g->paths[i].path, &info));
    }
    return r;
}

static int by_position(struct snap_op *op, const struct group *g, json_t *rows)
{
    for (size_t i = 0; i < g->n; i++) { /* as they were named */
        gr_auto_free char *disk = gr_asprintf("%s/%s", g->paths[i].ds, g->paths[i].path);
        size_t k = i;
        while (disk && k < json_array_size(rows) && strcmp(json_string_value(json_object_get(json_array_get(rows, k), "disk")), disk) != 0)
            k++;
        if (!disk || k == json_array_size(rows))
            return gr_fail(op->err, disk ? -GR_EPARTIAL : -ENOMEM, "the snapshot exists; what it is called on disk %s will show when its host answers",
                           disk ? disk : "?");
        json_t *row = json_incref(json_array_get(rows, k));
        json_array_remove(rows, k);
        json_array_insert_new(rows, i, row);
    }
    return 0;
}

/* Disks of several hosts. */
static int create_everywhere(struct snap_op *op, struct group *g, const struct snap_new *new, json_t *rows)
{
    struct snap_member *all = gr_zalloc(g->n * sizeof(*all));
    struct snap_disk *own = gr_zalloc(g->n * sizeof(*own));
    char **names = gr_zalloc(g->n * sizeof(*names));
    unsigned n_own = 0;
    int r = all && own && names ? 0 : gr_fail(op->err, -ENOMEM, "snapshot of %zu disks: out of memory", g->n);
    for (size_t i = 0; r == 0 && i < g->n; i++) {
        const struct snap_path *p = &g->paths[i];
        struct vmfs_stat st;
        names[i] = gr_asprintf("%s/%s", p->ds, p->path);
        r = names[i] ? vmfs_stat(g->disks[0].ds->v, p->path, &st, op->err) : gr_fail(op->err, -ENOMEM, "out of memory");
        all[i] = (struct snap_member){.disk = names[i], .id = r == 0 ? st.id : 0, .where = g->disks[i].h ? NULL : &g->where[i]};
        if (g->disks[i].h)
            own[n_own++] = g->disks[i];
    }
    if (r == 0)
        r = snap_group_lead(op, g->disks[0].ds, new, own, n_own, all, g->n, rows);
    if (r == 0)
        r = by_position(op, g, rows);
    for (size_t i = 0; names && i < g->n; i++)
        free(names[i]);
    free(names);
    free(own);
    free(all);
    return r;
}

static int create(struct snap_op *op, const struct snap_taking *t)
{
    gr_auto(group_done) struct group g = {0};
    struct snap_new new = {.group = t->given ? t->group : NULL};
    uint64_t expires = 0;
    int r = snap_op_name(op, "name", &new.name);
    if (r == 0)
        r = gr_json_opt_u64(op->params, "expires", &expires, op->err);
    if (r == 0 && expires > UINT32_MAX)
        r = gr_fail(op->err, -GR_EUSAGE, "a snapshot cannot expire at second %llu", (unsigned long long)expires);
    new.expires_s = (int64_t)expires;
    if (r == 0)
        r = group_parse(op, &g);
    if (r == 0)
        r = group_open(op, &g);
    if (r == 0)
        r = snap_taking_check(op->s, t, op->err);
    if (r < 0)
        return r;
    snap_auto_json json_t *a = json_array();
    r = !a ? gr_fail(op->err, -ENOMEM, "out of memory") : g.n_others ? create_everywhere(op, &g, &new, a) : create_here(op, &g, &new, a);
    return r < 0 ? r : snap_op_result(op, gr_take(a));
}

int snap_op_snapshot_create(struct snap_op *op)
{
    struct snap_taking t;
    int r = snap_taking_begin(op, &t);
    if (r == 0)
        r = create(op, &t);
    snap_taking_end(op->s, &t);
    return r;
}
SNAP_METHOD(snap_op_snapshot_create, "snapshot.create")

/* ---- list, delete, revert, clone, bookmark ---- */
struct rows {
    const struct snap_path *p;
    struct vmfs_disk *disk;
    json_t *a;
    uint64_t id; /* object */
};

static int add_row(void *arg, const struct snap_info *info)
{
    struct rows *l = arg;
    if (strncmp(info->name, SNAP_GROUP_PREFIX, strlen(SNAP_GROUP_PREFIX)) == 0)
        return 0; /* not decided yet */
    json_t *row = snap_info_row(l->p->ds, l->p->path, info);
    if (row)
        add_text(l->disk, info->is_bookmark ? 0 : info->id, row);
    if (row && !info->is_bookmark)
        add_part(l->disk, info->id, row);
    return json_array_append_new(l->a, row) < 0 ? -ENOMEM : 0;
}

/* Which disks start at each. */
static int name_clones(struct snap_op *op, struct rows *l, struct snap_ds *ds)
{
    struct snap_origins *o = NULL;
    struct vmfs_stat st;
    json_t *row;
    size_t i;
    int r = 0;
    vmfs_disk_stat(l->disk, &st);
    struct snap_kin kin = {.id = l->id, .clones = st.clones}; /* what it was cloned from itself is not asked for */
    json_array_foreach(l->a, i, row)
    {
        if (!json_integer_value(json_object_get(row, "clones")))
            continue;
        if (!o && (r = snap_origins_of(ds, &kin, &o, op->err)) < 0)
            return r;
        json_object_set_new(row, "clone-disks", snap_origins_clones(o, l->id, (uint64_t)json_integer_value(json_object_get(row, "id"))));
    }
    snap_origins_free(o);
    return r;
}

int snap_op_snapshot_list(struct snap_op *op)
{
    struct snap_path p;
    struct snap_disk d = {0};
    snap_auto_json json_t *a = json_array();
    bool deleted = false;
    int r = gr_json_opt_bool(op->params, "deleted", &deleted, op->err);
    if (r == 0)
        r = open_disk(op, &p, &d);
    if (r < 0)
        return r;
    struct rows l = {&p, d.h->disk, a, vmfs_disk_id(d.h->disk)};
    r = snap_list(d.h->disk, add_row, &l, op->err);
    if (r == 0 && deleted)
        r = snap_list_kept(d.h->disk, add_row, &l, op->err);
    if (r == 0)
        r = name_clones(op, &l, d.ds);
    snap_disk_put(&d);
    return r < 0 ? r : snap_op_result(op, gr_take(a));
}
SNAP_METHOD(snap_op_snapshot_list, "snapshot.list")

/* Params "seen" of a delete: {"bookmark","expires"}, as a listing had them. 1: there is; 0: none. */
static int seen_of(struct snap_op *op, struct snap_seen *ret)
{
    json_t *o = json_object_get(op->params, "seen");
    const char *token = NULL;
    uint64_t expires = 0;
    int r = o ? gr_json_str(o, "bookmark", &token, op->err) : 0;
    if (o && r == 0)
        r = gr_json_opt_u64(o, "expires", &expires, op->err);
    if (o && r == 0 && gr_bookmark_parse(token, &ret->bookmark) < 0)
        r = gr_fail(op->err, -EINVAL, "'%.100s' is no bookmark", token);
    ret->expires_s = (int64_t)expires;
    return r < 0 ? r : o != NULL;
}

/* @group: only the one of that number is meant. */
static int find_of(struct vmfs_disk *d, const char *name, const uint8_t *group, struct snap_info *ret, struct gr_err *err)
{
    char text[37];
    int r = snap_find(d, name, ret, err);
    if (r < 0 || !group)
        return r;
    gr_uuid_format(group, text);
    return strcmp(ret->group, text) == 0 ? 0 : gr_fail(err, -ENOENT, "snapshot '%s' of that disk is not of group %s", name, text);
}

int snap_op_snapshot_delete(struct snap_op *op)
{
    struct snap_path p;
    struct snap_disk d = {0};
    const char *name = NULL;
    struct snap_seen seen;
    uint8_t group[16];
    bool keep = false, settle = false, of_group = false;
    int r = gr_json_str(op->params, "snapshot", &name, op->err);
    int known = r == 0 ? seen_of(op, &seen) : 0;
    r = GR_MIN(r, GR_MIN(known, 0));
    if (r == 0)
        r = gr_json_opt_bool(op->params, "keep-bookmark", &keep, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "settle", &settle, op->err);
    if (r == 0)
        r = snap_op_group(op, group, &of_group);
    if (r == 0 && of_group)
        snap_undo(op->s, group);
    op->forward_as = of_group ? "snapshot.delete-part" : NULL; /* older ones delete what has the name, whatever its group */
    if (r == 0)
        r = open_disk(op, &p, &d);
    if (r < 0)
        return r;
    gr_auto_free char *full = gr_asprintf("%s/%s@%s", p.ds, p.path, name);
    struct snap_info info;
    struct vmfs_stat st;
    vmfs_disk_stat(d.h->disk, &st);
    r = find_of(d.h->disk, name, of_group ? group : NULL, &info, op->err);
    if (r == 0 && !info.is_bookmark && st.lun.flags & VMFS_LUN_TEMPLATE && strcmp(name, SNAP_TEMPLATE) == 0)
        r = gr_fail(op->err, -GR_ELOCKED, "%s/%s is a template, and '%s' is what its clones start at (granary disk set --template off makes it a disk like any other)", p.ds, p.path, name);
    if (r == 0 && op->s->o.hooks.release && full)
        r = op->s->o.hooks.release(op->s->o.hooks.arg, full, true, op->err);
    if (r == 0 && of_group && !keep && !known) { /* it, not what may have got its name since */
        seen = (struct snap_seen){info.bookmark, info.expires_s};
        known = 1;
    }
    if (r == 0)
        r = known ? snap_delete_seen(d.h->disk, name, &seen, op->err) : snap_delete(d.h->disk, name, keep, op->err);
    if (r == 0 && has_text(d.h->disk, info.id))
        (void)set_text(d.h->disk, info.id, "", NULL); /* nobody asks for it any more */
    if (r == 0)
        snap_rules_forget(d.ds, st.uuid, name);
    if (r == 0 && (settle || !op->s->address[0])) /* a command has no background: it finishes before it goes */
        r = snap_settle(d.h->disk, op->err);
    snap_disk_put(&d);
    return r;
}
SNAP_METHOD(snap_op_snapshot_delete, "snapshot.delete")

/* Of a group: asked for by name only by who knows that it is understood. */
static int op_delete_part(struct snap_op *op)
{
    return json_object_get(op->params, "group") ? snap_op_snapshot_delete(op) : gr_fail(op->err, -GR_EUSAGE, "snapshot.delete-part: of which group?");
}
SNAP_METHOD(op_delete_part, "snapshot.delete-part")

static int op_revert(struct snap_op *op)
{
    struct snap_path p;
    struct snap_disk d = {0};
    const char *name = NULL;
    bool force = false;
    int r = gr_json_str(op->params, "snapshot", &name, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "force", &force, op->err);
    if (r == 0)
        r = open_disk(op, &p, &d);
    if (r < 0)
        return r;
    if (!force)
        r = snap_refuse_in_use(op->s, &d, "be reverted", op->err);
    if (r == 0)
        r = snap_refuse_shown(&d, op->err);
    if (r == 0)
        r = snap_revert(d.h->disk, name, op->err);
    snap_disk_put(&d);
    return r;
}
SNAP_METHOD(op_revert, "snapshot.revert")

static int op_bookmark(struct snap_op *op)
{
    struct snap_path p;
    struct snap_disk d = {0};
    struct gr_bookmark b;
    const char *name = NULL, *bookmark = NULL;
    char token[96];
    int r = gr_json_str(op->params, "snapshot", &name, op->err);
    if (r == 0)
        r = snap_op_name(op, "bookmark", &bookmark);
    if (r == 0)
        r = open_disk(op, &p, &d);
    if (r < 0)
        return r;
    r = snap_bookmark(d.h->disk, name, bookmark, op->err);
    if (r == 0)
        r = snap_resolve_base(d.h->disk, bookmark, &b, op->err);
    snap_disk_put(&d);
    if (r < 0)
        return r;
    gr_bookmark_format(&b, token);
    gr_auto_free char *disk = gr_asprintf("%s/%s", p.ds, p.path);
    return snap_op_result(op, json_pack("{s:s,s:s,s:s}", "disk", disk ? disk : p.path, "name", bookmark, "bookmark", token));
}
SNAP_METHOD(op_bookmark, "snapshot.bookmark")

/* What a reader elsewhere wants to see, a snapshot just taken say, must be home. */
static int op_checkpoint(struct snap_op *op)
{
    struct snap_path p;
    struct snap_disk d = {0};
    int r = open_disk(op, &p, &d);
    if (r < 0)
        return r;
    r = vmfs_checkpoint(d.ds->v, op->err);
    snap_disk_put(&d);
    return r < 0 ? r : snap_op_result(op, json_object());
}
SNAP_METHOD(op_checkpoint, "disk.checkpoint")

/* ---- diff ---- */
struct diff {
    struct snap_op *op;
    bool text; /* GR_RANGES_TEXT was asked for */
    json_t *batch;
    struct gr_buf b; /* of text */
    unsigned n;
    uint64_t ranges, bytes;
};

static int diff_send(struct diff *df)
{
    json_t *batch = df->text ? json_stringn(df->b.data ? df->b.data : "", df->b.len) : gr_take(df->batch);
    if (df->n == 0) {
        json_decref(batch);
        return 0;
    }
    df->n = 0;
    df->b.len = 0;
    return batch ? gr_rpc_part(df->op->call, batch) : -ENOMEM;
}

static int diff_object(struct diff *df, uint64_t off, uint64_t len, bool zero)
{
    if (!df->batch && !(df->batch = json_array()))
        return -ENOMEM;
    return json_array_append_new(df->batch, json_pack("{s:I,s:I,s:s}", "offset", (json_int_t)off, "length", (json_int_t)len, "state",
                                                      zero ? "zero" : "data")) < 0 ? -ENOMEM : 0;
}

static int diff_range(void *arg, uint64_t off, uint64_t len, bool zero)
{
    struct diff *df = arg;
    int r = df->text ? gr_ranges_put(&df->b, off, len, zero) : diff_object(df, off, len, zero);
    if (r < 0)
        return r;
    df->ranges++;
    df->bytes += len;
    return ++df->n >= DIFF_BATCH ? diff_send(df) : 0;
}

static int op_diff(struct snap_op *op)
{
    struct snap_path p;
    struct snap_disk d = {0};
    struct diff df = {.op = op};
    const char *base = NULL, *to = NULL, *form = NULL;
    int r = gr_json_str(op->params, "base", &base, op->err);
    if (r == 0)
        r = gr_json_opt_str(op->params, "to", &to, op->err);
    if (r == 0)
        r = gr_json_opt_str(op->params, "form", &form, op->err);
    if (r == 0 && form && strcmp(form, GR_RANGES_TEXT) != 0)
        r = gr_fail(op->err, -EINVAL, "form: '%s' is not " GR_RANGES_TEXT, form);
    df.text = form;
    if (r == 0)
        r = open_disk(op, &p, &d);
    if (r < 0)
        return r;
    r = snap_diff(d.h->disk, base, to, diff_range, &df, op->err);
    if (r == 0)
        r = diff_send(&df);
    json_decref(df.batch);
    gr_buf_done(&df.b);
    snap_disk_put(&d);
    if (r < 0 && op->err->code == 0)
        gr_fail(op->err, r, "diff of %s/%s: %s", p.ds, p.path, gr_code_text(r));
    return r < 0 ? r : snap_op_result(op, json_pack("{s:I,s:I}", "ranges", (json_int_t)df.ranges, "bytes", (json_int_t)df.bytes));
}
SNAP_METHOD(op_diff, "snapshot.diff")

const struct gr_rpc_method snap_snapshot_methods[] = {
    {"snapshot.create", rpc_snap_op_snapshot_create}, {"snapshot.list", rpc_snap_op_snapshot_list, true},         {"snapshot.delete", rpc_snap_op_snapshot_delete, .destroys = true},
    {"snapshot.delete-part", rpc_op_delete_part, .destroys = true},
    {"snapshot.revert", rpc_op_revert, .destroys = true}, {"snapshot.bookmark", rpc_op_bookmark},
    {"snapshot.describe", rpc_op_describe}, {"snapshot.part", rpc_op_part}, {"snapshot.diff", rpc_op_diff, true},     {"disk.checkpoint", rpc_op_checkpoint, true}, {NULL, NULL},
};
