/* Methods snapshot.clone, disk.detach and disk.promote: disks that start at a snapshot, and share with it or do not. */
#include "common/buf.h"
#include "snapshot/service_int.h"
#include <string.h>

#define CLONES_MAX 10000u /* in one request */

struct cloning {
    struct snap_op *op;
    struct snap_path from;
    struct snap_disk d;
    const char *snap;
    json_t *names; /* of the new disks */
    const char **paths; /* the same inside the datastore */
    unsigned n;
};

static void cloning_done(struct cloning *c)
{
    snap_disk_put(&c->d);
    json_decref(c->names);
    for (unsigned i = 0; c->paths && i < c->n; i++)
        free((void *)(uintptr_t)c->paths[i]);
    free(c->paths);
}

static int targets(struct cloning *c)
{
    struct snap_op *op = c->op;
    json_t *list = json_object_get(op->params, "targets"), *name;
    size_t i;
    c->names = list ? json_incref(list) : json_pack("[O]", json_object_get(op->params, "to"));
    size_t n = json_array_size(c->names);
    if (n == 0 || n > CLONES_MAX)
        return gr_fail(op->err, -GR_EUSAGE, "%zu clones: 1 to %u can be made at once", n, CLONES_MAX);
    c->paths = gr_zalloc(n * sizeof(*c->paths));
    struct snap_path *p = gr_alloc(sizeof(*p));
    int r = c->paths && p ? 0 : gr_fail(op->err, -ENOMEM, "out of memory");
    json_array_foreach(c->names, i, name)
    {
        const char *text = json_string_value(name);
        if (r == 0)
            r = snap_path_parse(text ? text : "", SNAP_PATH_DISK, p, op->err);
        if (r == 0 && strcmp(p->ds, c->from.ds) != 0)
            r = gr_fail(op->err, -EXDEV, "a clone is in the datastore of its snapshot, '%s': '%s' is not", c->from.ds, text);
        if (r == 0 && !(c->paths[c->n++] = gr_strdup(p->path)))
            r = gr_fail(op->err, -ENOMEM, "out of memory");
    }
    free(p);
    return r;
}

/* ---- linked ---- */
/* Of one all that is known; of many what tells them apart. */
static json_t *linked_row(struct cloning *c, unsigned i, const struct vmfs_stat *st, const char *parent)
{
    char uuid[37];
    json_t *row;
    gr_uuid_format(st->uuid, uuid);
    if (c->n == 1)
        row = snap_disk_row(c->d.ds, c->paths[i], st);
    else
        row = json_pack("{s:O,s:I,s:s,s:I}", "disk", json_array_get(c->names, i), "size", (json_int_t)st->size, "uuid", uuid, "id", (json_int_t)st->id);
    json_object_set_new(row, "parent", json_string(parent));
    return row;
}

static int linked_rows(struct cloning *c, const uint64_t *ids, json_t *rows)
{
    gr_auto_free char *parent = gr_asprintf("%s/%s@%s", c->from.ds, c->from.path, c->snap);
    for (unsigned i = 0; i < c->n; i++) {
        struct vmfs_stat st;
        int r = vmfs_stat_object(c->d.ds->v, ids[i], &st, c->op->err);
        if (r < 0)
            return r;
        if (!parent || json_array_append_new(rows, linked_row(c, i, &st, parent)) < 0)
            return gr_fail(c->op->err, -ENOMEM, "out of memory");
    }
    return 0;
}

static int linked(struct cloning *c, json_t *rows)
{
    unsigned made = 0;
    struct snap_handle *h = NULL;
    gr_auto_free uint64_t *ids = gr_zalloc(c->n * sizeof(*ids));
    if (!ids)
        return gr_fail(c->op->err, -ENOMEM, "out of memory");
    int r = snap_clone_many(c->d.h->disk, c->snap, c->paths, c->n, &made, ids, c->op->err);
    if (r < 0 && made)
        return gr_prefix(c->op->err, -GR_EPARTIAL, "the first %u of %u clones were made, then", made, c->n);
    if (r == 0 && c->n == 1 && (r = snap_handle_get(c->op->s, c->d.ds, c->paths[0], c->op->method, SNAP_WAIT_MS, &h, NULL, c->op->err)) == 0)
        h->users--; /* as any new disk it is open, and so this host's */
    return r < 0 ? r : linked_rows(c, ids, rows);
}

/* ---- full ---- */
struct full {
    struct cloning *c;
    struct gr_chan *from;
    unsigned nth;
    snap_progress_fn progress;
    void *progress_arg;
};

/* Of all the clones of a request. */
static int full_progress(void *arg, uint64_t done, uint64_t total)
{
    struct full *f = arg;
    return f->progress(f->progress_arg, f->nth * total + done, f->c->n * total);
}

static int full_fill(void *arg, struct gr_chan *to, snap_progress_fn progress, void *progress_arg, struct gr_err *err)
{
    struct full *f = arg;
    f->progress = progress;
    f->progress_arg = progress_arg;
    return f->c->op->s->o.images->copy(f->from, to, full_progress, f, err);
}

