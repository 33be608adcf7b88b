#include "backup-proxy/mount_guest.h"
#include "backup-proxy/fs_dir.h"
#include "backup-proxy/fs_file.h"
#include "common/cleanup.h"
#include "common/log.h"
#include "common/seam.h"
#include <jansson.h>
#include <stdio.h>
#include <string.h>

enum kind { ROOT, DISK, RAW, TABLE, GUEST };
enum { FIXED = 2 }; /* entries of a disk's directory before its volumes */
#define RAW_AHEAD (1u << 20)

struct disk {
    char *name;
    struct gr_bdev *bdev;
    struct fs_reader *reader;
    struct fs_dirs *dirs;
    char *table; /* partitions.json */
    size_t table_len;
};
struct guest {
    struct gr_loop *loop;
    struct mount_guest_opts opts;
    unsigned n;
    struct disk disks[];
};
/* One open directory or file. */
struct handle {
    struct mount_obj obj;
    struct fs_dir *dir;
    struct fs_file *file;
    uint64_t next; /* RAW: where a sequential reader goes on */
};

/* Reading a guest gives no other errors than these: what is damaged there is an I/O error here. */
static int to_fuse(int rc, const struct gr_err *err)
{
    if (rc >= 0 || rc == -ENOENT || rc == -ENOTDIR || rc == -ENOMEM || rc == -EFBIG || rc == -EINVAL)
        return rc;
    gr_log_limited(GR_LOG_WARN, "%s", gr_err_text(err, rc));
    return -EIO;
}

static struct disk *disk_of(struct guest *g, const struct mount_obj *o)
{
    return o->disk < g->n ? &g->disks[o->disk] : NULL;
}

static int vols_of(struct disk *d, const struct fs_vol **ret, unsigned *ret_n)
{
    const char *table = NULL;
    struct gr_err err = {0};
    return to_fuse(fs_reader_scan(d->reader, ret, ret_n, &table, &err), &err);
}

static int vol_of(struct guest *g, const struct mount_obj *o, struct disk **ret_disk, const struct fs_vol **ret)
{
    const struct fs_vol *v = NULL;
    unsigned n = 0;
    struct disk *d = disk_of(g, o);
    int rc = d ? vols_of(d, &v, &n) : -ENOENT;
    if (rc < 0)
        return rc;
    if (o->vol >= n)
        return -ENOENT;
    *ret_disk = d;
    *ret = &v[o->vol];
    return v[o->vol].status < 0 ? -EIO : 0;
}

/* ---- attributes ---- */
static void own_stat(const struct guest *g, const struct mount_obj *o, mode_t mode, uint64_t size, struct stat *st)
{
    *st = (struct stat){.st_mode = mode, .st_nlink = S_ISDIR(mode) ? 2 : 1, .st_uid = g->opts.uid, .st_gid = g->opts.gid,
                        .st_size = (off_t)size, .st_blksize = 4096, .st_blocks = (blkcnt_t)((size + 511) / 512)};
    st->st_ino = (ino_t)(1 + o->kind + 8ull * o->disk);
    st->st_mtim.tv_sec = st->st_ctim.tv_sec = st->st_atim.tv_sec = g->opts.mtime;
}

static mode_t type_bits(uint8_t type)
{
    static const mode_t bits[FS_T_LAST] = {0, S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK};
    return bits[type];
}

static struct timespec to_timespec(const struct fs_time *t)
{
    return (struct timespec){.tv_sec = t->sec, .tv_nsec = t->nsec};
}

static void guest_stat(const struct mount_obj *o, const struct fs_attr *a, struct stat *st)
{
    *st = (struct stat){.st_mode = type_bits(a->type) | a->mode, .st_nlink = (nlink_t)a->nlink, .st_uid = a->uid, .st_gid = a->gid,
                        .st_size = (off_t)a->size, .st_blksize = 4096, .st_blocks = (blkcnt_t)(a->size / 512 + (a->size % 512 ? 1 : 0))};
    st->st_ino = (ino_t)((((uint64_t)o->disk << 8 | o->vol) + 1) << 44 ^ a->inode);
    st->st_mtim = to_timespec(&a->mtime);
    st->st_atim = to_timespec(&a->atime);
    st->st_ctim = to_timespec(&a->ctime);
}

