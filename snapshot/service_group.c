/* Snapshots of one instant over disks of several hosts. The host that owns the first disk leads:
 *
 *   prepare   a folder granary.groups/.ID with one entry for each disk
 *   hold      every host stops admitting writes to its disks, for HOLD_MS at most
 *   take      every host takes the snapshot, under a name that says what it is part of, and goes on; if it was held too long, all is given up
 *   decide    the folder is renamed to granary.groups/ID: from here the group exists
 *   settle    every host looks: the folder with its entry is there, the snapshots get their name; else they are deleted
 *
 * Who finds no decision and will not wait any longer (its deadline; a disk that is opened after its owner died) makes an empty folder
 * of that name, and the leader's rename fails: so all follow one decision, whoever dies. The last to settle removes the folder; who opens the disk of one that
 * died before it could say so signs off for it; folders of leaders that are gone are removed at the next join. docs/vmfs.md, "One instant on several hosts".
 *
 * Methods, for other hosts only:
 *   snapshot.hold {"disks","group","name"}     snapshot.take {"disks","group"}     snapshot.settle {"disks","group"} → rows as snapshot.create */
#include "common/buf.h"
#include "snapshot/service_int.h"
#include <string.h>

#define GROUPS "granary.groups"
#define HOLD_MS 100u
#define SETTLE_MS 3000u
#define TRIES 4u        /* of a group that could not be held at the same time */
#define PAUSE_MS 50u    /* before each but the first */
#define DECIDE_MS 2000u /* later than that after the first hold was asked for nothing is decided any more: somebody may be about to give up */
#define CALL_MS 10000
#define ID_MAX 80u /* UUID-SLOT-GENERATION of the leader */

struct snap_group {
    struct snap_group *next;
    struct snap_svc *s;
    struct snap_ds *ds;
    char id[ID_MAX];
    char name[VMFS_NAME_MAX + 1];
    int64_t expires_s;
    struct snap_disk *disks; /* all of @ds, open here */
    struct vmfs_disk **raw;
    unsigned n;
    bool led; /* from here, by a request that has it alone: no other host has a say in when it is taken and settled */
    bool holding, held, taken, taking, settling, settled;
    int result;         /* of settling: 1 the group exists, 0 it does not, negative */
    struct gr_err err;
    json_t *rows; /* of the snapshots, when it exists */
    struct gr_fqueue changed;
};

/* ---- names ---- */
static int temp_name(const char *id, const char *name, char ret[VMFS_NAME_MAX + 1], struct gr_err *err)
{
    int n = snprintf(ret, VMFS_NAME_MAX + 1, SNAP_GROUP_PREFIX "%s.%s", id, name);
    return n <= (int)VMFS_NAME_MAX ? 0 : gr_fail(err, -GR_EUSAGE, "snapshot name '%.40s…': %zu bytes are too many for disks of several hosts", name, strlen(name));
}

static bool split_temp(const char *temp, char id[ID_MAX], const char **ret_name)
{
    const char *p = temp + strlen(SNAP_GROUP_PREFIX), *dot = strchr(p, '.');
    if (strncmp(temp, SNAP_GROUP_PREFIX, strlen(SNAP_GROUP_PREFIX)) != 0 || !dot || dot - p >= (int)ID_MAX)
        return false;
    snprintf(id, ID_MAX, "%.*s", (int)(dot - p), p);
    *ret_name = dot + 1;
    return true;
}

static bool id_ok(const char *id)
{
    return strlen(id) < ID_MAX && id[strspn(id, "0123456789abcdef-")] == 0 && strlen(id) > 36;
}

static int path_of(const char *id, bool prepared, uint64_t disk, char ret[256])
{
    int n = snprintf(ret, 256, GROUPS "/%s%s", prepared ? "." : "", id);
    return disk ? snprintf(ret + n, 256 - (size_t)n, "/%016llx", (unsigned long long)disk) : n;
}

/* ---- the decision ---- */
/* 1: the group exists, with @disk in it; 0: it does not, and never will. */
static int decision(struct snap_ds *ds, const char *id, uint64_t disk, struct gr_err *err)
{
    char folder[256], entry[256];
    struct vmfs_stat st;
    path_of(id, false, 0, folder);
    path_of(id, false, disk, entry);
    for (;;) {
        int r = vmfs_stat(ds->v, folder, &st, err);
        if (r == 0) {
            r = vmfs_stat(ds->v, entry, &st, err);
            return r == 0 ? 1 : r == -ENOENT ? 0 : r;
        }
        if (r == -ENOENT)
            r = vmfs_mkdir(ds->v, folder, false, err);
        if (r == 0)
            return 0;
        if (r != -EEXIST)
            return r;
    }
}

