#include "snapshot/cmd_storage.h"
#include "common/bdev_open.h"
#include "common/buf.h"
#include "common/cleanup.h"

int snap_cmd_call(struct gr_cmd_ctx *c, const char *method, json_t *params, int (*on_part)(void *arg, json_t *part), void *arg, json_t **ret,
                  struct gr_err *err)
{
    const struct snap_cmd_app *app = gr_cmd_app(c);
    struct gr_home *home = NULL;
    struct snap_client *client = NULL;
    if (!params)
        return gr_fail(err, -GR_EUSAGE, "an argument is not UTF-8");
    int r = gr_home_open(1, &home, err);
    if (r == 0)
        r = snap_client_open(gr_cmd_loop(c), home, app->images, &client, err);
    if (r == 0)
        r = snap_client_call(client, method, params, on_part, arg, ret, err);
    else
        json_decref(params);
    snap_client_close(client);
    gr_home_free(home);
    return r;
}

int snap_cmd_with_rules(struct gr_loop *loop, int (*fn)(void *arg, const struct gr_rules *rules, struct gr_err *err), void *arg, struct gr_err *err)
{
    struct gr_home *home = NULL;
    struct snap_client *client = NULL;
    int r = gr_home_open(1, &home, err);
    if (r == 0)
        r = snap_client_open(loop, home, NULL, &client, err);
    struct snap_svc *svc = r == 0 ? snap_client_local(client) : NULL;
    if (svc) {
        const struct gr_rules rules = snap_svc_rules(svc);
        r = fn(arg, &rules, err);
    } else if (r == 0) {
        r = gr_fail(err, -EALREADY, "the storage daemon has just started");
    }
    snap_client_close(client);
    gr_home_free(home);
    return r;
}

char *snap_cmd_disk(const struct snap_path *p)
{
    return gr_asprintf("%s/%s", p->ds, p->path);
}

int snap_cmd_absolute(const char *path, char **ret, struct gr_err *err)
{
    if (!path[0])
        return gr_fail(err, -GR_EUSAGE, "a file name must not be empty");
    gr_auto_free char *cwd = path[0] == '/' ? NULL : getcwd(NULL, 0);
    if (path[0] != '/' && !cwd)
        return gr_fail(err, -errno, "the working directory cannot be told");
    char *full = cwd ? gr_asprintf("%s/%s", cwd, path) : gr_strdup(path);
    if (!full)
        return gr_fail(err, -ENOMEM, "%s: out of memory", path);
    *ret = full;
    return 0;
}

int snap_cmd_size(struct gr_cmd_ctx *c, const char *text, uint64_t *ret, struct gr_err *err)
{
    uint64_t size;
    int r = gr_parse_size(text, &size, err);
    if (r < 0)
        return r;
    if (size == 0)
        return gr_fail(err, -GR_EUSAGE, "a size of 0 is not possible");
    *ret = size;
    return 0;
}

int snap_cmd_device_params(struct gr_cmd_ctx *c, const char *name, const char *device, const char *size, json_t **ret, struct gr_err *err)
{
    gr_auto_free char *path = NULL;
    uint64_t bytes = 0;
    int r = snap_datastore_name_check(name, err);
    if (r == 0 && size)
        r = snap_cmd_size(c, size, &bytes, err);
    if (r == 0 && !gr_device_is_lun(device))
        r = snap_cmd_absolute(device, &path, err);
    if (r < 0)
        return r;
    *ret = json_pack("{s:s,s:s}", "name", name, "device", path ? path : device);
    if (!*ret)
        return gr_fail(err, -GR_EUSAGE, "the device's name is not UTF-8");
    if (size)
        json_object_set_new(*ret, "size", json_integer((json_int_t)bytes));
    return 0;
}

int snap_cmd_show_progress(void *arg, json_t *part)
{
    struct snap_transfer *t = arg;
    gr_cmd_progress(t->c, t->what, (uint64_t)json_integer_value(json_object_get(part, "done")),
                    (uint64_t)json_integer_value(json_object_get(part, "total")), true);
    return 0;
}
