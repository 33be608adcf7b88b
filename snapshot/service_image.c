/* disk.import and disk.export: between files of the operator and disks.
 *
 * An import fills a disk in the folder granary.tmp and renames it when it is whole; an export writes a file without a name and
 * links it when it is whole. Whoever is killed on the way leaves nothing that could be taken for the real thing. */
#include "common/buf.h"
#include "snapshot/service_int.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define PROGRESS_NS 200000000ull

/* ---- progress ---- */
struct progress {
    struct snap_op *op;
    uint64_t next_ns;
};

/* Ends the copy when nobody waits for it any more: the command was killed or interrupted. */
static int report(void *arg, uint64_t done, uint64_t total)
{
    struct progress *p = arg;
    uint64_t now = gr_loop_now_ns(p->op->s->o.loop);
    if (gr_rpc_gone(p->op->call))
        return -ECANCELED;
    if (now < p->next_ns && done < total)
        return 0;
    p->next_ns = now + PROGRESS_NS;
    (void)gr_rpc_part(p->op->call, json_pack("{s:I,s:I}", "done", (json_int_t)done, "total", (json_int_t)total));
    return 0;
}

static int params_file(struct snap_op *op, const char **ret_file, const char **ret_format)
{
    const char *file = NULL, *format = NULL;
    int r = gr_json_str(op->params, "file", &file, op->err);
    if (r == 0)
        r = gr_json_opt_str(op->params, "format", &format, op->err);
    if (r < 0)
        return r;
    if (file[0] != '/')
        return gr_fail(op->err, -GR_EUSAGE, "'%.100s': a file must be given by its absolute path", file);
    if (format && strcmp(format, "raw") != 0 && strcmp(format, "vmdk") != 0)
        return gr_fail(op->err, -GR_EUSAGE, "image format '%.40s' is not known: raw or vmdk", format);
    if (!op->s->o.images)
        return gr_fail(op->err, -EOPNOTSUPP, "this program cannot read and write disk images");
    r = snap_refuse_mounted(file, op->err);
    if (r < 0)
        return r;
    *ret_file = file;
    *ret_format = format;
    return 0;
}

/* ---- import ---- */
struct source {
    struct gr_bdev *bdev; /* NULL: shorter than a sector */
    struct gr_chan *chan;
    uint64_t size;        /* bytes that the bdev holds */
    uint8_t tail[512];    /* what is behind the last whole sector of a raw image */
    unsigned n_tail;
};

static void source_done(struct source *s)
{
    gr_chan_close(s->chan);
    gr_bdev_put(s->bdev);
}

static int raw_tail(struct source *src, const char *file, struct gr_err *err)
{
    struct stat st;
    gr_auto_close int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0)
        return gr_fail(err, -errno, "%s: cannot be opened: %s", file, strerror(errno));
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return gr_fail(err, -EINVAL, "%s: neither a regular file nor a block device", file);
    if (!S_ISREG(st.st_mode))
        return 0;
    if (st.st_size == 0)
        return gr_fail(err, -EINVAL, "%s: is empty, there is no disk in it", file);
    src->n_tail = (unsigned)(st.st_size % 512);
    if (src->n_tail && pread(fd, src->tail, src->n_tail, st.st_size - src->n_tail) != (ssize_t)src->n_tail)
        return gr_fail(err, -EIO, "%s: its last %u bytes cannot be read", file, src->n_tail);
    src->size = (uint64_t)st.st_size - src->n_tail;
    return 0;
}

static const char *const *params_extents(struct snap_op *op)
{
    json_t *list = json_object_get(op->params, "extents");
    const char **v = gr_zalloc((json_array_size(list) + 1) * sizeof(*v));
    for (size_t i = 0, n = 0; v && i < json_array_size(list); i++)
        if (json_is_string(json_array_get(list, i)))
            v[n++] = json_string_value(json_array_get(list, i));
    return v;
}

static int source_open(struct snap_op *op, const char *file, const char *format, struct source *src)
{
    struct gr_loop *loop = op->s->o.loop;
    int r;
    if (!format && !(format = op->s->o.images->probe(file, op->err)))
        return op->err->code ? op->err->code : -EIO;
    if (strcmp(format, "raw") == 0) {
        struct gr_file_opts o = {.read_only = true};
        r = raw_tail(src, file, op->err);
        if (r == 0 && src->size == 0 && src->n_tail)
            return 0;
        if (r == 0)
            r = gr_bdev_file_open(loop, file, &o, &src->bdev, op->err);
    } else {
        const char *const *extents = params_extents(op);
        r = op->s->o.images->open(loop, file, format, extents, &src->bdev, op->err);
        free((void *)(uintptr_t)extents);
    }
    if (r < 0)
        return r;
    struct gr_geometry g;
    r = gr_bdev_geometry(src->bdev, &g);
    if (r == 0)
        r = gr_chan_open(src->bdev, loop, &src->chan);
    if (r < 0)
        return gr_fail(op->err, r, "%s: %s", file, gr_code_text(r));
    if (src->size == 0)
        src->size = g.size;
    return 0;
}

