#include "backup-proxy/gc.h"
#include "backup-proxy/placeset.h"
#include "backup-proxy/point.h"
#include "backup-proxy/repo_dir.h"
#include "backup-proxy/tree.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <fcntl.h>
#include <string.h>

struct gc {
    struct bp_repo *r;
    struct bp_codec codec;
    struct bp_placeset nodes; /* maps already walked */
    struct bp_placeset live;  /* packs, with offset 0 */
    json_t *seen;             /* ids of points already marked */
    json_t *readers;          /* ids of points that living readers name */
    uint64_t epoch;
    struct bp_gc_stats *st;
    struct gr_err *err;
};

/* ---- mark ---- */
static int mark_pack(struct gc *g, uint64_t pack)
{
    int r = bp_placeset_add(&g->live, pack, 0);
    return r < 0 ? gr_fail(g->err, r, "out of memory for marking") : 0;
}
static int mark_node(void *arg, const struct bp_ref *ref, unsigned level, uint64_t first_unit)
{
    struct gc *g = arg;
    int r = bp_placeset_add(&g->nodes, ref->pack, ref->off);
    if (r < 0)
        return gr_fail(g->err, r, "out of memory for marking");
    int m = mark_pack(g, ref->pack);
    return m < 0 ? m : r; /* a node seen before is not walked again */
}
static int mark_unit(void *arg, uint64_t unit, const struct bp_unit *u)
{
    struct gc *g = arg;
    int r = 0;
    for (unsigned i = 0; r == 0 && i < u->n; i++)
        r = mark_pack(g, u->part[i].ref.pack);
    return r;
}
static int mark_point(struct gc *g, const struct bp_point *p)
{
    static const struct bp_walk_ops ops = {mark_node, mark_unit};
    int r = 0;
    for (size_t i = 0; r == 0 && i < bp_point_disks(p); i++) {
        struct bp_point_disk d;
        r = bp_point_disk(p, i, &d, g->err);
        if (r == 0 && (r = bp_tree_walk(g->r, &g->codec, &d.root, d.size, 0, UINT64_MAX, &ops, g, g->err)) < 0)
            gr_prefix(g->err, r, "point '%s', disk '%s'", p->id, d.name);
    }
    return r;
}
/* Mark those of @ids not marked yet. @only: restrict to ids in this object; @vanished_ok: one may be pruned meanwhile. */
static int mark_ids(struct gc *g, json_t *ids, json_t *only, int (*load)(struct bp_repo *, const char *, struct bp_point *, struct gr_err *))
{
    size_t i;
    json_t *v;
    int r = 0;
    json_array_foreach(ids, i, v) {
        const char *id = json_string_value(v);
        struct bp_point p = {.doc = NULL};
        if (json_object_get(g->seen, id) || (only && !json_object_get(only, id)))
            continue;
        r = load(g->r, id, &p, g->err);
        if (r == -ENOENT)
            r = 0; /* pruned since it was listed */
        else if (r == 0 && (r = mark_point(g, &p)) == 0)
            json_object_set_new(g->seen, id, json_true());
        bp_point_done(&p);
        if (r < 0)
            return r;
    }
    return r;
}
static int reader_note(void *arg, const struct bp_lease_info *info)
{
    struct gc *g = arg;
    if (info->kind == BP_LEASE_READER)
        json_object_set_new(g->readers, info->point, json_true());
    else if (info->epoch < g->epoch)
        g->st->busy_writers++;
    return 0;
}
static int mark_all(struct gc *g)
{
    json_t *ids = NULL, *removed = NULL;
    int r = bp_point_ids(g->r, NULL, &ids, g->err);
    if (r == 0)
        r = mark_ids(g, ids, NULL, bp_point_load);
    if (r == 0)
        r = bp_point_removed_ids(g->r, &removed, g->err); /* after the visible ones: none slips between */
    if (r == 0)
        r = mark_ids(g, removed, g->readers, bp_point_load_removed);
    json_decref(ids);
    json_decref(removed);
    return r;
}

