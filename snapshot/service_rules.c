/* Access rules of disks (common/rules.h), kept in their datastore: attributes of the object granary.access, an empty file that no name can reach,
 *
 *   "format" = "1"     UUID of a disk, 32 hexadecimal digits = {"rules"?: ENTRY, "snapshots"?: {NAME: ENTRY}}
 *
 * By UUID (VPD 83) rules stay with their disk when it is renamed or changes hands, and a new disk of an old name has none. Attributes are metadata:
 * they can be changed when the datastore is full. Who changes them holds the object's lock from reading to bringing them home; a host that dies with
 * it is recovered by the next one, as with any object. */
#include "common/buf.h"
#include "snapshot/service_int.h"
#include <string.h>

#define PLACE "granary.access"
#define FORMAT_KEY "format"
#define FORMAT "1"
#define ROW_MAX 65536u /* bytes, as of any attribute */
#define LOCK_MS 15000u
#define LOCK_STEP_MS 15u

/* ---- reading ---- */
struct reading {
    json_t *rows; /* {UUID: row}; null: it is damaged */
    bool unknown; /* of another format */
    bool failed;  /* no memory: what is there is not all */
};

static void read_attr(void *arg, const char *key, const void *val, size_t len)
{
    struct reading *rd = arg;
    if (strcmp(key, FORMAT_KEY) == 0) {
        rd->unknown = len != strlen(FORMAT) || memcmp(val, FORMAT, len) != 0;
    } else {
        json_t *row = json_loadb(val, len, 0, NULL);
        rd->failed |= json_object_set_new(rd->rows, key, json_is_object(row) ? json_incref(row) : json_null()) < 0;
        json_decref(row);
    }
}

void snap_rules_free(struct snap_ds *ds)
{
    json_decref(ds->rules.rows);
    ds->rules.rows = NULL;
    ds->rules.id = ds->rules.version = 0;
}

static int read_again(struct snap_ds *ds, struct gr_err *err)
{
    uint64_t version = ds->rules.version;
    struct reading rd = {.rows = json_object()};
    int r = rd.rows ? vmfs_attrs(ds->v, ds->rules.id, &version, read_attr, &rd, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r > 0 && rd.failed)
        r = gr_fail(err, -ENOMEM, "out of memory");
    else if (r > 0 && rd.unknown)
        r = gr_fail(err, -GR_EVERSION, "they are of a format that this build does not know: update this host");
    if (r > 0) {
        json_decref(ds->rules.rows);
        ds->rules.rows = json_incref(rd.rows);
        ds->rules.version = version;
    }
    json_decref(rd.rows);
    return GR_MIN(r, 0);
}

/* ds->rules as they are now. One at a time, so that nobody puts older ones in the place of newer ones. */
static int look(struct snap_ds *ds, struct gr_err *err)
{
    struct vmfs_stat st;
    struct gr_err why = {0};
    int r = 0;
    gr_fmutex_lock(&ds->rules.reading);
    if (!ds->rules.id && (r = vmfs_stat(ds->v, PLACE, &st, &why)) == 0)
        ds->rules.id = st.id; /* for ever */
    bool never_made = r == -ENOENT;
    if (r == 0)
        r = read_again(ds, &why);
    gr_fmutex_unlock(&ds->rules.reading);
    if (r == 0 || never_made)
        return 0;
    r = r == -ENOENT ? -GR_ECORRUPT : r; /* it is not a disk that is missing */
    return gr_fail(err, r, "datastore '%s': its access rules cannot be read: %s", ds->name, gr_err_text(&why, r));
}

/* What is known of the disk: borrowed, NULL: nothing. */
static int row_of(const struct snap_ds *ds, const char *uuid, json_t **ret, struct gr_err *err)
{
    *ret = json_object_get(ds->rules.rows, uuid);
    return json_is_null(*ret) ? gr_fail(err, -GR_EFORMAT, "datastore '%s': the access rules of the disk with UUID %s are damaged", ds->name, uuid) : 0;
}

static void key_of(const uint8_t uuid[16], char ret[33])
{
    for (unsigned i = 0; i < 16; i++)
        snprintf(ret + 2 * i, 3, "%02x", uuid[i]);
}

/* The key of the disk's rules. */
static int identify(struct snap_ds *ds, const char *path, char ret[33], struct gr_err *err)
{
    struct vmfs_stat st;
    int r = snap_stat(ds, path, &st, err);
    if (r == 0 && st.type != VMFS_DISK)
        r = gr_fail(err, -ENOENT, "%s/%s is not a disk", ds->name, path);
    if (r == 0)
        key_of(st.uuid, ret);
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
        r = look(ds, e);
    if (r == 0)
        r = row_of(ds, uuid, &row, e);
    if (r == 0)
        *ret = json_incref(row);
    snap_ds_put(ds);
    return r;
}

