/* The services of the other hosts that share our datastores: how they are reached, and what all of them are told. */
#include "snapshot/service_int.h"
#include <string.h>

int snap_peer_ask(struct snap_svc *s, const char *address, const char *method, json_t *params, int64_t timeout_ms, json_t **ret, struct gr_err *err)
{
    struct gr_rpc_client *peer = NULL;
    int r = snap_peer_connect(s, address, &peer, err);
    if (r < 0)
        json_decref(params);
    else
        r = gr_rpc_call(peer, method, params, NULL, NULL, timeout_ms, ret, err);
    gr_rpc_client_free(peer);
    return r;
}

struct telling {
    struct snap_ds *ds;
    json_t *rows;
    /* … all of them at once */
    const char *method;
    json_t *params;
    size_t next;
    unsigned under_way;
    int untold;
    struct gr_err *err;
    struct gr_fqueue over;
};

static void note_peer(void *arg, const struct vmfs_slot_info *i)
{
    const struct telling *t = arg;
    if (!i->alive || i->self || !i->address[0] || strcmp(i->state, "host") != 0)
        return;
    struct snap_place p;
    snap_place_of_host(t->ds, i, &p);
    json_array_append_new(t->rows, json_pack("{s:s,s:s}", "host", p.host, "address", p.address));
}

static void tell_one(void *arg)
{
    struct telling *t = arg;
    struct gr_err e = {0};
    json_t *row = json_array_get(t->rows, t->next++);
    int r = snap_peer_ask(t->ds->svc, json_string_value(json_object_get(row, "address")), t->method, json_incref(t->params), SNAP_TELL_MS, NULL, &e);
    if (r < 0) {
        t->untold++;
        gr_fail(t->err, r, "host '%s': %s", json_string_value(json_object_get(row, "host")), gr_err_text(&e, r));
    }
    if (--t->under_way == 0)
        gr_fqueue_wake_all(&t->over);
}

int snap_ds_tell(struct snap_ds *ds, const char *method, json_t *params, struct gr_err *err)
{
    snap_auto_json json_t *peers = json_array();
    snap_auto_json json_t *own = params;
    struct telling t = {.ds = ds, .rows = peers, .method = method, .params = own, .err = err};
    if (!ds->v)
        return gr_fail(err, -GR_ELOCKED, "datastore '%s' is being left", ds->name);
    int r = own && peers ? vmfs_slots(ds->v, note_peer, &t, err) : gr_fail(err, -ENOMEM, "out of memory");
    for (size_t i = 0; r == 0 && i < json_array_size(peers); i++) {
        t.under_way++;
        r = gr_fiber_start(ds->svc->o.loop, tell_one, &t);
        if (r < 0) {
            t.under_way--;
            gr_fail(err, r, "out of memory");
        }
    }
    while (t.under_way)
        gr_fqueue_wait(&t.over);
    return r < 0 ? r : t.untold;
}

int snap_svc_tell(struct snap_svc *s, const char *name, const char *method, json_t *params, struct gr_err *err)
{
    struct snap_ds *ds = NULL;
    int r = snap_ds_get(s, name, &ds, err);
    if (r < 0) {
        json_decref(params);
        return r;
    }
    r = snap_ds_tell(ds, method, params, err);
    snap_ds_put(ds);
    return r;
}
