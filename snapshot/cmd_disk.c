/* granary disk create|list|info|resize|delete|import|export */
#include "common/buf.h"
#include "common/cleanup.h"
#include "snapshot/cmd_storage.h"
#include <string.h>

static const struct gr_col list_cols[] = {
    {"disk", "DISK", GR_COL_TEXT},
    {"size", "SIZE", GR_COL_SIZE},
    {"used", "USED", GR_COL_SIZE},
    {"shared", "SHARED", GR_COL_SIZE},
    {"unique", "UNIQUE", GR_COL_SIZE},
    {"provision", "PROVISION", GR_COL_TEXT},
    {"key", "KEY", GR_COL_TEXT},
    {"snapshots", "SNAPSHOTS", GR_COL_NUMBER},
    {"owner", "OWNER", GR_COL_TEXT},
    {NULL},
};
static const struct gr_col space_cols[] = {
    {"disk", "DISK", GR_COL_TEXT},       {"snapshot", "SNAPSHOT", GR_COL_TEXT}, {"size", "SIZE", GR_COL_SIZE},
    {"used", "USED", GR_COL_SIZE},       {"shared", "SHARED", GR_COL_SIZE},     {"unique", "UNIQUE", GR_COL_SIZE},
    {"held", "HELD", GR_COL_SIZE},       {NULL},
};
static const struct gr_col deleted_cols[] = {
    {"disk", "DISK", GR_COL_TEXT}, {"size", "SIZE", GR_COL_SIZE}, {"held", "HELD", GR_COL_SIZE}, {"clones", "KEPT FOR", GR_COL_LIST}, {NULL},
};
static const struct gr_col info_cols[] = {
    {"disk", "Disk", GR_COL_TEXT},           {"uuid", "UUID", GR_COL_TEXT},   {"size", "Size", GR_COL_SIZE},
    {"used", "Used", GR_COL_SIZE},           {"shared", "Shared", GR_COL_SIZE}, {"unique", "Unique", GR_COL_SIZE}, {"held", "Held with snapshots", GR_COL_SIZE}, {"provision", "Provision", GR_COL_TEXT}, {"snapshots", "Snapshots", GR_COL_NUMBER},
    {"physical-block", "Physical block", GR_COL_NUMBER}, {"read-only", "Read-only", GR_COL_BOOL}, {"removable", "Removable", GR_COL_BOOL}, {"template", "Template", GR_COL_BOOL}, {"iops", "IOPS limit", GR_COL_NUMBER}, {"bandwidth", "Bandwidth limit", GR_COL_SIZE}, {"encrypted", "Encrypted", GR_COL_BOOL}, {"key", "Key", GR_COL_TEXT}, {"lost-writes", "Has lost writes", GR_COL_BOOL}, {"parent", "Cloned from", GR_COL_TEXT}, {"parent-deleted", "Which is deleted", GR_COL_BOOL}, {"clones", "Clones", GR_COL_LIST}, {"owner", "Owner", GR_COL_TEXT}, {"mtime", "Changed", GR_COL_TIME},
    {NULL},
};

/* What --provision, --physical-block, --encrypt and the like say about a new disk, added to @params. */
static int shape(struct gr_cmd_ctx *c, json_t *params, struct gr_err *err)
{
    const char *provision = gr_cmd_opt(c, "provision"), *physical = gr_cmd_opt(c, "physical-block");
    uint64_t bytes;
    const char *key = gr_cmd_opt(c, "key"), *file = gr_cmd_opt(c, "key-file");
    gr_auto_free char *full = NULL;
    if (provision)
        json_object_set_new(params, "provision", json_string(provision));
    if (gr_cmd_flag(c, "encrypt"))
        json_object_set_new(params, "encrypt", json_true());
    if (key)
        json_object_set_new(params, "key", json_string(key));
    int f = file ? snap_cmd_absolute(file, &full, err) : 0;
    if (f < 0)
        return f;
    if (full)
        json_object_set_new(params, "key-file", json_string(full));
    if (!physical)
        return 0;
    int r = snap_cmd_size(c, physical, &bytes, err);
    if (r == 0)
        json_object_set_new(params, "physical-block", json_integer((json_int_t)bytes));
    return r;
}