static int table_of(struct disk *d)
{
    if (d->table)
        return 0;
    char *text = NULL;
    struct gr_err err = {0};
    int rc = mount_guest_describe(d->reader, &text, &err);
    if (rc < 0)
        return to_fuse(rc, &err);
    if (d->table) { /* somebody else was faster: readers hold that one */
        free(text);
        return 0;
    }
    d->table = text;
    d->table_len = strlen(text);
    return 0;
}

static int get_stat(struct guest *g, const struct mount_obj *o, struct stat *st)
{
    struct disk *d = disk_of(g, o);
    struct fs_attr a;
    const struct fs_vol *v = NULL;
    struct gr_err err = {0};
    int rc = 0;
    switch ((enum kind)o->kind) {
    case ROOT:
        own_stat(g, o, S_IFDIR | 0755, 0, st);
        return 0;
    case DISK:
        own_stat(g, o, S_IFDIR | 0755, 0, st);
        return d ? 0 : -ENOENT;
    case RAW:
        if (d)
            own_stat(g, o, S_IFREG | 0444, fs_cache_size(fs_reader_cache(d->reader)), st);
        return d ? 0 : -ENOENT;
    case TABLE:
        rc = d ? table_of(d) : -ENOENT;
        if (rc == 0)
            own_stat(g, o, S_IFREG | 0444, d->table_len, st);
        return rc;
    case GUEST:
        rc = vol_of(g, o, &d, &v);
        if (rc == 0)
            rc = to_fuse(fs_reader_stat(d->reader, v, o->inode, &a, &err), &err);
        if (rc == 0)
            guest_stat(o, &a, st);
        return rc == 0 && a.type == FS_T_UNKNOWN ? -EIO : rc;
    }
    return -ENOENT;
}

static int guest_getattr(void *view, const struct mount_obj *o, struct stat *ret)
{
    return get_stat(view, o, ret);
}

/* ---- names ---- */
static int found_own(struct guest *g, struct mount_obj o, struct mount_found *ret)
{
    struct mount_found f = {.obj = o};
    int rc = get_stat(g, &o, &f.st);
    if (rc == 0)
        *ret = f;
    return rc;
}

static void found_guest(const struct mount_obj *dir, const struct fs_attr *a, struct mount_found *ret)
{
    struct mount_obj o = {.kind = GUEST, .disk = dir->disk, .vol = dir->vol, .inode = a->inode};
    *ret = (struct mount_found){.obj = o, .broken = a->type == FS_T_UNKNOWN};
    guest_stat(&o, a, &ret->st);
}

/* Root of a volume: a directory also when its file system cannot be opened, so that one sees that it is there. */
static int found_vol(struct guest *g, uint32_t disk, const struct fs_vol *v, struct mount_found *ret)
{
    struct mount_obj o = {.kind = GUEST, .disk = disk, .vol = v->id, .inode = v->info.root};
    int rc = v->status == 0 ? found_own(g, o, ret) : -EIO;
    if (rc < 0) {
        *ret = (struct mount_found){.obj = o, .broken = true};
        own_stat(g, &o, S_IFDIR | 0555, 0, &ret->st);
        ret->st.st_ino = (ino_t)((((uint64_t)disk << 8 | v->id) + 1) << 44);
    }
    return rc == -ENOMEM ? rc : 0;
}

static int lookup_in_disk(struct guest *g, const struct mount_obj *dir, const char *name, struct mount_found *ret)
{
    const struct fs_vol *v = NULL;
    unsigned n = 0;
    if (strcmp(name, "disk.raw") == 0)
        return found_own(g, (struct mount_obj){.kind = RAW, .disk = dir->disk}, ret);
    if (strcmp(name, "partitions.json") == 0)
        return found_own(g, (struct mount_obj){.kind = TABLE, .disk = dir->disk}, ret);
    int rc = vols_of(&g->disks[dir->disk], &v, &n);
    for (unsigned i = 0; rc == 0 && i < n; i++)
        if (v[i].status != -ENODEV && strcmp(v[i].name, name) == 0)
            return found_vol(g, dir->disk, &v[i], ret);
    return rc < 0 ? rc : -ENOENT;
}

