/* granary datastore create|join|leave|destroy|list|info|check|scrub|accept-loss|grow|devices|add-device|replace-device|remove-device */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/bdev_open.h"
#include "snapshot/cmd_storage.h"

static const struct gr_col list_cols[] = {
    {"name", "NAME", GR_COL_TEXT},       {"state", "STATE", GR_COL_TEXT}, {"size", "SIZE", GR_COL_SIZE},       {"used", "USED", GR_COL_SIZE},
    {"free", "FREE", GR_COL_SIZE},       {"devices", "DEVICES", GR_COL_LIST}, {"error", "ERROR", GR_COL_TEXT}, {"warning", "WARNING", GR_COL_TEXT}, {NULL},
};
static const struct gr_col info_cols[] = {
    {"name", "Name", GR_COL_TEXT},
    {"uuid", "UUID", GR_COL_TEXT},
    {"state", "State", GR_COL_TEXT},
    {"fence-reason", "Because", GR_COL_TEXT},
    {"warning", "Warning", GR_COL_TEXT},
    {"size", "Size", GR_COL_SIZE},
    {"used", "Used", GR_COL_SIZE},
    {"free", "Free", GR_COL_SIZE},
    {"metadata", "Metadata", GR_COL_SIZE},
    {"reserved", "Reserved", GR_COL_SIZE},
    {"devices", "Devices", GR_COL_LIST},
    {"regions", "Regions", GR_COL_NUMBER},
    {"region-size", "Region size", GR_COL_SIZE},
    {"journal-size", "Journal", GR_COL_SIZE},
    {"version", "Format version", GR_COL_NUMBER},
    {"shared-luns", "Shared LUNs", GR_COL_BOOL},
    {"one-host", "For one host", GR_COL_BOOL},
    {"data-crc", "Data CRCs", GR_COL_BOOL},
    {"timing", "Timing", GR_COL_TEXT},
    {NULL},
};
static const struct gr_col host_cols[] = {
    {"slot", "SLOT", GR_COL_NUMBER}, {"host", "HOST", GR_COL_TEXT},     {"state", "STATE", GR_COL_TEXT},
    {"alive", "ALIVE", GR_COL_BOOL}, {"self", "SELF", GR_COL_BOOL},     {"portal", "PORTAL", GR_COL_TEXT},
    {NULL},
};
static const struct gr_col owner_cols[] = {
    {"slot", "SLOT", GR_COL_NUMBER},   {"host", "HOST", GR_COL_TEXT}, {"state", "STATE", GR_COL_TEXT},   {"alive", "ALIVE", GR_COL_BOOL},
    {"disks", "DISKS", GR_COL_NUMBER}, {"self", "SELF", GR_COL_BOOL}, {"portal", "PORTAL", GR_COL_TEXT}, {NULL},
};
static const struct gr_col wait_cols[] = {
    {"what", "WAITS", GR_COL_TEXT}, {"disk", "FOR DISK", GR_COL_TEXT}, {"host", "OF HOST", GR_COL_TEXT}, {"seconds", "SECONDS", GR_COL_NUMBER},
    {"reason", "BECAUSE", GR_COL_TEXT}, {NULL},
};

static const struct gr_col device_cols[] = {
    {"number", "NUMBER", GR_COL_NUMBER}, {"device", "DEVICE", GR_COL_TEXT}, {"size", "SIZE", GR_COL_SIZE},
    {"used", "USED", GR_COL_SIZE},       {"free", "FREE", GR_COL_SIZE},     {"missing", "MISSING", GR_COL_BOOL},
    {"stale", "STALE", GR_COL_BOOL},     {"uuid", "UUID", GR_COL_TEXT},     {NULL},
};

static const struct gr_col member_cols[] = {
    {"number", "NUMBER", GR_COL_NUMBER}, {"device", "DEVICE", GR_COL_TEXT},   {"missing", "MISSING", GR_COL_BOOL}, {"stale", "STALE", GR_COL_BOOL}, {"leaving", "LEAVING", GR_COL_BOOL},
    {"tested", "TESTED", GR_COL_LIST},   {"tested-at", "AT", GR_COL_TIME}, {NULL},
};

