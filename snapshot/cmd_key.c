/* granary key create|list|import|export|use|rotate|delete */
#include "common/cleanup.h"
#include "snapshot/cmd_storage.h"

static const struct gr_col list_cols[] = {
    {"key", "KEY", GR_COL_TEXT}, {"current", "CURRENT", GR_COL_BOOL}, {"disks", "DISKS", GR_COL_NUMBER}, {"made", "MADE HERE", GR_COL_TIME}, {NULL},
};

/* Call @method; @fmt, with the key's number, tells that it is done. */
static int key_call(struct gr_cmd_ctx *c, const char *method, json_t *params, const char *what, struct gr_err *err)
{
    json_t *res = NULL;
    int r = snap_cmd_call(c, method, params, NULL, NULL, &res, err);
    const char *key = json_string_value(json_object_get(res, "key"));
    if (r == 0)
        r = gr_cmd_done(c, res, "key %s %s", key ? key : "", what);
    json_decref(res);
    return r;
}

static int cmd_create(struct gr_cmd_ctx *c, struct gr_err *err)
{
    return key_call(c, "key.create", json_object(), "created: keep a copy of it (granary key export), nothing can be read without it", err);
}

static int cmd_list(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *res = NULL;
    int r = snap_cmd_call(c, "key.list", json_object(), NULL, NULL, &res, err);
    if (r == 0)
        r = gr_cmd_rows(c, list_cols, res);
    json_decref(res);
    return r;
}

static int cmd_import(struct gr_cmd_ctx *c, struct gr_err *err)
{
    gr_auto_free char *file = NULL;
    int r = snap_cmd_absolute(gr_cmd_arg(c, 0), &file, err);
    return r < 0 ? r : key_call(c, "key.import", json_pack("{s:s}", "file", file), "imported", err);
}

static int cmd_export(struct gr_cmd_ctx *c, struct gr_err *err)
{
    gr_auto_free char *file = NULL;
    int r = snap_cmd_absolute(gr_cmd_arg(c, 1), &file, err);
    return r < 0 ? r : key_call(c, "key.export", json_pack("{s:s,s:s}", "key", gr_cmd_arg(c, 0), "file", file), "exported", err);
}

static int cmd_use(struct gr_cmd_ctx *c, struct gr_err *err)
{
    return key_call(c, "key.use", json_pack("{s:s}", "key", gr_cmd_arg(c, 0)), "is the one of new disks now", err);
}

static int cmd_delete(struct gr_cmd_ctx *c, struct gr_err *err)
{
    return key_call(c, "key.delete", json_pack("{s:s}", "key", gr_cmd_arg(c, 0)), "deleted", err);
}

static int cmd_rotate(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *res = NULL, *row;
    size_t i;
    const char *key = gr_cmd_arg(c, 0);
    int r = snap_cmd_call(c, "key.rotate", json_pack("{s:s*}", "key", key), NULL, NULL, &res, err);
    json_t *failed = json_object_get(res, "failed");
    const char *now = json_string_value(json_object_get(res, "key"));
    if (r == 0)
        r = gr_cmd_done(c, res, "key %s is the one of new disks; it wraps the keys of %lld encrypted ones", now ? now : "",
                        (long long)json_integer_value(json_object_get(res, "disks")));
    json_array_foreach(failed, i, row)
        r = gr_fail(err, -GR_EPARTIAL, "disk %s keeps its key: %s", json_string_value(json_object_get(row, "disk")),
                    json_string_value(json_object_get(row, "error")));
    json_decref(res);
    return r;
}

const struct gr_cmd snap_key_commands[] = {
    {"key", "create", "", 0, 0, "make a key for encrypted disks", NULL, cmd_create},
    {"key", "list", "", 0, 0, "list the keys of this host", NULL, cmd_list},
    {"key", "import", "FILE", 1, 1, "take a key of another host from a file", NULL, cmd_import},
    {"key", "export", "KEY FILE", 2, 2, "write a key to a new file", NULL, cmd_export},
    {"key", "use", "KEY", 1, 1, "say which key new disks get", NULL, cmd_use},
    {"key", "rotate", "[KEY]", 0, 1, "wrap the keys of all encrypted disks with another (or a new) key", NULL, cmd_rotate},
    {"key", "delete", "KEY", 1, 1, "delete a key that no disk needs", NULL, cmd_delete},
    {NULL},
};