static int guest_lookup(void *view, const struct mount_obj *o, const char *name, struct mount_found *ret)
{
    struct guest *g = view;
    if (o->kind == ROOT) {
        for (unsigned i = 0; i < g->n; i++)
            if (strcmp(g->disks[i].name, name) == 0)
                return found_own(g, (struct mount_obj){.kind = DISK, .disk = i}, ret);
        return -ENOENT;
    }
    if (o->kind == DISK)
        return lookup_in_disk(g, o, name, ret);
    if (o->kind != GUEST)
        return -ENOTDIR;
    struct disk *d = NULL;
    const struct fs_vol *v = NULL;
    struct fs_dir *dir = NULL;
    struct gr_err err = {0};
    int rc = vol_of(g, o, &d, &v);
    if (rc == 0)
        rc = to_fuse(fs_dir_get(d->dirs, v, o->inode, &dir, &err), &err);
    if (rc < 0)
        return rc;
    const struct fs_dirent *e = fs_dir_find(dir, name);
    if (e)
        found_guest(o, &e->attr, ret);
    fs_dir_put(d->dirs, dir);
    return e ? 0 : -ENOENT;
}

static int guest_readlink(void *view, const struct mount_obj *o, char *buf, size_t cap)
{
    struct disk *d = NULL;
    const struct fs_vol *v = NULL;
    struct gr_err err = {0};
    if (o->kind != GUEST || cap <= FS_LINK_MAX)
        return -EINVAL;
    int rc = vol_of(view, o, &d, &v);
    return rc < 0 ? rc : to_fuse(fs_reader_link(d->reader, v, o->inode, buf, &err), &err);
}

/* ---- directories ---- */
static int guest_opendir(void *view, const struct mount_obj *o, void **ret)
{
    struct handle *h = gr_zalloc(sizeof *h);
    struct disk *d = NULL;
    const struct fs_vol *v = NULL;
    struct gr_err err = {0};
    int rc = h ? 0 : -ENOMEM;
    if (rc == 0 && o->kind == GUEST) {
        rc = vol_of(view, o, &d, &v);
        if (rc == 0)
            rc = to_fuse(fs_dir_get(d->dirs, v, o->inode, &h->dir, &err), &err);
    } else if (rc == 0 && o->kind != ROOT && o->kind != DISK) {
        rc = -ENOTDIR;
    }
    if (rc < 0) {
        free(h);
        return rc;
    }
    h->obj = *o;
    *ret = h;
    return 0;
}

static int entry_of_disk(struct guest *g, const struct mount_obj *o, uint64_t i, const char **ret_name, struct mount_found *ret)
{
    const struct fs_vol *v = NULL;
    unsigned n = 0;
    if (i < FIXED) {
        *ret_name = i == 0 ? "disk.raw" : "partitions.json";
        int rc = found_own(g, (struct mount_obj){.kind = i == 0 ? RAW : TABLE, .disk = o->disk}, ret);
        if (rc == -EIO) { /* the image cannot be read: the name is there all the same */
            *ret = (struct mount_found){.broken = true};
            own_stat(g, &(struct mount_obj){.kind = TABLE, .disk = o->disk}, S_IFREG | 0444, 0, &ret->st);
            rc = 0;
        }
        return rc < 0 ? rc : 1;
    }
    if (vols_of(&g->disks[o->disk], &v, &n) < 0)
        return 0;
    uint64_t skip = i - FIXED;
    for (unsigned k = 0; k < n; k++) {
        if (v[k].status == -ENODEV || skip-- > 0)
            continue;
        *ret_name = v[k].name;
        int rc = found_vol(g, o->disk, &v[k], ret);
        return rc < 0 ? rc : 1;
    }
    return 0;
}