static const struct gr_col scrub_cols[] = {
    {"started", "Scrub begun", GR_COL_TIME}, {"ended", "Scrub ended", GR_COL_TIME},     {"bytes", "Data read", GR_COL_SIZE},
    {"bad-pieces", "Bad pieces", GR_COL_NUMBER}, {"errors", "Broken rules", GR_COL_NUMBER}, {NULL},
};

static int named(struct gr_cmd_ctx *c, const char *method, json_t **ret, struct gr_err *err)
{
    const char *name = gr_cmd_arg(c, 0);
    int r = snap_datastore_name_check(name, err);
    return r < 0 ? r : snap_cmd_call(c, method, json_pack("{s:s}", "name", name), NULL, NULL, ret, err);
}

/* Who we are to the targets of LUNs; NULL: without. */
static int login_row(struct gr_cmd_ctx *c, json_t **ret, struct gr_err *err)
{
    static const char *const files[] = {"secret-file", "target-secret-file"}, *const users[] = {"user", "target-user"};
    json_t *o = NULL;
    for (int i = 0; i < 2; i++) {
        const char *user = gr_cmd_opt(c, users[i]), *file = gr_cmd_opt(c, files[i]);
        gr_auto_free char *path = NULL;
        if (!user != !file) {
            json_decref(o);
            return gr_fail(err, -GR_EUSAGE, "--%s and --%s go together", users[i], files[i]);
        }
        if (!user)
            continue;
        int r = snap_cmd_absolute(file, &path, err);
        if (r < 0) {
            json_decref(o);
            return r;
        }
        o = o ? o : json_object();
        json_object_set_new(o, users[i], json_string(user));
        json_object_set_new(o, files[i], json_string(path));
    }
    *ret = o;
    return 0;
}

/* {"name","devices","login"} from NAME DEVICE... and options */
static int name_devices(struct gr_cmd_ctx *c, json_t **ret, struct gr_err *err)
{
    json_t *devices = json_array();
    int r = snap_datastore_name_check(gr_cmd_arg(c, 0), err);
    for (int i = 1; r == 0 && gr_cmd_arg(c, i); i++) {
        gr_auto_free char *path = NULL;
        const char *name = gr_cmd_arg(c, i);
        r = gr_device_is_lun(name) ? 0 : snap_cmd_absolute(name, &path, err);
        if (r == 0 && json_array_append_new(devices, json_string(path ? path : name)) < 0)
            r = gr_fail(err, -GR_EUSAGE, "device %d: its name is not UTF-8", i);
    }
    json_t *login = NULL;
    if (r == 0)
        r = login_row(c, &login, err);
    json_t *params = r == 0 ? json_pack("{s:s,s:O,s:o*}", "name", gr_cmd_arg(c, 0), "devices", devices, "login", login) : NULL;
    json_decref(devices);
    if (r == 0)
        *ret = params;
    return r;
}

static int cmd_create(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *params = NULL, *res = NULL;
    uint64_t size = 0;
    const char *text = gr_cmd_opt(c, "size");
    int r = text ? snap_cmd_size(c, text, &size, err) : 0;
    if (r == 0)
        r = name_devices(c, &params, err);
    if (r < 0)
        return r;
    if (text)
        json_object_set_new(params, "size", json_integer((json_int_t)size));
    if (gr_cmd_opt(c, "timing"))
        json_object_set_new(params, "timing", json_string(gr_cmd_opt(c, "timing")));
    if (gr_cmd_flag(c, "data-crc"))
        json_object_set_new(params, "data-crc", json_true());
    if (gr_cmd_flag(c, "preallocate"))
        json_object_set_new(params, "preallocate", json_true());
    if (gr_cmd_flag(c, "force"))
        json_object_set_new(params, "force", json_true());
    if (gr_cmd_flag(c, "one-host"))
        json_object_set_new(params, "one-host", json_true());
    r = snap_cmd_call(c, "datastore.create", params, NULL, NULL, &res, err);
    if (r == 0)
        r = gr_cmd_done(c, res, "datastore '%s' created and joined", gr_cmd_arg(c, 0));
    json_decref(res);
    return r;
}

