#include "backup-proxy/fs_extract.h"
#include "backup-proxy/fs_dir.h"
#include "backup-proxy/fs_file.h"
#include "backup-proxy/fs_target.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "common/seam.h"
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define DEPTH_MAX 256  /* of a tree: also ends a loop of directories */
#define CHUNK (1u << 20)
#define ZERO_PART 4096u
#define SEEN_MAX 20000u /* files with several names that are tracked; beyond: copies */

struct level {
    int fd;
    struct fs_dir *dir;
    struct fs_attr attr;
    uint32_t next;    /* entry */
    size_t path_len;  /* of the path up to here */
};
struct seen { /* a file with several names: where its first one is */
    uint64_t inode;
    char *path;
};
struct job {
    struct fs_reader *r;
    struct fs_dirs *dirs;
    const struct fs_vol *vol;
    const struct fs_extract_opts *opts;
    struct fs_extract_result res;
    struct gr_buf path;    /* of the object at work, relative to the result's root */
    struct gr_buf seen;    /* array of struct seen */
    uint8_t *chunk;
    struct level *levels;  /* DEPTH_MAX */
    unsigned depth;
    struct gr_err *err;
};

static void skip(struct job *j, const char *why)
{
    j->res.skipped++;
    if (j->opts->note)
        j->opts->note(j->opts->arg, j->path.data ? j->path.data : "", why);
}

/* ---- one object ---- */
static bool is_zero(const uint8_t *p, size_t len)
{
    return len == 0 || (p[0] == 0 && memcmp(p, p + 1, len - 1) == 0);
}

/* Write, leaving holes where whole parts are zero. */
static int write_sparse(int fd, const uint8_t *p, size_t len, uint64_t off)
{
    for (size_t at = 0; at < len;) {
        size_t n = GR_MIN(len - at, (size_t)ZERO_PART);
        if (is_zero(p + at, n)) {
            at += n;
            continue;
        }
        while (at + n < len && !is_zero(p + at + n, GR_MIN(len - at - n, (size_t)ZERO_PART)))
            n += GR_MIN(len - at - n, (size_t)ZERO_PART);
        int r = gr_file_pwrite(fd, p + at, n, off + at);
        if (r < 0)
            return r;
        at += n;
    }
    return 0;
}

/* Content of a file. *ret_guest: the trouble is the guest's (skip the file), not ours. */
static int copy_content(struct job *j, int fd, const struct fs_attr *a, bool *ret_guest)
{
    struct fs_file *f = NULL;
    *ret_guest = true;
    int rc = fs_file_open(j->r, j->vol, a, &f, j->err);
    for (uint64_t off = 0; rc == 0 && off < a->size;) {
        int64_t n = fs_file_read(f, j->chunk, CHUNK, off, j->err);
        if (n <= 0) {
            rc = n < 0 ? (int)n : -EIO;
            break;
        }
        rc = write_sparse(fd, j->chunk, (size_t)n, off);
        if (rc < 0)
            *ret_guest = false;
        off += (uint64_t)n;
        j->res.bytes += (uint64_t)n;
        if (j->opts->progress)
            j->opts->progress(j->opts->arg, j->res.bytes);
    }
    if (rc == 0 && ftruncate(fd, (off_t)a->size) < 0) {
        rc = -errno;
        *ret_guest = false;
    }
    fs_file_close(f);
    return rc;
}

