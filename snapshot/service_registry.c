/* The registry of a home's datastores: conf/datastores.json. */
#include "common/cleanup.h"
#include "snapshot/service_int.h"
#include <string.h>

#define REGISTRY "conf/datastores.json"

struct snap_ds *snap_ds_find(struct snap_svc *s, const char *name)
{
    for (struct snap_ds *ds = s->list; ds; ds = ds->next)
        if (strcmp(ds->name, name) == 0)
            return ds;
    return NULL;
}

void snap_ds_remove(struct snap_svc *s, struct snap_ds *ds)
{
    for (struct snap_ds **p = &s->list; *p; p = &(*p)->next) {
        if (*p != ds)
            continue;
        *p = ds->next;
        for (unsigned i = 0; i < ds->n_devices; i++)
            free(ds->devices[i]);
        json_decref(ds->login_row);
        free(ds->accepted);
        snap_table_free(&ds->rules);
        snap_table_free(&ds->policies);
        mnt_vol_free(ds);
        free(ds);
        return;
    }
}

int snap_login_get(json_t *row, struct gr_device_login *ret, struct gr_err *err)
{
    *ret = (struct gr_device_login){0};
    if (!row)
        return 0;
    if (!json_is_object(row))
        return gr_fail(err, -GR_EUSAGE, "\"login\" must be an object");
    int r = gr_json_opt_str(row, "user", &ret->user, err);
    if (r == 0)
        r = gr_json_opt_str(row, "secret-file", &ret->secret_file, err);
    if (r == 0)
        r = gr_json_opt_str(row, "target-user", &ret->target_user, err);
    if (r == 0)
        r = gr_json_opt_str(row, "target-secret-file", &ret->target_secret_file, err);
    if (r == 0 && (!ret->user != !ret->secret_file || !ret->target_user != !ret->target_secret_file))
        r = gr_fail(err, -GR_EUSAGE, "a user and the file of its secret go together");
    return r;
}

int snap_ds_add(struct snap_svc *s, const char *name, json_t *devices, json_t *login, struct snap_ds **ret, struct gr_err *err)
{
    size_t n = json_array_size(devices);
    int r = snap_datastore_name_check(name, err);
    if (r < 0)
        return r;
    if (snap_ds_find(s, name))
        return gr_fail(err, -EEXIST, "datastore '%s' is registered here already", name);
    if (n == 0 || n > VMFS_DEVICES_MAX)
        return gr_fail(err, -GR_EUSAGE, "datastore '%s': %zu devices given; 1 to %d are possible", name, n, VMFS_DEVICES_MAX);
    struct snap_ds *ds = gr_zalloc(sizeof(*ds));
    if (!ds)
        return gr_fail(err, -ENOMEM, "datastore '%s': out of memory", name);
    memcpy(ds->name, name, strlen(name) + 1);
    ds->svc = s;
    ds->rules = (struct snap_table){.place = "granary.access", .what = "access rules", .hint = ": name initiators by patterns"};
    ds->policies = (struct snap_table){.place = "granary.policy", .what = "snapshot policies", .hint = ""};
    ds->next = s->list;
    s->list = ds;
    ds->login_row = json_incref(login);
    r = snap_login_get(ds->login_row, &ds->login, err);
    if (r < 0) {
        snap_ds_remove(s, ds);
        return r;
    }
    for (; ds->n_devices < n; ds->n_devices++) {
        const char *path = json_string_value(json_array_get(devices, ds->n_devices));
        r = gr_device_name_check(path ? path : "", err);
        if (r < 0)
            gr_prefix(err, r, "datastore '%s'", name);
        else if (!(ds->devices[ds->n_devices] = gr_strdup(path)))
            r = gr_fail(err, -ENOMEM, "datastore '%s': out of memory", name);
        if (r < 0) {
            snap_ds_remove(s, ds);
            return r;
        }
    }
    *ret = ds;
    return 0;
}

int snap_ds_accept(struct snap_ds *ds, uint64_t id)
{
    uint64_t *a = gr_realloc(ds->accepted, (ds->n_accepted + 1) * sizeof(*a));
    if (!a)
        return -ENOMEM;
    ds->accepted = a;
    a[ds->n_accepted++] = id;
    return 0;
}

static int accepted_load(struct snap_ds *ds, json_t *list, struct gr_err *err)
{
    json_t *id;
    size_t i;
    if (list && !json_is_array(list))
        return gr_fail(err, -GR_EFORMAT, "\"accepted\" must be a list");
    json_array_foreach(list, i, id)
        if (snap_ds_accept(ds, (uint64_t)json_integer_value(id)) < 0)
            return gr_fail(err, -ENOMEM, "out of memory");
    return 0;
}

static json_t *accepted_row(const struct snap_ds *ds)
{
    json_t *a = ds->n_accepted ? json_array() : NULL;
    for (size_t i = 0; a && i < ds->n_accepted; i++)
        json_array_append_new(a, json_integer((json_int_t)ds->accepted[i]));
    return a;
}

int snap_registry_load(struct snap_svc *s, struct gr_err *err)
{
    snap_auto_json json_t *doc = NULL;
    json_t *row;
    size_t i;
    int r = gr_home_load(s->o.home, REGISTRY, &doc, err);
    if (r < 0)
        return r;
    json_t *list = json_object_get(doc, "datastores");
    if (list && !json_is_array(list))
        return gr_fail(err, -GR_EFORMAT, "%s/" REGISTRY ": \"datastores\" must be a list", gr_home_dir(s->o.home));
    for (i = json_array_size(list); i-- > 0;) { /* adding puts in front: keep the order of the file */
        struct snap_ds *ds = NULL;
        row = json_array_get(list, i);
        const char *name = json_string_value(json_object_get(row, "name"));
        r = snap_ds_add(s, name ? name : "", json_object_get(row, "devices"), json_object_get(row, "login"), &ds, err);
        if (r == 0)
            r = gr_json_opt_bool(row, "degraded", &ds->degraded, err);
        if (r == 0)
            r = gr_json_opt_bool(row, "rescue", &ds->rescue, err);
        if (r == 0)
            r = accepted_load(ds, json_object_get(row, "accepted"), err);
        if (r < 0)
            return gr_prefix(err, r, "%s/" REGISTRY ": entry %zu", gr_home_dir(s->o.home), i + 1);
    }
    return 0;
}

int snap_registry_save(struct snap_svc *s, struct gr_err *err)
{
    snap_auto_json json_t *doc = json_object();
    json_t *list = json_array();
    if (!doc || !list || json_object_set_new(doc, "datastores", list) < 0)
        return gr_fail(err, -ENOMEM, REGISTRY ": out of memory");
    for (struct snap_ds *ds = s->list; ds; ds = ds->next) {
        json_t *devices = json_array();
        for (unsigned i = 0; i < ds->n_devices; i++)
            json_array_append_new(devices, json_string(ds->devices[i]));
        if (json_array_size(devices) != ds->n_devices ||
            json_array_append_new(list, json_pack("{s:s,s:o,s:O*,s:o*,s:o*,s:o*}", "name", ds->name, "devices", devices, "login", ds->login_row, "degraded",
                                                  ds->degraded ? json_true() : NULL, "rescue", ds->rescue ? json_true() : NULL, "accepted", accepted_row(ds))) < 0)
            return gr_fail(err, -ENOMEM, REGISTRY ": out of memory");
    }
    return gr_home_save(s->o.home, REGISTRY, doc, err);
}

