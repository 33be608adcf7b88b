#include "backup-proxy/fs_dir.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "common/seam.h"
#include <string.h>

#define KEEP_ENTRIES 200000u /* of directories that nobody holds */
#define BUCKETS 4096u

struct fs_dirs {
    struct fs_reader *r;
    struct gr_fmutex busy; /* one listing at a time: two askers of one directory read it once */
    struct fs_dir *newest, *oldest;
    struct fs_dir *buckets[BUCKETS];
    uint64_t entries; /* of all kept */
};

int fs_dirs_new(struct fs_reader *r, struct fs_dirs **ret)
{
    struct fs_dirs *d = gr_zalloc(sizeof *d);
    if (!d)
        return -ENOMEM;
    d->r = r;
    *ret = d;
    return 0;
}

static void dir_free(struct fs_dir *dir)
{
    if (!dir)
        return;
    free(dir->entries);
    free(dir->names);
    free(dir->table);
    free(dir);
}

static void unlink_dir(struct fs_dirs *d, struct fs_dir *dir)
{
    *(dir->newer ? &dir->newer->older : &d->newest) = dir->older;
    *(dir->older ? &dir->older->newer : &d->oldest) = dir->newer;
    dir->newer = dir->older = NULL;
}

static void push_dir(struct fs_dirs *d, struct fs_dir *dir)
{
    dir->older = d->newest;
    dir->newer = NULL;
    *(d->newest ? &d->newest->newer : &d->oldest) = dir;
    d->newest = dir;
}

static struct fs_dir **bucket(struct fs_dirs *d, const struct fs_vol *vol, uint64_t inode)
{
    return &d->buckets[(inode * 0x9e3779b97f4a7c15u + vol->id) >> 32 & (BUCKETS - 1)];
}

static void forget(struct fs_dirs *d, struct fs_dir *dir)
{
    struct fs_dir **p = bucket(d, dir->vol, dir->inode);
    while (*p != dir)
        p = &(*p)->hash_next;
    *p = dir->hash_next;
    unlink_dir(d, dir);
    dir_free(dir);
}

static void trim(struct fs_dirs *d, uint64_t keep)
{
    for (struct fs_dir *dir = d->oldest; dir && d->entries > keep;) {
        struct fs_dir *newer = dir->newer;
        if (dir->refs == 0) {
            d->entries -= dir->n + 1;
            forget(d, dir);
        }
        dir = newer;
    }
}

void fs_dirs_free(struct fs_dirs *d)
{
    if (!d)
        return;
    while (d->newest)
        forget(d, d->newest);
    free(d);
}

/* ---- reading one ---- */
struct collect {
    struct gr_buf entries, names; /* fs_dirent (name: offset for now), text */
};

static int collect_entry(void *arg, const struct fs_entry *e)
{
    struct collect *c = arg;
    struct fs_dirent d = {.attr = e->attr};
    size_t at = c->names.len;
    memcpy(&d.name, &at, sizeof at); /* becomes a pointer when the text has its final place */
    int rc = gr_buf_add(&c->names, e->name, e->name_len + 1);
    return rc < 0 ? rc : gr_buf_add(&c->entries, &d, sizeof d);
}

static uint32_t hash(const char *s)
{
    uint32_t h = 2166136261u;
    for (; *s; s++)
        h = (h ^ (uint8_t)*s) * 16777619u;
    return h;
}

static int make_table(struct fs_dir *dir)
{
    uint32_t len = 8;
    while (len < dir->n * 2)
        len *= 2;
    dir->table = gr_zalloc(len * sizeof *dir->table);
    if (!dir->table)
        return -ENOMEM;
    dir->table_len = len;
    for (uint32_t i = 0; i < dir->n; i++) {
        uint32_t at = hash(dir->entries[i].name) & (len - 1);
        while (dir->table[at] && strcmp(dir->entries[dir->table[at] - 1].name, dir->entries[i].name) != 0)
            at = (at + 1) & (len - 1);
        if (!dir->table[at])
            dir->table[at] = i + 1;
    }
    return 0;
}