/* @disk has followed the decision. */
static void sign_off(struct snap_ds *ds, const char *id, uint64_t disk)
{
    char path[256];
    path_of(id, false, disk, path);
    (void)vmfs_remove(ds->v, path, NULL);
    path_of(id, false, 0, path);
    (void)vmfs_remove(ds->v, path, NULL); /* by the last: it is empty then */
}

static void remove_prepared(struct snap_ds *ds, const char *id, const uint64_t *disks, size_t n)
{
    char path[256];
    for (size_t i = 0; i < n; i++) {
        path_of(id, true, disks[i], path);
        (void)vmfs_remove(ds->v, path, NULL);
    }
    path_of(id, true, 0, path);
    (void)vmfs_remove(ds->v, path, NULL);
}

/* ---- this host's part ---- */
static struct snap_group *part_find(struct snap_svc *s, const char *id)
{
    struct snap_group *g = s->groups;
    while (g && strcmp(g->id, id) != 0)
        g = g->next;
    return g;
}

bool snap_group_under_way(const struct snap_svc *s, const uint8_t group[16])
{
    char text[37];
    gr_uuid_format(group, text);
    for (const struct snap_group *g = s->groups; g; g = g->next)
        if (!g->settled && strncmp(g->id, text, strlen(text)) == 0)
            return true;
    return false;
}

static void give_back(struct snap_group *g)
{
    while (g->n)
        snap_disk_put(&g->disks[--g->n]);
}

static void part_free(struct snap_group *g)
{
    for (struct snap_group **p = &g->s->groups; *p; p = &(*p)->next)
        if (*p == g) {
            *p = g->next;
            break;
        }
    give_back(g);
    json_decref(g->rows);
    free(g->disks);
    free(g->raw);
    free(g);
}

/* Take what is in @disks over. */
static int part_new(struct snap_svc *s, const char *id, const struct snap_new *new, const struct snap_disk *disks, unsigned n, struct snap_group **ret,
                    struct gr_err *err)
{
    struct snap_group *g = gr_zalloc(sizeof(*g));
    if (g) {
        *g = (struct snap_group){.s = s, .ds = disks[0].ds, .disks = gr_alloc(n * sizeof(*g->disks)), .raw = gr_alloc(n * sizeof(*g->raw))};
        snprintf(g->id, sizeof(g->id), "%s", id);
        snprintf(g->name, sizeof(g->name), "%s", new->name);
        g->expires_s = new->expires_s;
    }
    if (!g || !g->disks || !g->raw) {
        if (g) {
            free(g->disks);
            free(g->raw);
        }
        free(g);
        return gr_fail(err, -ENOMEM, "snapshot of %u disks: out of memory", n);
    }
    for (; g->n < n; g->n++) {
        g->disks[g->n] = disks[g->n];
        g->raw[g->n] = disks[g->n].h->disk;
    }
    g->next = s->groups;
    s->groups = g;
    *ret = g;
    return 0;
}

/* [sync] */
static int part_take(struct snap_group *g, struct gr_err *err)
{
    char temp[VMFS_NAME_MAX + 1];
    char text[37];
    uint8_t uuid[16];
    snprintf(text, sizeof(text), "%.36s", g->id);
    if (gr_uuid_parse(text, uuid) < 0 || temp_name(g->id, g->name, temp, err) < 0)
        return -GR_EUSAGE;
    if (!g->held || g->taken || g->settling)
        return gr_fail(err, -EAGAIN, "snapshot '%s': its disks could not be held any longer, try again", g->name);
    g->taken = true; /* perhaps in part: whatever there is gets settled */
    g->held = false;
    return snap_create_held(g->raw, g->n, &(struct snap_new){.name = temp, .expires_s = g->expires_s}, uuid, err);
}

static json_t *rows_of(const struct snap_group *g)
{
    json_t *a = json_array();
    for (unsigned i = 0; i < g->n; i++) {
        struct snap_info info;
        if (snap_find(g->raw[i], g->name, &info, NULL) == 0)
            json_array_append_new(a, snap_info_row(g->ds->name, g->disks[i].h->path, &info));
    }
    return a;
}

