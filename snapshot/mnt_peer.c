/* What hosts that show a datastore as a file system ask of each other: to give a file up, what it looks like, what is open and locked. */
#include "common/buf.h"
#include "common/seam.h"
#include "snapshot/mnt_int.h"
#include <string.h>

#define HOSTS_MAX 256u    /* hosts of a datastore */
#define ASK_MS 20000      /* what another host gets to answer in */
#define STEP_MAX_MS 50u   /* between two questions */
#define JOIN_STEPS 500u   /* of 10 ms: how long a join may take until others can be asked */

/* ---- asking ---- */
static json_t *about(const struct snap_ds *ds, uint64_t id)
{
    return json_pack("{s:s,s:I}", "path", ds->name, "id", (json_int_t)id);
}

/* 1: it answered; 0: gone, or it does not answer now. */
static int ask(struct snap_ds *ds, int slot, const char *method, json_t *params, json_t **ret, struct gr_err *err)
{
    struct snap_place p = {0};
    int r = snap_place_of_slot(ds, slot, &p, err);
    if (r <= 0 || !p.address[0]) {
        json_decref(params);
        return r < 0 ? r : 0;
    }
    r = snap_peer_ask(ds->svc, p.address, method, params, ASK_MS, ret, err);
    if (r == -ECONNREFUSED || r == -ENOENT || r == -EPIPE || r == -ECONNRESET || r == -ETIMEDOUT)
        return 0;
    return r < 0 ? gr_prefix(err, r, "host '%s'", p.host) : 1;
}

/* The same of who has a file: one that has just been started lets nobody in until it has joined again. */
static int ask_holder(struct snap_ds *ds, int slot, const char *method, json_t *params, json_t **ret, struct gr_err *err)
{
    int r = ask(ds, slot, method, params, ret, err);
    return r == -GR_EAUTH ? 0 : r;
}

void mnt_peer_name(struct snap_ds *ds, int slot, char ret[64])
{
    struct snap_place p = {0};
    if (snap_place_of_slot(ds, slot, &p, NULL) == 1)
        memcpy(ret, p.host, sizeof(p.host));
}

int mnt_peer_yield(struct snap_ds *ds, uint64_t id, int slot, struct gr_err *err)
{
    int r = ask_holder(ds, slot, "fs.yield", about(ds, id), NULL, err);
    return r == 1 ? 0 : r == 0 ? -EAGAIN : r;
}

/* What the owner in @slot says of @n: 1 and *n is new, 0: it has it no more, or cannot be asked now. */
static int ask_owner(struct snap_ds *ds, int slot, struct vmfs_node *n, struct gr_err *err)
{
    snap_auto_json json_t *a = NULL;
    int r = ask_holder(ds, slot, "fs.stat", about(ds, n->id), &a, err);
    if (r < 0 || (r == 1 && !json_is_true(json_object_get(a, "held"))))
        return GR_MIN(r, 0);
    if (r == 0) { /* a command does not change files; a host that is gone is recovered */
        struct snap_place p;
        r = snap_place_of_slot(ds, slot, &p, err);
        if (r == 0)
            r = vmfs_recover_slot(ds->v, (unsigned)slot, err);
        else if (r == 1 && !p.address[0])
            return 1;
        return GR_MIN(r, 0);
    }
    json_int_t mode, uid, gid, size, used, atime, mtime, ctime;
    int posix;
    if (json_unpack(a, "{s:I,s:I,s:b,s:I,s:I,s:I,s:I,s:I,s:I}", "size", &size, "used", &used, "posix", &posix, "mode", &mode, "uid", &uid, "gid", &gid, "atime-ns",
                    &atime, "mtime-ns", &mtime, "ctime-ns", &ctime) < 0)
        return gr_fail(err, -GR_EPROTO, "object %llu: another host tells of it in a way that is not understood", (unsigned long long)n->id);
    n->size = (uint64_t)size;
    n->used = (uint64_t)used;
    n->has_posix = posix;
    n->posix = (struct vmfs_posix){(uint32_t)mode, (uint32_t)uid, (uint32_t)gid, atime, mtime, ctime};
    return 1;
}