static int full_shape(struct cloning *c, const struct gr_geometry *g, struct snap_shape *ret)
{
    struct vmfs_stat st;
    vmfs_disk_stat(c->d.h->disk, &st);
    *ret = (struct snap_shape){.size = g->size};
    int r = snap_op_shape(c->op, &ret->provision, &ret->physical);
    ret->physical = st.physical_block;
    ret->key = st.key_id; /* what is secret stays so */
    return r;
}

static int full(struct cloning *c, json_t *rows)
{
    struct snap_op *op = c->op;
    struct gr_bdev *bdev = NULL;
    struct gr_geometry g;
    struct snap_shape shape;
    struct full f = {.c = c};
    if (!op->s->o.images)
        return gr_fail(op->err, -EOPNOTSUPP, "this program cannot copy disks");
    int r = snap_open(c->d.h->disk, c->snap, &bdev, op->err);
    if (r == 0 && ((r = gr_bdev_geometry(bdev, &g)) < 0 || (r = gr_chan_open(bdev, op->s->o.loop, &f.from)) < 0))
        gr_fail(op->err, r, "%s: %s", bdev->name, gr_code_text(r));
    if (r == 0)
        r = full_shape(c, &g, &shape);
    for (; r == 0 && f.nth < c->n; f.nth++) {
        struct vmfs_stat st;
        r = vmfs_stat(c->d.ds->v, c->paths[f.nth], &st, NULL);
        r = r == 0 ? gr_fail(op->err, -EEXIST, "'%s/%s' exists already", c->from.ds, c->paths[f.nth]) : 0;
        if (r == 0)
            r = snap_fill_as(op, c->d.ds, c->paths[f.nth], &shape, full_fill, &f);
        if (r < 0 && f.nth)
            r = gr_prefix(op->err, -GR_EPARTIAL, "the first %u of %u clones were made, then", f.nth, c->n);
        if (r == 0)
            r = vmfs_stat(c->d.ds->v, c->paths[f.nth], &st, op->err);
        if (r == 0)
            json_array_append_new(rows, snap_disk_row(c->d.ds, c->paths[f.nth], &st));
        if (r < 0)
            break;
    }
    gr_chan_close(f.from);
    gr_bdev_put(bdev);
    return r;
}

/* No snapshot was named. */
static int template_of(struct cloning *c)
{
    struct vmfs_stat st;
    vmfs_disk_stat(c->d.h->disk, &st);
    c->snap = SNAP_TEMPLATE;
    return st.lun.flags & VMFS_LUN_TEMPLATE ? snap_template_ready(&c->d, c->op->err)
                                            : gr_fail(c->op->err, -GR_EUSAGE, "%s/%s is no template: name the snapshot (%s/%s@SNAPSHOT) that the clone starts at",
                                                      c->from.ds, c->from.path, c->from.ds, c->from.path);
}

static int op_clone(struct snap_op *op)
{
    gr_auto(cloning_done) struct cloning c = {.op = op};
    snap_auto_json json_t *rows = json_array();
    bool whole = false;
    int r = gr_json_opt_str(op->params, "snapshot", &c.snap, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "full", &whole, op->err);
    if (r == 0)
        r = snap_op_path(op, "disk", SNAP_PATH_DISK, &c.from);
    if (r == 0)
        r = targets(&c);
    if (r == 0)
        r = snap_disk_get(op, &c.from, &c.d);
    if (r == 0 && !c.snap)
        r = template_of(&c);
    if (r == 0)
        r = whole ? full(&c, rows) : linked(&c, rows);
    if (r < 0)
        return r;
    bool many = json_object_get(op->params, "targets");
    return snap_op_result(op, many ? gr_take(rows) : json_incref(json_array_get(rows, 0)));
}
SNAP_METHOD(op_clone, "snapshot.clone")

/* ---- detach ---- */
struct detaching {
    struct snap_op *op;
    uint64_t total, rate; /* bytes; bytes a second, 0: as fast as it goes */
    uint64_t began_ns, told_ns;
};

static int detach_progress(void *arg, uint64_t bytes, struct gr_err *err)
{
    struct detaching *t = arg;
    struct gr_loop *loop = t->op->s->o.loop;
    uint64_t due = t->rate ? t->began_ns + (uint64_t)((double)bytes / (double)t->rate * 1e9) : 0;
    do {
        uint64_t now = gr_loop_now_ns(loop);
        if (gr_rpc_gone(t->op->call))
            return gr_fail(err, -GR_ECANCELED, "the caller is gone; the next detach goes on where this one was");
        if (t->op->s->ending)
            return gr_fail(err, -GR_ECANCELED, "the service ends; the next detach goes on where this one was");
        if (now - t->told_ns >= SNAP_PROGRESS_NS) {
            t->told_ns = now;
            (void)gr_rpc_part(t->op->call, json_pack("{s:I,s:I}", "done", (json_int_t)bytes, "total", (json_int_t)GR_MAX(bytes, t->total)));
        }
        if (now < due)
            gr_fiber_sleep_ms(GR_MIN((due - now) / 1000000 + 1, 200));
    } while (gr_loop_now_ns(loop) < due);
    return 0;
}

