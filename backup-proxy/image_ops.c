#include "backup-proxy/image_ops.h"
#include "backup-proxy/vmdk.h"
#include <string.h>

const char *bp_image_probe(const char *path, struct gr_err *err)
{
    int r = bp_vmdk_probe(path, err);
    return r < 0 ? NULL : r > 0 ? "vmdk" : "raw";
}

static int known(const char *format, struct gr_err *err)
{
    return strcmp(format, "vmdk") == 0 ? 0 : gr_fail(err, -EINVAL, "image format '%.40s' is not known", format);
}

int bp_image_open(struct gr_loop *loop, const char *path, const char *format, const char *const *extents, struct gr_bdev **ret,
                  struct gr_err *err)
{
    int r = known(format, err);
    return r < 0 ? r : bp_vmdk_open(loop, path, extents, ret, err);
}

int bp_image_write(struct gr_chan *src, const char *name, int fd, const char *format,
                   int (*progress)(void *arg, uint64_t done, uint64_t total), void *arg, struct gr_err *err)
{
    struct bp_vmdk_opts o = {.name = name, .progress = progress, .arg = arg};
    int r = known(format, err);
    return r < 0 ? r : bp_vmdk_export(src, fd, &o, NULL, err);
}

int bp_image_copy(struct gr_chan *src, struct gr_chan *dst, int (*progress)(void *arg, uint64_t done, uint64_t total), void *arg,
                  struct gr_err *err)
{
    return bp_copy(src, dst, true, progress, arg, err);
}
