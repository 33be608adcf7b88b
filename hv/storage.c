#include "hv/storage.h"
#include "common/b64.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <string.h>

#define CALL_MS 60000

int hv_storage_call(const struct hv_storage *s, const char *method, json_t *params, uint64_t timeout_ms, json_t **ret, struct gr_err *err)
{
    json_auto_t *take = params;
    gr_auto_free char *path = gr_home_path(s->home, "run/storaged.sock");
    struct gr_rpc_client *c = NULL;
    struct gr_err inner = {0};
    if (!path)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = gr_rpc_connect(s->loop, path, &c, &inner);
    if (r < 0)
        return gr_fail(err, r == -ENOENT ? -ECONNREFUSED : r, "the storage service does not run (%s); start it with 'granary up'", gr_code_text(r));
    r = gr_rpc_call(c, method, gr_take(take), NULL, NULL, (int64_t)timeout_ms, ret, err);
    gr_rpc_client_free(c);
    return r;
}

int hv_storage_read_config(const struct hv_storage *s, const char *file, const char *vm_path, struct hv_vm *ret, struct gr_err *err)
{
    gr_auto_buf struct gr_buf text = {0};
    json_auto_t *result = NULL;
    const char *b64 = NULL;
    int r = hv_storage_call(s, "file.read", json_pack("{s:s}", "path", file), CALL_MS, &result, err);
    if (r < 0 || (r = gr_json_str(result, "data-b64", &b64, err)) < 0)
        return r;
    if ((r = gr_b64_decode(b64, strlen(b64), &text)) < 0)
        return gr_fail(err, -GR_EPROTO, "the storage service's answer for '%s' is no base64", file);
    return hv_vm_decode(vm_path, text.data ? text.data : "", text.len, ret, err);
}

int hv_storage_read_vm(const struct hv_storage *s, const char *path, struct hv_vm *ret, struct gr_err *err)
{
    gr_auto_free char *config = hv_vm_config_path(path);
    if (!config)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = hv_vm_path_check(path, err);
    if (r >= 0)
        r = hv_storage_read_config(s, config, path, ret, err);
    return r == -ENOENT ? gr_prefix(err, r, "no virtual machine '%s'", path) : r;
}

int hv_storage_write_config(const struct hv_storage *s, const char *file, struct hv_vm *vm, struct gr_err *err)
{
    gr_auto_buf struct gr_buf text = {0};
    int r = hv_vm_encode(vm, &text);
    gr_auto_free char *b64 = r >= 0 ? gr_b64_encode(text.data, text.len) : NULL;
    if (!b64)
        return gr_fail(err, r < 0 ? r : -ENOMEM, "cannot write %s: %s", file, gr_code_text(r < 0 ? r : -ENOMEM));
    return hv_storage_call(s, "file.write", json_pack("{s:s, s:s}", "path", file, "data-b64", b64), CALL_MS, NULL, err);
}

int hv_storage_write_vm(const struct hv_storage *s, struct hv_vm *vm, struct gr_err *err)
{
    gr_auto_free char *config = hv_vm_config_path(vm->path);
    return config ? hv_storage_write_config(s, config, vm, err) : gr_fail(err, -ENOMEM, "out of memory");
}

static int chap_secret(const struct hv_storage *s, const char *disk, struct hv_lun *lun, struct gr_err *err)
{
    if (strchr(lun->user, '/') || lun->user[0] == '.')
        return gr_fail(err, -EINVAL, "disk '%s': CHAP user '%s' cannot be a file name below conf/chap", disk, lun->user);
    gr_auto_free char *name = gr_asprintf("conf/chap/%s", lun->user), *path = name ? gr_home_path(s->home, name) : NULL;
    if (!path)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = gr_secret_read(path, &lun->secret, err);
    return r < 0 ? gr_prefix(err, r, "disk '%s' wants CHAP; put the secret of user '%s' into %s (mode 0600)", disk, lun->user, path) : 0;
}

