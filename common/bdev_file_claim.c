/* What whoever serves a file as a whole wants of it beside its bytes: that nobody else does, and how much room is below it. */
#include "common/bdev_file_int.h"
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

static bool is_file(const struct gr_bdev *bdev)
{
    return strcmp(bdev->ops->type, "file") == 0;
}

int gr_bdev_file_claim(struct gr_bdev *bdev, struct gr_err *err)
{
    struct file_bdev *b = (struct file_bdev *)bdev;

    if (!is_file(bdev))
        return gr_fail(err, -EINVAL, "'%s' is not a file: it cannot be claimed", bdev->name);
    if (b->node)
        return 0; /* O_EXCL does it */
    /* all keys at once: no datastore's slot on it is taken either, and none can be */
    int r = file_lock_range(b, FILE_KEY_BASE, FILE_COMPARE_BASE - FILE_KEY_BASE, b->read_only ? F_RDLCK : F_WRLCK);
    if (r == -EBUSY)
        return gr_fail(err, -GR_ELOCKED, "'%s' is in use: as a LUN of another GRANARY_HOME, or as a device of a datastore", bdev->name);
    return r < 0 ? gr_fail(err, r, "'%s': cannot be locked: %s", bdev->name, gr_code_text(r)) : 0;
}

int gr_bdev_file_room(struct gr_bdev *bdev, struct gr_file_room *ret)
{
    struct file_bdev *b = (struct file_bdev *)bdev;
    struct statvfs fs;
    struct stat st;

    if (!is_file(bdev) || b->node)
        return -EOPNOTSUPP;
    if (fstat(b->fd, &st) < 0 || fstatvfs(b->fd, &fs) < 0)
        return -errno;
    uint64_t held = (uint64_t)st.st_blocks * 512, unit = fs.f_frsize ? fs.f_frsize : fs.f_bsize;
    *ret = (struct gr_file_room){
        .missing = held < b->size ? b->size - held : 0,
        .free = (uint64_t)fs.f_bavail * unit,
        .all = (uint64_t)fs.f_blocks * unit,
    };
    return 0;
}
