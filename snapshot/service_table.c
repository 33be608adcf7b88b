/* Small tables of what is said of disks and folders, kept in their datastore (access rules, policies): attributes of an empty file that no name can
 * reach,
 *
 *   "format" = "1"     UUID, 32 hexadecimal digits = a row, JSON
 *
 * By UUID rows stay with their disk when it is renamed or changes hands, and a new disk of an old name has none. Attributes are metadata: they can be
 * changed when the datastore is full. Who changes them holds the object's lock from reading to bringing them home; a host that dies with it is
 * recovered by the next one, as with any object. */
#include "common/buf.h"
#include "snapshot/service_int.h"
#include <string.h>

#define FORMAT_KEY "format"
#define FORMAT "1"
#define ROW_MAX 65536u /* bytes, as of any attribute */
#define LOCK_MS 15000u
#define LOCK_STEP_MS 15u

void snap_table_key(const uint8_t uuid[16], char ret[33])
{
    for (unsigned i = 0; i < 16; i++)
        snprintf(ret + 2 * i, 3, "%02x", uuid[i]);
}

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

void snap_table_free(struct snap_table *t)
{
    json_decref(t->rows);
    t->rows = NULL;
    t->id = t->version = 0;
}

static int read_again(struct snap_ds *ds, struct snap_table *t, struct gr_err *err)
{
    uint64_t version = t->version;
    struct reading rd = {.rows = json_object()};
    int r = rd.rows ? vmfs_attrs(ds->v, t->id, &version, read_attr, &rd, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r > 0 && rd.failed)
        r = gr_fail(err, -ENOMEM, "out of memory");
    else if (r > 0 && rd.unknown)
        r = gr_fail(err, -GR_EVERSION, "they are of a format that this build does not know: update this host");
    if (r > 0) {
        json_decref(t->rows);
        t->rows = json_incref(rd.rows);
        t->version = version;
    }
    json_decref(rd.rows);
    return GR_MIN(r, 0);
}

/* @t as it is now. One at a time, so that nobody puts older ones in the place of newer ones. */
int snap_table_look(struct snap_ds *ds, struct snap_table *t, struct gr_err *err)
{
    struct vmfs_stat st;
    struct gr_err why = {0};
    int r = 0;
    gr_fmutex_lock(&t->reading);
    if (!t->id && (r = vmfs_stat(ds->v, t->place, &st, &why)) == 0)
        t->id = st.id; /* for ever */
    bool never_made = r == -ENOENT;
    if (r == 0)
        r = read_again(ds, t, &why);
    gr_fmutex_unlock(&t->reading);
    if (r == 0 || never_made)
        return 0;
    r = r == -ENOENT ? -GR_ECORRUPT : r; /* it is not a disk that is missing */
    return gr_fail(err, r, "datastore '%s': its %s cannot be read: %s", ds->name, t->what, gr_err_text(&why, r));
}

/* What is known of the disk: borrowed, NULL: nothing. */
int snap_table_row(const struct snap_ds *ds, const struct snap_table *t, const char *uuid, json_t **ret, struct gr_err *err)
{
    *ret = json_object_get(t->rows, uuid);
    return json_is_null(*ret) ? gr_fail(err, -GR_EFORMAT, "datastore '%s': the %s of what has UUID %s are damaged", ds->name, t->what, uuid) : 0;
}

/* ---- changing ---- */
static int lock_make(struct snap_ds *ds, const struct snap_table *t, struct gr_err *err)
{
    struct vmfs_stat st;
    int r = vmfs_stat(ds->v, t->place, &st, err);
    if (r == -ENOENT)
        r = vmfs_create(ds->v, t->place, VMFS_FILE, 0, VMFS_THIN, err);
    return r == -EEXIST ? 0 : r; /* another host was quicker */
}

/* One fiber of this host at a time, and one host. */
static int lock_take(struct snap_ds *ds, struct snap_table *t, struct vmfs_disk **ret, struct gr_err *err)
{
    uint64_t end = gr_loop_now_ns(ds->svc->o.loop) + LOCK_MS * 1000000ull;
    gr_fmutex_lock(&t->changing);
    struct gr_err why = {0};
    int r = lock_make(ds, t, &why);
    while (r == 0 && (r = vmfs_open(ds->v, t->place, ret, NULL, &why)) == -GR_ELOCKED && gr_loop_now_ns(ds->svc->o.loop) < end) {
        gr_fiber_sleep_ms(LOCK_STEP_MS);
        r = 0;
    }
    if (r == 0)
        return 0;
    gr_fmutex_unlock(&t->changing);
    return gr_fail(err, r, "datastore '%s': its %s cannot be locked: %s", ds->name, t->what, gr_err_text(&why, r));
}