static int guest_entry(void *view, void *dir, uint64_t i, const char **ret_name, struct mount_found *ret)
{
    struct guest *g = view;
    const struct handle *h = dir;
    if (h->obj.kind == ROOT) {
        if (i >= g->n)
            return 0;
        *ret_name = g->disks[i].name;
        int rc = found_own(g, (struct mount_obj){.kind = DISK, .disk = (uint32_t)i}, ret);
        return rc < 0 ? rc : 1;
    }
    if (h->obj.kind == DISK)
        return entry_of_disk(g, &h->obj, i, ret_name, ret);
    if (i >= h->dir->n)
        return 0;
    *ret_name = h->dir->entries[i].name;
    found_guest(&h->obj, &h->dir->entries[i].attr, ret);
    return 1;
}

static void guest_closedir(void *view, void *dir)
{
    struct guest *g = view;
    struct handle *h = dir;
    if (h->dir)
        fs_dir_put(g->disks[h->obj.disk].dirs, h->dir);
    free(h);
}

/* ---- files ---- */
static int guest_open(void *view, const struct mount_obj *o, const struct stat *st, void **ret)
{
    struct guest *g = view;
    struct disk *d = disk_of(g, o);
    const struct fs_vol *v = NULL;
    struct fs_attr a = {.inode = o->inode, .size = (uint64_t)st->st_size};
    struct gr_err err = {0};
    struct handle *h = gr_zalloc(sizeof *h);
    int rc = h ? 0 : -ENOMEM;
    if (rc == 0 && o->kind == GUEST) {
        rc = vol_of(g, o, &d, &v);
        if (rc == 0)
            rc = S_ISREG(st->st_mode) ? to_fuse(fs_file_open(d->reader, v, &a, &h->file, &err), &err) : -EIO;
    } else if (rc == 0 && o->kind == TABLE) {
        rc = d ? table_of(d) : -ENOENT;
    } else if (rc == 0 && (o->kind != RAW || !d)) {
        rc = -EISDIR;
    }
    if (rc < 0) {
        free(h);
        return rc;
    }
    h->obj = *o;
    *ret = h;
    return 0;
}

static int64_t read_raw(struct disk *d, struct handle *h, void *buf, size_t len, uint64_t off)
{
    struct fs_cache *c = fs_reader_cache(d->reader);
    uint64_t size = fs_cache_size(c);
    if (off >= size)
        return 0;
    len = (size_t)GR_MIN((uint64_t)len, size - off);
    if (off == h->next)
        fs_cache_ahead(c, off + len, RAW_AHEAD);
    h->next = off + len;
    int rc = fs_cache_read(c, buf, len, off);
    if (rc < 0)
        gr_log_limited(GR_LOG_WARN, "%s: reading %zu bytes at %llu: %s", d->name, len, (unsigned long long)off, gr_code_text(rc));
    return rc < 0 ? -EIO : (int64_t)len;
}

static int64_t guest_read(void *view, void *file, void *buf, size_t len, uint64_t off)
{
    struct guest *g = view;
    struct handle *h = file;
    struct disk *d = &g->disks[h->obj.disk];
    struct gr_err err = {0};
    if (h->obj.kind == RAW)
        return read_raw(d, h, buf, len, off);
    if (h->obj.kind == TABLE) {
        size_t n = off < d->table_len ? GR_MIN(len, d->table_len - (size_t)off) : 0;
        if (n)
            memcpy(buf, d->table + off, n);
        return (int64_t)n;
    }
    int64_t n = fs_file_read(h->file, buf, len, off, &err);
    return n < 0 ? to_fuse((int)n, &err) : n;
}

static void guest_close(void *view, void *file)
{
    struct handle *h = file;
    fs_file_close(h->file);
    free(h);
}

static void guest_free(void *view)
{
    struct guest *g = view;
    for (unsigned i = 0; i < g->n; i++) {
        struct disk *d = &g->disks[i];
        fs_dirs_free(d->dirs);
        fs_reader_free(d->reader);
        gr_bdev_put(d->bdev);
        free(d->table);
        free(d->name);
    }
    free(g);
}

