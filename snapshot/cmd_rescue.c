/* granary datastore rescued|replace-device: a device is lost for good */
#include "common/bdev_open.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "snapshot/cmd_storage.h"

static const struct gr_col object_cols[] = {
    {"path", "PATH", GR_COL_TEXT},           {"type", "TYPE", GR_COL_TEXT},         {"state", "STATE", GR_COL_TEXT},  {"size", "SIZE", GR_COL_SIZE},
    {"lost-data", "LOST DATA", GR_COL_SIZE}, {"lost-map", "LOST MAP", GR_COL_SIZE}, {"behind", "BEHIND", GR_COL_TEXT}, {"refused", "NOT SHOWN", GR_COL_BOOL}, {NULL},
};

int snap_cmd_rescued(struct gr_cmd_ctx *c, struct gr_err *err)
{
    const char *name = gr_cmd_arg(c, 0);
    json_t *res = NULL, *host;
    size_t i;
    int r = snap_datastore_name_check(name, err);
    if (r == 0)
        r = snap_cmd_call(c, "datastore.rescued", json_pack("{s:s}", "name", name), NULL, NULL, &res, err);
    if (r < 0)
        return r;
    if (gr_cmd_json(c)) {
        r = gr_cmd_done(c, res, "%s", name);
    } else {
        json_array_foreach(json_object_get(res, "hosts"), i, host)
            fprintf(stderr, "granary: the journal of host '%s' is lost: what it had is as it was at its last checkpoint, but for what was overwritten since\n",
                    json_string_value(host));
        if (json_integer_value(json_object_get(res, "refused")))
            fprintf(stderr, "granary: %lld may have other disks' bytes and are not shown, but their snapshots are: 'granary datastore accept-loss' shows one as it is\n",
                    json_integer_value(json_object_get(res, "refused")));
        r = gr_cmd_rows(c, object_cols, json_object_get(res, "objects"));
        if (r == 0)
            r = gr_cmd_done(c, NULL, "datastore '%s': %lld whole, %lld behind, %lld not whole", name, json_integer_value(json_object_get(res, "whole")),
                            json_integer_value(json_object_get(res, "behind")), json_integer_value(json_object_get(res, "damaged")));
    }
    json_decref(res);
    return r;
}

const struct gr_opt snap_replace_opts[] = {
    {"lost", "NUMBER", "of the device that is lost, as 'datastore devices' and 'rescued' count: 0 or 1"},
    {"with", "DEVICE", "an empty one, at least as large"},
    {"size", "SIZE", "length of the device file when it is missing"},
    {"yes", NULL, "yes, it is lost for good, and no other host uses the datastore"},
    {NULL},
};

int snap_cmd_replace_device(struct gr_cmd_ctx *c, struct gr_err *err)
{
    const char *name = gr_cmd_arg(c, 0), *lost = gr_cmd_opt(c, "lost"), *with = gr_cmd_opt(c, "with");
    json_t *params = NULL, *res = NULL;
    uint64_t number = 0;
    int r = lost && with ? gr_parse_u64(lost, 0, VMFS_DEVICES_MAX - 1, &number, err) :
                           gr_fail(err, -GR_EUSAGE, "datastore '%s': say --lost NUMBER and --with DEVICE", name);
    if (r == 0)
        r = snap_cmd_device_params(c, name, with, gr_cmd_opt(c, "size"), &params, err);
    if (r < 0)
        return r;
    json_object_set_new(params, "lost", json_integer((json_int_t)number));
    json_object_set_new(params, "yes", json_boolean(gr_cmd_flag(c, "yes")));
    r = snap_cmd_call(c, "datastore.replace-device", params, NULL, NULL, &res, err);
    if (r == 0)
        r = gr_cmd_done(c, res, "device '%s' is now device %s of datastore '%s'; what lay on the lost one cannot be read: 'granary datastore check %s' names it", with, lost, name, name);
    json_decref(res);
    return r;
}
