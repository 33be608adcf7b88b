/* Access rules of disks (common/rules.h), kept in their datastore: the file granary.access/rules,
 *
 *   {"version": 1, "disks": {UUID: {"rules": ENTRY, "snapshots": {NAME: ENTRY}}}}
 *
 * UUID is the disk's own (VPD 83): so its rules stay with it when it is renamed or changes hands, and a new disk of an old name has none. The
 * file is replaced as a whole, by a new object, whose number tells readers that they have to read again. Who changes it holds the lock of the
 * object granary.access/lock from reading to writing; a host that dies with it is recovered by the next one, as with any object. */
#include "common/buf.h"
#include "snapshot/service_int.h"
#include <string.h>

#define FOLDER "granary.access"
#define FILE_PATH FOLDER "/rules"
#define LOCK_PATH FOLDER "/lock"
#define SIZE_MAX_BYTES (16u << 20)
#define LOCK_MS 15000u
#define LOCK_STEP_MS 15u
#define READ_TRIES 20u

/* ---- reading ---- */
static int parse(const void *text, size_t len, json_t **ret, struct gr_err *err)
{
    json_error_t je;
    json_t *doc = json_loadb(text, len, 0, &je);
    int r = 0;
    if (!json_is_object(json_object_get(doc, "disks")))
        r = gr_fail(err, -GR_EFORMAT, "they are damaged");
    else if (json_integer_value(json_object_get(doc, "version")) != 1)
        r = gr_fail(err, -GR_EVERSION, "they are of a version that this build does not know: update this host");
    if (r < 0)
        json_decref(doc);
    else
        *ret = doc;
    return r;
}

static void rules_set(struct snap_ds *ds, uint64_t id, json_t *doc)
{
    json_decref(ds->rules.doc);
    ds->rules.doc = doc;
    ds->rules.id = id;
}

static int read_again(struct snap_ds *ds, uint64_t id, struct gr_err *err)
{
    gr_auto_free void *text = NULL;
    size_t len = 0;
    json_t *doc = NULL;
    int r = vmfs_file_read(ds->v, FILE_PATH, SIZE_MAX_BYTES, &text, &len, err);
    if (r == 0)
        r = parse(text, len, &doc, err);
    if (r == 0)
        rules_set(ds, id, doc);
    return r;
}

/* Nothing is under that name: were there ever rules? The lock is older than they are, and stays. */
static bool never_written(struct snap_ds *ds, unsigned tries)
{
    struct vmfs_stat st;
    return !ds->rules.id && (vmfs_stat(ds->v, LOCK_PATH, &st, NULL) == -ENOENT || tries > 3);
}

/* ds->rules as they are now. One at a time, so that nobody puts older ones in the place of newer ones. */
static int look(struct snap_ds *ds, struct gr_err *err)
{
    struct vmfs_stat st;
    struct gr_err why = {0};
    int r = -EAGAIN;
    gr_fmutex_lock(&ds->rules.reading);
    for (unsigned tries = 0; tries < READ_TRIES; tries++) {
        why = (struct gr_err){0};
        r = vmfs_stat(ds->v, FILE_PATH, &st, &why);
        if (r == 0 && st.id != ds->rules.id)
            r = read_again(ds, st.id, &why);
        else if (r == -ENOENT && never_written(ds, tries))
            r = 0;
        if (r != -ENOENT && r != -EAGAIN)
            break;
        gr_fiber_sleep_ms(2); /* they are just being replaced */
    }
    gr_fmutex_unlock(&ds->rules.reading);
    if (r < 0)
        return gr_fail(err, r == -ENOENT ? -EAGAIN : r, "datastore '%s': its access rules cannot be read: %s", ds->name, gr_err_text(&why, r));
    return 0;
}

void snap_rules_free(struct snap_ds *ds)
{
    rules_set(ds, 0, NULL);
}

static json_t *row_of(const struct snap_ds *ds, const char *uuid)
{
    return json_object_get(json_object_get(ds->rules.doc, "disks"), uuid);
}

