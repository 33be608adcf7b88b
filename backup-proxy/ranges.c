#include "backup-proxy/ranges.h"
#include "common/range_text.h"
#include "common/seam.h"
#include <stdlib.h>
#include <string.h>

/* Halve the list: pairs become one range of data over the gap between them. */
static void thin_out(struct bp_ranges *r)
{
    size_t n = 0;
    for (size_t i = 0; i < r->n; i += 2) {
        struct bp_change c = r->v[i];
        if (i + 1 < r->n) {
            c.len = r->v[i + 1].off + r->v[i + 1].len - c.off;
            c.zero = false;
        }
        r->v[n++] = c;
    }
    r->n = n;
}
int bp_ranges_add(struct bp_ranges *r, uint64_t off, uint64_t len, bool zero)
{
    struct bp_change *last = r->n ? &r->v[r->n - 1] : NULL;
    if (len == 0 || off > INT64_MAX || len > INT64_MAX - off || (last && off < last->off + last->len))
        return -GR_EPROTO;
    if (last && last->off + last->len == off && last->zero == zero) {
        last->len += len;
        return 0;
    }
    if (r->n == BP_RANGES_MAX)
        thin_out(r);
    if (r->n == r->cap) {
        size_t cap = r->cap ? r->cap * 2 : 1024;
        struct bp_change *v = gr_realloc(r->v, cap * sizeof *v);
        if (!v)
            return -ENOMEM;
        r->v = v;
        r->cap = cap;
    }
    r->v[r->n++] = (struct bp_change){off, len, zero};
    return 0;
}
static int add(void *arg, uint64_t off, uint64_t len, bool zero)
{
    return bp_ranges_add(arg, off, len, zero);
}
static int on_part(void *arg, json_t *part)
{
    return gr_ranges_part(part, add, arg);
}
int bp_ranges_ask(struct bp_env *env, const char *disk, const char *base, const char *to, struct bp_ranges *ret, struct gr_err *err)
{
    json_t *res = NULL;
    int r = env->storage(env->arg, "snapshot.diff", json_pack("{s:s,s:s,s:s,s:s}", "disk", disk, "base", base, "to", to, "form", GR_RANGES_TEXT), on_part, ret, &res, err);
    json_decref(res);
    return r;
}
int bp_ranges_next(void *ranges, struct bp_change *ret, struct gr_err *err)
{
    struct bp_ranges *r = ranges;
    if (r->at == r->n)
        return 0;
    *ret = r->v[r->at++];
    return 1;
}
void bp_ranges_done(struct bp_ranges *r)
{
    free(r->v);
    *r = (struct bp_ranges){0};
}
