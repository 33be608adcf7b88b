#include "backup-proxy/placeset.h"
#include "common/seam.h"
#include <errno.h>
#include <stdlib.h>

static struct bp_place *find(struct bp_place *v, size_t cap, uint64_t pack, uint32_t off)
{
    size_t i = (size_t)((pack ^ (uint64_t)off * 0x9e3779b97f4a7c15u) * 0xff51afd7ed558ccdu >> 20) & (cap - 1);
    while (v[i].pack && (v[i].pack != pack || v[i].off != off))
        i = (i + 1) & (cap - 1);
    return &v[i];
}
static int grow(struct bp_placeset *s)
{
    size_t cap = s->cap ? s->cap * 2 : 1024;
    struct bp_place *v = gr_zalloc(cap * sizeof *v);
    if (!v)
        return -ENOMEM;
    for (size_t i = 0; i < s->cap; i++)
        if (s->v[i].pack)
            *find(v, cap, s->v[i].pack, s->v[i].off) = s->v[i];
    free(s->v);
    s->v = v;
    s->cap = cap;
    return 0;
}
int bp_placeset_add(struct bp_placeset *s, uint64_t pack, uint32_t off)
{
    if (s->n * 4 >= s->cap * 3 && grow(s) < 0)
        return -ENOMEM;
    struct bp_place *p = find(s->v, s->cap, pack, off);
    if (p->pack)
        return 0;
    *p = (struct bp_place){pack, off};
    s->n++;
    return 1;
}
bool bp_placeset_has(const struct bp_placeset *s, uint64_t pack, uint32_t off)
{
    return s->cap && find(s->v, s->cap, pack, off)->pack;
}
void bp_placeset_done(struct bp_placeset *s)
{
    free(s->v);
    *s = (struct bp_placeset){0};
}
