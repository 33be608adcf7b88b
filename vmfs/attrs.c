/* Attributes of an object in memory: by key, ascending, for thousands of snapshots may have notes (notes.c). And those of objects that another host may
 * hold: read at home, as that host last brought them there. */
#include "common/seam.h"
#include "vmfs/internal.h"

/* As strcmp() of the key and [@key, @key + @len). */
static int key_compare(const char *a, const char *key, size_t len)
{
    int c = strncmp(a, key, len);
    return c ? c : a[len] != 0;
}

/* Where the first key is that is not less. */
static size_t place_of(const struct vobj *o, const char *key, size_t len)
{
    size_t from = 0, end = o->n_attrs;
    while (from < end) {
        size_t mid = from + (end - from) / 2;
        if (key_compare(o->attrs[mid].key, key, len) < 0)
            from = mid + 1;
        else
            end = mid;
    }
    return from;
}

const struct vattr *vobj_attr(const struct vobj *o, const char *key)
{
    size_t i = place_of(o, key, strlen(key));
    return i < o->n_attrs && strcmp(o->attrs[i].key, key) == 0 ? &o->attrs[i] : NULL;
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const struct vattr *)a)->key, ((const struct vattr *)b)->key);
}

void vobj_attrs_sort(struct vobj *o)
{
    for (size_t i = 1; i < o->n_attrs; i++)
        if (by_key(&o->attrs[i - 1], &o->attrs[i]) > 0) {
            qsort(o->attrs, o->n_attrs, sizeof *o->attrs, by_key);
            return;
        }
}

static void attr_remove(struct vobj *o, size_t i)
{
    free(o->attrs[i].key);
    free(o->attrs[i].val);
    memmove(&o->attrs[i], &o->attrs[i + 1], (--o->n_attrs - i) * sizeof *o->attrs);
}

int vobj_attr_put(struct vobj *o, const char *k, size_t kl, const void *v, size_t vl)
{
    kl = strnlen(k, kl);
    size_t i = place_of(o, k, kl);
    struct vattr *a = vl ? gr_realloc(o->attrs, (o->n_attrs + 1) * sizeof *a) : NULL;
    char *key = vl ? gr_zalloc(kl + 1) : NULL;
    void *val = vl ? gr_alloc(vl + 1) : NULL;
    if (a)
        o->attrs = a;
    if (vl && (!a || !key || !val)) {
        free(key);
        free(val);
        return -ENOMEM;
    }
    if (vl) {
        memcpy(key, k, kl);
        memcpy(val, v, vl);
    }
    if (i < o->n_attrs && key_compare(o->attrs[i].key, k, kl) == 0)
        attr_remove(o, i);
    if (vl) {
        memmove(&o->attrs[i + 1], &o->attrs[i], (o->n_attrs++ - i) * sizeof *o->attrs);
        o->attrs[i] = (struct vattr){ key, val, vl };
    }
    vobj_attrs_seen(o);
    return 0;
}

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