struct import {
    struct snap_op *op;
    struct source *src;
    const char *file;
};

static int fill(void *arg, struct gr_chan *to, snap_progress_fn progress, void *progress_arg, struct gr_err *err)
{
    struct import *i = arg;
    struct source *src = i->src;
    int r = src->chan ? i->op->s->o.images->copy(src->chan, to, progress, progress_arg, err) : 0;
    if (r == 0 && src->n_tail) {
        r = gr_pwrite(to, src->tail, sizeof(src->tail), src->size, 0);
        if (r < 0)
            gr_fail(err, r, "%s: its last sector cannot be written: %s", i->file, gr_code_text(r));
    }
    return r;
}

static int make_parents(struct snap_ds *ds, const char *path, struct gr_err *err)
{
    gr_auto_free char *dir = gr_strdup(path);
    if (!dir)
        return gr_fail(err, -ENOMEM, "%s/%s: out of memory", ds->name, path);
    char *slash = strrchr(dir, '/');
    if (!slash)
        return 0;
    *slash = 0;
    return vmfs_mkdir(ds->v, dir, true, err);
}

static int filled(struct snap_op *op, struct vmfs_disk *disk, int (*fn)(void *, struct gr_chan *, snap_progress_fn, void *, struct gr_err *), void *arg)
{
    struct progress progress = {op, 0};
    struct gr_chan *to = NULL;
    int r = gr_chan_open(vmfs_bdev(disk), op->s->o.loop, &to);
    if (r < 0)
        return gr_fail(op->err, r, "it cannot be written: %s", gr_code_text(r));
    r = fn(arg, to, report, &progress, op->err);
    if (r == 0 && (r = gr_flush(to)) < 0)
        gr_fail(op->err, r, "it cannot be flushed: %s", gr_code_text(r));
    gr_chan_close(to);
    return r;
}

/* Make, fill and name the disk. */
int snap_fill_as(struct snap_op *op, struct snap_ds *ds, const char *path, const struct snap_shape *h,
                 int (*fn)(void *arg, struct gr_chan *to, snap_progress_fn progress, void *progress_arg, struct gr_err *err), void *arg)
{
    struct vmfs_disk *disk = NULL;
    char tmp[64];
    uint64_t salt;
    gr_world_real()->random(NULL, &salt, sizeof(salt));
    snprintf(tmp, sizeof(tmp), SNAP_TMP_DIR "/import-%016llx", (unsigned long long)salt);
    int r = h->key ? vmfs_create_encrypted(ds->v, tmp, h->size, h->provision, h->physical, h->key, op->err)
                   : vmfs_create_disk(ds->v, tmp, h->size, h->provision, h->physical, op->err);
    if (r < 0)
        return gr_prefix(op->err, r, "disk %s/%s", ds->name, path);
    r = vmfs_open(ds->v, tmp, &disk, NULL, op->err);
    if (r == 0) {
        r = filled(op, disk, fn, arg);
        vmfs_close(disk);
    }
    if (r == 0)
        r = make_parents(ds, path, op->err);
    if (r == 0)
        r = vmfs_rename(ds->v, tmp, path, op->err);
    if (r < 0 && vmfs_remove(ds->v, tmp, NULL) < 0)
        snap_warn(op->s, "%s/%s: what a failed import left cannot be removed now", ds->name, tmp);
    return r;
}

