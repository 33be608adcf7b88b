/* Text form of a point in a disk's history. */
#include "common/bdev.h"
#include "common/buf.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void gr_bookmark_format(const struct gr_bookmark *b, char out[GR_BOOKMARK_TEXT])
{
    char uuid[37];
    gr_uuid_format(b->disk, uuid);
    snprintf(out, GR_BOOKMARK_TEXT, "%s:%" PRIu64 ":%" PRIu64, uuid, b->lineage, b->epoch);
}

int gr_bookmark_parse(const char *text, struct gr_bookmark *ret)
{
    char copy[GR_BOOKMARK_TEXT];
    size_t n = strnlen(text, sizeof(copy));
    if (n >= sizeof(copy) || n < 36 + 4 || text[36] != ':')
        return -EINVAL;
    memcpy(copy, text, n + 1);
    copy[36] = 0;
    char *lineage = copy + 37, *epoch = strchr(lineage, ':');
    if (!epoch)
        return -EINVAL;
    *epoch++ = 0;
    struct gr_bookmark b = {0};
    if (gr_uuid_parse(copy, b.disk) < 0 || gr_parse_u64(lineage, 0, UINT64_MAX, &b.lineage, NULL) < 0 ||
        gr_parse_u64(epoch, 0, UINT64_MAX, &b.epoch, NULL) < 0)
        return -EINVAL;
    *ret = b;
    return 0;
}