/* The disk's UUID as text. */
static int identify(struct snap_ds *ds, const char *path, char ret[37], struct gr_err *err)
{
    struct vmfs_stat st;
    const struct snap_handle *h = snap_handle_find(ds, path);
    int r = 0;
    if (h && !h->closing)
        vmfs_disk_stat(h->disk, &st);
    else
        r = vmfs_stat(ds->v, path, &st, err);
    if (r == 0 && st.type != VMFS_DISK)
        r = gr_fail(err, -ENOENT, "%s/%s is not a disk", ds->name, path);
    if (r == 0)
        gr_uuid_format(st.uuid, ret);
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
    char uuid[37];
    int r = datastore_of(arg, disk, &p, &ds, e);
    if (r < 0)
        return r;
    r = identify(ds, p.path, uuid, e);
    if (r == 0)
        r = look(ds, e);
    if (r == 0)
        *ret = json_incref(row_of(ds, uuid));
    snap_ds_put(ds);
    return r;
}

/* ---- changing ---- */
static int lock_make(struct snap_ds *ds, struct gr_err *err)
{
    struct vmfs_stat st;
    int r = vmfs_stat(ds->v, LOCK_PATH, &st, err);
    if (r == -ENOENT)
        r = vmfs_create(ds->v, LOCK_PATH, VMFS_FILE, 0, VMFS_THIN, err);
    return r == -EEXIST ? 0 : r; /* another host was quicker */
}

/* One fiber of this host at a time, and one host. */
static int lock_take(struct snap_ds *ds, struct vmfs_disk **ret, struct gr_err *err)
{
    uint64_t end = gr_loop_now_ns(ds->svc->o.loop) + LOCK_MS * 1000000ull;
    gr_fmutex_lock(&ds->rules.changing);
    struct gr_err why = {0};
    int r = lock_make(ds, &why);
    while (r == 0 && (r = vmfs_open(ds->v, LOCK_PATH, ret, NULL, &why)) == -GR_ELOCKED && gr_loop_now_ns(ds->svc->o.loop) < end) {
        gr_fiber_sleep_ms(LOCK_STEP_MS);
        r = 0;
    }
    if (r == 0)
        return 0;
    gr_fmutex_unlock(&ds->rules.changing);
    return gr_fail(err, r, "datastore '%s': its access rules cannot be locked: %s", ds->name, gr_err_text(&why, r));
}

static void lock_give(struct snap_ds *ds, struct vmfs_disk *lock)
{
    struct gr_err err = {0};
    vmfs_close(lock);
    if (vmfs_release(ds->v, LOCK_PATH, &err) < 0)
        snap_warn(ds->svc, "datastore '%s': the lock of its access rules stays with this host: %s", ds->name, err.text);
    gr_fmutex_unlock(&ds->rules.changing);
}

struct leftover {
    char path[sizeof(FOLDER) + VMFS_NAME_MAX + 2];
};

static int find_leftover(void *arg, const char *name, const struct vmfs_stat *st)
{
    struct leftover *l = arg;
    if (name[0] != '.')
        return 0;
    snprintf(l->path, sizeof(l->path), FOLDER "/%s", name);
    return -ECANCELED;
}

/* What a host that died had written, but not put in place. Only who has the lock writes there. */
static void tidy(struct snap_ds *ds)
{
    struct leftover l;
    while (vmfs_readdir(ds->v, FOLDER, find_leftover, &l, NULL) == -ECANCELED && vmfs_remove(ds->v, l.path, NULL) == 0)
        ;
}

static int write_doc(struct snap_ds *ds, json_t *doc, struct gr_err *err)
{
    gr_auto_free char *text = json_dumps(doc, JSON_COMPACT | JSON_SORT_KEYS);
    if (!text)
        return gr_fail(err, -ENOMEM, "access rules: out of memory");
    if (strlen(text) > SIZE_MAX_BYTES)
        return gr_fail(err, -EFBIG, "datastore '%s': %zu bytes of access rules are too many", ds->name, strlen(text));
    tidy(ds);
    int r = vmfs_file_write(ds->v, FILE_PATH, text, strlen(text), err);
    return r < 0 ? gr_prefix(err, r, "datastore '%s': its access rules are as they were", ds->name) : 0;
}