int mnt_peer_look(struct snap_ds *ds, struct vmfs_node *n, struct gr_err *err)
{
    uint64_t deadline = gr_loop_now_ns(ds->svc->o.loop) + MNT_PATIENCE_MS * 1000000ull;
    int r = 0;
    for (unsigned step = 0; r == 0 && n->owner_slot >= 0; step = GR_MIN(step + 1, STEP_MAX_MS)) {
        r = ask_owner(ds, n->owner_slot, n, err);
        if (r == 0 && gr_loop_now_ns(ds->svc->o.loop) >= deadline)
            r = gr_fail(err, -GR_ELOCKED, "object %llu: its owner does not answer", (unsigned long long)n->id);
        if (r == 0) {
            gr_fiber_sleep_ms(step);
            r = vmfs_look(ds->v, n->id, "", n, err);
        }
    }
    return GR_MIN(r, 0);
}

/* ---- asking all ---- */
struct hosts {
    int slot[HOSTS_MAX];
    unsigned n;
};

static void note_host(void *arg, const struct vmfs_slot_info *i)
{
    struct hosts *h = arg;
    if (i->alive && !i->self && i->address[0] && strcmp(i->state, "host") == 0 && h->n < HOSTS_MAX)
        h->slot[h->n++] = (int)i->slot;
}

static int all_hosts(struct snap_ds *ds, struct hosts *h, struct gr_err *err)
{
    h->n = 0;
    return vmfs_slots(ds->v, note_host, h, err);
}

int mnt_peer_locks(struct snap_ds *ds, uint64_t id, const struct mnt_lock *want, struct mnt_lock *ret, bool *ret_any, struct gr_err *err)
{
    struct hosts h;
    int r = all_hosts(ds, &h, err);
    for (unsigned i = 0; r >= 0 && i < h.n; i++) {
        snap_auto_json json_t *a = NULL;
        json_t *params = about(ds, id), *c;
        json_object_update_new(params, json_pack("{s:I,s:I,s:b,s:b}", "start", (json_int_t)want->start, "end", (json_int_t)want->end, "exclusive", want->exclusive,
                                                 "flock", want->flock));
        r = ask(ds, h.slot[i], "fs.locks", params, &a, err);
        if (r == 0) { /* not known, unless it is gone */
            struct snap_place p;
            r = snap_place_of_slot(ds, h.slot[i], &p, err);
            r = r == 1 ? gr_fail(err, -ENOLCK, "host '%s' does not answer", p.host) : r;
        }
        if (r < 0)
            return r;
        *ret_any |= json_is_true(json_object_get(a, "any"));
        if ((c = json_object_get(a, "conflict"))) {
            *ret = (struct mnt_lock){.start = (uint64_t)json_integer_value(json_object_get(c, "start")), .end = (uint64_t)json_integer_value(json_object_get(c, "end")),
                                    .exclusive = json_is_true(json_object_get(c, "exclusive"))};
            return 1;
        }
    }
    return GR_MIN(r, 0);
}

int mnt_peer_leave_to(struct snap_ds *ds, uint64_t id, struct gr_err *err)
{
    struct hosts h;
    int r = all_hosts(ds, &h, err), found = 0;
    for (unsigned i = 0; r >= 0 && i < h.n; i++) {
        snap_auto_json json_t *a = NULL;
        r = ask(ds, h.slot[i], "fs.lost", about(ds, id), &a, err);
        found |= json_is_true(json_object_get(a, "open"));
    }
    return r < 0 ? r : found;
}

bool mnt_in_use_elsewhere(struct snap_ds *ds, uint64_t id)
{
    struct gr_err err = {0};
    for (unsigned i = 0; !ds->v && i < JOIN_STEPS; i++)
        gr_fiber_sleep_ms(10);
    int r = ds->v ? mnt_peer_leave_to(ds, id, &err) : 1;
    if (r < 0)
        snap_warn(ds->svc, "datastore '%s': object %llu, which has no name, stays until the next join: %s", ds->name, (unsigned long long)id, gr_err_text(&err, r));
    return r != 0;
}

/* ---- being asked ---- */
static int begin(struct snap_op *op, struct snap_ds **ret, uint64_t *ret_id)
{
    const char *name = NULL;
    int r = gr_json_str(op->params, "path", &name, op->err);
    if (r == 0)
        r = gr_json_u64(op->params, "id", ret_id, op->err);
    return r < 0 ? r : snap_ds_get(op->s, name, ret, op->err);
}