static int cmd_join(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *params = NULL, *res = NULL;
    int r = name_devices(c, &params, err);
    if (r == 0 && gr_cmd_flag(c, "degraded"))
        json_object_set_new(params, "degraded", json_true());
    bool rescue = gr_cmd_flag(c, "rescue");
    if (r == 0 && rescue) {
        json_object_set_new(params, "rescue", json_true());
        json_object_set_new(params, "yes", json_boolean(gr_cmd_flag(c, "yes")));
    }
    if (r == 0)
        r = snap_cmd_call(c, "datastore.join", params, NULL, NULL, &res, err);
    if (r == 0)
        r = rescue ? gr_cmd_done(c, res, "datastore '%s' can be read, and nothing is written to it: 'granary datastore rescued %s' tells what of it is whole", gr_cmd_arg(c, 0),
                                 gr_cmd_arg(c, 0))
                   : gr_cmd_done(c, res, "datastore '%s' joined", gr_cmd_arg(c, 0));
    json_decref(res);
    return r;
}

static int cmd_recover(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *params = NULL, *res = NULL;
    const char *name = gr_cmd_arg(c, 0), *host = gr_cmd_opt(c, "host");
    if (!host)
        return gr_fail(err, -GR_EUSAGE, "say with --host which host is gone: granary datastore info, or the refusal to join, names it");
    int r = name_devices(c, &params, err);
    if (r < 0)
        return r;
    json_object_set_new(params, "host", json_string(host));
    json_object_set_new(params, "yes", json_boolean(gr_cmd_flag(c, "yes")));
    r = snap_cmd_call(c, "datastore.recover", params, NULL, NULL, &res, err);
    if (r == 0)
        r = gr_cmd_done(c, res, "datastore '%s' is taken over from host '%s'", name, host);
    json_decref(res);
    return r;
}

static int cmd_leave(struct gr_cmd_ctx *c, struct gr_err *err)
{
    int r = named(c, "datastore.leave", NULL, err);
    return r < 0 ? r : gr_cmd_done(c, NULL, "datastore '%s' left; its devices keep their content", gr_cmd_arg(c, 0));
}

static int cmd_destroy(struct gr_cmd_ctx *c, struct gr_err *err)
{
    const char *name = gr_cmd_arg(c, 0);
    int r = snap_datastore_name_check(name, err);
    if (r == 0 && !gr_cmd_flag(c, "yes"))
        return gr_fail(err, -GR_EUSAGE, "datastore '%s': destroying it removes all its disks for ever: add --yes", name);
    if (r == 0)
        r = snap_cmd_call(c, "datastore.destroy", json_pack("{s:s,s:b}", "name", name, "yes", 1), NULL, NULL, NULL, err);
    return r < 0 ? r : gr_cmd_done(c, NULL, "datastore '%s' destroyed", name);
}

static int cmd_list(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *res = NULL;
    int r = snap_cmd_call(c, "datastore.list", json_object(), NULL, NULL, &res, err);
    if (r == 0)
        r = gr_cmd_rows(c, list_cols, res);
    json_decref(res);
    return r;
}

