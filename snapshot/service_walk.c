/* Walking the namespace: one directory is read to its end before anything is done with its entries, so that the caller may
 * call whatever it likes (also open, create and remove) from its callback. Folders may lie in each other as deep as paths can be long. */
#include "common/buf.h"
#include "snapshot/service_int.h"
#include <string.h>

struct entry {
    char *name;
    struct vmfs_stat st;
};
struct listing { /* of a directory that is being walked */
    struct entry *v;
    size_t n, cap, at; /* at: what comes next */
    size_t path_len;   /* of the directory */
};
struct walk {
    struct listing *l; /* from the first to the one we are in */
    size_t depth, cap;
    struct gr_buf path; /* of what we are at */
    bool own;           /* the first one is the root: what is Granary's own in it is passed over */
};

static void listing_done(struct listing *l)
{
    for (size_t i = 0; i < l->n; i++)
        free(l->v[i].name);
    free(l->v);
}

static void walk_done(struct walk *w)
{
    while (w->depth)
        listing_done(&w->l[--w->depth]);
    free(w->l);
    gr_buf_done(&w->path);
}

static int collect(void *arg, const char *name, const struct vmfs_stat *st)
{
    struct walk *w = arg;
    struct listing *l = &w->l[w->depth - 1];
    if (w->own && w->depth == 1 && strncmp(name, "granary.", 8) == 0)
        return 0;
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 16;
        struct entry *v = gr_realloc(l->v, cap * sizeof(*v));
        if (!v)
            return -ENOMEM;
        l->v = v;
        l->cap = cap;
    }
    char *copy = gr_strdup(name);
    if (!copy)
        return -ENOMEM;
    l->v[l->n++] = (struct entry){.name = copy, .st = *st};
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

/* Read the directory @id, whose path is that of what we are at. */
static int enter(struct walk *w, struct snap_ds *ds, uint64_t id, struct gr_err *err)
{
    if (w->depth == w->cap) {
        size_t cap = w->cap ? w->cap * 2 : 8;
        struct listing *l = gr_realloc(w->l, cap * sizeof(*l));
        if (!l)
            return -ENOMEM;
        w->l = l;
        w->cap = cap;
    }
    struct listing *l = &w->l[w->depth++];
    *l = (struct listing){.path_len = w->path.len};
    int r = vmfs_readdir_id(ds->v, id, collect, w, err);
    if (r >= 0 && l->n > 0)
        qsort(l->v, l->n, sizeof(*l->v), by_name);
    return r < 0 ? r : 0;
}

/* The path of the next entry, with a NUL behind it. 0; 1: longer than any that can be used. */
static int next_path(struct walk *w, const struct listing *l, const struct entry *e)
{
    w->path.len = l->path_len;
    if (w->path.len + 1 + strlen(e->name) > VMFS_PATH_MAX)
        return 1;
    int r = w->path.len ? gr_buf_add(&w->path, "/", 1) : 0;
    if (r == 0)
        r = gr_buf_add(&w->path, e->name, strlen(e->name) + 1);
    w->path.len -= r == 0;
    return r;
}

static int walk(struct walk *w, struct snap_ds *ds, snap_walk_fn fn, void *arg, struct gr_err *err)
{
    int r = 0;
    while (r >= 0 && w->depth) {
        struct listing *l = &w->l[w->depth - 1];
        if (l->at == l->n) {
            listing_done(l);
            w->depth--;
            continue;
        }
        const struct entry *e = &l->v[l->at++];
        r = next_path(w, l, e);
        if (r != 0)
            continue;
        r = fn(arg, (const char *)w->path.data, &e->st);
        if (r == SNAP_WALK_INTO && e->st.type == VMFS_DIR && (r = enter(w, ds, e->st.id, err)) == -ENOENT)
            r = 0; /* removed meanwhile */
    }
    return r < 0 ? r : 0;
}

int snap_walk(struct snap_ds *ds, const char *dir, snap_walk_fn fn, void *arg, struct gr_err *err)
{
    gr_auto(walk_done) struct walk w = {.own = !dir[0]};
    struct vmfs_stat st;
    int r = vmfs_stat(ds->v, dir, &st, err);
    if (r == 0 && st.type != VMFS_DIR)
        return gr_fail(err, -ENOTDIR, "'%s/%s' is not a directory", ds->name, dir);
    if (r == 0)
        r = gr_buf_add(&w.path, dir, strlen(dir));
    if (r == 0 && (r = enter(&w, ds, st.id, err)) == 0)
        r = walk(&w, ds, fn, arg, err);
    return r == -ENOMEM ? gr_fail(err, r, "%s/%s: out of memory", ds->name, dir) : r;
}

bool snap_is_below(const char *path, const char *dir)
{
    size_t n = strlen(dir);
    return n == 0 || (strncmp(path, dir, n) == 0 && (path[n] == 0 || path[n] == '/'));
}
