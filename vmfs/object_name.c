/* What an object is called: nothing remembers that, so the folders are searched. Their entries say enough, no object is read. */
#include "common/seam.h"
#include "vmfs/internal.h"

struct finder {
    uint64_t id;
    struct gr_buf dirs; /* struct left_dir and the path, NUL: directories still to look into */
    size_t at;          /* of the next in @dirs */
    char *path;         /* found */
};

static int dir_add_left(struct finder *f, uint64_t id, const char *dir, const char *name)
{
    int r = gr_buf_add(&f->dirs, &id, sizeof id);
    return r < 0 ? r : gr_buf_printf(&f->dirs, "%s%s%s%c", dir, dir[0] ? "/" : "", name, 0);
}

static int look_into(struct vmfs *v, struct finder *f, uint64_t id, const char *path)
{
    struct vobj *dir;
    int r = vobj_peek(v, id, &dir, NULL);
    if (r < 0)
        return r == -ENOMEM ? r : 0; /* removed meanwhile, or damaged: then its name is not known */
    for (size_t i = 0; r == 0 && !f->path && i < dir->n_ents; i++) {
        const struct vdirent *e = &dir->ents[i];
        if (strlen(path) + 1 + strlen(e->name) > VMFS_PATH_MAX)
            continue;
        if (e->id == f->id)
            r = (f->path = gr_asprintf("%s%s%s", path, path[0] ? "/" : "", e->name)) ? 0 : -ENOMEM;
        else if (e->type == VMFS_DIR)
            r = dir_add_left(f, e->id, path, e->name);
    }
    vobj_free(dir);
    return r;
}

int vmfs_path_of(struct vmfs *v, uint64_t id, char **ret, struct gr_err *err)
{
    struct finder f = { .id = id };
    int r = dir_add_left(&f, VMFS_INODE_ROOT, "", "");
    while (r == 0 && !f.path && f.at < f.dirs.len) {
        uint64_t dir;
        memcpy(&dir, f.dirs.data + f.at, sizeof dir);
        gr_auto_free char *path = gr_strdup(f.dirs.data + f.at + sizeof dir); /* the buffer moves when it grows */
        f.at += sizeof dir + strlen(f.dirs.data + f.at + sizeof dir) + 1;
        r = path ? look_into(v, &f, dir, path) : -ENOMEM;
    }
    gr_buf_done(&f.dirs);
    if (r < 0)
        free(f.path);
    else if (f.path)
        *ret = f.path;
    return r < 0 ? gr_fail(err, r, "out of memory") : f.path ? 0 : gr_fail(err, -ENOENT, "object %llu has no name", (unsigned long long)id);
}

void vobj_name(struct vmfs *v, uint64_t id, char *out, size_t size)
{
    char *path = NULL;
    if (vmfs_path_of(v, id, &path, NULL) == 0)
        snprintf(out, size, "%s/%s", v->sb.name, path);
    else
        snprintf(out, size, "%s, object %llu", v->sb.name, (unsigned long long)id);
    free(path);
}
