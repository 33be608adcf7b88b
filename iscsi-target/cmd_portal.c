/* Commands "granary portal …": the addresses of the daemon that runs are changed while initiators work. */
#include "iscsi-target/cmd_ask.h"
#include "iscsi-target/target.h"

static int portal_list(struct gr_cmd_ctx *c, struct gr_err *err)
{
    static const struct gr_col cols[] = {{"portal", "PORTAL", GR_COL_TEXT}, {"multipath", "MULTIPATH", GR_COL_BOOL},
                                         {"sessions", "SESSIONS", GR_COL_NUMBER}, {NULL, NULL, GR_COL_TEXT}};
    return tgt_cmd_rows(c, "portal.list", NULL, cols, err);
}

/* Takes @params; NULL: the argument is no text. */
static int change(struct gr_cmd_ctx *c, const char *method, json_t *params, json_t **ret, struct gr_err *err)
{
    return params ? tgt_cmd_ask(c, method, params, ret, err) : gr_fail(err, -GR_EUSAGE, "an argument is not UTF-8");
}

static int portal_add(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *result = NULL;
    int r = change(c, "portal.add", json_pack("{s:s,s:b}", "portal", gr_cmd_arg(c, 0), "multipath", gr_cmd_flag(c, "multipath")), &result, err);
    if (r == 0)
        r = gr_cmd_done(c, result, "portal %s is open", json_string_value(json_object_get(result, "portal")));
    json_decref(result);
    return r;
}

static int portal_remove(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *result = NULL;
    int r = change(c, "portal.remove", json_pack("{s:s}", "portal", gr_cmd_arg(c, 0)), &result, err);
    if (r == 0)
        r = gr_cmd_done(c, result, "portal %s is closed; sessions that came through it and go on: %d", gr_cmd_arg(c, 0),
                        (int)json_integer_value(json_object_get(result, "sessions")));
    json_decref(result);
    return r;
}

static const struct gr_opt add_opts[] = {{"multipath", NULL, "one that never redirects, for dm-multipath", false}, {NULL, NULL, NULL, false}};

const struct gr_cmd tgt_portal_commands[] = {
    {"portal", "list", "", 0, 0, "addresses at which initiators log in, and how many did", NULL, portal_list},
    {"portal", "add", "HOST:PORT", 1, 1, "open another one; port 0: any free one", add_opts, portal_add},
    {"portal", "remove", "HOST:PORT", 1, 1, "close one; its sessions go on, new logins are refused there", NULL, portal_remove},
    {NULL, NULL, NULL, 0, 0, NULL, NULL, NULL},
};