int snap_op_disk_import(struct snap_op *op)
{
    struct snap_path p;
    struct snap_ds *ds = NULL;
    struct vmfs_stat st;
    const char *file = NULL, *format = NULL;
    enum vmfs_provision provision = VMFS_THIN;
    uint32_t physical = VMFS_PIECE;
    uint64_t key = 0;
    gr_auto(source_done) struct source src = {0};
    int r = snap_op_path(op, "disk", SNAP_PATH_DISK, &p);
    if (r == 0)
        r = params_file(op, &file, &format);
    if (r == 0)
        r = snap_op_shape(op, &provision, &physical);
    if (r == 0)
        r = snap_op_encrypt(op, &key);
    if (r == 0)
        r = snap_ds_get(op->s, p.ds, &ds, op->err);
    if (r < 0)
        return r;
    r = vmfs_stat(ds->v, p.path, &st, op->err);
    if (r == 0)
        r = gr_fail(op->err, -EEXIST, "%s/%s exists already; nothing was imported", p.ds, p.path);
    else if (r == -ENOENT)
        r = source_open(op, file, format, &src);
    if (r == 0 && src.size + src.n_tail > VMFS_DISK_MAX)
        r = gr_fail(op->err, -EFBIG, "%s: larger than the largest disk, 1 PiB", file);
    struct import i = {op, &src, file};
    const struct snap_shape shape = {src.size + (src.n_tail ? 512 : 0), provision, physical, key};
    if (r == 0)
        r = snap_fill_as(op, ds, p.path, &shape, fill, &i);
    if (r == 0)
        r = vmfs_stat(ds->v, p.path, &st, op->err);
    json_t *o = r == 0 ? snap_disk_row(ds, p.path, &st) : NULL;
    snap_ds_put(ds);
    return r < 0 ? r : snap_op_result(op, o);
}

struct leftovers {
    struct snap_ds *ds;
    char path[16][VMFS_NAME_MAX + sizeof(SNAP_TMP_DIR) + 1];
    unsigned n;
};

static int note_leftover(void *arg, const char *name, const struct vmfs_stat *st)
{
    struct leftovers *l = arg;
    if (l->n < GR_ARRAY_LEN(l->path) && st->type != VMFS_DIR)
        snprintf(l->path[l->n++], sizeof(l->path[0]), SNAP_TMP_DIR "/%s", name);
    return 0;
}

void snap_clean_tmp(struct snap_svc *s, struct snap_ds *ds)
{
    struct leftovers *l = gr_zalloc(sizeof(*l));
    if (!l)
        return;
    l->ds = ds;
    int r = vmfs_readdir(ds->v, SNAP_TMP_DIR, note_leftover, l, NULL);
    for (unsigned i = 0; r >= 0 && i < l->n; i++) {
        struct snap_place owner = {0};
        if (snap_owner_of(ds, l->path[i], &owner, NULL) > 0)
            continue; /* at work */
        if (vmfs_remove(ds->v, l->path[i], NULL) == 0)
            snap_warn(s, "datastore '%s': removed what an import or a write that was killed had left", ds->name);
    }
    free(l);
}

/* ---- export ---- */
struct sink {
    const char *file;
    int fd;
    bool named; /* the file system cannot make nameless files: it has its name already */
};

static int refuse_existing(const char *file, struct gr_err *err)
{
    struct stat st;
    return lstat(file, &st) == 0 ? gr_fail(err, -EEXIST, "%s: exists already; nothing was written", file) : 0;
}

