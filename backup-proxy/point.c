/* Manifests: names, publishing, loading, listing. */
#include "backup-proxy/point.h"
#include "backup-proxy/repo_dir.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static const char head_word[] = "granary-point 1 ";

/* ---- names ---- */
int bp_name_check(const char *name, struct gr_err *err)
{
    size_t len = strlen(name);
    if (len == 0 || len > 200 || !gr_utf8_ok(name, len) || strpbrk(name, "@:"))
        return gr_fail(err, -GR_EUSAGE, "'%.200s' cannot be the name of a backup (1 to 200 bytes of UTF-8 without '@', ':' or control characters)",
                       name);
    for (const char *p = name; p; p = strchr(p, '/') ? strchr(p, '/') + 1 : NULL) {
        size_t n = strcspn(p, "/");
        if (n == 0 || (n == 1 && p[0] == '.') || (n == 2 && p[0] == '.' && p[1] == '.'))
            return gr_fail(err, -GR_EUSAGE, "'%s' cannot be the name of a backup: it has an empty, '.' or '..' part", name);
    }
    return 0;
}
static void escape(const char *name, struct gr_buf *out)
{
    for (const char *c = name; *c; c++)
        if (*c == '/' || *c == '%' || *c == '~' || (c == name && *c == '.'))
            (void)gr_buf_printf(out, "%%%02X", (unsigned char)*c);
        else
            (void)gr_buf_add(out, c, 1);
}
static char *unescape(const char *name)
{
    char *out = gr_strdup(name), *o = out;
    for (const char *c = name; out && *c; c++) {
        unsigned v = 0;
        if (*c == '%' && sscanf(c + 1, "%2X", &v) == 1 && v > 0 && c[1] && c[2]) {
            *o++ = (char)v;
            c += 2;
        } else {
            *o++ = *c;
        }
    }
    if (out)
        *o = 0;
    return out;
}
/* "20261122T080041Z" or with "-2" … behind it */
static bool is_stamp(const char *s)
{
    if (strspn(s, "0123456789") != 8 || s[8] != 'T' || strspn(s + 9, "0123456789") != 6 || s[15] != 'Z')
        return false;
    return !s[16] || (s[16] == '-' && strspn(s + 17, "0123456789") == strlen(s + 17) && s[17] && strlen(s + 17) < 5);
}
/* Part an id: name (new memory) and stamp (borrowed from the id). */
static int id_split(const char *id, char **ret_name, const char **ret_stamp)
{
    const char *slash = strrchr(id, '/');
    if (!slash || !is_stamp(slash + 1) || strlen(id) >= BP_POINT_ID_MAX)
        return -EINVAL;
    char *name = strndup(id, (size_t)(slash - id));
    if (!name || bp_name_check(name, NULL) < 0) {
        free(name);
        return -EINVAL;
    }
    *ret_name = name;
    *ret_stamp = slash + 1;
    return 0;
}
static char *id_file(const char *id, const char *fmt_dir, const char *between, const char *suffix)
{
    gr_auto_free char *name = NULL;
    const char *stamp = NULL;
    struct gr_buf b = {0};
    if (id_split(id, &name, &stamp) < 0)
        return NULL;
    (void)gr_buf_printf(&b, "%s/", fmt_dir);
    escape(name, &b);
    (void)gr_buf_printf(&b, "%s%s%s", between, stamp, suffix);
    return gr_buf_take(&b);
}
char *bp_point_file(const char *id)
{
    return id_file(id, "points", "/", ".point");
}
static char *removed_file(const char *id)
{
    return id_file(id, "removed", "~", ".point");
}