/* With the lock: @fn changes a copy of the document; 1: it is written, 0: nothing has changed. */
typedef int (*doc_fn)(void *arg, struct snap_ds *ds, json_t *disks, struct gr_err *err);
static int change_doc(struct snap_ds *ds, doc_fn fn, void *arg, struct gr_err *err)
{
    struct vmfs_disk *lock = NULL;
    int r = lock_take(ds, &lock, err);
    if (r < 0)
        return r;
    r = look(ds, err);
    snap_auto_json json_t *doc = r < 0 ? NULL : ds->rules.doc ? json_deep_copy(ds->rules.doc) : json_pack("{s:i,s:{}}", "version", 1, "disks");
    if (r == 0)
        r = doc ? fn(arg, ds, json_object_get(doc, "disks"), err) : gr_fail(err, -ENOMEM, "access rules: out of memory");
    if (r > 0)
        r = write_doc(ds, doc, err);
    lock_give(ds, lock);
    return r;
}

struct editing {
    json_t *names;
    gr_rules_edit edit;
    void *arg;
};

/* The place of an entry: its object and its key there. */
static json_t *place(json_t *disks, const char *uuid, const char *snap, const char **ret_key)
{
    json_t *row = json_object_get(disks, uuid), *snaps = json_object_get(row, "snapshots");
    *ret_key = snap[0] ? snap : "rules";
    if (!row && json_object_set_new(disks, uuid, row = json_object()) < 0)
        return NULL;
    if (!snap[0])
        return row;
    if (!snaps && json_object_set_new(row, "snapshots", snaps = json_object()) < 0)
        return NULL;
    return snaps;
}

static int edit_one(const struct editing *e, struct snap_ds *ds, json_t *disks, const char *name, struct gr_err *err)
{
    struct snap_path p;
    char uuid[37];
    const char *key;
    json_t *new = NULL;
    int r = snap_path_parse(name, SNAP_PATH_EITHER, &p, err);
    if (r == 0)
        r = identify(ds, p.path, uuid, err);
    if (r < 0)
        return r;
    const json_t *row = json_object_get(disks, uuid), *own = json_object_get(row, "rules"), *above = NULL;
    if (p.snap[0]) {
        above = own;
        own = json_object_get(json_object_get(row, "snapshots"), p.snap);
    }
    r = e->edit(e->arg, name, own, above, &new, err);
    if (r < 0 || !new)
        return r;
    json_t *at = place(disks, uuid, p.snap, &key);
    return json_object_set_new(at, key, new) < 0 ? gr_fail(err, -ENOMEM, "access rules: out of memory") : 1;
}

static int edit_all(void *arg, struct snap_ds *ds, json_t *disks, struct gr_err *err)
{
    const struct editing *e = arg;
    json_t *name;
    size_t i;
    int changed = 0;
    json_array_foreach(e->names, i, name)
    {
        int r = edit_one(e, ds, disks, json_string_value(name), err);
        if (r < 0)
            return r;
        changed |= r;
    }
    return changed;
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
    r = change_doc(ds, edit_all, &editing, e);
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
    char uuid[37];
    const char *snap; /* NULL: the disk */
};

static int forget(void *arg, struct snap_ds *ds, json_t *disks, struct gr_err *err)
{
    const struct gone *g = arg;
    json_t *o = g->snap ? json_object_get(json_object_get(disks, g->uuid), "snapshots") : disks;
    return json_object_del(o, g->snap ? g->snap : g->uuid) == 0;
}

void snap_rules_forget(struct snap_ds *ds, const uint8_t uuid[16], const char *snap)
{
    struct gone g = {.snap = snap};
    struct gr_err err = {0};
    gr_uuid_format(uuid, g.uuid);
    int r = look(ds, &err);
    json_t *row = r == 0 ? row_of(ds, g.uuid) : NULL;
    if (row && (!snap || json_object_get(json_object_get(row, "snapshots"), snap)))
        r = change_doc(ds, forget, &g, &err);
    if (r < 0)
        snap_warn(ds->svc, "the access rules of what was deleted stay, and rule nothing: %s", gr_err_text(&err, r));
}
