/* granary datastore check|scrub */
#include "common/buf.h"
#include "snapshot/cmd_storage.h"

struct check {
    struct gr_cmd_ctx *c;
    json_t *lines;
};

static int check_line(void *arg, json_t *part)
{
    struct check *k = arg;
    const char *line = json_string_value(json_object_get(part, "line"));
    if (!line)
        return 0;
    if (!gr_cmd_json(k->c))
        return gr_cmd_done(k->c, NULL, "%s", line);
    return json_array_append_new(k->lines, json_string(line)) < 0 ? -ENOMEM : 0;
}

int snap_cmd_check(struct gr_cmd_ctx *c, struct gr_err *err)
{
    const char *name = gr_cmd_arg(c, 0);
    bool repair = gr_cmd_flag(c, "repair");
    json_t *res = NULL;
    struct check k = {c, json_array()};
    int r = snap_datastore_name_check(name, err);
    if (r == 0)
        r = snap_cmd_call(c, repair ? "datastore.repair" : "datastore.check", json_pack("{s:s}", "name", name), check_line, &k, &res, err);
    if (r < 0) {
        json_decref(k.lines);
        return r;
    }
    bool sound = json_is_true(json_object_get(res, "sound"));
    long long errors = json_integer_value(json_object_get(res, "errors"));
    long long leaked = json_integer_value(json_object_get(res, "leaked-units"));
    long long mended = json_integer_value(json_object_get(res, "mended"));
    json_object_set_new(res, "broken", k.lines);
    if (repair && !gr_cmd_json(c))
        gr_cmd_done(c, NULL, "datastore '%s': %lld rules were broken and are repaired", name, mended);
    if (sound)
        r = gr_cmd_done(c, res, "datastore '%s' is sound: %lld objects, %lld metadata nodes, %lld pieces (%lld shared)", name,
                        json_integer_value(json_object_get(res, "objects")), json_integer_value(json_object_get(res, "nodes")),
                        json_integer_value(json_object_get(res, "pieces")), json_integer_value(json_object_get(res, "shared-pieces")));
    else if (gr_cmd_json(c))
        gr_cmd_done(c, res, "%s", name);
    bool partly = json_is_true(json_object_get(res, "partly"));
    json_decref(res);
    if (partly)
        return gr_fail(err, -GR_EPARTIAL, "datastore '%s' is sound as far as it could be looked at: a device is missing, or was lost", name);
    return sound ? r : gr_fail(err, -GR_ECORRUPT, "datastore '%s' is damaged: %lld rules broken, %lld units leaked", name, errors, leaked);
}

const struct gr_opt snap_check_opts[] = {
    {"repair", NULL, "and repair what can be repaired without guessing"},
    {NULL},
};

int snap_cmd_accept_loss(struct gr_cmd_ctx *c, struct gr_err *err)
{
    const char *path = gr_cmd_arg(c, 0);
    struct snap_path p;
    json_t *res = NULL;
    int r = snap_path_parse(path, SNAP_PATH_DISK, &p, err);
    if (r == 0)
        r = snap_cmd_call(c, "datastore.accept-loss", json_pack("{s:s}", "path", path), NULL, NULL, &res, err);
    if (r == 0 && json_is_true(json_object_get(res, "rescued")))
        r = gr_cmd_done(c, res, "disk %s is shown as its host's last checkpoint left it; any part of it may be another disk's: check it before you use it", path);
    else if (r == 0)
        r = gr_cmd_done(c, res, "%s %s is used again; of what was written to it before its device was lost, and not flushed, any part may be missing",
                        json_string_value(json_object_get(res, "type")), path);
    json_decref(res);
    return r;
}

/* ---- scrub ---- */
static int scrub_part(void *arg, json_t *part)
{
    struct check *k = arg;
    if (json_object_get(part, "line"))
        return check_line(arg, part);
    gr_cmd_progress(k->c, "read", (uint64_t)json_integer_value(json_object_get(part, "done")),
                    (uint64_t)json_integer_value(json_object_get(part, "total")), true);
    return 0;
}

const struct gr_opt snap_scrub_opts[] = {
    {"rate", "SIZE", "read at most so many bytes a second"},
    {"restart", NULL, "from the beginning, not from where the last one was broken off"},
    {NULL},
};

int snap_cmd_scrub(struct gr_cmd_ctx *c, struct gr_err *err)
{
    const char *name = gr_cmd_arg(c, 0), *rate = gr_cmd_opt(c, "rate");
    json_t *res = NULL;
    uint64_t bytes = 0;
    char size[16];
    int r = snap_datastore_name_check(name, err);
    if (r == 0 && rate)
        r = snap_cmd_size(c, rate, &bytes, err);
    if (r < 0)
        return r;
    struct check k = {c, json_array()};
    json_t *params = json_pack("{s:s,s:I,s:b}", "name", name, "rate", (json_int_t)bytes, "restart", gr_cmd_flag(c, "restart"));
    r = snap_cmd_call(c, "datastore.scrub", params, scrub_part, &k, &res, err);
    if (r < 0) {
        json_decref(k.lines);
        return r;
    }
    bool sound = json_is_true(json_object_get(res, "sound"));
    long long bad = json_integer_value(json_object_get(res, "bad-pieces")), errors = json_integer_value(json_object_get(res, "errors"));
    gr_format_size((uint64_t)json_integer_value(json_object_get(res, "bytes")), size);
    json_object_set_new(res, "broken", k.lines);
    if (sound)
        r = gr_cmd_done(c, res, "datastore '%s' is well: %s of data read, %lld damaged copies of metadata repaired", name, size,
                        json_integer_value(json_object_get(res, "repaired")));
    else if (gr_cmd_json(c))
        gr_cmd_done(c, res, "%s", name);
    json_decref(res);
    return sound ? r : gr_fail(err, -GR_ECORRUPT, "datastore '%s' is damaged: %lld pieces of data are lost, %lld rules of its metadata broken", name, bad, errors);
}
