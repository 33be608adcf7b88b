/* A regular file or block device node as a bdev: opening it, what it can do, its named locks. */
#include "common/bdev_file_int.h"
#include "common/cleanup.h"
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>

enum { MAX_SMALL_FILE = 64, TRIAL_LEN = 4096 };

int file_code(int64_t res)
{
    switch (res) {
    case -ENOSPC:
    case -EDQUOT:
        return -GR_ENOSPACE;
    case -EIO:
        return -GR_EMEDIUM;
    default:
        return res < 0 ? (int)res : 0;
    }
}

void file_latch(struct file_bdev *b, int code)
{
    int none = 0;

    atomic_compare_exchange_strong(&b->flush_error, &none, code);
}

void file_latch_write(struct file_bdev *b, int code)
{
    if (code != -GR_ENOSPACE || !(b->direct || b->in_memory))
        file_latch(b, code);
}

/* A number from /sys/dev/block/MAJOR:MINOR/queue/NAME; a partition's queue is its parent's. */
static uint64_t queue_limit(dev_t dev, const char *name)
{
    char path[128], text[MAX_SMALL_FILE] = "";

    for (int up = 0; up < 2; up++) {
        snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%squeue/%s", major(dev), minor(dev), up ? "../" : "", name);
        gr_auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0 && read(fd, text, sizeof(text) - 1) > 0)
            return strtoull(text, NULL, 10);
    }
    return 0;
}

/* ---- what the file can do ---- */
static int probe_node(struct file_bdev *b, const char *path, const struct stat *st, struct gr_err *err)
{
    uint64_t size = 0;
    int lb = 512;
    unsigned pb = 512;

    if (ioctl(b->fd, BLKGETSIZE64, &size) < 0 || ioctl(b->fd, BLKSSZGET, &lb) < 0) {
        int r = -errno;
        return gr_fail(err, r, "block device '%s': cannot ask for its size: %s", path, gr_code_text(r));
    }
    if (ioctl(b->fd, BLKPBSZGET, &pb) < 0)
        pb = (unsigned)lb;
    if ((uint32_t)lb > b->logical_block)
        b->logical_block = (uint32_t)lb;
    b->node = true;
    b->end = size;
    b->physical_block = pb > b->logical_block ? pb : b->logical_block;
    b->rotational = queue_limit(st->st_rdev, "rotational") == 1;
    b->can_punch = queue_limit(st->st_rdev, "discard_max_bytes") > 0;
    return 0;
}

static int probe_regular(struct file_bdev *b, const char *path, struct gr_err *err)
{
    struct statfs fs;
    struct stat st;

    if (fstat(b->fd, &st) < 0 || fstatfs(b->fd, &fs) < 0) {
        int r = -errno;
        return gr_fail(err, r, "file '%s': cannot ask for its size: %s", path, gr_code_text(r));
    }
    b->end = (uint64_t)st.st_size;
    b->physical_block = 4096 > b->logical_block ? 4096 : b->logical_block;
    b->in_memory = fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC;
    /* Behind the end there is nothing to punch: tells only whether the file system knows how. */
    b->can_punch = !b->read_only && fallocate(b->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, st.st_size, 4096) == 0;
    return 0;
}

/* A ring hands a transfer of a file in memory to its workers, which costs thrice what the copy does, unless both flags say that it need not: then it
 * is done where the ring is entered. Neither means anything to the file. Linux before 6.6 knows no O_DIRECT there: plain system calls it is. */
static void try_in_entry(struct file_bdev *b)
{
    int fl = fcntl(b->fd, F_GETFL);
    b->in_entry = b->in_memory && fl >= 0 && fcntl(b->fd, F_SETFL, fl | O_DIRECT | O_NONBLOCK) == 0;
}

/* Does the kernel take direct reads of one logical block? Only where statx cannot tell. */
static bool direct_by_trial(int fd, uint32_t block)
{
    void *p = gr_alloc_aligned(TRIAL_LEN, TRIAL_LEN);
    bool ok = p && pread(fd, p, block, 0) >= 0;

    free(p);
    return ok;
}