/* ---- changing ---- */
static int lock_make(struct snap_ds *ds, struct gr_err *err)
{
    struct vmfs_stat st;
    int r = vmfs_stat(ds->v, PLACE, &st, err);
    if (r == -ENOENT)
        r = vmfs_create(ds->v, PLACE, VMFS_FILE, 0, VMFS_THIN, err);
    return r == -EEXIST ? 0 : r; /* another host was quicker */
}

/* One fiber of this host at a time, and one host. */
static int lock_take(struct snap_ds *ds, struct vmfs_disk **ret, struct gr_err *err)
{
    uint64_t end = gr_loop_now_ns(ds->svc->o.loop) + LOCK_MS * 1000000ull;
    gr_fmutex_lock(&ds->rules.changing);
    struct gr_err why = {0};
    int r = lock_make(ds, &why);
    while (r == 0 && (r = vmfs_open(ds->v, PLACE, ret, NULL, &why)) == -GR_ELOCKED && gr_loop_now_ns(ds->svc->o.loop) < end) {
        gr_fiber_sleep_ms(LOCK_STEP_MS);
        r = 0;
    }
    if (r == 0)
        return 0;
    gr_fmutex_unlock(&ds->rules.changing);
    return gr_fail(err, r, "datastore '%s': its access rules cannot be locked: %s", ds->name, gr_err_text(&why, r));
}

/* Home with them, where others read, and the lock is free. */
static int lock_give(struct snap_ds *ds, struct vmfs_disk *lock, struct gr_err *err)
{
    vmfs_close(lock);
    int r = vmfs_release(ds->v, PLACE, err);
    gr_fmutex_unlock(&ds->rules.changing);
    return r < 0 ? gr_prefix(err, r, "datastore '%s': other hosts may not see the changed access rules", ds->name) : 0;
}

static int put(struct vmfs_disk *lock, const char *key, const char *text, size_t len, struct gr_err *err)
{
    struct gr_bdev *b = vmfs_bdev(lock);
    return b->ops->attr_set(b, key, text, len, err);
}

/* @row NULL or empty: nothing is kept. */
static int put_row(const struct snap_ds *ds, struct vmfs_disk *lock, const char *uuid, json_t *row, struct gr_err *err)
{
    gr_auto_free char *text = json_object_size(row) ? json_dumps(row, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    if (!text && json_object_size(row))
        return gr_fail(err, -ENOMEM, "access rules: out of memory");
    if (text && strlen(text) > ROW_MAX)
        return gr_fail(err, -EFBIG, "a disk's rules of %zu bytes, at most %u are kept: name initiators by patterns", strlen(text), ROW_MAX);
    int r = json_object_size(ds->rules.rows) == 0 ? put(lock, FORMAT_KEY, FORMAT, strlen(FORMAT), err) : 0;
    return r < 0 ? r : put(lock, uuid, text ? text : "", text ? strlen(text) : 0, err);
}

/* fn(arg) gives rows that are to be kept, {UUID: row}, from those that are, with the lock. */
typedef int (*rows_fn)(void *arg, struct snap_ds *ds, json_t *ret_rows, struct gr_err *err);
static int change_rows(struct snap_ds *ds, rows_fn fn, void *arg, struct gr_err *err)
{
    struct vmfs_disk *lock = NULL;
    const char *uuid;
    json_t *row;
    snap_auto_json json_t *rows = json_object();
    int r = rows ? lock_take(ds, &lock, err) : gr_fail(err, -ENOMEM, "access rules: out of memory");
    if (r < 0)
        return r;
    r = look(ds, err); /* at home nobody changes them now */
    if (r == 0)
        r = fn(arg, ds, rows, err);
    json_object_foreach(rows, uuid, row)
    {
        if (r == 0 && (r = put_row(ds, lock, uuid, row, err)) < 0)
            gr_prefix(err, r, "datastore '%s': the access rules are not changed", ds->name);
    }
    int given = lock_give(ds, lock, r < 0 ? NULL : err);
    return r < 0 ? r : given;
}

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
        r = row_of(ds, uuid, &row, err);
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
    r = change_rows(ds, edit_all, &editing, e);
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
    key_of(uuid, g.uuid);
    int r = look(ds, &err);
    json_t *row = r == 0 ? json_object_get(ds->rules.rows, g.uuid) : NULL;
    if (row && (!snap || json_object_get(json_object_get(row, "snapshots"), snap)))
        r = change_rows(ds, forget, &g, &err);
    if (r < 0)
        snap_warn(ds->svc, "the access rules of what was deleted stay, and rule nothing: %s", gr_err_text(&err, r));
}