static int read_dir(struct fs_dirs *d, const struct fs_vol *vol, uint64_t inode, struct fs_dir **ret, struct gr_err *err)
{
    struct collect c = {0};
    int rc = fs_reader_list(d->r, vol, inode, collect_entry, &c, err);
    struct fs_dir *dir = rc == 0 ? gr_zalloc(sizeof *dir) : NULL;
    if (rc == 0 && !dir)
        rc = gr_fail(err, -ENOMEM, "%s: out of memory", fs_reader_name(d->r));
    if (rc < 0) {
        gr_buf_done(&c.entries);
        gr_buf_done(&c.names);
        return rc;
    }
    dir->vol = vol;
    dir->inode = inode;
    dir->n = (uint32_t)(c.entries.len / sizeof *dir->entries);
    dir->names = gr_buf_take(&c.names);
    dir->entries = (struct fs_dirent *)(void *)gr_buf_take(&c.entries);
    for (uint32_t i = 0; i < dir->n; i++) {
        size_t at;
        memcpy(&at, &dir->entries[i].name, sizeof at);
        dir->entries[i].name = dir->names + at;
    }
    rc = make_table(dir);
    if (rc < 0) {
        dir_free(dir);
        return gr_fail(err, rc, "%s: out of memory", fs_reader_name(d->r));
    }
    *ret = dir;
    return 0;
}

static struct fs_dir *kept(struct fs_dirs *d, const struct fs_vol *vol, uint64_t inode)
{
    struct fs_dir *dir = *bucket(d, vol, inode);
    while (dir && (dir->vol != vol || dir->inode != inode))
        dir = dir->hash_next;
    return dir;
}

int fs_dir_get(struct fs_dirs *d, const struct fs_vol *vol, uint64_t inode, struct fs_dir **ret, struct gr_err *err)
{
    gr_fmutex_lock(&d->busy);
    struct fs_dir *dir = kept(d, vol, inode);
    int rc = 0;
    if (dir) {
        unlink_dir(d, dir);
    } else {
        trim(d, KEEP_ENTRIES);
        rc = read_dir(d, vol, inode, &dir, err);
        if (rc == 0) {
            d->entries += dir->n + 1;
            dir->hash_next = *bucket(d, vol, inode);
            *bucket(d, vol, inode) = dir;
        }
    }
    if (rc == 0) {
        push_dir(d, dir);
        dir->refs++;
        *ret = dir;
    }
    gr_fmutex_unlock(&d->busy);
    return rc;
}

void fs_dir_put(struct fs_dirs *d, struct fs_dir *dir)
{
    if (!dir)
        return;
    if (--dir->refs == 0)
        trim(d, KEEP_ENTRIES);
}

const struct fs_dirent *fs_dir_find(const struct fs_dir *dir, const char *name)
{
    for (uint32_t at = hash(name) & (dir->table_len - 1); dir->table[at]; at = (at + 1) & (dir->table_len - 1)) {
        const struct fs_dirent *e = &dir->entries[dir->table[at] - 1];
        if (strcmp(e->name, name) == 0)
            return e;
    }
    return NULL;
}

int fs_dir_walk(struct fs_dirs *d, const struct fs_vol *vol, const char *path, struct fs_attr *ret, struct gr_err *err)
{
    struct fs_attr at = {0};
    int rc = fs_reader_stat(d->r, vol, vol->info.root, &at, err);
    while (rc == 0) {
        path += strspn(path, "/");
        size_t len = strcspn(path, "/");
        char name[FS_NAME_MAX + 1];
        if (len == 0) {
            *ret = at;
            return 0;
        }
        if (len == 1 && path[0] == '.') {
            path += len;
            continue;
        }
        if (!fs_name_ok(path, len))
            return gr_fail(err, -EINVAL, "'%.*s' cannot be a name in a guest's path", (int)GR_MIN(len, (size_t)64), path);
        if (at.type != FS_T_DIR)
            return gr_fail(err, -ENOTDIR, "what holds '%.*s' is no directory in the guest (symbolic links are not followed)", (int)len, path);
        memcpy(name, path, len);
        name[len] = '\0';
        path += len;
        struct fs_dir *dir = NULL;
        rc = fs_dir_get(d, vol, at.inode, &dir, err);
        if (rc < 0)
            return rc;
        const struct fs_dirent *e = fs_dir_find(dir, name);
        if (e)
            at = e->attr;
        fs_dir_put(d, dir);
        if (!e)
            return gr_fail(err, -ENOENT, "%s: %s: no '%s' in the guest", fs_reader_name(d->r), vol->name, name);
    }
    return rc;
}
