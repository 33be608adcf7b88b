#include "snapshot/expose_int.h"
#include "common/cleanup.h"
#include <stdio.h>
#include <string.h>

int snap_exposures_new(struct gr_loop *loop, struct snap_svc *svc, const struct snap_expose_hooks *hooks, struct snap_exposures **ret,
                       struct gr_err *err)
{
    struct snap_exposures *x = gr_zalloc(sizeof(*x));
    if (!x)
        return gr_fail(err, -ENOMEM, "out of memory");
    *x = (struct snap_exposures){.loop = loop, .svc = svc, .hooks = *hooks};
    *ret = x;
    return 0;
}

void exposure_free(struct snap_exposures *x, struct exposure *e)
{
    for (struct exposure **p = &x->list; *p; p = &(*p)->next) {
        if (*p != e)
            continue;
        *p = e->next;
        break;
    }
    if (e->tie && gr_rpc_untie(x->server, e->connection, exposure_end_tied, e->tie))
        free(e->tie);
    gr_bdev_put(e->bdev);
    free(e->name);
    free(e->initiator);
    free(e);
}

void snap_exposures_free(struct snap_exposures *x)
{
    if (!x)
        return;
    while (x->ending > 0)
        gr_fiber_sleep_ms(10);
    while (x->list)
        exposure_free(x, x->list);
    free(x);
}

static struct exposure *by_id(const struct snap_exposures *x, const char *id)
{
    for (struct exposure *e = x->list; e; e = e->next)
        if (strcmp(e->id, id) == 0)
            return e;
    return NULL;
}

static bool is_exposed(const struct snap_exposures *x, const char *name)
{
    for (struct exposure *e = x->list; e; e = e->next)
        if (strcmp(e->name, name) == 0)
            return true;
    return false;
}

bool snap_exposed_to(const struct snap_exposures *x, const char *name, const char *initiator)
{
    for (struct exposure *e = x->list; e; e = e->next)
        if (strcmp(e->name, name) == 0 && (!e->initiator[0] || strcmp(e->initiator, initiator) == 0))
            return true;
    return false;
}

const char *snap_exposed_to_all(const struct snap_exposures *x)
{
    for (struct exposure *e = x->list; e; e = e->next)
        if (!e->initiator[0])
            return e->name;
    return NULL;
}

void exposure_end(struct snap_exposures *x, struct exposure *e)
{
    gr_auto_free char *name = gr_strdup(e->name);
    exposure_free(x, e);
    if (name && !is_exposed(x, name))
        x->hooks.ended(x->hooks.arg, name);
}

/* @name is @disk itself or a snapshot of it. */
static bool belongs_to(const char *name, const char *disk)
{
    size_t n = strlen(disk);
    return strncmp(name, disk, n) == 0 && (name[n] == 0 || name[n] == '@');
}

static struct exposure *first_of(const struct snap_exposures *x, const char *disk)
{
    for (struct exposure *e = x->list; e; e = e->next)
        if (belongs_to(e->name, disk))
            return e;
    return NULL;
}

int snap_exposures_drop(struct snap_exposures *x, const char *disk, bool only_idle, struct gr_err *err)
{
    struct exposure *e = first_of(x, disk);
    if (e && only_idle)
        return gr_fail(err, -GR_ELOCKED, "%s is exposed%s%s: a backup reads it", e->name, e->initiator[0] ? " to " : "", e->initiator);
    for (; e; e = first_of(x, disk))
        exposure_end(x, e);
    return 0;
}

static json_t *exposure_row(const struct snap_exposures *x, const struct exposure *e)
{
    struct gr_geometry g = {0};
    gr_bdev_geometry(e->bdev, &g);
    json_t *row = json_pack("{s:s,s:s,s:s,s:I,s:b}", "id", e->id, "name", e->name, "initiator", e->initiator, "size", (json_int_t)g.size,
                            "tied", e->connection != 0);
    if (row)
        x->hooks.describe(x->hooks.arg, e->name, row);
    return row;
}

json_t *snap_exposures_list(const struct snap_exposures *x)
{
    json_t *a = json_array();
    for (struct exposure *e = x->list; e; e = e->next)
        json_array_append_new(a, exposure_row(x, e));
    return a;
}

/* ---- methods ---- */
static void end_tied_fiber(void *arg)
{
    struct end_tied *t = arg;
    struct exposure *e = by_id(t->x, t->id);
    if (e)
        exposure_end(t->x, e);
    t->x->ending--;
    free(t);
}

/* The connection has closed: this is called on the loop, what follows may suspend. */
void exposure_end_tied(void *arg)
{
    struct end_tied *t = arg;
    struct exposure *e = by_id(t->x, t->id);
    if (e)
        e->tie = NULL;
    if (gr_fiber_start(t->x->loop, end_tied_fiber, t) < 0)
        free(t);
    else
        t->x->ending++; /* it runs from the loop, later */
}

struct end_tied *exposure_tie(struct snap_exposures *x, const struct exposure *e)
{
    struct end_tied *t = gr_zalloc(sizeof(*t));
    if (!t)
        return NULL;
    t->x = x;
    memcpy(t->id, e->id, sizeof(t->id));
    return t;
}

static int tie(struct snap_exposures *x, struct gr_rpc_call *call, struct exposure *e, struct gr_err *err)
{
    struct end_tied *t = exposure_tie(x, e);
    int r = t ? gr_rpc_on_close(call, exposure_end_tied, t) : -ENOMEM;
    if (r < 0) {
        free(t);
        return gr_fail(err, r, "%s: cannot be tied to the connection: %s", e->name, gr_code_text(r));
    }
    e->tie = t;
    e->connection = gr_rpc_connection(call);
    return 0;
}