static int cmd_info(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *res = NULL;
    const char *name = gr_cmd_arg(c, 0);
    bool owners = gr_cmd_flag(c, "owners");
    int r = snap_datastore_name_check(name, err);
    if (r == 0)
        r = snap_cmd_call(c, "datastore.info", json_pack("{s:s,s:b}", "name", name, "owners", owners), NULL, NULL, &res, err);
    if (r == 0)
        r = gr_cmd_object(c, info_cols, res);
    if (r == 0 && !gr_cmd_json(c))
        r = gr_cmd_rows(c, owners ? owner_cols : host_cols, json_object_get(res, "hosts"));
    if (r == 0 && !gr_cmd_json(c))
        r = gr_cmd_rows(c, wait_cols, json_object_get(res, "waits"));
    if (r == 0 && !gr_cmd_json(c))
        r = gr_cmd_rows(c, member_cols, json_object_get(res, "members"));
    if (r == 0 && !gr_cmd_json(c) && json_is_object(json_object_get(res, "scrub")))
        r = gr_cmd_object(c, scrub_cols, json_object_get(res, "scrub"));
    json_decref(res);
    return r;
}

static int cmd_grow(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *res = NULL;
    uint64_t size = 0;
    char now[16];
    const char *name = gr_cmd_arg(c, 0);
    int r = snap_datastore_name_check(name, err);
    if (r == 0)
        r = snap_cmd_size(c, gr_cmd_arg(c, 1), &size, err);
    if (r == 0)
        r = snap_cmd_call(c, "datastore.grow", json_pack("{s:s,s:I}", "name", name, "size", (json_int_t)size), NULL, NULL, &res, err);
    if (r < 0)
        return r;
    gr_format_size((uint64_t)json_integer_value(json_object_get(res, "size")), now);
    r = gr_cmd_done(c, res, "datastore '%s' has %s now", name, now);
    json_decref(res);
    return r;
}

static int cmd_devices(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *res = NULL;
    int r = named(c, "datastore.devices", &res, err);
    if (r == 0)
        r = gr_cmd_rows(c, device_cols, res);
    json_decref(res);
    return r;
}

static int cmd_add_device(struct gr_cmd_ctx *c, struct gr_err *err)
{
    const char *name = gr_cmd_arg(c, 0), *device = gr_cmd_arg(c, 1);
    json_t *params = NULL, *res = NULL, *host;
    size_t i;
    int r = snap_cmd_device_params(c, name, device, gr_cmd_opt(c, "size"), &params, err);
    if (r < 0)
        return r;
    if (gr_cmd_flag(c, "force"))
        json_object_set_new(params, "force", json_true());
    r = snap_cmd_call(c, "datastore.add-device", params, NULL, NULL, &res, err);
    if (r < 0)
        return r;
    json_array_foreach(json_object_get(res, "unaware-hosts"), i, host)
        fprintf(stderr, "granary: host '%s' serves nothing now: 'granary datastore add-device' it there, too\n", json_string_value(host));
    r = gr_cmd_done(c, res, "device '%s' is part of datastore '%s'", device, name);
    json_decref(res);
    return r;
}

static int show_moved(void *arg, json_t *part)
{
    gr_cmd_progress(arg, "moved", (uint64_t)json_integer_value(json_object_get(part, "done")),
                    (uint64_t)json_integer_value(json_object_get(part, "total")), true);
    return 0;
}

static int cmd_remove_device(struct gr_cmd_ctx *c, struct gr_err *err)
{
    const char *name = gr_cmd_arg(c, 0), *device = gr_cmd_arg(c, 1);
    json_t *params = NULL, *res = NULL;
    int r = snap_cmd_device_params(c, name, device, NULL, &params, err);
    if (r == 0)
        r = snap_cmd_call(c, "datastore.remove-device", params, show_moved, c, &res, err);
    if (r == 0)
        r = gr_cmd_done(c, res, "device '%s' is no longer part of datastore '%s'", device, name);
    json_decref(res);
    return r;
}

#define LOGIN_OPTS                                                                                        \
    {"user", "NAME", "CHAP user at the targets of LUNs"},                                                 \
    {"secret-file", "FILE", "its secret, in a file only you can read, which stays there"},                \
    {"target-user", "NAME", "who the targets must prove to be (mutual CHAP)"},                            \
    {"target-secret-file", "FILE", "the secret they prove it with"}