static int cmd_create(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct snap_path p;
    uint64_t size = 0;
    json_t *res = NULL;
    const char *text = gr_cmd_opt(c, "size");
    int r = snap_path_parse(gr_cmd_arg(c, 0), SNAP_PATH_DISK, &p, err);
    if (r == 0 && !text)
        r = gr_fail(err, -GR_EUSAGE, "disk %s: give --size", gr_cmd_arg(c, 0));
    if (r == 0)
        r = snap_cmd_size(c, text, &size, err);
    if (r < 0)
        return r;
    json_t *params = json_pack("{s:s,s:I}", "disk", gr_cmd_arg(c, 0), "size", (json_int_t)size);
    r = shape(c, params, err);
    if (r < 0)
        json_decref(params);
    else
        r = snap_cmd_call(c, "disk.create", params, NULL, NULL, &res, err);
    if (r == 0)
        r = gr_cmd_done(c, res, "disk %s created", gr_cmd_arg(c, 0));
    json_decref(res);
    return r;
}

/* The snapshots of each disk behind it. */
static int add_snapshots(struct gr_cmd_ctx *c, json_t *disks, json_t *ret, struct gr_err *err)
{
    size_t i, k;
    json_t *row, *snap;
    int r = 0;
    json_array_foreach(disks, i, row)
    {
        json_t *snaps = NULL;
        json_array_append(ret, row);
        if (!json_integer_value(json_object_get(row, "snapshots")))
            continue;
        r = snap_cmd_call(c, "snapshot.list", json_pack("{s:O}", "disk", json_object_get(row, "disk")), NULL, NULL, &snaps, err);
        if (r < 0)
            break;
        json_array_foreach(snaps, k, snap)
        {
            if (strcmp(json_string_value(json_object_get(snap, "kind")), "snapshot") != 0)
                continue;
            json_object_set(snap, "snapshot", json_object_get(snap, "name"));
            json_array_append(ret, snap);
        }
        json_decref(snaps);
    }
    return r;
}

static int cmd_list(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct snap_path p;
    json_t *res = NULL;
    const char *path = gr_cmd_arg(c, 0);
    int r = path ? snap_path_parse(path, SNAP_PATH_DIR, &p, err) : 0;
    bool deleted = gr_cmd_flag(c, "deleted");
    if (r == 0)
        r = snap_cmd_call(c, "disk.list", json_pack("{s:s*,s:b}", "path", path, "deleted", deleted), NULL, NULL, &res, err);
    if (r == 0 && gr_cmd_flag(c, "snapshots") && !deleted) {
        json_t *all = json_array();
        r = add_snapshots(c, res, all, err);
        if (r == 0)
            r = gr_cmd_rows(c, space_cols, all);
        json_decref(all);
    } else if (r == 0) {
        r = gr_cmd_rows(c, deleted ? deleted_cols : list_cols, res);
    }
    json_decref(res);
    return r;
}

static int cmd_info(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct snap_path p;
    json_t *res = NULL;
    int r = snap_path_parse(gr_cmd_arg(c, 0), SNAP_PATH_DISK, &p, err);
    if (r == 0)
        r = snap_cmd_call(c, "disk.info", json_pack("{s:s}", "disk", gr_cmd_arg(c, 0)), NULL, NULL, &res, err);
    if (r == 0)
        r = gr_cmd_object(c, info_cols, res);
    json_decref(res);
    return r;
}

static int cmd_resize(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct snap_path p;
    uint64_t size = 0;
    json_t *res = NULL;
    const char *text = gr_cmd_opt(c, "size") ? gr_cmd_opt(c, "size") : gr_cmd_arg(c, 1);
    int r = snap_path_parse(gr_cmd_arg(c, 0), SNAP_PATH_DISK, &p, err);
    if (r == 0 && !text)
        r = gr_fail(err, -GR_EUSAGE, "disk %s: give the new size", gr_cmd_arg(c, 0));
    if (r == 0)
        r = snap_cmd_size(c, text, &size, err);
    if (r == 0)
        r = snap_cmd_call(c, "disk.resize",
                          json_pack("{s:s,s:I,s:b}", "disk", gr_cmd_arg(c, 0), "size", (json_int_t)size, "shrink", gr_cmd_flag(c, "shrink")),
                          NULL, NULL, &res, err);
    char now[16];
    gr_format_size(size, now);
    if (r == 0)
        r = gr_cmd_done(c, res, "disk %s has %s now", gr_cmd_arg(c, 0), now);
    json_decref(res);
    return r;
}

