/* NBD URLs. */
#include "common/buf.h"
#include "iscsi-target/mover.h"
#include <string.h>

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
