#include "backup-proxy/catalogue.h"
#include "backup-proxy/point.h"
#include "backup-proxy/repo_dir.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <fcntl.h>
#include <sqlite3.h>
#include <string.h>
#include <sys/stat.h>

#define SCHEMA_VERSION 1
static const char schema[] = "CREATE TABLE point(id TEXT PRIMARY KEY, name TEXT NOT NULL, pos INTEGER NOT NULL, size INTEGER NOT NULL, "
                             "mtime INTEGER NOT NULL, ino INTEGER NOT NULL, summary TEXT NOT NULL, words TEXT NOT NULL)";
struct bp_catalogue {
    struct bp_repo *repo;
    sqlite3 *db;
};

/* ---- summaries ---- */
json_t *bp_point_summary(json_t *doc)
{
    static const char *const keys[] = {"point", "name",      "time",    "kind",   "cause",     "consistency", "transport",
                                       "read",  "changed",   "stored",  "deduped", "duration", "frozen-ms",   "protected",
                                       "consistency-cause"};
    json_t *o = json_object(), *d, *names = json_array();
    json_int_t size = 0;
    size_t i;
    for (size_t k = 0; k < GR_ARRAY_LEN(keys); k++)
        if (json_object_get(doc, keys[k]))
            json_object_set(o, keys[k], json_object_get(doc, keys[k]));
    json_array_foreach(json_object_get(doc, "disks"), i, d) {
        size += json_integer_value(json_object_get(d, "size"));
        json_array_append(names, json_object_get(d, "name"));
    }
    json_object_set_new(o, "size", json_integer(size));
    json_object_set_new(o, "disks", names);
    json_object_set_new(o, "state", json_string("ok"));
    return o;
}
static json_t *damaged_summary(const char *id, const char *text)
{
    const char *slash = strrchr(id, '/');
    return json_pack("{s:s,s:s%,s:s,s:s}", "point", id, "name", id, (size_t)(slash - id), "state", "damaged", "error", text);
}
static void words_of(json_t *doc, struct gr_buf *out)
{
    json_t *d;
    size_t i;
    const char *config = json_string_value(json_object_get(json_object_get(doc, "vm"), "config"));
    (void)gr_buf_printf(out, "%s\n", json_string_value(json_object_get(doc, "point")));
    json_array_foreach(json_object_get(doc, "disks"), i, d) {
        const char *path = json_string_value(json_object_get(d, "path"));
        (void)gr_buf_printf(out, "%s\n", path ? path : "");
    }
    if (config)
        (void)gr_buf_printf(out, "%s\n", config);
}

/* ---- the database ---- */
static int sql(sqlite3 *db, const char *text)
{
    return sqlite3_exec(db, text, NULL, NULL, NULL) == SQLITE_OK ? 0 : -EIO;
}
/* The answer of a one-value query, or NULL; new memory. */
static char *ask(sqlite3 *db, const char *text)
{
    sqlite3_stmt *st = NULL;
    char *out = NULL;
    if (sqlite3_prepare_v2(db, text, -1, &st, NULL) == SQLITE_OK && sqlite3_step(st) == SQLITE_ROW && sqlite3_column_text(st, 0))
        out = gr_strdup((const char *)sqlite3_column_text(st, 0));
    sqlite3_finalize(st);
    return out;
}
static void harden(sqlite3 *db)
{
    sqlite3_db_config(db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_TRIGGER, 0, NULL);
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_VIEW, 0, NULL);
    sqlite3_limit(db, SQLITE_LIMIT_ATTACHED, 0);
    sqlite3_limit(db, SQLITE_LIMIT_LENGTH, 32 << 20);
    sqlite3_busy_timeout(db, 10000);
    (void)sql(db, "PRAGMA cell_size_check=ON");
    (void)sql(db, "PRAGMA mmap_size=0");
}
/* 0: ours and sound; 1: empty; -GR_ECORRUPT: neither. */
static int examine(sqlite3 *db)
{
    gr_auto_free char *n = ask(db, "SELECT count(*) FROM sqlite_master");
    gr_auto_free char *version = ask(db, "PRAGMA user_version");
    if (!n || !version)
        return -GR_ECORRUPT;
    if (!strcmp(n, "0"))
        return 1;
    gr_auto_free char *objects = ask(db, "SELECT group_concat(type||':'||name||':'||coalesce(sql,''),';') FROM (SELECT * FROM sqlite_master ORDER BY type, name)");
    gr_auto_free char *want = gr_asprintf("index:sqlite_autoindex_point_1:;table:point:%s", schema);
    gr_auto_free char *check = ask(db, "PRAGMA quick_check(1)");
    bool ok = objects && want && !strcmp(objects, want) && strtol(version, NULL, 10) == SCHEMA_VERSION && check && !strcmp(check, "ok");
    return ok ? 0 : -GR_ECORRUPT;
}
static int open_at(const char *path, sqlite3 **ret)
{
    sqlite3 *db = NULL;
    int r = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOFOLLOW | SQLITE_OPEN_NOMUTEX, NULL);
    r = r == SQLITE_OK ? 0 : -EIO;
    if (r == 0) {
        harden(db);
        r = examine(db);
    }
    if (r == 1) {
        free(ask(db, "PRAGMA journal_mode=WAL")); /* where it cannot be, the older journal does */
        r = sql(db, schema);
        if (r == 0)
            r = sql(db, "PRAGMA user_version=1");
    }
    if (r == 0)
        r = sql(db, "PRAGMA synchronous=NORMAL");
    if (r < 0) {
        sqlite3_close(db);
        return r;
    }
    *ret = db;
    return 0;
}
static void set_aside(const char *path)
{
    static const char *const ends[] = {"", "-wal", "-shm"};
    gr_auto_free char *bad = gr_asprintf("%s.bad", path);
    if (bad)
        (void)rename(path, bad);
    for (unsigned i = 0; i < GR_ARRAY_LEN(ends); i++) {
        gr_auto_free char *f = gr_asprintf("%s%s", path, ends[i]);
        if (f)
            (void)unlink(f);
    }
}
static int open_db(struct bp_repo *r, sqlite3 **ret, struct gr_err *err)
{
    gr_auto_free char *path = gr_asprintf("%s/catalogue.db", r->path);
    if (!path)
        return gr_fail(err, -ENOMEM, "out of memory");
    int rc = open_at(path, ret);
    if (rc == -GR_ECORRUPT) {
        set_aside(path);
        rc = open_at(path, ret);
    }
    if (rc < 0)
        rc = open_at(":memory:", ret);
    return rc < 0 ? gr_fail(err, rc, "%s: SQLite cannot make a catalogue, not even in memory", path) : 0;
}