static const struct gr_opt create_opts[] = {
    {"size", "SIZE", "length of each device file that is missing"},
    {"timing", "default|fast", "on shared LUNs: how soon a silent host counts as lost, 5 s or 1.5 s"},
    {"preallocate", NULL, "take the space of the devices at once"},
    {"data-crc", NULL, "keep a checksum of all data and compare it at each read"},
    {"force", NULL, "format over foreign data (never over a datastore in use)"},
    {"one-host", NULL, "on LUNs that cannot keep a lost host out: one host at a time, and no take-over but by hand"},
    LOGIN_OPTS,
    {NULL},
};
static const struct gr_opt info_opts[] = {{"owners", NULL, "count the disks that each host owns"}, {NULL}};
static const struct gr_opt join_opts[] = {
    {"degraded", NULL, "also when devices are missing: what lies on them cannot be read"},
    {"rescue", NULL, "a device that all depends on is lost for good: only read what is left"},
    {"yes", NULL, "with --rescue: yes, no other host uses it"},
    LOGIN_OPTS,
    {NULL},
};
static const struct gr_opt add_opts[] = {
    {"size", "SIZE", "length of the device file when it is missing"},
    {"force", NULL, "over foreign data (never over a datastore)"},
    {NULL},
};
static const struct gr_opt recover_opts[] = {
    {"host", "HOST", "the name of the host that is gone"},
    {"yes", NULL, "yes, it is off and stays off"},
    LOGIN_OPTS,
    {NULL},
};
static const struct gr_opt destroy_opts[] = {{"yes", NULL, "yes, all of it shall be gone"}, {NULL}};

const struct gr_cmd snap_datastore_commands[] = {
    {"datastore", "create", "NAME DEVICE...", 2, -1, "format devices as a new datastore and join it", create_opts, cmd_create},
    {"datastore", "join", "NAME DEVICE...", 2, -1, "register an existing datastore here and join it", join_opts, cmd_join},
    {"datastore", "recover", "NAME [DEVICE...]", 1, -1, "take over from a host that is gone", recover_opts, cmd_recover},
    {"datastore", "rescued", "NAME", 1, 1, "list what is whole of a datastore joined with --rescue", NULL, snap_cmd_rescued},
    {"datastore", "leave", "NAME", 1, 1, "leave a datastore and forget it here; its content stays", NULL, cmd_leave},
    {"datastore", "destroy", "NAME", 1, 1, "remove a datastore and everything in it", destroy_opts, cmd_destroy},
    {"datastore", "list", "", 0, 0, "list the datastores of this host", NULL, cmd_list},
    {"datastore", "info", "NAME", 1, 1, "show one datastore, the hosts joined to it, and who waits for whom", info_opts, cmd_info},
    {"datastore", "check", "NAME", 1, 1, "prove that a datastore is sound", snap_check_opts, snap_cmd_check},
    {"datastore", "scrub", "NAME", 1, 1, "read all of a datastore, so that damage is found in time", snap_scrub_opts, snap_cmd_scrub},
    {"datastore", "accept-loss", "DATASTORE/PATH", 1, 1, "use a disk or file again that lost writes with a device", NULL, snap_cmd_accept_loss},
    {"datastore", "grow", "NAME SIZE", 2, 2, "make a datastore (its last device file) larger", NULL, cmd_grow},
    {"datastore", "quota", "DATASTORE[/FOLDER] [SIZE|off]", 1, 2, "limit what a folder may hold, or list limits", NULL, snap_cmd_quota},
    {"datastore", "devices", "NAME", 1, 1, "list the devices of a datastore", NULL, cmd_devices},
    {"datastore", "add-device", "NAME DEVICE", 2, 2, "add a device to a datastore in use", add_opts, cmd_add_device},
    {"datastore", "replace-device", "NAME", 1, 1, "put an empty device in the place of one that is lost for good", snap_replace_opts, snap_cmd_replace_device},
    {"datastore", "remove-device", "NAME DEVICE", 2, 2, "move what lies on a device to the others, and let go of it", NULL, cmd_remove_device},
    {NULL},
};