static int cmd_set(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct snap_path p;
    json_t *res = NULL, *params = json_pack("{s:s}", "disk", gr_cmd_arg(c, 0));
    int r = snap_path_parse(gr_cmd_arg(c, 0), SNAP_PATH_DISK, &p, err);
    if (r == 0)
        r = gr_cmd_on_off(c, "read-only", params, err);
    if (r == 0)
        r = gr_cmd_on_off(c, "removable", params, err);
    if (r == 0)
        r = gr_cmd_on_off(c, "template", params, err);
    if (r == 0)
        r = gr_cmd_limit(c, "iops", "iops", false, params, err);
    if (r == 0)
        r = gr_cmd_limit(c, "bandwidth", "bandwidth", true, params, err);
    if (r == 0)
        r = gr_cmd_limit(c, "burst", "burst-ms", false, params, err);
    if (r == 0 && gr_cmd_flag(c, "accept-loss"))
        json_object_set_new(params, "accept-loss", json_true());
    if (r == 0 && json_object_size(params) == 1)
        r = gr_fail(err, -GR_EUSAGE, "disk %s: say what to set (--read-only, --removable, --template, --iops, --bandwidth, --burst, --accept-loss)", gr_cmd_arg(c, 0));
    if (r == 0)
        r = snap_cmd_call(c, "disk.set", json_incref(params), NULL, NULL, &res, err);
    if (r == 0)
        r = gr_cmd_object(c, info_cols, res);
    json_decref(params);
    json_decref(res);
    return r;
}

static int cmd_delete(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct snap_path p;
    int r = snap_path_parse(gr_cmd_arg(c, 0), SNAP_PATH_DISK, &p, err);
    if (r == 0)
        r = snap_cmd_call(c, "disk.delete", json_pack("{s:s}", "disk", gr_cmd_arg(c, 0)), NULL, NULL, NULL, err);
    return r < 0 ? r : gr_cmd_done(c, NULL, "disk %s deleted", gr_cmd_arg(c, 0));
}

static int cmd_rekey(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct snap_path p;
    json_t *res = NULL;
    struct snap_transfer t = {c, "rewriting"};
    int r = snap_path_parse(gr_cmd_arg(c, 0), SNAP_PATH_DISK, &p, err);
    if (r == 0)
        r = snap_cmd_call(c, "disk.rekey",
                          json_pack("{s:s,s:b,s:b,s:b,s:s*}", "disk", gr_cmd_arg(c, 0), "wrap", gr_cmd_flag(c, "wrap"), "rewrite",
                                    gr_cmd_flag(c, "rewrite"), "resume", gr_cmd_flag(c, "resume"), "key", gr_cmd_opt(c, "key")),
                          snap_cmd_show_progress, &t, &res, err);
    const char *key = json_string_value(json_object_get(res, "key"));
    if (r == 0)
        r = gr_cmd_done(c, res, gr_cmd_flag(c, "wrap")     ? "disk %s: its data keys are wrapped with key %s now"
                                    : gr_cmd_flag(c, "resume") ? "disk %s: all of it is written with its newest data key, wrapped with key %s"
                                                               : "disk %s has a new data key, wrapped with key %s",
                        gr_cmd_arg(c, 0), key ? key : "");
    json_decref(res);
    return r;
}

static int cmd_erase(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct snap_path p;
    int r = snap_path_parse(gr_cmd_arg(c, 0), SNAP_PATH_DISK, &p, err);
    if (r == 0 && !gr_cmd_flag(c, "yes"))
        r = gr_fail(err, -GR_EUSAGE, "disk %s: nobody can read it or its snapshots afterwards: add --yes if that is meant", gr_cmd_arg(c, 0));
    if (r == 0)
        r = snap_cmd_call(c, "disk.erase", json_pack("{s:s}", "disk", gr_cmd_arg(c, 0)), NULL, NULL, NULL, err);
    return r < 0 ? r : gr_cmd_done(c, NULL, "disk %s erased: its keys are destroyed", gr_cmd_arg(c, 0));
}