/* ---- condemn, pardon, remove ---- */
static int condemn_one(void *arg, uint64_t id, uint64_t bytes)
{
    struct gc *g = arg;
    g->st->packs++;
    g->st->bytes += bytes;
    return bp_placeset_has(&g->live, id, 0) ? 0 : bp_condemn(g->r, id, g->err);
}
static int judge_one(void *arg, uint64_t id, uint64_t bytes)
{
    struct gc *g = arg;
    if (!bp_condemned(g->r, id))
        return 0;
    if (bp_placeset_has(&g->live, id, 0))
        return bp_condemn_clear(g->r, id);
    if (g->st->busy_writers) {
        g->st->waiting_packs++;
        g->st->waiting_bytes += bytes;
        return 0;
    }
    int r = bp_pack_remove(g->r, id, g->err);
    if (r < 0)
        return r;
    g->st->removed_packs++;
    g->st->removed_bytes += bytes;
    return 0;
}
/* Markers whose pack is gone: after the removals are durable. */
static int clear_markers(struct gc *g)
{
    int dfd = openat(g->r->dir, "condemned", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    gr_auto_closedir DIR *d = dfd < 0 ? NULL : fdopendir(dfd);
    if (!d)
        return gr_fail(g->err, -errno, "%s/condemned: cannot open: %s", g->r->path, gr_code_text(-errno));
    for (struct dirent *e; (e = readdir(d));) {
        char name[64], *end = NULL;
        uint64_t id = strtoull(e->d_name, &end, 16);
        bp_pack_name(id, name);
        if (*end == 0 && strlen(e->d_name) == 16 && faccessat(g->r->dir, name, F_OK, 0) < 0 && errno == ENOENT)
            (void)bp_condemn_clear(g->r, id);
    }
    return 0;
}
static int forget_removed(struct gc *g)
{
    json_t *ids = NULL, *v;
    size_t i;
    int r = bp_point_removed_ids(g->r, &ids, g->err);
    if (r == 0) {
        json_array_foreach(ids, i, v) {
            if (json_object_get(g->readers, json_string_value(v)))
                continue;
            if ((r = bp_point_forget(g->r, json_string_value(v), g->err)) < 0)
                break;
            g->st->points_forgotten++;
        }
    }
    json_decref(ids);
    return r;
}

static int collect(struct gc *g)
{
    int r = bp_lease_each(g->r, reader_note, g, g->err);
    if (r == 0)
        r = mark_all(g);
    if (r == 0)
        r = bp_pack_list(g->r, condemn_one, g, g->err);
    if (r == 0)
        r = bp_repo_sync_dir(g->r, "condemned", g->err);
    if (r == 0)
        r = bp_repo_epoch(g->r, &g->epoch, g->err);
    if (r == 0)
        r = bp_repo_epoch_set(g->r, ++g->epoch, g->err);
    g->st->busy_writers = 0;
    if (r == 0)
        r = bp_lease_each(g->r, reader_note, g, g->err);
    if (r == 0)
        r = mark_all(g);
    if (r == 0)
        r = bp_pack_list(g->r, judge_one, g, g->err);
    if (r == 0)
        r = clear_markers(g);
    if (r == 0)
        r = forget_removed(g);
    int swept = r == 0 ? bp_repo_sweep(g->r, g->err) : r;
    if (swept > 0)
        g->st->leavings = (uint64_t)swept;
    return swept < 0 ? swept : 0;
}

int bp_gc(struct bp_repo *r, struct bp_gc_stats *ret, struct gr_err *err)
{
    struct bp_gc_stats st = {0};
    struct gr_err local = {0};
    struct gc g = {.r = r, .seen = json_object(), .readers = json_object(), .st = &st, .err = err ? err : &local};
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    gr_auto_close int lock = openat(r->dir, "gc.lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    int rc;
    if (lock < 0)
        rc = gr_fail(err, -errno, "%s/gc.lock: cannot open: %s", r->path, gr_code_text(-errno));
    else if (fcntl(lock, F_OFD_SETLK, &fl) < 0)
        rc = gr_fail(err, -GR_ELOCKED, "%s: another collection is running", r->path);
    else if (!g.seen || !g.readers)
        rc = gr_fail(err, -ENOMEM, "out of memory");
    else
        rc = collect(&g);
    bp_codec_done(&g.codec);
    bp_placeset_done(&g.nodes);
    bp_placeset_done(&g.live);
    json_decref(g.seen);
    json_decref(g.readers);
    if (rc == 0)
        *ret = st;
    return rc;
}