struct origin_path {
    uint64_t id;
    uint8_t uuid[16];
    char *path;
};

static int match_id(void *arg, const char *path, const struct vmfs_stat *st)
{
    struct origin_path *o = arg;
    if (st->id == o->id && !o->path) {
        memcpy(o->uuid, st->uuid, sizeof(o->uuid));
        o->path = gr_strdup(path);
    }
    return o->path ? -ECANCELED : SNAP_WALK_INTO;
}

/* The origin is another host's: one that nobody uses there is given up. */
static int fetch_origin(struct snap_op *op, const struct snap_disk *d, uint64_t id)
{
    struct origin_path o = {.id = id};
    struct snap_place owner = {0};
    (void)snap_walk(d->ds, "", match_id, &o, NULL);
    gr_auto_free char *disk = o.path ? gr_asprintf("%s/%s", d->ds->name, o.path) : NULL;
    int r = disk ? snap_owner_of(d->ds, o.path, &owner, NULL) : 0;
    free(o.path);
    if (r <= 0 || !owner.address[0])
        return -GR_ELOCKED;
    struct gr_err why = {0};
    r = snap_peer_ask(op->s, owner.address, "disk.release", json_pack("{s:s,s:b}", "disk", disk, "forwarded", 1), SNAP_TELL_MS, NULL, &why);
    return r < 0 ? gr_fail(op->err, -GR_ELOCKED, "host '%s' must let go of the disk it was cloned from: %s", owner.host, why.text) : 0;
}

static int op_detach(struct snap_op *op)
{
    struct snap_path p;
    struct snap_disk d = {0};
    struct vmfs_stat st;
    struct detaching t = {.op = op, .began_ns = gr_loop_now_ns(op->s->o.loop)};
    uint64_t copied = 0, more = 0;
    int r = snap_op_path(op, "disk", SNAP_PATH_DISK, &p);
    if (r == 0)
        r = gr_json_opt_u64(op->params, "rate", &t.rate, op->err);
    if (r == 0)
        r = snap_disk_get(op, &p, &d);
    if (r < 0)
        return r;
    vmfs_disk_stat(d.h->disk, &st);
    t.total = st.counted ? st.reachable - GR_MIN(st.unique, st.reachable) : 0;
    const struct vmfs_detach o = {detach_progress, &t};
    r = snap_settle(d.h->disk, op->err);
    if (r == 0)
        r = vmfs_detach(d.h->disk, &o, &copied, op->err);
    if (r == -GR_ELOCKED && fetch_origin(op, &d, st.origin_id) == 0)
        r = vmfs_detach(d.h->disk, &o, &more, op->err);
    op->forward = false;
    if (r == 0) {
        vmfs_disk_stat(d.h->disk, &st);
        r = snap_op_result(op, snap_disk_row(d.ds, p.path, &st));
    }
    if (r == 0)
        json_object_set_new(*op->ret, "copied", json_integer((json_int_t)(copied + more)));
    snap_disk_put(&d);
    return r;
}
SNAP_METHOD(op_detach, "disk.detach")

/* ---- promote ---- */
/* Access rules of single snapshots go with them; a disk that was deleted has none. */
static int promote(struct snap_op *op, const struct snap_disk *d, const struct vmfs_stat *st)
{
    struct origin_path o = {.id = st->origin_id};
    struct snap_handing h = {.clone = d->h->disk};
    if (st->origin_id)
        (void)snap_walk(d->ds, "", match_id, &o, NULL);
    bool rules = o.path != NULL;
    free(o.path);
    snap_table_key(o.uuid, h.from);
    snap_table_key(st->uuid, h.to);
    int r = rules ? snap_rules_hand_begin(d->ds, &h, op->err) : 0;
    if (r == 0)
        r = snap_promote(d->h->disk, op->err);
    if (r == -GR_ELOCKED && fetch_origin(op, d, st->origin_id) == 0)
        r = snap_promote(d->h->disk, op->err);
    if (rules)
        snap_rules_hand_end(d->ds, &h, r == 0);
    return r;
}

static int op_promote(struct snap_op *op)
{
    struct snap_path p;
    struct snap_disk d = {0};
    struct vmfs_stat st;
    int r = snap_op_path(op, "disk", SNAP_PATH_DISK, &p);
    if (r == 0)
        r = snap_disk_get(op, &p, &d);
    if (r < 0)
        return r;
    vmfs_disk_stat(d.h->disk, &st);
    r = promote(op, &d, &st);
    op->forward = false;
    if (r == 0) {
        vmfs_disk_stat(d.h->disk, &st);
        r = snap_op_result(op, snap_disk_row(d.ds, p.path, &st));
    }
    snap_disk_put(&d);
    return r;
}
SNAP_METHOD(op_promote, "disk.promote")

const struct gr_rpc_method snap_clone_methods[] = {
    {"snapshot.clone", rpc_op_clone}, {"disk.detach", rpc_op_detach, .destroys = true}, {"disk.promote", rpc_op_promote, .destroys = true}, {NULL, NULL},
};
