/* What an object is called, for those who have to tell of damage: nothing remembers that, so the folders are searched. */
#include "common/seam.h"
#include "vmfs/internal.h"

struct finder {
    uint64_t id;
    char path[VMFS_PATH_MAX];
    struct gr_buf dirs; /* path, NUL, … of directories still to look into */
    bool found;
};

static int look_name(void *arg, const char *name, const struct vmfs_stat *st)
{
    struct finder *f = arg;
    char path[VMFS_PATH_MAX + VMFS_NAME_MAX + 2];
    int n = snprintf(path, sizeof path, "%s%s%s", f->path, f->path[0] ? "/" : "", name);
    if (n >= VMFS_PATH_MAX)
        return 0;
    if (st->id == f->id) {
        f->found = true;
        memcpy(f->path, path, (size_t)n + 1);
        return -ECANCELED; /* enough */
    }
    return st->type == VMFS_DIR ? gr_buf_add(&f->dirs, path, (size_t)n + 1) : 0;
}

void vobj_name(struct vmfs *v, uint64_t id, char *out, size_t size)
{
    struct finder f = { .id = id };
    int r = gr_buf_add(&f.dirs, "", 1);
    for (size_t at = 0; r == 0 && !f.found && at < f.dirs.len;) {
        snprintf(f.path, sizeof f.path, "%s", (const char *)f.dirs.data + at);
        at += strlen(f.path) + 1;
        r = vmfs_readdir(v, f.path, look_name, &f, NULL);
    }
    gr_buf_done(&f.dirs);
    if (f.found)
        snprintf(out, size, "%s/%s", v->sb.name, f.path);
    else
        snprintf(out, size, "%s, object %llu", v->sb.name, (unsigned long long)id);
}