/* Follow the decision; everybody goes on with what they were doing. The same for whoever comes second. */
static int part_settle(struct snap_group *g, struct gr_err *err)
{
    char temp[VMFS_NAME_MAX + 1] = "";
    while (g->settling && !g->settled)
        gr_fqueue_wait(&g->changed);
    if (g->settled) {
        *err = g->err;
        return g->result;
    }
    g->settling = true;
    while (g->holding || g->taking) /* with these disks */
        gr_fqueue_wait(&g->changed);
    int r = g->taken ? decision(g->ds, g->id, vmfs_disk_id(g->raw[0]), &g->err) : 0;
    (void)temp_name(g->id, g->name, temp, NULL);
    for (unsigned i = 0; r == 1 && i < g->n; i++)
        if (snap_rename(g->raw[i], temp, g->name, &g->err) < 0)
            snap_warn(g->s, "snapshot '%s' of a group keeps its name '%s' until its disk is opened again: %s", g->name, temp, g->err.text);
    if (g->held)
        snap_resume(g->raw, g->n);
    g->held = false;
    if (r == 1 && vmfs_checkpoint(g->ds->v, &g->err) == 0)
        for (unsigned i = 0; i < g->n; i++)
            sign_off(g->ds, g->id, vmfs_disk_id(g->raw[i]));
    struct snap_info info;
    for (unsigned i = 0; r == 0 && g->taken && i < g->n; i++)
        if (snap_find(g->raw[i], temp, &info, NULL) == 0)
            (void)snap_delete(g->raw[i], temp, false, &g->err);
    g->rows = r == 1 ? rows_of(g) : json_array();
    give_back(g);
    g->result = r;
    g->settled = true;
    gr_fqueue_wake_all(&g->changed);
    *err = g->err;
    return r;
}

/* Nobody waits for a leader for ever. */
static void deadline(void *arg)
{
    struct snap_group *g = arg;
    struct snap_svc *s = g->s;
    struct gr_err err = {0};
    uint64_t end = gr_loop_now_ns(s->o.loop) + HOLD_MS * 1000000ull;
    while (g->held && !g->settled && gr_loop_now_ns(s->o.loop) < end)
        gr_fqueue_wait_ms(&g->changed, (end - gr_loop_now_ns(s->o.loop)) / 1000000 + 1);
    if (g->held) { /* whoever writes is not held up for a host that is silent; nobody takes it any more */
        g->held = false;
        snap_resume(g->raw, g->n);
    }
    end += (SETTLE_MS - HOLD_MS) * 1000000ull;
    while (!g->settled && gr_loop_now_ns(s->o.loop) < end)
        gr_fqueue_wait_ms(&g->changed, (end - gr_loop_now_ns(s->o.loop)) / 1000000 + 1);
    if (!g->settled) {
        int r = part_settle(g, &err);
        snap_warn(s, "snapshot '%s' of several hosts: who leads it was silent, %s", g->name, r == 1 ? "it exists" : r == 0 ? "it was given up" : gr_err_text(&err, r));
    }
    end = gr_loop_now_ns(s->o.loop) + SETTLE_MS * 1000000ull;
    while (!s->ending && gr_loop_now_ns(s->o.loop) < end) /* who asks late hears the result */
        gr_fqueue_wait_ms(&s->wake, 100);
    part_free(g);
    s->parts--;
    gr_fqueue_wake_all(&s->wake);
}

/* ---- methods ---- */
static int open_members(struct snap_op *op, struct snap_disk **ret, unsigned *ret_n)
{
    json_t *list;
    int r = gr_json_array(op->params, "disks", &list, op->err);
    size_t n = json_array_size(list);
    struct snap_path *p = r == 0 ? gr_alloc(sizeof(*p)) : NULL;
    struct snap_disk *disks = n && n <= SNAP_GROUP_MAX ? gr_zalloc(n * sizeof(*disks)) : NULL;
    unsigned k = 0;
    if (r == 0 && (!p || !disks))
        r = gr_fail(op->err, p ? -GR_EUSAGE : -ENOMEM, "%zu disks for one instant", n);
    for (; r == 0 && k < n; k++) {
        const char *text = json_string_value(json_array_get(list, k));
        r = snap_path_parse(text ? text : "", SNAP_PATH_DISK, p, op->err);
        if (r == 0)
            r = snap_disk_get(op, p, &disks[k]);
        if (r < 0)
            break;
    }
    free(p);
    op->forward = false; /* who leads asked the owner */
    for (unsigned i = 0; r < 0 && i < k; i++)
        snap_disk_put(&disks[i]);
    if (r < 0) {
        free(disks);
        return r;
    }
    *ret = disks;
    *ret_n = k;
    return 0;
}

