/* The daemon must not open files of a mount that it serves itself: it would wait for its own answer. */
#include "common/buf.h"
#include "common/seam.h"
#include "snapshot/service_int.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define TYPE "fuse.granary"

struct question {
    const char *path;
    char dir[VMFS_PATH_MAX + 1];
};

static bool is_ours(int mount_id)
{
    gr_auto_fclose FILE *f = fopen("/proc/self/mountinfo", "re");
    gr_auto_free char *line = NULL;
    size_t cap = 0;
    while (f && getline(&line, &cap, f) > 0) {
        int id = -1;
        const char *type = strstr(line, " - ");
        if (sscanf(line, "%d", &id) == 1 && id == mount_id)
            return type && strncmp(type + 3, TYPE " ", sizeof(TYPE)) == 0;
    }
    return false;
}

/* 1: it lies in such a mount. On a thread of its own: to look it up there asks the daemon, which goes on meanwhile. */
static int look(void *arg)
{
    struct question *q = arg;
    gr_auto_close int fd = open(q->path, O_PATH | O_CLOEXEC);
    if (fd < 0 && q->dir[0])
        fd = open(q->dir, O_PATH | O_CLOEXEC);
    gr_auto_free char *name = fd < 0 ? NULL : gr_asprintf("/proc/self/fdinfo/%d", fd);
    gr_auto_fclose FILE *f = name ? fopen(name, "re") : NULL;
    gr_auto_free char *line = NULL;
    size_t cap = 0;
    int id = -1;
    while (f && id < 0 && getline(&line, &cap, f) > 0)
        (void)sscanf(line, "mnt_id: %d", &id);
    return id >= 0 && is_ours(id);
}

int snap_refuse_mounted(const char *path, struct gr_err *err)
{
    struct question q = {.path = path};
    const char *slash = path[0] == '/' ? strrchr(path, '/') : NULL;
    if (!slash) /* an address */
        return 0;
    snprintf(q.dir, sizeof(q.dir), "%.*s", (int)GR_MAX(slash - path, 1), path);
    int r = gr_fiber_work(look, &q);
    return r == 1 ? gr_fail(err, -EINVAL, "'%.200s' lies in a mounted datastore, which the daemon serves itself: use a file elsewhere", path) : 0;
}
