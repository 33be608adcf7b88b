#include "hv/vmsn.h"
#include "common/cleanup.h"
#include "common/log.h"
#include "common/seam.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CALL_MS 60000

char *hv_vmsn_path(const char *vm_path, const char *name, const char *ext)
{
    return gr_asprintf("%s/%s-%s.%s", vm_path, strrchr(vm_path, '/') + 1, name, ext);
}

int hv_vmsn_name_check(const char *vm_path, const char *name, struct gr_err *err)
{
    gr_auto_free char *path = hv_vmsn_path(vm_path, name, "vmsn");
    if (!path)
        return gr_fail(err, -ENOMEM, "out of memory");
    if (!*name || strchr(name, '/'))
        return gr_fail(err, -GR_EUSAGE, "snapshot name '%.80s': it must not be empty, nor hold '/'", name);
    int r = hv_vm_path_check(path, err);
    return r < 0 ? gr_prefix(err, r, "snapshot '%.80s' of '%s'", name, vm_path) : 0;
}

const char *hv_vmsn_get(const struct hv_vm *record, const char *key)
{
    const char *value = hv_vmx_get(&record->vmx, key);
    return value ? value : "";
}

bool hv_vmsn_is(const struct hv_vm *record, const char *key, const char *value)
{
    return !strcmp(hv_vmsn_get(record, key), value);
}

uint64_t hv_vmsn_number(const struct hv_vm *record, const char *key)
{
    uint64_t n = 0;
    (void)gr_parse_u64(hv_vmsn_get(record, key), 0, INT64_MAX, &n, NULL);
    return n;
}

int hv_vmsn_set_number(struct hv_vm *record, const char *key, uint64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    return hv_vmx_set(&record->vmx, key, text);
}

static int read_at(const struct hv_storage *s, const char *file, const char *vm_path, struct hv_vm *ret, struct gr_err *err)
{
    gr_auto(hv_vm_done) struct hv_vm vm = {0};
    int r = hv_storage_read_config(s, file, vm_path, &vm, err);
    if (r >= 0 && !hv_vmx_get(&vm.vmx, "snapshot.name"))
        r = gr_fail(err, -GR_EFORMAT, "%s: snapshot.name is missing", file);
    if (r < 0)
        return r;
    *ret = vm;
    vm = (struct hv_vm){0};
    return 0;
}

int hv_vmsn_read(const struct hv_storage *s, const char *vm_path, const char *name, struct hv_vm *ret, struct gr_err *err)
{
    gr_auto_free char *file = hv_vmsn_path(vm_path, name, "vmsn");
    int r = file ? hv_vmsn_name_check(vm_path, name, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r >= 0)
        r = read_at(s, file, vm_path, ret, err);
    return r == -ENOENT ? gr_fail(err, r, "'%s' has no snapshot '%s'; 'granary vm snapshots %s' lists them", vm_path, name, vm_path) : r;
}

int hv_vmsn_write(const struct hv_storage *s, const char *name, struct hv_vm *record, struct gr_err *err)
{
    gr_auto_free char *file = hv_vmsn_path(record->path, name, "vmsn");
    return file ? hv_storage_write_config(s, file, record, err) : gr_fail(err, -ENOMEM, "out of memory");
}

void hv_vmsn_list_done(struct hv_vmsn_list *l)
{
    for (size_t i = 0; i < l->n; i++)
        hv_vm_done(&l->v[i]);
    free(l->v);
    *l = (struct hv_vmsn_list){0};
}

static int by_time(const void *a, const void *b)
{
    uint64_t x = hv_vmsn_number(a, "snapshot.created"), y = hv_vmsn_number(b, "snapshot.created");
    return x != y ? (x < y ? -1 : 1) : strcmp(hv_vmsn_get(a, "snapshot.name"), hv_vmsn_get(b, "snapshot.name"));
}

bool hv_vmsn_is_file(const char *file, const char *vm_path, const char *ext)
{
    const char *vm = strrchr(vm_path, '/') + 1;
    size_t n = strlen(file), v = strlen(vm), e = strlen(ext);
    return n > v + e + 2 && !strncmp(file, vm, v) && file[v] == '-' && file[n - e - 1] == '.' && !strcmp(file + n - e, ext);
}

int hv_vmsn_list(const struct hv_storage *s, const char *vm_path, struct hv_vmsn_list *ret, struct gr_err *err)
{
    gr_auto(hv_vmsn_list_done) struct hv_vmsn_list l = {0};
    json_auto_t *entries = NULL;
    json_t *e;
    size_t i;
    int r = hv_storage_call(s, "dir.list", json_pack("{s:s}", "path", vm_path), CALL_MS, &entries, err);
    if (r < 0)
        return r;
    l.v = gr_zalloc((json_array_size(entries) + 1) * sizeof *l.v);
    if (!l.v)
        return gr_fail(err, -ENOMEM, "out of memory");
    json_array_foreach(entries, i, e) {
        const char *name = json_string_value(json_object_get(e, "name")), *path = json_string_value(json_object_get(e, "path"));
        struct gr_err why = {0};
        if (!name || !path || !hv_vmsn_is_file(name, vm_path, "vmsn"))
            continue;
        r = read_at(s, path, vm_path, &l.v[l.n], &why);
        if (r >= 0)
            l.n++;
        else if (r != -ENOENT)
            gr_log(GR_LOG_WARN, "vm=%s: %s, ignoring", vm_path, gr_err_text(&why, r));
    }
    qsort(l.v, l.n, sizeof *l.v, by_time);
    *ret = l;
    l = (struct hv_vmsn_list){0};
    return 0;
}