/* What belongs to another host's disk is asked of it. 0: ours; 1: the owner has answered; or an error. */
static int ask_owner(struct snap_exposures *x, const char *disk, const char *method, json_t *params, json_t **ret, struct gr_err *err)
{
    struct snap_place owner = {0};
    int r = snap_svc_owner(x->svc, disk, &owner, err);
    if (r <= 0 || json_is_true(json_object_get(params, "forwarded")))
        return r < 0 ? r : 0;
    if (json_is_true(json_object_get(params, "tie")))
        return gr_fail(err, -EOPNOTSUPP, "%s is owned by host '%s': an exposure cannot be tied to a connection there", disk, owner.host);
    if (!owner.address[0])
        return gr_fail(err, -GR_ELOCKED, "%s is owned by host '%s', where a command is at work on it: try again", disk, owner.host);
    json_t *copy = json_copy(params);
    json_object_set_new(copy, "forwarded", json_true());
    r = snap_peer_ask(x->svc, owner.address, method, copy, 30000, ret, err);
    return r < 0 ? r : 1;
}

int exposure_new(struct snap_exposures *x, const char *name, const char *initiator, const char *had, struct exposure **ret, struct gr_err *err)
{
    struct snap_place place = {0};
    unsigned n = 0;
    uint8_t id[16];
    for (struct exposure *e = x->list; e; e = e->next)
        n++;
    if (n >= EXPOSURES_MAX)
        return gr_fail(err, -EMFILE, "%s: %u snapshots are exposed already, no more at once", name, n);
    int r = snap_svc_find(x->svc, name, "snapshot.expose", 0, &place, err);
    if (r < 0)
        return r;
    if (!place.bdev)
        return gr_fail(err, -GR_ELOCKED, "%s is owned by host '%s'", name, place.host);
    struct exposure *e = gr_zalloc(sizeof(*e));
    if (!e) {
        gr_bdev_put(place.bdev);
        return gr_fail(err, -ENOMEM, "%s: out of memory", name);
    }
    *e = (struct exposure){.next = x->list, .bdev = place.bdev, .name = gr_strdup(name), .initiator = gr_strdup(initiator)};
    x->list = e;
    if (!e->name || !e->initiator) {
        exposure_free(x, e);
        return gr_fail(err, -ENOMEM, "%s: out of memory", name);
    }
    gr_loop_world(x->loop)->random(gr_loop_world(x->loop)->arg, id, sizeof(id));
    for (unsigned i = 0; i < sizeof(id) && !had; i++)
        snprintf(e->id + 2 * i, 3, "%02x", id[i]);
    if (had)
        snprintf(e->id, sizeof(e->id), "%s", had);
    *ret = e;
    return 0;
}

struct wish {
    const char *disk, *initiator;
    bool tie;
    char *name; /* DS/PATH@SNAP */
};

static int parse_wish(const struct snap_exposures *x, json_t *params, struct wish *w, struct gr_err *err)
{
    const char *snapshot = NULL;
    struct snap_path p;
    w->initiator = "";
    int r = gr_json_str(params, "disk", &w->disk, err);
    if (r == 0)
        r = gr_json_str(params, "snapshot", &snapshot, err);
    if (r == 0)
        r = gr_json_opt_str(params, "initiator", &w->initiator, err);
    if (r == 0)
        r = gr_json_opt_bool(params, "tie", &w->tie, err);
    if (r < 0)
        return r;
    if (!w->initiator[0] && x->hooks.need_initiator(x->hooks.arg))
        return gr_fail(err, -GR_EUSAGE, "%s@%s: the portal is open to other machines; name the initiator that may read", w->disk, snapshot);
    w->name = gr_asprintf("%s@%s", w->disk, snapshot);
    return w->name ? snap_path_parse(w->name, SNAP_PATH_SNAPSHOT, &p, err) : gr_fail(err, -ENOMEM, "out of memory");
}

static int op_expose(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct snap_exposures *x = arg;
    struct wish w = {0};
    struct exposure *e = NULL;
    int r = parse_wish(x, params, &w, err);
    if (r == 0)
        r = ask_owner(x, w.disk, "snapshot.expose", params, ret, err);
    if (r == 0)
        r = exposure_new(x, w.name, w.initiator, NULL, &e, err);
    if (r == 0 && w.tie && (r = tie(x, call, e, err)) < 0)
        exposure_free(x, e);
    else if (r == 0 && !(*ret = exposure_row(x, e)))
        r = gr_fail(err, -ENOMEM, "out of memory for the answer");
    free(w.name);
    return r < 0 ? r : 0;
}

static int op_unexpose(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct snap_exposures *x = arg;
    const char *id = NULL, *disk = NULL;
    int r = gr_json_str(params, "id", &id, err);
    if (r == 0)
        r = gr_json_opt_str(params, "disk", &disk, err);
    if (r < 0)
        return r;
    struct exposure *e = by_id(x, id);
    if (!e && disk) {
        r = ask_owner(x, disk, "snapshot.unexpose", params, ret, err);
        if (r != 0)
            return r < 0 ? r : 0;
    }
    if (!e)
        return gr_fail(err, -ENOENT, "nothing is exposed under the id '%.40s'", id);
    exposure_end(x, e);
    return 0;
}

static const struct gr_rpc_method methods[] = {{"snapshot.expose", op_expose}, {"snapshot.unexpose", op_unexpose}, {NULL, NULL}};

int snap_exposures_serve(struct snap_exposures *x, struct gr_rpc_server *server)
{
    x->server = server;
    return gr_rpc_server_add(server, methods, x);
}