/* ---- rows ---- */
static int row_fresh(struct bp_catalogue *c, sqlite3_stmt *get, const char *id, const struct stat *st)
{
    sqlite3_reset(get);
    sqlite3_bind_text(get, 1, id, -1, SQLITE_STATIC);
    return sqlite3_step(get) == SQLITE_ROW && sqlite3_column_int64(get, 0) == (sqlite3_int64)st->st_size &&
           sqlite3_column_int64(get, 1) == (sqlite3_int64)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec &&
           sqlite3_column_int64(get, 2) == (sqlite3_int64)st->st_ino;
}
static int row_put(struct bp_catalogue *c, sqlite3_stmt *put, const char *id, const struct stat *st)
{
    struct bp_point p = {.doc = NULL};
    struct gr_err e = {0};
    gr_auto_buf struct gr_buf words = {0};
    int r = bp_point_load(c->repo, id, &p, &e);
    if (r < 0 && r != -GR_ECORRUPT)
        return r == -ENOENT ? 0 : r;
    json_t *sum = r < 0 ? damaged_summary(id, gr_err_text(&e, r)) : bp_point_summary(p.doc);
    if (r == 0)
        words_of(p.doc, &words);
    else
        (void)gr_buf_printf(&words, "%s\n", id);
    gr_auto_free char *text = sum ? json_dumps(sum, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    const char *slash = strrchr(id, '/');
    sqlite3_reset(put);
    sqlite3_bind_text(put, 1, id, -1, SQLITE_STATIC);
    sqlite3_bind_text(put, 2, id, (int)(slash - id), SQLITE_STATIC);
    sqlite3_bind_int64(put, 3, (sqlite3_int64)st->st_size);
    sqlite3_bind_int64(put, 4, (sqlite3_int64)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec);
    sqlite3_bind_int64(put, 5, (sqlite3_int64)st->st_ino);
    sqlite3_bind_text(put, 6, text, -1, SQLITE_STATIC);
    sqlite3_bind_text(put, 7, words.data, (int)words.len, SQLITE_STATIC);
    r = text && sqlite3_step(put) == SQLITE_DONE ? 0 : -EIO;
    json_decref(sum);
    bp_point_done(&p);
    return r;
}
static int sync_rows(struct bp_catalogue *c, json_t *ids)
{
    sqlite3_stmt *get = NULL, *put = NULL, *mark = NULL;
    json_t *v;
    size_t i;
    int r = sql(c->db, "BEGIN IMMEDIATE");
    if (r == 0)
        r = sql(c->db, "UPDATE point SET pos=-1");
    if (r == 0 && (sqlite3_prepare_v2(c->db, "SELECT size,mtime,ino FROM point WHERE id=?1", -1, &get, NULL) != SQLITE_OK ||
                   sqlite3_prepare_v2(c->db, "INSERT OR REPLACE INTO point VALUES(?1,?2,-1,?3,?4,?5,?6,?7)", -1, &put, NULL) != SQLITE_OK ||
                   sqlite3_prepare_v2(c->db, "UPDATE point SET pos=?2 WHERE id=?1", -1, &mark, NULL) != SQLITE_OK))
        r = -EIO;
    json_array_foreach(ids, i, v) {
        const char *id = json_string_value(v);
        gr_auto_free char *file = bp_point_file(id);
        struct stat st;
        if (r < 0 || !file || fstatat(c->repo->dir, file, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        if (!row_fresh(c, get, id, &st))
            r = row_put(c, put, id, &st);
        sqlite3_reset(mark);
        sqlite3_bind_text(mark, 1, id, -1, SQLITE_STATIC);
        sqlite3_bind_int64(mark, 2, (sqlite3_int64)i);
        if (r == 0 && sqlite3_step(mark) != SQLITE_DONE)
            r = -EIO;
    }
    sqlite3_finalize(get);
    sqlite3_finalize(put);
    sqlite3_finalize(mark);
    if (r == 0)
        r = sql(c->db, "DELETE FROM point WHERE pos=-1");
    if (r == 0)
        return sql(c->db, "COMMIT");
    (void)sql(c->db, "ROLLBACK");
    return r;
}
static int catalogue_sync(struct bp_catalogue *c, struct gr_err *err)
{
    json_t *ids = NULL;
    int r = bp_point_ids(c->repo, NULL, &ids, err);
    if (r < 0)
        return r;
    r = sync_rows(c, ids);
    if (r < 0) { /* full, locked for ever, …: a cache may be left behind, an answer may not be wrong */
        sqlite3_close(c->db);
        c->db = NULL;
        r = open_at(":memory:", &c->db);
        if (r == 0)
            r = sync_rows(c, ids);
        if (r < 0)
            gr_fail(err, r, "%s: cannot make a catalogue", c->repo->path);
    }
    json_decref(ids);
    return r;
}

int bp_catalogue_open(struct bp_repo *r, struct bp_catalogue **ret, struct gr_err *err)
{
    struct bp_catalogue *c = gr_zalloc(sizeof *c);
    if (!c)
        return gr_fail(err, -ENOMEM, "out of memory");
    c->repo = r;
    int rc = open_db(r, &c->db, err);
    if (rc == 0)
        rc = catalogue_sync(c, err);
    if (rc < 0) {
        bp_catalogue_close(c);
        return rc;
    }
    *ret = c;
    return 0;
}
void bp_catalogue_close(struct bp_catalogue *c)
{
    if (!c)
        return;
    if (c->db)
        (void)sqlite3_wal_checkpoint_v2(c->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    sqlite3_close(c->db);
    free(c);
}
int bp_catalogue_rebuild(struct bp_repo *r, struct gr_err *err)
{
    struct bp_catalogue *c = NULL;
    json_t *rows = NULL;
    int rc = bp_catalogue_open(r, &c, err);
    if (rc == 0 && sql(c->db, "DELETE FROM point") < 0)
        rc = gr_fail(err, -EIO, "%s/catalogue.db: %s", r->path, sqlite3_errmsg(c->db));
    if (rc == 0)
        rc = catalogue_sync(c, err);
    if (rc == 0)
        rc = bp_catalogue_list(c, NULL, &rows, err);
    if (rc == 0)
        rc = (int)json_array_size(rows);
    json_decref(rows);
    bp_catalogue_close(c);
    return rc;
}

static int select_rows(struct bp_catalogue *c, const char *query, const char *arg, json_t **ret, struct gr_err *err)
{
    sqlite3_stmt *st = NULL;
    json_t *rows = json_array();
    int s = sqlite3_prepare_v2(c->db, query, -1, &st, NULL);
    if (s == SQLITE_OK && arg)
        s = sqlite3_bind_text(st, 1, arg, -1, SQLITE_STATIC);
    while (s == SQLITE_OK || s == SQLITE_ROW) {
        s = sqlite3_step(st);
        if (s != SQLITE_ROW)
            break;
        const char *text = (const char *)sqlite3_column_text(st, 0);
        json_t *row = text ? json_loads(text, JSON_REJECT_DUPLICATES, NULL) : NULL;
        if (!row || json_array_append_new(rows, row) < 0) {
            s = SQLITE_CORRUPT;
            break;
        }
    }
    sqlite3_finalize(st);
    if (s != SQLITE_DONE) {
        json_decref(rows);
        return gr_fail(err, -EIO, "%s/catalogue.db: %s; delete it, it will be made anew", c->repo->path, sqlite3_errstr(s));
    }
    *ret = rows;
    return 0;
}
int bp_catalogue_list(struct bp_catalogue *c, const char *name, json_t **ret, struct gr_err *err)
{
    return select_rows(c, name ? "SELECT summary FROM point WHERE name=?1 ORDER BY pos" : "SELECT summary FROM point ORDER BY pos", name, ret, err);
}
int bp_catalogue_find(struct bp_catalogue *c, const char *text, json_t **ret, struct gr_err *err)
{
    return select_rows(c, "SELECT summary FROM point WHERE instr(lower(words),lower(?1))>0 ORDER BY pos", text, ret, err);
}
