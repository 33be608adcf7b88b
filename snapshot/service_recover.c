/* Method datastore.recover: taking over from hosts that are gone, at once; and, where nothing fences, from one that somebody says is. */
#include "snapshot/service_int.h"
#include <string.h>

struct search {
    const char *host;
    int slot; /* -1: nobody is called so */
};

static void match(void *arg, const struct vmfs_slot_info *i)
{
    struct search *s = arg;
    if (!i->self && strcmp(i->state, "free") != 0 && strcmp(i->host_name, s->host) == 0)
        s->slot = (int)i->slot;
}

/* Joined, and so may others be: the fence or the life locks tell. */
static int recover_other(struct snap_op *op, struct snap_ds *ds, const char *host)
{
    struct search s = {.host = host, .slot = -1};
    int r = vmfs_slots(ds->v, match, &s, op->err);
    if (r == 0 && s.slot < 0)
        return gr_fail(op->err, -ENOENT, "datastore '%s': no other host '%s' has a place there: nothing is to be recovered", ds->name, host);
    if (r == 0)
        r = vmfs_recover_slot(ds->v, (unsigned)s.slot, op->err);
    return r != 0 ? GR_MIN(r, 0) : gr_fail(op->err, -GR_ELOCKED, "datastore '%s': host '%s' is not gone: leave the datastore there, or end the host", ds->name, host);
}

/* With the lock held: the datastore @name, joined; *ret_took: just now, which was the taking over where one host is alone. */
static int join(struct snap_op *op, const char *name, const char *host, struct snap_ds **ret, bool *ret_took)
{
    const char *paths[VMFS_DEVICES_MAX];
    struct snap_svc *s = op->s;
    json_t *devices = NULL;
    unsigned n;
    struct snap_ds *ds = snap_ds_find(s, name);
    bool listed = json_array_size(json_object_get(op->params, "devices")) > 0;
    int r = 0;
    if (!ds && !listed)
        return gr_fail(op->err, -ENOENT, "no datastore '%s' here: name its devices, too", name);
    if (ds && ds->leaving)
        return gr_fail(op->err, -GR_ELOCKED, "datastore '%s' is being left", name);
    if (ds && listed)
        return gr_fail(op->err, -EEXIST, "datastore '%s' is registered here with its devices already: leave them away", name);
    if (!ds)
        r = snap_op_devices(op, &devices, paths, &n);
    s->gone = host;
    *ret_took = !ds || !ds->v;
    if (r == 0 && !ds)
        r = snap_op_register(op, name, devices, &ds);
    else if (r == 0 && !ds->v)
        r = snap_ds_join(s, ds, op->err);
    s->gone = NULL;
    *ret = ds;
    return r;
}

static int recover_host(struct snap_op *op, const char *name, const char *host)
{
    struct snap_ds *ds = NULL;
    struct vmfs_info info;
    bool took = false;
    gr_fmutex_lock(&op->s->lock);
    int r = join(op, name, host, &ds, &took);
    if (r == 0)
        ds->users++;
    gr_fmutex_unlock(&op->s->lock);
    if (r < 0)
        return r;
    vmfs_info(ds->v, &info);
    if (!took || !info.one_host)
        r = recover_other(op, ds, host);
    snap_ds_put(ds);
    if (r < 0)
        return r;
    snap_svc_open_all(op->s);
    snap_note(op->s, GR_LOG_NOTE, "datastore '%s': taken over from host '%s', as was asked for", name, host);
    return snap_op_result(op, json_pack("{s:s,s:s,s:i}", "name", name, "host", host, "recovered", 1));
}

int snap_op_datastore_recover(struct snap_op *op)
{
    const char *name = NULL, *host = NULL;
    bool yes = false;
    struct snap_ds *ds = NULL;
    int r = gr_json_str(op->params, "name", &name, op->err);
    if (r == 0)
        r = snap_datastore_name_check(name, op->err);
    if (r == 0)
        r = gr_json_opt_str(op->params, "host", &host, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "yes", &yes, op->err);
    if (r < 0)
        return r;
    if (host && !yes)
        return gr_fail(op->err, -GR_EUSAGE,
                       "datastore '%s': where nothing fences, taking over from a host that is only silent damages what it writes when it goes on: make sure that "
                       "'%s' is off, then add --yes",
                       name, host);
    if (host)
        return recover_host(op, name, host);
    r = snap_ds_get(op->s, name, &ds, op->err);
    if (r < 0)
        return r;
    r = vmfs_recover(ds->v, op->err);
    snap_ds_put(ds);
    return r < 0 ? r : snap_op_result(op, json_pack("{s:i}", "recovered", r));
}