static int named_part(struct snap_op *op, struct snap_group **ret)
{
    const char *id;
    int r = gr_json_str(op->params, "group", &id, op->err);
    *ret = r == 0 ? part_find(op->s, id) : NULL;
    if (*ret && (*ret)->led)
        *ret = NULL;
    return r < 0 ? r : *ret ? 0 : gr_fail(op->err, -ENOENT, "no group %s is held here", id);
}

/* That may take long: who leads may have given up meanwhile. */
static int hold(struct snap_group *g, struct gr_err *err)
{
    g->holding = true;
    int r = snap_hold(g->raw, g->n, g->name, err);
    g->holding = false;
    if (r == 0 && g->settling) {
        snap_resume(g->raw, g->n);
        r = gr_fail(err, -EAGAIN, "snapshot '%s': its disks could not be held in time, try again", g->name);
    }
    g->held = r == 0;
    gr_fqueue_wake_all(&g->changed);
    return r;
}

static int op_hold(struct snap_op *op)
{
    const char *id, *name;
    uint64_t expires = 0;
    uint8_t uuid[16];
    char temp[VMFS_NAME_MAX + 1], text[37] = "";
    struct snap_disk *disks = NULL;
    struct snap_group *g = NULL;
    unsigned n = 0;
    int r = gr_json_str(op->params, "group", &id, op->err);
    if (r == 0)
        r = snap_op_name(op, "name", &name);
    if (r == 0)
        r = gr_json_opt_u64(op->params, "expires", &expires, op->err);
    if (r == 0 && (!id_ok(id) || part_find(op->s, id)))
        r = gr_fail(op->err, -GR_EUSAGE, "\"group\" is not the number of a new group");
    if (r == 0)
        r = temp_name(id, name, temp, op->err);
    if (r == 0)
        r = open_members(op, &disks, &n);
    if (r < 0)
        return r;
    snprintf(text, sizeof(text), "%.36s", id);
    if (gr_uuid_parse(text, uuid) == 0 && snap_undone(op->s, uuid)) /* perhaps while disks were opened: who leads has not heard of it yet */
        r = gr_fail(op->err, -GR_ECANCELED, "whoever asked for snapshot '%s' has given it up", name);
    else
        r = part_new(op->s, id, &(struct snap_new){.name = name, .expires_s = (int64_t)expires}, disks, n, &g, op->err);
    for (unsigned i = 0; r < 0 && i < n; i++)
        snap_disk_put(&disks[i]);
    free(disks);
    if (r < 0)
        return r;
    int held = hold(g, op->err);
    op->s->parts++;
    r = held == 0 || g->settling ? gr_fiber_start(op->s->o.loop, deadline, g) : held;
    if (r == 0)
        return held;
    op->s->parts--;
    if (g->held)
        snap_resume(g->raw, g->n);
    while (g->settling && !g->settled)
        gr_fqueue_wait(&g->changed);
    part_free(g);
    return r;
}
SNAP_METHOD(op_hold, "snapshot.hold")

static int op_take(struct snap_op *op)
{
    struct snap_group *g;
    int r = named_part(op, &g);
    if (r == 0)
        r = part_take(g, op->err);
    if (r < 0)
        return r;
    g->taking = true;
    r = snap_taken(g->raw, g->n, op->err);
    g->taking = false;
    gr_fqueue_wake_all(&g->changed);
    return r;
}
SNAP_METHOD(op_take, "snapshot.take")

static int op_settle(struct snap_op *op)
{
    struct snap_group *g;
    int r = named_part(op, &g);
    if (r == 0)
        r = part_settle(g, op->err);
    return r < 0 ? r : snap_op_result(op, json_incref(g->rows));
}
SNAP_METHOD(op_settle, "snapshot.settle")

const struct gr_rpc_method snap_group_methods[] = {{"snapshot.hold", rpc_op_hold}, {"snapshot.take", rpc_op_take}, {"snapshot.settle", rpc_op_settle}, {NULL, NULL}};

