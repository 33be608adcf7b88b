#include "backup-proxy/verify.h"
#include "backup-proxy/pipe.h"
#include "backup-proxy/placeset.h"
#include "backup-proxy/point.h"
#include "backup-proxy/tree.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <string.h>

#define CHUNK_UNITS (1u << 17) /* 8 GiB of a disk at a time: bounds memory, and packs are read in their order within it */
#define LANES 8u
#define BATCH 16u
struct task {
    struct bp_ref ref;
    uint64_t unit; /* where it was met first */
};
struct verify;
struct vslot {
    struct verify *v;
    unsigned n;
    const struct task *task[BATCH];
    int status[BATCH];
    struct gr_err err[BATCH];
    struct bp_codec codec;
    uint8_t raw[REPO_UNIT];
};
struct verify {
    struct bp_repo *r;
    struct bp_codec codec;
    struct bp_placeset nodes, extents, bad; /* seen; bad: damaged extents and nodes */
    struct bp_verify *out;
    const char *point, *disk;
    struct task *tasks;
    size_t n, cap, at;
    void (*progress)(void *arg, uint64_t bytes);
    void *arg;
    struct gr_err *err;
    /* walk by hand, so that a damaged node does not hide the rest */
    bool affected;
};

static void damage(struct verify *v, int64_t offset, const char *text)
{
    if (json_array_size(v->out->damage) >= BP_VERIFY_MAX)
        return;
    json_t *d = json_pack("{s:s,s:s,s:s}", "point", v->point, "disk", v->disk ? v->disk : "", "error", text);
    if (d && offset >= 0)
        json_object_set_new(d, "offset", json_integer(offset));
    json_array_append_new(v->out->damage, d);
}

/* ---- reading extents, in pack order ---- */
static int v_next(void *arg, void *slot, struct gr_err *err)
{
    struct verify *v = arg;
    struct vslot *s = slot;
    s->v = v;
    for (s->n = 0; s->n < BATCH && v->at < v->n; s->n++)
        s->task[s->n] = &v->tasks[v->at++];
    return s->n > 0;
}
static int v_work(void *slot)
{
    struct vslot *s = slot;
    for (unsigned i = 0; i < s->n; i++) {
        s->err[i] = (struct gr_err){0};
        s->status[i] = bp_extent_read(s->v->r, &s->codec, REPO_DATA, &s->task[i]->ref, s->raw, &s->err[i]);
    }
    return 0;
}
static int v_commit(void *arg, void *slot, struct gr_err *err)
{
    struct verify *v = arg;
    struct vslot *s = slot;
    for (unsigned i = 0; i < s->n; i++) {
        const struct bp_ref *ref = &s->task[i]->ref;
        v->out->extents++;
        v->out->bytes += ref->stored;
        if (s->status[i] == 0)
            continue;
        if (s->status[i] == -ENOMEM)
            return gr_fail(err, -ENOMEM, "out of memory");
        if (bp_placeset_add(&v->bad, ref->pack, ref->off) < 0)
            return gr_fail(err, -ENOMEM, "out of memory");
        damage(v, (int64_t)(s->task[i]->unit * REPO_UNIT), gr_err_text(&s->err[i], s->status[i]));
    }
    if (v->progress)
        v->progress(v->arg, v->out->bytes);
    return 0;
}
static int task_order(const void *a, const void *b)
{
    const struct bp_ref *x = &((const struct task *)a)->ref, *y = &((const struct task *)b)->ref;
    return x->pack != y->pack ? (x->pack < y->pack ? -1 : 1) : x->off < y->off ? -1 : x->off > y->off;
}
static int read_tasks(struct verify *v)
{
    static const struct bp_pipe_ops ops = {v_next, NULL, v_work, v_commit};
    if (v->n == 0)
        return 0;
    qsort(v->tasks, v->n, sizeof *v->tasks, task_order);
    v->at = 0;
    struct vslot *slots = gr_zalloc(LANES * sizeof *slots);
    int r = slots ? bp_pipe_run(&ops, v, slots, sizeof *slots, LANES, v->err) : gr_fail(v->err, -ENOMEM, "out of memory");
    for (unsigned i = 0; slots && i < LANES; i++)
        bp_codec_done(&slots[i].codec);
    free(slots);
    v->n = 0;
    return r;
}