/* ---- publishing ---- */
json_t *bp_ref_json(const struct bp_ref *ref)
{
    char pack[17], hash[65];
    if (ref->raw == 0)
        return json_null();
    snprintf(pack, sizeof pack, "%016" PRIx64, ref->pack);
    for (unsigned i = 0; i < 32; i++)
        snprintf(hash + 2 * i, 3, "%02x", ref->hash[i]);
    return json_pack("{s:s,s:I,s:I,s:I,s:s}", "pack", pack, "offset", (json_int_t)ref->off, "stored", (json_int_t)ref->stored, "raw",
                     (json_int_t)ref->raw, "sha256", hash);
}
static void hex_of(const uint8_t hash[32], char out[65])
{
    for (unsigned i = 0; i < 32; i++)
        snprintf(out + 2 * i, 3, "%02x", hash[i]);
}
static int manifest_text(json_t *doc, struct gr_buf *out)
{
    uint8_t hash[32];
    char hex[65];
    gr_auto_free char *text = json_dumps(doc, JSON_COMPACT | JSON_SORT_KEYS);
    if (!text)
        return -ENOMEM;
    size_t len = strlen(text);
    bp_sha256(text, len, hash);
    hex_of(hash, hex);
    return gr_buf_printf(out, "%s%s %zu\n%s\n", head_word, hex, len, text);
}
int bp_point_publish(struct bp_repo *r, const struct bp_lease *l, const char *name, int64_t time_s, json_t *doc, char ret_id[BP_POINT_ID_MAX],
                     struct gr_err *err)
{
    gr_auto_buf struct gr_buf dir = {0};
    struct tm tm;
    time_t t = (time_t)time_s;
    int rc = bp_name_check(name, err);
    if (rc < 0)
        return rc;
    (void)gr_buf_printf(&dir, "points/");
    escape(name, &dir);
    if (mkdirat(r->dir, dir.data, 0700) == 0)
        rc = bp_repo_sync_dir(r, "points", err);
    else if (errno != EEXIST)
        rc = gr_fail(err, -errno, "%s/%s: cannot make: %s", r->path, dir.data, gr_code_text(-errno));
    gmtime_r(&t, &tm);
    for (unsigned n = 1; rc == 0 && n < 1000; n++) {
        char stamp[32], more[8] = "", id[BP_POINT_ID_MAX];
        gr_auto_buf struct gr_buf text = {0};
        strftime(stamp, sizeof stamp - 8, "%Y%m%dT%H%M%SZ", &tm);
        if (n > 1)
            snprintf(more, sizeof more, "-%u", n);
        snprintf(stamp + strlen(stamp), 8, "%s", more);
        snprintf(id, sizeof id, "%s/%s", name, stamp);
        gr_auto_free char *file = bp_point_file(id);
        json_object_set_new(doc, "point", json_string(id));
        json_object_set_new(doc, "name", json_string(name));
        json_object_set_new(doc, "stamp", json_string(stamp));
        json_object_set_new(doc, "time", json_integer(time_s));
        if (!file || manifest_text(doc, &text) < 0)
            return gr_fail(err, -ENOMEM, "out of memory");
        if (text.len > BP_MANIFEST_MAX)
            return gr_fail(err, -EFBIG, "the manifest of '%s' is larger than %u bytes", id, BP_MANIFEST_MAX);
        rc = bp_repo_publish(r, bp_lease_id(l), file, text.data, text.len, err);
        if (rc == 0)
            memcpy(ret_id, id, sizeof id);
        if (rc != -EEXIST)
            return rc;
        rc = 0;
    }
    return rc < 0 ? rc : gr_fail(err, -EEXIST, "'%s' has too many points in one second", name);
}