/* ---- who leads ---- */
struct lead;
struct follower { /* another host */
    const struct snap_place *where;
    struct gr_rpc_client *peer;
    json_t *disks;
    struct lead *l;
    const char *method; /* it is asked */
    int r;
    struct gr_err err;
};
struct lead {
    struct snap_op *op;
    const struct snap_new *new;
    struct snap_ds *ds;
    struct snap_group *own;
    struct follower *others;
    size_t n_others, n_disks;
    uint64_t *ids; /* of all disks */
    char id[ID_MAX];
    unsigned tries;
    uint64_t began_ns;
    size_t asking; /* others that have not answered yet */
    struct gr_fqueue answered;
};

static int lead_id(struct lead *l)
{
    const struct gr_world *w = gr_loop_world(l->op->s->o.loop);
    struct vmfs_slot_info *own = gr_alloc(sizeof(*own));
    uint8_t uuid[16];
    char text[37];
    int r = own ? vmfs_slot(l->ds->v, vmfs_own_slot(l->ds->v), own, l->op->err) : gr_fail(l->op->err, -ENOMEM, "out of memory");
    w->random(w->arg, uuid, sizeof(uuid));
    gr_uuid_format(l->new->group ? l->new->group : uuid, text);
    if (r == 0)
        snprintf(l->id, sizeof(l->id), l->tries ? "%s-%x-%llx-%x" : "%s-%x-%llx", text, own->slot, (unsigned long long)own->generation, l->tries);
    free(own);
    return r;
}

static int prepare(struct lead *l)
{
    char path[256];
    int r = 0;
    for (size_t i = 0; r == 0 && i < l->n_disks; i++) {
        path_of(l->id, true, l->ids[i], path);
        r = vmfs_create(l->ds->v, path, VMFS_DIR, 0, VMFS_THIN, l->op->err); /* with those above it */
    }
    return r;
}

static int tell(struct lead *l, struct follower *f, const char *method, json_t **ret, struct gr_err *err)
{
    json_t *params = json_pack("{s:O,s:s,s:s,s:I,s:b}", "disks", f->disks, "group", l->id, "name", l->new->name, "expires", (json_int_t)l->new->expires_s,
                               "forwarded", 1);
    int r = params ? gr_rpc_call(f->peer, method, params, NULL, NULL, CALL_MS, ret, err) : gr_fail(err, -ENOMEM, "out of memory");
    return r < 0 ? gr_prefix(err, r, "host '%s'", f->where->host) : 0;
}

static void ask(void *arg)
{
    struct follower *f = arg;
    f->r = tell(f->l, f, f->method, NULL, &f->err);
    f->l->asking--;
    gr_fqueue_wake_all(&f->l->answered);
}

/* All at the same time: each is held until the last one has answered. */
static int everybody(struct lead *l, const char *method)
{
    int r = 0;
    for (size_t i = 0; i < l->n_others; i++) {
        struct follower *f = &l->others[i];
        f->l = l;
        f->method = method;
        f->err = (struct gr_err){0};
        f->r = gr_fiber_start(l->op->s->o.loop, ask, f);
        l->asking += f->r == 0;
    }
    while (l->asking)
        gr_fqueue_wait(&l->answered);
    for (size_t i = 0; r == 0 && i < l->n_others; i++)
        if ((r = l->others[i].r) < 0)
            *l->op->err = l->others[i].err;
    return r;
}

static int decide(struct lead *l)
{
    char from[256], to[256];
    path_of(l->id, true, 0, from);
    path_of(l->id, false, 0, to);
    if (gr_loop_now_ns(l->op->s->o.loop) - l->began_ns > DECIDE_MS * 1000000ull)
        return gr_fail(l->op->err, -EAGAIN, "the hosts could not hold their disks at the same time within %u ms: try again", DECIDE_MS);
    int r = vmfs_rename(l->ds->v, from, to, l->op->err);
    return r == -EEXIST ? gr_fail(l->op->err, -EAGAIN, "a host did not wait for the others: try again") : r;
}

/* All on this host and on the others. 0: the group exists. */
static int run(struct lead *l)
{
    struct snap_op *op = l->op;
    int r = prepare(l);
    l->began_ns = gr_loop_now_ns(op->s->o.loop);
    if (r == 0)
        r = everybody(l, "snapshot.hold");
    if (r == 0)
        r = snap_hold(l->own->raw, l->own->n, l->new->name, op->err);
    l->own->held = r == 0;
    if (r == 0)
        r = part_take(l->own, op->err);
    if (r == 0)
        r = everybody(l, "snapshot.take");
    if (r == 0)
        r = snap_taken(l->own->raw, l->own->n, op->err);
    return r == 0 ? decide(l) : r;
}