static int op_yield(struct snap_op *op)
{
    struct snap_ds *ds = NULL;
    uint64_t id = 0;
    int r = begin(op, &ds, &id);
    if (r < 0)
        return r;
    struct mnt_obj *o = mnt_obj_find(ds, id);
    if (o)
        r = mnt_give_up(o, op->err);
    if (r == 0)
        r = vmfs_release_id(ds->v, id, "a file", op->err); /* held by something else than a mount */
    o = mnt_obj_find(ds, id);
    if (r == -EBUSY && o && !o->handle)
        r = -EAGAIN; /* an operation that waited here was quicker than who asks */
    snap_ds_put(ds);
    return r == -EAGAIN ? gr_fail(op->err, r, "object %llu changes hands already", (unsigned long long)id) : r;
}
SNAP_METHOD(op_yield, "fs.yield")

static int op_stat(struct snap_op *op)
{
    struct snap_ds *ds = NULL;
    struct vmfs_node n;
    uint64_t id = 0;
    int r = begin(op, &ds, &id);
    if (r < 0)
        return r;
    r = vmfs_look(ds->v, id, "", &n, op->err);
    const struct mnt_obj *o = mnt_obj_find(ds, id);
    if (r == 0 && o && o->disk && !o->handle) {
        n.posix = o->posix;
        n.has_posix = o->has_posix;
    }
    snap_ds_put(ds);
    if (r < 0)
        return r;
    return snap_op_result(op, json_pack("{s:b,s:I,s:I,s:b,s:I,s:I,s:I,s:I,s:I,s:I}", "held", n.here, "size", (json_int_t)n.size, "used", (json_int_t)n.used, "posix",
                                        n.has_posix, "mode", (json_int_t)n.posix.mode, "uid", (json_int_t)n.posix.uid, "gid", (json_int_t)n.posix.gid, "atime-ns",
                                        (json_int_t)n.posix.atime_ns, "mtime-ns", (json_int_t)n.posix.mtime_ns, "ctime-ns", (json_int_t)n.posix.ctime_ns));
}
SNAP_METHOD(op_stat, "fs.stat")

static int op_lost(struct snap_op *op)
{
    struct snap_ds *ds = NULL;
    uint64_t id = 0;
    int r = begin(op, &ds, &id);
    if (r < 0)
        return r;
    struct mnt_obj *o = mnt_obj_find(ds, id);
    bool open = o && o->opens;
    if (open)
        o->lost = true;
    snap_ds_put(ds);
    return snap_op_result(op, json_pack("{s:b}", "open", open));
}
SNAP_METHOD(op_lost, "fs.lost")

static int op_locks(struct snap_op *op)
{
    struct snap_ds *ds = NULL;
    uint64_t id = 0;
    bool exclusive = false, flock = false;
    json_t *start = json_object_get(op->params, "start"), *end = json_object_get(op->params, "end");
    int r = json_is_integer(start) && json_is_integer(end) ? 0 : gr_fail(op->err, -EINVAL, "fs.locks: a range is missing");
    if (r == 0)
        r = gr_json_opt_bool(op->params, "exclusive", &exclusive, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "flock", &flock, op->err);
    if (r == 0)
        r = begin(op, &ds, &id);
    if (r < 0)
        return r;
    struct mnt_lock want = {.start = (uint64_t)json_integer_value(start), .end = (uint64_t)json_integer_value(end), .exclusive = exclusive, .flock = flock};
    const struct mnt_obj *o = mnt_obj_find(ds, id);
    const struct mnt_lock *c = o ? mnt_lock_conflict(o, &want) : NULL;
    json_t *a = json_pack("{s:b}", "any", o && o->locks);
    if (a && c)
        json_object_set_new(a, "conflict", json_pack("{s:I,s:I,s:b}", "start", (json_int_t)c->start, "end", (json_int_t)c->end, "exclusive", c->exclusive));
    snap_ds_put(ds);
    return snap_op_result(op, a);
}
SNAP_METHOD(op_locks, "fs.locks")

SNAP_METHOD(mnt_op_serve, "fs.serve")

const struct gr_rpc_method snap_fs_methods[] = {
    {"fs.serve", rpc_mnt_op_serve}, {"fs.yield", rpc_op_yield, true}, {"fs.stat", rpc_op_stat, true}, {"fs.lost", rpc_op_lost, true}, {"fs.locks", rpc_op_locks, true}, {NULL, NULL},
};