/* ---- loading ---- */
static int manifest_parse(struct gr_buf *b, const char *id, json_t **ret, struct gr_err *err)
{
    uint8_t hash[32];
    char hex[65], head[160];
    char *nl = b->data ? memchr(b->data, '\n', GR_MIN(b->len, sizeof head)) : NULL;
    size_t len = nl ? (size_t)(b->data + b->len - nl - 1) : 0;
    if (len < 2 || nl[len] != '\n' || memcmp(b->data, head_word, GR_MIN(b->len, sizeof head_word - 1)))
        return gr_fail(err, -GR_ECORRUPT, "the manifest of point '%s' is malformed or truncated", id);
    len--; /* the newline at the end */
    bp_sha256(nl + 1, len, hash);
    hex_of(hash, hex);
    int n = snprintf(head, sizeof head, "%s%s %zu\n", head_word, hex, len);
    if (n != nl + 1 - b->data || memcmp(head, b->data, (size_t)n)) /* the one way to write it */
        return gr_fail(err, -GR_ECORRUPT, "the manifest of point '%s' fails its checksum", id);
    json_error_t je;
    json_t *doc = json_loadb(nl + 1, len, JSON_REJECT_DUPLICATES, &je);
    const char *inside = json_string_value(json_object_get(doc, "point"));
    if (!inside || strcmp(inside, id) || !json_is_array(json_object_get(doc, "disks")) || !json_is_integer(json_object_get(doc, "time"))) {
        json_decref(doc);
        return gr_fail(err, -GR_ECORRUPT, "the manifest of point '%s' belongs to another point or is incomplete", id);
    }
    *ret = doc;
    return 0;
}
static int load_file(struct bp_repo *r, const char *file, const char *id, struct bp_point *ret, struct gr_err *err)
{
    gr_auto_buf struct gr_buf b = {0};
    gr_auto_free char *path = gr_asprintf("%s/%s", r->path, file);
    json_t *doc = NULL;
    if (!path)
        return gr_fail(err, -ENOMEM, "out of memory");
    if (access(path, F_OK) < 0)
        return gr_fail(err, -errno, "no restore point '%s' in %s", id, r->path);
    int rc = gr_file_read(path, BP_MANIFEST_MAX, &b, err);
    if (rc == 0)
        rc = manifest_parse(&b, id, &doc, err);
    if (rc < 0)
        return rc;
    *ret = (struct bp_point){.doc = doc};
    snprintf(ret->id, sizeof ret->id, "%s", id);
    return 0;
}
int bp_point_load(struct bp_repo *r, const char *id, struct bp_point *ret, struct gr_err *err)
{
    gr_auto_free char *file = bp_point_file(id);
    return file ? load_file(r, file, id, ret, err) : gr_fail(err, -GR_EUSAGE, "'%s' is no restore point (NAME/STAMP)", id);
}
int bp_point_load_removed(struct bp_repo *r, const char *id, struct bp_point *ret, struct gr_err *err)
{
    gr_auto_free char *file = removed_file(id);
    return file ? load_file(r, file, id, ret, err) : gr_fail(err, -GR_EUSAGE, "'%s' is no restore point (NAME/STAMP)", id);
}
void bp_point_done(struct bp_point *p)
{
    json_decref(p->doc);
    p->doc = NULL;
}

static int ref_parse(json_t *o, struct bp_ref *ret)
{
    *ret = (struct bp_ref){0};
    if (json_is_null(o))
        return 0;
    const char *pack = json_string_value(json_object_get(o, "pack")), *hash = json_string_value(json_object_get(o, "sha256"));
    json_int_t off = json_integer_value(json_object_get(o, "offset")), stored = json_integer_value(json_object_get(o, "stored")),
               raw = json_integer_value(json_object_get(o, "raw"));
    if (!pack || !hash || strlen(hash) != 64 || strlen(pack) != 16 || off <= 0 || off > INT32_MAX || stored <= 0 || stored > REPO_UNIT ||
        raw <= 0 || raw > REPO_UNIT || sscanf(pack, "%16" SCNx64, &ret->pack) != 1)
        return -GR_ECORRUPT;
    for (unsigned i = 0; i < 32; i++) {
        unsigned v;
        if (sscanf(hash + 2 * i, "%2x", &v) != 1)
            return -GR_ECORRUPT;
        ret->hash[i] = (uint8_t)v;
    }
    ret->off = (uint32_t)off;
    ret->stored = (uint32_t)stored;
    ret->raw = (uint32_t)raw;
    return 0;
}
size_t bp_point_disks(const struct bp_point *p)
{
    return json_array_size(json_object_get(p->doc, "disks"));
}
int bp_point_disk(const struct bp_point *p, size_t i, struct bp_point_disk *ret, struct gr_err *err)
{
    json_t *d = json_array_get(json_object_get(p->doc, "disks"), i);
    const char *mark = json_string_value(json_object_get(d, "bookmark"));
    struct bp_point_disk k = {.name = json_string_value(json_object_get(d, "name")),
                              .path = json_string_value(json_object_get(d, "path")),
                              .bookmark = mark ? mark : "",
                              .doc = d};
    json_int_t size = json_integer_value(json_object_get(d, "size"));
    json_t *root = json_object_get(d, "root");
    if (!k.name || !k.path || size <= 0 || !root || ref_parse(root, &k.root) < 0)
        return gr_fail(err, -GR_ECORRUPT, "disk %zu in the manifest of point '%s' is malformed", i, p->id);
    k.size = (uint64_t)size;
    *ret = k;
    return 0;
}
int bp_point_find_disk(const struct bp_point *p, const char *disk, struct bp_point_disk *ret, struct gr_err *err)
{
    size_t n = bp_point_disks(p);
    if (!disk && n == 1)
        return bp_point_disk(p, 0, ret, err);
    gr_auto_buf struct gr_buf names = {0};
    for (size_t i = 0; i < n; i++) {
        struct bp_point_disk d;
        char number[24];
        int rc = bp_point_disk(p, i, &d, err);
        if (rc < 0)
            return rc;
        snprintf(number, sizeof number, "%zu", i);
        if (disk && (!strcmp(d.name, disk) || !strcmp(d.path, disk) || !strcmp(number, disk))) {
            *ret = d;
            return 0;
        }
        (void)gr_buf_printf(&names, "%s%s", i ? ", " : "", d.name);
    }
    if (!disk)
        return gr_fail(err, -GR_EUSAGE, "point '%s' has %zu disks; name one of them behind ':' (%s)", p->id, n, names.data ? names.data : "");
    return gr_fail(err, -ENOENT, "point '%s' has no disk '%s' (it has %s)", p->id, disk, names.data ? names.data : "none");
}