static const struct mount_view_ops guest_ops = {
    .getattr = guest_getattr, .lookup = guest_lookup, .readlink = guest_readlink, .opendir = guest_opendir, .entry = guest_entry,
    .closedir = guest_closedir, .open = guest_open, .read = guest_read, .close = guest_close, .free = guest_free,
};

int mount_guest_new(struct gr_loop *loop, const struct mount_disk *disks, unsigned n, const struct mount_guest_opts *opts,
                    struct mount_view *ret, struct gr_err *err)
{
    struct guest *g = gr_zalloc(sizeof *g + n * sizeof g->disks[0]);
    if (!g)
        return gr_fail(err, -ENOMEM, "cannot make a view of %u disks: out of memory", n);
    g->loop = loop;
    g->opts = *opts;
    int rc = 0;
    for (unsigned i = 0; rc == 0 && i < n; i++) {
        struct disk *d = &g->disks[i];
        g->n = i + 1;
        d->bdev = gr_bdev_get(disks[i].bdev);
        d->name = gr_strdup(disks[i].name);
        rc = d->name ? fs_reader_open(loop, d->bdev, &opts->reader, &d->reader, err) : -ENOMEM;
        if (rc == 0)
            rc = fs_dirs_new(d->reader, &d->dirs);
    }
    if (rc < 0) {
        guest_free(g);
        return rc == -ENOMEM ? gr_fail(err, rc, "cannot make a view of %u disks: out of memory", n) : rc;
    }
    *ret = (struct mount_view){.ops = &guest_ops, .impl = g, .immutable = true, .guest_ids = true};
    return 0;
}

/* ---- partitions.json ---- */
static json_t *describe_vol(const struct fs_vol *v)
{
    static const char *const kinds[] = {"whole", "partition", "logical-volume"};
    json_t *o = json_pack("{s:s,s:s,s:I}", "name", v->name, "kind", kinds[v->def->kind], "size", (json_int_t)v->def->size);
    if (!o)
        return NULL;
    if (v->def->kind == FS_V_PART)
        json_object_set_new(o, "number", json_integer((json_int_t)v->def->number));
    if (v->def->kind != FS_V_LV)
        json_object_set_new(o, "offset", json_integer((json_int_t)v->def->segs[0].image_off));
    if (v->def->label[0])
        json_object_set_new(o, "partition-label", json_string(v->def->label)); /* NULL (left out) when no UTF-8 */
    if (v->def->type[0])
        json_object_set_new(o, "partition-type", json_string(v->def->type));
    if (v->status < 0) {
        json_object_set_new(o, "error", json_string(v->why));
        return o;
    }
    json_object_set_new(o, "file-system", json_string(v->info.fs));
    json_object_set_new(o, "block-size", json_integer((json_int_t)v->info.block_size));
    json_object_set_new(o, "unclean", json_boolean(v->info.dirty != FS_CLEAN));
    json_object_set_new(o, "journal-replayed", json_boolean(v->info.dirty == FS_DIRTY_REPLAYED));
    if (v->info.label[0])
        json_object_set_new(o, "label", json_string(v->info.label));
    if (v->info.uuid[0])
        json_object_set_new(o, "uuid", json_string(v->info.uuid));
    return o;
}

int mount_guest_describe(struct fs_reader *r, char **ret, struct gr_err *err)
{
    const struct fs_vol *v = NULL;
    unsigned n = 0;
    const char *table = NULL;
    int rc = fs_reader_scan(r, &v, &n, &table, err);
    if (rc < 0)
        return rc;
    json_t *list = json_array(), *doc = json_pack("{s:s,s:I,s:o}", "table", table, "size", (json_int_t)fs_cache_size(fs_reader_cache(r)),
                                                  "volumes", list);
    for (unsigned i = 0; i < n && doc; i++)
        json_array_append_new(list, describe_vol(&v[i]));
    char *text = doc ? json_dumps(doc, JSON_INDENT(2)) : NULL;
    json_decref(doc);
    char *line = text ? gr_asprintf("%s\n", text) : NULL;
    free(text);
    if (!line)
        return gr_fail(err, -ENOMEM, "%s: out of memory", fs_reader_name(r));
    *ret = line;
    return 0;
}