static int cmd_move(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *res = NULL;
    struct snap_path p;
    int r = snap_path_parse(gr_cmd_arg(c, 0), SNAP_PATH_DISK, &p, err);
    if (r == 0)
        r = snap_cmd_call(c, "disk.move", json_pack("{s:s,s:s}", "disk", gr_cmd_arg(c, 0), "host", gr_cmd_arg(c, 1)), NULL, NULL, &res, err);
    if (r == 0)
        r = gr_cmd_done(c, res, "disk %s belongs to host '%s' now", gr_cmd_arg(c, 0), json_string_value(json_object_get(res, "host")));
    json_decref(res);
    return r;
}

static int cmd_import(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct snap_path p;
    gr_auto_free char *file = NULL;
    json_t *res = NULL, *extents = json_array();
    const char *disk = gr_cmd_arg(c, 1), *extent;
    struct snap_transfer t = {c, "importing"};
    int r = snap_path_parse(disk, SNAP_PATH_DISK, &p, err);
    if (r == 0)
        r = snap_cmd_absolute(gr_cmd_arg(c, 0), &file, err);
    for (int i = 0; r == 0 && (extent = gr_cmd_opt_n(c, "extent", i)); i++) {
        gr_auto_free char *full = NULL;
        r = snap_cmd_absolute(extent, &full, err);
        if (r == 0 && json_array_append_new(extents, json_string(full)) < 0)
            r = gr_fail(err, -GR_EUSAGE, "--extent: not UTF-8");
    }
    json_t *params = json_pack("{s:s,s:s*,s:s*,s:O}", "disk", disk, "file", file, "format", gr_cmd_opt(c, "format"), "extents", extents);
    if (r == 0)
        r = shape(c, params, err);
    if (r < 0)
        json_decref(params);
    else
        r = snap_cmd_call(c, "disk.import", params, snap_cmd_show_progress, &t, &res, err);
    if (r == 0)
        r = gr_cmd_done(c, res, "disk %s imported from %s", disk, gr_cmd_arg(c, 0));
    json_decref(extents);
    json_decref(res);
    return r;
}

static int cmd_export(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct snap_path p;
    gr_auto_free char *file = NULL, *disk = NULL;
    json_t *res = NULL;
    struct snap_transfer t = {c, "exporting"};
    int r = snap_path_parse(gr_cmd_arg(c, 0), SNAP_PATH_EITHER, &p, err);
    if (r == 0)
        r = snap_cmd_absolute(gr_cmd_arg(c, 1), &file, err);
    if (r < 0)
        return r;
    disk = snap_cmd_disk(&p);
    r = snap_cmd_call(c, "disk.export",
                      json_pack("{s:s,s:s,s:s*,s:s*}", "disk", disk ? disk : "", "file", file, "format", gr_cmd_opt(c, "format"), "snapshot",
                                p.snap[0] ? p.snap : NULL),
                      snap_cmd_show_progress, &t, &res, err);
    char size[16];
    gr_format_size((uint64_t)json_integer_value(json_object_get(res, "allocated")), size);
    if (r == 0)
        r = gr_cmd_done(c, res, "%s exported to %s (%s)", gr_cmd_arg(c, 0), gr_cmd_arg(c, 1), size);
    json_decref(res);
    return r;
}

#define ENCRYPT_OPTS                                                                                                           \
    {"encrypt", NULL, "keep its content encrypted on the datastore"},                                                          \
    {"key", "NUMBER", "with --encrypt: a key that granary key list shows (default: the one of new disks)"},                    \
    {"key-file", "FILE", "with --encrypt: a key that is imported from FILE first"}
