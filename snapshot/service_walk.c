/* Walking the namespace: one directory is read to its end before anything is done with its entries, so that the caller may
 * call whatever it likes (also open, create and remove) from its callback. */
#include "snapshot/service_int.h"
#include <string.h>

#define WALK_DEPTH_MAX 128

struct entry {
    char *path;
    struct vmfs_stat st;
};
struct listing {
    const char *dir;
    struct entry *v;
    size_t n, cap;
};

static void listing_done(struct listing *l)
{
    for (size_t i = 0; i < l->n; i++)
        free(l->v[i].path);
    free(l->v);
}

static int collect(void *arg, const char *name, const struct vmfs_stat *st)
{
    struct listing *l = arg;
    if (!l->dir[0] && strncmp(name, "granary.", 8) == 0) /* our own */
        return 0;
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 16;
        struct entry *v = gr_realloc(l->v, cap * sizeof(*v));
        if (!v)
            return -ENOMEM;
        l->v = v;
        l->cap = cap;
    }
    char *path = l->dir[0] ? gr_asprintf("%s/%s", l->dir, name) : gr_strdup(name);
    if (!path)
        return -ENOMEM;
    l->v[l->n++] = (struct entry){.path = path, .st = *st};
    return 0;
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->path, ((const struct entry *)b)->path);
}

static int walk(struct snap_ds *ds, const char *dir, unsigned depth, snap_walk_fn fn, void *arg, struct gr_err *err)
{
    gr_auto(listing_done) struct listing l = {.dir = dir};
    if (depth == 0)
        return gr_fail(err, -ELOOP, "%s/%s: folders nested too deep", ds->name, dir);
    int r = vmfs_readdir(ds->v, dir, collect, &l, err);
    if (r == -ENOMEM)
        return gr_fail(err, r, "%s/%s: out of memory", ds->name, dir);
    if (r >= 0 && l.n > 0)
        qsort(l.v, l.n, sizeof(*l.v), by_path);
    for (size_t i = 0; i < l.n && r >= 0; i++) {
        r = fn(arg, l.v[i].path, &l.v[i].st);
        if (r == SNAP_WALK_INTO && l.v[i].st.type == VMFS_DIR)
            r = walk(ds, l.v[i].path, depth - 1, fn, arg, err);
    }
    return r < 0 ? r : 0;
}

int snap_walk(struct snap_ds *ds, const char *dir, snap_walk_fn fn, void *arg, struct gr_err *err)
{
    return walk(ds, dir, WALK_DEPTH_MAX, fn, arg, err);
}