/* Switch to O_DIRECT where the file system takes it at our block size; else the page cache with fdatasync. */
static void try_direct(struct file_bdev *b)
{
    int fl = fcntl(b->fd, F_GETFL);

    if (b->in_memory || b->end < b->size || fl < 0 || fcntl(b->fd, F_SETFL, fl | O_DIRECT) < 0)
        return;
    b->mem_align = 512;
    bool ok;
    struct statx sx = {0};
    if (statx(b->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 && (sx.stx_mask & STATX_DIOALIGN)) {
        ok = sx.stx_dio_offset_align && sx.stx_dio_offset_align <= b->logical_block;
        if (sx.stx_dio_mem_align)
            b->mem_align = sx.stx_dio_mem_align;
        ok = ok && !(b->mem_align & (b->mem_align - 1)) && b->mem_align <= b->logical_block;
    } else {
        ok = direct_by_trial(b->fd, b->logical_block);
    }
    if (ok)
        b->direct = true;
    else
        fcntl(b->fd, F_SETFL, fl);
}

static int probe(struct file_bdev *b, const char *path, const struct gr_file_opts *opts, struct gr_err *err)
{
    struct stat st;
    int r;

    if (fstat(b->fd, &st) < 0) {
        r = -errno;
        return gr_fail(err, r, "'%s': %s", path, gr_code_text(r));
    }
    b->read_only = opts->read_only;
    b->logical_block = opts->logical_block ? opts->logical_block : 512;
    b->mem_align = 1;
    r = S_ISBLK(st.st_mode) ? probe_node(b, path, &st, err) : probe_regular(b, path, err);
    if (r < 0)
        return r;
    uint64_t mask = b->logical_block - 1;
    b->size = b->read_only && b->end <= INT64_MAX - mask ? (b->end + mask) & ~mask : b->end & ~mask;
    try_in_entry(b);
    if (opts->direct)
        try_direct(b);
    return 0;
}

/* ---- opening ---- */
static int open_path(const char *path, const struct gr_file_opts *opts, bool *ret_made, struct gr_err *err)
{
    int flags = (opts->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY;
    struct stat st;

    /* Looked at before it is opened: opening a FIFO or a terminal has effects. */
    if (stat(path, &st) < 0) {
        int r = -errno;
        if (r != -ENOENT || !opts->create || opts->read_only)
            return gr_fail(err, r, "cannot open '%s': %s", path, gr_code_text(r));
        int fd = open(path, flags | O_CREAT | O_EXCL, 0600);
        if (fd < 0) {
            r = -errno;
            return gr_fail(err, r, "cannot create '%s': %s", path, gr_code_text(r));
        }
        if (opts->size > INT64_MAX || ftruncate(fd, (off_t)opts->size) < 0) {
            r = opts->size > INT64_MAX ? -EFBIG : -errno;
            unlink(path);
            close(fd);
            return gr_fail(err, r, "cannot make '%s' %llu bytes long: %s", path, (unsigned long long)opts->size, gr_code_text(r));
        }
        *ret_made = true;
        return fd;
    }
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return gr_fail(err, S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL, "'%s' is neither a regular file nor a block device", path);
    if (S_ISBLK(st.st_mode) && opts->exclusive)
        flags |= O_EXCL;
    int fd = open(path, flags | O_NONBLOCK);
    struct stat now;
    if (fd < 0 || fstat(fd, &now) < 0 || fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK) < 0) {
        int r = -errno;
        if (fd >= 0)
            close(fd);
        return gr_fail(err, r, "cannot open '%s': %s%s", path, gr_code_text(r),
                       r == -EBUSY ? " (the block device is mounted or used by somebody else)" : "");
    }
    if (now.st_dev != st.st_dev || now.st_ino != st.st_ino || now.st_mode != st.st_mode) {
        close(fd);
        return gr_fail(err, -EAGAIN, "'%s' was replaced while it was opened", path);
    }
    return fd;
}

static int file_geometry(struct gr_bdev *bdev, struct gr_geometry *ret)
{
    const struct file_bdev *b = (const struct file_bdev *)bdev;

    *ret = (struct gr_geometry){
        .size = b->size,
        .logical_block = b->logical_block,
        .physical_block = b->physical_block,
        .unmap_granule = b->can_punch ? b->physical_block : 0,
        .optimal_io = b->physical_block,
        .read_only = b->read_only,
        .thin = b->can_punch && !b->node,
        .rotational = b->rotational,
        .in_memory = b->in_memory,
    };
    return 0;
}

static void file_close(struct gr_bdev *bdev)
{
    struct file_bdev *b = (struct file_bdev *)bdev;

    close(b->fd); /* and with it all its locks */
    pthread_mutex_destroy(&b->lock);
    free(b->keys);
    free(b);
}

/* ---- named locks ---- */
int file_lock_range(struct file_bdev *b, uint64_t start, uint64_t len, int type)
{
    struct flock fl = {.l_type = (short)type, .l_whence = SEEK_SET, .l_start = (off_t)start, .l_len = (off_t)len};
    int r;

    do
        r = fcntl(b->fd, F_OFD_SETLK, &fl);
    while (r < 0 && errno == EINTR);
    if (r == 0)
        return 0;
    return errno == EAGAIN || errno == EACCES ? -EBUSY : -errno;
}

static int file_trylock(struct gr_bdev *bdev, uint64_t key)
{
    struct file_bdev *b = (struct file_bdev *)bdev;
    int r = 0;

    if (key >= FILE_KEY_BASE)
        return -EINVAL;
    if (b->read_only)
        return -GR_EREADONLY;
    pthread_mutex_lock(&b->lock);
    for (size_t i = 0; i < b->n_keys; i++)
        if (b->keys[i] == key)
            r = -EBUSY; /* the kernel would give it again to the same open file */
    if (r == 0) {
        uint64_t *keys = gr_realloc(b->keys, (b->n_keys + 1) * sizeof(*keys));
        r = keys ? 0 : -ENOMEM;
        if (keys)
            b->keys = keys;
    }
    if (r == 0)
        r = file_lock_range(b, FILE_KEY_BASE + key, 1, F_WRLCK);
    if (r == 0)
        b->keys[b->n_keys++] = key;
    pthread_mutex_unlock(&b->lock);
    return r;
}

static void file_unlock(struct gr_bdev *bdev, uint64_t key)
{
    struct file_bdev *b = (struct file_bdev *)bdev;

    pthread_mutex_lock(&b->lock);
    for (size_t i = 0; i < b->n_keys; i++) {
        if (b->keys[i] != key)
            continue;
        b->keys[i] = b->keys[--b->n_keys];
        file_lock_range(b, FILE_KEY_BASE + key, 1, F_UNLCK);
        break;
    }
    pthread_mutex_unlock(&b->lock);
}

static const struct gr_bdev_ops file_ops = {
    .type = "file",
    .submit = file_submit,
    .geometry = file_geometry,
    .close = file_close,
    .chan_open = file_chan_open,
    .chan_close = file_chan_close,
    .trylock = file_trylock,
    .unlock = file_unlock,
};

int gr_bdev_file_open(struct gr_loop *loop, const char *path, const struct gr_file_opts *opts, struct gr_bdev **ret, struct gr_err *err)
{
    static const struct gr_file_opts none;
    bool made = false;

    (void)loop;
    if (!opts)
        opts = &none;
    if (opts->logical_block && opts->logical_block != 512 && opts->logical_block != 4096)
        return gr_fail(err, -EINVAL, "'%s': logical block size %u is neither 512 nor 4096", path, opts->logical_block);
    struct file_bdev *b = gr_zalloc(sizeof(*b));
    if (!b)
        return gr_fail(err, -ENOMEM, "'%s': out of memory", path);
    int r = open_path(path, opts, &made, err);
    if (r >= 0) {
        b->fd = r;
        r = probe(b, path, opts, err);
        if (r < 0) {
            close(b->fd);
            if (made)
                unlink(path);
        }
    }
    if (r < 0) {
        free(b);
        return r;
    }
    pthread_mutex_init(&b->lock, NULL);
    gr_bdev_init(&b->base, &file_ops, path);
    *ret = &b->base;
    return 0;
}

int gr_bdev_file_resize(struct gr_bdev *bdev, uint64_t size, struct gr_err *err)
{
    struct file_bdev *b = (struct file_bdev *)bdev;

    if (bdev->ops != &file_ops || b->node)
        return gr_fail(err, -EINVAL, "'%s' is not a regular file: it cannot be resized here", bdev->name);
    if (b->read_only)
        return gr_fail(err, -GR_EREADONLY, "'%s' is open for reading only", bdev->name);
    if (size > INT64_MAX || size % b->logical_block)
        return gr_fail(err, -EINVAL, "'%s': a size of %llu bytes is not a multiple of %u or too large", bdev->name, (unsigned long long)size,
                       b->logical_block);
    if (ftruncate(b->fd, (off_t)size) < 0) {
        int r = -errno;
        return gr_fail(err, file_code(r), "'%s': cannot make it %llu bytes long: %s", bdev->name, (unsigned long long)size, gr_code_text(r));
    }
    b->size = b->end = size;
    gr_bdev_event(bdev, GR_EVENT_RESIZED);
    return 0;
}
