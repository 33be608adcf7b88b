/* Sizes, numbers, UUIDs and names as users and configuration files give them. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/err.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    gr_auto_free char *s = strndup((const char *)data, size);
    struct gr_err err = {0};
    uint64_t v = 0;
    uint8_t uuid[16];
    char text[37];
    if (!s)
        return 0;
    if (gr_parse_size(s, &v, &err) == 0 && v > INT64_MAX)
        __builtin_trap();
    if (gr_parse_u64(s, 5, 500, &v, &err) == 0 && (v < 5 || v > 500))
        __builtin_trap();
    if (gr_uuid_parse(s, uuid) == 0) {
        gr_uuid_format(uuid, text);
        if (strcasecmp(text, s) != 0)
            __builtin_trap();
    }
    gr_utf8_ok(s, strlen(s));
    return 0;
}