/* Home with them, where others read, and the lock is free. */
static int lock_give(struct snap_ds *ds, struct snap_table *t, struct vmfs_disk *lock, struct gr_err *err)
{
    vmfs_close(lock);
    int r = vmfs_release(ds->v, t->place, err);
    gr_fmutex_unlock(&t->changing);
    return r < 0 ? gr_prefix(err, r, "datastore '%s': other hosts may not see the changed %s", ds->name, t->what) : 0;
}

static int put(struct vmfs_disk *lock, const char *key, const char *text, size_t len, struct gr_err *err)
{
    struct gr_bdev *b = vmfs_bdev(lock);
    return b->ops->attr_set(b, key, text, len, err);
}

/* @row NULL or empty: nothing is kept. */
static int put_row(const struct snap_table *t, struct vmfs_disk *lock, const char *uuid, json_t *row, struct gr_err *err)
{
    gr_auto_free char *text = json_object_size(row) ? json_dumps(row, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    if (!text && json_object_size(row))
        return gr_fail(err, -ENOMEM, "%s: out of memory", t->what);
    if (text && strlen(text) > ROW_MAX)
        return gr_fail(err, -EFBIG, "%s of %zu bytes, at most %u are kept%s", t->what, strlen(text), ROW_MAX, t->hint);
    int r = json_object_size(t->rows) == 0 ? put(lock, FORMAT_KEY, FORMAT, strlen(FORMAT), err) : 0;
    return r < 0 ? r : put(lock, uuid, text ? text : "", text ? strlen(text) : 0, err);
}

int snap_table_change(struct snap_ds *ds, struct snap_table *t, snap_rows_fn fn, void *arg, struct gr_err *err)
{
    struct vmfs_disk *lock = NULL;
    const char *uuid;
    json_t *row;
    snap_auto_json json_t *rows = json_object();
    int r = rows ? lock_take(ds, t, &lock, err) : gr_fail(err, -ENOMEM, "%s: out of memory", t->what);
    if (r < 0)
        return r;
    r = snap_table_look(ds, t, err); /* at home nobody changes them now */
    if (r == 0)
        r = fn(arg, ds, rows, err);
    json_object_foreach(rows, uuid, row)
    {
        if (r == 0 && (r = put_row(t, lock, uuid, row, err)) < 0)
            gr_prefix(err, r, "datastore '%s': the %s are not changed", ds->name, t->what);
    }
    int given = lock_give(ds, t, lock, r < 0 ? NULL : err);
    return r < 0 ? r : given;
}

/* ---- what names nothing ---- */
struct sweeping {
    json_t *gone; /* {UUID: true} */
};

static int is_there(void *arg, const struct vmfs_stat *st)
{
    const struct sweeping *s = arg;
    char key[33];
    snap_table_key(st->uuid, key);
    json_object_del(s->gone, key);
    return 0;
}

static int drop(void *arg, struct snap_ds *ds, json_t *rows, struct gr_err *err)
{
    const struct sweeping *s = arg;
    const char *uuid;
    json_t *v;
    json_object_foreach(s->gone, uuid, v)
    {
        if (json_object_set_new(rows, uuid, json_object()) < 0)
            return gr_fail(err, -ENOMEM, "out of memory");
    }
    return 0;
}

/* What had a row before all objects were looked at, and was none of them, is gone for ever: a UUID does not come back. */
int snap_table_sweep(struct snap_ds *ds, struct snap_table *t, struct gr_err *err)
{
    snap_auto_json json_t *gone = json_object();
    struct sweeping s = {gone};
    const char *uuid;
    json_t *row;
    int r = gone ? snap_table_look(ds, t, err) : gr_fail(err, -ENOMEM, "out of memory");
    json_object_foreach(t->rows, uuid, row)
    {
        if (r == 0 && json_object_set_new(gone, uuid, json_true()) < 0)
            r = gr_fail(err, -ENOMEM, "out of memory");
    }
    if (r == 0 && json_object_size(gone))
        r = vmfs_each_object(ds->v, is_there, &s, err);
    if (r == 0 && json_object_size(gone))
        r = snap_table_change(ds, t, drop, &s, err);
    return r < 0 ? gr_prefix(err, r, "datastore '%s': %s of what is not there any more stay", ds->name, t->what) : (int)json_object_size(gone);
}