/* Whatever came of it: everybody follows it, their rows are the result. */
static void settle(struct lead *l, json_t *rows)
{
    struct gr_err first = *l->op->err, err = {0};
    for (size_t i = 0; i < l->n_others; i++) {
        json_t *theirs = NULL;
        if (tell(l, &l->others[i], "snapshot.settle", &theirs, &err) == 0)
            json_array_extend(rows, theirs);
        json_decref(theirs);
    }
    *l->op->err = first;
    if (part_settle(l->own, &err) == 1)
        json_array_extend(rows, l->own->rows);
}

static int connect_all(struct lead *l)
{
    int r = 0;
    for (size_t i = 0; r == 0 && i < l->n_others; i++)
        r = snap_peer_connect(l->op->s, l->others[i].where->address, &l->others[i].peer, l->op->err);
    return r;
}

/* Who belongs to which host. */
static void sort_members(struct lead *l, const struct snap_member *all, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        size_t k = 0;
        l->ids[i] = all[i].id;
        if (!all[i].where)
            continue;
        while (k < l->n_others && strcmp(l->others[k].where->address, all[i].where->address) != 0)
            k++;
        if (k == l->n_others)
            l->others[l->n_others++] = (struct follower){.where = all[i].where, .disks = json_array()};
        json_array_append_new(l->others[k].disks, json_string(all[i].disk));
    }
}

/* -EAGAIN: not all could be held at the same time, and nothing is left of it. */
static int attempt(struct lead *l, const struct snap_disk *own, unsigned n_own, json_t *rows)
{
    char path[256], temp[VMFS_NAME_MAX + 1];
    int r = lead_id(l);
    if (r == 0)
        r = temp_name(l->id, l->new->name, temp, l->op->err);
    if (r == 0)
        r = part_new(l->op->s, l->id, l->new, own, n_own, &l->own, l->op->err);
    if (r < 0)
        return r;
    l->own->led = true;
    for (unsigned i = 0; i < n_own; i++) { /* both hold it for now */
        l->own->disks[i].h->users++;
        l->own->ds->users++;
    }
    r = run(l);
    settle(l, rows);
    if (r < 0) {
        remove_prepared(l->ds, l->id, l->ids, l->n_disks);
        path_of(l->id, false, 0, path);
        (void)vmfs_remove(l->ds->v, path, NULL); /* of who did not wait: nobody asks any more, or finds none again */
    }
    part_free(l->own);
    return r;
}

int snap_group_lead(struct snap_op *op, struct snap_ds *ds, const struct snap_new *new, const struct snap_disk *own, unsigned n_own, const struct snap_member *all,
                    size_t n, json_t *rows)
{
    struct lead l = {.op = op, .new = new, .ds = ds, .n_disks = n};
    l.ids = gr_zalloc(n * sizeof(*l.ids));
    l.others = gr_zalloc(n * sizeof(*l.others));
    int r = l.ids && l.others ? 0 : gr_fail(op->err, -ENOMEM, "out of memory");
    if (r == 0) {
        sort_members(&l, all, n);
        r = connect_all(&l);
    }
    for (bool again = r == 0; again; again = r == -EAGAIN && ++l.tries < TRIES) {
        if (l.tries)
            gr_fiber_sleep_ms(PAUSE_MS);
        r = attempt(&l, own, n_own, rows);
    }
    for (size_t i = 0; i < l.n_others; i++) {
        gr_rpc_client_free(l.others[i].peer);
        json_decref(l.others[i].disks);
    }
    free(l.others);
    free(l.ids);
    return r;
}

/* ---- what the dead have left ---- */
void snap_group_recover(struct snap_svc *s, struct snap_ds *ds, struct vmfs_disk *disk, const char *temp)
{
    char id[ID_MAX];
    const char *name;
    struct gr_err err = {0};
    if (!split_temp(temp, id, &name))
        return;
    const struct snap_group *g = part_find(s, id);
    for (unsigned i = 0; g && i < g->n; i++)
        if (g->raw[i] == disk)
            return; /* held here: it is being made */
    int r = decision(ds, id, vmfs_disk_id(disk), &err);
    if (r == 0)
        r = snap_delete(disk, temp, false, &err);
    else if (r == 1 && (r = snap_rename(disk, temp, name, &err)) == 0 && (r = vmfs_checkpoint(ds->v, &err)) == 0)
        sign_off(ds, id, vmfs_disk_id(disk));
    if (r < 0)
        snap_warn(s, "datastore '%s': snapshot %s cannot be settled: %s", ds->name, temp, gr_err_text(&err, r));
}

