/* Exposures that another process goes on with: the same snapshots under the same ids, held before the one that held them lets go of the home
 * for good (nothing is deleted in between: a snapshot that is exposed cannot be, and the heir holds it before it serves a request). */
#include "common/buf.h"
#include "common/cleanup.h"
#include "snapshot/expose_int.h"
#include <stdio.h>
#include <string.h>

static void uuid_of(const struct exposure *e, char ret[37], uint64_t *ret_size)
{
    struct gr_geometry g = {0};
    gr_bdev_geometry(e->bdev, &g);
    gr_uuid_format(g.uuid, ret);
    *ret_size = g.size;
}

/* False: it goes with a connection that is cut. */
static bool comes_loose(struct snap_exposures *x, struct exposure *e)
{
    if (!e->connection)
        return true;
    if (!gr_rpc_may_leave(x->server, e->connection) || !gr_rpc_untie(x->server, e->connection, exposure_end_tied, e->tie))
        return false;
    free(gr_take(e->tie));
    return true;
}

json_t *snap_exposures_save(struct snap_exposures *x)
{
    json_t *list = json_array();
    for (struct exposure *e = x->list; e; e = e->next) {
        char uuid[37];
        uint64_t size;
        if (!comes_loose(x, e))
            continue;
        uuid_of(e, uuid, &size);
        json_array_append_new(list, json_pack("{s:s,s:s,s:s,s:s,s:I,s:I}", "id", e->id, "name", e->name, "initiator", e->initiator, "uuid", uuid, "size",
                                              (json_int_t)size, "connection", (json_int_t)e->connection));
    }
    return list;
}

static int load_one(struct snap_exposures *x, json_t *o, struct gr_err *err)
{
    const char *id = NULL, *name = NULL, *initiator = "", *uuid = NULL;
    uint64_t connection = 0, size, size_before = 0;
    struct exposure *e = NULL;
    char now[37];
    int r = gr_json_str(o, "id", &id, err);
    if (r == 0)
        r = gr_json_str(o, "name", &name, err);
    if (r == 0)
        r = gr_json_str(o, "uuid", &uuid, err);
    if (r == 0)
        r = gr_json_opt_str(o, "initiator", &initiator, err);
    if (r == 0)
        r = gr_json_opt_u64(o, "connection", &connection, err);
    if (r == 0)
        r = gr_json_u64(o, "size", &size_before, err);
    if (r == 0)
        r = exposure_new(x, name, initiator, id, &e, err);
    if (r < 0)
        return r;
    e->connection = connection;
    uuid_of(e, now, &size);
    if (strcmp(now, uuid) == 0 && size == size_before)
        return 0;
    exposure_free(x, e);
    return gr_fail(err, -ESTALE, "%s is another snapshot than it was", name);
}

int snap_exposures_load(struct snap_exposures *x, json_t *list, struct gr_err *err)
{
    int missing = 0;
    json_t *o;
    size_t i = json_array_size(list);
    while (i-- > 0) { /* the newest is the first of the list */
        o = json_array_get(list, i);
        missing += load_one(x, o, err) < 0;
    }
    return missing;
}

void snap_exposures_tie(struct snap_exposures *x)
{
    for (struct exposure *e = x->list, *next; e; e = next) {
        next = e->next;
        if (!e->connection || e->tie)
            continue;
        struct end_tied *t = exposure_tie(x, e);
        if (t && gr_rpc_tie(x->server, e->connection, exposure_end_tied, t) == 0) {
            e->tie = t;
            continue;
        }
        free(t);
        exposure_end(x, e);
        next = x->list; /* that may have suspended */
    }
}
