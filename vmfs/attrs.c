/* Attributes of objects that another host may hold: read at home, as that host last brought them there. */
#include "vmfs/internal.h"

int vmfs_attrs(struct vmfs *v, uint64_t id, uint64_t *version, void (*fn)(void *arg, const char *key, const void *val, size_t len), void *arg,
               struct gr_err *err)
{
    struct vobj known = { .v = v, .id = id, .ino = { .type = VMFS_FILE, .block_generation = *version } }, *o = NULL;
    if (*version && vobj_unchanged(&known))
        return 0;
    int r = vobj_peek(v, id, &o, err);
    if (r == 0 && o->ino.type != VMFS_FILE)
        r = gr_fail(err, -GR_ECORRUPT, "object %llu is not a file", (unsigned long long)id);
    else if (r == 0)
        *version = o->ino.block_generation;
    for (size_t i = 0; r == 0 && i < o->n_attrs; i++)
        fn(arg, o->attrs[i].key, o->attrs[i].val, o->attrs[i].len);
    if (o)
        vobj_free(o);
    return r < 0 ? r : 1;
}