/* ---- walking maps ---- */
static int add_unit(struct verify *v, uint64_t unit, const struct bp_unit *u)
{
    for (unsigned i = 0; i < u->n; i++) {
        const struct bp_ref *ref = &u->part[i].ref;
        int r = bp_placeset_add(&v->extents, ref->pack, ref->off);
        if (r < 0)
            return gr_fail(v->err, r, "out of memory");
        if (r == 0)
            continue;
        if (v->n == v->cap) {
            size_t cap = v->cap ? v->cap * 2 : 4096;
            struct task *t = gr_realloc(v->tasks, cap * sizeof *t);
            if (!t)
                return gr_fail(v->err, -ENOMEM, "out of memory");
            v->tasks = t;
            v->cap = cap;
        }
        v->tasks[v->n++] = (struct task){*ref, unit};
    }
    return v->n >= CHUNK_UNITS ? read_tasks(v) : 0;
}
static int walk(struct verify *v, const struct bp_ref *ref, unsigned level, uint64_t first)
{
    struct gr_err e = {0};
    int r = bp_placeset_add(&v->nodes, ref->pack, ref->off);
    if (r <= 0)
        return r < 0 ? gr_fail(v->err, r, "out of memory") : 0;
    gr_auto_free struct bp_node *n = gr_alloc(sizeof *n);
    if (!n)
        return gr_fail(v->err, -ENOMEM, "out of memory");
    v->out->nodes++;
    v->out->bytes += ref->stored;
    r = bp_node_read(v->r, &v->codec, ref, level, first, n, &e);
    if (r < 0) {
        if (r == -ENOMEM || bp_placeset_add(&v->bad, ref->pack, ref->off) < 0)
            return gr_fail(v->err, -ENOMEM, "out of memory");
        damage(v, (int64_t)(first * REPO_UNIT), gr_err_text(&e, r));
        return 0;
    }
    uint64_t span = bp_tree_span(level);
    for (unsigned i = 0; r == 0 && i < REPO_FANOUT; i++)
        if (level ? n->child[i].raw : n->unit[i].n)
            r = level ? walk(v, &n->child[i], level - 1, first + i * span) : add_unit(v, first + i, &n->unit[i]);
    return r;
}
static int verify_point(struct verify *v, const char *id)
{
    struct bp_point p = {.doc = NULL};
    struct bp_lease *lease = NULL;
    struct gr_err e = {0};
    v->point = id;
    v->disk = NULL;
    int r = bp_lease_take(v->r, BP_LEASE_READER, id, &lease, v->err);
    if (r < 0)
        return r;
    v->out->points++;
    r = bp_point_load(v->r, id, &p, &e);
    if (r == -GR_ECORRUPT) {
        damage(v, -1, gr_err_text(&e, r));
        json_array_append_new(v->out->affected, json_string(id));
        r = 0;
    } else if (r < 0) {
        gr_fail(v->err, r, "%s", gr_err_text(&e, r));
    }
    for (size_t i = 0; r == 0 && p.doc && i < bp_point_disks(&p); i++) {
        struct bp_point_disk d;
        r = bp_point_disk(&p, i, &d, &e);
        if (r < 0) {
            damage(v, -1, gr_err_text(&e, r));
            r = 0;
            continue;
        }
        v->disk = d.name;
        r = d.root.raw ? walk(v, &d.root, bp_tree_levels(d.size) - 1, 0) : 0;
        if (r == 0)
            r = read_tasks(v);
    }
    bp_point_done(&p);
    bp_lease_drop(lease);
    return r;
}

/* ---- who needs what is damaged ---- */
static int hit_node(void *arg, const struct bp_ref *ref, unsigned level, uint64_t first_unit)
{
    struct verify *v = arg;
    if (bp_placeset_has(&v->bad, ref->pack, ref->off))
        v->affected = true;
    return v->affected ? -ECANCELED : 1;
}
static int hit_unit(void *arg, uint64_t unit, const struct bp_unit *u)
{
    struct verify *v = arg;
    for (unsigned i = 0; i < u->n; i++)
        if (bp_placeset_has(&v->bad, u->part[i].ref.pack, u->part[i].ref.off))
            v->affected = true;
    return v->affected ? -ECANCELED : 0;
}
static int find_affected(struct verify *v)
{
    static const struct bp_walk_ops ops = {hit_node, hit_unit};
    json_t *ids = NULL, *id;
    size_t i;
    int r = bp_point_ids(v->r, NULL, &ids, v->err);
    if (r < 0)
        return r;
    json_array_foreach(ids, i, id) {
        struct bp_point p = {.doc = NULL};
        v->affected = false;
        if (bp_point_load(v->r, json_string_value(id), &p, NULL) < 0)
            continue;
        for (size_t k = 0; !v->affected && k < bp_point_disks(&p); k++) {
            struct bp_point_disk d;
            if (bp_point_disk(&p, k, &d, NULL) < 0)
                continue;
            r = bp_tree_walk(v->r, &v->codec, &d.root, d.size, 0, UINT64_MAX, &ops, v, NULL);
            if (r < 0)
                v->affected = true; /* cancelled by a hit, or its map cannot be read */
        }
        bp_point_done(&p);
        if (v->affected)
            json_array_append(v->out->affected, id);
    }
    json_decref(ids);
    return 0;
}

int bp_verify_points(struct bp_repo *r, json_t *ids, void (*progress)(void *arg, uint64_t bytes), void *arg, struct bp_verify *ret,
                     struct gr_err *err)
{
    struct gr_err local = {0};
    struct bp_verify out = {.damage = json_array(), .affected = json_array()};
    struct verify v = {.r = r, .out = &out, .progress = progress, .arg = arg, .err = err ? err : &local};
    size_t i;
    json_t *id;
    int rc = out.damage && out.affected ? 0 : gr_fail(err, -ENOMEM, "out of memory");
    json_array_foreach(ids, i, id) {
        if (rc == 0)
            rc = verify_point(&v, json_string_value(id));
    }
    if (rc == 0 && v.bad.n > 0)
        rc = find_affected(&v);
    bp_codec_done(&v.codec);
    bp_placeset_done(&v.nodes);
    bp_placeset_done(&v.extents);
    bp_placeset_done(&v.bad);
    free(v.tasks);
    if (rc < 0) {
        json_decref(out.damage);
        json_decref(out.affected);
        return rc;
    }
    *ret = out;
    return 0;
}