static const struct gr_opt create_opts[] = {
    {"size", "SIZE", "size of the disk"},
    {"provision", "KIND", "thin (default), thick (space is reserved) or eager (also written with zeros)"},
    {"physical-block", "BYTES", "physical block size to report: 4096 (default) or 512"},
    ENCRYPT_OPTS,
    {NULL},
};
static const struct gr_opt list_opts[] = {
    {"snapshots", NULL, "the snapshots of each disk, too, and how much space each has"},
    {"deleted", NULL, "disks that were deleted, and are kept as long as there are clones of them"},
    {NULL},
};
static const struct gr_opt rekey_opts[] = {
    {"wrap", NULL, "keep the data key, and wrap it with the present (or --key) key-encryption key"},
    {"rewrite", NULL, "also write anew what older data keys were used on"},
    {"resume", NULL, "no new data key: go on with a --rewrite that was broken off"},
    {"key", "NUMBER", "key-encryption key: one that granary key list shows (default: the one of new disks)"},
    {NULL},
};
static const struct gr_opt erase_opts[] = {{"yes", NULL, "do it: nothing brings the content back"}, {NULL}};
static const struct gr_opt resize_opts[] = {
    {"size", "SIZE", "the new size (or as second argument)"},
    {"shrink", NULL, "allow a smaller size: what is behind is cut off"},
    {NULL},
};
static const struct gr_opt set_opts[] = {
    {"read-only", "on|off", "refuse every write through iSCSI and the mover"},
    {"removable", "on|off", "show a medium that initiators can eject"},
    {"template", "on|off", "keep it as it is: it can be cloned, but not written, resized, reverted or deleted"},
    {"iops", "N|off", "most commands a second through iSCSI"},
    {"bandwidth", "SIZE|off", "most bytes a second through iSCSI"},
    {"burst", "MS|off", "how much of a limit may be saved up while little is asked, in milliseconds; off: 100"},
    {"accept-loss", NULL, "use it again, though writes of it were lost with a device"},
    {NULL},
};
static const struct gr_opt import_opts[] = {
    {"format", "FORMAT", "raw or vmdk; without it the file's header decides"},
    {"provision", "KIND", "thin (default), thick or eager"},
    {"physical-block", "BYTES", "physical block size to report: 4096 (default) or 512"},
    ENCRYPT_OPTS,
    {"extent", "FILE", "a further file that the image consists of", true},
    {NULL},
};
static const struct gr_opt export_opts[] = {{"format", "FORMAT", "raw (default, with holes) or vmdk (stream-optimized)"}, {NULL}};

const struct gr_cmd snap_disk_commands[] = {
    {"disk", "create", "DATASTORE/PATH", 1, 1, "make a new, empty disk", create_opts, cmd_create},
    {"disk", "list", "[DATASTORE[/FOLDER]]", 0, 1, "list disks", list_opts, cmd_list},
    {"disk", "info", "DATASTORE/PATH", 1, 1, "show one disk", NULL, cmd_info},
    {"disk", "resize", "DATASTORE/PATH SIZE", 1, 2, "make a disk larger (or, with --shrink, smaller)", resize_opts, cmd_resize},
    {"disk", "set", "DATASTORE/PATH", 1, 1, "change how a disk shows itself as a LUN", set_opts, cmd_set},
    {"disk", "delete", "DATASTORE/PATH", 1, 1, "delete a disk and its snapshots", NULL, cmd_delete},
    {"disk", "detach", "DATASTORE/PATH", 1, 1, "give a clone its own copy of all that it shares", snap_detach_opts, snap_cmd_detach},
    {"disk", "promote", "DATASTORE/PATH", 1, 1, "let a clone and the disk it was cloned from change places", NULL, snap_cmd_promote},
    {"disk", "defragment", "DATASTORE/PATH", 1, 1, "put a disk's blocks one behind the other, where no snapshot has them", snap_defragment_opts, snap_cmd_defragment},
    {"disk", "rekey", "DATASTORE/PATH", 1, 1, "give an encrypted disk a new key", rekey_opts, cmd_rekey},
    {"disk", "erase", "DATASTORE/PATH", 1, 1, "destroy the keys of an encrypted disk", erase_opts, cmd_erase},
    {"disk", "move", "DATASTORE/PATH HOST", 2, 2, "give a disk to another host while it is in use", NULL, cmd_move},
    {"disk", "import", "FILE DATASTORE/PATH", 2, 2, "make a disk from an image file", import_opts, cmd_import},
    {"disk", "export", "DATASTORE/PATH[@SNAPSHOT] FILE", 2, 2, "write a disk or snapshot to a new image file", export_opts, cmd_export},
    {NULL},
};
