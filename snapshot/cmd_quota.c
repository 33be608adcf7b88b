/* granary datastore quota */
#include "common/cleanup.h"
#include "snapshot/cmd_storage.h"
#include <string.h>

static const struct gr_col cols[] = {
    {"folder", "FOLDER", GR_COL_TEXT}, {"limit", "LIMIT", GR_COL_SIZE}, {"used", "USED", GR_COL_SIZE}, {"free", "FREE", GR_COL_SIZE}, {NULL},
};

int snap_cmd_quota(struct gr_cmd_ctx *c, struct gr_err *err)
{
    const char *path = gr_cmd_arg(c, 0), *text = gr_cmd_arg(c, 1);
    struct snap_path p;
    uint64_t size = 0;
    json_t *res = NULL;
    int r = snap_path_parse(path, SNAP_PATH_DIR, &p, err);
    if (r == 0 && text && strcmp(text, "off") != 0)
        r = snap_cmd_size(c, text, &size, err);
    if (r == 0 && !text)
        r = snap_cmd_call(c, "datastore.quota", json_pack("{s:s}", "path", path), NULL, NULL, &res, err);
    else if (r == 0)
        r = snap_cmd_call(c, "datastore.set-quota", json_pack("{s:s,s:I}", "path", path, "size", (json_int_t)size), NULL, NULL, &res, err);
    if (r == 0 && !text)
        r = gr_cmd_rows(c, cols, res);
    else if (r == 0)
        r = gr_cmd_done(c, res, size ? "folder %s may hold %s" : "folder %s has no quota", path, text);
    json_decref(res);
    return r;
}