/* ---- listing ---- */
static int add_name(struct bp_repo *r, const char *dir, json_t *out, struct gr_err *err)
{
    gr_auto_free char *path = gr_asprintf("points/%s", dir), *name = unescape(dir);
    int dfd = path ? openat(r->dir, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW) : -1;
    gr_auto_closedir DIR *d = dfd < 0 ? NULL : fdopendir(dfd);
    if (!d || !name)
        return errno == ENOENT || errno == ENOTDIR ? 0 : gr_fail(err, -errno, "%s/points/%s: cannot open: %s", r->path, dir, gr_code_text(-errno));
    for (struct dirent *e; (e = readdir(d));) {
        char id[BP_POINT_ID_MAX], *dot = strrchr(e->d_name, '.');
        if (!dot || strcmp(dot, ".point"))
            continue;
        *dot = 0;
        if (!is_stamp(e->d_name) || (size_t)snprintf(id, sizeof id, "%s/%s", name, e->d_name) >= sizeof id)
            continue;
        gr_auto_free char *file = bp_point_file(id); /* only what we would have named so */
        if (file && strlen(file) > 7 && !strncmp(file + 7, dir, strlen(dir)))
            json_array_append_new(out, json_string(id));
    }
    return 0;
}
static void stamp_key(const char *id, char out[40])
{
    const char *stamp = strrchr(id, '/') + 1;
    snprintf(out, 40, "%.16s-%04ld", stamp, stamp[16] == '-' ? strtol(stamp + 17, NULL, 10) : 1);
}
static int id_order(const void *a, const void *b)
{
    const char *x = json_string_value(*(json_t *const *)a), *y = json_string_value(*(json_t *const *)b);
    size_t nx = (size_t)(strrchr(x, '/') - x), ny = (size_t)(strrchr(y, '/') - y);
    int c = memcmp(x, y, GR_MIN(nx, ny));
    if (c || nx != ny)
        return c ? c : nx < ny ? -1 : 1;
    char kx[40], ky[40];
    stamp_key(x, kx);
    stamp_key(y, ky);
    return strcmp(kx, ky);
}
static int sorted(json_t *list, json_t **ret, struct gr_err *err)
{
    size_t n = json_array_size(list);
    gr_auto_free json_t **v = gr_alloc((n + 1) * sizeof *v);
    json_t *out = json_array();
    if (!v || !out) {
        json_decref(out);
        return gr_fail(err, -ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < n; i++)
        v[i] = json_array_get(list, i);
    qsort(v, n, sizeof *v, id_order);
    for (size_t i = 0; i < n; i++)
        json_array_append(out, v[i]);
    *ret = out;
    return 0;
}
int bp_point_ids(struct bp_repo *r, const char *name, json_t **ret, struct gr_err *err)
{
    int dfd = openat(r->dir, "points", O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;
    gr_auto_closedir DIR *d = dfd < 0 ? NULL : fdopendir(dfd);
    json_t *list = json_array();
    gr_auto_buf struct gr_buf only = {0};
    if (name)
        escape(name, &only);
    if (!d || !list)
        rc = gr_fail(err, d ? -ENOMEM : -errno, "%s/points: cannot open: %s", r->path, gr_code_text(-errno));
    for (struct dirent *e; rc == 0 && (e = readdir(d));)
        if (e->d_name[0] != '.' && (!name || !strcmp(e->d_name, only.data ? only.data : "")))
            rc = add_name(r, e->d_name, list, err);
    if (rc == 0)
        rc = sorted(list, ret, err);
    json_decref(list);
    return rc;
}
int bp_point_removed_ids(struct bp_repo *r, json_t **ret, struct gr_err *err)
{
    int dfd = openat(r->dir, "removed", O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc;
    gr_auto_closedir DIR *d = dfd < 0 ? NULL : fdopendir(dfd);
    json_t *list = json_array();
    if (!d || !list) {
        json_decref(list);
        return gr_fail(err, d ? -ENOMEM : -errno, "%s/removed: cannot open: %s", r->path, gr_code_text(-errno));
    }
    for (struct dirent *e; (e = readdir(d));) {
        char *tilde = strrchr(e->d_name, '~'), *dot = strrchr(e->d_name, '.');
        if (!tilde || !dot || dot < tilde || strcmp(dot, ".point"))
            continue;
        *tilde = *dot = 0;
        gr_auto_free char *name = unescape(e->d_name);
        char id[BP_POINT_ID_MAX];
        if (name && is_stamp(tilde + 1) && (size_t)snprintf(id, sizeof id, "%s/%s", name, tilde + 1) < sizeof id)
            json_array_append_new(list, json_string(id));
    }
    rc = sorted(list, ret, err);
    json_decref(list);
    return rc;
}

int bp_point_remove(struct bp_repo *r, const char *id, struct gr_err *err)
{
    gr_auto_free char *from = bp_point_file(id), *to = removed_file(id);
    if (!from || !to)
        return gr_fail(err, -GR_EUSAGE, "'%s' is no restore point (NAME/STAMP)", id);
    if (renameat(r->dir, from, r->dir, to) < 0)
        return gr_fail(err, -errno, "no restore point '%s' in %s: %s", id, r->path, gr_code_text(-errno));
    *strrchr(from, '/') = 0;
    int rc = bp_repo_sync_dir(r, "removed", err);
    return rc < 0 ? rc : bp_repo_sync_dir(r, from, err);
}
int bp_point_forget(struct bp_repo *r, const char *id, struct gr_err *err)
{
    gr_auto_free char *file = removed_file(id);
    if (!file || (unlinkat(r->dir, file, 0) < 0 && errno != ENOENT))
        return gr_fail(err, -errno, "cannot forget point '%s': %s", id, gr_code_text(-errno));
    return 0;
}

int bp_point_newest(struct bp_repo *r, const char *name, char ret_id[BP_POINT_ID_MAX], struct gr_err *err)
{
    json_t *ids = NULL;
    int rc = bp_point_ids(r, name, &ids, err);
    if (rc < 0)
        return rc;
    size_t n = json_array_size(ids);
    if (n > 0)
        snprintf(ret_id, BP_POINT_ID_MAX, "%s", json_string_value(json_array_get(ids, n - 1)));
    json_decref(ids);
    return n > 0;
}
int bp_point_resolve(struct bp_repo *r, const char *text, char ret_id[BP_POINT_ID_MAX], char **ret_disk, struct gr_err *err)
{
    const char *colon = strchr(text, ':');
    gr_auto_free char *id = colon ? strndup(text, (size_t)(colon - text)) : gr_strdup(text);
    if (!id)
        return gr_fail(err, -ENOMEM, "out of memory");
    if (colon && (!ret_disk || !colon[1]))
        return gr_fail(err, -GR_EUSAGE, "'%s': %s", text, ret_disk ? "a disk is missing behind ':'" : "a whole point is wanted here, without ':DISK'");
    char *slash = strrchr(id, '/');
    if (slash && !strcmp(slash, "/latest"))
        *slash = 0;
    slash = strrchr(id, '/');
    if (slash && is_stamp(slash + 1)) {
        gr_auto_free char *file = bp_point_file(id);
        if (!file || faccessat(r->dir, file, F_OK, 0) < 0)
            return gr_fail(err, -ENOENT, "no restore point '%s' in %s", id, r->path);
        snprintf(ret_id, BP_POINT_ID_MAX, "%s", id);
    } else {
        int rc = bp_name_check(id, err);
        if (rc == 0)
            rc = bp_point_newest(r, id, ret_id, err);
        if (rc <= 0)
            return rc < 0 ? rc : gr_fail(err, -ENOENT, "no restore point of '%s' in %s", id, r->path);
    }
    if (colon && !(*ret_disk = gr_strdup(colon + 1)))
        return gr_fail(err, -ENOMEM, "out of memory");
    return 0;
}
