/* disk.move, disk.take: a disk changes hands while initiators use it. Its state is brought home while they go on; then they are asked to
 * log in anew, what is left is brought home, and the other host takes the disk. Who logs in here meanwhile waits, and is led there. */
#include "common/buf.h"
#include "snapshot/service_int.h"
#include "vmfs/files.h"
#include <string.h>

#define AHEAD_MAX 3u
#define AHEAD_ENOUGH_NS 4000000ull

struct search {
    const char *wanted;
    unsigned found;
    struct vmfs_slot_info info;
};

static void match_host(void *arg, const struct vmfs_slot_info *s)
{
    struct search *f = arg;
    char uuid[37];
    gr_uuid_format(s->host_uuid, uuid);
    if (strcmp(s->state, "host") != 0 ||
        (strcmp(f->wanted, s->host_name) != 0 && strcmp(f->wanted, uuid) != 0 && (!s->portal[0] || strcmp(f->wanted, s->portal) != 0)))
        return;
    f->found++;
    f->info = *s;
}

/* The living host that @wanted names: by its name, its UUID or its portal. */
static int find_host(struct snap_ds *ds, const char *wanted, struct search *f, struct gr_err *err)
{
    *f = (struct search){.wanted = wanted};
    int r = vmfs_slots(ds->v, match_host, f, err);
    if (r < 0)
        return r;
    if (f->found == 0)
        return gr_fail(err, -ENOENT, "no host '%s' has joined datastore '%s': granary datastore info names those that have", wanted, ds->name);
    if (f->found > 1)
        return gr_fail(err, -GR_EUSAGE, "%u hosts of datastore '%s' are called '%s': say it by UUID or portal", f->found, ds->name, wanted);
    if (!f->info.alive)
        return gr_fail(err, -GR_ELOCKED, "host '%s' is gone", f->info.host_name);
    if (!f->info.address[0] && !f->info.self)
        return gr_fail(err, -GR_ELOCKED, "host '%s' serves nothing: run granary up there", f->info.host_name);
    return 0;
}

/* What is left for the moment when nobody may write is what is written during the last of these, so there are several, until one is quick. */
static int bring_home(struct snap_op *op, struct vmfs *v)
{
    int r = 0;
    uint64_t took_ns = AHEAD_ENOUGH_NS;
    for (unsigned i = 0; r == 0 && i < AHEAD_MAX && took_ns >= AHEAD_ENOUGH_NS; i++) {
        uint64_t began_ns = gr_loop_now_ns(op->s->o.loop);
        r = vmfs_checkpoint(v, op->err);
        took_ns = gr_loop_now_ns(op->s->o.loop) - began_ns;
    }
    return r;
}

struct stall { /* from when initiators are asked to go, until the other host has the disk */
    uint64_t gone_ns, ns; /* until none is there any more; all of it */
};

/* Nobody else's before the answer: the disk is free in between, and whoever asks here waits. @peer: the service of @to. */
static int change_hands(struct snap_op *op, struct snap_disk *d, const struct snap_path *p, const struct vmfs_slot_info *to, struct gr_rpc_client *peer,
                        struct stall *ret)
{
    struct snap_moving m = {.path = p->path, .next = d->ds->moving};
    gr_auto_free char *disk = gr_asprintf("%s/%s", p->ds, p->path);
    if (!disk)
        return gr_fail(op->err, -ENOMEM, "out of memory");
    uint64_t id = vmfs_disk_id(d->h->disk);
    snap_passes_stop(op->s, d->h); /* while initiators still go on */
    int r = bring_home(op, d->ds->v);
    if (r < 0)
        return r;
    uint64_t begin = gr_loop_now_ns(op->s->o.loop);
    d->ds->moving = &m;
    r = snap_disk_drop(op->s, d, false, op->err);
    if (r == 0) {
        uint64_t quiet = gr_loop_now_ns(op->s->o.loop);
        r = vmfs_release_id(d->ds->v, id, p->path, op->err);
        if (r == 0)
            r = gr_rpc_call(peer, "disk.take", json_pack("{s:s}", "disk", disk), NULL, NULL, SNAP_WAIT_MS, NULL, op->err);
        *ret = (struct stall){.gone_ns = quiet - begin, .ns = gr_loop_now_ns(op->s->o.loop) - begin};
        if (r == 0)
            snap_note(op->s, GR_LOG_NOTE, "disk %s has moved to host '%s' within %.1f ms: its initiators were gone after %.1f ms", disk, to->host_name,
                      (double)ret->ns / 1e6, (double)ret->gone_ns / 1e6);
    }
    struct snap_moving **q = &d->ds->moving;
    while (*q != &m)
        q = &(*q)->next;
    *q = m.next;
    gr_fqueue_wake_all(&op->s->wake);
    return r;
}

/* The way to the other host is open before anybody here is disturbed. */
static int move_to(struct snap_op *op, struct snap_disk *d, const struct snap_path *p, const struct vmfs_slot_info *to, struct stall *ret)
{
    struct gr_rpc_client *peer = NULL;
    struct snap_place host;
    snap_place_of_host(d->ds, to, &host);
    int r = snap_peer_connect(op->s, host.address, &peer, op->err);
    if (r == 0)
        r = change_hands(op, d, p, to, peer, ret);
    gr_rpc_client_free(peer);
    return r;
}

static int op_move(struct snap_op *op)
{
    struct snap_path p;
    struct snap_disk d = {0};
    struct search f;
    const char *host = NULL;
    struct stall stall = {0};
    int r = snap_op_path(op, "disk", SNAP_PATH_DISK, &p);
    if (r == 0)
        r = gr_json_str(op->params, "host", &host, op->err);
    if (r == 0)
        r = snap_disk_get(op, &p, &d);
    if (r < 0)
        return r;
    r = find_host(d.ds, host, &f, op->err);
    if (r == 0 && !f.info.self)
        r = move_to(op, &d, &p, &f.info, &stall);
    snap_disk_put(&d);
    if (r < 0)
        return gr_prefix(op->err, r, "disk %s/%s does not move", p.ds, p.path);
    return snap_op_result(op, json_pack("{s:s,s:s,s:f,s:f}", "disk", json_string_value(json_object_get(op->params, "disk")), "host", f.info.host_name,
                                        "seconds", (double)stall.ns / 1e9, "until-gone", (double)stall.gone_ns / 1e9));
}
SNAP_METHOD(op_move, "disk.move")

static int op_take(struct snap_op *op)
{
    struct snap_path p;
    struct snap_ds *ds = NULL;
    struct snap_handle *h = NULL;
    int r = snap_op_path_ds(op, "disk", SNAP_PATH_DISK, &p, &ds);
    if (r < 0)
        return r;
    r = snap_handle_get(op->s, ds, p.path, op->method, SNAP_WAIT_MS, &h, NULL, op->err);
    if (r == 0)
        h->users--;
    snap_ds_put(ds);
    return r;
}
SNAP_METHOD(op_take, "disk.take")

const struct gr_rpc_method snap_move_methods[] = {
    {"disk.move", rpc_op_move},
    {"disk.take", rpc_op_take},
    {NULL, NULL},
};
