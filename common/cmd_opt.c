/* Options of one form that several commands have. */
#include "common/buf.h"
#include "common/cmd.h"
#include <string.h>

int gr_cmd_on_off(struct gr_cmd_ctx *c, const char *name, json_t *params, struct gr_err *err)
{
    const char *text = gr_cmd_opt(c, name);
    if (!text)
        return 0;
    if (strcmp(text, "on") != 0 && strcmp(text, "off") != 0)
        return gr_fail(err, -GR_EUSAGE, "--%s '%s': say on or off", name, text);
    json_object_set_new(params, name, json_boolean(!strcmp(text, "on")));
    return 0;
}

int gr_cmd_limit(struct gr_cmd_ctx *c, const char *name, const char *key, bool bytes, json_t *params, struct gr_err *err)
{
    const char *text = gr_cmd_opt(c, name);
    uint64_t value = 0;
    int r = 0;
    if (!text)
        return 0;
    if (strcmp(text, "off") != 0)
        r = bytes ? gr_parse_size(text, &value, NULL) : gr_parse_u64(text, 1, INT64_MAX, &value, NULL);
    if (r < 0)
        return gr_fail(err, -GR_EUSAGE, "--%s '%s': say %s or off", name, text, bytes ? "a size" : "a number");
    json_object_set_new(params, key, json_integer((json_int_t)value));
    return 0;
}
