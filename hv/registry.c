#include "hv/registry.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "hv/vm.h"
#include <string.h>

#define FILE_NAME "conf/vms.json"

static int append(struct hv_registry *r, const char *path, const char *uuid)
{
    struct hv_reg_entry *more = gr_realloc(r->v, (r->count + 1) * sizeof *more), e = {0};
    if (!more)
        return -ENOMEM;
    r->v = more;
    e.path = gr_strdup(path);
    if (!e.path)
        return -ENOMEM;
    memcpy(e.uuid, uuid, sizeof e.uuid);
    r->v[r->count++] = e;
    return 0;
}

int hv_registry_load(struct gr_home *home, struct hv_registry *ret, struct gr_err *err)
{
    gr_auto(hv_registry_done) struct hv_registry reg = {.home = home};
    json_auto_t *doc = NULL;
    size_t i;
    json_t *row;
    int r = gr_home_load(home, FILE_NAME, &doc, err);
    if (r < 0)
        return r;
    json_array_foreach(json_object_get(doc, "vms"), i, row) {
        const char *path = json_string_value(json_object_get(row, "vm")), *uuid = json_string_value(json_object_get(row, "uuid"));
        uint8_t u[16];
        char text[37];
        if (!path || !uuid || hv_vm_path_check(path, NULL) < 0 || gr_uuid_parse(uuid, u) < 0)
            return gr_fail(err, -GR_EFORMAT, "%s/" FILE_NAME ": entry %zu is no virtual machine", gr_home_dir(home), i);
        gr_uuid_format(u, text);
        if (append(&reg, path, text) < 0)
            return gr_fail(err, -ENOMEM, "out of memory");
    }
    *ret = reg;
    reg = (struct hv_registry){0};
    return 0;
}

void hv_registry_done(struct hv_registry *r)
{
    for (size_t i = 0; i < r->count; i++)
        free(r->v[i].path);
    free(r->v);
    *r = (struct hv_registry){0};
}

static int save(struct hv_registry *r, struct gr_err *err)
{
    json_auto_t *doc = json_pack("{s:[]}", "vms");
    for (size_t i = 0; doc && i < r->count; i++)
        if (json_array_append_new(json_object_get(doc, "vms"), json_pack("{s:s, s:s}", "vm", r->v[i].path, "uuid", r->v[i].uuid)))
            return gr_fail(err, -ENOMEM, "out of memory");
    return doc ? gr_home_save(r->home, FILE_NAME, doc, err) : gr_fail(err, -ENOMEM, "out of memory");
}

int hv_registry_find(const struct hv_registry *r, const char *name, struct hv_reg_entry **ret, struct gr_err *err)
{
    struct hv_reg_entry *found = NULL;
    for (size_t i = 0; i < r->count; i++) {
        const char *path = r->v[i].path;
        if (!strcmp(path, name)) {
            *ret = &r->v[i];
            return 0;
        }
        if (!strchr(name, '/') && !strcmp(strrchr(path, '/') + 1, name)) {
            if (found)
                return gr_fail(err, -GR_EUSAGE, "'%s' may be %s or %s: give the whole name", name, found->path, path);
            found = &r->v[i];
        }
    }
    if (!found)
        return gr_fail(err, -ENOENT, "no virtual machine '%s' on this host", name);
    *ret = found;
    return 0;
}

int hv_registry_add(struct hv_registry *r, const char *path, const char *uuid, struct gr_err *err)
{
    int rc = 0;
    size_t i = 0;
    while (i < r->count && strcmp(r->v[i].path, path))
        i++;
    if (i < r->count)
        memcpy(r->v[i].uuid, uuid, sizeof r->v[i].uuid);
    else
        rc = append(r, path, uuid);
    return rc < 0 ? gr_fail(err, rc, "out of memory") : save(r, err);
}

int hv_registry_remove(struct hv_registry *r, const char *path, struct gr_err *err)
{
    for (size_t i = 0; i < r->count; i++) {
        if (strcmp(r->v[i].path, path))
            continue;
        free(r->v[i].path);
        r->v[i] = r->v[--r->count];
        return save(r, err);
    }
    return 0;
}
