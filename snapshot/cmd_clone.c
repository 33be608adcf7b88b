/* granary snapshot clone, granary disk detach|promote */
#include "common/buf.h"
#include "common/cleanup.h"
#include "snapshot/cmd_storage.h"
#include <string.h>

/* The run of '#' in the last name of @pattern becomes @number, with zeros before it. */
static char *numbered(const char *pattern, uint64_t number)
{
    const char *slash = strrchr(pattern, '/'), *at = strchr(slash ? slash : pattern, '#');
    if (!at)
        return NULL;
    int width = (int)strspn(at, "#");
    return gr_asprintf("%.*s%0*llu%s", (int)(at - pattern), pattern, width, (unsigned long long)number, at + width);
}

/* --count: names made from the one given. */
static int numbered_names(struct gr_cmd_ctx *c, const char *count, json_t *names, struct gr_err *err)
{
    const char *pattern = gr_cmd_arg(c, 1), *from = gr_cmd_opt(c, "first");
    uint64_t n = 0, first = 1;
    int r = gr_parse_u64(count, 1, 10000, &n, err);
    if (r < 0)
        return gr_prefix(err, -GR_EUSAGE, "--count");
    if (from && gr_parse_u64(from, 0, 1000000000, &first, err) < 0)
        return gr_prefix(err, -GR_EUSAGE, "--first");
    if (gr_cmd_nargs(c) != 2)
        return gr_fail(err, -GR_EUSAGE, "with --count one name is given, with '#' where the numbers go");
    for (uint64_t i = 0; i < n; i++) {
        gr_auto_free char *name = numbered(pattern, first + i);
        if (!name)
            return gr_fail(err, -GR_EUSAGE, "'%.100s' has no '#' in its last name, where the numbers of --count go (as in desk-###)", pattern);
        if (json_array_append_new(names, json_string(name)) < 0)
            return gr_fail(err, -ENOMEM, "out of memory");
    }
    return 0;
}

static int target_names(struct gr_cmd_ctx *c, json_t *names, struct gr_err *err)
{
    const char *count = gr_cmd_opt(c, "count");
    struct snap_path to;
    json_t *name;
    size_t i;
    int r = count ? numbered_names(c, count, names, err) : 0;
    if (!count && gr_cmd_opt(c, "first"))
        return gr_fail(err, -GR_EUSAGE, "--first is for --count");
    for (int k = 1; !count && gr_cmd_arg(c, k); k++)
        json_array_append_new(names, json_string(gr_cmd_arg(c, k)));
    json_array_foreach(names, i, name)
    {
        if (r == 0)
            r = snap_path_parse(json_string_value(name), SNAP_PATH_DISK, &to, err);
    }
    return r;
}

int snap_cmd_clone(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct snap_path p;
    json_t *names = json_array(), *params = NULL, *res = NULL;
    struct snap_transfer t = {c, "copying"};
    int r = snap_path_parse(gr_cmd_arg(c, 0), SNAP_PATH_EITHER, &p, err);
    if (r == 0)
        r = target_names(c, names, err);
    if (r == 0 && gr_cmd_opt(c, "provision") && !gr_cmd_flag(c, "full"))
        r = gr_fail(err, -GR_EUSAGE, "--provision goes with --full: a linked clone is thin");
    gr_auto_free char *disk = r == 0 ? snap_cmd_disk(&p) : NULL;
    bool one = json_array_size(names) == 1 && !gr_cmd_opt(c, "count");
    if (r == 0)
        params = json_pack("{s:s,s:s*,s:s*}", "disk", disk ? disk : "", "snapshot", p.snap[0] ? p.snap : NULL, "provision", gr_cmd_opt(c, "provision"));
    if (r == 0 && gr_cmd_flag(c, "full"))
        json_object_set_new(params, "full", json_true());
    if (r == 0)
        json_object_set(params, one ? "to" : "targets", one ? json_array_get(names, 0) : names);
    if (r == 0)
        r = snap_cmd_call(c, "snapshot.clone", params, snap_cmd_show_progress, &t, &res, err);
    const char *how = gr_cmd_flag(c, "full") ? "is a copy of" : "starts at";
    if (r == 0 && one)
        r = gr_cmd_done(c, res, "disk %s %s %s", gr_cmd_arg(c, 1), how, gr_cmd_arg(c, 0));
    else if (r == 0)
        r = gr_cmd_done(c, res, "%zu disks made: each %s %s", json_array_size(res), how, gr_cmd_arg(c, 0));
    json_decref(names);
    json_decref(res);
    return r;
}

int snap_cmd_detach(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct snap_path p;
    struct snap_transfer t = {c, "copying"};
    json_t *res = NULL;
    uint64_t rate = 0;
    const char *text = gr_cmd_opt(c, "rate");
    int r = snap_path_parse(gr_cmd_arg(c, 0), SNAP_PATH_DISK, &p, err);
    if (r == 0 && text)
        r = snap_cmd_size(c, text, &rate, err);
    if (r == 0)
        r = snap_cmd_call(c, "disk.detach", json_pack("{s:s,s:I}", "disk", gr_cmd_arg(c, 0), "rate", (json_int_t)rate), snap_cmd_show_progress, &t, &res, err);
    char size[16];
    gr_format_size((uint64_t)json_integer_value(json_object_get(res, "copied")), size);
    if (r == 0)
        r = gr_cmd_done(c, res, "disk %s shares nothing with another disk any more (%s copied)", gr_cmd_arg(c, 0), size);
    json_decref(res);
    return r;
}

int snap_cmd_promote(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct snap_path p;
    json_t *res = NULL;
    int r = snap_path_parse(gr_cmd_arg(c, 0), SNAP_PATH_DISK, &p, err);
    if (r == 0)
        r = snap_cmd_call(c, "disk.promote", json_pack("{s:s}", "disk", gr_cmd_arg(c, 0)), NULL, NULL, &res, err);
    if (r == 0)
        r = gr_cmd_done(c, res, "disk %s has the snapshots that it started from, and the other disk is a clone of it", gr_cmd_arg(c, 0));
    json_decref(res);
    return r;
}

const struct gr_opt snap_clone_opts[] = {
    {"count", "N", "make so many: '#' in the new name stands for their numbers, as in desk-###"},
    {"first", "N", "with --count: the first number (1)"},
    {"full", NULL, "copy the data, so that nothing is shared with the snapshot"},
    {"provision", "KIND", "with --full: thin (default), thick or eager"},
    {NULL},
};
const struct gr_opt snap_detach_opts[] = {{"rate", "SIZE", "copy at most so many bytes a second"}, {NULL}};