static int sink_open(struct sink *k, const char *file, struct gr_err *err)
{
    k->file = file;
    gr_auto_free char *dir = gr_strdup(file);
    if (!dir)
        return gr_fail(err, -ENOMEM, "%s: out of memory", file);
    char *slash = strrchr(dir, '/');
    slash[slash == dir] = 0;
    k->fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (k->fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) {
        k->fd = open(file, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        k->named = k->fd >= 0;
    }
    return k->fd < 0 ? gr_fail(err, -errno, "%s: cannot be made: %s", file, strerror(errno)) : 0;
}

static int sync_work(void *arg)
{
    return fsync(*(int *)arg) < 0 ? -errno : 0;
}

static int sink_commit(struct sink *k, struct gr_err *err)
{
    char link[40];
    int r = gr_fiber_work(sync_work, &k->fd);
    if (r < 0)
        return gr_fail(err, r, "%s: cannot be synced: %s", k->file, gr_code_text(r));
    snprintf(link, sizeof(link), "/proc/self/fd/%d", k->fd);
    if (!k->named && linkat(AT_FDCWD, link, AT_FDCWD, k->file, AT_SYMLINK_FOLLOW) < 0)
        return gr_fail(err, -errno, "%s: cannot be given its name: %s", k->file, strerror(errno));
    k->named = false;
    return 0;
}

static void sink_done(struct sink *k)
{
    if (k->named)
        unlink(k->file);
    gr_closep(&k->fd);
}

static int write_raw(struct snap_op *op, struct gr_chan *from, struct sink *k, uint64_t size, struct progress *progress)
{
    char path[40];
    struct gr_bdev *bdev = NULL;
    struct gr_chan *to = NULL;
    if (ftruncate(k->fd, (off_t)size) < 0)
        return gr_fail(op->err, -errno, "%s: cannot be made %llu bytes long: %s", k->file, (unsigned long long)size, strerror(errno));
    snprintf(path, sizeof(path), "/proc/self/fd/%d", k->fd);
    struct gr_file_opts o = {.direct = false};
    int r = gr_bdev_file_open(op->s->o.loop, path, &o, &bdev, op->err);
    if (r < 0)
        return gr_prefix(op->err, r, "%s", k->file);
    r = gr_chan_open(bdev, op->s->o.loop, &to);
    if (r < 0)
        gr_fail(op->err, r, "%s: %s", k->file, gr_code_text(r));
    else
        r = op->s->o.images->copy(from, to, report, progress, op->err);
    gr_chan_close(to);
    gr_bdev_put(bdev);
    return r;
}

static int write_image(struct snap_op *op, struct gr_bdev *src, const char *file, const char *format)
{
    gr_auto(sink_done) struct sink k = {.fd = -1};
    struct progress progress = {op, 0};
    struct gr_chan *from = NULL;
    struct gr_geometry g;
    struct stat st;
    int r = sink_open(&k, file, op->err);
    if (r < 0)
        return r;
    r = gr_bdev_geometry(src, &g);
    if (r == 0)
        r = gr_chan_open(src, op->s->o.loop, &from);
    if (r < 0)
        return gr_fail(op->err, r, "%s: %s", src->name, gr_code_text(r));
    if (strcmp(format, "raw") == 0) {
        r = write_raw(op, from, &k, g.size, &progress);
    } else {
        const char *slash = strrchr(file, '/');
        r = op->s->o.images->write(from, slash ? slash + 1 : file, k.fd, format, report, &progress, op->err);
    }
    gr_chan_close(from);
    if (r == 0)
        r = sink_commit(&k, op->err);
    if (r == 0 && fstat(k.fd, &st) < 0)
        r = gr_fail(op->err, -errno, "%s: %s", file, strerror(errno));
    return r < 0 ? r
                 : snap_op_result(op, json_pack("{s:s,s:s,s:I,s:I,s:I}", "file", file, "format", format, "size", (json_int_t)g.size, "bytes",
                                                (json_int_t)st.st_size, "allocated", (json_int_t)st.st_blocks * 512));
}

/* A live disk is exported as it is at one instant: from a snapshot that goes away with the export. In a command's own process
 * nobody else can write to it, and to one that is rescued nobody can. */
static int export_head(struct snap_op *op, struct snap_disk *d, const char *file, const char *format)
{
    char name[64];
    uint64_t salt;
    struct gr_bdev *bdev = NULL;
    struct gr_err ignored = {0};
    int r = vmfs_shown(d->h->disk, op->err);
    if (r < 0)
        return r;
    if (!op->s->address[0] || d->ds->rescue)
        return write_image(op, vmfs_bdev(d->h->disk), file, format);
    gr_world_real()->random(NULL, &salt, sizeof(salt));
    snprintf(name, sizeof(name), SNAP_EXPORT_PREFIX "%016llx", (unsigned long long)salt);
    r = snap_create(&d->h->disk, 1, name, op->err);
    if (r < 0)
        return r;
    r = snap_open(d->h->disk, name, &bdev, op->err);
    if (r == 0)
        r = write_image(op, bdev, file, format);
    gr_bdev_put(bdev);
    if (snap_delete(d->h->disk, name, false, &ignored) < 0)
        snap_warn(op->s, "%s/%s@%s: cannot be deleted: %s", d->ds->name, d->h->path, name, ignored.text);
    return r;
}

int snap_op_disk_export(struct snap_op *op)
{
    struct snap_path p;
    struct snap_disk d = {0};
    const char *file = NULL, *format = NULL, *snapshot = NULL;
    int r = snap_op_path(op, "disk", SNAP_PATH_DISK, &p);
    if (r == 0)
        r = gr_json_opt_str(op->params, "snapshot", &snapshot, op->err);
    if (r == 0)
        r = params_file(op, &file, &format);
    if (r == 0)
        r = refuse_existing(file, op->err);
    if (r == 0)
        r = snap_disk_get(op, &p, &d);
    if (r < 0)
        return r;
    format = format ? format : "raw";
    struct gr_bdev *bdev = NULL;
    if (!snapshot) {
        r = export_head(op, &d, file, format);
    } else {
        r = snap_open(d.h->disk, snapshot, &bdev, op->err);
        if (r == 0)
            r = write_image(op, bdev, file, format);
        gr_bdev_put(bdev);
    }
    snap_disk_put(&d);
    return r;
}
