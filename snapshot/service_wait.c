/* Who waits for whom, and why: requests that wait for a disk, and this host itself where it waits for a silent one. For datastore.info. */
#include "snapshot/service_int.h"
#include <stdio.h>
#include <string.h>

void snap_wait_begin(struct snap_ds *ds, struct snap_wait *w)
{
    w->since_ns = gr_loop_now_ns(ds->svc->o.loop);
    w->next = ds->waits;
    ds->waits = w;
}

void snap_wait_end(struct snap_ds *ds, struct snap_wait *w)
{
    struct snap_wait **p = &ds->waits;
    while (*p != w)
        p = &(*p)->next;
    *p = w->next;
}

/* ---- hosts that are being taken over from ---- */
static void ending_text(const struct vmfs_ending *e, char text[160])
{
    if (e->ejected)
        snprintf(text, 160, e->asked ? "it did not answer and was ejected %.1f s ago: its journal is replayed" : "its process is gone: its journal is replayed",
                 (double)e->ejected_ms / 1e3);
    else
        snprintf(text, 160, "it was asked %.1f s ago whether it is there and has been silent for %.1f s: after %.1f s it is ejected", (double)e->asked_ms / 1e3,
                 (double)e->silent_ms / 1e3, (double)e->patience_ms / 1e3);
}

static int add_ending(struct snap_ds *ds, unsigned slot, const struct vmfs_ending *e, json_t *rows, struct gr_err *err)
{
    char text[160];
    struct vmfs_slot_info *i = gr_alloc(sizeof(*i));
    int r = i ? vmfs_slot_peek(ds->v, slot, i, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r == 0) {
        ending_text(e, text);
        json_t *o = json_pack("{s:s,s:s,s:s,s:s,s:f,s:f,s:f}", "what", "recovery", "disk", "", "host", i->host_name, "reason", text, "seconds",
                              (double)(e->asked ? e->asked_ms : e->ejected_ms) / 1e3, "silent", (double)e->silent_ms / 1e3, "patience",
                              (double)e->patience_ms / 1e3);
        json_object_set_new(o, "asked", e->asked ? json_real((double)e->asked_ms / 1e3) : json_null());
        json_object_set_new(o, "ejected", e->ejected ? json_real((double)e->ejected_ms / 1e3) : json_null());
        json_array_append_new(rows, o);
    }
    free(i);
    return r;
}

/* ---- requests ---- */
struct waiting { /* a struct snap_wait as it was: the request may end while we look */
    char *what, *path;
    char host[64];
    double seconds;
    bool moving;
};

/* Whose is it? Said as of the volume, and by whoever waits for a command. */
static int add_waiting(struct snap_ds *ds, const struct waiting *w, json_t *rows, struct gr_err *err)
{
    struct vmfs_stat st;
    struct vmfs_slot_info *i = gr_zalloc(sizeof(*i));
    struct vmfs_ending e;
    char text[160] = "it is asked whether it is there";
    if (!i)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = vmfs_stat(ds->v, w->path, &st, err);
    bool owned = r == 0 && st.owner_slot >= 0 && (unsigned)st.owner_slot != vmfs_own_slot(ds->v);
    if (owned)
        r = vmfs_slot_peek(ds->v, (unsigned)st.owner_slot, i, err);
    if (r == -ENOENT)
        r = 0; /* deleted meanwhile */
    if (owned && r == 0 && vmfs_ending(ds->v, i->slot, &e))
        ending_text(&e, text);
    else if (owned && r == 0 && strcmp(i->state, "replaying") == 0)
        snprintf(text, sizeof(text), "it is gone, and another host replays its journal");
    else if (w->moving)
        snprintf(text, sizeof(text), "the disk changes hands");
    else if (owned && r == 0 && w->host[0])
        snprintf(text, sizeof(text), "a command is at work on the disk there");
    gr_auto_free char *disk = gr_asprintf("%s/%s", ds->name, w->path);
    if (r == 0 && (owned || w->moving)) /* else it is just being opened */
        json_array_append_new(rows, json_pack("{s:s,s:s,s:s,s:s,s:f}", "what", w->what, "disk", disk ? disk : w->path, "host", i->host_name, "reason", text,
                                              "seconds", w->seconds));
    free(i);
    return r;
}

static void free_all(struct waiting *all, size_t n)
{
    for (size_t k = 0; k < n; k++) {
        free(all[k].what);
        free(all[k].path);
    }
    free(all);
}

static struct waiting *copy_all(struct snap_ds *ds, size_t *ret_n)
{
    uint64_t now = gr_loop_now_ns(ds->svc->o.loop);
    size_t n = 0;
    for (const struct snap_wait *w = ds->waits; w; w = w->next)
        n++;
    struct waiting *all = gr_zalloc((n + 1) * sizeof(*all));
    n = 0;
    for (const struct snap_wait *w = ds->waits; all && w; w = w->next) {
        struct waiting *c = &all[n++];
        c->what = gr_strdup(w->what);
        c->path = gr_strdup(w->path);
        c->seconds = (double)(now - w->since_ns) / 1e9;
        c->moving = w->moving;
        memcpy(c->host, w->host, sizeof(c->host));
        if (!c->what || !c->path) {
            free_all(all, n);
            return NULL;
        }
    }
    *ret_n = n;
    return all;
}

json_t *snap_waits_rows(struct snap_ds *ds, struct gr_err *err)
{
    size_t n = 0;
    struct vmfs_info info;
    struct vmfs_ending e;
    vmfs_info(ds->v, &info);
    json_t *rows = json_array();
    struct waiting *all = copy_all(ds, &n);
    int r = rows && all ? 0 : gr_fail(err, -ENOMEM, "out of memory");
    for (unsigned i = 0; r == 0 && i < info.n_slots; i++)
        if (vmfs_ending(ds->v, i, &e))
            r = add_ending(ds, i, &e, rows, err);
    for (size_t k = 0; r == 0 && k < n; k++)
        r = add_waiting(ds, &all[k], rows, err);
    free_all(all, n);
    if (r == 0)
        return rows;
    json_decref(rows);
    return NULL;
}

/* ---- who owns how many ---- */
struct counts {
    unsigned *disks; /* [slots] */
    unsigned n;
};

static int count_disk(void *arg, const char *path, const struct vmfs_stat *st)
{
    struct counts *c = arg;
    if (st->type != VMFS_DISK)
        return SNAP_WALK_INTO;
    if (st->owner_slot >= 0 && (unsigned)st->owner_slot < c->n)
        c->disks[st->owner_slot]++;
    return 0;
}

int snap_owners_count(struct snap_ds *ds, json_t *hosts, struct gr_err *err)
{
    struct vmfs_info info;
    json_t *host;
    size_t k;
    vmfs_info(ds->v, &info);
    struct counts c = {.disks = gr_zalloc(info.n_slots * sizeof(*c.disks)), .n = info.n_slots};
    if (!c.disks)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = snap_walk(ds, "", count_disk, &c, err);
    json_array_foreach(hosts, k, host)
        json_object_set_new(host, "disks", json_integer(c.disks[json_integer_value(json_object_get(host, "slot"))]));
    free(c.disks);
    return r;
}