int hv_storage_lun(const struct hv_storage *s, const char *disk, struct hv_lun *ret, struct gr_err *err)
{
    gr_auto(hv_lun_done) struct hv_lun lun = {0};
    json_auto_t *list = NULL;
    json_t *row, *found = NULL;
    size_t i;
    int r = hv_storage_call(s, "lun.list", json_pack("{s:s}", "disk", disk), CALL_MS, &list, err);
    if (r < 0)
        return r;
    json_array_foreach(list, i, row) {
        const char *name = json_string_value(json_object_get(row, "disk"));
        if (name && !strcmp(name, disk))
            found = row;
    }
    const char *url = json_string_value(json_object_get(found, "iscsi-url")), *user = json_string_value(json_object_get(found, "chap-user"));
    if (!found || !url)
        return gr_fail(err, -ENOENT, found ? "disk '%s' is not served over iSCSI; start the portal with 'granary up'" : "no LUN for disk '%s': there is no such disk, or it is masked", disk);
    if ((r = hv_lun_parse(url, &lun, err)) < 0)
        return gr_prefix(err, r, "disk '%s'", disk);
    if (user && *user && !lun.user && !(lun.user = gr_strdup(user)))
        return gr_fail(err, -ENOMEM, "out of memory");
    if (lun.user && !lun.secret.len && (r = chap_secret(s, disk, &lun, err)) < 0)
        return r;
    *ret = lun;
    lun = (struct hv_lun){0};
    return 0;
}

int hv_storage_idle(const struct hv_storage *s, const struct hv_vm *vm, struct gr_err *err)
{
    gr_auto_free char *mine = gr_asprintf(HV_INITIATOR_PREFIX "%s:", vm->uuid);
    int r = mine ? 0 : gr_fail(err, -ENOMEM, "out of memory");
    for (unsigned d = 0; r >= 0 && d < vm->disk_count; d++) {
        json_auto_t *list = NULL;
        json_t *row;
        size_t i;
        r = hv_storage_call(s, "session.list", json_pack("{s:s}", "disk", vm->disks[d].path), CALL_MS, &list, err);
        json_array_foreach(list, i, row) {
            const char *who = json_string_value(json_object_get(row, "initiator"));
            if (r >= 0 && who && !strncmp(who, mine, strlen(mine)))
                r = gr_fail(err, -GR_ELOCKED, "'%s' is at work on its disk '%s': stop it on the host where it runs", vm->path, vm->disks[d].path);
        }
    }
    return r;
}

int hv_storage_fence(const struct hv_storage *s, const struct hv_vm *vm, struct gr_err *err)
{
    gr_auto_free char *mine = gr_asprintf(HV_INITIATOR_PREFIX "%s:", vm->uuid);
    if (!mine)
        return gr_fail(err, -ENOMEM, "out of memory");
    for (unsigned d = 0; d < vm->disk_count; d++) {
        json_auto_t *list = NULL;
        json_t *row;
        size_t i;
        int r = hv_storage_call(s, "session.list", json_pack("{s:s}", "disk", vm->disks[d].path), CALL_MS, &list, err);
        if (r < 0)
            return r;
        json_array_foreach(list, i, row) {
            const char *who = json_string_value(json_object_get(row, "initiator"));
            if (!who || strncmp(who, HV_INITIATOR_PREFIX, sizeof HV_INITIATOR_PREFIX - 1))
                continue;
            if (strncmp(who, mine, strlen(mine)))
                return gr_fail(err, -GR_ELOCKED, "disk '%s' is in use by another virtual machine (%s)", vm->disks[d].path, who + sizeof HV_INITIATOR_PREFIX - 4);
            r = hv_storage_call(s, "session.drop", json_pack("{s:O}", "id", json_object_get(row, "id")), CALL_MS, NULL, err);
            if (r < 0 && r != -ENOENT)
                return r;
        }
    }
    return 0;
}
