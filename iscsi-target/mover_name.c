/* Text forms that travel outside: bookmark tokens and NBD URLs. */
#include "common/buf.h"
#include "iscsi-target/mover.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void mover_bookmark_format(const struct gr_bookmark *b, char out[MOVER_BOOKMARK_TEXT])
{
    char uuid[37];
    gr_uuid_format(b->disk, uuid);
    snprintf(out, MOVER_BOOKMARK_TEXT, "%s:%" PRIu64 ":%" PRIu64, uuid, b->lineage, b->epoch);
}

int mover_bookmark_parse(const char *text, struct gr_bookmark *ret)
{
    char copy[MOVER_BOOKMARK_TEXT];
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

static int add_escaped(struct gr_buf *b, const char *s)
{
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || strchr("-._~/", c);
        int r = plain ? gr_buf_add(b, s, 1) : gr_buf_printf(b, "%%%02X", c);
        if (r < 0)
            return r;
    }
    return 0;
}

char *mover_url(const char *host_port, const char *export_name, const char *pki_dir)
{
    gr_auto_buf struct gr_buf b = {0};
    if (gr_buf_printf(&b, "nbd%s://%s/", pki_dir ? "s" : "", host_port) < 0 || add_escaped(&b, export_name) < 0)
        return NULL;
    if (pki_dir && (gr_buf_printf(&b, "?tls-certificates=") < 0 || add_escaped(&b, pki_dir) < 0))
        return NULL;
    return gr_buf_take(&b);
}