static int make_file(struct job *j, int dirfd, const char *name, const struct fs_attr *a)
{
    bool guest = false;
    int fd = fs_target_at(dirfd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
    if (fd < 0)
        return fd;
    int rc = copy_content(j, fd, a, &guest);
    if (rc == 0)
        rc = fs_target_attr(fd, a, j->opts->keep_ids, j->opts->keep_special);
    close(fd);
    if (rc == 0) {
        j->res.files++;
        return 0;
    }
    (void)unlinkat(dirfd, name, 0);
    if (!guest)
        return rc;
    skip(j, "its content cannot be read");
    return 0;
}

/* 1: made as another name of a file that is there already. */
static int make_hard(struct job *j, int dirfd, const char *name, const struct fs_attr *a)
{
    const struct seen *s = (const struct seen *)(void *)j->seen.data;
    size_t n = j->seen.len / sizeof *s;
    if (a->nlink < 2 || j->depth == 0)
        return 0;
    for (size_t i = 0; i < n; i++)
        if (s[i].inode == a->inode)
            return fs_target_hard(j->levels[0].fd, s[i].path, dirfd, name) == 0 ? 1 : 0;
    return 0;
}

static int remember(struct job *j, const struct fs_attr *a)
{
    struct seen s = {.inode = a->inode};
    if (a->nlink < 2 || j->depth == 0 || j->seen.len / sizeof s >= SEEN_MAX)
        return 0;
    s.path = gr_strdup(j->path.data);
    int rc = s.path ? gr_buf_add(&j->seen, &s, sizeof s) : -ENOMEM;
    if (rc < 0)
        free(s.path);
    return rc;
}

static int make_link(struct job *j, int dirfd, const char *name, const struct fs_attr *a)
{
    gr_auto_free char *target = gr_alloc(FS_LINK_MAX + 1);
    if (!target)
        return -ENOMEM;
    if (fs_reader_link(j->r, j->vol, a->inode, target, j->err) < 0) {
        skip(j, "a symbolic link that cannot be read");
        return 0;
    }
    int rc = fs_target_link(dirfd, name, target, a, j->opts->keep_ids);
    if (rc == 0)
        j->res.links++;
    else if (rc == -EINVAL || rc == -ENAMETOOLONG)
        skip(j, "a symbolic link that this host does not take");
    return rc == -EINVAL || rc == -ENAMETOOLONG ? 0 : rc;
}

/* Go down into a new directory. */
static int enter(struct job *j, int dirfd, const char *name, const struct fs_attr *a)
{
    for (unsigned i = 0; i < j->depth; i++)
        if (j->levels[i].attr.inode == a->inode) {
            skip(j, "a directory that contains itself");
            return 0;
        }
    if (j->depth == DEPTH_MAX) {
        skip(j, "nested too deeply");
        return 0;
    }
    struct level l = {.attr = *a, .path_len = j->path.len};
    if (fs_dir_get(j->dirs, j->vol, a->inode, &l.dir, j->err) < 0) {
        skip(j, "a directory that cannot be read");
        return 0;
    }
    l.fd = mkdirat(dirfd, name, 0700) < 0 ? -errno : fs_target_at(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
    if (l.fd < 0) {
        fs_dir_put(j->dirs, l.dir);
        return l.fd;
    }
    j->levels[j->depth++] = l;
    j->res.dirs++;
    return 0;
}

static int leave(struct job *j)
{
    struct level *l = &j->levels[--j->depth];
    int rc = fs_target_attr(l->fd, &l->attr, j->opts->keep_ids, j->opts->keep_special);
    close(l->fd);
    fs_dir_put(j->dirs, l->dir);
    return rc;
}

static int make(struct job *j, int dirfd, const char *name, const struct fs_attr *a)
{
    int rc = 0;
    switch ((enum fs_type)a->type) {
    case FS_T_DIR: rc = enter(j, dirfd, name, a); break;
    case FS_T_LINK: rc = make_link(j, dirfd, name, a); break;
    case FS_T_FILE:
        rc = make_hard(j, dirfd, name, a);
        if (rc == 0) {
            rc = make_file(j, dirfd, name, a);
            if (rc == 0)
                rc = remember(j, a);
        } else {
            j->res.files++;
            rc = 0;
        }
        break;
    case FS_T_CHAR:
    case FS_T_BLOCK: skip(j, "a device node"); break;
    case FS_T_FIFO: skip(j, "a named pipe"); break;
    case FS_T_SOCKET: skip(j, "a socket"); break;
    case FS_T_UNKNOWN:
    case FS_T_LAST: skip(j, "its inode cannot be read"); break;
    }
    if (rc == -EEXIST || rc == -ENAMETOOLONG || rc == -EILSEQ) { /* a name twice, or one that this file system refuses */
        skip(j, gr_code_text(rc));
        rc = 0;
    }
    return rc;
}

/* ---- the tree ---- */
static int walk(struct job *j)
{
    int rc = 0;
    while (rc == 0 && j->depth) {
        struct level *l = &j->levels[j->depth - 1];
        j->path.len = l->path_len;
        if (j->path.data)
            j->path.data[l->path_len] = '\0';
        if (l->next == l->dir->n) {
            rc = leave(j);
            continue;
        }
        const struct fs_dirent *e = &l->dir->entries[l->next++];
        rc = gr_buf_printf(&j->path, "%s%s", l->path_len ? "/" : "", e->name);
        if (rc >= 0)
            rc = make(j, l->fd, e->name, &e->attr);
    }
    while (j->depth) {
        struct level *l = &j->levels[--j->depth];
        close(l->fd);
        fs_dir_put(j->dirs, l->dir);
    }
    return rc;
}

static int run(struct job *j, struct fs_target *t, const struct fs_attr *top)
{
    gr_auto_free char *temp = fs_target_temp_path(t);
    if (!temp)
        return gr_fail(j->err, -ENOMEM, "out of memory");
    int rc = j->opts->begin ? j->opts->begin(j->opts->arg, temp, j->err) : 0;
    if (rc < 0)
        return rc;
    rc = make(j, t->parent, t->temp, top);
    if (rc == 0)
        rc = walk(j);
    if (rc == 0 && j->res.files + j->res.dirs + j->res.links == 0)
        rc = gr_fail(j->err, -EIO, "nothing could be restored of '%s'", t->name);
    else if (rc < 0)
        gr_fail(j->err, rc, "cannot write below '%s': %s", t->parent_path, gr_code_text(rc));
    if (rc == 0)
        rc = fs_target_publish(t, j->err);
    if (rc < 0)
        (void)fs_target_remove(t->parent, t->temp);
    return rc;
}

static void job_done(struct job *j)
{
    struct seen *s = (struct seen *)(void *)j->seen.data;
    for (size_t i = 0; i < j->seen.len / sizeof *s; i++)
        free(s[i].path);
    gr_buf_done(&j->seen);
    gr_buf_done(&j->path);
    free(j->chunk);
    free(j->levels);
    fs_dirs_free(j->dirs);
}

/* ---- what is asked for ---- */
static int find_on(struct job *j, const struct fs_vol *v, const char *path, struct fs_attr *ret)
{
    if (v->status < 0)
        return gr_fail(j->err, v->status == -ENODEV ? -ENOENT : v->status, "%s: %s: %s", fs_reader_name(j->r), v->name, v->why);
    int rc = fs_dir_walk(j->dirs, v, path, ret, j->err);
    if (rc == 0)
        j->vol = v;
    return rc;
}

/* "part1/…" names a volume; else the path must be on one volume only. */
static int find(struct job *j, const char *path, struct fs_attr *ret)
{
    const struct fs_vol *v = NULL;
    const char *table = NULL, *rest = path + strspn(path, "/");
    unsigned n = 0, hits = 0;
    int rc = fs_reader_scan(j->r, &v, &n, &table, j->err);
    if (rc < 0)
        return rc;
    size_t len = strcspn(rest, "/");
    for (unsigned i = 0; i < n; i++)
        if (strlen(v[i].name) == len && memcmp(v[i].name, rest, len) == 0)
            return find_on(j, &v[i], rest + len, ret);
    char where[256] = "";
    struct fs_attr a;
    for (unsigned i = 0; i < n; i++) {
        if (v[i].status < 0 || find_on(j, &v[i], path, &a) < 0)
            continue;
        *ret = a;
        hits++;
        size_t at = strlen(where);
        snprintf(where + at, sizeof where - at, "%s%s", at ? ", " : "", v[i].name);
    }
    if (hits == 1)
        return 0;
    if (hits > 1)
        return gr_fail(j->err, -EINVAL, "'%s' is on several volumes (%s): put one of them in front of it", path, where);
    return gr_fail(j->err, -ENOENT, "%s: no volume of it holds '%s'", fs_reader_name(j->r), path);
}

static const char *last_name(const struct job *j, const char *path)
{
    const char *end = path + strlen(path);
    while (end > path && end[-1] == '/')
        end--;
    const char *start = end;
    while (start > path && start[-1] != '/')
        start--;
    return end > start ? start : j->vol->name;
}

int fs_extract(struct fs_reader *r, const char *path, const char *out, const struct fs_extract_opts *opts,
               struct fs_extract_result *ret, struct gr_err *err)
{
    struct gr_err own = {0};
    struct job j = {.r = r, .opts = opts, .err = err ? err : &own};
    struct fs_target t;
    struct fs_attr top;
    char name[FS_NAME_MAX + 1];
    j.chunk = gr_alloc(CHUNK);
    j.levels = gr_zalloc(DEPTH_MAX * sizeof *j.levels);
    int rc = j.chunk && j.levels ? fs_dirs_new(r, &j.dirs) : -ENOMEM;
    if (rc == 0)
        rc = gr_buf_reserve(&j.path, 1);
    if (rc < 0)
        gr_fail(j.err, rc, "out of memory");
    else
        rc = find(&j, path, &top);
    if (rc == 0) {
        const char *last = last_name(&j, path);
        snprintf(name, sizeof name, "%.*s", (int)strcspn(last, "/"), last);
        rc = fs_target_open(&t, out, name, j.err);
    }
    if (rc == 0) {
        rc = run(&j, &t, &top);
        fs_target_done(&t);
    }
    if (rc == 0) {
        *ret = j.res;
        if (j.res.skipped)
            rc = gr_fail(j.err, -GR_EPARTIAL, "%llu objects below '%s' were left out", (unsigned long long)j.res.skipped, path);
    }
    job_done(&j);
    return rc;
}

int fs_extract_undo(const char *path, struct gr_err *err)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : "";
    if (!slash || name[0] != '.' || !strstr(name, ".granary-"))
        return gr_fail(err, -EINVAL, "'%s' is no temporary name of a restore", path);
    gr_auto_free char *parent = gr_asprintf("%.*s/", (int)(slash - path), path);
    gr_auto_close int fd = parent ? open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
    int rc = fd < 0 ? (parent ? -errno : -ENOMEM) : fs_target_remove(fd, name);
    return rc < 0 && rc != -ENOENT ? gr_fail(err, rc, "cannot remove '%s': %s", path, gr_code_text(rc)) : 0;
}