struct starts_with {
    const char *prefix;
    size_t n;
    bool found;
};

static int note_start(void *arg, const struct snap_info *info)
{
    struct starts_with *s = arg;
    s->found |= strncmp(info->name, s->prefix, s->n) == 0;
    return 0;
}

struct leftover_groups {
    struct snap_ds *ds;
    char names[64][ID_MAX + 1];
    unsigned n;
};

static int note_group(void *arg, const char *name, const struct vmfs_stat *st)
{
    struct leftover_groups *l = arg;
    if (l->n < GR_ARRAY_LEN(l->names) && strlen(name) <= ID_MAX)
        snprintf(l->names[l->n++], sizeof(l->names[0]), "%s", name);
    return 0;
}

static bool leader_gone(struct snap_ds *ds, const char *id)
{
    unsigned slot = 0;
    unsigned long long generation = 0;
    struct vmfs_slot_info *i = gr_alloc(sizeof(*i));
    bool gone = i && strlen(id) > 36 && sscanf(id + 36, "-%x-%llx", &slot, &generation) == 2 && vmfs_slot(ds->v, slot, i, NULL) == 0 &&
                i->generation != generation;
    free(i);
    return gone;
}

static int remove_entry(void *arg, const char *name, const struct vmfs_stat *st)
{
    json_array_append_new(arg, json_string(name));
    return 0;
}

static void remove_folder(struct snap_ds *ds, const char *name)
{
    snap_auto_json json_t *entries = json_array();
    gr_auto_free char *folder = gr_asprintf(GROUPS "/%s", name);
    json_t *e;
    size_t i;
    if (!folder || vmfs_readdir(ds->v, folder, remove_entry, entries, NULL) < 0)
        return;
    json_array_foreach(entries, i, e)
    {
        gr_auto_free char *path = name[0] == '.' ? gr_asprintf("%s/%s", folder, json_string_value(e)) : NULL;
        if (path) /* of a decision the entries are for those whom they name */
            (void)vmfs_remove(ds->v, path, NULL);
    }
    (void)vmfs_remove(ds->v, folder, NULL);
}

/* Whose snapshot of a decided group has its name already, or was deleted since, has nothing left to do but to sign off. */
static bool undecided_here(struct vmfs_disk *disk, const char *id)
{
    char prefix[sizeof(SNAP_GROUP_PREFIX) + ID_MAX];
    int n = snprintf(prefix, sizeof(prefix), SNAP_GROUP_PREFIX "%s.", id);
    struct starts_with s = {prefix, (size_t)n, false};
    return snap_list(disk, note_start, &s, NULL) < 0 || s.found;
}

void snap_group_sign(struct snap_ds *ds, struct vmfs_disk *disk)
{
    struct leftover_groups *l = gr_zalloc(sizeof(*l));
    struct vmfs_stat st;
    char entry[256];
    int r = l ? vmfs_readdir(ds->v, GROUPS, note_group, l, NULL) : -ENOMEM;
    for (unsigned i = 0; r >= 0 && i < l->n; i++) {
        path_of(l->names[i], false, vmfs_disk_id(disk), entry);
        if (l->names[i][0] != '.' && vmfs_stat(ds->v, entry, &st, NULL) == 0 && !undecided_here(disk, l->names[i]) && vmfs_checkpoint(ds->v, NULL) == 0)
            sign_off(ds, l->names[i], vmfs_disk_id(disk));
    }
    free(l);
}

void snap_clean_groups(struct snap_ds *ds)
{
    struct leftover_groups *l = gr_zalloc(sizeof(*l));
    if (!l)
        return;
    l->ds = ds;
    int r = vmfs_readdir(ds->v, GROUPS, note_group, l, NULL);
    for (unsigned i = 0; r >= 0 && i < l->n; i++)
        if (leader_gone(ds, l->names[i] + (l->names[i][0] == '.')))
            remove_folder(ds, l->names[i]);
    free(l);
}
