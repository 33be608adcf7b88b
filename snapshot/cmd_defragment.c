/* granary disk defragment */
#include "common/buf.h"
#include "common/cleanup.h"
#include "snapshot/cmd_storage.h"

const struct gr_opt snap_defragment_opts[] = {
    {"rate", "SIZE", "move at most so many bytes a second"},
    {"dry-run", NULL, "only tell in how many runs it lies, and what would be moved"},
    {NULL},
};

static const char *size_of(const json_t *res, const char *key, char buf[16])
{
    gr_format_size((uint64_t)json_integer_value(json_object_get(res, key)), buf);
    return buf;
}

/* What was left, and why: "", or a list that begins with "; ". */
static char *left_over(const json_t *res)
{
    static const struct {
        const char *key, *why;
    } why[] = {
        {"shared", "stay where they are, for snapshots, clones or copies have them, too"},
        {"busy", "were written all the time"},
        {"splintered", "found no run of free space"},
    };
    struct gr_buf b = {0};
    char size[16];
    for (size_t i = 0; i < GR_ARRAY_LEN(why); i++)
        if (json_integer_value(json_object_get(res, why[i].key)))
            gr_buf_printf(&b, "; %s %s", size_of(res, why[i].key, size), why[i].why);
    return gr_buf_printf(&b, "%s", "") < 0 ? NULL : gr_buf_take(&b);
}

static int tell(struct gr_cmd_ctx *c, json_t *res)
{
    gr_auto_free char *left = left_over(res);
    char moved[16];
    long long before = json_integer_value(json_object_get(res, "runs-before")), runs = json_integer_value(json_object_get(res, "runs"));
    size_of(res, "moved", moved);
    if (gr_cmd_flag(c, "dry-run"))
        return gr_cmd_done(c, res, "disk %s lies in %lld runs; with %s moved it would be %lld%s", gr_cmd_arg(c, 0), before, moved, runs,
                           left ? left : "");
    return gr_cmd_done(c, res, "disk %s lies in %lld runs, before in %lld: %s moved%s", gr_cmd_arg(c, 0), runs, before, moved, left ? left : "");
}

int snap_cmd_defragment(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct snap_path p;
    struct snap_transfer t = {c, gr_cmd_flag(c, "dry-run") ? "looking" : "defragmenting"};
    json_t *res = NULL;
    uint64_t rate = 0;
    const char *text = gr_cmd_opt(c, "rate");
    int r = snap_path_parse(gr_cmd_arg(c, 0), SNAP_PATH_DISK, &p, err);
    if (r == 0 && text)
        r = snap_cmd_size(c, text, &rate, err);
    if (r == 0)
        r = snap_cmd_call(c, "disk.defragment",
                          json_pack("{s:s,s:I,s:b}", "disk", gr_cmd_arg(c, 0), "rate", (json_int_t)rate, "dry-run", gr_cmd_flag(c, "dry-run")),
                          snap_cmd_show_progress, &t, &res, err);
    if (r == 0)
        r = tell(c, res);
    long long damaged = json_integer_value(json_object_get(res, "damaged"));
    json_decref(res);
    if (!damaged)
        return r;
    return gr_fail(err, -GR_ECORRUPT, "disk %s: %lld bytes are not what was written: they stay where they are (granary datastore scrub names them)",
                   gr_cmd_arg(c, 0), damaged);
}
